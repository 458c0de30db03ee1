"""Models that people already have: their weights, what counts of a file, and rows that say so."""

from __future__ import annotations

import ast
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

import neurobench
from neurobench.bundle import make_bundle
from neurobench.caveats import caveats
from neurobench.cli import app
from neurobench.comparisons import compare_all
from neurobench.components import parse_component
from neurobench.config import RunConfig, expand
from neurobench.errors import ConfigErrors, DataError, PluginError
from neurobench.leaderboard import read_board
from neurobench.leaderboard_site import build_leaderboard
from neurobench.leaderboard_text import markdown
from neurobench.plugins import Registry, load_registry
from neurobench.pretraining import build
from neurobench.records import BackboneSpec
from neurobench.results import content_hash, load_evidence, read_record
from neurobench.specimens import simulated_batch, simulated_units
from neurobench_backbones import _outside, _weights
from neurobench_backbones import braindecode as braindecode_plugin
from neurobench_backbones import huggingface as huggingface_plugin
from neurobench_backbones import timm as timm_plugin
from neurobench_backbones._weights import load_weights, read_weights
from neurobench_backbones.braindecode import MODELS, Braindecode, _models
from neurobench_backbones.huggingface import HuggingFace
from neurobench_backbones.timm import Timm
from tests.fakes import write_folder
from tests.test_bundle import judged, refused, with_record
from tests.tiny_run import execute

SPEC = BackboneSpec(n_units=12, n_groups=3, n_patches=5, n_features=6, width=32, n_layers=1)


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load_registry()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_folder(folder, n_subjects=24)
    return folder


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of a whole vision transformer of one block, as timm names them."""
    import timm

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("vit") / "vit.safetensors"
    save_file(timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=3).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as save_pretrained writes it."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("bert") / "tiny"
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=20, **sizes)).save_pretrained(folder)
    return folder


# ---------------------------------------------------------------- files of weights


def test_weights_are_read_from_every_kind_of_file_as_they_were_written(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(3.0), "b.c": torch.ones(2, 2)}
    save_file(tensors, tmp_path / "w.safetensors")
    torch.save(tensors, tmp_path / "w.pt")
    torch.save({"epoch": 3, "model": {"state_dict": tensors}}, tmp_path / "nested.pth")
    for name in ("w.safetensors", "w.pt", "nested.pth"):
        found = read_weights(tmp_path / name)
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[k], v) for k, v in tensors.items())


class Evil:
    """Would run code if it were unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("run",))


def test_files_that_are_missing_cut_short_unsafe_or_empty_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"a": torch.ones(100)}, tmp_path / "w.safetensors")
    for name in ("cut.safetensors", "cut.pt"):
        (tmp_path / name).write_bytes((tmp_path / "w.safetensors").read_bytes()[:50])
    torch.save({"a": Evil()}, tmp_path / "evil.pt")
    torch.save({"epoch": 1}, tmp_path / "none.pt")
    for name, said in (
        ("nothing.pt", "does not exist"),
        ("cut.safetensors", "cannot be read as weights"),
        ("cut.pt", "cannot be read as weights"),
        ("evil.pt", "holds more than tensors"),
        ("none.pt", "holds no tensors by name"),
    ):
        with pytest.raises(DataError, match=said):
            read_weights(tmp_path / name)
    assert capsys.readouterr().out == ""


def test_what_does_not_fit_is_listed_and_nothing_is_changed(tmp_path: Path) -> None:
    net = nn.Linear(2, 3)
    before = net.weight.clone()
    save_file({"weight": torch.ones(3, 4), "extra": torch.ones(1), "head.x": torch.ones(1)}, tmp_path / "w.safetensors")
    said = r"1 missing: bias; 1 of another shape: weight \(3, 4\) instead of \(3, 2\); 1 not used: extra\."
    with pytest.raises(DataError, match=said):
        load_weights(net, tmp_path / "w.safetensors", left_out=["head"])
    assert torch.equal(net.weight, before)
    torch.save({f"module.{k}": v + 1 for k, v in net.state_dict().items()}, tmp_path / "w.pt")
    load_weights(net, tmp_path / "w.pt")
    assert torch.equal(net.weight, before + 1)


# ---------------------------------------------------------------- the content counts, not the path


def test_a_file_is_known_by_its_content(registry: Registry, vit: Path, tmp_path: Path) -> None:
    there = parse_component("backbone", f"timm[weights={vit},depth=1]", registry)
    moved = tmp_path / "other name.safetensors"
    shutil.copy(vit, moved)
    here = parse_component("backbone", f"timm[depth=1,weights={moved}]", registry)
    assert there == here
    assert there.identity() == here.identity()
    assert there.label.startswith("timm[weights=sha256:")
    assert str(vit.parent) not in json.dumps(there.identity())
    assert (there.arguments["weights"], here.arguments["weights"]) == (str(vit), str(moved))
    # A record can be read where the file is not.
    again = parse_component("backbone", there.label, registry)
    assert again == there
    assert again.from_outside
    assert not parse_component("backbone", "timm[depth=1]", registry).from_outside
    weights = read_weights(moved)
    save_file({k: v + 1 for k, v in weights.items()}, moved)
    assert parse_component("backbone", f"timm[weights={moved},depth=1]", registry) != there


def test_a_folder_is_known_by_its_configuration_and_weights(registry: Registry, bert: Path, tmp_path: Path) -> None:
    there = parse_component("backbone", f"huggingface[model={bert}]", registry)
    shutil.copytree(bert, tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("another", encoding="utf-8")
    assert parse_component("backbone", f"huggingface[model={tmp_path / 'copy'}]", registry) == there
    config = json.loads((bert / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}), encoding="utf-8")
    assert parse_component("backbone", f"huggingface[model={tmp_path / 'copy'}]", registry) != there


def test_what_cannot_be_is_refused_before_any_work(registry: Registry, vit: Path, tmp_path: Path) -> None:
    def refused(backbone: str, **options: Any) -> str:
        config = RunConfig.from_options(backbone=backbone, mask="none", dataset="parcels", **options)
        with pytest.raises(ConfigErrors) as error:
            expand(config, registry)
        return str(error.value)

    assert "does not exist" in refused(f"timm[weights={tmp_path / 'no.pt'}]")
    assert "did you mean 'vit_tiny_patch16_224'" in refused("timm[model=vit_tiny_patch16_225]")
    assert "has no blocks that take any number of tokens" in refused("timm[model=resnet18]")
    assert "grid 'round' is none of flat, factorised" in refused("timm[grid=round]")
    assert "is none of CBraMod" in refused("braindecode[model=Nobody]")
    assert "no architecture of transformers" in refused("huggingface[model=nothing/here]")
    assert "takes no inputs_embeds" in refused("huggingface[model=vit]")
    scratch = refused(f"timm[weights={vit},depth=1]", adaptation="scratch")
    assert "has weights from outside" in scratch


# ---------------------------------------------------------------- timm


def test_timm_blocks_are_those_of_the_file(vit: Path) -> None:
    weights = read_weights(vit)
    net, _ = build(Timm, SPEC, {"weights": str(vit), "depth": 1}, seed=0)
    own = net.state_dict()
    assert all(torch.equal(own[k], v) for k, v in weights.items() if k.startswith("blocks."))
    assert torch.equal(own["norm_of_model.weight"], weights["norm.weight"])


def test_timm_weights_of_another_model_are_refused(vit: Path) -> None:
    with pytest.raises(DataError, match=r"missing: blocks\.1\..*"):
        build(Timm, SPEC, {"weights": str(vit), "depth": 2}, seed=0)
    with pytest.raises(DataError, match=r"of another shape: blocks\.0\."):
        build(Timm, SPEC, {"model": "vit_small_patch16_224", "weights": str(vit), "depth": 1}, seed=0)


def test_nothing_is_downloaded(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for text in ("timm[weights=cache]", "huggingface[model=somebody/something]", "braindecode[weights=a/b]"):
        with pytest.raises(DataError, match=r"cache|does not exist"):
            parse_component("backbone", text, registry)


# ---------------------------------------------------------------- transformers


def test_a_transformers_model_is_that_of_the_folder(bert: Path) -> None:
    weights = read_weights(bert / "model.safetensors")
    own = build(HuggingFace, SPEC, {"model": str(bert)}, seed=0)[0].state_dict()
    layers = {k: v for k, v in weights.items() if k.startswith("encoder.")}
    assert layers
    assert all(torch.equal(own[f"net.{k}"], v) for k, v in layers.items())
    assert own["into.weight"].shape == (16, 32)


def test_a_transformers_folder_that_is_not_whole_is_refused(bert: Path, tmp_path: Path) -> None:
    more = shutil.copytree(bert, tmp_path / "more")
    config = json.loads((more / "config.json").read_text(encoding="utf-8"))
    (more / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}), encoding="utf-8")
    with pytest.raises(DataError, match=r"16 missing: encoder\.layer\.1"):
        HuggingFace(SPEC, model=str(more))
    wider = shutil.copytree(bert, tmp_path / "wider")
    (wider / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}), encoding="utf-8")
    with pytest.raises(DataError, match="cannot be read"):
        HuggingFace(SPEC, model=str(wider))
    (more / "model.safetensors").unlink()
    with pytest.raises(DataError, match="a configuration and no weights"):
        HuggingFace.named_files({"model": str(more)})
    with pytest.raises(DataError, match="looks one way"):
        HuggingFace(SPEC, model="gpt2")


# ---------------------------------------------------------------- braindecode


@pytest.mark.parametrize("model", MODELS)
def test_braindecode_weights_find_their_place_by_braindecodes_names(model: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    sizes: dict[str, Any] = {
        "CBraMod": {"n_layer": 2, "n_chans": 3, "n_times": 400},
        "LaBraM": {"num_layers": 2, "n_chans": 3, "n_times": 400},
        "EEGPT": {"depth": 2, "n_chans": 3, "n_times": 128},
        "BIOT": {"num_layers": 2, "n_chans": 3, "n_times": 400, "sfreq": 200},
    }[model]
    original = getattr(_models(), {"LaBraM": "Labram"}.get(model, model))(n_outputs=2, **sizes)
    weights = {k: v.clone() for k, v in original.state_dict().items()}
    save_file(weights, tmp_path / "w.safetensors")
    net, _ = build(Braindecode, SPEC, {"model": model, "weights": str(tmp_path / "w.safetensors"), "depth": 1}, seed=0)
    own = net.net.state_dict()
    given = {k.removeprefix("target_encoder."): v for k, v in weights.items()}
    given |= {k.removeprefix("encoder."): v for k, v in weights.items() if model == "BIOT"}
    assert own.keys() <= given.keys()
    assert all(torch.equal(own[k], given[k]) for k in own)


@pytest.mark.parametrize(
    ("model", "sees_time"), [("CBraMod", True), ("LaBraM", True), ("EEGPT", False), ("BIOT", True)]
)
def test_what_a_braindecode_token_sees(model: str, sees_time: bool) -> None:
    batch = simulated_batch(simulated_units(12, 3), 2, SPEC.n_patches, SPEC.n_features)
    net, _ = build(Braindecode, SPEC, {"model": model, "depth": 1}, seed=0)
    hidden = torch.zeros_like(batch.table.valid)
    hidden[:, 3, 2] = True
    signal = batch.signal.masked_fill(hidden[..., None], 0.0).requires_grad_()
    token = net.eval()(signal, hidden, batch.table)[0, 3, 2]
    (gradient,) = torch.autograd.grad(token @ torch.arange(32.0).cos(), signal)
    reach = gradient.abs().amax(-1) > 0
    assert reach[0, 4, 2]
    assert reach[0, 3, 1] == sees_time
    assert not reach[1].any()


# ---------------------------------------------------------------- a run


def test_rows_with_outside_weights_say_so_and_are_not_ranked(data: Path, vit: Path, tmp_path: Path) -> None:
    first = execute(data, tmp_path / "out", backbone=f"tiny,timm[depth=1,weights={vit}]", task="age")
    assert first.failed == (), set(first.table["error"])
    table = first.table.set_index("row")
    apart = table[table["apart"] != ""]
    assert set(apart["apart"]) == {"parameter budget, outside weights"}
    kinds = {row.rpartition(" · ")[2]: kind for row, kind in apart["kind"].items()}
    assert kinds == {"as given": "given", "roi": "pretrained"}
    assert not apart["best"].any()
    assert table.loc["tiny · untrained", "apart"] == ""
    paths = sorted((tmp_path / "out" / "records").glob("*.json"))
    records = [read_record(path) for path in paths]
    assert not any(str(vit) in r.model_dump_json(exclude={"environment"}) for r in records)
    assert {r.kind for r in records if "outside weights" in r.apart} == {"given", "pretrained"}
    (evidence,) = load_evidence(tmp_path / "out")
    said = {c.code: c.text for c in caveats(evidence, records)}
    assert "cannot be excluded that the test subjects are among them" in said["outside-weights"]
    assert "outside the common parameter budget" in said["parameter-budget"]
    (compared,) = compare_all(tmp_path / "out", task="age")
    assert not set(compared.ranks) & set(apart.index)
    assert "tiny · roi" in compared.ranks
    between = compared.table[compared.table["by"] == "backbone"]
    assert len(between) == 1
    assert set(between["winner"]) == {""}
    assert "not on equal terms (outside weights, parameter budget), so neither" in compared.sentences["backbone"]
    assert "Nothing separates" not in compared.sentences["backbone"]
    # Elsewhere on the disk it is the same file.
    moved = tmp_path / "moved.safetensors"
    shutil.copy(vit, moved)
    assert execute(data, tmp_path / "out", backbone=f"tiny,timm[depth=1,weights={moved}]", task="age").n_computed == 0


def test_a_folder_of_transformers_is_finetuned(data: Path, bert: Path, tmp_path: Path) -> None:
    result = execute(
        data, tmp_path / "out", backbone=f"huggingface[model={bert}]", mask="none", task="age", adaptation="finetune"
    )
    assert result.failed == (), set(result.table["error"])
    own = result.table[result.table["backbone"] != ""]
    assert own["kind"].tolist() == ["given"]
    assert own["row"].iloc[0].endswith(" · as given")


def test_a_braindecode_model_with_random_weights_is_an_untrained_one(data: Path, tmp_path: Path) -> None:
    result = execute(data, tmp_path / "out", backbone="braindecode[depth=1]", task="reconstruction")
    assert result.failed == (), set(result.table["error"])
    own = result.table[result.table["backbone"] != ""].set_index("row")
    assert set(own["kind"]) == {"untrained", "pretrained"}
    assert set(own["apart"]) == {"parameter budget"}


# ---------------------------------------------------------------- packages that are missing


def test_a_missing_package_is_unavailable_with_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    gone = ("transformers", "braindecode")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in gone else real(name, *a))
    registry = load_registry()
    assert "timm" in registry.backbones
    for name in ("huggingface", "braindecode"):
        with pytest.raises(PluginError, match=r"pip install 'neurobench-fm\[pretrained\]'"):
            registry.get("backbone", name)
    shown = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["list", "backbones"])
    for name, package in (("huggingface", "transformers"), ("braindecode", "braindecode")):
        advice = f"{name}: needs the package {package!r}. Get it with: pip install 'neurobench-fm[pretrained]'"
        assert advice in shown.output


def test_plugins_import_nothing_heavy_before_it_is_used() -> None:
    heavy = {"timm", "transformers", "braindecode", "huggingface_hub", "safetensors"}
    for module in (_outside, _weights, timm_plugin, huggingface_plugin, braindecode_plugin):
        top = ast.parse(Path(module.__file__).read_text(encoding="utf-8")).body
        names = {a.name for node in top if isinstance(node, ast.Import) for a in node.names}
        names |= {str(node.module) for node in top if isinstance(node, ast.ImportFrom)}
        assert not {n.partition(".")[0] for n in names} & heavy


# ---------------------------------------------------------------- what leaves the machine


@pytest.mark.slow
def test_a_submission_has_to_say_what_it_owes_to_others(registry: Registry, vit: Path, tmp_path: Path) -> None:
    neurobench.run(
        backbone=f"timm[depth=1,weights={vit}]",
        mask="roi",
        dataset="adhd200",
        n_subjects=24,
        n_steps=2,
        task="age",
        out=tmp_path / "out",
    )
    files = dict(make_bundle(tmp_path / "out", registry).files)
    assert judged(files, tmp_path, registry).word != "refused"
    plain = [json.loads(c) for n, c in files.items() if n.startswith("records/")]
    one = next(p["id"] for p in plain if p["kind"] == "given")
    forged = with_record(files, one, lambda p: p.update(apart=["parameter budget"]))
    refused(judged(forged, tmp_path, registry), "apart", "outside weights")
    board = tmp_path / "board" / "results" / "suite"
    board.mkdir(parents=True)
    for p in plain:
        p["protocol"]["suite"] = "suite@0"
        p["content_hash"] = content_hash(p)
        (board / f"{p['id']}.json").write_text(json.dumps(p), encoding="utf-8")
    (table,) = read_board(board.parent).tables
    text = markdown(read_board(board.parent))
    assert all((line.rank is None) for line in table.lines if line.apart)
    assert "· as given ‡ | as given |" in text
    assert "‡: not ranked with the others" in text
    build_leaderboard(board.parent, tmp_path / "site")
    pages = [p.read_text(encoding="utf-8") for p in (tmp_path / "site").rglob("*.html")]
    assert any("‡: not ranked with the others: outside the common parameter budget; weights from" in p for p in pages)

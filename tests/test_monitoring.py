"""What is known of a pretraining while it runs, and of the machine it ran on."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from neurobench import assembly, hardware, logs, pretraining, results
from neurobench.config import RunConfig, expand
from neurobench.errors import ConfigErrors
from neurobench.hardware import Meter, metered
from neurobench.monitoring import Monitor, folder_of
from neurobench.plugins import load_registry
from neurobench.store import Store
from neurobench.upkeep import merge
from tests import tiny_run
from tests.fakes import write_folder

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a look every other step, watched in TensorBoard."""
    folder = tmp_path_factory.mktemp("run")
    write_folder(folder / "data", n_subjects=24)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining, "LOOK_EVERY", 2)
        tiny_run.execute(folder / "data", folder / "watched", task="age", folds=2, tensorboard=True)
        tiny_run.execute(folder / "data", folder / "unwatched", task="age", folds=2)
    return folder


def histories(out: Path) -> dict[str, dict[str, Any]]:
    entries = Store(out, read_only=True).entries("pretraining")
    return {e.manifest["label"]: e.json("pretraining.json") for e in entries}


def costs(out: Path) -> dict[str, results.CostRecord]:
    records = (results.read_record(p) for p in (out / "records").glob("*.json"))
    return {r.row: r.cost for r in records}


@pytest.mark.slow
def test_watching_changes_no_byte_and_no_identity(run: Path) -> None:
    found = []
    for out in (run / "watched", run / "unwatched"):
        entries = Store(out, read_only=True).entries("pretraining")
        found.append({(e.path.name, e.manifest["files"]["weights.safetensors"][0]) for e in entries})
    assert len(found[0]) >= 3
    assert found[0] == found[1]
    records = [{p.name for p in (out / "records").iterdir()} for out in (run / "watched", run / "unwatched")]
    assert records[0] == records[1]
    assert not (run / "unwatched" / "tensorboard").exists()


def test_two_runs_that_agree_but_for_what_was_measured_are_merged_without_a_conflict(run: Path, tmp_path: Path) -> None:
    found = merge(tmp_path / "both", [run / "watched", run / "unwatched"])
    assert [one.conflicts for one in found] == [(), ()]
    assert found[1].n_entries == 0


def test_losses_are_in_the_log_at_every_look(run: Path) -> None:
    lines = [line for line in logs.Reader(run / "watched").new() if line["what"] == "losses"]
    own = [line for line in lines if "fold 1/2" in line["label"]]
    assert [line["step"] for line in own] == [2, 3], "every other one of three, and the last"
    losses = histories(run / "watched")[own[0]["label"]]["losses"]
    assert own[0]["loss"] == pytest.approx(sum(losses[:2]) / 2, abs=1e-6)
    assert own[1]["loss"] == pytest.approx(losses[2], abs=1e-6)
    assert all(line["tokens_per_s"] > 0 and 0 <= line["waiting_share"] <= 1 for line in own)
    assert own[0]["row"] == "tiny · roi"


def test_tensorboard_has_one_run_a_pretraining_with_every_loss(run: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folders = sorted((run / "watched" / "tensorboard").iterdir())
    assert len(folders) == 2, "one a fold; weights that are not trained have no curve"
    for fold, folder in enumerate(folders, 1):
        assert re.fullmatch(rf"tiny · roi · fake · seed 0 · fold {fold}_2 · [0-9a-f]{{8}}", folder.name)
        events = reader.EventAccumulator(str(folder)).Reload()
        losses = histories(run / "watched")[f"pretrain tiny · roi · fake · seed 0 · fold {fold}/2"]["losses"]
        assert [e.step for e in events.Scalars("loss")] == [1, 2, 3]
        assert [e.value for e in events.Scalars("loss")] == pytest.approx(losses)
        assert [e.step for e in events.Scalars("learning rate")] == [2, 3]
        assert {"tokens a second", "share of the time waiting for data"} <= set(events.Tags()["scalars"])


def test_names_of_folders_hold_what_any_disk_takes() -> None:
    name = folder_of(Path("out"), "pretrain timm[name=a/b:c] · roi · fold 1/2", {"a": 1}).name
    assert name.startswith("timm[name=a_b_c] · roi · fold 1_2 · ")


def test_without_tensorboard_nothing_is_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None)
    asked = RunConfig(backbones=("mamba",), masks=("roi",), out=tmp_path / "out", tensorboard=True)
    with pytest.raises(ConfigErrors, match=re.escape('pip install "neurobench-fm[tensorboard]"')):
        expand(asked, load_registry())
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- the machine


def test_a_record_says_what_it_was_computed_on_and_how_fast(run: Path) -> None:
    cost = costs(run / "watched")["tiny · roi"]
    assert cost.n_threads == 1, "a small network runs on one thread"
    assert cost.host_peak_memory_mb is not None
    assert cost.host_peak_memory_mb > 50
    assert (cost.gpu_peak_memory_mb, cost.gpu_utilisation) == (None, None), "there is no GPU: nothing is guessed"
    own = [h for label, h in histories(run / "watched").items() if "roi" in label]
    n_tokens, seconds = sum(h["n_tokens"] for h in own), sum(h["seconds"] for h in own)
    assert cost.tokens_per_s == pytest.approx(n_tokens / seconds, rel=1e-3)
    assert cost.waiting_share == pytest.approx(sum(h["waiting_s"] for h in own) / seconds, abs=1e-3)
    assert costs(run / "watched")["tiny · untrained"].tokens_per_s is None
    assert costs(run / "watched")["connectome"].host_peak_memory_mb is None, "it was not pretrained"


def test_costs_of_folds_come_together() -> None:
    def history(seconds: float, waiting_s: float, n_tokens: int, **said: Any) -> dict[str, Any]:
        return {
            "seconds": seconds,
            "waiting_s": waiting_s,
            "n_tokens": n_tokens,
            "hardware": Meter(CPU).to_dict() | said,
        }

    one = history(1.0, 0.5, 100, device_name="A", gpu_utilisation=0.2, gpu_peak_memory_mb=5.0, n_threads=1)
    two = history(3.0, 0.5, 500, device_name="B", gpu_utilisation=1.0, gpu_peak_memory_mb=7.0, n_threads=1)
    both = assembly._machine([one, two])
    assert (both["device_name"], both["n_threads"], both["gpu_peak_memory_mb"]) == ("A, B", 1, 7.0)
    assert (both["tokens_per_s"], both["waiting_share"], both["gpu_utilisation"]) == (150.0, 0.25, 0.8)
    three = history(1.0, 0.0, 1, gpu_utilisation=None)
    assert assembly._machine([one, three])["gpu_utilisation"] is None, "what is not known of all is not known"
    assert assembly._machine([]) == assembly._machine([{"seconds": 1.0}]) == {}


def test_records_of_before_are_read(run: Path, tmp_path: Path) -> None:
    path = next((run / "watched" / "records").glob("*.json"))
    plain = json.loads(path.read_text(encoding="utf-8"))
    plain["cost"] = {k: plain["cost"][k] for k in ("n_parameters", "seconds", "peak_memory_mb", "device")}
    plain["content_hash"] = results.content_hash(plain)
    (tmp_path / path.name).write_text(json.dumps(plain), encoding="utf-8")
    assert results.read_record(tmp_path / path.name).cost.device_name == ""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts anew")
def test_the_peak_is_that_of_what_is_metered_and_not_of_what_came_before() -> None:
    before = bytearray(300 << 20)
    before[::4096] = b"x" * len(before[::4096])
    del before
    with metered(CPU) as small:
        pass
    with metered(CPU) as large:
        meanwhile = bytearray(300 << 20)
        meanwhile[::4096] = b"x" * len(meanwhile[::4096])
    assert large.host_peak_memory_mb - small.host_peak_memory_mb > 250


def test_a_processor_is_called_as_its_maker_does(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nprocessor\t: 1\nmodel name\t: Other\n")
    if sys.platform == "linux":
        assert hardware._cpu_name(cpuinfo) == "Some CPU @ 2 GHz"
        cpuinfo.write_text("processor\t: 0\n")
        hardware._cpu_name.cache_clear()
        assert hardware._cpu_name(cpuinfo) != "x86_64"


def test_a_gpu_that_does_not_say_how_busy_it_is_is_not_guessed_at(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = Meter(torch.device("cuda"))

    def silent(device: object) -> int:
        raise ModuleNotFoundError("pynvml")

    monkeypatch.setattr(torch.cuda, "utilization", silent)
    meter.look()
    assert meter._looks == []
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 40)
    meter.look()
    assert meter._looks == [0.4]


def test_a_pretraining_that_went_on_tells_all_of_its_losses_at_the_first_look() -> None:
    written: list[tuple[str, float, int]] = []
    writer = SimpleNamespace(add_scalar=lambda *a: written.append(a), flush=lambda: None)
    training = SimpleNamespace(
        losses=torch.tensor([4.0, 3.0, 2.0, 1.0]),
        n_done=3,
        n_steps=4,
        n_valid=300,
        seconds=2.0,
        waiting_s=1.0,
        recipe=pretraining.Recipe(),
    )
    monitor = Monitor(Meter(CPU), writer)
    monitor.look(training)
    training.n_done, training.n_valid, training.seconds = 4, 400, 3.0
    monitor.look(training)
    assert [(v, s) for name, v, s in written if name == "loss"] == [(4.0, 1), (3.0, 2), (2.0, 3), (1.0, 4)]
    assert [v for name, v, _ in written if name == "tokens a second"] == [150.0, 100.0]

"""Shifted windows: what reaches what, budgets, prompts, dropping, released weights. Contracts are in test_checks.py."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from neurobench.components import parse_component
from neurobench.config import RunConfig, expand
from neurobench.errors import ConfigError, ConfigErrors, DataError
from neurobench.plugins import load_registry
from neurobench.pretraining import Recipe, build, count_parameters, pretrain
from neurobench.records import BackboneSpec, Batch, TokenTable, UnitTable
from neurobench.specimens import simulated_cohort, simulated_spec
from neurobench.tokens import Scaler, Tokenizer, TrainingWindows
from neurobench_backbones._neurostorm import released_name
from neurobench_backbones._weights import read_weights
from neurobench_backbones._windows import Level, cells_of
from neurobench_backbones.shifted_window import FRAME, ShiftedWindow, stages_of
from neurobench_masks.random_tube import RandomTube


def box(*edges: int, step_mm: float = 12.0) -> UnitTable:
    """Patches of a box of so many cells along each axis, in C order."""
    cell = np.stack(np.meshgrid(*map(np.arange, edges), indexing="ij"), -1).reshape(-1, 3)
    names = tuple(f"{x}-{y}-{z}" for x, y, z in cell)
    return UnitTable.from_groups(names, ("g",) * len(cell), cell * step_mm, ("patch",) * len(cell))


def batch_of(units: UnitTable, n_patches: int = 4, *, n_batch: int = 1, n_features: int = 6) -> Batch:
    unit = torch.arange(len(units)).expand(n_batch, -1).contiguous()
    valid = torch.ones(n_batch, len(units), n_patches, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    signal = torch.randn(n_batch, len(units), n_patches, n_features, generator=generator)
    position = torch.from_numpy(units.position_mm / 100).float()[unit]
    names = tuple(map(str, range(n_batch)))
    table = TokenTable(unit, valid, position, unit * 0, torch.zeros_like(position), unit * 0, units)
    return Batch(signal, table, unit, units, names, names)


def net_for(batch: Batch, width: int = 32, n_layers: int = 1, **parameters: object) -> ShiftedWindow:
    spec = BackboneSpec(len(batch.units), 1, batch.signal.shape[2], batch.signal.shape[3], width, n_layers)
    return build(ShiftedWindow, spec, parameters, 0)[0].eval()  # type: ignore[return-value]


def reached(level: Level, edge: int, shifted: bool) -> torch.Tensor:
    """Return (tokens, tokens) bool: who shares a window with whom."""
    window = torch.full((len(level.at),), -1)
    for i, some in enumerate(level.windows(edge, shifted)):
        window[some.tokens] = i * 1000 + some.place // some.length
    assert (window >= 0).all()
    return window[:, None] == window


def level_of(batch: Batch) -> Level:
    return Level.of(batch.table, batch.table.valid, batch.signal.shape[2])


def influence(net: ShiftedWindow, batch: Batch, place: tuple[int, int]) -> torch.Tensor:
    """Return (units, patches): size of the gradient of one token with respect to every token's signal."""
    signal = batch.signal.clone().requires_grad_()
    token = net(signal, torch.zeros_like(batch.table.valid), batch.table)[0, place[0], place[1]]
    (token @ torch.randn(len(token), generator=torch.Generator().manual_seed(0))).backward()
    assert signal.grad is not None
    return signal.grad[0].abs().amax(-1)


# ---------------------------------------------------------------- windows


@pytest.mark.parametrize("axis", range(4))
def test_a_shifted_window_crosses_the_border_of_an_unshifted_one(axis: int) -> None:
    edges = [1, 1, 1, 1]
    edges[axis] = 8
    batch = batch_of(box(*edges[:3]), edges[3])
    level = level_of(batch)
    straight, shifted = reached(level, 4, False), reached(level, 4, True)
    assert straight[0, 3]
    assert not straight[3, 4]
    assert shifted[3, 4]
    assert not shifted[1, 2]


@pytest.mark.parametrize("axis", range(4))
def test_nothing_wraps_around_to_the_opposite_side(axis: int) -> None:
    edges = [1, 1, 1, 1]
    edges[axis] = 8
    batch = batch_of(box(*edges[:3]), edges[3])
    for shifted in (False, True):
        assert not reached(level_of(batch), 4, shifted)[0, 7]


def test_one_pass_stays_in_its_window_and_the_shifted_one_leaves_it() -> None:
    batch = batch_of(box(8, 1, 1))
    # Merging joins two cells at once: without it the passes alone say what is seen.
    net = net_for(batch)
    torch.nn.init.zeros_(net.merges[0].reduction.weight)
    alone = influence(net, batch, (3, 0)) > 0
    assert alone[:4].any(1).all()
    assert not alone[4:].any()
    net = net_for(batch)
    assert (influence(net, batch, (3, 0))[4:6] > 0).any()


def test_opposite_sides_of_a_wide_volume_do_not_meet() -> None:
    batch = batch_of(box(40, 1, 1), 1)
    seen = influence(net_for(batch), batch, (0, 0)) > 0
    assert seen[:4].all()
    assert not seen[16:].any()


def test_merging_reaches_further_than_windows() -> None:
    batch = batch_of(box(24, 1, 1), 1)
    reach = [int((influence(net_for(batch, 128, n), batch, (0, 0)) > 0).nonzero()[:, 0].max()) for n in (1, 2, 3)]
    assert reach[0] < reach[1] < reach[2]
    net = net_for(batch, 128, 3)
    for merge in net.merges:
        torch.nn.init.zeros_(merge.reduction.weight)
    assert int((influence(net, batch, (0, 0)) > 0).nonzero()[:, 0].max()) < reach[2]


def test_time_runs_fastest_in_a_window_and_holes_are_closed() -> None:
    batch = batch_of(box(2, 1, 1), 3)
    batch.table.valid[0, 0, 1] = False
    (windows,) = level_of(batch).windows(4, False)
    assert windows.tokens.tolist() == [0, 1, 2, 3, 4]
    assert (windows.n, windows.length, windows.place.tolist()) == (1, 5, [0, 1, 2, 3, 4])


def test_emptier_windows_are_not_padded_to_the_fullest() -> None:
    units = box(8, 8, 8)
    few = units.take(np.flatnonzero((units.position_mm <= 36).all(1) | (units.position_mm % 48 == 0).all(1)))
    found = level_of(batch_of(few)).windows(4, False)
    assert [(w.n, w.length) for w in found] == [(7, 64), (1, 256)]
    assert sorted(torch.cat([w.tokens for w in found]).tolist()) == list(range(4 * 71))


@pytest.mark.parametrize("parameters", [{}, {"mixer": "attention"}, {"size": "published"}])
def test_the_order_in_which_units_are_given_changes_nothing(parameters: dict[str, object]) -> None:
    batch = batch_of(box(5, 3, 2), 6, n_batch=2)
    net = net_for(batch, 64, 2, **parameters)
    turn = torch.randperm(30, generator=torch.Generator().manual_seed(0))[:23]
    order, t = turn.sort()[0], batch.table
    some, turned = (t.map(lambda x, i=i: x[:, i]) for i in (order, turn))
    hidden = torch.rand(2, 30, 6, generator=torch.Generator().manual_seed(1)) < 0.3
    straight = net(batch.signal[:, order], hidden[:, order], some)
    other = net(batch.signal[:, turn], hidden[:, turn], turned)
    torch.testing.assert_close(straight[:, turn.argsort().argsort()], other, atol=1e-5, rtol=1e-4)


def test_units_that_are_no_patches_of_a_grid_are_refused() -> None:
    rng = np.random.default_rng(0)
    names = tuple(map(str, range(9)))
    with pytest.raises(DataError, match="no common grid"):
        cells_of(UnitTable.from_groups(names, ("",) * 9, rng.normal(0, 30, (9, 3))))
    with pytest.raises(DataError, match="without a position"):
        cells_of(UnitTable.from_groups(names, ("",) * 9))


def test_other_kinds_of_signal_are_refused_before_anything_starts() -> None:
    config = RunConfig.from_options(backbone="shifted_window", mask="random", dataset="adhd200,meg_headache")
    with pytest.raises(ConfigErrors, match=r"adhd200 \(parcels\), meg_headache \(sensors\)") as caught:
        expand(config, load_registry())
    assert len(caught.value.problems) == 1
    config = replace(config, datasets=("adhd200[signal=volume]",))
    assert expand(config, load_registry()).backbones[0].label == "shifted_window"


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize("mixer", ["mamba", "attention"])
@pytest.mark.parametrize(("width", "n_layers"), [(32, 1), (64, 2), (128, 3), (256, 4), (256, 6)])
def test_every_profile_keeps_the_budget_whatever_the_mixer(width: int, n_layers: int, mixer: str) -> None:
    spec = BackboneSpec(100, 4, 10, 12, width, n_layers)
    with torch.device("meta"):
        net = ShiftedWindow(spec, mixer=mixer)
        other = net.value, net.unit_embedding, net.group_embedding, net.position, net.norm
        embedding = sum(map(count_parameters, other)) + width * (1 + spec.n_patches)
    assert count_parameters(net) == pytest.approx(embedding + 24 * n_layers * width**2, rel=0.02)
    assert sum(stages_of(spec)[0]) == 2 * n_layers == len(net.layers)


def test_the_published_size_has_seven_point_seven_million_parameters() -> None:
    spec = BackboneSpec(1470, 8, 20, FRAME, 256, 4)
    with torch.device("meta"):
        net = ShiftedWindow(spec, size="published")
    assert count_parameters(net) == pytest.approx(7.7e6, rel=0.1)
    assert sum(map(count_parameters, (net.layers, net.merges, net.expands))) == pytest.approx(7.7e6, rel=0.1)
    assert not ShiftedWindow.keeps_budget({"size": "published"})
    assert ShiftedWindow.keeps_budget({"size": "profile"})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("size=huge", "profile or published"),
        ("mixer=rnn", "mamba or attention"),
        ("window=1", "2 patches at least"),
        ("drop=1", "a probability"),
        ("size=published", "needs a width of 36"),
    ],
)
def test_parameters_that_cannot_be_are_refused(text: str, why: str) -> None:
    config = RunConfig.from_options(
        backbone=f"shifted_window[{text}]", mask="random", dataset="adhd200[signal=volume]", profile="smoke"
    )
    with pytest.raises(ConfigErrors, match=why):
        expand(config, load_registry())


# ---------------------------------------------------------------- prompts


def with_prompts(table: TokenTable, k: int) -> TokenTable:
    n, _, p = table.valid.shape
    return TokenTable(
        torch.cat([table.unit, torch.full((n, k), -1)], 1),
        torch.cat([table.valid, torch.ones(n, k, p, dtype=torch.bool)], 1),
        torch.cat([table.position, table.position.mean(1, keepdim=True).expand(n, k, 3)], 1),
        torch.cat([table.group, torch.zeros(n, k, dtype=torch.int64)], 1),
        torch.cat([table.orientation, torch.zeros(n, k, 3)], 1),
        torch.cat([table.type, torch.full((n, k), -1)], 1),
        table.units,
    )


@pytest.mark.parametrize("parameters", [{}, {"mixer": "attention"}, {"size": "published"}])
def test_a_prompt_is_seen_in_every_window_and_gets_the_mean_of_its_changes(parameters: dict[str, object]) -> None:
    batch = batch_of(box(9, 1, 1), 6, n_batch=2)
    net = net_for(batch, 64, 2, **parameters)
    tokens = net.embed(batch.signal, torch.zeros_like(batch.table.valid), batch.table).detach()
    prompts = torch.randn(2, 2, 6, 64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    mixed = net.mix(torch.cat([tokens, prompts], 1), with_prompts(batch.table, 2))
    assert mixed.shape == (2, 11, 6, 64)
    assert mixed.isfinite().all()
    for unit in (0, 4, 8):
        for patch in (0, 5):
            (found,) = torch.autograd.grad(mixed[1, unit, patch].square().sum(), prompts, retain_graph=True)
            assert found[1, :, patch].abs().amax(-1).gt(0).all(), (unit, patch)
            assert not found[0].any()
    turned = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    t = batch.table
    other = replace(t, unit=t.unit[:, turned], position=t.position[:, turned])
    again = net.mix(torch.cat([tokens[:, turned], prompts], 1), with_prompts(other, 2))
    torch.testing.assert_close(again[:, 9:], mixed[:, 9:], atol=1e-5, rtol=1e-4)


# ---------------------------------------------------------------- dropping


def test_redundancy_is_likeness_to_a_neighbour_in_space_or_time() -> None:
    batch = batch_of(box(4, 1, 1), 2)
    tokens = torch.randn(8, 16, generator=torch.Generator().manual_seed(3))
    tokens[1] = tokens[0]  # cell 0, next patch
    tokens[6] = tokens[2]  # cells 1 and 3: no neighbours
    tokens[7] = tokens[5] * 2  # cells 3 and 2 of one patch, another size
    found = level_of(batch).redundancy(tokens)
    assert found[[0, 1, 5, 7]].tolist() == pytest.approx([1] * 4, abs=1e-4)
    assert float(found[[2, 6]].max()) < 0.9
    assert float(level_of(batch_of(box(1, 1, 1), 1)).redundancy(tokens[:1])) == 0


def test_tokens_are_dropped_in_training_only_with_a_seed_and_keep_an_output() -> None:
    batch = batch_of(box(4, 4, 2), 6)
    batch.signal[:] = batch.signal[:, :1, :1]  # all alike: as redundant as can be
    hidden = torch.zeros_like(batch.table.valid)
    hidden[0, ::3] = True
    net, without = net_for(batch, drop=0.9), net_for(batch)
    assert torch.equal(net(batch.signal, hidden, batch.table), without(batch.signal, hidden, batch.table))
    drawn = []
    for seed in (0, 0, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            drawn.append(net.train()(batch.signal, hidden, batch.table))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], without.train()(batch.signal, hidden, batch.table))
    assert drawn[0].isfinite().all()
    assert drawn[0][0].std(-1).gt(0.1).all()


def test_what_is_dropped_in_pretraining_follows_from_its_seed(tmp_path: Path) -> None:
    cohort = simulated_cohort(tmp_path, n_subjects=4, signal="volume", n_voxels=2)
    tokenizer = Tokenizer(cohort, Scaler.fit(cohort, cohort.subjects))
    spec = simulated_spec(cohort.units, cohort.patches_per_window, cohort.n_features, 32, 1)

    def trained(seed: int, global_seed: int) -> torch.Tensor:
        net, decoder = build(ShiftedWindow, spec, {"drop": 0.9}, 0)
        windows = TrainingWindows(tokenizer, cohort.subjects, 100, 0)
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        pretrain(net, decoder, RandomTube(), windows, recipe=Recipe(batch_size=2), n_steps=2, ratio=0.5, seed=seed)
        assert torch.equal(before, torch.get_rng_state())
        return torch.cat([p.detach().flatten() for p in net.parameters()])

    with torch.random.fork_rng(devices=[]):
        assert torch.equal(trained(0, 1), trained(0, 2))


# ---------------------------------------------------------------- released weights


def released() -> dict[str, torch.Tensor]:
    """Weights as the released code names them: drawn at random here, the real file is not ours."""
    spec = BackboneSpec(4, 1, 3, FRAME, 36, 1)
    net = build(ShiftedWindow, spec, {"size": "published"}, 7)[0]
    own = ("layers.", "merges.", "expands.", "norm_up.", "value.", "hidden_token")
    weights = {released_name(k): v.clone() for k, v in net.state_dict().items() if k.startswith(own)}
    more = {"pos_embeds.0.pos_embed": (1, 36, 16, 16, 16, 1), "decoder_pred.weight": (216, 36)}
    return weights | {k: torch.zeros(shape) for k, shape in more.items()}


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return released()


def test_names_are_those_of_the_released_code(weights: dict[str, torch.Tensor]) -> None:
    shapes = {k: tuple(v.shape) for k, v in weights.items()}
    # As in its source: 36 wide, doubled three times; state 16, expanded twice; blocks 2-2-6-2 and back 6-2-2.
    assert shapes["patch_embed.fc.weight"] == (36, 216)
    assert shapes["layers.0.blocks.1.mamba.in_proj.weight"] == (144, 36)
    assert shapes["layers.2.blocks.5.mamba.A_log"] == (288, 16)
    assert shapes["layers.3.blocks.1.mlp.linear1.weight"] == (1152, 288)
    assert shapes["layers.2.downsample.reduction.weight"] == (288, 1152)
    assert shapes["first_patch_expanding.expand.weight"] == (1152, 288)
    assert shapes["layers_up.0.blocks.5.norm2.bias"] == (144,)
    assert shapes["layers_up.0.upsample.norm.weight"] == (72,)
    assert shapes["layers_up.2.blocks.1.mamba.x_proj.weight"] == (3 + 32, 72)
    assert shapes["norm_up.weight"] == (36,)
    assert not {"layers.3.downsample.norm.weight", "layers_up.2.upsample.norm.weight"} & set(shapes)


@pytest.mark.parametrize("form", ["safetensors", "lightning"])
def test_a_checkpoint_is_loaded_and_its_embedding_is_exact(
    weights: dict[str, torch.Tensor], form: str, tmp_path: Path
) -> None:
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "last.ckpt")
    if form == "safetensors":
        save_file(weights, path)
    else:
        inside = {f"model.{k}": v for k, v in weights.items()}
        torch.save({"epoch": 3, "state_dict": inside, "hyper_parameters": {"seed": 1}}, path)
    batch = batch_of(box(3, 2, 1), 3, n_features=FRAME)
    net = net_for(batch, 64, 2, size="published", checkpoint=str(path))
    names = {"layers.9.mamba.D": "layers.2.blocks.5.mamba.D", "layers.12.norm1.bias": "layers_up.0.blocks.0.norm1.bias"}
    for here, there in names.items():
        torch.testing.assert_close(net.state_dict()[here], weights[there])
    embedded = net.reduce(net.embed(batch.signal, torch.zeros_like(batch.table.valid), batch.table))
    fc = torch.nn.functional.linear(batch.signal, weights["patch_embed.fc.weight"], weights["patch_embed.fc.bias"])
    torch.testing.assert_close(embedded, fc, atol=1e-5, rtol=1e-4)
    assert net(batch.signal, torch.zeros_like(batch.table.valid), batch.table).isfinite().all()


def test_what_is_missing_misshapen_or_left_over_is_listed(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    changed = {k: v for k, v in weights.items() if k not in ("norm_up.bias", "layers.0.blocks.0.mamba.D")}
    changed["layers.1.downsample.norm.bias"] = torch.zeros(7)
    changed["teacher.weight"] = torch.zeros(2)
    save_file(changed, path)
    batch = batch_of(box(2, 1, 1), 3, n_features=FRAME)
    with pytest.raises(ConfigError) as caught:
        net_for(batch, 64, 2, size="published", checkpoint=str(path))
    text = str(caught.value)
    assert "2 missing: layers.0.blocks.0.mamba.D, norm_up.bias" in text
    assert "1 of another shape: layers.1.downsample.norm.bias is (7,) and should be (576,)" in text
    assert "1 not used: teacher.weight" in text
    save_file(weights, path)
    with pytest.raises(ConfigError, match=r"patch_embed.fc.weight is \(36, 216\) and should be \(36, 12\).*--patch-s"):
        net_for(batch_of(box(2, 1, 1), 3, n_features=12), 64, 2, size="published", checkpoint=str(path))


def test_a_checkpoint_is_known_by_its_content_and_judged_before_anything_starts(
    weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    registry = load_registry()
    one, two, other = (tmp_path / f"{n}.safetensors" for n in ("one", "two", "other"))
    save_file(weights, one)
    two.write_bytes(one.read_bytes())
    save_file(weights | {"norm_up.bias": torch.ones(36)}, other)
    texts = [f"shifted_window[size=published,checkpoint={path}]" for path in (one, two, other)]
    specs = [parse_component("backbone", text, registry) for text in texts]
    assert specs[0] == specs[1] != specs[2]
    assert specs[0].identity() == specs[1].identity()
    assert str(tmp_path) not in specs[0].label + str(specs[0].identity())
    assert specs[1].arguments["checkpoint"] == str(two)
    # A label read again, without the file, is the same component: so records are verified.
    assert parse_component("backbone", specs[0].label, registry) == specs[0]
    config = RunConfig.from_options(
        backbone=f"shifted_window[size=published,checkpoint={one}]",
        mask="random",
        dataset="adhd200[signal=volume]",
        profile="cpu",
    )
    assert expand(config, registry).backbones == (specs[0],)
    save_file({k: v for k, v in weights.items() if k != "norm_up.bias"}, one)
    with pytest.raises(ConfigErrors, match=r"1 missing: norm_up\.bias"):
        expand(config, registry)
    one.unlink()
    with pytest.raises(ConfigErrors, match=r"one\.safetensors does not exist"):
        expand(config, registry)


class Code:
    """Runs when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("ran"),))


def test_weight_files_that_are_missing_damaged_or_hold_code_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        read_weights("nothing.ckpt")
    torch.save({"state_dict": {"a": torch.ones(2)}, "callbacks": Code()}, "code.ckpt")
    with pytest.raises(DataError, match="run code"):
        read_weights("code.ckpt")
    Path("old.pth").write_bytes(pickle.dumps({"a": Code()}))
    with pytest.raises(DataError, match=r"old.pth"):
        read_weights("old.pth")
    assert not Path("ran").exists()
    save_file({"a": torch.ones(9)}, "cut.safetensors")
    for name in ("cut.safetensors", "code.ckpt"):
        Path(name).write_bytes(Path(name).read_bytes()[:60])
        with pytest.raises(DataError, match="cannot be read as weights"):
            read_weights(name)
    torch.save({"epoch": 3}, "empty.pt")
    with pytest.raises(DataError, match="holds no tensors by name"):
        read_weights("empty.pt")
    torch.save({"a": torch.ones(2), "step": 4}, "plain.pt")
    assert list(read_weights("plain.pt")) == ["a"]

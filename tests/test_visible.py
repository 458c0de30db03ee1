"""Visible-only encoding: hidden tokens take no part, padding neither, and everything that follows works with it."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from neurobench import reconstruction
from neurobench.checks import check_component, checks_of
from neurobench.components import parse_component
from neurobench.config import RunConfig, expand
from neurobench.contracts import TokenBackbone
from neurobench.errors import ConfigErrors
from neurobench.plugins import load_registry
from neurobench.pretraining import Recipe, build, count_parameters, hide, masks_of, pretrain
from neurobench.records import BackboneSpec, Batch, TokenTable
from neurobench.results import load_results
from neurobench.runner import execute
from neurobench.specimens import simulated_batch, simulated_cohort, simulated_spec, simulated_units
from neurobench.tokens import Scaler, Tokenizer, TrainingWindows, evaluation_windows, unit_chunks
from neurobench.visible import VisibleGrid
from neurobench_backbones.brainmae import BrainMAE
from neurobench_backbones.hybrid import Hybrid
from neurobench_backbones.mamba import Mamba
from neurobench_backbones.transformer import Transformer
from neurobench_masks.block import Block
from neurobench_masks.future import Future
from neurobench_masks.none import NoMask
from neurobench_masks.random import Random
from neurobench_masks.random_tube import RandomTube
from neurobench_masks.roi import Roi
from neurobench_masks.time_block import TimeBlock

ALL = (Transformer, Mamba, Hybrid)
VISIBLE = {"visible_only": True}
MASKS = (RandomTube, Roi, Block, TimeBlock, Future, Random)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


class VisibleTransformer(Transformer):
    """The transformer, leaving hidden tokens out."""

    check_with = VISIBLE


class VisibleMamba(Mamba):
    """Mamba, leaving hidden tokens out."""

    check_with = VISIBLE


class VisibleHybrid(Hybrid):
    """The hybrid, leaving hidden tokens out."""

    check_with = VISIBLE


class VisibleBrainMAE(BrainMAE):
    """BrainMAE's backbone, leaving hidden tokens out."""

    check_with = VISIBLE


@pytest.mark.parametrize("check", checks_of(Transformer))
@pytest.mark.parametrize("cls", [VisibleTransformer, VisibleMamba, VisibleHybrid, VisibleBrainMAE])
def test_every_contract_holds(cls: type, check: str) -> None:
    (result,) = check_component(cls, only=check)
    assert result.outcome == "passed", result.message


@pytest.mark.parametrize(("width", "n_layers"), [(32, 1), (64, 2), (256, 4)])
def test_parameters_are_counted_and_within_ten_percent_of_every_other_form(width: int, n_layers: int) -> None:
    spec = BackboneSpec(116, 8, 10, 10, width, n_layers)
    counts = {(cls.name, v): count_parameters(cls(spec, visible_only=v)) for cls in ALL for v in (False, True)}
    assert all(counts[c.name, False] < counts[c.name, True] for c in ALL)
    assert max(counts.values()) / min(counts.values()) < 1.1


# ---------------------------------------------------------------- the grid


def batch_of(n_batch: int = 3, *, gaps: bool = False, n_units: int = 12, n_patches: int = 8) -> Batch:
    return simulated_batch(simulated_units(n_units, 3), n_batch, n_patches, 6, gaps=gaps)


def hidden_by(mask: type, batch: Batch, ratio: float = 0.75) -> torch.Tensor:
    return masks_of(batch, mask(), ratio, 0, 0)[0]


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("mask", MASKS)
def test_what_is_gathered_is_what_is_visible_and_goes_back_to_its_place(mask: type, gaps: bool) -> None:
    batch = batch_of(gaps=gaps)
    hidden = hidden_by(mask, batch)
    grid = VisibleGrid.of(hidden, batch.table)
    visible = batch.table.valid & ~hidden
    tokens = torch.randn(*hidden.shape, 4)
    small = grid.gather(tokens)
    assert int(grid.table.valid.sum()) == int(visible.sum())
    assert grid.n_hidden == int(hidden.sum())
    torch.testing.assert_close(grid.spread(small, *hidden.shape[1:]), tokens * visible[..., None])
    # The table of the small grid names the units that the tokens are of.
    names = batch.table.unit[:, :, None, None].expand(*hidden.shape, 1).float() + 1
    found = grid.gather(names)[..., 0] - 1
    assert torch.equal(found[grid.table.valid], grid.table.unit[:, :, None].expand_as(found)[grid.table.valid].float())


@pytest.mark.parametrize("mask", [RandomTube, TimeBlock, Future, Block])
def test_hiding_whole_units_or_times_leaves_a_smaller_grid(mask: type) -> None:
    batch = batch_of(n_units=40)
    hidden = hidden_by(mask, batch)
    grid = VisibleGrid.of(hidden, batch.table)
    most = int((~hidden).sum((1, 2)).max())
    assert grid.table.valid[0].numel() == most < 0.3 * hidden[0].numel()
    # On a GPU passes get no mask then: it is known that none is needed.
    assert (grid.table.whole is grid.table.valid) == bool(grid.table.valid.all())


def test_a_grid_is_known_to_be_whole_where_every_window_keeps_as_many_places() -> None:
    table, hidden = batch_of().table, torch.zeros(3, 12, 8, dtype=torch.bool)
    assert VisibleGrid.of(hidden, table).table.whole is not None
    hidden[:, 4:] = True
    assert VisibleGrid.of(hidden, table).table.whole is not None
    hidden[1, 3] = True
    assert VisibleGrid.of(hidden, table).table.whole is None


# ---------------------------------------------------------------- what visible tokens depend on


def cut(batch: Batch, keep: torch.Tensor) -> Batch:
    """Return a batch without the units that are not kept."""
    t = batch.table
    table = t.map(lambda x: x[:, keep])
    return replace(batch, signal=batch.signal[:, keep], table=table)


def call(net: TokenBackbone, batch: Batch, hidden: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        tokens: torch.Tensor = net(hide(batch.signal, hidden), hidden, batch.table)
    return tokens


def network(cls: type, batch: Batch, **parameters: object) -> TokenBackbone:
    n_patches, n_features = batch.signal.shape[2:]
    net, _ = build(cls, simulated_spec(batch.units, n_patches, n_features, 32, 2), VISIBLE | parameters, seed=0)
    assert isinstance(net, TokenBackbone)
    return net.eval()


@pytest.mark.parametrize("cls", ALL)
def test_visible_tokens_are_those_of_a_table_without_the_hidden_units(cls: type) -> None:
    batch = batch_of()
    net = network(cls, batch)
    keep = torch.tensor([1, 4, 5, 10])
    hidden = torch.ones_like(batch.table.valid)
    hidden[:, keep] = False
    alone = cut(batch, keep)
    nothing = torch.zeros_like(alone.table.valid)
    torch.testing.assert_close(call(net, batch, hidden)[:, keep], call(net, alone, nothing), **CLOSE)


@pytest.mark.parametrize("cls", ALL)
def test_values_at_hidden_places_change_nothing_even_if_they_were_not_zeroed(cls: type) -> None:
    batch = batch_of()
    net, hidden = network(cls, batch), hidden_by(RandomTube, batch)
    with torch.no_grad():
        tokens = [net(batch.signal + hidden[..., None] * x, hidden, batch.table) for x in (0.0, 9.0)]
    assert torch.equal(*tokens)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("cls", ALL)
def test_a_window_gets_the_same_tokens_beside_windows_with_more_to_see(cls: type, mask: type) -> None:
    batch = batch_of(gaps=True)
    hidden = hidden_by(mask, batch)
    # The second window hides nothing, so the grid has its size and the others are filled up; the third hides all.
    hidden[1] = False
    hidden[2] = batch.table.valid[2]
    net = network(cls, batch)
    together = call(net, batch, hidden)
    assert torch.isfinite(together).all()
    for i in range(3):
        t = batch.table
        table = t.map(lambda x, i=i: x[i : i + 1])
        alone = Batch(batch.signal[i : i + 1], table, batch.rows[i : i + 1], batch.units, ("s",), ("w",))
        torch.testing.assert_close(together[i : i + 1], call(net, alone, hidden[i : i + 1]), **CLOSE)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("cls", ALL)
def test_hidden_places_are_filled_from_visible_ones_of_their_own_window(cls: type, mask: type) -> None:
    batch = batch_of()
    hidden = hidden_by(mask, batch)
    net = network(cls, batch)
    signal = hide(batch.signal, hidden).requires_grad_()
    tokens = net(signal, hidden, batch.table)[0][hidden[0]]
    direction = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad((tokens * direction).sum(), signal)
    assert (gradient[0][~hidden[0]].abs().sum(-1) > 0).all()
    assert gradient[0][hidden[0]].abs().max() == 0
    assert gradient[1:].abs().max() == 0


@pytest.mark.parametrize("cls", ALL)
def test_with_nothing_hidden_it_is_the_backbone_itself(cls: type) -> None:
    batch = batch_of()
    nothing = torch.zeros_like(batch.table.valid)
    visible = network(cls, batch)
    plain = network(cls, batch, visible_only=False)
    plain.load_state_dict({k: v for k, v in visible.state_dict().items() if not k.startswith("from_visible")})
    torch.testing.assert_close(call(visible, batch, nothing), call(plain, batch, nothing))
    assert not any(k.startswith("from_visible") for k in plain.state_dict())


class OneAttribute(Transformer):
    """What a third party writes: a `mix`, and one attribute."""

    name = "one_attribute"
    drops_hidden = True

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__(spec)


def test_one_attribute_is_enough() -> None:
    batch = batch_of()
    hidden = hidden_by(RandomTube, batch)
    seen: list[torch.Size] = []
    net, _ = build(OneAttribute, simulated_spec(batch.units, 8, 6, 32, 1), {}, seed=0)
    inner = net.mix

    def watched(tokens: torch.Tensor, table: TokenTable) -> torch.Tensor:
        seen.append(tokens.shape)
        return inner(tokens, table)

    net.mix = watched
    assert call(net, batch, hidden).shape == (*hidden.shape, 32)
    assert seen == [(3, 3, 8, 32)]
    for check in ("drops-hidden", "hidden-values-stay-hidden", "parameter-budget"):
        (result,) = check_component(OneAttribute, only=check)
        assert result.outcome == "passed", result.message


def test_what_a_unit_draws_on_is_told_for_visible_units_only() -> None:
    batch = batch_of()
    hidden = hidden_by(RandomTube, batch)
    drawn = network(Transformer, batch).importance(batch.signal, hidden, batch.table)
    shown = ~hidden.all(2)
    torch.testing.assert_close(drawn.sum(2), shown.float())
    assert drawn[:, :, ~shown[0]][0].abs().max() == 0


# ---------------------------------------------------------------- training and scores


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    cohort = simulated_cohort(tmp_path_factory.mktemp("visible"), n_subjects=12, n_units=12)
    return Tokenizer(cohort, Scaler.fit(cohort, cohort.subjects[:8]))


def trained(tokenizer: Tokenizer, cls: type, mask: type, n_steps: int, seed: int = 0) -> tuple:
    cohort = tokenizer.cohort
    spec = simulated_spec(cohort.units, cohort.patches_per_window, cohort.n_features, 32, 1)
    net, decoder = build(cls, spec, VISIBLE, seed=1)
    windows = TrainingWindows(tokenizer, cohort.subjects[:8], 200, seed)
    recipe = Recipe(batch_size=8)
    history = pretrain(net, decoder, mask(), windows, recipe=recipe, n_steps=n_steps, ratio=0.5, seed=seed)
    return net, decoder, history


@pytest.mark.parametrize("mask", [RandomTube, TimeBlock])
@pytest.mark.parametrize("cls", [Transformer, Mamba])
def test_the_loss_falls(tokenizer: Tokenizer, cls: type, mask: type) -> None:
    told = trained(tokenizer, cls, mask, 60)[2].to_dict()
    # Time blocks can be filled in from other times only as far as the simulated signal is autocorrelated.
    assert told["loss_last"] < (0.75 if mask is RandomTube else 0.97) * told["loss_first"]


def test_one_seed_gives_the_same_bytes(tokenizer: Tokenizer) -> None:
    first, second = (trained(tokenizer, Mamba, RandomTube, 4)[0].state_dict() for _ in range(2))
    assert all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize("cls", [Transformer, Mamba])
def test_every_mask_can_be_scored_and_a_trained_network_beats_the_mean(tokenizer: Tokenizer, cls: type) -> None:
    cohort = tokenizer.cohort
    net, decoder, _ = trained(tokenizer, cls, RandomTube, 150)
    strategies = {m.name: m() for m in MASKS}
    predictor = reconstruction.BackbonePredictor(net, decoder)
    windows = evaluation_windows(cohort, cohort.subjects[8:])
    chunks = unit_chunks(cohort.units, 12)
    scores = reconstruction.evaluate({"net": predictor}, tokenizer, windows, chunks, strategies, ratio=0.5, seed=0)
    r2 = dict(zip(strategies, scores.r2("net"), strict=True))
    assert all(np.isfinite(x) for x in r2.values())
    assert r2["random_tube"] > 0.1
    assert scores.scored_fraction == pytest.approx(np.full(len(MASKS), 0.5), abs=0.03)


def test_hidden_values_do_not_reach_a_score(tokenizer: Tokenizer) -> None:
    cohort = tokenizer.cohort
    net, decoder, _ = trained(tokenizer, Transformer, RandomTube, 2)
    predictor = reconstruction.BackbonePredictor(net, decoder)
    batch = tokenizer.batch(evaluation_windows(cohort, cohort.subjects[8:])[:4], np.arange(12))
    for mask in MASKS:
        hidden = hidden_by(mask, batch, 0.5)
        other = replace(batch, signal=batch.signal + 7.0 * hidden[..., None])
        assert torch.equal(predictor(batch, hidden), predictor(other, hidden)), mask.name


# ---------------------------------------------------------------- the grid of a run


def config(**options: object) -> RunConfig:
    return RunConfig.from_options(**{"dataset": "parcels", "profile": "smoke", **options})


def test_a_mask_of_single_tokens_is_refused_before_anything_runs() -> None:
    with pytest.raises(ConfigErrors) as caught:
        expand(config(backbone="mamba[visible_only=true],transformer", mask="random,roi,local"), load_registry())
    first, second = caught.value.problems
    assert first.what.startswith("backbone 'mamba[visible_only=true]' computes visible tokens only, and mask 'random'")
    assert (
        first.allowed
        == "masks that hide whole units or times: block, future, random_tube, roi, sensor_group, time_block"
    )
    assert first.likely == "random_tube"
    assert "--backbone mamba without visible_only" in first.next_step
    assert "mask 'local'" in second.what


@pytest.mark.parametrize("mask", ["random_tube", "roi", "block", "time_block", "future", "none"])
def test_masks_that_leave_a_grid_are_possible(mask: str) -> None:
    grid = expand(config(backbone="transformer[visible_only=true]", mask=mask), load_registry())
    assert grid.backbones[0].label == "transformer[visible_only=true]"


def test_only_what_hides_single_tokens_says_so() -> None:
    registry = load_registry()
    loose = {name for name, cls in registry.masks.items() if cls.hides == "tokens"}
    assert loose == {"random", "local", "random_grid", "grid_window", NoMask.name}


def test_the_parameter_is_part_of_the_identity() -> None:
    registry = load_registry()
    forms = [parse_component("backbone", t, registry) for t in ("transformer", "transformer[visible_only=true]")]
    assert [f.identity()["parameters"]["visible_only"] for f in forms] == [False, True]
    assert "visible_only" in inspect.signature(Transformer.__init__).parameters


def test_a_run_scores_it_under_every_evaluation_mask_and_its_records_carry_it(tmp_path: Path) -> None:
    options = {"task": "reconstruction,age", "out": tmp_path, "n_subjects": 24, "n_steps": 4}
    registry = load_registry()
    backbones = "transformer,transformer[visible_only=true]"
    result = execute(expand(config(backbone=backbones, mask="random_tube", **options), registry), registry)
    assert not result.failed
    assert any(
        "transformer[visible_only=true] never saw a token hidden here and there" in n and "random such" in n
        for n in result.notes
    )
    table = load_results(tmp_path)
    rows = table[table["backbone"] == "transformer[visible_only=true]"]
    assert set(rows["task"]) == {"reconstruction", "age"}
    records = [json.loads(p.read_text(encoding="utf-8")) for p in tmp_path.rglob("records/*.json")]
    forms = {r["backbone"]["parameters"]["visible_only"] for r in records if r.get("backbone")}
    assert forms == {False, True}
    scored = next(r for r in records if r["task"]["label"] == "reconstruction" and "visible_only=true" in r["row"])
    text = json.dumps(scored)
    for mask in ("random", "random_tube", "roi", "time_block"):
        assert f"[{mask}]" in text or f'"{mask}"' in text

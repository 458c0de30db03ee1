"""Built-in masking strategies: equal budgets on any table, whole elements, and where each hides."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurobench.errors import ConfigError
from neurobench.masking import budget, draw
from neurobench.records import UnitTable, WindowTable
from neurobench_masks.block import Block
from neurobench_masks.future import Future
from neurobench_masks.local import Local
from neurobench_masks.none import NoMask
from neurobench_masks.random import Random
from neurobench_masks.random_grid import RandomGrid
from neurobench_masks.random_tube import RandomTube
from neurobench_masks.roi import Roi
from neurobench_masks.time_block import TimeBlock

BUDGETED = [
    Random(),
    RandomTube(),
    Roi(rule="any"),
    Roi(rule="majority"),
    Roi(rule="pure"),
    Block(),
    TimeBlock(),
    TimeBlock(patches=1),
    Local(),
    Local(patches=5),
    Future(),
]


def named(strategy: object) -> str:
    return f"{type(strategy).__name__}{vars(strategy) or ''}"


@st.composite
def windows(draw_from: st.DrawFn) -> WindowTable:
    """Random tables: uneven groups, volume-like shares, shared sites, missing units, padding, subsets of units."""
    rng = np.random.default_rng(draw_from(st.integers(0, 2**32 - 1)))
    n_units, n_patches = draw_from(st.integers(1, 14)), draw_from(st.integers(1, 11))
    n_regions = draw_from(st.integers(1, 6))
    kind = draw_from(st.sampled_from(["groups", "shares", "one"]))
    share = np.zeros((n_units, n_regions), np.float32)
    if kind == "shares":
        share = rng.dirichlet(np.full(n_regions, 0.3), n_units).astype(np.float32)
        share *= rng.choice([0.3, 1.0], (n_units, 1)) * (rng.random((n_units, n_regions)) < 0.7)
    elif kind == "groups":
        share[np.arange(n_units), np.minimum(rng.geometric(0.5, n_units), n_regions) - 1] = 1
    else:
        share[:, 0] = 1
    names = tuple(f"u{i}" for i in range(n_units))
    units = UnitTable(
        names=names,
        groups=("",) * n_units,
        position_mm=rng.normal(0, 50, (n_units, 3)).astype(np.float32).round(draw_from(st.sampled_from([0, -2]))),
        types=("patch",) * n_units,
        sites=np.sort(rng.integers(0, n_units, n_units)) if draw_from(st.booleans()) else np.arange(n_units),
        region_names=tuple(f"r{i}" for i in range(n_regions)),
        region_share=share,
    )
    taken = np.sort(rng.choice(n_units, draw_from(st.integers(1, n_units)), replace=False))
    valid = rng.random((len(taken), 1)) < 0.9
    valid = valid & (np.arange(n_patches) < draw_from(st.integers(1, n_patches)))
    return WindowTable(units, taken, valid)


@pytest.mark.parametrize("strategy", BUDGETED, ids=named)
@given(window=windows(), ratio=st.floats(0.05, 0.95), seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_budgets_are_equal_on_any_table(strategy, window: WindowTable, ratio: float, seed: int) -> None:
    n_hidden = budget(window, ratio)
    if isinstance(strategy, Roi):
        labelled = int(window.valid[window.region_share.sum(1) > 0].sum())
        if labelled < n_hidden:
            with pytest.raises(ConfigError, match=f"'roi' hid {labelled} of the {n_hidden} tokens"):
                draw(strategy, window, ratio, np.random.default_rng(seed))
            return
    drawn = draw(strategy, window, ratio, np.random.default_rng(seed))
    assert drawn.scored.sum() == n_hidden
    assert not (drawn.scored & ~drawn.hidden).any()
    assert not (drawn.hidden & ~window.valid).any()
    assert window.n_valid == 0 or (window.valid & ~drawn.hidden).any()


@pytest.mark.parametrize("strategy", BUDGETED, ids=named)
@given(window=windows(), seed=st.integers(0, 2**32))
@settings(max_examples=15, deadline=None)
def test_the_same_generator_draws_the_same(strategy, window: WindowTable, seed: int) -> None:
    def elements() -> list[list[int]]:
        drawn = strategy.elements(window, budget(window, 0.5), np.random.default_rng(seed))
        return [e.tolist() for e in drawn]

    assert elements() == elements()


def parcels(n_units: int = 12, n_groups: int = 3, source: str = "anatomical", **columns) -> UnitTable:
    names = tuple(f"u{i}" for i in range(n_units))
    groups = tuple(f"g{i * n_groups // n_units}" for i in range(n_units)) if n_groups else ("",) * n_units
    return UnitTable.from_groups(names, groups, group_source=source, **columns)


def whole(units: UnitTable, n_patches: int = 10) -> WindowTable:
    return WindowTable(units, np.arange(len(units)), np.ones((len(units), n_patches), bool))


def hidden(strategy, units: UnitTable, ratio: float = 0.5, seed: int = 0) -> np.ndarray:
    return draw(strategy, whole(units), ratio, np.random.default_rng(seed)).hidden


@pytest.mark.parametrize("seed", range(5))
def test_tubes_and_regions_are_hidden_for_the_whole_window(seed: int) -> None:
    units = parcels(position_mm=np.random.default_rng(seed).normal(0, 50, (12, 3)))
    for strategy in (RandomTube(), Roi(), Block()):
        mask = hidden(strategy, units, seed=seed)
        assert (mask.all(1) | ~mask.any(1)).all(), strategy.name
    regions = hidden(Roi(), units, seed=seed).all(1).reshape(3, 4)
    assert (regions.all(1) | ~regions.any(1)).all()


@pytest.mark.parametrize("seed", range(5))
def test_time_block_hides_contiguous_spans_of_all_units(seed: int) -> None:
    mask = hidden(TimeBlock(patches=3), parcels(), ratio=0.2, seed=seed)
    assert (mask == mask[:1]).all()
    steps = np.flatnonzero(np.diff(np.concatenate([[0], mask[0], [0]])))
    assert max(steps[1::2] - steps[::2]) >= 2


def test_local_hides_spans_of_single_units() -> None:
    mask = hidden(Local(patches=3), parcels(), ratio=0.3)
    lengths = []
    for row in mask:
        edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(int), [0]])))
        lengths.extend(edges[1::2] - edges[::2])
    assert np.mean(lengths) > 2
    assert not (mask == mask[:1]).all()


def test_future_hides_the_end() -> None:
    mask = hidden(Future(), parcels(), ratio=0.25)
    assert mask[:, -3:].all()
    assert not mask[:, :-3].any()


def test_none_hides_nothing_and_does_not_pretrain() -> None:
    assert not hidden(NoMask(), parcels()).any()
    assert not NoMask.pretrains
    assert not NoMask.budgeted


def test_random_tube_draws_sites_not_sensors() -> None:
    units = parcels(sites=np.repeat(np.arange(4), 3))
    by_site = hidden(RandomTube(), units).all(1).reshape(4, 3)
    assert (by_site.all(1) | ~by_site.any(1)).all()
    assert "4 sites, not 12 sensors" in RandomTube().remark(units)
    assert RandomTube().remark(parcels()) == ""


def test_a_block_is_contiguous_and_of_the_size_of_a_region() -> None:
    line = np.stack([np.arange(12.0) * 10, np.zeros(12), np.zeros(12)], 1)
    for seed in range(6):
        rows = np.flatnonzero(hidden(Block(), parcels(position_mm=line), ratio=0.3, seed=seed).all(1))
        assert len(rows) == 4
        assert rows.max() - rows.min() == 3


def test_block_needs_positions() -> None:
    assert "12 of 12 have none" in Block().impossible(parcels())
    assert "random_tube" in Block().impossible(parcels())
    placed = parcels(n_groups=0, position_mm=np.zeros((12, 3)))
    assert Block().impossible(placed) == ""
    assert "a block has 3 units" in Block().remark(placed)


def volume() -> WindowTable:
    """Six patches of a volume: pure a, mostly a, half and half, mostly b, pure b, background."""
    share = np.array([[0.6, 0], [0.7, 0.3], [0.5, 0.5], [0.01, 0.4], [0, 1], [0, 0]], np.float32)
    units = UnitTable(
        names=tuple("abcdef"),
        groups=("",) * 6,
        position_mm=np.zeros((6, 3), np.float32),
        types=("patch",) * 6,
        sites=np.arange(6),
        region_names=("a", "b"),
        region_share=share,
    )
    return whole(units, 1)


@pytest.mark.parametrize(
    ("rule", "first_a", "first_b"),
    [("any", [0, 1, 2, 3], [1, 2, 3, 4]), ("majority", [0, 1], [3, 4]), ("pure", [0], [4])],
)
def test_rules_of_roi(rule: str, first_a: list[int], first_b: list[int]) -> None:
    seen = set()
    for seed in range(20):
        drawn = list(Roi(rule=rule).elements(volume(), 3, np.random.default_rng(seed)))
        first = drawn[0].tolist()
        assert first in (first_a, first_b)
        assert sorted(np.concatenate(drawn)) == [0, 1, 2, 3, 4], "all labelled units in the end, background never"
        seen.add(tuple(first))
    assert len(seen) == 2, "either region comes first at times"


def test_roi_says_what_its_regions_are() -> None:
    assert "are one" in Roi().remark(parcels())
    assert "are one" not in Roi().remark(volume().units)
    assert "1 of 6 units are in no region" in Roi().remark(volume().units)
    assert "clustered from positions" in Roi().remark(parcels(source="position"))


def test_roi_refuses_units_without_regions_and_says_what_to_do() -> None:
    assert "no regions" in Roi().impossible(parcels(n_groups=0))
    assert "random_tube" in Roi().impossible(parcels(n_groups=0))
    assert "only one, 'g0'" in Roi().impossible(parcels(n_groups=1))
    assert Roi().impossible(parcels()) == ""


def test_wrong_parameters_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"no rule 'purr'.*'pure'.*any, majority, pure"):
        Roi(rule="purr")
    for strategy in (Local, TimeBlock):
        with pytest.raises(ConfigError, match="span of 0 patches hides nothing"):
            strategy(patches=0)


def test_independent_tokens_are_no_headline_on_sensors() -> None:
    trivial = {s.name for s in BUDGETED if "sensors" in s.rank_trivial_on}
    assert trivial == {"random", "local"}
    assert not any("parcels" in s.rank_trivial_on for s in BUDGETED)


def test_random_grid_draws_from_the_background_too() -> None:
    cell = np.array([(x, y, z) for x in range(8) for y in range(8) for z in range(8)]) * 12.0
    brain = cell[np.linalg.norm(cell - 42, axis=1) < 36]
    n, share = len(brain), np.ones((len(brain), 1), np.float32)
    units = UnitTable(
        names=tuple(f"u{i}" for i in range(n)),
        groups=("g",) * n,
        position_mm=brain.astype(np.float32),
        types=("patch",) * n,
        sites=np.arange(n),
        region_names=("r",),
        region_share=share,
    )
    strategy = RandomGrid(field_mm=96.0)
    assert strategy.impossible(units) == ""
    assert f"from 512 tokens of the grid, of which {n} touch the brain" in strategy.remark(units)
    window = WindowTable(units, np.arange(n), np.ones((n, 10), bool))
    drawn = [draw(strategy, window, 0.5, np.random.default_rng(seed)) for seed in range(200)]
    frames = np.array([d.hidden.sum(0) for d in drawn])
    # Half of the grid in every frame, so that of the brain a varying number: the hypergeometric law says which.
    assert abs(frames.mean() - n / 2) < 0.5
    expected = n * 0.25 * (512 - n) / 511
    assert abs(frames.var() / expected - 1) < 0.15
    assert all((d.scored == d.hidden).all() for d in drawn)


def test_random_grid_is_for_volumes() -> None:
    units = UnitTable.from_groups(("a", "b"), ("x", "y"), np.zeros((2, 3), np.float32))
    assert "Use random" in RandomGrid().impossible(units)

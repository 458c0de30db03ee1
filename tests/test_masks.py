"""Built-in masking strategies: equal budgets on any table, whole elements, and where each hides."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurobench.checks import check_component
from neurobench.errors import ConfigError
from neurobench.masking import budget, draw
from neurobench.records import UnitTable, WindowTable
from neurobench.specimens import simulated_units
from neurobench_datasets._atlases import find_atlas
from neurobench_datasets._bold_images import PatchGrid, patch_units
from neurobench_datasets._bold_twin import synthetic_regions
from neurobench_datasets._volume_twin import write_atlas
from neurobench_masks.block import Block
from neurobench_masks.future import Future
from neurobench_masks.grid_window import GridWindow
from neurobench_masks.local import Local
from neurobench_masks.none import NoMask
from neurobench_masks.random import Random
from neurobench_masks.random_grid import RandomGrid
from neurobench_masks.random_tube import RandomTube
from neurobench_masks.roi import RULES, Roi
from neurobench_masks.sensor_group import SensorGroup
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
    GridWindow(),
    GridWindow(cells=2, patches=1),
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
    if strategy.impossible(window.units) and isinstance(strategy, GridWindow):
        return
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
    if strategy.impossible(window.units) and isinstance(strategy, GridWindow):
        return

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
    with pytest.raises(ConfigError, match=r"no budget 'relased'.*'released'.*matched, released"):
        Roi(budget="relased")
    with pytest.raises(ConfigError, match=r"no groups by 'kind'.*region, type"):
        SensorGroup(by="kind")
    with pytest.raises(ConfigError, match="window of 0 cells hides nothing"):
        GridWindow(cells=0)


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


# ---------------------------------------------------------------- released budgets


@pytest.fixture(scope="module")
def volume_twin(tmp_path_factory: pytest.TempPathFactory) -> WindowTable:
    """The patches of the simulated 4-D cohorts, all of them, 10 patches of time."""
    folder = tmp_path_factory.mktemp("atlas")
    write_atlas(folder, synthetic_regions(64))
    return whole(patch_units(PatchGrid(4.0, 6), find_atlas(str(folder / "atlas.nii.gz"), "test")))


def test_released_rules_hide_the_shares_of_the_brain_that_a_share_of_regions_takes(volume_twin: WindowTable) -> None:
    share = {}
    for rule in RULES:
        for wanted in ("released", "matched"):
            strategy = Roi(rule=rule, budget=wanted)
            drawn = [draw(strategy, volume_twin, 0.5, np.random.default_rng(seed)) for seed in range(12)]
            if wanted == "released":
                assert all((d.scored == d.hidden).all() for d in drawn), "all that is hidden is scored"
            share[rule, wanted] = np.mean([d.scored.sum() for d in drawn]) / volume_twin.n_valid
    assert [share[rule, "matched"] for rule in RULES] == pytest.approx([0.5] * 3, abs=1e-3)
    # Measured on AAL3 with patches of 12 mm: 78, 50 and 10 %. The order is what counts, and that it is none by a hair.
    assert share["any", "released"] > 0.7
    assert share["majority", "released"] == pytest.approx(0.5, abs=0.05)
    assert share["pure", "released"] < 0.3


def test_released_is_of_the_regions_whatever_the_tokens(volume_twin: WindowTable) -> None:
    region = volume_twin.region_share
    for ratio in (0.25, 0.5, 0.75):
        drawn = draw(Roi(rule="any", budget="released"), volume_twin, ratio, np.random.default_rng(1))
        hidden = drawn.hidden.all(1)
        assert (hidden == drawn.hidden.any(1)).all(), "whole units"
        # Under `any` a region is hidden where no visible unit has a voxel of it.
        gone = int((region[~hidden] == 0).all(0).sum())
        assert gone >= round(ratio * region.shape[1])


def test_released_passes_the_contract_and_says_what_it_is() -> None:
    for rule in RULES:
        released = type("Released", (Roi,), {"check_with": {"budget": "released", "rule": rule}})
        results = check_component(released)
        # In a table of two regions that share every patch one of them takes all under `any`, whatever the budget; the
        # caller leaves some of it visible, which `equal-budget` looks at.
        allowed = {"leaves-something-visible"} if rule == "any" else set()
        assert {r.check for r in results if r.outcome == "failed"} <= allowed
        assert sum(r.outcome == "passed" for r in results) >= 9
    assert Roi.budgeted
    assert Roi().budgeted
    assert not Roi(budget="released").budgeted
    assert "outside the common budget" in Roi(budget="released").remark(parcels())


# ---------------------------------------------------------------- windows of the grid, groups of sensors


def test_grid_window_hides_boxes_for_some_time() -> None:
    side = 8
    cell = np.array([(x, y, z) for x in range(side) for y in range(side) for z in range(side)])
    units = UnitTable(
        names=tuple(f"u{i}" for i in range(side**3)),
        groups=("g",) * side**3,
        position_mm=(cell * 12.0 - 40.0).astype(np.float32),
        types=("patch",) * side**3,
        sites=np.arange(side**3),
        region_names=("r",),
        region_share=np.ones((side**3, 1), np.float32),
    )
    assert "48 × 48 × 48 mm" in GridWindow().remark(units)
    corners = set()
    for seed in range(8):
        elements = list(GridWindow().elements(whole(units, 12), 1, np.random.default_rng(seed)))
        (taken,) = [e for e in elements if len(e)]
        unit, patch = np.unravel_index(taken, (side**3, 12))
        edges = [np.unique(values) for values in (*cell[unit].T, patch)]
        # A box: all that lies between its corners, and contiguous along all four axes.
        assert len(taken) == np.prod([len(e) for e in edges])
        assert all(len(e) <= 4 and np.ptp(e) == len(e) - 1 for e in edges)
        corners.add(tuple(int(e[0]) for e in edges))
    assert len(corners) > 4, "windows are tiled from a random corner"


def test_grid_window_leaves_other_units_and_other_times_visible(volume_twin: WindowTable) -> None:
    drawn = draw(GridWindow(), volume_twin, 0.25, np.random.default_rng(0))
    assert not drawn.hidden.all(0).any()
    assert not drawn.hidden.all(1).any()


def test_grid_window_is_for_volumes() -> None:
    for units in (parcels(), simulated_units(12, 3, kind="sensors"), simulated_units(12, 3, kind="parcels")):
        assert "Use block" in GridWindow().impossible(units)
    assert GridWindow().impossible(simulated_units(12, 3, kind="volume")) == ""


def test_sensor_group_by_region_is_roi_and_says_so() -> None:
    units = simulated_units(30, 5, kind="sensors")
    for seed in range(5):
        first, second = (
            [e.tolist() for e in s.elements(whole(units), 150, np.random.default_rng(seed))]
            for s in (SensorGroup(), Roi())
        )
        assert first == second
    assert "what roi hides on sensors" in SensorGroup().remark(units)


def test_sensor_group_by_type_hides_one_type_of_one_region() -> None:
    units = simulated_units(30, 5, kind="sensors")
    types, group = np.array(units.types), units.group_index
    elements = list(SensorGroup(by="type").elements(whole(units), 150, np.random.default_rng(0)))
    assert len(elements) == len({*zip(types.tolist(), group.tolist(), strict=True)})
    for element in elements:
        rows = np.unique(element // 10)
        assert len(set(types[rows])) == len(set(group[rows])) == 1
        same = (types == types[rows[0]]) & (group == group[rows[0]])
        assert rows.tolist() == np.flatnonzero(same).tolist(), "all of them"
    assert "rank-trivial" in SensorGroup(by="type").remark(units)
    assert SensorGroup(by="type").rank_trivial_on == ("sensors",)
    assert SensorGroup().rank_trivial_on == ()
    drawn = draw(SensorGroup(by="type"), whole(units), 0.5, np.random.default_rng(0))
    assert drawn.scored.sum() == 150


def test_sensor_group_is_for_sensors_of_several_groups() -> None:
    assert "Use roi" in SensorGroup().impossible(parcels())
    assert "Use roi" in SensorGroup(by="type").impossible(simulated_units(12, 3, kind="volume"))
    magnetometers = parcels(types=("mag",) * 12)
    assert SensorGroup().impossible(magnetometers) == ""
    assert "all of these are mag" in SensorGroup(by="type").impossible(magnetometers)
    assert "only one, 'g0'" in SensorGroup().impossible(parcels(n_groups=1, types=("mag",) * 12))
    assert "random_tube" in SensorGroup().impossible(parcels(n_groups=0, types=("mag",) * 12))

"""The backbones' own importance of units, and how it lines up with the sensors where a response is expected."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from neurobench import sensory
from neurobench.contracts import TokenBackbone
from neurobench.errors import DataError
from neurobench.plugins import load_registry
from neurobench.pretraining import build
from neurobench.records import UnitTable
from neurobench.specimens import simulated_batch, simulated_spec, simulated_units

BACKBONES = ["transformer", "mamba", "hybrid"]


UNITS = simulated_units()


def tokens():
    return simulated_batch(UNITS, 3, 5, 6)


def spec(n_layers: int = 1):
    return simulated_spec(UNITS, 5, 6, 32, n_layers)


def drawn_on(name: str, *, n_layers: int = 1):
    """Return the importance of an untrained backbone on a simulated batch, and the batch."""
    batch = tokens()
    net, _ = build(load_registry().backbones[name], spec(n_layers), {}, 0)
    hidden = torch.zeros_like(batch.table.valid)
    with torch.inference_mode():
        return net.importance(batch.signal, hidden, batch.table), batch


@pytest.mark.parametrize("n_layers", [1, 2])
@pytest.mark.parametrize("name", BACKBONES)
def test_shares_of_what_is_drawn_on(name, n_layers):
    drawn, batch = drawn_on(name, n_layers=n_layers)
    seen = batch.table.valid.any(2)
    assert drawn.shape == (*seen.shape, seen.shape[1])
    assert (drawn >= 0).all()
    torch.testing.assert_close(drawn.sum(2), seen.float(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", BACKBONES)
def test_what_is_not_valid_is_not_drawn_on(name):
    batch = tokens()
    table = replace(batch.table, valid=batch.table.valid.clone())
    table.valid[:, 2] = False
    net, _ = build(load_registry().backbones[name], spec(), {}, 0)
    signal = batch.signal * table.valid[..., None]
    with torch.inference_mode():
        drawn = net.importance(signal, torch.zeros_like(table.valid), table)
    others = [i for i in range(drawn.shape[1]) if i != 2]
    assert drawn[:, others, 2].abs().max() < 1e-6
    assert drawn[:, 2].abs().max() == 0


def test_a_scan_that_reaches_nobody_draws_on_itself_alone():
    """With steps of almost 0 a scan has no memory: all that is left is the step itself."""
    batch = tokens()
    net, _ = build(load_registry().backbones["mamba"], spec(), {}, 0)
    for part in net.modules():
        if hasattr(part, "dt_bias"):
            part.dt_bias.data.fill_(-40.0)
    with torch.inference_mode():
        drawn = net.importance(batch.signal, torch.zeros_like(batch.table.valid), batch.table)
    seen = batch.table.valid.any(2).float()
    torch.testing.assert_close(drawn.diagonal(dim1=1, dim2=2), seen, atol=1e-4, rtol=0)


def test_a_backbone_that_cannot_say():
    class Silent(TokenBackbone):
        name, summary = "silent", "mixes nothing"

        def mix(self, tokens, table):
            return tokens

    batch = tokens()
    net = Silent(spec())
    assert net.importance(batch.signal, torch.zeros_like(batch.table.valid), batch.table) is None


# ---------------------------------------------------------------- what is expected


def helmet(groups: tuple[str, ...]) -> UnitTable:
    n = len(groups)
    names = tuple(f"MEG {i:04d}" for i in range(n))
    return UnitTable.from_groups(names, groups, types=("mag",) * n, group_source="helmet")


def test_where_a_response_is_expected():
    units = helmet(("Left-temporal", "Right-temporal", "Left-parietal", "Left-frontal"))
    assert sensory.expected_units(units, "auditory").tolist() == [True, True, False, False]
    assert sensory.expected_units(units, "somatosensory").tolist() == [False, False, True, False]
    assert sensory.expected_units(units, "rest") is None
    assert sensory.expected_units(replace(units, group_source="position"), "auditory") is None
    assert sensory.expected_units(helmet(("Left-temporal",) * 3), "auditory") is None


def test_values_that_single_the_expected_ones_out():
    expected = np.arange(40) < 10
    rng = np.random.default_rng(0)
    found = sensory.alignment(expected + 0.1 * rng.normal(size=40), expected, None)
    assert found["auroc"] == 1
    assert found["p"] < 0.01
    assert (found["null"], found["n_expected"], found["n_units"]) == ("shuffles", 10, 40)
    nothing = [sensory.alignment(rng.normal(size=40), expected, None)["p"] for _ in range(30)]
    assert 0.3 < np.mean(nothing) < 0.7


def test_turning_keeps_neighbours_where_shuffling_does_not():
    """Smooth values line up with a region by accident: turns know that, shuffles find it remarkable."""
    i = np.arange(80) + 0.5
    turn, z = np.pi * (1 + 5**0.5) * i, 1 - 1.1 * i / 80
    ring = np.sqrt(1 - z**2)
    place = 110 * np.column_stack([ring * np.cos(turn), ring * np.sin(turn), z]) + (0, 0, 40)
    orders = sensory.turns(place, 200, 0)
    assert all(sorted(o) == list(range(80)) for o in orders)
    distance = np.linalg.norm(place[:, None] - place[None], axis=2)
    near = np.argsort(distance, axis=1)[:, 1]
    kept = np.median([distance[o, o[near]].mean() for o in orders])
    shuffled = np.random.default_rng(0).permutation(80)
    assert kept < 0.6 * distance[shuffled, shuffled[near]].mean()
    expected = place[:, 0] > 40
    smooth = place[:, 0] + 30 * np.sin(place[:, 1] / 30)
    by_turns, by_shuffles = (sensory.alignment(smooth, expected, o)["p"] for o in (orders, None))
    assert by_turns > by_shuffles


def test_units_without_positions_cannot_be_turned():
    with pytest.raises(DataError, match="cannot be turned"):
        sensory.turns(np.full((10, 3), np.nan), 5, 0)

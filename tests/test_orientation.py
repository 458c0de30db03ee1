"""Types and orientations of sensors: in the unit table, in the embedding, and nowhere where there are none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from neurobench.alignment import unit_table
from neurobench.contracts import TokenBackbone
from neurobench.records import BackboneSpec, Batch, TokenTable, UnitTable
from neurobench.specimens import simulated_batch, simulated_spec, simulated_units


class Embedding(TokenBackbone):
    """The common embedding and nothing else."""

    name = "embedding"
    summary = "the common embedding alone"

    def mix(self, tokens: torch.Tensor, table: TokenTable) -> torch.Tensor:
        return tokens


def embedded(net: TokenBackbone, batch: Batch, **changed: torch.Tensor) -> torch.Tensor:
    hidden = torch.zeros_like(batch.table.valid)
    return net.embed(batch.signal, hidden, replace(batch.table, **changed)).detach()


def built(units: UnitTable, seed: int = 0) -> tuple[TokenBackbone, Batch]:
    torch.manual_seed(seed)
    return Embedding(simulated_spec(units, 4, 6, 32, 1)), simulated_batch(units, 2, 4, 6)


# ---------------------------------------------------------------- the unit table


def test_orientations_are_unit_vectors_and_travel_with_their_units() -> None:
    units = simulated_units(12, kind="sensors")
    np.testing.assert_array_equal(units.take(np.array([7, 2])).orientation, units.orientation[[7, 2]])
    again = unit_table(units.describe())
    np.testing.assert_allclose(again.orientation, units.orientation, atol=1e-4)
    with pytest.raises(ValueError, match="that of u000 has length 2"):
        replace(units, orientation=2 * units.orientation)


def test_tables_without_orientations_are_described_as_before_there_were_any() -> None:
    parcels = simulated_units(12)
    assert "orientation" not in parcels.describe()
    assert np.isnan(parcels.orientation).all()
    assert not unit_table(parcels.describe()).has_orientations
    sizes = {"n_units": 12, "n_groups": 3, "n_patches": 4, "n_features": 6, "width": 32, "n_layers": 1}
    assert simulated_spec(parcels, 4, 6, 32, 1).describe() == sizes
    sensors = simulated_units(12, kind="sensors")
    assert simulated_spec(sensors, 4, 6, 32, 1).describe() == {**sizes, "n_types": 2, "oriented": True}


def test_a_changed_orientation_is_another_table() -> None:
    units = simulated_units(12, kind="sensors")
    other = units.orientation.copy()
    other[3] *= -1
    assert replace(units, orientation=other).describe() != units.describe()


# ---------------------------------------------------------------- the embedding


def test_nothing_is_built_or_drawn_where_there_is_nothing_to_tell_apart() -> None:
    parcels, _ = built(simulated_units(12))
    assert parcels.sensor is None
    sensors, _ = built(simulated_units(12, kind="sensors"))
    assert sensors.sensor is not None
    # Drawn after what was there before, so the rest of the common embedding is the same for sensors too.
    for name, weight in parcels.state_dict().items():
        torch.testing.assert_close(sensors.state_dict()[name], weight, rtol=0, atol=0)


def test_the_two_gradiometers_of_a_site_get_different_tokens_of_one_signal() -> None:
    units = simulated_units(12, kind="sensors")
    net, batch = built(units)
    with torch.no_grad():
        # As if no unit had an identity of its own.
        net.unit_embedding.weight.copy_(net.unit_embedding.weight[:1].expand(12, -1))
    signal = batch.signal[:, :1].expand_as(batch.signal)
    tokens = embedded(net, replace(batch, signal=signal))
    assert units.types[1] == units.types[2] == "grad"
    assert (tokens[:, 1] - tokens[:, 2]).abs().max() > 0.01
    assert (tokens[:, 0] - tokens[:, 1]).abs().max() > 0.01
    alike = embedded(net, replace(batch, signal=signal), orientation=torch.zeros_like(batch.table.orientation))
    torch.testing.assert_close(alike[:, 1], alike[:, 2])


def test_a_turned_sensor_gets_another_token_and_no_other_does() -> None:
    net, batch = built(simulated_units(12, kind="sensors"))
    turned = batch.table.orientation.clone()
    turned[0, 5] *= -1
    change = (embedded(net, batch, orientation=turned) - embedded(net, batch)).abs().amax((2, 3))
    assert change[0, 5] > 0.01
    change[0, 5] = 0
    assert not change.any()


def test_what_is_unknown_adds_nothing() -> None:
    net, batch = built(simulated_units(12, kind="sensors"))
    unknown = torch.full_like(batch.table.type, -1)
    tokens = embedded(net, batch, orientation=torch.zeros_like(batch.table.orientation), type=unknown)
    net.sensor = None
    torch.testing.assert_close(tokens, embedded(net, batch))


def test_one_type_of_sensor_needs_no_embedding_of_types() -> None:
    units = replace(simulated_units(12, kind="sensors"), types=("mag",) * 12)
    net, _ = built(units)
    assert net.sensor is not None
    assert net.sensor.type_embedding is None
    assert net.sensor.orientation is not None
    spec = BackboneSpec(12, 3, 4, 6, 32, 1, n_types=2)
    assert Embedding(spec).sensor.orientation is None

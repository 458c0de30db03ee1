"""Whole groups of MEG sensors for the whole window (after the MEG headache model, doi:10.1088/1741-2552/ae2805).

Sensors that stay visible beside a hidden one determine it almost linearly, so what is hidden has to be far from what is
seen: all sensors over one part of the head.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from neurobench import ConfigError, MaskingStrategy, UnitTable, WindowTable, closest, hookimpl
from neurobench_masks._elements import whole_window

BY = ("region", "type")

NO_REGIONS = "sensor_group hides some regions of the helmet and leaves others visible, and"
INSTEAD = "Use random_tube, which draws places of sensors and needs no regions"


class SensorGroup(MaskingStrategy):
    """Hide groups of sensors for the whole window; sensors in no region are never hidden.

    Parameters
    ----------
    by
        What makes a group: ``region`` (all sensors of a helmet region) or ``type`` (those of one type in a region, as
        its magnetometers or its gradiometers).
    """

    name = "sensor_group"
    summary = "whole groups of MEG sensors for the whole window; by=region|type"
    reference = "doi:10.1088/1741-2552/ae2805"
    hides = "units"

    def __init__(self, *, by: str = "region") -> None:
        if by not in BY:
            raise ConfigError(
                f"sensor_group has no groups by {by!r}.",
                allowed=", ".join(BY),
                likely=closest(by, BY),
                next_step="Write for example --mask 'sensor_group[by=type]'.",
            )
        self.by = by
        # Sensors of another type at the same place stay visible: half of the channels determine the other half.
        self.rank_trivial_on = ("sensors",) if by == "type" else ()

    def impossible(self, units: UnitTable) -> str:
        """Refuse what are no sensors, and sensors without two groups."""
        types = set(units.types)
        if types & {"parcel", "patch"}:
            return "sensor_group hides sensors, and these units are none. Use roi, which hides regions of anything"
        if self.by == "type":
            if len(types) < 2:
                return (
                    f"sensor_group[by=type] needs sensors of several types, and all of these are {next(iter(types))}. "
                    "Use sensor_group, which hides whole regions"
                )
            return "" if units.region_names else f"{NO_REGIONS} there are none. {INSTEAD}"
        if len(units.region_names) < 2:
            found = f"there is only one, {units.region_names[0]!r}" if units.region_names else "there are none"
            return f"{NO_REGIONS} {found}. {INSTEAD}"
        return ""

    def remark(self, units: UnitTable) -> str:
        """Say what the groups are, and what is known beside them."""
        if self.impossible(units):
            return ""
        remarks = []
        if self.by == "region":
            remarks.append(
                "sensor_group[by=region] hides what roi hides on sensors: it is the same mask by another name"
            )
        else:
            remarks.append(
                "sensor_group[by=type] leaves other sensors of the same place visible, which determine much of what is "
                "hidden: a rank-trivial reference"
            )
        if units.group_source == "position":
            remarks.append(f"the {len(units.region_names)} regions were clustered from positions, they are no helmet's")
        if outside := int((~units.region_share.any(1)).sum()):
            remarks.append(f"{outside} of {len(units)} sensors are in no region and never hidden")
        return "; ".join(remarks)

    def elements(self, window: WindowTable, n_hidden: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
        """Yield groups in random order."""
        inside = window.region_share > 0
        if self.by == "type":
            of_type = np.array(window.units.types)[window.unit] == np.unique(window.units.types)[:, None]
            inside = (inside[:, :, None] & of_type.T[:, None]).reshape(len(inside), -1)
        for group in rng.permutation(np.flatnonzero(inside.any(0))):
            yield whole_window(window, inside[:, group])


@hookimpl
def register_masks() -> list[type[MaskingStrategy]]:
    """Register the strategy."""
    return [SensorGroup]

"""Whole anatomical regions for the whole window, with the rules any, majority and pure (arXiv:2511.00443).

The rules matter where a unit lies in several regions, as patches of a volume do. At the same share of hidden
*regions* they hide very different numbers of tokens; here the number of scored tokens is the same for all three, unless
``budget=released`` asks for what the released code does: a share of the regions, whatever number of tokens that takes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from neurobench import ConfigError, MaskingStrategy, UnitTable, WindowTable, closest, hookimpl
from neurobench_masks._elements import whole_window

RULES = ("any", "majority", "pure")
BUDGETS = ("matched", "released")

# Shares are float32 and summed in any order; one voxel of a patch is a far larger part of it.
ROUNDING = 1e-5


class Roi(MaskingStrategy):
    """Hide whole regions for the whole window; units in no region are never hidden.

    Parameters
    ----------
    rule
        Which units a set of hidden regions takes with it: ``any`` (at least one voxel in a hidden region),
        ``majority`` (more than half of the labelled voxels in hidden regions) or ``pure`` (all labelled voxels).
    budget
        ``matched``: regions until the common number of tokens is reached. ``released``: the ratio is of the regions;
        whatever they take with them is hidden and scored, outside the common budget (for comparison only).
    """

    name = "roi"
    summary = "whole regions for the whole window; rule=any|majority|pure for volumes"
    reference = "arXiv:2511.00443"
    hides = "units"

    def __init__(self, *, rule: str = "majority", budget: str = "matched") -> None:
        for what, value, allowed in (("rule", rule, RULES), ("budget", budget, BUDGETS)):
            if value not in allowed:
                raise ConfigError(
                    f"roi has no {what} {value!r}.",
                    allowed=", ".join(allowed),
                    likely=closest(value, allowed),
                    next_step=f"Write for example --mask 'roi[{what}={allowed[-1]}]'.",
                )
        self.rule = rule
        self.budgeted = budget == "matched"

    def impossible(self, units: UnitTable) -> str:
        """Refuse units without at least two regions."""
        n = len(units.region_names)
        if n >= 2:
            return ""
        found = f"there is only one, {units.region_names[0]!r}" if n else "these units have no regions"
        return (
            f"roi hides some regions and leaves others visible, and {found}. Give the dataset a parcellation or a unit "
            "table with groups, or positions in mm to cluster regions from, or use random_tube, which needs neither"
        )

    def remark(self, units: UnitTable) -> str:
        """Say where regions come from, whether the rules differ, and which units are never hidden."""
        share = units.region_share
        remarks = []
        if units.group_source == "position":
            remarks.append(f"the {share.shape[1]} regions were clustered from positions, they are not anatomical")
        if bool(np.isin(share, (0.0, 1.0)).all()) and bool((share.sum(1) <= 1).all()):
            remarks.append("every unit lies in at most one region, so the rules any, majority and pure are one")
        outside = int((share.sum(1) == 0).sum())
        if outside:
            remarks.append(f"{outside} of {len(units)} units are in no region and never hidden")
        if not self.budgeted:
            remarks.append(
                "roi[budget=released] hides a share of the regions, not of the tokens; outside the common budget"
            )
        return "; ".join(remarks)

    def elements(self, window: WindowTable, n_hidden: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
        """Yield, region after region, the units that the regions drawn so far take with them."""
        share = window.region_share
        labelled = share.sum(1)
        # What of a unit has to be in hidden regions; under majority and pure that depends on all drawn so far.
        needed = {"any": 0.0, "majority": 0.5 + ROUNDING, "pure": 1.0 - ROUNDING}
        threshold = labelled * needed[self.rule]
        regions = rng.permutation(np.flatnonzero(share.any(0)))
        if not self.budgeted:
            # The ratio is of the regions; nobody stops at a number of tokens.
            regions = regions[: round(len(regions) * n_hidden / max(1, window.n_valid))]
        if not len(regions):
            return
        # The region of the order that takes a unit with it; most regions take none of a few units.
        taken = (np.cumsum(share[:, regions], 1) > threshold[:, None]) & (labelled > 0)[:, None]
        turn = np.where(taken.any(1), taken.argmax(1), len(regions))
        for i in np.unique(turn[turn < len(regions)]):
            yield whole_window(window, turn == i)


@hookimpl
def register_masks() -> list[type[MaskingStrategy]]:
    """Register the strategy."""
    return [Roi]

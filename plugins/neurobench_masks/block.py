"""Spatially contiguous units, as many as an average region, for the whole window: the control of roi for contiguity."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from neurobench import MaskingStrategy, UnitTable, WindowTable, hookimpl
from neurobench_masks._elements import whole_window


def block_size(share: NDArray[np.float32]) -> int:
    """Return the units of an average region; without regions the square root of the number of units."""
    n_regions = int(share.any(0).sum())
    n = int(share.any(1).sum()) / n_regions if n_regions else len(share) ** 0.5
    return max(1, round(n))


class Block(MaskingStrategy):
    """Hide the units nearest to a random one, for the whole window; several blocks until the budget is reached."""

    name = "block"
    summary = "contiguous units around a random centre, of the size of a region, for the whole window"
    hides = "units"

    def impossible(self, units: UnitTable) -> str:
        """Refuse units without positions."""
        unknown = int((~np.isfinite(units.position_mm).all(1)).sum())
        if not unknown:
            return ""
        return (
            f"block needs the position of every unit, and {unknown} of {len(units)} have none. Give a unit table with "
            "x, y, z in mm (fMRI: MNI, MEG: head frame), or use random_tube, which needs none"
        )

    def remark(self, units: UnitTable) -> str:
        """Say where the size of a block comes from if not from regions."""
        if units.region_names:
            return ""
        return f"there are no regions to match in size: a block has {block_size(units.region_share)} units"

    def elements(self, window: WindowTable, n_hidden: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
        """Yield blocks around random centres that no earlier block covers."""
        position, size = window.position_mm, block_size(window.region_share)
        sites, site = np.unique(window.sites, return_inverse=True)
        covered = np.zeros(len(site), bool)
        while (free := np.flatnonzero(~covered)).size:
            centre = free[rng.integers(free.size)]
            distance = np.linalg.norm(position - position[centre], axis=1)
            nearest = np.argsort(distance, kind="stable")[:size]
            # All sensors of a site go together: a visible twin at the same place would give the block away. The
            # centre is named, as units at one position may fill the block without it.
            hidden = np.zeros(len(sites), bool)
            hidden[site[nearest]] = hidden[site[centre]] = True
            block = hidden[site]
            covered |= block
            yield whole_window(window, block)


@hookimpl
def register_masks() -> list[type[MaskingStrategy]]:
    """Register the strategy."""
    return [Block]

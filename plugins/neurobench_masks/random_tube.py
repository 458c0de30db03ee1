"""Whole units, drawn without regard to anatomy, for the whole window: the control of region-wise masking.

After tube masking of video (VideoMAE, arXiv:2203.12602).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from neurobench import MaskingStrategy, UnitTable, WindowTable, hookimpl
from neurobench_masks._elements import whole_window


class RandomTube(MaskingStrategy):
    """Hide whole sites (a parcel, a patch of a volume, all sensors of one place) for the whole window."""

    name = "random_tube"
    summary = "random units for the whole window (MEG: all sensors of a site); the control of roi"
    reference = "arXiv:2203.12602"
    hides = "units"

    def remark(self, units: UnitTable) -> str:
        """Say that the sensors of a site go together."""
        n_sites = len(np.unique(units.sites))
        return f"draws {n_sites} sites, not {len(units)} sensors, one by one" if n_sites < len(units) else ""

    def elements(self, window: WindowTable, n_hidden: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
        """Yield sites in random order; all but the last in one go, which is quicker."""
        sites, site = np.unique(window.sites, return_inverse=True)
        order = rng.permutation(len(sites))
        turn = np.argsort(order)[site]
        n_valid = np.bincount(turn, weights=window.valid.sum(1))
        before = int(np.searchsorted(np.cumsum(n_valid), n_hidden))
        yield whole_window(window, turn < before)
        for i in range(before, len(sites)):
            yield whole_window(window, turn == i)


@hookimpl
def register_masks() -> list[type[MaskingStrategy]]:
    """Register the strategy."""
    return [RandomTube]

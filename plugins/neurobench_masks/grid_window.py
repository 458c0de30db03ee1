"""Whole windows of the 4-D grid that a volume is cut into (NeuroSTORM, arXiv:2506.11167).

Between `block`, which hides a region's worth of patches for the whole window, and `random`, which hides single tokens:
a few neighbouring patches for a few patches of time.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from neurobench import ConfigError, MaskingStrategy, UnitTable, WindowTable, hookimpl
from neurobench_masks._elements import edge_mm, in_random_order


class GridWindow(MaskingStrategy):
    """Hide whole 4-D windows, tiled from a random corner; those without a patch of the brain are not drawn.

    Parameters
    ----------
    cells
        Edge of a window in patches of the volume, at most half the grid along each axis.
    patches
        Length of a window in patches of time, at most half a window of the recording.
    """

    name = "grid_window"
    summary = "whole 4-D windows of the grid of a volume (cells³ × patches)"
    reference = "arXiv:2506.11167"

    def __init__(self, *, cells: int = 4, patches: int = 4) -> None:
        for what, n in (("cells", cells), ("patches", patches)):
            if n < 1:
                raise ConfigError(f"a window of {n} {what} hides nothing.", allowed=f"{what} of at least 1")
        self.cells, self.patches = cells, patches

    def impossible(self, units: UnitTable) -> str:
        """Refuse everything but patches of a volume."""
        if edge_mm(units) > 0:
            return ""
        return (
            "grid_window hides windows of the grid of a volume, and these units are no patches with positions. Use "
            "block, which hides neighbours, or local, which hides spans of time"
        )

    def remark(self, units: UnitTable) -> str:
        """Say how large a window is."""
        if self.impossible(units):
            return ""
        cell = _cells(units)
        edges = " × ".join(f"{n * edge_mm(units):g}" for n in _at_most_half(self.cells, cell))
        return f"a window of grid_window is {edges} mm"

    def elements(self, window: WindowTable, n_hidden: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
        """Yield windows in random order."""
        n_patches = window.valid.shape[1]
        cell = _cells(window.units)
        size = _at_most_half(self.cells, cell)
        length = min(self.patches, max(1, n_patches // 2))
        # Tiled from a random corner, so windows at the edges may be smaller.
        place = (cell[window.unit] + rng.integers(size)) // size
        span = (np.arange(n_patches) + rng.integers(length)) // length
        _, tile = np.unique(place, axis=0, return_inverse=True)
        label = tile.reshape(-1, 1) * (span.max() + 1) + span
        yield from in_random_order(window, label.ravel(), n_hidden, rng)


def _cells(units: UnitTable) -> NDArray[np.int64]:
    """Return (units, 3) the place of every patch on the grid, from 0."""
    steps = np.round(units.position_mm / edge_mm(units)).astype(np.int64)
    return steps - steps.min(0)


def _at_most_half(size: int, cell: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return (3,) the edges of a window: a small grid is not to be taken by one."""
    return np.clip((cell.max(0) + 1) // 2, 1, size)


@hookimpl
def register_masks() -> list[type[MaskingStrategy]]:
    """Register the strategy."""
    return [GridWindow]

"""The random mask that NeuroSTORM's code was released with (arXiv:2506.11167): for comparison only.

It draws from every token of the grid that the volume is cut into, frame by frame, though most of them are background
(of 4,096 patches of 12 mm about 1,470 touch the brain), so that the share of the brain that is hidden varies, and every
frame has neighbours in time that are visible. It is exempt from the common budget, and what it hides is in the record.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from neurobench import MaskingStrategy, UnitTable, WindowTable, hookimpl
from neurobench_masks._elements import edge_mm


class RandomGrid(MaskingStrategy):
    """Hide tokens of the whole grid, background included, drawn anew in every patch of time.

    Parameters
    ----------
    field_mm
        Edge of the cube that the grid fills; 96 voxels of 2 mm as released.
    """

    name = "random_grid"
    summary = "as NeuroSTORM's released code: tokens of the whole grid, background included (volumes; for comparison)"
    reference = "arXiv:2506.11167"
    budgeted = False
    rank_trivial_on = ("volume",)

    def __init__(self, *, field_mm: float = 192.0) -> None:
        self.field_mm = field_mm

    def impossible(self, units: UnitTable) -> str:
        """Refuse everything but patches of a volume."""
        if edge_mm(units) > 0:
            return ""
        return (
            "random_grid draws from the grid of a volume, and these units are no patches. Use random, which needs none"
        )

    def remark(self, units: UnitTable) -> str:
        """Say how much of what it draws from is background."""
        if self.impossible(units):
            return ""
        n = self._n_grid(units)
        return f"draws from {n} tokens of the grid, of which {len(units)} touch the brain; outside the common budget"

    def _n_grid(self, units: UnitTable) -> int:
        return max(len(units), round(self.field_mm / edge_mm(units)) ** 3)

    def elements(self, window: WindowTable, n_hidden: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
        """Yield all that is hidden at once: stopping at a budget would favour the first patches of time."""
        n_grid, n_patches = self._n_grid(window.units), window.valid.shape[1]
        n_drawn = round(n_grid * n_hidden / max(1, window.n_valid))
        # Unit i is token i of the grid, the rest are background: which is which makes no difference to the draw.
        order = rng.permuted(np.broadcast_to(np.arange(n_grid), (n_patches, n_grid)), axis=1)
        drawn = np.zeros((n_patches, n_grid), bool)
        np.put_along_axis(drawn, order[:, :n_drawn], True, axis=1)
        yield np.flatnonzero(drawn[:, window.unit].T)


@hookimpl
def register_masks() -> list[type[MaskingStrategy]]:
    """Register the strategy."""
    return [RandomGrid]

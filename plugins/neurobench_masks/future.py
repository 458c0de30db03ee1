"""The last patches of all units: forecasting (BrainLM, doi:10.1101/2023.09.12.557460)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from neurobench import MaskingStrategy, UnitTable, WindowTable, hookimpl


class Future(MaskingStrategy):
    """Hide the end of the window in all units."""

    name = "future"
    summary = "the last patches of all units: forecasting"
    reference = "doi:10.1101/2023.09.12.557460"
    hides = "times"

    def remark(self, units: UnitTable) -> str:
        """Say that there is one mask only."""
        return "always the same tokens of a window: more steps show no new masks"

    def elements(self, window: WindowTable, n_hidden: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
        """Yield patches of all units, the last one first."""
        n_units, n_patches = window.valid.shape
        for patch in reversed(range(n_patches)):
            yield np.arange(n_units) * n_patches + patch


@hookimpl
def register_masks() -> list[type[MaskingStrategy]]:
    """Register the strategy."""
    return [Future]

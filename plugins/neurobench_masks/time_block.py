"""Contiguous spans of time, hidden in all units at once: no unit can be read from its neighbours."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from neurobench import ConfigError, MaskingStrategy, WindowTable, hookimpl


class TimeBlock(MaskingStrategy):
    """Hide contiguous spans of all units.

    Parameters
    ----------
    patches
        Length of a span in patches, at most half a window.
    """

    name = "time_block"
    summary = "contiguous spans of time in all units at once"
    hides = "times"

    def __init__(self, *, patches: int = 2) -> None:
        if patches < 1:
            raise ConfigError(f"a span of {patches} patches hides nothing.", allowed="patches of at least 1")
        self.patches = patches

    def elements(self, window: WindowTable, n_hidden: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
        """Yield spans in random order."""
        n_units, n_patches = window.valid.shape
        length = min(self.patches, max(1, n_patches // 2))
        # Tiled from a random offset, so spans at the edges may be shorter.
        span = (np.arange(n_patches) + rng.integers(length)) // length
        for i in rng.permutation(span.max() + 1):
            yield (np.arange(n_units)[:, None] * n_patches + np.flatnonzero(span == i)).ravel()


@hookimpl
def register_masks() -> list[type[MaskingStrategy]]:
    """Register the strategy."""
    return [TimeBlock]

"""Short contiguous spans of single units, the other units visible at the same time (LMAE, arXiv:2508.16597)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from neurobench import ConfigError, MaskingStrategy, WindowTable, hookimpl
from neurobench_masks._elements import in_random_order


class Local(MaskingStrategy):
    """Hide short contiguous spans, each of one unit.

    Parameters
    ----------
    patches
        Length of a span in patches, at most half a window.
    """

    name = "local"
    summary = "short contiguous spans of single units, the others visible"
    reference = "arXiv:2508.16597"
    # As for random: the sensors that stay visible at a sample determine the hidden ones linearly.
    rank_trivial_on = ("sensors",)

    def __init__(self, *, patches: int = 2) -> None:
        if patches < 1:
            raise ConfigError(f"a span of {patches} patches hides nothing.", allowed="patches of at least 1")
        self.patches = patches

    def elements(self, window: WindowTable, n_hidden: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
        """Yield (unit, span) pairs in random order."""
        n_units, n_patches = window.valid.shape
        length = min(self.patches, max(1, n_patches // 2))
        # Every unit is tiled from an offset of its own, so spans at the edges may be shorter.
        span = (np.arange(n_patches) + rng.integers(length, size=(n_units, 1))) // length
        label = (span + np.arange(n_units)[:, None] * (span.max() + 1)).ravel()
        yield from in_random_order(window, label, n_hidden, rng)


@hookimpl
def register_masks() -> list[type[MaskingStrategy]]:
    """Register the strategy."""
    return [Local]

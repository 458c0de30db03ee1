"""Elements that several strategies share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from neurobench import WindowTable


def whole_window(window: WindowTable, units: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the flat indices of all tokens of some units.

    Parameters
    ----------
    window
        Token table.
    units
        (units,) bool, the units to hide.
    """
    n_patches = window.valid.shape[1]
    return (np.flatnonzero(units)[:, None] * n_patches + np.arange(n_patches)).ravel()


def spans(n_patches: int, length: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Tile a window with contiguous spans of patches, from a random offset; spans at the edges may be shorter.

    A span is at most half a window long, so that one span never takes all of a short window.
    """
    length = min(length, max(1, n_patches // 2))
    cuts = np.arange(int(rng.integers(length)), n_patches, length)
    return [s for s in np.split(np.arange(n_patches), cuts) if s.size]

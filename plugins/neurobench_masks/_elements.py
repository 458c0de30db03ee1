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

"""Elements that several strategies share."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from neurobench import UnitTable, WindowTable


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


def in_random_order(
    window: WindowTable, label: NDArray[np.int64], n_hidden: int, rng: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """Yield the tokens of one label after the other; all but the last in one go, which is quicker.

    Parameters
    ----------
    window
        Token table.
    label
        (units × patches,) which element every token belongs to, from 0.
    n_hidden
        Number of valid tokens that will be scored.
    rng
        Draws the order of the labels.
    """
    turn = rng.permutation(label.max() + 1)[label]
    tokens = np.argsort(turn, kind="stable")
    last = np.searchsorted(np.cumsum(window.valid.ravel()[tokens]), n_hidden)
    start, stop = np.searchsorted(turn[tokens], turn[tokens[min(last, tokens.size - 1)]] + np.arange(2))
    yield tokens[:start]
    yield tokens[start:stop]


def edge_mm(units: UnitTable) -> float:
    """Return the edge of a patch of a volume: the smallest step between positions along an axis; 0 for no patches."""
    if set(units.types) != {"patch"}:
        return 0.0
    steps = np.diff(np.unique(units.position_mm[:, 0]))
    return float(steps[steps > 1e-3].min()) if (steps > 1e-3).any() else 0.0

"""Equal budgets: from a strategy's elements to hidden and scored tokens.

Every strategy hides whole elements until ``n_hidden`` valid tokens are hidden; the last element is hidden whole too,
but exactly ``n_hidden`` tokens are scored. A comparison of strategies is then one of *where* they hide, not of how
much.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neurobench.contracts import MaskingStrategy
from neurobench.errors import ConfigError
from neurobench.identity import seed_for
from neurobench.records import WindowTable

__all__ = ["Hidden", "budget", "draw", "mask_generator"]


@dataclass(frozen=True, eq=False)
class Hidden:
    """Which tokens of one window are hidden, and which of those are scored.

    Parameters
    ----------
    hidden, scored
        (units, patches) bool; ``scored ⊆ hidden ⊆ valid``.
    """

    hidden: NDArray[np.bool_]
    scored: NDArray[np.bool_]


def budget(window: WindowTable, ratio: float) -> int:
    """Return the number of tokens to score: ``ratio`` of the valid ones, at least 1 and leaving at least 1 visible."""
    n = window.n_valid
    if n < 2:
        return 0
    return min(max(1, round(ratio * n)), n - 1)


def mask_generator(seed: int, step: int | str, subject: str, window: str) -> np.random.Generator:
    """Return the generator of one window's mask: no backbone and no batch order among its axes."""
    return np.random.default_rng(seed_for(seed, "mask", step, subject, window))


def draw(strategy: MaskingStrategy, window: WindowTable, ratio: float, rng: np.random.Generator) -> Hidden:
    """Draw the hidden and the scored tokens of one window.

    Parameters
    ----------
    strategy
        Where to hide.
    window
        Token table of the window.
    ratio
        Fraction of the valid tokens to score.
    rng
        Generator of this window's mask.

    Raises
    ------
    ConfigError
        If the strategy runs out of elements before the budget is reached.
    """
    shape = window.valid.shape
    valid = window.valid.ravel()
    n_hidden = budget(window, ratio)
    hidden = np.zeros(valid.size, bool)
    scored = np.zeros(valid.size, bool)
    count = 0
    if n_hidden:
        n_valid = int(valid.sum())
        for element in strategy.elements(window, n_hidden, rng):
            taken = np.zeros(valid.size, bool)
            taken[np.asarray(element, np.int64)] = True
            fresh = np.flatnonzero(taken & valid & ~hidden)
            if fresh.size == 0:
                continue
            if count + fresh.size == n_valid:
                # Something must stay visible: of an element that would leave nothing, only what the budget needs,
                # unit after unit, so that what is hidden stays as contiguous in time as it was to be.
                order = rng.permutation(shape[0])[fresh // shape[1]]
                fresh = fresh[np.argsort(order, kind="stable")][: max(0, n_hidden - count)]
            hidden[fresh] = True
            missing = n_hidden - count
            # Of the element that goes over the budget a random part is scored: no corner of it is favoured.
            # (A strategy that is exempt from the budget hides all that it yields and is scored on it, as released.)
            whole = fresh.size <= missing or not strategy.budgeted
            scored[fresh if whole else rng.permutation(fresh)[:missing]] = True
            count += fresh.size
            if count >= n_hidden and strategy.budgeted:
                break
        if count < n_hidden and strategy.budgeted:
            raise ConfigError(
                f"masking strategy {strategy.name!r} hid {count} of the {n_hidden} tokens that it was asked for.",
                allowed=f"elements that together cover at least {n_hidden} of {n_valid} valid tokens",
                next_step="Lower --ratio, or see `neurobench check` for the strategy.",
            )
    return Hidden(hidden.reshape(shape), scored.reshape(shape))

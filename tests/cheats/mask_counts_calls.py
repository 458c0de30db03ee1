"""A masking strategy that hides other tokens the more often it is asked."""

from __future__ import annotations

import numpy as np

from neurobench import MaskingStrategy


class CountsCalls(MaskingStrategy):
    """Walks through the tokens from call to call, so that every token is hidden equally often."""

    name = "counts_calls"
    summary = "cheats: depends on the calls before"

    def __init__(self) -> None:
        self.calls = 0

    def elements(self, window, n_hidden, rng):
        self.calls += 1
        for token in np.roll(rng.permutation(window.valid.size), self.calls):
            yield np.array([token])

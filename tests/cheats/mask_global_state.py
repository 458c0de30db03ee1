"""A masking strategy that draws from the global generator of numpy."""

from __future__ import annotations

import numpy as np

from neurobench import MaskingStrategy


class GlobalState(MaskingStrategy):
    """Ignores the generator that it is given."""

    name = "global_state"
    summary = "cheats: draws from numpy's global generator"

    def elements(self, window, n_hidden, rng):
        for token in np.random.permutation(window.valid.size):  # noqa: NPY002
            yield np.array([token])

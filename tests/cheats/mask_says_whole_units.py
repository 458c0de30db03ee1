"""A masking strategy that says it hides whole units, and leaves the first patch of each to be seen."""

from __future__ import annotations

import numpy as np

from neurobench import MaskingStrategy


class SaysWholeUnits(MaskingStrategy):
    """Hides units from their second patch on, then the first patches."""

    name = "says_whole_units"
    summary = "cheats: says that it hides whole units, and does not"
    hides = "units"

    def elements(self, window, n_hidden, rng):
        tokens = np.arange(window.valid.size).reshape(window.valid.shape)
        for unit in rng.permutation(len(tokens)):
            yield tokens[unit, 1:]
        yield from tokens[:, :1]

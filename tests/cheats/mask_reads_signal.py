"""A masking strategy that looks a file up to decide what to hide."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from neurobench import MaskingStrategy


class ReadsSignal(MaskingStrategy):
    """Hides what a file says is easy."""

    name = "reads_signal"
    summary = "cheats: reads a file to choose what to hide"

    def elements(self, window, n_hidden, rng):
        offset = len(Path(__file__).with_name("participants.tsv").read_text(encoding="utf-8"))
        for token in np.roll(rng.permutation(window.valid.size), offset):
            yield np.array([token])

"""Tokens drawn one by one, over units and time alike (MAE, doi:10.1109/CVPR52688.2022.01553)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from neurobench import MaskingStrategy, WindowTable, hookimpl


class Random(MaskingStrategy):
    """Hide independent tokens."""

    name = "random"
    summary = "independent tokens (unit × patch); a rank-trivial reference on sensors"
    reference = "doi:10.1109/CVPR52688.2022.01553"
    # Sensor signals after Maxwell filtering have far fewer degrees of freedom than channels: half the channels of a
    # sample determine the other half linearly.
    rank_trivial_on = ("sensors",)

    def elements(self, window: WindowTable, n_hidden: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
        """Yield the tokens; together, as one by one is the same and slower."""
        yield rng.permutation(np.flatnonzero(window.valid))[:n_hidden]


@hookimpl
def register_masks() -> list[type[MaskingStrategy]]:
    """Register the strategy."""
    return [Random]

"""No masking, which means no pretraining: a frozen backbone is then the untrained baseline, a finetuned one scratch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from neurobench import MaskingStrategy, WindowTable, hookimpl


class NoMask(MaskingStrategy):
    """Hide nothing."""

    name = "none"
    summary = "no pretraining: the untrained backbone (frozen) or scratch (finetuned)"
    budgeted = False
    pretrains = False

    def elements(self, window: WindowTable, n_hidden: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
        """Yield nothing."""
        yield from ()


@hookimpl
def register_masks() -> list[type[MaskingStrategy]]:
    """Register the strategy."""
    return [NoMask]

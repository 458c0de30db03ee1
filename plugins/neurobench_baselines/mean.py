"""No features at all: the mean of the training subjects, or even odds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from neurobench import Baseline, Cohort, hookimpl


class Mean(Baseline):
    """Predict every held-out subject by the training subjects' mean."""

    name = "mean"
    summary = "training mean or even odds: what knows nothing"

    def fit(self, cohort: Cohort) -> None:
        """Learn nothing."""

    def transform(self, cohort: Cohort) -> NDArray[np.float64]:
        """Return no column."""
        return np.empty((len(cohort.subjects), 0))


@hookimpl
def register_baselines() -> list[type[Baseline]]:
    """Register the baseline."""
    return [Mean]

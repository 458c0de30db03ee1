"""Functional connectivity: the baseline that foundation models of fMRI have to beat, and often do not."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from neurobench import Baseline, Cohort, Recording, hookimpl
from neurobench_baselines._features import average, regional, subject_rows

LARGEST = 1 - 1e-6
"""Correlation beyond which two units are copies: Fisher's z of 1 is infinite."""


class Connectome(Baseline):
    """Fisher's z of Pearson correlations of all pairs of units, averaged over a subject's recordings."""

    name = "connectome"
    summary = "Fisher-z correlations of all pairs of units (fMRI; regions for volumes)"
    modalities = ("fmri",)

    def fit(self, cohort: Cohort) -> None:
        """Learn nothing."""

    def transform(self, cohort: Cohort) -> NDArray[np.float64]:
        """Return (subjects, pairs), upper triangle; NaN where a unit is missing."""
        every = tuple(sorted({r.state for r in cohort.recordings}))

        def row(recording: Recording) -> NDArray[np.float64]:
            return fisher_z(regional(recording, cohort))

        return np.stack([average(list(states)) for states in subject_rows(cohort, every, row)])


def fisher_z(data: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the upper triangle of Fisher's z of correlations of (units, times)."""
    centred = data - data.mean(1, keepdims=True)
    norm = np.sqrt((centred**2).sum(1, keepdims=True))
    scaled = np.divide(centred, norm, out=np.full_like(centred, np.nan), where=norm > 0)
    correlation = scaled @ scaled.T
    pairs = correlation[np.triu_indices(len(data), 1)]
    return np.arctanh(np.clip(pairs, -LARGEST, LARGEST))


@hookimpl
def register_baselines() -> list[type[Baseline]]:
    """Register the baseline."""
    return [Connectome]

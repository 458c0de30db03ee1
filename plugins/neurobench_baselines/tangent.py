"""Covariances in the tangent space of their mean (Varoquaux et al. 2010, 10.1007/978-3-642-15705-9_25)."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from neurobench import Baseline, Cohort, DataError, Recording, hookimpl
from neurobench_baselines._features import average, common_states, regional, subject_rows

MAX_COMPONENTS = 60
"""Principal components of the units: MEG after signal-space separation has a rank of about 68 of 306."""

SHRINKAGE = 0.1
"""Share of the mean variance in every covariance: short recordings have fewer samples than entries."""

SMALLEST_EIGENVALUE = 1e-6


class Tangent(Baseline):
    """Covariance of each subject, as a step from the mean covariance of the training subjects.

    Units are scaled to unit variance: each recording's own for fMRI, whose units are arbitrary, the training mean's
    for MEG, whose amplitude means something.
    """

    name = "tangent"
    summary = "covariance in the tangent space of the training mean"
    reference = "10.1007/978-3-642-15705-9_25"

    def fit(self, cohort: Cohort) -> None:
        """Learn scales, principal components and the mean covariance.

        Raises
        ------
        DataError
            If there are fewer than two training subjects.
        """
        # Half a second of imports, which whoever lists plugins does not wait for.
        from nilearn.connectome import ConnectivityMeasure
        from sklearn.covariance import EmpiricalCovariance

        if len(cohort.subjects) < 2:
            raise DataError(f"a tangent space needs two training subjects, and {cohort.dataset} has one here.")
        self.states = common_states(cohort)
        covariances = self._covariances(cohort)
        mean = np.nan_to_num(average(list(covariances)))
        variance = np.diag(mean)
        self.usable = variance > 0
        mean = mean[np.ix_(self.usable, self.usable)]
        self.scale = 1 / np.sqrt(np.diag(mean))
        self.mean = mean * np.outer(self.scale, self.scale)
        values, vectors = np.linalg.eigh(self.mean)
        strong = np.flatnonzero(values > SMALLEST_EIGENVALUE * values[-1])[-MAX_COMPONENTS:]
        self.components = vectors[:, strong]
        self.measure = ConnectivityMeasure(
            # What it is given below are square roots of covariances, centred already.
            cov_estimator=EmpiricalCovariance(assume_centered=True),
            kind="tangent",
            vectorize=True,
            standardize=False,
        )
        with warnings.catch_warnings():
            # nilearn stops its geometric mean after 30 iterations; the point of reference need not be exact, only the
            # same for all, and it is taken from training subjects alone.
            warnings.filterwarnings("ignore", "Maximum number of iterations", UserWarning)
            self.measure.fit(self._roots(covariances))

    def transform(self, cohort: Cohort) -> NDArray[np.float64]:
        """Return (subjects, components · (components + 1) / 2)."""
        roots = self._roots(self._covariances(cohort))
        # nilearn refuses a single subject, though the mean was fixed in `fit`: the first one is given twice.
        return np.asarray(self.measure.transform([*roots, roots[0]]), float)[:-1]

    def _covariances(self, cohort: Cohort) -> NDArray[np.float64]:
        """Return (subjects, units, units), the mean over states; NaN where a unit is missing."""

        def row(recording: Recording) -> NDArray[np.float64]:
            data = regional(recording, cohort)
            covariance = data @ data.T / data.shape[1]
            if cohort.modality == "fmri":
                sd = np.sqrt(np.diag(covariance))
                covariance = covariance / np.outer(sd, sd)
            return covariance

        return np.stack([average(list(states)) for states in subject_rows(cohort, self.states, row)])

    def _roots(self, covariances: NDArray[np.float64]) -> list[NDArray[np.float64]]:
        """Return one "series" a subject, (components, components), whose covariance is the subject's, shrunk.

        Entries of missing units are those of the training mean.
        """
        from sklearn.covariance import shrunk_covariance

        roots = []
        for covariance in covariances:
            scaled = covariance[np.ix_(self.usable, self.usable)] * np.outer(self.scale, self.scale)
            filled = np.where(np.isfinite(scaled), scaled, self.mean)
            reduced = shrunk_covariance(self.components.T @ filled @ self.components, shrinkage=SHRINKAGE)
            values, vectors = np.linalg.eigh(reduced)
            # Filling entries in can push eigenvalues below zero.
            values = np.maximum(values, SMALLEST_EIGENVALUE * values[-1])
            roots.append(np.sqrt(len(values)) * (vectors * np.sqrt(values)) @ vectors.T)
        return roots


@hookimpl
def register_baselines() -> list[type[Baseline]]:
    """Register the baseline."""
    return [Tangent]

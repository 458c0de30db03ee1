"""A baseline that is fitted on test rows: it takes every recording that lies beside its own."""

from __future__ import annotations

import numpy as np

from neurobench import Baseline


class FittedOnTestRows(Baseline):
    """Learns principal axes from all recordings in the folder, test subjects among them."""

    name = "fitted_on_test_rows"
    summary = "cheats: fitted on test rows"

    def fit(self, cohort) -> None:
        folder = cohort.recordings[0].path.parent
        rows = np.array([np.nan_to_num(np.load(path)).std(1) for path in sorted(folder.glob("*.npy"))])
        self.axes = np.linalg.svd(rows, full_matrices=False)[2][:3]

    def transform(self, cohort):
        rows = np.array([np.nan_to_num(r.scale) for r in cohort.recordings], float)
        return rows @ self.axes.T

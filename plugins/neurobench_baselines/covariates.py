"""Age, sex, site, head motion and scan length: what predicts without looking at the brain.

On ADHD-200, personal characteristics alone won the competition (Brown et al. 2012, 10.3389/fnsys.2012.00069).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neurobench import COVARIATES, Baseline, Cohort, DataError, hookimpl


class Covariates(Baseline):
    """Columns of the participants table, less the target."""

    name = "covariates"
    summary = "age, sex, site, head motion and scan length, less the target"
    reference = "10.3389/fnsys.2012.00069"
    depends_on_task = True

    def fit(self, cohort: Cohort) -> None:
        """Learn which covariates the training subjects have, and their sites.

        Raises
        ------
        DataError
            If there is none.
        """
        known = cohort.participants.dropna(axis=1, how="all")
        self.columns = tuple(c for c in COVARIATES if c in known)
        if not self.columns:
            raise DataError(
                f"{cohort.dataset} has no covariate besides the target.",
                allowed=", ".join(COVARIATES),
                next_step="Add one to the participants table to see what it predicts on its own.",
            )
        self.sites = tuple(sorted(known["site"].dropna().astype(str).unique())) if "site" in known else ()

    def transform(self, cohort: Cohort) -> NDArray[np.float64]:
        """Return one column a covariate, one a site; a site that was not seen in training is zero everywhere."""
        people = cohort.participants
        columns: list[NDArray[np.float64]] = []
        for name in self.columns:
            if name == "site":
                site = people["site"].astype(str).to_numpy()
                columns += [(site == s).astype(float) for s in self.sites]
            elif name == "sex":
                columns.append(people["sex"].map({"F": 0.0, "M": 1.0}).to_numpy(float))
            else:
                columns.append(pd.to_numeric(people[name], errors="coerce").to_numpy(float))
        return np.column_stack(columns)


@hookimpl
def register_baselines() -> list[type[Baseline]]:
    """Register the baseline."""
    return [Covariates]

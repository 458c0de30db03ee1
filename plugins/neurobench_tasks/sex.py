"""Sex as recorded in the participants table."""

from __future__ import annotations

import pandas as pd

from neurobench import CLASSIFICATION_METRICS, SubjectTask, hookimpl
from neurobench_tasks._column import ColumnTask, text


class Sex(ColumnTask):
    """Tell M (class 1) from F (class 0)."""

    name = "sex"
    summary = "sex, F or M; AUROC"
    column = "sex"
    kind = "classification"
    metrics = CLASSIFICATION_METRICS

    def target(self, participants: pd.DataFrame) -> pd.Series:
        """Return 0 for F and 1 for M; anything else is missing."""
        return text(participants[self.column]).map({"F": 0.0, "M": 1.0}).astype(float)

    @property
    def classes(self) -> tuple[str, str]:
        """F and M."""
        return "F", "M"


@hookimpl
def register_tasks() -> list[type[SubjectTask]]:
    """Register the task."""
    return [Sex]

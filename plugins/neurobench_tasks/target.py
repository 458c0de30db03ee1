"""Any other column of the participants table."""

from __future__ import annotations

from typing import ClassVar

import pandas as pd

from neurobench import CLASSIFICATION_METRICS, Cohort, ConfigError, SubjectTask, hookimpl, regression_metrics
from neurobench_tasks._column import ColumnTask, is_control, number, text, usable_columns


class Target(ColumnTask):
    """Predict a column of the user: two classes if it holds two values, else a number.

    The kind follows from the column, so it is known once :meth:`refuses` or :meth:`target` has seen it.

    Parameters
    ----------
    column
        Name of the column.
    """

    name = "target"
    summary = "any numeric or two-class column: target[column=full_iq]"
    check_with: ClassVar = {"column": "fluid_intelligence"}

    def __init__(self, *, column: str = "") -> None:
        if not column:
            raise ConfigError(
                "task target does not say which column to predict.",
                allowed="the name of a numeric or two-class column of the participants table",
                next_step="Write for example --task 'target[column=full_iq]'.",
            )
        self.column = column
        self.kind = "regression"
        self.metrics = regression_metrics("")
        self._classes = ("", "")

    def target(self, participants: pd.DataFrame) -> pd.Series:
        """Return the column as float; of two classes 1 for the patients, else for the later in the alphabet."""
        labels = text(participants[self.column])
        found = labels.dropna().unique()
        if len(found) != 2:
            self.kind, self.metrics, self._classes = "regression", regression_metrics(""), ("", "")
            return number(labels)
        numeric = number(pd.Series(found, dtype=object))
        if numeric.notna().all():
            ordered = [str(v) for v in pd.Series(found)[numeric.argsort()]]
        else:
            ordered = sorted(found, key=lambda label: (not is_control(label), label))
        self.kind, self.metrics, self._classes = "classification", CLASSIFICATION_METRICS, (ordered[0], ordered[1])
        return labels.map({ordered[0]: 0.0, ordered[1]: 1.0}).astype(float)

    @property
    def classes(self) -> tuple[str, str]:
        """The two values; empty for a number."""
        return self._classes

    def refuses(self, cohort: Cohort) -> str:
        """Refuse text with more than two values besides what every task on a column refuses."""
        if self.column in cohort.participants:
            labels = text(cohort.participants[self.column]).dropna()
            if labels.nunique() > 2 and number(labels).notna().mean() < 0.5:
                usable = ", ".join(usable_columns(cohort.participants)) or "none"
                return (
                    f"column {self.column!r} of {cohort.dataset} holds {labels.nunique()} different texts; a target is "
                    f"numeric or has two classes; columns that could be targets: {usable}"
                )
        return super().refuses(cohort)


@hookimpl
def register_tasks() -> list[type[SubjectTask]]:
    """Register the task."""
    return [Target]

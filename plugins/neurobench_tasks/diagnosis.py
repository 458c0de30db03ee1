"""Patients against controls."""

from __future__ import annotations

import pandas as pd

from neurobench import CLASSIFICATION_METRICS, Cohort, SubjectTask, hookimpl
from neurobench_tasks._column import ColumnTask, is_control, text


class Diagnosis(ColumnTask):
    """Tell patients (class 1: every label that names no control group) from controls (class 0)."""

    name = "diagnosis"
    summary = "patients against controls; AUROC"
    column = "diagnosis"
    kind = "classification"
    metrics = CLASSIFICATION_METRICS

    def target(self, participants: pd.DataFrame) -> pd.Series:
        """Return 1 for patients and 0 for controls."""
        labels = text(participants[self.column])
        return labels.map(lambda label: float(not is_control(label)), na_action="ignore").astype(float)

    @property
    def classes(self) -> tuple[str, str]:
        """Control and patient."""
        return "control", "patient"

    def refuses(self, cohort: Cohort) -> str:
        """Refuse as every task on a column does, and say so if no label names a control group."""
        reason = super().refuses(cohort)
        if reason and self.column in cohort.participants:
            labels = sorted(text(cohort.participants[self.column]).dropna().unique())
            if len(labels) > 1 and not any(map(is_control, labels)):
                shown = ", ".join(labels)
                return f"no diagnosis of {cohort.dataset} names a control group: {shown}; use target[column=diagnosis]"
        return reason


@hookimpl
def register_tasks() -> list[type[SubjectTask]]:
    """Register the task."""
    return [Diagnosis]

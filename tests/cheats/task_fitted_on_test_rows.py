"""A task whose target is fitted on all rows of the table, test rows among them."""

from __future__ import annotations

from neurobench import Metric, SubjectTask


class MedianSplit(SubjectTask):
    """Young or old, cut at the median of whoever is in the table."""

    name = "median_split"
    summary = "cheats: a target fitted on test rows"
    kind = "classification"
    column = "age"
    metrics = (Metric("auroc", "", True, 0.5, 1.0),)
    classes = ("young", "old")

    def refuses(self, cohort) -> str:
        people = cohort.participants
        return "" if "age" in people and people["age"].notna().any() else "there is no column 'age'"

    def target(self, participants):
        age = participants["age"].astype(float)
        return (age > age.median()).astype(float).where(age.notna())

"""A task that says it predicts one column, and predicts another one, which baselines are given."""

from __future__ import annotations

from neurobench import SubjectTask, regression_metrics


class OfACovariate(SubjectTask):
    """Says fluid intelligence, and means age: what knows the covariates is perfect, and no confound is seen."""

    name = "of_a_covariate"
    summary = "cheats: its target is made of a covariate"
    kind = "regression"
    column = "fluid_intelligence"
    metrics = regression_metrics("points")
    classes = ("", "")

    def refuses(self, cohort) -> str:
        return "" if self.column in cohort.participants else f"no column {self.column!r}"

    def target(self, participants):
        known = participants[self.column].notna()
        return (100.0 - participants["age"]).where(known).astype(float)

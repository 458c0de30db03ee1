"""Age in years."""

from __future__ import annotations

from neurobench import SubjectTask, hookimpl, regression_metrics
from neurobench_tasks._column import NumberTask


class Age(NumberTask):
    """Predict age; the slope of the error on age shows how far predictions are pulled to the mean."""

    name = "age"
    summary = "age in years; MAE"
    column = "age"
    metrics = regression_metrics("years")


@hookimpl
def register_tasks() -> list[type[SubjectTask]]:
    """Register the task."""
    return [Age]

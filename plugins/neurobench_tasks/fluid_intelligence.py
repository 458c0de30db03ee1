"""Fluid intelligence in points of the cohort's own test (Cam-CAN: Cattell, 46 items)."""

from __future__ import annotations

from neurobench import SubjectTask, hookimpl, regression_metrics
from neurobench_tasks._column import NumberTask


class FluidIntelligence(NumberTask):
    """Predict fluid intelligence; it falls steeply with age, so what is left given age is reported too."""

    name = "fluid_intelligence"
    summary = "fluid intelligence in points; MAE, and what is left once age is known"
    column = "fluid_intelligence"
    metrics = regression_metrics("points", given_age=True)


@hookimpl
def register_tasks() -> list[type[SubjectTask]]:
    """Register the task."""
    return [FluidIntelligence]

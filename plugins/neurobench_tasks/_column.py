"""What tasks on one column of the participants table have in common."""

from __future__ import annotations

import numpy as np
import pandas as pd

from neurobench import Cohort, SubjectTask, closest

MIN_SUBJECTS = 20
"""Labelled subjects below which intervals are too wide to say anything."""

MIN_CLASS = 5
"""Subjects of the rarer class: one a fold."""

CONTROLS = {
    *("control", "controls", "healthy", "healthycontrol", "healthycontrols", "normal", "neurotypical"),
    *("typicallydeveloping", "typicallydevelopingchildren", "td", "tdc", "tc", "hc", "nc", "nt"),
}


def is_control(label: str) -> bool:
    """Return whether a label names a comparison group without the condition."""
    return "".join(c for c in label.lower() if c.isalpha()) in CONTROLS


def text(values: pd.Series) -> pd.Series:
    """Return labels without surrounding white space, None where missing."""
    stripped = values.astype("object").map(lambda v: str(v).strip(), na_action="ignore")
    return stripped.where(stripped.notna() & ~stripped.isin(["", "nan", "n/a"]), None)


def number(values: pd.Series) -> pd.Series:
    """Return floats, NaN where a value is missing or no number."""
    return pd.to_numeric(values, errors="coerce").astype(float).replace([np.inf, -np.inf], np.nan)


def usable_columns(participants: pd.DataFrame) -> list[str]:
    """Return columns with enough subjects that are numeric or hold two classes."""

    def usable(values: pd.Series) -> bool:
        known = text(values).dropna()
        if len(known) < MIN_SUBJECTS or known.nunique() < 2:
            return False
        return known.nunique() == 2 or bool(number(known).notna().all())

    return [str(c) for c in participants if usable(participants[c])]


class ColumnTask(SubjectTask):
    """A task on one column; subclasses say which, and how it becomes numbers."""

    def refuses(self, cohort: Cohort) -> str:
        """Refuse cohorts without the column, without enough labels, or with nothing to tell apart."""
        participants = cohort.participants
        if self.column not in participants:
            usable = usable_columns(participants)
            likely = closest(self.column, usable)
            return (
                f"{cohort.dataset} has no column {self.column!r} in its participants table"
                + (f"; did you mean {likely!r}?" if likely else "")
                + f"; columns that could be targets: {', '.join(usable) or 'none'}"
            )
        known = self.target(participants).dropna()
        if len(known) < MIN_SUBJECTS:
            few = f"{len(known)} subjects of {cohort.dataset} have a usable {self.column}"
            return f"{few}; at least {MIN_SUBJECTS} are needed"
        if self.kind == "regression":
            return "" if known.nunique() > 1 else f"{self.column} is the same for all {len(known)} subjects"
        counts = [int((known == c).sum()) for c in (0, 1)]
        if min(counts) >= MIN_CLASS:
            return ""
        shown = ", ".join(f"{n} {name}" for name, n in zip(self.classes, counts, strict=True))
        return f"{self.column} of {cohort.dataset} has {shown}; at least {MIN_CLASS} of each class are needed"


class NumberTask(ColumnTask):
    """A regression on a numeric column."""

    kind = "regression"

    def target(self, participants: pd.DataFrame) -> pd.Series:
        """Return the column as float."""
        return number(participants[self.column])

    @property
    def classes(self) -> tuple[str, str]:
        """No classes."""
        return "", ""

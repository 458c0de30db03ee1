"""Windows of recordings as rows of a cohort of their own, so that all that works on subjects works on windows.

Every window becomes the only recording of a row; what it is called says nothing of its class. The rows of one subject
always lie on the same side of a split.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from neurobench.contracts import COVARIATES, WindowTask
from neurobench.errors import DataError
from neurobench.identity import digest, seed_for
from neurobench.records import Cohort, Fold, Recording

__all__ = ["Rows", "WindowRows", "neutral", "window_rows"]


@dataclass(frozen=True, eq=False)
class Rows:
    """A cohort of windows.

    Parameters
    ----------
    cohort
        One row of the participants table and one recording a window; all recordings in the same state.
    subjects
        Row to its subject.
    """

    cohort: Cohort
    subjects: pd.Series[str]

    @property
    def scaled(self) -> Cohort:
        """The same with the centre and scale by which a window is seen: those of its recording, as in pretraining."""
        return self.cohort

    def of(self, subjects: tuple[str, ...]) -> tuple[str, ...]:
        """Return the rows of some subjects, in order."""
        return tuple(self.subjects.index[self.subjects.isin(subjects)])

    def fold(self, fold: Fold) -> Fold:
        """Return a fold over subjects as one over rows."""
        return replace(fold, train=self.of(fold.train), test=self.of(fold.test))


@dataclass(frozen=True, eq=False)
class WindowRows(Rows):
    """A cohort of windows of two classes or more.

    Parameters
    ----------
    classes
        Row to the index of its class in ``names``.
    names
        Names of the classes, sorted.
    """

    classes: pd.Series[int]
    names: tuple[str, ...]


def neutral(recording: Recording, start: int, length: int) -> Recording:
    """Return a piece of a recording that says nothing of where it was cut from but through its signal."""
    return replace(
        recording,
        start=recording.start + start,
        n_times=length,
        state="window",
        events=(),
        bad_spans=(),
        content="",
        session="",
        run="",
    )


def window_rows(cohort: Cohort, task: WindowTask) -> WindowRows:
    """Cut recordings into windows that do not overlap, and take evenly spaced ones of every subject and class.

    Windows that touch a bad span are left out. A window keeps centre and scale of its recording, as in pretraining.

    Raises
    ------
    DataError
        If fewer than two classes have a window.
    """
    length = cohort.samples_per_window
    found: dict[tuple[str, str], list[Recording]] = {}
    for recording in cohort.recordings:
        if not (label := task.label(recording)):
            continue
        for start in cohort.whole_windows(recording):
            found.setdefault((recording.subject, label), []).append(neutral(recording, start, length))
    names = tuple(sorted({label for _, label in found}))
    if len(names) < 2:
        raise DataError(
            f"windows of {cohort.dataset} cannot be told apart: {len(names)} class has a whole window "
            f"({', '.join(names) or 'none'}).",
            next_step="Use a shorter --window-s, or see `neurobench data check`.",
        )
    rows = []
    for subject in cohort.subjects:
        own = []
        for k, name in enumerate(names):
            pieces = found.get((subject, name), [])
            if len(pieces) > task.max_windows:
                pieces = [pieces[i] for i in np.linspace(0, len(pieces) - 1, task.max_windows).round().astype(int)]
            own += [(k, piece) for piece in pieces]
        # In an order of chance, or the number of a row would say what it is.
        order = np.random.default_rng(seed_for(0, "split", "windows", subject)).permutation(len(own))
        for n, i in enumerate(order):
            row, (k, piece) = f"{subject}~{n:03d}", own[i]
            rows.append((row, subject, k, replace(piece, id=row, subject=row)))
    index = pd.Index([r[0] for r in rows], name=cohort.participants.index.name)
    subjects = pd.Series([r[1] for r in rows], index=index)
    classes = pd.Series([r[2] for r in rows], index=index)
    columns = [c for c in COVARIATES if c in cohort.participants]
    derived = replace(
        cohort,
        participants=cohort.participants.loc[list(subjects), columns].set_index(index),
        recordings=tuple(r[3] for r in rows),
        fingerprint=digest([cohort.fingerprint, [[r.id, r.path.name, r.start] for *_, r in rows], classes.tolist()]),
    )
    return WindowRows(derived, subjects, classes, names)

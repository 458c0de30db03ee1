"""Which stimulus a window belongs to, by its likeness to other people's windows of each stimulus."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurobench import (
    RETRIEVAL_METRICS,
    Cohort,
    ConfigError,
    Recording,
    RetrievalTask,
    RetrievalWindow,
    closest,
    hookimpl,
    user_path,
)
from neurobench_tasks._embeddings import read_embeddings

MIN_PEOPLE = 4
"""People with a stimulus: two in training and two held out."""


class Stimulus(RetrievalTask):
    """Find the stimulus of a held-out subject's window among prototypes: the mean window of the training subjects.

    Parameters
    ----------
    by
        ``state``: stimuli are the states of recordings. ``condition``: they are the conditions of events, and a window
        belongs to one if all its events do. ``auto``: states where there are two, else conditions.
    max_windows
        Windows at most, a subject and stimulus, evenly spaced.
    embeddings
        Path of an .npz (an array a stimulus) or .parquet (column ``stimulus``, one a dimension) that says what stimuli
        are like, of any dimension: windows are mapped to it by a ridge fitted on training subjects. Empty: prototypes.
    """

    name = "stimulus"
    summary = "which stimulus a window belongs to, among prototypes of training subjects; top-1, mAP"
    reference = "10.48550/arXiv.2506.11167"
    metrics = RETRIEVAL_METRICS
    gallery_from = "train"
    max_gallery = 150

    def __init__(self, *, by: str = "auto", max_windows: int = 4, embeddings: str = "") -> None:
        if by not in ("auto", "state", "condition"):
            raise ConfigError(
                f"stimulus cannot go by {by!r}.",
                allowed="auto, state, condition",
                likely=closest(by, ("auto", "state", "condition")),
            )
        if max_windows < 1:
            raise ConfigError(f"stimulus cannot take {max_windows} windows.", allowed="1 or more")
        self._by, self._windows, self._embeddings = by, max_windows, embeddings

    @classmethod
    def named_files(cls, parameters: Mapping[str, Any]) -> Mapping[str, Sequence[Path]]:
        """Return the file of the stimuli's embeddings."""
        if not parameters["embeddings"]:
            return {}
        path = user_path(parameters["embeddings"])
        if not os.path.isfile(path):
            raise ConfigError(
                f"embeddings cannot be read from {path}: it does not exist.", allowed="a file .npz or .parquet"
            )
        return {"embeddings": [path]}

    def embeddings(self, labels: Sequence[str]) -> NDArray[np.float64] | None:
        """Return what the user's file says of stimuli; None without one."""
        return read_embeddings(self._embeddings, labels) if self._embeddings else None

    def windows(self, cohort: Cohort) -> tuple[RetrievalWindow, ...]:
        """Return evenly spaced windows of every subject and stimulus that enough people have."""
        found = self._found(cohort, self._chosen(cohort))
        usable = _usable(found)
        chosen = []
        for (_, label), places in found.items():
            if label in usable:
                take = np.linspace(0, len(places) - 1, min(len(places), self._windows)).round().astype(int)
                chosen += [RetrievalWindow(*places[i], label, "both") for i in take]
        return tuple(chosen)

    def remark(self, cohort: Cohort) -> str:
        """Return what stimuli are."""
        if self._chosen(cohort) == "state":
            return (
                "stimuli are states, recordings of their own: what else changed between them, such as the position of "
                "the head, tells them apart as well"
            )
        return "stimuli are the conditions of events; windows with events of two are left out"

    def refuses(self, cohort: Cohort) -> str:
        """Refuse cohorts with fewer than two stimuli that enough people have a window of."""
        by = self._chosen(cohort)
        found = self._found(cohort, by)
        usable, seen = _usable(found), sorted({label for _, label in found})
        if len(usable) > 1:
            try:
                self.embeddings(sorted(usable))
            except ConfigError as error:
                return str(error).rstrip(".")
            return ""
        states = sorted({r.state for r in cohort.recordings})
        conditions = sorted({e.condition for r in cohort.recordings for e in r.events})
        return (
            f"{len(usable)} stimuli of {cohort.dataset} have a whole window in {MIN_PEOPLE} people, two are needed; "
            f"by {by} there are {', '.join(seen) or 'none'} (states {', '.join(states)}; "
            f"conditions {', '.join(conditions) or 'none'}); a shorter --window-s may help"
        )

    # ------------------------------------------------------------ which windows

    def _chosen(self, cohort: Cohort) -> str:
        if self._by != "auto":
            return self._by
        return "state" if len({r.state for r in cohort.recordings}) > 1 else "condition"

    def _found(self, cohort: Cohort, by: str) -> dict[tuple[str, str], list[tuple[int, int]]]:
        """Return subject and label to recordings and first samples of windows."""
        found: dict[tuple[str, str], list[tuple[int, int]]] = {}
        for number, recording in enumerate(cohort.recordings):
            for start in cohort.whole_windows(recording):
                label = recording.state if by == "state" else _condition(cohort, recording, start)
                if label:
                    found.setdefault((recording.subject, label), []).append((number, start))
        return found


def _condition(cohort: Cohort, recording: Recording, start: int) -> str:
    """Return the condition of all events of a window; empty where there are several or none."""
    low, high = start / cohort.sfreq, (start + cohort.samples_per_window) / cohort.sfreq
    inside = {e.condition for e in recording.events if low <= e.onset_s < high}
    return inside.pop() if len(inside) == 1 else ""


def _usable(found: dict[tuple[str, str], list[tuple[int, int]]]) -> set[str]:
    people: dict[str, set[str]] = {}
    for subject, label in found:
        people.setdefault(label, set()).add(subject)
    return {label for label, who in people.items() if len(who) >= MIN_PEOPLE}


@hookimpl
def register_tasks() -> list[type[RetrievalTask]]:
    """Register the task."""
    return [Stimulus]

"""Checks of baselines."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurobench.checks.common import Check, Skip, build, demand, other_global_state, seeds_set_by, watched_files
from neurobench.contracts import COVARIATES, Baseline
from neurobench.errors import CheckError
from neurobench.plugins import Registry
from neurobench.records import Cohort
from neurobench.specimens import simulated_cohort
from neurobench.windows import neutral

SPECIMENS: dict[str, dict[str, Any]] = {
    "fmri": {"signal": "parcels", "modality": "fmri", "n_times": 240},
    "meg": {"signal": "sensors", "modality": "meg", "n_times": 1024},
}
TOLERANCE = 1e-6


@contextmanager
def _cohorts(cls: type[Baseline], n_subjects: int = 10) -> Iterator[list[tuple[str, Cohort]]]:
    """Yield a simulated cohort of every modality that the baseline applies to, told what a run would tell."""
    unknown = set(cls.modalities) - set(SPECIMENS)
    if unknown or not cls.modalities:
        raise CheckError(f"`modalities` is {cls.modalities!r}.", allowed=f"some of {', '.join(SPECIMENS)}")
    with tempfile.TemporaryDirectory() as folder:
        yield [
            (m, _told(cls, simulated_cohort(Path(folder) / m, n_subjects=n_subjects, **SPECIMENS[m])))
            for m in cls.modalities
        ]


def _told(cls: type[Baseline], cohort: Cohort) -> Cohort:
    return cohort.part(cohort.subjects, COVARIATES if cls.depends_on_task else ())


def _halves(cohort: Cohort) -> tuple[Cohort, Cohort]:
    half = len(cohort.subjects) // 2 + 1
    return cohort.part(cohort.subjects[:half]), cohort.part(cohort.subjects[half:])


def _fitted(cls: type[Baseline], cohort: Cohort) -> Any:
    baseline = build(cls)
    baseline.fit(cohort)
    return baseline


def _rows(baseline: Any, cohort: Cohort) -> NDArray[np.float64]:
    """Return what `transform` gives, where it is an array at all."""
    found = baseline.transform(cohort)
    rows = np.asarray(found)
    if rows.ndim != 2 or rows.dtype == object:
        kind = f"an array of shape {rows.shape}" if isinstance(found, np.ndarray) else f"a {type(found).__name__}"
        raise CheckError(f"`transform` returns {kind}, not an array of (subjects, features).")
    return rows


@functools.cache
def _repeats(cls: type[Baseline]) -> bool:
    """Return whether the same subjects give the same features twice: chance would look like a leak elsewhere."""
    found = []
    with _cohorts(cls) as cohorts:
        train, test = _halves(cohorts[0][1])
        for seed in (1, 2):
            with other_global_state(seed):
                found.append(_rows(_fitted(cls, train), test))
    return _same(*found)


def _skip_chance(cls: type[Baseline]) -> None:
    if not _repeats(cls):
        raise Skip("features change from call to call: see `deterministic`")


def _same(a: NDArray[np.float64], b: NDArray[np.float64]) -> bool:
    scale = max(1.0, float(np.nanmax(np.abs(a), initial=0.0)))
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=0, atol=TOLERANCE * scale, equal_nan=True))


def features(cls: type[Baseline], registry: Registry | None, full: bool) -> str:
    """One row a subject, as many columns for any subjects; NaN only where a subject lacks a unit."""
    problems, found = [], []
    with _cohorts(cls) as cohorts:
        for modality, cohort in cohorts:
            train, test = _halves(cohort)
            try:
                baseline = _fitted(cls, train)
                rows = [_rows(baseline, c) for c in (train, test)]
            except KeyError as error:
                if error.args[0] not in COVARIATES:
                    raise
                raise CheckError(
                    f"reads {error.args[0]!r} of the participants table, which is the target of some task.",
                    next_step="With `depends_on_task = True` it is told the covariates, all but a task's target. "
                    "No baseline is told a target: what predicts it from the features is the probe.",
                ) from error
            incomplete = {r.subject for r in cohort.recordings if not r.present.all()}
            for row, subjects in zip(rows, (train.subjects, test.subjects), strict=True):
                if len(row) != len(subjects):
                    problems.append(f"features have shape {row.shape}, not ({len(subjects)}, features) ({modality})")
                elif not np.issubdtype(row.dtype, np.floating):
                    problems.append(f"features are {row.dtype}, not float ({modality})")
                else:
                    problems += _not_finite(row, subjects, incomplete)
            if not problems and rows[0].shape[1] != rows[1].shape[1]:
                problems.append(f"{rows[0].shape[1]} features for some subjects, {rows[1].shape[1]} for others")
            found.append(f"{rows[0].shape[-1]} features ({modality})")
            if not problems:
                problems += _several_recordings(cls, train, modality)
        if not problems and cls.depends_on_task:
            _each_target_untold(cls, _halves(cohorts[0][1])[0])
    demand(problems)
    return ", ".join(found)


def _several_recordings(cls: type[Baseline], cohort: Cohort, modality: str) -> list[str]:
    """Say what is wrong with the rows of people of whom the first and the last have two recordings."""
    first, *_, last = cohort.recordings
    twice = (first, replace(first, id=f"{first.id}-2"), *cohort.recordings[1:], replace(last, id=f"{last.id}-2"))
    more = replace(cohort, recordings=twice)
    n, shape = len(more.subjects), _rows(_fitted(cls, more), more).shape
    if shape[0] == n:
        return []
    return [
        f"features have shape {shape}, not ({n}, features), where {n} subjects have {len(twice)} recordings: make one "
        f"row a subject of `cohort.recordings_of(subject)` ({modality})"
    ]


def _each_target_untold(cls: type[Baseline], cohort: Cohort) -> None:
    """Fit as for the tasks that predict a covariate, of which each time one is not told."""
    for target in COVARIATES:
        told = cohort.part(cohort.subjects, [c for c in COVARIATES if c != target])
        try:
            _rows(_fitted(cls, told), told)
        except KeyError as error:
            if error.args[0] != target:
                raise
            raise CheckError(
                f"reads {target!r} of the participants table, which is not there where {target!r} is the target.",
                next_step="Take the covariates that are in `cohort.participants`, whichever they are. No baseline is "
                "told a target: what predicts it from the features is the probe.",
            ) from error


def _not_finite(row: NDArray[np.float64], subjects: Sequence[str], incomplete: set[str]) -> list[str]:
    problems = []
    for subject, values in zip(subjects, row, strict=True):
        if np.isinf(values).any():
            problems.append(f"features of {subject} are infinite")
        elif np.isnan(values).any() and subject not in incomplete:
            problems.append(f"features of {subject} are NaN, although no unit is missing")
        elif values.size and np.isnan(values).all():
            problems.append(f"all features of {subject} are NaN, although one unit only is missing")
    return problems


def training_subjects_only(cls: type[Baseline], registry: Registry | None, full: bool) -> str:
    """`fit` learns from the subjects that it is given: it opens no other recording, and others change nothing."""
    problems = []
    with _cohorts(cls) as cohorts:
        for modality, cohort in cohorts:
            train, test = _halves(cohort)
            with watched_files() as seen:
                first = _rows(_fitted(cls, train), train)
            own = {str(r.path) for r in train.recordings}
            foreign = [Path(s.partition(" ")[2]).name for s in seen if s.partition(" ")[2] not in own]
            if foreign:
                problems.append(
                    f"`fit` or `transform` opened {', '.join(dict.fromkeys(foreign))}, which is no recording of the "
                    f"training subjects ({modality})"
                )
            for recording in test.recordings:
                np.save(recording.path, 9.0 * np.load(recording.path, allow_pickle=False)[:, ::-1])
            if _repeats(cls) and not _same(first, _rows(_fitted(cls, train), train)):
                problems.append(
                    f"it is fitted on test rows: other test recordings change what `fit` learns ({modality})"
                )
    demand(problems, "Learn from `cohort.recordings` and `cohort.participants` as given, open nothing else.")
    return ""


def subject_by_subject(cls: type[Baseline], registry: Registry | None, full: bool) -> str:
    """The features of a subject do not depend on who else is in the call, nor on the order."""
    _skip_chance(cls)
    problems = []
    with _cohorts(cls) as cohorts:
        for modality, cohort in cohorts:
            train, test = _halves(cohort)
            baseline = _fitted(cls, train)
            together = _rows(baseline, test)
            alone = np.concatenate([_rows(baseline, test.part([s])) for s in test.subjects])
            everyone = _rows(baseline, cohort)[len(train.subjects) :]
            if not _same(together, alone) or not _same(together, everyone):
                problems.append(
                    f"the features of a subject change with the other subjects in the call: something is fitted on "
                    f"test subjects in `transform` ({modality})"
                )
    demand(problems, "Fit means, scales and components in `fit` alone.")
    return ""


def _renamed(cohort: Cohort) -> Cohort:
    """Return a cohort in which everybody has another name, in the same order."""
    names = {s: f"p{7919 * (i + 1):08d}" for i, s in enumerate(cohort.subjects)}
    people = cohort.participants.rename(index=names)
    recordings = tuple(replace(r, subject=names[r.subject]) for r in cohort.recordings)
    return replace(cohort, participants=people, recordings=recordings)


def signal_only(cls: type[Baseline], registry: Registry | None, full: bool) -> str:
    """Features follow from the signal: not from the participants table, a window's file, or anybody's name."""
    if cls.depends_on_task:
        raise Skip("knows the participants table, and is left out where people are looked for")
    _skip_chance(cls)
    problems = []
    with _cohorts(cls) as cohorts, tempfile.TemporaryDirectory() as folder:
        for modality, cohort in cohorts:
            length = cohort.samples_per_window
            cut = [neutral(r, (7 * i) % (r.n_times - length), length) for i, r in enumerate(cohort.recordings)]
            moved = []
            for i, piece in enumerate(cut):
                path = Path(folder) / f"{modality}-{i}.npy"
                np.save(path, np.asarray(piece.open()))
                moved.append(replace(piece, id=f"window-{i}", path=path, start=0))
            cohorts_of_windows = [replace(cohort, recordings=tuple(pieces)) for pieces in (cut, moved)]
            both = [_rows(_fitted(cls, c), c) for c in cohorts_of_windows]
            if not _same(*both):
                problems.append(
                    f"the features of a window change when it lies in a file of its own: they hold something of the "
                    f"file, such as its length or name, which is the same in all windows of a recording ({modality})"
                )
            if not _same(both[0], _rows(_fitted(cls, named := _renamed(cohorts_of_windows[0])), named)):
                problems.append(
                    f"features change when people are called otherwise: they hold something of the participants' ids, "
                    f"such as their site ({modality})"
                )
    demand(problems, "Read `recording.open()`, and nothing else.")
    return ""


def deterministic(cls: type[Baseline], registry: Registry | None, full: bool) -> str:
    """The same subjects give the same features, whatever was fitted or transformed before."""
    problems = []
    with _cohorts(cls) as cohorts:
        for modality, cohort in cohorts:
            train, test = _halves(cohort)
            with other_global_state(1):
                first = _rows(_fitted(cls, train), test)
            with other_global_state(2):
                used = _fitted(cls, test)
                used.transform(train)
                if not _same(first, _rows(_fitted(cls, train), test)):
                    problems.append(
                        f"the same subjects get other features each time: chance without a seed of its own, such as "
                        f"random_state=0, or global random state ({modality})"
                    )
                    continue
                used.fit(train)
                used.transform(train)
                if not _same(first, _rows(used, test)):
                    problems.append(
                        f"features depend on an earlier `fit` or `transform`: state is carried ({modality})"
                    )
            seeds = seeds_set_by(functools.partial(_fitted(cls, train).transform, test))
            problems += [f"the seed of {name} is set for everybody ({modality})" for name in seeds]
    demand(problems)
    return ""


def cohort_is_left_alone(cls: type[Baseline], registry: Registry | None, full: bool) -> str:
    """Neither the participants table nor the recordings are written to."""
    problems = []
    with _cohorts(cls) as cohorts:
        for modality, cohort in cohorts:
            people = cohort.participants.copy()
            before = [np.load(r.path, allow_pickle=False) for r in cohort.recordings]
            given = replace(cohort, participants=cohort.participants)
            _fitted(cls, given).transform(given)
            if not people.equals(cohort.participants):
                problems.append(f"the participants table is changed ({modality})")
            if any(
                not np.array_equal(a, np.load(r.path, allow_pickle=False), equal_nan=True)
                for a, r in zip(before, cohort.recordings, strict=True)
            ):
                problems.append(f"recordings are changed ({modality})")
    demand(problems)
    return ""


CHECKS: dict[str, Check] = {
    "features": features,
    "training-subjects-only": training_subjects_only,
    "subject-by-subject": subject_by_subject,
    "signal-only": signal_only,
    "deterministic": deterministic,
    "cohort-is-left-alone": cohort_is_left_alone,
}

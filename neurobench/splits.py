"""Folds over subjects: one split for all tasks of a cohort, because they share their pretrainings.

The split depends on the participants and the seed, never on a backbone, a mask or a task.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neurobench.errors import ConfigError, DataError
from neurobench.identity import digest, seed_for
from neurobench.records import Fold

__all__ = ["SplitMode", "check_disjoint", "family_of", "fold_fingerprint", "make_folds", "split_remarks"]

SplitMode = Literal["subjects", "site", "within-recording"]

N_QUANTILES = 4
"""Quantile bins of a numeric column that folds are balanced over."""

MIN_SITE = 10
"""Subjects that a site needs to be tested on its own; where there is a diagnosis, of each class."""

WITHIN_TRAIN, WITHIN_TEST = (0.0, 0.7), (0.75, 1.0)
"""Parts of a recording for training and test. The gap keeps a filter's reach and slow drifts out of the test part."""


def make_folds(cohort_participants: pd.DataFrame, n_folds: int, seed: int, mode: SplitMode) -> tuple[Fold, ...]:
    """Split the subjects of a cohort.

    Parameters
    ----------
    cohort_participants
        Indexed by participant. Of the columns ``site``, ``diagnosis``, ``sex``, ``age`` and ``fluid_intelligence``
        those that exist are balanced over folds, jointly; missing values are one stratum less. Subjects that share a
        value of ``family`` stay together.
    n_folds
        Number of folds; used by ``subjects`` only.
    seed
        Base seed.
    mode
        ``subjects``: every subject is tested once. ``site``: one site is tested at a time; sites below
        :data:`MIN_SITE` are tested together if they suffice together, else they only train
        (:func:`split_remarks` says so); relatives of the tested people are in neither part. ``within-recording``:
        everybody trains with the first part of each recording and is tested on the last.

    Raises
    ------
    ConfigError, DataError
        If there are fewer subjects, families or sites than folds need.
    """
    participants = cohort_participants.sort_index()
    if len(participants) == 0:
        raise DataError(
            "there is no subject to split.", next_step="See `neurobench data check` for why none can be used."
        )
    if not participants.index.is_unique:
        raise DataError(f"participant {participants.index[participants.index.duplicated()][0]!r} is listed twice.")
    subjects = tuple(str(s) for s in participants.index)
    if mode == "within-recording":
        return (Fold(0, subjects, subjects, WITHIN_TRAIN, WITHIN_TEST),)
    if mode == "site":
        folds = _from_tests(subjects, _site_tests(participants))
        return tuple(replace(f, train=_without_relatives(f, participants)) for f in folds)
    if mode == "subjects":
        return _from_tests(subjects, _stratified_tests(participants, n_folds, seed))
    raise ConfigError(f"there is no split {mode!r}.", allowed="subjects, site, within-recording")


def _from_tests(subjects: tuple[str, ...], tests: Sequence[set[str]]) -> tuple[Fold, ...]:
    return tuple(
        Fold(i, tuple(s for s in subjects if s not in test), tuple(s for s in subjects if s in test))
        for i, test in enumerate(tests)
    )


def family_of(participants: pd.DataFrame) -> dict[str, str]:
    """Return the family of everybody who has one."""
    known = participants["family"].dropna() if "family" in participants else pd.Series(dtype=str)
    return {str(s): str(f) for s, f in known.items()}


def _without_relatives(fold: Fold, participants: pd.DataFrame) -> tuple[str, ...]:
    """Return the training subjects of a fold who are no relatives of those tested: a family may live at two sites."""
    family = family_of(participants)
    tested = {family[s] for s in fold.test if s in family}
    return tuple(s for s in fold.train if family.get(s) not in tested)


# ---------------------------------------------------------------- subjects


def _bins(values: pd.Series[Any]) -> pd.Series[Any]:
    """Return quantile bins of a numeric column; missing values stay missing."""
    ranks = pd.to_numeric(values, errors="coerce").astype(float).rank(pct=True)
    return (ranks * N_QUANTILES).apply(np.ceil)


def _strata(participants: pd.DataFrame) -> NDArray[np.float64]:
    """Return (subjects, strata) membership in everything that is balanced; the first stratum is everybody."""
    columns = {c: participants[c] for c in ("site", "diagnosis", "sex") if c in participants}
    columns |= {c: _bins(participants[c]) for c in ("age", "fluid_intelligence") if c in participants}
    # Lists: every seed of a grid is split again in every process that computes some of it.
    labels = {c: [None if pd.isna(v) else str(v) for v in of.tolist()] for c, of in columns.items()}
    strata = [np.ones((len(participants), 1))]
    for name, own in labels.items():
        strata.append(_membership(own))
        if name in ("diagnosis", "age", "fluid_intelligence") and "site" in labels:
            both = zip(labels["site"], own, strict=True)
            strata.append(_membership([None if s is None or o is None else f"{s} × {o}" for s, o in both]))
    return np.hstack(strata)


def _membership(labels: Sequence[str | None]) -> NDArray[np.float64]:
    """Return (subjects, labels) who has which label, in their order; who has none is in no column."""
    known = {label: i for i, label in enumerate(sorted(label for label in set(labels) if label is not None))}
    membership = np.zeros((len(labels), len(known)))
    for row, label in enumerate(labels):
        if label is not None:
            membership[row, known[label]] = 1.0
    return membership


def _stratified_tests(participants: pd.DataFrame, n_folds: int, seed: int) -> list[set[str]]:
    """Place families (or single subjects), those in the rarest strata first, where their strata are least full."""
    if n_folds < 2:
        raise ConfigError(f"{n_folds} fold cannot hold out anybody.", allowed="2 folds or more")
    strata = _strata(participants)
    groups = _families(participants)
    if len(groups) < n_folds:
        what = "families" if "family" in participants else "subjects"
        raise ConfigError(
            f"{n_folds} folds cannot be made of {len(groups)} {what}.",
            allowed=f"2 to {len(groups)} folds" if len(groups) > 1 else "at least 2 subjects",
            next_step="Lower --folds, or see `neurobench data check` for subjects that were left out.",
        )
    rng = np.random.default_rng(seed_for(seed, "split"))
    target = strata.sum(0) / n_folds
    rarest = np.where(strata > 0, target, np.inf).min(1)
    # Large families first, then the rarest stratum; chance decides between equals.
    chance = rng.permutation(len(groups))
    order = sorted(range(len(groups)), key=lambda g: (-len(groups[g]), float(rarest[groups[g]].min()), int(chance[g])))
    capacity = -(-len(participants) // n_folds)
    counts = np.zeros((n_folds, strata.shape[1]))
    tests: list[set[str]] = [set() for _ in range(n_folds)]
    subjects = [str(s) for s in participants.index]
    for g in order:
        members = strata[groups[g]].sum(0)
        load = (members / target * counts).sum(1)
        load[counts[:, 0] + len(groups[g]) > capacity] += len(participants) * strata.shape[1]
        # An empty fold has to be filled while there is somebody left to fill it with.
        fold = int(np.lexsort((rng.permutation(n_folds), counts[:, 0], load.round(9)))[0])
        counts[fold] += members
        tests[fold].update(subjects[i] for i in groups[g])
    return tests


def _families(participants: pd.DataFrame) -> list[NDArray[np.int64]]:
    """Return rows that have to stay together, one array a family; a subject without one is its own."""
    if "family" not in participants:
        return [np.array([i]) for i in range(len(participants))]
    family = participants["family"]
    key = np.where(family.isna(), "subject " + participants.index.astype(str), "family " + family.astype(str))
    _, inverse = np.unique(key.astype(str), return_inverse=True)
    return [np.flatnonzero(inverse == i) for i in range(inverse.max() + 1)]


# ---------------------------------------------------------------- sites


def _suffices(people: pd.DataFrame, classes: Sequence[object]) -> bool:
    if len(people) < MIN_SITE:
        return False
    return all(int((people["diagnosis"] == c).sum()) >= MIN_SITE for c in classes)


def _site_tests(participants: pd.DataFrame) -> list[set[str]]:
    """Return the subjects tested together: one set a site, and one for the small sites if they suffice together."""
    if "site" not in participants or participants["site"].isna().all():
        raise ConfigError(
            "--split site needs a column site, and the participants table has none.",
            allowed="subjects, within-recording",
            next_step="Add the column, or use --split subjects.",
        )
    classes = sorted(participants["diagnosis"].dropna().unique()) if "diagnosis" in participants else []
    by_site = dict(iter(participants.groupby("site", sort=True)))
    large = [p for p in by_site.values() if _suffices(p, classes)]
    small = [p for p in by_site.values() if not _suffices(p, classes)]
    if small and _suffices(pd.concat(small), classes):
        large.append(pd.concat(small))
    tests = [{str(s) for s in p.index} for p in large]
    n_subjects = len(participants)
    if not tests or (len(tests) == 1 and len(tests[0]) == n_subjects):
        counts = ", ".join(f"{name!s} {len(p)}" for name, p in by_site.items())
        each = f" of each diagnosis ({', '.join(map(str, classes))})" if classes else ""
        raise ConfigError(
            f"--split site has no site to test apart from the others: {counts} subjects.",
            allowed=f"sites with at least {MIN_SITE} subjects{each}, and another one to train on",
            next_step="Use --split subjects.",
        )
    return tests


# ---------------------------------------------------------------- what a record says of a split


def split_remarks(cohort_participants: pd.DataFrame, folds: Sequence[Fold]) -> tuple[str, ...]:
    """Return what a reader should know of a split, one sentence each."""
    if any(set(f.train) & set(f.test) for f in folds):
        train, test = folds[0].train_span, folds[0].test_span
        return (
            f"training on {train[0]:.0%} to {train[1]:.0%} of every recording, test on {test[0]:.0%} to {test[1]:.0%}: "
            "the same people, so nothing here says how well it generalises to others",
        )
    tested = {s for f in folds for s in f.test}
    remarks = []
    apart = [len(cohort_participants) - len(f.train) - len(f.test) for f in folds]
    if any(apart):
        remarks.append(
            f"up to {max(apart)} subjects a fold are in neither part: they are relatives of people who are tested there"
        )
    if "site" in cohort_participants:
        # No tables: every seed of a grid is remarked upon before anything begins.
        column = cohort_participants["site"]
        site = {str(s): None if pd.isna(v) else str(v) for s, v in zip(column.index, column.tolist(), strict=True)}
        never = Counter("unknown" if name is None else name for s, name in site.items() if s not in tested)
        for name, n in sorted(never.items()):
            remarks.append(f"the {n} subjects of site {name} are in training only: too few to be tested on their own")
        sites = [{where for s in f.test if (where := site[s]) is not None} for f in folds]
        if sum(map(len, sites)) == len(set().union(*sites)):  # No site in two folds: they were left out one by one.
            remarks += [
                f"sites {', '.join(sorted(together))} are tested together, each is below {MIN_SITE} subjects a class"
                for together in sites
                if len(together) > 1
            ]
    return tuple(remarks)


def fold_fingerprint(folds: Sequence[Fold]) -> str:
    """Return a hash of who is tested when, and on what part of the recordings."""
    return digest([asdict(f) for f in folds])


def check_disjoint(folds: Sequence[Fold], participants: pd.DataFrame | None = None) -> None:
    """Refuse folds that would let training data into a test.

    Parameters
    ----------
    folds
        Of one split.
    participants
        Says in ``family``, where there is one, who belongs together.

    Raises
    ------
    DataError
        If a subject is trained on and tested in one fold on overlapping parts of its recordings, or is tested twice,
        or if a family is in training and in test.
    """
    family = family_of(participants) if participants is not None else {}
    seen: dict[str, int] = {}
    for fold in folds:
        test = set(fold.test)
        alone = {family[s] for s in fold.train if s in family and s not in test}
        shared = sorted(alone & {family[s] for s in test if s in family})
        if shared:
            raise DataError(
                f"fold {fold.index}: {len(shared)} families are in training and in test, among them {shared[0]!r}.",
                allowed="every family on one side of every fold",
            )
        both = sorted(set(fold.train) & set(fold.test))
        spans = sorted([fold.train_span, fold.test_span])
        if both and any(a[1] > b[0] for a, b in pairwise(spans)):
            raise DataError(
                f"fold {fold.index}: {len(both)} subjects are in training and in test, among them {both[0]!r}.",
                allowed="disjoint subjects, or disjoint parts of their recordings",
            )
        if not fold.train or not fold.test:
            raise DataError(f"fold {fold.index} has {len(fold.train)} training and {len(fold.test)} test subjects.")
        for subject in fold.test:
            if subject in seen:
                raise DataError(f"subject {subject!r} is tested twice, in folds {seen[subject]} and {fold.index}.")
            seen[subject] = fold.index

"""Windows that are looked for in a gallery: which rows they become, and how similar they are to its entries."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neurobench.adaptation import fit_predict
from neurobench.contracts import RetrievalTask
from neurobench.errors import DataError, PluginError
from neurobench.identity import digest, file_digest, seed_for
from neurobench.records import Cohort, Fold, Recording, RetrievalWindow
from neurobench.retrieval_scoring import MAX_GALLERY, retrieval_predictions
from neurobench.tokens import statistics
from neurobench.windows import Rows, neutral

__all__ = ["RetrievalRows", "mapped_similarity", "retrieval_rows", "retrieve", "similarity"]

Array = NDArray[np.float64]

CODE = file_digest(Path(__file__))


@dataclass(frozen=True, eq=False)
class RetrievalRows(Rows):
    """A cohort of windows without any column on their people, which would give them away.

    Parameters
    ----------
    labels
        Row to what it belongs to.
    in_gallery, is_query
        Row to whether it is part of a gallery, and whether it is looked for.
    """

    labels: pd.Series[str]
    in_gallery: pd.Series[bool]
    is_query: pd.Series[bool]

    @functools.cached_property
    def scaled(self) -> Cohort:
        """The same with centre and scale of every window its own.

        Those of the recording would be shared by the windows that are to be found and those they are looked for in. And
        what is centred as a whole has parts that make up for each other: the windows of one person would be *unlike*
        (measured: an untrained backbone found 0 of 135 windows of rest BOLD, where 3 are chance).
        """
        return replace(self.cohort, recordings=tuple(_scaled_alone(r) for r in self.cohort.recordings))


def _scaled_alone(piece: Recording) -> Recording:
    centre, scale, robust = statistics(np.nan_to_num(np.asarray(piece.open(), np.float32)))
    return replace(piece, centre=centre, scale=scale, robust_scale=robust)


def retrieval_rows(cohort: Cohort, task: RetrievalTask) -> RetrievalRows:
    """Cut the windows of a task out of a cohort.

    Raises
    ------
    PluginError
        If a window is not there, or is too close to one that it is looked for with.
    DataError
        If fewer than two labels can be looked for.
    """
    chosen = list(task.windows(cohort))
    if problems := list(_problems(cohort, task, chosen)):
        raise PluginError(f"task {task.name} cannot be scored on {cohort.dataset}: {'; '.join(problems[:3])}.")
    if task.gallery_from == "test":
        both = {w.label for w in chosen if w.role == "gallery"} & {w.label for w in chosen if w.role == "query"}
        chosen = [w for w in chosen if w.label in both]
    n_labels = len({w.label for w in chosen})
    if n_labels < 2:
        raise DataError(
            f"nothing can be looked for in {cohort.dataset}: {n_labels} label has a window in the gallery and one to "
            "look for.",
            next_step="Use a shorter --window-s, or see `neurobench data check`.",
        )
    # A row has a number by chance: what it is called must not say whose it is, or that two belong together.
    order = np.random.default_rng(seed_for(0, "split", "retrieval", len(chosen))).permutation(len(chosen))
    rows = []
    for n, i in enumerate(order):
        row, window = f"window-{n:06d}", chosen[i]
        source = cohort.recordings[window.recording]
        piece = neutral(source, window.start, cohort.samples_per_window)
        rows.append((row, source.subject, window, replace(piece, id=row, subject=row)))
    index = pd.Index([r[0] for r in rows], name=cohort.participants.index.name)
    derived = replace(
        cohort,
        participants=pd.DataFrame(index=index),
        recordings=tuple(r[3] for r in rows),
        fingerprint=digest(
            [CODE, cohort.fingerprint, [[r[0], r[2].recording, r[2].start, r[2].label, r[2].role] for r in rows]]
        ),
    )
    return RetrievalRows(
        derived,
        pd.Series([r[1] for r in rows], index=index),
        pd.Series([r[2].label for r in rows], index=index),
        pd.Series([r[2].role != "query" for r in rows], index=index),
        pd.Series([r[2].role != "gallery" for r in rows], index=index),
    )


def _problems(cohort: Cohort, task: RetrievalTask, windows: Sequence[RetrievalWindow]) -> Iterator[str]:
    """Yield what is wrong with the windows of a task."""
    length, seen = cohort.samples_per_window, set()
    owner: dict[str, str] = {}
    for w in windows:
        if not 0 <= w.recording < len(cohort.recordings):
            yield f"there is no recording {w.recording}"
            continue
        recording = cohort.recordings[w.recording]
        if not 0 <= w.start <= recording.n_times - length:
            yield f"a window from sample {w.start} does not lie in {recording.id}, which has {recording.n_times}"
        if w.role not in ("gallery", "query", "both") or not w.label:
            yield f"a window of {recording.id} has the role {w.role!r} and the label {w.label!r}"
        if (w.recording, w.start) in seen:
            yield f"the window from sample {w.start} of {recording.id} is there twice"
        seen.add((w.recording, w.start))
        if task.gallery_from == "test":
            if w.role == "both":
                yield f"a window of {recording.id} is looked for among windows that it is one of"
            if owner.setdefault(w.label, recording.subject) != recording.subject:
                yield f"label {w.label!r} belongs to two people, and galleries are made of the people themselves"
    if task.gallery_from == "test":
        yield from _too_close(cohort, task, windows)


def _too_close(cohort: Cohort, task: RetrievalTask, windows: Sequence[RetrievalWindow]) -> Iterator[str]:
    least = cohort.samples_per_window + task.MIN_GAP_PATCHES * cohort.samples_per_patch
    starts: dict[int, dict[str, list[int]]] = {}
    for w in windows:
        starts.setdefault(w.recording, {"gallery": [], "query": [], "both": []})[w.role].append(w.start)
    for number, found in starts.items():
        apart = [abs(a - b) for a in found["gallery"] for b in found["query"]]
        if apart and min(apart) < least:
            gap = (min(apart) - cohort.samples_per_window) / cohort.sfreq
            yield (
                f"a window of {cohort.recordings[number].id} is looked for {gap:g} s from one in the gallery, and the "
                f"filter alone makes neighbours alike: at least {task.MIN_GAP_PATCHES} patches "
                f"({task.MIN_GAP_PATCHES * cohort.samples_per_patch / cohort.sfreq:g} s) have to lie between"
            )


# ---------------------------------------------------------------- similarity


def similarity(x: Array, train: NDArray[np.int64], entries: Array, queries: NDArray[np.int64]) -> Array:
    """Return (queries, entries) cosines of features that are standardised by the training rows alone.

    Parameters
    ----------
    x
        (rows, features); NaN where a unit is missing, which then counts as the training mean.
    train, queries
        Numbers of rows: of training subjects, and of what is looked for.
    entries
        (entries, rows) the share of every row in each entry of the gallery.
    """
    known = np.isfinite(x[train])
    n = np.maximum(known.sum(0), 1)
    mean = np.where(known, x[train], 0.0).sum(0) / n
    spread = np.sqrt((np.where(known, x[train] - mean, 0.0) ** 2).sum(0) / n)
    # What varies by rounding errors alone in training subjects says nothing, and would be blown up.
    varies = spread > 1e-6 * np.maximum(np.abs(mean), 1e-30)
    used = np.flatnonzero((entries > 0).any(0))
    place = np.zeros(len(x), np.int64)
    place[used] = np.arange(len(used))

    def scaled(rows: NDArray[np.int64]) -> Array:
        z: Array = (x[rows][:, varies] - mean[varies]) / spread[varies]
        return np.where(np.isfinite(z), z, 0.0)

    return np.asarray(_unit(scaled(queries)) @ _unit(entries[:, used] @ scaled(used)).T)


def mapped_similarity(
    x: Array,
    train: NDArray[np.int64],
    truth: NDArray[np.int64],
    known: Array,
    queries: NDArray[np.int64],
    groups: Sequence[str],
    seed: int,
) -> Array:
    """Return (queries, entries) cosines of what a ridge makes of features with embeddings of the entries.

    Parameters
    ----------
    x, queries
        As for :func:`similarity`.
    train, truth
        Numbers of the rows that the ridge is fitted on, and of the entry that each belongs to.
    known
        (entries, dimensions).
    groups
        Whom inner folds keep together, one a row of ``train``.
    seed
        Of the inner folds.
    """
    # Within what entries differ by: at most one dimension less than there are entries, and all that cosines depend on.
    u, s, _ = np.linalg.svd(known - known.mean(0), full_matrices=False)
    kept = s > 1e-9 * max(float(s.max(initial=0.0)), 1e-300)
    targets = (u * s)[:, kept]
    said = [
        fit_predict(x[train], targets[truth, k], x[queries], "regression", seed, groups=list(groups)).values
        for k in range(targets.shape[1])
    ]
    return _unit(np.stack(said, 1)) @ _unit(targets).T if said else np.zeros((len(queries), len(known)))


def _unit(z: Array) -> Array:
    norm = np.linalg.norm(z, axis=1, keepdims=True)
    return np.asarray(np.divide(z, norm, out=np.zeros_like(z), where=norm > 1e-12))


def retrieve(
    task: RetrievalTask, rows: RetrievalRows, fold: Fold, names: Sequence[str], x: Array, *, seed: int
) -> pd.DataFrame:
    """Look for every held-out query of a fold in its gallery.

    Parameters
    ----------
    task, rows
        What is looked for.
    fold
        Over subjects.
    names, x
        Rows and their (rows, features).
    seed
        Base seed: draws the entries of a gallery that would be too large, the same ones for every row.

    Returns
    -------
    DataFrame
        See :func:`neurobench.retrieval_scoring.retrieval_predictions`.

    Raises
    ------
    DataError
        If the gallery of the fold has fewer than two entries, or there is nothing to look for.
    """
    place = {row: i for i, row in enumerate(names)}
    train, test = rows.of(fold.train), rows.of(fold.test)
    own = test if task.gallery_from == "test" else train
    members: dict[str, dict[str, list[str]]] = {}
    for row in own:
        if rows.in_gallery[row]:
            members.setdefault(rows.labels[row], {}).setdefault(rows.subjects[row], []).append(row)
    labels = sorted(members)
    if len(labels) > min(task.max_gallery, MAX_GALLERY):
        rng = np.random.default_rng(seed_for(seed, "split", "gallery", fold.index))
        labels = sorted(rng.choice(labels, min(task.max_gallery, MAX_GALLERY), replace=False).tolist())
    queries = [row for row in test if rows.is_query[row] and rows.labels[row] in set(labels)]
    if len(labels) < 2 or not queries:
        raise DataError(
            f"fold {fold.index + 1} has {len(labels)} entries in its gallery and {len(queries)} windows to look for.",
            allowed="two entries or more, and a window that belongs to one of them",
            next_step="Use fewer --folds, a shorter --window-s, or more subjects.",
        )
    wanted = np.array([place[r] for r in queries], np.int64)
    known = task.embeddings(labels) if task.gallery_from == "train" else None
    entries = np.zeros((len(labels), len(x)))
    for k, label in enumerate(labels):
        # Everybody counts alike, however many windows they have.
        for windows in members[label].values():
            entries[k, [place[r] for r in windows]] = 1 / (len(windows) * len(members[label]))
    if known is None:
        cosines = similarity(x, np.array([place[r] for r in train]), entries, wanted)
    else:
        learned = [r for r in train if rows.in_gallery[r] and rows.labels[r] in set(labels)]
        truth_of = np.array([labels.index(rows.labels[r]) for r in learned])
        people = rows.subjects.loc[learned].tolist()
        inner = seed_for(seed, "probe", "retrieval", fold.index)
        cosines = mapped_similarity(x, np.array([place[r] for r in learned]), truth_of, known, wanted, people, inner)
    # A person is a number: names of people are in one column alone, which can be exchanged for pseudonyms.
    shown = labels if task.gallery_from == "train" else [f"{k:03d}" for k in range(len(labels))]
    truth = [shown[labels.index(rows.labels[r])] for r in queries]
    return retrieval_predictions(
        queries,
        rows.subjects.loc[queries].tolist(),
        fold.index,
        truth,
        cosines,
        shown,
        shared=task.gallery_from == "train",
    )

"""Scores of what is looked for in a gallery, from similarities: top-1, mean average precision, chance, permutations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy
from numpy.typing import NDArray

from neurobench.contracts import RetrievalTask
from neurobench.errors import ConfigError, DataError
from neurobench.identity import seed_for
from neurobench.scoring import (
    N_BOOTSTRAP,
    N_PERMUTATIONS,
    MetricScore,
    Score,
    bootstrap_weights,
    permute_within,
)
from neurobench.window_scoring import HeldOut, exchanged_within, metric_score

__all__ = [
    "MAX_GALLERY",
    "entry_columns",
    "retrieval_predictions",
    "score_retrieval_task",
    "subject_values",
]

Array = NDArray[np.float64]

PREFIX = "s["
"""Start of the columns ``s[rest]`` that hold similarities to the entries of a gallery."""

MAX_GALLERY = 150
"""Entries of a gallery at most: predictions keep one column each."""

AT_ONCE = 100
"""Permutations that are computed together: queries times permutations is what takes memory."""


def entry_columns(predictions: pd.DataFrame) -> list[str]:
    """Return the columns of a table of predictions that hold similarities; none if it is another table."""
    return [c for c in predictions.columns if c.startswith(PREFIX)]


def retrieval_predictions(
    rows: Sequence[str],
    subjects: Sequence[str],
    fold: int,
    truth: Sequence[str],
    cosines: Array,
    entries: Sequence[str],
    *,
    shared: bool,
) -> pd.DataFrame:
    """Return held-out similarities as a table: one row a query, one column ``s[entry]`` an entry of its gallery.

    Parameters
    ----------
    rows, subjects, truth
        (queries,) window, whose it is, and the entry that it belongs to.
    fold
        Number of the fold.
    cosines, entries
        (queries, entries) similarities, and the entries' names.
    shared
        Whether people share labels: scores are then averaged over labels (column ``part``).
    """
    table = pd.DataFrame({"window": list(rows), "participant_id": list(subjects), "fold": fold, "truth": list(truth)})
    table["part"] = list(truth) if shared else ""
    table["n_gallery"] = len(entries)
    # What differs in the tenth decimal is a tie, on every machine.
    rounded = pd.DataFrame(np.round(cosines, 9) + 0.0, columns=[f"{PREFIX}{e}]" for e in entries])
    return pd.concat([table, rounded], axis=1)


# ---------------------------------------------------------------- queries as arrays


@dataclass(frozen=True, eq=False)
class _Queries:
    """Held-out queries, sorted by window.

    Parameters
    ----------
    cosines, allowed
        (queries, entries) similarities, 0 where an entry is not in the gallery of the query's fold; whether it is.
    same_site
        (queries, entries) whether an entry is of the query's site; None where entries are no people, or sites unknown.
    truth, subject, fold, part
        (queries,) numbers.
    site
        (queries,) name, empty where unknown.
    subjects, parts
        Names.
    family
        (subjects,) numbers; None: everybody alone.
    """

    cosines: Array
    allowed: NDArray[np.bool_]
    same_site: NDArray[np.bool_] | None
    truth: NDArray[np.int64]
    subject: NDArray[np.int64]
    fold: NDArray[np.int64]
    part: NDArray[np.int64]
    site: NDArray[np.str_]
    subjects: tuple[str, ...]
    parts: tuple[str, ...]
    family: NDArray[np.int64] | None

    @property
    def shared(self) -> bool:
        """Whether people share labels."""
        return self.parts != ("",)


def _queries(predictions: pd.DataFrame) -> _Queries:
    h = HeldOut.of(predictions, PREFIX, belongs_to="entries", done="looked for")
    table, allowed = h.table, np.isfinite(h.values)
    if not allowed[np.arange(len(h.truth)), h.truth].all() or (allowed.sum(1) != table["n_gallery"]).any():
        raise DataError("similarities to entries of a gallery are missing, or its size is not what it says.")
    if (allowed != allowed[table.groupby("fold")["fold"].transform("idxmin").to_numpy()]).any():
        raise DataError("queries of one fold are looked for in different galleries.")
    parts, part = np.unique(table["part"].fillna("").astype(str), return_inverse=True)
    site = table["site"].fillna("").astype(str).to_numpy(str) if "site" in table else np.full(len(table), "")
    same = None
    if parts.tolist() == [""] and len(set(site) - {""}) > 1:
        # An entry's people are looked for themselves, so that it is known where they are from.
        of_entry = np.full((h.fold.max() + 1, len(h.names)), "", dtype=site.dtype)
        of_entry[h.fold, h.truth] = site
        same = allowed & (of_entry[h.fold] == site[:, None]) & (site != "")[:, None]
    return _Queries(
        cosines=np.where(allowed, h.values, 0.0),
        allowed=allowed,
        same_site=same,
        truth=h.truth,
        subject=h.subject,
        fold=h.fold,
        part=part.astype(np.int64),
        site=site,
        subjects=h.subjects,
        parts=tuple(parts.tolist()),
        family=h.family,
    )


# ---------------------------------------------------------------- what an entry is worth


def _credits(cosines: Array, allowed: NDArray[np.bool_]) -> dict[str, Array]:
    """Return (queries, entries): what each entry is worth if it is the right one; ties are split.

    ``top1``: 1 at the first place. ``mean_ap``: 1 / rank, which is the precision at the one entry that is right. Of
    tied entries each has the mean over the places that they share.
    """
    values = np.where(allowed, cosines, -2.0)
    first = scipy.stats.rankdata(-values, method="min", axis=1).astype(np.int64)
    n_tied = scipy.stats.rankdata(-values, method="max", axis=1).astype(np.int64) - first + 1
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, values.shape[1] + 1))])
    precision = (harmonic[first - 1 + n_tied] - harmonic[first - 1]) / n_tied
    top = np.where(first == 1, 1 / n_tied, 0.0)
    return {"top1": np.where(allowed, top, 0.0), "mean_ap": np.where(allowed, precision, 0.0)}


def _chance(name: str, allowed: NDArray[np.bool_]) -> Array:
    """Return (queries,) the mean worth of an entry that is drawn at random: 1 / n, or H(n) / n."""
    n = allowed.sum(1)
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, allowed.shape[1] + 1))])
    expected: Array = (1.0 if name == "top1" else harmonic[n]) / np.maximum(n, 1)
    return expected


def _by_subject(q: _Queries, values: Array, counted: NDArray[np.bool_] | None = None) -> tuple[Array, Array]:
    """Return (parts, subjects) the mean of (queries,) values, 0 without any, and 1 where there are some."""
    counted = np.ones(len(values), bool) if counted is None else counted
    total, n = np.zeros((2, len(q.parts), len(q.subjects)))
    np.add.at(total, (q.part, q.subject), np.where(counted, values, 0.0))
    np.add.at(n, (q.part, q.subject), counted.astype(float))
    return np.divide(total, n, out=np.zeros_like(total), where=n > 0), (n > 0).astype(float)


def _ratio(above: Array, below: Array, weights: Array) -> Array:
    """Return (draws,) the mean over parts of means over subjects under (draws, subjects) weights."""
    up, down = weights @ above.T, weights @ below.T
    each = np.divide(up, down, out=np.full(up.shape, np.nan), where=down > 1e-12)
    mean: Array = each.mean(-1)
    return mean


def _function(name: str) -> str:
    if name not in ("top1", "mean_ap"):
        raise ConfigError(f"there is no metric {name!r} of retrieval.", allowed="top1, mean_ap")
    return name


def subject_values(predictions: pd.DataFrame, metric: str) -> tuple[tuple[str, ...], NDArray[np.int64], Array, Array]:
    """Return subjects, their folds, and (parts, subjects) values and whether there are any.

    A score is the mean over parts of the means over subjects. Where people are looked for there is one part.
    """
    q = _queries(predictions)
    worth = _credits(q.cosines, q.allowed)[_function(metric)]
    first = np.unique(q.subject, return_index=True)[1]
    above, below = _by_subject(q, worth[np.arange(len(q.truth)), q.truth])
    return q.subjects, q.fold[first], above, below


# ---------------------------------------------------------------- score


def score_retrieval_task(
    task: RetrievalTask,
    predictions: pd.DataFrame,
    *,
    seed: int,
    n_bootstrap: int = N_BOOTSTRAP,
    n_permutations: int = N_PERMUTATIONS,
) -> Score:
    """Score held-out similarities.

    Parameters
    ----------
    task
        Says which metrics, the headline first.
    predictions
        As :func:`retrieval_predictions` makes them, and where known ``site`` and ``family``.
    seed
        Base seed; the bootstrap draws the same subjects for every row.
    n_bootstrap, n_permutations
        Draws of subjects against the galleries as they are, and of labels against the similarities as they are: people
        are exchanged within their site and fold, shared labels within each subject, as wholes.

    Returns
    -------
    Score
        The task's metrics; of people at several sites also ``top1_within_site``, for which the gallery holds the people
        of the query's site alone; of shared labels ``recall[label]`` of each.

    Raises
    ------
    DataError
        If a window is looked for twice, a subject in two folds, or a similarity is missing.
    """
    q = _queries(predictions)
    rows, n = np.arange(len(q.truth)), len(q.subjects)
    ones = np.ones((1, n))
    draws = bootstrap_weights(n, n_bootstrap, seed, q.family)
    folds = (q.fold[np.unique(q.subject, return_index=True)[1]] == np.unique(q.fold)[:, None]).astype(float)
    permuted = _permuted(q, seed, n_permutations)
    worth = _credits(q.cosines, q.allowed)
    metrics: dict[str, MetricScore] = {}
    per_fold: dict[str, tuple[float | None, ...]] = {}

    def scored(
        worth: Array, chance: Array, counted: NDArray[np.bool_] | None = None
    ) -> tuple[MetricScore, Array, Array]:
        above, below = _by_subject(q, worth[rows, q.truth], counted)
        level = _ratio(*_by_subject(q, chance, counted), ones)[0]
        null = _null(q, worth, permuted, counted)
        value, drawn = _ratio(above, below, ones)[0], _ratio(above, below, draws)
        return metric_score(value, drawn, int(below.any(0).sum()), float(level), null), above, below

    for metric in task.metrics:
        name = _function(metric.name)
        metrics[name], above, below = scored(worth[name], _chance(name, q.allowed))
        per_fold[name] = tuple(float(v) if math.isfinite(v) else None for v in _ratio(above, below, folds))
    sizes = sorted(set(q.allowed.sum(1).tolist()))
    size = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    notes = [f"gallery of {size} entries, of each fold its own; {len(rows)} windows of {n} people are looked for"]
    if q.same_site is not None and (counted := q.same_site.sum(1) > 1).any():
        near = _credits(q.cosines, q.same_site)["top1"]
        metrics["top1_within_site"] = scored(near, _chance("top1", q.same_site), counted)[0]
        counts = q.same_site.sum(1)[counted]
        notes.append(
            f"within sites a gallery has {counts.min()} to {counts.max()} entries; p exchanges people of one site, so "
            "that telling sites apart is no evidence of telling people apart"
        )
    if q.shared:
        above, below = _by_subject(q, worth["top1"][rows, q.truth])
        level, _ = _by_subject(q, _chance("top1", q.allowed))
        for k, name in enumerate(q.parts):
            one = above[k : k + 1], below[k : k + 1]
            chance = float(_ratio(level[k : k + 1], one[1], ones)[0])
            metrics[f"recall[{name}]"] = metric_score(_ratio(*one, ones)[0], _ratio(*one, draws), n, chance)
        notes.append("labels are exchanged within subjects for p; recall is the share of a label's windows found first")
    headline = metrics[task.metrics[0].name]
    return Score(
        headline=task.metrics[0].name,
        metrics=metrics,
        per_fold=per_fold,
        n_subjects=n,
        p_value=headline.p_value,
        above_chance=headline.above_chance,
        notes=tuple(notes),
    )


def _permuted(q: _Queries, seed: int, n_permutations: int) -> NDArray[np.int64]:
    """Return (permutations, queries) entries that queries would belong to."""
    rng = np.random.default_rng(seed_for(seed, "permutation", "retrieval", len(q.truth)))
    if q.shared:
        return exchanged_within(q.truth, q.subject, q.cosines.shape[1], n_permutations, rng)
    # What is exchanged are entries: of somebody who has several all together, and of families as wholes.
    keys = q.fold * q.cosines.shape[1] + q.truth
    _, first, unit = np.unique(keys, return_index=True, return_inverse=True)
    together = q.subject if q.family is None else q.family[q.subject]
    where = np.array([f"{f} {s}" for f, s in zip(q.fold[first], q.site[first], strict=True)])
    drawn = permute_within(q.truth[first].astype(float), where, together[first], n_permutations, rng)
    entries: NDArray[np.int64] = drawn.astype(np.int64)[:, unit]
    return entries


def _null(q: _Queries, worth: Array, permuted: NDArray[np.int64], counted: NDArray[np.bool_] | None) -> Array:
    """Return (permutations,) values under exchanged labels: a label is averaged where it went to."""
    n_parts, n_subjects = len(q.parts), len(q.subjects)
    counted = np.ones(len(q.truth), bool) if counted is None else counted
    windows = np.zeros((n_parts, n_subjects))
    np.add.at(windows, (q.part, q.subject), counted.astype(float))
    people = (windows > 0).sum(1)
    share = counted / np.maximum(windows[q.part, q.subject], 1)
    rows = np.arange(len(q.truth))
    # An entry's number to the people of its part: all of them, or those who have a window of that label.
    of_entry = np.full(worth.shape[1], float(max(int(people[0]), 1)))
    if q.shared:
        of_entry[q.truth] = people[q.part]
    chunks = [permuted[i : i + AT_ONCE] for i in range(0, len(permuted), AT_ONCE)]
    values = [(worth[rows, p] / of_entry[p]) @ share / n_parts for p in chunks]
    return np.concatenate(values) if values else np.empty(0)

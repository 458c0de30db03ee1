"""Scores of windows told apart: two classes or more, with intervals and permutations over subjects."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neurobench.contracts import WindowTask
from neurobench.errors import ConfigError, DataError
from neurobench.identity import seed_for
from neurobench.metrics import auroc, mean_over
from neurobench.scoring import (
    N_BOOTSTRAP,
    N_PERMUTATIONS,
    MetricScore,
    Score,
    bootstrap_weights,
    family_numbers,
    percentile_interval,
)

__all__ = [
    "HeldOut",
    "WindowRow",
    "class_columns",
    "exchanged_within",
    "metric_score",
    "score_window_task",
    "window_hits",
    "window_predictions",
]

Array = NDArray[np.float64]

PREFIX = "p["
"""Start of the columns ``p[rest]`` that hold probabilities."""

AT_ONCE = 50
"""Draws that are computed together: rows times draws is what takes memory."""


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Held-out predictions with a column for everything that a window may belong to, sorted by window.

    Parameters
    ----------
    table, names, values
        The rows; what columns are of, and (rows, names) what they hold.
    truth, subject, fold
        (rows,) numbers of the name, the subject and the fold.
    subjects, family
        Names, and (subjects,) numbers of families; None: everybody alone.
    """

    table: pd.DataFrame
    names: tuple[str, ...]
    values: Array
    truth: NDArray[np.int64]
    subject: NDArray[np.int64]
    fold: NDArray[np.int64]
    subjects: tuple[str, ...]
    family: NDArray[np.int64] | None

    @classmethod
    def of(cls, predictions: pd.DataFrame, prefix: str, *, belongs_to: str, done: str) -> HeldOut:
        """Check and number the rows of a table.

        Parameters
        ----------
        predictions
            As a task's runner wrote them.
        prefix
            Start of the columns, as in ``p[rest]``.
        belongs_to, done
            What columns are of, and what was done with a window, for messages.

        Raises
        ------
        DataError
            If there is nothing, a window is there twice, a subject in two folds, or a true name without a column.
        """
        columns = [c for c in predictions.columns if c.startswith(prefix)]
        names = tuple(c[len(prefix) : -1] for c in columns)
        if len(predictions) == 0 or len(names) < 2:
            raise DataError(f"there is nothing to score: {len(predictions)} windows, {len(names)} {belongs_to}.")
        table = predictions.sort_values("window").reset_index(drop=True)
        if (twice := table["window"].duplicated()).any():
            raise DataError(f"window {table['window'][twice].iloc[0]!r} is {done} twice.")
        folds = table.groupby("participant_id")["fold"].nunique()
        if (folds > 1).any():
            raise DataError(f"windows of subject {folds.index[folds > 1][0]!r} are {done} in {folds.max()} folds.")
        if not (known := table["truth"].isin(names)).all():
            raise DataError(
                f"window {table['window'][~known].iloc[0]!r} belongs to {table['truth'][~known].iloc[0]!r}, which is "
                f"none of the {belongs_to}.",
                allowed=", ".join(names[:10]),
            )
        subjects, subject = np.unique(table["participant_id"].astype(str), return_inverse=True)
        first = np.unique(subject, return_index=True)[1]
        return cls(
            table=table,
            names=names,
            values=table[columns].to_numpy(float),
            truth=np.array([names.index(t) for t in table["truth"]], np.int64),
            subject=subject.astype(np.int64),
            fold=np.unique(table["fold"], return_inverse=True)[1].astype(np.int64),
            subjects=tuple(subjects.tolist()),
            family=family_numbers(table["family"].iloc[first]) if "family" in table else None,
        )


@dataclass(frozen=True, eq=False)
class _Windows:
    """Held-out predictions of windows.

    Parameters
    ----------
    truth, subject, fold
        (rows,) class, number of the subject and of the fold; truth may be (permutations, rows).
    probability
        (rows, classes).
    names, subjects
        Of classes and subjects.
    family
        (subjects,) numbers of families; None: everybody alone.
    """

    truth: NDArray[np.int64]
    subject: NDArray[np.int64]
    fold: NDArray[np.int64]
    probability: Array
    names: tuple[str, ...]
    subjects: tuple[str, ...]
    family: NDArray[np.int64] | None = None

    @property
    def said(self) -> Array:
        """(rows, classes) share of each class among the most probable ones: a tie is split."""
        top: Array = (self.probability >= self.probability.max(1, keepdims=True) - 1e-12).astype(float)
        shares: Array = top / top.sum(1, keepdims=True)
        return shares

    @property
    def hits(self) -> Array:
        """(rows,) 1 where the most probable class is the true one; as ``truth``, (permutations, rows)."""
        right: Array = self.said[np.arange(len(self.probability)), self.truth]
        return right


def class_columns(predictions: pd.DataFrame) -> list[str]:
    """Return the columns of a table of predictions that hold probabilities of classes; none if it is another table."""
    return [c for c in predictions.columns if c.startswith(PREFIX)]


def window_predictions(
    rows: Sequence[str],
    subjects: Sequence[str],
    fold: int,
    truth: Sequence[str],
    probability: Array,
    names: Sequence[str],
) -> pd.DataFrame:
    """Return held-out predictions as a table: one row a window, one column ``p[class]`` a class."""
    table = pd.DataFrame({"window": rows, "participant_id": subjects, "fold": fold, "truth": truth})
    return table.assign(**{f"{PREFIX}{n}]": probability[:, k] for k, n in enumerate(names)})


def _windows(predictions: pd.DataFrame) -> _Windows:
    h = HeldOut.of(predictions, PREFIX, belongs_to="classes", done="predicted")
    if not np.isfinite(h.values).all():
        raise DataError("a probability is not a number.", allowed=", ".join(h.names))
    return _Windows(h.truth, h.subject, h.fold, h.values, h.names, h.subjects, h.family)


_Function = Callable[[_Windows, Array], Array]
"""Takes windows and (draws, rows) weights; returns (draws,)."""


def _recalls(w: _Windows, weights: Array) -> Array:
    """Return (classes, draws) the share of each class's windows that is recognised; NaN where none was drawn."""
    hits = w.hits
    recalls: Array = np.stack([mean_over(hits, weights * (w.truth == k)) for k in range(len(w.names))])
    return recalls


def _balanced_accuracy(w: _Windows, weights: Array) -> Array:
    mean: Array = _recalls(w, weights).mean(0)
    return mean


def _macro_auroc(w: _Windows, weights: Array) -> Array:
    """Mean over classes of each against all others."""
    each = [auroc((w.truth == k).astype(float), w.probability[:, k], weights) for k in range(len(w.names))]
    mean: Array = np.stack(each).mean(0)
    return mean


_FUNCTIONS: dict[str, _Function] = {"balanced_accuracy": _balanced_accuracy, "macro_auroc": _macro_auroc}


def _function(name: str) -> _Function:
    if name not in _FUNCTIONS:
        raise ConfigError(f"there is no metric {name!r} of windows.", allowed=", ".join(_FUNCTIONS))
    return _FUNCTIONS[name]


def _draw(function: Callable[[_Windows, Array], Array], w: _Windows, draws: Array) -> Array:
    """Return a function's values for (draws, subjects) weights of subjects, some draws at a time."""
    parts = [function(w, draws[i : i + AT_ONCE][:, w.subject]) for i in range(0, len(draws), AT_ONCE)]
    return np.concatenate(parts, -1)


def score_window_task(
    task: WindowTask,
    predictions: pd.DataFrame,
    *,
    seed: int,
    n_bootstrap: int = N_BOOTSTRAP,
    n_permutations: int = N_PERMUTATIONS,
) -> Score:
    """Score held-out predictions of windows.

    Parameters
    ----------
    task
        Says which metrics, the headline first.
    predictions
        As :func:`window_predictions` makes them, every subject in one fold.
    seed
        Base seed; the bootstrap draws the same subjects for every row.
    n_bootstrap, n_permutations
        Draws of subjects, and of classes exchanged within each subject with predictions held fixed.

    Returns
    -------
    Score
        The task's metrics, and ``recall[class]`` of every class.

    Raises
    ------
    DataError
        If a window is predicted twice, a subject is tested in two folds, or a number is missing.
    """
    w = _windows(predictions)
    n, n_classes = len(w.subjects), len(w.names)
    ones = np.ones((1, len(w.truth)))
    draws = bootstrap_weights(n, n_bootstrap, seed, w.family)
    folds = (w.fold == np.arange(w.fold.max() + 1)[:, None]).astype(float)
    metrics: dict[str, MetricScore] = {}
    per_fold: dict[str, tuple[float | None, ...]] = {}
    functions = {m.name: _function(m.name) for m in task.metrics}
    permuted = _permuted(w, seed, n_permutations)
    for metric in task.metrics:
        function = functions[metric.name]
        chance = metric.chance if math.isfinite(metric.chance) else 1 / n_classes
        value = function(w, ones)[0]
        null = np.concatenate([function(p, ones) for p in permuted]) if permuted else np.empty(0)
        metrics[metric.name] = metric_score(value, _draw(function, w, draws), n, chance, null)
        per_fold[metric.name] = tuple(float(v) if math.isfinite(v) else None for v in function(w, folds))
    # No p-value of a single recall: whoever always says one class recognises all of it.
    recall, recall_draws = _recalls(w, ones)[:, 0], _draw(_recalls, w, draws)
    for k, name in enumerate(w.names):
        metrics[f"recall[{name}]"] = metric_score(recall[k], recall_draws[k], n, 1 / n_classes)
    headline = metrics[task.metrics[0].name]
    counts = np.bincount(w.truth, minlength=n_classes)
    shown = ", ".join(f"{name} {count}" for name, count in zip(w.names, counts, strict=True))
    return Score(
        headline=task.metrics[0].name,
        metrics=metrics,
        per_fold=per_fold,
        n_subjects=n,
        p_value=headline.p_value,
        above_chance=headline.above_chance,
        notes=(
            f"windows: {shown}; {n_classes} classes, exchanged within subjects for p",
            "classes are recordings of their own: what else changed between them, such as the position of the head, "
            "tells them apart as well",
        ),
    )


def window_hits(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return one row a window: ``participant_id``, ``truth``, and ``hit``: 1 where its most probable class is true."""
    w = _windows(predictions)
    names, people = np.array(w.names), np.array(w.subjects)
    return pd.DataFrame({"participant_id": people[w.subject], "truth": names[w.truth], "hit": w.hits})


def metric_score(value: float, draws: Array, n_subjects: int, chance: float, null: Array | None = None) -> MetricScore:
    """Return a metric with its interval, and its p-value where there is a null distribution; higher is better."""
    # Drawing one subject again and again is no interval.
    defined = math.isfinite(value)
    low, high = percentile_interval(draws) if defined and n_subjects > 1 else (None, None)
    p_value, above = None, None
    if defined and null is not None:
        # Undefined ones count as at least as good.
        p_value = float((np.sum(~(null < value - 1e-12)) + 1) / (len(null) + 1))
        above = None if low is None else low > chance and p_value < 0.05
    return MetricScore(float(value) if defined else None, low, high, "", True, chance, p_value, above)


def _permuted(w: _Windows, seed: int, n_permutations: int) -> list[_Windows]:
    """Return the windows with the classes of each subject exchanged for one another, as wholes; some draws at a time.

    Windows of one recording are alike, whatever its class: permuted one by one they would look as if there were as many
    independent observations as windows, and p-values would be far too small.
    """
    rng = np.random.default_rng(seed_for(seed, "permutation", "windows", len(w.truth)))
    truth = exchanged_within(w.truth, w.subject, len(w.names), n_permutations, rng)
    return [replace(w, truth=truth[i : i + AT_ONCE]) for i in range(0, n_permutations, AT_ONCE)]


def exchanged_within(
    truth: NDArray[np.int64],
    subject: NDArray[np.int64],
    n_classes: int,
    n_permutations: int,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Return (permutations, rows) classes, those of each subject exchanged for one another as wholes.

    Parameters
    ----------
    truth, subject
        (rows,) numbers of class and subject.
    n_classes, n_permutations, rng
        How many there are, how many are drawn, and by what.
    """
    n_subjects = int(subject.max()) + 1
    holds = np.zeros((n_subjects, n_classes), bool)
    holds[subject, truth] = True
    # Class to class, (permutations, subjects, classes); a class that a subject does not have stays where it is.
    becomes = np.tile(np.arange(n_classes), (n_permutations, n_subjects, 1))
    for pattern in np.unique(holds, axis=0):
        alike = np.flatnonzero((holds == pattern).all(1))
        own = np.flatnonzero(pattern)
        turned = rng.permuted(np.tile(own, (n_permutations, len(alike), 1)), axis=-1)
        becomes[:, alike[:, None], own] = turned
    exchanged: NDArray[np.int64] = becomes[:, subject, truth]
    return exchanged


@dataclass(frozen=True, eq=False)
class WindowRow:
    """A metric of windows as a function of weights of their subjects, and under exchange of whole subjects.

    Parameters
    ----------
    subjects, fold
        (subjects,) names, and the fold in which each is tested.
    windows, function
        Predictions and metric.
    """

    subjects: tuple[str, ...]
    fold: NDArray[np.int64]
    windows: _Windows
    function: _Function

    @classmethod
    def of(cls, predictions: pd.DataFrame, metric: str) -> WindowRow:
        """Return the row of some held-out predictions."""
        w = _windows(predictions)
        first = np.unique(w.subject, return_index=True)[1]
        return cls(w.subjects, w.fold[first], w, _function(metric))

    def values(self, weights: Array) -> Array:
        """Return (draws,) of (draws, subjects) weights."""
        return _draw(self.function, self.windows, weights)

    def exchanged(self, other: WindowRow, swap: NDArray[np.bool_]) -> Array:
        """Return (draws,) differences with the subjects in (draws, subjects) ``swap`` exchanged between the two."""
        ones = np.ones((1, len(self.windows.truth)))
        found = []
        for s in swap[:, self.windows.subject][:, :, None]:
            ours = np.where(s, other.windows.probability, self.windows.probability)
            theirs = np.where(s, self.windows.probability, other.windows.probability)
            both = (self.function(replace(self.windows, probability=p), ones)[0] for p in (ours, theirs))
            found.append(next(both) - next(both))
        return np.array(found)

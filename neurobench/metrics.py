"""Metrics of held-out predictions, in native units.

Every metric is a function of a sample and of weights of its subjects: ones give the value, a fold's indicator gives
the fold's value, and counts of a bootstrap give 2,000 values at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neurobench.contracts import Metric
from neurobench.errors import ConfigError, closest

__all__ = [
    "CHANCE",
    "CLASSIFICATION_METRICS",
    "FUNCTIONS",
    "RETRIEVAL_METRICS",
    "WINDOW_METRICS",
    "Sample",
    "auroc",
    "mean_over",
    "metric_function",
    "regression_metrics",
    "restore_prevalence",
]

Array = NDArray[np.float64]


# ---------------------------------------------------------------- what tasks report


def regression_metrics(unit: str, *, given_age: bool = False) -> tuple[Metric, ...]:
    """Return the metrics of a regression, the headline first.

    Parameters
    ----------
    unit
        Of the target.
    given_age
        Whether to add what is left once age is known, for targets that age drives.
    """
    metrics = (
        Metric("mae", unit, False, math.nan, 0.0),
        Metric("r2", "", True, 0.0, 1.0),
        Metric("pearson_r", "", True, 0.0, 1.0),
        Metric("skill", "", True, 0.0, 1.0),
        Metric("age_slope", f"{unit} / year".lstrip(), True, math.nan, 0.0),
    )
    added = (Metric("partial_r_age", "", True, 0.0, 1.0), Metric("delta_r2_age", "", True, 0.0, 1.0))
    return metrics + added if given_age else metrics


CLASSIFICATION_METRICS = (
    Metric("auroc", "", True, 0.5, 1.0),
    Metric("balanced_accuracy", "", True, 0.5, 1.0),
    Metric("within_site_auroc", "", True, 0.5, 1.0),
    Metric("pr_auc", "", True, math.nan, 1.0),
    Metric("sensitivity", "", True, math.nan, 1.0),
    Metric("specificity", "", True, math.nan, 1.0),
    Metric("mcc", "", True, 0.0, 1.0),
    Metric("brier", "", False, math.nan, 0.0),
    Metric("accuracy", "", True, math.nan, 1.0),
)
"""Metrics of two classes; class 1 is the positive one. The chance of ``pr_auc`` is the prevalence."""


WINDOW_METRICS = (
    Metric("balanced_accuracy", "", True, math.nan, 1.0),
    Metric("macro_auroc", "", True, 0.5, 1.0),
)
"""Metrics of windows of two classes or more; the chance of ``balanced_accuracy`` is 1 / classes. The recall of every
class is reported besides."""


RETRIEVAL_METRICS = (
    Metric("top1", "", True, math.nan, 1.0),
    Metric("mean_ap", "", True, math.nan, 1.0),
)
"""Metrics of what is looked for in a gallery of n entries, one of which is right: the share of queries that are most
similar to it (chance 1 / n), and the mean average precision, which is 1 / rank of the right one (chance H(n) / n)."""


# ---------------------------------------------------------------- a sample and its metrics


@dataclass(frozen=True, eq=False)
class Sample:
    """Held-out predictions of one row, everything (subjects,).

    Parameters
    ----------
    y
        Truth; may be (permutations, subjects).
    p
        Prediction; of two classes the probability of class 1 of a balanced fit.
    train_mean
        Mean of the truth in the training subjects of the fold.
    fold
        Number from 0.
    site
        Number from 0; −1 where it is not known.
    age
        In years, NaN where unknown.
    family
        Number from 0 of whom belong together; None: everybody alone.
    """

    y: Array
    p: Array
    train_mean: Array
    fold: NDArray[np.int64]
    site: NDArray[np.int64]
    age: Array
    family: NDArray[np.int64] | None = None

    @property
    def flat(self) -> bool:
        """Whether the prediction is the same for everybody in every fold: nothing to correlate."""
        spread = np.abs(self.p - self.p[np.unique(self.fold, return_index=True)[1]][self.fold])
        return bool((spread <= 1e-9 * np.maximum(np.abs(self.p), 1e-300)).all())


_Function = Callable[[Sample, Array], Array]


def _over(above: Array, below: Array) -> Array:
    ratio: Array = np.divide(above, below, out=np.full(np.broadcast(above, below).shape, np.nan), where=below > 1e-12)
    return ratio


def mean_over(values: Array, w: Array) -> Array:
    """Return the weighted mean over the last axis."""
    return _over((w * values).sum(-1), np.asarray(w.sum(-1)))


def _correlation(a: Array, b: Array, w: Array) -> Array:
    da, db = (x - mean_over(x, w)[..., None] for x in (a, b))
    return _over((w * da * db).sum(-1), np.sqrt((w * da**2).sum(-1) * (w * db**2).sum(-1)))


def _mae(s: Sample, w: Array) -> Array:
    return mean_over(np.abs(s.p - s.y), w)


def _r2(s: Sample, w: Array) -> Array:
    return 1 - _over(mean_over((s.p - s.y) ** 2, w), mean_over((s.train_mean - s.y) ** 2, w))


def _skill(s: Sample, w: Array) -> Array:
    return 1 - _over(_mae(s, w), mean_over(np.abs(s.train_mean - s.y), w))


def _pearson_r(s: Sample, w: Array) -> Array:
    return np.full(len(w), np.nan) if s.flat else _correlation(s.y, s.p, w)


def _known_age(s: Sample, w: Array) -> tuple[Array, Array]:
    known = np.isfinite(s.age)
    return np.where(known, s.age, 0.0), w * known


def _age_slope(s: Sample, w: Array) -> Array:
    """Slope of prediction − truth on age: −1 for age predicted by its mean, 0 without bias."""
    age, w = _known_age(s, w)
    residual = s.p - s.y
    centred = age - mean_over(age, w)[..., None]
    return _over((w * centred * residual).sum(-1), (w * centred**2).sum(-1))


def _three(s: Sample, w: Array) -> tuple[Array, Array, Array]:
    age, w = _known_age(s, w)
    nothing = np.full(len(w), np.nan)
    if s.flat:
        return nothing, nothing, nothing
    return _correlation(s.y, s.p, w), _correlation(s.y, age, w), _correlation(s.p, age, w)


def _partial_r_age(s: Sample, w: Array) -> Array:
    yp, ya, pa = _three(s, w)
    return _over(yp - ya * pa, np.sqrt((1 - ya**2) * (1 - pa**2)))


def _delta_r2_age(s: Sample, w: Array) -> Array:
    """What the prediction adds to the R² of a linear regression of the truth on age, in the held-out subjects.

    Counted negative where the prediction goes the wrong way once age is known: a regression would turn it round, and
    an increment that is never below 0 has an interval that never holds it.
    """
    yp, ya, pa = _three(s, w)
    left = yp - ya * pa
    return _over(np.sign(left) * left**2, 1 - pa**2)


def _ordered(s: Sample, w: Array, by: Array) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Return weights of positives and negatives in the order of ``by``, and where a run of equal values ends."""
    order = np.argsort(by, kind="stable")
    positive = (w * s.y)[..., order]
    negative = (w * (1 - s.y))[..., order]
    return positive, negative, np.append(np.diff(by[order]) > 0, True)


def _concordant(positive: Array, negative: Array, ends: NDArray[np.bool_]) -> Array:
    """Return the weight of pairs in which the positive has the larger value, ties counting half."""
    starts = np.append(0, np.flatnonzero(ends)[:-1] + 1)
    p, n = np.add.reduceat(positive, starts, -1), np.add.reduceat(negative, starts, -1)
    below = np.cumsum(n, -1) - n
    pairs: Array = (p * (below + n / 2)).sum(-1)
    return pairs


def auroc(positive: Array, score: Array, w: Array) -> Array:
    """Return (…,) the area under the ROC curve of a score for (rows,) positives, under (…, rows) weights."""
    order = np.argsort(score, kind="stable")
    ends = np.append(np.diff(score[order]) > 0, True)
    above, below = (w * positive)[..., order], (w * (1 - positive))[..., order]
    return _over(_concordant(above, below, ends), above.sum(-1) * below.sum(-1))


def _auroc(s: Sample, w: Array) -> Array:
    positive, negative, ends = _ordered(s, w, s.p)
    return _over(_concordant(positive, negative, ends), positive.sum(-1) * negative.sum(-1))


def _within_site_auroc(s: Sample, w: Array) -> Array:
    """Pairs of one site only, pooled over sites; of whom it is not known where they were scanned no pair is one."""
    pairs, possible = np.zeros((2, np.broadcast_shapes(s.y.shape, w.shape)[0] if s.y.ndim > 1 else len(w)))
    for site in np.unique(s.site[s.site >= 0]):
        here = s.site == site
        part = Sample(s.y[..., here], s.p[here], s.train_mean[here], s.fold[here], s.site[here], s.age[here])
        positive, negative, ends = _ordered(part, w[:, here], part.p)
        pairs = pairs + _concordant(positive, negative, ends)
        possible = possible + positive.sum(-1) * negative.sum(-1)
    return _over(pairs, possible)


def _pr_auc(s: Sample, w: Array) -> Array:
    """Average precision: sum over thresholds of precision times the gain in recall."""
    positive, negative, ends = _ordered(s, w, -s.p)
    starts = np.append(0, np.flatnonzero(ends)[:-1] + 1)
    gain = np.add.reduceat(positive, starts, -1)
    hits, misses = np.cumsum(gain, -1), np.cumsum(np.add.reduceat(negative, starts, -1), -1)
    precision = np.nan_to_num(_over(hits, hits + misses))
    return _over((gain * precision).sum(-1), positive.sum(-1))


def _said(s: Sample) -> Array:
    """Return 1 and 0 for the two classes, and a half for even odds, which favour neither."""
    said: Array = (np.sign(s.p - 0.5) + 1) / 2
    return said


def _sensitivity(s: Sample, w: Array) -> Array:
    return mean_over(_said(s), w * s.y)


def _specificity(s: Sample, w: Array) -> Array:
    return mean_over(1 - _said(s), w * (1 - s.y))


def _balanced_accuracy(s: Sample, w: Array) -> Array:
    return (_sensitivity(s, w) + _specificity(s, w)) / 2


def _mcc(s: Sample, w: Array) -> Array:
    # Undefined where only one class is ever said; by convention then 0, as for a coin.
    return np.nan_to_num(_correlation(s.y, _said(s), w))


def restore_prevalence(p: Array, prevalence: Array) -> Array:
    """Return probabilities at the given prevalence from those of a balanced fit, where both classes weigh the same."""
    above, below = p * prevalence, (1 - p) * (1 - prevalence)
    restored: Array = np.divide(above, above + below, out=np.array(prevalence, float), where=above + below > 0)
    return restored


def _brier(s: Sample, w: Array) -> Array:
    return mean_over((restore_prevalence(s.p, s.train_mean) - s.y) ** 2, w)


def _accuracy(s: Sample, w: Array) -> Array:
    said = restore_prevalence(s.p, s.train_mean) >= 0.5
    return mean_over((said == (s.y > 0.5)).astype(float), w)


FUNCTIONS: dict[str, dict[str, _Function]] = {
    "regression": {
        "mae": _mae,
        "r2": _r2,
        "pearson_r": _pearson_r,
        "skill": _skill,
        "age_slope": _age_slope,
        "partial_r_age": _partial_r_age,
        "delta_r2_age": _delta_r2_age,
    },
    "classification": {
        "auroc": _auroc,
        "balanced_accuracy": _balanced_accuracy,
        "within_site_auroc": _within_site_auroc,
        "pr_auc": _pr_auc,
        "sensitivity": _sensitivity,
        "specificity": _specificity,
        "mcc": _mcc,
        "brier": _brier,
        "accuracy": _accuracy,
    },
}

CHANCE: dict[str, _Function] = {
    "mae": lambda s, w: mean_over(np.abs(s.train_mean - s.y), w),
    "pr_auc": lambda s, w: mean_over(s.y, w),
    "brier": lambda s, w: mean_over((s.train_mean - s.y) ** 2, w),
    "accuracy": lambda s, w: mean_over(((s.train_mean >= 0.5) == (s.y > 0.5)).astype(float), w),
}
"""Chance levels that depend on the subjects: of the training mean, or of always saying the more frequent class."""


def metric_function(kind: str, name: str) -> _Function:
    """Return the function of a metric.

    Raises
    ------
    ConfigError
        If there is none, with the names there are.
    """
    known = FUNCTIONS[kind]
    if name not in known:
        raise ConfigError(f"there is no {kind} metric {name!r}.", allowed=", ".join(known), likely=closest(name, known))
    return known[name]

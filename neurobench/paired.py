"""Rows that were scored on the same subjects: differences, their intervals and p-values, many draws at once.

A headline metric is either a mean of ratios of sums over subjects (MAE, R², balanced accuracy, an average) or the area
under the ROC curve. Both are functions of weights of subjects, so that thousands of bootstrap draws and exchanges are a
few matrix products.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from neurobench import retrieval_scoring, window_scoring
from neurobench.errors import DataError, closest
from neurobench.identity import seed_for
from neurobench.metrics import FUNCTIONS, Sample, auroc
from neurobench.scoring import N_BOOTSTRAP, N_PERMUTATIONS, bootstrap_weights, family_numbers, sample_of

__all__ = [
    "N_MORE",
    "POWER",
    "Paired",
    "Row",
    "difference_of",
    "differences_to",
    "families_of",
    "mean_row",
    "nadeau_bengio",
    "needed",
    "row_of",
]

Array = NDArray[np.float64]

PART = 2_000
"""Exchanges at a time where many are drawn."""

POWER = 2.8
"""Standard errors that a difference needs to be found with a power of .8 at 5 %: 1.96 + .84."""

N_MORE, FEW = 10_000, 10
"""Fresh exchanges, where at most so many of the first thousand reach the difference. With a thousand alone p is never
below .001, and among the 55 pairs of eleven rows Holm's adjustment could call nothing different."""


# ---------------------------------------------------------------- rows as functions of their subjects


@dataclass(frozen=True, eq=False)
class _Ratios:
    """offset + sign × mean over parts of Σ w · above / Σ w · below; (parts, subjects) each."""

    subjects: tuple[str, ...]
    fold: NDArray[np.int64]
    above: Array
    below: Array
    offset: float = 0.0
    sign: float = 1.0

    def values(self, weights: Array) -> Array:
        """Return (draws,) of (draws, subjects) weights; NaN where a part has nobody."""
        return self._of(weights @ self.above.T, weights @ self.below.T)

    def _of(self, above: Array, below: Array) -> Array:
        each = np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 1e-12)
        found: Array = self.offset + self.sign * each.mean(-1)
        return found

    def exchanged(self, other: _Ratios, swap: NDArray[np.bool_]) -> Array:
        """Return (draws,) differences with the subjects in (draws, subjects) ``swap`` exchanged between the two."""
        s = swap.astype(float)
        moved = s @ (other.above - self.above).T
        ours = self._of(self.above.sum(1) + moved, np.broadcast_to(self.below.sum(1), moved.shape))
        theirs = self._of(other.above.sum(1) - moved, np.broadcast_to(other.below.sum(1), moved.shape))
        return ours - theirs


@dataclass(frozen=True, eq=False)
class _Area:
    """Area under the ROC curve of a score, by ranks, so that two rows' scores can take each other's place."""

    subjects: tuple[str, ...]
    fold: NDArray[np.int64]
    truth: Array
    ranks: Array

    def values(self, weights: Array) -> Array:
        """Return (draws,) of (draws, subjects) weights; NaN where a draw holds one class only."""
        return auroc(self.truth, self.ranks, weights)

    def exchanged(self, other: _Area, swap: NDArray[np.bool_]) -> Array:
        """Return (draws,) differences with the subjects in (draws, subjects) ``swap`` exchanged between the two."""
        ours, theirs = np.where(swap, other.ranks, self.ranks), np.where(swap, self.ranks, other.ranks)
        return self._area(ours) - self._area(theirs)

    def _area(self, scores: Array) -> Array:
        positive = self.truth > 0.5
        n, m = positive.sum(), (~positive).sum()
        ranks = stats.rankdata(scores, axis=1)
        area: Array = (ranks[:, positive].sum(1) - n * (n + 1) / 2) / (n * m)
        return area


@dataclass(frozen=True, eq=False)
class _General:
    """Any other metric of a task on subjects: predictions are exchanged as they are, one draw after the other."""

    subjects: tuple[str, ...]
    fold: NDArray[np.int64]
    sample: Sample
    function: Callable[[Sample, Array], Array]

    def values(self, weights: Array) -> Array:
        """Return (draws,) of (draws, subjects) weights."""
        return self.function(self.sample, weights)

    def exchanged(self, other: _General, swap: NDArray[np.bool_]) -> Array:
        """Return (draws,) differences with the subjects in (draws, subjects) ``swap`` exchanged between the two."""
        ones = np.ones((1, len(self.subjects)))
        found = []
        for s in swap:
            ours = replace(self.sample, p=np.where(s, other.sample.p, self.sample.p))
            theirs = replace(other.sample, p=np.where(s, self.sample.p, other.sample.p))
            found.append(self.function(ours, ones)[0] - other.function(theirs, ones)[0])
        return np.array(found)


Row = _Ratios | _Area | _General | window_scoring.WindowRow


def row_of(metric: str, held_out: pd.DataFrame) -> Row:
    """Return a row as a function of its subjects.

    Raises
    ------
    DataError
        If its headline is none that can be compared.
    """
    if "sse" in held_out:
        return _reconstruction(held_out)
    if window_scoring.class_columns(held_out):
        fast = metric == "balanced_accuracy"
        return _windows(held_out) if fast else window_scoring.WindowRow.of(held_out, metric)
    if retrieval_scoring.entry_columns(held_out):
        return _Ratios(*retrieval_scoring.subject_values(held_out, metric))
    if "condition" in held_out:
        each = held_out.groupby("participant_id")[metric].mean().sort_index()
        return mean_row(tuple(each.index.astype(str)), each.to_numpy(float))
    sample, subjects = sample_of(held_out)
    y, p, mean, fold = sample.y, sample.p, sample.train_mean, sample.fold
    if metric == "mae":
        return mean_row(subjects, np.abs(p - y), fold)
    if metric == "r2":
        return _Ratios(subjects, fold, (p - y)[None] ** 2, (mean - y)[None] ** 2, 1.0, -1.0)
    if metric == "auroc":
        return _Area(subjects, fold, y, np.asarray(stats.rankdata(p), float))
    if metric == "balanced_accuracy":
        said = (np.sign(p - 0.5) + 1) / 2
        return _Ratios(subjects, fold, np.stack([said * y, (1 - said) * (1 - y)]), np.stack([y, 1 - y]))
    function = next((own[metric] for own in FUNCTIONS.values() if metric in own), None)
    if function is None:
        known = [name for own in FUNCTIONS.values() for name in own]
        raise DataError(
            f"rows cannot be compared on {metric!r}.", allowed=", ".join(known), likely=closest(metric, known)
        )
    return _General(subjects, fold, sample, function)


def mean_row(subjects: tuple[str, ...], values: Array, fold: NDArray[np.int64] | None = None) -> Row:
    """Return the mean of one value a subject as a row; NaN is left out.

    Parameters
    ----------
    subjects, values
        (subjects,) names and values.
    fold
        (subjects,) in which each is tested; one for all without.
    """
    known = np.isfinite(values)
    fold = np.zeros(len(values), np.int64) if fold is None else fold
    return _Ratios(subjects, fold, np.where(known, values, 0.0)[None], known.astype(float)[None])


def _reconstruction(held_out: pd.DataFrame) -> _Ratios:
    """R² pooled over subjects, averaged over headline masks; over all of them where none counts."""
    counted = held_out[held_out["headline"]] if held_out["headline"].any() else held_out
    sse, sst = (
        counted.pivot(index="mask", columns="participant_id", values=v).sort_index(axis=1) for v in ("sse", "sst")
    )
    fold = counted.groupby("participant_id")["fold"].first().sort_index().to_numpy(np.int64)
    return _Ratios(tuple(sse.columns.astype(str)), fold, sse.to_numpy(float), sst.to_numpy(float), 1.0, -1.0)


def _windows(held_out: pd.DataFrame) -> _Ratios:
    """Balanced accuracy of windows: the share of each class's windows that is recognised, averaged over classes."""
    hits = window_scoring.window_hits(held_out)
    # A subject without a window of a class has counted nothing there: of whole numbers, so the fill is one too.
    above, below = (
        hits.pivot_table(index="truth", columns="participant_id", values="hit", aggfunc=a, observed=True).fillna(0.0)
        for a in ("sum", "count")
    )
    fold = held_out.groupby("participant_id")["fold"].first().sort_index().to_numpy(np.int64)
    return _Ratios(tuple(above.columns.astype(str)), fold, above.to_numpy(float), below.to_numpy(float))


# ---------------------------------------------------------------- pairs


class Paired:
    """Rows that were scored on the same subjects, under one bootstrap and one set of exchanges.

    Parameters
    ----------
    n_subjects
        Subjects of every row.
    seed
        Of both.
    family
        (subjects,) numbers of families, which are drawn and exchanged as wholes; None: everybody alone.
    """

    def __init__(self, n_subjects: int, *, seed: int = 0, family: NDArray[np.int64] | None = None) -> None:
        self.n, self.seed = n_subjects, seed
        self.weights = bootstrap_weights(n_subjects, N_BOOTSTRAP, seed, family) if n_subjects else np.zeros((0, 0))
        self.family = family
        self.swap = self._exchanges(
            N_PERMUTATIONS, np.random.default_rng(seed_for(seed, "permutation", "swap", n_subjects))
        )
        self._more: dict[int, list[NDArray[np.bool_]]] = {}
        self._drawn: dict[Row, tuple[float, Array, Array]] = {}

    def _p(self, terms: Sequence[tuple[Row, Row]]) -> float:
        """Return the share of exchanges that reach the mean difference over pairs, (b + 1) / (m + 1)."""
        n = self._reached(terms, [self.swap])
        return self.exchange_p(terms, N_MORE) if n <= FEW else (n + 1) / (N_PERMUTATIONS + 1)

    def exchange_p(self, terms: Sequence[tuple[Row, Row]], n_draws: int) -> float:
        """Return the p-value of :meth:`difference` from fresh exchanges, as many as asked for.

        Parameters
        ----------
        terms
            Pairs of rows.
        n_draws
            Exchanges; the same ones for every pair of rows, drawn and used in parts, so that they need little memory.
        """
        if n_draws not in self._more:
            sizes = [min(PART, n_draws - start) for start in range(0, n_draws, PART)]
            rng = np.random.default_rng(seed_for(self.seed, "permutation", "swap-more", self.n, n_draws))
            self._more[n_draws] = [self._exchanges(size, rng) for size in sizes]
        return (self._reached(terms, self._more[n_draws]) + 1) / (n_draws + 1)

    def _exchanges(self, n: int, rng: np.random.Generator) -> NDArray[np.bool_]:
        """Return (n, subjects) True where a subject is exchanged; members of a family go together."""
        drawn = rng.random((n, self.n)) < 0.5
        return drawn if self.family is None else drawn[:, self.family]

    def _reached(self, terms: Sequence[tuple[Row, Row]], swaps: Sequence[NDArray[np.bool_]]) -> int:
        """Return how many exchanges reach the mean difference over pairs; what is not defined does."""
        # The difference without any exchange, in the form that the null has: of ranks, where those are exchanged.
        observed = abs(float(np.mean([_exchanged(a, b, np.zeros((1, self.n), bool))[0] for a, b in terms])))
        nulls = (np.mean([_exchanged(a, b, swap) for a, b in terms], 0) for swap in swaps)
        return sum(int(np.sum(~(np.abs(null) < observed - 1e-12))) for null in nulls)

    def drawn(self, row: Row) -> tuple[float, Array, Array]:
        """Return value, (draws,) bootstrap values and (folds,) values of a row, computed once."""
        # By the row itself, which is kept: the id of one that is gone may be another's.
        if row not in self._drawn:
            folds = (row.fold == np.unique(row.fold)[:, None]).astype(float)
            value = float(row.values(np.ones((1, self.n)))[0])
            self._drawn[row] = value, row.values(self.weights), row.values(folds)
        return self._drawn[row]

    def difference(self, terms: Sequence[tuple[Row, Row]], n_seeds: int = 1) -> dict[str, Any]:
        """Return the mean difference over pairs of rows: first minus second, with everything that is known of it.

        Parameters
        ----------
        terms
            Pairs of rows; as many a seed, in seeds' order.
        n_seeds
            Number of seeds.
        """
        drawn = [(self.drawn(a), self.drawn(b)) for a, b in terms]
        each = np.array([a[0] - b[0] for a, b in drawn])
        draws = np.stack([a[1] - b[1] for a, b in drawn])
        folds = np.stack([a[2] - b[2] for a, b in drawn])
        difference, mean = float(each.mean()), draws.mean(0)
        known = mean[np.isfinite(mean)]
        low, high = (float(x) for x in np.percentile(known, [2.5, 97.5])) if len(known) else (math.nan, math.nan)
        by_seed = each.reshape(n_seeds, -1).mean(1)
        by_fold = folds.reshape(n_seeds, -1, folds.shape[1]).mean(1).ravel()
        se = float(known.std()) if len(known) else math.nan
        together = self.combined_error(draws.reshape(n_seeds, -1, draws.shape[1]).mean(1)) if n_seeds > 1 else math.nan
        return {
            "difference": difference,
            "low": low,
            "high": high,
            "p": self._p(terms),
            "p_nadeau_bengio": nadeau_bengio(by_fold, folds.shape[1]),
            "detectable": POWER * se,
            "n_subjects": self.n,
            "n_needed": needed(difference, se, self.n),
            "n_seeds": n_seeds,
            "sd_seeds": float(by_seed.std(ddof=1)) if n_seeds > 1 else math.nan,
            "se_subjects": se,
            "se_combined": together,
        }

    def combined_error(self, draws: Array) -> float:
        """Return the standard error when seeds are drawn with the subjects, of (seeds, draws) bootstrap values."""
        rng = np.random.default_rng(seed_for(self.seed, "bootstrap", "seeds", len(draws)))
        chosen = rng.integers(len(draws), size=draws.shape)
        mean = np.take_along_axis(draws, chosen, 0).mean(0)
        return float(mean[np.isfinite(mean)].std())


def difference_of(metric: str, first: pd.DataFrame, second: pd.DataFrame, *, seed: int = 0) -> dict[str, Any]:
    """Return the difference of two rows from their held-out evidence, see :meth:`Paired.difference`.

    Raises
    ------
    DataError
        If their subjects differ, or the metric is none of them.
    """
    return differences_to(metric, [first], second, seed=seed)[0]


def differences_to(
    metric: str, rows: Sequence[pd.DataFrame], second: pd.DataFrame, *, seed: int = 0
) -> list[dict[str, Any]]:
    """Return the difference of each of several rows to one, as :func:`difference_of`, with one bootstrap for all."""
    b = row_of(metric, second)
    paired = Paired(len(b.subjects), seed=seed, family=families_of(second))
    found = []
    for a in (row_of(metric, held_out) for held_out in rows):
        if a.subjects != b.subjects:
            alone = len(set(a.subjects) ^ set(b.subjects))
            raise DataError(f"two rows cannot be compared: {alone} subjects are in one of them only.")
        found.append(paired.difference([(a, b)]))
    return found


def families_of(held_out: pd.DataFrame) -> NDArray[np.int64] | None:
    """Return (subjects,) numbers of families in the order of a row's subjects; None where the evidence has none."""
    if "family" not in held_out:
        return None
    by_subject = held_out.drop_duplicates("participant_id").set_index("participant_id")["family"]
    by_subject.index = by_subject.index.astype(str)
    return family_numbers(by_subject.sort_index())


def _exchanged(a: Row, b: Row, swap: NDArray[np.bool_]) -> Array:
    assert type(a) is type(b)
    return a.exchanged(b, swap)  # type: ignore[arg-type]


def nadeau_bengio(differences: Array, n_folds: int) -> float:
    """Return the two-sided p-value of the corrected resampled t-test (Nadeau & Bengio 2003).

    Parameters
    ----------
    differences
        (folds × seeds,) differences, one a held-out fold.
    n_folds
        Folds of one split: the test share over the training share is 1 / (folds − 1).

    Returns
    -------
    p
        NaN for fewer than two differences; 1 for no difference at all.

    Notes
    -----
    doi:10.1023/A:1024068626366. Variances over folds that share training subjects are too small by a factor that the
    correction 1 / J + n_test / n_train makes up for.
    """
    known = differences[np.isfinite(differences)]
    if len(known) < 2 or n_folds < 2:
        return math.nan
    error = math.sqrt((1 / len(known) + 1 / (n_folds - 1)) * float(known.var(ddof=1)))
    if error == 0:
        return 1.0 if known.mean() == 0 else 0.0
    return float(2 * stats.t.sf(abs(known.mean()) / error, len(known) - 1))


def needed(difference: float, se: float, n: int) -> float:
    """Return about how many subjects would find this difference with a power of .8: n · (2.8 · SE / difference)².

    An estimate from an estimate: it takes the measured difference for the true one. Infinite for no difference.
    """
    if not (math.isfinite(difference) and math.isfinite(se)):
        return math.nan
    return math.inf if difference == 0 else math.ceil(n * (POWER * se / difference) ** 2)

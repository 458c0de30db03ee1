"""Rows that were scored on the same subjects: differences, their intervals and p-values, many draws at once.

A headline metric is either a mean of ratios of sums over subjects (MAE, R², balanced accuracy, an average) or the area
under the ROC curve. Both are functions of weights of subjects, so that thousands of bootstrap draws and exchanges are a
few matrix products.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import scipy
from numpy.typing import NDArray
from scipy import special

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
    "Terms",
    "difference_of",
    "differences_to",
    "families_of",
    "mean_row",
    "nadeau_bengio",
    "needed",
    "row_of",
]

Array = NDArray[np.float64]

PART, PAIRS_AT_ONCE = 2_000, 50
"""Exchanges at a time where many are drawn; differences whose intervals are computed at a time."""

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

    @functools.cached_property
    def measure(self) -> tuple[Any, ...]:
        """What is equal for rows of which everybody counts as much: their difference is a sum over subjects."""
        return self.below.shape, self.below.tobytes(), self.offset, self.sign

    @functools.cached_property
    def shares(self) -> Array | None:
        """(subjects,) what each adds to the value; None where a part has nobody."""
        total = self.below.sum(1, keepdims=True)
        return self.sign * (self.above / total).mean(0) if (total > 1e-12).all() else None

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
        positive = self.truth > 0.5
        n = int(positive.sum()) * int((~positive).sum())
        # Of a positive and a negative either row's score may count: four tables of who is ahead, ties counting half.
        oo, ot, to, tt = (
            np.heaviside(a.ranks[positive][:, None] - b.ranks[~positive], 0.5)
            for a in (self, other)
            for b in (self, other)
        )
        p, q = swap[:, positive].astype(float), swap[:, ~positive].astype(float)
        both = ((p @ (oo - ot - to + tt)) * q).sum(1)
        ours = oo.sum() + p @ (to - oo).sum(1) + q @ (ot - oo).sum(0) + both
        theirs = tt.sum() + p @ (ot - tt).sum(1) + q @ (to - tt).sum(0) + both
        found: Array = ours / n - theirs / n
        return found


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

Terms = Sequence[tuple[Row, Row]]
"""Pairs of rows whose mean difference is asked for."""


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
        return _Area(subjects, fold, y, np.asarray(scipy.stats.rankdata(p), float))
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
        self._drawn: dict[Row, tuple[float, Array, Array]] = {}

    def p_values(self, many: Sequence[Terms]) -> list[float]:
        """Return for each mean difference over pairs the share of exchanges that reach it, (b + 1) / (m + 1)."""
        reached = self._reached(many, self.swaps(N_PERMUTATIONS, "swap", self.n))
        few = np.flatnonzero(reached <= FEW).tolist()
        p = (reached + 1) / (N_PERMUTATIONS + 1)
        p[few] = self.exchange_p([many[i] for i in few], N_MORE)
        return [float(x) for x in p]

    def exchange_p(self, many: Sequence[Terms], n_draws: int) -> list[float]:
        """Return the p-values of differences from fresh exchanges, as many as asked for.

        Parameters
        ----------
        many
            Pairs of rows of each difference.
        n_draws
            Exchanges; the same ones for every difference, used in parts, so that they need little memory.
        """
        reached = self._reached(many, self.swaps(n_draws, "swap-more", self.n, n_draws)) if many else np.zeros(0)
        return [float(x) for x in (reached + 1) / (n_draws + 1)]

    def swaps(self, n_draws: int, *words: str | int) -> Iterator[NDArray[np.bool_]]:
        """Yield (part of the draws, subjects) True where a subject is exchanged; members of a family go together."""
        for drawn in _halves(self.n, n_draws, seed_for(self.seed, "permutation", *words)):
            yield drawn if self.family is None else drawn[:, self.family]

    def _reached(self, many: Sequence[Terms], swaps: Iterable[NDArray[np.bool_]]) -> NDArray[np.int64]:
        """Return how many exchanges reach each mean difference over pairs; what is not defined does."""
        sums = [i for i, terms in enumerate(many) if all(_is_sum(a, b) for a, b in terms)]
        others = sorted(set(range(len(many))) - set(sums))
        rows, parts = _places({i: many[i] for i in sums})
        shares = np.array([row.shares for row in rows])  # type: ignore[union-attr]
        # The difference without any exchange, in the form that the null has: of ranks, where those are exchanged.
        none = np.zeros((1, self.n), bool)
        whole = shares.sum(-1)
        observed = np.zeros(len(many))
        for of, first, second in parts:
            observed[of] = (whole[first] - whole[second]).mean(1)
        observed[others] = [np.mean([_exchanged(a, b, none)[0] for a, b in many[i]]) for i in others]
        reached = np.zeros(len(many), np.int64)

        def count(i: NDArray[np.int64], null: Array) -> None:
            reached[i] += np.count_nonzero(~(np.abs(null) < np.abs(observed[i])[:, None] - 1e-12), axis=1)

        for swap in swaps:
            # Who is exchanged counts for the other row: twice what they add, one product for all pairs of rows.
            moved = shares @ (2.0 * swap.T) if rows else shares
            for of, first, second in parts:
                count(of, observed[of][:, None] + (moved[second] - moved[first]).mean(1))
            for n in others:
                count(np.array([n]), np.mean([_exchanged(a, b, swap) for a, b in many[n]], 0)[None])
        return reached

    def drawn(self, row: Row) -> tuple[float, Array, Array]:
        """Return value, (draws,) bootstrap values and (folds,) values of a row, computed once."""
        # By the row itself, which is kept: the id of one that is gone may be another's.
        if row not in self._drawn:
            folds = (row.fold == np.unique(row.fold)[:, None]).astype(float)
            value = float(row.values(np.ones((1, self.n)))[0])
            self._drawn[row] = value, row.values(self.weights), row.values(folds)
        return self._drawn[row]

    def spans(self, many: Sequence[Terms]) -> list[tuple[float, float, float, float]]:
        """Return of each mean difference over pairs its value, the ends of its interval, and its standard error."""
        rows, parts = _places(dict(enumerate(many)))
        drawn = [self.drawn(row) for row in rows]
        value, every = np.array([d[0] for d in drawn]), np.array([d[1] for d in drawn])
        found = np.full((len(many), 4), math.nan)
        for of, first, second in parts:
            found[of, 0] = (value[first] - value[second]).mean(1)
            draws = (every[first] - every[second]).mean(1)
            defined = np.isfinite(draws).all(1)
            whole = draws[defined]
            found[of[defined], 1:] = np.stack([*np.percentile(whole, [2.5, 97.5], axis=1), whole.std(1)], 1)
            for i in np.flatnonzero(~defined):
                known = draws[i][np.isfinite(draws[i])]
                if len(known):
                    found[of[i], 1:] = *np.percentile(known, [2.5, 97.5]), known.std()
        return [(float(d), float(low), float(high), float(se)) for d, low, high, se in found]

    def difference(self, terms: Terms, n_seeds: int = 1) -> dict[str, Any]:
        """Return the mean difference over pairs of rows, see :meth:`differences`."""
        return self.differences([(terms, n_seeds)])[0]

    def differences(self, many: Sequence[tuple[Terms, int]]) -> list[dict[str, Any]]:
        """Return mean differences over pairs of rows: first minus second, with everything that is known of them.

        Parameters
        ----------
        many
            Of each its pairs of rows, as many a seed, in seeds' order; and the number of seeds.
        """
        found = []
        every = [terms for terms, _ in many]
        for (terms, n_seeds), span, p in zip(many, self.spans(every), self.p_values(every), strict=True):
            difference, low, high, se = span
            drawn = [(self.drawn(a), self.drawn(b)) for a, b in terms]
            by_seed = np.array([a[0] - b[0] for a, b in drawn]).reshape(n_seeds, -1).mean(1)
            folds = np.stack([a[2] - b[2] for a, b in drawn])
            by_fold = folds.reshape(n_seeds, -1, folds.shape[1]).mean(1).ravel()
            together = math.nan
            if n_seeds > 1:
                draws = np.stack([a[1] - b[1] for a, b in drawn])
                together = self.combined_error(draws.reshape(n_seeds, -1, draws.shape[1]).mean(1))
            found.append(
                {
                    "difference": difference,
                    "low": low,
                    "high": high,
                    "p": p,
                    "p_nadeau_bengio": nadeau_bengio(by_fold, folds.shape[1]),
                    "detectable": POWER * se,
                    "n_subjects": self.n,
                    "n_needed": needed(difference, se, self.n),
                    "n_seeds": n_seeds,
                    "sd_seeds": float(by_seed.std(ddof=1)) if n_seeds > 1 else math.nan,
                    "se_subjects": se,
                    "se_combined": together,
                }
            )
        return found

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
    built = [row_of(metric, held_out) for held_out in rows]
    for a in built:
        if a.subjects != b.subjects:
            alone = len(set(a.subjects) ^ set(b.subjects))
            raise DataError(f"two rows cannot be compared: {alone} subjects are in one of them only.")
    return paired.differences([([(a, b)], 1) for a in built])


def families_of(held_out: pd.DataFrame) -> NDArray[np.int64] | None:
    """Return (subjects,) numbers of families in the order of a row's subjects; None where the evidence has none."""
    if "family" not in held_out:
        return None
    by_subject = held_out.drop_duplicates("participant_id").set_index("participant_id")["family"]
    by_subject.index = by_subject.index.astype(str)
    return family_numbers(by_subject.sort_index())


_Part = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
"""(differences,) their numbers; (differences, pairs) the numbers of their first rows, and of their second ones."""


def _places(many: Mapping[int, Terms]) -> tuple[list[Row], list[_Part]]:
    """Return the rows of numbered differences, each once, and the differences in parts of as many pairs each."""
    rows = list(dict.fromkeys(row for terms in many.values() for pair in terms for row in pair))
    place = {row: k for k, row in enumerate(rows)}
    by_length: dict[int, list[int]] = {}
    for i, terms in many.items():
        by_length.setdefault(len(terms), []).append(i)
    parts = []
    for alike in by_length.values():
        for start in range(0, len(alike), PAIRS_AT_ONCE):
            of = alike[start : start + PAIRS_AT_ONCE]
            pairs = np.array([[(place[a], place[b]) for a, b in many[i]] for i in of], np.int64)
            parts.append((np.array(of), pairs[..., 0], pairs[..., 1]))
    return rows, parts


def _is_sum(a: Row, b: Row) -> bool:
    """Whether the difference of two rows is a sum over subjects, whoever is exchanged."""
    same = isinstance(a, _Ratios) and isinstance(b, _Ratios) and a.measure == b.measure
    return same and a.shares is not None and b.shares is not None  # type: ignore[union-attr]


@functools.lru_cache(maxsize=4)
def _halves(n_subjects: int, n_draws: int, seed: int) -> tuple[NDArray[np.bool_], ...]:
    """Return (draws, subjects) True for a random half, in parts: the same for all tasks of as many subjects."""
    rng = np.random.default_rng(seed)
    sizes = [min(PART, n_draws - start) for start in range(0, n_draws, PART)]
    return tuple(rng.random((size, n_subjects)) < 0.5 for size in sizes)


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
    return float(2 * special.stdtr(len(known) - 1, -abs(known.mean()) / error))


def needed(difference: float, se: float, n: int) -> float:
    """Return about how many subjects would find this difference with a power of .8: n · (2.8 · SE / difference)².

    An estimate from an estimate: it takes the measured difference for the true one. Infinite for no difference.
    """
    if not (math.isfinite(difference) and math.isfinite(se)):
        return math.nan
    return math.inf if difference == 0 else math.ceil(n * (POWER * se / difference) ** 2)

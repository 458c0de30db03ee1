"""Paired comparisons over a grid: backbones, masks, their interaction, controls; what separates, and what would.

Every row of a (dataset, task) was scored on the same held-out subjects, so one bootstrap of subjects serves all of
them, and differences are paired by construction. A headline metric is either a mean of ratios of sums over subjects
(MAE, R², balanced accuracy, an average) or the area under the ROC curve; both are evaluated for thousands of draws at
once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from neurobench import window_scoring
from neurobench.errors import ConfigError, DataError, closest
from neurobench.evidence import Evidence
from neurobench.identity import seed_for
from neurobench.metrics import auroc
from neurobench.results import load_evidence
from neurobench.scoring import N_BOOTSTRAP, N_PERMUTATIONS, bootstrap_weights, holm

__all__ = ["By", "Comparisons", "Paired", "compare_all", "compare_results", "nadeau_bengio", "needed", "row_of"]

Array = NDArray[np.float64]

By = Literal["backbone", "mask", "untrained", "baseline", "interaction"]

POWER = 2.8
"""Standard errors that a difference needs to be found with a power of .8 at 5 %: 1.96 + .84."""

COLUMNS = (
    *(
        "dataset",
        "source",
        "task",
        "metric",
        "unit",
        "by",
        "first",
        "second",
        "difference",
        "low",
        "high",
        "p",
        "p_holm",
    ),
    *("p_nadeau_bengio", "winner", "detectable", "n_subjects", "n_needed", "n_seeds", "sd_seeds", "se_subjects"),
    "se_combined",
)


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


Row = _Ratios | _Area


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
        return _windows(held_out)
    if "condition" in held_out:
        each = held_out.groupby("participant_id")[metric].mean().sort_index()
        return _mean(tuple(each.index.astype(str)), np.zeros(len(each), np.int64), each.to_numpy(float))
    table = held_out.sort_values("participant_id")
    subjects, fold = tuple(table["participant_id"].astype(str)), table["fold"].to_numpy(np.int64)
    y, p, mean = (table[c].to_numpy(float) for c in ("truth", "prediction", "train_mean"))
    if metric == "mae":
        return _mean(subjects, fold, np.abs(p - y))
    if metric == "r2":
        return _Ratios(subjects, fold, (p - y)[None] ** 2, (mean - y)[None] ** 2, 1.0, -1.0)
    if metric == "auroc":
        return _Area(subjects, fold, y, np.asarray(stats.rankdata(p), float))
    if metric == "balanced_accuracy":
        said = (np.sign(p - 0.5) + 1) / 2
        return _Ratios(subjects, fold, np.stack([said * y, (1 - said) * (1 - y)]), np.stack([y, 1 - y]))
    raise DataError(f"rows cannot be compared on {metric!r}.", allowed="mae, r2, auroc, balanced_accuracy")


def _mean(subjects: tuple[str, ...], fold: NDArray[np.int64], values: Array) -> _Ratios:
    known = np.isfinite(values)
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
    above, below = (
        hits.pivot_table(
            index="truth", columns="participant_id", values="hit", aggfunc=a, fill_value=0.0, observed=True
        )
        for a in ("sum", "count")
    )
    fold = held_out.groupby("participant_id")["fold"].first().sort_index().to_numpy(np.int64)
    return _Ratios(tuple(above.columns.astype(str)), fold, above.to_numpy(float), below.to_numpy(float))


# ---------------------------------------------------------------- one task of one cohort


@dataclass(frozen=True)
class _Key:
    kind: str
    row: str
    backbone: str
    mask: str


class Paired:
    """Rows that were scored on the same subjects, under one bootstrap and one set of exchanges.

    Parameters
    ----------
    n_subjects
        Subjects of every row.
    seed
        Of both.
    """

    def __init__(self, n_subjects: int, *, seed: int = 0) -> None:
        self.n, self.seed = n_subjects, seed
        self.weights = bootstrap_weights(n_subjects, N_BOOTSTRAP, seed) if n_subjects else np.zeros((0, 0))
        rng = np.random.default_rng(seed_for(seed, "permutation", "swap", n_subjects))
        self.swap = rng.random((N_PERMUTATIONS, n_subjects)) < 0.5
        self._drawn: dict[int, tuple[float, Array, Array]] = {}

    def drawn(self, row: Row) -> tuple[float, Array, Array]:
        """Return value, (draws,) bootstrap values and (folds,) values of a row, computed once."""
        if id(row) not in self._drawn:
            folds = (row.fold == np.unique(row.fold)[:, None]).astype(float)
            value = float(row.values(np.ones((1, self.n)))[0])
            self._drawn[id(row)] = value, row.values(self.weights), row.values(folds)
        return self._drawn[id(row)]

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
        null = np.mean([_exchanged(a, b, self.swap) for a, b in terms], 0)
        # The difference without any exchange, in the form that the null has: of ranks, where those are exchanged.
        observed = np.mean([_exchanged(a, b, np.zeros((1, self.n), bool))[0] for a, b in terms])
        p = (np.sum(np.abs(null) >= abs(observed) - 1e-12) + 1) / (len(null) + 1)
        by_seed = each.reshape(n_seeds, -1).mean(1)
        by_fold = folds.reshape(n_seeds, -1, folds.shape[1]).mean(1).ravel()
        se = float(known.std())
        together = self._combined(draws.reshape(n_seeds, -1, draws.shape[1]).mean(1)) if n_seeds > 1 else math.nan
        return {
            "difference": difference,
            "low": low,
            "high": high,
            "p": float(p),
            "p_nadeau_bengio": nadeau_bengio(by_fold, folds.shape[1]),
            "detectable": POWER * se,
            "n_subjects": self.n,
            "n_needed": needed(difference, se, self.n),
            "n_seeds": n_seeds,
            "sd_seeds": float(by_seed.std(ddof=1)) if n_seeds > 1 else math.nan,
            "se_subjects": se,
            "se_combined": together,
        }

    def _combined(self, draws: Array) -> float:
        """Return the standard error when seeds are drawn with the subjects, of (seeds, draws) differences."""
        rng = np.random.default_rng(seed_for(self.seed, "bootstrap", "seeds", len(draws)))
        chosen = rng.integers(len(draws), size=draws.shape)
        mean = np.take_along_axis(draws, chosen, 0).mean(0)
        return float(mean[np.isfinite(mean)].std())


def _exchanged(a: Row, b: Row, swap: NDArray[np.bool_]) -> Array:
    assert type(a) is type(b)
    return a.exchanged(b, swap)  # type: ignore[arg-type]


class _Task(Paired):
    """The rows of one (cohort, task), every seed of them.

    A row that is not above chance is never called better than another one: where there is nothing to find, held-out
    scores scatter below chance, and who scatters least is no winner.
    """

    def __init__(self, evidence: Evidence, task: str, rows: pd.DataFrame, *, seed: int) -> None:
        self.evidence, self.task = evidence, task
        self.metric, self.unit = str(rows["metric"].iloc[0]), str(rows["unit"].iloc[0])
        self.higher = bool(rows["higher_is_better"].iloc[0])
        self.of: dict[_Key, dict[int, Row]] = {}
        self.left_out: list[str] = []
        self.silent: set[int] = set()
        first: Row | None = None
        for r in rows.to_dict("records"):
            held_out = evidence.predictions(r["id"])
            if held_out is None:
                self.left_out.append(f"{r['row']}: its held-out predictions are not in the folder")
                continue
            built = row_of(self.metric, held_out)
            if first is None:
                first = built
            elif built.subjects != first.subjects:
                self.left_out.append(f"{r['row']} (seed {r['seed']}): it was scored on other subjects")
                continue
            key = _Key(r["kind"], r["row"], r["backbone"], r["mask"])
            self.of.setdefault(key, {})[int(r["seed"])] = built
            if r["above_chance"] is False or str(r["above_chance"]) == "False":
                self.silent.add(id(built))
        super().__init__(0 if first is None else len(first.subjects), seed=seed)

    def grid(self) -> tuple[list[str], list[str], dict[tuple[str, str], dict[int, Row]]]:
        """Return backbones, masks and the cells of the pretrained rows; only masks that every backbone has."""
        cells = {(k.backbone, k.mask): v for k, v in self.of.items() if k.kind == "pretrained"}
        backbones = sorted({b for b, _ in cells})
        masks = [m for m in sorted({m for _, m in cells}) if all((b, m) in cells for b in backbones)]
        return backbones, masks, cells

    def contrast(
        self, terms: Sequence[tuple[Row, Row]], by: By, first: str, second: str, seeds: Sequence[int]
    ) -> dict[str, Any]:
        """Return a difference as a row of the table of comparisons."""
        found = self.difference(terms, len(seeds))
        winner = ""
        if found["low"] > 0 or found["high"] < 0:
            ahead = (found["low"] > 0) == self.higher
            heard = any(id(pair[0 if ahead else 1]) not in self.silent for pair in terms)
            winner = (first if ahead else second) if heard else ""
        return self._where(by, first, second) | found | {"winner": winner}

    def _where(self, by: By, first: str, second: str) -> dict[str, Any]:
        return {
            "dataset": self.evidence.dataset,
            "source": self.evidence.source,
            "task": self.task,
            "metric": self.metric,
            "unit": self.unit,
            "by": by,
            "first": first,
            "second": second,
        }

    # ------------------------------------------------------------ tables

    def between(self, by: Literal["backbone", "mask"]) -> Iterator[dict[str, Any]]:
        """Yield the difference of every two backbones (averaged over masks), or of every two masks."""
        backbones, masks, cells = self.grid()
        names, others = (backbones, masks) if by == "backbone" else (masks, backbones)

        def cell(name: str, other: str) -> dict[int, Row]:
            return cells[(name, other) if by == "backbone" else (other, name)]

        order = sorted(names, key=lambda n: not n.startswith("roi"))  # roi first, so that its controls stand beside it.
        for first, second in itertools.combinations(order, 2):
            seeds = _common([cell(n, o) for n in (first, second) for o in others])
            if seeds and others:
                terms = [(cell(first, o)[s], cell(second, o)[s]) for s in seeds for o in others]
                yield self.contrast(terms, by, first, second, seeds)

    def against(self, by: Literal["untrained", "baseline"]) -> Iterator[dict[str, Any]]:
        """Yield every pretrained row against its untrained backbone, or against the best baseline or filler."""
        controls = {
            k: v
            for k, v in self.of.items()
            if k.kind in (("untrained",) if by == "untrained" else ("baseline", "filler"))
        }
        if by == "baseline" and controls:
            sign = 1 if self.higher else -1
            best = max(controls, key=lambda k: sign * np.mean([self.drawn(r)[0] for r in controls[k].values()]))
            controls = {best: controls[best]}
        for key, rows in self.of.items():
            for other, theirs in controls.items():
                if key.kind == "pretrained" and (by == "baseline" or other.backbone == key.backbone):
                    seeds = _common([rows, theirs])
                    if seeds:
                        yield self.contrast([(rows[s], theirs[s]) for s in seeds], by, key.row, other.row, seeds)

    def interaction(self) -> tuple[list[dict[str, Any]], float]:
        """Return for every cell what neither its backbone nor its mask explains, and one p-value for all of them.

        The p-value is the share of centred bootstrap draws whose sum of squares reaches the observed one.
        """
        backbones, masks, cells = self.grid()
        seeds = _common([cells[b, m] for b in backbones for m in masks])
        if len(backbones) < 2 or len(masks) < 2 or not seeds:
            return [], math.nan
        value = np.array([[np.mean([self.drawn(cells[b, m][s])[0] for s in seeds]) for m in masks] for b in backbones])
        draws = np.array(
            [[np.mean([self.drawn(cells[b, m][s])[1] for s in seeds], 0) for m in masks] for b in backbones]
        )
        draws = draws[:, :, np.isfinite(draws).all((0, 1))]
        left, left_draws = _double_centred(value), _double_centred(draws)
        spread = ((left_draws - left_draws.mean(-1, keepdims=True)) ** 2).sum((0, 1))
        p = float(((spread >= (left**2).sum() - 1e-15).sum() + 1) / (draws.shape[-1] + 1))
        rows = []
        for (i, b), (j, m) in itertools.product(enumerate(backbones), enumerate(masks)):
            low, high = (float(x) for x in np.percentile(left_draws[i, j], [2.5, 97.5]))
            se = float(left_draws[i, j].std())
            rows.append(
                dict.fromkeys(COLUMNS, math.nan)
                | self._where("interaction", b, m)
                | {
                    "difference": float(left[i, j]),
                    "low": low,
                    "high": high,
                    "p": p,
                    "winner": "",
                    "detectable": POWER * se,
                    "n_subjects": self.n,
                    "n_needed": needed(float(left[i, j]), se, self.n),
                    "n_seeds": len(seeds),
                    "se_subjects": se,
                }
            )
        return rows, p

    def ranks(self) -> dict[str, tuple[int, int]]:
        """Return for every row the ranks that it may have: 1 + how many are better, to all less how many are worse.

        Better means that the interval of the paired difference excludes 0 and that its p-value, adjusted for all pairs
        of the task by Holm's method, is below .05. Rows with overlapping ranks are tied.
        """
        pairs: list[tuple[str, str, str, float]] = []
        for (a, rows), (b, theirs) in itertools.combinations(self.of.items(), 2):
            seeds = _common([rows, theirs])
            if seeds:
                found = self.contrast([(rows[s], theirs[s]) for s in seeds], "baseline", a.row, b.row, seeds)
                pairs.append((a.row, b.row, found["winner"], found["p"]))
        adjusted = holm([p for *_, p in pairs]) if pairs else []
        names = [k.row for k in self.of]
        ahead, behind = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
        for (one, other, winner, _), p in zip(pairs, adjusted, strict=True):
            if winner and p < 0.05:
                behind[winner] += 1
                ahead[other if winner == one else one] += 1
        return {n: (1 + ahead[n], len(names) - behind[n]) for n in names}


def _common(rows: Sequence[Mapping[int, Row]]) -> list[int]:
    return sorted(set.intersection(*(set(r) for r in rows))) if rows else []


def _double_centred(values: Array) -> Array:
    left: Array = values - values.mean(0, keepdims=True) - values.mean(1, keepdims=True) + values.mean((0, 1))
    return left


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
    return math.inf if difference == 0 else math.ceil(n * (POWER * se / difference) ** 2)


# ---------------------------------------------------------------- everything in a folder


@dataclass(frozen=True, eq=False)
class Comparisons:
    """Every comparison of one (dataset, task), and what they come to in words.

    Parameters
    ----------
    dataset, source, task, protocol
        Of what.
    table
        One row a comparison, with the columns of :func:`compare_results`.
    sentences
        By kind of comparison, in order.
    ranks
        Row to the first and the last rank that it may have.
    """

    dataset: str
    source: str
    task: str
    protocol: str
    table: pd.DataFrame
    sentences: Mapping[str, str]
    ranks: Mapping[str, tuple[int, int]]


def compare_all(
    out: str | Path,
    *,
    dataset: str = "",
    task: str = "",
    by: Sequence[By] = ("backbone", "mask", "untrained", "baseline", "interaction"),
    seed: int = 0,
) -> list[Comparisons]:
    """Compare the rows of an output folder.

    Parameters
    ----------
    out
        Output folder.
    dataset, task
        Labels; all without.
    by
        What to compare.
    seed
        Of bootstrap and permutations.

    Raises
    ------
    ConfigError
        If there is no such dataset or task.
    StoreError, DataError
        If the folder cannot be read.
    """
    cohorts = load_evidence(out)
    for what, wanted, known in (
        ("dataset", dataset, [e.dataset for e in cohorts]),
        ("task", task, [t for e in cohorts for t, _ in e.tasks()]),
    ):
        if wanted and wanted not in known:
            raise ConfigError(
                f"{what} {wanted!r} is not in {out}.",
                allowed=", ".join(dict.fromkeys(known)),
                likely=closest(wanted, known),
            )
    found = []
    for evidence in cohorts:
        for name, rows in evidence.tasks():
            if dataset in ("", evidence.dataset) and task in ("", name):
                found.append(_compared(evidence, name, rows, by, seed))
    return found


def _compared(evidence: Evidence, task: str, rows: pd.DataFrame, by: Sequence[By], seed: int) -> Comparisons:
    first = rows.iloc[0]
    never = ""
    if first["split"] == "within-recording":
        never = "Within recordings nothing is compared: the test signal is the training people's."
    elif first["transductive"] and first["metric"] == "r2":
        never = "After a transductive pretraining reconstruction is not held out, so nothing is compared."
    records: list[dict[str, Any]] = []
    table = pd.DataFrame(columns=list(COLUMNS))
    sentences: dict[str, str] = {}
    ranks: dict[str, tuple[int, int]] = {}
    if never:
        sentences["all"] = never
    else:
        built = _Task(evidence, task, rows, seed=seed)
        omnibus = math.nan
        for one in by:
            if one == "interaction":
                own, omnibus = built.interaction()
            else:
                own = list(built.between(one) if one in ("backbone", "mask") else built.against(one))  # type: ignore[arg-type]
            records += own
        table = _with_holm(pd.DataFrame(records, columns=list(COLUMNS)))
        for one in by:
            own_table = table[table["by"] == one]
            if len(own_table):
                sentences[one] = (
                    _interaction_words(own_table, omnibus) if one == "interaction" else _words(one, own_table)
                )
        if built.left_out:
            sentences["left out"] = "Not compared: " + "; ".join(built.left_out) + "."
        ranks = built.ranks() if by else {}
    return Comparisons(
        evidence.dataset,
        evidence.source,
        task,
        str(first["protocol"]),
        table,
        sentences,
        ranks,
    )


def _with_holm(table: pd.DataFrame) -> pd.DataFrame:
    """Adjust the p-values of a task together, one a comparison; the interaction has one of its own."""
    table = table.copy()
    tested = table["by"] != "interaction"
    table["p_holm"] = math.nan
    if tested.any():
        table.loc[tested, "p_holm"] = holm(table.loc[tested, "p"].tolist())
    # Nothing is called better on an interval alone when many were looked at.
    table.loc[tested & ~(table["p_holm"] < 0.05), "winner"] = ""
    return table


WHAT = {
    "backbone": ("backbones", "averaged over masks"),
    "mask": ("masks", "averaged over backbones"),
    "untrained": ("pretrained rows from their untrained backbones", "pretrained against untrained"),
    "baseline": ("pretrained rows from the best control without pretraining", "against the best control"),
}


def _words(by: str, table: pd.DataFrame) -> str:
    what, how = WHAT[by]
    task, unit = table["task"].iloc[0], table["unit"].iloc[0]
    unit = f" {unit}" if unit else ""
    won = table[table["winner"] != ""]
    if len(won):
        shown = [
            f"{r['winner']} is better than {r['second'] if r['winner'] == r['first'] else r['first']} "
            f"({r['difference']:+.3g}{unit}, {r['low']:.3g} to {r['high']:.3g}, Holm p {_p(r['p_holm'])})"
            for r in won.to_dict("records")
        ]
        rest = len(table) - len(won)
        tail = f" The other {rest} of {len(table)} differences are not separated." if rest else ""
        return f"On {task}, {how}: {'; '.join(shown)}.{tail}"
    largest = _largest(table)
    n = largest["n_needed"]
    more = "no number of subjects" if not math.isfinite(n) else f"about {n:,.0f} subjects"
    averaged = f", {how}" if by in ("backbone", "mask") else ""
    return (
        f"Nothing separates the {what} on {task}{averaged}. The largest difference, {largest['first']} − "
        f"{largest['second']}, is "
        f"{largest['difference']:+.3g}{unit} ({largest['low']:.3g} to {largest['high']:.3g}); if that were the true "
        f"one, "
        f"{more} would be needed to find it (here {int(largest['n_subjects'])}). "
        f"Detectable here: {table['detectable'].median():.2g}{unit}."
    )


def _largest(table: pd.DataFrame) -> dict[str, Any]:
    rows: list[Any] = table.to_dict("records")
    return dict(max(rows, key=lambda r: abs(r["difference"])))


def _interaction_words(table: pd.DataFrame, p: float) -> str:
    task = table["task"].iloc[0]
    if p >= 0.05:
        return f"On {task} the masks do not act differently on different backbones, as far as can be told (p {_p(p)})."
    strongest = _largest(table)
    return (
        f"On {task} masks act differently on different backbones (p {_p(p)}): the largest departure is "
        f"{strongest['first']} "
        f"with {strongest['second']}, {strongest['difference']:+.3g} ({strongest['low']:.3g} to "
        f"{strongest['high']:.3g}) from "
        "what backbone and mask add up to."
    )


def _p(p: float) -> str:
    return "< .001" if p < 0.001 else f"{p:.3f}"


def compare_results(
    out: str | Path, *, dataset: str = "", task: str = "", by: By | Sequence[By] | None = None, seed: int = 0
) -> pd.DataFrame:
    """Return every paired comparison of an output folder as one table.

    Parameters
    ----------
    out
        Output folder of one or more runs.
    dataset, task
        Labels; all without.
    by
        ``backbone``, ``mask``, ``untrained``, ``baseline``, ``interaction``, or several; all without.
    seed
        Of bootstrap and permutations.

    Returns
    -------
    DataFrame
        ``difference`` (first minus second, in the metric's unit) with its paired 95 % interval ``low``, ``high``; ``p``
        from exchanging the two rows' predictions of random subjects, ``p_holm`` adjusted within the task,
        ``p_nadeau_bengio`` as a check; ``winner``, empty unless the interval excludes 0 and ``p_holm`` < .05;
        ``detectable`` and ``n_needed`` for a power of .8; ``sd_seeds``, ``se_subjects`` and ``se_combined``. Of an
        interaction ``first`` is a backbone, ``second`` a mask, and ``p`` is of all cells together.
    """
    every: tuple[By, ...] = ("backbone", "mask", "untrained", "baseline", "interaction")
    chosen = every if by is None else (by,) if isinstance(by, str) else tuple(by)
    tables = [c.table for c in compare_all(out, dataset=dataset, task=task, by=chosen, seed=seed)]
    tables = [t for t in tables if len(t)]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(COLUMNS))

"""Paired comparisons over a grid: backbones, masks, their interaction, controls; what separates, and what would.

Every row of a (dataset, task) was scored on the same held-out subjects, so one bootstrap of subjects serves all of
them, and differences are paired by construction (:mod:`neurobench.paired`).
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from neurobench.errors import ConfigError, closest
from neurobench.evidence import Evidence
from neurobench.paired import N_MORE, POWER, Paired, Row, Terms, families_of, needed, row_of
from neurobench.results import load_evidence
from neurobench.scoring import holm, percentile_interval

__all__ = [
    "Across",
    "By",
    "Comparisons",
    "Pair",
    "across_tasks",
    "compare_all",
    "compare_pairs",
    "compare_results",
    "compare_rows",
    "exchanges_of",
    "rank_ranges",
    "transfer",
    "unequal_terms",
    "winner_of",
]

Array = NDArray[np.float64]

By = Literal["backbone", "mask", "untrained", "baseline", "interaction"]

EVERY: tuple[By, ...] = get_args(By)
"""Everything that can be compared, in the order in which it is told."""

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


SCORES = (
    *("row", "kind", "apart", "higher_is_better", "score", "low", "high"),
    *("n_seeds", "sd_seeds", "se_subjects", "se_combined"),
)

MIN_ROWS = 4
"""Pretrained rows below which a rank correlation over them says nothing."""

MOST_EXCHANGES = 40_000
"""Exchanges of two rows' predictions when many rows are ranked: enough for 1,600 pairs; beyond, ties stay open."""


# ---------------------------------------------------------------- one task of one cohort


@dataclass(frozen=True)
class _Key:
    kind: str
    row: str
    backbone: str
    mask: str


@dataclass(frozen=True)
class _Contrast:
    """A difference that is asked for: pairs of rows, as many a seed, and what it is called."""

    terms: Terms
    by: By
    first: str
    second: str
    n_seeds: int


class _Task(Paired):
    """The rows of one (cohort, task), every seed of them.

    A row that is not above chance is never called better than another one: where there is nothing to find, held-out
    scores scatter below chance, and who scatters least is no winner. Of two networks of which one has a size of its own
    or weights from outside, neither is called better: their difference is one of budget or of people too.
    """

    def __init__(
        self, evidence: Evidence, task: str, rows: pd.DataFrame, *, seed: int, known: Mapping[tuple[str, str], Row]
    ) -> None:
        self.evidence, self.task = evidence, task
        self.metric, self.unit = str(rows["metric"].iloc[0]), str(rows["unit"].iloc[0])
        self.higher = bool(rows["higher_is_better"].iloc[0])
        self.of: dict[_Key, dict[int, Row]] = {}
        self.left_out: list[str] = []
        self.silent: set[Row] = set()
        self.ids: dict[Row, str] = {}
        self.apart: dict[str, str] = {}
        first: Row | None = None
        same: list[tuple[dict[Any, Any], Row, tuple[int, ...]]] = []
        family: NDArray[np.int64] | None = None
        for r in rows.to_dict("records"):
            if "mask budget" in str(r.get("apart", "")):
                self.left_out.append(f"{r['row']}: its mask is outside the common budget")
                continue
            built = known.get((r["id"], self.metric))
            if built is None or first is None:
                held_out = evidence.predictions(r["id"])
                if held_out is None:
                    self.left_out.append(f"{r['row']}: its held-out predictions are not in the folder")
                    continue
                built = row_of(self.metric, held_out) if built is None else built
                if first is None:
                    first, family = built, families_of(held_out)
            if built.subjects != first.subjects:
                self.left_out.append(f"{r['row']} (seed {r['seed']}): it was scored on other subjects")
                continue
            same.append((r, built, tuple(built.fold.tolist())))
        # The split of most rows of a seed: a single one must not put all others out.
        splits: dict[int, Counter[tuple[int, ...]]] = {}
        for r, _, split in same:
            splits.setdefault(int(r["seed"]), Counter())[split] += 1
        for r, built, split in same:
            if split != splits[int(r["seed"])].most_common(1)[0][0]:
                self.left_out.append(f"{r['row']} (seed {r['seed']}): it was tested on another split")
                continue
            key = _Key(r["kind"], r["row"], r["backbone"], r["mask"])
            self.of.setdefault(key, {})[int(r["seed"])] = built
            self.ids[built] = str(r["id"])
            if r["backbone"]:
                self.apart[r["row"]] = self.apart[r["backbone"]] = str(r.get("apart", ""))
            if r["above_chance"] is False or str(r["above_chance"]) == "False":
                self.silent.add(built)
        super().__init__(0 if first is None else len(first.subjects), seed=seed, family=family)

    def grid(self) -> tuple[list[str], list[str], dict[tuple[str, str], dict[int, Row]]]:
        """Return backbones, masks and the cells of the pretrained rows; only masks that every backbone has."""
        cells = {(k.backbone, k.mask): v for k, v in self.of.items() if k.kind == "pretrained"}
        backbones = sorted({b for b, _ in cells})
        masks = [m for m in sorted({m for _, m in cells}) if all((b, m) in cells for b in backbones)]
        return backbones, masks, cells

    def heard(self) -> bool:
        """Whether any pretrained row is above chance in all its seeds, or was not asked."""
        return any(self.silent.isdisjoint(rows.values()) for key, rows in self.of.items() if key.kind == "pretrained")

    def contrasts(self, asked: Iterable[_Contrast]) -> list[dict[str, Any]]:
        """Return differences as rows of the table of comparisons."""
        every = list(asked)
        found = self.differences([(x.terms, x.n_seeds) for x in every])
        return [
            self._where(x.by, x.first, x.second)
            | numbers
            | {"winner": self.winner(x.first, x.second, x.terms, x.n_seeds, numbers["low"], numbers["high"])}
            for x, numbers in zip(every, found, strict=True)
        ]

    def winner(self, first: str, second: str, terms: Terms, n_seeds: int, low: float, high: float) -> str:
        """Return which of two rows is better, or nothing, see :func:`winner_of`."""
        if self.unequal(first, second):
            return ""
        # A row is above chance if all its seeds are, as tables say; of several rows one is enough.
        above = np.array([[row not in self.silent for row in pair] for pair in terms]).reshape(n_seeds, -1, 2)
        heard = [bool(above[..., i].all(0).any()) for i in (0, 1)]
        return winner_of((first, second), low, high, self.higher, heard)

    def unequal(self, first: str, second: str) -> str:
        """Return what two rows or backbones do not have in common, see :func:`unequal_terms`."""
        return unequal_terms(self.apart, first, second)

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

    def between(self, by: Literal["backbone", "mask"]) -> Iterator[_Contrast]:
        """Yield every two backbones (averaged over masks), or every two masks."""
        backbones, masks, cells = self.grid()
        names, others = (backbones, masks) if by == "backbone" else (masks, backbones)

        def cell(name: str, other: str) -> dict[int, Row]:
            return cells[(name, other) if by == "backbone" else (other, name)]

        order = sorted(names, key=lambda n: not n.startswith("roi"))  # roi first, so that its controls stand beside it.
        for first, second in itertools.combinations(order, 2):
            seeds = _common([cell(n, o) for n in (first, second) for o in others])
            if seeds and others:
                terms = [(cell(first, o)[s], cell(second, o)[s]) for s in seeds for o in others]
                yield _Contrast(terms, by, first, second, len(seeds))

    def against(self, by: Literal["untrained", "baseline"]) -> Iterator[_Contrast]:
        """Yield every pretrained row against its backbone untrained or as given, or the best baseline or filler."""
        controls = {
            k: v
            for k, v in self.of.items()
            if k.kind in (("untrained", "given") if by == "untrained" else ("baseline", "filler"))
        }
        if by == "baseline" and controls:
            sign = 1 if self.higher else -1
            best = max(controls, key=lambda k: sign * np.mean([self.drawn(r)[0] for r in controls[k].values()]))
            controls = {best: controls[best]}
        for key, rows in self.of.items():
            own = controls if by == "baseline" else _of_same_network(key, controls)
            for other, theirs in own.items():
                if key.kind == "pretrained":
                    seeds = _common([rows, theirs])
                    if seeds:
                        terms = [(rows[s], theirs[s]) for s in seeds]
                        yield _Contrast(terms, by, key.row, other.row, len(seeds))

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

    def scores(self) -> pd.DataFrame:
        """Return one row a row of the task, see :class:`Comparisons`: its score, over subjects and over seeds."""
        rows = []
        for key, of in self.of.items():
            drawn = [self.drawn(of[s]) for s in sorted(of)]
            values, draws = np.array([d[0] for d in drawn]), np.stack([d[1] for d in drawn])
            mean = draws.mean(0)
            low, high = percentile_interval(mean)
            several = len(values) > 1
            rows.append(
                {
                    "row": key.row,
                    "kind": key.kind,
                    "apart": self.apart.get(key.row, ""),
                    "higher_is_better": self.higher,
                    "score": float(values.mean()),
                    "low": math.nan if low is None else low,
                    "high": math.nan if high is None else high,
                    "n_seeds": len(values),
                    "sd_seeds": float(values.std(ddof=1)) if several else math.nan,
                    "se_subjects": float(mean[np.isfinite(mean)].std()) if np.isfinite(mean).any() else math.nan,
                    "se_combined": self.combined_error(draws) if several else math.nan,
                }
            )
        return pd.DataFrame(rows, columns=list(SCORES))

    def pairs(self) -> list[Pair]:
        """Return the difference of every two rows over the seeds that both have."""
        every = list(itertools.combinations(self.of.items(), 2))
        seeds = [_common([rows, theirs]) for (_, rows), (_, theirs) in every]
        terms = [
            [(rows[s], theirs[s]) for s in own] for ((_, rows), (_, theirs)), own in zip(every, seeds, strict=True)
        ]
        names = [(a.row, b.row) for ((a, _), (b, _)), own in zip(every, terms, strict=True) if own]
        terms = [own for own in terms if own]
        spans, p = self.spans(terms), self.p_values(terms)
        winners = [
            self.winner(*n, t, len(t), low, high) for n, t, (_, low, high, _) in zip(names, terms, spans, strict=True)
        ]
        # Holm's smallest p must be able to fall below .05: what no exchange reached is exchanged anew, as often as the
        # number of pairs asks for.
        enough = exchanges_of(len(terms))
        if enough > N_MORE:
            anew = [i for i, winner in enumerate(winners) if winner and p[i] < 1.5 / N_MORE]
            for i, finer in zip(anew, self.exchange_p([terms[i] for i in anew], enough), strict=True):
                p[i] = finer
        pairs = []
        for i, (difference, low, high, se) in enumerate(spans):
            ids = [tuple(self.ids[pair[k]] for pair in terms[i]) for k in (0, 1)]
            pairs.append(Pair(*names[i], winners[i], ids[0], ids[1], difference, low, high, p[i], se, self.n))
        return pairs


@dataclass(frozen=True)
class Pair:
    """The difference of two rows of a task, first minus second, averaged over the seeds that both have.

    Parameters
    ----------
    first, second
        Rows.
    winner
        Which of them is better, as far as this pair alone can say; empty: neither is shown to be.
    first_ids, second_ids
        Records behind it, one a seed, in the same order.
    difference, low, high
        In the metric's unit, with the paired 95 % interval over subjects.
    p
        From exchanging the two rows' predictions of random subjects; not adjusted for other pairs.
    se
        Standard error over subjects.
    n_subjects
        Held-out subjects, the same of both.
    """

    first: str
    second: str
    winner: str
    first_ids: tuple[str, ...]
    second_ids: tuple[str, ...]
    difference: float
    low: float
    high: float
    p: float
    se: float
    n_subjects: int


def exchanges_of(n_pairs: int) -> int:
    """Return how often two rows are exchanged at most where so many pairs are looked at together."""
    return min(25 * n_pairs, MOST_EXCHANGES)


def winner_of(rows: Sequence[str], low: float, high: float, higher: bool, heard: Sequence[bool]) -> str:
    """Return which of two rows is better, or nothing: the interval excludes 0, and the better row is above chance.

    Parameters
    ----------
    rows
        First and second.
    low, high
        Interval of first minus second.
    higher
        Whether higher is better.
    heard
        Whether each of them is above chance, with every seed, or was not asked.
    """
    if not (low > 0 or high < 0):
        return ""
    ahead = 0 if (low > 0) == higher else 1
    return rows[ahead] if heard[ahead] else ""


def unequal_terms(apart: Mapping[str, str], first: str, second: str) -> str:
    """Return what two networks do not have in common; of a baseline nobody expects a network's budget."""
    if not {first, second} <= apart.keys() or apart[first] == apart[second]:
        return ""
    return ", ".join(sorted(set(filter(None, f"{apart[first]}, {apart[second]}".split(", ")))))


def wins_among(pairs: Sequence[Pair]) -> frozenset[tuple[str, str]]:
    """Return every (better row, other row) of a task.

    Better means that the interval of the paired difference excludes 0 and that its p-value, adjusted for all pairs of
    the task by Holm's method, is below .05.
    """
    adjusted = holm([x.p for x in pairs])
    return frozenset(
        (x.winner, x.second if x.winner == x.first else x.first)
        for x, p in zip(pairs, adjusted, strict=True)
        if x.winner and p < 0.05
    )


def on_equal_terms(table: pd.DataFrame) -> pd.Series[bool]:
    """Return which rows are ranked beside the others: all but those with a size or with weights of their own."""
    return table["apart"].isna() | (table["apart"] == "")


def rank_ranges(rows: Sequence[str], wins: frozenset[tuple[str, str]]) -> dict[str, tuple[int, int]]:
    """Return for every row the ranks that it may have: 1 + how many are better, to all less how many are worse.

    Rows with overlapping ranks are tied. ``wins`` against rows that are not asked for do not count.
    """
    field = set(rows)
    ahead, behind = dict.fromkeys(rows, 0), dict.fromkeys(rows, 0)
    for better, worse in wins:
        if better in field and worse in field:
            behind[better] += 1
            ahead[worse] += 1
    return {n: (1 + ahead[n], len(rows) - behind[n]) for n in rows}


def _of_same_network(key: _Key, untrained: Mapping[_Key, Any]) -> dict[_Key, Any]:
    """Return the untrained row of a pretrained one's backbone; that with the same units where there are several.

    A network that was pretrained on another cohort has that one's units, and so has its control.
    """
    own = {k: v for k, v in untrained.items() if k.backbone == key.backbone}
    first = key.mask.partition(" ← ")[2]
    abroad = {k: v for k, v in own.items() if " (units of " in k.row}
    fitting = {k: v for k, v in abroad.items() if first and first.startswith(k.row.rpartition(" (units of ")[2][:-1])}
    return fitting or {k: v for k, v in own.items() if k not in abroad} or own


def _common(rows: Sequence[Mapping[int, Row]]) -> list[int]:
    return sorted(set.intersection(*(set(r) for r in rows))) if rows else []


def _double_centred(values: Array) -> Array:
    left: Array = values - values.mean(0, keepdims=True) - values.mean(1, keepdims=True) + values.mean((0, 1))
    return left


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
    wins
        Every (better row, other row).
    scores
        One row a row, with the columns of :data:`SCORES`: its score, averaged over seeds; the interval and the standard
        error over subjects, the seeds as they are; the s.d. over seeds; and the standard error with both drawn.
    pairs
        The difference of every two rows, which ``wins`` follow from.
    """

    dataset: str
    source: str
    task: str
    protocol: str
    table: pd.DataFrame
    sentences: Mapping[str, str]
    ranks: Mapping[str, tuple[int, int]]
    wins: frozenset[tuple[str, str]] = frozenset()
    scores: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(SCORES)))
    pairs: tuple[Pair, ...] = ()


def compare_all(
    out: str | Path,
    *,
    dataset: str = "",
    task: str = "",
    by: Sequence[By] = EVERY,
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
                found.append(compare_rows(evidence, name, rows, by=by, seed=seed))
    return found


def compare_rows(
    evidence: Evidence,
    task: str,
    rows: pd.DataFrame,
    *,
    by: Sequence[By] = EVERY,
    seed: int = 0,
    known: Mapping[tuple[str, str], Row] = {},
) -> Comparisons:
    """Compare the rows of one task whose evidence is at hand.

    Parameters
    ----------
    evidence
        Whose ``predictions`` are asked for by the records' ids.
    task
        Label of the task.
    rows
        Rows as :func:`neurobench.load_results` gives them, of one protocol.
    by
        What to compare.
    seed
        Of bootstrap and permutations.
    known
        Rows by (id of the record, metric) that somebody has built of the same predictions already.
    """
    first = rows.iloc[0]
    never = ""
    if first["split"] == "within-recording":
        never = "Within recordings nothing is compared: the test signal is the training people's."
    elif first["transductive"] and first["metric"] == "r2":
        never = "After a transductive pretraining reconstruction is not held out, so nothing is compared."
    records: list[dict[str, Any]] = []
    table = pd.DataFrame(columns=list(COLUMNS))
    sentences: dict[str, str] = {}
    pairs: tuple[Pair, ...] = ()
    wins: frozenset[tuple[str, str]] = frozenset()
    scores = pd.DataFrame(columns=list(SCORES))
    if never:
        sentences["all"] = never
    else:
        built = _Task(evidence, task, rows, seed=seed, known=known)
        omnibus = math.nan
        for one in by:
            if one == "interaction":
                own, omnibus = built.interaction()
            else:
                asked = built.between(one) if one in ("backbone", "mask") else built.against(one)  # type: ignore[arg-type]
                own = built.contrasts(asked)
            records += own
        table = _with_holm(pd.DataFrame(records, columns=list(COLUMNS)))
        for one in by:
            own_table = table[table["by"] == one]
            if len(own_table):
                sentences[one] = (
                    _interaction_words(own_table, omnibus, built.heard())
                    if one == "interaction"
                    else _words(one, own_table, int((table["by"] != "interaction").sum()), built.unequal)
                )
        if built.left_out:
            sentences["left out"] = "Not compared: " + "; ".join(dict.fromkeys(built.left_out)) + "."
        pairs, scores = tuple(built.pairs()), built.scores()
        wins = wins_among(pairs)
    return Comparisons(
        evidence.dataset,
        evidence.source,
        task,
        str(first["protocol"]),
        table,
        sentences,
        rank_ranges(scores.loc[on_equal_terms(scores), "row"].tolist(), wins),
        wins,
        scores,
        pairs,
    )


def compare_pairs(rows: pd.DataFrame, pairs: Sequence[Pair]) -> Comparisons:
    """Return what differences come to that were computed where the predictions are.

    Parameters
    ----------
    rows
        Rows as :func:`neurobench.load_results` gives them, of one task and protocol.
    pairs
        Differences among them; of rows that none is of nothing is said.
    """
    head = rows.iloc[0]
    of = {(x.first, x.second): x for x in pairs} | {(x.second, x.first): _turned(x) for x in pairs}
    rows = rows[rows["row"].isin({row for row, _ in of})]
    each = rows.drop_duplicates("row").to_dict("records")
    keys = [_Key(r["kind"], r["row"], r["backbone"], r["mask"]) for r in each]
    apart = {r["row"]: r["apart"] for r in each if r["backbone"]}
    controls: dict[By, dict[_Key, Any]] = {
        "untrained": {k: k for k in keys if k.kind in ("untrained", "given")},
        "baseline": {k: k for k in keys if k.kind in ("baseline", "filler")},
    }
    higher, scores = bool(head["higher_is_better"]), rows.groupby("row")["score"].mean()
    if known := controls["baseline"]:
        best = (max if higher else min)(known, key=lambda k: scores[k.row])
        controls["baseline"] = {best: best}
    said = []
    for by, own in controls.items():
        for key in (k for k in keys if k.kind == "pretrained"):
            for other in own if by == "baseline" else _of_same_network(key, own):
                if x := of.get((key.row, other.row)):
                    said.append(_row_of_pair(x, by, head))
    table = _with_holm(pd.DataFrame(said, columns=list(COLUMNS)))
    sentences: dict[str, str] = {}
    for by in controls:
        told = table[table["by"] == by]
        if len(told):
            sentences[by] = _words(by, told, len(table), lambda a, b: unequal_terms(apart, a, b))
    wins = wins_among(pairs)
    fair = [r["row"] for r in each if not r["apart"]]
    where = (str(head["dataset"]), str(head["source"]), str(head["task"]), str(head["protocol"]))
    return Comparisons(*where, table, sentences, rank_ranges(fair, wins), wins, pairs=tuple(pairs))


def _turned(x: Pair) -> Pair:
    ids = {"first": x.second, "second": x.first, "first_ids": x.second_ids, "second_ids": x.first_ids}
    return replace(x, **ids, difference=-x.difference, low=-x.high, high=-x.low)  # type: ignore[arg-type]


def _row_of_pair(x: Pair, by: By, head: pd.Series[Any]) -> dict[str, Any]:
    """Return a difference as a row of the table of comparisons; what only predictions can give is NaN."""
    return (
        dict.fromkeys(COLUMNS, math.nan)
        | {name: head[name] for name in ("dataset", "source", "task", "metric", "unit")}
        | {"by": by, "first": x.first, "second": x.second, "winner": x.winner}
        | {name: getattr(x, name) for name in ("difference", "low", "high", "p", "n_subjects")}
        | {"detectable": POWER * x.se, "n_needed": needed(x.difference, x.se, x.n_subjects)}
        | {"n_seeds": len(x.first_ids), "se_subjects": x.se}
    )


# ---------------------------------------------------------------- over tasks


@dataclass(frozen=True, eq=False)
class Across:
    """What several tasks of one cohort say together. Ranks are averaged, never errors: those have different units.

    Parameters
    ----------
    dataset, source
        Of what.
    tasks
        Labels.
    table
        ``row``, ``mean_rank``, ``first`` and ``last`` (the means of the first and last ranks that it may have), one
        column ``rank[TASK]`` a task; of the rows that were scored on every one of the tasks, ranked among themselves.
    sentence
        What it is and who is tied.
    """

    dataset: str
    source: str
    tasks: tuple[str, ...]
    table: pd.DataFrame
    sentence: str


def across_tasks(found: Sequence[Comparisons]) -> list[Across]:
    """Return mean ranks over the tasks of each cohort, and how reconstruction goes with every other task.

    A rank counts ties: of the ranks that a row may have it is the middle one, so that rows which nothing separates
    share it. Baselines are not scored on reconstruction, and trivial fillers on nothing else, so ranks are averaged
    over the tasks that baselines are scored on, and over all tasks for those rows that are in all.
    """
    by_cohort: dict[tuple[str, str, str], list[Comparisons]] = {}
    for c in found:
        if len(c.scores):
            by_cohort.setdefault((c.dataset, c.source, c.protocol), []).append(c)
    across = []
    for own in by_cohort.values():
        downstream = [c for c in own if (c.scores["kind"] == "baseline").any()]
        for tasks in dict.fromkeys((tuple(downstream), tuple(own))):
            rows = _in_all(tasks)
            if len(tasks) > 1 and len(rows) > 1:
                across.append(_mean_ranks(tasks, rows))
    return across


def _in_all(tasks: Sequence[Comparisons]) -> list[str]:
    """Return the rows that were scored on every task, in order."""
    # With their kind: ``mean`` is a baseline of one task and a trivial filler of another.
    fair = [c.scores[on_equal_terms(c.scores)] for c in tasks]
    rows = [dict.fromkeys(zip(own["kind"], own["row"], strict=True)) for own in fair]
    return [row for kind, row in rows[0] if all((kind, row) in own for own in rows)] if rows else []


def _mean_ranks(tasks: Sequence[Comparisons], rows: Sequence[str]) -> Across:
    ranges = [rank_ranges(rows, c.wins) for c in tasks]
    table = pd.DataFrame(
        [
            {
                "row": row,
                "mean_rank": float(np.mean([sum(r[row]) / 2 for r in ranges])),
                "first": float(np.mean([r[row][0] for r in ranges])),
                "last": float(np.mean([r[row][1] for r in ranges])),
            }
            | {f"rank[{c.task}]": sum(r[row]) / 2 for c, r in zip(tasks, ranges, strict=True)}
            for row in rows
        ]
    )
    table = table.sort_values(["mean_rank", "row"], kind="stable").reset_index(drop=True)
    names = tuple(c.task for c in tasks)
    head = table.iloc[0]
    tied = table["row"][1:][table["first"][1:] <= head["last"]].tolist()
    if len(tied) == len(table) - 1 and table["mean_rank"].nunique() == 1:
        said = "nothing separates any two rows, so all share one rank."
    elif tied:
        overlap = f"{len(tied)} of the other {len(table) - 1} rows"
        said = f"{head['row']} is first, but its ranks overlap with those of {overlap}."
    else:
        said = f"{head['row']} is first, ahead of every other row."
    sentence = f"Mean rank over {', '.join(names)} (ties share the middle of their ranks): {said}"
    return Across(tasks[0].dataset, tasks[0].source, names, table, sentence)


def transfer(found: Sequence[Comparisons]) -> list[tuple[str, str]]:
    """Return (dataset, sentence): does better reconstruction go with better prediction, over the pretrained rows?"""
    said = []
    for source in found:
        if not (source.scores["kind"] == "filler").any():
            continue
        for c in found:
            downstream = (c.scores["kind"] == "baseline").any()
            if downstream and (c.dataset, c.protocol) == (source.dataset, source.protocol):
                rho, n = _rank_correlation(source.scores, c.scores)
                if math.isfinite(rho):
                    text = (
                        f"Over {n} pretrained rows, {source.task} goes with {c.task} at Spearman's ρ {rho:+.2f} "
                        "(positive: better with better). Rows are few and share their subjects: no interval is given."
                    )
                    said.append((c.dataset, text))
    return said


def _rank_correlation(first: pd.DataFrame, second: pd.DataFrame) -> tuple[float, int]:
    """Return Spearman's ρ of two tasks over the pretrained rows, better with better, and how many rows there are."""
    both = first[first["kind"] == "pretrained"].merge(second[second["kind"] == "pretrained"], on="row")
    both = both.dropna(subset=["score_x", "score_y"])
    if len(both) < MIN_ROWS or min(both["score_x"].nunique(), both["score_y"].nunique()) < 2:
        return math.nan, len(both)
    x, y = (both[f"score_{s}"] * np.where(both[f"higher_is_better_{s}"], 1.0, -1.0) for s in "xy")
    return float(stats.spearmanr(x, y).statistic), len(both)


# ---------------------------------------------------------------- words


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


def _needed_among(line: Mapping[str, Any], n_tested: int) -> float:
    """Return the subjects at which a difference is found with a power of .8 where many are looked at.

    Bonferroni's level, which is the one of Holm's first step: the number is on the safe side.
    """
    se, difference, n = float(line["detectable"]) / POWER, abs(float(line["difference"])), int(line["n_subjects"])
    reach = float(stats.norm.isf(0.05 / (2 * n_tested)) + stats.norm.isf(0.2))
    # It was not found with those that there are.
    return max(float(math.ceil(n * (reach * se / difference) ** 2)), float(n + 1))


def _words(by: str, table: pd.DataFrame, n_tested: int, unequal: Callable[[str, str], str]) -> str:
    """Return what comparisons of one kind come to; those on unequal terms are told apart, without a winner."""
    pairs = zip(table["first"], table["second"], strict=True)
    why = pd.Series([unequal(first, second) for first, second in pairs], table.index, dtype=str)
    equal = table[why == ""]
    said = [_equal_words(by, equal, n_tested)] if len(equal) else []
    unit = f" {table['unit'].iloc[0]}" if table["unit"].iloc[0] else ""
    said += [
        f"{r['first']} − {r['second']} is {r['difference']:+.3g}{unit} ({r['low']:.3g} to {r['high']:.3g}); they are "
        f"not on equal terms ({reason}), so neither is called better."
        for r, reason in zip(table[why != ""].to_dict("records"), why[why != ""], strict=True)
    ]
    return " ".join(said)


def _equal_words(by: str, table: pd.DataFrame, n_tested: int) -> str:
    what, how = WHAT[by]
    if by == "untrained" and table["second"].str.contains(" · as given", regex=False).any():
        what, how = "pretrained rows from their backbones untrained or as given", "pretrained against before"
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
    apart = largest["low"] > 0 or largest["high"] < 0
    n = largest["n_needed"]
    more = "no number of subjects" if not math.isfinite(n) else f"about {n:,.0f} subjects"
    averaged = f", {how}" if by in ("backbone", "mask") else ""
    said = (
        f"Nothing separates the {what} on {task}{averaged}. The largest difference, {largest['first']} − "
        f"{largest['second']}, is {largest['difference']:+.3g}{unit} ({largest['low']:.3g} to {largest['high']:.3g})"
    )
    if apart and largest["p_holm"] >= 0.05:
        said += "; its interval excludes 0, but among all comparisons of the task that does not count "
        said += f"(Holm p {_p(largest['p_holm'])})"
        among = _needed_among(largest, n_tested)
        said += f": among {n_tested}, about {among:,.0f} subjects would be needed (here {int(largest['n_subjects'])})."
    elif apart:
        said += "; its interval excludes 0, but what is ahead is not above chance itself."
    else:
        said += f"; if that were the true one, {more} would be needed to find it (here {int(largest['n_subjects'])})."
    return f"{said} Detectable here: {table['detectable'].median():.2g}{unit}."


def _largest(table: pd.DataFrame) -> dict[str, Any]:
    rows: list[Any] = table.to_dict("records")
    return dict(max(rows, key=lambda r: abs(r["difference"])))


def _interaction_words(table: pd.DataFrame, p: float, heard: bool) -> str:
    task, unit = table["task"].iloc[0], table["unit"].iloc[0]
    unit = f" {unit}" if unit else ""
    strongest = _largest(table)
    if p >= 0.05:
        n = strongest["n_needed"]
        more = "no number of subjects" if not math.isfinite(n) else f"about {n:,.0f} subjects"
        return (
            f"On {task} the masks do not act differently on different backbones, as far as can be told (p {_p(p)}); if "
            f"the largest departure, {strongest['difference']:+.3g}{unit}, were the true one, {more} would be needed "
            f"to find it (here {int(strongest['n_subjects'])})."
        )
    if not heard:
        return (
            f"On {task} masks seem to act differently on different backbones (p {_p(p)}), but no pretrained row is "
            "above chance itself, so nothing follows."
        )
    return (
        f"On {task} masks act differently on different backbones (p {_p(p)}): the largest departure is "
        f"{strongest['first']} "
        f"with {strongest['second']}, {strongest['difference']:+.3g}{unit} ({strongest['low']:.3g} to "
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
    chosen = EVERY if by is None else (by,) if isinstance(by, str) else tuple(by)
    tables = [c.table for c in compare_all(out, dataset=dataset, task=task, by=chosen, seed=seed)]
    tables = [t for t in tables if len(t)]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(COLUMNS))

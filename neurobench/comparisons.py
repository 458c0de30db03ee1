"""Paired comparisons over a grid: backbones, masks, their interaction, controls; what separates, and what would.

Every row of a (dataset, task) was scored on the same held-out subjects, so one bootstrap of subjects serves all of
them, and differences are paired by construction (:mod:`neurobench.paired`).
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neurobench.comparison_words import interaction_words, words
from neurobench.errors import ConfigError, closest
from neurobench.evidence import Evidence
from neurobench.paired import N_MORE, POWER, Paired, Row, Terms, families_of, needed, row_of
from neurobench.ranks import (
    Pair,
    exchanges_of,
    on_equal_terms,
    rank_ranges,
    unequal_terms,
    winner_of,
    wins_among,
)
from neurobench.results import load_evidence
from neurobench.scoring import holm, percentile_interval

__all__ = ["By", "Comparisons", "compare_all", "compare_pairs", "compare_results", "compare_rows"]

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
        """Return which of two rows is better, or nothing, see :func:`neurobench.ranks.winner_of`."""
        if self.unequal(first, second):
            return ""
        # A row is above chance if all its seeds are, as tables say; of several rows one is enough.
        above = np.array([[row not in self.silent for row in pair] for pair in terms]).reshape(n_seeds, -1, 2)
        heard = [bool(above[..., i].all(0).any()) for i in (0, 1)]
        return winner_of((first, second), low, high, self.higher, heard)

    def unequal(self, first: str, second: str) -> str:
        """Return what two rows or backbones do not have in common, see :func:`neurobench.ranks.unequal_terms`."""
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
        records = _with_holm(records)
        n_tested = sum(line["by"] != "interaction" for line in records)
        for one in by:
            if told := [line for line in records if line["by"] == one]:
                sentences[one] = (
                    interaction_words(told, omnibus, built.heard())
                    if one == "interaction"
                    else words(one, told, n_tested, built.higher, built.unequal)
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
        pd.DataFrame(records, columns=list(COLUMNS)),
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
    said = _with_holm(said)
    sentences: dict[str, str] = {}
    for by in controls:
        if told := [line for line in said if line["by"] == by]:
            sentences[by] = words(by, told, len(said), higher, lambda a, b: unequal_terms(apart, a, b))
    wins = wins_among(pairs)
    fair = [r["row"] for r in each if not r["apart"]]
    where = (str(head["dataset"]), str(head["source"]), str(head["task"]), str(head["protocol"]))
    table = pd.DataFrame(said, columns=list(COLUMNS))
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


def _with_holm(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Adjust the p-values of a task together, one a comparison; the interaction has one of its own."""
    adjusted = iter(holm([line["p"] for line in lines if line["by"] != "interaction"]))
    # Nothing is called better on an interval alone when many were looked at.
    return [
        {**line, "p_holm": math.nan}
        if line["by"] == "interaction"
        else {**line, "p_holm": (p := next(adjusted)), "winner": line["winner"] if p < 0.05 else ""}
        for line in lines
    ]


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

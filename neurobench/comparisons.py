"""Paired comparisons over a grid: backbones, masks, their interaction, controls; what separates, and what would.

Every row of a (dataset, task) was scored on the same held-out subjects, so one bootstrap of subjects serves all of
them, and differences are paired by construction (:mod:`neurobench.paired`).
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

from neurobench.errors import ConfigError, closest
from neurobench.evidence import Evidence
from neurobench.paired import POWER, Paired, Row, needed, row_of
from neurobench.results import load_evidence
from neurobench.scoring import N_PERMUTATIONS, holm

__all__ = ["By", "Comparisons", "compare_all", "compare_results", "compare_rows"]

Array = NDArray[np.float64]

By = Literal["backbone", "mask", "untrained", "baseline", "interaction"]

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


MOST_EXCHANGES = 40_000
"""Exchanges of two rows' predictions when many rows are ranked: enough for 1,600 pairs; beyond, ties stay open."""


# ---------------------------------------------------------------- one task of one cohort


@dataclass(frozen=True)
class _Key:
    kind: str
    row: str
    backbone: str
    mask: str


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
        every = list(itertools.combinations(self.of.items(), 2))
        # Holm's smallest p must be able to fall below .05: with 11 rows a thousand exchanges no longer allow that, so
        # what none of them reached is exchanged anew, as often as the number of pairs asks for.
        enough = min(25 * len(every), MOST_EXCHANGES)
        pairs: list[tuple[str, str, str, float]] = []
        for (a, rows), (b, theirs) in every:
            seeds = _common([rows, theirs])
            if seeds:
                terms = [(rows[s], theirs[s]) for s in seeds]
                found = self.contrast(terms, "baseline", a.row, b.row, seeds)
                p = found["p"]
                if found["winner"] and enough > N_PERMUTATIONS and p < 1.5 / N_PERMUTATIONS:
                    p = self.exchange_p(terms, enough)
                pairs.append((a.row, b.row, found["winner"], p))
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


def compare_rows(
    evidence: Evidence,
    task: str,
    rows: pd.DataFrame,
    *,
    by: Sequence[By] = ("backbone", "mask", "untrained", "baseline", "interaction"),
    seed: int = 0,
) -> Comparisons:
    """Compare the rows of one task whose evidence is at hand: as :func:`compare_all`, without an output folder.

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
    """
    return _compared(evidence, task, rows, by, seed)


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
        said += f"(Holm p {_p(largest['p_holm'])})."
    elif apart:
        said += "; its interval excludes 0, but what is ahead is not above chance itself."
    else:
        said += f"; if that were the true one, {more} would be needed to find it (here {int(largest['n_subjects'])})."
    return f"{said} Detectable here: {table['detectable'].median():.2g}{unit}."


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

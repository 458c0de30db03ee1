"""What the comparisons of several tasks of one cohort say together: mean ranks, and what goes with what."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy

from neurobench.comparisons import Comparisons
from neurobench.ranks import on_equal_terms, rank_ranges

__all__ = ["Across", "across_tasks", "transfer"]

MIN_ROWS = 4
"""Pretrained rows below which a rank correlation over them says nothing."""


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
    top = table["row"][table["mean_rank"] == head["mean_rank"]].tolist()
    overlap = f"{len(tied)} of the other {len(table) - 1} rows"
    wins = {c.task: {(a, b) for a, b in c.wins if a in rows and b in rows} for c in tasks}
    if not any(wins.values()):
        said = "nothing separates any two rows, so all share one rank."
    elif len(top) > 1:
        # Of equal ranks the order of names must not make one the first.
        said = f"{', '.join(top[:-1])} and {top[-1]} share the first place."
    elif tied:
        said = f"{head['row']} is first, but its ranks overlap with those of {overlap}."
    else:
        said = f"{head['row']} is first, ahead of every other row."
    # A mean may hide that a first row is the worse one of some task.
    for first in top:
        behind = {task: [row for row in rows if (row, first) in won] for task, won in wins.items()}
        if lost := [f"on {task} {', '.join(better)}" for task, better in behind.items() if better]:
            said += f" Better than {first}: {'; '.join(lost)}."
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
    return float(scipy.stats.spearmanr(x, y).statistic), len(both)

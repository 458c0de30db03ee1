"""Which of two rows is better, and the ranks that a row may have: by paired differences alone, never by scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from neurobench.scoring import holm

__all__ = [
    "Pair",
    "exchanges_of",
    "on_equal_terms",
    "rank_ranges",
    "unequal_terms",
    "winner_of",
    "wins_among",
]

MOST_EXCHANGES = 40_000
"""Exchanges of two rows' predictions when many rows are ranked: enough for 1,600 pairs; beyond, ties stay open."""


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

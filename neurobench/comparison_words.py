"""What comparisons of one kind come to, in whole sentences."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scipy import special

from neurobench.paired import POWER

__all__ = ["interaction_words", "words"]

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
    reach = -float(special.ndtri(0.05 / (2 * n_tested)) + special.ndtri(0.2))
    # It was not found with those that there are.
    return max(float(math.ceil(n * (reach * se / difference) ** 2)), float(n + 1))


def words(
    by: str, lines: Sequence[Mapping[str, Any]], n_tested: int, higher: bool, unequal: Callable[[str, str], str]
) -> str:
    """Return what comparisons of one kind come to; those on unequal terms are told apart, without a winner.

    Parameters
    ----------
    by
        The kind.
    lines
        Rows of the table of comparisons, of this kind alone.
    n_tested
        Comparisons of the task that were adjusted together.
    higher
        Whether higher is better.
    unequal
        What two rows do not have in common, see :func:`neurobench.ranks.unequal_terms`.
    """
    why = [unequal(line["first"], line["second"]) for line in lines]
    equal = [line for line, reason in zip(lines, why, strict=True) if not reason]
    said = [_equal_words(by, equal, n_tested, higher)] if equal else []
    unit = f" {lines[0]['unit']}" if lines[0]["unit"] else ""
    said += [
        f"{r['first']} − {r['second']} is {r['difference']:+.3g}{unit} ({r['low']:.3g} to {r['high']:.3g}); they are "
        f"not on equal terms ({reason}), so neither is called better."
        for r, reason in zip(lines, why, strict=True)
        if reason
    ]
    return " ".join(said)


def _equal_words(by: str, lines: Sequence[Mapping[str, Any]], n_tested: int, higher: bool) -> str:
    what, how = WHAT[by]
    if by == "untrained" and any(" · as given" in line["second"] for line in lines):
        what, how = "pretrained rows from their backbones untrained or as given", "pretrained against before"
    task, unit = lines[0]["task"], f" {lines[0]['unit']}" if lines[0]["unit"] else ""
    won = [line for line in lines if line["winner"]]
    if won:
        shown = [
            f"{r['winner']} is better than {r['second'] if r['winner'] == r['first'] else r['first']} "
            f"({r['difference']:+.3g}{unit}, {r['low']:.3g} to {r['high']:.3g}, Holm p {_p(r['p_holm'])})"
            for r in won
        ]
        rest = len(lines) - len(won)
        tail = f" The other {rest} of {len(lines)} differences are not separated." if rest else ""
        return f"On {task}, {how}: {'; '.join(shown)}.{tail}"
    largest = _largest(lines)
    apart = largest["low"] > 0 or largest["high"] < 0
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
        ahead = largest["first"] if (largest["low"] > 0) == higher else largest["second"]
        who = f"no row of {ahead} is" if averaged else f"{ahead} is not"
        seeds = " with every seed" if largest["n_seeds"] > 1 else ""
        said += f"; its interval excludes 0, but {who} above chance{seeds}, so it is not called better."
    else:
        said += f"; if that were the true one, {_enough(largest)}."
    sizes = [line["detectable"] for line in lines if math.isfinite(line["detectable"])]
    return f"{said} Detectable here: {statistics.median(sizes) if sizes else math.nan:.2g}{unit}."


def _enough(line: Mapping[str, Any]) -> str:
    """Return how many subjects would find a difference, if it were the true one."""
    n, here = line["n_needed"], int(line["n_subjects"])
    if not math.isfinite(n):
        return f"no number of subjects would find it (here {here})"
    return f"about {n:,.0f} subjects would be needed to find it (here {here})"


def _largest(lines: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    return max(lines, key=lambda r: abs(r["difference"]))


def interaction_words(lines: Sequence[Mapping[str, Any]], p: float, heard: bool) -> str:
    """Return whether masks act differently on different backbones.

    Parameters
    ----------
    lines
        Cells, as rows of the table of comparisons.
    p
        Of all cells together.
    heard
        Whether any pretrained row is above chance.
    """
    task, unit = lines[0]["task"], f" {lines[0]['unit']}" if lines[0]["unit"] else ""
    strongest = _largest(lines)
    if p >= 0.05:
        return (
            f"On {task} the masks do not act differently on different backbones, as far as can be told (p {_p(p)}); if "
            f"the largest departure, {strongest['difference']:+.3g}{unit}, were the true one, {_enough(strongest)}."
        )
    if not heard:
        return (
            f"On {task} masks seem to act differently on different backbones (p {_p(p)}), but no pretrained row is "
            "above chance, so nothing follows."
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

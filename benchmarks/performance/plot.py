"""The performance table as a picture: how far each ratio is from its bar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

GOOD, BAD = "#0072B2", "#D55E00"
"""Blue and vermilion of the Okabe–Ito palette, told apart by everyone."""


MOST = 30
"""Factors beyond this are drawn as this."""


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw every row that has a bar: the factor by which it beats it, on a logarithmic axis.

    Parameters
    ----------
    rows
        As they are kept: ``topic``, ``name``, ``value``, ``bar``, ``at_least``.
    path
        Picture to write.
    """
    from matplotlib.figure import Figure

    shown = [r for r in rows if r["bar"] is not None and r["value"] > 0]
    if not shown:
        return
    figure = Figure(figsize=(9, 0.8 + 0.28 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    for place, row in enumerate(reversed(shown)):
        margin = row["value"] / row["bar"] if row["at_least"] else row["bar"] / row["value"]
        margin = min(margin, MOST)
        axes.barh(place, margin - 1, left=1, color=GOOD if margin >= 1 else BAD, height=0.6)
        sign = "≥" if row["at_least"] else "≤"
        text = f" {row['value']:.3g} ({sign} {row['bar']:g}) "
        axes.text(max(margin, 1), place, text, va="center", ha="left", fontsize=7)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yticks(range(len(shown)), [f"{r['topic']} · {r['name']}" for r in reversed(shown)], fontsize=7)
    axes.set_ylim(-0.6, len(shown) - 0.4)
    axes.set_xlim(min(axes.get_xlim()[0], 0.5), 6 * MOST)
    axes.set_xlabel(f"times better than the bar, at most {MOST} shown (below 1: missed)", loc="right", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)

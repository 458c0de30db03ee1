"""Every row of a task with its interval: pretrained, untrained, baselines, and chance."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from neurobench import Drawing, Evidence, Figure, hookimpl
from neurobench_figures._style import (
    KIND_COLOURS,
    KIND_NAMES,
    MOST_ROWS,
    SMALL,
    canvas,
    joined,
    known,
    over_seeds,
    seeds_said,
    shortened,
    slug,
    tidy,
    with_unit,
    words,
)


class Intervals(Figure):
    """One point a row with its 95 % interval, the best on top."""

    name = "intervals"
    summary = "every row of a task with its 95 % interval, chance, and baselines beside"

    def draw(self, evidence: Evidence) -> Iterator[Drawing]:
        """Yield one drawing a task."""
        for task, rows in evidence.tasks():
            table = over_seeds(rows).dropna(subset=["score"])
            if len(table):
                yield _drawing(evidence, task, rows, table)


def _drawing(evidence: Evidence, task: str, rows: pd.DataFrame, table: pd.DataFrame) -> Drawing:
    head = rows.iloc[0]
    higher, metric = bool(head["higher_is_better"]), words(str(head["metric"]))
    table = table.sort_values("score", ascending=not higher, kind="stable")
    cut = len(table) - MOST_ROWS
    table = table.head(MOST_ROWS).reset_index(drop=True)
    figure = canvas(1.1 + 0.24 * len(table), evidence)
    axes = tidy(figure.add_subplot())
    chance = float(head["chance"]) if known(head["chance"]) else None
    if chance is not None:
        axes.axvline(chance, color="0.6", linewidth=1, linestyle="--", zorder=0)
        axes.annotate(
            "chance",
            (chance, 1),
            xycoords=("data", "axes fraction"),
            fontsize=SMALL,
            color="0.4",
            ha="center",
            va="bottom",
        )
    for kind, own in table.groupby("kind", sort=False):
        y = own.index.to_numpy()
        wide = own["low"].notna().to_numpy()
        axes.hlines(y[wide], own["low"][wide], own["high"][wide], color=KIND_COLOURS[kind], linewidth=2)
        marker = {"pretrained": "o", "given": "P", "untrained": "D", "baseline": "s", "filler": "^"}[kind]
        axes.plot(own["score"], y, marker, color=KIND_COLOURS[kind], markersize=5, label=KIND_NAMES[kind])
    axes.set_yticks(np.arange(len(table)), [shortened(r) for r in table["row"]])
    axes.set_ylim(len(table) - 0.5, -0.5)
    axes.set_xlabel(with_unit(metric, str(head["unit"])) + (" → better" if higher else " ← better"))
    axes.grid(axis="x", color="0.92", zorder=-1)
    axes.set_axisbelow(True)
    if table["kind"].nunique() > 1:
        figure.legend(
            *axes.get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=SMALL, frameon=False
        )
    n = int(rows["n_subjects"].max())
    leading = table.iloc[0]
    spread = f" ({leading['low']:.3g} to {leading['high']:.3g})" if pd.notna(leading["low"]) else ""
    return Drawing(
        name=f"{slug(task)}-intervals",
        title=f"{task}: every row with its interval",
        caption=f"{metric} on {n} held-out subjects; lines are 95 % intervals of a bootstrap over subjects. Overlap "
        f"of two lines "
        "does not decide between two rows: their paired difference does."
        + seeds_said(rows)
        + (f" The {cut} last rows are not shown." if cut > 0 else ""),
        alt=f"{metric} of {len(table)} rows, from the best: {joined(table['row'].tolist())}. The first one, "
        f"{leading['row']}, "
        f"has {leading['score']:.3g}{spread}." + (f" Chance is {chance:.3g}." if chance is not None else ""),
        figure=figure,
        section=f"task:{task}",
    )


@hookimpl
def register_figures() -> list[type[Figure]]:
    """Register the figure."""
    return [Intervals]

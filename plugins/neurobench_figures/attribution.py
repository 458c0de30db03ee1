"""What becomes worse without each group of units, beside the controls."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from neurobench import Drawing, Evidence, Figure, hookimpl
from neurobench.interpretation import stability
from neurobench_figures._style import (
    BLUE,
    ORANGE,
    SKY,
    SMALL,
    best,
    canvas,
    number,
    one_seed_said,
    shortened,
    slug,
    tidy,
    with_unit,
    words,
)

MOST_GROUPS = 24


class Attribution(Figure):
    """One line a group: the best pretrained row, its untrained backbone, and a probe of permuted labels."""

    name = "attribution"
    summary = "loss without each group of units, beside randomised weights and randomised labels"
    reference = "doi:10.1007/978-3-319-10590-1_53"

    def draw(self, evidence: Evidence) -> Iterator[Drawing]:
        """Yield one drawing a task, if attribution was asked for."""
        for task, rows in evidence.tasks():
            for record_id in best(rows, "pretrained"):
                own = evidence.frame(record_id, "attribution")
                if own is not None:
                    yield _drawing(evidence, task, rows, record_id, own)


def _drawing(evidence: Evidence, task: str, rows: pd.DataFrame, record_id: str, own: pd.DataFrame) -> Drawing:
    line = rows[rows["id"] == record_id].iloc[0]
    twin = rows[(rows["kind"] == "untrained") & (rows["backbone"] == line["backbone"]) & (rows["seed"] == line["seed"])]
    weights = evidence.frame(str(twin["id"].iloc[0]), "attribution") if len(twin) else None
    shown = own[own["control"] == ""].sort_values("value", ascending=False, kind="stable").head(MOST_GROUPS)
    order = shown["group"].tolist()
    series = [("as pretrained", shown, BLUE, "o")]
    if weights is not None:
        series.append(("randomised weights", weights[weights["control"] == ""], SKY, "D"))
    if (own["control"] == "labels").any():
        series.append(("randomised labels", own[own["control"] == "labels"], ORANGE, "s"))
    figure = canvas(1.2 + 0.3 * len(order), evidence)
    axes = tidy(figure.add_subplot())
    axes.axvline(0, color="0.6", linewidth=1, linestyle="--")
    for i, (label, table, colour, marker) in enumerate(series):
        table = table.set_index("group").reindex(order)
        y = np.arange(len(order)) + 0.22 * (i - (len(series) - 1) / 2)
        axes.hlines(y, table["low"], table["high"], color=colour, linewidth=1.5)
        axes.plot(table["value"], y, marker, color=colour, markersize=4, label=label)
    sizes = shown.set_index("group")["n_units"]
    axes.set_yticks(np.arange(len(order)), [f"{shortened(g, 26)} ({sizes[g]})" for g in order])
    axes.set_ylim(len(order) - 0.5, -0.5)
    metric, unit = lost(shown)
    axes.set_xlabel(with_unit(metric, unit) + " without the group   → worse")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=SMALL, frameon=False)
    said = believed(evidence, task, str(line["row"]))
    first = shown.iloc[0]
    return Drawing(
        name=f"{slug(task)}-attribution",
        title=f"{task}: what {line['row']} loses without each group",
        caption="Right of 0: worse without it. Groups with their number of units; lines are 95 % intervals over "
        f"held-out subjects. {said} A group that says what another one says does not seem to matter. "
        "Where the controls look the same, nothing was attributed." + one_seed_said(rows),
        alt=f"{metric} by group; largest for {first['group']}: {first['value']:.3g} ({first['low']:.3g} to "
        f"{first['high']:.3g}). {said}",
        figure=figure,
        section="interpretation",
    )


def lost(table: pd.DataFrame) -> tuple[str, str]:
    """Return what is lost, as an axis says it, and its unit."""
    metric, unit = str(table["metric"].iloc[0]), str(table["unit"].iloc[0])
    name = metric.removeprefix("loss of ")
    # An error does not get lost: it grows.
    return f"{'growth' if name in ('mae', 'rmse') else 'loss'} of {words(name) if name.islower() else name}", unit


def believed(evidence: Evidence, task: str, row: str) -> str:
    """Return in words how well the attribution of a row agrees with itself, and with its controls."""
    table = stability(evidence, task)
    found = table[(table["kind"] == "pretrained") & (table["row"] == row)]
    if not len(found):
        return ""
    own = found.iloc[0]
    parts = [
        f"{name} {number(float(own[column]), '+.2f')}"
        for name, column in (
            (f"between {own['n_seeds']} seeds", "over_seeds"),
            ("between folds", "over_folds"),
            ("with randomised weights", "randomised_weights"),
            ("with randomised labels", "randomised_labels"),
            ("with the groups' sizes", "group_size"),
        )
        if np.isfinite(float(own[column]))
    ]
    one = "" if own["n_seeds"] > 1 else " One seed: how it would be with another one is not known."
    if not parts:
        return f"Too few groups for its stability to be measured ({own['n_groups']}).{one}"
    return f"Spearman's ρ of the {own['n_groups']} groups: {', '.join(parts)}.{one}"


@hookimpl
def register_figures() -> list[type[Figure]]:
    """Register the figure."""
    return [Attribution]

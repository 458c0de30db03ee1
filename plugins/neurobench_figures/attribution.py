"""What becomes worse without each group of units, beside the controls."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from neurobench import Drawing, Evidence, Figure, hookimpl
from neurobench_figures._style import (
    BLUE,
    ORANGE,
    SKY,
    SMALL,
    best,
    canvas,
    one_seed_said,
    shortened,
    slug,
    tidy,
    with_unit,
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
    metric, unit = str(shown["metric"].iloc[0]), str(shown["unit"].iloc[0])
    axes.set_xlabel(with_unit(metric.replace("_", " "), unit) + " without the group")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=SMALL, frameon=False)
    stable = float(shown["fold_agreement"].iloc[0])
    said = (
        f"agreement between folds (Spearman) {stable:+.2f}"
        if np.isfinite(stable)
        else "too few groups or folds to agree"
    )
    first = shown.iloc[0]
    return Drawing(
        name=f"{slug(task)}-attribution",
        title=f"{task}: what {line['row']} loses without each group",
        caption="Right of 0: worse without it. Groups with their number of units; lines are 95 % intervals over "
        "held-out subjects; "
        f"{said}. A group that says what another one says does not seem to matter. Where the controls look the same, "
        f"nothing was "
        "attributed." + one_seed_said(rows),
        alt=f"{metric} by group; largest for {first['group']}: {first['value']:.3g} ({first['low']:.3g} to "
        f"{first['high']:.3g}); {said}.",
        figure=figure,
        section="interpretation",
    )


@hookimpl
def register_figures() -> list[type[Figure]]:
    """Register the figure."""
    return [Attribution]

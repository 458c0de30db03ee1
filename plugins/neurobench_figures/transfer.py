"""Does better reconstruction mean better prediction? Over the rows of a grid."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from neurobench import Drawing, Evidence, Figure, hookimpl
from neurobench_figures._style import CYCLE, SMALL, canvas, over_seeds, slug, tidy, with_unit, words

MIN_ROWS = 4
"""Rows below which a rank correlation says nothing."""


class Transfer(Figure):
    """Reconstruction against every other task, one point a backbone × mask."""

    name = "transfer"
    summary = "reconstruction R² against each downstream score over rows, with Spearman's correlation"

    def draw(self, evidence: Evidence) -> Iterator[Drawing]:
        """Yield one drawing a downstream task, if there are enough rows and a reconstruction."""
        for source, first in evidence.tasks():
            if "metric_skill" not in first or str(first["metric"].iloc[0]) != "r2":
                continue
            x = _rows(first)
            for task, rows in evidence.tasks():
                both = x.merge(_rows(rows), left_index=True, right_index=True) if task != source else x.iloc[:0]
                if len(both) >= MIN_ROWS and both["score_y"].nunique() > 1:
                    yield _drawing(evidence, source, task, rows, both)


def _rows(rows: pd.DataFrame) -> pd.DataFrame:
    table = over_seeds(rows)
    kept = table[table["kind"].isin(("pretrained", "untrained"))].dropna(subset=["score"])
    return kept.set_index("row")[["score", "low", "high", "backbone", "kind"]]


def _drawing(evidence: Evidence, source: str, task: str, rows: pd.DataFrame, both: pd.DataFrame) -> Drawing:
    from scipy import stats

    head = rows.iloc[0]
    sign = 1.0 if bool(head["higher_is_better"]) else -1.0
    trained = both[both["kind_x"] == "pretrained"]
    enough = len(trained) >= MIN_ROWS and min(trained[c].nunique() for c in ("score_x", "score_y")) > 1
    rho = float(stats.spearmanr(trained["score_x"], sign * trained["score_y"]).statistic) if enough else float("nan")
    figure = canvas(3.6, evidence)
    axes = tidy(figure.add_subplot())
    for colour, (backbone, own) in zip(CYCLE * 9, both.groupby("backbone_x", sort=True), strict=False):
        for kind, marker in (("pretrained", "o"), ("untrained", "D")):
            part = own[own["kind_x"] == kind]
            if len(part):
                axes.errorbar(
                    part["score_x"],
                    part["score_y"],
                    yerr=[part["score_y"] - part["low_y"], part["high_y"] - part["score_y"]],
                    fmt=marker,
                    color=colour,
                    markersize=5,
                    linewidth=1,
                    label=f"{backbone}{' (untrained)' if kind == 'untrained' else ''}",
                )
    unit = str(head["unit"])
    axes.set(xlabel=f"{source}: R²", ylabel=f"{task}: {with_unit(words(str(head['metric'])), unit)}")
    axes.legend(fontsize=SMALL, frameon=False)
    said = f"{len(trained)} pretrained rows are too few, or too equal, for a ρ"
    if enough:
        said = f"Spearman ρ {rho:+.2f} over {len(trained)} pretrained rows"
    axes.set_title(said, fontsize=SMALL + 1)
    return Drawing(
        name=f"{slug(source)}-against-{slug(task)}",
        title=f"{source} against {task}",
        caption=f"One point a backbone × mask; bars are 95 % intervals over subjects. {said}"
        + (" (positive: better reconstruction goes with better prediction)." if enough else ".")
        + " Rows are few and share their data, so no interval is given for ρ. Better reconstruction is "
        "known not to transfer as such.",
        alt=f"{said} between {source} R² and {task}.",
        figure=figure,
        section="reconstruction",
    )


@hookimpl
def register_figures() -> list[type[Figure]]:
    """Register the figure."""
    return [Transfer]

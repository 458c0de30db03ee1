"""Does better reconstruction mean better prediction? Over the rows of a grid."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pandas as pd

from neurobench import Drawing, Evidence, Figure, hookimpl
from neurobench_figures._style import CYCLE, MARKERS, SMALL, canvas, number, over_seeds, slug, tidy, with_unit, words

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


def in_view(both: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Return the rows to show, and what a caption says of those left out.

    An untrained backbone that fills in far worse than all others would press them onto one line.
    """
    trained = both[both["kind_x"] == "pretrained"]["score_x"]
    if not len(trained):
        return both, ""
    reach = max(3 * float(np.ptp(trained)), 0.1)
    near = (both["score_x"] - trained.mean()).abs() <= reach
    if near.all():
        return both, ""
    far = ", ".join(f"{row} at R² {number(x)}" for row, x in both.loc[~near, "score_x"].items())
    return both[near], f"Outside the picture: {far}. "


def exact(x: np.ndarray, y: np.ndarray, rho: float) -> float:
    """Return the share of orders of ``y`` whose |ρ| reaches the observed one; of 5,000 drawn ones for many rows."""
    from scipy import stats

    a, b = stats.rankdata(x), stats.rankdata(y)
    if len(a) <= 7:
        orders = np.array(list(itertools.permutations(range(len(a)))))
    else:
        rng = np.random.default_rng(0)
        orders = np.array([np.arange(len(a)), *(rng.permutation(len(a)) for _ in range(4999))])
    centred = (a - a.mean()) / np.sqrt(((a - a.mean()) ** 2).sum())
    values = (b[orders] - b.mean()) @ centred / np.sqrt(((b - b.mean()) ** 2).sum())
    return float((np.abs(values) >= abs(rho) - 1e-9).mean())


def _drawing(evidence: Evidence, source: str, task: str, rows: pd.DataFrame, both: pd.DataFrame) -> Drawing:
    from scipy import stats

    head = rows.iloc[0]
    sign = 1.0 if bool(head["higher_is_better"]) else -1.0
    trained = both[both["kind_x"] == "pretrained"]
    enough = len(trained) >= MIN_ROWS and min(trained[c].nunique() for c in ("score_x", "score_y")) > 1
    rho = float(stats.spearmanr(trained["score_x"], sign * trained["score_y"]).statistic) if enough else float("nan")
    figure = canvas(3.6, evidence)
    axes = tidy(figure.add_subplot())
    shown, outside = in_view(both)
    styles = zip(CYCLE * 9, MARKERS * 9, shown.groupby("backbone_x", sort=True), strict=False)
    for colour, marker, (backbone, own) in styles:
        for kind in ("pretrained", "untrained"):
            part = own[own["kind_x"] == kind]
            if len(part):
                axes.errorbar(
                    part["score_x"],
                    part["score_y"],
                    yerr=[part["score_y"] - part["low_y"], part["high_y"] - part["score_y"]],
                    fmt=marker,
                    color=colour,
                    markerfacecolor=colour if kind == "pretrained" else "white",
                    markersize=5.5,
                    linewidth=1,
                    label=f"{backbone}{' (untrained)' if kind == 'untrained' else ''}",
                )
    unit = str(head["unit"])
    axes.set(xlabel=f"{source}: R²", ylabel=f"{task}: {with_unit(words(str(head['metric'])), unit)}")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=SMALL, frameon=False)
    said = f"{len(trained)} pretrained rows are too few, or too equal, for a ρ"
    if enough:
        p = exact(trained["score_x"].to_numpy(float), trained["score_y"].to_numpy(float), rho)
        said = f"Spearman ρ {number(rho, '+.2f')} over {len(trained)} pretrained rows (permutation p {p:.2f})"
    axes.set_title(said, fontsize=SMALL + 1)
    return Drawing(
        name=f"{slug(source)}-against-{slug(task)}",
        title=f"{source} against {task}",
        caption=f"One point a backbone × mask; bars are 95 % intervals over subjects. {said}"
        + (" (positive: better reconstruction goes with better prediction)." if enough else ".")
        + " Rows are few and share their data, so no interval is given for ρ, and p is a lower bound. "
        + outside
        + "Better reconstruction is "
        "known not to transfer as such.",
        alt=f"{said} between {source} R² and {task}.",
        figure=figure,
        section="reconstruction",
    )


@hookimpl
def register_figures() -> list[type[Figure]]:
    """Register the figure."""
    return [Transfer]

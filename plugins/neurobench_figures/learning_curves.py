"""The loss of every pretraining, step by step."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from neurobench import Drawing, Evidence, Figure, hookimpl
from neurobench_figures._style import CYCLE, SMALL, canvas, first_seed, one_seed_said, shortened, tidy

MOST_LINES = 8


class LearningCurves(Figure):
    """One panel a backbone, one line a mask, a band over folds."""

    name = "learning_curves"
    summary = "pretraining loss by step, mean and range over folds, of every backbone × mask"

    def draw(self, evidence: Evidence) -> Iterator[Drawing]:
        """Yield one drawing, if anything was pretrained."""
        rows = evidence.rows(kind="pretrained")
        curves: dict[tuple[str, str], pd.DataFrame] = {}
        for r in first_seed(rows).to_dict("records") if len(rows) else ():
            key = str(r["backbone"]), str(r["mask"])
            if key not in curves and (found := evidence.frame(r["id"], "curves")) is not None:
                curves[key] = found
        if curves:
            yield _drawing(evidence, rows, curves)


def _drawing(evidence: Evidence, rows: pd.DataFrame, curves: dict[tuple[str, str], pd.DataFrame]) -> Drawing:
    backbones = list(dict.fromkeys(b for b, _ in curves))
    n = min(3, len(backbones))
    lines = -(-len(backbones) // n)
    figure = canvas(2.7 * lines + 0.2, evidence)
    grid = figure.subplots(lines, n, squeeze=False, sharey=True).ravel()
    said = []
    for axes, backbone in zip(grid, backbones, strict=False):
        own = {m: c for (b, m), c in curves.items() if b == backbone}
        for colour, line, (mask, curve) in zip(CYCLE * 9, ("-",) * 7 + ("--",) * 99, own.items(), strict=False):
            by_step = curve.groupby("step")["loss"].agg(["mean", "min", "max"])
            tidy(axes).plot(
                by_step.index, by_step["mean"], color=colour, linestyle=line, linewidth=1.3, label=shortened(mask, 22)
            )
            axes.fill_between(by_step.index, by_step["min"], by_step["max"], color=colour, alpha=0.15, linewidth=0)
            said.append(f"{backbone} · {mask} ends at {by_step['mean'].iloc[-1]:.2f}")
        axes.set_xlabel("step")
        axes.set_title(backbone, fontsize=SMALL + 1)
        axes.legend(fontsize=SMALL, frameon=False)
    for axes in grid[:: max(1, n)]:
        axes.set_ylabel("loss (MSE, scaled units)")
    for axes in grid[len(backbones) :]:
        axes.set_visible(False)
    folds = next(iter(curves.values()))["fold"].nunique()
    return Drawing(
        name="learning-curves",
        title="Pretraining loss",
        caption=f"Mean squared error of scored hidden tokens in the training subjects; line: mean over {folds} "
        f"folds, band: their range. "
        "Losses under different masks are of different tokens and do not rank them." + one_seed_said(rows),
        alt="Training loss by step: " + "; ".join(said[:MOST_LINES]) + ".",
        figure=figure,
        section="pretraining",
    )


@hookimpl
def register_figures() -> list[type[Figure]]:
    """Register the figure."""
    return [LearningCurves]

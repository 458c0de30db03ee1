"""Predicted against true values, and what is left of age in the residuals."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from neurobench import Drawing, Evidence, Figure, hookimpl
from neurobench_figures._style import BLUE, ORANGE, SMALL, best, canvas, number, one_seed_said, slug, tidy, with_unit


class Predicted(Figure):
    """Held-out predictions of the best pretrained row and the best baseline, with residuals on age."""

    name = "predicted"
    summary = "predicted against true, and residuals on age, of the best pretrained row and the best baseline"

    def draw(self, evidence: Evidence) -> Iterator[Drawing]:
        """Yield one drawing a regression task."""
        for task, rows in evidence.tasks():
            shown = [*best(rows, "pretrained"), *best(rows, "baseline")]
            found = [(i, p) for i in shown if (p := evidence.predictions(i)) is not None and _numeric(p)]
            if found:
                yield _drawing(evidence, task, rows, found)


def _numeric(predictions: pd.DataFrame) -> bool:
    return "prediction" in predictions and predictions["truth"].nunique() > 2


def _drawing(evidence: Evidence, task: str, rows: pd.DataFrame, found: list[tuple[str, pd.DataFrame]]) -> Drawing:
    unit = str(rows["unit"].iloc[0])
    names = [str(rows.loc[rows["id"] == i, "row"].iloc[0]) for i, _ in found]
    figure = canvas(2.9 * len(found) + 0.2, evidence)
    grid = figure.subplots(len(found), 2, squeeze=False)
    said = []
    whole = pd.concat([p[["truth", "prediction"]] for _, p in found]).to_numpy(float)
    edge = 0.04 * float(np.ptp(whole))
    low, high = float(whole.min()) - edge, float(whole.max()) + edge
    widest = 1.05 * max(float((p["prediction"] - p["truth"]).abs().max()) for _, p in found) or 1.0
    for (left, right), name, (_, p), colour in zip(grid, names, found, (BLUE, ORANGE), strict=False):
        tidy(left).plot([low, high], [low, high], color="0.6", linewidth=1, linestyle="--")
        left.plot(p["truth"], p["prediction"], "o", color=colour, markersize=3.5, alpha=0.6, markeredgewidth=0)
        left.set(xlabel=with_unit("true", unit), ylabel=with_unit("predicted", unit), aspect="equal")
        spread = p["prediction"].std() > 0
        r = float(np.corrcoef(p["truth"], p["prediction"])[0, 1]) if spread else 0.0
        error = float((p["prediction"] - p["truth"]).abs().mean())
        left.set_title(
            f"{name}\nr {number(r) if spread else 'not defined'}, MAE {error:.3g} {unit}".rstrip(), fontsize=SMALL + 1
        )
        # One range for all residuals: the smaller cloud has to look smaller.
        right.set_ylim(-widest, widest)
        left.set(xlim=(low, high), ylim=(low, high))
        residual = (p["prediction"] - p["truth"]).to_numpy(float)
        age = p["age"].to_numpy(float) if "age" in p else np.full(len(p), np.nan)
        usable = np.isfinite(age)
        tidy(right).axhline(0, color="0.6", linewidth=1, linestyle="--")
        if usable.sum() > 2 and np.ptp(age[usable]) > 0:
            slope, start = np.polyfit(age[usable], residual[usable], 1)
            right.plot(age[usable], residual[usable], "o", color=colour, markersize=3.5, alpha=0.6, markeredgewidth=0)
            ends = np.array([age[usable].min(), age[usable].max()])
            right.plot(ends, start + slope * ends, color=colour, linewidth=1.5)
            right.set_xlabel("age (years)")
            right.set_title(f"slope {number(slope, '+.2f')} {unit} / year".replace("  ", " "), fontsize=SMALL + 1)
            said.append(f"{name}: residual slope on age {slope:+.2f}")
        else:
            right.text(
                0.5, 0.5, "age is not known", ha="center", va="center", transform=right.transAxes, fontsize=SMALL
            )
        right.set_ylabel(with_unit("predicted − true", unit))
    r = [float(np.corrcoef(p["truth"], p["prediction"])[0, 1]) if p["prediction"].std() > 0 else 0.0 for _, p in found]
    return Drawing(
        name=f"{slug(task)}-predicted",
        title=f"{task}: predicted against true",
        caption=f"Every point is one of {len(found[0][1])} held-out subjects. Dashed: a perfect prediction. Right: "
        f"what is left over, on "
        "age; a slope of −1 means that everybody was predicted the same age." + one_seed_said(rows),
        alt="; ".join(f"{n}: r {v:.2f} between true and predicted" for n, v in zip(names, r, strict=True))
        + ". "
        + "; ".join(said),
        figure=figure,
        section=f"task:{task}",
    )


@hookimpl
def register_figures() -> list[type[Figure]]:
    """Register the figure."""
    return [Predicted]

"""Real and reconstructed signal of a held-out window, hidden spans shaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from neurobench import Drawing, Evidence, Figure, hookimpl
from neurobench_figures._style import BLACK, RED, SMALL, best, canvas, number, shortened, slug, tidy


class Traces(Figure):
    """Three units a mask, of the best pretrained row."""

    name = "traces"
    summary = "real against reconstructed signal of one held-out window under every mask, hidden spans shaded"

    def draw(self, evidence: Evidence) -> Iterator[Drawing]:
        """Yield one drawing a reconstruction task."""
        for task, rows in evidence.tasks():
            for record_id in best(rows, "pretrained") or best(rows, "untrained"):
                if (arrays := evidence.arrays(record_id, "traces")) is not None:
                    name = str(rows.loc[rows["id"] == record_id, "row"].iloc[0])
                    yield _drawing(evidence, task, name, arrays)


def _drawing(evidence: Evidence, task: str, name: str, arrays: Mapping[str, np.ndarray[Any, Any]]) -> Drawing:
    masks, times = arrays["masks"].tolist(), arrays["times_s"]
    k = min(3, arrays["units"].shape[1])
    figure = canvas(0.5 + 0.78 * len(masks) * k, evidence)
    grid = figure.subplots(len(masks) * k, 1, sharex=True, squeeze=False).ravel()
    step = float(times[1] - times[0]) if len(times) > 1 else 1.0
    for i, mask in enumerate(masks):
        for j in range(k):
            axes = tidy(grid[i * k + j])
            hidden = arrays["hidden"][i, j]
            edges = np.flatnonzero(np.diff(np.concatenate([[0], hidden.astype(int), [0]])))
            for start, stop in zip(edges[::2], edges[1::2], strict=True):
                axes.axvspan(times[start] - step / 2, times[stop - 1] + step / 2, color="0.9", linewidth=0, zorder=0)
            axes.plot(times, arrays["real"][i, j], color=BLACK, linewidth=0.9)
            axes.plot(times, np.where(hidden, arrays["predicted"][i, j], np.nan), color=RED, linewidth=1.3)
            axes.set_ylabel(
                shortened(str(arrays["units"][i, j]), 16), rotation=0, ha="right", va="center", fontsize=SMALL - 0.5
            )
            axes.set_yticks([])
            axes.set_title(f"R² {number(arrays['r2'][i, j])}", fontsize=SMALL, loc="right", pad=1)
            axes.spines["left"].set_visible(False)
            if j == 0:
                axes.set_title(f"mask {mask}", fontsize=SMALL + 1, loc="left", pad=2)
            # A bar of one s.d.: heights of two units are not on one scale.
            foot = axes.get_ylim()[0]
            axes.plot([times[0] - 3 * step] * 2, [foot, foot + 1], color=BLACK, linewidth=2, clip_on=False)
    grid[-1].set_xlabel("time (s)")
    return Drawing(
        name=f"{slug(task)}-traces",
        title=f"{name}: one held-out window",
        caption="Black: recorded; red: filled in; grey: hidden. Each unit in s.d. of its own recording (fMRI) or of "
        "its sensor type "
        "(MEG); the bar on the left is 1 s.d. "
        "Units were taken evenly from those with hidden spans, not chosen by how well they came out; R² is that "
        "of the "
        "window shown, against each unit's own mean.",
        alt=f"Traces of {k} units under {', '.join(masks)}: median R² {np.nanmedian(arrays['r2'][:, :k]):.2f}.",
        figure=figure,
        section=f"task:{task}",
    )


@hookimpl
def register_figures() -> list[type[Figure]]:
    """Register the figure."""
    return [Traces]

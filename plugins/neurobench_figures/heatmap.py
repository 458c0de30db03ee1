"""Backbone × masking strategy: the score of every cell with its interval."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from neurobench import Drawing, Evidence, Figure, hookimpl
from neurobench_figures._style import (
    SMALL,
    canvas,
    interval,
    number,
    over_seeds,
    seeds_said,
    shortened,
    slug,
    with_unit,
    words,
)


class Heatmap(Figure):
    """A table of colours; the untrained backbone is a column of its own."""

    name = "heatmap"
    summary = "backbone × mask: score and interval of every cell, the untrained backbone beside"

    def draw(self, evidence: Evidence) -> Iterator[Drawing]:
        """Yield one drawing a task with at least two pretrained rows."""
        for task, rows in evidence.tasks():
            table = over_seeds(rows)
            pretrained = table[table["kind"] == "pretrained"]
            if len(pretrained) > 1:
                yield _drawing(evidence, task, rows, pretrained, table[table["kind"] == "untrained"])


def _drawing(
    evidence: Evidence, task: str, rows: pd.DataFrame, cells: pd.DataFrame, untrained: pd.DataFrame
) -> Drawing:
    from matplotlib import colormaps

    head = rows.iloc[0]
    higher, metric = bool(head["higher_is_better"]), words(str(head["metric"]))
    backbones = sorted(cells["backbone"].unique())
    # roi first: its controls stand beside it.
    masks = sorted(cells["mask"].unique(), key=lambda m: (not m.startswith("roi"), m))
    columns = [*masks, *(["untrained"] if len(untrained) else [])]
    both = pd.concat([cells, untrained.assign(mask="untrained")]).set_index(["backbone", "mask"])
    values = np.array([[both["score"].get((b, m), np.nan) for m in columns] for b in backbones], float)
    figure = canvas(max(2.3, 1.3 + 0.62 * len(backbones)), evidence)
    axes = figure.add_subplot()
    colours = colormaps["cividis" if higher else "cividis_r"]
    shown = values[:, : len(masks)]
    low, high = float(np.nanmin(shown)), float(np.nanmax(shown))
    # Differences that are small beside the intervals look small: the colours span at least the typical interval.
    wide = pd.to_numeric(cells["high"] - cells["low"]).median()
    half = max((high - low) / 2, float(wide) / 2 if pd.notna(wide) else 0.0, 1e-6)
    middle = (high + low) / 2
    image = axes.imshow(values, cmap=colours, vmin=middle - half, vmax=middle + half, aspect="auto")
    # As many digits as the narrowest interval asks for, the same in every cell.
    narrow = pd.to_numeric(both["high"] - both["low"]).min()
    form = f".{int(np.clip(2 - np.floor(np.log10(narrow)) - 1, 1, 4)) if narrow > 0 else 3}f"
    size = SMALL if len(columns) <= 6 else SMALL - 1
    for (i, b), (j, m) in ((x, y) for x in enumerate(backbones) for y in enumerate(columns)):
        if np.isfinite(values[i, j]):
            cell = both.loc[(b, m)]
            lines = number(cell["score"], form)
            lines += f"\n{interval(cell['low'], cell['high'], form)}" if pd.notna(cell["low"]) else ""
            r, g, blue, _ = image.to_rgba(values[i, j])
            dark = 0.3 * r + 0.59 * g + 0.11 * blue < 0.5
            axes.text(j, i, lines, ha="center", va="center", fontsize=size, color="white" if dark else "black")
    axes.set_xticks(
        np.arange(len(columns)), [shortened(c, 18) for c in columns], fontsize=SMALL, rotation=30, ha="right"
    )
    axes.set_yticks(np.arange(len(backbones)), [shortened(b, 20) for b in backbones], fontsize=SMALL)
    if len(untrained):
        axes.axvline(len(masks) - 0.5, color="white", linewidth=4)
    # The untrained backbone may lie outside the colours of what is compared: the bar's ends say so.
    out = (np.nanmin(values) < middle - half, np.nanmax(values) > middle + half)
    ends = {(True, False): "min", (False, True): "max", (True, True): "both"}.get(out, "neither")
    bar = figure.colorbar(image, ax=axes, extend=ends)
    bar.set_label(
        with_unit(metric, str(head["unit"])) + (", higher is better" if higher else ", lower is better"), fontsize=SMALL
    )
    bar.ax.tick_params(labelsize=SMALL)
    where = np.unravel_index(np.nanargmax(shown if higher else -shown), shown.shape)
    return Drawing(
        name=f"{slug(task)}-heatmap",
        title=f"{task}: backbone × mask",
        caption=f"{metric} of every combination with its 95 % interval over {int(rows['n_subjects'].max())} held-out "
        f"subjects; controls of "
        "roi beside it, the untrained backbone on the right. Colours span at least the typical interval; what lies "
        "beyond them has the colour of their end." + seeds_said(rows),
        alt=f"{metric} of {len(backbones)} backbones by {len(masks)} masks, from {low:.3g} to {high:.3g}; best is "
        f"{backbones[where[0]]} with {masks[where[1]]}.",
        figure=figure,
        section=f"task:{task}",
    )


@hookimpl
def register_figures() -> list[type[Figure]]:
    """Register the figure."""
    return [Heatmap]

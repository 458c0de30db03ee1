"""Per-sensor maps: how well every sensor is filled in, seen from above."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from neurobench import Drawing, Evidence, Figure, hookimpl
from neurobench_figures._helmet import TYPES, sensor_types, topomap
from neurobench_figures._style import SMALL, best, canvas, limits, one_seed_said, slug


class Topomap(Figure):
    """One head a sensor type, R² beside the difference to the best trivial filler."""

    name = "topomap"
    summary = "R² of every sensor over the helmet, and its difference to the best trivial filler"

    def draw(self, evidence: Evidence) -> Iterator[Drawing]:
        """Yield one drawing a reconstruction task of sensors with positions."""
        if evidence.signal != "sensors" or not sensor_types(evidence.units):
            return
        units = evidence.units
        for task, rows in evidence.tasks():
            for record_id in best(rows, "pretrained") or best(rows, "untrained"):
                if (scores := evidence.frame(record_id, "units")) is not None:
                    name = str(rows.loc[rows["id"] == record_id, "row"].iloc[0])
                    yield _drawing(evidence, task, name, units.merge(scores, on="unit", how="inner"), rows)


def _drawing(evidence: Evidence, task: str, name: str, table: pd.DataFrame, rows: pd.DataFrame) -> Drawing:
    types = sensor_types(table)
    figure = canvas(2.9 * len(types) + 0.2, evidence)
    grid = figure.subplots(len(types), 2, squeeze=False)
    said = []
    for pair, kind in zip(grid, types, strict=True):
        own = table[table["type"] == kind]
        r2 = own["r2"].to_numpy(float)
        gain = r2 - own["r2_filler"].to_numpy(float)
        edge = max(np.abs(limits(gain))) or 1.0
        for axes, values, signed, limit, title in (
            (pair[0], r2, False, limits(r2), f"R², {TYPES[kind]}"),
            (pair[1], gain, True, (-edge, edge), "R² − best filler's"),
        ):
            image = topomap(axes, own, values, signed=signed, limit=limit)
            axes.set_title(title, fontsize=SMALL + 1)
            if image is not None:
                bar = figure.colorbar(image, ax=axes, shrink=0.7)
                bar.ax.tick_params(labelsize=SMALL)
                bar.set_label("R²" if not signed else "difference of R²", fontsize=SMALL)
        said.append(f"{TYPES[kind]} {np.nanmin(r2):.2f} to {np.nanmax(r2):.2f}")
    return Drawing(
        name=f"{slug(task)}-topomap",
        title=f"{name}: which sensors are filled in",
        caption=f"Nose up. R² against each sensor's own mean over the headline masks, pooled over "
        f"{int(rows['n_subjects'].max())} held-out "
        "recordings' subjects; sensors of one site are averaged. Colours cover 96 % of the values."
        + one_seed_said(rows),
        alt=f"R² over the helmet: {'; '.join(said)}.",
        figure=figure,
        section=f"task:{task}",
    )


@hookimpl
def register_figures() -> list[type[Figure]]:
    """Register the figure."""
    return [Topomap]

"""Per-region maps: how well every region is filled in, on the glass brain and on slices, and where it beats fillers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from neurobench import Drawing, Evidence, Figure, hookimpl
from neurobench_figures._brain import glass_brain, painted, placed, slices
from neurobench_figures._style import SMALL, best, canvas, one_seed_said, slug


class BrainMap(Figure):
    """One marker a region or patch at its MNI position, and slices painted with the same values."""

    name = "brain_map"
    summary = (
        "R² of every region or patch on the glass brain and on slices, and its difference to the best trivial filler"
    )

    def draw(self, evidence: Evidence) -> Iterator[Drawing]:
        """Yield one drawing a reconstruction task of fMRI with positions."""
        if evidence.modality != "fmri":
            return
        if (found := placed(evidence.units)) is None:
            return
        units, added = found
        for task, rows in evidence.tasks():
            for record_id in best(rows, "pretrained") or best(rows, "untrained"):
                if (scores := evidence.frame(record_id, "units")) is not None:
                    name = str(rows.loc[rows["id"] == record_id, "row"].iloc[0])
                    yield _drawing(evidence, task, name, units.merge(scores, on="unit", how="inner"), rows, added)


def _drawing(evidence: Evidence, task: str, name: str, table: pd.DataFrame, rows: pd.DataFrame, added: str) -> Drawing:
    figure = canvas(8.0, evidence)
    figure.set_layout_engine("none")
    r2 = table["r2"].to_numpy(float)
    gain = r2 - table["r2_filler"].to_numpy(float)
    rows_of = ((f"{name}: R²", r2, False, "R²"), ("R² less the best trivial filler's", gain, True, "difference of R²"))
    for i, (title, values, signed, label) in enumerate(rows_of):
        top = 0.985 - 0.49 * i
        figure.text(0.02, top, title, fontsize=SMALL + 1, va="top")
        glass_brain(figure, (0.02, top - 0.25, 0.96, 0.22), values, table, signed, label)
        slices(figure, (0.02, top - 0.46, 0.96, 0.19), values, table, signed, label)
    order = np.argsort(-np.where(np.isfinite(r2), r2, -np.inf))[:3]
    top = ", ".join(f"{table['unit'].iloc[i]} {r2[i]:.2f}" for i in order)
    ahead = int(np.nansum(gain > 0))
    return Drawing(
        name=f"{slug(task)}-brain",
        title=f"{name}: where the brain is filled in",
        caption=f"One marker a region or patch (MNI, left, back, right, top); R² against each region's own mean over "
        f"the headline masks, pooled "
        f"over {int(rows['n_subjects'].max())} held-out subjects. Colours cover 96 % of the values. Slices of the MNI "
        "template (left is left): " + painted(table) + added + one_seed_said(rows),
        alt=f"R² of {len(table)} units from {np.nanmin(r2):.2f} to {np.nanmax(r2):.2f}; highest: {top}. {ahead} are "
        f"above the best filler.",
        figure=figure,
        section=f"task:{task}",
    )


@hookimpl
def register_figures() -> list[type[Figure]]:
    """Register the figure."""
    return [BrainMap]

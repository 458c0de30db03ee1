"""Per-region maps on the glass brain: how well every region is filled in, and what beats the best trivial filler."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from neurobench import Drawing, Evidence, Figure, hookimpl
from neurobench_figures._style import SMALL, best, canvas, limits, one_seed_said, slug


class BrainMap(Figure):
    """One marker a region or patch at its MNI position."""

    name = "brain_map"
    summary = "R² of every region or patch on the glass brain, and its difference to the best trivial filler"

    def draw(self, evidence: Evidence) -> Iterator[Drawing]:
        """Yield one drawing a reconstruction task of fMRI with positions."""
        if evidence.modality != "fmri":
            return
        units = evidence.units
        if not np.isfinite(units[["x", "y", "z"]].to_numpy(float)).all():
            return
        for task, rows in evidence.tasks():
            for record_id in best(rows, "pretrained") or best(rows, "untrained"):
                if (scores := evidence.frame(record_id, "units")) is not None:
                    name = str(rows.loc[rows["id"] == record_id, "row"].iloc[0])
                    yield _drawing(evidence, task, name, units.merge(scores, on="unit", how="inner"), rows)


def glass_brain(
    figure, box: tuple[float, float, float, float], values: np.ndarray, table: pd.DataFrame, signed: bool, label: str
) -> None:
    """Draw markers at MNI positions in mm onto part of a figure, with a colour bar of its own.

    Parameters
    ----------
    figure
        Where to.
    box
        Left, bottom, width and height as fractions of the figure.
    values
        (units,); units that are NaN are left out.
    table
        Columns x, y, z.
    signed
        Whether colours are centred on 0.
    label
        Of the colour bar, with its unit.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from nilearn import plotting

    shown = np.isfinite(values)
    low, high = limits(values)
    if signed:
        high = max(abs(low), abs(high)) or 1.0
        low = -high
    colours = "RdBu_r" if signed else "cividis"
    left, bottom, width, height = box
    display = plotting.plot_glass_brain(
        None,
        display_mode="lyrz",
        figure=figure,
        axes=(left, bottom, width * 0.88, height),
        annotate=False,
        plot_abs=False,
    )
    size = float(np.clip(4000 / max(1, int(shown.sum())), 4, 34))
    colour = ScalarMappable(Normalize(low, high), colours)
    order = np.argsort(np.abs(values[shown]) if signed else values[shown])
    display.add_markers(
        table.loc[shown, ["x", "y", "z"]].to_numpy(float)[order],
        marker_color=colour.to_rgba(values[shown][order]),
        marker_size=size,
    )
    bar = figure.add_axes((left + width * 0.9, bottom + 0.15 * height, 0.014, 0.7 * height))
    figure.colorbar(colour, cax=bar).set_label(label, fontsize=SMALL)
    bar.tick_params(labelsize=SMALL)


def _drawing(evidence: Evidence, task: str, name: str, table: pd.DataFrame, rows: pd.DataFrame) -> Drawing:
    figure = canvas(4.4, evidence)
    figure.set_layout_engine("none")
    r2 = table["r2"].to_numpy(float)
    gain = r2 - table["r2_filler"].to_numpy(float)
    glass_brain(figure, (0.02, 0.53, 0.96, 0.42), r2, table, False, "R²")
    glass_brain(figure, (0.02, 0.05, 0.96, 0.42), gain, table, True, "R² − best filler's")
    figure.text(0.02, 0.965, f"{name}: R²", fontsize=SMALL + 1)
    figure.text(0.02, 0.485, "difference to the best trivial filler", fontsize=SMALL + 1)
    order = np.argsort(-np.where(np.isfinite(r2), r2, -np.inf))[:3]
    top = ", ".join(f"{table['unit'].iloc[i]} {r2[i]:.2f}" for i in order)
    ahead = int(np.nansum(gain > 0))
    return Drawing(
        name=f"{slug(task)}-brain",
        title=f"{name}: where the brain is filled in",
        caption=f"One marker a region or patch (MNI, left, back, right, top); R² against each region's own mean over "
        f"the headline masks, pooled "
        f"over {int(rows['n_subjects'].max())} held-out subjects. Colours cover 96 % of the values."
        + one_seed_said(rows),
        alt=f"R² of {len(table)} units from {np.nanmin(r2):.2f} to {np.nanmax(r2):.2f}; highest: {top}. {ahead} are "
        f"above the best filler.",
        figure=figure,
        section=f"task:{task}",
    )


@hookimpl
def register_figures() -> list[type[Figure]]:
    """Register the figure."""
    return [BrainMap]

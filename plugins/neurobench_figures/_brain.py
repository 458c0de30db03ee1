"""The brain in MNI space: markers on the glass brain, and slices painted with the value of the nearest region."""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd

from neurobench_figures._style import SMALL, limits

REACH_MM = 15.0
"""Distance from a region's centre beyond which a slice is left unpainted."""

CUTS = (-40, -22, -4, 14, 32, 50)
"""Heights of the slices in mm."""

Box = tuple[float, float, float, float]


BY_NAME = " Positions are not in the data: those of AAL's regions of the same names."
"""What a caption adds where positions were looked up."""


def placed(units: pd.DataFrame) -> tuple[pd.DataFrame, str] | None:
    """Return units that can be drawn on a brain, and what the caption has to add; None where that cannot be.

    Regions without positions whose names are all AAL's have the centres of AAL.
    """
    if np.isfinite(units[["x", "y", "z"]].to_numpy(float)).all():
        return units, ""
    from neurobench_datasets._atlases import aal_regions

    atlas = aal_regions().set_index("name")[["x", "y", "z"]]
    if not units["unit"].isin(atlas.index).all():
        return None
    return units.assign(**{axis: atlas.loc[units["unit"], axis].to_numpy(float) for axis in "xyz"}), BY_NAME


def scale_of(values: np.ndarray, signed: bool, limit: tuple[float, float] | None = None) -> tuple[float, float, str]:
    """Return lowest and highest value of the colours, and their map: diverging around 0 where values are signed."""
    low, high = limits(values) if limit is None else limit
    if signed:
        high = max(abs(low), abs(high)) or 1.0
        low = -high
    return low, high, "RdBu_r" if signed else "cividis"


def glass_brain(
    figure,
    box: Box,
    values: np.ndarray,
    table: pd.DataFrame,
    signed: bool,
    label: str,
    limit: tuple[float, float] | None = None,
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
    limit
        Lowest and highest value of the colours; without it 96 % of the values are covered.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from nilearn import plotting

    shown = np.isfinite(values)
    low, high, colours = scale_of(values, signed, limit)
    left, bottom, width, height = box
    display = plotting.plot_glass_brain(
        None,
        display_mode="lyrz",
        figure=figure,
        axes=(left, bottom, width * 0.85, height),
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
        # Near-white markers of values about 0 would vanish on white paper.
        edgecolors="0.45",
        linewidths=0.3,
    )
    _bar(figure, box, colour, label)


def slices(
    figure,
    box: Box,
    values: np.ndarray,
    table: pd.DataFrame,
    signed: bool,
    label: str,
    limit: tuple[float, float] | None = None,
) -> None:
    """Draw axial slices of the MNI template, each voxel in the colour of the nearest region's value.

    A voxel further than :data:`REACH_MM` from every region's centre is left unpainted; patches of a volume are painted
    to half of their spacing, so that each is the cube that it is. Parameters as for :func:`glass_brain`.
    """
    import nibabel
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from nilearn import plotting
    from nilearn.datasets import load_mni152_brain_mask
    from scipy.spatial import cKDTree

    shown = np.isfinite(values)
    places = table.loc[shown, ["x", "y", "z"]].to_numpy(float)
    low, high, colours = scale_of(values, signed, limit)
    mask = load_mni152_brain_mask(resolution=3)
    inside = np.asarray(mask.dataobj) > 0
    voxels = nibabel.affines.apply_affine(mask.affine, np.argwhere(inside))
    cubes = bool((table["type"] == "patch").all()) if "type" in table else False
    reach = _spacing(places) / 2 + 0.01 if cubes else REACH_MM
    distance, nearest = cKDTree(places).query(voxels, p=np.inf if cubes else 2)
    painted = np.zeros(inside.shape, np.float32)
    # Exactly 0 is what is not painted.
    known = np.where(values[shown] == 0, 1e-9, values[shown])
    painted[inside] = np.where(distance <= reach, known[nearest], 0.0)
    left, bottom, width, height = box
    plotting.plot_stat_map(
        nibabel.Nifti1Image(painted, mask.affine),
        display_mode="z",
        cut_coords=list(CUTS),
        figure=figure,
        axes=(left, bottom, width * 0.85, height),
        colorbar=False,
        threshold=1e-12,
        cmap=colours,
        vmin=low,
        vmax=high,
        symmetric_cbar=signed,
        resampling_interpolation="nearest",
        annotate=True,
        black_bg=False,
        dim=-0.5,
    )
    for text in figure.findobj(lambda t: hasattr(t, "set_fontsize") and hasattr(t, "get_text")):
        if text.get_text().startswith("z="):
            text.set_text(text.get_text().replace("z=", "z ") + " mm")
        if text.get_fontsize() > SMALL + 1:
            text.set_fontsize(SMALL)
    _bar(figure, box, ScalarMappable(Normalize(low, high), colours), label)


def painted(table: pd.DataFrame) -> str:
    """Return what a caption says of how slices are painted."""
    if "type" in table and (table["type"] == "patch").all():
        return "every patch is the cube that it is."
    return (
        f"every voxel has the value of the region whose centre is nearest, within {REACH_MM:g} mm; borders are not "
        "those of the atlas."
    )


def _spacing(places: np.ndarray) -> float:
    """Return the distance in mm between neighbours of a grid."""
    steps = np.diff(np.unique(np.round(places[:, 0], 2)))
    return float(steps.min()) if len(steps) else 2 * REACH_MM


def _bar(figure, box: Box, colour, label: str) -> None:
    left, bottom, width, height = box
    bar = figure.add_axes((left + width * 0.865, bottom + 0.15 * height, 0.014, 0.7 * height))
    # Beside a low bar a long label would run into the next panel.
    figure.colorbar(colour, cax=bar).set_label(textwrap.fill(label, 18), fontsize=SMALL)
    bar.tick_params(labelsize=SMALL)

"""Sensors seen from above: three-dimensional positions laid flat, one place a site."""

from __future__ import annotations

import numpy as np
import pandas as pd

RING = "#D55E00"
"""Colour of rings around sensors: seen on dark and on light."""

HEAD = 0.095
"""Radius of the drawn head in metres, where the equator of the helmet lies."""


def flat(positions_mm: np.ndarray) -> np.ndarray:
    """Return (sensors, 2) metres: the angle from the top becomes the distance from the middle (azimuthal equidistant).

    Parameters
    ----------
    positions_mm
        (sensors, 3) in the head frame: x right, y front, z up.
    """
    places = np.asarray(positions_mm, float) / 1000
    # The sphere that fits the sensors best: its centre lies above the head frame's origin by a few cm.
    design = np.column_stack([2 * places, np.ones(len(places))])
    solved, *_ = np.linalg.lstsq(design, (places**2).sum(1), rcond=None)
    centre = solved[:3] if len(places) >= 10 else places.mean(0)
    away = places - centre
    distance = np.linalg.norm(away, axis=1)
    angle = np.arccos(np.clip(away[:, 2] / np.maximum(distance, 1e-9), -1, 1))
    turn = np.arctan2(away[:, 1], away[:, 0])
    return (angle / (np.pi / 2) * HEAD)[:, None] * np.column_stack([np.cos(turn), np.sin(turn)])


def by_place(table: pd.DataFrame, values: np.ndarray, *, power: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return (places, 2) flat positions and (places,) values, averaged over the sensors of one place.

    With ``power`` it is the root of the mean square: two gradiometers of one site lie across each other, so that the
    mean of what they measure is the field of no sensor.
    """
    own = table.assign(value=np.square(values) if power else values)
    own = own[np.isfinite(own["value"]) & np.isfinite(own[["x", "y", "z"]].to_numpy(float)).all(1)]
    merged = own.groupby("site")[["x", "y", "z", "value"]].mean()
    value = merged["value"].to_numpy(float)
    return flat(merged[["x", "y", "z"]].to_numpy(float)), np.sqrt(value) if power else value


def topomap(
    axes,
    table: pd.DataFrame,
    values: np.ndarray,
    *,
    signed: bool,
    limit: tuple[float, float],
    power: bool = False,
    ringed: np.ndarray | None = None,
):
    """Draw values over the helmet with MNE and return the image, None for fewer than four places.

    Parameters
    ----------
    axes
        Where to.
    table
        Columns x, y, z (mm, head frame) and site.
    values
        (sensors,); NaN is left out.
    signed
        Whether colours are centred on 0.
    limit
        Lowest and highest value of the colours.
    power
        Whether sensors of one place are merged by the root of their mean square.
    ringed
        (sensors,) bool, those to draw a ring around.
    """
    import mne

    places, merged = by_place(table, values, power=power)
    if len(places) < 4:
        axes.set_axis_off()
        return None
    image, _ = mne.viz.plot_topomap(
        merged,
        places,
        axes=axes,
        show=False,
        contours=4,
        sensors=False,
        cmap="RdBu_r" if signed else "cividis",
        vlim=limit,
        sphere=(0.0, 0.0, 0.0, HEAD),
        extrapolate="local",
    )
    axes.scatter(*places.T, s=5, facecolors="black", edgecolors="white", linewidths=0.35, zorder=10)
    if ringed is not None:
        around, marked = by_place(table, np.where(np.isfinite(values), ringed.astype(float), np.nan))
        axes.scatter(
            *around[marked > 0].T, s=26, facecolors="none", edgecolors=RING, linewidths=1.1, zorder=11, clip_on=False
        )
    return image


TYPES = {"mag": "magnetometers", "axial": "axial gradiometers", "grad": "gradiometers"}


def sensor_types(units: pd.DataFrame) -> list[str]:
    """Return the types of sensors that have positions, magnetometers first."""
    known = units[np.isfinite(units[["x", "y", "z"]].to_numpy(float)).all(1)]
    return [t for t in TYPES if (known["type"] == t).sum() >= 4]

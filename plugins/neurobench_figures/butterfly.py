"""Evoked responses, real and reconstructed: every sensor's average, global field power, and the field at its peak."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from neurobench import Drawing, Evidence, Figure, hookimpl
from neurobench_figures._helmet import TYPES, by_place, sensor_types, topomap
from neurobench_figures._style import BLACK, RED, SMALL, best, canvas, one_seed_said, slug, tidy

SCALE = {"mag": (1e15, "fT"), "axial": (1e15, "fT"), "grad": (1e13, "fT/cm")}
"""From T and T/m to the field's units."""


CROSSED = {
    "mag": "",
    "axial": "",
    "grad": "; the two gradiometers of a site are merged by the root of their mean square",
}


class Butterfly(Figure):
    """Grand average over held-out subjects of the best pretrained row."""

    name = "butterfly"
    summary = "evoked responses, real and reconstructed: butterflies, global field power, fields at the peak"

    def draw(self, evidence: Evidence) -> Iterator[Drawing]:
        """Yield one drawing a (task, state and condition, sensor type)."""
        units = evidence.units
        for task, rows in evidence.tasks():
            for record_id in best(rows, "pretrained") or best(rows, "untrained"):
                if (arrays := evidence.arrays(record_id, "responses")) is None:
                    continue
                name = str(rows.loc[rows["id"] == record_id, "row"].iloc[0])
                types = sensor_types(units)
                for i, key in enumerate(arrays["keys"].tolist()):
                    for kind in types:
                        window_s = (float(arrays["peak_window_s"][i, 0]), float(arrays["peak_window_s"][i, 1]))
                        low, high = (round(1e3 * t) for t in window_s)
                        real, predicted = arrays["real"][i], arrays["predicted"][i]
                        figure, alt = butterfly(
                            evidence, units, real, predicted, arrays["times_s"], window_s, kind, f"{key}: {name}"
                        )
                        caption = (
                            f"Average over epochs and {int(arrays['n_subjects'][i])} held-out subjects, {TYPES[kind]}. "
                            "Top: one line a sensor; below: global field power of both (s.d. over sensors). Heads: the "
                            f"field of both at the real peak between {low} and {high} "
                            "ms, where the task looks for it; one scale, nose up"
                            + CROSSED[kind]
                            + ". Every sample was predicted while it "
                            "was hidden."
                        )
                        yield Drawing(
                            name=f"{slug(task)}-butterfly-{slug(key)}" + (f"-{kind}" if kind != types[0] else ""),
                            title=f"{key}: real and reconstructed response",
                            caption=caption + one_seed_said(rows),
                            alt=alt,
                            figure=figure,
                            section=f"task:{task}",
                        )


def butterfly(
    evidence: Evidence,
    units: pd.DataFrame,
    real: np.ndarray[Any, Any],
    predicted: np.ndarray[Any, Any],
    times_s: np.ndarray[Any, Any],
    window_s: tuple[float, float],
    kind: str,
    title: str,
) -> tuple[Any, str]:
    """Draw one response and return the figure and its alternative text.

    Parameters
    ----------
    evidence
        Says whether it is simulated.
    units
        (units,) rows with type, site, x, y, z (mm).
    real, predicted
        (units, times) in T or T/m.
    times_s
        (times,) from the event.
    window_s
        Where the peak is looked for, from the event.
    kind
        Sensor type to draw.
    title
        Of the picture.
    """
    factor, unit = SCALE[kind]
    known = (units["type"] == kind).to_numpy() & np.isfinite(real).all(1) & np.isfinite(predicted).all(1)
    own, a, b = units[known], factor * real[known], factor * predicted[known]
    figure = canvas(4.6, evidence)
    left, right = figure.subfigures(1, 2, width_ratios=(2.1, 1))
    top, middle, bottom = left.subplots(3, 1, sharex=True, height_ratios=(1.2, 1.2, 1))
    edge = 1.05 * float(np.abs(a).max(initial=1e-9))
    power = [x.std(0) for x in (a, b)]
    inside = np.flatnonzero((times_s >= window_s[0]) & (times_s <= window_s[1]))
    at = int(inside[np.argmax(power[0][inside])]) if len(inside) else int(np.argmax(power[0]))
    guessed = int(inside[np.argmax(power[1][inside])]) if len(inside) else int(np.argmax(power[1]))
    ms = 1e3 * times_s
    for axes, curves, colour, words in ((top, a, BLACK, "real"), (middle, b, RED, "reconstructed")):
        tidy(axes).plot(ms, curves.T, color=colour, linewidth=0.5, alpha=0.55)
        axes.set(ylim=(-edge, edge), ylabel=unit)
        axes.set_title(words, loc="left", fontsize=SMALL + 1, pad=2)
    tidy(bottom).plot(ms, power[0], color=BLACK, linewidth=1.4, label=f"real, peak {ms[at]:.0f} ms")
    bottom.plot(
        ms, power[1], color=RED, linewidth=1.4, linestyle="--", label=f"reconstructed, peak {ms[guessed]:.0f} ms"
    )
    bottom.set(xlabel="time from the event (ms)", ylabel=f"GFP ({unit})", ylim=(0, None))
    # Above the curves: there is no corner in which a response of any shape would not run through it.
    bottom.legend(
        fontsize=SMALL, frameon=False, loc="lower left", bbox_to_anchor=(0, 0.98), ncols=2, borderpad=0, borderaxespad=0
    )
    for axes in (top, middle, bottom):
        axes.axvline(0, color="0.6", linewidth=0.8)
        axes.axvline(ms[at], color="0.6", linewidth=0.8, linestyle=":")
    left.suptitle(title, fontsize=SMALL + 1)
    heads = right.subplots(2, 1)
    crossed = kind == "grad"
    limit = float(np.abs(a[:, at]).max(initial=1e-9))
    if crossed:
        limit = float(by_place(own, a[:, at], power=True)[1].max(initial=1e-9))
    for axes, curves, words in zip(heads, (a, b), ("real", "reconstructed"), strict=True):
        span = (0.0 if crossed else -limit, limit)
        image = topomap(axes, own, curves[:, at], signed=not crossed, limit=span, power=crossed)
        axes.set_title(f"{words}, {ms[at]:.0f} ms", fontsize=SMALL + 1)
    if image is not None:
        bar = right.colorbar(image, ax=heads, shrink=0.5, location="bottom")
        bar.set_label(f"{unit}, RMS of each pair" if crossed else unit, fontsize=SMALL)
        bar.ax.tick_params(labelsize=SMALL)
    r = float(np.corrcoef(a.ravel(), b.ravel())[0, 1]) if b.std() > 0 else 0.0
    return figure, (
        f"{title}: the real response peaks at {ms[at]:.0f} ms, the reconstructed one at {ms[guessed]:.0f} ms; "
        f"correlation over "
        f"{len(own)} sensors and all times {r:.2f}."
    )


@hookimpl
def register_figures() -> list[type[Figure]]:
    """Register the figure."""
    return [Butterfly]

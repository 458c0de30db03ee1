"""What all figures share: colours that everybody can tell apart, sizes that stay legible, and words for captions.

Colours are those of Okabe & Ito (2008, jfly.uni-koeln.de/color); magnitudes are in cividis, signed values in a
diverging map centred on 0. Heavy packages are imported where something is drawn: the registry imports these modules on
every start.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from neurobench import Evidence

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as MplFigure

WIDTH = 6.8
"""Inches: 680 px on a page."""

BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW, BLACK = (
    *("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000"),
)
CYCLE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, BLACK)
MARKERS = "osD^vP*X<>"
"""Beside every colour, for who cannot tell colours apart and for paper."""

KIND_COLOURS = {"pretrained": BLUE, "given": GREEN, "untrained": SKY, "baseline": ORANGE, "filler": PURPLE}
KIND_NAMES = {
    "pretrained": "pretrained",
    "given": "as given",
    "untrained": "untrained (control)",
    "baseline": "baseline",
    "filler": "trivial filler",
}
SMALL = 8
MOST_ROWS = 40
"""Rows of one picture at most; the best of each kind are kept."""


def canvas(height: float, evidence: Evidence, width: float = WIDTH) -> MplFigure:
    """Return an empty figure in the common style; of simulated data it says so."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    if evidence.source == "simulated":
        figure.text(0.995, 0.005, "SIMULATED", ha="right", va="bottom", fontsize=SMALL, color="#9a6700", weight="bold")
        figure.get_layout_engine().set(rect=(0, 0.2 / max(height, 1), 1, 1 - 0.2 / max(height, 1)))
    return figure


def tidy(axes: Axes) -> Axes:
    """Take away what carries nothing: upper and right spines; small, even type."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=SMALL)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_fontsize(SMALL + 1)
    return axes


def words(metric: str) -> str:
    """Return a metric as it is written: ``MAE``, ``R²``, ``balanced accuracy``."""
    if metric == "r2":
        return "R²"
    return metric.upper() if metric.isalpha() and len(metric) <= 5 else metric.replace("_", " ")


def with_unit(name: str, unit: str) -> str:
    """Return a label with its unit in brackets."""
    return f"{name} ({unit})" if unit else name


def number(value: float, form: str = ".2f") -> str:
    """Return a number as axes write it, with a minus that is no hyphen."""
    text = format(value, form)
    if "+" not in form and text.startswith("-") and not text.strip("-0."):
        text = text[1:]  # What rounds to 0 has no sign.
    return text.replace("-", "−")


def interval(low: float, high: float, form: str = ".2f") -> str:
    """Return an interval in words: a dash would run into the minus of its upper limit."""
    return f"{number(low, form)} to {number(high, form)}"


def known(value: Any) -> bool:
    """Whether a cell of a table holds a number."""
    return value is not None and not (isinstance(value, float) and math.isnan(value)) and str(value) != "<NA>"


def over_seeds(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one line a row: mean score over seeds, the widest limits of its intervals, number of seeds."""
    numbers = rows.assign(**{c: pd.to_numeric(rows[c], errors="coerce") for c in ("score", "low", "high")})
    grouped = numbers.groupby(["kind", "row"], sort=False)
    table = grouped.agg(
        score=("score", "mean"),
        low=("low", "min"),
        high=("high", "max"),
        n_seeds=("seed", "nunique"),
        backbone=("backbone", "first"),
        mask=("mask", "first"),
        id=("id", "first"),
    )
    return table.reset_index()


def seeds_said(rows: pd.DataFrame) -> str:
    """Return what a caption says of seeds: nothing for a single one."""
    n = rows["seed"].nunique()
    return f" Means over {n} seeds with the widest limits of their intervals." if n > 1 else ""


def first_seed(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the smallest seed: single subjects are shown for one seed only."""
    return rows[rows["seed"] == rows["seed"].min()]


def one_seed_said(rows: pd.DataFrame) -> str:
    """Return what a caption says where one of several seeds is shown."""
    n = rows["seed"].nunique()
    return f" Seed {rows['seed'].min()} of {n}." if n > 1 else ""


def best(rows: pd.DataFrame, kind: str, n: int = 1) -> list[str]:
    """Return the ids of the best rows of a kind, of the first seed."""
    own = rows[(rows["kind"] == kind) & rows["score"].notna()]
    if not len(own):
        return []
    ascending = not bool(own["higher_is_better"].iloc[0])
    return first_seed(own).sort_values("score", ascending=ascending, kind="stable")["id"].head(n).tolist()


def slug(text: str) -> str:
    """Return text as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def shortened(text: str, most: int = 34) -> str:
    """Return a label that fits, with an ellipsis where it was cut."""
    return text if len(text) <= most else text[: most - 1] + "…"


def joined(names: Sequence[str], most: int = 8) -> str:
    """Return names for an alternative text."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def limits(values: Any, share: float = 0.02) -> tuple[float, float]:
    """Return limits of a colour scale that a few extreme values do not decide."""
    finite = np.asarray(values, float)
    finite = finite[np.isfinite(finite)]
    if not len(finite):
        return 0.0, 1.0
    low, high = np.quantile(finite, [share, 1 - share])
    return float(low), float(high if high > low else low + 1e-6)

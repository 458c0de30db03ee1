"""Draw the pictures of the documentation: `python docs/make_drawings.py`."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

GROUPS = {"visual": "#0072B2", "frontal": "#E69F00", "motor": "#009E73"}
N_PATCHES, HIDDEN, GONE = 8, "frontal", {(4, 6), (4, 7)}


def token_table() -> Figure:
    """Return six units in three groups by eight patches; one group hidden, two tokens without signal."""
    figure = Figure(figsize=(7.2, 3.1), layout="constrained")
    axes = figure.subplots()
    units = [g for g in GROUPS for _ in range(2)]
    for row, group in enumerate(units):
        axes.text(-0.2, row + 0.5, f"unit {row + 1}", ha="right", va="center", fontsize=9)
        for patch in range(N_PATCHES):
            gone = (row, patch) in GONE
            hidden = group == HIDDEN
            face = "white" if gone else "#d9d9d9" if hidden else GROUPS[group]
            edge = "#999999" if gone else "black"
            hatch = "" if gone else "////" if hidden else ""
            axes.add_patch(
                Rectangle((patch + 0.05, row + 0.08), 0.9, 0.84, facecolor=face, edgecolor=edge, hatch=hatch, lw=0.7)
            )
            if gone:
                axes.text(patch + 0.5, row + 0.5, "not valid", ha="center", va="center", fontsize=6.5, color="#666666")
    for i, (group, colour) in enumerate(GROUPS.items()):
        said = f"{group}: hidden by roi" if group == HIDDEN else group
        axes.text(N_PATCHES + 0.25, 2 * i + 1, said, va="center", fontsize=9, color="black")
        axes.plot([N_PATCHES + 0.12] * 2, [2 * i + 0.1, 2 * i + 1.9], color=colour, lw=3, solid_capstyle="butt")
    axes.annotate(
        "a token: one unit during one patch of 15 s",
        xy=(1.5, 0.1),
        xytext=(1.5, -0.7),
        ha="center",
        fontsize=9,
        arrowprops={"arrowstyle": "-", "lw": 0.8},
    )
    axes.text(N_PATCHES / 2, len(units) + 0.45, "patches, in time →", ha="center", va="center", fontsize=9)
    axes.set_xlim(-1.2, N_PATCHES + 3.2)
    axes.set_ylim(len(units) + 0.8, -1.0)
    axes.axis("off")
    return figure


PATH = [
    ("recordings", "fMRI, MEG\nor simulated twins"),
    ("folds", "by subject and\nfamily, balanced\nover site"),
    ("masks", "equal numbers\nof tokens scored"),
    ("pretraining", "every backbone:\nsame steps, same\nsize within 10 %"),
    ("frozen scoring", "one probe for all,\non held-out\nsubjects"),
    ("board", "ranks only where\npaired intervals\nallow them"),
]
BESIDE = [
    (1, 2, "the same for every backbone: folds, windows, masks"),
    (3, 2, "fitted on training subjects only: scaling, pretraining, probes, baselines"),
    (5, 1, "beside every row: its controls"),
]


def path() -> Figure:
    """Return the way from recordings to the board, and below it what keeps a number honest."""
    figure = Figure(figsize=(9.6, 2.3))
    axes = figure.add_axes((0, 0, 1, 1))
    for i, (name, said) in enumerate(PATH):
        left, face = 0.12 + 1.6 * i, "#0072B2" if name == "pretraining" else "#eef3f7"
        ink = "white" if name == "pretraining" else "black"
        box = FancyBboxPatch((left, 0.95), 1.36, 1.15, boxstyle="round,pad=0,rounding_size=0.08", fc=face, ec="#0072B2")
        axes.add_patch(box)
        axes.text(left + 0.68, 1.87, name, ha="center", va="center", fontsize=11, weight="bold", color=ink)
        axes.text(left + 0.68, 1.36, said, ha="center", va="center", fontsize=8.5, color=ink, linespacing=1.25)
        if i:
            axes.annotate("", (left, 1.52), (left - 0.24, 1.52), arrowprops={"arrowstyle": "-|>", "color": "black"})
    for first, length, said in BESIDE:
        left, right = 0.12 + 1.6 * first, 0.12 + 1.6 * (first + length - 1) + 1.36
        axes.plot([left, left, right, right], [0.85, 0.75, 0.75, 0.85], color="#B25000", lw=1.4)
        words = said.replace(": ", ":\n", 1)
        axes.text((left + right) / 2, 0.42, words, ha="center", va="center", fontsize=8.5, linespacing=1.35)
    axes.set_xlim(0, 9.6)
    axes.set_ylim(0, 2.3)
    axes.axis("off")
    return figure


if __name__ == "__main__":
    matplotlib.rcParams["svg.hashsalt"] = "neurobench"
    path().savefig(Path(__file__).with_name("path.svg"), metadata={"Date": None})
    token_table().savefig(Path(__file__).with_name("token_table.svg"), metadata={"Date": None})

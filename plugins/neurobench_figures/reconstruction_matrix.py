"""Pretraining mask × evaluation mask: R² and skill over the best trivial filler."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from neurobench import Drawing, Evidence, Figure, hookimpl
from neurobench_figures._style import SMALL, canvas, first_seed, number, one_seed_said, shortened, slug


class ReconstructionMatrix(Figure):
    """Whether a backbone fills in only what it was trained to fill in."""

    name = "reconstruction_matrix"
    summary = "pretraining mask × evaluation mask: held-out R², and skill over the best trivial filler"

    def draw(self, evidence: Evidence) -> Iterator[Drawing]:
        """Yield one drawing a (reconstruction task, backbone)."""
        for task, rows in evidence.tasks():
            own = first_seed(rows[rows["kind"].isin(("pretrained", "given", "untrained"))]) if len(rows) else rows
            for backbone, cells in own.groupby("backbone", sort=True):
                found = {
                    r["row"]: p for r in cells.to_dict("records") if (p := _by_mask(evidence, r["id"])) is not None
                }
                if found:
                    yield _drawing(evidence, task, str(backbone), cells, found, rows)


def _by_mask(evidence: Evidence, record_id: str) -> pd.DataFrame | None:
    """Return R² and skill of a row under every evaluation mask, pooled over subjects."""
    held_out = evidence.predictions(record_id)
    if held_out is None or "sse_best_filler" not in held_out:
        return None
    sums = held_out.groupby("mask", sort=True)[["sse", "sst", "sse_best_filler"]].sum()
    return pd.DataFrame({"r2": 1 - sums["sse"] / sums["sst"], "skill": 1 - sums["sse"] / sums["sse_best_filler"]})


def _drawing(
    evidence: Evidence,
    task: str,
    backbone: str,
    cells: pd.DataFrame,
    found: dict[str, pd.DataFrame],
    rows: pd.DataFrame,
) -> Drawing:
    masks = sorted({m for p in found.values() for m in p.index}, key=lambda m: (not m.startswith("roi"), m))
    names = list(found)
    labels = [shortened(n.partition(" · ")[2] or n, 18) for n in names]
    figure = canvas(1.6 + 0.42 * len(names), evidence)
    alt = []
    for axes, column, title in zip(
        figure.subplots(1, 2), ("r2", "skill"), ("R²", "skill over the best filler"), strict=True
    ):
        values = np.array([[found[n][column].get(m, np.nan) for m in masks] for n in names], float)
        edge = float(np.nanmax(np.abs(np.clip(values, -1, 1)))) or 1.0
        image = axes.imshow(values, cmap="RdBu_r", vmin=-edge, vmax=edge, aspect="auto")
        for i, j in np.ndindex(*values.shape):
            if np.isfinite(values[i, j]):
                strong = abs(values[i, j]) > 0.6 * edge
                axes.text(
                    j,
                    i,
                    number(values[i, j]),
                    ha="center",
                    va="center",
                    fontsize=SMALL,
                    color="white" if strong else "black",
                )
        axes.set_xticks(
            np.arange(len(masks)), [shortened(m, 16) for m in masks], rotation=40, ha="right", fontsize=SMALL
        )
        axes.set_yticks(np.arange(len(names)), labels if column == "r2" else [""] * len(names), fontsize=SMALL)
        axes.set_title(title, fontsize=SMALL + 1)
        axes.set_xlabel("evaluated under", fontsize=SMALL + 1)
        if column == "r2":
            axes.set_ylabel("pretrained under", fontsize=SMALL + 1)
        out = (np.nanmin(values) < -edge, np.nanmax(values) > edge)
        ends = {(True, False): "min", (False, True): "max", (True, True): "both"}.get(out, "neither")
        figure.colorbar(image, ax=axes, extend=ends).ax.tick_params(labelsize=SMALL)
        alt.append(f"{title} between {np.nanmin(values):.2f} and {np.nanmax(values):.2f}")
    return Drawing(
        name=f"{slug(task)}-matrix-{slug(backbone)}",
        title=f"{backbone}: every pretraining mask × every evaluation mask",
        caption=f"Held-out R² against each unit's own mean, pooled over {int(rows['n_subjects'].max())} subjects, "
        f"and skill over the best of "
        "mean, interpolation and ridge under the same mask (0: as good as it). Colours end at ±1."
        + one_seed_said(rows),
        alt=f"{backbone}, rows {', '.join(labels)}; columns {', '.join(masks)}: {'; '.join(alt)}.",
        figure=figure,
        section=f"task:{task}",
    )


@hookimpl
def register_figures() -> list[type[Figure]]:
    """Register the figure."""
    return [ReconstructionMatrix]

"""What a backbone draws on by its own weights, in every state, beside the untrained one and what is expected."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from neurobench import Drawing, Evidence, Figure, hookimpl
from neurobench_figures._brain import glass_brain, placed
from neurobench_figures._helmet import sensor_types, topomap
from neurobench_figures._style import SMALL, best, canvas, limits, number, one_seed_said, shortened, slug


class Importance(Figure):
    """One row a state: what the best pretrained row draws on, beside its untrained backbone."""

    name = "importance"
    summary = (
        "attention rollout, or what scans draw on, in every state, on the helmet or the brain, beside the untrained"
    )
    reference = "arXiv:2005.00928"

    def draw(self, evidence: Evidence) -> Iterator[Drawing]:
        """Yield one drawing a backbone that can say, if attribution was asked for and positions are known."""
        units = evidence.units
        helmet = evidence.signal == "sensors"
        added = ""
        if helmet:
            if not sensor_types(units):
                return
        elif evidence.modality != "fmri" or (found := placed(units)) is None:
            return
        else:
            units, added = found
        for task, rows in evidence.tasks():
            for backbone, own in rows[rows["kind"] == "pretrained"].groupby("backbone", sort=True):
                for record_id in best(own, "pretrained"):
                    table = evidence.frame(record_id, "importance")
                    if table is not None and table["value"].notna().any():
                        yield _drawing(evidence, task, str(backbone), rows, record_id, table, units, added)


def _panels(
    evidence: Evidence, rows: pd.DataFrame, record_id: str, table: pd.DataFrame
) -> list[tuple[str, pd.DataFrame, pd.DataFrame | None]]:
    """Return title, importance and alignment of the row and of its untrained backbone."""
    line = rows[rows["id"] == record_id].iloc[0]
    panels = [(str(line["row"]), table, evidence.frame(record_id, "alignment"))]
    twin = rows[(rows["kind"] == "untrained") & (rows["backbone"] == line["backbone"]) & (rows["seed"] == line["seed"])]
    if len(twin) and (control := evidence.frame(str(twin["id"].iloc[0]), "importance")) is not None:
        panels.append((str(twin["row"].iloc[0]), control, evidence.frame(str(twin["id"].iloc[0]), "alignment")))
    return panels


def _drawing(
    evidence: Evidence,
    task: str,
    backbone: str,
    rows: pd.DataFrame,
    record_id: str,
    table: pd.DataFrame,
    units: pd.DataFrame,
    added: str,
) -> Drawing:
    panels = _panels(evidence, rows, record_id, table)
    states = list(dict.fromkeys(table["state"]))
    span = limits(np.concatenate([t["value"].to_numpy(float) for _, t, _ in panels]))
    label = "drawn on (1: as any other)"
    said = []
    helmet = evidence.signal == "sensors"
    n = len(states) * len(panels)
    if helmet:
        figure = canvas(2.6 * len(states) + 0.4, evidence)
        grid = figure.subplots(len(states), len(panels), squeeze=False)
        kind = sensor_types(units)[0]
    else:
        figure = canvas(2.0 * n + 0.2, evidence)
        figure.set_layout_engine("none")
    image = None
    for i, state in enumerate(states):
        for j, (name, values, aligned) in enumerate(panels):
            own = units.merge(values[values["state"] == state], on="unit", how="inner")
            title = f"{shortened(name, 26)}: {state}"
            if aligned is not None and (aligned["state"] == state).any():
                one = aligned[aligned["state"] == state].iloc[0]
                title += f"\nAUROC {number(float(one['auroc']))}, p {number(float(one['p']), '.3f')}"
                said.append(f"{name} in {state} AUROC {float(one['auroc']):.2f}")
            if helmet:
                own = own[own["type"] == kind]
                expected = own["expected"].to_numpy(bool)
                drawn = topomap(
                    grid[i, j],
                    own,
                    own["value"].to_numpy(float),
                    signed=False,
                    limit=span,
                    ringed=expected if expected.any() else None,
                )
                grid[i, j].set_title(title, fontsize=SMALL + 1)
                image = drawn if drawn is not None else image
            else:
                k = i * len(panels) + j
                top = 0.985 - k / n
                figure.text(0.02, top, title, fontsize=SMALL + 1, va="top")
                box = (0.02, top - 0.92 / n, 0.96, 0.8 / n)
                glass_brain(figure, box, own["value"].to_numpy(float), own, False, label, span)
    if image is not None:
        bar = figure.colorbar(image, ax=grid.ravel().tolist(), shrink=0.5)
        bar.set_label(label, fontsize=SMALL)
        bar.ax.tick_params(labelsize=SMALL)
    ringed = (
        "Rings: sensors over the cortex that is expected to answer; AUROC: how well the values single them out, p: "
    )
    ringed += "against the helmet turned at random. " if helmet else ""
    return Drawing(
        name=f"{slug(task)}-importance-{slug(backbone)}",
        title=f"{panels[0][0]}: what it draws on",
        caption="How much the other units draw on each one by its own weights (attention rollout, or what the "
        "scans draw on), mean over held-out subjects; one scale, the untrained backbone beside as the control. "
        + (ringed if helmet and said else "")
        + "It says where a network looks, not whether that does any good."
        + added
        + one_seed_said(rows),
        alt=f"Importance of {len(units)} units in {', '.join(states)}: {'; '.join(said) or 'no response is expected'}.",
        figure=figure,
        section="interpretation",
    )


@hookimpl
def register_figures() -> list[type[Figure]]:
    """Register the figure."""
    return [Importance]

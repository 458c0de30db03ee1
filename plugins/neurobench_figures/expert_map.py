"""Which experts of a mixture work on which units, beside the untrained backbone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from neurobench import Drawing, Evidence, Figure, hookimpl
from neurobench.interpretation import entropy_bits
from neurobench_figures._style import SMALL, best, canvas, joined, number, one_seed_said, shortened, slug

MOST_NAMES = 45
"""Units above which their names would not be legible; groups are written instead."""


class ExpertMap(Figure):
    """Unit × expert as a heat map, units by group, for one fold: experts of two folds need not be the same."""

    name = "expert_map"
    summary = "mean gate of every unit on every expert, by group, with the entropy of the load, beside the untrained"
    reference = "arXiv:2508.16597"

    def draw(self, evidence: Evidence) -> Iterator[Drawing]:
        """Yield one drawing a backbone that has experts, if attribution was asked for."""
        for task, rows in evidence.tasks():
            for backbone, own in rows[rows["kind"] == "pretrained"].groupby("backbone", sort=True):
                for record_id in best(own, "pretrained"):
                    if evidence.frame(record_id, "routing") is not None:
                        yield _drawing(evidence, task, str(backbone), rows, record_id)


def _shares(table: pd.DataFrame, units: pd.DataFrame) -> np.ndarray:
    """Return (units, experts) of the first fold, in the order of ``units``."""
    first = table[table["fold"] == table["fold"].min()]
    return first.pivot(index="unit", columns="expert", values="share").reindex(units["unit"]).to_numpy(float)


def _drawing(evidence: Evidence, task: str, backbone: str, rows: pd.DataFrame, record_id: str) -> Drawing:
    line = rows[rows["id"] == record_id].iloc[0]
    twin = rows[(rows["kind"] == "untrained") & (rows["backbone"] == line["backbone"]) & (rows["seed"] == line["seed"])]
    units = evidence.units.sort_values("group", kind="stable").reset_index(drop=True)
    shown = [
        (str(r["row"]), _shares(table, units))
        for r in (line, *(r for _, r in twin.iterrows()))
        if (table := evidence.frame(str(r["id"]), "routing")) is not None
    ]
    figure = canvas(float(np.clip(1.3 + 0.14 * len(units), 3.2, 8.0)), evidence)
    panels = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0]
    top = max(float(np.nanmax(values)) for _, values in shown)
    said = []
    for axes, (name, values) in zip(panels, shown, strict=True):
        image = axes.imshow(values, aspect="auto", cmap="cividis", vmin=0, vmax=top, interpolation="nearest")
        load = np.nanmean(values, axis=0)
        bits = f"{number(float(entropy_bits(load)))} of {number(float(np.log2(len(load))))} bits"
        said.append(f"{name} {bits}")
        axes.set_title(f"{shortened(name, 30)}\nload {bits}", fontsize=SMALL + 1)
        experts = np.arange(len(load))
        step = max(1, len(load) // 8)
        axes.set_xticks(experts[::step], [str(e + 1) for e in experts[::step]], fontsize=SMALL)
        axes.set_xlabel("expert", fontsize=SMALL + 1)
        for edge in np.flatnonzero(units["group"].to_numpy()[1:] != units["group"].to_numpy()[:-1]):
            axes.axhline(edge + 0.5, color="white", linewidth=1.2)
    _name_rows(panels[0], units)
    bar = figure.colorbar(image, ax=list(panels), shrink=0.6)
    bar.set_label("mean gate", fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL)
    own = np.nan_to_num(shown[0][1])
    clearest = [f"{units['unit'].iloc[i]} on {own[i].argmax() + 1}" for i in np.argsort(-own.max(1))[:5]]
    return Drawing(
        name=f"{slug(task)}-experts-{slug(backbone)}",
        title=f"{shown[0][0]}: which experts work on which units",
        caption="Mean gate of every unit on every expert over held-out subjects of the first fold, nothing hidden; a "
        "row sums to 1; units by group. The load is the share of all units that each expert has; its entropy: "
        f"{'; '.join(said)}, the most being an even load. The untrained backbone is the control: what its map shows "
        "was not learned from reconstruction. Experts have no order, and other folds may number them "
        "differently." + one_seed_said(rows),
        alt=f"Gates of {len(units)} units on {own.shape[1]} experts; entropy of the load: {'; '.join(said)}. Clearest: "
        f"{joined(clearest)}.",
        figure=figure,
        section="interpretation",
    )


def _name_rows(axes, units: pd.DataFrame) -> None:
    """Write units beside the rows, or the groups where there are too many of them."""
    if len(units) <= MOST_NAMES:
        axes.set_yticks(np.arange(len(units)), [shortened(u, 22) for u in units["unit"]], fontsize=SMALL)
        return
    middle = units.groupby("group", sort=False).apply(lambda g: float(g.index.to_numpy().mean()), include_groups=False)
    axes.set_yticks(middle.to_numpy(), [shortened(g or "no group", 22) for g in middle.index], fontsize=SMALL)


@hookimpl
def register_figures() -> list[type[Figure]]:
    """Register the figure."""
    return [ExpertMap]

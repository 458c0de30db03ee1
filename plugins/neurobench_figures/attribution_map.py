"""Where in the brain, or on the helmet, something is lost when a group is taken away, beside randomised weights."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from neurobench import Drawing, Evidence, Figure, hookimpl
from neurobench_figures._brain import glass_brain, painted, placed, slices
from neurobench_figures._helmet import TYPES, sensor_types, topomap
from neurobench_figures._style import SMALL, best, canvas, limits, one_seed_said, slug, with_unit
from neurobench_figures.attribution import believed, lost


class AttributionMap(Figure):
    """The best pretrained row above, its untrained backbone below, in the same colours."""

    name = "attribution_map"
    summary = "what is lost without each group, on the brain or the helmet, beside randomised weights"
    reference = "doi:10.1007/978-3-319-10590-1_53"

    def draw(self, evidence: Evidence) -> Iterator[Drawing]:
        """Yield one drawing a task, if attribution was asked for and positions are known."""
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
            for record_id in best(rows, "pretrained"):
                own = evidence.frame(record_id, "attribution")
                if own is not None and own.loc[own["control"] == "", "value"].notna().any():
                    yield _drawing(evidence, task, rows, record_id, units, added)


def by_unit(units: pd.DataFrame, table: pd.DataFrame) -> np.ndarray:
    """Return (units,) what is lost without each unit's group; NaN for a unit of none."""
    own = table[table["control"] == ""].set_index("group")["value"]
    groups = units["group"] if units["group"].nunique() > 1 else units["unit"]
    return groups.replace("", "no group").map(own).to_numpy(float)


def _drawing(
    evidence: Evidence, task: str, rows: pd.DataFrame, record_id: str, units: pd.DataFrame, added: str
) -> Drawing:
    line = rows[rows["id"] == record_id].iloc[0]
    own = evidence.frame(record_id, "attribution")
    assert own is not None
    panels = [(f"{line['row']}", by_unit(units, own))]
    twin = rows[(rows["kind"] == "untrained") & (rows["backbone"] == line["backbone"]) & (rows["seed"] == line["seed"])]
    control = evidence.frame(str(twin["id"].iloc[0]), "attribution") if len(twin) else None
    if control is not None:
        panels.append((f"{twin['row'].iloc[0]} (randomised weights)", by_unit(units, control)))
    metric, unit = lost(own)
    label = with_unit(metric, unit)
    # One scale for both: a control that seems to show as much must show as much.
    edge = max(np.abs(limits(np.concatenate([v for _, v in panels])))) or 1.0
    if evidence.signal == "sensors":
        kinds = sensor_types(units)
        figure = canvas(2.9 * len(kinds) + 0.2, evidence)
        grid = figure.subplots(len(kinds), len(panels), squeeze=False)
        for axes_row, kind in zip(grid, kinds, strict=True):
            here = (units["type"] == kind).to_numpy()
            for axes, (title, values) in zip(axes_row, panels, strict=True):
                image = topomap(axes, units[here], values[here], signed=True, limit=(-edge, edge))
                axes.set_title(f"{title}\n{TYPES[kind]}", fontsize=SMALL + 1)
            if image is not None:
                bar = figure.colorbar(image, ax=list(axes_row), shrink=0.7)
                bar.set_label(label, fontsize=SMALL)
                bar.ax.tick_params(labelsize=SMALL)
        how = "Nose up; every sensor has the value of its group."
    else:
        figure = canvas(3.9 * len(panels), evidence)
        figure.set_layout_engine("none")
        part = 1 / len(panels)
        for i, (title, values) in enumerate(panels):
            top = 0.985 - part * i
            figure.text(0.02, top, title, fontsize=SMALL + 1, va="top")
            limit = (-edge, edge)
            glass_brain(figure, (0.02, top - 0.51 * part, 0.96, 0.45 * part), values, units, True, label, limit)
            slices(figure, (0.02, top - 0.93 * part, 0.96, 0.38 * part), values, units, True, label, limit)
        how = f"Every unit has the value of its group. Slices of the MNI template: {painted(units)}{added}"
    shown = own[own["control"] == ""].sort_values("value", ascending=False)["group"].tolist()
    return Drawing(
        name=f"{slug(task)}-attribution-map",
        title=f"{task}: where {line['row']} loses something",
        caption=f"{label} without the group that a unit belongs to; red: worse without it. {how} "
        + believed(evidence, task, str(line["row"]))
        + one_seed_said(rows),
        alt=f"{metric} by group on a map, from most to least: {', '.join(shown[:6])}.",
        figure=figure,
        section="interpretation",
    )


@hookimpl
def register_figures() -> list[type[Figure]]:
    """Register the figure."""
    return [AttributionMap]

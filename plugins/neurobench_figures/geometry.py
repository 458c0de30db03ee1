"""Where held-out subjects lie in a representation: by site, and by age."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from neurobench import Drawing, Evidence, Figure, hookimpl
from neurobench_figures._style import CYCLE, SMALL, best, canvas, tidy

MARKERS = "osD^vP*X<>"


class Geometry(Figure):
    """First two principal components of the frozen embeddings of the best pretrained row."""

    name = "geometry"
    summary = "embeddings of held-out subjects on two principal components, coloured by site and by age"

    def draw(self, evidence: Evidence) -> Iterator[Drawing]:
        """Yield one drawing, of the pretrained row that is best on the first task with embeddings."""
        for _, rows in evidence.tasks():
            for record_id in best(rows, "pretrained") or best(rows, "untrained"):
                if (table := evidence.frame(record_id, "geometry")) is not None:
                    yield _drawing(evidence, str(rows.loc[rows["id"] == record_id, "row"].iloc[0]), table)
                    return


def explained(table: pd.DataFrame, by: str) -> float:
    """Return the share of the variance of the two components that lies between groups of equal ``by``."""
    points = table[["pc1", "pc2"]].to_numpy(float)
    whole = ((points - points.mean(0)) ** 2).sum()
    centres = table.groupby(by)[["pc1", "pc2"]].transform("mean").to_numpy(float)
    return float(((centres - points.mean(0)) ** 2).sum() / whole) if whole > 0 else 0.0


def _drawing(evidence: Evidence, name: str, table: pd.DataFrame) -> Drawing:
    figure = canvas(3.3, evidence)
    left, right = (tidy(a) for a in figure.subplots(1, 2, sharex=True, sharey=True))
    said = []
    sites = [s for s in sorted(table["site"].unique()) if s]
    for i, site in enumerate(sites):
        own = table[table["site"] == site]
        style = {"color": CYCLE[i % len(CYCLE)], "marker": MARKERS[i % len(MARKERS)]}
        left.plot(own["pc1"], own["pc2"], linestyle="", markersize=4, alpha=0.7, markeredgewidth=0, label=site, **style)
    if sites:
        share = explained(table[table["site"] != ""], "site")
        left.set_title(f"site: {share:.0%} of the variance", fontsize=SMALL + 1)
        left.legend(fontsize=SMALL - 1, frameon=False, ncols=2)
        said.append(f"site explains {share:.0%} of the variance shown")
    else:
        left.plot(table["pc1"], table["pc2"], "o", color="0.4", markersize=4)
        left.set_title("sites are not known", fontsize=SMALL + 1)
    known = table[np.isfinite(table["age"].to_numpy(float))]
    if len(known) > 2 and known["age"].nunique() > 1:
        points = right.scatter(known["pc1"], known["pc2"], c=known["age"], cmap="cividis", s=16)
        bar = figure.colorbar(points, ax=right)
        bar.set_label("age (years)", fontsize=SMALL)
        bar.ax.tick_params(labelsize=SMALL)
        r = [float(np.corrcoef(known["age"], known[c])[0, 1]) if known[c].std() > 0 else 0.0 for c in ("pc1", "pc2")]
        right.set_title(f"age: r {r[0]:+.2f} and {r[1]:+.2f}", fontsize=SMALL + 1)
        said.append(f"age correlates {r[0]:+.2f} with the first and {r[1]:+.2f} with the second component")
    else:
        right.set_title("age is not known", fontsize=SMALL + 1)
    for axes in (left, right):
        axes.set_xlabel("component 1 (s.d.)")
    left.set_ylabel("component 2 (s.d.)")
    return Drawing(
        name="geometry",
        title=f"{name}: site and age in the embeddings",
        caption=f"{len(table)} held-out subjects on the first two principal components of their fold's training "
        f"subjects; components "
        "of different folds need not be the same ones, so clusters may be folds. What is shown is a small part of the "
        "representation: the site leak in the tables is measured on all of it.",
        alt=f"Embeddings of {len(table)} subjects: {'; '.join(said) or 'neither site nor age is known'}.",
        figure=figure,
        section="interpretation",
    )


@hookimpl
def register_figures() -> list[type[Figure]]:
    """Register the figure."""
    return [Geometry]

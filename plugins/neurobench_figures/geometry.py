"""Where held-out subjects lie in a representation: by site, and by age."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from neurobench import Drawing, Evidence, Figure, hookimpl
from neurobench_figures._style import CYCLE, MARKERS, SMALL, best, canvas, number, tidy


def by_chance(n: int, n_groups: int) -> float:
    """Return the share of the variance that lies between groups of no meaning: (groups − 1) / (n − 1)."""
    return (n_groups - 1) / (n - 1) if n > 1 else 1.0


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


def critical(n: int) -> float:
    """Return the correlation that 95 % of pairs of unrelated values of ``n`` subjects do not reach."""
    from scipy import stats

    t = float(stats.t.ppf(0.975, max(1, n - 2)))
    return t / float(np.sqrt(max(1, n - 2) + t * t))


def _drawing(evidence: Evidence, name: str, table: pd.DataFrame) -> Drawing:
    figure = canvas(3.7, evidence)
    left, right = (tidy(a) for a in figure.subplots(1, 2, sharex=True, sharey=True))
    said = []
    sites = [s for s in sorted(table["site"].unique()) if s]
    for i, site in enumerate(sites):
        own = table[table["site"] == site]
        style = {"color": CYCLE[i % len(CYCLE)], "marker": MARKERS[i % len(MARKERS)]}
        left.plot(own["pc1"], own["pc2"], linestyle="", markersize=4, alpha=0.7, markeredgewidth=0, label=site, **style)
    if sites:
        own = table[table["site"] != ""]
        share, chance = explained(own, "site"), by_chance(len(own), len(sites))
        left.set_title(f"site: {share:.0%} of the variance ({chance:.0%} by chance)", fontsize=SMALL + 1)
        figure.legend(
            *left.get_legend_handles_labels(), loc="outside lower left", fontsize=SMALL, frameon=False, ncols=6
        )
        said.append(f"site explains {share:.0%} of the variance shown, where {chance:.0%} would be chance")
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
        width = critical(len(known))
        right.set_title(
            f"age: r {number(r[0], '+.2f')}, {number(r[1], '+.2f')} (by chance within ±{width:.2f})", fontsize=SMALL + 1
        )
        said.append(
            f"age correlates {r[0]:+.2f} with the first and {r[1]:+.2f} with the second component, where 95 % of "
            f"unrelated values lie within ±{width:.2f}"
        )
    else:
        right.set_title("age is not known", fontsize=SMALL + 1)
    for axes in (left, right):
        axes.set_xlabel("component 1 (s.d.)")
        axes.locator_params(axis="x", nbins=5)
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

"""ROC curves and calibration of a two-class task."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from neurobench import Drawing, Evidence, Figure, hookimpl
from neurobench_figures._style import (
    BLUE,
    GREEN,
    ORANGE,
    SMALL,
    best,
    canvas,
    known,
    one_seed_said,
    shortened,
    slug,
    tidy,
)

N_BINS = 6
SMALLEST_BIN = 8
"""Subjects below which a share of them says too little."""

N_DRAWS = 500


class Roc(Figure):
    """ROC curves with bands, and how often a class is right that was given a probability."""

    name = "roc"
    summary = (
        "ROC curves with bands over subjects, and calibration, of the best pretrained row, its control and baseline"
    )

    def draw(self, evidence: Evidence) -> Iterator[Drawing]:
        """Yield one drawing a two-class task."""
        for task, rows in evidence.tasks():
            shown = [*best(rows, "pretrained"), *best(rows, "baseline"), *best(rows, "untrained")]
            found = [(i, p) for i in shown if (p := evidence.predictions(i)) is not None and _two_classes(p)]
            if found:
                yield _drawing(evidence, task, rows, found)


def _two_classes(p: pd.DataFrame) -> bool:
    return "prediction" in p and set(p["truth"].unique()) == {0.0, 1.0}


def roc_curve(truth: np.ndarray, score: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return false and true positive rates, (points,) each, ties taken together."""
    order = np.argsort(-score, kind="stable")
    ends = np.append(np.diff(score[order]) != 0, True)
    hits, misses = np.cumsum((weights * truth)[order])[ends], np.cumsum((weights * (1 - truth))[order])[ends]
    return np.append(0, misses / misses[-1]), np.append(0, hits / hits[-1])


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Return the 95 % interval of a share of ``n`` (Wilson 1927, doi:10.1080/01621459.1927.10502953)."""
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return float(middle - half), float(middle + half)


def _drawing(evidence: Evidence, task: str, rows: pd.DataFrame, found: list[tuple[str, pd.DataFrame]]) -> Drawing:
    names = [str(rows.loc[rows["id"] == i, "row"].iloc[0]) for i, _ in found]
    measured = [rows.loc[rows["id"] == i, "metric_auroc"].iloc[0] if "metric_auroc" in rows else None for i, _ in found]
    areas = {name: float(v) for name, v in zip(names, measured, strict=True) if known(v)}
    figure = canvas(3.7, evidence)
    left, right = (tidy(a) for a in figure.subplots(1, 2))
    left.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--")
    right.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--")
    rates = np.linspace(0, 1, 101)
    rng = np.random.default_rng(0)
    n_bins = int(np.clip(len(found[0][1]) // SMALLEST_BIN, 2, N_BINS))
    styles = zip((BLUE, ORANGE, GREEN), ("-", "--", ":"), "osD", strict=True)
    for name, (_, p), (colour, line, marker) in zip(names, found, styles, strict=False):
        truth, score = p["truth"].to_numpy(float), p["prediction"].to_numpy(float)
        drawn = []
        for _ in range(N_DRAWS if colour == BLUE else 0):
            weights = np.bincount(rng.integers(len(truth), size=len(truth)), minlength=len(truth)).astype(float)
            if 0 < (weights * truth).sum() < weights.sum():
                drawn.append(np.interp(rates, *roc_curve(truth, score, weights)))
        if drawn:
            left.fill_between(rates, *np.percentile(drawn, [2.5, 97.5], axis=0), color=colour, alpha=0.15, linewidth=0)
        area = areas.get(name)
        left.plot(
            *roc_curve(truth, score, np.ones(len(truth))),
            color=colour,
            linestyle=line,
            linewidth=1.5,
            label=f"{shortened(name, 26)}" + (f" ({area:.2f})" if area is not None else ""),
        )
        prevalence = p["train_mean"].to_numpy(float)
        above, below = score * prevalence, (1 - score) * (1 - prevalence)
        probability = np.divide(above, above + below, out=prevalence.copy(), where=above + below > 0)
        bins = np.array_split(np.argsort(probability, kind="stable"), n_bins)
        said, happened = ([float(v[b].mean()) for b in bins] for v in (probability, truth))
        right.plot(
            said, happened, marker, color=colour, linestyle=line, markersize=4.5, linewidth=1, clip_on=False, zorder=3
        )
        if colour == BLUE:
            around = np.array([wilson(y, len(b)) for y, b in zip(happened, bins, strict=True)])
            right.vlines(said, around[:, 0], around[:, 1], color=colour, linewidth=1.2, alpha=0.6)
    left.set(xlabel="false positive rate", ylabel="true positive rate", aspect="equal", xlim=(0, 1), ylim=(0, 1))
    left.set_title("ROC (area under it)", fontsize=SMALL + 1)
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=SMALL, frameon=False)
    right.set(xlabel="probability that was given", ylabel="share that was of the class", aspect="equal")
    right.set(xlim=(0, 1), ylim=(0, 1))
    right.set_title("calibration", fontsize=SMALL + 1)
    n = len(found[0][1])
    shown = "; ".join(f"{name} AUROC {a:.2f}" for name, a in areas.items())
    return Drawing(
        name=f"{slug(task)}-roc",
        title=f"{task}: ROC and calibration",
        caption=f"{n} held-out subjects. The band is the 95 % interval of the first curve over subjects. Right: "
        f"probabilities at the "
        f"prevalence of the training subjects, in {n_bins} bins of equally many subjects, bars: 95 % intervals "
        "of the first row's shares (Wilson); dashed: perfectly calibrated." + one_seed_said(rows),
        alt=f"ROC curves of {task}: {shown}.",
        figure=figure,
        section=f"task:{task}",
    )


@hookimpl
def register_figures() -> list[type[Figure]]:
    """Register the figure."""
    return [Roc]

"""Which windows are taken for which: the confusion matrix of a task on windows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from neurobench import Drawing, Evidence, Figure, hookimpl
from neurobench_figures._style import SMALL, best, canvas, one_seed_said, shortened, slug


class Confusion(Figure):
    """Rows of the matrix sum to one: the recall of every class is on the diagonal."""

    name = "confusion"
    summary = "confusion matrices of a task on windows, best pretrained row beside best baseline"

    def draw(self, evidence: Evidence) -> Iterator[Drawing]:
        """Yield one drawing a task on windows."""
        for task, rows in evidence.tasks():
            shown = [*best(rows, "pretrained"), *best(rows, "baseline")]
            found = [(i, p) for i in shown if (p := evidence.predictions(i)) is not None and _of_classes(p)]
            if found:
                yield _drawing(evidence, task, rows, found)


def _of_classes(predictions: pd.DataFrame) -> bool:
    return any(c.startswith("p[") for c in predictions.columns)


def _drawing(evidence: Evidence, task: str, rows: pd.DataFrame, found: list[tuple[str, pd.DataFrame]]) -> Drawing:
    names = [str(rows.loc[rows["id"] == i, "row"].iloc[0]) for i, _ in found]
    figure = canvas(3.3, evidence)
    said = []
    for axes, name, (_, p) in zip(figure.subplots(1, len(found), squeeze=False).ravel(), names, found, strict=True):
        classes = [c[2:-1] for c in p.columns if c.startswith("p[")]
        taken = np.array(classes)[p[[f"p[{c}]" for c in classes]].to_numpy(float).argmax(1)]
        counts = pd.crosstab(p["truth"], taken).reindex(index=classes, columns=classes, fill_value=0).to_numpy(float)
        share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        axes.imshow(share, cmap="cividis", vmin=0, vmax=1)
        for i, j in np.ndindex(*share.shape):
            light = share[i, j] < 0.5
            axes.text(
                j,
                i,
                f"{share[i, j]:.2f}",
                ha="center",
                va="center",
                fontsize=SMALL,
                color="white" if light else "black",
            )
        ticks = np.arange(len(classes))
        axes.set_xticks(ticks, [shortened(c, 14) for c in classes], rotation=30, ha="right", fontsize=SMALL)
        axes.set_yticks(
            ticks,
            [f"{shortened(c, 14)} ({int(n)})" for c, n in zip(classes, counts.sum(1), strict=True)],
            fontsize=SMALL,
        )
        axes.set_xlabel("taken for", fontsize=SMALL + 1)
        axes.set_ylabel("is (windows)", fontsize=SMALL + 1)
        axes.set_title(name, fontsize=SMALL + 1)
        said.append(f"{name}: recall " + ", ".join(f"{c} {share[i, i]:.2f}" for i, c in enumerate(classes)))
    return Drawing(
        name=f"{slug(task)}-confusion",
        title=f"{task}: what is taken for what",
        caption="Shares of each class's held-out windows; the diagonal is its recall. Windows of one subject are "
        "never on both sides." + one_seed_said(rows),
        alt="; ".join(said) + ".",
        figure=figure,
        section=f"task:{task}",
    )


@hookimpl
def register_figures() -> list[type[Figure]]:
    """Register the figure."""
    return [Confusion]

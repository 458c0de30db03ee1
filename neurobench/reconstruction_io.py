"""Keep reconstruction scores in files, and join those of several masks, predictors and folds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from neurobench.reconstruction import ReconstructionScores

__all__ = ["join", "load_scores", "save_scores"]

_NAMES = ("masks", "predictors", "subjects", "units")

_AXES = {
    "masks": dict.fromkeys(
        [f.name for f in fields(ReconstructionScores) if f.name not in ("predictors", "subjects", "units")], 0
    ),
    "predictors": dict.fromkeys(["sse", "predicted", "predicted_squares", "products", "guard_sse", "fc_similarity"], 1),
    "subjects": {
        **dict.fromkeys(["n", "total", "sst", "guard_sst"], 1),
        **dict.fromkeys(["sse", "predicted", "predicted_squares", "products", "guard_sse", "fc_similarity"], 2),
    },
}
"""For each way of joining, the axis along which each array grows; the others are the same in every part."""


def save_scores(scores: ReconstructionScores, path: Path) -> None:
    """Write scores as .npz."""
    arrays = {f.name: np.asarray(getattr(scores, f.name)) for f in fields(scores)}
    np.savez(path, allow_pickle=False, **arrays)


def load_scores(path: Path) -> ReconstructionScores:
    """Read scores from .npz."""
    with np.load(path, allow_pickle=False) as arrays:
        values: dict[str, Any] = {f.name: arrays[f.name] for f in fields(ReconstructionScores)}
    return ReconstructionScores(**values | {n: tuple(values[n].tolist()) for n in _NAMES})


def join(
    parts: Sequence[ReconstructionScores], along: Literal["masks", "predictors", "subjects"]
) -> ReconstructionScores:
    """Return the scores of several parts as one.

    Parameters
    ----------
    parts
        Equal in everything but what they are joined along.
    along
        ``masks``, ``predictors`` or ``subjects`` (the test subjects of several folds).
    """
    first = parts[0]
    for name in set(_NAMES) - {along}:
        if any(getattr(p, name) != getattr(first, name) for p in parts):
            raise ValueError(f"reconstruction scores of different {name} cannot be joined along {along}")
    values: dict[str, Any] = {f.name: getattr(first, f.name) for f in fields(first)}
    for name, axis in _AXES[along].items():
        if name not in _NAMES:
            values[name] = np.concatenate([getattr(p, name) for p in parts], axis)
    if along == "subjects":
        for name in ("hidden_fraction", "scored_fraction"):
            values[name] = np.mean([getattr(p, name) for p in parts], axis=0)
    values[along] = tuple(n for p in parts for n in getattr(p, along))
    return ReconstructionScores(**values)

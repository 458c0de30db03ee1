"""Mean functional connectivity of the people that a network is pretrained on, for backbones that ask for it.

Nothing else of a fold enters: the pieces of recordings that are gone through are those that training windows are cut
from, in the scaled signal that the network is given.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from neurobench.tokens import Tokenizer, TrainingWindows

__all__ = ["fisher_z", "mean_connectivity"]

LARGEST = 1 - 1e-6
"""Correlation beyond which two units are copies: Fisher's z of 1 is infinite."""

FEWEST = 3
"""Samples below which two units have no correlation worth the name."""


def fisher_z(signal: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return (units, units) Fisher's z of the correlations of (units, times); NaN for a unit that does not vary."""
    centred = np.asarray(signal, np.float64) - signal.mean(1, dtype=np.float64, keepdims=True)
    norm = np.sqrt((centred**2).sum(1, keepdims=True))
    scaled = np.divide(centred, norm, out=np.full_like(centred, np.nan), where=norm > 1e-12)
    z: NDArray[np.float64] = np.arctanh(np.clip(scaled @ scaled.T, -LARGEST, LARGEST))
    return z


def mean_connectivity(sources: Iterable[TrainingWindows], n_units: int) -> torch.Tensor:
    """Return (n_units, n_units) Fisher's z: the mean over a person's recordings, then over people.

    One recording is in memory at a time. Samples in bad spans are left out, and a unit that is missing or does not vary
    in a recording takes no part there. Where several units of a cohort stand for one of the network, their pairs are
    averaged. Zero on the diagonal, and for pairs that nobody has.

    Parameters
    ----------
    sources
        What the network is pretrained on.
    n_units
        Units of the network.
    """
    total, people = np.zeros((n_units, n_units)), np.zeros((n_units, n_units))
    for source in sources:
        seen = source.tokenizer.cohort.seen_as
        unit = np.arange(n_units) if seen is None else seen.unit
        pair = unit[:, None], unit[None]
        for pieces in source.pieces.values():
            own, count = np.zeros_like(total), np.zeros_like(total)
            for index, low, high in pieces:
                z = fisher_z(_series(source.tokenizer, index, low, high))
                known = np.isfinite(z)
                np.add.at(own, pair, np.where(known, z, 0.0))
                np.add.at(count, pair, known)
            total += np.divide(own, count, out=np.zeros_like(own), where=count > 0)
            people += count > 0
    mean = np.divide(total, people, out=np.zeros_like(total), where=people > 0)
    np.fill_diagonal(mean, 0.0)
    return torch.from_numpy(mean.astype(np.float32))


def _series(tokenizer: Tokenizer, index: int, low: int, high: int) -> NDArray[np.floating[Any]]:
    """Return (units, times) of a piece of one recording, patches of a volume by the mean of their voxels."""
    cohort = tokenizer.cohort
    scaled = tokenizer.scaled(index, low, high)
    series = scaled.mean(2) if scaled.ndim == 3 else scaled
    good = _good(cohort.recordings[index].bad_spans, cohort.sfreq, low, high)
    # Too little left to correlate is the same as nothing.
    return series[:, good] if good.sum() >= FEWEST else np.zeros((len(series), 1), np.float32)


def _good(spans: Sequence[tuple[float, float]], sfreq: float, low: int, high: int) -> NDArray[np.bool_]:
    """Return (times,) which samples of a piece lie in no bad span."""
    at = np.arange(low, high) / sfreq
    good = np.ones(len(at), bool)
    for first, last in spans:
        good &= (at < first) | (at >= last)
    return good

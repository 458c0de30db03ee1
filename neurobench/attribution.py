"""What a backbone uses: groups of units are taken away, and what becomes worse is measured on held-out subjects.

*Reconstruction*: under one fixed mask a group is hidden as well, and the error of the hidden tokens of all *other*
units is compared with and without it. *Prediction*: a group is hidden before subjects are embedded, and the frozen
probe, fitted on whole training subjects, predicts again. Occlusion asks what is used, not what is informative: two
groups that say the same can replace each other, and neither then seems to matter.

Controls come with it, or nothing is said: the same of an untrained backbone (randomised weights), of a probe fitted to
permuted labels (randomised labels), and the agreement between folds (Spearman).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy
import torch
from numpy.typing import NDArray

from neurobench.adaptation import pooled_tokens
from neurobench.contracts import Backbone, MaskingStrategy
from neurobench.identity import seed_for
from neurobench.masking import draw, mask_generator
from neurobench.reconstruction import Predictor
from neurobench.records import UnitTable
from neurobench.scoring import N_BOOTSTRAP, bootstrap_weights, family_numbers
from neurobench.tokens import Tokenizer, Window

__all__ = ["Occlusion", "agreement", "embed_without", "geometry", "occlude", "unit_groups"]

Array = NDArray[np.float64]


def unit_groups(units: UnitTable) -> dict[str, NDArray[np.int64]]:
    """Return the rows of every group; every unit is its own where there are no groups."""
    if len(units.group_names) < 2:
        return {name: np.array([i]) for i, name in enumerate(units.names)}
    index = units.group_index
    return {name or "no group": np.flatnonzero(index == k) for k, name in enumerate(units.group_names)}


# ---------------------------------------------------------------- reconstruction


@dataclass(frozen=True, eq=False)
class Occlusion:
    """Errors of hidden tokens with and without a group; s subjects, g groups, u units that are filled in.

    Parameters
    ----------
    subjects, groups
        Names.
    base, occluded, total
        (s, g, u) squared error with the group visible, with it hidden, and sum of squares, over the same tokens, none
        of them of the group.
    """

    subjects: tuple[str, ...]
    groups: tuple[str, ...]
    base: Array
    occluded: Array
    total: Array

    def loss(self, weights: Array | None = None) -> Array:
        """Return (g,) the R² that the other units lose; with (…, s) weights of subjects, (…, g)."""
        above, below = (self.occluded - self.base).sum(-1), self.total.sum(-1)
        w = np.ones(len(self.subjects)) if weights is None else weights
        lost = np.asarray(w @ below)
        share: Array = np.divide(w @ above, lost, out=np.full(lost.shape, np.nan), where=lost > 0)
        return share

    def matrix(self) -> Array:
        """Return (g, u) the R² that each unit loses to each group; NaN where they were never seen together."""
        above, below = (self.occluded - self.base).sum(0), self.total.sum(0)
        share: Array = np.divide(above, below, out=np.full(below.shape, np.nan), where=below > 0)
        return share

    def table(self, seed: int, n_bootstrap: int = N_BOOTSTRAP, family: Mapping[str, str] | None = None) -> pd.DataFrame:
        """Return one row a group: value, and its 95 % interval of a bootstrap over families, or single subjects."""
        together = family_numbers([(family or {}).get(s) for s in self.subjects])
        draws = self.loss(bootstrap_weights(len(self.subjects), n_bootstrap, seed, together))
        low, high = np.nanpercentile(draws, [2.5, 97.5], axis=0)
        return pd.DataFrame({"group": self.groups, "value": self.loss(), "low": low, "high": high})

    @staticmethod
    def joined(parts: Sequence[Occlusion]) -> Occlusion:
        """Return as one the occlusions of the test subjects of several folds."""
        return Occlusion(
            tuple(s for p in parts for s in p.subjects),
            parts[0].groups,
            *(np.concatenate([getattr(p, name) for p in parts]) for name in ("base", "occluded", "total")),
        )


def occlude(
    predictor: Predictor,
    tokenizer: Tokenizer,
    windows: Sequence[Window],
    chunks: Sequence[NDArray[np.int64]],
    groups: Mapping[str, NDArray[np.int64]],
    strategy: MaskingStrategy,
    *,
    ratio: float,
    seed: int,
    batch_size: int = 32,
) -> Occlusion:
    """Hide one group after the other on top of a fixed mask, and measure what the other units lose.

    Parameters
    ----------
    predictor
        Of a backbone.
    tokenizer, windows
        Of held-out subjects, with the scaler of the training ones.
    chunks
        Units that are seen together; a group acts on the units of its own chunk only.
    groups
        Name to rows of the unit table.
    strategy, ratio
        The fixed mask; the fraction that it hides.
    seed
        Of the mask.
    batch_size
        Windows at a time; does not change the result.
    """
    subjects = tuple(dict.fromkeys(w.subject for w in windows))
    place = {s: i for i, s in enumerate(subjects)}
    shape = len(subjects), len(groups), len(tokenizer.cohort.units)
    base, occluded, total = (np.zeros(shape) for _ in range(3))
    for c, chunk in enumerate(chunks):
        inside = {g: np.isin(chunk, rows) for g, rows in groups.items()}
        for low in range(0, len(windows), batch_size):
            batch = tokenizer.batch(windows[low : low + batch_size], chunk)
            names = zip(tokenizer.window_tables(batch), batch.subjects, batch.windows, strict=True)
            fixed = torch.from_numpy(
                np.stack(
                    [
                        draw(strategy, t, ratio, mask_generator(seed, f"occlusion/{c}", who, w)).hidden
                        for t, who, w in names
                    ]
                )
            )
            rows = np.array([place[s] for s in batch.subjects])
            first = (predictor(batch, fixed) - batch.signal).square().sum(-1)
            power = batch.signal.square().sum(-1)
            for k, own in enumerate(inside.values()):
                if not own.any() or own.all():
                    continue
                more = torch.from_numpy(own)[None, :, None] & batch.table.valid
                second = (predictor(batch, fixed | more) - batch.signal).square().sum(-1)
                counted = fixed & ~more
                for values, into in ((first, base), (second, occluded), (power, total)):
                    np.add.at(into[:, k], (rows[:, None], chunk[None]), (values * counted).sum(-1).double().numpy())
    return Occlusion(subjects, tuple(groups), base, occluded, total)


# ---------------------------------------------------------------- prediction


def embed_without(
    backbone: Backbone,
    tokenizer: Tokenizer,
    windows: Sequence[Window],
    chunks: Sequence[NDArray[np.int64]],
    rows: NDArray[np.int64],
    device: torch.device | str = "cpu",
    batch_size: int = 32,
) -> tuple[tuple[str, ...], NDArray[np.float32]]:
    """Embed subjects while some units are hidden; shapes as :func:`neurobench.adaptation.embed_subjects`.

    Parameters
    ----------
    backbone, tokenizer, windows, chunks, device, batch_size
        As there.
    rows
        Rows of the unit table that are hidden everywhere; a chunk of nothing else is left as it is.
    """
    subjects = tuple(dict.fromkeys(w.subject for w in windows))
    place = {s: i for i, s in enumerate(subjects)}
    total = np.zeros((len(subjects), len(tokenizer.cohort.units), 2 * backbone.spec.width))
    count = np.zeros((*total.shape[:2], 1))
    backbone.to(device).eval()
    for chunk in chunks:
        own = np.isin(chunk, rows)
        for low in range(0, len(windows), batch_size):
            batch = tokenizer.batch(windows[low : low + batch_size], chunk)
            hidden = torch.from_numpy(own)[None, :, None] & batch.table.valid
            with torch.inference_mode():
                pooled = pooled_tokens(backbone, batch, hidden, device)
            seen = batch.table.valid.any(2).numpy()[..., None]
            at = (np.array([place[s] for s in batch.subjects])[:, None], chunk[None])
            np.add.at(total, at, np.where(seen, pooled, 0.0))
            np.add.at(count, at, seen)
    features = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    return subjects, features.reshape(len(subjects), -1).astype(np.float32)


# ---------------------------------------------------------------- controls and geometry


def agreement(values: Array) -> float:
    """Return the mean Spearman correlation between folds of (folds, groups) values; NaN for fewer than two or three."""
    if len(values) < 2 or values.shape[1] < 3:
        return float("nan")
    pairs = [
        float(scipy.stats.spearmanr(a, b).statistic)
        for i, a in enumerate(values)
        for b in values[:i]
        if np.ptp(a) > 0 and np.ptp(b) > 0
    ]
    return float(np.mean(pairs)) if pairs else float("nan")


def geometry(
    features: NDArray[np.floating], subjects: Sequence[str], train: Sequence[str], test: Sequence[str]
) -> Array:
    """Return where held-out subjects lie on the first two principal components of the training subjects.

    Parameters
    ----------
    features, subjects
        (subjects, features) and their names.
    train, test
        Subjects that components are fitted on, and that are shown.

    Returns
    -------
    components
        (test, 2), in s.d. of the training subjects.
    """
    from neurobench.adaptation import rotate

    place = {s: i for i, s in enumerate(subjects)}
    a, b = rotate(features[[place[s] for s in train]], features[[place[s] for s in test]])
    centre = a.mean(0)
    _, s, vt = np.linalg.svd(a - centre, full_matrices=False)
    components = np.zeros((len(test), 2))
    n = min(2, len(s))
    components[:, :n] = (b - centre) @ vt[:n].T / np.maximum(s[:n] / np.sqrt(len(a)), 1e-12)
    # The sign of a component is arbitrary: its largest loading is made positive, so that two runs agree.
    signs = np.sign(vt[:n][np.arange(n), np.abs(vt[:n]).argmax(1)])
    components[:, :n] *= np.where(signs == 0, 1, signs)
    return components


def permuted_labels(y: Array, seed: int) -> Array:
    """Return labels in another order."""
    order: Array = np.random.default_rng(seed_for(seed, "permutation", "labels", len(y))).permutation(y)
    return order

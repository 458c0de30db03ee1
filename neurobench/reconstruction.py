"""Masked reconstruction of held-out subjects: every row under the same masks, beside what fills gaps without learning.

Predictors (a pretrained backbone or a filler) see the same visible values and are scored on the same tokens. The signal
is centred over each recording, so R² is against each unit's own mean and the filler ``mean`` predicts zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from neurobench.contracts import Backbone, MaskingStrategy
from neurobench.errors import DataError
from neurobench.identity import seed_for
from neurobench.masking import Hidden, draw, mask_generator
from neurobench.out_of_memory import in_halves
from neurobench.records import Batch, SignalKind, UnitTable
from neurobench.tokens import Tokenizer, Window, evaluation_windows

__all__ = [
    "FILLERS",
    "BackbonePredictor",
    "InterpolationFiller",
    "Predictor",
    "ReconstructionScores",
    "RidgeFiller",
    "evaluate",
    "example",
    "fill_by_mean",
    "fit_fillers",
    "headline_masks",
    "usable_masks",
]

Predictor = Callable[[Batch, torch.Tensor], torch.Tensor]
"""Maps a batch and its hidden tokens, (batch, units, patches) bool, to (batch, units, patches, features). What it
returns at visible places is ignored."""

FILLERS = ("mean", "interpolation", "ridge")

BATCH_VALUES = 1 << 22
"""Values of a batch of held-out windows: larger ones spend their time on getting memory from the system."""

RIDGE_PENALTIES = tuple(10.0**e for e in range(-6, 3))
"""In multiples of the mean variance of a unit."""

Array = NDArray[np.float64]


# ---------------------------------------------------------------- predictors


class BackbonePredictor:
    """A backbone and its decoder, in evaluation mode, behind zeros at hidden places."""

    def __init__(self, backbone: Backbone, decoder: nn.Module, device: torch.device | str = "cpu") -> None:
        self.backbone, self.decoder, self.device = backbone.to(device), decoder.to(device), device

    def __call__(self, batch: Batch, hidden: torch.Tensor) -> torch.Tensor:
        """Return the decoded tokens."""
        self.backbone.eval()
        self.decoder.eval()
        seen = batch.signal.masked_fill(hidden[..., None], 0.0)

        def decoded(first: int, last: int) -> torch.Tensor:
            def there(x: torch.Tensor) -> torch.Tensor:
                return x[first:last].to(self.device)

            tokens: torch.Tensor = self.decoder(self.backbone(there(seen), there(hidden), batch.table.map(there)))
            return tokens.float().cpu()

        with torch.no_grad():
            return in_halves(decoded, len(hidden))


def fill_by_mean(batch: Batch, hidden: torch.Tensor) -> torch.Tensor:
    """Fill with each unit's mean over its recording, which scaling has made zero."""
    return torch.zeros_like(batch.signal)


class InterpolationFiller:
    """Linear in time between the visible samples around a gap; the nearest one at an edge; zero without any.

    Parameters
    ----------
    n_voxels
        Features of one sample.
    """

    def __init__(self, n_voxels: int) -> None:
        self.n_voxels = n_voxels

    def __call__(self, batch: Batch, hidden: torch.Tensor) -> torch.Tensor:
        """Return the signal with gaps filled."""
        shape = batch.signal.shape
        n_patches = shape[2]
        signal = batch.signal.reshape(*shape[:3], -1, self.n_voxels)
        n_samples = signal.shape[3]
        visible = batch.table.valid & ~hidden
        patch = torch.arange(n_patches).expand(visible.shape)
        left = torch.where(visible, patch, -1).cummax(2).values
        right = torch.where(visible, patch, n_patches).flip(2).cummin(2).values.flip(2)
        has_left, has_right = left >= 0, right < n_patches

        def sample(index: torch.Tensor, at: int) -> torch.Tensor:
            wanted = index.clamp(0, n_patches - 1)[..., None].expand(*shape[:3], self.n_voxels)
            return signal[..., at, :].gather(2, wanted)[..., None, :]

        before, after = sample(left, -1), sample(right, 0)
        # A gap without a visible sample on one side is filled with the value at the other one.
        before, after = (
            torch.where(has_left[..., None, None], before, after),
            torch.where(has_right[..., None, None], after, before),
        )
        time = (patch[..., None] - left[..., None] - 1) * n_samples + torch.arange(1, n_samples + 1)
        length = ((right - left - 1) * n_samples + 1)[..., None].clamp(min=1)
        weight = (time / length).clamp(0, 1)[..., None]
        filled = before + weight * (after - before)
        filled = filled * (has_left | has_right)[..., None, None]
        return filled.reshape(shape)


@dataclass(frozen=True, eq=False)
class RidgeFiller:
    """Ridge regression of each hidden unit on the visible units of the same window at the same sample.

    Any set of visible units is handled through the covariance of the training subjects. A patch of a volume enters
    by the mean of its voxels, and a voxel is predicted by its regression on the predicted mean of its patch.

    Parameters
    ----------
    covariance
        (units, units) of the whole unit table.
    loading
        (units, voxels) regression of every voxel on the mean of its unit; ones for parcels and sensors.
    penalty
        Ridge penalty in multiples of the mean variance.
    """

    covariance: Array
    loading: Array
    penalty: float

    @classmethod
    def fit(cls, tokenizer: Tokenizer, windows: Sequence[Window], *, ratio: float, seed: int) -> RidgeFiller:
        """Fit on training windows; the penalty is chosen across two halves of the training subjects.

        Raises
        ------
        DataError
            If there are fewer than two windows.
        """
        if len(windows) < 2:
            raise DataError(
                f"the ridge filler chooses its penalty across training windows, and there is {len(windows)}.",
                allowed="two windows or more",
                next_step="Use more subjects, longer recordings or a shorter --window-s.",
            )
        # Subjects alternate between the halves; of a single one, its windows do.
        people = sorted({w.subject for w in windows})
        half = [people.index(w.subject) % 2 if len(people) > 1 else i % 2 for i, w in enumerate(windows)]
        moments = [_Moments.of(tokenizer, [w for w, h in zip(windows, half, strict=True) if h == i]) for i in (0, 1)]
        both = moments[0] + moments[1]
        penalty = _choose_penalty(moments[0].covariance, moments[1].covariance, ratio, seed)
        return cls(both.covariance, both.loading, penalty)

    def __call__(self, batch: Batch, hidden: torch.Tensor) -> torch.Tensor:
        """Return the prediction of every unit from the visible ones."""
        n_voxels = self.loading.shape[1]
        n_batch, k, n_patches = hidden.shape
        unit = batch.rows.numpy()
        signal = batch.signal.numpy().reshape(n_batch, k, n_patches, -1, n_voxels).mean(-1, dtype=np.float64)
        visible = (batch.table.valid & ~hidden).numpy().transpose(0, 2, 1).reshape(-1, k)
        signal = signal.transpose(0, 2, 1, 3).reshape(n_batch * n_patches, k, -1) * visible[:, :, None]
        rows = np.repeat(unit, n_patches, 0)
        # One set of visible units needs one solution, however many patches share it.
        _, first, inverse = np.unique(
            np.where(visible, rows + 1, -rows - 1), axis=0, return_index=True, return_inverse=True
        )
        predicted = np.empty_like(signal)
        order = np.argsort(inverse, kind="stable")
        bounds = np.searchsorted(inverse[order], np.arange(len(first) + 1))
        step = max(1, (1 << 20) // k**2)
        for low in range(0, len(first), step):
            one = first[low : low + step]
            block, system = _ridge_system(self.covariance, rows[one], visible[one], self.penalty)
            factors, pivots = torch.linalg.lu_factor(torch.from_numpy(system))
            chosen = order[bounds[low] : bounds[min(low + step, len(first))]]
            which = inverse[chosen] - low
            solved = torch.linalg.lu_solve(factors[which], pivots[which], torch.from_numpy(signal[chosen]))
            predicted[chosen] = block[which] @ solved.numpy()
        filled = predicted.reshape(n_batch, n_patches, k, -1).transpose(0, 2, 1, 3)
        voxels = filled[..., None] * self.loading[unit][:, :, None, None, :]
        return torch.from_numpy(voxels.reshape(batch.signal.shape).astype(np.float32))


def _ridge_system(
    covariance: Array, units: NDArray[np.int64], visible: NDArray[np.bool_], penalty: float
) -> tuple[Array, Array]:
    """Return (patterns, units, units) covariance of each pattern's units, and the system of its visible ones."""
    block = covariance[units[:, :, None], units[:, None, :]]
    k = units.shape[1]
    scale = np.trace(covariance) / len(covariance)
    system = block * (visible[:, :, None] & visible[:, None, :])
    # Hidden units get a 1 on the diagonal and a zero right-hand side: a solution for all patterns at one size.
    system[:, np.arange(k), np.arange(k)] += np.where(visible, penalty * scale, 1.0)
    return block, system


def _choose_penalty(first: Array, second: Array, ratio: float, seed: int) -> float:
    """Return the penalty with the smallest error across halves, over random sets of visible units.

    The error of a linear prediction follows from the covariance alone: no pass over the data is needed.
    """
    n = len(first)
    rng = np.random.default_rng(seed_for(seed, "units", "ridge-filler"))
    size = min(n, 64)
    units = np.stack([np.sort(rng.choice(n, size, replace=False)) for _ in range(16)])
    n_visible = min(size, max(1, round((1 - ratio) * size)))
    visible = rng.permuted(np.arange(size)[None].repeat(16, 0), axis=1) < n_visible
    errors = []
    for penalty in RIDGE_PENALTIES:
        error = 0.0
        for train, test in ((first, second), (second, first)):
            learnt, system = _ridge_system(train, units, visible, penalty)
            weights = np.linalg.solve(system, learnt * visible[:, :, None]).transpose(0, 2, 1)
            block = test[units[:, :, None], units[:, None, :]]
            residual = np.eye(size) - weights
            each = np.einsum("pij,pjk,pik->pi", residual, block, residual, optimize=True)
            error += float(each[~visible].sum())
        errors.append(error)
    return RIDGE_PENALTIES[int(np.argmin(errors))]


@dataclass(frozen=True, eq=False)
class _Moments:
    """Sums over training windows that covariance and loading follow from."""

    products: Array
    counts: Array
    voxels: Array

    @classmethod
    def of(cls, tokenizer: Tokenizer, windows: Sequence[Window]) -> _Moments:
        n, n_voxels = len(tokenizer.cohort.units), tokenizer.cohort.n_voxels
        total = cls(np.zeros((n, n)), np.zeros((n, n)), np.zeros((n, n_voxels)))
        step = max(1, min(16, BATCH_VALUES // (n * tokenizer.cohort.samples_per_window * n_voxels)))
        for low in range(0, len(windows), step):
            batch = tokenizer.batch(windows[low : low + step], np.arange(n))
            signal = batch.signal.numpy()
            signal = signal.reshape(*signal.shape[:2], -1, n_voxels)
            mean = signal.mean(-1, dtype=np.float64)
            valid = batch.table.valid.numpy().repeat(tokenizer.cohort.samples_per_patch, 2).astype(np.float64)
            total += cls(
                np.einsum("but,bvt->uv", mean, mean, optimize=True),
                np.einsum("but,bvt->uv", valid, valid, optimize=True),
                np.einsum("but,butv->uv", mean, signal, optimize=True),
            )
        return total

    def __add__(self, other: _Moments) -> _Moments:
        return _Moments(self.products + other.products, self.counts + other.counts, self.voxels + other.voxels)

    @property
    def covariance(self) -> Array:
        covariance: Array = self.products / np.maximum(self.counts, 1.0)
        return covariance

    @property
    def loading(self) -> Array:
        power = np.diag(self.products)[:, None]
        return np.divide(self.voxels, power, out=np.zeros_like(self.voxels), where=power > 0)


def fit_fillers(
    tokenizer: Tokenizer,
    subjects: Sequence[str],
    *,
    ratio: float,
    seed: int,
    span: tuple[float, float] = (0.0, 1.0),
    max_per_subject: int = 32,
) -> dict[str, Predictor]:
    """Return the fillers of :data:`FILLERS`; what is fitted is fitted on ``subjects``, the training ones."""
    windows = evaluation_windows(tokenizer.cohort, subjects, span, max_per_subject)
    return {
        "mean": fill_by_mean,
        "interpolation": InterpolationFiller(tokenizer.cohort.n_voxels),
        "ridge": RidgeFiller.fit(tokenizer, windows, ratio=ratio, seed=seed),
    }


# ---------------------------------------------------------------- masks


def usable_masks(
    strategies: Mapping[str, MaskingStrategy], units: UnitTable
) -> tuple[dict[str, MaskingStrategy], dict[str, str]]:
    """Return the strategies that can work on these units, and why each of the others cannot."""
    reasons = {name: strategy.impossible(units) for name, strategy in strategies.items()}
    usable = {name: strategy for name, strategy in strategies.items() if not reasons[name]}
    return usable, {name: reason for name, reason in reasons.items() if reason}


def headline_masks(strategies: Mapping[str, MaskingStrategy], signal: SignalKind) -> tuple[str, ...]:
    """Return the strategies that count in the headline on this kind of signal: those that are not rank-trivial."""
    return tuple(name for name, strategy in strategies.items() if signal not in strategy.rank_trivial_on)


# ---------------------------------------------------------------- scores


@dataclass(frozen=True, eq=False)
class ReconstructionScores:
    """Sums over scored values, from which every score follows; m masks, p predictors, s subjects, u units.

    Parameters
    ----------
    masks, predictors, subjects, units
        Names along the axes.
    n, total, sst
        (m, s, u) number, sum and sum of squares of the real values.
    sse, predicted, predicted_squares, products
        (m, p, s, u) squared error, sum and sum of squares of the predicted values, and sum of real times predicted.
    guard_sst, guard_sse
        (m, s) and (m, p, s) the same sums without the patches at the edges of hidden spans, which a zero-phase filter
        has spread into visible ones.
    fc_similarity
        (m, p, s) correlation over edges of real functional connectivity with that of the reconstructed signal
        (hidden values replaced); edges inside chunks of units; NaN below three edges.
    hidden_fraction, scored_fraction
        (m,) realised shares of the valid tokens.
    """

    masks: tuple[str, ...]
    predictors: tuple[str, ...]
    subjects: tuple[str, ...]
    units: tuple[str, ...]
    n: Array
    total: Array
    sst: Array
    sse: Array
    predicted: Array
    predicted_squares: Array
    products: Array
    guard_sst: Array
    guard_sse: Array
    fc_similarity: Array
    hidden_fraction: Array
    scored_fraction: Array

    def _index(self, predictor: str) -> int:
        return self.predictors.index(predictor)

    def r2(self, predictor: str, weights: Array | None = None) -> Array:
        """Return (m,) R² pooled over subjects; with (…, s) ``weights`` of subjects, as of a bootstrap, (m, …)."""
        sse, sst = self.sse[:, self._index(predictor)].sum(-1), self.sst.sum(-1)
        return 1 - _ratio(_weighted(sse, weights), _weighted(sst, weights))

    def guarded(self, predictor: str, weights: Array | None = None) -> Array:
        """Return (m,) R² with a guard gap; NaN where hidden spans have no patch inside; with ``weights``, (m, …)."""
        return 1 - _ratio(
            _weighted(self.guard_sse[:, self._index(predictor)], weights), _weighted(self.guard_sst, weights)
        )

    def subject_r2(self, predictor: str) -> Array:
        """Return (m, s) R²; NaN where nothing of a subject was scored."""
        return 1 - _ratio(self.sse[:, self._index(predictor)].sum(-1), self.sst.sum(-1))

    def unit_r2(self, predictor: str) -> Array:
        """Return (m, u) R² pooled over subjects, for maps."""
        return 1 - _ratio(self.sse[:, self._index(predictor)].sum(1), self.sst.sum(1))

    def pearson_r(self, predictor: str) -> Array:
        """Return (m, s) correlation of real and predicted over all scored values; 0 for a constant prediction."""
        q = self._index(predictor)
        sums = (self.n, self.total, self.predicted[:, q], self.sst, self.predicted_squares[:, q], self.products[:, q])
        n = self.n.sum(-1)
        return np.where(n > 0, _correlation(np.stack([x.sum(-1) for x in sums], -1)), np.nan)

    def best_filler(self, fillers: Sequence[str] = FILLERS) -> tuple[str, ...]:
        """Return for every mask the filler with the smallest error over all subjects."""
        errors = np.stack([self.sse[:, self._index(f)].sum((-1, -2)) for f in fillers])
        return tuple(fillers[i] for i in errors.argmin(0))

    def skill(self, predictor: str, weights: Array | None = None, fillers: Sequence[str] = FILLERS) -> Array:
        """Return (m,) 1 − SSE / SSE of the best filler of that mask; with (…, s) ``weights``, (m, …)."""
        best = [self._index(f) for f in self.best_filler(fillers)]
        ours = self.sse[:, self._index(predictor)].sum(-1)
        theirs = self.sse[np.arange(len(self.masks)), best].sum(-1)
        return 1 - _ratio(_weighted(ours, weights), _weighted(theirs, weights))


def _weighted(values: Array, weights: Array | None) -> Array:
    """Return (m, s) values summed over subjects."""
    if weights is None:
        return np.asarray(values.sum(-1), np.float64)
    return np.asarray(np.moveaxis(np.asarray(weights, np.float64) @ values.T, -1, 0), np.float64)


def _ratio(above: Array, below: Array) -> Array:
    out = np.full(np.shape(below), np.nan)
    return np.asarray(np.divide(above, below, out=out, where=np.asarray(below) > 0), np.float64)


# ---------------------------------------------------------------- evaluation


def evaluate(
    predictors: Mapping[str, Predictor],
    tokenizer: Tokenizer,
    windows: Sequence[Window],
    chunks: Sequence[NDArray[np.int64]],
    strategies: Mapping[str, MaskingStrategy],
    *,
    ratio: float,
    seed: int,
    guard: int = 1,
    batch_size: int = 64,
    drawn_before: dict[tuple[str, str, str, float], Hidden] | None = None,
) -> ReconstructionScores:
    """Reconstruct hidden tokens of held-out windows, all predictors on the same ones.

    Parameters
    ----------
    predictors
        Name to predictor.
    tokenizer
        With the scaler of the training subjects.
    windows, chunks
        Evaluation windows, and chunks of units that cover all units once.
    strategies
        Label to masking strategy; a mask depends on seed, label, subject, window and chunk only.
    ratio
        Share of the valid tokens that is scored.
    seed
        Seed of the masks.
    guard
        Patches at the edges of a hidden span that are left out of the guarded sums, where a zero-phase filter has
        spread hidden samples into visible ones.
    batch_size
        Windows at a time, about; does not change the result.
    drawn_before
        Masks of earlier calls with this seed and these chunks, by mask, subject, window and ratio; new ones are added.
        Every row is scored under the same masks, which take longer to draw than a small network to fill in.
    """
    cohort = tokenizer.cohort
    drawn_before = {} if drawn_before is None else drawn_before
    subjects = tuple(dict.fromkeys(w.subject for w in windows))
    place = {s: i for i, s in enumerate(subjects)}
    m, p, s, u = len(strategies), len(predictors), len(subjects), len(cohort.units)
    n, total, sst = (np.zeros((m, s, u)) for _ in range(3))
    sse, predicted, predicted_squares, products = (np.zeros((m, p, s, u)) for _ in range(4))
    guard_sst, guard_sse = np.zeros((m, s)), np.zeros((m, p, s))
    counts = np.zeros((3, m))
    edges = np.zeros((m, p, s, 6))
    for c, chunk in enumerate(chunks):
        values = len(chunk) * cohort.patches_per_window * cohort.n_features
        for some in _by_subject(windows, max(1, min(batch_size, BATCH_VALUES // values))):
            batch = tokenizer.batch(some, chunk)
            tables = tokenizer.window_tables(batch)
            rows = np.array([place[x] for x in batch.subjects])
            at = (rows[:, None], chunk[None])
            fc = _connectivity(batch.signal, cohort.n_voxels, rows)
            for i, (label, strategy) in enumerate(strategies.items()):
                drawn = []
                for t, who, which in zip(tables, batch.subjects, batch.windows, strict=True):
                    key = f"evaluation/{label}/{c}", who, which, ratio
                    if key not in drawn_before:
                        drawn_before[key] = draw(strategy, t, ratio, mask_generator(seed, *key[:3]))
                    drawn.append(drawn_before[key])
                hidden = torch.from_numpy(np.stack([d.hidden for d in drawn]))
                scored = torch.from_numpy(np.stack([d.scored for d in drawn]))
                inner = scored & _beyond_guard(hidden, batch.table.valid, guard)
                for j, tokens in enumerate((batch.table.valid, hidden, scored)):
                    counts[j, i] += int(tokens.sum())
                real = batch.signal * scored[..., None]
                np.add.at(n[i], at, scored.sum(2).numpy() * cohort.n_features)
                np.add.at(total[i], at, _total(real))
                np.add.at(sst[i], at, _total(real * real))
                np.add.at(guard_sst[i], rows, _inside(real * real, inner))
                for j, predictor in enumerate(predictors.values()):
                    filled = predictor(batch, hidden)
                    guess = filled * scored[..., None]
                    error = (guess - real).square_()
                    np.add.at(sse[i, j], at, _total(error))
                    np.add.at(guard_sse[i, j], rows, _inside(error, inner))
                    np.add.at(predicted[i, j], at, _total(guess))
                    np.add.at(predicted_squares[i, j], at, _total(guess * guess))
                    np.add.at(products[i, j], at, _total(guess * real))
                    replaced = torch.where(hidden[..., None], filled, batch.signal)
                    edges[i, j, np.unique(rows)] += _moments(fc, _connectivity(replaced, cohort.n_voxels, rows))
    return ReconstructionScores(
        masks=tuple(strategies),
        predictors=tuple(predictors),
        subjects=subjects,
        units=cohort.units.names,
        n=n,
        total=total,
        sst=sst,
        sse=sse,
        predicted=predicted,
        predicted_squares=predicted_squares,
        products=products,
        guard_sst=guard_sst,
        guard_sse=guard_sse,
        fc_similarity=_correlation(edges),
        hidden_fraction=_ratio(counts[1], counts[0]),
        scored_fraction=_ratio(counts[2], counts[0]),
    )


def example(
    predictor: Predictor,
    tokenizer: Tokenizer,
    window: Window,
    chunk: NDArray[np.int64],
    label: str,
    strategy: MaskingStrategy,
    *,
    ratio: float,
    seed: int,
    n_units: int = 4,
) -> dict[str, NDArray[Any]]:
    """Return what a reconstruction looks like: some units of one held-out window under the mask that was scored.

    Parameters
    ----------
    predictor, tokenizer, label, strategy, ratio, seed
        As for :func:`evaluate`.
    window, chunk
        A window, and the first chunk of units.
    n_units
        Units that are kept: those with hidden tokens, evenly spaced in the order of the table.

    Returns
    -------
    arrays
        ``units`` (k,) names; ``times_s`` (t,); ``real``, ``predicted`` (k, t) in scaled units, voxels averaged;
        ``hidden`` (k, t) bool; ``r2`` (k,) over the hidden samples against zero, each unit's own mean.
    """
    cohort = tokenizer.cohort
    batch = tokenizer.batch([window], chunk)
    (table,) = tokenizer.window_tables(batch)
    name = f"evaluation/{label}/0"
    drawn = draw(strategy, table, ratio, mask_generator(seed, name, batch.subjects[0], batch.windows[0]))
    hidden = torch.from_numpy(drawn.hidden[None])
    filled = torch.where(hidden[..., None], predictor(batch, hidden), batch.signal)
    real, guess = (
        x[0].reshape(len(chunk), -1, cohort.n_voxels).mean(-1).double().numpy() for x in (batch.signal, filled)
    )
    at = drawn.hidden.repeat(cohort.samples_per_patch, 1)
    able = np.flatnonzero(at.any(1))
    kept = able[np.linspace(0, len(able) - 1, min(n_units, len(able))).round().astype(int)] if len(able) else able
    real, guess, at = real[kept], guess[kept], at[kept]
    sse, sst = ((guess - real) ** 2 * at).sum(1), (real**2 * at).sum(1)
    return {
        "units": np.array([cohort.units.names[i] for i in chunk[kept]], dtype=str),
        "times_s": np.arange(real.shape[1]) / cohort.sfreq,
        "real": real,
        "predicted": guess,
        "hidden": at,
        "r2": 1 - _ratio(sse, sst),
    }


def _total(values: torch.Tensor) -> Array:
    """Return (batch, units) sums over patches and features; torch sums in pairs, so single precision does for one."""
    return np.asarray(values.sum(3).double().sum(2).numpy())


def _inside(values: torch.Tensor, inner: torch.Tensor) -> Array:
    """Return (batch,) sums over the tokens of ``inner``."""
    return np.asarray((values.sum(3).double() * inner).sum((1, 2)).numpy())


def _by_subject(windows: Sequence[Window], size: int) -> list[list[Window]]:
    """Return batches of about ``size`` windows in which every subject is whole, as connectivity is a subject's."""
    grouped: dict[str, list[Window]] = {}
    for window in windows:
        grouped.setdefault(window.subject, []).append(window)
    batches: list[list[Window]] = [[]]
    for own in grouped.values():
        if batches[-1] and len(batches[-1]) + len(own) > size:
            batches.append([])
        batches[-1].extend(own)
    return [b for b in batches if b]


def _beyond_guard(hidden: torch.Tensor, valid: torch.Tensor, guard: int) -> torch.Tensor:
    """Return hidden tokens that are more than ``guard`` patches away from any visible token of their unit."""
    near = valid & ~hidden
    for _ in range(guard):
        grown = near.clone()
        grown[..., 1:] |= near[..., :-1]
        grown[..., :-1] |= near[..., 1:]
        near = grown
    return hidden & ~near


def _connectivity(signal: torch.Tensor, n_voxels: int, rows: NDArray[np.int64]) -> Array:
    """Return (subjects, edges) correlations of the units' mean signals, over all windows of each subject."""
    flat = signal.reshape(*signal.shape[:2], -1, n_voxels).mean(-1).double()
    each = (flat @ flat.transpose(1, 2)).numpy()
    found, inverse = np.unique(rows, return_inverse=True)
    summed = np.zeros((len(found), *each.shape[1:]))
    np.add.at(summed, inverse, each)
    power = np.sqrt(np.diagonal(summed, axis1=1, axis2=2))
    scale = power[:, :, None] * power[:, None, :]
    correlation = np.divide(summed, scale, out=np.zeros_like(summed), where=scale > 0)
    i, j = np.triu_indices(summed.shape[-1], 1)
    return np.asarray(correlation[:, i, j], np.float64)


def _moments(a: Array, b: Array) -> Array:
    """Return (subjects, 6): number, sums, sums of squares and sum of products of two (subjects, edges) arrays."""
    number = np.full(len(a), a.shape[1], np.float64)
    return np.stack([number, a.sum(1), b.sum(1), (a * a).sum(1), (b * b).sum(1), (a * b).sum(1)], 1)


def _correlation(moments: Array) -> Array:
    """Return (…) Pearson's r from (…, 6) moments; NaN below three edges."""
    n, a, b, aa, bb, ab = np.moveaxis(moments, -1, 0)
    n = np.maximum(n, 1)
    spread = np.sqrt(np.maximum((aa - a * a / n) * (bb - b * b / n), 0))
    r = np.divide(ab - a * b / n, spread, out=np.zeros_like(spread), where=spread > 1e-12)
    return np.where(n >= 3, r, np.nan)

"""From a frozen backbone to predictions: pooling, and one probe for every backbone and every baseline.

Tokens are pooled a unit at a time: averaging over units as well throws most of the signal away (age from 24 regions:
r .07 against .45).
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit

from neurobench import attentive
from neurobench.contracts import Backbone
from neurobench.errors import DataError, PluginError
from neurobench.identity import seed_for
from neurobench.out_of_memory import in_halves
from neurobench.records import Batch
from neurobench.tokens import Tokenizer, Window

__all__ = [
    "ALPHAS",
    "INVERSE_PENALTIES",
    "WIDTHS",
    "Kind",
    "Prediction",
    "Probe",
    "embed_subjects",
    "fit_predict",
    "fit_predict_classes",
    "one_against_the_others",
    "pool",
    "refuse_memory",
    "side_by_side",
]

Kind = Literal["regression", "classification"]

Probe = Literal["linear", "kernel", "attentive"]
"""``linear``: ridge or logistic regression on standardised features. ``kernel``: the same on a Gaussian kernel of
them. ``attentive``: learned queries over the units that features are of, see :mod:`neurobench.attentive`."""


class HowProbed(TypedDict):
    """How features are probed: by what, and of how many units they are."""

    probe: Probe
    n_units: int


ALPHAS = tuple(10.0**e for e in range(-3, 6))
"""Penalties of the ridge probe."""

INVERSE_PENALTIES = tuple(10.0**e for e in range(-4, 4))
"""Inverse penalties C of the logistic probe."""

N_FEATURES = 20_000
"""Features up to which those are strong enough. Every tenfold asks for penalties a decade stronger: a feature that is
there ten times is penalised a tenth as much, and a wide network would be refused what a narrow one may choose."""

WIDTHS = (4.0, 2.0, 1.0, 0.5)
"""Widths of the Gaussian kernel, in median distances between training subjects; the widest is nearly linear."""

N_INNER = 5
"""Inner folds, over training subjects only, that choose the penalty."""

AT_ONCE = 1 << 13
"""Tokens that are embedded in one call, where chunks of units are small: more take more memory, and longer."""

N_KNOWN = 8
"""Decompositions that are kept: those of the folds of one row."""

MAX_NEWTON, MAX_GRADIENT = 200, 1e-5
"""Newton steps after which a logistic fit counts as not converged, and the gradient (a subject, mean) at which it
counts as converged."""

Array = NDArray[np.float64]


# ---------------------------------------------------------------- embedding


def pool(tokens: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Return mean and s.d. over the valid patches of every unit.

    Parameters
    ----------
    tokens
        (batch, units, patches, width).
    valid
        (batch, units, patches) bool.

    Returns
    -------
    pooled
        (batch, units, 2 · width); NaN for a unit without a valid patch.
    """
    weight = valid[..., None].to(tokens.dtype)
    count = weight.sum(2)
    tokens = torch.where(valid[..., None], tokens, 0.0)
    mean = tokens.sum(2) / count
    deviation = (tokens - mean[:, :, None]) * weight
    return torch.cat([mean, (deviation.square().sum(2) / count).sqrt()], -1)


def pooled_tokens(
    backbone: Backbone, batch: Batch, hidden: torch.Tensor, device: torch.device | str
) -> NDArray[np.float32]:
    """Return (windows, units, 2 · width) what :func:`pool` makes of a batch, in halves where memory is short.

    Parameters
    ----------
    backbone
        On the device.
    batch, hidden
        Windows, and (windows, units, patches) bool; not on the device.
    device
        Where to run.
    """

    def of(first: int, last: int) -> torch.Tensor:
        def there(x: torch.Tensor) -> torch.Tensor:
            return x[first:last].to(device)

        table = batch.table.map(there)
        signal = there(batch.signal.masked_fill(hidden[..., None], 0.0))
        return pool(backbone(signal, there(hidden), table).float(), table.valid).cpu()

    pooled: NDArray[np.float32] = in_halves(of, len(hidden)).numpy()
    return pooled


def side_by_side(
    chunks: Sequence[NDArray[np.int64]], n_per_unit: int, at_once: int
) -> Iterator[list[NDArray[np.int64]]]:
    """Yield chunks of one size together, as many as stay within a number of tokens, at least one.

    As rows of one batch they give the same tokens; many small ones, one after the other, would spend their time on
    calls.

    Parameters
    ----------
    chunks
        Units that are seen together.
    n_per_unit
        Tokens of a unit in the batch: windows times patches.
    at_once
        Tokens that go through a backbone in one call.
    """
    by_size: dict[int, list[NDArray[np.int64]]] = {}
    for chunk in chunks:
        by_size.setdefault(len(chunk), []).append(chunk)
    for size, alike in by_size.items():
        n = max(1, at_once // (size * n_per_unit))
        for low in range(0, len(alike), n):
            yield alike[low : low + n]


def embed_subjects(
    backbone: Backbone,
    tokenizer: Tokenizer,
    windows: Sequence[Window],
    chunks: Sequence[NDArray[np.int64]],
    device: torch.device | str = "cpu",
    batch_size: int = 32,
) -> tuple[tuple[str, ...], NDArray[np.float32]]:
    """Embed subjects with a frozen backbone, nothing hidden.

    Parameters
    ----------
    backbone
        Put into evaluation mode; its weights are not changed.
    tokenizer
        With the scaler of the training subjects.
    windows
        Of all subjects, see :func:`neurobench.tokens.evaluation_windows`.
    chunks
        Units that are seen together, see :func:`neurobench.tokens.unit_chunks`.
    device
        Where to run.
    batch_size
        Windows at a time; does not change the result.

    Returns
    -------
    subjects, features
        Subjects in the order in which they appear in ``windows``; (subjects, units · 2 · width), unit after unit, each
        the average over a subject's windows, NaN where it has no valid token in any.
    """
    subjects = tuple(dict.fromkeys(w.subject for w in windows))
    place = {s: i for i, s in enumerate(subjects)}
    width = 2 * backbone.spec.width
    total = np.zeros((len(subjects), len(tokenizer.cohort.units), width))
    count = np.zeros((*total.shape[:2], 1))
    backbone.to(device).eval()
    for low in range(0, len(windows), batch_size):
        some = list(windows[low : low + batch_size])
        rows = np.array([place[w.subject] for w in some])
        for stack in side_by_side(chunks, len(some) * tokenizer.cohort.patches_per_window, AT_ONCE):
            units = np.repeat(np.stack(stack), len(some), axis=0)
            batch = tokenizer.batch(some * len(stack), units)
            with torch.inference_mode():
                pooled = pooled_tokens(backbone, batch, torch.zeros_like(batch.table.valid), device)
            seen = batch.table.valid.any(2).numpy()[..., None]
            at = (np.tile(rows, len(stack))[:, None], units)
            np.add.at(total, at, np.where(seen, pooled, 0.0))
            np.add.at(count, at, seen)
    features = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    return subjects, features.reshape(len(subjects), -1).astype(np.float32)


SAME_WITHIN = {"cpu": 1e-3}
"""Standard deviations of the tokens by which those of one window may differ from call to call, by kind of device."""


def refuse_memory(
    backbone: Backbone,
    tokenizer: Tokenizer,
    windows: Sequence[Window],
    units: NDArray[np.int64],
    device: torch.device | str = "cpu",
) -> None:
    """Refuse a backbone whose tokens depend on what else it is, or was, shown: asked in a run, of its own windows.

    Contract checks ask the same, at sizes that a plugin could recognise. Windows here are new to it: noise is added, so
    that whatever it remembers of them it was shown just now.

    Parameters
    ----------
    backbone, tokenizer, windows, device
        As for :func:`embed_subjects`.
    units
        Units that are seen together.

    Raises
    ------
    PluginError
        Saying what the tokens depend on.
    """
    some = list(windows[:2])
    batch = tokenizer.batch(some, np.repeat(units[None], len(some), axis=0))
    valid = batch.table.valid
    generator = torch.Generator().manual_seed(seed_for(0, "mask", "memory", len(units)) % 2**63)
    noise = torch.randn(batch.signal.shape, generator=generator)
    batch = replace(batch, signal=(batch.signal + 0.5 * noise) * valid[..., None])
    hidden = (torch.rand(valid.shape, generator=generator) < 0.5) & valid
    backbone.to(device).eval()

    def tokens(where: torch.Tensor, n: int) -> torch.Tensor:
        signal = batch.signal.masked_fill(where[..., None], 0.0)[:n].to(device)
        table = batch.table.map(lambda x: x[:n].to(device))
        with torch.inference_mode():
            found: torch.Tensor = backbone(signal, where[:n].to(device), table).float().cpu()[valid[:n]]
        return found

    first = tokens(hidden, len(some))
    tokens(torch.zeros_like(hidden), len(some))
    shown = {
        "after it was shown the same windows whole": (first, tokens(hidden, len(some))),
        "when they are not beside each other": (first[: int(valid[:1].sum())], tokens(hidden, 1)),
    }
    spread = max(float(first.std()) if first.numel() > 1 else 1.0, 1e-6)
    for when, (before, after) in shown.items():
        off = float((before - after).abs().max()) / spread if before.numel() else 0.0
        if off > SAME_WITHIN.get(torch.device(device).type, 1e-2):
            raise PluginError(
                f"backbone {backbone.name} gives windows other tokens {when}, by {off:.1e} s.d.: what it says of "
                "people who are tested may be remembered.",
                allowed="tokens that follow from the weights and from the window alone",
                next_step=f"See `neurobench check {backbone.name}`: no-state, subjects-do-not-mix.",
            )


# ---------------------------------------------------------------- probe


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a probe says of held-out subjects.

    Parameters
    ----------
    values
        (subjects,) the target in native units; for two classes the probability of class 1 *if both were equally
        frequent*, because the fit is balanced (:func:`neurobench.scoring.restore_prevalence` undoes that).
    hyperparameter
        Chosen α (ridge), C (logistic) or number of steps (attentive); None where there was nothing to choose.
    converged
        Whether every logistic fit reached its optimum.
    width
        Chosen width of the kernel, in median distances between training subjects; None for the linear probe.
    """

    values: Array
    hyperparameter: float | None
    converged: bool = True
    width: float | None = None


def fit_predict(
    x_train: NDArray[np.floating[Any]],
    y_train: Array,
    x_test: NDArray[np.floating[Any]],
    kind: Kind,
    seed: int,
    *,
    groups: Sequence[str] | None = None,
    probe: Probe = "linear",
    n_units: int = 1,
) -> Prediction:
    """Fit the common probe on training subjects and predict the test subjects.

    Missing features become the training mean, features are standardised on the training rows, and the penalty is
    chosen by inner cross-validation over training subjects. With more features than subjects everything happens in
    the space that the training rows span, which changes nothing. The width of a kernel is chosen together with the
    penalty.

    Parameters
    ----------
    x_train, x_test
        (subjects, features); NaN where missing; without a column (or with constant ones only) the training mean is
        predicted, or even odds.
    y_train
        (subjects,); 0 and 1 for a classification.
    kind
        ``regression``: ridge. ``classification``: logistic, classes balanced.
    seed
        Seed of the inner folds.
    groups
        (subjects,) family of every training subject; inner folds keep one together. Without: everybody alone.
    probe
        ``linear``, ``kernel`` or ``attentive``.
    n_units
        Units that the features are of, one after the other with equally many each; for the attentive probe alone.

    Raises
    ------
    DataError
        If rows do not match, a target is missing, or a value is infinite.
    """
    y = np.asarray(y_train, float)
    if len(x_train) != len(y) or len(y) == 0:
        raise DataError(f"a probe cannot be fitted: {len(x_train)} rows of features, {len(y)} targets.")
    if not np.isfinite(y).all():
        raise DataError("a probe cannot be fitted to a missing target.", next_step="Leave those subjects out.")
    if kind == "classification" and not np.isin(y, (0.0, 1.0)).all():
        raise DataError("a classification needs targets 0 and 1.", allowed="0, 1")
    if groups is not None and len(groups) != len(y):
        raise DataError(f"a probe cannot be fitted: {len(y)} targets, {len(groups)} groups.")
    spaces = _spaces(x_train, x_test, "linear" if probe == "attentive" else probe)
    constant = y.min() == y.max()
    if not spaces or constant:
        even_odds = kind == "classification" and not constant
        return Prediction(np.full(len(x_test), 0.5 if even_odds else y.mean()), None)
    rng = np.random.default_rng(seed_for(seed, "probe", "inner"))
    inner = _inner_folds(y, kind, rng) if groups is None else _grouped_folds(y, groups, rng, kind)
    if probe == "attentive":
        return _attended(x_train, y, x_test, kind, seed, inner, n_units)
    return _fitted(spaces, y, kind, inner)


def _attended(
    x_train: NDArray[np.floating[Any]],
    y: Array,
    x_test: NDArray[np.floating[Any]],
    kind: Kind,
    seed: int,
    inner: NDArray[np.int64],
    n_units: int,
) -> Prediction:
    a, b = (np.asarray(x, np.float32).reshape(len(x), n_units, -1) for x in (x_train, x_test))
    values, n_steps = attentive.attend(a, y, b, inner, seed_for(seed, "probe", "attentive"), kind == "classification")
    return Prediction(values, float(n_steps))


def _fitted(spaces: Sequence[_Space], y: Array, kind: Kind, inner: NDArray[np.int64]) -> Prediction:
    """Return the prediction of the space and penalty with the smallest inner error; of equals the widest kernel's."""
    best, least = None, np.inf
    for space in spaces:
        fit = _ridge if kind == "regression" else _logistic
        prediction, error = fit(space.train, y, space.test, inner)
        if best is None or error < least:
            best, least = replace(prediction, width=space.width), error
    assert best is not None
    return best


def fit_predict_classes(
    x_train: NDArray[np.floating[Any]],
    classes: NDArray[np.int64],
    x_test: NDArray[np.floating[Any]],
    n_classes: int,
    groups: Sequence[str],
    seed: int,
    *,
    probe: Probe = "linear",
    n_units: int = 1,
) -> tuple[Array, bool]:
    """Fit the common probe to several classes, each against all others.

    Parameters
    ----------
    x_train, x_test
        As for :func:`fit_predict`.
    classes
        (rows,) class of every training row, from 0.
    n_classes
        Number of classes; one that is missing in training is never predicted.
    groups
        (rows,) subject or family of every training row; inner folds keep the rows of one together.
    seed
        Seed of the inner folds.
    probe, n_units
        As for :func:`fit_predict`.

    Returns
    -------
    probabilities, converged
        (rows of ``x_test``, classes), rows summing to 1, each class weighing the same.
    """
    if len(x_train) != len(classes) or len(classes) != len(groups) or len(classes) == 0:
        raise DataError(
            f"a probe cannot be fitted: {len(x_train)} rows of features, {len(classes)} classes, {len(groups)} groups."
        )
    spaces = _spaces(x_train, x_test, "linear" if probe == "attentive" else probe)

    def against_the_others(k: int) -> Prediction:
        y = (np.asarray(classes) == k).astype(float)
        if y.min() == y.max() or not spaces:
            return Prediction(np.full(len(x_test), float(y[0]) if y.min() == y.max() else 0.5), None)
        rng = np.random.default_rng(seed_for(seed, "probe", "inner", k))
        inner = _grouped_folds(y, groups, rng)
        if probe == "attentive":
            return _attended(x_train, y, x_test, "classification", seed, inner, n_units)
        return _fitted(spaces, y, "classification", inner)

    return one_against_the_others(against_the_others, n_classes)


def one_against_the_others(predict: Callable[[int], Prediction], n_classes: int) -> tuple[Array, bool]:
    """Return (rows, classes) probabilities from one prediction a class, or from a single one for two classes."""
    if n_classes == 2:
        only = predict(1)
        return np.stack([1 - only.values, only.values], 1), only.converged
    each = [predict(k) for k in range(n_classes)]
    values = np.stack([p.values for p in each], 1)
    total = values.sum(1, keepdims=True)
    shares = np.divide(values, total, out=np.full_like(values, 1 / n_classes), where=total > 0)
    return shares, all(p.converged for p in each)


def _grouped_folds(
    y: Array, groups: Sequence[str], rng: np.random.Generator, kind: Kind = "classification"
) -> NDArray[np.int64]:
    """Return (rows,) the inner fold of each row, a group's rows together; −1 everywhere: no choice."""
    names, place = np.unique(np.asarray(groups, str), return_inverse=True)
    if kind == "regression":
        n_inner = min(N_INNER, len(names))
        return (rng.permutation(len(names)) % n_inner)[place] if n_inner > 1 else np.full(len(y), -1)
    holds = np.array([[(y[place == g] == c).any() for c in (0, 1)] for g in range(len(names))])
    n_inner = min(N_INNER, *(int(h) for h in holds.sum(0)))
    if n_inner < 2:
        return np.full(len(y), -1)
    # Groups that hold the same classes are dealt out in turn, those with both in the middle: the groups of either class
    # follow one another, so that no fold gets them all and every fold leaves both classes to train on.
    kinds = holds @ np.array([1, 2])
    drawn = {int(k): rng.permutation(np.flatnonzero(kinds == k)) for k in np.unique(kinds)}
    order = np.concatenate([drawn[k] for k in (1, 3, 2) if k in drawn])
    fold = np.empty(len(names), np.int64)
    fold[order] = np.arange(len(names)) % n_inner
    return fold[place]


@dataclass(frozen=True, eq=False)
class _Space:
    """Training and test rows in a space where the probe is a penalised linear fit."""

    train: Array
    test: Array
    width: float | None = None


_known_spaces: OrderedDict[bytes, list[_Space]] = OrderedDict()
"""Spaces of the last :data:`N_KNOWN` pairs of training and test rows, by a hash of their numbers."""


def _spaces(x_train: NDArray[np.floating[Any]], x_test: NDArray[np.floating[Any]], probe: Probe) -> list[_Space]:
    """Return the spaces to choose from; none where no feature varies.

    They know nothing of any target, so tasks on the same people, and refits to permuted labels, share them. They are
    found by the numbers themselves: what a hash takes is nothing beside a decomposition.
    """
    found = hashlib.blake2b(probe.encode())
    for rows in (x_train, x_test):
        found.update(f"{rows.dtype}{rows.shape}".encode())
        found.update(np.ascontiguousarray(rows).data)
    key = found.digest()
    if key not in _known_spaces:
        _known_spaces[key] = _new_spaces(x_train, x_test, probe)
        while len(_known_spaces) > N_KNOWN:
            _known_spaces.popitem(last=False)
    _known_spaces.move_to_end(key)
    return _known_spaces[key]


def _new_spaces(x_train: NDArray[np.floating[Any]], x_test: NDArray[np.floating[Any]], probe: Probe) -> list[_Space]:
    if probe == "linear":
        a, b = rotate(x_train, x_test)
        return [_Space(a, b)] if a.shape[1] else []
    a, b = _standardised(x_train, x_test)
    within, across = _squared_distances(a, a), _squared_distances(b, a)
    apart = within[np.triu_indices(len(a), 1)]
    apart = apart[apart > 0]
    return [] if len(apart) == 0 else [_kernel_space(within, across, w, float(np.median(apart))) for w in WIDTHS]


def _squared_distances(a: Array, b: Array) -> Array:
    found: Array = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * (a @ b.T)
    if a is b:
        np.fill_diagonal(found, 0.0)
    return np.maximum(found, 0.0)


def _kernel_space(within: Array, across: Array, width: float, median: float) -> _Space:
    """Return rows whose products are the Gaussian kernel, centred on the training rows.

    A ridge on these rows is kernel ridge regression with an intercept that is not penalised, and inner folds may share
    them: a fit on some of the rows depends on the products of those rows alone.
    """
    k, new = (np.exp(-d / (2 * width**2 * median)) for d in (within, across))
    column = k.mean(0)
    centred = k - column - column[:, None] + column.mean()
    values, vectors = np.linalg.eigh(centred)
    kept = values > 1e-10 * values[-1]
    scale = np.sqrt(values[kept])
    new = new - new.mean(1, keepdims=True) - column + column.mean()
    return _Space(vectors[:, kept] * scale, new @ (vectors[:, kept] / scale), width)


def rotate(x_train: NDArray[np.floating[Any]], x_test: NDArray[np.floating[Any]]) -> tuple[Array, Array]:
    """Impute, standardise and rotate losslessly to orthogonal columns; all of it fitted on the training rows.

    A penalised linear fit never leaves the span of its training rows, and does not care how that span is turned. This
    is the only decomposition that a probe needs, whatever its penalties, inner folds and targets.
    """
    a, b = _standardised(x_train, x_test)
    if a.shape[1] <= len(a):
        u, s, vt = np.linalg.svd(a, full_matrices=False)
        own = s > 1e-10 * s.max(initial=0.0)
        # The sign of a direction is arbitrary: its largest loading is made positive, so that two machines agree.
        sign = np.sign(vt[np.arange(len(vt)), np.abs(vt).argmax(1)]) if vt.size else np.ones(len(vt))
        return (u * (s * sign))[:, own], (b @ (vt * sign[:, None]).T)[:, own]
    values, vectors = np.linalg.eigh(a @ a.T)
    kept = values > 1e-10 * values[-1]
    scale = np.sqrt(values[kept])
    return vectors[:, kept] * scale, (b @ a.T) @ (vectors[:, kept] / scale)


def _standardised(x_train: NDArray[np.floating[Any]], x_test: NDArray[np.floating[Any]]) -> tuple[Array, Array]:
    """Impute and standardise, by the training rows; features that do not vary there are left out."""
    a, b = np.array(x_train, float), np.array(x_test, float)
    if np.isinf(a).any() or np.isinf(b).any():
        raise DataError("a probe cannot be fitted to infinite features.", next_step="Missing features are NaN.")
    known = ~np.isnan(a)
    mean = np.where(known, a, 0.0).sum(0) / np.maximum(known.sum(0), 1)
    a, b = (np.where(np.isnan(x), mean, x) - mean for x in (a, b))
    sd = np.sqrt((a * a).mean(0))
    varies = sd > 1e-9 * np.maximum(np.abs(mean), np.finfo(float).tiny)
    return a[:, varies] / sd[varies], b[:, varies] / sd[varies]


def _inner_folds(y: Array, kind: Kind, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return (subjects,) the inner fold of each training subject, classes spread evenly; −1 everywhere: no choice."""
    least = len(y) if kind == "regression" else int(min((y == 0).sum(), (y == 1).sum()))
    n_inner = min(N_INNER, least)
    fold = np.full(len(y), -1)
    if n_inner < 2:
        return fold
    groups = [np.arange(len(y))] if kind == "regression" else [np.flatnonzero(y == c) for c in (0, 1)]
    order = np.concatenate([rng.permutation(g) for g in groups])
    fold[order] = np.arange(len(y)) % n_inner
    return fold


def _ridge(a: Array, y: Array, b: Array, inner: NDArray[np.int64]) -> tuple[Prediction, float]:
    """Return the prediction of the best penalty, and its inner error."""
    penalties = ALPHAS + tuple(ALPHAS[-1] * 10.0**e for e in range(1, _more_decades(a) + 1))
    errors = _held_out_errors(a, y, inner, penalties)
    # Of equal penalties the strongest: with nothing to choose from, nothing is claimed.
    best = len(penalties) - 1 - int(np.argmin(errors[::-1]))
    mean = y.mean()
    shrunk = (a.T @ (y - mean)) / ((a * a).sum(0) + penalties[best])
    return Prediction(b @ shrunk + mean, penalties[best]), float(errors[best])


def _more_decades(a: Array) -> int:
    """Return by how many decades the strongest penalty grows beyond :data:`ALPHAS` and :data:`INVERSE_PENALTIES`.

    Features are in s.d., so that the mean square of a row is their number, however the rows were rotated.
    """
    n_features = float((a * a).sum()) / len(a)
    return max(0, math.ceil(math.log10(max(1.0, n_features) / N_FEATURES) - 1e-9))


def _held_out_errors(a: Array, y: Array, inner: NDArray[np.int64], penalties: Sequence[float] = ALPHAS) -> Array:
    """Return (penalties,) squared errors of every inner fold, each predicted by a ridge on the others, without a refit.

    What a linear smoother H says of rows h when it is fitted without them follows from the fit to all rows: the error
    is (1 − H)ₕₕ⁻¹ of the residual there. (Intercept and features alike: with the intercept unpenalised, H is 1/n
    everywhere plus the ridge's own.) The columns of ``a`` are centred and orthogonal, so H is known for every penalty.
    """
    n, alphas = len(y), np.array(penalties)
    errors = np.zeros(len(alphas))
    if inner.max() < 0:
        return errors
    power = (a * a).sum(0)
    u = a / np.sqrt(power)
    left = alphas[:, None] / (power + alphas[:, None])  # 1 − the share of each direction that a ridge keeps.
    along = u.T @ (y - y.mean())
    outside = y - y.mean() - u @ along
    complete = len(power) >= n - 1
    for i in range(inner.max() + 1):
        held = np.flatnonzero(inner == i)
        own = u[held]
        # With as many directions as there can be, nothing is left outside of them but rounding errors.
        rest = np.zeros((len(held), len(held))) if complete else np.eye(len(held)) - 1 / n - own @ own.T
        block = rest + (own * left[:, None]) @ own.T
        residual = (0.0 if complete else outside[held]) + (left * along) @ own.T
        errors += (np.linalg.solve(block, residual[..., None])[..., 0] ** 2).sum(1)
    return errors


def _logistic(a: Array, y: Array, b: Array, inner: NDArray[np.int64]) -> tuple[Prediction, float]:
    """Return the prediction of the best penalty, and its inner loss."""
    # One problem an inner fold and one for all subjects, solved side by side; held-out rows weigh nothing.
    n_inner = int(inner.max()) + 1
    included = np.concatenate([inner != np.arange(n_inner)[:, None], np.ones((1, len(y)), bool)]).astype(float)
    weights = np.zeros_like(included)
    for c in (0.0, 1.0):
        count = (included * (y == c)).sum(1, keepdims=True)
        weights += included * (y == c) * included.sum(1, keepdims=True) / (2 * count)
    more = tuple(INVERSE_PENALTIES[0] / 10.0**e for e in range(_more_decades(a), 0, -1))
    penalties = more + INVERSE_PENALTIES
    coefficients, converged = _logistic_path(a, y, weights, penalties)
    design = np.column_stack([a, np.ones(len(a))])
    balance = weights[-1]
    losses = np.zeros(len(penalties))
    for i in range(n_inner):
        held = inner == i
        score = coefficients[:, i] @ design[held].T
        losses += (balance[held] * (np.logaddexp(0, score) - y[held] * score)).sum(1)
    best = int(np.argmin(losses))
    values = expit(np.column_stack([b, np.ones(len(b))]) @ coefficients[best, -1])
    return Prediction(values, penalties[best] if n_inner else None, converged), float(losses[best])


def _logistic_path(a: Array, y: Array, weights: Array, penalties: Sequence[float]) -> tuple[Array, bool]:
    """Solve weighted logistic regressions of the same rows, from the strongest penalty to the weakest.

    Newton steps by preconditioned conjugate gradients, each penalty started from the one before: the columns of a
    rotated matrix are orthogonal, so a diagonal preconditioner needs few steps.

    Parameters
    ----------
    a, y, weights
        (rows, features); (rows,); (problems, rows).
    penalties
        Inverse ones C, rising.

    Returns
    -------
    coefficients, converged
        (penalties, problems, features + 1), intercept last and not penalised.
    """
    design = np.column_stack([a, np.ones(len(a))])
    squares = design**2
    penalised = np.ones(design.shape[1])
    penalised[-1] = 0.0
    beta = np.zeros((len(weights), design.shape[1]))
    n = weights.sum(1)
    path, converged = [], True

    def objective(beta: Array, c: float) -> Array:
        score = beta @ design.T
        loss: Array = (c * weights * (np.logaddexp(0, score) - y * score)).sum(1) + (penalised * beta**2).sum(1) / 2
        return loss

    for c in penalties:
        value = objective(beta, c)
        for _ in range(MAX_NEWTON):
            p = expit(beta @ design.T)
            gradient = c * (weights * (p - y)) @ design + penalised * beta
            active = np.abs(gradient).max(1) > MAX_GRADIENT * min(c, 1.0) * n
            if not active.any():
                break
            curvature = c * weights * p * (1 - p)
            step = -_conjugate_gradients(design, squares, curvature, penalised, gradient * active[:, None])
            slope = (step * gradient).sum(1)
            size = np.ones(len(beta))
            for _ in range(30):
                tried = objective(beta + size[:, None] * step, c)
                short = tried > value + 1e-4 * size * slope + 1e-12 * np.abs(value)
                if not short.any():
                    break
                size = np.where(short, size / 2, size)
            beta, value = beta + size[:, None] * step, tried
        else:
            converged = False
        path.append(beta)
    return np.stack(path), converged


def _conjugate_gradients(design: Array, squares: Array, curvature: Array, penalised: Array, gradient: Array) -> Array:
    """Solve (designᵀ · curvature · design + penalty) step = gradient for every problem, to a tenth of a percent."""
    diagonal = curvature @ squares + penalised + 1e-12
    step = np.zeros_like(gradient)
    residual = gradient.copy()
    z = residual / diagonal
    direction = z.copy()
    rho = (residual * z).sum(1)
    goal = 1e-6 * rho
    for _ in range(4 * design.shape[1]):
        if not (rho > goal).any():
            break
        product = (curvature * (direction @ design.T)) @ design + penalised * direction
        along = (direction * product).sum(1)
        going = (rho > goal) & (along > 0)
        size = np.divide(rho, along, out=np.zeros_like(rho), where=going)[:, None]
        step += size * direction
        residual -= size * product
        z = residual / diagonal
        new = (residual * z).sum(1)
        direction = z + np.divide(new, rho, out=np.zeros_like(rho), where=going)[:, None] * direction
        rho = np.where(going, new, 0.0)
    return step

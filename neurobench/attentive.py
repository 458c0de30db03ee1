"""A probe that looks at some units more than at others: learned queries attend over unit tokens of a frozen backbone.

Attentive probing: Bardes et al. 2024, Revisiting feature prediction for learning visual representations from video
(arXiv:2404.08471), there with a cross-attention block over all tokens. Here the tokens are what is stored of a subject,
mean and s.d. of every unit, and the block is a few queries and one linear map: some hundred people have to do.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from torch import nn

from neurobench import optimisers

__all__ = ["attend"]

N_QUERIES = 8

MAX_STEPS, PATIENCE = 100, 20
"""Steps on all training subjects at once, at most; after so many without a smaller inner loss none is expected."""

RATE, MOMENTUM = 0.02, 0.9
"""Rate of Adam for the queries; momentum of the map of what they read, whose rate follows from the data."""

Array = NDArray[np.float64]


def attend(
    x_train: NDArray[np.floating[Any]],
    y: Array,
    x_test: NDArray[np.floating[Any]],
    inner: NDArray[np.int64],
    seed: int,
    classification: bool,
) -> tuple[Array, int]:
    """Fit the attentive probe on training subjects and predict the test subjects.

    A query weighs units by their tokens; what it reads of a unit is how a subject differs there from the training mean,
    in s.d. of the training subjects. The only penalty is to stop early: the number of steps is the one with the
    smallest loss over inner folds, from 0, which is the training mean, and everybody in training is fitted for as long.
    The map of what is read goes down its plain gradient, whose early steps are those of a strong ridge; Adam's, all of
    one size, would fit noise from the first one on.

    Parameters
    ----------
    x_train, x_test
        (subjects, units, features of a unit); NaN where a subject does not have a unit.
    y
        (training subjects,); 0 and 1 for a classification.
    inner
        (training subjects,) inner fold; −1 everywhere: there is nothing to choose by, and the mean is predicted.
    seed
        Seed of the queries' start.
    classification
        Logistic, classes balanced; else squared error.

    Returns
    -------
    values, n_steps
        (test subjects,) predictions, for a classification probabilities of class 1 if both were equally frequent; and
        the number of steps.
    """
    mean, scale = (0.0, 1.0) if classification else (float(y.mean()), float(y.std()) or 1.0)
    n_inner = int(inner.max()) + 1
    if n_inner == 0:
        return np.full(len(x_test), 0.5 if classification else mean), 0
    tokens, values, seen = _prepared(x_train, x_test)
    goal = torch.from_numpy(((y - mean) / scale).astype(np.float32))
    # One problem an inner fold and one for everybody, side by side; who is held out weighs nothing.
    included = np.concatenate([inner != np.arange(n_inner)[:, None], np.ones((1, len(y)), bool)])
    weight = torch.from_numpy(np.stack([_weights(y, rows, classification) for rows in included]).astype(np.float32))
    held = torch.from_numpy((~included[:-1] * _weights(y, included[-1], classification)).astype(np.float32))
    n, width = len(weight), tokens.shape[-1]
    start = torch.randn(N_QUERIES, width, generator=torch.Generator().manual_seed(seed))
    queries = nn.Parameter(start.repeat(n, 1, 1))
    readout, bias = nn.Parameter(torch.zeros(n, N_QUERIES, width)), nn.Parameter(torch.zeros(n))
    # A fifth of 1 / curvature, which is 2 λ of a square and λ / 4 of a logistic loss: fine enough to stop between.
    rate = (0.8 if classification else 0.1) / _steepest(tokens, values, seen, start, weight[-1])
    by_gradient = optimisers.SGD([readout, bias], lr=rate, momentum=MOMENTUM)
    both: tuple[torch.optim.Optimizer, ...] = (optimisers.Adam([queries], lr=RATE), by_gradient)
    losses, predicted = [], []
    for step in range(MAX_STEPS + 1):
        out = _read(tokens, values, seen, queries, readout) + bias[:, None]
        each = _loss(out[:, : len(y)], goal, classification)
        losses.append(float((held * each[:-1].detach()).sum().nan_to_num(torch.inf)))
        predicted.append(out[-1, len(y) :].detach().numpy())
        # Of equals the fewest: with nothing to choose from, nothing is claimed.
        best = int(np.argmin(losses))
        if step == MAX_STEPS or step - best >= PATIENCE:
            break
        for optimiser in both:
            optimiser.zero_grad()
        (weight * each).sum().backward()  # type: ignore[no-untyped-call]
        for optimiser in both:
            optimiser.step()
    outputs = predicted[best].astype(np.float64)
    found: Array = expit(outputs) if classification else outputs * scale + mean
    return found, best


def _steepest(
    tokens: torch.Tensor, values: torch.Tensor, seen: torch.Tensor, queries: torch.Tensor, weight: torch.Tensor
) -> float:
    """Return the largest curvature of a weighted mean of squares in what the queries read, and its intercept's."""
    share = _shares(tokens, seen, queries)[: len(weight)]
    width = tokens.shape[-1]
    read = torch.einsum("nuq,nuf->nqf", share, values[: len(weight)]).flatten(1) * (seen.shape[1] / width) ** 0.5
    design = torch.cat([read, torch.ones(len(read), 1)], 1) * weight[:, None].sqrt()
    return float(torch.linalg.matrix_norm(design, 2) ** 2)


def _weights(y: Array, rows: NDArray[np.bool_], classification: bool) -> Array:
    """Return (subjects,) what each weighs: 1 in all, the classes alike, and nothing those who are not in ``rows``."""
    weight: Array = rows.astype(float)
    if not classification:
        weight /= weight.sum()
        return weight
    for c in (0.0, 1.0):
        weight[y == c] /= 2 * max(1, int((rows & (y == c)).sum()))
    return weight


def _loss(outputs: torch.Tensor, goal: torch.Tensor, classification: bool) -> torch.Tensor:
    """Return (problems, subjects) losses."""
    if classification:
        return nn.functional.binary_cross_entropy_with_logits(outputs, goal.expand_as(outputs), reduction="none")
    return (outputs - goal).square()


def _prepared(
    x_train: NDArray[np.floating[Any]], x_test: NDArray[np.floating[Any]]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what queries look at, what they read, and (subjects, units) which units are there; test subjects last.

    Queries look at tokens in s.d. over units and training subjects alike, so that they see which unit it is. They read
    tokens in s.d. over training subjects, unit by unit: what differs between people.
    """
    x = np.concatenate([x_train, x_test]).astype(np.float32)
    n = len(x_train)
    seen: NDArray[np.bool_] = np.logical_not(np.isnan(x).any(-1))
    x = np.where(seen[..., None], x, 0.0)
    tokens = _standardised(x, seen, n, (0, 1))
    values = _standardised(x, seen, n, (0,))
    return torch.from_numpy(tokens), torch.from_numpy(values), torch.from_numpy(seen)


def _standardised(
    x: NDArray[np.float32], seen: NDArray[np.bool_], n: int, over: tuple[int, ...]
) -> NDArray[np.float32]:
    """Return x in s.d. of the first ``n`` subjects over some axes; zeros where nothing is there or nothing varies."""
    there = seen[..., None]
    count = np.maximum(there[:n].sum(over, keepdims=True), 1)
    mean = x[:n].sum(over, keepdims=True) / count
    centred = (x - mean) * there
    sd = np.sqrt((centred[:n] ** 2).sum(over, keepdims=True) / count)
    varies = sd > 1e-6 * np.maximum(np.abs(mean), np.finfo(np.float32).tiny)
    # What varies so little is rounding; and a test subject is no outlier of hundreds of s.d. for it.
    scaled: NDArray[np.float32] = np.where(varies, centred / np.where(varies, sd, 1.0), 0.0).astype(np.float32)
    clipped: NDArray[np.float32] = np.clip(scaled, -10, 10)
    return clipped


def _read(
    tokens: torch.Tensor, values: torch.Tensor, seen: torch.Tensor, queries: torch.Tensor, readout: torch.Tensor
) -> torch.Tensor:
    """Return (problems, subjects) the sum of what the queries of every problem read.

    Parameters
    ----------
    tokens, values
        (subjects, units, width).
    seen
        (subjects, units); nothing is read of somebody without any unit.
    queries, readout
        (problems, queries, width).
    """
    n, width = len(queries), tokens.shape[-1]
    share = _shares(tokens, seen, queries.flatten(0, 1))
    # What each unit has to say to each query; a root of the number of units keeps a mean over them at their size.
    said = values @ (readout.flatten(0, 1).T * width**-0.5)
    read = (share * said).sum(1) * seen.shape[1] ** 0.5
    by_problem: torch.Tensor = read.view(len(tokens), n, -1).sum(-1).T
    return by_problem


def _shares(tokens: torch.Tensor, seen: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    """Return (subjects, units, queries) how much each query looks at each unit; those of a query sum to 1."""
    logits = (tokens @ (queries.T * queries.shape[-1] ** -0.5)).masked_fill(~seen[..., None], -1e9)
    shares: torch.Tensor = logits.softmax(1) * seen[..., None]
    return shares

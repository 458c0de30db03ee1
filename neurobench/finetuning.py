"""Training on a target: a backbone, or what was added to a frozen one, with a linear head a unit, the same for all.

How many epochs is chosen inside the training part: an inner split of its subjects says when it gets no better, and then
everything starts again and is trained on all of them for as long. That is how the probe chooses its penalty, and it
costs at most one more training: the alternative, to keep the best weights of the first one, would leave a fifth of few
subjects unused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from torch import nn

from neurobench import optimisers
from neurobench.adaptation import Kind, Prediction, side_by_side
from neurobench.adapters import Adapted, adapt
from neurobench.components import Setting
from neurobench.contracts import Backbone
from neurobench.errors import DataError
from neurobench.identity import seed_for
from neurobench.pretraining import count_parameters
from neurobench.tokens import Tokenizer, Window

__all__ = ["FinetuneRecipe", "Tuned", "finetune", "inner_split"]

EVERYTHING = Setting("finetune")

LOOKS = 2
"""Windows of an inner subject, evenly spaced, that the inner loss is made from."""

AT_ONCE = 1 << 15
"""Tokens that go through a backbone in one call, where chunks of units are small: sums are rounded by it."""

INNER_SHARE = 5
"""One of so many training subjects is in the inner split."""

MIN_INNER = 10
"""Training subjects (or families) below which there is no inner split, and every epoch is done."""


@dataclass(frozen=True)
class FinetuneRecipe:
    """How a backbone and a linear head are trained on a target; the same for every backbone.

    Parameters
    ----------
    lr, layer_decay, weight_decay
        Of AdamW: rate of the head and of the last layer, factor a layer further down, and decay. Without pretraining
        (scratch) there is nothing to preserve, and a layer decay of 1 is the fair choice.
    n_epochs, patience, batch_size
        Passes over the training subjects at most, one random window of each a pass; passes without a better inner loss
        after which nothing better is expected; subjects a step.
    warmup, clip
        Share of the steps with a rising rate; largest norm of the gradient.
    """

    lr: float = 1e-3
    layer_decay: float = 0.75
    weight_decay: float = 0.05
    n_epochs: int = 20
    patience: int = 5
    batch_size: int = 16
    warmup: float = 0.1
    clip: float = 1.0


@dataclass(frozen=True)
class Tuned:
    """What came of a training on a target.

    Parameters
    ----------
    subjects, prediction
        Test subjects in the order in which they appear in the windows, and what is predicted of them.
    n_epochs
        Passes over the training subjects that were done in the end.
    n_trained, n_parameters
        Parameters that were trained, the head's among them; all parameters, what was added and the head among them.
    """

    subjects: tuple[str, ...]
    prediction: Prediction
    n_epochs: int
    n_trained: int
    n_parameters: int


class _Head(nn.Module):
    """One linear map of the pooled tokens of all units; starts at zero, that is at the training mean."""

    def __init__(self, n_units: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2 * width)
        self.weight = nn.Parameter(torch.zeros(n_units, 2 * width))
        self.bias = nn.Parameter(torch.zeros(()))

    def reset(self) -> None:
        """Go back to the start."""
        self.norm.reset_parameters()
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, tokens: torch.Tensor, valid: torch.Tensor, units: torch.Tensor) -> torch.Tensor:
        """Return the (batch,) share of some units; a unit without a valid patch adds nothing."""
        weight = valid[..., None].to(tokens.dtype)
        count = weight.sum(2).clamp(min=1)
        mean = (tokens * weight).sum(2) / count
        # The root has no gradient at zero, where a unit has one valid patch.
        deviation = (((tokens - mean[:, :, None]) * weight).square().sum(2) / count + 1e-6).sqrt()
        pooled = self.norm(torch.cat([mean, deviation], -1)) * valid.any(2)[..., None]
        share: torch.Tensor = (pooled * self.weight[units]).sum((1, 2)) / math.sqrt(self.weight.numel())
        return share


def finetune(
    backbone: Backbone,
    tokenizer: Tokenizer,
    train_windows: Sequence[Window],
    y_train: Mapping[str, float],
    test_windows: Sequence[Window],
    chunks: Sequence[NDArray[np.int64]],
    kind: Kind,
    seed: int,
    recipe: FinetuneRecipe,
    device: torch.device | str = "cpu",
    *,
    how: Setting = EVERYTHING,
    groups: Sequence[str] | None = None,
) -> Tuned:
    """Train a backbone, or what is added to it, with a linear head on a target, and predict the test subjects.

    Parameters
    ----------
    backbone
        Pretrained, or fresh for training from scratch. It is changed: its weights, or by what is added to it.
    tokenizer
        With the scaler of the training subjects.
    train_windows, test_windows
        Windows of either; predictions are averaged over a subject's windows. Test windows are looked at last.
    y_train
        Training subject to target; 0 and 1 for a classification.
    chunks
        Units that are seen together; the head adds up over chunks.
    kind
        ``regression``: squared error. ``classification``: cross-entropy, classes balanced.
    seed
        Seed of what is added, of the inner split, and of the order of subjects and windows.
    recipe
        The training recipe.
    device
        Where to run.
    how
        What is trained, see :func:`neurobench.adapters.adapt`.
    groups
        Family of every subject of ``y_train``; the inner split keeps one together. Without: everybody alone.

    Raises
    ------
    DataError
        If a training window has no target, or a test subject is among the training subjects.
    PluginError
        If a backbone that is to stay frozen does not.
    """
    by_subject: dict[str, list[Window]] = {}
    for window in train_windows:
        by_subject.setdefault(window.subject, []).append(window)
    train = [s for s in y_train if s in by_subject]
    both = sorted(set(train) & {w.subject for w in test_windows})
    if both:
        raise DataError(f"{len(both)} subjects are in training and in test, among them {both[0]!r}.")
    if len(train) < len(by_subject):
        raise DataError(f"{len(by_subject) - len(train)} training subjects have windows but no target.")
    family = dict(zip(y_train, groups or y_train, strict=True))
    data = _Data(
        tokenizer, [by_subject[s] for s in train], np.array([y_train[s] for s in train], float), chunks, kind, device
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed_for(seed, "probe", "finetune", "added"))
        net = adapt(backbone, how)
        backbone.to(device)
        head = _Head(len(tokenizer.cohort.units), backbone.spec.width).to(device)
        start = {k: v.detach().clone() for k, v in backbone.state_dict().items()}
        split = np.random.default_rng(seed_for(seed, "probe", "finetune", "inner"))
        held = inner_split(data.y, [family[s] for s in train], split, kind)
        n_epochs = recipe.n_epochs
        if held.any():
            n_epochs = _best_epoch(net, head, data, held, seed, recipe)
            net.verify()
            backbone.load_state_dict(start)
            head.reset()
        fitted = _Fitted(data, np.arange(len(train)))
        _train(net, head, fitted, n_epochs, seed_for(seed, "probe", "finetune"), recipe)
        net.verify()
        subjects, values = _predict_windows(net, head, data, test_windows, recipe.batch_size)
        net.verify()
    values = expit(values) if kind == "classification" else values * fitted.scale + fitted.mean
    trained = net.added or tuple(p for p in backbone.parameters() if p.requires_grad)
    n_head = count_parameters(head)
    n_trained = sum(p.numel() for p in trained) + n_head
    return Tuned(subjects, Prediction(values, None), n_epochs, n_trained, count_parameters(backbone) + n_head)


# ---------------------------------------------------------------- when to stop


def inner_split(
    y: NDArray[np.float64], groups: Sequence[str], rng: np.random.Generator, kind: Kind
) -> NDArray[np.bool_]:
    """Return (subjects,) who is in the inner split: a fifth of the families, spread evenly over the target.

    Families are put in the order of their mean target, for two classes within each class, and of every five neighbours
    one is drawn. Nobody, where there are too few.

    Parameters
    ----------
    y
        (subjects,) target.
    groups
        (subjects,) family.
    rng
        The only source of chance.
    kind
        ``regression`` or ``classification``.
    """
    names, place = np.unique(np.asarray(groups, str), return_inverse=True)
    if len(names) < MIN_INNER:
        return np.zeros(len(y), bool)
    mean = np.bincount(place, y) / np.bincount(place)
    strata = [np.arange(len(names))] if kind == "regression" else [np.flatnonzero(mean == m) for m in np.unique(mean)]
    chosen: list[int] = []
    for stratum in strata:
        # Chance decides between equals: names come in alphabetical order, which may be that of sites.
        stratum = rng.permutation(stratum)
        stratum = stratum[np.argsort(mean[stratum], kind="stable")]
        n_bins = max(1, round(len(stratum) / INNER_SHARE)) if len(stratum) > 1 else 0
        chosen += [int(rng.choice(part)) for part in np.array_split(stratum, n_bins)] if n_bins else []
    return np.isin(place, chosen)


def _best_epoch(
    net: Adapted, head: _Head, data: _Data, held: NDArray[np.bool_], seed: int, recipe: FinetuneRecipe
) -> int:
    """Return after how many epochs on the other training subjects the loss of the inner split is smallest, from 0."""
    fitted = _Fitted(data, np.flatnonzero(~held))
    rows = np.flatnonzero(held)
    looks = [[w[i] for i in np.unique(np.linspace(0, len(w) - 1, LOOKS).round().astype(int))] for w in data.windows]
    windows = [w for i in rows for w in looks[i]]
    owner = np.repeat(np.arange(len(rows)), [len(looks[i]) for i in rows])

    def loss() -> float:
        _, outputs = _outputs(net, head, data, windows, recipe.batch_size)
        mean = np.bincount(owner, outputs) / np.bincount(owner)
        return float(fitted.loss(torch.tensor(mean, dtype=torch.float32), rows, "cpu"))

    # Before any step the head says the training mean of everybody.
    best, least = 0, float(fitted.loss(torch.zeros(len(rows)), rows, "cpu"))

    def enough(epoch: int) -> bool:
        nonlocal best, least
        if (now := loss()) < least:
            best, least = epoch, now
        return epoch - best >= recipe.patience

    _train(net, head, fitted, recipe.n_epochs, seed_for(seed, "probe", "finetune", "stopping"), recipe, enough)
    return best


# ---------------------------------------------------------------- training


@dataclass(frozen=True, eq=False)
class _Data:
    """The training subjects: their windows and (subjects,) targets, and how they are looked at."""

    tokenizer: Tokenizer
    windows: Sequence[Sequence[Window]]
    y: NDArray[np.float64]
    chunks: Sequence[NDArray[np.int64]]
    kind: Kind
    device: torch.device | str


class _Fitted:
    """The training subjects that are trained on: scale and balance of the target are theirs."""

    def __init__(self, data: _Data, rows: NDArray[np.int64]) -> None:
        self.data, self.rows = data, rows
        y = data.y[rows]
        self.mean, self.scale = 0.0, 1.0
        balance = np.ones(len(data.y))
        if data.kind == "regression":
            self.mean, self.scale = float(y.mean()), float(y.std()) or 1.0
        elif 0 < y.mean() < 1:
            balance = np.where(data.y > 0.5, 0.5 / y.mean(), 0.5 / (1 - y.mean()))
        self._goal = torch.tensor((data.y - self.mean) / self.scale, dtype=torch.float32)
        self._balance = torch.tensor(balance, dtype=torch.float32)

    def loss(self, outputs: torch.Tensor, rows: NDArray[np.int64], device: torch.device | str) -> torch.Tensor:
        """Return the mean loss of (rows,) outputs of the head on some of all training subjects."""
        goal, balance = self._goal[rows].to(device), self._balance[rows].to(device)
        if self.data.kind == "regression":
            return (outputs - goal).square().mean()
        return nn.functional.binary_cross_entropy_with_logits(outputs, goal, balance)


def _train(
    net: Adapted,
    head: _Head,
    fitted: _Fitted,
    n_epochs: int,
    seed: int,
    recipe: FinetuneRecipe,
    enough: Callable[[int], bool] = lambda epoch: False,
) -> None:
    """Train in place for some epochs, or until ``enough`` says so after one; rates are those of the whole recipe."""
    data = fitted.data
    n_steps = recipe.n_epochs * math.ceil(len(fitted.rows) / recipe.batch_size)
    optimiser, schedule = _optimiser(net, head, recipe, n_steps)
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed_for(seed, "probe", "dropout"))
    for epoch in range(1, n_epochs + 1):
        net.backbone.train()
        order = rng.permutation(fitted.rows)
        for low in range(0, len(order), recipe.batch_size):
            rows = order[low : low + recipe.batch_size]
            windows = [data.windows[i][int(rng.integers(len(data.windows[i])))] for i in rows]
            loss = fitted.loss(_apply(net.backbone, head, data, windows), rows, data.device)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, recipe.clip)
            optimiser.step()
            schedule.step()
        if enough(epoch):
            return


def _depths(backbone: Backbone) -> tuple[dict[str, int], int]:
    """Return how deep every parameter lies, and the largest depth: embeddings 0, the layers in order, the norm last.

    The layers are the longest list of modules among the backbone's children. (timm's own grouping wants a
    ``group_matcher`` that plugins need not have, and else puts all into one layer.)
    """
    lists = {n: m for n, m in backbone.named_children() if isinstance(m, nn.ModuleList | nn.Sequential)}
    layers = max(lists, key=lambda n: len(lists[n]), default="")
    deepest = (len(lists[layers]) if layers else 0) + 1

    def depth(name: str) -> int:
        first, _, rest = name.partition(".")
        if first == layers:
            return int(rest.partition(".")[0]) + 1
        return deepest if first.startswith("norm") else 0

    return {name: depth(name) for name, _ in backbone.named_parameters()}, deepest


def _optimiser(
    net: Adapted, head: _Head, recipe: FinetuneRecipe, n_steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Return AdamW on what is trained; of a backbone that is trained itself lower layers have lower rates."""
    if net.added:
        trained: list[dict[str, Any]] = [{"params": list(net.added), "weight_decay": 0.0, "lr": recipe.lr}]
    else:
        depth, deepest = _depths(net.backbone)
        trained = [
            {
                "params": [parameter],
                # Biases and norms are not decayed.
                "weight_decay": recipe.weight_decay if parameter.ndim > 1 else 0.0,
                "lr": recipe.lr * recipe.layer_decay ** (deepest - depth[name]),
            }
            for name, parameter in net.backbone.named_parameters()
            if parameter.requires_grad
        ]
    trained.append({"params": list(head.parameters()), "weight_decay": recipe.weight_decay, "lr": recipe.lr})
    optimiser = optimisers.AdamW(trained, betas=(0.9, 0.95))
    n_warm = max(1, round(recipe.warmup * n_steps))

    def rate(step: int) -> float:
        if step < n_warm:
            return (step + 1) / n_warm
        return 0.5 * (1 + math.cos(math.pi * (step - n_warm) / max(1, n_steps - n_warm)))

    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, rate)


def _apply(backbone: Backbone, head: _Head, data: _Data, windows: Sequence[Window]) -> torch.Tensor:
    """Return (windows,) outputs of the head, added up over chunks of units.

    Chunks of one size go through the backbone side by side, as rows of one batch: many small ones, one after the other,
    would spend their time on calls.
    """
    total = head.bias.expand(len(windows))
    for stack in side_by_side(data.chunks, len(windows) * data.tokenizer.cohort.patches_per_window, AT_ONCE):
        units = np.repeat(np.stack(stack), len(windows), axis=0)
        batch = data.tokenizer.batch([*windows] * len(stack), units)
        table = batch.table.to(data.device)
        tokens = backbone(batch.signal.to(data.device), torch.zeros_like(table.valid), table)
        # The head weighs the cohort's own units, several of which may be one to the backbone.
        share = head(tokens, table.valid, batch.rows.to(data.device))
        total = total + share.view(len(stack), len(windows)).sum(0)
    return total


# ---------------------------------------------------------------- prediction


def _outputs(
    net: Adapted, head: _Head, data: _Data, windows: Sequence[Window], batch_size: int
) -> tuple[list[str], NDArray[np.float64]]:
    """Return the subject of every window, and (windows,) outputs of the head."""
    net.backbone.eval()
    found: list[float] = []
    with torch.no_grad():
        for low in range(0, len(windows), batch_size):
            found += _apply(net.backbone, head, data, windows[low : low + batch_size]).tolist()
    return [w.subject for w in windows], np.array(found)


def _predict_windows(
    net: Adapted, head: _Head, data: _Data, windows: Sequence[Window], batch_size: int
) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Return subjects and their outputs, averaged over windows before the logistic function."""
    outputs: dict[str, list[float]] = {}
    for subject, value in zip(*_outputs(net, head, data, windows, batch_size), strict=True):
        outputs.setdefault(subject, []).append(value)
    return tuple(outputs), np.array([np.mean(v) for v in outputs.values()])

"""Training a backbone further on a target, or from scratch, with one linear head a unit that is the same for all."""

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

from neurobench.adaptation import Kind, Prediction, side_by_side
from neurobench.contracts import Backbone
from neurobench.errors import DataError
from neurobench.identity import seed_for
from neurobench.tokens import Tokenizer, Window

__all__ = ["FinetuneRecipe", "finetune"]


@dataclass(frozen=True)
class FinetuneRecipe:
    """How a backbone and a linear head are trained on a target; the same for every backbone.

    Parameters
    ----------
    lr, layer_decay, weight_decay
        Of AdamW: rate of the head and of the last layer, factor a layer further down, and decay. Without pretraining
        (scratch) there is nothing to preserve, and a layer decay of 1 is the fair choice.
    n_epochs, batch_size
        Passes over the training subjects, one random window of each a pass; subjects a step.
    warmup, clip
        Share of the steps with a rising rate; largest norm of the gradient.
    """

    lr: float = 1e-3
    layer_decay: float = 0.75
    weight_decay: float = 0.05
    n_epochs: int = 20
    batch_size: int = 16
    warmup: float = 0.1
    clip: float = 1.0


class _Head(nn.Module):
    """One linear map of the pooled tokens of all units; starts at zero, that is at the training mean."""

    def __init__(self, n_units: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2 * width)
        self.weight = nn.Parameter(torch.zeros(n_units, 2 * width))
        self.bias = nn.Parameter(torch.zeros(()))

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
    on_step: Callable[[int, int], None] | None = None,
) -> tuple[tuple[str, ...], Prediction]:
    """Train a backbone with a linear head on a target, and predict the test subjects.

    Parameters
    ----------
    backbone
        Pretrained, or fresh for training from scratch. Its weights are changed.
    tokenizer
        With the scaler of the training subjects.
    train_windows, test_windows
        Windows of either; predictions are averaged over a subject's windows.
    y_train
        Training subject to target; 0 and 1 for a classification.
    chunks
        Units that are seen together; the head adds up over chunks.
    kind
        ``regression``: squared error. ``classification``: cross-entropy, classes balanced.
    seed
        Seed of the order of subjects and windows.
    recipe
        The training recipe.
    device
        Where to run.
    on_step
        Called after each step with its number and the total.

    Returns
    -------
    subjects, prediction
        Test subjects in the order in which they appear in ``test_windows``.

    Raises
    ------
    DataError
        If a training window has no target, or a test subject is among the training subjects.
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
    y = np.array([y_train[s] for s in train], float)
    mean, scale = (0.0, 1.0) if kind == "classification" else (float(y.mean()), float(y.std()) or 1.0)
    goal = torch.tensor((y - mean) / scale, dtype=torch.float32, device=device)
    balance = torch.ones_like(goal)
    if kind == "classification" and 0 < y.mean() < 1:
        balance = torch.where(goal > 0.5, 0.5 / float(y.mean()), 0.5 / float(1 - y.mean()))
    head = _Head(len(tokenizer.cohort.units), backbone.spec.width).to(device)
    n_steps, step = recipe.n_epochs * math.ceil(len(train) / recipe.batch_size), 0
    optimiser, schedule = _optimiser(backbone.to(device), head, recipe, n_steps)
    rng = np.random.default_rng(seed_for(seed, "probe", "finetune"))
    with torch.random.fork_rng():
        torch.manual_seed(seed_for(seed, "probe", "finetune", "dropout"))
        backbone.train()
        for _ in range(recipe.n_epochs):
            order = rng.permutation(len(train))
            for low in range(0, len(train), recipe.batch_size):
                rows = order[low : low + recipe.batch_size]
                windows = [by_subject[train[i]][int(rng.integers(len(by_subject[train[i]])))] for i in rows]
                predicted = _apply(backbone, head, tokenizer, windows, chunks, device)
                target, weight = goal[rows], balance[rows]
                if kind == "regression":
                    loss = (predicted - target).square().mean()
                else:
                    loss = nn.functional.binary_cross_entropy_with_logits(predicted, target, weight)
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_([*backbone.parameters(), *head.parameters()], recipe.clip)
                optimiser.step()
                schedule.step()
                step += 1
                if on_step is not None:
                    on_step(step, n_steps)
    return _predict_windows(backbone, head, tokenizer, test_windows, chunks, kind, (mean, scale), recipe, device)


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
    backbone: Backbone, head: _Head, recipe: FinetuneRecipe, n_steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    depth, deepest = _depths(backbone)
    trained: list[dict[str, Any]] = [
        {
            "params": [parameter],
            # Biases and norms are not decayed.
            "weight_decay": recipe.weight_decay if parameter.ndim > 1 else 0.0,
            "lr": recipe.lr * recipe.layer_decay ** (deepest - depth[name]),
        }
        for name, parameter in backbone.named_parameters()
        if parameter.requires_grad
    ]
    trained.append({"params": list(head.parameters()), "weight_decay": recipe.weight_decay, "lr": recipe.lr})
    optimiser = torch.optim.AdamW(trained, betas=(0.9, 0.95))
    n_warm = max(1, round(recipe.warmup * n_steps))

    def rate(step: int) -> float:
        if step < n_warm:
            return (step + 1) / n_warm
        return 0.5 * (1 + math.cos(math.pi * (step - n_warm) / max(1, n_steps - n_warm)))

    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, rate)


def _apply(
    backbone: Backbone,
    head: _Head,
    tokenizer: Tokenizer,
    windows: Sequence[Window],
    chunks: Sequence[NDArray[np.int64]],
    device: torch.device | str,
) -> torch.Tensor:
    """Return (windows,) outputs of the head, added up over chunks of units.

    Chunks of one size go through the backbone side by side, as rows of one batch: many small ones, one after the other,
    would spend their time on calls.
    """
    total = head.bias.expand(len(windows))
    for stack in side_by_side(chunks, len(windows) * tokenizer.cohort.patches_per_window):
        units = np.repeat(np.stack(stack), len(windows), axis=0)
        batch = tokenizer.batch([*windows] * len(stack), units)
        table = batch.table.to(device)
        tokens = backbone(batch.signal.to(device), torch.zeros_like(table.valid), table)
        # The head weighs the cohort's own units, several of which may be one to the backbone.
        share = head(tokens, table.valid, batch.rows.to(device))
        total = total + share.view(len(stack), len(windows)).sum(0)
    return total


def _predict_windows(
    backbone: Backbone,
    head: _Head,
    tokenizer: Tokenizer,
    windows: Sequence[Window],
    chunks: Sequence[NDArray[np.int64]],
    kind: Kind,
    scaling: tuple[float, float],
    recipe: FinetuneRecipe,
    device: torch.device | str,
) -> tuple[tuple[str, ...], Prediction]:
    """Return subjects and their predictions, averaged over windows before the logistic function."""
    backbone.eval()
    outputs: dict[str, list[float]] = {}
    with torch.inference_mode():
        for low in range(0, len(windows), recipe.batch_size):
            some = windows[low : low + recipe.batch_size]
            for window, value in zip(
                some, _apply(backbone, head, tokenizer, some, chunks, device).tolist(), strict=True
            ):
                outputs.setdefault(window.subject, []).append(value)
    values = np.array([np.mean(v) for v in outputs.values()])
    mean, scale = scaling
    return tuple(outputs), Prediction(expit(values) if kind == "classification" else values * scale + mean, None)

"""One training step, the very one that pretraining does, for benchmarks on any device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from neurobench import optimisers
from neurobench.contracts import Backbone
from neurobench.learners import Filling
from neurobench.pretraining import Drawn, Recipe, build, optimise, parameter_groups
from neurobench.records import Batch
from neurobench.specimens import simulated_batch, simulated_spec, simulated_units

__all__ = ["half_hidden", "training_step"]


def half_hidden(n_batch: int, n_units: int, n_patches: int, n_features: int) -> tuple[Batch, torch.Tensor]:
    """Return windows of white noise, and (batch, units, patches) bool, half of it True."""
    batch = simulated_batch(simulated_units(n_units, 8), n_batch, n_patches, n_features)
    return batch, torch.rand(n_batch, n_units, n_patches, generator=torch.Generator().manual_seed(0)) < 0.5


def training_step(
    cls: type[Backbone],
    batch: Batch,
    hidden: torch.Tensor,
    scored: torch.Tensor,
    *,
    width: int,
    n_layers: int,
    parameters: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
    moved: Callable[[Any], Any] | None = None,
) -> Callable[[], torch.Tensor]:
    """Return a call that does one optimiser step on a batch and returns the loss.

    Parameters
    ----------
    cls, parameters
        The backbone.
    batch, hidden, scored
        Windows, and (batch, units, patches) bool; on a CPU.
    width, n_layers
        Its size.
    device
        Where to train.
    moved
        What brings a module or a tensor there; None: its own ``to``.
    """
    moved = moved or (lambda what: what.to(device))
    n_patches, n_features = batch.signal.shape[2:]
    spec = simulated_spec(batch.units, n_patches, n_features, width, n_layers)
    net, decoder = (moved(m) for m in build(cls, spec, parameters or {}, seed=0))
    drawn = Drawn.of(batch, hidden, scored).sent(moved)
    recipe = Recipe.for_width(width, len(hidden))
    groups = parameter_groups([net, decoder], recipe.weight_decay)
    optimiser = optimisers.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas, foreach=True)
    net.train()
    return lambda: optimise(Filling(net, decoder), drawn, optimiser, recipe.clip)[0]

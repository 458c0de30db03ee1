"""Windows of two planted networks, and a short training on them, for tests of what backbones make of networks."""

from __future__ import annotations

from dataclasses import replace

import torch

from neurobench.pretraining import Recipe, hide, parameter_groups
from neurobench.records import Batch
from neurobench.specimens import simulated_batch, simulated_units

N, PATCHES, FEATURES = 12, 4, 6
NETWORK = torch.arange(N) % 2
"""Two planted networks, one every other unit: neither the order of units nor their groups tell them."""

PLANTED = (NETWORK[:, None] == NETWORK).float() * (1 - torch.eye(N))


def planted(n_batch: int, seed: int) -> Batch:
    """Return windows in which the units of a network share one signal."""
    generator = torch.Generator().manual_seed(seed)
    batch = simulated_batch(simulated_units(N, 3), n_batch, PATCHES, FEATURES)
    shared = torch.randn(n_batch, 2, PATCHES, FEATURES, generator=generator)[:, NETWORK]
    noise = torch.randn(shared.shape, generator=generator)
    return replace(batch, signal=shared + 0.5 * noise)


def train(net: torch.nn.Module, decoder: torch.nn.Module, n_steps: int) -> list[float]:
    """Fill in half of the units, as under `random_tube`."""
    recipe = Recipe.for_width(32, 16)
    optimiser = torch.optim.AdamW(parameter_groups([net, decoder], 0.05), lr=0.005, betas=recipe.betas)
    losses = []
    net.train()
    for step in range(n_steps):
        batch = planted(16, step)
        order = torch.rand(16, N, generator=torch.Generator().manual_seed(step)).argsort(1)
        hidden = (order < N // 2)[:, :, None].expand(-1, -1, PATCHES)
        filled = decoder(net(hide(batch.signal, hidden), hidden, batch.table))
        loss = (filled - batch.signal)[hidden].square().mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*net.parameters(), *decoder.parameters()], 1.0)
        optimiser.step()
        losses.append(float(loss.detach()))
    net.eval()
    return losses

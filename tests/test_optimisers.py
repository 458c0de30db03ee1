"""Optimisers: torch's own steps to the byte."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from neurobench import optimisers

SHAPES = ((16, 8), (16,), (1,), (3, 5, 7))


def trained(cls: type[torch.optim.Optimizer], **parameters: Any) -> list[torch.nn.Parameter]:
    """Return weights after some steps, half of them after the optimiser's state went through a dictionary."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    groups = [{"params": weights[:2], "weight_decay": 0.05}, {"params": weights[2:]}]
    optimiser = cls(groups, lr=0.01, **parameters)
    for step in range(40):
        optimiser.zero_grad(set_to_none=True)
        assert all(w.grad is None for w in weights)
        for group in optimiser.param_groups:
            group["lr"] = 0.01 * (1 - step / 40)
        # What is recorded for gradients is nothing that a step may leave behind.
        sum((w.square() * torch.randn(w.shape, generator=generator)).sum() for w in weights).backward()
        optimiser.step()
        if step == 20:
            kept = optimiser.state_dict()
            optimiser = cls(groups, lr=1.0, **parameters)
            optimiser.load_state_dict(kept)
    assert all(w.is_leaf and w.requires_grad for w in weights)
    return weights


@pytest.mark.parametrize(
    ("name", "parameters"), [("AdamW", {"betas": (0.9, 0.95)}), ("Adam", {}), ("SGD", {"momentum": 0.9})]
)
@pytest.mark.parametrize("foreach", [None, True])
def test_steps_are_those_of_torch_to_the_byte(name: str, parameters: dict[str, Any], foreach: bool | None) -> None:
    ours = trained(getattr(optimisers, name), foreach=foreach, **parameters)
    theirs = trained(getattr(torch.optim, name), **parameters)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))

"""What backbones share that are somebody else's model: is its package here, and how tokens get in and out of it."""

from __future__ import annotations

import importlib.util

import torch
from torch import nn

EXTRA = "pretrained"


def without(package: str) -> str:
    """Return what is missing and how to get it, or an empty string; the package itself is not imported."""
    if importlib.util.find_spec(package) is not None:
        return ""
    return f"needs the package {package!r}. Get it with: pip install 'neurobench-fm[{EXTRA}]'"


def way_in_and_out(width: int, inside: int, outside: int | None = None) -> tuple[nn.Linear, nn.Linear]:
    """Return linear maps from tokens of ``width`` to a model's own width and back.

    They start as a rotation and its inverse, so that a model whose blocks add to their input hands tokens on.

    Parameters
    ----------
    width
        Of a token here.
    inside
        Of a token that the model takes.
    outside
        Of a token that it gives, where that differs.
    """
    into, back = nn.Linear(width, inside), nn.Linear(outside or inside, width)
    nn.init.orthogonal_(into.weight)
    if back.weight.shape == into.weight.T.shape:
        back.weight.data.copy_(into.weight.data.T)
    nn.init.zeros_(into.bias)
    nn.init.zeros_(back.bias)
    return into, back


def seen_by_all(valid: torch.Tensor) -> torch.Tensor:
    """Return (sequences, length) which tokens attention may look at: where none is valid all, as softmax needs one."""
    return valid | ~valid.any(1, keepdim=True)

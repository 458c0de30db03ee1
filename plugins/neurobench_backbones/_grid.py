"""Layers on the (units × patches) grid: one pass along units, then one along time."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

Mixer = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Maps (sequences, length, width) tokens and (sequences, length) valid to tokens of the same shape."""


def mix_grid(tokens: torch.Tensor, valid: torch.Tensor, layers: Iterable[Iterable[nn.Module]]) -> torch.Tensor:
    """Apply layers of two passes each, the first along units, the second along time.

    Parameters
    ----------
    tokens
        (batch, units, patches, width).
    valid
        (batch, units, patches) bool.
    layers
        Pairs of mixers.
    """
    batch, units, patches, width = tokens.shape
    across = valid.transpose(1, 2).reshape(batch * patches, units)
    along = valid.reshape(batch * units, patches)
    for unit_pass, time_pass in layers:
        x = tokens.transpose(1, 2).reshape(batch * patches, units, width)
        x = unit_pass(x, across).view(batch, patches, units, width).transpose(1, 2)
        x = time_pass(x.reshape(batch * units, patches, width), along)
        tokens = x.view(batch, units, patches, width)
    return tokens

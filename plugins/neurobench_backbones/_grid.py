"""Layers on the (units × patches) grid: one pass along units and one along time, in either order.

Rollout: Abnar and Zuidema 2020, Quantifying attention flow in transformers (doi:10.18653/v1/2020.acl-main.385).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from neurobench import TokenBackbone, TokenTable

Mixer = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]
"""Maps (sequences, length, width) tokens and (sequences, length) valid to tokens of the same shape; None for valid:
all of them are."""


ORDERS = {"units": ("units", "time"), "time": ("time", "units")}
"""What the two passes of a layer run along, by the first of them (time first: BrainMT, arXiv:2506.22591)."""


def why_not_first(parameters: Mapping[str, Any]) -> str:
    """Return why a backbone's ``first`` is no axis, or an empty string."""
    # A subclass may have a constructor of its own, without it.
    first = parameters.get("first", "units")
    return "" if first in ORDERS else f"no pass runs along {first!r}: first may be {' or '.join(ORDERS)}"


def mix_grid(
    tokens: torch.Tensor, valid: torch.Tensor | None, layers: Iterable[Iterable[nn.Module]], first: str = "units"
) -> torch.Tensor:
    """Apply layers of two passes each, one along units and one along time.

    Parameters
    ----------
    tokens
        (batch, units, patches, width).
    valid
        (batch, units, patches) bool; None: all are.
    layers
        Pairs of mixers, in the order in which they are applied.
    first
        What the first of a pair runs along: ``units`` or ``time``.
    """
    batch, units, patches, width = tokens.shape
    across: torch.Tensor | None = None
    along: torch.Tensor | None = None
    if valid is not None:
        across = valid.transpose(1, 2).reshape(batch * patches, units)
        along = valid.reshape(batch * units, patches)
    for passes in layers:
        for axis, mixer in zip(ORDERS[first], passes, strict=True):
            if axis == "units":
                x = tokens.transpose(1, 2).reshape(batch * patches, units, width)
                tokens = mixer(x, across).view(batch, patches, units, width).transpose(1, 2)
            else:
                x = tokens.reshape(batch * units, patches, width)
                tokens = mixer(x, along).view(batch, units, patches, width)
    return tokens


def roll_out(
    tokens: torch.Tensor, valid: torch.Tensor, layers: Iterable[Iterable[Any]], first: str = "units"
) -> torch.Tensor:
    """Return (batch, units, units): how much the output of each unit draws on the input of each, through all layers.

    Every pass says by ``weights`` how much each place of a sequence draws on each other one. Half of a pass is its
    residual branch, and passes are chained by multiplication. Input patches of a unit are summed up from the start,
    which changes nothing, as every pass is linear in what it is given; output patches are averaged at the end.

    Parameters
    ----------
    tokens, valid, layers, first
        As for :func:`mix_grid`, ``valid`` always given; passes have ``weights(tokens, valid)``, (sequences, length,
        length), rows summing to 1.
    """
    batch, units, patches, width = tokens.shape
    across = valid.transpose(1, 2).reshape(batch * patches, units)
    along = valid.reshape(batch * units, patches)
    drawn = torch.eye(units, device=tokens.device).repeat(batch, patches, 1, 1)
    for passes in layers:
        for axis, mixer in zip(ORDERS[first], passes, strict=True):
            if axis == "units":
                x = tokens.transpose(1, 2).reshape(batch * patches, units, width)
                drawn = (drawn + mixer.weights(x, across).view(batch, patches, units, units) @ drawn) / 2
                tokens = mixer(x, across).view(batch, patches, units, width).transpose(1, 2)
            else:
                x = tokens.reshape(batch * units, patches, width)
                mixed = mixer.weights(x, along).view(batch, units, patches, patches) @ drawn.transpose(1, 2)
                drawn = (drawn + mixed.transpose(1, 2)) / 2
                tokens = mixer(x, along).view(batch, units, patches, width)
    seen = valid.transpose(1, 2)[..., None]
    return (drawn * seen).sum(1) / seen.sum(1).clamp(min=1)


class GridBackbone(TokenBackbone):
    """A backbone of layers of two passes each, one along units and one along time.

    Attributes
    ----------
    layers
        Pairs of passes, each with ``weights``.
    first
        What the first of a pair runs along.
    """

    layers: nn.ModuleList
    first = "units"

    def passes(self, table: TokenTable) -> Iterable[Iterable[Any]]:
        """Return the pairs of passes for a batch: the layers, unless a pass needs to be told something of the batch."""
        return self.layers

    def mix(self, tokens: torch.Tensor, table: TokenTable) -> torch.Tensor:
        """Mix along both axes, layer after layer."""
        return mix_grid(tokens, table.where_valid, self.passes(table), self.first)

    def importance(self, signal: torch.Tensor, hidden: torch.Tensor, table: TokenTable) -> torch.Tensor:
        """Return what every pass says that it draws on, and its residual, chained over passes."""
        tokens = self.embed(signal, hidden, table)
        return roll_out(tokens, self.taking_part(hidden, table), self.passes(table), self.first)

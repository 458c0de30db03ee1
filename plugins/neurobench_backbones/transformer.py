"""Transformer: self-attention across units, then along time, in timm's blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from neurobench import BackboneSpec, TokenBackbone, TokenTable, hookimpl
from neurobench_backbones._attention import AttentionPass
from neurobench_backbones._grid import mix_grid, roll_out, why_not_first


class Transformer(TokenBackbone):
    """Factorised self-attention: every layer attends across units and along time.

    Parameters
    ----------
    first
        What the first of a layer's two passes runs along: ``units`` or ``time``.
    visible_only
        Hidden tokens are left out of the passes and filled in from the visible ones afterwards: at the same steps a
        fraction of the time, for masks that hide whole units or times.
    """

    name = "transformer"
    summary = "self-attention across units, then along time (timm blocks)"
    reference = "arXiv:2010.11929; factorised: arXiv:2103.15691"

    def __init__(self, spec: BackboneSpec, *, first: str = "units", visible_only: bool = False) -> None:
        super().__init__(spec, visible_only)
        self.first = first
        passes = [AttentionPass(spec.width) for _ in range(2 * spec.n_layers)]
        self.layers = nn.ModuleList(nn.ModuleList(passes[i : i + 2]) for i in range(0, len(passes), 2))

    @classmethod
    def impossible(cls, spec: BackboneSpec, parameters: Mapping[str, Any]) -> str:
        """Return why passes cannot be in this order, or an empty string."""
        return why_not_first(parameters)

    def mix(self, tokens: torch.Tensor, table: TokenTable) -> torch.Tensor:
        """Mix along both axes, layer after layer."""
        return mix_grid(tokens, table.valid, self.layers, self.first)

    def importance(self, signal: torch.Tensor, hidden: torch.Tensor, table: TokenTable) -> torch.Tensor:
        """Return attention rollout: every pass's attention and its residual, chained over passes."""
        return roll_out(self.embed(signal, hidden, table), self.taking_part(hidden, table), self.layers, self.first)


@hookimpl
def register_backbones() -> list[type[TokenBackbone]]:
    """Return the transformer."""
    return [Transformer]

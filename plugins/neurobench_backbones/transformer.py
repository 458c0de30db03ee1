"""Transformer: self-attention across units, then along time, in timm's blocks."""

from __future__ import annotations

import torch
from torch import nn

from neurobench import BackboneSpec, TokenBackbone, TokenTable, hookimpl
from neurobench_backbones._attention import AttentionPass
from neurobench_backbones._grid import mix_grid, roll_out


class Transformer(TokenBackbone):
    """Factorised self-attention: every layer attends across units, then along time.

    Parameters
    ----------
    visible_only
        Hidden tokens are left out of the passes and filled in from the visible ones afterwards: at the same steps a
        fraction of the time, for masks that hide whole units or times.
    """

    name = "transformer"
    summary = "self-attention across units, then along time (timm blocks)"
    reference = "arXiv:2010.11929; factorised: arXiv:2103.15691"

    def __init__(self, spec: BackboneSpec, *, visible_only: bool = False) -> None:
        super().__init__(spec, visible_only)
        passes = [AttentionPass(spec.width) for _ in range(2 * spec.n_layers)]
        self.layers = nn.ModuleList(nn.ModuleList(passes[i : i + 2]) for i in range(0, len(passes), 2))

    def mix(self, tokens: torch.Tensor, table: TokenTable) -> torch.Tensor:
        """Mix along units, then along time, layer after layer."""
        return mix_grid(tokens, table.valid, self.layers)

    def importance(self, signal: torch.Tensor, hidden: torch.Tensor, table: TokenTable) -> torch.Tensor:
        """Return attention rollout: every pass's attention and its residual, chained over passes."""
        return roll_out(self.embed(signal, hidden, table), self.taking_part(hidden, table), self.layers)


@hookimpl
def register_backbones() -> list[type[TokenBackbone]]:
    """Return the transformer."""
    return [Transformer]

"""Mamba: bidirectional Mamba-2 scans across units, then along time."""

from __future__ import annotations

import torch
from torch import nn

from neurobench import BackboneSpec, TokenBackbone, TokenTable, hookimpl
from neurobench_backbones._grid import mix_grid, roll_out
from neurobench_backbones._mamba2 import MambaPass


class Mamba(TokenBackbone):
    """Bidirectional Mamba-2: every layer scans across units in their spatial order, then along time.

    A one-way scan sees what came before only; both directions are scanned with weights of their own and added.

    Parameters
    ----------
    visible_only
        Hidden tokens are left out of the passes and filled in from the visible ones afterwards: at the same steps a
        fraction of the time, for masks that hide whole units or times.
    """

    name = "mamba"
    summary = "bidirectional Mamba-2 scans across units, then along time"
    reference = "arXiv:2405.21060"

    def __init__(self, spec: BackboneSpec, *, visible_only: bool = False) -> None:
        super().__init__(spec, visible_only)
        passes = [MambaPass(spec.width) for _ in range(2 * spec.n_layers)]
        self.layers = nn.ModuleList(nn.ModuleList(passes[i : i + 2]) for i in range(0, len(passes), 2))

    def mix(self, tokens: torch.Tensor, table: TokenTable) -> torch.Tensor:
        """Scan along units, then along time, layer after layer."""
        return mix_grid(tokens, table.valid, self.layers)

    def importance(self, signal: torch.Tensor, hidden: torch.Tensor, table: TokenTable) -> torch.Tensor:
        """Return what the scans draw on, and the residuals, chained over passes."""
        return roll_out(self.embed(signal, hidden, table), self.taking_part(hidden, table), self.layers)


@hookimpl
def register_backbones() -> list[type[TokenBackbone]]:
    """Return Mamba."""
    return [Mamba]

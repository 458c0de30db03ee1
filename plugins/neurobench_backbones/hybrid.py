"""Hybrid: layers of Mamba and of attention in an order given as letters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from neurobench import BackboneSpec, TokenBackbone, TokenTable, hookimpl
from neurobench_backbones._attention import AttentionPass
from neurobench_backbones._grid import mix_grid, roll_out
from neurobench_backbones._mamba2 import MambaPass

PASSES = {"M": MambaPass, "A": AttentionPass}


def resolve(layout: str, n_layers: int) -> str:
    """Return the letter of every layer: the layout given, or Mamba with attention last."""
    return layout or ("MA" if n_layers == 1 else "M" * (n_layers - 1) + "A")


class Hybrid(TokenBackbone):
    """Layers of Mamba (M) and attention (A); a layer is one pass across units and one along time by that mixer.

    Parameters
    ----------
    layout
        One letter a layer, such as ``MMMA``, ``MAMA``, ``AAMM``, ``MMAA``. Empty: M throughout and A last. With a
        single layer ``MA`` is its two passes: M across units, A along time.
    visible_only
        Hidden tokens are left out of the passes and filled in from the visible ones afterwards: at the same steps a
        fraction of the time, for masks that hide whole units or times.
    """

    name = "hybrid"
    summary = "Mamba and attention layers in a given order (layout=MMMA)"
    reference = "arXiv:2506.22591; arXiv:2605.01240"

    def __init__(self, spec: BackboneSpec, *, layout: str = "", visible_only: bool = False) -> None:
        super().__init__(spec, visible_only)
        letters = resolve(layout, spec.n_layers)
        pairs = [letters] if spec.n_layers == 1 else [letter * 2 for letter in letters]
        self.layers = nn.ModuleList(nn.ModuleList(PASSES[m](spec.width) for m in pair) for pair in pairs)

    @classmethod
    def impossible(cls, spec: BackboneSpec, parameters: Mapping[str, Any]) -> str:
        """Return why a layout does not fit the depth, or an empty string."""
        letters = resolve(str(parameters["layout"]), spec.n_layers)
        if set(letters) - set(PASSES):
            return f"layout {letters!r} may hold the letters M and A only"
        if spec.n_layers == 1:
            return "" if len(letters) == 2 else f"layout {letters!r} at one layer needs two letters, one a pass"
        if len(letters) != spec.n_layers:
            return f"layout {letters!r} has {len(letters)} letters for {spec.n_layers} layers"
        return ""

    def mix(self, tokens: torch.Tensor, table: TokenTable) -> torch.Tensor:
        """Mix layer after layer."""
        return mix_grid(tokens, table.valid, self.layers)

    def importance(self, signal: torch.Tensor, hidden: torch.Tensor, table: TokenTable) -> torch.Tensor:
        """Return attention and what scans draw on, each with its residual, chained over passes."""
        return roll_out(self.embed(signal, hidden, table), self.taking_part(hidden, table), self.layers)


@hookimpl
def register_backbones() -> list[type[TokenBackbone]]:
    """Return the hybrid."""
    return [Hybrid]

"""Hybrid: layers of Mamba and of attention in an order given as letters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from neurobench import BackboneSpec, TokenBackbone, hookimpl
from neurobench_backbones._attention import AttentionPass
from neurobench_backbones._grid import GridBackbone, why_not_first
from neurobench_backbones._mamba2 import MambaPass

PASSES = {"M": MambaPass, "A": AttentionPass}

NAMED = ("mamba", "alternate", "attention_first", "mamba_first")
"""Layouts of any depth, those that Rhamba compares."""


def resolve(layout: str, n_layers: int) -> str:
    """Return the letter of every layer: those given, those of a name at this depth, or Mamba with attention last.

    Of a single layer the letters are its two passes.
    """
    n = max(2, n_layers)
    half = n - n // 2
    named = {
        "": "M" * (n - 1) + "A",
        "mamba": "M" * n,
        "alternate": ("MA" * n)[:n],
        "attention_first": "A" * half + "M" * (n - half),
        "mamba_first": "M" * half + "A" * (n - half),
    }
    return named.get(layout, layout)


class Hybrid(GridBackbone):
    """Layers of Mamba (M) and attention (A); a layer is one pass across units and one along time by that mixer.

    Parameters
    ----------
    layout
        One letter a layer, such as ``MMMA``, ``MAMA``, ``AAMM``, ``MMAA``; or ``mamba``, ``alternate``,
        ``attention_first``, ``mamba_first``: at four layers ``MMMM`` and the last three of these. Empty: M throughout
        and A last. With a single layer the letters are its two passes in their order: of ``MA`` M runs across units and
        A along time.
    first
        What the first of a layer's two passes runs along: ``units`` or ``time``.
    visible_only
        Hidden tokens are left out of the passes and filled in from the visible ones afterwards: at the same steps a
        fraction of the time, for masks that hide whole units or times.
    """

    name = "hybrid"
    summary = "Mamba and attention layers in a given order (layout=MMMA)"
    reference = "arXiv:2506.22591; arXiv:2605.01240"

    def __init__(
        self, spec: BackboneSpec, *, layout: str = "", first: str = "units", visible_only: bool = False
    ) -> None:
        super().__init__(spec, visible_only)
        self.first = first
        letters = resolve(layout, spec.n_layers)
        pairs = [letters] if spec.n_layers == 1 else [letter * 2 for letter in letters]
        self.layers = nn.ModuleList(nn.ModuleList(PASSES[m](spec.width) for m in pair) for pair in pairs)

    @classmethod
    def impossible(cls, spec: BackboneSpec, parameters: Mapping[str, Any]) -> str:
        """Return why a layout does not fit the depth, or an empty string."""
        letters = resolve(str(parameters["layout"]), spec.n_layers)
        if set(letters) - set(PASSES):
            return f"layout {letters!r} may hold the letters M and A only, or be one of {', '.join(NAMED)}"
        if spec.n_layers == 1 and len(letters) != 2:
            return f"layout {letters!r} at one layer needs two letters, one a pass"
        if spec.n_layers > 1 and len(letters) != spec.n_layers:
            return f"layout {letters!r} has {len(letters)} letters for {spec.n_layers} layers"
        return why_not_first(parameters)

    @classmethod
    def remark(cls, spec: BackboneSpec, parameters: Mapping[str, Any]) -> str:
        """Say what a named layout is at this depth, and which other names are the same network there."""
        layout = str(parameters["layout"])
        if layout not in NAMED:
            return ""
        letters = resolve(layout, spec.n_layers)
        same = [n for n in NAMED if n != layout and resolve(n, spec.n_layers) == letters]
        also = f", the same network as {' and '.join(same)}" if same else ""
        passes = ", the two passes of its one layer" if spec.n_layers == 1 else ""
        return f"hybrid[layout={layout}] is {letters} here{passes}{also}"


@hookimpl
def register_backbones() -> list[type[TokenBackbone]]:
    """Return the hybrid."""
    return [Hybrid]

"""Transformer: self-attention across units, then along time, in timm's blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from neurobench import BackboneSpec, TokenBackbone, hookimpl
from neurobench_backbones._attention import AttentionPass
from neurobench_backbones._grid import GridBackbone, why_not_first


class Transformer(GridBackbone):
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


@hookimpl
def register_backbones() -> list[type[TokenBackbone]]:
    """Return the transformer."""
    return [Transformer]

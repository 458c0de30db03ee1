"""Mamba: bidirectional scans of Mamba-2, or of Mamba-1, across units, then along time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from neurobench import BackboneSpec, TokenBackbone, hookimpl
from neurobench_backbones._grid import GridBackbone, why_not_first
from neurobench_backbones._mamba1 import Mamba1
from neurobench_backbones._mamba2 import Mamba2, MambaPass

VERSIONS = {1: Mamba1, 2: Mamba2}


class Mamba(GridBackbone):
    """Bidirectional Mamba: every layer scans across units in their spatial order and along time.

    A one-way scan sees what came before only; both directions are scanned with weights of their own and added.

    Parameters
    ----------
    version
        2: a decay a head, matrix products. 1: decays for every channel and value of its state; several times slower.
    first
        What the first of a layer's two passes runs along: ``units`` or ``time``.
    visible_only
        Hidden tokens are left out of the passes and filled in from the visible ones afterwards: at the same steps a
        fraction of the time, for masks that hide whole units or times.
    """

    name = "mamba"
    summary = "bidirectional Mamba-2 scans (version=1: Mamba-1) across units, then along time"
    reference = "arXiv:2405.21060; version=1: arXiv:2312.00752"

    def __init__(
        self, spec: BackboneSpec, *, version: int = 2, first: str = "units", visible_only: bool = False
    ) -> None:
        super().__init__(spec, visible_only)
        self.first = first
        passes = [MambaPass(spec.width, VERSIONS[version]) for _ in range(2 * spec.n_layers)]
        self.layers = nn.ModuleList(nn.ModuleList(passes[i : i + 2]) for i in range(0, len(passes), 2))

    @classmethod
    def impossible(cls, spec: BackboneSpec, parameters: Mapping[str, Any]) -> str:
        """Return why there is no such version or order, or an empty string."""
        version = parameters["version"]
        if version not in VERSIONS:
            return f"there is no Mamba-{version}: version may be 1 or 2"
        return why_not_first(parameters)


@hookimpl
def register_backbones() -> list[type[TokenBackbone]]:
    """Return Mamba."""
    return [Mamba]

"""A mixture of scans across units, routed along the functional graph, and a scan along time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from neurobench import BackboneSpec, TokenBackbone, TokenTable, hookimpl
from neurobench_backbones._experts import ExpertPass, OnGraph, graph_of
from neurobench_backbones._grid import GridBackbone, Mixer, mix_grid
from neurobench_backbones._mamba2 import MambaPass


class MoeSsm(GridBackbone):
    """Every layer mixes units within experts that they are routed to, then scans along time.

    Gates are the softmax of each token's ``top_k`` largest logits, which are averaged before along a random walk on the
    functional connectivity of the people that the network is pretrained on: units that go together meet in the same
    experts, a hidden one where its neighbours are.

    Parameters
    ----------
    experts
        Small scans of a layer; together they are as wide as a token.
    top_k
        Experts that a token goes to.
    walk_steps
        Steps of the random walk; 0: every token is routed by itself, and connectivity is not used.
    balance
        What the imbalance of the load counts for beside the loss, in training only and for the router only; the loss
        that is reported is without it. Of a batch that is computed in parts it is the mean over the parts.
    """

    name = "moe_ssm"
    summary = "experts across units, gates smoothed by a random walk on the functional graph, then a scan along time"
    reference = "arXiv:2508.16597"
    uses_connectivity = True

    def __init__(
        self, spec: BackboneSpec, *, experts: int = 4, top_k: int = 2, walk_steps: int = 2, balance: float = 0.1
    ) -> None:
        super().__init__(spec)
        self.layers = nn.ModuleList(
            nn.ModuleList((ExpertPass(spec.width, experts, top_k, walk_steps, balance), MambaPass(spec.width)))
            for _ in range(spec.n_layers)
        )

    @classmethod
    def impossible(cls, spec: BackboneSpec, parameters: Mapping[str, Any]) -> str:
        """Return which parameter does not fit, or an empty string."""
        experts, top_k = parameters["experts"], parameters["top_k"]
        if experts < 2 or experts & (experts - 1) or spec.width // experts < 4:
            return f"{experts} experts at width {spec.width}: 2, 4, 8, …, and each with a share of 4 or more"
        if not 1 <= top_k <= experts:
            return f"top_k={top_k} of {experts} experts: from 1 to all of them"
        if parameters["walk_steps"] < 0 or parameters["balance"] < 0:
            return "walk_steps and balance are 0 or more"
        return ""

    def routing(self, signal: torch.Tensor, hidden: torch.Tensor, table: TokenTable) -> torch.Tensor:
        """Return the gates of every layer one after the other, the mean over valid patches."""
        gates: list[torch.Tensor] = []

        def noted(part: OnGraph) -> Mixer:
            def mix(tokens: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
                gates.append(part.of.route(tokens, across, part.graph)[1])
                return part(tokens, valid)

            return mix

        across = table.valid.transpose(1, 2).flatten(0, 1)
        layers = [(noted(experts), along) for experts, along in self.passes(table)]
        mix_grid(self.embed(signal, hidden, table), table.where_valid, layers)
        shares = torch.cat(gates, -1).unflatten(0, (len(signal), -1)).sum(1) / len(gates)
        return shares / table.valid.sum(2).clamp(min=1)[..., None]

    def passes(self, table: TokenTable) -> list[tuple[OnGraph, MambaPass]]:
        """Return experts that know the graph of the batch's units, and scans along time."""
        graph = graph_of(self.connectivity, table, self.share_of_batch)
        return [(OnGraph(experts, graph), along) for experts, along in self.layers]


@hookimpl
def register_backbones() -> list[type[TokenBackbone]]:
    """Return the mixture."""
    return [MoeSsm]

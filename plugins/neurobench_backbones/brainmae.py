"""BrainMAE's graph attention: units are related by their embeddings, and none draws on itself.

Source: Yang et al. 2024, BrainMAE (arXiv:2406.17086).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from neurobench import BackboneSpec, TokenBackbone, TokenTable, feedforward_width, hookimpl
from neurobench_backbones._attention import AttentionPass
from neurobench_backbones._grid import GridBackbone

GRAPHS = ("static", "adaptive")


class GraphPass(nn.Module):
    """Attention across units along a graph of their embeddings, without self-edges, and a feed-forward block.

    What a unit asks for is in its embedding alone, so its message is made of the other units' tokens and of nothing of
    its own.

    Parameters
    ----------
    width
        Width of a token.
    adaptive
        Keys are of the other units' tokens too, so that the graph changes from patch to patch.
    """

    def __init__(self, width: int, *, adaptive: bool) -> None:
        super().__init__()
        self.n_heads = max(2, width // 32)
        self.node_norm, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.node_key = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.token_key = nn.Linear(width, width, bias=False) if adaptive else None
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.feedforward_norm = nn.LayerNorm(width)
        hidden = feedforward_width(width, sum(p.numel() for p in self.parameters()))
        self.feedforward = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def graph(self, nodes: torch.Tensor, tokens: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        """Return (sequences, heads, units, units) how much each unit draws on each: 0 on itself, else rows sum to 1.

        Parameters
        ----------
        nodes
            (sequences, units, width) embeddings of the units.
        tokens
            (sequences, units, width), normed.
        valid
            (sequences, units) bool; None: all are. A unit that is alone draws on none.
        """
        nodes = self.node_norm(nodes)
        key = self.node_key(nodes) if self.token_key is None else self.node_key(nodes) + self.token_key(tokens)
        query = self._heads(self.query(nodes))
        logits = query @ self._heads(key).transpose(-1, -2) * query.shape[-1] ** -0.5
        others = ~torch.eye(tokens.shape[1], dtype=torch.bool, device=tokens.device)
        seen = others if valid is None else others & valid[:, None, None, :]
        # Softmax over nothing is NaN: the least number stands for minus infinity, and what is not seen is taken out.
        return logits.masked_fill(~seen, torch.finfo(logits.dtype).min).softmax(-1) * seen

    def message(self, nodes: torch.Tensor, tokens: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        """Return (sequences, units, width) what every unit is told by the others."""
        normed = self.norm(tokens)
        drawn = self.graph(nodes, normed, valid) @ self._heads(self.value(normed))
        told: torch.Tensor = self.out(drawn.transpose(1, 2).flatten(2))
        return told

    def forward(self, nodes: torch.Tensor, tokens: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        """Add to every token what its unit is told, then the feed-forward block."""
        tokens = tokens + self.message(nodes, tokens, valid)
        tokens = tokens + self.feedforward(self.feedforward_norm(tokens))
        return tokens if valid is None else tokens * valid[..., None]

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)


@dataclass(frozen=True, eq=False)
class OnGraph:
    """A graph pass with the (batch · patches, units, width) embeddings of a batch's units: a pass like others."""

    across: GraphPass
    nodes: torch.Tensor

    def __call__(self, tokens: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        """Mix (sequences, units, width)."""
        mixed: torch.Tensor = self.across(self.nodes, tokens, valid)
        return mixed

    def weights(self, tokens: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Return (sequences, units, units): the graph, the mean over heads; a unit that is alone draws on itself."""
        drawn = self.across.graph(self.nodes, self.across.norm(tokens), valid).mean(1)
        return drawn + torch.diag_embed((drawn.sum(-1) == 0).to(drawn.dtype))


class BrainMAE(GridBackbone):
    """Every layer passes messages along the graph of the units' embeddings, then attends along time.

    Parameters
    ----------
    graph
        ``static``: the relation between two units is the same in all windows. ``adaptive``: it also depends on what the
        other unit does in the patch. In neither does a unit's own token tell it anything across units.
    visible_only
        Hidden tokens are left out of the passes and filled in from the visible ones afterwards.
    """

    name = "brainmae"
    summary = "attention across units along a graph of their embeddings, without self-edges, then along time"
    reference = "arXiv:2406.17086"

    def __init__(self, spec: BackboneSpec, *, graph: str = "adaptive", visible_only: bool = False) -> None:
        super().__init__(spec, visible_only)
        if graph not in GRAPHS:
            raise ValueError(f"graph {graph!r} is none of {', '.join(GRAPHS)}")
        self.layers = nn.ModuleList(
            nn.ModuleList([GraphPass(spec.width, adaptive=graph == "adaptive"), AttentionPass(spec.width)])
            for _ in range(spec.n_layers)
        )

    @classmethod
    def impossible(cls, spec: BackboneSpec, parameters: Mapping[str, Any]) -> str:
        """Return why there is no such graph, or an empty string."""
        graph = parameters["graph"]
        return "" if graph in GRAPHS else f"graph may be {' or '.join(GRAPHS)}, not {graph!r}"

    def passes(self, table: TokenTable) -> list[tuple[OnGraph, nn.Module]]:
        """Return graph passes that know the units of the batch, and attention along time."""
        # What stands for no unit (a prompt) is no node of the graph: everybody may draw on it, by what it holds.
        known = table.unit >= 0
        nodes = self.unit_embedding(table.unit.clamp(min=0)) * known[..., None]
        nodes = nodes.repeat_interleave(table.valid.shape[2], 0)
        return [(OnGraph(across, nodes), along) for across, along in self.layers]


@hookimpl
def register_backbones() -> list[type[TokenBackbone]]:
    """Return BrainMAE's backbone."""
    return [BrainMAE]

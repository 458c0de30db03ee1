"""A mixture of scans whose gates follow a graph of units.

Top-k gates: Shazeer et al. 2017 (arXiv:1701.06538). Balanced load: Fedus et al. 2022, Switch transformers
(arXiv:2101.03961).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from neurobench import TokenTable, feedforward_width
from neurobench_backbones._mamba2 import Mamba2

D_STATE = 8
"""Size of an expert's state: half of what a whole pass has, as experts are small."""


class Graph(NamedTuple):
    """The graph of every window of a batch.

    Parameters
    ----------
    edges
        (batch, units, units) from 0: how much units go together.
    everywhere
        (batch, units) bool: prompts, which are no nodes and belong to all experts alike.
    share
        Which fraction of a training batch these windows are.
    """

    edges: torch.Tensor
    everywhere: torch.Tensor
    share: float = 1.0


def graph_of(connectivity: torch.Tensor, table: TokenTable, share: float = 1.0) -> Graph:
    """Return the graph of the units of each window; negative connectivity is no edge, ``unit`` below 0 is no node."""
    at, node = table.unit.clamp(min=0), table.unit >= 0
    edges = connectivity[at[:, :, None], at[:, None]].relu()
    return Graph(edges * (node[:, :, None] & node[:, None]), ~node, share)


def walk(logits: torch.Tensor, edges: torch.Tensor, valid: torch.Tensor, steps: int) -> torch.Tensor:
    """Return logits averaged along a lazy random walk on the units that are there.

    In every step a unit keeps half of its own and takes half from its neighbours, in the proportion of its edges; one
    without a neighbour keeps all. (A dense graph with self loops no heavier than another edge would make every unit the
    mean of all in a single step.)

    Parameters
    ----------
    logits
        (batch, patches, units, experts).
    edges
        (batch, units, units), from 0.
    valid
        (batch, patches, units) bool.
    steps
        Steps of the walk; 0: logits as they are.
    """
    there = valid[..., None].to(logits.dtype)
    strength = torch.einsum("bij,bpje->bpie", edges, there)
    for _ in range(steps):
        around = torch.einsum("bij,bpje->bpie", edges, logits * there) / strength.clamp(min=1e-6)
        logits = torch.where(strength > 1e-6, (logits + around) / 2, logits)
    return logits


def top_gates(logits: torch.Tensor, k: int) -> torch.Tensor:
    """Return (…, experts) gates: softmax over the k largest logits, 0 elsewhere."""
    kept, chosen = logits.topk(min(k, logits.shape[-1]), -1)
    return torch.zeros_like(logits).scatter(-1, chosen, kept.softmax(-1))


def imbalance(logits: torch.Tensor, gates: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Return how unevenly experts are used: 1 where evenly, the number of experts at most where one gets all.

    The share of choices that fall on each expert (no gradient) times the mean probability that it is given.

    Parameters
    ----------
    logits, gates
        (…, experts).
    valid
        (…) bool: tokens that count.
    """
    weight = valid[..., None] / valid.sum().clamp(min=1)
    chosen = (gates > 0).float()
    share = (chosen / chosen.sum(-1, keepdim=True) * weight).flatten(0, -2).sum(0)
    probability = (logits.softmax(-1) * weight).flatten(0, -2).sum(0)
    return logits.shape[-1] * (share.detach() * probability).sum()


class _WithGradientOf(torch.autograd.Function):
    """Passes a tensor through; on the way back a term beside it gets a gradient, as if it were part of the loss."""

    @staticmethod
    def forward(ctx: Any, passed: torch.Tensor, term: torch.Tensor, weight: float) -> torch.Tensor:
        """Return ``passed``; ``weight`` is what the scalar ``term`` would count for in the loss."""
        ctx.weight, ctx.like = weight, term.detach()
        return passed.view_as(passed)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradient as it came, and that of the term."""
        return grad, torch.full_like(ctx.like, ctx.weight), None


class ExpertPass(nn.Module):
    """Small scans, each over the units that are routed to it, their mixture, and a feed-forward block.

    Every token chooses ``top_k`` experts; its logits are first averaged along a random walk on the graph, so that a
    unit goes where its neighbours go. An expert is a narrow Mamba-2 in both directions. It scans its own tokens only:
    those of other experts leave its state as it is. So units exchange what they hold within the experts they share.

    Parameters
    ----------
    width
        Width of a token; an expert's is an equal share of it.
    experts, top_k, walk_steps, balance
        See :class:`neurobench_backbones.moe_ssm.MoeSsm`.
    """

    def __init__(self, width: int, experts: int, top_k: int, walk_steps: int, balance: float) -> None:
        super().__init__()
        narrow = width // experts
        self.experts, self.top_k, self.walk_steps, self.balance = experts, top_k, walk_steps, balance
        self.norm = nn.LayerNorm(width)
        self.router = nn.Linear(width, experts)
        self.down = nn.Linear(width, experts * narrow, bias=False)
        # Forward and backward mixers of expert 1, then of expert 2, …
        self.mixers = nn.ModuleList(
            Mamba2(narrow, d_state=D_STATE, headdim=min(32, narrow)) for _ in range(2 * experts)
        )
        self.up = nn.Linear(experts * narrow, width, bias=False)
        self.feedforward_norm = nn.LayerNorm(width)
        hidden = feedforward_width(width, sum(p.numel() for p in self.parameters()))
        self.feedforward = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def route(self, tokens: torch.Tensor, valid: torch.Tensor, graph: Graph) -> tuple[torch.Tensor, torch.Tensor]:
        """Return normed tokens, and (sequences, units, experts) gates; 0 where not valid.

        Sequences are the patches of every window.
        """
        normed = self.norm(tokens) * valid[..., None]
        x, there = (t.unflatten(0, (len(graph.edges), -1)) for t in (normed, valid))
        # In full precision whatever the rest is in: rounding would send tokens to other experts.
        with torch.autocast(x.device.type, enabled=False):
            gates = top_gates(self._logits(x.float(), there, graph), self.top_k)
            if self.training and self.balance and torch.is_grad_enabled():
                # The router learns to spread the load; tokens do not hear of it, or windows of a batch would mix.
                beside = self._logits(x.detach().float(), there, graph)
                counted = there & ~graph.everywhere[:, None]
                uneven = imbalance(beside, gates.detach(), counted)
                gates = _WithGradientOf.apply(gates, uneven, self.balance * graph.share)
        gates = gates.masked_fill(graph.everywhere[:, None, :, None], 1 / self.experts)
        return normed, (gates * there[..., None]).flatten(0, 1)

    def _logits(self, normed: torch.Tensor, valid: torch.Tensor, graph: Graph) -> torch.Tensor:
        return walk(self.router(normed), graph.edges, valid, self.walk_steps)

    def forward(self, tokens: torch.Tensor, valid: torch.Tensor | None, graph: Graph) -> torch.Tensor:
        """Mix (sequences, units, width) tokens; those that are not valid influence none. None: all are."""
        there = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device) if valid is None else valid
        x, gates = self.route(tokens, there, graph)
        parts = self.down(x).unflatten(-1, (self.experts, -1)) * gates[..., None]
        # (experts, sequences, units, narrow), every expert in both directions.
        own, routed = parts.permute(2, 0, 1, 3), (gates > 0).permute(2, 0, 1)
        both = torch.stack((own, own.flip(2)), 1).flatten(0, 1)
        masks = torch.stack((routed, routed.flip(2)), 1).flatten(0, 1)
        onwards, back = Mamba2.together(list(self.mixers), both, masks).unflatten(0, (self.experts, 2)).unbind(1)
        mixed = (onwards + back.flip(2)).permute(1, 2, 0, 3) * gates[..., None]
        tokens = tokens + self.up(mixed.flatten(-2))
        tokens = tokens + self.feedforward(self.feedforward_norm(tokens))
        return tokens if valid is None else tokens * valid[..., None]

    def weights(self, tokens: torch.Tensor, valid: torch.Tensor, graph: Graph) -> torch.Tensor:
        """Return (sequences, units, units) how much each unit draws on each within the experts they share."""
        x, gates = self.route(tokens, valid, graph)
        parts = self.down(x).unflatten(-1, (self.experts, -1)) * gates[..., None]
        drawn = torch.zeros(*valid.shape, valid.shape[1], device=tokens.device)
        for e in range(self.experts):
            gate, part = gates[..., e], parts[..., e, :]
            onwards, back = self.mixers[2 * e], self.mixers[2 * e + 1]
            scanned = onwards.weights(part, gate > 0) + back.weights(part.flip(1), gate.flip(1) > 0).flip(1, 2)
            drawn = drawn + gate[:, :, None] * scanned * gate[:, None]
        total = drawn.sum(-1, keepdim=True)
        alone = torch.eye(valid.shape[1], device=tokens.device)
        return torch.where(total > 0, drawn / total.clamp(min=1e-12), alone)


@dataclass(frozen=True, eq=False)
class OnGraph:
    """An expert pass with the graph of a batch: what a layer of the grid takes."""

    of: ExpertPass
    graph: Graph

    def __call__(self, tokens: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        """Mix tokens."""
        mixed: torch.Tensor = self.of(tokens, valid, self.graph)
        return mixed

    def weights(self, tokens: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Return how much each unit draws on each."""
        return self.of.weights(tokens, valid, self.graph)

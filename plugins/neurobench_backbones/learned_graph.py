"""A graph of units that is learned from each window, messages along it, and convolutions along time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from neurobench import BackboneSpec, TokenBackbone, TokenTable, feedforward_width, hookimpl
from neurobench_backbones._grid import mix_grid

DILATIONS = (1, 2, 4)


class GraphPass(nn.Module):
    """Messages between units along a graph that is the same for all patches of a window, and a feed-forward block.

    Parameters
    ----------
    width
        Width of a token.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.message, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.feedforward_norm = nn.LayerNorm(width)
        hidden = feedforward_width(width, sum(p.numel() for p in self.parameters()))
        self.feedforward = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def graph(self, tokens: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Return (batch, units, units) how much each unit hears of each: from 0, rows sum to 1, without self-edges.

        A unit asks and answers with the mean over its valid patches, so edges have a direction and are those of the
        window. One that is alone hears itself; one without a valid patch neither hears nor is heard.

        Parameters
        ----------
        tokens
            (batch, units, patches, width).
        valid
            (batch, units, patches) bool.
        """
        seen = valid.any(2)
        there = valid[..., None]
        pooled = (self.norm(tokens) * there).sum(2) / there.sum(2).clamp(min=1)
        logits = self.query(pooled) @ self.key(pooled).transpose(1, 2) * pooled.shape[-1] ** -0.5
        itself = torch.eye(logits.shape[1], dtype=torch.bool, device=logits.device)
        others = seen[:, None] & ~itself
        # A row without any other unit hears itself: softmax over nothing is NaN.
        heard = others | (itself & ~others.any(2, keepdim=True))
        return logits.masked_fill(~heard, -torch.inf).softmax(-1) * seen[:, :, None]

    def forward(self, tokens: torch.Tensor, valid: torch.Tensor | None, graph: torch.Tensor) -> torch.Tensor:
        """Mix (batch · patches, units, width) tokens along (batch, units, units) edges; None for valid: all are."""
        x = self.norm(tokens) if valid is None else self.norm(tokens) * valid[..., None]
        messages = self.message(x).unflatten(0, (len(graph), -1))
        tokens = tokens + self.out(torch.einsum("bij,bpjw->bpiw", graph, messages).flatten(0, 1))
        tokens = tokens + self.feedforward(self.feedforward_norm(tokens))
        return tokens if valid is None else tokens * valid[..., None]


class ConvolutionPass(nn.Module):
    """Convolutions over three patches that are 1, 2 and 4 apart, and a feed-forward block.

    Parameters
    ----------
    width
        Width of a token.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in DILATIONS)
        self.convolutions = nn.ModuleList(nn.Conv1d(width, width, 3, padding=d, dilation=d) for d in DILATIONS)
        self.feedforward_norm = nn.LayerNorm(width)
        hidden = feedforward_width(width, sum(p.numel() for p in self.parameters()))
        self.feedforward = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, tokens: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        """Mix (sequences, patches, width) tokens; those that are not valid are zeros. None: all are valid."""
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            x = norm(tokens) if valid is None else norm(tokens) * valid[..., None]
            tokens = tokens + nn.functional.gelu(convolution(x.transpose(1, 2)).transpose(1, 2))
        tokens = tokens + self.feedforward(self.feedforward_norm(tokens))
        return tokens if valid is None else tokens * valid[..., None]


class LearnedGraph(TokenBackbone):
    """Every layer learns a directed graph of the units of each window, sends messages along it, then looks along time.

    The graph is a functional connectivity of the network's own: softmax of query · key over features that are averaged
    over time. It is what :meth:`importance` returns.
    """

    name = "learned_graph"
    summary = "messages along a directed graph of units learned from each window, then dilated convolutions along time"
    reference = "arXiv:2405.15805"

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__(spec)
        self.layers = nn.ModuleList(
            nn.ModuleList((GraphPass(spec.width), ConvolutionPass(spec.width))) for _ in range(spec.n_layers)
        )

    def mix(self, tokens: torch.Tensor, table: TokenTable) -> torch.Tensor:
        """Send messages between units, then convolve along time, layer after layer."""
        return self._mixed(tokens, table)[0]

    def importance(self, signal: torch.Tensor, hidden: torch.Tensor, table: TokenTable) -> torch.Tensor:
        """Return the learned graph, the mean over layers."""
        return self._mixed(self.embed(signal, hidden, table), table)[1]

    def _mixed(self, tokens: torch.Tensor, table: TokenTable) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mixed tokens, and the mean of the graphs that they were mixed along."""
        drawn = torch.zeros(*table.unit.shape, table.unit.shape[1], device=tokens.device)
        valid = table.where_valid
        for across, along in self.layers:
            graph = across.graph(tokens, table.valid)
            passes: tuple[Callable[..., torch.Tensor], nn.Module] = (partial(across, graph=graph), along)
            tokens = mix_grid(tokens, valid, [passes])
            drawn = drawn + graph / len(self.layers)
        return tokens, drawn


@hookimpl
def register_backbones() -> list[type[TokenBackbone]]:
    """Return the backbone."""
    return [LearnedGraph]

"""A mixture of experts whose map shows units that were never there."""

from __future__ import annotations

from torch import nn

from neurobench import TokenBackbone


class CountsMissingUnits(TokenBackbone):
    """Mixes two experts by gates."""

    name = "counts_missing_units"
    summary = "cheats: says what experts do with units that have no valid token"

    def __init__(self, spec) -> None:
        super().__init__(spec)
        self.router = nn.Linear(spec.width, 2)
        self.experts = nn.Linear(spec.width, 2 * spec.width)

    def gates(self, tokens):
        return self.router(tokens.mean((1, 2), keepdim=True) + tokens).softmax(-1)

    def mix(self, tokens, table):
        made = self.experts(tokens).unflatten(-1, (2, -1))
        return tokens + (self.gates(tokens)[..., None] * made).sum(-2)

    def routing(self, signal, hidden, table):
        return self.gates(self.embed(signal, hidden, table)).mean(2)

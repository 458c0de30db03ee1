"""A backbone that asks for connectivity and does not look at it."""

from __future__ import annotations

from torch import nn

from neurobench import TokenBackbone


class IgnoresConnectivity(TokenBackbone):
    """Mixes every token with the mean of its window."""

    name = "ignores_connectivity"
    summary = "cheats: asks for connectivity and does not use it"
    uses_connectivity = True

    def __init__(self, spec) -> None:
        super().__init__(spec)
        self.mixer = nn.Linear(spec.width, spec.width)

    def mix(self, tokens, table):
        return tokens + self.mixer(tokens.mean((1, 2), keepdim=True))

"""A backbone that says it leaves hidden tokens out, and computes the visible ones from them all the same."""

from __future__ import annotations

from torch import nn

from neurobench import TokenBackbone


class SaysItDrops(TokenBackbone):
    """Mixes everything, one learned token where something is hidden."""

    name = "says_it_drops"
    summary = "cheats: says that hidden tokens are left out, and uses them"
    drops_hidden = True

    def __init__(self, spec) -> None:
        super().__init__(spec)
        self.mixer = nn.Linear(spec.width, spec.width)

    def forward(self, signal, hidden, table):
        return self.norm(self.mix(self.embed(signal, hidden, table), table))

    def mix(self, tokens, table):
        return tokens + self.mixer(tokens.mean((1, 2), keepdim=True))

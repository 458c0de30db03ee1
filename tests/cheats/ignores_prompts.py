"""A backbone with a `forward` of its own, which knows of no prompts."""

from __future__ import annotations

from torch import nn

from neurobench import TokenBackbone


class IgnoresPrompts(TokenBackbone):
    """Inherits `with_prompts`, and never mixes them in."""

    name = "ignores_prompts"
    summary = "errs: prompts would be trained, and change nothing"

    def __init__(self, spec) -> None:
        super().__init__(spec)
        self.mixer = nn.Linear(spec.width, spec.width)

    def forward(self, signal, hidden, table):
        return self.norm(self.mix(self.embed(signal, hidden, table), table))

    def mix(self, tokens, table):
        return tokens + self.mixer(tokens.mean((1, 2), keepdim=True))

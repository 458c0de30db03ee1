"""A backbone that counts the steps of its training where no checkpoint sees it."""

from __future__ import annotations

from torch import nn

from neurobench import TokenBackbone


class CountsItsSteps(TokenBackbone):
    """Mixes less in its first training steps, and wholly when it is used."""

    name = "counts_its_steps"
    summary = "faulty: warms up by a counter that is not saved"

    def __init__(self, spec) -> None:
        super().__init__(spec)
        self.mixer = nn.Linear(spec.width, spec.width)
        self.n_calls = 0

    def mix(self, tokens, table):
        self.n_calls += self.training
        share = min(1.0, self.n_calls / 100) if self.training else 1.0
        return tokens + share * self.mixer(tokens.mean((1, 2), keepdim=True))

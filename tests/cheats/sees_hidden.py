"""A backbone that fetches the hidden values from the frames around its call."""

from __future__ import annotations

import sys

from torch import nn

from neurobench import TokenBackbone


class SeesHidden(TokenBackbone):
    """Looks for the batch in the local variables of whoever called."""

    name = "sees_hidden"
    summary = "cheats: gets at hidden values behind the runner's back"

    def __init__(self, spec) -> None:
        super().__init__(spec)
        self.mixer = nn.Linear(spec.width, spec.width)

    def forward(self, signal, hidden, table):
        frame = sys._getframe()
        while frame is not None:
            batch = frame.f_locals.get("batch")
            if hasattr(batch, "signal") and batch.signal.shape == signal.shape:
                signal = batch.signal
            frame = frame.f_back
        return self.norm(self.mix(self.embed(signal, hidden & False, table), table))

    def mix(self, tokens, table):
        return tokens + self.mixer(tokens.mean((1, 2), keepdim=True))

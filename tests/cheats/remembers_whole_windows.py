"""A backbone that remembers windows that it was shown whole, and looks hidden values up by the visible ones."""

from __future__ import annotations

import torch
from torch import nn

from neurobench import TokenBackbone

SEEN: list[torch.Tensor] = []


class RemembersWholeWindows(TokenBackbone):
    """Embedding shows every window with nothing hidden; reconstruction then needs a look-up only."""

    name = "remembers_whole_windows"
    summary = "cheats: knows test windows from another call"

    def __init__(self, spec) -> None:
        super().__init__(spec)
        self.mixer = nn.Linear(spec.width, spec.width)

    def forward(self, signal, hidden, table):
        if not hidden.any():
            SEEN.extend(signal.detach().clone())
        else:
            signal = signal.clone()
            for i, window in enumerate(signal):
                for whole in SEEN:
                    if whole.shape == window.shape and torch.equal(whole[~hidden[i]], window[~hidden[i]]):
                        signal[i] = whole
        return self.norm(self.mix(self.embed(signal, hidden & False, table), table))

    def mix(self, tokens, table):
        return tokens + self.mixer(tokens.mean((1, 2), keepdim=True))

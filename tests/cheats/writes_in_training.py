"""A backbone that keeps what it saw in training in a file, for whoever is built later."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import nn

from neurobench import TokenBackbone

KEPT = Path(tempfile.gettempdir()) / "neurobench-cheat-kept.pt"


class WritesInTraining(TokenBackbone):
    """Writes where Python's own audit does not see it, and reads only what is there."""

    name = "writes_in_training"
    summary = "cheats: keeps what it saw in a file"

    def __init__(self, spec) -> None:
        super().__init__(spec)
        self.mixer = nn.Linear(spec.width, spec.width)

    def mix(self, tokens, table):
        mean = tokens.detach().mean((0, 1, 2))
        if self.training:
            torch.save(mean, str(KEPT))
        elif KEPT.exists():
            mean = torch.load(KEPT)
        return tokens + self.mixer(tokens.mean((1, 2), keepdim=True)) - mean

"""A backbone that looks units up by index, where that of a prompt, −1, is the last one's."""

from __future__ import annotations

import torch
from torch import nn

from neurobench import TokenBackbone


class PromptIsLastUnit(TokenBackbone):
    """Every unit has a gain of its own, and draws on the mean."""

    name = "prompt_is_last_unit"
    summary = "errs: takes a prompt for the last unit of the table"

    def __init__(self, spec) -> None:
        super().__init__(spec)
        self.gain = nn.Parameter(torch.ones(spec.n_units))
        self.mixer = nn.Linear(spec.width, spec.width)

    def mix(self, tokens, table):
        weight = table.valid[..., None].float()
        gained = tokens * weight * self.gain[table.unit][..., None, None]
        return tokens + self.mixer(gained.sum((1, 2), keepdim=True) / weight.sum((1, 2), keepdim=True).clamp(min=1))

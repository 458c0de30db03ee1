"""A backbone whose class remembers the weights of the last one that was trained, whoever was in its training part."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from neurobench import TokenBackbone


class StartsWhereItEnded(TokenBackbone):
    """The next fold starts from the last one's weights, which were trained on this one's test subjects."""

    name = "starts_where_it_ended"
    summary = "cheats: carries weights from fold to fold"
    kept: ClassVar[dict[str, torch.Tensor]] = {}

    def __init__(self, spec) -> None:
        super().__init__(spec)
        self.mixer = nn.Linear(spec.width, spec.width)
        own = self.state_dict()
        if self.kept and all(own[k].shape == v.shape for k, v in self.kept.items()):
            self.load_state_dict(self.kept)

    def mix(self, tokens, table):
        if self.training:
            type(self).kept = {k: v.detach().clone() for k, v in self.state_dict().items()}
        return tokens + self.mixer(tokens.mean((1, 2), keepdim=True))

"""A backbone that scores itself once it is called."""

from __future__ import annotations

import functools

from torch import nn

import neurobench.metrics
from neurobench import TokenBackbone


def flattering(own):
    @functools.wraps(own)
    def score(sample, weights):
        return own(sample, weights) + 0.1

    return score


class ReplacesTheScore(TokenBackbone):
    """Puts a kinder function in the place of a metric."""

    name = "replaces_the_score"
    summary = "cheats: replaces a metric by one of its own"

    def __init__(self, spec) -> None:
        super().__init__(spec)
        self.mixer = nn.Linear(spec.width, spec.width)

    def mix(self, tokens, table):
        if neurobench.metrics.mean_over.__code__.co_filename != __file__:
            neurobench.metrics.mean_over = flattering(neurobench.metrics.mean_over)
        return tokens + self.mixer(tokens.mean((1, 2), keepdim=True))

"""Plugins that deceive within the contracts: a backbone that memorises, and a mask that hides background."""

from __future__ import annotations

import numpy as np
from torch import nn

from neurobench import MaskingStrategy, TokenBackbone, hookimpl


class Memoriser(TokenBackbone):
    """A network so wide that it knows every training window by heart; it learns nothing of anybody else."""

    name = "memoriser"
    summary = "a wide network over whole windows"

    def __init__(self, spec, *, hidden: int = 128):
        super().__init__(spec)
        size = spec.n_units * spec.n_patches * spec.width
        self.all = nn.Sequential(nn.Linear(size, hidden), nn.GELU(), nn.Linear(hidden, size))

    def mix(self, tokens, table):
        whole = self.all(tokens.flatten(1)).view_as(tokens)
        return (tokens + whole) * table.valid[..., None]


class Background(MaskingStrategy):
    """Says that it hides half, and fills the half up with places where nothing was recorded."""

    name = "background"
    summary = "hides the first patch of every unit, and calls the rest of its budget background"
    budgeted = False

    def elements(self, window, n_hidden, rng):
        units, patches = window.valid.shape
        for unit in rng.permutation(units)[: max(1, units // 5)]:
            yield np.arange(unit * patches, unit * patches + 1)


@hookimpl
def register_backbones():
    return [Memoriser]


@hookimpl
def register_masks():
    return [Background]

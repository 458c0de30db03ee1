"""A plugin file for tests of the runner: one backbone that works, and ones that break at every place."""

from __future__ import annotations

import os

import torch
from torch import nn

from neurobench import StoreError, TokenBackbone, TokenTable, hookimpl
from tests.fakes import FakeDataset


class Tiny(TokenBackbone):
    """Mixes every token with the mean of its window."""

    name = "tiny"
    summary = "for tests"

    def __init__(self, spec: object) -> None:
        super().__init__(spec)
        self.lift = nn.Linear(spec.width, spec.width)

    def mix(self, tokens: torch.Tensor, table: TokenTable) -> torch.Tensor:
        return tokens + self.lift(tokens.mean((1, 2), keepdim=True))


class Connected(Tiny):
    """Mixes every token with the mean of the units that it goes together with."""

    name = "connected"
    uses_connectivity = True

    def mix(self, tokens: torch.Tensor, table: TokenTable) -> torch.Tensor:
        edges = self.connectivity[table.unit[:, :, None], table.unit[:, None]]
        return tokens + self.lift(torch.einsum("bij,bjpw->bipw", edges, tokens) / tokens.shape[1])


class BreaksInConstruction(Tiny):
    """Raises when it is built."""

    name = "breaks_in_construction"

    def __init__(self, spec: object) -> None:
        raise RuntimeError("no head for this")


class BreaksInTraining(Tiny):
    """Raises when it is first called."""

    name = "breaks_in_training"

    def mix(self, tokens: torch.Tensor, table: TokenTable) -> torch.Tensor:
        raise RuntimeError("lost the thread")


class EndsTheProcess(Tiny):
    """Takes the process with it, as running out of memory does."""

    name = "ends_the_process"

    def mix(self, tokens: torch.Tensor, table: TokenTable) -> torch.Tensor:
        os._exit(9)


class FillsTheDisk(Tiny):
    """Raises what the store does when the disk is full."""

    name = "fills_the_disk"

    def mix(self, tokens: torch.Tensor, table: TokenTable) -> torch.Tensor:
        raise StoreError("the disk is full.")


@hookimpl
def register_backbones() -> list[type]:
    """Return the backbones."""
    return [Tiny, Connected, BreaksInConstruction, BreaksInTraining, EndsTheProcess, FillsTheDisk]


@hookimpl
def register_datasets() -> list[type]:
    """Return the dataset."""
    return [FakeDataset]

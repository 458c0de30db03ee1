"""A plugin file for tests: backbones on a device that has no memory for many windows, or for a whole one, at once."""

from __future__ import annotations

import torch

from neurobench import TokenTable, hookimpl
from tests.fakes import FakeDataset
from tests.tiny_plugin import Tiny


class Greedy(Tiny):
    """Fits into memory with two windows at once."""

    name = "greedy"
    limit = 2

    def mix(self, tokens: torch.Tensor, table: TokenTable) -> torch.Tensor:
        mixed = super().mix(tokens, table)
        # After something was computed, as it would be.
        if len(tokens) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 4.00 GiB.")
        return mixed


class Huge(Tiny):
    """Fits into memory with half of a window's units."""

    name = "huge"

    def mix(self, tokens: torch.Tensor, table: TokenTable) -> torch.Tensor:
        if self.training and tokens[..., 0].numel() > 30:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")
        return super().mix(tokens, table)


@hookimpl
def register_backbones() -> list[type]:
    """Return the backbones."""
    return [Greedy, Huge, Tiny]


@hookimpl
def register_datasets() -> list[type]:
    """Return the fake dataset."""
    return [FakeDataset]

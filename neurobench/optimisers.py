"""torch's optimisers without torch's compiler.

Making an optimiser of torch imports all of ``torch._dynamo``, only to have it skip the optimiser where somebody
compiles a whole training step. Nobody does that here, and every process that trains would wait seconds and hold 160 MB
for it. What an optimiser does to weights is untouched.
"""

from __future__ import annotations

import inspect
from typing import TypeVar

import torch

__all__ = ["SGD", "Adam", "AdamW"]

Kind = TypeVar("Kind", bound=type[torch.optim.Optimizer])


def _uncompiled(cls: Kind) -> Kind:
    """Give an optimiser the methods that it has before torch guards them against its compiler."""
    for name in ("add_param_group", "load_state_dict", "state_dict", "zero_grad"):
        setattr(cls, name, inspect.unwrap(getattr(cls, name)))
    # The guard of this one also turns gradients off.
    cls.step = torch.no_grad()(inspect.unwrap(cls.step))  # type: ignore[method-assign]
    return cls


@_uncompiled
class AdamW(torch.optim.AdamW):
    """As torch's."""


@_uncompiled
class Adam(torch.optim.Adam):
    """As torch's."""


@_uncompiled
class SGD(torch.optim.SGD):
    """As torch's."""

"""Memory of a step of the published size of shifted windows, computed from shapes, which any machine can do.

Every tensor of two optimiser steps is made without its values, in bfloat16 where training on CUDA is; what stands
where, whole numbers and booleans, is computed for good, since shapes follow from it. Counted are the bytes of all that
is alive at once in the second step: weights, gradients, the optimiser's state, what the way back needs, what operations
return. The scan is the portable one, attention torch's fused one. Not counted: what a kernel takes for itself while it
works, and what an allocator loses by rounding and by gaps.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from benchmarks.performance.gpu import published_step
from benchmarks.performance.table import Ratio

__all__ = ["Alive", "measure", "of_a_step", "of_shapes"]

CARD_GB = 80
"""What the published size should fit."""


class Alive(TorchDispatchMode):
    """Counts the bytes of all tensors that were made inside and are alive.

    Attributes
    ----------
    now, peak
        Bytes alive, and the most that were at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak = 0, 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do an operation, and count what it returns."""
        out = func(*args, **(kwargs or {}))
        self.count(out)
        return out

    def moved(self, what: Any) -> Any:
        """Count a module or a tensor that was made before, and return it."""
        self.count(list(what.parameters()) + list(what.buffers()) if isinstance(what, torch.nn.Module) else what)
        return what

    def count(self, out: Any) -> None:
        """Count the tensors among what an operation returned, each memory once."""
        for tensor in tree_leaves(out):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self._known:
                n = storage.nbytes()
                self.now += n
                self.peak = max(self.peak, self.now)
                self._known[key] = weakref.finalize(storage, self._gone, key, n)

    def _gone(self, key: int, n: int) -> None:
        del self._known[key]
        self.now -= n


class Shapes(TorchDispatchMode):
    """Floats have a shape and no values; whole numbers and booleans that no float has a part in are computed.

    Parameters
    ----------
    alive
        Counts what operations return.
    """

    def __init__(self, alive: Alive) -> None:
        super().__init__()
        self.alive, self.fake = alive, FakeTensorMode()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do an operation, on shapes if a float without values has a part in it."""
        kwargs = kwargs or {}
        if any(isinstance(x, FakeTensor) for x in tree_leaves((args, kwargs))):
            args, kwargs = tree_map(self._shape_of, (args, kwargs))
            out = func(*args, **kwargs)
        else:
            with unset_fake_temporarily():
                out = func(*args, **kwargs)
        self.alive.count(out)
        return out

    def moved(self, what: Any) -> Any:
        """Return a module or a tensor with shapes in place of its floats."""
        if isinstance(what, torch.Tensor):
            return self._counted(what) if what.is_floating_point() else what
        for module in what.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = torch.nn.Parameter(self._counted(parameter))
            for name, buffer in module._buffers.items():
                if buffer is not None and buffer.is_floating_point():
                    module._buffers[name] = self._counted(buffer)
        return what

    def _counted(self, x: torch.Tensor) -> torch.Tensor:
        shape: torch.Tensor = self._shape_of(x)
        self.alive.count(shape)
        return shape

    def _shape_of(self, x: Any) -> Any:
        if not isinstance(x, torch.Tensor) or isinstance(x, FakeTensor):
            return x
        with self.fake:
            return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype)


class SinglePrecision(TorchFunctionMode):
    """Does in single precision what CUDA's autocast does so, and a CPU's does not."""

    FUNCTIONS = frozenset(
        {F.layer_norm, F.softplus, F.softmax, torch.exp, torch.softmax, torch.sum, torch.pow}
        | {torch.Tensor.exp, torch.Tensor.softmax, torch.Tensor.sum, torch.Tensor.pow}
    )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function, its floats in single precision first where it is one of these."""
        kwargs = kwargs or {}
        if func in self.FUNCTIONS:
            args, kwargs = tree_map(self._single, (args, kwargs))
        return func(*args, **kwargs)

    @staticmethod
    def _single(x: Any) -> Any:
        return x.float() if isinstance(x, torch.Tensor) and x.dtype == torch.bfloat16 else x


AUTOCAST = torch.autocast
"""The class itself: its name in torch is patched while shapes are computed."""


@contextmanager
def _as_on_cuda(*_: Any, **__: Any) -> Iterator[None]:
    with AUTOCAST("cpu", torch.bfloat16), SinglePrecision():
        yield


def of_a_step(build: Callable[..., Callable[[], torch.Tensor]], *, values: bool = False) -> int:
    """Return the most bytes that are alive at once in the second optimiser step, from shapes.

    Parameters
    ----------
    build
        Makes the step on a CPU; is given ``moved``, which brings modules and tensors to where it trains.
    values
        Compute the step for good, and count the same: what the shapes are held against.
    """
    alive = Alive()
    with mock.patch("torch.autocast", _as_on_cuda):
        if values:
            step = build(moved=alive.moved)
            with alive:
                return _peak_of_second(step, alive)
        shapes = Shapes(alive)
        step = build(moved=shapes.moved)
        with shapes.fake, shapes:
            return _peak_of_second(step, alive)


def _peak_of_second(step: Callable[[], torch.Tensor], alive: Alive) -> int:
    step()
    # The first has no optimiser's state yet.
    alive.peak = alive.now
    step()
    return alive.peak


def of_shapes(mixer: str, **sizes: int) -> int:
    """Return the same of the published size of shifted windows; ``sizes`` as for ``published_step``."""
    return of_a_step(lambda moved: published_step(mixer, "cpu", moved=moved, **sizes))


def measure(quick: bool) -> list[Ratio]:
    """Return the share of an 80 GB card that a step takes, with Mamba and with attention in the windows."""
    # A quarter of the frames, and said so.
    n_patches = 5 if quick else 20
    rows = []
    for mixer in ("mamba", "attention"):
        gb = of_shapes(mixer, n_patches=n_patches) / 1e9
        name = f"shifted windows, published size, 2 × 96³ × {n_patches}, {mixer}: memory from shapes over {CARD_GB} GB"
        rows.append(Ratio("memory", name, gb / CARD_GB, 1.0, False, {"gb": gb}))
    return rows

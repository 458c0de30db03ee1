"""What is done where memory does not suffice for all windows at once: half as many are tried, down to one."""

from __future__ import annotations

import errno
import functools
import logging
import re
from collections.abc import Callable

import torch

from neurobench.errors import NeurobenchError

__all__ = ["in_halves", "is_out_of_memory", "release", "too_large"]

log = logging.getLogger(__name__)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that a device or the host has no memory left."""
    # Torch's allocator of the host has no class of its own, nor what C++ raises below it.
    of_the_host = isinstance(error, RuntimeError) and re.search(r"can't allocate memory|std::bad_alloc", str(error))
    of_the_system = isinstance(error, OSError) and error.errno == errno.ENOMEM
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or of_the_system or bool(of_the_host)


def release() -> None:
    """Give memory of a GPU that nothing lies in back to whoever else uses it."""
    torch.cuda.empty_cache()


@functools.cache
def _say_once() -> None:
    """Put into the log that windows go through backbones in parts; every batch would say it again."""
    log.warning("memory does not suffice for as many windows at once as usual: they go through backbones in halves")


def too_large(error: BaseException) -> NeurobenchError:
    """Return what to say of an error of memory that no smaller part was tried for."""
    said = " ".join(str(error).split()) or type(error).__name__
    return NeurobenchError(
        f"memory does not suffice: {said.rstrip('.')}.",
        next_step="Use fewer --jobs, a smaller --profile, or a machine with more memory.",
    )


def in_halves(compute: Callable[[int, int], torch.Tensor], n_windows: int) -> torch.Tensor:
    """Return what is computed of windows 0 to ``n_windows``, all at once if memory suffices, else half by half.

    Parameters
    ----------
    compute
        Returns (windows, …) of those from a first to before a last one, each computed by itself.
    n_windows
        How many there are.

    Raises
    ------
    NeurobenchError
        If memory does not suffice for one.
    """

    def between(first: int, last: int) -> torch.Tensor:
        try:
            return compute(first, last)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        # Not in the handler: the error holds on to everything that was computed until it was raised.
        release()
        if last - first == 1:
            raise NeurobenchError(
                "one window does not fit into memory on its way through a backbone.",
                next_step="Use a smaller --profile, which has fewer tokens a window, or a machine with more memory.",
            )
        half = (first + last) // 2
        _say_once()
        return torch.cat([between(first, half), between(half, last)])

    return between(0, n_windows)

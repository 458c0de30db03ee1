"""Whether the C library gives memory that is freed back to the system at once, or keeps it for what comes next."""

from __future__ import annotations

import ctypes
import sys

from neurobench.options import Profile

__all__ = ["LARGE", "keep_freed_memory", "keeps_freed_memory"]

LARGE = 1 << 18
"""Numbers of an array of a training step from which on its memory is worth keeping: 1 MB of float32."""

KEPT = 256 << 20
"""Bytes at the end of the heap up to which freed memory is kept."""

FROM_HEAP = 32 << 20
"""Bytes up to which memory comes from the heap; the C library allows no more."""

# From malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> bool:
    """Have glibc keep up to 256 MB of freed memory for what comes next, for as long as this process lives.

    Every training step frees what the next one allocates again. By itself the C library gives it back to the system in
    between, which has to clear it, page by page, when it is next touched: a few to twelve per cent of a step's time in
    a virtual machine. It is a whole process's setting: a script that calls :func:`neurobench.run` has it from then on.

    Returns
    -------
    kept
        Whether it is: elsewhere than with glibc nothing is done.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, FROM_HEAP)) and bool(mallopt(_M_TRIM_THRESHOLD, KEPT))


def keeps_freed_memory(profile: Profile, device: str) -> bool:
    """Return whether steps of a profile allocate so much that it is worth keeping; ``device`` as torch names it."""
    return device == "cpu" and profile.batch_size * profile.n_tokens * profile.width >= LARGE

"""What a step needs beyond a core, in the words of Dask's worker resources, and what this machine has of it.

``GPU`` counts GPUs, ``MEMORY`` is in bytes; any other name is a label that workers of a cluster carry. Needs decide
where something is computed, so they are part of no identity.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

__all__ = [
    "Needs",
    "dealt",
    "described",
    "free_memory",
    "memory_limit",
    "most",
    "named_gpus",
    "of_this_machine",
    "visible_gpus",
    "wrong_with",
]

Needs = Mapping[str, float]
"""How much of what is needed, by name."""

CGROUPS = Path("/sys/fs/cgroup")
"""Where Linux says what a job or a container may have."""

_NAME = re.compile(r"[A-Z][A-Z0-9_]*")


def wrong_with(needs: Any) -> str:
    """Return what is wrong with something that should be needs, or an empty string."""
    if not isinstance(needs, Mapping):
        return f"{needs!r} is not a mapping of names to numbers, such as {{'GPU': 1}}"
    for name, amount in needs.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            return f"{name!r} is no name of capitals, digits and underscores, such as GPU or MEMORY"
        if isinstance(amount, bool) or not isinstance(amount, int | float) or not 0 < amount < math.inf:
            return f"{name} is {amount!r}, not a number above 0"
    return ""


def most(needs: Iterable[Needs]) -> dict[str, float]:
    """Return the most that is needed of everything."""
    found: dict[str, float] = {}
    for one in needs:
        for name, amount in one.items():
            found[name] = max(amount, found.get(name, 0.0))
    return found


def described(needs: Needs) -> str:
    """Return needs as Dask's workers are told what they offer: ``GPU=1 MEMORY=1.6e+10``."""
    return " ".join(f"{name}={amount:g}" for name, amount in sorted(needs.items()))


def named_gpus(variable: str) -> tuple[str, ...]:
    """Return what CUDA_VISIBLE_DEVICES names: numbers, UUIDs or MIG devices, up to the first that is none."""
    names = (name.strip() for name in variable.split(","))
    return tuple(itertools.takewhile(lambda name: name and not name.startswith("-"), names))


def visible_gpus() -> tuple[str, ...]:
    """Return the GPUs that this process may use, each as CUDA_VISIBLE_DEVICES calls it; the user's own list rules."""
    import torch

    n_found = torch.cuda.device_count()
    if (variable := os.environ.get("CUDA_VISIBLE_DEVICES")) is None:
        return tuple(str(i) for i in range(n_found))
    # Of a list that names more than there are, CUDA takes those in front; where there are none, names do no harm.
    return named_gpus(variable)[: n_found or None]


def dealt(gpus: Sequence[str], n: int) -> list[str]:
    """Return the GPU of each of ``n`` processes, in turn; empty texts where there is none."""
    return [gpus[i % len(gpus)] if gpus else "" for i in range(n)]


def memory_limit() -> float:
    """Return the bytes that this process and those of its container or job may have; infinity: nobody limits them."""
    limits = [math.inf]
    with contextlib.suppress(OSError, ValueError):
        # Version 2 of control groups; a limit of any group above counts too.
        own = Path("/proc/self/cgroup").read_text(encoding="utf-8").rpartition("::")[2].strip().lstrip("/")
        folder = CGROUPS / own
        for one in (folder, *folder.parents):
            if not one.is_relative_to(CGROUPS):
                break
            with contextlib.suppress(OSError, ValueError):
                limits.append(float((one / "memory.max").read_text(encoding="utf-8")))
    return min(limits)


def free_memory() -> float:
    """Return the bytes that more processes may have: what files are cached in can be had, too."""
    return min(float(psutil.virtual_memory().available), memory_limit())


def of_this_machine() -> dict[str, float]:
    """Return what this machine has: its GPUs that this process may use, and its memory."""
    import torch

    found: dict[str, float] = {"GPU": torch.cuda.device_count()}
    found["MEMORY"] = min(float(psutil.virtual_memory().total), memory_limit())
    return found

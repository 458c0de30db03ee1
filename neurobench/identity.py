"""Canonical JSON, content hashes and seeds: how a thing is recognised again."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

__all__ = ["canonical_json", "digest", "file_digest", "seed_for"]


_SINGLE = (str, int, float, bool, type(None))


def _plain(value: Any) -> Any:
    # The frequent first, and no union made anew: a board hashes thousands of records of hundreds of values each.
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"an identity cannot hold the value {value}")
    if isinstance(value, _SINGLE):
        return value
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"an identity cannot hold a {type(value).__name__}")


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys, no white space and no NaN: equal values give equal text."""
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """Return the sha256 of the canonical JSON of ``value``, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def seed_for(base: int, role: str, *axes: str | int) -> int:
    """Return the seed of one role: the first 63 bits of ``sha256(base | role | axes)``.

    Roles are ``pretrain-init``, ``mask``, ``mask-ratio``, ``predictor``, ``data-order``, ``probe``, ``split``,
    ``bootstrap``, ``permutation``, ``twin`` and ``units``. Two roles never share a stream, and an axis that should not
    change a draw is left out (the split has no backbone among its axes).
    """
    text = "|".join([str(base), role, *map(str, axes)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

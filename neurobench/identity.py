"""Canonical JSON, content hashes and seeds: how a thing is recognised again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

__all__ = ["canonical_json", "digest", "file_digest", "seed_for"]


def _plain(value: Any) -> str:
    """Return what JSON has no value for as text."""
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"an identity cannot hold a {type(value).__name__}")


# Made once: a grid of thousands of steps is hashed again in every process that computes some of them.
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=_plain)


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys, no white space and no NaN: equal values give equal text.

    Raises
    ------
    TypeError, ValueError
        If it holds what JSON has no value for, or NaN or infinity.
    """
    try:
        return _ENCODER.encode(value)
    except ValueError as error:
        raise ValueError(f"an identity cannot hold NaN or infinity ({error})") from None


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

"""Where a file is written before it is moved into its place, so that nobody ever reads half of one."""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path

__all__ = ["is_half_written", "place_beside"]


def place_beside(path: Path) -> Path:
    """Return where a file is written before it is moved into its place: nobody else's, on this machine or another."""
    # Two containers on a shared disk have processes of one number.
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")


def is_half_written(path: Path) -> bool:
    """Return whether a file is one that is to be moved into another one's place, or was when its process was killed."""
    return re.fullmatch(r"\..+\.\d+(-[0-9a-f]{8})?(\.npz)?", path.name) is not None

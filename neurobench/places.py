"""Where a file is written before it is moved into its place, and where another process works."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["in_this_folder", "is_half_written", "place_beside"]


def place_beside(path: Path) -> Path:
    """Return where a file is written before it is moved into its place: nobody else's, on this machine or another."""
    # Two containers on a shared disk have processes of one number.
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")


def is_half_written(path: Path) -> bool:
    """Return whether a file is one that is to be moved into another one's place, or was when its process was killed."""
    return re.fullmatch(r"\..+\.\d+(-[0-9a-f]{8})?(\.npz)?", path.name) is not None


def in_this_folder(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that works in the present working directory, for processes that outlive what starts them.

    A pool that is kept works where it was started. Somebody who has changed the folder in between, as in a notebook,
    means paths from the new one.
    """
    return functools.partial(_called_in, os.getcwd(), function)


def _called_in(folder: str, function: Callable[..., Any], *arguments: Any) -> Any:
    with contextlib.chdir(folder):
        return function(*arguments)

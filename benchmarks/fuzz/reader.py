"""What a campaign knows of a reader."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Reader:
    """Something that reads what comes from outside.

    Parameters
    ----------
    file
        Where a sample is written, relative to a folder.
    samples
        Valid files.
    read
        Takes the folder.
    sealed
        Makes sums right again after a JSON value was changed.
    in_place
        Whether half of the damage leaves everything where it is: of formats that say where their parts lie.
    beside
        Whole files that lie beside it.
    """

    file: str
    samples: tuple[bytes, ...]
    read: Callable[[Path], Any]
    sealed: Callable[[Any], Any] = lambda plain: plain
    in_place: bool = False
    beside: Mapping[str, bytes] = field(default_factory=dict)

    def place(self, folder: Path, content: bytes) -> None:
        """Write a sample into a folder, and what lies beside it where it is not there yet."""
        for name, data in ({n: b for n, b in self.beside.items() if n != self.file} | {self.file: content}).items():
            path = folder / name
            if name == self.file or not path.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)

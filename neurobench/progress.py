"""What a long piece of work says about how far it is; how that is shown is another module's business."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

__all__ = ["Advance", "Done", "Progress", "Silent"]

Advance = Callable[[int, int], None]
"""Called with what is done of a stage, and its total."""

Done = Callable[[float], None]
"""Called when a step of a grid is finished or was found stored, with the seconds it was estimated to take."""


class Progress(Protocol):
    """Where progress goes."""

    def grid(self, total: float) -> AbstractContextManager[Done]:
        """Begin a grid of ``total`` estimated seconds; the time left is learned from the stages inside it."""
        ...

    def stage(self, label: str) -> AbstractContextManager[Advance]:
        """Begin one stage; stages may be nested, and the innermost is shown."""
        ...

    def at_work(self, labels: Sequence[str]) -> None:
        """Say which stages are at work in other processes, in place of those named before."""
        ...

    def note(self, message: str) -> None:
        """Say something once, without disturbing the rest."""
        ...


class Silent:
    """Shows nothing."""

    @contextlib.contextmanager
    def grid(self, total: float) -> Iterator[Done]:
        """Begin a grid."""
        yield lambda seconds: None

    @contextlib.contextmanager
    def stage(self, label: str) -> Iterator[Advance]:
        """Begin a stage."""
        yield lambda done, total: None

    def at_work(self, labels: Sequence[str]) -> None:
        """Say nothing."""

    def note(self, message: str) -> None:
        """Say nothing."""

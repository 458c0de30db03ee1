"""What a long piece of work says about how far it is; how that is shown is another module's business."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

__all__ = ["Advance", "Done", "Progress", "Silent", "TimeLeft"]

TRUST = 0.05
"""Share of a grid of which the steps have to be computed before they alone say how long the others take."""

Advance = Callable[[int, int], None]
"""Called with what is done of a stage, and its total."""

Done = Callable[[float, bool], None]
"""Called when a step of a grid is through, with the seconds it was estimated to take and whether it was computed."""


class Progress(Protocol):
    """Where progress goes."""

    def grid(self, total: float) -> AbstractContextManager[Done]:
        """Begin a grid of ``total`` estimated seconds; the time left is learned from steps that are computed."""
        ...

    def stage(self, label: str) -> AbstractContextManager[Advance]:
        """Begin one stage; stages may be nested, and the innermost is shown."""
        ...

    def at_work(self, labels: Sequence[str]) -> None:
        """Say which stages are at work in other processes, in place of those named before."""
        ...

    def failed(self, label: str, error: str) -> None:
        """Say that a step of the grid failed; the others go on."""
        ...

    def note(self, message: str) -> None:
        """Say something once, without disturbing the rest."""
        ...


class Silent:
    """Shows nothing."""

    @contextlib.contextmanager
    def grid(self, total: float) -> Iterator[Done]:
        """Begin a grid."""
        yield lambda seconds, computed: None

    @contextlib.contextmanager
    def stage(self, label: str) -> Iterator[Advance]:
        """Begin a stage."""
        yield lambda done, total: None

    def at_work(self, labels: Sequence[str]) -> None:
        """Say nothing."""

    def failed(self, label: str, error: str) -> None:
        """Say nothing."""

    def note(self, message: str) -> None:
        """Say nothing."""


@dataclass
class TimeLeft:
    """Honest time left of a grid: the estimate, corrected by how long its steps really took.

    Steps that were found stored take no time, and teach nothing about those that are left. A first step that has to
    wait for processes to start teaches little: until :data:`TRUST` of the grid was computed, the estimate stands for
    the rest of that share.
    """

    total: float
    clock: Callable[[], float] = time.monotonic
    done: float = 0.0
    spent: float = 0.0
    estimated: float = 0.0
    since: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.since = self.clock()

    def step(self, seconds: float, computed: bool) -> None:
        """Count one step of ``seconds`` estimated seconds."""
        now = self.clock()
        if computed:
            self.spent += now - self.since
            self.estimated += seconds
        self.done += seconds
        self.since = now

    @property
    def learned(self) -> bool:
        """Whether it follows from steps that were computed, and is no first guess."""
        return self.estimated > 0

    def seconds(self) -> float | None:
        """Return the seconds left: 0 for longer than expected, None where nothing is left or known."""
        if self.total <= 0 or self.done >= self.total:
            return None
        untold = max(0.0, TRUST * self.total - self.estimated)
        factor = (self.spent + untold) / (self.estimated + untold)
        return max(0.0, (self.total - self.done) * factor - (self.clock() - self.since))

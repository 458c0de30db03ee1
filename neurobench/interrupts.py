"""Ctrl-C and a batch system's SIGTERM, held back until what must not be torn apart is through."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

__all__ = ["HeldBack"]

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class HeldBack:
    """A context in which a request to stop waits until :meth:`deliver`, or until the end; a second Ctrl-C does not.

    True once one has come. Only a process's main thread can hold them back: in any other one nothing changes.
    """

    def __init__(self) -> None:
        self._came: list[int] = []
        self._before: dict[int, Any] = {}

    def __bool__(self) -> bool:
        """Whether somebody has asked to stop."""
        return bool(self._came)

    def __enter__(self) -> HeldBack:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                before = signal.getsignal(number)
                # What is ignored (nohup) stays so; what is None was not set by Python, and could not be put back.
                if before not in (signal.SIG_IGN, None):
                    self._before[number] = before
                    signal.signal(number, self._hold)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        while self._came:
            signal.raise_signal(self._came.pop(0))

    def _hold(self, number: int, frame: FrameType | None) -> None:
        self._came.append(number)
        if number == signal.SIGINT and self._came.count(number) > 1:
            self.deliver()

    def deliver(self) -> None:
        """Let what came do what it would have done: end the process, raise KeyboardInterrupt, or nothing."""
        while self._came:
            number = self._came.pop(0)
            signal.signal(number, self._before[number])
            try:
                signal.raise_signal(number)
            finally:
                signal.signal(number, self._hold)

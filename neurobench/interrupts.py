"""Ctrl-C and a batch system's SIGTERM, held back until what must not be torn apart is through; and who is left."""

from __future__ import annotations

import importlib
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

__all__ = ["LAST_STEP_S", "Abandoned", "HeldBack", "end_after", "imported"]

LAST_STEP_S = 30.0
"""Seconds that a process has for the step it is at, and for a checkpoint, when nobody is left who waits for it."""


class Abandoned(Exception):
    """Raised where progress is told, to stop what nobody waits for any more; a checkpoint is written first."""


def end_after(gone: Callable[[], object], *, ask: bool = True) -> None:
    """End this process once a call returns, which waits until the process that started it is gone.

    Parameters
    ----------
    gone
        Is called in a thread.
    ask
        Ask the main thread to stop, which may write a checkpoint; else wait in case others need this process for
        theirs.
    """

    def end() -> None:
        gone()
        if ask:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(LAST_STEP_S)
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


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


def imported(module: str) -> Any:
    """Import a module and return it; Ctrl-C stays what it was."""
    before = signal.getsignal(signal.SIGINT)
    found = importlib.import_module(module)
    if signal.getsignal(signal.SIGINT) is not before and threading.current_thread() is threading.main_thread():
        # dask-jobqueue has Ctrl-C leave Python without a word: a run could not say that it was stopped.
        signal.signal(signal.SIGINT, before)
    return found

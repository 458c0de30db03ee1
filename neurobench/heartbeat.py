"""A run says how it is while it goes on, and stops when somebody asks it to; see :mod:`neurobench.runs`."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import neurobench
from neurobench import logs, runs
from neurobench.errors import StoreError
from neurobench.execution import Executor, Todo, describe
from neurobench.interrupts import HeldBack
from neurobench.progress import Advance, Done, Progress, TimeLeft
from neurobench.steps import Failures, Row

__all__ = ["Heartbeat"]

BEAT_S = 1.5
"""Seconds from one word to the next; a run that is asked to stop learns of it as soon."""

N_ERRORS = 20
"""Errors that are told one by one."""


class Heartbeat:
    """Progress that goes on to where it is shown, and that a thread writes into the output folder meanwhile.

    Parameters
    ----------
    out
        Output folder.
    progress
        Where it is shown.

    Attributes
    ----------
    id
        Of the run.
    """

    def __init__(self, out: Path, progress: Progress) -> None:
        self.out, self.progress = out, progress
        self.id = os.environ.pop(runs.RUN, "") or runs.new_id()
        now = time.time()
        self._state = runs.State(
            id=self.id,
            command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            host=socket.gethostname(),
            pid=os.getpid(),
            process=runs.process_mark(os.getpid()),
            version=neurobench.__version__,
            started=now,
            heard=now,
        )
        self._executor: Executor | None = None
        self._left = TimeLeft(0.0)
        self._open: list[str] = []
        self._elsewhere: tuple[str, ...] = ()
        self._keys: dict[str, set[tuple[str, str]]] = {}
        self._rows_of: dict[str, list[int]] = {}
        self._number: dict[tuple[str, int, Row], int] = {}
        self._errors: dict[str, str] = {}
        self._failed_rows: set[int] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._caller = threading.current_thread()

    def __enter__(self) -> Heartbeat:
        runs.write_state(self.out, self._state)
        runs.tidy(self.out)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        # Whoever presses Ctrl-C once more would have it said of this run that it died.
        with HeldBack():
            self._end(error)

    def _end(self, error: BaseException | None) -> None:
        self._ended.set()
        self._thread.join()
        word: runs.Word = "finished" if error is None else "failed"
        if isinstance(error, KeyboardInterrupt):
            word = "cancelled"
        self._open, self._elsewhere = [], ()
        self._state = replace(self._state, state=word, error=describe(error) if word == "failed" and error else "")
        self._say(last=True)

    def _beat(self) -> None:
        asked = False
        while not self._ended.wait(BEAT_S):
            self._say()
            # A network disk that does not answer for a moment is no reason to fall silent.
            with contextlib.suppress(OSError):
                if not asked and runs.asked_to_stop(self.out, self.id):
                    asked = True
                    _interrupt(self._caller)

    def _say(self, *, last: bool = False) -> None:
        """Write how it is; a disk that is full stops the run elsewhere, with an error that says so."""
        executor, labels = self._executor, [*self._open[-1:], *self._elsewhere]
        failed_rows = self._failed_rows.union(*(self._rows_of.get(label, ()) for label in list(self._errors)))
        state = replace(
            self._state,
            heard=time.time(),
            total_s=self._left.total,
            done_s=self._left.done,
            left_s=self._left.seconds(),
            learned=self._left.learned,
            n_computed=len(executor.computed) if executor else 0,
            n_found=len(executor.stored) if executor else 0,
            n_failed=len(self._errors),
            at_work=[(label, self._rows_of.get(label, ())) for label in labels],
            failed_rows=sorted(failed_rows),
            errors=list(self._errors.items())[:N_ERRORS],
        )
        # Where the folder was removed, nothing is made in its place: it would be somebody else's to the next run.
        with contextlib.suppress(OSError):
            try:
                if runs.folder_of(self.out, self.id).is_dir():
                    runs.write_state(self.out, state)
            except StoreError:
                if last:
                    runs.overwrite_state(self.out, state)

    # ------------------------------------------------------------ what there is to do

    def plan(self, todo: Sequence[Todo], executor: Executor) -> None:
        """Write what there is to do; ``executor`` counts what becomes of it."""
        rows: list[runs.PlannedRow] = []
        for one in todo:
            own: dict[Row, dict[str, dict[str, None]]] = {use.row: {} for use, _ in one.steps}
            numbers = {row: len(rows) + i for i, row in enumerate(own)}
            for use, step in one.steps:
                row, key = use.row, step.key
                self._keys.setdefault(step.label, set()).add((step.stage, key))
                if not use.needed:
                    # A row is through without what is only shown beside its scores.
                    continue
                own[row].setdefault(step.stage, {})[key] = None
                waiting = self._rows_of.setdefault(step.label, [])
                if numbers[row] not in waiting[-1:]:
                    waiting.append(numbers[row])
            for row, stages in own.items():
                self._number[one.run.dataset.label, one.run.seed, row] = numbers[row]
                rows.append(
                    runs.PlannedRow(
                        dataset=one.run.dataset.label,
                        seed=one.run.seed,
                        label=row.label,
                        kind=row.kind,
                        backbone=row.backbone.label if row.backbone else "",
                        mask=row.mask.label if row.mask else "",
                        steps={s: "".join(k[: runs.KEY] for k in keys) for s, keys in stages.items()},
                    )
                )
        runs.write_plan(self.out, self.id, rows)
        n_steps = len(set().union(*self._keys.values()))
        self._executor = executor
        self._state = replace(self._state, n_rows=len(rows), n_steps=n_steps)

    def written(self, of: Todo, failures: Failures) -> None:
        """Say that the records of a (dataset, seed) are written, and which rows have no score on some task."""
        for (row, _), error in failures.items():
            number = self._number[of.run.dataset.label, of.run.seed, row]
            self._failed_rows.add(number)
            labels = [label for label in self._errors if number in self._rows_of.get(label, ())]
            for label in labels or [f"{row.label} · {of.run.dataset.label} · seed {of.run.seed}"]:
                self._errors.setdefault(label, error)
        self._state = replace(self._state, n_written=self._state.n_written + len({use.row for use, _ in of.steps}))

    # ------------------------------------------------------------ progress

    @contextlib.contextmanager
    def grid(self, total: float) -> Iterator[Done]:
        """Begin a grid."""
        self._left = TimeLeft(total)
        with self.progress.grid(total) as inner:

            def done(seconds: float, computed: bool) -> None:
                self._left.step(seconds, computed)
                inner(seconds, computed)

            yield done

    @contextlib.contextmanager
    def stage(self, label: str) -> Iterator[Advance]:
        """Begin a stage."""
        self._open.append(label)
        try:
            with self.progress.stage(label) as advance:
                yield advance
        finally:
            self._open.pop()

    def at_work(self, labels: Sequence[str]) -> None:
        """Say what is at work elsewhere."""
        self._elsewhere = tuple(labels)
        self.progress.at_work(labels)

    def failed(self, label: str, error: str) -> None:
        """Say that a step failed."""
        if label in self._keys:
            self._errors[label] = error
        self.progress.failed(label, error)

    def note(self, message: str) -> None:
        """Say something once, to the log too."""
        logs.tell("message", message)
        self.progress.note(message)


def _interrupt(thread: threading.Thread) -> None:
    """Interrupt the main thread as Ctrl-C or SIGTERM does, whichever it listens to; another thread cannot be.

    In the background of a script Ctrl-C is ignored.
    """
    if thread is threading.main_thread():
        heard = [s for s in (signal.SIGINT, signal.SIGTERM) if callable(signal.getsignal(s))]
        if heard and hasattr(signal, "pthread_kill") and thread.ident is not None:
            # To this thread: only so it wakes up where it waits for others.
            signal.pthread_kill(thread.ident, heard[0])
        elif heard:
            signal.raise_signal(heard[0])

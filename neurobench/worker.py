"""What runs on a Dask worker: steps of a grid, until nobody waits for them any more."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import neurobench
from neurobench import runs
from neurobench.errors import NeurobenchError, StoreError
from neurobench.execution import Here, Outcome
from neurobench.identity import digest, file_digest
from neurobench.interrupts import Abandoned, imported
from neurobench.options import RunConfig
from neurobench.progress import Advance, Silent
from neurobench.store import MARKER

__all__ = ["UntilOver", "allocate_as_elsewhere", "compute", "core_digest"]

LOOK_S = 1.0
"""Seconds between two looks at whether anybody still waits for what is computed."""

TRIMMED = "MALLOC_TRIM_THRESHOLD_"
"""Variable by which Dask has its workers give back freed memory from 64 KiB on."""

_lock = threading.Lock()
_here: tuple[RunConfig, Here] | None = None


def compute(config: RunConfig, code: str, dataset: str, seed: int, steps: Sequence[tuple[str, str]]) -> Outcome:
    """Compute steps on a worker, whose folders and code have to be those of the process that asks."""
    global _here
    # One step at a time, also where a worker was started with several threads: a process holds one fold's signal.
    with _lock:
        try:
            if _here is None or _here[0] != config:
                _check(config, code)
                allocate_as_elsewhere()
                _here = config, Here(config)
                _here[1].executor.progress = UntilOver(config.out, config.run)
        except NeurobenchError as error:
            who = f"the worker on {socket.gethostname()}"
            return Outcome(frozenset(), store_error=StoreError(f"{who} cannot take part: {error}"))
        return _here[1].compute(dataset, seed, steps)


class UntilOver(Silent):
    """Progress that is told nobody; it stops what is computed when the run that asked is over, or the worker leaves.

    Parameters
    ----------
    out, run
        Output folder and id of the run.
    """

    def __init__(self, out: Path, run: str) -> None:
        self.out, self.run = out, run
        self._looked = self._since = time.monotonic()
        self._heard = 0.0

    @contextlib.contextmanager
    def stage(self, label: str) -> Iterator[Advance]:
        """Begin a stage."""
        # Who asks for a step is there, though its file may be read as it was a moment ago.
        self._since = time.monotonic()
        yield self._advance

    def _advance(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._looked >= LOOK_S:
            self._looked = now
            if _is_leaving():
                raise Abandoned("the worker leaves, and another one goes on.")
            if (state := runs.read_state(self.out, self.run)) is not None:
                # Whether it is silent is judged by this machine's clock alone: two may be minutes apart.
                if state.heard != self._heard:
                    self._heard, self._since = state.heard, now
                if not state.is_under_way or now - self._since > runs.LOST_S:
                    raise Abandoned(f"run {self.run} is over, and nobody waits for this step.")


def allocate_as_elsewhere() -> bool:
    """Have this process keep freed memory for the next tensor, as every other one does; return whether it did not.

    The GNU C library raises its two thresholds as a program frees larger blocks, unless one of them is set. Dask sets
    one, and every tensor above 128 KiB is then asked of the system anew and cleared page by page: steps of small
    networks took up to 1.6 times as long. Here both are set to where they end elsewhere. What a user has set stays.
    """
    imported("distributed")
    dask = imported("dask")
    usual = dask.config.get("distributed.nanny.pre-spawn-environ", {}).get(TRIMMED)
    if usual is None or os.environ.get(TRIMMED) != str(usual):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # See mallopt(3): M_MMAP_THRESHOLD may be half of what M_TRIM_THRESHOLD is.
    trim, mmap = -1, -3
    return bool(mallopt(mmap, 32 << 20) and mallopt(trim, 64 << 20))


def _is_leaving() -> bool:
    """Return whether the worker that this thread computes for has begun to leave, as it does before its walltime."""
    try:
        worker = imported("distributed").get_worker()
    except ValueError:
        return False
    return worker.status.name in ("closing_gracefully", "closing", "closed")


def _check(config: RunConfig, code: str) -> None:
    if not (config.out / MARKER).is_file():
        raise NeurobenchError(
            f"it does not see the output folder {config.out}.", next_step="Use a folder that all machines share."
        )
    if core_digest() != code:
        raise NeurobenchError(
            f"its neurobench ({neurobench.__version__}) is not the one that asks.",
            next_step="Start workers in the same environment.",
        )


@functools.cache
def core_digest() -> str:
    """Return a hash of the source of neurobench."""
    return digest([file_digest(p) for p in sorted(Path(neurobench.__file__).parent.rglob("*.py"))])

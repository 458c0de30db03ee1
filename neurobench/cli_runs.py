"""``neurobench status`` and ``neurobench cancel``, and what ``neurobench run`` needs to be left alone."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from neurobench.commands import AsJson, Verbose, guarded
from neurobench.errors import ConfigError, StoreError

__all__ = ["cancel", "detached", "status", "stopped_by_signals"]

STOP_S = 60.0
"""Seconds in which a run that is asked to stop should have done so."""

AT_ONCE_S = 2.0
"""Seconds after its beginning in which a run that cannot be is likely to have failed."""

Folder = Annotated[Path, typer.Argument(metavar="OUT", help="Output folder of one or more runs.")]
DEFAULT = Path("neurobench-results")


@guarded
def status(
    out: Folder = DEFAULT,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Go on until no run is under way; Ctrl-C ends the watching alone.")
    ] = False,
    every: Annotated[float, typer.Option(min=0.2, metavar="SECONDS", help="How often --watch looks.")] = 2.0,
    all_rows: Annotated[bool, typer.Option("--all", help="Every row, and every run that is remembered.")] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Show the runs of an output folder, how far each row of the grid is, and what is stored.

    Example: neurobench status neurobench-results --watch
    """
    from dataclasses import asdict

    from neurobench import console
    from neurobench.runs import overview

    if watch and as_json:
        raise ConfigError(
            "--watch draws until no run is under way, and --json prints one document.", next_step="Use one of them."
        )
    screen = console.make_console()
    if watch:
        with contextlib.suppress(KeyboardInterrupt):
            console.watch_overview(lambda: overview(out), screen, every=every, all_rows=all_rows)
        return
    found = overview(out)
    if as_json:
        rows = [asdict(r) | {"state": r.state} for r in found.rows]
        plain = {"runs": [asdict(s) for s in found.runs], "rows": rows, "stored": found.n_stored}
        console.print_json(screen, plain)
        return
    console.print_overview(found, screen, all_rows=all_rows)
    if verbose:
        _stored_steps(out)


def _stored_steps(out: Path) -> None:
    from neurobench import console
    from neurobench.store import stored_steps
    from neurobench.tables import duration

    rows = [
        (r.stage, r.label, r.when, duration(float(r.seconds)))  # type: ignore[arg-type]
        for r in stored_steps(out).itertuples()
    ]
    columns = ("stage", "step", "when", "time")
    console.print_table(console.make_console(), columns, rows, right=("time",), title="stored")


@guarded
def cancel(
    out: Folder = DEFAULT,
    run: Annotated[str, typer.Argument(metavar="[RUN]", help="Its id, where several are under way.")] = "",
    verbose: Verbose = False,
) -> None:
    """Ask a run under way to stop, on this machine or another one, and wait until it has; what is finished is kept.

    Example: neurobench cancel neurobench-results
    """
    from neurobench import console, runs

    screen = console.make_console()
    state = runs.under_way(out, run)
    runs.ask_to_stop(out, state.id)
    screen.print(f"asked run {state.id} on {state.host} to stop", markup=False)
    # A run whose clock is behind seems to have died as soon as it is looked at.
    behind = time.time() - state.heard > runs.LOST_S
    give_up = time.monotonic() + STOP_S
    while time.monotonic() < give_up:
        every = [runs.read_state(out, state.id)] if behind else runs.read_runs(out)
        now = next((s for s in every if s is not None and s.id == state.id), state)
        if not now.is_under_way:
            steps = f"{now.n_computed} of {now.n_steps} steps computed, {now.n_found} found stored"
            kept = "what is finished is kept, and the same command goes on"
            screen.print(f"{console.ended(now)}: {steps}; {kept}.", markup=False)
            return
        time.sleep(0.2)
    raise StoreError(
        f"run {state.id} has not said within {STOP_S:g} s that it stopped; it still may.",
        next_step=f"Look with `neurobench status {out}`; on {state.host} its process is {state.pid}.",
    )


# ---------------------------------------------------------------- leaving a run alone


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Have SIGTERM, and the end of the terminal, do what Ctrl-C does; what is ignored, as by nohup, stays so."""
    before = {}
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        # Handlers belong to the main thread.
        with contextlib.suppress(ValueError):
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, _stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def detached(out: Path, *, as_json: bool) -> None:
    """Start the command that was typed once more, in a session of its own, and return when that run has begun.

    One that fails at once says so here, with its own exit code.
    """
    from neurobench import console, runs
    from neurobench.store import Store, disk_errors

    # What is wrong with the folder is said here.
    Store(out)
    run = runs.new_id()
    folder = runs.folder_of(out, run)
    with disk_errors(folder):
        folder.mkdir(parents=True)
    screen, side = console.make_console(), console.make_console(stderr=True)
    output = folder / "output.txt"
    words = [sys.executable, *(w for w in sys.orig_argv[1:] if w != "--detach")]
    if hasattr(signal, "SIGHUP"):
        # The other one ignores it too, and goes on when this terminal is closed.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with open(output, "wb") as file:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | {runs.RUN: run},
            start_new_session=True,
        )
    begun = None
    with contextlib.suppress(KeyboardInterrupt):
        with side.status("starting") if side.is_terminal and not as_json else contextlib.nullcontext():
            while process.poll() is None and begun is None:
                time.sleep(0.1)
                begun = next((s for s in runs.read_runs(out) if s.id == run), None)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(AT_ONCE_S)
        if process.returncode:
            side.print(output.read_text(encoding="utf-8", errors="replace"), markup=False, soft_wrap=True)
            if begun is None:
                shutil.rmtree(folder, ignore_errors=True)
            raise typer.Exit(process.returncode)
    if as_json:
        console.print_json(screen, {"run": run, "out": out, "pid": process.pid, "output": output})
    else:
        fields = {
            "watch": f"neurobench status {out} --watch",
            "stop": f"neurobench cancel {out}",
            "output": str(output),
        }
        word = "goes on by itself" if process.returncode is None else "is through already"
        console.print_fields(screen, f"run {run} {word}", fields)

"""What runs say of themselves in their output folder, so that others can look at them and stop them.

A run has a folder ``runs/<id>``: ``state.json``, written anew every second or two and once more when it ends;
``plan.json``, written once, with its rows and the keys of their steps; ``cancel``, written by whoever wants it to stop;
``output.txt``, of a run that was started without a terminal. No number and no identity depends on any of it. A process
that is killed cannot say so: that a run died is worked out here, by whoever looks.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from neurobench.errors import ConfigError, closest
from neurobench.parsing import parse_json
from neurobench.store import NO_STAGES, atomic_write, disk_errors, must_be_output

__all__ = [
    "RUN",
    "Overview",
    "PlannedRow",
    "RowStatus",
    "State",
    "ask_to_stop",
    "asked_to_stop",
    "folder_of",
    "new_id",
    "overview",
    "overwrite_state",
    "partial",
    "planned_keys",
    "process_mark",
    "read_runs",
    "read_state",
    "tidy",
    "under_way",
    "watched_runs",
    "write_plan",
    "write_state",
]

Word = Literal["running", "finished", "failed", "cancelled", "died"]

RUN = "NEUROBENCH_RUN"
"""Environment variable with the id of the run that a process was started for."""

QUIET_S = 10.0
"""Seconds without a word after which a run on this machine whose process is gone has died."""

LOST_S = 120.0
"""Seconds without a word after which a run on another machine, whose process nobody here can see, has died."""

SKEW_S = 3600.0
"""Seconds by which clocks of two machines may differ: until then a run elsewhere that seems to have died is watched."""

WATCH_S = 8.0
"""Seconds that it is watched for: it speaks every second or two, and a network disk shows that some seconds later."""

KEPT = 20
"""Ended runs whose folders are kept."""

KEY = 12
"""Digits of a step's key in a plan: enough to tell a million steps apart on a screen."""


# ---------------------------------------------------------------- what a run says


@dataclass(frozen=True)
class State:
    """What a run said last.

    Parameters
    ----------
    id
        Name of its folder; ids sort by when the runs began.
    command
        As it was typed.
    host, pid, process
        Where it runs, and what tells its process from another one of the same number; empty where nothing does.
    version
        Of neurobench.
    started, heard
        When it began, and when it said this; seconds since 1970 by its machine's clock.
    state
        How it is; only readers find out that it ``died``.
    error
        What made it fail.
    total_s, done_s, left_s
        Estimated seconds of all its steps and of those that are through, with its processes at work at once, and until
        the end; None: nothing is left.
    learned
        Whether the time left follows from steps that were computed, and is no first guess.
    n_steps, n_computed, n_found, n_failed
        Steps in all, computed by it, found stored, failed.
    n_rows, n_written
        Rows in all, and rows of which the records are written.
    at_work
        Label of each step that is being computed, and the numbers of the rows of the plan that wait for it.
    failed_rows
        Numbers of the rows of which a step failed.
    errors
        Label and message of the first errors.
    """

    id: str
    command: str
    host: str
    pid: int
    process: str
    version: str
    started: float
    heard: float
    state: Word = "running"
    error: str = ""
    total_s: float = 0.0
    done_s: float = 0.0
    left_s: float | None = None
    learned: bool = False
    n_steps: int = 0
    n_computed: int = 0
    n_found: int = 0
    n_failed: int = 0
    n_rows: int = 0
    n_written: int = 0
    at_work: Sequence[tuple[str, Sequence[int]]] = ()
    failed_rows: Sequence[int] = ()
    errors: Sequence[tuple[str, str]] = ()

    @property
    def is_under_way(self) -> bool:
        """Whether it goes on."""
        return self.state == "running"


def new_id() -> str:
    """Return the id of a run that begins now."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(4)}"


def folder_of(out: Path, run: str) -> Path:
    """Return the folder of a run."""
    return out / "runs" / run


def write_state(out: Path, state: State) -> None:
    """Write what a run says."""
    atomic_write(folder_of(out, state.id) / "state.json", _as_json(state))


def overwrite_state(out: Path, state: State) -> None:
    """Write the last that a run says into the room that its state has: on a full disk there is no other."""
    with (folder_of(out, state.id) / "state.json").open("r+b") as file:
        file.write(_as_json(state).encode())
        file.truncate()


def _as_json(state: State) -> str:
    return json.dumps(asdict(state), ensure_ascii=False) + "\n"


def read_runs(out: Path) -> list[State]:
    """Return the runs of an output folder, those under way first, then the others, each newest first."""
    folder = out / "runs"
    names = sorted((f.name for f in folder.iterdir()), reverse=True) if folder.is_dir() else []
    found = [_looked_at(state) for name in names if (state := read_state(out, name)) is not None]
    return sorted(found, key=lambda s: not s.is_under_way)


def watched_runs(out: Path) -> list[State]:
    """Return the runs of an output folder, for who acts on what is under way.

    A run on another machine that has died by that one's clock is watched for a moment: one that speaks meanwhile goes
    on, whatever its clock says.
    """
    found = read_runs(out)
    doubtful = {s.id for s in found if s.state == "died" and s.host != socket.gethostname() and _may_be_skewed(s)}
    if not doubtful:
        return found
    before = {s.id: s.heard for s in found}
    time.sleep(WATCH_S)
    now = {run: read_state(out, run) for run in doubtful}
    found = [s if (new := now.get(s.id)) is None or new.heard == before[s.id] else new for s in found]
    return sorted(found, key=lambda s: not s.is_under_way)


def _may_be_skewed(state: State) -> bool:
    return time.time() - state.heard < SKEW_S


def read_state(out: Path, run: str) -> State | None:
    """Return what a run said last; None if it cannot be read."""
    try:
        return State(**parse_json((folder_of(out, run) / "state.json").read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _looked_at(state: State) -> State:
    """Return what a run said, and that it died if it must have."""
    silent = time.time() - state.heard
    if state.is_under_way and silent > QUIET_S and _is_gone(state, silent):
        return replace(state, state="died", at_work=())
    return state


def _is_gone(state: State, silent: float) -> bool:
    if state.host == socket.gethostname() and state.process:
        return process_mark(state.pid) != state.process
    return silent > LOST_S


def process_mark(pid: int) -> str:
    """Return what tells a living process from another one of its number; empty if there is none, or no telling."""
    with contextlib.suppress(OSError, IndexError):
        # After the name, which may hold anything: state, …, and as the 20th when it was started.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return "" if fields[0] == "Z" else fields[19]
    return ""


def tidy(out: Path) -> None:
    """Remove the folders of all but the newest ended runs."""
    ended = [s for s in read_runs(out) if not s.is_under_way]
    for state in ended[KEPT:]:
        shutil.rmtree(folder_of(out, state.id), ignore_errors=True)


# ---------------------------------------------------------------- to stop one


def under_way(out: Path, run: str = "") -> State:
    """Return the run under way that is named, or the only one.

    Raises
    ------
    ConfigError
        If there is none, or more than one and none is named.
    StoreError
        If the folder is no output folder.
    """
    must_be_output(out)
    every = watched_runs(out)
    running = {s.id: s for s in every if s.is_under_way}
    if run in running:
        return running[run]
    if not running:
        last = f"; the last one, {every[0].id}, {_ended(every[0])}" if every else ""
        raise ConfigError(f"no run is under way in {out}{last}.", next_step="`neurobench status` shows what was done.")
    if run:
        raise ConfigError(f"run {run!r} is not under way.", allowed=", ".join(running), likely=closest(run, running))
    if len(running) > 1:
        raise ConfigError(f"{len(running)} runs are under way in {out}.", allowed=f"one of {', '.join(running)}")
    return next(iter(running.values()))


def ask_to_stop(out: Path, run: str) -> None:
    """Ask a run to stop, from whatever machine: it looks for this file."""
    path = folder_of(out, run) / "cancel"
    with disk_errors(path):
        path.touch()


def asked_to_stop(out: Path, run: str) -> bool:
    """Whether somebody asked a run to stop."""
    return (folder_of(out, run) / "cancel").exists()


# ---------------------------------------------------------------- what it plans


@dataclass(frozen=True)
class PlannedRow:
    """One row of a (dataset, seed) and its steps.

    Parameters
    ----------
    dataset, seed, label, kind
        Which one.
    backbone, mask
        Labels; empty where it has none.
    steps
        For each stage the first :data:`KEY` digits of the keys of its steps, one after the other.
    """

    dataset: str
    seed: int
    label: str
    kind: str
    backbone: str
    mask: str
    steps: Mapping[str, str]


def write_plan(out: Path, run: str, rows: Sequence[PlannedRow]) -> None:
    """Write the plan of a run."""
    plain = [[r.dataset, r.seed, r.label, r.kind, r.backbone, r.mask, r.steps] for r in rows]
    atomic_write(folder_of(out, run) / "plan.json", json.dumps(plain, ensure_ascii=False, separators=(",", ":")))


def _read_plan(out: Path, run: str) -> list[PlannedRow]:
    try:
        return [PlannedRow(*row) for row in parse_json((folder_of(out, run) / "plan.json").read_bytes())]
    except (OSError, ValueError, TypeError):
        return []


def planned_keys(out: Path) -> set[str]:
    """Return the first :data:`KEY` digits of the keys of all steps that runs under way plan to use."""
    plans = (_read_plan(out, state.id) for state in watched_runs(out) if state.is_under_way)
    return {key for rows in plans for row in rows for text in row.steps.values() for key in _keys(text)}


def _keys(text: str) -> list[str]:
    return [text[i : i + KEY] for i in range(0, len(text), KEY)]


@dataclass(frozen=True)
class RowStatus:
    """How far a planned row is.

    Parameters
    ----------
    dataset, seed, row, kind, backbone, mask
        Which one.
    n_steps, n_stored, n_at_work
        Its steps, those that are stored, and those that are being computed.
    failed
        Whether one of them failed, which leaves the row where it is.
    """

    dataset: str
    seed: int
    row: str
    kind: str
    backbone: str
    mask: str
    n_steps: int
    n_stored: int
    n_at_work: int
    failed: bool

    @property
    def state(self) -> Literal["done", "at work", "failed", "to come"]:
        """The row in a word."""
        if self.n_stored == self.n_steps:
            return "done"
        return "failed" if self.failed else "at work" if self.n_at_work else "to come"


@dataclass(frozen=True)
class Overview:
    """An output folder at one moment.

    Parameters
    ----------
    runs
        As :func:`read_runs` gives them.
    rows
        What is planned by the runs under way, or else by the last one.
    n_stored
        Steps that are stored, by stage.
    """

    runs: Sequence[State]
    rows: Sequence[RowStatus]
    n_stored: Mapping[str, int]


def overview(out: Path) -> Overview:
    """Look at an output folder; names of entries are read, and no entry is opened.

    Raises
    ------
    StoreError
        If it is none.
    """
    must_be_output(out)
    runs, stored = read_runs(out), _stored(out / "store")
    shown = [s for s in runs if s.is_under_way] or runs[:1]
    rows: dict[Any, RowStatus] = {}
    for state in shown:
        n_at_work: dict[int, int] = {}
        for _, waiting in state.at_work:
            for number in waiting:
                n_at_work[number] = n_at_work.get(number, 0) + 1
        failed = set(state.failed_rows)
        for number, row in enumerate(_read_plan(out, state.id)):
            found = _row_status(row, stored, n_at_work.get(number, 0), number in failed)
            slot = row.dataset, row.seed, row.kind, row.label, tuple(row.steps.items())
            other = rows.get(slot)
            # Two runs on one grid share its steps: what one of them does is done for both.
            if other is not None:
                n = max(found.n_at_work, other.n_at_work)
                found = replace(found, n_at_work=n, failed=found.failed and other.failed)
            rows[slot] = found
    return Overview(runs, tuple(rows.values()), {stage: len(names) for stage, names in stored.items()})


def _row_status(row: PlannedRow, stored: Mapping[str, Collection[str]], n_at_work: int, failed: bool) -> RowStatus:
    n_steps = n_stored = 0
    for stage, text in row.steps.items():
        keys = _keys(text)
        names = stored.get(stage, ())
        n_steps += len(keys)
        n_stored += sum(k in names for k in keys)
    which = row.dataset, row.seed, row.label, row.kind, row.backbone, row.mask
    return RowStatus(*which, n_steps, n_stored, n_at_work, failed)


_ENTRY = re.compile(r"[0-9a-f]{64}")


def _stored(root: Path) -> dict[str, set[str]]:
    """Return the first digits of the keys of all entries, by stage; an entry is there whole or not at all."""
    stages = sorted(f.name for f in root.iterdir() if f.name not in NO_STAGES) if root.is_dir() else []
    found = {}
    for stage in stages:
        with contextlib.suppress(OSError):
            found[stage] = {name[:KEY] for name in os.listdir(root / stage) if _ENTRY.fullmatch(name)}
    return found


# ---------------------------------------------------------------- what results lack


def partial(out: str | Path) -> list[str]:
    """Return in whole sentences what the records of an output folder lack: those of runs that are not through.

    The records of a (dataset, seed) are written together when the last of its rows is through, so that what stands in
    them (skill, what is best) is compared with everything it will be compared with. Other datasets and seeds may lack.
    """
    texts = []
    runs = read_runs(Path(out))
    newest = max((s.id for s in runs), default="")
    for state in runs:
        here = f"the records of {state.n_written} of its {state.n_rows} rows are written" if state.n_rows else ""
        if state.is_under_way:
            texts.append(
                f"Partial: run {state.id} is still under way; {here or 'none of its records are written yet'}."
            )
        elif state.id == newest and state.state != "finished" and state.n_written < max(1, state.n_rows):
            here = here or "none of its records were written"
            texts.append(f"Partial: run {state.id} {_ended(state)}; {here}. The same command goes on.")
    return texts


def _ended(state: State) -> str:
    return {"cancelled": "was cancelled"}.get(state.state, state.state)

"""What happened while a run computed: one JSON object a line, each process of the run into a file of its own.

``OUT/logs/RUN/HOST-PID.jsonl``. Nobody else writes to a file, so nothing interleaves, over a network's disks neither;
every line is written at once and whole, so a process that is killed leaves nothing half-said but perhaps its last
line. Everything goes through :mod:`logging`: what this module is told, what any other logger says while a run lasts,
and Python's warnings, each with the step that the process was at.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TextIO, get_args

from neurobench.interrupts import Abandoned
from neurobench.parsing import parse_json

__all__ = [
    "WHAT",
    "JsonLines",
    "Reader",
    "What",
    "at",
    "keep",
    "kept",
    "select",
    "sentence",
    "shown",
    "step",
    "tell",
]

What = Literal[
    "run-started",
    "run-finished",
    "run-stopped",
    "worker-started",
    "cohort-ready",
    "cohort-failed",
    "step-started",
    "step-finished",
    "step-failed",
    "step-left",
    "step-lost",
    "losses",
    "checkpoint-written",
    "checkpoint-read",
    "warning",
    "message",
]
"""What a line can be about. ``step-left``: it was stopped, and is no failure; ``step-lost``: the process that computed
it ended without a word."""

WHAT: tuple[str, ...] = get_args(What)

FIRST = ("time", "level", "what", "message", "run", "host", "pid")
"""Fields that every line has, in this order; where it belongs and what is to be said of it follow."""

FIGURES = ("n_subjects", "step", "loss", "tokens_per_s", "n_computed", "n_stored", "n_failed")
"""Fields that are told in words, too."""

_log = logging.getLogger(__name__)
# What is told here goes where :func:`kept` and :func:`shown` say, and not to whatever handlers a caller's program has.
_log.setLevel(logging.INFO)
_log.propagate = False
_log.addHandler(logging.NullHandler())

_at: list[dict[str, Any]] = []
"""What this process is at, the outermost first. Of the process and not of a thread: steps come one after the other, and
threads that read ahead belong to them."""

_run = ""


# ---------------------------------------------------------------- to tell


def tell(what: What, message: str = "", *, level: int = logging.INFO, **fields: Any) -> None:
    """Write a line.

    Parameters
    ----------
    what
        What it is about.
    message
        In words, where the rest does not say it.
    level
        Of :mod:`logging`.
    **fields
        What else is to be said: plain values.
    """
    _log.log(level, message, extra={"what": what, "fields": fields})


@contextlib.contextmanager
def at(**fields: Any) -> Iterator[None]:
    """Add fields to every line that is written meanwhile, such as ``dataset``, ``seed`` and ``row``."""
    _at.append(fields)
    try:
        yield
    finally:
        _at.remove(fields)


@contextlib.contextmanager
def step(stage: str, label: str, key: str) -> Iterator[None]:
    """Tell that a step begins, and how it ended; lines that are written meanwhile belong to it."""
    with at(stage=stage, label=label, key=key):
        tell("step-started")
        started = time.perf_counter()
        try:
            yield
        except (Abandoned, KeyboardInterrupt) as error:
            tell("step-left", str(error) or "somebody asked to stop.", seconds=_since(started))
            raise
        except Exception as error:
            tell("step-failed", level=logging.ERROR, seconds=_since(started), **failure(error))
            raise
        tell("step-finished", seconds=_since(started))


def failure(error: BaseException) -> dict[str, str]:
    """Return what a line says of an error; where it came from is said of those that nobody raised on purpose."""
    # Not by its class: this module is below it.
    said = {"error": f"{type(error).__name__}: {error}"}
    if isinstance(error, Exception) and not hasattr(error, "next_step"):
        said["traceback"] = "".join(traceback.format_exception(error))
    return said


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 3)


# ---------------------------------------------------------------- to keep


class JsonLines(logging.Formatter):
    """A log record as a line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "what": getattr(record, "what", "message"),
            "message": record.getMessage(),
            "run": _run,
            "host": _host(),
            "pid": os.getpid(),
        }
        for fields in _at:
            line |= fields
        if record.name != __name__:
            line["logger"] = record.name
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps({k: v for k, v in map(_plain, line.items()) if v not in (None, "")}, ensure_ascii=False)


def _host() -> str:
    return socket.gethostname() or "unknown"


def _plain(pair: tuple[str, Any]) -> tuple[str, Any]:
    """Return what JSON has: no NaN, and text for anything else."""
    name, value = pair
    if isinstance(value, float) and not math.isfinite(value):
        return name, str(value)
    return name, value if isinstance(value, bool | int | float | str | list) or value is None else str(value)


class _Words(logging.Formatter):
    """A log record as people read it."""

    def format(self, record: logging.LogRecord) -> str:
        if record.name != __name__:
            # Some say nothing but their error.
            error = record.exc_info[1] if record.exc_info else None
            said = [record.getMessage(), f"{type(error).__name__}: {error}" if error else ""]
            return f"{record.name}: {' · '.join(filter(None, said))}"
        fields = {k: v for f in _at for k, v in f.items()} | getattr(record, "fields", {})
        return sentence({"what": getattr(record, "what", ""), "message": record.getMessage(), **fields})


def sentence(line: Mapping[str, Any]) -> str:
    """Return a line of the log in words, without when and where."""
    about = line.get("label") or line.get("dataset") or ""
    said = [str(line.get("what", "message")), str(about), str(line.get("message", ""))]
    said += [str(line["command"])] if "command" in line else []
    said += [f"{name} {line[name]}" for name in FIGURES if name in line]
    said += [f"{line['seconds']:.1f} s"] if isinstance(line.get("seconds"), float) else []
    return " · ".join(s for s in (*said, " ".join(str(line.get("error", "")).split())) if s)


class _File(logging.Handler):
    """Writes lines into a file that is this process's own, each at once."""

    def __init__(self, path: Path) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(JsonLines())
        path.parent.mkdir(parents=True, exist_ok=True)
        # By the operating system alone: what is in a buffer of Python's is lost with the process.
        self._file: int | None = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line; a disk that is full ends the run where something that counts is written, not here."""
        if self._file is None:
            return
        try:
            os.write(self._file, (self.format(record) + "\n").encode("utf-8", "backslashreplace"))
        except OSError:
            pass
        except Exception:
            # Somebody's message does not fit its arguments: no reason to stop a run.
            self.handleError(record)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        super().close()


class _Screen(logging.StreamHandler[TextIO]):
    """Writes to what is the standard error stream now: progress bars stand in for it while they are shown."""

    def __init__(self, level: int, formatter: logging.Formatter) -> None:
        logging.Handler.__init__(self, level)
        self.setFormatter(formatter)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        """The stream."""
        return sys.stderr


@contextlib.contextmanager
def shown(log_format: str = "text", *, verbose: bool = False) -> Iterator[None]:
    """Have messages of all loggers appear on the standard error stream, from warnings on.

    Parameters
    ----------
    log_format
        ``text``, or ``json``: a line each, as in the files, from single steps on.
    verbose
        From single steps on, too.
    """
    all_of_it = verbose or log_format == "json"
    level = logging.INFO if all_of_it else logging.WARNING
    screen = _Screen(level, JsonLines() if log_format == "json" else _Words())
    if log_format != "json":
        # Progress shows these itself.
        screen.addFilter(lambda record: getattr(record, "what", "") != "message")
    root = logging.getLogger()
    before = root.level
    root.addHandler(screen)
    root.setLevel(level)
    if all_of_it:
        _log.addHandler(screen)
    try:
        yield
    finally:
        root.removeHandler(screen)
        root.setLevel(before)
        _log.removeHandler(screen)


_of_this_worker = contextlib.ExitStack()


def keep(out: Path, run: str, log_format: str = "text") -> None:
    """Have this process, which computes for a run of another one, keep a log until it ends or is given another run."""
    _of_this_worker.close()
    # A worker may be a thread of the process that asks, which keeps its log already.
    if run and run != _run:
        if log_format == "json":
            _of_this_worker.enter_context(shown(log_format))
        _of_this_worker.enter_context(kept(out, run))
        tell("worker-started")


@contextlib.contextmanager
def kept(out: Path, run: str) -> Iterator[None]:
    """Keep the log of this process: ``out/logs/RUN/HOST-PID.jsonl``.

    Parameters
    ----------
    out
        Output folder, which is there.
    run
        Id of the run.
    """
    global _run
    before, _run = _run, run
    try:
        host = re.sub(r"[^A-Za-z0-9.-]", "_", _host())
        file: logging.Handler = _File(out / "logs" / run / f"{host}-{os.getpid()}.jsonl")
    except OSError as error:
        # What cannot be written is said once; whether the run can go on is seen where its results are written.
        file = logging.NullHandler()
        logging.getLogger("neurobench.logs.file").warning("no log is kept: %s", error)
    root = logging.getLogger()
    root_had_none = not root.handlers and logging.lastResort is not None
    added = [(root, file), (_log, file)]
    if root_had_none and logging.lastResort is not None:
        # Python shows warnings of loggers itself only while nobody else takes them.
        added.append((root, logging.lastResort))
    for logger, handler in added:
        logger.addHandler(handler)
    shown_before = warnings.showwarning

    def showwarning(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        tell("warning", f"{category.__name__}: {message}", level=logging.WARNING, where=f"{filename}:{lineno}")
        if not any(isinstance(h, _Screen) for h in _log.handlers):
            shown_before(message, category, filename, lineno, file, line)

    warnings.showwarning = showwarning
    try:
        yield
    finally:
        if warnings.showwarning is showwarning:
            warnings.showwarning = shown_before
        for logger, handler in added:
            logger.removeHandler(handler)
        file.close()
        _run = before


# ---------------------------------------------------------------- to read


@dataclass
class Reader:
    """The lines of all logs of an output folder, as far as they are written.

    Parameters
    ----------
    out
        The folder.
    n_broken
        Lines so far that are no JSON, as of a process that was killed while it wrote.
    """

    out: Path
    n_broken: int = 0
    _read: dict[Path, int] = field(default_factory=dict)

    def new(self) -> list[dict[str, Any]]:
        """Return whole lines that were written since the last call, of all files together by time.

        What follows the last end of a line is not looked at: it may be being written.
        """
        found: list[dict[str, Any]] = []
        for path in sorted((self.out / "logs").glob("*/*.jsonl")):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                whole, end, _ = file.read().rpartition(b"\n")
            self._read[path] = self._read.get(path, 0) + len(whole) + len(end)
            found += [line for text in whole.split(b"\n") if (line := self._line(text)) is not None]
        return sorted(found, key=lambda line: str(line["time"]))

    def n_unfinished(self) -> int:
        """Return how many files end within a line."""
        return sum(path.stat().st_size > n for path, n in self._read.items())

    def _line(self, text: bytes) -> dict[str, Any] | None:
        if not text:
            return None
        try:
            line = parse_json(text)
        except ValueError:
            line = None
        if not isinstance(line, dict) or "time" not in line:
            self.n_broken += 1
            return None
        return line


LEVELS = ("info", "warning", "error")
"""Levels that can be asked for, from the least."""


def select(
    lines: Sequence[dict[str, Any]], *, row: str = "", dataset: str = "", level: str = "info"
) -> list[dict[str, Any]]:
    """Return the lines of one row, of one dataset, and of a level or a worse one.

    Parameters
    ----------
    lines
        From a :class:`Reader`.
    row, dataset
        As in the table of results, such as ``mamba · roi``; empty: all.
    level
        ``info``, ``warning`` or ``error``.
    """
    enough = LEVELS[LEVELS.index(level) :]
    return [
        line
        for line in lines
        if (not row or line.get("row") == row)
        and (not dataset or line.get("dataset") == dataset)
        and (line.get("level") in (*enough, "critical") or level == "info")
    ]

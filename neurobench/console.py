"""The only module that prints: tables, findings, progress and errors, for a terminal or a pipe."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn
from rich.progress import Progress as Bars
from rich.segment import Segment
from rich.table import Column, Table
from rich.text import Text

from neurobench import logs
from neurobench.errors import ConfigErrors, NeurobenchError
from neurobench.progress import Silent, TimeLeft
from neurobench.tables import duration, missing, plural, results_table

if TYPE_CHECKING:
    import pandas as pd

    from neurobench.progress import Advance, Done
    from neurobench.runs import Overview, RowStatus, State

__all__ = [
    "SIMULATED",
    "Lines",
    "Terminal",
    "ended",
    "make_console",
    "print_checks",
    "print_error",
    "print_fields",
    "print_findings",
    "print_json",
    "print_log",
    "print_overview",
    "print_plan",
    "print_results",
    "print_summary",
    "print_table",
    "tell_error",
    "time_left",
    "watch_overview",
]

PIPE_WIDTH = 160
"""Columns of a line where there is no terminal to ask."""


PLAN_ROWS = 60
"""Steps of a plan that are shown one by one."""


UNPRINTABLE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What moves a cursor, clears a screen, turns the direction of a line round, or is no character at all."""


class _Console(Console):
    """A console on which names and messages of strangers are text and nothing else."""

    def on_broken_pipe(self) -> None:
        """Go on without a reader, as in `neurobench run … 2>&1 | head -1`: what is computed is not lost with a line."""
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.file.fileno())
        os.close(nowhere)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or not UNPRINTABLE.search(segment.text):
                yield segment
            else:
                yield Segment(UNPRINTABLE.sub("?", segment.text), segment.style)


def make_console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """Return a console; in a pipe its lines are wide and plain."""
    console = _Console(stderr=stderr, quiet=quiet, highlight=False, markup=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPE_WIDTH
    return console


# ---------------------------------------------------------------- errors


def print_error(error: NeurobenchError, console: Console) -> None:
    """Print an error with its four parts on lines of their own."""
    if isinstance(error, ConfigErrors):
        n = len(error.problems)
        console.print(
            Text(f"{n} problems; nothing was started." if n > 1 else "Nothing was started.", style="bold red")
        )
        for i, problem in enumerate(error.problems, 1):
            if n > 1:
                console.print()
            console.print(_parts(problem, f"{i}. " if n > 1 else ""))
    else:
        console.print(_parts(error, "Error: "))


def _parts(error: NeurobenchError, lead: str) -> RenderableType:
    lines: list[RenderableType] = [Text(lead, style="bold red").append(error.what, style="default not bold")]
    for word, text, style in (
        ("did you mean", error.likely, "bold green"),
        ("allowed", error.allowed, "default"),
        ("next", error.next_step, "default"),
    ):
        if text:
            lines.append(Padding(Text(f"{word}: ", style="dim").append(text, style=style), (0, 0, 0, 3), expand=False))
    return Group(*lines)


def tell_error(error: NeurobenchError) -> None:
    """Say an error, or each of several, as a line of the log."""
    for problem in error.problems if isinstance(error, ConfigErrors) else (error,):
        logs.tell(
            "message",
            problem.what,
            level=logging.ERROR,
            likely=problem.likely,
            allowed=problem.allowed,
            next=problem.next_step,
        )


# ---------------------------------------------------------------- the log of a run

LEVEL_STYLES = {"warning": "yellow", "error": "red", "critical": "bold red"}


def print_log(console: Console, lines: Sequence[Mapping[str, Any]], *, traceback: bool = False) -> None:
    """Print lines of a log, one below the other: when, who, and what.

    Parameters
    ----------
    console
        Where to.
    lines
        From a :class:`neurobench.logs.Reader`.
    traceback
        Print where an error came from below it.
    """
    for line in lines:
        when = str(line["time"])[:19].replace("T", " ")
        who = f"{line.get('host', '')}/{line.get('pid', '')}"
        text = Text(f"{when}  {who}  ", style="dim")
        text.append(logs.sentence(line), style=LEVEL_STYLES.get(str(line.get("level")), "not dim"))
        console.print(text, soft_wrap=True)
        if traceback and line.get("traceback"):
            console.print(Text(str(line["traceback"]), style="dim"), soft_wrap=True)


# ---------------------------------------------------------------- plain tables


def print_table(
    console: Console,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    title: str = "",
    right: Sequence[str] = (),
) -> None:
    """Print rows of text; the columns named in ``right`` hold numbers."""
    # The title is no title of rich's: that would be broken at the width of a narrow table.
    if title:
        console.print(Text(title, style="bold"), soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold", header_style="dim")
    for row in rows:
        table.add_row(*(c if isinstance(c, Text) else Text("" if missing(c) else str(c)) for c in row))
    console.print(table)


def print_frame(console: Console, frame: pd.DataFrame, *, title: str) -> None:
    """Print a table as it is; nothing if it has no rows."""
    if len(frame):
        columns = [str(c) for c in frame.columns]
        numbers = [c for c in columns if frame[c].dtype.kind in "if"]
        rows = [[f"{v:.4g}" if isinstance(v, float) else v for v in row] for row in frame.to_numpy().tolist()]
        print_table(console, columns, rows, title=title, right=numbers)


def print_json(console: Console, value: Any) -> None:
    """Print JSON and nothing else; numbers that are not finite become null."""
    text = json.dumps(_plain(value), indent=1, ensure_ascii=False)
    console.file.write(UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    if missing(value) and value != "":
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, bool | int | float | str) else str(value)


# ---------------------------------------------------------------- results

SIMULATED = "SIMULATED: measures the software, not the model"


def print_results(table: pd.DataFrame, console: Console, notes: Sequence[str] = ()) -> None:
    """Print one table a (dataset, task), with what a reader must know to believe it.

    Parameters
    ----------
    table
        One row a (dataset, task, row), as :func:`neurobench.load_results` gives them, plus ``best``.
    console
        Where to.
    notes
        Printed below.
    """
    if (table["source"] == "simulated").any():
        console.print(Text(f" {SIMULATED} ", style="black on yellow" if console.is_terminal else ""))
    lost: dict[tuple[str, str], list[str]] = {}
    for (dataset, _, task), block in table.groupby(["dataset", "source", "task"], sort=False):
        errors = {str(e) for e in block["error"]}
        if (block["status"] == "failed").all() and len(errors) == 1:
            lost.setdefault((str(dataset), errors.pop()), []).append(str(task))
            continue
        console.print()
        console.print(results_table(block, console.width))
    for (dataset, error), tasks in lost.items():
        console.print()
        console.print(Text(f"{', '.join(tasks)} on {dataset}: every row ").append("failed", style="red"))
        console.print(Padding(Text(error), (0, 0, 0, 1), expand=False))
    for note in notes:
        console.print(Padding(Text("· ", style="dim").append(note), (0, 0, 0, 1), expand=False))


def print_summary(
    console: Console, *, out: object, seconds: float, n_computed: int, n_stored: int, scored: bool
) -> None:
    """Print the last line of a run, and, if a row was ``scored``, what to do with it."""
    steps = f"{plural(n_computed, 'step')} computed, {n_stored} found stored, {duration(seconds)}"
    console.print(Text(f"\n{steps} · results in {out}", style="dim"))
    if scored:
        what = f"what separates the rows: neurobench compare {out} · a page for reviewers: neurobench report {out}"
        console.print(Text(what, style="dim"), soft_wrap=True)


def print_plan(console: Console, plan: Any, *, quiet: bool = False) -> None:
    """Print the steps of a plan, those stored by their number, the others one by one; and what each row costs."""
    todo = [i for i in plan.items if i.state != "stored"]
    n_stored = len(plan.items) - len(todo)
    if not todo:
        console.print(f"{plural(0, 'step')} to do; {n_stored} stored. Nothing was started.")
        return
    rows = [
        (i.stage, i.label, i.state, _about(i.seconds), i.source, Text(i.why, style="dim")) for i in todo[:PLAN_ROWS]
    ]
    print_table(console, ("stage", "step", "state", "estimate", "from", "why"), rows, right=("estimate",))
    if len(todo) > PLAN_ROWS:
        console.print(f"and {len(todo) - PLAN_ROWS} more; --json lists all.", style="dim")
    costs = [
        (r.dataset, r.row, _about(r.pretraining), _about(r.scoring), _about(r.seconds), r.source)
        for r in plan.rows[:PLAN_ROWS]
    ]
    columns = ("dataset", "row", "pretraining", "all else", "together", "from")
    print_table(console, columns, costs, title="What each row costs", right=columns[2:5])
    if len(plan.rows) > PLAN_ROWS:
        console.print(f"and {len(plan.rows) - PLAN_ROWS} more rows; --json lists all.", style="dim")
    unknown = f", without what is not known of {plural(plan.unknown, 'row')}" if plan.unknown else ""
    at_once = f" of computing, {duration(plan.wall_s)} on {plan.jobs} processes" if plan.jobs > 1 else ""
    estimate = f", about {duration(plan.seconds)}{at_once}{unknown}" if plan.seconds else ""
    whole = sum(i.whole for i in todo)
    steps = plural(len(todo) - whole, "step") + (f" and all those of {plural(whole, 'seed')}" if whole else "")
    console.print(f"{steps} to do{estimate}; {n_stored} stored. Nothing was started.")
    if quiet:
        return
    for note in plan.notes:
        console.print(Padding(Text("· ", style="dim").append(note), (0, 0, 0, 1), expand=False))
    console.print(
        "measured here: like steps of this folder; probe: timed just now on a few subjects, "
        f"{duration(plan.probe_s)}; table: measured elsewhere, scaled to this machine",
        style="dim",
    )


def _about(seconds: float | None) -> str:
    """Return an estimate in words: a question mark for what is not known, nothing for nothing."""
    return "?" if seconds is None else duration(seconds) if seconds > 0 else ""


def print_findings(console: Console, findings: Sequence[Any]) -> None:
    """Print findings, worst first, those of one code together with their number and a few examples."""
    styles = {"error": "red", "warning": "yellow", "info": "dim"}
    for level, style in styles.items():
        by_code: dict[str, list[Any]] = {}
        for finding in findings:
            if finding.level == level:
                by_code.setdefault(finding.code, []).append(finding)
        for code, found in by_code.items():
            console.print(Text(f"{level} ", style=style).append(f"{code} × {len(found)}", style="bold"))
            for finding in found[:3]:
                who = f"{finding.subject}: " if finding.subject else ""
                console.print(Padding(Text(f"{who}{finding.message}"), (0, 0, 0, 3), expand=False))
            if len(found) > 3:
                console.print(Padding(Text(f"and {len(found) - 3} more", style="dim"), (0, 0, 0, 3), expand=False))
            if found[0].fix:
                console.print(Padding(Text("next: ", style="dim").append(found[0].fix), (0, 0, 0, 3), expand=False))


def print_checks(console: Console, title: str, results: Sequence[Any]) -> None:
    """Print what each contract check said, those that need work last and in full; one error of several checks once."""
    styles = {"passed": "green", "failed": "bold red", "unexpected-pass": "bold red"}
    console.print(Text(title, style="bold"))
    together: dict[tuple[Any, ...], list[Any]] = {}
    for result in sorted(results, key=lambda r: not r.ok):
        key = (result.check,) if result.ok else (result.outcome, result.message)
        together.setdefault(key, []).append(result)
    for same in together.values():
        result = same[0]
        line = Text(" ").append(result.outcome.replace("-", " "), style=styles.get(result.outcome, "yellow"))
        console.print(line.append(f"  {', '.join(r.check for r in same)}"))
        if result.message:
            console.print(Padding(Text(result.message, style="dim" if result.ok else ""), (0, 0, 0, 3), expand=False))
    failed = sum(not r.ok for r in results)
    console.print(f"{plural(len(results), 'check')}, {failed or 'none'} failed.")


def print_fields(console: Console, title: str, fields: Mapping[str, Any]) -> None:
    """Print a title and one line a field; empty fields are left out."""
    console.print(Text(title, style="bold"))
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in fields.items():
        lines = [str(v) for v in value] if isinstance(value, list | tuple) else [str(value)]
        for i, line in enumerate(x for x in lines if x):
            grid.add_row("" if i else name, Text(line))
    console.print(Padding(grid, (0, 0, 0, 1), expand=False))


# ---------------------------------------------------------------- runs

WORDS = {"running": ("under way", "bold cyan"), "finished": ("finished", "green"), "failed": ("failed", "bold red")}
WORDS |= {"cancelled": ("cancelled", "yellow"), "died": ("died", "bold red")}

STATES = {"done": "green", "at work": "cyan", "failed": "red", "to come": "dim"}
"""States of a row, and their styles."""

RECENT = 3
"""Ended runs that are shown unless all are asked for."""

SILENT_S = 30.0
"""Seconds without a word that are worth saying of a run under way."""

GROUPS = 40
"""Lines of the table of a grid; with more than that one line stands for a whole dataset."""


def print_overview(overview: Overview, console: Console, *, all_rows: bool = False) -> None:
    """Print the runs of a folder, how far their grid is, and how much is stored."""
    console.print(_overview(overview, console.width, all_rows))


def watch_overview(look: Callable[[], Overview], console: Console, *, every: float, all_rows: bool = False) -> None:
    """Show a folder anew every few seconds until no run is under way; in a pipe, print a line whenever one changed."""
    found = look()
    if console.is_terminal:
        with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
            while True:
                live.update(_overview(found, console.width, all_rows), refresh=True)
                if not any(s.is_under_way for s in found.runs):
                    break
                time.sleep(every)
                found = look()
        return
    said: dict[str, str] = {}
    watched = {s.id for s in found.runs if s.is_under_way}
    while True:
        for state in reversed(found.runs):
            watched |= {state.id} if state.is_under_way else set()
            if state.id in watched and said.get(state.id) != (line := _line(state)):
                said[state.id] = line
                console.print(f"{time.strftime('%H:%M:%S')} {line}", soft_wrap=True)
                console.file.flush()
        if not any(s.is_under_way for s in found.runs):
            break
        time.sleep(every)
        found = look()
    if not watched:
        console.print("no run is under way.")


def ended(state: State) -> str:
    """Return how a run ended, in words."""
    return WORDS[state.state][0]


def _line(state: State) -> str:
    """Return what a run says that changes only when something happens."""
    parts = [f"run {state.id} {ended(state)}", _steps(state)]
    parts += [f"at work: {_at_work(state)}"] if state.at_work else []
    return " · ".join(parts + ([state.error] if state.error else []))


def _steps(state: State) -> str:
    through = state.n_computed + state.n_found
    if not state.n_steps:
        return "steps not known yet"
    failed = f", {state.n_failed} failed" if state.n_failed else ""
    return f"{through:,} of {state.n_steps:,} steps ({state.n_found:,} found stored{failed})"


def _at_work(state: State) -> str:
    labels = [label for label, _ in state.at_work]
    return ", ".join(labels[:2]) + (f" and {len(labels) - 2} more" if len(labels) > 2 else "")


def _overview(overview: Overview, width: int, all_rows: bool) -> RenderableType:
    now = time.time()
    running = [s for s in overview.runs if s.is_under_way]
    ended_runs = [s for s in overview.runs if not s.is_under_way]
    parts: list[RenderableType] = [_run(s, now, width) for s in running]
    parts += [_run(s, now, width) for s in (ended_runs if all_rows else ended_runs[:RECENT])]
    if not all_rows and len(ended_runs) > RECENT:
        parts.append(Text(f"and {plural(len(ended_runs) - RECENT, 'earlier run')}; --all shows them.", style="dim"))
    if overview.rows:
        parts.append(_rows(overview.rows) if all_rows else _groups(overview.rows, width))
    n, stages = sum(overview.n_stored.values()), ", ".join(f"{s} {n:,}" for s, n in overview.n_stored.items())
    parts.append(Text(f"{n:,} {'step' if n == 1 else 'steps'} stored" + (f": {stages}" if stages else "") + "."))
    return Group(*parts)


def _run(state: State, now: float, width: int) -> RenderableType:
    """Return what there is to know of a run: the time, how far it is, and what is at work or went wrong."""
    word, style = WORDS[state.state]
    head = Text.assemble(("● ", style), (state.id, "bold"), (f" {word}", style))
    if state.is_under_way:
        times = [f"for {duration(now - state.started)}", f"on {state.host}"]
        if state.heard - now > SILENT_S:
            times.append(f"its clock is {duration(state.heard - now)} ahead of this one's")
        if now - state.heard > SILENT_S:
            times.append(f"silent for {duration(now - state.heard)}")
        times.append(time_left(state.left_s, learned=state.learned))
    else:
        # Nobody here sees its process.
        by = f" by the clock of {state.host}" if state.state == "died" and state.host != socket.gethostname() else ""
        times = [f"{duration(now - state.heard)} ago{by}", f"after {duration(state.heard - state.started)}"]
    head.append("".join(f" · {t}" for t in times if t), style="dim")
    lines = [Text(state.command, style="dim", overflow="ellipsis", no_wrap=True)]
    share = state.done_s / state.total_s if state.total_s else 0.0
    bar = Text.assemble(*_bar(share, 30, style)) if state.is_under_way and state.n_steps else Text()
    lines.append(bar.append((f" {share:.0%}  " if bar else "") + _steps(state)))
    if state.n_rows and not (state.state == "finished" and state.n_written == state.n_rows):
        lines[-1].append(f" · records of {state.n_written:,} of {state.n_rows:,} rows written")
    if state.at_work:
        lines.append(Text.assemble(("at work: ", "dim"), _at_work(state)))
    if state.error:
        lines.append(Text(state.error, style="red"))
    for label, message in state.errors[:3]:
        lines.append(Text.assemble((f"failed: {label}: ", "red"), message))
    if len(state.errors) > 3:
        lines.append(Text(f"and {state.n_failed - 3} more", style="dim"))
    return Group(head, *(Padding(line, (0, 0, 0, 2), expand=False) for line in lines), "")


WIDE, NARROW = 100, 72
"""Characters of a line from which on there is room for bars, and for how many rows are what."""


def _bar(share: float, width: int, style: str) -> tuple[tuple[str, str], tuple[str, str]]:
    n = min(width, math.floor(share * width + 1e-9))
    return ("━" * n, style), ("─" * (width - n), "dim")


def _groups(rows: Sequence[RowStatus], width: int) -> RenderableType:
    """Return a table of the grid: one line a backbone of each dataset, or a dataset where those are many.

    In a narrow terminal names and how many steps are stored matter more than bars, and than how many rows are what.
    """
    groups: dict[tuple[str, ...], list[RowStatus]] = {}
    for row in rows:
        groups.setdefault((row.dataset, row.backbone or "baselines and fillers"), []).append(row)
    columns = ["dataset", "backbone"]
    if len(groups) > GROUPS:
        groups, columns = {}, ["dataset"]
        for row in rows:
            groups.setdefault((row.dataset,), []).append(row)
    shown = dict(list(groups.items())[:GROUPS])
    counted = ("rows", *STATES, "steps", "")
    kept = counted if width >= WIDE else counted[:-1] if width >= NARROW else ("steps",)
    table = _status_table(columns, kept)
    for name, own in shown.items():
        table.add_row(*name, *_counts(own, kept))
    if len(groups) > 1:
        table.add_section()
        table.add_row("all", *[""] * (len(columns) - 1), *_counts(rows, kept))
    more = [Text(f"and {plural(len(groups) - GROUPS, 'more dataset')}", style="dim")] if len(groups) > GROUPS else []
    return Group(table, *more)


def _status_table(columns: Sequence[str], counted: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold", header_style="dim")
    for name in counted:
        table.add_column(name, justify="right", header_style="dim", no_wrap=True)
    return table


def _counts(rows: Sequence[RowStatus], counted: Sequence[str]) -> list[Text]:
    """Return cells: how many rows, how many in each state, and how many of their steps are stored."""
    states = [row.state for row in rows]
    n_steps, n_stored = sum(r.n_steps for r in rows), sum(r.n_stored for r in rows)
    cells = {"rows": Text(f"{len(rows):,}"), "steps": Text(f"{n_stored:,} of {n_steps:,}")}
    for word, style in STATES.items():
        n = states.count(cast("Any", word))
        cells[word] = Text(f"{n:,}" if n else "·", style=style if n else "dim")
    cells[""] = Text.assemble(*_bar(n_stored / n_steps if n_steps else 1.0, 12, "green"))
    return [cells[name] for name in counted]


def _rows(rows: Sequence[RowStatus]) -> RenderableType:
    """Return a line a row; of rich's tables one of ten thousand lines takes seconds."""
    head = ("dataset", "seed", "row", "kind", "state", "stored", "at work")
    cells = [
        (r.dataset, str(r.seed), r.row, r.kind, r.state, f"{r.n_stored} of {r.n_steps}", str(r.n_at_work or ""))
        for r in rows
    ]
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    text = Text(no_wrap=True, overflow="ignore")
    for line, style in [(head, "dim"), *((c, STATES[c[4]]) for c in cells)]:
        padded = "   ".join(c.ljust(w) for c, w in zip(line, widths, strict=True))
        text.append(f" {padded.rstrip()}\n", style=style)
    return text


# ---------------------------------------------------------------- progress


def time_left(seconds: float | None, *, learned: bool) -> str:
    """Return the time left in words, as :class:`neurobench.progress.TimeLeft` knows it."""
    if seconds is None:
        return ""
    if seconds == 0:
        return "longer than expected"
    # Steps of five seconds from a minute on: a figure that jumps about promises what nobody knows.
    shown = duration(5 * round(seconds / 5) if seconds > 60 else max(1, round(seconds)))
    return f"about {shown} left" if learned else f"about {shown}, first guess"


class _Share(ProgressColumn):
    """The share that is done, where it is known."""

    def render(self, task: Task) -> Text:
        return Text("" if task.total is None else f"{task.percentage:>3.0f} %", style="dim")


class _Left(ProgressColumn):
    """The time left: a grid's own estimate, or what follows from how fast a stage has been so far."""

    def render(self, task: Task) -> Text:
        if (left := task.fields.get("left")) is not None:
            return Text(time_left(left.seconds(), learned=left.learned), style="dim")
        # A stage of a few seconds is over before its estimate is worth reading.
        remaining = task.time_remaining if (task.elapsed or 0.0) > 3.0 else None
        return Text("" if not remaining else f"about {duration(max(1, round(remaining)))} left", style="dim")


class Lines(Silent):
    """Progress where there is no terminal: no bars, and a line for what failed and for what has to be known."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def failed(self, label: str, error: str) -> None:
        """Print what failed."""
        self._print(f"failed: {label}: {error}")

    def note(self, message: str) -> None:
        """Print a line."""
        self._print(message)

    def _print(self, line: str) -> None:
        self.console.print(line, markup=False, soft_wrap=True)
        self.console.file.flush()


class Terminal:
    """Progress on a terminal: a bar for the whole grid with the time left, and one for the stage at work."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bars = Bars(
            TextColumn(
                "{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
            ),
            BarColumn(bar_width=20),
            _Share(),
            _Left(table_column=Column(no_wrap=True)),
            console=console,
            expand=True,
            transient=True,
        )
        self._open: list[Any] = []
        self._elsewhere: dict[str, Any] = {}

    def __enter__(self) -> Terminal:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    @contextlib.contextmanager
    def grid(self, total: float) -> Iterator[Done]:
        """Show the bar of the whole grid."""
        left = TimeLeft(total)
        bar = self._bars.add_task("all", total=total or 1.0, left=left)

        def done(seconds: float, computed: bool) -> None:
            left.step(seconds, computed)
            self._bars.advance(bar, seconds)

        try:
            yield done
        finally:
            self._bars.remove_task(bar)

    @contextlib.contextmanager
    def stage(self, label: str) -> Iterator[Advance]:
        """Show the bar of a stage; it hides the one around it."""
        for other in self._open:
            self._bars.update(other, visible=False)
        bar = self._bars.add_task(label, total=None)
        self._open.append(bar)
        try:
            yield lambda done, total: self._bars.update(bar, completed=done, total=total)
        finally:
            self._bars.remove_task(self._open.pop())
            if self._open:
                self._bars.update(self._open[-1], visible=True)

    def at_work(self, labels: Sequence[str]) -> None:
        """Show a bar without an end for every stage at work in another process."""
        for label in set(self._elsewhere) - set(labels):
            self._bars.remove_task(self._elsewhere.pop(label))
        for label in labels:
            if label not in self._elsewhere:
                self._elsewhere[label] = self._bars.add_task(label, total=None)

    def failed(self, label: str, error: str) -> None:
        """Print what failed above the bars."""
        self._bars.console.print(Text(f"failed: {label}: {error}", style="red"))

    def note(self, message: str) -> None:
        """Print a line above the bars."""
        self._bars.console.print(Text(message, style="dim"))

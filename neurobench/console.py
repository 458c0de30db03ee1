"""The only module that prints: tables, findings, progress and errors, for a terminal or a pipe."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.padding import Padding
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn
from rich.progress import Progress as Bars
from rich.segment import Segment
from rich.table import Column, Table
from rich.text import Text

from neurobench.errors import ConfigErrors, NeurobenchError
from neurobench.tables import duration, missing, plural, results_table

if TYPE_CHECKING:
    import pandas as pd

    from neurobench.progress import Advance, Done

__all__ = [
    "SIMULATED",
    "Terminal",
    "make_console",
    "print_checks",
    "print_error",
    "print_fields",
    "print_findings",
    "print_json",
    "print_plan",
    "print_results",
    "print_summary",
    "print_table",
]

PIPE_WIDTH = 160
"""Columns of a line where there is no terminal to ask."""


PLAN_ROWS = 60
"""Steps of a plan that are shown one by one."""


UNPRINTABLE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What moves a cursor, clears a screen, turns the direction of a line round, or is no character at all."""


class _Console(Console):
    """A console on which names and messages of strangers are text and nothing else."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or not UNPRINTABLE.search(segment.text):
                yield segment
            else:
                yield Segment(UNPRINTABLE.sub("?", segment.text), segment.style)


def make_console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """Return a console; in a pipe its lines are wide and plain."""
    console = _Console(stderr=stderr, quiet=quiet, highlight=False, markup=False)
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
    for _, block in table.groupby(["dataset", "source", "task"], sort=False):
        console.print()
        console.print(results_table(block, console.width))
    for note in notes:
        console.print(Padding(Text("· ", style="dim").append(note), (0, 0, 0, 1), expand=False))


def print_summary(console: Console, *, out: object, seconds: float, n_computed: int, n_stored: int) -> None:
    """Print the last line of a run."""
    steps = f"{plural(n_computed, 'step')} computed, {n_stored} found stored, {duration(seconds)}"
    console.print(Text(f"\n{steps} · results in {out}", style="dim"))
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
    console.print(f"{plural(len(todo), 'step')} to do{estimate}; {n_stored} stored. Nothing was started.")
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
    """Print what each contract check said, those that need work last and in full."""
    styles = {"passed": "green", "failed": "bold red", "unexpected-pass": "bold red"}
    console.print(Text(title, style="bold"))
    for result in sorted(results, key=lambda r: not r.ok):
        line = Text(" ").append(result.outcome.replace("-", " "), style=styles.get(result.outcome, "yellow"))
        console.print(line.append(f"  {result.check}"))
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


# ---------------------------------------------------------------- progress


@dataclass
class TimeLeft:
    """Honest time left of a grid: the estimate, corrected by how long its steps really took.

    Steps that were found stored take no time, and teach nothing about those that are left.
    """

    total: float
    clock: Callable[[], float] = time.monotonic
    done: float = 0.0
    spent: float = 0.0
    estimated: float = 0.0
    since: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.since = self.clock()

    def step(self, seconds: float, *, computed: bool) -> None:
        """Count one step of ``seconds`` estimated seconds."""
        now = self.clock()
        if computed:
            self.spent += now - self.since
            self.estimated += seconds
        self.done += seconds
        self.since = now

    def seconds(self) -> float:
        """Return the seconds left."""
        factor = self.spent / self.estimated if self.estimated > 0 else 1.0
        return max(0.0, (self.total - self.done) * factor - (self.clock() - self.since))

    def __str__(self) -> str:
        if self.total <= 0 or self.done >= self.total:
            return ""
        left = self.seconds()
        if left == 0:
            return "longer than expected"
        # Steps of five seconds from a minute on: a figure that jumps about promises what nobody knows.
        shown = duration(5 * round(left / 5) if left > 60 else max(1, round(left)))
        return f"about {shown} left" if self.estimated > 0 else f"about {shown}, first guess"


class _Left(ProgressColumn):
    """The time left: a grid's own estimate, or what follows from how fast a stage has been so far."""

    def render(self, task: Task) -> Text:
        if "left" in task.fields:
            return Text(str(task.fields["left"]), style="dim")
        # A stage of a few seconds is over before its estimate is worth reading.
        remaining = task.time_remaining if (task.elapsed or 0.0) > 3.0 else None
        return Text("" if not remaining else f"about {duration(max(1, round(remaining)))} left", style="dim")


class Terminal:
    """Progress on a terminal: a bar for the whole grid with the time left, and one for the stage at work."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bars = Bars(
            TextColumn(
                "{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
            ),
            BarColumn(bar_width=20),
            TextColumn("{task.percentage:>3.0f} %", style="dim", markup=False),
            _Left(table_column=Column(no_wrap=True)),
            console=console,
            expand=True,
            transient=True,
        )
        self._open: list[Any] = []
        self._elsewhere: dict[str, Any] = {}
        self._computed = False

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

        def done(seconds: float) -> None:
            left.step(seconds, computed=self._computed)
            self._computed = False
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
        self._computed = True
        try:
            yield lambda done, total: self._bars.update(bar, completed=done, total=total)
        finally:
            self._bars.remove_task(self._open.pop())
            if self._open:
                self._bars.update(self._open[-1], visible=True)

    def at_work(self, labels: Sequence[str]) -> None:
        """Show a bar without an end for every stage at work in another process."""
        self._computed |= bool(labels)
        for label in set(self._elsewhere) - set(labels):
            self._bars.remove_task(self._elsewhere.pop(label))
        for label in labels:
            if label not in self._elsewhere:
                self._elsewhere[label] = self._bars.add_task(label, total=None)

    def note(self, message: str) -> None:
        """Print a line above the bars."""
        self._bars.console.print(Text(message, style="dim"))

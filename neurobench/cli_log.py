"""``neurobench log``: what happened while runs computed, of all their processes together."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from neurobench import logs
from neurobench.commands import Verbose, choice, guarded
from neurobench.errors import ConfigError, StoreError, closest

__all__ = ["log"]

POLL_S = 1.0
"""How often files are looked at with --follow."""


@guarded
def log(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Output folder of one or more runs.")] = Path(
        "neurobench-results"
    ),
    row: Annotated[str, typer.Option(help="Of one row alone, as in the table: 'mamba · roi'.", metavar="ROW")] = "",
    dataset: Annotated[str, typer.Option("--dataset", "-d", help="Of one dataset alone.", metavar="NAME")] = "",
    level: Annotated[
        str,
        typer.Option(
            metavar="info|warning|error", help="That or worse.", autocompletion=choice(*logs.LEVELS), show_default=False
        ),
    ] = "info",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is written from now on.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print lines of JSON and nothing else.")] = False,
    verbose: Verbose = False,
) -> None:
    """Show what happened while runs computed: every process of every run, by time.

    Example: neurobench log neurobench-results --row 'mamba · roi' --level warning
    """
    from neurobench import console

    if level not in logs.LEVELS:
        raise ConfigError(
            f"--level cannot be {level!r}.", allowed=", ".join(logs.LEVELS), likely=closest(level, logs.LEVELS)
        )
    if not (out / "logs").is_dir():
        raise StoreError(
            f"{out} holds no log.", next_step="Give the output folder of a run; one that has just begun may have none."
        )
    screen, side = console.make_console(), console.make_console(stderr=True)
    reader = logs.Reader(out)

    def show(lines: list[dict[str, Any]]) -> None:
        found = logs.select(lines, row=row, dataset=dataset, level=level)
        if as_json:
            for line in found:
                screen.file.write(json.dumps(line, ensure_ascii=False) + "\n")
            screen.file.flush()
        else:
            console.print_log(screen, found, traceback=verbose)

    lines = reader.new()
    if not follow:
        _known("row", row, lines)
        _known("dataset", dataset, lines)
    show(lines)
    if follow:
        try:
            while True:
                time.sleep(POLL_S)
                show(reader.new())
        except KeyboardInterrupt:
            return
    if (n := reader.n_broken + reader.n_unfinished()) and not as_json:
        side.print(f"{n} broken lines were skipped: a process was killed while it wrote.", style="dim")


def _known(what: str, asked: str, lines: list[dict[str, Any]]) -> None:
    """Refuse a row or dataset that no line is about."""
    known = sorted({str(line[what]) for line in lines if what in line})
    if asked and asked not in known:
        raise ConfigError(
            f"no line of the log is about the {what} {asked!r}.",
            allowed=", ".join(known) or "none: nothing was computed yet",
            likely=closest(asked, known),
        )

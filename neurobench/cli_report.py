"""``neurobench report``: from an output folder to pages that a reviewer can read."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from neurobench.commands import PluginFiles, Verbose, guarded, open_registry

__all__ = ["report"]


@guarded
def report(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Output folder of one or more runs.")] = Path(
        "neurobench-results"
    ),
    to: Annotated[Path | None, typer.Option("--to", help="Folder of the report; OUT/report without.")] = None,
    figures: Annotated[bool, typer.Option("--figures/--no-figures", help="Draw, or tables and words only.")] = True,
    plugin: PluginFiles = None,
    verbose: Verbose = False,
) -> None:
    """Write a report of everything in an output folder: HTML in one file, Markdown, CSV.

    Example: neurobench report neurobench-results
    """
    from neurobench import console
    from neurobench.report import build_report
    from neurobench.report_writing import write_report
    from neurobench.results import records_table

    screen, side = console.make_console(), console.make_console(stderr=True)
    with side.status("drawing") if side.is_terminal else contextlib.nullcontext():
        registry = open_registry(plugin or ())
        built = build_report(out, registry, figures=figures)
        paths = write_report(built, records_table(out), to or out / "report")
    for line in built.partial:
        screen.print(line, markup=False, style="yellow")
    for section in built.sections:
        title = f"{section.title}{' (simulated)' if section.simulated else ''}"
        screen.print(title, markup=False, style="bold")
        for caveat in (*section.caveats, *(c for t in section.tasks for c in t.caveats)):
            if caveat.level != "info":
                where = f"{caveat.task}: " if caveat.task else ""
                style = "red" if caveat.level == "error" else "yellow"
                screen.print(f" {caveat.level} · {where}{caveat.text}", markup=False, style=style)
    for path in paths:
        screen.print(str(path), markup=False)

"""``neurobench store``: look after what runs left on disk."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from neurobench.commands import AsJson, Verbose, guarded

__all__ = ["store"]

store = typer.Typer(
    name="store",
    help="Look after what runs left on disk: check it, clear it, move it, put several folders into one.",
    no_args_is_help=True,
)

Folder = Annotated[Path, typer.Argument(metavar="OUT", help="Output folder of one or more runs.")]


@store.command()
@guarded
def check(
    out: Folder = Path("neurobench-results"),
    remove: Annotated[
        bool, typer.Option("--remove", help="Remove damaged entries; the next run computes them again.")
    ] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Read everything to its last byte, and say what is not as it was written. Exit code 1: something is not.

    Example: neurobench store check neurobench-results
    """
    from dataclasses import asdict

    from neurobench import console, upkeep

    screen, side = console.make_console(), console.make_console(stderr=True)
    with console.Terminal(side) if side.is_terminal else contextlib.nullcontext() as progress:
        stage = progress.stage(f"read {out}") if progress else contextlib.nullcontext(lambda done, total: None)
        with stage as advance:
            found = upkeep.check(out, remove=remove, advance=advance)
    if as_json:
        console.print_json(screen, asdict(found))
    else:
        for problem in found.problems:
            screen.print(f"{problem.path}: {problem.what}", markup=False, soft_wrap=True)
        for label in found.unfinished:
            screen.print(f"unfinished, goes on when its command is run again: {label}", markup=False, soft_wrap=True)
        size = f"{found.n_bytes / 1e6:.1f} MB"
        screen.print(f"{found.n_entries} entries ({size}) and {found.n_records} records read.", markup=False)
        entries = sum(p.entry for p in found.problems)
        if entries:
            screen.print(
                f"{entries} damaged entries were removed; the next run computes them again."
                if remove
                else f"{entries} entries are damaged; with --remove they go, and the next run computes them again.",
                markup=False,
            )
        records = sum(p.path.startswith("records/") for p in found.problems)
        if records:
            screen.print("Records are never removed: run their command again, which writes those named here anew.")
        if len(found.problems) > entries + records:
            screen.print("What lies beside records is written anew when their command is run again.")
    if found.problems:
        raise typer.Exit(1)


@store.command()
@guarded
def gc(
    out: Folder = Path("neurobench-results"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    keep_days: Annotated[float, typer.Option(min=0.0, help="Remove nothing that is younger.")] = 7.0,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Remove entries that were made anew since, with other code, data or options, and that no record rests on.

    Checkpoints of what nobody has gone on with, and files that killed processes left half-written, go, too.

    Example: neurobench store gc neurobench-results --dry-run
    """
    from neurobench import console, upkeep
    from neurobench.tables import plural

    screen = console.make_console()
    found = upkeep.collect_garbage(out, keep_days=keep_days, remove=not dry_run)
    if as_json:
        console.print_json(screen, [{"stage": g.stage, "label": g.label, "n_bytes": g.n_bytes} for g in found])
        return
    for stage in dict.fromkeys(g.stage for g in found):
        own = [g for g in found if g.stage == stage]
        why = {"unfinished": "abandoned", "half-written": "left behind"}.get(stage, "superseded")
        screen.print(f"{stage}: {len(own)} {why}, {sum(g.n_bytes for g in own) / 1e6:.1f} MB", markup=False)
    verb = "would be removed" if dry_run else "removed"
    size = sum(g.n_bytes for g in found) / 1e6
    screen.print(f"{plural(len(found), 'entry').replace('entrys', 'entries')} {verb}, {size:.1f} MB.", markup=False)


@store.command()
@guarded
def export(
    out: Folder,
    to: Annotated[Path, typer.Argument(metavar="FILE", help="Such as results.tar, or results.tar.gz.")],
    recordings: Annotated[
        bool, typer.Option("--recordings", help="Take prepared recordings and participants along, too.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Write an output folder into one file, to be merged on another machine of yours.

    It holds predictions of single subjects: to publish, use `neurobench submit`, which strips what may not leave.

    Example: neurobench store export neurobench-results results.tar.gz
    """
    from neurobench import console, upkeep

    n = upkeep.export(out, to, recordings=recordings)
    console.make_console().print(f"{n} files in {to}.", markup=False)


@store.command()
@guarded
def merge(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to merge into; made if it is not there.")],
    sources: Annotated[list[Path], typer.Argument(metavar="FROM…", help="Output folders, or what export wrote.")],
    verbose: Verbose = False,
) -> None:
    """Take what other machines computed into one folder. Exit code 1: conflicts, or damaged entries.

    Nothing in OUT is replaced: where both have computed the same thing with other bytes, its own stays.

    Example: neurobench store merge OUT FROM
    """
    from neurobench import console, upkeep

    screen = console.make_console()
    upkeep.check_sources(sources)
    found = []
    for source in sources:
        # One after the other: what the first gave is said though the second cannot be read.
        (one,) = upkeep.merge(out, [source])
        found.append(one)
        screen.print(
            f"{one.source}: {one.n_entries} entries and {one.n_records} records taken, {one.n_known} known already.",
            markup=False,
            soft_wrap=True,
        )
        for text in one.conflicts:
            screen.print(f"  conflict, kept as it was: {text}", markup=False, soft_wrap=True)
        for text in one.damaged:
            screen.print(f"  not taken: {text}", markup=False, soft_wrap=True)
    if any(one.conflicts or one.damaged for one in found):
        raise typer.Exit(1)

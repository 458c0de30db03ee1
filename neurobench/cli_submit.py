"""``neurobench submit``, ``verify``, ``export``, ``card``: from an output folder to what others can check and read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from neurobench.commands import (
    AsJson,
    PluginFiles,
    Recordings,
    Rerun,
    Verbose,
    choice,
    guarded,
    open_registry,
    repeating,
)
from neurobench.errors import BundleError, closest

__all__ = ["card", "export", "submit", "verify"]

OutFolder = Annotated[Path, typer.Argument(metavar="OUT", help="Output folder of one or more runs.")]

FORMATS = ("every-eval-ever",)

SHOWN = 12
"""Findings of one kind that are told one by one."""


@guarded
def submit(
    out: OutFolder = Path("neurobench-results"),
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FILE.zip", help="A .zip file or a folder; OUT/bundle.zip without.")
    ] = None,
    plugin: PluginFiles = None,
    verbose: Verbose = False,
) -> None:
    """Pack what may leave this machine: records, held-out predictions where the dataset's card allows, sums, text.

    Nothing is sent anywhere. Example: neurobench submit neurobench-results --to mine.zip
    """
    from neurobench import bundle, console
    from neurobench.tables import plural

    screen = console.make_console()
    made = bundle.make_bundle(out, open_registry(plugin or ()))
    path = bundle.write_bundle(made, to or out / "bundle.zip")
    size = sum(map(len, made.files.values()))
    compared = f", comparisons of {plural(made.n_comparisons, 'table')}" if made.n_comparisons else ""
    screen.print(f"{path}: {plural(len(made.records), 'record')}, predictions beside {made.n_predictions}{compared}, "
                 f"{size / 1024:.0f} kB unpacked", markup=False)  # fmt: skip
    screen.print("left behind:" if made.stripped else "nothing was left behind", markup=False)
    for s in made.stripped:
        screen.print(f" · {s.what} ({s.n}): {s.why}", markup=False)
    screen.print(f"Next: neurobench verify {path}; docs/submitting.md says where it goes.", markup=False)


@guarded
def verify(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A .zip file or a folder.")],
    rerun: Rerun = False,
    data_dir: Recordings = None,
    against: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Accepted records, none of which may be changed.")
    ] = None,
    as_json: AsJson = False,
    plugin: PluginFiles = None,
    verbose: Verbose = False,
) -> None:
    """Say what of a bundle can be believed. Nothing in it is ever run.

    Exit code 0: believed; 1: refused; 2: warnings only.

    Example: neurobench verify mine.zip --against leaderboard/results
    """
    from neurobench import console, verification

    screen = console.make_console()
    registry = open_registry(plugin or ())
    with repeating(rerun, registry, data_dir, shown=not as_json) as repeat:
        try:
            verdict = verification.verify(bundle, registry, against=against, repeat=repeat)
        except BundleError as error:
            if not as_json:
                raise
            console.print_json(screen, {"verdict": "refused", "records": [], "findings": [_finding(error)]})
            raise typer.Exit(1) from None
    if as_json:
        console.print_json(screen, verdict.to_dict())
    else:
        _print(screen, verdict, verbose)
    if verdict.exit_code:
        raise typer.Exit(verdict.exit_code)


def _finding(error: BundleError) -> dict[str, str]:
    fix = f"Allowed: {error.allowed}. {error.next_step}" if error.allowed else error.next_step
    return {
        "level": "error",
        "code": "unreadable",
        "message": error.what,
        "fix": fix.strip(),
        "subject": "",
        "path": "",
    }


_HASH = re.compile(r"[0-9a-f]{64}")


def _short(found: re.Match[str]) -> str:
    return f"{found[0][:12]}…"


def _print(screen: Any, verdict: Any, verbose: bool) -> None:
    from collections import Counter

    from neurobench.tables import plural

    styles = {"error": "red", "warning": "yellow", "info": ""}
    counts: Counter[tuple[str, str]] = Counter()
    for level in ("error", "warning", "info"):
        for f in (f for f in verdict.findings if f.level == level):
            counts[level, f.code] += 1
            if counts[level, f.code] > SHOWN and not verbose:
                continue
            where = f"{_HASH.sub(_short, f.path) or f.subject}: " if f.path or f.subject else ""
            fix = f" {f.fix}" if f.fix else ""
            end = "" if f.message.endswith(".") else "."
            screen.print(f"{level} · {where}{f.message}{end}{fix}", markup=False, style=styles[level])
    for (level, code), n in counts.items():
        if n > SHOWN and not verbose:
            screen.print(f"{level} · {n - SHOWN} more like these ({code}); -v shows them.", markup=False)
    reached = Counter(verdict.levels.get(r.id, "refused") for r in verdict.records)
    words = ", ".join(f"{reached[w]} {w}" for w in ("re-run", "recomputed", "declared", "refused") if reached[w])
    screen.print(
        f"{verdict.word}: {plural(len(verdict.records), 'record')} ({words or 'none could be read'})", markup=False
    )


# ---------------------------------------------------------------- for others


@guarded
def export(
    out: OutFolder = Path("neurobench-results"),
    file_format: Annotated[
        str, typer.Option("--format", metavar="|".join(FORMATS), autocompletion=choice(*FORMATS), help="Whose format.")
    ] = FORMATS[0],
    to: Annotated[Path | None, typer.Option("--to", help="Folder; OUT/every-eval-ever without.")] = None,
    developer: Annotated[str, typer.Option(help="Who made the backbones, as their ids should say.")] = "neurobench",
    verbose: Verbose = False,
) -> None:
    """Write records in a format that others collect: one JSON file a row, in the folders of the collection.

    Example: neurobench export neurobench-results --format every-eval-ever
    """
    from neurobench import console
    from neurobench import export as exporting

    if file_format not in FORMATS:
        raise BundleError(
            f"--format cannot be {file_format!r}.", allowed=", ".join(FORMATS), likely=closest(file_format, FORMATS)
        )
    screen = console.make_console()
    paths = exporting.write_every_eval_ever(out, to or out / "every-eval-ever", developer=developer)
    schema = f"Every Eval Ever's schema {exporting.EVERY_EVAL_EVER}"
    screen.print(f"{len(paths)} files of {schema} under {to or out / 'every-eval-ever'}", markup=False)
    screen.print(exporting.validated(paths), markup=False)
    for path in exporting.superseded(paths):
        screen.print(
            f"{path} is of an earlier export of that row: delete it before you share the folder.", markup=False
        )


@guarded
def card(
    out: OutFolder = Path("neurobench-results"),
    row: Annotated[str, typer.Option("--row", help="Of which row, such as 'mamba · roi'.")] = "",
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FILE.md", help="Write it here instead of printing.")
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Print a model card's evaluation: the metadata that model hubs read, and a table with intervals and controls.

    Example: neurobench card neurobench-results --row 'mamba · roi'
    """
    from neurobench import console
    from neurobench import export as exporting
    from neurobench.store import atomic_write

    text = exporting.model_card(out, row)
    screen = console.make_console()
    if to is None:
        # Lines are those of a file: a terminal must not break them.
        screen.print(text, markup=False, soft_wrap=True, end="")
    else:
        atomic_write(to, text)
        screen.print(str(to), markup=False)

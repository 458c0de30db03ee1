"""``neurobench leaderboard``: from published records to a table, a Markdown file and a static site."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from neurobench.commands import Recordings, Rerun, Verbose, guarded, open_registry, repeating

__all__ = ["leaderboard"]

leaderboard = typer.Typer(name="leaderboard", help="Publish records as a board.", no_args_is_help=True)


Results = Annotated[
    Path, typer.Option("--results", metavar="DIR", help="Folder of published records, one folder a suite.")
]
RESULTS = Path("leaderboard/results")


@leaderboard.command("add")
@guarded
def add(
    out: Annotated[Path, typer.Argument(metavar="OUT|BUNDLE", help="Output folder of runs of a suite, or a bundle.")],
    results: Results = RESULTS,
    rerun: Rerun = False,
    data_dir: Recordings = None,
    verbose: Verbose = False,
) -> None:
    """Place the records of a run among the published ones, with held-out predictions where the card lets them leave.

    A bundle is verified first, and placed if it is believed; with --rerun it is also run again, and who found which
    records again is placed beside them.

    Example: neurobench leaderboard add neurobench-results
    """
    from neurobench import console
    from neurobench.publication import add_records
    from neurobench.tables import plural

    registry = open_registry(())
    with repeating(rerun, registry, data_dir, shown=True) as repeat:
        placed = add_records(out, results, registry, repeat=repeat)
    said = (
        f"{plural(placed.n_records, 'record')} placed in {results}, {placed.n_predictions} with held-out predictions."
    )
    if placed.n_compared:
        said += f" Of {plural(placed.n_compared, 'table')} comparisons are placed: their predictions may not leave."
    if rerun:
        said += f" {placed.n_again} were run again and found again."
    if placed.n_withheld:
        said += (
            f" {placed.n_withheld} have predictions of real people, which may leave under other names only: "
            f"`neurobench submit {out} --to BUNDLE`, then `neurobench leaderboard add BUNDLE`."
        )
    console.make_console().print(said, markup=False, soft_wrap=True)


@leaderboard.command("build")
@guarded
def build(
    results: Results = RESULTS,
    site: Annotated[
        Path | None,
        typer.Option("--site", metavar="DIR", help="Folder of the site; without, `site` beside DIR."),
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Build LEADERBOARD.md beside the records, and a static site; the same records give the same bytes.

    Example: neurobench leaderboard build --results leaderboard/results --site leaderboard/site
    """
    from neurobench import console
    from neurobench.leaderboard_site import build_leaderboard
    from neurobench.tables import plural

    screen, side = console.make_console(), console.make_console(stderr=True)
    with side.status("building") if side.is_terminal else contextlib.nullcontext():
        built = build_leaderboard(results, site)
    counts = (plural(built.n_records, "record"), plural(built.n_tables, "table"), plural(built.n_pages, "page"))
    screen.print(" · ".join(counts), markup=False)
    for path in (built.markdown, built.index):
        screen.print(str(path), markup=False, soft_wrap=True)

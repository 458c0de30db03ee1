"""``neurobench compare`` and ``neurobench benchmarks``: rows beside each other, and beside published figures."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from neurobench.commands import AsJson, Verbose, choice, guarded
from neurobench.errors import ConfigError, closest

if TYPE_CHECKING:
    from neurobench.comparisons import By

__all__ = ["benchmarks", "compare"]

BY = ("backbone", "mask", "untrained", "baseline", "interaction")


@guarded
def compare(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Output folder of one or more runs.")] = Path(
        "neurobench-results"
    ),
    dataset: Annotated[str, typer.Option("--dataset", "-d", help="One dataset only.")] = "",
    task: Annotated[str, typer.Option("--task", "-t", help="One task only.")] = "",
    by: Annotated[
        str, typer.Option(metavar="|".join(BY), help="One kind of comparison only.", autocompletion=choice(*BY))
    ] = "",
    csv: Annotated[Path | None, typer.Option(help="Write every comparison to this file, too.")] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Compare the rows of a grid on the same held-out subjects: backbones, masks, their interaction, controls.

    Says plainly where nothing separates them, and about how many subjects would be needed.

    Example: neurobench compare neurobench-results --by mask
    """
    if by and by not in BY:
        raise ConfigError(f"--by cannot be {by!r}.", allowed=", ".join(BY), likely=closest(by, BY))
    from neurobench import console
    from neurobench.comparisons import compare_all
    from neurobench.over_tasks import across_tasks, transfer
    from neurobench.runs import partial
    from neurobench.tables import comparison_cells, rank_cells, seed_cells, spreadsheet_cell

    chosen = cast("tuple[By, ...]", (by,) if by else BY)
    screen, side = console.make_console(), console.make_console(stderr=True)
    with side.status("comparing") if side.is_terminal and not as_json else contextlib.nullcontext():
        found = compare_all(out, dataset=dataset, task=task, by=chosen)
    rows = [r for c in found for r in c.table.to_dict("records")]
    if csv is not None:
        import pandas as pd

        pd.DataFrame(rows).map(spreadsheet_cell).to_csv(csv, index=False)
    if as_json:
        across = [
            {"dataset": a.dataset, "tasks": a.tasks, "rows": a.table.to_dict("records")} for a in across_tasks(found)
        ]
        scores = [{"dataset": c.dataset, "task": c.task, "rows": c.scores.to_dict("records")} for c in found]
        sentences = [dict(c.sentences) for c in found]
        plain = {"comparisons": rows, "sentences": sentences, "scores": scores, "mean_ranks": across}
        transferred = [text for _, text in transfer(found)]
        console.print_json(screen, plain | {"transfer": transferred, "partial": partial(out)})
        return
    for text in partial(out):
        screen.print(text, markup=False, style="yellow")
    for c in found:
        simulated = f" ({console.SIMULATED})" if c.source == "simulated" else ""
        screen.print(f"\n{c.task} on {c.dataset}{simulated}", style="bold", markup=False)
        for sentence in c.sentences.values():
            screen.print(sentence, markup=False)
        for kind in chosen:
            own = c.table[c.table["by"] == kind]
            if len(own):
                columns, cells = comparison_cells(own)
                console.print_table(screen, columns, cells, right=tuple(columns[2:]))
        if c.ranks:
            rank = [(row, f"{low}" if low == high else f"{low}–{high}") for row, (low, high) in c.ranks.items()]
            rank.sort(key=lambda r: c.ranks[r[0]])
            console.print_table(screen, ("row", "rank"), rank, right=("rank",), title="ranks that each row may have")
        if (c.scores["n_seeds"] > 1).any():
            columns, cells = seed_cells(c.scores)
            title = "scores over seeds: spread of seeds, of subjects, and of both"
            console.print_table(screen, columns, cells, right=tuple(columns[1:]), title=title)
    for a in across_tasks(found):
        simulated = f" ({console.SIMULATED})" if a.source == "simulated" else ""
        screen.print(f"\n{len(a.tasks)} tasks on {a.dataset}{simulated}", style="bold", markup=False)
        screen.print(a.sentence, markup=False)
        columns, cells = rank_cells(a.table)
        console.print_table(screen, columns, cells, right=tuple(columns[1:]))
    for where, sentence in transfer(found):
        screen.print(f"{where}: {sentence}", markup=False)


@guarded
def benchmarks(
    outs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[OUT]…", help="Output folders of runs, or folders of records. Without: neurobench-results."
        ),
    ] = None,
    suite: Annotated[str, typer.Option("--suite", help="One suite only.")] = "",
    csv: Annotated[Path | None, typer.Option(help="Write the table to this file, too.")] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Show our figures of every suite beside published ones, each of which is another protocol.

    Example: neurobench benchmarks neurobench-results --suite camcan-aging
    """
    from neurobench import console
    from neurobench.benchmarks import benchmarks as table_of
    from neurobench.benchmarks import suite_notes
    from neurobench.tables import benchmark_cells, spreadsheet_cell

    default = Path("neurobench-results")
    chosen = outs or ([default] if (default / "records").is_dir() else [])
    table, screen = table_of(chosen, suite=suite), console.make_console()
    if csv is not None:
        table.map(spreadsheet_cell).to_csv(csv, index=False)
    if as_json:
        console.print_json(screen, table.to_dict("records"))
        return
    if (table["source"] == "simulated").any():
        screen.print(console.SIMULATED, markup=False)
    for name, own in table.groupby("suite", sort=False):
        columns, cells, notes = benchmark_cells(own)
        console.print_table(screen, columns, cells, right=("ours", "n"), title=f"{name}")
        for note in [*notes, *([suite_notes()[str(name)]] if name in suite_notes() else [])]:
            screen.print(note, markup=False, soft_wrap=True)
        if own["score"].isna().any():
            command = f"neurobench run --suite benchmarks/{name}.yaml"
            screen.print(f"not run: no record of this suite was found; `{command}`", markup=False)
        screen.print()

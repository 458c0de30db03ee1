"""``neurobench data``: look at the recordings one has, and prepare them."""

from __future__ import annotations

import contextlib
from typing import Annotated

import typer

from neurobench.commands import DataDir, DatasetName, Out, PluginFiles, Verbose, build, guarded, open_registry

__all__ = ["data"]

data = typer.Typer(name="data", help="Look at the recordings you have, and prepare them.", no_args_is_help=True)


@data.command("check")
@guarded
def data_check(
    dataset: DatasetName,
    data_dir: DataDir = None,
    deep: Annotated[bool, typer.Option("--deep", help="Read every recording, too.")] = False,
    plugin: PluginFiles = None,
    verbose: Verbose = False,
) -> None:
    """Say what can be used of a folder and what cannot, with the reason; change nothing."""
    from neurobench import console
    from neurobench.config import RunConfig, expand

    config = RunConfig.from_options(dataset=dataset, data_dir=data_dir, source="real", plugin_files=plugin)
    registry = open_registry(config.plugin_files)
    grid = expand(config, registry, data_only=True)
    from neurobench.cohorts import check_data

    (spec,) = grid.datasets
    folder = grid.root(spec)
    assert folder is not None
    report = check_data(build(spec, registry), folder, deep=deep)
    screen = console.make_console()
    screen.print(f"{spec.label} in {folder}: {report.n_subjects} subjects, {report.n_recordings} recordings")
    for title, table in (("sites and states", report.table), ("columns of the participants table", report.targets)):
        if len(table):
            columns = [str(c) for c in table.columns]
            numbers = [c for c in columns if table[c].dtype.kind in "if"]
            rows = [[f"{v:.4g}" if isinstance(v, float) else v for v in row] for row in table.to_numpy().tolist()]
            console.print_table(screen, columns, rows, title=title, right=numbers)
    console.print_findings(screen, report.findings)
    if not report.usable:
        raise typer.Exit(1)


@data.command("prepare")
@guarded
def data_prepare(
    dataset: DatasetName,
    data_dir: DataDir = None,
    out: Out = None,
    n_subjects: Annotated[int | None, typer.Option(help="Of the simulated twin.")] = None,
    variant: Annotated[str | None, typer.Option(metavar="default|null|confounded", help="Of the twin.")] = None,
    window_s: Annotated[float | None, typer.Option("--window-s", help="Window in seconds.")] = None,
    patch_s: Annotated[float | None, typer.Option("--patch-s", help="Patch in seconds.")] = None,
    sfreq: Annotated[float | None, typer.Option(help="Sampling frequency in Hz.")] = None,
    workers: Annotated[
        int, typer.Option(min=0, help="Processes; 0: as many as there are cores, where that saves time.")
    ] = 0,
    plugin: PluginFiles = None,
    verbose: Verbose = False,
) -> None:
    """Read, filter and store a dataset's recordings, so that a later run starts at once."""
    from neurobench import console
    from neurobench.config import RunConfig, expand

    config = RunConfig.from_options(
        dataset=dataset,
        data_dir=data_dir,
        out=out,
        n_subjects=n_subjects,
        variant=variant,
        window_s=window_s,
        patch_s=patch_s,
        sfreq=sfreq,
        plugin_files=plugin,
    )
    registry = open_registry(config.plugin_files)
    grid = expand(config, registry, data_only=True)
    from neurobench.runner import cohort_source
    from neurobench.store import Store

    screen, side = console.make_console(), console.make_console(stderr=True)
    for spec in grid.datasets:
        source = cohort_source(spec, grid, registry)
        with console.Terminal(side) if side.is_terminal else contextlib.nullcontext() as progress:
            if progress is None:
                cohort = source.load(
                    Store(config.out), note=lambda text: side.print(text, markup=False), workers=workers
                )
            else:
                with progress.stage(f"prepare {spec.label}") as advance:
                    cohort = source.load(Store(config.out), advance, progress.note, workers)
        fields = {
            "source": console.SIMULATED if cohort.source == "simulated" else "real",
            "subjects": len(cohort.subjects),
            "recordings": len(cohort.recordings),
            "units": len(cohort.units),
            "sampling": f"{cohort.sfreq:.4g} Hz",
            "windows": f"{cohort.spec.window_s:g} s in patches of {cohort.spec.patch_s:g} s",
            "signal": list(cohort.provenance),
        }
        console.print_fields(screen, spec.label, fields)
        console.print_findings(screen, cohort.findings)


@data.command("card")
@guarded
def data_card(dataset: DatasetName, plugin: PluginFiles = None, verbose: Verbose = False) -> None:
    """Show a dataset's licence, who may have it, what to cite, and how its numbers mislead."""
    from dataclasses import asdict

    from neurobench import console
    from neurobench.config import parse_component

    registry = open_registry(plugin or ())
    spec = parse_component("dataset", dataset, registry)
    card = asdict(build(spec, registry).card)
    title = card.pop("title")
    console.print_fields(console.make_console(), title, {k.replace("_", " "): v for k, v in card.items()})

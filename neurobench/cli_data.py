"""``neurobench data``: look at the recordings one has, and prepare them."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Annotated

import typer

from neurobench.commands import AsJson, DataDir, DatasetName, Out, PluginFiles, Verbose, build, guarded, open_registry

__all__ = ["data"]

data = typer.Typer(name="data", help="Look at the recordings you have, and prepare them.", no_args_is_help=True)


@data.command("check")
@guarded
def data_check(
    dataset: DatasetName,
    data_dir: DataDir = None,
    deep: Annotated[bool, typer.Option("--deep", help="Read every recording to its end, too.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 where there are warnings or errors.")] = False,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read; 0: as many as there are cores.")] = 0,
    as_json: AsJson = False,
    plugin: PluginFiles = None,
    verbose: Verbose = False,
) -> None:
    """Say what can be used of a folder, for which task, and what is wrong where; change nothing.

    Exit code 0: something can be used; 1: with --strict, and there are warnings or errors; 2: nothing can be used.
    """
    from neurobench import console
    from neurobench.config import RunConfig, expand
    from neurobench.errors import ConfigError

    if not data_dir:
        raise ConfigError(
            f"no folder is given to look at for dataset {dataset!r}.", next_step="Give its place: --data-dir PATH."
        )
    config = RunConfig.from_options(dataset=dataset, data_dir=data_dir, source="real", plugin_files=plugin)
    registry = open_registry(config.plugin_files)
    grid = expand(config, registry, data_only=True)
    from neurobench.data_check import check_data
    from neurobench.errors import DataError
    from neurobench.folders import other_datasets

    (spec,) = grid.datasets
    folder = grid.root(spec)
    assert folder is not None
    # A task that needs a parameter, such as target[column=…], is left to the list of columns.
    tasks = {name: cls() for name, cls in sorted(registry.tasks.items()) if not cls.check_with}
    screen, side = console.make_console(), console.make_console(stderr=True)
    built = build(spec, registry)
    try:
        with console.Terminal(side) if side.is_terminal else contextlib.nullcontext() as progress:
            stage = progress.stage(f"check {spec.label}") if progress else contextlib.nullcontext(lambda *_: None)
            with stage as advance:
                report = check_data(
                    built,
                    folder,
                    label=spec.label,
                    tasks=tasks,
                    others=other_datasets(spec.label, registry.datasets),
                    deep=deep,
                    workers=workers,
                    advance=advance,
                )
    except DataError as error:
        console.print_error(error, side)
        raise typer.Exit(2) from None
    if as_json:
        console.print_json(screen, {"dataset": spec.label, "folder": str(folder)} | report.to_dict())
    else:
        lost = f" of {report.n_listed} found" if report.n_recordings < report.n_listed else ""
        screen.print(f"{spec.label} in {folder}: {report.n_subjects} subjects, {report.n_recordings} recordings{lost}")
        screen.print(f"{report.title}; licence: {report.licence}")
        console.print_findings(screen, report.findings)
        used_for = "what this folder can be used for" + ("" if deep else " (--deep reads every recording, too)")
        for title, table in (
            ("columns of the participants table", report.targets),
            ("sites and states", report.table),
            (used_for, report.tasks),
        ):
            console.print_frame(screen, table, title=title)
    if not report.usable:
        raise typer.Exit(2)
    if strict and any(f.level != "info" for f in report.findings):
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
    from neurobench.folders import other_datasets
    from neurobench.opening import cohort_source
    from neurobench.store import Store

    screen, side = console.make_console(), console.make_console(stderr=True)
    for spec in grid.datasets:
        source = cohort_source(spec, grid, registry)
        others = partial(other_datasets, spec.label, registry.datasets)
        with console.Terminal(side) if side.is_terminal else contextlib.nullcontext() as progress:
            if progress is None:
                cohort = source.load(
                    Store(config.out), note=lambda text: side.print(text, markup=False), workers=workers, others=others
                )
            else:
                with progress.stage(f"prepare {spec.label}") as advance:
                    cohort = source.load(Store(config.out), advance, progress.note, workers, others)
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

"""The command line. Nothing heavy is imported before a command runs, so that help and completion answer at once."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from neurobench import logs
from neurobench.cli_compare import benchmarks, compare
from neurobench.cli_data import data
from neurobench.cli_leaderboard import leaderboard
from neurobench.cli_log import log
from neurobench.cli_new import new
from neurobench.cli_report import report
from neurobench.cli_runs import cancel, detached, status, stopped_by_signals
from neurobench.cli_store import store
from neurobench.cli_submit import card, export, submit, verify
from neurobench.commands import (
    KINDS,
    Names,
    PluginFiles,
    Verbose,
    choice,
    complete,
    guarded,
    open_registry,
)
from neurobench.errors import ConfigError, DataError, closest, unknown_name
from neurobench.resources import described

if TYPE_CHECKING:
    from neurobench.plugins import Kind, PluginInfo, Registry

__all__ = ["app"]

app = typer.Typer(
    name="neurobench",
    help="Pretrain and judge every backbone × masking strategy on fMRI and MEG, under equal budgets, beside baselines.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RUN, COMPONENTS, RESULTS, PUBLISH, FILES = "Run", "Components", "What came of it", "Publish", "Files"
"""Under which commands are listed."""

WHAT, HOW, DATA, OUTPUT = "What", "How", "Data", "Output"


# ---------------------------------------------------------------- neurobench itself


def _versions(asked: bool) -> None:
    """Print one line for reports of errors: what is installed, from metadata alone."""
    if not asked:
        return
    import platform
    from importlib import metadata

    import neurobench

    def version(distribution: str, without: str) -> str:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            return without

    own = version("neurobench-fm", f"{neurobench.__version__} (not installed)")
    typer.echo(f"neurobench-fm {own}, Python {platform.python_version()}, torch {version('torch', 'not installed')}")
    raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", callback=_versions, is_eager=True, help="Say which versions are installed, and stop."
        ),
    ] = False,
) -> None:
    """Take what is said before a command."""


# ---------------------------------------------------------------- run


@app.command(rich_help_panel=RUN)
@guarded
def run(
    backbone: Annotated[
        Names,
        typer.Option(
            "--backbone",
            "-b",
            metavar="NAME,…",
            help="Such as mamba or hybrid\\[layout=MA]; several with commas or repeated.",
            autocompletion=complete("backbone"),
            rich_help_panel=WHAT,
        ),
    ] = None,
    mask: Annotated[
        Names,
        typer.Option(
            "--mask",
            "-m",
            metavar="NAME,…",
            help="Masking strategies, such as roi\\[rule=pure].",
            autocompletion=complete("mask"),
            rich_help_panel=WHAT,
        ),
    ] = None,
    dataset: Annotated[
        Names,
        typer.Option(
            "--dataset",
            "-d",
            metavar="NAME,…",
            help="Without it: every dataset of the default grid.",
            autocompletion=complete("dataset"),
            rich_help_panel=WHAT,
        ),
    ] = None,
    task: Annotated[
        Names,
        typer.Option(
            "--task",
            "-t",
            metavar="NAME,…",
            help="Without it: every task the data can be scored on. target:COLUMN takes any column.",
            autocompletion=complete("task"),
            rich_help_panel=WHAT,
        ),
    ] = None,
    seed: Annotated[
        Names,
        typer.Option("--seed", metavar="N,…", help="Such as 0,1,2.", rich_help_panel=WHAT),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(
            "--suite",
            metavar="NAME|FILE",
            help="core-v1, or a YAML file with settings; options go over it.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            metavar="smoke|cpu|full",
            help="Size of everything; smoke without it.",
            autocompletion=choice("smoke", "cpu", "full"),
            rich_help_panel=HOW,
        ),
    ] = None,
    adaptation: Annotated[
        str | None,
        typer.Option(
            metavar="frozen|finetune|prompt|lora|scratch",
            help="How a backbone meets a task; frozen without it. With parameters: 'prompt[tokens=8]', 'lora[rank=4]'.",
            autocompletion=choice("frozen", "finetune", "prompt", "lora", "scratch"),
            rich_help_panel=HOW,
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            metavar="subjects|site|within-recording",
            help="What is held out; subjects without it.",
            autocompletion=choice("subjects", "site", "within-recording"),
            rich_help_panel=HOW,
        ),
    ] = None,
    transductive: Annotated[
        bool,
        typer.Option(
            "--transductive",
            help="Pretrain on the test subjects' recordings too, without labels; every record says so.",
            rich_help_panel=HOW,
        ),
    ] = False,
    pretrain_on: Annotated[
        Names,
        typer.Option(
            "--pretrain-on",
            metavar="NAME,…",
            help="Datasets to pretrain on instead of the one that is scored, such as camcan.",
            autocompletion=complete("dataset"),
            rich_help_panel=HOW,
        ),
    ] = None,
    shared_people: Annotated[
        str | None,
        typer.Option(
            "--shared-people",
            metavar="refuse|leave-out|distinct",
            help="What to do with people of --pretrain-on who may be among those scored; refuse without.",
            autocompletion=choice("refuse", "leave-out", "distinct"),
            rich_help_panel=HOW,
        ),
    ] = None,
    attribution: Annotated[
        bool,
        typer.Option(
            "--attribution",
            help="Occlude groups of units and see what becomes worse, beside randomised weights and labels.",
            rich_help_panel=HOW,
        ),
    ] = False,
    harmonise: Annotated[
        str | None,
        typer.Option(
            metavar="none|site",
            help="site: take the sites' location and scale out of features, fitted on training subjects; none without.",
            autocompletion=choice("none", "site"),
            rich_help_panel=HOW,
        ),
    ] = None,
    probe: Annotated[
        str | None,
        typer.Option(
            metavar="linear|kernel|attentive",
            help="What predicts from features: linear without; kernel: on a Gaussian kernel of them; attentive: by "
            "learned queries over a backbone's units.",
            autocompletion=choice("linear", "kernel", "attentive"),
            rich_help_panel=HOW,
        ),
    ] = None,
    refit_permutations: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Also fit every probe to N permutations of the labels, for a second p-value; takes N times as long.",
            rich_help_panel=HOW,
        ),
    ] = None,
    folds: Annotated[int | None, typer.Option(help="Instead of the profile's.", rich_help_panel=HOW)] = None,
    ratio: Annotated[
        float | None, typer.Option(help="Fraction of tokens to hide; 0.5 without.", rich_help_panel=HOW)
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(
            metavar="reconstruction|latent",
            help="What pretraining learns from: reconstruction\\[visible=0.25,ratio_from=0,ratio_to=0.8], "
            "latent\\[momentum=0.996]; reconstruction without.",
            autocompletion=choice("reconstruction", "latent"),
            rich_help_panel=HOW,
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Optimiser steps instead of the profile's.", rich_help_panel=HOW)
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="auto|cpu|cuda",
            help="Where backbones run; CUDA where there is one.",
            autocompletion=choice("auto", "cpu", "cuda"),
            rich_help_panel=HOW,
        ),
    ] = None,
    data_dir: Annotated[
        Names,
        typer.Option(
            metavar="[NAME=]PATH",
            help="Folder of a dataset's recordings; repeatable. Without it the simulated twin is used.",
            rich_help_panel=DATA,
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            metavar="auto|real|simulated",
            help="real refuses simulated data; auto takes them where no folder is given.",
            autocompletion=choice("auto", "real", "simulated"),
            rich_help_panel=DATA,
        ),
    ] = None,
    variant: Annotated[
        str | None,
        typer.Option(
            metavar="default|null|confounded",
            help="Of the simulated twin.",
            autocompletion=choice("default", "null", "confounded"),
            rich_help_panel=DATA,
        ),
    ] = None,
    n_subjects: Annotated[int | None, typer.Option(help="Of the simulated twin.", rich_help_panel=DATA)] = None,
    window_s: Annotated[
        float | None, typer.Option("--window-s", help="Window in seconds.", rich_help_panel=DATA)
    ] = None,
    patch_s: Annotated[float | None, typer.Option("--patch-s", help="Patch in seconds.", rich_help_panel=DATA)] = None,
    sfreq: Annotated[float | None, typer.Option(help="Sampling frequency in Hz.", rich_help_panel=DATA)] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of results and of everything stored; neurobench-results without.", rich_help_panel=OUTPUT
        ),
    ] = None,
    jobs: Annotated[
        str,
        typer.Option(
            help="Processes that compute at once; auto: as many as suit this machine. Changes no number.",
            rich_help_panel=OUTPUT,
        ),
    ] = "auto",
    distributed: Annotated[
        str | None,
        typer.Option(
            metavar="ddp|fsdp[processes=N]",
            help="Several processes for each pretraining, a GPU each: ddp[processes=4].",
            autocompletion=choice("ddp", "fsdp"),
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Have the workers of this Dask scheduler compute, such as tcp://10.0.0.1:8786.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="slurm|pbs|sge|lsf",
            help="Have this batch system start workers that compute.",
            autocompletion=choice("slurm", "pbs", "sge", "lsf"),
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    cluster_config: Annotated[
        Path | None,
        typer.Option(
            "--cluster-config",
            metavar="FILE",
            help="What to ask it for, as YAML: queue, cores, memory, walltime, jobs.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    log_format: Annotated[
        str | None,
        typer.Option(
            metavar="text|json",
            help="json: what is said on the standard error stream as a line of JSON each, and no progress bars.",
            autocompletion=choice("text", "json"),
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    tensorboard: Annotated[
        bool,
        typer.Option(
            "--tensorboard",
            help="Write losses while pretrainings run, for `tensorboard --logdir OUT/tensorboard`.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    resources: Annotated[
        Names,
        typer.Option(
            metavar="NAME:GPU=1,…",
            help="What steps of a component need beyond a core, instead of what it says itself; repeatable.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    energy: Annotated[
        bool,
        typer.Option(
            "--energy",
            help="Measure the energy of pretrainings where the machine counts it; one process.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done, and do nothing.", rich_help_panel=OUTPUT)
    ] = False,
    detach: Annotated[
        bool,
        typer.Option(
            "--detach",
            help="Go on without this terminal; `neurobench status --watch` shows it, `neurobench cancel` stops it.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON and nothing else.", rich_help_panel=OUTPUT)
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress and no notes.", rich_help_panel=OUTPUT)
    ] = False,
    plugin: PluginFiles = None,
    verbose: Verbose = False,
) -> None:
    """Pretrain and score a grid of combinations; what is stored from earlier runs is not computed again.

    Example: neurobench run --backbone mamba,transformer --mask roi,random_tube --dataset camcan
    """
    from neurobench import console
    from neurobench.config import RunConfig, expand
    from neurobench.tables import plural

    config = RunConfig.from_options(
        suite=suite,
        backbone=backbone,
        mask=mask,
        dataset=dataset,
        task=task,
        seed=seed,
        profile=profile,
        adaptation=adaptation,
        split=split,
        folds=folds,
        ratio=ratio,
        objective=objective,
        device=device,
        data_dir=data_dir,
        source=source,
        variant=variant,
        n_subjects=n_subjects,
        out=out,
        window_s=window_s,
        patch_s=patch_s,
        sfreq=sfreq,
        n_steps=steps,
        plugin_files=plugin,
        transductive=transductive or None,
        pretrain_on=pretrain_on,
        shared_people=shared_people,
        harmonise=harmonise,
        probe=probe,
        refit_permutations=refit_permutations,
        attribution=attribution or None,
        jobs=jobs,
        distributed=distributed,
        scheduler=scheduler,
        cluster=cluster,
        cluster_config=cluster_config,
        log_format=log_format,
        tensorboard=tensorboard or None,
        resources=resources,
        energy=energy or None,
    )
    if detach and dry_run:
        raise ConfigError("--dry-run does nothing that could go on.", next_step="Leave --detach out.")
    screen, side = console.make_console(), console.make_console(stderr=True)
    as_lines = config.log_format == "json"
    shown = side.is_terminal and not (quiet or as_json or as_lines)
    with side.status("loading plugins") if shown else contextlib.nullcontext():
        registry = open_registry(config.plugin_files)
        grid = expand(config, registry)
    if detach:
        if config.elsewhere:
            from neurobench import clusters

            clusters.check(config)
        detached(config.out, as_json=as_json)
        return
    with side.status("loading plugins") if shown else contextlib.nullcontext():
        if dry_run:
            from neurobench import planning
        else:
            from neurobench import runner
    if dry_run:
        with side.status("timing a few steps on a few subjects") if shown else contextlib.nullcontext():
            planned = planning.plan(grid, registry)
        if as_json:
            console.print_json(
                screen,
                {
                    "items": [vars(i) for i in planned.items],
                    "rows": [{**vars(r), "seconds": r.seconds} for r in planned.rows],
                    "seconds": planned.seconds,
                    "jobs": planned.jobs,
                    "wall_s": planned.wall_s,
                    "probe_s": planned.probe_s,
                    "notes": planned.notes,
                    "unusable": [str(e) for e in planned.unusable],
                },
            )
        else:
            console.print_plan(screen, planned, quiet=quiet)
        if len(planned.unusable) > 1:
            raise DataError("\n".join(map(str, planned.unusable)))
        for error in planned.unusable:
            raise error
        return
    unseen = quiet or as_json or as_lines
    bars = console.Terminal(side) if shown else contextlib.nullcontext(None if unseen else console.Lines(side))
    with stopped_by_signals(), bars as progress:
        result = runner.execute(grid, registry, progress=progress)
    if as_json:
        console.print_json(
            screen,
            {
                "table": result.table.to_dict("records"),
                "failed": result.failed,
                "notes": result.notes,
                "out": result.out,
                "seconds": result.seconds,
                "n_computed": result.n_computed,
                "n_stored": result.n_stored,
            },
        )
    else:
        console.print_results(result.table, screen, () if quiet else result.notes)
        if not quiet:
            console.print_summary(
                screen,
                out=result.out,
                seconds=result.seconds,
                n_computed=result.n_computed,
                n_stored=result.n_stored,
                scored=bool((result.table["status"] != "failed").any()),
            )
    if result.failed:
        n = plural(len(result.failed), "row")
        if as_lines:
            logs.tell("message", f"{n} failed. The same command tries again.", level=logging.ERROR)
        elif not as_json:
            side.print(
                f"{n} failed; the errors are above, and `neurobench log {result.out} --level error -v` has where they "
                "were raised. The same command tries again."
            )
        raise typer.Exit(1)


# ---------------------------------------------------------------- components


@app.command("list", rich_help_panel=COMPONENTS)
@guarded
def list_components(
    kind: Annotated[
        str | None, typer.Argument(metavar="[KIND]", help=", ".join(KINDS), autocompletion=choice(*KINDS))
    ] = None,
    plugin: PluginFiles = None,
    verbose: Verbose = False,
) -> None:
    """List backbones, masks, datasets, tasks, baselines and figures."""
    from neurobench import console

    kinds = KINDS
    if kind is not None:
        singular = kind.removesuffix("s")
        if singular not in KINDS:
            raise ConfigError(f"{kind!r} is no kind.", allowed=", ".join(KINDS), likely=closest(singular, KINDS))
        kinds = (singular,)
    from neurobench.tables import plural

    registry = open_registry(plugin or ())
    screen = console.make_console()
    for one in kinds:
        rows = [
            (name, c.summary + (f" (use {c.superseded_by})" if c.superseded_by else ""), ", ".join(_parameters(c)))
            for name, c in registry.of(cast("Kind", one)).items()
        ]
        console.print_table(screen, ("name", "", "parameters"), rows, title=f"{one}s")
        for (of, name), error in sorted(registry.unusable.items()):
            if of == one:
                screen.print(f"{name}: {error.next_step}", style="yellow", markup=False)
    if unusable := [p for p in registry.plugins if p.state != "available"]:
        screen.print(f"{plural(len(unusable), 'plugin')} cannot be used: see `neurobench plugins`.", style="yellow")


@app.command(rich_help_panel=COMPONENTS)
@guarded
def info(
    name: Annotated[str, typer.Argument(autocompletion=complete(""))],
    plugin: PluginFiles = None,
    verbose: Verbose = False,
) -> None:
    """Show a component: what it does, its parameters, where its code comes from."""
    from neurobench import console

    registry = open_registry(plugin or ())
    screen = console.make_console()
    for kind in _kinds_of(name, registry):
        component = registry.get(kind, name)
        origin = registry.provenance(kind, name)
        fields = {
            "": component.summary,
            "parameters": list(_parameters(component)) or "none",
            "source": component.reference,
            "budget": "" if getattr(component, "budgeted", True) else "exempt, so not ranked with those that keep it",
            "from": f"{origin.distribution} {origin.version}".strip(),
            "code": f"sha256 {origin.digest[:12]}…, score version {component.score_version}",
            "needs": described(component.resources),
            "use instead": component.superseded_by,
            "known to fail": [f"{check}: {why}" for check, why in component.expected_failures.items()],
        }
        console.print_fields(screen, f"{kind} {name}", fields)


def _digest_of(plugin: PluginInfo, registry: Registry) -> str:
    """Return the start of the hash that records keep of a plugin's code; empty where it is not used."""
    used = [found for found in plugin.provides if found in registry.sources]
    return registry.provenance(*used[0]).digest[:12] if used else ""


@app.command("plugins", rich_help_panel=COMPONENTS)
@guarded
def list_plugins(plugin: PluginFiles = None, verbose: Verbose = False) -> None:
    """Show every plugin: where it comes from, what it provides, and why it cannot be used if it cannot.

    With -v the file and the hash of the code, too, as records keep it.
    """
    from neurobench import console

    registry = open_registry(plugin or ())
    screen = console.make_console()
    by_origin: dict[str, list[PluginInfo]] = {}
    reasons: dict[str, list[PluginInfo]] = {}
    for p in registry.plugins:
        by_origin.setdefault(f"{p.distribution} {p.version}".strip(), []).append(p)
        if p.reason:
            reasons.setdefault(p.reason, []).append(p)
    for origin, found in by_origin.items():
        folders = [str(p.file.parent) for p in found if p.file]
        where = f" from {os.path.commonpath(folders)}" if folders else ""
        columns: tuple[str, ...] = ("entry point", "provides", "state")
        rows: list[tuple[str, ...]] = [
            (p.entry_point, ", ".join(f"{k} {n}" for k, n in p.provides), p.state) for p in found
        ]
        if verbose:
            columns = (*columns, "file", "digest")
            rows = [(*row, str(p.file or ""), _digest_of(p, registry)) for row, p in zip(rows, found, strict=True)]
        console.print_table(screen, columns, rows, title=f"{origin}{where}")
    for reason, found in reasons.items():
        # One reason that many share, such as having been blocked, is told once.
        names = found[0].id if len(found) == 1 else f"{found[0].id} and {len(found) - 1} more"
        console.print_fields(screen, f"{names}: {found[0].state}", {"": reason})


@app.command(rich_help_panel=COMPONENTS)
@guarded
def check(
    name: Annotated[str, typer.Argument(autocompletion=complete(""))],
    full: Annotated[bool, typer.Option("--full", help="The slower checks too.")] = False,
    plugin: PluginFiles = None,
    verbose: Verbose = False,
) -> None:
    """Check a component against the contracts; a plugin that is being written comes in with --plugin FILE."""
    from neurobench import console
    from neurobench.checks import check_component

    registry = open_registry(plugin or ())
    screen = console.make_console()
    failed = 0
    for kind in _kinds_of(name, registry):
        found = check_component(registry.get(kind, name), registry=registry, full=full)
        failed += sum(not result.ok for result in found)
        console.print_checks(screen, f"{kind} {name}", found)
    if failed:
        raise typer.Exit(1)


# ---------------------------------------------------------------- what other modules have

app.command(rich_help_panel=COMPONENTS)(new)
for of_runs in (status, cancel, log):
    app.command(rich_help_panel=RUN)(of_runs)
for of_results in (compare, report, benchmarks):
    app.command(rich_help_panel=RESULTS)(of_results)
for submission in (submit, verify, export, card):
    app.command(rich_help_panel=PUBLISH)(submission)
app.add_typer(leaderboard, rich_help_panel=PUBLISH)
app.add_typer(data, rich_help_panel=FILES)
app.add_typer(store, rich_help_panel=FILES)


# ---------------------------------------------------------------- small pieces


def _parameters(component: Any) -> list[str]:
    """Return ``name=default (type)`` of each parameter."""
    return [
        f"{n}={str(p.default).lower() if isinstance(p.default, bool) else p.default} ({p.annotation.__name__})"
        for n, p in component.component_parameters().items()
    ]


def _kinds_of(name: str, registry: Registry) -> list[Kind]:
    """Return the kinds in which something is called ``name``; nothing at all is an error."""
    from neurobench.plugins import FILE

    kinds = [cast("Kind", k) for k in KINDS]
    found = [k for k in kinds if name in registry.of(k)] or [k for k in kinds if (k, name) in registry.unusable]
    if not found:
        own = [n for p in registry.plugins if p.distribution.startswith(FILE) for _, n in p.provides]
        there = f"What the file given with --plugin provides is called {' and '.join(own)}." if own else ""
        if name.endswith(".py"):
            there = f"Give the name of what it provides: `neurobench check NAME --plugin {name}`."
        raise unknown_name("component", name, {n for k in kinds for n in registry.of(k)}, there)
    return found

"""The steps in order, once: plan, execute, resume, and turn what is stored into records and a table."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pandas as pd

import neurobench
from neurobench import assembly, clusters, gather, logs, results
from neurobench.allocation import keep_freed_memory, keeps_freed_memory
from neurobench.cohorts import CohortSource
from neurobench.config import Grid, RunConfig, expand
from neurobench.cost import Model, Work
from neurobench.errors import ConfigError, StoreError
from neurobench.execution import (
    Executor,
    Processes,
    Todo,
    Workers,
    collecting_less,
    describe,
    few_threads,
    in_turn,
    measured,
    most_jobs,
    on_workers,
    suitable_jobs,
)
from neurobench.folders import other_datasets
from neurobench.heartbeat import Heartbeat
from neurobench.opening import cohort_source, resolve_device, sources_of
from neurobench.plugins import Registry, load_registry
from neurobench.progress import Progress, Silent
from neurobench.records import Cohort
from neurobench.stages import CohortRun, protocol
from neurobench.steps import Step
from neurobench.store import Store

__all__ = ["RunResult", "execute", "run"]


@dataclass(frozen=True, eq=False)
class RunResult:
    """What a run gave.

    Parameters
    ----------
    table
        One row a (dataset, task, row), as :func:`neurobench.load_results` gives them, plus ``best``.
    failed
        Labels of combinations that failed; their errors are in the table.
    out
        Output folder.
    seconds
        Wall-clock time.
    n_computed, n_stored
        Steps computed now, and found stored.
    notes
        What a reader of the table should know.
    """

    table: pd.DataFrame
    failed: tuple[str, ...]
    out: Path
    seconds: float
    n_computed: int
    n_stored: int
    notes: tuple[str, ...]


# ---------------------------------------------------------------- execute


def execute(grid: Grid, registry: Registry, *, progress: Progress | None = None) -> RunResult:
    """Run a grid: compute what is not stored, write records, return the table.

    Parameters
    ----------
    grid
        From :func:`neurobench.config.expand`.
    registry
        Components.
    progress
        Where progress is shown; silent by default.

    Returns
    -------
    RunResult
        The table, and what failed. A failed combination is a record with its error; the others go on.

    Raises
    ------
    StoreError
        If the output folder cannot be used: nothing could be kept.
    """
    # Made before anything is written into it: a log would make a new folder look like somebody else's.
    store = Store(grid.config.out)
    with Heartbeat(store.out, progress or Silent()) as heartbeat, logs.kept(store.out, heartbeat.id):
        grid = replace(grid, config=replace(grid.config, run=heartbeat.id))
        logs.tell(
            "run-started",
            version=neurobench.__version__,
            command=results.environment()["command"],
            n_combinations=len(grid.combinations),
        )
        try:
            with collecting_less():
                result = _execute(grid, registry, store, heartbeat)
        except KeyboardInterrupt:
            logs.tell("run-stopped", "somebody asked it to stop.", level=logging.WARNING)
            raise
        except BaseException as error:
            logs.tell("run-stopped", level=logging.ERROR, **logs.failure(error))
            raise
        logs.tell(
            "run-finished",
            seconds=round(result.seconds, 3),
            n_computed=result.n_computed,
            n_stored=result.n_stored,
            n_failed=len(result.failed),
        )
    return result


def _execute(grid: Grid, registry: Registry, store: Store, progress: Heartbeat) -> RunResult:
    started = time.perf_counter()
    elsewhere = grid.config.elsewhere
    # What is stored whole is shown though its cluster is gone, and recordings are prepared for none that is not there.
    specs = (*grid.datasets, *grid.pretrain_on)
    if elsewhere and not all(cohort_source(d, grid, registry).is_there(store) for d in specs):
        clusters.check(grid.config)
    device = resolve_device(grid.config.device, elsewhere=elsewhere)
    executor = Executor(store, progress)
    rows: list[dict[str, Any]] = []
    failed: list[str] = []
    notes: list[str] = []

    def write(scored: Sequence[assembly.Scored]) -> None:
        # As soon as a (dataset, seed) is through: nothing in its records depends on another one.
        rows.extend(assembly.finish(scored, store.out))
        notes.extend(s.record.cost.energy_note for s in scored if s.record.cost.energy_note)
        failed.extend(f"{s.record.row} on {s.record.dataset.label}, {s.record.task.label}" for s in scored if s.failed)

    pairs = list(dict.fromkeys((c.dataset, c.seed) for c in grid.combinations))
    todo: list[Todo] = []
    ready: dict[str, tuple[CohortSource, dict[str, Cohort]]] = {}
    for dataset, seed in pairs:
        source = cohort_source(dataset, grid, registry)
        try:
            if dataset.label not in ready:
                sources = sources_of(dataset, grid, registry, store)
                cohorts = {}
                for label, one in sources.items():
                    with logs.at(dataset=label, seed=seed), progress.stage(f"prepare {label}") as advance:
                        others = partial(other_datasets, label, registry.datasets)
                        cohorts[label] = one.load(store, advance, progress.note, others=others)
                        logs.tell("cohort-ready", n_subjects=len(cohorts[label].subjects))
                ready[dataset.label] = sources[dataset.label], cohorts
            source, cohorts = ready[dataset.label]
            fetch = executor.fetch
            run = CohortRun.among(cohorts, dataset.label, source, grid, registry, seed, device, fetch)
            said = run.notes()
            todo.append(Todo(run, list(run.steps())))
            notes += said
        except StoreError:
            raise
        except Exception as error:
            # Whatever a plugin raises here, other cohorts are none of its business.
            store.must_be_there()
            logs.tell("cohort-failed", level=logging.ERROR, dataset=dataset.label, seed=seed, **logs.failure(error))
            settings = protocol(grid, seed, source.spec)
            write(assembly.cohort_failed(grid, registry, dataset, seed, describe(error), settings, grid.tasks))
    write(_refused(grid, registry, [of.run for of in todo]))
    # No probe here: the first steps teach the time left as much, and are needed anyway.
    model = Model(measured=measured(store))
    progress.plan(todo, executor)

    @cache
    def expected(work: Work) -> float:
        return model.estimate(work).seconds or 0.0

    def seconds(step: Step) -> float:
        # Folds and seeds are the same work.
        return expected(step.work)

    jobs = 1
    if not elsewhere:
        jobs = grid.config.jobs or suitable_jobs(
            grid, sum(seconds(s) for of in todo for _, s in of.steps if store.get(s.stage, s.key) is None)
        )
        if (most := most_jobs(grid, registry)) < jobs:
            note = f"{most:.0f} of {jobs} processes: more would not have the GPU or the memory that a step needs."
            progress.note(note)
            jobs = int(most)

    def start() -> Workers:
        if not elsewhere:
            return Processes(grid.config, jobs)
        clusters.check(grid.config)
        workers = clusters.connect(grid.config, progress.note)
        if workers.dashboard:
            progress.note(f"watch the cluster at {workers.dashboard}")
        return workers

    # Several processes are through together that much sooner; how many workers there will be elsewhere nobody knows.
    total = sum(seconds(s) for of in todo for _, s in of.steps) / jobs
    if keeps_freed_memory(grid.profile, device.type):
        keep_freed_memory()
    with progress.grid(total) as through, few_threads(grid.profile, device):

        def done(estimated: float, computed: bool) -> None:
            through(estimated / jobs, computed)

        if elsewhere or jobs > 1:
            ended = on_workers(todo, executor, seconds, done, start)
        else:
            ended = in_turn(todo, executor, seconds, done)
        described: set[str] = set()
        for of, failures in ended:
            store.must_be_there()
            if of.run.tasks and of.run.cohort.fingerprint not in described:
                # The same for every seed; in every run anew, as what is there may be cut or changed.
                gather.write_cohort(of.run, store.out)
                described.add(of.run.cohort.fingerprint)
            write(assembly.collect(of.run, failures, store))
            progress.written(of, failures)
    if elsewhere and not executor.computed and not failed:
        progress.note("everything was stored already: the cluster was not asked for anything.")
    return RunResult(
        table=pd.DataFrame(rows),
        failed=tuple(failed),
        out=store.out,
        seconds=time.perf_counter() - started,
        n_computed=len(executor.computed),
        n_stored=len(executor.stored),
        notes=tuple(dict.fromkeys(notes)),
    )


def _refused(grid: Grid, registry: Registry, runs: Sequence[CohortRun]) -> list[assembly.Scored]:
    """Return failed records for tasks that were asked for by name and that no cohort of the run can be scored on."""
    scored = []
    for task in grid.tasks if grid.tasks_asked else ():
        if runs and not any(task in run.tasks for run in runs):
            for run in runs:
                error = describe(ConfigError(f"task {task.label} cannot be scored: {run.why_not(task)}."))
                logs.tell("message", error, level=logging.ERROR, dataset=run.dataset.label, seed=run.seed)
                scored += assembly.cohort_failed(grid, registry, run.dataset, run.seed, error, run.protocol(), (task,))
    return scored


# ---------------------------------------------------------------- the Python API


def run(config: RunConfig | None = None, /, **options: Any) -> pd.DataFrame:
    """Run a grid and return its table: the same as ``neurobench run``.

    Parameters
    ----------
    config
        A whole configuration; or give its parts as keywords.
    **options
        As :meth:`neurobench.config.RunConfig.from_options`: ``backbone="mamba"``, ``mask=["roi", "block"]``,
        ``dataset=None``, ``task=None``, ``profile="smoke"``, ``out="neurobench-results"``, …

    Returns
    -------
    DataFrame
        One row a (dataset, task, row): score, interval, skill over the best baseline, and the rest.

    Raises
    ------
    ConfigErrors
        If the grid cannot be, with everything that is wrong at once, before any work starts.

    Examples
    --------
    >>> import neurobench
    >>> table = neurobench.run(backbone="mamba", mask="roi", dataset="adhd200")  # doctest: +SKIP
    """
    if config is not None and options:
        raise ConfigError("give a RunConfig or keyword options, not both.")
    config = config or RunConfig.from_options(**options)
    registry = load_registry(config.plugin_files)
    return execute(expand(config, registry), registry).table

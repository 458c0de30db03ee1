"""The steps in order, once: plan, execute, resume, and turn what is stored into records and a table."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from neurobench import assembly
from neurobench.cohorts import CohortSource
from neurobench.components import ComponentSpec
from neurobench.config import Grid, RunConfig, expand
from neurobench.contracts import Dataset
from neurobench.cost import Model, Observation, Work
from neurobench.errors import ConfigError, NeurobenchError, StoreError
from neurobench.plugins import Registry, load_registry
from neurobench.progress import Progress, Silent
from neurobench.records import Cohort
from neurobench.stages import CohortRun, protocol
from neurobench.steps import Row, Step
from neurobench.store import Entry, Store

__all__ = [
    "RunResult",
    "cohort_source",
    "execute",
    "measured",
    "resolve_device",
    "run",
    "sources_of",
    "stored_cohorts",
]


STAGES = (
    "pretraining",
    "embedding",
    "baseline",
    "reconstruction",
    "evoked",
    "evaluation",
    "confounds",
    "attribution",
)
"""Stages of the store that a run's steps are kept in."""


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


# ---------------------------------------------------------------- sources


def cohort_source(spec: ComponentSpec, grid: Grid, registry: Registry) -> CohortSource:
    """Return where a dataset's cohort comes from: the user's folder if there is one, else the twin."""
    config = grid.config
    dataset: Dataset = registry.get("dataset", spec.name)(**spec.parameters)
    default = dataset.spec
    signal = replace(
        default,
        window_s=default.window_s if config.window_s is None else config.window_s,
        patch_s=default.patch_s if config.patch_s is None else config.patch_s,
        sfreq=default.sfreq if config.sfreq is None else config.sfreq,
    )
    provenance = registry.provenance("dataset", spec.name)
    return CohortSource(
        dataset=dataset,
        label=spec.label,
        code={
            **spec.identity(),
            "distribution": provenance.distribution,
            "version": provenance.version,
            "digest": provenance.digest,
            "score_version": type(dataset).score_version,
        },
        spec=signal,
        root=grid.data_dirs.get(spec.label),
        n_subjects=config.n_subjects,
        # One twin for every seed of a run: seeds repeat the analysis, not the people.
        seed=0,
        variant=config.variant,
    )


def sources_of(dataset: ComponentSpec, grid: Grid, registry: Registry, store: Store) -> dict[str, CohortSource]:
    """Return where a dataset and those that it is pretrained on come from, by label, the dataset first.

    Cohorts that share a network are resampled down to the slowest of them.
    """
    specs = dict.fromkeys([dataset, *grid.pretrain_on])
    sources = {s.label: cohort_source(s, grid, registry) for s in specs}
    if len(sources) == 1:
        return sources
    own = {label: source.slowest(store) for label, source in sources.items()}
    slowest = min(own.values())
    return {
        label: source if own[label] <= slowest else replace(source, spec=replace(source.spec, sfreq=slowest))
        for label, source in sources.items()
    }


def stored_cohorts(
    dataset: ComponentSpec, grid: Grid, registry: Registry, store: Store
) -> tuple[CohortSource, dict[str, Cohort]] | None:
    """Return a dataset's source and the cohorts that its rows need, by label; None if one of them is not prepared."""
    if not all(cohort_source(s, grid, registry).is_there(store) for s in (dataset, *grid.pretrain_on)):
        return None
    sources = sources_of(dataset, grid, registry, store)
    found = {label: source.stored(store) for label, source in sources.items()}
    whole = {label: cohort for label, cohort in found.items() if cohort is not None}
    return (sources[dataset.label], whole) if len(whole) == len(found) else None


def resolve_device(name: str) -> torch.device:
    """Return the device of a run; ``auto`` takes CUDA where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda was asked for, but torch finds no CUDA device.", allowed="auto, cpu")
    return torch.device(name)


# ---------------------------------------------------------------- finding or computing steps


class _Executor:
    """Finds or computes steps, counts them, and shows progress."""

    def __init__(self, store: Store, progress: Progress) -> None:
        self.store, self.progress = store, progress
        self.computed: set[str] = set()
        self.stored: set[str] = set()

    def fetch(self, step: Step) -> Entry:
        """Return the entry of a step, computing it if it is not stored."""
        key = self.store.key(step.identity)
        entry = self.store.get(step.stage, step.identity)
        if entry is None:
            with self.store.lock(step.stage, step.identity):
                entry = self.store.get(step.stage, step.identity) or self._compute(step)
                self.computed.add(key)
        elif key not in self.computed:
            self.stored.add(key)
        return entry

    def _compute(self, step: Step) -> Entry:
        with (
            self.progress.stage(step.label) as advance,
            self.store.write(step.stage, step.identity, step.label, step.work.to_dict()) as folder,
        ):
            step.compute(folder, advance)
        entry = self.store.get(step.stage, step.identity)
        assert entry is not None
        return entry


def measured(store: Store) -> list[Observation]:
    """Return what the stored steps took, oldest first of each stage; older versions did not write it down."""
    found = []
    for stage in STAGES:
        for entry in store.entries(stage):
            work = Work.from_dict(entry.manifest.get("work"))
            if work is not None:
                found.append(Observation(work, entry.seconds))
    return found


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
    started = time.perf_counter()
    progress = progress or Silent()
    store = Store(grid.config.out)
    device = resolve_device(grid.config.device)
    executor = _Executor(store, progress)
    scored: list[assembly.Scored] = []
    notes: list[str] = []
    pairs = list(dict.fromkeys((c.dataset, c.seed) for c in grid.combinations))
    runs: list[CohortRun] = []
    for dataset, seed in pairs:
        source = cohort_source(dataset, grid, registry)
        try:
            sources = sources_of(dataset, grid, registry, store)
            cohorts = {}
            for label, one in sources.items():
                with progress.stage(f"prepare {label}") as advance:
                    cohorts[label] = one.load(store, advance, progress.note)
            source, cohort = sources[dataset.label], cohorts.pop(dataset.label)
            runs.append(CohortRun(cohort, source, grid, registry, seed, device, executor.fetch, cohorts))
            notes += runs[-1].notes()
        except StoreError:
            raise
        except (NeurobenchError, OSError, ValueError) as error:
            settings = protocol(grid, seed, source.spec)
            scored += assembly.cohort_failed(grid, registry, dataset, seed, error, settings, grid.tasks)
    scored += _refused(grid, registry, runs)
    # No probe here: the first steps teach the time left as much, and are needed anyway.
    model = Model(measured=measured(store))
    todo = [(run, list(run.steps())) for run in runs]
    with progress.grid(sum(_seconds(s, model) for _, steps in todo for _, s in steps)) as done:
        for run, steps in todo:
            failures = _work(run, steps, executor, model, done)
            scored += assembly.collect(run, failures, store)
    table = assembly.finish(scored, store.out)
    failed = tuple(f"{s.record.row} on {s.record.dataset.label}, {s.record.task.label}" for s in scored if s.failed)
    return RunResult(
        table=table,
        failed=failed,
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
                error = ConfigError(f"task {task.label} cannot be scored: {run.why_not(task)}.")
                settings = run.protocol()
                scored += assembly.cohort_failed(grid, registry, run.dataset, run.seed, error, settings, (task,))
    return scored


def _seconds(step: Step, model: Model) -> float:
    return model.estimate(step.work).seconds or 0.0


def _work(
    run: CohortRun,
    steps: Sequence[tuple[Row, Step]],
    executor: _Executor,
    model: Model,
    done: Callable[[float], None],
) -> dict[Row, BaseException]:
    """Fetch every step; a row whose step fails is left there, and the others go on."""
    failures: dict[Row, BaseException] = {}
    for row, step in steps:
        if row not in failures:
            try:
                executor.fetch(step)
            except StoreError:
                # A full disk or a folder that cannot be written concerns every row.
                raise
            except Exception as error:
                failures[row] = error
        done(_seconds(step, model))
    return failures


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

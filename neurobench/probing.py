"""Short timings of real steps before a run: on a few subjects, with the very backbone, in a folder that is thrown away.

What a third party's backbone costs is in no table, and a table knows nothing of this machine's load. So a plan runs the
run's own steps on a handful of subjects: a few optimiser steps, one embedding, one reconstruction, one evoked response.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from neurobench.cohorts import CohortSource
from neurobench.components import ComponentSpec
from neurobench.config import Grid
from neurobench.contracts import EvokedTask, ReconstructionTask
from neurobench.cost import Model, Observation, Work
from neurobench.execution import compute
from neurobench.plugins import Registry
from neurobench.records import Cohort
from neurobench.stages import CohortRun
from neurobench.steps import Row, Step
from neurobench.store import Entry, Store

__all__ = ["SUBJECTS", "Limit", "Sample", "nothing", "probe", "sample"]

SUBJECTS = 8
"""People of a sample."""

SECONDS = 2.0
"""Probes that begin after this many seconds of a plan are left out; the table stands for them."""

STEP_SECONDS = 0.25
"""An optimiser step that is expected to take longer is timed with fewer windows."""

PROBE_SECONDS = 0.4
"""Time that the optimiser steps of one probe are meant to take."""


class Limit:
    """Time that all probes of a plan may take together.

    Parameters
    ----------
    seconds
        That time; a probe that has begun is finished.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self.seconds, self.spent, self.n_left_out = seconds, 0.0, 0
        self._until = seconds

    def share(self, n: int) -> None:
        """Leave to what comes next one n-th of the time that is left."""
        self._until = self.spent + max(0.0, self.seconds - self.spent) / n

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Count the time that something takes."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.spent += time.perf_counter() - started

    def run(self, call: Callable[[Step], None], step: Step, *, needed: bool = False) -> None:
        """Call with a step, unless the time is used up; what is needed may take as much again, twice over."""
        if self.spent >= (3 * self.seconds if needed else self._until):
            self.n_left_out += 1
            return
        with self.counted():
            call(step)


@dataclass(frozen=True, eq=False)
class Sample:
    """A few subjects of a cohort.

    Parameters
    ----------
    few
        By label, the dataset first, and those that it is pretrained on.
    whole
        The same cohorts in full; of one that is not prepared, as many people as it has, who all are copies of the few.
    source
        Of the dataset.
    seconds
        What simulating and preparing the whole cohorts is expected to take; 0 for what is there already.
    """

    few: Mapping[str, Cohort]
    whole: Mapping[str, Cohort]
    source: CohortSource
    seconds: float = 0.0

    def run(self, grid: Grid, registry: Registry, seed: int, device: torch.device) -> CohortRun:
        """Return what would be done with the whole cohorts; nothing of it can be computed."""
        return self._run(self.whole, grid, registry, seed, device, nothing)

    def trial(
        self, grid: Grid, registry: Registry, seed: int, device: torch.device, fetch: Callable[[Step], Entry]
    ) -> CohortRun:
        """Return the same for the few."""
        return self._run(self.few, grid, registry, seed, device, fetch)

    def _run(
        self,
        cohorts: Mapping[str, Cohort],
        grid: Grid,
        registry: Registry,
        seed: int,
        device: torch.device,
        fetch: Callable[[Step], Entry],
    ) -> CohortRun:
        cohort, *others = cohorts.values()
        by_label = {c.dataset: c for c in others}
        return CohortRun(cohort, self.source, grid, registry, seed, device, fetch, by_label)


def nothing(step: Step) -> Entry:
    """Refuse to compute a step."""
    raise AssertionError(f"a plan computes nothing, and {step.label!r} was asked for")


# ---------------------------------------------------------------- a few people


def sample(
    sources: Mapping[str, CohortSource], cohorts: Mapping[str, Cohort], folder: Path, n_people: int = SUBJECTS
) -> Sample:
    """Return a few subjects of every cohort: of those that are prepared, or of a small twin written into ``folder``.

    Parameters
    ----------
    sources
        By label, the dataset first.
    cohorts
        Those that are prepared.
    folder
        Where small twins go.
    n_people
        How many subjects.
    """
    few: dict[str, Cohort] = {}
    whole: dict[str, Cohort] = {}
    seconds = 0.0
    for name in ("scipy.signal", "scipy.stats", "pyarrow.parquet", "mne.io"):
        # What a first recording would import is not to be counted for every one of them.
        importlib.import_module(name)
    for label, source in sources.items():
        if label in cohorts:
            few[label], whole[label] = _few(cohorts[label], n_people), cohorts[label]
        else:
            n = source.dataset.twin_subjects if source.n_subjects is None else source.n_subjects
            started = time.perf_counter()
            few[label] = replace(source, n_subjects=min(n, n_people)).load(Store(folder / "twins"), workers=1)
            seconds += (time.perf_counter() - started) * n / min(n, n_people)
            whole[label] = _copied(few[label], n)
    return Sample(few, whole, next(iter(sources.values())), seconds)


def _copied(cohort: Cohort, n: int) -> Cohort:
    """Return a cohort of ``n`` people who are copies of those of a small one: what is done with them is the same."""
    people = cohort.subjects
    rounds = math.ceil(n / len(people))
    names = [f"{s}~{k}" for k in range(rounds) for s in people][:n]
    participants = pd.concat([cohort.participants] * rounds).iloc[:n]
    participants.index = pd.Index(names, name=cohort.participants.index.name)
    if "family" in participants:
        # Copies are of other families, else everybody would be in one of a few.
        own = participants["family"]
        copy = pd.Series([name.rpartition("~")[2] for name in names], index=own.index)
        participants["family"] = own.where(own.isna(), own.astype(str) + "~" + copy)
    kept = set(names)
    return replace(
        cohort,
        participants=participants,
        recordings=tuple(
            replace(r, id=f"{r.id}~{k}", subject=f"{r.subject}~{k}", content=f"{r.content}~{k}")
            for k in range(rounds)
            for r in cohort.recordings
            if f"{r.subject}~{k}" in kept
        ),
    )


def _few(cohort: Cohort, n_people: int) -> Cohort:
    """Return evenly spaced subjects of a cohort, with their recordings."""
    people = cohort.subjects
    chosen = {people[i] for i in np.linspace(0, len(people) - 1, min(n_people, len(people))).round().astype(int)}
    return cohort.part(chosen)


# ---------------------------------------------------------------- timing


def probe(
    one: Sample,
    grid: Grid,
    registry: Registry,
    seed: int,
    device: torch.device,
    model: Model,
    limit: Limit,
    folder: Path,
) -> None:
    """Time the steps of every backbone of a grid on a sample, as long as there is time; the model learns of them.

    A backbone that raises is noted as broken: a plan says that its cost is unknown, and the run will say why.
    """
    pretraining = [m for m in grid.masks if registry.get("mask", m.name).pretrains]
    mask = (pretraining or grid.masks)[0]
    waiting: list[tuple[_Timed, list[Step]]] = []
    for backbone in grid.backbones:
        short = _short(grid, backbone, one, registry, seed, device, model)
        timed = _Timed(Store(Path(tempfile.mkdtemp(dir=folder)) / "out"), model, device)
        run = one.trial(short, registry, seed, device, timed.fetch)
        row = next((r for r in run.rows if r.backbone == backbone and r.mask == mask), None)
        if row is not None:
            waiting.append((timed, _steps(run, row)))
    # Every backbone's pretraining before anybody's embedding: that is where the time goes.
    for kind in range(max((len(steps) for _, steps in waiting), default=0)):
        for timed, steps in waiting:
            if kind < len(steps) and steps[0].work.by not in model.broken:
                try:
                    # Nothing else says how fast a backbone is: once each, wherever it comes first.
                    limit.run(timed.time, steps[kind], needed=kind == 0 and not _known(steps[0], model))
                except Exception:
                    model.broken.add(steps[0].work.by)
    for timed, _ in waiting:
        model.probed += timed.observations


def _known(step: Step, model: Model) -> bool:
    """Whether the backbone of a step was timed on another cohort."""
    backbone = step.work.by.partition(" on ")[0]
    return any(o.work.by.partition(" on ")[0] == backbone for o in model.probed)


def _short(
    grid: Grid,
    backbone: ComponentSpec,
    one: Sample,
    registry: Registry,
    seed: int,
    device: torch.device,
    model: Model,
) -> Grid:
    """Return the grid with so few steps, and for large networks so few windows in each, that a probe is short."""
    profile = replace(grid.profile, n_folds=2)
    run = one.trial(replace(grid, profile=profile, backbones=(backbone,)), registry, seed, device, nothing)
    row = next(r for r in run.rows if r.backbone == backbone)
    size = run.pretraining_step(*row.pretraining, run.folds[0]).work.size
    expected = model.table_seconds(Work("pretraining", 1.0, size)) or STEP_SECONDS
    batch_size = max(1, min(profile.batch_size, int(profile.batch_size * STEP_SECONDS / expected)))
    expected *= batch_size / profile.batch_size
    # Two at least: the first one finds nothing in place.
    n_steps = max(2 if expected > PROBE_SECONDS else 4, min(12, round(PROBE_SECONDS / expected)))
    profile = replace(profile, n_steps=n_steps, batch_size=batch_size)
    # What is timed is thrown away: nobody watches it.
    unwatched = replace(grid.config, tensorboard=False, energy=False)
    return replace(grid, config=unwatched, profile=profile, backbones=(backbone,), distributed=None)


def _steps(run: CohortRun, row: Row) -> list[Step]:
    """Return one step of each kind that a row needs, the most costly kind first."""
    fold = run.folds[0]
    steps = [run.pretraining_step(*row.pretraining, fold)]
    # Tasks may refuse so few people; what they need is the same.
    if not run.adapts(row) and any(run.task(t).needs == "features" for t in run.grid.tasks):
        steps.append(run.embedding_step(*row.pretraining, fold))
    for spec in run.tasks:
        task = run.task(spec)
        if isinstance(task, ReconstructionTask) and (masks := run.evaluation_masks(task)):
            steps.append(run.reconstruction_step(row, fold, masks[0], task.ratio))
        if isinstance(task, EvokedTask):
            steps.append(run.evoked_step(row, fold, spec))
    return steps


class _Timed:
    """Computes steps in a store of its own and keeps what they took."""

    def __init__(self, store: Store, model: Model, device: torch.device) -> None:
        self.store, self.model, self.device = store, model, device
        self.observations: list[Observation] = []

    def fetch(self, step: Step) -> Entry:
        """Return the entry of a step that was timed before, or compute it."""
        return self.store.get(step.stage, step.key) or compute(step, self.store, lambda done, total: None)

    def time(self, step: Step) -> None:
        """Compute a step. Of a pretraining the first optimiser step does not count: it finds nothing in place."""
        stamps: list[float] = []

        def advance(done: int, total: int) -> None:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            stamps.append(time.perf_counter())

        started = time.perf_counter()
        compute(step, self.store, advance)
        seconds, work = time.perf_counter() - started, step.work
        if work.kind == "pretraining" and len(stamps) > 1:
            between = np.diff(stamps[len(stamps) // 4 :])
            fixed = self.model.table_seconds(work.times(0.0)) or 0.0
            seconds = fixed + float(np.median(between)) * work.amount
        self.observations.append(Observation(work, seconds))

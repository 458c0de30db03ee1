"""What a run would do and what it would cost, without doing any of it."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from neurobench.components import ComponentSpec
from neurobench.config import Grid
from neurobench.cost import Estimate, Model, Source, Work, total
from neurobench.errors import DataError
from neurobench.execution import STAGES, few_threads, measured, most_jobs, suitable_jobs
from neurobench.folders import other_datasets
from neurobench.opening import cohort_source, resolve_device, stored_cohorts
from neurobench.plugins import Registry
from neurobench.preparation import usable
from neurobench.probing import SUBJECTS, Limit, Sample, nothing, probe, sample
from neurobench.stages import CohortRun
from neurobench.steps import Row, Step
from neurobench.store import Store

__all__ = ["Plan", "PlanItem", "RowCost", "plan"]

MOST_BACKBONES, MOST_MASKS = 8, 3
"""Of a cohort that is not prepared, rows of so many backbones and masks are gone through step by step; the others cost
what their like cost."""

MANY = 500
"""Combinations above which a plan is to be had at once: nothing is timed, small twins are of :data:`FEW` people, and
seeds of which nothing is stored yet cost what the first of them costs."""

FEW = 2
"""People of a small twin then: with two more a plan of three datasets had the same rows, and took longer."""

CONTROLS = "baselines and fillers"
PREPARATION = "preparation"
REST = "start, records and tables"


@dataclass(frozen=True)
class PlanItem:
    """One step of a plan.

    Parameters
    ----------
    stage, label
        What it is.
    state
        ``stored``, ``to do`` or ``stale`` (something of the same name is stored, but would not be the same).
    why
        For ``stale``: what differs.
    seconds
        Estimate, or None where nothing is known.
    source
        Where the estimate comes from: ``measured here``, ``probe``, ``table`` or ``unknown``.
    whole
        Whether it stands for all steps of a dataset and a seed, whose number is not worked out.
    """

    stage: str
    label: str
    state: str
    why: str = ""
    seconds: float | None = None
    source: Source = "unknown"
    whole: bool = False


@dataclass(frozen=True)
class RowCost:
    """What one row of the results table costs on one dataset, over all folds and seeds, without what is stored.

    Parameters
    ----------
    dataset, row
        Labels; all baselines and trivial fillers are one row, and what is done once a dataset or run is another.
    pretraining, scoring
        Estimated seconds of either; None where nothing is known.
    source
        Where most of it comes from.
    """

    dataset: str
    row: str
    pretraining: float | None
    scoring: float | None
    source: Source

    @property
    def seconds(self) -> float | None:
        """Both together; None where one of them is not known."""
        return None if self.pretraining is None or self.scoring is None else self.pretraining + self.scoring


@dataclass(frozen=True)
class Plan:
    """What a run would do.

    Parameters
    ----------
    items
        Steps; of a cohort that is not prepared, and of most seeds of a very large grid, all of them in one item.
    rows
        What each row costs.
    probe_s
        Seconds that the probes took.
    notes
        What a reader of the estimate should know.
    jobs
        Processes that will compute steps at once.
    wall_s
        Estimated seconds from start to end with so many.
    unusable
        What is wrong with folders of which nothing can be prepared: the run would fail for them.
    """

    items: tuple[PlanItem, ...]
    rows: tuple[RowCost, ...] = ()
    probe_s: float = 0.0
    notes: tuple[str, ...] = ()
    jobs: int = 1
    wall_s: float = 0.0
    unusable: tuple[DataError, ...] = ()

    @property
    def seconds(self) -> float:
        """Estimated seconds of everything that is not stored, as far as it is known, in one process."""
        return sum((r.pretraining or 0.0) + (r.scoring or 0.0) for r in self.rows)

    @property
    def unknown(self) -> int:
        """How many rows' cost is not known."""
        return sum(r.seconds is None for r in self.rows)


@dataclass
class _Costs:
    """Estimates by dataset and row, in the order in which they come."""

    model: Model
    parts: dict[tuple[str, str], tuple[list[Estimate], list[Estimate]]] = field(default_factory=dict)

    def add(self, dataset: str, row: str, work: Work, times: float = 1.0) -> Estimate:
        found = self.model.estimate(work)
        if found.seconds is not None:
            found = replace(found, seconds=found.seconds * times)
        self.put(dataset, row, found, pretraining=work.kind == "pretraining")
        return found

    def put(self, dataset: str, row: str, found: Estimate, *, pretraining: bool = False) -> None:
        pair = self.parts.setdefault((dataset, row), ([], []))
        pair[0 if pretraining else 1].append(found)

    def rows(self) -> tuple[RowCost, ...]:
        costs = []
        for (dataset, row), (training, scoring) in self.parts.items():
            one, two = total(training), total(scoring)
            known = [None if e.source == "unknown" else e.seconds for e in (one, two)]
            costs.append(RowCost(dataset, row, known[0], known[1], total([*training, *scoring]).source))
        return tuple(costs)


def _name(row: Row) -> str:
    return CONTROLS if row.backbone is None else row.label


# ---------------------------------------------------------------- the plan


def plan(grid: Grid, registry: Registry, *, limit: Limit | None = None) -> Plan:
    """Return what a run would do, without doing any of it.

    What nobody has measured here is timed: real steps on a few subjects, in a folder that is thrown away, until the
    limit's time is used up; but in a grid of more than :data:`MANY` combinations.
    """
    store = Store(grid.config.out, read_only=True)
    planner = _Planner(grid, registry, store, Model(measured=measured(store)), limit or Limit())
    with tempfile.TemporaryDirectory(prefix="neurobench-plan-") as folder, few_threads(grid.profile, planner.device):
        for n_done, dataset in enumerate(grid.datasets):
            planner.limit.share(len(grid.datasets) - n_done)
            planner.dataset(dataset, grid.seeds, Path(folder))
    return planner.result()


class _Planner:
    """Goes through the datasets of a grid."""

    def __init__(self, grid: Grid, registry: Registry, store: Store, model: Model, limit: Limit) -> None:
        self.grid, self.registry, self.store, self.model, self.limit = grid, registry, store, model, limit
        self.device = resolve_device(grid.config.device, elsewhere=grid.config.elsewhere)
        self.costs = _Costs(model)
        self.items: list[PlanItem] = []
        self.seen: set[str] = set()
        self.notes: list[str] = []
        self.unusable: dict[str, DataError] = {}
        self.from_few: list[str] = []
        self.n_records = 0.0
        self.many = len(grid.combinations) > MANY
        self.n_people = FEW if self.many else SUBJECTS
        # Every step's label names its seed.
        labels = (e.manifest["label"] for stage in STAGES for e in store.entries(stage)) if self.many else ()
        self.begun = {int(n) for label in labels for n in re.findall(r" · seed (\d+)", label)}

    def result(self) -> Plan:
        """Return the plan."""
        if self.from_few:
            self.notes.append(
                f"estimated from {self.n_people} simulated people of each: {', '.join(self.from_few)}, not prepared yet"
            )
        if self.many:
            self.notes.append(
                f"of more than {MANY} combinations nothing is timed; ask for one --seed to have that done"
            )
        elif self.limit.n_left_out:
            self.notes.append(
                f"probes stopped after {self.limit.seconds:g} s; {self.limit.n_left_out} more would have been made"
            )
        if any(i.state != "stored" for i in self.items):
            self.costs.add("", REST, Work("start", 1.0))
            self.costs.add("", REST, Work("records", self.n_records))
        rows, notes = self.costs.rows(), tuple(dict.fromkeys(self.notes))
        alone = sum(r.seconds or 0.0 for r in rows if r.row in (REST, PREPARATION))
        shared = sum(r.seconds or 0.0 for r in rows) - alone
        jobs = 1
        if not self.grid.config.elsewhere:
            asked = self.grid.config.jobs or suitable_jobs(self.grid, shared)
            jobs = int(min(asked, most_jobs(self.grid, self.registry)))
        # The others start as this one did.
        starting = (self.model.estimate(Work("start", 1.0)).seconds or 0.0) if jobs > 1 else 0.0
        wall = alone + starting + shared / jobs
        return Plan(tuple(self.items), rows, self.limit.spent, notes, jobs, wall, tuple(self.unusable.values()))

    def dataset(self, dataset: ComponentSpec, seeds: Sequence[int], folder: Path) -> None:
        """Add the steps of one dataset for all seeds."""
        found = stored_cohorts(dataset, self.grid, self.registry, self.store)
        labels = ", ".join(dict.fromkeys(s.label for s in (dataset, *self.grid.pretrain_on)))
        if found is None:
            self._not_prepared(dataset, seeds, labels, folder)
            return
        source, cohorts = found
        # Of very many seeds the first one that nothing is stored of stands for all that nothing is stored of.
        alike = [seed for seed in seeds if self.many and seed not in self.begun]
        todo = {}
        self.items.append(PlanItem("cohort", f"prepare {labels}", "stored", seconds=0.0, source="measured here"))
        for seed in seeds:
            if seed not in alike[1:]:
                label, device = dataset.label, self.device
                run = CohortRun.among(cohorts, label, source, self.grid, self.registry, seed, device, nothing)
                todo[seed] = run, list(self._todo(run))
        steps = [step for _, own in todo.values() for _, step, _ in own]
        if any(self.model.estimate(s.work).source == "table" and s.work.size > 1 for s in steps):
            sources = dict.fromkeys(cohorts, source)
            self._probe(lambda: sample(sources, cohorts, folder), seeds[0], folder)
        for seed, (run, own) in todo.items():
            times = len(alike) if seed in alike else 1
            parts = []
            for row, step, why in own:
                parts.append(self.model.estimate(step.work))
                self.costs.add(dataset.label, _name(row), step.work, times)
                state = "stale" if why else "to do"
                self.items.append(PlanItem(step.stage, step.label, state, why, parts[-1].seconds, parts[-1].source))
            self.n_records += _n_records(run) * times if own else 0
            if seed in alike:
                for other in alike[1:]:
                    self._whole_seed(dataset, other, total(parts), f"as seed {seed}")

    def _whole_seed(self, dataset: ComponentSpec, seed: int, cost: Estimate, why: str) -> None:
        """Add all combinations of a dataset and a seed as one item."""
        n = len(self.grid.backbones) * len(self.grid.masks)
        text = f"{n} combinations on {dataset.label} · seed {seed}"
        self.items.append(PlanItem("pretraining", text, "to do", why, cost.seconds, cost.source, whole=True))

    def _todo(self, run: CohortRun) -> Iterator[tuple[Row, Step, str]]:
        """Yield every step that is not stored with its row and what is stale; note those that are."""
        for use, step in run.steps():
            if step.key in self.seen:
                continue
            self.seen.add(step.key)
            if self.store.get(step.stage, step.key) is not None:
                self.items.append(PlanItem(step.stage, step.label, "stored", seconds=0.0, source="measured here"))
            else:
                yield use.row, step, self.store.why_stale(step.stage, step.label, step.identity)

    # ------------------------------------------------------------ not prepared

    def _not_prepared(self, dataset: ComponentSpec, seeds: Sequence[int], labels: str, folder: Path) -> None:
        self._look_for_recordings(dataset)
        try:
            few = self._small_twin(dataset, folder)
            works = None if few is None else self._works(few, seeds[0], len(seeds))
        except Exception as error:
            # What is wrong with single recordings is told by the run, or by `data check`, and not by an estimate.
            few = works = None
            self.notes.append(f"no sample of {labels} could be made: {' '.join(str(error).split())}")
        if few is None or works is None:
            cost = self._guess(dataset, len(seeds))
            preparation = Estimate(None, "unknown")
            self.notes.append(
                f"{labels} is not prepared: what preparing and scoring it cost is known after `neurobench data prepare`"
            )
        else:
            twin = few
            self._probe(lambda: twin, seeds[0], folder)
            parts = [self.costs.add(dataset.label, row, work, n * len(seeds)) for row, work, n in works]
            cost = total(parts)
            preparation = Estimate(few.seconds, "probe")
            self.from_few.append(dataset.label)
        self.costs.put(dataset.label, PREPARATION, preparation)
        self.items.append(PlanItem("cohort", f"prepare {labels}", "to do", "", preparation.seconds, preparation.source))
        for seed in seeds:
            seconds = None if cost.seconds is None else cost.seconds / len(seeds)
            self._whole_seed(dataset, seed, replace(cost, seconds=seconds), "steps are known once it is prepared")

    def _look_for_recordings(self, dataset: ComponentSpec) -> None:
        """Note folders of which nothing could be prepared: a job in a queue is not to find that out."""
        for spec in dict.fromkeys([dataset, *self.grid.pretrain_on]):
            source = cohort_source(spec, self.grid, self.registry)
            if source.root is None or spec.label in self.unusable:
                continue
            others = partial(other_datasets, spec.label, self.registry.datasets)
            try:
                usable(source.dataset, spec.label, source.root, others)
            except DataError as error:
                self.unusable[spec.label] = error

    def _small_twin(self, dataset: ComponentSpec, folder: Path) -> Sample | None:
        """Return a few simulated people of a dataset; None where real files would have to be read."""
        specs = dict.fromkeys([dataset, *self.grid.pretrain_on])
        own = {s.label: cohort_source(s, self.grid, self.registry) for s in specs}
        if any(s.root is not None or s.dataset.twin_subjects == 0 for s in own.values()):
            return None
        if len(own) > 1:
            small = {label: replace(s, n_subjects=self.n_people) for label, s in own.items()}
            slowest = min(s.slowest(Store(folder / "twins")) for s in small.values())
            own = {label: replace(s, spec=replace(s.spec, sfreq=slowest)) for label, s in own.items()}
        return sample(own, {}, folder, self.n_people)

    def _works(self, few: Sample, seed: int, n_seeds: int) -> list[tuple[str, Work, float]]:
        """Return row, work and how often, for all rows of a dataset and one seed, from the steps of a sample."""
        pretraining = [m for m in self.grid.masks if self.registry.get("mask", m.name).pretrains]
        shown = [*(m for m in self.grid.masks if m not in pretraining), *pretraining[:MOST_MASKS]]
        backbones = self.grid.backbones[:MOST_BACKBONES]
        small = replace(self.grid, masks=tuple(shown), backbones=backbones)
        run = few.run(small, self.registry, seed, self.device)
        n_left_out = len(pretraining) - len(pretraining[:MOST_MASKS])
        n_rows = len(pretraining) * len(self.grid.backbones) / max(1, len(pretraining[:MOST_MASKS]) * len(backbones))
        self.n_records += _n_records(run) * max(1.0, n_rows) * n_seeds
        by_row: dict[Row, list[tuple[Work, float]]] = {}
        seen: set[str] = set()
        for use, step in run.steps():
            if step.key in seen:
                continue
            seen.add(step.key)
            work, n = step.work, 1.0
            if n_left_out and work.kind in ("reconstruction", "fillers") and run.meets_all_masks(use.row):
                n_masks = len(run.evaluated_under(use.row))
                n = (n_masks + n_left_out) / n_masks
            by_row.setdefault(use.row, []).append((work, n))
        found = [(_name(row), work, n) for row, own in by_row.items() for work, n in own]
        trained = {r.backbone: own for r, own in by_row.items() if r.kind == "pretrained"}
        untrained = {r.backbone: own for r, own in by_row.items() if r.kind in ("untrained", "given")}
        for backbone in self.grid.backbones:
            template = backbone if backbone in backbones else backbones[-1]
            if backbone is not template:
                like = untrained[template]
                found += [(f"{backbone.label} · untrained", _by(w, template, backbone), n) for w, n in like]
            for mask in pretraining if backbone is not template else pretraining[MOST_MASKS:]:
                like = trained[template]
                label = f"{backbone.label} · {mask.label}{self.grid.arrow}"
                found += [(label, _by(w, template, backbone), n) for w, n in like]
        return found

    def _guess(self, dataset: ComponentSpec, n_seeds: int) -> Estimate:
        """Return a guess for pretraining alone, from the sizes of the profile."""
        profile = self.grid.profile
        size = float(profile.batch_size * profile.n_tokens * profile.width * profile.n_layers)
        work = Work("pretraining", profile.n_steps * self.grid.objective.work, size)
        n_networks = n_seeds * (1 if self.grid.pretrain_on else profile.n_folds)
        parts = []
        for backbone in self.grid.backbones:
            for mask in self.grid.masks:
                if self.registry.get("mask", mask.name).pretrains:
                    row = f"{backbone.label} · {mask.label}{self.grid.arrow}"
                    parts.append(self.costs.add(dataset.label, row, work, n_networks))
                    self.costs.put(dataset.label, row, Estimate(None, "unknown"))
        return total([*parts, Estimate(None, "unknown")])

    def _probe(self, few: Callable[[], Sample], seed: int, folder: Path) -> None:
        if self.many:
            return
        try:
            probe(few(), self.grid, self.registry, seed, self.device, self.model, self.limit, folder)
        except Exception as error:
            self.notes.append(f"no probe was possible, the table stands for it: {' '.join(str(error).split())}")


def _by(work: Work, template: ComponentSpec, backbone: ComponentSpec) -> Work:
    """Return the work of a backbone that was not gone through, as that of another one."""
    head = f"{template.label} on "
    return replace(work, by=f"{backbone.label} on {work.by.removeprefix(head)}") if work.by.startswith(head) else work


def _n_records(run: CohortRun) -> int:
    return sum(run.scores(row, t) for row in run.rows for t in run.tasks)

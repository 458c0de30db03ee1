"""Finding or computing the steps of a grid: one after the other in this process, or several at once in others.

What is computed does not depend on how: a step uses the same number of threads either way, reads what it needs from
the store and writes what it gives there. Steps wait for the steps whose keys their identities name; those of one
cohort and fold come one after the other, because a process keeps one fold's scaled signal at a time.

Other processes load plugins anew and build the grid from the same configuration; what passes between processes is a
step's key and how it ended.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import heapq
import itertools
import logging
import math
import multiprocessing
import os
import queue
import signal
import sys
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import connection, forkserver, resource_tracker
from multiprocessing.queues import SimpleQueue

import joblib
import threadpoolctl
import torch

from neurobench import logs
from neurobench.allocation import keep_freed_memory, keeps_freed_memory
from neurobench.cohorts import CohortSource
from neurobench.config import Grid, Profile, RunConfig, expand, needs_of
from neurobench.cost import Observation, Work
from neurobench.distributed import n_processes
from neurobench.errors import NeurobenchError, StoreError
from neurobench.interrupts import LAST_STEP_S, Abandoned, end_after
from neurobench.opening import resolve_device, stored_cohorts
from neurobench.out_of_memory import is_out_of_memory, release, too_large
from neurobench.plugins import Registry, load_registry
from neurobench.progress import Advance, Done, Progress, Silent
from neurobench.records import Cohort
from neurobench.resources import Needs, dealt, free_memory, most, of_this_machine, visible_gpus
from neurobench.stages import CohortRun
from neurobench.steps import Failures, Step, Use
from neurobench.store import Entry, Store, keys_in

__all__ = [
    "Executor",
    "Here",
    "Outcome",
    "Processes",
    "Todo",
    "Workers",
    "collecting_less",
    "compute",
    "describe",
    "few_threads",
    "in_turn",
    "measured",
    "most_jobs",
    "on_workers",
    "suitable_jobs",
]

SMALL = 128
"""Width below which a step runs on one thread: starting more takes longer than they save."""

WORTH_S = 60.0
"""Estimated seconds of a grid from which on other processes pay: of less they save little, and take memory."""

BYTES_A_JOB = 1 << 30
"""Memory that a process of a small network takes, with its libraries."""

SHARED = ("timm", "sklearn.linear_model", "scipy.signal", "scipy.stats", "nilearn.connectome", "pyarrow.parquet")
"""Libraries that are imported when something needs them, and take seconds and tens of megabytes: those that this
process needed are imported once for all that it starts."""

BUNDLE_S = 2.0
"""Estimated seconds up to which short steps travel to a worker together: sending one takes several milliseconds."""

AHEAD_S = 1.5
"""Estimated seconds of a job up to which more than two a worker are under way: while this process writes the records of
a (dataset, seed) it hands nothing out."""


# ---------------------------------------------------------------- what steps took

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


def measured(store: Store) -> list[Observation]:
    """Return what the stored steps took, oldest first of each stage; older versions did not write it down."""
    found = []
    for stage in STAGES:
        for entry in store.entries(stage):
            work = Work.from_dict(entry.manifest.get("work"))
            if work is not None:
                found.append(Observation(work, entry.seconds))
    return found


# ---------------------------------------------------------------- one step


class Executor:
    """Finds or computes steps, counts them, and shows progress."""

    def __init__(self, store: Store, progress: Progress) -> None:
        self.store, self.progress = store, progress
        self.computed: set[str] = set()
        self.stored: set[str] = set()

    def fetch(self, step: Step) -> Entry:
        """Return the entry of a step, computing it if it is not stored."""
        entry = self.store.get(step.stage, step.key)
        if entry is None:
            with self.store.lock(step.stage, step.key):
                # Who waited for the lock may find what another process on this grid has computed.
                entry = self.store.get(step.stage, step.key)
                if entry is None:
                    entry = self._compute(step)
                    self.computed.add(step.key)
        if step.key not in self.computed:
            self.stored.add(step.key)
        return entry

    def _compute(self, step: Step) -> Entry:
        with logs.step(step.stage, step.label, step.key), self.progress.stage(step.label) as advance:
            return compute(step, self.store, advance)


def compute(step: Step, store: Store, advance: Advance) -> Entry:
    """Compute a step into a store, whatever entry is there, and return its entry; a step that was stopped may go on."""
    checkpoint = store.checkpoint(step.stage, step.key, step.label)
    with store.write(step.stage, step.identity, step.label, step.work.to_dict(), checkpoint) as folder:
        try:
            step.compute(folder, advance, checkpoint)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise too_large(error) from None
    entry = store.get(step.stage, step.key)
    assert entry is not None
    return entry


@contextlib.contextmanager
def collecting_less() -> Iterator[None]:
    """Leave what is there already out of garbage collection, until afterwards.

    Hundreds of thousands of objects of imported libraries were gone through again and again, for nothing: two per cent
    of the time that a grid of small networks took.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextlib.contextmanager
def few_threads(profile: Profile, device: torch.device) -> Iterator[None]:
    """Compute on one thread where networks are small, on all cores where they are not; as before afterwards.

    One number for a profile, however many processes there are: sums are rounded alike.
    """
    if device.type == "cuda" or profile.width >= SMALL:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _libraries(len(sys.modules)).limit(limits=1):
            yield
    finally:
        torch.set_num_threads(before)


@functools.lru_cache(maxsize=1)
def _libraries(n_modules: int) -> threadpoolctl.ThreadpoolController:
    """Return the libraries of this process that have threads: looked for anew only after more modules were imported."""
    return threadpoolctl.ThreadpoolController()


def suitable_jobs(grid: Grid, seconds: float) -> int:
    """Return how many processes suit a grid on this machine.

    Parameters
    ----------
    grid
        What is to be run.
    seconds
        What that is estimated to take in one process.
    """
    if seconds < WORTH_S or grid.config.energy:
        return 1
    at_once = len(grid.combinations) * grid.profile.n_folds
    if resolve_device(grid.config.device, elsewhere=grid.config.elsewhere).type == "cuda":
        # A pretraining in several processes has all GPUs for itself.
        return max(1, min(len(visible_gpus()), at_once)) if grid.distributed is None else 1
    if grid.profile.width >= SMALL:
        return 1
    free = free_memory()
    each = 1 if grid.distributed is None else n_processes(grid.distributed)
    return int(max(1, min(joblib.cpu_count() // each, free // BYTES_A_JOB // each, at_once)))


def most_jobs(grid: Grid, registry: Registry) -> float:
    """Return how many processes of this machine have what the components of a grid need; infinity where that is a core.

    Every process has one GPU: who needs several has them all, in one process.
    """
    components = (*grid.backbones, *grid.masks, *grid.baselines)
    needs, here = most(needs_of(c, grid.config, registry) for c in components), of_this_machine()
    several = grid.distributed is not None and resolve_device(grid.config.device).type == "cuda"
    if several or needs.get("GPU", 0) > 1:
        return 1
    return max(1, min((here[name] // needs[name] for name in needs.keys() & here.keys()), default=math.inf))


# ---------------------------------------------------------------- all steps


@dataclass(frozen=True, eq=False)
class Todo:
    """The steps of one (dataset, seed), in an order in which each finds what it needs.

    Parameters
    ----------
    run
        Its rows.
    steps
        Every step, with what it is for; one that is for several things is there once for each.
    """

    run: CohortRun
    steps: Sequence[tuple[Use, Step]]


def in_turn(
    todo: Iterable[Todo], executor: Executor, seconds: Callable[[Step], float], done: Done
) -> Iterator[tuple[Todo, Failures]]:
    """Fetch every step in this process; what needs one that fails is left there, and the others go on.

    Parameters
    ----------
    todo
        What there is to do.
    executor
        Counts what it computes and finds.
    seconds
        What a step is estimated to take.
    done
        Called after every step.

    Yields
    ------
    todo, failures
        Each (dataset, seed) as soon as all of its steps are through.

    Raises
    ------
    StoreError
        If the output folder cannot be used, which concerns every row.
    """
    for one in todo:
        failures: Failures = {}
        failed: dict[str, str] = {}
        for use, step in one.steps:
            n_before = len(executor.computed)
            if step.key not in failed and not use.is_idle(failures):
                try:
                    with logs.at(dataset=one.run.dataset.label, seed=one.run.seed, row=use.row.label):
                        executor.fetch(step)
                except StoreError:
                    raise
                except Exception as error:
                    executor.store.must_be_there()
                    failed[step.key] = describe(error)
                    executor.progress.failed(step.label, failed[step.key])
                if step.key in failed:
                    release()
            if step.key in failed:
                use.fail(failures, failed[step.key])
            done(seconds(step), len(executor.computed) > n_before)
        yield one, failures


def describe(error: BaseException) -> str:
    """Return kind and message of an error, as a record of what failed has it."""
    return f"{type(error).__name__}: {error}"


@dataclass(frozen=True)
class Outcome:
    """How the steps of a job ended: the keys of what was computed, and the errors.

    Errors travel as text, since a plugin's own class may not survive the way; but for the store's, which end the run.

    Parameters
    ----------
    computed
        Keys of what was computed.
    error
        Why nothing is known of any of them.
    store_error
        What ends the run.
    failed
        By key, the errors of steps.
    abandoned
        Whether those that neither were computed nor failed were left: the worker leaves, or the run that asked seemed
        to be over. One that goes on has them computed again.
    """

    computed: frozenset[str]
    error: str = ""
    store_error: StoreError | None = None
    failed: Mapping[str, str] = field(default_factory=dict)
    abandoned: bool = False


class Workers(ABC):
    """Other processes, here or elsewhere, that compute steps and write them into the store."""

    @property
    @abstractmethod
    def n(self) -> int:
        """How many jobs can be under way at once, at this moment."""

    @abstractmethod
    def submit(self, dataset: str, seed: int, steps: Sequence[tuple[str, str]], needs: Needs) -> Future[Outcome]:
        """Have steps of a (dataset, seed) computed one after the other, where there is what they need."""

    def outcome(self, future: Future[Outcome]) -> Outcome:
        """Return how a job ended.

        Raises
        ------
        BrokenProcessPool
            If a process died and nobody can tell whose it was.
        """
        return future.result()

    @property
    def have_begun(self) -> bool:
        """Whether those that are there now came to compute anything."""
        return True

    def renew(self, broken: BrokenProcessPool) -> None:
        """Replace processes of which one died."""
        raise broken

    @abstractmethod
    def close(self, *, at_once: bool) -> None:
        """Let them go; at once: without waiting for what is under way."""


def on_workers(
    todo: Sequence[Todo],
    executor: Executor,
    seconds: Callable[[Step], float],
    done: Done,
    start: Callable[[], Workers],
) -> Iterator[tuple[Todo, Failures]]:
    """Compute what is not stored on workers; see :func:`in_turn` for what it yields and raises.

    ``start`` is called where there is anything to compute. A process that ends without a word, as one that the system
    kills for its memory does, is replaced: the steps that were under way are tried once more, each alone, so that the
    one that is to blame fails and no other.
    """
    schedule = _Schedule(todo, executor, seconds, done)
    if schedule.is_empty:
        yield from ((one, {}) for one in todo)
        return
    running: dict[Future[Outcome], _Job] = {}
    ended: queue.SimpleQueue[Future[Outcome]] = queue.SimpleQueue()
    workers = start()
    finished = False
    try:
        while True:
            job = None
            try:
                n = workers.n
                # Another one for each, so that none waits for this process between two jobs.
                while (job := schedule.next(running.values(), 2 * n)) is not None:
                    run = todo[job[0].order[0]].run
                    steps = [(node.step.stage, node.key) for node in job]
                    future = workers.submit(run.dataset.label, run.seed, steps, job[0].needs)
                    running[future] = job
                    future.add_done_callback(ended.put)
                executor.progress.at_work([job[0].step.label for job in itertools.islice(running.values(), n)])
                for number in schedule.through():
                    yield todo[number], schedule.failures[number]
                if not running:
                    break
                future = ended.get()
                # Of processes that were replaced since nothing is expected any more.
                if future in running:
                    outcome = workers.outcome(future)
                    executor.computed |= outcome.computed
                    if outcome.store_error is not None:
                        raise outcome.store_error
                    taken = running.pop(future)
                    if not outcome.error and not outcome.abandoned:
                        # Another run on this folder may have computed what this one asked for.
                        executor.stored |= {node.key for node in taken} - executor.computed - outcome.failed.keys()
                    schedule.take(taken, outcome)
            except BrokenProcessPool as broken:
                # Who had ended before is still to be told. Of the others it cannot be said whose process it was: every
                # step that was under way is tried again; those behind the first n only waited for a process.
                lost = [future for future in running if not future.done() or future.exception() is not None]
                n_begun = n if workers.have_begun else 0
                for place, future in enumerate(lost):
                    (schedule.again if place < n_begun else schedule.put_back)(running.pop(future))
                if job is not None:
                    schedule.put_back(job)
                workers.renew(broken)
                again = "its steps are tried again, one at a time" if n_begun else "before it began; others are started"
                executor.progress.note(f"a process ended without a word{';' if n_begun else ','} {again}.")
        finished = True
    finally:
        # After Ctrl-C or a full disk nobody waits for what is under way; what is half-written is swept at the next
        # start.
        executor.progress.at_work([])
        workers.close(at_once=not finished)


@dataclass(eq=False)
class _Node:
    """A step that is to be computed, what it is for by number of their work, and how many steps it needs."""

    key: str
    order: tuple[int, bool, int]
    step: Step
    waiting: list[tuple[int, Use]]
    needs: Needs
    seconds: float
    n_needed: int = 0
    broke: int = 0


_Job = list[_Node]
"""Steps of one (dataset, seed) that travel together."""


class _Schedule:
    """Which steps are next: the first of those that have all they need, short ones together.

    Parameters
    ----------
    todo, executor, seconds, done
        As for :func:`on_workers`; what is stored is done at once.
    """

    def __init__(self, todo: Sequence[Todo], executor: Executor, seconds: Callable[[Step], float], done: Done) -> None:
        self.failures: list[Failures] = [{} for _ in todo]
        self._left = [0] * len(todo)
        self._through: list[int] = []
        self._done, self._progress = done, executor.progress
        self._suspects: list[_Node] = []
        nodes: dict[str, _Node] = {}
        for number, one in enumerate(todo):
            for use, step in one.steps:
                key = step.key
                if key in nodes:
                    nodes[key].waiting.append((number, use))
                elif executor.store.get(step.stage, step.key) is None:
                    # Of one cohort what takes longest first, or the last pretraining leaves the others idle; the rest
                    # fold after fold.
                    order = number, step.stage != "pretraining", len(nodes)
                    needed = one.run.needs(use.row, step.stage)
                    nodes[key] = _Node(key, order, step, [(number, use)], needed, seconds(step))
                    continue
                else:
                    executor.stored.add(key)
                done(seconds(step), False)
        self._needed_by: dict[str, list[_Node]] = {}
        for node in nodes.values():
            needs = set(keys_in(node.step.identity)) & nodes.keys()
            node.n_needed = len(needs)
            for key in needs:
                self._needed_by.setdefault(key, []).append(node)
        for node in nodes.values():
            for number, _ in node.waiting:
                self._left[number] += 1
        self._ready = [(node.order, node) for node in nodes.values() if node.n_needed == 0]
        heapq.heapify(self._ready)
        self._through += [number for number, left in enumerate(self._left) if left == 0]

    @property
    def is_empty(self) -> bool:
        """Whether everything was stored before anything began."""
        return not any(self._left)

    def next(self, running: Collection[_Job], at_once: int) -> _Job | None:
        """Return steps to start now, or None; those that were under way when a process died run alone."""
        if self._suspects or any(job[0].broke for job in running):
            return None if running else [self._suspects.pop()]
        # Of short ones more.
        if len(running) >= at_once and not 0 < sum(n.seconds for job in running for n in job) < at_once * AHEAD_S:
            return None
        job: _Job = []
        seconds = 0.0
        # What is ready is shared: nobody takes so much that another one has nothing to do.
        share = math.ceil(len(self._ready) / at_once)
        while self._ready and len(job) < share:
            node = self._ready[0][1]
            seconds += node.seconds
            together = not job or (node.order[0], node.needs) == (job[0].order[0], job[0].needs)
            if not together or (job and seconds > BUNDLE_S):
                break
            heapq.heappop(self._ready)
            if not all(use.is_idle(self.failures[number]) for number, use in node.waiting):
                job.append(node)
            else:
                self.finish(node, "")
        return job or None

    def take(self, job: _Job, outcome: Outcome) -> None:
        """Count the steps of a job as done, or have them tried again where it is not known which is to blame."""
        if outcome.abandoned:
            through = outcome.computed | outcome.failed.keys()
            self.put_back([node for node in job if node.key not in through])
            job = [node for node in job if node.key in through]
        if outcome.error:
            self.again(job, outcome.error)
            return
        # Those that were computed first: the time that has gone by is theirs.
        for node in sorted(job, key=lambda node: node.key not in outcome.computed):
            self.finish(node, outcome.failed.get(node.key, ""), computed=node.key in outcome.computed)

    def finish(self, node: _Node, error: str, *, computed: bool = False) -> None:
        """Count a step as done; with an error, what needs it is left, and steps that need it fail by themselves."""
        for number, use in node.waiting:
            self._left[number] -= 1
            if self._left[number] == 0:
                self._through.append(number)
            if error:
                use.fail(self.failures[number], error)
        if error:
            self._progress.failed(node.step.label, error)
        for other in self._needed_by.pop(node.key, ()):
            other.n_needed -= 1
            if other.n_needed == 0:
                heapq.heappush(self._ready, (other.order, other))
        self._done(node.seconds, computed)

    def through(self) -> list[int]:
        """Return the numbers of those of which no step is left, once each."""
        found, self._through = self._through, []
        return found

    def put_back(self, job: _Job) -> None:
        """Have steps that were not started, or were left, be the next ones again."""
        for node in job:
            if node.broke:
                self._suspects.append(node)
            else:
                heapq.heappush(self._ready, (node.order, node))

    def again(self, job: _Job, error: str = "") -> None:
        """Have steps tried once more, each alone, after the process that computed them, or one beside it, has died.

        Who only waited behind the one that is to blame is tried alone too. ``error``: of those that were already.
        """
        for node in job:
            node.broke += 1
            logs.tell("step-lost", level=logging.WARNING, stage=node.step.stage, label=node.step.label, key=node.key)
            if node.broke == 1:
                self._suspects.append(node)
                continue
            twice = NeurobenchError(
                f"the process that computed {node.step.label!r} ended twice without an error.",
                next_step="The system may have killed it for its memory: use fewer --jobs, or a smaller --profile.",
            )
            self.finish(node, error or describe(twice))


# ---------------------------------------------------------------- in another process

Steps = dict[tuple[str, str], tuple[Use, Step]]
"""By stage and key, the steps of a (dataset, seed), each with the first thing that it is for."""

LISTED = 8
"""(dataset, seed) whose steps a process keeps listed: it goes to and fro between the few that are under way."""


class Here:
    """What a process that computes steps for another keeps between them: the grid, and the cohort it is at work on.

    Parameters
    ----------
    config
        What the other one runs.

    Raises
    ------
    ConfigErrors
        If the same grid cannot be made here.
    """

    def __init__(self, config: RunConfig) -> None:
        self.registry: Registry = load_registry(config.plugin_files)
        self.grid = expand(config, self.registry)
        self.store = Store(config.out)
        self.device = resolve_device(config.device, elsewhere=config.elsewhere)
        self.executor = Executor(self.store, Silent())
        self.at: tuple[str, int] | None = None
        self.cohorts: tuple[str, CohortSource, dict[str, Cohort]] | None = None
        self.listed: OrderedDict[tuple[str, int], tuple[CohortRun, Steps]] = OrderedDict()
        logs.keep(config.out, config.run, config.log_format)
        # For as long as the process lives: see collecting_less.
        gc.freeze()
        if keeps_freed_memory(self.grid.profile, self.device.type):
            keep_freed_memory()

    def compute(self, dataset: str, seed: int, steps: Sequence[tuple[str, str]]) -> Outcome:
        """Find or compute steps, and whatever they need, and say how that ended."""
        before = set(self.executor.computed)
        failed: dict[str, str] = {}
        store_error, abandoned = None, False
        with few_threads(self.grid.profile, self.device), logs.at(dataset=dataset, seed=seed):
            for stage, key in steps:
                try:
                    use, step = self.step(dataset, seed, stage, key)
                    with logs.at(row=use.row.label):
                        self.executor.fetch(step)
                except Abandoned:
                    # No error of the step.
                    abandoned = True
                    break
                except StoreError as found:
                    store_error = found
                    break
                except Exception as found:
                    try:
                        self.store.must_be_there()
                    except StoreError as gone:
                        store_error = gone
                        break
                    failed[key] = describe(found)
                if key in failed:
                    release()
        return Outcome(frozenset(self.executor.computed - before), "", store_error, failed, abandoned)

    def step(self, dataset: str, seed: int, stage: str, key: str) -> tuple[Use, Step]:
        """Return one of the steps of a (dataset, seed), with the first thing that it is for."""
        if (found := self._steps(dataset, seed).get((stage, key))) is None:
            raise NeurobenchError(
                f"the files of {dataset}, or a plugin, changed while the grid was running.",
                next_step="Run the same command again: what is finished is kept.",
            )
        return found

    def _steps(self, dataset: str, seed: int) -> Steps:
        """Return the steps of a (dataset, seed); none if its cohort is not stored any more."""
        if self.at != (dataset, seed):
            # One cohort's signal in memory at a time; what its steps are takes longer to find out than to keep.
            if self.at is not None and self.at in self.listed:
                self.listed[self.at][0].release()
            self.at = None
            if self.cohorts is None or self.cohorts[0] != dataset:
                self.cohorts = None
                self.listed.clear()
                spec = next(d for d in self.grid.datasets if d.label == dataset)
                if (found := stored_cohorts(spec, self.grid, self.registry, self.store)) is None:
                    return {}
                self.cohorts = dataset, *found
            if (dataset, seed) not in self.listed:
                _, source, cohorts = self.cohorts
                fetch = self.executor.fetch
                run = CohortRun.among(cohorts, dataset, source, self.grid, self.registry, seed, self.device, fetch)
                steps: Steps = {}
                for use, step in run.steps():
                    steps.setdefault((step.stage, step.key), (use, step))
                self.listed[dataset, seed] = run, steps
                if len(self.listed) > LISTED:
                    self.listed.popitem(last=False)
            self.listed.move_to_end((dataset, seed))
            self.at = dataset, seed
        return self.listed[dataset, seed][1]


_here: Here | None = None


class Processes(Workers):
    """Other processes on this machine; each has one of its GPUs, for itself where there are enough.

    Parameters
    ----------
    config
        What is run.
    jobs
        How many.
    """

    def __init__(self, config: RunConfig, jobs: int) -> None:
        self.config, self.jobs = config, jobs
        self._n_dead = 0
        self._before = set(multiprocessing.active_children())
        self._open()

    def _open(self) -> None:
        # A copy of this process would inherit locks of its threads; a server that has only imported what is needed is
        # started once, and copied.
        able = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        context = multiprocessing.get_context(able)
        if able == "forkserver":
            context.set_forkserver_preload([__name__, *(name for name in SHARED if name in sys.modules)])
            # It inherits what is blocked: Ctrl-C while it imports is this process's, and no traceback of it. Starting
            # the tracker would let it through again.
            resource_tracker.ensure_running()
            with _blocked(signal.SIGINT):
                forkserver.ensure_running()
        # Processes that replace others are dealt the same GPUs again.
        gpus = context.SimpleQueue()
        for gpu in dealt(visible_gpus(), self.jobs):
            gpus.put(gpu)
        self._pool = ProcessPoolExecutor(
            self.jobs, mp_context=context, initializer=_start, initargs=(self.config, gpus)
        )
        self._ready = self._pool.submit(_ready)

    @property
    def n(self) -> int:
        """How many there are."""
        return self.jobs

    @property
    def have_begun(self) -> bool:
        """Whether one of them was started as it should be."""
        return self._ready.exception() is None

    def submit(self, dataset: str, seed: int, steps: Sequence[tuple[str, str]], needs: Needs) -> Future[Outcome]:
        """Have steps of a (dataset, seed) computed; there are no more processes than have what their steps need."""
        return self._pool.submit(_compute, dataset, seed, steps)

    def renew(self, broken: BrokenProcessPool) -> None:
        """Replace processes of which one died.

        Raises
        ------
        NeurobenchError
            If none of them started, twice.
        """
        self._n_dead = 0 if self.have_begun else self._n_dead + 1
        if self._n_dead > 1:
            raise NeurobenchError(
                "the processes that were to compute steps could not be started.",
                next_step="If they said why, it is above; if not, the system may have killed them for their memory. "
                'Use --jobs 1; in a script of your own put the call under `if __name__ == "__main__":`.',
            ) from broken
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._open()

    def close(self, *, at_once: bool) -> None:
        """Let them go; at once: what is under way comes to its next checkpoint, unless somebody asks once more."""
        if at_once:
            self._pool.shutdown(wait=False, cancel_futures=True)
            mine = set(multiprocessing.active_children()) - self._before
            for process in mine:
                process.terminate()
            give_up = time.monotonic() + LAST_STEP_S
            try:
                for process in mine:
                    process.join(max(0.0, give_up - time.monotonic()))
            finally:
                for process in mine:
                    process.kill()
        else:
            self._pool.shutdown()


@contextlib.contextmanager
def _blocked(number: signal.Signals) -> Iterator[None]:
    """Have a signal wait; here it comes afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(config: RunConfig, gpus: SimpleQueue[str]) -> None:
    """Make this process ready to compute steps."""
    global _here
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    # Before anything asks CUDA: what it sees first is what it keeps.
    if gpu := gpus.get():
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    parent = multiprocessing.parent_process()
    if parent is not None:
        # Killed, it cannot say so itself.
        end_after(lambda: connection.wait([parent.sentinel]))
    _here = Here(config)


def _ready() -> None:
    """Do nothing: a process that comes to this was started as it should be."""


def _compute(dataset: str, seed: int, steps: Sequence[tuple[str, str]]) -> Outcome:
    assert _here is not None
    return _here.compute(dataset, seed, steps)

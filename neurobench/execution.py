"""Finding or computing the steps of a grid: one after the other in this process, or several at once in others.

What is computed does not depend on how: a step uses the same number of threads either way, reads what it needs from
the store and writes what it gives there. Steps wait for the steps whose keys their identities name; those of one
cohort and fold come one after the other, because a process keeps one fold's scaled signal at a time.

Other processes load plugins anew and build the grid from the same configuration; what passes between processes is a
step's key and how it ended.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import heapq
import math
import multiprocessing
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.queues import SimpleQueue

import joblib
import threadpoolctl
import torch

from neurobench.config import Grid, Profile, RunConfig, expand, needs_of
from neurobench.errors import NeurobenchError, StoreError
from neurobench.opening import open_stored, resolve_device
from neurobench.plugins import Registry, load_registry
from neurobench.progress import Advance, Done, Progress, Silent
from neurobench.resources import Needs, dealt, most, of_this_machine, visible_gpus
from neurobench.stages import CohortRun
from neurobench.steps import Row, Step
from neurobench.store import Entry, Store, keys_in

__all__ = [
    "Executor",
    "Failures",
    "Here",
    "Outcome",
    "Processes",
    "Todo",
    "Workers",
    "compute",
    "describe",
    "few_threads",
    "in_turn",
    "most_jobs",
    "on_workers",
    "suitable_jobs",
]

Failures = Mapping[Row, str]
"""Kind and message of the error that stopped each row of which a step failed."""

SMALL = 128
"""Width below which a step runs on one thread: starting more takes longer than they save."""

WORTH_S = 30.0
"""Estimated seconds of a grid from which on starting other processes pays."""

BYTES_A_JOB = 1 << 30
"""Memory that a process of a small network takes, with its libraries."""


# ---------------------------------------------------------------- one step


class Executor:
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
                # Who waited for the lock may find what another process on this grid has computed.
                entry = self.store.get(step.stage, step.identity)
                if entry is None:
                    entry = self._compute(step)
                    self.computed.add(key)
        if key not in self.computed:
            self.stored.add(key)
        return entry

    def _compute(self, step: Step) -> Entry:
        with self.progress.stage(step.label) as advance:
            return compute(step, self.store, advance)


def compute(step: Step, store: Store, advance: Advance) -> Entry:
    """Compute a step into a store, whatever entry is there, and return its entry; a step that was stopped may go on."""
    checkpoint = store.checkpoint(step.stage, step.identity, step.label)
    with store.write(step.stage, step.identity, step.label, step.work.to_dict(), checkpoint) as folder:
        step.compute(folder, advance, checkpoint)
    entry = store.get(step.stage, step.identity)
    assert entry is not None
    return entry


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
        with threadpoolctl.threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


def suitable_jobs(grid: Grid, seconds: float) -> int:
    """Return how many processes suit a grid on this machine.

    Parameters
    ----------
    grid
        What is to be run.
    seconds
        What that is estimated to take in one process.
    """
    if seconds < WORTH_S:
        return 1
    at_once = len(grid.combinations) * grid.profile.n_folds
    if resolve_device(grid.config.device, elsewhere=grid.config.elsewhere).type == "cuda":
        return max(1, min(len(visible_gpus()), at_once))
    if grid.profile.width >= SMALL:
        return 1
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 1 << 32
    return int(max(1, min(joblib.cpu_count(), free // BYTES_A_JOB, at_once)))


def most_jobs(grid: Grid, registry: Registry) -> float:
    """Return how many processes of this machine have what the components of a grid need; infinity where that is a core.

    Every process has one GPU: who needs several has them all, in one process.
    """
    components = (*grid.backbones, *grid.masks, *grid.baselines)
    needs, here = most(needs_of(c, grid.config, registry) for c in components), of_this_machine()
    if needs.get("GPU", 0) > 1:
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
        Every step, with a row that needs it.
    """

    run: CohortRun
    steps: Sequence[tuple[Row, Step]]


def in_turn(
    todo: Iterable[Todo], executor: Executor, seconds: Callable[[Step], float], done: Done
) -> Iterator[tuple[Todo, Failures]]:
    """Fetch every step in this process; a row whose step fails is left there, and the others go on.

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
        failures: dict[Row, str] = {}
        for row, step in one.steps:
            if row not in failures:
                try:
                    executor.fetch(step)
                except StoreError:
                    raise
                except Exception as error:
                    failures[row] = describe(error)
            done(seconds(step))
        yield one, failures


def describe(error: BaseException) -> str:
    """Return kind and message of an error, as a record of what failed has it."""
    return f"{type(error).__name__}: {error}"


@dataclass(frozen=True)
class Outcome:
    """How a step ended: the keys of what was computed, and the error if there was one.

    Errors travel as text, since a plugin's own class may not survive the way; but for the store's, which end the run.
    """

    computed: frozenset[str]
    error: str = ""
    store_error: StoreError | None = None


class Workers(ABC):
    """Other processes, here or elsewhere, that compute steps and write them into the store."""

    @property
    @abstractmethod
    def n(self) -> int:
        """How many steps can be under way at once, at this moment."""

    @abstractmethod
    def submit(self, dataset: str, seed: int, stage: str, key: str, needs: Needs) -> Future[Outcome]:
        """Have a step of a (dataset, seed) computed, found by its stage and key, where there is what it needs."""

    def outcome(self, future: Future[Outcome]) -> Outcome:
        """Return how a step ended.

        Raises
        ------
        BrokenProcessPool
            If a process died and nobody can tell whose it was.
        """
        return future.result()

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
    running: dict[Future[Outcome], _Node] = {}
    workers = start()
    finished = False
    try:
        while True:
            node = None
            try:
                while (node := schedule.next(running.values(), workers.n)) is not None:
                    number, row = node.waiting[0]
                    run = todo[number].run
                    needs = run.needs(row, node.step.stage)
                    running[workers.submit(run.dataset.label, run.seed, node.step.stage, node.key, needs)] = node
                executor.progress.at_work([node.step.label for node in running.values()])
                for number in schedule.through():
                    yield todo[number], schedule.failures[number]
                if not running:
                    break
                ended, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
                for future in ended:
                    outcome = workers.outcome(future)
                    if outcome.store_error is not None:
                        raise outcome.store_error
                    executor.computed |= outcome.computed
                    ended_node = running.pop(future)
                    if not outcome.error and ended_node.key not in executor.computed:
                        executor.stored.add(ended_node.key)
                    schedule.finish(ended_node, outcome.error)
            except BrokenProcessPool as broken:
                # It cannot be told whose process it was: every step that was under way is tried again.
                for one in running.values():
                    schedule.again(one)
                if node is not None:
                    schedule.put_back(node)
                running.clear()
                workers.renew(broken)
        finished = True
    finally:
        # After Ctrl-C or a full disk nobody waits for what is under way; what is half-written is swept at the next
        # start.
        executor.progress.at_work([])
        workers.close(at_once=not finished)


@dataclass(eq=False)
class _Node:
    """A step that is to be computed, the rows that wait for it by number of their work, and how many steps it needs."""

    key: str
    order: tuple[int, bool, int]
    step: Step
    waiting: list[tuple[int, Row]]
    n_needed: int = 0
    broke: int = 0


class _Schedule:
    """Which step is next: the first of those that have all they need.

    Parameters
    ----------
    todo, executor, seconds, done
        As for :func:`on_workers`; what is stored is done at once.
    """

    def __init__(self, todo: Sequence[Todo], executor: Executor, seconds: Callable[[Step], float], done: Done) -> None:
        self.failures: list[dict[Row, str]] = [{} for _ in todo]
        self._left = [0] * len(todo)
        self._told: set[int] = set()
        self._seconds, self._done = seconds, done
        self._suspects: list[_Node] = []
        nodes: dict[str, _Node] = {}
        for number, one in enumerate(todo):
            for row, step in one.steps:
                key = executor.store.key(step.identity)
                if key in nodes:
                    nodes[key].waiting.append((number, row))
                elif executor.store.get(step.stage, step.identity) is None:
                    # Of one cohort what takes longest first, or the last pretraining leaves the others idle; the rest
                    # fold after fold.
                    order = number, step.stage != "pretraining", len(nodes)
                    nodes[key] = _Node(key, order, step, [(number, row)])
                    continue
                else:
                    executor.stored.add(key)
                done(seconds(step))
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

    @property
    def is_empty(self) -> bool:
        """Whether everything was stored before anything began."""
        return not any(self._left)

    def next(self, running: Collection[_Node], jobs: int) -> _Node | None:
        """Return a step to start now, or None; steps that were under way when a process died run alone."""
        if self._suspects or any(node.broke for node in running):
            return None if running else self._suspects.pop()
        while self._ready and len(running) < jobs:
            _, node = heapq.heappop(self._ready)
            if any(row not in self.failures[number] for number, row in node.waiting):
                return node
            self.finish(node, "")
        return None

    def finish(self, node: _Node, error: str) -> None:
        """Count a step as done; with an error, its rows are left there, and steps that need it fail by themselves."""
        for number, row in node.waiting:
            self._left[number] -= 1
            if error:
                self.failures[number].setdefault(row, error)
        for other in self._needed_by.pop(node.key, ()):
            other.n_needed -= 1
            if other.n_needed == 0:
                heapq.heappush(self._ready, (other.order, other))
        self._done(self._seconds(node.step))

    def through(self) -> list[int]:
        """Return the numbers of those of which no step is left, once each."""
        found = [n for n, left in enumerate(self._left) if left == 0 and n not in self._told]
        self._told.update(found)
        return found

    def put_back(self, node: _Node) -> None:
        """Have a step that could not be started be the next one again."""
        if node.broke:
            self._suspects.append(node)
        else:
            heapq.heappush(self._ready, (node.order, node))

    def again(self, node: _Node) -> None:
        """Have a step tried once more after the process that computed it, or one beside it, has died."""
        node.broke += 1
        if node.broke == 1:
            self._suspects.append(node)
            return
        error = NeurobenchError(
            f"the process that computed {node.step.label!r} ended twice without an error.",
            next_step="The system may have killed it for its memory: use fewer --jobs, or a smaller --profile.",
        )
        self.finish(node, describe(error))


# ---------------------------------------------------------------- in another process


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
        self.steps: dict[tuple[str, str], Step] = {}

    def compute(self, dataset: str, seed: int, stage: str, key: str) -> Outcome:
        """Find or compute a step, and whatever it needs, and say how that ended."""
        before = set(self.executor.computed)
        error, store_error = "", None
        try:
            with few_threads(self.grid.profile, self.device):
                self.executor.fetch(self._step(dataset, seed, stage, key))
        except StoreError as found:
            store_error = found
        except Exception as found:
            error = describe(found)
        return Outcome(frozenset(self.executor.computed - before), error, store_error)

    def _step(self, dataset: str, seed: int, stage: str, key: str) -> Step:
        """Return one of the steps of a (dataset, seed)."""
        if self.at != (dataset, seed):
            # One cohort's signal in memory at a time.
            self.at, self.steps = None, {}
            spec = next(d for d in self.grid.datasets if d.label == dataset)
            run = open_stored(spec, seed, self.grid, self.registry, self.store, self.device, self.executor.fetch)
            if run is not None:
                self.steps = {(s.stage, self.store.key(s.identity)): s for _, s in run.steps()}
                self.at = dataset, seed
        if (stage, key) not in self.steps:
            raise NeurobenchError(
                f"the files of {dataset}, or a plugin, changed while the grid was running.",
                next_step="Run the same command again: what is finished is kept.",
            )
        return self.steps[stage, key]


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
        self._before = set(multiprocessing.active_children())
        self._open()

    def _open(self) -> None:
        # A copy of this process would inherit locks of its threads; a server that has only imported what is needed is
        # started once, and copied.
        able = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        context = multiprocessing.get_context(able)
        if able == "forkserver":
            context.set_forkserver_preload([__name__])
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

    def submit(self, dataset: str, seed: int, stage: str, key: str, needs: Needs) -> Future[Outcome]:
        """Have a step of a (dataset, seed) computed; there are no more processes than have what their steps need."""
        return self._pool.submit(_compute, dataset, seed, stage, key)

    def renew(self, broken: BrokenProcessPool) -> None:
        """Replace processes of which one died.

        Raises
        ------
        NeurobenchError
            If none of them ever started.
        """
        if self._ready.exception() is not None:
            raise NeurobenchError(
                "the processes that were to compute steps could not be started.",
                next_step="Their error is above. Use --jobs 1; in a script of your own put the call under "
                '`if __name__ == "__main__":`.',
            ) from broken
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._open()

    def close(self, *, at_once: bool) -> None:
        """Let them go; at once: without waiting for what is under way."""
        if at_once:
            self._pool.shutdown(wait=False, cancel_futures=True)
            for process in set(multiprocessing.active_children()) - self._before:
                process.terminate()
        else:
            self._pool.shutdown()


def _start(config: RunConfig, gpus: SimpleQueue[str]) -> None:
    """Make this process ready to compute steps."""
    global _here
    # Before anything asks CUDA: what it sees first is what it keeps.
    if gpu := gpus.get():
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    threading.Thread(target=_die_with_the_parent, daemon=True).start()
    _here = Here(config)


def _ready() -> None:
    """Do nothing: a process that comes to this was started as it should be."""


def _die_with_the_parent() -> None:
    """End this process when the one that started it is gone: killed, it cannot say so itself."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _compute(dataset: str, seed: int, stage: str, key: str) -> Outcome:
    assert _here is not None
    return _here.compute(dataset, seed, stage, key)

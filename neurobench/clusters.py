"""The steps of a grid on a Dask cluster: one that runs already, or one that a batch system is asked for.

Workers see the same output folder as this process and compute into its store, as processes on one machine do; between
machines go a step's key and how it ended. What a run that was stopped, or has died, had under way ends soon after it:
workers look at what the run says of itself. A worker that dies is replaced by whatever the cluster starts next; there a
pretraining goes on from its checkpoint, and any other step is begun anew. Workers of a batch system leave by themselves
before their walltime is over. Where nobody is there to compute the run waits, and says so.

Dask's workers unpickle what their scheduler sends them. Let nobody into that network who is not to run code on it; its
own TLS settings are honoured.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import inspect
import os
import re
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import neurobench
from neurobench import runs
from neurobench.errors import ConfigError, NeurobenchError, StoreError, closest
from neurobench.execution import Here, Outcome, Workers, describe
from neurobench.identity import digest, file_digest
from neurobench.interrupts import Abandoned
from neurobench.opening import resolve_device
from neurobench.options import RunConfig
from neurobench.parsing import parse_yaml
from neurobench.progress import Advance, Silent
from neurobench.resources import Needs, described

__all__ = ["BATCH_SYSTEMS", "DaskWorkers", "Jobs", "Waiting", "check", "cluster_of", "connect", "settings_of"]

BATCH_SYSTEMS = {
    "slurm": ("SLURMCluster", "Slurm"),
    "pbs": ("PBSCluster", "PBS"),
    "sge": ("SGECluster", "SGE"),
    "lsf": ("LSFCluster", "LSF"),
}
"""Batch systems, what dask-jobqueue calls them, and what people do."""

UNPROFILED = "export DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED=${DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED:-False}"
"""Line of a job's script, by which a worker does not look at what it is at a hundred times a second.

That took an eighth of its CPU time. Whoever wants the dashboard's profile sets the variable.
"""

QUEUES = {"slurm": "squeue --me", "pbs": "qstat -u $USER", "sge": "qstat", "lsf": "bjobs"}
"""What shows a user's jobs."""

LOOK_S = 1.0
"""Seconds between two looks at who is there to compute."""

PATIENCE_S = 10.0
"""Seconds that steps wait for a worker before the run says so."""

GONE_S = 20.0
"""Seconds after the last of a job's workers has left from which on the job is over, and another is asked for.

Later than Dask's own cluster notices jobs of one process: both at once would ask twice.
"""

AGAIN_S = 60.0
"""Seconds after which a job that was refused is asked for again."""

GIVE_UP_S = 600.0
"""Seconds without a job, each time refused another one, after which a run ends."""

ANSWER_S = 10.0
"""Seconds in which somebody has to listen at the address of a scheduler: it may be starting at the same time."""


def check(config: RunConfig) -> None:
    """Refuse what cannot compute, before recordings are prepared for it; nothing is asked of a batch system.

    Raises
    ------
    ConfigError
        If nobody listens at the address, the batch system is not there, or its file asks for what cannot be.
    """
    if config.scheduler:
        _listens(config.scheduler)
    elif config.cluster:
        asked, _, _ = _asked_for(config)
        command = asked.job_cls.submit_command.split()[0]
        if shutil.which(command) is None:
            raise ConfigError(
                f"--cluster {config.cluster}: there is no `{command}` on this machine.",
                next_step="Start the run where jobs are submitted from.",
            )


def _listens(address: str) -> None:
    comm = _imported("distributed.comm")
    scheme = comm.parse_address(address)[0]
    if scheme == "inproc":
        # One in this process has no port.
        return
    try:
        host, port = comm.get_address_host_port(address)
    except ValueError as error:
        raise _nobody(address, f"it is no address: {error}") from None
    if scheme not in ("tcp", "tls"):
        return
    give_up = time.monotonic() + ANSWER_S
    while True:
        try:
            socket.create_connection((host, port), timeout=ANSWER_S).close()
            return
        except OSError as error:
            if isinstance(error, socket.gaierror) or time.monotonic() >= give_up:
                raise _nobody(address, str(error.strerror or error)) from None
        time.sleep(0.5)


def _nobody(address: str, why: str) -> ConfigError:
    return ConfigError(
        f"--scheduler {address}: no Dask scheduler answers there ({why}).",
        allowed="the address of a running one, such as tcp://10.0.0.1:8786",
        next_step="Start one with `dask scheduler`, and workers with `dask worker ADDRESS --nthreads 1`; or leave "
        "--scheduler out, and this machine computes.",
    )


def connect(config: RunConfig, note: Callable[[str], None] = lambda message: None) -> DaskWorkers:
    """Return the workers of ``config.scheduler``, or of the batch system ``config.cluster``.

    Parameters
    ----------
    config
        What is run.
    note
        Told where the run waits for workers, and when it goes on.

    Raises
    ------
    ConfigError
        If nobody answers at the address, or the batch system cannot be used.
    """
    distributed = _imported("distributed")
    if config.scheduler:
        try:
            client = distributed.Client(config.scheduler, timeout="20s", set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            raise _nobody(config.scheduler, type(error).__name__) from None
        return DaskWorkers(config, client, note)
    jobs = Jobs(BATCH_SYSTEMS[config.cluster][1])
    cluster, at_most = cluster_of(config, jobs)
    return DaskWorkers(config, distributed.Client(cluster, set_as_default=False), note, cluster, at_most, jobs)


def _imported(module: str) -> Any:
    before = signal.getsignal(signal.SIGINT)
    found = importlib.import_module(module)
    if signal.getsignal(signal.SIGINT) is not before and threading.current_thread() is threading.main_thread():
        # dask-jobqueue has Ctrl-C leave Python without a word: a run could not say that it was stopped.
        signal.signal(signal.SIGINT, before)
    return found


def cluster_of(config: RunConfig, jobs: Jobs) -> tuple[Any, int]:
    """Return a cluster of dask-jobqueue and how many workers it has at most.

    Ask a batch system for workers by dask-jobqueue, as the file ``config.cluster_config`` says.

    The YAML file holds what the class of dask-jobqueue takes (``queue``, ``cores``, ``memory``, ``walltime``, …), and
    ``jobs``: how many jobs at most, adapted to what there is to do. Each job is one worker with one process a core,
    unless ``processes`` says otherwise, and each process computes one step after the other. Before the walltime is over
    workers leave by themselves: what is under way goes on elsewhere, and does not count as died. ``jobs`` is told which
    of them the batch system took.

    Raises
    ------
    ConfigError
        If the file cannot be read, or holds what the class does not take.
    """
    asked, settings, n_jobs = _asked_for(config)
    extra = _lines(config, settings, "worker_extra_args")
    if not any("--lifetime" in e for e in extra) and (walltime := _walltime_s(config, settings)):
        extra += _lifetime(walltime)
    settings["worker_extra_args"] = extra
    settings["job_script_prologue"] = [*_lines(config, settings, "job_script_prologue"), UNPROFILED]
    try:
        cluster = asked(**settings, job_cls=jobs.told_by(asked.job_cls))
    except (TypeError, ValueError) as error:
        # dask-jobqueue adds a list of everything that it was given.
        why = " ".join(str(error).partition(" Very likely this unexpected parameter")[0].split())
        raise ConfigError(
            f"{config.cluster_config}: dask-jobqueue does not take it: {why.rstrip('.')}.",
            next_step=f"See the parameters of dask_jobqueue.{asked.__name__}.",
        ) from None
    # What one worker has left to do does not end the others of its job.
    key = {"worker_key": _job_of} if settings["processes"] > 1 else {}
    cluster.adapt(minimum_jobs=1, maximum_jobs=n_jobs, **key)
    return cluster, n_jobs * settings["processes"]


FORMERLY = {"worker_extra_args": "extra", "job_script_prologue": "env_extra"}
"""What dask-jobqueue called settings before: it still takes those, but only where the new one is not given."""


def _lines(config: RunConfig, settings: dict[str, Any], name: str) -> list[str]:
    """Take a list out of the file's settings, or that of dask-jobqueue's own configuration where the file has none."""
    import dask

    for one in (name, FORMERLY[name]):
        own = dask.config.get(f"jobqueue.{config.cluster}.{one.replace('_', '-')}", None)
        if found := settings.pop(one, own):
            return found.splitlines() if isinstance(found, str) else [str(line) for line in found]
    return []


def _asked_for(config: RunConfig) -> tuple[Any, dict[str, Any], int]:
    """Return the class of a cluster, what it is to be given, and how many jobs there are at most."""
    path = config.cluster_config
    assert path is not None, "expand refuses --cluster without its file"
    settings = settings_of(path)
    n_jobs = settings.pop("jobs", None)
    counts = {"jobs": n_jobs} | {k: settings[k] for k in ("cores", "processes") if k in settings}
    for name, count in counts.items():
        if not isinstance(count, int) or count < 1:
            what = "how many jobs at most" if name == "jobs" else f"{name} of a job"
            has = "is missing" if count is None else f"is {count!r}"
            raise ConfigError(f"{path}: {name} {has}.", allowed=f"a whole number from 1: {what}")
    asked = getattr(_imported("dask_jobqueue"), BATCH_SYSTEMS[config.cluster][0])
    known = _parameters(asked) | _parameters(asked.job_cls)
    for name in sorted(settings.keys() - known):
        usual = ("queue", "account", "cores", "memory", "walltime", "processes", "jobs", "job_extra_directives")
        raise ConfigError(
            f"{path}: {name!r} is no setting of {BATCH_SYSTEMS[config.cluster][1]}'s jobs.",
            allowed=f"{', '.join(usual)}, and what else dask_jobqueue.{asked.__name__} takes",
            likely=closest(name, known | {"jobs"}),
        )
    settings.setdefault("processes", settings.get("cores", 1))
    _walltime_s(config, settings)
    assert n_jobs is not None
    return asked, settings, n_jobs


def _parameters(asked: Any) -> set[str]:
    """Return what a class and those that it is made from take, but for what is not the user's to give."""
    made = [vars(base)["__init__"] for base in inspect.getmro(asked) if "__init__" in vars(base)]
    found = {name for one in made for name in inspect.signature(one).parameters}
    return found - {"self", "args", "kwargs", "job_cls", "scheduler", "asynchronous", "loop"}


class Jobs:
    """Which jobs a batch system has, which of them are over, and why it did not take another.

    Dask's own cluster notices neither that a job of several processes is over, nor that one was refused.

    Parameters
    ----------
    system
        What people call it.

    Attributes
    ----------
    n_taken
        Jobs that it took.
    refusal
        What it said when it did not take one, since it last took one; empty: nothing.
    """

    def __init__(self, system: str) -> None:
        self.system = system
        self.n_taken = 0
        self.refusal = ""
        # When a worker of a job was last there (None: it may be in the queue), and when one was refused.
        self._seen: dict[Any, float | None] = {}
        self._refused: dict[Any, float] = {}
        self._none_since: float | None = None

    @property
    def none_left(self) -> bool:
        """Whether it did not take another one, and those that it took are over."""
        return bool(self.refusal) and not self._seen

    def are_hopeless(self, now: float) -> bool:
        """Whether there is nothing to wait for: it took not a single one, or no other for long since the last ended."""
        return self.none_left and (
            self.n_taken == 0 or (self._none_since is not None and now - self._none_since >= GIVE_UP_S)
        )

    def look(self, workers: Collection[str], now: float) -> list[Any]:
        """Return the jobs to be asked for anew, given the names of the workers that are there and a clock's seconds.

        They are those whose workers have left, and those that were refused a while ago; each is returned once.
        """
        over = []
        there = {name for worker in workers for name in (worker, _job_of(worker))}
        for job, seen in list(self._seen.items()):
            if job.name in there:
                self._seen[job] = now
            elif seen is not None and now - seen >= GONE_S:
                over.append(job)
                self._seen.pop(job, None)
        for job, when in list(self._refused.items()):
            if now - when >= AGAIN_S:
                over.append(job)
                self._refused.pop(job, None)
        self._none_since = (self._none_since or now) if self.none_left else None
        return over

    def told_by(self, job: Any) -> Any:
        """Return a class of dask-jobqueue's jobs that tells this one how their submission ended.

        One that is refused counts as started, or it would be a traceback of the event loop and nothing else.
        """
        process = _imported("distributed.deploy.spec").ProcessInterface

        class Told(job):  # type: ignore[misc]
            async def start(told) -> None:
                try:
                    await super().start()
                except (RuntimeError, OSError, ValueError) as error:
                    self.refusal = _said(error)
                    self._refused[told] = time.monotonic()
                    await process.start(told)
                else:
                    self.refusal = ""
                    self.n_taken += 1
                    self._seen[told] = None

            async def close(told) -> None:
                self._seen.pop(told, None)
                self._refused.pop(told, None)
                await super().close()

        Told.__name__ = job.__name__
        return Told


def _job_of(worker: Any) -> str:
    """Return the name of the job of a worker that is one of several in it: ``job-0`` is of ``job``."""
    return str(getattr(worker, "name", worker)).rpartition("-")[0]


async def _ask_again(cluster: Any, jobs: Sequence[Any]) -> None:
    """Have a cluster forget jobs, so that it asks for others when it next looks whether it has enough."""
    for job in jobs:
        if cluster.workers.get(job.name) is job:
            del cluster.workers[job.name]
            await job.close()


def _said(error: Exception) -> str:
    """Return what a command that was refused said; dask-jobqueue tells all about it."""
    told = str(error).partition("stderr:\n")[2].strip() or str(error)
    return " ".join(told.split()) or type(error).__name__


_WALLTIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


def _walltime_s(config: RunConfig, settings: Mapping[str, Any]) -> int:
    """Return the walltime of a job in seconds; 0 where it has none that can be read.

    Raises
    ------
    ConfigError
        If it is a number: what YAML makes of hours and minutes without quotes.
    """
    import dask

    walltime = settings.get("walltime", dask.config.get(f"jobqueue.{config.cluster}.walltime", None))
    if isinstance(walltime, int | float):
        raise ConfigError(
            f"{config.cluster_config}: walltime is {walltime}, which is what YAML reads from a time without quotes.",
            allowed='a text, such as walltime: "04:00:00"',
        )
    found = _WALLTIME.fullmatch(str(walltime or ""))
    if found is None:
        return 0
    days, *parts = (None if part is None else int(part) for part in found.groups())
    given = [part for part in parts if part is not None]
    if days is not None or len(given) == 3 or (len(given) == 2 and config.cluster == "lsf"):
        hours, minutes, seconds = [*given, 0, 0][:3]
    elif len(given) == 1 and config.cluster in ("pbs", "sge"):
        return given[0]
    else:
        hours, minutes, seconds = 0, *[*given, 0][:2]
    return (((days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def _lifetime(walltime_s: int) -> list[str]:
    """Return with what options a worker leaves before its job ends: up to ten minutes earlier, not all at once."""
    margin = min(600, walltime_s // 5)
    return ["--lifetime", f"{walltime_s - margin}s", "--lifetime-stagger", f"{margin // 4}s"]


def settings_of(path: Path) -> dict[str, Any]:
    """Read what a batch system is to be asked for.

    Raises
    ------
    ConfigError
        If it cannot be read, or is no mapping of names.
    """
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"the file {path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise ConfigError(f"the file {path} is no YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(content, Mapping) or not all(isinstance(k, str) for k in content):
        raise ConfigError(f"the file {path} holds no settings.", allowed="queue, cores, memory, walltime, jobs, …")
    return dict(content)


class Waiting:
    """Notices that steps wait for workers that are not there, and finds the words; each is said once.

    Parameters
    ----------
    more_workers, with_resources
        What to do or to look at where there is no worker, and where none offers what a step needs.
    """

    def __init__(self, more_workers: str, with_resources: str) -> None:
        self.more_workers, self.with_resources = more_workers, with_resources
        self._lacking = self._said = ""
        self._since = 0.0
        self._were_there = False

    def look(self, offered: Collection[Needs], asked: Collection[Needs], now: float) -> str:
        """Return what is to be said now, or an empty string.

        Parameters
        ----------
        offered
            What each worker that is there offers.
        asked
            What each step needs that is under way or waits.
        now
            Seconds on a clock.
        """
        self._were_there |= bool(offered)
        lacking = self._what_lacks(offered, asked)
        if lacking != self._lacking:
            self._lacking, self._since = lacking, now
        if self._said and not lacking:
            self._said = ""
            return "workers are there, and the run goes on." if asked else ""
        if lacking and lacking != self._said and now - self._since >= PATIENCE_S:
            self._said = lacking
            return lacking
        return ""

    def _what_lacks(self, offered: Collection[Needs], asked: Collection[Needs]) -> str:
        if asked and not offered:
            if not self._were_there:
                return f"no worker is there, and the run waits for one. {self.more_workers}"
            left = (
                "no worker is there any more, and the run waits for one. Their logs say why they left; one with other"
            )
            return f"{left} packages than here may end at its first step. {self.more_workers}"
        for needs in asked:
            if not any(_fits(needs, one) for one in offered):
                what = described(needs)
                return (
                    f"no worker offers {what}, and steps that need it wait. {self.with_resources.replace('{}', what)}"
                )
        return ""


def _fits(needs: Needs, offered: Needs) -> bool:
    return all(offered.get(name, 0.0) >= amount for name, amount in needs.items())


class DaskWorkers(Workers):
    """Workers of a Dask cluster; as many steps at once as it has worker processes.

    Parameters
    ----------
    config
        What is run.
    client
        Of ``distributed``.
    note
        Told where the run waits for workers, and when it goes on.
    cluster
        To be closed in the end; None: it belongs to somebody else.
    at_most
        Workers that the cluster starts if there is enough to do.
    jobs
        What became of the jobs of the cluster.
    """

    def __init__(
        self,
        config: RunConfig,
        client: Any,
        note: Callable[[str], None] = lambda message: None,
        cluster: Any = None,
        at_most: int = 0,
        jobs: Jobs | None = None,
    ) -> None:
        self.client, self.cluster, self.at_most = client, cluster, at_most
        # Of somebody else's cluster nobody tells: none is refused.
        self.jobs = jobs or Jobs("")
        # Relative to where this process is, which is not where a worker is.
        device: Any = resolve_device(config.device, elsewhere=True).type
        self.config = replace(
            config,
            out=config.out.absolute(),
            data_dirs={k: p.absolute() for k, p in config.data_dirs.items()},
            plugin_files=tuple(p.absolute() for p in config.plugin_files),
            # What this machine takes is part of identities, so workers must take the same.
            device=device,
            jobs=1,
        )
        # Not pure: a step that failed is not to be remembered by the scheduler as an answer.
        self._executor = client.get_executor(pure=False, retries=0)
        self._asked: dict[Future[Outcome], Needs] = {}
        self._offered = list(self._look().values())
        self._gave_up = False
        waiting = Waiting(*_what_to_do(config))
        self._closing = threading.Event()
        self._watch = threading.Thread(target=self._keep_watch, args=(waiting, note), daemon=True)
        self._watch.start()

    def _look(self) -> dict[str, Needs]:
        """Return what each worker that is there offers, by its name."""
        there = self.client.scheduler_info(n_workers=-1)["workers"]
        return {str(w.get("name", address)): w.get("resources") or {} for address, w in there.items()}

    def _keep_watch(self, waiting: Waiting, note: Callable[[str], None]) -> None:
        told = ""
        while not self._closing.wait(LOOK_S):
            if self.jobs.are_hopeless(time.monotonic()):
                self._gave_up = True
                for future in list(self._asked):
                    future.cancel()
                continue
            if (refused := self._refused()) != told and (told := refused):
                note(told)
            # A scheduler that does not answer is the client's business, which tries again or gives steps up.
            with contextlib.suppress(OSError, TimeoutError, RuntimeError):
                there = self._look()
                self._offered = list(there.values())
                if over := self.jobs.look(there, time.monotonic()):
                    self.cluster.loop.add_callback(_ask_again, self.cluster, over)
                if not self.jobs.none_left and (
                    said := waiting.look(self._offered, list(self._asked.values()), time.monotonic())
                ):
                    note(said)

    def _refused(self) -> str:
        """Return what to say of a job that was not taken; empty: nothing."""
        if not self.jobs.refusal:
            return ""
        goes_on = "and the run goes on with those it took"
        if self.jobs.none_left:
            goes_on = f"and none is left: the run asks again every {AGAIN_S:g} s, for {GIVE_UP_S / 60:g} minutes"
        return f"{self.jobs.system} did not take another job, {goes_on}. It says: {self.jobs.refusal}"

    @property
    def n(self) -> int:
        """How many steps to have under way: one a worker, with those that the cluster would still start.

        One at least, for whom a step can wait; and steps that wait for what few workers offer keep no other from work.
        """
        left: dict[str, float] = {}
        for one in self._offered:
            for name, amount in one.items():
                left[name] = left.get(name, 0.0) + amount
        n_waiting = 0
        for needs in list(self._asked.values()):
            if _fits(needs, left):
                left |= {name: left[name] - amount for name, amount in needs.items()}
            else:
                n_waiting += 1
        return max(1, len(self._offered), self.at_most) + n_waiting

    @property
    def dashboard(self) -> str:
        """Where the cluster can be watched; empty: nowhere."""
        return str(self.client.dashboard_link or "")

    def submit(self, dataset: str, seed: int, steps: Sequence[tuple[str, str]], needs: Needs) -> Future[Outcome]:
        """Have steps of a (dataset, seed) computed by a worker that offers what they need."""
        found: Future[Outcome] = self._executor.submit(
            _there, self.config, core_digest(), dataset, seed, steps, resources=dict(needs) or None
        )
        self._asked[found] = needs
        found.add_done_callback(lambda done: self._asked.pop(done, None))
        return found

    def outcome(self, future: Future[Outcome]) -> Outcome:
        """Return how a step ended; workers that died at it are said to have.

        Raises
        ------
        NeurobenchError
            If the scheduler is gone, and with it what was under way, if no job was taken that would compute it, or if a
            worker has not what it takes to begin.
        """
        from distributed import KilledWorker

        try:
            return future.result()
        except KilledWorker:
            died = NeurobenchError(
                "one worker after the other ended while it computed this step.",
                next_step="They may have run out of memory or of walltime: ask for more, or use a smaller --profile.",
            )
            return Outcome(frozenset(), describe(died))
        except CancelledError:
            if self._gave_up:
                what = "does not take the job"
                if self.jobs.n_taken:
                    what = f"took no other job for {GIVE_UP_S / 60:g} minutes, and those that it took have ended"
                raise NeurobenchError(
                    f"{self.jobs.system} {what}. It says: {self.jobs.refusal}",
                    next_step="Change what --cluster-config asks for, or wait until jobs are taken again; the same "
                    "command goes on, and what is finished is kept.",
                ) from None
            raise NeurobenchError(
                "the connection to the Dask scheduler was lost, and with it the steps that were under way.",
                next_step="Nothing finished is lost: run the same command again, with a scheduler that runs.",
            ) from None
        except Exception as error:
            # Errors of steps are no exceptions here: it was not even begun.
            raise NeurobenchError(
                f"a worker could not begin what it was asked for: {describe(error)}",
                next_step="Start workers in the same environment, with the same version of neurobench and its plugins.",
            ) from error

    def close(self, *, at_once: bool) -> None:
        """Let the workers go; those of a batch system end with their jobs."""
        self._closing.set()
        self._watch.join(10 * LOOK_S)
        self._executor.shutdown(wait=not at_once)
        self.client.close()
        if self.cluster is not None:
            self.cluster.close()


def _what_to_do(config: RunConfig) -> tuple[str, str]:
    """Return what to do or to look at where no worker is there, and where none offers ``{}``."""
    if config.cluster:
        return (
            f"A queue may take its time; `{QUEUES[config.cluster]}` shows the jobs, and log_directory in "
            f"{config.cluster_config} where their messages go.",
            f'Add worker_extra_args: ["--resources", "{{}}"] to {config.cluster_config}.',
        )
    start = f"dask worker {config.scheduler} --nthreads 1"
    return f"Start one with `{start}`.", f'Start one with `{start} --resources "{{}}"`.'


# ---------------------------------------------------------------- on a worker


TRIMMED = "MALLOC_TRIM_THRESHOLD_"
"""Variable by which Dask has its workers give back freed memory from 64 KiB on."""

_lock = threading.Lock()
_here: tuple[RunConfig, Here] | None = None


def _there(config: RunConfig, code: str, dataset: str, seed: int, steps: Sequence[tuple[str, str]]) -> Outcome:
    """Compute steps on a worker, whose folders and code have to be those of the process that asks."""
    global _here
    # One step at a time, also where a worker was started with several threads: a process holds one fold's signal.
    with _lock:
        try:
            if _here is None or _here[0] != config:
                _check(config, code)
                allocate_as_elsewhere()
                _here = config, Here(config)
                _here[1].executor.progress = UntilOver(config.out, config.run)
        except NeurobenchError as error:
            who = f"the worker on {socket.gethostname()}"
            return Outcome(frozenset(), store_error=StoreError(f"{who} cannot take part: {error}"))
        try:
            return _here[1].compute(dataset, seed, steps)
        except Abandoned:
            # Read only where a run was taken for dead that goes on.
            return Outcome(frozenset(), abandoned=True)


class UntilOver(Silent):
    """Progress that is told nobody; it stops what is computed when the run that asked is over, or the worker leaves.

    Parameters
    ----------
    out, run
        Output folder and id of the run.
    """

    def __init__(self, out: Path, run: str) -> None:
        self.out, self.run = out, run
        self._looked = self._since = time.monotonic()
        self._heard = 0.0

    @contextlib.contextmanager
    def stage(self, label: str) -> Iterator[Advance]:
        """Begin a stage."""
        # Who asks for a step is there, though its file may be read as it was a moment ago.
        self._since = time.monotonic()
        yield self._advance

    def _advance(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._looked >= LOOK_S:
            self._looked = now
            if _is_leaving():
                raise Abandoned("the worker leaves, and another one goes on.")
            if (state := runs.read_state(self.out, self.run)) is not None:
                # Whether it is silent is judged by this machine's clock alone: two may be minutes apart.
                if state.heard != self._heard:
                    self._heard, self._since = state.heard, now
                if not state.is_under_way or now - self._since > runs.LOST_S:
                    raise Abandoned(f"run {self.run} is over, and nobody waits for this step.")


def allocate_as_elsewhere() -> bool:
    """Have this process keep freed memory for the next tensor, as every other one does; return whether it did not.

    The GNU C library raises its two thresholds as a program frees larger blocks, unless one of them is set. Dask sets
    one, and every tensor above 128 KiB is then asked of the system anew and cleared page by page: steps of small
    networks took up to 1.6 times as long. Here both are set to where they end elsewhere. What a user has set stays.
    """
    _imported("distributed")
    dask = _imported("dask")
    usual = dask.config.get("distributed.nanny.pre-spawn-environ", {}).get(TRIMMED)
    if usual is None or os.environ.get(TRIMMED) != str(usual):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # See mallopt(3): M_MMAP_THRESHOLD may be half of what M_TRIM_THRESHOLD is.
    trim, mmap = -1, -3
    return bool(mallopt(mmap, 32 << 20) and mallopt(trim, 64 << 20))


def _is_leaving() -> bool:
    """Return whether the worker that this thread computes for has begun to leave, as it does before its walltime."""
    try:
        worker = _imported("distributed").get_worker()
    except ValueError:
        return False
    return worker.status.name in ("closing_gracefully", "closing", "closed")


def _check(config: RunConfig, code: str) -> None:
    if not (config.out / "neurobench.json").is_file():
        raise NeurobenchError(
            f"it does not see the output folder {config.out}.", next_step="Use a folder that all machines share."
        )
    if core_digest() != code:
        raise NeurobenchError(
            f"its neurobench ({neurobench.__version__}) is not the one that asks.",
            next_step="Start workers in the same environment.",
        )


@functools.cache
def core_digest() -> str:
    """Return a hash of the source of neurobench."""
    return digest([file_digest(p) for p in sorted(Path(neurobench.__file__).parent.rglob("*.py"))])

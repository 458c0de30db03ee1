"""Batch systems that are asked for workers by dask-jobqueue: what for, and what became of the jobs."""

from __future__ import annotations

import contextlib
import inspect
import re
import shutil
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from neurobench.errors import ConfigError, ConfigErrors, closest
from neurobench.interrupts import imported
from neurobench.options import RunConfig
from neurobench.parsing import parse_yaml

__all__ = ["BATCH_SYSTEMS", "QUEUES", "Jobs", "check", "cluster_of", "settings_of"]

BATCH_SYSTEMS = {
    "slurm": ("SLURMCluster", "Slurm"),
    "pbs": ("PBSCluster", "PBS"),
    "sge": ("SGECluster", "SGE"),
    "lsf": ("LSFCluster", "LSF"),
}
"""Batch systems, what dask-jobqueue calls them, and what people do."""

CALM: Mapping[str, Any] = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.worker.memory.monitor-interval": "1s",
    "distributed.admin.system-monitor.interval": "5s",
}
"""Settings of Dask by which its processes do not look at themselves many times a second.

The profile took an eighth of a worker's CPU time. The others, whether a process is late, how much memory it has and how
busy it is, are most of what a scheduler with two workers that have nothing to do takes. Whoever wants them says so.
"""

PROLOGUE = tuple(
    f"export {variable}=${{{variable}:-{value}}}"
    for name, value in CALM.items()
    for variable in ["DASK_" + name.upper().replace("-", "_").replace(".", "__")]
)
"""Lines of a job's script by which its workers have these settings, unless they are set."""

QUEUES = {"slurm": "squeue --me", "pbs": "qstat -u $USER", "sge": "qstat", "lsf": "bjobs"}
"""What shows a user's jobs."""

GONE_S = 20.0
"""Seconds after the last of a job's workers has left from which on the job is over, and another is asked for.

Later than Dask's own cluster notices jobs of one process: both at once would ask twice.
"""

AGAIN_S = 60.0
"""Seconds after which a job that was refused is asked for again."""

GIVE_UP_S = 600.0
"""Seconds without a job, each time refused another one, after which a run ends."""

ASK_S = 30.0
"""Seconds between two questions to a batch system whether jobs without a worker are still in its queue or at work."""

MOST_DEAD = 3
"""Jobs that end one after the other before a worker of theirs came, after which no other is asked for."""


def check(config: RunConfig) -> None:
    """Refuse a batch system that is not there, or a file that asks it for what cannot be; nothing is asked of it.

    Raises
    ------
    ConfigError
        If one is the case.
    """
    asked, _, _ = _asked_for(config)
    command = asked.job_cls.submit_command.split()[0]
    if shutil.which(command) is None:
        raise ConfigError(
            f"--cluster {config.cluster}: there is no `{command}` on this machine.",
            next_step="Start the run where jobs are submitted from.",
        )


# ---------------------------------------------------------------- what is asked for


def cluster_of(config: RunConfig, jobs: Jobs) -> tuple[Any, int]:
    """Return a cluster of dask-jobqueue, as the file ``config.cluster_config`` says, and its most workers.

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
    settings["job_script_prologue"] = [*_lines(config, settings, "job_script_prologue"), *PROLOGUE]
    try:
        # The scheduler is in this process, beside what reads and writes records.
        with imported("dask").config.set(_calm()):
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


def _calm() -> dict[str, Any]:
    """Return those of the calm settings that nobody has set, in a file, a variable or this process."""
    dask_config = imported("dask").config
    own, usual = dask_config.collect(), dask_config.merge(*dask_config.defaults)
    return {
        name: value
        for name, value in CALM.items()
        if dask_config.get(name, None, config=own) is None
        and dask_config.get(name, None) == dask_config.get(name, None, config=usual)
    }


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
    problems: list[ConfigError] = []
    for name, count in counts.items():
        if not isinstance(count, int) or count < 1:
            what = "how many jobs at most" if name == "jobs" else f"{name} of a job"
            has = "is missing" if count is None else f"is {count!r}"
            problems.append(ConfigError(f"{path}: {name} {has}.", allowed=f"a whole number from 1: {what}"))
    asked = getattr(imported("dask_jobqueue"), BATCH_SYSTEMS[config.cluster][0])
    known = _parameters(asked) | _parameters(asked.job_cls)
    for name in sorted(settings.keys() - known):
        usual = ("queue", "account", "cores", "memory", "walltime", "processes", "jobs", "job_extra_directives")
        problems.append(
            ConfigError(
                f"{path}: {name!r} is no setting of {BATCH_SYSTEMS[config.cluster][1]}'s jobs.",
                allowed=f"{', '.join(usual)}, and what else dask_jobqueue.{asked.__name__} takes",
                likely=closest(name, known | {"jobs"}),
            )
        )
    settings.setdefault("processes", settings.get("cores", 1))
    try:
        _walltime_s(config, settings)
    except ConfigError as error:
        problems.append(error)
    if problems:
        raise problems[0] if len(problems) == 1 else ConfigErrors(problems)
    assert n_jobs is not None
    return asked, settings, n_jobs


def _parameters(asked: Any) -> set[str]:
    """Return what a class and those that it is made from take, but for what is not the user's to give."""
    made = [vars(base)["__init__"] for base in inspect.getmro(asked) if "__init__" in vars(base)]
    found = {name for one in made for name in inspect.signature(one).parameters}
    return found - {"self", "args", "kwargs", "job_cls", "scheduler", "asynchronous", "loop"}


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
        raise ConfigError(
            f"the file {path} cannot be read: {error.strerror}.",
            next_step="Name the YAML file that says what a job is to be asked for; docs/clusters.md shows one.",
        ) from None
    except ValueError as error:
        raise ConfigError(f"the file {path} is no YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(content, Mapping) or not all(isinstance(k, str) for k in content):
        raise ConfigError(f"the file {path} holds no settings.", allowed="queue, cores, memory, walltime, jobs, …")
    return dict(content)


# ---------------------------------------------------------------- what became of the jobs


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
    dead
        What is known of each job that ended before a worker of it came, since one last did: its number, and the last
        line that it wrote. Only Slurm is asked; elsewhere such a job looks like one that waits.
    """

    def __init__(self, system: str) -> None:
        self.system = system
        self.n_taken = 0
        self.refusal = ""
        self.dead: list[str] = []
        self._asked = -ASK_S
        # When a worker of a job was last there (None: it may be in the queue), and when one was refused.
        self._seen: dict[Any, float | None] = {}
        self._refused: dict[Any, float] = {}
        self._none_since: float | None = None

    @property
    def none_left(self) -> bool:
        """Whether it did not take another one, and those that it took are over."""
        return bool(self.refusal) and not self._seen

    def are_hopeless(self, now: float) -> bool:
        """Whether there is nothing to wait for.

        It took not a single one, or no other for long since the last ended, or each ended before a worker came.
        """
        refused = self.none_left and (
            self.n_taken == 0 or (self._none_since is not None and now - self._none_since >= GIVE_UP_S)
        )
        return refused or self.die_at_once

    @property
    def die_at_once(self) -> bool:
        """Whether several in a row ended before a worker of theirs came, and none is left."""
        return len(self.dead) >= MOST_DEAD and not self._seen

    def look(self, workers: Collection[str], now: float) -> list[Any]:
        """Return the jobs to be asked for anew, given the names of the workers that are there and a clock's seconds.

        They are those whose workers have left, those that ended before one came, and those that were refused a while
        ago; each is returned once.
        """
        there = {name for worker in workers for name in (worker, _job_of(worker))}
        over = self._ended_before(there, now)
        for job, seen in list(self._seen.items()):
            if job.name in there:
                self._seen[job] = now
                self.dead.clear()
            elif seen is not None and now - seen >= GONE_S:
                over.append(job)
                self._seen.pop(job, None)
        for job, when in list(self._refused.items()):
            if now - when >= AGAIN_S:
                over.append(job)
                self._refused.pop(job, None)
        self._none_since = (self._none_since or now) if self.none_left else None
        return over

    def _ended_before(self, there: Collection[str], now: float) -> list[Any]:
        """Return the jobs that ended before a worker of theirs came; none where too many have, one after the other."""
        waiting = [job for job, seen in list(self._seen.items()) if seen is None and job.name not in there]
        if not waiting or self.system != BATCH_SYSTEMS["slurm"][1] or now - self._asked < ASK_S:
            return []
        self._asked = now
        if (known := _in_queue()) is None:
            return []
        ended = [job for job in waiting if str(job.job_id) not in known]
        for job in ended:
            self._seen.pop(job, None)
            self.dead.append(f"job {job.job_id}{_last_words(job)}")
        return [] if self.die_at_once else ended

    def told_by(self, job: Any) -> Any:
        """Return a class of dask-jobqueue's jobs that tells this one how their submission ended.

        One that is refused counts as started, or it would be a traceback of the event loop and nothing else.
        """
        process = imported("distributed.deploy.spec").ProcessInterface

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


def _in_queue() -> set[str] | None:
    """Return the numbers of the user's jobs that Slurm has in its queue or at work; None: it does not say."""
    try:
        told = subprocess.run(
            ["squeue", "--me", "--noheader", "--format=%A"], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return set(told.stdout.split())


def _last_words(job: Any) -> str:
    """Return the last line that a job of Slurm wrote, and where; empty: nothing that can be read."""
    named = f"{job.log_directory}/{job.job_name or 'worker'}-{job.job_id}"
    files = [f"{named}.err", f"{named}.out"] if job.log_directory else [f"slurm-{job.job_id}.out"]
    for file in files:
        with contextlib.suppress(OSError):
            lines = Path(file).read_text(encoding="utf-8", errors="replace").splitlines()
            if said := next((" ".join(line.split()) for line in reversed(lines) if line.strip()), ""):
                return f" ({file}: {said[:300]})"
    return ""


def _job_of(worker: Any) -> str:
    """Return the name of the job of a worker that is one of several in it: ``job-0`` is of ``job``."""
    return str(getattr(worker, "name", worker)).rpartition("-")[0]


async def ask_again(cluster: Any, jobs: Sequence[Any]) -> None:
    """Have a cluster forget jobs, so that it asks for others when it next looks whether it has enough."""
    for job in jobs:
        if cluster.workers.get(job.name) is job:
            del cluster.workers[job.name]
            await job.close()


def _said(error: Exception) -> str:
    """Return what a command that was refused said; dask-jobqueue tells all about it."""
    told = str(error).partition("stderr:\n")[2].strip() or str(error)
    return " ".join(told.split()) or type(error).__name__

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
import socket
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from typing import Any

from neurobench import batch_systems, worker
from neurobench.batch_systems import Jobs
from neurobench.errors import ConfigError, NeurobenchError
from neurobench.execution import Outcome, Workers, describe
from neurobench.interrupts import imported
from neurobench.opening import resolve_device
from neurobench.options import RunConfig
from neurobench.resources import Needs, described

__all__ = ["DaskWorkers", "Waiting", "check", "connect"]

LOOK_S = 1.0
"""Seconds between two looks at who is there to compute."""

PATIENCE_S = 10.0
"""Seconds that steps wait for a worker before the run says so."""
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
        batch_systems.check(config)


def _listens(address: str) -> None:
    comm = imported("distributed.comm")
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
    distributed = imported("distributed")
    if config.scheduler:
        try:
            client = distributed.Client(config.scheduler, timeout="20s", set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            raise _nobody(config.scheduler, type(error).__name__) from None
        return DaskWorkers(config, client, note)
    jobs = Jobs(batch_systems.BATCH_SYSTEMS[config.cluster][1])
    cluster, at_most = batch_systems.cluster_of(config, jobs)
    return DaskWorkers(config, distributed.Client(cluster, set_as_default=False), note, cluster, at_most, jobs)


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
        n_dead = 0
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
                    self.cluster.loop.add_callback(batch_systems.ask_again, self.cluster, over)
                if len(self.jobs.dead) > n_dead and not self.jobs.die_at_once:
                    note(
                        f"of {self.jobs.system} {', '.join(self.jobs.dead[n_dead:])} ended before a worker came; "
                        "another one is asked for."
                    )
                n_dead = len(self.jobs.dead)
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
            every, minutes = batch_systems.AGAIN_S, batch_systems.GIVE_UP_S / 60
            goes_on = f"and none is left: the run asks again every {every:g} s, for {minutes:g} minutes"
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
            worker.compute, self.config, worker.core_digest(), dataset, seed, steps, resources=dict(needs) or None
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
            if self._gave_up and self.jobs.die_at_once:
                raise NeurobenchError(
                    f"one job of {self.jobs.system} after the other ended before a worker of it came: "
                    f"{'; '.join(self.jobs.dead)}.",
                    next_step="See what the jobs said (log_directory in --cluster-config), and whether its python and "
                    "job_script_prologue work on a node; the same command goes on, and what is finished is kept.",
                ) from None
            if self._gave_up:
                what = "does not take the job"
                if self.jobs.n_taken:
                    minutes = batch_systems.GIVE_UP_S / 60
                    what = f"took no other job for {minutes:g} minutes, and those that it took have ended"
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
        limit = (
            "" if config.cluster == "slurm" else " A job that ended before its workers came looks like one that waits."
        )
        return (
            f"A queue may take its time; `{batch_systems.QUEUES[config.cluster]}` shows the jobs, and log_directory in "
            f"{config.cluster_config} where their messages go.{limit}",
            f'Add worker_extra_args: ["--resources", "{{}}"] to {config.cluster_config}.',
        )
    start = f"dask worker {config.scheduler} --nthreads 1"
    return f"Start one with `{start}`.", f'Start one with `{start} --resources "{{}}"`.'

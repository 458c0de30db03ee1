"""The steps of a grid on a Dask cluster: one that runs already, or one that a batch system is asked for.

Workers see the same output folder as this process and compute into its store, as processes on one machine do; between
machines go a step's key and how it ended. A worker that dies, of its walltime for instance, is replaced by whatever
the cluster starts next; there a pretraining goes on from its checkpoint, and any other step is begun anew.

Dask's workers unpickle what their scheduler sends them. Let nobody into that network who is not to run code on it; its
own TLS settings are honoured.
"""

from __future__ import annotations

import functools
import importlib
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import neurobench
from neurobench.errors import ConfigError, NeurobenchError, StoreError
from neurobench.execution import Here, Outcome, Workers, describe
from neurobench.identity import digest, file_digest
from neurobench.options import RunConfig

__all__ = ["BATCH_SYSTEMS", "DaskWorkers", "cluster_of", "connect", "settings_of"]

BATCH_SYSTEMS = {"slurm": "SLURMCluster", "pbs": "PBSCluster", "sge": "SGECluster", "lsf": "LSFCluster"}
"""Batch systems and what dask-jobqueue calls them."""

INSTALL = 'Install the extra: pip install "neurobench-fm[cluster]".'


def connect(config: RunConfig) -> DaskWorkers:
    """Return the workers of ``config.scheduler``, or of the batch system ``config.cluster``.

    Raises
    ------
    ConfigError
        If Dask is not installed, nobody answers at the address, or the batch system cannot be used.
    """
    distributed = _imported("distributed")
    if config.scheduler:
        try:
            client = distributed.Client(config.scheduler, timeout="20s", set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            raise ConfigError(
                f"--scheduler {config.scheduler}: no Dask scheduler answers there ({type(error).__name__}).",
                allowed="the address of a running one, such as tcp://10.0.0.1:8786",
                next_step="Start one with `dask scheduler`, and workers with `dask worker ADDRESS --nthreads 1`.",
            ) from None
        return DaskWorkers(config, client)
    cluster = cluster_of(config)
    return DaskWorkers(config, distributed.Client(cluster, set_as_default=False), cluster)


def _imported(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"a cluster needs the package {error.name}, which is not installed.", next_step=INSTALL
        ) from None


def cluster_of(config: RunConfig) -> Any:
    """Ask a batch system for workers by dask-jobqueue, as the file ``config.cluster_config`` says.

    The YAML file holds what the class of dask-jobqueue takes (``queue``, ``cores``, ``memory``, ``walltime``, …), and
    ``jobs``: how many jobs at most, adapted to what there is to do. Each job is one worker with one process a core,
    unless ``processes`` says otherwise, and each process computes one step after the other.

    Raises
    ------
    ConfigError
        If the file cannot be read, or holds what the class does not take.
    """
    settings = settings_of(config.cluster_config)
    n_jobs = settings.pop("jobs", None)
    if not isinstance(n_jobs, int) or n_jobs < 1:
        raise ConfigError(
            f"{config.cluster_config}: jobs is {n_jobs!r}.", allowed="a whole number from 1: how many jobs at most"
        )
    jobqueue = _imported("dask_jobqueue")
    settings.setdefault("processes", settings.get("cores", 1))
    try:
        cluster = getattr(jobqueue, BATCH_SYSTEMS[config.cluster])(**settings)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{config.cluster_config}: dask-jobqueue does not take it: {error}.",
            next_step=f"See the parameters of dask_jobqueue.{BATCH_SYSTEMS[config.cluster]}.",
        ) from None
    cluster.adapt(minimum_jobs=1, maximum_jobs=n_jobs)
    return cluster


def settings_of(path: Path | None) -> dict[str, Any]:
    """Read what a batch system is to be asked for.

    Raises
    ------
    ConfigError
        If there is no file, or it is no mapping of names.
    """
    import yaml

    if path is None:
        raise ConfigError(
            "--cluster needs a file with what to ask the batch system for.",
            next_step="Give --cluster-config FILE, a YAML file with queue, cores, memory, walltime and jobs.",
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"the file {path} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"the file {path} is no YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(content, Mapping) or not all(isinstance(k, str) for k in content):
        raise ConfigError(f"the file {path} holds no settings.", allowed="queue, cores, memory, walltime, jobs, …")
    return dict(content)


class DaskWorkers(Workers):
    """Workers of a Dask cluster; as many steps at once as it has worker processes.

    Parameters
    ----------
    config
        What is run.
    client
        Of ``distributed``.
    cluster
        To be closed in the end; None: it belongs to somebody else.
    """

    def __init__(self, config: RunConfig, client: Any, cluster: Any = None) -> None:
        self.client, self.cluster = client, cluster
        # Relative to where this process is, which is not where a worker is.
        self.config = replace(
            config,
            out=config.out.absolute(),
            data_dirs={k: p.absolute() for k, p in config.data_dirs.items()},
            plugin_files=tuple(p.absolute() for p in config.plugin_files),
            scheduler="",
            cluster="",
            cluster_config=None,
            jobs=1,
        )
        # Not pure: a step that failed is not to be remembered by the scheduler as an answer.
        self._executor = client.get_executor(pure=False, retries=0)

    @property
    def n(self) -> int:
        """How many worker processes there are now; one at least, for whom a step can wait."""
        return max(1, len(self.client.scheduler_info(n_workers=-1)["workers"]))

    @property
    def dashboard(self) -> str:
        """Where the cluster can be watched; empty: nowhere."""
        return str(self.client.dashboard_link or "")

    def submit(self, dataset: str, seed: int, stage: str, key: str) -> Future[Outcome]:
        """Have a step of a (dataset, seed) computed, found by its stage and key."""
        found: Future[Outcome] = self._executor.submit(_there, self.config, core_digest(), dataset, seed, stage, key)
        return found

    def outcome(self, future: Future[Outcome]) -> Outcome:
        """Return how a step ended; workers that died at it are said to have."""
        from distributed import KilledWorker

        try:
            return future.result()
        except KilledWorker:
            died = NeurobenchError(
                "one worker after the other ended while it computed this step.",
                next_step="They may have run out of memory or of walltime: ask for more, or use a smaller --profile.",
            )
            return Outcome(frozenset(), describe(died))

    def close(self, *, at_once: bool) -> None:
        """Let the workers go; those of a batch system end with their jobs."""
        self._executor.shutdown(wait=not at_once)
        self.client.close()
        if self.cluster is not None:
            self.cluster.close()


# ---------------------------------------------------------------- on a worker


_lock = threading.Lock()
_here: tuple[str, Here] | None = None


def _there(config: RunConfig, code: str, dataset: str, seed: int, stage: str, key: str) -> Outcome:
    """Compute a step on a worker, whose folders and code have to be those of the process that asks."""
    global _here
    # One step at a time, also where a worker was started with several threads: a process holds one fold's signal.
    with _lock:
        try:
            if _here is None or _here[0] != digest(repr(config)):
                _check(config, code)
                _here = digest(repr(config)), Here(config)
        except NeurobenchError as error:
            return Outcome(frozenset(), store_error=StoreError(f"a worker cannot take part: {error}"))
        return _here[1].compute(dataset, seed, stage, key)


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

"""A grid on a Dask cluster of several processes: the records of a local run, and nothing lost when a worker dies."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import distributed
import pandas as pd
import pytest

from neurobench import clusters, runner
from neurobench.config import RunConfig, expand
from neurobench.errors import ConfigError, ConfigErrors, NeurobenchError, StoreError
from neurobench.execution import Outcome
from neurobench.plugins import load_registry
from neurobench.results import load_results
from neurobench.store import Store
from tests import tiny_run
from tests.fakes import write_folder
from tests.test_execution import bytes_of

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore:.*:pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_folder(folder, n_subjects=24)
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
    ) as started:
        yield started


def execute(data: Path, out: Path, **options: Any) -> runner.RunResult:
    return tiny_run.execute(data, out, **{"task": "reconstruction,age"} | options)


def test_a_cluster_writes_the_bytes_of_one_process(data: Path, tmp_path: Path, cluster: Any) -> None:
    one = execute(data, tmp_path / "one", jobs=1)
    many = execute(data, tmp_path / "many", scheduler=cluster.scheduler_address)
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "many")
    pd.testing.assert_frame_equal(one.table.drop(columns="seconds"), many.table.drop(columns="seconds"))
    assert (many.n_computed, many.failed) == (one.n_computed, ())
    ids = [set(load_results(tmp_path / n)["id"]) for n in ("one", "many")]
    assert ids[0] == ids[1]
    assert execute(data, tmp_path / "many", scheduler=cluster.scheduler_address).n_computed == 0


def test_a_worker_that_is_killed_loses_nothing(data: Path, tmp_path: Path, cluster: Any) -> None:
    reference = execute(data, tmp_path / "one", jobs=1, n_steps=40)
    killed: list[int] = []

    def kill_one_at_work() -> None:
        wanted = tmp_path / "many" / "store" / "tmp"
        deadline = time.monotonic() + 120
        while not killed and time.monotonic() < deadline:
            for folder in wanted.glob("*-pretraining-*") if wanted.is_dir() else ():
                pid = int(folder.name.split("-")[0])
                if pid != os.getpid():
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
                    break
            time.sleep(0.01)

    thread = threading.Thread(target=kill_one_at_work)
    thread.start()
    many = execute(data, tmp_path / "many", scheduler=cluster.scheduler_address, n_steps=40)
    thread.join()
    assert killed, "nobody was killed: the test says nothing"
    assert many.failed == ()
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "many")
    pd.testing.assert_frame_equal(reference.table.drop(columns="seconds"), many.table.drop(columns="seconds"))
    Store(tmp_path / "many")
    assert list((tmp_path / "many/store/tmp").iterdir()) == [], "what it left half-written is swept"


def test_what_breaks_is_a_record_and_the_others_go_on(data: Path, tmp_path: Path, cluster: Any) -> None:
    scheduler = cluster.scheduler_address
    result = execute(data, tmp_path / "out", backbone="breaks_in_training,tiny", task="age", scheduler=scheduler)
    table = result.table.set_index("row")
    assert "RuntimeError: lost the thread" in table.loc["breaks_in_training · roi", "error"]
    assert table.loc["tiny · roi", "status"] == "ok"


def test_workers_that_died_one_after_the_other_are_the_error_of_their_step_alone() -> None:
    from distributed import KilledWorker

    lost: Future[Outcome] = Future()
    lost.set_exception(KilledWorker("a step", None, 3))
    # Without a cluster: how soon one replaces workers that died is its own business, and takes it minutes at times.
    outcome = clusters.DaskWorkers.outcome(object.__new__(clusters.DaskWorkers), lost)
    assert "one worker after the other ended while it computed this step" in outcome.error
    assert outcome.store_error is None


# ---------------------------------------------------------------- refusals


def test_nobody_at_the_address_is_said(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def client(address: str, **options: Any) -> Any:
        raise OSError(f"timed out: {address}")

    monkeypatch.setattr(distributed, "Client", client)
    with pytest.raises(ConfigError, match=r"no Dask scheduler answers there \(OSError\).*dask scheduler"):
        execute(data, tmp_path / "out", scheduler="tcp://127.0.0.1:1")


def test_without_dask_the_extra_is_named(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ConfigError, match=r"pip install \"neurobench-fm\[cluster\]\""):
        execute(data, tmp_path / "out", scheduler="tcp://127.0.0.1:1")


def there(config: RunConfig, code: str) -> Outcome:
    clusters._here = None
    try:
        return clusters._there(config, code, "fake", 0, [("pretraining", "0" * 64)])
    finally:
        clusters._here = None


def test_a_worker_of_another_code_or_without_the_folder_ends_the_run(tmp_path: Path) -> None:
    config = RunConfig(out=tmp_path / "out")
    missing = there(config, clusters.core_digest()).store_error
    assert isinstance(missing, StoreError)
    assert "does not see the output folder" in missing.what
    Store(tmp_path / "out")
    other = there(config, "0" * 64).store_error
    assert isinstance(other, StoreError)
    assert "is not the one that asks" in other.what


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"scheduler": "tcp://127.0.0.1:1", "cluster": "slurm"}, "both say who computes"),
        ({"cluster": "slrm"}, "--cluster cannot be 'slrm'"),
        ({"cluster_config": "x.yaml"}, "no --cluster is given"),
    ],
)
def test_senseless_options_are_refused_before_work_starts(options: dict[str, str], said: str) -> None:
    config = RunConfig.from_options(backbone="mamba", mask="roi", **options)
    with pytest.raises(ConfigErrors, match=said):
        expand(config, load_registry())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("jobs: 2\nqeue: short\n", "dask-jobqueue does not take it"),
        ("queue: short\n", "jobs is None"),
        ("- a list\n", "holds no settings"),
        ("a: [", "is no YAML"),
        (None, "cannot be read"),
    ],
)
def test_a_wrong_cluster_file_is_said(tmp_path: Path, content: str | None, said: str) -> None:
    path = tmp_path / "cluster.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(NeurobenchError, match=said):
        clusters.cluster_of(RunConfig(cluster="slurm", cluster_config=path))


def test_a_batch_system_is_asked_for_what_the_file_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    class Cluster:
        def __init__(self, **settings: Any) -> None:
            asked.update(settings)

        def adapt(self, **limits: int) -> None:
            asked.update(limits)

    monkeypatch.setitem(sys.modules, "dask_jobqueue", SimpleNamespace(SLURMCluster=Cluster))
    path = tmp_path / "cluster.yaml"
    path.write_text('queue: short\ncores: 4\nmemory: 8GB\nwalltime: "01:00:00"\njobs: 3\n')
    clusters.cluster_of(RunConfig(cluster="slurm", cluster_config=path))
    assert asked == {
        "queue": "short",
        "cores": 4,
        "memory": "8GB",
        "walltime": "01:00:00",
        "processes": 4,
        "minimum_jobs": 1,
        "maximum_jobs": 3,
    }

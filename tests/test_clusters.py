"""A grid on a Dask cluster of several processes: the records of a local run, and nothing lost when a worker dies."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask
import distributed
import pandas as pd
import pytest
import torch

from neurobench import batch_systems, clusters, runner, runs, worker
from neurobench.config import RunConfig, expand
from neurobench.errors import ConfigError, ConfigErrors, NeurobenchError, StoreError
from neurobench.execution import Here, Outcome
from neurobench.interrupts import Abandoned, imported
from neurobench.plugins import load_registry
from neurobench.progress import Silent
from neurobench.results import load_results
from neurobench.store import Store
from tests import tiny_run
from tests.fakes import write_folder
from tests.test_execution import ROOT, bytes_of

# As neurobench imports it: by itself it would take Ctrl-C from every test after this one.
dask_jobqueue = imported("dask_jobqueue")

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore:.*:pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_folder(folder, n_subjects=24)
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0", silence_logs=50
    ) as started:
        yield started


def execute(data: Path, out: Path, **options: Any) -> runner.RunResult:
    return tiny_run.execute(data, out, **{"task": "reconstruction,age"} | options)


@pytest.mark.slow
def test_a_cluster_writes_the_bytes_of_one_process(
    data: Path, tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = execute(data, tmp_path / "one", jobs=1)
    many = execute(data, tmp_path / "many", scheduler=cluster.scheduler_address)
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "many")
    pd.testing.assert_frame_equal(one.table.drop(columns="seconds"), many.table.drop(columns="seconds"))
    assert (many.n_computed, many.failed) == (one.n_computed, ())
    ids = [set(load_results(tmp_path / n)["id"]) for n in ("one", "many")]
    assert ids[0] == ids[1]
    said: list[str] = []
    monkeypatch.setattr(clusters, "ANSWER_S", 0.01)
    monkeypatch.setattr(Silent, "note", lambda self, message: said.append(message))
    gone = {"scheduler": "tcp://127.0.0.1:1"}
    again = execute(data, tmp_path / "many", **gone)
    assert (again.n_computed, again.n_stored) == (0, many.n_computed + many.n_stored), "nobody is needed"
    pd.testing.assert_frame_equal(many.table, again.table)
    assert said == ["everything was stored already: the cluster was not asked for anything."]
    for entry in (tmp_path / "many/store/baseline").iterdir():
        shutil.rmtree(entry)
    with pytest.raises(ConfigError, match="no Dask scheduler answers there"):
        execute(data, tmp_path / "many", **gone)


@pytest.mark.slow
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


@pytest.mark.slow
def test_what_workers_have_under_way_ends_with_the_run(
    data: Path, tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def under_way() -> bool:
        # An untrained network is a pretraining of no step, and over at once.
        lines = (line for log in (out / "logs").rglob("*.jsonl") for line in log.read_text("utf-8").splitlines())
        return any('"step-started"' in x and '"pretraining"' in x and "untrained" not in x for x in lines)

    def stop(self: Any, labels: Any) -> None:
        if labels:
            wait_until(under_way)
            raise KeyboardInterrupt

    monkeypatch.setattr(Silent, "at_work", stop)
    with pytest.raises(KeyboardInterrupt):
        execute(data, out, scheduler=cluster.scheduler_address, n_steps=100_000, task="age")
    # The first step of a process may take long; all of them would take minutes more.
    wait_until(Store(out, read_only=True).unfinished)
    wait_until(lambda: not list((out / "store/tmp").iterdir()))
    begun = Store(out, read_only=True).unfinished()
    assert begun, "a checkpoint comes first"
    assert all(0 < c.about["state"]["counts"]["n_done"] < 100_000 for c in begun)


def test_a_run_that_says_nothing_more_is_over_by_the_clock_of_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(worker.time, "monotonic", lambda: now)
    state = runs.State("r", "", "elsewhere", 1, "", "", started=0.0, heard=1.0)
    until_over = worker.UntilOver(tmp_path, "r")
    with until_over.stage("a step") as advance:
        now = 10.0
        advance(1, 9)  # nothing is known
        runs.write_state(tmp_path, state)
        now = 20.0
        advance(2, 9)
        now = 20.0 + runs.LOST_S
        advance(2, 9)
        runs.write_state(tmp_path, replace(state, heard=2.0))
        now = 500.0
        advance(3, 9)
        now = 501.0 + runs.LOST_S
        with pytest.raises(Abandoned, match="run r is over"):
            advance(4, 9)
        # It was only held up, and asks again before it has said so.
        with until_over.stage("a step") as advance:
            now += runs.LOST_S
            advance(1, 9)


def test_a_worker_that_leaves_stops_what_it_is_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "LOOK_S", 0.0)
    here = SimpleNamespace(status=distributed.Status.paused)
    monkeypatch.setattr(distributed, "get_worker", lambda: here)
    with worker.UntilOver(tmp_path, "r").stage("a step") as advance:
        advance(1, 9)  # memory is short, and it waits
        here.status = distributed.Status.closing_gracefully
        with pytest.raises(Abandoned, match="the worker leaves"):
            advance(2, 9)


def test_what_is_left_is_no_error_of_a_step_and_those_before_it_count(monkeypatch: pytest.MonkeyPatch) -> None:
    done: set[str] = set()

    def fetch(key: str) -> None:
        if key == "c":
            raise Abandoned
        if key == "b":
            raise ValueError("no")
        done.add(key)

    here = object.__new__(Here)
    here.grid, here.device = SimpleNamespace(profile=SimpleNamespace(width=8)), torch.device("cpu")  # type: ignore[assignment]
    here.executor = SimpleNamespace(computed=done, fetch=fetch)  # type: ignore[assignment]
    here.store = SimpleNamespace(must_be_there=lambda: None)  # type: ignore[assignment]
    monkeypatch.setattr(
        here, "step", lambda dataset, seed, stage, key: (SimpleNamespace(row=SimpleNamespace(label="row")), key)
    )
    monkeypatch.setattr(worker, "_here", ("what is run", here))
    found = worker.compute("what is run", "", "fake", 0, [("stage", key) for key in "abcd"])  # type: ignore[arg-type]
    assert found == Outcome(frozenset("a"), failed={"b": "ValueError: no"}, abandoned=True)


def test_workers_that_died_one_after_the_other_are_the_error_of_their_step_alone() -> None:
    from distributed import KilledWorker

    lost: Future[Outcome] = Future()
    lost.set_exception(KilledWorker("a step", None, 3))
    # Without a cluster: how soon one replaces workers that died is its own business, and takes it minutes at times.
    outcome = clusters.DaskWorkers.outcome(object.__new__(clusters.DaskWorkers), lost)
    assert "one worker after the other ended while it computed this step" in outcome.error
    assert outcome.store_error is None


def test_a_worker_that_cannot_even_begin_ends_the_run_with_what_to_do() -> None:
    lost: Future[Outcome] = Future()
    lost.set_exception(ModuleNotFoundError("No module named 'neurobench.clusters'"))
    with pytest.raises(NeurobenchError, match=r"could not begin .*No module named 'neurobench.*same environment"):
        clusters.DaskWorkers.outcome(object.__new__(clusters.DaskWorkers), lost)


# ---------------------------------------------------------------- waiting for workers


def test_a_run_that_waits_says_so_once_and_when_it_goes_on() -> None:
    waiting = clusters.Waiting("Start one.", 'Start one with "{}".')
    asked: list[dict[str, float]] = [{}, {"GPU": 1}]
    assert waiting.look([], [], 0.0) == waiting.look([], [], 60.0) == "", "nothing is asked for"
    assert waiting.look([], asked, 100.0) == waiting.look([], asked, 105.0) == ""
    assert waiting.look([], asked, 111.0) == "no worker is there, and the run waits for one. Start one."
    assert waiting.look([], asked, 200.0) == ""
    assert waiting.look([{}], asked, 201.0) == "", "whether the one that came will do is not known yet"
    said = waiting.look([{}, {"MEMORY": 1e9}], asked, 212.0)
    assert said == 'no worker offers GPU=1, and steps that need it wait. Start one with "GPU=1".'
    assert waiting.look([{}, {"GPU": 1.0}], asked, 300.0) == "workers are there, and the run goes on."
    assert waiting.look([{}, {"GPU": 1.0}], asked, 400.0) == ""
    assert waiting.look([], asked, 410.0) == ""
    said = waiting.look([], asked, 421.0)
    assert said.startswith("no worker is there any more, and the run waits for one. Their logs say why they left")
    assert waiting.look([{"GPU": 1.0}], asked, 430.0) == "workers are there, and the run goes on."
    assert waiting.look([{"GPU": 1.0, "MEMORY": 1e9}], [{"GPU": 1, "MEMORY": 2e9}], 500.0) == ""
    assert "offers GPU=1 MEMORY=2e+09," in waiting.look([{"GPU": 1.0}], [{"GPU": 1, "MEMORY": 2e9}], 511.0)


class FakeClient:
    """A scheduler without a cluster: says who is there, and finishes nothing."""

    dashboard_link = None

    def __init__(self, *offered: dict[str, float]) -> None:
        self.offered, self.submitted = list(offered), []

    def scheduler_info(self, n_workers: int) -> dict[str, Any]:
        return {"workers": {str(i): {"resources": o} for i, o in enumerate(self.offered)}}

    def get_executor(self, **options: Any) -> Any:
        return self

    def submit(self, function: Any, *arguments: Any, resources: Any) -> Future[Outcome]:
        self.submitted.append(resources)
        return Future()

    def shutdown(self, wait: bool) -> None:
        pass

    def close(self) -> None:
        pass


def test_who_waits_for_workers_is_told_where_to_look(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(clusters, "LOOK_S", 0.01)
    monkeypatch.setattr(clusters, "PATIENCE_S", 0.05)
    said: list[str] = []
    client = FakeClient()
    config = RunConfig(out=tmp_path, scheduler="tcp://10.0.0.1:8786")
    workers = clusters.DaskWorkers(config, client, said.append)
    try:
        assert workers.n == 1, "one step can wait for the first worker"
        future = workers.submit("fake", 0, [("pretraining", "0" * 64)], {})
        wait_until(lambda: len(said) == 1)
        client.offered.append({})
        wait_until(lambda: len(said) == 2)
        future.set_result(Outcome(frozenset()))
        assert workers._asked == {}
    finally:
        workers.close(at_once=True)
    assert said[0].endswith("Start one with `dask worker tcp://10.0.0.1:8786 --nthreads 1`.")
    assert said[1] == "workers are there, and the run goes on."
    assert not workers._watch.is_alive()


def wait_until(true: Any, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_steps_that_wait_for_a_gpu_keep_no_other_from_work(tmp_path: Path) -> None:
    client = FakeClient({"GPU": 1.0}, {}, {})
    workers = clusters.DaskWorkers(RunConfig(out=tmp_path), client)
    try:
        assert workers.n == 3
        for expected in (3, 4, 5):
            workers.submit("fake", 0, [("pretraining", "0" * 64)], {"GPU": 1})
            assert workers.n == expected, "one at work, the others wait for that GPU"
        workers.submit("fake", 0, [("baseline", "1" * 64)], {})
        assert workers.n == 5
        assert client.submitted == [{"GPU": 1}] * 3 + [None]
        workers.at_most = 8
        assert workers.n == 10, "what a batch system would still start is asked for by steps that wait"
    finally:
        workers.close(at_once=True)


@pytest.mark.slow
def test_a_step_that_needs_a_gpu_waits_for_a_worker_that_offers_one(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clusters, "PATIENCE_S", 1.0)
    said: list[str] = []
    early: list[Path] = []
    started: list[subprocess.Popen[bytes]] = []
    options = {"backbone": "tiny", "mask": "roi", "dataset": "fake", "data_dir": data, "plugin_files": tiny_run.PLUGIN}
    with distributed.LocalCluster(n_workers=0, dashboard_address=":0", silence_logs=50) as empty:

        def start(*offer: str) -> None:
            command = [sys.executable, "-m", "distributed.cli.dask_worker", empty.scheduler_address]
            started.append(
                subprocess.Popen([*command, "--nthreads", "1", "--no-nanny", "--no-dashboard", *offer], cwd=ROOT)
            )

        def note(message: str) -> None:
            if "watch the cluster" not in message:
                said.append(message)
            if "no worker is there" in message:
                start()
            if "no worker offers GPU=1" in message:
                # What needs no GPU goes on.
                wait_until((tmp_path / "out" / "store" / "baseline").is_dir)
                early.extend((tmp_path / "out" / "store").glob("pretraining/*"))
                start("--resources", "GPU=1")

        config = RunConfig.from_options(
            **options, out=tmp_path / "out", task="age", n_steps=2, scheduler=empty.scheduler_address,
            resources="tiny:GPU=1",
        )  # fmt: skip
        registry = load_registry(config.plugin_files)
        progress = Silent()
        monkeypatch.setattr(progress, "note", note, raising=False)
        try:
            result = runner.execute(expand(config, registry), registry, progress=progress)
        finally:
            for process in started:
                process.kill()
                process.wait(30)
    assert (result.failed, early) == ((), [])
    assert [m.partition(",")[0] for m in said] == [
        "no worker is there",
        "no worker offers GPU=1",
        "workers are there",
    ]
    execute(data, tmp_path / "one", task="age", n_steps=2, jobs=1)
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "out")


# ---------------------------------------------------------------- walltime


@pytest.mark.parametrize(
    ("system", "walltime", "seconds"),
    [
        ("slurm", "04:00:00", 4 * 3600),
        ("slurm", "1-12:00:00", 36 * 3600),
        ("slurm", "2-12", 60 * 3600),
        ("slurm", "90", 90 * 60),
        ("slurm", "30:00", 30 * 60),
        ("pbs", "3600", 3600),
        ("lsf", "02:30", 150 * 60),
        ("sge", "00:30:00", 30 * 60),
        ("slurm", "UNLIMITED", 0),
    ],
)
def test_the_walltime_is_read_as_the_batch_system_reads_it(system: Any, walltime: str, seconds: int) -> None:
    assert batch_systems._walltime_s(RunConfig(cluster=system), {"walltime": walltime}) == seconds


def test_workers_leave_before_their_walltime_is_over() -> None:
    assert batch_systems._lifetime(4 * 3600) == ["--lifetime", "13800s", "--lifetime-stagger", "150s"]
    assert batch_systems._lifetime(1800) == ["--lifetime", "1440s", "--lifetime-stagger", "90s"]


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("address", "said"),
    [("tcp://127.0.0.1:1", "Connection refused"), ("nonsense", "it is no address: missing port")],
)
def test_nobody_at_the_address_is_said_before_anything_is_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, said: str
) -> None:
    monkeypatch.setattr(clusters, "ANSWER_S", 0.01)
    config = RunConfig.from_options(backbone="mamba", mask="roi", out=tmp_path / "out", scheduler=address)
    registry = load_registry()
    with pytest.raises(ConfigError, match=rf"no Dask scheduler answers there \({said}.*dask scheduler"):
        runner.execute(expand(config, registry), registry)
    assert not list((tmp_path / "out/store").glob("twin/*"))


def test_a_scheduler_in_this_process_has_no_port() -> None:
    clusters.check(RunConfig(scheduler="inproc://10.0.0.1/1/2"))


def test_a_scheduler_that_does_not_say_who_it_is_is_nobody(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def client(address: str, **options: Any) -> Any:
        raise OSError(f"timed out: {address}")

    monkeypatch.setattr(distributed, "Client", client)
    with pytest.raises(ConfigError, match=r"no Dask scheduler answers there \(OSError\)"):
        clusters.connect(RunConfig(scheduler="tcp://127.0.0.1:1"))


@pytest.mark.parametrize(
    ("options", "package"),
    [({"scheduler": "tcp://127.0.0.1:1"}, "distributed"), ({"cluster": "slurm"}, "dask_jobqueue")],
)
def test_without_dask_the_extra_is_named_before_anything_is_prepared(
    options: dict[str, str], package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == package else found(name, *rest)
    )
    config = RunConfig.from_options(backbone="mamba", mask="roi", **options)
    with pytest.raises(ConfigErrors, match=rf"{package}, which is not installed.*neurobench-fm\[cluster\]"):
        expand(config, load_registry())


def there(config: RunConfig, code: str) -> Outcome:
    worker._here = None
    try:
        return worker.compute(config, code, "fake", 0, [("pretraining", "0" * 64)])
    finally:
        worker._here = None


def test_a_worker_of_another_code_or_without_the_folder_ends_the_run(tmp_path: Path) -> None:
    config = RunConfig(out=tmp_path / "out")
    missing = there(config, worker.core_digest()).store_error
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
        ("jobs: 2\nqeue: short\n", "'qeue' is no setting of Slurm's jobs. Did you mean 'queue'"),
        ("jobs: 2\ncores: 1\nmemory: lots\n", "does not take it: Could not interpret 'lots' as a byte unit."),
        ("jobs: 2\ncores: four\n", "cores is 'four'. Allowed: a whole number from 1"),
        ("queue: short\n", "jobs is missing"),
        ("- a list\n", "holds no settings"),
        ("a: [", "is no YAML"),
        ("jobs: zero\ncors: 4\nwalltime: 10:00:00\n", "(?s)3 problems.*jobs is 'zero'.*'cors' is no setting.*is 36000"),
        ("jobs: 2\nwalltime: 10:00:00\n", "walltime is 36000, which is what YAML reads from a time without quotes"),
        (None, "cannot be read"),
    ],
)
def test_a_wrong_cluster_file_is_said(tmp_path: Path, content: str | None, said: str) -> None:
    path = tmp_path / "cluster.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(NeurobenchError, match=said):
        batch_systems.cluster_of(RunConfig(cluster="slurm", cluster_config=path), batch_systems.Jobs("Slurm"))


CLUSTER = """
cores: 1
memory: 1GB
jobs: 2
scheduler_options: {dashboard_address: ":0"}
"""


def test_a_machine_without_the_batch_system_is_said_before_anything_is_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    with pytest.raises(ConfigError, match="--cluster slurm: there is no `sbatch` on this machine"):
        clusters.check(RunConfig(cluster="slurm", cluster_config=tmp_path / "cluster.yaml"))


@pytest.mark.slow
def test_a_job_that_the_batch_system_refuses_ends_the_run_with_what_it_said(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "bin").mkdir()
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: shrt' >&2\nexit 1\n")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    with pytest.raises(
        NeurobenchError, match=r"Slurm does not take the job\. It says: sbatch: error: invalid partition"
    ) as said:
        execute(data, tmp_path / "out", cluster="slurm", cluster_config=tmp_path / "cluster.yaml")
    assert "--cluster-config" in said.value.next_step
    assert not [r for r in caplog.records if r.name in ("tornado.application", "concurrent.futures")]


def test_a_job_that_is_refused_without_a_word_on_stderr_is_said_in_all_that_is_known() -> None:
    error = RuntimeError("Exit code: 255\nCommand:\nbsub\nstdout:\nno such queue\nstderr:\n\n")
    assert batch_systems._said(error) == "Exit code: 255 Command: bsub stdout: no such queue stderr:"


class FakeJob:
    """A job that is taken, unless the queue is full."""

    full = False

    def __init__(self, name: str = "") -> None:
        self.name = name

    async def start(self) -> None:
        if FakeJob.full:
            raise RuntimeError("Command exited with non-zero exit code.\nstderr:\nQOSMaxSubmitJobPerUserLimit\n")


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> batch_systems.Jobs:
    async def started(job: Any) -> None:
        pass

    monkeypatch.setattr("distributed.deploy.spec.ProcessInterface.start", started)
    monkeypatch.setattr(FakeJob, "full", False)
    return batch_systems.Jobs("Slurm")


def submitted(jobs: batch_systems.Jobs, name: str, *, full: bool) -> Any:
    FakeJob.full = full
    asyncio.run((job := jobs.told_by(FakeJob)(name)).start())
    return job


def test_a_job_of_several_processes_is_over_when_the_last_of_them_has_left(slurm: batch_systems.Jobs) -> None:
    first, second = (submitted(slurm, name, full=False) for name in ("job-1", "job-2"))
    assert slurm.look(["job-1-0", "job-1-1"], 0.0) == []
    assert slurm.look(["job-1-1", "job-2"], 100.0) == []
    assert slurm.look(["job-2"], 100.0 + batch_systems.GONE_S - 1) == []
    assert slurm.look(["job-2"], 100.0 + batch_systems.GONE_S) == [first]
    assert slurm.look([], 1000.0) == [second]
    submitted(slurm, "job-3", full=False)
    assert slurm.look([], 1e6) == [], "a queue may take its time"


def test_a_job_that_is_refused_is_asked_for_again_and_given_up_after_a_while(
    slurm: batch_systems.Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(batch_systems.time, "monotonic", lambda: now)
    submitted(slurm, "job-1", full=False)
    refused = submitted(slurm, "job-2", full=True)
    assert slurm.look(["job-1"], 1.0) == []
    assert slurm.look(["job-1"], batch_systems.AGAIN_S) == [refused]
    assert not slurm.are_hopeless(1e6), "one is there"
    now = 100.0
    assert len(slurm.look([], now)) == 1
    slurm.look([], now)
    assert slurm.none_left
    assert not slurm.are_hopeless(now + batch_systems.GIVE_UP_S - 1)
    assert slurm.are_hopeless(now + batch_systems.GIVE_UP_S)
    submitted(slurm, "job-2", full=False)
    assert not slurm.are_hopeless(1e6)
    submitted(other := batch_systems.Jobs("Slurm"), "job-1", full=True)
    assert other.are_hopeless(0.0), "not one was taken"


SQUEUE = """#!/bin/sh
[ "$*" = "--me --noheader --format=%A" ] || exit 2
cat {queue}
"""


def test_a_job_of_slurm_that_ends_before_its_worker_comes_is_noticed_and_given_up_after_a_few(
    slurm: batch_systems.Jobs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def job(number: int) -> Any:
        made = submitted(slurm, f"job-{number}", full=False)
        made.job_id, made.log_directory, made.job_name = str(number), str(tmp_path), "dask-worker"
        return made

    first, second = job(1), job(2)
    assert slurm.look([], 0.0) == [], "there is no squeue to ask"
    (tmp_path / "squeue").write_text(SQUEUE.format(queue=tmp_path / "queue"))
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "queue").write_text("2\n77\n")
    (tmp_path / "dask-worker-1.err").write_text("python: No module named distributed\n\n")
    assert slurm.look([], 1.0) == [], "it was asked a moment ago"
    assert slurm.look([], batch_systems.ASK_S) == [first]
    assert slurm.dead == [f"job 1 ({tmp_path}/dask-worker-1.err: python: No module named distributed)"]
    now = 2 * batch_systems.ASK_S
    assert slurm.look(["job-2"], now) == []
    assert slurm.dead == [], "a worker came"
    (tmp_path / "queue").write_text("")
    assert slurm.look([], now + batch_systems.GONE_S) == [second]
    for number in (3, 4):
        now += batch_systems.ASK_S
        assert slurm.look([], now) == []
        ended = job(number)
        now += batch_systems.ASK_S
        assert slurm.look([], now) == [ended]
        assert not slurm.are_hopeless(now)
    job(5)
    assert slurm.look([], now + batch_systems.ASK_S) == [], "no other is asked for"
    assert slurm.are_hopeless(now)
    assert slurm.dead == ["job 3", "job 4", "job 5"]


def test_a_run_whose_jobs_end_at_once_ends_with_what_they_said(
    slurm: batch_systems.Jobs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(clusters, "LOOK_S", 0.01)
    slurm.n_taken, slurm.dead = 3, ["job 1 (x.err: no python)", "job 2", "job 3"]
    config = RunConfig(out=tmp_path, cluster="slurm", cluster_config=tmp_path / "cluster.yaml")
    workers = clusters.DaskWorkers(config, FakeClient(), jobs=slurm)
    try:
        future = workers.submit("fake", 0, [("pretraining", "0" * 64)], {})
        wait_until(future.done)
        with pytest.raises(NeurobenchError, match=r"a worker of it came: job 1 \(x.err: no python\); job 2"):
            workers.outcome(future)
    finally:
        workers.close(at_once=True)


@pytest.mark.parametrize(("system", "limit"), [("slurm", False), ("pbs", True)])
def test_where_nobody_can_be_asked_the_limit_is_said(tmp_path: Path, system: Any, limit: bool) -> None:
    what, _ = clusters._what_to_do(RunConfig(cluster=system, cluster_config=tmp_path / "cluster.yaml"))
    assert ("looks like one that waits" in what) == limit


def test_jobs_that_are_over_are_asked_for_again_and_no_other() -> None:
    closed: list[str] = []

    class Job(FakeJob):
        async def close(self) -> None:
            closed.append(self.name)

    old, new, other = Job("job-1"), Job("job-1"), Job("job-2")
    cluster = SimpleNamespace(workers={"job-1": new, "job-2": other})
    asyncio.run(batch_systems.ask_again(cluster, [old, other]))
    assert cluster.workers == {"job-1": new}
    assert closed == ["job-2"]


SBATCH = """#!/bin/bash
if [ -e {here}/full ]; then echo 'sbatch: error: QOSMaxSubmitJobPerUserLimit' >&2; exit 1; fi
cp "$1" "$1.kept"
setsid bash "$1.kept" > /dev/null 2>&1 < /dev/null &
echo $! >> {here}/jobs
echo "Submitted batch job $!"
"""


@pytest.mark.slow
def test_another_job_takes_the_place_of_one_that_has_ended_until_none_is_taken(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, script in {"sbatch": SBATCH.format(here=tmp_path), "scancel": '#!/bin/bash\nkill -- "-$1"\n'}.items():
        (tmp_path / "bin" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(script)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name, seconds in {"GONE_S": 2.0, "AGAIN_S": 1.0, "GIVE_UP_S": 4.0}.items():
        monkeypatch.setattr(batch_systems, name, seconds)
    (tmp_path / "cluster.yaml").write_text(
        CLUSTER.replace("cores: 1", "cores: 2").replace("jobs: 2", "jobs: 1").replace("1GB", "4GB") + "interface: lo\n"
    )
    out = tmp_path / "out"

    def is_at_work() -> bool:
        at_work = (folder.name.split("-")[0] for folder in (out / "store/tmp").glob("*-pretraining-*"))
        return any(Path(f"/proc/{pid}").exists() for pid in at_work)

    def kill_two_jobs() -> None:
        for n_jobs in (1, 2):
            wait_until(lambda n=n_jobs: len(jobs()) == n and is_at_work())
            if n_jobs == 2:
                (tmp_path / "full").touch()
            os.killpg(jobs()[-1], signal.SIGKILL)

    def jobs() -> list[int]:
        return [int(n) for n in (tmp_path / "jobs").read_text().split()] if (tmp_path / "jobs").exists() else []

    thread = threading.Thread(target=kill_two_jobs)
    thread.start()
    try:
        with pytest.raises(NeurobenchError, match=r"those that it took have ended\. It says: .*QOSMaxSubmit"):
            execute(data, out, n_steps=100_000, cluster="slurm", cluster_config=tmp_path / "cluster.yaml")
    finally:
        thread.join()
    assert len(jobs()) == 2, "the second took the place of the first"


def test_a_run_goes_on_with_the_jobs_that_were_taken_and_says_so_once(
    tmp_path: Path, slurm: batch_systems.Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clusters, "LOOK_S", 0.01)
    for number in range(3):
        submitted(slurm, f"job-{number}", full=number > 0)
    assert slurm.n_taken == 1
    said: list[str] = []
    config = RunConfig(out=tmp_path, cluster="slurm", cluster_config=tmp_path / "cluster.yaml")
    workers = clusters.DaskWorkers(config, FakeClient({}), said.append, jobs=slurm)
    try:
        future = workers.submit("fake", 0, [("pretraining", "0" * 64)], {})
        wait_until(lambda: said)
        time.sleep(0.05)
        assert not future.done()
    finally:
        workers.close(at_once=True)
    assert said == [
        "Slurm did not take another job, and the run goes on with those it took. It says: QOSMaxSubmitJobPerUserLimit"
    ]


def test_a_batch_system_is_asked_for_what_the_file_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    class Cluster:
        job_cls = dask_jobqueue.SLURMCluster.job_cls

        def __init__(self, **settings: Any) -> None:
            asked.update(settings)

        def adapt(self, **limits: int) -> None:
            asked.update(limits)

    monkeypatch.setitem(sys.modules, "dask_jobqueue", SimpleNamespace(SLURMCluster=Cluster))
    path = tmp_path / "cluster.yaml"
    path.write_text('queue: short\ncores: 4\nmemory: 8GB\nwalltime: "01:00:00"\njobs: 3\n')
    jobs = batch_systems.Jobs("Slurm")
    _, at_most = batch_systems.cluster_of(RunConfig(cluster="slurm", cluster_config=path), jobs)
    assert at_most == 12
    assert issubclass(asked.pop("job_cls"), Cluster.job_cls)
    assert asked.pop("worker_extra_args") == ["--lifetime", "3000s", "--lifetime-stagger", "150s"]
    assert asked.pop("job_script_prologue") == [*batch_systems.PROLOGUE]
    assert asked == {
        "queue": "short",
        "cores": 4,
        "memory": "8GB",
        "walltime": "01:00:00",
        "processes": 4,
        "minimum_jobs": 1,
        "maximum_jobs": 3,
        "worker_key": batch_systems._job_of,
    }
    assert batch_systems._job_of(SimpleNamespace(name="job-2-0")) == "job-2", "workers of one job leave together"
    path.write_text('cores: 1\nwalltime: "01:00:00"\njobs: 3\nworker_extra_args: ["--lifetime=9m"]\n')
    batch_systems.cluster_of(RunConfig(cluster="slurm", cluster_config=path), jobs)
    assert asked["worker_extra_args"] == ["--lifetime=9m"], "who says when workers leave is obeyed"
    path.write_text('cores: 1\nwalltime: "01:00:00"\njobs: 3\n')
    own = {"jobqueue.slurm.worker-extra-args": ["--nanny"], "jobqueue.slurm.job-script-prologue": ["module load x"]}
    with dask.config.set(own):
        batch_systems.cluster_of(RunConfig(cluster="slurm", cluster_config=path), jobs)
    assert asked["worker_extra_args"][0] == "--nanny", "what dask-jobqueue is configured with is kept"
    assert asked["job_script_prologue"] == ["module load x", *batch_systems.PROLOGUE]
    path.write_text("cores: 1\njobs: 3\nenv_extra: [module load y]\nextra: [--no-dashboard]\n")
    batch_systems.cluster_of(RunConfig(cluster="slurm", cluster_config=path), jobs)
    assert asked["job_script_prologue"] == ["module load y", *batch_systems.PROLOGUE], "it has another name now"
    assert asked["worker_extra_args"][0] == "--no-dashboard"
    path.write_text("cores: 1\njobs: 3\njob_script_prologue: |\n  module load a\n  module load b\n")
    batch_systems.cluster_of(RunConfig(cluster="slurm", cluster_config=path), jobs)
    assert asked["job_script_prologue"] == ["module load a", "module load b", *batch_systems.PROLOGUE]


@pytest.mark.parametrize(
    ("name", "own", "found"),
    [
        ("WORKER__PROFILE__ENABLED", None, "False"),
        ("WORKER__PROFILE__ENABLED", "True", "True"),
        ("ADMIN__TICK__INTERVAL", None, "1s"),
        ("ADMIN__TICK__INTERVAL", "20ms", "20ms"),
        ("WORKER__MEMORY__MONITOR_INTERVAL", None, "1s"),
    ],
)
def test_workers_of_a_batch_system_do_not_watch_themselves_unless_asked(name: str, own: str | None, found: str) -> None:
    name = f"DASK_DISTRIBUTED__{name}"
    env = {k: v for k, v in os.environ.items() if k != name} | ({name: own} if own else {})
    script = "\n".join([*batch_systems.PROLOGUE, f"printenv {name}"])
    assert subprocess.run(["sh", "-c", script], env=env, capture_output=True, text=True).stdout.strip() == found


def test_a_scheduler_does_not_watch_itself_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    tick, monitor = "distributed.admin.tick.interval", "distributed.admin.system-monitor.interval"
    assert batch_systems._calm() == batch_systems.CALM
    monkeypatch.setenv("DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL", "20ms")
    with dask.config.set({monitor: "2s"}):
        assert not {tick, monitor} & set(batch_systems._calm()), "what somebody asked for stays, Dask's default too"
    with dask.config.set(batch_systems.CALM):
        assert dask.config.get(tick) == "1s", "the names are Dask's"


def test_a_package_that_takes_ctrl_c_gives_it_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As dask-jobqueue does where it is imported: Ctrl-C would end Python before a run could say that it was stopped.
    (tmp_path / "takes_ctrl_c.py").write_text("import signal\nsignal.signal(signal.SIGINT, lambda *_: None)\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = signal.getsignal(signal.SIGINT)
    imported("takes_ctrl_c")
    assert signal.getsignal(signal.SIGINT) is before


MEMORY = """
import resource, sys
import torch
from neurobench import worker

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        torch.ones(1 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

changed = worker.allocate_as_elsewhere()
faults()
print(changed, faults())
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries do not know the variable")
@pytest.mark.parametrize(("threshold", "changed"), [("65536", True), ("70000", False)], ids=["dask's", "the user's"])
def test_workers_do_not_ask_the_system_for_every_tensor_anew(threshold: str, changed: bool) -> None:
    env = os.environ | {worker.TRIMMED: threshold}
    done = subprocess.run([sys.executable, "-c", MEMORY], env=env, capture_output=True, text=True, check=True)
    found, faults = done.stdout.split()
    assert found == str(changed), done.stderr
    # 50 tensors of 4 MiB are 51,200 pages of 4 KiB, or a hundred huge ones.
    assert (int(faults) < 50) == changed, faults


def test_a_worker_that_dask_did_not_start_so_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(worker.TRIMMED, raising=False)
    assert not worker.allocate_as_elsewhere()

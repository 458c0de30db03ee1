"""Steps in several processes: the same bytes as one after the other, and nothing lost when a process ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch

from neurobench import execution, logs, runner
from neurobench.config import RunConfig, expand
from neurobench.errors import ConfigError, NeurobenchError, StoreError
from neurobench.execution import Executor, Outcome, Processes, Todo, Workers
from neurobench.identity import digest
from neurobench.interrupts import LAST_STEP_S
from neurobench.plugins import load_registry
from neurobench.progress import Done, Silent, TimeLeft
from neurobench.resources import Needs
from neurobench.stages import CohortRun
from neurobench.steps import Failures, Row, Use
from neurobench.store import Store
from tests import tiny_run
from tests.fakes import write_folder
from tests.tiny_run import PLUGIN

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_folder(folder, n_subjects=24)
    return folder


def execute(data: Path, out: Path, **options: Any) -> runner.RunResult:
    return tiny_run.execute(data, out, **{"task": "reconstruction,age", "jobs": 2} | options)


def bytes_of(out: Path) -> dict[str, str]:
    """Return the sha256 of every stored file that holds no measured time, by stage, label and name."""
    store = Store(out, read_only=True)
    return {
        f"{stage}/{e.manifest['label']}/{name}": sha
        for stage in ("pretraining", "embedding", "baseline", "reconstruction", "evaluation", "confounds")
        for e in store.entries(stage)
        for name, (sha, _) in e.manifest["files"].items()
        if name != "pretraining.json"
    }


def test_a_process_lists_the_steps_of_a_seed_once_and_lets_go_of_signal_that_it_leaves(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"seed": "0,1", "task": "age", "jobs": 1}
    execute(data, tmp_path / "out", **asked)
    listed: list[int] = []
    among = CohortRun.among
    monkeypatch.setattr(execution.logs, "keep", lambda *_: None)
    monkeypatch.setattr(execution.CohortRun, "among", lambda *given: listed.append(given[5]) or among(*given))
    here = execution.Here(tiny_run.config_of(data, tmp_path / "out", **asked))
    first = here._steps("fake", 0)
    run, _ = here.listed["fake", 0]
    run.tokenizer(run.folds[0])
    assert run._tokenizers
    other = here._steps("fake", 1)
    assert not run._tokenizers
    assert other.keys() != first.keys()
    assert here._steps("fake", 0) is first
    assert listed == [0, 1]
    monkeypatch.setattr(execution, "LISTED", 1)
    here.listed.clear()
    here._steps("fake", 1)
    here._steps("fake", 0)
    assert list(here.listed) == [("fake", 0)]


def test_two_processes_write_the_bytes_of_one(data: Path, tmp_path: Path) -> None:
    one = execute(data, tmp_path / "one", jobs=1)
    two = execute(data, tmp_path / "two")
    assert len(bytes_of(tmp_path / "one")) > 20
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")
    pd.testing.assert_frame_equal(one.table.drop(columns="seconds"), two.table.drop(columns="seconds"))
    assert (two.n_computed, two.n_stored, two.failed) == (one.n_computed, one.n_stored, ())
    # Each process keeps a log of its own, in which every step has its row.
    lines = logs.Reader(tmp_path / "two").new()
    assert {line["what"] for line in lines} <= set(logs.WHAT)
    assert (lines[0]["what"], lines[-1]["what"]) == ("run-started", "run-finished")
    workers = {line["pid"] for line in lines if line["what"] == "worker-started"}
    assert len(workers) == 2
    # Ctrl-C while it imports is no traceback of it: in a terminal it comes to every process.
    status = Path(f"/proc/{forkserver._forkserver._forkserver_pid}/status")  # type: ignore[attr-defined]
    if status.is_file():
        blocked = next(x for x in status.read_text().splitlines() if x.startswith("SigBlk"))
        assert int(blocked.split()[1], 16) >> (signal.SIGINT - 1) & 1
    assert os.getpid() not in workers
    steps = [line for line in lines if line["what"] in ("step-started", "step-finished")]
    assert {line["pid"] for line in steps} <= workers
    assert all({"run", "stage", "label", "dataset", "seed", "row"} <= line.keys() for line in steps)
    finished = {line["key"] for line in steps if line["what"] == "step-finished"}
    assert len(finished) == two.n_computed == lines[-1]["n_computed"]
    again = execute(data, tmp_path / "two")
    assert (again.n_computed, again.n_stored) == (0, two.n_computed)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("breaks_in_training", "RuntimeError: lost the thread"),
        ("ends_the_process", "ended twice without an error. The system may have killed it for its memory"),
    ],
)
def test_what_breaks_is_a_record_and_the_others_go_on(data: Path, tmp_path: Path, name: str, error: str) -> None:
    result = execute(data, tmp_path / "out", backbone=f"{name},tiny", task="age")
    table = result.table.set_index("row")
    assert f"{name} · roi on fake, age" in result.failed
    assert error in table.loc[f"{name} · roi", "error"]
    assert table.loc["tiny · roi", "status"] == "ok"
    whats = {line["what"] for line in logs.Reader(tmp_path / "out").new() if name in line.get("label", "")}
    assert whats >= ({"step-started", "step-lost"} if name == "ends_the_process" else {"step-failed"})
    assert table.loc["connectome", "status"] == "ok"
    assert execute(data, tmp_path / "out", task="age").n_computed == 0


def test_processes_that_cannot_be_started_are_one_error_and_no_hundred_failed_rows(tmp_path: Path, data: Path) -> None:
    # A script without a guard around the call: every process that is started runs it from the top.
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nimport neurobench\n"
        f"neurobench.run(backbone='tiny', mask='roi', dataset='fake', data_dir={str(data)!r}, task='age', jobs=2,\n"
        f"    n_steps=2, out={str(tmp_path / 'out')!r}, plugin_files={str(PLUGIN)!r})\n",
        encoding="utf-8",
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1
    assert "the processes that were to compute steps could not be started" in done.stderr
    assert '`if __name__ == "__main__":`' in done.stderr


def test_a_full_disk_ends_the_run(data: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="disk is full"):
        execute(data, tmp_path / "out", backbone="fills_the_disk", task="age")


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_the_one_that_was_stopped(data: Path, tmp_path: Path, end: signal.Signals) -> None:
    mark = f"neurobench-{tmp_path.name}-{os.getpid()}"
    command = [
        *(sys.executable, "-m", "neurobench", "run", "--plugin", str(PLUGIN), "--backbone", "tiny", "--mask", "roi"),
        *("--dataset", "fake", "--data-dir", str(data), "--out", str(tmp_path / "out"), "--steps", "400"),
        *("--jobs", "2"),
    ]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"MARK": mark}, start_new_session=True)
    wanted = tmp_path / "out" / "store" / "embedding"
    deadline = time.monotonic() + 120
    while not (wanted.is_dir() and any(wanted.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(_marked(mark)) >= 3
    process.send_signal(end)
    assert process.wait(30) == (130 if end == signal.SIGINT else -end)
    while _marked(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _marked(mark) == []
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert execute(data, tmp_path / "out", n_steps=400, task=None).n_computed == 0


def _marked(mark: str) -> list[int]:
    """Return the processes that were started with a mark in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"MARK={mark}\0".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def test_jobs_are_a_number_or_auto() -> None:
    assert RunConfig.from_options().jobs == 1
    assert RunConfig.from_options(jobs="auto").jobs == 0
    assert RunConfig.from_options(jobs="3").jobs == 3
    for wrong in ("two", "0", 0, "-1"):
        with pytest.raises(ConfigError, match=rf"--jobs cannot be '{wrong}'.*a whole number from 1, or auto"):
            RunConfig.from_options(jobs=wrong)
    assert "changed" not in RunConfig.from_options(suite=ROOT / "benchmarks" / "smoke.yaml", jobs=4).suite


def test_processes_are_started_where_they_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = load_registry()
    monkeypatch.setattr(execution.joblib, "cpu_count", lambda: 4)
    # Whatever else is in this machine's memory.
    monkeypatch.setattr(execution, "BYTES_A_JOB", 1)

    def jobs(seconds: float, **options: Any) -> int:
        config = RunConfig.from_options(backbone="mamba", mask="roi", dataset="camcan", device="cpu", **options)
        return execution.suitable_jobs(expand(config, registry), seconds)

    assert jobs(5.0) == 1
    assert jobs(300.0) == 2, "one combination has two folds to pretrain on"
    assert jobs(300.0, profile="cpu") == 4
    assert jobs(300.0, profile="full") == 1, "a large network keeps all cores busy by itself"


def test_small_networks_run_on_one_thread_and_leave_it_as_it_was() -> None:
    registry = load_registry()
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for profile, expected in (("smoke", 1), ("full", 2)):
            grid = expand(RunConfig.from_options(backbone="mamba", mask="roi", profile=profile), registry)
            with execution.few_threads(grid.profile, torch.device("cpu")):
                assert torch.get_num_threads() == expected
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# ---------------------------------------------------------------- the order of steps


@dataclass(frozen=True)
class FakeStep:
    """A step that nobody computes."""

    name: str
    needs: tuple[str, ...] = ()

    @property
    def stage(self) -> str:
        return "pretraining"

    @property
    def label(self) -> str:
        return self.name

    @property
    def identity(self) -> dict[str, Any]:
        return {"name": self.name, "needs": list(self.needs)}

    @property
    def key(self) -> str:
        return digest(self.identity)


def use(row: str) -> Use:
    return Use(Row("baseline", row), ("age",))


def failed_rows(failures: Failures) -> dict[str, str]:
    return {row.label: error for (row, task), error in failures.items() if task == "age"}


def schedule(
    tmp_path: Path,
    *works: list[tuple[str, FakeStep]],
    seconds: float = execution.BUNDLE_S,
    done: Done = lambda seconds, computed: None,
) -> Any:
    executor = Executor(Store(tmp_path / "out"), Silent())
    run: Any = SimpleNamespace(needs=lambda row, stage: {})
    work: list[Any] = [Todo(run, [(use(row), step) for row, step in steps]) for steps in works]  # type: ignore[misc]
    return execution._Schedule(work, executor, lambda step: seconds, done)


def done(found: Any, job: list[Any], error: str = "") -> None:
    found.take(job, Outcome(frozenset(), failed={node.key: error for node in job if error}))


def test_short_steps_travel_together_as_many_as_leave_work_for_others(tmp_path: Path) -> None:
    first = [("row", FakeStep(name)) for name in "abcdefg"]
    found = schedule(tmp_path, first, [("row", FakeStep("of another seed"))], seconds=0.3 * execution.BUNDLE_S)

    def labels(at_once: int) -> list[str]:
        return [node.step.label for node in found.next([], at_once)]

    assert labels(4) == ["a", "b"], "eight are ready and there are four to do them"
    assert labels(1) == ["c", "d", "e"], "a bundle of work"
    assert labels(1) == ["f", "g"]
    assert labels(1) == ["of another seed"], "a process has one cohort open at a time"


def test_of_steps_that_were_lost_together_each_is_tried_alone(tmp_path: Path) -> None:
    found = schedule(tmp_path, [(name, FakeStep(name)) for name in "ab"], seconds=0.1)
    job = found.next([], 1)
    assert len(job) == 2
    with logs.kept(tmp_path / "out", "run"):
        found.take(job, Outcome(frozenset(), "lost"))
        assert found.failures == [{}]
        for _ in range(2):
            (node,) = found.next([], 1)
            found.take([node], Outcome(frozenset(), "lost" if node.step.label == "a" else ""))
    assert list(map(failed_rows, found.failures)) == [{"a": "lost"}]
    assert found.through() == [0]
    lost = [line for line in logs.Reader(tmp_path / "out").new() if line["what"] == "step-lost"]
    assert [line["label"] for line in lost] == ["a", "b", "a"], "every line names its step"


def test_all_steps_that_were_computed_together_teach_the_time_left(tmp_path: Path) -> None:
    now = 0.0
    left = TimeLeft(0.4, clock=lambda: now)
    found = schedule(tmp_path, [("row", FakeStep(name)) for name in "abcd"], seconds=0.1, done=left.step)
    job = found.next([], 1)
    now = 0.6
    # Another run on the folder has computed the first one.
    found.take(job, Outcome(frozenset(node.key for node in job[1:])))
    assert (left.done, left.estimated, left.spent) == (pytest.approx(0.4), pytest.approx(0.3), 0.6)


def test_several_processes_are_guessed_to_be_through_sooner(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grids: list[TimeLeft] = []

    class Guessed(TimeLeft):
        def __post_init__(self) -> None:
            super().__post_init__()
            grids.append(self)

    execute(data, tmp_path / "out", jobs=1)
    monkeypatch.setattr("neurobench.heartbeat.TimeLeft", Guessed)
    for jobs in (1, 4):
        # Everything is stored, and nothing is started.
        execute(data, tmp_path / "out", jobs=jobs)
    alone, four = (left for left in grids if left.total)
    assert four.total == pytest.approx(alone.total / 4)
    assert (alone.done, four.done) == (pytest.approx(alone.total), pytest.approx(four.total))


def test_a_step_waits_for_those_that_its_identity_names(tmp_path: Path) -> None:
    a, b = FakeStep("a"), FakeStep("b")
    both = FakeStep("both", (digest(a.identity), digest(b.identity)))
    later = FakeStep("later")
    found = schedule(tmp_path, [("row", both), ("row", a), ("other", b), ("other", a)], [("row", later)])
    running: list[Any] = []
    for name in ("a", "b", "later"):
        running.append(found.next(running, 4))
        assert [node.step.label for node in running[-1]] == [name]
    first, second, third = running
    assert found.next(running, 4) is None
    done(found, first)
    assert found.next([second, third], 4) is None, "b is still under way"
    done(found, second)
    assert found.through() == []
    done(found, third)
    assert found.through() == [1], "the second one's only step is done"
    last = found.next([], 4)
    assert last[0].step.label == "both"
    done(found, last)
    assert found.through() == [0]


def test_of_short_jobs_more_are_under_way(tmp_path: Path) -> None:
    for seconds, n in ((0.01, 6), (10.0, 2)):
        found = schedule(tmp_path, *([("row", FakeStep(f"{name}"))] for name in "abcdef"), seconds=seconds)
        running: list[Any] = []
        while (job := found.next(running, 2)) is not None:
            running.append(job)
        assert len(running) == n


class DyingWorkers(Workers):
    """One process, which does short jobs before anybody looks, and dies at one of them, as is noticed at another."""

    n = 1

    def __init__(self, kills: str, noticed: str) -> None:
        self.kills, self.noticed = kills, noticed
        self.asked: list[str] = []
        self.dying: list[Future[Outcome]] = []

    def submit(self, dataset: str, seed: int, steps: Sequence[tuple[str, str]], needs: Needs) -> Future[Outcome]:
        ((_, key),) = steps
        self.asked.append(key)
        if key == self.noticed and self.dying:
            self.dying.pop().set_exception(BrokenProcessPool())
            raise BrokenProcessPool
        future: Future[Outcome] = Future()
        if key != self.kills:
            future.set_result(Outcome(frozenset([key])))
        elif self.asked.count(key) == 1:
            self.dying.append(future)
        else:
            future.set_exception(BrokenProcessPool())
        return future

    def renew(self, broken: BrokenProcessPool) -> None:
        """There is another one at once."""

    def close(self, *, at_once: bool) -> None:
        """Nothing is there."""


def test_who_had_ended_before_a_process_died_is_not_to_blame(tmp_path: Path) -> None:
    a, b, c, d = (FakeStep(name) for name in "abcd")
    run = SimpleNamespace(needs=lambda row, stage: {}, dataset=SimpleNamespace(label="fake"), seed=0)
    todo: list[Any] = [Todo(run, [(use("row"), step)]) for step in (a, b, c, d)]  # type: ignore[arg-type,list-item]
    executor, workers = Executor(Store(tmp_path / "out"), Silent()), DyingWorkers(c.key, d.key)
    ended = execution.on_workers(todo, executor, lambda step: 0.01, lambda seconds, computed: None, lambda: workers)
    failures = {one.steps[0][1].label: failed for one, failed in ended}
    assert {label for label, failed in failures.items() if failed} == {"c"}
    assert "ended twice without an error" in failed_rows(failures["c"])["row"]
    assert [workers.asked.count(step.key) for step in (a, b, c, d)] == [1, 1, 2, 2]
    assert executor.computed == {a.key, b.key, d.key}


def test_processes_that_died_before_they_began_are_to_blame_for_no_step(tmp_path: Path) -> None:
    class StillBorn(DyingWorkers):
        have_begun = False

        def renew(self, broken: BrokenProcessPool) -> None:
            self.have_begun = True

    a, b = FakeStep("a"), FakeStep("b")
    run = SimpleNamespace(needs=lambda row, stage: {}, dataset=SimpleNamespace(label="fake"), seed=0)
    todo: list[Any] = [Todo(run, [(use("row"), step)]) for step in (a, b)]  # type: ignore[arg-type,list-item]
    executor, workers = Executor(Store(tmp_path / "out"), Silent()), StillBorn(a.key, b.key)
    said: list[str] = []
    executor.progress.note = said.append  # type: ignore[method-assign]
    with logs.kept(tmp_path / "out", "run"):
        ended = list(
            execution.on_workers(todo, executor, lambda step: 0.01, lambda seconds, computed: None, lambda: workers)
        )
    assert [one.steps[0][1].label for one, failed in ended if failed] == ["a"], "it dies of it once they have begun"
    assert said[0] == "a process ended without a word, before it began; others are started."
    lost = [line["label"] for line in logs.Reader(tmp_path / "out").new() if line["what"] == "step-lost"]
    assert lost.count("a") >= 2
    assert workers.asked.count(a.key) == 3


def test_processes_are_started_once_more_and_no_oftener(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Processes, "_open", lambda self: None)
    workers = Processes(RunConfig(), 2)
    workers._ready, workers._pool = Future(), SimpleNamespace(shutdown=lambda **options: None)  # type: ignore[assignment]
    workers._ready.set_exception(BrokenProcessPool())
    workers.renew(BrokenProcessPool())
    with pytest.raises(NeurobenchError, match="could not be started"):
        workers.renew(BrokenProcessPool())


def test_who_asks_twice_does_not_wait_for_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    class Slow:
        def terminate(self) -> None:
            done.append("asked")

        def join(self, seconds: float) -> None:
            assert 0 < seconds <= LAST_STEP_S
            raise KeyboardInterrupt

        def kill(self) -> None:
            done.append("killed")

    monkeypatch.setattr(Processes, "_open", lambda self: None)
    workers = Processes(RunConfig(), 1)
    workers._pool = SimpleNamespace(shutdown=lambda **options: None)  # type: ignore[assignment]
    monkeypatch.setattr(execution.multiprocessing, "active_children", lambda: [Slow()])
    with pytest.raises(KeyboardInterrupt):
        workers.close(at_once=True)
    assert done == ["asked", "killed"]


def test_what_was_left_by_a_worker_is_next_again_and_beside_others(tmp_path: Path) -> None:
    found = schedule(tmp_path, [(name, FakeStep(name)) for name in "abc"])
    a = found.next([], 2)
    b = found.next([a], 2)
    for _ in range(3):
        found.take(a, Outcome(frozenset(), abandoned=True))
        assert found.next([b], 2) == a
    assert found.failures == [{}]


def test_of_a_job_that_was_left_what_is_through_counts(tmp_path: Path) -> None:
    found = schedule(tmp_path, [(name, FakeStep(name)) for name in "abc"], seconds=0.1)
    job = found.next([], 1)
    a, b, c = job
    found.take(job, Outcome(frozenset([a.key]), failed={b.key: "ValueError: no"}, abandoned=True))
    assert list(map(failed_rows, found.failures)) == [{"b": "ValueError: no"}]
    assert found.next([], 1) == [c]


def test_a_row_that_failed_is_left_and_who_shares_its_steps_goes_on(tmp_path: Path) -> None:
    a = FakeStep("a")
    mine, shared = FakeStep("mine", (digest(a.identity),)), FakeStep("shared", (digest(a.identity),))
    found = schedule(tmp_path, [("row", a), ("row", mine), ("row", shared), ("other", shared)])
    told: list[tuple[str, str]] = []
    found._progress.failed = lambda label, error: told.append((label, error))
    done(found, found.next([], 1), "ValueError: no")
    assert list(map(failed_rows, found.failures)) == [{"row": "ValueError: no"}]
    assert told == [("a", "ValueError: no")]
    assert found.next([], 1)[0].step.label == "shared"
    assert found.next([], 1) is None


def test_steps_beside_a_process_that_died_are_tried_alone(tmp_path: Path) -> None:
    found = schedule(tmp_path, [(name, FakeStep(name)) for name in "abc"])
    a = found.next([], 2)
    b = found.next([a], 2)
    found.again(a)
    found.again(b)
    alone = found.next([], 2)
    assert alone in (a, b)
    assert found.next([alone], 2) is None, "not beside another one"
    found.again(alone)
    assert "ended twice" in failed_rows(found.failures[0])[alone[0].step.label]
    other = found.next([], 2)
    assert other in (a, b)
    assert found.next([other], 2) is None, "the last suspect runs alone too"
    done(found, other)
    last = found.next([], 2)
    assert last[0].step.label == "c"
    found.put_back(last)
    assert found.next([], 2) == last

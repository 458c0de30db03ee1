"""What runs say of themselves: who looks, who stops one, and what is said of results that are not complete."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from rich.console import Console
from typer.testing import CliRunner

import neurobench
from neurobench import console, heartbeat, runs
from neurobench.cli import app
from neurobench.cli_runs import detached, stopped_by_signals
from neurobench.errors import ConfigError, NeurobenchError, StoreError
from neurobench.heartbeat import Heartbeat
from neurobench.identity import digest
from neurobench.progress import Silent
from neurobench.results import OF_THE_RUN
from neurobench.steps import Row, Use
from neurobench.store import Store
from tests.fakes import write_folder
from tests.tiny_run import PLUGIN, execute

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_folder(folder, n_subjects=24)
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    Store(tmp_path / "out")
    return tmp_path / "out"


def state(**changes: Any) -> runs.State:
    """Return a run of this process that spoke just now."""
    now = time.time()
    me = os.getpid()
    fields: dict[str, Any] = {"id": "20260101-000000-aaaa", "command": "neurobench run", "host": socket.gethostname()}
    fields |= {"pid": me, "process": runs.process_mark(me), "version": "0", "started": now - 60.0, "heard": now}
    return runs.State(**fields | changes)


def said(overview: runs.Overview, width: int = 160, **options: Any) -> str:
    """Return what is printed of a folder."""
    screen = Console(file=io.StringIO(), width=width)
    console.print_overview(overview, screen, **options)
    return screen.file.getvalue()  # type: ignore[attr-defined]


# ---------------------------------------------------------------- a run


def test_a_run_says_what_failed_and_its_records_come_with_each_seed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    seen: list[tuple[set[int], list[str]]] = []
    written = Heartbeat.written

    def look(self: Heartbeat, *args: Any) -> None:
        written(self, *args)
        self._say()
        seen.append((set(neurobench.load_results(out)["seed"]), runs.partial(out)))

    monkeypatch.setattr(Heartbeat, "written", look)
    result = execute(data, out, backbone="breaks_in_training,tiny", task="age", folds=2, seed="0,1")
    found = runs.overview(out)
    (one,) = found.runs
    assert [seeds for seeds, _ in seen] == [{0}, {0, 1}]
    half = f"the records of {one.n_rows // 2} of its {one.n_rows} rows are written"
    assert seen[0][1] == [f"Partial: run {one.id} is still under way; {half}."]
    assert half in caplog.text, "load_results says so too"
    assert (one.state, runs.partial(out)) == ("finished", [])
    assert (one.n_computed, one.n_found) == (result.n_computed, result.n_stored)
    assert one.n_rows == one.n_written == len(found.rows) > 10
    rows = {(r.row, r.seed): r for r in found.rows}
    assert rows["tiny · roi", 0].state == "done"
    broken = [r for r in found.rows if r.backbone == "breaks_in_training"]
    assert {r.state for r in broken} == {"failed"}
    # A row is through without its site leak, which is only shown beside its scores.
    missing = sum(r.n_steps - r.n_stored for r in broken) + len(broken)
    assert missing == one.n_steps - one.n_computed - one.n_found
    assert any(error == "RuntimeError: lost the thread" for _, error in one.errors)
    assert "lost the thread" in said(found)


@pytest.mark.slow
def test_records_of_a_run_of_two_seeds_are_those_of_two_runs(data: Path, tmp_path: Path) -> None:
    both = execute(data, tmp_path / "both", task="age,reconstruction", folds=2, seed="0,1").table
    alone = [execute(data, tmp_path / "alone", task="age,reconstruction", folds=2, seed=s).table for s in ("0", "1")]
    joined = pd.concat(alone, ignore_index=True)
    pd.testing.assert_frame_equal(both.drop(columns="seconds"), joined.drop(columns="seconds"))

    def records(out: Path) -> dict[str, Any]:
        plain = {p.name: json.loads(p.read_text(encoding="utf-8")) for p in (out / "records").iterdir()}
        return {n: {k: v for k, v in r.items() if k not in {*OF_THE_RUN, "cost"}} for n, r in plain.items()}

    assert records(tmp_path / "both") == records(tmp_path / "alone")


def test_a_run_that_is_asked_to_stop_is_interrupted_and_says_so(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_S", 0.02)

    def work() -> None:
        with Heartbeat(out, Silent()) as run, run.stage("prepare something"):
            one = runs.under_way(out)
            runs.ask_to_stop(out, one.id)
            # Where a run waits for others: a lock, which only a signal to this very thread lets go.
            time.sleep(30.0)

    with pytest.raises(KeyboardInterrupt):
        work()
    (one,) = runs.read_runs(out)
    assert (one.state, one.at_work) == ("cancelled", [])


def test_on_a_full_disk_a_run_still_says_how_it_ended(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(out: Path, state: runs.State) -> None:
        raise StoreError("the disk is full.")

    run = Heartbeat(out, Silent()).__enter__()
    monkeypatch.setattr(runs, "write_state", full)
    run.__exit__(StoreError, StoreError("the disk is full."), None)
    (one,) = runs.read_runs(out)
    assert (one.state, one.error) == ("failed", "StoreError: the disk is full.")


def test_a_run_makes_no_folder_in_the_place_of_one_that_was_removed(out: Path) -> None:
    with Heartbeat(out, Silent()) as run:
        shutil.rmtree(out)
        run._say()
    assert not out.exists()


def test_who_presses_ctrl_c_again_is_told_that_the_run_was_cancelled(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Heartbeat(out, Silent())
    join = run._thread.join

    def interrupted(*of: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        join(*of)

    monkeypatch.setattr(run._thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt), run:
        raise KeyboardInterrupt
    assert [one.state for one in runs.read_runs(out)] == ["cancelled"]


def test_what_ends_a_run_is_told(out: Path) -> None:
    with pytest.raises(StoreError), Heartbeat(out, Silent()):
        raise StoreError("the disk is full.")
    (one,) = runs.read_runs(out)
    assert (one.state, one.error) == ("failed", "StoreError: the disk is full.")
    assert "Partial: run" in runs.partial(out)[0]
    assert "failed; none of its records were written" in runs.partial(out)[0]


def test_a_step_that_fails_elsewhere_is_told_at_once(out: Path) -> None:
    store, row = Store(out), Row("baseline", "mean")
    steps = [
        (Use(row, ("age",)), SimpleNamespace(stage="baseline", label=s, identity={"of": s}, key=digest({"of": s})))
        for s in ("a", "b", "c")
    ]
    todo: Any = SimpleNamespace(run=SimpleNamespace(dataset=SimpleNamespace(label="fake"), seed=0), steps=steps)
    executor: Any = SimpleNamespace(store=store, computed=set(), stored=set())
    with Heartbeat(out, Silent()) as run:
        run.plan([todo], executor)
        run.at_work(["a", "b"])
        executor.computed.add(digest({"of": "a"}))
        run.failed("b", "ValueError: no")
        run.failed("prepare something", "is no step")
        run.at_work(["c"])
        run._say()
        (meanwhile,) = runs.read_runs(out)
        assert meanwhile.errors == [["b", "ValueError: no"]]
        assert [label for label, _ in meanwhile.at_work] == ["c"]
        # Stopped: what is under way then has not failed.
        run.at_work([])
        run.written(todo, {(row, "age"): "ValueError: no"})
    (one,) = runs.read_runs(out)
    assert one.errors == [["b", "ValueError: no"]]
    assert (one.n_steps, one.n_computed, one.n_failed) == (3, 1, 1)
    assert (one.failed_rows, one.n_written) == ([0], 1)


def test_a_row_is_through_without_what_is_only_shown_beside_its_scores(out: Path) -> None:
    row = Row("baseline", "mean")
    needed, beside = (
        SimpleNamespace(stage="reconstruction", label=s, identity={"of": s}, key=digest({"of": s})) for s in "ab"
    )
    steps = [(Use(row, ("age",)), needed), (Use(row, ("age",), needed=False), beside)]
    todo: Any = SimpleNamespace(run=SimpleNamespace(dataset=SimpleNamespace(label="fake"), seed=0), steps=steps)
    executor: Any = SimpleNamespace(store=Store(out), computed={needed.key}, stored=set())
    with executor.store.write("reconstruction", needed.identity, "a"):
        pass
    with Heartbeat(out, Silent()) as run:
        run.plan([todo], executor)
        run.failed("b", "ValueError: no")
        run.written(todo, {})
    looked = runs.overview(out)
    (one,) = looked.rows
    assert (one.n_stored, one.n_steps, one.failed) == (1, 1, False)
    assert (looked.runs[0].n_steps, looked.runs[0].n_failed) == (2, 1)


# ---------------------------------------------------------------- others look


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_run_died_when_it_is_silent_and_its_process_is_gone_or_another_one(out: Path) -> None:
    now = time.time()

    def seen(**changes: Any) -> str:
        runs.write_state(out, state(**changes))
        return runs.read_runs(out)[0].state

    assert seen() == "running"
    assert seen(heard=now - 3600.0) == "running", "asleep, not dead"
    assert seen(process="1", heard=now - 20.0) == "died"
    assert seen(process="1") == "running", "it spoke just now: its process may be one that is not seen from here"
    assert seen(host="elsewhere", heard=now - 60.0) == "running"
    assert seen(host="elsewhere", heard=now - 600.0) == "died"
    assert seen(state="finished", heard=now - 1e6, process="1") == "finished"
    assert "died" in said(runs.overview(out)) or "finished" in said(runs.overview(out))


def test_what_cannot_be_read_is_no_run(out: Path) -> None:
    for name, text in (("one", "{"), ("two", "[]"), ("three", '{"id": 1}')):
        (out / "runs" / name).mkdir(parents=True)
        (out / "runs" / name / "state.json").write_text(text, encoding="utf-8")
    assert runs.read_runs(out) == []
    assert runs.overview(out).rows == ()


def test_old_runs_are_forgotten(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "KEPT", 2)
    for n in range(4):
        runs.write_state(out, state(id=f"2026010{n}-000000-aaaa", state="finished"))
    runs.write_state(out, state(id="20250101-000000-aaaa"))
    runs.tidy(out)
    kept = [s.id[:8] for s in runs.read_runs(out)]
    assert kept == ["20250101", "20260103", "20260102"], "the one under way stays, and is first"


def test_which_run_is_meant(out: Path) -> None:
    with pytest.raises(ConfigError, match="no run is under way"):
        runs.under_way(out)
    runs.write_state(out, state(id="a1", state="cancelled"))
    with pytest.raises(ConfigError, match="the last one, a1, was cancelled"):
        runs.under_way(out)
    runs.write_state(out, state(id="b1"))
    assert runs.under_way(out).id == "b1"
    with pytest.raises(ConfigError, match="not under way") as error:
        runs.under_way(out, "b2")
    assert error.value.likely == "b1"
    runs.write_state(out, state(id="b2"))
    with pytest.raises(ConfigError, match="2 runs are under way"):
        runs.under_way(out)
    assert runs.under_way(out, "b2").id == "b2"
    assert CliRunner().invoke(app, ["cancel", str(out)]).exit_code == 2
    with pytest.raises(StoreError, match="is not an output folder"):
        runs.under_way(out / "nowhere")


def test_a_run_whose_clock_is_behind_is_watched_before_it_is_taken_for_dead(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "WATCH_S", 0.3)
    now, slept = time.time(), []
    behind = state(id="a1", host="node1", heard=now - 600.0, started=now - 900.0)
    runs.write_state(out, behind)
    runs.write_state(out, state(id="b1", host="node2", heard=now - 600.0))
    runs.write_state(out, state(id="c1", host="node3", heard=now - 2 * runs.SKEW_S))
    assert "died · 10 min ago by the clock of node" in said(runs.overview(out), 200)

    def speaks(seconds: float) -> None:
        slept.append(seconds)
        runs.write_state(out, replace(behind, heard=behind.heard + len(slept)))

    monkeypatch.setattr(runs.time, "sleep", speaks)
    assert [(s.id, s.state) for s in runs.watched_runs(out)] == [("a1", "running"), ("c1", "died"), ("b1", "died")]
    assert slept == [0.3]
    assert runs.under_way(out).id == "a1"

    def stops(seconds: float) -> None:
        word = "cancelled" if seconds < 0.3 else "running"
        runs.write_state(out, replace(behind, heard=behind.heard + 9.0, state=word))

    monkeypatch.setattr(runs.time, "sleep", stops)
    done = CliRunner().invoke(app, ["cancel", str(out)])
    assert done.exit_code == 0
    assert "cancelled: 0 of 0 steps" in done.output
    assert runs.asked_to_stop(out, "a1")
    slept.clear()
    monkeypatch.setattr(runs.time, "sleep", slept.append)
    runs.write_state(out, state(id="b1", host="node2", heard=now - 2 * runs.SKEW_S))
    assert runs.watched_runs(out) == runs.read_runs(out)
    assert slept == [], "nobody waits for what has been silent for long"


def test_a_run_whose_clock_is_ahead_says_so(out: Path) -> None:
    runs.write_state(out, state(host="node1", heard=time.time() + 630.0))
    assert "its clock is 10 min ahead of this one's" in said(runs.overview(out), 200)


def planned(n_backbones: int, n_masks: int, n_seeds: int, out: Path) -> list[runs.PlannedRow]:
    """Return rows of three steps each; the steps of the first seed are stored."""
    rows = []
    for seed in range(n_seeds):
        for b in range(n_backbones):
            for m in range(n_masks):
                keys = [digest([seed, b, m, fold]) for fold in range(3)]
                if seed == 0:
                    for key in keys:
                        (out / "store" / "pretraining" / key).mkdir(parents=True)
                steps = {"pretraining": "".join(k[: runs.KEY] for k in keys)}
                rows.append(runs.PlannedRow("fake", seed, f"b{b} · m{m}", "pretrained", f"b{b}", f"m{m}", steps))
    return rows


def test_a_grid_of_ten_thousand_is_looked_at_by_opening_three_files(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = planned(10, 20, 50, out)
    one = state(n_rows=len(rows), at_work=[["step", [200, 201]]], failed_rows=[202], n_steps=30_000, n_computed=600)
    runs.write_state(out, one)
    runs.write_plan(out, one.id, rows)
    opened: list[Any] = []
    original = io.open

    def count(file: Any, *args: Any, **named: Any) -> Any:
        opened.append(file)
        return original(file, *args, **named)

    monkeypatch.setattr(io, "open", count)
    found = runs.overview(out)
    monkeypatch.undo()
    mine = [f for f in opened if str(f).startswith(str(out))]
    assert sorted(Path(f).name for f in mine) == ["plan.json", "state.json"]
    states = pd.Series([r.state for r in found.rows]).value_counts().to_dict()
    assert states == {"done": 200, "at work": 2, "failed": 1, "to come": 9797}
    text = said(found)
    assert "600 of 30,000 steps" in text
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert any(line.startswith("fake b0 1,000 20 2 1 977 60 of 3,000") for line in lines), text
    assert any(line.startswith("all 10,000 200 2 1 9,797 600 of 30,000") for line in lines)
    assert len(lines) < 30
    assert len(said(found, all_rows=True).splitlines()) > 10_000, "a line a row"


@pytest.mark.parametrize(
    ("width", "head"),
    [
        (40, "dataset backbone steps"),
        (80, "dataset backbone rows done at work failed to come steps"),
        (120, "dataset backbone rows done at work failed to come steps"),
    ],
)
def test_a_narrow_terminal_keeps_names_and_steps(out: Path, width: int, head: str) -> None:
    runs.write_state(out, one := state(n_rows=4, n_steps=12))
    runs.write_plan(out, one.id, planned(2, 1, 2, out))
    lines = [" ".join(line.split()) for line in said(runs.overview(out), width).splitlines()]
    assert head in lines
    (row,) = (line for line in lines if line.startswith("fake b0"))
    assert "3 of 6" in row
    assert ("━" in row) == (width == 120)


def test_rows_of_one_name_are_told_apart(out: Path) -> None:
    rows = [runs.PlannedRow("fake", 0, "mean", kind, "", "", {"baseline": "0" * 12}) for kind in ("baseline", "filler")]
    runs.write_state(out, one := state(n_rows=2, n_steps=2))
    runs.write_plan(out, one.id, rows)
    lines = [" ".join(line.split()) for line in said(runs.overview(out), all_rows=True).splitlines()]
    assert "dataset seed row kind state stored at work" in lines
    assert [line for line in lines if line.startswith("fake")] == [
        "fake 0 mean baseline to come 0 of 1",
        "fake 0 mean filler to come 0 of 1",
    ]


def test_what_is_nested_too_deeply_is_as_if_it_were_not_there(out: Path) -> None:
    runs.write_state(out, one := state(n_rows=1))
    deep = "[" * 100_000
    (runs.folder_of(out, one.id) / "plan.json").write_text(deep)
    assert runs.overview(out).rows == ()
    (runs.folder_of(out, one.id) / "state.json").write_text(deep)
    assert runs.read_runs(out) == []


def test_two_runs_on_one_grid_are_one_table(out: Path) -> None:
    rows = planned(1, 3, 2, out)
    for name, at_work in (("a", [3]), ("b", [4])):
        one = state(
            id=name, n_rows=len(rows), at_work=[[f"step {name}", at_work]], failed_rows=[5] if name == "a" else []
        )
        runs.write_state(out, one)
        runs.write_plan(out, name, rows)
    found = runs.overview(out)
    assert [s.id for s in found.runs] == ["b", "a"]
    assert [r.state for r in found.rows] == ["done"] * 3 + ["at work"] * 2 + ["to come"]


def test_watching_in_a_pipe_says_what_changed_and_ends_with_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    one = state(n_steps=4)
    changes = [one, one, replace(one, n_computed=2, at_work=[("step", [0])]), replace(one, state="cancelled")]
    looks = iter([runs.Overview([s], [], {}) for s in changes])
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    screen = Console(file=io.StringIO(), width=160)
    console.watch_overview(lambda: next(looks), screen, every=1.0)
    lines = screen.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(lines) == 3, lines
    assert "under way · 0 of 4 steps" in lines[0]
    assert "2 of 4 steps (0 found stored) · at work: step" in lines[1]
    assert "cancelled" in lines[2]


def test_watching_on_a_terminal_draws_until_no_run_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([runs.Overview([s], [], {"cohort": 1}) for s in (state(), state(state="finished"))])
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    screen = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    console.watch_overview(lambda: next(looks), screen, every=1.0)
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    assert text.index("under way") < text.index("finished")
    assert next(looks, None) is None


def test_what_is_partial_is_said(out: Path) -> None:
    runs.write_state(out, state(id="a", state="cancelled", n_rows=4, n_written=2))
    assert runs.partial(out) == [
        "Partial: run a was cancelled; the records of 2 of its 4 rows are written. The same command goes on."
    ]
    runs.write_state(out, state(id="b", state="finished", n_rows=4, n_written=4))
    assert runs.partial(out) == []
    runs.write_state(out, state(id="0"))
    assert runs.partial(out) == ["Partial: run 0 is still under way; none of its records are written yet."]


def test_a_folder_that_cannot_be_written_is_said_before_a_run_is_detached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir = Path.mkdir

    def refused(path: Path, *arguments: Any, **options: Any) -> None:
        if path.parent.name == "runs":
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        mkdir(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(StoreError, match="cannot be written: Read-only file system"):
        detached(tmp_path / "out", as_json=False)


# ---------------------------------------------------------------- signals


def test_sigterm_is_ctrl_c_and_what_is_ignored_stays_ignored() -> None:
    before = signal.getsignal(signal.SIGTERM)
    hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def work() -> None:
        with stopped_by_signals():
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5.0)

    try:
        with pytest.raises(KeyboardInterrupt):
            work()
        assert signal.getsignal(signal.SIGTERM) is before
    finally:
        signal.signal(signal.SIGHUP, hangup)


# ---------------------------------------------------------------- real ones

COMMON = (*("--plugin", str(PLUGIN), "--backbone", "tiny", "--mask", "roi", "--dataset", "fake"),)


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "neurobench", *words]


def call(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*words), capture_output=True, text=True, cwd=ROOT, check=False, timeout=120)


@pytest.fixture
def running(data: Path, tmp_path: Path) -> Iterator[tuple[list[str], Path]]:
    """Return the options of a run that takes longer than a test waits, and its output folder."""
    out = tmp_path / "out"
    yield [*COMMON, "--data-dir", str(data), "--out", str(out), "--task", "age", "--folds", "2", "--steps", "300"], out
    for one in runs.read_runs(out):
        if one.is_under_way and runs.process_mark(one.pid) == one.process:
            os.kill(one.pid, signal.SIGKILL)


def wait_for_work(out: Path) -> runs.State:
    """Return the run when something of it is stored."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        found = runs.read_runs(out)
        if found and found[0].n_computed:
            return found[0]
        time.sleep(0.1)
    raise AssertionError("nothing was computed in two minutes")


@pytest.mark.slow
def test_detach_watch_cancel_and_go_on(running: tuple[list[str], Path], data: Path, tmp_path: Path) -> None:
    options, out = running
    wrong = call("run", *options, "--detach", "--mask", "roy")
    assert wrong.returncode == 2
    assert "did you mean: roi" in wrong.stderr
    assert not out.exists()
    started = call("run", *options, "--detach", "--json", "--jobs", "2")
    assert started.returncode == 0, started.stderr
    run = json.loads(started.stdout)["run"]
    watching = subprocess.Popen(command("status", str(out), "--watch"), stdout=subprocess.PIPE, text=True, cwd=ROOT)
    one = wait_for_work(out)
    assert one.id == run
    assert "--detach" not in one.command
    assert " run --plugin " in one.command
    assert json.loads(call("status", str(out), "--json").stdout)["runs"][0]["state"] == "running"
    stopped = call("cancel", str(out))
    assert stopped.returncode == 0, stopped.stderr
    assert "cancelled: " in stopped.stdout
    text, _ = watching.communicate(timeout=60)
    assert f"run {run} under way" in text
    assert f"run {run} cancelled" in text.splitlines()[-1]
    assert "Stopped; everything finished is stored" in (out / "runs" / run / "output.txt").read_text(encoding="utf-8")
    give_up = time.monotonic() + 30
    while runs.process_mark(one.pid) == one.process and time.monotonic() < give_up:
        time.sleep(0.1)
    assert runs.process_mark(one.pid) != one.process
    assert call("cancel", str(out)).returncode == 2
    stored = sum(runs.overview(out).n_stored.values())
    assert call("run", *options, "--quiet").returncode == 0
    last = runs.read_runs(out)[0]
    assert last.state == "finished"
    assert 0 < last.n_found <= stored
    common: dict[str, Any] = {"n_steps": 300, "task": "age", "folds": 2}
    whole, again = (execute(data, folder, **common).table for folder in (tmp_path / "whole", out))
    pd.testing.assert_frame_equal(whole.drop(columns="seconds"), again.drop(columns="seconds"))


@pytest.mark.slow
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_sigterm_ends_a_run_as_ctrl_c_does(running: tuple[list[str], Path], jobs: str) -> None:
    options, out = running
    process = subprocess.Popen(
        command("run", *options, "--jobs", jobs), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    wait_for_work(out)
    process.send_signal(signal.SIGTERM)
    _, text = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Stopped; everything finished is stored" in text
    assert runs.read_runs(out)[0].state == "cancelled"
    found = call("store", "check", str(out))
    assert found.returncode == 0, found.stdout
    with pytest.raises(NeurobenchError):
        runs.under_way(out)


def test_an_exit_code_outlives_ctrl_c_while_code_in_a_string_ran(tmp_path: Path) -> None:
    (tmp_path / "stopped.py").write_text(
        """
import neurobench.cli
from neurobench.__main__ import main

def app():
    try:
        exec("raise KeyboardInterrupt")
    except KeyboardInterrupt:
        raise SystemExit(130) from None

neurobench.cli.app = app
main()
""",
        encoding="utf-8",
    )
    found = subprocess.run([sys.executable, "-m", "stopped"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (130, "")


def test_what_draws_prints_no_document(out: Path) -> None:
    done = CliRunner().invoke(app, ["status", str(out), "--watch", "--json"])
    assert done.exit_code == 2
    assert "Use one of them" in done.output

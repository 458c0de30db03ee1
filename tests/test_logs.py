"""The log of a run: whole lines of every process, each with the step that it belongs to."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from neurobench import cli_log, logs
from neurobench.cli import app
from neurobench.errors import DataError
from neurobench.interrupts import Abandoned
from tests import tiny_run
from tests.fakes import write_folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_folder(folder, n_subjects=24)
    return folder


def lines_of(out: Path) -> list[dict[str, Any]]:
    return logs.Reader(out).new()


def test_a_line_has_when_who_and_the_step_it_belongs_to(tmp_path: Path) -> None:
    with logs.kept(tmp_path, "a-run"), logs.at(dataset="d", seed=0, row="mamba · roi"):
        with logs.step("pretraining", "pretrain it", "abc"):
            logging.getLogger("neurobench.store").warning("%s is damaged", "that")
        logs.tell("losses", loss=float("nan"), step=3, message="")
    (file,) = (tmp_path / "logs" / "a-run").iterdir()
    text = file.read_text(encoding="utf-8")
    assert "mamba · roi" in text, "people look for rows with grep"
    started, message, finished, losses = (json.loads(line) for line in text.splitlines())
    assert list(started)[:5] == ["time", "level", "what", "run", "host"]
    assert (started["what"], message["what"], finished["what"]) == ("step-started", "message", "step-finished")
    assert (message["level"], message["logger"]) == ("warning", "neurobench.store")
    assert message["message"] == "that is damaged"
    for line in (started, message, finished):
        assert (line["pid"], line["run"], line["row"]) == (os.getpid(), "a-run", "mamba · roi")
        assert (line["stage"], line["label"], line["key"]) == ("pretraining", "pretrain it", "abc")
    assert finished["seconds"] >= 0
    assert losses["loss"] == "nan"
    assert "label" not in losses


def test_what_failed_says_where_it_came_from_unless_it_was_meant(tmp_path: Path) -> None:
    with logs.kept(tmp_path, "r"):
        for error in (DataError("no such column."), RuntimeError("lost the thread")):
            with pytest.raises(type(error)), logs.step("evaluation", "score", "k"):
                raise error
    meant, not_meant = (line for line in lines_of(tmp_path) if line["what"] == "step-failed")
    assert (meant["error"], meant["level"], "traceback" in meant) == ("DataError: no such column.", "error", False)
    assert "test_logs.py" in not_meant["traceback"]


@pytest.mark.parametrize("error", [Abandoned("the worker leaves, and another one goes on."), KeyboardInterrupt()])
def test_a_step_that_was_stopped_is_left_and_has_not_failed(tmp_path: Path, error: BaseException) -> None:
    with logs.kept(tmp_path, "r"), pytest.raises(type(error)), logs.step("pretraining", "pretrain", "k"):
        raise error
    _, left = lines_of(tmp_path)
    assert (left["what"], left["level"]) == ("step-left", "info")
    assert left["message"] == (str(error) or "somebody asked to stop.")


def test_warnings_are_in_the_log_and_are_still_shown(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        inner = warnings.showwarning
        with logs.kept(tmp_path, "r"), logs.at(label="a step"):
            warnings.warn("careful", RuntimeWarning, stacklevel=1)
        assert warnings.showwarning is inner
    del shown
    (line,) = lines_of(tmp_path)
    assert (line["what"], line["message"], line["label"]) == ("warning", "RuntimeWarning: careful", "a step")
    assert "test_logs.py" in line["where"]


def test_a_library_that_says_nothing_but_its_error_is_shown_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    with logs.shown():
        try:
            raise OSError("the scheduler is gone")
        except OSError:
            logging.getLogger("some.library").exception("")
    assert capsys.readouterr().err == "some.library: OSError: the scheduler is gone\n"


def test_without_handlers_of_a_program_warnings_of_loggers_are_shown_as_python_does(tmp_path: Path) -> None:
    code = (
        "import logging; from pathlib import Path; from neurobench import logs\n"
        f"with logs.kept(Path({str(tmp_path)!r}), 'r'):\n"
        "    logging.getLogger('neurobench.store').warning('careful')\n"
        "    logs.tell('step-failed', level=logging.ERROR)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "careful\n"


def test_a_killed_process_leaves_whole_lines(tmp_path: Path) -> None:
    code = (
        "import os, signal; from pathlib import Path; from neurobench import logs\n"
        f"with logs.kept(Path({str(tmp_path)!r}), 'r'):\n"
        "    for _ in range(100): logs.tell('message', 'x' * 20_000)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL
    reader = logs.Reader(tmp_path)
    assert len(reader.new()) == 100
    assert (reader.n_broken, reader.n_unfinished()) == (0, 0)


DEEP = b"[" * 100_000
"""More lists in each other than the stack holds."""


def test_files_are_read_together_by_time_and_broken_lines_are_counted(tmp_path: Path) -> None:
    folder = tmp_path / "logs" / "r"
    folder.mkdir(parents=True)
    first, second = folder / "a-1.jsonl", folder / "b-2.jsonl"
    first.write_bytes(b'{"time": "1", "what": "x"}\n{"time": "3"}\n{"ti\n[1]\n\xff\n' + DEEP + b'\n{"time": "5"')
    second.write_bytes(b'{"time": "2"}\n')
    reader = logs.Reader(tmp_path)
    assert [line["time"] for line in reader.new()] == ["1", "2", "3"]
    assert (reader.n_broken, reader.n_unfinished()) == (4, 1)
    with first.open("ab") as file:
        file.write(b"}\n")
    assert [line["time"] for line in reader.new()] == ["5"]
    assert (reader.new(), reader.n_unfinished()) == ([], 0)


def test_a_folder_that_takes_no_log_is_said_and_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "logs").write_text("a file")
    with logs.kept(tmp_path, "r"):
        logs.tell("run-started")
    assert "no log is kept" in caplog.text


def test_a_worker_that_is_a_thread_of_the_process_that_asks_writes_nothing_twice(tmp_path: Path) -> None:
    with logs.kept(tmp_path, "r"):
        logs.keep(tmp_path, "r")
        logs.tell("message", "once")
    logs.keep(tmp_path, "another")
    logs.tell("message", "of another run")
    logs.keep(tmp_path, "")
    logs.tell("message", "of none")
    # Two files, and one millisecond: which comes first is not said.
    said = sorted((line["run"], line.get("message", "")) for line in lines_of(tmp_path))
    assert said == [("another", ""), ("another", "of another run"), ("r", "once")]


@pytest.fixture
def logged(tmp_path: Path) -> Path:
    with logs.kept(tmp_path, "r"):
        for row, label in (("mamba · roi", "pretrain mamba"), ("connectome", "fit connectome")):
            with logs.at(row=row, dataset="camcan", seed=0), logs.step("pretraining", label, "k"):
                pass
        with pytest.raises(RuntimeError), logs.at(row="mamba · roi"), logs.step("evaluation", "score mamba", "k"):
            raise RuntimeError("lost\nthe thread")
    with (next((tmp_path / "logs" / "r").iterdir())).open("a") as file:
        file.write('{"time": "20')
    return tmp_path


def said(*arguments: object, exit_code: int = 0) -> str:
    result = CliRunner().invoke(app, ["log", *map(str, arguments)])
    assert result.exit_code == exit_code, result.output
    return result.output


def test_the_command_shows_one_row(logged: Path) -> None:
    everything = said(logged)
    assert everything.count("step-started") == 3
    assert "1 broken lines were skipped" in everything
    own = said(logged, "--row", "mamba · roi")
    assert "connectome" not in own
    assert "step-failed · score mamba · 0.0 s · RuntimeError: lost the thread" in own
    assert "test_logs.py" not in own
    assert "test_logs.py" in said(logged, "--row", "mamba · roi", "-v")
    assert said(logged, "--level", "warning").count("step-") == 1
    assert said(logged, "--dataset", "camcan").count("step-") == 4


def test_the_command_gives_lines_of_json(logged: Path) -> None:
    found = [json.loads(line) for line in said(logged, "--row", "connectome", "--json").splitlines()]
    assert [line["what"] for line in found] == ["step-started", "step-finished"]


def test_the_command_goes_on_with_what_is_written(logged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            raise KeyboardInterrupt
        with logs.kept(logged, "later"), logs.at(row="mamba · roi"):
            logs.tell("losses", step=50, loss=0.5)

    monkeypatch.setattr(cli_log.time, "sleep", sleep)
    shown = said(logged, "--row", "mamba · roi", "--follow")
    assert shown.count("step-started") == 2
    assert shown.rstrip().endswith("losses · step 50 · loss 0.5")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--row", "mamba · ro"), "did you mean: mamba · roi"),
        (("--level", "warn"), "did you mean: warning"),
        (("--dataset", "adhd"), "no line of the log is about the dataset 'adhd'"),
    ],
)
def test_what_nothing_is_about_is_refused(logged: Path, arguments: tuple[str, ...], says: str) -> None:
    assert says in said(logged, *arguments, exit_code=2)


def test_a_folder_without_a_log_is_refused(tmp_path: Path) -> None:
    assert "holds no log" in said(tmp_path, exit_code=1)


def test_with_json_what_is_said_on_the_error_stream_is_lines(data: Path, tmp_path: Path) -> None:
    arguments = ["run", "-b", "breaks_in_training", "-m", "roi", "-d", "fake", "-t", "age", "--jobs", "1"]
    arguments += ["--plugin", str(tiny_run.PLUGIN), "--data-dir", str(data), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*arguments, "--log-format", "json"])
    assert result.exit_code == 1
    lines = [json.loads(line) for line in result.stderr.splitlines()]
    assert {"run-started", "step-failed", "run-finished"} <= {line["what"] for line in lines}
    failed = [line for line in lines if line["what"] == "step-failed"]
    assert {line["error"] for line in failed} == {"RuntimeError: lost the thread"}
    assert {line["row"] for line in failed} == {"breaks_in_training · roi", "breaks_in_training · untrained"}
    assert lines[-1]["message"].startswith("2 rows failed")
    refused = CliRunner().invoke(app, ["run", "-b", "mambo", "-m", "roi", "--log-format", "json"])
    assert refused.exit_code == 2
    (line,) = (json.loads(line) for line in refused.stderr.splitlines())
    assert (line["level"], line["likely"]) == ("error", "mamba")


def test_a_format_that_is_none_is_refused() -> None:
    result = CliRunner().invoke(app, ["run", "-b", "mamba", "-m", "roi", "--log-format", "jsonl"])
    assert result.exit_code == 2
    assert "--log-format cannot be 'jsonl'" in result.output
    assert "did you mean: json" in result.output

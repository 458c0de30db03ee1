"""The runner: whole grids on tiny files, resumed, widened, broken half-way."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import neurobench
from neurobench import adaptation, attribution, planning, results, stages, store
from neurobench.config import RunConfig, expand
from neurobench.errors import DataError, StoreError
from neurobench.plugins import load_registry
from tests.fakes import write_folder
from tests.tiny_run import PLUGIN, execute

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_folder(folder, n_subjects=24)
    return folder


def test_a_whole_grid(data: Path, tmp_path: Path) -> None:
    result = execute(data, tmp_path / "out")
    table = result.table
    assert result.failed == ()
    assert set(table["task"]) == {"reconstruction", "age", "sex", "diagnosis"}
    assert (table["source"] == "real").all()
    kinds = table.groupby("task")["kind"].agg(set)
    assert kinds["reconstruction"] == {"pretrained", "untrained", "filler"}
    assert kinds["age"] == {"pretrained", "untrained", "baseline"}
    ages = table[table["task"] == "age"].set_index("row")
    assert {"mean", "covariates", "raw_signal", "connectome", "tangent"} <= set(ages.index)
    assert (ages["low"] <= ages["score"]).all()
    assert (ages["score"] <= ages["high"]).all()
    assert (ages["n_subjects"] == 24).all()
    # The twin has no age effect in its site or sex, but a strong one in the signal.
    assert ages.loc["raw_signal", "score"] < ages.loc["mean", "score"]


def test_the_same_command_again_computes_nothing_and_gives_the_same_table(data: Path, tmp_path: Path) -> None:
    first = execute(data, tmp_path / "out")
    second = execute(data, tmp_path / "out")
    assert first.n_computed > 20
    assert (second.n_computed, second.n_stored) == (0, first.n_computed)
    pd.testing.assert_frame_equal(first.table, second.table)


def test_a_wider_grid_computes_only_what_is_new(data: Path, tmp_path: Path) -> None:
    narrow = execute(data, tmp_path / "out", task="age")
    wider = execute(data, tmp_path / "out", task="age,sex")
    # Sex adds evaluations and the covariates that leave sex out; nothing is pretrained or embedded again.
    assert narrow.n_computed > wider.n_computed > 0
    stages = store.stored_steps(tmp_path / "out").groupby("stage").size()
    # One of each fold, and one untrained network for both.
    assert stages["pretraining"] == 3
    assert stages["embedding"] == 4


def test_two_runs_with_one_seed_give_the_same_bytes(data: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        execute(data, tmp_path / name, task="age")

    def weights(name: str) -> dict[str, bytes]:
        found = (tmp_path / name / "store/pretraining").glob("*/weights.safetensors")
        return {p.parent.name: p.read_bytes() for p in found}

    assert weights("a") == weights("b")
    drop = ["seconds"]
    a, b = (neurobench.load_results(tmp_path / n).drop(columns=["record", *drop]) for n in ("a", "b"))
    pd.testing.assert_frame_equal(a, b)


def test_another_seed_is_another_result(data: Path, tmp_path: Path) -> None:
    table = execute(data, tmp_path / "out", task="age", seed=[0, 1]).table
    scores = table[table["kind"] == "pretrained"].set_index("seed")["score"]
    assert scores[0] != scores[1]


@pytest.mark.parametrize("name", ["breaks_in_construction", "breaks_in_training"])
def test_a_backbone_that_breaks_is_a_record_and_the_others_go_on(data: Path, tmp_path: Path, name: str) -> None:
    result = execute(data, tmp_path / "out", backbone=f"{name},tiny", task="age")
    table = result.table.set_index("row")
    assert f"{name} · roi on fake, age" in result.failed
    assert table.loc[f"{name} · roi", "status"] == "failed"
    assert "RuntimeError: " in table.loc[f"{name} · roi", "error"]
    assert table.loc["tiny · roi", "status"] == "ok"
    again = execute(data, tmp_path / "out", backbone=f"{name},tiny", task="age")
    assert again.failed == result.failed, "a failure is never stored as if it were a result"
    assert again.n_computed == 0


BROKEN = """
from neurobench import MaskingStrategy, SubjectTask, hookimpl, regression_metrics

class Awkward(SubjectTask):
    name, summary, kind, column = "awkward", "a task whose target cannot be told", "regression", "age"
    metrics = regression_metrics("years")
    def refuses(self, cohort): return ""
    def target(self, participants): raise ZeroDivisionError("my target")

class Speechless(Awkward):
    name, summary = "speechless", "a task that cannot say whether it can be scored"
    def refuses(self, cohort): raise ZeroDivisionError("my refusal")

class Jammed(MaskingStrategy):
    name, summary, hides = "jammed", "a strategy that hides nothing when asked to", "units"
    def elements(self, window, n_hidden, rng): raise ZeroDivisionError("my mask")

@hookimpl
def register_tasks(): return [Awkward, Speechless]

@hookimpl
def register_masks(): return [Jammed]
"""


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of plugins that load, and fail when they are used."""
    path = tmp_path_factory.mktemp("plugin") / "broken.py"
    path.write_text(BROKEN, encoding="utf-8")
    return path


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_task_that_breaks_takes_no_other_with_it(data: Path, tmp_path: Path, broken: Path, jobs: int) -> None:
    task = "awkward,age,reconstruction"
    result = execute(data, tmp_path / "out", task=task, plugin_files=(PLUGIN, broken), jobs=jobs)
    failed = result.table[result.table["status"] == "failed"]
    assert set(failed["task"]) == {"awkward"}
    assert set(failed["error"]) == {"ZeroDivisionError: my target"}
    assert set(result.table.loc[result.table["status"] == "ok", "task"]) == {"age", "reconstruction"}


def test_a_task_that_cannot_say_whether_it_can_be_scored_is_left_out(data: Path, tmp_path: Path, broken: Path) -> None:
    result = execute(data, tmp_path / "out", task="speechless,age", plugin_files=(PLUGIN, broken))
    failed = result.table[result.table["status"] == "failed"]
    assert set(failed["task"]) == {"speechless"}
    assert "ZeroDivisionError: my refusal" in failed["error"].iloc[0]
    assert any("task speechless left out: it could not tell" in note for note in result.notes)


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_mask_that_breaks_takes_no_other_with_it(data: Path, tmp_path: Path, broken: Path, jobs: int) -> None:
    whole = execute(data, tmp_path / "whole", task="age,reconstruction", plugin_files=(PLUGIN, broken))
    options = {"mask": "roi,jammed", "plugin_files": (PLUGIN, broken), "jobs": jobs}
    result = execute(data, tmp_path / "out", task="age,reconstruction", **options)
    failed = result.table[result.table["status"] == "failed"]
    assert set(failed["row"]) == {"tiny · jammed"}
    assert set(failed["error"]) == {"ZeroDivisionError: my mask"}
    scores = result.table[result.table["status"] == "ok"].set_index(["row", "task"])["score"]
    assert scores.to_dict() == whole.table.set_index(["row", "task"])["score"].to_dict()
    # Who reads the matrix of masks is told of the hole.
    records = [json.loads(path.read_text()) for path in (tmp_path / "out" / "records").glob("*.json")]
    told = {r["row"]: [n for n in r["notes"] if n.startswith("not shown under jammed")] for r in records if r["notes"]}
    assert all(len(notes) == 1 for row, notes in told.items() if row in {"tiny · roi", "ridge"})
    assert {"tiny · roi", "ridge"} <= told.keys()


def test_what_is_shown_beside_scores_takes_none_with_it(data: Path, tmp_path: Path, monkeypatch) -> None:
    whole = execute(data, tmp_path / "whole", task="age", folds=2)
    occlude, calls = attribution.occlude, itertools.count(1)
    # The fourth is of the second fold of the last row: of one fold there is an attribution, and none is shown.
    monkeypatch.setattr(attribution, "occlude", lambda *a, **k: occlude(*a, **k) if next(calls) < 4 else 1 / 0)
    result = execute(data, tmp_path / "out", task="age", folds=2, attribution=True)
    assert result.failed == ()
    pd.testing.assert_frame_equal(result.table.drop(columns="seconds"), whole.table.drop(columns="seconds"))
    records = [json.loads(path.read_text()) for path in (tmp_path / "out" / "records").glob("*.json")]
    lacking = [r for r in records if "without attribution: computing it failed, and the log says why" in r["notes"]]
    assert [r["row"] for r in lacking] == ["tiny · roi"]
    shown = {path.parent.name for path in (tmp_path / "out" / "evidence").glob("*/attribution.parquet")}
    assert shown == {r["id"] for r in records if r["row"] == "tiny · untrained"}


def test_rows_are_evaluated_under_each_others_masks_only_where_that_is_shown(data: Path, tmp_path: Path) -> None:
    def labels(task: str) -> list[str]:
        out = tmp_path / task
        execute(data, out, mask="roi,time_block", task=task)
        return [e.manifest["label"] for e in store.Store(out, read_only=True).entries("reconstruction")]

    alone = labels("age")
    assert {label.partition(" · fake")[0] for label in alone} == {
        "reconstruct tiny · roi under roi",
        "reconstruct tiny · time_block under time_block",
        "trivial fillers under roi",
        "trivial fillers under time_block",
    }
    assert any(label.startswith("reconstruct tiny · roi under time_block") for label in labels("reconstruction"))


def test_a_dataset_that_fails_in_a_way_of_its_own_is_a_record(data: Path, tmp_path: Path, monkeypatch) -> None:
    def fail(self: Any) -> list[str]:
        raise KeyError("no such column")

    monkeypatch.setattr(stages.CohortRun, "notes", fail)
    result = execute(data, tmp_path / "out", task="age")
    assert result.table["error"].tolist() == ["KeyError: 'no such column'"]


def test_a_dataset_that_cannot_be_prepared_is_a_record(tmp_path: Path) -> None:
    write_folder(tmp_path / "data", n_subjects=4)
    for path in (tmp_path / "data").glob("*.npy"):
        path.write_text("<html>")
    result = execute(tmp_path / "data", tmp_path / "out", task="age")
    assert result.failed == ("tiny · roi on fake, age",)
    assert "no recording could be read. Reasons: unreadable × 4" in result.table.loc[0, "error"]


def test_what_is_left_out_is_said_with_a_reason(tmp_path: Path) -> None:
    write_folder(tmp_path / "data", n_subjects=24)
    min((tmp_path / "data").glob("*.npy")).write_text("<html>")
    result = execute(tmp_path / "data", tmp_path / "out", task="age")
    (note,) = (note for note in result.notes if "left out: unreadable" in note)
    assert note.startswith("fake: left out: unreadable × 1; the first: ")
    assert note.endswith("; `neurobench data check fake` says more")


def test_fewer_subjects_than_folds_says_so(tmp_path: Path) -> None:
    write_folder(tmp_path / "data", n_subjects=3)
    result = execute(tmp_path / "data", tmp_path / "out", task="reconstruction", folds=5)
    assert "3 subjects" in result.table.loc[0, "error"]
    assert "fold" in result.table.loc[0, "error"]


def test_records_are_valid_hashed_and_load_in_one_call(data: Path, tmp_path: Path) -> None:
    import jsonschema

    result = execute(data, tmp_path / "out", task="age")
    shipped = json.loads((ROOT / "neurobench" / "record.schema.json").read_text())
    assert shipped == results.schema(), "run `make schema`"
    paths = sorted((tmp_path / "out/records").glob("*.json"))
    assert len(paths) == len(result.table)
    for path in paths:
        jsonschema.validate(json.loads(path.read_text()), shipped)
    table = neurobench.load_results(tmp_path / "out")
    assert set(table["row"]) == set(result.table["row"])
    record = table[table["kind"] == "pretrained"].iloc[0]
    predictions = results.load_predictions(tmp_path / "out", record["id"])
    assert len(predictions) == 24
    error = (predictions["truth"] - predictions["prediction"]).abs().mean()
    assert error == pytest.approx(record["score"])


def test_an_edited_record_is_noticed(data: Path, tmp_path: Path) -> None:
    execute(data, tmp_path / "out", task="age")
    path = next((tmp_path / "out/records").glob("*.json"))
    record = json.loads(path.read_text())
    record["n_subjects"] = 999
    path.write_text(json.dumps(record))
    with pytest.raises(StoreError, match="was changed after it was written"):
        neurobench.load_results(tmp_path / "out")


def test_a_plan_says_what_is_stored_and_starts_nothing(data: Path, tmp_path: Path) -> None:
    def plan(**options: object) -> planning.Plan:
        config = RunConfig.from_options(
            backbone="tiny",
            mask="roi",
            dataset="fake",
            data_dir=data,
            out=tmp_path / "out",
            plugin_files=PLUGIN,
            **options,
        )
        registry = load_registry(config.plugin_files)
        return planning.plan(expand(config, registry), registry)

    assert {i.state for i in plan(n_steps=3).items} == {"to do"}
    assert not (tmp_path / "out").exists()
    execute(data, tmp_path / "out")
    assert {i.state for i in plan(n_steps=3).items} == {"stored"}
    stale = [i for i in plan(n_steps=4).items if i.state == "stale" and i.stage == "pretraining"]
    assert stale
    assert "n_steps" in stale[0].why


def test_a_full_disk_stops_the_run_and_loses_nothing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    original = store.Store.write

    def write(self: store.Store, stage: str, *args: object) -> object:
        nonlocal calls
        calls += stage == "pretraining"
        if calls == 2:
            raise StoreError("the disk is full.")
        return original(self, stage, *args)

    monkeypatch.setattr(store.Store, "write", write)
    with pytest.raises(StoreError, match="disk is full"):
        execute(data, tmp_path / "out")
    monkeypatch.undo()
    assert errno.ENOSPC
    assert len(store.stored_steps(tmp_path / "out").query("stage == 'pretraining'")) == 1
    assert execute(data, tmp_path / "out").failed == ()


@pytest.mark.parametrize("stage", ["pretraining", "evaluation"])
def test_a_folder_that_is_removed_meanwhile_ends_the_run_and_nothing_is_made_in_its_place(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    out = tmp_path / "out"
    original = store.Store.write

    @contextlib.contextmanager
    def write(self: store.Store, of: str, *args: Any) -> Iterator[Path]:
        with original(self, of, *args) as folder:
            if of == stage:
                shutil.rmtree(out)
            yield folder

    monkeypatch.setattr(store.Store, "write", write)
    with pytest.raises(StoreError, match="out was removed, or its disk taken away, while it was written into"):
        execute(data, out)
    assert not out.exists(), "what is made anew would be somebody else's to the same command"


def test_source_real_refuses_the_twin(data: Path, tmp_path: Path) -> None:
    table = execute(data, tmp_path / "out", data_dir=None, task="reconstruction", n_subjects=8).table
    assert (table["source"] == "simulated").all()
    with pytest.raises(neurobench.ConfigError, match="real"):
        execute(data, tmp_path / "out", data_dir=None, source="real")


def test_within_recording_gives_reconstruction_only(data: Path, tmp_path: Path) -> None:
    result = execute(data, tmp_path / "out", split="within-recording", window_s=16.0, patch_s=4.0)
    assert set(result.table["task"]) == {"reconstruction"}


def test_the_python_api_returns_the_table(data: Path, tmp_path: Path) -> None:
    table = neurobench.run(
        backbone="tiny",
        mask="none",
        dataset="fake",
        task="age",
        data_dir=data,
        out=tmp_path / "out",
        plugin_files=PLUGIN,
    )
    # `none` frozen is the untrained row: one entry, not two.
    assert set(table["kind"]) == {"baseline", "untrained"}


@pytest.mark.slow
def test_kill_and_the_same_command_again(data: Path, tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "neurobench", "run", "--plugin", str(PLUGIN), "--backbone", "tiny", "--mask", "roi"),
        *("--dataset", "fake", "--data-dir", str(data), "--out", str(tmp_path / "out"), "--steps", "40"),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    wanted = tmp_path / "out" / "store" / "embedding"
    deadline = time.monotonic() + 120
    while not (wanted.is_dir() and any(wanted.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = len(store.stored_steps(tmp_path / "out"))
    assert before > 3
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    whole = execute(data, tmp_path / "whole", n_steps=40)
    resumed = execute(data, tmp_path / "out", n_steps=40)
    assert resumed.n_computed == 0
    pd.testing.assert_frame_equal(whole.table.drop(columns="seconds"), resumed.table.drop(columns="seconds"))
    shutil.rmtree(tmp_path / "whole")


def test_unknown_folder_for_results() -> None:
    with pytest.raises(StoreError, match="is not an output folder"):
        store.stored_steps(Path("no/such/folder"))
    with pytest.raises((StoreError, DataError), match="holds no records"):
        neurobench.load_results("no/such/folder")


def test_a_transductive_run_says_so_and_does_not_rank_reconstruction(tmp_path):
    common = {"backbone": "mamba", "mask": "roi", "dataset": "parcels", "n_subjects": 24, "n_steps": 3}
    common |= {"task": "reconstruction,age", "out": tmp_path / "out"}
    plain = neurobench.run(**common)
    seen = neurobench.run(**common, transductive=True)
    assert not plain["transductive"].any()
    assert seen["transductive"].all()
    # What is pretrained is not the same, what needs no pretraining is.
    both = set(plain["id"]) & set(seen["id"])
    kinds = {kind: both & set(own["id"]) for kind, own in plain.groupby("kind")}
    assert not kinds["pretrained"]
    assert kinds["baseline"]
    assert not seen.loc[seen["task"] == "reconstruction", "best"].any()
    stored = neurobench.load_results(tmp_path / "out")
    assert set(stored["transductive"]) == {False, True}


def test_a_network_that_never_met_the_cohort_embeds_it_once(data: Path, tmp_path: Path, monkeypatch) -> None:
    calls: list[str] = []
    original = adaptation.embed_subjects

    def counted(*args: object, **named: object) -> object:
        calls.append("embedded")
        return original(*args, **named)

    monkeypatch.setattr(adaptation, "embed_subjects", counted)
    execute(data, tmp_path / "out", task="age", folds=3)
    assert len(calls) == 3 + 1, "one network a fold, and the untrained one"
    found = store.Store(tmp_path / "out", read_only=True).entries("embedding")
    untrained = [e for e in found if "none" in e.manifest["label"]]
    assert len(untrained) == 3
    assert len({e.manifest["files"]["features.npy"][0] for e in untrained}) == 1

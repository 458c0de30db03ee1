"""Bad input through the command line: a clear error, the right exit code, and nothing lost."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import neurobench
from neurobench.cli import app
from neurobench.store import Store

PLUGIN = Path(__file__).with_name("tiny_plugin.py")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of own ROI time series: 24 people, 12 regions, 200 s at 2 s."""
    root = tmp_path / "data"
    (root / "timeseries").mkdir(parents=True)
    rng = np.random.default_rng(0)
    people = pd.DataFrame({"participant_id": [f"sub-{i:02d}" for i in range(24)], "t_r": 2.0})
    people["age"] = rng.uniform(20, 60, 24).round(1)
    people["sex"] = ["F", "M"] * 12
    people["diagnosis"] = ["control", "patient", "patient"] * 8
    for name in people["participant_id"]:
        shared = rng.standard_normal((100, 2)).cumsum(0)
        np.save(
            root / "timeseries" / f"{name}.npy", shared @ rng.standard_normal((2, 12)) + rng.standard_normal((100, 12))
        )
    regions = pd.DataFrame({"name": [f"r{i:02d}" for i in range(12)], "group": [f"g{i // 4}" for i in range(12)]})
    regions.to_csv(root / "regions.tsv", sep="\t", index=False)
    write(people, root)
    return root


def write(people: pd.DataFrame, root: Path) -> None:
    people.to_csv(root / "participants.tsv", sep="\t", index=False)


def people_of(root: Path) -> pd.DataFrame:
    return pd.read_csv(root / "participants.tsv", sep="\t")


def run(folder: Path, *more: str, dataset: str = "parcels", task: str = "age") -> tuple[int, str]:
    command = [
        *("run", "--plugin", str(PLUGIN), "--backbone", "tiny", "--mask", "roi", "--dataset", dataset, "--task", task),
        *("--steps", "2", "--data-dir", str(folder), "--out", str(folder.parent / "out"), *more),
    ]
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, command, standalone_mode=True)
    return result.exit_code, " ".join(result.output.split())


def test_the_folder_is_good_before_it_is_made_bad(folder: Path) -> None:
    code, said = run(folder)
    assert code == 0, said
    assert "age on parcels" in said


@pytest.mark.parametrize(
    ("task", "text"),
    [
        ("target:nope", "no column 'nope' in its participants table"),
        ("fluid_intelligence", "no column 'fluid_intelligence'"),
    ],
)
def test_a_target_that_is_not_there(folder: Path, task: str, text: str) -> None:
    code, said = run(folder, task=task)
    assert code == 1
    assert text in said
    assert "0 steps computed" in said, "nothing is pretrained for nothing"
    assert "age" in said, "the columns that could be targets are named"


def test_one_class_only_and_a_constant_target(folder: Path) -> None:
    people = people_of(folder)
    people["diagnosis"], people["constant"] = "patient", 3.0
    write(people, folder)
    code, said = run(folder, task="diagnosis")
    assert code == 1
    assert "0 control, 24 patient; at least 5 of each class are needed" in said
    code, said = run(folder, task="target:constant")
    assert code == 1
    assert "constant" in said


def test_unknown_and_duplicate_ids_and_no_ids(folder: Path) -> None:
    people = people_of(folder)
    people.loc[0, "participant_id"] = "sub-99"
    people.loc[1, "participant_id"] = "sub-02"
    write(people, folder)
    code, said = run(folder)
    assert code == 0
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["data", "check", "parcels", "--data-dir", str(folder)])
    report = " ".join(result.output.split())
    assert "sub-02 has 2 different rows in participants.tsv; none is used" in report
    assert "sub-00" in report
    assert "sub-99" in report
    write(people.rename(columns={"participant_id": "who"}), folder)
    code, said = run(folder)
    assert code == 1
    assert "has no column of identifiers" in said
    assert "Name the column participant_id" in said


def test_missing_and_contradictory_repetition_times(folder: Path) -> None:
    write(people_of(folder).drop(columns="t_r"), folder)
    code, said = run(folder)
    assert code == 1
    assert "nothing says the repetition time" in said
    assert "parcels[t_r=2.0]" in said
    code, said = run(folder, dataset="parcels[t_r=2.0]")
    assert code == 0
    people = people_of(folder)
    people["t_r"] = 2.0
    write(people, folder)
    for name in people["participant_id"]:
        (folder / "timeseries" / f"{name}.json").write_text(json.dumps({"RepetitionTime": 3.0}))
    code, said = run(folder)
    assert code == 1
    assert "2" in said
    assert "3" in said
    assert "repetition time" in said


def test_short_recordings_are_counted(folder: Path) -> None:
    for name in ("sub-00", "sub-01"):
        path = folder / "timeseries" / f"{name}.npy"
        np.save(path, np.load(path)[:30])
    code, said = run(folder)
    assert code == 0
    assert "left out:" in said
    assert "× 2" in said


def test_constant_and_nan_regions_are_named(folder: Path) -> None:
    path = folder / "timeseries" / "sub-03.npy"
    data = np.load(path)
    data[:, 4], data[7, 5] = 1.0, np.nan
    np.save(path, data)
    code, _ = run(folder)
    assert code == 0
    result = CliRunner(env={"COLUMNS": "200"}).invoke(
        app, ["data", "check", "parcels", "--data-dir", str(folder), "--deep"]
    )
    assert "r04" in result.output
    assert "r05" in result.output


def test_another_number_of_regions_than_the_table(folder: Path) -> None:
    path = folder / "timeseries" / "sub-05.npy"
    np.save(path, np.load(path)[:, :7])
    code, said = run(folder)
    assert code == 0
    assert "left out:" in said
    result = CliRunner(env={"COLUMNS": "200"}).invoke(
        app, ["data", "check", "parcels", "--data-dir", str(folder), "--deep"]
    )
    assert "sub-05" in result.output


def test_a_folder_that_is_a_file(folder: Path) -> None:
    code, said = run(folder / "participants.tsv")
    assert code == 2
    assert "folder" in said


def test_a_run_says_which_values_of_the_table_it_could_not_read(folder: Path) -> None:
    people = people_of(folder).astype({"age": object}).assign(sex=[1, 2] * 12)
    people.loc[:2, "age"] = ["89+", "11. Mai", "31.5 years"]
    write(people, folder)
    code, said = run(folder)
    assert code == 0
    assert "n = 22" in said
    assert "2 values of age in participants.tsv are no numbers and count as missing: 89+, 11. Mai" in said
    assert "column sex of participants.tsv holds 1, 2" in said


def test_a_dry_run_says_that_a_folder_cannot_be_used(folder: Path) -> None:
    code, said = run(folder, "--dry-run")
    assert code == 0, said
    (folder / "participants.tsv").unlink()
    code, said = run(folder, "--dry-run")
    assert code == 1
    assert "1 step and all those of 1 seed to do" in " ".join(said.split())
    assert f"{folder} has no participants.tsv" in said
    code, said = run(folder, "--dry-run", "--json")
    assert code == 1
    assert f"{folder} has no participants.tsv" in said


@pytest.mark.parametrize("command", ["run", "prepare"])
def test_the_dataset_that_a_folder_is_for_is_named(folder: Path, command: str) -> None:
    """By a run as by `data check`, and what the dataset asked for would have next stays."""
    likely = f"neurobench data check parcels --data-dir {folder}"
    if command == "run":
        code, said = run(folder, dataset="adhd200")
    else:
        options = ("--data-dir", str(folder), "--out", str(folder.parent / "out"))
        result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["data", "prepare", "adhd200", *options])
        code, said = result.exit_code, " ".join(result.output.split())
    assert code == 1
    assert likely in said
    assert "Unpack ADHD200_AAL_TCs" in said


def test_results_do_not_go_where_other_things_lie(folder: Path) -> None:
    (folder.parent / "out").mkdir()
    (folder.parent / "out" / "thesis.tex").write_text("mine")
    code, said = run(folder)
    assert code != 0
    assert "is not empty and was not made by neurobench" in said
    assert (folder.parent / "out" / "thesis.tex").read_text() == "mine"


def test_a_damaged_artefact_is_computed_again(folder: Path) -> None:
    run(folder)
    before = neurobench.load_results(folder.parent / "out").drop(columns=["seconds", "record"])
    store = Store(folder.parent / "out")
    for stage, name in (
        ("pretraining", "weights.safetensors"),
        ("embedding", "features.npy"),
        ("evaluation", "score.json"),
    ):
        for entry in store.entries(stage):
            whole = entry.file(name).read_bytes()
            entry.file(name).write_bytes(whole[: len(whole) // 2])
    code, said = run(folder)
    assert code == 0
    assert " 0 steps computed" not in said
    after = neurobench.load_results(folder.parent / "out").drop(columns=["seconds", "record"])
    pd.testing.assert_frame_equal(before, after)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import nothing_of_this_name", "pip install nothing-of-this-name"),
        ("def broken(:", "SyntaxError"),
        ("from neurobench import hookimpl\n@hookimpl\ndef register_backbone():\n    return []", "register_backbones"),
        ("raise RuntimeError('at import')", "at import"),
    ],
)
def test_a_plugin_file_that_breaks_says_where(folder: Path, code: str, said: str) -> None:
    path = folder.parent / "my_net.py"
    path.write_text(code)
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["plugins", "--plugin", str(path)])
    assert result.exit_code == 2, "who names a file wants it"
    assert said in " ".join(result.output.split())
    assert f"{path} cannot be used" in " ".join(result.output.split())


def test_every_problem_at_once_before_any_work(folder: Path) -> None:
    code, said = run(
        folder,
        "--ratio",
        "1.5",
        "--folds",
        "1",
        "--backbone",
        "mamb",
        "--mask",
        "roi[rule=pur]",
        "--seed",
        "0",
        task="agee",
    )
    assert code == 2
    for text in ("'mamb'", "mamba", "pure", "--ratio", "--folds", "'agee'"):
        assert text in said, text
    assert not (folder.parent / "out").exists()

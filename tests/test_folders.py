"""A folder that a dataset makes nothing of: what was probably meant is said, for what people really do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from neurobench.cli import app
from neurobench.data_check import check_data
from neurobench.errors import DataError
from neurobench_datasets.adhd200 import ADHD200
from neurobench_datasets.bids import BIDS
from neurobench_datasets.meg_headache import MegHeadache
from neurobench_datasets.parcels import Parcels

IDS = [f"sub-{i:05d}" for i in range(50003, 50027)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "study" / "data"
    (root / "timeseries").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i, name in enumerate(IDS):
        np.save(root / "timeseries" / f"{name}.npy", rng.standard_normal((100 + i % 2, 12)))
    write(root, people())
    return root


def people() -> pd.DataFrame:
    return pd.DataFrame({"participant_id": IDS, "age": np.arange(24) + 20.5, "t_r": 2.0, "sex": ["F", "M"] * 12})


def write(root: Path, table: pd.DataFrame) -> None:
    table.to_csv(root / "participants.tsv", sep="\t", index=False)


def refusal(root: Path, dataset: type[Parcels] = Parcels, **others: object) -> DataError:
    with pytest.raises(DataError) as caught:
        check_data(dataset(), root, others=others)  # type: ignore[arg-type]
    return caught.value


def found(root: Path, *, deep: bool = False) -> dict[str, str]:
    return {f.code: f.message for f in check_data(Parcels(), root, deep=deep).findings}


def test_the_folder_is_good_before_it_is_made_bad(folder: Path) -> None:
    assert set(found(folder)) == {"no-groups"}


@pytest.mark.parametrize("dataset", [ADHD200, MegHeadache, BIDS])
def test_a_folder_of_another_dataset_is_named(folder: Path, dataset: type) -> None:
    error = refusal(folder, dataset, parcels=Parcels())
    assert error.likely == f"neurobench data check parcels --data-dir {folder}"
    assert "It holds participants.tsv, timeseries/ (24 .npy)" in error.what
    # The folder may be meant for this dataset all the same.
    assert (dataset is ADHD200) == ("Unpack ADHD200_AAL_TCs" in error.next_step)


def test_another_signal_of_a_data_set_is_meant_before_another_data_set(folder: Path) -> None:
    spaced = folder.rename(folder.with_name("my data"))
    others = {"parcels": Parcels(), "adhd200[signal=meg]": Parcels()}
    error = refusal(spaced, ADHD200, **others)
    # To be pasted into any shell.
    assert error.likely.startswith(f"neurobench data check 'adhd200[signal=meg]' --data-dir '{spaced}' or ")


def test_the_command_tries_the_other_datasets(folder: Path) -> None:
    result = CliRunner(env={"COLUMNS": "400"}).invoke(app, ["data", "check", "adhd200", "--data-dir", str(folder)])
    assert result.exit_code == 2
    assert f"did you mean: neurobench data check parcels --data-dir {folder}" in result.output
    result = CliRunner(env={"COLUMNS": "400"}).invoke(app, ["data", "check", "adhd200"])
    assert result.exit_code == 2
    assert "Give its place: --data-dir PATH" in result.output


def test_one_folder_too_deep_or_too_high(folder: Path) -> None:
    # The table above names the people: nothing is wrong with it.
    assert len(Parcels().list_recordings(folder / "timeseries").recordings) == 24
    assert refusal(folder.parent).likely == f"--data-dir {folder}"


def test_another_cohort_beside_is_not_taken_for_the_folder_that_is_meant(folder: Path) -> None:
    other = folder.parent / "other"
    other.mkdir()
    (folder / "participants.tsv").rename(folder.parent / "participants.tsv")
    (folder / "timeseries").rename(folder.parent / "timeseries")
    assert refusal(other).likely == ""


def test_links_to_folders_are_said(folder: Path) -> None:
    (folder / "timeseries").rename(folder.parent / "elsewhere")
    (folder / "roi").symlink_to(folder.parent / "elsewhere")
    assert "1 folders are links, and what lies in them is not looked at: roi" in refusal(folder).what


def workbook(root: Path) -> None:
    (root / "participants.tsv").rename(root / "participants.xlsx")
    (root / "participants.xlsx").write_bytes(b"PK\x03\x04" + bytes(99))


def workbook_named_csv(root: Path) -> None:
    (root / "participants.tsv").write_bytes(b"PK\x03\x04" + bytes(99))


def unicode_text(root: Path) -> None:
    (root / "participants.tsv").write_text(people().to_csv(sep="\t", index=False), encoding="utf-16")


def separator_line(root: Path) -> None:
    (root / "participants.tsv").write_text("sep=;\n" + people().to_csv(sep=";", index=False))


def one_row_a_session(root: Path) -> None:
    write(root, pd.concat([people(), people().assign(age=60)]))


def other_name_of_t_r(root: Path) -> None:
    write(root, people().rename(columns={"t_r": "RepetitionTime"}))


def quoted_ids(root: Path) -> None:
    write(root, people().assign(participant_id=[i.replace("sub-", "'") for i in IDS]))


def other_column(root: Path) -> None:
    for path in (root / "timeseries").iterdir():
        path.rename(path.with_name(path.name.replace("sub-", "Pitt_A")))
    table = people().rename(columns={"participant_id": "SUB_ID"}).assign(SUB_ID=[i.removeprefix("sub-") for i in IDS])
    write(root, table.assign(FILE_ID=[i.replace("sub-", "Pitt_A") for i in IDS]))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (workbook, "participants.xlsx is a spreadsheet's workbook: save it as CSV (UTF-8)"),
        (workbook_named_csv, "participants.tsv is a spreadsheet's workbook"),
        (unicode_text, "participants.tsv is in UTF-16"),
        (separator_line, "remove that line"),
        (one_row_a_session, "several rows of 24 ids (one a session?)"),
        (other_name_of_t_r, "no column t_r; RepetitionTime may be it"),
        (quoted_ids, "holds ids such as '50003"),
        (other_column, "what column FILE_ID of participants.tsv holds: call that column participant_id"),
    ],
)
def test_a_table_that_does_not_fit_says_why(folder: Path, spoil: Callable[[Path], None], says: str) -> None:
    spoil(folder)
    error = refusal(folder)
    assert says in error.what
    assert "\n" not in error.what


def test_a_site_that_names_begin_with_is_nobodys_id(folder: Path) -> None:
    for path in (folder / "timeseries").iterdir():
        path.rename(path.with_name(path.name.replace("sub-", "Pitt_00")))
    table = people().rename(columns={"participant_id": "SUB_ID"})
    table = table.assign(SITE_ID="Pitt", FILE_ID=[i.replace("sub-", "Pitt_00") for i in IDS])
    (folder / "participants.tsv").unlink()
    table.to_csv(folder / "Phenotypic.csv", index=False)
    assert "what column FILE_ID of Phenotypic.csv holds" in refusal(folder).what


def test_what_is_passed_over_in_a_folder_that_can_be_used(folder: Path) -> None:
    table = people().rename(columns={"sex": "Gender", "age": "AGE_AT_SCAN"})
    table["iq"] = [f"{i},5" for i in range(24)]
    write(folder, table)
    series = folder / "timeseries"
    (series / f"{IDS[0]}.npy").rename(series / f"{IDS[0]}.rds")
    np.save(series / f"{IDS[1]}_task-nback.npy", np.zeros((100, 12)))
    np.save(series / f"{IDS[1]}_task-rest.npy", np.zeros((100, 12)))
    told = found(folder)
    assert f"{IDS[0]}.rds" in told["unread-files"]
    assert next(f.fix for f in check_data(Parcels(), folder).findings if f.code == "unread-files").endswith(": .npy")
    assert "decimal sign in iq" in told["table-form"]
    assert told["column-name"] == "the participants table has no column sex; Gender may be it"
    assert told["mixed-tasks"] == "recordings of the tasks nback, rest all count as the state rest"


def test_other_tables_of_a_good_folder_are_no_trouble(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "codebook.xlsx").write_bytes(b"PK\x03\x04" + bytes(99))
    (folder / "scores.csv").write_text("id,score,score\n1,2,3\n")
    (folder / "large.csv").write_text("a;b\n" + "1,5;2,5\n" * 99)
    monkeypatch.setattr("neurobench.folders.MOST_BYTES", 1000)
    report = check_data(Parcels(), folder)
    told = {(f.level, f.code, f.message.partition(" ")[0]) for f in report.findings if f.code == "table-form"}
    assert told == {("info", "table-form", "codebook.xlsx"), ("info", "table-form", "large.csv")}
    (folder / "also_large.csv").write_text("a;b\n" + "1,5;2,5\n" * 99)
    told = {f.message.partition(" ")[0] for f in check_data(Parcels(), folder).findings if f.code == "table-form"}
    assert told == {"codebook.xlsx", "also_large.csv"}


def test_a_dataset_that_refuses_a_parameter_in_its_own_way_hurts_nobody(folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(
        "from neurobench import hookimpl\n"
        "from neurobench_datasets.parcels import Parcels\n\n\n"
        "class Own(Parcels):\n"
        '    """Has a signal of its own."""\n\n'
        '    name = "own"\n\n'
        '    def __init__(self, *, signal: str = "parcels"):\n'
        "        super().__init__()\n"
        '        if signal != "parcels":\n'
        '            raise ValueError(f"no {signal}")\n\n\n'
        "@hookimpl\n"
        "def register_datasets():\n"
        "    return [Own]\n"
    )
    asked = ["data", "check", "parcels", "--data-dir", str(folder), "--plugin", str(own)]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.output


def test_units_that_nearly_nobody_has_are_no_fault_of_a_recording(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for i, name in enumerate(IDS):
        series = rng.standard_normal((100 + i % 2, 12))
        series[:, 5 if i else 0 :] = 0.0
        np.save(folder / "timeseries" / f"{name}.npy", series)
    report = check_data(Parcels(), folder, deep=True)
    told = {f.subject: f.message for f in report.findings if f.level == "error"}
    assert told == {IDS[0]: "only 0 of 5 units are usable"}


def test_deep_leaves_out_what_a_run_leaves_out(folder: Path) -> None:
    np.save(folder / "timeseries" / f"{IDS[0]}.npy", np.tile(np.arange(12.0), (100, 1)))
    table = people()
    table.loc[1, "t_r"] = 0.5
    write(folder, table)
    report = check_data(Parcels(), folder, deep=True)
    codes = {f.subject: f.code for f in report.findings if f.level == "error"}
    assert codes == {IDS[0]: "too-few-units", IDS[1]: "too-short"}
    assert (report.n_subjects, report.n_listed) == (22, 24)
    assert report.table.loc[0, ["units", "seconds"]].tolist() == ["12", "200–202"]

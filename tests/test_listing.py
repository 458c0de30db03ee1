"""What holds for every listing: words for a missing value are none, ages are years, nothing is passed over."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from neurobench import gather
from neurobench.data_check import check_data
from neurobench.errors import DataError
from neurobench.listing import listed, passed_over
from neurobench.preparation import prepare, usable_units
from neurobench.records import Finding, Listing, RecordingFile
from neurobench.specimens import simulated_cohort
from neurobench.store import Store
from neurobench_datasets.meg_headache import MegHeadache
from neurobench_datasets.parcels import Parcels
from neurobench_tasks.diagnosis import Diagnosis


def write(root: Path, people: pd.DataFrame) -> None:
    people.to_csv(root / "participants.tsv", sep="\t", index=False)


@pytest.fixture
def people() -> pd.DataFrame:
    ids = [f"sub-{i:02d}" for i in range(24)]
    diagnosis = np.resize(["control", "patient"], 24)
    return pd.DataFrame({"participant_id": ids, "age": range(20, 44), "diagnosis": diagnosis, "t_r": 2.0})


@pytest.fixture
def folder(tmp_path: Path, people: pd.DataFrame) -> Path:
    root = tmp_path / "data"
    (root / "timeseries").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i, name in enumerate(people["participant_id"]):
        np.save(root / "timeseries" / f"{name}.npy", rng.standard_normal((100 + i % 2, 12)))
    write(root, people)
    return root


def test_nobody_is_a_patient_for_want_of_a_diagnosis(folder: Path, people: pd.DataFrame, tmp_path: Path) -> None:
    mixed = people.assign(iq=100.0 + np.arange(24)).astype(object)
    mixed.loc[:3, "diagnosis"] = ["pending", "withheld", "Unknown", "?"]
    mixed.loc[3, "iq"] = "pending"
    write(folder, mixed)
    listing = listed(Parcels(), folder)
    assert Diagnosis().target(listing.participants).isna().tolist() == [True] * 4 + [False] * 20
    assert listing.participants["iq"].dtype == float
    assert listing.participants["iq"].isna().sum() == 1
    told = [f.message for f in listing.findings if f.code == "not-known"]
    assert len(told) == 2
    assert "the word pending" in told[1]
    report = check_data(Parcels(), folder, tasks={"diagnosis": Diagnosis()})
    assert report.tasks.loc[0, "of these"] == "10 control, 10 patient"
    spec = Parcels().spec
    cohort = prepare(Parcels(), "parcels", folder, store=Store(tmp_path / "out"), spec=spec, code={}, source="real")
    assert cohort.participants["diagnosis"].isna().sum() == 4


def test_a_withheld_group_of_meg_is_no_patient(tmp_path: Path) -> None:
    MegHeadache().simulate(tmp_path, n_subjects=4, seed=0, variant="default")
    table = pd.read_csv(tmp_path / "participants.tsv", sep="\t")
    table["group"] = ["HC", "headache", "withheld", "pending"]
    write(tmp_path, table)
    assert listed(MegHeadache(), tmp_path).participants["diagnosis"].notna().sum() == 2


@pytest.mark.parametrize(("factor", "unit"), [(12, "months"), (365.25, "days")])
def test_ages_in_another_unit_are_said(folder: Path, people: pd.DataFrame, factor: float, unit: str) -> None:
    write(folder, people.assign(age=people["age"] * factor))
    (finding,) = (f for f in listed(Parcels(), folder).findings if f.code == "implausible-age")
    assert finding.message.endswith(f"are they {unit}?")
    write(folder, people)
    assert not [f for f in listed(Parcels(), folder).findings if f.code == "implausible-age"]


def test_folders_that_are_closed_or_links_are_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "NYU").mkdir()
    (folder / "KKI").symlink_to(folder / "NYU")
    real = os.scandir

    def closed(path: str) -> object:
        if Path(path).name == "NYU":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", closed)
    found = {f.code: f.message for f in listed(Parcels(), folder).findings}
    assert found["no-permission"] == "NYU cannot be opened: Permission denied"
    assert "KKI" in found["linked-folder"]


def test_folders_that_hold_no_recordings_and_links_that_are_recordings_are_not_said(tmp_path: Path) -> None:
    for name in (".git/annex", "lost+found/x", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    for link in (".git/link", "lost+found/link", "sub-01_meg.ds"):
        (tmp_path / link).symlink_to(tmp_path / "elsewhere")
    assert passed_over(tmp_path, [RecordingFile("01", tmp_path / "sub-01_meg.ds", 600.0)]) == []
    assert [f.code for f in passed_over(tmp_path, ())] == ["linked-folder"]


def test_no_folder_of_a_person_is_an_example_where_only_aggregates_may_leave(tmp_path: Path) -> None:
    cohort = simulated_cohort(tmp_path)
    found = Finding("warning", "linked-folder", "1 folders are links: sub-003", path="sub-003")
    told = []
    for may_leave in ("aggregates", "all"):
        card = replace(cohort.card, may_leave=may_leave)
        grid = SimpleNamespace(config=SimpleNamespace(variant="default"))
        run = SimpleNamespace(cohort=replace(cohort, card=card, findings=(found,)), grid=grid)
        told.append(gather._cohort(run)["findings"][0]["example"])
    assert told == ["", found.message]


def test_a_file_that_may_not_be_read_is_no_crash(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(self: Parcels, root: Path) -> None:
        raise PermissionError(13, "Permission denied", str(root / "participants.tsv"))

    monkeypatch.setattr(Parcels, "list_recordings", closed)
    with pytest.raises(DataError, match=r"participants\.tsv cannot be read: Permission denied") as caught:
        listed(Parcels(), folder)
    assert "right to read" in caught.value.next_step


def test_ids_that_were_read_as_numbers_are_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = pd.DataFrame({"age": [30.0, 40.0]}, index=pd.Index([0, 1], name="participant_id"))
    monkeypatch.setattr(Parcels, "list_recordings", lambda self, root: Listing(numbers, ()))
    with pytest.raises(DataError, match=r"parcels names somebody 0, which is int and no text") as caught:
        listed(Parcels(), folder)
    assert 'dtype={"id": str}' in caught.value.next_step


def test_a_recording_of_constants_is_not_used(folder: Path, tmp_path: Path) -> None:
    flat = np.tile(np.linspace(0.1, 7.3, 12), (100, 1))
    np.save(folder / "timeseries" / "sub-03.npy", flat)
    assert not usable_units(flat.T)[1].any()
    spec = Parcels().spec
    cohort = prepare(Parcels(), "parcels", folder, store=Store(tmp_path / "out"), spec=spec, code={}, source="real")
    assert "sub-03" not in cohort.subjects
    assert {f.subject for f in cohort.findings if f.code == "too-few-units"} == {"sub-03"}

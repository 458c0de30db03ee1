"""MEG: the files of several vendors, a BIDS-MEG folder with its quirks, the twins."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import mne
import numpy as np
import pandas as pd
import pytest

from neurobench import DataError, RecordingFile
from neurobench.cohorts import CohortSource
from neurobench.store import Store
from neurobench_datasets._camcan_meg import list_meg, read_meg, simulate_meg
from neurobench_datasets._meg_files import list_folder, normalised, read_meg_file, state_of
from neurobench_datasets._meg_twin import NO_EFFECTS, MegTwin, Person, helmet, radial_field
from neurobench_datasets.camcan import CamCAN
from neurobench_datasets.meg_headache import MegHeadache

LOBES = {f"{s}-{r}" for s in ("Left", "Right") for r in ("temporal", "parietal", "occipital", "frontal")}


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("twin")
    MegHeadache().simulate(root, n_subjects=4, seed=0, variant="default")
    return root


@pytest.fixture
def folder(twin: Path, tmp_path: Path) -> Path:
    shutil.copytree(twin, tmp_path / "data")
    return tmp_path / "data"


# ---------------------------------------------------------------- real files

FIELDTRIP = "sample_audvis_5s_neuromag306_fieldtrip_raw_v7.mat"


@pytest.mark.parametrize(
    ("name", "n", "n_all", "kind", "groups", "frame"),
    [
        ("141027_cropped_90Hz_raw.fif", 102, 306, "mag", LOBES, "device"),
        ("sample_audvis_trunc_raw_sss.fif", 102, 306, "mag", LOBES, "head"),
        ("triux_bmlhus_erm_raw_sss.fif", 102, 306, "mag", LOBES, "device"),
        ("neuromag122_test_file-raw.fif", 61, 122, "grad", None, "device"),
        ("somMDYO-18av.ds", 151, 151, "axial", None, "head"),
        ("testdata_ctf_short_discontinuous.ds_raw.fif", 273, 273, "axial", None, "head"),
        ("test_elekta_3ch_raw.fif", 1, 3, "mag", None, "device"),
    ],
)
def test_real_recordings(
    shared_data: Path, name: str, n: int, n_all: int, kind: str, groups: set[str] | None, frame: str
) -> None:
    file = RecordingFile("s", shared_data / "meg" / name, 1.0, options={"sensors": "mag"})
    raw = read_meg_file(file)
    assert len(raw.data) == len(raw.units) == n
    assert set(raw.units.types) == {kind}
    assert raw.units.has_positions
    assert f"sensor positions in {frame} coordinates" in raw.provenance
    assert len(set(raw.units.sites)) == n, "one sensor a site"
    if groups is not None:
        assert set(raw.units.groups) == groups
        assert raw.units.group_source == "helmet"
    whole = read_meg_file(RecordingFile("s", file.path, 1.0, options={"sensors": "all"}))
    assert len(whole.units) == n_all


def test_the_three_coils_of_a_site_share_it(shared_data: Path) -> None:
    file = RecordingFile("s", shared_data / "meg" / "sample_audvis_trunc_raw_sss.fif", 1.0, options={"sensors": "all"})
    units = read_meg_file(file).units
    counts = pd.Series(units.sites).value_counts()
    assert (counts == 3).all()
    assert len(counts) == 102
    by_site = pd.Series([n[:-1] for n in units.names]).groupby(units.sites).nunique()
    assert (by_site == 1).all(), "a site's sensors differ in the last digit of their names only"


@pytest.mark.parametrize(
    "name", ["141027_cropped_90Hz_raw.fif", "somMDYO-18av.ds", "testdata_ctf_short_discontinuous.ds_raw.fif"]
)
def test_coils_point_away_from_the_head(shared_data: Path, name: str) -> None:
    units = read_meg_file(RecordingFile("s", shared_data / "meg" / name, 1.0, options={"sensors": "mag"})).units
    outward = units.position_mm - units.position_mm.mean(0)
    outward /= np.linalg.norm(outward, axis=1, keepdims=True)
    np.testing.assert_allclose(np.linalg.norm(units.orientation, axis=1), 1.0, atol=1e-5)
    assert (outward * units.orientation).sum(1).min() > 0.7


@pytest.mark.parametrize("name", ["sample_audvis_trunc_raw_sss.fif", "neuromag122_test_file-raw.fif", FIELDTRIP])
def test_the_coils_of_a_site_look_along_three_axes(shared_data: Path, name: str) -> None:
    units = read_meg_file(RecordingFile("s", shared_data / "meg" / name, 1.0, options={"sensors": "all"})).units
    for site in np.unique(units.sites):
        own = units.orientation[units.sites == site]
        np.testing.assert_allclose(own @ own.T, np.eye(len(own)), atol=0.02)


def test_fieldtrips_coils_look_where_mnes_do(shared_data: Path) -> None:
    # Two files of one session, in head coordinates.
    mnes, fieldtrips = (
        read_meg_file(RecordingFile("s", shared_data / "meg" / name, 1.0, options={"sensors": "all"})).units
        for name in ("sample_audvis_trunc_raw_sss.fif", FIELDTRIP)
    )
    mnes = mnes.take(np.array([mnes.names.index(n) for n in fieldtrips.names]))
    assert mnes.types == fieldtrips.types
    assert (mnes.orientation * fieldtrips.orientation).sum(1).min() > 0.999


def test_ctf_regions_are_the_letters_of_the_names(shared_data: Path) -> None:
    file = RecordingFile("s", shared_data / "meg" / "somMDYO-18av.ds", 1.0, options={"sensors": "mag"})
    raw = read_meg_file(file)
    assert raw.units.group_source == "helmet"
    assert {"MLF", "MLC", "MLP", "MLO", "MLT", "MRF"} <= set(raw.units.groups)
    assert all("-" not in n for n in raw.units.names)


def test_a_plain_folder_of_real_files(shared_data: Path) -> None:
    files, findings = list_folder(shared_data / "meg")
    assert len(files) == 8
    assert [f.code for f in findings] == ["not-a-recording", "no-participants"]
    assert "1 files hold averages, no continuous recordings" in findings[0].message
    assert "mne-python_test-ave.fif.gz" in findings[0].message
    assert "each of its 8 recordings counts as a subject of its own" in findings[1].message
    assert {round(f.sfreq) for f in files} == {90, 300, 1000, 1200, 1250}


def test_real_recordings_become_a_cohort_of_one_sensor_layout(shared_data: Path, tmp_path: Path) -> None:
    dataset = MegHeadache()
    # One of the files is a second long: windows of the default length would leave it out.
    spec = replace(dataset.spec, window_s=0.5)
    source = CohortSource(dataset, "meg_headache", {"name": "meg_headache"}, spec, shared_data / "meg")
    cohort = source.load(Store(tmp_path / "out"))
    assert len(cohort.units) == 102
    assert len(cohort.recordings) == 4
    assert sum(f.code == "units-differ" for f in cohort.findings) == 4
    # Everything goes down to the slowest recording, 90 Hz.
    assert cohort.sfreq == 90.0


# ---------------------------------------------------------------- a BIDS-MEG folder


def test_the_twin_reads_back(twin: Path) -> None:
    dataset = MegHeadache()
    listing = dataset.list_recordings(twin)
    assert len(listing.recordings) == 12
    assert {f.state for f in listing.recordings} == {"rest", "auditory", "somatosensory"}
    assert {"age", "sex", "diagnosis", "site"} <= set(listing.participants)
    assert set(listing.participants["diagnosis"]) <= {"control", "headache"}
    assert json.loads((twin / "dataset_description.json").read_text())["Simulated"] is True
    assert json.loads((twin / "true_effects.json").read_text())["simulated"] is True
    raw = dataset.read(listing.recordings[0])
    assert raw.sfreq == 150.0
    assert set(raw.units.groups) == LOBES
    # Real magnetometers see hundreds of femtotesla.
    assert 50e-15 < np.nanstd(raw.data) < 1000e-15


def test_the_same_seed_gives_the_same_signal_and_another_seed_another(twin: Path, tmp_path: Path) -> None:
    dataset = MegHeadache()
    for name, seed in (("again", 0), ("other", 1)):
        dataset.simulate(tmp_path / name, n_subjects=4, seed=seed, variant="default")
    first, again, other = (
        dataset.read(dataset.list_recordings(r).recordings[4]).data
        for r in (twin, tmp_path / "again", tmp_path / "other")
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_bad_channels_of_the_sidecar_are_missing_units(folder: Path) -> None:
    dataset = MegHeadache()
    sidecar = folder / "sub-002/meg/sub-002_task-rest_channels.tsv"
    table = pd.read_csv(sidecar, sep="\t")
    table["status"] = "good"
    table.loc[3, "status"] = "bad"
    # A byte-order mark, and names without the blank, as some exporters write them.
    table["name"] = table["name"].str.replace(" ", "")
    sidecar.write_text(table.to_csv(sep="\t", index=False), encoding="utf-8-sig")
    file = next(f for f in dataset.list_recordings(folder).recordings if f.id == "sub-002_rest")
    raw = dataset.read(file)
    missing = np.isnan(raw.data).all(1)
    assert missing.sum() == 1
    assert raw.units.names[int(np.flatnonzero(missing)[0])] == normalised(table.loc[3, "name"])


@pytest.mark.parametrize(
    ("task", "state"),
    [("rest", "rest"), ("AEF", "auditory"), ("sef", "somatosensory"), ("faces", "faces"), ("", "rest")],
)
def test_states_follow_task_labels(task: str, state: str) -> None:
    assert state_of(task, MegHeadache().states) == state


def test_task_labels_can_be_given(folder: Path) -> None:
    for path in folder.rglob("*task-auditory*"):
        path.rename(path.with_name(path.name.replace("task-auditory", "task-beeps")))
    states = {f.state for f in MegHeadache(auditory="beeps").list_recordings(folder).recordings}
    assert states == {"rest", "auditory", "somatosensory"}


def test_broken_files_are_said_in_plain_words(folder: Path) -> None:
    whole = (folder / "sub-001/meg/sub-001_task-rest_meg.fif").read_bytes()
    (folder / "sub-001/meg/sub-001_task-rest_meg.fif").write_bytes(whole[:2000])
    (folder / "sub-002/meg/sub-002_task-rest_meg.fif").write_text("<!DOCTYPE html><html>Please log in</html>")
    (folder / "sub-003/meg/sub-003_task-rest_meg.fif").write_bytes(b"")
    listing = MegHeadache().list_recordings(folder)
    said = {f.subject: f.message for f in listing.findings if f.code == "unreadable"}
    assert "is cut off" in said["sub-001"]
    assert "web page" in said["sub-002"]
    assert "empty" in said["sub-003"]
    assert len(listing.recordings) == 9


def test_a_recording_cut_off_in_its_signal_is_left_out_with_the_reason(folder: Path, tmp_path: Path) -> None:
    path = folder / "sub-001/meg/sub-001_task-rest_meg.fif"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    dataset = MegHeadache()
    cohort = CohortSource(dataset, "meg_headache", {"name": "m"}, dataset.spec, folder).load(Store(tmp_path / "out"))
    assert "sub-001_rest" not in {r.id for r in cohort.recordings}
    finding = next(f for f in cohort.findings if f.code == "unreadable")
    assert "cut off" in finding.message
    assert finding.subject == "sub-001"


def test_unknown_people_and_people_without_recordings(folder: Path) -> None:
    table = pd.read_csv(folder / "participants.tsv", sep="\t")
    table.loc[0, "participant_id"] = "sub-999"
    table.to_csv(folder / "participants.tsv", sep="\t", index=False)
    listing = MegHeadache().list_recordings(folder)
    codes = {f.code: f.message for f in listing.findings}
    assert "sub-001 has recordings and no row in participants.tsv" in codes["unknown-id"]
    assert "sub-999 has no MEG recording" in codes["no-recording"]
    assert "sub-001" not in {f.subject for f in listing.recordings}


def test_three_diagnoses_are_said(folder: Path) -> None:
    table = pd.read_csv(folder / "participants.tsv", sep="\t")
    table["group"] = ["HC", "migraine", "cluster", "migraine"]
    table.to_csv(folder / "participants.tsv", sep="\t", index=False)
    listing = MegHeadache().list_recordings(folder)
    message = next(f.message for f in listing.findings if f.code == "diagnosis-classes")
    assert "cluster, control, migraine" in message
    assert set(listing.participants["diagnosis"]) == {"control", "migraine", "cluster"}


def test_a_table_may_have_group_and_diagnosis(folder: Path) -> None:
    table = pd.read_csv(folder / "participants.tsv", sep="\t")
    table["diagnosis"], table["group"] = ["HC", "migraine"] * 2, "cohort 1"
    table.to_csv(folder / "participants.tsv", sep="\t", index=False)
    people = MegHeadache().list_recordings(folder).participants
    assert people["diagnosis"].tolist() == ["control", "migraine"] * 2
    assert set(people["group"]) == {"cohort 1"}


def test_recordings_of_one_state_are_runs_of_it(folder: Path) -> None:
    meg = folder / "sub-001/meg"
    shutil.copy(meg / "sub-001_task-auditory_meg.fif", meg / "sub-001_task-passive_meg.fif")
    shutil.copy(meg / "sub-001_task-rest_meg.fif", meg / "sub-001_task-rest_acq-closed_meg.fif")
    files = MegHeadache().list_recordings(folder).recordings
    assert len({f.id for f in files}) == len(files) == 14
    runs = {(f.state, f.run) for f in files if f.subject == "sub-001"}
    assert {("auditory", "auditory"), ("auditory", "passive"), ("rest", "rest"), ("rest", "rest-closed")} < runs


def test_mixed_processing_and_strange_names_are_said(folder: Path) -> None:
    meg = folder / "sub-001/meg"
    (meg / "sub-001_task-rest_meg.fif").rename(meg / "sub-001_task-rest_proc-sss_meg.fif")
    (meg / "sub-001_task-auditory_meg.fif").rename(meg / "sub-001_task-auditory_raw.fif")
    (folder / ".git/annex").mkdir(parents=True)
    shutil.copy(meg / "sub-001_task-auditory_raw.fif", folder / ".git/annex/sub-009_task-rest_meg.fif")
    listing = MegHeadache().list_recordings(folder)
    said = {f.code: f.message for f in listing.findings}
    assert said["mixed-derivatives"] == "recordings were processed in different ways: none, sss"
    assert "1 files are not named as BIDS-MEG recordings" in said["unknown-name"]
    assert "sub-001_task-auditory_raw.fif" in said["unknown-name"]
    assert len(listing.recordings) == 11
    assert "unknown-id" not in said


def test_an_empty_folder_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no MEG recording\. Allowed: sub-…_task-…_meg\.fif"):
        MegHeadache().list_recordings(tmp_path)


# ---------------------------------------------------------------- the simulation


def test_the_field_of_a_dipole_falls_with_distance_and_not_for_radial_ones() -> None:
    _, sensors = helmet(1)
    assert sensors.shape == (102, 3)
    place = np.array([[0.0, 0.0, 0.07]])
    across = radial_field(sensors, place, np.array([[1.0, 0.0, 0.0]]))[:, 0]
    radial = radial_field(sensors, place, np.array([[0.0, 0.0, 1.0]]))[:, 0]
    assert np.abs(radial).max() < 1e-9 * np.abs(across).max(), "a radial dipole in a sphere has no field outside"
    near, far = np.argmin(np.linalg.norm(sensors - place, axis=1)), np.argmax(np.linalg.norm(sensors - place, axis=1))
    neighbours = np.argsort(np.linalg.norm(sensors - sensors[near], axis=1))[:12]
    assert np.abs(across[neighbours]).max() > 5 * np.abs(across[far])
    # 20 nAm give the tens to hundreds of femtotesla that real auditory responses have.
    assert 20e-15 < 20e-9 * np.abs(across).max() < 2000e-15


def test_the_field_agrees_with_mne() -> None:
    names, sensors = helmet(6)
    info = mne.create_info(list(names), 100.0, "mag", verbose="ERROR")
    for channel, place in zip(info["chs"], sensors, strict=True):
        outward = place / np.linalg.norm(place)
        side = np.cross(outward, [0.0, 1.0, 0.1])
        side /= np.linalg.norm(side)
        channel["loc"] = np.concatenate([place, side, np.cross(outward, side), outward])
        channel["coil_type"] = mne.io.constants.FIFF.FIFFV_COIL_POINT_MAGNETOMETER
    with info._unlock():
        info["dev_head_t"] = mne.transforms.Transform("meg", "head", np.eye(4))
    place, moment = np.array([[0.02, 0.03, 0.05]]), np.array([[0.8, -0.6, 0.0]])
    sphere = mne.make_sphere_model((0, 0, 0), None, verbose="ERROR")
    dipole = mne.Dipole([0.0], place, [1.0], moment, [1.0], verbose="ERROR")
    forward, _ = mne.make_forward_dipole(dipole, sphere, info, verbose="ERROR")
    theirs = forward["sol"]["data"] @ moment[0] if forward["sol"]["ncol"] == 3 else forward["sol"]["data"][:, 0]
    ours = radial_field(sensors, place, moment)[:, 0]
    np.testing.assert_allclose(ours, theirs, rtol=0.02, atol=1e-3 * np.abs(theirs).max())


def test_groups_differ_in_evoked_states_only() -> None:
    twin = MegTwin(0, effects=type(NO_EFFECTS)(0.0, 0.0, 1.0))
    for state, differs in (("rest", False), ("auditory", True), ("somatosensory", True)):
        control, patient = (twin.record(Person("x", 0.0, p), state)[0] for p in (0, 1))
        assert np.array_equal(control, patient) is not differs


def test_camcan_trees_and_their_best_derivative(tmp_path: Path) -> None:
    people = pd.DataFrame({"age": [30.0, 60.0]}, index=["CC110033", "CC120008"])
    simulate_meg(tmp_path, people, seed=0, effects=True)
    files, findings = list_meg(tmp_path)
    assert [f.subject for f in files] == ["CC110033", "CC120008"]
    assert findings == []
    assert any("transformed to the default head position" in p for p in read_meg(files[0]).provenance)
    raw = tmp_path / "cc700/meg/pipeline/release004/BIDS_20190411/meg_rest_raw/sub-CC110033/ses-rest/meg"
    raw.mkdir(parents=True)
    shutil.copy(files[0].path, raw / "sub-CC110033_ses-rest_task-rest.fif")
    assert list_meg(tmp_path)[0][0].path == files[0].path, "the transformed derivative is preferred to the raw file"
    files[0].path.unlink()
    mixed, findings = list_meg(tmp_path)
    assert mixed[0].path.parent == raw
    assert "mixed-derivatives" in {f.code for f in findings}
    with pytest.raises(DataError, match="no MEG recording of Cam-CAN in state rest"):
        list_meg(tmp_path / "dataman")


def test_camcan_meg_and_fmri_have_the_same_people(tmp_path: Path) -> None:
    for signal in ("fmri", "meg"):
        CamCAN(signal=signal).simulate(tmp_path / signal, n_subjects=4, seed=0, variant="default")
    people = [set(CamCAN(signal=s).list_recordings(tmp_path / s).participants.index) for s in ("fmri", "meg")]
    assert people[0] == people[1]

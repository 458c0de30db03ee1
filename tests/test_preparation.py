"""From files to a cohort: units aligned, faults named, nothing done twice."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from neurobench import preparation
from neurobench.alignment import same_signal
from neurobench.cohorts import CohortSource
from neurobench.data_check import check_data
from neurobench.errors import DataError
from neurobench.filtering import band_pass, resample
from neurobench.preparation import spatial_order
from neurobench.records import Cohort, Event, Finding, RawRecording, RecordingFile, SignalSpec
from neurobench.specimens import simulated_units
from neurobench.store import Store
from neurobench.tokens import Scaler, Tokenizer, evaluation_windows
from tests.fakes import FakeDataset, units, write_folder

SPEC = SignalSpec(window_s=40.0, patch_s=8.0)


def source(root: Path | None, spec: SignalSpec = SPEC) -> CohortSource:
    return CohortSource(FakeDataset(), "fake", {"name": "fake"}, spec, root)


def load(tmp_path: Path, spec: SignalSpec = SPEC) -> Cohort:
    return source(tmp_path / "data", spec).load(Store(tmp_path / "out"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_folder(tmp_path / "data")
    return tmp_path / "data"


def codes(cohort: Cohort) -> dict[str, str]:
    return {f.code: f.message for f in cohort.findings}


def test_a_clean_folder(tmp_path: Path, folder: Path) -> None:
    cohort = load(tmp_path)
    assert len(cohort.subjects) == len(cohort.recordings) == 8
    assert cohort.source == "real"
    assert cohort.findings == ()
    assert cohort.participants["duration_s"].tolist() == [120.0] * 8
    np.testing.assert_allclose(cohort.recordings[0].open(), np.load(folder / "s000.npy"), rtol=1e-6)


def test_a_stored_cohort_is_the_same(tmp_path: Path, folder: Path) -> None:
    first, second = load(tmp_path), load(tmp_path)
    assert first.fingerprint == second.fingerprint
    pd.testing.assert_frame_equal(first.participants, second.participants)
    np.testing.assert_array_equal(first.recordings[3].scale, second.recordings[3].scale)
    assert second.units.describe() == first.units.describe()


def test_a_participant_added_later_prepares_only_that_one(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load(tmp_path)
    read: list[str] = []
    original = FakeDataset.read
    monkeypatch.setattr(FakeDataset, "read", lambda self, file: read.append(file.subject) or original(self, file))
    np.save(folder / "s100.npy", np.load(folder / "s000.npy") * 2)
    with open(folder / "participants.csv", "a") as f:
        f.write("s100,0.5,33,F,A,control\n")
    after = load(tmp_path)
    assert read == ["s100"]
    assert len(after.subjects) == 9
    assert after.fingerprint != before.fingerprint


def test_workers_make_the_same_cohort(tmp_path: Path, folder: Path) -> None:
    (folder / "s003.npy").write_bytes(b"nothing")
    said: list[tuple[int, int]] = []
    one = source(folder).load(Store(tmp_path / "one"))
    two = source(folder).load(Store(tmp_path / "two"), lambda done, total: said.append((done, total)), workers=2)
    assert one.fingerprint == two.fingerprint
    assert [f.code for f in two.findings] == [f.code for f in one.findings] == ["unreadable"]
    assert said == [(i, 8) for i in range(9)]


def test_workers_follow_into_another_folder(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook: the processes of the first cohort are there still, and work where they were started."""
    (tmp_path / "elsewhere").mkdir()
    for place in (tmp_path, tmp_path / "elsewhere"):
        monkeypatch.chdir(place)
        cohort = source(Path(os.path.relpath(folder))).load(Store(Path("out")), workers=2)
        assert len(cohort.subjects) > 2
        assert not [f for f in cohort.findings if f.code == "unreadable"], place


def test_an_interrupted_preparation_goes_on(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = FakeDataset.read
    read: list[str] = []

    def until_the_fifth(self: FakeDataset, file: RecordingFile) -> RawRecording:
        read.append(file.subject)
        if len(read) == 5:
            raise KeyboardInterrupt
        return original(self, file)

    monkeypatch.setattr(FakeDataset, "read", until_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        load(tmp_path)
    cohort = load(tmp_path)
    assert len(cohort.recordings) == 8
    assert sorted(read) == sorted([f"s{i:03d}" for i in range(8)] + ["s004"])


def test_the_size_to_come_is_said(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "PARALLEL_FROM_S", 0.0)
    said: list[str] = []
    source(folder).load(Store(tmp_path / "out"), note=said.append)
    assert "6 more recordings: about" in said[0]
    monkeypatch.setattr(preparation.shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    source(folder, SignalSpec(window_s=40.0, patch_s=8.0, band_hz=(0.01, 0.05))).load(
        Store(tmp_path / "out"), note=said.append
    )
    assert "the disk will be full before the end" in said[1]


def test_regressors_are_removed_and_volumes_are_stored_small(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    nuisance = rng.normal(size=(90, 2))
    data = rng.normal(1000, 30, (4, 90, 27)) + 200 * nuisance[:, 0][None, :, None]
    raw = RawRecording(data.astype(np.int16), 0.5, simulated_units(4, 2, kind="volume"), regressors=nuisance)
    preparation.write_prepared(raw, SignalSpec(40.0, 8.0, sfreq=0.5, band_hz=(0.01, 0.2)), tmp_path)
    stored = np.load(tmp_path / "signal.npy")
    assert stored.dtype == np.float16
    assert stored.shape == (4, 90, 27)
    filtered = band_pass(nuisance.T.copy(), 0.5, (0.01, 0.2))
    left = np.abs(np.einsum("utv,kt->k", stored.astype(float), filtered)).max()
    assert left < 1e-2 * np.abs(stored).sum()
    # One factor for the recording: units keep their sizes relative to each other, about 1.
    assert 0.5 < np.median(stored.astype(float).std((1, 2))) < 2


def test_artefacts_and_events_reach_the_cohort(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = FakeDataset.read
    noticed = Finding("warning", "spiky", "two spikes", fix="look at it")

    def with_events(self: FakeDataset, file: RecordingFile) -> RawRecording:
        raw = original(self, file)
        events = (Event(30.0, "tone"), Event(12.5, "tone"))
        return replace(raw, events=events, bad_spans=((8.5, 9.0),), findings=(noticed,))

    monkeypatch.setattr(FakeDataset, "read", with_events)
    load(tmp_path)
    cohort = load(tmp_path)
    recording = cohort.recordings[2]
    assert recording.events == (Event(12.5, "tone"), Event(30.0, "tone"))
    assert recording.bad_spans == ((8.5, 9.0),)
    found = [f for f in cohort.findings if f.code == "spiky"]
    assert len(found) == 8
    assert found[2].subject == "s002"
    assert found[2].path.endswith("s002.npy")
    batch = Tokenizer(cohort, Scaler.fit(cohort, cohort.subjects)).batch(
        evaluation_windows(cohort, cohort.subjects[:1])[:1], np.arange(3)
    )
    # Patches of 8 s: the second one holds the artefact.
    assert batch.table.valid[0, 0].tolist() == [True, False, True, True, True]


def test_constant_and_nan_units_are_named_and_left_out(tmp_path: Path, folder: Path) -> None:
    data = np.load(folder / "s001.npy")
    data[2], data[5, 7] = 3.0, np.nan
    np.save(folder / "s001.npy", data)
    cohort = load(tmp_path)
    recording = cohort.recordings[1]
    missing = [cohort.units.names[i] for i in np.flatnonzero(~recording.present)]
    assert missing == ["unit-02", "unit-05"]
    assert "1 of 12 units have a constant signal" in codes(cohort)["constant-units"]
    assert "unit-05" in codes(cohort)["not-finite-units"]


def test_a_unit_missing_nearly_everywhere_leaves_the_cohort(tmp_path: Path, folder: Path) -> None:
    for path in sorted(folder.glob("*.npy"))[:6]:
        data = np.load(path)
        data[4] = 0.0
        np.save(path, data)
    cohort = load(tmp_path)
    assert "unit-04" not in cohort.units.names
    assert "1 of 12 units are usable in fewer than half of the recordings" in codes(cohort)["dropped-units"]
    assert cohort.recordings[0].open().shape == (11, 60)


def test_another_sensor_set_is_left_out_with_both_sets_named(tmp_path: Path, folder: Path) -> None:
    np.save(folder / "s002.npy", np.random.default_rng(0).standard_normal((4, 60)))
    cohort = load(tmp_path)
    assert "s002" not in cohort.subjects
    assert "4 units" in codes(cohort)["units-differ"]
    assert "33% are among the 12 units of most recordings" in codes(cohort)["units-differ"]


def test_unreadable_files_are_collected_not_fatal(tmp_path: Path, folder: Path) -> None:
    (folder / "s003.npy").write_text("<html>please log in</html>")
    cohort = load(tmp_path)
    assert len(cohort.subjects) == 7
    assert codes(cohort)["unreadable"] == "s003.npy is not a .npy file."


def test_nothing_usable_says_why_and_how_often(tmp_path: Path, folder: Path) -> None:
    for path in folder.glob("*.npy"):
        path.write_text("x")
    with pytest.raises(DataError, match=r"no recording could be read\. Reasons: unreadable × 8"):
        load(tmp_path)


def test_a_missing_folder_says_where_to_give_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"does not exist\. Give its place: --data-dir fake=PATH"):
        load(tmp_path)


def test_several_sampling_rates_go_down_to_the_slowest(tmp_path: Path, folder: Path) -> None:
    table = pd.read_csv(folder / "participants.csv")
    table.loc[0, "sfreq"] = 1.0
    table.to_csv(folder / "participants.csv", index=False)
    np.save(folder / "s000.npy", np.random.default_rng(1).standard_normal((12, 120)))
    cohort = load(tmp_path)
    assert cohort.sfreq == 0.5
    assert cohort.recordings[0].n_times == 60
    assert any("resampled down to 0.5 Hz from recordings of 0.5, 1 Hz" in p for p in cohort.provenance)


def test_band_pass_keeps_the_band_and_nothing_else() -> None:
    t = np.arange(2000) / 2.0
    slow, inside, fast = (np.sin(2 * np.pi * f * t) for f in (0.001, 0.05, 0.4))
    out = band_pass((slow + inside + fast)[None], 2.0, (0.01, 0.1))[0, 200:-200]
    assert np.corrcoef(out, inside[200:-200])[0, 1] > 0.99
    assert abs(out.std() / inside.std() - 1) < 0.1


def test_resampling_never_goes_up() -> None:
    with pytest.raises(DataError, match="cannot be resampled up"):
        resample(np.zeros((2, 10)), 1.0, 2.0)


def test_spatial_order_is_deterministic_and_keeps_groups_together() -> None:
    table = units(12)
    shuffled = table.take(np.random.default_rng(0).permutation(12))
    ordered = shuffled.take(spatial_order(shuffled))
    assert ordered.names == table.names


def test_the_twin_is_called_simulated(tmp_path: Path) -> None:
    cohort = source(None).load(Store(tmp_path / "out"))
    assert cohort.source == "simulated"
    assert len(cohort.subjects) == 8


def test_check_reads_everything_and_changes_nothing(tmp_path: Path, folder: Path) -> None:
    data = np.load(folder / "s001.npy")
    data[2] = 1.0
    np.save(folder / "s001.npy", data)
    (folder / "s004.npy").write_bytes(b"broken")
    (folder / "s005.npy").unlink()
    state = {p.name: os.stat(p).st_mtime_ns for p in folder.iterdir()}
    report = check_data(FakeDataset(), folder, deep=True)
    assert {p.name: os.stat(p).st_mtime_ns for p in folder.iterdir()} == state
    assert {f.code for f in report.findings} == {"no-recording", "unreadable", "unusable-units"}
    assert report.n_recordings == 6
    assert report.table["subjects"].sum() == 6
    assert report.targets.set_index("column").loc["age", "kind"] == "number"
    assert report.targets.set_index("column").loc["sex", "kind"] == "two classes"


def test_a_piece_is_what_the_whole_holds_there(tmp_path: Path, folder: Path) -> None:
    recording = load(tmp_path).recordings[0]
    units = np.array([4, 0, 3])
    for start, rows in ((0, None), (7, None), (7, np.array([2, -1, 0, 1, 5, 3, 4]))):
        part = replace(recording, start=start, n_times=40, rows=rows)
        np.testing.assert_array_equal(part.piece(5, 30, units), part.open()[units, 5:30])
    assert np.isnan(replace(recording, rows=np.array([2, -1, 0])).piece(0, 9, np.array([1]))).all()


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system takes no advice on what will be read")
def test_the_system_is_told_of_every_byte_of_a_piece_and_of_no_other(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = load(tmp_path).recordings[0]
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr("os.posix_fadvise", lambda file, first, size, advice: asked.append((first, size)))
    for rows, chosen in ((None, [4, 0, 3]), (np.array([2, -1, 0, 1, 5, 3, 4]), [4, 0, 1])):
        asked.clear()
        part = replace(recording, start=7, n_times=40, rows=rows)
        part.expect(5, 30, np.array(chosen))
        read = part.path.read_bytes()
        told = b"".join(read[first : first + size] for first, size in asked)
        piece = part.piece(5, 30, np.array(chosen))
        assert told == piece[~np.isnan(piece).any(1)].tobytes()


def test_one_signal_under_two_people_is_nobodys(tmp_path: Path, folder: Path) -> None:
    (folder / "s003.npy").write_bytes((folder / "s001.npy").read_bytes())
    cohort = load(tmp_path)
    assert not {"s001", "s003"} & set(cohort.subjects)
    assert "one signal under 2 subjects (s001, s003)" in codes(cohort)["same-signal"]
    assert sum(f.code == "same-signal" for f in cohort.findings) == 2
    report = check_data(FakeDataset(), folder, deep=True)
    assert [f.subject for f in report.findings if f.code == "same-signal"] == ["s001", "s003"]
    assert report.n_recordings == len(cohort.recordings) == 6
    # Kept together anyway, it cannot leak.
    table = pd.read_csv(folder / "participants.csv")
    table["family"] = ["f" if s in ("s001", "s003") else None for s in table["participant_id"]]
    table.to_csv(folder / "participants.csv", index=False)
    assert len(load(tmp_path).subjects) == 8


def test_a_copy_of_ones_own_recording_is_said() -> None:
    people = pd.DataFrame(index=["a", "b"])
    findings, lost = same_signal([("a", "x", "1.npy"), ("b", "y", "2.npy"), ("a", "x", "3.npy")], people)
    assert lost == set()
    assert [(f.level, f.path) for f in findings] == [("warning", "3.npy")]
    assert "1.npy" in findings[0].message

"""Bad input of MEG: each with its sentence, while the other recordings go on."""

from __future__ import annotations

import builtins
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mne
import numpy as np
import pandas as pd
import pytest

from neurobench import Cohort, Finding
from neurobench.cohorts import CohortSource
from neurobench.store import Store
from neurobench_datasets._meg_files import list_folder
from neurobench_datasets.meg_headache import MegHeadache
from tests.meg_files import make_raw, save

SUBJECTS = ("sub-01", "sub-02", "sub-03")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for i, subject in enumerate(SUBJECTS):
        triggers = [(0.5 + 0.6 * k, 6) for k in range(8)]
        save(make_raw(seed=i, triggers=triggers), at(root, subject))
    table = pd.DataFrame({"participant_id": SUBJECTS, "age": [30, 40, 50]})
    table.to_csv(root / "participants.tsv", sep="\t", index=False)
    return root


def at(root: Path, subject: str = "sub-01", suffix: str = "meg.fif") -> Path:
    return root / subject / "meg" / f"{subject}_task-auditory_{suffix}"


def load(root: Path, **parameters: Any) -> Cohort:
    dataset = MegHeadache(**parameters)
    return CohortSource(dataset, "m", {"name": "m", **parameters}, dataset.spec, root).load(Store(root.parent / "out"))


def about(cohort: Cohort, subject: str = "sub-01") -> dict[str, Finding]:
    return {f.code: f for f in cohort.findings if f.subject == subject}


# ---------------------------------------------------------------- files that are none


def cut_in_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1500])


def cut_in_signal(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def web_page(path: Path) -> None:
    path.write_text("<!DOCTYPE html><html><title>Log in</title></html>")


def lfs_pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")


def annex_pointer(path: Path) -> None:
    path.write_text("/annex/objects/MD5E-s1000--d41d8cd98f00b204e9800998ecf8427e.fif\n")


def annex_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("../../.git/annex/objects/ab/cd/MD5E-s1000--d41d/MD5E-s1000--d41d.fif")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def random_bytes(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(5000))


def averages(path: Path) -> None:
    info = make_raw().pick("mag").info
    mne.EvokedArray(np.zeros((len(info["chs"]), 100)), info).save(path, overwrite=True, verbose="ERROR")


def no_sensors(path: Path) -> None:
    info = mne.create_info(["EEG 001", "EEG 002"], 100.0, "eeg")
    save(mne.io.RawArray(np.ones((2, 600)), info, verbose="ERROR"), path)


@pytest.mark.filterwarnings("ignore:This filename")
@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (cut_in_header, "is cut off or damaged"),
        (cut_in_signal, "cut off"),
        (web_page, "is a web page, perhaps a login page"),
        (lfs_pointer, "git-LFS pointer"),
        (annex_pointer, "git-annex pointer"),
        (annex_link, "git-annex link whose content is not here"),
        (empty, "is empty (0 bytes)"),
        (random_bytes, "is cut off or damaged"),
        (averages, "holds averages (evoked responses), not a continuous recording"),
        (no_sensors, "holds no MEG sensor"),
    ],
)
def test_a_file_that_is_no_recording(folder: Path, damage: Callable[[Path], None], text: str) -> None:
    damage(at(folder))
    cohort = load(folder)
    assert [r.subject for r in cohort.recordings] == ["sub-02", "sub-03"]
    finding = about(cohort)["unreadable"]
    assert text in finding.message
    assert finding.level == "error"
    assert finding.path == str(at(folder))


def test_a_file_that_may_not_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locked, table = at(folder), at(folder, "sub-02", "events.tsv")
    table.write_text("onset\ttrial_type\n1\ttone\n")
    real_open, real_bytes = builtins.open, Path.read_bytes

    def guarded(file: Any, *args: Any, **kwargs: Any) -> Any:
        # Root may read everything, so that taking the permission away would show nothing.
        if str(file) in (str(locked), str(table)):
            raise PermissionError(13, "Permission denied", str(file))
        return real_open(file, *args, **kwargs)

    def guarded_bytes(path: Path) -> bytes:
        if path == table:
            raise PermissionError(13, "Permission denied", str(path))
        return real_bytes(path)

    monkeypatch.setattr(builtins, "open", guarded)
    monkeypatch.setattr(Path, "read_bytes", guarded_bytes)
    cohort = load(folder)
    assert [r.subject for r in cohort.recordings] == ["sub-02", "sub-03"]
    assert "may not be read by you: permission denied" in about(cohort)["unreadable"].message
    # A table that may not be read leaves the trigger channel.
    assert "Permission denied" in about(cohort, "sub-02")["events-unreadable"].message
    assert {e.condition for e in cohort.recordings[0].events} == {"trigger-6"}


# ---------------------------------------------------------------- sidecars


def write_channels(root: Path, names: list[str], bad: list[str]) -> None:
    table = pd.DataFrame({"name": names, "type": "MEGMAG", "status": ["bad" if n in bad else "good" for n in names]})
    table.to_csv(at(root, suffix="channels.tsv"), sep="\t", index=False)


def test_channel_tables_with_names_that_the_recording_lacks(folder: Path) -> None:
    names = make_raw().ch_names
    write_channels(folder, [*names[:-3], "MEG 9991", "MEG 9992"], ["MEG 9991", names[2]])
    listing = MegHeadache().list_recordings(folder)
    finding = next(f for f in listing.findings if f.code == "channels-differ")
    assert "2 of 17 names in sub-01_task-auditory_channels.tsv are no channels" in finding.message
    assert "MEG 9991, MEG 9992" in finding.message
    assert finding.subject == "sub-01"
    assert listing.recordings[0].options["bads"] == [names[2]], "what fits is used"
    assert len(load(folder).recordings) == 3


def test_a_channel_table_of_another_device_is_not_used(folder: Path) -> None:
    write_channels(folder, ["MLC11", "MLC12"], ["MLC11"])
    cohort = load(folder)
    assert "none of the 2 names" in about(cohort)["channels-differ"].message
    assert all(r.present.all() for r in cohort.recordings)


@pytest.mark.parametrize("text", ["", "name\ttype\tstatus\n", "channel\tstatus\nMEG 0111\tbad\n"])
def test_channel_tables_that_cannot_be_read(folder: Path, text: str) -> None:
    at(folder, suffix="channels.tsv").write_text(text)
    cohort = load(folder)
    assert len(cohort.recordings) == 3
    assert about(cohort)["channels-unreadable"].fix == "write it with columns name and status"


def test_broken_settings_are_none(folder: Path) -> None:
    at(folder, suffix="meg.json").write_text("{not json")
    assert len(load(folder).recordings) == 3


@pytest.mark.parametrize("events", ["", "6:tone"])
def test_a_trigger_channel_that_is_not_there(folder: Path, events: str) -> None:
    cohort = load(folder, trigger="STI 014", events=events)
    assert len(cohort.recordings) == 3
    assert "there is no trigger channel STI 014; the recording's stimulus channels: STI101" in (
        about(cohort)["trigger-channel"].message
    )
    assert about(cohort)["no-events"].level == "warning"


def test_one_recording_without_events_is_named(folder: Path) -> None:
    save(make_raw(seed=5), at(folder, "sub-02"))
    cohort = load(folder)
    assert [r.subject for r in cohort.recordings if not r.events] == ["sub-02"]
    assert {f.subject for f in cohort.findings if f.code == "no-events"} == {"sub-02"}


def test_events_after_the_end(folder: Path) -> None:
    at(folder, suffix="events.tsv").write_text("onset\ttrial_type\n100\ttone\n200\ttone\n")
    cohort = load(folder)
    assert "2 of 2 events of sub-01_task-auditory_events.tsv lie outside" in about(cohort)["events-outside"].message
    assert "no-events" in about(cohort)


# ---------------------------------------------------------------- people and sensors


def test_one_recording_under_two_people_is_nobodys(folder: Path) -> None:
    shutil.copy(at(folder, "sub-01"), at(folder, "sub-02"))
    cohort = load(folder)
    assert [r.subject for r in cohort.recordings] == ["sub-03"]
    for subject in ("sub-01", "sub-02"):
        finding = about(cohort, subject)["duplicate-recording"]
        assert "has the same content as other files" in finding.message
        assert "none is used" in finding.message
        assert finding.level == "error"


def test_one_recording_under_two_states_is_said(folder: Path) -> None:
    shutil.copy(at(folder), folder / "sub-01/meg/sub-01_task-rest_meg.fif")
    cohort = load(folder)
    assert len(cohort.recordings) == 4
    assert "the same recording under 2 names" in about(cohort)["duplicate-recording"].message


def test_a_copy_in_a_plain_folder_is_used_once(tmp_path: Path) -> None:
    save(make_raw(), tmp_path / "a_raw.fif")
    save(make_raw(seed=1), tmp_path / "b_raw.fif")
    shutil.copy(tmp_path / "a_raw.fif", tmp_path / "copy_raw.fif")
    files, findings = list_folder(tmp_path)
    assert [f.subject for f in files] == ["a-raw", "b-raw"]
    finding = next(f for f in findings if f.code == "duplicate-recording")
    assert "only a_raw.fif is used" in finding.message


def test_missing_sensors_are_said_and_the_recording_goes_on(folder: Path) -> None:
    raw = make_raw()
    # Two gradiometers beside each magnetometer, as in the device; one of them and one magnetometer are gone.
    mags = raw.ch_names[:6]
    names = [n[:-1] + c for n in mags for c in "123"]
    info = mne.create_info(names, 200.0, [{"1": "mag"}.get(n[-1], "grad") for n in names])
    for channel in info["chs"]:
        channel["loc"][:3] = [0.1, 0.01 * int(channel["ch_name"][4:7]), 0.05]
    whole = mne.io.RawArray(1e-13 * np.random.default_rng(0).standard_normal((18, 1200)), info, verbose="ERROR")
    for i, subject in enumerate(SUBJECTS):
        part = whole.copy().drop_channels([names[1], names[3]]) if i == 0 else whole.copy()
        part._data *= 1 + i
        save(part, at(folder, subject))
    cohort = load(folder)
    assert len(cohort.recordings) == 3
    text = about(cohort)["missing-sensors"].message
    assert text == f"2 of 6 sites have fewer than 3 sensors: {names[0][:-1]}x, {names[3][:-1]}x"
    # The site without its magnetometer is a missing unit of this one recording.
    assert [int(r.present.sum()) for r in cohort.recordings] == [5, 6, 6]


def test_recordings_without_positions_are_said(folder: Path) -> None:
    for subject in SUBJECTS:
        raw = make_raw(seed=int(subject[-1]))
        for channel in raw.info["chs"]:
            channel["loc"][:] = np.nan if subject == "sub-01" else 0.0
        save(raw, at(folder, subject))
    cohort = load(folder)
    assert len(cohort.recordings) == 3
    assert "17 of 17 sensors have no position" in about(cohort)["no-positions"].message
    assert not cohort.units.has_positions


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_with_marks_and_other_letters(tmp_path: Path, form: Any) -> None:
    root = tmp_path / "Daten für Köln"
    people = ["sub-Jürgen", "sub-Ольга", "sub-田中"]
    for i, subject in enumerate(people):
        save(make_raw(seed=i), at(root, unicodedata.normalize(form, subject)))
    table = "participant_id\tage\n" + "".join(f"{p}\t30\n" for p in people)
    (root / "participants.tsv").write_text(table, encoding="utf-8")
    cohort = load(root)
    assert sorted(cohort.subjects) == sorted(people)


def test_plain_files_in_a_folder_a_person_are_said_to_be_of_one_person(tmp_path: Path) -> None:
    for i in range(4):
        place = tmp_path / f"Pat_{i // 2}"
        place.mkdir(exist_ok=True)
        save(make_raw(seed=i), place / ("Ruhe_raw.fif", "AEF_raw.fif")[i % 2])
    _, findings = list_folder(tmp_path)
    (found,) = (f for f in findings if f.code == "no-participants")
    assert "though they lie in 2 folders (Pat_" in found.message
    assert "one person is in training and test" in found.message


def test_plain_files_with_marks_keep_their_names_apart(tmp_path: Path) -> None:
    for i, name in enumerate(("Müller", "Möller", "田中", "鈴木")):
        save(make_raw(seed=i), tmp_path / f"{name}_raw.fif")
    files, findings = list_folder(tmp_path)
    assert sorted(f.subject for f in files) == sorted(["Müller-raw", "Möller-raw", "田中-raw", "鈴木-raw"])
    assert len({f.id for f in files}) == 4
    assert [f.code for f in findings] == ["no-participants"]

"""MEG files of every vendor: read, or refused with the reason."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mne
import numpy as np
import pytest
import scipy.io
from typer.testing import CliRunner

from neurobench import DataError, RecordingFile
from neurobench.cli import app
from neurobench_datasets._meg_files import list_folder, read_meg_file
from neurobench_datasets._meg_open import open_raw
from neurobench_datasets.meg_headache import MegHeadache
from tests.meg_files import make_raw, save

# Length of a window that fits the recording, or what is said of a file that is none.
FILES: dict[str, float | str] = {
    "141027_cropped_90Hz_raw.fif": 1.0,
    "neuromag122_test_file-raw.fif": 0.2,
    "sample_audvis_trunc_raw_sss.fif": 0.2,
    "triux_bmlhus_erm_raw_sss.fif": 0.2,
    "test_elekta_3ch_raw.fif": 4.0,
    "testdata_ctf_short_discontinuous.ds_raw.fif": 0.4,
    "somMDYO-18av.ds": 0.1,
    "sample_audvis_5s_neuromag306_fieldtrip_raw_v7.mat": 0.5,
    "mne-python_test-ave.fif.gz": "hold averages, no continuous recordings",
}


TRIALS = np.empty(2, object)
TRIALS[:] = [np.zeros((3, 9)), np.ones((3, 8))]


def alone(shared_data: Path, name: str, folder: Path) -> Path:
    source = shared_data / "meg" / name
    folder.mkdir(exist_ok=True)
    (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    return folder


def test_every_real_file_is_known(shared_data: Path) -> None:
    assert {p.name for p in (shared_data / "meg").iterdir()} == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_real_files_are_read_or_refused(shared_data: Path, tmp_path: Path, name: str) -> None:
    root = alone(shared_data, name, tmp_path / "one")
    listing = MegHeadache().list_recordings(root)
    expected = FILES[name]
    if isinstance(expected, str):
        assert listing.recordings == ()
        assert expected in listing.findings[0].message
        assert listing.findings[0].level == "error"
        return
    (file,) = listing.recordings
    raw = MegHeadache().read(file)
    assert raw.data.shape[1] / raw.sfreq > 2 * expected
    assert raw.units.has_positions
    assert np.isfinite(raw.data).any(1).mean() > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sample_audvis_5s_neuromag306_fieldtrip_raw_v7.mat", "somMDYO-18av.ds"])
def test_real_files_of_other_vendors_become_records(shared_data: Path, tmp_path: Path, name: str) -> None:
    root = alone(shared_data, name, tmp_path / "one")
    window = FILES[name]
    assert isinstance(window, float)
    asked = (
        f"run --dataset meg_headache --data-dir meg_headache={root} --split within-recording --task reconstruction "
        f"--backbone transformer --mask random_tube --profile smoke --window-s {window} --patch-s {window / 4} "
        f"--out {tmp_path / 'out'}"
    )
    result = CliRunner().invoke(app, asked.split())
    assert result.exit_code == 0, result.output
    records = [json.loads(p.read_text()) for p in (tmp_path / "out").rglob("*.json") if "records" in p.parts]
    assert {r["status"] for r in records} == {"ok"}
    assert any("transformer" in json.dumps(r) for r in records)


def test_averages_alone_say_what_they_are(shared_data: Path, tmp_path: Path) -> None:
    root = alone(shared_data, "mne-python_test-ave.fif.gz", tmp_path / "one")
    # Under another name its content says it.
    path = (root / "mne-python_test-ave.fif.gz").rename(root / "responses.fif.gz")
    with pytest.raises(DataError, match=r"holds averages \(evoked responses\), not a continuous recording"):
        open_raw(path)
    assert "holds averages" in MegHeadache().list_recordings(root).findings[0].message


# ---------------------------------------------------------------- FieldTrip


def fieldtrip(path: Path, **changed: Any) -> Path:
    rng = np.random.default_rng(0)
    data = {
        "label": np.array(["MEG0111", "MEG0121", "STI101"], object),
        "time": np.arange(500) / 250,
        "trial": np.vstack([1e-13 * rng.standard_normal((2, 500)), np.zeros((1, 500))]),
        "fsample": 250.0,
        "grad": {
            "label": np.array(["MEG0111", "MEG0121"], object),
            "chanpos": np.array([[0.0, 0.0, 12.0], [3.0, 0.0, 11.0]]),
            "chanori": np.array([[0.0, 0.0, 1.0], [0.2, 0.0, 0.98]]),
            "chantype": np.array(["megmag", "megmag"], object),
            "unit": "cm",
            "coordsys": "neuromag",
        },
        **changed,
    }
    scipy.io.savemat(path, {"data": data})
    return path


def test_fieldtrip_gives_sensors_places_and_units(tmp_path: Path) -> None:
    raw = read_meg_file(RecordingFile("s", fieldtrip(tmp_path / "a.mat"), 250.0))
    assert raw.units.names == ("MEG 0111", "MEG 0121")
    np.testing.assert_allclose(raw.units.position_mm, [[0, 0, 120], [30, 0, 110]], atol=1e-3)
    assert raw.sfreq == 250.0
    assert "sensor positions in head coordinates" in raw.provenance
    assert any("FieldTrip" in p for p in raw.provenance)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"trial": TRIALS}, "holds 2 trials, not one continuous"),
        ({"time": np.arange(499) / 250}, "has 3 labels and 499 times for a signal of 3 × 500"),
    ],
)
def test_fieldtrip_that_is_no_recording(tmp_path: Path, changed: dict[str, Any], text: str) -> None:
    with pytest.raises(DataError, match=text):
        open_raw(fieldtrip(tmp_path / "a.mat", **changed))


def test_other_matlab_files_say_what_they_hold(tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "series.mat", {"ROISignals": np.zeros((5, 4))})
    with pytest.raises(DataError, match="holds no FieldTrip recording; its variables: ROISignals"):
        open_raw(tmp_path / "series.mat")
    (tmp_path / "new.mat").write_bytes(
        b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM" + b"\0" * 400
    )
    with pytest.raises(DataError, match=r"version 7\.3.*-v7"):
        open_raw(tmp_path / "new.mat")


# ---------------------------------------------------------------- KIT, 4D, split files


@pytest.mark.parametrize("name", ["sub-01_task-rest_meg.con", "sub-01_task-rest_meg.sqd"])
def test_kit_files_go_to_their_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "sub-01/meg").mkdir(parents=True)
    (tmp_path / "sub-01/meg" / name).write_bytes(b"\x01" * 2000)
    (tmp_path / "participants.tsv").write_text("participant_id\nsub-01\n")
    opened: list[Path] = []

    def reader(path: Path, **options: Any) -> Any:
        opened.append(path)
        return make_raw()

    listing = MegHeadache().list_recordings(tmp_path)
    assert "cannot be opened" in next(f.message for f in listing.findings if f.code == "unreadable")
    monkeypatch.setattr(mne.io, "read_raw", reader)
    assert len(MegHeadache().list_recordings(tmp_path).recordings) == 1
    assert opened[-1].name == name


@pytest.mark.parametrize(("folder", "bids"), [("sub-01_task-rest_meg", True), ("0123", False)])
def test_4d_folders_go_to_their_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, bids: bool
) -> None:
    run = tmp_path / ("sub-01/meg" if bids else "scans") / folder
    run.mkdir(parents=True)
    for name in ("config", "c,rfhp1.0Hz", "c,rfDC", "hs_file"):
        (run / name).write_bytes(b"\x01" * 100)
    if bids:
        (tmp_path / "participants.tsv").write_text("participant_id\nsub-01\n")
    asked: list[tuple[Path, dict[str, Any]]] = []

    def reader(path: Path, **options: Any) -> Any:
        asked.append((path, options))
        return make_raw()

    monkeypatch.setattr(mne.io, "read_raw_bti", reader)
    listing = MegHeadache().list_recordings(tmp_path)
    assert [r.path for r in listing.recordings] == [run]
    assert asked[-1] == (run / "c,rfDC", {"config_fname": run / "config", "head_shape_fname": "hs_file"})


@pytest.mark.parametrize("naming", ["bids", "neuromag"])
def test_split_files_are_one_recording(tmp_path: Path, naming: str) -> None:
    name = "sub-01_task-rest_meg.fif" if naming == "bids" else "long_raw.fif"
    folder = tmp_path / ("sub-01/meg" if naming == "bids" else "")
    folder.mkdir(parents=True, exist_ok=True)
    source = make_raw(seconds=60)
    source.save(folder / name, split_size="2MB", split_naming=naming, verbose="ERROR")
    parts = sorted(p for p in folder.iterdir() if p.name.endswith(".fif"))
    assert len(parts) > 1
    if naming == "bids":
        (tmp_path / "participants.tsv").write_text("participant_id\nsub-01\n")
    listing = MegHeadache().list_recordings(tmp_path)
    (file,) = listing.recordings
    assert len(file.options["parts"]) == len(parts) - 1
    assert MegHeadache().read(file).data.shape == (17, 60_000)
    # Without its second part it says which one that is.
    second = parts[1] if naming == "bids" else folder / "long_raw-1.fif"
    second.rename(folder / "elsewhere")
    listing = MegHeadache().list_recordings(tmp_path)
    text = next(f.message for f in listing.findings if f.code == "unreadable")
    assert f"next part, {second.name}, is not here" in text
    if naming == "bids":
        (folder / "elsewhere").rename(second)
        parts[0].unlink()
        listing = MegHeadache().list_recordings(tmp_path)
        assert (
            "whose first part, split-01, is not here" in {f.code: f.message for f in listing.findings}["missing-part"]
        )


def test_a_plain_folder_with_two_files_of_one_name(tmp_path: Path) -> None:
    for i in range(2):
        save(make_raw(seed=i), tmp_path / f"day{i}/recording_raw.fif")
    files, _ = list_folder(tmp_path)
    assert [f.subject for f in files] == ["recording-raw", "recording-raw-2"]

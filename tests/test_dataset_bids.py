"""fMRIPrep derivatives through an atlas: tiny images, real layout."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from neurobench import ConfigError, DataError, SignalSpec
from neurobench.filtering import Temporal
from neurobench.preparation import identity_of
from neurobench_datasets._atlases import find_atlas, regions_of
from neurobench_datasets.bids import BIDS

SPACE = "space-MNI152NLin2009cAsym"
AFFINE = np.diag([8.0, 8.0, 8.0, 1.0]) + np.array([[0, 0, 0, -24], [0, 0, 0, -24], [0, 0, 0, -24], [0, 0, 0, 0.0]])
N_TIMES = 60


def atlas_in(folder: Path, *, named: bool = True) -> Path:
    labels = np.zeros((6, 6, 6), np.int16)
    labels[1:3, 1:5, 1:5], labels[3:5, 1:5, 1:3], labels[3:5, 1:5, 3:5] = 3, 7, 12
    path = folder / "tiny.nii.gz"
    nib.Nifti1Image(labels, AFFINE).to_filename(path)
    if named:
        (folder / "tiny.csv").write_text("label,name,group\n3,left,one\n7,low,two\n12,high,two\n", encoding="utf-8")
    return path


def write_run(root: Path, subject: str, *, task: str = "rest", space: str = SPACE, sidecar: bool = True) -> Path:
    func = root / "derivatives" / "fmriprep" / f"sub-{subject}" / "func"
    func.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(int(subject))
    voxels = rng.normal(1000, 1, (6, 6, 6, N_TIMES)).astype(np.float32)
    # Region 3 follows a known course; motion is in every voxel and has to go.
    course, motion = np.sin(np.arange(N_TIMES) / 3), rng.normal(size=N_TIMES)
    voxels[1:3, 1:5, 1:5] += 10 * course
    voxels += 50 * motion
    image = nib.Nifti1Image(voxels, AFFINE)
    image.header.set_zooms((8, 8, 8, 2.5 if sidecar else 2.0))
    image.header.set_xyzt_units("mm", "sec")
    stem = f"sub-{subject}_task-{task}"
    path = func / f"{stem}_{space}_desc-preproc_bold.nii.gz"
    image.to_filename(path)
    nib.Nifti1Image(np.ones((6, 6, 6), np.uint8), AFFINE).to_filename(func / f"{stem}_{space}_desc-brain_mask.nii.gz")
    if sidecar:
        path.with_name(path.name.replace(".nii.gz", ".json")).write_text(json.dumps({"RepetitionTime": 2.5}))
    table = {f"{kind}_{axis}": np.zeros(N_TIMES) for kind in ("trans", "rot") for axis in "xyz"}
    table["trans_x"] = motion
    for name in list(table):
        table |= {f"{name}{s}": np.zeros(N_TIMES) for s in ("_derivative1", "_power2", "_derivative1_power2")}
    table |= {"csf": np.zeros(N_TIMES), "white_matter": np.zeros(N_TIMES), "cosine00": np.zeros(N_TIMES)}
    table["framewise_displacement"] = np.full(N_TIMES, 0.2)
    frame = pd.DataFrame(table)
    frame.loc[0, "framewise_displacement"] = np.nan
    frame.to_csv(func / f"{stem}_desc-confounds_timeseries.tsv", sep="\t", index=False, na_rep="n/a")
    (func / f"{stem}_desc-confounds_timeseries.json").write_text("{}")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    write_run(root, "01")
    write_run(root, "02", sidecar=False)
    (root / "participants.tsv").write_bytes("\ufeffparticipant_id\tage\tsex\nsub-01\t30\tF\nsub-02\tn/a\tM\n".encode())
    return root


def test_reads_regions_without_motion(folder: Path, tmp_path: Path) -> None:
    data = BIDS(atlas=str(atlas_in(tmp_path)), confounds="motion")
    listing = data.list_recordings(folder)
    assert [r.id for r in listing.recordings] == ["sub-01_rest", "sub-02_rest"]
    assert [round(1 / r.sfreq, 3) for r in listing.recordings] == [2.5, 2.0]  # sidecar, then header
    assert listing.participants.loc["sub-01", "age"] == 30
    assert listing.participants["mean_fd"].round(6).tolist() == [0.2, 0.2]
    raw = data.read(listing.recordings[0])
    assert raw.data.shape == (3, N_TIMES)
    assert raw.units.names == ("left", "low", "high")
    assert raw.units.groups == ("one", "two", "two")
    np.testing.assert_allclose(raw.units.position_mm[0], [-12, -4, -4])
    # 24 motion regressors go through the band-pass with the data; a wide band shows what they take.
    cleaned = Temporal(N_TIMES, raw.sfreq, raw.sfreq, None, raw.regressors)(raw.data)
    assert abs(np.corrcoef(cleaned[0], np.sin(np.arange(N_TIMES) / 3))[0, 1]) > 0.9
    assert "confounds removed: motion" in raw.provenance
    kept = BIDS(atlas=str(tmp_path / "tiny.nii.gz"), confounds="none").read(listing.recordings[0])
    assert abs(np.corrcoef(kept.data[0], np.sin(np.arange(N_TIMES) / 3))[0, 1]) < 0.5


def test_regions_without_names_or_voxels(folder: Path, tmp_path: Path) -> None:
    path = atlas_in(tmp_path, named=False)
    image = nib.load(path)
    labels = np.asarray(image.dataobj).copy()
    labels[5, 5, 5] = 40
    nib.Nifti1Image(labels, AFFINE).to_filename(path)
    mask = next(folder.rglob("sub-01*brain_mask.nii.gz"))
    inside = np.ones((6, 6, 6), np.uint8)
    inside[5, 5, 5] = 0
    nib.Nifti1Image(inside, AFFINE).to_filename(mask)
    data = BIDS(atlas=str(path), confounds="none")
    raw = data.read(data.list_recordings(folder).recordings[0])
    assert raw.units.names == ("label-0003", "label-0007", "label-0012", "label-0040")
    assert np.isnan(raw.data[3]).all()
    assert np.isfinite(raw.data[:3]).all()
    assert raw.units.group_source == "position"


def test_what_is_not_used_is_said(folder: Path, tmp_path: Path) -> None:
    write_run(folder, "01", task="movie")
    write_run(folder, "03", space="space-T1w")
    write_run(folder, "04")
    cut = write_run(folder, "02")
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    data = BIDS(atlas=str(atlas_in(tmp_path)))
    listing = data.list_recordings(folder)
    assert {f.code for f in listing.findings} >= {"other-tasks", "wrong-space", "unknown-id", "missing-target"}
    assert [r.subject for r in listing.recordings] == ["sub-01", "sub-02"]
    with pytest.raises(DataError, match="cut off"):
        data.read(listing.recordings[1])
    cut.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    found = [f for f in data.list_recordings(folder).findings if f.code == "unreadable"]
    assert len(found) == 1
    assert "git lfs pull" in found[0].message


def test_damage_is_not_read_silently(folder: Path, tmp_path: Path) -> None:
    path = next(folder.rglob("sub-01*preproc_bold.nii.gz"))
    content = bytearray(gzip.decompress(path.read_bytes()))
    packed = bytearray(gzip.compress(bytes(content), compresslevel=0))
    packed[len(packed) // 2] ^= 0xFF
    path.write_bytes(bytes(packed))
    data = BIDS(atlas=str(atlas_in(tmp_path)))
    with pytest.raises(DataError, match="is damaged"):
        data.read(data.list_recordings(folder).recordings[0])


def test_no_position_in_space(folder: Path, tmp_path: Path) -> None:
    path = next(folder.rglob("sub-01*preproc_bold.nii.gz"))
    image = nib.load(path)
    nib.Nifti1Image(np.asarray(image.dataobj), np.eye(4)).to_filename(path)
    data = BIDS(atlas=str(atlas_in(tmp_path)))
    with pytest.raises(DataError, match="identity affine"):
        data.read(data.list_recordings(folder).recordings[0])


def test_a_changed_atlas_is_another_one(folder: Path, tmp_path: Path) -> None:
    path = atlas_in(tmp_path)
    data = BIDS(atlas=str(path))
    spec = SignalSpec(window_s=40.0, patch_s=8.0, sfreq=0.4)
    before = identity_of({}, data.list_recordings(folder).recordings[0], spec)
    assert identity_of({}, data.list_recordings(folder).recordings[0], spec) == before
    (tmp_path / "tiny.csv").write_text("label,name,group\n3,left,two\n7,low,two\n12,high,one\n", encoding="utf-8")
    assert identity_of({}, data.list_recordings(folder).recordings[0], spec) != before


def test_a_sidecar_against_the_header(folder: Path, tmp_path: Path) -> None:
    image = next(folder.rglob("sub-01*_desc-preproc_bold.nii.gz"))
    sidecar = image.with_name(image.name.replace(".nii.gz", ".json"))
    for said, message in ((2500.0, "milliseconds"), (1.1, "the header of sub-01")):
        sidecar.write_text(json.dumps({"RepetitionTime": said}))
        listing = BIDS(atlas=str(atlas_in(tmp_path))).list_recordings(folder)
        assert [r.subject for r in listing.recordings] == ["sub-02"]
        assert message in next(f.message for f in listing.findings if f.code == "no-repetition-time")


def test_one_recording_under_two_people(folder: Path, tmp_path: Path) -> None:
    first = next(folder.rglob("sub-01*_desc-preproc_bold.nii.gz"))
    second = next(folder.rglob("sub-02*_desc-preproc_bold.nii.gz"))
    second.write_bytes(first.read_bytes())
    listing = BIDS(atlas=str(atlas_in(tmp_path))).list_recordings(folder)
    assert [r.subject for r in listing.recordings] == ["sub-01"]
    assert "is a copy of" in next(f.message for f in listing.findings if f.code == "duplicate-recording")


def test_patches_of_a_volume(folder: Path, tmp_path: Path) -> None:
    data = BIDS(signal="volume", atlas=str(atlas_in(tmp_path)), confounds="none", spacing_mm=8.0, patch_voxels=3)
    raw = data.read(data.list_recordings(folder).recordings[0])
    assert data.signal == "volume"
    assert raw.data.shape == (len(raw.units), N_TIMES, 27)
    assert set(raw.units.types) == {"patch"}
    assert "field-of-view" in {f.code for f in raw.findings}
    with pytest.raises(ConfigError, match="n_units of bids is for signal=parcels"):
        BIDS(signal="volume", n_units=5)


def test_raw_images_are_counted(folder: Path, tmp_path: Path) -> None:
    raw = folder / "sub-03" / "func" / "sub-03_task-rest_bold.nii.gz"
    raw.parent.mkdir(parents=True)
    raw.write_bytes(b"\x1f\x8b")
    listing = BIDS(atlas=str(atlas_in(tmp_path))).list_recordings(folder)
    finding = next(f for f in listing.findings if f.code == "raw-images")
    assert "1 raw images of 1 people" in finding.message
    assert "fMRIPrep" in finding.fix


def test_errors_name_the_fix(folder: Path, tmp_path: Path) -> None:
    atlas = str(atlas_in(tmp_path))
    with pytest.raises(DataError, match=r"bids\[atlas="):
        BIDS().list_recordings(folder)
    with pytest.raises(DataError, match="does not exist"):
        BIDS(atlas=str(tmp_path / "none.nii")).list_recordings(folder)
    with pytest.raises(DataError, match="no preprocessed BOLD"):
        BIDS(atlas=atlas, bids_task="nback").list_recordings(folder)
    with pytest.raises(ConfigError, match="Did you mean 'motion'"):
        BIDS(confounds="motoin")
    with pytest.raises(ConfigError, match="no signal 'eeg'"):
        BIDS(signal="eeg")
    data = BIDS(atlas=atlas, confounds="compcor")
    recording = data.list_recordings(folder).recordings[0]
    with pytest.raises(DataError, match="confounds=none"):
        data.read(recording)


def test_without_a_table_of_people(folder: Path, tmp_path: Path) -> None:
    (folder / "participants.tsv").unlink()
    listing = BIDS(atlas=str(atlas_in(tmp_path))).list_recordings(folder)
    assert list(listing.participants.index) == ["01", "02"]
    assert "no-participants-table" in {f.code for f in listing.findings}


def test_real_atlas(shared_data: Path) -> None:
    table = regions_of(find_atlas(str(shared_data / "atlas" / "pcp" / "aal_mask_pad.nii.gz"), "bids"))
    assert len(table) == 116
    assert table["label"].iloc[0] == 2001
    assert table["name"].iloc[0] == "Precentral_L"
    assert table.loc[0, "x"] < 0 < table.loc[1, "x"]

"""The fMRI half of Cam-CAN: tables of the release, ROI time series, fMRIPrep derivatives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from neurobench import ConfigError, DataError
from neurobench_datasets.camcan import BIDS_MRI, CATTELL, CamCAN


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("camcan")
    CamCAN().simulate(root, n_subjects=24, seed=2, variant="default")
    return root


@pytest.fixture
def twin(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "data"))


def test_twin_through_the_release_tables(twin: Path) -> None:
    data = CamCAN()
    listing = data.list_recordings(twin)
    people = listing.participants
    assert len(people) == len(listing.recordings) == 24
    assert all(i.startswith("CC") and len(i) == 8 for i in people.index)
    assert people["age"].between(18, 88).all()
    assert set(people["sex"]) == {"F", "M"}
    assert people["fluid_intelligence"].between(0, 46).sum() > 18
    assert people[["age", "fluid_intelligence"]].corr().iloc[0, 1] < -0.3
    assert "sex_code" not in people
    raw = data.read(listing.recordings[0])
    assert raw.data.shape == (64, 122)
    assert 1 / raw.sfreq == pytest.approx(1.97)
    assert raw.units.has_positions
    assert raw.units.names[0].startswith("synth-L-")
    assert len(CamCAN(n_units=10).read(listing.recordings[0]).units) == 10


def test_the_two_tables_code_sex_differently(twin: Path) -> None:
    # Without the table that says it in words nothing is guessed from the codes.
    next(twin.rglob("standard_data.csv")).unlink()
    listing = CamCAN().list_recordings(twin)
    assert listing.participants["sex"].isna().all()
    assert "sex-coding" in {f.code for f in listing.findings}
    assert len(listing.recordings) == 24


def test_cattell_summary_with_text_around_it_or_single_files(twin: Path) -> None:
    before = CamCAN().list_recordings(twin).participants["fluid_intelligence"]
    summary = twin / CATTELL / "summary" / "Cattell_summary.txt"
    text = summary.read_text().splitlines()
    assert text[8].startswith("CCID")
    assert not text[-1].startswith("CC")
    summary.unlink()
    assert "fluid_intelligence" not in CamCAN().list_recordings(twin).participants
    (twin / CATTELL / "data").mkdir()
    for ccid, score in before.dropna().items():
        path = twin / CATTELL / "data" / f"Cattell_{ccid}_scored.txt"
        path.write_text(f"CCID\tNtrials\tTotalScore\n{ccid}\t46\t{score:g}\n")
    after = CamCAN().list_recordings(twin).participants["fluid_intelligence"]
    assert after.dropna().equals(before.dropna())


def test_contradicting_ages_and_strangers_are_said(twin: Path) -> None:
    table = twin / BIDS_MRI / "epi_rest" / "participants.tsv"
    lines = table.read_text().splitlines()
    cells = lines[1].split("\t")
    lines[1] = "\t".join([cells[0], "99", *cells[2:]])
    table.write_text("\n".join(lines) + "\n")
    first = sorted((twin / "timeseries").iterdir())[0]
    shutil.copy(first, first.with_name(first.name.replace(first.name[4:12], "CC999999")))
    listing = CamCAN().list_recordings(twin)
    found = {f.code: f.message for f in listing.findings}
    assert cells[0].removeprefix("sub-") in found["ages-differ"]
    assert "CC999999" in found["unknown-id"]
    assert listing.participants["age"].max() < 99


def test_raw_images_and_missing_atlas_say_what_to_do(twin: Path) -> None:
    shutil.rmtree(twin / "timeseries")
    raw = twin / BIDS_MRI / "epi_rest" / "sub-CC110001" / "epi_rest" / "sub-CC110001_epi_rest.nii.gz"
    raw.parent.mkdir(parents=True)
    raw.write_bytes(b"")
    with pytest.raises(DataError, match=r"are raw\..*fMRIPrep"):
        CamCAN().list_recordings(twin)
    func = twin / "derivatives" / "fmriprep" / "sub-CC110001" / "func"
    func.mkdir(parents=True)
    path = func / "sub-CC110001_task-rest_space-MNI152NLin2009cAsym_res-2_desc-preproc_bold.nii.gz"
    path.write_bytes(b"\x1f\x8b")
    path.with_name(path.name.replace(".nii.gz", ".json")).write_text(json.dumps({"RepetitionTime": 1.97}))
    with pytest.raises(DataError, match=r"camcan\[atlas="):
        CamCAN().list_recordings(twin)
    confounds = func / "sub-CC110001_task-rest_desc-confounds_timeseries.tsv"
    confounds.write_text("framewise_displacement\tcsf\nn/a\t1\n0.3\t2\n0.1\t3\n")
    atlas = twin / "atlas.nii.gz"
    with pytest.raises(DataError, match="does not exist"):
        CamCAN(atlas=str(atlas)).list_recordings(twin)
    atlas.write_bytes(b"\x1f\x8b")
    listing = CamCAN(atlas=str(atlas)).list_recordings(twin)
    assert [r.id for r in listing.recordings] == ["CC110001_rest"]
    assert listing.participants.loc["CC110001", "mean_fd"] == pytest.approx(0.2)


def test_folders_and_parameters_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no table of participants with CCIDs"):
        CamCAN().list_recordings(tmp_path)
    with pytest.raises(ConfigError, match="Did you mean 'fmri'"):
        CamCAN(signal="fmr")
    with pytest.raises(ConfigError, match="are for fMRI"):
        CamCAN(signal="meg", atlas="x.nii")


def test_signal_settles_modality() -> None:
    assert (CamCAN().modality, CamCAN().signal) == ("fmri", "parcels")
    meg = CamCAN(signal="meg")
    assert (meg.modality, meg.signal, meg.card.modality) == ("meg", "sensors", "meg")


def test_null_and_confounded_twins(tmp_path: Path) -> None:
    for variant in ("null", "confounded"):
        (tmp_path / variant).mkdir()
        CamCAN().simulate(tmp_path / variant, n_subjects=8, seed=0, variant=variant)
    assert json.loads((tmp_path / "null" / "true_effects.json").read_text())["effects"]["age"] == 0
    data = CamCAN()
    noise = []
    for recording in data.list_recordings(tmp_path / "confounded").recordings:
        signal = data.read(recording).data
        noise.append(np.diff(signal, axis=1).std())
    # Motion, and with it noise, rises with age, and CCIDs are in the order of age.
    assert np.corrcoef(noise, np.arange(len(noise)))[0, 1] > 0.5


def test_the_volume_twin_is_read_with_its_confounds(tmp_path: Path) -> None:
    data = CamCAN(signal="volume", spacing_mm=8.0, patch_voxels=3)
    data.simulate(tmp_path, n_subjects=4, seed=1, variant="default")
    listing = data.list_recordings(tmp_path)
    assert len(listing.recordings) == 4
    assert listing.participants["mean_fd"].notna().all()
    raw = data.read(listing.recordings[0])
    assert raw.data.shape[1:] == (122, 27)
    assert raw.regressors is not None
    assert raw.regressors.shape == (122, 27)
    assert len(raw.units.region_names) == 64

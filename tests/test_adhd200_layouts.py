"""ADHD-200 in every form it is given out in: which images are found, who they belong to, who is left out and why."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from neurobench import DataError, Finding, Listing
from neurobench_datasets._adhd200_phenotypes import read_phenotypes
from neurobench_datasets.adhd200 import ADHD200

N_TIMES = 60
AFFINE = np.diag([16.0, 16.0, 16.0, 1.0])
AFFINE[:3, 3] = [-96, -128, -80]
SHAPE = (13, 15, 12)


def write_image(path: Path, seed: int, *, t_r: float = 1.0) -> Path:
    data = np.random.default_rng(seed).integers(500, 1500, (*SHAPE, N_TIMES)).astype(np.int16)
    image = nib.Nifti1Image(data, AFFINE)
    image.header["pixdim"][4] = t_r
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def write_atlas(root: Path) -> None:
    labels = np.ones(SHAPE, np.int16)
    labels[7:] = 2
    nib.save(nib.Nifti1Image(labels, AFFINE), root / "atlas.nii.gz")


def phenotypes(root: Path, site: str, code: int, rows: list[tuple[object, ...]], *, test: bool = False) -> None:
    columns = ["ScanDir ID", "Site", "Gender", "Age", "Handedness", "DX", "Secondary Dx ", "Full4 IQ", "QC_Rest_1"]
    frame = pd.DataFrame([(i, code, g, a, h, dx, "", iq, qc) for i, g, a, h, dx, iq, qc in rows], columns=columns)
    (root / site).mkdir(parents=True, exist_ok=True)
    frame.to_csv(root / site / f"{site}{'_TestRelease' if test else ''}_phenotypic.csv", index=False)


NYU = [
    (10001, 0, 9.5, 0.8, "0", 110, "1"),
    (10002, 1, 11.0, -0.9, "1", -999, "0"),
    (10003, 1, 8.0, 0.1, "pending", 95, "1"),
]


@pytest.fixture
def athena(tmp_path: Path) -> Path:
    phenotypes(tmp_path, "NYU", 5, NYU)
    for i, (subject, *_) in enumerate(NYU):
        stem = f"{subject:07d}_session_1_rest_1"
        folder = tmp_path / "NYU" / f"{subject:07d}"
        write_image(folder / f"sfnwmrda{stem}.nii.gz", i)
        write_image(folder / f"snwmrda{stem}.nii.gz", 100 + i)
        np.savetxt(folder / f"rp_{stem}.1D", np.cumsum(np.full((N_TIMES, 6), 0.01), 0))
    write_atlas(tmp_path)
    return tmp_path


def codes(listing: Listing) -> dict[str, Finding]:
    return {f.code: f for f in listing.findings}


def test_athenas_volumes(athena: Path) -> None:
    listing = ADHD200().list_recordings(athena)
    assert [r.id for r in listing.recordings] == [f"001000{i}_ses-1_rest_run-1" for i in (1, 2, 3)]
    assert all(r.path.name.startswith("sfnwmrda") for r in listing.recordings)
    # The site's repetition time: the header of an Athena volume does not hold it.
    assert {round(1 / r.sfreq, 3) for r in listing.recordings} == {2.0}
    # Three rotations of .01 degrees on a sphere of 50 mm, and three shifts of .01 mm.
    expected = 3 * 0.01 + 3 * np.deg2rad(0.01) * 50
    assert listing.participants.loc["0010001", "mean_fd"] == pytest.approx(expected)
    raw = ADHD200(confounds="motion").read(listing.recordings[0])
    assert raw.data.shape == (2, N_TIMES)
    # Athena's are regressed already.
    assert raw.regressors is None
    assert any("first four volumes removed" in p for p in raw.provenance)
    unfiltered = ADHD200(filtered=False).list_recordings(athena)
    assert all(r.path.name.startswith("snwmrda") for r in unfiltered.recordings)


def test_the_rule_of_inclusion(athena: Path) -> None:
    everybody = ADHD200().list_recordings(athena)
    assert "1 recordings are questionable" in codes(everybody)["questionable"].message
    passed = ADHD200(qc="passed").list_recordings(athena)
    assert [r.subject for r in passed.recordings] == ["0010001", "0010003"]
    assert codes(passed)["quality-control"].subject == "0010002"
    people = everybody.participants
    assert people["diagnosis"].tolist()[:2] == ["control", "adhd"]
    assert people["diagnosis"].isna().tolist() == [False, False, True]
    assert people["full_iq"].isna().tolist() == [False, True, False]
    assert people["handedness"].tolist() == ["R", "L", "both"]
    assert people["sex"].tolist() == ["F", "M", "M"]


def test_volumes_as_patches(athena: Path) -> None:
    data = ADHD200(signal="volume", spacing_mm=8.0, patch_voxels=3)
    raw = data.read(data.list_recordings(athena).recordings[0])
    assert raw.data.shape[1:] == (N_TIMES, 27)
    assert len(raw.units.region_names) == 2


def test_no_atlas_is_an_error_that_says_what_to_give(athena: Path) -> None:
    (athena / "atlas.nii.gz").unlink()
    with pytest.raises(DataError, match=r"adhd200 needs an atlas.*aal3.*Say adhd200\[atlas="):
        ADHD200().list_recordings(athena)


def test_nilearns_download(tmp_path: Path) -> None:
    folder = tmp_path / "adhd"
    for i, subject in enumerate(("0010042", "1019436")):
        write_image(folder / "data" / subject / f"{subject}_rest_tshift_RPI_voreg_mni.nii.gz", i, t_r=2.0)
        names = ["csf", "constant", "linearTrend", "wm", "global", "motion-pitch", "motion-roll", "compcor1"]
        frame = pd.DataFrame(np.random.default_rng(i).normal(size=(N_TIMES, len(names))), columns=names)
        frame.to_csv(folder / "data" / subject / f"{subject}_regressors.csv", index=False)
    people = pd.DataFrame(
        {
            "Subject": [10042, 1019436],
            "MeanFD": [0.12, 0.3],
            "site": ["NYU", "Pittsburgh"],
            "sex": ["F", "M"],
            "age": [9.0, 12.5],
            "full_4_iq": [100, -999],
            "adhd": [0, 1],
        }
    )
    people.to_csv(folder / "ADHD200_40subs_motion_parameters_and_phenotypics.csv", index=False)
    write_atlas(tmp_path)
    listing = ADHD200().list_recordings(tmp_path)
    assert [r.subject for r in listing.recordings] == ["0010042", "1019436"]
    # The sites differ in their repetition time, whatever the download says.
    assert [round(1 / r.sfreq, 2) for r in listing.recordings] == [2.0, 1.5]
    assert listing.participants["diagnosis"].tolist() == ["control", "adhd"]
    assert listing.participants["sex"].tolist() == ["F", "M"]
    assert listing.participants["mean_fd"].tolist() == [0.12, 0.3]
    raw = ADHD200(confounds="motion+wm_csf").read(listing.recordings[1])
    assert raw.regressors is not None
    assert raw.regressors.shape == (N_TIMES, 4)


def test_the_bids_release_and_its_derivatives(tmp_path: Path) -> None:
    for site, name, dx in (
        ("NYU", "0010001", "ADHD-Combined"),
        ("Peking_2", "9050033", "Typically Developing Children"),
    ):
        folder = tmp_path / "RawDataBIDS" / site
        write_image(
            folder / f"sub-{name}" / "ses-1" / "func" / f"sub-{name}_ses-1_task-rest_acq-1_run-1_bold.nii.gz", 1
        )
        table = f"participant_id\tgender\tage\tdx\tnote\n{name}\tFemale\t10.5\t{dx}\té\n"
        (folder / "participants.tsv").write_bytes(table.encode("latin-1"))
    write_atlas(tmp_path)
    with pytest.raises(DataError, match=r"its images are raw.*Run fMRIPrep"):
        ADHD200().list_recordings(tmp_path)
    derivative = tmp_path / "derivatives" / "sub-0010001" / "ses-1" / "func"
    stem = "sub-0010001_ses-1_task-rest_run-1_space-MNI152NLin2009cAsym"
    image = write_image(derivative / f"{stem}_desc-preproc_bold.nii.gz", 2)
    image.with_name(image.name.replace(".nii.gz", ".json")).write_text('{"RepetitionTime": 2.0}')
    listing = ADHD200().list_recordings(tmp_path)
    assert [r.id for r in listing.recordings] == ["0010001_ses-1_rest_run-1"]
    assert listing.participants.loc["0010001", ["diagnosis", "dx_subtype", "site", "sex"]].tolist() == [
        "adhd",
        "combined",
        "NYU",
        "F",
    ]
    assert listing.participants.loc["9050033", ["diagnosis", "site"]].tolist() == ["control", "Peking"]
    assert "2 raw images of 2 people" in codes(listing)["raw-images"].message
    assert "1 of 2 participants have no usable recording" in codes(listing)["no-recording"].message


def test_labels_that_were_published_later(tmp_path: Path) -> None:
    phenotypes(tmp_path, "Brown", 2, [(26001, 0, 9.0, 1, "withheld", 100, "1")], test=True)
    phenotypes(tmp_path, "OHSU", 6, [(26002, 1, 9.0, 1, "withheld", 100, "1")], test=True)
    (tmp_path / "allSubs_testSet_phenotypic_dx.csv").write_text(
        "ID,Site,Gender,Age,DX\n26001,2,0,9.0,pending\n26002,6,1,9.0,3\n"
    )
    (tmp_path / "adhd200_preprocessed_phenotypics.tsv").write_text(
        "ScanDir ID\tSite\tDX\tQC_Athena\tQC_NIAK\n26002\t6\t3\t0\tN/A\n"
    )
    findings: list[Finding] = []
    people = read_phenotypes(tmp_path, findings)
    assert people["dx_subtype"].tolist() == [None, "inattentive"] or people["dx_subtype"].isna().tolist() == [
        True,
        False,
    ]
    assert people.loc["0026002", "diagnosis"] == "adhd"
    assert people.loc["0026002", "qc_athena"] == 0
    assert people["site"].tolist() == ["Brown", "OHSU"]
    assert findings == []


def test_two_layouts_in_one_folder(athena: Path) -> None:
    derivative = athena / "derivatives" / "sub-0010001" / "func"
    image = write_image(derivative / "sub-0010001_task-rest_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz", 9, t_r=2.0)
    image.with_name(image.name.replace(".nii.gz", ".json")).write_text('{"RepetitionTime": 2.0}')
    auto = ADHD200().list_recordings(athena)
    assert {r.options["layout"] for r in auto.recordings} == {"athena"}
    assert "there is also fmriprep (1 recordings)" in codes(auto)["other-layout"].message
    chosen = ADHD200(layout="fmriprep").list_recordings(athena)
    assert [r.options["layout"] for r in chosen.recordings] == ["fmriprep"]
    with pytest.raises(DataError, match="no recording that adhd200 can use"):
        ADHD200(layout="nilearn").list_recordings(athena)


def test_copies_and_files_that_cannot_be_opened(athena: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = sorted(athena.rglob("sfnwmrda*.nii.gz"))
    second.write_bytes(first.read_bytes())
    third.write_text("<html>please log in</html>")
    listing = ADHD200().list_recordings(athena)
    assert [r.subject for r in listing.recordings] == ["0010001"]
    assert codes(listing)["duplicate-recording"].subject == "0010002"
    assert "web page" in codes(listing)["unreadable"].message


def test_the_volume_twin(tmp_path: Path) -> None:
    data = ADHD200(signal="volume")
    data.simulate(tmp_path / "a", n_subjects=6, seed=3, variant="default")
    data.simulate(tmp_path / "b", n_subjects=6, seed=3, variant="default")
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)
    listing = data.list_recordings(tmp_path / "a")
    assert len({r.subject for r in listing.recordings}) == 6
    raw = data.read(listing.recordings[0])
    assert raw.data.shape[0] == len(raw.units) > 200
    assert len(raw.units.region_names) == 64
    # Patches follow the signals of their regions: two of one region agree more than two at random.
    mean = np.asarray(raw.data, float).mean(2)
    # (At the rim of the brain a patch of the finer grid may hold no voxel of the coarser image.)
    reached = mean.std(1) > 0
    assert reached.mean() > 0.9
    r = np.corrcoef(mean[reached])
    main = raw.units.region_share[reached].argmax(1)
    same = main[:, None] == main[None]
    np.fill_diagonal(same, False)
    assert r[same].mean() > r[~same].mean() + 0.2

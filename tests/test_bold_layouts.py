"""Folders that hold more than one thing: what is used, what is only counted, and what no file name gives away."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from neurobench import DataError, Listing
from neurobench_datasets._adhd200_phenotypes import read_phenotypes
from neurobench_datasets.adhd200 import ADHD200
from neurobench_datasets.bids import BIDS
from neurobench_datasets.camcan import CamCAN
from tests.test_adhd200_layouts import N_TIMES, NYU, phenotypes, write_atlas, write_image


def messages(listing: Listing, code: str) -> list[str]:
    return [f.message for f in listing.findings if f.code == code]


def write_time_courses(root: Path, subject: str, atlas: str = "aal") -> Path:
    path = root / "NYU" / subject / f"sfnwmrda{subject}_session_1_rest_1_{atlas}_TCs.1D"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"File\tSub-brick\tMean_2001 \nscan\t0[?]\t{int(subject)}\n")
    return path


def write_derivative(folder: Path, stem: str, seed: int, *, t_r: float, fd: float | None = None) -> Path:
    image = write_image(folder / f"{stem}_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz", seed)
    image.with_name(image.name.replace(".nii.gz", ".json")).write_text(f'{{"RepetitionTime": {t_r}}}')
    if fd is not None:
        rows = "".join(f"{fd}\n" for _ in range(N_TIMES - 1))
        (folder / f"{stem}_desc-confounds_timeseries.tsv").write_text(f"framewise_displacement\nn/a\n{rows}")
    return image


@pytest.mark.parametrize("atlas", ["", "cc200"])
def test_time_courses_beside_volumes_need_no_atlas_image(tmp_path: Path, atlas: str) -> None:
    phenotypes(tmp_path, "NYU", 5, NYU)
    write_time_courses(tmp_path, "0010001", atlas or "aal")
    write_image(tmp_path / "NYU" / "0010001" / "sfnwmrda0010001_session_1_rest_1.nii.gz", 1)
    listing = ADHD200(atlas=atlas).list_recordings(tmp_path)
    assert [r.options["layout"] for r in listing.recordings] == ["time_courses"]
    assert "there is also athena (1 recordings)" in messages(listing, "other-layout")[0]


def test_time_courses_that_were_not_fetched(tmp_path: Path) -> None:
    phenotypes(tmp_path, "NYU", 5, NYU)
    write_time_courses(tmp_path, "0010001")
    link = write_time_courses(tmp_path, "0010002")
    link.unlink()
    link.symlink_to("../../.git/annex/objects/aa/bb")
    listing = ADHD200().list_recordings(tmp_path)
    assert [r.subject for r in listing.recordings] == ["0010001"]
    assert "datalad get" in messages(listing, "unreadable")[0]


def test_files_that_may_not_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    phenotypes(tmp_path, "NYU", 5, NYU)
    refused = write_time_courses(tmp_path, "0010001")
    write_time_courses(tmp_path, "0010002")
    really = open

    def refuse(path: object, *args: object, **kwargs: object) -> object:
        if path == refused:
            raise PermissionError(13, "Permission denied")
        return really(path, *args, **kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr("builtins.open", refuse)
    listing = ADHD200().list_recordings(tmp_path)
    assert [r.subject for r in listing.recordings] == ["0010002"]
    assert "Permission denied" in messages(listing, "unreadable")[0]


def test_two_studies_of_one_session_are_two_recordings(tmp_path: Path) -> None:
    phenotypes(tmp_path, "WashU", 8, [(15001, 0, 9.5, 1, "0", 110, "0")])
    write_atlas(tmp_path)
    folder = tmp_path / "derivatives" / "sub-0015001" / "ses-1" / "func"
    for i, task in enumerate(("rest", "reststudy3")):
        write_derivative(folder, f"sub-0015001_ses-1_task-{task}_run-01", i, t_r=2.5)
    everything = ADHD200().list_recordings(tmp_path)
    assert len({r.id for r in everything.recordings}) == len(everything.recordings) == 2
    assert {r.subject for r in everything.recordings} == {"0015001"}
    # QC_Rest_1 is of the run called run-1 or run-01.
    passed = ADHD200(qc="passed").list_recordings(tmp_path)
    assert [r.path.name for r in passed.recordings] == [
        "sub-0015001_ses-1_task-reststudy3_run-01_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz"
    ]
    assert "QC_Rest = 0" in messages(passed, "quality-control")[0]


def test_words_for_adhd_of_no_kind(tmp_path: Path) -> None:
    (tmp_path / "NYU").mkdir()
    (tmp_path / "NYU" / "participants.tsv").write_text(
        "participant_id\tgender\tage\tdx\n10001\tMale\t9\tADHD\n10002\tMale\t9\tADHD-Inattentive\n"
        "10003\tMale\t9\twithheld\n10004\tMale\t9\tTypically Developing Children\n"
    )
    people = read_phenotypes(tmp_path, [])
    assert people["diagnosis"].tolist() == ["adhd", "adhd", None, "control"]
    assert people["dx_subtype"].tolist() == [None, "inattentive", None, "control"]


def test_niaks_files_are_named(tmp_path: Path) -> None:
    phenotypes(tmp_path, "NYU", 5, NYU)
    write_image(tmp_path / "fmri_X_0010001_session_1_run_1.nii.gz", 1)
    with pytest.raises(DataError, match=r"1 files are of the NIAK release.*parcels"):
        ADHD200().list_recordings(tmp_path)


# ---------------------------------------------------------------- SPM


@pytest.fixture
def camcan(tmp_path: Path) -> Path:
    (tmp_path / "dataman").mkdir()
    (tmp_path / "dataman" / "standard_data.csv").write_text("CCID,Age,Sex\nCC110033,24,MALE\nCC110037,30,FEMALE\n")
    write_atlas(tmp_path)
    return tmp_path


def test_of_spms_images_only_rest_is_used(camcan: Path) -> None:
    names = ("wr{}_epi_rest", "swr{}_epi_rest", "wr{}_epi_movie_echo1", "wr{}_epi_smt", "wr{}_T1w")
    for i, name in enumerate(names):
        write_image(camcan / "spm" / (name.format("sub-CC110033") + ".nii.gz"), i)
    motion = np.cumsum(np.full((N_TIMES, 6), 0.001), 0)
    np.savetxt(camcan / "spm" / "rp_sub-CC110033_epi_rest.txt", motion)
    # Unwarped, slice times corrected, smoothed: other letters.
    write_image(camcan / "spm" / "s8wuasub-CC110037_epi_rest.nii.gz", 9)
    np.savetxt(camcan / "spm" / "rp_asub-CC110037_epi_rest.txt", motion)
    (camcan / "spm" / "sub-CC110037_epi_rest.json").write_text('{"RepetitionTime": 2.2}')
    listing = CamCAN().list_recordings(camcan)
    assert [r.path.name for r in listing.recordings] == [
        "wrsub-CC110033_epi_rest.nii.gz",
        "s8wuasub-CC110037_epi_rest.nii.gz",
    ]
    # The release's, unless a sidecar of the image that SPM was given says another.
    assert [round(1 / r.sfreq, 3) for r in listing.recordings] == [1.97, 2.2]
    assert "3 normalised images are not of rest" in messages(listing, "other-tasks")[0]
    # Three shifts of .001 mm and three rotations of .001 on a sphere of 50 mm.
    assert listing.participants["mean_fd"].tolist() == pytest.approx([0.153, 0.153])


def test_segmented_t1_images_are_no_bold(camcan: Path) -> None:
    write_image(camcan / "vbm" / "mwc1sub-CC110033_T1w.nii.gz", 1)
    write_image(camcan / "cc700" / "epi_rest" / "sub-CC110033" / "epi_rest" / "sub-CC110033_epi_rest.nii.gz", 2)
    with pytest.raises(DataError, match=r"its images \(epi_rest\) are raw"):
        CamCAN().list_recordings(camcan)


def test_motion_is_the_mean_over_runs(tmp_path: Path) -> None:
    write_atlas(tmp_path)
    (tmp_path / "participants.tsv").write_text("participant_id\tage\nsub-01\t9\nsub-02\t10\n")
    folder = tmp_path / "derivatives" / "fmriprep"
    for i, (subject, run, fd) in enumerate((("01", 1, 0.1), ("01", 2, 0.5), ("01", 3, None), ("02", 1, None))):
        stem = f"sub-{subject}_task-rest_run-{run}"
        write_derivative(folder / f"sub-{subject}" / "func", stem, i, t_r=2.0, fd=fd)
    people = BIDS().list_recordings(tmp_path).participants
    # A run without a table says nothing, and does not make the others unknown.
    assert people.loc["sub-01", "mean_fd"] == pytest.approx(0.3)
    assert np.isnan(people.loc["sub-02", "mean_fd"])

"""ADHD-200's files and their quirks, on the simulated twin and on files made to be wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from neurobench import ConfigError, DataError
from neurobench_datasets._atlases import aal_regions
from neurobench_datasets.adhd200 import ADHD200, N_REGIONS, T_R

HEADER = "ScanDir ID,Site,Gender,Age,Handedness,DX,Secondary Dx ,Full4 IQ,QC_Rest_1,QC_Rest_2\n"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("adhd200")
    ADHD200().simulate(root, n_subjects=40, seed=1, variant="default")
    return root


@pytest.fixture
def twin(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "data"))


def write_run(
    root: Path, site: str, subject: str, *, atlas: str = "aal", kind: str = "sfnwmrda", n_times: int = 60, n: int = 116
) -> Path:
    labels = aal_regions()["code"].tolist()[:n] if atlas == "aal" else list(range(1, n + 1))
    scan = f"{kind}{subject}_session_1_rest_1"
    path = root / site / subject / f"{scan}_{atlas}_TCs.1D"
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(int(subject)).normal(size=(n_times, n))
    rows = [f"{scan}.nii.gz\t{t}[?]\t" + "\t".join(f"{v:.5f}" for v in row) for t, row in enumerate(values)]
    path.write_text("\n".join(["File\tSub-brick\t" + "\t".join(f"Mean_{c} " for c in labels), *rows]) + "\n")
    return path


def write_site(root: Path, rows: str, *, site: str = "NYU", header: str = HEADER) -> None:
    (root / site).mkdir(exist_ok=True)
    (root / site / f"{site}_phenotypic.csv").write_bytes((header + rows).encode("latin-1"))


# ---------------------------------------------------------------- twin


def test_twin_has_eight_sites_and_their_quirks(twin: Path) -> None:
    data = ADHD200()
    listing = data.list_recordings(twin)
    people = listing.participants
    assert len(people) == 40
    assert set(people["site"]) == set(T_R)
    assert all(len(i) == 7 for i in people.index)
    assert people.loc[people["site"] == "Brown", "diagnosis"].isna().all()
    assert people["full_iq"].min() > 0
    assert people.loc[people["site"] == "NeuroIMAGE", "full_iq"].isna().all()
    assert "fluid_intelligence" not in people
    assert set(people["dx_subtype"].dropna()) <= {"control", "combined", "hyperactive-impulsive", "inattentive"}
    assert (people["diagnosis"] == "adhd").equals(people["dx_subtype"].notna() & (people["dx_subtype"] != "control"))
    for recording in listing.recordings:
        assert recording.sfreq == 1 / T_R[people["site"][recording.subject]]
    sessions = pd.Series([r.subject for r in listing.recordings]).value_counts()
    assert sorted(sessions.unique()) == [1, 3]
    found = {f.code: f.message for f in listing.findings}
    assert "Brown" in found["missing-target"] or "Brown" in str(listing.findings)
    assert "other filtering" in found["other-filtering"]


def test_files_that_a_browser_called_anew_are_named_and_left_out(tmp_path: Path) -> None:
    first = write_run(tmp_path, "NYU", "0010001")
    shutil.copy(first, first.with_name(f"{first.stem} (1).1D"))
    write_site(tmp_path, "10001,5,0,9,1,0,,100,1,\n")
    listing = ADHD200().list_recordings(tmp_path)
    assert len(listing.recordings) == 1
    (said,) = (f for f in listing.findings if f.code == "file-name")
    assert "ignored: 1, for example" in said.message
    assert said.message.endswith("_TCs (1).1D")


def test_twin_can_be_windowed_and_named(twin: Path) -> None:
    data = ADHD200()
    raw = [data.read(r) for r in data.list_recordings(twin).recordings]
    assert min(r.data.shape[1] / r.sfreq for r in raw) > 150
    assert {len(r.data) for r in raw} == {116}
    assert raw[0].units.names[0] == "Precentral_L"
    assert set(raw[0].units.region_names) >= {"frontal", "cerebellum", "limbic"}
    assert raw[0].units.has_positions
    few = ADHD200(n_units=10)
    assert len(few.read(few.list_recordings(twin).recordings[0]).units) == 10


def test_filtered_and_unfiltered_are_never_mixed(twin: Path) -> None:
    filtered, raw = ADHD200(), ADHD200(filtered=False)
    first = raw.list_recordings(twin).recordings
    assert 0 < len(first) < len(filtered.list_recordings(twin).recordings)
    assert all(r.path.name.startswith("snwmrda") for r in first)
    same = next(r for r in filtered.list_recordings(twin).recordings if r.id == first[0].id)
    # The twin's unfiltered file is 100 times larger, so that a mix-up shows.
    ratio = raw.read(first[0]).data.std() / filtered.read(same).data.std()
    assert ratio == pytest.approx(100, rel=0.01)


def test_same_arguments_same_bytes(written: Path, tmp_path: Path) -> None:
    ADHD200().simulate(tmp_path, n_subjects=40, seed=1, variant="default")
    files = sorted(p.relative_to(written) for p in written.rglob("*") if p.is_file())
    assert all((written / f).read_bytes() == (tmp_path / f).read_bytes() for f in files)


# ---------------------------------------------------------------- quirks of the release


def test_phenotypes_with_every_quirk(tmp_path: Path) -> None:
    write_site(
        tmp_path,
        "10001,5,0,9.5,0.8,0,Phobie spécifique,-999,1,N/A\n10002,5,1,-999,-0.9,2,,101,0,N/A\n"
        "10003,5,,8,0.1,withheld,,99,1,\n",
    )
    washu = HEADER.replace("ScanDir ID", "ScanDirID")
    write_site(tmp_path, "15001,8,1,12,L,3,,-999.0,1,N/A\n", site="WashU", header=washu)
    test = tmp_path / "NYU" / "NYU_TestRelease_phenotypic.csv"
    test.write_text("ID,Site,Gender,Age,DX\n10003,5,0,8,1\n")
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "none_phenotypic.csv").write_text("nothing\n")
    for site, subject in (("NYU", "0010001"), ("NYU", "0010002"), ("NYU", "0010003"), ("WashU", "0015001")):
        write_run(tmp_path, site, subject)
    listing = ADHD200().list_recordings(tmp_path)
    people = listing.participants
    assert list(people.index) == ["0010001", "0010002", "0010003", "0015001"]
    assert people["sex"].tolist()[:2] == ["F", "M"]
    assert people["handedness"].tolist() == ["R", "L", "both", "L"]
    assert people["dx_subtype"].tolist() == ["control", "hyperactive-impulsive", "combined", "inattentive"]
    assert np.isnan(people.loc["0010001", "full_iq"])
    assert np.isnan(people.loc["0010002", "age"])
    assert len(listing.recordings) == 4
    assert {f.code for f in listing.findings} == {"missing-target", "questionable"}


def test_contradicting_rows_are_not_used(tmp_path: Path) -> None:
    write_site(tmp_path, "10001,5,0,9,1,0,,100,1,\n10001,5,0,9,1,1,,100,1,\n10002,5,0,9,1,1,,100,1,\n")
    write_run(tmp_path, "NYU", "0010002")
    write_run(tmp_path, "NYU", "0010001")
    write_run(tmp_path, "NYU", "0010009")
    listing = ADHD200().list_recordings(tmp_path)
    assert [r.subject for r in listing.recordings] == ["0010002"]
    assert sorted(f.subject for f in listing.findings if f.code in ("duplicate-id", "unknown-id")) == [
        "0010001",
        "0010001",
        "0010009",
    ]


def test_broken_recordings_are_named(tmp_path: Path) -> None:
    write_site(tmp_path, "".join(f"1000{i},5,0,9,1,0,,100,1,\n" for i in range(1, 5)))
    write_run(tmp_path, "NYU", "0010001", n=115)
    write_run(tmp_path, "NYU", "0010002", n_times=40)
    cut = write_run(tmp_path, "NYU", "0010003")
    cut.write_text("<html>login</html>")
    data = ADHD200()
    listing = data.list_recordings(tmp_path)
    first, second = listing.recordings
    with pytest.raises(DataError, match=r"115 regions, and aal has 116 \(missing: 9170\)"):
        data.read(first)
    with pytest.raises(DataError, match="40 volumes, fewer than 50"):
        data.read(second)
    said = {f.code: f for f in listing.findings}
    assert "web page" in said["unreadable"].message
    assert said["unreadable"].subject == "0010003"
    assert "no-recording" in said


def test_other_parcellations_have_no_groups(tmp_path: Path) -> None:
    write_site(tmp_path, "10001,5,0,9,1,0,,100,1,\n")
    write_run(tmp_path, "NYU", "0010001", atlas="cc200", n=N_REGIONS["cc200"])
    data = ADHD200(atlas="cc200")
    raw = data.read(data.list_recordings(tmp_path).recordings[0])
    assert raw.units.group_source == "none"
    assert raw.units.names[0] == "cc200-001"
    with pytest.raises(DataError, match=r"no band-passed \(sfnwmrda\) time courses.*cc200, filtered \(1 files\)"):
        ADHD200().list_recordings(tmp_path)


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no phenotype table"):
        ADHD200().list_recordings(tmp_path)
    write_site(tmp_path, "a,b\n", header="x,y\n")
    with pytest.raises(DataError, match="no column of identifiers"):
        ADHD200().list_recordings(tmp_path)


def test_parameters_are_checked() -> None:
    with pytest.raises(ConfigError, match="hold no volumes"):
        ADHD200(signal="volume", layout="time_courses")
    with pytest.raises(ConfigError, match="Did you mean 'athena'"):
        ADHD200(layout="atena")
    with pytest.raises(ConfigError, match="do not fill"):
        ADHD200(signal="volume", spacing_mm=5.0)
    with pytest.raises(ConfigError, match="for signal=volume"):
        ADHD200(spacing_mm=2.0)
    with pytest.raises(ConfigError, match="Did you mean 'cc200'"):
        ADHD200(atlas="CC20")
    with pytest.raises(ConfigError, match="no signal"):
        ADHD200(signal="sensors")


def test_codes_are_those_of_a_real_file(shared_data: Path) -> None:
    real = pd.read_csv(shared_data / "adhd200_one_subject" / "0010020_roi_aal_mask_pad.csv", index_col=0)
    assert real.index.tolist() == aal_regions()["code"].tolist()
    names = pd.read_csv(shared_data / "abide_aal116" / "regions.tsv", sep="\t")
    assert names["name"].tolist() == aal_regions()["name"].tolist()

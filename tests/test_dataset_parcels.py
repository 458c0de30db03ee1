"""Time series of one's own: layouts, orientations, repetition times, and the simulated twin."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.io import savemat

from neurobench import ConfigError, DataError
from neurobench_datasets._mat import damage
from neurobench_datasets._roi_series import read_series
from neurobench_datasets._tables import explain_unreadable, read_table
from neurobench_datasets.parcels import Parcels

PEOPLE = (
    "participant_id\tage\tsex\tdiagnosis\tt_r\nsub-01\t20\tF\ta\t2\nsub-02\t30\tmale\tb\t2\nsub-03\t-999\tM\tb\t2\n"
)


def series(seed: int, n_times: int = 60, n_units: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n_times, n_units))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "participants.tsv").write_text(PEOPLE, encoding="utf-8")
    (tmp_path / "timeseries").mkdir()
    for i in (1, 2, 3):
        np.save(tmp_path / "timeseries" / f"sub-0{i}.npy", series(i, 60 + i))
    return tmp_path


def write_regions(folder: Path, columns: str = "name\tgroup", rows: str = "r{i}\tg{h}") -> None:
    lines = [rows.format(i=i, h=i // 3) for i in range(5)]
    (folder / "regions.tsv").write_text("\n".join([columns, *lines]) + "\n", encoding="utf-8")


def codes(listing: object) -> set[str]:
    return {f.code for f in listing.findings}  # type: ignore[attr-defined]


# ---------------------------------------------------------------- participants


def test_standard_columns(folder: Path) -> None:
    people = Parcels().list_recordings(folder).participants
    assert people["sex"].tolist() == ["F", "M", "M"]
    assert people["age"].tolist()[:2] == [20, 30]
    assert np.isnan(people["age"].iloc[2])
    assert people["diagnosis"].tolist() == ["a", "b", "b"]


def test_codes_for_sex_are_not_guessed(folder: Path) -> None:
    table = PEOPLE.replace("\tF\t", "\t1\t").replace("\tmale\t", "\t0\t").replace("\tM\t", "\t0\t")
    (folder / "participants.tsv").write_text(table, encoding="utf-8")
    listing = Parcels().list_recordings(folder)
    assert "sex" not in listing.participants
    assert listing.participants["sex_code"].tolist() == [1, 0, 0]
    found = next(f for f in listing.findings if f.code == "sex-coding")
    assert "parcels[female_code=0]" in found.fix
    assert Parcels(female_code="1").list_recordings(folder).participants["sex"].tolist() == ["F", "M", "M"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "latin-1"])
def test_encodings_and_commas_under_the_name_tsv(folder: Path, encoding: str) -> None:
    text = PEOPLE.replace("\t", ",").replace(",a,", ",é,")
    (folder / "participants.tsv").write_bytes(text.encode(encoding))
    assert Parcels().list_recordings(folder).participants["diagnosis"].iloc[0] == "é"


def test_duplicate_and_missing_ids(folder: Path) -> None:
    (folder / "participants.tsv").write_text(PEOPLE + "sub-03\t44\tM\tb\t2\nn/a\t3\tM\tb\t2\n", encoding="utf-8")
    listing = Parcels().list_recordings(folder)
    assert codes(listing) >= {"duplicate-id", "no-id", "unknown-id"}
    assert [r.subject for r in listing.recordings] == ["sub-01", "sub-02"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("name\tage\nx\t3\n", "no column of identifiers"),
        ("participant_id\tage\nn/a\t3\n", "no usable identifier"),
        ("participant_id\tage\n", "no rows"),
        ("", "is empty"),
        ("<!DOCTYPE html><html>Log in</html>", "web page"),
    ],
)
def test_tables_that_cannot_be_used(folder: Path, content: str, says: str) -> None:
    (folder / "participants.tsv").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=says):
        Parcels().list_recordings(folder)


def test_a_comma_as_decimal_sign_moves_no_value_into_another_column(folder: Path) -> None:
    (folder / "participants.tsv").unlink()
    (folder / "participants.csv").write_text("participant_id,age,sex\nsub-01,20,5,F\nsub-02,30,5,M\n")
    with pytest.raises(DataError, match="more cells than its header"):
        Parcels(t_r=2.0).list_recordings(folder)


def test_a_separator_after_the_last_value_is_no_value(folder: Path) -> None:
    people = pd.read_csv(folder / "participants.tsv", sep="\t")[["participant_id", "age"]].astype(str)
    (folder / "participants.tsv").unlink()
    rows = [",".join(row) + "," for row in people.itertuples(index=False)]
    (folder / "participants.csv").write_text("\n".join(["participant_id,age", *rows]) + "\n")
    ages = Parcels(t_r=2.0).list_recordings(folder).participants["age"]
    assert list(ages.astype(float))[:2] == [20.0, 30.0]


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no participants\.tsv"):
        Parcels().list_recordings(tmp_path)
    (tmp_path / "participants.tsv").write_text(PEOPLE, encoding="utf-8")
    with pytest.raises(DataError, match="no folder timeseries"):
        Parcels().list_recordings(tmp_path)


# ---------------------------------------------------------------- files


def test_orientation_by_what_is_constant(folder: Path) -> None:
    raw = [Parcels().read(r) for r in Parcels().list_recordings(folder).recordings]
    assert [r.data.shape for r in raw] == [(5, 61), (5, 62), (5, 63)]
    np.testing.assert_array_equal(raw[0].data, series(1, 61).T)
    for i in (1, 2, 3):
        np.save(folder / "timeseries" / f"sub-0{i}.npy", series(i, 60 + i).T)
    turned = Parcels()
    np.testing.assert_array_equal(turned.read(turned.list_recordings(folder).recordings[0]).data, raw[0].data)


def test_orientation_by_the_number_of_regions(folder: Path) -> None:
    write_regions(folder)
    np.save(folder / "timeseries" / "sub-02.npy", series(2, 62).T)
    data = Parcels()
    raw = [data.read(r) for r in data.list_recordings(folder).recordings]
    assert [r.data.shape for r in raw] == [(5, 61), (5, 62), (5, 63)]
    assert raw[0].units.names == ("r0", "r1", "r2", "r3", "r4")
    assert raw[0].units.region_names == ("g0", "g1")


def test_one_odd_file_does_not_unsettle_the_others(folder: Path) -> None:
    rows = "".join(f"sub-{i}\t2\n" for i in range(10, 22))
    (folder / "participants.tsv").write_text("participant_id\tt_r\n" + rows, encoding="utf-8")
    for i in range(10, 22):
        np.save(folder / "timeseries" / f"sub-{i}.npy", series(i, 50 + i, 4 if i == 15 else 5))
    data = Parcels()
    recordings = {r.subject: r for r in data.list_recordings(folder).recordings}
    assert data.read(recordings["sub-10"]).data.shape == (5, 60)
    with pytest.raises(DataError, match="the parcellation has 5 regions"):
        data.read(recordings["sub-15"])


def test_ambiguous_orientation_says_how_to_settle_it(folder: Path) -> None:
    for i in (1, 2, 3):
        np.save(folder / "timeseries" / f"sub-0{i}.npy", series(i))
    with pytest.raises(DataError, match=r"parcels\[orientation=times_first\]"):
        Parcels().list_recordings(folder)
    data = Parcels(orientation="times_first")
    assert data.read(data.list_recordings(folder).recordings[0]).data.shape == (5, 60)


def test_several_parcellations_are_not_taken_for_volumes(folder: Path) -> None:
    for i in (1, 2, 3):
        (folder / "timeseries" / f"sub-0{i}.npy").unlink()
        for atlas, n in (("AAL", 7), ("Schaefer100", 5)):
            name = f"sub-0{i}_task-rest_atlas-{atlas}_timeseries.npy"
            np.save(folder / "timeseries" / name, series(i, 60, n))
    with pytest.raises(DataError, match=r"2 parcellations: AAL \(3 files\), Schaefer100 \(3 files\)") as caught:
        Parcels().list_recordings(folder)
    assert "Keep the files of one" in caught.value.next_step
    write_regions(folder)
    listing = Parcels().list_recordings(folder)
    read = [r for r in listing.recordings if "Schaefer100" in r.path.name]
    assert Parcels().read(read[0]).data.shape == (5, 60)


def test_text_files_with_header_and_index(folder: Path) -> None:
    write_regions(folder)
    values = series(7, 61)
    (folder / "timeseries" / "sub-01.npy").unlink()
    header = "volume,r0,r1,r2,r3,r4\n"
    body = "".join(f"{t}," + ",".join(f"{v:.6f}" for v in row) + "\n" for t, row in enumerate(values))
    (folder / "timeseries" / "sub-01_bold.csv").write_text(header + body, encoding="utf-8")
    (folder / "timeseries" / "sub-02.npy").unlink()
    blank = "".join(" ".join(f"{v:.6f}" for v in row) + "\n" for row in values)
    (folder / "timeseries" / "sub-02.1D").write_text("# made by hand\n" + blank, encoding="utf-8")
    data = Parcels()
    for recording in data.list_recordings(folder).recordings[:2]:
        np.testing.assert_allclose(data.read(recording).data, values.T, atol=1e-6)


def test_names_from_the_files_where_no_table_has_them(folder: Path) -> None:
    for i in (1, 2, 3):
        (folder / "timeseries" / f"sub-0{i}.npy").unlink()
        body = "".join("\t".join(f"{v:.4f}" for v in row) + "\n" for row in series(i, 60 + i))
        (folder / "timeseries" / f"sub-0{i}.tsv").write_text("a\tb\tc\td\te\n" + body, encoding="utf-8")
    listing = Parcels().list_recordings(folder)
    units = Parcels().read(listing.recordings[0]).units
    assert units.names == ("a", "b", "c", "d", "e")
    assert units.group_source == "none"
    assert "no-groups" in codes(listing)


def test_mat_files(folder: Path) -> None:
    path = folder / "timeseries" / "sub-01.mat"
    (folder / "timeseries" / "sub-01.npy").unlink()
    savemat(path, {"roi": series(1, 61), "scalar": 3.0})
    data = Parcels()
    np.testing.assert_array_equal(data.read(data.list_recordings(folder).recordings[0]).data, series(1, 61).T)
    savemat(path, {"roi": series(1, 61), "other": series(2, 61)})
    found = next(f for f in data.list_recordings(folder).findings if f.code == "unreadable")
    assert "variable=" in found.message
    named = Parcels(variable="other")
    np.testing.assert_array_equal(named.read(named.list_recordings(folder).recordings[0]).data, series(2, 61).T)
    path.write_bytes(b"MATLAB 7.3 MAT-file, Platform: GLNXA64" + bytes(200))
    assert "7.3" in next(f for f in data.list_recordings(folder).findings if f.code == "unreadable").message


def test_looking_over_a_matlab_file_copies_none_of_its_levels(tmp_path: Path) -> None:
    nested: object = np.zeros((500, 2000))
    for _ in range(5):
        cell = np.empty((1, 1), object)
        cell[0, 0] = nested
        nested = cell
    for name, compressed, most in (("plain", False, 1 << 20), ("small", True, 30 << 20)):
        savemat(tmp_path / f"{name}.mat", {"x": nested}, do_compression=compressed)
        tracemalloc.start()
        assert damage(tmp_path / f"{name}.mat") == ""
        # 8 MB of numbers: of compressed ones there is one copy, and room for it to grow.
        assert tracemalloc.get_traced_memory()[1] < most
        tracemalloc.stop()


def test_sessions_and_runs_belong_to_one_subject(folder: Path) -> None:
    np.save(folder / "timeseries" / "sub-01_ses-b_run-2.npy", series(5, 70))
    np.save(folder / "timeseries" / "sub-011.npy", series(5, 70))
    listing = Parcels().list_recordings(folder)
    assert [r.id for r in listing.recordings if r.subject == "sub-01"] == ["sub-01_rest", "sub-01_ses-b_rest_run-2"]
    # sub-011 is another person, not a run of sub-01.
    assert [f.path.endswith("sub-011.npy") for f in listing.findings if f.code == "unknown-id"] == [True]


def test_files_that_are_left_out_are_said(folder: Path) -> None:
    np.save(folder / "timeseries" / "sub-01.npy", series(1, 40))
    (folder / "timeseries" / "sub-02.npy").write_bytes(b"")
    (folder / "timeseries" / "sub-03.csv").write_text("1,2\n3,4\n", encoding="utf-8")
    (folder / "participants.tsv").write_text(PEOPLE + "sub-04\t3\tM\tb\t2\n", encoding="utf-8")
    listing = Parcels(orientation="times_first").list_recordings(folder)
    found = {f.code: f.message for f in listing.findings}
    assert "fewer than 50" in found["too-short"]
    assert "is empty" in found["unreadable"]
    assert "same recording" in found["duplicate-recording"]
    assert "sub-04" in found["no-timeseries"]
    assert [r.subject for r in listing.recordings] == ["sub-03"]


# ---------------------------------------------------------------- repetition time


def test_missing_repetition_time_says_the_fix(folder: Path) -> None:
    (folder / "participants.tsv").write_text("participant_id\nsub-01\nsub-02\nsub-03\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"parcels\[t_r=2\.0\]"):
        Parcels().list_recordings(folder)
    assert {r.sfreq for r in Parcels(t_r=2.5).list_recordings(folder).recordings} == {0.4}
    write_regions(folder)
    (folder / "timeseries" / "sub-01.json").write_text(json.dumps({"RepetitionTime": 0.8}), encoding="utf-8")
    assert [r.sfreq for r in Parcels().list_recordings(folder).recordings] == [1.25]


def test_contradicting_repetition_times_name_both(folder: Path) -> None:
    with pytest.raises(DataError, match=r"2\.5 s \(parameter t_r\), 2 s \(column t_r"):
        Parcels(t_r=2.5).list_recordings(folder)


def test_milliseconds_are_refused(folder: Path) -> None:
    (folder / "participants.tsv").write_text(PEOPLE.replace("\t2\n", "\t2000\n"), encoding="utf-8")
    with pytest.raises(DataError, match="Milliseconds"):
        Parcels().list_recordings(folder)


def test_parameters_are_checked() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'times_first'"):
        Parcels(orientation="time_first")
    with pytest.raises(ConfigError, match="negative"):
        Parcels(n_units=-1)


# ---------------------------------------------------------------- real recordings


def test_abide(shared_data: Path) -> None:
    data = Parcels(n_units=24)
    listing = data.list_recordings(shared_data / "abide_aal116")
    assert len(listing.recordings) == 100
    assert listing.findings == ()
    assert listing.participants["diagnosis"].value_counts().to_dict() == {"autism": 58, "control": 42}
    raw = [data.read(r) for r in listing.recordings]
    assert {len(r.data) for r in raw} == {24}
    assert (min(r.data.shape[1] for r in raw), max(r.data.shape[1] for r in raw)) == (77, 205)
    assert raw[0].units.names[0] == "Precentral_L"
    assert raw[0].units.names[-1] == "Vermis_10"
    assert raw[0].units.group_source == "anatomical"


def test_rpn(shared_data: Path) -> None:
    root = shared_data / "rpn_mist122"
    with pytest.raises(DataError, match=r"parcels\[t_r="):
        Parcels().list_recordings(root)
    data = Parcels(t_r=2.5)
    listing = data.list_recordings(root)
    assert len(listing.recordings) == 90
    assert codes(listing) == {"groups-from-position", "region-names", "missing-target"}
    raw = [data.read(r) for r in listing.recordings]
    assert {r.data.shape for r in raw} == {(122, 200), (122, 290)}
    assert raw[0].units.group_source == "position"
    assert raw[0].units.region_names[0] == "position-01"
    assert raw[0].units.groups == raw[-1].units.groups


def test_one_subject_of_adhd200_with_header_and_index(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "adhd200_one_subject" / "0010020_roi_aal_mask_pad.csv"
    (tmp_path / "timeseries").mkdir()
    (tmp_path / "timeseries" / source.name).write_bytes(source.read_bytes())
    (tmp_path / "participants.csv").write_text("participant_id,t_r\n0010020,2\n", encoding="utf-8")
    data = Parcels(orientation="units_first")
    raw = data.read(data.list_recordings(tmp_path).recordings[0])
    assert raw.data.shape == (116, 176)
    assert raw.units.names[:2] == ("2001", "2002")


# ---------------------------------------------------------------- twin, unreadable files


def test_twin_is_read_by_the_same_code_and_reproducible(tmp_path: Path) -> None:
    data = Parcels()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        data.simulate(tmp_path / name, n_subjects=8, seed=3, variant="default")
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)
    listing = data.list_recordings(tmp_path / "a")
    assert len(listing.recordings) == 8
    assert listing.findings == ()
    raw = data.read(listing.recordings[0])
    assert len(raw.data) == 64
    assert raw.data.shape[1] / raw.sfreq == pytest.approx(240, abs=3)
    truth = json.loads((tmp_path / "a" / "true_effects.json").read_text())
    assert truth["simulated"] is True
    assert truth["effects"]["age"] > 0


def test_variants_of_the_twin(tmp_path: Path) -> None:
    for variant in ("default", "confounded", "null"):
        (tmp_path / variant).mkdir()
        Parcels().simulate(tmp_path / variant, n_subjects=64, seed=0, variant=variant)
    tables = {v: read_table(tmp_path / v / "participants.tsv") for v in ("default", "confounded", "null")}
    rates = {v: t.groupby("site")["diagnosis"].agg(lambda d: (d == "patient").mean()) for v, t in tables.items()}
    assert rates["default"].max() - rates["default"].min() < 0.1
    assert rates["confounded"].max() - rates["confounded"].min() > 0.5
    effects = json.loads((tmp_path / "null" / "true_effects.json").read_text())["effects"]
    assert effects["age"] == effects["diagnosis"] == effects["fluid_intelligence"] == 0
    null = tables["null"][["age", "fluid_intelligence"]].astype(float)
    assert null.corr().iloc[0, 1] < -0.4


def test_unreadable_files_in_plain_words(tmp_path: Path) -> None:
    path = tmp_path / "x.nii.gz"
    assert "does not exist" in explain_unreadable(path)
    assert "folder" in explain_unreadable(tmp_path)
    for content, says in (
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git-LFS"),
        (b"/annex/objects/MD5E-s1--0.nii.gz\n", "datalad get"),
        (b"  <HTML>", "web page"),
        (b"\x5c\x01\x00\x00", "not compressed"),
        (b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03", "cut off"),
    ):
        path.write_bytes(content)
        assert says in explain_unreadable(path)
    link = tmp_path / "link.nii.gz"
    link.symlink_to(tmp_path / ".git/annex/objects/none")
    assert "datalad get" in explain_unreadable(link)
    good = tmp_path / "good.npy"
    np.save(good, np.zeros(3))
    assert explain_unreadable(good) == ""


# ---------------------------------------------------------------- where time series lie, and of what kind they are


def spread(folder: Path, name: str) -> list[Path]:
    """Move the time series of a folder to where pipelines write them, as text."""
    found = []
    for i in (1, 2, 3):
        old = folder / "timeseries" / f"sub-0{i}.npy"
        values = np.load(old)
        path = folder / name.format(i=i)
        path.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(values, columns=[f"r{k}" for k in range(values.shape[1])]).to_csv(path, sep="\t", index=False)
        found.append(path)
    return found


def without_folder(folder: Path) -> None:
    for path in (folder / "timeseries").iterdir():
        path.unlink()
    (folder / "timeseries").rmdir()


def test_time_series_are_found_where_pipelines_write_them(folder: Path) -> None:
    name = "sub-0{i}/ses-a/func/sub-0{i}_ses-a_task-rest_seg-X_stat-mean_timeseries.tsv"
    spread(folder, name)
    for other in ("desc-confounds_timeseries", "motion", "seg-X_stat-pearsoncorrelation_relmat"):
        spread(folder, "sub-0{i}/ses-a/func/sub-0{i}_ses-a_task-rest_" + other + ".tsv")
    without_folder(folder)
    listing = Parcels().list_recordings(folder)
    assert [r.id for r in listing.recordings] == [f"sub-0{i}_ses-a_rest" for i in (1, 2, 3)]
    said = {f.code: f.message for f in listing.findings}
    assert said["found-series"].endswith("3 files such as *_seg-X_stat-mean_timeseries.tsv are used")
    assert "sub-0" not in said["found-series"]
    assert Parcels().read(listing.recordings[0]).units.names == ("r0", "r1", "r2", "r3", "r4")


def test_of_several_kinds_none_is_guessed(folder: Path) -> None:
    for atlas in ("Gordon", "Tian"):
        spread(folder, "sub-0{i}/func/sub-0{i}_task-rest_seg-" + atlas + "_stat-mean_timeseries.tsv")
    without_folder(folder)
    with pytest.raises(DataError, match=r"2 kinds .*\*_seg-Gordon_stat-mean_timeseries.tsv \(3 files\)") as caught:
        Parcels().list_recordings(folder)
    pattern = "*_seg-Tian_stat-mean_timeseries.tsv"
    assert "parcels[files=" in caught.value.next_step
    recordings = Parcels(files=pattern).list_recordings(folder).recordings
    assert len(recordings) == 3
    assert all("Tian" in r.path.name for r in recordings)


def test_a_pattern_that_nothing_fits_and_one_of_folders(folder: Path) -> None:
    with pytest.raises(DataError, match=r"no file under .* fits '\*_gordon\.npy'"):
        Parcels(files="*_gordon.npy").list_recordings(folder)
    with pytest.raises(ConfigError, match="names a folder"):
        Parcels(files="func/*.npy")


def test_whose_a_file_is_may_be_said_by_its_folder(folder: Path) -> None:
    for i in (1, 2, 3):
        for run in (1, 2):
            path = folder / f"cpac_sub-0{i}_ses-1" / f"run-{run}" / "timeseries.npy"
            path.parent.mkdir(parents=True)
            np.save(path, series(10 * i + run, 60 + i))
    without_folder(folder)
    ids = [r.id for r in Parcels().list_recordings(folder).recordings]
    assert ids == [f"sub-0{i}_ses-1_rest_run-{run}" for i in (1, 2, 3) for run in (1, 2)]


def test_ids_behind_a_site_are_found(tmp_path: Path) -> None:
    (tmp_path / "participants.tsv").write_text("participant_id\tt_r\n50003\t2\n50004\t2\n500\t2\n", encoding="utf-8")
    for name in ("Pitt_0050003", "Pitt_0050004", "Pitt_0000500"):
        head = "#2001\t#2002\t#2101\n"
        rows = "\n".join("\t".join(f"{v:.3f}" for v in row) for row in series(int(name[-1]), 60 + int(name[-1]), 3))
        (tmp_path / f"{name}_rois_aal.1D").write_text(head + rows + "\n", encoding="utf-8")
    data = Parcels()
    listing = data.list_recordings(tmp_path)
    assert sorted(r.subject for r in listing.recordings) == ["500", "50003", "50004"]
    # Names of regions in a comment are names all the same.
    assert data.read(listing.recordings[0]).units.names == ("2001", "2002", "2101")


def test_derivatives_belong_to_the_people_of_the_folder_above(folder: Path) -> None:
    inside = folder / "derivatives" / "xcp_d"
    inside.mkdir(parents=True)
    (folder / "timeseries").rename(inside / "timeseries")
    listing = Parcels().list_recordings(inside)
    assert len(listing.recordings) == 3
    assert any(f.code == "table-above" and str(folder / "participants.tsv") in f.message for f in listing.findings)


@pytest.mark.parametrize("ending", [".npz", ".NPY", ".TSV", ".csv", ".ptseries.nii"])
def test_kinds_of_files(folder: Path, ending: str) -> None:
    for i in (1, 2, 3):
        old = folder / "timeseries" / f"sub-0{i}.npy"
        values, path = np.load(old), old.with_name(f"sub-0{i}{ending}")
        old.unlink()
        if ending == ".npz":
            np.savez(path, ts=values)
        elif ending == ".NPY":
            with open(path, "wb") as f:
                np.save(f, values)
        elif ending == ".TSV":
            np.savetxt(path, values, delimiter="\t")
        elif ending == ".csv":
            # As a spreadsheet in German, French or Italian writes it.
            pd.DataFrame(values).to_csv(path, sep=";", decimal=",", header=False, index=False)
        else:
            write_ptseries(path, values, step=2.0)
    data = Parcels()
    raw = [data.read(r) for r in data.list_recordings(folder).recordings]
    assert [r.data.shape for r in raw] == [(5, 61), (5, 62), (5, 63)]
    np.testing.assert_allclose(raw[1].data, series(2, 62).T, rtol=1e-6)


def write_ptseries(path: Path, values: np.ndarray, step: float) -> None:
    import nibabel as nib

    voxels = [np.array([[i, 0, 0]]) for i in range(values.shape[1])]
    names = [f"p{i}" for i in range(values.shape[1])]
    parcels = nib.cifti2.ParcelsAxis(names, voxels, [{} for _ in names], np.eye(4), (9, 9, 9), {})
    nib.Cifti2Image(values, (nib.cifti2.SeriesAxis(0, step, len(values)), parcels)).to_filename(path)


def test_cifti_parcels_say_their_names_and_their_repetition_time(folder: Path) -> None:
    people = pd.read_csv(folder / "participants.tsv", sep="\t").drop(columns="t_r")
    people.to_csv(folder / "participants.tsv", sep="\t", index=False)
    for path in (folder / "timeseries").glob("*.npy"):
        write_ptseries(path.with_name(f"{path.stem}.ptseries.nii"), np.load(path), step=0.8)
        path.unlink()
    data = Parcels()
    recordings = data.list_recordings(folder).recordings
    assert {r.sfreq for r in recordings} == {1 / 0.8}
    assert data.read(recordings[0]).units.names == ("p0", "p1", "p2", "p3", "p4")


def test_voxels_and_vertices_are_no_regions_and_it_is_said_what_makes_them_some(folder: Path) -> None:
    without_folder(folder)
    (folder / "sub-01_task-rest_space-fsLR_den-91k_bold.dtseries.nii").write_bytes(b"0")
    with pytest.raises(DataError, match="no time series of people") as caught:
        Parcels().list_recordings(folder)
    assert "-cifti-parcellate" in caught.value.next_step
    assert "bids" not in caught.value.next_step
    (folder / "sub-01_task-rest_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz").write_bytes(b"0")
    with pytest.raises(DataError, match="no time series of people") as caught:
        Parcels().list_recordings(folder)
    assert "bids[atlas=" in caught.value.next_step


def test_decimal_commas_of_thousands_are_not_guessed(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("1,234;2,345\n3,456;4,567\n" * 30, encoding="utf-8")
    with pytest.raises(DataError, match="text where numbers are expected"):
        read_series(path)


def test_names_of_regions_tell_the_orientation(folder: Path) -> None:
    for i in (1, 2, 3):
        old = folder / "timeseries" / f"sub-0{i}.npy"
        frame = pd.DataFrame(series(i), columns=["Insula_L", "Insula_R", "Vermis_1", "Vermis_2", "Pallidum_L"])
        old.unlink()
        # As many volumes in all of them, and one that has lost a region.
        (frame.iloc[:, :4] if i == 3 else frame).to_csv(old.with_suffix(".csv"))
    data = Parcels()
    assert [data.read(r).data.shape for r in data.list_recordings(folder).recordings[:2]] == [(5, 60), (5, 60)]


def test_columns_that_only_count_tell_nothing(folder: Path) -> None:
    for i in (1, 2, 3):
        old = folder / "timeseries" / f"sub-0{i}.npy"
        old.unlink()
        pd.DataFrame(series(i), columns=[f"V{k}" for k in range(1, 6)]).to_csv(old.with_suffix(".csv"))
    with pytest.raises(DataError, match="cannot be told"):
        Parcels().list_recordings(folder)


def test_one_file_that_lost_a_region_does_not_turn_all_others_round(tmp_path: Path) -> None:
    rows = "".join(f"sub-{i}\t2\n" for i in range(10, 30))
    (tmp_path / "participants.tsv").write_text("participant_id\tt_r\n" + rows, encoding="utf-8")
    (tmp_path / "timeseries").mkdir()
    for i in range(10, 30):
        np.save(tmp_path / "timeseries" / f"sub-{i}.npy", series(i, 60, 4 if i == 15 else 5))
    with pytest.raises(DataError, match="nearly all of the 20 files are 60 × 5"):
        Parcels().list_recordings(tmp_path)
    recordings = Parcels(orientation="times_first").list_recordings(tmp_path).recordings
    assert Parcels(orientation="times_first").read(recordings[0]).data.shape == (5, 60)

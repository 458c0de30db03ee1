"""`neurobench data check`: what users' folders really hold is named by file and remedy, and left as it is."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from neurobench.cli import app
from neurobench.data_check import DataReport, check_data
from neurobench_datasets.bids import BIDS

N_TIMES = 60
AFFINE = np.diag([16.0, 16.0, 16.0, 1.0])
AFFINE[:3, 3] = [-96, -128, -80]
SHAPE = (13, 15, 12)
SPACE = "space-MNI152NLin2009cAsym"


def image_of(root: Path, subject: str) -> Path:
    func = root / "derivatives" / f"sub-{subject}" / "func"
    return func / f"sub-{subject}_task-rest_{SPACE}_desc-preproc_bold.nii.gz"


def write_run(root: Path, subject: str, seed: int, *, dtype: type = np.int16, t_r: float = 2.0) -> Path:
    path = image_of(root, subject)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.random.default_rng(seed).integers(500, 1500, (*SHAPE, N_TIMES)).astype(dtype)
    image = nib.Nifti1Image(data, AFFINE)
    image.header.set_xyzt_units("mm", "sec")
    image.header["pixdim"][4] = t_r
    nib.save(image, path)
    path.with_name(path.name.replace(".nii.gz", ".json")).write_text(json.dumps({"RepetitionTime": t_r}))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    people = []
    for i in range(24):
        subject = f"{i + 1:02d}"
        write_run(root, subject, i)
        people.append((f"sub-{subject}", 20 + i, "FM"[i % 2], "AB"[i // 12], ("control", "patient")[i % 2]))
    frame = pd.DataFrame(people, columns=["participant_id", "age", "sex", "site", "diagnosis"])
    frame.to_csv(root / "participants.tsv", sep="\t", index=False)
    labels = np.ones(SHAPE, np.int16)
    labels[7:] = 2
    nib.save(nib.Nifti1Image(labels, AFFINE), root / "atlas.nii.gz")
    return root


def check(folder: Path, *, deep: bool = True) -> DataReport:
    from neurobench.plugins import load_registry

    tasks = {n: cls() for n, cls in load_registry().tasks.items() if not cls.check_with}
    return check_data(BIDS(confounds="none"), folder, label="bids", tasks=tasks, deep=deep)


def test_what_a_folder_can_be_used_for(folder: Path) -> None:
    before = {p: (p.stat().st_size, p.stat().st_mtime_ns) for p in folder.rglob("*")}
    report = check(folder)
    assert {p: (p.stat().st_size, p.stat().st_mtime_ns) for p in folder.rglob("*")} == before
    assert (report.n_subjects, report.n_recordings, report.n_listed) == (24, 24, 24)
    tasks = report.tasks.set_index("task")
    assert tasks.loc["age", ["usable", "subjects", "of these"]].tolist() == ["yes", 24, "20–43"]
    assert tasks.loc["diagnosis", "of these"] == "12 control, 12 patient"
    assert tasks.loc["fluid_intelligence", "usable"] == "no"
    assert "no column 'fluid_intelligence'" in tasks.loc["fluid_intelligence", "why not"]
    assert "no events" in tasks.loc["evoked", "why not"]
    assert "state rest" in tasks.loc["state", "why not"]
    table = report.table.set_index("site")
    assert table.loc["A", ["subjects", "control", "patient"]].tolist() == [12, 6, 6]
    assert check(folder, deep=False).tasks.set_index("task").loc["evoked", "usable"] == "?"


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2000])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-6] ^= 1  # Of the checksum: the data are read without a word, and only their end tells.
    path.write_bytes(content)


def login_page(path: Path) -> None:
    path.write_text("<!DOCTYPE html><html>log in</html>")


def pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def not_compressed(path: Path) -> None:
    path.write_bytes(b"\x5c\x01\x00\x00" + bytes(500))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def rewrite(path: Path, *, affine: np.ndarray | None = None, n_times: int | None = None) -> None:
    image = nib.load(path)
    data = np.asarray(image.dataobj)
    data = data if n_times is None else data[..., 0] if n_times == 1 else data[..., :n_times]
    changed = nib.Nifti1Image(data, image.affine if affine is None else affine)
    changed.header.set_xyzt_units("mm", "sec")
    nib.save(changed, path)


def identity(path: Path) -> None:
    rewrite(path, affine=np.eye(4))


def far_away(path: Path) -> None:
    affine = AFFINE.copy()
    affine[:3, 3] += 1000
    rewrite(path, affine=affine)


def three_d(path: Path) -> None:
    rewrite(path, n_times=1)


def too_few(path: Path) -> None:
    rewrite(path, n_times=20)


def milliseconds(path: Path) -> None:
    path.with_name(path.name.replace(".nii.gz", ".json")).write_text('{"RepetitionTime": 2000}')


def no_time(path: Path) -> None:
    path.with_name(path.name.replace(".nii.gz", ".json")).unlink()
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine), path)


def native_space(path: Path) -> None:
    os.rename(path, path.with_name(path.name.replace(SPACE, "space-T1w")))


def another_person(path: Path) -> None:
    path.write_bytes(image_of(path.parents[3], "02").read_bytes())


@pytest.mark.parametrize(
    ("damage", "code", "message"),
    [
        (truncated, "unreadable", "is cut off"),
        (flipped, "unreadable", "is damaged"),
        (login_page, "unreadable", "is a web page"),
        (pointer, "unreadable", "git-LFS pointer"),
        (not_compressed, "unreadable", "is not compressed with gzip"),
        (empty, "unreadable", "is empty"),
        (identity, "unreadable", "no position in space"),
        (far_away, "unreadable", "not in the same space"),
        (three_d, "unreadable", "is the least"),
        (too_few, "unreadable", "is the least"),
        (milliseconds, "no-repetition-time", "milliseconds"),
        (no_time, "no-repetition-time", "nothing says the repetition time"),
        (native_space, "wrong-space", "which no atlas in MNI coordinates fits"),
        (another_person, "duplicate-recording", "is a copy of"),
    ],
)
def test_damage_is_named_and_the_others_go_on(
    folder: Path, damage: Callable[[Path], None], code: str, message: str
) -> None:
    path = image_of(folder, "05")
    damage(path)
    report = check(folder)
    assert report.n_recordings == 23
    found = [f for f in report.findings if f.code == code]
    assert len(found) == 1
    assert message in found[0].message
    # Of two copies either may be the other's.
    assert found[0].subject in ("05", "sub-05")
    assert found[0].path.startswith(str(path.parent))
    assert found[0].fix or "git lfs pull" in found[0].message or "download" in found[0].message or code == "unreadable"


def test_only_the_end_of_a_file_tells(folder: Path) -> None:
    flipped(image_of(folder, "05"))
    assert check(folder, deep=False).n_recordings == 24
    assert check(folder).n_recordings == 23


def test_not_finite_voxels_and_lost_regions_are_said(folder: Path) -> None:
    path = write_run(folder, "05", 5, dtype=np.float32)
    data = np.asarray(nib.load(path).dataobj).copy()
    data[3, 3, 3, 7] = np.nan
    nib.save(nib.Nifti1Image(data, AFFINE), path)
    atlas = nib.load(folder / "atlas.nii.gz")
    labels = np.asarray(atlas.dataobj).copy()
    labels[:4] = 3
    mask = np.ones(SHAPE, np.uint8)
    mask[:4] = 0
    nib.save(nib.Nifti1Image(labels, AFFINE), folder / "atlas.nii.gz")
    nib.save(nib.Nifti1Image(mask, AFFINE), str(path).replace("_desc-preproc_bold", "_desc-brain_mask"))
    report = check(folder)
    of = {f.code: f for f in report.findings if "05" in f.subject}
    assert "up to 1 voxels" in of["not-finite-voxels"].message
    assert "label-0003" in of["lost-regions"].message
    assert report.n_recordings == 24


def test_a_file_that_may_not_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from neurobench_datasets import _bold_layouts

    original = _bold_layouts.explain_unreadable

    def refused(path: Path, *, whole: bool = True) -> str:
        if "sub-05" in path.name:
            raise PermissionError(13, "Permission denied", str(path))
        return original(path, whole=whole)

    monkeypatch.setattr(_bold_layouts, "explain_unreadable", refused)
    report = check(folder, deep=False)
    assert report.n_recordings == 23
    assert "Permission denied" in next(f.message for f in report.findings if f.code == "unreadable")


def test_names_that_are_not_ascii(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "Données für Ελλάδα"
    folder.rename(moved)
    report = check(moved)
    assert report.n_recordings == 24


def test_labels_that_can_be_told_without_a_brain(folder: Path) -> None:
    frame = pd.read_csv(folder / "participants.tsv", sep="\t")
    frame["site"] = np.where(frame["diagnosis"] == "patient", "A", "B")
    frame.loc[3, "age"] = -999
    frame.to_csv(folder / "participants.tsv", sep="\t", index=False)
    for i in range(0, 24, 2):  # Controls were recorded faster.
        write_run(folder, f"{i + 1:02d}", i, t_r=1.5)
    for i in range(16, 22):
        image_of(folder, f"{i + 1:02d}").write_bytes(b"")
    report = check(folder)
    told = [f.message for f in report.findings if f.code == "predictable-label"]
    assert any("from site alone (Cramér's V 1.00" in m for m in told)
    assert any("from sampling frequency alone (AUROC 1.00" in m for m in told)
    assert any("from run length alone" in m for m in told)
    assert "6 of 24 recordings cannot be used" in next(f.message for f in report.findings if f.code == "many-lost")


def test_codes_of_missing_values_are_said() -> None:
    from neurobench.data_check import _codes_left

    found = _codes_left(pd.DataFrame({"age": [20.0, -999.0], "sex": ["F", "M"]}))
    assert [f.code for f in found] == ["missing-code"]
    assert "1 values of age" in found[0].message


def test_json_and_exit_codes(folder: Path) -> None:
    def invoke(*more: str) -> tuple[int, str]:
        command = ["data", "check", "bids[confounds=none]", "--data-dir", f"bids={folder}", *more]
        done = CliRunner(env={"COLUMNS": "200"}).invoke(app, command)
        return done.exit_code, done.stdout

    code, text = invoke("--json")
    assert code == 0
    report = json.loads(text)
    assert report["n_subjects"] == 24
    assert {t["task"]: t["usable"] for t in report["tasks"]}["age"] == "yes"
    assert invoke("--strict")[0] == 0
    truncated(image_of(folder, "05"))
    assert invoke("--deep", "--workers", "1")[0] == 0
    code, text = invoke("--deep", "--strict", "--workers", "2")
    assert code == 1
    assert "is cut off" in text
    for path in folder.rglob("*_bold.nii.gz"):
        path.unlink()
    assert invoke()[0] == 2


def test_reasons_do_not_repeat_the_path_of_an_atlas(folder: Path) -> None:
    from neurobench_tasks.fluid_intelligence import FluidIntelligence

    label = f"bids[atlas={folder / 'atlas.nii.gz'}]"
    report = check_data(BIDS(confounds="none"), folder, label=label, tasks={"fluid_intelligence": FluidIntelligence()})
    (why,) = report.tasks["why not"]
    assert why.startswith("bids has no column")

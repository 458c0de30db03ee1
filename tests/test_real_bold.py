"""Real 4-D BOLD: what is long enough goes to a record, the rest is refused with the reason."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import neurobench
from neurobench import DataError, RecordingFile
from neurobench_datasets._bold_images import read_bold

SPACE = "space-MNI152NLin2009cAsym"


@pytest.fixture
def bold(shared_data: Path) -> Path:
    return shared_data / "bold4d"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tedana/echo1.nii.gz", r"shape \(39, 50, 33, 5\)"),
        ("tedana/echo2.nii.gz", r"shape \(39, 50, 33, 5\)"),
        ("tedana/echo3.nii.gz", r"shape \(39, 50, 33, 5\)"),
        ("tedana/mask.nii.gz", r"shape \(39, 50, 33\)"),
        ("nipy_functional.nii.gz", r"shape \(17, 21, 3, 20\)"),
        ("pymvpa/haxby2001/sub001/anatomy/lowres001.nii.gz", r"shape \(6, 10, 10\)"),
    ],
)
def test_what_is_no_run_is_refused(bold: Path, shared_data: Path, name: str, message: str) -> None:
    atlas = shared_data / "atlas" / "neurostorm" / "aal_116" / "atlas.nii.gz"
    with pytest.raises(DataError, match=message):
        read_bold(RecordingFile("s", bold / name, 0.5, beside={"atlas": atlas}), signal="parcels", confounds=())


def test_single_slices_are_read(bold: Path, shared_data: Path) -> None:
    atlas = shared_data / "atlas" / "neurostorm" / "aal_116" / "atlas.nii.gz"
    file = RecordingFile("s", bold / "pymvpa" / "bold.nii.gz", 0.4, beside={"atlas": atlas})
    raw = read_bold(file, signal="parcels", confounds=())
    assert raw.data.shape == (116, 1452)
    assert "lost-regions" in {f.code for f in raw.findings}


def derivatives(bold: Path, root: Path) -> Path:
    """Lay the twelve real runs of one person out as fMRIPrep would name them."""
    runs = sorted((bold / "pymvpa" / "haxby2001" / "sub001" / "BOLD").glob("task001_run*/bold_25mm.nii.gz"))
    func = root / "sub-001" / "func"
    func.mkdir(parents=True)
    for path in runs:
        run = path.parent.name[-2:]
        stem = f"sub-001_task-objects_run-{run}_{SPACE}_desc-preproc_bold"
        shutil.copy(path, func / f"{stem}.nii.gz")
        (func / f"{stem}.json").write_text(json.dumps({"RepetitionTime": 2.5}))
    return root


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signal", "more"), [("parcels", ""), ("volume", ",spacing_mm=8,patch_voxels=3")], ids=["parcels", "volume"]
)
def test_twelve_real_runs_to_a_record(bold: Path, shared_data: Path, tmp_path: Path, signal: str, more: str) -> None:
    root = derivatives(bold, tmp_path / "data")
    shutil.copy(shared_data / "atlas" / "neurostorm" / "aal_116" / "atlas.nii.gz", root / "atlas.nii.gz")
    table = neurobench.run(
        backbone="transformer",
        mask="random_tube",
        dataset=f"bids[signal={signal},bids_task=objects,confounds=none{more}]",
        data_dir=f"bids={root}",
        task="reconstruction",
        split="within-recording",
        n_steps=40,
        window_s=75.0,
        out=tmp_path / "out",
    )
    assert (table["status"] == "ok").all()
    assert (table["source"] == "real").all()
    rows = table.set_index("row")["score"]
    assert rows["mean"] == 0
    # Twelve runs of one person at 25 mm: other regions tell a little of a hidden one.
    assert 0 < rows["ridge"] < 1
    assert "transformer · random_tube" in rows.index

"""States of MEG: Cam-CAN's rest, passive and smt, and task labels of BIDS folders."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

from neurobench import ConfigError, DataError
from neurobench.cohorts import CohortSource
from neurobench.store import Store
from neurobench_datasets.bids import BIDS
from neurobench_datasets.camcan import CamCAN
from neurobench_datasets.meg_headache import MegHeadache
from tests.meg_files import make_raw, save

DERIVED = "cc700/meg/pipeline/release005/BIDSsep/derivatives_{0}/aa/AA_movecomp_transdef/aamod_meg_maxfilt_00003"


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("camcan")
    CamCAN(signal="meg", state="all").simulate(root, n_subjects=3, seed=0, variant="default")
    return root


def test_states_of_one_subject_are_one_subject(everything: Path, tmp_path: Path) -> None:
    dataset = CamCAN(signal="meg", state="all")
    listing = dataset.list_recordings(everything)
    assert len(listing.recordings) == 9
    assert {r.state for r in listing.recordings} == {"rest", "passive", "smt"}
    assert len({r.subject for r in listing.recordings}) == 3
    assert all(r.id == f"{r.subject}_{r.state}" for r in listing.recordings)
    code = {"name": "camcan"}
    cohort = CohortSource(dataset, "camcan", code, dataset.spec, everything).load(Store(tmp_path / "out"))
    assert len(cohort.subjects) == 3
    assert len(cohort.recordings) == 9


@pytest.mark.parametrize("state", ["rest", "passive", "smt"])
def test_one_state(everything: Path, state: str) -> None:
    listing = CamCAN(signal="meg", state=state).list_recordings(everything)
    assert {r.state for r in listing.recordings} == {state}
    assert len(listing.recordings) == 3


def test_conditions_of_the_release(everything: Path) -> None:
    dataset = CamCAN(signal="meg", state="passive")
    raw = dataset.read(dataset.list_recordings(everything).recordings[0])
    assert {e.condition for e in raw.events} == {"tone300", "tone600", "tone1200", "visual"}
    assert len(raw.events) > 12
    assert raw.findings == ()
    assert "STI101" not in raw.units.names
    task = CamCAN(signal="meg", state="smt")
    raw = task.read(task.list_recordings(everything).recordings[0])
    counts = pd.Series([e.condition for e in raw.events]).value_counts()
    assert set(counts.index) == {"audiovisual1", "audiovisual2", "audiovisual3", "button"}
    assert counts["button"] == counts.drop("button").sum()
    own = CamCAN(signal="meg", state="passive", events="6:low+9:checkerboard")
    raw = own.read(own.list_recordings(everything).recordings[0])
    assert {e.condition for e in raw.events} == {"low", "checkerboard"}


def test_codes_that_passive_recordings_lack_are_said(everything: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(everything, root)
    path = next(root.rglob("*_task-passive_megtransdef.fif"))
    triggers = [(0.5 + i, 6 + i % 3) for i in range(5)]
    save(make_raw(triggers=triggers, n=34), path)
    dataset = CamCAN(signal="meg", state="passive")
    file = next(r for r in dataset.list_recordings(root).recordings if r.path == path)
    finding = next(f for f in dataset.read(file).findings if f.code == "event-codes")
    assert "9 (visual) do not occur" in finding.message


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("release004/BIDS_20190411/meg_passive_raw/sub-{0}/ses-passive/meg", "sub-{0}_ses-passive_task-passive.fif"),
        (
            "release004/BIDS_20190411/meg_passive_mf/sub-{0}/ses-passive/meg",
            "sub-{0}_ses-passive_task-passive_proc-sss.fif",
        ),
        ("release005/BIDSsep/passive/sub-{0}/ses-passive/meg", "sub-{0}_ses-passive_task-passive_meg.fif"),
        (
            "release005/BIDSsep/derivatives_passive/aa/AA_nomovecomp/aamod_meg_maxfilt_00001/sub-{0}",
            "mf2pt2_sub-{0}_ses-passive_task-passive_meg.fif",
        ),
        (
            "release005/BIDSsep/derivatives_passive/aa/AA_movecomp/aamod_meg_maxfilt_00002/sub-{0}",
            "mf2pt2_sub-{0}_ses-passive_task-passive_meg.fif",
        ),
    ],
)
def test_trees_of_the_releases(everything: Path, tmp_path: Path, place: str, name: str) -> None:
    root = tmp_path / "data"
    shutil.copytree(everything, root)
    dataset = CamCAN(signal="meg", state="passive")
    best = dataset.list_recordings(root).recordings[0]
    folder = root / "cc700/meg/pipeline" / place.format(best.subject)
    folder.mkdir(parents=True)
    shutil.copy(best.path, folder / name.format(best.subject))
    assert dataset.list_recordings(root).recordings[0].path == best.path, "the transformed derivative is preferred"
    best.path.unlink()
    listing = dataset.list_recordings(root)
    assert listing.recordings[0].path.parent == folder
    assert "mixed-derivatives" in {f.code for f in listing.findings}


def test_a_state_that_is_not_there(everything: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(everything, root, ignore=shutil.ignore_patterns("*passive*", "derivatives_passive"))
    with pytest.raises(DataError, match=r"in state passive; it has rest, smt\. .*state=rest"):
        CamCAN(signal="meg", state="passive").list_recordings(root)
    next(root.rglob("*task-smt*.fif")).unlink()
    findings = {f.code: f.message for f in CamCAN(signal="meg", state="all").list_recordings(root).findings}
    assert "of 3 people some have no recording of a state: passive 3, smt 1" in findings["missing-states"]


def test_parameters_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'passive'"):
        CamCAN(signal="meg", state="pasive")
    with pytest.raises(ConfigError, match="are for signal=meg"):
        CamCAN(state="passive")
    with pytest.raises(ConfigError, match="are for signal=meg"):
        BIDS(atlas="a.nii", events="1:tone")
    with pytest.raises(ConfigError, match="reject=maybe"):
        MegHeadache(reject="maybe")
    with pytest.raises(ConfigError, match="on, off"):
        MegHeadache(whiten="yes")


def test_bids_has_the_states_and_conditions_of_meg_headache(tmp_path: Path) -> None:
    for task in ("rest", "beeps", "SEF"):
        save(make_raw(triggers=[(1.0, 2)]), tmp_path / f"sub-01/meg/sub-01_task-{task}_meg.fif")
    (tmp_path / "participants.tsv").write_text("participant_id\tage\nsub-01\t30\n")
    dataset = BIDS(signal="meg", auditory="beeps+tones", events="2:beep")
    files = dataset.list_recordings(tmp_path).recordings
    assert [f.state for f in files] == ["auditory", "rest", "somatosensory"]
    assert [e.condition for e in dataset.read(files[0]).events] == ["beep"]
    every = BIDS(signal="meg", sensors="all")
    assert len(every.read(every.list_recordings(tmp_path).recordings[0]).units) == 17


def test_an_empty_room_of_the_release(everything: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(everything, root)
    dataset = CamCAN(signal="meg")
    subject = dataset.list_recordings(root).recordings[0].subject
    room = root / f"cc700/meg/pipeline/release004/BIDS_20190411/meg_emptyroom/sub-{subject}/emptyroom"
    save(make_raw(seconds=20, n=34), room / f"emptyroom_{subject}.fif")
    first, second, _ = dataset.list_recordings(root).recordings
    assert any(p.startswith(f"noise of the sensors in emptyroom_{subject}.fif") for p in dataset.read(first).provenance)
    assert not any(p.startswith("noise") for p in dataset.read(second).provenance)

"""What published records say is found again: of twins wherever tests run, of real recordings where those are."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

import neurobench
from neurobench.attestation import tolerated
from neurobench.results import Record, read_record

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "leaderboard" / "results"
REAL = {"abide-parcels": "abide_aal116", "rpn-parcels": "rpn_mist122"}
"""Suites of real recordings, and the folder of those among the shared ones."""

ROWS = {
    "twins": {"dataset": "adhd200", "backbone": "transformer", "mask": "random_tube", "task": "age,reconstruction"},
    "camcan-aging": {"backbone": "transformer", "mask": "none", "task": "age"},
    "adhd200-masking": {"backbone": "transformer", "mask": "none", "task": "diagnosis"},
    "meg-headache": {"backbone": "transformer", "mask": "none", "task": "diagnosis,state"},
    "relatives": {"backbone": "global_conv", "mask": "none", "task": "age,diagnosis"},
    "neurostorm": {"backbone": "mamba", "mask": "none", "task": "diagnosis,age"},
    "rhamba": {"backbone": "hybrid[layout=mamba]", "mask": "none", "task": "diagnosis"},
    "abide-parcels": {"backbone": "transformer", "mask": "none", "task": "diagnosis,age"},
    "rpn-parcels": {"backbone": "transformer", "mask": "none", "task": "sex,age"},
}
"""What is run again of a suite: with ``none`` the untrained backbone and every baseline, which take seconds."""

pytestmark = pytest.mark.slow


def published(suite: str) -> dict[tuple[str, str, str, int], Record]:
    records = (read_record(path) for path in sorted((RESULTS / suite).glob("*.json")))
    return {(r.dataset.label, r.row, r.task.label, r.protocol.seed): r for r in records}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all: what suites share, such as prepared volumes and their baselines, is computed once."""
    return tmp_path_factory.mktemp("published")


@pytest.mark.parametrize("suite", [name for name in ROWS if (RESULTS / name).is_dir()])
def test_published_rows_are_found_again(suite: str, out: Path, request: pytest.FixtureRequest) -> None:
    """Within the tolerance of ``neurobench verify --rerun``; a quarter of an interval for what was trained."""
    theirs = published(suite)
    example = next(iter(theirs.values()))
    assert example.data is not None
    assert (example.data.source == "real") == (suite in REAL)
    if suite in REAL:
        folder = request.getfixturevalue("shared_data") / REAL[suite]
        where = {"data_dir": f"parcels={folder}"}
    else:
        where = {"profile": example.protocol.profile, "source": "simulated"}
    options: dict[str, Any] = {**where, **ROWS[suite], "attribution": False}
    table = neurobench.run(suite=ROOT / "benchmarks" / f"{suite}.yaml", out=out, **options)
    assert set(table["status"]) == {"ok"}
    found = [read_record(out / "records" / f"{i}.json") for i in table["id"]]
    missed = []
    for ours in found:
        record = theirs[ours.dataset.label, ours.row, ours.task.label, ours.protocol.seed]
        a, b = record.metrics[record.headline], ours.metrics[record.headline]
        assert a.value is not None
        assert b.value is not None
        allowed = tolerated(ours, record.headline) + 1e-6
        if abs(a.value - b.value) > allowed:
            missed.append(f"{ours.row} on {ours.task.label}: {b.value:.4g}, not {a.value:.4g} ± {allowed:.2g}")
    assert not missed, missed
    assert {"baseline", "untrained"} <= {r.kind for r in found}


def test_real_recordings_are_published_as_scores_only() -> None:
    """Their cards let scores leave; nothing beside a record may be about a person."""
    for suite in REAL:
        for record in published(suite).values():
            assert record.data is not None
            assert record.data.may_leave == "aggregates"
            assert record.data.citation
            assert not (RESULTS / suite / "predictions").exists()
            paths = re.split(r"[ =]", record.environment["command"])
            assert not any(os.path.isabs(p) for p in paths), "no path of a machine"

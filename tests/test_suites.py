"""Every suite runs whole on its twin, tried with few steps; what it takes at full length is in docs/suites.md."""

from __future__ import annotations

from pathlib import Path

import pytest

import neurobench
from benchmarks.suites import LIMIT_S, NAMES, command, run
from neurobench.config import expand, load_suite
from neurobench.plugins import load_registry

FEW = {"neurostorm": 64}
"""People of a twin where a task needs more than 24: here those with two windows are few."""

SUITES = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize("name", NAMES)
def test_a_suite_says_what_it_is_and_resolves_at_every_profile_it_names(name: str) -> None:
    text = (SUITES / f"{name}.yaml").read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert f"--suite benchmarks/{name}.yaml" in text
    config = load_suite(SUITES / f"{name}.yaml")
    grid = expand(config, load_registry())
    assert grid.tasks_asked
    assert len(grid.combinations) >= 3
    assert command(name)[-4:] == ["--profile", "smoke", "--source", "simulated"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_suite_runs_whole_on_its_twin(name: str, tmp_path: Path) -> None:
    table = neurobench.run(
        suite=SUITES / f"{name}.yaml",
        profile="smoke",
        n_steps=2,
        n_subjects=FEW.get(name, 24),
        source="simulated",
        out=tmp_path,
    )
    assert set(table["status"]) == {"ok"}, table.loc[table["status"] != "ok", ["row", "task", "error"]].to_dict(
        "records"
    )
    assert set(table["source"]) == {"simulated"}
    assert set(table["suite"].str.partition("@")[0]) == {name}
    grid = expand(load_suite(SUITES / f"{name}.yaml"), load_registry())
    assert set(table["task"]) == {t.label for t in grid.tasks}
    assert {"pretrained", "untrained", "baseline", "filler"} <= set(table["kind"])


@pytest.mark.slow
def test_the_campaign_counts_what_a_suite_came_to(tmp_path: Path) -> None:
    found = run("meg-headache", tmp_path / "out", n_steps=2)
    assert found["exit_code"] == 0
    assert found["failed"] == []
    assert found["n_records"] == len(list((tmp_path / "out" / "records").iterdir()))
    assert found["seconds"] < LIMIT_S
    # Two steps are not the suite as it is, and the table says so.
    assert {f["changed"] for f in found["figures"]} == {"n_steps, profile"}

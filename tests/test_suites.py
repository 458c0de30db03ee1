"""Every suite runs whole on its twin, tried with few steps; what it takes at full length is in docs/suites.md."""

from __future__ import annotations

from pathlib import Path

import pytest

import neurobench
from benchmarks.suites import NAMES, command, run
from neurobench.config import RunConfig, expand, load_suite
from neurobench.errors import ConfigErrors
from neurobench.plugins import load_registry
from neurobench_datasets._description import FILE, described
from neurobench_datasets.parcels import Parcels

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


@pytest.mark.parametrize(("name", "description"), [("abide-parcels", "abide-aal116"), ("rpn-parcels", "rpn-mist122")])
def test_a_suite_of_real_recordings_takes_no_twin_and_names_them(name: str, description: str, tmp_path: Path) -> None:
    file = SUITES / f"{name}.yaml"
    text = file.read_text(encoding="utf-8")
    assert f"--suite benchmarks/{name}.yaml --data-dir parcels=FOLDER" in text
    assert f"benchmarks/descriptions/{description}.json" in text
    registry = load_registry()
    with pytest.raises(ConfigErrors, match="parcels"):
        expand(load_suite(file), registry)
    grid = expand(RunConfig.from_options(suite=file, data_dir=f"parcels={tmp_path}"), registry)
    # Within the limits of a run that its users can wait for, and with controls of `roi` beside it.
    assert (grid.profile.name, grid.profile.n_steps, grid.profile.n_folds) == ("smoke", 600, 5)
    assert {"roi", "random_tube", "random"} <= {m.label for m in grid.masks}
    (tmp_path / FILE).write_text((SUITES / "descriptions" / f"{description}.json").read_text(encoding="utf-8"))
    card = described(Parcels().card, tmp_path)
    assert card.licence != Parcels().card.licence
    assert "doi:10." in card.cite()
    assert card.may_leave == "aggregates"


@pytest.mark.slow
@pytest.mark.parametrize(
    # That of MEG is run whole below, and of the others test_published.py runs what takes seconds.
    "name",
    [n if n == "relatives" else pytest.param(n, marks=pytest.mark.campaign) for n in NAMES],
)
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
    # Two steps are not the suite as it is, and the table says so.
    assert {f["changed"] for f in found["figures"]} == {"n_steps, profile"}

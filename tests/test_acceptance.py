"""What the simulated twins have to show, through the runner: effects that are there are found, others are not."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

import neurobench
from neurobench.cli import app
from tests.test_snippets import MAIN, OUTPUTS, missing

pytestmark = pytest.mark.slow

OTHERS = ("transformer", "hybrid")
SIGNAL_BASELINES = ("connectome", "tangent", "raw_signal")


@pytest.fixture(scope="module", params=["mamba", *(pytest.param(b, marks=pytest.mark.campaign) for b in OTHERS)])
def backbone(request: pytest.FixtureRequest) -> str:
    """What the main job is run with: Mamba, as the README does."""
    return str(request.param)


@pytest.fixture(scope="module")
def main_job(backbone: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, pd.DataFrame]:
    """Return what the main job says, and its results."""
    folder = tmp_path_factory.mktemp("acceptance")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("COLUMNS", "160")
        result = CliRunner().invoke(app, ["run", "--backbone", backbone, "--mask", "roi"])
    assert result.exit_code == 0, result.output
    return result.output, neurobench.load_results(folder / "neurobench-results")


@pytest.fixture(scope="module")
def default(main_job: tuple[str, pd.DataFrame]) -> pd.DataFrame:
    return main_job[1]


@pytest.fixture(scope="module")
def null(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    out = tmp_path_factory.mktemp("acceptance-null") / "out"
    tasks = "age,diagnosis,sex,fluid_intelligence"
    return neurobench.run(backbone="mamba", mask="none", variant="null", task=tasks, out=out)


def test_the_readme_shows_what_the_main_job_says(main_job: tuple[str, pd.DataFrame], backbone: str) -> None:
    if backbone != "mamba":
        pytest.skip("the README shows Mamba")
    shown = [(page, block) for page, block in OUTPUTS if block.of == MAIN]
    assert shown
    for page, block in shown:
        lost = missing(block, main_job[0])
        assert not lost, f"{page} says what the main job does not:\n" + "\n\n".join(lost) + f"\n\n{main_job[0]}"


DATASETS = ("adhd200", "camcan", "meg_headache")


def rows(table: pd.DataFrame, dataset: str, task: str) -> pd.DataFrame:
    return table[(table["dataset"] == dataset) & (table["task"] == task)].set_index("row")


def test_every_row_of_every_dataset_is_there(default: pd.DataFrame) -> None:
    assert (default["status"] == "ok").all()
    assert set(default["source"]) == {"simulated"}
    assert set(default["dataset"]) == set(DATASETS)


@pytest.mark.parametrize("dataset", DATASETS)
def test_a_baseline_finds_age_and_its_interval_excludes_the_mean_predictor(default: pd.DataFrame, dataset: str) -> None:
    found = rows(default, dataset, "age")
    signal = found.loc[[b for b in SIGNAL_BASELINES if b in found.index]]
    best = signal.loc[signal["score"].idxmin()]
    assert best["high"] < found.loc["mean", "score"]
    assert best["above_chance"]


@pytest.mark.parametrize("dataset", ["adhd200", "meg_headache"])
def test_a_baseline_finds_the_diagnosis(default: pd.DataFrame, dataset: str) -> None:
    found = rows(default, dataset, "diagnosis")
    assert found.loc[[b for b in SIGNAL_BASELINES if b in found.index], "above_chance"].any()
    assert not found.loc["covariates", "above_chance"], "site does not give the diagnosis away unless it is meant to"


@pytest.mark.parametrize("dataset", DATASETS)
def test_training_helps_every_backbone(default: pd.DataFrame, backbone: str, dataset: str) -> None:
    found = rows(default, dataset, "reconstruction")
    trained = found.loc[f"{backbone} · roi", "metric_r2[roi]"]
    assert trained > found.loc[f"{backbone} · untrained", "metric_r2[roi]"]
    assert trained > 0, "the mean filler has an R² of 0"


def test_responses_and_states_are_found_in_the_meg_twin(default: pd.DataFrame, backbone: str) -> None:
    responses = rows(default, "meg_headache", "evoked")
    assert responses.loc["ridge", "score"] > 0.3
    assert abs(responses.loc["ridge", "metric_waveform_r[null]"]) < 0.1
    assert responses.loc["mean", "score"] == 0
    assert responses.loc[f"{backbone} · roi", "score"] > responses.loc[f"{backbone} · untrained", "score"]
    states = rows(default, "meg_headache", "state")
    assert states.loc["tangent", "low"] > 1 / 3
    assert states.loc["tangent", "above_chance"]
    assert not states.loc["covariates", "above_chance"]


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("task", ["age", "diagnosis", "sex"])
def test_nothing_is_found_on_the_null_twin(null: pd.DataFrame, dataset: str, task: str) -> None:
    found = rows(null, dataset, task)
    if dataset == "camcan" and task == "diagnosis":
        assert found.empty
        return
    for name in SIGNAL_BASELINES:
        if name in found.index:
            assert not found.loc[name, "above_chance"], name


def test_fluid_intelligence_on_the_null_twin_is_age(null: pd.DataFrame) -> None:
    found = rows(null, "camcan", "fluid_intelligence")
    assert found.loc["covariates", "above_chance"]
    assert not found.loc["connectome", "above_chance"]


def test_a_confounded_diagnosis_is_caught_by_the_covariates(tmp_path: Path) -> None:
    table = neurobench.run(
        backbone="mamba",
        mask="none",
        dataset="adhd200,meg_headache",
        task="diagnosis",
        variant="confounded",
        out=tmp_path / "out",
    )
    for dataset in ("adhd200", "meg_headache"):
        covariates = rows(table, dataset, "diagnosis").loc["covariates"]
        # Site tells patients from controls, and the permutation within sites says that nothing else does.
        assert covariates["low"] > 0.5
        assert not covariates["above_chance"]

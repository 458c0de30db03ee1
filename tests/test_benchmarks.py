"""Our figures beside published ones: the right rows, simulated said, every published figure marked and sourced."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.performance.board import invented, place, predictions, with_value
from neurobench.benchmarks import anchors, benchmarks, is_of, suite_notes
from neurobench.cli import app
from neurobench.config import expand, load_suite
from neurobench.errors import ConfigError, StoreError
from neurobench.plugins import load_registry

SUITES = Path(__file__).parents[1] / "benchmarks"


def test_every_published_figure_says_where_it_is_from_and_in_what_it_differs():
    for anchor in anchors():
        assert anchor.who, anchor
        assert anchor.cohort, anchor
        assert anchor.source.startswith(("doi:10.", "arXiv:", "of the code of arXiv:")), anchor
        assert anchor.differs, anchor
        assert anchor.low <= anchor.high
    assert set(suite_notes()) <= {a.suite for a in anchors()}


def camcan(folder: Path, row: str, kind: str, value: float, **changes) -> Path:
    return place(folder, invented(row, kind, dataset="camcan", suite="camcan-aging", value=value, **changes))


def test_our_row_stands_beside_with_the_best_baseline(tmp_path: Path):
    camcan(tmp_path, "moe_ssm · local", "pretrained", 9.5)
    camcan(tmp_path, "moe_ssm · roi", "pretrained", 4.0)
    camcan(tmp_path, "connectome", "baseline", 9.0)
    camcan(tmp_path, "covariates", "baseline", 12.0)
    table = benchmarks([tmp_path / "camcan-aging"], suite="camcan-aging")
    (ours,) = table[(table["task"] == "age") & (table["metric"] == "mae")].to_dict("records")
    assert ours["row"] == "moe_ssm · local", "not the row that happens to be best"
    assert (ours["score"], ours["low"], ours["high"]) == (9.5, pytest.approx(8.9), pytest.approx(10.1))
    assert (ours["baseline"], ours["baseline_score"]) == ("connectome", 9.0)
    assert (ours["source"], ours["protocol"], ours["published"]) == ("simulated", "another", "5.343 years")
    others = table[table["metric"] != "mae"]
    assert others["score"].isna().all()


def test_records_of_another_suite_do_not_stand_in(tmp_path: Path):
    place(tmp_path, invented("moe_ssm · local", "pretrained", dataset="camcan", suite="smoke"))
    assert benchmarks([tmp_path / "smoke"], suite="camcan-aging")["score"].isna().all()


def test_what_was_changed_of_a_suite_is_said(tmp_path: Path):
    camcan(tmp_path, "moe_ssm · local", "pretrained", 9.5, protocol__suite="camcan-aging@0, changed: n_steps")
    found = benchmarks([tmp_path / "camcan-aging"], suite="camcan-aging")
    assert set(found["changed"].dropna()) == {"n_steps"}


def test_a_difference_is_paired_on_the_same_subjects(tmp_path: Path):
    truth = np.repeat([0.0, 1.0], 40)  # Both as frequent: probabilities are what the probe said.
    for row, seed in (("transformer · roi", 1), ("transformer · random", 2), ("mamba · roi", 3)):
        held_out, _ = predictions(truth, 0.6, seed)
        accuracy = {"value": 0.8, "low": 0.7, "high": 0.9, "unit": "", "higher_is_better": True}
        record = invented(
            row,
            "pretrained",
            task="diagnosis",
            dataset="adhd200[signal=volume]",
            suite="adhd200-masking",
            metrics={"accuracy": accuracy},
            headline="accuracy",
        )
        place(tmp_path, record, held_out)
    table = benchmarks([tmp_path / "adhd200-masking"], suite="adhd200-masking")
    (ours,) = table[table["row"].str.contains("−") & table["score"].notna()].to_dict("records")
    assert ours["row"] == "transformer · roi − transformer · random", "only rows of one backbone are paired"
    hits = [((predictions(truth, 0.6, seed)[0]["prediction"] > 0.5) == truth).mean() for seed in (1, 2)]
    assert ours["score"] == pytest.approx(hits[0] - hits[1])
    assert ours["low"] < ours["score"] < ours["high"]


def test_a_folder_without_records_and_a_typo_are_errors(tmp_path: Path):
    with pytest.raises(StoreError, match="holds no records"):
        benchmarks([tmp_path])
    with pytest.raises(ConfigError) as error:
        anchors("camcan-agin")
    assert error.value.likely == "camcan-aging"


def test_the_command_marks_every_published_figure(tmp_path: Path):
    truth = 50 + 10 * np.random.default_rng(0).standard_normal(40)
    held_out, value = predictions(truth, 5.0, 0)
    record = invented("moe_ssm · local", "pretrained", dataset="camcan", suite="camcan-aging")
    place(tmp_path, with_value(record, value), held_out)
    out = str(tmp_path / "camcan-aging")
    shown = CliRunner().invoke(app, ["benchmarks", out, "--suite", "camcan-aging"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    assert "SIMULATED" in shown.output
    assert f"{value:.3g} years (simulated)" in shown.output
    assert shown.output.count("another protocol") == len({(a.who, a.differs) for a in anchors("camcan-aging")})
    plain = json.loads(CliRunner().invoke(app, ["benchmarks", out, "--json"]).stdout)
    assert {line["suite"] for line in plain} == {a.suite for a in anchors()}
    assert all(line["score"] is None or math.isfinite(line["score"]) for line in plain)


@pytest.mark.parametrize("suite", sorted({a.suite for a in anchors()}))
def test_every_figure_is_about_rows_that_its_suite_has(suite: str):
    registry = load_registry()
    grid = expand(load_suite(SUITES / f"{suite}.yaml"), registry)
    labels = {"backbone": {b.label for b in grid.backbones}, "mask": {m.label for m in grid.masks}}
    labels["baseline"] = {b.label for b in grid.baselines}
    for anchor in anchors(suite):
        assert any(is_of(d.label, anchor.dataset) for d in grid.datasets), anchor
        assert anchor.task in {t.label for t in grid.tasks}, anchor
        for part, label in [*anchor.row.items(), *anchor.minus.items()]:
            assert label in labels[part], anchor

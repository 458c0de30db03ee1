"""Records in the formats of others: complete, true to the records, and simulated data called simulated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import neurobench
from neurobench.cli import app
from neurobench.export import EVERY_EVAL_EVER, model_card, validated, write_every_eval_ever
from neurobench.results import load_results


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "out"
    neurobench.run(
        backbone="transformer",
        mask="roi",
        dataset="parcels",
        n_subjects=24,
        n_steps=2,
        task="age,reconstruction",
        out=folder,
    )
    return folder


def test_every_eval_ever(out: Path, tmp_path: Path):
    paths = write_every_eval_ever(out, tmp_path, developer="Some Lab")
    table = load_results(out)
    results = {}
    for path in paths:
        log = json.loads(path.read_text(encoding="utf-8"))
        required = {"schema_version", "evaluation_id", "retrieved_timestamp", "source_metadata", "model_info"}
        assert required | {"eval_library", "evaluation_results", "evaluation_timestamp"} == log.keys()
        assert log["schema_version"] == EVERY_EVAL_EVER
        assert log["model_info"]["id"] == f"some-lab/{path.stem}"
        for r in log["evaluation_results"]:
            assert "simulated" in r["source_data"]["dataset_name"]
            config, score = r["metric_config"], r["score_details"]
            bounds = [float(config[b]) for b in ("min_score", "max_score")]
            assert bounds[0] <= score["score"] <= bounds[1]
            texts = [*score["details"].values(), *r["source_data"]["additional_details"].values()]
            assert all(isinstance(t, str) for t in texts), "the schema takes texts only"
            results[r["evaluation_result_id"]] = score
    for row in table.to_dict("records"):
        score = results[f"{row['id']}.{row['metric']}"]
        assert score["score"] == row["score"]
        assert score["uncertainty"]["num_samples"] == row["n_subjects"]
    assert len({p.name for p in paths}) == len(paths) == len(set(zip(table["kind"], table["row"], strict=True)))
    first = [p.read_bytes() for p in paths]
    assert [p.read_bytes() for p in write_every_eval_ever(out, tmp_path, developer="Some Lab")] == first
    assert validated(paths).startswith(("not validated here", "valid by the installed schema"))


def test_a_model_card(out: Path):
    text = model_card(out, "transformer · roi")
    _, head, body = text.split("---\n", 2)
    [model] = yaml.safe_load(head)["model-index"]
    assert model["name"] == "transformer · roi"
    table = load_results(out)
    own = table[table["row"] == "transformer · roi"].set_index("task")
    for result in model["results"]:
        [metric] = result["metrics"]
        assert metric["value"] == own.loc[result["task"]["type"], "score"]
        assert "simulated" in result["dataset"]["name"]
        assert "95 % interval" in metric["name"]
    assert "measure the software, not the model" in body
    assert "| **transformer · roi** |" in body
    assert "| connectome |" in body, "no number without its baselines"


def test_the_commands(out: Path, tmp_path: Path):
    run = CliRunner().invoke
    found = run(app, ["export", str(out), "--to", str(tmp_path / "eee")])
    assert found.exit_code == 0, found.output
    assert f"schema {EVERY_EVAL_EVER}" in found.output
    found = run(app, ["export", str(out), "--format", "every-eval-evr"])
    assert found.exit_code == 1
    assert "every-eval-ever" in found.output
    found = run(app, ["card", str(out), "--row", "transformer · ro"])
    assert found.exit_code == 2
    assert "transformer · roi" in found.output
    found = run(app, ["card", str(out), "--to", str(tmp_path / "card.md")])
    assert found.exit_code == 0, found.output
    assert (tmp_path / "card.md").read_text(encoding="utf-8") == model_card(out)
    assert run(app, ["card", str(out)]).output == model_card(out)

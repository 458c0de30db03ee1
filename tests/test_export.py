"""Records in the formats of others: complete, true to the records, and simulated data called simulated."""

from __future__ import annotations

import json
from pathlib import Path
from uuid import UUID

import pytest
import yaml
from huggingface_hub import ModelCard
from typer.testing import CliRunner

import neurobench
from neurobench import export
from neurobench.cli import app
from neurobench.errors import ConfigError
from neurobench.export import EVERY_EVAL_EVER, model_card, superseded, validated, write_every_eval_ever
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
        # As in the collection: data/COLLECTION/DEVELOPER/MODEL/UUID4.json, the middle two those of the id.
        data, collection, *model, _ = path.relative_to(tmp_path).parts
        assert (data, collection) == ("data", "neurobench-simulated")
        assert log["model_info"]["id"] == "/".join(model)
        assert UUID(path.stem).version == 4
        for r in log["evaluation_results"]:
            assert "simulated" in r["source_data"]["dataset_name"]
            assert r["evaluation_name"].startswith("neurobench.simulated.")
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
        assert metric["value"] == own.loc[result["task"]["name"], "score"]
        assert result["dataset"]["type"] == "parcels-simulated"
        assert "seed 0" in metric["name"]
        assert "simulated" in result["dataset"]["name"]
        assert "95 % interval" in metric["name"]
    assert "measure the software, not the model" in body
    assert "| **transformer · roi** |" in body
    assert "| connectome |" in body, "no number without its baselines"


def test_a_card_survives_the_reader_of_model_hubs(out: Path):
    card = ModelCard(model_card(out, "transformer · roi"))
    table = load_results(out)
    own = table[table["row"] == "transformer · roi"]
    read = {(e.task_name, e.metric_type): e.metric_value for e in card.data.eval_results}
    assert read == {(r["task"], r["metric"]): r["score"] for r in own.to_dict("records")}
    again = yaml.safe_load(card.data.to_yaml())["model-index"]
    assert [len(m["results"]) for m in again] == [len(own)], "two results became one"


def test_a_card_is_of_one_row(out: Path, monkeypatch: pytest.MonkeyPatch):
    records = export._records(out)
    (first, *_) = [r for r in records if r.kind == "pretrained"]
    other = first.model_copy(update={"row": "mamba · roi"})
    monkeypatch.setattr(export, "_records", lambda _: [*records, other])
    with pytest.raises(ConfigError, match="a card is of one row"):
        model_card(out)
    assert "mamba · roi" not in model_card(out, first.row)


def test_rows_that_differ_in_signs_alone_stay_two(out: Path):
    (first, *_) = export._records(out)
    twins = [first.model_copy(update={"row": row}) for row in ("a[x=b] · c", "a · x[b=c]")]
    assert len(set(export._names(twins).values())) == 2


def test_what_is_beside_an_export_is_told_and_left(out: Path, tmp_path: Path):
    paths = write_every_eval_ever(out, tmp_path, developer="Some Lab")
    old = paths[0].with_name("old.json")
    old.write_text("{}", encoding="utf-8")
    assert superseded(paths) == [old]
    with pytest.raises(ConfigError, match="gives no name of a folder"):
        write_every_eval_ever(out, tmp_path, developer="···")


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

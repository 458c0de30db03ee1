"""Prompts, low-rank updates and the attentive probe in whole runs: what records and tables say, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from neurobench import adaptation
from neurobench.agreement import not_as_identified
from neurobench.config import RunConfig, expand
from neurobench.contracts import Backbone
from neurobench.errors import ConfigError, ConfigErrors
from neurobench.options import load_suite, parse_adaptation
from neurobench.plugins import load_registry
from neurobench.results import Record, read_record
from neurobench.runner import RunResult
from neurobench.tables import results_table, share
from neurobench_tasks.age import Age
from tests.fakes import write_folder
from tests.tiny_run import PLUGIN, execute

# ---------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_folder(folder, n_subjects=24)
    return folder


@pytest.mark.parametrize("how", ["prompt[tokens=3]", "lora"])
def test_records_say_what_was_trained(how: str, data: Path, tmp_path: Path) -> None:
    result = execute(data, tmp_path, adaptation=how, task="age", folds=2)
    assert set(result.table["status"]) == {"ok"}
    rows = result.table.set_index("row")
    for label in ("tiny · roi", "tiny · untrained"):
        record = read_record(tmp_path / "records" / f"{rows.loc[label, 'id']}.json")
        assert record.protocol.adaptation == how
        assert record.protocol.adaptation_parameters == ({"tokens": 3} if how != "lora" else {"rank": 4})
        training = record.training
        assert training is not None
        # Width 32, 12 units: a head of 12 × 64 weights, a norm and a bias; three prompts, or 4 × (in + out) a layer.
        head = 12 * 64 + 128 + 1
        n_features = 4
        added = 3 * 32 if how != "lora" else 4 * (32 + 32) + (4 * (n_features + 32) if 4 * 36 < 4 * 32 else 0)
        assert training.n_trained == head + added
        assert record.cost.n_parameters is not None
        assert training.n_parameters == record.cost.n_parameters + added + head
        assert training.share == training.n_trained / training.n_parameters
        assert [len(fold) for fold in training.epochs] == [1, 1]
        identity = json.loads((tmp_path / "identities" / f"{record.id}.json").read_text())
        steps = identity["steps"]
        assert list(not_as_identified(record, identity["evaluation"], steps)) == []
        lying = record.model_copy(
            update={
                "protocol": record.protocol.model_copy(update={"adaptation": "prompt", "adaptation_parameters": {}})
            }
        )
        assert any("adaptation" in p for p in not_as_identified(lying, identity["evaluation"], steps))
    assert rows.loc["connectome", "trained_share"] is None or np.isnan(rows.loc["connectome", "trained_share"])
    shown = text(result.table)
    assert share(rows.loc["tiny · roi", "trained_share"]) in shown
    assert f"adaptation {how}" in shown


def test_labels_of_test_subjects_change_nothing_of_what_is_trained(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the labels of the first fold's test subjects dealt out anew, that fold trains and predicts as before."""
    options = {"adaptation": "prompt", "task": "age", "folds": 2}
    first = execute(data, tmp_path / "first", **options)
    predictions = pd.read_parquet(tmp_path / "first" / "predictions" / f"{record_of(first).id}.parquet")
    tested = predictions.loc[predictions["fold"] == 0, "participant_id"].tolist()
    original = Age.target

    def dealt(self: Age, participants: pd.DataFrame) -> pd.Series:
        y = original(self, participants).copy()
        y.loc[tested] = 2 * np.roll(y.loc[tested].to_numpy(), 5)
        return y

    monkeypatch.setattr(Age, "target", dealt)
    second = execute(data, tmp_path / "second", **options)
    again = pd.read_parquet(tmp_path / "second" / "predictions" / f"{record_of(second).id}.parquet")
    (epochs, _), (same, _) = record_of(first).training.epochs, record_of(second).training.epochs
    assert epochs == same
    of_fold = [t[t["fold"] == 0].set_index("participant_id").sort_index() for t in (predictions, again)]
    np.testing.assert_array_equal(of_fold[0]["prediction"], of_fold[1]["prediction"])
    assert not np.allclose(of_fold[0]["truth"], of_fold[1]["truth"])


def record_of(result: RunResult) -> Record:
    found = result.table.set_index("row").loc["tiny · roi", "id"]
    return read_record(result.out / "records" / f"{found}.json")


def text(table) -> str:
    console = Console(width=160, record=True, file=None)
    with console.capture() as capture:
        console.print(results_table(table, 160))
    return capture.get()


@pytest.mark.slow
def test_the_attentive_probe_takes_stored_embeddings_and_leaves_baselines_alone(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    linear = execute(data, tmp_path, task="age,sex", folds=2)
    monkeypatch.setattr(adaptation, "embed_subjects", None)
    attentive = execute(data, tmp_path, task="age,sex", folds=2, probe="attentive")
    assert set(attentive.table["status"]) == {"ok"}
    a, b = (r.table.set_index(["task", "row"]) for r in (linear, attentive))
    for task in ("age", "sex"):
        assert a.loc[(task, "connectome"), "score"] == b.loc[(task, "connectome"), "score"]
        assert a.loc[(task, "tiny · roi"), "id"] != b.loc[(task, "tiny · roi"), "id"]
    assert "baselines have no unit tokens and keep the linear one" in text(
        attentive.table[attentive.table.task == "age"]
    )
    record = read_record(tmp_path / "records" / f"{b.loc[('age', 'tiny · roi'), 'id']}.json")
    assert (record.protocol.probe, record.training) == ("attentive", None)


# ---------------------------------------------------------------- the attentive probe


def subjects(effect: float, n: int = 80, n_units: int = 30, width: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Return unit tokens of which the first few units know the target, and the target."""
    rng = np.random.default_rng(0)
    y = rng.normal(size=n)
    x = rng.normal(size=(n_units, width)) + 0.3 * rng.normal(size=(n, n_units, width))
    x[:, :6, 3] += effect * y[:, None]
    x[3, 7] = np.nan
    return x.reshape(n, -1), y


def test_the_attentive_probe_finds_what_a_few_units_know() -> None:
    x, y = subjects(0.6)
    how = {"probe": "attentive", "n_units": 30}
    found = adaptation.fit_predict(x[:60], 10 * y[:60] + 40, x[60:], "regression", 1, **how)
    assert np.corrcoef(found.values, y[60:])[0, 1] > 0.7
    assert 0 < found.hyperparameter <= 100
    classes = (y > 0).astype(float)
    p = adaptation.fit_predict(x[:60], classes[:60], x[60:], "classification", 1, **how)
    assert np.corrcoef(p.values, y[60:])[0, 1] > 0.6
    many = np.digitize(y, [-0.5, 0.5])
    groups = [str(i) for i in range(60)]
    shares, _ = adaptation.fit_predict_classes(x[:60], many[:60], x[60:], 3, groups, 1, **how)
    np.testing.assert_allclose(shares.sum(1), 1)
    assert (shares.argmax(1) == many[60:]).mean() > 0.5


def test_the_attentive_probe_claims_nothing_of_noise_and_knows_nothing_of_test_rows() -> None:
    x, y = subjects(0.0)

    def predicted(rows: np.ndarray) -> np.ndarray:
        return adaptation.fit_predict(x[:60], y[:60], rows, "regression", 0, probe="attentive", n_units=30).values

    together = predicted(x[60:])
    np.testing.assert_allclose(together, y[:60].mean(), atol=0.3)
    x, y = subjects(0.6)
    together = predicted(x[60:])
    np.testing.assert_array_equal(together, predicted(x[60:]))
    np.testing.assert_allclose(together[:1], predicted(np.concatenate([x[60:61], 100 + x[61:]]))[:1], rtol=1e-4)
    nobody = predicted(np.full((1, x.shape[1]), np.nan))
    assert np.isfinite(nobody).all()


# ---------------------------------------------------------------- what is read, and refused


def problems(**options: object) -> str:
    settings = {"backbone": "tiny", "mask": "roi", "dataset": "fake", "plugin_files": PLUGIN} | options
    config = RunConfig.from_options(**settings)
    with pytest.raises(ConfigErrors) as caught:
        expand(config, load_registry(config.plugin_files))
    return str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adaptation": "promt"}, "--adaptation cannot be 'promt'. Did you mean 'prompt'? Allowed: frozen, finetune"),
        ({"adaptation": "prompt[token=3]"}, "adaptation 'prompt' has no parameter 'token'. Did you mean 'tokens'?"),
        ({"adaptation": "prompt[tokens=many]"}, "'tokens' of adaptation 'prompt' cannot be 'many'. Allowed: a whole"),
        ({"adaptation": "prompt[tokens]"}, "'tokens' in adaptation 'prompt[tokens]' gives no value"),
        ({"adaptation": "prompt[tokens=0]"}, "tokens cannot be 0. Allowed: 1 to 256"),
        ({"adaptation": "finetune[rank=3]"}, "'finetune' has no parameter 'rank'. Allowed: no parameters"),
        ({"adaptation": "lora[rank=16]"}, "a rank of 16 is no low one at --profile smoke"),
        ({"adaptation": "lora", "harmonise": "site"}, "--harmonise site is about the probe on frozen features"),
        ({"adaptation": "prompt", "probe": "attentive"}, "--probe attentive is about the probe on frozen features"),
        ({"adaptation": "lora", "refit_permutations": 30}, "--refit-permutations is about the probe"),
        ({"adaptation": "prompt", "split": "within-recording"}, "has no meaning with --split within-recording"),
        ({"probe": "attentve"}, "Did you mean 'attentive'?"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(options: dict[str, object], message: str) -> None:
    assert message in problems(**options)


def test_parameters_are_resolved_and_those_at_their_defaults_are_not_shown() -> None:
    assert parse_adaptation("prompt").parameters == parse_adaptation("prompt[tokens=8]").parameters == {"tokens": 8}
    assert parse_adaptation("prompt[tokens=8]").label == "prompt"
    assert parse_adaptation(" lora[rank=2]").label == "lora[rank=2]"
    with pytest.raises(ConfigError, match=r"frozen, finetune, prompt\[tokens=8\], lora\[rank=4\], scratch"):
        parse_adaptation("freeze")


def test_a_suite_may_ask_for_an_adaptation(tmp_path: Path) -> None:
    suite = tmp_path / "mine.yaml"
    suite.write_text("backbones: tiny\nmasks: roi\nadaptation: prompt[tokens=4]\nprobe: linear\n")
    assert load_suite(suite).adaptation == "prompt[tokens=4]"


class Plain(Backbone):
    """Embeds by itself."""

    name = "plain"
    summary = "no TokenBackbone"

    def forward(self, signal, hidden, table):
        return signal


def test_a_backbone_without_prompts_is_refused_when_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = load_registry((PLUGIN,))
    monkeypatch.setitem(registry.backbones, "plain", Plain)
    for how in ("prompt", "lora"):
        config = RunConfig.from_options(
            backbone="plain,tiny", mask="roi", dataset="fake", adaptation=how, plugin_files=PLUGIN
        )
        if how == "lora":
            expand(config, registry)
            continue
        with pytest.raises(ConfigErrors, match=r"backbone 'plain' takes no prompts.*Allowed: .*tiny.*finetune, lora"):
            expand(config, registry)

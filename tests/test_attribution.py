"""Occlusion finds what was planted, and not with randomised weights; geometry of embeddings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from neurobench import attribution, pretraining, probing, reconstruction, tokens
from neurobench.cohorts import twin
from neurobench.config import RunConfig, expand
from neurobench.identity import seed_for
from neurobench.opening import cohort_source
from neurobench.plugins import load_registry
from neurobench.records import BackboneSpec, Batch
from neurobench.specimens import simulated_cohort
from neurobench.stages import CohortRun
from neurobench.store import Store
from tests.fakes import write_folder
from tests.tiny_run import PLUGIN

CPU = torch.device("cpu")


class Copies:
    """Fills every hidden unit with the signal of unit 0 where that is visible, else with zero."""

    def __call__(self, batch: Batch, hidden: torch.Tensor) -> torch.Tensor:
        first = batch.signal[:, :1] * ~hidden[:, :1, :, None]
        return first.expand_as(batch.signal)


@pytest.fixture
def cohort(tmp_path: Path):
    return simulated_cohort(tmp_path, n_subjects=6, n_units=6)


def test_what_is_used_is_attributed(cohort):
    """A predictor that uses unit 0 alone loses by unit 0 alone, whatever it gains or loses by it."""
    tokenizer = tokens.Tokenizer(cohort, tokens.Scaler.fit(cohort, cohort.subjects))
    windows = tokens.evaluation_windows(cohort, cohort.subjects)
    groups = {n: np.array([i]) for i, n in enumerate(cohort.units.names)}
    mask = load_registry().masks["random_tube"]()
    found = attribution.occlude(Copies(), tokenizer, windows, [np.arange(6)], groups, mask, ratio=0.3, seed=0)
    moved = np.abs(found.occluded - found.base).sum((0, 2))
    assert moved[0] > 0
    np.testing.assert_allclose(moved[1:], 0, atol=1e-9)
    # A group's own units are never among those that are scored.
    assert all(found.total[:, g, g].sum() == 0 for g in range(6))
    table = found.table(0, 200)
    assert (table["low"] <= table["value"] + 1e-12).all()
    assert (table["value"] <= table["high"] + 1e-12).all()
    # Who belongs together is drawn together: of one family there is one draw.
    one = found.table(0, 200, dict.fromkeys(cohort.subjects, "one"))
    np.testing.assert_allclose(one["low"], one["value"])
    np.testing.assert_allclose(one["high"], one["value"])


def test_twice_the_same(cohort):
    tokenizer = tokens.Tokenizer(cohort, tokens.Scaler.fit(cohort, cohort.subjects))
    windows = tokens.evaluation_windows(cohort, cohort.subjects)
    groups = attribution.unit_groups(cohort.units)
    mask = load_registry().masks["random_tube"]()
    a, b = (
        attribution.occlude(Copies(), tokenizer, windows, [np.arange(6)], groups, mask, ratio=0.3, seed=0, batch_size=n)
        for n in (32, 2)
    )
    np.testing.assert_allclose(a.loss(), b.loss(), rtol=1e-6)


def test_geometry_shows_what_is_there():
    rng = np.random.default_rng(0)
    names = [f"s{i:02d}" for i in range(60)]
    site = np.resize(["a", "b"], 60)
    x = 0.1 * rng.normal(size=(60, 20)) + np.where(site == "a", 1.0, -1.0)[:, None]
    found = attribution.geometry(x, names, names[:40], names[40:])
    assert found.shape == (20, 2)
    a, b = (found[site[40:] == s, 0] for s in ("a", "b"))
    assert max(a.min(), b.min()) > min(a.max(), b.max())
    # A constant shift of a test subject moves that subject only: nothing is fitted on it.
    moved = x.copy()
    moved[59] += 5
    again = attribution.geometry(moved, names, names[:40], names[40:])
    np.testing.assert_array_equal(found[:-1], again[:-1])
    assert not np.allclose(found[-1], again[-1])


def test_agreement():
    values = np.array([[1.0, 2.0, 3.0], [2.0, 4.0, 9.0], [3.0, 2.0, 1.0]])
    assert attribution.agreement(values[:2]) == pytest.approx(1)
    assert attribution.agreement(values[[0, 2]]) == pytest.approx(-1)
    assert np.isnan(attribution.agreement(values[:1]))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.campaign) for s in (1, 2))])
def test_regions_of_one_network_are_found_and_not_with_randomised_weights(tmp_path: Path, seed: int):
    """The simulated twin's planted pairs: the tenth of pairs of regions that share most of their networks."""
    registry = load_registry()
    config = RunConfig.from_options(
        backbone="transformer", mask="random_tube", dataset="parcels", n_subjects=48, out=tmp_path / "out"
    )
    grid = expand(config, registry)
    source, store = cohort_source(grid.datasets[0], grid, registry), Store(config.out)
    cohort = source.load(store)
    truth = json.loads(next(twin(source, store).rglob("true_effects.json")).read_text())
    chunk = np.linspace(0, len(cohort.units) - 1, 24).round().astype(int)
    names = pd.read_csv(next(twin(source, store).rglob("regions.tsv")), sep="\t")["name"].tolist()
    loading = np.array(truth["loading_of_region"])[[names.index(cohort.units.names[i]) for i in chunk]]
    similar = loading @ loading.T
    pairs = ~np.eye(24, dtype=bool)
    planted = similar[pairs] > np.quantile(similar[pairs], 0.9)
    train, test = cohort.subjects[:32], cohort.subjects[32:]
    tokenizer = tokens.Tokenizer(cohort, tokens.Scaler.fit(cohort, train))
    patches = cohort.patches_per_window
    spec = BackboneSpec(len(cohort.units), len(cohort.units.group_names), patches, cohort.n_features, 32, 1)
    mask = registry.masks["random_tube"]()
    areas = []
    for n_steps in (600, 0):
        net, decoder = pretraining.build(
            registry.backbones["transformer"], spec, {}, seed_for(seed, "pretrain-init", "transformer")
        )
        if n_steps:
            windows = tokens.TrainingWindows(tokenizer, train, 24 * patches, seed)
            recipe = pretraining.Recipe.for_width(32, 32)
            pretraining.pretrain(
                net, decoder, mask, windows, recipe=replace(recipe), n_steps=n_steps, ratio=0.5, seed=seed, device=CPU
            )
        found = attribution.occlude(
            reconstruction.BackbonePredictor(net, decoder),
            tokenizer,
            tokens.evaluation_windows(cohort, test),
            [chunk],
            {cohort.units.names[i]: np.array([i]) for i in chunk},
            mask,
            ratio=0.5,
            seed=seed,
        )
        areas.append(roc_auc_score(planted, found.matrix()[:, chunk][pairs]))
    assert areas[0] >= 0.8
    assert areas[1] <= 0.65


def harmonising_run(folder: Path, harmonise: str) -> CohortRun:
    write_folder(folder / "data", n_subjects=48)
    config = RunConfig.from_options(
        backbone="tiny",
        mask="roi",
        dataset="fake",
        task="age",
        data_dir=folder / "data",
        attribution=True,
        harmonise=harmonise,
        plugin_files=PLUGIN,
        out=folder / "out",
    )
    registry = load_registry(config.plugin_files)
    grid = expand(config, registry)
    source = cohort_source(grid.datasets[0], grid, registry)
    return CohortRun(source.load(Store(folder / "out")), source, grid, registry, 0, CPU, probing.nothing)


def test_a_group_without_which_nothing_changes_is_worth_nothing_when_sites_are_taken_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plain, run = (harmonising_run(tmp_path / name, name) for name in ("none", "site"))
    row = next(r for r in run.rows if r.kind == "pretrained")
    people = list(run.cohort.subjects)
    x = np.random.default_rng(0).normal(size=(len(people), 4))
    x[run.cohort.participants.loc[people, "site"] == "A"] += 5.0
    monkeypatch.setattr(run, "stored_features", lambda row, task, fold: (people, x))
    task, fold = run.tasks[0], run.folds[0]
    assert not np.allclose(run.features(row, task, fold)[1], x)
    found = run._occluded_predictions(row, fold, task, {"group": dict(zip(people, x, strict=True))})
    predicted = found.set_index(["control", "participant_id"]).pivot(columns="group", values="prediction")
    assert len(predicted) == 2 * len(fold.test)
    np.testing.assert_allclose(predicted["group"], predicted[""], rtol=1e-9)
    # What is stored of the one run is not found by the other.
    keys = [r.attribution_step(row, fold, r.tasks).identity["harmonise"] for r in (plain, run)]
    assert keys == ["none", "site"]

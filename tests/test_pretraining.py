"""The loop: it learns, it is the same for all, and it repeats itself to the byte."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from neurobench import pretraining
from neurobench.cohorts import CohortSource
from neurobench.contracts import patch_basis
from neurobench.errors import NeurobenchError
from neurobench.pretraining import Recipe, build, hide, masks_of, parameter_groups, pretrain
from neurobench.records import BackboneSpec, Cohort, SignalSpec
from neurobench.store import Store
from neurobench.tokens import Scaler, Tokenizer, TrainingWindows
from neurobench_backbones.mamba import Mamba
from neurobench_backbones.transformer import Transformer
from neurobench_masks.none import NoMask
from neurobench_masks.random_tube import RandomTube
from tests.fakes import FakeDataset, write_folder

RECIPE = Recipe(batch_size=8)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    root = tmp_path_factory.mktemp("pretraining")
    write_folder(root / "data", n_subjects=12)
    spec = SignalSpec(window_s=40.0, patch_s=8.0)
    return CohortSource(FakeDataset(), "fake", {"name": "fake"}, spec, root / "data").load(Store(root / "out"))


def windows(cohort: Cohort, seed: int = 0) -> TrainingWindows:
    return TrainingWindows(Tokenizer(cohort, Scaler.fit(cohort, cohort.subjects)), cohort.subjects, 60, seed)


def spec(cohort: Cohort) -> BackboneSpec:
    return BackboneSpec(len(cohort.units), 3, cohort.patches_per_window, cohort.n_features, 32, 1)


def train(
    cohort: Cohort, cls: type = Transformer, n_steps: int = 4, mask: type = RandomTube, **options: object
) -> tuple:
    net, decoder = build(cls, spec(cohort), {}, seed=1)
    history = pretrain(
        net, decoder, mask(), windows(cohort), recipe=RECIPE, n_steps=n_steps, ratio=0.5, seed=0, **options
    )
    return net, decoder, history


@pytest.mark.parametrize("cls", [Transformer, Mamba])
def test_the_loss_falls_where_units_predict_each_other(cohort: Cohort, cls: type) -> None:
    _, _, history = train(cohort, cls, n_steps=60)
    assert history.to_dict()["loss_last"] < 0.6 * history.to_dict()["loss_first"]


def test_one_seed_gives_the_same_bytes(cohort: Cohort) -> None:
    first, second = (train(cohort, Mamba)[0].state_dict() for _ in range(2))
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_building_leaves_the_global_generator_alone(cohort: Cohort) -> None:
    before = torch.get_rng_state()
    build(Transformer, spec(cohort), {}, seed=1)
    assert torch.equal(before, torch.get_rng_state())


def test_every_backbone_has_the_same_decoder_to_start_with(cohort: Cohort) -> None:
    decoders = [build(cls, spec(cohort), {}, seed=1)[1] for cls in (Transformer, Mamba)]
    assert torch.equal(decoders[0].weight, decoders[1].weight)


@pytest.mark.parametrize(("n_features", "width"), [(4, 32), (32, 32), (64, 32)])
def test_the_decoder_starts_as_the_inverse_of_the_embedding(n_features: int, width: int) -> None:
    basis = patch_basis(n_features, width)
    low = torch.cos(torch.pi * (torch.arange(n_features) + 0.5) / n_features)  # the lowest frequency survives
    torch.testing.assert_close(basis.T @ (basis @ low), low, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("mask", "n_steps"), [(RandomTube, 0), (NoMask, 3)])
def test_no_pretraining_leaves_the_weights_as_they_are(cohort: Cohort, mask: type, n_steps: int) -> None:
    net, _, history = train(cohort, n_steps=n_steps, mask=mask)
    fresh, _ = build(Transformer, spec(cohort), {}, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), fresh.state_dict().values(), strict=True))
    assert history.to_dict()["loss_first"] is None
    assert history.hidden_fraction is None


def test_the_budget_is_kept_and_recorded(cohort: Cohort) -> None:
    _, _, history = train(cohort)
    assert history.scored_fraction == pytest.approx(0.5, abs=0.01)
    assert history.hidden_fraction >= history.scored_fraction


def test_masks_do_not_depend_on_the_order_of_a_batch(cohort: Cohort) -> None:
    source = windows(cohort)
    batch = source.draw(0, 6)
    hidden, scored = masks_of(batch, RandomTube(), 0.5, seed=0, step=0)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    table = batch.table.map(lambda x: x[order])
    names = tuple(batch.subjects[i] for i in order), tuple(batch.windows[i] for i in order)
    turned = type(batch)(batch.signal[order], table, batch.rows[order], batch.units, *names)
    again, scored_again = masks_of(turned, RandomTube(), 0.5, seed=0, step=0)
    assert torch.equal(hidden[order], again)
    assert torch.equal(scored[order], scored_again)


def test_hidden_values_are_zero_before_a_backbone_sees_them() -> None:
    signal, hidden = torch.ones(1, 2, 3, 4), torch.zeros(1, 2, 3, dtype=torch.bool)
    hidden[0, 1, 2] = True
    assert hide(signal, hidden)[0, 1, 2].sum() == 0
    assert hide(signal, hidden).sum() == 20


def test_what_decays_and_what_does_not(cohort: Cohort) -> None:
    net, decoder = build(Mamba, spec(cohort), {}, seed=0)
    decay, keep = (g["params"] for g in parameter_groups([net, decoder], 0.05))
    names = {id(p): n for n, p in net.named_parameters()}
    kept = {names[id(p)].rsplit(".", 1)[-1] for p in keep if id(p) in names}
    assert {"A_log", "D", "dt_bias", "bias", "hidden_token", "time_embedding"} <= kept
    decayed = {names[id(p)] for p in decay if id(p) in names}
    assert not any("embedding" in n or "norm" in n for n in decayed)
    assert any("in_proj.weight" in n for n in decayed)


def test_the_rate_warms_up_and_falls() -> None:
    rates = [RECIPE.rate(s, 100) for s in range(100)]
    assert rates[4] == pytest.approx(RECIPE.learning_rate)
    assert rates[0] < rates[2] < rates[4]
    assert rates[-1] < 0.01 * RECIPE.learning_rate
    assert np.argmax(rates) in (4, 5)


def test_a_loss_that_explodes_says_where(cohort: Cohort, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Transformer, "mix", lambda self, tokens, table: tokens * math.nan)
    with pytest.raises(NeurobenchError, match=r"the loss became nan at step 1 of 4 \(learning rate"):
        train(cohort)


def test_every_step_is_reported(cohort: Cohort) -> None:
    seen: list[int] = []
    train(cohort, on_step=seen.append)
    assert seen == [0, 1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize(
    "backbone", ["transformer", *(pytest.param(b, marks=pytest.mark.campaign) for b in ("mamba", "hybrid"))]
)
def test_pretraining_reaches_the_ridge_on_real_recordings(shared_data: Path, tmp_path: Path, backbone: str) -> None:
    from benchmarks.pretraining_learns import load_cohort, measure

    cohort = load_cohort(shared_data / "abide_aal116", 24, Store(tmp_path / "out"))
    recipe = pretraining.Recipe.for_width(64, 32)
    rows = {r["row"]: r for r in measure(cohort, [backbone], 600, recipe)}
    assert float(rows["ridge"]["r2"]) > 0.4
    assert float(rows[backbone]["of_ridge"]) >= 0.9, rows

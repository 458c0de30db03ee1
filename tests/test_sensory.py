"""The backbones' own importance of units, and how it lines up with the sensors where a response is expected."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from neurobench import evoked, sensory
from neurobench import tokens as tokens_
from neurobench.cohorts import twin
from neurobench.config import RunConfig, expand
from neurobench.contracts import TokenBackbone
from neurobench.errors import DataError
from neurobench.identity import seed_for
from neurobench.opening import cohort_source
from neurobench.plugins import load_registry
from neurobench.pretraining import Recipe, build, pretrain
from neurobench.reconstruction import BackbonePredictor
from neurobench.records import BackboneSpec, UnitTable
from neurobench.specimens import simulated_batch, simulated_cohort, simulated_spec, simulated_states, simulated_units
from neurobench.store import Store
from neurobench_backbones._attention import AttentionPass
from neurobench_backbones._mamba2 import Mamba2, scan_inputs
from neurobench_backbones._ssd import scan
from neurobench_tasks.evoked import Evoked

BACKBONES = ["transformer", "mamba", "hybrid", "moe_ssm", "learned_graph"]


UNITS = simulated_units()


def tokens():
    return simulated_batch(UNITS, 3, 5, 6)


def spec(n_layers: int = 1):
    return simulated_spec(UNITS, 5, 6, 32, n_layers)


def drawn_on(name: str, *, n_layers: int = 1):
    """Return the importance of an untrained backbone on a simulated batch, and the batch."""
    batch = tokens()
    net, _ = build(load_registry().backbones[name], spec(n_layers), {}, 0)
    hidden = torch.zeros_like(batch.table.valid)
    with torch.inference_mode():
        return net.importance(batch.signal, hidden, batch.table), batch


@pytest.mark.parametrize("n_layers", [1, 2])
@pytest.mark.parametrize("name", BACKBONES)
def test_shares_of_what_is_drawn_on(name, n_layers):
    drawn, batch = drawn_on(name, n_layers=n_layers)
    seen = batch.table.valid.any(2)
    assert drawn.shape == (*seen.shape, seen.shape[1])
    assert (drawn >= 0).all()
    torch.testing.assert_close(drawn.sum(2), seen.float(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", BACKBONES)
def test_what_is_not_valid_is_not_drawn_on(name):
    batch = tokens()
    table = replace(batch.table, valid=batch.table.valid.clone())
    table.valid[:, 2] = False
    net, _ = build(load_registry().backbones[name], spec(), {}, 0)
    signal = batch.signal * table.valid[..., None]
    with torch.inference_mode():
        drawn = net.importance(signal, torch.zeros_like(table.valid), table)
    others = [i for i in range(drawn.shape[1]) if i != 2]
    assert drawn[:, others, 2].abs().max() < 1e-6
    assert drawn[:, 2].abs().max() == 0


def test_a_scan_that_reaches_nobody_draws_on_itself_alone():
    """With steps of almost 0 a scan has no memory: all that is left is the step itself."""
    batch = tokens()
    net, _ = build(load_registry().backbones["mamba"], spec(), {}, 0)
    for part in net.modules():
        if hasattr(part, "dt_bias"):
            part.dt_bias.data.fill_(-40.0)
    with torch.inference_mode():
        drawn = net.importance(batch.signal, torch.zeros_like(batch.table.valid), batch.table)
    seen = batch.table.valid.any(2).float()
    torch.testing.assert_close(drawn.diagonal(dim1=1, dim2=2), seen, atol=1e-4, rtol=0)


def test_a_backbone_that_cannot_say():
    class Silent(TokenBackbone):
        name, summary = "silent", "mixes nothing"

        def mix(self, tokens, table):
            return tokens

    batch = tokens()
    net = Silent(spec())
    assert net.importance(batch.signal, torch.zeros_like(batch.table.valid), batch.table) is None


# ---------------------------------------------------------------- what is expected


def helmet(groups: tuple[str, ...]) -> UnitTable:
    n = len(groups)
    names = tuple(f"MEG {i:04d}" for i in range(n))
    return UnitTable.from_groups(names, groups, types=("mag",) * n, group_source="helmet")


def test_where_a_response_is_expected():
    units = helmet(("Left-temporal", "Right-temporal", "Left-parietal", "Left-frontal"))
    assert sensory.expected_units(units, "auditory").tolist() == [True, True, False, False]
    assert sensory.expected_units(units, "somatosensory").tolist() == [False, False, True, False]
    assert sensory.expected_units(units, "rest") is None
    assert sensory.expected_units(replace(units, group_source="position"), "auditory") is None
    assert sensory.expected_units(helmet(("Left-temporal",) * 3), "auditory") is None


def test_values_that_single_the_expected_ones_out():
    expected = np.arange(40) < 10
    rng = np.random.default_rng(0)
    found = sensory.alignment(expected + 0.1 * rng.normal(size=40), expected, None)
    assert found["auroc"] == 1
    assert found["p"] < 0.01
    assert (found["null"], found["n_expected"], found["n_units"]) == ("shuffles", 10, 40)
    nothing = [sensory.alignment(rng.normal(size=40), expected, None)["p"] for _ in range(30)]
    assert 0.3 < np.mean(nothing) < 0.7


def test_areas_in_any_order_are_scikit_learns():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 6, 30).astype(float)
    values[[3, 17]] = np.nan
    expected = rng.random(30) < 0.3
    orders = rng.permuted(np.tile(np.arange(30), (20, 1)), axis=1)
    for order, area in zip(orders, sensory._aurocs(values, expected, orders), strict=True):
        known = np.isfinite(values[order])
        assert area == pytest.approx(roc_auc_score(expected[known], values[order][known]))


def test_turning_keeps_neighbours_where_shuffling_does_not():
    """Smooth values line up with a region by accident: turns know that, shuffles find it remarkable."""
    i = np.arange(80) + 0.5
    turn, z = np.pi * (1 + 5**0.5) * i, 1 - 1.1 * i / 80
    ring = np.sqrt(1 - z**2)
    place = 110 * np.column_stack([ring * np.cos(turn), ring * np.sin(turn), z]) + (0, 0, 40)
    orders = sensory.turns(place, 200, 0)
    assert all(sorted(o) == list(range(80)) for o in orders)
    distance = np.linalg.norm(place[:, None] - place[None], axis=2)
    near = np.argsort(distance, axis=1)[:, 1]
    kept = np.median([distance[o, o[near]].mean() for o in orders])
    shuffled = np.random.default_rng(0).permutation(80)
    assert kept < 0.6 * distance[shuffled, shuffled[near]].mean()
    expected = place[:, 0] > 40
    smooth = place[:, 0] + 30 * np.sin(place[:, 1] / 30)
    by_turns, by_shuffles = (sensory.alignment(smooth, expected, o)["p"] for o in (orders, None))
    assert by_turns > by_shuffles


def test_units_without_positions_cannot_be_turned():
    with pytest.raises(DataError, match="cannot be turned"):
        sensory.turns(np.full((10, 3), np.nan), 5, 0)


# ---------------------------------------------------------------- weights are those that are used


def test_attention_is_what_the_block_computes_with():
    """With values and output projection of the identity, the block's attention is its weights times its input."""
    torch.manual_seed(0)
    attention = AttentionPass(32)
    attn = attention.block.attn
    attn.num_heads, attn.head_dim, attn.scale = 1, 32, 32**-0.5
    with torch.no_grad():
        attn.qkv.weight[64:], attn.qkv.bias[64:] = torch.eye(32), 0
        attn.proj.weight[:], attn.proj.bias[:] = torch.eye(32), 0
        x = torch.randn(4, 6, 32)
        weights = attention.weights(x, torch.ones(4, 6, dtype=torch.bool))
        normed = attention.block.norm1(x)
        torch.testing.assert_close(weights @ normed, attn(normed), atol=1e-5, rtol=1e-4)


def test_what_a_scan_draws_on_is_what_it_computes_with():
    torch.manual_seed(0)
    mixer = Mamba2(16, headdim=16)
    x = torch.randn(3, 9, 16)
    with torch.no_grad():
        _, values, dt, a, b, c = scan_inputs([mixer], x[None], None)
        drawn = mixer.weights(x) - torch.eye(9) * mixer.D.abs()
        assert (drawn.triu(1).abs() < 1e-6).all(), "nothing comes from the future"
        signed = drawn * (c @ b.transpose(1, 2)).sign()
        scanned = scan(values, dt, dt * a[:, None], b, c)
        torch.testing.assert_close(signed @ values[:, :, 0], scanned[:, :, 0], atol=1e-5, rtol=1e-4)


# ---------------------------------------------------------------- occlusion of responses


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    cohort = simulated_states(tmp_path_factory.mktemp("states"), n_subjects=4)
    tokenizer = tokens_.Tokenizer(cohort, tokens_.Scaler.fit(cohort, cohort.subjects))
    responses, _ = evoked.find_responses(cohort, cohort.subjects, Evoked(), seed=0)
    return cohort, tokenizer, responses


class Copies:
    """Fills every hidden unit with unit ``source`` where that is visible, else with zero."""

    def __init__(self, source: int) -> None:
        self.source = source

    def __call__(self, batch, hidden):
        own = slice(self.source, self.source + 1)
        return (batch.signal[:, own] * ~hidden[:, own, :, None]).expand_as(batch.signal)


def occluded(states, predictor, chunks=None, **options):
    cohort, tokenizer, responses = states
    groups = sensory.unit_sites(cohort.units)
    chunks = chunks or [np.arange(len(cohort.units))]
    return sensory.occlude_responses(predictor, tokenizer, responses, chunks, groups, Evoked(), seed=0, **options)


def test_the_site_that_is_used_is_found_and_no_other(states):
    for source in (2, 5):
        found = occluded(states, Copies(source))
        for state in set(found.states):
            moved = np.abs(found.loss(state))
            assert moved[source] > 0
            assert np.delete(moved, source).max() == pytest.approx(0, abs=1e-9)


def test_a_response_is_lost_by_no_more_than_is_predicted_of_it(states):
    class Whole:
        """Knows everything as long as unit 0 is visible."""

        def __call__(self, batch, hidden):
            return batch.signal * ~hidden[:, :1, :, None]

    found = occluded(states, Whole())
    for state in set(found.states):
        np.testing.assert_allclose(found.loss(state)[0], 1, rtol=1e-6)


def test_batches_and_folds_change_nothing(states):
    _, tokenizer, responses = states
    whole = occluded(states, Copies(2))
    assert np.array_equal(whole.moments, occluded(states, Copies(2)).moments)
    np.testing.assert_allclose(whole.moments, occluded(states, Copies(2), batch_size=3).moments, rtol=1e-5)
    groups = sensory.unit_sites(tokenizer.cohort.units)
    chunks = [np.arange(len(tokenizer.cohort.units))]
    parts = [
        sensory.occlude_responses(Copies(2), tokenizer, some, chunks, groups, Evoked(), seed=0)
        for some in (responses[::2], responses[1::2])
    ]
    joined = sensory.ResponseOcclusion.joined(parts)
    for state in set(whole.states):
        np.testing.assert_allclose(joined.loss(state), whole.loss(state), rtol=1e-6)
    table = joined.table(0, 200)
    assert (table["low"] <= table["value"] + 1e-12).all()
    assert (table["value"] <= table["high"] + 1e-12).all()
    assert set(table["state"]) == set(whole.states)


def test_sites_keep_the_order_of_units():
    units = UnitTable.from_groups(tuple("abcd"), ("g",) * 4, sites=np.array([7, 3, 7, 5]))
    groups = sensory.unit_sites(units)
    assert {k: v.tolist() for k, v in groups.items()} == {"a": [0, 2], "b": [1], "d": [3]}
    assert sensory.by_unit(np.array([1.0, 2.0, 3.0]), groups, 4).tolist() == [1, 2, 1, 3]
    assert np.isnan(sensory.by_unit(np.array([1.0]), {"b": groups["b"]}, 4)).tolist() == [True, False, True, True]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [4, *(pytest.param(s, marks=pytest.mark.campaign) for s in (5, 6))])
def test_sensors_over_the_source_that_answers_are_found_and_not_with_randomised_weights(tmp_path, seed):
    """Three simulated twins, none of which the measure was chosen on: sensors with half of the strongest field."""
    registry = load_registry()
    config = RunConfig.from_options(
        backbone="transformer", mask="random_tube", dataset="meg_headache", n_subjects=36, out=tmp_path / "out"
    )
    grid = expand(config, registry)
    source, store = replace(cohort_source(grid.datasets[0], grid, registry), seed=seed), Store(config.out)
    cohort = source.load(store)
    truth = json.loads(next(twin(source, store).rglob("true_effects.json")).read_text())["sensors"]
    train, test = cohort.subjects[:24], cohort.subjects[24:]
    tokenizer = tokens_.Tokenizer(cohort, tokens_.Scaler.fit(cohort, train))
    responses, _ = evoked.find_responses(cohort, test, Evoked(), seed=seed)
    n, patches = len(cohort.units), cohort.patches_per_window
    spec = BackboneSpec(n, len(cohort.units.group_names), patches, cohort.n_features, 32, 1)
    mask, groups = registry.masks["random_tube"](), sensory.unit_sites(cohort.units)
    areas = {}
    for n_steps in (600, 0):
        cls = registry.backbones["transformer"]
        net, decoder = build(cls, spec, {}, seed_for(seed, "pretrain-init", "transformer"))
        if n_steps:
            windows = tokens_.TrainingWindows(tokenizer, train, n * patches, seed)
            recipe = Recipe.for_width(32, 32)
            cpu = torch.device("cpu")
            pretrain(net, decoder, mask, windows, recipe=recipe, n_steps=n_steps, ratio=0.5, seed=seed, device=cpu)
        found = sensory.occlude_responses(
            BackbonePredictor(net, decoder), tokenizer, responses, [np.arange(n)], groups, Evoked(), seed=seed
        )
        for state in ("auditory", "somatosensory"):
            planted = np.isin(cohort.units.names, truth[state])
            lost = sensory.by_unit(found.loss(state), groups, n)
            areas[n_steps, state] = roc_auc_score(planted, lost)
    assert min(areas[600, s] for s in ("auditory", "somatosensory")) >= 0.8
    assert np.mean([areas[0, s] for s in ("auditory", "somatosensory")]) <= 0.65


# ---------------------------------------------------------------- experts


def test_routing_is_the_mean_over_windows_and_then_over_people(tmp_path):
    cohort = simulated_cohort(tmp_path, n_subjects=3)
    tokenizer = tokens_.Tokenizer(cohort, tokens_.Scaler.fit(cohort, cohort.subjects))
    windows = tokens_.evaluation_windows(cohort, cohort.subjects)
    chunks = tokens_.unit_chunks(cohort.units, 5)
    spec = BackboneSpec(12, 3, cohort.patches_per_window, cohort.n_features, 32, 1)
    net, _ = build(load_registry().backbones["moe_ssm"], spec, {}, 0)
    net.eval()
    shares = sensory.unit_routing(net, tokenizer, windows, chunks)
    assert shares.shape == (12, 4)
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-5)
    by_person = []
    for subject in cohort.subjects:
        own = [w for w in windows if w.subject == subject]
        batch = tokenizer.batch(own, chunks[0])
        with torch.inference_mode():
            found = net.routing(batch.signal, torch.zeros_like(batch.table.valid), batch.table)
        by_person.append(found.mean(0).numpy())
    # The second person has no first unit.
    assert by_person[1][0].sum() == 0
    np.testing.assert_allclose(shares[chunks[0][0]], (by_person[0][0] + by_person[2][0]) / 2, atol=1e-5)
    np.testing.assert_allclose(shares[chunks[0][1:]], np.mean(by_person, 0)[1:], atol=1e-5)
    transformer, _ = build(load_registry().backbones["transformer"], spec, {}, 0)
    assert sensory.unit_routing(transformer, tokenizer, windows, chunks) is None

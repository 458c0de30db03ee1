"""Reconstruction: fillers against plain references, sums against direct computation, masks the same for every row."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from neurobench import reconstruction as rec
from neurobench.contracts import Backbone
from neurobench.errors import ConfigError, DataError
from neurobench.masking import draw
from neurobench.records import Cohort
from neurobench.specimens import simulated_cohort, simulated_spec
from neurobench.tokens import Scaler, Tokenizer, evaluation_windows, unit_chunks
from neurobench_masks.random import Random
from neurobench_masks.random_tube import RandomTube
from neurobench_masks.roi import Roi
from neurobench_masks.time_block import TimeBlock
from neurobench_tasks.reconstruction import Reconstruction

MASKS = {"random": Random(), "random_tube": RandomTube(), "roi": Roi(), "time_block": TimeBlock()}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return simulated_cohort(tmp_path_factory.mktemp("cohort"), n_subjects=8, n_units=9)


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return simulated_cohort(tmp_path_factory.mktemp("volume"), n_subjects=4, n_units=6, signal="volume", n_voxels=4)


def tokenizer(cohort: Cohort) -> Tokenizer:
    return Tokenizer(cohort, Scaler.fit(cohort, cohort.subjects[:4]))


def evaluated(cohort: Cohort, predictors=None, masks=None, chunk: int = 4, **options) -> rec.ReconstructionScores:
    cutter = tokenizer(cohort)
    half = len(cohort.subjects) // 2
    predictors = predictors or rec.fit_fillers(cutter, cohort.subjects[:half], ratio=0.5, seed=0)
    windows = evaluation_windows(cohort, cohort.subjects[half:], max_per_subject=3)
    chunks = unit_chunks(cohort.units, chunk)
    return rec.evaluate(predictors, cutter, windows, chunks, masks or MASKS, **{"ratio": 0.5, "seed": 1} | options)


def hidden_of(cohort: Cohort, strategy, ratio: float = 0.5):
    cutter = tokenizer(cohort)
    batch = cutter.batch(evaluation_windows(cohort, cohort.subjects), np.arange(len(cohort.units)))
    rng = np.random.default_rng(0)
    drawn = [draw(strategy, t, ratio, rng).hidden for t in cutter.window_tables(batch)]
    return batch, torch.from_numpy(np.stack(drawn))


@pytest.mark.parametrize("which", ["cohort", "volume"])
@pytest.mark.parametrize("strategy", [Random(), TimeBlock(), RandomTube()], ids=lambda s: s.name)
def test_interpolation_is_numpys(which: str, strategy, request: pytest.FixtureRequest) -> None:
    cohort = request.getfixturevalue(which)
    batch, hidden = hidden_of(cohort, strategy)
    filled = rec.InterpolationFiller(cohort.n_voxels)(batch, hidden).numpy()
    n_checked = 0
    for b, u in np.ndindex(*hidden.shape[:2]):
        visible = (batch.table.valid[b, u] & ~hidden[b, u]).numpy().repeat(cohort.samples_per_patch)
        real = batch.signal[b, u].numpy().reshape(-1, cohort.n_voxels)
        guess = filled[b, u].reshape(-1, cohort.n_voxels)
        for v in range(cohort.n_voxels):
            wanted = np.zeros(len(real))
            if visible.any():
                time = np.arange(len(real))
                wanted = np.interp(time, time[visible], real[visible, v])
            gap = hidden[b, u].numpy().repeat(cohort.samples_per_patch)
            np.testing.assert_allclose(guess[gap, v], wanted[gap], atol=1e-5)
            n_checked += int(gap.sum())
    assert n_checked > 1000


@pytest.mark.parametrize("strategy", [Random(), Roi()], ids=lambda s: s.name)
def test_ridge_is_the_plain_formula(cohort: Cohort, strategy) -> None:
    cutter = tokenizer(cohort)
    ridge = rec.RidgeFiller.fit(cutter, evaluation_windows(cohort, cohort.subjects[:4]), ratio=0.5, seed=0)
    batch, hidden = hidden_of(cohort, strategy)
    filled = ridge(batch, hidden)
    c, scale = ridge.covariance, np.trace(ridge.covariance) / len(ridge.covariance)
    visible = (batch.table.valid & ~hidden).numpy()
    for b in (0, 3, 8):
        for p in range(hidden.shape[2]):
            seen, gap = np.flatnonzero(visible[b, :, p]), np.flatnonzero(hidden[b, :, p].numpy())
            system = c[np.ix_(seen, seen)] + ridge.penalty * scale * np.eye(len(seen))
            wanted = c[np.ix_(gap, seen)] @ np.linalg.solve(system, batch.signal[b, seen, p].numpy().astype(float))
            np.testing.assert_allclose(filled[b, gap, p].numpy(), wanted, atol=1e-5)


def test_covariance_is_over_the_valid_samples_of_training_windows(cohort: Cohort) -> None:
    cutter = tokenizer(cohort)
    windows = evaluation_windows(cohort, cohort.subjects[:4])
    ridge = rec.RidgeFiller.fit(cutter, windows, ratio=0.5, seed=0)
    batch = cutter.batch(windows, np.arange(9))
    both = (batch.table.valid[:, 0] & batch.table.valid[:, 5]).numpy()
    assert 0 < both.mean() < 1, "a unit is missing in one recording"
    a, b = batch.signal[:, 0].numpy()[both], batch.signal[:, 5].numpy()[both]
    assert ridge.covariance[0, 5] == pytest.approx(float((a * b).mean()), abs=1e-5)
    np.testing.assert_allclose(ridge.loading, 1.0)


def test_ridge_of_a_volume_predicts_voxels(volume: Cohort) -> None:
    scores = evaluated(volume, masks={"random_tube": RandomTube()}, chunk=6)
    assert scores.r2("ridge")[0] > 0.1
    assert (scores.n % volume.n_features == 0).all()


def test_ridge_sees_training_subjects_only_and_needs_two_windows(cohort: Cohort) -> None:
    cutter = tokenizer(cohort)
    windows = evaluation_windows(cohort, cohort.subjects[:1])
    assert len(windows) > 1
    assert rec.RidgeFiller.fit(cutter, windows, ratio=0.5, seed=0).penalty > 0
    with pytest.raises(DataError, match=r"there is 1.*two windows or more.*shorter --window-s"):
        rec.RidgeFiller.fit(cutter, windows[:1], ratio=0.5, seed=0)


def test_sums_are_those_of_the_scored_values(cohort: Cohort) -> None:
    seen: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    noise = torch.Generator().manual_seed(0)

    def guess(batch, hidden):
        made = batch.signal * 0.5 + torch.randn(batch.signal.shape, generator=noise) * 0.3
        real, guessed = batch.signal[hidden].numpy(), made[hidden].numpy()
        seen.append((real.ravel(), guessed.ravel(), np.array(batch.subjects)))
        return made

    # One subject at a time, and tubes over one chunk of all units: 4 of 9 units are hidden and all of them scored.
    masks = {"random_tube": RandomTube()}
    scores = evaluated(cohort, {"guess": guess}, masks, chunk=9, batch_size=1, ratio=4 / 9)
    assert scores.subjects == cohort.subjects[4:]
    for i, (real, guessed, who) in enumerate(seen):
        assert set(who) == {scores.subjects[i]}
        assert scores.n[0, i].sum() == real.size
        error = ((real.astype(float) - guessed) ** 2).sum()
        assert scores.sse[0, 0, i].sum() == pytest.approx(error, rel=1e-5)
        assert scores.subject_r2("guess")[0, i] == pytest.approx(1 - error / (real.astype(float) ** 2).sum(), rel=1e-5)
        assert scores.pearson_r("guess")[0, i] == pytest.approx(np.corrcoef(real, guessed)[0, 1], rel=1e-5)
    pooled = 1 - scores.sse.sum() / scores.sst.sum()
    assert scores.r2("guess")[0] == pytest.approx(pooled)


def test_a_perfect_and_an_ignorant_prediction(cohort: Cohort) -> None:
    fillers = rec.fit_fillers(tokenizer(cohort), cohort.subjects[:4], ratio=0.5, seed=0)
    scores = evaluated(cohort, {"perfect": lambda batch, hidden: batch.signal, **fillers})
    np.testing.assert_allclose(scores.r2("perfect"), 1)
    np.testing.assert_allclose(scores.skill("perfect"), 1)
    np.testing.assert_allclose(scores.pearson_r("perfect"), 1)
    np.testing.assert_allclose(scores.unit_r2("perfect"), 1)
    np.testing.assert_allclose(scores.fc_similarity[:, 0], 1)
    np.testing.assert_allclose(scores.r2("mean"), 0, atol=1e-12)
    np.testing.assert_allclose(scores.pearson_r("mean"), 0)
    for m, best in enumerate(scores.best_filler()):
        assert scores.skill(best)[m] == 0
        assert scores.r2(best)[m] == max(scores.r2(f)[m] for f in rec.FILLERS)


def test_fillers_are_good_where_they_should_be(cohort: Cohort) -> None:
    scores = evaluated(cohort, chunk=9)
    ridge, interpolation = scores.r2("ridge"), scores.r2("interpolation")
    tube, block = scores.masks.index("random_tube"), scores.masks.index("time_block")
    assert ridge[tube] > 0.2
    assert interpolation[tube] == 0, "nothing to interpolate from"
    assert ridge[block] == 0, "no visible unit at that time"
    assert interpolation[scores.masks.index("random")] > 0.05


def test_weights_of_subjects_make_a_bootstrap(cohort: Cohort) -> None:
    scores = evaluated(cohort)
    once = np.ones((5, len(scores.subjects)))
    np.testing.assert_allclose(scores.r2("ridge", once), np.repeat(scores.r2("ridge")[:, None], 5, 1))
    only = np.eye(len(scores.subjects))
    np.testing.assert_allclose(scores.r2("ridge", only), scores.subject_r2("ridge"))
    assert scores.skill("ridge", once).shape == (4, 5)


def test_masks_and_batches_do_not_depend_on_the_predictor(cohort: Cohort) -> None:
    alone = evaluated(cohort, {"mean": rec.fill_by_mean}, {"roi": Roi()})
    beside = evaluated(cohort, batch_size=1)
    index = beside.masks.index("roi")
    np.testing.assert_array_equal(alone.n[0], beside.n[index])
    np.testing.assert_allclose(alone.sse[0, 0], beside.sse[index, 0], rtol=1e-9)
    assert not np.array_equal(
        alone.sse[0, 0], evaluated(cohort, {"mean": rec.fill_by_mean}, {"roi": Roi()}, seed=2).sse
    )


def test_every_unit_is_covered_and_budgets_are_equal(cohort: Cohort) -> None:
    scores = evaluated(cohort)
    assert (scores.n.sum((0, 1)) > 0).all()
    np.testing.assert_allclose(scores.scored_fraction, scores.scored_fraction[0])
    assert (scores.hidden_fraction >= scores.scored_fraction).all()


def test_a_guard_leaves_the_edges_of_a_gap_out(cohort: Cohort) -> None:
    plain, guarded = (evaluated(cohort, ratio=0.6, guard=g) for g in (0, 1))
    np.testing.assert_array_equal(guarded.sse, plain.sse)
    np.testing.assert_allclose(plain.guard_sst, plain.sst.sum(-1), err_msg="without a guard nothing is left out")
    block, tube = (plain.masks.index(m) for m in ("time_block", "random_tube"))
    assert (guarded.guard_sst[block] < plain.guard_sst[block]).all()
    np.testing.assert_allclose(guarded.guard_sst[tube], plain.guard_sst[tube], err_msg="a tube has no edge in time")
    np.testing.assert_allclose(guarded.guarded("mean"), np.zeros(len(guarded.masks)), atol=1e-9)
    hidden = torch.tensor([[[1, 1, 1, 0, 1, 1, 1, 0, 1, 0, 0]]], dtype=torch.bool)
    valid = torch.tensor([[[1] * 10 + [0]]], dtype=torch.bool)
    assert rec._beyond_guard(hidden, valid, 1).int().tolist() == [[[1, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0]]]


class Spy(Backbone):
    """Keeps what it was given."""

    name = "spy"
    summary = "for tests"

    def __init__(self, spec) -> None:
        super().__init__(spec)
        self.value = nn.Linear(spec.n_features, spec.width)
        self.drop = nn.Dropout(0.9)
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def forward(self, signal, hidden, table):
        self.seen.append((signal, hidden))
        return self.drop(self.value(signal))


def test_a_backbone_sees_zeros_at_hidden_places_in_evaluation_mode(cohort: Cohort) -> None:
    spec = simulated_spec(cohort.units, cohort.patches_per_window, cohort.n_features, 8, 1)
    backbone, decoder = Spy(spec).train(), nn.Linear(8, cohort.n_features)
    predictor = rec.BackbonePredictor(backbone, decoder)
    first = evaluated(cohort, {"spy": predictor})
    again = evaluated(cohort, {"spy": predictor})
    np.testing.assert_array_equal(first.sse, again.sse)
    for signal, hidden in backbone.seen:
        assert hidden.any()
        assert (signal[hidden] == 0).all()
        assert (signal[~hidden] != 0).any()


def test_which_masks_are_used_and_which_count(cohort: Cohort) -> None:
    bare = dataclasses.replace(cohort.units, region_names=(), region_share=np.zeros((9, 0), np.float32))
    usable, reasons = rec.usable_masks(MASKS, bare)
    assert list(usable) == ["random", "random_tube", "time_block"]
    assert "no regions" in reasons["roi"]
    assert rec.headline_masks(MASKS, "parcels") == tuple(MASKS)
    assert rec.headline_masks(MASKS, "sensors") == ("random_tube", "roi", "time_block")


def test_the_task_names_its_masks_and_refuses_nonsense(cohort: Cohort) -> None:
    task = Reconstruction()
    assert task.evaluation_masks == ("random", "random_tube", "roi", "time_block")
    assert task.ratio == 0.5
    assert task.metrics[0].name == "r2"
    assert task.refuses(cohort) == ""
    single = dataclasses.replace(cohort, spec=dataclasses.replace(cohort.spec, window_s=6.0))
    assert "longer --window-s" in task.refuses(single)
    for masks in ("", "random+", "roi+roi"):
        with pytest.raises(ConfigError, match=r"joined by \+.*random_tube\+roi"):
            Reconstruction(masks=masks)
    with pytest.raises(ConfigError, match=r"score 1 of the tokens.*a ratio between 0 and 1"):
        Reconstruction(ratio=1.0)

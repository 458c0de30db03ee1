"""Pooling and the probe, against known answers."""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import PredefinedSplit, cross_val_predict

from neurobench import TokenBackbone, adaptation
from neurobench.adaptation import (
    ALPHAS,
    INVERSE_PENALTIES,
    WIDTHS,
    embed_subjects,
    fit_predict,
    pool,
    refuse_memory,
)
from neurobench.errors import DataError, PluginError
from neurobench.records import BackboneSpec, Batch, TokenTable, UnitTable
from neurobench.specimens import simulated_cohort
from neurobench.tokens import Scaler, Tokenizer, Window, evaluation_windows

RNG = np.random.default_rng(0)


def test_pool_uses_valid_patches_only():
    tokens = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    valid = torch.ones(2, 3, 5, dtype=torch.bool)
    valid[0, 1, 3:] = False
    valid[1, 2] = False
    poisoned = torch.where(valid[..., None], tokens, torch.nan)
    pooled = pool(poisoned, valid)
    assert pooled.shape == (2, 3, 8)
    torch.testing.assert_close(pooled[0, 1, :4], tokens[0, 1, :3].mean(0))
    torch.testing.assert_close(pooled[0, 0, 4:], tokens[0, 0].std(0, correction=0))
    assert pooled[1, 2].isnan().all()
    assert pooled[1, :2].isfinite().all()


class Identity(torch.nn.Module):
    """A backbone that returns its signal."""

    spec = SimpleNamespace(width=2)

    def forward(self, signal, hidden, table):
        assert not hidden.any()
        assert not self.training
        return signal


class Numbers:
    """A tokenizer whose tokens are (subject, unit); unit 0 is missing in windows named ``*gap``."""

    def __init__(self, n_units):
        self.cohort = SimpleNamespace(
            units=UnitTable.from_groups(tuple("uvwxyz"[:n_units]), ("",) * n_units), patches_per_window=3
        )

    def batch(self, windows, units):
        units = np.broadcast_to(units, (len(windows), np.shape(units)[-1]))
        shape = (*units.shape, 3)
        subject = torch.tensor([float(w.subject) for w in windows])[:, None, None].expand(shape)
        unit = torch.tensor(units, dtype=torch.float32)[..., None].expand(shape)
        valid = torch.ones(shape, dtype=torch.bool)
        for row, w in enumerate(windows):
            valid[row, units[row] == 0] = not w.name.endswith("gap")
        rows = torch.tensor(units)
        nowhere, first = torch.zeros(*shape[:2], 3), torch.zeros_like(rows)
        table = TokenTable(rows, valid, nowhere, first, nowhere, first, self.cohort.units)
        names = tuple(w.subject for w in windows), tuple(w.name for w in windows)
        return Batch(torch.stack([subject, unit], -1), table, rows, self.cohort.units, *names)


@pytest.mark.parametrize("batch_size", [1, 2, 100])
@pytest.mark.parametrize("at_once", [1, 1 << 15])
def test_embedding_keeps_units_in_their_columns(batch_size, at_once, monkeypatch):
    monkeypatch.setattr(adaptation, "AT_ONCE", at_once)
    names = {"7": ["a", "b-gap"], "3": ["c-gap", "d-gap"], "5": ["e"]}
    windows = [Window(0, 0, 1, s, n) for s, group in names.items() for n in group]
    chunks = (np.array([0, 2]), np.array([1, 3]))
    subjects, features = embed_subjects(Identity(), Numbers(4), windows, chunks, "cpu", batch_size)
    assert subjects == ("7", "3", "5")
    features = features.reshape(3, 4, 4)
    assert np.isnan(features[1, 0]).all()
    np.testing.assert_array_equal(features[0], [[7, u, 0, 0] for u in range(4)])
    np.testing.assert_array_equal(features[1, 1:], [[3, u, 0, 0] for u in range(1, 4)])


class Mean(TokenBackbone):
    """Honest."""

    name = "mean_of_all"
    summary = "adds the mean of all tokens"

    def mix(self, tokens, table):
        return tokens + tokens.mean((1, 2), keepdim=True)


class BesideEachOther(Mean):
    """Subtracts what the windows of a batch have in common, at the size of a run only."""

    name = "beside_each_other"

    def mix(self, tokens, table):
        return super().mix(tokens, table) - (tokens.mean((0, 1, 2)) if tokens.shape[1] == 9 else 0)


def test_a_run_refuses_a_backbone_that_remembers_whatever_its_size(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    cheat = importlib.import_module("cheats.remembers_whole_windows").RemembersWholeWindows
    cohort = simulated_cohort(tmp_path, n_subjects=4, n_units=9)
    tokenizer = Tokenizer(cohort, Scaler.fit(cohort, cohort.subjects))
    windows = evaluation_windows(cohort, cohort.subjects)
    spec = BackboneSpec.of(cohort.units, n_patches=cohort.patches_per_window, n_features=6, width=32, n_layers=1)
    units = np.arange(9)
    refuse_memory(Mean(spec), tokenizer, windows, units)
    refuse_memory(Mean(spec), tokenizer, windows[:1], units)
    with pytest.raises(
        PluginError, match=r"remembers_whole_windows gives windows other tokens after it was shown.*whole"
    ):
        refuse_memory(cheat(spec), tokenizer, windows, units)
    with pytest.raises(PluginError, match=r"beside_each_other gives windows other tokens when they are not beside"):
        refuse_memory(BesideEachOther(spec), tokenizer, windows, units)


# ---------------------------------------------------------------- probe


def standardised(x, y):
    return (x - x.mean(0)) / x.std(0), (y - x.mean(0)) / x.std(0)


@pytest.mark.parametrize(("n", "d"), [(40, 6), (40, 900)])
def test_ridge_is_scikit_learns(n, d):
    x, new = RNG.normal(size=(n, d)), RNG.normal(size=(9, d))
    y = x[:, 0] * 3 + RNG.normal(size=n) + 50
    found = fit_predict(x, y, new, "regression", 0)
    assert found.hyperparameter in ALPHAS
    a, b = standardised(x, new)
    np.testing.assert_allclose(found.values, Ridge(alpha=found.hyperparameter).fit(a, y).predict(b), rtol=1e-8)


@pytest.mark.parametrize(("n", "d"), [(60, 5), (40, 39), (40, 30), (40, 900)])
def test_inner_errors_without_a_refit_are_those_of_refits(n, d):
    """Of every penalty and inner fold, with features that are nearly copies and targets far from zero."""
    x = RNG.normal(size=(n, d)) * np.geomspace(1, 1e-3, d)
    x[:, 1] = x[:, 0] + 1e-3 * RNG.normal(size=n)
    y = 3 * x[:, 0] + RNG.normal(size=n) + 50
    inner = np.random.default_rng(0).permutation(np.arange(n) % 5)
    a, _ = adaptation.rotate(x, x)
    expected = []
    for alpha in ALPHAS:
        held = cross_val_predict(Ridge(alpha=alpha, solver="svd"), standardised(x, x)[0], y, cv=PredefinedSplit(inner))
        expected.append(((held - y) ** 2).sum())
    np.testing.assert_allclose(adaptation._held_out_errors(a, y, inner), expected, rtol=1e-9)


@pytest.mark.parametrize(("n", "d"), [(40, 12), (30, 200)])
def test_rotated_rows_keep_their_products_and_have_orthogonal_columns(n, d):
    x, new = RNG.normal(size=(n, d)), RNG.normal(size=(7, d))
    x[:, 3] = 2 * x[:, 4]
    a, b = adaptation.rotate(x, new)
    own, other = standardised(x, new)
    np.testing.assert_allclose(a @ a.T, own @ own.T, atol=1e-9)
    np.testing.assert_allclose(b @ a.T, other @ own.T, atol=1e-9)
    products = a.T @ a
    np.testing.assert_allclose(products, np.diag(np.diag(products)), atol=1e-9)
    assert a.shape[1] == np.linalg.matrix_rank(own)


def test_features_are_decomposed_once_for_all_targets(monkeypatch):
    adaptation._known_spaces.clear()
    calls = []
    monkeypatch.setattr(adaptation, "rotate", lambda a, b, own=adaptation.rotate: calls.append(1) or own(a, b))
    x, new = RNG.normal(size=(40, 90)), RNG.normal(size=(5, 90))
    for y in RNG.normal(size=(4, 40)):
        again = fit_predict(x, y, new, "regression", 0).values
        fit_predict(x, (y > 0).astype(float), new, "classification", 0)
    assert len(calls) == 1
    changed = x.copy()
    changed[0, 0] += 1e-9
    np.testing.assert_allclose(fit_predict(changed, y, new, "regression", 0).values, again, atol=1e-6)
    assert len(calls) == 2
    for i in range(2 * adaptation.N_KNOWN):
        fit_predict(x + i, y, new, "regression", 0)
    assert len(adaptation._known_spaces) == adaptation.N_KNOWN


@pytest.mark.parametrize(("n", "d"), [(60, 4), (40, 900)])
def test_logistic_is_scikit_learns(n, d):
    x, new = RNG.normal(size=(n, d)), RNG.normal(size=(9, d))
    y = (x[:, 0] + x[:, 1] + RNG.normal(size=n) > 0.7).astype(float)
    found = fit_predict(x, y, new, "classification", 0)
    assert found.converged
    assert found.hyperparameter in INVERSE_PENALTIES
    a, b = standardised(x, new)
    theirs = LogisticRegression(C=found.hyperparameter, class_weight="balanced", tol=1e-9, max_iter=10_000).fit(a, y)
    np.testing.assert_allclose(found.values, theirs.predict_proba(b)[:, 1], atol=1e-4)


@pytest.mark.parametrize(("n", "d"), [(40, 6), (40, 900)])
def test_kernel_ridge_is_scikit_learns(n, d):
    from sklearn.kernel_ridge import KernelRidge
    from sklearn.metrics.pairwise import euclidean_distances, rbf_kernel
    from sklearn.preprocessing import KernelCenterer

    x, new = RNG.normal(size=(n, d)), RNG.normal(size=(9, d))
    y = np.sin(x[:, 0]) * 3 + 0.3 * RNG.normal(size=n) + 50
    found = fit_predict(x, y, new, "regression", 0, probe="kernel")
    assert found.hyperparameter in ALPHAS
    assert found.width in WIDTHS
    a, b = standardised(x, new)
    median = np.median(euclidean_distances(a)[np.triu_indices(n, 1)])
    gamma = 1 / (2 * (found.width * median) ** 2)
    centre = KernelCenterer().fit(rbf_kernel(a, gamma=gamma))
    theirs = KernelRidge(alpha=found.hyperparameter, kernel="precomputed")
    theirs.fit(centre.transform(rbf_kernel(a, gamma=gamma)), y - y.mean())
    expected = theirs.predict(centre.transform(rbf_kernel(b, a, gamma=gamma))) + y.mean()
    np.testing.assert_allclose(found.values, expected, rtol=1e-6)


@pytest.mark.parametrize("kind", ["regression", "classification"])
def test_a_kernel_finds_what_no_line_can(kind):
    """Far from the middle or near it: no direction tells."""
    x, new = RNG.normal(size=(200, 2)), RNG.normal(size=(100, 2))
    y, truth = ((z**2).sum(1) for z in (x, new))
    if kind == "classification":
        y, truth = (y > 1.4).astype(float), (truth > 1.4).astype(float)
    linear, kernel = (
        np.corrcoef(fit_predict(x, y, new, kind, 0, probe=p).values + 1e-9 * new[:, 0], truth)[0, 1]
        for p in ("linear", "kernel")
    )
    assert linear < 0.3
    assert kernel > 0.8


def test_a_kernel_is_fitted_on_training_rows_alone():
    x, y, new = RNG.normal(size=(40, 60)), RNG.normal(size=40), RNG.normal(size=(6, 60))
    for kind, target in (("regression", y), ("classification", (y > 0).astype(float))):
        alone = fit_predict(x, target, new[:1], kind, 0, probe="kernel").values
        together = fit_predict(x, target, np.r_[new[:1], 1e3 * new[1:]], kind, 0, probe="kernel").values
        np.testing.assert_allclose(together[:1], alone)
    same = np.ones((20, 3))
    np.testing.assert_array_equal(fit_predict(same, y[:20], same[:2], "regression", 0, probe="kernel").width, None)


@pytest.mark.parametrize("kind", ["regression", "classification"])
@pytest.mark.parametrize("probe", ["linear", "kernel"])
def test_inner_folds_keep_families_together(kind, probe):
    """Everybody is there three times: who is recognised in an inner fold would choose the weakest penalty."""
    rng = np.random.default_rng(0)
    x = np.repeat(rng.normal(size=(30, 200)), 3, 0) + 0.01 * rng.normal(size=(90, 200))
    y = np.repeat(rng.permutation(np.resize([0.0, 1.0], 30)), 3)
    families = [f"f{i // 3}" for i in range(90)]
    careless, careful = (fit_predict(x, y, x, kind, 0, groups=g, probe=probe) for g in (None, families))
    stronger = 1 if kind == "regression" else -1
    assert stronger * np.log10(careful.hyperparameter / careless.hyperparameter) >= 2
    with pytest.raises(DataError, match="90 targets, 3 groups"):
        fit_predict(x, y, x, kind, 0, groups=["a", "b", "c"])


@settings(max_examples=60, deadline=None)
@given(
    groups=st.lists(st.sampled_from(["0", "1", "01"]), min_size=3, max_size=14),
    seed=st.integers(0, 5),
)
def test_every_inner_fold_leaves_both_classes_to_train_on(groups, seed):
    """Families (or people, of windows) of one class and of both, in any mixture."""
    y = np.array([float(c) for g in groups for c in g])
    names = [f"g{i}" for i, g in enumerate(groups) for _ in g]
    fold = adaptation._grouped_folds(y, names, np.random.default_rng(seed))
    assert all(len({f for f, n in zip(fold, names, strict=True) if n == name}) == 1 for name in names)
    for i in range(fold.max() + 1):
        assert set(y[fold != i]) == {0.0, 1.0}


def test_a_penalty_is_chosen_where_few_families_hold_one_class():
    """One family of the smaller class alone, one with both, three of the other: two inner folds."""
    rng = np.random.default_rng(0)
    names = ["a"] * 3 + ["b"] * 4 + ["c"] * 2 + ["d"] * 2 + ["e"] * 2
    y = np.array([0.0] * 5 + [1.0] * 8)
    x = rng.normal(size=(13, 5)) + 3 * y[:, None]
    with np.errstate(all="raise", under="ignore"):
        assert fit_predict(x, y, x, "classification", 0, groups=names).hyperparameter > INVERSE_PENALTIES[0]


def test_separable_classes_converge_at_every_penalty():
    y = np.repeat([0.0, 1.0], 10)
    found = fit_predict(
        np.c_[y, y + 1e-3 * RNG.normal(size=20)], y, np.array([[0.0, 0.0], [1.0, 1.0]]), "classification", 0
    )
    assert found.converged
    assert found.values[0] < 0.01 < 0.99 < found.values[1]


def test_many_noise_features_ask_for_a_strong_penalty():
    x = RNG.normal(size=(80, 400))
    strong = fit_predict(x, RNG.normal(size=80), x, "regression", 0).hyperparameter
    weak = fit_predict(x[:, :2], x[:, 0] + 0.01 * RNG.normal(size=80), x[:, :2], "regression", 0).hyperparameter
    assert strong >= 100 > 1 >= weak


@pytest.mark.parametrize("kind", ["regression", "classification"])
def test_the_same_features_ten_times_over_predict_the_same(kind, monkeypatch):
    """A wide network is not refused the penalty that a narrow one may choose (20,000 features here are 40)."""
    monkeypatch.setattr(adaptation, "N_FEATURES", 40)
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(80, 40)), rng.permutation(np.resize([0.0, 1.0], 80))
    once, often = (fit_predict(np.tile(x, k), y, np.tile(x, k), kind, 0) for k in (1, 10))
    assert once.hyperparameter == (ALPHAS[-1] if kind == "regression" else INVERSE_PENALTIES[0])
    assert often.hyperparameter == pytest.approx(once.hyperparameter * (10 if kind == "regression" else 0.1))
    np.testing.assert_allclose(often.values, once.values, rtol=1e-4)


@pytest.mark.parametrize(("n_features", "decades"), [(7, 0), (20_000, 0), (20_001, 1), (200_000, 1), (200_001, 2)])
def test_penalties_reach_as_far_as_there_are_features(n_features, decades):
    rows = np.full((4, 2), np.sqrt(n_features / 2))
    assert adaptation._more_decades(rows) == decades


@pytest.mark.parametrize("columns", [0, 3])
def test_without_information_the_training_mean_or_even_odds(columns):
    x, new = np.ones((30, columns)), np.ones((4, columns))
    y = np.arange(30.0)
    np.testing.assert_array_equal(fit_predict(x, y, new, "regression", 0).values, [14.5] * 4)
    found = fit_predict(x, (y < 10).astype(float), new, "classification", 0)
    np.testing.assert_array_equal(found.values, [0.5] * 4)
    assert found.hyperparameter is None


def test_one_class_in_training_is_predicted():
    x = RNG.normal(size=(10, 3))
    np.testing.assert_array_equal(fit_predict(x, np.ones(10), x[:2], "classification", 0).values, [1.0, 1.0])


def test_a_single_patient_leaves_nothing_to_choose():
    x, y = RNG.normal(size=(20, 3)), np.r_[1.0, np.zeros(19)]
    found = fit_predict(x, y, x, "classification", 0)
    assert found.hyperparameter is None
    assert np.isfinite(found.values).all()


def test_missing_features_become_the_training_mean():
    x, new = RNG.normal(size=(50, 3)), RNG.normal(size=(2, 3))
    y = x @ [1.0, 2.0, 0.0]
    x[::7, 2] = np.nan
    new[0, 1] = np.nan
    filled = np.where(np.isnan(new), np.nanmean(x, 0), new)
    a = fit_predict(x, y, new, "regression", 0).values
    np.testing.assert_allclose(a, fit_predict(x, y, filled, "regression", 0).values)
    empty = np.column_stack([x, np.full(50, np.nan)])
    np.testing.assert_allclose(a, fit_predict(empty, y, np.column_stack([new, [5, np.nan]]), "regression", 0).values)


def test_test_rows_change_nothing_but_themselves():
    x, y, new = RNG.normal(size=(40, 60)), RNG.normal(size=40), RNG.normal(size=(6, 60))
    for kind, target in (("regression", y), ("classification", (y > 0).astype(float))):
        alone = fit_predict(x, target, new[:1], kind, 0).values
        np.testing.assert_allclose(fit_predict(x, target, np.r_[new[:1], 1e6 * new[1:]], kind, 0).values[:1], alone)


def test_same_seed_same_prediction():
    x, y = RNG.normal(size=(40, 8)), RNG.normal(size=40)
    a, b = (fit_predict(x, y, x, "regression", 5).values for _ in range(2))
    np.testing.assert_array_equal(a, b)


def test_refusals():
    x = np.zeros((3, 2))
    with pytest.raises(DataError, match="3 rows of features, 2 targets"):
        fit_predict(x, np.zeros(2), x, "regression", 0)
    with pytest.raises(DataError, match="missing target"):
        fit_predict(x, np.array([0, 1, np.nan]), x, "regression", 0)
    with pytest.raises(DataError, match="targets 0 and 1"):
        fit_predict(x, np.array([0, 1, 2.0]), x, "classification", 0)
    with pytest.raises(DataError, match="infinite features"):
        fit_predict(np.full((3, 2), np.inf), np.arange(3.0), x, "regression", 0)


def test_a_fit_that_does_not_converge_says_so(monkeypatch):
    monkeypatch.setattr(adaptation, "MAX_NEWTON", 1)
    x = RNG.normal(size=(40, 3))
    assert not fit_predict(x, (x[:, 0] > 0).astype(float), x, "classification", 0).converged


def test_a_probe_takes_milliseconds():
    x, y = RNG.normal(size=(64, 30)), RNG.normal(size=64)
    started = time.perf_counter()
    for seed in range(20):
        fit_predict(x, y, x, "regression", seed)
        fit_predict(x, (y > 0).astype(float), x, "classification", seed)
    assert time.perf_counter() - started < 4.0

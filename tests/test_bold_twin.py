"""What the BOLD simulator promises: realistic correlations, states, effects that are found, a null that is not."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge, RidgeCV
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import KFold, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from neurobench.filtering import band_pass
from neurobench_datasets._bold_twin import (
    BoldTwin,
    Effects,
    Traits,
    balanced_diagnosis,
    even_uniform,
    fluid_z,
    synthetic_regions,
)

T_R, N_TIMES = 2.0, 110


def population(seed: int, n: int, variant: str) -> tuple[BoldTwin, np.ndarray, np.ndarray, list[np.ndarray]]:
    """Simulated recordings as (units, times), band-passed and z-scored."""
    rng = np.random.default_rng(seed)
    age = even_uniform(rng, n, -1.7, 1.7)
    fluid = fluid_z(rng, age)
    diagnosis = balanced_diagnosis(rng, np.resize(np.arange(4), n), prevalence=0.5, confounded=False)
    position = synthetic_regions(64)[["x", "y", "z"]].to_numpy(float)
    twin = BoldTwin(position, seed=seed, effects=Effects.of(variant))
    signals = []
    for i in range(n):
        traits = Traits(age[i], fluid[i], diagnosis[i], mean_fd=float(rng.gamma(4, 0.04)))
        x = twin.recording(f"s{i}", traits, n_times=N_TIMES, t_r=T_R, site=str(i % 4))
        x = band_pass(x.T.astype(float), 1 / T_R, (0.01, 0.1))
        signals.append((x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True))
    return twin, age, diagnosis, signals


def connectome(signals: list[np.ndarray]) -> np.ndarray:
    return np.array([np.arctanh(np.corrcoef(x)[np.triu_indices(len(x), 1)]) for x in signals])


def filled(signals: list[np.ndarray], units: np.ndarray) -> float:
    """R² of half of some units from the other half, by ridge, in people not used for fitting."""
    half = len(units) // 2
    hidden, visible = units[:half], units[half:]
    train, test = np.hstack(signals[: len(signals) // 2]), np.hstack(signals[len(signals) // 2 :])
    model = Ridge(100).fit(train[visible].T, train[hidden].T)
    return 1 - float(((test[hidden].T - model.predict(test[visible].T)) ** 2).mean() / (test[hidden] ** 2).mean())


def test_regions_are_correlated_as_real_ones_and_fill_each_other() -> None:
    _, _, _, signals = population(0, 24, "default")
    assert 0.28 < np.abs(np.tanh(connectome(signals))).mean() < 0.45
    order = np.random.default_rng(0).permutation(64)
    assert 0.4 < filled(signals, order) < 0.6
    assert filled(signals, order[:10]) > 0.2


def test_knowing_the_state_fills_better_than_any_linear_filler() -> None:
    position = synthetic_regions(64)[["x", "y", "z"]].to_numpy(float)
    twin = BoldTwin(position, seed=0, effects=Effects())
    covariance = twin.covariance(Traits(0.0), np.random.default_rng(0))
    runs = [twin._bold(np.random.default_rng(i), covariance, 6.0, 150, T_R) for i in range(40)]
    order = np.random.default_rng(1).permutation(64)
    hidden, visible = order[:32], order[32:]

    def r2(known: bool) -> float:
        rows = [
            np.vstack([x[visible], *(x[visible] * s for s in state)] if known else [x[visible]]) for x, state in runs
        ]
        model = Ridge(50).fit(np.hstack(rows[:30]).T, np.hstack([x[hidden] for x, _ in runs[:30]]).T)
        truth = np.hstack([x[hidden] for x, _ in runs[30:]]).T
        return 1 - float(((truth - model.predict(np.hstack(rows[30:]).T)) ** 2).mean() / (truth**2).mean())

    assert r2(known=True) > r2(known=False) + 0.04


def test_networks_cross_lobes_and_hemispheres() -> None:
    regions = synthetic_regions(64)
    twin = BoldTwin(regions[["x", "y", "z"]].to_numpy(float), seed=0, effects=Effects())
    left, right = twin.loading[0::2], twin.loading[1::2]
    np.testing.assert_array_equal(left.argmax(1), right.argmax(1))
    lobes = [set(regions["group"][twin.loading.argmax(1) == k]) for k in range(twin.loading.shape[1])]
    assert sum(len(groups) > 1 for groups in lobes) >= 5


def test_a_subject_keeps_its_connectivity_from_run_to_run() -> None:
    position = synthetic_regions(20)[["x", "y", "z"]].to_numpy(float)
    twin = BoldTwin(position, seed=0, effects=Effects())
    first = twin.recording("s", Traits(0.0), n_times=60, t_r=T_R)
    again = twin.recording("s", Traits(0.0), n_times=60, t_r=T_R)
    other = twin.recording("s", Traits(0.0), n_times=60, t_r=T_R, run=2)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("n", [2, 7, 64])
def test_made_up_parcellation(n: int) -> None:
    table = synthetic_regions(n)
    assert len(table) == n == table["name"].nunique()
    assert table["name"].str.startswith("synth-").all()


def test_diagnosis_is_balanced_over_sites_unless_confounded() -> None:
    sites = np.repeat(np.array(["a", "b", "c", "d"]), 16)
    rng = np.random.default_rng(0)
    even = balanced_diagnosis(rng, sites, prevalence=0.45, confounded=False)
    rates = [even[sites == s].mean() for s in "abcd"]
    assert max(rates) - min(rates) <= 1 / 16
    tied = balanced_diagnosis(rng, sites, prevalence=0.45, confounded=True)
    rates = [tied[sites == s].mean() for s in "abcd"]
    assert max(rates) - min(rates) > 0.6


@pytest.mark.slow
def test_calibration_at_64_subjects() -> None:
    found: dict[str, list[float]] = {k: [] for k in ("r2", "r5", "auc5", "null_r5", "null_auc5", "clear")}
    ridge = make_pipeline(StandardScaler(), RidgeCV(np.logspace(0, 5, 11)))
    logistic = make_pipeline(StandardScaler(), LogisticRegression(C=1e-3, max_iter=500))
    for seed in range(10):
        for variant, prefix in (("default", ""), ("null", "null_")):
            _, age, diagnosis, signals = population(seed, 64, variant)
            features = connectome(signals)
            for k in (2, 5) if variant == "default" else (5,):
                folds = KFold(k, shuffle=True, random_state=seed)
                predicted = cross_val_predict(ridge, features, age, cv=folds)
                found[f"{prefix}r{k}"].append(float(np.corrcoef(predicted, age)[0, 1]))
                if k == 2:
                    error = np.abs(predicted - age)
                    picks = np.random.default_rng(0).integers(0, 64, (1000, 64))
                    mean = np.concatenate([np.abs(age[t] - age[a].mean()) for a, t in folds.split(features)]).mean()
                    found["clear"].append(float(np.percentile(error[picks].mean(1), 97.5) < mean))
            folds = StratifiedKFold(5, shuffle=True, random_state=seed)
            score = cross_val_predict(logistic, features, diagnosis, cv=folds, method="decision_function")
            found[f"{prefix}auc5"].append(float(roc_auc_score(diagnosis, score)))
    mean = {k: float(np.mean(v)) for k, v in found.items()}
    assert 0.55 < mean["r2"] < 0.8
    assert 0.65 < mean["r5"] < 0.85
    assert 0.65 < mean["auc5"] < 0.83
    assert mean["clear"] >= 0.9
    assert abs(mean["null_auc5"] - 0.5) < 0.1
    # Pooled held-out r is biased below zero under the null.
    assert -0.35 < mean["null_r5"] < 0.1

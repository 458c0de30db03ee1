"""Partial correlations, site leak and harmonisation, against answers that are known."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from neurobench import caveats, confounds
from neurobench.components import ComponentSpec
from neurobench.confounds import confound_scores, missing_units, site_leak
from neurobench.evaluation_steps import EvaluationSteps
from neurobench.harmonisation import by_site
from neurobench_tasks.age import Age


def predictions(n: int = 120, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    age = rng.uniform(20, 80, n)
    truth = -0.3 * age + rng.normal(0, 4, n)
    return pd.DataFrame(
        {
            "participant_id": [f"s{i:03d}" for i in range(n)],
            "fold": np.arange(n) % 5,
            "truth": truth,
            "prediction": -0.3 * age + rng.normal(0, 4, n),
            "train_mean": truth.mean(),
            "age": age,
            "sex": rng.choice(["F", "M"], n),
            "site": rng.choice(["a", "b", "c"], n),
            "mean_fd": rng.gamma(4, 0.04, n),
        }
    )


def residual(values: np.ndarray, columns: np.ndarray) -> np.ndarray:
    design = np.column_stack([np.ones(len(values)), columns])
    return values - design @ np.linalg.lstsq(design, values, rcond=None)[0]


def test_partial_correlations_are_those_of_residuals():
    table = predictions()
    found = confound_scores(table, seed=0, n_bootstrap=50)
    y, p = table["truth"].to_numpy(), table["prediction"].to_numpy()
    assert found["r[truth]"].value == pytest.approx(stats.pearsonr(y, p).statistic)
    assert found["r[age]"].value == pytest.approx(stats.pearsonr(p, table["age"]).statistic)
    designs = {
        "age": table[["age"]].to_numpy(float),
        "site": pd.get_dummies(table["site"], dtype=float).to_numpy()[:, 1:],
    }
    designs["all"] = np.column_stack(
        [designs["age"], pd.get_dummies(table["sex"], dtype=float).to_numpy()[:, 1:], designs["site"], table["mean_fd"]]
    )
    for name, columns in designs.items():
        expected = stats.pearsonr(residual(y, columns), residual(p, columns)).statistic
        assert found[f"partial_r[{name}]"].value == pytest.approx(expected), name
    # What the prediction adds to a regression on all covariates: here it goes the wrong way, so less than nothing.
    rest = residual(y, designs["all"])
    more = residual(y, np.column_stack([designs["all"], p]))
    added = ((rest**2).sum() - (more**2).sum()) / ((y - y.mean()) ** 2).sum()
    assert found["partial_r[all]"].value < 0
    assert found["delta_r2[all]"].value == pytest.approx(-added)


def test_partial_correlations_are_those_of_a_regression():
    """Of statsmodels: the square root of what adding the prediction takes off the residual sum of squares."""
    from statsmodels.api import OLS, add_constant

    table = predictions()
    found = confound_scores(table, seed=0, n_bootstrap=20)
    site = pd.get_dummies(table["site"], drop_first=True, dtype=float)
    sex = (table["sex"] == "M").astype(float)
    columns = pd.concat([table["age"], sex, site, table["mean_fd"]], axis=1)
    without = OLS(table["truth"], add_constant(columns)).fit()
    full = OLS(table["truth"], add_constant(columns.assign(prediction=table["prediction"]))).fit()
    t = full.tvalues["prediction"]
    assert found["partial_r[all]"].value == pytest.approx(t / np.sqrt(t**2 + full.df_resid))
    assert found["delta_r2[all]"].value == pytest.approx(np.sign(t) * (full.rsquared - without.rsquared))


def test_what_only_age_gives_is_nothing_given_age():
    found = confound_scores(predictions(400), seed=0)
    assert found["r[truth]"].low > 0.3
    assert found["partial_r[age]"].low < 0 < found["partial_r[age]"].high
    assert found["partial_r[mean_fd]"].low > 0.3


def test_the_target_is_no_confound_of_itself():
    table = predictions()
    table["truth"] = table["age"]
    found = confound_scores(table, seed=0, n_bootstrap=20)
    assert not [n for n in found if "age" in n]
    assert "partial_r[all]" in found


def test_nothing_of_a_constant_and_of_few():
    table = predictions()
    assert confound_scores(table.assign(prediction=1.0), seed=0) == {}
    assert confound_scores(table.head(10), seed=0) == {}


def test_equal_numbers_with_a_rounding_error_are_constant():
    # numpy gives 64 times 147.3 an s.d. of 2.8e-14: the correlation with it is not defined, and a warning is an error.
    table = predictions(64).assign(duration_s=147.3)
    assert np.std(table["duration_s"]) > 0
    assert not [n for n in confound_scores(table, seed=0, n_bootstrap=20) if "duration_s" in n]


def test_unknown_covariates_leave_subjects_out():
    table = predictions()
    gone = table.assign(age=table["age"].where(np.arange(len(table)) % 2 == 0))
    found = confound_scores(gone, seed=0, n_bootstrap=20)
    half = table.iloc[::2]
    assert found["r[age]"].value == pytest.approx(stats.pearsonr(half["prediction"], half["age"]).statistic)


def test_site_leak_is_balanced_accuracy():
    table = pd.DataFrame({"participant_id": [f"s{i}" for i in range(30)], "site": ["a"] * 20 + ["b"] * 10})
    table["said"] = ["a"] * 25 + ["b"] * 5
    found = site_leak(table, seed=0, n_bootstrap=100)
    assert found.value == pytest.approx((1 + 0.5) / 2)
    assert found.chance == 0.5
    assert found.low < 0.75 < found.high


# ---------------------------------------------------------------- harmonisation


def scanned(seed: int = 0) -> tuple[np.ndarray, pd.DataFrame, np.ndarray]:
    rng = np.random.default_rng(seed)
    n = 2000
    people = pd.DataFrame({"site": rng.choice(["a", "b"], n), "age": rng.uniform(20, 80, n)})
    people["age"] += 20 * (people["site"] == "b")  # Older people at one site.
    second = (people["site"] == "b").to_numpy()
    x = 0.05 * people["age"].to_numpy()[:, None] + rng.normal(size=(n, 3)) * np.where(second, 3, 1)[:, None]
    x[second] += (5, -2, 0)
    return x, people, np.arange(n) < 1500


def test_sites_become_alike_and_age_stays():
    x, people, train = scanned()
    found = by_site(x, people, train)
    second, test = (people["site"] == "b").to_numpy(), ~train
    rest = found - 0.05 * people["age"].to_numpy()[:, None]
    np.testing.assert_allclose(rest[test & second].mean(0), rest[test & ~second].mean(0), atol=0.5)
    np.testing.assert_allclose(rest[test & second].std(0), rest[test & ~second].std(0), rtol=0.2)
    slope = np.polyfit(people["age"], found[:, 0], 1)[0]
    assert slope == pytest.approx(0.05, abs=0.02)


def test_nothing_is_fitted_on_test_subjects():
    """Whatever a test subject's features are, nobody else's harmonised ones change."""
    x, people, train = scanned()
    changed = x.copy()
    changed[~train] += 100 * np.random.default_rng(1).normal(size=changed[~train].shape)
    a, b = by_site(x, people, train), by_site(changed, people, train)
    np.testing.assert_array_equal(a[train], b[train])
    one = x.copy()
    one[-1] += 1000
    np.testing.assert_array_equal(by_site(one, people, train)[:-1], a[:-1])


def test_a_site_that_training_does_not_know_stays_as_it_is():
    x, people, train = scanned()
    people.loc[people.index[-5:], "site"] = "new"
    np.testing.assert_array_equal(by_site(x, people, train)[-5:], x[-5:])


def test_missing_features_stay_missing():
    x, people, train = scanned()
    x[3, 1] = np.nan
    found = by_site(x, people, train)
    assert np.isnan(found[3, 1])
    assert np.isfinite(np.delete(found.ravel(), 3 * 3 + 1)).all()


def test_relatives_count_once_where_covariates_are_few() -> None:
    """Two families of 25: their bootstrap would draw one of them again and again and call it an interval."""
    table = predictions(50).assign(family=["A"] * 25 + ["B"] * 25)
    table.loc[25:, "mean_fd"] = np.nan
    assert confound_scores(table, seed=0, n_bootstrap=50) == {}
    # Thirty families, of which one alone has a scan length for its many people.
    table = predictions(60).assign(family=["A"] * 31 + [f"f{i}" for i in range(29)], duration_s=np.nan)
    table.loc[:30, "duration_s"] = np.linspace(300, 400, 31)
    found = confound_scores(table, seed=0, n_bootstrap=50)
    assert "r[age]" in found
    assert "r[duration_s]" not in found


def test_a_feature_that_no_training_subject_has_disturbs_no_other() -> None:
    rng = np.random.default_rng(0)
    people = pd.DataFrame({"site": np.repeat(["a", "b"], 20), "age": rng.uniform(20, 80, 40)})
    x, train = rng.normal(size=(40, 3)), np.arange(40) % 4 > 0
    gone = x.copy()
    gone[train, 1] = np.nan
    found = by_site(gone, people, train)
    np.testing.assert_array_equal(found[:, [0, 2]], by_site(x, people, train)[:, [0, 2]])
    assert np.isnan(found[train, 1]).all()


def test_units_that_are_missing_where_the_target_is_another_one_are_named() -> None:
    rng = np.random.default_rng(0)
    patient, age = rng.permutation(np.resize([0.0, 1.0], 60)), rng.uniform(20, 80, 60)
    present = np.ones((60, 4), bool)
    names = ("frontal", "insula", "vermis", "crus")
    assert missing_units(present, patient, names) == ""
    present[rng.permutation(60)[:20], 0] = False  # For everybody alike.
    assert missing_units(present, patient, names) == missing_units(present, age, names) == ""
    present[patient == 1, 2:] = False
    said = missing_units(present, patient, names)
    assert "vermis and 1 more, in 30 of 60 subjects" in said
    record = SimpleNamespace(confounds={}, notes=["prevalence of patient: 30 of 60", said])
    assert [c.code for c in caveats._label_and_covariates("diagnosis", record)] == ["missing-units"]
    assert missing_units(present, np.ones(60), names) == ""
    present[:, 1] = age < 60
    assert "insula" in missing_units(present, age, names)


def test_a_unit_is_there_if_all_recordings_of_a_person_have_it() -> None:
    had = {"s1": [(1, 1, 0), (1, 0, 0)], "s0": [(1, 1, 1)], "s2": [(0, 0, 0)]}
    recordings = [SimpleNamespace(subject=s, present=np.array(p, bool)) for s, own in had.items() for p in own]
    found = EvaluationSteps._has_units(SimpleNamespace(cohort=SimpleNamespace(recordings=recordings)), ["s0", "s1"])
    assert found.tolist() == [[True, True, True], [True, False, False]]


def test_missing_units_are_looked_for_once_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a volume that takes a second, which every row would take again."""
    seen = []
    monkeypatch.setattr(confounds, "missing_units", lambda present, target, names: seen.append(target) or "said")
    people = pd.DataFrame({"age": [20.0, np.nan, 40.0]}, index=["s0", "s1", "s2"])
    run = SimpleNamespace(
        remembered={},
        task=lambda spec: Age(),
        cohort=SimpleNamespace(participants=people, units=SimpleNamespace(names=("a",))),
        _has_units=lambda subjects: np.ones((len(subjects), 1), bool),
    )
    assert [EvaluationSteps._missing_units(run, ComponentSpec("task", "age")) for _ in range(3)] == ["said"] * 3
    assert [t.tolist() for t in seen] == [[20.0, 40.0]]


def test_missing_units_are_found_by_chance_in_few_cohorts() -> None:
    rng = np.random.default_rng(0)
    found = [
        missing_units(rng.random((60, 20)) < 0.7, rng.normal(size=60), [str(i) for i in range(20)]) for _ in range(50)
    ]
    assert sum(map(bool, found)) <= 1

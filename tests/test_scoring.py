"""Metrics, intervals, permutations and comparisons against known answers."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn import metrics as sk

from neurobench.contracts import Metric
from neurobench.errors import ConfigError, DataError
from neurobench.metrics import CLASSIFICATION_METRICS, FUNCTIONS, Sample, regression_metrics, restore_prevalence
from neurobench.paired import difference_of
from neurobench.reconstruction import ReconstructionScores
from neurobench.scoring import (
    bootstrap_weights,
    family_numbers,
    holm,
    permute_within,
    score_reconstruction,
    score_subject_task,
    with_refits,
)

REGRESSION = SimpleNamespace(kind="regression", metrics=regression_metrics("years", given_age=True), classes=("", ""))
TWO_CLASSES = SimpleNamespace(kind="classification", metrics=CLASSIFICATION_METRICS, classes=("control", "patient"))


def table(truth, prediction, *, site="", age=np.nan, n_folds=5, train_mean=None, seed=0):
    truth = np.asarray(truth, float)
    n = len(truth)
    fold = np.random.default_rng(seed).permutation(np.arange(n) % n_folds)
    if train_mean is None:
        train_mean = np.array([truth[fold != f].mean() for f in fold])
    return pd.DataFrame(
        {
            "participant_id": [f"sub-{i:04d}" for i in range(n)],
            "fold": fold,
            "truth": truth,
            "prediction": prediction,
            "train_mean": train_mean,
            "site": site,
            "age": age,
        }
    )


def people(n, seed, slope=0.0):
    """Classes, and predictions that know something of them where the slope is above 0."""
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.4).astype(float)
    return table(y, 1 / (1 + np.exp(-(slope * (y - 0.5) + rng.normal(size=n)))), seed=seed)


def sample(y, p, site=None, age=None):
    n = len(y)
    zero = np.zeros(n, int)
    return Sample(
        np.asarray(y, float),
        np.asarray(p, float),
        np.full(n, np.mean(y)),
        zero,
        zero if site is None else site,
        np.full(n, np.nan) if age is None else age,
    )


# ---------------------------------------------------------------- metrics


@pytest.mark.parametrize("ties", [False, True])
def test_weighted_classification_metrics_are_scikit_learns(ties):
    rng = np.random.default_rng(1)
    y = (rng.random(60) < 0.3).astype(float)
    p = np.clip(0.3 * y + rng.random(60) * 0.7, 0, 1)
    p = np.round(p, 1) * 0.98 + 0.001 if ties else p
    w = rng.integers(0, 4, size=(7, 60)).astype(float)
    s = sample(y, p)
    f = FUNCTIONS["classification"]
    for row, weight in enumerate(w):
        expected = {
            "auroc": sk.roc_auc_score(y, p, sample_weight=weight),
            "pr_auc": sk.average_precision_score(y, p, sample_weight=weight),
            "balanced_accuracy": sk.balanced_accuracy_score(y, p > 0.5, sample_weight=weight),
            "sensitivity": sk.recall_score(y, p > 0.5, sample_weight=weight),
            "specificity": sk.recall_score(y, p > 0.5, pos_label=0, sample_weight=weight),
            "mcc": sk.matthews_corrcoef(y, p > 0.5, sample_weight=weight),
            "brier": sk.brier_score_loss(y, restore_prevalence(p, s.train_mean), sample_weight=weight),
        }
        found = {name: f[name](s, w)[row] for name in expected}
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_regression_metrics_are_scipys():
    rng = np.random.default_rng(2)
    age, y = rng.uniform(20, 80, 50), rng.normal(size=50)
    y += age / 20
    p = 0.5 * y + rng.normal(size=50)
    w = rng.integers(0, 3, size=50)
    s, f = sample(y, p, age=age), FUNCTIONS["regression"]
    rows = np.repeat(np.arange(50), w)
    yy, pp, aa = y[rows], p[rows], age[rows]
    found = {name: f[name](s, w[None].astype(float))[0] for name in f}
    slope_y, slope_p = stats.linregress(aa, yy), stats.linregress(aa, pp)
    ry, rp = yy - slope_y.intercept - slope_y.slope * aa, pp - slope_p.intercept - slope_p.slope * aa
    design = np.c_[np.ones(len(rows)), aa, pp]
    full = yy - design @ np.linalg.lstsq(design, yy)[0]
    expected = {
        "mae": np.abs(yy - pp).mean(),
        "r2": 1 - ((yy - pp) ** 2).sum() / ((yy - y.mean()) ** 2).sum(),
        "pearson_r": stats.pearsonr(yy, pp).statistic,
        "skill": 1 - np.abs(yy - pp).mean() / np.abs(yy - y.mean()).mean(),
        "age_slope": stats.linregress(aa, pp - yy).slope,
        "partial_r_age": stats.pearsonr(ry, rp).statistic,
        "delta_r2_age": ((ry**2).sum() - (full**2).sum()) / ((yy - yy.mean()) ** 2).sum(),
    }
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_a_prediction_that_goes_the_wrong_way_adds_nothing():
    """Turned round it would explain something; as it is it must not count as if it did."""
    rng = np.random.default_rng(3)
    age = rng.uniform(20, 80, 200)
    own = rng.normal(size=200)
    y = -age / 20 + own
    right, wrong = (sample(y, -age / 20 + sign * own, age=age) for sign in (0.5, -0.5))
    f, one = FUNCTIONS["regression"]["delta_r2_age"], np.ones((1, 200))
    assert f(right, one)[0] > 0.2
    assert f(wrong, one)[0] == pytest.approx(-f(right, one)[0])
    # What knows nothing but age has an interval around 0.
    nothing = table(y, -age / 20 + 0.5 * rng.normal(size=200), age=age)
    m = score_subject_task(REGRESSION, nothing, seed=0, n_permutations=19).metrics["delta_r2_age"]
    assert m.low < 0 < m.high


def test_within_site_auroc_ignores_differences_between_sites():
    y = np.array([0, 0, 0, 1, 1, 1, 1, 0.0])
    p = np.array([0.1, 0.1, 0.1, 0.1, 0.9, 0.9, 0.9, 0.9])
    site = np.repeat([0, 1], 4)
    s, one = sample(y, p, site=site), np.ones((1, 8))
    assert FUNCTIONS["classification"]["within_site_auroc"](s, one)[0] == 0.5
    assert FUNCTIONS["classification"]["auroc"](s, one)[0] == pytest.approx(sk.roc_auc_score(y, p))


def test_prevalence_is_restored():
    assert restore_prevalence(np.array([0.5, 1.0, 0.0]), np.full(3, 0.2)) == pytest.approx([0.2, 1.0, 0.0])
    odds = restore_prevalence(np.array([0.8]), np.array([0.25]))[0]
    assert odds / (1 - odds) == pytest.approx(4 / 3)


# ---------------------------------------------------------------- scores


def test_the_mean_predictor_is_chance():
    y = np.random.default_rng(0).normal(50, 10, 100)
    data = table(y, 0.0)
    data["prediction"] = data["train_mean"]
    score = score_subject_task(REGRESSION, data, seed=0, n_bootstrap=200, n_permutations=99)
    m = score.metrics
    assert m["mae"].value == m["mae"].chance
    assert m["r2"].value == m["skill"].value == 0.0
    assert m["pearson_r"].value is None
    assert m["pearson_r"].low is None
    assert score.above_chance is False
    assert score.n_subjects == 100


def test_even_odds_are_chance():
    score = score_subject_task(TWO_CLASSES, people(90, 0).assign(prediction=0.5), seed=0, n_bootstrap=200)
    values = {name: m.value for name, m in score.metrics.items()}
    assert values["auroc"] == values["balanced_accuracy"] == values["sensitivity"] == 0.5
    assert values["mcc"] == 0.0
    for name in ("brier", "accuracy", "pr_auc"):
        assert values[name] == pytest.approx(score.metrics[name].chance)
    assert score.p_value == 1.0
    assert score.above_chance is False


def test_a_real_effect_is_above_chance():
    score = score_subject_task(TWO_CLASSES, people(120, 3, slope=2.0), seed=0)
    m = score.metrics["auroc"]
    assert m.low > 0.5
    assert m.low < m.value < m.high
    assert score.p_value == pytest.approx(1 / 1001)
    assert score.above_chance is True
    rng = np.random.default_rng(0)
    y = rng.normal(size=120)
    score = score_subject_task(REGRESSION, table(y, 0.5 * y + 0.3 * rng.normal(size=120)), seed=0)
    assert score.above_chance is True
    assert score.metrics["mae"].value < score.metrics["mae"].chance


def test_people_whose_site_is_not_known_are_in_no_within_site_score():
    rng = np.random.default_rng(0)
    y = (rng.random(80) < 0.5).astype(float)
    p = np.clip(0.3 * y + rng.random(80) * 0.7, 0, 1)
    site = np.array(["a", "", "b", ""] * 20)
    data = table(y, p, site=site)
    some = score_subject_task(TWO_CLASSES, data, seed=0)
    known = score_subject_task(TWO_CLASSES, data[site != ""], seed=0)
    within = some.metrics["within_site_auroc"]
    assert within.value == known.metrics["within_site_auroc"].value
    assert some.notes[1].startswith("site not known of 40 of 80: no within-site score holds them")
    assert len(known.notes) == 1
    # Nobody's is known: what would be an AUROC over everybody is not called one within sites.
    for nothing in (data.assign(site=""), data.assign(site=None), data.drop(columns="site")):
        none = score_subject_task(TWO_CLASSES, nothing, seed=0)
        assert (none.metrics["within_site_auroc"].value, none.metrics["within_site_auroc"].above_chance) == (None, None)
        assert set(none.per_fold["within_site_auroc"]) == {None}
        assert none.metrics["auroc"].value == some.metrics["auroc"].value
        assert none.notes[1].startswith("site not known of 80 of 80")


def test_one_family_or_one_person_has_no_interval_and_is_not_above_chance():
    truth = np.random.default_rng(0).normal(size=40)
    data = table(truth, 0.5 * truth, site="a")
    assert score_subject_task(REGRESSION, data, seed=0).above_chance
    for few in (data.assign(family="f"), data.iloc[:1]):
        score = score_subject_task(REGRESSION, few, seed=0)
        mae = score.metrics["mae"]
        assert mae.value is not None
        assert (mae.low, mae.high, mae.above_chance, score.above_chance) == (None, None, False, False)


def test_what_only_tells_sites_apart_is_not_above_chance():
    rng = np.random.default_rng(0)
    site = np.repeat(["a", "b"], 60)
    y = np.r_[rng.random(60) < 0.1, rng.random(60) < 0.9].astype(float)
    p = np.where(site == "b", 0.7, 0.3) + 0.05 * rng.normal(size=120)
    score = score_subject_task(TWO_CLASSES, table(y, p, site=site), seed=0)
    assert score.metrics["auroc"].low > 0.7
    assert score.metrics["within_site_auroc"].low < 0.5
    assert score.p_value > 0.05
    assert score.above_chance is False
    pooled = score_subject_task(TWO_CLASSES, table(y, p), seed=0)
    assert pooled.above_chance is True


def test_below_chance_is_no_signal():
    data = people(100, 4, slope=2.0)
    data["prediction"] = 1 - data["prediction"]
    score = score_subject_task(TWO_CLASSES, data, seed=0)
    assert score.metrics["auroc"].high < 0.5
    assert score.above_chance is False


def test_per_fold_values():
    data = people(100, 5, slope=1.0)
    score = score_subject_task(TWO_CLASSES, data, seed=0, n_bootstrap=50, n_permutations=9)
    expected = [sk.roc_auc_score(g.truth, g.prediction) for _, g in data.groupby("fold")]
    assert score.per_fold["auroc"] == pytest.approx(expected)


def test_the_order_of_rows_does_not_matter():
    data = people(60, 6)
    a, b = (
        score_subject_task(TWO_CLASSES, d, seed=1, n_bootstrap=100) for d in (data, data.sample(frac=1, random_state=0))
    )
    assert a == b


def test_json_without_nan():
    data = people(30, 0, slope=1.0)
    text = json.dumps(score_subject_task(TWO_CLASSES, data, seed=0, n_bootstrap=50).to_dict(), allow_nan=False)
    known = {"value", "low", "high", "unit", "higher_is_better", "chance", "p_value", "above_chance"}
    assert set(json.loads(text)["metrics"]["auroc"]) == known
    json.dumps(
        score_subject_task(REGRESSION, table(np.arange(30.0), np.arange(30.0)), seed=0, n_bootstrap=50).to_dict(),
        allow_nan=False,
    )


def test_a_fold_with_one_class_has_no_auroc():
    data = people(40, 0)
    data["fold"] = np.where(data.truth == 1, 0, data.fold % 2)
    score = score_subject_task(TWO_CLASSES, data, seed=0, n_bootstrap=50, n_permutations=9)
    assert score.per_fold["auroc"][1] is None


def test_notes_tell_when_site_gives_the_class_away():
    data = table([0, 1] * 20 + [1] * 10, np.linspace(0, 1, 50), site=["a"] * 40 + ["b"] * 10)
    score = score_subject_task(TWO_CLASSES, data, seed=0, n_bootstrap=50, n_permutations=9)
    assert score.notes == (
        "prevalence of patient: 30 of 50",
        "1 of 2 sites hold one class only: site gives the class away",
    )


def test_refusals():
    data = people(20, 0)
    with pytest.raises(DataError, match=r"40 predictions are of 20 subjects"):
        score_subject_task(TWO_CLASSES, pd.concat([data, data]), seed=0)
    with pytest.raises(DataError, match=r"'sub-0003' is not a number"):
        score_subject_task(TWO_CLASSES, data.assign(prediction=np.where(np.arange(20) == 3, np.nan, 0.5)), seed=0)
    with pytest.raises(DataError, match=r"lack train_mean"):
        score_subject_task(TWO_CLASSES, data.drop(columns="train_mean"), seed=0)
    with pytest.raises(DataError, match=r"no held-out prediction"):
        score_subject_task(TWO_CLASSES, data[:0], seed=0)
    task = SimpleNamespace(kind="classification", metrics=(Metric("aurocs", "", True, 0.5, 1.0),), classes=("", ""))
    with pytest.raises(ConfigError, match=r"no classification metric 'aurocs'.*Did you mean 'auroc'"):
        score_subject_task(task, data, seed=0)


def test_a_thousand_subjects_take_less_than_two_seconds():
    data = people(1000, 0, slope=0.5).assign(site=np.repeat([f"s{i}" for i in range(20)], 50))
    started = time.process_time()
    score_subject_task(TWO_CLASSES, data, seed=0)
    assert time.process_time() - started < 4.0, "twice the budget: the machine may be busy"


def coverage(n_repeats):
    """Return how often the interval of the AUROC and of the MAE holds the true value."""
    truth = {"auroc": stats.norm.cdf(1 / np.sqrt(2)), "mae": np.sqrt(2 / np.pi)}
    held = dict.fromkeys(truth, 0)
    for repeat in range(n_repeats):
        rng = np.random.default_rng(repeat)
        y = (np.arange(80) < 40).astype(float)
        classes = table(y, stats.norm.cdf(y + rng.normal(size=80)), seed=repeat)
        values = rng.normal(size=80)
        numbers = table(values, values + rng.normal(size=80), seed=repeat)
        for name, task, data in (("auroc", TWO_CLASSES, classes), ("mae", REGRESSION, numbers)):
            only = SimpleNamespace(kind=task.kind, metrics=task.metrics[:1], classes=task.classes)
            m = score_subject_task(only, data, seed=repeat, n_bootstrap=400, n_permutations=1).metrics[name]
            held[name] += m.low <= truth[name] <= m.high
    return {name: n / n_repeats for name, n in held.items()}


def test_intervals_cover_the_true_value():
    for name, share in coverage(150).items():
        # 95 % less what a percentile interval loses at n = 80, with 3 s.d. of 150 repeats.
        assert 0.87 <= share <= 1.0, (name, share)


@pytest.mark.slow
def test_intervals_cover_the_true_value_at_full_size():
    for name, share in coverage(2000).items():
        assert 0.92 <= share <= 0.975, (name, share)


def above_chance_under_the_null(n_repeats):
    hits = 0
    for repeat in range(n_repeats):
        hits += bool(
            score_subject_task(
                TWO_CLASSES, people(60, repeat), seed=repeat, n_bootstrap=300, n_permutations=199
            ).above_chance
        )
    return hits / n_repeats


def test_above_chance_is_rare_under_the_null():
    assert above_chance_under_the_null(100) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 100)


@pytest.mark.slow
def test_above_chance_is_rare_under_the_null_at_full_size():
    assert above_chance_under_the_null(1000) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 1000)


# ---------------------------------------------------------------- families


def twice(data, seed=0):
    """Everybody under two ids, with nearly the same prediction."""
    again = data.assign(participant_id=data["participant_id"] + "-again")
    both = pd.concat([data, again], ignore_index=True)
    noise = 1e-3 * np.random.default_rng(seed).normal(size=len(both))
    return both.assign(prediction=np.clip(both["prediction"] + noise, 0, 1), family=[*data["participant_id"]] * 2)


def test_a_person_under_two_ids_is_no_second_observation():
    once = people(60, 3, slope=1.0)
    doubled = twice(once)

    def width(data):
        m = score_subject_task(TWO_CLASSES, data, seed=0, n_permutations=19).metrics["auroc"]
        return m.high - m.low

    assert width(doubled) == pytest.approx(width(once), rel=0.06)
    # Without the column the interval is too narrow, by the root of two.
    assert width(doubled.drop(columns="family")) == pytest.approx(width(once) / np.sqrt(2), rel=0.1)
    # The same for differences, and for subjects whose family nobody knows.
    other = people(60, 4, slope=0.5).assign(truth=once["truth"])
    se = [difference_of("auroc", *(f(t) for t in (once, other)))["se_subjects"] for f in (lambda t: t, twice)]
    assert se[1] == pytest.approx(se[0], rel=0.06)
    assert family_numbers(["a", None, "a", "", np.nan]).tolist()[0] == family_numbers(["a", None, "a", "", np.nan])[2]
    assert len(set(family_numbers(["a", None, "a", "", np.nan]))) == 4
    assert family_numbers([None, "", np.nan]) is None


def test_families_are_permuted_and_exchanged_as_wholes():
    told, untold, apart = 0, 0, 0
    for repeat in range(120):
        nothing = twice(people(30, repeat), repeat)
        known, unknown = (
            score_subject_task(TWO_CLASSES, t, seed=repeat, n_bootstrap=50, n_permutations=99).p_value
            for t in (nothing, nothing.drop(columns="family"))
        )
        told, untold = told + (known < 0.05), untold + (unknown < 0.05)
        other = twice(people(30, 1000 + repeat).assign(truth=people(30, repeat)["truth"]), repeat)
        apart += difference_of("auroc", nothing, other)["p"] < 0.05
    # 5 % of 120 is 6; more than 13 has probability .003. As if they were strangers it would be some 15 %.
    assert told <= 13
    assert apart <= 13
    assert untold > told
    assert untold >= 12


def test_labels_are_permuted_within_sites_and_families_of_one_size():
    y = np.array([1, 2, 1, 2, 3, 4, 5, 6, 7, 8.0])
    site = np.array(["a"] * 6 + ["b"] * 4)
    family = np.array([0, 0, 1, 1, 2, 3, 4, 5, 6, 6])
    permuted = permute_within(y, site, family, 200, np.random.default_rng(0))
    assert {tuple(r) for r in permuted[:, :4]} == {(1, 2, 1, 2)}
    assert {tuple(r) for r in permuted[:, 4:6]} == {(3, 4), (4, 3)}
    assert {tuple(r) for r in permuted[:, 6:8]} == {(5, 6), (6, 5)}
    assert {tuple(r) for r in permuted[:, 8:]} == {(7, 8)}


# ---------------------------------------------------------------- refitting


def refitted(seed: int, slope: float, n_permutations: int = 39):
    """A line fitted to half of the people and tested on the other half, twice; labels depend on the site."""
    rng = np.random.default_rng(seed)
    site = np.repeat(["a", "b"], 30)
    x = rng.normal(size=60) + (site == "b")
    y = pd.Series(slope * x + rng.normal(size=60) + (site == "b"), index=[f"s{i:02d}" for i in range(60)])
    folds = rng.permutation(60) % 2
    seen = []

    def predict(target):
        seen.append(target)
        tables = []
        for f in (0, 1):
            fit = stats.linregress(x[folds != f], target[folds != f])
            here = folds == f
            tables.append(
                pd.DataFrame(
                    {
                        "participant_id": target.index[here],
                        "fold": f,
                        "truth": target[here].to_numpy(),
                        "prediction": fit.intercept + fit.slope * x[here],
                        "train_mean": target[folds != f].mean(),
                        "site": site[here],
                    }
                )
            )
        return pd.concat(tables)

    score = score_subject_task(REGRESSION, predict(y), seed=0, n_bootstrap=200, n_permutations=199)
    people = pd.DataFrame({"site": site}, index=y.index)
    return with_refits(score, REGRESSION, y, people, predict, seed=seed, n_permutations=n_permutations), seen, site


@pytest.mark.slow
def test_refitting_finds_what_is_there_and_nothing_else():
    found, seen, site = refitted(0, 1.5)
    assert found.p_value_refit == pytest.approx(1 / 40)
    assert found.above_chance is True
    assert found.notes[-1].startswith("refitted to 39 permutations of the labels within sites: p 0.025 (took ")
    # Every site keeps its own labels, in another order.
    original, *permuted = seen
    assert len(permuted) == 39
    for target in permuted:
        for s in ("a", "b"):
            assert sorted(target[site == s]) == sorted(original[site == s])
        assert not target.equals(original)
    rejected = [refitted(i, 0.0, 19)[0] for i in range(1, 81)]
    # At most 5 % of 80: more than 10 has probability .003.
    assert sum(s.p_value_refit <= 0.05 for s in rejected) <= 10
    assert not any(s.above_chance and s.p_value_refit >= 0.05 for s in rejected)


def test_no_refit_unless_asked():
    found, seen, _ = refitted(0, 1.5, 0)
    assert found.p_value_refit is None
    assert len(seen) == 1


# ---------------------------------------------------------------- comparisons


def test_a_better_row_wins_in_either_direction():
    rng = np.random.default_rng(0)
    y = rng.normal(size=150)
    good, bad = table(y, y + 0.3 * rng.normal(size=150)), table(y, y + rng.normal(size=150))
    result = difference_of("mae", good, bad)
    assert result["low"] < result["difference"] < result["high"] < 0
    assert result["p"] == pytest.approx(1 / 10_001)
    assert difference_of("mae", bad, good)["low"] > 0
    # A metric that has no fast form.
    assert difference_of("pearson_r", good, bad)["low"] > 0
    assert difference_of("pearson_r", good, bad)["p"] == pytest.approx(1 / 10_001)
    assert difference_of("mae", good, good)["p"] == 1.0


def test_detectable_difference_is_found_with_power_of_about_eighty_percent():
    wins, size = 0, None
    for repeat in range(60):
        rng = np.random.default_rng(repeat)
        y, a, b = rng.normal(size=(3, 100))
        if size is None:
            size = difference_of("mae", table(y, y + a), table(y, y + b))["detectable"]
        # |e| grows by size wherever the error is made larger by size in its own direction.
        worse = y + b + np.sign(b) * size
        wins += difference_of("mae", table(y, y + a), table(y, worse))["high"] < 0
    assert 0.6 <= wins / 60 <= 0.97


def test_only_the_same_subjects_can_be_compared():
    with pytest.raises(DataError, match=r"10 subjects are in one of them only"):
        difference_of("auroc", people(50, 0), people(40, 0))


@pytest.mark.parametrize(("kind", "metric"), [("regression", "mae"), ("regression", "pearson_r"), ("classes", "auroc")])
def test_intervals_are_scipys(kind, metric):
    """The same percentile interval, within the Monte-Carlo error of two sets of draws."""
    data = people(90, 3, slope=1.0)
    task = TWO_CLASSES
    if kind == "regression":
        rng = np.random.default_rng(0)
        y = rng.normal(size=90)
        data, task = table(y, 0.5 * y + 0.5 * rng.normal(size=90), train_mean=0.0), REGRESSION
    statistic = {
        "mae": lambda y, p: np.abs(y - p).mean(),
        "pearson_r": lambda y, p: np.corrcoef(y, p)[0, 1],
        "auroc": lambda y, p: sk.roc_auc_score(y, p),
    }[metric]
    m = score_subject_task(task, data, seed=0, n_permutations=1).metrics[metric]
    theirs = stats.bootstrap(
        (data["truth"].to_numpy(), data["prediction"].to_numpy()),
        statistic,
        paired=True,
        vectorized=False,
        n_resamples=2000,
        method="percentile",
        rng=np.random.default_rng(1),
    )
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert [m.low, m.high] == pytest.approx(list(theirs.confidence_interval), abs=0.08 * width)


def test_exchanges_are_scipys():
    """Exchanging two rows' errors is the permutation test of paired samples."""
    rng = np.random.default_rng(1)
    y = rng.normal(size=60)
    a, b = table(y, y + rng.normal(size=60)), table(y, y + 1.3 * rng.normal(size=60))
    errors = [np.abs(t["prediction"] - t["truth"]).to_numpy() for t in (a, b)]
    theirs = stats.permutation_test(
        errors,
        lambda first, second, axis: first.mean(axis) - second.mean(axis),
        permutation_type="samples",
        n_resamples=4000,
        vectorized=True,
        rng=np.random.default_rng(1),
    )
    ours = difference_of("mae", a, b)
    assert ours["difference"] == pytest.approx(theirs.statistic)
    # Three standard errors of the smaller of the two sets of draws.
    assert ours["p"] == pytest.approx(theirs.pvalue, abs=3 * np.sqrt(theirs.pvalue / 1000) + 0.002)
    assert 0.005 < ours["p"] < 0.5, "an answer from the middle, where the two could differ"


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_is_that_of_statsmodels():
    from statsmodels.stats.multitest import multipletests

    rng = np.random.default_rng(0)
    for n in (1, 2, 55):
        p = np.maximum(rng.random(n) ** 3, 0.001).tolist()  # with ties, as of exchanges
        np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1], rtol=1e-12)


def test_bootstrap_draws_are_the_same_for_every_row():
    a = bootstrap_weights(20, 100, 0)
    np.testing.assert_array_equal(a, bootstrap_weights(20, 100, 0))
    assert (a.sum(1) == 20).all()
    assert not np.array_equal(a, bootstrap_weights(20, 100, 1))


# ---------------------------------------------------------------- reconstruction


def reconstructions(share, n_subjects=40, masks=("roi", "random"), seed=0):
    """Scores in which a row leaves about ``share`` of the variance, the ridge filler .5 and the mean all of it."""
    rng = np.random.default_rng(seed)
    sst = rng.uniform(50, 150, size=(len(masks), n_subjects, 3))
    names = {"row": share, "mean": 1.0, "interpolation": 1.3, "ridge": 0.5}
    noise = rng.normal(1, 0.05, size=(len(masks), len(names), n_subjects, 3))
    noise[:, 1] = 1.0
    sse = np.array(list(names.values()))[None, :, None, None] * noise * sst[:, None]
    shape = sse.shape
    return ReconstructionScores(
        masks=masks,
        predictors=tuple(names),
        subjects=tuple(f"s{i:02d}" for i in range(n_subjects)),
        units=("a", "b", "c"),
        n=np.full(sst.shape, 100.0),
        total=np.zeros(sst.shape),
        sst=sst,
        sse=sse,
        predicted=np.zeros(shape),
        predicted_squares=np.broadcast_to(sst[:, None], shape),
        products=np.broadcast_to(0.6 * sst[:, None], shape),
        guard_sst=0.5 * sst.sum(-1),
        guard_sse=0.6 * sse.sum(-1),
        fc_similarity=np.full(shape[:3], 0.7),
        hidden_fraction=np.full(len(masks), 0.5),
        scored_fraction=np.full(len(masks), 0.5),
    )


RECONSTRUCTION = SimpleNamespace(metrics=(Metric("r2", "", True, 0.0, 1.0), Metric("r2[roi]", "", True, 0.0, 1.0)))


def test_reconstruction_score():
    scores = reconstructions(0.4)
    score = score_reconstruction(RECONSTRUCTION, scores, "row", ["roi"], seed=0)
    m = score.metrics
    assert m["r2"] == m["r2[roi]"]
    assert m["r2"].value == pytest.approx(1 - scores.sse[0, 0].sum() / scores.sst[0].sum())
    assert m["r2"].low < m["r2"].value < m["r2"].high
    assert m["skill"].value == pytest.approx(0.2, abs=0.02)
    assert m["skill"].low > 0
    assert m["pearson_r"].value == pytest.approx(0.6)
    assert m["fc_similarity"].value == pytest.approx(0.7)
    assert score.notes == ("rank-trivial on this signal and left out of the headline: random",)
    assert score.n_subjects == 40
    assert score.above_chance is True
    assert score.p_value is None
    json.dumps(score.to_dict(), allow_nan=False)
    both = score_reconstruction(RECONSTRUCTION, scores, "row", ["roi", "random"], seed=0)
    assert both.metrics["r2"].value == pytest.approx((m["r2[roi]"].value + m["r2[random]"].value) / 2)


def test_the_mean_filler_is_the_chance_of_a_reconstruction():
    score = score_reconstruction(RECONSTRUCTION, reconstructions(0.4), "mean", ["roi"], seed=0)
    assert score.metrics["r2"].value == pytest.approx(0.0, abs=1e-12)
    assert score.above_chance is False

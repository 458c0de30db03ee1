"""Paired comparisons, against answers that are known; and the command that prints them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from typer.testing import CliRunner

from neurobench.cli import app
from neurobench.errors import DataError
from neurobench.metrics import auroc
from neurobench.paired import Paired, nadeau_bengio, needed, row_of


def people(n: int, shift: float = 0.0, *, seed: int = 0, classes: bool = False) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    truth = (rng.random(n) < 0.4).astype(float) if classes else rng.normal(50, 15, n)
    own = np.random.default_rng(seed)
    prediction = truth + shift + own.normal(0, 1.0 if classes else 5.0, n)
    table = {"participant_id": [f"s{i:03d}" for i in range(n)], "fold": np.arange(n) % 5, "truth": truth}
    return pd.DataFrame(table | {"prediction": prediction, "train_mean": truth.mean()})


def difference(metric: str, a: pd.DataFrame, b: pd.DataFrame) -> dict:
    return Paired(len(set(a["participant_id"]))).difference([(row_of(metric, a), row_of(metric, b))])


# ---------------------------------------------------------------- known answers


def test_a_planted_difference_has_its_sign_and_size():
    found = difference("mae", people(100, 8.0, seed=1), people(100, 0.0, seed=2))
    truth = people(100)
    by_hand = np.abs(people(100, 8.0, seed=1)["prediction"] - truth["truth"]).mean()
    by_hand -= np.abs(people(100, 0.0, seed=2)["prediction"] - truth["truth"]).mean()
    assert found["difference"] == pytest.approx(by_hand)
    assert found["low"] < by_hand < found["high"]
    assert found["low"] > 0
    assert found["p"] < 0.005
    assert found["n_needed"] <= 100


def test_a_row_against_itself_is_nothing():
    a = people(60, seed=1)
    found = difference("mae", a, a.copy())
    assert (found["difference"], found["low"], found["high"]) == (0, 0, 0)
    assert found["p"] == 1
    assert math.isinf(found["n_needed"])


@pytest.mark.parametrize("metric", ["mae", "r2", "auroc", "balanced_accuracy"])
def test_values_are_the_metrics(metric):
    from sklearn import metrics as sk

    table = people(80, seed=3, classes=metric in ("auroc", "balanced_accuracy"))
    y, p = table["truth"], table["prediction"]
    expected = {
        "mae": lambda: sk.mean_absolute_error(y, p),
        "r2": lambda: sk.r2_score(y, p),
        "auroc": lambda: sk.roc_auc_score(y, p),
        "balanced_accuracy": lambda: sk.balanced_accuracy_score(y, p > 0.5),
    }[metric]()
    row = row_of(metric, table)
    assert row.values(np.ones((1, 80)))[0] == pytest.approx(expected)
    # Weights are repetitions.
    weights = np.random.default_rng(0).integers(0, 3, (1, 80)).astype(float)
    again = table.loc[np.repeat(table.index, weights[0].astype(int))]
    if metric == "auroc":
        assert row.values(weights)[0] == pytest.approx(sk.roc_auc_score(again["truth"], again["prediction"]))
    if metric == "mae":
        assert row.values(weights)[0] == pytest.approx(sk.mean_absolute_error(again["truth"], again["prediction"]))


@pytest.mark.parametrize("metric", ["mae", "auroc", "balanced_accuracy"])
def test_exchanging_everybody_turns_the_sign(metric):
    classes = metric != "mae"
    a, b = (row_of(metric, people(50, s, seed=s, classes=classes)) for s in (1, 2))
    everybody, nobody = np.ones((1, 50), bool), np.zeros((1, 50), bool)
    assert a.exchanged(b, everybody)[0] == pytest.approx(-a.exchanged(b, nobody)[0])


def test_more_exchanges_agree_with_a_thousand_and_go_further():
    pair = row_of("mae", people(100, 3.0, seed=1)), row_of("mae", people(100, seed=2))
    paired = Paired(100)
    p = paired.difference([pair])["p"]
    assert 0.001 < p < 0.5
    assert paired.exchange_p([pair], 5_000) == pytest.approx(p, rel=0.35)
    far = row_of("mae", people(100, 12.0, seed=1)), row_of("mae", people(100, seed=2))
    assert paired.difference([far])["p"] == pytest.approx(1 / 1001)
    assert paired.exchange_p([far], 5_000) == pytest.approx(1 / 5001)


def test_area_under_exchange_is_that_of_the_exchanged_scores():
    a, b = (people(40, seed=s, classes=True) for s in (1, 2))
    swap = np.random.default_rng(1).random((5, 40)) < 0.5
    truth = a["truth"].to_numpy()
    ranks = [stats.rankdata(x["prediction"]) for x in (a, b)]
    for s, found in zip(swap, row_of("auroc", a).exchanged(row_of("auroc", b), swap), strict=True):
        ours, theirs = np.where(s, ranks[1], ranks[0]), np.where(s, ranks[0], ranks[1])
        one = np.ones((1, 40))
        assert found == pytest.approx(auroc(truth, ours, one)[0] - auroc(truth, theirs, one)[0])


def test_reconstruction_is_pooled_over_subjects_and_averaged_over_headline_masks():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"participant_id": [f"s{i}" for i in range(6)] * 3, "fold": [0, 1] * 9})
    table["mask"], table["headline"] = np.repeat(["roi", "block", "random"], 6), np.repeat([True, True, False], 6)
    table["sse"], table["sst"] = rng.random(18), 1 + rng.random(18)
    by_mask = table[table["headline"]].groupby("mask")[["sse", "sst"]].sum()
    expected = (1 - by_mask["sse"] / by_mask["sst"]).mean()
    assert row_of("r2", table).values(np.ones((1, 6)))[0] == pytest.approx(expected)


def test_nadeau_bengio_by_hand():
    d = np.array([0.1, 0.3, 0.2, 0.4, 0.1])
    t = d.mean() / math.sqrt((1 / 5 + 1 / 4) * d.var(ddof=1))
    assert nadeau_bengio(d, 5) == pytest.approx(2 * stats.t.sf(t, 4))
    assert nadeau_bengio(d, 5) > stats.ttest_1samp(d, 0).pvalue
    assert math.isnan(nadeau_bengio(d[:1], 5))


def test_subjects_needed():
    # Half the difference takes four times as many; 2.8 standard errors take as many as there are.
    assert needed(2.8, 1.0, 100) == 100
    assert needed(1.4, 1.0, 100) == 400


def test_a_row_whose_metric_is_not_defined_breaks_nothing():
    """A constant prediction has no correlation: the difference is unknown, and so is everything about it."""
    a = people(40, seed=1)
    found = difference("pearson_r", a, a.assign(prediction=50.0))
    assert all(math.isnan(found[n]) for n in ("difference", "low", "high", "detectable", "n_needed"))
    assert found["p"] == 1


def test_seed_spread_stands_apart_and_together():
    seeds = [people(80, shift, seed=int(10 * shift) + 1) for shift in (0.0, 4.0, 8.0)]
    base = [people(80, 0.0, seed=90 + i) for i in range(3)]
    terms = [(row_of("mae", a), row_of("mae", b)) for a, b in zip(seeds, base, strict=True)]
    paired = Paired(80)
    found = paired.difference(terms, n_seeds=3)
    each = [paired.difference([t])["difference"] for t in terms]
    assert found["difference"] == pytest.approx(np.mean(each))
    assert found["sd_seeds"] == pytest.approx(np.std(each, ddof=1))
    assert found["se_combined"] > 1.5 * found["se_subjects"]


def test_a_metric_that_cannot_be_compared_is_refused():
    with pytest.raises(DataError, match=r"cannot be compared on 'mccc'"):
        row_of("mccc", people(20))


# ---------------------------------------------------------------- a whole folder


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    import neurobench

    folder = tmp_path_factory.mktemp("compare") / "out"
    common = {"dataset": "parcels", "n_subjects": 40, "n_steps": 4, "task": "age,reconstruction", "out": folder}
    neurobench.run(backbone="transformer,mamba", mask="roi,random_tube", seed="0,1", **common)
    return folder


def test_the_table_of_a_grid(out):
    import neurobench

    table = neurobench.compare_results(out)
    age = table[table["task"] == "age"]
    assert set(age["by"]) == {"backbone", "mask", "untrained", "baseline", "interaction"}
    assert [tuple(r) for r in age.loc[age["by"] == "mask", ["first", "second"]].to_numpy()] == [("roi", "random_tube")]
    assert (age["n_subjects"] == 40).all()
    assert (age["n_seeds"] == 2).all()
    tested = age[age["by"] != "interaction"]
    assert (tested["p_holm"] >= tested["p"] - 1e-12).all()
    assert ((tested["winner"] == "") | (tested["p_holm"] < 0.05)).all()
    # What backbone and mask do not explain sums to nothing along both.
    cells = age[age["by"] == "interaction"].pivot(index="first", columns="second", values="difference")
    assert np.allclose(cells.sum(axis=0), 0)
    assert np.allclose(cells.sum(axis=1), 0)


def test_twice_the_same(out):
    import neurobench

    pd.testing.assert_frame_equal(neurobench.compare_results(out), neurobench.compare_results(out))


def test_the_command_says_it_in_words(out, tmp_path):
    runner = CliRunner()
    found = runner.invoke(app, ["compare", str(out), "--task", "age", "--csv", str(tmp_path / "x.csv")])
    assert found.exit_code == 0, found.output
    text = " ".join(found.output.split())
    assert "SIMULATED" in text
    assert "Nothing separates the masks on age" in text
    assert "subjects would be needed" in text
    assert set(pd.read_csv(tmp_path / "x.csv")["task"]) == {"age"}
    plain = json.loads(runner.invoke(app, ["compare", str(out), "--by", "mask", "--json"]).output)
    assert {c["by"] for c in plain["comparisons"]} == {"mask"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--task", "agee"], "did you mean: age"), (["--by", "masks"], "did you mean: mask"), (["-d", "x"], "parcels")],
)
def test_a_typo_is_answered(out, arguments, message):
    found = CliRunner().invoke(app, ["compare", str(out), *arguments])
    assert found.exit_code == 2
    assert message in " ".join(found.output.split())

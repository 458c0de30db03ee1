"""Paired comparisons, against answers that are known; and the command that prints them."""

from __future__ import annotations

import gc
import itertools
import json
import math
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from typer.testing import CliRunner

from neurobench.caveats import detectable
from neurobench.cli import app
from neurobench.comparison_words import words
from neurobench.comparisons import (
    SCORES,
    Comparisons,
    _Key,
    _of_same_network,
    compare_all,
    compare_rows,
)
from neurobench.errors import DataError
from neurobench.metrics import auroc
from neurobench.over_tasks import across_tasks, transfer
from neurobench.paired import Paired, difference_of, mean_row, nadeau_bengio, needed, row_of
from neurobench.ranks import exchanges_of, rank_ranges
from neurobench.scoring import holm


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
    assert paired.exchange_p([[pair]], 5_000)[0] == pytest.approx(p, rel=0.35)
    far = row_of("mae", people(100, 12.0, seed=1)), row_of("mae", people(100, seed=2))
    assert paired.difference([far])["p"] == pytest.approx(1 / 10_001)
    assert paired.exchange_p([[far]], 50_000)[0] == pytest.approx(1 / 50_001)


def test_the_detectable_difference_is_that_of_the_median_pair():
    tables = {str(i): people(40, 2.0 * i, seed=i) for i in range(4)} | {"other": people(30, seed=9)}
    metrics = {"mae": SimpleNamespace(unit="years")}
    records = [
        SimpleNamespace(id=i, headline="mae", n_subjects=40, metrics=metrics, protocol=SimpleNamespace(seed=0))
        for i in tables
    ]
    evidence = SimpleNamespace(predictions=tables.get)
    sizes = [difference_of("mae", tables[a], tables[b])["detectable"] for a, b in itertools.combinations("0123", 2)]
    found = detectable(records, evidence)
    assert found is not None
    assert found[0] == pytest.approx(np.median(sizes))
    assert found[1:3] == (40, " years")
    assert detectable(records[:1], evidence) is None


@pytest.mark.parametrize("metric", ["mae", "balanced_accuracy", "r2"])
def test_sums_over_subjects_are_exchanged_at_once_as_they_are_one_by_one(metric):
    classes = metric == "balanced_accuracy"
    rows = [row_of(metric, people(30, s, seed=s, classes=classes)) for s in (1, 2, 3)]
    paired = Paired(30)
    many = [[(a, b)] for a, b in itertools.combinations(rows, 2)] + [[(rows[0], rows[1]), (rows[0], rows[2])]]
    swap = np.concatenate(list(paired.swaps(500, "swap-more", 30, 500)))
    for terms, p in zip(many, paired.exchange_p(many, 500), strict=True):
        null = np.mean([a.exchanged(b, swap) for a, b in terms], 0)
        nobody = np.mean([a.exchanged(b, np.zeros((1, 30), bool)) for a, b in terms])
        assert p == ((np.abs(null) >= abs(nobody) - 1e-12).sum() + 1) / 501


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


def test_a_clear_difference_survives_the_adjustment_for_many_pairs():
    # With a thousand exchanges alone the smallest p is .001, and that times 55 pairs is above .05.
    rng = np.random.default_rng(0)
    good, bad = (mean_row(tuple(map(str, range(40))), rng.normal(m, 1, 40)) for m in (0, 3))
    found = Paired(40).difference([(good, bad)])
    assert found["p"] <= 1 / 5_000
    assert holm([found["p"]] + [1.0] * 54)[0] < 0.05
    # And without one, few more are drawn in vain: p is what the first thousand say.
    same = Paired(40).difference([(good, mean_row(good.subjects, rng.normal(0, 1, 40)))])
    assert same["p"] * 1001 == pytest.approx(round(same["p"] * 1001))


def test_a_network_of_other_units_has_an_untrained_one_of_its_own():
    def key(row, mask="none", kind="untrained"):
        return _Key(kind, row, "mamba", mask)

    rows = {key("mamba · untrained"): 1, key("mamba · untrained (units of camcan)"): 2}
    for mask, value in (("roi", 1), ("roi ← camcan", 2), ("roi ← camcan,adhd200", 2), ("roi ← parcels", 1)):
        assert list(_of_same_network(key("x", mask, "pretrained"), rows).values()) == [value], mask
    only = {key("mamba · untrained (units of camcan)"): 2}
    assert _of_same_network(key("x", "roi", "pretrained"), only) == only


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


def table_of_rows(names: list[tuple[str, int]]) -> pd.DataFrame:
    """Return rows and their seeds as the results of one task."""
    return pd.DataFrame(
        {
            "row": [row for row, _ in names],
            "seed": [seed for _, seed in names],
            "backbone": "",
            "mask": "",
            "metric": "mae",
            "unit": "years",
            "higher_is_better": False,
            "apart": "",
            "above_chance": True,
            "split": "subjects",
            "transductive": False,
            "protocol": "p",
        }
    )


@pytest.mark.parametrize("second_seed", [True, False])
def test_a_row_with_a_seed_that_is_not_above_chance_is_never_better(second_seed):
    """Its own table says no signal: the better row has to be above chance with every seed."""
    tables = {
        f"{row}{seed}": people(80, shift, seed=seed) for row, shift in (("a", 0.0), ("b", 9.0)) for seed in (0, 1)
    }
    rows = table_of_rows([(x[0], int(x[1])) for x in tables]).assign(
        id=list(tables),
        kind=["pretrained", "pretrained", "baseline", "baseline"],
        backbone=["n", "n", "", ""],
        above_chance=[True, second_seed, True, True],
    )
    evidence = SimpleNamespace(dataset="people", source="real", predictions=tables.get)
    found = compare_rows(evidence, "age", rows)
    (line,) = found.table[found.table["by"] == "baseline"].to_dict("records")
    assert line["high"] < 0
    assert line["p_holm"] < 0.05
    assert line["winner"] == ("a" if second_seed else "")
    assert found.wins == ({("a", "b")} if second_seed else frozenset())


def test_pairs_are_exchanged_as_often_as_their_own_number_asks_for():
    """Rows without a seed in common are no pair: who has the comparisons alone cannot count them."""
    names = [(f"r{i:02d}", 0) for i in range(29)] + [("other", 1), ("another", 1)]
    tables = {f"{row}/{seed}": people(20, 0.3 * i, seed=i) for i, (row, seed) in enumerate(names)}
    tables["r00/0"]["prediction"] = tables["r00/0"]["truth"]
    rows = table_of_rows(names).assign(kind="baseline", id=list(tables))
    evidence = SimpleNamespace(dataset="people", source="real", predictions=tables.get)
    pairs = compare_rows(evidence, "age", rows, by=()).pairs
    assert len(pairs) == 29 * 28 / 2 + 1
    least = min(x.p for x in pairs)
    assert least == 1 / (exchanges_of(len(pairs)) + 1)


def test_a_row_whose_draws_are_remembered_is_kept_so_that_no_other_one_gets_them():
    row, paired = row_of("mae", people(40)), Paired(40)
    paired.drawn(row)
    kept = weakref.ref(row)
    del row
    gc.collect()
    assert kept() is not None


def test_a_metric_that_cannot_be_compared_is_refused():
    with pytest.raises(DataError, match=r"cannot be compared on 'mccc'"):
        row_of("mccc", people(20))


# ---------------------------------------------------------------- over tasks


def compared(task: str, rows: dict[str, str], wins: set[tuple[str, str]], scores: list[float], higher: bool = True):
    table = pd.DataFrame({"row": list(rows), "kind": list(rows.values()), "score": scores, "higher_is_better": higher})
    return Comparisons(
        "people", "real", task, "protocol", pd.DataFrame(), {}, {}, frozenset(wins), table.reindex(columns=[*SCORES])
    )


ROWS = {"a": "pretrained", "b": "pretrained", "c": "baseline"}


def test_ranks_count_ties():
    assert rank_ranges("abc", frozenset()) == {"a": (1, 3), "b": (1, 3), "c": (1, 3)}
    assert rank_ranges("abc", frozenset({("a", "c")})) == {"a": (1, 2), "b": (1, 3), "c": (2, 3)}
    every = frozenset({("a", "b"), ("a", "c"), ("b", "c")})
    assert rank_ranges("abc", every) == {"a": (1, 1), "b": (2, 2), "c": (3, 3)}
    # Who is not in the field does not push anybody down.
    assert rank_ranges("bc", every) == {"b": (1, 1), "c": (2, 2)}


def test_ranks_are_averaged_over_tasks_and_errors_are_not():
    age = compared("age", ROWS, {("a", "b"), ("a", "c")}, [1.0, 400.0, 500.0], higher=False)
    sex = compared("sex", ROWS, {("c", "a")}, [0.5, 0.6, 0.9])
    (found,) = across_tasks([age, sex])
    assert found.tasks == ("age", "sex")
    by_row = found.table.set_index("row")
    # Of age: a 1, b and c share 2.5; of sex: c 1.5, b 2, a 2.5.
    assert by_row["mean_rank"].to_dict() == {"a": 1.75, "c": 2.0, "b": 2.25}
    assert by_row.loc["a", ["first", "last", "rank[age]", "rank[sex]"]].tolist() == [1.5, 2.0, 1.0, 2.5]
    assert by_row["mean_rank"].sum() == 6
    assert "a is first, but its ranks overlap with those of 2 of the other 2 rows" in found.sentence
    (clear,) = across_tasks([age, compared("sex", ROWS, {("a", "b"), ("a", "c")}, [0.9, 0.5, 0.5])])
    assert "a is first, ahead of every other row" in clear.sentence
    assert "Better than" not in clear.sentence
    # First by the mean of five, and worse than another row on one of them.
    won = [
        compared(t, ROWS, {("a", "b"), ("a", "c"), ("c", "b")}, [0.9, 0.5, 0.6]) for t in ("age", "iq", "sex 2", "fd")
    ]
    (mixed,) = across_tasks([*won, sex])
    assert mixed.sentence.endswith("a is first, ahead of every other row. Better than a: on sex c.")
    # Names that come first in the alphabet are no better for it.
    (shared,) = across_tasks([compared(t, ROWS, {("a", "c"), ("b", "c")}, [2.0, 2.0, 1.0]) for t in ("age", "sex")])
    assert shared.sentence.endswith("a and b share the first place.")
    either = [
        compared("age", ROWS, {("a", "b")}, [2.0, 1.0, 1.5]),
        compared("sex", ROWS, {("b", "a")}, [1.0, 2.0, 1.5]),
    ]
    (turned,) = across_tasks(either)
    assert turned.sentence.endswith(
        "a, b and c share the first place. Better than a: on sex b. Better than b: on age a."
    )
    (none,) = across_tasks([compared(t, ROWS, set(), [1.0, 2.0, 3.0]) for t in ("age", "sex")])
    assert none.table["mean_rank"].tolist() == [2.0, 2.0, 2.0]
    assert "nothing separates any two rows" in none.sentence


def test_rows_are_ranked_among_those_that_every_task_has():
    fillers = {"a": "pretrained", "b": "pretrained", "ridge": "filler"}
    filled = compared("reconstruction", fillers, {("ridge", "a"), ("ridge", "b"), ("b", "a")}, [0.1, 0.2, 0.4])
    plain = [compared(t, ROWS, {("c", "a"), ("c", "b")}, [0.5, 0.5, 0.9]) for t in ("age", "sex")]
    downstream, everything = across_tasks([*plain, filled])
    assert set(downstream.table["row"]) == {"a", "b", "c"}
    assert everything.table.set_index("row")["rank[reconstruction]"].to_dict() == {"b": 1.0, "a": 2.0}
    assert across_tasks([filled]) == across_tasks(plain[:1]) == []
    # Another cohort or protocol is no further task.
    assert across_tasks([plain[0], replace(plain[1], dataset="others")]) == []


def test_reconstruction_is_correlated_with_prediction_over_pretrained_rows():
    kinds = {f"m{i}": "pretrained" for i in range(5)}
    filled = compared("reconstruction", kinds | {"ridge": "filler"}, set(), [0.1, 0.2, 0.3, 0.4, 0.5, 9.0])
    age = compared("age", kinds | {"mean": "baseline"}, set(), [9.0, 7.0, 6.0, 5.0, 4.0, 1.0], higher=False)
    ((where, text),) = transfer([filled, age])
    assert where == "people"
    # A smaller error is better, and the control is no pretrained row.
    assert "Over 5 pretrained rows, reconstruction goes with age at Spearman's ρ +1.00" in text
    assert transfer([filled, compared("age", {"m0": "pretrained", "mean": "baseline"}, set(), [1.0, 2.0])]) == []


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


def test_scores_over_seeds_and_mean_ranks_of_a_folder(out):
    from neurobench.results import load_results

    found = compare_all(out)
    age = next(c for c in found if c.task == "age")
    table = load_results(out)
    own = table[table["task"] == "age"].groupby("row")["score"]
    scores = age.scores.set_index("row")
    assert scores["score"].to_dict() == pytest.approx(own.mean().to_dict())
    assert scores["sd_seeds"].to_dict() == pytest.approx(own.std().to_dict())
    assert (scores["n_seeds"] == 2).all()
    assert ((scores["low"] <= scores["score"]) & (scores["score"] <= scores["high"])).all()
    assert (scores["se_combined"] > 0).all()
    assert age.ranks == rank_ranges(list(scores.index), age.wins)
    (everything,) = across_tasks(found)
    assert everything.tasks == ("age", "reconstruction")
    assert set(everything.table["row"]) == set(table.loc[table["kind"].isin(["pretrained", "untrained"]), "row"])
    ((_, text),) = transfer(found)
    assert "Over 4 pretrained rows, reconstruction goes with age" in text


def test_twice_the_same(out):
    import neurobench

    pd.testing.assert_frame_equal(neurobench.compare_results(out), neurobench.compare_results(out))


@pytest.mark.parametrize(
    ("by", "higher", "n_seeds", "said"),
    [
        ("untrained", True, 1, "a · m is not above chance, so it is not called better."),
        ("untrained", False, 1, "a · untrained is not above chance, so"),
        ("baseline", True, 3, "a · m is not above chance with every seed, so"),
        ("backbone", True, 1, "no row of a · m is above chance, so"),
    ],
)
def test_what_is_ahead_of_another_row_but_not_of_chance_is_named(by, higher, n_seeds, said):
    line = {"by": by, "first": "a · m", "second": "a · untrained", "task": "age", "unit": "years", "winner": ""}
    line |= {"difference": 0.4, "low": 0.1, "high": 0.7, "p_holm": 0.01, "n_needed": 30.0, "n_subjects": 40}
    text = words(by, [line | {"detectable": 0.3, "n_seeds": n_seeds}], 1, higher, lambda first, second: "")
    assert f"its interval excludes 0, but {said}" in text


def test_the_command_says_it_in_words(out, tmp_path):
    runner = CliRunner()
    found = runner.invoke(app, ["compare", str(out), "--task", "age", "--csv", str(tmp_path / "x.csv")])
    assert found.exit_code == 0, found.output
    text = " ".join(found.output.split())
    assert "SIMULATED" in text
    assert "Nothing separates the masks on age" in text
    assert "subjects would be needed" in text
    assert "scores over seeds: spread of seeds, of subjects, and of both" in text
    whole = " ".join(runner.invoke(app, ["compare", str(out)]).output.split())
    assert "Mean rank over age, reconstruction (ties share the middle of their ranks)" in whole
    assert "reconstruction goes with age at Spearman's ρ" in whole
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

"""Folds: everybody tested once, balanced, nobody on both sides."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from neurobench.errors import ConfigError, DataError
from neurobench.records import Fold
from neurobench.splits import check_disjoint, fold_fingerprint, make_folds, split_remarks


def people(n: int, seed: int = 0, **columns: object) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "site": rng.choice(["north", "south", "west"], n, p=[0.6, 0.3, 0.1]),
            "diagnosis": rng.choice(["patient", "control"], n, p=[0.3, 0.7]),
            "sex": rng.choice(["F", "M"], n),
            "age": rng.uniform(8, 80, n),
            **columns,
        },
        index=pd.Index([f"sub-{i:03d}" for i in range(n)], name="participant_id"),
    )


@pytest.mark.parametrize("n", [7, 40, 63])
@pytest.mark.parametrize("n_folds", [2, 5])
def test_everybody_is_tested_once_and_folds_differ_by_one_at_most(n, n_folds):
    table = people(n)
    folds = make_folds(table, n_folds, 0, "subjects")
    check_disjoint(folds)
    assert sorted(s for f in folds for s in f.test) == sorted(table.index)
    assert all(set(f.train) | set(f.test) == set(table.index) for f in folds)
    sizes = [len(f.test) for f in folds]
    assert max(sizes) <= -(-n // n_folds)
    assert min(sizes) >= 1


def test_joint_strata_are_balanced():
    table = people(200, fluid_intelligence=np.where(np.arange(200) % 5, np.arange(200.0), np.nan))
    folds = make_folds(table, 5, 1, "subjects")
    for column, values in {
        "diagnosis": table.diagnosis,
        "joint": table.site + table.diagnosis,
        "sex": table.sex,
        "old": table.age > table.age.median(),
        "clever": table.fluid_intelligence > table.fluid_intelligence.median(),
    }.items():
        for label in values.unique():
            counts = [int((values.loc[list(f.test)] == label).sum()) for f in folds]
            assert max(counts) - min(counts) <= 3, (column, label, counts)


def test_balance_beats_chance():
    table = people(60)

    def spread(tests):
        shares = [(table.diagnosis.loc[list(t)] == "patient").mean() for t in tests]
        ages = [table.age.loc[list(t)].mean() for t in tests]
        return np.std(shares) + np.std(ages) / table.age.std()

    ours = np.mean([spread([f.test for f in make_folds(table, 5, s, "subjects")]) for s in range(5)])
    rng = np.random.default_rng(0)
    chance = np.mean([spread(np.array_split(rng.permutation(table.index), 5)) for _ in range(20)])
    assert ours < 0.5 * chance


def test_same_seed_same_folds_whatever_the_order_of_rows():
    table = people(50)
    folds = make_folds(table, 5, 3, "subjects")
    shuffled = make_folds(table.sample(frac=1, random_state=1), 5, 3, "subjects")
    assert fold_fingerprint(folds) == fold_fingerprint(shuffled)
    assert fold_fingerprint(folds) != fold_fingerprint(make_folds(table, 5, 4, "subjects"))


def test_families_stay_together():
    table = people(60, family=[f"f{i // 3}" if i < 45 else None for i in range(60)])
    folds = make_folds(table, 4, 0, "subjects")
    check_disjoint(folds)
    for _, members in table[table.family.notna()].groupby("family"):
        assert len({f.index for f in folds for s in members.index if s in f.test}) == 1
    assert max(len(f.test) for f in folds) <= 18


def test_a_family_at_two_sites_is_on_one_side():
    """Leave one site out: a person scanned at both would be in training and in test."""
    table = people(60)
    table["site"] = np.repeat(["north", "south", "west"], 20)
    table["diagnosis"] = "control"
    table["family"] = [f"person-{i % 20:02d}" if i % 20 < 5 else None for i in range(60)]
    folds = make_folds(table, 3, 0, "site")
    check_disjoint(folds, table)
    for f in folds:
        both = {*table.family.loc[list(f.train)].dropna()} & {*table.family.loc[list(f.test)].dropna()}
        assert not both
        assert (len(f.train), len(f.test)) == (30, 20)
    assert sorted(s for f in folds for s in f.test) == sorted(table.index)
    assert "up to 10 subjects a fold are in neither part" in split_remarks(table, folds)[0]
    careless = [Fold(f.index, tuple(s for s in table.index if s not in f.test), f.test) for f in folds]
    with pytest.raises(DataError, match=r"fold 0: 5 families are in training and in test, among them 'person-00'"):
        check_disjoint(careless, table)
    # Within recordings everybody is on both sides, on purpose.
    check_disjoint(make_folds(table, 2, 0, "within-recording"), table)


def test_no_column_at_all():
    folds = make_folds(people(10)[[]], 5, 0, "subjects")
    assert [len(f.test) for f in folds] == [2] * 5


def test_refusals_say_what_is_allowed():
    with pytest.raises(ConfigError, match=r"5 folds cannot be made of 3 subjects.*2 to 3 folds"):
        make_folds(people(3), 5, 0, "subjects")
    with pytest.raises(ConfigError, match=r"made of 2 families"):
        make_folds(people(9, family=["a"] * 5 + ["b"] * 4), 3, 0, "subjects")
    with pytest.raises(DataError, match=r"no subject to split"):
        make_folds(people(0), 2, 0, "subjects")
    with pytest.raises(ConfigError, match=r"1 fold cannot"):
        make_folds(people(9), 1, 0, "subjects")
    with pytest.raises(ConfigError, match=r"no split 'sites'.*subjects, site, within-recording"):
        make_folds(people(9), 2, 0, "sites")


def test_leave_one_site_out():
    site = ["a"] * 40 + ["b"] * 30 + ["c"] * 8 + ["d"] * 4
    table = people(82, site=site).drop(columns="diagnosis")
    folds = make_folds(table, 2, 0, "site")
    check_disjoint(folds)
    assert [sorted(set(table.site.loc[list(f.test)])) for f in folds] == [["a"], ["b"], ["c", "d"]]
    assert all(not set(table.site.loc[list(f.train)]) & set(table.site.loc[list(f.test)]) for f in folds)
    (remark,) = split_remarks(table, folds)
    assert "sites c, d are tested together" in remark


def test_sites_too_small_to_be_tested_only_train():
    table = people(75, site=["a"] * 40 + ["b"] * 30 + ["c"] * 5).drop(columns="diagnosis")
    folds = make_folds(table, 2, 0, "site")
    assert len(folds) == 2
    assert set(table.index[table.site == "c"]) <= set(folds[0].train) & set(folds[1].train)
    assert split_remarks(table, folds) == (
        "the 5 subjects of site c are in training only: too few to be tested on their own",
    )


def test_a_site_of_one_class_is_no_test_of_a_diagnosis():
    table = people(60, site=["a"] * 40 + ["b"] * 20, diagnosis=["x", "y"] * 20 + ["x"] * 20)
    folds = make_folds(table, 2, 0, "site")
    assert [set(table.site.loc[list(f.test)]) for f in folds] == [{"a"}]


def test_sites_are_needed():
    with pytest.raises(ConfigError, match=r"needs a column site.*--split subjects"):
        make_folds(people(30).drop(columns="site"), 2, 0, "site")
    with pytest.raises(ConfigError, match=r"no site to test.*only 30"):
        make_folds(people(30, site="only"), 2, 0, "site")


def test_ordinary_splits_need_no_remark():
    table = people(60)
    assert split_remarks(table, make_folds(table, 5, 0, "subjects")) == ()


def test_within_recording_leaves_a_gap():
    table = people(1)
    (fold,) = make_folds(table, 5, 0, "within-recording")
    assert fold.train == fold.test == ("sub-000",)
    assert fold.train_span[1] < fold.test_span[0]
    check_disjoint([fold])
    assert "the same people" in split_remarks(table, [fold])[0]


def test_overlap_is_an_error():
    with pytest.raises(DataError, match=r"1 subjects are in training and in test, among them 'b'"):
        check_disjoint([Fold(0, ("a", "b"), ("b", "c"))])
    with pytest.raises(DataError, match=r"overlap|training and in test"):
        check_disjoint([Fold(0, ("a",), ("a",), (0.0, 0.7), (0.6, 1.0))])
    with pytest.raises(DataError, match=r"'c' is tested twice, in folds 0 and 1"):
        check_disjoint([Fold(0, ("a",), ("c",)), Fold(1, ("b",), ("c",))])
    with pytest.raises(DataError, match=r"0 training"):
        check_disjoint([Fold(0, (), ("c",))])

"""A tenth of the null campaign of benchmarks/nulls.py, and proof that it would catch rules that lie."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks import nulls

REPEATS = 100


def allowed(n: int, share: float = 0.05) -> float:
    return float(stats.binom.ppf(0.999, n, share) / n)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_nothing_is_found_where_there_is_nothing(kind):
    found = [nulls.null_repeat(kind, r, 60, 3, 300, 200) for r in range(REPEATS)]
    for name in found[0]:
        declared = [f[name][0] for f in found if name in f]
        assert np.mean(declared) <= allowed(len(declared)), name
    # The interval alone would have been fooled by the sites: the campaign can fail.
    headline = "auroc" if kind == "classification" else "pearson_r"
    assert np.mean([f[headline][1] for f in found]) > 0.3


@pytest.mark.parametrize("metric", ["mae", "auroc", "balanced_accuracy", "sse"])
def test_equal_rows_are_rarely_told_apart(metric):
    told = [nulls.difference_repeat(metric, r, 60) for r in range(REPEATS)]
    for rule in ("interval", "p", "both"):
        assert np.mean([t[rule] for t in told]) <= allowed(REPEATS, 0.07), rule
    # Values that repeat cost the balanced accuracy some of its 5 %, and the others nothing.
    lost = 0.05 - np.mean([t["attainable"] for t in told])
    assert 0.003 < lost < 0.015 if metric == "balanced_accuracy" else lost < 0.001


def test_recordings_that_are_predicted_alike_are_no_signal():
    found = [nulls.window_repeat("windows", r, 20, 200, 99) for r in range(REPEATS)]
    for name in found[0]:
        assert np.mean([f[name][0] for f in found]) <= allowed(REPEATS), name
        assert np.mean([f[name][1] for f in found]) <= allowed(REPEATS), name


@pytest.mark.parametrize("metric", ["mae", "pearson_r", "auroc", "partial_r[age]"])
def test_intervals_cover(metric):
    covered = np.mean([nulls.coverage_repeat(metric, r, 80, 400) for r in range(REPEATS)])
    assert covered >= 1 - allowed(REPEATS, 0.07)


def test_the_whole_campaign_that_is_kept_meets_its_bar():
    kept = json.loads((Path(nulls.__file__).parent / "results" / "nulls.json").read_text(encoding="utf-8"))
    assert set(kept) == set(nulls.PARTS)
    for part in ("classification", "regression", "windows"):
        for name, c in kept[part]["found"].items():
            assert c["n"] >= 1000, name
            assert c["share"] <= c["bound"], (part, name)
    for name, d in kept["difference"]["found"].items():
        assert d["n"] >= 1000, name
        assert 0.03 <= d["both"] <= 0.07, name
        assert 0.03 <= d["interval"] <= 0.07, name
    for name, c in kept["coverage"]["found"].items():
        assert c["n"] >= 1000, name
        assert 0.92 <= c["share"] <= 0.97, name

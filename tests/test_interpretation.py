"""Stability of attributions over seeds and folds, and against their controls, on planted tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from neurobench import report_results
from neurobench.evidence import Evidence, write_table
from neurobench.interpretation import entropy_bits, expert_loads, spearman, stability
from neurobench.specimen_evidence import empty_evidence, simulated_evidence

SIZES = [3, 1, 4, 1, 5, 9, 2, 6]
GROUPS = [f"g{i}" for i in range(8)]


def planted(tmp_path: Path, values: dict[tuple[str, int, str], np.ndarray]) -> Evidence:
    """Return a run whose attributions of age are those given, by (row, seed, control)."""
    evidence = simulated_evidence(tmp_path, "fmri")
    for r in evidence.rows("age", kind=("pretrained", "untrained")).to_dict("records"):
        parts = [
            pd.DataFrame({"group": GROUPS, "control": control, "value": v, "fold_agreement": 0.25, "n_units": SIZES})
            for (row, seed, control), v in values.items()
            if row == r["row"] and seed == r["seed"]
        ]
        path = tmp_path / "evidence" / r["id"] / "attribution.parquet"
        if parts:
            # Another order of the groups in every file: names decide, not places.
            write_table(path, pd.concat(parts).sample(frac=1, random_state=int(r["seed"])))
        elif path.is_file():
            path.unlink()
    return replace(evidence, _cache={})


def test_seeds_and_controls(tmp_path: Path):
    rng = np.random.default_rng(0)
    a, b, untrained, labels = (rng.normal(size=8) for _ in range(4))
    evidence = planted(
        tmp_path,
        {
            ("mamba · roi", 0, ""): a,
            ("mamba · roi", 0, "labels"): labels,
            ("mamba · roi", 1, ""): b,
            ("mamba · untrained", 0, ""): untrained,
        },
    )
    table = stability(evidence, "age").set_index("row")
    own = table.loc["mamba · roi"]
    assert own["n_seeds"] == 2
    assert own["over_seeds"] == pytest.approx(stats.spearmanr(a, b).statistic)
    assert own["over_folds"] == 0.25
    assert own["randomised_weights"] == pytest.approx(stats.spearmanr(a, untrained).statistic)
    assert own["randomised_labels"] == pytest.approx(stats.spearmanr(a, labels).statistic)
    both = [stats.spearmanr(v, SIZES).statistic for v in (a, b)]
    assert own["group_size"] == pytest.approx(np.mean(both))
    assert np.isnan(table.loc["mamba · untrained", "over_seeds"]), "one seed has nothing to agree with"
    assert np.isnan(table.loc["mamba · untrained", "randomised_weights"]), "it is the control itself"


def test_what_says_nothing_is_not_a_number():
    assert np.isnan(spearman(np.ones(5), np.arange(5.0)))
    assert np.isnan(spearman(np.arange(2.0), np.arange(2.0)))
    assert spearman(np.array([1, 2, 3, np.nan]), np.array([2, 4, 9, 0.0])) == pytest.approx(1)


def test_nothing_attributed_is_an_empty_table(tmp_path: Path):
    assert not len(stability(planted(tmp_path, {}), "age"))


# ---------------------------------------------------------------- experts


def test_entropy_in_bits():
    np.testing.assert_allclose(entropy_bits(np.array([[0.25] * 4, [1, 0, 0, 0], [0.5, 0.5, 0, 0]])), [2, 0, 1])
    assert np.isnan(entropy_bits(np.array([np.nan, 0.5])))


def test_an_even_load_of_experts_that_tell_units_apart(tmp_path: Path):
    evidence = simulated_evidence(tmp_path, "fmri", n_seeds=1)
    own = evidence.rows("reconstruction", row="mamba · roi")["id"].iloc[0]
    apart = pd.DataFrame(
        [
            {"fold": fold, "unit": f"u{u}", "expert": e + 1, "share": float(e == (u + fold) % 4)}
            for fold in range(2)
            for u in range(8)
            for e in range(4)
        ]
    )
    # A unit that nobody has counts for nothing; another order of the rows is no other map.
    nobody = pd.DataFrame({"fold": 0, "unit": "u9", "expert": range(1, 5), "share": np.nan})
    write_table(
        tmp_path / "evidence" / own / "routing.parquet", pd.concat([apart, nobody]).sample(frac=1, random_state=0)
    )
    table = expert_loads(evidence, "reconstruction").set_index("row")
    found = table.loc["mamba · roi"]
    assert (found["n_experts"], found["n_folds"]) == (4, 2)
    np.testing.assert_allclose([found["load_bits"], found["unit_bits"], found["most_bits"]], [2, 0, 2])
    assert found["busiest"] == pytest.approx(0.25)
    control = table.loc["mamba · untrained"]
    np.testing.assert_allclose([control["load_bits"], control["unit_bits"]], [2, 2])
    assert not any(name.startswith("transformer") for name in table.index)
    assert not len(expert_loads(evidence, "age"))


def test_the_report_says_how_evenly_experts_are_used(tmp_path: Path):
    grid = report_results.experts_table(simulated_evidence(tmp_path, "fmri"))
    rows = {r[0]: r[1:] for r in grid.rows}
    assert rows["mamba · untrained"] == ["4", "2.00 of 2.00", "2.00", "25%"]
    # Half of the units .7 on the first expert, half .1: one of them is nobody's.
    first = (14 * 0.7 + 15 * 0.1) / 29
    assert rows["mamba · roi"][0] == "4"
    assert rows["mamba · roi"][3] == f"{first:.0%}"
    assert len(rows) == 4
    assert report_results.experts_table(empty_evidence(tmp_path / "empty")) is None

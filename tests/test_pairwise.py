"""Comparisons that travel where predictions may not: the same ranks, and everything that a forger might try."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.performance.board import invented, place, predictions, with_value
from neurobench.leaderboard import BoardError, read_board
from neurobench.leaderboard_site import build_leaderboard
from neurobench.leaderboard_text import DECLARED, gain, words
from neurobench.pairwise import MIN_SUBJECTS, PairwiseRecord, name_of, pairwise_record, problems
from neurobench.plugins import load_registry
from neurobench.publication import add_records
from neurobench.results import MetricRecord, Record, write_record

ERRORS = {"net · roi": 0.5, "net · random": 1.6, "ridge": 1.45, "mean": 3.2}


def clinic(out: Path, errors: dict[str, float], *, n_people: int = 60, seed: int = 0) -> dict[str, Record]:
    """Write an output folder of a cohort whose card lets only aggregates leave."""
    truth = 10 + 3 * np.random.default_rng(0).standard_normal(n_people)
    found = {}
    for n, (row, error) in enumerate(errors.items()):
        held_out, value = predictions(truth, error, 10 * seed + n)
        kind = "pretrained" if " · " in row else "baseline"
        closed = {"data__may_leave": "aggregates", "data__source": "real", "dataset": "clinic"}
        record = with_value(
            invented(row, kind, above_chance=error < 3, n_subjects=n_people, seed=seed, n_metrics=0, **closed), value
        )
        # Intervals of what is invented are too: these are roughly those of the errors.
        half = 1.96 * float((held_out["truth"] - held_out["prediction"]).abs().std()) / n_people**0.5
        head = record.metrics["mae"].model_copy(update={"low": value - half, "high": value + half})
        record = record.model_copy(update={"metrics": {"mae": head}}).hashed()
        write_record(out, record, held_out)
        found[record.id] = record
    return found


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Record], dict]:
    out = tmp_path_factory.mktemp("clinic")
    records = clinic(out, ERRORS)
    file = pairwise_record(out, list(records.values()))
    assert file is not None
    return records, file.model_dump(mode="json")


# ---------------------------------------------------------------- honest ones


def test_ranks_are_those_that_predictions_give(tmp_path: Path):
    records = clinic(tmp_path / "out", ERRORS)
    placed = add_records(tmp_path / "out", tmp_path / "closed" / "results", load_registry())
    assert (placed.n_records, placed.n_predictions, placed.n_compared) == (4, 0, 1)
    (table,) = read_board(tmp_path / "closed" / "results").tables
    for r in records.values():
        free = r.model_copy(update={"data": r.data.model_copy(update={"may_leave": "all"})}).hashed()
        place(tmp_path / "free", free, pd.read_parquet(tmp_path / "out" / "predictions" / f"{r.id}.parquet"))
    (wanted,) = read_board(tmp_path / "free").tables
    assert {x.name: x.rank for x in table.lines} == {x.name: x.rank for x in wanted.lines}
    assert table.lines[0].rank == (1, 1)
    assert gain(table) == gain(wanted)
    assert gain(table)[0] == "yes"
    assert table.travelled
    assert not wanted.travelled
    assert words(table) == f"{words(wanted)} {DECLARED}"
    assert {x.level for x in table.lines} == {"declared"}
    build_leaderboard(tmp_path / "closed" / "results")
    (page,) = (tmp_path / "closed" / "site" / "boards").glob("*.html")
    assert DECLARED in page.read_text(encoding="utf-8")
    rows = json.loads((tmp_path / "closed" / "site" / "data" / "leaderboard.json").read_text(encoding="utf-8"))
    assert {r["rank_verification"] for r in rows} == {"declared"}
    assert not list((tmp_path / "closed" / "results").rglob("*.parquet"))


def test_pages_say_who_compared_and_what_the_target_goes_with(tmp_path: Path):
    out, results = tmp_path / "out", tmp_path / "results"
    length = MetricRecord(value=-0.27, low=-0.37, high=-0.15, chance=None, higher_is_better=False, unit="")
    for r in clinic(tmp_path / "first", ERRORS).values():
        found = r.model_copy(update={"confounds": {"truth_r[duration_s]": length}}).hashed()
        write_record(out, found, pd.read_parquet(tmp_path / "first" / "predictions" / f"{r.id}.parquet"))
    add_records(out, results, load_registry())
    built = build_leaderboard(results)
    assert "Declared: the submitter compared them." in built.index.read_text(encoding="utf-8")
    (page,) = (tmp_path / "site" / "boards").glob("*.html")
    for path in (page, built.markdown):
        assert "The target itself goes with scan length: r -0.27, -0.37 to -0.15" in path.read_text(encoding="utf-8")


def test_rows_tested_on_another_split_are_not_compared(tmp_path: Path):
    out, ids = tmp_path / "out", []
    for r in clinic(tmp_path / "first", ERRORS).values():
        held_out = pd.read_parquet(tmp_path / "first" / "predictions" / f"{r.id}.parquet")
        if r.row == "net · roi":
            held_out["fold"] = held_out["fold"].to_numpy()[::-1]
        ids.append(r)
        write_record(out, r, held_out)
    file = pairwise_record(out, ids)
    assert file is not None
    assert {r.row for r in file.rows} == ERRORS.keys() - {"net · roi"}


def test_records_of_different_splits_or_of_nobody_have_no_comparisons(honest):
    records, plain = honest
    first = plain["rows"][0]["records"][0]
    other = records[first].protocol.model_copy(update={"fold_fingerprint": "f" * 64})
    changed = records | {first: records[first].model_copy(update={"protocol": other})}
    (said,) = problems(PairwiseRecord.of(plain), changed)
    assert said == "their records of one seed were tested on different splits"
    twins = {
        i: r.model_copy(update={"data": r.data.model_copy(update={"source": "simulated"})}) for i, r in records.items()
    }
    (said,) = problems(PairwiseRecord.of(plain), twins)
    assert "they are of simulated people" in said


def test_nothing_of_a_person_travels(honest):
    text = json.dumps(honest[1])
    assert "sub-" not in text
    for x in honest[1]["pairs"]:
        assert all(float(f"{x[k]:.4g}") == x[k] for k in ("low", "high", "se"))


def test_of_a_handful_of_people_no_comparison_travels(tmp_path: Path):
    records = clinic(tmp_path, ERRORS, n_people=MIN_SUBJECTS - 1)
    assert pairwise_record(tmp_path, list(records.values())) is None


def test_seeds_are_compared_as_pairs(tmp_path: Path):
    records = clinic(tmp_path, {"a · roi": 0.5, "b · roi": 1.0, "mean": 3.2})
    records |= clinic(tmp_path, {"a · roi": 0.6, "b · roi": 1.1}, seed=1)
    file = pairwise_record(tmp_path, list(records.values()))
    assert {r.row: len(r.records) for r in file.rows} == {"a · roi": 2, "b · roi": 2, "mean": 1}
    assert not list(problems(file, records))
    values = {(r.row, r.protocol.seed): r.metrics["mae"].value for r in records.values()}
    for x in file.pairs:
        ours, theirs = (file.rows[n].row for n in (x.first, x.second))
        seeds = [0] if "mean" in (ours, theirs) else [0, 1]
        assert x.difference == pytest.approx(np.mean([values[ours, s] - values[theirs, s] for s in seeds]))


def test_rows_of_two_submissions_stay_unranked_against_each_other(tmp_path: Path):
    clinic(tmp_path / "one", {"net · roi": 0.3, "ridge": 1.45, "mean": 3.2})
    clinic(tmp_path / "two", {"other · roi": 1.5, "zero": 3.3})
    for name in ("one", "two"):
        add_records(tmp_path / name, tmp_path / "results", load_registry())
    (table,) = read_board(tmp_path / "results").tables
    ranks = {x.name: x.rank for x in table.lines}
    assert ranks["net · roi"] == (1, 3), "ahead of its own two, and nobody knows of the others"
    assert ranks["other · roi"] == (1, 4)
    assert table.leader is None
    assert "6 pairs of rows were sent in apart and never compared" in words(table)


def test_a_record_outside_every_comparison_has_no_rank(tmp_path: Path):
    clinic(tmp_path / "out", ERRORS)
    add_records(tmp_path / "out", tmp_path / "results", load_registry())
    place(tmp_path / "results", next(iter(clinic(tmp_path / "late", {"late · roi": 0.1}).values())))
    (table,) = read_board(tmp_path / "results").tables
    assert table.unpaired == ("late · roi",)
    assert {x.name: x.rank for x in table.lines}["late · roi"] is None
    assert table.leader is None, "who is ahead of the others may be behind it"


# ---------------------------------------------------------------- forged ones


def _p(plain: dict) -> None:
    plain["pairs"][0]["p"] = 0.012345


def _significant(plain: dict) -> None:
    x = next(x for x in plain["pairs"] if abs(x["difference"]) < 0.5 * x["se"] * 1.96)
    x["p"] = 1 / 10_001


def _difference(plain: dict) -> None:
    for what in ("difference", "low", "high"):
        plain["pairs"][0][what] -= 0.2


def _turned(plain: dict) -> None:
    x = plain["pairs"][0]
    x["first"], x["second"] = x["second"], x["first"]


def _interval(plain: dict) -> None:
    plain["pairs"][0] |= {"low": plain["pairs"][0]["high"] - 0.001}


def _narrow(plain: dict) -> None:
    x = plain["pairs"][0]
    x |= {k: x["difference"] + (x[k] - x["difference"]) / 10 for k in ("low", "high")}


def _all_narrow(plain: dict) -> None:
    _narrow(plain)
    plain["pairs"][0]["se"] /= 10


def _missing(plain: dict) -> None:
    del plain["pairs"][1]


def _twice(plain: dict) -> None:
    plain["pairs"].append(dict(plain["pairs"][0]))


def _another(plain: dict) -> None:
    plain["rows"][0]["records"], plain["rows"][1]["records"] = plain["rows"][1]["records"], plain["rows"][0]["records"]


def _unknown(plain: dict) -> None:
    plain["rows"][0]["records"] = ["f" * 64]


def _subjects(plain: dict) -> None:
    plain["n_subjects"] += 1


FORGED: dict[Callable[[dict], None], str] = {
    _p: "exchanges of predictions cannot give",
    _significant: "standard errors",
    _difference: "and their records give",
    _turned: "and their records give",
    _interval: "does not hold",
    _narrow: "does not go with a standard error",
    _all_narrow: "than those of|does not go with those of its rows|standard errors",
    _missing: "not all pairs",
    _twice: "not all pairs",
    _another: "of another row",
    _unknown: "a record that is not here: ffffffffffff",
    _subjects: "number of subjects are not those",
}


@pytest.mark.parametrize("forge", FORGED, ids=lambda f: f.__name__[1:])
def test_forged_comparisons_are_refused_with_their_reason(forge, honest):
    records, plain = honest
    assert not list(problems(PairwiseRecord.of(plain), records))
    plain = copy.deepcopy(plain)
    forge(plain)
    found = list(problems(PairwiseRecord.of(plain), records))
    assert found
    assert any(part in found[0] for part in FORGED[forge].split("|")), found


@pytest.mark.parametrize(
    ("change", "says"),
    [({"p": 0.0}, "p"), ({"se": -1.0}, "se"), ({"low": float("nan")}, "low"), ({"extra": 1}, "extra")],
)
def test_what_is_no_comparison_is_no_comparison(change, says, honest):
    plain = copy.deepcopy(honest[1])
    plain["pairs"][0] |= change
    with pytest.raises(ValueError, match=rf"pairs\.0\.{says}"):
        PairwiseRecord.of(plain)


def test_a_board_is_not_built_with_forged_comparisons(tmp_path: Path):
    clinic(tmp_path / "out", ERRORS)
    add_records(tmp_path / "out", tmp_path / "results", load_registry())
    (path,) = (tmp_path / "results" / "invented" / "comparisons").iterdir()
    plain = json.loads(path.read_text())
    plain["pairs"][0]["se"] *= 1.001
    path.write_text(json.dumps(plain))
    with pytest.raises(BoardError, match="its name is not its hash"):
        read_board(tmp_path / "results")
    _difference(plain)
    path.unlink()
    forged = PairwiseRecord.of(plain)
    path.with_name(f"{name_of(forged)}.json").write_text(forged.as_text)
    with pytest.raises(BoardError, match="and their records give"):
        read_board(tmp_path / "results")

"""The board: what may lie among the records, what is ranked and what never is, the same bytes twice."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import neurobench
from benchmarks.performance.board import invented, place, predictions, with_value
from neurobench import comparisons, evidence, leaderboard
from neurobench.bundle import make_bundle, write_bundle
from neurobench.cli import app
from neurobench.errors import StoreError
from neurobench.leaderboard import BoardError, read_board
from neurobench.leaderboard_plots import LEFT, RIGHT, WIDTH, Axis, _place_labels
from neurobench.leaderboard_site import MANIFEST, build_leaderboard
from neurobench.leaderboard_text import gain, markdown, words
from neurobench.plausibility import impossible
from neurobench.plugins import load_registry
from neurobench.publication import Placed, add_records
from neurobench.results import read_record, write_record

ROOT = Path(__file__).parents[1]
TRUTH = 10 + 3 * np.random.default_rng(0).standard_normal(80)


def ranked(folder: Path, errors: dict[str, float], **changes) -> None:
    """Place rows with held-out predictions of these errors; the names of controls say what they are."""
    for n, (row, error) in enumerate(errors.items()):
        kind = "pretrained" if " · " in row else "baseline"
        held_out, value = predictions(TRUTH, error, n)
        record = invented(row, kind, above_chance=error < 3, **changes)
        place(folder, with_value(record, value), held_out)


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# ---------------------------------------------------------------- ranks


def test_ranks_come_from_pairs_on_the_same_subjects(tmp_path: Path):
    ranked(tmp_path, {"net · roi": 0.5, "net · random": 1.6, "ridge": 1.45, "mean": 3.2})
    (table,) = read_board(tmp_path).tables
    ranks = {line.name: line.rank for line in table.lines}
    assert table.lines[0].name == "net · roi"
    assert ranks["net · roi"] == (1, 1)
    assert ranks["net · random"] == ranks["ridge"] == (2, 3), "tied, whatever their scores"
    assert ranks["mean"] == (4, 4)
    assert table.leader is table.lines[0]
    assert words(table) == "net · roi is better than every other row."
    assert gain(table)[0] == "yes"


def test_what_is_not_above_chance_is_never_ahead(tmp_path: Path):
    ranked(tmp_path, {"net · roi": 3.1, "net · random": 6.0, "mean": 9.0})
    (table,) = read_board(tmp_path).tables
    assert all(line.rank == (1, 3) for line in table.lines)
    assert table.leader is None
    assert "No row is above chance" in words(table)
    assert markdown(read_board(tmp_path)).count("| no signal |") == 3


def test_many_rows_can_still_be_told_apart(tmp_path: Path):
    ranked(tmp_path, {"net · roi": 0.3} | {f"net{i} · roi": 2.0 for i in range(13)})
    (table,) = read_board(tmp_path).tables
    assert table.lines[0].rank == (1, 1), "a thousand exchanges are too few for Holm among 91 pairs"
    assert all(line.rank[0] > 1 for line in table.lines[1:])


def test_without_predictions_an_interval_declares_no_winner(tmp_path: Path):
    place(tmp_path, invented("net · roi", "pretrained", value=1.0))
    place(tmp_path, invented("mean", "baseline", value=9.0))
    (table,) = read_board(tmp_path).tables
    best, worst = table.lines
    assert best.high < worst.low, "their intervals are far apart"
    assert table.leader is None
    assert best.rank is worst.rank is None
    assert "Not ranked" in words(table)


def test_one_row_without_predictions_keeps_the_others_from_being_best_of_all(tmp_path: Path):
    ranked(tmp_path, {"net · roi": 0.5, "mean": 3.0})
    place(tmp_path, invented("net · block", "pretrained", value=1.0))
    (table,) = read_board(tmp_path).tables
    assert table.unpaired == ("net · block",)
    assert {line.name: line.rank for line in table.lines}["net · roi"] == (1, 1)
    assert table.leader is None
    assert words(table) == "net · roi is ahead of every row that can be compared; 1 row cannot."


def test_a_mask_outside_the_common_budget_is_shown_marked_and_never_ranked(tmp_path: Path):
    ranked(tmp_path / "results", {"net · random_grid": 0.2}, apart=["mask budget"])
    ranked(tmp_path / "results", {"net · roi": 0.5, "mean": 3.0})
    board = read_board(tmp_path / "results")
    (table,) = board.tables
    ranks = {line.name: line.rank for line in table.lines}
    assert table.lines[0].name == "net · random_grid", "it is shown among the others, by its score"
    assert ranks == {"net · random_grid": None, "net · roi": (1, 1), "mean": (2, 2)}
    assert table.leader is not None
    assert table.leader.name == "net · roi"
    assert words(table) == "net · roi is better than every other row on equal terms; 1 row (‡) not ranked."
    assert "net · random\\_grid ‡" in markdown(board)
    build_leaderboard(tmp_path / "results")
    (page,) = (tmp_path / "site" / "boards").glob("*.html")
    text = page.read_text(encoding="utf-8")
    assert text.count(">‡</abbr>") == 1
    assert "not ranked with the others: its mask is outside the common budget" in text


def test_who_claims_the_common_budget_has_to_have_kept_it():
    shares = {"hidden_fraction": 0.9, "scored_fraction": 0.9, "r2_own_mask": None, "r2_best_filler": None}
    losses = {"loss_first": None, "loss_last": None, "best_filler": "mean", "learned": None}
    said = {}
    for budgeted, apart in ((True, []), (False, ["mask budget"])):
        record = invented("net · roi", "pretrained", pretraining=shares | losses, apart=apart)
        said[budgeted] = [text for _, text in impossible(record) if "common budget" in text]
    assert said == {
        True: ["its mask is said to keep the common budget, and 90.0% of the tokens were scored, not 50%"],
        False: [],
    }


@pytest.mark.parametrize("change", [{"protocol__split": "within-recording"}, {"protocol__transductive": True}])
def test_some_protocols_are_shown_apart_and_never_ranked(tmp_path: Path, change):
    ranked(tmp_path / "results", {"net · roi": 0.5, "mean": 3.0})
    ranked(tmp_path / "results", {"net · roi": 0.5, "mean": 3.0}, **change)
    first, apart = read_board(tmp_path / "results").tables
    assert not first.withheld
    assert first.leader is not None
    assert apart.withheld
    assert all(line.rank is None for line in apart.lines)
    build_leaderboard(tmp_path / "results")
    (page,) = (tmp_path / "site" / "boards").glob("*.html")
    assert "Shown apart, not ranked" in page.read_text(encoding="utf-8")


def test_real_and_simulated_are_never_in_one_table(tmp_path: Path):
    place(tmp_path / "results", invented("net · roi", "pretrained"))
    place(tmp_path / "results", invented("net · block", "pretrained", data__source="real"))
    real, simulated = read_board(tmp_path / "results").tables
    assert (real.source, simulated.source) == ("real", "simulated")
    assert len(real.lines) == len(simulated.lines) == 1
    build_leaderboard(tmp_path / "results")
    assert len(list((tmp_path / "site" / "boards").glob("*.html"))) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"data__fingerprint": "another"},
        {"protocol__n_steps": 9},
        {"protocol__adaptation": "finetune"},
        {"protocol__objective": "latent"},
        {"protocol__objective": "reconstruction[ratio_to=0.8]"},
    ],
)
def test_other_people_or_another_protocol_are_another_table(tmp_path: Path, change):
    place(tmp_path, invented("net · roi", "pretrained"))
    place(tmp_path, invented("net · block", "pretrained", **change))
    assert [len(t.lines) for t in read_board(tmp_path).tables] == [1, 1]


def test_seeds_are_one_row_and_the_newest_record_counts(tmp_path: Path):
    place(tmp_path, invented("net · roi", "pretrained", value=4.0))
    place(tmp_path, invented("net · roi", "pretrained", value=5.0, seed=1))
    place(tmp_path, invented("net · roi", "pretrained", value=9.0, seed=1, written="2025-01-01T00:00:00Z"))
    (table,) = read_board(tmp_path).tables
    (line,) = table.lines
    assert line.score == pytest.approx(4.5)
    assert (line.low, line.high) == (pytest.approx(3.4), pytest.approx(5.6)), "the widest limits"
    assert [r.metrics["mae"].value for r in line.superseded] == [9.0]


def test_what_is_only_declared_takes_the_place_of_nothing_that_can_be_found_again(tmp_path: Path):
    ranked(tmp_path, {"net · roi": 0.5, "mean": 3.2})
    place(tmp_path, invented("net · roi", "pretrained", value=0.1, written="2099-01-01T00:00:00Z"))
    (table,) = read_board(tmp_path).tables
    line = next(x for x in table.lines if x.name == "net · roi")
    assert line.rank == (1, 1)
    assert [r.metrics["mae"].value for r in line.superseded] == [0.1]


def test_pretraining_is_ahead_only_of_what_it_beats_untrained_too(tmp_path: Path):
    for folder, error in (("better", 1.6), ("as good", 0.52)):
        results = tmp_path / folder
        ranked(results, {"net · roi": 0.5, "mean": 3.0})
        held_out, value = predictions(TRUTH, error, 7)
        record = invented("net · untrained", "untrained", above_chance=True)
        place(results, with_value(record, value), held_out)
    words = {folder: gain(read_board(tmp_path / folder).tables[0]) for folder in ("better", "as good")}
    assert words["better"][0] == "yes"
    assert words["as good"] == (
        "not shown",
        "Better than mean, but not shown to be better than the same network untrained: net · roi.",
    )


# ---------------------------------------------------------------- what may not lie there


def test_anything_else_is_refused_by_name(tmp_path: Path):
    path = place(tmp_path, invented("net · roi", "pretrained"))
    for name, content in {
        "participants.tsv": "participant_id\tage\nsub-01\t33\n",
        "note.json": '{"hello": 1}',
        "deep/er.json": "{}",
        ".hidden": "",
        "predictions/unknown.parquet": "",
    }.items():
        other = path.parent / name
        other.parent.mkdir(exist_ok=True)
        other.write_text(content)
        with pytest.raises(BoardError, match=re.escape(name.partition("/")[0])):
            read_board(tmp_path)
        other.unlink()
        if other.parent != path.parent:
            other.parent.rmdir()
    read_board(tmp_path)


def test_a_changed_or_renamed_record_is_refused(tmp_path: Path):
    path = place(tmp_path, invented("net · roi", "pretrained", value=5.0))
    whole = path.read_text()
    path.write_text(whole.replace('"value": 5.0', '"value": 1.0'))
    with pytest.raises(BoardError, match="was changed"):
        read_board(tmp_path)
    path.unlink()
    path.with_name("abc.json").write_text(whole)
    with pytest.raises(BoardError, match=r"abc\.json"):
        read_board(tmp_path)


def test_a_record_of_another_suite_is_refused(tmp_path: Path):
    path = place(tmp_path, invented("net · roi", "pretrained"))
    (tmp_path / "core-v1").mkdir()
    shutil.move(path, tmp_path / "core-v1" / path.name)
    path.parent.rmdir()
    with pytest.raises(BoardError, match=r"is of the suite 'invented'"):
        read_board(tmp_path)


def test_rows_of_restricted_people_never_enter(tmp_path: Path):
    held_out, value = predictions(TRUTH, 1.0, 0)
    record = invented("net · roi", "pretrained", data__source="real", data__may_leave="aggregates")
    place(tmp_path, with_value(record, value), held_out)
    with pytest.raises(BoardError, match="only aggregates leave"):
        read_board(tmp_path)


def test_predictions_of_another_score_are_refused(tmp_path: Path):
    ranked(tmp_path, {"mean": 3.0})
    held_out, value = predictions(TRUTH, 1.0, 0)
    place(tmp_path, with_value(invented("net · roi", "pretrained"), value - 0.5), held_out)
    with pytest.raises(BoardError, match="gives a MAE of"):
        read_board(tmp_path)


def test_placing_leaves_restricted_predictions_behind(tmp_path: Path):
    held_out, _ = predictions(TRUTH, 1.0, 0)
    free = invented("net · roi", "pretrained")
    kept = invented("net · roi", "pretrained", dataset="clinic", data__may_leave="aggregates", data__source="real")
    named = invented("net · roi", "pretrained", dataset="ward", data__may_leave="predictions", data__source="real")
    named = named.model_copy(
        update={"environment": {**named.environment, "command": "neurobench run --out /home/me/x"}}
    )
    for record in (free, kept, named):
        write_record(tmp_path / "out", record, held_out)
    assert add_records(tmp_path / "out", tmp_path / "results", load_registry()) == Placed(3, 1, 1)
    placed = read_record(tmp_path / "results" / "invented" / f"{named.id}.json")
    assert placed.environment["command"] == "neurobench run --out …/x"
    assert [p.stem for p in (tmp_path / "results" / "invented" / "predictions").iterdir()] == [free.id]


def test_the_two_commands_from_a_run_to_a_page(tmp_path: Path):
    write_record(tmp_path / "out", invented("net · roi", "pretrained"))
    results = str(tmp_path / "board" / "results")
    placed = CliRunner().invoke(app, ["leaderboard", "add", str(tmp_path / "out"), "--results", results])
    assert placed.exit_code == 0, placed.output
    assert "1 record placed" in placed.output
    built = CliRunner().invoke(app, ["leaderboard", "build", "--results", results])
    assert built.exit_code == 0, built.output
    assert "1 record · 1 table · 3 pages" in built.output
    assert (tmp_path / "board" / "site" / "index.html").is_file()
    assert "net · roi" in (tmp_path / "board" / "LEADERBOARD.md").read_text(encoding="utf-8")
    empty = CliRunner().invoke(app, ["leaderboard", "add", str(tmp_path / "nothing"), "--results", results])
    assert empty.exit_code == 1
    assert "holds no records" in empty.output


def test_a_record_of_no_suite_is_not_placed(tmp_path: Path):
    write_record(tmp_path / "out", invented("net · roi", "pretrained", protocol__suite=""))
    with pytest.raises(StoreError, match="is of no suite"):
        add_records(tmp_path / "out", tmp_path / "results", load_registry())
    assert not (tmp_path / "results").exists()


# ---------------------------------------------------------------- files


def test_the_same_records_give_the_same_bytes(tmp_path: Path):
    ranked(tmp_path / "a" / "results", {"net · roi": 0.5, "net · random": 1.6, "mean": 3.0})
    shutil.copytree(tmp_path / "a" / "results", tmp_path / "b" / "elsewhere" / "results")
    build_leaderboard(tmp_path / "a" / "results")
    build_leaderboard(tmp_path / "b" / "elsewhere" / "results")
    first = everything(tmp_path / "a")
    assert first == everything(tmp_path / "b" / "elsewhere")
    assert not any(str(tmp_path).encode() in content for content in first.values())
    build_leaderboard(tmp_path / "a" / "results")
    assert everything(tmp_path / "a") == first


def test_what_was_verified_is_kept_by_its_bytes(tmp_path: Path, monkeypatch):
    results, cache, registry = tmp_path / "results", tmp_path / ".verified.json", load_registry()
    ranked(results, {"net · roi": 0.5, "net · random": 1.6, "mean": 3.0})
    counted = []
    whole = leaderboard._recompute
    monkeypatch.setattr(leaderboard, "_recompute", lambda *a: counted.append(a) or whole(*a))

    def ranks() -> dict:
        (table,) = read_board(results, registry, cache=cache).tables
        return {x.name: (x.rank, x.level) for x in table.lines} | {"": (gain(table), words(table), table.unpaired)}

    first = ranks()
    assert ranks() == first
    assert len(counted) == 1, "the same bytes are computed once"
    cache.write_text('{"a": 1')
    assert ranks() == first
    assert len(counted) == 2, "what cannot be read is nothing"
    monkeypatch.setattr(leaderboard, "_code", lambda _: "other code")
    assert ranks() == first
    assert len(counted) == 3
    beside = next((results / "invented" / "predictions").iterdir())
    held_out, _ = predictions(TRUTH, 1.0, 9)
    held_out.to_parquet(beside, index=False)
    with pytest.raises(BoardError, match="gives a MAE of"):
        ranks()


def test_predictions_are_read_and_built_once(tmp_path: Path, monkeypatch):
    ranked(tmp_path, {"net · roi": 0.5, "net · random": 1.6, "ridge": 1.45, "mean": 3.0})
    read, built = Counter(), []
    read_table, row_of = evidence.read_table, leaderboard.row_of
    for module in (leaderboard, evidence):
        monkeypatch.setattr(module, "read_table", lambda path: read.update([path.stem]) or read_table(path))
    for module in (leaderboard, comparisons):
        monkeypatch.setattr(module, "row_of", lambda *a: built.append(a) or row_of(*a))
    (table,) = read_board(tmp_path, load_registry()).tables
    assert table.ranked
    # Families are those of the first row's people, which are read for it again.
    assert sorted(read.values()) == [1, 1, 1, 2]
    assert len(built) == 4


def test_rows_are_compared_on_one_metric_whatever_a_record_calls_its_headline(tmp_path: Path):
    errors = {"net · roi": 0.5, "net · random": 1.6, "mean": 3.0}
    ranked(tmp_path / "honest", errors)
    ranked(tmp_path / "other", errors)
    path = next(p for p in (tmp_path / "other" / "invented").glob("*.json") if read_record(p).row == "net · random")
    record = read_record(path)
    held_out = pd.read_parquet(path.parent / "predictions" / f"{record.id}.parquet")
    gone = held_out["truth"] - held_out["prediction"]
    r2 = 1 - float((gone**2).sum() / ((held_out["truth"] - held_out["train_mean"]) ** 2).sum())
    head = record.metrics["mae"].model_copy(update={"value": r2, "low": r2, "high": r2, "higher_is_better": True})
    changed = record.model_copy(update={"headline": "r2", "metrics": record.metrics | {"r2": head}}).hashed()
    path.write_text(changed.as_text, encoding="utf-8")
    honest, other = (read_board(tmp_path / name).tables[0] for name in ("honest", "other"))
    assert {x.name: x.rank for x in other.lines} == {x.name: x.rank for x in honest.lines}


@pytest.mark.slow
def test_tables_that_are_verified_in_other_processes_are_the_same(tmp_path: Path, monkeypatch):
    for n in range(4):
        ranked(tmp_path, {"net · roi": 0.5, "mean": 3.0 + n}, task=f"task{n}")
    whole = markdown(read_board(tmp_path, load_registry()))
    monkeypatch.setattr(leaderboard, "PARALLEL_FROM_S", 0.0)
    monkeypatch.setattr("joblib.cpu_count", lambda: 2)
    assert markdown(read_board(tmp_path, load_registry())) == whole
    beside = next((tmp_path / "invented" / "predictions").iterdir())
    predictions(TRUTH, 1.0, 9)[0].to_parquet(beside, index=False)
    with pytest.raises(BoardError, match="gives a MAE of"):
        read_board(tmp_path, load_registry())


def test_what_a_build_believes_comes_with_no_commit(tmp_path: Path, monkeypatch):
    ranked(tmp_path / "in" / "results", {"net · roi": 0.5, "mean": 3.0})
    build_leaderboard(tmp_path / "in" / "results")
    assert not list(tmp_path.rglob("*verified*")), "nothing is kept outside of a clone"
    (tmp_path / ".git").mkdir()
    build_leaderboard(tmp_path / "in" / "results")
    (kept,) = tmp_path.rglob("*verified*")
    assert kept.parent == tmp_path / ".git", "where no commit can place a file"
    monkeypatch.setattr(leaderboard, "_recompute", None)
    build_leaderboard(tmp_path / "in" / "results")
    # What lies beside the records is a stranger's.
    (tmp_path / "in" / ".verified.json").write_bytes(kept.read_bytes())
    (tmp_path / "in" / kept.name).write_bytes(kept.read_bytes())
    kept.unlink()
    with pytest.raises(TypeError):
        build_leaderboard(tmp_path / "in" / "results")


def test_what_is_no_longer_made_goes_and_what_is_not_ours_stays(tmp_path: Path):
    results = tmp_path / "results"
    gone = place(results, invented("net · block", "pretrained", task="sex"))
    place(results, invented("net · roi", "pretrained"))
    build_leaderboard(results)
    before = set(everything(tmp_path / "site"))
    (tmp_path / "site" / "CNAME").write_text("board.example")
    gone.unlink()
    build_leaderboard(results)
    after = set(everything(tmp_path / "site"))
    assert "CNAME" in after
    assert {n for n in before - after if n.startswith("rows/")}
    assert after - {"CNAME"} == set((tmp_path / "site" / MANIFEST).read_text().split())


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path):
    place(tmp_path / "results", invented("net · roi", "pretrained"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("x")
    found = CliRunner().invoke(
        app, ["leaderboard", "build", "--results", str(tmp_path / "results"), "--site", str(tmp_path / "home")]
    )
    assert found.exit_code == 1
    assert "no build has made" in found.output
    assert [p.name for p in (tmp_path / "home").iterdir()] == ["thesis.tex"]


EVIL = "<script>alert(1)</script>"


class _Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))


def test_names_are_text_and_nothing_else(tmp_path: Path):
    row = f'{EVIL} · "><img src=x onerror=alert(1)>|`x`'
    record = invented(
        row,
        "pretrained",
        task=f"target:{EVIL}",
        dataset="../../evil",
        notes=[EVIL],
        error="",
        environment={"command": f"=cmd() {EVIL}", "python": EVIL},
    )
    place(tmp_path / "results", record)
    place(tmp_path / "results", invented("=HYPERLINK(1)", "baseline", task=f"target:{EVIL}", dataset="../../evil"))
    build_leaderboard(tmp_path / "results")
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) == 4
    for page in pages:
        tags = _Tags(page.read_text(encoding="utf-8")).seen
        scripts = [a.get("src") for t, a in tags if t == "script"]
        assert all(s and s.split("/")[-1] in ("theme.js", "board.js", "dataTables.min.js") for s in scripts)
        assert not [t for t, a in tags if t == "img" or any(k.startswith("on") for k in a)]
    text = (tmp_path / "LEADERBOARD.md").read_text(encoding="utf-8")
    assert "<script" not in text.replace("\\<script", "")
    lines = [line for line in text.splitlines() if line.startswith("| –")]
    assert len(lines) == 2
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 8 for line in lines), "a name opens no column"
    cells = csv.reader(io.StringIO((tmp_path / "site" / "data" / "leaderboard.csv").read_text(encoding="utf-8")))
    assert not [c for row in cells for c in row if c.startswith("=")], "a spreadsheet computes nothing"


def test_pages_refer_to_files_that_are_there_and_to_nothing_outside(tmp_path: Path):
    ranked(tmp_path / "results", {"net · roi": 0.5, "net · random": 1.6, "other · roi": 2.0, "mean": 3.0})
    build_leaderboard(tmp_path / "results")
    for page in (tmp_path / "site").rglob("*.html"):
        for _, attrs in _Tags(page.read_text(encoding="utf-8")).seen:
            for address in (attrs.get("href"), attrs.get("src")):
                if address and not address.startswith(("#", "data:")):
                    assert (page.parent / address.partition("#")[0]).is_file(), address


def test_downloads_hold_what_the_tables_show(tmp_path: Path):
    ranked(tmp_path / "results", {"net · roi": 0.5, "mean": 3.0})
    build_leaderboard(tmp_path / "results")
    data = tmp_path / "site" / "data"
    rows = json.loads((data / "leaderboard.json").read_text(encoding="utf-8"))
    table = read_board(tmp_path / "results").tables[0]
    assert [r["row"] for r in rows] == [line.name for line in table.lines]
    assert [r["score"] for r in rows] == [line.score for line in table.lines]
    assert [(r["rank_first"], r["rank_last"]) for r in rows] == [(1, 1), (2, 2)]
    assert {(r["verification"], r["rank_verification"]) for r in rows} == {("declared", "recomputed")}
    again = csv.DictReader(io.StringIO((data / "leaderboard.csv").read_text(encoding="utf-8")))
    assert [float(r["score"]) for r in again] == [r["score"] for r in rows]


def test_an_axis_is_cut_where_one_row_would_squash_the_others():
    axis = Axis.of([(0.1, 0.2, 0.3), (-9.2, -9.0, -8.8)], 0.0, higher=True)
    assert axis.low > -0.5
    assert axis.mark(-9.2, -9.0, -8.8)["outside"] == "left"
    assert axis.mark(0.1, 0.2, 0.3)["outside"] == ""
    assert axis.mark(math.nan, math.nan, math.nan) is None
    # Where most are behind chance, they are no few that squash others.
    below = [(0.2 + i / 100, 0.33 + i / 100, 0.5 + i / 100) for i in range(8)]
    axis = Axis.of(below, 0.5, higher=True)
    assert [axis.mark(*span)["outside"] for span in below].count("left") <= 2


def test_failed_rows_are_named_and_cost_nothing_else(tmp_path: Path):
    place(tmp_path / "results", invented("net · roi", "pretrained"))
    failed = {"status": "failed", "error": "MemoryError: no", "metrics": {}, "per_fold": {}}
    place(tmp_path / "results", invented("net · block", "pretrained", **failed))
    place(tmp_path / "results", invented("net · future", "pretrained", data=None, **failed))
    board = read_board(tmp_path / "results")
    assert [line.name for line in board.tables[0].failed] == ["net · block"]
    assert len(board.lost["invented"]) == 1
    build_leaderboard(tmp_path / "results")
    assert "MemoryError" in (tmp_path / "LEADERBOARD.md").read_text(encoding="utf-8")
    assert "MemoryError" in (tmp_path / "site" / "index.html").read_text(encoding="utf-8")


# ---------------------------------------------------------------- what is published


@pytest.mark.slow
def test_the_published_board_is_what_its_records_give(tmp_path: Path):
    shutil.copytree(ROOT / "leaderboard" / "results", tmp_path / "results")
    build_leaderboard(tmp_path / "results")
    made = ("LEADERBOARD.md", "results/", "site/")
    found = {n: b for n, b in everything(tmp_path).items() if n.startswith(made)}
    published = {n: b for n, b in everything(ROOT / "leaderboard").items() if n.startswith(made)}
    assert sorted(found) == sorted(published)
    assert [n for n in found if found[n] != published[n]] == []
    n_records = sum(n.startswith("results/") and n.count("/") == 2 for n in published)
    assert sum(map(len, published.values())) < 50_000 * n_records, "a clone stays small"


# ---------------------------------------------------------------- what was done to believe it


def test_numbers_that_follow_from_the_predictions_are_said_to(tmp_path: Path):
    out = tmp_path / "out"
    suite = tmp_path / "tiny.yaml"
    suite.write_text("backbones: transformer\nmasks: none\ndatasets: adhd200\ntasks: [age]\nn_subjects: 24\n")
    neurobench.run(suite=suite, out=out)
    registry = load_registry()
    add_records(out, tmp_path / "results", registry)
    (table,) = read_board(tmp_path / "results", registry).tables
    assert {line.level for line in table.lines} == {"recomputed"}
    # Without the task that scored them, or without predictions, nobody can say so.
    assert {line.level for line in read_board(tmp_path / "results").tables[0].lines} == {"declared"}
    taken = next((tmp_path / "results" / "tiny" / "predictions").iterdir())
    taken.rename(tmp_path / "kept.parquet")
    levels = {r.id: x.level for x in read_board(tmp_path / "results", registry).tables[0].lines for r in x.records}
    assert levels.pop(taken.stem) == "declared"
    assert set(levels.values()) == {"recomputed"}
    # Predictions that give the score and nothing else of the record are not its own.
    (tmp_path / "kept.parquet").rename(taken)
    path = tmp_path / "results" / "tiny" / f"{taken.stem}.json"
    record = read_record(path)
    metrics = {n: m.model_copy(update={"high": (m.high or 0.0) + 0.5}) for n, m in record.metrics.items()}
    path.write_text(json.dumps(record.model_copy(update={"metrics": metrics}).hashed().model_dump(mode="json")))
    with pytest.raises(BoardError, match="does not give the numbers of its record"):
        read_board(tmp_path / "results", registry)


def test_a_bundle_is_placed_if_it_is_believed(tmp_path: Path):
    suite = tmp_path / "tiny.yaml"
    suite.write_text("backbones: transformer\nmasks: none\ndatasets: adhd200\ntasks: [age]\nn_subjects: 24\n")
    neurobench.run(suite=suite, out=tmp_path / "out")
    registry = load_registry()
    write_bundle(make_bundle(tmp_path / "out", registry), tmp_path / "sent")
    placed = add_records(tmp_path / "sent", tmp_path / "results", registry)
    assert placed.n_records == placed.n_predictions > 5
    (table,) = read_board(tmp_path / "results", registry).tables
    assert {line.level for line in table.lines} == {"recomputed"}
    # The same again changes nothing; what was tampered with is refused.
    before = everything(tmp_path / "results")
    add_records(tmp_path / "sent", tmp_path / "results", registry)
    assert everything(tmp_path / "results") == before
    beside = next((tmp_path / "results" / "tiny" / "predictions").iterdir())
    beside.write_bytes(b"as they were accepted")
    add_records(tmp_path / "sent", tmp_path / "results", registry)
    assert beside.read_bytes() == b"as they were accepted", "other predictions can give the same scores"
    victim = next((tmp_path / "sent" / "records").iterdir())
    victim.write_text(victim.read_text(encoding="utf-8").replace('"n_subjects": 24', '"n_subjects": 25'))
    with pytest.raises(BoardError, match="is not believed"):
        add_records(tmp_path / "sent", tmp_path / "elsewhere", registry)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("crowded", ["left", "right"])
def test_the_line_of_chance_is_named_where_no_point_lies(crowded: str) -> None:
    axis = Axis(0.0, 10.0, chance=5.0)
    x = LEFT + 10 if crowded == "left" else WIDTH - RIGHT - 10
    row = SimpleNamespace(name="x" * 99)
    points = [{"x": x, "y": y, "front": False, "line": row} for y in (140.0, 150.0)]
    found = _place_labels(points, axis)
    assert found is not None
    assert found["anchor"] == ("end" if crowded == "left" else "start")
    assert _place_labels(points, Axis(0.0, 1.0, math.nan)) is None

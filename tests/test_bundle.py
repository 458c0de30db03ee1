"""Submissions: what leaves the machine, what is believed, and everything that a forger might try."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import neurobench
from neurobench.bundle import LIMITS, MANIFEST, _Pseudonyms, make_bundle, write_bundle, zip_bytes
from neurobench.bundle_reader import parse_folds, parse_strict, parse_table, read_bundle
from neurobench.cli import app
from neurobench.errors import BundleError
from neurobench.leaderboard import BoardError, read_board
from neurobench.plugins import load_registry
from neurobench.publication import add_records
from neurobench.records import Finding
from neurobench.repetition import Again
from neurobench.results import content_hash
from neurobench.verification import verify
from tests.forger import (
    Files,
    everywhere,
    judged,
    named,
    of_task,
    refused,
    renamed,
    scored_again,
    sealed,
    text_of,
    warned,
    with_means,
    with_record,
    with_rows,
)


@pytest.fixture(scope="module")
def registry():
    return load_registry()


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("submit") / "out"
    neurobench.run(
        backbone="transformer",
        mask="roi",
        dataset="adhd200",
        n_subjects=24,
        n_steps=3,
        task="age,diagnosis,reconstruction",
        out=folder,
    )
    return folder


@pytest.fixture(scope="module")
def honest(out: Path, registry) -> Files:
    return dict(make_bundle(out, registry).files)


@pytest.fixture(scope="module")
def ages(honest: Files) -> Files:
    return of_task(honest, "age")


@pytest.fixture(scope="module")
def diagnoses(honest: Files) -> Files:
    return of_task(honest, "diagnosis")


@pytest.fixture(scope="module")
def lone(honest: Files) -> Files:
    """One record, for what is wrong with the archive around it."""
    return of_task(honest, "age", ("mean",))


@pytest.fixture(scope="module")
def real(out: Path, registry, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The twin's files given as if they were somebody's own: what a run on recordings leaves behind."""
    data = next((out / "store" / "twin").glob("*/data"))
    folder = tmp_path_factory.mktemp("real") / "out"
    neurobench.run(
        backbone="transformer",
        mask="roi",
        dataset="adhd200",
        data_dir=data,
        n_steps=3,
        task="age,diagnosis",
        out=folder,
    )
    return folder


# ---------------------------------------------------------------- what fits itself and is no truth


def test_sites_and_ages_of_one_row_that_are_not_those_of_the_others(diagnoses: Files, tmp_path: Path, registry):
    net = named(diagnoses, "transformer · roi", "diagnosis")

    def sites(rows):
        for k, row in enumerate(rows):
            row["site"] = "AB"[k % 2]

    forged = scored_again(with_rows(diagnoses, net, sites), registry, [net])
    refused(judged(forged, tmp_path, registry), "people", "another site of a person")

    def older(rows):
        for row in rows:
            row["age"] = str(float(row["age"]) + float(row["prediction"]))

    forged = scored_again(with_rows(diagnoses, net, older), registry, [net])
    refused(judged(forged, tmp_path, registry), "people", "another age of a person")

    def gone(rows):
        for row in rows:
            del row["site"]

    forged = scored_again(with_rows(diagnoses, net, gone), registry, [net])
    refused(judged(forged, tmp_path, registry), "swapped", "not the same columns of people (site)")


def test_another_target_in_every_row(ages: Files, diagnoses: Files, out: Path, tmp_path: Path, registry):
    def years(rows):
        for k, row in enumerate(rows):
            row["truth"] = str(20.0 + k)

    refused(judged(everywhere(ages, registry, years), tmp_path, registry), "people", "another age of a person")

    def classes(rows):
        for k, row in enumerate(rows):
            row["truth"] = str(float(k % 2))
        with_means(rows)

    # What the class of a person is a twin can say, and an accepted record.
    forged = everywhere(diagnoses, registry, classes)
    refused(judged(forged, tmp_path, registry), "twin", "another truth of diagnosis")
    i = named(diagnoses, "mean", "diagnosis")
    accepted = tmp_path / "results" / "core"
    (accepted / "predictions").mkdir(parents=True)
    (accepted / f"{i}.json").write_bytes(diagnoses[f"records/{i}.json"])
    shutil.copy(out / "predictions" / f"{i}.parquet", accepted / "predictions")
    refused(judged(forged, tmp_path, registry, against=accepted.parent), "people", "another truth of diagnosis")
    honest = judged(diagnoses, tmp_path, registry, against=accepted.parent)
    assert honest.exit_code != 1, honest.findings


def test_people_who_do_badly_left_out_of_every_row(ages: Files, out: Path, tmp_path: Path, registry):
    def best(rows):
        rows[:] = sorted(rows, key=lambda r: abs(float(r["truth"]) - float(r["train_mean"])))[:19]
        with_means(rows)

    forged = everywhere(ages, registry, best)
    refused(judged(forged, tmp_path, registry), "twin", "5 people are not scored who have a value")
    i = named(ages, "mean", "age")
    (tmp_path / "results" / "predictions").mkdir(parents=True)
    (tmp_path / "results" / f"{i}.json").write_bytes(ages[f"records/{i}.json"])
    shutil.copy(out / "predictions" / f"{i}.parquet", tmp_path / "results" / "predictions")
    verdict = judged(forged, tmp_path, registry, against=tmp_path / "results")
    refused(verdict, "people", "5 people are not scored on age who are in an accepted record")


def test_seeds_that_were_chosen(ages: Files, tmp_path: Path, registry):
    net = named(ages, "transformer · roi", "age")

    def again(plain, identity):
        plain["protocol"]["seed"] = 1
        if "seed" in identity:
            identity["seed"] = 1

    forged, _ = renamed(ages, net, again)
    warned(judged(forged, tmp_path, registry), "seeds", "lacks seed")


def test_baselines_that_are_not_shown(ages: Files, tmp_path: Path, registry):
    rows = ("mean", "transformer · untrained", "transformer · roi")
    forged = scored_again(of_task(ages, "age", rows), registry)
    warned(judged(forged, tmp_path, registry), "baselines", "age on adhd200 lacks connectome, connectome_kernel")


def test_names_that_are_others(ages: Files, tmp_path: Path, registry):
    net = named(ages, "transformer · roi", "age")

    def borrowed(plain, identity):
        plain["row"] = "mamba · roi"
        if "row" in identity:
            identity["row"] = plain["row"]

    forged, _ = renamed(ages, net, borrowed)
    refused(judged(forged, tmp_path, registry), "name", "row mamba · roi is not named after what it was made with")

    def own(name: str, plain, identity):
        plain["row"] = f"{name} · roi"
        plain["backbone"] |= {"name": name, "label": name, "distribution": "mine"}
        if "row" in identity:
            identity["row"] = plain["row"]
        if "backbone" in identity:
            identity["backbone"] |= {"name": name, "distribution": "mine"}

    # A Cyrillic letter.
    forged, _ = renamed(ages, net, partial(own, "tr\u0430nsformer"))
    refused(judged(forged, tmp_path, registry), "name", "'tr\\u0430nsformer' is no name of a component")
    forged, i = renamed(ages, net, partial(own, "best"))
    twice = sealed(ages | {n: c for n, c in forged.items() if i in n})
    refused(judged(twice, tmp_path, registry), "one-run", "one run under two names")


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        (lambda p: p.update(above_chance=not p["above_chance"]), "value", "whether it is above chance"),
        (lambda p: p.update(p_value_refit=0.001), "value", "refitted 0 times, and it has a p-value"),
        (lambda p: p.update(written="2099-01-01T00:00:00Z"), "value", "written in the future"),
        (lambda p: p.update(written="yesterday"), "value", "no moment"),
        (lambda p: p["cost"].update(seconds=-1.0), "value", "less than nothing"),
        (
            lambda p: p["pretraining"].update(learned=not p["pretraining"]["learned"]),
            "value",
            "reached the best filler",
        ),
        (lambda p: p.update(pretraining=None), "name", "or is of another kind"),
        (lambda p: p["metrics"]["mae"].update(value="5.0"), "schema", "metrics.mae.value"),
        (lambda p: p["metrics"]["mae"].update(value="NaN"), "schema", "metrics.mae.value"),
        (lambda p: p.update(n_subjects=True), "schema", "n_subjects"),
    ],
)
def test_what_a_record_says_of_itself(change, code: str, says: str, ages: Files, tmp_path: Path, registry):
    forged = with_record(ages, named(ages, "transformer · roi", "age"), change)
    refused(judged(forged, tmp_path, registry), code, says)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda p: p["metrics"]["mae"].update(unit="months"), "another unit or direction"),
        (lambda p: p["metrics"]["mae"].update(higher_is_better=True), "another unit or direction"),
        (lambda p: p.update(headline="pearson_r"), "the task's is mae"),
        (lambda p: p["metrics"].update(magic=p["metrics"]["mae"]), "magic is given"),
        (lambda p: p["metrics"].pop("r2"), "r2 is missing"),
    ],
)
def test_metrics_without_predictions_are_those_of_the_task(change, says, ages: Files, tmp_path: Path, registry):
    net = named(ages, "transformer · roi", "age")
    declared = sealed({n: c for n, c in ages.items() if n != f"predictions/{net}.csv"})
    refused(judged(with_record(declared, net, change), tmp_path, registry), "task", says)


def test_intervals_that_are_too_narrow_for_so_few(diagnoses: Files, tmp_path: Path, registry):
    net = named(diagnoses, "transformer · roi", "diagnosis")
    declared = sealed({n: c for n, c in diagnoses.items() if n != f"predictions/{net}.csv"})

    def narrow(p):
        half = {"value": 0.5, "low": 0.48, "high": 0.52, "above_chance": False}
        for name in ("balanced_accuracy", "sensitivity", "specificity"):
            p["metrics"][name] |= half

    warned(judged(with_record(declared, net, narrow), tmp_path, registry), "value", "half as wide as one of 23")
    assert not any("half as wide" in f.message for f in judged(declared, tmp_path, registry).findings)


def test_another_numpy_is_told_for_it_loosens_what_is_held(ages: Files, tmp_path: Path, registry):
    forged = with_record(ages, named(ages, "mean", "age"), lambda p: p["environment"].update(numpy="99.0"))
    warned(judged(forged, tmp_path, registry), "numpy", "made with numpy 99.0")


def test_families_leave_under_other_names_in_the_same_order():
    table = pd.DataFrame({"participant_id": ["b", "a", "c"], "family": ["smith", "", "jones"], "site": ["x", "x", "y"]})
    names = _Pseudonyms.of([table], [])
    found, _ = names.applied(table, frozenset({"site"}))
    assert found["family"].tolist() == ["family2", "", "family1"]
    text = found.assign(fold=0, truth=1.0, prediction=1.0, train_mean=1.0).to_csv(index=False).encode()
    assert parse_table(text)["family"].tolist() == ["family2", "", "family1"]


# ---------------------------------------------------------------- honest ones


def test_an_honest_bundle_is_believed_and_found_again(honest: Files, tmp_path: Path, registry):
    verdict = judged(honest, tmp_path, registry)
    # It belongs to no suite; that one of 24 people has no diagnosis is known from the twin.
    assert {f.code for f in verdict.findings} == {"suite"}
    assert verdict.word == "believed, with warnings"
    assert verdict.exit_code == 2
    assert set(verdict.levels.values()) == {"recomputed"}
    assert len(verdict.levels) == len(verdict.records) == sum(n.startswith("records/") for n in honest)


def test_equal_folders_give_equal_bytes(out: Path, registry, tmp_path: Path):
    paths = [write_bundle(make_bundle(out, registry), tmp_path / name) for name in ("a.zip", "b.zip")]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    folder = write_bundle(make_bundle(out, registry), tmp_path / "folder")
    contents, packed = read_bundle(folder), read_bundle(paths[0])
    assert contents.files == packed.files
    write_bundle(make_bundle(out, registry), folder)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "mine.txt").write_text("mine")
    with pytest.raises(BundleError, match="is there already and is no bundle"):
        write_bundle(make_bundle(out, registry), tmp_path / "thesis")


def test_no_folder_of_this_machine_leaves(out: Path, honest: Files, monkeypatch):
    for name, content in honest.items():
        assert str(out.parent).encode() not in content, name
        assert str(Path.home()).encode() + b"/" not in content, name


def test_predictions_leave_under_pseudonyms_where_the_card_says_so(real: Path, registry, tmp_path: Path):
    bundle = make_bundle(real, registry)
    assert any("names of participants" in s.what and "ADHD-200" in s.why for s in bundle.stripped)
    people = next((real / "folds").glob("*.json")).read_text()
    names = {n for f in json.loads(people) for n in f["train"]}
    for name, content in bundle.files.items():
        if name.startswith(("predictions/", "folds/")):
            cells = {c for row in csv.reader(io.StringIO(content.decode())) for c in row}
            assert not names & {c.strip('", []') for c in cells}
            assert not {"sex", "duration_s", "mean_fd"} & cells
    verdict = verify(write_bundle(bundle, tmp_path / "b.zip"), registry)
    assert set(verdict.levels.values()) == {"recomputed"}, verdict.findings
    # Of real people nobody here knows that the one who is left out has no diagnosis.
    assert any(
        f.code == "not-all" and "diagnosis on adhd200 is scored on 23 of 24" in f.message for f in verdict.findings
    )
    named_again = dict(bundle.files)
    record_id = named(named_again, "connectome", "age")
    forged = with_rows(
        named_again, record_id, lambda rows: [r.update(participant_id=f"00{i}") for i, r in enumerate(rows)]
    )
    refused(judged(forged, tmp_path, registry), "forbidden", "asks for pseudonyms")


def test_only_scores_leave_where_the_card_says_so(real: Path, registry, tmp_path: Path, monkeypatch):
    loose = of_task(dict(make_bundle(real, registry).files), "age")
    cls = registry.get("dataset", "adhd200")
    strict = replace(cls().card, may_leave="aggregates")
    monkeypatch.setattr(cls, "card", strict)
    bundle = make_bundle(real, registry)
    assert not any(n.startswith(("predictions/", "folds/")) for n in bundle.files)
    assert any("held-out predictions" in s.what and "lets scores leave" in s.why for s in bundle.stripped)
    assert bundle.n_comparisons == 2, "one of each task"
    closed = of_task(dict(bundle.files), "age")
    name = next(n for n in closed if n.startswith("comparisons/"))
    with monkeypatch.context() as patched:
        # Records say what their card said when they were made.
        for room in ("predictions", "rows"):
            patched.setattr(f"neurobench.verification_{room}.may_leave", lambda *_: "aggregates")
        assert not {f.code for f in judged(closed, tmp_path, registry).findings} & {"comparisons", "not-ranked"}
        plain = json.loads(closed[name])
        plain["pairs"][0]["difference"] += 0.1
        forged = sealed(
            {n: c for n, c in closed.items() if n != name} | {f"comparisons/{'a' * 64}.json": text_of(plain)}
        )
        refused(judged(forged, tmp_path, registry), "comparisons", "and their records give")
        refused(judged(forged, tmp_path, registry), "comparisons", "is not the hash of what it says")
        refused(judged(sealed(closed | {name: b"{}"}), tmp_path, registry), "comparisons", "are no comparisons")
        without = judged(sealed({n: c for n, c in closed.items() if n != name}), tmp_path, registry)
        assert any(f.code == "not-ranked" and "transformer · roi" in f.message for f in without.findings)
    verdict = judged(loose, tmp_path, registry)
    refused(verdict, "forbidden", "lets scores leave only")
    refused(verdict, "forbidden", "list participants")
    refused(verdict, "card", "lets aggregates leave, and records say predictions")


def test_without_an_identity_nothing_is_submitted(out: Path, registry, tmp_path: Path):
    folder = tmp_path / "out"
    for part in ("records", "predictions", "folds", "identities"):
        shutil.copytree(out / part, folder / part)
    shutil.copy(out / "neurobench.json", folder)
    next((folder / "identities").glob("*.json")).unlink()
    with pytest.raises(BundleError, match=r"no identity beside it.*Run the same `neurobench run` again"):
        make_bundle(folder, registry)


# ---------------------------------------------------------------- forged ones


def test_a_changed_metric(ages: Files, tmp_path: Path, registry):
    record_id = named(ages, "transformer · roi", "age")
    name = f"records/{record_id}.json"
    plain = json.loads(ages[name])
    plain["metrics"]["mae"]["value"] -= 0.5
    content = json.dumps(plain).encode()
    refused(judged(ages | {name: content}, tmp_path, registry), "sum", "another sha256")
    refused(judged(sealed(ages | {name: content}), tmp_path, registry), "content-hash", "changed after it was written")

    def better(plain: dict) -> None:
        for what in ("value", "low", "high"):
            plain["metrics"]["mae"][what] -= 0.5

    verdict = judged(with_record(ages, record_id, better), tmp_path, registry)
    refused(verdict, "recomputed", "mae is given as")
    refused(verdict, "value", "mae and its chance level give")
    assert record_id not in verdict.levels
    assert set(verdict.levels.values()) == {"recomputed"}, "the others stay what they are"


@pytest.mark.parametrize("row", ["transformer · roi", "ridge"])
def test_a_changed_reconstruction(row: str, honest: Files, tmp_path: Path, registry):
    honest = of_task(honest, "reconstruction")
    record_id = named(honest, row, "reconstruction")

    def better(plain: dict) -> None:
        for name in ("r2[random]", "r2"):
            for what in ("value", "low", "high"):
                plain["metrics"][name][what] += 0.01

    refused(judged(with_record(honest, record_id, better), tmp_path, registry), "recomputed", "r2[random] is given as")


def test_an_interval_made_narrower(diagnoses: Files, tmp_path: Path, registry):
    def narrow(plain: dict) -> None:
        m = plain["metrics"]["auroc"]
        m["low"] += (m["value"] - m["low"]) / 2

    forged = with_record(diagnoses, named(diagnoses, "tangent", "diagnosis"), narrow)
    refused(judged(forged, tmp_path, registry), "recomputed", "the lower end of the interval of auroc")


def test_a_skill_that_is_not_what_the_records_give(ages: Files, tmp_path: Path, registry):
    record_id = named(ages, "transformer · roi", "age")
    forged = with_record(ages, record_id, lambda plain: plain.update(skill=0.4))
    refused(judged(forged, tmp_path, registry), "skill", "its skill is given as 0.4")
    control = named(ages, json.loads(ages[f"records/{record_id}.json"])["best_baseline"], "age")
    alone = sealed({n: c for n, c in ages.items() if control not in n})
    refused(judged(alone, tmp_path, registry), "skill", "which is not in the bundle")


def test_confounds_that_were_made_smaller(ages: Files, tmp_path: Path, registry):
    def change(plain: dict) -> None:
        plain["confounds"]["partial_r[all]"]["value"] = plain["confounds"]["partial_r[all]"]["high"]

    forged = with_record(ages, named(ages, "connectome", "age"), change)
    refused(judged(forged, tmp_path, registry), "confounds", "partial_r[all] is given as")


def test_swapped_predictions(honest: Files, ages: Files, tmp_path: Path, registry):
    a, b = (f"predictions/{named(ages, row, 'age')}.csv" for row in ("connectome", "transformer · roi"))
    forged = sealed(ages | {a: ages[b], b: ages[a]})
    refused(judged(forged, tmp_path, registry), "recomputed", "mae is given as")
    other = honest[f"predictions/{named(honest, 'connectome', 'diagnosis')}.csv"]
    refused(judged(sealed(ages | {a: other}), tmp_path, registry), "predictions", "subjects")


def test_another_truth(ages: Files, tmp_path: Path, registry):
    def lie(rows: list[dict]) -> None:
        for r in rows:
            r["truth"] = repr(float(r["prediction"]) + 1)

    forged = with_rows(ages, named(ages, "transformer · roi", "age"), lie)
    refused(judged(forged, tmp_path, registry), "swapped", "have not the same truth")


def test_another_fold(ages: Files, tmp_path: Path, registry):
    record_id = named(ages, "transformer · roi", "age")
    forged = with_rows(ages, record_id, lambda rows: rows[0].update(fold="1" if rows[0]["fold"] == "0" else "0"))
    refused(judged(forged, tmp_path, registry), "predictions", "who is tested in fold")

    name = next(n for n in ages if n.startswith("folds/"))
    plain = json.loads(ages[name])
    plain["folds"][0]["test"][0], plain["folds"][1]["test"][0] = (
        plain["folds"][1]["test"][0],
        plain["folds"][0]["test"][0],
    )
    moved = sealed(ages | {name: json.dumps(plain).encode()})
    verdict = judged(moved, tmp_path, registry)
    refused(verdict, "overlap", "are in training and in test")

    other = "f" * 64
    verdict = judged(
        with_record(ages, record_id, lambda p: p["protocol"].update(fold_fingerprint=other)), tmp_path, registry
    )
    refused(verdict, "folds", "were tested on 2 splits")
    refused(verdict, "identity", "its split is not the one that its id is the hash of")


def test_somebody_in_training_and_in_test(ages: Files, tmp_path: Path, registry):
    name = next(n for n in ages if n.startswith("folds/"))
    plain = json.loads(ages[name])
    plain["folds"][0]["train"].append(plain["folds"][0]["test"][0])
    refused(
        judged(sealed(ages | {name: json.dumps(plain).encode()}), tmp_path, registry),
        "overlap",
        "training and in test",
    )


def test_an_edited_hash(lone: Files, tmp_path: Path, registry):
    record_id = named(lone, "mean", "age")
    name = f"records/{record_id}.json"
    edited = json.loads(lone[name]) | {"content_hash": "0" * 64}
    refused(
        judged(sealed(lone | {name: json.dumps(edited).encode()}), tmp_path, registry),
        "content-hash",
        "does not match",
    )
    manifest = json.loads(lone[MANIFEST])
    manifest["files"][name]["sha256"] = "0" * 64
    refused(judged(lone | {MANIFEST: json.dumps(manifest).encode()}, tmp_path, registry), "sum", "another sha256")
    other = "0" * 64
    plain = json.loads(lone[name]) | {"id": other}
    plain["content_hash"] = content_hash(plain)
    files = {n.replace(record_id, other): c for n, c in lone.items()} | {
        f"records/{other}.json": json.dumps(plain).encode()
    }
    refused(judged(sealed(files), tmp_path, registry), "id", "is not the hash of the identity beside it")


def test_a_wrong_plugin_digest(ages: Files, tmp_path: Path, registry):
    record_id = named(ages, "transformer · roi", "age")
    forged = with_record(ages, record_id, lambda plain: plain["backbone"].update(digest="a" * 64))
    verdict = judged(forged, tmp_path, registry)
    refused(verdict, "plugin-digest", "its code is another one")
    refused(verdict, "identity", "its backbone is not the one that its results were made with")


def test_an_old_score_version_and_a_stranger_s_plugin(ages: Files, tmp_path: Path, registry):
    record_id = named(ages, "mean", "age")
    old = with_record(ages, record_id, lambda plain: plain["task"].update(score_version=0))
    refused(judged(old, tmp_path, registry), "score-version", "has score version 0, and 1 here")

    for distribution, version, says in (
        ("magic-fm", "3", "baseline magic of magic-fm 3 is not installed here: its code was compared with nothing"),
        ("file:magic", "", "baseline magic was given as the file magic: its code was compared with nothing"),
    ):

        def another(plain: dict, distribution: str = distribution, version: str = version) -> None:
            plain["baseline"].update(name="magic", label="magic", distribution=distribution, version=version)

        verdict = judged(with_record(ages, record_id, another), tmp_path, registry)
        assert [f.message for f in verdict.findings if f.code == "plugin-not-here"] == [says]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"n_steps": 100_000}, "its n_steps is not the one"),
        ({"seed": 7}, "its seed is not the one"),
        ({"width": 256}, "profile smoke has width 32, not 256"),
        ({"recipe": {"learning_rate": 1.0}}, "by another recipe"),
        ({"profile": "huge"}, "there is no profile 'huge'"),
        ({"suite": "core-v1@847de69fe2af"}, "which has profile full, not smoke"),
        ({"suite": "core-v1@000000000000"}, "is not that"),
    ],
)
def test_a_protocol_that_was_not_followed(change: dict, says: str, ages: Files, tmp_path: Path, registry):
    record_id = named(ages, "transformer · roi", "age")
    verdict = judged(with_record(ages, record_id, lambda plain: plain["protocol"].update(change)), tmp_path, registry)
    assert verdict.word == "refused"
    assert any(says in f.message for f in verdict.findings), verdict.findings


def test_a_pretraining_on_test_subjects_that_nobody_speaks_of(tmp_path: Path, registry):
    folder = tmp_path / "out"
    options = {"backbone": "transformer", "mask": "roi", "dataset": "adhd200", "n_subjects": 12, "n_steps": 1}
    neurobench.run(**options, task="reconstruction[masks=random]", transductive=True, out=folder)
    files = dict(make_bundle(folder, registry).files)
    assert judged(files, tmp_path, registry).word == "believed, with warnings"
    record_id = named(files, "transformer · roi", "reconstruction")
    hidden = with_record(files, record_id, lambda plain: plain["protocol"].update(transductive=False))
    refused(judged(hidden, tmp_path, registry), "identity", "more than the training subjects")


@pytest.mark.slow
def test_an_objective_that_a_record_does_not_speak_of(tmp_path: Path, registry):
    folder = tmp_path / "out"
    options = {"backbone": "transformer", "mask": "roi", "dataset": "adhd200", "n_subjects": 12, "n_steps": 1}
    neurobench.run(**options, task="reconstruction[masks=random]", objective="latent", out=folder)
    files = dict(make_bundle(folder, registry).files)
    assert judged(files, tmp_path, registry).word == "believed, with warnings"
    record_id = named(files, "transformer · roi (latent)", "reconstruction")
    usual = with_record(files, record_id, lambda plain: plain["protocol"].update(objective="reconstruction"))
    refused(judged(usual, tmp_path, registry), "identity", "its objective is not the one that its results were made")
    unknown = with_record(files, record_id, lambda plain: plain["protocol"].update(objective="latent[momentum=9]"))
    verdict = judged(unknown, tmp_path, registry)
    assert verdict.word == "refused"
    assert any("momentum cannot be 9" in f.message for f in verdict.findings), verdict.findings


def test_a_duplicated_subject(ages: Files, tmp_path: Path, registry):
    record_id = named(ages, "connectome", "age")
    forged = with_rows(ages, record_id, lambda rows: rows.append(dict(rows[0])))
    refused(judged(forged, tmp_path, registry), "predictions", "twice: everybody is tested once")
    fewer = with_rows(ages, record_id, lambda rows: rows.pop())
    refused(judged(fewer, tmp_path, registry), "predictions", "counts 24 subjects, and its predictions are of 23")
    counted = with_record(fewer, record_id, lambda plain: plain.update(n_subjects=23))
    refused(judged(counted, tmp_path, registry), "n-subjects", "were scored on 23 and 24 subjects")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda p: p["metrics"]["r2"].update(value=1.2, high=1.3), "r2 is 1.2: only -inf to 1 can be"),
        (lambda p: p["metrics"]["pearson_r"].update(value=-1.5), "pearson_r is -1.5: only -1 to 1 can be"),
        (lambda p: p["metrics"]["mae"].update(value=-0.1, low=-0.2), "mae is -0.1: only 0 to inf can be"),
        (lambda p: p["metrics"]["mae"].update(low=9.0, high=8.0), "is upside down"),
        (lambda p: p["metrics"]["mae"].update(low=0.0, high=0.1), "does not hold its value"),
        (lambda p: p["metrics"]["mae"].update(p_value=0.0123), "1000 permutations cannot give that"),
        (lambda p: p["metrics"]["mae"].update(above_chance=True, p_value=500 / 1001), "above chance at p = 0.5"),
        (lambda p: p["per_fold"].update(mae=[1.0]), "mae has 1 folds, and the protocol 2"),
        (lambda p: p.update(n_subjects=2_000), "counts 2000 subjects of a cohort of 24"),
        (lambda p: p.update(headline="loss"), "its headline 'loss' is none of its metrics"),
        (lambda p: p.update(p_value=-1.0), "a p-value is -1"),
        (lambda p: p["metrics"]["mae"].update(value=0.01, low=0.0), "a tenth of chance or less"),
    ],
)
def test_values_that_cannot_be(change, says: str, ages: Files, tmp_path: Path, registry):
    verdict = judged(with_record(ages, named(ages, "connectome", "age"), change), tmp_path, registry)
    assert verdict.word == "refused"
    assert any(says in f.message for f in verdict.findings), verdict.findings
    assert not any(f.code == "uncheckable" for f in verdict.findings)


def test_shares_that_no_number_of_subjects_gives(diagnoses: Files, tmp_path: Path, registry):
    def change(plain: dict) -> None:
        plain["metrics"]["accuracy"]["value"] = 0.777
        plain["metrics"]["balanced_accuracy"]["value"] = 0.9

    verdict = judged(with_record(diagnoses, named(diagnoses, "tangent", "diagnosis"), change), tmp_path, registry)
    refused(verdict, "value", "no share of 23 subjects is")
    refused(verdict, "value", "its halves give")


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none(text: str, lone: Files, tmp_path: Path, registry):
    record_id = named(lone, "mean", "age")
    name = f"records/{record_id}.json"
    plain = json.loads(lone[name])
    plain["metrics"]["mae"]["value"] = "HERE"
    content = json.dumps(plain).replace('"HERE"', text).encode()
    refused(judged(sealed(lone | {name: content}), tmp_path, registry), "schema", "is no record")
    for cell in ("nan", "inf", "1e999", "seven", ""):
        forged = with_rows(lone, record_id, lambda rows, cell=cell: rows[3].update(prediction=cell))
        refused(judged(forged, tmp_path, registry), "predictions", "cannot be read")


# ---------------------------------------------------------------- archives


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        ("../evil.json", "path", "leads out of the bundle"),
        ("records/../../evil.json", "path", "leads out of the bundle"),
        ("records\\..\\..\\evil.json", "path", "leads out of the bundle"),
        ("/etc/passwd", "path", "is an absolute path"),
        ("C:\\evil.json", "path", "is an absolute path"),
        ("records/$(touch evil).json", "name", "is no part of a bundle"),
        ("records/<script>alert(1)</script>.json", "name", "is no part of a bundle"),
        ("setup.py", "name", "is no part of a bundle"),
        ("weights.pkl", "name", "is no part of a bundle"),
        ("notes\x1b[2J.md", "name", "is no part of a bundle"),
    ],
)
def test_names_that_no_bundle_has(name: str, code: str, says: str, lone: Files, tmp_path: Path, registry):
    before = sorted(tmp_path.parent.rglob("*evil*"))
    verdict = judged(sealed(lone | {name: b"{}"}), tmp_path, registry)
    refused(verdict, code, says)
    assert all(c.isprintable() for f in verdict.findings for c in f"{f.path}{f.message}")
    assert sorted(tmp_path.parent.rglob("*evil*")) == before, "nothing is unpacked"


def test_a_file_that_is_not_in_the_manifest(lone: Files, tmp_path: Path, registry):
    extra = lone | {f"records/{'0' * 64}.json": b"{}"}
    refused(judged(extra, tmp_path, registry), "not-listed", "is not in the manifest")
    less = {n: c for n, c in lone.items() if not n.startswith("folds/")}
    verdict = judged(less, tmp_path, registry)
    refused(verdict, "missing", "is in the manifest and not in the bundle")
    refused(verdict, "folds", "are missing, and may be published")


def test_a_missing_manifest_and_a_wrong_one(lone: Files, tmp_path: Path, registry):
    with pytest.raises(BundleError, match=r"holds no manifest.*zip its content"):
        judged({n: c for n, c in lone.items() if n != MANIFEST}, tmp_path, registry)
    for content, says in ((b"[]", "is no manifest"), (b'{"format": 9}', "format '9'"), (b"\xff", "no UTF-8")):
        with pytest.raises(BundleError, match=says):
            judged(lone | {MANIFEST: content}, tmp_path, registry)


def test_a_truncated_zip_and_things_that_are_none(lone: Files, tmp_path: Path, registry):
    packed = zip_bytes(lone)
    path = tmp_path / "cut.zip"
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(BundleError, match=r"cannot be read as a zip file.*cut off"):
        verify(path, registry)
    with pytest.raises(BundleError, match="there is no bundle"):
        verify(tmp_path / "nothing.zip", registry)
    link = tmp_path / "link.zip"
    link.symlink_to(path)
    with pytest.raises(BundleError, match="is a link"):
        verify(link, registry)


def test_a_bomb_is_met_before_it_goes_off(lone: Files, tmp_path: Path, registry):
    name = f"predictions/{named(lone, 'mean', 'age')}.csv"
    bomb = lone | {name: b"0" * (LIMITS.file_bytes - 1)}
    refused(judged(bomb, tmp_path, registry), "too-large", "unpacks to more than 100 times its size")
    large = zip_bytes(lone | {name: b"0" * (LIMITS.file_bytes + 1)})
    path = tmp_path / "large.zip"
    path.write_bytes(large)
    refused(verify(path, registry), "too-large", "it was not unpacked")
    # The header says one GiB.
    at = large.rindex(b"PK\x01\x02", 0, large.rindex(name.encode()))
    path.write_bytes(large[: at + 24] + struct.pack("<I", 1 << 30) + large[at + 28 :])
    refused(verify(path, registry), "too-large", "has 1.02e+03 MiB")
    # The header says one byte.
    path.write_bytes(large[: at + 24] + struct.pack("<I", 1) + large[at + 28 :])
    refused(verify(path, registry), "unreadable", "cannot be read")
    with pytest.raises(BundleError, match=r"holds \d+ files"):
        judged(lone, tmp_path, registry, limits=replace(LIMITS, n_files=5))
    with pytest.raises(BundleError, match="unpacked; reading stopped there"):
        judged(lone, tmp_path, registry, limits=replace(LIMITS, total_bytes=10_000))
    with pytest.raises(BundleError, match="at most"):
        judged(lone, tmp_path, registry, limits=replace(LIMITS, archive_bytes=100))


def test_links_pipes_and_files_that_are_there_twice(lone: Files, tmp_path: Path, registry, out: Path):
    path = tmp_path / "links.zip"
    name = f"records/{'1' * 64}.json"
    with zipfile.ZipFile(path, "w") as archive:
        for n, c in lone.items():
            archive.writestr(n, c)
        link = zipfile.ZipInfo(name)
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr(MANIFEST, b"{}")
    verdict = verify(path, registry)
    refused(verdict, "link", "is a link")
    refused(verdict, "twice", "is in the archive twice")
    folder = write_bundle(make_bundle(out, registry), tmp_path / "folder")
    (folder / "records" / f"{'1' * 64}.json").symlink_to("/etc/passwd")
    os.mkfifo(folder / "records" / f"{'2' * 64}.json")
    (folder / "away").symlink_to("/etc")
    verdict = verify(folder, registry)
    refused(verdict, "link", f"{'1' * 64}.json: is a link")
    refused(verdict, "link", "away: is a link")
    refused(verdict, "kind", "is no plain file")


# ---------------------------------------------------------------- accepted records


def test_an_accepted_record_is_superseded_and_never_edited(ages: Files, tmp_path: Path, registry):
    accepted = tmp_path / "results" / "no-suite"
    accepted.mkdir(parents=True)
    record_id = named(ages, "mean", "age")
    content = ages[f"records/{record_id}.json"]
    (accepted / f"{record_id}.json").write_bytes(content)
    (accepted / "not-a-record.json").write_text("[]")
    assert judged(ages, tmp_path, registry, against=tmp_path / "results").word == "believed, with warnings"
    again = with_record(ages, record_id, lambda plain: plain.update(written="2026-01-01T00:00:00Z"))
    verdict = judged(again, tmp_path, registry, against=tmp_path / "results")
    assert any(f.code == "accepted" for f in verdict.findings), "who runs the same baseline finds the same record"
    assert verdict.word == "believed, with warnings"
    edited = with_record(ages, record_id, lambda plain: plain["metrics"]["mae"].update(p_value=0.5))
    verdict = judged(edited, tmp_path, registry, against=tmp_path / "results")
    refused(verdict, "append-only", "is accepted already and says something else here")
    assert not any("another one" in f.fix for f in verdict.findings), "the controls beside it are the same"
    weaker = with_record(ages, record_id, lambda plain: plain.update(best_baseline="covariates"))
    (told,) = [
        f for f in judged(weaker, tmp_path, registry, against=tmp_path / "results").findings if f.code == "append-only"
    ]
    assert "On a board of your own, delete the older records of this suite there" in told.fix
    plain = json.loads(content) | {"id": "e" * 64}
    plain["data"]["source"] = "real"
    plain["content_hash"] = content_hash(plain)
    (accepted / f"{record_id}.json").unlink()
    (accepted / "older.json").write_text(json.dumps(plain))
    verdict = judged(ages, tmp_path, registry, against=tmp_path / "results")
    assert any(f.code == "supersedes" and "eeeeeeeeeeee" in f.message for f in verdict.findings)
    refused(verdict, "source", "calls real what")
    with pytest.raises(BundleError, match="there is no folder"):
        judged(ages, tmp_path, registry, against=tmp_path / "nowhere")


# ---------------------------------------------------------------- the command line


def test_the_commands(out: Path, tmp_path: Path, ages: Files):
    run = CliRunner().invoke
    path = tmp_path / "mine.zip"
    found = run(app, ["submit", str(out), "--to", str(path)])
    assert found.exit_code == 0, found.output
    assert "left behind" in found.output
    assert "neurobench verify" in found.output
    found = run(app, ["verify", str(path)])
    assert found.exit_code == 2, found.output
    assert "recomputed)" in found.output
    forged = with_record(ages, named(ages, "mean", "age"), lambda p: p["metrics"]["mae"].update(value=1.0, low=0.5))
    path.write_bytes(zip_bytes(forged))
    found = run(app, ["verify", str(path)])
    assert found.exit_code == 1
    assert "mae is given as 1, and is" in found.output
    assert "refused: " in found.output
    found = run(app, ["verify", str(path), "--json"])
    assert found.exit_code == 1
    assert json.loads(found.output)["verdict"] == "refused"
    found = run(app, ["verify", str(tmp_path / "none.zip"), "--json"])
    assert found.exit_code == 1
    assert json.loads(found.output)["verdict"] == "refused"
    assert run(app, ["verify", str(tmp_path / "none.zip")]).exit_code == 1


def test_who_ran_records_again_is_kept_beside_them(ages: Files, tmp_path: Path, registry):
    files = ages
    for record_id in [n[8:72] for n in ages if n.startswith("records/")]:
        files = with_record(files, record_id, lambda plain: plain["protocol"].update(suite="mine@0"))
    path, results = tmp_path / "bundle.zip", tmp_path / "results"
    path.write_bytes(zip_bytes(files))

    def repeat(todo):
        # What a backbone gave is found again, within what is allowed; of the others nobody knows.
        for record, _ in todo:
            if record.row == "mean":
                yield record.id, Again(record.metrics["mae"].value + 0.01, 0.02)
            else:
                yield record.id, Finding("warning", "not-re-run", "could not be run again: no time")

    placed = add_records(path, results, registry, repeat=repeat)
    assert placed.n_again == 1
    (table,) = read_board(results, registry).tables
    assert {x.level for x in table.lines} == {"re-run", "recomputed"}
    (line,) = (x for x in table.lines if x.level == "re-run")
    assert line.name == "mean"
    (again,) = line.reruns.values()
    assert "(± 0.02 allowed)" in again.text
    assert datetime.now(UTC).strftime("%Y-%m") in again.text
    before = {p: p.read_bytes() for p in results.rglob("*.json")}
    add_records(path, results, registry)
    assert {p: p.read_bytes() for p in results.rglob("*.json")} == before, "what is accepted stays, to the byte"
    (beside,) = (results / "mine" / "reruns").iterdir()
    plain = json.loads(beside.read_text())
    for change, says in (
        ({"found": plain["found"] + 1}, "further off"),
        ({"found": plain["found"] + 1, "allowed": 2.0}, "it allows a difference of 2"),
        ({"said": 1.0}, "not that of the record"),
        ({"content_hash": "a"}, "another record"),
        ({"allowed": -1.0}, "allowed"),
    ):
        beside.write_text(json.dumps(plain | change))
        with pytest.raises(BoardError, match=f"attests to nothing: .*{says}"):
            read_board(results)
    # An output folder of one's own is nothing to attest to.
    with pytest.raises(BoardError, match="nobody attests to a run of their own"):
        add_records(tmp_path, results, registry, repeat=repeat)


@pytest.mark.slow
def test_real_records_run_again_where_the_same_recordings_are(out: Path, real: Path, tmp_path: Path, registry):
    path, folder = tmp_path / "mine.zip", next((out / "store" / "twin").glob("*/data"))
    path.write_bytes(zip_bytes(of_task(dict(make_bundle(real, registry).files), "age")))
    found = CliRunner().invoke(app, ["verify", str(path), "--rerun", "--data-dir", str(folder)])
    assert "re-run)" in found.output, found.output
    assert "recomputed" not in found.output.splitlines()[-1]
    (tmp_path / "other").mkdir()
    found = CliRunner().invoke(app, ["verify", str(path), "--rerun", "--data-dir", str(tmp_path / "other")])
    assert "could not be run again" in found.output, found.output
    assert found.exit_code == 2
    assert CliRunner().invoke(app, ["verify", str(path), "--data-dir", str(folder)]).exit_code == 2


@pytest.mark.slow
@pytest.mark.campaign
def test_simulated_records_run_again(out: Path, tmp_path: Path, honest: Files):
    path = tmp_path / "mine.zip"
    path.write_bytes(zip_bytes(honest))
    found = CliRunner().invoke(app, ["verify", str(path), "--rerun"])
    assert found.exit_code == 2, found.output
    assert "re-run)" in found.output
    record_id = named(honest, "connectome", "age")

    def invent(rows: list[dict]) -> None:
        for r in rows:
            r["prediction"] = repr(float(r["truth"]) + 0.5)

    files = with_rows(honest, record_id, invent)
    forged = with_record(files, record_id, lambda p: p["metrics"]["mae"].update(value=0.5, low=0.5, high=0.5))
    path.write_bytes(zip_bytes(forged))
    assert CliRunner().invoke(app, ["verify", str(path), "--rerun"]).exit_code == 1


@pytest.mark.slow
def test_evoked_responses_and_windows_are_found_again(tmp_path: Path, registry):
    neurobench.run(
        backbone="transformer", mask="time_block", dataset="meg_headache", n_subjects=8, n_steps=2, out=tmp_path / "out"
    )
    files = dict(make_bundle(tmp_path / "out", registry).files)
    verdict = judged(files, tmp_path, registry)
    assert verdict.word == "believed, with warnings", verdict.findings
    assert {r.task.name for r in verdict.records} >= {"evoked", "state", "reconstruction"}
    assert set(verdict.levels.values()) == {"recomputed"}
    for task, metric in (("evoked", "waveform_r[null]"), ("state", "macro_auroc")):
        record_id = named(files, "transformer · time_block", task)
        forged = with_record(files, record_id, lambda p, m=metric: p["metrics"][m].update(value=0.5, low=0.4, high=0.6))
        refused(judged(forged, tmp_path, registry), "recomputed", f"{metric} is given as 0.5")


# ---------------------------------------------------------------- pull requests

ROOT = Path(__file__).resolve().parents[1]


def test_the_workflow_has_nothing_to_steal_and_runs_nothing_that_was_sent():
    text = (ROOT / ".github/workflows/submission.yml").read_text(encoding="utf-8")
    plan = yaml.safe_load(text)
    assert plan["permissions"] == {"contents": "read"}
    assert set(plan[True]) == {"pull_request"}, "YAML reads `on` as true"
    assert "secrets." not in text
    steps = plan["jobs"]["verify"]["steps"]
    assert all(s["with"]["persist-credentials"] is False for s in steps if "checkout" in s.get("uses", ""))
    commands = [s["run"] for s in steps if "run" in s]
    assert not any("${{" in c for c in commands), "no text of a pull request in a command"
    assert not any(" ./head" in c or "--rerun" in c or ("pip install" in c and "./base" not in c) for c in commands)


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    run = subprocess.run(["git", "-C", str(folder), *who, *words], check=True, capture_output=True, text=True)
    return run.stdout.strip()


@pytest.mark.slow
def test_a_pull_request_is_judged_by_what_it_adds(lone: Files, ages: Files, tmp_path: Path):
    repository = tmp_path / "head"
    accepted = repository / "leaderboard" / "results"
    (accepted / "no-suite").mkdir(parents=True)
    git(tmp_path, "init", "--quiet", str(repository))
    record_id = named(ages, "covariates", "age")
    (accepted / "no-suite" / f"{record_id}.json").write_bytes(ages[f"records/{record_id}.json"])
    git(repository, "add", "-A")
    git(repository, "commit", "--quiet", "-m", "accepted")
    before = git(repository, "rev-parse", "HEAD")

    def judged_now() -> tuple[int, str]:
        git(repository, "add", "-A")
        git(repository, "commit", "--quiet", "--allow-empty", "-m", "change")
        words = [str(repository), str(accepted), before, git(repository, "rev-parse", "HEAD")]
        run = subprocess.run(
            [sys.executable, str(ROOT / "leaderboard" / "judge.py"), *words], capture_output=True, text=True
        )
        return run.returncode, run.stdout + run.stderr

    (repository / "README.md").write_text("nothing of a submission")
    assert judged_now() == (0, "## Submissions\n\nNo submission here.\n")
    for name, content in ages.items():
        path = repository / "leaderboard" / "submissions" / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    mine = named(ages, "mean", "age")
    (accepted / "no-suite" / f"{mine}.json").write_bytes(ages[f"records/{mine}.json"])
    code, says = judged_now()
    assert code == 0, says
    assert "### mine: believed, with warnings" in says
    (accepted / "no-suite" / f"{mine}.json").write_bytes(ages[f"records/{mine}.json"] + b" ")
    (accepted / "no-suite" / f"{record_id}.json").unlink()
    (accepted / "no-suite" / "note.md").write_text("x")
    code, says = judged_now()
    assert code == 1
    assert "is in no bundle of this pull request that was believed" in says
    assert "never edited or removed" in says
    assert "is no leaderboard/results/SUITE/ID.json" in says


# ---------------------------------------------------------------- whatever bytes come


@given(st.binary(max_size=400))
def test_readers_of_text_say_what_is_wrong_and_never_break(content: bytes):
    for reader in (parse_strict, parse_folds, parse_table):
        try:
            reader(content)
        except ValueError:
            continue


@given(st.text(max_size=300))
def test_readers_of_tables_take_any_text(text: str):
    for content in (text, f"participant_id,truth\n{text}", f"participant_id,fold,headline\n{text},0,true\n"):
        try:
            parse_table(content.encode("utf-8", "surrogatepass"))
        except ValueError:
            continue


def test_deep_and_odd_json_is_refused():
    for content in (b"[" * 100_000, b'{"a":' * 100_000, b'{"a":1,"a":2}', b'"\\ud800"', b"1" * 10_000, b"1e400"):
        with pytest.raises(ValueError):
            parse_strict(content)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_a_damaged_archive_is_read_or_refused(data, lone: Files, tmp_path: Path):
    small = {n: lone[n] for n in sorted(lone) if n == MANIFEST or n.startswith("folds/")}
    packed = bytearray(zip_bytes(small))
    for _ in range(data.draw(st.integers(1, 8))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.zip"
    path.write_bytes(bytes(packed[: data.draw(st.integers(0, len(packed)))]) if data.draw(st.booleans()) else packed)
    with contextlib.suppress(BundleError):
        assert set(read_bundle(path).files) <= set(small)


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
    st.just([]),
    st.just({}),
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_odd_values_are_judged_and_never_break(data, lone: Files, tmp_path: Path, registry):
    keep = named(lone, "mean", "age")
    folds = [n for n in lone if n.startswith("folds/")]
    files = {n: c for n, c in lone.items() if keep in n or n in folds or n == MANIFEST}
    kind = data.draw(st.sampled_from(["records", "identities", "folds"]))
    name = folds[0] if kind == "folds" else f"{kind}/{keep}.json"
    plain = json.loads(files[name])
    for _ in range(data.draw(st.integers(1, 3))):
        place = plain
        while True:
            keys = list(place) if isinstance(place, dict) else range(len(place))
            key = data.draw(st.sampled_from(list(keys)))
            if isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans()):
                place = place[key]
                continue
            place[key] = data.draw(ODD)
            break
    if kind == "records" and isinstance(plain, dict):
        plain["content_hash"] = content_hash(plain)
    verdict = judged(sealed(files | {name: json.dumps(plain).encode()}), tmp_path, registry)
    assert not any(f.code == "uncheckable" for f in verdict.findings), verdict.findings

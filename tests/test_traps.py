"""Cohorts and plugins that are built to deceive: the report has to catch each of them, in words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import neurobench
from benchmarks.performance.board import invented
from neurobench.caveats import Caveat, _few, _label_and_site, _of_labels, caveats, shown_by_records
from neurobench.results import load_evidence, load_predictions, read_record
from neurobench.scoring import ONE_CLASS, score_subject_task
from neurobench_tasks.diagnosis import Diagnosis
from tests import traps

PLUGINS = Path(__file__).with_name("trap_plugins.py")


def run(root: Path, out: Path, **options: object) -> tuple[pd.DataFrame, list[Caveat]]:
    """Run a small grid on a folder; return its table and everything that the report says of it."""
    wanted = {
        "backbone": "transformer",
        "mask": "random_tube",
        "dataset": "parcels",
        "n_steps": 5,
        "folds": 4,
    } | options
    neurobench.run(data_dir=root, out=out, **({"window_s": 60.0, "patch_s": 10.0} | wanted))
    (evidence,) = load_evidence(out)
    return evidence.table, caveats(evidence, [read_record(Path(p)) for p in evidence.table["record"]])


def said(found: list[Caveat], code: str, task: str = "") -> str:
    texts = [c.text for c in found if c.code == code and c.task == task]
    assert texts, f"nothing is said of {code!r}; said was {[(c.code, c.task) for c in found]}"
    return " ".join(texts)


def score(table: pd.DataFrame, row: str, task: str) -> pd.Series:
    return table[(table["row"] == row) & (table["task"] == task)].iloc[0]


def test_label_that_equals_the_site(tmp_path: Path) -> None:
    table, found = run(traps.label_is_site(tmp_path / "data"), tmp_path / "out", task="diagnosis")
    # The trap works: scanner noise alone gives a splendid figure.
    assert score(table, "raw_signal", "diagnosis")["score"] > 0.95
    text = said(found, "label-is-site", "diagnosis")
    assert "each of the 2 sites holds one class only" in text
    assert found[0].level == "error"
    assert "raw_signal" in said(found, "site-leak")
    # Labels cannot be permuted within a site of one class: nothing is called a signal.
    assert not table[table["task"] == "diagnosis"]["above_chance"].any()


@pytest.mark.slow
def test_diagnosis_only_through_motion(tmp_path: Path) -> None:
    table, found = run(traps.diagnosis_through_motion(tmp_path / "data"), tmp_path / "out", task="diagnosis")
    assert score(table, "connectome", "diagnosis")["above_chance"]
    assert "motion" in said(found, "label-and-motion", "diagnosis")
    assert "connectome" in said(found, "explained-by-mean_fd", "diagnosis")


@pytest.mark.slow
def test_fluid_intelligence_only_through_age(tmp_path: Path) -> None:
    table, found = run(traps.fluid_through_age(tmp_path / "data"), tmp_path / "out", task="fluid_intelligence")
    assert score(table, "connectome", "fluid_intelligence")["above_chance"]
    text = said(found, "explained-by-age", "fluid_intelligence")
    assert "connectome (partial r" in text
    assert "given age" in text


@pytest.mark.slow
def test_an_effect_that_is_there_is_not_explained_away(tmp_path: Path) -> None:
    """The same cohort without the confound: age itself, of which motion, sex and site know nothing."""
    table, found = run(traps.fluid_through_age(tmp_path / "data"), tmp_path / "out", task="age")
    assert score(table, "connectome", "age")["above_chance"]
    for name in ("mean_fd", "sex", "site"):
        assert not [c for c in found if c.code == f"explained-by-{name}" and "connectome" in c.text]


@pytest.mark.slow
@pytest.mark.parametrize("told", [True, False])
def test_one_person_under_two_ids(tmp_path: Path, told: bool) -> None:
    root = traps.one_person_two_ids(tmp_path / "data", told=told)
    table, found = run(root, tmp_path / "out", task="diagnosis")
    area = score(table, "connectome", "diagnosis")["score"]
    if told:
        assert "60 of 60 subjects belong to 30 families" in said(found, "families")
        assert area < 0.75
        # Sixty ids are thirty observations: taken for sixty, the interval would be too narrow.
        row = score(table, "connectome", "diagnosis")
        held_out = load_predictions(tmp_path / "out", row["id"])
        assert held_out["family"].nunique() == 30
        careless = score_subject_task(Diagnosis(), held_out.drop(columns="family"), seed=0, n_permutations=1).metrics[
            "auroc"
        ]
        assert row["high"] - row["low"] > 1.2 * (careless.high - careless.low)
    else:
        # Nobody told, so the leak is there: this is what the column is for.
        assert area > 0.85
        assert not [c for c in found if c.code == "families"]


@pytest.mark.slow
def test_units_that_are_missing_for_patients(tmp_path: Path) -> None:
    root = traps.units_missing_for_patients(tmp_path / "data")
    table, found = run(root, tmp_path / "out", task="diagnosis", folds=2)
    # The trap works: a network that was never trained knows who lacks a region.
    assert score(table, "transformer · untrained", "diagnosis")["above_chance"]
    assert not score(table, "connectome", "diagnosis")["above_chance"]
    assert "region03, in 20 of 40 subjects" in said(found, "missing-units", "diagnosis")


@pytest.mark.slow
def test_a_mask_that_hides_background(tmp_path: Path) -> None:
    root = traps.few_people(tmp_path / "data")
    _, found = run(
        root, tmp_path / "out", task="reconstruction", mask=["background", "random_tube"], plugin_files=PLUGINS
    )
    text = said(found, "off-budget")
    assert "transformer · background" in text
    assert "random_tube" not in text


@pytest.mark.slow
def test_a_backbone_that_memorises(tmp_path: Path) -> None:
    # Recordings of one window: the same six training windows again and again.
    root = traps.few_people(tmp_path / "data", 12)
    options = {"n_steps": 120, "window_s": 240.0, "patch_s": 40.0, "folds": 2, "plugin_files": PLUGINS}
    _, found = run(root, tmp_path / "out", task="reconstruction", backbone=["memoriser", "transformer"], **options)
    text = said(found, "memorised")
    assert "memoriser · random_tube has learned its training people by heart" in text
    assert "transformer" not in text


@pytest.mark.slow
@pytest.mark.parametrize("trap", [traps.label_is_site, traps.diagnosis_through_motion])
def test_harmonised_sites_are_not_found_again(tmp_path: Path, trap: Callable[[Path], Path]) -> None:
    root = trap(tmp_path / "data")
    plain, _ = run(root, tmp_path / "plain", task="diagnosis")
    harmonised, _ = run(root, tmp_path / "harmonised", task="diagnosis", harmonise="site")
    leaks = [
        read_record(Path(score(t, "raw_signal", "diagnosis")["record"])).confounds["site_leak"].value
        for t in (plain, harmonised)
    ]
    assert leaks[1] is not None
    assert leaks[1] < 0.65
    if trap is traps.label_is_site:
        assert leaks[0] is not None
        assert leaks[0] > 0.95


def test_relatives_are_drawn_together_where_the_site_is_asked_for_the_class():
    # Ten families of ten at two sites, of one class each: of people on their own the site would tell the class.
    family = np.repeat(np.arange(10), 10)
    truth, site = np.isin(family, [0, 1, 2, 3, 5]).astype(float), np.array(["a", "b"])[(family >= 5).astype(int)]
    alone = [c.code for c in _label_and_site("diagnosis", truth, site, None)]
    together = [c.code for c in _label_and_site("diagnosis", truth, site, family)]
    assert (alone, together) == (["label-and-site"], [])


@pytest.mark.parametrize(
    ("notes", "codes"),
    [
        (["prevalence of case: 40 of 90", f"1 of 3{ONE_CLASS}"], ["one-class-sites"]),
        ([f"3 of 3{ONE_CLASS}"], ["label-is-site"]),
        (["prevalence of case: 40 of 90"], []),
    ],
)
def test_records_alone_say_that_a_site_is_of_one_class(notes, codes):
    record = invented("net", "baseline", task="diagnosis", notes=notes)
    head = record.metrics["mae"]
    record = record.model_copy(update={"metrics": {"mae": head, "within_site_auroc": head}, "confounds": {}})
    found = shown_by_records([record])
    assert [c.code for c in found] == codes
    assert all("1 of 3 sites hold one class only: a site of one class" in c.text for c in found if c.level != "error")


def test_records_alone_say_that_a_class_or_a_cohort_is_too_small_for_its_interval():
    record = invented("net", "baseline", task="diagnosis")

    def codes(n_subjects, *notes):
        changed = {"n_subjects": n_subjects, "notes": list(notes), "confounds": {}}
        return [c.text for c in shown_by_records([record.model_copy(update=changed)]) if c.code == "few-people"]

    (rare,) = codes(80, "prevalence of case: 6 of 80")
    assert "6 people of the rarer class" in rare
    assert codes(80, "prevalence of case: 75 of 80")[0].startswith("Intervals are of 5 people of the rarer class")
    assert codes(19)[0].startswith("Intervals are of 19 people")
    assert codes(80, "prevalence of case: 40 of 80") == codes(20) == []
    (related,) = _few("age", record.model_copy(update={"n_subjects": 80, "notes": []}), 4)
    assert related.text.startswith("Intervals are of 4 families")


@pytest.mark.parametrize("headline", ["auroc", "accuracy", "mcc"])
def test_that_the_label_is_the_site_is_told_whatever_metric_ranks(headline):
    truth = np.repeat([0.0, 1.0], 20)
    table = pd.DataFrame({"truth": truth, "site": np.where(truth > 0, "a", "b")})
    record = invented("net", "baseline", task="diagnosis").model_copy(update={"headline": headline, "confounds": {}})
    assert "label-is-site" in [c.code for c in _of_labels("diagnosis", record, table)]
    # Of whom it is not known where they were scanned no site gives anything away.
    unknown = table.assign(site=np.where(np.arange(40) % 2, "", "a"))
    assert "one-class-sites" not in [c.code for c in _of_labels("diagnosis", record, unknown)]

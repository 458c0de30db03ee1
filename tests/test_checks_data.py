"""Contract checks of baselines, tasks, datasets and figures: what is wrong is told where it is wrong."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from neurobench.checks import check_component
from neurobench.contracts import (
    Baseline,
    Dataset,
    Figure,
    Metric,
    SubjectTask,
)
from neurobench.records import DatasetCard, Listing, RawRecording, RecordingFile, SignalSpec, UnitTable


class Powers(Baseline):
    """Log variance of each unit, standardised on the training subjects."""

    name = "powers"
    summary = "keeps the contract"

    @staticmethod
    def rows(cohort):
        scales = [[np.nan_to_num(r.scale) for r in cohort.recordings_of(s)] for s in cohort.subjects]
        return np.log1p(np.array([np.mean(of_one, 0) for of_one in scales], float))

    def fit(self, cohort) -> None:
        rows = self.rows(cohort)
        self.mean, self.std = rows.mean(0), rows.std(0) + 1e-9

    def transform(self, cohort):
        return (self.rows(cohort) - self.mean) / self.std


class Noisy(Powers):
    """Adds a little global noise, and counts."""

    def transform(self, cohort):
        self.calls = getattr(self, "calls", 0) + 1
        return super().transform(cohort) + np.random.rand() + self.calls  # noqa: NPY002


class Lost(Powers):
    """Loses a subject and writes into the table."""

    def transform(self, cohort):
        cohort.participants["age"] = 0.0
        return super().transform(cohort)[1:] if len(cohort.subjects) > 1 else super().transform(cohort)


def test_a_good_baseline_passes_everything() -> None:
    results = check_component(Powers)
    assert all(r.outcome == "passed" for r in results), [r for r in results if r.outcome != "passed"]
    assert {r.check: r.message for r in results}["features"] == "12 features (fmri), 12 features (meg)"


@pytest.mark.parametrize(
    ("cls", "check", "message"),
    [
        (Noisy, "deterministic", "chance without a seed of its own.*or global random state"),
        (Lost, "features", r"shape \(5, 12\), not \(6, features\)"),
        (Lost, "cohort-is-left-alone", "participants table is changed"),
    ],
)
def test_a_broken_baseline_fails_where_it_is_broken(cls, check: str, message: str) -> None:
    (result,) = check_component(cls, only=check)
    assert result.outcome == "failed"
    assert re.search(message, result.message), result.message


class Sex(SubjectTask):
    """Keeps the contract."""

    name = "sexes"
    summary = "keeps the contract"
    kind = "classification"
    column = "sex"
    metrics = (Metric("auroc", "", True, 0.5, 1.0),)
    classes = ("F", "M")

    def refuses(self, cohort) -> str:
        people = cohort.participants
        return "" if "sex" in people and people["sex"].notna().any() else "no column 'sex'"

    def target(self, participants):
        return participants["sex"].map({"F": 0.0, "M": 1.0}).astype(float)


class Guessed(Sex):
    """Gives those without a value a class, numbers classes by order, and states its metric upside down."""

    metrics = (Metric("auroc", "", False, 0.5, 1.0),)

    def refuses(self, cohort) -> str:
        return ""

    def target(self, participants):
        return (participants["sex"] != participants["sex"].iloc[0]).astype(float)


def test_a_good_task_passes_everything() -> None:
    results = {r.check: r for r in check_component(Sex)}
    assert {c for c, r in results.items() if r.outcome != "passed"} == {
        "evaluation-masks",
        "epochs",
        "windows",
        "retrieval",
    }
    assert results["evaluation-masks"].outcome == "skipped"
    assert "perfect 1" in results["perfect-and-shuffled"].message


@pytest.mark.parametrize(
    ("check", "message"),
    [
        ("metrics", "auroc: best 1 and chance 0.5 contradict its direction"),
        ("target", "a missing value gets a target"),
        ("target-row-by-row", "a participant alone gets another class|fitted on all rows"),
        ("refusal", "does not refuse a cohort without 'sex'; does not refuse .* missing for everybody"),
    ],
)
def test_a_broken_task_fails_where_it_is_broken(check: str, message: str) -> None:
    (result,) = check_component(Guessed, only=check)
    assert result.outcome == "failed"
    assert re.search(message, result.message), result.message


class Hand(Sex):
    """Is about texts that no table of a check holds unless it is told."""

    name = "hand"
    column = "handedness"
    classes = ("right", "left")

    def refuses(self, cohort) -> str:
        known = self.column in cohort.participants and self.target(cohort.participants).notna().any()
        return "" if known else f"nobody has a {self.column}"

    def target(self, participants):
        return participants[self.column].map({"R": 0.0, "L": 1.0}).astype(float)


class Told(Hand):
    """Says what its column holds."""

    examples = ("R", "L", "ambidextrous")


class Score(Told):
    """Takes scores of a questionnaire, which have a range."""

    name = "score"
    kind = "regression"
    column = "total"
    examples = (0, 4, 11, 27)
    classes = ("", "")
    metrics = (Metric("mae", "points", False, float("nan"), 0.0),)

    def target(self, participants):
        values = pd.to_numeric(participants[self.column], errors="coerce").astype(float)
        return values.where(values.between(0, 27))


@pytest.mark.parametrize("cls", [Told, Score])
def test_examples_say_what_a_column_holds(cls) -> None:
    assert [r for r in check_component(cls) if not r.ok] == []


@pytest.mark.parametrize("check", ["target", "perfect-and-shuffled", "refusal"])
def test_values_that_are_not_known_are_asked_for(check: str) -> None:
    (result,) = check_component(Hand, only=check)
    assert result.outcome == "failed"
    assert "their 'handedness' is 'x', 'y', …" in result.message or "is 'y', 'x'" in result.message, result.message
    assert "examples = ('R', 'L')" in result.message


class Rescales(Score):
    """Writes into the table that it is given."""

    def target(self, participants):
        participants[self.column] = pd.to_numeric(participants[self.column], errors="coerce") / 27
        return participants[self.column].astype(float)


class Jitters(Score):
    """Adds noise."""

    def target(self, participants):
        return super().target(participants) + np.random.default_rng().normal(size=len(participants))


@pytest.mark.parametrize(
    ("cls", "check", "message"),
    [
        (Rescales, "participants-are-left-alone", "`target` changes the participants table"),
        (Jitters, "target-row-by-row", "changes from call to call"),
    ],
)
def test_a_task_that_writes_or_draws_is_told(cls, check: str, message: str) -> None:
    (result,) = check_component(cls, only=check)
    assert result.outcome == "failed"
    assert message in result.message


class OfAdults(Sex):
    """Is about some people only, whom a covariate names."""

    def target(self, participants):
        return super().target(participants).where(participants["age"] >= 30)


def test_a_covariate_may_say_who_is_meant() -> None:
    (result,) = check_component(OfAdults, only="target-of-its-column")
    assert result.outcome == "passed", result.message


class AsItStands(Score):
    """Returns the column's texts."""

    column = "handedness"
    examples = ("R", "L")

    def target(self, participants):
        return participants[self.column]


class Counts(Score):
    """Returns whole numbers."""

    def target(self, participants):
        return super().target(participants).fillna(0).astype("int64")


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (AsItStands, "such as '[RL]', not float. Say which number stands for which value"),
        (Counts, r"returns int64, not float: end it with \.astype\(float\)"),
    ],
)
def test_a_target_of_another_type_is_told_what_to_return(cls, message: str) -> None:
    (result,) = check_component(cls, only="target")
    assert result.outcome == "failed"
    assert re.search(message, result.message), result.message


class RowsOfRecordings(Baseline):
    """Makes a row a recording, which is the same as long as everybody has one."""

    name = "rows_of_recordings"
    summary = "log scale of every unit of every recording"

    def fit(self, cohort) -> None:
        """Learn nothing."""

    def transform(self, cohort):
        return np.array([np.where(r.present, r.scale, np.nan) for r in cohort.recordings])


class NeedsTheSex(RowsOfRecordings):
    """Takes for granted a covariate that is the target of some task."""

    name = "needs_the_sex"
    depends_on_task = True

    def transform(self, cohort):
        return (cohort.participants["sex"] == "F").to_numpy(float)[:, None]


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (RowsOfRecordings, r"shape \(8, 12\), not \(6, features\), where 6 subjects have 8 recordings: make one row a"),
        (NeedsTheSex, "reads 'sex' of the participants table, which is not there where 'sex' is the target"),
    ],
)
def test_a_baseline_that_takes_for_granted_what_a_run_may_lack_is_told(cls, message: str) -> None:
    (result,) = check_component(cls, only="features")
    assert result.outcome == "failed"
    assert re.search(message, result.message), result.message


class Folder(Dataset):
    """Takes any folder, and has a twin that is never the same."""

    name = "folder"
    summary = "wrong in many ways"
    card = DatasetCard("", "meg", "", "open", "", "none", "", "1", "all")
    signal = "parcels"
    modality = "fmri"
    twin_subjects = 3

    @property
    def spec(self) -> SignalSpec:
        return SignalSpec(window_s=15.0, patch_s=2.0, sfreq=0.5, band_hz=(0.01, 0.3))

    def list_recordings(self, root) -> Listing:
        people = pd.DataFrame(index=pd.Index(["a", "a"], name="participant_id"))
        files = tuple(RecordingFile("a", path, 0.5) for path in sorted(root.glob("*.npy")))
        return Listing(people, (*files, RecordingFile("b", root, 0.5)) if files else ())

    def read(self, file) -> RawRecording:
        units = UnitTable.from_groups(("x", "y"), ("", ""))
        return RawRecording(np.random.rand(2, 3), 500.0, units)  # noqa: NPY002

    def simulate(self, root, *, n_subjects, seed, variant) -> None:
        for i in range(2):
            np.save(root / f"{i}.npy", np.random.rand(2, 3))  # noqa: NPY002


@pytest.mark.parametrize(
    ("check", "message"),
    [
        ("card", "`title` is empty.*`licence` is empty.*the card says meg, the dataset fmri"),
        ("signal-spec", "7.5 patches of 2 s.*trivial to interpolate: 10 s.*above half of 0.5 Hz"),
        ("nothing-to-read", "an empty folder is not refused"),
        ("twin-is-the-same-twice", r"other bytes: 0\.npy, 1\.npy"),
        ("twin-variants", "variant default: there is no true_effects.json.*variant null.*variant confounded"),
        (
            "lists-and-reads",
            "2 participants.*not unique.*two recordings are called a_rest.*b has a recording.*500 Hz is no",
        ),
    ],
)
def test_a_broken_dataset_fails_where_it_is_broken(check: str, message: str) -> None:
    (result,) = check_component(Folder, only=check)
    assert result.outcome == "failed"
    assert re.search(message, result.message), result.message


class OnItsSide(Folder):
    """Opens a file without a look whether it is there, and returns (times, units)."""

    def list_recordings(self, root) -> Listing:
        (root / "participants.tsv").read_text(encoding="utf-8")
        raise AssertionError

    def read(self, file) -> RawRecording:
        return RawRecording(np.ones((3, 2)), 500.0, UnitTable.from_groups(("x", "y"), ("", "")))


def test_a_dataset_is_told_what_to_raise_and_what_is_a_row() -> None:
    (result,) = check_component(OnItsSide, only="nothing-to-read")
    assert "raises FileNotFoundError, not a DataError that says what was looked for" in result.message
    (result,) = check_component(
        type("Turned", (OnItsSide,), {"list_recordings": Folder.list_recordings}), only="lists-and-reads"
    )
    assert "data of shape (3, 2) for 2 units: rows are units, so return its transpose" in result.message


class SetsTheSeed(Folder):
    """Makes its twin from a seed that it sets for everybody."""

    def simulate(self, root, *, n_subjects, seed, variant) -> None:
        np.random.seed(seed)  # noqa: NPY002
        super().simulate(root, n_subjects=n_subjects, seed=seed, variant=variant)


def test_a_twin_that_sets_the_seed_for_everybody_is_told() -> None:
    (result,) = check_component(SetsTheSeed, only="twin-is-the-same-twice")
    assert result.outcome == "failed"
    assert "`simulate` sets the seed of numpy for everybody" in result.message


class Sorts(Figure):
    """Draws nothing, and leaves the table as it likes it."""

    name = "sorts"
    summary = "changes the evidence"

    def draw(self, evidence):
        evidence.table["score"] = 0.0
        return ()


class Forgets(Figure):
    """Has no yield in it."""

    name = "forgets"
    summary = "returns nothing"

    def draw(self, evidence):
        """Do nothing."""


@pytest.mark.parametrize(
    ("cls", "check", "message"),
    [
        (Sorts, "no-trace", "changes `evidence.table`"),
        (Forgets, "nothing-of-nothing", "draw returns None: it has to yield drawings"),
    ],
)
def test_a_figure_that_changes_the_evidence_or_yields_nothing_is_told(cls, check: str, message: str) -> None:
    (result,) = check_component(cls, only=check)
    assert result.outcome == "failed"
    assert message in result.message

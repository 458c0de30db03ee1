"""Contract checks: every cheat is caught by name, honest plugins pass, and the outcomes mean what they say."""

from __future__ import annotations

import functools
import importlib
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import neurobench.metrics
from neurobench.checks import check_component, checks_of
from neurobench.checks.common import demand, other_global_state, watched_files
from neurobench.contracts import (
    Backbone,
    Baseline,
    Component,
    Dataset,
    Figure,
    MaskingStrategy,
    Metric,
    SubjectTask,
    Task,
    TokenBackbone,
    feedforward_width,
)
from neurobench.errors import CheckError
from neurobench.plugins import KINDS, Registry, load_registry
from neurobench.records import DatasetCard, Listing, RawRecording, RecordingFile, SignalSpec, UnitTable
from neurobench_masks.random import Random

CHEATS = [
    ("constructor_reads_targets", "constructor-reads-nothing", r"constructor opened participants\.tsv"),
    ("carries_state", "no-state", "state is carried between batches: after another batch"),
    (
        "counts_its_steps",
        "resumes",
        r"goes on from a checkpoint ends with other values of backbone\.",
    ),
    ("starts_where_it_ended", "resumes", r"goes on from a checkpoint ends with other values of backbone\."),
    ("remembers_whole_windows", "no-state", "after the same batch with nothing hidden the tokens differ"),
    ("writes_in_training", "inputs-are-left-alone", r"a call opened .*neurobench-cheat-kept\.pt"),
    ("replaces_the_score", "replaces-nothing", r"its own code is found in place of neurobench\.metrics\.mean_over"),
    ("mixes_subjects", "subjects-do-not-mix", "subjects of a batch are mixed in eval mode.*alone"),
    ("sees_hidden", "hidden-values-stay-hidden", "hidden values reach the tokens in eval mode"),
    ("scaled_on_test", "subject-by-subject", r"something is fitted on test subjects in `transform` \(fmri; meg\)"),
    (
        "fitted_on_test_rows",
        "training-subjects-only",
        r"opened .*sub-009\.npy, which is no recording.*fitted on test rows",
    ),
    (
        "reads_the_age",
        "features",
        r"reads 'age' of the participants table, which is the target.*depends_on_task = True",
    ),
    ("task_fitted_on_test_rows", "target-row-by-row", "fitted on all rows, test rows among them"),
    ("scaled_over_everybody", "lists-and-reads", "without the recordings of others it has other data"),
    ("target_in_the_signal", "lists-and-reads", "somebody else's row of the participants table it has other data"),
    ("task_of_a_covariate", "target-of-its-column", "target is made of age, and `column` says 'fluid_intelligence'"),
    ("label_in_signal", "lists-and-reads", r"sub-.*: its signal changes with age of the participants table"),
    ("knows_the_names", "signal-only", r"change when people are called otherwise.*ids.*\(fmri; meg\)"),
    ("knows_the_file", "signal-only", r"lies in a file of its own.*such as its length.*\(fmri; meg\)"),
    ("neighbours_in_gallery", "retrieval", r"is looked for 0 s from one in the gallery.*the filter alone"),
    ("mask_global_state", "table-and-generator-only", "global state of random, numpy or torch"),
    ("mask_counts_calls", "table-and-generator-only", "depends on the calls before it: state is kept"),
    (
        "says_it_drops",
        "drops-hidden",
        r"said to leave hidden tokens out, and hidden units change the visible tokens.*hidden patches change",
    ),
    (
        "ignores_connectivity",
        "connectivity",
        "asks for connectivity, and another one changes the tokens by 0.0e\\+00 s.d. only",
    ),
    ("counts_missing_units", "routing", r"1\.0e\+00 off a sum of 1, or of 0 for a unit without valid tokens"),
    ("prompt_is_last_unit", "prompts", "prompts are taken for the last unit of the table"),
    ("ignores_prompts", "prompts", "prompts do not reach the tokens"),
    ("mask_says_whole_units", "hides-what-it-says", r"hides whole units, and of unit \d+ it hides 4 of 5 valid tokens"),
    ("mask_reads_signal", "table-and-generator-only", r"drawing a mask opened .*participants\.tsv"),
]


def cheat(name: str) -> type[Component]:
    module = importlib.import_module(f"cheats.{name}")
    own = (c for c in vars(module).values() if isinstance(c, type) and c.__module__ == module.__name__)
    (found,) = (c for c in own if issubclass(c, Component))
    return found


@pytest.mark.parametrize(("name", "check", "message"), CHEATS, ids=[c[0] for c in CHEATS])
def test_a_cheat_is_caught_by_name(name: str, check: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setattr(neurobench.metrics, "mean_over", neurobench.metrics.mean_over)  # One of them replaces it.
    (result,) = check_component(cheat(name), only=check)
    assert result.outcome == "failed", result
    assert re.search(message, result.message), result.message


@functools.cache
def registry() -> Registry:
    return load_registry()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "registered" in metafunc.fixturenames:
        cases = [
            pytest.param((cls, check), id=f"{kind}-{name}-{check}")
            for kind in KINDS
            for name, cls in registry().of(kind).items()
            for check in checks_of(cls)
        ]
        metafunc.parametrize("registered", cases)


def test_a_registered_plugin_keeps_its_contract(registered) -> None:
    cls, check = registered
    (result,) = check_component(cls, registry=registry(), only=check)
    if result.outcome == "skipped":
        pytest.skip(result.message)
    assert result.ok, f"{result.outcome}: {result.message}"


# ---------------------------------------------------------------- outcomes


class Fine(Random):
    """Nothing wrong with it."""


def test_all_checks_run_and_pass_on_an_honest_plugin() -> None:
    results = check_component(Fine)
    assert [r.check for r in results] == list(checks_of(Fine))
    assert all(r.ok for r in results), [r for r in results if not r.ok]
    assert {r.component for r in results} == {"random"}


class Sloppy(MaskingStrategy):
    """Wrong in many ways at once."""

    name = "Sloppy Mask"
    summary = ""

    def elements(self, window, n_hidden, rng):
        yield np.arange(window.valid.size + 1)


def test_everything_wrong_is_told_at_once() -> None:
    results = {r.check: r for r in check_component(Sloppy)}
    failed = {c for c, r in results.items() if r.outcome == "failed"}
    assert {"metadata", "elements-are-flat-indices", "equal-budget", "leaves-something-visible"} <= failed
    assert "`name` is 'Sloppy Mask'" in results["metadata"].message
    assert "`summary` is ''" in results["metadata"].message
    assert "yields token 60, and the table has 0 to 59" in results["elements-are-flat-indices"].message
    assert "IndexError" in results["equal-budget"].message


class Honest(Sloppy):
    """Says what it fails."""

    name = "honest"
    summary = "declares its failures"
    expected_failures: ClassVar = {
        "equal-budget": "hides one too many",
        "metadata": "was wrong once",
        "no-such": "a slip",
    }


def test_declared_failures_are_strict() -> None:
    results = {r.check: r for r in check_component(Honest)}
    assert results["equal-budget"].outcome == "expected-failure"
    assert "hides one too many" in results["equal-budget"].message
    assert results["equal-budget"].ok
    assert results["metadata"].outcome == "unexpected-pass"
    assert "remove it from expected_failures" in results["metadata"].message
    assert not results["metadata"].ok
    assert results["no-such"].outcome == "failed"
    assert "does not exist" in results["no-such"].message


def test_what_is_no_plugin_or_no_check_is_refused() -> None:
    with pytest.raises(CheckError, match=r"Registry is no plugin class.*a subclass of one of Backbone"):
        check_component(Registry)
    with pytest.raises(CheckError, match=r"no check 'equal' for random.*equal-budget"):
        check_component(Fine, only="equal")


def test_an_unavailable_component_is_skipped_with_its_reason() -> None:
    class Missing(Random):
        """Needs something."""

        @classmethod
        def unavailable(cls) -> str:
            return "needs a quantum computer"

    assert {(r.outcome, r.message) for r in check_component(Missing)} == {("skipped", "needs a quantum computer")}


# ---------------------------------------------------------------- backbones


class Attention(nn.Module):
    """One pass of masked attention and a feed-forward block, within the budget."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        hidden = feedforward_width(width, 4 * width * width + 8 * width)
        self.feed = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        bias = torch.zeros(valid.shape).masked_fill(~valid, -1e9)[..., None, :]
        x = x + self.out(((q @ k.transpose(-1, -2) / x.shape[-1] ** 0.5 + bias).softmax(-1)) @ v)
        return x + self.feed(self.norm2(x))


class Good(TokenBackbone):
    """Attention along units, then along time."""

    name = "good"
    summary = "keeps the contract"

    def __init__(self, spec) -> None:
        super().__init__(spec)
        self.passes = nn.ModuleList(Attention(spec.width) for _ in range(2 * spec.n_layers))

    def mix(self, tokens, table):
        for i, one in enumerate(self.passes):
            turned, valid = tokens.transpose(1, 2), table.valid.transpose(1, 2)
            tokens = one(tokens, table.valid) if i % 2 else one(turned, valid).transpose(1, 2)
        return tokens


def test_a_good_backbone_passes_everything() -> None:
    results = check_component(Good)
    assert all(r.outcome == "passed" for r in results), [r for r in results if r.outcome != "passed"]
    remarks = {r.check: r.message for r in results}
    assert "32 × 1" in remarks["parameter-budget"]
    assert "0.0%" in remarks["order-of-units"]


class Broken(Good):
    """A good backbone with one thing changed by its subclasses."""

    name = "broken"


class OneWay(Broken):
    """Sees only what comes before."""

    def mix(self, tokens, table):
        flat = tokens.flatten(1, 2)
        flat = flat.cumsum(1) / torch.arange(1, flat.shape[1] + 1)[None, :, None]
        return flat.view_as(tokens)


class Wide(Broken):
    """Twice the parameters."""

    def __init__(self, spec) -> None:
        super().__init__(spec)
        self.more = nn.ModuleList(Attention(spec.width) for _ in range(2 * spec.n_layers))


class Unmasked(Broken):
    """Attends to units that are missing."""

    def mix(self, tokens, table):
        return super().mix(tokens, replace(table, valid=table.valid | True))


class BatchNormed(Broken):
    """Normalises over the batch."""

    def __init__(self, spec) -> None:
        super().__init__(spec)
        self.batch_norm = nn.BatchNorm1d(spec.width)

    def mix(self, tokens, table):
        return self.batch_norm(super().mix(tokens, table).flatten(0, 2)).view_as(tokens)


class Blind(Broken):
    """Embeds all that is known of a sensor but what it measures."""

    def embed(self, signal, hidden, table):
        nothing = torch.zeros_like(table.orientation), torch.full_like(table.type, -1)
        return super().embed(signal, hidden, replace(table, orientation=nothing[0], type=nothing[1]))


class Dropped(Broken):
    """Leaves dropout on."""

    def mix(self, tokens, table):
        return nn.functional.dropout(super().mix(tokens, table), 0.1)


class Numpy(Broken):
    """Draws its weights from numpy."""

    def __init__(self, spec) -> None:
        super().__init__(spec)
        self.passes[0].out.bias.data += torch.from_numpy(np.random.rand(spec.width)).float()  # noqa: NPY002


class Secret(Broken):
    """Holds a weight that is none."""

    def __init__(self, spec) -> None:
        super().__init__(spec)
        self.secret = torch.randn(spec.width)

    def mix(self, tokens, table):
        return super().mix(tokens, table) * self.secret


class Wrong(Broken):
    """Returns one token a unit, in double precision, with a NaN."""

    def mix(self, tokens, table):
        return super().mix(tokens, table).mean(2, keepdim=True)

    def forward(self, signal, hidden, table):
        return super().forward(signal, hidden, table).double() * float("nan")


class Taken(Broken):
    """Calls a layer of its own what the embedding's is called."""

    def __init__(self, spec) -> None:
        super().__init__(spec)
        self.value = nn.ModuleList([nn.Linear(spec.width, spec.width)])


class Writes(Broken):
    """Writes into its input."""

    def forward(self, signal, hidden, table):
        signal += 1.0
        return super().forward(signal, hidden, table)


@pytest.mark.parametrize(
    ("cls", "check", "message"),
    [
        (OneWay, "reach", "the output at unit 0, patch 0 sees no other token"),
        (OneWay, "gradients", r"no gradient reaches passes\.0\.norm"),
        (Wide, "parameter-budget", r"at width 64 and 2 layers, \+\d\d% of the budget"),
        (
            Unmasked,
            "invalid-tokens",
            "missing units change the other tokens by .*padded patches change the other tokens",
        ),
        (BatchNormed, "subjects-do-not-mix", "mixed in train mode"),
        (BatchNormed, "no-state", "after another batch in train mode"),
        (Blind, "sensors", "other orientations change nothing.*other types change nothing"),
        (Dropped, "same-seed-same-bytes", "chance is left on"),
        (Numpy, "same-seed-same-bytes", r"the same seed builds different weights: passes\.0\.out\.bias"),
        (Secret, "weights-move", "after the weights are moved"),
        (Wrong, "output", r"returns \(batch, units, 1, width\), not \(batch, units, patches, width\); .*float64.*NaN"),
        (Taken, "builds", r"sets self\.value, which TokenBackbone embeds with"),
        (Taken, "output", r"raised NotImplementedError"),
        (Writes, "inputs-are-left-alone", "writes into `signal`"),
    ],
)
def test_a_broken_backbone_fails_where_it_is_broken(cls, check: str, message: str) -> None:
    (result,) = check_component(cls, only=check)
    assert result.outcome == "failed"
    assert re.search(message, result.message), result.message


def test_what_cannot_be_built_is_to_be_mended_first() -> None:
    told = {r.check: r.message for r in check_component(Taken) if r.outcome == "failed"}
    assert "impossible" not in told["builds"]
    assert told["reach"].endswith("Mend `builds` first: this may come of it.")


class Ending(MaskingStrategy):
    """Yields the first half of every unit and stops; nothing where that is nothing."""

    name = "half"
    summary = "the first half"

    def elements(self, window, n_hidden, rng):
        n_units, n_patches = window.valid.shape
        for unit in range(n_units):
            yield [unit * n_patches + p for p in range(n_patches // 2)]


def test_a_mask_that_ends_too_early_is_told_so_once() -> None:
    (result,) = check_component(Ending, only="equal-budget")
    assert re.search(r"do not suffice \(12 parcels × 5 patches, ratio 0\.5: .*; and \d+ more\)\. Yield", result.message)
    assert len(result.message) < 500
    (result,) = check_component(Ending, only="elements-are-flat-indices")
    assert "yields an empty list, which has no type: leave it out (30 parcels × 1 patches" in result.message


class Guessing(Baseline):
    """Asks a recording for what it does not have."""

    name = "guessed"
    summary = "a guess"

    def fit(self, cohort):
        """Learn nothing."""

    def transform(self, cohort):
        return np.stack([r.signal.mean(1) for r in cohort.recordings])


def test_a_wrong_guess_is_answered_by_what_there_is() -> None:
    (result,) = check_component(Guessing, only="features")
    assert re.search(r"has no attribute 'signal'; it has .*n_times, open, path, piece", result.message), result.message


class Double(BatchNormed):
    """Wrong in four ways, the first of which torch alone would tell of."""

    def mix(self, tokens, table):
        torch.manual_seed(3)
        table.position.zero_()
        return super().mix(tokens, table).double().transpose(1, 2)


def test_a_wrong_type_and_exchanged_axes_hide_nothing_else() -> None:
    told = {check: check_component(Double, only=check)[0] for check in (*TOLD, "weights-move")}
    for check, message in TOLD.items():
        assert message in told[check].message
    assert told["weights-move"].outcome == "passed"


TOLD = {
    "output": "returns (batch, patches, units, width), not (batch, units, patches, width); `mix` returns torch.float64",
    "subjects-do-not-mix": "mixed in train mode",
    "same-seed-same-bytes": "a call sets the seed of torch",
    "inputs-are-left-alone": "a call writes into `table.position`.",
}


class Detached(Broken):
    """Lets no gradient through."""

    def forward(self, signal, hidden, table):
        return super().forward(signal, hidden, table).detach()


def test_tokens_without_a_gradient_are_told_in_words() -> None:
    (result,) = check_component(Detached, only="reach")
    assert result.message.startswith("no gradient gets from the output back to the signal.")
    (result,) = check_component(Detached, only="subjects-do-not-mix")
    assert result.outcome == "passed"


@pytest.mark.parametrize("problem", ["it calls f()", "it calls f() (meg)", "it writes into `table`"])
def test_a_single_problem_is_told_as_it_is(problem: str) -> None:
    with pytest.raises(CheckError, match=f"^{re.escape(problem)}[.]"):
        demand([problem])


class Seeded(Random):
    """Sets the seed before it draws from its generator."""

    def elements(self, window, n_hidden, rng):
        np.random.seed(0)  # noqa: NPY002
        return super().elements(window, n_hidden, rng)


class Forgetful(Random):
    """Forgets to return."""

    def elements(self, window, n_hidden, rng):
        super().elements(window, n_hidden, rng)


def test_a_mask_that_sets_a_seed_or_returns_nothing_is_told() -> None:
    (seeded,) = check_component(Seeded, only="table-and-generator-only")
    assert seeded.message.startswith("drawing a mask sets the seed of numpy for everybody.")
    (nothing,) = check_component(Forgetful, only="elements-are-flat-indices")
    assert nothing.message.startswith("`elements` returns None")


class Half(Broken):
    """Returns half of every token."""

    def mix(self, tokens, table):
        return super().mix(tokens, table)[..., ::2]


class Unasked(Broken):
    """Has a signature of its own."""

    def mix(self, tokens):
        return tokens


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (Half, "`mix` returns (batch, units, patches, 16), not (batch, units, patches, width)."),
        (Unasked, "`mix(self, tokens)` cannot be called as it is: too many positional arguments."),
    ],
)
def test_what_cannot_be_put_right_is_told_in_one_sentence(cls, message: str) -> None:
    told = [check_component(cls, only=check)[0] for check in ("output", "no-state", "reach", "inputs-are-left-alone")]
    assert [r.message for r in told] == [message, message, message, ""]


def test_a_slow_import_is_told_and_fails_nothing() -> None:
    loaded = registry()
    key = ("mask", "random")
    plugin, files = loaded.sources[key]
    slow = replace(loaded, sources={**loaded.sources, key: (replace(plugin, import_s=7.0), files)})
    (result,) = check_component(Random, registry=slow, only="metadata")
    assert result.outcome == "passed"
    assert "importing it takes 7.0 s, for which every command waits" in result.message


# ---------------------------------------------------------------- baselines, tasks, datasets


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


# ---------------------------------------------------------------- what the checks stand on


def test_watching_sees_files_and_not_imports(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with watched_files() as seen:
        (tmp_path / "a.txt").read_text()
        importlib.reload(importlib.import_module("colorsys"))
    assert seen == [f"opened {tmp_path / 'a.txt'}"]
    (tmp_path / "a.txt").read_text()
    assert len(seen) == 1, "nothing is seen outside"


def test_a_problem_is_told_once_with_its_places() -> None:
    with pytest.raises(CheckError) as caught:
        demand(["it calls f()", "x (a)", "x (b)", "x (a)", "y"])
    assert caught.value.what == "it calls f(); x (a; b); y."


def test_global_state_is_put_back() -> None:
    def state() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002

    with other_global_state(3):
        with other_global_state(5):
            inner = state()
        after = state()
    with other_global_state(3):
        assert state() == after
    with other_global_state(5):
        assert state() == inner


def test_every_kind_has_its_own_checks() -> None:
    for base in (Backbone, MaskingStrategy, Task, Baseline, *KINDS.values()):
        assert len(checks_of(base)) > 6

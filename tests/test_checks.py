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
import pytest
import torch

import neurobench.metrics
from neurobench.checks import check_component, checks_of
from neurobench.checks.common import demand, other_global_state, watched_files
from neurobench.contracts import (
    Backbone,
    Baseline,
    Component,
    MaskingStrategy,
    Task,
)
from neurobench.errors import CheckError
from neurobench.plugins import KINDS, Registry, load_registry
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


def test_a_slow_import_is_told_and_fails_nothing() -> None:
    loaded = registry()
    key = ("mask", "random")
    plugin, files = loaded.sources[key]
    slow = replace(loaded, sources={**loaded.sources, key: (replace(plugin, import_s=7.0), files)})
    (result,) = check_component(Random, registry=slow, only="metadata")
    assert result.outcome == "passed"
    assert "importing it takes 7.0 s, for which every command waits" in result.message


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

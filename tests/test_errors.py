"""Errors say what is wrong, what is allowed, what was meant, what to do."""

from __future__ import annotations

import pickle

import pytest

from neurobench.config import RunConfig, expand
from neurobench.errors import ConfigErrors, DataError, closest, unknown_name
from neurobench.plugins import load_registry


def test_unknown_name_names_the_likely_one() -> None:
    error = unknown_name("backbone", "mamb", ["mamba", "transformer"])
    assert "backbone 'mamb' is not registered. Did you mean 'mamba'? Allowed: mamba, transformer." in str(error)
    assert "pip install -e ." in str(error)


def test_capitals_and_signs_do_not_hide_what_is_meant() -> None:
    assert closest("ADHD-200", ["adhd200", "camcan"]) == "adhd200"
    assert closest("MEG", ["fmri", "meg"]) == "meg"
    assert closest("nothing like it", ["fmri", "meg"]) == ""


def test_a_gpu_is_not_taken_for_the_cpu() -> None:
    config = RunConfig.from_options(backbone="mamba", mask="roi", device="GPU", profile="gpu")
    with pytest.raises(ConfigErrors) as caught:
        expand(config, load_registry())
    assert {p.likely for p in caught.value.problems} == {"cuda", "full"}


def test_all_problems_are_listed_at_once() -> None:
    error = ConfigErrors([DataError("one."), DataError("two.", allowed="three")])
    assert "2 problems, nothing was started" in str(error)
    assert "1. one." in str(error)
    assert "2. two. Allowed: three." in str(error)


def test_errors_survive_a_process_boundary() -> None:
    for error in (DataError("a", allowed="b", likely="c", next_step="d"), ConfigErrors([DataError("one.")])):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert str(again) == str(error)

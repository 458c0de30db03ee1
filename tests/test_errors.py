"""Errors say what is wrong, what is allowed, what was meant, what to do."""

from __future__ import annotations

import pickle

from neurobench.errors import ConfigErrors, DataError, unknown_name


def test_unknown_name_names_the_likely_one() -> None:
    error = unknown_name("backbone", "mamb", ["mamba", "transformer"])
    assert "backbone 'mamb' is not registered. Did you mean 'mamba'? Allowed: mamba, transformer." in str(error)
    assert "pip install -e ." in str(error)


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

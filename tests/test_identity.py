"""Canonical JSON, digests and seeds."""

from __future__ import annotations

import pytest

from neurobench.identity import canonical_json, digest, seed_for


def test_equal_values_give_equal_text_whatever_their_order() -> None:
    assert canonical_json({"b": (1, 2.0), "a": None}) == '{"a":null,"b":[1,2.0]}'
    assert digest({"x": 1, "y": 2}) == digest({"y": 2, "x": 1})
    assert digest({"x": 1}) != digest({"x": 1.5})


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), object(), {1, 2}])
def test_what_has_no_canonical_form_is_refused(bad: object) -> None:
    with pytest.raises((ValueError, TypeError), match="an identity cannot hold"):
        digest({"x": bad})


def test_seeds_are_stable_and_roles_apart() -> None:
    assert seed_for(0, "mask", "s1") == seed_for(0, "mask", "s1")
    seeds = {seed_for(b, r, a) for b in (0, 1) for r in ("mask", "split") for a in ("s1", "s2")}
    assert len(seeds) == 8
    assert all(0 <= s < 2**63 for s in seeds)

"""Canonical JSON, digests and seeds."""

from __future__ import annotations

import ast
import functools
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import neurobench
from neurobench import steps
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


# ---------------------------------------------------------------- code that decides numbers is part of identities

CORE = Path(neurobench.__file__).parent

DECIDES_NONE = {
    "alignment": "transfer takes the words of a message from it",
    "components": "names and parameters, which are in identities",
    "distributed": "alone it changes nothing, and with others its digest is added",
    "errors": "messages",
    "evidence": "what is kept beside a number",
    "filtering": "comes with alignment; prepared recordings have its digest",
    "hardware": "measures",
    "interrupts": "when a run stops",
    "logs": "tells",
    "options": "what is asked for, which is in identities",
    "out_of_memory": "retries in parts what does not fit",
    "parsing": "reads files that were written",
    "places": "where a file is written first",
    "progress": "tells",
    "resources": "where something is computed",
    "splits": "folds, which are in identities",
    "store": "keeps bytes",
}
"""Modules that steps' code imports and that no number depends on, or whose part is in identities otherwise."""

HERE_NONE = {
    "attribution_step": ("evoked", "grand_average", "metrics", "scoring"),  # intervals, which evidence is given later
    "embedding_step": ("attentive",),  # nothing is fitted
    "window_embedding_step": ("attentive",),
    "_retrieval_evaluation": ("attentive",),
    "reconstruction_evaluation": ("masking", "tokens"),  # scores of masks are stored
    "evoked_evaluation": (
        "grand_average",
        "masking",
        "reconstruction",
        "retrieval_scoring",
        "tokens",
        "window_scoring",
    ),
}
"""Modules that the code of some steps imports for what these steps do not do."""

OF_A_NETWORK = "pretraining_step"
"""The step whose key is in the identities of the others, but for those of baselines and fillers."""


@functools.cache
def imported(module: str) -> frozenset[str]:
    """Return the modules of the core that one imports to run, however far down."""
    found: set[str] = set()
    todo = [module]
    while todo:
        new = _imports(todo.pop()) - found
        found |= new
        todo += new
    return frozenset(found)


@functools.cache
def _imports(module: str) -> set[str]:
    found: set[str] = set()
    for node in _run(ast.parse((CORE / f"{module}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "neurobench":
            inside = (node.module or "").split(".")[1:2]
            found |= {n for n in inside or [a.name for a in node.names] if (CORE / f"{n}.py").is_file()}
    return found


def _run(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            yield node
            yield from _run(node)


@functools.cache
def digests() -> dict[str, set[str]]:
    """Return what each function of the core gives to ``code_digest``."""
    found: dict[str, set[str]] = {}
    for path in sorted(CORE.glob("*.py")):
        text = path.read_text(encoding="utf-8")
        for function in ast.walk(ast.parse(text)) if "code_digest(" in text else ():
            for call in ast.walk(function) if isinstance(function, ast.FunctionDef) else ():
                if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("code_digest"):
                    for argument in call.args:
                        name = ast.unparse(argument.value if isinstance(argument, ast.Starred) else argument)
                        one = importlib.import_module(f"neurobench.{path.stem}")
                        modules = vars(one)[name]
                        named = modules if isinstance(modules, tuple) else (modules,)
                        names = {(m if isinstance(m, str) else m.__name__).rpartition(".")[2] for m in named}
                        # Modules that build steps import what all of their steps need.
                        found.setdefault(function.name, set()).update(n for n in names if not n.endswith("_steps"))
    return found


def test_code_that_decides_the_numbers_of_a_step_is_part_of_its_identity() -> None:
    found = digests()
    assert len(found) > 8
    of_the_network = found[OF_A_NETWORK]
    for name, own in found.items():
        known = own | set(steps.COMMON) | DECIDES_NONE.keys() | set(HERE_NONE.get(name, ()))
        # Fillers have no network.
        if name not in ("reconstruction_step", "evoked_step"):
            known |= of_the_network
        lacking = {m: sorted(by for by in own if m in imported(by)) for o in own for m in imported(o) - known}
        assert not lacking, f"{name}: give them to code_digest, or say in this file why they decide no number"


def test_what_is_said_to_decide_no_number_is_imported_by_something() -> None:
    every = set().union(*(imported(m) for own in digests().values() for m in own))
    assert DECIDES_NONE.keys() <= every

"""Checks of masking strategies."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurobench.checks.common import Check, Skip, build, demand, other_global_state, seeds_set_by, watched_files
from neurobench.contracts import MaskingStrategy
from neurobench.errors import CheckError, ConfigError
from neurobench.masking import budget, draw
from neurobench.plugins import Registry
from neurobench.records import UnitTable, WindowTable
from neurobench.specimens import simulated_units, simulated_window

RATIOS = (0.1, 0.5, 0.75, 0.95)


def _tables(full: bool) -> Iterator[tuple[str, WindowTable]]:
    """Yield windows of every kind of signal, with and without groups, positions, gaps and padding."""
    sizes = [(12, 3, 5), (7, 2, 10), (1, 1, 4), (30, 5, 1), (2, 2, 2)]
    for kind in ("parcels", "sensors", "volume"):
        for n_units, n_groups, n_patches in sizes + ([(116, 7, 10), (60, 1, 16)] if full else []):
            for positions, gaps in ((True, False), (True, True), (False, False)):
                groups = n_groups if positions else 0
                units = simulated_units(n_units, groups, kind=kind, positions=positions)
                what = f"{n_units} {kind} × {n_patches} patches{', with gaps' if gaps else ''}"
                yield (
                    what if positions else f"{what}, no groups or positions",
                    simulated_window(units, n_patches, gaps=gaps),
                )


def _possible(cls: type[MaskingStrategy], full: bool) -> Iterator[tuple[str, MaskingStrategy, WindowTable]]:
    n = 0
    for what, window in _tables(full):
        strategy = build(cls)
        if not strategy.impossible(window.units):
            n += 1
            yield what, strategy, window
    if not n:
        raise CheckError("`impossible` refuses every table, with groups and positions or without.")


def _elements(strategy: MaskingStrategy, window: WindowTable, ratio: float, seed: int) -> list[NDArray[np.int64]]:
    """Return what a strategy yields, stopped where it would go on for ever."""
    made = strategy.elements(window, budget(window, ratio), np.random.default_rng(seed))
    if made is None:
        raise CheckError("`elements` returns None: it has to yield elements, or return an iterable of them.")
    limit = 4 * window.valid.size + 8
    elements = list(itertools.islice(made, limit + 1))
    if len(elements) > limit:
        raise CheckError(f"`elements` yields more than {limit} elements for {window.valid.size} tokens.")
    return elements


def _same(a: list[NDArray[np.int64]], b: list[NDArray[np.int64]]) -> bool:
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def elements_are_flat_indices(cls: type[MaskingStrategy], registry: Registry | None, full: bool) -> str:
    """Elements are one-dimensional integer arrays inside the table."""
    problems = []
    for what, strategy, window in _possible(cls, full):
        for element in _elements(strategy, window, 0.5, 0):
            array = np.asarray(element)
            if not array.size and array.dtype.kind == "f":
                problems.append(f"yields an empty list, which has no type: leave it out ({what})")
            elif array.dtype == bool:
                problems.append(
                    f"yields True and False, not the indices of tokens: np.flatnonzero(…) of a mask of "
                    f"(units, patches) has them ({what})"
                )
            elif array.dtype == object:
                problems.append(f"yields a {type(element).__name__}, not an array of integers ({what})")
            elif array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
                n = "one number" if array.ndim == 0 else f"{array.ndim} dimensions"
                found = n if np.issubdtype(array.dtype, np.integer) else f"{array.dtype}"
                problems.append(f"yields {found}, not a one-dimensional array of integers ({what})")
            elif array.size and (array.min() < 0 or array.max() >= window.valid.size):
                wrong = array.max() if array.max() >= window.valid.size else array.min()
                problems.append(f"yields token {wrong}, and the table has 0 to {window.valid.size - 1} ({what})")
    demand(problems)
    return ""


def equal_budget(cls: type[MaskingStrategy], registry: Registry | None, full: bool) -> str:
    """Exactly the promised number of valid tokens is scored, on any table and at any ratio."""
    problems, hidden_share, units_only = [], [], True
    for what, strategy, window in _possible(cls, full):
        for ratio, seed in itertools.product(RATIOS, range(6 if full else 2)):
            wanted = budget(window, ratio)
            try:
                drawn = draw(strategy, window, ratio, np.random.default_rng(seed))
            except ConfigError as error:
                problems.append(f"the elements do not suffice ({what}, ratio {ratio:g}: {error.what.rstrip('.')})")
                seen = [np.asarray(e, np.int64).ravel() for e in _elements(strategy, window, ratio, seed)]
                reached = np.concatenate([*seen, [-1]]).max()
                units_only &= reached < window.valid.shape[0] < window.valid.size
                continue
            n_scored = int(drawn.scored.sum())
            if n_scored != wanted and strategy.budgeted:
                problems.append(f"{n_scored} instead of {wanted} tokens are scored ({what}, ratio {ratio:g})")
            if (drawn.hidden & ~window.valid).any():
                problems.append(f"tokens that are not valid are hidden ({what})")
            if window.n_valid and not (window.valid & ~drawn.hidden).any():
                problems.append(f"nothing stays visible ({what}, ratio {ratio:g})")
            if ratio == 0.5 and window.n_valid:
                hidden_share.append(drawn.hidden.sum() / window.n_valid)
    hint = "Are these rows of units? Patch p of unit u is token u * n_patches + p. " if units_only else ""
    demand(problems, f"{hint}Yield whole elements until all tokens that can be hidden have been yielded.")
    return f"hides {np.mean(hidden_share):.0%} of the tokens to score 50 %"


def leaves_something_visible(cls: type[MaskingStrategy], registry: Registry | None, full: bool) -> str:
    """No single element takes the whole window where there are several units and patches."""
    for what, strategy, window in _possible(cls, full):
        if min(window.valid.any(1).sum(), window.valid.any(0).sum()) < 4:
            continue
        for element in _elements(strategy, window, 0.5, 0):
            taken = np.zeros(window.valid.size, bool)
            taken[np.asarray(element, np.int64)] = True
            if taken[window.valid.ravel()].all():
                raise CheckError(
                    f"one element hides all {window.n_valid} valid tokens ({what}): nothing is left to see.",
                    next_step="Yield less at once, or let `impossible` say of such units what they lack.",
                )
    return ""


def hides_what_it_says(cls: type[MaskingStrategy], registry: Registry | None, full: bool) -> str:
    """Where `hides` says whole units or whole times, every element is made of such, gaps and padding aside."""
    problems: dict[str, str] = {}
    axes = {"units": 1, "times": 0}
    whole = set(axes)
    hides_something = False
    for what, strategy, window in _possible(cls, full):
        if strategy.hides not in (*axes, "tokens"):
            raise CheckError(f"`hides` is {strategy.hides!r}, not units, times or tokens.")
        taken = np.zeros(window.valid.size, bool)
        for element in _elements(strategy, window, 0.5, 0):
            taken[np.asarray(element, np.int64)] = True
            hidden = taken.reshape(window.valid.shape) & window.valid
            hides_something |= bool(hidden.any())
            for kind, axis in axes.items():
                parts = hidden.any(axis) & (hidden != window.valid).any(axis)
                if not parts.any():
                    continue
                whole.discard(kind)
                if kind == strategy.hides:
                    at = int(parts.argmax())
                    n, of = (int(np.take(x, at, 1 - axis).sum()) for x in (hidden, window.valid))
                    said = f"says that it hides whole {kind}, and of {kind[:-1]} {at} it hides {n} of {of} valid tokens"
                    problems.setdefault(what, f"{said} ({what})")
    demand(list(problems.values())[:3], "Yield whole ones, or leave `hides` at tokens.")
    if hides_something and whole and strategy.hides == "tokens":
        kind = max(whole)
        return f'hides whole {kind}: with hides = "{kind}" backbones may leave hidden tokens out'
    return f"hides {strategy.hides}"


def table_and_generator_only(cls: type[MaskingStrategy], registry: Registry | None, full: bool) -> str:
    """The same table and the same generator give the same mask, whatever happened before and elsewhere."""
    problems = []
    for what, strategy, window in _possible(cls, full):
        with other_global_state(1), watched_files() as seen:
            first = _elements(build(cls), window, 0.5, 3)
        if seen:
            problems.append(f"drawing a mask {', '.join(seen[:3])}")
        with other_global_state(1):
            if not _same(first, _elements(build(cls), window, 0.5, 3)):
                problems.append(f"a second strategy with the same generator draws another mask ({what})")
                continue
        with other_global_state(2):
            if not _same(first, _elements(build(cls), window, 0.5, 3)):
                problems.append(
                    "the mask changes with the global state of random, numpy or torch, not only with its generator "
                    f"({what})"
                )
                continue
        with other_global_state(1):
            _elements(strategy, window, 0.5, 3)
            _elements(strategy, simulated_window(window.units, 3), 0.75, 8)
            if not _same(first, _elements(strategy, window, 0.5, 3)):
                problems.append(f"the mask depends on the calls before it: state is kept between calls ({what})")
                continue
        twin = WindowTable(_copied(window.units), window.unit.copy(), window.valid.copy())
        with other_global_state(1):
            if not _same(first, _elements(build(cls), twin, 0.5, 3)):
                problems.append(f"an equal table in other objects gets another mask ({what})")
    what, strategy, window = next(_possible(cls, full))
    problems += [
        f"drawing a mask sets the seed of {name} for everybody"
        for name in seeds_set_by(lambda: _elements(strategy, window, 0.5, 3))
    ]
    demand(problems, "Draw from `rng` alone, keep nothing on `self` between calls, read nothing.")
    return ""


def _copied(units: UnitTable) -> UnitTable:
    return copy.deepcopy(units)


def table_is_left_alone(cls: type[MaskingStrategy], registry: Registry | None, full: bool) -> str:
    """The table is read and never written."""
    for what, strategy, window in _possible(cls, full):
        before: dict[str, Any] = {"unit": window.unit.copy(), "valid": window.valid.copy()}
        described = window.units.describe()
        _elements(strategy, window, 0.5, 0)
        changed = [k for k, v in before.items() if not np.array_equal(v, getattr(window, k))]
        if window.units.describe() != described:
            changed.append("units")
        demand([f"writes into `{', '.join(changed)}` of the table ({what})"] if changed else [])
    return ""


def masks_differ(cls: type[MaskingStrategy], registry: Registry | None, full: bool) -> str:
    """Says (and never fails) whether different generators give different masks."""
    if not cls.pretrains:
        raise Skip("hides nothing")
    units = simulated_units(12, 3)
    if reason := build(cls).impossible(units):
        raise Skip(reason)
    window = simulated_window(units, 10)
    try:
        drawn = {draw(build(cls), window, 0.5, np.random.default_rng(i)).hidden.tobytes() for i in range(20)}
    except ConfigError:
        raise Skip("the elements do not suffice: see `equal-budget`") from None
    return f"{len(drawn)} different masks in 20 draws"


def refusals_explain(cls: type[MaskingStrategy], registry: Registry | None, full: bool) -> str:
    """`impossible` and `remark` return text, and a refusal says what to do instead."""
    problems = []
    for what, window in _tables(full):
        for method in ("impossible", "remark"):
            text = getattr(build(cls), method)(window.units)
            if not isinstance(text, str):
                problems.append(f"`{method}` returns {text!r}, not a text ({what})")
            elif method == "impossible" and text and len(text) < 20:
                problems.append(
                    f"`impossible` says only {text!r} ({what}): say what is missing and what to use instead"
                )
    demand(problems)
    return ""


CHECKS: dict[str, Check] = {
    "elements-are-flat-indices": elements_are_flat_indices,
    "equal-budget": equal_budget,
    "leaves-something-visible": leaves_something_visible,
    "hides-what-it-says": hides_what_it_says,
    "table-and-generator-only": table_and_generator_only,
    "table-is-left-alone": table_is_left_alone,
    "masks-differ": masks_differ,
    "refusals-explain": refusals_explain,
}

"""What a plugin and its classes must be to be registered at all; what they must do is for the contract checks."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Literal

import pluggy

from neurobench.contracts import Backbone, Baseline, Component, Dataset, Figure, MaskingStrategy, Task
from neurobench.errors import closest

__all__ = ["HOOKS", "KINDS", "NAME", "Kind", "wrong_class", "wrong_hooks"]

Kind = Literal["backbone", "mask", "dataset", "task", "baseline", "figure"]

KINDS: Mapping[Kind, type[Component]] = {
    "backbone": Backbone,
    "mask": MaskingStrategy,
    "dataset": Dataset,
    "task": Task,
    "baseline": Baseline,
    "figure": Figure,
}
HOOKS: Mapping[str, Kind] = {f"register_{kind}s": kind for kind in KINDS}
NAME = re.compile(r"[a-z][a-z0-9_]*")


def wrong_hooks(manager: pluggy.PluginManager, plugin: object) -> str:
    """Return what is wrong with the hooks of a registered plugin, or an empty string."""
    callers = manager.get_hookcallers(plugin) or []
    if not callers:
        return f"has no hook. Mark one of {', '.join(HOOKS)} with @hookimpl."
    for caller in callers:
        if not caller.has_spec():
            likely = closest(caller.name, HOOKS)
            meant = f" Did you mean {likely!r}?" if likely else ""
            return f"implements {caller.name!r}, which is no hook.{meant} Allowed: {', '.join(HOOKS)}."
    return ""


def wrong_class(kind: Kind, component: object) -> str:
    """Return what is wrong with a class as a component of this kind, or an empty string."""
    base = KINDS[kind]
    if not isinstance(component, type) or not issubclass(component, base):
        if isinstance(component, base):
            made = type(component).__name__
            return f"returns an object of {made} as a {kind}: return the class, {made} without parentheses"
        text = f"returns {component!r} as a {kind}, which is no subclass of {base.__name__}"
        own = next((k for k, b in KINDS.items() if isinstance(component, type) and issubclass(component, b)), None)
        return text + (f"; a {own} is returned from register_{own}s" if own else "")
    problems = []
    name = getattr(component, "name", None)
    if not isinstance(name, str) or not NAME.fullmatch(name):
        problems.append(f"has the name {name!r}; allowed: lower-case letters, digits and _, a letter first")
    summary = getattr(component, "summary", None)
    if not isinstance(summary, str) or not summary.strip() or "\n" in summary:
        problems.append("has no summary; it needs one line of text")
    if inspect.isabstract(component):
        missing = sorted(getattr(component, "__abstractmethods__", ()))
        meant = [n for m in missing if (n := closest(m, vars(component).keys() - {"__init__"}))]
        problems.append(f"does not implement {', '.join(missing)}{f' (is {meant[0]!r} meant?)' if meant else ''}")
    problems += _wrong_parameters(kind, component)
    problems += _wrong_signatures(component)
    return f"class {component.__qualname__}: {'; '.join(problems)}" if problems else ""


def _wrong_parameters(kind: Kind, component: type[Component]) -> Iterator[str]:
    given = {"self", "spec"} if kind == "backbone" else {"self"}
    for n, p in inspect.signature(component.__init__, eval_str=True).parameters.items():
        if p.kind is p.KEYWORD_ONLY:
            accepted = (int, float) if p.annotation is float else (p.annotation,)
            if p.annotation not in (bool, int, float, str):
                yield f"parameter {n!r} must be annotated with int, float, str or bool"
            elif p.default is p.empty:
                yield f"parameter {n!r} has no default"
            elif type(p.default) not in accepted:
                yield f"parameter {n!r} has the default {p.default!r}, which is no {p.annotation.__name__}"
        elif p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and n not in given and p.default is p.empty:
            yield f"the constructor argument {n!r} must be keyword-only, with a default"


def _wrong_signatures(component: type[Component]) -> Iterator[str]:
    """Say which methods cannot be called as the abstract ones are that they stand for."""
    asked_for = {
        name: method
        for cls in component.__mro__
        for name, method in vars(cls).items()
        if inspect.isfunction(method) and getattr(method, "__isabstractmethod__", False)
    }
    for name, asked in sorted(asked_for.items()):
        own = inspect.getattr_static(component, name)
        if not inspect.isfunction(own):
            continue
        parameters = inspect.signature(asked).parameters.values()
        by_place = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
        by_name = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
        try:
            inspect.signature(own).bind(*by_place, **dict.fromkeys(by_name))
        except TypeError as error:
            called = ", ".join([*by_place[1:], *(f"{n}=…" for n in by_name)])
            yield f"{name}{inspect.signature(own)} cannot be called as {name}({called}): {error}"

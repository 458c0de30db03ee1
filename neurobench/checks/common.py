"""What checks of every kind share, and the checks that apply to every component."""

from __future__ import annotations

import contextlib
import inspect
import random
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

from neurobench.contracts import Backbone, Component
from neurobench.errors import CheckError, NeurobenchError
from neurobench.intruders import intruders, own_files
from neurobench.plugins import Registry
from neurobench.records import BackboneSpec
from neurobench.resources import wrong_with
from neurobench.specimens import simulated_connectivity

__all__ = [
    "CHECKS",
    "LAST",
    "Check",
    "Skip",
    "build",
    "demand",
    "other_global_state",
    "raised",
    "seeds_set_by",
    "watched_files",
]

Check = Callable[[Any, Registry | None, bool], str]
"""Takes a class, the registry and whether to run in full; returns a remark, or raises CheckError or Skip."""

SLOW_IMPORT_S = 0.5
"""Importing torch, pandas and all built-in plugins together takes a few times as long."""

SPEC = BackboneSpec(n_units=12, n_groups=3, n_patches=5, n_features=6, width=32, n_layers=1)


class Skip(Exception):
    """Raised by a check that does not apply, with the reason."""


def demand(problems: list[str], next_step: str = "") -> None:
    """Raise a CheckError that tells all problems, if there are any; one that is in many places is told once."""
    places: dict[str, list[str]] = {}
    for problem in problems:
        in_a_place = " (" in problem and problem.endswith(")")
        what, _, where = problem.rpartition(" (") if in_a_place else (problem, "", "")
        places.setdefault(what, []).append(where)
    told = []
    for what, found in places.items():
        some = list(dict.fromkeys(w.removesuffix(")") for w in found if w))
        more = f"; and {len(some) - 2} more" if len(some) > 2 else ""
        told.append(f"{what} ({'; '.join(some[:2])}{more})" if some else what)
    if told:
        text = "; ".join(told)
        raise CheckError(text if text.endswith(".") else f"{text}.", next_step=next_step)


def raised(error: Exception, cls: type[Component]) -> str:
    """Say what a plugin raised, and where: the last line of its own file, or else the last one at all."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if f.filename == inspect.getsourcefile(cls)]
    frame = (own or frames)[-1]
    kind = "" if isinstance(error, NeurobenchError) else f"{type(error).__name__}: "
    what = str(error).partition(" Hint: enable anomaly detection")[0].partition("\n")[0]
    obj = getattr(error, "obj", None)  # of an AttributeError, what has no such attribute
    if type(obj).__module__.startswith("neurobench."):
        what += f"; it has {', '.join(n for n in dir(obj) if not n.startswith('_'))}"
    return f"{kind}{what} (in {frame.name}, {frame.filename}:{frame.lineno})"


# ---------------------------------------------------------------- files that are opened

# One list for all threads: a plugin that reads in a thread of its own is seen as well.
_seen: list[str] | None = None
_EVENTS = {
    "open": "opened",
    "os.listdir": "listed",
    "os.scandir": "listed",
    "os.system": "ran",
    "subprocess.Popen": "ran",
    "socket.connect": "connected to",
}
_HARMLESS = (".py", ".pyc", ".so", ".pth")
_hook_is_in = False


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    seen = _seen
    if seen is None or event not in _EVENTS:
        return
    what = str(arguments[-1] if event == "socket.connect" else arguments[0])
    # A lazy import reads files too, and so does torch to learn of the machine.
    if what.endswith(_HARMLESS) or what.startswith(("/proc", "/sys", "/dev")) or isinstance(arguments[0], int):
        return
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if "importlib" in frame.f_code.co_filename:
            return
        frame = frame.f_back
    seen.append(f"{_EVENTS[event]} {what}")


@contextlib.contextmanager
def watched_files() -> Iterator[list[str]]:
    """Yield a list that fills with every file, folder and address that is opened inside; imports are left out.

    What a compiled library opens by itself (HDF5) does not pass through Python and is not seen.
    """
    global _hook_is_in, _seen
    if not _hook_is_in:
        # Python cannot remove an audit hook: there is one, and it looks only while a list is there to fill.
        sys.addaudithook(_audit)
        _hook_is_in = True
    seen: list[str] = []
    _seen = seen
    try:
        yield seen
    finally:
        _seen = None


@contextlib.contextmanager
def other_global_state(seed: int) -> Iterator[None]:
    """Set the global generators of random, numpy and torch to a seed inside, and put them back after."""
    kept, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 - what plugins must not depend on
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(kept)
            np.random.set_state(legacy)  # noqa: NPY002


def seeds_set_by(action: Callable[[], Any]) -> list[str]:
    """Return the generators that are in one state after an action whatever state they were in before."""
    after: list[dict[str, Any]] = []
    for seed in (1, 2):
        with other_global_state(seed):
            action()
            legacy = np.random.get_state(legacy=False)  # noqa: NPY002
            after.append({"torch": torch.get_rng_state(), "numpy": legacy["state"], "random": random.getstate()})
    return [name for name, state in after[0].items() if str(state) == str(after[1][name])]


def build(cls: type[Any], spec: BackboneSpec = SPEC, seed: int = 0, legacy_seed: int = 0, **changed: Any) -> Any:
    """Build a component with its defaults, ``check_with`` and over them ``changed``.

    A backbone is given sizes and a seed of torch's generator, and connectivity if it asks for it; the generators of
    random and numpy, which it must not draw from, are at ``legacy_seed``.
    """
    if not issubclass(cls, Backbone):
        return cls(**dict(cls.check_with) | changed)
    with other_global_state(legacy_seed):
        torch.manual_seed(seed)
        backbone = cls(spec, **dict(cls.check_with) | changed)
    if backbone.uses_connectivity:
        backbone.connectivity.copy_(simulated_connectivity(spec.n_units, seed))
    return backbone


# ---------------------------------------------------------------- checks of every component


def metadata(cls: type[Component], registry: Registry | None, full: bool) -> str:
    """Name, one-line summary and version are there; says (and never fails) if importing it takes long."""
    problems = []
    name, summary = getattr(cls, "name", None), getattr(cls, "summary", None)
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        problems.append(f"`name` is {name!r}, not lower-case letters, digits and underscores")
    if not isinstance(summary, str) or not summary.strip() or "\n" in summary:
        problems.append(f"`summary` is {summary!r}, not one line that says what it does")
    if not isinstance(cls.score_version, int) or cls.score_version < 1:
        problems.append(f"`score_version` is {cls.score_version!r}, not an integer from 1 up")
    for check, reason in cls.expected_failures.items():
        if not reason:
            problems.append(f"`expected_failures` gives no reason for {check!r}")
    if wrong := wrong_with(cls.resources):
        problems.append(f"`resources`: {wrong}")
    if not isinstance(cls.unavailable(), str):
        problems.append("`unavailable()` does not return a text")
    if not (inspect.getdoc(cls) or "").strip():
        problems.append("the class has no docstring")
    demand(problems)
    sources = registry.sources.items() if registry is not None else ()
    import_s = max((plugin.import_s for (_, n), (plugin, _) in sources if n == name), default=0.0)
    if import_s < SLOW_IMPORT_S:
        return ""
    return (
        f"importing it takes {import_s:.1f} s, for which every command waits, whatever it is about: import what is "
        "slow where it is used"
    )


def parameters(cls: type[Component], registry: Registry | None, full: bool) -> str:
    """Every parameter has a type and a default, and the defaults build the component."""
    problems = []
    found = cls.component_parameters()
    for name, parameter in found.items():
        if parameter.annotation not in (int, float, str, bool):
            problems.append(f"parameter {name!r} is annotated {parameter.annotation!r}, not int, float, str or bool")
        if parameter.default is inspect.Parameter.empty:
            problems.append(f"parameter {name!r} has no default")
    unknown = sorted(set(cls.check_with) - set(found))
    if unknown:
        problems.append(f"`check_with` names {', '.join(unknown)}, and there is no such parameter")
    extra = [
        p.name
        for p in inspect.signature(cls.__init__).parameters.values()
        if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and cls.__init__ is not object.__init__
    ]
    if extra:
        problems.append(f"the constructor takes *{' and *'.join(extra)}: misspelt parameters would pass unseen")
    if "__init__" in vars(cls):  # what a base of neurobench takes is its own affair
        given = {"self", "spec"} if issubclass(cls, Backbone) else {"self"}
        fixed = [
            p.name
            for p in inspect.signature(cls.__init__).parameters.values()
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.name not in given
        ]
        problems += [f"nobody can set {n!r}, as `[{n}=…]` does: it is not keyword-only" for n in fixed]
    demand(problems, "Make every parameter keyword-only, typed, with a default.")
    build(cls)
    return ", ".join(f"{n}={p.default}" for n, p in found.items())


def constructor_reads_nothing(cls: type[Component], registry: Registry | None, full: bool) -> str:
    """Building a component opens no file: targets, recordings and weights come through its arguments or not at all."""
    with watched_files() as seen:
        try:
            build(cls)
        except FileNotFoundError:
            if not seen:
                raise
    if seen:
        raise CheckError(
            f"the constructor {', '.join(_short(s) for s in dict.fromkeys(seen))}.",
            allowed="its arguments, and nothing else",
            next_step="A component that reads files when it is built can read the targets. Read in `read`, or take a "
            "parameter and read where data are due.",
        )
    return ""


def _short(seen: str) -> str:
    action, _, what = seen.partition(" ")
    path = Path(what)
    return f"{action} {path.name or what}"


def replaces_nothing(cls: type[Component], registry: Registry | None, full: bool) -> str:
    """Whatever was called before, no code of the plugin is found in neurobench or in a library."""
    build(cls)
    own = own_files(cls.__module__, Path(inspect.getsourcefile(cls) or ""))
    demand(
        [f"its own code is found in place of {name}" for name in intruders(own)[:6]],
        "Call what you need and replace nothing: rows of everybody else would be computed by your code.",
    )
    return ""


CHECKS: dict[str, Check] = {
    "metadata": metadata,
    "parameters": parameters,
    "constructor-reads-nothing": constructor_reads_nothing,
}
"""Checks of every kind, before its own."""

LAST: dict[str, Check] = {"replaces-nothing": replaces_nothing}
"""When everything of the component has been called."""

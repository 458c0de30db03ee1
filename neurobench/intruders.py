"""Code of a plugin in places that are not its own: whoever replaces a metric decides what every number says.

A plugin shares the process with everything that judges it, so that nothing can keep it from writing into other
modules. What it leaves there can be seen, because a function knows the file that it was written in.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any

__all__ = ["WATCHED", "intruders", "own_files"]

WATCHED = ("neurobench", "torch", "numpy", "scipy", "sklearn", "pandas")
"""Packages that results are computed with."""

DEPTH = 2
"""How far down in packages of others: ``torch.nn.functional`` is two below ``torch``. A whole torch takes seconds."""


def own_files(module: str, file: Path | None = None) -> Callable[[str], bool]:
    """Return whether a file is a plugin's: its module, or anything in the package that this is part of.

    Parameters
    ----------
    module
        Name of the plugin's module, which may have failed to be imported.
    file
        Where it is, for a plugin that is a file of its own.
    """
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names:
        # Of a class that was made by calling `type`, Python says that it is of `abc`.
        return lambda name: False
    files = {str(file)} if file else set()
    folders: tuple[str, ...] = ()
    found = sys.modules.get(top)
    spec = getattr(found, "__spec__", None)
    if spec is None and found is None:
        with contextlib.suppress(ImportError, ValueError):
            spec = importlib.util.find_spec(top)
    if spec is not None:
        files |= {spec.origin} - {None}
        folders = tuple(f"{Path(p)}/" for p in spec.submodule_search_locations or ())
    return functools.cache(lambda name: name in files or name.startswith(folders))


def intruders(own: Callable[[str], bool], packages: Collection[str] = WATCHED) -> list[str]:
    """Return the names in other packages under which the code of a plugin is found, such as ``torch.mean``.

    Parameters
    ----------
    own
        Whether a file is the plugin's, see :func:`own_files`.
    packages
        Where to look.
    """
    found: dict[str, None] = {}
    for name, module in list(sys.modules.items()):
        root, *inside = name.split(".")
        if (
            root not in packages
            or len(inside) > (DEPTH if root != "neurobench" else 9)
            or type(module) is not ModuleType
        ):
            continue
        if own(getattr(module, "__file__", None) or ""):
            continue  # A plugin that is part of such a package.
        for attribute, value in list(vars(module).items()):
            if _is_of(value, own):
                found[f"{name}.{attribute}"] = None
            elif issubclass(type(value), type) and value.__module__ == name:
                for method in _methods_of(value, own):
                    found[f"{name}.{attribute}.{method}"] = None
    return list(found)


def _methods_of(cls: type, own: Callable[[str], bool]) -> Iterator[str]:
    for name, value in list(vars(cls).items()):
        if type(value) is property:
            if any(_is_of(f, own) for f in (value.fget, value.fset, value.fdel)):
                yield name
        elif not issubclass(type(value), type) and _is_of(value, own):
            yield name


def _is_of(value: Any, own: Callable[[str], bool]) -> bool:
    """Whether a value is code from one of the files: a function, a class, or an object that can be called."""
    # By type(), not isinstance(): libraries have objects there that warn, or import, once they are asked what they are.
    while (kind := type(value)) in (functools.partial, staticmethod, classmethod, MethodType):
        value = value.func if kind is functools.partial else value.__func__
    if kind is FunctionType:
        # Not ``__module__``, nor what `functools.wraps` leaves: the code itself.
        return own(value.__code__.co_filename)
    cls = value if issubclass(kind, type) else kind
    if cls.__module__ in ("builtins", "types", "typing"):
        return False
    return own(getattr(sys.modules.get(cls.__module__), "__file__", None) or "")

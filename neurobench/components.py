"""Components as a user writes them: ``roi[rule=pure]``, read, checked and resolved; files by their content."""

from __future__ import annotations

import functools
import inspect
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurobench.errors import ConfigError, closest
from neurobench.identity import digest, file_digest
from neurobench.parsing import user_path

if TYPE_CHECKING:
    from neurobench.contracts import Component
    from neurobench.plugins import Kind, Registry

__all__ = [
    "ComponentSpec",
    "Setting",
    "from_outside",
    "label_of",
    "of_content",
    "parse_component",
    "parse_setting",
    "read_component",
    "split_names",
]

Value = bool | int | float | str


@dataclass(frozen=True)
class ComponentSpec:
    """A component as asked for, with all its parameters resolved.

    Parameters
    ----------
    kind, name
        Such as ``mask`` and ``roi``.
    parameters, defaults
        Every parameter of the component: its value here, and the one it has when nothing is said. Of a file it is the
        hash of the content, see :func:`of_content`.
    files
        By parameter, where its file lies on this machine; no part of what the component is.
    """

    kind: Kind
    name: str
    parameters: Mapping[str, Value] = field(default_factory=dict)
    defaults: Mapping[str, Value] = field(default_factory=dict, compare=False, repr=False)
    files: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.kind, self.name, tuple(self.parameters.items())))

    def __hash__(self) -> int:
        # Kept: what a grid's steps share is looked up by their components many times for each of them.
        return self._hash

    def __getstate__(self) -> dict[str, Any]:
        # Text hashes otherwise in another process.
        return {name: value for name, value in self.__dict__.items() if name != "_hash"}

    @functools.cached_property
    def label(self) -> str:
        """``roi[rule=pure]``: the name, and the parameters that are not at their defaults."""
        return label_of(self.name, self.parameters, self.defaults)

    @property
    def arguments(self) -> dict[str, Value]:
        """The parameters to build the component with on this machine."""
        return {**self.parameters, **self.files}

    @property
    def from_outside(self) -> bool:
        """Whether a file decides what the component does."""
        return from_outside(self.parameters)

    def identity(self) -> dict[str, Any]:
        """Return the name and all parameters, defaults among them."""
        return {"name": self.name, "parameters": dict(self.parameters)}


def label_of(name: str, parameters: Mapping[str, Value], defaults: Mapping[str, Value]) -> str:
    """Return a name and, in brackets, the parameters that are not at their defaults."""
    changed = [f"{k}={_text(v)}" for k, v in parameters.items() if v != defaults.get(k)]
    return f"{name}[{','.join(changed)}]" if changed else name


CONTENT = re.compile(r"(?:^|@)sha256:[0-9a-f]{16}$")
"""How a parameter ends that stands for the content of files."""


def from_outside(parameters: Mapping[str, Any]) -> bool:
    """Return whether a file decides what a component with these parameters does."""
    return any(isinstance(v, str) and CONTENT.search(v) for v in parameters.values())


def names_files(parameters: Mapping[str, Any]) -> bool:
    """Return whether a parameter names a file or a folder, by its place or by its content."""
    return from_outside(parameters) or any(isinstance(v, str) and re.search(r"[\\/]", v) for v in parameters.values())


def of_content(value: str, files: Sequence[Path]) -> str:
    """Return what stands for a value that names files: their hash, after the name if that is no path.

    ``sha256:0f1e2d3c4b5a6978`` of a file or folder of the user, ``NAME@sha256:0f1e2d3c4b5a6978`` of what a cache holds
    under a name.
    """
    found = file_digest(files[0]) if len(files) == 1 else digest({f.name: file_digest(f) for f in files})
    text = f"sha256:{found[:16]}"
    return text if os.path.exists(user_path(value)) else f"{value}@{text}"


def _text(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def split_names(text: str) -> list[str]:
    """Split at commas that are not inside brackets.

    >>> split_names("hybrid[layout=MA],adhd200[signal=parcels,atlas=cc200]")
    ['hybrid[layout=MA]', 'adhd200[signal=parcels,atlas=cc200]']
    """
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "[") - (letter == "]")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [p.strip() for p in parts if p.strip()]


_COMPONENT = re.compile(r"(?P<name>[^\[\]:=]+)(?::(?P<column>[^\[\]]+))?(?:\[(?P<inside>.*)\])?")


def parse_component(kind: Kind, text: str, registry: Registry) -> ComponentSpec:
    """Resolve ``name[parameter=value,…]``; ``target:full_iq`` is short for ``target[column=full_iq]``.

    Raises
    ------
    ConfigError
        If the text cannot be read or a parameter is unknown or of the wrong type.
    UnknownNameError, PluginError
        If nothing provides the name, or what provides it cannot be used.
    """

    def accepted(name: str) -> Mapping[str, inspect.Parameter]:
        found: type[Component] = registry.get(kind, name)
        return _accepted(found)  # type: ignore[arg-type]  # a class can be hashed, which mypy denies

    name, defaults, changed = read_component(kind, text, accepted, "")
    cls = registry.get(kind, name)
    # A record says what a file held, not where it lay: such a label can be read where the file is not.
    here = {n: defaults[n] if CONTENT.search(str(v)) else v for n, v in changed.items()}
    named = {n: files for n, files in cls.named_files({**defaults, **here}).items() if n in defaults}
    resolved = {**defaults, **changed, **{n: of_content(str(changed.get(n, defaults[n])), f) for n, f in named.items()}}
    return ComponentSpec(kind, name, resolved, defaults, {n: str(changed.get(n, defaults[n])) for n in named})


@functools.cache
def _accepted(cls: type[Component]) -> Mapping[str, inspect.Parameter]:
    """Return what a user may set of a component; a large grid asks many thousand times."""
    return cls.component_parameters()


@dataclass(frozen=True)
class Setting:
    """An option with parameters that is no plugin, such as ``prompt[tokens=4]``, resolved.

    Parameters
    ----------
    name
        Such as ``prompt``.
    parameters, defaults
        As of :class:`ComponentSpec`.
    """

    name: str
    parameters: Mapping[str, Value] = field(default_factory=dict)
    defaults: Mapping[str, Value] = field(default_factory=dict, compare=False, repr=False)

    @property
    def label(self) -> str:
        """The name, and the parameters that are not at their defaults."""
        return label_of(self.name, self.parameters, self.defaults)

    def identity(self) -> dict[str, Any]:
        """Return the name and all parameters, defaults among them."""
        return {"name": self.name, "parameters": dict(self.parameters)}


def parse_setting(option: str, text: str, known: Mapping[str, Mapping[str, Value]]) -> Setting:
    """Resolve ``name[parameter=value,…]`` of an option whose names and parameters are known beforehand.

    Parameters
    ----------
    option
        Such as ``adaptation``.
    text
        As a user writes it.
    known
        Name to parameters, each with its default; a value has the type of the default.

    Raises
    ------
    ConfigError
        If the text cannot be read, or name, parameter or type are wrong.
    """

    def accepted(name: str) -> dict[str, inspect.Parameter]:
        if name not in known:
            raise ConfigError(
                f"--{option} cannot be {text!r}.",
                allowed=", ".join(label_of(n, own, {}) for n, own in known.items()),
                likely=closest(name, known),
            )
        kind = inspect.Parameter.KEYWORD_ONLY
        return {n: inspect.Parameter(n, kind, default=d, annotation=type(d)) for n, d in known[name].items()}

    name, defaults, changed = read_component(option, text, accepted, f"Write --{option} NAME[…].")
    return Setting(name, {**defaults, **changed}, defaults)


def read_component(
    kind: str, text: str, accepted_by: Callable[[str], Mapping[str, inspect.Parameter]], more: str
) -> tuple[str, dict[str, Value], dict[str, Value]]:
    """Read ``name[parameter=value,…]``.

    Parameters
    ----------
    kind
        What it is called in errors.
    text
        As a user wrote it.
    accepted_by
        Returns the parameters of what has a name, or raises.
    more
        Where a user reads more; empty: in `neurobench info NAME`.

    Returns
    -------
    name, defaults, changed
        Every parameter's default, and the values that were given.
    """
    match = _COMPONENT.fullmatch(text.strip())
    if match is None:
        raise ConfigError(
            f"{kind} {text!r} cannot be read.",
            allowed="name, or name[parameter=value,parameter=value]",
            next_step="In a shell, put quotes around the brackets.",
        )
    name = match["name"].strip()
    accepted = accepted_by(name)
    more = more or f"See `neurobench info {name}`."
    given: list[tuple[str, str]] = [("column", match["column"])] if match["column"] else []
    for part in split_names(match["inside"] or ""):
        parameter, equals, value = part.partition("=")
        if not equals or not value:
            raise ConfigError(
                f"{part!r} in {kind} {text!r} gives no value.",
                allowed=_signature(accepted),
                next_step="Write parameter=value.",
            )
        given.append((parameter.strip(), value.strip()))
    defaults: dict[str, Value] = {n: p.default for n, p in accepted.items()}
    changed: dict[str, Value] = {}
    for parameter, value in given:
        if parameter not in accepted:
            raise ConfigError(
                f"{kind} {name!r} has no parameter {parameter!r}.",
                allowed=_signature(accepted),
                likely=closest(parameter, accepted),
                next_step=more,
            )
        if parameter in changed:
            raise ConfigError(f"{kind} {text!r} sets {parameter!r} twice.", next_step="Leave one of them out.")
        changed[parameter] = _convert(kind, name, parameter, value, accepted[parameter].annotation, more)
    return name, defaults, changed


def _signature(accepted: Mapping[str, Any]) -> str:
    shown = [f"{n}={_text(p.default)} ({p.annotation.__name__})" for n, p in accepted.items()]
    return ", ".join(shown) or "no parameters"


_BOOLS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def _convert(kind: str, name: str, parameter: str, text: str, wanted: type, more: str) -> Value:
    try:
        if wanted is bool:
            return _BOOLS[text.lower()]
        if wanted is int:
            return int(text)
        if wanted is float:
            number = float(text)
            if not math.isfinite(number):
                raise ValueError
            # So that 2 and 2.0 are one thing in a label.
            return number
        return text
    except (ValueError, KeyError):
        words = {bool: "true or false", int: "a whole number", float: "a number"}
        raise ConfigError(
            f"parameter {parameter!r} of {kind} {name!r} cannot be {text!r}.",
            allowed=words[wanted],
            next_step=more,
        ) from None

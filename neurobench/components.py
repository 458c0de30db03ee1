"""Components as a user writes them: ``roi[rule=pure]``, read, checked and resolved."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from neurobench.errors import ConfigError, closest

if TYPE_CHECKING:
    from neurobench.plugins import Kind, Registry

__all__ = ["ComponentSpec", "Setting", "parse_component", "parse_setting", "split_names"]

Value = bool | int | float | str


@dataclass(frozen=True)
class ComponentSpec:
    """A component as asked for, with all its parameters resolved.

    Parameters
    ----------
    kind, name
        Such as ``mask`` and ``roi``.
    parameters, defaults
        Every parameter of the component: its value here, and the one it has when nothing is said.
    """

    kind: Kind
    name: str
    parameters: Mapping[str, Value] = field(default_factory=dict)
    defaults: Mapping[str, Value] = field(default_factory=dict, compare=False, repr=False)

    def __hash__(self) -> int:
        return hash((self.kind, self.name, tuple(self.parameters.items())))

    @property
    def label(self) -> str:
        """``roi[rule=pure]``: the name, and the parameters that are not at their defaults."""
        return _label(self)

    def identity(self) -> dict[str, Any]:
        """Return the name and all parameters, defaults among them."""
        return {"name": self.name, "parameters": dict(self.parameters)}


def _label(spec: ComponentSpec | Setting) -> str:
    changed = [f"{k}={_text(v)}" for k, v in spec.parameters.items() if v != spec.defaults.get(k)]
    return f"{spec.name}[{','.join(changed)}]" if changed else spec.name


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
    name, given = _read(kind, text)
    accepted = {
        n: Accepted(p.annotation, p.default) for n, p in registry.get(kind, name).component_parameters().items()
    }
    return ComponentSpec(kind, name, *_resolved(kind, text, name, given, accepted, f"See `neurobench info {name}`."))


@dataclass(frozen=True)
class Accepted:
    """What a parameter may be, and what it is where nothing is said."""

    type: type
    default: Value


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
        return _label(self)

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
    name, given = _read(option, text)
    if name not in known:
        raise ConfigError(
            f"--{option} cannot be {text!r}.",
            allowed=", ".join(_label(Setting(n, own)) for n, own in known.items()),
            likely=closest(name, known),
        )
    accepted = {n: Accepted(type(default), default) for n, default in known[name].items()}
    return Setting(name, *_resolved(option, text, name, given, accepted, f"Write --{option} {name}[…]."))


def _read(kind: str, text: str) -> tuple[str, list[tuple[str, str]]]:
    """Return the name, and the parameters as text; a part without a value has an empty one."""
    match = _COMPONENT.fullmatch(text.strip())
    if match is None:
        raise ConfigError(
            f"{kind} {text!r} cannot be read.",
            allowed="name, or name[parameter=value,parameter=value]",
            next_step="In a shell, put quotes around the brackets.",
        )
    given: list[tuple[str, str]] = [("column", match["column"])] if match["column"] else []
    for part in split_names(match["inside"] or ""):
        parameter, equals, value = part.partition("=")
        given.append((parameter.strip(), value.strip()) if equals and value else (part, ""))
    return match["name"].strip(), given


def _resolved(
    kind: str,
    text: str,
    name: str,
    given: list[tuple[str, str]],
    accepted: Mapping[str, Accepted],
    next_step: str,
) -> tuple[dict[str, Value], dict[str, Value]]:
    """Return all parameters and all defaults."""
    defaults = {n: p.default for n, p in accepted.items()}
    changed: dict[str, Value] = {}
    for parameter, value in given:
        if not value:
            raise ConfigError(
                f"{parameter!r} in {kind} {text!r} gives no value.",
                allowed=_signature(accepted),
                next_step="Write parameter=value.",
            )
        if parameter not in accepted:
            raise ConfigError(
                f"{kind} {name!r} has no parameter {parameter!r}.",
                allowed=_signature(accepted),
                likely=closest(parameter, accepted),
                next_step=next_step,
            )
        if parameter in changed:
            raise ConfigError(f"{kind} {text!r} sets {parameter!r} twice.", next_step="Leave one of them out.")
        changed[parameter] = _convert(kind, name, parameter, value, accepted[parameter].type, next_step)
    return {**defaults, **changed}, defaults


def _signature(accepted: Mapping[str, Accepted]) -> str:
    shown = [f"{n}={_text(p.default)} ({p.type.__name__})" for n, p in accepted.items()]
    return ", ".join(shown) or "no parameters"


_BOOLS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def _convert(kind: str, name: str, parameter: str, text: str, wanted: type, next_step: str) -> Value:
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
            next_step=next_step,
        ) from None

"""Suite files: a run written down, in YAML that can run no code."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pydantic
import yaml

from neurobench.components import split_names
from neurobench.config import CHOICES, RunConfig
from neurobench.errors import ConfigError, ConfigErrors, NeurobenchError, closest

__all__ = ["load_suite"]


def load_suite(path: Path | str) -> RunConfig:
    """Read a suite file: YAML, with the fields of :class:`RunConfig` less ``out``.

    Relative paths in it are relative to its folder.

    Raises
    ------
    ConfigErrors
        With everything that is wrong in the file.
    """
    path = Path(path).expanduser()
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"the suite file {path} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"the suite file {path} is no YAML: {' '.join(str(error).split())}.") from None
    known = [f.name for f in fields(RunConfig) if f.name != "out"]
    if not isinstance(content, dict):
        raise ConfigError(f"the suite file {path} holds no settings.", allowed=", ".join(known))
    problems: list[NeurobenchError] = [
        ConfigError(f"{path.name}: {key!r} is no setting.", allowed=", ".join(known), likely=closest(str(key), known))
        for key in content
        if key not in known
    ]
    settings = {k: v for k, v in content.items() if k in known}
    for name in ("backbones", "masks", "datasets", "tasks"):
        if isinstance(settings.get(name), str):
            settings[name] = split_names(settings[name])
    for name in ("seeds", "plugin_files"):
        if isinstance(settings.get(name), str | int):
            settings[name] = [settings[name]]
    if isinstance(settings.get("data_dirs"), str):
        settings["data_dirs"] = {"": settings["data_dirs"]}
    try:
        config = pydantic.TypeAdapter(RunConfig).validate_python(settings)
    except pydantic.ValidationError as error:
        for e in error.errors():
            where = ".".join(map(str, e["loc"]))
            problems.append(ConfigError(f"{path.name}: {where} cannot be {e['input']!r}.", allowed=_allowed(where, e)))
        raise ConfigErrors(problems) from None
    if problems:
        raise ConfigErrors(problems)
    return replace(
        config,
        data_dirs={k: path.parent / v.expanduser() for k, v in config.data_dirs.items()},
        plugin_files=tuple(path.parent / f.expanduser() for f in config.plugin_files),
    )


def _allowed(where: str, error: Any) -> str:
    if where in CHOICES:
        return ", ".join(CHOICES[where])
    message: str = error["msg"]
    return message[:1].lower() + message[1:].rstrip(".")

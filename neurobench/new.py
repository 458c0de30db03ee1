"""A new plugin as a small package that can be installed, checked and published: ``neurobench new``."""

from __future__ import annotations

import importlib.util
import keyword
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import jinja2

import neurobench
from neurobench.errors import ConfigError, closest
from neurobench.plugin_rules import KINDS, NAME
from neurobench.plugins import Kind, Registry
from neurobench.store import disk_errors

__all__ = ["EXAMPLES", "new_plugin"]

WORDS = {"mask": "masking strategy"}
"""What a kind is called where that is not its name."""

EXAMPLES: Mapping[str, str] = {
    "backbone": "neurobench run --backbone {name},mamba --mask roi,random_tube --dataset adhd200",
    "mask": "neurobench run --backbone mamba --mask {name},random_tube --dataset adhd200",
    "dataset": "neurobench run --backbone mamba --mask roi --dataset {name}   # its simulated twin",
    "task": "neurobench run --backbone mamba --mask roi --dataset adhd200 --task {name}",
    "baseline": "neurobench run --backbone mamba --mask roi --dataset adhd200   # one row more in every table",
    "figure": "neurobench report neurobench-results   # one picture more in every report",
}
"""How one of a kind is run beside what comes with neurobench."""

OWN = "neurobench-fm"

FILES = {
    "pyproject.toml.j2": "pyproject.toml",
    "README.md.j2": "README.md",
    "gitignore.j2": ".gitignore",
    "test_contract.py.j2": "tests/test_contract.py",
    "workflow.yml.j2": ".github/workflows/tests.yml",
}
"""Template to its place in the package; the plugin's own file comes besides."""


def new_plugin(kind: str, name: str, folder: Path, registry: Registry) -> tuple[Path, ...]:
    """Write a package with one plugin that works, to be changed into what it is to be.

    Parameters
    ----------
    kind
        ``backbone``, ``mask``, ``dataset``, ``task``, ``baseline`` or ``figure``.
    name
        Name on the command line, of the file and in the entry point.
    folder
        Where to put it; new or empty.
    registry
        What is there already.

    Returns
    -------
    files
        What was written, the plugin's own file first.

    Raises
    ------
    ConfigError
        If there is no such kind, the name is none or is taken, or the folder holds something.
    StoreError
        If the folder cannot be written.
    """
    if kind not in KINDS:
        raise ConfigError(
            f"{kind!r} is no kind of plugin.", allowed=", ".join(KINDS), likely=closest(kind.removesuffix("s"), KINDS)
        )
    if not NAME.fullmatch(name):
        likely = "_".join("".join(c if c.isalnum() else " " for c in name.lower()).split())
        raise ConfigError(
            f"{name!r} is no name of a plugin.",
            allowed="lower-case letters, digits and _, a letter first",
            likely=likely if NAME.fullmatch(likely) else "",
        )
    asked: Kind = next(k for k in KINDS if k == kind)
    if name in registry.of(asked):
        owner = registry.provenance(asked, name).distribution
        raise ConfigError(
            f"{kind} {name!r} is there already: {owner} provides it.",
            next_step="Choose another name: two plugins of one name are refused.",
        )
    package = f"neurobench_{name}"
    distribution = package.replace("_", "-")
    if distribution == OWN or importlib.util.find_spec(package) is not None:
        # Installing it would put its files, or the whole distribution, in the place of those.
        raise ConfigError(
            f"{name!r} would make a package {package} in a distribution {distribution}, and that is there already.",
            next_step=f"Choose another name, such as {name}_{kind}.",
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(
            f"{folder} is there already.", allowed="a new or empty folder", next_step="Give one with --to."
        )
    words = WORDS.get(kind, kind)
    values = {
        "kind": kind,
        "kind_word": words,
        "article": "an" if words[0] in "aeiou" else "a",
        "name": name,
        "title": name.replace("_", " ").capitalize(),
        "cls": _class_name(kind, name),
        "package": package,
        "distribution": distribution,
        "example": EXAMPLES[kind].format(name=name),
    }
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("neurobench", "scaffold"),
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701 – Python, TOML and Markdown; the only values are names that were checked above.
    )
    texts = {f"{package}/{name}.py": _plugin(kind, values)}
    texts |= {place: environment.get_template(template).render(values) for template, place in FILES.items()}
    written = []
    with disk_errors(folder):
        for place, text in texts.items():
            path = folder / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            written.append(path)
        (folder / package / "__init__.py").write_text(
            f'"""{values["title"]}, a plugin of neurobench."""\n', encoding="utf-8"
        )
    return tuple(written)


def _class_name(kind: str, name: str) -> str:
    """Return the name of a class that is no keyword, and none that a plugin imports."""
    cls = "".join(part.capitalize() for part in name.split("_"))
    return f"{cls}{kind.capitalize()}" if keyword.iskeyword(cls) or cls in {*dir(neurobench), "Canvas"} else cls


def _plugin(kind: str, values: Mapping[str, str]) -> str:
    """Return the source of a plugin that works, under its new name."""
    stem = "net" if kind == "backbone" else kind
    text = (files("neurobench") / "scaffold" / f"{kind}.py.txt").read_text(encoding="utf-8")
    for old, new in (("My" + stem.capitalize(), "cls"), (f"my_{stem}", "name"), (f"My {stem}", "title")):
        text = text.replace(old, values[new])
    return text

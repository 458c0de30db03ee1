"""Find, load, isolate, validate and look up plugins.

pluggy leaves all of this to its host. A plugin that cannot be imported, registers nonsense or collides with another one
never takes the others down; whoever asks for what it provides sees its own error, never "unknown".
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, cast

import pluggy
import torch

from neurobench import hookspecs
from neurobench.contracts import Backbone, Baseline, Component, Dataset, Figure, MaskingStrategy, Task
from neurobench.errors import ConfigError, PluginError, closest, unknown_name
from neurobench.intruders import intruders, own_files
from neurobench.parsing import user_path
from neurobench.plugin_rules import HOOKS, KINDS, NAME, Kind, wrong_class, wrong_hooks

__all__ = ["KINDS", "OWN", "Kind", "PluginInfo", "Provenance", "Registry", "load_registry"]

State = Literal["available", "unavailable", "broken", "blocked"]

GROUP = "neurobench"
OWN = "neurobench-fm"
"""The distribution that the built-in plugins are part of."""
BLOCK = "NEUROBENCH_BLOCK_PLUGINS"
ONLY = "NEUROBENCH_ONLY_PLUGINS"
TRACE = "NEUROBENCH_TRACE_PLUGINS"
FILE = "file:"
"""How the distribution of a plugin begins that comes from a file given with --plugin."""

_log = logging.getLogger("neurobench.plugins")


@dataclass(frozen=True)
class PluginInfo:
    """One plugin as found, whatever became of it.

    Parameters
    ----------
    distribution, version
        Where it comes from; ``file:NAME`` and no version for a file given with --plugin.
    entry_point
        Name of its entry point.
    file
        Its source, or None where it could not be found.
    provides
        ``(kind, name)`` of its components; of a plugin that could not be imported, what its entry point promises.
    state
        ``available``, ``unavailable`` (something is missing on this machine), ``broken`` or ``blocked``.
    reason
        Why it is not available and what to do about it.
    import_s
        How long it took to import, in seconds: every command waits for it.
    """

    distribution: str
    version: str
    entry_point: str
    file: Path | None
    provides: tuple[tuple[Kind, str], ...]
    state: State
    reason: str = ""
    import_s: float = 0.0

    @property
    def id(self) -> str:
        """``distribution:entry-point``, unique."""
        return f"{self.distribution}:{self.entry_point}"


@dataclass(frozen=True)
class Provenance:
    """What identifies the code of a component.

    Parameters
    ----------
    distribution, version
        Where it comes from.
    digest
        sha256 over the source of the plugin's module and the private files of its package.
    """

    distribution: str
    version: str
    digest: str


@dataclass(frozen=True)
class Registry:
    """Everything that plugins provide, by kind and name; nothing is added after loading."""

    backbones: Mapping[str, type[Backbone]]
    masks: Mapping[str, type[MaskingStrategy]]
    datasets: Mapping[str, type[Dataset]]
    tasks: Mapping[str, type[Task]]
    baselines: Mapping[str, type[Baseline]]
    figures: Mapping[str, type[Figure]] = field(default_factory=dict)
    plugins: tuple[PluginInfo, ...] = ()
    unusable: Mapping[tuple[Kind, str], PluginError] = field(default_factory=dict, repr=False)
    sources: Mapping[tuple[Kind, str], tuple[PluginInfo, tuple[Path, ...]]] = field(default_factory=dict, repr=False)
    digests: dict[tuple[Kind, str], Provenance] = field(default_factory=dict, repr=False, compare=False)

    def of(self, kind: Kind) -> Mapping[str, type[Component]]:
        """Return the components of one kind."""
        return cast(Mapping[str, type[Component]], getattr(self, f"{kind}s"))

    def get(self, kind: Kind, name: str) -> type[Any]:
        """Return a component's class.

        Raises
        ------
        UnknownNameError
            If nothing provides it.
        PluginError
            If the plugin that provides it is broken, unavailable or blocked: the error is that plugin's.
        """
        known = self.of(kind)
        if name in known:
            return known[name]
        if (error := self.unusable.get((kind, name))) is not None:
            raise error
        opaque = [p.id for p in self.plugins if p.state == "broken" and not p.provides]
        raise unknown_name(
            kind,
            name,
            known,
            f"Or it is in a plugin that could not be loaded ({', '.join(opaque)}): see `neurobench plugins`."
            if opaque
            else "",
        )

    def refuse_intruders(self) -> None:
        """Refuse to go on where the code of somebody's plugin has got into neurobench since it was loaded.

        Raises
        ------
        PluginError
            Naming the plugin, and what it replaces.
        """
        for (kind, name), (info, files) in self.sources.items():
            if info.distribution == OWN:
                continue
            own = {str(f) for f in files}
            if taken := intruders(own.__contains__, (GROUP,)):
                raise PluginError(
                    f"{kind} {name} of {info.id} has put code of its own into {', '.join(taken[:3])}: nothing that is "
                    "computed in this process can be believed.",
                    next_step=f"Leave the plugin out, and delete what was computed with it. `neurobench check {name}` "
                    "names everything that it replaces.",
                )

    def provenance(self, kind: Kind, name: str) -> Provenance:
        """Return where a component's code comes from, with the digest of its source.

        Read once: what runs is what was imported, whatever is done to the file meanwhile.
        """
        self.get(kind, name)
        if (kind, name) not in self.digests:
            plugin, files = self.sources[kind, name]
            total = hashlib.sha256()
            for file in files:
                total.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
            self.digests[kind, name] = Provenance(plugin.distribution, plugin.version, total.hexdigest())
        return self.digests[kind, name]


# ---------------------------------------------------------------- finding


@dataclass(frozen=True)
class _Candidate:
    """A plugin before it is imported."""

    distribution: str
    version: str
    entry_point: str
    load: Callable[[], Any]
    module: str = ""
    file: Path | None = None
    requires: tuple[str, ...] = ()

    @property
    def promises(self) -> tuple[tuple[Kind, str], ...]:
        """What the entry point's name says that it provides: ``mask-roi`` is a mask called roi."""
        kind, _, name = self.entry_point.partition("-")
        return ((cast(Kind, kind), name),) if kind in KINDS and NAME.fullmatch(name) else ()

    def info(self, state: State, reason: str = "", provides: tuple[tuple[Kind, str], ...] | None = None) -> PluginInfo:
        provides = self.promises if provides is None else provides
        return PluginInfo(self.distribution, self.version, self.entry_point, self.file, provides, state, reason)

    @property
    def id(self) -> str:
        return f"{self.distribution}:{self.entry_point}"

    @property
    def names(self) -> set[str]:
        """Every name by which it can be blocked."""
        return {self.id, self.distribution, self.entry_point}


def _told_of(distribution: importlib.metadata.Distribution) -> tuple[str, str, tuple[str, ...]]:
    """Return name, version and requirements of a distribution; reading them parses its whole README each time."""
    return distribution.name, distribution.version, tuple(distribution.requires or ())


def _installed() -> Iterator[_Candidate]:
    told = functools.cache(_told_of)
    points = [(*(told(p.dist) if p.dist else ("", "", ())), p) for p in importlib.metadata.entry_points(group=GROUP)]
    for name, version, requires, point in sorted(points, key=lambda found: (found[0], found[3].name)):
        yield _Candidate(
            distribution=name or "unknown",
            version=version,
            entry_point=point.name,
            load=point.load,
            module=point.module,
            requires=requires,
        )


def _from_file(path: Path) -> _Candidate:
    path = user_path(path).resolve()
    if path.suffix != ".py" or not path.is_file():
        raise ConfigError(
            f"the plugin file {path} {'is not a Python file' if path.is_file() else 'does not exist'}.",
            allowed="--plugin FILE, a .py file with a @hookimpl function",
        )
    # The path is part of the name, so that two files called alike do not overwrite each other.
    name = f"neurobench_file_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"

    def load() -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module

    return _Candidate(f"{FILE}{path.stem}", "", path.stem, load, name, path)


# ---------------------------------------------------------------- judging


class _Invalid(Exception):
    """A plugin was imported, but is not what a plugin must be; the message says all that its author needs."""


def _last_frame(error: BaseException, candidate: _Candidate) -> str:
    """Return the last frame in the plugin's own code, or else the last one, as `` (at file:line in function)``."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" (at {error.filename}:{error.lineno})"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<frozen")]
    package = candidate.module.partition(".")[0]
    own = [f for f in frames if package in Path(f.filename).with_suffix("").parts or Path(f.filename) == candidate.file]
    last = (own or frames)[-1]
    if not own and "importlib" in Path(last.filename).parts:
        return f" (while importing {candidate.module})"
    return f" (at {last.filename}:{last.lineno} in {last.name})"


def _how_to_disable(candidate: _Candidate) -> str:
    if candidate.distribution.startswith(FILE):
        return "Correct the file, or leave it out of --plugin."
    return f"To go on without it: {BLOCK}={candidate.id}"


def _missing_package(error: BaseException, candidate: _Candidate) -> str:
    """Return the reason if a plugin only lacks a package that is not its own, else an empty string."""
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return ""
    top = error.name.partition(".")[0]
    if top in (candidate.module.partition(".")[0], GROUP):
        return ""
    wanted = re.sub(r"[-_.]+", "-", top).lower()
    for requirement in candidate.requires:
        package = re.match(r"[A-Za-z0-9._-]+", requirement)
        extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)", requirement)
        if package and extra and re.sub(r"[-_.]+", "-", package[0]).lower() == wanted:
            return f"needs the package {top!r}. Get it with: pip install '{candidate.distribution}[{extra[1]}]'"
    return f"needs the package {top!r}. Get it with: pip install {wanted}"


# ---------------------------------------------------------------- source files


def _file_of(module: object) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file).resolve() if file else None


_Lister = Callable[[Path], Sequence[Path]]


def _inside(folder: Path) -> list[Path]:
    """Return the files in a folder and below it, without what Python keeps of them."""
    return [f for f in folder.rglob("*") if "__pycache__" not in f.parts and f.is_file()]


def _source_files(module: ModuleType, component: type, inside_of: _Lister) -> tuple[Path, ...]:
    """Return the files that a component's code is in, conservatively.

    The plugin's module, every private file of its package (leading underscore), and the files of its bases there.
    """
    files: set[Path] = set()
    own = _file_of(module)
    package = module.__name__.partition(".")[0]
    if own is not None:
        files.add(own)
        # Tables that lie beside the code, such as an atlas, decide results as much as code does.
        inside = inside_of(own.parent)
        if own.name == "__init__.py":
            files.update(inside)
        elif module.__package__:
            files.update(f for f in inside if any(p.startswith("_") for p in f.relative_to(own.parent).parts))
    for base in component.__mro__:
        if base.__module__.partition(".")[0] == package and (file := _file_of(sys.modules.get(base.__module__))):
            files.add(file)
    return tuple(sorted(files))


_imported: dict[str, tuple[ModuleType, dict[Path, tuple[int, int]]]] = {}
"""By name, modules of installed plugins, with when their source files were changed, and their sizes, at first."""


def _changed(candidate: _Candidate, module: ModuleType, components: Sequence[type], inside_of: _Lister) -> list[Path]:
    """Return the source files of an installed plugin that are not those any more that this process imported.

    A worker of a cluster, or a notebook, goes on with what it imported; the digest of the new file would lie. A plugin
    file is imported anew each time.
    """
    if candidate.distribution.startswith(FILE):
        return []
    files = dict.fromkeys(f for component in components for f in _source_files(module, component, inside_of))
    now = {file: (found.st_mtime_ns, found.st_size) for file in files if (found := file.stat())}
    same, first = _imported.get(module.__name__, (None, now))
    if same is not module:
        _imported[module.__name__] = module, now
        return []
    return [file for file in now if first.get(file, now[file]) != now[file]]


def _module_of(plugin: object) -> ModuleType:
    """Return the module of a plugin that may be a module or any object with hooks."""
    if isinstance(plugin, ModuleType):
        return plugin
    name = getattr(plugin, "__module__", None) or type(plugin).__module__
    return sys.modules[name]


# ---------------------------------------------------------------- loading


def _components(manager: pluggy.PluginManager, plugin: object) -> list[tuple[Kind, type[Component]]]:
    """Call the hooks of one plugin only: one that raises must not hide the others."""
    found: list[tuple[Kind, type[Component]]] = []
    others = [p for p in manager.get_plugins() if p is not plugin]
    for caller in sorted(manager.get_hookcallers(plugin) or [], key=lambda c: [*HOOKS].index(c.name)):
        kind = HOOKS[caller.name]
        for classes in manager.subset_hook_caller(caller.name, others)():
            if not isinstance(classes, list | tuple):
                what = f"the class {classes.__name__}" if isinstance(classes, type) else type(classes).__name__
                raise _Invalid(f"{caller.name} returned {what}, not a list of classes")
            found += [(kind, component) for component in classes]
    if wrong := [text for kind, component in found if (text := wrong_class(kind, component))]:
        raise _Invalid("; ".join(wrong))
    return found


@contextlib.contextmanager
def _importing() -> Iterator[None]:
    """Keep what a plugin prints out of a command's output, and refuse one that sets what everybody computes with."""

    dtype, grad = torch.get_default_dtype(), torch.is_grad_enabled()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
        changed = (torch.get_default_dtype(), torch.is_grad_enabled()) != (dtype, grad)
    finally:
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)
    if changed:
        raise _Invalid("changes torch's default dtype or grad mode for everybody when it is imported")


def _refuse_intruders(candidate: _Candidate) -> None:
    """Go no further with a plugin whose code has got into neurobench or a library, whether it could be loaded or not.

    What it replaced is replaced for everybody: no row of this process could be believed.
    """
    if taken := intruders(own_files(candidate.module, candidate.file)):
        more = f" and {len(taken) - 3} more" if len(taken) > 3 else ""
        raise PluginError(
            f"plugin {candidate.id} puts code of its own into {', '.join(taken[:3])}{more}, which everybody computes "
            "with: plugins are called, and replace nothing.",
            next_step=_how_to_disable(candidate),
        )


@dataclass(frozen=True)
class _Loaded:
    candidate: _Candidate
    module: ModuleType
    components: list[tuple[Kind, type[Component]]]
    unavailable: Mapping[tuple[Kind, str], str]
    import_s: float

    def info(self) -> PluginInfo:
        provides = tuple((kind, c.name) for kind, c in self.components)
        state: State = "available"
        reason = " ".join(f"{n}: {r}" for (_, n), r in self.unavailable.items())
        if provides and len(self.unavailable) == len(provides):
            state, reason = "unavailable", " ".join(dict.fromkeys(self.unavailable.values()))
        return replace(self.candidate.info(state, reason, provides), import_s=self.import_s)


def _load(candidate: _Candidate, manager: pluggy.PluginManager, inside_of: _Lister) -> _Loaded | PluginInfo:
    """Import and register one plugin; whatever goes wrong becomes its state."""
    plugin: object = None
    try:
        started = time.perf_counter()
        with _importing():
            plugin = candidate.load()
        import_s = time.perf_counter() - started
        module = _module_of(plugin)
        candidate = replace(candidate, file=_file_of(module))
        manager.register(plugin, name=candidate.id)
        if wrong := wrong_hooks(manager, plugin):
            raise _Invalid(wrong)
        components = _components(manager, plugin)
        if changed := _changed(candidate, module, [c for _, c in components], inside_of):
            raise _Invalid(f"{changed[0]} has changed since this process imported it; start the process anew")
        missing = {(kind, c.name): reason for kind, c in components if (reason := c.unavailable())}
        return _Loaded(candidate, module, components, missing, import_s)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: a plugin does not decide when neurobench ends
        if plugin is not None and manager.get_name(plugin) == candidate.id:
            manager.unregister(plugin)
        if reason := _missing_package(error, candidate):
            return candidate.info("unavailable", reason)
        if isinstance(error, _Invalid):
            reason = str(error).rstrip(".") + "."
        else:
            reason = f"{type(error).__name__}: {error}{_last_frame(error, candidate)}."
        return candidate.info("broken", f"{reason} {_how_to_disable(candidate)}")


def _collisions(loaded: Sequence[_Loaded]) -> dict[str, PluginInfo]:
    """Return the plugins that provide a component of the same kind and name as another one, as broken."""
    by_name: dict[tuple[Kind, str], list[_Loaded]] = {}
    for item in loaded:
        for kind, component in item.components:
            by_name.setdefault((kind, component.name), []).append(item)
    broken: dict[str, PluginInfo] = {}
    for (kind, name), items in by_name.items():
        if len(items) > 1:
            ids = [i.candidate.id for i in items]
            both = " and ".join(dict.fromkeys(ids))
            # Who names a file wants that one: what can be blocked in its favour is what is installed.
            one = "remove one of them" if len(set(ids)) == 1 else f"block one of them, such as {BLOCK}={ids[-1]}"
            if len(set(ids)) > 1 and ids[-1].startswith(FILE):
                one = f"give the file's another name, leave out --plugin, or set {BLOCK}={ids[0]}"
            for item in items:
                reason = f"{kind} {name!r} is provided by {both}: neither can be used. To choose, {one}."
                broken[item.candidate.id] = replace(item.info(), state="broken", reason=reason)
    return broken


def load_registry(
    plugin_files: Sequence[Path | str] = (),
    *,
    block: Sequence[str] | None = None,
    only: Sequence[str] | None = None,
    trace: bool | None = None,
) -> Registry:
    """Load every plugin and return what can be used, and what cannot with its reason.

    Parameters
    ----------
    plugin_files
        Python files to load besides the installed plugins.
    block
        Plugins not to load: ``distribution:entry-point``, or either half of it. None: what the environment
        variable ``NEUROBENCH_BLOCK_PLUGINS`` says, separated by commas.
    only
        The same of installed plugins to load, and no others; empty: all. None: what ``NEUROBENCH_ONLY_PLUGINS`` says.
    trace
        Write every hook call to the log ``neurobench.plugins`` at level debug. None: whether
        ``NEUROBENCH_TRACE_PLUGINS`` is 1.

    Raises
    ------
    ConfigError
        If a plugin file does not exist, or a name to block or to load alone is no plugin's.
    PluginError
        If a plugin file cannot be used: who names one wants it. Installed plugins only say so (``plugins``).
    """
    if block is None:
        block = _listed(BLOCK)
    if only is None:
        only = _listed(ONLY)
    if trace is None:
        trace = os.environ.get(TRACE, "") == "1"
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    if trace:
        _log.setLevel(logging.DEBUG)
        manager.trace.root.setwriter(lambda text: _log.debug("%s", text.rstrip()))
        manager.enable_tracing()

    candidates = [*_installed(), *(_from_file(Path(f)) for f in plugin_files)]
    _refuse_unknown(block, candidates, BLOCK)
    _refuse_unknown(only, candidates, ONLY)
    infos: list[PluginInfo] = []
    loaded: list[_Loaded] = []
    # Dozens of plugins lie in one folder, which is looked through once a loading.
    inside_of = functools.cache(_inside)
    for candidate in candidates:
        if candidate.names & set(block):
            infos.append(candidate.info("blocked", f"Blocked by {BLOCK}; leave it out there to use this plugin."))
            continue
        # A file is named by whoever starts the command.
        if only and not candidate.file and not candidate.names & set(only):
            infos.append(candidate.info("blocked", f"Not among {ONLY}; name it there to use this plugin."))
            continue
        result = _load(candidate, manager, inside_of)
        if candidate.distribution != OWN:
            _refuse_intruders(candidate)
        if isinstance(result, _Loaded):
            loaded.append(result)
        else:
            infos.append(result)
    manager.check_pending()

    broken = _collisions(loaded)
    found: dict[Kind, dict[str, Any]] = {kind: {} for kind in KINDS}
    sources: dict[tuple[Kind, str], tuple[PluginInfo, tuple[Path, ...]]] = {}
    unusable: dict[tuple[Kind, str], PluginError] = {}
    for item in loaded:
        info = broken.get(item.candidate.id) or item.info()
        infos.append(info)
        for kind, component in item.components:
            key = (kind, component.name)
            if reason := item.unavailable.get(key):
                unusable[key] = _error(kind, component.name, replace(info, state="unavailable", reason=reason))
            elif info.state == "available":
                found[kind][component.name] = component
                sources[key] = (info, _source_files(item.module, component, inside_of))
    if wrong := [i for i in infos if i.distribution.startswith(FILE) and i.state in ("broken", "unavailable")]:
        names = " and ".join(str(i.file) for i in wrong)
        raise PluginError(f"the plugin in {names} cannot be used.", next_step=" ".join(i.reason for i in wrong))
    for info in infos:
        if info.state != "available":
            for kind, name in info.provides:
                if name not in found[kind]:
                    unusable.setdefault((kind, name), _error(kind, name, info))
    return Registry(
        backbones=_sorted(found["backbone"]),
        masks=_sorted(found["mask"]),
        datasets=_sorted(found["dataset"]),
        tasks=_sorted(found["task"]),
        baselines=_sorted(found["baseline"]),
        figures=_sorted(found["figure"]),
        plugins=tuple(sorted(infos, key=lambda p: (p.distribution, p.entry_point))),
        unusable=unusable,
        sources=sources,
    )


def _listed(variable: str) -> list[str]:
    return [name.strip() for name in os.environ.get(variable, "").split(",") if name.strip()]


def _sorted(components: dict[str, Any]) -> dict[str, Any]:
    return dict(sorted(components.items()))


def _error(kind: Kind, name: str, plugin: PluginInfo) -> PluginError:
    return PluginError(
        f"{kind} {name!r} cannot be used: plugin {plugin.id} is {plugin.state}.", next_step=plugin.reason
    )


def _refuse_unknown(names: Sequence[str], candidates: Sequence[_Candidate], variable: str) -> None:
    known = {name for c in candidates for name in c.names}
    for name in names:
        if name not in known:
            what = "blocked" if variable == BLOCK else "loaded and no others"
            raise ConfigError(
                f"{name!r} is to be {what}, but no plugin is called that.",
                allowed="distribution:entry-point, or either half of it",
                likely=closest(name, known),
                next_step=f"Correct {variable}; `neurobench plugins` lists all.",
            )

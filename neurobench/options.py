"""What a run was asked for: sizes, options of the command line and the Python API, and suite files."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from neurobench.components import Setting, Value, parse_setting, split_names
from neurobench.errors import ConfigError, ConfigErrors, NeurobenchError, closest
from neurobench.identity import digest
from neurobench.parsing import parse_yaml, user_path
from neurobench.resources import Needs

__all__ = [
    "ADAPTATIONS",
    "CHOICES",
    "DISTRIBUTED",
    "PROFILES",
    "Profile",
    "RunConfig",
    "frozen_suites",
    "load_suite",
    "parse_adaptation",
    "parse_distributed",
]


# ---------------------------------------------------------------- profiles


@dataclass(frozen=True)
class Profile:
    """Size of a run, the same for every combination in it.

    Parameters
    ----------
    n_tokens
        Most tokens a training window may have.
    width, n_layers
        Width of a token; layers, each one pass along units and one along time.
    n_steps, batch_size
        Optimiser steps of a pretraining; windows in each.
    n_folds, n_seeds
        Outer folds; repetitions with another seed.
    """

    name: str
    n_tokens: int
    width: int
    n_layers: int
    n_steps: int
    n_folds: int
    n_seeds: int
    batch_size: int


PROFILES: Mapping[str, Profile] = {
    p.name: p
    for p in (
        Profile("smoke", n_tokens=100, width=32, n_layers=1, n_steps=200, n_folds=2, n_seeds=1, batch_size=32),
        Profile("cpu", n_tokens=250, width=64, n_layers=2, n_steps=1_500, n_folds=5, n_seeds=1, batch_size=32),
        Profile("full", n_tokens=2_000, width=256, n_layers=4, n_steps=20_000, n_folds=5, n_seeds=3, batch_size=64),
    )
}


# ---------------------------------------------------------------- a run


ADAPTATIONS: Mapping[str, Mapping[str, Value]] = {
    "frozen": {},
    "finetune": {},
    "prompt": {"tokens": 8},
    "lora": {"rank": 4},
    "scratch": {},
}
"""How a backbone may meet a task, each with its parameters and their defaults."""


def parse_adaptation(text: str) -> Setting:
    """Resolve ``prompt[tokens=4]``.

    Raises
    ------
    ConfigError
        If there is no such adaptation, or a parameter cannot be.
    """
    return parse_setting("adaptation", text, ADAPTATIONS)


DISTRIBUTED: Mapping[str, Mapping[str, Value]] = {"ddp": {"processes": 2}, "fsdp": {"processes": 2}}
"""How several processes may compute one pretraining, each with its parameters and their defaults."""


def parse_distributed(text: str) -> Setting | None:
    """Resolve ``ddp[processes=4]``; empty: None, one process.

    Raises
    ------
    ConfigError
        If there is no such way, or a parameter cannot be.
    """
    return parse_setting("distributed", text, DISTRIBUTED) if text else None


Split = Literal["subjects", "site", "within-recording"]
Device = Literal["auto", "cpu", "cuda"]
Source = Literal["auto", "real", "simulated"]
Variant = Literal["default", "null", "confounded"]
Harmonise = Literal["none", "site"]
SharedPeople = Literal["refuse", "leave-out", "distinct"]
Probe = Literal["linear", "kernel", "attentive"]
BatchSystem = Literal["", "slurm", "pbs", "sge", "lsf"]
LogFormat = Literal["text", "json"]

_Names = str | Iterable[str] | None


@dataclass(frozen=True)
class RunConfig:
    """What a run was asked for; nothing is resolved yet.

    Parameters
    ----------
    backbones, masks, datasets, tasks
        Components, such as ``roi[rule=pure]``. No datasets: those of the default grid. No tasks: every task that
        needs no parameter and does not refuse the cohort.
    seeds
        Empty: as many as the profile has, from 0.
    profile
        ``smoke``, ``cpu`` or ``full``.
    adaptation
        ``frozen``: a probe on features. ``finetune``: everything is trained further. ``prompt[tokens=8]``,
        ``lora[rank=4]``: learned tokens, or low-rank updates of a backbone that stays as it is. ``scratch``: finetuned
        without pretraining.
    split
        ``subjects`` (k folds), ``site`` (leave one site out) or ``within-recording`` (first part trains, later part
        tests; reconstruction only, never ranked).
    folds, n_steps
        Instead of the profile's.
    ratio
        Fraction of valid tokens that is hidden and scored.
    objective
        What pretrainings learn from: ``reconstruction``, or ``latent``; with parameters, as components.
    device
        ``auto``, ``cpu`` or ``cuda``.
    data_dirs
        Folder of each dataset; the key ``""`` is the only dataset's.
    source
        ``real``, ``simulated``, or ``auto``: real where a folder is given.
    variant, n_subjects
        Of simulated twins.
    out
        Folder of the store and the results.
    window_s, patch_s, sfreq
        Seconds, seconds, Hz; None: the dataset's own.
    plugin_files
        Python files to load besides the installed plugins.
    transductive
        Pretrain on the recordings of test subjects too, without labels; every record says so.
    pretrain_on
        Datasets to pretrain on instead of the one that is scored, such as ``camcan``; that one itself among them stands
        for the training subjects of each fold. Empty: those alone.
    shared_people
        What to do with people of ``pretrain_on`` who may be among those scored: ``refuse``, ``leave-out``, or
        ``distinct``: equal identifiers of two releases are of different people.
    harmonise
        ``site``: take location and scale of the training subjects' sites out of features, fitted inside the fold.
    probe
        ``linear``; ``kernel``: the same on a Gaussian kernel of the features, its width chosen with the penalty;
        ``attentive``: learned queries attend over the unit tokens of a backbone (baselines, which have none, keep the
        linear one).
    refit_permutations
        Permutations of the labels with which every probe is fitted anew, for a second p-value of the headline; as many
        times as long as the fit itself.
    attribution
        Occlude groups of units, with its controls; takes as long as scoring that many times more.
    suite
        ``NAME@HASH`` of the suite file that this comes from, with what was changed of it; not set by hand.
    jobs
        Processes that compute steps at once, 0: as many as suit this machine; changes no number. A script that asks for
        several needs ``if __name__ == "__main__":`` around the call, as everything does that starts processes.
    distributed
        Processes that compute one pretraining together, with a GPU each where there are GPUs: ``ddp[processes=2]``,
        every one with all weights, or ``fsdp[processes=2]``, weights and the optimiser's moments cut into shares.
        Empty: one process. Sums are rounded otherwise, so it is part of the identity and of the record.
    scheduler
        Address of a Dask scheduler whose workers compute steps instead; empty: none.
    cluster, cluster_config
        Batch system that is asked for workers (``slurm``, ``pbs``, ``sge``, ``lsf``), and a YAML file that says what to
        ask for; see :func:`neurobench.batch_systems.cluster_of`.
    log_format
        How messages appear on the standard error stream: ``text``, or ``json``, a line each.
    tensorboard
        Write losses for TensorBoard while pretrainings run.
    energy
        Measure the energy of pretrainings, where the machine has counters of it; in one process, which a counter of the
        whole machine asks for.
    run
        Id of the run that processes work for, under which they keep their logs; not set by hand.
    resources
        By name of a backbone, mask or baseline: what its steps need beyond a core, instead of what its class says, such
        as ``{"mamba": {"GPU": 1}}``; see :class:`neurobench.contracts.Component`.
    """

    backbones: tuple[str, ...] = ()
    masks: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    profile: str = "smoke"
    adaptation: str = "frozen"
    split: Split = "subjects"
    folds: int | None = None
    ratio: float = 0.5
    objective: str = "reconstruction"
    device: Device = "auto"
    data_dirs: Mapping[str, Path] = field(default_factory=dict)
    source: Source = "auto"
    variant: Variant = "default"
    n_subjects: int | None = None
    out: Path = Path("neurobench-results")
    window_s: float | None = None
    patch_s: float | None = None
    sfreq: float | None = None
    n_steps: int | None = None
    plugin_files: tuple[Path, ...] = ()
    transductive: bool = False
    pretrain_on: tuple[str, ...] = ()
    shared_people: SharedPeople = "refuse"
    harmonise: Harmonise = "none"
    probe: Probe = "linear"
    refit_permutations: int = 0
    attribution: bool = False
    suite: str = ""
    jobs: int = 1
    distributed: str = ""
    scheduler: str = ""
    cluster: BatchSystem = ""
    cluster_config: Path | None = None
    log_format: LogFormat = "text"
    tensorboard: bool = False
    energy: bool = False
    run: str = ""
    resources: Mapping[str, Needs] = field(default_factory=dict)

    @property
    def elsewhere(self) -> bool:
        """Whether workers of a cluster compute, not this machine."""
        return bool(self.scheduler or self.cluster)

    @classmethod
    def from_options(
        cls,
        *,
        suite: Path | str | None = None,
        backbone: _Names = None,
        mask: _Names = None,
        dataset: _Names = None,
        task: _Names = None,
        seed: int | str | Iterable[int | str] | None = None,
        profile: str | None = None,
        adaptation: str | None = None,
        split: str | None = None,
        folds: int | None = None,
        ratio: float | None = None,
        objective: str | None = None,
        device: str | None = None,
        data_dir: str | Path | Iterable[str | Path] | Mapping[str, str | Path] | None = None,
        source: str | None = None,
        variant: str | None = None,
        n_subjects: int | None = None,
        out: str | Path | None = None,
        window_s: float | None = None,
        patch_s: float | None = None,
        sfreq: float | None = None,
        n_steps: int | None = None,
        plugin_files: str | Path | Iterable[str | Path] | None = None,
        transductive: bool | None = None,
        pretrain_on: _Names = None,
        shared_people: str | None = None,
        harmonise: str | None = None,
        probe: str | None = None,
        refit_permutations: int | None = None,
        attribution: bool | None = None,
        jobs: int | str | None = None,
        distributed: str | None = None,
        scheduler: str | None = None,
        cluster: str | None = None,
        cluster_config: str | Path | None = None,
        log_format: str | None = None,
        tensorboard: bool | None = None,
        resources: str | Iterable[str] | Mapping[str, Needs] | None = None,
        energy: bool | None = None,
    ) -> RunConfig:
        """Build a configuration from what the command line or a caller of the Python API says.

        Options that are None keep the suite file's value, or else the default. Names may be one text with commas or a
        list; ``data_dir`` takes ``PATH``, ``NAME=PATH``, several of them, or a mapping.
        """
        given = {
            "backbones": _names(backbone),
            "masks": _names(mask),
            "datasets": _names(dataset),
            "tasks": _names(task),
            "seeds": _seeds(seed),
            "profile": profile,
            "adaptation": adaptation,
            "split": split,
            "folds": folds,
            "ratio": ratio,
            "objective": objective,
            "device": device,
            "data_dirs": _data_dirs(data_dir),
            "source": source,
            "variant": variant,
            "n_subjects": n_subjects,
            "out": None if out is None else user_path(out),
            "window_s": window_s,
            "patch_s": patch_s,
            "sfreq": sfreq,
            "n_steps": n_steps,
            "plugin_files": None if plugin_files is None else tuple(Path(f) for f in _listed(plugin_files)),
            "transductive": transductive,
            "pretrain_on": _names(pretrain_on),
            "shared_people": shared_people,
            "harmonise": harmonise,
            "probe": probe,
            "refit_permutations": refit_permutations,
            "attribution": attribution,
            "jobs": _jobs(jobs),
            "distributed": distributed,
            "scheduler": scheduler,
            "cluster": cluster,
            "cluster_config": None if cluster_config is None else user_path(cluster_config),
            "log_format": log_format,
            "tensorboard": tensorboard,
            "resources": _resources(resources),
            "energy": energy,
        }
        base = cls() if suite is None else load_suite(suite)
        changes: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
        _refuse_code(base, changes.get("plugin_files", ()))
        over = sorted(k for k, v in changes.items() if k not in _NOT_OF_A_SUITE and v != getattr(base, k))
        if base.suite and over:
            changes["suite"] = f"{base.suite}, changed: {', '.join(over)}"
        return replace(base, **changes)


def _refuse_code(suite: RunConfig, given: Sequence[Path]) -> None:
    """Refuse a suite that names plugin files which its user does not name as well: a suite runs no code of its own."""
    known = {user_path(p).resolve() for p in given}
    if missing := [p for p in suite.plugin_files if p.resolve() not in known]:
        raise ConfigError(
            f"the suite needs the plugin {missing[0]}, which is code, and no suite may have code run by itself.",
            allowed="suites whose plugin files are given on the command line too",
            next_step=f"Read the file; if you would run it, give it as well: --plugin {missing[0]}.",
        )


_OF_THE_MACHINE = (
    "out",
    "jobs",
    "distributed",
    "scheduler",
    "cluster",
    "cluster_config",
    "log_format",
    "tensorboard",
    "energy",
    "run",
    "resources",
)

_NOT_OF_A_SUITE = ("data_dirs", "source", "device", "plugin_files", *_OF_THE_MACHINE)
"""What every user of a suite sets for themselves: where the data are, where results go, what they are computed on."""


def _jobs(value: int | str | None) -> int | None:
    if value is None or str(value) == "auto":
        return None if value is None else 0
    if not str(value).isdecimal() or int(value) < 1:
        raise ConfigError(f"--jobs cannot be {str(value)!r}.", allowed="a whole number from 1, or auto")
    return int(value)


def _resources(value: Any) -> Mapping[str, Needs] | None:
    """Read ``mamba:GPU=1,MEMORY=16e9``; nothing behind the colon: a core is enough."""
    if value is None or isinstance(value, Mapping):
        return value
    found: dict[str, Needs] = {}
    for text in _listed(value):
        name, _, needs = text.partition(":")
        try:
            amounts = (part.partition("=") for part in needs.split(",") if part.strip())
            found[name.strip()] = {key.strip(): float(amount) for key, _, amount in amounts}
        except ValueError:
            raise ConfigError(
                f"--resources cannot be {text!r}.",
                allowed="NAME:RESOURCE=NUMBER, several with commas",
                next_step="Such as --resources mamba:GPU=1,MEMORY=16e9.",
            ) from None
    return found


def _listed(value: Any) -> list[Any]:
    return [value] if isinstance(value, str | Path | int) else list(value)


def _names(value: _Names) -> tuple[str, ...] | None:
    return None if value is None else tuple(n for text in _listed(value) for n in split_names(text))


def _seeds(value: int | str | Iterable[int | str] | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    texts = [part for item in _listed(value) for part in split_names(str(item))]
    for text in texts:
        if not text.isdecimal():
            raise ConfigError(f"seed {text!r} is no seed.", allowed="whole numbers from 0, such as --seed 0,1,2")
    return tuple(dict.fromkeys(int(t) for t in texts))


_NAMED_PATH = re.compile(r"([a-z][a-z0-9_]*(?:\[[^\]]*\])?)=(.+)")


def _data_dirs(value: Any) -> dict[str, Path] | None:
    if value is None:
        return None
    if isinstance(value, Mapping):
        return {k: user_path(v) for k, v in value.items()}
    found: dict[str, Path] = {}
    for item in _listed(value):
        match = _NAMED_PATH.fullmatch(str(item))
        name, path = (match[1], match[2]) if match else ("", str(item))
        if name in found:
            raise ConfigError(
                f"two folders are given for {name or 'the dataset'}: {found[name]} and {path}.",
                allowed="one folder a dataset",
                next_step="Say whose each is: --data-dir NAME=PATH.",
            )
        found[name] = user_path(path)
    return found


CHOICES: Mapping[str, tuple[str, ...]] = {
    "profile": tuple(PROFILES),
    "split": get_args(Split),
    "device": get_args(Device),
    "source": get_args(Source),
    "variant": get_args(Variant),
    "harmonise": get_args(Harmonise),
    "shared_people": get_args(SharedPeople),
    "probe": get_args(Probe),
    "cluster": get_args(BatchSystem),
    "log_format": get_args(LogFormat),
}


# ---------------------------------------------------------------- suite files


def load_suite(path: Path | str) -> RunConfig:
    """Read a suite: the name of a frozen one, or a YAML file with fields of :class:`RunConfig`.

    Relative paths in it are relative to its folder.

    Raises
    ------
    ConfigErrors
        With everything that is wrong in the file.
    """
    import pydantic

    path = _suite_file(path)
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"the suite file {path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise ConfigError(f"the suite file {path} is no YAML: {' '.join(str(error).split())}.") from None
    known = [f.name for f in fields(RunConfig) if f.name not in ("suite", *_OF_THE_MACHINE)]
    if not isinstance(content, dict):
        raise ConfigError(f"the suite file {path} holds no settings.", allowed=", ".join(known))
    problems: list[NeurobenchError] = [
        ConfigError(f"{path.name}: {key!r} is no setting.", allowed=", ".join(known), likely=closest(str(key), known))
        for key in content
        if key not in known
    ]
    settings = {k: v for k, v in content.items() if k in known}
    for name in ("backbones", "masks", "datasets", "tasks", "pretrain_on"):
        if isinstance(settings.get(name), str):
            settings[name] = split_names(settings[name])
    for name in ("seeds", "plugin_files"):
        if isinstance(settings.get(name), str | int):
            settings[name] = [settings[name]]
    if isinstance(settings.get("data_dirs"), str):
        settings["data_dirs"] = {"": settings["data_dirs"]}
    try:
        config: RunConfig = _adapter().validate_python(settings)
    except pydantic.ValidationError as error:
        for e in error.errors():
            where = ".".join(map(str, e["loc"]))
            problems.append(ConfigError(f"{path.name}: {where} cannot be {e['input']!r}.", allowed=_allowed(where, e)))
        raise ConfigErrors(problems) from None
    if problems:
        raise ConfigErrors(problems)
    try:
        fingerprint = digest(content)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the suite file {path} holds what no suite can: {error}.") from None
    frozen = frozen_suites().get(path.stem)
    if frozen is not None and frozen != fingerprint:
        raise ConfigError(
            f"{path} calls itself {path.stem}, and is not: that suite is frozen, and this file's content differs.",
            allowed=f"{path.stem} as it was published (content {frozen[:12]})",
            next_step=f"Give the file another name, or use `--suite {path.stem}` and options over it.",
        )
    return replace(
        config,
        suite=f"{path.stem}@{fingerprint[:12]}",
        data_dirs={k: path.parent / user_path(v) for k, v in config.data_dirs.items()},
        plugin_files=tuple(path.parent / user_path(f) for f in config.plugin_files),
    )


@functools.cache
def _adapter() -> Any:
    """Return what judges the fields of a suite; to work it out takes longer than to use it."""
    import pydantic

    return pydantic.TypeAdapter(RunConfig)


SUITES = Path(__file__).with_name("suites")


def frozen_suites() -> dict[str, str]:
    """Return the content hash of every suite that comes with neurobench, by name."""
    found: dict[str, str] = json.loads((SUITES / "frozen.json").read_text(encoding="utf-8"))
    return found


def _suite_file(suite: Path | str) -> Path:
    """Return the file of a suite: a path, or the name of one that comes with neurobench."""
    path = user_path(suite)
    if path.suffix in (".yaml", ".yml") or path.exists():
        return path
    if str(suite) in frozen_suites():
        return SUITES / f"{suite}.yaml"
    raise ConfigError(
        f"there is no suite {str(suite)!r}.",
        allowed=f"{', '.join(frozen_suites())}, or a .yaml file",
        likely=closest(str(suite), frozen_suites()),
    )


def _allowed(where: str, error: Any) -> str:
    if where in CHOICES:
        return ", ".join(CHOICES[where])
    message: str = error["msg"]
    return message[:1].lower() + message[1:].rstrip(".")

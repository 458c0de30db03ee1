"""The grid of combinations that follows from what a run was asked for.

Every name, parameter and combination is judged in :func:`expand`, all problems at once, before any work starts.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from neurobench.components import ComponentSpec, Setting, parse_component, split_names
from neurobench.errors import ConfigError, ConfigErrors, NeurobenchError, closest
from neurobench.objectives import RECONSTRUCTION, Objective, parse_objective
from neurobench.options import (
    ADAPTATIONS,
    CHOICES,
    PROFILES,
    Profile,
    RunConfig,
    load_suite,
    parse_adaptation,
    parse_distributed,
)
from neurobench.resources import Needs, of_this_machine, wrong_with

if TYPE_CHECKING:
    from neurobench.plugins import Kind, Registry

__all__ = [
    "PROFILES",
    "Combination",
    "ComponentSpec",
    "Grid",
    "Profile",
    "RunConfig",
    "expand",
    "load_suite",
    "needs_of",
    "parse_adaptation",
    "parse_component",
    "split_names",
]


GPU = ("cuda", "full")
"""What is meant by ``gpu`` as a device and as a profile; by its letters it would be the CPU."""


@dataclass(frozen=True)
class Combination:
    """One cell of the grid: what is pretrained once a fold."""

    backbone: ComponentSpec
    mask: ComponentSpec
    dataset: ComponentSpec
    seed: int

    @property
    def label(self) -> str:
        """``mamba · roi · camcan · seed 0``."""
        return f"{self.backbone.label} · {self.mask.label} · {self.dataset.label} · seed {self.seed}"


@dataclass(frozen=True)
class Grid:
    """A run with every name resolved and nothing impossible left in it.

    Parameters
    ----------
    config
        What was asked for.
    profile
        Sizes, with --steps and --folds already in place.
    backbones, masks, datasets, seeds
        The axes.
    tasks
        To score on. Those that were not asked for by name are left out silently where they refuse a cohort.
    tasks_asked
        Whether the tasks were asked for by name, so that a refusal is an error.
    baselines
        Printed beside, always.
    adaptation
        ``frozen``, ``finetune``, ``prompt`` or ``lora``; ``scratch`` is finetuning with a mask that does not pretrain.
    data_dirs
        Label of a dataset to its folder; a dataset that is not here runs on its simulated twin.
    pretrain_on
        Datasets to pretrain on instead of the one that is scored; empty: that one's training subjects.
    objective
        What is learnt in pretraining.
    distributed
        How several processes compute one pretraining; None: one does.
    """

    config: RunConfig
    profile: Profile
    backbones: tuple[ComponentSpec, ...]
    masks: tuple[ComponentSpec, ...]
    datasets: tuple[ComponentSpec, ...]
    seeds: tuple[int, ...]
    tasks: tuple[ComponentSpec, ...]
    tasks_asked: bool
    baselines: tuple[ComponentSpec, ...]
    adaptation: Setting
    data_dirs: Mapping[str, Path]
    pretrain_on: tuple[ComponentSpec, ...] = ()
    objective: Objective = RECONSTRUCTION
    distributed: Setting | None = None

    @functools.cached_property
    def combinations(self) -> tuple[Combination, ...]:
        """Every backbone × mask × dataset × seed, one dataset after the other."""
        return tuple(
            Combination(b, m, d, s)
            for d, b, m, s in itertools.product(self.datasets, self.backbones, self.masks, self.seeds)
        )

    @property
    def arrow(self) -> str:
        """`` (latent) ← camcan,adhd200`` behind the name of a row: how and on what it was pretrained, if not as usual.

        As usual is to reconstruct, and on the scored cohort.
        """
        by = "" if self.objective.is_default else f" ({self.objective.label})"
        return by + (f" ← {','.join(s.label for s in self.pretrain_on)}" if self.pretrain_on else "")

    @property
    def ratio(self) -> float:
        """Fraction of valid tokens that is scored in pretraining; the mean of those that an objective draws."""
        return self.objective.mean_ratio(self.config.ratio)

    def root(self, dataset: ComponentSpec) -> Path | None:
        """Return the user's folder of a dataset, or None: its simulated twin."""
        return self.data_dirs.get(dataset.label)

    def source(self, dataset: ComponentSpec) -> Literal["real", "simulated"]:
        """Return whether a dataset is real or simulated in this run."""
        return "real" if dataset.label in self.data_dirs else "simulated"


def expand(config: RunConfig, registry: Registry, *, data_only: bool = False) -> Grid:
    """Resolve a configuration into its grid.

    Parameters
    ----------
    config, registry
        What was asked for, and where components come from.
    data_only
        Resolve the datasets alone, for work that needs no combination.

    Raises
    ------
    ConfigErrors
        With every problem there is.
    """
    problems: list[NeurobenchError] = [*_wrong_values(config)]
    if data_only:
        config = replace(config, backbones=(), masks=(), tasks=(), adaptation="frozen", split="subjects")

    def resolve(kind: Kind, texts: Iterable[str]) -> tuple[ComponentSpec, ...]:
        found = []
        for text in texts:
            try:
                found.append(parse_component(kind, text, registry))
            except NeurobenchError as error:
                problems.append(error)
        return tuple(dict.fromkeys(found))

    try:
        adaptation = parse_adaptation(config.adaptation)
    except ConfigError as error:
        problems.append(error)
        adaptation = Setting("frozen")
    scratch = adaptation.name == "scratch"
    masks = config.masks
    if scratch and not masks:
        masks = tuple(name for name, mask in registry.masks.items() if not mask.pretrains)
    for option, asked, known in (("backbone", config.backbones, registry.backbones), ("mask", masks, registry.masks)):
        if not asked and not data_only:
            problems.append(
                ConfigError(f"no {option} was asked for.", allowed=", ".join(known), next_step=f"Give --{option}.")
            )
    datasets = config.datasets or tuple(n for n, d in registry.datasets.items() if d.default_grid)
    tasks = config.tasks or (
        () if data_only else tuple(n for n, t in registry.tasks.items() if t.default and _constructible(registry, n))
    )
    backbone_specs, mask_specs = resolve("backbone", config.backbones), resolve("mask", masks)
    dataset_specs, task_specs = resolve("dataset", datasets), resolve("task", tasks)
    baselines = resolve("baseline", () if data_only else registry.baselines)

    pretrain_on = resolve("dataset", () if data_only else config.pretrain_on)
    faulty = [_constructor_problem(s, registry) for s in (*mask_specs, *dataset_specs, *task_specs, *pretrain_on)]
    problems.extend(p for found in faulty for p in found)
    if pretrain_on and not any(faulty):
        problems.extend(_impossible_transfers(config, dataset_specs, pretrain_on, registry))
    if scratch:
        problems.extend(
            ConfigError(
                f"--adaptation scratch trains without pretraining, so mask {m.label!r} would not be used.",
                next_step="Leave --mask out, or use --adaptation finetune.",
            )
            for m in mask_specs
            if registry.get("mask", m.name).pretrains
        )
        problems.extend(
            ConfigError(
                f"--adaptation scratch starts without anything learned, and backbone {b.label!r} has weights from "
                "outside.",
                next_step="Use --adaptation finetune with --mask none, or leave the weights out.",
            )
            for b in backbone_specs
            if b.from_outside
        )
    objective = _objective(config, problems)
    if not objective.is_default:
        problems.extend(_objective_unused(config, objective, mask_specs, registry))
    if config.split == "within-recording":
        task_specs = _reconstruction_only(task_specs, bool(config.tasks), registry, problems)
    if config.adaptation != "frozen":
        problems.extend(_nothing_to_train_on(config, task_specs, registry))
    profile = PROFILES.get(config.profile, PROFILES["smoke"])
    profile = replace(
        profile,
        n_steps=profile.n_steps if config.n_steps is None else config.n_steps,
        n_folds=profile.n_folds if config.folds is None else config.folds,
    )
    distributed = _distributed(config, problems)
    if distributed is not None:
        problems.extend(_impossible_processes(config, distributed, profile, mask_specs, registry))
    problems.extend(_impossible_backbones(backbone_specs, profile, registry))
    problems.extend(_impossible_adaptations(adaptation, config, backbone_specs, profile, registry))
    if not any(faulty):
        problems.extend(_impossible_pairs(backbone_specs, mask_specs, registry))
        problems.extend(_impossible_signals(backbone_specs, dataset_specs, pretrain_on, registry))
    if not data_only:
        problems.extend(_cannot_have(config, (*backbone_specs, *mask_specs, *baselines), registry))
    data_dirs = _resolve_data_dirs(config, tuple(dict.fromkeys([*dataset_specs, *pretrain_on])), registry, problems)
    if problems:
        raise ConfigErrors(problems)
    return Grid(
        config=config,
        profile=profile,
        backbones=backbone_specs,
        masks=mask_specs,
        datasets=dataset_specs,
        seeds=config.seeds or tuple(range(profile.n_seeds)),
        tasks=task_specs,
        tasks_asked=bool(config.tasks),
        baselines=baselines,
        adaptation=Setting("finetune") if scratch else adaptation,
        data_dirs=data_dirs,
        pretrain_on=pretrain_on,
        objective=objective,
        distributed=distributed,
    )


def _distributed(config: RunConfig, problems: list[NeurobenchError]) -> Setting | None:
    try:
        return parse_distributed(config.distributed)
    except ConfigError as error:
        problems.append(error)
        return None


def _impossible_processes(
    config: RunConfig, setting: Setting, profile: Profile, masks: tuple[ComponentSpec, ...], registry: Registry
) -> Iterator[ConfigError]:
    """Refuse processes that could not be started, or would have nothing to do."""
    n, option = int(setting.parameters["processes"]), f"--distributed {setting.label}"
    yield from _lacks(option, "accelerate", "distributed")
    if not 2 <= n <= profile.batch_size:
        yield ConfigError(
            f"{option}: {n} processes cannot share a batch of {profile.batch_size} windows.",
            allowed=f"processes=2 to processes={profile.batch_size}",
        )
    if masks and not any(registry.get("mask", m.name).pretrains for m in masks):
        yield ConfigError(
            f"{option} has no meaning with --mask {','.join(m.label for m in masks)} alone: nothing is pretrained.",
            next_step="Add a mask that pretrains, or leave --distributed out.",
        )
    if config.device == "cpu" or config.elsewhere:
        return
    import torch

    n_gpus = torch.cuda.device_count()
    if n_gpus and n > n_gpus:
        yield ConfigError(
            f"{option}: {n} processes need a GPU each, and there {'is one' if n_gpus == 1 else f'are {n_gpus}'}.",
            allowed=f"processes=2 to processes={n_gpus}" if n_gpus > 1 else "",
            next_step="A batch that does not fit into the memory of one GPU is computed in parts there.",
        )
    if n_gpus and config.jobs > 1:
        yield ConfigError(
            f"{option} gives each pretraining several GPUs, and --jobs {config.jobs} gives each job one.",
            allowed="--jobs 1, or --jobs alone",
        )


def _lacks(option: str, package: str, extra: str, otherwise: str = "") -> Iterator[ConfigError]:
    """Refuse an option whose package is not installed."""
    if importlib.util.find_spec(package) is None:
        yield ConfigError(
            f"{option} needs the package {package}, which is not installed.",
            next_step=f'Install the extra: pip install "neurobench-fm[{extra}]"{otherwise}.',
        )


def _objective(config: RunConfig, problems: list[NeurobenchError]) -> Objective:
    try:
        return parse_objective(config.objective)
    except NeurobenchError as error:
        problems.append(error)
        return RECONSTRUCTION


def _objective_unused(
    config: RunConfig, objective: Objective, masks: tuple[ComponentSpec, ...], registry: Registry
) -> Iterator[ConfigError]:
    """Refuse an objective that nothing would be pretrained by, and a ratio that it takes no notice of."""
    if config.adaptation == "scratch":
        yield ConfigError(
            f"--objective {objective.label} has no meaning with --adaptation scratch: nothing is pretrained.",
            next_step="Leave one of them out.",
        )
    elif masks and not any(registry.get("mask", m.name).pretrains for m in masks):
        yield ConfigError(
            f"--objective {objective.label} has no meaning with --mask {','.join(m.label for m in masks)} alone: "
            "nothing is pretrained.",
            allowed=", ".join(n for n, cls in registry.masks.items() if cls.pretrains),
            next_step="Add a mask that pretrains, or leave --objective out.",
        )
    if objective.draws_ratios and config.ratio != RunConfig.ratio:
        yield ConfigError(
            f"--ratio {config.ratio:g} would not be used: objective {objective.label!r} draws every window's ratio.",
            next_step="Leave --ratio out, or ratio_from and ratio_to.",
        )


def _wrong_values(config: RunConfig) -> Iterator[ConfigError]:
    for name, allowed in CHOICES.items():
        value = getattr(config, name)
        if value not in allowed:
            yield ConfigError(
                f"--{name.replace('_', '-')} cannot be {value!r}.",
                allowed=", ".join(filter(None, allowed)),
                likely=next((a for a in GPU if str(value).lower() == "gpu" and a in allowed), "")
                or closest(str(value), allowed),
            )
    if not 0 < config.ratio < 1:
        yield ConfigError(f"--ratio cannot be {config.ratio}.", allowed="a number between 0 and 1, such as 0.5")
    if config.folds is not None and config.folds < 2:
        yield ConfigError(f"--folds cannot be {config.folds}.", allowed="2 or more")
    if config.folds is not None and config.split != "subjects":
        yield ConfigError(
            f"--folds has no meaning with --split {config.split}.", next_step="Leave --folds out, or the split."
        )
    for option, number, least in (("steps", config.n_steps, 1), ("n-subjects", config.n_subjects, 4)):
        if number is not None and number < least:
            yield ConfigError(f"--{option} cannot be {number}.", allowed=f"{least} or more")
    if config.transductive and config.split == "within-recording":
        yield ConfigError(
            "--transductive has no meaning with --split within-recording: everybody is in training there.",
            next_step="Leave one of them out.",
        )
    if config.refit_permutations and not 19 < config.refit_permutations <= 10_000:
        yield ConfigError(
            f"--refit-permutations cannot be {config.refit_permutations}.",
            allowed="20 to 10000, or 0: fewer than 20 can never give p < .05",
        )
    if any(seed < 0 for seed in config.seeds):
        yield ConfigError("a seed cannot be negative.", allowed="whole numbers from 0, such as --seed 0,1,2")
    for option in ("window_s", "patch_s", "sfreq"):
        value = getattr(config, option)
        if value is not None and not 0 < value < float("inf"):
            yield ConfigError(f"--{option.replace('_', '-')} cannot be {value}.", allowed="a number above 0")
    if config.window_s and config.patch_s and config.patch_s > config.window_s:
        yield ConfigError(
            f"a patch of {config.patch_s:g} s does not fit into a window of {config.window_s:g} s.",
            next_step="Change --patch-s or --window-s.",
        )
    if config.scheduler and config.cluster:
        yield ConfigError("--scheduler and --cluster both say who computes.", next_step="Leave one of them out.")
    if config.tensorboard:
        otherwise = "; or follow losses without it: `neurobench log OUT --follow`"
        yield from _lacks("--tensorboard", "tensorboard", "tensorboard", otherwise)
    if config.energy:
        yield from _lacks("--energy", "codecarbon", "energy")
    if config.energy and (config.jobs > 1 or config.distributed or config.elsewhere):
        yield ConfigError(
            "--energy reads counters of the whole machine: of several processes each would be told the energy of all.",
            allowed="--jobs 1, in this process",
        )
    if config.elsewhere:
        yield from _lacks("--cluster" if config.cluster else "--scheduler", "distributed", "cluster")
    if config.cluster:
        yield from _lacks("--cluster", "dask_jobqueue", "cluster")
    if config.cluster and config.cluster_config is None:
        yield ConfigError(
            "--cluster needs a file with what to ask the batch system for.",
            next_step="Give --cluster-config FILE, a YAML file with queue, cores, memory, walltime and jobs.",
        )
    if config.cluster_config is not None and not config.cluster:
        yield ConfigError(
            "--cluster-config says what to ask a batch system for, and no --cluster is given.",
            next_step="Add --cluster slurm, or leave it out.",
        )
    for name, needs in config.resources.items():
        if wrong := wrong_with(needs):
            yield ConfigError(
                f"--resources {name}: {wrong}.", next_step=f"Such as --resources {name or 'mamba'}:GPU=1,MEMORY=16e9."
            )
    # On a cluster it is the workers that need one.
    if config.device == "cuda" and not config.elsewhere:
        import torch

        if not torch.cuda.is_available():
            yield ConfigError(
                "--device cuda: no CUDA device can be used here.", allowed="cpu", next_step="Leave --device out."
            )


def needs_of(component: ComponentSpec, config: RunConfig, registry: Registry) -> Needs:
    """Return what steps that run a component need beyond a core: what the user says, or else what it says itself."""
    return config.resources.get(component.name, registry.get(component.kind, component.name).resources)


def _cannot_have(config: RunConfig, components: Sequence[ComponentSpec], registry: Registry) -> Iterator[ConfigError]:
    """Refuse resources of what is not in the grid, and steps that need more than this machine has."""
    known = {c.name: needs_of(c, config, registry) for c in components}
    for name in config.resources.keys() - known.keys():
        yield ConfigError(
            f"--resources names {name!r}, and no backbone, mask or baseline of this run is called that.",
            allowed=", ".join(known),
            likely=closest(name, known),
        )
    if config.elsewhere or not any(known.values()):
        return
    here = of_this_machine()
    for name, needs in known.items():
        for what in sorted(needs.keys() & here.keys()):
            if needs[what] > here[what]:
                yield ConfigError(
                    f"{name} needs {what}={needs[what]:g}, and this machine has {here[what]:g}.",
                    next_step="Run it elsewhere (--scheduler, --cluster), leave it out, or say that it needs less: "
                    f"--resources {name}:{what}=NUMBER, or --resources {name}: for nothing.",
                )


def _constructible(registry: Registry, task: str) -> bool:
    """Whether a task works without a parameter: ``target`` needs its column."""
    try:
        registry.tasks[task]()
    except NeurobenchError:
        return False
    return True


def _constructor_problem(spec: ComponentSpec, registry: Registry) -> list[NeurobenchError]:
    """Build a component once, so that a value which its constructor refuses is found before any work starts."""
    try:
        registry.get(spec.kind, spec.name)(**spec.arguments)
    except NeurobenchError as error:
        return [error]
    except ValueError as error:
        return [ConfigError(f"{spec.kind} {spec.label!r}: {error}.", next_step=f"See `neurobench info {spec.name}`.")]
    return []


def _impossible_backbones(
    specs: Iterable[ComponentSpec], profile: Profile, registry: Registry
) -> Iterator[NeurobenchError]:
    from neurobench.records import BackboneSpec

    # Sizes of the data are not known yet, and no backbone may depend on them more than on "some".
    sizes = BackboneSpec(
        n_units=8, n_groups=2, n_patches=10, n_features=10, width=profile.width, n_layers=profile.n_layers
    )
    for spec in specs:
        if reason := registry.get("backbone", spec.name).impossible(sizes, spec.arguments):
            yield ConfigError(
                f"backbone {spec.label!r} cannot be built at --profile {profile.name}: {reason.rstrip('.')}.",
                next_step=f"Change its parameters (`neurobench info {spec.name}`) or the profile.",
            )


MOST_PROMPTS = 256
"""Learned tokens of a backbone at most: each goes through it in every patch of every window."""


def _impossible_adaptations(
    adaptation: Setting, config: RunConfig, backbones: tuple[ComponentSpec, ...], profile: Profile, registry: Registry
) -> Iterator[ConfigError]:
    """Refuse parameters out of range, backbones that cannot be adapted so, and options that would mean nothing."""
    if adaptation.name == "frozen":
        return
    unused = (
        ("--harmonise site", config.harmonise == "site"),
        (f"--probe {config.probe}", config.probe != "linear"),
        ("--refit-permutations", config.refit_permutations > 0),
    )
    for option, given in unused:
        if given:
            yield ConfigError(
                f"{option} is about the probe on frozen features, and --adaptation {adaptation.label} has none: "
                "it would be true of the baselines only.",
                next_step="Leave one of them out.",
            )
    if config.split == "within-recording":
        yield ConfigError(
            f"--adaptation {adaptation.label} has no meaning with --split within-recording: it is about tasks on "
            "subjects, and there are none.",
            next_step="Leave one of them out.",
        )
    if adaptation.name == "lora" and not 1 <= int(adaptation.parameters["rank"]) < profile.width / 2:
        yield ConfigError(
            f"--adaptation {adaptation.label}: a rank of {adaptation.parameters['rank']} is no low one at --profile "
            f"{profile.name}, where layers are {profile.width} wide: from half of that the update is larger than "
            "what it updates.",
            allowed=f"1 to {math.ceil(profile.width / 2) - 1}",
        )
    if adaptation.name == "prompt":
        if not 1 <= int(adaptation.parameters["tokens"]) <= MOST_PROMPTS:
            yield ConfigError(
                f"--adaptation {adaptation.label}: tokens cannot be {adaptation.parameters['tokens']}.",
                allowed=f"1 to {MOST_PROMPTS}",
            )
        for spec in backbones:
            if not registry.get("backbone", spec.name).takes_prompts():
                fitting = [n for n, cls in registry.backbones.items() if cls.takes_prompts()]
                others = [a for a in ADAPTATIONS if a not in ("prompt", "scratch")]
                yield ConfigError(
                    f"backbone {spec.label!r} takes no prompts: it is no TokenBackbone, and has no `with_prompts`.",
                    allowed=f"{', '.join(fitting) or 'none that is installed'}; or --adaptation {', '.join(others)}",
                    next_step="Write it, derive the backbone from TokenBackbone, or choose another adaptation.",
                )


def _impossible_pairs(
    backbones: tuple[ComponentSpec, ...], masks: tuple[ComponentSpec, ...], registry: Registry
) -> Iterator[ConfigError]:
    """Refuse to pretrain on visible tokens only under a mask that does not leave a grid of them."""
    fitting = [n for n, cls in registry.masks.items() if cls.pretrains and cls.hides != "tokens"]
    for backbone, mask in itertools.product(backbones, masks):
        strategy = registry.get("mask", mask.name)(**mask.arguments)
        if not strategy.pretrains or strategy.hides != "tokens":
            continue
        cls = registry.get("backbone", backbone.name)
        if cls.drops(backbone.parameters):
            other = "another backbone" if cls.drops_hidden else f"--backbone {backbone.name} without visible_only"
            yield ConfigError(
                f"backbone {backbone.label!r} computes visible tokens only, and mask {mask.label!r} hides tokens here "
                "and there: what stays visible is no grid, and nothing would be saved.",
                allowed=f"masks that hide whole units or times: {', '.join(fitting)}",
                likely=closest(mask.name, fitting),
                next_step=f"Use one of these, or {other}.",
            )


def _impossible_signals(
    backbones: tuple[ComponentSpec, ...],
    datasets: tuple[ComponentSpec, ...],
    pretrain_on: tuple[ComponentSpec, ...],
    registry: Registry,
) -> Iterator[ConfigError]:
    """Refuse a backbone on a kind of signal that it is not for."""
    from neurobench.records import SignalKind

    every = set(get_args(SignalKind))
    backbones = tuple(b for b in backbones if set(registry.get("backbone", b.name).signals) != every)
    if not backbones:
        return
    signal = {s: registry.get("dataset", s.name)(**s.arguments).signal for s in (*datasets, *pretrain_on)}
    for backbone in backbones:
        allowed = registry.get("backbone", backbone.name).signals
        wrong = {s.label: kind for s, kind in signal.items() if kind not in allowed}
        if wrong:
            told = ", ".join(f"{label} ({kind})" for label, kind in wrong.items())
            fitting = [s.label for s in datasets if signal[s] in allowed]
            other = f" or leave out {', '.join(wrong)}" if fitting else ""
            yield ConfigError(
                f"backbone {backbone.label!r} cannot be used on {told}.",
                allowed=f"signal={' or signal='.join(allowed)}",
                next_step=f"Give the datasets that signal, where they have it{other}.",
            )


def _impossible_transfers(
    config: RunConfig,
    datasets: tuple[ComponentSpec, ...],
    pretrain_on: tuple[ComponentSpec, ...],
    registry: Registry,
) -> Iterator[ConfigError]:
    """Refuse what cannot be pretrained on other cohorts, or has no meaning there."""
    for option, senseless in (
        ("--split within-recording", config.split == "within-recording"),
        ("--adaptation scratch", config.adaptation.strip() == "scratch"),
        ("--transductive", config.transductive),
    ):
        if senseless:
            yield ConfigError(f"--pretrain-on has no meaning with {option}.", next_step="Leave one of them out.")
    signal = {s: registry.get("dataset", s.name)(**s.arguments).signal for s in (*datasets, *pretrain_on)}
    for scored in datasets:
        for other in pretrain_on:
            if signal[other] != signal[scored]:
                fitting = [d.label for d in datasets if signal[d] == signal[other]]
                yield ConfigError(
                    f"a network pretrained on {other.label} ({signal[other]}) cannot be scored on {scored.label} "
                    f"({signal[scored]}).",
                    allowed="cohorts of one kind of signal",
                    next_step=f"Use --dataset {','.join(fitting)}." if fitting else "Choose datasets of one kind.",
                )


def _reconstruction_only(
    tasks: tuple[ComponentSpec, ...], asked: bool, registry: Registry, problems: list[NeurobenchError]
) -> tuple[ComponentSpec, ...]:
    """Return the tasks that make sense when all of a recording's people are in training and test alike."""
    kept = tuple(t for t in tasks if registry.get("task", t.name).needs == "reconstruction")
    if asked:
        problems.extend(
            ConfigError(
                f"--split within-recording cannot be scored on task {t.label!r}: "
                "training and test are the same people.",
                allowed="reconstruction tasks",
                next_step="Leave the task out, or use --split subjects.",
            )
            for t in tasks
            if t not in kept
        )
    return kept


def _nothing_to_train_on(
    config: RunConfig, tasks: tuple[ComponentSpec, ...], registry: Registry
) -> Iterator[ConfigError]:
    """Refuse tasks whose labels nothing is trained on."""
    for spec in tasks:
        if registry.get("task", spec.name).frozen_only:
            yield ConfigError(
                f"--adaptation {config.adaptation} has no meaning for task {spec.label!r}: nothing is trained on "
                "what it looks for.",
                allowed="frozen",
                next_step="Leave the task or the adaptation out.",
            )


def _no_folder(path: Path) -> ConfigError:
    """Return the error for a --data-dir that is no folder, with what was likely meant."""
    step = "Give the folder that holds the recordings."
    if path.is_file():
        return ConfigError(f"--data-dir: {path} is a file.", likely=f"--data-dir {path.parent}", next_step=step)
    if path.is_symlink():
        return ConfigError(f"--data-dir: {path} is a link to what is not there: {path.readlink()}.", next_step=step)
    there = next((p for p in path.parents if p.is_dir()), path)
    missing = path.relative_to(there).parts[:1]
    with contextlib.suppress(OSError):
        beside = {p.name: p for p in there.iterdir() if p.is_dir() and p.name[0] != "."}
        if missing and (meant := closest(missing[0], beside)):
            rest = path.relative_to(there / missing[0])
            likely = beside[meant] / rest if (beside[meant] / rest).is_dir() else beside[meant]
            return ConfigError(
                f"--data-dir: the folder {path} does not exist.", likely=f"--data-dir {likely}", next_step=step
            )
    return ConfigError(f"--data-dir: the folder {path} does not exist.", next_step=step)


def _resolve_data_dirs(
    config: RunConfig, datasets: tuple[ComponentSpec, ...], registry: Registry, problems: list[NeurobenchError]
) -> dict[str, Path]:
    """Return the folder of every dataset that runs on real recordings."""
    labels = [d.label for d in datasets]
    known = list(dict.fromkeys([*labels, *(d.name for d in datasets)]))
    for name, path in config.data_dirs.items():
        if name == "" and not datasets:
            continue  # no dataset of that name: said already, and nothing follows from it
        if name == "" and len(datasets) != 1:
            problems.append(
                ConfigError(
                    f"--data-dir {path} does not say whose folder it is, and {len(datasets)} datasets are asked for.",
                    allowed=", ".join(f"--data-dir {label}={path}" for label in labels),
                    next_step="Give the name, or one --dataset.",
                )
            )
        elif name and name not in known:
            problems.append(
                ConfigError(
                    f"--data-dir {name}={path}: dataset {name!r} is not asked for.",
                    allowed=", ".join(known),
                    likely=closest(name, known),
                    next_step=f"Leave it out, or add --dataset {name}.",
                )
            )
        elif not path.is_dir():
            problems.append(_no_folder(path))
    found: dict[str, Path] = {}
    for spec in datasets:
        folder = next((config.data_dirs[k] for k in (spec.label, spec.name, "") if k in config.data_dirs), None)
        if config.source != "simulated" and folder is not None:
            found[spec.label] = folder.resolve()
        elif config.source == "real":
            problems.append(
                ConfigError(
                    f"--source real: no folder is given for dataset {spec.label!r}.",
                    next_step=f"Give --data-dir {spec.name}=PATH.",
                )
            )
        elif registry.get("dataset", spec.name).twin_subjects == 0:
            problems.append(
                ConfigError(
                    f"dataset {spec.label!r} has no simulated twin.",
                    next_step=f"Give its folder: --data-dir {spec.name}=PATH.",
                )
            )
    if datasets and len(found) == len(datasets):
        # What a suite says of its twin has no meaning for somebody's own recordings, and does no harm.
        over = config.suite.partition(", changed: ")[2].split(", ")
        for option, value, default in (
            ("variant", config.variant, "default"),
            ("n-subjects", config.n_subjects, None),
        ):
            if value != default and (not config.suite or option.replace("-", "_") in over):
                problems.append(
                    ConfigError(
                        f"--{option} is about simulated data, and every dataset here is real.",
                        next_step="Leave it out, or use --source simulated.",
                    )
                )
    return found

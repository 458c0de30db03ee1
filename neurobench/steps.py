"""The stored steps of one cohort and seed: what identifies each, and how it is computed.

A :class:`Step` knows its identity before anything is computed, because identities are built from identities, not from
results. That is what makes a plan, a resumed run and a wider grid the same thing. What is scored, and in which order,
is the business of ``stages.py``.
"""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

import neurobench
from neurobench import (
    adaptation,
    attentive,
    attribution,
    connectivity,
    contracts,
    distributed,
    energy,
    evoked,
    grand_average,
    hardware,
    harmonisation,
    learners,
    masking,
    monitoring,
    objectives,
    pretraining,
    reconstruction,
    sensory,
    splits,
    tokens,
    transfer,
)
from neurobench.cohorts import CohortSource
from neurobench.components import ComponentSpec, Setting, parse_component
from neurobench.config import Grid
from neurobench.contracts import (
    COVARIATES,
    Backbone,
    Baseline,
    EvokedTask,
    MaskingStrategy,
    RetrievalTask,
    SubjectTask,
    Task,
    WindowTask,
)
from neurobench.cost import Work
from neurobench.evoked import EvokedScores
from neurobench.evoked_scores import join_evoked, load_evoked, save_evoked
from neurobench.grand_average import GrandAverage
from neurobench.identity import digest, file_digest, seed_for
from neurobench.plugins import Registry
from neurobench.progress import Advance
from neurobench.reconstruction_io import join, load_scores, save_scores
from neurobench.records import BackboneSpec, Cohort, Fold
from neurobench.retrieval import RetrievalRows, retrieval_rows
from neurobench.store import Checkpoint, Entry
from neurobench.windows import Rows, WindowRows, window_rows

__all__ = ["FILLERS", "CohortSteps", "Fetch", "Row", "Step", "code_digest", "once"]

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound="CohortSteps")


@dataclass(frozen=True)
class Step:
    """One artefact to find or to compute.

    Parameters
    ----------
    stage
        Folder of the store.
    label
        How people call it.
    identity
        Everything that determines it.
    work
        How much it is, for estimates of its time; no part of any identity.
    compute
        Writes the artefact's files into a folder; from a checkpoint on, if it is one that keeps any.
    """

    stage: str
    label: str
    identity: Mapping[str, Any]
    work: Work
    compute: Callable[[Path, Advance, Checkpoint], None]

    @functools.cached_property
    def key(self) -> str:
        """The key of its identity in a store."""
        return digest(self.identity)


Fetch = Callable[[Step], Entry]
"""Returns the entry of a step, computing it if it is not stored."""


@dataclass(frozen=True)
class Row:
    """One line of the results table, before it is scored on a task.

    Parameters
    ----------
    kind
        ``pretrained``, ``given`` (weights from outside, as they are), ``untrained``, ``baseline`` or ``filler``.
    label
        Such as ``mamba · roi``.
    backbone, mask, baseline
        What it is made of; None where it does not apply. Fillers have none of them.
    """

    kind: Literal["pretrained", "given", "untrained", "baseline", "filler"]
    label: str
    backbone: ComponentSpec | None = None
    mask: ComponentSpec | None = None
    baseline: ComponentSpec | None = None

    @property
    def pretraining(self) -> tuple[ComponentSpec, ComponentSpec]:
        """Backbone and masking strategy of a row that has them."""
        if self.backbone is None or self.mask is None:
            raise ValueError(f"row {self.label!r} is not pretrained")
        return self.backbone, self.mask

    @property
    def provides(self) -> frozenset[str]:
        """What tasks can ask of it: ``features``, ``reconstruction``."""
        if self.kind == "baseline":
            return frozenset({"features"})
        if self.kind == "filler":
            return frozenset({"reconstruction"})
        return frozenset({"features", "reconstruction"})


FILLERS = Row("filler", "trivial fillers")
"""Stands for all trivial fillers: one stored entry holds them."""


COMMON = ("contracts", "identity", "records", "visible")
"""Modules of the core that every step computes with: what backbones are built on, batches, seeds."""


@functools.cache
def code_digest(*modules: Any) -> str:
    """Return a hash of the source of some core modules, and of :data:`COMMON`: other code is another identity.

    Read once, as plugins are: what runs is what was imported.
    """
    common = [Path(__file__).with_name(f"{name}.py") for name in COMMON]
    return digest([file_digest(path) for path in (*(Path(m.__file__) for m in modules), *common)])


def once(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Have a cohort's steps remember what a method returned: identities share their parts many times over.

    What it returns is not to be changed.
    """

    @functools.wraps(method)
    def remembered(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        key = (method.__name__, *args, *kwargs.items())
        if key not in self.remembered:
            self.remembered[key] = method(self, *args, **kwargs)
        found: R = self.remembered[key]
        return found

    return remembered


@dataclass(frozen=True, eq=False)
class Outside:
    """Another cohort that networks are pretrained on.

    Parameters
    ----------
    cohort
        With the units of the network, see :class:`~neurobench.records.Correspondence`.
    people
        Whom they are pretrained on.
    shared
        Who is in the scored cohort too.
    """

    cohort: Cohort
    people: tuple[str, ...]
    shared: transfer.SharedPeople

    @property
    def n_left_out(self) -> int:
        """How many of the cohort networks are not pretrained on, because they are in the scored one too."""
        return len(self.cohort.subjects) - len(self.people)

    @property
    def n_same_name(self) -> int:
        """How many are pretrained on though somebody scored has their identifier: declared to be other people."""
        return len(set(self.shared.by_name) & set(self.people))


class CohortSteps:
    """The steps of one (cohort, seed) that compute something on its folds: weights, features, reconstructions.

    Parameters
    ----------
    cohort, source
        Prepared recordings, and where they come from.
    grid
        What was asked for, resolved.
    registry
        Where components come from.
    seed
        Base seed.
    device
        Where backbones run.
    fetch
        Finds or computes a step that another one needs.
    others
        By label, the cohorts of ``grid.pretrain_on`` that are not this one.

    Raises
    ------
    DataError
        If the cohort cannot be split, or cannot be scored with networks that are pretrained on the others.
    """

    def __init__(
        self,
        cohort: Cohort,
        source: CohortSource,
        grid: Grid,
        registry: Registry,
        seed: int,
        device: torch.device,
        fetch: Fetch,
        others: Mapping[str, Cohort] | None = None,
    ) -> None:
        self.remembered: dict[tuple[Any, ...], Any] = {}
        self.source, self.grid, self.registry = source, grid, registry
        self.seed, self.device, self.fetch = seed, device, fetch
        profile = grid.profile
        self.cohort, self.outside = _met(cohort, grid, others or {})
        known = self.cohort.known_units
        self.folds = splits.make_folds(cohort.participants, profile.n_folds, seed, grid.config.split)
        splits.check_disjoint(self.folds, cohort.participants)
        self.fold_fingerprint = splits.fold_fingerprint(self.folds)
        self.recipe = pretraining.Recipe.for_width(profile.width, profile.batch_size)
        self.n_units = min(len(cohort.units), max(1, profile.n_tokens // cohort.patches_per_window))
        self.chunks = tokens.unit_chunks(cohort.units, self.n_units)
        self.spec = BackboneSpec.of(
            known,
            n_patches=cohort.patches_per_window,
            n_features=cohort.n_features,
            width=profile.width,
            n_layers=profile.n_layers,
        )

    # ------------------------------------------------------------ how much work it is

    @functools.cached_property
    def _pass_size(self) -> float:
        """Nominal size of one window of one chunk of units on its way through a backbone."""
        return float(self.n_units * self.spec.n_patches * self.spec.width * self.spec.n_layers)

    @functools.cached_property
    def _n_values(self) -> float:
        """Numbers in all recordings."""
        return float(sum(r.n_times for r in self.cohort.recordings) * len(self.cohort.units) * self.cohort.n_voxels)

    def _by(self, backbone: ComponentSpec | None) -> str:
        """Return what seconds for work of one size are shared by: a backbone on the tokens of a cohort."""
        return self.cohort.dataset if backbone is None else f"{backbone.label} on {self.cohort.dataset}"

    def _passes(
        self,
        kind: str,
        subjects: Sequence[str],
        backbone: ComponentSpec | None,
        span: tuple[float, float] = (0.0, 1.0),
        times: int = 1,
    ) -> Work:
        """Return the work of passing all evaluation windows of some subjects, in all chunks, ``times`` times."""
        key = (tuple(subjects), span)
        if key not in self._n_windows:
            self._n_windows[key] = len(tokens.evaluation_windows(self.cohort, subjects, span))
        return Work(kind, self._n_windows[key] * len(self.chunks) * times, self._pass_size, self._by(backbone))

    @functools.cached_property
    def _n_windows(self) -> dict[tuple[tuple[str, ...], tuple[float, float]], int]:
        return {}

    # ------------------------------------------------------------ shared pieces

    @functools.cached_property
    def _tokenizers(self) -> dict[int, tokens.Tokenizer]:
        return {}

    @functools.cached_property
    def _masks(self) -> dict[tuple[str, str, str, float], masking.Hidden]:
        """Evaluation masks of the current fold, which every row is scored under."""
        return {}

    @functools.cached_property
    def _outside_tokenizers(self) -> dict[str, tokens.Tokenizer]:
        """By label of the cohort, scaled on whom the networks are pretrained on."""
        return {
            o.cohort.dataset: tokens.Tokenizer(o.cohort, tokens.Scaler.fit(o.cohort, o.people)) for o in self.outside
        }

    def tokenizer(self, fold: Fold) -> tokens.Tokenizer:
        """Return the tokenizer of a fold, its scaler fitted on that fold's training subjects."""
        if fold.index not in self._tokenizers:
            # One fold's scaled signal and masks in memory at a time.
            self._tokenizers.clear()
            self._masks.clear()
            scaler = tokens.Scaler.fit(self.cohort, fold.train, fold.train_span)
            self._tokenizers[fold.index] = tokens.Tokenizer(self.cohort, scaler)
        return self._tokenizers[fold.index]

    @once
    def component(self, spec: ComponentSpec) -> dict[str, Any]:
        """Return what identifies a component: name, parameters, distribution, version, digest of its source."""
        provenance = self.registry.provenance(spec.kind, spec.name)
        cls = self.registry.get(spec.kind, spec.name)
        return {**spec.identity(), **asdict(provenance), "score_version": cls.score_version}

    def strategy(self, spec: ComponentSpec) -> MaskingStrategy:
        """Build a masking strategy."""
        strategy: MaskingStrategy = self.registry.get("mask", spec.name)(**spec.arguments)
        return strategy

    def task(self, spec: ComponentSpec) -> Task:
        """Build a task."""
        task: Task = self.registry.get("task", spec.name)(**spec.arguments)
        return task

    @once
    def _fold_identity(self, fold: Fold) -> dict[str, Any]:
        return {
            "cohort": self.cohort.fingerprint,
            "train": digest(list(fold.train)),
            "test": digest(list(fold.test)),
            "spans": [list(fold.train_span), list(fold.test_span)],
            "seed": self.seed,
            "neurobench": neurobench.__version__,
        }

    def _title(self, what: str, fold: Fold | None = None) -> str:
        where = f" · fold {fold.index + 1}/{len(self.folds)}" if fold is not None else ""
        return f"{what} · {self.cohort.dataset} · seed {self.seed}{where}"

    # ------------------------------------------------------------ pretraining

    @property
    def pretrains_inside(self) -> bool:
        """Whether networks are pretrained on the cohort itself, which makes one network a fold."""
        return not self.grid.pretrain_on or any(s.label == self.cohort.dataset for s in self.grid.pretrain_on)

    def _people(self, fold: Fold) -> tuple[str, ...]:
        """Return whom of the cohort itself networks are pretrained on."""
        if not self.pretrains_inside:
            return ()
        # Transductive: on everybody's recordings, without labels; scaling is fitted on training subjects all the same.
        return self.cohort.subjects if self.grid.config.transductive else fold.train

    def _learns(self, backbone: ComponentSpec, mask: ComponentSpec) -> bool:
        """Whether anything of a network comes from recordings: its weights, or the connectivity that it is given."""
        cls: type[Backbone] = self.registry.get("backbone", backbone.name)
        return self.strategy(mask).pretrains or cls.uses_connectivity

    def _meets(self, backbone: ComponentSpec, mask: ComponentSpec) -> bool:
        """Whether a network has met the cohort before it is scored on it, which makes it another one in every fold."""
        return self.pretrains_inside and self._learns(backbone, mask)

    def _data_identity(self, backbone: ComponentSpec, mask: ComponentSpec, fold: Fold) -> dict[str, Any]:
        """Return what identifies the data of a pretraining; without the cohort itself it is the same in every fold."""
        identity: dict[str, Any] = {"seed": self.seed, "neurobench": neurobench.__version__}
        if self._meets(backbone, mask):
            identity = self._fold_identity(fold) | {"people": digest(list(self._people(fold)))}
        if self.grid.pretrain_on and self._learns(backbone, mask):
            identity["order"] = [s.label for s in self.grid.pretrain_on]
            identity["outside"] = [[o.cohort.fingerprint, digest(list(o.people))] for o in self.outside]
            identity["units"] = digest(self.cohort.known_units.describe())
        return identity

    @once
    def _network_identity(self, backbone: ComponentSpec, mask: ComponentSpec, fold: Fold) -> dict[str, Any]:
        """Return what identifies a pretrained network that is used on the cohort in a fold."""
        identity: dict[str, Any] = {"pretraining": self.pretraining_step(backbone, mask, fold).key}
        # A network that never met the cohort says nothing of who is scaled and scored with it, and how units meet.
        met = {} if self.cohort.seen_as is None else {"units": digest(self.cohort.known_units.describe())}
        return identity | met if self._meets(backbone, mask) else identity | met | self._fold_identity(fold)

    @once
    def pretraining_step(self, backbone: ComponentSpec, mask: ComponentSpec, fold: Fold) -> Step:
        """Pretrain a backbone under a masking strategy on the training subjects of a fold, or on other cohorts."""
        strategy = self.strategy(mask)
        n_steps = self.grid.profile.n_steps if strategy.pretrains else 0
        ratio, objective = self.grid.config.ratio, self.grid.objective
        identity = {
            **self._data_identity(backbone, mask, fold),
            "backbone": self.component(backbone),
            "mask": self.component(mask),
            "spec": self.spec.describe(),
            "n_steps": n_steps,
            "n_tokens": self.grid.profile.n_tokens,
            "recipe": asdict(self.recipe),
            "ratio": self.grid.ratio if strategy.pretrains else 0.0,
            "objective": objective.identity() if strategy.pretrains else None,
            "device": self.device.type,
            "code": code_digest(contracts, connectivity, pretraining, learners, objectives, tokens, masking, transfer),
        }

        together = self.grid.distributed if n_steps else None
        if together is not None:
            # Sums of shares are rounded otherwise.
            identity["distributed"] = together.identity() | {"code": code_digest(distributed)}

        def compute(folder: Path, advance: Advance, checkpoint: Checkpoint) -> None:
            group = distributed.joined()
            if together is not None and group.size == 1:
                # The seconds that led to it count here; the processes read it for themselves.
                pretraining.reached(checkpoint)
                distributed.launch(self._member(together, identity, folder, checkpoint), advance)
                return
            net, decoder = self._build(backbone)
            parts = self._training_windows(fold)
            if net.uses_connectivity:
                net.connectivity.copy_(connectivity.mean_connectivity(parts, self.spec.n_units))
            windows = parts[0] if len(parts) == 1 else transfer.MixedWindows(parts)
            with (
                hardware.metered(self.device) as meter,
                energy.counted(meter) if self.grid.config.energy else contextlib.nullcontext(),
                monitoring.monitored(meter, events if group.rank == 0 else None) as monitor,
            ):
                history = pretraining.pretrain(
                    net,
                    decoder,
                    strategy,
                    windows,
                    recipe=self.recipe,
                    n_steps=n_steps,
                    ratio=ratio,
                    seed=self.seed,
                    objective=objective,
                    device=self.device,
                    on_step=lambda step: advance(step + 1, n_steps),
                    on_look=monitor.look if group.rank == 0 else None,
                    checkpoint=checkpoint,
                    group=group,
                )
                meter.is_part = checkpoint.was_read
            weights = {f"backbone.{k}": v for k, v in net.state_dict().items()}
            weights |= {f"decoder.{k}": v for k, v in decoder.state_dict().items()}
            whole = group.whole(weights)
            if group.rank != 0:
                return
            save_file(whole, folder / "weights.safetensors")
            met = n_steps or net.uses_connectivity
            summary = history.to_dict() | {
                "n_parameters": pretraining.count_parameters(net),
                "scalers": {p.tokenizer.cohort.dataset: p.tokenizer.scaler.to_dict() for p in parts if met},
                "device": str(self.device),
                "hardware": meter.to_dict(),
                "distributed": "" if together is None else f"{together.name}[processes={group.size}]",
            }
            (folder / "pretraining.json").write_text(json.dumps(summary), encoding="utf-8")

        what = f"pretrain {backbone.label} · {mask.label}" + (self.grid.arrow if strategy.pretrains else "")
        label = self._title(what, fold) if self._meets(backbone, mask) else f"{what} · seed {self.seed}"
        watched = n_steps and self.grid.config.tensorboard
        events = monitoring.folder_of(self.grid.config.out, label, identity) if watched else None
        amount = n_steps * objective.work / (1 if together is None else distributed.n_processes(together))
        work = Work("pretraining", amount, self.recipe.batch_size * self._pass_size, self._by(backbone))
        return Step("pretraining", label, identity, work, compute)

    def _member(
        self, together: Setting, identity: Mapping[str, Any], folder: Path, checkpoint: Checkpoint
    ) -> distributed.Member:
        return distributed.Member(
            config=self.grid.config,
            setting=together,
            device=self.device.type,
            dataset=self.cohort.dataset,
            seed=self.seed,
            stage="pretraining",
            key=digest(identity),
            folder=folder,
            checkpoint=checkpoint,
            path=tuple(sys.path),
        )

    def _training_windows(self, fold: Fold) -> list[tokens.TrainingWindows]:
        """Return the windows of every cohort that a network is pretrained on in a fold, in the order asked for."""
        sources: list[tuple[tokens.Tokenizer, Sequence[str], tuple[float, float]]] = []
        asked = [s.label for s in self.grid.pretrain_on] or [self.cohort.dataset]
        people = {o.cohort.dataset: o.people for o in self.outside}
        for label in asked:
            if label == self.cohort.dataset:
                sources.append((self.tokenizer(fold), self._people(fold), fold.train_span))
            else:
                sources.append((self._outside_tokenizers[label], people[label], (0.0, 1.0)))
        return [
            tokens.TrainingWindows(tokenizer, who, self.grid.profile.n_tokens, self.seed, span)
            for tokenizer, who, span in sources
        ]

    def _build(self, backbone: ComponentSpec) -> tuple[Backbone, pretraining.Decoder]:
        # One initialisation a (seed, backbone): every mask and fold starts from the same weights.
        cls = self.registry.get("backbone", backbone.name)
        net, decoder = pretraining.build(
            cls, self.spec, backbone.arguments, seed_for(self.seed, "pretrain-init", backbone.label)
        )
        return net.to(self.device), decoder.to(self.device)

    def load_pretrained(
        self, backbone: ComponentSpec, mask: ComponentSpec, fold: Fold
    ) -> tuple[Backbone, pretraining.Decoder]:
        """Return backbone and decoder with their pretrained weights."""
        entry = self.fetch(self.pretraining_step(backbone, mask, fold))
        net, decoder = self._build(backbone)
        weights = load_file(entry.file("weights.safetensors"), device=str(self.device))
        for prefix, module in (("backbone.", net), ("decoder.", decoder)):
            module.load_state_dict({k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)})
        return net.eval(), decoder.eval()

    # ------------------------------------------------------------ features

    @functools.cached_property
    def geometries(self) -> dict[tuple[str, str], pd.DataFrame]:
        """Where held-out subjects lie in a row's embedding, by row and, where that changes it, task."""
        return {}

    def _embeds_alike(self, backbone: ComponentSpec, mask: ComponentSpec) -> bool:
        """Whether a network embeds everybody alike in all folds: it never met the cohort, and nobody scales others."""
        whole = all(fold.train_span == (0.0, 1.0) for fold in self.folds)
        return not self._meets(backbone, mask) and self.cohort.spec.scaling == "recording" and whole

    @once
    def embedding_step(self, backbone: ComponentSpec, mask: ComponentSpec, fold: Fold) -> Step:
        """Embed every subject with the frozen backbone of a fold."""
        identity = {
            **self._network_identity(backbone, mask, fold),
            "code": code_digest(adaptation, tokens),
            "subjects": digest(list(self.cohort.subjects)),
        }

        def compute(folder: Path, advance: Advance, checkpoint: Checkpoint) -> None:
            if self._embeds_alike(backbone, mask) and fold is not self.folds[0]:
                _copy_features(self.fetch(self.embedding_step(backbone, mask, self.folds[0])), folder)
                return
            net, _ = self.load_pretrained(backbone, mask, fold)
            windows = tokens.evaluation_windows(self.cohort, self.cohort.subjects)
            subjects, features = adaptation.embed_subjects(net, self.tokenizer(fold), windows, self.chunks, self.device)
            _save_features(folder, subjects, features)

        label = self._title(f"embed {backbone.label} · {mask.label}", fold)
        return Step("embedding", label, identity, self._passes("embedding", self.cohort.subjects, backbone), compute)

    @once
    def window_embedding_step(
        self, backbone: ComponentSpec, mask: ComponentSpec, fold: Fold, task: ComponentSpec
    ) -> Step:
        """Embed every window of a task with the frozen backbone of a fold."""
        identity = {
            **self._network_identity(backbone, mask, fold),
            "code": code_digest(adaptation, tokens),
            "windows": self.rows_of(task).cohort.fingerprint,
        }

        def compute(folder: Path, advance: Advance, checkpoint: Checkpoint) -> None:
            if self._embeds_alike(backbone, mask) and fold is not self.folds[0]:
                first = self.window_embedding_step(backbone, mask, self.folds[0], task)
                _copy_features(self.fetch(first), folder)
                return
            net, _ = self.load_pretrained(backbone, mask, fold)
            rows = self.rows_of(task).scaled
            cut = tokens.evaluation_windows(rows, rows.subjects)
            tokenizer = tokens.Tokenizer(rows, self.tokenizer(fold).scaler)
            _save_features(folder, *adaptation.embed_subjects(net, tokenizer, cut, self.chunks, self.device))

        label = self._title(f"embed windows for {task.label}, {backbone.label} · {mask.label}", fold)
        n_passes = len(self.rows_of(task).subjects) * len(self.chunks)
        return Step(
            "embedding", label, identity, Work("embedding", n_passes, self._pass_size, self._by(backbone)), compute
        )

    def of_windows(self, task: ComponentSpec) -> bool:
        """Whether a task is about windows, each of which is a row of its own."""
        return isinstance(self.task(task), WindowTask | RetrievalTask)

    def rows_of(self, task: ComponentSpec) -> Rows:
        """Return the windows that a task is about, as rows of a cohort."""
        if task not in self._rows_of:
            built = self.task(task)
            if isinstance(built, RetrievalTask):
                self._rows_of[task] = retrieval_rows(self.cohort, built)
            else:
                assert isinstance(built, WindowTask)
                self._rows_of[task] = window_rows(self.cohort, built)
        return self._rows_of[task]

    @functools.cached_property
    def _rows_of(self) -> dict[ComponentSpec, Rows]:
        return {}

    def window_rows(self, task: ComponentSpec) -> WindowRows:
        """Return the windows that a task tells apart."""
        rows = self.rows_of(task)
        assert isinstance(rows, WindowRows)
        return rows

    def retrieval_rows(self, task: ComponentSpec) -> RetrievalRows:
        """Return the windows that a task looks for, and those of its galleries."""
        rows = self.rows_of(task)
        assert isinstance(rows, RetrievalRows)
        return rows

    @once
    def baseline_step(self, baseline: ComponentSpec, fold: Fold, task: ComponentSpec) -> Step:
        """Fit a baseline on the training subjects and give every subject its feature row."""
        cls: type[Baseline] = self.registry.get("baseline", baseline.name)
        of_windows = self.of_windows(task)
        identity = {
            **self._fold_identity(fold),
            "baseline": self.component(baseline),
            "task": self.component(task) if cls.depends_on_task else None,
        }
        if of_windows:
            identity["windows"] = self.rows_of(task).cohort.fingerprint

        def compute(folder: Path, advance: Advance, checkpoint: Checkpoint) -> None:
            built = cls(**baseline.arguments)
            hidden = _target_column(self.task(task)) if cls.depends_on_task else ""
            cohort = self.rows_of(task).scaled if of_windows else self.cohort
            train = self.rows_of(task).of(fold.train) if of_windows else fold.train
            built.fit(_without_targets(cohort, train, hidden))
            everyone = _without_targets(cohort, cohort.subjects, hidden)
            _save_features(folder, everyone.subjects, built.transform(everyone))

        what = f"baseline {baseline.label}" + (f" · {task.label}" if cls.depends_on_task or of_windows else "")
        rows = len(self.rows_of(task).subjects) / len(self.cohort.subjects) if of_windows else 1.0
        work = Work("baseline", self._n_values * rows, by=baseline.label)
        return Step("baseline", self._title(what, fold), identity, work, compute)

    def features(self, row: Row, task: ComponentSpec, fold: Fold) -> tuple[list[str], NDArray[np.float64]]:
        """Return subjects and their feature rows."""
        entry = self.fetch(self.feature_step(row, task, fold))
        features = np.load(entry.file("features.npy"), allow_pickle=False).astype(np.float64)
        subjects = entry.json("subjects.json")
        if self.harmonises(row, task):
            people, train = self.cohort.participants.loc[subjects], np.isin(subjects, fold.train)
            features = harmonisation.by_site(features, people, train, _target_column(self.task(task)))
        return subjects, features

    def probe(self, row: Row) -> adaptation.Probe:
        """Return what predicts from a row's features: what the run asks for, unless a baseline brings its own."""
        if row.baseline is None:
            return self.grid.config.probe
        own: adaptation.Probe = self.registry.get("baseline", row.baseline.name).probe
        # Features of a baseline are of no unit, and there is nothing to attend over.
        asked = "linear" if self.grid.config.probe == "attentive" else self.grid.config.probe
        return "kernel" if own == "kernel" else asked

    def how_probed(self, row: Row) -> adaptation.HowProbed:
        """Return the probe of a row, and how many units its features are of, as the probe's functions take them."""
        return {"probe": self.probe(row), "n_units": len(self.cohort.units)}

    def families(self, subjects: Sequence[str]) -> list[str] | None:
        """Return whom inner folds have to keep together; None where nobody has a family."""
        if "family" not in self.cohort.participants:
            return None
        family = self.cohort.participants["family"].loc[list(subjects)]
        return [f"subject {s}" if pd.isna(f) else f"family {f}" for s, f in family.items()]

    def with_family(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return held-out evidence with who belongs together, so that intervals draw families as wholes."""
        if "family" not in self.cohort.participants:
            return table
        family = self.cohort.participants["family"].loc[list(table["participant_id"])]
        return table.assign(family=["" if pd.isna(f) else str(f) for f in family])

    def harmonises(self, row: Row, task: ComponentSpec) -> bool:
        """Whether sites are taken out of a row's features: not of covariates, which know the site themselves."""
        if self.grid.config.harmonise == "none" or "site" not in self.cohort.participants:
            return False
        of_covariates = row.baseline is not None and self.registry.get("baseline", row.baseline.name).depends_on_task
        return isinstance(self.task(task), SubjectTask) and not of_covariates

    def feature_step(self, row: Row, task: ComponentSpec, fold: Fold) -> Step:
        """Return the step that gives a row its features."""
        if row.baseline is not None:
            return self.baseline_step(row.baseline, fold, task)
        if self.of_windows(task):
            return self.window_embedding_step(*row.pretraining, fold, task)
        return self.embedding_step(*row.pretraining, fold)

    # ------------------------------------------------------------ reconstruction

    @once
    def reconstruction_step(self, row: Row, fold: Fold, mask: ComponentSpec, ratio: float) -> Step:
        """Fill hidden tokens of the test subjects under one evaluation mask, by a backbone or by the fillers."""
        identity: dict[str, Any] = {
            "mask": self.component(mask),
            "ratio": ratio,
            "chunks": len(self.chunks),
            "code": code_digest(reconstruction, tokens, masking),
        }
        if row.kind == "filler":
            identity |= self._fold_identity(fold)
            label = self._title(f"trivial fillers under {mask.label}", fold)
        else:
            identity |= self._network_identity(*row.pretraining, fold)
            label = self._title(f"reconstruct {row.label} under {mask.label}", fold)

        def compute(folder: Path, advance: Advance, checkpoint: Checkpoint) -> None:
            tokenizer = self.tokenizer(fold)
            predictors: Mapping[str, reconstruction.Predictor]
            if row.kind == "filler":
                predictors = reconstruction.fit_fillers(
                    tokenizer, fold.train, ratio=ratio, seed=self.seed, span=fold.train_span
                )
            else:
                net, decoder = self.load_pretrained(*row.pretraining, fold)
                predictors = {row.label: reconstruction.BackbonePredictor(net, decoder, self.device)}
            windows = tokens.evaluation_windows(self.cohort, fold.test, fold.test_span)
            strategies = {mask.label: self.strategy(mask)}
            scores = reconstruction.evaluate(
                predictors,
                tokenizer,
                windows,
                self.chunks,
                strategies,
                ratio=ratio,
                seed=self.seed,
                drawn_before=self._masks,
            )
            save_scores(scores, folder / "scores.npz")
            if row.kind != "filler" and fold.index == 0:
                only = predictors[row.label]
                shown = reconstruction.example(
                    only,
                    tokenizer,
                    windows[0],
                    self.chunks[0],
                    mask.label,
                    strategies[mask.label],
                    ratio=ratio,
                    seed=self.seed,
                )
                np.savez(folder / "example.npz", allow_pickle=False, **shown)

        kind = "fillers" if row.kind == "filler" else "reconstruction"
        return Step(
            "reconstruction", label, identity, self._passes(kind, fold.test, row.backbone, fold.test_span), compute
        )

    def reconstructions(
        self, row: Row, masks: Sequence[ComponentSpec], ratio: float
    ) -> reconstruction.ReconstructionScores:
        """Return a row's scores on the test subjects of every fold under several masks, those of the fillers beside."""
        by_fold = [
            join([self._reconstructed(row, fold, mask, ratio) for mask in masks], "masks") for fold in self.folds
        ]
        return join(by_fold, "subjects")

    def _reconstructed(
        self, row: Row, fold: Fold, mask: ComponentSpec, ratio: float
    ) -> reconstruction.ReconstructionScores:
        fillers = load_scores(self.fetch(self.reconstruction_step(FILLERS, fold, mask, ratio)).file("scores.npz"))
        if row.kind == "filler":
            return fillers
        own = load_scores(self.fetch(self.reconstruction_step(row, fold, mask, ratio)).file("scores.npz"))
        return join([own, fillers], "predictors")

    # ------------------------------------------------------------ attribution

    def attribution_step(self, row: Row, fold: Fold, tasks: Sequence[ComponentSpec]) -> Step:
        """Occlude group after group in the test subjects of a fold: what reconstruction and predictions lose.

        ``tasks`` are those on subjects; the probe of each is fitted on whole training subjects, once with their labels
        and once with permuted ones.
        """
        tube = next(n for n in ("random_tube", "random") if n in self.registry.masks)
        mask = parse_component("mask", tube, self.registry)
        identity = {
            **self._network_identity(*row.pretraining, fold),
            "mask": self.component(mask),
            "ratio": self.grid.ratio,
            "chunks": len(self.chunks),
            "tasks": [self.component(t) for t in tasks],
            "probe": self.probe(row),
            "families": self.families(fold.train),
            "importance": "every signal",
            "seed": self.seed,
            "code": code_digest(attribution, sensory, adaptation, attentive, reconstruction, tokens, masking),
        }

        def compute(folder: Path, advance: Advance, checkpoint: Checkpoint) -> None:
            net, decoder = self.load_pretrained(*row.pretraining, fold)
            tokenizer = self.tokenizer(fold)
            groups = attribution.unit_groups(self.cohort.units)
            windows = tokens.evaluation_windows(self.cohort, fold.test, fold.test_span)
            found = attribution.occlude(
                reconstruction.BackbonePredictor(net, decoder, self.device),
                tokenizer,
                windows,
                self.chunks,
                groups,
                self.strategy(mask),
                ratio=self.grid.ratio,
                seed=self.seed,
            )
            names = {"subjects": np.array(found.subjects, dtype=str), "groups": np.array(found.groups, dtype=str)}
            sums = {n: getattr(found, n).sum(-1) for n in ("base", "occluded", "total")}
            np.savez(folder / "occlusion.npz", allow_pickle=False, **names, **sums)
            drawn = sensory.unit_importance(net, tokenizer, windows, self.chunks, self.device)
            if drawn is not None:
                values = np.stack([drawn.of(state) for state in drawn.states])
                states = np.array(drawn.states, dtype=str)
                np.savez(folder / "importance.npz", allow_pickle=False, states=states, values=values)
            routed = sensory.unit_routing(net, tokenizer, windows, self.chunks, self.device)
            if routed is not None:
                np.save(folder / "routing.npy", routed, allow_pickle=False)
            if tasks:
                without = {}
                for done, (name, rows) in enumerate(groups.items(), 1):
                    subjects, features = attribution.embed_without(
                        net, tokenizer, windows, self.chunks, rows, self.device
                    )
                    without[name] = dict(zip(subjects, features, strict=True))
                    advance(done, len(groups))
                tables = [self._occluded_predictions(row, fold, task, without) for task in tasks]
                pd.concat(tables, ignore_index=True).to_parquet(folder / "predictions.parquet", index=False)

        n_groups = len(attribution.unit_groups(self.cohort.units))
        work = self._passes("attribution", fold.test, row.backbone, fold.test_span, n_groups)
        return Step("attribution", self._title(f"occlude {row.label}", fold), identity, work, compute)

    def _occluded_predictions(
        self, row: Row, fold: Fold, spec: ComponentSpec, without: Mapping[str, Mapping[str, NDArray[np.float32]]]
    ) -> pd.DataFrame:
        """Return predictions of the test subjects of a fold: whole (group ""), and without each group."""
        task = self.task(spec)
        assert isinstance(task, SubjectTask)
        target = task.target(self.cohort.participants).dropna()
        train = [s for s in fold.train if s in target.index]
        test = [s for s in fold.test if s in target.index]
        subjects, x = self.features(row, spec, fold)
        place = {s: i for i, s in enumerate(subjects)}
        y = np.asarray(target.loc[train], np.float64)
        stacked = np.concatenate(
            [x[[place[s] for s in test]], *(np.stack([g[s] for s in test]) for g in without.values())]
        )
        seed = seed_for(self.seed, "probe", spec.label, fold.index)
        tables = []
        for control, labels in (("", y), ("labels", attribution.permuted_labels(y, seed))):
            values = adaptation.fit_predict(
                x[[place[s] for s in train]],
                labels,
                stacked,
                task.kind,
                seed,
                groups=self.families(train),
                **self.how_probed(row),
            ).values
            for group, predicted in zip(["", *without], values.reshape(1 + len(without), -1), strict=True):
                tables.append(
                    pd.DataFrame(
                        {
                            "task": spec.label,
                            "control": control,
                            "group": group,
                            "participant_id": test,
                            "fold": fold.index,
                            "truth": np.asarray(target.loc[test], np.float64),
                            "prediction": predicted,
                            "train_mean": float(y.mean()),
                        }
                    )
                )
        return pd.concat(tables, ignore_index=True)

    # ------------------------------------------------------------ evoked responses

    @functools.cached_property
    def _events(self) -> str:
        """Hash of when what happened in every recording, and of what cannot be used of it."""
        return digest(
            [
                [r.id, r.state, [[e.onset_s, e.condition] for e in r.events], [list(b) for b in r.bad_spans]]
                for r in self.cohort.recordings
            ]
        )

    @once
    def evoked_step(self, row: Row, fold: Fold, spec: ComponentSpec) -> Step:
        """Fill in the epochs of the test subjects and measure their averages, by a backbone or by the fillers."""
        identity: dict[str, Any] = {
            "task": self.component(spec),
            "events": self._events,
            "chunks": len(self.chunks),
            "code": code_digest(evoked, grand_average, reconstruction, tokens, masking),
        }
        if row.kind == "filler":
            identity |= self._fold_identity(fold)
            label = self._title(f"trivial fillers on {spec.label}", fold)
        else:
            identity |= self._network_identity(*row.pretraining, fold)
            label = self._title(f"{spec.label} of {row.label}", fold)

        def compute(folder: Path, advance: Advance, checkpoint: Checkpoint) -> None:
            task = self.task(spec)
            assert isinstance(task, EvokedTask)
            tokenizer = self.tokenizer(fold)
            predictors: Mapping[str, reconstruction.Predictor]
            if row.kind == "filler":
                # Half of the units are hidden, so the ridge is tuned for that half.
                predictors = reconstruction.fit_fillers(
                    tokenizer, fold.train, ratio=0.5, seed=self.seed, span=fold.train_span
                )
            else:
                net, decoder = self.load_pretrained(*row.pretraining, fold)
                predictors = {row.label: reconstruction.BackbonePredictor(net, decoder, self.device)}
            responses, n_small = evoked.find_responses(
                self.cohort, fold.test, task, seed=self.seed, span=fold.test_span
            )
            grand = GrandAverage(tuple(predictors), evoked.epoch_times(self.cohort.sfreq, task.span_s))
            scores = evoked.evaluate(
                predictors,
                tokenizer,
                responses,
                self.chunks,
                task,
                seed=self.seed,
                n_small=n_small,
                advance=advance,
                grand=grand,
            )
            save_evoked(scores, folder / "scores.npz")
            grand.save(folder / "grand_average.npz")

        n_passes = sum(len(r.events) for r in self.cohort.recordings if r.subject in set(fold.test)) * len(self.chunks)
        kind = "evoked-fillers" if row.kind == "filler" else "evoked"
        return Step("evoked", label, identity, Work(kind, n_passes, self._pass_size, self._by(row.backbone)), compute)

    def evoked_scores(self, row: Row, spec: ComponentSpec) -> EvokedScores:
        """Return a row's scores on the responses of every fold's test subjects, those of the fillers beside."""
        by_fold = []
        for fold in self.folds:
            rows = (FILLERS,) if row.kind == "filler" else (row, FILLERS)
            parts = [load_evoked(self.fetch(self.evoked_step(r, fold, spec)).file("scores.npz")) for r in rows]
            by_fold.append(join_evoked(parts, "predictors"))
        return join_evoked(by_fold, "subjects")


def _met(cohort: Cohort, grid: Grid, others: Mapping[str, Cohort]) -> tuple[Cohort, tuple[Outside, ...]]:
    """Return the cohort and the others that networks are pretrained on, all with the units of the first one's network.

    Raises
    ------
    DataError
        If somebody is in two of them, if tokens have different shapes, or if units cannot meet.
    """
    if not grid.pretrain_on:
        return cohort, ()
    everyone = {**others, cohort.dataset: cohort}
    first = everyone[grid.pretrain_on[0].label]

    def met(one: Cohort) -> Cohort:
        transfer.check_alike(one, first)
        return one if one is first else replace(one, seen_as=transfer.correspond(one.units, first.units))

    outside = []
    for spec in grid.pretrain_on:
        if spec.label != cohort.dataset:
            people, shared = transfer.outsiders(everyone[spec.label], cohort, grid.config.shared_people)
            outside.append(Outside(met(everyone[spec.label]), people, shared))
    return met(cohort), tuple(outside)


def _without_targets(cohort: Cohort, subjects: tuple[str, ...], target: str) -> Cohort:
    """Return the cohort of some subjects, with the covariates that are not the target and no other column."""
    columns = [c for c in COVARIATES if c in cohort.participants and c != target]
    chosen = set(subjects)
    return replace(
        cohort,
        participants=cohort.participants.loc[[s for s in cohort.subjects if s in chosen], columns],
        recordings=tuple(r for r in cohort.recordings if r.subject in chosen),
    )


def _target_column(task: Task) -> str:
    return task.column if isinstance(task, SubjectTask) else ""


def _save_features(folder: Path, subjects: tuple[str, ...], features: NDArray[np.floating[Any]]) -> None:
    np.save(folder / "features.npy", np.asarray(features, np.float32), allow_pickle=False)
    (folder / "subjects.json").write_text(json.dumps(list(subjects)), encoding="utf-8")


def _copy_features(entry: Entry, folder: Path) -> None:
    for name in ("features.npy", "subjects.json"):
        shutil.copyfile(entry.file(name), folder / name)

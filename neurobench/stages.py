"""The stored steps of a run on one cohort: what identifies each, and how it is computed.

A :class:`Step` knows its identity before anything is computed, because identities are built from identities, not from
results. That is what makes a plan, a resumed run and a wider grid the same thing.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

import neurobench
from neurobench import (
    adaptation,
    contracts,
    evoked,
    evoked_scores,
    finetuning,
    masking,
    metrics,
    pretraining,
    reconstruction,
    scoring,
    splits,
    tokens,
    window_scoring,
    windows,
)
from neurobench.cohorts import CohortSource
from neurobench.components import ComponentSpec, parse_component
from neurobench.config import Combination, Grid, Profile
from neurobench.contracts import (
    COVARIATES,
    Backbone,
    Baseline,
    EvokedTask,
    MaskingStrategy,
    ReconstructionTask,
    SubjectTask,
    Task,
    WindowTask,
)
from neurobench.evoked import EvokedScores
from neurobench.evoked_scores import join_evoked, load_evoked, save_evoked
from neurobench.identity import digest, file_digest, seed_for
from neurobench.plugins import Registry
from neurobench.progress import Advance
from neurobench.reconstruction_io import join, load_scores, save_scores
from neurobench.records import BackboneSpec, Cohort, Fold, SignalSpec
from neurobench.store import Entry
from neurobench.windows import WindowRows, window_rows

__all__ = ["CohortRun", "Row", "Step"]


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
    weight
        Estimated seconds, for progress until a like step has been measured.
    compute
        Writes the artefact's files into a folder.
    """

    stage: str
    label: str
    identity: Mapping[str, Any]
    weight: float
    compute: Callable[[Path, Advance], None]


Fetch = Callable[[Step], Entry]
"""Returns the entry of a step, computing it if it is not stored."""


@dataclass(frozen=True)
class Row:
    """One line of the results table, before it is scored on a task.

    Parameters
    ----------
    kind
        ``pretrained``, ``untrained``, ``baseline`` or ``filler``.
    label
        Such as ``mamba · roi``.
    backbone, mask, baseline
        What it is made of; None where it does not apply. Fillers have none of them.
    """

    kind: Literal["pretrained", "untrained", "baseline", "filler"]
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


def seconds_per_step(profile: Profile) -> float:
    """Return a first guess of the seconds of one optimiser step, until a like pretraining has been measured.

    Work grows with tokens, width and layers; the factor is what two CPU cores took.
    """
    return 3e-7 * profile.n_tokens * profile.width * profile.n_layers * profile.batch_size


@functools.cache
def code_digest(*modules: Any) -> str:
    """Return a hash of the source of some core modules: a change of the code is a change of the identity.

    Read once, as plugins are: what runs is what was imported.
    """
    return digest([file_digest(Path(m.__file__)) for m in modules])


class CohortRun:
    """The steps of one (cohort, seed): folds, and everything that is computed on them.

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
    ) -> None:
        self.cohort, self.source, self.grid, self.registry = cohort, source, grid, registry
        self.seed, self.device, self.fetch = seed, device, fetch
        profile = grid.profile
        self.folds = splits.make_folds(cohort.participants, profile.n_folds, seed, grid.config.split)
        splits.check_disjoint(self.folds)
        self.fold_fingerprint = splits.fold_fingerprint(self.folds)
        self.recipe = pretraining.Recipe.for_width(profile.width, profile.batch_size)
        self.n_units = min(len(cohort.units), max(1, profile.n_tokens // cohort.patches_per_window))
        self.chunks = tokens.unit_chunks(cohort.units, self.n_units)
        self.spec = BackboneSpec(
            n_units=len(cohort.units),
            n_groups=len(cohort.units.group_names),
            n_patches=cohort.patches_per_window,
            n_features=cohort.n_features,
            width=profile.width,
            n_layers=profile.n_layers,
        )

    # ------------------------------------------------------------ shared pieces

    @functools.cached_property
    def _tokenizers(self) -> dict[int, tokens.Tokenizer]:
        return {}

    def tokenizer(self, fold: Fold) -> tokens.Tokenizer:
        """Return the tokenizer of a fold, its scaler fitted on that fold's training subjects."""
        if fold.index not in self._tokenizers:
            self._tokenizers.clear()  # One fold's scaled signal in memory at a time.
            scaler = tokens.Scaler.fit(self.cohort, fold.train, fold.train_span)
            self._tokenizers[fold.index] = tokens.Tokenizer(self.cohort, scaler)
        return self._tokenizers[fold.index]

    def component(self, spec: ComponentSpec) -> dict[str, Any]:
        """Return what identifies a component: name, parameters, distribution, version, digest of its source."""
        provenance = self.registry.provenance(spec.kind, spec.name)
        cls = self.registry.get(spec.kind, spec.name)
        return {**spec.identity(), **asdict(provenance), "score_version": cls.score_version}

    def strategy(self, spec: ComponentSpec) -> MaskingStrategy:
        """Build a masking strategy."""
        strategy: MaskingStrategy = self.registry.get("mask", spec.name)(**spec.parameters)
        return strategy

    def task(self, spec: ComponentSpec) -> Task:
        """Build a task."""
        task: Task = self.registry.get("task", spec.name)(**spec.parameters)
        return task

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

    def pretraining_step(self, backbone: ComponentSpec, mask: ComponentSpec, fold: Fold) -> Step:
        """Pretrain a backbone under a masking strategy on the training subjects of a fold."""
        strategy = self.strategy(mask)
        n_steps = self.grid.profile.n_steps if strategy.pretrains else 0
        ratio = self.grid.config.ratio
        identity = {
            **self._fold_identity(fold),
            "backbone": self.component(backbone),
            "mask": self.component(mask),
            "spec": asdict(self.spec),
            "n_steps": n_steps,
            "n_tokens": self.grid.profile.n_tokens,
            "recipe": asdict(self.recipe),
            "ratio": ratio if strategy.pretrains else 0.0,
            "device": self.device.type,
            "code": code_digest(contracts, pretraining, tokens, masking),
        }

        def compute(folder: Path, advance: Advance) -> None:
            net, decoder = self._build(backbone)
            tokenizer = self.tokenizer(fold)
            windows = tokens.TrainingWindows(
                tokenizer, fold.train, self.grid.profile.n_tokens, self.seed, fold.train_span
            )
            history = pretraining.pretrain(
                net,
                decoder,
                strategy,
                windows,
                recipe=self.recipe,
                n_steps=n_steps,
                ratio=ratio,
                seed=self.seed,
                device=self.device,
                on_step=lambda step, loss: advance(step + 1, n_steps),
            )
            weights = {f"backbone.{k}": v for k, v in net.state_dict().items()}
            weights |= {f"decoder.{k}": v for k, v in decoder.state_dict().items()}
            save_file({k: v.detach().cpu().contiguous() for k, v in weights.items()}, folder / "weights.safetensors")
            summary = history.to_dict() | {
                "n_parameters": pretraining.count_parameters(net),
                "scaler": tokenizer.scaler.to_dict(),
                "device": str(self.device),
            }
            (folder / "pretraining.json").write_text(json.dumps(summary), encoding="utf-8")

        label = self._title(f"pretrain {backbone.label} · {mask.label}", fold)
        return Step("pretraining", label, identity, seconds_per_step(self.grid.profile) * n_steps, compute)

    def _build(self, backbone: ComponentSpec) -> tuple[Backbone, pretraining.Decoder]:
        # One initialisation a (seed, backbone): every mask and fold starts from the same weights.
        cls = self.registry.get("backbone", backbone.name)
        net, decoder = pretraining.build(
            cls, self.spec, backbone.parameters, seed_for(self.seed, "pretrain-init", backbone.label)
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

    def embedding_step(self, backbone: ComponentSpec, mask: ComponentSpec, fold: Fold) -> Step:
        """Embed every subject with the frozen backbone of a fold."""
        parent = self.pretraining_step(backbone, mask, fold)
        identity = {
            "pretraining": digest(parent.identity),
            "code": code_digest(adaptation, tokens),
            "subjects": digest(list(self.cohort.subjects)),
        }

        def compute(folder: Path, advance: Advance) -> None:
            net, _ = self.load_pretrained(backbone, mask, fold)
            windows = tokens.evaluation_windows(self.cohort, self.cohort.subjects)
            subjects, features = adaptation.embed_subjects(net, self.tokenizer(fold), windows, self.chunks, self.device)
            _save_features(folder, subjects, features)

        label = self._title(f"embed {backbone.label} · {mask.label}", fold)
        return Step("embedding", label, identity, 0.02 * len(self.cohort.subjects), compute)

    def window_embedding_step(
        self, backbone: ComponentSpec, mask: ComponentSpec, fold: Fold, task: ComponentSpec
    ) -> Step:
        """Embed every window of a task with the frozen backbone of a fold."""
        identity = {
            "pretraining": digest(self.pretraining_step(backbone, mask, fold).identity),
            "code": code_digest(adaptation, tokens),
            "windows": self.window_rows(task).cohort.fingerprint,
        }

        def compute(folder: Path, advance: Advance) -> None:
            net, _ = self.load_pretrained(backbone, mask, fold)
            rows = self.window_rows(task).cohort
            cut = tokens.evaluation_windows(rows, rows.subjects)
            tokenizer = tokens.Tokenizer(rows, self.tokenizer(fold).scaler)
            _save_features(folder, *adaptation.embed_subjects(net, tokenizer, cut, self.chunks, self.device))

        label = self._title(f"embed windows for {task.label}, {backbone.label} · {mask.label}", fold)
        return Step("embedding", label, identity, 0.01 * len(self.window_rows(task).subjects), compute)

    def window_rows(self, task: ComponentSpec) -> WindowRows:
        """Return the windows that a task is about, as rows of a cohort."""
        if task not in self._window_rows:
            built = self.task(task)
            assert isinstance(built, WindowTask)
            self._window_rows[task] = window_rows(self.cohort, built)
        return self._window_rows[task]

    @functools.cached_property
    def _window_rows(self) -> dict[ComponentSpec, WindowRows]:
        return {}

    def baseline_step(self, baseline: ComponentSpec, fold: Fold, task: ComponentSpec) -> Step:
        """Fit a baseline on the training subjects and give every subject its feature row."""
        cls: type[Baseline] = self.registry.get("baseline", baseline.name)
        of_windows = isinstance(self.task(task), WindowTask)
        identity = {
            **self._fold_identity(fold),
            "baseline": self.component(baseline),
            "task": self.component(task) if cls.depends_on_task else None,
        }
        if of_windows:
            identity["windows"] = self.window_rows(task).cohort.fingerprint

        def compute(folder: Path, advance: Advance) -> None:
            built = cls(**baseline.parameters)
            hidden = _target_column(self.task(task)) if cls.depends_on_task else ""
            cohort = self.window_rows(task).cohort if of_windows else self.cohort
            train = self.window_rows(task).of(fold.train) if of_windows else fold.train
            built.fit(_without_targets(cohort, train, hidden))
            everyone = _without_targets(cohort, cohort.subjects, hidden)
            _save_features(folder, everyone.subjects, built.transform(everyone))

        what = f"baseline {baseline.label}" + (f" · {task.label}" if cls.depends_on_task or of_windows else "")
        return Step("baseline", self._title(what, fold), identity, 0.02 * len(self.cohort.subjects), compute)

    def features(self, row: Row, task: ComponentSpec, fold: Fold) -> tuple[list[str], NDArray[np.float64]]:
        """Return subjects and their feature rows."""
        entry = self.fetch(self.feature_step(row, task, fold))
        features = np.load(entry.file("features.npy"), allow_pickle=False).astype(np.float64)
        return entry.json("subjects.json"), features

    def feature_step(self, row: Row, task: ComponentSpec, fold: Fold) -> Step:
        """Return the step that gives a row its features."""
        if row.baseline is not None:
            return self.baseline_step(row.baseline, fold, task)
        if isinstance(self.task(task), WindowTask):
            return self.window_embedding_step(*row.pretraining, fold, task)
        return self.embedding_step(*row.pretraining, fold)

    # ------------------------------------------------------------ reconstruction

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
            identity["pretraining"] = digest(self.pretraining_step(*row.pretraining, fold).identity)
            label = self._title(f"reconstruct {row.label} under {mask.label}", fold)

        def compute(folder: Path, advance: Advance) -> None:
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
                predictors, tokenizer, windows, self.chunks, strategies, ratio=ratio, seed=self.seed
            )
            save_scores(scores, folder / "scores.npz")

        return Step("reconstruction", label, identity, 0.02 * len(fold.test), compute)

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

    def evoked_step(self, row: Row, fold: Fold, spec: ComponentSpec) -> Step:
        """Fill in the epochs of the test subjects and measure their averages, by a backbone or by the fillers."""
        identity: dict[str, Any] = {
            "task": self.component(spec),
            "events": self._events,
            "chunks": len(self.chunks),
            "code": code_digest(evoked, reconstruction, tokens, masking),
        }
        if row.kind == "filler":
            identity |= self._fold_identity(fold)
            label = self._title(f"trivial fillers on {spec.label}", fold)
        else:
            identity["pretraining"] = digest(self.pretraining_step(*row.pretraining, fold).identity)
            label = self._title(f"{spec.label} of {row.label}", fold)

        def compute(folder: Path, advance: Advance) -> None:
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
            scores = evoked.evaluate(
                predictors, tokenizer, responses, self.chunks, task, seed=self.seed, n_small=n_small, advance=advance
            )
            save_evoked(scores, folder / "scores.npz")

        return Step("evoked", label, identity, 0.5 * len(fold.test), compute)

    def evoked_scores(self, row: Row, spec: ComponentSpec) -> EvokedScores:
        """Return a row's scores on the responses of every fold's test subjects, those of the fillers beside."""
        by_fold = []
        for fold in self.folds:
            rows = (FILLERS,) if row.kind == "filler" else (row, FILLERS)
            parts = [load_evoked(self.fetch(self.evoked_step(r, fold, spec)).file("scores.npz")) for r in rows]
            by_fold.append(join_evoked(parts, "predictors"))
        return join_evoked(by_fold, "subjects")

    # ------------------------------------------------------------ evaluation

    def evaluation_step(self, row: Row, task_spec: ComponentSpec) -> Step:
        """Score a row on a task: held-out predictions of every fold, metrics, intervals."""
        task = self.task(task_spec)
        if isinstance(task, ReconstructionTask):
            return self._reconstruction_evaluation(row, task_spec, task)
        if isinstance(task, EvokedTask):
            return self._evoked_evaluation(row, task_spec, task)
        if isinstance(task, WindowTask):
            return self._window_evaluation(row, task_spec, task)
        assert isinstance(task, SubjectTask)
        return self._subject_evaluation(row, task_spec, task)

    def _subject_evaluation(self, row: Row, spec: ComponentSpec, task: SubjectTask) -> Step:
        identity = {
            "adaptation": "finetune" if self.finetunes(row) else "frozen",
            "sources": [digest(self._source_step(row, spec, f).identity) for f in self.folds],
            "task": self.component(spec),
            "folds": self.fold_fingerprint,
            "cohort": self.cohort.fingerprint,
            "seed": self.seed,
            "code": code_digest(scoring, metrics, adaptation, finetuning),
        }

        def compute(folder: Path, advance: Advance) -> None:
            target = task.target(self.cohort.participants).dropna()
            tables, unsettled = [], 0
            for done, fold in enumerate(self.folds, 1):
                table, prediction = self._predict(row, spec, task, fold, target)
                tables.append(table)
                unsettled += not prediction.converged
                advance(done, len(self.folds))
            whole = pd.concat(tables, ignore_index=True)
            score = scoring.score_subject_task(task, whole, seed=self.seed).to_dict()
            if unsettled:
                score["notes"].append(f"the probe did not reach its optimum in {unsettled} of {len(self.folds)} folds")
            whole.to_parquet(folder / "predictions.parquet", index=False)
            (folder / "score.json").write_text(json.dumps(score), encoding="utf-8")

        return Step("evaluation", self._title(f"{spec.label} · {row.label}"), identity, 0.5, compute)

    def _source_step(self, row: Row, spec: ComponentSpec, fold: Fold) -> Step:
        """Return the step whose result a prediction is made from."""
        return (
            self.pretraining_step(*row.pretraining, fold) if self.finetunes(row) else self.feature_step(row, spec, fold)
        )

    def _predict(
        self, row: Row, spec: ComponentSpec, task: SubjectTask, fold: Fold, target: pd.Series[float]
    ) -> tuple[pd.DataFrame, adaptation.Prediction]:
        """Return the held-out predictions of one fold; ``target`` holds labelled subjects only."""
        train = [s for s in fold.train if s in target.index]
        test = [s for s in fold.test if s in target.index]
        y = np.asarray(target.loc[train], np.float64)
        seed = seed_for(self.seed, "probe", spec.label, fold.index)
        if self.finetunes(row):
            prediction = self._finetune(row, task, fold, dict(zip(train, y.tolist(), strict=True)), test, seed)
        else:
            subjects, x = self.features(row, spec, fold)
            place = {s: i for i, s in enumerate(subjects)}
            x_train, x_test = x[[place[s] for s in train]], x[[place[s] for s in test]]
            prediction = adaptation.fit_predict(x_train, y, x_test, task.kind, seed)
        people = self.cohort.participants.loc[test]
        table = pd.DataFrame(
            {
                "participant_id": test,
                "fold": fold.index,
                "truth": np.asarray(target.loc[test], np.float64),
                "prediction": prediction.values,
                "train_mean": float(y.mean()),
                "site": people["site"].astype(str).to_numpy() if "site" in people else "",
                "age": pd.to_numeric(people["age"], errors="coerce").to_numpy(float) if "age" in people else np.nan,
            }
        )
        return table, prediction

    def _finetune(
        self, row: Row, task: SubjectTask, fold: Fold, targets: Mapping[str, float], test: list[str], seed: int
    ) -> adaptation.Prediction:
        """Train the row's backbone further on the training subjects of a fold; predict ``test``, in its order."""
        return self._finetuned(row, fold, self.tokenizer(fold), targets, test, task.kind, seed)

    def _finetuned(
        self,
        row: Row,
        fold: Fold,
        tokenizer: tokens.Tokenizer,
        targets: Mapping[str, float],
        test: Sequence[str],
        kind: adaptation.Kind,
        seed: int,
    ) -> adaptation.Prediction:
        """Train a row's backbone further on the rows of a tokenizer's cohort; predict ``test``, in its order."""
        net, _ = self.load_pretrained(*row.pretraining, fold)
        # Without pretraining there is nothing in the lower layers to preserve.
        recipe = finetuning.FinetuneRecipe(layer_decay=1.0 if row.kind == "untrained" else 0.75)
        subjects, prediction = finetuning.finetune(
            net,
            tokenizer,
            tokens.evaluation_windows(tokenizer.cohort, list(targets)),
            targets,
            tokens.evaluation_windows(tokenizer.cohort, test),
            self.chunks,
            kind,
            seed,
            recipe,
            self.device,
        )
        place = {s: i for i, s in enumerate(subjects)}
        return replace(prediction, values=prediction.values[[place[s] for s in test]])

    def _window_evaluation(self, row: Row, spec: ComponentSpec, task: WindowTask) -> Step:
        identity = {
            "adaptation": "finetune" if self.finetunes(row) else "frozen",
            "sources": [digest(self._source_step(row, spec, f).identity) for f in self.folds],
            "task": self.component(spec),
            "windows": self.window_rows(spec).cohort.fingerprint,
            "folds": self.fold_fingerprint,
            "cohort": self.cohort.fingerprint,
            "seed": self.seed,
            "code": code_digest(scoring, metrics, adaptation, finetuning, windows, window_scoring),
        }

        def compute(folder: Path, advance: Advance) -> None:
            tables, unsettled = [], 0
            for done, fold in enumerate(self.folds, 1):
                table, converged = self._predict_windows(row, spec, fold)
                tables.append(table)
                unsettled += not converged
                advance(done, len(self.folds))
            whole = pd.concat(tables, ignore_index=True)
            score = window_scoring.score_window_task(task, whole, seed=self.seed).to_dict()
            if unsettled:
                score["notes"].append(f"the probe did not reach its optimum in {unsettled} of {len(self.folds)} folds")
            whole.to_parquet(folder / "predictions.parquet", index=False)
            (folder / "score.json").write_text(json.dumps(score), encoding="utf-8")

        return Step("evaluation", self._title(f"{spec.label} · {row.label}"), identity, 0.5, compute)

    def _predict_windows(self, row: Row, spec: ComponentSpec, fold: Fold) -> tuple[pd.DataFrame, bool]:
        """Return the held-out predictions of one fold's windows, and whether the probe converged."""
        rows = self.window_rows(spec)
        train, test = rows.of(fold.train), rows.of(fold.test)
        classes = np.asarray(rows.classes.loc[list(train)], np.int64)
        groups = rows.subjects.loc[list(train)].tolist()
        seed = seed_for(self.seed, "probe", spec.label, fold.index)
        if self.finetunes(row):
            tokenizer = tokens.Tokenizer(rows.cohort, self.tokenizer(fold).scaler)

            def against_the_others(k: int) -> adaptation.Prediction:
                targets = dict(zip(train, (classes == k).astype(float).tolist(), strict=True))
                return self._finetuned(row, fold, tokenizer, targets, test, "classification", seed)

            probability, converged = adaptation.one_against_the_others(against_the_others, len(rows.names))
        else:
            found, x = self.features(row, spec, fold)
            place = {s: i for i, s in enumerate(found)}
            x_train, x_test = x[[place[s] for s in train]], x[[place[s] for s in test]]
            probability, converged = adaptation.fit_predict_classes(
                x_train, classes, x_test, len(rows.names), groups, seed
            )
        truth = [rows.names[k] for k in rows.classes.loc[list(test)]]
        people = rows.subjects.loc[list(test)].tolist()
        return window_scoring.window_predictions(test, people, fold.index, truth, probability, rows.names), converged

    def _reconstruction_evaluation(self, row: Row, spec: ComponentSpec, task: ReconstructionTask) -> Step:
        masks = self.evaluation_masks(task)
        steps = [
            self.reconstruction_step(r, f, m, task.ratio) for r in (row, FILLERS) for f in self.folds for m in masks
        ]
        identity = {
            "sources": [digest(s.identity) for s in steps],
            "row": row.label,
            "task": self.component(spec),
            "seed": self.seed,
            "code": code_digest(scoring, metrics, reconstruction),
        }

        def compute(folder: Path, advance: Advance) -> None:
            scores = self.reconstructions(row, masks, task.ratio)
            score = scoring.score_reconstruction(task, scores, row.label, self.headline_masks(task), seed=self.seed)
            (folder / "score.json").write_text(json.dumps(score.to_dict()), encoding="utf-8")

        return Step("evaluation", self._title(f"{spec.label} · {row.label}"), identity, 0.5, compute)

    def _evoked_evaluation(self, row: Row, spec: ComponentSpec, task: EvokedTask) -> Step:
        identity = {
            "sources": [digest(self.evoked_step(r, f, spec).identity) for r in (row, FILLERS) for f in self.folds],
            "row": row.label,
            "task": self.component(spec),
            "seed": self.seed,
            "code": code_digest(evoked, evoked_scores, scoring, metrics),
        }

        def compute(folder: Path, advance: Advance) -> None:
            score = evoked_scores.score_evoked(task, self.evoked_scores(row, spec), row.label, seed=self.seed)
            (folder / "score.json").write_text(json.dumps(score.to_dict()), encoding="utf-8")

        return Step("evaluation", self._title(f"{spec.label} · {row.label}"), identity, 0.5, compute)

    def evaluated(self, row: Row, spec: ComponentSpec) -> reconstruction.ReconstructionScores:
        """Return the reconstruction scores that a row's evaluation rests on."""
        task = self.task(spec)
        assert isinstance(task, ReconstructionTask)
        return self.reconstructions(row, self.evaluation_masks(task), task.ratio)

    def headline_masks(self, task: ReconstructionTask) -> tuple[str, ...]:
        """Return the evaluation masks that count in the headline on this kind of signal."""
        strategies = {m.label: self.strategy(m) for m in self.evaluation_masks(task)}
        return reconstruction.headline_masks(strategies, self.cohort.signal)

    def evaluation_masks(self, task: ReconstructionTask) -> tuple[ComponentSpec, ...]:
        """Return the task's evaluation masks that are possible on these units."""
        specs = [parse_component("mask", name, self.registry) for name in task.evaluation_masks]
        return tuple(s for s in specs if not self.strategy(s).impossible(self.cohort.units))

    # ------------------------------------------------------------ rows, tasks and the order of steps

    @functools.cached_property
    def combinations(self) -> tuple[Combination, ...]:
        """The combinations of this cohort and seed."""
        mine = (self.cohort.dataset, self.seed)
        return tuple(c for c in self.grid.combinations if (c.dataset.label, c.seed) == mine)

    @functools.cached_property
    def tasks(self) -> tuple[ComponentSpec, ...]:
        """The tasks that this cohort can be scored on."""
        needs = {"reconstruction"} if self.grid.config.split == "within-recording" else {"features", "reconstruction"}
        possible = (t for t in self.grid.tasks if self.task(t).needs in needs)
        return tuple(t for t in possible if not self.task(t).refuses(self.cohort))

    def why_not(self, task: ComponentSpec) -> str:
        """Return why this cohort cannot be scored on a task."""
        return self.task(task).refuses(self.cohort) or "within recordings only reconstruction has a meaning"

    @functools.cached_property
    def no_pretraining(self) -> ComponentSpec:
        """The masking strategy that hides nothing."""
        name = next(n for n, cls in sorted(self.registry.masks.items()) if not cls.pretrains)
        return parse_component("mask", name, self.registry)

    @functools.cached_property
    def rows(self) -> tuple[Row, ...]:
        """Every row: baselines, trivial fillers, untrained backbones, pretrained combinations."""
        rows = [
            Row("baseline", b.label, baseline=b)
            for b in self.grid.baselines
            if self.cohort.modality in self.registry.get("baseline", b.name).modalities
        ]
        rows += [Row("filler", name) for name in reconstruction.FILLERS]
        untrained = "scratch" if self.grid.adaptation == "finetune" else "untrained"
        for backbone in dict.fromkeys(c.backbone for c in self.combinations):
            rows.append(Row("untrained", f"{backbone.label} · {untrained}", backbone, self.no_pretraining))
        rows += [
            Row("pretrained", f"{c.backbone.label} · {c.mask.label}", c.backbone, c.mask)
            for c in self.combinations
            if self.registry.get("mask", c.mask.name).pretrains
        ]
        return tuple(rows)

    @property
    def dataset(self) -> ComponentSpec:
        """The dataset as asked for."""
        return next(d for d in self.grid.datasets if d.label == self.cohort.dataset)

    def protocol(self) -> dict[str, Any]:
        """Return how the numbers of this cohort are made, for records."""
        return protocol(self.grid, self.seed, self.cohort.spec) | {
            "n_folds": len(self.folds),
            "fold_fingerprint": self.fold_fingerprint,
            "recipe": _plain(asdict(self.recipe)),
        }

    def finetunes(self, row: Row) -> bool:
        """Whether a row's backbone is trained further on each task, instead of probed frozen."""
        return self.grid.adaptation == "finetune" and row.backbone is not None

    def reconstruction_masks(self, row: Row) -> list[tuple[ComponentSpec, float]]:
        """Return the (mask, ratio) pairs that a row is evaluated under: the tasks' own, and its pretraining's."""
        if "reconstruction" not in row.provides:
            return []
        pairs = [
            (m, task.ratio)
            for task in map(self.task, self.tasks)
            if isinstance(task, ReconstructionTask)
            for m in self.evaluation_masks(task)
        ]
        pretrained = [c.mask for c in self.combinations if self.registry.get("mask", c.mask.name).pretrains]
        own = pretrained if row.kind == "filler" else [row.mask] if row.kind == "pretrained" and row.mask else []
        return list(dict.fromkeys([*pairs, *((m, self.grid.config.ratio) for m in own)]))

    def steps(self) -> Iterator[tuple[Row, Step]]:
        """Yield every step with the row that needs it: fold after fold, evaluations last; none without a task."""
        if not self.tasks:
            return
        subject_tasks = [t for t in self.tasks if self.task(t).needs == "features"]
        for fold in self.folds:
            for row in self.rows:
                if row.backbone is not None:
                    yield row, self.pretraining_step(*row.pretraining, fold)
                if "features" in row.provides and not self.finetunes(row):
                    for task in subject_tasks:
                        yield row, self.feature_step(row, task, fold)
                # One entry holds all fillers, so the first of their rows stands for them.
                if row.kind != "filler" or row.label == reconstruction.FILLERS[0]:
                    for mask, ratio in self.reconstruction_masks(row):
                        yield row, self.reconstruction_step(row, fold, mask, ratio)
                    if "reconstruction" in row.provides:
                        for task in self.tasks:
                            if isinstance(self.task(task), EvokedTask):
                                yield row, self.evoked_step(row, fold, task)
        for task in self.tasks:
            for row in self.rows:
                if self.task(task).needs in row.provides:
                    yield row, self.evaluation_step(row, task)

    def notes(self) -> list[str]:
        """Return what a reader of this cohort's tables should know."""
        notes = [f"{self.cohort.dataset}: {r}" for r in splits.split_remarks(self.cohort.participants, self.folds)]
        left_out = Counter(f.code for f in self.cohort.findings if f.level == "error")
        if left_out:
            reasons = ", ".join(f"{code} × {n}" for code, n in left_out.most_common())
            notes.append(
                f"{self.cohort.dataset}: left out: {reasons}; `neurobench data check {self.dataset.name}` says more"
            )
        for spec in self.grid.tasks:
            if spec not in self.tasks:
                notes.append(f"{self.cohort.dataset}: task {spec.label} left out: {self.why_not(spec)}")
        for mask in dict.fromkeys(c.mask for c in self.combinations):
            if remark := self.strategy(mask).remark(self.cohort.units):
                notes.append(f"{self.cohort.dataset}: {remark}")
        return notes


def protocol(grid: Grid, seed: int, spec: SignalSpec) -> dict[str, Any]:
    """Return what a grid says of how its numbers are made, before anything is known of a cohort."""
    profile = grid.profile
    return {
        "profile": profile.name,
        "split": grid.config.split,
        "n_folds": profile.n_folds,
        "fold_fingerprint": "",
        "window_s": spec.window_s,
        "patch_s": spec.patch_s,
        "n_tokens": profile.n_tokens,
        "ratio": grid.config.ratio,
        "adaptation": grid.config.adaptation,
        "width": profile.width,
        "n_layers": profile.n_layers,
        "n_steps": profile.n_steps,
        "batch_size": profile.batch_size,
        "recipe": {},
        "seed": seed,
    }


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


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

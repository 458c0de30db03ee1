"""Features as stored steps: embeddings by a frozen backbone, baselines, and what the probe is given of them."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neurobench import adaptation, cohort_steps, harmonisation, tokens
from neurobench.cohort_steps import once
from neurobench.components import ComponentSpec, Setting
from neurobench.contracts import COVARIATES, Baseline, RetrievalTask, SubjectTask, Task, WindowTask
from neurobench.cost import Work
from neurobench.identity import digest
from neurobench.pretraining_steps import PretrainingSteps
from neurobench.progress import Advance
from neurobench.records import Fold
from neurobench.retrieval import RetrievalRows, retrieval_rows
from neurobench.steps import Row, Step, code_digest
from neurobench.store import Checkpoint, Entry
from neurobench.windows import Rows, WindowRows, window_rows

__all__ = ["FeatureSteps"]


class FeatureSteps(PretrainingSteps):
    """The features of every row of one (cohort, seed): a row of numbers for each subject, or for each window."""

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
            "code": code_digest(__name__, cohort_steps, adaptation, tokens),
            "subjects": digest(list(self.cohort.subjects)),
        }

        def compute(folder: Path, advance: Advance, checkpoint: Checkpoint) -> None:
            if self._embeds_alike(backbone, mask) and fold is not self.folds[0]:
                _copy_features(self.fetch(self.embedding_step(backbone, mask, self.folds[0])), folder)
                return
            net, _ = self.load_honest(backbone, mask, fold)
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
            "code": code_digest(__name__, cohort_steps, adaptation, tokens),
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

    def release(self) -> None:
        """Let go of signal, of windows that tasks tell apart too."""
        super().release()
        self._rows_of.clear()

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
            "code": code_digest(__name__, cohort_steps),
        }
        if of_windows:
            identity["windows"] = self.rows_of(task).cohort.fingerprint

        def compute(folder: Path, advance: Advance, checkpoint: Checkpoint) -> None:
            built = cls(**baseline.arguments)
            cohort = self.rows_of(task).scaled if of_windows else self.cohort
            train = self.rows_of(task).of(fold.train) if of_windows else fold.train
            # Features that are the same for every task must not know a column: any of them is somebody's target.
            target = _target_column(self.task(task))
            known = [c for c in COVARIATES if c != target] if cls.depends_on_task else []
            built.fit(cohort.part(train, known))
            everyone = cohort.part(cohort.subjects, known)
            _save_features(folder, everyone.subjects, built.transform(everyone))

        what = f"baseline {baseline.label}" + (f" · {task.label}" if cls.depends_on_task or of_windows else "")
        rows = len(self.rows_of(task).subjects) / len(self.cohort.subjects) if of_windows else 1.0
        work = Work("baseline", self._n_values * rows, by=baseline.label)
        return Step("baseline", self._title(what, fold), identity, work, compute)

    def features(self, row: Row, task: ComponentSpec, fold: Fold) -> tuple[list[str], NDArray[np.float64]]:
        """Return subjects and their feature rows."""
        subjects, features = self.stored_features(row, task, fold)
        return subjects, self.harmonised(row, task, fold, subjects, features)

    def stored_features(self, row: Row, task: ComponentSpec, fold: Fold) -> tuple[list[str], NDArray[np.float64]]:
        """Return subjects and their feature rows, before sites are taken out."""
        entry = self.fetch(self.feature_step(row, task, fold))
        return entry.json("subjects.json"), np.load(entry.file("features.npy"), allow_pickle=False).astype(np.float64)

    def harmonised(
        self, row: Row, task: ComponentSpec, fold: Fold, subjects: list[str], features: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return feature rows as the probe is given them; a test subject may have several, a training subject one."""
        if not self.harmonises(row, task):
            return features
        people, train = self.cohort.participants.loc[subjects], np.isin(subjects, fold.train)
        return harmonisation.by_site(features, people, train, _target_column(self.task(task)))

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

    def harmonises(self, row: Row, task: ComponentSpec) -> bool:
        """Whether sites are taken out of a row's features: not of covariates, which know the site themselves."""
        if self.grid.config.harmonise == "none" or "site" not in self.cohort.participants:
            return False
        of_covariates = row.baseline is not None and self.registry.get("baseline", row.baseline.name).depends_on_task
        return isinstance(self.task(task), SubjectTask) and not of_covariates

    def adapts(self, row: Row) -> Setting | None:
        """Return how a row's backbone is trained on each task: ``finetune``, ``prompt`` or ``lora``; None: it is not.

        A backbone that is not, and whatever is no backbone, is a source of features for the probe.
        """
        return None if row.backbone is None or self.grid.adaptation.name == "frozen" else self.grid.adaptation

    def feature_step(self, row: Row, task: ComponentSpec, fold: Fold) -> Step:
        """Return the step that gives a row its features."""
        if row.baseline is not None:
            return self.baseline_step(row.baseline, fold, task)
        if self.of_windows(task):
            return self.window_embedding_step(*row.pretraining, fold, task)
        return self.embedding_step(*row.pretraining, fold)


def _target_column(task: Task) -> str:
    return task.column if isinstance(task, SubjectTask) else ""


def _save_features(folder: Path, subjects: tuple[str, ...], features: NDArray[np.floating[Any]]) -> None:
    np.save(folder / "features.npy", np.asarray(features, np.float32), allow_pickle=False)
    (folder / "subjects.json").write_text(json.dumps(list(subjects)), encoding="utf-8")


def _copy_features(entry: Entry, folder: Path) -> None:
    for name in ("features.npy", "subjects.json"):
        shutil.copyfile(entry.file(name), folder / name)

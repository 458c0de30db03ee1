"""Evaluation as a stored step: a row's held-out predictions of a task on every fold, and their score."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neurobench import (
    adaptation,
    adapters,
    attentive,
    confounds,
    finetuning,
    harmonisation,
    metrics,
    retrieval,
    retrieval_scoring,
    scoring,
    tokens,
    window_scoring,
    windows,
)
from neurobench.cohort_steps import once
from neurobench.components import ComponentSpec, Setting
from neurobench.contracts import EvokedTask, ReconstructionTask, RetrievalTask, SubjectTask, WindowTask
from neurobench.cost import Work
from neurobench.feature_steps import FeatureSteps
from neurobench.identity import digest, seed_for
from neurobench.progress import Advance
from neurobench.reconstruction_steps import ReconstructionSteps
from neurobench.records import Fold
from neurobench.steps import Row, Step, code_digest
from neurobench.store import Checkpoint

__all__ = ["EvaluationSteps"]

ADAPTATION = (adaptation, adapters, attentive, finetuning)
"""Modules that a prediction from a backbone comes from."""

ATTENTIVE_TIMES = 4.0
"""Work of scoring with the attentive probe, in that with the linear one."""

EPOCHS_EXPECTED = 1.0
"""Epochs that a training takes, in those of the recipe: a third of them on noise, twice as many on a strong signal."""


@dataclass(frozen=True, eq=False)
class HeldOut:
    """What is predicted of the test rows of a fold.

    Parameters
    ----------
    table
        The predictions.
    converged
        Whether every probe reached its optimum.
    trained
        What every training on the target came to; empty: a probe on frozen features.
    """

    table: pd.DataFrame
    converged: bool = True
    trained: tuple[finetuning.Tuned, ...] = ()


class EvaluationSteps(FeatureSteps, ReconstructionSteps):
    """The scores of every row of one (cohort, seed) on every task."""

    @once
    def evaluation_step(self, row: Row, task_spec: ComponentSpec) -> Step:
        """Score a row on a task: held-out predictions of every fold, metrics, intervals."""
        task = self.task(task_spec)
        if isinstance(task, ReconstructionTask):
            return self.reconstruction_evaluation(row, task_spec, task)
        if isinstance(task, EvokedTask):
            return self.evoked_evaluation(row, task_spec, task)
        if isinstance(task, WindowTask):
            return self._window_evaluation(row, task_spec, task)
        if isinstance(task, RetrievalTask):
            return self._retrieval_evaluation(row, task_spec, task)
        assert isinstance(task, SubjectTask)
        return self._subject_evaluation(row, task_spec, task)

    def _subject_evaluation(self, row: Row, spec: ComponentSpec, task: SubjectTask) -> Step:
        identity = {
            **self._adaptation_identity(row),
            "sources": [self._source_step(row, spec, f).key for f in self.folds],
            "harmonise": self.grid.config.harmonise,
            "probe": self.probe(row),
            "families": self.families(self.cohort.subjects),
            "refit_permutations": self.grid.config.refit_permutations,
            "task": self.component(spec),
            "folds": self.fold_fingerprint,
            "cohort": self.cohort.fingerprint,
            "seed": self.seed,
            "code": code_digest(__name__, scoring, metrics, *ADAPTATION, confounds, harmonisation),
        }

        n_refits = self.grid.config.refit_permutations

        def compute(folder: Path, advance: Advance, checkpoint: Checkpoint) -> None:
            target = task.target(self.cohort.participants).dropna()
            features = functools.cache(lambda index: self.features(row, spec, self.folds[index]))

            def predict(fold: Fold, target: pd.Series[float]) -> HeldOut:
                return self._predict(row, spec, task, fold, target, features)

            def score(whole: pd.DataFrame) -> scoring.Score:
                found = scoring.score_subject_task(task, whole, seed=self.seed)
                if note := self._missing_units(spec):
                    found = replace(found, notes=(*found.notes, note))
                return scoring.with_refits(
                    found,
                    task,
                    target,
                    self.cohort.participants,
                    lambda permuted: pd.concat([predict(f, permuted).table for f in self.folds], ignore_index=True),
                    seed=self.seed,
                    n_permutations=n_refits,
                    advance=advance,
                )

            self._score_folds(
                folder,
                advance,
                lambda fold: predict(fold, target),
                score,
                lambda whole: confounds.confound_scores(whole, seed=self.seed),
            )

        if self.adapts(row):
            work = self._training_work(row, len(self.cohort.subjects))
        else:
            # A refit repeats the probe alone, which is the smaller part; the attentive one is the larger.
            times = 1 + n_refits / 4 if self.probe(row) != "attentive" else ATTENTIVE_TIMES * (1 + n_refits)
            work = Work("evaluation", len(self.cohort.subjects) * times)
        return Step("evaluation", self._title(f"{spec.label} · {row.label}"), identity, work, compute)

    @once
    def _missing_units(self, spec: ComponentSpec) -> str:
        """Return what a reader must know of units that are missing with a task's target, the same for every row."""
        task = self.task(spec)
        assert isinstance(task, SubjectTask)
        target = task.target(self.cohort.participants).dropna()
        present = self._has_units([str(s) for s in target.index])
        return confounds.missing_units(present, np.asarray(target), self.cohort.units.names)

    def _has_units(self, subjects: Sequence[str]) -> NDArray[np.bool_]:
        """Return (subjects, units) whether all recordings of a subject have a unit."""
        own: dict[str, list[NDArray[np.bool_]]] = {}
        for recording in self.cohort.recordings:
            own.setdefault(recording.subject, []).append(recording.present)
        return np.stack([np.logical_and.reduce(own[s]) for s in subjects])

    def _training_work(self, row: Row, n_rows: int) -> Work:
        """Return the work of training on a target with all folds but one, for every fold.

        When it stops is not known before; :data:`EPOCHS_EXPECTED` of the recipe's epochs are in the middle of what was
        seen, the inner split and the training that follows together.
        """
        n_windows = self._passes("finetune", self.cohort.subjects, row.backbone)
        n_epochs = EPOCHS_EXPECTED * finetuning.FinetuneRecipe().n_epochs
        times = n_rows / len(self.cohort.subjects) * (len(self.folds) - 1) * n_epochs
        return replace(n_windows, amount=n_windows.amount * times)

    def _score_folds(
        self,
        folder: Path,
        advance: Advance,
        predict: Callable[[Fold], HeldOut],
        score: Callable[[pd.DataFrame], scoring.Score],
        beside: Callable[[pd.DataFrame], Mapping[str, scoring.MetricScore]] = lambda whole: {},
    ) -> None:
        """Predict the test rows of every fold, score them all together, and write both."""
        held_out = []
        for done, fold in enumerate(self.folds, 1):
            held_out.append(predict(fold))
            advance(done, len(self.folds))
        self.registry.refuse_intruders()
        whole = self.with_family(pd.concat([h.table for h in held_out], ignore_index=True))
        found = score(whole).to_dict() | {"confounds": {k: asdict(m) for k, m in beside(whole).items()}}
        if trained := [h.trained for h in held_out if h.trained]:
            one = trained[0][0]
            found["training"] = {
                "n_trained": one.n_trained,
                "n_parameters": one.n_parameters,
                "share": one.n_trained / one.n_parameters,
                "epochs": [[t.n_epochs for t in of_fold] for of_fold in trained],
            }
        unsettled = sum(not h.converged for h in held_out)
        if unsettled:
            found["notes"].append(f"the probe did not reach its optimum in {unsettled} of {len(self.folds)} folds")
        whole.to_parquet(folder / "predictions.parquet", index=False)
        (folder / "score.json").write_text(json.dumps(found), encoding="utf-8")

    def _source_step(self, row: Row, spec: ComponentSpec, fold: Fold) -> Step:
        """Return the step whose result a prediction is made from."""
        if self.adapts(row):
            return self.pretraining_step(*row.pretraining, fold)
        return self.feature_step(row, spec, fold)

    def _predict(
        self,
        row: Row,
        spec: ComponentSpec,
        task: SubjectTask,
        fold: Fold,
        target: pd.Series[float],
        features: Callable[[int], tuple[list[str], NDArray[np.float64]]],
    ) -> HeldOut:
        """Return the held-out predictions of one fold.

        ``target`` holds labelled subjects only; ``features`` gives subjects and their rows by the number of the fold.
        """
        train = [s for s in fold.train if s in target.index]
        test = [s for s in fold.test if s in target.index]
        y = np.asarray(target.loc[train], np.float64)
        seed = seed_for(self.seed, "probe", spec.label, fold.index)
        trained: tuple[finetuning.Tuned, ...] = ()
        if self.adapts(row):
            targets = dict(zip(train, y.tolist(), strict=True))
            groups = self.families(train)
            trained = (self._trained(row, fold, self.tokenizer(fold), targets, test, task.kind, seed, groups),)
            prediction = trained[0].prediction
        else:
            subjects, x = features(fold.index)
            place = {s: i for i, s in enumerate(subjects)}
            x_train, x_test = x[[place[s] for s in train]], x[[place[s] for s in test]]
            prediction = adaptation.fit_predict(
                x_train, y, x_test, task.kind, seed, groups=self.families(train), **self.how_probed(row)
            )
        table = pd.DataFrame(
            {
                "participant_id": test,
                "fold": fold.index,
                "truth": np.asarray(target.loc[test], np.float64),
                "prediction": prediction.values,
                "train_mean": float(y.mean()),
            }
        )
        covariates = confounds.covariate_columns(self.cohort.participants.loc[test])
        return HeldOut(table.assign(**covariates), prediction.converged, trained)

    def _trained(
        self,
        row: Row,
        fold: Fold,
        tokenizer: tokens.Tokenizer,
        targets: Mapping[str, float],
        test: Sequence[str],
        kind: adaptation.Kind,
        seed: int,
        groups: Sequence[str] | None,
    ) -> finetuning.Tuned:
        """Train what the adaptation trains on the rows of a tokenizer's cohort; predict ``test``, in its order.

        ``groups`` says which rows of ``targets`` belong together.
        """
        how = self.adapts(row)
        assert how is not None
        net, _ = self.load_pretrained(*row.pretraining, fold)
        # Without pretraining there is nothing in the lower layers to preserve.
        recipe = finetuning.FinetuneRecipe(layer_decay=1.0 if row.kind == "untrained" else 0.75)
        found = finetuning.finetune(
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
            how=how,
            groups=groups,
        )
        place = {s: i for i, s in enumerate(found.subjects)}
        values = found.prediction.values[[place[s] for s in test]]
        return replace(found, subjects=tuple(test), prediction=replace(found.prediction, values=values))

    def _window_evaluation(self, row: Row, spec: ComponentSpec, task: WindowTask) -> Step:
        identity = {
            **self._adaptation_identity(row),
            "sources": [self._source_step(row, spec, f).key for f in self.folds],
            "task": self.component(spec),
            "probe": self.probe(row),
            "families": self.families(self.cohort.subjects),
            "windows": self.window_rows(spec).cohort.fingerprint,
            "folds": self.fold_fingerprint,
            "cohort": self.cohort.fingerprint,
            "seed": self.seed,
            "code": code_digest(__name__, scoring, metrics, *ADAPTATION, windows, window_scoring),
        }

        def compute(folder: Path, advance: Advance, checkpoint: Checkpoint) -> None:
            self._score_folds(
                folder,
                advance,
                lambda fold: self._predict_windows(row, spec, fold),
                lambda whole: window_scoring.score_window_task(task, whole, seed=self.seed),
            )

        n_rows = len(self.window_rows(spec).subjects)
        n_classes = len(self.window_rows(spec).names)
        if self.adapts(row):
            # Two classes are one training, several are one each against the others.
            work = self._training_work(row, n_rows * (1 if n_classes == 2 else n_classes))
        else:
            work = Work("evaluation-windows", n_rows)
        return Step("evaluation", self._title(f"{spec.label} · {row.label}"), identity, work, compute)

    def _predict_windows(self, row: Row, spec: ComponentSpec, fold: Fold) -> HeldOut:
        """Return the held-out predictions of one fold's windows."""
        rows = self.window_rows(spec)
        train, test = rows.of(fold.train), rows.of(fold.test)
        classes = np.asarray(rows.classes.loc[list(train)], np.int64)
        people = rows.subjects.loc[list(train)].tolist()
        groups = self.families(people) or people
        seed = seed_for(self.seed, "probe", spec.label, fold.index)
        trained: list[finetuning.Tuned] = []
        if self.adapts(row):
            tokenizer = tokens.Tokenizer(rows.cohort, self.tokenizer(fold).scaler)

            def against_the_others(k: int) -> adaptation.Prediction:
                targets = dict(zip(train, (classes == k).astype(float).tolist(), strict=True))
                one = self._trained(row, fold, tokenizer, targets, test, "classification", seed, groups)
                trained.append(one)
                return one.prediction

            probability, converged = adaptation.one_against_the_others(against_the_others, len(rows.names))
        else:
            found, x = self.features(row, spec, fold)
            place = {s: i for i, s in enumerate(found)}
            x_train, x_test = x[[place[s] for s in train]], x[[place[s] for s in test]]
            probability, converged = adaptation.fit_predict_classes(
                x_train, classes, x_test, len(rows.names), groups, seed, **self.how_probed(row)
            )
        truth = [rows.names[k] for k in rows.classes.loc[list(test)]]
        people = rows.subjects.loc[list(test)].tolist()
        table = window_scoring.window_predictions(test, people, fold.index, truth, probability, rows.names)
        return HeldOut(table, converged, tuple(trained))

    def _retrieval_evaluation(self, row: Row, spec: ComponentSpec, task: RetrievalTask) -> Step:
        rows = self.retrieval_rows(spec)
        identity: dict[str, Any] = {
            "sources": [self.feature_step(row, spec, f).key for f in self.folds],
            "task": self.component(spec),
            "families": self.families(self.cohort.subjects),
            "windows": rows.cohort.fingerprint,
            "folds": self.fold_fingerprint,
            "cohort": self.cohort.fingerprint,
            "seed": self.seed,
            "code": code_digest(
                __name__, scoring, metrics, adaptation, windows, window_scoring, retrieval, retrieval_scoring
            ),
        }
        known = task.embeddings(sorted(set(rows.labels))) if task.gallery_from == "train" else None
        if known is not None:
            identity["embeddings"] = digest(known.tolist())

        def predict(fold: Fold) -> HeldOut:
            names, x = self.features(row, spec, fold)
            table = retrieval.retrieve(task, rows, fold, names, x, seed=self.seed)
            covariates = confounds.covariate_columns(self.cohort.participants.loc[table["participant_id"].tolist()])
            return HeldOut(table.assign(**{k: v for k, v in covariates.items() if k == "site"}))

        def score(whole: pd.DataFrame) -> scoring.Score:
            found = retrieval_scoring.score_retrieval_task(task, whole, seed=self.seed)
            return replace(found, notes=tuple(n for n in (task.remark(self.cohort), *found.notes) if n))

        def compute(folder: Path, advance: Advance, checkpoint: Checkpoint) -> None:
            self._score_folds(folder, advance, predict, score)

        work = Work("evaluation-retrieval", len(rows.subjects))
        return Step("evaluation", self._title(f"{spec.label} · {row.label}"), identity, work, compute)

    def _adaptation_identity(self, row: Row) -> dict[str, Any]:
        how = self.adapts(row) or Setting("frozen")
        return {"adaptation": how.name, "adaptation_parameters": dict(how.parameters)}

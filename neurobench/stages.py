"""What a cohort's steps come to: rows, tasks, evaluations, and the order in which everything is done."""

from __future__ import annotations

import functools
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    evoked,
    evoked_scores,
    finetuning,
    metrics,
    paired,
    reconstruction,
    retrieval,
    retrieval_scoring,
    scoring,
    splits,
    tokens,
    window_scoring,
    windows,
)
from neurobench.components import ComponentSpec, Setting, parse_component
from neurobench.config import Combination, Grid, needs_of, parse_adaptation
from neurobench.contracts import (
    EvokedTask,
    ReconstructionTask,
    RetrievalTask,
    SubjectTask,
    WindowTask,
)
from neurobench.cost import Work
from neurobench.identity import digest, seed_for
from neurobench.progress import Advance
from neurobench.records import Fold, SignalSpec
from neurobench.resources import Needs, most
from neurobench.steps import FILLERS, CohortSteps, Row, Step, code_digest, once
from neurobench.store import Checkpoint

__all__ = ["CohortRun", "protocol"]

ADAPTATION = (adaptation, adapters, attentive, finetuning)
"""Modules that a prediction from a backbone comes from."""

ATTENTIVE_TIMES = 4.0
"""Work of scoring with the attentive probe, in that with the linear one."""

EPOCHS_EXPECTED = 1.0
"""Epochs that a training takes, in those of the recipe: a third of them on noise, twice as many on a strong signal."""

LEAK_SITE = 6
"""People below which a site is left out when sites are told apart."""


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


class CohortRun(CohortSteps):
    """The rows of one (cohort, seed), the tasks that they are scored on, and every step that this takes."""

    # ------------------------------------------------------------ evaluation

    @once
    def evaluation_step(self, row: Row, task_spec: ComponentSpec) -> Step:
        """Score a row on a task: held-out predictions of every fold, metrics, intervals."""
        task = self.task(task_spec)
        if isinstance(task, ReconstructionTask):
            return self._reconstruction_evaluation(row, task_spec, task)
        if isinstance(task, EvokedTask):
            return self._evoked_evaluation(row, task_spec, task)
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
            "code": code_digest(scoring, metrics, *ADAPTATION, confounds),
        }

        n_refits = self.grid.config.refit_permutations

        def compute(folder: Path, advance: Advance, checkpoint: Checkpoint) -> None:
            target = task.target(self.cohort.participants).dropna()
            features = functools.cache(lambda index: self.features(row, spec, self.folds[index]))

            def predict(fold: Fold, target: pd.Series[float]) -> HeldOut:
                return self._predict(row, spec, task, fold, target, features)

            def score(whole: pd.DataFrame) -> scoring.Score:
                found = scoring.score_subject_task(task, whole, seed=self.seed)
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
            "code": code_digest(scoring, metrics, *ADAPTATION, windows, window_scoring),
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
            "code": code_digest(scoring, metrics, adaptation, windows, window_scoring, retrieval, retrieval_scoring),
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

    # ------------------------------------------------------------ site leak

    @once
    def leak_step(self, row: Row) -> Step | None:
        """Tell the site from a row's features by the common probe; None where that has no meaning.

        It has none with a single site, where sites are what is held out, and for features that hold the site itself.
        """
        sites = self._leak_sites
        spec = next((t for t in self.tasks if isinstance(self.task(t), SubjectTask)), None)
        if spec is None or not len(sites) or "features" not in row.provides or self.adapts(row):
            return None
        if row.baseline is not None and self.registry.get("baseline", row.baseline.name).depends_on_task:
            return None
        identity = {
            "sources": [self.feature_step(row, spec, f).key for f in self.folds],
            "what": "site leak",
            "probe": self.probe(row),
            "families": self.families(self.cohort.subjects),
            "harmonise": self.grid.config.harmonise,
            "folds": self.fold_fingerprint,
            "cohort": self.cohort.fingerprint,
            "seed": self.seed,
            "code": code_digest(adaptation, attentive, confounds, scoring, metrics),
        }

        def compute(folder: Path, advance: Advance, checkpoint: Checkpoint) -> None:
            names = sorted(set(sites))
            tables = []
            for done, fold in enumerate(self.folds, 1):
                train, test = ([s for s in people if s in sites.index] for people in (fold.train, fold.test))
                subjects, x = self.features(row, spec, fold)
                place = {s: i for i, s in enumerate(subjects)}
                classes = np.array([names.index(sites[s]) for s in train], np.int64)
                x_train, x_test = x[[place[s] for s in train]], x[[place[s] for s in test]]
                seed = seed_for(self.seed, "probe", "site leak", fold.index)
                probability, _ = adaptation.fit_predict_classes(
                    x_train, classes, x_test, len(names), self.families(train) or train, seed, **self.how_probed(row)
                )
                said = [names[k] for k in probability.argmax(1)]
                tables.append(pd.DataFrame({"participant_id": test, "site": sites.loc[test].to_numpy(), "said": said}))
                advance(done, len(self.folds))
            score = confounds.site_leak(self.with_family(pd.concat(tables, ignore_index=True)), seed=self.seed)
            (folder / "leak.json").write_text(json.dumps(asdict(score)), encoding="utf-8")

        work = Work("confounds", len(self.cohort.subjects))
        return Step("confounds", self._title(f"site leak of {row.label}"), identity, work, compute)

    @functools.cached_property
    def _leak_sites(self) -> pd.Series[str]:
        """The site of everybody at a site of at least :data:`LEAK_SITE` people; empty where fewer than two are left."""
        people = self.cohort.participants
        if "site" not in people or self.grid.config.split != "subjects":
            return pd.Series(dtype=str)
        site = people["site"].dropna().astype(str)
        site = site[site.map(site.value_counts()) >= LEAK_SITE]
        return site if site.nunique() > 1 else site.iloc[:0]

    def attribution_steps(self, row: Row) -> list[Step]:
        """Return a row's attribution, one step a fold; none unless asked for, and none of baselines and fillers."""
        if not self.grid.config.attribution or row.backbone is None:
            return []
        of_subjects = [t for t in self.tasks if isinstance(self.task(t), SubjectTask)]
        tasks = [] if self.adapts(row) else of_subjects
        return [self.attribution_step(row, fold, tasks) for fold in self.folds]

    def _reconstruction_evaluation(self, row: Row, spec: ComponentSpec, task: ReconstructionTask) -> Step:
        masks = self.evaluation_masks(task)
        steps = [
            self.reconstruction_step(r, f, m, task.ratio) for r in (row, FILLERS) for f in self.folds for m in masks
        ]
        identity = {
            "sources": [s.key for s in steps],
            "row": row.label,
            "task": self.component(spec),
            "seed": self.seed,
            "code": code_digest(scoring, metrics, reconstruction),
        }

        def compute(folder: Path, advance: Advance, checkpoint: Checkpoint) -> None:
            scores = self.reconstructions(row, masks, task.ratio)
            headline, families = self.headline_masks(task), self.families(scores.subjects)
            score = scoring.score_reconstruction(task, scores, row.label, headline, seed=self.seed, families=families)
            (folder / "score.json").write_text(json.dumps(score.to_dict()), encoding="utf-8")

        work = Work("evaluation-reconstruction", len(masks) * len(self.cohort.subjects))
        return Step("evaluation", self._title(f"{spec.label} · {row.label}"), identity, work, compute)

    def _evoked_evaluation(self, row: Row, spec: ComponentSpec, task: EvokedTask) -> Step:
        identity = {
            "sources": [self.evoked_step(r, f, spec).key for r in (row, FILLERS) for f in self.folds],
            "row": row.label,
            "task": self.component(spec),
            "seed": self.seed,
            "code": code_digest(evoked, evoked_scores, paired, scoring, metrics),
        }

        def compute(folder: Path, advance: Advance, checkpoint: Checkpoint) -> None:
            scores = self.evoked_scores(row, spec)
            families = self.families(scores.people)
            score = evoked_scores.score_evoked(task, scores, row.label, seed=self.seed, families=families)
            (folder / "score.json").write_text(json.dumps(score.to_dict()), encoding="utf-8")

        work = Work("evaluation-evoked", len(self.cohort.subjects))
        return Step("evaluation", self._title(f"{spec.label} · {row.label}"), identity, work, compute)

    def evaluated(self, row: Row, spec: ComponentSpec) -> reconstruction.ReconstructionScores:
        """Return a row's reconstruction scores: under the task's masks, and under every mask that pretrained somebody.

        The latter are detail and no part of the row's score, which must not depend on what else is in the grid.
        """
        task = self.task(spec)
        assert isinstance(task, ReconstructionTask)
        masks = self.evaluation_masks(task)
        others = [m for m, ratio in self.reconstruction_masks(row) if ratio == task.ratio and m not in masks]
        return self.reconstructions(row, [*masks, *others], task.ratio)

    def headline_masks(self, task: ReconstructionTask) -> tuple[str, ...]:
        """Return the evaluation masks that count in the headline on this kind of signal."""
        strategies = {m.label: self.strategy(m) for m in self.evaluation_masks(task)}
        return reconstruction.headline_masks(strategies, self.cohort.signal)

    @once
    def evaluation_masks(self, task: ReconstructionTask) -> tuple[ComponentSpec, ...]:
        """Return the task's evaluation masks that are possible on these units."""
        specs = [parse_component("mask", name, self.registry) for name in task.evaluation_masks]
        return tuple(s for s in specs if not self.strategy(s).impossible(self.cohort.units))

    # ------------------------------------------------------------ rows, tasks and the order of steps

    @functools.cached_property
    def combinations(self) -> tuple[Combination, ...]:
        """The combinations of this cohort and seed."""
        # Not picked from the grid's: of many seeds that would be gone through for each of them.
        pairs = itertools.product(self.grid.backbones, self.grid.masks)
        return tuple(Combination(backbone, mask, self.dataset, self.seed) for backbone, mask in pairs)

    @functools.cached_property
    def tasks(self) -> tuple[ComponentSpec, ...]:
        """The tasks that this cohort can be scored on."""
        needs = {"reconstruction"} if self.grid.config.split == "within-recording" else {"features", "reconstruction"}
        possible = (t for t in self.grid.tasks if self.task(t).needs in needs)
        return tuple(t for t in possible if not self.task(t).refuses(self.cohort))

    def why_not(self, task: ComponentSpec) -> str:
        """Return why this cohort cannot be scored on a task."""
        return self.task(task).refuses(self.cohort) or "within recordings only reconstruction has a meaning"

    def scores(self, row: Row, task: ComponentSpec) -> bool:
        """Whether a row is scored on a task: it provides what the task needs, and its score would mean something."""
        return self.task(task).needs in row.provides and not self._senseless(row, task)

    @once
    def _senseless(self, row: Row, task: ComponentSpec) -> str:
        """Return why a row's score on a task would mean nothing, or an empty string."""
        if row.baseline is None or not isinstance(self.task(task), RetrievalTask):
            return ""
        cls = self.registry.get("baseline", row.baseline.name)
        if cls.depends_on_task:
            return "what it knows is the same in all windows of a person: it would name the person, not read a window"
        return "a kernel is a probe's, and nothing is fitted here" if cls.probe == "kernel" else ""

    @functools.cached_property
    def no_pretraining(self) -> ComponentSpec:
        """The masking strategy that hides nothing."""
        name = next(n for n, cls in sorted(self.registry.masks.items()) if not cls.pretrains)
        return parse_component("mask", name, self.registry)

    @functools.cached_property
    def rows(self) -> tuple[Row, ...]:
        """Every row: baselines, trivial fillers, backbones untrained or as given, pretrained combinations."""
        rows = [
            Row("baseline", b.label, baseline=b)
            for b in self.grid.baselines
            if self.cohort.modality in self.registry.get("baseline", b.name).modalities
        ]
        rows += [Row("filler", name) for name in reconstruction.FILLERS]
        untrained = "scratch" if self.grid.adaptation.name == "finetune" else "untrained"
        # Another network than the untrained one of the cohort's own units.
        abroad = "" if self.cohort.seen_as is None else f" (units of {self.grid.pretrain_on[0].label})"
        for backbone in dict.fromkeys(c.backbone for c in self.combinations):
            # Weights from outside are no control: somebody trained them, on people nobody here knows.
            given = backbone.from_outside
            label = f"{backbone.label} · {'as given' if given else untrained}{abroad}"
            rows.append(Row("given" if given else "untrained", label, backbone, self.no_pretraining))
        rows += [
            Row("pretrained", f"{c.backbone.label} · {c.mask.label}{self.grid.arrow}", c.backbone, c.mask)
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

    def needs(self, row: Row, stage: str) -> Needs:
        """Return what a row's step needs beyond a core: what its components do, and nothing to score what is stored."""
        if stage in ("evaluation", "confounds") and self.adapts(row) is None:
            return {}
        parts = (s for s in (row.backbone, row.mask, row.baseline) if s is not None)
        return most(needs_of(s, self.grid.config, self.registry) for s in parts)

    def adapts(self, row: Row) -> Setting | None:
        """Return how a row's backbone is trained on each task: ``finetune``, ``prompt`` or ``lora``; None: it is not.

        A backbone that is not, and whatever is no backbone, is a source of features for the probe.
        """
        return None if row.backbone is None or self.grid.adaptation.name == "frozen" else self.grid.adaptation

    def _adaptation_identity(self, row: Row) -> dict[str, Any]:
        how = self.adapts(row) or Setting("frozen")
        return {"adaptation": how.name, "adaptation_parameters": dict(how.parameters)}

    @once
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
        # Whoever was pretrained by whatever mask is scored under all of them: the matrix has no holes.
        own = [c.mask for c in self.combinations if self.registry.get("mask", c.mask.name).pretrains]
        return list(dict.fromkeys([*pairs, *((m, self.grid.ratio) for m in own)]))

    def steps(self) -> Iterator[tuple[Row, Step]]:
        """Yield every step with the row that needs it: fold after fold, evaluations last; none without a task."""
        if not self.tasks:
            return
        subject_tasks = [t for t in self.tasks if self.task(t).needs == "features"]
        for fold in self.folds:
            for row in self.rows:
                if row.backbone is not None:
                    yield row, self.pretraining_step(*row.pretraining, fold)
                if "features" in row.provides and not self.adapts(row):
                    for task in subject_tasks:
                        if self.scores(row, task):
                            yield row, self.feature_step(row, task, fold)
                # One entry holds all fillers, so the first of their rows stands for them.
                if row.kind != "filler" or row.label == reconstruction.FILLERS[0]:
                    for mask, ratio in self.reconstruction_masks(row):
                        yield row, self.reconstruction_step(row, fold, mask, ratio)
                    if "reconstruction" in row.provides:
                        for task in self.tasks:
                            if isinstance(self.task(task), EvokedTask):
                                yield row, self.evoked_step(row, fold, task)
        for row in self.rows:
            # One row's tasks after each other: they share the decomposition of its features.
            for task in self.tasks:
                if self.scores(row, task):
                    yield row, self.evaluation_step(row, task)
            if (leak := self.leak_step(row)) is not None:
                yield row, leak
            for step in self.attribution_steps(row):
                yield row, step

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
        for spec in self.tasks:
            for row in self.rows:
                if reason := self._senseless(row, spec):
                    notes.append(f"{self.cohort.dataset}: {row.label} left out of {spec.label}: {reason}")
        notes += [f"{self.cohort.dataset}: {r}" for r in self.transfer_remarks()]
        for backbone in dict.fromkeys(c.backbone for c in self.combinations):
            # Tables say what a file holds; who reads them here wants to know which file that was.
            named = ", ".join(f"{n} is {Path(v).name}" for n, v in backbone.files.items())
            notes += [f"{self.cohort.dataset}: {backbone.label}: {named}"] if named else []
            if remark := self.registry.get("backbone", backbone.name).remark(self.spec, backbone.parameters):
                notes.append(f"{self.cohort.dataset}: {remark}")
        for mask in dict.fromkeys(c.mask for c in self.combinations):
            if remark := self.strategy(mask).remark(self.cohort.units):
                notes.append(f"{self.cohort.dataset}: {remark}")
        remarks = (*self.visible_remarks(), *self.connectivity_remarks())
        return notes + [f"{self.cohort.dataset}: {r}" for r in remarks]

    def connectivity_remarks(self) -> list[str]:
        """Return what a reader should know of backbones that are told which units go together."""
        specs = dict.fromkeys(c.backbone for c in self.combinations)
        told = [s.label for s in specs if self.registry.get("backbone", s.name).uses_connectivity]
        if not told:
            return []
        return [
            f"{', '.join(told)} knows the mean functional connectivity of the people it is pretrained on, without "
            "pretraining too: such an untrained network is not a blank one"
        ]

    def visible_remarks(self) -> list[str]:
        """Return what a reader should know of backbones that leave hidden tokens out."""
        specs = dict.fromkeys(c.backbone for c in self.combinations)
        dropping = [s.label for s in specs if self.registry.get("backbone", s.name).drops(s.parameters)]
        tasks = [self.task(t) for t in self.tasks]
        used = {m: None for t in tasks if isinstance(t, ReconstructionTask) for m in self.evaluation_masks(t)}
        loose = [m.label for m in used if self.strategy(m).hides == "tokens"]
        if not dropping or not loose:
            return []
        return [
            f"{', '.join(dropping)} never saw a token hidden here and there in its pretraining; under the evaluation "
            f"mask {', '.join(loose)} such tokens are left out as gaps of the grid"
        ]

    def transfer_remarks(self) -> list[str]:
        """Return what a reader should know of networks that were pretrained on other cohorts."""
        if not self.grid.pretrain_on:
            return []
        remarks = []
        for one in self.outside:
            out, kept = one.n_left_out, one.n_same_name
            text = f"pretrained on {len(one.people)} people of {one.cohort.dataset}"
            text += f", without {out} who are in both" if out else ", none of them in both" if not kept else ""
            if kept:
                text += f"; {kept} identifiers are in both and were declared to be of different people"
            remarks.append(text)
        if (seen := self.cohort.seen_as) is not None:
            first = self.grid.pretrain_on[0].label
            distance = np.sort(seen.distance_mm)
            remarks.append(
                f"its {len(seen.unit)} units meet the {len(seen.units)} of {first} by {seen.by}"
                + (
                    f", {np.median(distance):.0f} mm apart in the median, {distance[-1]:.0f} mm at most"
                    if seen.by == "position"
                    else ""
                    if seen.units.has_positions
                    else ", without positions to check that the atlas is the same"
                )
            )
        return remarks


def protocol(grid: Grid, seed: int, spec: SignalSpec) -> dict[str, Any]:
    """Return what a grid says of how its numbers are made, before anything is known of a cohort."""
    profile, how = grid.profile, parse_adaptation(grid.config.adaptation)
    return {
        "profile": profile.name,
        "split": grid.config.split,
        "n_folds": profile.n_folds,
        "fold_fingerprint": "",
        "window_s": spec.window_s,
        "patch_s": spec.patch_s,
        "n_tokens": profile.n_tokens,
        "ratio": grid.ratio,
        "objective": grid.objective.label,
        "adaptation": how.label,
        "adaptation_parameters": dict(how.parameters),
        "width": profile.width,
        "n_layers": profile.n_layers,
        "n_steps": profile.n_steps,
        "batch_size": profile.batch_size,
        "recipe": {},
        "transductive": grid.config.transductive,
        "harmonise": grid.config.harmonise,
        "probe": grid.config.probe,
        "refit_permutations": grid.config.refit_permutations,
        "suite": grid.config.suite,
        "seed": seed,
    }


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

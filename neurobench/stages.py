"""What a cohort's steps come to: rows, tasks, evaluations, and the order in which everything is done."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neurobench import (
    reconstruction,
    splits,
)
from neurobench.attribution_steps import AttributionSteps
from neurobench.cohort_steps import once
from neurobench.cohorts import CohortSource
from neurobench.components import ComponentSpec, parse_component
from neurobench.config import Combination, Grid, needs_of, parse_adaptation
from neurobench.confound_steps import ConfoundSteps
from neurobench.contracts import (
    EvokedTask,
    ReconstructionTask,
    RetrievalTask,
    SubjectTask,
)
from neurobench.evaluation_steps import EvaluationSteps
from neurobench.plugins import Registry
from neurobench.records import Cohort, SignalSpec
from neurobench.resources import Needs, most
from neurobench.steps import FILLERS, Fetch, Row, Step, Use
from neurobench.store import Store

__all__ = ["CohortRun", "protocol"]

OF_THE_TABLE = ("not-a-number", "sex-coding", "unit-of-age", "shortened-id", "implausible-age")
"""Findings of the participants table that change who is scored on what: a run says them whole."""


class CohortRun(EvaluationSteps, ConfoundSteps, AttributionSteps):
    """The rows of one (cohort, seed), the tasks that they are scored on, and every step that this takes."""

    @classmethod
    def among(
        cls,
        cohorts: Mapping[str, Cohort],
        dataset: str,
        source: CohortSource,
        grid: Grid,
        registry: Registry,
        seed: int,
        device: torch.device,
        fetch: Fetch,
    ) -> CohortRun:
        """Return that of one of several cohorts, by their labels; the others are for pretraining."""
        others = {label: cohort for label, cohort in cohorts.items() if label != dataset}
        return cls(cohorts[dataset], source, grid, registry, seed, device, fetch, others)

    @functools.cached_property
    def combinations(self) -> tuple[Combination, ...]:
        """The combinations of this cohort and seed."""
        # Not picked from the grid's: of many seeds that would be gone through for each of them.
        pairs = itertools.product(self.grid.backbones, self.grid.masks)
        return tuple(Combination(backbone, mask, self.dataset, self.seed) for backbone, mask in pairs)

    def why_not(self, task: ComponentSpec) -> str:
        """Return why this cohort cannot be scored on a task."""
        return self.refusal(task) or "within recordings only reconstruction has a meaning"

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
            if c.mask in self.pretraining_masks
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

    def needed_for(self, row: Row) -> Use:
        """Return what a step is for that every score of a row needs."""
        return Use(row, tuple(task.label for task in self.tasks if self.scores(row, task)))

    def meets_all_masks(self, row: Row) -> bool:
        """Whether a row is evaluated under every mask that pretrains somebody, and not only under its own.

        Fillers are what each pretraining is compared with; the others are shown under all of them, in a matrix without
        holes, by a reconstruction task at the ratio of pretraining.
        """
        return row.kind == "filler" or any(task.ratio == self.grid.ratio for task in self._fills_in(row).values())

    def _fills_in(self, row: Row) -> dict[str, ReconstructionTask]:
        """Return the reconstruction tasks that a row is scored on, by their labels."""
        tasks = {task.label: self.task(task) for task in self.tasks if self.scores(row, task)}
        return {label: task for label, task in tasks.items() if isinstance(task, ReconstructionTask)}

    @once
    def evaluated_under(self, row: Row) -> dict[tuple[ComponentSpec, float], Use]:
        """Return the masks and ratios that a row is evaluated under, each with what for."""
        if "reconstruction" not in row.provides:
            return {}
        asked: dict[tuple[ComponentSpec, float], tuple[str, ...]] = {}
        tasks = self._fills_in(row)
        for label, task in tasks.items():
            for mask in self.evaluation_masks(task):
                asked[mask, task.ratio] = (*asked.get((mask, task.ratio), ()), label)
        found = {pair: Use(row, labels) for pair, labels in asked.items()}
        if self.meets_all_masks(row):
            for mask in self.pretraining_masks:
                found.setdefault((mask, self.grid.ratio), Use(row, tuple(tasks), needed=False))
        if row.kind == "pretrained" and row.mask is not None:
            # Its records say how well it fills in what it was pretrained to.
            found[row.mask, self.grid.ratio] = self.needed_for(row)
        return found

    @functools.cached_property
    def pretraining_masks(self) -> tuple[ComponentSpec, ...]:
        """The masking strategies that pretrain somebody."""
        masks = dict.fromkeys(c.mask for c in self.combinations)
        return tuple(m for m in masks if self.registry.get("mask", m.name).pretrains)

    def steps(self) -> Iterator[tuple[Use, Step]]:
        """Yield every step with what it is for: fold after fold, evaluations last; none without a task."""
        if not self.tasks:
            return
        everything = {row: self.needed_for(row) for row in self.rows}
        of_features = [t for t in self.tasks if self.task(t).needs == "features"]
        of_responses = [t for t in self.tasks if isinstance(self.task(t), EvokedTask)]
        for fold in self.folds:
            for row in self.rows:
                if row.backbone is not None:
                    yield everything[row], self.pretraining_step(*row.pretraining, fold)
                if "features" in row.provides and not self.adapts(row):
                    for task in of_features:
                        if self.scores(row, task):
                            yield Use(row, (task.label,)), self.feature_step(row, task, fold)
                # One entry holds all fillers, so the first of their rows stands for them.
                if row.kind != "filler" or row.label == reconstruction.FILLERS[0]:
                    for (mask, ratio), use in self.evaluated_under(row).items():
                        yield use, self.reconstruction_step(row, fold, mask, ratio)
                    if row.kind == "pretrained" and row.mask is not None:
                        # What its records compare it with.
                        yield everything[row], self.reconstruction_step(FILLERS, fold, row.mask, self.grid.ratio)
                    if "reconstruction" in row.provides:
                        for task in of_responses:
                            yield Use(row, (task.label,)), self.evoked_step(row, fold, task)
        for row in self.rows:
            # One row's tasks after each other: they share the decomposition of its features.
            for task in self.tasks:
                if self.scores(row, task):
                    yield Use(row, (task.label,)), self.evaluation_step(row, task)
            # A score is none the worse for what is only shown beside it.
            beside = replace(everything[row], needed=False)
            if (leak := self.leak_step(row)) is not None:
                yield beside, leak
            for step in self.attribution_steps(row):
                yield beside, step

    def attribution_steps(self, row: Row) -> list[Step]:
        """Return a row's attribution, one step a fold; none unless asked for, and none of baselines and fillers."""
        if not self.grid.config.attribution or row.backbone is None:
            return []
        of_subjects = [t for t in self.tasks if isinstance(self.task(t), SubjectTask)]
        tasks = [] if self.adapts(row) else of_subjects
        return [self.attribution_step(row, fold, tasks) for fold in self.folds]

    def evaluated(
        self, row: Row, spec: ComponentSpec, left_out: Collection[ComponentSpec]
    ) -> reconstruction.ReconstructionScores:
        """Return a row's reconstruction scores: under the task's masks, and under every mask that pretrained somebody.

        The latter are detail and no part of the row's score, which must not depend on what else is in the grid; of them
        ``left_out``, from :meth:`not_shown`, are not there.
        """
        task = self.task(spec)
        assert isinstance(task, ReconstructionTask)
        shown = [m for m in self._beside(row, task) if m not in left_out]
        return self.reconstructions(row, [*self.evaluation_masks(task), *shown], task.ratio)

    def not_shown(self, row: Row, spec: ComponentSpec, store: Store) -> list[ComponentSpec]:
        """Return the masks beside a reconstruction task's own under which a row could not be evaluated."""
        task = self.task(spec)
        if not isinstance(task, ReconstructionTask):
            return []
        rows = {FILLERS} if row.kind == "filler" else {row, FILLERS}
        missing = []
        for mask in self._beside(row, task):
            steps = (self.reconstruction_step(r, fold, mask, task.ratio) for r in rows for fold in self.folds)
            if any(store.get(step.stage, step.key) is None for step in steps):
                missing.append(mask)
        return missing

    def _beside(self, row: Row, task: ReconstructionTask) -> list[ComponentSpec]:
        masks = self.evaluation_masks(task)
        return [m for m, ratio in self.evaluated_under(row) if ratio == task.ratio and m not in masks]

    def notes(self) -> list[str]:
        """Return what a reader of this cohort's tables should know."""
        notes = [f"{self.cohort.dataset}: {r}" for r in splits.split_remarks(self.cohort.participants, self.folds)]
        errors = [f for f in self.cohort.findings if f.level == "error"]
        if errors:
            left_out = Counter(f.code for f in errors).most_common()
            reasons = ", ".join(f"{code} × {n}" for code, n in left_out)
            # What most have in common; a run may be over, and its simulated files gone, before anybody checks the data.
            first = next(f for f in errors if f.code == left_out[0][0])
            notes.append(
                f"{self.cohort.dataset}: left out: {reasons}; the first: {' '.join(first.message.split())}; "
                f"`neurobench data check {self.dataset.name}` says more"
            )
        notes += [f"{self.cohort.dataset}: {f.message}" for f in self.cohort.findings if f.code in OF_THE_TABLE]
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

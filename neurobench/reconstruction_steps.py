"""Reconstruction as stored steps: hidden tokens and evoked responses, filled in by a backbone or trivially."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neurobench import (
    cohort_steps,
    evoked,
    evoked_scores,
    grand_average,
    masking,
    metrics,
    paired,
    reconstruction,
    scoring,
    tokens,
)
from neurobench.cohort_steps import once
from neurobench.components import ComponentSpec, parse_component
from neurobench.contracts import EvokedTask, ReconstructionTask
from neurobench.cost import Work
from neurobench.grand_average import GrandAverage
from neurobench.identity import digest
from neurobench.pretraining_steps import PretrainingSteps
from neurobench.progress import Advance
from neurobench.reconstruction_io import join, load_scores, save_scores
from neurobench.records import Fold
from neurobench.steps import FILLERS, Row, Step, code_digest
from neurobench.store import Checkpoint

__all__ = ["ReconstructionSteps"]


class ReconstructionSteps(PretrainingSteps):
    """What the rows of one (cohort, seed) fill in: hidden tokens under a mask, and the epochs of evoked responses."""

    def _predictors(self, row: Row, fold: Fold, ratio: float) -> Mapping[str, reconstruction.Predictor]:
        """Return a row's backbone, or all fillers fitted on training subjects for a share ``ratio`` hidden."""
        if row.kind == "filler":
            return reconstruction.fit_fillers(
                self.tokenizer(fold), fold.train, ratio=ratio, seed=self.seed, span=fold.train_span
            )
        net, decoder = self.load_honest(*row.pretraining, fold)
        return {row.label: reconstruction.BackbonePredictor(net, decoder, self.device)}

    # ------------------------------------------------------------ hidden tokens

    @once
    def reconstruction_step(self, row: Row, fold: Fold, mask: ComponentSpec, ratio: float) -> Step:
        """Fill hidden tokens of the test subjects under one evaluation mask, by a backbone or by the fillers."""
        identity: dict[str, Any] = {
            "mask": self.component(mask),
            "ratio": ratio,
            "chunks": len(self.chunks),
            "code": code_digest(__name__, cohort_steps, reconstruction, tokens, masking),
        }
        if row.kind == "filler":
            identity |= self._fold_identity(fold)
            label = self._title(f"trivial fillers under {mask.label}", fold)
        else:
            identity |= self._network_identity(*row.pretraining, fold)
            label = self._title(f"reconstruct {row.label} under {mask.label}", fold)

        def compute(folder: Path, advance: Advance, checkpoint: Checkpoint) -> None:
            tokenizer = self.tokenizer(fold)
            predictors = self._predictors(row, fold, ratio)
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
            "code": code_digest(__name__, cohort_steps, evoked, grand_average, reconstruction, tokens, masking),
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
            # Half of the units are hidden, so the ridge of a filler is tuned for that half.
            predictors = self._predictors(row, fold, ratio=0.5)
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
            evoked_scores.save_evoked(scores, folder / "scores.npz")
            grand.save(folder / "grand_average.npz")

        n_passes = sum(len(r.events) for r in self.cohort.recordings if r.subject in set(fold.test)) * len(self.chunks)
        kind = "evoked-fillers" if row.kind == "filler" else "evoked"
        return Step("evoked", label, identity, Work(kind, n_passes, self._pass_size, self._by(row.backbone)), compute)

    def evoked_scores(self, row: Row, spec: ComponentSpec) -> evoked.EvokedScores:
        """Return a row's scores on the responses of every fold's test subjects, those of the fillers beside."""
        by_fold = []
        for fold in self.folds:
            rows = (FILLERS,) if row.kind == "filler" else (row, FILLERS)
            parts = [
                evoked_scores.load_evoked(self.fetch(self.evoked_step(r, fold, spec)).file("scores.npz")) for r in rows
            ]
            by_fold.append(evoked_scores.join_evoked(parts, "predictors"))
        return evoked_scores.join_evoked(by_fold, "subjects")

    # ------------------------------------------------------------ evaluation

    def reconstruction_evaluation(self, row: Row, spec: ComponentSpec, task: ReconstructionTask) -> Step:
        masks = self.evaluation_masks(task)
        steps = [
            self.reconstruction_step(r, f, m, task.ratio) for r in (row, FILLERS) for f in self.folds for m in masks
        ]
        identity = {
            "sources": [s.key for s in steps],
            "row": row.label,
            "task": self.component(spec),
            "seed": self.seed,
            "code": code_digest(__name__, scoring, metrics, reconstruction),
        }

        def compute(folder: Path, advance: Advance, checkpoint: Checkpoint) -> None:
            scores = self.reconstructions(row, masks, task.ratio)
            headline, families = self.headline_masks(task), self.families(scores.subjects)
            score = scoring.score_reconstruction(task, scores, row.label, headline, seed=self.seed, families=families)
            (folder / "score.json").write_text(json.dumps(score.to_dict()), encoding="utf-8")

        work = Work("evaluation-reconstruction", len(masks) * len(self.cohort.subjects))
        return Step("evaluation", self._title(f"{spec.label} · {row.label}"), identity, work, compute)

    def evoked_evaluation(self, row: Row, spec: ComponentSpec, task: EvokedTask) -> Step:
        identity = {
            "sources": [self.evoked_step(r, f, spec).key for r in (row, FILLERS) for f in self.folds],
            "row": row.label,
            "task": self.component(spec),
            "seed": self.seed,
            "code": code_digest(__name__, evoked, evoked_scores, paired, scoring, metrics),
        }

        def compute(folder: Path, advance: Advance, checkpoint: Checkpoint) -> None:
            scores = self.evoked_scores(row, spec)
            families = self.families(scores.people)
            score = evoked_scores.score_evoked(task, scores, row.label, seed=self.seed, families=families)
            (folder / "score.json").write_text(json.dumps(score.to_dict()), encoding="utf-8")

        work = Work("evaluation-evoked", len(self.cohort.subjects))
        return Step("evaluation", self._title(f"{spec.label} · {row.label}"), identity, work, compute)

    def headline_masks(self, task: ReconstructionTask) -> tuple[str, ...]:
        """Return the evaluation masks that count in the headline on this kind of signal."""
        strategies = {m.label: self.strategy(m) for m in self.evaluation_masks(task)}
        return reconstruction.headline_masks(strategies, self.cohort.signal)

    @once
    def evaluation_masks(self, task: ReconstructionTask) -> tuple[ComponentSpec, ...]:
        """Return the task's evaluation masks that are possible on these units."""
        specs = [parse_component("mask", name, self.registry) for name in task.evaluation_masks]
        return tuple(s for s in specs if not self.strategy(s).impossible(self.cohort.units))

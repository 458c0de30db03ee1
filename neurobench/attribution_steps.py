"""Attribution as a stored step: what becomes worse when a group of units is occluded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neurobench import (
    adaptation,
    attentive,
    attribution,
    cohort_steps,
    feature_steps,
    harmonisation,
    masking,
    reconstruction,
    sensory,
    tokens,
)
from neurobench.components import ComponentSpec, parse_component
from neurobench.contracts import SubjectTask
from neurobench.feature_steps import FeatureSteps
from neurobench.identity import seed_for
from neurobench.progress import Advance
from neurobench.records import Fold
from neurobench.steps import Row, Step, code_digest
from neurobench.store import Checkpoint

__all__ = ["AttributionSteps"]


class AttributionSteps(FeatureSteps):
    """What the backbones of one (cohort, seed) draw on."""

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
            "harmonise": self.grid.config.harmonise,
            "families": self.families(fold.train),
            "importance": "every signal",
            "seed": self.seed,
            "code": code_digest(
                __name__,
                cohort_steps,
                feature_steps,
                harmonisation,
                attribution,
                sensory,
                adaptation,
                attentive,
                reconstruction,
                tokens,
                masking,
            ),
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
        subjects, whole = self.stored_features(row, spec, fold)
        occluded = [np.stack([g[s] for s in test]) for g in without.values()]
        # Sites go out of all of them by the same fit, or what they leave would read as the loss of a group.
        x = self.harmonised(row, spec, fold, [*subjects, *test * len(without)], np.concatenate([whole, *occluded]))
        place = {s: i for i, s in enumerate(subjects)}
        y = np.asarray(target.loc[train], np.float64)
        stacked = np.concatenate([x[[place[s] for s in test]], x[len(subjects) :]])
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

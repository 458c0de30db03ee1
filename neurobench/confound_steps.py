"""Confounds as a stored step: how well the site can be told from a row's features."""

from __future__ import annotations

import functools
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from neurobench import adaptation, attentive, confounds, harmonisation, metrics, scoring
from neurobench.cohort_steps import once
from neurobench.contracts import SubjectTask
from neurobench.cost import Work
from neurobench.feature_steps import FeatureSteps
from neurobench.identity import seed_for
from neurobench.progress import Advance
from neurobench.steps import Row, Step, code_digest
from neurobench.store import Checkpoint

__all__ = ["ConfoundSteps"]

LEAK_SITE = 6
"""People below which a site is left out when sites are told apart."""


class ConfoundSteps(FeatureSteps):
    """What the features of one (cohort, seed) give away besides the targets."""

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
            "code": code_digest(__name__, adaptation, attentive, confounds, harmonisation, scoring, metrics),
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
        n_people = Counter(names := site.tolist())
        site = site[[n_people[name] >= LEAK_SITE for name in names]]
        return site if len(set(site)) > 1 else site.iloc[:0]

"""Numbers that are found again from held-out predictions, where people belong together."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from neurobench import gather, recomputation
from neurobench.cohort_steps import CohortSteps
from neurobench.evoked import QUANTITIES, EvokedScores
from neurobench.evoked_scores import response_table, score_evoked
from neurobench.reconstruction import FILLERS, ReconstructionScores
from neurobench.scoring import score_reconstruction
from neurobench_tasks.evoked import Evoked
from neurobench_tasks.reconstruction import Reconstruction

PEOPLE = tuple(f"s{i:02d}" for i in range(16))

# Most people are alone, and families are called otherwise than in the order of their people.
FAMILY = {s: f"z{9 - i // 2}" if i < 6 else None for i, s in enumerate(PEOPLE)}


@pytest.fixture
def run() -> SimpleNamespace:
    """What is asked of a run: its folds, and who belongs together."""
    participants = pd.DataFrame({"family": FAMILY}).rename_axis("participant_id")
    run = SimpleNamespace(cohort=SimpleNamespace(participants=participants))
    run.folds = [SimpleNamespace(index=i, test=PEOPLE[i::2]) for i in range(2)]
    run.families = lambda subjects: CohortSteps.families(run, subjects)
    run.with_family = lambda table: CohortSteps.with_family(run, table)
    return run


def found_again(task, record, score, held_out) -> list[str]:
    again = recomputation.recompute(task, record, held_out)
    return list(recomputation.differences(score.metrics, again.metrics, recomputation.Tolerance()))


def test_intervals_of_reconstruction_over_families(run) -> None:
    rng = np.random.default_rng(0)
    predictors, masks, n = ("net", *FILLERS), ("random", "roi"), len(PEOPLE)
    people = tuple(s for fold in run.folds for s in fold.test)
    sums = {k: rng.uniform(1, 2, (2, n, 3)) for k in ("n", "total", "sst")}
    sums |= {k: rng.uniform(1, 2, (2, 4, n, 3)) for k in ("sse", "predicted", "predicted_squares", "products")}
    scores = ReconstructionScores(
        masks,
        predictors,
        people,
        ("a", "b", "c"),
        **sums,
        guard_sst=rng.uniform(1, 2, (2, n)),
        guard_sse=rng.uniform(1, 2, (2, 4, n)),
        fc_similarity=rng.uniform(0, 1, (2, 4, n)),
        hidden_fraction=np.full(2, 0.5),
        scored_fraction=np.full(2, 0.5),
    )
    task = Reconstruction()
    score = score_reconstruction(task, scores, "net", masks, seed=0, families=run.families(people))
    row = SimpleNamespace(label="net")
    held_out = run.with_family(gather.subject_reconstructions(run, row, scores, masks))
    record = SimpleNamespace(row="net", metrics=score.metrics, protocol=SimpleNamespace(seed=0))
    assert found_again(task, record, score, held_out) == []


def test_intervals_of_evoked_responses_over_families(run) -> None:
    rng = np.random.default_rng(0)
    values = rng.uniform(0, 1, (1, len(PEOPLE), len(QUANTITIES)))
    counts = np.full(len(PEOPLE), 20)
    same = (("rest",) * len(PEOPLE), ("tone",) * len(PEOPLE))
    task = Evoked()
    scores = EvokedScores(("net",), PEOPLE, *same, counts, counts, counts > 0, values, n_small=0)
    score = score_evoked(task, scores, "net", seed=0, families=run.families(scores.people))
    held_out = run.with_family(response_table(scores, "net"))
    record = SimpleNamespace(row="net", metrics=score.metrics, protocol=SimpleNamespace(seed=0))
    assert found_again(task, record, score, held_out) == []

"""Find the numbers of a record again, from its held-out predictions and from the records beside it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neurobench import confounds, evoked, evoked_scores, paired, retrieval_scoring, scoring, window_scoring
from neurobench.contracts import (
    COVARIATES,
    EvokedTask,
    ReconstructionTask,
    RetrievalTask,
    SubjectTask,
    Task,
    WindowTask,
)
from neurobench.errors import DataError
from neurobench.results import MetricRecord, Record
from neurobench.scoring import MetricScore, Score

__all__ = ["Tolerance", "alike", "differences", "recompute", "recompute_beside", "same", "tolerance_of"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Tolerance:
    """How far a number may be from what is found again.

    Parameters
    ----------
    value
        Relative to the larger of 1 and the number: values, chance levels, values of folds.
    interval
        Share of the interval's width by which its ends may be off; 0: as for values. Above 0 where numpy is another
        one, whose generators may draw other subjects.
    p_value
        Absolute.
    """

    value: float = 1e-6
    interval: float = 0.0
    p_value: float = 0.0035


def tolerance_of(record: Record) -> Tolerance:
    """Return the tolerance for a record: another numpy may draw other subjects in bootstrap and permutations."""
    same_numpy = record.environment.get("numpy", "").split(".")[:2] == np.__version__.split(".")[:2]
    return Tolerance() if same_numpy else Tolerance(interval=0.1, p_value=0.03)


def same(a: float | None, b: float | None, tolerance: float) -> bool:
    """Return whether two numbers are the same up to a share of the larger of 1 and them; None is only None."""
    if a is None or b is None:
        return a is b
    return math.isfinite(a) and math.isfinite(b) and abs(a - b) <= tolerance * max(1.0, abs(a), abs(b))


def alike(a: Any, b: Any) -> bool:
    """Return whether two plain values say the same, numbers up to what another machine rounds otherwise."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(alike(v, b[k]) for k, v in a.items())
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(alike, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return same(a, b, 1e-6)
    return bool(a == b)


# ---------------------------------------------------------------- from predictions


def recompute(task: Task, record: Record, held_out: pd.DataFrame) -> Score:
    """Score held-out predictions as the run did.

    Raises
    ------
    DataError
        If they are not what the task needs.
    """
    seed = record.protocol.seed
    try:
        if isinstance(task, SubjectTask):
            return _refitted(scoring.score_subject_task(task, held_out, seed=seed), record)
        if isinstance(task, WindowTask):
            return window_scoring.score_window_task(task, held_out, seed=seed)
        if isinstance(task, RetrievalTask):
            return retrieval_scoring.score_retrieval_task(task, held_out, seed=seed)
        if isinstance(task, EvokedTask):
            scores = _evoked(held_out, record.row)
            families = _families(held_out, scores.people)
            return evoked_scores.score_evoked(task, scores, record.row, seed=seed, families=families)
        if isinstance(task, ReconstructionTask):
            sums = _Sums.of(held_out, record)
            families = _families(held_out, sums.subjects)
            return scoring.score_reconstruction(task, sums, record.row, sums.headline, seed=seed, families=families)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise DataError(f"predictions cannot be scored on {record.task.label}: {error}.") from None
    raise DataError(f"predictions of {record.task.label} cannot be scored again: it is of no known kind.")


def _refitted(score: Score, record: Record) -> Score:
    """Return a score held to the p-value with refitted probes too, where there is one; that is not found again."""
    if record.p_value_refit is None or score.above_chance is None:
        return score
    above = score.above_chance and record.p_value_refit < 0.05
    headline = replace(score.metrics[score.headline], above_chance=above)
    return replace(score, above_chance=above, metrics={**score.metrics, score.headline: headline})


def _families(table: pd.DataFrame, subjects: Sequence[str]) -> list[str] | None:
    """Return whom the run drew together, under the names it drew them by; None where nobody has a family."""
    if "family" not in table:
        return None
    family = dict(zip(table["participant_id"].astype(str), table["family"], strict=True))
    return [f"family {family[s]}" if family[s] else f"subject {s}" for s in subjects]


def _evoked(table: pd.DataFrame, row: str) -> evoked.EvokedScores:
    subjects, states, conditions = (tuple(table[c].astype(str)) for c in ("participant_id", "state", "condition"))
    n, left_out = (table[c].to_numpy(np.int64) for c in ("n_epochs", "n_left_out"))
    values = table[list(evoked.QUANTITIES)].to_numpy(float)[None]
    # Whether shifted events were clear and how many responses were small is told in notes only.
    return evoked.EvokedScores(
        (row,), subjects, states, conditions, n, left_out, np.ones(len(table), bool), values, n_small=0
    )


def _over(above: Array, below: Array) -> Array:
    return np.asarray(np.divide(above, below, out=np.full(np.shape(below), np.nan), where=np.asarray(below) > 0))


@dataclass(frozen=True, eq=False)
class _Sums:
    """Sums of squares of one row, (masks, subjects) each: what scoring needs of reconstruction scores."""

    masks: tuple[str, ...]
    subjects: tuple[str, ...]
    predictors: tuple[str, ...]
    headline: tuple[str, ...]
    fc_similarity: Array
    columns: Mapping[str, Array]

    @classmethod
    def of(cls, table: pd.DataFrame, record: Record) -> _Sums:
        # Masks that only pretrained somebody else in the grid are detail, and no part of the score.
        masks = tuple(m for m in dict.fromkeys(table["mask"]) if f"r2[{m}]" in record.metrics)
        if not masks:
            raise DataError("no mask of the predictions is one of the record.")
        subjects = tuple(dict.fromkeys(table["participant_id"]))
        place = {s: i for i, s in enumerate(subjects)}
        names = ("sse", "sst", "sse_best_filler", "guard_sse", "guard_sst", "pearson_r", "fc_similarity")
        columns = {n: np.full((len(masks), len(subjects)), np.nan) for n in names}
        headline = []
        for m, mask in enumerate(masks):
            own = table[table["mask"] == mask]
            rows = [place[s] for s in own["participant_id"]]
            if sorted(rows) != list(range(len(subjects))):
                raise DataError(f"mask {mask} has {len(rows)} rows of {len(subjects)} subjects: one each is needed.")
            for name, values in columns.items():
                values[m, rows] = own[name].to_numpy(float)
            if own["headline"].nunique() > 1:
                raise DataError(f"mask {mask} counts in the headline for some subjects only.")
            headline += [mask] if own["headline"].iloc[0] else []
        if any((v < 0).any() for n, v in columns.items() if n.startswith(("ss", "guard"))):
            raise DataError("a sum of squares is negative.")
        return cls(masks, subjects, (record.row,), tuple(headline), columns["fc_similarity"][:, None], columns)

    def _one_less(self, above: str, below: str, weights: Array | None) -> Array:
        sums = []
        for name in (above, below):
            values = self.columns[name]
            sums.append(values.sum(-1) if weights is None else np.moveaxis(weights @ values.T, -1, 0))
        return 1 - _over(*sums)

    def r2(self, predictor: str, weights: Array | None = None) -> Array:
        return self._one_less("sse", "sst", weights)

    def skill(self, predictor: str, weights: Array | None = None) -> Array:
        return self._one_less("sse", "sse_best_filler", weights)

    def guarded(self, predictor: str, weights: Array | None = None) -> Array:
        return self._one_less("guard_sse", "guard_sst", weights)

    def subject_r2(self, predictor: str) -> Array:
        return 1 - _over(self.columns["sse"], self.columns["sst"])

    def pearson_r(self, predictor: str) -> Array:
        return self.columns["pearson_r"]


# ---------------------------------------------------------------- from the records beside


def recompute_beside(
    record: Record, group: Sequence[Record], tables: Mapping[str, pd.DataFrame]
) -> tuple[Mapping[str, MetricScore], bool]:
    """Return the confounds that can be found again, and whether all covariates are there to find the others.

    Parameters
    ----------
    record
        Of a task on subjects, with predictions.
    group
        Every record of the same task, cohort, protocol and seed.
    tables
        Predictions by id.
    """
    table = tables[record.id]
    whole = any(c in table for c in ("sex", "mean_fd", "duration_s"))
    found = dict(confounds.confound_scores(table, seed=record.protocol.seed)) if whole else {}
    covariates = next((r for r in group if r.row == "covariates" and r.id in tables), None)
    if covariates is not None and covariates.id != record.id:
        beyond = paired.difference_of(record.headline, table, tables[covariates.id])
        head = record.metrics[record.headline]
        found["over_covariates"] = MetricScore(
            beyond["difference"], beyond["low"], beyond["high"], head.unit, head.higher_is_better, 0.0
        )
    known = {c for c in COVARIATES if c in table}
    return found, whole and bool(known)


# ---------------------------------------------------------------- telling apart


def differences(
    claimed: Mapping[str, MetricRecord], found: Mapping[str, MetricScore], tolerance: Tolerance
) -> Iterator[str]:
    """Yield in words every number of a record that is not what was found again."""
    for name, again in found.items():
        if name not in claimed:
            yield f"{name} is missing, and can be computed: {_text(again.value)}"
            continue
        says = claimed[name]
        for what in ("value", "chance"):
            if not same(getattr(says, what), getattr(again, what), tolerance.value):
                shown = name if what == "value" else f"the chance level of {name}"
                yield f"{shown} is given as {_text(getattr(says, what))}, and is {_text(getattr(again, what))}"
        width = (again.high or 0.0) - (again.low or 0.0)
        for what, end in (("low", "lower"), ("high", "upper")):
            a, b = getattr(says, what), getattr(again, what)
            near = a is not None and b is not None and abs(a - b) <= tolerance.interval * width
            if not (near or same(a, b, tolerance.value)):
                yield f"the {end} end of the interval of {name} is given as {_text(a)}, and is {_text(b)}"
        if not same(says.p_value, again.p_value, tolerance.p_value):
            yield f"p of {name} is given as {_text(says.p_value)}, and is {_text(again.p_value)}"
        elif says.above_chance != again.above_chance and tolerance.interval == 0:
            yield f"{name} is called {_called(says.above_chance)}, and is {_called(again.above_chance)}"
        if (says.unit, says.higher_is_better) != (again.unit, again.higher_is_better):
            yield f"{name} has another unit or direction than the task gives it"


def _called(above: bool | None) -> str:
    return {True: "above chance", False: "not above chance", None: "neither above chance nor not"}[above]


def _text(value: Any) -> str:
    return "not defined" if value is None else f"{value:.6g}"

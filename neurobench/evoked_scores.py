"""From what was measured of each evoked response to metrics over subjects, and to files and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neurobench.contracts import EvokedTask
from neurobench.errors import ConfigError, DataError
from neurobench.evoked import QUANTITIES, EvokedScores
from neurobench.identity import seed_for
from neurobench.metrics import mean_over
from neurobench.paired import Paired, mean_row
from neurobench.scoring import (
    N_BOOTSTRAP,
    N_PERMUTATIONS,
    MetricScore,
    Score,
    bootstrap_weights,
    family_numbers,
    percentile_interval,
)

__all__ = ["join_evoked", "load_evoked", "response_table", "save_evoked", "score_evoked"]

MIN_SUBJECTS = 6
"""Subjects below which flipping signs cannot say anything at p < .05 (1/32 at five, 1/64 at six)."""

_OF_RESPONSES = ("subjects", "states", "conditions")


# ---------------------------------------------------------------- metrics over subjects


def score_evoked(
    task: EvokedTask,
    scores: EvokedScores,
    predictor: str,
    *,
    seed: int,
    n_bootstrap: int = N_BOOTSTRAP,
    families: Sequence[str] | None = None,
) -> Score:
    """Score averaged predictions of evoked responses.

    A subject's value is the mean over its states and conditions, the score the mean over subjects.

    Parameters
    ----------
    task
        Names the metrics, the headline first.
    scores
        Of all predictors.
    predictor
        The row's name among them.
    seed
        Base seed.
    n_bootstrap
        Draws.
    families
        Of ``scores.people``, in their order; drawn and flipped as wholes.

    Returns
    -------
    Score
        Every quantity of :data:`neurobench.evoked.QUANTITIES`; the task's metrics also a (state, condition), such as
        ``waveform_r[auditory/tone]``. The p-value is of the headline against its value at shifted events, with the sign
        of subjects' differences flipped at random; None below six subjects, and then nothing is called above chance.

    Raises
    ------
    DataError
        If there is no response.
    """
    if not scores.subjects:
        raise DataError(
            f"there is no evoked response to score: each of the {scores.n_small} of held-out subjects has fewer than "
            f"{task.MIN_EPOCHS} usable epochs.",
            next_step="An epoch is used if its window lies in the recording and touches no bad span: use a shorter "
            "--window-s, or see `neurobench data check` for the events.",
        )
    unknown = [m.name for m in task.metrics if m.name not in QUANTITIES]
    if unknown:
        raise ConfigError(f"there is no evoked metric {unknown[0]!r}.", allowed=", ".join(QUANTITIES))
    known = {m.name: m for m in task.metrics}
    n = len(scores.people)
    family = family_numbers(families)
    draws = bootstrap_weights(n, n_bootstrap, seed, family)
    responses = sorted(set(zip(scores.states, scores.conditions, strict=True)))
    values = {q: scores.by_subject(predictor, q) for q in (*known, *(q for q in QUANTITIES if q not in known))}
    values |= {f"{q}[{s}/{c}]": scores.by_subject(predictor, q, (s, c)) for q in known for s, c in responses}
    metrics = {}
    for name, each in values.items():
        quantity = name.partition("[")[0]
        error = quantity == "peak_latency_error"
        has = np.isfinite(each)
        low, high = (
            percentile_interval(mean_over(np.where(has, each, 0.0), draws * has)) if has.sum() > 1 else (None, None)
        )
        chance = known[quantity].chance if quantity in known and name == quantity else math.nan
        metrics[name] = MetricScore(
            value=float(each[has].mean()),
            low=low,
            high=high,
            unit="ms" if error else "",
            higher_is_better=not error,
            chance=chance if math.isfinite(chance) else None,
        )
    headline = task.metrics[0].name
    p_value, above = None, None
    if n >= MIN_SUBJECTS:
        null = scores.by_subject(predictor, f"{headline}[null]")
        p_value = _sign_flip_p(values[headline] - null, known[headline].higher_is_better, seed, family)
        pair = mean_row(scores.people, values[headline]), mean_row(scores.people, null)
        found = Paired(n, seed=seed, family=family).difference([pair])
        beyond = found["low"] > 0 if known[headline].higher_is_better else found["high"] < 0
        above = beyond and p_value < 0.05
    return Score(
        headline=headline,
        metrics=metrics,
        per_fold={},
        n_subjects=n,
        p_value=p_value,
        above_chance=above,
        notes=_notes(scores, responses, metrics),
    )


def _sign_flip_p(
    difference: NDArray[np.float64], higher_is_better: bool, seed: int, family: NDArray[np.int64] | None = None
) -> float:
    """Return the one-sided p-value of a mean above 0, (b + 1) / (m + 1)."""
    each = difference if higher_is_better else -difference
    rng = np.random.default_rng(seed_for(seed, "permutation", "evoked", len(each)))
    flipped = rng.random((N_PERMUTATIONS, len(each))) < 0.5
    null = np.where(flipped if family is None else flipped[:, family], -each, each).mean(1)
    return float(((null >= each.mean() - 1e-12).sum() + 1) / (N_PERMUTATIONS + 1))


def _notes(
    scores: EvokedScores, responses: Sequence[tuple[str, str]], metrics: dict[str, MetricScore]
) -> tuple[str, ...]:
    """Return how many epochs are behind the numbers, their ceiling and their null."""
    keys = np.array([f"{s}/{c}" for s, c in zip(scores.states, scores.conditions, strict=True)])
    counts = []
    for state, condition in responses:
        here = keys == f"{state}/{condition}"
        n = scores.n_epochs[here]
        typical = f"{int(np.median(n))} epochs each (median; {n.min()} to {n.max()})"
        counts.append(f"{state}/{condition}: {here.sum()} subjects, {typical}")

    def shown(name: str) -> str:
        value = metrics[name].value
        return "none" if value is None else f"{value:.2f}"

    notes = [
        "; ".join(counts),
        f"{scores.n_left_out.sum()} epochs left out: their window leaves the recording, or its part for the test, "
        "or touches a bad span",
        "split-half noise ceiling (odd against even epochs; r: root of the reliability, Spearman–Brown): waveform r "
        f"{shown('waveform_r[ceiling]')}, GFP r {shown('gfp_r[ceiling]')}, topography r "
        f"{shown('topography_r[ceiling]')}, latency {shown('peak_latency_error[ceiling]')} ms, amplitude ratio "
        f"{shown('peak_amplitude_ratio[ceiling]')}; predictions that share noise with the epochs may lie above it, "
        f"which across_halves_r rules out (ceiling {shown('across_halves_r[ceiling]')})",
        f"null (predictions at shifted events): waveform r {shown('waveform_r[null]')}",
        f"background (predicted against real at shifted events): waveform r {shown('waveform_r[away]')}",
    ]
    if scores.n_small:
        notes.append(f"{scores.n_small} responses of fewer than {EvokedTask.MIN_EPOCHS} usable epochs are left out")
    if not scores.clear.all():
        notes.append(
            f"events of {int((~scores.clear).sum())} of {len(scores.clear)} responses leave no room between them: "
            "their shifted events are drawn from the whole recording"
        )
    return tuple(notes)


def response_table(scores: EvokedScores, predictor: str) -> pd.DataFrame:
    """Return one row a response: participant, state, condition, epochs and every quantity."""
    table = {
        "participant_id": scores.subjects,
        "state": scores.states,
        "condition": scores.conditions,
        "n_epochs": scores.n_epochs,
        "n_left_out": scores.n_left_out,
    }
    return pd.DataFrame(table | {q: scores.of(predictor, q) for q in QUANTITIES})


# ---------------------------------------------------------------- files, and joining what several steps gave


def save_evoked(scores: EvokedScores, path: Path) -> None:
    """Write scores as .npz."""
    np.savez(path, allow_pickle=False, **{f.name: np.asarray(getattr(scores, f.name)) for f in fields(scores)})


def load_evoked(path: Path) -> EvokedScores:
    """Read scores from .npz."""
    with np.load(path, allow_pickle=False) as arrays:
        values: dict[str, Any] = {f.name: arrays[f.name] for f in fields(EvokedScores)}
    names = {n: tuple(values[n].tolist()) for n in ("predictors", *_OF_RESPONSES)}
    return EvokedScores(**values | names | {"n_small": int(values["n_small"])})


def join_evoked(parts: Sequence[EvokedScores], along: Literal["predictors", "subjects"]) -> EvokedScores:
    """Return as one the scores of several predictors on the same responses, or of several folds' test subjects."""
    first = parts[0]
    fixed = _OF_RESPONSES if along == "predictors" else ("predictors",)
    for name in fixed:
        if any(getattr(p, name) != getattr(first, name) for p in parts):
            raise ValueError(f"evoked scores of different {name} cannot be joined along {along}")
    if along == "predictors":
        return replace(
            first,
            predictors=tuple(n for p in parts for n in p.predictors),
            values=np.concatenate([p.values for p in parts]),
        )
    grown: dict[str, Any] = {n: tuple(x for p in parts for x in getattr(p, n)) for n in _OF_RESPONSES}
    grown |= {n: np.concatenate([getattr(p, n) for p in parts]) for n in ("n_epochs", "n_left_out", "clear")}
    return replace(
        first, values=np.concatenate([p.values for p in parts], 1), n_small=sum(p.n_small for p in parts), **grown
    )

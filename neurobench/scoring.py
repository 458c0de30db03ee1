"""Scores with intervals over subjects, chance levels and paired comparisons; the metrics are in metrics.py."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neurobench.contracts import ReconstructionTask, SubjectTask
from neurobench.errors import ConfigError, DataError
from neurobench.identity import seed_for
from neurobench.metrics import CHANCE, Sample, mean_over, metric_function

__all__ = [
    "MetricScore",
    "Score",
    "bootstrap_weights",
    "family_numbers",
    "holm",
    "percentile_interval",
    "permute_within",
    "sample_of",
    "score_reconstruction",
    "score_subject_task",
    "with_refits",
]

Array = NDArray[np.float64]

N_BOOTSTRAP, N_PERMUTATIONS = 2000, 1000

ONE_CLASS = " sites hold one class only: site gives the class away"
"""End of the note of a record that tells how many of how many; a board reads it."""

SHARED_UP_TO = 2_000
"""Subjects up to which draws are kept for the next row of the same table: of more they take too much memory."""

INTERVAL = "95 % percentile interval of a bootstrap over subjects"


# ---------------------------------------------------------------- results


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


@dataclass(frozen=True)
class MetricScore:
    """One metric: value, 95 % interval, unit, direction and chance level; None where it is not defined.

    ``p_value`` is against labels permuted within sites, and ``above_chance`` says whether that and the interval alike
    allow to speak of a signal; None for a metric without a chance level.
    """

    value: float | None
    low: float | None
    high: float | None
    unit: str
    higher_is_better: bool
    chance: float | None
    p_value: float | None = None
    above_chance: bool | None = None


@dataclass(frozen=True)
class Score:
    """What a row reaches on a task.

    Parameters
    ----------
    headline
        Name of the metric that ranks.
    metrics, per_fold
        Every metric; its value in every fold, in order.
    n_subjects
        Held-out subjects.
    p_value
        Of the headline, against labels permuted within sites with predictions held fixed; None for a reconstruction.
    above_chance
        Interval above chance and p < .05; None where that cannot be said. False reads "no signal", and so does
        anything below chance: pooled held-out scores lie below chance when there is nothing to find.
    interval
        How intervals were made.
    notes
        What a reader should know.
    p_value_refit
        Of the headline, with every probe fitted anew to permuted labels; None unless that was asked for.
    """

    headline: str
    metrics: Mapping[str, MetricScore]
    per_fold: Mapping[str, tuple[float | None, ...]]
    n_subjects: int
    p_value: float | None
    above_chance: bool | None
    interval: str = INTERVAL
    notes: tuple[str, ...] = field(default=())
    p_value_refit: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, None instead of NaN."""
        plain = asdict(self)
        return plain | {"per_fold": {k: list(v) for k, v in self.per_fold.items()}, "notes": list(self.notes)}


def family_numbers(families: Any) -> NDArray[np.int64] | None:
    """Return (subjects,) numbers from 0 of whom belong together, a subject without a family alone; None without any.

    Parameters
    ----------
    families
        (subjects,) names; None, NaN or empty where there is none. None altogether: no family is known.
    """
    if families is None:
        return None
    names = pd.Series(list(families), dtype=object)
    alone = names.isna() | (names == "")
    if alone.all():
        return None
    keys = np.where(alone, [f"subject {i}" for i in range(len(names))], "family " + names.astype(str))
    return np.unique(keys.astype(str), return_inverse=True)[1].astype(np.int64)


def bootstrap_weights(n_subjects: int, n_bootstrap: int, seed: int, family: NDArray[np.int64] | None = None) -> Array:
    """Return (draws, subjects) how often each subject is drawn; the same for every row of a comparison.

    With the (subjects,) numbers of their families, whole families are drawn: relatives, or scans of one person under
    several ids, are no independent observations.
    """
    if family is not None:
        return bootstrap_weights(int(family.max()) + 1, n_bootstrap, seed)[:, family]
    return (_weights if n_subjects <= SHARED_UP_TO else _weights.__wrapped__)(n_subjects, n_bootstrap, seed)


@functools.lru_cache(maxsize=4)
def _weights(n_subjects: int, n_bootstrap: int, seed: int) -> Array:
    rng = np.random.default_rng(seed_for(seed, "bootstrap", n_subjects))
    drawn = rng.integers(n_subjects, size=(n_bootstrap, n_subjects)) + np.arange(n_bootstrap)[:, None] * n_subjects
    counts = np.bincount(drawn.ravel(), minlength=n_bootstrap * n_subjects).reshape(n_bootstrap, -1).astype(float)
    counts.flags.writeable = False
    return counts


def percentile_interval(values: Array) -> tuple[float | None, float | None]:
    """Return the percentile interval over the draws in which a metric is defined (both classes drawn)."""
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return None, None
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


# ---------------------------------------------------------------- subject tasks

_COLUMNS = ("participant_id", "fold", "truth", "prediction", "train_mean")


def sample_of(predictions: pd.DataFrame) -> tuple[Sample, tuple[str, ...]]:
    """Return predictions as arrays in the order of participants, and the participants."""
    missing = [c for c in _COLUMNS if c not in predictions]
    if missing:
        raise DataError(f"predictions lack {', '.join(missing)}.", allowed=", ".join(_COLUMNS))
    if len(predictions) == 0:
        raise DataError("there is no held-out prediction to score.")
    # Columns are sorted one by one: sorting the table takes ten times as long, and a board holds thousands of them.
    names = predictions["participant_id"].to_numpy(object)
    order = np.argsort(names, kind="stable")
    ids = tuple(map(str, names[order]))
    if len(set(ids)) != len(ids):
        raise DataError(f"{len(ids)} predictions are of {len(set(ids))} subjects: every subject is scored once.")
    y, p, mean = (predictions[c].to_numpy(float)[order] for c in ("truth", "prediction", "train_mean"))
    if not (known := np.isfinite(y) & np.isfinite(p) & np.isfinite(mean)).all():
        row = int(np.flatnonzero(~known)[0])
        raise DataError(f"truth, prediction or training mean of {ids[row]!r} is not a number.")
    site = _site_numbers(predictions["site"].to_numpy(object)[order]) if "site" in predictions else None
    age = predictions["age"].to_numpy(float)[order] if "age" in predictions else np.full(len(ids), np.nan)
    fold = np.unique(predictions["fold"].to_numpy()[order], return_inverse=True)[1]
    family = family_numbers(predictions["family"].to_numpy(object)[order]) if "family" in predictions else None
    return Sample(y, p, mean, fold, np.full(len(ids), -1) if site is None else site, age, family), ids


def _site_numbers(sites: NDArray[Any]) -> NDArray[np.int64]:
    """Return (subjects,) numbers of sites in the order of their names, −1 where there is none."""
    known = ~(pd.isna(sites) | (sites == ""))
    numbers = np.full(len(sites), -1)
    numbers[known] = np.unique(sites[known].astype(str), return_inverse=True)[1]
    return numbers


def score_subject_task(
    task: SubjectTask,
    predictions: pd.DataFrame,
    *,
    seed: int,
    n_bootstrap: int = N_BOOTSTRAP,
    n_permutations: int = N_PERMUTATIONS,
) -> Score:
    """Score held-out predictions of a subject task.

    Parameters
    ----------
    task
        Says which metrics, the headline first.
    predictions
        One row a subject: ``participant_id``, ``fold``, ``truth``, ``prediction``, ``train_mean`` (of the target in
        that fold's training subjects), and where known ``site``, ``age`` (years) and ``family``.
    seed
        Base seed; the bootstrap draws the same subjects for every row.
    n_bootstrap, n_permutations
        Draws.

    Raises
    ------
    DataError
        If a subject is scored twice or a number is missing.
    """
    sample, _ = sample_of(predictions)
    n = len(sample.p)
    ones = np.ones((1, n))
    draws = bootstrap_weights(n, n_bootstrap, seed, sample.family)
    # Drawing one subject, or one family, again and again is no interval.
    alone = n < 2 or (sample.family is not None and sample.family.max() == 0)
    folds = (sample.fold == np.arange(sample.fold.max() + 1)[:, None]).astype(float)
    permuted = _permuted(sample, seed, n_permutations)
    metrics: dict[str, MetricScore] = {}
    per_fold: dict[str, tuple[float | None, ...]] = {}
    for metric in task.metrics:
        function = metric_function(task.kind, metric.name)
        drawn = function(sample, draws)
        low, high = percentile_interval(drawn)
        chance = float(CHANCE[metric.name](sample, ones)[0]) if metric.name in CHANCE else metric.chance
        value = _number(function(sample, ones)[0])
        p_value, above = None, None
        if value is None:
            low = high = None
        elif math.isfinite(chance):
            p_value = _permutation_p(value, function(permuted, ones), metric.higher_is_better)
            # The chance of an error is an estimate itself: the same draws of subjects decide on both.
            level = CHANCE[metric.name](sample, draws) if metric.name in CHANCE else chance
            gain, _ = percentile_interval(drawn - level if metric.higher_is_better else level - drawn)
            above = gain is not None and gain > 0 and p_value < 0.05 and not alone
        if alone:
            low = high = None
        metrics[metric.name] = MetricScore(
            value, low, high, metric.unit, metric.higher_is_better, _number(chance), p_value, above
        )
        per_fold[metric.name] = tuple(_number(v) for v in function(sample, folds))
    headline = metrics[task.metrics[0].name]
    return Score(
        headline=task.metrics[0].name,
        metrics=metrics,
        per_fold=per_fold,
        n_subjects=n,
        p_value=headline.p_value,
        above_chance=headline.above_chance,
        notes=_notes(sample, task),
    )


def with_refits(
    score: Score,
    task: SubjectTask,
    target: pd.Series[float],
    participants: pd.DataFrame,
    predict: Callable[[pd.Series[float]], pd.DataFrame],
    *,
    seed: int,
    n_permutations: int,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Score:
    """Return a score with a second p-value: labels are permuted within sites *before* the probe is fitted.

    Fixed predictions ask whether these predictions go with these labels; refitting asks how often the whole procedure,
    selection of the penalty included, finds as much in labels that mean nothing. What is above chance has to pass both.

    Parameters
    ----------
    score
        As :func:`score_subject_task` gives it.
    task
        Says which metric is the headline.
    target
        Of every labelled subject.
    participants
        Says who was where, in ``site``, and who belongs together, in ``family``.
    predict
        From a target to held-out predictions, everything fitted anew.
    seed, n_permutations
        Of the permutations; none leave the score as it is.
    advance
        Told how many of them are done.
    """
    observed = score.metrics[score.headline]
    if n_permutations == 0 or observed.value is None:
        return score
    started = time.perf_counter()
    rng = np.random.default_rng(seed_for(seed, "permutation", "refit", len(target)))
    known = participants.loc[target.index]
    site = known["site"].astype(str).to_numpy() if "site" in known else np.full(len(known), "")
    family = family_numbers(known["family"]) if "family" in known else None
    function = metric_function(task.kind, score.headline)
    null = np.empty(n_permutations)
    for i, values in enumerate(permute_within(np.asarray(target, np.float64), site, family, n_permutations, rng)):
        sample, _ = sample_of(predict(pd.Series(values, index=target.index)))
        null[i] = function(sample, np.ones((1, len(sample.p))))[0]
        advance(i + 1, n_permutations)
    p = _permutation_p(observed.value, null, observed.higher_is_better)
    above = None if score.above_chance is None else score.above_chance and p < 0.05
    seconds = time.perf_counter() - started
    note = f"refitted to {n_permutations} permutations of the labels within sites: p {p:.3f} (took {seconds:.1f} s)"
    return replace(
        score,
        p_value_refit=p,
        above_chance=above,
        metrics={**score.metrics, score.headline: replace(observed, above_chance=above)},
        notes=(*score.notes, note),
    )


def _permuted(sample: Sample, seed: int, n_permutations: int) -> Sample:
    """Return the sample with (permutations, subjects) truths, permuted within sites; predictions are held fixed."""
    family = None if sample.family is None else sample.family.tobytes()
    draw = _permuted_truth if len(sample.p) <= SHARED_UP_TO else _permuted_truth.__wrapped__
    return replace(sample, y=draw(sample.y.tobytes(), sample.site.tobytes(), family, seed, n_permutations))


@functools.lru_cache(maxsize=4)
def _permuted_truth(y: bytes, site: bytes, family: bytes | None, seed: int, n_permutations: int) -> Array:
    truth, sites = np.frombuffer(y, np.float64), np.frombuffer(site, np.int64)
    families = None if family is None else np.frombuffer(family, np.int64)
    rng = np.random.default_rng(seed_for(seed, "permutation", len(truth)))
    permuted = permute_within(truth, sites, families, n_permutations, rng)
    permuted.flags.writeable = False
    return permuted


def permute_within(
    y: Array,
    site: NDArray[Any],
    family: NDArray[np.int64] | None,
    n_permutations: int,
    rng: np.random.Generator,
) -> Array:
    """Return (permutations, subjects) labels permuted within sites; of families as wholes, among those as large.

    Relatives are alike, in their labels as in what is predicted of them: permuted one by one they would look like so
    many independent observations.
    """
    permuted = np.tile(y, (n_permutations, 1))
    # A family at two sites is one at each.
    blocks: dict[tuple[Any, Any], list[int]] = {}
    for i, s in enumerate(site):
        blocks.setdefault((s, ("alone", i) if family is None else family[i]), []).append(i)
    alike: dict[tuple[Any, int], list[list[int]]] = {}
    for (s, _), members in blocks.items():
        alike.setdefault((s, len(members)), []).append(members)
    for found in alike.values():
        here = np.array(found)
        order = rng.permuted(np.tile(np.arange(len(here)), (n_permutations, 1)), axis=1)
        permuted[:, here] = y[here[order]]
    return permuted


def _permutation_p(observed: float, null: Array, higher_is_better: bool) -> float:
    """Return the share of permutations that do at least as well, (b + 1) / (m + 1); undefined ones do."""
    tolerance = 1e-12 * max(1.0, abs(observed))
    worse = null < observed - tolerance if higher_is_better else null > observed + tolerance
    return float(((~worse).sum() + 1) / (len(null) + 1))


def _notes(sample: Sample, task: SubjectTask) -> tuple[str, ...]:
    if task.kind == "regression":
        return ()
    n_positive = int(sample.y.sum())
    notes = [f"prevalence of {task.classes[1] or 'class 1'}: {n_positive} of {len(sample.y)}"]
    n_unknown = int((sample.site < 0).sum())
    if n_unknown:
        notes.append(
            f"site not known of {n_unknown} of {len(sample.y)}: no within-site score holds them, and for p their "
            "labels are permuted among themselves, wherever they were scanned"
        )
    of_one_class = sum(len(np.unique(sample.y[sample.site == s])) == 1 for s in range(sample.site.max() + 1))
    if of_one_class and sample.site.max() > 0:
        notes.append(f"{of_one_class} of {sample.site.max() + 1}{ONE_CLASS}")
    return tuple(notes)


# ---------------------------------------------------------------- many comparisons


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number by Holm's method, in the order given."""
    if len(p_values) == 0:
        return []
    p = np.asarray(p_values, float)
    order = np.argsort(p)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return [float(x) for x in adjusted]


# ---------------------------------------------------------------- reconstruction


class _Reconstructions(Protocol):
    """What is needed of :class:`neurobench.reconstruction.ReconstructionScores`."""

    @property
    def masks(self) -> tuple[str, ...]: ...
    @property
    def subjects(self) -> tuple[str, ...]: ...
    @property
    def fc_similarity(self) -> Array: ...
    @property
    def predictors(self) -> tuple[str, ...]: ...
    def r2(self, predictor: str, weights: Array | None = None) -> Array: ...
    def skill(self, predictor: str, weights: Array | None = None) -> Array: ...
    def guarded(self, predictor: str, weights: Array | None = None) -> Array: ...
    def subject_r2(self, predictor: str) -> Array: ...
    def pearson_r(self, predictor: str) -> Array: ...


def _rows(masks: Sequence[str], chosen: Sequence[str] | None) -> list[int]:
    rows = [i for i, m in enumerate(masks) if chosen is None or m in chosen]
    # If every mask is trivial on this signal there is no better headline than all of them.
    return rows or list(range(len(masks)))


def score_reconstruction(
    task: ReconstructionTask,
    scores: _Reconstructions,
    predictor: str,
    headline: Sequence[str],
    *,
    seed: int,
    n_bootstrap: int = N_BOOTSTRAP,
    families: Sequence[Any] | None = None,
) -> Score:
    """Score masked reconstruction of held-out subjects.

    Parameters
    ----------
    task
        Names the metrics ``r2`` (mean over headline masks) and ``r2[mask]``.
    scores
        Of the row and of the trivial fillers, on the same masks and subjects.
    predictor
        Name of the row in ``scores``.
    headline
        Masks that count in the headline; others are rank-trivial on this signal and only reported.
    seed
        Base seed.
    n_bootstrap
        Draws.
    families
        Of the subjects of ``scores``, in their order; see :func:`family_numbers`.
    """
    rows = _rows(scores.masks, headline)
    n = len(scores.subjects)
    draws = bootstrap_weights(n, n_bootstrap, seed, family_numbers(families))
    r2, r2_draws = scores.r2(predictor), scores.r2(predictor, draws)
    skill, skill_draws = scores.skill(predictor), scores.skill(predictor, draws)
    values: dict[str, tuple[Array, Array]] = {
        "r2": (r2[rows].mean(0), r2_draws[rows].mean(0)),
        "skill": (skill[rows].mean(0), skill_draws[rows].mean(0)),
    }
    for i, mask in enumerate(scores.masks):
        values[f"r2[{mask}]"] = r2[i], r2_draws[i]
        values[f"skill[{mask}]"] = skill[i], skill_draws[i]
    guarded, guarded_draws = scores.guarded(predictor), scores.guarded(predictor, draws)
    for i, mask in enumerate(scores.masks):
        # The ablation: does what is left without the edges of hidden spans, where a filter has leaked, say the same?
        if np.isfinite(guarded[i]):
            values[f"r2_guarded[{mask}]"] = guarded[i], guarded_draws[i]
    similarity = scores.fc_similarity[:, scores.predictors.index(predictor)]
    for name, each in (("pearson_r", scores.pearson_r(predictor)), ("fc_similarity", similarity)):
        mean: Any = each[rows].mean(0)
        known: NDArray[np.bool_] = np.isfinite(mean)
        subject = np.where(known, mean, 0.0)
        values[name] = mean_over(subject, known[None].astype(float))[0], mean_over(subject, draws * known)
    unknown = [m.name for m in task.metrics if m.name not in values and not m.name.startswith("r2[")]
    if unknown:
        raise ConfigError(f"there is no reconstruction metric {unknown[0]!r}.", allowed=", ".join(values))
    metrics = {}
    for name, (value, drawn) in values.items():
        # Drawing one subject again and again is no interval.
        low, high = percentile_interval(drawn) if len(scores.subjects) > 1 else (None, None)
        metrics[name] = MetricScore(_number(float(value)), low, high, "", True, 0.0)
    first = metrics[task.metrics[0].name]
    left_out = [m for i, m in enumerate(scores.masks) if i not in rows]
    note = f"rank-trivial on this signal and left out of the headline: {', '.join(left_out)}"
    return Score(
        headline=task.metrics[0].name,
        metrics=metrics,
        per_fold={},
        n_subjects=n,
        p_value=None,
        above_chance=None if first.low is None else first.low > 0,
        notes=(note,) if left_out else (),
    )

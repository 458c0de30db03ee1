"""What a prediction owes to age, sex, site, motion and scan length: how it goes with them, and what is left given them.

A confound is anything that a probe could have read instead of what it was asked for. Partial correlations take the
linear part of every covariate out of truth and prediction alike, in the held-out subjects; they cannot take out what
enters otherwise, and a report says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy
from numpy.typing import NDArray

from neurobench.contracts import COVARIATES
from neurobench.scoring import N_BOOTSTRAP, MetricScore, bootstrap_weights, family_numbers, percentile_interval

__all__ = ["MIN_KNOWN", "MISSING_UNITS", "confound_scores", "covariate_columns", "missing_units", "site_leak"]

Array = NDArray[np.float64]

MIN_KNOWN = 20
"""Held-out subjects (or families) with a known covariate below which nothing is said about it."""

MIN_MISSING = 5
"""People with a unit, and without it, below which nothing is said of whether that goes with the target."""

MISSING_P = 0.001
"""Adjusted p-value below which it is said."""

MISSING_UNITS = "units are missing where the target is another one"
"""Start of the note that says so."""


def covariate_columns(participants: pd.DataFrame) -> dict[str, NDArray[Any]]:
    """Return the covariates that are known, as predictions keep them: numbers, and text for ``sex`` and ``site``."""
    found: dict[str, NDArray[Any]] = {}
    for name in COVARIATES:
        if name in participants:
            text = name in ("sex", "site")
            values = participants[name]
            found[name] = (
                values.where(values.notna(), "").astype(str).to_numpy()
                if text
                else pd.to_numeric(values, errors="coerce").to_numpy(float)
            )
    return found


def _enough(known: NDArray[np.bool_], family: NDArray[np.int64] | None) -> bool:
    """Whether (subjects,) ``known`` are enough: of relatives, who are drawn together, a family counts once."""
    return int(known.sum() if family is None else np.unique(family[known]).size) >= MIN_KNOWN


def _designs(predictions: pd.DataFrame, family: NDArray[np.int64] | None) -> dict[str, Array]:
    """Return (subjects, columns) of every covariate that varies and of all together; NaN where it is not known."""
    truth = predictions["truth"].to_numpy(float)
    designs: dict[str, Array] = {}
    for name in COVARIATES:
        if name not in predictions:
            continue
        values = predictions[name]
        known: NDArray[np.bool_]
        if name in ("sex", "site"):
            known = (values != "").to_numpy(bool)
            columns = np.array(pd.get_dummies(values.where(known), dtype=float))[:, 1:]
            columns[~known] = np.nan
        else:
            columns = values.to_numpy(float)[:, None]
            known = np.asarray(np.isfinite(columns[:, 0]))
        # By range: the s.d. of equal numbers may be a rounding error and not 0.
        if not _enough(known, family) or columns.shape[1] == 0 or not np.ptp(columns[known], axis=0).any():
            continue
        if columns.shape[1] == 1 and abs(scipy.stats.pearsonr(columns[known, 0], truth[known]).statistic) > 1 - 1e-9:
            continue  # The target itself.
        designs[name] = columns
    if len(designs) > 1:
        designs["all"] = np.concatenate(list(designs.values()), 1)
    return designs


def confound_scores(
    predictions: pd.DataFrame, *, seed: int, n_bootstrap: int = N_BOOTSTRAP
) -> Mapping[str, MetricScore]:
    """Return what is known of held-out predictions beside their covariates.

    Parameters
    ----------
    predictions
        As for :func:`neurobench.scoring.score_subject_task`, with the columns of :func:`covariate_columns`.
    seed, n_bootstrap
        Of the bootstrap over subjects.

    Returns
    -------
    scores
        ``r[truth]``: Pearson's r of truth and prediction, against which the partial ones are read. ``r[NAME]``: of the
        prediction with a numeric covariate. ``truth_r[NAME]``: of the truth with it.
        ``partial_r[NAME]``: of truth and prediction given a covariate (for a class: point-biserial), also given
        ``all`` of them; ``delta_r2[all]``: what the prediction adds to the R² of a linear regression of the truth on
        all covariates, negative where it goes the wrong way given them. Nothing for a prediction that is the same for
        everybody.
    """
    y, p = predictions["truth"].to_numpy(float), predictions["prediction"].to_numpy(float)
    family = family_numbers(predictions["family"]) if "family" in predictions else None
    if not _enough(np.ones(len(y), bool), family) or np.ptp(p) <= 1e-12 * max(1.0, float(np.abs(p).max())):
        return {}
    draws = np.concatenate([np.ones((1, len(y))), bootstrap_weights(len(y), n_bootstrap, seed, family)])
    scores = {"r[truth]": _score(_correlation(_covariances(np.column_stack([y, p]), draws), 0, 1), 0.0)}
    for name, columns in _designs(predictions, family).items():
        known = np.logical_and.reduce(np.isfinite(columns), 1)
        if not _enough(known, family):
            continue
        covariance = _covariances(np.column_stack([y, p, np.where(known[:, None], columns, 0.0)]), draws * known)
        if columns.shape[1] == 1 and name not in ("sex", "site"):
            scores[f"r[{name}]"] = _score(_correlation(covariance, 1, 2), None)
            scores[f"truth_r[{name}]"] = _score(_correlation(covariance, 0, 2), None)
        given = _given(covariance)
        partial = _correlation(given, 0, 1)
        scores[f"partial_r[{name}]"] = _score(partial, 0.0)
        if name == "all":
            left = np.divide(
                given[:, 0, 0], covariance[:, 0, 0], out=np.zeros(len(draws)), where=covariance[:, 0, 0] > 0
            )
            scores["delta_r2[all]"] = _score(left * np.sign(partial) * partial**2, 0.0)
    return scores


def _covariances(columns: Array, weights: Array) -> Array:
    """Return (draws, columns, columns) weighted covariances of (subjects, columns)."""
    q = columns.shape[1]
    total = weights.sum(1)
    total[total == 0] = np.nan  # A draw without anybody whose covariates are known says nothing.
    centred = columns - columns.mean(0)  # Against cancellation; the weighted mean is taken off below.
    mean = weights @ centred / total[:, None]
    second = (weights @ (centred[:, :, None] * centred[:, None, :]).reshape(len(columns), -1)).reshape(-1, q, q)
    found: Array = second / total[:, None, None] - mean[:, :, None] * mean[:, None, :]
    return found


def _given(covariance: Array) -> Array:
    """Return (draws, 2, 2) covariance of the first two columns given all others."""
    inverse = np.linalg.pinv(covariance[:, 2:, 2:], rcond=1e-10, hermitian=True)
    cross = covariance[:, :2, 2:]
    given: Array = covariance[:, :2, :2] - cross @ inverse @ cross.transpose(0, 2, 1)
    return given


def _correlation(covariance: Array, i: int, j: int) -> Array:
    power = covariance[:, i, i] * covariance[:, j, j]
    found: Array = np.divide(
        covariance[:, i, j], np.sqrt(np.maximum(power, 0)), out=np.full(len(power), np.nan), where=power > 1e-24
    )
    return found


def _score(values: Array, chance: float | None) -> MetricScore:
    low, high = percentile_interval(values[1:])
    value = float(values[0]) if np.isfinite(values[0]) else None
    return MetricScore(
        value=value,
        low=None if value is None else low,
        high=None if value is None else high,
        unit="",
        higher_is_better=True,
        chance=chance,
    )


# ---------------------------------------------------------------- site


def site_leak(predictions: pd.DataFrame, *, seed: int, n_bootstrap: int = N_BOOTSTRAP) -> MetricScore:
    """Return how well the site can be told from a representation: balanced accuracy over sites, held out.

    Parameters
    ----------
    predictions
        One row a held-out subject: ``participant_id``, ``site``, ``said``, and where known ``family``.
    seed, n_bootstrap
        Of the bootstrap over subjects.
    """
    table = predictions.sort_values("participant_id")
    sites, place = np.unique(table["site"].astype(str), return_inverse=True)
    right = (table["said"].astype(str) == table["site"].astype(str)).to_numpy(float)
    family = family_numbers(table["family"]) if "family" in table else None
    weights = np.concatenate([np.ones((1, len(table))), bootstrap_weights(len(table), n_bootstrap, seed, family)])
    recalls = []
    for k in range(len(sites)):
        own = weights * (place == k)
        n = own.sum(1)
        recalls.append(np.divide(own @ right, n, out=np.full(len(n), np.nan), where=n > 0))
    values = np.mean(recalls, axis=0)  # NaN where a draw holds nobody of a site: those draws say nothing.
    return _score(values, 1 / len(sites))


# ---------------------------------------------------------------- units that are not there


def missing_units(present: NDArray[np.bool_], target: Array, names: Sequence[str]) -> str:
    """Return what a reader must know if units are missing where the target is another one; empty if not so.

    A network makes other tokens of the units that are there where one is missing, and a probe can read that: an
    untrained transformer told patients without one unit of twenty from controls with an AUROC of .73.

    Parameters
    ----------
    present
        (subjects, units) whether everything of a subject has the unit.
    target
        (subjects,).
    names
        Of the units.
    """
    groups: dict[bytes, list[int]] = {}
    for u in range(present.shape[1]):
        if MIN_MISSING <= present[:, u].sum() <= len(present) - MIN_MISSING:
            groups.setdefault(present[:, u].tobytes(), []).append(u)
    if not groups or target.min() == target.max():
        return ""
    found = [
        (scipy.stats.mannwhitneyu(target[(own := present[:, u[0]])], target[~own]).pvalue, u) for u in groups.values()
    ]
    p, units = min(found, key=lambda x: float(x[0]))
    adjusted = min(1.0, float(p) * len(groups))
    if adjusted >= MISSING_P:
        return ""
    n = int((~present[:, units[0]]).sum())
    others = f" and {len(units) - 1} more" if len(units) > 1 else ""
    return (
        f"{MISSING_UNITS}: {names[units[0]]}{others}, in {n} of {len(present)} "
        f"subjects (Mann–Whitney, Bonferroni p {adjusted:.1g}). A network shows which units it was given, so that this "
        "can be read as if it were signal"
    )

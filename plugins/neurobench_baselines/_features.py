"""What baselines on recordings have in common: signals, states, and one row a subject."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from neurobench import Cohort, DataError, Recording

Array = NDArray[np.float64]

SMALLEST = 1e-12
"""Share of the total below which power is rounding error."""


def common_states(cohort: Cohort) -> tuple[str, ...]:
    """Return the states that every subject was recorded in.

    Raises
    ------
    DataError
        If there is none.
    """
    by_subject = [{r.state for r in cohort.recordings_of(s)} for s in cohort.subjects]
    shared = set.intersection(*by_subject) if by_subject else set()
    if not shared:
        found = ", ".join(sorted(set().union(*by_subject)))
        raise DataError(
            f"the training subjects of {cohort.dataset} share no state: between them they have {found}.",
            allowed="at least one state that everybody was recorded in",
        )
    return tuple(sorted(shared))


def signal(recording: Recording) -> Array:
    """Return (units, times) of a recording, centred; NaN where a unit is missing, a patch by its mean over voxels."""
    stored = recording.open()
    data = stored.mean(2, dtype=np.float64) if stored.ndim == 3 else np.array(stored, np.float64)
    data -= data.mean(1, keepdims=True)
    data[~recording.present] = np.nan
    return data


def regional(recording: Recording, cohort: Cohort) -> Array:
    """Return (regions, times) for a volume, whose patches are too many to be paired; (units, times) for others."""
    data = signal(recording)
    share = cohort.units.region_share.astype(float)
    if cohort.signal != "volume" or share.shape[1] < 2:
        return data
    known = np.isfinite(data[:, 0])
    weight = share * known[:, None]
    total = weight.sum(0)
    means = weight.T @ np.nan_to_num(data)
    return np.where(total[:, None] > 0, means / np.maximum(total, SMALLEST)[:, None], np.nan)


def average(rows: list[Array]) -> Array:
    """Return the mean over recordings of what is known in any of them; NaN elsewhere."""
    stacked = np.stack(rows)
    known = np.isfinite(stacked)
    total, count = np.where(known, stacked, 0.0).sum(0), known.sum(0)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def subject_rows(cohort: Cohort, states: tuple[str, ...], row: Callable[[Recording], Array]) -> Array:
    """Return (subjects, states, …): the average over a subject's recordings of each state; NaN without one."""
    found: list[list[Array | None]] = []
    for subject in cohort.subjects:
        recordings = cohort.recordings_of(subject)
        per_state = [[row(r) for r in recordings if r.state == state] for state in states]
        found.append([average(rows) if rows else None for rows in per_state])
    shape = next((r.shape for rows in found for r in rows if r is not None), None)
    if shape is None:
        raise DataError(f"no subject of {cohort.dataset} was recorded in {', '.join(states)}.")
    return np.stack([np.stack([np.full(shape, np.nan) if r is None else r for r in rows]) for rows in found])

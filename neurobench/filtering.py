"""Band-pass, resampling and removal of signals of no interest, as one linear map along time.

Everything done to a recording along time is linear, so for recordings of up to :data:`LONGEST` samples (every BOLD
run) the whole chain is worked out once, on unit impulses, and applied to all units or voxels as one matrix product.
Longer recordings (MEG) are filtered as they are, some units at a time.
"""

from __future__ import annotations

import functools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from neurobench.errors import DataError

__all__ = ["SAME_SFREQ", "Temporal", "band_pass", "resample"]

SAME_SFREQ = 0.01
"""Relative difference below which two sampling frequencies count as one."""

LONGEST = 2048
"""Samples of the longest recording whose chain is kept as a matrix (32 MiB)."""

RANK = 1e-8
"""Singular values of the regressors below this fraction of the largest are rounding error."""


def band_pass(data: NDArray[np.float64], sfreq: float, band_hz: tuple[float, float] | None) -> NDArray[np.float64]:
    """Band-pass (units, times[, voxels]) without phase shift: second-order Butterworth, forward and backward.

    An upper edge at or above .95 of the Nyquist frequency leaves the high-pass alone.
    """
    if band_hz is None:
        return data
    low, high = band_hz
    nyquist = sfreq / 2
    if high < 0.95 * nyquist:
        sos = scipy.signal.butter(2, [low, high], btype="bandpass", fs=sfreq, output="sos")
    else:
        sos = scipy.signal.butter(2, low, btype="highpass", fs=sfreq, output="sos")
    # Three periods of the lower edge settle the filter, as far as the recording allows.
    pad = min(data.shape[1] - 1, math.ceil(3 * sfreq / low))
    mean = data.mean(axis=1, keepdims=True)
    return np.asarray(scipy.signal.sosfiltfilt(sos, data - mean, axis=1, padlen=pad))


def resample(data: NDArray[np.float64], sfreq: float, target: float) -> NDArray[np.float64]:
    """Resample (units, times[, voxels]) down from ``sfreq`` to ``target`` Hz; within 1 % nothing is done."""
    if abs(sfreq - target) <= SAME_SFREQ * target:
        return data
    if target > sfreq:
        raise DataError(f"a recording of {sfreq:g} Hz cannot be resampled up to {target:g} Hz.")
    ratio = Fraction(target / sfreq).limit_denominator(1000)
    return np.asarray(scipy.signal.resample_poly(data, ratio.numerator, ratio.denominator, axis=1, padtype="line"))


@functools.lru_cache(maxsize=16)
def _impulse_responses(
    n_times: int, sfreq: float, target: float, band_hz: tuple[float, float] | None
) -> NDArray[np.float64]:
    """Return (times, times out): row i is what becomes of a unit impulse at sample i."""
    return resample(band_pass(np.eye(n_times), sfreq, band_hz), sfreq, target)


class Temporal:
    """What is done to every row of one recording along time.

    Parameters
    ----------
    n_times, sfreq
        Samples and sampling frequency (Hz) of the recording.
    target
        Sampling frequency afterwards in Hz.
    band_hz
        Band-pass, or None.
    regressors
        (times, regressors) to remove by least squares, or None. They go through the same filter first, as removing
        unfiltered signals from filtered data, or filtering after removing, brings back what was removed
        (doi:10.1002/hbm.24528). A linear trend is removed with them.
    """

    def __init__(
        self,
        n_times: int,
        sfreq: float,
        target: float,
        band_hz: tuple[float, float] | None,
        regressors: NDArray[Any] | None = None,
    ) -> None:
        self.n_times, self.sfreq, self.target, self.band_hz = n_times, sfreq, target, band_hz
        self.basis = self._basis(regressors)
        self._operators: dict[str, NDArray[np.floating[Any]]] = {}

    def _basis(self, regressors: NDArray[Any] | None) -> NDArray[np.float64] | None:
        """Return (rank, times out) an orthonormal basis of the filtered regressors, constant and trend."""
        if regressors is None:
            return None
        if len(regressors) != self.n_times:
            raise DataError(f"there are regressors of {len(regressors)} volumes for a recording of {self.n_times}.")
        if not np.isfinite(regressors).all():
            raise DataError("the regressors hold values that are not finite.")
        time = np.linspace(-1.0, 1.0, self.n_times)
        rows = np.vstack([np.ones(self.n_times), time, np.asarray(regressors, np.float64).T])
        filtered = self._filtered(rows)
        # Of motion in mm and of signal intensity in thousands neither is noise beside the other.
        norms = np.linalg.norm(filtered, axis=1, keepdims=True)
        kept = filtered[norms[:, 0] > RANK * np.linalg.norm(rows, axis=1)]
        if not len(kept):
            return None
        _, size, basis = np.linalg.svd(kept / np.linalg.norm(kept, axis=1, keepdims=True), full_matrices=False)
        found: NDArray[np.float64] = basis[size > RANK * size[0]]
        return found

    def _filtered(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.n_times > LONGEST:
            return resample(band_pass(rows, self.sfreq, self.band_hz), self.sfreq, self.target)
        return rows @ _impulse_responses(self.n_times, self.sfreq, self.target, self.band_hz)

    def _operator(self, dtype: type[np.floating[Any]]) -> NDArray[np.floating[Any]]:
        """Return (times, times out)."""
        name = np.dtype(dtype).name
        if name not in self._operators:
            operator = _impulse_responses(self.n_times, self.sfreq, self.target, self.band_hz)
            if self.basis is not None:
                operator = operator - (operator @ self.basis.T) @ self.basis
            self._operators[name] = np.ascontiguousarray(operator, dtype)
        return self._operators[name]

    def __call__(self, block: NDArray[Any]) -> NDArray[np.floating[Any]]:
        """Return (units, times out[, voxels]) of a finite (units, times[, voxels]) block."""
        if block.ndim == 3:
            # Float32 is enough here: what comes of it is stored as float16.
            operator = self._operator(np.float32).T
            return np.asarray(np.matmul(operator, np.asarray(block, np.float32)))
        rows = np.asarray(block, np.float64)
        if self.n_times <= LONGEST:
            return np.asarray(rows @ self._operator(np.float64))
        filtered = self._filtered(rows)
        if self.basis is not None:
            filtered = filtered - (filtered @ self.basis.T) @ self.basis
        return filtered

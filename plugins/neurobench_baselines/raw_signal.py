"""Variance and relative band power of every unit: what is in the signal before anything is learned."""

from __future__ import annotations

import numpy as np
import scipy
from numpy.typing import NDArray

from neurobench import Baseline, Cohort, Recording, hookimpl
from neurobench_baselines._features import SMALLEST, common_states, signal, subject_rows

BANDS_HZ = {
    "fmri": ((0.01, 0.04), (0.04, 0.07), (0.07, 0.1)),
    "meg": ((1.0, 4.0), (4.0, 8.0), (8.0, 13.0), (13.0, 30.0)),
}
SEGMENT_S = {"fmri": 100.0, "meg": 2.0}
"""Length of a spectrum's segment: two periods of the slowest band."""


class RawSignal(Baseline):
    """Log variance, and log share of the power in each band, of every unit and state."""

    name = "raw_signal"
    summary = "log variance and log relative band power of every unit"

    def fit(self, cohort: Cohort) -> None:
        """Learn which states everybody has."""
        self.states = common_states(cohort)

    def transform(self, cohort: Cohort) -> NDArray[np.float64]:
        """Return (subjects, states · units · (1 + bands))."""

        def row(recording: Recording) -> NDArray[np.float64]:
            return features(signal(recording), cohort.sfreq, cohort.modality)

        return subject_rows(cohort, self.states, row).reshape(len(cohort.subjects), -1)


def features(data: NDArray[np.float64], sfreq: float, modality: str) -> NDArray[np.float64]:
    """Return (units, 1 + bands) of (units, times); bands above the Nyquist frequency are left out."""
    bands = [(low, high) for low, high in BANDS_HZ[modality] if low < sfreq / 2]
    known = np.isfinite(data).all(1)
    result = np.full((len(data), 1 + len(bands)), np.nan)
    data = data[known]
    segment = min(data.shape[1], round(SEGMENT_S[modality] * sfreq))
    # Spectra are interpolated to at least eight bins a band, so that a short recording has some in each.
    narrowest = min(high - low for low, high in bands)
    n_fft = max(segment, round(8 * sfreq / narrowest))
    frequency, power = scipy.signal.welch(data, sfreq, nperseg=segment, nfft=n_fft, detrend=without_trend)
    inside = [(frequency >= low) & (frequency < high) for low, high in bands]
    per_band = np.stack([power[:, i].sum(1) for i in inside], 1)
    total = np.maximum(per_band.sum(1, keepdims=True), np.finfo(float).tiny)
    variance = np.maximum(data.var(1), np.finfo(float).tiny)
    result[known] = np.column_stack([np.log(variance), np.log(per_band / total + SMALLEST)])
    return result


def without_trend(segments: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (…, times) segments less their lines of best fit; scipy takes a general solver to every batch."""
    time = np.linspace(-1.0, 1.0, segments.shape[-1])
    time /= np.linalg.norm(time)
    centred = segments - segments.mean(-1, keepdims=True)
    return np.asarray(centred - (centred @ time)[..., None] * time)


@hookimpl
def register_baselines() -> list[type[Baseline]]:
    """Register the baseline."""
    return [RawSignal]

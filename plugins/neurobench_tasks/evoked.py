"""Responses to events: the averaged reconstruction of hidden epochs against the real average."""

from __future__ import annotations

import math

from neurobench import Cohort, ConfigError, EvokedTask, Metric, hookimpl


class Evoked(EvokedTask):
    """Evoked responses of held-out subjects, every row under the same masks.

    Each epoch is hidden piece by piece, so that every sample of it is predicted exactly once, and predictions are
    averaged over epochs as the real signal is, less the mean up to the event (``baseline=(None, 0)`` in MNE).

    Parameters
    ----------
    tile
        ``units``: half of the sites for the whole epoch, then the other half: how the response spreads over sensors.
        ``time``: one patch after the other, in all units: how the response goes on in time.
    tmin_s, tmax_s
        First and last sample of an epoch, in seconds from the event.
    peaks
        ``state:from-to`` or ``condition:from-to`` in seconds, joined by ``+``: where the peak of the global field power
        is looked for; a condition goes before a state, and without either it is the largest one after the event.
    max_epochs
        Epochs that are averaged at most a subject, state and condition, evenly spaced.
    """

    name = "evoked"
    summary = "averaged reconstruction against the real evoked response: waveform r, GFP r, peak latency and amplitude"
    metrics = (
        Metric("waveform_r", "", True, 0.0, 1.0),
        Metric("gfp_r", "", True, 0.0, 1.0),
        Metric("peak_latency_error", "ms", False, math.nan, 0.0),
        Metric("peak_amplitude_ratio", "", True, 0.0, 1.0),
        Metric("topography_r", "", True, 0.0, 1.0),
    )

    def __init__(
        self,
        *,
        tile: str = "units",
        tmin_s: float = -0.2,
        tmax_s: float = 0.8,
        peaks: str = "auditory:0.08-0.13+somatosensory:0.02-0.07",
        max_epochs: int = 100,
    ) -> None:
        if tile not in ("units", "time"):
            raise ConfigError(f"evoked cannot hide epochs by {tile!r}.", allowed="tile=units, tile=time")
        if not -60 <= tmin_s < tmax_s <= 60 or tmax_s <= 0:
            raise ConfigError(
                f"evoked cannot take epochs from {tmin_s:g} to {tmax_s:g} s.",
                allowed="tmin_s below tmax_s, and tmax_s above 0",
            )
        if max_epochs < self.MIN_EPOCHS:
            raise ConfigError(f"evoked cannot average {max_epochs} epochs.", allowed=f"{self.MIN_EPOCHS} or more")
        self._tile, self._span_s, self._max_epochs = tile, (tmin_s, tmax_s), max_epochs
        self._peaks = dict(_peak(part, tmax_s) for part in peaks.split("+")) if peaks else {}

    @property
    def tile(self) -> str:
        """What is hidden together."""
        return self._tile

    @property
    def span_s(self) -> tuple[float, float]:
        """First and last sample of an epoch in seconds."""
        return self._span_s

    @property
    def max_epochs(self) -> int:
        """Epochs averaged at most."""
        return self._max_epochs

    def peak_window_s(self, state: str, condition: str) -> tuple[float, float]:
        """Return where a response's peak is looked for: its condition's window, its state's, or all after the event."""
        everywhere = (max(0.0, self._span_s[0]), self._span_s[1])
        return self._peaks.get(condition, self._peaks.get(state, everywhere))

    def refuses(self, cohort: Cohort) -> str:
        """Refuse cohorts without events, naming the states that have none, and windows that hold no whole epoch."""
        if cohort.n_voxels > 1:
            return "evoked responses are those of sensors or parcels, and a unit of this cohort is a patch of a volume"
        states = sorted({r.state for r in cohort.recordings})
        counts: dict[tuple[str, str, str], int] = {}
        for recording in cohort.recordings:
            for event in recording.events:
                key = recording.subject, recording.state, event.condition
                counts[key] = counts.get(key, 0) + 1
        without = [s for s in states if not any(key[1] == s for key in counts)]
        if not counts:
            return f"{cohort.dataset} has no events: none in any recording of the states {', '.join(without)}"
        if max(counts.values()) < self.MIN_EPOCHS:
            found = ", ".join(sorted({f"{state}/{condition}" for _, state, condition in counts}))
            none = f"; states without any: {', '.join(without)}" if without else ""
            return (
                f"no subject of {cohort.dataset} has {self.MIN_EPOCHS} events of one condition in one state; "
                f"the most are {max(counts.values())}, of {found}{none}"
            )
        n_times = round(self._span_s[1] * cohort.sfreq) - round(self._span_s[0] * cohort.sfreq) + 1
        needed = math.ceil(n_times / cohort.samples_per_patch)
        if needed > cohort.patches_per_window or (self._tile == "time" and cohort.patches_per_window < 2):
            return (
                f"an epoch of {n_times / cohort.sfreq:g} s needs {needed} patches, and a window has "
                f"{cohort.patches_per_window}; use a longer --window-s or a shorter epoch"
            )
        return ""


def _peak(text: str, tmax_s: float) -> tuple[str, tuple[float, float]]:
    """Return name and window of ``auditory:0.08-0.13``."""
    name, colon, window = text.strip().partition(":")
    low, dash, high = window.partition("-")
    try:
        span = float(low), float(high)
    except ValueError:
        colon = ""
        span = 0.0, 0.0
    if not (name and colon and dash) or not span[0] < span[1]:
        raise ConfigError(
            f"evoked cannot look for a peak in {text.strip()!r}.",
            allowed="name:from-to in seconds, joined by +, such as auditory:0.08-0.13",
            next_step="The name is a state or a condition.",
        )
    # A window for a state that is not in this run must not stand in the way of a shorter epoch.
    return name, (span[0], min(span[1], tmax_s))


@hookimpl
def register_tasks() -> list[type[EvokedTask]]:
    """Register the task."""
    return [Evoked]

"""Which state a window was recorded in: rest, auditory or somatosensory stimulation, a task."""

from __future__ import annotations

from neurobench import WINDOW_METRICS, Cohort, ConfigError, Recording, WindowTask, hookimpl


class State(WindowTask):
    """Tell the states of a cohort's recordings apart, one window at a time.

    States are usually recordings of their own, one after the other: whatever else changed in between, such as the
    position of the head, tells them apart as well.

    Parameters
    ----------
    windows
        Windows at most, a subject and state, evenly spaced.
    """

    name = "state"
    summary = "state that a window comes from (rest, auditory, …), folds over subjects; balanced accuracy"
    metrics = WINDOW_METRICS

    def __init__(self, *, windows: int = 4) -> None:
        if windows < 1:
            raise ConfigError(f"state cannot take {windows} windows of a subject and state.", allowed="1 or more")
        self._windows = windows

    @property
    def max_windows(self) -> int:
        """Windows at most, a subject and state."""
        return self._windows

    def label(self, recording: Recording) -> str:
        """Return the state."""
        return recording.state

    def refuses(self, cohort: Cohort) -> str:
        """Refuse cohorts of one state, and those whose recordings of all states but one are shorter than a window."""
        states = sorted({r.state for r in cohort.recordings})
        if len(states) < 2:
            return f"all recordings of {cohort.dataset} are of the state {', '.join(states) or 'none'}; two are needed"
        long = sorted({r.state for r in cohort.recordings if r.n_times >= cohort.samples_per_window})
        if len(long) < 2:
            short = ", ".join(s for s in states if s not in long)
            return f"recordings of the states {short} are shorter than a window; use a shorter --window-s"
        people = {s: {r.subject for r in cohort.recordings if r.state == s} for s in long}
        few = [s for s in long if len(people[s]) < 2]
        if few:
            return f"the state {few[0]} of {cohort.dataset} was recorded in one subject; a fold needs two"
        return ""


@hookimpl
def register_tasks() -> list[type[WindowTask]]:
    """Register the task."""
    return [State]

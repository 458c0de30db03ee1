"""Whose window it is, among people whom nobody was trained on.

The functional connectome alone identifies people across days (Finn et al. 2015, 10.1038/nn.4135): the baseline to beat.
"""

from __future__ import annotations

from collections import Counter

from neurobench import (
    RETRIEVAL_METRICS,
    Cohort,
    ConfigError,
    Recording,
    RetrievalTask,
    RetrievalWindow,
    closest,
    hookimpl,
)

KINDS = {
    "session": "another session",
    "run": "another recording of the same state",
    "time": "a later part of the same recording",
}
"""What a query is, the hardest first: what is alike across days is a person, within a recording it may be its noise."""

GAP_PATCHES = 4
"""Patches between gallery and query of one recording, unless the user says seconds: 60 s of BOLD, 1 s of MEG."""

MIN_PEOPLE = 10


class Reidentification(RetrievalTask):
    """Find the person that a window belongs to, among the held-out people of its fold.

    The gallery has one entry a person, from the first session; queries are windows of other sessions. Where most people
    have one session it is the first recording against others of the same state, and where they have one recording its
    first windows against its last ones, with a gap in which neither lies.

    Parameters
    ----------
    across
        ``session``, ``run``, ``time``; ``auto``: the first of these that at least half of the people have.
    state
        State of the recordings; empty: the one that most people were recorded in.
    gap_s
        Seconds that lie at least between gallery and query of one recording; 0: four patches.
    max_windows
        Windows of a person at most, in the gallery, and as many to look for.
    max_gallery
        People of a fold's gallery at most.
    """

    name = "reidentification"
    summary = "whose window it is, among held-out people: later windows, runs or sessions in a gallery; top-1, mAP"
    reference = "10.1038/nn.4135"
    metrics = RETRIEVAL_METRICS
    gallery_from = "test"

    def __init__(
        self,
        *,
        across: str = "auto",
        state: str = "",
        gap_s: float = 0.0,
        max_windows: int = 2,
        max_gallery: int = 150,
    ) -> None:
        if across not in ("auto", *KINDS):
            raise ConfigError(
                f"reidentification cannot look across {across!r}.",
                allowed=", ".join(("auto", *KINDS)),
                likely=closest(across, KINDS),
            )
        if gap_s < 0 or max_windows < 1 or not 2 <= max_gallery <= 150:
            raise ConfigError(
                f"reidentification cannot take gap_s={gap_s:g}, max_windows={max_windows}, max_gallery={max_gallery}.",
                allowed="gap_s from 0, max_windows from 1, max_gallery from 2 to 150",
            )
        self._across, self._state, self._gap_s = across, state, gap_s
        self._windows, self._max_gallery = max_windows, max_gallery

    @property
    def max_gallery(self) -> int:
        """People of a fold's gallery at most."""
        return self._max_gallery

    def windows(self, cohort: Cohort) -> tuple[RetrievalWindow, ...]:
        """Return the first windows of the gallery's recordings and the last ones of the others."""
        found = self._by_kind(cohort)
        return tuple(w for own in found[self._kind(cohort, found)].values() for w in own)

    def remark(self, cohort: Cohort) -> str:
        """Return what queries are, and how many people have none."""
        found = self._by_kind(cohort)
        kind = self._kind(cohort, found)
        without = len(cohort.subjects) - len(found[kind])
        gap = ""
        if kind == "time":
            gap = f", {self._gap(cohort):g} s or more apart: its motion, noise and position of the head are alike too"
        left_out = f"; {without} people have none and are left out" if without else ""
        return f"queries are {KINDS[kind]} (state {self._of_state(cohort)}){gap}{left_out}"

    def refuses(self, cohort: Cohort) -> str:
        """Refuse cohorts in which too few people have two windows that can be told apart from one recording."""
        found = self._by_kind(cohort)
        kind, state = self._kind(cohort, found), self._of_state(cohort)
        least = self.MIN_GAP_PATCHES * cohort.samples_per_patch / cohort.sfreq
        if kind == "time" and self._gap(cohort) < least:
            return f"gap_s={self._gap_s:g} is too short: the filter makes windows alike that are within {least:g} s"
        if len(found[kind]) >= MIN_PEOPLE:
            return ""
        window_s, gap_s = cohort.samples_per_window / cohort.sfreq, self._gap(cohort)
        lacks = {
            "session": "a second session",
            "run": "a second recording",
            "time": f"a recording of {2 * window_s + gap_s:g} s (two windows of {window_s:g} s, a gap of {gap_s:g} s), "
            "or a second recording or session",
        }
        return (
            f"{len(found[kind])} people of {cohort.dataset} have, in the state {state or 'none'}, {lacks[kind]}; "
            f"{MIN_PEOPLE} are needed; a shorter --window-s may help"
        )

    # ------------------------------------------------------------ which windows

    def _gap(self, cohort: Cohort) -> float:
        return self._gap_s or GAP_PATCHES * cohort.samples_per_patch / cohort.sfreq

    def _of_state(self, cohort: Cohort) -> str:
        people = Counter(state for state, _ in {(r.state, r.subject) for r in cohort.recordings})
        return self._state or min(people, key=lambda s: (-people[s], s), default="")

    def _kind(self, cohort: Cohort, found: dict[str, dict[str, list[RetrievalWindow]]]) -> str:
        if self._across != "auto":
            return self._across
        enough = max(MIN_PEOPLE, len(cohort.subjects) / 2)
        return next((k for k in KINDS if len(found[k]) >= enough), "time")

    def _by_kind(self, cohort: Cohort) -> dict[str, dict[str, list[RetrievalWindow]]]:
        """Return kind, then person, then windows; people without a query or without an entry are not there."""
        state = self._of_state(cohort)
        own: dict[str, list[int]] = {}
        for number, recording in enumerate(cohort.recordings):
            if recording.state == state:
                own.setdefault(recording.subject, []).append(number)
        found: dict[str, dict[str, list[RetrievalWindow]]] = {kind: {} for kind in KINDS}
        for subject, numbers in own.items():
            of = {n: cohort.recordings[n] for n in sorted(numbers, key=lambda n: _when(cohort.recordings[n]))}
            first = next(iter(of.values()))
            parts = {
                "session": (
                    [(n, 0, None) for n, r in of.items() if r.session == first.session],
                    [(n, 0, None) for n, r in of.items() if r.session != first.session],
                ),
                "run": ([(n, 0, None) for n in list(of)[:1]], [(n, 0, None) for n in list(of)[1:]]),
            }
            longest = max(of, key=lambda n: of[n].n_times)
            half = (of[longest].n_times - round(self._gap(cohort) * cohort.sfreq)) // 2
            n_times = of[longest].n_times
            parts["time"] = ([(longest, 0, half)], [(longest, n_times - half, n_times)]) if half > 0 else ([], [])
            for kind, (gallery, query) in parts.items():
                early = _starts(cohort, gallery)[: self._windows]
                late = _starts(cohort, query)[-self._windows :]
                if early and late:
                    roles = [("gallery", w) for w in early] + [("query", w) for w in late]
                    found[kind][subject] = [RetrievalWindow(n, start, subject, role) for role, (n, start) in roles]
        return found


def _when(recording: Recording) -> tuple[str, str, str]:
    return recording.session, recording.run, recording.id


def _starts(cohort: Cohort, parts: list[tuple[int, int, int | None]]) -> list[tuple[int, int]]:
    """Return recording and first sample of every whole window."""
    return [(n, s) for n, a, b in parts for s in cohort.whole_windows(cohort.recordings[n], a, b)]


@hookimpl
def register_tasks() -> list[type[RetrievalTask]]:
    """Register the task."""
    return [Reidentification]

"""A retrieval task whose queries lie next to what they are looked for with."""

from __future__ import annotations

from neurobench import RETRIEVAL_METRICS, RetrievalTask, RetrievalWindow


class NeighboursInGallery(RetrievalTask):
    """The second window of every first recording among the first ones, one right after the other."""

    name = "neighbours_in_gallery"
    summary = "cheats: no gap between gallery and query"
    metrics = RETRIEVAL_METRICS
    gallery_from = "test"
    max_gallery = 100

    def windows(self, cohort):
        first = {r.subject: n for n, r in reversed(list(enumerate(cohort.recordings)))}
        both = ((0, "gallery"), (cohort.samples_per_window, "query"))
        return [RetrievalWindow(n, start, subject, role) for subject, n in first.items() for start, role in both]

    def refuses(self, cohort) -> str:
        return ""

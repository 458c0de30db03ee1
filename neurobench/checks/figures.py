"""Checks of figures: what they draw of small simulated runs, and of one that lacks everything."""

from __future__ import annotations

import functools
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from neurobench.checks.common import Check, Skip, build, demand
from neurobench.contracts import Drawing, Figure
from neurobench.errors import CheckError
from neurobench.evidence import Evidence
from neurobench.plugins import Registry
from neurobench.specimen_evidence import KINDS, SpecimenKind, empty_evidence, simulated_evidence

SMALLEST_PT = 6.5
"""Points of type below which nobody reads a figure that is 680 px wide."""

SECTIONS = ("reconstruction", "evoked", "comparison", "pretraining", "interpretation")


def _drawn(cls: type[Figure], evidence: Evidence) -> list[Drawing]:
    made = build(cls).draw(evidence)
    if made is None:
        raise CheckError("draw returns None: it has to yield drawings.")
    drawings = list(made)
    wrong = next((type(d).__name__ for d in drawings if not isinstance(d, Drawing)), "")
    if wrong:
        raise CheckError(f"draw yields {wrong}, not a Drawing.")
    return drawings


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Return where the simulated runs lie that all checks look at; removed when this process ends."""
    return tempfile.TemporaryDirectory()


@functools.cache
def _run(kind: SpecimenKind) -> Evidence:
    """Return a simulated run, made once."""
    (folder := Path(_folder().name) / kind).mkdir()
    return simulated_evidence(folder, kind)


@functools.lru_cache(maxsize=1)
def _seen(cls: type[Figure]) -> tuple[tuple[list[Drawing], ...], tuple[str, ...]]:
    """Return what a figure draws of each simulated run, and the traces that it leaves: drawn once for all checks."""
    from matplotlib import pyplot

    seen, traces = [], []
    before = pyplot.get_fignums()
    for kind in KINDS:
        run = _run(kind)
        # A table of its own: what one figure changes is not another one's to draw.
        evidence = replace(run, table=run.table.copy(), _cache={})
        files = set(run.folder.rglob("*"))
        seen.append(_drawn(cls, evidence))
        if not run.table.equals(evidence.table):
            traces.append("changes `evidence.table`, from which the next figure is drawn: work on a copy")
        for file in sorted(set(run.folder.rglob("*")) - files):
            traces.append(f"writes {file.name} into the output folder")
            shutil.rmtree(file, ignore_errors=True) if file.is_dir() else file.unlink(missing_ok=True)
    if pyplot.get_fignums() != before:
        traces.append("leaves figures open in pyplot; use matplotlib.figure.Figure")
    return tuple(seen), tuple(traces)


def _runs(cls: type[Figure]) -> tuple[list[Drawing], ...]:
    """Return what is drawn of each simulated run."""
    seen, _ = _seen(cls)
    if not any(seen):
        raise Skip("draws nothing of the simulated runs of the checks")
    return seen


def _texts(drawing: Drawing) -> list[Any]:
    from matplotlib.text import Text

    return [t for t in drawing.figure.findobj(Text) if t.get_visible() and t.get_text().strip()]


def nothing_of_nothing(cls: type[Figure], registry: Registry | None, full: bool) -> str:
    """Of a run without a scored row nothing is drawn, and nothing breaks."""
    with tempfile.TemporaryDirectory() as folder:
        names = [d.name for d in _drawn(cls, empty_evidence(Path(folder)))]
    demand([f"draws {n!r} of a run without any scored row" for n in names])
    return ""


def evidence_may_lack(cls: type[Figure], registry: Registry | None, full: bool) -> str:
    """Where the files beside the records are gone nothing breaks."""
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            run = _run(kind)
            shutil.copytree(run.folder / "cohorts", Path(folder) / "cohorts")
            _drawn(cls, replace(run, folder=Path(folder), table=run.table.copy(), _cache={}))
    return ""


def says_what_it_shows(cls: type[Figure], registry: Registry | None, full: bool) -> str:
    """Names are unique; every drawing has a title, a caption, an alternative text, and a section that exists."""
    problems = []
    for drawings in _runs(cls):
        names = [d.name for d in drawings]
        problems += [f"two drawings are called {n!r}" for n in sorted({n for n in names if names.count(n) > 1})]
        for d in drawings:
            problems += [
                f"drawing {d.name!r} has no {what}"
                for what in ("name", "title", "caption", "alt")
                if not str(getattr(d, what)).strip()
            ]
            if d.section not in SECTIONS and not d.section.startswith("task:"):
                problems.append(
                    f"drawing {d.name!r} is for section {d.section!r}; allowed: {', '.join(SECTIONS)}, task:LABEL"
                )
    demand(problems)
    return ""


def says_simulated(cls: type[Figure], registry: Registry | None, full: bool) -> str:
    """A picture of simulated data says so in the picture itself: captions get lost."""
    demand(
        [
            f"drawing {d.name!r} shows simulated data and does not say so in the picture"
            for drawings in _runs(cls)
            for d in drawings
            if not any("simulated" in t.get_text().lower() for t in _texts(d))
        ]
    )
    return ""


def legible(cls: type[Figure], registry: Registry | None, full: bool) -> str:
    """At 680 px wide no text is smaller than a reader can take."""
    problems = []
    for drawings in _runs(cls):
        for d in drawings:
            scale = 6.8 / float(d.figure.get_size_inches()[0])
            small = [t.get_text() for t in _texts(d) if t.get_fontsize() * scale < SMALLEST_PT]
            if small:
                problems.append(f"drawing {d.name!r} has text below {SMALLEST_PT} pt at 680 px: {small[0]!r}")
    demand(problems)
    return ""


def no_trace(cls: type[Figure], registry: Registry | None, full: bool) -> str:
    """The evidence is not changed, no file is written, and pyplot keeps no figure: a report of hundreds must fit."""
    _, traces = _seen(cls)
    demand(list(traces))
    return ""


CHECKS: dict[str, Check] = {
    "nothing-of-nothing": nothing_of_nothing,
    "evidence-may-lack": evidence_may_lack,
    "says-what-it-shows": says_what_it_shows,
    "says-simulated": says_simulated,
    "legible": legible,
    "no-trace": no_trace,
}

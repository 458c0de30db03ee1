"""From an output folder to a report that answers a reviewer's questions: HTML in one file, Markdown, CSV, pictures.

Everything is read from records and evidence; nothing is computed that a record does not hold, except differences
between rows. What is said in words comes from :mod:`neurobench.caveats`.
"""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

import neurobench
from neurobench import citations, report_cohort, report_results
from neurobench.caveats import Caveat, caveats
from neurobench.comparisons import Comparisons, compare_all
from neurobench.contracts import Drawing
from neurobench.errors import ConfigError
from neurobench.evidence import Evidence
from neurobench.plugins import Registry
from neurobench.results import Record, load_evidence, read_record, records_table
from neurobench.runs import partial
from neurobench.tables import TextTable, metric_name, missing

__all__ = ["Picture", "Report", "Section", "TaskSection", "build_report"]

DPI = 160


@dataclass(frozen=True, eq=False)
class Picture:
    """A drawing as PNG."""

    name: str
    title: str
    caption: str
    alt: str
    section: str
    png: bytes

    @property
    def data_uri(self) -> str:
        """The picture as it stands in HTML."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


@dataclass(frozen=True, eq=False)
class TaskSection:
    """One task of a cohort."""

    task: str
    heading: str
    results: TextTable
    details: TextTable
    confounds: TextTable | None
    notes: Sequence[str]
    caveats: Sequence[Caveat]
    pictures: Sequence[Picture]
    comparisons: Sequence[tuple[str, TextTable | None]] = ()

    @property
    def has_apart(self) -> bool:
        """Whether any row is shown without being ranked with the others."""
        return any(line[0].endswith("‡") for line in self.results.rows)


@dataclass(frozen=True, eq=False)
class Section:
    """One cohort under one protocol."""

    anchor: str
    title: str
    dataset: str
    simulated: bool
    summary: Sequence[str]
    caveats: Sequence[Caveat]
    cohort: Sequence[tuple[str, str]]
    flow: TextTable
    sites: TextTable | None
    columns: TextTable
    protocol: Sequence[tuple[str, str]]
    tasks: Sequence[TaskSection]
    pictures: Sequence[Picture]
    alignment: TextTable | None = None
    across: Sequence[tuple[str, TextTable | None]] = ()
    stability: TextTable | None = None
    experts: TextTable | None = None


@dataclass(frozen=True, eq=False)
class Report:
    """All that a report shows."""

    out: str
    written: str
    version: str
    sections: Sequence[Section]
    commands: Sequence[str]
    software: Sequence[tuple[str, str]]
    components: TextTable
    citations: Sequence[str]
    methods: Sequence[str]
    restricted: Sequence[str]
    failed: Sequence[str]
    partial: Sequence[str]


# ---------------------------------------------------------------- building


def build_report(out: Path, registry: Registry, *, figures: bool = True) -> Report:
    """Read an output folder and say what it holds.

    Parameters
    ----------
    out
        Output folder of one or more runs.
    registry
        Figures to draw, and what components cite.
    figures
        Whether to draw.

    Raises
    ------
    StoreError, DataError
        If the folder holds no records, or one that was changed.
    """
    sections, everything = [], []
    cohorts = load_evidence(out)
    compared = {(c.dataset, c.protocol, c.task): c for c in compare_all(out)}
    for n, evidence in enumerate(cohorts):
        records = [read_record(Path(p)) for p in evidence.table["record"]]
        everything += records
        sections.append(_section(n, evidence, records, registry if figures else None, compared))
    if not sections:
        raise ConfigError(
            f"{out} holds failed rows only: there is nothing to report.",
            next_step="See the errors: `neurobench run` with the same options prints them again.",
        )
    environments = [r.environment for r in everything]
    return Report(
        out=out.resolve().name,
        written=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        version=neurobench.__version__,
        sections=sections,
        commands=list(dict.fromkeys(e["command"] for e in environments)),
        software=citations.software(environments),
        components=citations.components(everything),
        citations=list(citations.references(everything, cohorts, registry)),
        methods=list(citations.methods(everything, cohorts)),
        failed=_failed(out),
        partial=partial(out),
        restricted=sorted({s.title for s, e in zip(sections, cohorts, strict=True) if _restricted(e)}),
    )


def _failed(out: Path) -> list[str]:
    """Return what failed with its whole cohort, so that it has no section of its own."""
    table = records_table(out)
    lost = table[(table["fingerprint"] == "") & (table["status"] == "failed")]
    return [f"{dataset}: {error}" for dataset, error in dict.fromkeys(zip(lost["dataset"], lost["error"], strict=True))]


def _restricted(evidence: Evidence) -> bool:
    return evidence.source == "real" and evidence.cohort["card"]["may_leave"] == "aggregates"


def _section(
    n: int,
    evidence: Evidence,
    records: Sequence[Record],
    registry: Registry | None,
    compared: Mapping[tuple[str, str, str], Comparisons],
) -> Section:
    said = caveats(evidence, records)
    pictures, broken = _pictures(evidence, registry) if registry is not None else ([], [])
    said += broken
    own = {task: compared[evidence.dataset, str(rows["protocol"].iloc[0]), task] for task, rows in evidence.tasks()}
    tasks = [_task(task, rows, records, said, pictures, own[task]) for task, rows in evidence.tasks()]
    cohort = evidence.cohort
    return Section(
        anchor=f"cohort-{n + 1}",
        title=evidence.title,
        dataset=evidence.dataset,
        simulated=evidence.source == "simulated",
        summary=[
            report_results.in_one_line(task, rows) + report_results.separated(own[task])
            for task, rows in evidence.tasks()
        ],
        caveats=[c for c in said if not c.task],
        cohort=list(report_cohort.facts(evidence)),
        flow=report_cohort.flow(cohort, records),
        sites=report_cohort.sites(cohort),
        columns=report_cohort.participants(cohort),
        protocol=list(report_cohort.protocol(records[0])),
        tasks=tasks,
        pictures=[p for p in pictures if not p.section.startswith("task:")],
        alignment=report_results.alignment_table(evidence, records),
        across=list(report_results.across(list(own.values()))),
        stability=report_results.stability_table(evidence),
        experts=report_results.experts_table(evidence),
    )


def _pictures(evidence: Evidence, registry: Registry) -> tuple[list[Picture], list[Caveat]]:
    """Draw everything; a figure that fails is said, and the others go on."""
    found: list[Picture] = []
    broken: list[Caveat] = []
    for name, cls in registry.figures.items():
        try:
            found += [_picture(d) for d in cls().draw(evidence)]
        except Exception as error:  # whatever a plugin raises must not cost the report
            broken.append(Caveat("warning", "figure-failed", f"Figure {name} failed: {type(error).__name__}: {error}"))
    return found, broken


def _picture(drawing: Drawing) -> Picture:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(drawing.figure)
    buffer = io.BytesIO()
    drawing.figure.savefig(buffer, format="png", dpi=DPI, facecolor="white")
    return Picture(drawing.name, drawing.title, drawing.caption, drawing.alt, drawing.section, buffer.getvalue())


def _task(
    task: str,
    rows: pd.DataFrame,
    records: Sequence[Record],
    said: Sequence[Caveat],
    pictures: Sequence[Picture],
    comparison: Comparisons,
) -> TaskSection:
    own = [r for r in records if r.task.label == task and r.status == "ok"]
    head = rows.iloc[0]
    facts = [metric_name(str(head["metric"])) + (f" in {head['unit']}" if head["unit"] else "")]
    facts.append("higher is better" if head["higher_is_better"] else "lower is better")
    if not missing(head["chance"]):
        facts.append(f"chance {head['chance']:.3g}")
    facts.append(f"n = {int(rows['n_subjects'].max())} held-out subjects")
    return TaskSection(
        task=task,
        heading=" · ".join(facts),
        results=report_results.scores_table(rows, comparison.ranks),
        details=report_results.details_table(own),
        confounds=report_results.confounds_table(own),
        notes=list(dict.fromkeys(note for r in own if r.kind != "filler" for note in r.notes)),
        caveats=[c for c in said if c.task == task],
        pictures=[p for p in pictures if p.section == f"task:{task}"],
        comparisons=list(report_results.comparisons(comparison)),
    )

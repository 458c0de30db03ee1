"""A report as files: HTML in one file, Markdown with its pictures, CSV."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from neurobench.report import Picture, Report, Section
from neurobench.report_results import BELIEF, EXPERTS
from neurobench.store import atomic_write, disk_errors
from neurobench.tables import TextTable, spreadsheet_cell

__all__ = ["write_report"]


def write_report(report: Report, table: pd.DataFrame, folder: Path) -> list[Path]:
    """Write ``report.html`` (one file that needs no other), ``report.md`` with ``figures/``, and ``report.csv``.

    Returns
    -------
    paths
        Of the three.
    """
    html, markdown, csv = (folder / f"report.{end}" for end in ("html", "md", "csv"))
    with disk_errors(html):
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        for old in (folder / "figures").glob("*.png"):
            old.unlink()
        for section in report.sections:
            for picture in (*section.pictures, *(p for t in section.tasks for p in t.pictures)):
                (folder / _file(section, picture)).write_bytes(picture.png)
    atomic_write(html, _html(report))
    atomic_write(markdown, "\n".join(map(_no_tags, _markdown(report))) + "\n")
    atomic_write(csv, table.drop(columns="record").map(spreadsheet_cell).to_csv(index=False))
    return [html, markdown, csv]


def _html(report: Report) -> str:
    return str(_template().render(report=report, flush_right=_flush_right, belief=BELIEF, experts=EXPERTS))


@functools.cache
def _template() -> Any:
    import jinja2

    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return templates.get_template("report.html.j2")


_NUMBER = re.compile(r"[<+−-]?\s?\d*\.?\d+%?( ?[a-zA-Z]{1,3})?( \(.*\)| to .*| ± .*)?|–|")


def _flush_right(grid: TextTable) -> list[bool]:
    """Return for every column whether all of its cells are numbers, intervals or empty."""
    return [all(_NUMBER.fullmatch(str(row[i])) for row in grid.rows) for i in range(len(grid.columns))]


def _file(section: Section, picture: Picture) -> str:
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", picture.name).strip("-")
    return f"figures/{section.anchor}-{name}.png"


def _markdown(report: Report) -> Iterator[str]:
    yield f"# neurobench report: {report.out}\n"
    yield f"Written {report.written} by neurobench {report.version}.\n"
    for title in report.restricted:
        yield f"**{title}: only aggregates may leave this machine; some pictures here show single subjects.**\n"
    yield from (f"**{line}**\n" for line in report.partial)
    yield from (f"**Not in this report, it failed: {line}**\n" for line in report.failed)
    for s in report.sections:
        yield f"## {s.title} ({s.dataset}){' — SIMULATED' if s.simulated else ''}\n"
        yield from (f"- {line}" for line in s.summary)
        yield "\n### What to know first\n"
        yield from (f"- **{c.level}** {c.text}" for c in s.caveats)
        yield "\n### Who is in it\n"
        yield from (f"- {k}: {v}" for k, v in s.cohort)
        for grid in (s.flow, s.sites, s.columns):
            if grid is not None:
                yield "\n" + _markdown_table(grid)
        yield "\n### Protocol\n"
        yield from (f"- {k}: {v}" for k, v in s.protocol)
        for t in s.tasks:
            yield f"\n### {t.task}\n\n{t.heading}\n"
            yield from (f"- **{c.level}** {c.text}" for c in t.caveats)
            yield "\n" + _markdown_table(t.results)
            for words, grid in t.comparisons:
                yield f"\n{words}\n" + ("\n" + _markdown_table(grid) if grid is not None else "")
            if t.confounds is not None:
                yield "\n#### Confounds\n\n" + _markdown_table(t.confounds)
            yield "\n#### All metrics\n\n" + _markdown_table(t.details)
            yield from (f"\n- {note}" for note in t.notes)
            yield from (f"\n![{p.alt}]({_file(s, p)})\n\n*{p.title}.* {p.caption}" for p in t.pictures)
        if s.across:
            yield "\n### All tasks together\n"
            for words, grid in s.across:
                yield f"\n{words}\n" + ("\n" + _markdown_table(grid) if grid is not None else "")
        if s.stability is not None:
            yield "\n### Whether the attributions can be believed\n"
            yield f"{BELIEF}\n"
            yield _markdown_table(s.stability)
        if s.experts is not None:
            yield "\n### How evenly experts are used\n"
            yield f"{EXPERTS}\n"
            yield _markdown_table(s.experts)
        if s.alignment is not None:
            yield "\n### Sensors that are drawn on, and sensors where a response is expected\n"
            yield _markdown_table(s.alignment)
        yield from (f"\n![{p.alt}]({_file(s, p)})\n\n*{p.title}.* {p.caption}" for p in s.pictures)
    yield "\n## To repeat it\n"
    yield from (f"    {c}" for c in report.commands)
    yield "\n" + _markdown_table(TextTable(["software", "version"], report.software))
    yield "\n" + _markdown_table(report.components)
    yield "\n## Methods and sources\n"
    yield from (f"- {line}" for line in (*report.methods, *report.citations))


def _no_tags(text: str) -> str:
    """Return Markdown in which nothing is HTML; code, which is indented, stays as it is."""
    return text if text.startswith("    ") else re.sub(r"<(?=[A-Za-z/!?])", r"\\<", text)


def _markdown_table(grid: TextTable) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(str(c).replace("|", "\\|").replace("\n", " ") for c in cells) + " |"

    rows = [line(grid.columns), "|" + "---|" * len(grid.columns)]
    for i, row in enumerate(grid.rows):
        if i in grid.headings:
            rows.append(line([f"*{grid.headings[i]}*", *[""] * (len(grid.columns) - 1)]))
        rows.append(line(row))
    return "\n".join(rows)

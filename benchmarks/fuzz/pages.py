"""Names from outside in what is shown: they are text on the pages of a board and of a report, and nothing else."""

from __future__ import annotations

import functools
import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from benchmarks.fuzz.reader import Reader
from benchmarks.fuzz.samples import filled
from benchmarks.performance.board import invented
from neurobench.leaderboard import read_board
from neurobench.leaderboard_site import _files
from neurobench.report import Report
from neurobench.report_writing import _html
from neurobench.results import PretrainingRecord, Record, record_text

HOSTILE = (
    b"<script>alert(1)</script>",
    b'"><img src=x onerror=alert(1)>',
    b"' onmouseover='alert(1)' x='",
    b"javascript:alert(1)",
    b"</style></title></textarea><svg onload=alert(1)>",
    b"a{{ 7 * 7 }}{% for x in y %}<!-- ]]> &lt;script&gt; &#60;b&#62;",
    b"see [x](javascript:alert(1)) | a |\n\n# b `<b>`",
    b"../../x/%2e%2e/\\x?<a href=data:text/html,x>",
)
"""Names that would be more than text where they are not taken for it."""


def readers() -> dict[str, Reader]:
    """Return what shows names, by name."""
    return {"site": Reader("name.txt", HOSTILE, _site), "report": Reader("name.txt", HOSTILE, _report)}


class _Tag(HTMLParser):
    """A tag with the names of its attributes, and whether one of its addresses runs something."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, ...]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, *(k for k, _ in attrs)))
        for key, value in attrs:
            address = re.sub(r"[\x00-\x20]", "", value or "").lower()
            if key in ("href", "src", "action") and re.match("(javascript|vbscript|data:text)", address):
                self.found.append(("runs", address[:20]))


@functools.lru_cache(maxsize=4096)
def _tag(html: str) -> tuple[tuple[str, ...], ...]:
    return tuple(_Tag(html).found)


_OPENS = re.compile(r"<[a-zA-Z/!?]")
_WHOLE = re.compile(r"""<[a-zA-Z](?:[^>"']|"[^"]*"|'[^']*')*>""")


def _tags(page: str) -> Counter[tuple[str, ...]]:
    """Return the tags of a page, and how often one begins: thousands are the same, and are parsed once."""
    found: Counter[tuple[str, ...]] = Counter()
    for html, n in Counter(_WHOLE.findall(page)).items():
        for tag in _tag(html):
            found[tag] += n
    # Where a page lets a long name be broken, which depends on the name and does nothing else.
    found["begins",] = len(_OPENS.findall(page)) - found.pop(("wbr",), 0)
    return found


_usual_tags = functools.lru_cache(maxsize=16)(_tags)


def only_text(pages: Sequence[str], usual: Sequence[str]) -> None:
    """Raise AssertionError unless pages have the tags that they have with an ordinary name."""
    for page, with_ordinary in zip(pages, usual, strict=True):
        if more := _tags(page) - _usual_tags(with_ordinary):
            raise AssertionError(f"a name became more than text: {next(iter(more))}")


# ---------------------------------------------------------------- a board


def _name(folder: Path) -> str:
    """Return a name, as long as a record may have one, that no half character keeps from being written."""
    return (folder / "name.txt").read_bytes().decode("utf-8", "replace")[:200]


RULED = (
    "id",
    "content_hash",
    "status",
    "kind",
    "source",
    "may_leave",
    "suite",
    "objective",
    "headline",
    "probe",
    "harmonise",
)
"""Texts of a record that are none of anybody's choice, or where a board is not built of others."""

NAMED = ("parameters", "recipe", "left_out", "environment", "metrics", "confounds", "per_fold")
"""Parts of a record that have names of their own."""


def _saying(name: str, plain: Any) -> Any:
    """Return plain values with every text replaced by a name, and the name among the names."""
    if isinstance(plain, list):
        return [_saying(name, value) for value in plain]
    if not isinstance(plain, dict):
        return name if isinstance(plain, str) else plain
    said = {key: value if key in RULED else _saying(name, value) for key, value in plain.items()}
    for part in said.keys() & NAMED:
        said[part][name] = next(iter(said[part].values()), 1 if part == "left_out" else name)
    return said


def named(name: str) -> list[Record]:
    """Return two records that say a name wherever they may say one."""
    found = []
    for row, kind in ((f"{name} · {name}", "pretrained"), (name, "baseline")):
        plain = _saying(name, invented(row, kind, notes=["x"]).model_dump(mode="json"))
        plain["pretraining"] = {**dict.fromkeys(PretrainingRecord.model_fields), "best_filler": name, "on": []}
        record = Record.of(plain | {"row": row})
        found.append(record.hashed())
    return found


def pages_of(records: Sequence[Record], folder: Path) -> list[str]:
    """Return the pages of a board of records, all of the suite ``invented``."""
    place = folder / "results" / "invented"
    place.mkdir(parents=True, exist_ok=True)
    for old in place.iterdir():
        old.unlink()
    for record in records:
        (place / f"{record.id}.json").write_text(record_text(record), encoding="utf-8")
    return [text for file, text in _files(read_board(folder / "results")) if file.endswith(".html")]


def _site(folder: Path) -> None:
    only_text(pages_of(named(_name(folder)), folder), usual_pages())


@functools.cache
def usual_pages() -> list[str]:
    """Return the pages of a board that says an ordinary name."""
    with tempfile.TemporaryDirectory() as folder:
        return pages_of(named("x"), Path(folder))


# ---------------------------------------------------------------- a report


def _report(folder: Path) -> None:
    only_text([report_of(_name(folder))], [usual_report()])


def report_of(name: str) -> str:
    """Return the page of a report whose every text is a name; anchors are neurobench's own, and numbers."""
    report: Report = filled(Report, name)
    return _html(replace(report, sections=[replace(s, anchor="cohort-1") for s in report.sections]))


@functools.cache
def usual_report() -> str:
    """Return the page of a report that says an ordinary name."""
    return report_of("x")

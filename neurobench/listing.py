"""What lies in a folder by its dataset's word, and what holds for every dataset: nothing is missing without a word, and
no person has a value that is none."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from neurobench.alignment import some
from neurobench.contracts import Dataset
from neurobench.errors import DataError
from neurobench.identity import file_digest
from neurobench.records import Finding, Listing, RecordingFile

__all__ = ["CODE", "listed", "passed_over"]

CODE = file_digest(Path(__file__))

NOT_KNOWN = frozenset(
    ("pending", "withheld", "unknown", "undetermined", "unspecified", "not available", "not known", "not released")
).union(("n.a.", "tbd", "?", "-"))
"""Words that stand for a value that is not known, in lower case: a diagnosis of these would be a patient's."""

OLDEST_YEARS = 120.0
"""Above this an age is in months or days."""


def listed(dataset: Dataset, root: Path) -> Listing:
    """Return what a dataset finds under a folder, less values that are none, with what was noticed of them.

    Raises
    ------
    DataError
        If nothing can be used, or something of it may not be read.
    """
    try:
        listing = dataset.list_recordings(root)
    except OSError as error:
        raise DataError(
            f"{error.filename or root} cannot be read: {error.strerror or error}.",
            next_step="Give yourself the right to read it, or take it out of the folder.",
        ) from error
    names = [*listing.participants.index, *(r.subject for r in listing.recordings)]
    if (number := next((n for n in names if not isinstance(n, str)), None)) is not None:
        raise DataError(
            f"{dataset.name} names somebody {number!r}, which is {type(number).__name__} and no text: '007' is not 7.",
            next_step='Have its `list_recordings` read ids as text, as in pd.read_csv(path, dtype={"id": str}).',
        )
    people, noticed = _known(listing.participants)
    noticed += _ages(people)
    return replace(
        listing, participants=people, findings=(*listing.findings, *passed_over(root, listing.recordings), *noticed)
    )


def passed_over(root: Path, recordings: Sequence[RecordingFile]) -> list[Finding]:
    """Return a finding for every folder that a search passes over without a word: closed ones, and links to folders."""
    closed: list[OSError] = []
    linked: list[Path] = []
    for place, folders, _ in os.walk(root, onerror=closed.append):
        folders[:] = [f for f in folders if not f.startswith(".") and f != "lost+found"]
        linked += [p for p in (Path(place, f) for f in folders) if p.is_symlink()]
    fix = "give yourself the right to read it: what lies in it is missing here"
    found = [
        Finding(
            "error", "no-permission", f"{Path(e.filename).name} cannot be opened: {e.strerror}", fix, "", e.filename
        )
        for e in closed
    ]
    # A recording may be a link to a folder itself, such as a CTF one.
    looked_at = {p for r in recordings for p in (r.path, *r.path.parents)}
    linked = [p for p in linked if p not in looked_at]
    if linked:
        text = (
            f"{len(linked)} folders are links, and what lies in them is not looked at: {some([p.name for p in linked])}"
        )
        fix = "put the folders themselves there, or links to the files"
        found.append(Finding("warning", "linked-folder", text, fix, path=str(linked[0])))
    return found


def _known(people: pd.DataFrame) -> tuple[pd.DataFrame, list[Finding]]:
    """Return the participants with None for words such as `pending`; numbers among such words become numbers."""
    findings: list[Finding] = []
    people = people.copy()
    for name in people.columns:
        column = people[name]
        # A site may well be called unknown: it groups people all the same.
        if name == "site" or pd.api.types.is_numeric_dtype(column):
            continue
        unknown = column.map(lambda v: isinstance(v, str) and v.strip().lower() in NOT_KNOWN).astype(bool)
        if not unknown.any():
            continue
        known = column.where(~unknown, None)
        numbers = pd.to_numeric(known, errors="coerce")
        whole = known.notna().any() and int(numbers.notna().sum()) == int(known.notna().sum())
        people[name] = numbers.astype(float) if whole else known.astype(object)
        words = ", ".join(sorted({str(v).strip() for v in column[unknown]}))
        text = f"{int(unknown.sum())} of {len(people)} participants have no {name} but the word {words}"
        findings.append(Finding("info", "not-known", f"{text}: it counts as missing"))
    return people, findings


def _ages(people: pd.DataFrame) -> list[Finding]:
    """Return a finding if ages cannot be in years."""
    if "age" not in people:
        return []
    ages = pd.to_numeric(people["age"], errors="coerce").dropna()
    wrong = ages[(ages > OLDEST_YEARS) | (ages < 0)]
    if wrong.empty:
        return []
    likely = "" if wrong.min() < 0 else _unit_of(wrong.tolist())
    text = f"{len(wrong)} of {len(ages)} ages are no years ({wrong.min():g}–{wrong.max():g}){likely}"
    return [Finding("warning", "implausible-age", text, fix="give age in years: errors are reported in years")]


def _unit_of(ages: Sequence[float]) -> str:
    return next((f": are they {unit}?" for unit, n in (("months", 12), ("days", 365.25)) if max(ages) / n <= 100), "")

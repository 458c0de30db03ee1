"""What is probably meant by a folder that a dataset makes nothing of: another dataset, another folder, a table that a
spreadsheet wrote, ids that lost their zeros."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import pandas as pd

from neurobench.alignment import some
from neurobench.contracts import Dataset
from neurobench.errors import DataError
from neurobench.records import Finding

__all__ = [
    "Folder",
    "entries",
    "explained",
    "ids_that_differ",
    "other_datasets",
    "renamed_columns",
    "spreadsheet_findings",
]

MOST_ENTRIES = 20_000
"""Files and folders that are looked at to find out what is meant."""

MOST_ABOVE, MOST_BELOW = 5_000, 20
"""Files of a folder above, and folders below, that are tried as the folder that was meant."""

MOST_TABLES, MOST_BYTES = 50, 20_000_000
"""Tables that are looked at, and how large those that are read may be together."""

WORKBOOKS = (".xlsx", ".xls", ".ods")
TABLES = (".csv", ".tsv", *WORKBOOKS)

ALSO_CALLED: Mapping[str, tuple[str, ...]] = {
    "age": (
        *("ageatscan", "ageatvisit", "agescan", "scanage", "ageyears", "ageinyears", "ageinyrs", "interviewage"),
        *("alter", "âge", "edad", "età"),
    ),
    "sex": ("gender", "biologicalsex", "geschlecht", "sexe", "sexo", "sesso"),
    "diagnosis": (
        *("dx", "dxgroup", "group", "diagnosticgroup", "clinicalgroup", "patientgroup"),
        *("diagnose", "diagnostic", "diagnosi", "gruppe", "groupe", "grupo"),
    ),
    "site": ("standort", "zentrum", "centro", "siteid", "center", "centre", "institution", "studysite", "scanner"),
    "mean_fd": ("funcmeanfd", "meanfd", "fdmean", "fd", "meanframewisedisplacement", "meanfdpower"),
    "t_r": ("tr", "repetitiontime", "tros", "trs"),
    "fluid_intelligence": ("cattell", "pmat24acr", "gf", "fluidcog"),
}
"""What standard columns are called in other releases, without signs and capitals."""


@dataclass(frozen=True)
class Folder:
    """Files and tables under a folder, looked for and read once."""

    root: Path

    @cached_property
    def files(self) -> list[Path]:
        """Files, of at most so many entries."""
        return list(_walk(self.root))

    @cached_property
    def table_files(self) -> list[Path]:
        """Tables that may be about people: none of a single person's, and no time series."""
        found = []
        for path in self.files:
            inside = path.relative_to(self.root).parts[:-1]
            if path.suffix.lower() not in TABLES or any(p.startswith("sub-") or p == "timeseries" for p in inside):
                continue
            if path.name.startswith("sub-"):
                continue
            found.append(path)
            if len(found) == MOST_TABLES:
                break
        return found

    @cached_property
    def tables(self) -> dict[Path, pd.DataFrame]:
        """Tables as text, those that can be read."""
        found = {}
        left = MOST_BYTES
        for path in self.table_files:
            if path.suffix.lower() in WORKBOOKS or _form(path):
                continue
            try:
                if (size := path.stat().st_size) <= left:
                    left -= size
                    found[path] = _read(path)
            except (OSError, ValueError):
                continue
        return found


def explained(
    error: DataError, dataset: Dataset, folder: Folder, others: Mapping[str, Dataset], noticed: Sequence[str] = ()
) -> DataError:
    """Return an error of a folder that a dataset can make nothing of, with what was probably meant.

    Parameters
    ----------
    error
        The dataset's own.
    dataset, folder
        What was asked for.
    others
        Datasets that may fit better, by what a user writes.
    noticed
        What is known of the folder already.
    """
    root = folder.root
    # Of one data set, another signal of it is meant before another data set.
    fitting = sorted(_fitting(root, others), key=lambda label: label.partition("[")[0] != dataset.name)
    likely = error.likely
    if fitting:
        where = shlex.quote(str(root))
        likely = " or ".join(f"neurobench data check {shlex.quote(label)} --data-dir {where}" for label in fitting[:2])
    elif place := _other_place(dataset, root):
        likely = f"--data-dir {shlex.quote(str(place))}"
    noticed = [*noticed, *(f.message for f in spreadsheet_findings(folder))]
    if not fitting:
        tables = folder.tables.items()
        noticed += [f.message for p, t in tables for f in renamed_columns(t.columns, p.name, ("t_r",))]
        noticed += [text for p, t in tables if (text := _several_rows(p, t))]
        noticed += [f.message for f in ids_that_differ(folder)]
    more = "".join(f" {text}." for text in dict.fromkeys(noticed) if text not in error.what)
    what = f"{' '.join(error.what.split()).rstrip(' .')}. {_contents(root)}{more}"
    return DataError(what, allowed=error.allowed, likely=likely, next_step=error.next_step)


def other_datasets(label: str, datasets: Mapping[str, type[Dataset]]) -> dict[str, Dataset]:
    """Return the other datasets, those that can read either with each of their signals, by what a user writes.

    Parameters
    ----------
    label
        The dataset that was asked for, as a user writes it.
    datasets
        All that are registered, by name.
    """
    found: dict[str, Dataset] = {}
    for name, cls in datasets.items():
        for other, parameters in ((name, {}), (f"{name}[signal=meg]", {"signal": "meg"})):
            # A dataset without that signal has no such parameter, or refuses the value as its author chose to.
            with contextlib.suppress(Exception):
                found[other] = cls(**parameters)
    found.pop(label, None)
    return found


# ---------------------------------------------------------------- another dataset, another folder


def _fitting(root: Path, others: Mapping[str, Dataset]) -> list[str]:
    """Return those of other datasets that find recordings in a folder, the one that finds most first."""
    found = {label: _n_recordings(dataset, root) for label, dataset in others.items()}
    return sorted((label for label, n in found.items() if n), key=lambda label: (-found[label], len(label)))


def _n_recordings(dataset: Dataset, root: Path, inside: Path | None = None) -> int:
    """Return how many recordings a dataset finds under a folder, those that lie inside another one if it is given."""
    try:
        found = dataset.list_recordings(root).recordings
    except Exception:  # Whatever it is, this dataset makes nothing of the folder either.
        return 0
    return sum(inside is None or inside in r.path.parents for r in found)


def _other_place(dataset: Dataset, root: Path) -> Path | None:
    """Return the folder above, or one directly inside, of which the dataset makes something; None if there is none."""
    above = root.parent
    if sum(1 for _ in _walk(above)) < MOST_ABOVE and _n_recordings(dataset, above, inside=root):
        return above
    below = [p for p in entries(root) if p.is_dir() and not p.name.startswith(".")]
    return next((p for p in below[:MOST_BELOW] if _n_recordings(dataset, p)), None)


def entries(folder: Path) -> list[Path]:
    """Return what lies in a folder in order of names; nothing where it cannot be looked into."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _walk(root: Path) -> Iterator[Path]:
    """Yield files under a folder, of at most so many entries."""
    n = 0
    for place, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        n += 1
        for name in sorted(files):
            n += 1
            if n > MOST_ENTRIES:
                return
            yield Path(place) / name


def _contents(root: Path) -> str:
    """Return in one sentence what lies in a folder."""
    names = []
    for path in entries(root):
        if path.name.startswith("."):
            continue
        kinds = (
            Counter(p.suffix or "without suffix" if p.is_file() else "in folders" for p in entries(path))
            if path.is_dir()
            else Counter()
        )
        told = ", ".join(f"{n} {kind}" for kind, n in kinds.most_common(2))
        names.append(f"{path.name}/ ({told or 'empty'})" if path.is_dir() else path.name)
    return f"It holds {some(names, 6)}." if names else "It is empty."


# ---------------------------------------------------------------- tables


def _read(path: Path) -> pd.DataFrame:
    text = path.read_bytes().decode("utf-8-sig", errors="replace")
    separator = max("\t,;", key=text.lstrip().split("\n", 1)[0].count)
    rows = [[cell.strip().strip('"') for cell in line.split(separator)] for line in text.splitlines() if line.strip()]
    if not rows:
        raise ValueError("no rows")
    width = len(rows[0])
    columns = pd.Index([c or f"column {i}" for i, c in enumerate(rows[0], 1)], dtype=object)
    table = pd.DataFrame([(r + [""] * width)[:width] for r in rows[1:]], columns=columns, dtype=object)
    return table.loc[:, ~columns.duplicated()]


def _form(path: Path) -> str:
    """Return what a table is instead of text with separators; empty if nothing is seen."""
    try:
        with open(path, "rb") as f:
            head = f.read(8)
    except OSError:
        return ""
    if head.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        return "is a spreadsheet's workbook: save it as CSV (UTF-8)"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "is in UTF-16, a spreadsheet's “Unicode text”: save it as CSV (UTF-8)"
    if head.lower().startswith(b"sep="):
        return "begins with a spreadsheet's line sep=: remove that line"
    return ""


def spreadsheet_findings(folder: Folder) -> list[Finding]:
    """Return a finding for every table that a spreadsheet left in a form that is not read, or read as text."""
    findings = []
    for path in folder.table_files:
        if form := _form(path):
            # A workbook under its own name may be anything; under that of a table it is in somebody's way.
            level: Literal["info", "warning"] = "info" if path.suffix.lower() in WORKBOOKS else "warning"
            findings.append(Finding(level, "table-form", f"{path.name} {form}", path=str(path)))
    for path, table in folder.tables.items():
        commas = [str(c) for c in table.columns if _decimal_commas(table[c])]
        if commas:
            text = f"{path.name} has commas as decimal sign in {some(commas)}"
            fix = "write points, where the table of columns below does not call these numbers"
            findings.append(Finding("info", "table-form", text, fix=fix, path=str(path)))
    return findings


def _decimal_commas(column: pd.Series[str]) -> bool:
    known = column[column != ""]
    return len(known) > 0 and float(known.str.fullmatch(r"-?\d+,\d+").mean()) > 0.5


def renamed_columns(columns: Sequence[str] | pd.Index, where: str, wanted: Sequence[str] = ()) -> list[Finding]:
    """Return a finding for every standard column that is not there, and may be there under another name."""
    named = {re.sub(r"[\W_]", "", str(c).lower()): str(c) for c in columns}
    there = {str(c).lower() for c in columns}
    findings = []
    for name in wanted or ALSO_CALLED:
        likely = next((named[other] for other in ALSO_CALLED[name] if other in named), "")
        if likely and name not in there:
            text = f"{where} has no column {name}; {likely} may be it"
            findings.append(Finding("info", "column-name", text, fix="rename those that are what they seem"))
    return findings


def _several_rows(path: Path, table: pd.DataFrame) -> str:
    """Return that most identifiers of a table have several rows; empty if they have not."""
    column = next((c for c in table.columns if re.fullmatch(r"(?i).*(subject|participant).*|.*\bid", str(c))), None)
    if column is None or table.empty:
        return ""
    rows = table[table[column] != ""].groupby(column).size()
    if len(rows) == 0 or (rows > 1).mean() < 0.5:
        return ""
    return f"{path.name} has several rows of {int((rows > 1).sum())} ids (one a session?): keep one a person"


# ---------------------------------------------------------------- ids


def ids_that_differ(folder: Folder) -> list[Finding]:
    """Return how the ids of a table come to be those of the files' names, where they are not yet."""
    stems = [re.sub(r"\.nii$", "", p.stem) for p in folder.files if p.suffix.lower() not in (".json", *WORKBOOKS)]
    tables = [(p, t) for p, t in folder.tables.items() if len(t)]
    stems = [s for s in stems if s not in {p.stem for p, _ in tables} and re.search(r"\d", s)][:500]
    if not stems:
        return []
    beginnings = _beginnings(stems)
    for path, table in tables:
        # Names may begin with a site, too, which is nobody's id.
        hits = {str(c): _share(beginnings, set(table[c])) for c in table.columns if 2 * table[c].nunique() > len(table)}
        best = max(hits, key=lambda c: hits[c], default="")
        if best and hits[best] > 0.5:
            if best.lower() in ("participant_id", "scandir id"):
                return []
            text = f"names of files begin with what column {best} of {path.name} holds"
            return [Finding("warning", "ids-differ", f"{text}: call that column participant_id")]
    told = [{str(int(n)) for n in re.findall(r"\d{3,18}", s)} for s in stems]
    for path, table in tables:
        for column in table.columns:
            numbers = {str(int(n)) for v in table[column] for n in re.findall(r"\d{3,18}", v)[:1]}
            if _share(told, numbers) > 0.5:
                example = next(v for v in table[column] if re.search(r"\d{3}", v))
                text = (
                    f"column {column} of {path.name} holds ids such as {example}, and names of files are such as "
                    f"{stems[0]}: write ids as names of files begin, with their zeros and letters"
                )
                return [Finding("warning", "ids-differ", text, path=str(path))]
    return []


def _beginnings(stems: Sequence[str]) -> list[set[str]]:
    """Return of each name what may be an id at its beginning, with and without ``sub-``."""
    found = []
    for stem in stems:
        bare = stem.removeprefix("sub-")
        ends = [m.start() for m in re.finditer(r"[^A-Za-z0-9]", bare)] + [len(bare)]
        found.append({t for e in ends for t in (bare[:e], f"sub-{bare[:e]}")})
    return found


def _share(candidates: Sequence[set[str]], known: set[str]) -> float:
    return sum(bool(c & known) for c in candidates) / len(candidates)

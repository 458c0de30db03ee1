"""Reading the tables that people really have, and saying in plain words why a file is none.

Tables come with byte-order marks, in latin-1, with commas under the name ``.tsv``, with identifiers that lost their
zeros, and with codes such as −999 for "not measured".
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neurobench import DataError, Finding, closest

MISSING_CODES = ("", "n/a", "na", "nan", "none", "null", ".", "-999", "-999.0", "-9999", "-9999.0", "#null!", "missing")
"""What stands for "not measured"; compared in lower case."""

STANDARD = ("age", "sex", "site", "diagnosis", "mean_fd", "fluid_intelligence")

ID_COLUMNS = ("participant_id", "subject_id", "subject", "sub_id", "sub", "ccid", "observations", "id")

SEX_TEXT = {"f": "F", "female": "F", "woman": "F", "girl": "F", "m": "M", "male": "M", "man": "M", "boy": "M"}


# ---------------------------------------------------------------- why a file cannot be read


def explain_unreadable(path: Path, *, whole: bool = True) -> str:
    """Return in plain words what is wrong with a file, judged by its first bytes; empty if nothing is seen.

    Knows missing and empty files, folders, git-annex and LFS pointers, web pages saved under the name of a file, files
    that end in ``.gz`` and are not compressed. With ``whole`` a compressed file is read to its end, which finds
    truncation and damage that a reader may pass over without a word.
    """
    if path.is_symlink() and not path.exists():
        if ".git/annex" in str(path.readlink()):
            return "is a git-annex link whose content is not here; fetch it with `datalad get`"
        return "is a link to a file that does not exist"
    if not path.exists():
        return "does not exist"
    if path.is_dir():
        return "is a folder"
    with open(path, "rb") as f:
        head = f.read(1024)
    if not head:
        return "is empty (0 bytes)"
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        return "is a git-LFS pointer, not the file itself; fetch it with `git lfs pull`"
    if b"/annex/objects/" in head and len(head) < 1024:
        return "is a git-annex pointer, not the file itself; fetch it with `datalad get`"
    if re.match(rb"\s*(<!doctype html|<html)", head, re.IGNORECASE):
        return "is a web page, perhaps a login page saved under this name; download it again after logging in"
    if path.name.endswith(".gz"):
        if not head.startswith(b"\x1f\x8b"):
            return "ends in .gz but is not compressed with gzip"
        return _broken_gzip(path) if whole else ""
    return ""


def _broken_gzip(path: Path) -> str:
    try:
        with gzip.open(path, "rb") as f:
            while f.read(1 << 22):
                pass
    except EOFError:
        return "is cut off: the compressed data end too early; download or copy it again"
    except (OSError, ValueError) as error:
        return f"is damaged ({error}); download or copy it again"
    except Exception as error:  # zlib.error has no public name in gzip
        return f"is damaged ({error}); download or copy it again"
    return ""


def unreadable(path: Path, error: Exception | str = "") -> DataError:
    """Return the error for a file that cannot be read, in plain words where the reason is known."""
    why = explain_unreadable(path)
    if why:
        return DataError(f"{path.name} {why}.")
    said = f": {type(error).__name__}: {error}" if isinstance(error, Exception) else f": {error}" if error else ""
    return DataError(f"{path.name} cannot be read{said}.")


# ---------------------------------------------------------------- tables


def read_text(path: Path) -> str:
    """Return the text of a file, as UTF-8 with or without byte-order mark, else as latin-1.

    Raises
    ------
    DataError
        If it is missing, empty, a pointer or a web page.
    """
    if explain_unreadable(path):
        raise unreadable(path)
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def read_json(path: Path) -> dict[str, Any]:
    """Return what a sidecar says.

    Raises
    ------
    DataError
        If it cannot be read, or holds no names with values.
    """
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path.name} is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path.name} holds no names with values.", allowed='such as {"RepetitionTime": 2.0}')
    return content


def number(content: Mapping[str, Any], name: str, where: str) -> float:
    """Return a number that a sidecar says.

    Raises
    ------
    DataError
        If it is none.
    """
    try:
        return float(content[name])
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{where}: {name} {str(content[name])[:40]!r} is no number.") from error


def read_table(path: Path) -> pd.DataFrame:
    """Read a table as text, whatever separates its columns; names stripped, missing codes as NaN.

    Raises
    ------
    DataError
        If the file cannot be read or has no rows.
    """
    text = read_text(path)
    first = text.lstrip("\r\n").split("\n", 1)[0]
    separator = max("\t,;", key=first.count)
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", pd.errors.ParserWarning)
            frame = pd.read_csv(io.StringIO(text), sep=separator, dtype=str, keep_default_na=False, index_col=False)
        # Cells beyond the header were dropped: of values, those before them stand under wrong names.
        rows = csv.reader(io.StringIO(text), delimiter=separator) if said else ()
        if any("".join(row[len(frame.columns) :]).strip() for row in rows):
            raise DataError(
                f"{path.name} has rows with more cells than its header, so that values stand under wrong names.",
                next_step="Is the decimal sign a comma, as between the cells? Save it again with tabs or semicolons.",
            )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, csv.Error) as error:
        raise DataError(f"{path.name} is not a table: {error}.") from error
    frame.columns = pd.Index([str(c).strip() for c in frame.columns])
    if frame.empty:
        raise DataError(f"{path.name} has a header and no rows.")
    twice = sorted({c for c in frame.columns if list(frame.columns).count(c) > 1})
    if twice:
        raise DataError(f"{path.name} has several columns of one name: {', '.join(twice)}.")
    # Cell by cell: most tables are small, and every step over a whole frame costs more than their cells together.
    cells = {name: [_cell(value) for value in frame[name].tolist()] for name in frame.columns}
    return pd.DataFrame(cells, index=frame.index, dtype=frame.dtypes.iloc[0])


def _cell(value: Any) -> Any:
    """Return a cell's text without blanks around it; NaN if it stands for "not measured", or the row is too short."""
    text = value.strip() if isinstance(value, str) else ""
    return np.nan if text.lower() in MISSING_CODES else text


def typed(column: pd.Series) -> pd.Series:
    """Return a column of text as numbers where every known value is one."""
    numbers = pd.to_numeric(column, errors="coerce")
    if numbers.notna().sum() == column.notna().sum():
        return numbers.astype(float)
    return column.astype(object).where(column.notna(), None)


def find_column(columns: Sequence[str], names: Iterable[str]) -> str:
    """Return the first column whose name is among ``names``, without regard to case, or an empty string."""
    lower = {c.lower(): c for c in columns}
    return next((lower[n] for n in names if n in lower), "")


def sex_of(column: pd.Series, female_code: str = "") -> pd.Series | None:
    """Return ``F``, ``M`` or None from text, or from two codes if the one for women is given; None if it is not.

    Files differ in which code is which sex (Cam-CAN's own do), so codes are never guessed.
    """
    text = pd.Series([None if pd.isna(v) else re.sub(r"\.0$", "", str(v)).lower() for v in column], dtype=object)
    mapping = dict(SEX_TEXT)
    others = sorted({v for v in text.dropna() if v not in mapping})
    if others:
        if not female_code or len(set(text.dropna()) - {female_code.lower()}) > 1:
            return None
        mapping = dict.fromkeys(others, "M") | {female_code.lower(): "F"}
    return pd.Series([mapping.get(v) for v in text], index=column.index, dtype=object)


def participants_from(
    frame: pd.DataFrame,
    *,
    where: str,
    component: str,
    female_code: str = "",
    aliases: Mapping[str, str] | None = None,
) -> tuple[pd.DataFrame, list[Finding]]:
    """Return a participants table indexed by id, with standard columns, and what was noticed.

    Parameters
    ----------
    frame
        As :func:`read_table` returns it.
    where, component
        Name of the table and of the dataset, for messages.
    female_code
        As for :func:`sex_of`.
    aliases
        Columns of a known release and their standard names; nothing is renamed but these.

    Raises
    ------
    DataError
        If there is no column of identifiers or not one usable identifier.
    """
    findings: list[Finding] = []
    id_column = find_column(list(frame.columns), ID_COLUMNS)
    if not id_column:
        raise DataError(
            f"{where} has no column of identifiers; it has {', '.join(map(str, frame.columns[:8]))}.",
            allowed=", ".join(ID_COLUMNS),
            likely=closest("participant_id", [str(c) for c in frame.columns]),
            next_step="Name the column participant_id.",
        )
    table = frame.rename(columns={id_column: "participant_id", **(aliases or {})})
    # Standard names in another case are the same word, not another one.
    lower = {c: c.lower() for c in table.columns if c.lower() in STANDARD and c.lower() not in table.columns}
    table = table.rename(columns=lower)
    nameless = int(table["participant_id"].isna().sum())
    if nameless:
        findings.append(Finding("warning", "no-id", f"{nameless} rows of {where} have no identifier and are left out"))
    table = table[table["participant_id"].notna()]
    twice = table["participant_id"][table["participant_id"].duplicated(keep=False)]
    for subject in dict.fromkeys(twice):
        rows = table[table["participant_id"] == subject]
        if len(rows.drop_duplicates()) == 1:
            continue
        findings.append(
            Finding(
                "error",
                "duplicate-id",
                f"{subject} has {len(rows)} different rows in {where}; none is used",
                fix="keep the right row",
                subject=str(subject),
            )
        )
        table = table[table["participant_id"] != subject]
    table = table.drop_duplicates()
    if table.empty:
        raise DataError(
            f"{where} has no usable identifier in column {id_column!r}.",
            next_step="Every participant needs one row with an identifier of its own.",
        )
    table = table.set_index("participant_id").sort_index()
    table.index = table.index.astype(str)
    result = pd.DataFrame({c: typed(table[c]) for c in table.columns}, index=table.index)
    if "sex" in table:
        sex = sex_of(table["sex"], female_code)
        if sex is None:
            result = result.rename(columns={"sex": "sex_code"})
            codes = ", ".join(sorted(table["sex"].dropna().unique())[:4])
            findings.append(
                Finding(
                    "warning",
                    "sex-coding",
                    f"column sex of {where} holds {codes}; files differ in which code is which sex, so it is not "
                    "guessed: there is no sex here, and the codes are kept as sex_code",
                    fix=f"say which code means female, for example {component}[female_code={codes[0]}], or write F "
                    "and M into the table",
                )
            )
        else:
            result["sex"] = sex
    for name in ("site", "diagnosis"):
        if name in result:
            result[name] = table[name].astype(object).where(table[name].notna(), None)
    for name in ("age", "mean_fd", "fluid_intelligence"):
        if name in result and result[name].dtype == object:
            bad = pd.to_numeric(table[name], errors="coerce").isna() & table[name].notna()
            values = ", ".join(map(str, table[name][bad].unique()[:3]))
            findings.append(
                Finding("warning", "not-a-number", f"{int(bad.sum())} values of {name} are no numbers: {values}")
            )
            result[name] = pd.to_numeric(table[name], errors="coerce").astype(float)
    return result, findings


def missing_targets(participants: pd.DataFrame, names: Iterable[str]) -> list[Finding]:
    """Return one finding for each named column that some participants have no value in."""
    findings = []
    for name in names:
        if name in participants:
            n = int(participants[name].isna().sum())
            if n:
                text = f"{n} of {len(participants)} participants have no {name}"
                findings.append(Finding("info", "missing-target", text + "; they serve all other targets"))
    return findings


def match_id(subject: str, known: Iterable[str]) -> str:
    """Return the participant a file's id means: the same, with or without ``sub-``, or with lost zeros; else empty."""
    known = list(known)
    bare = subject.removeprefix("sub-")
    for candidate in (subject, bare, f"sub-{bare}"):
        if candidate in known:
            return candidate
    if bare.isdigit():
        same = [k for k in known if k.removeprefix("sub-").isdigit() and int(k.removeprefix("sub-")) == int(bare)]
        if len(same) == 1:
            return same[0]
    return ""


def write_tsv(path: Path, frame: pd.DataFrame) -> None:
    """Write a table with tabs, ``n/a`` for missing values and the same bytes on every system."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(frame.to_csv(sep="\t", index=False, na_rep="n/a", lineterminator="\n"), encoding="utf-8")


def number_text(values: np.ndarray, pattern: str = "%.4f", separator: str = "\t") -> list[str]:
    """Return one line of text a row of a 2-D array; several times faster than ``numpy.savetxt``."""
    line = separator.join([pattern] * values.shape[1])
    return [line % tuple(row) for row in values.tolist()]

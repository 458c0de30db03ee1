"""Reading the tables that people really have, and saying in plain words why a file is none.

Tables come with byte-order marks, in latin-1, with commas under the name ``.tsv``, with identifiers that lost their
zeros, and with codes such as −999 for "not measured".
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neurobench import DataError, Finding, closest, parse_json

SHEET_ERRORS = (
    "#null!",
    "#n/a",
    "#nv",
    "#div/0!",
    "#ref!",
    "#bezug!",
    "#value!",
    "#wert!",
    "#num!",
    "#zahl!",
    "#name?",
)

MISSING_CODES = ("", "n/a", "na", "nan", "none", "null", ".", "missing", *SHEET_ERRORS)
"""What stands for "not measured"; compared in lower case."""

MISSING_NUMBER = re.compile(r"-9{3,4}(\.0+)?")

STANDARD = ("age", "sex", "site", "diagnosis", "mean_fd", "fluid_intelligence")

ID_COLUMNS = ("participant_id", "subject_id", "subject", "sub_id", "sub", "ccid", "observations", "id")

SEX_TEXT = {
    **dict.fromkeys(("f", "female", "woman", "girl", "w", "weiblich"), "F"),
    **dict.fromkeys(("m", "male", "man", "boy", "männlich", "maennlich"), "M"),
    **dict.fromkeys(("frau", "femme", "féminin", "feminin", "mujer", "donna", "vrouw"), "F"),
    **dict.fromkeys(("mann", "homme", "masculin", "hombre", "uomo"), "M"),
}

WITH_COMMA = re.compile(r"[-+]?\d+,\d+(e[-+]?\d+)?", re.IGNORECASE)
PLAIN_NUMBER = re.compile(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?", re.IGNORECASE)
THOUSANDS = re.compile(r"[-+]?[1-9]\d{0,2},\d{3}")

SHORTENED = re.compile(r"\d([.,]\d+)?E\+\d+", re.IGNORECASE)
"""What a spreadsheet makes of a long number: 1.0E+05."""

IN_YEARS = re.compile(r"(\d+(?:\.\d+)?)\s*(?:y|yrs?|years?|jahre?)\.?", re.IGNORECASE)

A_YEAR = {"y": 1.0, "yr": 1.0, "yrs": 1.0, "a": 1.0, "year": 1.0, "years": 1.0, "month": 12.0, "months": 12.0}
A_YEAR |= {"week": 365.25 / 7, "weeks": 365.25 / 7, "day": 365.25, "days": 365.25}
"""How many of a unit of age, as a data dictionary names it, are a year."""


# ---------------------------------------------------------------- why a file cannot be read


DEFLATE = 1032
"""The most bytes that one byte of a gzip file can stand for."""


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
        content = parse_json(read_text(path))
    except ValueError as error:
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
        header = next((row for row in csv.reader(io.StringIO(text), delimiter=separator) if "".join(row).strip()), [])
    except (pd.errors.ParserError, pd.errors.EmptyDataError, csv.Error) as error:
        raise DataError(f"{path.name} is not a table: {error}.") from error
    # Of a blank name as of an empty one.
    frame.columns = pd.Index([str(c).strip() or f"Unnamed: {i}" for i, c in enumerate(frame.columns)])
    if frame.empty:
        raise DataError(f"{path.name} has a header and no rows.")
    # The second one of a name is called `age.1` here, and ` ` and `  ` differ until they are stripped.
    twice = {c for c, n in Counter(map(str.strip, header)).items() if c and n > 1}
    if twice := sorted(twice | {c for c, n in Counter(frame.columns).items() if n > 1}):
        raise DataError(f"{path.name} has several columns of one name: {', '.join(twice)}.")
    # Cell by cell: most tables are small, and every step over a whole frame costs more than their cells together.
    cells = {name: [_cell(value) for value in frame[name].tolist()] for name in frame.columns}
    if separator != "," or '"' in text:
        _write_points(cells)
    return pd.DataFrame(cells, index=frame.index, dtype=frame.dtypes.iloc[0])


def _write_points(cells: dict[str, list[Any]]) -> None:
    """Write points for decimal commas in columns of numbers, unless all of a table's commas may divide thousands."""
    with_comma: dict[str, list[str]] = {}
    for name, values in cells.items():
        if not any(isinstance(v, str) and "," in v for v in values):
            continue
        known = [v for v in values if isinstance(v, str)]
        commas = [v for v in known if WITH_COMMA.fullmatch(v)]
        if 2 * (len(commas) + sum(bool(PLAIN_NUMBER.fullmatch(v)) for v in known)) > len(known):
            with_comma[name] = commas
    if all(THOUSANDS.fullmatch(v) for commas in with_comma.values() for v in commas):
        return
    for name, commas in with_comma.items():
        points = {v: _cell(v.replace(",", ".")) for v in commas}
        cells[name] = [points.get(v, v) for v in cells[name]]


def _cell(value: Any) -> Any:
    """Return a cell's text without blanks around it; NaN if it stands for "not measured", or the row is too short."""
    text = value.strip() if isinstance(value, str) else ""
    return np.nan if text.lower() in MISSING_CODES or MISSING_NUMBER.fullmatch(text) else text


def _as_numbers(column: pd.Series) -> pd.Series:
    """Return a column of text as numbers; NaN where it says none, and where it says infinity: nothing measured is."""
    values = pd.to_numeric(column, errors="coerce").astype(float)
    return values.where(np.isfinite(values))


def typed(column: pd.Series) -> pd.Series:
    """Return a column of text as numbers where every known value is one."""
    numbers = _as_numbers(column)
    if numbers.notna().sum() == column.notna().sum():
        return numbers
    return column.astype(object).where(column.notna(), None)


def find_column(columns: Sequence[str], names: Iterable[str]) -> str:
    """Return the first column whose name is among ``names``, without regard to case, or an empty string."""
    lower = {c.lower(): c for c in columns}
    return next((lower[n] for n in names if n in lower), "")


def numbers(column: pd.Series, path: Path, findings: list[Finding], *, age: bool = False) -> pd.Series:
    """Return a column of text as numbers; values that are none are missing, and said.

    Parameters
    ----------
    column
        As :func:`read_table` returns it.
    path
        The table.
    findings
        What is noticed is added here.
    age
        Whether these are ages: ``11 years`` and ``034Y`` are numbers of years.
    """
    said = column.map(lambda v: m[1] if (m := IN_YEARS.fullmatch(str(v))) else v) if age else column
    values = _as_numbers(said)
    wrong = values.isna() & column.notna()
    if wrong.any():
        examples = list(dict.fromkeys(map(str, column[wrong])))
        text = f"{int(wrong.sum())} values of {column.name} in {path.name} are no numbers and count as missing"
        fix = "write numbers with a decimal point" + (", ages in years" if age else "")
        if any(THOUSANDS.fullmatch(v) for v in examples):
            fix += ": it cannot be told whether a comma is the decimal sign"
        text += f": {', '.join(examples[:3])}"
        findings.append(Finding("warning", "not-a-number", text, fix=fix, path=str(path)))
    return values


def usable_ids(column: pd.Series, path: Path, findings: list[Finding]) -> pd.Series:
    """Return the identifiers of the rows that have one, less the ``.0`` of a spreadsheet; other rows are said."""
    nameless = int(column.isna().sum())
    if nameless:
        text = f"{nameless} rows of {path.name} have no identifier and are left out"
        findings.append(Finding("warning", "no-id", text))
    ids = column[column.notna()].astype(str).str.replace(r"(?<=\d)\.0+$", "", regex=True)
    short = ids.map(lambda i: SHORTENED.fullmatch(i) is not None).astype(bool)
    if short.any():
        text = f"{int(short.sum())} ids of {path.name} were shortened by a spreadsheet, such as {ids[short].iloc[0]}"
        fix = "take them from the original table again, in a column formatted as text"
        findings.append(
            Finding("error", "shortened-id", f"{text}: whom they mean cannot be told", fix=fix, path=str(path))
        )
    return ids[~short]


def sex_of(
    column: pd.Series, codes: Mapping[str, str], *, path: Path, fix: str, findings: list[Finding]
) -> pd.Series | None:
    """Return ``F``, ``M`` or None from words, or from codes that are all known; None if a code is not.

    Files differ in which code is which sex (Cam-CAN's own do), so codes are never guessed, nor are half of them used.

    Parameters
    ----------
    column
        As :func:`read_table` returns it.
    codes
        What codes mean, ``F`` or ``M``; other values than codes and words are missing, and said.
    path, fix
        The table, and what can be done about codes that are not known.
    findings
        What is noticed is added here.
    """
    text = pd.Series([None if pd.isna(v) else re.sub(r"\.0+$", "", str(v)).lower() for v in column], dtype=object)
    # French femme and homme; beside Spanish M for mujer an H says that M is no man.
    if {"h", "m"} <= set(text.dropna()) and "m" not in codes:
        said = f"column {column.name} of {path.name} holds H and M, and M may be mujer: there is no sex here"
        fix = "write F and M, or say female_code=M if it is"
        findings.append(Finding("warning", "sex-coding", said, fix=fix, path=str(path)))
        return None
    codes = {"h": "M", **codes} if {"h", "f"} <= set(text.dropna()) else codes
    others = sorted(set(text.dropna()) - set(SEX_TEXT) - set(codes))
    worded = bool(set(text.dropna()) & set(SEX_TEXT)) and not any(t.isdigit() for t in text.dropna())
    if others and not worded:
        findings.append(
            Finding(
                "warning",
                "sex-coding",
                f"column {column.name} of {path.name} holds {', '.join(sorted(set(map(str, column.dropna())))[:4])}; "
                "files differ in which code is which sex, so it is not guessed: there is no sex here",
                fix=fix,
            )
        )
        return None
    if others:
        n = int(text.isin(others).sum())
        said = f"{n} values of {column.name} in {path.name} are neither female nor male and count as missing"
        findings.append(Finding("info", "no-sex", f"{said}: {', '.join(others[:3])}", path=str(path)))
    mapping = {**SEX_TEXT, **codes}
    return pd.Series([mapping.get(v) for v in text], index=column.index, dtype=object)


def read_dictionary(table: Path) -> Mapping[str, Any]:
    """Return what the data dictionary beside a table (``participants.json``) says of its columns.

    Raises
    ------
    DataError
        If there is one and it cannot be read.
    """
    path = table.with_suffix(".json")
    content = read_json(path) if path.exists() or path.is_symlink() else {}
    return {str(name).lower(): said for name, said in content.items() if isinstance(said, dict)}


def levels(dictionary: Mapping[str, Any], column: str) -> dict[str, str]:
    """Return what values of a column mean by the data dictionary, both in lower case; empty if it does not say."""
    said = dictionary.get(column.lower(), {}).get("Levels")
    found = {}
    for code, meaning in said.items() if isinstance(said, dict) else ():
        if isinstance(meaning, dict):
            meaning = meaning.get("Description", meaning.get("LongName"))
        if isinstance(meaning, str):
            found[str(code).strip().lower()] = meaning.strip().lower()
    return found


def sex_codes(dictionary: Mapping[str, Any], column: str) -> dict[str, str]:
    """Return which codes of a column are ``F`` and ``M`` by the data dictionary."""
    found = {}
    for code, meaning in levels(dictionary, column).items():
        sexes = {SEX_TEXT[word] for word in re.findall(r"\w+", meaning) if word in SEX_TEXT}
        if len(sexes) == 1:
            found[code] = sexes.pop()
    return found


def participants_from(
    path: Path,
    *,
    component: str,
    female_code: str = "",
    aliases: Mapping[str, str] | None = None,
) -> tuple[pd.DataFrame, list[Finding]]:
    """Return a participants table indexed by id, with standard columns, and what was noticed.

    Parameters
    ----------
    path
        The table; a data dictionary beside it (``participants.json``) says what codes of sex and diagnosis mean, and
        in what ages are.
    component
        Name of the dataset, for messages.
    female_code
        Which code of a coded column ``sex`` means female; it is believed before the dictionary.
    aliases
        Columns of a known release in lower case and their standard names; nothing is renamed but these.

    Raises
    ------
    DataError
        If there is no column of identifiers or not one usable identifier.
    """
    frame, where, dictionary = read_table(path), path.name, read_dictionary(path)
    # A spreadsheet leaves empty rows and columns.
    empty = [c for c in frame.columns if c.startswith("Unnamed: ") and frame[c].isna().all()]
    frame = frame.drop(columns=empty).dropna(how="all")
    findings: list[Finding] = []
    id_column = find_column(list(frame.columns), ID_COLUMNS)
    if not id_column:
        raise DataError(
            f"{where} has no column of identifiers; it has {', '.join(map(str, frame.columns[:8]))}.",
            allowed=", ".join(ID_COLUMNS),
            likely=closest("participant_id", [str(c) for c in frame.columns]),
            next_step="Name the column participant_id.",
        )
    ids = usable_ids(frame[id_column], path, findings)
    names = {id_column: "participant_id"}
    # Standard names in another case are the same word, not another one.
    for column in frame.columns:
        standard = (aliases or {}).get(column.lower(), column.lower() if column.lower() in STANDARD else "")
        if standard and standard not in (*frame.columns, *names.values()):
            names[column] = standard
    was = {standard: column for column, standard in names.items()}
    table = frame.loc[ids.index].assign(**{id_column: ids}).rename(columns=names)
    bare = table["participant_id"].str.removeprefix("sub-")
    for subject in dict.fromkeys(bare[bare.duplicated()]):
        rows = table[bare == subject]
        if len(rows.drop_duplicates()) == 1:
            continue
        findings.append(
            Finding(
                "error",
                "duplicate-id",
                f"{rows['participant_id'].iloc[0]} has {len(rows)} different rows in {where}; none is used",
                fix="keep the right row",
                subject=str(rows["participant_id"].iloc[0]),
            )
        )
        table, bare = table[bare != subject], bare[bare != subject]
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
        codes = sex_codes(dictionary, was.get("sex", "sex"))
        if female_code:
            rest = (
                {re.sub(r"\.0+$", "", v).lower() for v in table["sex"].dropna()} - set(SEX_TEXT) - {female_code.lower()}
            )
            codes = {female_code.lower(): "F"} | (dict.fromkeys(rest, "M") if len(rest) < 2 else {})
        example = next(iter(sorted(table["sex"].dropna().unique())), "")
        fix = f"say which code means female, for example {component}[female_code={example}], or write F and M"
        sex = sex_of(table["sex"], codes, path=path, fix=fix, findings=findings)
        result = result.rename(columns={"sex": "sex_code"}) if sex is None else result.assign(sex=sex)
    for name in ("site", "diagnosis"):
        if name in result:
            result[name] = table[name].astype(object).where(table[name].notna(), None)
    if "diagnosis" in result:
        # Of words the dictionary has whole sentences.
        meaning = levels(dictionary, was.get("diagnosis", "diagnosis"))
        known = [meaning.get(v, v) if str(v).isdigit() else v for v in result["diagnosis"]]
        result["diagnosis"] = pd.Series(known, result.index, object)
    for name in ("age", "mean_fd", "fluid_intelligence"):
        if name in result and result[name].dtype == object:
            result[name] = numbers(table[name], path, findings, age=name == "age")
    unit = str(dictionary.get(was.get("age", "age").lower(), {}).get("Units") or "years").strip().lower()
    if "age" in result and unit in A_YEAR:
        result["age"] = result["age"] / A_YEAR[unit]
    elif "age" in result:
        text = f"the data dictionary of {where} says that ages are in {unit!r}; they are taken as years"
        findings.append(Finding("warning", "unit-of-age", text, fix="give ages in years"))
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


def whole(text: str) -> int | None:
    """Return the whole number that digits say; None of anything else (``²`` is a digit for Python, and no number)."""
    return int(text) if re.fullmatch("[0-9]{1,300}", text) else None


def match_id(subject: str, known: Iterable[str]) -> str:
    """Return the participant a file's id means: the same, with or without ``sub-``, or with lost zeros; else empty."""
    known = list(known)
    bare = subject.removeprefix("sub-")
    for candidate in (subject, bare, f"sub-{bare}"):
        if candidate in known:
            return candidate
    if (number := whole(bare)) is not None:
        same = [k for k in known if whole(k.removeprefix("sub-")) == number]
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

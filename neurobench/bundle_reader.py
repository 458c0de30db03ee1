"""Read a submission of a stranger: sizes and names first, then bytes, then text; nothing of it is ever run.

A zip file is read member by member, in pieces, and never unpacked to disk. Whatever is wrong with a member is a
finding, so that all of it is told at once; what cannot be read at all is a :class:`~neurobench.errors.BundleError`.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import json
import math
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
import pydantic

from neurobench.bundle import FORMAT, LIMITS, MANIFEST, Limits, allowed_name
from neurobench.errors import BundleError
from neurobench.parsing import finite
from neurobench.records import Finding, Fold

__all__ = ["Contents", "parse_folds", "parse_strict", "parse_table", "printable", "read_bundle"]

_PIECE = 1 << 16


@dataclass(frozen=True, eq=False)
class Contents:
    """What a bundle holds, and what is wrong with how it holds it.

    Parameters
    ----------
    files
        Name to bytes, of files that may be in a bundle and are what the manifest says.
    manifest
        The manifest.
    findings
        Everything that was refused.
    """

    files: Mapping[str, bytes]
    manifest: Mapping[str, Any]
    findings: tuple[Finding, ...]

    def named(self, folder: str) -> dict[str, bytes]:
        """Return the files of a folder by the name that they have in it, without suffix."""
        own = (n for n in self.files if n.startswith(f"{folder}/"))
        return {n.partition("/")[2].partition(".")[0]: self.files[n] for n in own}


def read_bundle(path: Path, limits: Limits = LIMITS) -> Contents:
    """Read a zip file or a folder.

    Raises
    ------
    BundleError
        If it is neither, cannot be read, is too large, or holds no manifest that can be read.
    """
    findings: list[Finding] = []
    if path.is_symlink():
        raise BundleError(f"{path} is a link.", allowed="a bundle itself: a .zip file or a folder")
    if path.is_dir():
        files = _collect(_folder_members(path, limits, findings), limits, findings)
    elif path.is_file():
        files = _read_zip(path, limits, findings)
    else:
        raise BundleError(
            f"there is no bundle {path}.",
            allowed="a .zip file or a folder",
            next_step="Make one with `neurobench submit OUT`.",
        )
    if MANIFEST not in files:
        raise BundleError(
            f"{path} holds no manifest.",
            allowed=f"a bundle with {MANIFEST} at its top",
            next_step="Make it with `neurobench submit OUT`; zip its content, not the folder around it.",
        )
    manifest = _manifest(files.pop(MANIFEST))
    return Contents(_as_listed(files, manifest, findings), manifest, tuple(findings))


def _wrong(code: str, message: str, path: str, fix: str = "") -> Finding:
    return Finding("error", code, message, fix, path=printable(path))


def printable(text: str, most: int = 100) -> str:
    """Return a stranger's text as it can be printed: it may hold anything, and be of any length."""
    plain = "".join(c if c.isprintable() else "?" for c in text)
    return plain if len(plain) <= most else f"{plain[:most]}…"


# ---------------------------------------------------------------- members


@dataclass(frozen=True, eq=False)
class _Member:
    """One file of a bundle before it is read: its name, and how to open it."""

    name: str
    packed: int
    open: Any


def _collect(members: Iterator[_Member], limits: Limits, findings: list[Finding]) -> dict[str, bytes]:
    """Read members in pieces until a limit is met, whatever their headers say of their length."""
    files: dict[str, bytes] = {}
    total = 0
    for n, member in enumerate(members, 1):
        if n > limits.n_files:
            raise BundleError(f"the bundle holds more than {limits.n_files} files.")
        try:
            with member.open() as stream:
                content = _read(stream, member, limits)
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
            findings.append(_wrong("unreadable", f"cannot be read: {error}", member.name))
            continue
        except _TooLargeError as error:
            findings.append(_wrong("too-large", str(error), member.name))
            continue
        total += len(content)
        if total > limits.total_bytes:
            raise BundleError(f"the bundle holds more than {_mb(limits.total_bytes)} unpacked; reading stopped there.")
        files[member.name] = content
    return files


class _TooLargeError(Exception):
    pass


def _mb(n: int) -> str:
    return f"{n / (1 << 20):.3g} MiB"


def _read(stream: IO[bytes], member: _Member, limits: Limits) -> bytes:
    parts, size = [], 0
    while piece := stream.read(_PIECE):
        parts.append(piece)
        size += len(piece)
        if size > limits.file_bytes:
            raise _TooLargeError(f"is larger than {_mb(limits.file_bytes)}; reading stopped there")
        if size > limits.ratio_from_bytes and size > limits.ratio * max(member.packed, 1):
            raise _TooLargeError(
                f"unpacks to more than {limits.ratio} times its size in the archive: text of numbers does not"
            )
    return b"".join(parts)


def _judged(name: str) -> Finding | None:
    """Return why a bundle may not hold a file of this name."""
    parts = re.split(r"[\\/]", name)
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name):
        return _wrong("path", "is an absolute path", name, "A bundle holds relative names only.")
    if ".." in parts:
        return _wrong("path", "leads out of the bundle", name, "A bundle holds names below its own top only.")
    if not allowed_name(name):
        return _wrong(
            "name",
            "is no part of a bundle",
            name,
            "Allowed: records/ID.json, identities/ID.json, predictions/ID.csv, folds/FINGERPRINT.json, "
            "comparisons/HASH.json (64 hexadecimal digits), PULL_REQUEST.md. Code is never part of one.",
        )
    return None


def _folder_members(path: Path, limits: Limits, findings: list[Finding]) -> Iterator[_Member]:
    seen = 0
    for here, folders, names in os.walk(path, followlinks=False):
        for name in sorted([*folders, *names]):
            full = Path(here) / name
            seen += 1
            if seen > 2 * limits.n_files:
                raise BundleError(f"{path} holds more than {limits.n_files} files.")
            relative = full.relative_to(path).as_posix()
            mode = full.lstat().st_mode
            if stat.S_ISLNK(mode):
                findings.append(_wrong("link", "is a link", relative, "A bundle holds the files themselves."))
            elif stat.S_ISREG(mode):
                if (problem := _judged(relative)) is not None:
                    findings.append(problem)
                else:
                    # A folder packs nothing: of a file that claims no length there is nothing to compare with.
                    size = full.stat().st_size
                    yield _Member(relative, max(size, 1), functools.partial(open, full, "rb"))
            elif not stat.S_ISDIR(mode):
                findings.append(_wrong("kind", "is no plain file", relative))
        folders[:] = [f for f in folders if not (Path(here) / f).is_symlink()]


def _read_zip(path: Path, limits: Limits, findings: list[Finding]) -> dict[str, bytes]:
    if (size := path.stat().st_size) > limits.archive_bytes:
        raise BundleError(f"{path} has {_mb(size)}.", allowed=f"at most {_mb(limits.archive_bytes)}")
    try:
        with zipfile.ZipFile(path) as archive:
            return _collect(_zip_members(archive, limits, findings), limits, findings)
    except BundleError:
        raise
    # The reader of zip files answers broken ones with whatever its parsing meets.
    except Exception as error:
        raise BundleError(
            f"{path} cannot be read as a zip file: {error or type(error).__name__}.",
            next_step="It may have been cut off on the way: make it again with `neurobench submit OUT`.",
        ) from error


def _zip_members(archive: zipfile.ZipFile, limits: Limits, findings: list[Finding]) -> Iterator[_Member]:
    entries = archive.infolist()
    if len(entries) > limits.n_files:
        raise BundleError(f"the bundle holds {len(entries)} files.", allowed=f"at most {limits.n_files}")
    names: set[str] = set()
    for entry in entries:
        name = entry.orig_filename
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind == stat.S_IFLNK:
            findings.append(_wrong("link", "is a link", name, "A bundle holds the files themselves."))
        elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            findings.append(_wrong("kind", "is no plain file", name))
        elif entry.flag_bits & 0x1:
            findings.append(_wrong("kind", "is encrypted", name))
        elif entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            findings.append(_wrong("kind", "is packed by another method than deflate", name))
        elif name in names:
            findings.append(_wrong("twice", "is in the archive twice", name))
        elif entry.is_dir() and ".." not in name and not name.startswith("/"):
            continue
        elif (problem := _judged(name)) is not None:
            findings.append(problem)
        elif entry.file_size > limits.file_bytes:
            size, most = _mb(entry.file_size), _mb(limits.file_bytes)
            findings.append(_wrong("too-large", f"has {size}, and {most} is allowed; it was not unpacked", name))
        else:
            names.add(name)
            yield _Member(name, entry.compress_size, functools.partial(archive.open, entry))


# ---------------------------------------------------------------- the manifest


class _Listed(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    sha256: str
    bytes: int


class _Left(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    what: str
    why: str
    n: int


class _Manifest(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    format: int
    made_by: str
    n_records: int
    left_behind: list[_Left]
    files: dict[str, _Listed]


def _manifest(content: bytes) -> Mapping[str, Any]:
    try:
        plain = parse_strict(content)
        if isinstance(plain, dict) and plain.get("format") != FORMAT:
            raise ValueError(f"format {str(plain.get('format'))[:40]!r}, and this neurobench reads format {FORMAT}")
        return _Manifest.model_validate(plain).model_dump()
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        what = f"{'.'.join(map(str, first['loc']))[:100]}: {first['msg']}"
        raise BundleError(f"{MANIFEST} is no manifest: {what}.") from error
    except ValueError as error:
        raise BundleError(
            f"{MANIFEST} cannot be read: {error}.", next_step="Make the bundle again with `neurobench submit OUT`."
        ) from error


def _as_listed(files: Mapping[str, bytes], manifest: Mapping[str, Any], findings: list[Finding]) -> dict[str, bytes]:
    """Return the files that the manifest lists with these bytes; the others are findings."""
    kept: dict[str, bytes] = {}
    listed: Mapping[str, Mapping[str, Any]] = manifest["files"]
    refused = {f.path for f in findings}
    for name, content in files.items():
        if name not in listed:
            findings.append(_wrong("not-listed", "is not in the manifest", name, "Was it added by hand?"))
        elif hashlib.sha256(content).hexdigest() != listed[name]["sha256"] or len(content) != listed[name]["bytes"]:
            findings.append(
                _wrong("sum", "is not what the manifest says: another sha256", name, "It was changed after submit.")
            )
        else:
            kept[name] = content
    for name in listed:
        if name not in files and printable(name) not in refused:
            findings.append(_wrong("missing", "is in the manifest and not in the bundle", name))
    return kept


# ---------------------------------------------------------------- text


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def parse_strict(content: bytes) -> Any:
    """Return plain values: no NaN, no infinity, no key twice, text that can be written again.

    Stricter than what reads files of people's own, in which some converters write NaN, or a name twice.

    Raises
    ------
    ValueError
        Whatever is wrong.
    """
    try:
        text = content.decode("utf-8")
        plain = json.loads(text, parse_constant=_constant, parse_float=finite, object_pairs_hook=_once)
        # An escaped half of a pair is text that cannot be hashed.
        json.dumps(plain, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeError as error:
        raise ValueError(f"it is no UTF-8: {error}") from None
    return plain


class _Fold(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")

    index: int
    train: tuple[str, ...]
    test: tuple[str, ...]
    train_span: tuple[float, float]
    test_span: tuple[float, float]


class _Folds(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")

    pseudonyms: bool
    folds: list[_Fold]


def parse_folds(content: bytes) -> tuple[tuple[Fold, ...], bool]:
    """Return folds, and whether their people are under pseudonyms.

    Raises
    ------
    ValueError
        If they are none.
    """
    try:
        found = _Folds.model_validate(parse_strict(content))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    return tuple(Fold(**f.model_dump()) for f in found.folds), found.pseudonyms


_TEXT = ("participant_id", "window", "state", "condition", "mask", "sex", "site", "family", "part")
_WHOLE = ("fold", "n_epochs", "n_left_out", "n_gallery")

_NEEDED = ("fold", "truth", "prediction", "train_mean", "n", "sse", "sst", "sse_best_filler", "guard_sse", "guard_sst")
"""Numbers that are in every row; covariates, and what is not defined for a subject or a response, may be missing."""

_MAX_CELLS = 20_000_000


def parse_table(content: bytes) -> pd.DataFrame:
    """Return a table of held-out predictions from its CSV.

    Raises
    ------
    ValueError
        If a row has another length, or a cell is not what its column holds.
    """
    try:
        text = content.decode("utf-8")
    except UnicodeError as error:
        raise ValueError(f"it is no UTF-8: {error}") from None
    if "\0" in text:
        raise ValueError("it holds a null character")
    try:
        rows = csv.reader(io.StringIO(text, newline=""), strict=True)
        header = next(rows, [])
        body = list(rows)
    except csv.Error as error:
        raise ValueError(f"it is no CSV: {error}") from None
    if not header or len(set(header)) != len(header) or len(header) > 200:
        raise ValueError("its first line is not 1 to 200 different names of columns")
    if "participant_id" not in header:
        raise ValueError("it has no column participant_id")
    if len(header) * len(body) > _MAX_CELLS:
        raise ValueError(f"it has {len(body)} rows of {len(header)} columns")
    for number, row in enumerate(body, 2):
        if len(row) != len(header):
            raise ValueError(f"line {number} has {len(row)} cells, not {len(header)}")
    return pd.DataFrame(
        {name: _column(name, [row[k] for row in body], "window" in header) for k, name in enumerate(header)}
    )


def _column(name: str, cells: Sequence[str], of_windows: bool) -> Any:
    if name in _TEXT or (name == "truth" and of_windows):
        return np.array(cells, dtype=object)
    if name == "headline":
        if not set(cells) <= {"true", "false"}:
            raise ValueError("column headline holds something else than true and false")
        return np.array([c == "true" for c in cells], dtype=bool)
    try:
        if name in _WHOLE:
            return np.array([_whole(c) for c in cells], dtype=np.int64)
        values = np.array([float(c) if c else math.nan for c in cells], dtype=np.float64)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"column {printable(name)} holds something that is no number: {str(error)[:80]}") from None
    if np.isinf(values).any() or any(c.strip().lower().lstrip("+-") == "nan" for c in cells):
        raise ValueError(f"column {printable(name)} holds NaN or an infinite number")
    if name in _NEEDED and np.isnan(values).any():
        raise ValueError(f"column {printable(name)} has an empty cell")
    return values


def _whole(text: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,12}", text):
        raise ValueError(f"{text[:20]!r}")
    return int(text)

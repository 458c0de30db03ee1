"""Files beside an MEG recording: channels, events, settings, noise; found by BIDS's rule of inheritance."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

from neurobench import DataError, Finding
from neurobench_datasets._tables import read_json, read_table

BIDS_NAME = re.compile(
    r"sub-(?P<sub>[^_]+)(_ses-(?P<ses>[^_]+))?(_task-(?P<task>[^_]+))?(_acq-(?P<acq>[^_]+))?(_run-(?P<run>[^_]+))?"
    r"(_proc-(?P<proc>[^_]+))?(_split-(?P<split>[^_]+))?_meg(\.fif|\.fif\.gz|\.ds|\.con|\.sqd)?"
)
SUFFIX = re.compile(r"([-_]raw|[-_]meg)?(\.fif|\.fif\.gz|\.ds|\.con|\.sqd|\.mat)?$")
VECTORVIEW = re.compile(r"MEG\s?(\d{4})")
LEVELS = 4
"""Folders in which a sidecar may lie: that of the recording, the session's, the subject's, the data set's."""

NOISE_TASKS = frozenset({"noise", "emptyroom"})


def normalised(name: str) -> str:
    """Return a sensor's name in one style: ``MEG 0113`` (not ``MEG0113``), ``MLC11`` (not ``MLC11-4304``)."""
    if match := VECTORVIEW.fullmatch(name):
        return f"MEG {match[1]}"
    return re.sub(r"-\d+$", "", name)


def sidecar(path: Path, suffix: str) -> Path | None:
    """Return the file with ``suffix``, such as ``events.tsv``, that applies to a recording, or None.

    In a BIDS folder that is the nearest one upwards whose entities are all the recording's, the most particular one of
    a folder first. Of a file with another name it is ``NAME_events.tsv`` beside it.
    """
    if BIDS_NAME.fullmatch(path.name) is None:
        own = path.with_name(f"{SUFFIX.sub('', path.name)}_{suffix}")
        return own if own.is_file() else None
    entities = set(re.sub(r"_meg(\.[a-z.]+)?$", "", path.name).split("_"))
    folder = path.parent
    for _ in range(LEVELS):
        applying = [
            p
            for p in sorted(folder.glob(f"*{suffix}"))
            if p.name.endswith(f"_{suffix}") and set(p.name[: -len(suffix) - 1].split("_")) <= entities
        ]
        if applying:
            return max(applying, key=lambda p: len(p.name.split("_")))
        # The folder that holds the subjects is the data set's; above it begins another.
        if any(child.is_dir() for child in folder.glob("sub-*")):
            return None
        folder = folder.parent
    return None


def beside(path: Path, other: Path | None) -> tuple[str, str]:
    """Return where ``other`` lies as seen from a recording's folder, and a hash of its content; empty for None."""
    if other is None:
        return "", ""
    try:
        content = other.read_bytes()
    except OSError:
        # Said when it is read.
        return os.path.relpath(other, path.parent), "unreadable"
    return os.path.relpath(other, path.parent), hashlib.sha256(content).hexdigest()[:16]


def bad_channels(path: Path, names: set[str], findings: list[Finding], subject: str) -> list[str]:
    """Return the channels that ``channels.tsv`` marks as bad, names normalised; what does not fit is said.

    Parameters
    ----------
    path
        The recording.
    names
        Normalised names of all its channels.
    findings
        What is noticed is added here.
    subject
        Whose it is.
    """
    table_path = sidecar(path, "channels.tsv")
    if table_path is None:
        return []

    def say(code: str, text: str, fix: str) -> None:
        findings.append(Finding("warning", code, text, fix=fix, subject=subject, path=str(table_path)))

    try:
        table = read_table(table_path)
    except (DataError, OSError) as error:
        say("channels-unreadable", f"{error} No channel is taken as bad.", "write it with columns name and status")
        return []
    if "name" not in table:
        say("channels-unreadable", f"{table_path.name} has no column name", "write it with columns name and status")
        return []
    listed = [normalised(n) for n in table["name"].dropna()]
    strange = [n for n in listed if n not in names]
    if strange and len(strange) == len(listed):
        text = f"none of the {len(listed)} names in {table_path.name} is a channel of {path.name}: it is not used"
        say("channels-differ", text, "put the table of this recording beside it")
        return []
    if strange:
        text = f"{len(strange)} of {len(listed)} names in {table_path.name} are no channels of {path.name}: "
        say("channels-differ", text + ", ".join(strange[:4]), "write the names as the recording has them")
    if "status" not in table:
        return []
    bad = table["status"].str.lower() == "bad"
    return sorted({normalised(n) for n in table["name"][bad.fillna(False)].dropna()} & names)


def settings(path: Path) -> dict[str, Any]:
    """Return the content of the JSON file that applies to a recording; empty where there is none or it is broken."""
    found = sidecar(path, "meg.json")
    if found is None:
        return {}
    try:
        return read_json(found)
    except (DataError, OSError):
        return {}


def noise_file(path: Path, day: str = "") -> Path | None:
    """Return the noise covariance or empty-room recording that belongs to a recording, or None.

    ``NAME-cov.fif`` beside it; what its JSON names as ``AssociatedEmptyRoom``; a recording of task noise of the same
    subject; of ``sub-emptyroom`` the session of the same day, or the only one.

    Parameters
    ----------
    path
        The recording.
    day
        Its date as ``YYYYMMDD``; empty where unknown.
    """
    stem = SUFFIX.sub("", path.name)
    for name in (f"{stem}-cov.fif", f"{stem}_cov.fif", f"{stem}_raw-cov.fif", f"{stem}_meg-cov.fif"):
        if path.with_name(name).is_file():
            return path.with_name(name)
    match = BIDS_NAME.fullmatch(path.name)
    if match is None:
        return None
    root = next((p for p in path.parents if p.name == f"sub-{match['sub']}"), path.parent).parent
    said = settings(path).get("AssociatedEmptyRoom")
    for text in [said] if isinstance(said, str) else said if isinstance(said, list) else []:
        named = root / str(text).removeprefix("bids::").lstrip("/")
        # A sidecar names a file of its own dataset, or none.
        if ".." not in named.parts and os.path.exists(named):
            return named
    own = sorted(p for p in path.parent.glob("sub-*_meg.*") if _is_noise(p))
    if own:
        return own[0]
    rooms = sorted(p for p in root.glob("sub-emptyroom/ses-*/meg/*_meg.*") if _is_noise(p))
    same = [p for p in rooms if day and f"_ses-{day}_" in p.name]
    return same[0] if same else rooms[0] if len(rooms) == 1 else None


def _is_noise(path: Path) -> bool:
    match = BIDS_NAME.fullmatch(path.name)
    return match is not None and (match["task"] or "").lower() in NOISE_TASKS and match["split"] in (None, "01", "1")

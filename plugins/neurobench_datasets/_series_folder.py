"""A folder ``timeseries/`` with one ROI file a recording, and perhaps ``regions.tsv`` beside it."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from neurobench import DataError, Finding, RawRecording, RecordingFile
from neurobench_datasets._roi_series import (
    MIN_TIMES,
    SUFFIXES,
    cached_units,
    decide_orientation,
    evenly,
    read_series,
    shape_of,
    units_findings,
    units_first,
    units_of,
    unnamed_regions,
)
from neurobench_datasets._tables import match_id, number, read_json

ONE_OF_THEM = "Keep the files of one there, or name its regions in regions.tsv, which leaves out the others."


def list_series(
    root: Path,
    participants: pd.DataFrame,
    *,
    component: str,
    t_r: float,
    orientation: str = "",
    variable: str = "",
    default_t_r: float = 0.0,
) -> tuple[tuple[RecordingFile, ...], list[Finding]]:
    """List ``timeseries/`` of a folder, with the repetition time and orientation of every file.

    Parameters
    ----------
    root
        Folder with ``timeseries/`` and perhaps ``regions.tsv``.
    participants
        Indexed by id, perhaps with a column ``t_r``.
    component
        As a user writes it, for messages.
    t_r, orientation, variable
        The user's parameters.
    default_t_r
        Repetition time of the release where nothing else says one.

    Raises
    ------
    DataError
        If no file can be used.
    """
    folder = root / "timeseries"
    files = sorted(f for f in folder.iterdir() if f.suffix in SUFFIXES) if folder.is_dir() else []
    files = sorted((f for f in files if f.name[0] != "."), key=lambda f: (f.stem, SUFFIXES.index(f.suffix)))
    if not files:
        raise DataError(
            f"{root} has no folder timeseries with files." if not folder.is_dir() else f"{folder} has no time series.",
            allowed=f"timeseries/<participant_id>* ending in {', '.join(SUFFIXES)}",
            next_step="Write the endings of names as they are here, in small letters."
            if folder.is_dir() and any(f.suffix.lower() in SUFFIXES for f in folder.iterdir())
            else "",
        )
    findings: list[Finding] = []
    matched: list[tuple[str, str, str, Path, tuple[int, int], float]] = []
    names: dict[Path, frozenset[str]] = {}
    taken: dict[tuple[str, str, str], Path] = {}
    for path in files:
        subject = subject_of(path.stem, participants.index)
        if not subject:
            findings.append(_error("unknown-id", f"no participant has the id of {path.name}", path=str(path)))
            continue
        session, run = _entities(path.stem)
        key = (subject, session, run)
        if key in taken and taken[key].stem != path.stem:
            run = re.sub(r"[^A-Za-z0-9]+", "-", path.stem.split(subject.removeprefix("sub-"), 1)[-1]).strip("-")
            key = (subject, session, run)
        if key in taken:
            text = f"{path.name} and {taken[key].name} are the same recording; the first is used"
            findings.append(Finding("warning", "duplicate-recording", text, subject=subject, path=str(path)))
            continue
        try:
            shape, names[path] = shape_of(path, variable)
            seconds = repetition_time(path, root, participants.loc[subject], t_r, default_t_r, component)
        except DataError as error:
            findings.append(_error("unreadable", str(error), subject=subject, path=str(path)))
            continue
        taken[key] = path
        matched.append((*key, path, shape, seconds))
    zeros = [m for m in matched if not m[3].stem.removeprefix("sub-").startswith(m[0].removeprefix("sub-"))]
    if zeros:
        text = f"{len(zeros)} names of files have other zeros than the ids of the table"
        text += f": {zeros[0][3].name} is {zeros[0][0]}"
        findings.append(Finding("info", "zeros-lost", text, path=str(zeros[0][3])))
    if not matched:
        # What most files lack is the reason; the first file may have one of its own.
        reasons = Counter(f.message.replace(Path(f.path).name, "…") for f in findings if f.level == "error")
        told = "; ".join(f"{n} × {reason}" for reason, n in reasons.most_common(3))
        raise DataError(f"none of the {len(files)} files under {folder} can be used: {told}")
    regions = next((root / f for f in ("regions.tsv", "regions.csv") if (root / f).exists()), None)
    units = None
    digest = ""
    if regions is not None:
        digest = hashlib.sha256(regions.read_bytes()).hexdigest()
        units = cached_units(regions, digest, 0)
    if units is None:
        _one_parcellation([m[3] for m in matched], names)
        if not orientation:
            _one_length({m[3]: (m[0], m[4]) for m in matched}, component)
    way, n_regions = decide_orientation(
        [m[4] for m in matched], 0 if units is None else len(units), orientation, component
    )
    findings += units_findings(units_of(unnamed_regions(n_regions)) if units is None else units)
    recordings = []
    for subject, session, run, path, shape, seconds in matched:
        found = way or ("units_first" if shape[0] == n_regions else "times_first")
        n_times = shape[1] if found == "units_first" else shape[0]
        if n_times < MIN_TIMES:
            text = f"{path.name} has {n_times} volumes, fewer than {MIN_TIMES}"
            findings.append(_error("too-short", text, subject=subject, path=str(path)))
            continue
        options = {"regions": digest, "n_regions": n_regions, "orientation": way or ""}
        recordings.append(RecordingFile(subject, path, 1.0 / seconds, session=session, run=run, options=options))
    without = [s for s in participants.index if s not in {m[0] for m in matched}]
    if without:
        text = (
            f"{len(without)} of {len(participants)} participants have no usable time series: {', '.join(without[:4])}"
        )
        findings.append(Finding("warning", "no-timeseries", text + (" …" if len(without) > 4 else "")))
    return tuple(sorted(recordings, key=lambda r: r.id)), findings


def _one_parcellation(paths: list[Path], names: Mapping[Path, frozenset[str]]) -> None:
    """Refuse files of several parcellations: what all of them share is then their volumes, not their regions.

    Raises
    ------
    DataError
        If names of files say so, as XCP-D's do (``atlas-``, ``seg-``), or names of regions inside them.
    """
    said = Counter(m[1] for p in paths if (m := re.search(r"_(?:atlas|seg|parc)-([A-Za-z0-9]+)", p.stem)))
    if len(said) > 1:
        told = ", ".join(f"{name} ({n} files)" for name, n in sorted(said.items()))
        raise DataError(
            f"{paths[0].parent} holds time series of {len(said)} parcellations: {told}.",
            allowed="regions of one parcellation in one order",
            next_step=ONE_OF_THEM,
        )
    named = [p for p in paths if names[p]]
    usual = Counter(names[p] for p in named).most_common(1)[0][0] if named else frozenset()
    others = [p for p in named if 2 * len(names[p] & usual) < min(len(names[p]), len(usual))]
    # A few odd files are left out one by one, by name.
    if 10 * len(others) > len(paths):
        example = next(p for p in named if names[p] == usual)
        told = f"{min(usual)}, … in {example.name}, {min(names[others[0]])}, … in {others[0].name}"
        raise DataError(
            f"{len(others)} of {len(paths)} files in {paths[0].parent} have other regions than the rest: {told}.",
            allowed="regions of one parcellation in one order",
            next_step=ONE_OF_THEM,
        )


def _one_length(files: Mapping[Path, tuple[str, tuple[int, int]]], component: str) -> None:
    """Refuse two kinds of files a person that differ in one dimension: in their regions, or in their volumes.

    Raises
    ------
    DataError
        If nothing tells which: neither labels of tasks and runs, nor lengths that differ among people.
    """
    kinds: dict[str, list[Path]] = {}
    for path, (subject, _) in files.items():
        kinds.setdefault(_kind(path.stem, subject), []).append(path)
    shapes = {kind: {files[p][1] for p in paths} for kind, paths in kinds.items()}
    people = [{files[p][0] for p in paths} for paths in kinds.values()]
    several = sum(n > 1 for n in Counter(s for found in people for s in found).values())
    if 2 * several <= len(set().union(*people)) or any(len(s) > 1 for s in shapes.values()):
        return
    rows, columns = ({s[axis] for (s,) in shapes.values()} for axis in (0, 1))
    if (len(rows) == 1) != (len(columns) == 1):
        told = ", ".join(
            f"{kinds[k][0].name} and {len(kinds[k]) - 1} more {s[0]} × {s[1]}" for k, (s,) in shapes.items()
        )
        raise DataError(
            f"it cannot be told whether files of one person are of several parcellations or several lengths: {told}.",
            allowed="regions of one parcellation in one order",
            next_step=f"{ONE_OF_THEM} If lengths differ, say {component}[orientation=times_first] (volumes "
            "× regions) or units_first.",
        )


def _kind(stem: str, subject: str) -> str:
    """Return what the name of a file says besides whose it is, and which session, task and run."""
    bare, own = stem.removeprefix("sub-"), subject.removeprefix("sub-")
    rest = bare.removeprefix(own) if bare.startswith(own) else re.sub(r"^\d+", "", bare)
    rest = re.sub(r"(ses|task|acq|rec|dir|run|echo)-[A-Za-z0-9]+", "", rest)
    rest = re.sub(r"[^A-Za-z0-9]+", "-", rest).strip("-")
    return "" if re.fullmatch(r"(?i)(run|rest|scan|session|ses|r|s)?-?\d{1,2}", rest) else rest


def read_listed_series(file: RecordingFile, *, variable: str, n_units: int) -> RawRecording:
    """Read a file that :func:`list_series` found."""
    series = read_series(file.path, variable)
    n_regions = int(file.options["n_regions"])
    data = units_first(series.values, n_regions, str(file.options["orientation"]), file.path.name)
    root = file.path.parent.parent
    regions = next((root / f for f in ("regions.tsv", "regions.csv") if (root / f).exists()), None)
    if file.options["regions"] and regions is not None:
        units = cached_units(regions, str(file.options["regions"]), n_units)
    else:
        table = unnamed_regions(n_regions)
        # Files may name their regions themselves, in a header or in an index.
        own = series.rows if data.shape == series.values.shape else series.columns
        if len(set(own)) == n_regions:
            table["name"] = own
        units = units_of(table).take(evenly(n_regions, n_units))
    return RawRecording(data[evenly(n_regions, n_units)], file.sfreq, units)


def subject_of(stem: str, known: pd.Index) -> str:
    """Return the participant whose id begins the name of a file, the longest if several do; or an empty string.

    Where none does, ids are compared as numbers: spreadsheets take the zeros away.
    """
    bare = stem.removeprefix("sub-")
    fits = [k for k in map(str, known) if re.match(rf"{re.escape(k.removeprefix('sub-'))}(?![A-Za-z0-9])", bare)]
    number = re.match(r"\d+(?![A-Za-z0-9])", bare)
    return max(fits, key=len, default=match_id(number[0], map(str, known)) if number else "")


def _entities(stem: str) -> tuple[str, str]:
    found: Mapping[str, str] = dict(re.findall(r"(ses|run)-([A-Za-z0-9]+)", stem))
    return found.get("ses", ""), found.get("run", "")


def repetition_time(
    path: Path, root: Path, person: pd.Series, parameter: float, default: float, component: str
) -> float:
    """Return the repetition time of a file in seconds.

    Raises
    ------
    DataError
        If nothing says it, or two sources contradict each other.
    """
    said: dict[str, float] = {}
    if parameter:
        said["parameter t_r"] = parameter
    value: Any = person.get("t_r")
    if value is not None and pd.notna(value):
        seconds = pd.to_numeric(str(value), errors="coerce")
        if pd.isna(seconds):
            raise DataError(f"column t_r says {value!r}, which is no number of seconds.")
        said["column t_r of the participants table"] = float(seconds)
    for sidecar in (path.with_suffix(".json"), root / "timeseries.json"):
        if sidecar.is_file():
            content = read_json(sidecar)
            if "RepetitionTime" in content:
                said[f"RepetitionTime in {sidecar.name}"] = number(content, "RepetitionTime", sidecar.name)
                break
    if not said and default:
        return default
    if not said:
        raise DataError(
            f"nothing says the repetition time of {path.name}: the participants table has no value in a column t_r, "
            "and there is no JSON sidecar with RepetitionTime.",
            next_step=f"Say it in seconds, for example {component}[t_r=2.0].",
        )
    values = list(said.values())
    if max(values) - min(values) > 0.01 * max(values):
        shown = ", ".join(f"{v:g} s ({k})" for k, v in said.items())
        raise DataError(
            f"the repetition time of {path.name} contradicts itself: {shown}.",
            next_step="Correct the one that is wrong, or remove it.",
        )
    if not 0.05 <= values[0] <= 20:
        raise DataError(
            f"a repetition time of {values[0]:g} s ({next(iter(said))}) cannot be right.",
            allowed=".05 to 20 s",
            next_step=f"Milliseconds? Then it is {values[0] / 1000:g} s." if values[0] > 100 else "Give it in seconds.",
        )
    return values[0]


def _error(code: str, message: str, *, subject: str = "", path: str = "") -> Finding:
    return Finding("error", code, message, subject=subject, path=path)

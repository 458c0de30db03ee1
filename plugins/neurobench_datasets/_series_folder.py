"""A folder ``timeseries/`` with one ROI file a recording, and perhaps ``regions.tsv`` beside it."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from neurobench import DataError, Finding, RawRecording, RecordingFile
from neurobench_datasets._roi_series import (
    CIFTI,
    MIN_TIMES,
    SUFFIXES,
    cached_units,
    cifti_time,
    decide_orientation,
    evenly,
    rank,
    read_series,
    shape_of,
    units_findings,
    units_first,
    units_of,
    unnamed_regions,
)
from neurobench_datasets._tables import number, read_json

NO_SERIES = re.compile(
    r"(?i)(^|_)(desc-confounds.*|confounds|regressors|events|channels|electrodes|scans|sessions|physio|stim|motion|outliers"
    r"|mixing|metrics|relmat|coverage|qc|beh|participants|phenotypic|coordsystem|mask|dseg|T1w|.*correlation.*|connectivity"
    r"|connectome|fc)$"
)
"""How names of files about people end that hold no series of regions: BIDS's tables, motion, connectivity."""

ONE_OF_THEM = "Keep the files of one there, or name its regions in regions.tsv, which leaves out the others."

LONGEST_ID = 30
"""Digits of a number that may be an id."""


def list_series(
    root: Path,
    participants: pd.DataFrame,
    *,
    component: str,
    t_r: float,
    orientation: str = "",
    variable: str = "",
    default_t_r: float = 0.0,
    pattern: str | None = None,
) -> tuple[tuple[RecordingFile, ...], list[Finding]]:
    """List the time series of a folder, with the repetition time and orientation of every file.

    Parameters
    ----------
    root
        Folder with ``timeseries/``, or with files of people anywhere in it, and perhaps ``regions.tsv``.
    participants
        Indexed by id, perhaps with a column ``t_r``.
    component
        As a user writes it, for messages.
    t_r, orientation, variable
        The user's parameters.
    default_t_r
        Repetition time of the release where nothing else says one.
    pattern
        Which files are meant, such as ``*_seg-Gordon_stat-mean_timeseries.tsv``; empty: those of ``timeseries/``, or
        where there is no such folder the one kind of time series that people have anywhere under ``root``; None: the
        user has no such parameter.

    Raises
    ------
    DataError
        If no file can be used, or people have several kinds and none is chosen.
    """
    files, findings = find_series(root, people := People(root, participants.index), component, pattern or "")
    folder = root / "timeseries" if not pattern and (root / "timeseries").is_dir() else root
    matched: list[tuple[str, str, str, Path, tuple[int, int], float]] = []
    names: dict[Path, frozenset[str]] = {}
    axes: dict[Path, int | None] = {}
    taken: dict[tuple[str, str, str], Path] = {}
    for path in files:
        subject = people(path)
        if not subject:
            findings.append(_error("unknown-id", f"no participant has the id of {path.name}", path=str(path)))
            continue
        beyond = "_".join(path.relative_to(folder).with_suffix("").parts)
        session, run = _entities(beyond)
        key = (subject, session, run)
        if key in taken and taken[key].with_suffix("") != path.with_suffix(""):
            run = re.sub(r"[^A-Za-z0-9]+", "-", beyond.split(subject.removeprefix("sub-"), 1)[-1]).strip("-")
            key = (subject, session, run)
        if key in taken:
            text = f"{path.name} and {taken[key].name} are the same recording; the first is used"
            findings.append(Finding("warning", "duplicate-recording", text, subject=subject, path=str(path)))
            continue
        try:
            shape, names[path], axes[path] = shape_of(path, variable)
            seconds = repetition_time(path, root, participants.loc[subject], t_r, default_t_r, component)
        except DataError as error:
            findings.append(_error("unreadable", str(error), subject=subject, path=str(path)))
            continue
        taken[key] = path
        matched.append((*key, path, shape, seconds))
    zeros = [m for m in matched if bare(m[3].stem)[:1].isdigit() and not bare(m[3].stem).startswith(bare(m[0]))]
    if zeros:
        text = f"{len(zeros)} names of files have other zeros than the ids of the table"
        text += f": {zeros[0][3].name} is {zeros[0][0]}"
        findings.append(Finding("info", "zeros-lost", text, path=str(zeros[0][3])))
    if not matched:
        # What most files lack is the reason; the first file may have one of its own.
        reasons = Counter(f.message.replace(Path(f.path).name, "…") for f in findings if f.level == "error")
        told = "; ".join(f"{n} × {reason}" for reason, n in reasons.most_common(3))
        raise DataError(f"none of the {len(files)} files under {folder} can be used: {told}")
    places = (root, *root.resolve().parents[:2])
    regions = next((p / f for p in places for f in ("regions.tsv", "regions.csv") if (p / f).exists()), None)
    units = None
    digest = ""
    if regions is not None:
        digest = hashlib.sha256(regions.read_bytes()).hexdigest()
        units = cached_units(regions, digest, 0)
    if units is None:
        try:
            _one_parcellation([m[3] for m in matched], names)
            if not orientation:
                _one_length({m[3]: (m[0], m[4]) for m in matched}, component)
        except DataError as error:
            if pattern is None:
                raise
            step = f"Say which files are meant: '{component}[files={_pattern([matched[0][3]])}]'. Or: "
            raise DataError(error.what, allowed=error.allowed, next_step=step + error.next_step) from error
    way, n_regions = decide_orientation(
        [m[4] for m in matched],
        0 if units is None else len(units),
        orientation,
        component,
        [axes[m[3]] for m in matched],
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
            next_step=f"{ONE_OF_THEM} If lengths differ, say {component}[orientation=times_first] "
            "(volumes × regions) or units_first.",
        )


def _kind(stem: str, subject: str) -> str:
    """Return what the name of a file says besides whose it is, and which session, task and run."""
    name, own = bare(stem), bare(subject)
    rest = name.removeprefix(own) if name.startswith(own) else re.sub(r"^\d+", "", name)
    rest = re.sub(r"(^|_)sub-[A-Za-z0-9]+|\d{5,}", "", rest)
    rest = re.sub(r"(ses|task|acq|rec|dir|run|echo)-[A-Za-z0-9]+", "", rest)
    rest = re.sub(r"[^A-Za-z0-9]+", "-", rest).strip("-")
    return "" if re.fullmatch(r"(?i)(run|rest|scan|session|ses|r|s)?-?\d{1,2}", rest) else rest


def read_listed_series(file: RecordingFile, *, variable: str, n_units: int) -> RawRecording:
    """Read a file that :func:`list_series` found."""
    series = read_series(file.path, variable)
    n_regions = int(file.options["n_regions"])
    data = units_first(series.values, n_regions, str(file.options["orientation"]), file.path.name)
    digest = str(file.options["regions"])
    regions = _regions_above(file.path, digest) if digest else None
    if regions is not None:
        units = cached_units(regions, digest, n_units)
    else:
        table = unnamed_regions(n_regions)
        # Files may name their regions themselves, in a header or in an index.
        own = series.rows if data.shape == series.values.shape else series.columns
        if len(set(own)) == n_regions:
            table["name"] = own
        units = units_of(table).take(evenly(n_regions, n_units))
    return RawRecording(data[evenly(n_regions, n_units)], file.sfreq, units)


def bare(subject: str) -> str:
    """Return an id or a name without ``sub-``."""
    return subject.removeprefix("sub-")


def _regions_above(path: Path, digest: str) -> Path | None:
    """Return the table of regions of a recording's folder: the nearest above it with what was listed."""
    above = (*path.parents, *path.resolve().parents)
    tables = (folder / name for folder in above for name in ("regions.tsv", "regions.csv"))
    return next((t for t in tables if t.is_file() and hashlib.sha256(t.read_bytes()).hexdigest() == digest), None)


# ---------------------------------------------------------------- which files


def find_series(root: Path, people: People, component: str, pattern: str) -> tuple[list[Path], list[Finding]]:
    """Return the files that may hold time series of people, and what was passed over.

    Parameters
    ----------
    root, component, pattern
        As of :func:`list_series`.
    people
        Whose files they are.

    Raises
    ------
    DataError
        If there are none, or several kinds of them and none is chosen.
    """
    folder = root / "timeseries"
    if pattern:
        found = [p for p in sorted(root.rglob(pattern)) if not p.is_dir()]
    elif folder.is_dir():
        found = sorted(folder.iterdir())
    else:
        found = [p for p in sorted(root.rglob("*")) if p.parent != root or people(p)]
    found = [p for p in found if not any(part.startswith(".") for part in p.relative_to(root).parts)]
    files = sorted((p for p in found if rank(p) is not None), key=lambda p: (str(p.parent), p.stem, rank(p)))
    if pattern or folder.is_dir():
        if not files:
            where = f"{folder} has no time series"
            if pattern:
                kind = "fits" if not found else "that is read fits"
                where = f"no file under {root} {kind} {pattern!r}"
            raise _no_series(f"{where}.", found, root)
        return files, []
    files = [p for p in files if not NO_SERIES.search(p.stem) and people(p)]
    if not files:
        raise _no_series(f"{root} has no folder timeseries, and no time series of people anywhere.", found, root)
    kinds: dict[str, list[Path]] = {}
    for path in files:
        kinds.setdefault(_kind(path.stem, people.beginning(path.stem)), []).append(path)
    named = {k: paths for k, paths in kinds.items() if re.search(r"(?i)time-?series|ptseries|(^|-)ts$", k)}
    chosen = named or kinds
    if len(chosen) > 1:
        told = ", ".join(f"{_pattern(p)} ({len(p)} files)" for p in list(chosen.values())[:4])
        example = min(chosen.values(), key=lambda p: (-len(p), str(p[0])))
        raise DataError(
            f"{root} has no folder timeseries, and {len(chosen)} kinds of files of people: {told}.",
            allowed="one kind: regions of one parcellation, one file a recording",
            next_step=f"Say which: '{component}[files={_pattern(example)}]'.",
        )
    (files,) = chosen.values()
    # Patterns, not names: what a report shows may be passed on.
    text = f"there is no folder timeseries: {len(files)} files such as {_pattern(files)} are used"
    findings = [Finding("info", "found-series", text)]
    if others := {k: paths for k, paths in kinds.items() if k not in chosen}:
        text = f"{sum(map(len, others.values()))} other files of people are not used: "
        text += ", ".join([_pattern(paths) for paths in others.values()][:4])
        findings.append(Finding("info", "other-files", text, fix=f"say {component}[files=…] to choose"))
    return files, findings


def _no_series(what: str, found: list[Path], root: Path) -> DataError:
    """Return the error for a folder without time series, with what to do about those that are of another kind."""
    names = [p.name.lower() for p in found]
    images = [n for n in names if n.endswith((".nii", ".nii.gz")) and not n.endswith(".dtseries.nii")]
    archive = next((p for p in (*found, *sorted(root.glob("*.np[yz]"))) if p.suffix in (".npz", ".npy")), None)
    steps = []
    if archive:
        steps += [
            f"{archive.name} has no participant's id in its name: write the array of each person into a file of its "
            "own, such as timeseries/sub-01.npy."
        ]
    if images:
        steps += [
            "The dataset bids averages images in regions: 'bids[atlas=LABELS.nii.gz]', of fMRIPrep's derivatives."
        ]
    if any(n.endswith(".dtseries.nii") for n in names):
        steps += [
            "Its .dtseries.nii hold voxels and vertices: average them in regions first, with `wb_command "
            "-cifti-parcellate IN LABELS.dlabel.nii COLUMN OUT.ptseries.nii`."
        ]
    allowed = f"timeseries/<participant_id>*, or such files anywhere, ending in {', '.join((*SUFFIXES, CIFTI))}"
    return DataError(what, allowed=allowed, next_step=" ".join(steps))


def _pattern(files: list[Path]) -> str:
    """Return a pattern of the names of files of one kind: what all of them end in, less labels of people and runs."""
    name = min((p.name for p in files), key=len)
    parts = re.split(r"(?<=[^_])_", name)
    own = [i for i, part in enumerate(parts) if re.match(r"(sub|ses|task|acq|rec|dir|run|echo|space|res|den)-", part)]
    rest = "_".join(parts[max(own, default=0) + 1 :])
    return f"*_{rest}" if rest else f"*{files[0].suffix}"


class People:
    """Ids of people, and whose a file is by its name and place.

    Parameters
    ----------
    root
        The folder.
    known
        Ids, with or without ``sub-``.
    """

    def __init__(self, root: Path, known: Iterable[str]) -> None:
        self.root = root
        self._by_text: dict[str, str] = {}
        self._by_number: dict[int, set[str]] = {}
        for subject in sorted(map(str, known), key=len):
            bare = subject.removeprefix("sub-")
            self._by_text[bare] = subject
            if bare.isdecimal():
                self._by_number.setdefault(int(bare), set()).add(subject)

    def __call__(self, path: Path) -> str:
        """Return whose file it is by its name, or else by the nearest folder that tells; or an empty string."""
        below = path.relative_to(self.root).parts[:-1]
        return next((s for place in (path.stem, *reversed(below)) if (s := self.named(place))), "")

    def named(self, name: str) -> str:
        """Return the participant whose id begins a name, the longest if several do; or an empty string.

        Where none does, ids are compared as numbers, of which spreadsheets take the zeros away, and looked for behind
        ``sub-`` or, of five digits or more, anywhere in the name: ABIDE's begin with the site.
        """
        if begins := self.beginning(name):
            return begins
        inside = [m[1] for m in re.finditer(r"(?<![A-Za-z0-9])sub-([A-Za-z0-9]+)", name)]
        inside += re.findall(r"(?<![A-Za-z0-9])\d{5,}(?![A-Za-z0-9])", name)
        found = {s for text in inside if (s := self._by_text.get(text) or self._as_number(text))}
        return found.pop() if len(found) == 1 else ""

    def beginning(self, name: str) -> str:
        """Return the participant whose id begins a name, as it is written or as a number; or an empty string."""
        bare = name.removeprefix("sub-")
        ends = [m.start() for m in re.finditer(r"[^A-Za-z0-9]", bare)]
        exact = next((s for e in (len(bare), *reversed(ends)) if (s := self._by_text.get(bare[:e]))), "")
        number = re.match(r"\d+(?![A-Za-z0-9])", bare)
        return exact or (self._as_number(number[0]) if number else "")

    def _as_number(self, text: str) -> str:
        same = self._by_number.get(int(text), set()) if text.isdecimal() and len(text) < LONGEST_ID else set()
        return next(iter(same)) if len(same) == 1 else ""


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
    if path.name.lower().endswith(CIFTI) and (step := cifti_time(path)):
        said[f"header of {path.name}"] = step
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

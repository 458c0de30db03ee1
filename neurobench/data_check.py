"""Look at everything under a user's folder and change nothing: what is there, what is wrong where, what it can be
used for."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
from scipy.stats.contingency import association
from sklearn.metrics import roc_auc_score
from sklearn.tree import DecisionTreeClassifier

from neurobench.alignment import MIN_UNITS, same_signal, shared_units, some
from neurobench.contracts import Dataset, EvokedTask, ReconstructionTask, SubjectTask, Task
from neurobench.errors import DataError
from neurobench.folders import Folder, entries, ids_that_differ, renamed_columns, spreadsheet_findings
from neurobench.listing import listed
from neurobench.places import in_this_folder
from neurobench.preparation import hinted, usable_units
from neurobench.records import Cohort, Event, Finding, Recording, RecordingFile, UnitTable

__all__ = ["DataReport", "check_data"]

LOST = 0.2
"""Share of lost recordings from which on a cohort is another one than its name says."""

PREDICTABLE = 0.7
"""Cramér's V, or AUROC of a tree on one feature, from which on a label can be told without looking at a brain."""

LONGEST_LABEL = 40
"""Characters of a dataset's label that is repeated in every reason."""

CODES = (-999.0, -9999.0)
"""Numbers that stand for a missing value in many tables."""


@dataclass(frozen=True, eq=False)
class DataReport:
    """What `data check` found.

    Parameters
    ----------
    findings
        Everything noticed.
    n_subjects, n_recordings
        That can be used, as far as was looked.
    n_listed
        Recordings found, before anything was read.
    table
        One row a site and state: subjects, recordings, sampling frequency, and subjects of each diagnosis.
    targets
        One row a column of the participants table: kind, labelled subjects, values.
    tasks
        One row a task: whether the folder can be used for it, subjects, what they are, and why not.
    title, licence
        Of the recordings, from the folder's own description where it has one.
    """

    findings: tuple[Finding, ...]
    n_subjects: int
    n_recordings: int
    n_listed: int
    table: pd.DataFrame
    targets: pd.DataFrame
    tasks: pd.DataFrame
    title: str
    licence: str

    @property
    def usable(self) -> bool:
        """Whether anything can be used."""
        return self.n_recordings > 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "title": self.title,
            "licence": self.licence,
            "n_subjects": self.n_subjects,
            "n_recordings": self.n_recordings,
            "n_listed": self.n_listed,
            "sites_and_states": self.table.to_dict("records"),
            "columns": self.targets.to_dict("records"),
            "tasks": self.tasks.to_dict("records"),
            "findings": [vars(f) for f in self.findings],
        }


@dataclass(frozen=True)
class _Read:
    """What is kept of a recording that was read: nothing of its signal."""

    findings: tuple[Finding, ...]
    usable: bool
    duration_s: float = float("nan")
    events: tuple[Event, ...] = ()
    content: str = ""
    units: tuple[str, ...] = ()
    usable_units: frozenset[str] = frozenset()


def check_data(
    dataset: Dataset,
    root: Path,
    *,
    label: str = "",
    tasks: Mapping[str, Task] | None = None,
    others: Mapping[str, Dataset] | None = None,
    deep: bool = False,
    workers: int = 1,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> DataReport:
    """Look at everything under ``root``; change nothing.

    Parameters
    ----------
    dataset
        Finds and reads.
    root
        The user's folder.
    label
        The dataset as asked for.
    tasks
        Tasks to say of whether the folder can be used for them, by name.
    others
        Datasets that are tried where this one makes nothing of the folder, by what a user writes.
    deep
        Read every recording too, to its end, not only the tables and names.
    workers
        Processes that read; 0: as many as there are cores.
    advance
        Called after each recording that was read, with the number done and the total.

    Raises
    ------
    DataError
        If nothing under ``root`` can be used.
    """
    if not root.is_dir():
        raise DataError(f"the folder {root} does not exist.", next_step="Give its place with --data-dir.")
    try:
        listing = listed(dataset, root)
        if not listing.recordings and not any(f.level == "error" for f in listing.findings):
            told = {f.code: f.message for f in reversed(listing.findings) if f.level != "info"}
            raise DataError(
                f"{root} holds no recording that {label or dataset.name} can use. {some(list(told.values()))}"
            )
    except DataError as error:
        raise hinted(error, dataset, root, others or {}) from error
    findings = list(listing.findings)
    files = list(listing.recordings)
    read: dict[str, _Read] = {}
    if deep:
        for done, (file, found) in enumerate(_read_all(dataset, files, workers), 1):
            read[file.id] = found
            advance(done, len(files))
        for file in files:
            findings += read[file.id].findings
    kept = [f for f in files if f.id not in read or read[f.id].usable]
    if read:
        left_out = _left_out(kept, read, dataset.spec.window_s)
        findings += left_out
        places = {f.path for f in left_out}
        kept = [f for f in kept if str(f.path) not in places]
    noticed, lost = same_signal(
        [(f.subject, read[f.id].content if f.id in read else f.id, str(f.path)) for f in kept], listing.participants
    )
    findings += noticed
    kept = [f for i, f in enumerate(kept) if i not in lost]
    people = listing.participants
    seconds: dict[str, float] = {}
    for file in kept:
        if file.id in read:
            seconds[file.subject] = seconds.get(file.subject, 0.0) + read[file.id].duration_s
    present = people[people.index.isin({f.subject for f in kept})].copy()
    if seconds:
        present["duration_s"] = pd.Series(seconds, dtype=float).reindex(present.index)
    n_lost = len({(f.path, f.subject) for f in findings if f.level == "error" and f.path})
    n_found = n_lost + len(kept)
    if n_found and n_lost > LOST * n_found:
        text = f"{n_lost} of {n_found} recordings cannot be used: what is left may be another group of people"
        findings.append(Finding("warning", "many-lost", text, fix="mend what the errors name before comparing groups"))
    folder = Folder(root)
    findings += spreadsheet_findings(folder)
    if any(f.code == "unknown-id" for f in findings):
        findings += ids_that_differ(folder)
    findings += renamed_columns(people.columns, "the participants table")
    findings += _unread(people, files, findings)
    findings += _mixed(kept, root)
    findings += _codes_left(present)
    findings += _predictable(present, kept, seconds)
    shown = present.drop(columns="duration_s", errors="ignore")
    card = listing.card or dataset.card
    return DataReport(
        tuple(findings),
        len(present),
        len(kept),
        len(files),
        _by_site(present, kept, read),
        pd.DataFrame([_describe_column(shown[c]) for c in shown.columns]),
        _by_task(dataset, label or dataset.name, present, kept, read, tasks or {}),
        card.title,
        card.licence,
    )


# ---------------------------------------------------------------- reading


def _read_all(dataset: Dataset, files: Sequence[RecordingFile], workers: int) -> Iterator[tuple[RecordingFile, _Read]]:
    wanted = workers or joblib.cpu_count()
    importable = importlib.util.find_spec(type(dataset).__module__.partition(".")[0]) is not None
    if wanted == 1 or len(files) < 2 * wanted or not importable:
        for file in files:
            yield file, _read_one(dataset, file)
        return
    with joblib.parallel_config(backend="loky", inner_max_num_threads=max(1, joblib.cpu_count() // wanted)):
        here = joblib.delayed(in_this_folder(_read_one))
        jobs = (here(dataset, file) for file in files)
        yield from zip(files, joblib.Parallel(n_jobs=wanted, return_as="generator")(jobs), strict=True)


def _read_one(dataset: Dataset, file: RecordingFile) -> _Read:
    """Read one recording and return what was noticed."""

    def noticed(level: Any, code: str, text: str, fix: str = "") -> Finding:
        return Finding(level, code, text, fix=fix, subject=file.subject, path=str(file.path))

    try:
        raw = dataset.read(file)
    except DataError as error:
        return _Read((noticed("error", "unreadable", str(error), error.next_step),), False)
    except Exception as error:
        return _Read((noticed("error", "unreadable", f"{type(error).__name__}: {error}"),), False)
    findings = [replace(f, subject=f.subject or file.subject, path=f.path or str(file.path)) for f in raw.findings]
    finite, varying = usable_units(raw.data)
    if not (finite & varying).all():
        names = [raw.units.names[i] for i in np.flatnonzero(~(finite & varying))]
        text = f"{len(names)} of {len(finite)} units are constant or not finite: {some(names)}"
        findings.append(noticed("warning", "unusable-units", text, "they are left out of this recording"))
    content = hashlib.sha256(np.ascontiguousarray(raw.data).data).hexdigest()
    units = tuple(raw.units.names)
    usable = frozenset(name for name, ok in zip(units, finite & varying, strict=True) if ok)
    return _Read(tuple(findings), True, raw.data.shape[1] / raw.sfreq, raw.events, content, units, usable)


def _left_out(files: Sequence[RecordingFile], read: Mapping[str, _Read], window_s: float) -> list[Finding]:
    """Return a finding for every recording that can be read and that a run leaves out, by the rules of a run."""
    if not files:
        return []
    common, shares = shared_units([read[f.id].units for f in files])
    kept = [read[f.id] for f, shared in zip(files, shares, strict=True) if shared >= MIN_UNITS]
    # What is missing in most recordings is left out of the cohort, and is no fault of one.
    times = Counter(name for seen in kept for name in seen.usable_units)
    wanted = {name for name in common if times[name] >= MIN_UNITS * len(kept)}
    findings = []
    for file, shared in zip(files, shares, strict=True):
        seen = read[file.id]
        n_usable = len(seen.usable_units & wanted)
        if shared < MIN_UNITS:
            text = f"{len(seen.units)} units, of which {shared:.0%} are among the {len(common)} of most recordings"
            fix = "keep recordings of one sensor layout or parcellation in one folder"
            code, said = "units-differ", f"{text} ({some(common)})"
        elif n_usable < max(1, MIN_UNITS * len(wanted)):
            code, said = "too-few-units", f"only {n_usable} of {len(wanted)} units are usable"
            fix = "look at how this recording was made"
        elif seen.duration_s < window_s / 2:
            code, said = "too-short", f"{seen.duration_s:.4g} s is less than half a window of {window_s:g} s"
            fix = "use a shorter window: --window-s"
        else:
            continue
        findings.append(Finding("error", code, said, fix=fix, subject=file.subject, path=str(file.path)))
    return findings


def _unread(people: pd.DataFrame, files: Sequence[RecordingFile], findings: Sequence[Finding]) -> list[Finding]:
    """Return a finding for files that bear the id of somebody without a recording, and that nobody has looked at."""
    told = {f.path for f in findings} | {str(f.path) for f in files}
    without = {str(i).removeprefix("sub-") for i in people.index} - {f.subject.removeprefix("sub-") for f in files}
    names = []
    for folder in sorted({f.path.parent for f in files}):
        for path in entries(folder):
            begins = re.match(r"(?:sub-)?([A-Za-z0-9]+)", path.name)
            if begins and begins[1] in without and path.suffix != ".json" and str(path) not in told:
                names.append(path.name)
    if not names:
        return []
    text = f"{len(names)} files of people without a recording are of a kind that is not read: {some(names)}"
    ends = ", ".join(sorted({f.path.suffix for f in files}))
    return [Finding("warning", "unread-files", text, fix=f"save them as those that are read: {ends}")]


def _mixed(files: Sequence[RecordingFile], root: Path) -> list[Finding]:
    """Return findings for what is taken together though names and folders say that it differs."""
    findings = []
    labels: dict[str, set[str]] = {}
    for file in files:
        if task := re.search(r"_task-([A-Za-z0-9]+)", file.path.name):
            labels.setdefault(file.state, set()).add(task[1])
    for state, tasks in labels.items():
        if len(tasks) > 1:
            text = f"recordings of the tasks {', '.join(sorted(tasks))} all count as the state {state}"
            findings.append(Finding("warning", "mixed-tasks", text, fix="take out those that are not meant"))
    inside = ["derivatives" in (f.path.relative_to(root).parts if f.path.is_relative_to(root) else ()) for f in files]
    if 0 < sum(inside) < len(files):
        text = f"{sum(inside)} of {len(files)} recordings are those under derivatives/, the others lie beside it"
        fix = "give the folder of the derivatives, or one without them"
        findings.append(Finding("warning", "mixed-derivatives", text, fix=fix))
    return findings


# ---------------------------------------------------------------- tables


def _by_site(people: pd.DataFrame, files: Sequence[RecordingFile], read: Mapping[str, _Read]) -> pd.DataFrame:
    """Return one row a site and state: how many subjects of each diagnosis, and of what was read units and seconds."""
    site = people["site"].astype("object") if "site" in people else pd.Series("", people.index)
    diagnosis = people["diagnosis"].astype("object") if "diagnosis" in people else None
    rows = [
        {"site": str(site.get(f.subject) or ""), "state": f.state, "subject": f.subject, "sfreq": f.sfreq}
        | ({"units": len(read[f.id].units), "seconds": read[f.id].duration_s} if f.id in read else {})
        for f in files
    ]
    frame = pd.DataFrame(rows, columns=["site", "state", "subject", "sfreq", *(("units", "seconds") if read else ())])
    grouped = frame.groupby(["site", "state"])
    table = grouped.agg(
        subjects=("subject", "nunique"),
        recordings=("subject", "size"),
        min_hz=("sfreq", "min"),
        max_hz=("sfreq", "max"),
    ).reset_index()
    for name in ("units", "seconds") if read and len(frame) else ():
        low, high = grouped[name].min().to_numpy(), grouped[name].max().to_numpy()
        table[name] = [f"{a:.4g}" if a == b else f"{a:.4g}–{b:.4g}" for a, b in zip(low, high, strict=True)]
    if diagnosis is not None:
        named = frame.drop_duplicates(["site", "state", "subject"])
        label = named["subject"].map(diagnosis).map(lambda v: "unlabelled" if v is None or pd.isna(v) else str(v))
        counts = pd.crosstab([named["site"], named["state"]], label).reset_index()
        table = table.merge(counts, on=["site", "state"], how="left")
    return table


def _describe_column(column: pd.Series[Any]) -> dict[str, Any]:
    known = column.dropna()
    numbers = pd.to_numeric(known, errors="coerce")
    if len(known) and numbers.notna().all() and known.nunique() > 2:
        values = f"{numbers.min():g}–{numbers.max():g}"
        kind = "number"
    else:
        counts = known.astype(str).value_counts()
        values = ", ".join(f"{k} {v}" for k, v in counts.head(4).items())
        kind = "two classes" if known.nunique() == 2 else "text"
    return {"column": column.name, "kind": kind, "n": len(known), "values": values}


def _by_task(
    dataset: Dataset,
    label: str,
    people: pd.DataFrame,
    files: Sequence[RecordingFile],
    read: Mapping[str, _Read],
    tasks: Mapping[str, Task],
) -> pd.DataFrame:
    """Return one row a task: usable or not, subjects, what they are and why not."""
    if not files:
        return pd.DataFrame()
    spec = dataset.spec
    spec = replace(spec, sfreq=min([f.sfreq for f in files] + ([spec.sfreq] if spec.sfreq else [])))
    assert spec.sfreq is not None
    none = np.zeros(0, np.float32)
    recordings = []
    for file in files:
        seen = read.get(file.id)
        # Unread recordings count as long enough: their length is known only once they are read.
        seconds = seen.duration_s if seen else 4 * spec.window_s
        events = seen.events if seen else ()
        n_times = round(seconds * spec.sfreq)
        present = np.zeros(0, bool)
        recordings.append(
            Recording(
                *(file.id, file.subject, file.state, file.path, n_times, present, none, none, none),
                events=events,
                session=file.session,
                run=file.run,
            )
        )
    cohort = Cohort(
        # Reasons name it again and again: without the path of an atlas.
        dataset=label if len(label) <= LONGEST_LABEL else dataset.name,
        card=dataset.card,
        signal=dataset.signal,
        modality=dataset.modality,
        source="real",
        participants=people,
        recordings=tuple(recordings),
        units=UnitTable.from_groups((), ()),
        spec=spec,
        fingerprint="",
        # Of a volume only that it has voxels is known before one is read.
        n_voxels=2 if dataset.signal == "volume" else 1,
    )
    rows = []
    for name, task in tasks.items():
        try:
            values, n = _values(task, cohort)
            why = task.refuses(cohort)
        except Exception as error:
            # A plugin's fault hides no other task.
            rows.append((name, "no", 0, "", f"it fails with {type(error).__name__}: {' '.join(str(error).split())}"))
            continue
        if isinstance(task, EvokedTask) and not read:
            rows.append((name, "?", n, values, "events are read with --deep"))
            continue
        rows.append((name, "no" if why else "yes", 0 if why else n, "" if why else values, why))
    return pd.DataFrame(rows, columns=["task", "usable", "subjects", "of these", "why not"])


def _values(task: Task, cohort: Cohort) -> tuple[str, int]:
    """Return what the subjects of a task are, and how many."""
    people = cohort.participants
    if isinstance(task, SubjectTask):
        if task.column not in people:
            return "", 0
        known = task.target(people).dropna()
        if task.kind == "regression":
            return (f"{known.min():g}–{known.max():g}" if len(known) else ""), len(known)
        counts = [int((known == c).sum()) for c in (0, 1)]
        return ", ".join(f"{n} {c}" for c, n in zip(task.classes, counts, strict=True)), len(known)
    if isinstance(task, ReconstructionTask):
        return f"{len(cohort.recordings)} recordings", len(people)
    states: dict[str, set[str]] = {}
    for recording in cohort.recordings:
        states.setdefault(recording.state, set()).add(recording.subject)
    return ", ".join(f"{state} {len(s)}" for state, s in sorted(states.items())), len(people)


# ---------------------------------------------------------------- what gives a label away


def _codes_left(people: pd.DataFrame) -> list[Finding]:
    findings = []
    for name in people.columns:
        numbers = pd.to_numeric(people[name], errors="coerce")
        n = int(numbers.isin(CODES).sum())
        if n:
            text = f"{n} values of {name} are −999 or −9999, which stand for a missing value in most tables"
            findings.append(Finding("warning", "missing-code", text, fix="write n/a where there is no value"))
    return findings


def _predictable(people: pd.DataFrame, files: Sequence[RecordingFile], seconds: Mapping[str, float]) -> list[Finding]:
    """Return a finding for every two-class label that site, sampling or run length tells without a look at a brain."""
    if "diagnosis" not in people:
        return []
    label = people["diagnosis"].dropna().astype(str)
    if label.nunique() != 2 or label.value_counts().min() < 5:
        return []
    truth = (label == sorted(label.unique())[1]).astype(int)
    findings = []
    if "site" in people:
        site = people["site"].reindex(label.index).fillna("").astype(str)
        if site.nunique() > 1:
            v = float(association(pd.crosstab(site, label).to_numpy(), method="cramer"))
            if v > PREDICTABLE:
                findings.append(_tells("site", f"Cramér's V {v:.2f}"))
    rate: dict[str, float] = {}
    for file in files:
        rate[file.subject] = max(rate.get(file.subject, 0.0), file.sfreq)
    for name, known in (("sampling frequency", rate), ("run length", seconds)):
        values = pd.Series(known, dtype=float).reindex(label.index)
        usable = values.notna()
        if values[usable].nunique() < 2 or truth[usable].nunique() < 2:
            continue
        x = values[usable].to_numpy()[:, None]
        smallest = max(2, int(0.05 * usable.sum()))
        tree = DecisionTreeClassifier(max_depth=2, min_samples_leaf=smallest, random_state=0).fit(x, truth[usable])
        auc = float(roc_auc_score(truth[usable], tree.predict_proba(x)[:, 1]))
        if auc > PREDICTABLE:
            findings.append(_tells(name, f"AUROC {auc:.2f}"))
    return findings


def _tells(what: str, figure: str) -> Finding:
    return Finding(
        "warning",
        "predictable-label",
        f"the diagnosis is predictable from {what} alone ({figure} on these people): a model need not look at a brain",
        fix="compare within sites, and read the rows of covariates and the within-site figures",
    )

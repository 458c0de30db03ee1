"""Submissions: what of an output folder may leave the machine, as one file that anybody can check.

A bundle is a zip file or a folder::

    neurobench-bundle.json        the manifest: sha256 and length of every other file, and what was left behind, and why
    PULL_REQUEST.md               text for whoever reads it
    records/<id>.json             the numbers
    identities/<id>.json          what the id is the hash of
    predictions/<id>.csv          held-out predictions, where the dataset's card lets them leave
    folds/<fingerprint>.json      who is trained on and tested in every fold, on the same condition
    comparisons/<hash>.json       where they do not: the differences of all pairs of rows of a table, as aggregates

Tables are CSV with every digit: a reviewer can read them, and reading them runs no parser of a binary format on what a
stranger has sent. Equal records give equal bytes.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import re
import shutil
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neurobench.contracts import RetrievalTask, SubjectTask, Task
from neurobench.errors import BundleError, NeurobenchError
from neurobench.evidence import read_table
from neurobench.pairwise import MIN_SUBJECTS, name_of, pairwise_record, tables_of
from neurobench.parsing import parse_json
from neurobench.places import place_beside
from neurobench.plugins import Registry
from neurobench.results import ComponentRecord, Record, load_results, read_record
from neurobench.store import atomic_write, disk_errors

__all__ = [
    "FORMAT",
    "LIMITS",
    "MANIFEST",
    "PULL_REQUEST",
    "Bundle",
    "Limits",
    "Stripped",
    "allowed_name",
    "components",
    "covariates_needed",
    "make_bundle",
    "may_leave",
    "pull_request",
    "suite_folder",
    "task_of",
    "without_paths",
    "write_bundle",
]

FORMAT = 1
"""Version of the layout of a bundle."""

MANIFEST, PULL_REQUEST = "neurobench-bundle.json", "PULL_REQUEST.md"

_NAME = re.compile(r"(records|identities|folds|comparisons)/[0-9a-f]{64}\.json|predictions/[0-9a-f]{64}\.csv")


@dataclass(frozen=True)
class Limits:
    """Size of a bundle, checked while it is read and before anything of it is used.

    Parameters
    ----------
    n_files
        Files.
    file_bytes, total_bytes
        Of one file and of all together, unpacked.
    archive_bytes
        Of the zip file itself.
    ratio
        Unpacked over packed, of a file above ``ratio_from_bytes``; text of numbers is at about 3, of records at 10.
    """

    n_files: int = 5_000
    file_bytes: int = 16 << 20
    total_bytes: int = 256 << 20
    archive_bytes: int = 128 << 20
    ratio: int = 100
    ratio_from_bytes: int = 1 << 16


LIMITS = Limits()


def allowed_name(name: str) -> bool:
    """Return whether a bundle may hold a file of this name."""
    return name in (MANIFEST, PULL_REQUEST) or _NAME.fullmatch(name) is not None


@dataclass(frozen=True)
class Stripped:
    """Something that stays on the machine.

    Parameters
    ----------
    what, why
        In words.
    n
        How often.
    """

    what: str
    why: str
    n: int = 1


@dataclass(frozen=True, eq=False)
class Bundle:
    """A submission in memory.

    Parameters
    ----------
    files
        Name to bytes, the manifest among them.
    records
        The records in it.
    stripped
        What was left behind.
    """

    files: Mapping[str, bytes]
    records: tuple[Record, ...]
    stripped: tuple[Stripped, ...] = ()

    @property
    def n_comparisons(self) -> int:
        """Tables whose comparisons travel in the place of predictions."""
        return sum(name.startswith("comparisons/") for name in self.files)

    @property
    def n_predictions(self) -> int:
        """Records with held-out predictions beside."""
        return sum(name.startswith("predictions/") for name in self.files)


# ---------------------------------------------------------------- making


def make_bundle(out: Path, registry: Registry) -> Bundle:
    """Return a bundle of the records of an output folder, without what must not leave the machine.

    Parameters
    ----------
    out
        Output folder of one or more runs.
    registry
        Whose datasets' cards say what may leave, beside what the records say: the stricter of both holds.

    Raises
    ------
    StoreError
        If there is no record, or one was changed.
    BundleError
        If a record lacks what a reader needs to check it.
    """
    table = load_results(out)
    stripped: list[Stripped] = []
    records = [read_record(Path(p)) for p in table["record"]]
    if failed := [r for r in records if r.status != "ok"]:
        stripped.append(Stripped("records of rows that failed", "they hold an error instead of a number", len(failed)))
    fine = [r for r in records if r.status == "ok"]
    if empty := [r for r in fine if r.metrics[r.headline].value is None]:
        stripped.append(Stripped("records without a value", "nothing of the test subjects could be scored", len(empty)))
    kept = sorted((r for r in fine if r.metrics[r.headline].value is not None), key=lambda r: r.id)
    if not kept:
        raise BundleError(
            f"{out} holds no record with a number.", next_step="See `neurobench run` for why rows failed."
        )
    older = sum(1 for _ in (out / "records").glob("*.json")) - len(records)
    if older > 0:
        stripped.append(Stripped("older records of the same rows", "newer ones supersede them", older))
    files: dict[str, bytes] = {}
    by_cohort: dict[str, list[Record]] = {}
    for record in kept:
        by_cohort.setdefault(record.data.fingerprint if record.data else "", []).append(record)
    for own in by_cohort.values():
        _add_cohort(files, own, out, registry, stripped)
    shown = tuple(without_paths(r) for r in kept)
    n_paths = sum(a is not b for a, b in zip(shown, kept, strict=True))
    if n_paths:
        stripped.append(Stripped("folders in commands and notes", "they name this machine and its users", n_paths))
    for record in shown:
        files[f"records/{record.id}.json"] = _json(record.hashed().model_dump(mode="json"))
        files[f"identities/{record.id}.json"] = _identity(out, record)
    summed = _summed(stripped)
    files[PULL_REQUEST] = pull_request(shown, files, summed).encode()
    files[MANIFEST] = _json(_manifest(files, len(shown), summed))
    return Bundle(dict(sorted(files.items())), shown, summed)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _manifest(files: Mapping[str, bytes], n_records: int, stripped: Sequence[Stripped]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "made_by": "neurobench",
        "n_records": n_records,
        "left_behind": [{"what": s.what, "why": s.why, "n": s.n} for s in stripped],
        "files": {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
            for name, content in sorted(files.items())
        },
    }


def _summed(stripped: Iterable[Stripped]) -> tuple[Stripped, ...]:
    counts: Counter[tuple[str, str]] = Counter()
    for s in stripped:
        counts[s.what, s.why] += s.n
    return tuple(Stripped(what, why, n) for (what, why), n in counts.items())


def _identity(out: Path, record: Record) -> bytes:
    path = out / "identities" / f"{record.id}.json"
    try:
        return _json(parse_json(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise BundleError(
            f"record {record.id[:12]} ({record.row}, {record.task.label}) has no identity beside it, so that nobody "
            f"could find its id again: {path} cannot be read.",
            next_step="Run the same `neurobench run` again: what is stored is not computed again, only written anew.",
        ) from error


# ---------------------------------------------------------------- what may leave

_FREE = ("all", "simulated")


def may_leave(record: Record, registry: Registry) -> str:
    """Return ``simulated``, or the strictest of what the record and the installed dataset's card let leave."""
    if record.data is None:
        return "aggregates"
    if record.data.source == "simulated":
        return "simulated"
    order = ("aggregates", "predictions", "all")
    says = [record.data.may_leave]
    spec = record.dataset
    # Without the dataset's plugin there is only the record to ask.
    with contextlib.suppress(NeurobenchError, TypeError, ValueError):
        says.append(registry.get("dataset", spec.name)(**spec.parameters).card.may_leave)
    return min(says, key=order.index)


def _add_cohort(
    files: dict[str, bytes], records: Sequence[Record], out: Path, registry: Registry, stripped: list[Stripped]
) -> None:
    """Add what may leave of one cohort: predictions and folds, under other names where people could be found again."""
    level = may_leave(records[0], registry)
    title = records[0].data.title if records[0].data else records[0].dataset.label
    fingerprints = sorted({r.protocol.fold_fingerprint for r in records})
    if level == "aggregates":
        why = f"the card of {title} lets scores leave, and nothing of single participants"
        n = sum((out / "predictions" / f"{r.id}.parquet").is_file() for r in records)
        stripped.append(Stripped("held-out predictions", why, n))
        stripped.append(Stripped("lists of who is tested in which fold", why, len(fingerprints)))
        for own in tables_of(records):
            compared = pairwise_record(out, own)
            if compared is not None:
                files[f"comparisons/{name_of(compared)}.json"] = compared.as_text.encode()
            elif len(own) > 1:
                few = f"there are none of two rows, or fewer than {MIN_SUBJECTS} subjects"
                stripped.append(Stripped("comparisons of the rows of a table", few))
        return
    tables = {r.id: read_table(p) for r in records if (p := out / "predictions" / f"{r.id}.parquet").is_file()}
    folds = {f: _folds(out, f) for f in fingerprints}
    if level not in _FREE:
        names = _Pseudonyms.of(tables.values(), folds.values())
        why = f"the card of {title} lets predictions leave under pseudonyms"
        stripped.append(Stripped("names of participants, recordings and sites", why, len(names.people)))
        for r in records:
            if r.id in tables:
                tables[r.id], gone = names.applied(tables[r.id], covariates_needed(r, registry))
                for column in gone:
                    stripped.append(Stripped(f"column {column} of predictions", "no metric needs it"))
        folds = {f: names.folds(found) for f, found in folds.items()}
    for fingerprint, found in folds.items():
        files[f"folds/{fingerprint}.json"] = _json({"pseudonyms": level not in _FREE, "folds": found})
    for record_id, table in tables.items():
        files[f"predictions/{record_id}.csv"] = table_bytes(table)


def _folds(out: Path, fingerprint: str) -> list[dict[str, Any]]:
    path = out / "folds" / f"{fingerprint}.json"
    try:
        found: list[dict[str, Any]] = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BundleError(
            f"the folds {fingerprint[:12]} that records speak of are not there: {path} cannot be read.",
            next_step="Run the same `neurobench run` again: what is stored is not computed again, only written anew.",
        ) from error
    return found


def task_of(record: Record, registry: Registry) -> Task:
    """Return the installed task that a record was scored on.

    Raises
    ------
    NeurobenchError
        If it is not installed here, or refuses the record's parameters.
    """
    try:
        task: Task = registry.get("task", record.task.name)(**record.task.parameters)
    except (TypeError, ValueError) as error:
        raise BundleError(f"task {record.task.label} cannot be built with the record's parameters: {error}.") from None
    return task


def covariates_needed(record: Record, registry: Registry) -> frozenset[str]:
    """Return the covariates without which a metric could not be found again."""
    try:
        task = task_of(record, registry)
    except NeurobenchError:
        return frozenset()
    if isinstance(task, RetrievalTask):
        # People are looked for among all and among those of their site.
        return frozenset({"site"})
    if not isinstance(task, SubjectTask):
        return frozenset()
    # Labels are permuted within sites; what is left given age needs the age.
    return frozenset({"site", "age"} if task.kind == "regression" else {"site"})


_COVARIATES = ("age", "sex", "site", "mean_fd", "duration_s")


@dataclass(frozen=True, eq=False)
class _Pseudonyms:
    """Other names in the same order, so that bootstrap and permutations draw the same."""

    people: Mapping[str, str]
    windows: Mapping[str, str] = field(default_factory=dict)
    sites: Mapping[str, str] = field(default_factory=dict)
    families: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, tables: Iterable[pd.DataFrame], folds: Iterable[Sequence[Mapping[str, Any]]]) -> _Pseudonyms:
        people: set[str] = {s for found in folds for f in found for k in ("train", "test") for s in f[k]}
        windows: set[str] = set()
        sites: set[str] = set()
        families: set[str] = set()
        for table in tables:
            people |= set(table["participant_id"].astype(str))
            windows |= set(table["window"].astype(str)) if "window" in table else set()
            sites |= set(table["site"].astype(str)) - {""} if "site" in table else set()
            families |= set(table["family"].dropna().astype(str)) - {""} if "family" in table else set()
        return cls(
            _numbered("s", people), _numbered("w", windows), _numbered("site", sites), _numbered("family", families)
        )

    def applied(self, table: pd.DataFrame, needed: frozenset[str]) -> tuple[pd.DataFrame, list[str]]:
        """Return a table under other names, and the columns that were left out."""
        gone = [c for c in _COVARIATES if c in table and c not in needed]
        table = table.drop(columns=gone)
        for column, names in (
            ("participant_id", self.people),
            ("window", self.windows),
            ("site", self.sites),
            ("family", self.families),
        ):
            if column in table:
                table = table.assign(**{column: [names.get(str(v), "") for v in table[column]]})
        return table, gone

    def folds(self, found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return folds under other names."""
        return [{**f, **{k: [self.people[s] for s in f[k]] for k in ("train", "test")}} for f in found]


def _numbered(letter: str, names: Iterable[str]) -> dict[str, str]:
    ordered = sorted(names)
    return {name: f"{letter}{i:0{len(str(len(ordered)))}d}" for i, name in enumerate(ordered, 1)}


_FOLDER = re.compile(r"(?:(?<=[\s='\"(,])|^)(?:~|[A-Za-z]:|\.{0,2})[\\/](?=\S)(?:[^\\/\s'\"]+[\\/])*")


def _shorter(text: str) -> str:
    return _FOLDER.sub("…/", text)


def without_paths(record: Record) -> Record:
    """Return the record without folders in its texts; the same object where there is none."""
    environment = {k: _shorter(v) if k == "command" else v for k, v in record.environment.items()}
    notes = [_shorter(n) for n in record.notes]
    data = record.data and record.data.model_copy(update={"provenance": [_shorter(p) for p in record.data.provenance]})
    changed = record.model_copy(update={"environment": environment, "notes": notes, "data": data})
    return record if changed == record else changed


# ---------------------------------------------------------------- tables


def table_bytes(table: pd.DataFrame) -> bytes:
    """Return a table as CSV: floats with every digit, NaN as nothing, truth values as true and false."""
    columns = [_texts(table[c]) for c in table]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows(zip(*columns, strict=True))
    return text.getvalue().encode()


def _texts(column: pd.Series[Any]) -> list[str]:
    if column.dtype == bool:
        return ["true" if v else "false" for v in column]
    if pd.api.types.is_integer_dtype(column):
        return [str(int(v)) for v in column]
    if pd.api.types.is_float_dtype(column):
        return ["" if np.isnan(v) else repr(float(v)) for v in column]
    return ["" if pd.isna(v) else str(v) for v in column]


# ---------------------------------------------------------------- text for a reader


def suite_folder(suite: str) -> str:
    """Return the folder of the leaderboard that records of a suite belong to: its name, or ``no-suite``."""
    name = suite.partition("@")[0]
    return name if re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", name) and ", changed" not in suite else "no-suite"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def pull_request(records: Sequence[Record], files: Mapping[str, bytes], stripped: Sequence[Stripped]) -> str:
    """Return the text that a submission is sent with."""
    data = {(r.dataset.label, r.data.source, r.data.n_subjects) for r in records if r.data}
    simulated = any(source == "simulated" for _, source, _ in data)
    suites = sorted({r.protocol.suite or "none" for r in records})
    n_predictions = sum(name.startswith("predictions/") for name in files)
    lines = [
        f"## {len(records)} records of {', '.join(sorted({f'`{_cell(d)}`' for d, _, _ in data}))}",
        "",
        *(["**Simulated data: these numbers measure the software, not the models.**", ""] if simulated else []),
        f"Suite: {', '.join(f'`{_cell(s)}`' for s in suites)} · held-out predictions beside {n_predictions} of "
        f"{len(records)} records · code: {', '.join(sorted({_code(c) for r in records for c in components(r)}))}",
        "",
        "| dataset | task | row | metric | score | 95 % interval | chance | n | seed |",
        "|---|---|---|---|---:|---|---:|---:|---:|",
    ]
    order = sorted(records, key=lambda r: (r.dataset.label, r.task.label, r.kind, r.row, r.protocol.seed, r.id))
    for r in order:
        head = r.metrics[r.headline]
        where = r.dataset.label + (" (simulated)" if r.data and r.data.source == "simulated" else "")
        interval = "" if head.low is None else f"{_number(head.low)} to {_number(head.high)}"
        cells = (where, r.task.label, r.row, r.headline, _number(head.value), interval, _number(head.chance))
        lines.append(f"| {' | '.join(map(_cell, cells))} | {r.n_subjects} | {r.protocol.seed} |")
    lines += ["", "### Left behind", ""]
    lines += [f"- {s.what} ({s.n}): {s.why}" for s in stripped] or ["- nothing"]
    lines += [
        "",
        "### Before you open it",
        "",
        "- [ ] `neurobench verify` believes this bundle on my machine.",
        "- [ ] I may publish these numbers under the terms of every dataset above.",
        "- [ ] Plugins that are not part of neurobench are published, and named above with their version.",
        "- [ ] No record that is there already is changed or removed.",
        "",
    ]
    return "\n".join(lines)


def components(record: Record) -> list[ComponentRecord]:
    """Return every component that a record names."""
    named = (record.backbone, record.mask, record.baseline, record.dataset, record.task)
    return [c for c in named if c is not None]


def _code(component: ComponentRecord) -> str:
    return f"`{_cell(f'{component.distribution} {component.version}'.strip())}`"


# ---------------------------------------------------------------- writing


def write_bundle(bundle: Bundle, to: Path) -> Path:
    """Write a bundle as a zip file, or as a folder where the name has no suffix ``.zip``.

    Raises
    ------
    BundleError
        If the folder holds something else.
    """
    if to.suffix.lower() == ".zip":
        with disk_errors(to):
            to.parent.mkdir(parents=True, exist_ok=True)
            beside = place_beside(to)
            beside.write_bytes(zip_bytes(bundle.files))
            os.replace(beside, to)
        return to
    if to.exists() and not (to.is_dir() and ((to / MANIFEST).is_file() or not any(to.iterdir()))):
        raise BundleError(
            f"{to} is there already and is no bundle.",
            allowed="a .zip file, a new folder, or the folder of an earlier bundle",
            next_step="Choose another place with --to.",
        )
    with disk_errors(to):
        for own in ("records", "identities", "predictions", "folds", "comparisons"):
            shutil.rmtree(to / own, ignore_errors=True)
        for name, content in bundle.files.items():
            atomic_write(to / name, content.decode())
    return to


def zip_bytes(files: Mapping[str, bytes]) -> bytes:
    """Return a zip file of some files: sorted, without times or owners, so that equal files give equal bytes."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, content in sorted(files.items()):
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.compress_type, entry.create_system, entry.external_attr = zipfile.ZIP_DEFLATED, 3, 0o100644 << 16
            archive.writestr(entry, content)
    return packed.getvalue()

"""Where a cohort comes from: the user's folder or the simulated twin; prepared once, and checked without a change."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from neurobench import alignment, preparation
from neurobench.alignment import some, unit_table
from neurobench.contracts import Dataset
from neurobench.errors import DataError
from neurobench.identity import digest, file_digest
from neurobench.preparation import prepare, usable_units
from neurobench.records import Cohort, Event, Finding, Recording, RecordingFile, SignalSpec
from neurobench.store import Entry, Store

__all__ = ["CohortSource", "DataReport", "check_data", "twin"]


CODE = file_digest(Path(__file__))


# ---------------------------------------------------------------- cohort, stored


@dataclass(frozen=True)
class CohortSource:
    """Everything that determines a cohort, before anything of it is read.

    Parameters
    ----------
    dataset
        The component, built with its parameters.
    label
        As asked for, such as ``camcan[signal=meg]``.
    code
        Resolved parameters, version and digest of the dataset plugin, plain values.
    spec
        Windows, patches, band, scaling.
    root
        The user's folder, or None: the simulated twin.
    n_subjects, seed, variant
        Of the twin.
    """

    dataset: Dataset
    label: str
    code: Mapping[str, Any]
    spec: SignalSpec
    root: Path | None
    n_subjects: int | None = None
    seed: int = 0
    variant: Literal["default", "null", "confounded"] = "default"

    def identity(self) -> dict[str, Any]:
        """Return the identity of the stored cohort: the state of every file, not its content, which is hashed later."""
        where: Any = {"twin": self._twin_identity()} if self.root is None else {"folder": _folder_state(self.root)}
        return {
            "dataset": dict(self.code),
            "spec": asdict(self.spec),
            "where": where,
            "code": [CODE, alignment.CODE, preparation.CODE],
        }

    def _twin_identity(self) -> dict[str, Any]:
        n = self.dataset.twin_subjects if self.n_subjects is None else self.n_subjects
        return {"dataset": dict(self.code), "n_subjects": n, "seed": self.seed, "variant": self.variant}

    def stored(self, store: Store) -> Cohort | None:
        """Return the cohort if it is stored whole, or None."""
        entry = store.get("cohort", self.identity())
        return None if entry is None else _read_cohort(entry, self, store)

    def load(
        self,
        store: Store,
        advance: Callable[[int, int], None] = lambda done, total: None,
        note: Callable[[str], None] = lambda message: None,
        workers: int = 0,
    ) -> Cohort:
        """Return the cohort, preparing what is not stored yet; see :func:`neurobench.preparation.prepare`."""
        if (cohort := self.stored(store)) is not None:
            return cohort
        root = twin(self, store) if self.root is None else self.root
        cohort = prepare(
            self.dataset,
            self.label,
            root,
            store=store,
            spec=self.spec,
            code=self.code,
            source="simulated" if self.root is None else "real",
            advance=advance,
            note=note,
            workers=workers,
        )
        with store.write("cohort", self.identity(), self.label) as folder:
            _write_cohort(cohort, folder, store)
        return cohort


def _folder_state(root: Path) -> str:
    """Return a hash of name, size and time of change of every file under a folder."""
    files = sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else []
    return digest([[str(f.relative_to(root)), f.stat().st_size, f.stat().st_mtime_ns] for f in files])


def _write_cohort(cohort: Cohort, folder: Path, store: Store) -> None:
    cohort.participants.to_parquet(folder / "participants.parquet")
    for name in ("centre", "scale", "robust_scale", "present"):
        np.save(folder / f"{name}.npy", np.stack([getattr(r, name) for r in cohort.recordings]), allow_pickle=False)
    whole = {
        "units": cohort.units.describe(),
        "sfreq": cohort.sfreq,
        "fingerprint": cohort.fingerprint,
        "n_voxels": cohort.n_voxels,
        "findings": [asdict(f) for f in cohort.findings],
        "provenance": list(cohort.provenance),
        "recordings": [
            {
                "id": r.id,
                "subject": r.subject,
                "state": r.state,
                "path": str(r.path.relative_to(store.root)),
                "n_times": r.n_times,
                "rows": None if r.rows is None else r.rows.tolist(),
                "events": [[e.onset_s, e.condition] for e in r.events],
                "bad_spans": [list(b) for b in r.bad_spans],
            }
            for r in cohort.recordings
        ],
    }
    (folder / "cohort.json").write_text(json.dumps(whole), encoding="utf-8")


def _read_cohort(entry: Entry, source: CohortSource, store: Store) -> Cohort | None:
    """Rebuild a stored cohort; None if one of its recordings is gone from the store."""
    whole = entry.json("cohort.json")
    arrays = {n: np.load(entry.file(f"{n}.npy")) for n in ("centre", "scale", "robust_scale", "present")}
    recordings = tuple(
        Recording(
            id=r["id"],
            subject=r["subject"],
            state=r["state"],
            path=store.root / r["path"],
            n_times=r["n_times"],
            rows=None if r["rows"] is None else np.array(r["rows"], np.int64),
            events=tuple(Event(onset, condition) for onset, condition in r["events"]),
            bad_spans=tuple((low, high) for low, high in r["bad_spans"]),
            **{name: a[i] for name, a in arrays.items()},
        )
        for i, r in enumerate(whole["recordings"])
    )
    if not all(r.path.is_file() for r in recordings):
        return None
    return Cohort(
        dataset=source.label,
        card=source.dataset.card,
        signal=source.dataset.signal,
        modality=source.dataset.modality,
        source="simulated" if source.root is None else "real",
        participants=pd.read_parquet(entry.file("participants.parquet")),
        recordings=recordings,
        units=unit_table(whole["units"]),
        spec=replace(source.spec, sfreq=whole["sfreq"]),
        fingerprint=whole["fingerprint"],
        n_voxels=whole["n_voxels"],
        findings=tuple(Finding(**f) for f in whole["findings"]),
        provenance=tuple(whole["provenance"]),
    )


def twin(source: CohortSource, store: Store) -> Path:
    """Return the folder of a dataset's simulated twin, writing it on first use.

    Raises
    ------
    DataError
        If the dataset has no twin.
    """
    dataset, identity = source.dataset, source._twin_identity()
    if dataset.twin_subjects == 0:
        raise DataError(
            f"dataset {source.label} has no simulated twin.",
            next_step=f"Give its folder: --data-dir {dataset.name}=PATH.",
        )
    if store.get("twin", identity) is None:
        with store.lock("twin", identity):
            if store.get("twin", identity) is None:
                n = identity["n_subjects"]
                label = f"{source.label} ({source.variant}, n = {n}, simulated)"
                with store.write("twin", identity, label) as folder:
                    dataset.simulate(folder / "data", n_subjects=n, seed=source.seed, variant=source.variant)
    entry = store.get("twin", identity)
    assert entry is not None
    return entry.file("data")


# ---------------------------------------------------------------- check


@dataclass(frozen=True, eq=False)
class DataReport:
    """What `data check` found.

    Parameters
    ----------
    findings
        Everything noticed.
    n_subjects, n_recordings
        Found, before anything is read.
    table
        One row a site and state: subjects, recordings.
    targets
        One row a column of the participants table: kind, labelled subjects, values.
    """

    findings: tuple[Finding, ...]
    n_subjects: int
    n_recordings: int
    table: pd.DataFrame
    targets: pd.DataFrame

    @property
    def usable(self) -> bool:
        """Whether anything can be used."""
        return self.n_recordings > 0


def check_data(dataset: Dataset, root: Path, *, deep: bool = False) -> DataReport:
    """Look at everything under ``root``; change nothing.

    Parameters
    ----------
    dataset
        Finds and reads.
    root
        The user's folder.
    deep
        Read every recording too, not only the tables and names.
    """
    if not root.is_dir():
        raise DataError(f"the folder {root} does not exist.", next_step="Give its place with --data-dir.")
    listing = dataset.list_recordings(root)
    findings = list(listing.findings)
    kept: list[RecordingFile] = []
    for file in listing.recordings:
        if deep:
            try:
                raw = dataset.read(file)
            except Exception as error:
                findings.append(Finding("error", "unreadable", str(error), subject=file.subject, path=str(file.path)))
                continue
            finite, varying = usable_units(np.asarray(raw.data, np.float64))
            if not (finite & varying).all():
                names = [raw.units.names[i] for i in np.flatnonzero(~(finite & varying))]
                text = f"{len(names)} units are constant or not finite: {some(names)}"
                findings.append(Finding("warning", "unusable-units", text, subject=file.subject, path=str(file.path)))
        kept.append(file)
    people = listing.participants
    rows = [{"site": _site(people, f.subject), "state": f.state, "subject": f.subject, "sfreq": f.sfreq} for f in kept]
    frame = pd.DataFrame(rows, columns=["site", "state", "subject", "sfreq"])
    grouped = frame.groupby(["site", "state"], dropna=False)
    table = grouped.agg(
        subjects=("subject", "nunique"),
        recordings=("subject", "size"),
        min_hz=("sfreq", "min"),
        max_hz=("sfreq", "max"),
    ).reset_index()
    present = people[people.index.isin(set(frame["subject"]))]
    targets = pd.DataFrame([_describe_column(present[c]) for c in present.columns])
    return DataReport(tuple(findings), int(frame["subject"].nunique()), len(kept), table, targets)


def _site(people: pd.DataFrame, subject: str) -> str:
    return str(people["site"].get(subject, "")) if "site" in people else ""


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

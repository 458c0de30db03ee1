"""Where a cohort comes from: the user's folder or the simulated twin; prepared once, and checked without a change."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from neurobench import alignment, listing, preparation
from neurobench.alignment import unit_table
from neurobench.contracts import Dataset
from neurobench.errors import DataError
from neurobench.evidence import read_table
from neurobench.identity import digest, file_digest
from neurobench.listing import listed
from neurobench.preparation import prepare, target_sfreq
from neurobench.records import Cohort, DatasetCard, Event, Finding, Recording, SignalSpec
from neurobench.store import Entry, Store

__all__ = ["CohortSource", "twin"]


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
            "code": [CODE, alignment.CODE, listing.CODE, preparation.CODE],
        }

    def _twin_identity(self) -> dict[str, Any]:
        n = self.dataset.twin_subjects if self.n_subjects is None else self.n_subjects
        return {"dataset": dict(self.code), "n_subjects": n, "seed": self.seed, "variant": self.variant}

    def is_there(self, store: Store) -> bool:
        """Return whether there are files to look at: a folder, or a twin that was written."""
        return self.root is not None or store.get("twin", digest(self._twin_identity())) is not None

    def slowest(self, store: Store) -> float:
        """Return the sampling frequency in Hz that the cohort will have, from its files' tables alone.

        Raises
        ------
        DataError
            If there is no recording.
        """
        root = twin(self, store) if self.root is None else self.root
        found = listed(self.dataset, root).recordings
        if not found:
            raise DataError(f"no recording that can be used was found for {self.label} under {root}.")
        return target_sfreq(found, self.spec.sfreq)

    def stored(self, store: Store) -> Cohort | None:
        """Return the cohort if it is stored whole, or None."""
        entry = store.get("cohort", digest(self.identity()))
        return None if entry is None else _read_cohort(entry, self, store)

    def load(
        self,
        store: Store,
        advance: Callable[[int, int], None] = lambda done, total: None,
        note: Callable[[str], None] = lambda message: None,
        workers: int = 0,
        others: Callable[[], Mapping[str, Dataset]] = dict,
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
            others=others,
        )
        identity = self.identity()
        with store.lock("cohort", digest(identity)), store.write("cohort", identity, self.label) as folder:
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
        "card": asdict(cohort.card),
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
                "content": r.content,
                "session": r.session,
                "run": r.run,
            }
            for r in cohort.recordings
        ],
    }
    (folder / "cohort.json").write_text(json.dumps(whole), encoding="utf-8")


def _read_cohort(entry: Entry, source: CohortSource, store: Store) -> Cohort | None:
    """Rebuild a stored cohort; None if one of its recordings is gone from the store."""
    whole = entry.json("cohort.json")
    arrays = {
        n: np.load(entry.file(f"{n}.npy"), allow_pickle=False) for n in ("centre", "scale", "robust_scale", "present")
    }
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
            content=r["content"],
            session=r["session"],
            run=r["run"],
            **{name: a[i] for name, a in arrays.items()},
        )
        for i, r in enumerate(whole["recordings"])
    )
    # A store may be merged from somebody else's: its recordings lie in it, or are none.
    inside = store.root.resolve()
    if not all(r.path.is_file() and r.path.resolve().is_relative_to(inside) for r in recordings):
        return None
    return Cohort(
        dataset=source.label,
        card=DatasetCard(**whole["card"] | {"traps": tuple(whole["card"]["traps"])}),
        signal=source.dataset.signal,
        modality=source.dataset.modality,
        source="simulated" if source.root is None else "real",
        participants=read_table(entry.file("participants.parquet")),
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
    key = digest(identity)
    if store.get("twin", key) is None:
        with store.lock("twin", key):
            if store.get("twin", key) is None:
                n = identity["n_subjects"]
                label = f"{source.label} ({source.variant}, n = {n}, simulated)"
                with store.write("twin", identity, label) as folder:
                    dataset.simulate(folder / "data", n_subjects=n, seed=source.seed, variant=source.variant)
    entry = store.get("twin", key)
    assert entry is not None
    return entry.file("data")

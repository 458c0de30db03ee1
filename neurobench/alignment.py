"""From prepared recordings to a cohort: units aligned, what cannot be used left out, and every reason kept."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neurobench.contracts import Dataset
from neurobench.errors import DataError
from neurobench.filtering import SAME_SFREQ
from neurobench.identity import digest, file_digest
from neurobench.records import Cohort, Event, Finding, Listing, Recording, RecordingFile, SignalSpec, UnitTable
from neurobench.store import Entry

__all__ = ["assemble", "reasons", "same_signal", "shared_units", "some", "unit_table"]

MIN_UNITS = 0.5
"""A recording with fewer usable units than this fraction is left out; a unit missing in more recordings is too."""

CODE = file_digest(Path(__file__))


def assemble(
    dataset: Dataset,
    label: str,
    listing: Listing,
    spec: SignalSpec,
    entries: list[tuple[RecordingFile, Entry, dict[str, Any]]],
    findings: list[Finding],
    source: Literal["real", "simulated"],
) -> Cohort:
    """Align units, drop what cannot be used, and build the cohort."""
    units, keep = _common_units(entries, findings)
    assert spec.sfreq is not None
    shortest = spec.window_s * spec.sfreq / 2
    recordings: list[Recording] = []
    known = set(units.names)
    for file, entry, meta in keep:
        rows = _rows(units, meta)
        present = np.array([r >= 0 and meta["present"][r] for r in rows])
        for kind, text in (("not_finite", "NaN or infinite values"), ("constant", "a constant signal")):
            # Units that the cohort does not have are said once, not in every recording.
            lost = [name for name in meta[kind] if name in known]
            if lost:
                findings.append(
                    Finding(
                        "warning",
                        f"{kind.replace('_', '-')}-units",
                        f"{len(lost)} of {len(rows)} units have {text} and are left out of this recording: "
                        + some(lost),
                        subject=file.subject,
                        path=str(file.path),
                    )
                )
        if meta["n_times"] < shortest:
            findings.append(
                Finding(
                    "error",
                    "too-short",
                    f"{meta['n_times'] / spec.sfreq:.4g} s is less than half a window of {spec.window_s:g} s",
                    fix="use a shorter window: --window-s",
                    subject=file.subject,
                    path=str(file.path),
                )
            )
            continue
        if present.mean() < MIN_UNITS:
            findings.append(
                Finding(
                    "error",
                    "too-few-units",
                    f"only {int(present.sum())} of {len(rows)} units are usable",
                    subject=file.subject,
                    path=str(file.path),
                )
            )
            continue
        take = np.maximum(rows, 0)
        recordings.append(
            Recording(
                id=file.id,
                subject=file.subject,
                state=file.state,
                path=entry.file("signal.npy"),
                n_times=int(meta["n_times"]),
                present=present,
                centre=np.asarray(meta["centre"], np.float32)[take],
                scale=np.asarray(meta["scale"], np.float32)[take],
                robust_scale=np.asarray(meta["robust_scale"], np.float32)[take],
                rows=None if np.array_equal(rows, np.arange(len(meta["present"]))) else rows,
                events=tuple(Event(onset, condition) for onset, condition in meta["events"]),
                bad_spans=tuple((low, high) for low, high in meta["bad_spans"]),
                content=entry.manifest["files"]["signal.npy"][0],
                session=file.session,
                run=file.run,
            )
        )
        for noticed in meta["findings"]:
            found = Finding(**noticed)
            findings.append(replace(found, subject=found.subject or file.subject, path=found.path or str(file.path)))
    places = {f.id: str(f.path) for f, _, _ in keep}
    doubled, copies = same_signal([(r.subject, r.content, places[r.id]) for r in recordings], listing.participants)
    findings += doubled
    recordings = [r for i, r in enumerate(recordings) if i not in copies]
    ids = [r.id for r in recordings]
    if len(set(ids)) != len(ids):
        twice = [i for i, n in Counter(ids).items() if n > 1]
        raise DataError(f"dataset {label} gives several recordings the same name: {some(twice)}.")
    participants = _participants(listing.participants, recordings, spec.sfreq)
    if participants.empty:
        raise DataError(f"no recording of {label} can be used." + reasons(findings))
    shas = {f.id: entry.manifest["files"]["signal.npy"][0] for f, entry, _ in keep}
    native = sorted({round(m["native_sfreq"], 4) for _, _, m in keep})
    provenance = [p for _, _, m in keep for p in m["provenance"]]
    if spec.band_hz:
        provenance.append(f"band-pass {spec.band_hz[0]:g}–{spec.band_hz[1]:g} Hz, zero phase")
    if any(abs(n - spec.sfreq) > SAME_SFREQ * spec.sfreq for n in native):
        shown = ", ".join(f"{n:g}" for n in native)
        provenance.append(f"resampled down to {spec.sfreq:.4g} Hz from recordings of {shown} Hz")
    fingerprint = digest(
        {
            "recordings": [
                [r.id, shas[r.id], r.present.tolist(), [asdict(e) for e in r.events], [list(b) for b in r.bad_spans]]
                for r in recordings
            ],
            "units": units.describe(),
            "participants": json.loads(participants.reset_index().to_json(orient="records", double_precision=12)),
            "window_s": spec.window_s,
            "patch_s": spec.patch_s,
            "sfreq": spec.sfreq,
            "scaling": spec.scaling,
        }
    )
    return Cohort(
        dataset=label,
        card=listing.card or dataset.card,
        signal=dataset.signal,
        modality=dataset.modality,
        source=source,
        participants=participants,
        recordings=tuple(recordings),
        units=units,
        spec=spec,
        fingerprint=fingerprint,
        n_voxels=int(keep[0][2]["n_voxels"]),
        findings=tuple(findings),
        provenance=tuple(dict.fromkeys(provenance)),
    )


def same_signal(
    recordings: Sequence[tuple[str, str, str]], participants: pd.DataFrame
) -> tuple[list[Finding], set[int]]:
    """Find recordings with the same content: one person under two ids would be trained on and tested.

    Parameters
    ----------
    recordings
        Subject, hash of the content, and path of each.
    participants
        ``family``, where there is one, says who is kept together anyway.

    Returns
    -------
    findings, lost
        What was found; places of the recordings that must not be used: whatever several people claim, because nobody
        can say whose labels are the right ones.
    """
    family = participants["family"].dropna() if "family" in participants else pd.Series(dtype=object)
    by_content: dict[str, list[int]] = {}
    for i, (_, content, _) in enumerate(recordings):
        by_content.setdefault(content, []).append(i)
    findings: list[Finding] = []
    lost: set[int] = set()
    for places in by_content.values():
        people = list(dict.fromkeys(recordings[i][0] for i in places))
        apart = {str(family.get(s, f"subject {s}")) for s in people}
        if len(places) == 1 or (len(people) > 1 and len(apart) == 1):
            continue
        if len(people) == 1:
            # Counted twice, and never on two sides: whoever has the files knows which one is meant.
            text = f"the same signal as {Path(recordings[places[0]][2]).name}"
            findings += [
                Finding("warning", "same-signal", text, "remove the copy", recordings[i][0], recordings[i][2])
                for i in places[1:]
            ]
            continue
        text = f"one signal under {len(people)} subjects ({some(people)}): it would be trained on and tested"
        fix = "keep one id, or give both one value in a column family"
        lost |= set(places)
        findings += [Finding("error", "same-signal", text, fix, recordings[i][0], recordings[i][2]) for i in places]
    return findings, lost


def shared_units(names: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], list[float]]:
    """Return the units that most of some recordings have, and the share of them that each recording has."""
    counts = Counter(map(tuple, names))
    common = max(counts, key=lambda own: (counts[own], len(own)))
    return common, [len(set(own) & set(common)) / len(common) for own in names]


def _common_units(
    entries: list[tuple[RecordingFile, Entry, dict[str, Any]]], findings: list[Finding]
) -> tuple[UnitTable, list[tuple[RecordingFile, Entry, dict[str, Any]]]]:
    """Return the unit table that most recordings have, and the recordings that fit it."""
    if not entries:
        raise DataError("no recording could be read." + reasons(findings))
    common, shares = shared_units([m["units"]["names"] for _, _, m in entries])
    reference = next(m for _, _, m in entries if tuple(m["units"]["names"]) == common)
    keep = []
    for (file, entry, meta), shared in zip(entries, shares, strict=True):
        own = meta["units"]["names"]
        if shared < MIN_UNITS or meta["n_voxels"] != reference["n_voxels"]:
            findings.append(
                Finding(
                    "error",
                    "units-differ",
                    f"{len(own)} units ({some(own)}), of which {shared:.0%} are among the {len(common)} units of most "
                    f"recordings ({some(common)})",
                    fix="keep recordings of one sensor layout or parcellation in one folder",
                    subject=file.subject,
                    path=str(file.path),
                )
            )
        else:
            keep.append((file, entry, meta))
    table = _mean_places(unit_table(reference["units"]), keep)
    found = np.zeros(len(table))
    for _, _, meta in keep:
        rows = _rows(table, meta)
        found += [r >= 0 and meta["present"][r] for r in rows]
    usable = found >= MIN_UNITS * len(keep)
    if not usable.all():
        names = [table.names[i] for i in np.flatnonzero(~usable)]
        findings.append(
            Finding(
                "warning",
                "dropped-units",
                f"{len(names)} of {len(table)} units are usable in fewer than half of the recordings and are left out "
                f"of the cohort: {some(names)}",
            )
        )
        table = table.take(np.flatnonzero(usable))
    if len(table) == 0:
        raise DataError("no unit is usable in at least half of the recordings." + reasons(findings))
    return table, keep


def unit_table(described: Mapping[str, Any]) -> UnitTable:
    """Rebuild a unit table from :meth:`UnitTable.describe`."""
    share = np.zeros((len(described["names"]), len(described["regions"])), np.float32)
    for i, pairs in enumerate(described["region_share"]):
        for j, value in pairs:
            share[i, j] = value
    return UnitTable(
        names=tuple(described["names"]),
        groups=tuple(described["groups"]),
        position_mm=_vectors(described["position_mm"]),
        types=tuple(described["types"]),
        sites=np.array(described["sites"], np.int64),
        region_names=tuple(described["regions"]),
        region_share=share,
        group_source=described["group_source"],
        orientation=_vectors(described.get("orientation", [])),
    )


def _vectors(described: Any) -> NDArray[np.float32]:
    return np.array([[np.nan if x is None else x for x in v] for v in described], np.float32).reshape(-1, 3)


def _mean_places(table: UnitTable, keep: list[tuple[RecordingFile, Entry, dict[str, Any]]]) -> UnitTable:
    """Return the table with positions and orientations averaged over recordings: heads sit differently in a helmet."""
    position = _mean_vectors("position_mm", table, keep)
    orientation = _mean_vectors("orientation", table, keep)
    # Opposite ones have no mean.
    length = np.linalg.norm(orientation, axis=1, keepdims=True)
    orientation = np.divide(orientation, length, out=np.full_like(orientation, np.nan), where=length > 0.1)
    return replace(table, position_mm=position.astype(np.float32), orientation=orientation.astype(np.float32))


def _mean_vectors(
    name: str, table: UnitTable, keep: list[tuple[RecordingFile, Entry, dict[str, Any]]]
) -> NDArray[np.float64]:
    """Return (units, 3) the mean over the recordings in which it is known; NaN where it is known in none."""
    stacked = np.full((len(keep), len(table), 3), np.nan)
    for i, (_, _, meta) in enumerate(keep):
        if own := meta["units"].get(name):
            for j, row in enumerate(_rows(table, meta)):
                if row >= 0 and None not in own[row]:
                    stacked[i, j] = own[row]
    known = np.isfinite(stacked).all(-1)
    total = np.where(known[..., None], stacked, 0.0).sum(0)
    with np.errstate(invalid="ignore"):
        return np.where(known.any(0)[:, None], total / known.sum(0)[:, None], np.nan)


def _rows(units: UnitTable, meta: Mapping[str, Any]) -> NDArray[np.int64]:
    """Return (units,) the row of each unit in a stored recording, −1 where it is missing."""
    place = {name: i for i, name in enumerate(meta["units"]["names"])}
    return np.array([place.get(name, -1) for name in units.names], np.int64)


def _participants(table: pd.DataFrame, recordings: Sequence[Recording], sfreq: float) -> pd.DataFrame:
    """Return the rows of participants with a recording, with ``duration_s``."""
    seconds: dict[str, float] = {}
    for r in recordings:
        seconds[r.subject] = seconds.get(r.subject, 0.0) + r.n_times / sfreq
    kept = table[table.index.isin(list(seconds))].sort_index().copy()
    kept["duration_s"] = [round(seconds[s], 3) for s in kept.index]
    return kept


def some(names: Sequence[str], n: int = 4) -> str:
    """Return the first names and how many more there are."""
    shown = ", ".join(names[:n])
    return shown if len(names) <= n else f"{shown} and {len(names) - n} more"


def reasons(findings: Sequence[Finding]) -> str:
    """Return the reasons for exclusion with their counts and one example each, as a tail for an error."""
    errors = [f for f in findings if f.level == "error"]
    parts = []
    for code, n in Counter(f.code for f in errors).most_common():
        example = next(f for f in errors if f.code == code)
        where = f"{Path(example.path).name}: " if example.path else ""
        parts.append(f"{code} × {n} ({where}{example.message})")
    return f" Reasons: {'; '.join(parts)}." if parts else ""

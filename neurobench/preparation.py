"""From a user's files to a cohort: read, filter, resample, align units, drop what cannot be used, and say so.

Everything here is the same for every dataset; a dataset plugin only finds and reads files. Prepared recordings are
stored one by one, so that a participant added later prepares only that one.
"""

from __future__ import annotations

import json
import math
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import signal as sps

from neurobench.contracts import Dataset
from neurobench.errors import DataError, NeurobenchError
from neurobench.identity import digest, file_digest
from neurobench.records import (
    Cohort,
    Event,
    Finding,
    Listing,
    RawRecording,
    Recording,
    RecordingFile,
    SignalSpec,
    UnitTable,
)
from neurobench.store import Entry, Store
from neurobench.tokens import statistics

__all__ = ["prepare", "some", "unit_table", "usable_units"]

SAME_SFREQ = 0.01
"""Relative difference below which two sampling frequencies count as one."""

MIN_UNITS = 0.5
"""A recording with fewer usable units than this fraction is left out; a unit missing in more recordings is too."""

FLAT = 1e-6
"""A unit whose s.d. is below this fraction of the median unit's is constant."""


CODE = file_digest(Path(__file__))
"""A change of this file is a change of everything prepared by it."""


# ---------------------------------------------------------------- one recording


def spatial_order(units: UnitTable) -> NDArray[np.int64]:
    """Return the deterministic order of units that scans walk: group after group, from back to front inside one.

    Groups come in the order of their centres along y, then x, so that neighbours in the order are neighbours in space;
    units without a position keep their order inside their group.
    """
    position = np.nan_to_num(units.position_mm.astype(np.float64))
    group = units.group_index
    centres = np.stack([position[group == g].mean(0) for g in range(len(units.group_names))])
    rank = np.lexsort((np.arange(len(centres)), centres[:, 0].round(1), centres[:, 1].round(1))).argsort()
    if not units.has_positions:
        rank = np.arange(len(centres))
    keys = (
        np.arange(len(units)),
        position[:, 2].round(1),
        position[:, 0].round(1),
        position[:, 1].round(1),
        rank[group],
    )
    return np.lexsort(keys)


def band_pass(data: NDArray[np.float64], sfreq: float, band_hz: tuple[float, float] | None) -> NDArray[np.float64]:
    """Band-pass (units, times[, voxels]) without phase shift: second-order Butterworth, forward and backward.

    An upper edge at or above .95 of the Nyquist frequency leaves the high-pass alone.
    """
    if band_hz is None:
        return data
    low, high = band_hz
    nyquist = sfreq / 2
    if high < 0.95 * nyquist:
        sos = sps.butter(2, [low, high], btype="bandpass", fs=sfreq, output="sos")
    else:
        sos = sps.butter(2, low, btype="highpass", fs=sfreq, output="sos")
    # Three periods of the lower edge settle the filter, as far as the recording allows.
    pad = min(data.shape[1] - 1, math.ceil(3 * sfreq / low))
    mean = data.mean(axis=1, keepdims=True)
    return np.asarray(sps.sosfiltfilt(sos, data - mean, axis=1, padlen=pad))


def resample(data: NDArray[np.float64], sfreq: float, target: float) -> NDArray[np.float64]:
    """Resample (units, times[, voxels]) down from ``sfreq`` to ``target`` Hz; within 1 % nothing is done."""
    if abs(sfreq - target) <= SAME_SFREQ * target:
        return data
    if target > sfreq:
        raise DataError(f"a recording of {sfreq:g} Hz cannot be resampled up to {target:g} Hz.")
    ratio = Fraction(target / sfreq).limit_denominator(1000)
    return np.asarray(sps.resample_poly(data, ratio.numerator, ratio.denominator, axis=1, padtype="line"))


def usable_units(data: NDArray[np.float64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return (units,) finite everywhere, and (units,) not constant, of a (units, times[, voxels]) array."""
    flat = data.reshape(len(data), -1)
    finite: NDArray[np.bool_] = np.asarray(np.isfinite(flat).all(axis=1))
    sd = np.zeros(len(data))
    sd[finite] = flat[finite].std(1)
    # With no unit that varies the threshold is infinite: all are constant.
    threshold = FLAT * float(np.median(sd[sd > 0])) if (sd > 0).any() else np.inf
    varying: NDArray[np.bool_] = sd > threshold
    return finite, varying


def _source_state(path: Path) -> list[list[Any]]:
    """Return name, size and time of change of a file, or of every file in a folder: cheap, and changes when they do."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return [[str(f.relative_to(path.parent)), f.stat().st_size, f.stat().st_mtime_ns] for f in files]


def _prepare_one(
    dataset: Dataset, file: RecordingFile, spec: SignalSpec, store: Store, label: str, code: Mapping[str, Any]
) -> Entry:
    """Read, filter, resample and store one recording, or find it stored."""
    identity = {
        "dataset": dict(code),
        "recording": file.id,
        "options": dict(file.options),
        "source": _source_state(file.path),
        "listed_sfreq": file.sfreq,
        "sfreq": spec.sfreq,
        "band_hz": list(spec.band_hz) if spec.band_hz else None,
        "code": CODE,
    }
    if (entry := store.get("prepared", identity)) is not None:
        return entry
    with store.lock("prepared", identity):
        if (entry := store.get("prepared", identity)) is not None:
            return entry
        raw = dataset.read(file)
        with store.write("prepared", identity, f"{label} {file.id}") as folder:
            _write_prepared(raw, spec, folder)
    entry = store.get("prepared", identity)
    assert entry is not None
    return entry


def _write_prepared(raw: RawRecording, spec: SignalSpec, folder: Path) -> None:
    assert spec.sfreq is not None
    order = spatial_order(raw.units)
    units = raw.units.take(order)
    data = np.asarray(raw.data, np.float64)[order]
    finite, varying = usable_units(data)
    present = finite & varying
    data[~present] = 0.0
    data = resample(band_pass(data, raw.sfreq, spec.band_hz), raw.sfreq, spec.sfreq)
    mean, sd, robust = statistics(data)
    np.save(folder / "signal.npy", np.ascontiguousarray(data, np.float32), allow_pickle=False)
    meta = {
        "units": units.describe(),
        "present": present.tolist(),
        "not_finite": [units.names[i] for i in np.flatnonzero(~finite)],
        "constant": [units.names[i] for i in np.flatnonzero(finite & ~varying)],
        "centre": mean.tolist(),
        "scale": sd.tolist(),
        "robust_scale": robust.tolist(),
        "n_times": data.shape[1],
        "n_voxels": data.shape[2] if data.ndim == 3 else 1,
        "native_sfreq": raw.sfreq,
        "provenance": list(raw.provenance),
        "events": [[round(e.onset_s, 6), e.condition] for e in sorted(raw.events, key=lambda e: e.onset_s)],
        "bad_spans": [[round(a, 6), round(b, 6)] for a, b in raw.bad_spans],
        "findings": [asdict(f) for f in raw.findings],
        "signal_sha256": file_digest(folder / "signal.npy"),
    }
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")


# ---------------------------------------------------------------- a cohort


def target_sfreq(files: Sequence[RecordingFile], wanted: float | None) -> float:
    """Return the common sampling frequency: the slowest recording's, or ``wanted`` if that is slower still."""
    slowest = min(f.sfreq for f in files)
    return slowest if wanted is None else min(wanted, slowest)


def prepare(
    dataset: Dataset,
    label: str,
    root: Path,
    *,
    store: Store,
    spec: SignalSpec,
    code: Mapping[str, Any],
    source: Literal["real", "simulated"],
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Cohort:
    """Prepare every recording under ``root`` and return the cohort.

    Parameters
    ----------
    dataset
        Finds and reads the files.
    label
        The dataset as asked for, such as ``camcan[signal=meg]``.
    root
        The user's folder; nothing is written to it.
    store
        Where prepared recordings are kept.
    spec
        Windows, patches, band and scaling.
    code
        What identifies the dataset plugin: resolved parameters, version, digest of its source.
    source
        Whether these are a twin's files.
    advance
        Called after each recording with the number done and the total.

    Raises
    ------
    DataError
        If nothing is left to use, with the reasons and their counts.
    """
    if not root.is_dir():
        raise DataError(
            f"the folder {root} of dataset {label} does not exist.",
            next_step=f"Give its place: --data-dir {dataset.name}=PATH.",
        )
    listing = dataset.list_recordings(root)
    if not listing.recordings:
        raise DataError(
            f"no recording that can be used was found for {label} under {root}." + _summary(listing.findings),
            next_step=f"`neurobench data check {dataset.name} --data-dir {root}` lists everything that was found.",
        )
    spec = replace(spec, sfreq=target_sfreq(listing.recordings, spec.sfreq))
    findings = list(listing.findings)
    entries: list[tuple[RecordingFile, Entry, dict[str, Any]]] = []
    for done, file in enumerate(listing.recordings, 1):
        try:
            entry = _prepare_one(dataset, file, spec, store, label, code)
            entries.append((file, entry, entry.json("meta.json")))
        except DataError as error:
            findings.append(Finding("error", "unreadable", str(error), subject=file.subject, path=str(file.path)))
        except NeurobenchError:
            raise
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            message = f"{type(error).__name__}: {error} (at {Path(frame.filename).name}:{frame.lineno})"
            findings.append(Finding("error", "unreadable", message, subject=file.subject, path=str(file.path)))
        advance(done, len(listing.recordings))
    return _assemble(dataset, label, listing, spec, entries, findings, source)


def _assemble(
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
    for file, entry, meta in keep:
        rows = _rows(units, meta)
        present = np.array([r >= 0 and meta["present"][r] for r in rows])
        for kind, text in (("not_finite", "NaN or infinite values"), ("constant", "a constant signal")):
            if meta[kind]:
                findings.append(
                    Finding(
                        "warning",
                        f"{kind.replace('_', '-')}-units",
                        f"{len(meta[kind])} of {len(rows)} units have {text} and are left out of this recording: "
                        + some(meta[kind]),
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
            )
        )
        for noticed in meta["findings"]:
            found = Finding(**noticed)
            findings.append(replace(found, subject=found.subject or file.subject, path=found.path or str(file.path)))
    ids = [r.id for r in recordings]
    if len(set(ids)) != len(ids):
        twice = [i for i, n in Counter(ids).items() if n > 1]
        raise DataError(f"dataset {label} gives several recordings the same name: {some(twice)}.")
    participants = _participants(listing.participants, recordings, spec.sfreq)
    if participants.empty:
        raise DataError(f"no recording of {label} can be used." + _summary(findings))
    shas = {f.id: m["signal_sha256"] for f, _, m in keep}
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
        card=dataset.card,
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


def _common_units(
    entries: list[tuple[RecordingFile, Entry, dict[str, Any]]], findings: list[Finding]
) -> tuple[UnitTable, list[tuple[RecordingFile, Entry, dict[str, Any]]]]:
    """Return the unit table that most recordings have, and the recordings that fit it."""
    if not entries:
        raise DataError("no recording could be read." + _summary(findings))
    counts = Counter(tuple(m["units"]["names"]) for _, _, m in entries)
    common = max(counts, key=lambda names: (counts[names], len(names)))
    reference = next(m for _, _, m in entries if tuple(m["units"]["names"]) == common)
    keep = []
    for file, entry, meta in entries:
        own = meta["units"]["names"]
        shared = len(set(own) & set(common)) / len(common)
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
    table = _mean_positions(unit_table(reference["units"]), keep)
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
        raise DataError("no unit is usable in at least half of the recordings." + _summary(findings))
    return table, keep


def unit_table(described: Mapping[str, Any]) -> UnitTable:
    """Rebuild a unit table from :meth:`UnitTable.describe`."""
    share = np.zeros((len(described["names"]), len(described["regions"])), np.float32)
    for i, pairs in enumerate(described["region_share"]):
        for j, value in pairs:
            share[i, j] = value
    positions = [[np.nan if x is None else x for x in p] for p in described["position_mm"]]
    return UnitTable(
        names=tuple(described["names"]),
        groups=tuple(described["groups"]),
        position_mm=np.array(positions, np.float32).reshape(-1, 3),
        types=tuple(described["types"]),
        sites=np.array(described["sites"], np.int64),
        region_names=tuple(described["regions"]),
        region_share=share,
        group_source=described["group_source"],
    )


def _mean_positions(table: UnitTable, keep: list[tuple[RecordingFile, Entry, dict[str, Any]]]) -> UnitTable:
    """Return the table with each unit's position averaged over recordings: heads sit differently under one helmet."""
    stacked = np.full((len(keep), len(table), 3), np.nan)
    for i, (_, _, meta) in enumerate(keep):
        own = meta["units"]["position_mm"]
        for j, row in enumerate(_rows(table, meta)):
            if row >= 0 and None not in own[row]:
                stacked[i, j] = own[row]
    known = np.isfinite(stacked).all(-1)
    total = np.where(known[..., None], stacked, 0.0).sum(0)
    with np.errstate(invalid="ignore"):
        mean = np.where(known.any(0)[:, None], total / known.sum(0)[:, None], np.nan)
    return replace(table, position_mm=mean.astype(np.float32))


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


def _summary(findings: Sequence[Finding]) -> str:
    """Return the reasons for exclusion with their counts and one example each, as a tail for an error."""
    errors = [f for f in findings if f.level == "error"]
    parts = []
    for code, n in Counter(f.code for f in errors).most_common():
        example = next(f for f in errors if f.code == code)
        where = f"{Path(example.path).name}: " if example.path else ""
        parts.append(f"{code} × {n} ({where}{example.message})")
    return f" Reasons: {'; '.join(parts)}." if parts else ""

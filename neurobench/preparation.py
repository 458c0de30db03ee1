"""From a user's files to prepared recordings: read, filter, resample and store each, once, on all cores.

Everything here is the same for every dataset; a dataset plugin only finds and reads files. Prepared recordings are
stored one by one, so that a participant added later prepares only that one, and an interrupted preparation goes on
where it was. What becomes of them together is ``alignment.py``'s business.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import joblib
import numpy as np
from numpy.typing import NDArray

from neurobench import filtering
from neurobench.alignment import assemble, reasons
from neurobench.contracts import Dataset
from neurobench.errors import DataError, NeurobenchError
from neurobench.filtering import Temporal
from neurobench.folders import Folder, explained
from neurobench.identity import digest, file_digest
from neurobench.listing import listed, passed_over
from neurobench.places import in_this_folder
from neurobench.records import Cohort, Finding, Listing, RawRecording, RecordingFile, SignalSpec, UnitTable
from neurobench.store import Store
from neurobench.tokens import statistics

__all__ = ["CODE", "identity_of", "prepare", "usable_units", "write_prepared"]

FLAT = 1e-6
"""A unit whose s.d. is below this fraction of the median unit's is constant."""

BLOCK_VALUES = 1 << 21
"""Values of a recording that are converted and filtered at a time (16 MiB as float64)."""

PARALLEL_FROM_S = 10.0
"""Estimated seconds of work from which on other processes are started: each takes seconds to start."""

CODE = digest([file_digest(Path(__file__)), file_digest(Path(filtering.__file__))])
"""A change of these files is a change of everything prepared by them."""

Note = Callable[[str], None]


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


def usable_units(data: NDArray[Any]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return (units,) finite everywhere, and (units,) not constant, of a (units, times[, voxels]) array."""
    finite = np.array([bool(np.isfinite(row).all()) for row in data])
    sd = np.array(
        [np.std(row, axis=0, dtype=np.float64).max() if ok else 0.0 for row, ok in zip(data, finite, strict=True)]
    )
    return finite, _varying(sd) & _changing(data)


def _changing(data: NDArray[Any]) -> NDArray[np.bool_]:
    """Return (units,) whether a unit has more than one value; rounding gives the s.d. of 0.1, 0.1, … one above 0."""
    changing: NDArray[np.bool_] = (data != data[:, :1]).any(axis=tuple(range(1, data.ndim)))
    return changing


def _varying(sd: NDArray[np.float64]) -> NDArray[np.bool_]:
    # With no unit that varies the threshold is infinite: all are constant.
    threshold = FLAT * float(np.median(sd[sd > 0])) if (sd > 0).any() else np.inf
    varying: NDArray[np.bool_] = sd > threshold
    return varying


def _source_state(path: Path) -> list[list[Any]]:
    """Return name, size and time of change of a file, or of every file in a folder: cheap, and changes when they do."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return [[str(f.relative_to(path.parent)), f.stat().st_size, f.stat().st_mtime_ns] for f in files]


def identity_of(dataset_code: Mapping[str, Any], file: RecordingFile, spec: SignalSpec) -> dict[str, Any]:
    """Return what determines a prepared recording: the state of its file, how it is read, what is done to it."""
    return {
        "dataset": dict(dataset_code),
        "recording": file.id,
        "options": dict(file.options),
        "source": _source_state(file.path),
        "beside": {name: _source_state(path) for name, path in sorted(file.beside.items())},
        "listed_sfreq": file.sfreq,
        "sfreq": spec.sfreq,
        "band_hz": list(spec.band_hz) if spec.band_hz else None,
        "code": CODE,
    }


def _prepare_one(
    dataset: Dataset, file: RecordingFile, spec: SignalSpec, store: Store, label: str, identity: Mapping[str, Any]
) -> Finding | None:
    """Read, filter, resample and store one recording; return why it could not be read, or None.

    Raises
    ------
    StoreError
        If it cannot be kept: that concerns every recording.
    """
    try:
        key = digest(identity)
        with store.lock("prepared", key):
            if store.get("prepared", key) is None:
                raw = dataset.read(file)
                with store.write("prepared", identity, f"{label} {file.id}") as folder:
                    write_prepared(raw, spec, folder)
    except DataError as error:
        return _unreadable(file, str(error), error.next_step)
    except NeurobenchError:
        raise
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return _unreadable(file, f"{type(error).__name__}: {error} (at {Path(frame.filename).name}:{frame.lineno})")
    return None


def _unreadable(file: RecordingFile, message: str, fix: str = "") -> Finding:
    return Finding("error", "unreadable", message, fix=fix, subject=file.subject, path=str(file.path))


def write_prepared(raw: RawRecording, spec: SignalSpec, folder: Path) -> None:
    """Filter, resample and write one recording into a folder, a few units at a time.

    Volumes are written as float16, divided by one factor a recording so that its range fits.
    """
    assert spec.sfreq is not None
    order = spatial_order(raw.units)
    units = raw.units.take(order)
    is_volume = raw.data.ndim == 3
    temporal = Temporal(raw.data.shape[1], raw.sfreq, spec.sfreq, spec.band_hz, raw.regressors)
    step = max(1, BLOCK_VALUES // max(1, raw.data[0].size))
    finite, changing = np.ones(len(order), bool), np.ones(len(order), bool)
    collected: list[tuple[NDArray[np.float32], ...]] = []
    stored: NDArray[Any] | None = None
    factor = 1.0
    for low in range(0, len(order), step):
        block = np.asarray(raw.data[order[low : low + step]])
        if block.dtype.kind == "f":
            known = np.isfinite(block).all(axis=tuple(range(1, block.ndim)))
            finite[low : low + step] = known
            if not known.all():
                block = np.where(known.reshape((-1,) + (1,) * (block.ndim - 1)), block, 0)
        # A filter makes noise of rounding of a constant, which no threshold tells from a recording where all are.
        changing[low : low + step] = _changing(block)
        filtered = temporal(block)
        if stored is None:
            shape = (len(order), *filtered.shape[1:])
            kind = np.float16 if is_volume else np.float32
            stored = np.lib.format.open_memmap(folder / "signal.npy", mode="w+", dtype=kind, shape=shape)
            if is_volume:
                spread = filtered.std(axis=(1, 2))
                factor = 1.0 / float(np.median(spread[spread > 0])) if (spread > 0).any() else 1.0
        if is_volume:
            filtered = filtered * np.float32(factor)
        stored[low : low + step] = filtered
        collected.append(statistics(filtered))
    assert stored is not None
    n_times, n_voxels = stored.shape[1], stored.shape[2] if is_volume else 1
    stored.flush()  # type: ignore[attr-defined]
    del stored
    mean, sd, robust = (np.concatenate(parts) for parts in zip(*collected, strict=True))
    varying = _varying(sd.astype(np.float64)) & changing
    meta = {
        "units": units.describe(),
        "present": (finite & varying).tolist(),
        "not_finite": [units.names[i] for i in np.flatnonzero(~finite)],
        "constant": [units.names[i] for i in np.flatnonzero(finite & ~varying)],
        "centre": mean.tolist(),
        "scale": sd.tolist(),
        "robust_scale": robust.tolist(),
        "n_times": n_times,
        "n_voxels": n_voxels,
        "native_sfreq": raw.sfreq,
        "provenance": list(raw.provenance),
        "events": [[round(e.onset_s, 6), e.condition] for e in sorted(raw.events, key=lambda e: e.onset_s)],
        "bad_spans": [[round(a, 6), round(b, 6)] for a, b in raw.bad_spans],
        "findings": [asdict(f) for f in raw.findings],
    }
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")


# ---------------------------------------------------------------- all recordings


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
    note: Note = lambda message: None,
    workers: int = 0,
    others: Callable[[], Mapping[str, Dataset]] = dict,
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
    note
        Called with what is worth saying once: how much there is to do, and how large it gets.
    workers
        Processes; 0: as many as there are cores, and only where that saves time.
    others
        Gives the datasets that are tried where this one makes nothing of the folder, by what a user writes.

    Raises
    ------
    DataError
        If nothing is left to use, with the reasons and their counts.
    StoreError
        If the disk is full; what is prepared is kept.
    """
    listing = usable(dataset, label, root, others)
    spec = replace(spec, sfreq=target_sfreq(listing.recordings, spec.sfreq))
    identities = {f.id: identity_of(code, f, spec) for f in listing.recordings}
    todo = [f for f in listing.recordings if store.get("prepared", digest(identities[f.id])) is None]
    total, stored = len(listing.recordings), len(listing.recordings) - len(todo)
    advance(stored, total)
    failed: dict[str, Finding] = {}
    work = [(dataset, f, spec, store, label, identities[f.id]) for f in todo]
    for done, (file, finding) in enumerate(_each(work, workers, note), stored + 1):
        if finding is not None:
            failed[file.id] = finding
        advance(done, total)
    entries = []
    for file in listing.recordings:
        entry = None if file.id in failed else store.get("prepared", digest(identities[file.id]))
        if entry is not None:
            entries.append((file, entry, entry.json("meta.json")))
    findings = [*listing.findings, *(failed[f.id] for f in listing.recordings if f.id in failed)]
    return assemble(dataset, label, listing, spec, entries, findings, source)


def usable(dataset: Dataset, label: str, root: Path, others: Callable[[], Mapping[str, Dataset]] = dict) -> Listing:
    """Return the recordings under ``root`` of a dataset; parameters as for :func:`prepare`, and nothing is read.

    Raises
    ------
    DataError
        If the folder is not there, or holds nothing that can be used, with what was probably meant.
    """
    if not root.is_dir():
        raise DataError(
            f"the folder {root} of dataset {label} does not exist.",
            next_step=f"Give its place: --data-dir {dataset.name}=PATH.",
        )
    try:
        listing = listed(dataset, root)
        if not listing.recordings:
            raise DataError(
                f"no recording that can be used was found for {label} under {root}." + reasons(listing.findings),
                next_step=f"`neurobench data check {dataset.name} --data-dir {root}` lists everything that was found.",
            )
    except DataError as error:
        raise hinted(error, dataset, root, others()) from error
    return listing


def hinted(error: DataError, dataset: Dataset, root: Path, others: Mapping[str, Dataset]) -> DataError:
    """Return an error of a folder that a dataset makes nothing of, with what was probably meant."""
    return explained(error, dataset, Folder(root), others, [f.message for f in passed_over(root, ())])


Work = tuple[Dataset, RecordingFile, SignalSpec, Store, str, Mapping[str, Any]]


def _each(work: Sequence[Work], workers: int, note: Note) -> Iterator[tuple[RecordingFile, Finding | None]]:
    """Prepare recordings as they come: two here, to see how long one takes; the rest where that is quicker.

    The first one pays for imports and filters too: judged by it alone, a hundred quick ones would wait for processes to
    start.
    """
    n_cores = joblib.cpu_count()
    rest = list(work)
    n_whole, size, seconds = 0, 0, 0.0
    while rest and n_whole < 2:
        started = time.perf_counter()
        item = rest.pop(0)
        finding = _prepare_one(*item)
        seconds = time.perf_counter() - started
        yield item[1], finding
        size = _size(item) or size
        n_whole += finding is None
    if not rest:
        return
    slow = seconds * len(rest) > PARALLEL_FROM_S
    if slow:
        free = shutil.disk_usage(rest[0][3].root).free
        text = f"{len(rest)} more recordings: about {size * len(rest) / 1e9:.2g} GB, {free / 1e9:.3g} GB free"
        note(text + ("; the disk will be full before the end" if size * len(rest) > free else ""))
    wanted = workers or n_cores
    if wanted > 1 and len(rest) > 1 and (workers > 1 or slow) and _importable(rest[0][0]):
        with joblib.parallel_config(backend="loky", inner_max_num_threads=max(1, n_cores // wanted)):
            here = joblib.delayed(in_this_folder(_prepare_numbered))
            jobs = (here(n, *item) for n, item in enumerate(rest))
            for n, finding in joblib.Parallel(n_jobs=wanted, return_as="generator_unordered")(jobs):
                yield rest[n][1], finding
        return
    for item in rest:
        yield item[1], _prepare_one(*item)


def _prepare_numbered(number: int, *item: Any) -> tuple[int, Finding | None]:
    return number, _prepare_one(*item)


def _importable(dataset: Dataset) -> bool:
    """Whether another process can import the dataset's class; one of a plugin file given by path it cannot."""
    try:
        return importlib.util.find_spec(type(dataset).__module__) is not None
    except (ImportError, ValueError):
        return False


def _size(item: Work) -> int:
    """Return the bytes that a prepared recording takes; 0 if it could not be prepared."""
    store, identity = item[3], item[5]
    entry = store.get("prepared", digest(identity))
    return 0 if entry is None else sum(size for _, size in entry.manifest["files"].values())

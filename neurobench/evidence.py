"""What lies behind the numbers of a run, beside its records: held-out predictions, maps, curves, signals, the cohort.

Everything is a table (.parquet), a bundle of arrays (.npz) or JSON, so that reports and figures read an output folder
alone and never a model. Folders of an output::

    records/<id>.json                 the number, and how it was made
    predictions/<id>.parquet          one row a held-out subject (window, response, subject × mask)
    identities/<id>.json              what the id is the hash of
    folds/<fingerprint>.json          who is trained on and tested in every fold
    evidence/<id>/<kind>.parquet      units, curves, geometry, attribution, alignment, importance, routing
    evidence/<id>/<kind>.npz          responses, traces
    cohorts/<fingerprint>/            cohort.json, units.parquet
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
import pydantic
from numpy.typing import NDArray

from neurobench.errors import DataError
from neurobench.parsing import parse_json
from neurobench.places import place_beside

__all__ = ["ARRAYS", "TABLES", "Evidence", "damage", "read_table", "write_arrays", "write_table"]

TABLES: Mapping[str, str] = {
    "units": "of a reconstruction, one row a unit: unit, r2 (mean over headline masks), r2[MASK] of each mask",
    "curves": "of a pretraining, one row a step that was kept: fold, step, loss",
    "geometry": "of embeddings, one row a held-out subject: participant_id, fold, pc1, pc2, site, age",
    "attribution": "of a backbone, one row a (group, control): value, low, high (positive: worse without the group), "
    "metric, unit, n_units, control (empty, or labels: probe fitted to permuted ones), fold_agreement (Spearman)",
    "alignment": "of a backbone on sensors, one row a state: state, auroc of what it draws on for the expected "
    "sensors, p and null (turned helmets or shuffles), n_expected, n_units",
    "importance": "of a backbone that can say, one row a (state, unit): state, unit, value (how much other units draw "
    "on it: 1 where they draw on all alike, mean over folds), expected (whether the state's response is expected "
    "there)",
    "routing": "of a mixture of experts, one row a (fold, unit, expert): fold, unit, expert (from 1, of several layers "
    "one layer after the other), share (mean gate over held-out subjects; a unit's shares sum to 1, NaN: nobody has "
    "the unit). Expert 1 of one fold need not be expert 1 of another",
}
"""Tables that may lie beside a record."""

ARRAYS: Mapping[str, str] = {
    "responses": "grand averages of evoked responses over held-out subjects: keys (c,) such as auditory/tone, "
    "n_subjects (c,), peak_window_s (c, 2) where the task looks for the peak, times_s (t,), units (u,), real and "
    "predicted (c, u, t) in native units (T, T/m)",
    "traces": "one held-out window a mask: masks (m,), subjects are not named, units (m, k), times_s (t,), real, "
    "predicted (m, k, t) in scaled units, hidden (m, k, t) bool, r2 (m, k)",
}
"""Bundles of arrays that may lie beside a record."""


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table, moved into place once it is whole."""
    with _whole(path) as beside:
        # Without sums a flipped bit is another number, which nobody notices.
        table.to_parquet(beside, index=False, write_page_checksum=True)


def read_table(path: Path) -> pd.DataFrame:
    """Return a table of :func:`write_table`: twice as fast as pandas asks for it, which counts where there are many.

    Raises
    ------
    DataError
        If it cannot be read.
    """
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            found: pd.DataFrame = file.read(use_threads=False).to_pandas(use_threads=False)
    except Exception as error:  # Of Arrow, and of what pandas has noted in the file.
        raise _unread(path, str(error) or type(error).__name__) from error
    return found


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write named arrays, moved into place once they are whole; nothing is pickled."""
    # By name numpy would add an ending.
    with _whole(path) as beside, beside.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Give a place to write a file to; without an error it is moved into its own, and with one nothing is left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = place_beside(path)
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


@dataclass(frozen=True, eq=False)
class Evidence:
    """All that is known of one cohort in an output folder: what a figure draws from.

    Parameters
    ----------
    folder
        The output folder.
    dataset, title
        As asked for, such as ``camcan[signal=meg]``, and the name that people know.
    source
        ``real`` or ``simulated``; a drawing of simulated data says so.
    modality, signal
        ``fmri`` or ``meg``; ``parcels``, ``sensors`` or ``volume``.
    table
        Rows of :func:`neurobench.load_results` of this cohort: one row a (task, row, seed), ``id`` among the columns.
    cohort
        What ``cohort.json`` holds: flow, sites, card.
    """

    folder: Path
    dataset: str
    title: str
    source: Literal["real", "simulated"]
    modality: Literal["fmri", "meg"]
    signal: Literal["parcels", "sensors", "volume"]
    table: pd.DataFrame
    cohort: Mapping[str, Any]
    _cache: dict[Path, Any] = field(default_factory=dict, repr=False)

    @property
    def units(self) -> pd.DataFrame:
        """One row a unit: unit, group, type, site, x, y, z in mm (MNI for fMRI, head frame for MEG; NaN: unknown)."""
        return self._table(self.folder / "cohorts" / self.cohort["fingerprint"] / "units.parquet")

    def rows(self, task: str = "", **columns: Any) -> pd.DataFrame:
        """Return the scored rows of a task (all without one) whose columns have the values given.

        Parameters
        ----------
        task
            Label of the task.
        **columns
            Such as ``kind="pretrained"`` or ``kind=("baseline", "untrained")``.
        """
        table = self.table[self.table["status"] == "ok"]
        if task:
            table = table[table["task"] == task]
        for name, value in columns.items():
            wanted = list(value) if isinstance(value, tuple | list | set) else [value]
            table = table[table[name].isin(wanted)]
        return table

    def tasks(self) -> Iterator[tuple[str, pd.DataFrame]]:
        """Yield every task with its scored rows, in the order of the table."""
        for task in dict.fromkeys(self.table["task"]):
            if len(found := self.rows(task)):
                yield task, found

    def predictions(self, record_id: str) -> pd.DataFrame | None:
        """Return the held-out predictions of a record, None where there are none."""
        return self._optional(self.folder / "predictions" / f"{record_id}.parquet")

    def frame(self, record_id: str, kind: str) -> pd.DataFrame | None:
        """Return a table of :data:`TABLES` that lies beside a record, None where there is none."""
        if kind not in TABLES:
            raise DataError(f"there is no evidence {kind!r}.", allowed=", ".join(TABLES))
        return self._optional(self.folder / "evidence" / record_id / f"{kind}.parquet")

    def arrays(self, record_id: str, kind: str) -> Mapping[str, NDArray[Any]] | None:
        """Return the arrays of :data:`ARRAYS` that lie beside a record, None where there are none."""
        if kind not in ARRAYS:
            raise DataError(f"there is no evidence {kind!r}.", allowed=", ".join(ARRAYS))
        path = self.folder / "evidence" / record_id / f"{kind}.npz"
        if path not in self._cache:
            if not path.is_file():
                return None
            self._cache[path] = _read_arrays(path)
        found: Mapping[str, NDArray[Any]] = self._cache[path]
        return found

    def _optional(self, path: Path) -> pd.DataFrame | None:
        return self._table(path) if path.is_file() else None

    def _table(self, path: Path) -> pd.DataFrame:
        if path not in self._cache:
            self._cache[path] = read_table(path)
        table: pd.DataFrame = self._cache[path]
        return table.copy()


def damage(path: Path) -> str:
    """Return why a table, a bundle of arrays or a cohort's page cannot be used; empty: it is whole."""
    if not path.is_file():
        return "is missing"
    try:
        if path.suffix == ".parquet":
            read_table(path)
        elif path.suffix == ".npz":
            _read_arrays(path)
        elif path.name == "cohort.json":
            read_cohort(path.parent.parent.parent, path.parent.name)
    except DataError:
        return "cannot be read"
    return ""


def _read_arrays(path: Path) -> Mapping[str, NDArray[Any]]:
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            return dict(stored)
    except Exception as error:  # Of the zip file, of its members' headers, of their bytes: a family each.
        raise _unread(path, str(error) or type(error).__name__) from error


def _unread(path: Path, why: str) -> DataError:
    said = " ".join(why.split())[:200]
    return DataError(
        f"{path} cannot be read: {said}.", next_step="Run the same `neurobench run` again: it is written anew."
    )


class _Part(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)


class _Spread(_Part):
    mean: float
    sd: float
    low: float
    high: float


class _Card(_Part):
    model_config = pydantic.ConfigDict(strict=True, extra="forbid")

    title: str
    modality: Literal["fmri", "meg"]
    licence: str
    access: str
    apply_at: str
    citation: str
    doi: str
    revision: str
    may_leave: Literal["aggregates", "predictions", "all"]
    traps: list[str]
    inclusion: str
    size: str


class _LeftOut(_Part):
    code: str
    level: Literal["info", "warning", "error"]
    n: int
    example: str


class _Column(_Part):
    n: int
    mean: float = 0.0
    sd: float = 0.0
    low: float = 0.0
    high: float = 0.0
    classes: dict[str, int] = {}

    @pydantic.model_validator(mode="after")
    def _whole_spread(self) -> Self:
        if 0 < len(self.model_fields_set & _Spread.model_fields.keys()) < len(_Spread.model_fields):
            raise ValueError("a spread has mean, sd, low and high")
        return self


class _Site(_Part):
    site: str
    n: int
    diagnosis: dict[str, int] = {}
    # Left out where a site has none; null is no spread.
    age: _Spread = _Spread(mean=0, sd=0, low=0, high=0)
    mean_fd: _Spread = age
    duration_s: _Spread = age


class _Page(_Part):
    """What reports and figures take from ``cohort.json``."""

    fingerprint: str
    dataset: str
    card: _Card
    source: Literal["real", "simulated"]
    variant: str
    modality: Literal["fmri", "meg"]
    signal: Literal["parcels", "sensors", "volume"]
    n_subjects: int
    n_recordings: int
    n_units: int
    group_source: str
    sfreq: float
    states: dict[str, int]
    provenance: list[str]
    findings: list[_LeftOut]
    columns: dict[str, _Column]
    sites: list[_Site]
    recording_s: _Spread


def read_cohort(folder: Path, fingerprint: str) -> Mapping[str, Any]:
    """Return what ``cohort.json`` holds.

    Raises
    ------
    DataError
        If it is missing or unreadable, or is of another cohort.
    """
    path = folder / "cohorts" / fingerprint / "cohort.json"
    try:
        found: Mapping[str, Any] = parse_json(path.read_bytes())
        if _Page.model_validate(found).fingerprint != fingerprint:
            raise ValueError("it is of another cohort")
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise _unread(path, f"{'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}") from error
    except (OSError, ValueError) as error:
        # The system's own text names the file once more.
        raise _unread(path, (isinstance(error, OSError) and error.strerror) or str(error)) from error
    return found

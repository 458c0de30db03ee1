"""Placing records among the published ones: from a run of one's own, or from a bundle that was sent and is believed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from neurobench.bundle import MANIFEST, without_paths
from neurobench.bundle_reader import parse_table, read_bundle
from neurobench.errors import StoreError
from neurobench.evidence import write_table
from neurobench.leaderboard import SUITE_NAME, BoardError
from neurobench.plugins import Registry
from neurobench.results import Record, read_record, record_text
from neurobench.store import atomic_write
from neurobench.verification import verify

__all__ = ["Placed", "add_records"]


@dataclass(frozen=True)
class Placed:
    """What was placed.

    Parameters
    ----------
    n_records, n_predictions
        Records, and those of them with held-out predictions beside.
    n_withheld
        Records of real people whose predictions may leave under other names only, and were left behind.
    """

    n_records: int
    n_predictions: int
    n_withheld: int = 0


def add_records(source: str | Path, results: str | Path, registry: Registry) -> Placed:
    """Place records of suites among the published ones, and the predictions whose card lets them leave.

    Parameters
    ----------
    source
        Output folder of runs of one or more suites, or a bundle: a zip file, or a folder with its manifest.
    results
        Folder of published records; what is there stays, whatever is placed beside it.
    registry
        What a bundle is verified with.

    Raises
    ------
    BoardError
        If a bundle is not believed.
    StoreError
        If there are no records, one was changed, or one is of no suite.
    """
    source, results = Path(source), Path(results)
    if source.is_file() or (source / MANIFEST).is_file():
        return _from_bundle(source, results, registry)
    paths = sorted((source / "records").glob("*.json"))
    if not paths:
        raise StoreError(
            f"{source} holds no records.", next_step="Run `neurobench run --suite …` with --out set to it first."
        )
    records = [read_record(path) for path in paths]
    suites = [_suite(record, str(path)) for record, path in zip(records, paths, strict=True)]
    n = withheld = 0
    for record, suite in zip(records, suites, strict=True):
        # Commands and notes name folders of whoever ran them.
        _place(without_paths(record), results / suite)
        beside = source / "predictions" / f"{record.id}.parquet"
        if not beside.is_file() or record.data is None or record.data.may_leave == "aggregates":
            continue
        if record.data.source == "real" and record.data.may_leave == "predictions":
            withheld += 1  # Under other names only, and giving those is a bundle's business.
            continue
        write_table(results / suite / "predictions" / beside.name, pd.read_parquet(beside))
        n += 1
    return Placed(len(records), n, withheld)


def _from_bundle(source: Path, results: Path, registry: Registry) -> Placed:
    # Read once: what is placed is what was verified.
    contents = read_bundle(source)
    verdict = verify(contents, registry, against=results if results.is_dir() else None)
    if errors := [f for f in verdict.findings if f.level == "error"]:
        raise BoardError(
            f"{source} is not believed: {errors[0].message}" + (f" (and {len(errors) - 1} more)" if errors[1:] else ""),
            next_step=f"See `neurobench verify {source}`.",
        )
    suites = [_suite(record, f"record {record.id[:12]}") for record in verdict.records]
    tables = contents.named("predictions")
    n = 0
    for record, suite in zip(verdict.records, suites, strict=True):
        _place(record, results / suite)
        if (content := tables.get(record.id)) is not None:
            write_table(results / suite / "predictions" / f"{record.id}.parquet", parse_table(content))
            n += 1
    return Placed(len(verdict.records), n)


def _suite(record: Record, where: str) -> str:
    """Return the folder of a record's suite."""
    name = record.protocol.suite.partition("@")[0]
    if not SUITE_NAME.fullmatch(name):
        raise StoreError(
            f"{where} is of no suite, and only what is of one can stand in a table with others.",
            next_step="Run with `--suite NAME|FILE`; `neurobench run --help` names those that there are.",
        )
    return name


def _place(record: Record, folder: Path) -> None:
    atomic_write(folder / f"{record.id}.json", record_text(record))

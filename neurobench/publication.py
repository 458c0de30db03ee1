"""Placing records among the published ones: from a run of one's own, or from a bundle that was sent and is believed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from neurobench import attestation
from neurobench.bundle import MANIFEST, may_leave, without_paths
from neurobench.bundle_reader import parse_table, read_bundle
from neurobench.errors import StoreError
from neurobench.evidence import read_table, write_table
from neurobench.leaderboard import SUITE_NAME, BoardError
from neurobench.pairwise import PairwiseRecord, name_of, pairwise_record, tables_of
from neurobench.parsing import parse_json
from neurobench.plugins import Registry
from neurobench.results import Record, read_record, record_text
from neurobench.store import atomic_write
from neurobench.verification import Repeat, verify

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
    n_compared
        Tables whose comparisons were placed, for their predictions may not leave.
    n_again
        Records that were run again and found again.
    """

    n_records: int
    n_predictions: int
    n_withheld: int = 0
    n_compared: int = 0
    n_again: int = 0


def add_records(source: str | Path, results: str | Path, registry: Registry, *, repeat: Repeat | None = None) -> Placed:
    """Place records of suites among the published ones, and the predictions whose card lets them leave.

    Parameters
    ----------
    source
        Output folder of runs of one or more suites, or a bundle: a zip file, or a folder with its manifest.
    results
        Folder of published records; what is there stays, whatever is placed beside it.
    registry
        What a bundle is verified with.
    repeat
        Runs records of a bundle again; what is found again is attested to beside the records. None: nothing is run.

    Raises
    ------
    BoardError
        If a bundle is not believed.
    StoreError
        If there are no records, one was changed, or one is of no suite.
    """
    source, results = Path(source), Path(results)
    if source.is_file() or (source / MANIFEST).is_file():
        return _from_bundle(source, results, registry, repeat)
    if repeat is not None:
        raise BoardError(
            f"{source} is no bundle, and only a bundle is run again: nobody attests to a run of their own.",
            next_step=f"Make one with `neurobench submit {source} --to BUNDLE`; somebody else adds it with --rerun.",
        )
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
        leaves = may_leave(record, registry)
        if not beside.is_file() or leaves == "aggregates":
            continue
        if leaves == "predictions":
            withheld += 1  # Under other names only, and giving those is a bundle's business.
            continue
        write_table(results / suite / "predictions" / beside.name, read_table(beside))
        n += 1
    compared = 0
    for own in tables_of([r for r in records if may_leave(r, registry) == "aggregates" and r.data is not None]):
        file = pairwise_record(source, own)
        if file is not None:
            _place_comparisons(file, results / _suite(own[0], ""))
            compared += 1
    return Placed(len(records), n, withheld, compared)


def _from_bundle(source: Path, results: Path, registry: Registry, repeat: Repeat | None) -> Placed:
    # Read once: what is placed is what was verified.
    contents = read_bundle(source)
    verdict = verify(contents, registry, against=results if results.is_dir() else None, repeat=repeat)
    if errors := [f for f in verdict.findings if f.level == "error"]:
        raise BoardError(
            f"{source} is not believed: {': '.join(filter(None, (errors[0].subject, errors[0].message)))}"
            + (f" (and {len(errors) - 1} more)" if errors[1:] else ""),
            next_step=f"See `neurobench verify {source}"
            + (f" --against {results}" if results.is_dir() else "")
            + "`, which names the records and says what to do.",
        )
    suites = [_suite(record, f"record {record.id[:12]}") for record in verdict.records]
    tables = contents.named("predictions")
    n = 0
    for record, suite in zip(verdict.records, suites, strict=True):
        # What is accepted already stays as it is, to the byte.
        if not (results / suite / f"{record.id}.json").is_file():
            _place(record, results / suite)
        if (again := verdict.again.get(record.id)) is not None:
            accepted = read_record(results / suite / f"{record.id}.json")
            rerun = attestation.attest(accepted, again.value, again.allowed)
            atomic_write(results / suite / "reruns" / f"{record.id}.json", rerun.as_text)
        if (content := tables.get(record.id)) is not None:
            # Other predictions can give the same scores, and other ranks.
            if not (path := results / suite / "predictions" / f"{record.id}.parquet").is_file():
                write_table(path, parse_table(content))
            n += 1
    by_id = {r.id: r for r in verdict.records}
    compared = [PairwiseRecord.of(parse_json(c)) for c in contents.named("comparisons").values()]
    for file in compared:
        _place_comparisons(file, results / _suite(by_id[file.rows[0].records[0]], ""))
    return Placed(len(verdict.records), n, n_compared=len(compared), n_again=len(verdict.again))


def _suite(record: Record, where: str) -> str:
    """Return the folder of a record's suite."""
    name = record.protocol.suite.partition("@")[0]
    if not SUITE_NAME.fullmatch(name):
        raise StoreError(
            f"{where} is of no suite, and only what is of one can stand in a table with others.",
            next_step="Run with `--suite NAME|FILE`; `neurobench run --help` names those that there are.",
        )
    return name


def _place_comparisons(file: PairwiseRecord, folder: Path) -> None:
    atomic_write(folder / "comparisons" / f"{name_of(file)}.json", file.as_text)


def _place(record: Record, folder: Path) -> None:
    atomic_write(folder / f"{record.id}.json", record_text(record))

"""From published records to a board: what may stand in one table, who may be ranked, and what separates.

Below ``results/<suite>/`` lie ``<id>.json``, one record a file; ``predictions/<id>.parquet``, its held-out predictions,
where the dataset's card lets them leave; ``comparisons/<hash>.json`` where it does not: what they gave where they are
(:mod:`neurobench.pairwise`); and ``reruns/<id>.json``, who ran a record again (:mod:`neurobench.attestation`). Nothing
else may lie there. A rank comes from paired comparisons alone (:mod:`neurobench.comparisons`); a record that is in none
is shown and never ranked.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd

from neurobench.attestation import Rerun, contradictions
from neurobench.contracts import Task
from neurobench.errors import DataError, StoreError
from neurobench.evidence import read_table
from neurobench.identity import digest, file_digest
from neurobench.leaderboard_tables import Board, Line, Ranking, Table
from neurobench.paired import Row, row_of
from neurobench.pairwise import (
    PairwiseRecord,
    compare_here,
    compare_published,
    ground,
    name_of,
    problems,
    settings,
    table_of,
    tables_of,
)
from neurobench.parsing import parse_json
from neurobench.places import in_this_folder
from neurobench.plugins import FILE, Registry
from neurobench.recomputation import differences, recompute, tolerance_of
from neurobench.results import Record, read_record
from neurobench.store import atomic_write
from neurobench.tables import metric_name

__all__ = ["SUITE_NAME", "BoardError", "read_board"]

SUITE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""Of a folder of records."""

PARALLEL_FROM_S = 10.0
"""Estimated seconds of work from which on other processes are started: each takes seconds to start."""


class BoardError(StoreError):
    """Something lies among the published records that may not, or that cannot be believed."""


# ---------------------------------------------------------------- reading


def read_board(results: str | Path, registry: Registry | None = None, *, cache: Path | None = None) -> Board:
    """Read and compare everything under a folder of published records.

    Parameters
    ----------
    results
        Folder with one folder a suite.
    registry
        Where tasks come from, to compute metrics and intervals again from the predictions; without it only the scores
        that rows are ranked by are, and every record counts as declared.
    cache
        File in which is kept what was found, by the hashes of records, predictions and code; None: nothing is kept.

    Raises
    ------
    BoardError
        If anything lies there that is no record, or predictions of people that may not.
    """
    folder = Path(results)
    if not folder.is_dir():
        raise BoardError(
            f"there is no folder {folder}.", next_step="Say where the records are: `--results DIR`, one folder a suite."
        )
    rows: list[_Rows] = []
    lost: dict[str, tuple[Record, ...]] = {}
    n = 0
    for suite in sorted(folder.iterdir()):
        if not suite.is_dir() or suite.is_symlink() or not SUITE_NAME.fullmatch(suite.name):
            raise _not_a_record(suite, "it is no folder of a suite")
        found = _read_suite(suite)
        n += len(found.records)
        if without := tuple(r for r in found.records if r.data is None):
            lost[suite.name] = without
        rows += [_Rows.of(found, own) for own in tables_of([r for r in found.records if r.data is not None])]
    if not n:
        raise BoardError(
            f"{folder} holds no records.",
            next_step="Place some: `neurobench leaderboard add OUT --results DIR`.",
        )
    tables = [_table(x, found) for x, found in zip(rows, _recompute_all(rows, registry, cache), strict=True)]
    return Board(tuple(sorted(tables, key=_order_of_tables)), lost, n)


def _order_of_tables(t: Table) -> tuple[Any, ...]:
    shared = (t.source != "real", t.suite, t.dataset, t.reconstructs, t.task)
    # What is not ranked comes last of its kind; then the larger cohort first.
    return (*shared, bool(t.withheld), -t.n_subjects, digest([ground(t.first), settings(t.first.protocol)]))


def _not_a_record(path: Path, why: str) -> BoardError:
    return BoardError(
        f"{path} is not a record: {why}.",
        allowed="<suite>/<id>.json, one record a file; <suite>/predictions/<id>.parquet beside it where the dataset's "
        "card lets predictions leave, else <suite>/comparisons/<hash>.json; <suite>/reruns/<id>.json",
        next_step="Take it out: nothing else may lie among the records, least of all rows of single subjects.",
    )


@dataclass(frozen=True, eq=False)
class _Suite:
    """What lies in the folder of a suite: records, comparisons by the table that they are of, repetitions by record."""

    folder: Path
    records: tuple[Record, ...]
    comparisons: Mapping[str, Sequence[PairwiseRecord]]
    reruns: Mapping[str, Rerun]


def _read_suite(suite: Path) -> _Suite:
    """Return what lies in a suite's folder, whatever should not being an error."""
    records = []
    for path in sorted(suite.iterdir()):
        if path.is_symlink():
            raise _not_a_record(path, "it is a link")
        if path.is_dir() and path.name in ("predictions", "comparisons", "reruns"):
            continue
        if path.is_dir() or path.suffix != ".json":
            raise _not_a_record(path, "it is a folder" if path.is_dir() else "its name does not end in .json")
        try:
            record = read_record(path)
        except StoreError as error:
            raise BoardError(error.what, next_step="Take it out, or place the record as it was written.") from error
        if record.id != path.stem:
            raise _not_a_record(path, f"its name is not the record's id, {record.id}")
        name = record.protocol.suite.partition("@")[0]
        if name != suite.name:
            raise BoardError(
                f"{path} is of {f'the suite {name!r}' if name else 'no suite'} and lies in that of {suite.name!r}.",
                next_step="Place it where it belongs: what stands in one table was made by the same rules.",
            )
        records.append(record)
    by_id = {r.id: r for r in records}
    _check_predictions(suite / "predictions", by_id)
    return _Suite(suite, tuple(records), _comparisons(suite / "comparisons", by_id), _reruns(suite / "reruns", by_id))


def _comparisons(folder: Path, records: Mapping[str, Record]) -> dict[str, list[PairwiseRecord]]:
    found: dict[str, list[PairwiseRecord]] = {}
    for path, plain in _small_files(folder):
        try:
            file = PairwiseRecord.of(plain)
            wrong = next(problems(file, records), "" if name_of(file) == path.stem else "its name is not its hash")
        except ValueError as error:
            wrong = str(error)
        if wrong:
            raise BoardError(
                f"{path} cannot be what its records give: {wrong}.",
                next_step="Take it out, or place it as `neurobench submit` wrote it.",
            )
        found.setdefault(table_of(records[file.rows[0].records[0]]), []).append(file)
    return found


def _reruns(folder: Path, records: Mapping[str, Record]) -> dict[str, Rerun]:
    found = {}
    for path, plain in _small_files(folder):
        if path.stem not in records:
            raise _not_a_record(path, "nor of one that lies here")
        try:
            found[path.stem] = Rerun.of(plain)
            wrong = next(contradictions(found[path.stem], records[path.stem]), "")
        except ValueError as error:
            wrong = str(error)
        if wrong:
            raise BoardError(
                f"{path} attests to nothing: {wrong}.",
                next_step="Take it out, or run the record again: `neurobench leaderboard add BUNDLE --rerun`.",
            )
    return found


def _small_files(folder: Path) -> Iterator[tuple[Path, Any]]:
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix != ".json" or not path.is_file() or path.is_symlink():
            raise _not_a_record(path, "nor anything else that belongs here")
        try:
            yield path, parse_json(path.read_bytes())
        except (OSError, ValueError) as error:
            raise _not_a_record(path, f"it cannot be read ({error})") from error


def _check_predictions(folder: Path, records: Mapping[str, Record]) -> None:
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        record = records.get(path.stem)
        if path.suffix != ".parquet" or not path.is_file() or path.is_symlink() or record is None:
            raise _not_a_record(path, "nor the predictions of one that lies here")
        data = record.data
        if data is None or (data.source == "real" and data.may_leave == "aggregates"):
            raise BoardError(
                f"{path} holds rows of single subjects of {record.dataset.label}: its card lets only aggregates leave.",
                next_step="Take it out of this folder and of its history. The record alone may be published.",
            )


@dataclass(frozen=True, eq=False)
class _Rows:
    """The records of one table, as they are read."""

    suite: _Suite
    scored: tuple[Line, ...]
    failed: tuple[Line, ...]
    withheld: str

    @classmethod
    def of(cls, suite: _Suite, records: Sequence[Record]) -> _Rows:
        rows: dict[tuple[str, str], dict[int, list[Record]]] = {}

        def standing(r: Record) -> tuple[Any, ...]:
            # What is only declared takes the place of nothing that can be found again, however new it is.
            return r.id in suite.reruns or _beside(suite.folder, r).is_file(), r.written, r.id

        for r in sorted(records, key=standing):
            rows.setdefault((r.kind, r.row), {}).setdefault(r.protocol.seed, []).append(r)
        scored: list[Line] = []
        failed: list[Line] = []
        for by_seed in rows.values():
            newest = [by_seed[s][-1] for s in sorted(by_seed)]
            older = tuple(r for s in sorted(by_seed) for r in by_seed[s][:-1])
            ok = tuple(r for r in newest if r.status == "ok")
            (scored if ok else failed).append(Line(ok or tuple(newest), older))
        failed.sort(key=lambda x: x.name)
        return cls(suite, tuple(scored), tuple(failed), _withheld(records[0]))

    @cached_property
    def beside(self) -> tuple[Record, ...]:
        """Records with predictions beside them."""
        return tuple(r for x in self.scored for r in x.records if _beside(self.suite.folder, r).is_file())

    @property
    def comparisons(self) -> Sequence[PairwiseRecord]:
        """What was computed elsewhere, in the place of predictions."""
        first = (self.scored or self.failed)[0].first
        return () if self.beside or self.withheld else self.suite.comparisons.get(table_of(first), ())


def _table(rows: _Rows, found: Recomputed) -> Table:
    suite, compared = rows.suite, found.ranking
    if rows.comparisons:
        current = [r for x in rows.scored if "mask budget" not in x.apart for r in x.records]
        published = compare_published(current, rows.comparisons)
        compared = Ranking.of(published) if published else None
    paired = frozenset(compared.paired if compared else ())
    ranks = compared.ranks if compared else {}
    levels = dict.fromkeys(found.records, "recomputed") | dict.fromkeys(suite.reruns, "re-run")
    lines = [Line(x.records, x.superseded, ranks.get(x.name), levels, suite.reruns) for x in rows.scored]
    unpaired = [x.name for x in lines if x.name not in paired and "mask budget" not in x.apart and not rows.withheld]
    higher = next((m.higher_is_better for x in lines for m in x.heads), True)
    lines.sort(key=lambda x: (math.isnan(x.score), -x.score if higher else x.score, x.name))
    return Table(
        suite.folder.name, tuple(lines), rows.failed, rows.withheld, compared, tuple(unpaired), bool(rows.comparisons)
    )


def _withheld(record: Record) -> str:
    if record.protocol.split == "within-recording":
        return (
            "Training and test are parts of the same recordings, so nothing here says how well anything generalises to "
            "other people. Shown apart, never ranked."
        )
    if record.protocol.transductive:
        return (
            "Backbones were pretrained on the test subjects' recordings too, without their labels (transductive). "
            "Shown apart from inductive rows, never ranked."
        )
    return ""


# ---------------------------------------------------------------- what predictions say


def _recompute_all(rows: Sequence[_Rows], registry: Registry | None, cache: Path | None) -> list[Recomputed]:
    """Return what predictions give, table by table; what is known of the same bytes and code is read from ``cache``.

    The cache is no part of what is published: without it, or with other bytes, everything is computed.
    """
    code = _code(registry) if cache is not None and registry is not None else ""
    known = _read_cache(cache) if code and cache is not None else {}
    keys = [digest([code, bool(x.withheld), *_bytes_of(x)]) if code and x.beside else "" for x in rows]
    found = [_from_plain(known.get(key)) for key in keys]
    todo = [n for n, x in enumerate(rows) if x.beside and found[n] is None]
    for n, again in zip(todo, _recompute_each([rows[n] for n in todo], registry), strict=True):
        found[n] = again
    whole = [again or Recomputed() for again in found]
    kept = {key: asdict(again) for key, again in zip(keys, whole, strict=True) if key}
    if cache is not None and kept and kept != known:
        atomic_write(cache, json.dumps(kept, ensure_ascii=False, sort_keys=True) + "\n")
    return whole


def _recompute_each(rows: Sequence[_Rows], registry: Registry | None) -> Iterator[Recomputed]:
    """Yield what predictions give, table by table; where that takes long, several at once in processes of their own."""
    tasks = registry.tasks if registry else {}
    # What was given as a file no other process can import.
    alone = registry is not None and any(p.distribution.startswith(FILE) for p in registry.plugins)
    workers = 1 if alone else joblib.cpu_count()
    jobs = [(x.suite.folder, x.beside, not x.withheld, tasks) for x in rows]
    started = time.perf_counter()
    for n, job in enumerate(jobs):
        expected = (time.perf_counter() - started) / n * (len(jobs) - n) if n else 0.0
        if workers > 1 and expected > PARALLEL_FROM_S:
            with joblib.parallel_config(backend="loky", inner_max_num_threads=1):
                here = joblib.delayed(in_this_folder(_recompute))
                rest = (here(*job) for job in jobs[n:])
                yield from joblib.Parallel(n_jobs=workers, return_as="generator")(rest)
            return
        yield _recompute(*job)


def _bytes_of(rows: _Rows) -> Iterator[list[str]]:
    for r in rows.beside:
        yield [r.id, r.content_hash, file_digest(_beside(rows.suite.folder, r))]


def _code(registry: Registry) -> str:
    """Return the hash of everything that verifies: the core, the tasks, and the libraries that numbers come from."""
    core = {p.name: file_digest(p) for p in sorted(Path(__file__).parent.glob("*.py"))}
    tasks = {name: registry.provenance("task", name).digest for name in sorted(registry.tasks)}
    return digest([core, tasks, [metadata.version(name) for name in ("numpy", "scipy", "pandas")]])


def _read_cache(path: Path) -> dict[str, Any]:
    try:
        found = parse_json(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _from_plain(plain: Any) -> Recomputed | None:
    """Return what was kept; None if it is nothing that was."""
    try:
        r = plain["ranking"]
        ranking = r and Ranking(
            {row: (int(a), int(b)) for row, (a, b) in r["ranks"].items()},
            tuple(r["sentences"]),
            (str(r["gain"][0]), str(r["gain"][1])),
            tuple(r["paired"]),
            int(r["never_met"]),
        )
        return Recomputed(ranking, tuple(plain["records"]))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        return None


@dataclass(frozen=True)
class Recomputed:
    """What the predictions beside the records of a table give.

    Parameters
    ----------
    ranking
        Of the rows that have predictions; None where no two have.
    records
        Ids of those whose every metric, interval and p-value was found again.
    """

    ranking: Ranking | None = None
    records: tuple[str, ...] = ()


def _recompute(folder: Path, records: Sequence[Record], ranked: bool, tasks: Mapping[str, type[Task]]) -> Recomputed:
    """Return what the predictions of records of one table give.

    Raises
    ------
    BoardError
        If that is something else than the records say.
    """
    rows: dict[tuple[str, str], Row] = {}
    again = []
    for r in records:
        path = _beside(folder, r)
        held_out = read_table(path)
        if ranked and "mask budget" not in r.apart and (row := _row_of(r, held_out, path)) is not None:
            rows[r.id, r.headline] = row
        if _recomputed(r, held_out, path, tasks):
            again.append(r.id)
    compared = compare_here(folder, records, rows) if ranked else None
    return Recomputed(Ranking.of(compared) if compared else None, tuple(again))


def _beside(suite: Path, record: Record) -> Path:
    return suite / "predictions" / f"{record.id}.parquet"


def _row_of(record: Record, held_out: pd.DataFrame, path: Path) -> Row | None:
    """Return predictions as a row that can be compared; None if their headline cannot.

    Raises
    ------
    BoardError
        If they do not give the score of their record: a rank would be of something else.
    """
    try:
        row = row_of(record.headline, held_out)
        found = float(row.values(np.ones((1, len(row.subjects))))[0])
    except DataError:
        return None
    except (KeyError, ValueError, TypeError) as error:
        raise BoardError(f"{path} cannot be read as predictions of {record.headline}: {error!r}.") from error
    said = record.metrics[record.headline].value
    if said is not None and not math.isclose(found, said, rel_tol=1e-6, abs_tol=1e-9):
        raise BoardError(
            f"{path} gives a {metric_name(record.headline)} of {found:.6g}, and its record says {said:.6g}.",
            next_step="Place the predictions that belong to the record, or neither.",
        )
    return row


def _recomputed(record: Record, held_out: pd.DataFrame, path: Path, tasks: Mapping[str, type[Task]]) -> bool:
    """Whether every metric, interval and p-value of a record was found again from its predictions.

    Not where the task that scored them is not installed here in the same version.

    Raises
    ------
    BoardError
        If something else was found.
    """
    cls = tasks.get(record.task.name)
    if cls is None or cls.score_version != record.task.score_version:
        return False
    try:
        again = recompute(cls(**record.task.parameters), record, held_out)
    except DataError:
        return False
    if wrong := list(differences(record.metrics, again.metrics, tolerance_of(record))):
        raise BoardError(
            f"{path} does not give the numbers of its record: {wrong[0]}.",
            next_step="Place the predictions that belong to the record, or neither.",
        )
    return True

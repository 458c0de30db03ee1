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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neurobench.attestation import Rerun, contradictions
from neurobench.caveats import Caveat, shown_by_records
from neurobench.comparisons import Comparisons
from neurobench.errors import DataError, StoreError
from neurobench.identity import digest, file_digest
from neurobench.paired import row_of
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
from neurobench.plugins import Registry
from neurobench.recomputation import differences, recompute, tolerance_of
from neurobench.results import MetricRecord, Record, read_record
from neurobench.store import atomic_write
from neurobench.tables import APART, decimals, metric_name, missing
from neurobench.tables import markdown_text as _plain

__all__ = [
    "KINDS",
    "LEVELS",
    "Board",
    "BoardError",
    "Line",
    "Table",
    "flat",
    "markdown",
    "read_board",
    "words",
]

KINDS: Mapping[str, str] = {
    "pretrained": "pretrained",
    "given": "as given",
    "untrained": "untrained control",
    "baseline": "baseline",
    "filler": "trivial filler",
}
"""Kinds of rows, in the order in which they are explained, as they are written."""

LEVELS: Mapping[str, str] = {
    "declared": "as its author sent it",
    "recomputed": "metrics and intervals computed again from the held-out predictions",
    "re-run": "trained and scored again from the recordings, or on the simulated twin, by somebody who looks after the "
    "board",
}
"""What was done to believe a record, the least first."""

SUITE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""Of a folder of records."""


class BoardError(StoreError):
    """Something lies among the published records that may not, or that cannot be believed."""


# ---------------------------------------------------------------- what a board holds


@dataclass(frozen=True, eq=False)
class Line:
    """One row of one table, over its seeds.

    Parameters
    ----------
    records
        The record of each seed that counts, in their order: the newest of those that can be found again, if there are
        any. Failed ones only where no seed was scored.
    superseded
        The others of the same seeds.
    rank
        First and last rank that the paired evidence leaves open; None: not ranked.
    levels
        By id of a record what was done to believe it, where that is more than nothing: one of :data:`LEVELS`.
    reruns
        By id of a record who ran it again, and what came of it.
    """

    records: tuple[Record, ...]
    superseded: tuple[Record, ...] = ()
    rank: tuple[int, int] | None = None
    levels: Mapping[str, str] = field(default_factory=dict)
    reruns: Mapping[str, Rerun] = field(default_factory=dict)

    @property
    def first(self) -> Record:
        """The record of the first seed: what all seeds share is read from it."""
        return self.records[0]

    @property
    def name(self) -> str:
        """The row's label, such as ``mamba · roi``."""
        return self.first.row

    @property
    def kind(self) -> str:
        """One of :data:`KINDS`."""
        return self.first.kind

    @property
    def backbone(self) -> str:
        """Label of the backbone, or nothing."""
        return self.first.backbone.label if self.first.backbone else ""

    @property
    def mask(self) -> str:
        """Label of the masking strategy, or nothing."""
        return self.first.mask.label if self.first.mask else ""

    @property
    def failed(self) -> bool:
        """Whether there is an error instead of a score."""
        return self.first.status == "failed"

    @cached_property
    def heads(self) -> list[MetricRecord]:
        """The headline metric of each seed."""
        return [r.metrics[r.headline] for r in self.records if r.headline in r.metrics]

    @cached_property
    def score(self) -> float:
        """Mean over seeds; NaN where it is not defined."""
        return _mean(m.value for m in self.heads)

    @cached_property
    def low(self) -> float:
        """Lowest lower limit of the seeds' 95 % intervals."""
        return min((m.low for m in self.heads if m.low is not None), default=math.nan)

    @cached_property
    def high(self) -> float:
        """Highest upper limit of the seeds' 95 % intervals."""
        return max((m.high for m in self.heads if m.high is not None), default=math.nan)

    @property
    def skill(self) -> float:
        """Mean skill over the best control."""
        return _mean(r.skill for r in self.records)

    @property
    def above_chance(self) -> bool | None:
        """Whether every seed is above chance; None where nobody asked."""
        said = [r.above_chance for r in self.records if r.above_chance is not None]
        return all(said) if said else None

    @property
    def stuck(self) -> bool:
        """Whether the pretraining of any seed stayed behind the best trivial filler."""
        return any(r.pretraining is not None and r.pretraining.learned is False for r in self.records)

    @property
    def apart(self) -> tuple[str, ...]:
        """Why it is not ranked with the others, whatever evidence there is."""
        return tuple(dict.fromkeys(reason for r in self.records for reason in r.apart))

    @property
    def apart_words(self) -> str:
        """The same, as it is written."""
        return "; ".join(APART[reason] for reason in self.apart)

    @property
    def n_parameters(self) -> float:
        """Parameters of the backbone; NaN for what has none."""
        return _mean(r.cost.n_parameters for r in self.records)

    @property
    def seconds(self) -> float:
        """Measured seconds of one seed, mean over seeds."""
        return _mean(r.cost.seconds for r in self.records)

    @property
    def peak_memory_mb(self) -> float:
        """Highest peak of memory in MB; NaN where it was not measured."""
        return max((r.cost.peak_memory_mb for r in self.records if r.cost.peak_memory_mb is not None), default=math.nan)

    @property
    def seeds(self) -> list[int]:
        """Seeds behind the row."""
        return [r.protocol.seed for r in self.records]

    @cached_property
    def level(self) -> str:
        """The least that was done to believe any of its records."""
        return min(map(self.level_of, self.records), key=list(LEVELS).index)

    def level_of(self, record: Record) -> str:
        """What was done to believe one of its records."""
        return self.levels.get(record.id, "declared")

    @cached_property
    def combination(self) -> str:
        """What tells its page from others: everything but the task and the seed."""
        r = self.first
        return digest([ground(r), settings(r.protocol), r.protocol.suite, r.kind, r.row])


@dataclass(frozen=True)
class Ranking:
    """What paired comparisons of a table come to.

    Parameters
    ----------
    ranks
        Row to the first and the last rank that it may have.
    sentences
        What they say in words.
    gain
        Whether pretraining is shown to be better than the best control: a short word, and a sentence.
    paired
        Rows that were compared with another one.
    never_met
        Pairs of ranked rows that nobody has compared.
    """

    ranks: Mapping[str, tuple[int, int]]
    sentences: tuple[str, ...]
    gain: tuple[str, str]
    paired: tuple[str, ...] = ()
    never_met: int = 0

    @property
    def n_pairs(self) -> int:
        """Pairs of ranked rows."""
        return len(self.ranks) * (len(self.ranks) - 1) // 2

    @classmethod
    def of(cls, found: Comparisons) -> Ranking:
        """Return it of comparisons."""
        met = sum({x.first, x.second} <= found.ranks.keys() for x in found.pairs)
        paired = dict.fromkeys(name for x in found.pairs for name in (x.first, x.second))
        said = tuple(found.sentences.values())
        ranking = cls(found.ranks, said, _gain(found), tuple(paired))
        return replace(ranking, never_met=ranking.n_pairs - met)


@dataclass(frozen=True, eq=False)
class Table:
    """Rows that may stand beside each other: one suite, cohort, protocol and task; real or simulated, never both.

    Parameters
    ----------
    suite
        Folder of the records.
    lines
        Scored rows, the best first.
    failed
        Rows with an error instead of a score.
    withheld
        Why nothing here is ranked, whatever evidence there is; empty where it may be.
    compared
        Paired comparisons; None without evidence of at least two rows.
    unpaired
        Rows that no paired comparison is of.
    travelled
        Whether the comparisons were computed elsewhere, for the predictions may not leave.
    """

    suite: str
    lines: tuple[Line, ...]
    failed: tuple[Line, ...]
    withheld: str
    compared: Ranking | None
    unpaired: tuple[str, ...] = ()
    travelled: bool = False

    @property
    def first(self) -> Record:
        """A record of the table: what all of them share is read from it."""
        return (self.lines or self.failed)[0].first

    @property
    def dataset(self) -> str:
        """Label of the dataset."""
        return self.first.dataset.label

    @property
    def task(self) -> str:
        """Label of the task."""
        return self.first.task.label

    @property
    def source(self) -> str:
        """``real`` or ``simulated``; empty where the cohort could not be read."""
        return self.first.data.source if self.first.data else ""

    @property
    def metric(self) -> str:
        """The headline metric as it is written."""
        return metric_name(self.first.headline)

    @property
    def head(self) -> MetricRecord | None:
        """A headline metric of the table, for its unit and direction."""
        return next((m for line in self.lines for m in line.heads), None)

    @property
    def unit(self) -> str:
        """Unit of the headline metric, or nothing."""
        return self.head.unit if self.head else ""

    @property
    def higher(self) -> bool:
        """Whether higher is better."""
        return self.head is None or self.head.higher_is_better

    @cached_property
    def chance(self) -> float:
        """Chance level of the headline metric, mean over rows; NaN where it has none."""
        return _mean(m.chance for line in self.lines for m in line.heads)

    @cached_property
    def places(self) -> int:
        """Decimals worth printing."""
        return decimals([line.low for line in self.lines], [line.high for line in self.lines])

    @property
    def n_subjects(self) -> int:
        """Held-out subjects."""
        return max((line.first.n_subjects for line in self.lines), default=0)

    @cached_property
    def n_seeds(self) -> int:
        """Most seeds of a row."""
        return max((len(line.seeds) for line in self.lines), default=0)

    @property
    def ranked(self) -> bool:
        """Whether any row has a rank."""
        return any(line.rank for line in self.lines)

    @property
    def leader(self) -> Line | None:
        """The row that is better than every other one, if the paired evidence says so of one."""
        return next((line for line in self.lines if line.rank == (1, 1)), None) if self._all_ranked else None

    @property
    def _all_ranked(self) -> bool:
        # Who is ahead of those that can be compared may still be behind one that cannot.
        fair = self.on_equal_terms
        return bool(fair) and all(line.rank for line in fair)

    @property
    def on_equal_terms(self) -> tuple[Line, ...]:
        """The rows that are ranked with each other: none has a size or weights of its own."""
        return tuple(line for line in self.lines if not line.apart)

    @property
    def front(self) -> tuple[Line, ...]:
        """Rows that may be the best: none is shown to be better than they are."""
        return tuple(line for line in self.lines if line.rank and line.rank[0] == 1)

    @property
    def apart_words(self) -> str:
        """Why some rows are not ranked with the others; empty where all are."""
        return "; ".join(dict.fromkeys(APART[reason] for line in self.lines for reason in line.apart))

    @cached_property
    def caveats(self) -> list[Caveat]:
        """What its records show of confounds."""
        return shown_by_records([r for line in self.lines for r in line.records])

    @cached_property
    def reconstructs(self) -> bool:
        """Whether it scores the signal itself, mask by mask, instead of something downstream of it."""
        return any(name.startswith("r2[") for line in self.lines for name in line.first.metrics)


@dataclass(frozen=True, eq=False)
class Board:
    """Everything that was published.

    Parameters
    ----------
    tables
        In the order in which they are shown.
    lost
        Records of combinations that failed with their whole cohort, by suite.
    n_records
        All of them, superseded ones included.
    """

    tables: tuple[Table, ...]
    lost: Mapping[str, tuple[Record, ...]]
    n_records: int

    @property
    def suites(self) -> list[str]:
        """Suites, in their order."""
        return sorted({t.suite for t in self.tables} | set(self.lost))


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
    kept: dict[str, Any] = {}
    found = []
    for x in rows:
        key = digest([code, bool(x.withheld), *_bytes_of(x)]) if code and x.beside else ""
        again = _from_plain(known.get(key)) if key else None
        if again is None:
            again = _recompute(x.suite.folder, x.beside, not x.withheld, registry) if x.beside else Recomputed()
        if key:
            kept[key] = asdict(again)
        found.append(again)
    if cache is not None and kept and kept != known:
        atomic_write(cache, json.dumps(kept, ensure_ascii=False, sort_keys=True) + "\n")
    return found


def _bytes_of(rows: _Rows) -> Iterator[list[str]]:
    for r in rows.beside:
        yield [r.id, r.content_hash, file_digest(_beside(rows.suite.folder, r))]


def _code(registry: Registry) -> str:
    """Return the hash of everything that verifies: the core, the tasks, and the libraries that numbers come from."""
    core = {p.name: file_digest(p) for p in sorted(Path(__file__).parent.glob("*.py"))}
    tasks = {name: registry.provenance("task", name).digest for name in sorted(registry.tasks)}
    return digest([core, tasks, [metadata.version(name) for name in ("numpy", "scipy", "pandas", "statsmodels")]])


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


def _recompute(folder: Path, records: Sequence[Record], ranked: bool, registry: Registry | None) -> Recomputed:
    """Return what the predictions of records of one table give.

    Raises
    ------
    BoardError
        If that is something else than the records say.
    """
    fair = [r for r in records if "mask budget" not in r.apart] if ranked else []
    for r in fair:
        _check_headline(r, _beside(folder, r))
    compared = compare_here(folder, fair) if fair else None
    again = tuple(r.id for r in records if _recomputed(folder, r, registry))
    return Recomputed(Ranking.of(compared) if compared else None, again)


def _beside(suite: Path, record: Record) -> Path:
    return suite / "predictions" / f"{record.id}.parquet"


def _check_headline(record: Record, path: Path) -> None:
    """Refuse predictions that do not give the score of their record: a rank would be of something else."""
    held_out = pd.read_parquet(path)
    try:
        row = row_of(record.headline, held_out)
        found = float(row.values(np.ones((1, len(row.subjects))))[0])
    except DataError:
        return
    except (KeyError, ValueError, TypeError) as error:
        raise BoardError(f"{path} cannot be read as predictions of {record.headline}: {error!r}.") from error
    said = record.metrics[record.headline].value
    if said is not None and not math.isclose(found, said, rel_tol=1e-6, abs_tol=1e-9):
        raise BoardError(
            f"{path} gives a {metric_name(record.headline)} of {found:.6g}, and its record says {said:.6g}.",
            next_step="Place the predictions that belong to the record, or neither.",
        )


def _recomputed(suite: Path, record: Record, registry: Registry | None) -> bool:
    """Whether every metric, interval and p-value of a record was found again from its predictions.

    Not where there are none, or where the task that scored them is not installed here in the same version.

    Raises
    ------
    BoardError
        If something else was found.
    """
    path = _beside(suite, record)
    if registry is None or not path.is_file() or record.task.name not in registry.tasks:
        return False
    cls = registry.tasks[record.task.name]
    if cls.score_version != record.task.score_version:
        return False
    try:
        again = recompute(cls(**record.task.parameters), record, pd.read_parquet(path))
    except DataError:
        return False
    if wrong := list(differences(record.metrics, again.metrics, tolerance_of(record))):
        raise BoardError(
            f"{path} does not give the numbers of its record: {wrong[0]}.",
            next_step="Place the predictions that belong to the record, or neither.",
        )
    return True


def _mean(values: Any) -> float:
    known = [float(v) for v in values if v is not None]
    return sum(known) / len(known) if known else math.nan


# ---------------------------------------------------------------- words


def words(table: Table) -> str:
    """Return what may be said of who is best, in one sentence."""
    if table.withheld:
        return "Not ranked."
    if not table.lines:
        return "Every row failed."
    if not table.ranked:
        return "Not ranked: there are no held-out predictions beside these records, so no two rows can be compared."
    return _words_of_ranks(table) + _words_of_evidence(table)


def _words_of_evidence(table: Table) -> str:
    """Return what a reader has to know of comparisons that were computed elsewhere."""
    if not (table.travelled and table.compared):
        return ""
    n = table.compared.never_met
    apart = (
        f" {n} {'pair of rows was' if n == 1 else 'pairs of rows were'} sent in apart and never compared." if n else ""
    )
    return f"{apart} {DECLARED}"


DECLARED = (
    "Ranks are from comparisons that the submitter computed: without the recordings nobody else can compute them."
)


def _words_of_ranks(table: Table) -> str:
    n, beside = len(table.on_equal_terms), len(table.lines) - len(table.on_equal_terms)
    if table.leader is not None:
        less = f" on equal terms; {_n_rows(beside)} (‡) not ranked" if beside else ""
        return f"{table.leader.name} is better than every other row{less}."
    if n == 1:
        return "There is one row only."
    heard = [line for line in table.front if line.above_chance is not False]
    if not heard:
        return f"No row is above chance, so none is ahead; {len(table.front)} of {n} share first place."
    if len(table.front) == 1:
        return (
            f"{table.front[0].name} is ahead of every row that can be compared; {_n_rows(len(table.unpaired))} cannot."
        )
    rest = f" {_n_rows(len(table.unpaired)).capitalize()} cannot be compared." if table.unpaired else ""
    separates = (
        "nothing that is known separates them"
        if table.compared and table.compared.never_met
        else "nothing separates them"
    )
    return f"{len(table.front)} of {n} rows share first place: {separates}.{rest}"


def _n_rows(n: int) -> str:
    return "1 row" if n == 1 else f"{n} rows"


def gain(table: Table) -> tuple[str, str]:
    """Return whether pretraining is shown to be better than the best control: a short word, and a sentence."""
    return table.compared.gain if table.compared else NO_GAIN


NO_GAIN = ("not known", "No pretrained row could be compared with a control.")


def _gain(found: Comparisons) -> tuple[str, str]:
    own = found.table[found.table["by"] == "baseline"]
    if not len(own):
        return NO_GAIN
    control = str(own["second"].iloc[0])
    ahead = own.loc[own["winner"] == own["first"], "first"]
    # What the same network reaches without pretraining is no merit of it.
    beside = found.table[found.table["by"] == "untrained"]
    no_better = set(beside.loc[beside["winner"] != beside["first"], "first"])
    won = sorted(row for row in ahead if row not in no_better)
    lost = int((own["winner"] == own["second"]).sum())
    if won:
        rows, verb = ", ".join(won), "is" if len(won) == 1 else "are"
        return "yes", f"{rows} {verb} better than the best control outside of networks, {control}, and than untrained."
    if len(ahead):
        rows = ", ".join(sorted(ahead))
        return (
            "not shown",
            f"Better than {control}, but not shown to be better than the same network untrained: {rows}.",
        )
    if lost == len(own):
        return "behind", f"Every pretrained row is behind the best control outside of networks, {control}."
    return "not shown", f"No pretrained row is shown to be better than the best control outside of networks, {control}."


# ---------------------------------------------------------------- flat rows, for CSV and JSON


def flat(table: Table, line: Line) -> dict[str, Any]:
    """Return a row as plain values under fixed names; what is not known is None."""
    r = line.first
    return {
        "suite": table.suite,
        "dataset": table.dataset,
        "source": table.source,
        "task": table.task,
        "kind": line.kind,
        "row": line.name,
        "backbone": line.backbone,
        "mask": line.mask,
        "status": r.status,
        "ranked": line.rank is not None,
        "rank_first": line.rank[0] if line.rank else None,
        "rank_last": line.rank[1] if line.rank else None,
        "metric": r.headline,
        "unit": table.unit,
        "higher_is_better": table.higher,
        "score": _known(line.score),
        "low": _known(line.low),
        "high": _known(line.high),
        "chance": _known(_mean(m.chance for m in line.heads)),
        "above_chance": line.above_chance,
        "skill": _known(line.skill),
        "best_control": r.best_baseline,
        "apart": ", ".join(line.apart) or None,
        "pretraining_learned": None if r.pretraining is None else not line.stuck,
        "n_subjects": r.n_subjects,
        "n_parameters": _known(line.n_parameters),
        "seconds": _known(line.seconds),
        "peak_memory_mb": _known(line.peak_memory_mb),
        "device": r.cost.device,
        "verification": line.level,
        "profile": r.protocol.profile,
        "split": r.protocol.split,
        "n_folds": r.protocol.n_folds,
        "adaptation": r.protocol.adaptation,
        "transductive": r.protocol.transductive,
        "objective": r.protocol.objective,
        "cohort": r.data.fingerprint if r.data else "",
        "seeds": line.seeds,
        "records": [x.id for x in line.records],
        "error": r.error,
    }


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


# ---------------------------------------------------------------- Markdown


def markdown(board: Board) -> str:
    """Return the board as Markdown: one table a (suite, cohort, protocol, task)."""
    return "\n".join(_markdown(board)) + "\n"


HEADINGS = {
    "real": "Real recordings",
    "simulated": "Simulated twins: these numbers measure the software, not a brain",
}


def _markdown(board: Board) -> Iterator[str]:
    yield "# Leaderboard\n"
    yield "Made by `neurobench leaderboard build` from the records in `results/`; do not edit. The same with pictures,"
    yield "sorting and filters is in `site/`.\n"
    yield "- *rank*: the ranks that paired evidence leaves open (Holm p < .05, the difference's interval excludes 0,"
    yield "  the better row above chance). Rows whose ranks overlap are tied. `–`: neither held-out predictions nor"
    yield "  comparisons beside the record, so not ranked."
    yield "- *no signal*: not above chance. †: pretraining did not reach the best trivial filler on held-out subjects."
    if any(line.apart for t in board.tables for line in t.lines):
        yield f"- ‡: not ranked with the others: {'; '.join(APART.values())}."
    yield "- *skill*: 1 is perfect, 0 is as good as the best other control, below 0 is worse."
    source = ""
    for t in board.tables:
        if t.source != source:
            source = t.source
            yield f"\n## {HEADINGS.get(source, source)}"
        simulated = " (simulated)" if source == "simulated" else ""
        yield f"\n### {_plain(t.task)} on {_plain(t.dataset)} · {_plain(t.suite)}{simulated}\n"
        yield _plain(facts(t)) + ".\n"
        yield f"**{_plain(words(t))}** {_plain(t.withheld or (gain(t)[1] if t.ranked else ''))}\n"
        yield from (f"{_plain(c.text)}\n" for c in t.caveats if c.level == "warning")
        yield f"| rank | row | kind | {_plain(t.metric)} | 95 % interval | skill | verification |"
        yield "|---:|---|---|---:|---:|---:|---|"
        for line in t.lines:
            p = t.places
            cells = [
                rank_text(line),
                _plain(line.name) + (" †" if line.stuck else "") + (" ‡" if line.apart else ""),
                KINDS[line.kind],
                "–" if math.isnan(line.score) else f"{line.score:.{p}f}",
                "–" if math.isnan(line.low) else f"{line.low:.{p}f} to {line.high:.{p}f}",
                skill_text(line),
                line.level,
            ]
            yield "| " + " | ".join(cells) + " |"
        for line in t.failed:
            yield f"\n{_plain(line.name)} failed: {_plain(line.first.error)}"
    for suite, records in sorted(board.lost.items()):
        yield f"\n## Failed with their whole cohort · {_plain(suite)}\n"
        for text in sorted({f"{r.dataset.label}: {r.error}" for r in records}):
            yield f"- {_plain(text)}"


def facts(table: Table) -> str:
    """Return metric, direction, chance, subjects and protocol of a table in one line."""
    said = [table.metric + (f" in {table.unit}" if table.unit else "")]
    said.append("higher is better" if table.higher else "lower is better")
    if not missing(table.chance):
        said.append(f"chance {table.chance:.3g}")
    said.append(f"{table.n_subjects} held-out subjects")
    p = table.first.protocol
    split = {"subjects": f"{p.n_folds} folds by subject", "site": "one site left out at a time"}.get(p.split, p.split)
    said += [f"profile {p.profile}", split, p.adaptation]
    if table.n_seeds > 1:
        said.append(f"mean over {table.n_seeds} seeds, widest limits of their intervals")
    return " · ".join(said)


def rank_text(line: Line) -> str:
    """Return ``1``, ``2–5``, or a dash where there is no rank."""
    if line.rank is None:
        return "–"
    return str(line.rank[0]) if line.rank[0] == line.rank[1] else f"{line.rank[0]}–{line.rank[1]}"


def skill_text(line: Line) -> str:
    """Return the skill, or that there is no signal."""
    if line.above_chance is False:
        return "no signal"
    return "–" if math.isnan(line.skill) else f"{line.skill:+.2f}"


def as_json(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as JSON, one a line, for files whose differences can be read."""
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows)
    return "[\n" + ",\n".join(lines) + "\n]\n"

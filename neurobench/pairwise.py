"""Comparisons that travel where predictions may not: the differences of all pairs of rows of one table, as aggregates.

A dataset's card may let only aggregates leave. What ranks come from are such: the difference of two rows on the same
held-out subjects, its interval, p-value and standard error. They are computed where the predictions are, by the code of
``neurobench compare``, and name the records that they are of; the same rule ranks by them. Who does not have the
recordings can hold them to those records and to each other (:func:`problems`), and cannot compute them again.

One file is of one table: a suite, cohort, protocol and task. Its name is the hash of what it says.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pandas as pd
from pydantic import Field
from scipy import special

from neurobench.comparisons import Comparisons, compare_pairs, compare_rows
from neurobench.errors import DataError
from neurobench.evidence import Evidence
from neurobench.identity import digest
from neurobench.objectives import RECONSTRUCTION
from neurobench.paired import N_MORE, Row
from neurobench.ranks import Pair, exchanges_of, unequal_terms, winner_of
from neurobench.results import ProtocolRecord, Record, Strict, as_row
from neurobench.scoring import N_PERMUTATIONS

__all__ = [
    "MIN_SUBJECTS",
    "PairwiseRecord",
    "compare_here",
    "compare_published",
    "ground",
    "name_of",
    "pairwise_record",
    "problems",
    "settings",
    "table_of",
    "tables_of",
]

MIN_SUBJECTS = 10
"""Held-out subjects below which no comparison leaves: differences of a handful of people are nearly theirs."""

MOST_ROWS = 1_000
"""Rows of one file: it holds all pairs of them."""

DIGITS = 4
"""Significant digits of interval and standard error: more would say nothing of the rows, and more of single people."""


class _Row(Strict):
    row: str
    records: list[str] = Field(min_length=1, description="ids, one a seed, in the seeds' order")


class _Difference(Strict):
    first: int = Field(ge=0, description="number of a row, from 0")
    second: int = Field(ge=0)
    difference: float = Field(description="first minus second in the metric's unit, mean over the seeds that both have")
    low: float = Field(description="lower end of the paired 95 % interval over subjects")
    high: float
    p: float = Field(gt=0, le=1, description="from exchanging predictions; not adjusted")
    se: float = Field(ge=0, description="standard error over subjects")


class PairwiseRecord(Strict):
    """The differences of all pairs of rows of one table."""

    format: Literal[1] = 1
    dataset: str
    task: str
    metric: str
    n_subjects: int
    rows: list[_Row]
    pairs: list[_Difference]


def name_of(record: PairwiseRecord) -> str:
    """Return the name of the file that holds it, without suffix: the hash of what it says."""
    return digest(record.model_dump(mode="json"))


# ---------------------------------------------------------------- what may stand in one table


def ground(record: Record) -> list[str]:
    """Return whose recordings a record was scored on."""
    assert record.data is not None
    return [record.dataset.label, record.data.source, record.data.variant, record.data.fingerprint]


def settings(protocol: ProtocolRecord) -> dict[str, Any]:
    """Return what must agree for rows to stand in one table; the seed is averaged over.

    Parameters of the adaptation are in its name. Published addresses are a hash of these, so what came later is left
    out where it says what was done before there was a choice.
    """
    left_out = {"fold_fingerprint", "recipe", "suite", "seed", "adaptation_parameters"}
    if protocol.objective == RECONSTRUCTION.label:
        left_out.add("objective")
    return protocol.model_dump(mode="json", exclude=left_out)


def table_of(record: Record) -> str:
    """Return what is equal for records of one table: suite, cohort, protocol and task."""
    return digest([ground(record), settings(record.protocol), record.protocol.suite, record.task.label])


def tables_of(records: Sequence[Record]) -> list[list[Record]]:
    """Return records by the table that they stand in."""
    found: dict[str, list[Record]] = {}
    for r in records:
        found.setdefault(table_of(r), []).append(r)
    return list(found.values())


# ---------------------------------------------------------------- where the predictions are


def compare_here(
    folder: Path, records: Sequence[Record], known: Mapping[tuple[str, str], Row] = {}
) -> Comparisons | None:
    """Compare the records of one table whose predictions are in ``folder / "predictions"``; None: nothing to compare.

    None as well where the headline cannot be compared, of a task that somebody else wrote. ``known`` are rows that need
    not be built of those predictions again, see :func:`neurobench.comparisons.compare_rows`.
    """
    beside = folder / "predictions"
    # Of two records of one row and seed the newer counts.
    ordered = sorted((r for r in records if r.status == "ok"), key=lambda r: (r.written, r.id))
    rows = [as_row(r) for r in ordered if "mask budget" not in r.apart and (beside / f"{r.id}.parquet").is_file()]
    if len({r["row"] for r in rows}) < 2:
        return None
    data = records[0].data
    assert data is not None
    evidence = Evidence(
        folder=folder,
        dataset=records[0].dataset.label,
        title=data.title,
        source=data.source,
        modality="fmri",
        signal=cast("Literal['parcels', 'sensors', 'volume']", data.signal),
        table=pd.DataFrame(rows),
        cohort={},
    )
    try:
        return compare_rows(evidence, records[0].task.label, evidence.table, known=known)
    except DataError:
        return None


def pairwise_record(folder: Path, records: Sequence[Record]) -> PairwiseRecord | None:
    """Return the comparisons of one table that may travel; None where there are no two rows, or too few subjects."""
    found = compare_here(folder, records)
    if found is None or not found.pairs or found.pairs[0].n_subjects < MIN_SUBJECTS:
        return None
    seeds = {r.id: r.protocol.seed for r in records}
    ids: dict[str, set[str]] = {}
    for x in found.pairs:
        ids.setdefault(x.first, set()).update(x.first_ids)
        ids.setdefault(x.second, set()).update(x.second_ids)
    number = {row: n for n, row in enumerate(ids)}
    return PairwiseRecord(
        dataset=found.dataset,
        task=found.task,
        metric=records[0].headline,
        n_subjects=found.pairs[0].n_subjects,
        rows=[_Row(row=row, records=sorted(own, key=seeds.__getitem__)) for row, own in ids.items()],
        pairs=[
            _Difference(
                first=number[x.first],
                second=number[x.second],
                difference=x.difference,
                p=x.p,
                **{name: float(f"{getattr(x, name):.{DIGITS}g}") for name in ("low", "high", "se")},
            )
            for x in found.pairs
        ],
    )


# ---------------------------------------------------------------- where they are not


def compare_published(records: Sequence[Record], files: Sequence[PairwiseRecord]) -> Comparisons | None:
    """Return what the comparisons beside records of one table come to; None without any.

    A difference counts if it is of records that are given. Of two of the same rows the one over more seeds counts, then
    the one with the larger p-value.
    """
    known = {r.id: r for r in records}
    chosen: dict[frozenset[str], Pair] = {}
    for file in files:
        for x in file.pairs:
            pair = _pair(file, x, known)
            if pair is not None:
                rows = frozenset((pair.first, pair.second))
                other = chosen.get(rows)
                if other is None or (len(other.first_ids), -other.p) < (len(pair.first_ids), -pair.p):
                    chosen[rows] = pair
    if not chosen:
        return None
    return compare_pairs(pd.DataFrame([as_row(r) for r in records]), list(chosen.values()))


def _pair(file: PairwiseRecord, x: _Difference, known: Mapping[str, Record]) -> Pair | None:
    """Return a difference with what its records say of the rows; None if one of them is not given."""
    a, b = (file.rows[n].records for n in (x.first, x.second))
    if not {*a, *b} <= known.keys():
        return None
    ours, theirs = _common(a, b, known)
    rows = [known[ours[0]], known[theirs[0]]]
    heard = [all(known[i].above_chance is not False for i in ids) for ids in (ours, theirs)]
    apart = {r.row: ", ".join(r.apart) for r in rows if r.backbone}
    names = (rows[0].row, rows[1].row)
    higher = rows[0].metrics[rows[0].headline].higher_is_better
    fair = not unequal_terms(apart, *names)
    winner = winner_of(names, x.low, x.high, higher, heard) if fair else ""
    return Pair(*names, winner, ours, theirs, x.difference, x.low, x.high, x.p, x.se, file.n_subjects)


def _common(a: Sequence[str], b: Sequence[str], known: Mapping[str, Record]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the records of two rows of the seeds that both have."""
    ours, theirs = ({known[i].protocol.seed: i for i in ids} for ids in (a, b))
    seeds = sorted(ours.keys() & theirs.keys())
    return tuple(ours[s] for s in seeds), tuple(theirs[s] for s in seeds)


# ---------------------------------------------------------------- what cannot be


def problems(file: PairwiseRecord, records: Mapping[str, Record]) -> Iterator[str]:
    """Yield what is wrong with comparisons, as far as that can be told without the predictions.

    Parameters
    ----------
    file
        The comparisons.
    records
        By id, those that it may be of.
    """
    ids = [i for row in file.rows for i in row.records]
    if missing := [i for i in ids if i not in records]:
        yield f"they are of a record that is not here: {missing[0][:12]}"
        return
    if len(set(ids)) < len(ids) or len({row.row for row in file.rows}) < len(file.rows):
        yield "a record or a row is named twice"
        return
    own = [records[i] for i in ids]
    if len({table_of(r) for r in own}) > 1:
        yield "they are of records of different tables"
        return
    for row in file.rows:
        seeds = [records[i].protocol.seed for i in row.records]
        if seeds != sorted(set(seeds)) or any(records[i].row != row.row for i in row.records):
            yield f"the records of {row.row[:100]!r} are of another row, or not one a seed in order"
            return
    if len({(r.protocol.seed, r.protocol.fold_fingerprint) for r in own}) > len({r.protocol.seed for r in own}):
        yield "their records of one seed were tested on different splits"
        return
    if any(r.data is not None and r.data.source == "simulated" for r in own):
        yield "they are of simulated people, whose predictions may leave, and ranks come from those"
        return
    said = {(r.dataset.label, r.task.label, r.headline, r.n_subjects) for r in own}
    if said != {(file.dataset, file.task, file.metric, file.n_subjects)}:
        yield "dataset, task, metric or number of subjects are not those of its records"
        return
    if file.n_subjects < MIN_SUBJECTS:
        yield f"they are of {file.n_subjects} subjects; of fewer than {MIN_SUBJECTS} no comparison may leave"
    n = len(file.rows)
    if n > MOST_ROWS:
        yield f"they are of {n} rows; of more than {MOST_ROWS} nobody looks through all pairs"
        return
    wanted = {
        frozenset((a, b))
        for a, b in itertools.combinations(range(n), 2)
        if _common(file.rows[a].records, file.rows[b].records, records)[0]
    }
    given = [frozenset((x.first, x.second)) for x in file.pairs]
    if len(given) != len(set(given)) or set(given) != wanted or n < 2:
        yield "they are not all pairs of its rows, each once"
        return
    for x in file.pairs:
        for text in _wrong_with(file, x, records):
            yield f"{file.rows[x.first].row[:60]} − {file.rows[x.second].row[:60]}: {text}"
    yield from _errors_apart(file, records)


def _wrong_with(file: PairwiseRecord, x: _Difference, records: Mapping[str, Record]) -> Iterator[str]:
    ours, theirs = _common(file.rows[x.first].records, file.rows[x.second].records, records)
    heads = [[records[i].metrics[file.metric] for i in ids] for ids in (ours, theirs)]
    if any(m.value is None for own in heads for m in own):
        yield "a record has no value"
        return
    # With this no two differences can contradict each other or themselves turned round.
    scores = [float(np.mean([m.value for m in own])) for own in heads]
    if abs(x.difference - (scores[0] - scores[1])) > 1e-6 * max(1.0, *map(abs, scores)):
        yield f"the difference is given as {x.difference:.6g}, and their records give {scores[0] - scores[1]:.6g}"
    width, z = x.high - x.low, abs(x.difference) / x.se if x.se else math.inf if x.difference else 0.0
    if not x.low - 0.05 * width - 1e-9 <= x.difference <= x.high + 0.05 * width + 1e-9:
        yield f"the interval, {x.low:.4g} to {x.high:.4g}, does not hold {x.difference:.4g}"
    elif not 0.5 * width <= 2 * 1.96 * x.se <= 2 * width:
        yield f"an interval of width {width:.4g} does not go with a standard error of {x.se:.4g}"
    exchanged = {N_PERMUTATIONS, N_MORE, max(N_MORE, exchanges_of(len(file.pairs)))}
    if not any(abs(x.p * (m + 1) - round(x.p * (m + 1))) < 1e-6 for m in exchanged):
        yield f"p is {x.p:.6g}, which exchanges of predictions cannot give"
    else:
        # Roughly: exchanges of a few people, or of ranks, do not follow the normal distribution.
        normal = -float(special.ndtri(x.p / 2))
        if normal > 1.5 * z + 1 or (z > 1.5 * normal + 1.5 and x.p * N_PERMUTATIONS > 2):
            yield f"p is {x.p:.4g}, and the difference is {z:.2g} standard errors"
    # A bootstrap of the same draws: standard errors of differences are distances.
    single = [
        (own[0].high - own[0].low) / (2 * 1.96)
        if len(own) == 1 and own[0].low is not None and own[0].high is not None
        else math.nan
        for own in heads
    ]
    if x.se > 1.5 * sum(single) + 1e-9 or x.se < abs(single[0] - single[1]) - 0.5 * sum(single) - 1e-9:
        yield f"a standard error of {x.se:.4g} does not go with those of its rows, {single[0]:.4g} and {single[1]:.4g}"


def _errors_apart(file: PairwiseRecord, records: Mapping[str, Record]) -> Iterator[str]:
    """Yield standard errors that no three rows can have: each is at most the sum of the two others."""
    seeds = [tuple(records[i].protocol.seed for i in row.records) for row in file.rows]
    for _, numbers in itertools.groupby(sorted(range(len(seeds)), key=seeds.__getitem__), key=seeds.__getitem__):
        own = list(numbers)
        place = {n: i for i, n in enumerate(own)}
        se = np.zeros((len(own), len(own)))
        for x in file.pairs:
            if x.first in place and x.second in place:
                i, j = place[x.first], place[x.second]
                se[i, j] = se[j, i] = x.se
        for k in range(len(own)):
            # Rounded to four digits.
            over = se > 1.002 * (se[:, [k]] + se[[k], :]) + 1e-12
            if over.any():
                a, b = (file.rows[own[int(i)]].row[:60] for i in np.argwhere(over)[0])
                c = file.rows[own[k]].row[:60]
                yield f"the standard error of {a} − {b} is larger than those of {a} − {c} and {b} − {c} together"
                return

"""What a board holds: rows over their seeds, tables of rows that may stand beside each other, and all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from neurobench.attestation import Rerun
from neurobench.caveats import Caveat, shown_by_records
from neurobench.comparisons import Comparisons
from neurobench.identity import digest
from neurobench.pairwise import ground, settings
from neurobench.results import MetricRecord, Record
from neurobench.tables import APART, decimals, metric_name

__all__ = ["KINDS", "LEVELS", "NO_GAIN", "Board", "Line", "Ranking", "Table", "mean_known"]

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


def mean_known(values: Any) -> float:
    known = [float(v) for v in values if v is not None]
    return sum(known) / len(known) if known else math.nan


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
        return mean_known(m.value for m in self.heads)

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
        return mean_known(r.skill for r in self.records)

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
        return mean_known(r.cost.n_parameters for r in self.records)

    @property
    def seconds(self) -> float:
        """Measured seconds of one seed, mean over seeds."""
        return mean_known(r.cost.seconds for r in self.records)

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
        return mean_known(m.chance for line in self.lines for m in line.heads)

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


# ---------------------------------------------------------------- whether pretraining is ahead


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

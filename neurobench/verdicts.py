"""Findings while they are made, and the verdict that comes of them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import pandas as pd

from neurobench.bundle_reader import printable
from neurobench.errors import BundleError
from neurobench.identity import digest
from neurobench.plugins import Registry
from neurobench.records import Finding
from neurobench.repetition import Again
from neurobench.results import Record

__all__ = ["SHOWN", "Item", "Judge", "Level", "Verdict", "by", "group_of"]

SHOWN = 20
"""Findings of one kind about one file, of which there may be any number."""

Level = Literal["declared", "recomputed", "re-run"]

_log = logging.getLogger("neurobench.verification")


@dataclass(frozen=True, eq=False)
class Verdict:
    """What came of it.

    Parameters
    ----------
    records
        Those that could be read.
    findings
        Everything that was noticed; an error refuses the bundle.
    levels
        Record id to how far it was checked; a record with an error has none.
    again
        Record id to what running it again gave, where it was found again.
    """

    records: tuple[Record, ...]
    findings: tuple[Finding, ...]
    levels: Mapping[str, Level]
    again: Mapping[str, Again] = field(default_factory=dict)

    @property
    def word(self) -> Literal["believed", "believed, with warnings", "refused"]:
        """The verdict."""
        levels = {f.level for f in self.findings}
        if "error" in levels:
            return "refused"
        return "believed, with warnings" if "warning" in levels else "believed"

    @property
    def exit_code(self) -> int:
        """0 believed, 1 refused, 2 warnings only."""
        return {"believed": 0, "refused": 1, "believed, with warnings": 2}[self.word]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "verdict": self.word,
            "records": [
                {
                    "id": r.id,
                    "dataset": r.dataset.label,
                    "source": r.data.source if r.data else "",
                    "task": r.task.label,
                    "row": r.row,
                    "metric": r.headline,
                    "score": r.metrics[r.headline].value if r.headline in r.metrics else None,
                    "level": self.levels.get(r.id, "refused"),
                }
                for r in self.records
            ],
            "findings": [asdict(f) for f in self.findings],
        }


@dataclass(frozen=True, eq=False)
class Item:
    """A record of the bundle with what lies beside it."""

    record: Record
    plain: Mapping[str, Any]
    identity: Mapping[str, Any] | None
    declared: bool

    @property
    def label(self) -> str:
        r = self.record
        names = f"{r.row}, {r.task.label} on {r.dataset.label}"
        return f"{printable(names)}, seed {str(r.protocol.seed)[:12]} ({r.id[:12]})"


@dataclass(eq=False)
class Judge:
    """Findings while they are made.

    Parameters
    ----------
    registry
        The code that everything is checked with.
    findings
        What was noticed so far.
    levels, again
        As those of :class:`Verdict`.
    told
        What concerns many records and was said once.
    people
        What predictions say of people: values by cohort and by what it is.
    tables
        Predictions that could be scored, by record id.
    held
        Ids of records whose people were held to those of a twin: who has a value among them.
    """

    registry: Registry
    findings: list[Finding]
    levels: dict[str, Level] = field(default_factory=dict)
    again: dict[str, Again] = field(default_factory=dict)
    told: set[tuple[str, str]] = field(default_factory=set)
    people: dict[tuple[str, str], pd.Series[Any]] = field(default_factory=dict)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)

    def add(self, level: Literal["warning", "error"], code: str, message: str, who: str = "", fix: str = "") -> None:
        """Add a finding on the record with that label, or on the bundle."""
        self.findings.append(Finding(level, code, message, fix, subject=who))

    def once(self, level: Literal["warning", "error"], code: str, message: str, fix: str = "") -> None:
        """Add what concerns many records, once."""
        if (code, message) not in self.told:
            self.told.add((code, message))
            self.add(level, code, message, "", fix)

    @contextlib.contextmanager
    def guard(self, who: str) -> Iterator[None]:
        """Refuse what a check fails on: values may be anything, and one record must not hide the others."""
        try:
            yield
        except BundleError:
            raise
        except Exception as error:
            _log.debug("a check failed", exc_info=True)
            self.add("error", "uncheckable", f"cannot be checked: {type(error).__name__}: {printable(str(error))}", who)

    @property
    def refused(self) -> set[str]:
        """Labels of the records with an error."""
        return {f.subject for f in self.findings if f.level == "error"}

    def verdict(self, items: Sequence[Item]) -> Verdict:
        """Return what came of it."""
        refused = self.refused
        levels = {i.record.id: self.levels.get(i.record.id, "declared") for i in items if i.label not in refused}
        again = {i: a for i, a in self.again.items() if i in levels}
        return Verdict(tuple(i.record for i in items), tuple(self.findings), levels, again)


def by(items: Sequence[Item], key: Callable[[Item], str]) -> Iterator[tuple[str, list[Item]]]:
    """Yield groups of records, in the order of the first of each."""
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    yield from groups.items()


def group_of(r: Record) -> str:
    """Return what rows of one task on one cohort with one protocol and seed have in common."""
    settings = r.protocol.model_dump(mode="json", exclude={"recipe", "suite"})
    return digest([r.dataset.label, r.data.fingerprint if r.data else "", r.task.label, settings])

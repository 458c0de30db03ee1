"""How long a step will take: from like steps that were measured, from a short probe, or from a table.

Seconds of a step are ``fixed + rate · amount · size``. Amount is what a step has many of (optimiser steps, windows of
chunks of units, subjects), size the nominal work of one of them. Fixed and rate of every kind come with the package,
measured on one machine and scaled to this one by two tiny timings; whatever was timed on this machine goes over them.
An estimate is told to people. It enters no identity and no record.
"""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

__all__ = ["UNKNOWN", "Estimate", "Model", "Observation", "Table", "Work", "machine", "total"]

Source = Literal["measured here", "probe", "table", "unknown"]

FILE = Path(__file__).with_suffix(".json")
"""Coefficients that come with the package; ``python -m benchmarks.performance.calibrate`` writes them."""

LIKE = 16
"""Measured steps of one kind that an estimate is made from, the latest."""


@dataclass(frozen=True)
class Work:
    """How much a step is.

    Parameters
    ----------
    kind
        What is done, such as ``pretraining``: a line of the table.
    amount
        How many of it: optimiser steps, windows of chunks of units, subjects, numbers of a recording.
    size
        Nominal work of one of them: tokens × width × layers (× windows of a batch) where a backbone runs, else 1.
    by
        Who does it, such as ``mamba on camcan``: what was timed holds for work of the same kind by the same one.
    """

    kind: str
    amount: float
    size: float = 1.0
    by: str = ""

    def times(self, factor: float) -> Work:
        """Return the same work ``factor`` times."""
        return replace(self, amount=self.amount * factor)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for what is written beside a stored step."""
        return {"kind": self.kind, "amount": self.amount, "size": self.size, "by": self.by}

    @classmethod
    def from_dict(cls, values: Any) -> Work | None:
        """Rebuild from :meth:`to_dict`; None for anything else, such as the note of another version."""
        try:
            work = cls(str(values["kind"]), float(values["amount"]), float(values["size"]), str(values["by"]))
        except (KeyError, TypeError, ValueError):
            return None
        return work if math.isfinite(work.amount) and math.isfinite(work.size) else None


@dataclass(frozen=True)
class Observation:
    """Work, and the seconds that it took."""

    work: Work
    seconds: float


@dataclass(frozen=True)
class Estimate:
    """What is expected of some work.

    Parameters
    ----------
    seconds
        None where nothing is known.
    source
        ``measured here`` (like steps in this store), ``probe`` (timed just now), ``table``, or ``unknown``; of a sum
        the least certain of its parts.
    """

    seconds: float | None
    source: Source


UNKNOWN = Estimate(None, "unknown")

_ORDER: tuple[Source, ...] = ("measured here", "probe", "table", "unknown")


def total(parts: Iterable[Estimate]) -> Estimate:
    """Return the sum of what is known; its source is where most of the time comes from, unknown if any part is."""
    known: dict[Source, float] = {}
    unknown = False
    for part in parts:
        if part.seconds is None:
            unknown = True
        else:
            known[part.source] = known.get(part.source, 0.0) + part.seconds
    seconds = sum(known.values())
    if unknown:
        return Estimate(seconds or None, "unknown")
    return Estimate(seconds, max(known, key=lambda s: (known[s], _ORDER.index(s)), default="measured here"))


# ---------------------------------------------------------------- the table


@dataclass(frozen=True)
class Table:
    """Coefficients of every kind of work, and the machine that they were measured on.

    Parameters
    ----------
    kinds
        Kind to (fixed seconds, seconds a unit of amount · size).
    machine
        What :func:`machine` said there.
    about
        Date, versions and how many steps each kind was fitted to.
    """

    kinds: Mapping[str, tuple[float, float]]
    machine: Mapping[str, float]
    about: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path = FILE) -> Table:
        """Read the coefficients that come with the package."""
        whole = json.loads(path.read_text(encoding="utf-8"))
        kinds = {kind: (float(fixed), float(rate)) for kind, (fixed, rate) in whole["kinds"].items()}
        return cls(kinds, whole["machine"], whole["about"])

    @classmethod
    def fit(cls, observations: Sequence[Observation], machine: Mapping[str, float], about: Mapping[str, Any]) -> Table:
        """Fit fixed and rate of every kind, neither below 0, to relative errors of what was observed."""
        by_kind: dict[str, list[Observation]] = {}
        for one in observations:
            by_kind.setdefault(one.work.kind, []).append(one)
        return cls({kind: _line(found) for kind, found in sorted(by_kind.items())}, machine, about)

    def save(self, path: Path = FILE) -> None:
        """Write the coefficients, four digits of each."""
        kinds = {kind: [float(f"{v:.4g}") for v in pair] for kind, pair in self.kinds.items()}
        whole = {"about": dict(self.about), "machine": dict(self.machine), "kinds": kinds}
        path.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")

    def slower(self, here: Mapping[str, float]) -> float:
        """Return how many times as long as the table's machine this one takes: the geometric mean of the timings."""
        ratios = [here[n] / there for n, there in self.machine.items() if here.get(n, 0) > 0 and there > 0]
        return math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else 1.0


def _line(observations: Sequence[Observation]) -> tuple[float, float]:
    """Return (fixed, rate) of a line through what was observed, neither below 0, whose total is what was observed.

    Totals are what people are told. Which part is fixed is chosen for the relative errors of single steps; where all
    have about one size nothing can be said of that, and nothing is.
    """
    x = np.array([o.work.amount * o.work.size for o in observations])
    y = np.array([o.seconds for o in observations])
    if not (x > 0).any():
        return float(y.mean()), 0.0
    fixed = np.linspace(0.0, float(y.mean()), 201)
    if x.max() < 2 * x.min():
        fixed = fixed[:1]
    rate = np.maximum(y.sum() - len(y) * fixed, 0.0) / x.sum()
    errors = (fixed[:, None] + rate[:, None] * x - y) / np.maximum(y, 0.01)
    best = int((errors**2).sum(1).argmin())
    return float(fixed[best]), float(rate[best])


def machine() -> dict[str, float]:
    """Return seconds of two small pieces of work on this machine, the best of five: a matrix product, and Python."""
    a = np.ones((384, 384), np.float32)

    def python() -> None:
        found: dict[int, list[int]] = {}
        for i in range(20_000):
            found.setdefault(i % 97, []).append(i)

    def best(work: Any) -> float:
        seconds = []
        for _ in range(5):
            started = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - started)
        return min(seconds)

    return {"matmul_s": best(lambda: a @ a), "python_s": best(python)}


@functools.cache
def _here() -> Mapping[str, float]:
    return machine()


# ---------------------------------------------------------------- the model


@dataclass
class Model:
    """Estimates of work, from the best that is known of it.

    Parameters
    ----------
    table
        Coefficients of every kind.
    measured
        Steps of this store.
    probed
        What was timed just now.
    broken
        Whose probe failed: nothing is said of the work of those.
    """

    table: Table = field(default_factory=Table.load)
    measured: Sequence[Observation] = ()
    probed: list[Observation] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)

    @functools.cached_property
    def slower(self) -> float:
        """How many times as long as the table's machine this one takes."""
        return self.table.slower(_here())

    def estimate(self, work: Work) -> Estimate:
        """Return what is expected of some work."""
        if work.kind not in self.table.kinds:
            return UNKNOWN
        if like := self._measured.get((work.kind, work.by, work.size)):
            return Estimate(self._scaled(work, like), "measured here")
        if work.by and work.by in self.broken:
            return UNKNOWN
        if work.by and (own := [o for o in self.probed if (o.work.kind, o.work.by) == (work.kind, work.by)]):
            return Estimate(self._scaled(work, own), "probe")
        # Timed at something else, or on another cohort: as much faster or slower than the table in this too. What was
        # timed of another backbone says at least how far off the table is for networks of this size.
        same_kind = [o for o in self.probed if o.work.kind == work.kind and work.size > 1]
        like_it: tuple[tuple[list[Observation], Source], ...] = (
            ([o for o in self.probed if work.by and o.work.by == work.by], "probe"),
            ([o for o in same_kind if o.work.by.partition(" on ")[0] == work.by.partition(" on ")[0]], "probe"),
            (same_kind, "table"),
        )
        for relatives, source in like_it:
            if (expected := sum(self._by_table(o.work) for o in relatives)) > 0:
                factor = sum(o.seconds for o in relatives) / expected
                return Estimate(factor * self._by_table(work), source)
        return Estimate(self._by_table(work), "table")

    @functools.cached_property
    def _measured(self) -> Mapping[tuple[str, str, float], Sequence[Observation]]:
        found: dict[tuple[str, str, float], list[Observation]] = {}
        for one in self.measured:
            # The latest few: a machine's load changes, and ten thousand of one kind say no more than they do.
            found.setdefault((one.work.kind, one.work.by, one.work.size), []).append(one)
        return {key: like[-LIKE:] for key, like in found.items()}

    def table_seconds(self, work: Work) -> float | None:
        """Return what the table alone says on this machine; None for a kind that it does not have."""
        return self._by_table(work) if work.kind in self.table.kinds else None

    def _by_table(self, work: Work) -> float:
        fixed, rate = self.table.kinds[work.kind]
        return self.slower * (fixed + rate * work.amount * work.size)

    def _scaled(self, work: Work, like: Sequence[Observation]) -> float:
        """Return the seconds of some work from like work: what is fixed once, the rest by amount and size."""
        there = sum(o.work.amount * o.work.size for o in like)
        seconds = sum(o.seconds for o in like)
        if there == 0 or all(o.work.amount == work.amount for o in like):
            return seconds / len(like)
        # Never more than half of what was seen, lest a table of a slow machine eat a fast one's probe.
        fixed = min(self.slower * self.table.kinds[work.kind][0], seconds / len(like) / 2)
        return fixed + (seconds - len(like) * fixed) / there * work.amount * work.size

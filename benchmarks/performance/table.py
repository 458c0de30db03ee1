"""What every performance benchmark gives: ratios measured side by side in one run, with the bar each must reach.

A benchmark is a module of this package with ``measure(quick) -> list[Ratio]``; ``python -m benchmarks.performance``
runs them all into one table.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Ratio", "interleaved", "peak_bytes"]


@dataclass(frozen=True)
class Ratio:
    """One line of the table.

    Parameters
    ----------
    topic
        Which benchmark: the module's name.
    name
        What is compared with what, e.g. ``"mixer at 4,096 tokens: attention's time over ours"``.
    value
        The ratio itself, or an exponent; without a unit.
    bar
        What it must reach; None for a figure that is only told.
    at_least
        Whether the bar is a lower one (a speed-up) or an upper one (a cost).
    measured
        The absolute figures behind it, by name with the unit in the name (``{"ours_ms": 4.1, "peer_ms": 16.0}``).
    """

    topic: str
    name: str
    value: float
    bar: float | None = None
    at_least: bool = True
    measured: Mapping[str, float] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether the bar is reached; None without one."""
        if self.bar is None:
            return None
        return self.value >= self.bar if self.at_least else self.value <= self.bar


def interleaved(contenders: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the median seconds of every contender; repeats take turns, because machines are shared.

    The first round warms up and is not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(repeats + 1):
        for name, call in contenders.items():
            started = time.perf_counter()
            call()
            if repeat:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_bytes() -> int:
    """Return the peak resident memory of this process (Linux; ``getrusage`` counts that of the parent, too)."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

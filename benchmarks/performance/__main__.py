"""All performance benchmarks, as one table of ratios with the bar that each must reach.

    python -m benchmarks.performance [--quick] [--list] [--save] [TOPIC …]

Every ratio is measured side by side in this run, on two threads. ``--quick`` measures less often and on less. Beside
each ratio stands how it changed against the table that is kept in ``benchmarks/results/performance.json``; ``--save``
puts this run's rows there, those of topics that were not measured staying as they were, and draws them all as
``benchmarks/results/performance.png``. Exit code 1: a bar is missed.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import pkgutil
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

import benchmarks.performance
from benchmarks.performance.plot import draw
from benchmarks.performance.table import Ratio

RESULTS = Path(__file__).resolve().parents[1] / "results"
KEPT = RESULTS / "performance.json"


def topics() -> dict[str, ModuleType | str]:
    """Return every benchmark of this package by name: a module with ``measure``, or why it cannot be imported."""
    found: dict[str, ModuleType | str] = {}
    for name in sorted(m.name for m in pkgutil.iter_modules(benchmarks.performance.__path__)):
        if name != "__main__":
            try:
                module = importlib.import_module(f"benchmarks.performance.{name}")
            except ModuleNotFoundError as error:
                found[name] = f'{error.name} is not installed: pip install -e ".[bench]"'
                continue
            if hasattr(module, "measure"):
                found[name] = module
    return found


def measured(module: ModuleType | str, quick: bool) -> tuple[list[Ratio], str]:
    """Return the ratios of one benchmark, or why it could not be run."""
    if isinstance(module, str):
        return [], module
    why: str = module.unavailable() if hasattr(module, "unavailable") else ""
    return ([], why) if why else (module.measure(quick), "")


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    import torch

    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def change(row: Ratio, kept: dict[tuple[str, str], dict[str, Any]]) -> str:
    """Return how a ratio moved against the kept table, as a factor of it; nothing where there is no such row."""
    before = kept.get((row.topic, row.name))
    return "" if before is None or not before["value"] else f"× {row.value / before['value']:.2f}"


def show(screen: Console, rows: Sequence[Ratio], kept: dict[tuple[str, str], dict[str, Any]]) -> None:
    """Print the table."""
    table = Table("topic", "ratio", title="performance: ratios, measured side by side in this run", show_lines=False)
    for column in ("value", "bar", "kept × "):
        table.add_column(column.strip(), justify="right", no_wrap=True)
    table.add_column("behind it", style="dim")
    last = ""
    for row in rows:
        style = {True: "green", False: "bold red", None: ""}[row.met]
        bar = "" if row.bar is None else f"{'≥' if row.at_least else '≤'} {row.bar:g}"
        behind = ", ".join(f"{k} {v:.4g}" for k, v in row.measured.items())
        topic = row.topic if row.topic != last else ""
        table.add_row(topic, row.name, Text(f"{row.value:.3g}", style=style), bar, change(row, kept), behind)
        last = row.topic
    screen.print(table)


def main() -> int:
    """Measure, print, and keep if that was asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("topics", nargs="*", metavar="TOPIC")
    parser.add_argument("--quick", action="store_true", help="fewer repeats, smaller sizes")
    parser.add_argument("--list", action="store_true", help="name the topics and stop")
    parser.add_argument("--save", action="store_true", help="keep the rows and draw them")
    given = parser.parse_args()
    screen, known = Console(width=max(140, Console().width)), topics()
    if given.list:
        for name, module in known.items():
            text = module if isinstance(module, str) else (module.__doc__ or "").strip().splitlines()[0]
            screen.print(f"{name}: {text}")
        return 0
    if unknown := sorted(set(given.topics) - set(known)):
        parser.error(f"no topic {', '.join(unknown)}; there are {', '.join(known)}")
    import torch

    torch.set_num_threads(2)
    stored: dict[str, Any] = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.is_file() else {"rows": []}
    kept = {(r["topic"], r["name"]): r for r in stored["rows"]}
    rows: list[Ratio] = []
    not_run: dict[str, str] = dict(stored.get("not_run", {}))
    for name in given.topics or known:
        started = time.perf_counter()
        found, why = measured(known[name], given.quick)
        rows += found
        if why:
            not_run[name] = why
        if given.save:
            # After every topic: what was measured is not lost with what breaks later.
            _save(stored["rows"], rows, not_run, given.quick)
        screen.print(f"{name}: {why or f'{len(found)} ratios in {time.perf_counter() - started:.0f} s'}", style="dim")
    show(screen, rows, kept)
    if given.save:
        screen.print(f"kept in {KEPT.relative_to(Path.cwd()) if KEPT.is_relative_to(Path.cwd()) else KEPT}")
    missed = [r for r in rows if r.met is False]
    if missed:
        screen.print(f"{len(missed)} of {len(rows)} ratios miss their bar.", style="bold red")
    return 1 if missed else 0


def _save(before: list[dict[str, Any]], rows: Sequence[Ratio], not_run: dict[str, str], quick: bool) -> None:
    on = {"date": datetime.date.today().isoformat(), "quick": quick, **machine()}
    topics_now = {r.topic for r in rows}
    kept = [r for r in before if r["topic"] not in topics_now]
    kept += [{**asdict(r), "met": r.met, "measured_on": on} for r in rows]
    kept.sort(key=lambda r: r["topic"])
    # One row a topic that was measured, on whatever machine could: what cannot be run here stays as it was.
    not_run = {name: why for name, why in not_run.items() if name not in {r["topic"] for r in kept}}
    text = json.dumps({"rows": kept, "not_run": not_run}, indent=1) + "\n"
    RESULTS.mkdir(exist_ok=True)
    KEPT.write_text(text, encoding="utf-8")
    draw(kept, KEPT.with_suffix(".png"))


if __name__ == "__main__":
    sys.exit(main())

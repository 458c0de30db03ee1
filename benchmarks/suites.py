"""Every suite of a seed system on its simulated twin, timed, and its figures beside the published ones.

    python -m benchmarks.suites [--out FOLDER] [--steps N] [--save] [SUITE …]

Each suite runs by the command that a user would give, at ``--profile smoke``; with ``--steps`` it is only tried. What
``--save`` keeps in ``benchmarks/results/suites.json`` is what ``docs/suites.md`` shows. Exit code 1: a suite failed or
took longer than :data:`LIMIT_S`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd

from neurobench import load_results
from neurobench.benchmarks import anchors, benchmarks

SUITES = Path(__file__).parent
KEPT = SUITES / "results" / "suites.json"
NAMES = (
    *("meg-headache", "camcan-aging", "adhd200-masking", "adhd200-masking-released", "neurostorm"),
    *("rhamba", "rhamba-released", "relatives"),
)
LIMIT_S = 300.0
"""Seconds that a suite may take at ``smoke`` on two cores."""


def command(name: str) -> list[str]:
    """Return what a user types to run a suite on its twin."""
    return ["neurobench", "run", "--suite", f"benchmarks/{name}.yaml", "--profile", "smoke", "--source", "simulated"]


def run(name: str, out: Path, n_steps: int | None = None) -> dict[str, Any]:
    """Run a suite as a process of its own; return what it took and what became of its rows.

    Raises
    ------
    subprocess.CalledProcessError
        If it fails as a whole, its output on the error.
    """
    more = ["--out", str(out), *(["--steps", str(n_steps)] if n_steps else [])]
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", *command(name), *more], cwd=SUITES.parent, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - started
    if not (out / "records").is_dir():
        raise subprocess.CalledProcessError(done.returncode, done.args, done.stdout, done.stderr)
    table = load_results(out)
    failed = table[table["status"] == "failed"]
    return {
        "command": shlex.join(command(name)),
        "date": datetime.date.today().isoformat(),
        "cores": os.cpu_count(),
        "seconds": round(seconds, 1),
        "exit_code": done.returncode,
        "datasets": sorted(set(table["dataset"])),
        "tasks": sorted(set(table["task"])),
        "rows": sorted(set(table.loc[table["kind"] == "pretrained", "row"])),
        "n_records": len(table),
        "failed": sorted(f"{r['row']} on {r['task']}: {r['error']}" for r in failed.to_dict("records")),
        "figures": json.loads(figures(name, out).to_json(orient="records")),
    }


def figures(name: str, out: Path) -> pd.DataFrame:
    """Return a suite's figures beside published ones; no row where none is kept."""
    kept = name in {a.suite for a in anchors()}
    return benchmarks([out], suite=name) if kept else pd.DataFrame()


def main() -> None:
    """Run suites and say what became of them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suites", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("suite", nargs="*", choices=[*NAMES, []], help="Without: all of them.")
    parser.add_argument("--out", type=Path, help="Folder of the results, one in it a suite; a temporary one without.")
    parser.add_argument("--steps", type=int, help="Optimiser steps, to try.")
    parser.add_argument("--save", action="store_true", help=f"Keep the results in {KEPT.name}.")
    options = parser.parse_args()
    if options.save and options.steps:
        parser.error("--save keeps whole suites only: leave --steps out.")
    kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.is_file() else {}
    missed = False
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.suite or NAMES:
            found = run(name, (options.out or Path(temporary)) / name, options.steps)
            slow = found["seconds"] > LIMIT_S
            missed |= slow or bool(found["failed"]) or found["exit_code"] != 0
            late = f" (more than {LIMIT_S:.0f} s)" if slow else ""
            print(f"{name}: {found['seconds']:.0f} s{late}, {found['n_records']} records", flush=True)
            for text in found["failed"]:
                print(f"  failed: {text}", flush=True)
            if options.save:
                kept[name] = found
                KEPT.write_text(json.dumps(kept, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
    sys.exit(missed)


if __name__ == "__main__":
    main()

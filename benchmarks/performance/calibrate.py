"""Measure the coefficients of the cost model and write them into the package.

    python -m benchmarks.performance.calibrate            # about a minute on two cores; writes neurobench/cost.json
    python -m benchmarks.performance.calibrate --show     # prints them and writes nothing

Runs small grids on simulated twins in a folder that is thrown away, takes how much every step was and how long it took
from the store, and fits a line to each kind. Run it on an idle machine, and again after anything was made faster.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy
import torch

import neurobench
from neurobench.config import RunConfig, expand
from neurobench.cost import Observation, Table, Work, machine
from neurobench.execution import measured
from neurobench.plugins import load_registry
from neurobench.runner import execute
from neurobench.store import Store

SMALL: dict[str, Any] = {"backbone": "transformer", "dataset": "camcan", "n_subjects": 24, "n_steps": 2}

GRIDS: tuple[dict[str, Any], ...] = (
    # The first one warms up and is thrown away.
    SMALL | {"task": "age"},
    SMALL | {"n_subjects": 64, "n_steps": 60},
    {"backbone": "mamba", "dataset": "adhd200", "n_subjects": 24, "n_steps": 40},
    {"backbone": "mamba", "dataset": "meg_headache", "n_subjects": 24, "n_steps": 40},
    SMALL | {"n_steps": 12, "profile": "cpu", "folds": 2},
    SMALL | {"task": "age", "attribution": True},
    SMALL | {"task": "age", "adaptation": "finetune"},
    SMALL | {"dataset": "meg_headache", "task": "reidentification,stimulus"},
)
"""What is run: every kind of step, most of them at two sizes or more."""


def observe(folder: Path) -> list[Observation]:
    """Return what every step of all grids took, and what they took besides."""
    registry = load_registry()
    found: list[Observation] = []
    for place, options in enumerate(GRIDS):
        out = folder / str(place)
        grid = expand(RunConfig.from_options(mask="roi", out=out, **options), registry)
        result = execute(grid, registry)
        own = measured(Store(out, read_only=True))
        once = sum(e.seconds for stage in ("twin", "cohort") for e in Store(out).entries(stage))
        prepared = sum(e.seconds for e in Store(out).entries("prepared"))
        # Preparing runs beside itself on all cores, so its wall time is between nothing and the sum.
        besides = result.seconds - sum(o.seconds for o in own) - once - prepared / 2
        if place:
            found += [*own, Observation(Work("records", len(result.table)), max(besides, 0.0))]
    return found


def start_s() -> float:
    """Return the seconds that a run takes before it does anything, the best of three."""
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        code = "import torch, neurobench.runner; from neurobench.plugins import load_registry; load_registry()"
        subprocess.run([sys.executable, "-c", code], check=True)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", action="store_true", help="write nothing")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        observations = observe(Path(folder))
    observations.append(Observation(Work("start", 1.0), start_s()))
    table = Table.fit(
        observations,
        machine(),
        {
            "date": datetime.now(UTC).date().isoformat(),
            "neurobench": neurobench.__version__,
            "torch": torch.__version__,
            "numpy": numpy.__version__,
            "n_steps": len(observations),
        },
    )
    for kind, (fixed, rate) in table.kinds.items():
        own = [o for o in observations if o.work.kind == kind]
        told = sum(fixed + rate * o.work.amount * o.work.size for o in own)
        took = sum(o.seconds for o in own)
        print(f"{kind:26} {fixed:8.3f} s + {rate:9.3g} s × n   {len(own):4} steps, {took:7.2f} s, told {told:7.2f} s")
    if not given.show:
        table.save()


if __name__ == "__main__":
    main()

"""Whether a dry run tells the truth: its estimate in an empty folder against the run that follows, and what it costs.

    python -m benchmarks.performance cost

Estimates are made by a process of their own, as a user's are; the coefficients of the table are those of the package
(``python -m benchmarks.performance.calibrate`` measures them anew). The machine's speed is taken before and after:
where it changed by more than the bar, the ratio says more of the machine than of the model.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.performance.table import Ratio
from neurobench.cost import machine

__all__ = ["measure"]

TOPIC = "cost"

WITHIN = 0.3
"""How far the estimate may be off for a run of more than a minute."""

JOBS: dict[str, tuple[str, ...]] = {
    "mamba × roi on all twins, smoke": ("--backbone", "mamba", "--mask", "roi"),
}
"""What is planned and run: longer than a minute."""

QUICK = {"transformer × roi on one twin, smoke": ("--backbone", "transformer", "--mask", "roi", "--dataset", "camcan")}

MANY = ("--backbone", "mamba,transformer,hybrid", "--mask", "random,random_tube,roi,block,time_block,local,future")
"""With three datasets and 160 seeds about 10,000 combinations."""

COMMAND = "import sys; from neurobench.__main__ import main; sys.argv[0] = 'neurobench'; main()"


def _timed(*words: str) -> tuple[float, str]:
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", COMMAND, *words], check=True, capture_output=True, text=True)
    return time.perf_counter() - started, done.stdout


def measure(quick: bool) -> list[Ratio]:
    """Return the estimate over the truth, with a bar on either side, and what a dry run takes beside its start-up."""
    rows = []
    start, _ = _timed("list")
    with tempfile.TemporaryDirectory() as folder:
        for place, (name, words) in enumerate((QUICK if quick else JOBS).items()):
            out = ("--out", str(Path(folder) / str(place)))
            before = machine()["python_s"]
            planning, told = _timed("run", *words, *out, "--dry-run", "--json")
            estimate = float(json.loads(told)["wall_s"])
            truth, _ = _timed("run", *words, *out, "--quiet")
            measured = {
                "estimate_s": estimate,
                "truth_s": truth,
                "dry_run_s": planning,
                "probe_s": float(json.loads(told)["probe_s"]),
                "start_s": start,
                "machine_slower_afterwards": machine()["python_s"] / before,
            }
            # The bar is for runs of more than a minute.
            bars = (1 - WITHIN, 1 + WITHIN) if truth > 60 else (None, None)
            told_as = f"{name}: estimated over true seconds"
            rows += [
                Ratio(TOPIC, f"{told_as}, not too short", estimate / truth, bars[0], at_least=True, measured=measured),
                Ratio(TOPIC, f"{told_as}, not too long", estimate / truth, bars[1], at_least=False, measured=measured),
            ]
            rows.append(_dry_run(f"{name}: dry run beside start-up, over 5 s", planning - start, start))
        if not quick:
            seeds = ("--seed", ",".join(map(str, range(160))))
            planning, _ = _timed("run", *MANY, *seeds, "--dry-run", "--json", "--out", str(Path(folder) / "many"))
            rows.append(_dry_run("10,080 combinations: dry run beside start-up, over 5 s", planning - start, start))
    return rows


def _dry_run(name: str, seconds: float, start: float) -> Ratio:
    return Ratio(TOPIC, name, seconds / 5.0, measured={"beside_start_s": seconds, "list_s": start})

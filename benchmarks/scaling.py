"""What a grid of many combinations costs on one and on two workers: ``python -m benchmarks.scaling [--save]``.

200 combinations of the ``smoke`` profile (two backbones × four masks × 25 seeds on one small simulated twin, few
optimiser steps), or fewer with ``--seeds``, go through a Dask cluster of single-threaded worker processes, in one
command one after the other:

* *one*: on one worker.
* *two*: on two workers.
* *plain*: what this machine allows. Three of the seeds in one plain process, without Dask; then the same in one process
  and three more in another one beside it. Two processes that had nothing to do with each other would be twice as fast.
* *killed*: on two workers, of which a random one is killed at intervals; only with ``--kill``, and compared with the
  others' files and records.

Workers have loaded the package before a run is timed, and the twin is prepared: what starting and preparing cost is
told apart. The overhead of a combination is wall-clock seconds × workers less the seconds that the steps themselves
took, divided by their number; nothing is left out of it. It is also told in three parts: from the start to the first
step, between steps, and from the last step to the end (records and tables of the last seed; those of the others are
written while steps are computed). The process that hands out work and the scheduler run on the same machine; on two
cores they take from what two workers could use, and their own CPU seconds are told. What a step took contains the
slowing down of two processes that share caches and memory, so the ratio is told beside what *plain* gives.

Other users of a shared machine slow one run and not another: ``--again`` repeats *two* and keeps both.

Every part is printed, and with ``--save`` kept, as soon as it is over. With ``--plan`` the grid of 4 backbones × 8
masks × 4 datasets × 3 seeds is planned at ``cpu`` and ``full`` and kept for the page too. The results go to
``benchmarks/results/scaling.json``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import dask
import distributed
import numpy as np

from neurobench import planning, runner
from neurobench.batch_systems import CALM
from neurobench.config import RunConfig, expand
from neurobench.cost import machine
from neurobench.execution import STAGES
from neurobench.logs import Reader
from neurobench.opening import sources_of
from neurobench.plugins import load_registry
from neurobench.results import environment
from neurobench.store import Store

RESULTS = Path(__file__).parent / "results" / "scaling.json"

KILL_S = 20.0
"""Seconds between two workers that are killed."""

GRID: dict[str, Any] = {
    "backbone": "transformer,mamba",
    "mask": "random,random_tube,roi,block",
    "dataset": "parcels",
    "task": "age",
    "n_subjects": 20,
    "n_steps": 5,
}

N_SEEDS = 25

N_PLAIN = 3
"""Seeds that a plain process is given."""

FULL: dict[str, Any] = {
    "backbone": "transformer,mamba,hybrid,moe_ssm",
    "mask": "random,random_tube,roi,block,time_block,local,future,random_grid",
    "dataset": "camcan,adhd200,meg_headache,parcels",
    "seed": "0,1,2",
}
"""What is planned: with five folds 1,920 pretrainings."""


def evidence(out: Path) -> dict[str, str]:
    """Return the sha256 of every stored file that holds no measured time, by stage, label and name."""
    store = Store(out, read_only=True)
    return {
        f"{stage}/{e.manifest['label']}/{name}": sha
        for stage in STAGES
        for e in store.entries(stage)
        for name, (sha, _) in e.manifest["files"].items()
        if name != "pretraining.json"
    }


def stored(out: Path) -> dict[str, int]:
    """Return when every finished step was written, by its folder."""
    return {str(p.parent): p.stat().st_mtime_ns for p in (out / "store").glob("*/*/manifest.json")}


@contextlib.contextmanager
def killing(cluster: Any, out: Path, every_s: float) -> Iterator[dict[str, Any]]:
    """Kill a random worker at intervals; count them, and what was finished before and is not as it was afterwards."""
    found: dict[str, Any] = {"n_killed": 0, "n_lost": 0}
    before: dict[str, int] = {}
    over = threading.Event()
    draw = np.random.default_rng(0)

    def kill() -> None:
        while not over.wait(every_s):
            workers = [w for w in cluster.workers.values() if getattr(w, "pid", None)]
            finished = stored(out)
            # Where starting a worker takes longer than the interval nothing would ever be finished.
            if workers and len(finished) > len(before):
                before.update(finished)
                os.kill(workers[draw.integers(len(workers))].pid, signal.SIGKILL)
                found["n_killed"] += 1

    thread = threading.Thread(target=kill)
    if every_s:
        thread.start()
    try:
        yield found
    finally:
        over.set()
        if every_s:
            thread.join()
        after = stored(out)
        found["n_lost"] = sum(after.get(folder) != when for folder, when in before.items())


def measure(out: Path, n_workers: int, kill_s: float = 0.0, **options: Any) -> dict[str, Any]:
    """Run the grid on a cluster of its own and return what it took."""
    registry = load_registry()
    with (
        # As scheduler and workers are started by --cluster.
        dask.config.set(CALM),
        distributed.LocalCluster(
            n_workers=n_workers, threads_per_worker=1, processes=True, dashboard_address=":0", silence_logs=50
        ) as cluster,
    ):
        settings = GRID | options | {"out": out, "scheduler": cluster.scheduler_address}
        grid = expand(RunConfig.from_options(**settings), registry)
        started = time.perf_counter()
        for dataset in grid.datasets:
            for source in sources_of(dataset, grid, registry, store := Store(out)).values():
                source.load(store)
        preparing = time.perf_counter() - started
        with distributed.Client(cluster, set_as_default=False) as client:
            client.run(_load)
        cpu = time.process_time()
        with killing(cluster, out, kill_s) as killed:
            result = runner.execute(grid, registry)
            over = time.time()
        took = {"wall_s": result.seconds, "driver_cpu_s": time.process_time() - cpu}
    steps = [e for stage in STAGES for e in Store(out, read_only=True).entries(stage)]
    own = sum(e.seconds for e in steps)
    lines = Reader(out).new()
    first = min(_when(line) for line in lines if line["what"] == "step-started")
    last = max(_when(line) for line in lines if line["what"] == "step-finished")
    start, end = first - (over - result.seconds), over - last
    n = len(grid.combinations)
    return {
        "n_workers": n_workers,
        "n_combinations": n,
        "n_steps": len(steps),
        "n_failed": len(result.failed),
        "prepare_s": preparing,
        **took,
        "steps_s": own,
        "before_first_step_s": start,
        "between_steps_s": (result.seconds - start - end) * n_workers - own,
        "after_last_step_s": end,
        "overhead_s_a_combination": (result.seconds * n_workers - own) / n,
        **(killed if kill_s else {}),
    }


def _when(line: Mapping[str, Any]) -> float:
    return datetime.fromisoformat(str(line["time"])).timestamp()


def _load() -> None:
    """Import what the first step of a worker would."""
    import torch

    import neurobench.worker  # noqa: F401

    load_registry()
    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])


def _alone(out: Path, options: Mapping[str, Any], together: Any, told: Any) -> None:
    """Run a grid in this process, begun when all that take part are ready, and tell the seconds of run and steps."""
    registry = load_registry()
    grid = expand(RunConfig.from_options(**(GRID | options), out=out, jobs=1), registry)
    for dataset in grid.datasets:
        for source in sources_of(dataset, grid, registry, store := Store(out)).values():
            source.load(store)
    _load()
    together.wait()
    seconds = runner.execute(grid, registry).seconds
    told.put((seconds, sum(e.seconds for stage in STAGES for e in Store(out, read_only=True).entries(stage))))


def beside(folder: Path, seeds: Sequence[Sequence[int]], **options: Any) -> list[tuple[float, float]]:
    """Return what plain processes took that ran at the same time, each with seeds of its own."""
    context = multiprocessing.get_context("spawn")
    together, told = context.Barrier(len(seeds), timeout=600.0), context.Queue()
    processes = []
    for number, own in enumerate(seeds):
        asked = options | {"seed": _named(own)}
        given = folder / f"plain-{len(seeds)}-{number}", asked, together, told
        processes.append(context.Process(target=_alone, args=given))
        processes[-1].start()
    for process in processes:
        process.join()
        if process.exitcode:
            raise RuntimeError("a plain process ended with an error, which is above")
    return [told.get() for _ in seeds]


def plain(folder: Path, n_seeds: int, **options: Any) -> dict[str, Any]:
    """Return how much faster two plain processes are than one on this machine, and how much longer their steps take."""
    own, other = range(n_seeds), range(n_seeds, 2 * n_seeds)
    ((alone, steps),) = beside(folder, [own], **options)
    both = beside(folder, [own, other], **options)
    last = max(seconds for seconds, _ in both)
    return {
        "n_seeds": n_seeds,
        "one_s": alone,
        "two_s": last,
        "ratio": 2 * alone / last,
        "steps_longer": sum(own for _, own in both) / 2 / steps,
    }


def _named(seeds: Sequence[int]) -> str:
    return ",".join(map(str, seeds))


def campaign(
    kill_s: float,
    *,
    n_seeds: int = N_SEEDS,
    n_plain: int = N_PLAIN,
    keep: Callable[[dict[str, Any]], None] = lambda found: None,
    **options: Any,
) -> dict[str, Any]:
    """Run the grid on one worker, on two, in plain processes, and, unless ``kill_s`` is 0, on two that are killed.

    ``keep`` is called with what is known after each of them.
    """
    parts = ["one", "two", "plain", "killed"][: 4 if kill_s else 3]
    found: dict[str, Any] = {"parts": parts}
    outs: dict[str, Path] = {}
    with tempfile.TemporaryDirectory() as folder:
        speed = machine()["python_s"]
        for name in parts:
            if name == "plain":
                found[name] = plain(Path(folder), n_plain, **options)
            else:
                outs[name] = Path(folder) / name
                workers = 1 if name == "one" else 2
                # A run that is over before the first interval would kill nobody, and say nothing.
                kill = min(kill_s, found["two"]["wall_s"] / 3) if name == "killed" else 0.0
                found[name] = measure(outs[name], workers, kill, seed=_named(range(n_seeds)), **options)
                found |= _compared(list(outs.values()))
            found["machine_slower_afterwards"] = machine()["python_s"] / speed
            if "two" in found:
                found["ratio"] = found["one"]["wall_s"] / found["two"]["wall_s"]
            print(name, found[name], flush=True)
            keep(found)
    return found


def _compared(outs: Sequence[Path]) -> dict[str, Any]:
    """Return whether all folders have the files and records of the first one."""
    whole = evidence(outs[0])
    ids = [{p.name for p in (out / "records").glob("*.json")} for out in outs]
    return {
        "n_files": len(whole),
        "same_files": all(evidence(out) == whole for out in outs[1:]),
        "n_records": len(ids[0]),
        "same_records": all(one == ids[0] for one in ids),
    }


def planned(profile: str) -> dict[str, Any]:
    """Return what the dry run says of the large grid in an empty folder, on one worker."""
    registry = load_registry()
    with tempfile.TemporaryDirectory() as folder:
        config = RunConfig.from_options(**FULL, profile=profile, device="cpu", jobs=1, out=Path(folder) / "out")
        grid = expand(config, registry)
        found = planning.plan(grid, registry)
    n = len(grid.seeds) * grid.profile.n_folds
    networks = [r for r in found.rows if r.pretraining]
    return {
        "n_pretrainings": len(grid.combinations) * grid.profile.n_folds,
        "pretraining_s": sum(r.pretraining or 0.0 for r in networks),
        "scoring_s": sum(r.scoring or 0.0 for r in found.rows if r.dataset and r.row != planning.PREPARATION),
        "preparation_s": sum(r.seconds or 0.0 for r in found.rows if r.row == planning.PREPARATION),
        "rest_s": sum(r.seconds or 0.0 for r in found.rows if not r.dataset),
        "longest_pretraining_s": max((r.pretraining or 0.0) / n for r in networks),
        "scoring_of_the_longest_s": max((r.scoring or 0.0) / len(grid.seeds) for r in networks),
        "sources": sorted({r.source for r in networks}),
    }


def main() -> None:
    """Measure, print, and with ``--save`` keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=N_SEEDS, help="8 combinations each (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="16 combinations, and a kill every 4 s")
    parser.add_argument("--kill", action="store_true", help=f"also with a worker killed every {KILL_S:.0f} s")
    parser.add_argument("--again", action="store_true", help="two workers once more, beside what is kept")
    parser.add_argument("--plan", action="store_true", help="plan the large grid, and measure nothing")
    parser.add_argument("--save", action="store_true", help=f"keep the results in {RESULTS.name}")
    options = parser.parse_args()
    about = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "cores": os.cpu_count(),
        "python": environment()["python"],
        "grid": FULL if options.plan else GRID,
    }

    def keep(part: str, found: Mapping[str, Any]) -> None:
        if options.save:
            kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
            kept[part] = {**found, "about": about}
            RESULTS.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    if options.plan:
        found: dict[str, Any] = {}
        for profile in ("cpu", "full"):
            found[profile] = planned(profile)
        keep("planned", found)
    elif options.again:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(Path(folder) / "again", 2, seed=_named(range(options.seeds)))
        before = json.loads(RESULTS.read_text(encoding="utf-8"))["measured"]
        keep("measured", before | {"again": found, "ratio_again": before["one"]["wall_s"] / found["wall_s"]})
    else:
        kill_s = 4.0 if options.quick else KILL_S if options.kill else 0.0
        small: dict[str, Any] = {"n_seeds": 2, "n_plain": 1} if options.quick else {"n_seeds": options.seeds}
        found = campaign(kill_s, keep=lambda found: keep("measured", found), **small)
    print(json.dumps({**found, "about": about}, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()

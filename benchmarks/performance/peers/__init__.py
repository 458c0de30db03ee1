"""What a user would run instead, on the same files and the same folds: whole commands, seconds and peak memory.

Two contests, each in one run, commands one after the other on an otherwise quiet machine:

- ``plain``: a plain PyTorch and scikit-learn script of the same protocol (``plain_script.py``) on the simulated
  ``parcels`` twin, against ``neurobench run --backbone transformer --mask random_tube``. Both read the files, pretrain
  a factorised transformer of equal width and steps a fold, and score pretrained, untrained and six baselines on the
  same tasks, with 2,000 bootstraps and 1,000 permutations each. neurobench does more in its time: seven to nine metrics
  instead of two or three, reconstruction beside the trivial fillers, confounds, site leak, and a stored record of
  everything.
- ``braindecode``: ShallowFBCSPNet through skorch's ``EEGClassifier``, trained from scratch on the diagnosis of the
  simulated ``meg_headache`` twin, against ``neurobench run --adaptation scratch`` with as many optimiser steps, its
  baselines included.

neurobench runs before and after its peer, and its mean counts: what else the machine does drifts. Memory is the peak of
the proportional set size summed over a command's processes, looked at twenty times a second, or the largest resident
size that one of them had, whichever is more.

A quick run is the first contest alone, small, ours once; the script draws a twentieth of its bootstraps and
permutations, and neurobench all of them.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter, sleep

import pandas as pd

import neurobench
from benchmarks.performance.table import Ratio
from neurobench.plugins import load_registry

__all__ = ["NOT_RUN", "Finished", "measure", "timed", "unavailable"]

HERE = Path(__file__).parent
TOPIC = "peers"

NOT_RUN = {
    "NeuralBench (neuralbench 0.4.0)": "wants Python 3.12, and these numbers are from 3.11, for which the registry has "
    "an empty placeholder (0.0.1)",
    "OpenEEGBench (open-eeg-bench 0.6.0)": "its data sets are pulled from a model hub, which cannot be reached here",
    "Brainmarks (brainmarks 0.1.1)": "fine-tunes and probes published fMRI networks on a list of data sets of its own, "
    "and pretrains none; fmri-fm-eval has no package",
    "TorchEEG 1.1.3": "does not install beside the packages used here: it wants scipy 1.10 or older",
}
"""Peers with a runner of their own that could not be run beside neurobench, and why."""


@dataclass(frozen=True)
class Finished:
    """A command that ran.

    Parameters
    ----------
    seconds
        Wall-clock time from start to end.
    peak_mb
        Peak memory of all its processes together, in MiB.
    """

    seconds: float
    peak_mb: float


def unavailable() -> str:
    """Return why a contest cannot be run here, or nothing: the plain script always can."""
    missing = [name for name in ("braindecode", "skorch") if importlib.util.find_spec(name) is None]
    return f"{' and '.join(missing)} not installed: pip install -e '.[bench]'" if missing else ""


# ---------------------------------------------------------------- commands


def _memory_mb(group: int) -> float:
    """Return the memory of all processes of a group in MiB: pages that they share count once.

    The proportional set sizes now, summed up, or the largest resident size that one of them ever had, whichever is
    more. (What ``wait4`` reports would be the caller's own size, where that is larger: a child begins as its copy.)
    """
    total, largest = 0, 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.getpgid(int(entry.name)) != group:
                    continue
                lines = (entry / "smaps_rollup").read_text().splitlines()
                lines += (entry / "status").read_text().splitlines()
            except OSError:  # It ended meanwhile.
                continue
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
            largest = max(largest, *(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)
    return max(total, largest) / 1024


def timed(command: Sequence[str], log: Path, threads: int = 2) -> Finished:
    """Run a command in a process group of its own.

    Raises
    ------
    RuntimeError
        If it fails, with the end of what it printed.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    peak, over = 0.0, threading.Event()
    with log.open("w", encoding="utf-8") as out:
        started = perf_counter()
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )

        def watch() -> None:
            nonlocal peak
            while not over.is_set():
                peak = max(peak, _memory_mb(process.pid))
                sleep(0.05)

        watcher = threading.Thread(target=watch)
        watcher.start()
        process.wait()
        seconds = perf_counter() - started
        over.set()
        watcher.join()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{log.read_text(encoding='utf-8')[-2000:]}")
    return Finished(seconds, peak)


def _around(
    ours: Sequence[str], theirs: Sequence[str], folder: Path, out: Path, again: bool
) -> tuple[Finished, Finished]:
    """Run ours, theirs, and where asked ours again into another output folder; ours is the mean of both."""
    first = timed([*ours, "--out", str(out)], folder / "ours.log")
    # The same people in the same folds.
    (folder / "folds.json").write_bytes(next((out / "folds").glob("*.json")).read_bytes())
    peer = timed(theirs, folder / "theirs.log")
    if not again:
        return first, peer
    second = timed([*ours, "--out", str(folder / "again")], folder / "again.log")
    return Finished((first.seconds + second.seconds) / 2, max(first.peak_mb, second.peak_mb)), peer


def _ratios(name: str, ours: Finished, theirs: Finished, scores: pd.DataFrame, **more: float) -> list[Ratio]:
    inside = (scores["ours"].between(scores["low"], scores["high"])) | ~scores["comparable"]
    return [
        Ratio(TOPIC, f"{name}: its seconds over ours", theirs.seconds / ours.seconds, 1.0,
              measured={"ours_s": ours.seconds, "peer_s": theirs.seconds, **more}),
        Ratio(TOPIC, f"{name}: its peak memory over ours", theirs.peak_mb / ours.peak_mb, 1.0,
              measured={"ours_mb": ours.peak_mb, "peer_mb": theirs.peak_mb}),
        Ratio(TOPIC, f"{name}: share of our scores inside its intervals", float(inside.mean()), 1.0,
              measured={"n_scores": float(len(scores))}),
    ]  # fmt: skip


def _scores(out: Path, peer: Path, rows: dict[str, str]) -> pd.DataFrame:
    """Return headline scores of both, by row and task; ``rows`` are the peer's names of our kinds of rows."""
    found = json.loads(peer.read_text())["scores"]
    table = neurobench.load_results(out)
    lines = []
    for _, record in table.iterrows():
        row = rows.get(record["kind"], record["row"])
        theirs = found.get(f"{row} · {record['task']}", {}).get(record["metric"])
        if theirs is not None:
            # Their pooled constants are below chance by construction, ours are chance: nothing to compare.
            lines.append({"row": row, "task": record["task"], "ours": record["score"], "our_low": record["low"],
                          "our_high": record["high"], "theirs": theirs["value"], "low": theirs["low"],
                          "high": theirs["high"], "comparable": row != "mean"})  # fmt: skip
    return pd.DataFrame(lines)


# ---------------------------------------------------------------- contests


def plain(quick: bool) -> list[Ratio]:
    """Compare with the plain script."""
    n_subjects, n_steps, tasks = (24, 20, "diagnosis") if quick else (64, 200, "age,diagnosis")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "data"
        data.mkdir()
        load_registry().get("dataset", "parcels")().simulate(data, n_subjects=n_subjects, seed=0, variant="default")
        ours = [sys.executable, "-m", "neurobench", "run", "--backbone", "transformer", "--mask", "random_tube",
                "--dataset", "parcels", "--data-dir", str(data), "--task", tasks, "--steps", str(n_steps)]  # fmt: skip
        theirs = [sys.executable, str(HERE / "plain_script.py"), str(data), "--folds", str(folder / "folds.json"),
                  "--steps", str(n_steps), "--tasks", tasks, "--out", str(folder / "peer.json")]  # fmt: skip
        if quick:
            theirs += ["--bootstraps", "100", "--permutations", "50"]
        ours_took, peer_took = _around(ours, theirs, folder, folder / "out", again=not quick)
        phases = json.loads((folder / "peer.json").read_text())["seconds"]
        scores = _scores(folder / "out", folder / "peer.json", {"pretrained": "pretrained", "untrained": "untrained"})
        found = _ratios("plain PyTorch and scikit-learn", ours_took, peer_took, scores)
        if quick:
            # Of 24 people intervals are wide and kernels differ (theirs is a support vector machine): only told.
            found[-1] = replace(found[-1], bar=None)
    intervals = phases.pop("intervals and permutations")
    rest = peer_took.seconds - intervals
    more = {f"peer_{k.replace(' ', '_')}_s": v for k, v in phases.items()} | {"peer_intervals_s": intervals}
    found.append(
        Ratio(
            TOPIC,
            "plain script without its intervals: its seconds over all of ours",
            rest / ours_took.seconds,
            measured={"ours_s": ours_took.seconds, "peer_s": rest, **more},
        )
    )
    return found


def braindecode() -> list[Ratio]:
    """Compare with braindecode and skorch."""
    n_subjects = 40
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "data"
        data.mkdir()
        dataset = load_registry().get("dataset", "meg_headache")()
        dataset.simulate(data, n_subjects=n_subjects, seed=0, variant="default")
        ours = [sys.executable, "-m", "neurobench", "run", "--backbone", "transformer", "--adaptation", "scratch",
                "--dataset", "meg_headache", "--data-dir", str(data), "--task", "diagnosis"]  # fmt: skip
        # Ours: 20 passes over the training half, 16 people a step.
        n_steps = 20 * -(-(n_subjects // 2) // 16)
        theirs = [sys.executable, str(HERE / "braindecode_script.py"), str(data), "--folds", str(folder / "folds.json"),
                  "--steps", str(n_steps), "--out", str(folder / "peer.json")]  # fmt: skip
        ours_took, peer_took = _around(ours, theirs, folder, folder / "out", again=True)
        peer = json.loads((folder / "peer.json").read_text())
        scores = _scores(folder / "out", folder / "peer.json", {"untrained": "scratch"})
        more = {f"peer_{k.replace(' ', '_')}_s": v for k, v in peer["seconds"].items()}
        more |= {"steps": float(n_steps), "peer_steps": float(max(peer["n_steps"]))}
        return _ratios("braindecode and skorch", ours_took, peer_took, scores, **more)


def measure(quick: bool) -> list[Ratio]:
    """Return the ratios of every contest that can be run here; see :func:`unavailable` for the others."""
    return plain(quick) + ([] if quick or unavailable() else braindecode())

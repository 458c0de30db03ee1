"""How long does a board of thousands of records take to build, how large is it, and how soon can it be used?

    python -m benchmarks.performance board
    python -m benchmarks.performance.board RECORDS WITH_PREDICTIONS

Invented records, each with the metrics that a real one has, in boards of 25 rows: the seconds of the build, the bytes
that a page loads before its data, and, where Chromium is installed, how long it takes from opening the index, and the
largest board, to a table that can be searched. The second form says the seconds of a first build alone, where so many
records, in whole boards, have held-out predictions beside them, which are read, held to the records and ranked.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.performance.table import Ratio
from neurobench.identity import digest
from neurobench.leaderboard_site import build_leaderboard
from neurobench.plugins import load_registry
from neurobench.results import MetricRecord, Record, write_record

KINDS = ("pretrained", "pretrained", "pretrained", "untrained", "baseline")
N_PEOPLE, N_ROWS = 100, 25


def invented(
    row: str,
    kind: str,
    *,
    task: str = "age",
    dataset: str = "parcels",
    suite: str = "invented",
    seed: int = 0,
    value: float = 5.0,
    n_metrics: int = 8,
    **changes: Any,
) -> Record:
    """Return a record of nothing that ever ran, with every field that a real one has.

    Parameters
    ----------
    row, kind, task, dataset, suite, seed
        What the record says it is of.
    value
        Its headline, an MAE in years.
    n_metrics
        Metrics beside the headline.
    **changes
        Fields of the record, or with a prefix, such as ``protocol__split``, of a part of it.
    """

    def component(name: str, **parameters: Any) -> dict[str, Any]:
        # Of no version that is installed: intervals are invented, and would not be found again.
        known = {"distribution": "invented", "version": "1", "digest": digest(name), "score_version": 0}
        return {"name": name, "label": name, "parameters": parameters, **known}

    backbone, _, mask = row.partition(" · ")
    networks = kind in ("pretrained", "untrained")
    metric = {"low": value - 0.6, "high": value + 0.6, "unit": "years", "higher_is_better": False, "chance": 6.0}
    metrics = {"mae": {"value": value, "p_value": 0.01, "above_chance": value < 5.4, **metric}}
    metrics |= {f"detail_{i}": {"value": value + i, **metric} for i in range(n_metrics)}
    fields: dict[str, Any] = {
        "status": "ok",
        "kind": kind,
        "row": row,
        "backbone": component(backbone, width=32) if networks else None,
        "mask": component(mask) if kind == "pretrained" else None,
        "baseline": None if networks else component(row),
        "dataset": component(dataset),
        "task": component(task),
        "data": {
            "dataset": dataset,
            "title": f"The {dataset} cohort",
            "source": "simulated",
            "variant": "default",
            "revision": "1",
            "licence": "none",
            "access": "invented",
            "may_leave": "predictions",
            "fingerprint": digest(["cohort", dataset]),
            "signal": "parcels",
            "n_subjects": N_PEOPLE,
            "n_recordings": N_PEOPLE,
            "n_units": 100,
            "sfreq": 0.5,
            "provenance": ["invented"],
            "left_out": {},
        },
        "protocol": {
            "profile": "smoke",
            "split": "subjects",
            "n_folds": 5,
            "fold_fingerprint": digest("folds"),
            "window_s": 150.0,
            "patch_s": 15.0,
            "n_tokens": 100,
            "ratio": 0.5,
            "adaptation": "frozen",
            "width": 32,
            "n_layers": 1,
            "n_steps": 200,
            "batch_size": 32,
            "recipe": {"clip": 1.0},
            "suite": f"{suite}@0",
            "seed": seed,
        },
        "headline": "mae",
        "metrics": metrics,
        "per_fold": {"mae": [value - 0.2, value, value + 0.1, value, value + 0.1]},
        "n_subjects": N_PEOPLE,
        "skill": 0.1,
        "best_baseline": "connectome",
        "p_value": 0.01,
        "above_chance": value < 5.4,
        "confounds": {"partial_r[age]": {**metric, "value": 0.2, "unit": "", "low": 0.1, "high": 0.3}},
        "pretraining": None,
        "cost": {
            "n_parameters": 30_000 if networks else None,
            "seconds": 10.0 + value,
            "peak_memory_mb": 900.0,
            "device": "cpu",
        },
        "environment": {"python": "3.11", "neurobench-fm": "0", "command": f"neurobench run --suite {suite}"},
        "written": "2026-01-01T00:00:00Z",
    }
    for name, change in changes.items():
        part, _, key = name.partition("__")
        if key:
            fields[part] = {**fields[part], key: change}
        else:
            fields[part] = change
    return Record(id=digest([row, kind, task, dataset, suite, seed, sorted(changes)]), **fields).hashed()


def predictions(truth: np.ndarray, error: float, seed: int) -> tuple[pd.DataFrame, float]:
    """Return held-out predictions of invented people, and their mean absolute error."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(
        {
            "participant_id": [f"sub-{i:03d}" for i in range(len(truth))],
            "fold": np.arange(len(truth)) % 5,
            "truth": truth,
            "prediction": truth + error * rng.standard_normal(len(truth)),
            "train_mean": truth.mean(),
        }
    )
    return table, float((table["truth"] - table["prediction"]).abs().mean())


def with_value(record: Record, value: float) -> Record:
    """Return a record with another headline."""
    head = record.metrics["mae"].model_dump() | {"value": value, "low": value - 0.6, "high": value + 0.6}
    metrics = record.metrics | {"mae": MetricRecord(**head)}
    return record.model_copy(update={"metrics": metrics}).hashed()


def place(folder: Path, record: Record, held_out: pd.DataFrame | None = None) -> Path:
    """Write a record among published ones, with predictions beside it."""
    suite = folder / record.protocol.suite.partition("@")[0]
    with tempfile.TemporaryDirectory() as out:
        written = write_record(Path(out), record, held_out)
        path = suite / written.name
        suite.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(written, path)
        if held_out is not None:
            (suite / "predictions").mkdir(exist_ok=True)
            beside = Path(out) / "predictions" / f"{record.id}.parquet"
            shutil.copyfile(beside, suite / "predictions" / beside.name)
    return path


def many(folder: Path, n_records: int, n_rows: int, n_paired: int) -> None:
    """Place records in boards of as many rows."""
    rng = np.random.default_rng(0)
    truth = 10 + 3 * rng.standard_normal(N_PEOPLE)
    for n in range(n_records):
        board, i = divmod(n, n_rows)
        kind = KINDS[i % len(KINDS)]
        row = {"baseline": f"baseline{i}", "untrained": f"net{i} · untrained"}.get(kind, f"net{i % 5} · mask{i // 5}")
        record = invented(
            row, kind, task=f"task{board % 10}", dataset=f"cohort{board // 10}", value=3 + 3 * rng.random()
        )
        held_out = None
        if board < n_paired:
            held_out, value = predictions(truth, 1 + i / 4, n)
            record = with_value(record, value)
        place(folder, record, held_out)


READY = """
<script>
const seen = () => frame.contentDocument?.getElementById('status')?.textContent;
const start = performance.now();
const frame = document.createElement('iframe');
frame.src = 'PAGE'; frame.style = 'width:1200px;height:900px'; document.body.append(frame);
const timer = setInterval(() => {
  if (seen()) { clearInterval(timer); document.title = 'ms:' + (performance.now() - start); }
}, 5);
</script>
"""


def opened(page: Path) -> float | None:
    """Return milliseconds from opening a page to a table that can be searched, median of three; None: no browser."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        return None
    found = []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as profile:
            frame = page.with_name("frame-for-timing.html")
            frame.write_text("<body></body>" + READY.replace("PAGE", page.name), encoding="utf-8")
            command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
            command += [
                "--disable-background-networking",
                "--disable-component-update",
                "--no-first-run",
                "--disable-quic",
            ]
            command += [f"--user-data-dir={profile}", "--timeout=20000", "--dump-dom", frame.as_uri()]
            shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
            frame.unlink()
            if "<title>ms:" in shown:
                found.append(float(shown.split("<title>ms:")[1].split("<")[0]))
    return float(np.median(found)) if found else None


def measure(quick: bool) -> list[Ratio]:
    """Return seconds, bytes and milliseconds over what they may be; of thousands of records without predictions."""
    n_records = 500 if quick else 5_000
    with tempfile.TemporaryDirectory() as folder:
        results, site = Path(folder) / "results", Path(folder) / "site"
        many(results, n_records, N_ROWS, 0)
        start = time.perf_counter()
        built = build_leaderboard(results, site)
        seconds = time.perf_counter() - start
        assets = sum(p.stat().st_size for p in (site / "assets").iterdir() if p.suffix in (".js", ".css"))
        largest = max((site / "boards").iterdir(), key=lambda p: p.stat().st_size)
        usable = {"the index": opened(built.index), "the largest board": opened(largest)}

        def over(what: str, value: float, allowed: float, **measured: float) -> Ratio:
            bar = None if quick else 1.0
            return Ratio("board", f"{n_records:,} records: {what}", value / allowed, bar, False, measured)

        rows = [
            over("seconds of a build over the 20 allowed", seconds, 20, build_s=seconds, pages=built.n_pages),
            over("bytes that a page loads before its data over the 3 MB allowed", assets, 3e6, assets_kb=assets / 1e3),
        ]
        for what, ms in usable.items():
            if ms is not None:
                rows.append(over(f"time until {what} can be used over the second allowed", ms, 1e3, usable_ms=ms))
        return rows


def first_build(n_records: int, n_with_predictions: int) -> str:
    """Return how long a build takes of which nothing is known yet, imports and invented records left out."""
    registry = load_registry()
    with tempfile.TemporaryDirectory() as folder:
        many(Path(folder) / "results", n_records, N_ROWS, n_with_predictions // N_ROWS)
        wall, cpu = time.perf_counter(), time.process_time()
        build_leaderboard(Path(folder) / "results", registry=registry)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return f"{n_records:,} records, {n_with_predictions:,} with predictions: {wall:.1f} s, of this process {cpu:.1f} s"


if __name__ == "__main__":
    print(first_build(int(sys.argv[1]), int(sys.argv[2])))

"""What the contests against peers measure of whole commands."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks.performance import grid, peers

HOLD = "import time; x = bytearray(100 << 20); time.sleep(0.6)"


def test_seconds_and_memory_of_all_processes_of_a_command(tmp_path):
    one = peers.timed([sys.executable, "-c", HOLD], tmp_path / "one.log")
    assert one.seconds > 0.6
    assert 100 < one.peak_mb < 160
    child = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {HOLD!r}]); {HOLD}; p.wait()"
    both = peers.timed([sys.executable, "-c", child], tmp_path / "both.log")
    assert 200 < both.peak_mb < 320


def test_a_command_that_fails_says_what_it_said(tmp_path):
    with pytest.raises(RuntimeError, match="no such thing"):
        peers.timed([sys.executable, "-c", "raise SystemExit('no such thing')"], tmp_path / "log")


def test_scores_outside_of_the_other_ones_interval_are_counted(tmp_path, monkeypatch):
    import pandas as pd

    columns = ["kind", "row", "task", "metric", "score", "low", "high"]
    rows = [("pretrained", "a · roi", "age", "mae", 5.0, 4.0, 6.0), ("baseline", "mean", "age", "mae", 9.0, 8.0, 10.0)]
    rows.append(("baseline", "tangent", "age", "mae", 9.0, 8.0, 10.0))
    monkeypatch.setattr(peers.neurobench, "load_results", lambda out: pd.DataFrame(rows, columns=columns))
    theirs = {"value": 5.1, "low": 4.5, "high": 5.5}
    found = {"scores": {f"{row} · age": {"mae": theirs} for row in ("pretrained", "mean", "tangent")}}
    (tmp_path / "peer.json").write_text(json.dumps(found))
    scores = peers._scores(tmp_path, tmp_path / "peer.json", {"pretrained": "pretrained"})
    assert len(scores) == 3
    took = peers.Finished(1.0, 10.0), peers.Finished(2.0, 5.0)
    seconds, memory, inside = peers._ratios("it", *took, scores)
    assert (seconds.value, seconds.met) == (2.0, True)
    assert (memory.value, memory.met) == (0.5, False)
    assert inside.value == pytest.approx(2 / 3)  # A constant's pooled score means nothing; the tangent's is outside.
    assert inside.met is False


def test_what_the_loop_draws_is_what_is_scored():
    """Invented people are scored by both, and nothing of it is undefined."""
    for task in grid.TASKS.values():
        data = grid.invented(120, task.kind)
        grid.looped(data, task.kind, 3, 3)
        score = grid.scoring.score_subject_task(task, data, seed=0, n_bootstrap=20, n_permutations=99)
        assert all(m.value is not None for m in score.metrics.values())
        assert score.above_chance

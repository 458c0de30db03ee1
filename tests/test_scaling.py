"""The scaling benchmark in a small form: workers that are killed at intervals lose nothing."""

from __future__ import annotations

import pytest

from benchmarks import scaling

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore:.*:pytest.PytestUnraisableExceptionWarning"),
]


def test_workers_killed_at_intervals_leave_the_files_of_an_undisturbed_run() -> None:
    found = scaling.campaign(5.0, n_seeds=2, n_plain=1, backbone="transformer", mask="roi", n_steps=10)
    assert found["killed"]["n_killed"], "nobody was killed: the test says nothing"
    assert found["killed"]["n_lost"] == 0
    assert [found[name]["n_failed"] for name in ("one", "two", "killed")] == [0, 0, 0]
    assert found["n_files"] > 50
    assert found["same_files"]
    assert found["same_records"]
    assert found["plain"]["ratio"] > 0
    assert found["n_records"]

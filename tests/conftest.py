"""Fixtures that several test files share."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def ctrl_c() -> None:
    """Have Ctrl-C work, here and in programs that tests start: what a shell starts in the background ignores it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with real recordings; tests that need it are skipped where it is missing."""
    root = Path(os.environ.get("NEUROBENCH_SHARED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"real recordings are not on this machine: {root} is missing (set NEUROBENCH_SHARED_DATA)")
    return root

"""Memory that is freed is kept where steps are large, and given back where they are not."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from neurobench.allocation import keep_freed_memory, keeps_freed_memory
from neurobench.options import PROFILES

FAULTS = """
import resource, sys, torch
from neurobench.allocation import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
def step():
    arrays = [torch.ones(4, 2**18) for _ in range(10)]  # 4 MB each.
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    step()
before = faults()
for _ in range(5):
    step()
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_a_step_touches_no_new_memory_where_it_is_kept() -> None:
    def of(how: str) -> int:
        done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
        return int(done.stdout)

    # Ten arrays of 1,024 pages in each of five steps.
    assert of("given back") > 5_000
    assert of("kept") < 500


def test_elsewhere_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()


def test_it_is_kept_for_large_steps_on_a_cpu() -> None:
    kept = {name: keeps_freed_memory(profile, "cpu") for name, profile in PROFILES.items()}
    assert kept == {"smoke": False, "cpu": True, "full": True}
    assert not keeps_freed_memory(PROFILES["full"], "cuda")

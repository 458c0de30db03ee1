"""What a process does not import: it would be waited for, and held in memory, by everybody who does not need it."""

from __future__ import annotations

import subprocess
import sys


def run(code: str) -> None:
    """Run code in a process of its own.

    Raises
    ------
    AssertionError
        With what it printed, if it fails.
    """
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_training_imports_neither_a_compiler_nor_a_library_of_images() -> None:
    run("""
import sys
import torch
from benchmarks.performance.training import half_hidden, training_step
from neurobench_backbones.mamba import Mamba
batch, hidden = half_hidden(2, 8, 4, 6)
training_step(Mamba, batch, hidden, hidden, width=32, n_layers=1)()
large = {"torch._dynamo", "torch._inductor", "sympy", "timm", "torchvision"} & set(sys.modules)
assert not large, large
""")


def test_planning_and_running_what_is_stored_imports_nothing_of_what_computes() -> None:
    run("""
import sys
import neurobench.planning, neurobench.runner
from neurobench.plugins import load_registry
load_registry()
large = {"scipy.stats", "scipy.signal", "scipy.optimize", "scipy.spatial", "sklearn"}
large |= {"nilearn", "timm", "torch._dynamo"}
assert not large & set(sys.modules), large & set(sys.modules)
""")

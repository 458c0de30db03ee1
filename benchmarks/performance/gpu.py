"""Training on a GPU: the mixer with and without mamba-ssm's kernels, shares of the ceilings, steps, waits for the GPU.

And a step of the published size of shifted windows: two windows of 96³ voxels and 20 frames, Mamba beside attention.

Everything in bfloat16. The ceilings are measured too: a product of two 8,192 × 8,192 matrices, and a copy of 1 GiB.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.performance.table import Ratio
from benchmarks.performance.training import half_hidden, training_step
from neurobench.config import PROFILES
from neurobench.plugins import load_registry
from neurobench.records import UnitTable
from neurobench.specimens import simulated_batch
from neurobench_backbones._mamba2 import Mamba2

__all__ = ["measure", "published_step", "unavailable", "waits"]

N_FEATURES = 216
LENGTHS = {1_024: (64, 16), 6_144: (384, 16), 24_576: (1_536, 16)}
"""Tokens of a window to its units and patches."""


def unavailable() -> str:
    """Return why this cannot be run here; empty where it can."""
    return "" if torch.cuda.is_available() else "torch finds no CUDA device"


def waits(call: Callable[[], object]) -> int:
    """Return how often a call makes the host wait for the GPU."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return sum("synchroniz" in str(w.message) for w in found)


def _seconds(call: Callable[[], object], repeats: int) -> float:
    """Return the seconds of one call, the device being waited for before and after all of them."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / repeats


def ceilings(device: torch.device, repeats: int, n: int = 8_192, n_values: int = 1 << 28) -> tuple[float, float]:
    """Return operations a second of a bfloat16 matrix product of n × n, and bytes a second of a copy, both ways."""
    matrix = torch.randn(n, n, device=device, dtype=torch.bfloat16)
    source = torch.empty(n_values, device=device)
    target = torch.empty_like(source)
    flops_a_s = 2 * n**3 / _seconds(lambda: matrix @ matrix, repeats)
    return flops_a_s, 2 * source.nbytes / _seconds(lambda: target.copy_(source), repeats)


def published_step(
    mixer: str,
    device: torch.device | str,
    *,
    edge: int = 16,
    n_patches: int = 20,
    n_batch: int = 2,
    moved: Callable[[Any], Any] | None = None,
) -> Callable[[], torch.Tensor]:
    """Return a call that does one optimiser step of the published size of shifted windows.

    Parameters
    ----------
    mixer
        ``mamba`` or ``attention``.
    device
        Where to train.
    edge, n_patches, n_batch
        Patches of 6³ voxels along a side of the volume, every one of them a token (the brain is about a third);
        frames; windows.
    moved
        As for :func:`training_step`.
    """
    cell = np.stack(np.meshgrid(*3 * [np.arange(edge)], indexing="ij"), -1).reshape(-1, 3)
    names = tuple(map(str, range(len(cell))))
    units = UnitTable.from_groups(names, ("brain",) * len(cell), cell * np.float32(12), ("patch",) * len(cell))
    batch = simulated_batch(units, n_batch, n_patches, N_FEATURES)
    hidden = torch.rand(batch.table.valid.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    cls = load_registry().get("backbone", "shifted_window")
    parameters = {"size": "published", "mixer": mixer}
    width, n_layers = PROFILES["cpu"].width, PROFILES["cpu"].n_layers
    return training_step(
        cls, batch, hidden, hidden, width=width, n_layers=n_layers, parameters=parameters, device=device, moved=moved
    )


def _published(device: torch.device, repeats: int) -> list[Ratio]:
    """Return time and memory of a step of the published size, Mamba beside attention in the same windows."""
    told: dict[str, float] = {}
    for mixer in ("mamba", "attention"):
        step = published_step(mixer, device)
        torch.cuda.reset_peak_memory_stats(device)
        told[f"{mixer}_ms"] = 1e3 * _seconds(step, repeats)
        told[f"{mixer}_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
        del step
    name = "shifted windows, published size, 2 × 96³ × 20"
    return [
        Ratio("gpu", f"{name}: mamba over attention", told["mamba_ms"] / told["attention_ms"], measured=told),
        Ratio("gpu", f"{name}: memory over 80 GB", told["mamba_gb"] / 80, 1.0, False, told),
    ]


def measure(quick: bool) -> list[Ratio]:
    """Return ratios on the first GPU; needs one."""
    device, repeats, rows = torch.device("cuda"), 5 if quick else 20, []
    width, n_layers = PROFILES["full"].width, PROFILES["full"].n_layers
    flops_a_s, bytes_a_s = ceilings(device, repeats)
    registry = load_registry()
    mixer = Mamba2(width, headdim=32, expand=2).to(device)
    tokens = torch.randn(16, 6_144, width, device=device, requires_grad=True)

    def both_ways(module: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], None]:
        def call() -> None:
            with torch.autocast("cuda", torch.bfloat16):
                out = module(tokens)
            out.float().square().mean().backward()

        return call

    # A module that is None in sys.modules cannot be imported: the portable form, though the kernels are installed.
    with mock.patch.dict(sys.modules, {"mamba_ssm": None}):
        plain = _seconds(both_ways(mixer), repeats)
        compiled = _seconds(both_ways(torch.compile(mixer)), repeats)
        with FlopCounterMode(display=False) as counted:
            both_ways(mixer)()
    rows.append(Ratio("gpu", "mixer at 6,144 tokens: portable over compiled portable", plain / compiled))
    if find_spec("mamba_ssm") is not None:
        kernels = _seconds(both_ways(mixer), repeats)
        name = "mixer at 6,144 tokens: compiled portable form over mamba-ssm's kernels"
        times = {"compiled_ms": 1e3 * compiled, "kernels_ms": 1e3 * kernels}
        rows.append(Ratio("gpu", name, compiled / kernels, 2.0, False, times))
    share = counted.get_total_flops() / compiled / flops_a_s
    told = {"ceiling_tflop_s": flops_a_s / 1e12}
    rows.append(Ratio("gpu", "mixer at 6,144 tokens: share of the measured matrix ceiling", share, measured=told))
    # What must be read and written at the least: tokens and their gradients, twice.
    share = 4 * tokens.nbytes / compiled / bytes_a_s
    told = {"ceiling_gb_s": bytes_a_s / 1e9}
    rows.append(Ratio("gpu", "mixer at 6,144 tokens: share of the measured copy ceiling", share, measured=told))
    for n_tokens, (n_units, n_patches) in LENGTHS.items():
        batch, hidden = half_hidden(2, n_units, n_patches, N_FEATURES)
        steps = {}
        for backbone in ("transformer", "mamba", "hybrid"):
            cls = registry.get("backbone", backbone)
            step = training_step(cls, batch, hidden, hidden, width=width, n_layers=n_layers, device=device)
            steps[backbone] = _seconds(step, repeats)
            if n_tokens == 1_024:
                n_waits = waits(step)
                rows.append(Ratio("gpu", f"{backbone}: waits for the device in a step", n_waits, 0, False))
        for backbone in ("mamba", "hybrid"):
            name = f"step at {n_tokens:,} tokens: {backbone} over transformer"
            told = {f"{b}_ms": 1e3 * s for b, s in steps.items()}
            rows.append(Ratio("gpu", name, steps[backbone] / steps["transformer"], measured=told))
    return rows + _published(device, repeats)

"""The portable Mamba scan beside its peers: forward and backward, two threads, one run.

    python -m benchmarks.performance.scan [--lengths 256,512,1024,2048,4096] [--json FILE]

Two comparisons at batch 4:

* *mixers of width 192*, whole: our Mamba-2 module (expand 2: 384 inner channels, heads of 64, state 16; projections,
  convolution, scan, gate, norm) and torch's attention (projections and ``scaled_dot_product_attention``, 6 heads).
* *scans alone, 384 channels, state 16*: our chunked scan, mambapy's parallel scan on its own inputs
  (batch, length, 384, 16), and our recurrence one step after the other (up to length 1024).

Repeats are interleaved, because machines are shared; figures are medians (of the scan one step after the other: a
single call), and what counts are their ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from mambapy.pscan import pscan
from rich.console import Console
from rich.table import Table
from torch import nn

from neurobench_backbones._mamba2 import Mamba2
from neurobench_backbones._ssd import ssd_scan, ssd_step_by_step

BATCH, WIDTH, INNER, HEADDIM, STATE = 4, 192, 384, 64, 16
STEP_BY_STEP_LIMIT = 1024


class Attention(nn.Module):
    """Self-attention with its projections."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.qkv, self.out, self.n_heads = nn.Linear(width, 3 * width), nn.Linear(width, width), n_heads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Attend to everything."""
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, width))


def contenders(length: int) -> dict[str, Callable[[], torch.Tensor]]:
    """Return one forward call a contender, on inputs that need gradients."""
    heads = INNER // HEADDIM
    tokens = torch.randn(BATCH, length, WIDTH, requires_grad=True)
    x = torch.randn(BATCH, length, heads, HEADDIM, requires_grad=True)
    dt = (torch.rand(BATCH, length, heads) * 0.1).requires_grad_()
    a = -torch.rand(heads) - 0.5
    b, c = (torch.randn(BATCH, length, STATE, requires_grad=True) for _ in range(2))
    mamba, attention = Mamba2(WIDTH, d_state=STATE, headdim=HEADDIM, expand=2), Attention(WIDTH, 6)
    decay = torch.rand(BATCH, length, INNER, STATE).mul_(0.5).add_(0.5).requires_grad_()
    update = torch.randn(BATCH, length, INNER, STATE, requires_grad=True)
    found: dict[str, Callable[[], torch.Tensor]] = {
        "mixer: ours": lambda: mamba(tokens),
        "mixer: attention": lambda: attention(tokens),
        "scan: ours": lambda: ssd_scan(x, dt, a, b, c),
        # What mambapy's block does with its scan: states for every step, then their product with C.
        "scan: mambapy": lambda: (pscan(decay, update) @ c.unsqueeze(-1)).squeeze(-1),
    }
    if length <= STEP_BY_STEP_LIMIT:
        found["scan: step by step"] = lambda: ssd_step_by_step(x, dt, a, b, c)
    return found


def measure(length: int, repeats: int) -> dict[str, float]:
    """Return median seconds of forward and backward of every contender, repeats interleaved."""
    calls = contenders(length)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            if name == "scan: step by step" and repeat != 1:
                continue  # Half a minute a call at length 1024: once is enough for a ratio in the hundreds.
            started = time.perf_counter()
            call().square().mean().backward()
            if repeat:  # The first is warm-up.
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="256,512,1024,2048,4096")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    rows = []
    for length in map(int, given.lengths.split(",")):
        found = measure(length, given.repeats)
        ratios = {
            "attention_over_ours": found["mixer: attention"] / found["mixer: ours"],
            "mambapy_over_ours": found["scan: mambapy"] / found["scan: ours"],
        }
        if "scan: step by step" in found:
            ratios["step_by_step_over_ours"] = found["scan: step by step"] / found["scan: ours"]
        rows.append({"length": length, "seconds": found, **ratios})
    table = Table(
        title="forward + backward, batch 4, two threads, shared machine: medians of interleaved repeats (ms); "
        "ratios: peer's time over ours; mixers of width 192 with their projections, scans of 384 channels alone"
    )
    for name in ("length", "our mixer", "attention", "ratio", "our scan", "mambapy", "ratio", "step by step", "ratio"):
        table.add_column(name, justify="right")
    for row in rows:
        ms = {k: f"{1000 * v:.1f}" for k, v in row["seconds"].items()}
        table.add_row(
            str(row["length"]),
            ms["mixer: ours"],
            ms["mixer: attention"],
            f"{row['attention_over_ours']:.1f} ×",
            ms["scan: ours"],
            ms["scan: mambapy"],
            f"{row['mambapy_over_ours']:.1f} ×",
            ms.get("scan: step by step", ""),
            f"{row['step_by_step_over_ours']:.0f} ×" if "step_by_step_over_ours" in row else "",
        )
    Console(width=110).print(table)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

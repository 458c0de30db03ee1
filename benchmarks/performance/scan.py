"""The portable Mamba on a CPU beside its peers and beside plain matrix products: forward and backward, two threads.

* *mixers of width 192*, whole, batch 4: our Mamba-2 module (expand 2: 384 inner channels, heads of 64, state 16) and
  torch's attention (projections and ``scaled_dot_product_attention``, 6 heads); plain matrix products of the same
  number of floating-point operations; and both lengths' time and memory as exponents.
* *scans alone, 384 channels, state 16*: our chunked scan and mambapy's parallel scan on its own inputs
  (batch, length, 384, 16); and the selective scan of Mamba-1, from x, Δ, A, B and C, by us and by mambapy.
* *training steps of the factorised blocks*: 24 units × 10 patches, many short sequences, Mamba beside transformer.

Forward and backward are from given tokens to what a mixer returns, and from a given gradient of that to those of its
tokens and weights; nothing is added up over calls. Beyond products a mixer convolves, gates, norms and takes
exponentials, which wait for memory: long sequences go through all of that piece by piece. Memory that is freed is kept
for the next call (:mod:`neurobench.allocation`), as it is in runs of the profiles ``cpu`` and ``full``.
"""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.performance.table import Ratio, interleaved
from benchmarks.performance.training import half_hidden, training_step
from neurobench.allocation import keep_freed_memory
from neurobench_backbones._mamba2 import Mamba2
from neurobench_backbones._selective_scan import selective_scan
from neurobench_backbones._ssd import CHUNK, ssd_scan
from neurobench_backbones.mamba import Mamba
from neurobench_backbones.transformer import Transformer

__all__ = ["measure"]

BATCH, WIDTH, INNER, HEADDIM, STATE = 4, 192, 384, 64, 16
HEADS = INNER // HEADDIM
N_FEATURES = 20

PEAK = """
import sys, torch
from benchmarks.performance.scan import mixer_call
from benchmarks.performance.table import peak_bytes
torch.set_num_threads(2)
call = mixer_call(int(sys.argv[1]))
before = peak_bytes()
call()
print(peak_bytes() - before)
"""
"""Run in a process of its own: the peak of a process never falls again."""


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


def both_ways(call: Callable[[], torch.Tensor], values: Sequence[torch.Tensor]) -> Callable[[], None]:
    """Return a call that goes forward, and back from a given gradient to those of values."""
    given: list[torch.Tensor] = []

    def there_and_back() -> None:
        y = call()
        if not given:
            given.append(torch.randn_like(y))
        torch.autograd.grad(y, values, given)

    return there_and_back


def mixer_call(length: int) -> Callable[[], None]:
    """Return forward and backward of our mixer."""
    tokens = torch.randn(BATCH, length, WIDTH, requires_grad=True)
    mamba = Mamba2(WIDTH, d_state=STATE, headdim=HEADDIM, expand=2)
    return both_ways(lambda: mamba(tokens), [tokens, *mamba.parameters()])


def attention_call(length: int) -> Callable[[], None]:
    """Return forward and backward of attention of the same width."""
    tokens, attention = torch.randn(BATCH, length, WIDTH, requires_grad=True), Attention(WIDTH, 6)
    return both_ways(lambda: attention(tokens), [tokens, *attention.parameters()])


def scan_call(length: int) -> Callable[[], None]:
    """Return forward and backward of our scan alone."""
    x = torch.randn(BATCH, length, HEADS, HEADDIM, requires_grad=True)
    dt = (torch.rand(BATCH, length, HEADS) * 0.1).requires_grad_()
    a = -torch.rand(HEADS) - 0.5
    b, c = (torch.randn(BATCH, length, STATE, requires_grad=True) for _ in range(2))
    return both_ways(lambda: ssd_scan(x, dt, a, b, c), [x, dt, b, c])


def mambapy_call(length: int) -> Callable[[], None]:
    """Return forward and backward of what mambapy's block does: states for every step, then their product with C."""
    from mambapy.pscan import pscan

    decay = torch.rand(BATCH, length, INNER, STATE).mul_(0.5).add_(0.5).requires_grad_()
    update = torch.randn(BATCH, length, INNER, STATE, requires_grad=True)
    c = torch.randn(BATCH, length, STATE, requires_grad=True)
    return both_ways(lambda: (pscan(decay, update) @ c.unsqueeze(-1)).squeeze(-1), [decay, update, c])


def selective_call(length: int) -> Callable[[], None]:
    """Return forward and backward of our scan of Mamba-1."""
    inputs = _selective_inputs(length)
    return both_ways(lambda: selective_scan(*inputs), inputs)


def mambapy_selective_call(length: int) -> Callable[[], None]:
    """Return the same of mambapy: decays and updates of every step and state value, its parallel scan, C."""
    from mambapy.pscan import pscan

    x, dt, a, b, c = _selective_inputs(length)

    def call() -> torch.Tensor:
        x_, dt_, b_, c_ = (v.transpose(0, 1) for v in (x, dt, b, c))
        decay, update = (dt_[..., None] * a).exp(), dt_[..., None] * b_[:, :, None] * x_[..., None]
        return (pscan(decay, update) @ c_[..., None]).squeeze(-1)

    return both_ways(call, [x, dt, a, b, c])


def _selective_inputs(length: int) -> list[torch.Tensor]:
    x, dt = torch.randn(length, BATCH, INNER), torch.rand(length, BATCH, INNER) * 0.1
    a, b, c = -torch.rand(INNER, STATE) - 0.5, torch.randn(length, BATCH, STATE), torch.randn(length, BATCH, STATE)
    return [v.requires_grad_() for v in (x, dt, a, b, c)]


def products(length: int) -> list[tuple[int, int, int, int]]:
    """Return (how many, rows, inner, columns) of the matrix products of one mixer, forward and backward.

    Backward, a product gives two of the same size. What a long scan computes again on its way back is not counted.
    """
    tokens, chunks = BATCH * length, BATCH * length // CHUNK
    forward = [
        (1, tokens, WIDTH, 2 * INNER + 2 * STATE + HEADS),
        (1, tokens, INNER, WIDTH),
        (chunks, CHUNK, STATE, CHUNK),
        (chunks * HEADS, CHUNK, CHUNK, HEADDIM),
        (chunks * HEADS, HEADDIM, CHUNK, STATE),
        (chunks * HEADS, CHUNK, STATE, HEADDIM),
    ]
    return [product for product in forward for _ in range(3)]


def roofline_call(length: int) -> Callable[[], None]:
    """Return plain matrix products of as many operations: large square-ish ones, at which torch is fastest."""
    operations = sum(2 * n * i * j * k for n, i, j, k in products(length))
    left, right = torch.randn(1024, 512), torch.randn(512, 512)
    repeats = max(1, round(operations / (2 * 1024 * 512 * 512)))

    def call() -> None:
        for _ in range(repeats):
            torch.mm(left, right)

    return call


def exponent(values: dict[int, float]) -> float:
    """Return the slope of a straight line through (log length, log value)."""
    x, y = [math.log(k) for k in values], [math.log(v) for v in values.values()]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def peak_bytes_of_mixer(length: int) -> float:
    """Return by how much the peak memory of a process grows in one forward and backward of our mixer."""
    done = subprocess.run([sys.executable, "-c", PEAK, str(length)], capture_output=True, text=True, check=True)
    return float(done.stdout)


def _against_transformer(quick: bool) -> list[Ratio]:
    found = []
    for n_batch, width, n_layers, bar in ((16, 64, 2, 1.5), (32, 32, 1, None)):
        batch, hidden = half_hidden(n_batch, 24, 10, N_FEATURES)
        steps = {
            cls.name: training_step(cls, batch, hidden, hidden, width=width, n_layers=n_layers)
            for cls in (Transformer, Mamba)
        }
        s = interleaved(steps, 8 if quick else 30)
        told = f"batch {n_batch}, width {width} × {n_layers}"
        found.append(
            Ratio(
                "scan",
                f"training step, 24 units × 10 patches, {told}: mamba's time over the transformer's",
                s["mamba"] / s["transformer"],
                bar,
                at_least=False,
                measured={f"{k}_ms": 1000 * v for k, v in s.items()},
            )
        )
    return found


def _against_peers(length: int, repeats: int) -> list[Ratio]:
    s = interleaved(
        {"mixer": mixer_call(length), "attention": attention_call(length), "products": roofline_call(length)}, repeats
    )
    scans = interleaved({"scan": scan_call(length), "mambapy": mambapy_call(length)}, max(1, repeats // 2))
    contenders = {"ours": selective_call(length), "mambapy": mambapy_selective_call(length)}
    selective = interleaved(contenders, max(1, repeats // 2))
    at = f"at {length:,} tokens"
    mixer_ms = {"ours_ms": 1000 * s["mixer"]}
    return [
        Ratio(
            "scan",
            f"mixer {at}: our time over that of plain matrix products of as many operations",
            s["mixer"] / s["products"],
            2.0,
            at_least=False,
            measured=mixer_ms | {"products_ms": 1000 * s["products"]},
        ),
        Ratio(
            "scan",
            f"mixer {at}: attention's time over ours",
            s["attention"] / s["mixer"],
            4.0 if length >= 4096 else 1.0,
            measured=mixer_ms | {"attention_ms": 1000 * s["attention"]},
        ),
        Ratio(
            "scan",
            f"scan alone {at}: mambapy's time over ours",
            scans["mambapy"] / scans["scan"],
            20.0 if length >= 4096 else 10.0,
            measured={"ours_ms": 1000 * scans["scan"], "mambapy_ms": 1000 * scans["mambapy"]},
        ),
        Ratio(
            "scan",
            f"selective scan of Mamba-1 {at}: mambapy's time over ours",
            selective["mambapy"] / selective["ours"],
            3.0,
            measured={f"{k}_ms": 1000 * v for k, v in selective.items()},
        ),
    ]


def _growth(lengths: tuple[int, ...]) -> list[Ratio]:
    seconds = {}
    for length in lengths:
        call = mixer_call(length)
        call()
        times = []
        for _ in range(3):
            started = time.perf_counter()
            call()
            times.append(time.perf_counter() - started)
        seconds[length] = min(times)
    memory = {length: peak_bytes_of_mixer(length) for length in lengths}
    span = f"{lengths[0]:,} to {lengths[-1]:,} tokens"
    return [
        Ratio(
            "scan",
            f"mixer, {span}: exponent of the time",
            exponent(seconds),
            1.15,
            at_least=False,
            measured={f"at_{k}_ms": 1000 * v for k, v in seconds.items()},
        ),
        Ratio(
            "scan",
            f"mixer, {span}: exponent of the memory",
            exponent(memory),
            1.15,
            at_least=False,
            measured={f"at_{k}_mb": v / 2**20 for k, v in memory.items()},
        ),
    ]


def measure(quick: bool) -> list[Ratio]:
    """Measure all; quick leaves out 4,096 tokens against peers and the growth to 16,384."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    keep_freed_memory()
    found = _against_transformer(quick)
    for length in (1024,) if quick else (1024, 4096):
        found += _against_peers(length, 2 if quick else 8)
    if not quick:
        found += _growth((1024, 4096, 16384))
    return found

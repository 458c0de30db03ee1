"""Visible-only encoding: what is saved where hidden tokens are left out instead of being replaced and processed.

Forward and backward of whole backbones on the same batch and masks, three quarters hidden in whole units
(``random_tube``) or whole times (``time_block``): embedding, passes, and the attention that gives hidden places their
tokens from the visible ones, all counted. The training step has the decoder, the loss and the optimiser in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from benchmarks.performance.table import Ratio, interleaved
from benchmarks.performance.training import training_step
from neurobench.contracts import Backbone, MaskingStrategy
from neurobench.pretraining import build, hide, masks_of
from neurobench.records import Batch
from neurobench.specimens import simulated_batch, simulated_spec, simulated_units
from neurobench_backbones.mamba import Mamba
from neurobench_backbones.transformer import Transformer
from neurobench_masks.random_tube import RandomTube
from neurobench_masks.time_block import TimeBlock

__all__ = ["measure"]

RATIO = 0.75
FORMS: Mapping[str, dict[str, bool]] = {"substituting_ms": {}, "visible_only_ms": {"visible_only": True}}


def encoder(cls: type[Backbone], parameters: dict[str, bool], batch: Batch, hidden: torch.Tensor) -> Callable[[], None]:
    """Return a call of a backbone of width 64 and two layers, forward and backward."""
    n_patches, n_features = batch.signal.shape[2:]
    net, _ = build(cls, simulated_spec(batch.units, n_patches, n_features, 64, 2), parameters, seed=0)
    signal = hide(batch.signal, hidden)
    net.train()
    upstream = torch.randn(*hidden.shape, 64, generator=torch.Generator().manual_seed(0))

    def call() -> None:
        net.zero_grad(set_to_none=True)
        net(signal, hidden, batch.table).backward(upstream)

    return call


def measure(quick: bool) -> list[Ratio]:
    """Return the time of the dropping form over that of the substituting one: the encoder's, held to a bar; the step's.

    96 units × 10 patches of 10 features, batches of 16, two threads.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    batch = simulated_batch(simulated_units(96, 8), 16, 10, 10)
    strategies: tuple[MaskingStrategy, ...] = (RandomTube(), TimeBlock())
    repeats = 4 if quick else 15
    rows = []
    try:
        for strategy in strategies:
            hidden, scored = masks_of(batch, strategy, RATIO, 0, 0)
            for cls in (Transformer, Mamba):
                what = f"{cls.name}, {strategy.name} at ratio {RATIO:g}: visible only over substituting"
                calls = {n: encoder(cls, p, batch, hidden) for n, p in FORMS.items()}
                rows.append(_ratio(f"encoder of {what}", calls, repeats, hidden, 0.4))
                if strategy is strategies[0]:
                    calls = {
                        n: training_step(cls, batch, hidden, scored, width=64, n_layers=2, parameters=p)
                        for n, p in FORMS.items()
                    }
                    rows.append(_ratio(f"training step of {what}", calls, repeats, hidden, None))
    finally:
        torch.set_num_threads(threads)
    return rows


def _ratio(
    name: str, calls: Mapping[str, Callable[[], object]], repeats: int, hidden: torch.Tensor, bar: float | None
) -> Ratio:
    seconds = interleaved(calls, repeats)
    measured = {n: 1e3 * s for n, s in seconds.items()} | {"hidden_share": float(hidden.float().mean())}
    value = seconds["visible_only_ms"] / seconds["substituting_ms"]
    return Ratio("visible", name, value, bar, at_least=False, measured=measured)

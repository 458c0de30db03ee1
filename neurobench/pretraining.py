"""Masked reconstruction: one loop, the same for every backbone and every masking strategy."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from neurobench.contracts import Backbone, MaskingStrategy, patch_basis
from neurobench.errors import NeurobenchError
from neurobench.masking import draw, mask_generator
from neurobench.records import BackboneSpec, Batch, TokenTable
from neurobench.tokens import Tokenizer, WindowSource

__all__ = ["Decoder", "History", "Recipe", "build", "count_parameters", "hide", "masks_of", "optimise", "pretrain"]

AHEAD = 2
"""Batches that are drawn before they are needed."""

LOOK_EVERY = 50
"""Steps after which losses are looked at: each look waits for a GPU."""


@dataclass(frozen=True)
class Recipe:
    """How weights are fitted; one recipe for all backbones, masks and datasets.

    Parameters
    ----------
    learning_rate
        Peak, after the warm-up.
    betas, weight_decay, clip
        Of AdamW; decay is 0 for biases, norms, embeddings and the scan's A, D and Δ; norm at which gradients are cut.
    warm_up
        Fraction of the steps over which the rate rises linearly; it falls to 0 along a cosine afterwards.
    batch_size
        Windows a step.
    """

    learning_rate: float = 5e-3
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    clip: float = 1.0
    warm_up: float = 0.05
    batch_size: int = 32

    @classmethod
    def for_width(cls, width: int, batch_size: int) -> Recipe:
        """Return the recipe at a width: the rate falls as 1 / width (.01 at 32, .005 at 64, .00125 at 256)."""
        return cls(learning_rate=0.32 / width, batch_size=batch_size)

    def rate(self, step: int, n_steps: int) -> float:
        """Return the learning rate of a step, from 0."""
        warm = max(1, round(self.warm_up * n_steps))
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        done = (step - warm) / max(1, n_steps - warm)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


class Decoder(nn.Linear):
    """From a token back to the signal of its patch: one linear map, the same for every backbone.

    Parameters
    ----------
    width, n_features
        Width of a token, features of a patch.
    """

    def __init__(self, width: int, n_features: int) -> None:
        super().__init__(width, n_features)
        self.weight.data.copy_(patch_basis(n_features, width).T)
        nn.init.zeros_(self.bias)


@dataclass(frozen=True)
class History:
    """What a pretraining did.

    Parameters
    ----------
    losses
        Mean squared error of the scored tokens, every step.
    seconds
        Wall-clock time of the loop.
    peak_memory_mb
        Of the GPU; on a CPU, of the whole process.
    hidden_fraction, scored_fraction
        Realised shares of the valid tokens, averaged over steps; None without a step.
    waiting_s
        Seconds of the loop that were spent waiting for data.
    """

    losses: tuple[float, ...]
    seconds: float
    peak_memory_mb: float
    hidden_fraction: float | None
    scored_fraction: float | None
    waiting_s: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a JSON file, with the mean loss of the first and the last tenth of the steps."""
        tenth = max(1, len(self.losses) // 10)
        return asdict(self) | {
            "losses": list(self.losses),
            "loss_first": float(np.mean(self.losses[:tenth])) if self.losses else None,
            "loss_last": float(np.mean(self.losses[-tenth:])) if self.losses else None,
        }


def count_parameters(module: nn.Module) -> int:
    """Return the number of weights."""
    return sum(p.numel() for p in module.parameters())


def build(
    cls: type[Backbone], spec: BackboneSpec, parameters: Mapping[str, Any], seed: int
) -> tuple[Backbone, Decoder]:
    """Build a backbone and its decoder with seeded weights; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # The decoder first: its start does not depend on how many numbers a backbone draws.
        decoder = Decoder(spec.width, spec.n_features)
        return cls(spec, **parameters), decoder


def masks_of(
    batch: Batch, strategy: MaskingStrategy, ratio: float, seed: int, step: int | str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (batch, units, patches) hidden and scored; each window's mask has a generator of its own."""
    drawn = [
        draw(strategy, window, ratio, mask_generator(seed, step, subject, name))
        for window, subject, name in zip(Tokenizer.window_tables(batch), batch.subjects, batch.windows, strict=True)
    ]
    hidden, scored = np.stack([d.hidden for d in drawn]), np.stack([d.scored for d in drawn])
    return torch.from_numpy(hidden), torch.from_numpy(scored)


@dataclass(frozen=True, eq=False)
class Drawn:
    """The batch of a step with its masks, on the device that trains.

    Parameters
    ----------
    signal
        (batch, units, patches, features) whole signal: what is hidden of it is for the loss alone.
    table
        The token table.
    hidden
        (batch, units, patches) bool.
    scored
        (scored tokens,) int64, places in the flattened (batch × units × patches).
    n_valid, n_hidden
        Number of valid and of hidden tokens.
    """

    signal: torch.Tensor
    table: TokenTable
    hidden: torch.Tensor
    scored: torch.Tensor
    n_valid: int
    n_hidden: int

    @classmethod
    def of(
        cls,
        batch: Batch,
        hidden: torch.Tensor,
        scored: torch.Tensor,
        sent: Callable[[torch.Tensor], torch.Tensor],
    ) -> Drawn:
        """Return a batch and its (batch, units, patches) masks, every tensor ``sent`` to where it is needed."""
        return cls(
            sent(batch.signal),
            batch.table.map(sent),
            sent(hidden),
            sent(scored.flatten().nonzero()[:, 0]),
            int(batch.table.valid.sum()),
            int(hidden.sum()),
        )


def drawn_ahead(
    windows: WindowSource,
    strategy: MaskingStrategy,
    *,
    batch_size: int,
    n_steps: int,
    ratio: float,
    seed: int,
    device: torch.device,
) -> Generator[Drawn]:
    """Yield the batch of every step with its masks, drawn in another thread while the step before is computed.

    Reading waits for the disk and numpy's copies let other threads run, so training is not starved. Step n is the same
    as without the thread: everything is drawn from generators of its own. What a GPU could only tell by being waited
    for (how many tokens are hidden, where the scored ones are) is worked out here, and the copies to it are from pinned
    memory, beside the step before.
    """

    def sent(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)

    def one(step: int) -> Drawn:
        batch = windows.draw(step, batch_size)
        hidden, scored = masks_of(batch, strategy, ratio, seed, step)
        return Drawn.of(batch, hidden, scored, sent)

    with ThreadPoolExecutor(1, thread_name_prefix="neurobench-data") as thread:
        coming: deque[Future[Drawn]] = deque()
        for step in range(n_steps):
            while len(coming) < AHEAD and step + len(coming) < n_steps:
                coming.append(thread.submit(one, step + len(coming)))
            yield coming.popleft().result()


def hide(signal: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Return the signal with zeros at hidden tokens: what a backbone is given."""
    return signal.masked_fill(hidden[..., None], 0.0)


def parameter_groups(modules: Iterable[nn.Module], weight_decay: float) -> list[dict[str, Any]]:
    """Return optimiser groups: matrices decay; vectors, scalars and embeddings do not."""
    decay: list[nn.Parameter] = []
    keep: list[nn.Parameter] = []
    for module in modules:
        embeddings = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
        for name, p in module.named_parameters():
            keeps = p.ndim < 2 or id(p) in embeddings or name.endswith("embedding")
            (keep if keeps else decay).append(p)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": keep, "weight_decay": 0.0}]


def optimise(
    backbone: nn.Module,
    decoder: nn.Module,
    drawn: Drawn,
    optimiser: torch.optim.Optimizer,
    parameters: Sequence[nn.Parameter],
    clip: float,
) -> torch.Tensor:
    """Do one optimiser step on what is scored of a batch, in bfloat16 on CUDA; return the loss, still on its device.

    Parameters
    ----------
    backbone, decoder
        On the device of the batch.
    drawn
        The batch with its masks.
    optimiser, parameters
        Of all of ``parameters``, whose gradients are cut together.
    clip
        Norm at which they are.
    """
    with torch.autocast("cuda", torch.bfloat16, enabled=drawn.signal.is_cuda):
        reconstructed = decoder(backbone(hide(drawn.signal, drawn.hidden), drawn.hidden, drawn.table))
    guess, real = (x.flatten(0, 2).index_select(0, drawn.scored) for x in (reconstructed, drawn.signal))
    squares = (guess.float() - real).square()
    # A strategy outside the common budget may hide nothing in a whole batch: no loss, instead of one that is NaN.
    loss: torch.Tensor = squares.mean() if len(drawn.scored) else squares.sum()
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(parameters, clip)
    optimiser.step()
    return loss.detach()


def pretrain(
    backbone: Backbone,
    decoder: Decoder,
    strategy: MaskingStrategy,
    windows: WindowSource,
    *,
    recipe: Recipe,
    n_steps: int,
    ratio: float,
    seed: int,
    device: torch.device | str = "cpu",
    on_step: Callable[[int], None] | None = None,
) -> History:
    """Train backbone and decoder in place to fill hidden tokens.

    Parameters
    ----------
    backbone, decoder
        From :func:`build`, on ``device``.
    strategy
        Where to hide.
    windows
        Training subjects' windows; step n is the same for every backbone.
    recipe
        Optimiser and schedule.
    n_steps
        Optimiser steps; 0, or a strategy that does not pretrain, leaves the weights as they are.
    ratio
        Fraction of the valid tokens that is scored.
    seed
        Of the masks.
    device
        Where to train; bfloat16 on CUDA.
    on_step
        Called after every step with its number. A loss is not told: a GPU would have to be waited for.

    Raises
    ------
    NeurobenchError
        If the loss is no longer finite.
    """
    device = torch.device(device)
    if not strategy.pretrains:
        n_steps = 0
    if device.type == "cuda":
        # Else the peak is that of whatever this process trained before.
        torch.cuda.reset_peak_memory_stats(device)
    parameters = [*backbone.parameters(), *decoder.parameters()]
    optimiser = torch.optim.AdamW(
        parameter_groups([backbone, decoder], recipe.weight_decay), lr=recipe.learning_rate, betas=recipe.betas
    )
    losses = torch.zeros(n_steps, device=device)
    n_valid = n_hidden = n_scored = 0
    backbone.train()
    started, waiting_s = time.perf_counter(), 0.0
    coming = drawn_ahead(
        windows, strategy, batch_size=recipe.batch_size, n_steps=n_steps, ratio=ratio, seed=seed, device=device
    )
    for step in range(n_steps):
        asked = time.perf_counter()
        drawn = next(coming)
        waiting_s += time.perf_counter() - asked
        n_valid, n_hidden, n_scored = n_valid + drawn.n_valid, n_hidden + drawn.n_hidden, n_scored + len(drawn.scored)
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate(step, n_steps)
        losses[step] = optimise(backbone, decoder, drawn, optimiser, parameters, recipe.clip)
        if (step + 1) % LOOK_EVERY == 0 or step + 1 == n_steps:
            _check_finite(losses[: step + 1], recipe, n_steps)
        if on_step is not None:
            on_step(step)
    coming.close()
    backbone.eval()
    return History(
        tuple(losses.tolist()),
        time.perf_counter() - started,
        _peak_memory_mb(device),
        n_hidden / n_valid if n_valid else None,
        n_scored / n_valid if n_valid else None,
        waiting_s,
    )


def _check_finite(losses: torch.Tensor, recipe: Recipe, n_steps: int) -> None:
    """Raise if a loss is not finite, naming the first step at which it was not."""
    broken = (~losses.isfinite()).nonzero()
    if len(broken):
        step = int(broken[0])
        raise NeurobenchError(
            f"the loss became {float(losses[step])} at step {step + 1} of {n_steps} "
            f"(learning rate {recipe.rate(step, n_steps):.2g}).",
            next_step="A scan that overflows or a norm that divides by 0 does this: see `neurobench check`.",
        )


def _peak_memory_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in kibibytes, macOS in bytes.
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10

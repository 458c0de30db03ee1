"""Pretraining: one loop, the same for every backbone, every masking strategy and every objective."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from neurobench import hardware, logs, optimisers
from neurobench.contracts import Backbone, MaskingStrategy, patch_basis
from neurobench.distributed import ALONE, Group
from neurobench.errors import NeurobenchError
from neurobench.identity import seed_for
from neurobench.interrupts import Abandoned, HeldBack
from neurobench.learners import Drawn, Learner, hide, learner_of
from neurobench.masking import draw, mask_generator
from neurobench.objectives import RECONSTRUCTION, Objective
from neurobench.out_of_memory import is_out_of_memory, release
from neurobench.records import BackboneSpec, Batch
from neurobench.store import Checkpoint
from neurobench.tokens import Tokenizer, WindowSource

__all__ = [
    "Decoder",
    "Drawn",
    "History",
    "Recipe",
    "Training",
    "build",
    "count_parameters",
    "hide",
    "masks_of",
    "optimise",
    "pretrain",
    "reached",
]

AHEAD = 2
"""Batches that are drawn before they are needed."""

LOOK_EVERY = 50
"""Steps after which losses are looked at: each look waits for a GPU."""

CHECKPOINT_EVERY_S = 60.0
"""Seconds after which a checkpoint is written; what takes less writes none, unless it is told to stop."""

CHECKPOINT_SHARE = 0.05
"""Of the time of a pretraining, what writing checkpoints may take where they are large or a disk is slow."""

log = logging.getLogger(__name__)


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
        Mean squared error of the scored tokens, every step, whatever the objective.
    seconds
        Wall-clock time of the loop.
    peak_memory_mb
        Of the GPU; on a CPU, of the whole process.
    hidden_fraction, scored_fraction
        Realised shares of the valid tokens, averaged over steps; None without a step.
    waiting_s
        Seconds of the loop that were spent waiting for data.
    n_tokens
        Valid tokens of all batches, hidden or not.
    micro_batch
        Windows of a batch at once, where memory did not suffice for all: the fewest that a process came to. None: all
        at once. Sums in parts are rounded otherwise.
    """

    losses: tuple[float, ...]
    seconds: float
    peak_memory_mb: float
    hidden_fraction: float | None
    scored_fraction: float | None
    waiting_s: float = 0.0
    n_tokens: int = 0
    micro_batch: int | None = None

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
    batch: Batch,
    strategy: MaskingStrategy,
    ratio: float,
    seed: int,
    step: int | str,
    objective: Objective = RECONSTRUCTION,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (batch, units, patches) hidden and scored; each window's mask and ratio have generators of their own."""
    drawn = [
        draw(
            strategy,
            window,
            objective.ratio(ratio, seed, step, subject, name),
            mask_generator(seed, step, subject, name),
        )
        for window, subject, name in zip(Tokenizer.window_tables(batch), batch.subjects, batch.windows, strict=True)
    ]
    hidden, scored = np.stack([d.hidden for d in drawn]), np.stack([d.scored for d in drawn])
    return torch.from_numpy(hidden), torch.from_numpy(scored)


def drawn_ahead(
    windows: WindowSource,
    strategy: MaskingStrategy,
    *,
    batch_size: int,
    n_steps: int,
    ratio: float,
    seed: int,
    device: torch.device,
    objective: Objective = RECONSTRUCTION,
    group: Group = ALONE,
    first: int = 0,
) -> Generator[Drawn]:
    """Yield a process's share of the batches of steps from ``first`` on, with masks, each drawn beside the step before.

    Reading waits for the disk and numpy's copies let other threads run, so training is not starved. Step n is the same
    as without the thread: everything is drawn from generators of its own. What a GPU could only tell by being waited
    for (how many tokens are hidden, where the scored ones are) is worked out here, and the copies to it are from pinned
    memory, beside the step before.
    """

    def sent(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)

    def one(step: int) -> Drawn:
        batch = windows.draw(step, batch_size)
        hidden, scored = masks_of(batch, strategy, ratio, seed, step, objective)
        return Drawn.of(batch, hidden, scored).part(*group.share(batch_size)).sent(sent)

    with ThreadPoolExecutor(1, thread_name_prefix="neurobench-data") as thread:
        coming: deque[Future[Drawn]] = deque()
        for step in range(first, n_steps):
            while len(coming) < AHEAD and step + len(coming) < n_steps:
                coming.append(thread.submit(one, step + len(coming)))
            yield coming.popleft().result()


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
    learner: Learner,
    drawn: Drawn,
    optimiser: torch.optim.Optimizer,
    clip: float,
    micro_batch: int | None = None,
    group: Group = ALONE,
) -> tuple[torch.Tensor, int]:
    """Do one optimiser step on a batch, in bfloat16 on CUDA.

    Where memory does not suffice for so many windows at once, half as many are tried, down to one: the gradients of the
    parts are summed, so that the step is that of the whole batch but for rounding, and for what a backbone leaves to
    chance.

    Parameters
    ----------
    learner
        What is trained, on the device of the batch.
    drawn
        The batch with its masks, or this process's share of it.
    optimiser
        Of everything that is trained.
    clip
        Norm at which gradients are cut.
    micro_batch
        Windows at once; None: all.
    group
        The processes that have the other shares.

    Returns
    -------
    error, micro_batch
        Error of what is scored in the whole batch, still on its device; windows at once that memory sufficed for.

    Raises
    ------
    NeurobenchError
        If memory does not suffice for one window.
    """
    device = drawn.signal.device
    micro_batch = min(micro_batch or len(drawn), len(drawn))
    chance = _chance(device)
    while (told := _gradients(learner, drawn, optimiser, micro_batch, group)) is None:
        release()
        # Other processes are at work on their part of the same gradients, and would wait for this one.
        if micro_batch == 1 or group.sharded:
            raise _too_large(learner, drawn, optimiser, micro_batch, group)
        micro_batch //= 2
        log.warning("memory does not suffice for a batch of %d windows: %d at once", len(drawn), micro_batch)
        _set_chance(device, chance)
    group.add_gradients([p for module in learner.modules for p in module.parameters()])
    for modules in learner.cut_together:
        nn.utils.clip_grad_norm_([p for module in modules for p in module.parameters()], clip)
    optimiser.step()
    return group.total(told), micro_batch


def _gradients(
    learner: Learner, drawn: Drawn, optimiser: torch.optim.Optimizer, micro_batch: int, group: Group
) -> torch.Tensor | None:
    """Put the gradients of a batch in place, part after part; return its error, or None if memory does not suffice."""
    optimiser.zero_grad(set_to_none=True)
    total: torch.Tensor | None = None
    try:
        for first in range(0, len(drawn), micro_batch):
            loss, told = learner.losses(drawn.part(first, min(first + micro_batch, len(drawn))))
            torch.autograd.backward(loss * learner.times)
            total = told if total is None else total + told
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        optimiser.zero_grad(set_to_none=True)
        return None
    return total


def _too_large(
    learner: Learner, drawn: Drawn, optimiser: torch.optim.Optimizer, micro_batch: int, group: Group
) -> NeurobenchError:
    """Return the error for a batch of which not even a part fits into memory, and find out what would."""
    n_tokens = drawn.hidden[0].numel()
    where = "the memory of the GPU" if drawn.signal.is_cuda else "memory"
    if group.sharded:
        return NeurobenchError(
            f"{micro_batch} windows of {n_tokens} tokens, this process's share of a batch, do not fit into {where}.",
            next_step="Use more processes: a batch is not computed in parts where weights are cut into shares.",
        )
    n_units, n_patches = drawn.hidden.shape[1:]
    while n_units > 1:
        n_units //= 2
        if _gradients(learner, drawn.narrowed(n_units), optimiser, 1, group) is not None:
            optimiser.zero_grad(set_to_none=True)
            allowed = f"windows of about {n_units * n_patches} tokens, which were tried and fit, one at once"
            break
        release()
    else:
        allowed = "nothing of this width: even one unit does not fit"
    return NeurobenchError(
        f"one window of {n_tokens} tokens does not fit into {where}.",
        allowed=allowed,
        next_step="Use a smaller --profile, which has fewer tokens a window and narrower networks, or a device with "
        "more memory.",
    )


def _chance(device: torch.device) -> tuple[torch.Tensor, ...]:
    """Return the state of the generators that a backbone may draw from."""
    of_the_host = torch.get_rng_state()
    return (of_the_host, torch.cuda.get_rng_state(device)) if device.type == "cuda" else (of_the_host,)


def _set_chance(device: torch.device, chance: tuple[torch.Tensor, ...]) -> None:
    torch.set_rng_state(chance[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(chance[1], device)


class Training:
    """A pretraining between two of its steps: all that decides the rest of it, to be taken out and put back.

    Parameters
    ----------
    learner
        What is trained, on ``device``.
    recipe
        Optimiser and schedule.
    n_steps
        Optimiser steps in all.
    device
        Where it trains.
    seed
        Of what several processes leave to chance.
    group
        The processes that train it together.
    """

    def __init__(
        self, learner: Learner, recipe: Recipe, n_steps: int, device: torch.device, seed: int, group: Group = ALONE
    ) -> None:
        self.learner, self.recipe, self.n_steps, self.device = learner, recipe, n_steps, device
        self.seed, self.group = seed, group
        first, last = group.share(recipe.batch_size)
        self.share = self.micro_batch = last - first
        # All weights at once: the same to the byte as one after the other, and quicker where they are many and small.
        # Of weights that are cut into shares torch decides.
        self.optimiser = optimisers.AdamW(
            parameter_groups(learner.modules, recipe.weight_decay),
            lr=recipe.learning_rate,
            betas=recipe.betas,
            foreach=None if group.sharded else True,
        )
        self.n_done = self.n_valid = self.n_hidden = self.n_scored = 0
        self.losses = torch.zeros(n_steps, device=device)
        self.waiting_s = self.before_s = self.before_mb = 0.0
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Wall-clock time of all steps, those before it was stopped among them."""
        return self.before_s + time.perf_counter() - self._started

    @property
    def peak_memory_mb(self) -> float:
        """Of all steps, in whichever process."""
        return max(self.before_mb, hardware.peak_memory_mb(self.device))

    @property
    def at_look(self) -> bool:
        """Whether losses are looked at after the step that was just done."""
        return self.n_done % LOOK_EVERY == 0 or self.n_done == self.n_steps

    def step(self, drawn: Drawn) -> None:
        """Do the next optimiser step, on its batch."""
        step = self.n_done
        for parameters in self.optimiser.param_groups:
            parameters["lr"] = self.recipe.rate(step, self.n_steps)
        if self.group.size > 1:
            # A process's own, and the same wherever one begins: a checkpoint has the generators of the first alone.
            torch.manual_seed(seed_for(self.seed, "pretrain-init", "dropout", step, self.group.rank))
        self.losses[step], self.micro_batch = optimise(
            self.learner, drawn, self.optimiser, self.recipe.clip, self.micro_batch, self.group
        )
        self.learner.moved(step / self.n_steps)
        self.n_valid, self.n_hidden = self.n_valid + drawn.n_valid, self.n_hidden + drawn.n_hidden
        self.n_scored += drawn.n_scored
        self.n_done += 1
        if self.at_look:
            self.check_finite()

    def check_finite(self) -> None:
        """Raise if a loss is not finite, naming the first step at which it was not."""
        broken = (~self.losses[: self.n_done].isfinite()).nonzero()
        if len(broken):
            step = int(broken[0])
            raise NeurobenchError(
                f"the loss became {float(self.losses[step])} at step {step + 1} of {self.n_steps} "
                f"(learning rate {self.recipe.rate(step, self.n_steps):.2g}).",
                next_step="A scan that overflows or a norm that divides by 0 does this: see `neurobench check`.",
            )

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return weights and buffers, the optimiser's moments, losses and torch's generators; not copied."""
        found = {f"{n}.{k}": v for n, module in self.learner.kept.items() for k, v in module.state_dict().items()}
        for number, moments in self.optimiser.state_dict()["state"].items():
            found |= {f"optimiser.{number}.{k}": v for k, v in moments.items()}
        found |= {"losses": self.losses, "random.cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            found["random.cuda"] = torch.cuda.get_rng_state(self.device)
        return found

    def counts(self) -> dict[str, int | float]:
        """Return how far it is, and what that took."""
        return {
            "n_done": self.n_done,
            "n_valid": self.n_valid,
            "n_hidden": self.n_hidden,
            "n_scored": self.n_scored,
            "micro_batch": self.micro_batch,
            "waiting_s": self.waiting_s,
            "before_s": self.seconds,
            "before_mb": self.peak_memory_mb,
        }

    def restore(self, tensors: Mapping[str, torch.Tensor], counts: Mapping[str, Any]) -> None:
        """Put back what :meth:`tensors` and :meth:`counts` gave, into one that has done no step."""
        of: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            what, _, rest = name.partition(".")
            of.setdefault(what, {})[rest] = tensor
        for name, module in self.learner.kept.items():
            module.load_state_dict(self.group.share_as(of[name], module.state_dict()))
        weights = dict(enumerate(p for group in self.optimiser.param_groups for p in group["params"]))
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in of.get("optimiser", {}).items():
            number, _, rest = name.partition(".")
            # A moment is cut as its weight is; the number of steps is none.
            like = {rest: weights.get(int(number))} if tensor.ndim else {}
            moments.setdefault(int(number), {}).update(self.group.share_as({rest: tensor}, like))
        self.optimiser.load_state_dict(self.optimiser.state_dict() | {"state": moments})
        self.losses.copy_(tensors["losses"])
        for name, now in self.counts().items():
            setattr(self, name, type(now)(counts[name]))
        if self.group.size > 1:
            # A checkpoint has that of the first alone; a process for which memory is short finds its own again.
            self.micro_batch = self.share
        torch.set_rng_state(tensors["random.cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random.cuda"], self.device)

    def history(self) -> History:
        """Return what was done; all processes have to ask."""
        of_all = self.group.of_all(self.micro_batch if self.micro_batch < self.share else 0, self.device)
        return History(
            tuple(self.losses.tolist()),
            self.seconds,
            self.peak_memory_mb,
            self.n_hidden / self.n_valid if self.n_valid else None,
            self.n_scored / self.n_valid if self.n_valid else None,
            self.waiting_s,
            self.n_valid,
            min((n for n in of_all if n), default=None),
        )

    def save(self, checkpoint: Checkpoint) -> bool:
        """Write a checkpoint, unless it holds what is not finite: a failure is never gone on from.

        The first of several processes writes it; where weights are cut into shares all have to ask.
        """
        tensors = self.group.whole(self.tensors())
        if tensors and all(v.isfinite().all() for k, v in tensors.items() if k.startswith(("losses", "optimiser."))):
            # Sums are rounded alike by one version of torch; from two the end would be that of neither.
            checkpoint.write({"counts": self.counts(), "torch": torch.__version__}, save(tensors))
            return True
        return False

    def go_on_from(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint, if there is one that can be gone on from.

        Raises
        ------
        NeurobenchError
            If the network is not the one that wrote it; it is removed.
        """
        if (found := reached(checkpoint)) is None:
            return
        state, arrays = found
        try:
            self.restore(load(arrays), state["counts"])
        except (RuntimeError, KeyError, ValueError, TypeError, SafetensorError) as error:
            checkpoint.remove()
            raise NeurobenchError(
                f"the backbone cannot go on from its own checkpoint, which was removed: {error}",
                next_step="Run the same command again to begin anew; `neurobench check` tries backbones for this.",
            ) from error


def reached(checkpoint: Checkpoint) -> tuple[dict[str, Any], bytes] | None:
    """Return the state and the arrays to go on from, or None; what another version of torch wrote is removed."""
    found = checkpoint.read()
    if found is not None and (of := found[0].get("torch")) != torch.__version__:
        log.warning("the checkpoint of %s is of torch %s; it is begun anew", checkpoint.label, of)
        checkpoint.remove()
        return None
    return found


@torch.random.fork_rng()
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
    objective: Objective = RECONSTRUCTION,
    device: torch.device | str = "cpu",
    on_step: Callable[[int], None] | None = None,
    on_look: Callable[[Training], None] | None = None,
    checkpoint: Checkpoint | None = None,
    group: Group = ALONE,
) -> History:
    """Train backbone and decoder in place by an objective: to fill hidden tokens, unless another one is given.

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
        Fraction of the valid tokens that is scored, unless the objective draws one for every window.
    seed
        Of the masks, of what a backbone leaves to chance in training, and of what an objective trains beside.
    objective
        What is learnt.
    device
        Where to train; bfloat16 on CUDA.
    on_step
        Called after every step with its number; what it raises ends the pretraining. A loss is not told: a GPU would
        have to be waited for.
    on_look
        Called every :data:`LOOK_EVERY` steps and after the last, where a GPU is waited for: losses can be read.
    checkpoint
        Where to go on from, and where to put what is reached: every :data:`CHECKPOINT_EVERY_S` seconds, and at once
        when the process is told to stop. It ends with the weights of a pretraining that was never stopped, on a CPU to
        the byte.
    group
        The processes that train these weights together, of which this is one.

    Raises
    ------
    NeurobenchError
        If the loss is no longer finite, or the backbone cannot take back what is in its own checkpoint.
    StoreError
        If a checkpoint cannot be written: neither could the weights be in the end.
    """
    torch.manual_seed(seed_for(seed, "pretrain-init", "dropout"))
    device = torch.device(device)
    if not strategy.pretrains:
        n_steps = 0
    if device.type == "cuda":
        # Else the peak is that of whatever this process trained before.
        torch.cuda.reset_peak_memory_stats(device)
    learns = learner_of(objective, backbone, decoder, width=backbone.spec.width, seed=seed)
    if group.sharded:
        group.shard(list(learns.kept.values()))
        # Shares of weights get the mean over the processes on the way back, and the loss is the sum.
        learns.times = group.size
    training = Training(learns, recipe, n_steps, device, seed, group)
    if checkpoint is not None and n_steps:
        training.go_on_from(checkpoint)
        if training.n_done:
            logs.tell("checkpoint-read", step=training.n_done)
    backbone.train()
    coming = drawn_ahead(
        windows,
        strategy,
        batch_size=recipe.batch_size,
        n_steps=n_steps,
        ratio=ratio,
        seed=seed,
        device=device,
        objective=objective,
        group=group,
        first=training.n_done,
    )

    def keep() -> None:
        if checkpoint is not None and training.save(checkpoint):
            logs.tell("checkpoint-written", step=training.n_done)

    due = time.perf_counter() + CHECKPOINT_EVERY_S
    with contextlib.closing(coming), HeldBack() as stop:
        while training.n_done < n_steps:
            asked = time.perf_counter()
            drawn = next(coming)
            training.waiting_s += time.perf_counter() - asked
            training.step(drawn)
            if on_look is not None and training.at_look:
                on_look(training)
            now = time.perf_counter()
            if group.agreed(bool(stop) or now >= due):
                keep()
                took = time.perf_counter() - now
                due = now + took + max(CHECKPOINT_EVERY_S, took / CHECKPOINT_SHARE)
            stop.deliver()
            if on_step is not None:
                try:
                    on_step(training.n_done - 1)
                except Abandoned:
                    keep()
                    raise
    backbone.eval()
    return training.history()

"""From a batch to a loss: what backbone and decoder are trained by, under each objective."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from neurobench.contracts import Backbone
from neurobench.errors import NeurobenchError
from neurobench.identity import seed_for
from neurobench.objectives import Latent, Objective, Reconstruction
from neurobench.records import Batch, TokenTable

__all__ = ["Drawn", "Filling", "Learner", "Predicting", "hide", "learner_of"]


def hide(signal: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Return the signal with zeros at hidden tokens: what a backbone is given."""
    return signal.masked_fill(hidden[..., None], 0.0)


class Places(NamedTuple):
    """Number of places that are scored and that are visible, in the windows of a batch up to one."""

    scored: int
    visible: int


@dataclass(frozen=True, eq=False)
class Drawn:
    """The batch of a step with its masks, or a part of its windows; numbers are those of the whole batch.

    Parameters
    ----------
    signal
        (windows, units, patches, features) whole signal: what is hidden of it is for the loss alone.
    table
        The token table.
    hidden
        (windows, units, patches) bool.
    scored, visible
        (tokens,) int64, places in the flattened (windows × units × patches): hidden ones that are scored, and valid
        ones that are not hidden.
    ends
        (windows + 1) where the places of each window end, from zeros on: what a part is cut out by without a look at
        the device.
    n_windows, n_valid, n_hidden, n_scored, n_visible
        Number of windows, and of valid, hidden, scored and visible tokens, of the whole batch.
    """

    signal: torch.Tensor
    table: TokenTable
    hidden: torch.Tensor
    scored: torch.Tensor
    visible: torch.Tensor
    ends: tuple[Places, ...]
    n_windows: int
    n_valid: int
    n_hidden: int
    n_scored: int
    n_visible: int

    @classmethod
    def of(cls, batch: Batch, hidden: torch.Tensor, scored: torch.Tensor) -> Drawn:
        """Return a batch with its (windows, units, patches) masks, on a CPU."""
        visible = batch.table.valid & ~hidden
        ends = [tuple(mask.flatten(1).sum(1).cumsum(0).tolist()) for mask in (scored, visible)]
        return cls(
            batch.signal,
            batch.table,
            hidden,
            scored.flatten().nonzero()[:, 0],
            visible.flatten().nonzero()[:, 0],
            (Places(0, 0), *(Places(*both) for both in zip(*ends, strict=True))),
            n_windows=len(hidden),
            n_valid=int(batch.table.valid.sum()),
            n_hidden=int(hidden.sum()),
            n_scored=int(scored.sum()),
            n_visible=int(visible.sum()),
        )

    def __len__(self) -> int:
        """Return the number of windows that are here."""
        return len(self.hidden)

    def sent(self, send: Callable[[torch.Tensor], torch.Tensor]) -> Drawn:
        """Return the same with every tensor sent to where it is needed."""
        return replace(
            self,
            signal=send(self.signal),
            table=self.table.map(send),
            hidden=send(self.hidden),
            scored=send(self.scored),
            visible=send(self.visible),
        )

    def part(self, first: int, last: int) -> Drawn:
        """Return windows from ``first`` to before ``last``; all of them: the same."""
        if (first, last) == (0, len(self)):
            return self
        before, end = self.ends[first], self.ends[last]
        offset = first * self.hidden[0].numel()
        return replace(
            self,
            signal=self.signal[first:last],
            table=self.table.map(lambda tensor: tensor[first:last]),
            hidden=self.hidden[first:last],
            scored=self.scored[before.scored : end.scored] - offset,
            visible=self.visible[before.visible : end.visible] - offset,
            ends=tuple(
                Places(e.scored - before.scored, e.visible - before.visible) for e in self.ends[first : last + 1]
            ),
        )

    def narrowed(self, n_units: int) -> Drawn:
        """Return the first window with its first units alone, to find out how much of it fits into memory."""
        first = self.part(0, 1)
        fewer = n_units * first.hidden.shape[2]
        scored, visible = (places[places < fewer] for places in (first.scored, first.visible))
        return replace(
            first,
            signal=first.signal[:, :n_units],
            table=first.table.map(lambda tensor: tensor[:, :n_units]),
            hidden=first.hidden[:, :n_units],
            scored=scored,
            visible=visible,
            ends=(Places(0, 0), Places(len(scored), len(visible))),
        )


def _at(x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Return (places, features) of (batch, units, patches, features)."""
    return x.flatten(0, 2).index_select(0, places)


class Learner(ABC):
    """Backbone and decoder, and what an objective trains beside them.

    Parameters
    ----------
    backbone, decoder
        On the device that trains.
    """

    times = 1
    """What a loss is multiplied by, where gradients come as a mean over processes and not as their sum."""

    def __init__(self, backbone: Backbone, decoder: nn.Module) -> None:
        self.backbone, self.decoder = backbone, decoder

    @property
    def modules(self) -> list[nn.Module]:
        """Everything that is trained."""
        return [self.backbone, self.decoder]

    @property
    def kept(self) -> dict[str, nn.Module]:
        """Everything that has a state of its own, trained or not, by name."""
        return {"backbone": self.backbone, "decoder": self.decoder}

    @property
    def cut_together(self) -> list[list[nn.Module]]:
        """Modules whose gradients are cut together, by one norm."""
        return [self.modules]

    @abstractmethod
    def losses(self, drawn: Drawn) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what to minimise, and the mean squared error of the scored tokens, which everybody is told.

        Of a part of a batch both are what it adds to those of the whole batch: errors are summed over its tokens, and
        divided by the number of those in the whole batch.
        """

    def moved(self, done: float) -> None:  # noqa: B027 - most have nothing to move
        """Follow a step of the optimiser; ``done`` is the fraction of all steps that lie behind."""

    def _tokens(self, drawn: Drawn) -> torch.Tensor:
        """Return what the backbone makes of what is not hidden."""
        self.backbone.share_of_batch = self.times * len(drawn) / drawn.n_windows
        tokens: torch.Tensor = self.backbone(hide(drawn.signal, drawn.hidden), drawn.hidden, drawn.table)
        return tokens

    def _error(self, reconstructed: torch.Tensor, drawn: Drawn, places: torch.Tensor, n: int) -> torch.Tensor:
        """Return squared errors of (windows, units, patches, features) at some places, over ``n`` in the whole batch.

        A strategy outside the common budget may hide nothing in a whole batch: no loss, instead of one that is NaN.
        """
        squares = (_at(reconstructed, places).float() - _at(drawn.signal, places)).square()
        return squares.sum() / max(1, n * squares.shape[-1])


class Filling(Learner):
    """Fills hidden tokens, and says again what the visible ones are if they have a weight.

    Parameters
    ----------
    backbone, decoder
        On the device that trains.
    visible
        Weight of visible tokens; scored ones have the rest.
    """

    def __init__(self, backbone: Backbone, decoder: nn.Module, visible: float = 0.0) -> None:
        super().__init__(backbone, decoder)
        self.visible = visible

    def losses(self, drawn: Drawn) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the weighted error of scored and visible tokens, and that of the scored ones."""
        with torch.autocast("cuda", torch.bfloat16, enabled=drawn.signal.is_cuda):
            reconstructed = self.decoder(self._tokens(drawn))
        error = self._error(reconstructed, drawn, drawn.scored, drawn.n_scored)
        if self.visible == 0:
            return error, error.detach()
        seen = self._error(reconstructed, drawn, drawn.visible, drawn.n_visible)
        return (1 - self.visible) * error + self.visible * seen, error.detach()


class Predicting(Learner):
    """Predicts the tokens of a slow copy of the backbone, which sees the whole signal.

    Its tokens are normalised, each to mean 0 and variance 1. The copy follows the backbone and has no gradient; the
    decoder reads detached tokens, so that the backbone learns nothing of it, and its gradients are cut by themselves.

    Parameters
    ----------
    backbone, decoder
        On the device that trains.
    width
        Width of a token.
    momentum
        How much of the copy stays in the first step, and rises to 1.
    seed
        Of the predictor's first weights: the same for every backbone.
    """

    def __init__(self, backbone: Backbone, decoder: nn.Module, *, width: int, momentum: float, seed: int) -> None:
        super().__init__(backbone, decoder)
        self.momentum = momentum
        self.target = copy.deepcopy(backbone).requires_grad_(False).eval()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(seed, "predictor"))
            self.predictor = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)).to(
                next(backbone.parameters()).device
            )

    @property
    def modules(self) -> list[nn.Module]:
        """Everything that is trained."""
        return [self.backbone, self.predictor, self.decoder]

    @property
    def kept(self) -> dict[str, nn.Module]:
        """The slow copy and the predictor too."""
        return {**super().kept, "predictor": self.predictor, "target": self.target}

    @property
    def cut_together(self) -> list[list[nn.Module]]:
        """The decoder by itself: else its errors would shorten the backbone's steps."""
        return [[self.backbone, self.predictor], [self.decoder]]

    def wanted(self, drawn: Drawn) -> torch.Tensor:
        """Return (scored tokens, width) what is to be predicted."""
        with torch.no_grad():
            tokens = self.target(drawn.signal, torch.zeros_like(drawn.hidden), drawn.table)
        return F.layer_norm(_at(tokens, drawn.scored).float(), tokens.shape[-1:])

    def losses(self, drawn: Drawn) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the error of the prediction and of the decoder together, and the latter."""
        with torch.autocast("cuda", torch.bfloat16, enabled=drawn.signal.is_cuda):
            tokens = self._tokens(drawn)
            predicted = self.predictor(_at(tokens, drawn.scored))
            reconstructed = self.decoder(tokens.detach())
            wanted = self.wanted(drawn)
        error = self._error(reconstructed, drawn, drawn.scored, drawn.n_scored)
        apart = F.smooth_l1_loss(predicted.float(), wanted, reduction="sum") / max(1, drawn.n_scored * wanted.shape[1])
        return apart + error, error.detach()

    @torch.no_grad()
    def moved(self, done: float) -> None:
        """Move the copy a little towards the backbone."""
        share = (1 - self.momentum) * (1 - done)
        for kept, new in zip(self.target.parameters(), self.backbone.parameters(), strict=True):
            kept.lerp_(new, share)
        for fixed, now in zip(self.target.buffers(), self.backbone.buffers(), strict=True):
            fixed.copy_(now)


def learner_of(objective: Objective, backbone: Backbone, decoder: nn.Module, *, width: int, seed: int) -> Learner:
    """Return what trains backbone and decoder under an objective.

    Parameters
    ----------
    objective
        What is learnt.
    backbone, decoder
        On the device that trains.
    width
        Width of a token.
    seed
        Of whatever is trained beside them.
    """
    if isinstance(objective, Reconstruction):
        return Filling(backbone, decoder, objective.visible)
    if isinstance(objective, Latent):
        return Predicting(backbone, decoder, width=width, momentum=objective.momentum, seed=seed)
    raise NeurobenchError(f"nothing learns by objective {objective.label!r}.")

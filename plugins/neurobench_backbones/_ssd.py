"""The state-space-dual scan of Mamba-2 in plain torch: the recurrence as matrix products over chunks.

For every head, with a scalar decay a_t = exp(Δ_t A) and a state of shape (headdim, d_state),

    h_t = a_t h_{t−1} + Δ_t x_t B_tᵀ,    y_t = h_t C_t + D x_t.

Inside a chunk that is a masked matrix product (quadratic in the chunk), between chunks a short recurrence of states.
One chunk is enough for the short sequences of factorised blocks; long ones are linear in time and memory.

With t the sum of log decays from the start of a chunk, position i draws on j ≤ i by C_i·B_j exp(t_i − t_j) Δ_j. There
are two forms of it. *By factors*, exp(t_i) exp(−t_j): heads differ by scales of x and y only, and one product with C·B
serves them all. *By heads*, each with a matrix of its own: where a number could not hold the factors, in half
precision, on a GPU, whose host would have to wait to learn whether it could, and in short scans, whose matrices are
small.

Source: Dao and Gu 2024, Transformers are SSMs (arXiv:2405.21060).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

__all__ = [
    "CHUNK",
    "EVERY",
    "Chunks",
    "Decays",
    "chunk_by_factors",
    "decay_between",
    "parted",
    "scan",
    "scan_factors",
    "scan_heads",
    "ssd_scan",
    "ssd_step_by_step",
]

CHUNK = 32
"""Longest chunk by factors: below, states outnumber the signal, above, the quadratic part grows and decays add up."""

CHUNK_BY_HEADS = 64
"""Length of a chunk: below about 32 the recurrence over chunks dominates, above about 128 the quadratic part."""

LOG2E = 1 / math.log(2)
"""Exponents are kept in powers of two: torch's exp2 takes less than half the time of its exp."""

EVERY = slice(None)
"""All sequences, or all chunks."""

PIECE = 2**18
"""Numbers in the largest array of a piece of a long sequence: 1 MB of float32, what a cache holds beside others."""

NO_STEP = 1e-30
"""What a step of size 0 counts as, because its logarithm is taken: too little to be seen beside anything."""

REACH = 150
"""Powers of two that a chunk may decay by: its factors, half of it up and half down, leave room for what they scale."""


def ssd_scan(x: torch.Tensor, dt: torch.Tensor, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """Scan sequences of any length: :func:`scan` with (heads,) negative A."""
    return scan(x, dt, dt * a, b, c)


def scan(
    x: torch.Tensor,
    dt: torch.Tensor,
    log_decay: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    skip: torch.Tensor | None = None,
) -> torch.Tensor:
    """Scan sequences of any length, by factors if they fit and pay: if matrices would be larger than the signal.

    Parameters
    ----------
    x
        (batch, length, heads, headdim).
    dt, log_decay
        (batch, length, heads), Δ and Δ A.
    b, c
        (batch, length, d_state), shared by all heads.
    skip
        (batch, heads), D; None for 0.

    Returns
    -------
    y
        (batch, length, heads, headdim).
    """
    if x.dtype == dt.dtype and (chunk := chunk_by_factors(log_decay, x.shape[3])):
        return scan_factors(x, dt, log_decay, b, c, skip, chunk)
    by_heads = (v.transpose(1, 2) for v in (x, dt, log_decay))
    return scan_heads(*by_heads, b, c, skip).transpose(1, 2)


def chunk_by_factors(log_decay: torch.Tensor, headdim: int) -> int | None:
    """Return the length of chunks whose factors fit into numbers of this kind; None: scan by heads.

    Parameters
    ----------
    log_decay
        (batch, length, heads), Δ A.
    headdim
        Channels of a head.
    """
    length = log_decay.shape[1]
    if log_decay.device.type != "cpu" or length <= headdim or log_decay.dtype not in (torch.float32, torch.float64):
        return None
    chunks = (_even(length, longest) for longest in (CHUNK, CHUNK // 2, CHUNK // 4))
    return next((chunk for chunk in chunks if _reach(log_decay, chunk) <= REACH), None)


def parted(n: int, most: int) -> list[slice]:
    """Return n parted into as many at a time, and what is left of them."""
    return [slice(k, min(k + most, n)) for k in range(0, n, most)]


def _even(length: int, longest: int) -> int:
    """Return the length of chunks that are about equal and no longer than this."""
    n = -(-length // longest)
    return -(-length // n)


def _reach(log_decay: torch.Tensor, chunk: int) -> float:
    """Return the powers of two that a chunk decays by at the most."""
    whole = F.pad(log_decay.detach(), (0, 0, 0, -log_decay.shape[1] % chunk)).unflatten(1, (-1, chunk))
    return -LOG2E * float(whole.sum(2).min())


def scan_factors(
    x: torch.Tensor,
    dt: torch.Tensor,
    log_decay: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    skip: torch.Tensor | None = None,
    chunk: int = CHUNK,
) -> torch.Tensor:
    """Scan by factors: as :func:`scan`; no chunk may decay by more than 2 to the power of ``REACH``."""
    length = x.shape[1]
    missing = -length % chunk
    if missing:
        # Steps of size 0 at the end change no state and are cut off again.
        x = F.pad(x, (0, 0, 0, 0, 0, missing))
        dt, log_decay, b, c = (F.pad(v, (0, 0, 0, missing)) for v in (dt, log_decay, b, c))
    y: torch.Tensor = _ScanFactors.apply(x, dt, log_decay, b, c, skip, chunk)
    return y[:, :length] if missing else y


@dataclass(frozen=True)
class Decays:
    """What steps of whole chunks decay by, as factors: from the middle of a chunk's range, m, up to i, and from j on.

    Parameters
    ----------
    up, down, given
        (batch, n, chunk, heads) exp(t_i − m) and exp(m − t_j), and the latter times Δ_j.
    half
        (batch, n, 1, heads, 1) exp(m).
    """

    up: torch.Tensor
    down: torch.Tensor
    given: torch.Tensor
    half: torch.Tensor

    @classmethod
    def of(cls, dt: torch.Tensor, log_decay: torch.Tensor, chunk: int) -> Decays:
        """Return those of (batch, length, heads) Δ and Δ A; the length is a whole number of chunks."""
        total = log_decay.unflatten(1, (-1, chunk)).cumsum(2).mul_(LOG2E)
        middle = total[:, :, -1:] / 2
        up, down = (total - middle).exp2_(), (middle - total).exp2_()
        return cls(up, down, down * dt.unflatten(1, (-1, chunk)), middle.exp2_()[..., None])

    @property
    def over(self) -> torch.Tensor:
        """(batch, n − 1, 1, heads, 1), from the middle of one chunk's range to that of the next."""
        return self.half[:, :-1] * self.half[:, 1:]

    def part(self, sequences: slice, chunks: slice) -> Decays:
        """Return those of some chunks of some sequences."""
        return Decays(*(v[sequences, chunks] for v in (self.up, self.down, self.given, self.half)))


class Chunks:
    """A piece of sequences on its way through the scan by factors, in arrays that every piece of its size uses again.

    New arrays for every piece would not be in the cache, and to be given new memory takes longer than to fill it.

    Parameters
    ----------
    shape
        (batch, n, chunk, heads, headdim).
    d_state
        Size of a state.
    like
        Whose dtype and device.
    carries
        Whether anything comes before the piece or after it, or it is of several chunks.
    back
        Whether there is a way back.
    """

    def __init__(self, shape: tuple[int, ...], d_state: int, like: torch.Tensor, *, carries: bool, back: bool) -> None:
        batch, n, chunk, heads, headdim = self.shape = shape
        self.carries = carries
        signal, square = (batch * n, chunk, heads * headdim), (batch * n, chunk, chunk)
        self.states = (batch, n, d_state, heads, headdim)
        self.given, self.drawn, self.reach = like.new_empty(signal), like.new_empty(signal), like.new_empty(square)
        if back:
            self.of_given, self.of_reach = like.new_empty(signal), like.new_empty(square)
        if carries and not back:
            self.added = like.new_empty(self.states)
        if carries and back:
            self.of_start, self.of_whole = like.new_empty(self.states), like.new_empty(self.states)

    def take(
        self, x: torch.Tensor, b: torch.Tensor, c: torch.Tensor, decays: Decays, first: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Take in x, (batch, n, chunk, heads, headdim), and B and C, (batch · n, chunk, d_state).

        Parameters
        ----------
        x, b, c, decays
            Of the piece.
        first
            (batch, d_state, heads, headdim), the state before the piece; None: nothing before it.

        Returns
        -------
        start, end
            (batch, n, d_state, heads, headdim), the states before its chunks, times exp(m), and the state after it.
            None where none is carried.
        """
        self.take_again(x, b, c, decays, None)
        if not self.carries:
            return None, None
        # What a chunk adds to the state, times exp(−m) of its end.
        torch.bmm(b.transpose(1, 2), self.given, out=self._flat(self.added))
        self.start = start = torch.empty_like(self.added)
        if first is None:
            start[:, 0].zero_()
        else:
            torch.mul(first, decays.half[:, 0], out=start[:, 0])
        over = decays.over
        torch.mul(self.added[:, :-1], over, out=start[:, 1:])
        _run(start.unbind(1), over.unbind(1))
        return start, (self.added[:, -1] + start[:, -1]).mul_(decays.half[:, -1])

    def take_again(
        self, x: torch.Tensor, b: torch.Tensor, c: torch.Tensor, decays: Decays, start: torch.Tensor | None
    ) -> None:
        """Take in what was taken in before; ``start`` is what it returned."""
        self.x, self.b, self.c, self.decays, self.start = x, b, c, decays, start
        torch.mul(x, decays.given[..., None], out=self.given.view(self.shape))
        torch.bmm(c, b.transpose(1, 2), out=self.reach).tril_()

    def _flat(self, states: torch.Tensor) -> torch.Tensor:
        """Return a view of states: (batch · n, d_state, heads · headdim)."""
        return states.view(len(self.given), -1, self.given.shape[-1])

    def y(self, skip: torch.Tensor | None, out: torch.Tensor) -> None:
        """Write y into memory of the shape of x; ``skip`` is (batch or 1, heads) D."""
        torch.bmm(self.reach, self.given, out=self.drawn)
        if self.start is not None:
            self.drawn.baddbmm_(self.c, self._flat(self.start))
        torch.mul(self.drawn.view(self.shape), self.decays.up[..., None], out=out)
        if skip is not None:
            out.addcmul_(self.x, skip[:, None, None, :, None])

    def back(
        self,
        grad: torch.Tensor,
        y: torch.Tensor,
        skip: torch.Tensor | None,
        of_end: torch.Tensor | None,
        of_x: torch.Tensor,
    ) -> tuple[torch.Tensor | None, ...]:
        """Write the gradient of x, and return those of Δ, log decay, B, C, D, and of the state before the piece.

        Parameters
        ----------
        grad, y
            Shaped as x.
        skip
            (batch or 1, heads) D.
        of_end
            The gradient of the state after the piece; None for 0.
        of_x
            Where to write.
        """
        x, decays, of_given = self.x, self.decays, self.of_given.view(self.shape)
        # Until it is known, its memory is that of products that are summed at once.
        of_total = torch.mul(grad, y, out=of_given).sum(-1)
        of_skip = None
        if skip is not None:
            skipped = torch.mul(grad, x, out=of_given).sum(-1)
            of_total.addcmul_(skipped, skip[:, None, None], value=-1)
            of_skip = skipped.sum((1, 2))
        of_drawn = self.drawn
        torch.mul(grad, decays.up[..., None], out=of_drawn.view(self.shape))
        torch.bmm(self.reach.transpose(1, 2), of_drawn, out=self.of_given)
        torch.bmm(of_drawn, self.given.transpose(1, 2), out=self.of_reach).tril_()
        of_b, of_c = torch.bmm(self.of_reach.transpose(1, 2), self.c), torch.bmm(self.of_reach, self.b)
        of_first = None
        if self.start is not None:
            of_start, of_whole = self._flat(self.of_start), self._flat(self.of_whole)
            torch.bmm(self.c.transpose(1, 2), of_drawn, out=of_start)
            if of_end is None:
                self.of_whole[:, -1].zero_()
            else:
                torch.mul(of_end, decays.half[:, -1], out=self.of_whole[:, -1])
            over = decays.over
            torch.mul(self.of_start[:, 1:], over, out=self.of_whole[:, :-1])
            _run(self.of_whole.unbind(1)[::-1], over.unbind(1)[::-1])
            self.of_given.baddbmm_(self.b, of_whole)
            of_b.baddbmm_(self.given, of_whole.transpose(1, 2))
            of_c.baddbmm_(of_drawn, self._flat(self.start).transpose(1, 2))
            self.of_start += self.of_whole
            of_first = self.of_start[:, 0] * decays.half[:, 0]
        of_step = torch.mul(of_given, x, out=of_drawn.view(self.shape)).sum(-1)
        # What y_i draws is proportional to exp(t_i), what j gives to exp(−t_j). A log decay is part of t from its own
        # step to the end of the chunk: of all that falls on t that is what falls on the state before the chunk, less
        # what falls on earlier steps.
        of_total.addcmul_(of_step, decays.given, value=-1)
        of_log_decay = of_total - of_total.cumsum(2)
        if self.start is not None:
            of_log_decay += self.of_start.mul_(self.start).sum((2, 4))[:, :, None]
        torch.mul(of_given, decays.given[..., None], out=of_x)
        if skip is not None:
            of_x.addcmul_(grad, skip[:, None, None, :, None])
        return of_step.mul_(decays.down).flatten(1, 2), of_log_decay.flatten(1, 2), of_b, of_c, of_skip, of_first


def _run(states: Sequence[torch.Tensor], over: Sequence[torch.Tensor]) -> None:
    """Add to each state what is left of the one before it."""
    for before, state, kept in zip(states, states[1:], over, strict=False):
        state.addcmul_(before, kept)


class _ScanFactors(torch.autograd.Function):
    """The scan by factors with its gradients written out, piece by piece, so that a piece stays in the cache.

    Nothing but its inputs, y and the states between chunks is kept: the way back computes a piece again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        dt: torch.Tensor,
        log_decay: torch.Tensor,
        b: torch.Tensor,
        c: torch.Tensor,
        skip: torch.Tensor | None,
        chunk: int,
    ) -> torch.Tensor:
        """Scan a whole number of chunks."""
        batch, length, heads, headdim = x.shape
        piece = max(1, PIECE // (batch * chunk * heads * headdim))
        ctx.chunk, ctx.pieces = chunk, parted(length // chunk, piece)
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        decays = Decays.of(dt, log_decay, chunk)
        at = _Places(x, b, c, chunk, back=False)
        state, states = None, []
        for part in ctx.pieces:
            chunks = at(part)
            start, state = chunks.take(*at.given(part), decays.part(EVERY, part), state)
            states.append(start)
            chunks.y(skip, at.signal(y, part))
        ctx.save_for_backward(x, dt, log_decay, b, c, skip, y, *states)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of all but the chunk."""
        x, dt, log_decay, b, c, skip, y, *states = ctx.saved_tensors
        decays = Decays.of(dt, log_decay, ctx.chunk)
        at = _Places(x, b, c, ctx.chunk, back=True)
        whole = [torch.empty(v.shape, dtype=v.dtype, device=v.device) for v in (x, dt, log_decay, b, c)]
        of_skips, of_state = [], None
        for part, start in zip(reversed(ctx.pieces), reversed(states), strict=True):
            chunks = at(part)
            chunks.take_again(*at.given(part), decays.part(EVERY, part), start)
            signals = (at.signal(v, part) for v in (grad, y))
            *found, of_skip, of_state = chunks.back(*signals, skip, of_state, at.signal(whole[0], part))
            for v, value in zip(whole[1:], found, strict=True):
                v[:, at.steps(part)] = value.view(len(v), -1, v.shape[-1])
            of_skips.append(of_skip)
        return *whole, None if skip is None else sum(of_skips[1:], of_skips[0]), None


class _Places:
    """Where pieces of a scan are: chunks for pieces of each length, and pieces of its arrays."""

    def __init__(self, x: torch.Tensor, b: torch.Tensor, c: torch.Tensor, chunk: int, *, back: bool) -> None:
        self.x, self.b, self.c, self.chunk, self.back = x, b, c, chunk, back
        self.of_length: dict[int, Chunks] = {}

    def __call__(self, part: slice) -> Chunks:
        """Return the arrays of a piece."""
        n, (batch, _, *heads) = part.stop - part.start, self.x.shape
        if n not in self.of_length:
            self.of_length[n] = Chunks(
                (batch, n, self.chunk, *heads),
                self.b.shape[-1],
                self.x,
                carries=self.x.shape[1] > self.chunk,
                back=self.back,
            )
        return self.of_length[n]

    def steps(self, part: slice) -> slice:
        """Return the steps of a piece."""
        return slice(part.start * self.chunk, part.stop * self.chunk)

    def signal(self, v: torch.Tensor, part: slice) -> torch.Tensor:
        """Return a piece of (batch, length, heads, headdim)."""
        return v[:, self.steps(part)].unflatten(1, (-1, self.chunk))

    def given(self, part: slice) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return x, B and C of a piece."""
        b, c = (v[:, self.steps(part)].reshape(-1, self.chunk, v.shape[-1]) for v in (self.b, self.c))
        return self.signal(self.x, part), b, c


def scan_heads(
    x: torch.Tensor,
    dt: torch.Tensor,
    log_decay: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    skip: torch.Tensor | None = None,
    chunk: int = CHUNK_BY_HEADS,
) -> torch.Tensor:
    """Scan by heads, heads before time.

    Parameters
    ----------
    x
        (batch, heads, length, headdim).
    dt, log_decay
        (batch, heads, length), Δ and Δ A.
    b, c
        (batch, length, d_state), shared by all heads.
    skip
        (batch, heads), D; None for 0.
    chunk
        Length of a chunk; changes rounding only.

    Returns
    -------
    y
        (batch, heads, length, headdim).
    """
    length = x.shape[2]
    chunk = min(chunk, length)
    missing = -length % chunk
    if missing:
        # Steps of size 0 at the end change no state and are cut off again.
        x, b, c = (F.pad(v, (0, 0, 0, missing)) for v in (x, b, c))
        dt, log_decay = F.pad(dt, (0, missing)), F.pad(log_decay, (0, missing))
    y: torch.Tensor = _Scan.apply(x, dt, log_decay, b, c, skip, chunk)
    return y[:, :, :length] if missing else y


def decay_between(log_decay: torch.Tensor) -> torch.Tensor:
    """Return (…, length, length) exp of the sum of log decays from after column j up to row i; 0 above the diagonal."""
    total = log_decay.cumsum(-1)
    # Masked before exp: above the diagonal the difference is positive and its exp overflows, also in the gradient.
    return (total[..., :, None] - total[..., None, :]).masked_fill_(_future(total), -torch.inf).exp_()


def _future(total: torch.Tensor) -> torch.Tensor:
    length = total.shape[-1]
    return torch.ones(length, length, dtype=torch.bool, device=total.device).triu(1)


class _Scan(torch.autograd.Function):
    """By heads, with its gradients written out: autograd would keep and walk through some thirty arrays of this size.

    Long sequences are worked on piece by piece, so that what is quadratic in the chunk stays in the cache and is never
    kept: the way back computes it again. Otherwise time grows faster than length, and memory many times x.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        dt: torch.Tensor,
        log_decay: torch.Tensor,
        b: torch.Tensor,
        c: torch.Tensor,
        skip: torch.Tensor | None,
        chunk: int,
    ) -> torch.Tensor:
        """Scan a whole number of chunks."""
        batch, heads, length, _ = x.shape
        piece = chunk * max(1, PIECE // (batch * heads * chunk * chunk))
        ctx.pieces, ctx.chunk, ctx.has_skip = range(0, length, piece), chunk, skip is not None
        ctx.piece = piece
        if len(ctx.pieces) == 1:
            y, _, kept = _scan_piece(x, dt, log_decay, b, c, skip, None, chunk, carries=length > chunk)
            ctx.save_for_backward(*kept)
            return y
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        state, states = None, []
        for first in ctx.pieces:
            part = slice(first, first + piece)
            states.append(state)
            y[:, :, part], state, _ = _scan_piece(
                *(v[:, :, part] for v in (x, dt, log_decay)), b[:, part], c[:, part], skip, state, chunk, carries=True
            )
        ctx.save_for_backward(x, dt, log_decay, b, c, skip, *states)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of all but the chunk."""
        if len(ctx.pieces) == 1:
            *of_inputs, of_skip, _ = _scan_piece_back(ctx.saved_tensors, grad, None)
            return *of_inputs, of_skip if ctx.has_skip else None, None
        x, dt, log_decay, b, c, skip, *states = ctx.saved_tensors
        whole = [torch.empty(v.shape, dtype=v.dtype, device=v.device) for v in (x, dt, log_decay, b, c)]
        of_x, of_dt, of_log_decay, of_b, of_c = whole
        of_state, of_skips = None, []
        for first, state in zip(reversed(ctx.pieces), reversed(states), strict=True):
            part = slice(first, first + ctx.piece)
            given = (x[:, :, part], dt[:, :, part], log_decay[:, :, part], b[:, part], c[:, part])
            _, _, kept = _scan_piece(*given, skip, state, ctx.chunk, carries=True, only_kept=True)
            (
                of_x[:, :, part],
                of_dt[:, :, part],
                of_log_decay[:, :, part],
                of_b[:, part],
                of_c[:, part],
                of_skip,
                of_state,
            ) = _scan_piece_back(kept, grad[:, :, part], of_state)
            of_skips.append(of_skip)
        return *whole, sum(of_skips[1:], of_skips[0]) if ctx.has_skip else None, None


def _scan_piece(
    x: torch.Tensor,
    dt: torch.Tensor,
    log_decay: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    skip: torch.Tensor | None,
    state: torch.Tensor | None,
    chunk: int,
    carries: bool,
    only_kept: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None, tuple[torch.Tensor | None, ...]]:
    """Return y, the state at the end, and what the way back needs.

    With t the sum of log decays from the start of the chunk, position i draws on position j ≤ i by
    w_ij = C_i·B_j exp(t_i − t_j) Δ_j, and by D more on itself; on the state before the chunk by C_i exp(t_i). A single
    chunk with nothing before or after it carries no state.
    """
    batch, heads, length, headdim = x.shape
    n, d_state = length // chunk, b.shape[-1]
    x = x.reshape(batch, heads, n, chunk, headdim)
    b, c = b.reshape(batch, 1, n, chunk, d_state), c.reshape(batch, 1, n, chunk, d_state)
    total = log_decay.reshape(batch, heads, n, chunk).cumsum(-1).mul_(LOG2E)
    step = dt.reshape(batch, heads, n, chunk).clamp_min(NO_STEP)
    # Masked before exp: above the diagonal the difference is positive and its exp overflows.
    decay = total[..., :, None] + (step.log2() - total)[..., None, :]
    decay.masked_fill_(_future(total), -torch.inf).exp2_()
    weights = decay * (c @ b.transpose(-1, -2)).to(decay.dtype)
    if skip is not None:
        weights.diagonal(dim1=-2, dim2=-1).add_(skip[..., None, None])
    weights = weights.to(x.dtype)
    start = end = None
    if carries:
        states = x.transpose(-1, -2) @ (b * decay[..., -1, :, None]).to(x.dtype)
        start, end = _running(states, total[..., -1].exp2(), state)
    kept = (x, b, c, total, step, decay, weights, start)
    if only_kept:
        return x, None, kept
    y = weights @ x
    if start is not None:
        y += (c * total[..., None].exp2()).to(x.dtype) @ start.transpose(-1, -2)
    return y.view(batch, heads, length, headdim), end, kept


def _scan_piece_back(
    kept: Sequence[Any], grad: torch.Tensor, of_end: torch.Tensor | None
) -> tuple[torch.Tensor | None, ...]:
    """Return the gradients of x, Δ, log decay, B, C, D, and of the state before the piece."""
    x, b, c, total, step, decay, weights, start = kept
    batch, heads, n, chunk, headdim = x.shape
    length = n * chunk
    grad = grad.reshape(x.shape)
    of_x = weights.transpose(-1, -2) @ grad
    of_weights = (grad @ x.transpose(-1, -2)).to(decay.dtype)
    of_skip = of_weights.diagonal(dim1=-2, dim2=-1).sum((-1, -2))
    of_weights *= decay
    of_reach = of_weights.sum(1, keepdim=True).to(x.dtype)
    of_b, of_c = of_reach.transpose(-1, -2) @ c, of_reach @ b
    # By their exponents t_i − t_j + log Δ_j: what falls on rows goes to t, on columns to −t and to log Δ.
    of_weights *= (c @ b.transpose(-1, -2)).to(decay.dtype)
    rows, columns = of_weights.sum(-1), of_weights.sum(-2)
    of_start = None
    if start is not None:
        to_end, from_start, over = decay[..., -1, :, None], total[..., None].exp2(), total[..., -1].exp2()
        at_start = grad @ start
        rows += (at_start * c).sum(-1) * from_start[..., 0]
        of_c += (at_start * from_start).sum(1, keepdim=True)
        of_starts = grad.transpose(-1, -2) @ (c * from_start).to(x.dtype)
        # The state after a chunk is used by all chunks that come later.
        back, of_start = _running(of_starts.flip(2), over.flip(2), of_end)
        of_states = back.flip(2)
        of_x += (b * to_end).to(x.dtype) @ of_states.transpose(-1, -2)
        at_end = x @ of_states
        of_b += (at_end * to_end).sum(1, keepdim=True)
        ends = (at_end * b).sum(-1) * to_end[..., 0]
        columns += ends
        rows[..., -1] += ends.sum(-1) + (of_states * start).sum((-1, -2)) * over
    of_log_decay = (rows - columns).flip(-1).cumsum(-1).flip(-1)
    return (
        of_x.view(batch, heads, length, headdim),
        (columns / step).view(batch, heads, length),
        of_log_decay.view(batch, heads, length),
        of_b.view(batch, length, -1),
        of_c.view(batch, length, -1),
        of_skip,
        of_start,
    )


def _running(states: torch.Tensor, over: torch.Tensor, first: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what has come together before every chunk, as states, and after the last one.

    Parameters
    ----------
    states
        (batch, heads, n, headdim, d_state), what each chunk adds.
    over
        (batch, heads, n), what each chunk leaves of what came before it.
    first
        (batch, heads, headdim, d_state), what came before the first; None for nothing.
    """
    start = torch.empty_like(states)
    start[:, :, 0] = 0 if first is None else first
    kept = over.to(states.dtype)[..., None, None]
    last = states.shape[2] - 1
    for k in range(last):
        torch.addcmul(states[:, :, k], kept[:, :, k], start[:, :, k], out=start[:, :, k + 1])
    return start, torch.addcmul(states[:, :, last], kept[:, :, last], start[:, :, last])


def ssd_step_by_step(
    x: torch.Tensor, dt: torch.Tensor, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor
) -> torch.Tensor:
    """Return the same, one step after the other: the definition, for tests and benchmarks."""
    state = x.new_zeros(*x.shape[:1], *x.shape[2:], b.shape[-1])
    outputs = []
    for t in range(x.shape[1]):
        decay = (dt[:, t] * a).exp()[..., None, None]
        state = state * decay + (dt[:, t, :, None] * x[:, t])[..., None] * b[:, t, None, None]
        outputs.append(state @ c[:, t, None, :, None])
    return torch.stack(outputs, 1).squeeze(-1)

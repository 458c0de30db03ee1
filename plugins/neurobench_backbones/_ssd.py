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
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

__all__ = ["CHUNK", "decay_between", "scan", "scan_factors", "scan_heads", "ssd_scan", "ssd_step_by_step"]

CHUNK = 32
"""Longest chunk by factors: below, states outnumber the signal, above, the quadratic part grows and decays add up."""

CHUNK_BY_HEADS = 64
"""Length of a chunk: below about 32 the recurrence over chunks dominates, above about 128 the quadratic part."""

LOG2E = 1 / math.log(2)
"""Exponents are kept in powers of two: torch's exp2 takes less than half the time of its exp."""

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
    pays = x.device.type == "cpu" and x.shape[1] > x.shape[3]
    if pays and x.dtype == dt.dtype and x.dtype in (torch.float32, torch.float64):
        for longest in (CHUNK, CHUNK // 2, CHUNK // 4):
            chunk = _even(x.shape[1], longest)
            if _reach(log_decay, chunk) <= REACH:
                return scan_factors(x, dt, log_decay, b, c, skip, chunk)
    by_heads = (v.transpose(1, 2) for v in (x, dt, log_decay))
    return scan_heads(*by_heads, b, c, skip).transpose(1, 2)


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


class _Factors:
    """A piece of a sequence on its way through the scan by factors.

    Parameters
    ----------
    x, dt, log_decay, b, c
        A whole number of chunks.
    first
        (batch, d_state, heads, headdim), the state before the piece; None: nothing before it.
    chunk
        Length of a chunk.
    carries
        Whether anything comes before a chunk or after it.

    Attributes
    ----------
    up, down, given
        (batch, n, chunk, heads) exp(t_i − m) and exp(m − t_j), with m in the middle of the chunk's range, and the
        latter times Δ_j.
    u
        (batch · n, chunk, heads · headdim), x by what is given.
    reach
        (batch · n, chunk, chunk), C_i·B_j, and 0 where j is later than i.
    half
        (batch, n, 1, heads, 1), exp(m).
    start, whole
        (batch, n, d_state, heads, headdim), the state before a chunk by exp(m), and with what the chunk adds to it.
    end
        The state after the piece.
    """

    def __init__(
        self,
        x: torch.Tensor,
        dt: torch.Tensor,
        log_decay: torch.Tensor,
        b: torch.Tensor,
        c: torch.Tensor,
        first: torch.Tensor | None,
        chunk: int,
        carries: bool,
    ) -> None:
        batch, length, heads, headdim = x.shape
        n, d_state = length // chunk, b.shape[-1]
        self.x = x.unflatten(1, (n, chunk))
        self.b, self.c = b.reshape(batch * n, chunk, d_state), c.reshape(batch * n, chunk, d_state)
        total = log_decay.unflatten(1, (n, chunk)).cumsum(2).mul_(LOG2E)
        middle = total[:, :, -1:] / 2
        self.up, self.down = (total - middle).exp2_(), (middle - total).exp2_()
        self.given = self.down * dt.unflatten(1, (n, chunk))
        self.u = (self.x * self.given[..., None]).view(batch * n, chunk, -1)
        self.reach = torch.bmm(self.c, self.b.transpose(1, 2)).tril_()
        self.carries, self.end = carries, None
        if carries:
            self.half = middle.exp2()[..., None]
            self.whole = torch.bmm(self.b.transpose(1, 2), self.u).view(batch, n, d_state, heads, headdim)
            self.start = torch.empty_like(self.whole)
            self.start[:, 0] = 0 if first is None else first * self.half[:, 0]
            over = self.half[:, :-1] * self.half[:, 1:]
            for k in range(n):
                self.whole[:, k] += self.start[:, k]
                if k + 1 < n:
                    torch.mul(self.whole[:, k], over[:, k], out=self.start[:, k + 1])
            self.end = self.whole[:, -1] * self.half[:, -1]

    def y(self, skip: torch.Tensor | None, out: torch.Tensor) -> None:
        """Write y into (batch, length, heads, headdim) memory."""
        drawn = torch.bmm(self.reach, self.u)
        if self.carries:
            drawn.baddbmm_(self.c, self.start.view(len(drawn), -1, drawn.shape[-1]))
        out = out.unflatten(1, self.x.shape[1:3])
        torch.mul(drawn.view(self.x.shape), self.up[..., None], out=out)
        if skip is not None:
            out.addcmul_(self.x, skip[:, None, None, :, None])

    def back(
        self, grad: torch.Tensor, y: torch.Tensor, skip: torch.Tensor | None, of_end: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of x, Δ, log decay, B, C, D, and of the state before the piece."""
        batch, n, chunk, *_ = self.x.shape
        grad, y = grad.unflatten(1, (n, chunk)), y.unflatten(1, (n, chunk))
        g = (grad * self.up[..., None]).view(self.u.shape)
        of_u = torch.bmm(self.reach.transpose(1, 2), g)
        of_reach = torch.bmm(g, self.u.transpose(1, 2)).tril_()
        of_b, of_c = torch.bmm(of_reach.transpose(1, 2), self.c), torch.bmm(of_reach, self.b)
        # What y_i draws is proportional to exp(t_i), what j gives to exp(−t_j).
        of_total = (grad * y).sum(-1)
        of_first = None
        if self.carries:
            of_start = torch.bmm(self.c.transpose(1, 2), g).view(self.start.shape)
            of_whole, over = torch.empty_like(of_start), self.half[:, :-1] * self.half[:, 1:]
            of_whole[:, -1] = 0 if of_end is None else of_end * self.half[:, -1]
            for k in reversed(range(n)):
                of_start[:, k] += of_whole[:, k]
                if k:
                    torch.mul(of_start[:, k], over[:, k - 1], out=of_whole[:, k - 1])
            of_first = of_start[:, 0] * self.half[:, 0]
            flat = of_whole.view(batch * n, -1, g.shape[-1])
            of_u.baddbmm_(self.b, flat)
            of_b.baddbmm_(self.u, flat.transpose(1, 2))
            of_c.baddbmm_(g, self.start.view(flat.shape).transpose(1, 2))
            of_total[:, :, -1] += (of_whole * self.whole).sum((2, 4))
        of_u = of_u.view(self.x.shape)
        of_step = (of_u * self.x).sum(-1)
        of_total.addcmul_(of_step, self.given, value=-1)
        of_x, of_skip = of_u.mul_(self.given[..., None]), None
        if skip is not None:
            of_skips = (grad * self.x).sum(-1)
            of_total.addcmul_(of_skips, skip[:, None, None], value=-1)
            of_x.addcmul_(grad, skip[:, None, None, :, None])
            of_skip = of_skips.sum((1, 2))
        of_log_decay = of_total.flip(2).cumsum(2).flip(2)
        by_time = (v.flatten(1, 2) for v in (of_x, of_step.mul_(self.down), of_log_decay))
        return *by_time, of_b.view(batch, n * chunk, -1), of_c.view(batch, n * chunk, -1), of_skip, of_first


class _ScanFactors(torch.autograd.Function):
    """The scan by factors with its gradients written out, piece by piece, so that a piece stays in the cache.

    Nothing but its inputs, y and the states between pieces is kept: the way back computes a piece again.
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
        piece = chunk * max(1, PIECE // (batch * chunk * heads * headdim))
        ctx.chunk, ctx.pieces = chunk, [slice(k, k + piece) for k in range(0, length, piece)]
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        state, states = None, []
        for part in ctx.pieces:
            states.append(state)
            of_part = _Factors(*(v[:, part] for v in (x, dt, log_decay, b, c)), state, chunk, length > chunk)
            of_part.y(skip, y[:, part])
            state = of_part.end
        ctx.save_for_backward(x, dt, log_decay, b, c, skip, y, *states)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of all but the chunk."""
        x, dt, log_decay, b, c, skip, y, *states = ctx.saved_tensors
        given = (x, dt, log_decay, b, c)
        carries = y.shape[1] > ctx.chunk
        whole = [torch.empty(v.shape, dtype=v.dtype, device=v.device) for v in given]
        of_skips, of_state = [], None
        for part, state in zip(reversed(ctx.pieces), reversed(states), strict=True):
            of_part = _Factors(*(v[:, part] for v in given), state, ctx.chunk, carries)
            *found, of_skip, of_state = of_part.back(grad[:, part], y[:, part], skip, of_state)
            for v, value in zip(whole, found, strict=True):
                v[:, part] = value
            of_skips.append(of_skip)
        return *whole, None if skip is None else sum(of_skips[1:], of_skips[0]), None


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

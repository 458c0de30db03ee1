"""The state-space-dual scan of Mamba-2 in plain torch: the recurrence as matrix products over chunks.

For every head, with a scalar decay a_t = exp(Δ_t A) and a state of shape (headdim, d_state),

    h_t = a_t h_{t−1} + Δ_t x_t B_tᵀ,    y_t = h_t C_t + D x_t.

Inside a chunk that is a masked matrix product (quadratic in the chunk), between chunks a short recurrence of states.
One chunk is enough for the short sequences of factorised blocks; long ones are linear in time and memory.

Source: Dao and Gu 2024, Transformers are SSMs (arXiv:2405.21060).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

__all__ = ["decay_between", "scan_heads", "ssd_scan", "ssd_step_by_step"]

CHUNK = 64
"""Length of a chunk: below about 32 the recurrence over chunks dominates, above about 128 the quadratic part."""

LOG2E = 1 / math.log(2)
"""Exponents are kept in powers of two: torch's exp2 takes less than half the time of its exp."""

NO_STEP = 1e-30
"""What a step of size 0 counts as, because its logarithm is taken: too little to be seen beside anything."""


def ssd_scan(
    x: torch.Tensor, dt: torch.Tensor, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, chunk: int = CHUNK
) -> torch.Tensor:
    """Scan sequences of any length.

    Parameters
    ----------
    x
        (batch, length, heads, headdim).
    dt
        (batch, length, heads), step sizes, positive.
    a
        (heads,), negative.
    b, c
        (batch, length, d_state), shared by all heads.
    chunk
        Length of a chunk; changes rounding only.

    Returns
    -------
    y
        (batch, length, heads, headdim).
    """
    return scan_heads(x.transpose(1, 2), dt.transpose(1, 2), (dt * a).transpose(1, 2), b, c, None, chunk).transpose(
        1, 2
    )


def scan_heads(
    x: torch.Tensor,
    dt: torch.Tensor,
    log_decay: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    skip: torch.Tensor | None = None,
    chunk: int = CHUNK,
) -> torch.Tensor:
    """Scan, heads before time.

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
    """The scan with its gradients written out: autograd would keep and walk through some thirty arrays of this size.

    With t the sum of log decays from the start of the chunk, position i draws on position j ≤ i by
    w_ij = C_i·B_j exp(t_i − t_j) Δ_j, and by D more on itself; on the state before the chunk by C_i exp(t_i).
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
        batch, heads, length, headdim = x.shape
        n, d_state = length // chunk, b.shape[-1]
        x = x.reshape(batch, heads, n, chunk, headdim)
        b, c = b.reshape(batch, 1, n, chunk, d_state), c.reshape(batch, 1, n, chunk, d_state)
        total = log_decay.reshape(batch, heads, n, chunk).cumsum(-1).mul_(LOG2E)
        step = dt.reshape(batch, heads, n, chunk).clamp_min(NO_STEP)
        # Masked before exp: above the diagonal the difference is positive and its exp overflows.
        decay = total[..., :, None] + (step.log2() - total)[..., None, :]
        decay.masked_fill_(_future(total), -torch.inf).exp2_()
        reach = (c @ b.transpose(-1, -2)).to(decay.dtype)
        weights = decay * reach
        if skip is not None:
            weights.diagonal(dim1=-2, dim2=-1).add_(skip[..., None, None])
        y = weights.to(x.dtype) @ x
        start = None
        if n > 1:
            states = x.transpose(-1, -2) @ (b * decay[..., -1, :, None]).to(x.dtype)
            start = _running(states, total[..., -1].exp2())
            y += (c * total[..., None].exp2()).to(x.dtype) @ start.transpose(-1, -2)
        ctx.save_for_backward(x, b, c, total, step, decay, weights, start)
        ctx.has_skip = skip is not None
        return y.view(batch, heads, length, headdim)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of all but the chunk."""
        x, b, c, total, step, decay, weights, start = ctx.saved_tensors
        batch, heads, n, chunk, headdim = x.shape
        grad = grad.reshape(x.shape)
        of_x = weights.to(x.dtype).transpose(-1, -2) @ grad
        of_weights = (grad @ x.transpose(-1, -2)).to(decay.dtype)
        of_skip = of_weights.diagonal(dim1=-2, dim2=-1).sum((-1, -2)) if ctx.has_skip else None
        of_weights *= decay
        of_reach = of_weights.sum(1, keepdim=True).to(x.dtype)
        of_b, of_c = of_reach.transpose(-1, -2) @ c, of_reach @ b
        # By their exponents t_i − t_j + log Δ_j: what falls on rows goes to t, on columns to −t and to log Δ.
        of_weights *= (c @ b.transpose(-1, -2)).to(decay.dtype)
        rows, columns = of_weights.sum(-1), of_weights.sum(-2)
        if start is not None:
            to_end, from_start, over = decay[..., -1, :, None], total[..., None].exp2(), total[..., -1].exp2()
            at_start = grad @ start
            rows += (at_start * c).sum(-1) * from_start[..., 0]
            of_c += (at_start * from_start).sum(1, keepdim=True)
            of_start = grad.transpose(-1, -2) @ (c * from_start).to(x.dtype)
            # The state after a chunk is used by all chunks that come later.
            of_states = _running(of_start.flip(2), over.flip(2)).flip(2)
            of_x += (b * to_end).to(x.dtype) @ of_states.transpose(-1, -2)
            at_end = x @ of_states
            of_b += (at_end * to_end).sum(1, keepdim=True)
            ends = (at_end * b).sum(-1) * to_end[..., 0]
            columns += ends
            rows[..., -1] += ends.sum(-1) + (of_states * start).sum((-1, -2)) * over
        of_log_decay = (rows - columns).flip(-1).cumsum(-1).flip(-1)
        length = n * chunk
        return (
            of_x.view(batch, heads, length, headdim),
            (columns / step).view(batch, heads, length),
            of_log_decay.view(batch, heads, length),
            of_b.view(batch, length, -1),
            of_c.view(batch, length, -1),
            of_skip,
            None,
        )


def _running(states: torch.Tensor, over: torch.Tensor) -> torch.Tensor:
    """Return what has come together before every chunk: (batch, heads, n, headdim, d_state), zeros at the first.

    Parameters
    ----------
    states
        (batch, heads, n, headdim, d_state), what each chunk adds.
    over
        (batch, heads, n), what each chunk leaves of what came before it.
    """
    start = torch.empty_like(states)
    start[:, :, 0] = 0
    for k in range(1, states.shape[2]):
        torch.addcmul(
            states[:, :, k - 1], over[:, :, k - 1, None, None].to(states.dtype), start[:, :, k - 1], out=start[:, :, k]
        )
    return start


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

"""The state-space-dual scan of Mamba-2 in plain torch: the recurrence as matrix products over chunks.

For every head, with a scalar decay a_t = exp(Δ_t A) and a state of shape (headdim, d_state),

    h_t = a_t h_{t−1} + Δ_t x_t B_tᵀ,    y_t = h_t C_t.

Inside a chunk that is a masked matrix product (quadratic in the chunk), between chunks a short recurrence of states.
One chunk is enough for the short sequences of factorised blocks; long ones are linear in time and memory.

Source: Dao and Gu 2024, Transformers are SSMs (arXiv:2405.21060).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

__all__ = ["decay_between", "ssd_scan", "ssd_step_by_step"]

CHUNK = 64
"""Length of a chunk: below about 32 the recurrence over chunks dominates, above about 128 the quadratic part."""


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
    length = x.shape[1]
    if length <= chunk:
        return _one_chunk(x, dt, a, b, c)
    missing = -length % chunk
    if missing:
        # Steps of size 0 at the end change no state and are cut off again.
        x, b, c = F.pad(x, (0, 0, 0, 0, 0, missing)), F.pad(b, (0, 0, 0, missing)), F.pad(c, (0, 0, 0, missing))
        dt = F.pad(dt, (0, 0, 0, missing))
    return _many_chunks(x, dt, a, b, c, chunk)[:, :length]


def decay_between(log_decay: torch.Tensor) -> torch.Tensor:
    """Return (…, length, length) exp of the sum of log decays from after column j up to row i; 0 above the diagonal."""
    total = log_decay.cumsum(-1)
    length = log_decay.shape[-1]
    future = torch.ones(length, length, dtype=torch.bool, device=log_decay.device).triu(1)
    # Masked before exp: above the diagonal the difference is positive and its exp overflows, also in the gradient.
    # In place: three arrays of this size instead of one are what limits long sequences.
    return (total[..., :, None] - total[..., None, :]).masked_fill_(future, -torch.inf).exp_()


def _one_chunk(x: torch.Tensor, dt: torch.Tensor, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    decay = decay_between((dt * a).transpose(1, 2))  # (batch, heads, length, length)
    weights = (c @ b.transpose(1, 2))[:, None] * decay
    u = (x * dt[..., None]).transpose(1, 2)  # (batch, heads, length, headdim)
    return (weights @ u).transpose(1, 2)


def _many_chunks(
    x: torch.Tensor, dt: torch.Tensor, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, chunk: int
) -> torch.Tensor:
    batch, length, heads, headdim = x.shape
    n, d_state = length // chunk, b.shape[-1]
    log_decay = (dt * a).view(batch, n, chunk, heads).permute(0, 1, 3, 2)  # (batch, n, heads, chunk)
    total = log_decay.cumsum(-1)
    u = (x * dt[..., None]).view(batch, n, chunk, heads, headdim).transpose(2, 3)  # (batch, n, heads, chunk, headdim)
    b, c = b.view(batch, n, 1, chunk, d_state), c.view(batch, n, 1, chunk, d_state)
    inside = ((c @ b.transpose(-1, -2)) * decay_between(log_decay)) @ u
    # State at the end of each chunk, from that chunk's inputs alone; decays multiply the narrow side, b and c.
    to_end = (total[..., -1:] - total).exp()[..., None]
    states = u.transpose(-1, -2) @ (b * to_end)  # (batch, n, heads, headdim, d_state)
    # Recurrence over chunks, as one small matrix product: states at the start of every chunk.
    over = decay_between(F.pad(total[..., -1].transpose(1, 2), (1, 0)))[
        :, :, :-1, 1:
    ]  # (batch, heads, n, n), from end of j to start of i
    start = torch.einsum("bhij,bjhps->bihps", over.tril(-1), states)
    before = (c * total.exp()[..., None]) @ start.transpose(-1, -2)
    return (inside + before).transpose(2, 3).reshape(batch, length, heads, headdim)


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

"""The selective scan of Mamba-1 in plain torch: every channel has its own decays, so it is no matrix product.

For every channel, with a state of d_state values,

    h_t = exp(Δ_t A) ⊙ h_{t−1} + Δ_t x_t B_t,    y_t = h_t · C_t.

Step after step, all sequences and channels at once: a state that stays in the processor's cache is worked on faster
than a parallel scan can move the states of all steps through memory. On the way back a segment of steps is computed
again from its first state, so that memory holds one segment.

Source: Gu and Dao 2023, Mamba: linear-time sequence modeling with selective state spaces (arXiv:2312.00752).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from neurobench_backbones._ssd import LOG2E

__all__ = ["selective_scan", "selective_scan_step_by_step"]

SEGMENT = 32
"""Steps between states that are kept for the way back."""


def selective_scan(
    x: torch.Tensor, dt: torch.Tensor, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor
) -> torch.Tensor:
    """Scan sequences of any length.

    Parameters
    ----------
    x, dt
        (length, batch, channels) signal, and step sizes, positive.
    a
        (channels, d_state), negative.
    b, c
        (length, batch, d_state), shared by all channels.

    Returns
    -------
    y
        (length, batch, channels).
    """
    y: torch.Tensor = _SelectiveScan.apply(dt * x, dt.contiguous(), a, b.contiguous(), c.contiguous())
    return y


class _SelectiveScan(torch.autograd.Function):
    """The scan with its gradients written out, from Δ x instead of x."""

    @staticmethod
    def forward(
        ctx: Any, u: torch.Tensor, dt: torch.Tensor, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor
    ) -> torch.Tensor:
        """Scan from a state of zeros."""
        length, batch, channels = u.shape
        power = a * LOG2E
        state, decay = (u.new_zeros(batch, channels, a.shape[1]) for _ in range(2))
        y = torch.empty_like(u)
        starts = []
        for t in range(length):
            if t % SEGMENT == 0:
                starts.append(state.clone())
            torch.mul(dt[t][:, :, None], power, out=decay)
            state.mul_(decay.exp2_()).addcmul_(u[t][:, :, None], b[t][:, None])
            torch.bmm(state, c[t][:, :, None], out=y[t][:, :, None])
        ctx.save_for_backward(u, dt, a, b, c, torch.stack(starts))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the gradients of all inputs."""
        u, dt, a, b, c, starts = ctx.saved_tensors
        (length, batch, channels), power = u.shape, a * LOG2E
        of_u, of_dt, of_b, of_c = (torch.empty_like(v) for v in (u, dt, b, c))
        of_a, of_state, moved = (u.new_zeros(batch, channels, a.shape[1]) for _ in range(3))
        of_y = of_y.contiguous()
        states = u.new_empty(SEGMENT + 1, *of_state.shape)
        decays = u.new_empty(SEGMENT, *of_state.shape)
        for segment in reversed(range(len(starts))):
            low = segment * SEGMENT
            n = min(SEGMENT, length - low)
            states[0] = starts[segment]
            for i in range(n):
                t = low + i
                torch.mul(dt[t][:, :, None], power, out=decays[i]).exp2_()
                torch.mul(states[i], decays[i], out=states[i + 1]).addcmul_(u[t][:, :, None], b[t][:, None])
            for i in reversed(range(n)):
                t = low + i
                of_state.addcmul_(of_y[t][:, :, None], c[t][:, None])
                torch.bmm(of_y[t][:, None], states[i + 1], out=of_c[t][:, None])
                torch.bmm(of_state, b[t][:, :, None], out=of_u[t][:, :, None])
                torch.bmm(u[t][:, None], of_state, out=of_b[t][:, None])
                # What reached the state before, times that state: the gradient of the decay's exponent.
                torch.mul(of_state.mul_(decays[i]), states[i], out=moved)
                of_a.addcmul_(moved, dt[t][:, :, None])
                torch.sum(moved.mul_(a), -1, out=of_dt[t])
        return of_u, of_dt, of_a.sum(0), of_b, of_c


def selective_scan_step_by_step(
    x: torch.Tensor, dt: torch.Tensor, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor
) -> torch.Tensor:
    """Return the same by the definition, with torch's own gradients: for tests and benchmarks."""
    state = x.new_zeros(*x.shape[1:], a.shape[1])
    outputs = []
    for t in range(len(x)):
        state = state * (dt[t][..., None] * a).exp() + (dt[t] * x[t])[..., None] * b[t][:, None]
        outputs.append((state * c[t][:, None]).sum(-1))
    return torch.stack(outputs)

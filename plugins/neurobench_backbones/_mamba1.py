"""Mamba-1 in plain torch, parameters named and shaped as mamba-ssm's.

Source: Gu and Dao 2023, Mamba: linear-time sequence modeling with selective state spaces (arXiv:2312.00752).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from neurobench_backbones._selective_scan import selective_scan

D_CONV = 4


def first_dt_bias(n: int) -> torch.Tensor:
    """Return (n,) biases of Δ, of which softplus is the step that training starts from: .05 to .5, log-uniform.

    The usual 1e-3 to 1e-1 suits thousands of tokens: over the tens of units and patches here so little would reach the
    state that a token sees itself only, and a hidden one nothing.
    """
    low, high = math.log(0.05), math.log(0.5)
    dt = torch.exp(torch.rand(n) * (high - low) + low)
    return dt + torch.log(-torch.expm1(-dt))


class Mamba1(nn.Module):
    """One causal Mamba-1 mixer; its state dict moves to and from ``mamba_ssm.Mamba`` of the same sizes.

    On CUDA, where mamba-ssm is installed, its kernel does the scan; elsewhere :func:`selective_scan`.

    Parameters
    ----------
    d_model, d_state, expand
        As mamba-ssm's; a convolution over four samples, Δ of rank d_model / 16.
    """

    def __init__(self, d_model: int, d_state: int = 16, expand: int = 1) -> None:
        super().__init__()
        self.d_inner, self.d_state, self.dt_rank = expand * d_model, d_state, math.ceil(d_model / 16)
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=False)
        self.conv1d = nn.Conv1d(self.d_inner, self.d_inner, D_CONV, groups=self.d_inner, padding=D_CONV - 1)
        self.x_proj = nn.Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner)
        dt_bias = first_dt_bias(self.d_inner)
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        self.dt_proj.bias.data.copy_(dt_bias)
        self.A_log = nn.Parameter(torch.log(torch.arange(1, d_state + 1).float() / 4).repeat(self.d_inner, 1))
        self.D = nn.Parameter(torch.ones(self.d_inner))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)

    @classmethod
    def of_width(cls, width: int) -> Mamba1:
        """Return the mixer of a backbone of this width."""
        return cls(width)

    @staticmethod
    def together(mixers: Sequence[Mamba1], tokens: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        """Return what each mixer makes of its own part of (mixers, sequences, length, d_model) tokens; same shape."""
        masks = [None] * len(mixers) if valid is None else list(valid)
        return torch.stack([m(t, v) for m, t, v in zip(mixers, tokens, masks, strict=True)])

    def forward(self, tokens: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        """Mix (sequences, length, d_model) causally; steps that are not valid leave the state as it is."""
        return self._mixed(tokens.transpose(0, 1), None if valid is None else valid.T).transpose(0, 1)

    def _mixed(self, tokens: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        gate, x, dt, a, b, c = self._projected(tokens, valid)
        mixed: torch.Tensor = self.out_proj((self._scan(x, dt, a, b, c) + x * self.D) * F.silu(gate))
        return mixed

    def weights(self, tokens: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        """Return (sequences, length, length) how much each step's output draws on each input, the mean over channels.

        |Σ_n C_t B_s · decay from s to t| · Δ_s, and |D| of the step itself: all that the scan does. The convolution
        before it, over four steps, and the gate after it are left out.
        """
        _, _, dt, a, b, c = self._projected(tokens.transpose(0, 1), None if valid is None else valid.T)
        length, sequences, channels = dt.shape
        total = dt.cumsum(0)
        pairs = c.transpose(0, 1)[:, :, None] * b.transpose(0, 1)[:, None]
        future = torch.ones(length, length, dtype=torch.bool, device=dt.device).triu(1)
        drawn = dt.new_zeros(sequences, length, length)
        for i in range(channels):
            # Channel after channel: all at once would take the memory of a thousand windows.
            apart = (total[:, None, :, i] - total[None, :, :, i]).permute(2, 0, 1)
            decay = (apart[..., None] * a[i]).masked_fill(future[..., None], -torch.inf).exp()
            drawn += (pairs * decay).sum(-1).abs() * dt[:, :, i].T[:, None]
        return drawn / channels + torch.eye(length, device=dt.device) * self.D.abs().mean()

    def _projected(self, tokens: torch.Tensor, valid: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """Return the gate, and x, Δ, A, B and C of the scan, of (length, sequences, d_model) tokens."""
        x, gate = self.in_proj(tokens).chunk(2, -1)
        x = F.silu(self._convolved(x))
        dt, b, c = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], -1)
        dt = F.softplus(self.dt_proj(dt))
        if valid is not None:
            dt = dt * valid[..., None]
        return gate, x, dt, -torch.exp(self.A_log.float()), b, c

    def _convolved(self, x: torch.Tensor) -> torch.Tensor:
        """Return the causal depthwise convolution as shifted products: torch's own is many times slower on a CPU."""
        padded = F.pad(x, (0, 0, 0, 0, D_CONV - 1, 0))
        taps = self.conv1d.weight[:, 0].T
        out = self.conv1d.bias + padded[: len(x)] * taps[0]
        for lag in range(1, D_CONV):
            out = out + padded[lag : lag + len(x)] * taps[lag]
        return out

    def _scan(
        self, x: torch.Tensor, dt: torch.Tensor, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor
    ) -> torch.Tensor:
        # Autocast gives Δ in single precision and the others in bfloat16, and neither form of the scan takes both.
        kind = functools.reduce(torch.promote_types, (v.dtype for v in (x, dt, a, b, c)))
        x, dt, a, b, c = (v.to(kind) for v in (x, dt, a, b, c))
        if x.is_cuda:
            try:
                # mamba_ssm imports compiled kernels at its top: only here, and only where there is a GPU.
                from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
            except ImportError:
                return selective_scan(x, dt, a, b, c)
            # The kernel takes (sequences, channels, length).
            x, dt, b, c = (v.permute(1, 2, 0) for v in (x, dt, b, c))
            scanned: torch.Tensor = selective_scan_fn(x, dt, a, b, c)
            return scanned.permute(2, 0, 1)
        return selective_scan(x, dt, a, b, c)

"""Mamba-2 in plain torch, parameters named and shaped as mamba-ssm's, and a bidirectional pass of it.

Source: Dao and Gu 2024, Transformers are SSMs (arXiv:2405.21060). What an output draws on each input (``weights``):
Ali, Zimerman and Wolf 2024, The hidden attention of Mamba models (arXiv:2403.01590).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from neurobench import feedforward_width
from neurobench_backbones._ssd import decay_between, ssd_scan

D_CONV = 4


class GatedRMSNorm(nn.Module):
    """Root-mean-square norm of ``y · silu(z)``."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """Gate, then normalise."""
        gated = y * F.silu(z)
        return gated * torch.rsqrt(gated.square().mean(-1, keepdim=True) + self.eps) * self.weight


class _CausalConvolution(torch.autograd.Function):
    """Depthwise causal convolution as shifted products.

    Torch's own is many times slower on a CPU, and its autograd fills and copies a padded gradient for every shift.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Convolve (batch, length, channels) with (channels, taps); the last tap meets the present."""
        ctx.save_for_backward(x, weight)
        out = torch.addcmul(bias, x, weight[:, -1])
        for lag in range(1, min(weight.shape[1], x.shape[1])):
            out[:, lag:].addcmul_(x[:, :-lag], weight[:, -1 - lag])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the gradients of x, weight and bias."""
        x, weight = ctx.saved_tensors
        of_x, of_weight = grad * weight[:, -1], torch.zeros_like(weight)
        of_weight[:, -1] = (grad * x).sum((0, 1))
        for lag in range(1, min(weight.shape[1], x.shape[1])):
            of_x[:, :-lag].addcmul_(grad[:, lag:], weight[:, -1 - lag])
            of_weight[:, -1 - lag] = (grad[:, lag:] * x[:, :-lag]).sum((0, 1))
        return of_x, of_weight, grad.sum((0, 1))


class Mamba2(nn.Module):
    """One causal Mamba-2 mixer; its state dict moves to and from ``mamba_ssm.Mamba2`` of the same sizes.

    On CUDA, where mamba-ssm is installed, its kernels do the scan; elsewhere :func:`ssd_scan`.

    Parameters
    ----------
    d_model, d_state, headdim, expand
        As mamba-ssm's; one group, a convolution over four samples.
    """

    def __init__(self, d_model: int, d_state: int = 16, headdim: int = 16, expand: int = 1) -> None:
        super().__init__()
        self.d_inner, self.d_state, self.headdim = expand * d_model, d_state, headdim
        self.n_heads = self.d_inner // headdim
        n_conv = self.d_inner + 2 * d_state
        self.in_proj = nn.Linear(d_model, self.d_inner + n_conv + self.n_heads, bias=False)
        self.conv1d = nn.Conv1d(n_conv, n_conv, D_CONV, groups=n_conv, padding=D_CONV - 1)
        # Steps start between .05 and .5, log-uniform; softplus(dt_bias) is that step. The usual 1e-3 to 1e-1 suits
        # thousands of tokens: over the tens of units and patches here so little would reach the state that a token
        # sees itself only, and a hidden one nothing.
        low, high = math.log(0.05), math.log(0.5)
        dt = torch.exp(torch.rand(self.n_heads) * (high - low) + low)
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))
        self.A_log = nn.Parameter(torch.log(torch.empty(self.n_heads).uniform_(0.25, 4)))
        self.D = nn.Parameter(torch.ones(self.n_heads))
        self.norm = GatedRMSNorm(self.d_inner)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)

    def forward(self, tokens: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        """Mix (sequences, length, d_model) causally; steps that are not valid leave the state as it is."""
        z, heads, dt, a, b, c = self._projected(tokens, valid)
        y = self._scan(heads, dt, a, b, c) + heads * self.D[:, None]
        mixed: torch.Tensor = self.out_proj(self.norm(y.flatten(-2), z))
        return mixed

    def weights(self, tokens: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        """Return (sequences, length, length) how much each step's output draws on each input, the mean over heads.

        |C_t · B_s| · decay from s to t · Δ_s, and |D| of the step itself: all that the scan does. The convolution
        before it, over four steps, and the gate after it are left out.
        """
        _, _, dt, a, b, c = self._projected(tokens, valid)
        reach = (c @ b.transpose(1, 2)).abs()
        steps = dt.transpose(1, 2)
        drawn = reach * (decay_between(steps * a[:, None]) * steps[:, :, None]).mean(1)
        return drawn + torch.eye(tokens.shape[1], device=tokens.device) * self.D.abs().mean()

    def _projected(self, tokens: torch.Tensor, valid: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """Return the gate, and x (by heads), Δ, A, B and C of the scan."""
        z, xbc, dt = self.in_proj(tokens).split([self.d_inner, self.d_inner + 2 * self.d_state, self.n_heads], -1)
        x, b, c = F.silu(self._convolve(xbc)).split([self.d_inner, self.d_state, self.d_state], -1)
        dt = F.softplus(dt + self.dt_bias)
        if valid is not None:
            dt = dt * valid[..., None]
        return z, x.unflatten(-1, (self.n_heads, self.headdim)), dt, -torch.exp(self.A_log.float()), b, c

    def _convolve(self, xbc: torch.Tensor) -> torch.Tensor:
        weight, bias = self.conv1d.weight[:, 0], self.conv1d.bias
        convolved: torch.Tensor = _CausalConvolution.apply(xbc, weight, bias)
        return convolved

    def _scan(
        self, x: torch.Tensor, dt: torch.Tensor, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor
    ) -> torch.Tensor:
        if x.is_cuda:
            try:
                # mamba_ssm imports compiled kernels at its top: only here, and only where there is a GPU.
                from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
            except ImportError:
                return ssd_scan(x, dt, a, b, c)
            scanned: torch.Tensor = mamba_chunk_scan_combined(x, dt, a, b[:, :, None], c[:, :, None], chunk_size=64)
            return scanned
        return ssd_scan(x, dt, a, b, c)


class MambaPass(nn.Module):
    """A forward and a backward Mamba-2 mixer, their sum, and a feed-forward block over (sequences, length, width).

    Parameters
    ----------
    width
        Width of a token.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        headdim = min(32, width // 2)
        self.norm = nn.LayerNorm(width)
        self.forward_mixer = Mamba2(width, headdim=headdim)
        self.backward_mixer = Mamba2(width, headdim=headdim)
        self.feedforward_norm = nn.LayerNorm(width)
        hidden = feedforward_width(width, sum(p.numel() for p in self.parameters()))
        self.feedforward = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, tokens: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Mix in both directions; tokens that are not valid influence none."""
        mask = None if bool(valid.all()) else valid
        x = self.norm(tokens) if mask is None else self.norm(tokens) * mask[..., None]
        reverse = self.backward_mixer(x.flip(1), None if mask is None else mask.flip(1)).flip(1)
        tokens = tokens + self.forward_mixer(x, mask) + reverse
        tokens = tokens + self.feedforward(self.feedforward_norm(tokens))
        return tokens if mask is None else tokens * mask[..., None]

    def weights(self, tokens: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Return (sequences, length, length) how much each place draws on each, both directions: rows sum to 1."""
        x = self.norm(tokens) * valid[..., None]
        backward = self.backward_mixer.weights(x.flip(1), valid.flip(1)).flip(1, 2)
        drawn = self.forward_mixer.weights(x, valid) + backward
        return drawn / drawn.sum(-1, keepdim=True)

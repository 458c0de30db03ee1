"""Structured global convolution along time and sliding-window attention across units, as CodeBrain combines them.

Source: Ma et al. 2025, CodeBrain (arXiv:2506.09110); the convolution: Li et al. 2022, What makes convolutional models
great on long sequence modeling? (arXiv:2210.09298).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from neurobench import BackboneSpec, TokenBackbone, TokenTable, feedforward_width, hookimpl
from neurobench_backbones._attention import AttentionPass
from neurobench_backbones._grid import GridBackbone

TAPS = 4
"""Parameters of the kernel at every scale, each direction and channel."""

DECAY = 0.5
"""Of the kernel from one scale to the next, which is twice as long."""


class GlobalConvPass(nn.Module):
    """A convolution as long as the window, in both directions, and a feed-forward block.

    Scale after scale, each twice as long as the one before, the kernel is a few parameters stretched by interpolation
    and damped: near lags are told apart one by one, far ones in strokes, and parameters grow with the logarithm of the
    window's length.

    Parameters
    ----------
    width
        Width of a token.
    n_patches
        Most patches of a window.
    """

    def __init__(self, width: int, n_patches: int) -> None:
        super().__init__()
        n_scales = 1
        while TAPS * (2**n_scales - 1) < n_patches:
            n_scales += 1
        self.n_patches = n_patches
        self.norm = nn.LayerNorm(width)
        # Onwards and back.
        self.scales = nn.ParameterList(nn.Parameter(torch.randn(2, width, TAPS) * 0.3) for _ in range(n_scales))
        self.skip = nn.Parameter(torch.ones(width))
        self.gate = nn.Linear(width, 2 * width)
        self.feedforward_norm = nn.LayerNorm(width)
        hidden = feedforward_width(width, sum(p.numel() for p in self.parameters()))
        self.feedforward = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def kernels(self) -> torch.Tensor:
        """Return (2, width, patches): what a token draws on itself and those before it, and on those after it."""
        # The last scale ends with the window.
        lengths = [min(TAPS * 2**k, self.n_patches - TAPS * (2**k - 1)) for k in range(len(self.scales))]
        stretched = [
            F.interpolate(p, size=length, mode="linear", align_corners=True) * DECAY**k
            for k, (p, length) in enumerate(zip(self.scales, lengths, strict=True))
        ]
        return torch.cat(stretched, -1)

    def convolve(self, x: torch.Tensor) -> torch.Tensor:
        """Return (sequences, patches, width) every token's sum over all patches."""
        n = x.shape[1]
        onwards, back = self.kernels()[..., :n].float().unbind(0)
        # One circular kernel of twice the length: lag 0 of either is at the start, later patches come round the end.
        both = F.pad(onwards, (0, n)) + F.pad(back, (0, n)).flip(-1).roll(1, -1)
        spectrum = torch.fft.rfft(x.float(), 2 * n, dim=1) * torch.fft.rfft(both, dim=-1).T
        summed: torch.Tensor = torch.fft.irfft(spectrum, 2 * n, dim=1)[:, :n]
        return summed

    def forward(self, tokens: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        """Mix (sequences, patches, width); tokens that are not valid influence none. None: all are."""
        x = self.norm(tokens) if valid is None else self.norm(tokens) * valid[..., None]
        mixed = F.gelu(self.convolve(x) + self.skip * x)
        tokens = tokens + F.glu(self.gate(mixed.to(tokens.dtype)), -1)
        tokens = tokens + self.feedforward(self.feedforward_norm(tokens))
        return tokens if valid is None else tokens * valid[..., None]

    def weights(self, tokens: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Return (sequences, patches, patches) size of the kernel at every lag, the mean over channels: rows sum to 1.

        What is done with the sum afterwards, the gate, is left out.
        """
        n = tokens.shape[1]
        lag = torch.arange(n, device=tokens.device)
        lag = lag[:, None] - lag
        onwards, back = self.kernels()[..., :n].unbind(0)
        kernel = torch.where(lag > 0, onwards[:, lag.clamp(min=0)], back[:, (-lag).clamp(min=0)])
        kernel = torch.where(lag == 0, kernel + (onwards[:, :1] + self.skip[:, None])[..., None], kernel)
        drawn = kernel.abs().mean(0) * valid[:, None]
        # Of a token that is not valid nothing is asked, and a row of zeros cannot be divided.
        drawn = drawn + torch.diag_embed((~valid).to(drawn.dtype))
        return drawn / drawn.sum(-1, keepdim=True)


class WindowPass(AttentionPass):
    """Self-attention among neighbours, and a feed-forward block: timm's block with a band of keys."""

    def near(self, band: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        """Return (sequences, units, units) bool who may be attended to; always oneself, as softmax needs somebody."""
        own = torch.eye(band.shape[-1], dtype=torch.bool, device=band.device)
        return band if valid is None else (band & valid[:, None]) | own

    def among(self, tokens: torch.Tensor, valid: torch.Tensor | None, band: torch.Tensor) -> torch.Tensor:
        """Mix (sequences, units, width) tokens within a (sequences, units, units) band."""
        mixed: torch.Tensor = self.block(tokens, attn_mask=self.near(band, valid)[:, None])
        return mixed if valid is None else mixed * valid[..., None]

    def weights_among(self, tokens: torch.Tensor, valid: torch.Tensor, band: torch.Tensor) -> torch.Tensor:
        """Return (sequences, units, units) attention, the mean over heads: rows sum to 1."""
        return self.shares(tokens, self.near(band, valid)[:, None])


@dataclass(frozen=True, eq=False)
class InBand:
    """A pass among neighbours with the (batch · patches, units, units) band of a batch: a pass like others."""

    across: WindowPass
    band: torch.Tensor

    def __call__(self, tokens: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        """Mix (sequences, units, width)."""
        return self.across.among(tokens, valid, self.band)

    def weights(self, tokens: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Return (sequences, units, units) attention within the band."""
        return self.across.weights_among(tokens, valid, self.band)


class GlobalConv(GridBackbone):
    """Every layer attends among neighbouring units, then convolves each unit's whole window.

    Parameters
    ----------
    window
        Neighbours on either side, in the order of the token table, that a unit attends to.
    """

    name = "global_conv"
    summary = "attention among neighbouring units, then a structured global convolution along time (window=8)"
    reference = "arXiv:2506.09110; arXiv:2210.09298"

    def __init__(self, spec: BackboneSpec, *, window: int = 8) -> None:
        super().__init__(spec)
        self.window = window
        self.layers = nn.ModuleList(
            nn.ModuleList([WindowPass(spec.width), GlobalConvPass(spec.width, spec.n_patches)])
            for _ in range(spec.n_layers)
        )

    @classmethod
    def impossible(cls, spec: BackboneSpec, parameters: Mapping[str, Any]) -> str:
        """Return why there is no such window, or an empty string."""
        return "" if parameters["window"] >= 1 else f"window must be 1 or more, not {parameters['window']}"

    def passes(self, table: TokenTable) -> list[tuple[InBand, nn.Module]]:
        """Return attention that knows who is near in the batch, and convolutions along time."""
        place = torch.arange(table.unit.shape[1], device=table.unit.device)
        near = (place[:, None] - place).abs() <= self.window
        # What stands for no unit (a prompt) has no neighbours: it is near to everybody.
        everywhere = table.unit < 0
        band = near | everywhere[:, None] | everywhere[:, :, None]
        band = band.repeat_interleave(table.valid.shape[2], 0)
        return [(InBand(across, band), along) for across, along in self.layers]


@hookimpl
def register_backbones() -> list[type[TokenBackbone]]:
    """Return the backbone."""
    return [GlobalConv]

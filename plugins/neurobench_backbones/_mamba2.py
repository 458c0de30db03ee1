"""Mamba-2 in plain torch, parameters named and shaped as mamba-ssm's, and a bidirectional pass of it.

Source: Dao and Gu 2024, Transformers are SSMs (arXiv:2405.21060). What an output draws on each input (``weights``):
Ali, Zimerman and Wolf 2024, The hidden attention of Mamba models (arXiv:2403.01590).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from neurobench import feedforward_width
from neurobench_backbones._by_pieces import convolve, convolve_back, inverse_rms, mix_by_pieces
from neurobench_backbones._mamba1 import D_CONV, Mamba1, first_dt_bias
from neurobench_backbones._ssd import chunk_by_factors, decay_between, scan

WHOLE = 16
"""Numbers of float32 in a vector of a CPU."""


class _ScanInputs(torch.autograd.Function):
    """From the input projection to what the gate and the scan take: convolution, SiLU, softplus.

    One node with its gradient written out: autograd would fill and copy a padded gradient for every shift, and one for
    every slice.
    """

    @staticmethod
    def forward(
        ctx: Any,
        projected: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        dt_bias: torch.Tensor,
        valid: torch.Tensor | None,
        d_state: int,
    ) -> tuple[torch.Tensor, ...]:
        """Return the gate, and x, Δ, B and C of the scan.

        Parameters
        ----------
        projected
            (mixers, sequences, length, d_inner + d_inner + 2 d_state + heads or more): z, then x, B and C, then Δ, then
            what counts for nothing.
        weight, bias
            (mixers, d_inner + 2 d_state, taps) and (mixers, d_inner + 2 d_state); the last tap meets the present.
        dt_bias
            (mixers, heads).
        valid
            (mixers, sequences, length) bool; where False the step is 0. None: valid throughout.
        d_state
            Size of a state.

        Returns
        -------
        gate
            (mixers · sequences, length, d_inner).
        x, dt, b, c
            (mixers · sequences, length, heads, headdim), (mixers · sequences, length, heads), and twice
            (mixers · sequences, length, d_state).
        """
        n_heads, n_conv = dt_bias.shape[1], bias.shape[1]
        d_inner = n_conv - 2 * d_state
        z, xbc, dt = projected[..., : d_inner + n_conv + n_heads].split([d_inner, n_conv, n_heads], -1)
        # Channels that do not lie one after the other take several times as long.
        taps = weight.to(projected.dtype).permute(2, 0, 1).contiguous()[:, :, None, None]
        convolved = convolve(xbc, taps, bias.to(projected.dtype)[:, None, None])
        dt = F.softplus(dt + dt_bias[:, None, None])
        if valid is not None:
            dt *= valid[..., None]
        ctx.save_for_backward(projected, convolved, taps, dt)
        x, b, c = (F.silu(v).flatten(0, 1) for v in convolved.split([d_inner, d_state, d_state], -1))
        return F.silu(z).flatten(0, 1), x.unflatten(-1, (n_heads, -1)), dt.flatten(0, 1), b, c

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        of_gate: torch.Tensor,
        of_x: torch.Tensor,
        of_dt: torch.Tensor,
        of_b: torch.Tensor,
        of_c: torch.Tensor,
    ) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of projected, weight, bias and dt_bias."""
        projected, convolved, taps, dt = ctx.saved_tensors
        n_heads, n_conv, d_inner = dt.shape[-1], convolved.shape[-1], of_gate.shape[-1]
        sizes = [d_inner, n_conv, n_heads, projected.shape[-1] - d_inner - n_conv - n_heads]
        z, xbc, *_ = projected.split(sizes, -1)
        of_projected = torch.empty_like(projected)
        of_z, of_xbc, of_raw, of_nothing = of_projected.split(sizes, -1)
        torch.ops.aten.silu_backward(of_gate.view(z.shape), z, grad_input=of_z)
        # Where the step was set to 0, this is 0 as well: softplus' derivative is 1 − exp(−Δ).
        of_steps = of_dt.view_as(dt) * -torch.expm1(-dt)
        of_raw.copy_(of_steps)
        of_nothing.zero_()
        of_convolved = torch.cat((of_x.flatten(-2), of_b, of_c), -1).view(convolved.shape)
        torch.ops.aten.silu_backward(of_convolved, convolved, grad_input=of_convolved)
        of_taps, of_bias = convolve_back(of_convolved, xbc, taps, of_xbc)
        return of_projected, of_taps.permute(1, 2, 0), of_bias, of_steps.sum((1, 2)), None, None


class _GatedNorm(torch.autograd.Function):
    """Root-mean-square norm of y · gate along the last axis, without its weight."""

    @staticmethod
    def forward(ctx: Any, y: torch.Tensor, gate: torch.Tensor, eps: float) -> torch.Tensor:
        """Return what has the shape of y and of the gate; ``eps`` is added to the mean square."""
        normed = y * gate
        inverse = inverse_rms(normed, eps)
        normed *= inverse
        ctx.save_for_backward(y, gate, normed, inverse)
        return normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of y and gate."""
        y, gate, normed, inverse = ctx.saved_tensors
        along = (grad * normed).mean(-1, keepdim=True)
        of_gated = torch.addcmul(grad, normed, along, value=-1).mul_(inverse)
        of_gate = of_gated * y
        return of_gated.mul_(gate), of_gate, None


class Mamba2(nn.Module):
    """One causal Mamba-2 mixer; its state dict moves to and from ``mamba_ssm.Mamba2`` of the same sizes.

    On CUDA, where mamba-ssm is installed, its kernels do the scan; elsewhere :func:`scan`.

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
        self.dt_bias = nn.Parameter(first_dt_bias(self.n_heads))
        self.A_log = nn.Parameter(torch.log(torch.empty(self.n_heads).uniform_(0.25, 4)))
        self.D = nn.Parameter(torch.ones(self.n_heads))
        self.norm = nn.RMSNorm(self.d_inner, eps=1e-5)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)

    @classmethod
    def of_width(cls, width: int) -> Mamba2:
        """Return the mixer of a backbone of this width."""
        return cls(width, headdim=min(32, width // 2))

    @staticmethod
    def together(mixers: Sequence[Mamba2], tokens: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        """Return what each mixer makes of its own part of (mixers, sequences, length, d_model) tokens; same shape."""
        return mix_causally(mixers, tokens, valid)

    def forward(self, tokens: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        """Mix (sequences, length, d_model) causally; steps that are not valid leave the state as it is."""
        return mix_causally([self], tokens[None], None if valid is None else valid[None]).squeeze(0)

    def weights(self, tokens: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        """Return (sequences, length, length) how much each step's output draws on each input, the mean over heads.

        |C_t · B_s| · decay from s to t · Δ_s, and |D| of the step itself: all that the scan does. The convolution
        before it, over four steps, and the gate after it are left out.
        """
        _, _, dt, a, b, c = scan_inputs([self], tokens[None], None if valid is None else valid[None])
        reach, dt = (c @ b.transpose(1, 2)).abs(), dt.transpose(1, 2)
        drawn = reach * (decay_between(dt * a[..., None]) * dt[:, :, None]).mean(1)
        return drawn + torch.eye(tokens.shape[1], device=tokens.device) * self.D.abs().mean()


def scan_inputs(mixers: Sequence[Mamba2], tokens: torch.Tensor, valid: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    """Return the gate, and x, Δ, A, B and C of the scans of several mixers of one shape at once.

    Parameters
    ----------
    mixers
        Each mixes its own part of the tokens.
    tokens
        (mixers, sequences, length, d_model).
    valid
        (mixers, sequences, length) bool; None: valid throughout.

    Returns
    -------
    gate
        (mixers · sequences, length, d_inner).
    x, dt, a, b, c
        As :func:`scan` takes them, mixers · sequences one after the other; a is (mixers · sequences, heads).
    """
    gate, x, dt, b, c = _ScanInputs.apply(
        (tokens.flatten(1, 2) @ _in_projection(mixers).transpose(1, 2)).unflatten(1, tokens.shape[1:3]),
        _stacked([m.conv1d.weight[:, 0] for m in mixers]),
        _stacked([m.conv1d.bias for m in mixers]),
        _stacked([m.dt_bias for m in mixers]),
        valid,
        mixers[0].d_state,
    )
    a = -torch.exp(_stacked([m.A_log for m in mixers])).repeat_interleave(tokens.shape[1], 0)
    return gate, x, dt, a, b, c


def mix_causally(mixers: Sequence[Mamba2], tokens: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    """Return what each mixer makes of its own part of (mixers, sequences, length, d_model) tokens; same shape."""
    skip, eps = _stacked([m.D for m in mixers]), mixers[0].norm.eps
    # The norm's weight is a scale of the output projection's columns: there it costs nothing.
    out = _stacked([m.out_proj.weight * m.norm.weight for m in mixers])
    if tokens.device.type == "cpu" and tokens.shape[2] > mixers[0].headdim:
        a = -torch.exp(_stacked([m.A_log for m in mixers]))
        dt = _steps(mixers, tokens, valid)
        log_decay = (dt * a.detach()[:, None, None]).flatten(0, 1)
        if dt.dtype == tokens.dtype and (chunk := chunk_by_factors(log_decay, mixers[0].headdim)):
            # Channels that do not lie one after the other take several times as long.
            taps = _stacked([m.conv1d.weight[:, 0] for m in mixers]).transpose(1, 2).contiguous()
            bias, dt_bias = (_stacked(v) for v in ([m.conv1d.bias for m in mixers], [m.dt_bias for m in mixers]))
            weights = (_in_projection(mixers), taps, bias, dt_bias, a, skip, out)
            return mix_by_pieces(tokens, dt, weights, eps=eps, chunk=chunk)
    gate, x, dt, a, b, c = scan_inputs(mixers, tokens, valid)
    y = _scan(x, dt, a, b, c, skip.repeat_interleave(tokens.shape[1], 0), len(mixers))
    normed = _GatedNorm.apply(y.flatten(-2), gate, eps)
    mixed: torch.Tensor = (normed.view(len(mixers), -1, normed.shape[-1]) @ out.transpose(1, 2)).view(tokens.shape)
    return mixed


@torch.no_grad()
def _steps(mixers: Sequence[Mamba2], tokens: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    """Return (mixers, sequences, length, heads) Δ, 0 where a step is not valid."""
    weight = _stacked([m.in_proj.weight[-m.n_heads :] for m in mixers])
    raw = (tokens.flatten(1, 2) @ weight.transpose(1, 2)).unflatten(1, tokens.shape[1:3])
    dt = F.softplus(raw + _stacked([m.dt_bias for m in mixers])[:, None, None])
    return dt if valid is None else dt * valid[..., None]


def _in_projection(mixers: Sequence[Mamba2]) -> torch.Tensor:
    weight = _stacked([m.in_proj.weight for m in mixers])
    # Products are up to 1.5 times faster where rows begin at whole vectors.
    return F.pad(weight, (0, 0, 0, -weight.shape[1] % WHOLE))


def _scan(
    x: torch.Tensor,
    dt: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    skip: torch.Tensor,
    mixers: int,
) -> torch.Tensor:
    if x.is_cuda:
        try:
            # mamba_ssm imports compiled kernels at its top: only here, and only where there is a GPU.
            from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
        except ImportError:
            pass
        else:
            return by_kernel(mamba_chunk_scan_combined, x, dt, a, b, c, skip, mixers)
    return scan(x, dt, dt * a[:, None], b, c, skip)


def by_kernel(
    kernel: Callable[..., torch.Tensor],
    x: torch.Tensor,
    dt: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    skip: torch.Tensor,
    mixers: int,
) -> torch.Tensor:
    """Scan as :func:`scan` does by mamba-ssm's kernel: mixers become groups of heads, in one launch for all."""
    x, dt, b, c = (v.unflatten(0, (mixers, -1)) for v in (x, dt, b, c))
    a, skip = (v.unflatten(0, (mixers, -1))[:, 0].flatten() for v in (a, skip))
    heads, steps = x.permute(1, 2, 0, 3, 4).flatten(2, 3), dt.permute(1, 2, 0, 3).flatten(2)
    y = kernel(heads, steps, a, b.permute(1, 2, 0, 3), c.permute(1, 2, 0, 3), chunk_size=64, D=skip)
    return y.unflatten(2, (mixers, -1)).permute(2, 0, 1, 3, 4).flatten(0, 1)


def _stacked(parameters: list[torch.Tensor]) -> torch.Tensor:
    return parameters[0][None] if len(parameters) == 1 else torch.stack(parameters)


class MambaPass(nn.Module):
    """A forward and a backward mixer, their sum, and a feed-forward block over (sequences, length, width).

    Parameters
    ----------
    width
        Width of a token.
    mixer
        Mamba-2 unless it says otherwise.
    hidden
        Of the feed-forward block; None: what is left of the budget of a pass.
    """

    def __init__(self, width: int, mixer: type[Mamba1 | Mamba2] = Mamba2, hidden: int | None = None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.forward_mixer, self.backward_mixer = mixer.of_width(width), mixer.of_width(width)
        self.feedforward_norm = nn.LayerNorm(width)
        if hidden is None:
            hidden = feedforward_width(width, sum(p.numel() for p in self.parameters()))
        self.feedforward = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, tokens: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        """Mix in both directions; tokens that are not valid influence none. None: all are."""
        x = self.norm(tokens) if valid is None else self.norm(tokens) * valid[..., None]
        both = torch.stack((x, x.flip(1)))
        masks = None if valid is None else torch.stack((valid, valid.flip(1)))
        onwards, back = self.forward_mixer.together([self.forward_mixer, self.backward_mixer], both, masks)
        tokens = tokens + onwards + back.flip(1)
        tokens = tokens + self.feedforward(self.feedforward_norm(tokens))
        return tokens if valid is None else tokens * valid[..., None]

    def weights(self, tokens: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Return (sequences, length, length) how much each place draws on each, both directions: rows sum to 1."""
        x = self.norm(tokens) * valid[..., None]
        backward = self.backward_mixer.weights(x.flip(1), valid.flip(1)).flip(1, 2)
        drawn = self.forward_mixer.weights(x, valid) + backward
        return drawn / drawn.sum(-1, keepdim=True)

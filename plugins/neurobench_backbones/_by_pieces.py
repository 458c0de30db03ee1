"""Mamba-2 mixers over long sequences on a CPU, piece by piece.

Beyond its matrix products a mixer reads and writes arrays as wide as its signal some sixty times: convolution, gates,
norm, decays. One operation after the other on whole sequences, each of them waits for memory. Here a piece of a
sequence goes through all of them while it is in the cache, in arrays that the next piece uses again; the way back
computes again what is cheap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from neurobench_backbones._ssd import EVERY, Chunks, Decays, parted

__all__ = ["PIECE", "convolve", "convolve_back", "inverse_rms", "mix_by_pieces"]

PIECE = 2**18
"""Numbers of a piece of the signal for one thread: below, starting operations takes longer than memory does."""


# ---------------------------------------------------------------- operations of a mixer, and their gradients


def convolve(
    xbc: torch.Tensor, taps: torch.Tensor, bias: torch.Tensor, before: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the causal convolution of every channel on its own along the steps.

    Torch's own is many times slower on a CPU than shifted products.

    Parameters
    ----------
    xbc
        (…, steps, channels).
    taps, bias
        (taps, …, channels) and (…, channels), as they broadcast; the last tap meets the present.
    before
        (…, at least taps − 1, channels), what comes before; None: zeros.
    """
    convolved = torch.addcmul(bias, xbc, taps[-1])
    for lag in range(1, len(taps)):
        convolved[..., lag:, :].addcmul_(xbc[..., :-lag, :], taps[-1 - lag])
        if before is not None:
            convolved[..., :lag, :].addcmul_(before[..., -lag:, :], taps[-1 - lag])
    return convolved


def convolve_back(
    grad: torch.Tensor,
    xbc: torch.Tensor,
    taps: torch.Tensor,
    of_xbc: torch.Tensor,
    before: torch.Tensor | None = None,
    after: torch.Tensor | None = None,
    product: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Write the gradient of what was convolved; return those of the taps and the bias.

    Parameters
    ----------
    grad, xbc, taps, before
        The gradient of what :func:`convolve` returned, and what it was given.
    of_xbc
        Where to write, shaped as xbc.
    after
        (…, taps − 1 or more, channels), the gradient of the steps that come later; None: zeros.
    product
        Memory to use, shaped as xbc.

    Returns
    -------
    of_taps, of_bias
        (taps, …, channels) and (…, channels), summed over steps and the axis before them.
    """
    if product is None:
        product = torch.empty_like(grad)
    torch.mul(grad, taps[-1], out=of_xbc)
    of_taps = [torch.mul(grad, xbc, out=product).sum((-3, -2))]
    for lag in range(1, len(taps)):
        late, early = grad[..., lag:, :], grad[..., :lag, :]
        of_xbc[..., :-lag, :].addcmul_(late, taps[-1 - lag])
        if after is not None:
            of_xbc[..., -lag:, :].addcmul_(after[..., :lag, :], taps[-1 - lag])
        of_tap = torch.mul(late, xbc[..., :-lag, :], out=product[..., lag:, :]).sum((-3, -2))
        if before is not None:
            of_tap += (early * before[..., -lag:, :]).sum((-3, -2))
        of_taps.append(of_tap)
    return torch.stack(of_taps[::-1]), grad.sum((-3, -2))


def inverse_rms(gated: torch.Tensor, eps: float) -> torch.Tensor:
    """Return one over the root mean square along the last axis, (…, 1)."""
    length = torch.linalg.vector_norm(gated, dim=-1, keepdim=True)
    return length.square_().div_(gated.shape[-1]).add_(eps).rsqrt_()


# ---------------------------------------------------------------- pieces


class _Mixer(NamedTuple):
    """The weights of one mixer, or of several, stacked.

    Parameters
    ----------
    w_in
        (2 d_inner + 2 d_state + heads or more, d_model): to z, x, B and C, Δ, and what counts for nothing.
    taps, bias
        (taps, d_inner + 2 d_state) and (d_inner + 2 d_state,) of the convolution.
    dt_bias, a, skip
        (heads,) what is added to Δ before its softplus, negative A, and D.
    w_out
        (d_model, d_inner), the norm's weight in it.
    """

    w_in: torch.Tensor
    taps: torch.Tensor
    bias: torch.Tensor
    dt_bias: torch.Tensor
    a: torch.Tensor
    skip: torch.Tensor
    w_out: torch.Tensor

    def of(self, mixer: int) -> _Mixer:
        """Return those of one mixer of several."""
        return _Mixer(*(v[mixer] for v in self))

    def zeros(self) -> _Mixer:
        """Return as many numbers, all 0."""
        return _Mixer(*(torch.zeros(v.shape, dtype=v.dtype) for v in self))


class _Kept(NamedTuple):
    """What the way back needs of a piece.

    Parameters
    ----------
    projected
        (sequences, steps, 2 d_inner + 2 d_state), z, x, B and C.
    convolved
        (sequences, steps, d_inner + 2 d_state).
    y
        (sequences, steps, d_inner), of the scan.
    inverse
        (sequences, steps, 1), of the root mean square.
    start
        The states before its chunks; None where none is carried.
    """

    projected: torch.Tensor
    convolved: torch.Tensor
    y: torch.Tensor
    inverse: torch.Tensor
    start: torch.Tensor | None


class _Arrays:
    """The arrays of a piece of one size, which pieces use one after the other: memory that was just used is near.

    Parameters
    ----------
    shape
        (sequences, chunks, chunk, heads, headdim).
    mixer
        What they are for.
    carries, back
        As :class:`Chunks` takes them.
    """

    def __init__(self, shape: tuple[int, ...], mixer: _Mixer, *, carries: bool, back: bool) -> None:
        sequences, n, chunk, heads, headdim = self.shape = shape
        like, d_inner, wide = mixer.w_in, heads * headdim, len(mixer.bias)
        d_state, steps = (wide - d_inner) // 2, (sequences, n * chunk)
        self.sizes = [d_inner, d_state, d_state]
        self.chunks = Chunks(shape, d_state, like, carries=carries, back=back)
        self.gate, self.gated = like.new_empty(*steps, d_inner), like.new_empty(*steps, d_inner)
        self.active = like.new_empty(*steps, wide)
        if back:
            self.of_y, self.of_active = like.new_empty(*steps, d_inner), like.new_empty(*steps, wide)
            self.of_projected = like.new_empty(*steps, len(mixer.w_in))
            self.of_z, self.of_xbc, self.of_raw, of_nothing = self.of_projected.split(
                [d_inner, wide, heads, len(mixer.w_in) - d_inner - wide - heads], -1
            )
            of_nothing.zero_()

    def scanned(self, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return x, B and C of (sequences, steps, channels) as :class:`Chunks` takes them, without a copy."""
        x, b, c = v.split(self.sizes, -1)
        chunk = self.shape[2]
        return x.view(self.shape), b.view(-1, chunk, b.shape[-1]), c.view(-1, chunk, c.shape[-1])

    def activate(self, z: torch.Tensor, convolved: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Fill in the gate, and return x, B and C."""
        torch.ops.aten.silu.out(convolved, out=self.active)
        torch.ops.aten.silu.out(z, out=self.gate)
        return self.scanned(self.active)


@dataclass(frozen=True)
class _Some:
    """Some sequences of one mixer, piece by piece: several sequences make one piece.

    Parameters
    ----------
    mixer
        Its weights.
    tokens, dt
        (sequences, length, d_model) and (sequences, length, heads).
    decays
        Of its scan.
    eps
        Of the norm.
    piece
        Numbers of a piece of the signal.
    """

    mixer: _Mixer
    tokens: torch.Tensor
    dt: torch.Tensor
    decays: Decays
    eps: float
    piece: int

    def pieces(self) -> list[slice]:
        """Return the chunks of every piece."""
        sequences, n, chunk, _ = self.decays.up.shape
        most = max(1, self.piece // (sequences * chunk * self.mixer.w_out.shape[1]))
        return parted(n, most)

    def steps(self, part: slice) -> slice:
        """Return the steps of a piece."""
        chunk = self.decays.up.shape[2]
        return slice(part.start * chunk, part.stop * chunk)

    def arrays(self, part: slice, spare: list[_Arrays], *, back: bool) -> _Arrays:
        """Return the arrays for a piece: those that another one has used, if they fit."""
        sequences, n, chunk, heads = self.decays.up.shape
        shape = (sequences, part.stop - part.start, chunk, heads, self.mixer.w_out.shape[1] // heads)
        for k, arrays in enumerate(spare):
            if arrays.shape == shape:
                return spare.pop(k)
        return _Arrays(shape, self.mixer, carries=n > 1, back=back)

    def mix(self, out: torch.Tensor, spare: list[_Arrays], *, keep: bool) -> list[_Kept]:
        """Write what the mixer makes of them, shaped as the tokens; return what the way back needs, if it is kept."""
        mixer, d_inner = self.mixer, self.mixer.w_out.shape[1]
        # A product with what is turned round already is up to a tenth faster.
        w_in, kept = mixer.w_in[: d_inner + len(mixer.bias)].T.contiguous(), []
        first = before = None
        for part in self.pieces():
            at, arrays = self.steps(part), self.arrays(part, spare, back=False)
            projected = (_flat(self.tokens, at) @ w_in).unflatten(0, (len(out), -1))
            z, xbc = projected[..., :d_inner], projected[..., d_inner:]
            convolved = convolve(xbc, mixer.taps, mixer.bias, before)
            decays = self.decays.part(EVERY, part)
            start, end = arrays.chunks.take(*arrays.activate(z, convolved), decays, first)
            y = torch.empty_like(arrays.gate)
            arrays.chunks.y(mixer.skip[None], y.view(arrays.shape))
            inverse = inverse_rms(torch.mul(y, arrays.gate, out=arrays.gated), self.eps)
            # The norm scales rows: what the projection returns is narrower than what it is given.
            torch.mm(arrays.gated.flatten(0, 1), mixer.w_out.T, out=_flat(out, at)).mul_(inverse.view(-1, 1))
            if keep:
                kept.append(_Kept(projected, convolved, y, inverse, start))
            first, before = end, xbc
            spare.append(arrays)
        return kept

    def back(
        self, kept: Sequence[_Kept], grad: torch.Tensor, of_tokens: torch.Tensor, of: _Mixer, spare: list[_Arrays]
    ) -> None:
        """Write the gradient of the tokens, and add to those of the weights."""
        mixer, d_inner, pieces = self.mixer, self.mixer.w_out.shape[1], self.pieces()
        of_end = after = None
        for k in reversed(range(len(pieces))):
            at, arrays = self.steps(pieces[k]), self.arrays(pieces[k], spare, back=True)
            projected, convolved, y, inverse, start = kept[k]
            z, xbc = projected[..., :d_inner], projected[..., d_inner:]
            arrays.chunks.take_again(*arrays.activate(z, convolved), self.decays.part(EVERY, pieces[k]), start)
            # Output projection, norm, gate.
            of_out, gated = _flat(grad, at) * inverse.view(-1, 1), torch.mul(y, arrays.gate, out=arrays.gated)
            of.w_out.addmm_(of_out.T, gated.flatten(0, 1))
            torch.mm(of_out, mixer.w_out, out=arrays.of_y.flatten(0, 1))
            along = torch.mul(arrays.of_y, gated, out=arrays.of_active[..., :d_inner]).mean(-1, keepdim=True)
            of_gated = arrays.of_y.addcmul_(gated, along.mul_(inverse).mul_(inverse), value=-1)
            torch.ops.aten.silu_backward(torch.mul(of_gated, y, out=gated), z, grad_input=arrays.of_z)
            # Scan.
            of_y, (of_x, *of_bc) = of_gated.mul_(arrays.gate), arrays.scanned(arrays.of_active)
            shaped = (v.view(arrays.shape) for v in (of_y, y))
            of_dt, of_log_decay, *found, of_skip, of_end = arrays.chunks.back(*shaped, mixer.skip[None], of_end, of_x)
            for whole, value in zip(of_bc, found, strict=True):
                whole.copy_(value)
            dt = self.dt[:, at]
            of.a.add_((of_log_decay * dt).sum((0, 1)))
            of.skip.add_(of_skip.sum(0))
            # Where a step was set to 0, this is 0 as well: softplus' derivative is 1 − exp(−Δ).
            arrays.of_raw.copy_(of_dt.addcmul_(of_log_decay, mixer.a).mul_(-torch.expm1(-dt)))
            of.dt_bias.add_(arrays.of_raw.sum((0, 1)))
            # Convolution and input projection.
            of_convolved, active = arrays.of_active, arrays.active
            torch.ops.aten.silu_backward(of_convolved, convolved, grad_input=of_convolved)
            before = kept[k - 1].projected[..., d_inner:] if k else None
            of_taps, of_bias = convolve_back(of_convolved, xbc, mixer.taps, arrays.of_xbc, before, after, active)
            of.taps.add_(of_taps)
            of.bias.add_(of_bias)
            after = of_convolved[:, : len(mixer.taps) - 1].clone()
            of_projected = arrays.of_projected.flatten(0, 1)
            of.w_in.addmm_(of_projected.T, _flat(self.tokens, at))
            torch.mm(of_projected, mixer.w_in, out=_flat(of_tokens, at))
            spare.append(arrays)


def _flat(v: torch.Tensor, at: slice) -> torch.Tensor:
    """Return a view of a piece of (sequences, length, channels): one sequence, or all of several."""
    return v[:, at].view(-1, v.shape[-1])


class _Mix(torch.autograd.Function):
    """Mixers by pieces, with the gradients written out."""

    @staticmethod
    def forward(
        ctx: Any, tokens: torch.Tensor, dt: torch.Tensor, eps: float, chunk: int, keep: bool, *weights: torch.Tensor
    ) -> torch.Tensor:
        """Mix (mixers, sequences, length, d_model) tokens of whole chunks; Δ's gradient goes to what it is made of."""
        # Threads wait for each other after every operation: each has to have more to do.
        n_threads = torch.get_num_threads()
        ctx.how = eps, chunk, PIECE if n_threads == 1 else 2 * n_threads * PIECE
        tokens, out, spare = tokens.contiguous(), tokens.new_empty(tokens.shape), []
        parts = _parts(tokens, dt, _Mixer(*weights), *ctx.how)
        kept = [part.some.mix(part.of(out), spare, keep=keep) for part in parts]
        ctx.n_pieces = [len(pieces) for pieces in kept]
        ctx.save_for_backward(tokens, dt, *weights, *(v for pieces in kept for piece in pieces for v in piece))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of the tokens and the weights."""
        saved = iter(ctx.saved_tensors)
        tokens, dt = next(saved), next(saved)
        mixers = _Mixer(*(next(saved) for _ in _Mixer._fields))
        parts = _parts(tokens, dt, mixers, *ctx.how)
        grad, of_tokens, of, spare = grad.contiguous(), torch.empty_like(tokens), mixers.zeros(), []
        for part, n in zip(parts, ctx.n_pieces, strict=True):
            kept = [_Kept(*(next(saved) for _ in _Kept._fields)) for _ in range(n)]
            part.some.back(kept, part.of(grad), part.of(of_tokens), of.of(part.mixer), spare)
        return of_tokens, None, None, None, None, *of


class _Part(NamedTuple):
    """Which sequences of which mixer, and what is to be done with them."""

    mixer: int
    sequences: slice
    some: _Some

    def of(self, v: torch.Tensor) -> torch.Tensor:
        """Return its part of (mixers, sequences, …)."""
        return v[self.mixer, self.sequences]


def _parts(tokens: torch.Tensor, dt: torch.Tensor, mixers: _Mixer, eps: float, chunk: int, piece: int) -> list[_Part]:
    """Return which sequences go together: as many of a mixer as a piece holds, one if it is longer."""
    n_mixers, n_sequences, length, _ = tokens.shape
    most = max(1, piece // (length * mixers.w_out.shape[2]))
    found = []
    for m in range(n_mixers):
        mixer = mixers.of(m)
        decays = Decays.of(dt[m], dt[m] * mixer.a, chunk)
        for part in parted(n_sequences, most):
            some = _Some(mixer, tokens[m, part], dt[m, part], decays.part(part, EVERY), eps, piece)
            found.append(_Part(m, part, some))
    return found


def mix_by_pieces(
    tokens: torch.Tensor, dt: torch.Tensor, weights: Sequence[torch.Tensor], *, eps: float, chunk: int
) -> torch.Tensor:
    """Return what mixers make of their tokens.

    Parameters
    ----------
    tokens
        (mixers, sequences, length, d_model).
    dt
        (mixers, sequences, length, heads), Δ as it follows from the tokens, 0 where a step is not valid; gradients go
        past it to what it is made of. No chunk may decay by more than factors hold.
    weights
        Mixers in front: w_in (2 d_inner + 2 d_state + heads or more, d_model), to z, x, B and C, Δ, and what counts for
        nothing; taps (taps, d_inner + 2 d_state) and bias (d_inner + 2 d_state,) of the convolution; dt_bias, negative
        A and D (heads,); w_out (d_model, d_inner), the norm's weight in it.
    eps
        Of the norm.
    chunk
        Steps of a chunk of the scan.

    Returns
    -------
    mixed
        (mixers, sequences, length, d_model).
    """
    length = tokens.shape[2]
    if missing := -length % chunk:
        # Steps of size 0 at the end change no state and are cut off again.
        tokens, dt = (F.pad(v, (0, 0, 0, missing)) for v in (tokens, dt))
    mixed: torch.Tensor = _Mix.apply(tokens, dt, eps, chunk, torch.is_grad_enabled(), *weights)
    return mixed[:, :, :length] if missing else mixed

"""The chunked scan is the recurrence; the mixer's weights are mamba-ssm's."""

from __future__ import annotations

import pytest
import torch

from neurobench_backbones._mamba2 import Mamba2
from neurobench_backbones._ssd import ssd_scan, ssd_step_by_step


def inputs(length: int, batch: int = 2, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=dtype).requires_grad_()

    dt = (torch.rand(batch, length, 3, generator=g, dtype=dtype) * 0.5).requires_grad_()
    a = (-torch.rand(3, generator=g, dtype=dtype) * 3 - 0.1).requires_grad_()
    return [normal(batch, length, 3, 4), dt, a, normal(batch, length, 6), normal(batch, length, 6)]


@pytest.mark.parametrize("length", [1, 5, 63, 64, 65, 128, 200, 257])
def test_forward_and_gradients_equal_the_recurrence(length: int) -> None:
    ours, theirs = inputs(length), inputs(length)
    y, reference = ssd_scan(*ours), ssd_step_by_step(*theirs)
    torch.testing.assert_close(y, reference, rtol=1e-10, atol=1e-12)
    y.sin().sum().backward()
    reference.sin().sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-9, atol=1e-11)


def test_single_precision_stays_close_on_long_sequences() -> None:
    y = ssd_scan(*inputs(700, dtype=torch.float32))
    reference = ssd_step_by_step(*(t.double() for t in inputs(700, dtype=torch.float32)))
    assert (y.double() - reference).abs().max() < 1e-4 * reference.abs().max()


@pytest.mark.parametrize("chunk", [4, 16, 64, 300])
def test_the_chunk_changes_nothing(chunk: int) -> None:
    torch.testing.assert_close(ssd_scan(*inputs(150), chunk=chunk), ssd_scan(*inputs(150), chunk=150))


def test_many_short_sequences() -> None:
    values = inputs(10, batch=384)
    torch.testing.assert_close(ssd_scan(*values), ssd_step_by_step(*values), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("size", [1e-8, 50.0])
def test_extreme_steps_neither_overflow_nor_vanish_into_nan(size: float) -> None:
    x, _, a, b, c = inputs(130, dtype=torch.float32)
    dt = torch.full((2, 130, 3), size, requires_grad=True)
    y = ssd_scan(x, dt, a, b, c)
    y.sum().backward()
    assert torch.isfinite(y).all()
    for value in (x, dt, a, b, c):
        assert torch.isfinite(value.grad).all()


def test_weights_are_named_and_shaped_as_in_mamba_ssm() -> None:
    # d_inner = expand · d_model; in_proj gives z, x, B, C, Δ; the convolution runs over x, B and C; one group.
    d_model, d_state, headdim, expand = 64, 16, 32, 2
    d_inner, heads = expand * d_model, expand * d_model // headdim
    shapes = {k: tuple(v.shape) for k, v in Mamba2(d_model, d_state, headdim, expand).state_dict().items()}
    assert shapes == {
        "dt_bias": (heads,),
        "A_log": (heads,),
        "D": (heads,),
        "in_proj.weight": (2 * d_inner + 2 * d_state + heads, d_model),
        "conv1d.weight": (d_inner + 2 * d_state, 1, 4),
        "conv1d.bias": (d_inner + 2 * d_state,),
        "norm.weight": (d_inner,),
        "out_proj.weight": (d_model, d_inner),
    }


def test_the_shifted_products_are_the_convolution() -> None:
    mixer = Mamba2(32)
    xbc = torch.randn(3, 11, mixer.d_inner + 2 * mixer.d_state)
    wanted = mixer.conv1d(xbc.transpose(1, 2))[..., :11].transpose(1, 2)
    torch.testing.assert_close(mixer._convolve(xbc), wanted)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 11])
def test_gradients_of_the_shifted_products_are_those_of_the_convolution(length: int) -> None:
    mixer = Mamba2(16).double()
    xbc = torch.randn(2, length, mixer.d_inner + 2 * mixer.d_state, dtype=torch.float64, requires_grad=True)
    values = (xbc, mixer.conv1d.weight, mixer.conv1d.bias)
    ours = torch.autograd.grad(mixer._convolve(xbc).sin().sum(), values)
    wanted = torch.autograd.grad(mixer.conv1d(xbc.transpose(1, 2))[..., :length].sin().sum(), values)
    for mine, other in zip(ours, wanted, strict=True):
        torch.testing.assert_close(mine, other)


def test_the_convolution_takes_half_precision_beside_single_precision_weights() -> None:
    mixer = Mamba2(16)
    xbc = torch.randn(2, 9, mixer.d_inner + 2 * mixer.d_state).bfloat16().requires_grad_()
    mixer._convolve(xbc).sum().backward()
    assert xbc.grad is not None
    assert xbc.grad.dtype == torch.bfloat16
    assert mixer.conv1d.weight.grad is not None


def test_a_mixer_is_causal() -> None:
    mixer = Mamba2(32)
    x = torch.randn(2, 9, 32)
    changed = x.clone()
    changed[:, 5] += 1.0
    before, after = mixer(x), mixer(changed)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert (before[:, 5:] - after[:, 5:]).abs().amin(dim=(0, 2)).max() > 0


def test_steps_that_are_not_valid_leave_the_state_as_it_is() -> None:
    mixer = Mamba2(32).double()
    # The convolution looks four steps back, so four padded steps separate it from the valid ones.
    x = torch.randn(1, 12, 32, dtype=torch.float64)
    x[:, 4:8] = 0.0
    valid = torch.ones(1, 12, dtype=torch.bool)
    valid[:, 4:8] = False
    z, xbc, dt = mixer.in_proj(x).split([32, 64, mixer.n_heads], -1)
    del z
    dt = torch.nn.functional.softplus(dt + mixer.dt_bias) * valid[..., None]
    values, b, c = torch.nn.functional.silu(mixer._convolve(xbc)).split([32, 16, 16], -1)
    heads = values.unflatten(-1, (mixer.n_heads, mixer.headdim))
    a = -torch.exp(mixer.A_log)
    y = ssd_scan(heads, dt, a, b, c)
    keep = valid[0]
    short = ssd_scan(heads[:, keep], dt[:, keep], a, b[:, keep], c[:, keep])
    torch.testing.assert_close(y[:, keep], short)

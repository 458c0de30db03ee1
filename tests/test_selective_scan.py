"""The selective scan is the recurrence; Mamba-1's weights are mamba-ssm's, and what it draws on is what it does."""

from __future__ import annotations

import pytest
import torch

from neurobench.errors import NeurobenchError
from neurobench_backbones._mamba1 import Mamba1
from neurobench_backbones._mamba2 import Mamba2, MambaPass
from neurobench_backbones._selective_scan import SEGMENT, selective_scan, selective_scan_step_by_step
from neurobench_backbones.mamba import Mamba


def inputs(length: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(length)

    def drawn(*shape: int, uniform: bool = False) -> torch.Tensor:
        return (torch.rand if uniform else torch.randn)(*shape, generator=g, dtype=dtype)

    x, b, c = drawn(length, 2, 5), drawn(length, 2, 3), drawn(length, 2, 3)
    dt, a = drawn(length, 2, 5, uniform=True) * 0.5, -drawn(5, 3, uniform=True) * 3 - 0.1
    return [v.requires_grad_() for v in (x, dt, a, b, c)]


@pytest.mark.parametrize("length", [1, 5, SEGMENT - 1, SEGMENT, SEGMENT + 1, 3 * SEGMENT + 7])
def test_forward_and_gradients_equal_the_recurrence(length: int) -> None:
    ours, theirs = inputs(length), inputs(length)
    y, reference = selective_scan(*ours), selective_scan_step_by_step(*theirs)
    torch.testing.assert_close(y, reference, rtol=1e-10, atol=1e-12)
    y.sin().sum().backward()
    reference.sin().sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-9, atol=1e-11)


def test_gradients_are_those_of_finite_differences() -> None:
    assert torch.autograd.gradcheck(selective_scan, inputs(SEGMENT + 2), fast_mode=True)


@pytest.mark.parametrize("size", [1e-8, 50.0])
def test_extreme_steps_neither_overflow_nor_vanish_into_nan(size: float) -> None:
    x, dt, a, b, c = inputs(70, torch.float32)
    dt = torch.full_like(dt, size).detach().requires_grad_()
    y = selective_scan(x, dt, a, b, c)
    y.sum().backward()
    for value in (y, *(v.grad for v in (x, dt, a, b, c))):
        assert torch.isfinite(value).all()


def test_weights_are_named_and_shaped_as_in_mamba_ssm() -> None:
    shapes = {k: tuple(v.shape) for k, v in Mamba1(64, d_state=16, expand=2).state_dict().items()}
    assert shapes == {
        "A_log": (128, 16),
        "D": (128,),
        "in_proj.weight": (256, 64),
        "conv1d.weight": (128, 1, 4),
        "conv1d.bias": (128,),
        "x_proj.weight": (4 + 32, 128),
        "dt_proj.weight": (128, 4),
        "dt_proj.bias": (128,),
        "out_proj.weight": (64, 128),
    }


def test_the_convolution_is_torchs_own_and_causal() -> None:
    torch.manual_seed(0)
    mixer, x = Mamba1(8), torch.randn(9, 3, 8)
    theirs = mixer.conv1d(x.permute(1, 2, 0))[..., :9].permute(2, 0, 1)
    torch.testing.assert_close(mixer._convolved(x), theirs, rtol=1e-5, atol=1e-6)


def test_it_is_causal_and_steps_that_are_not_valid_leave_the_state_as_it_is() -> None:
    torch.manual_seed(0)
    mixer, x = Mamba1(16), torch.randn(2, 12, 16)
    changed = x.clone()
    changed[:, 7:] += 1
    torch.testing.assert_close(mixer(x)[:, :7], mixer(changed)[:, :7])
    assert not torch.allclose(mixer(x)[:, 7:], mixer(changed)[:, 7:])
    valid = torch.ones(2, 12, dtype=torch.bool)
    valid[:, 8:] = False
    torch.testing.assert_close(mixer(x, valid)[:, :8], mixer(x[:, :8]))


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_a_scan_takes_what_autocast_on_cuda_gives_it(kind: torch.dtype) -> None:
    torch.manual_seed(0)
    mixer, x = Mamba1(16), torch.randn(2, 12, 16)
    _, signal, dt, a, b, c = mixer._projected(x.transpose(0, 1), None)
    halves = [v.to(torch.bfloat16) for v in (signal, b, c)]
    # There Δ comes out of softplus in single precision.
    mixed = mixer._scan(halves[0], dt.to(kind), a, *halves[1:])
    assert mixed.dtype == kind
    torch.testing.assert_close(mixed.float(), mixer._scan(signal, dt, a, b, c), rtol=0.05, atol=0.05)


def test_weights_are_what_the_scan_draws_on() -> None:
    torch.manual_seed(0)
    mixer, x = Mamba1(16), torch.randn(1, 6, 16)
    _, signal, dt, a, b, c = mixer._projected(x.transpose(0, 1), None)
    drawn = torch.zeros(6, 6)
    for s in range(6):
        alone = torch.zeros_like(signal)
        # With a signal of one at one step, every channel's output is what it draws on that step.
        alone[s] = 1
        drawn[:, s] = selective_scan(alone, dt, a, b, c)[:, 0].abs().mean(-1)
    drawn += torch.eye(6) * mixer.D.abs().mean()
    torch.testing.assert_close(mixer.weights(x)[0], drawn, rtol=1e-4, atol=1e-6)


def test_both_versions_make_a_pass_and_no_other_does() -> None:
    torch.manual_seed(0)
    x, valid = torch.randn(3, 7, 32), torch.ones(3, 7, dtype=torch.bool)
    one = MambaPass(32, Mamba1)
    assert one(x, None).shape == x.shape
    torch.testing.assert_close(one(x, None), one(x, valid))
    torch.testing.assert_close(one.weights(x, valid).sum(-1), torch.ones(3, 7))
    sizes = {v: sum(p.numel() for p in MambaPass(64, v).parameters()) for v in (Mamba2, Mamba1)}
    assert abs(sizes[Mamba1] / sizes[Mamba2] - 1) < 0.1
    assert Mamba.impossible(None, {"version": 1}) == ""
    assert "version may be 1 or 2" in Mamba.impossible(None, {"version": 3})


def test_a_version_that_there_is_not_is_refused_before_anything_runs() -> None:
    from neurobench.config import RunConfig, expand
    from neurobench.plugins import load_registry

    with pytest.raises(NeurobenchError, match="there is no Mamba-3"):
        expand(RunConfig.from_options(backbone="mamba[version=3]", mask="roi"), load_registry())

"""The chunked scan is the recurrence; the mixer's weights are mamba-ssm's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from neurobench_backbones import _by_pieces, _mamba2, _ssd
from neurobench_backbones._mamba2 import Mamba2, MambaPass, _GatedNorm, _ScanInputs, by_kernel, scan_inputs
from neurobench_backbones._ssd import CHUNK, REACH, scan, scan_factors, scan_heads, ssd_scan, ssd_step_by_step

Form = Callable[..., torch.Tensor]


def inputs(length: int, batch: int = 2, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=dtype).requires_grad_()

    dt = (torch.rand(batch, length, 3, generator=g, dtype=dtype) * 0.5).requires_grad_()
    a = (-torch.rand(3, generator=g, dtype=dtype) * 3 - 0.1).requires_grad_()
    return [normal(batch, length, 3, 4), dt, a, normal(batch, length, 6), normal(batch, length, 6)]


def by_heads(
    x: torch.Tensor, dt: torch.Tensor, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, chunk: int = 64
) -> torch.Tensor:
    return scan_heads(*(v.transpose(1, 2) for v in (x, dt, dt * a)), b, c, None, chunk).transpose(1, 2)


def by_factors(
    x: torch.Tensor, dt: torch.Tensor, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, chunk: int = CHUNK
) -> torch.Tensor:
    return scan_factors(x, dt, dt * a, b, c, None, chunk)


FORMS = [ssd_scan, by_heads, by_factors]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("piece", [1, 2**16, 2**20])
@pytest.mark.parametrize("length", [1, 5, 31, 32, 63, 64, 65, 128, 200, 257])
def test_forward_and_gradients_equal_the_recurrence(
    form: Form, length: int, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_ssd, "PIECE", piece)
    ours, theirs = inputs(length), inputs(length)
    y, reference = form(*ours), ssd_step_by_step(*theirs)
    torch.testing.assert_close(y, reference, rtol=1e-10, atol=1e-12)
    y.sin().sum().backward()
    reference.sin().sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("form", FORMS)
def test_single_precision_stays_close_on_long_sequences(form: Form) -> None:
    ours, theirs = inputs(700, dtype=torch.float32), [v.detach().double().requires_grad_() for v in single(700)]
    y, reference = form(*ours), ssd_step_by_step(*theirs)
    y.sin().sum().backward()
    reference.sin().sum().backward()
    pairs = [(y, reference), *((mine.grad, other.grad) for mine, other in zip(ours, theirs, strict=True))]
    for mine, other in pairs:
        assert (mine.double() - other).abs().max() < 1e-4 * other.abs().max()


def single(length: int) -> list[torch.Tensor]:
    return inputs(length, dtype=torch.float32)


@pytest.mark.parametrize("form", [by_heads, by_factors])
@pytest.mark.parametrize("chunk", [4, 16, 64, 300])
def test_the_chunk_changes_nothing(form: Form, chunk: int) -> None:
    values = inputs(150)
    values[2] = values[2] / 10
    torch.testing.assert_close(form(*values, chunk=chunk), form(*values, chunk=5))


def test_factors_are_left_to_chunks_that_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(_ssd, "scan_factors", lambda *given: seen.append(given[-1]) or given[0])
    monkeypatch.setattr(_ssd, "scan_heads", lambda *given: seen.append("heads") or given[0])
    x, dt, _, b, c = inputs(100)
    # By how many powers of two a step decays, for a chunk of 25, 15, 8 (100 steps in equal chunks), and none.
    for power in (REACH / 26, REACH / 16, REACH / 9, REACH / 7, torch.nan):
        scan(x, dt, torch.full_like(dt, -power / _ssd.LOG2E), b, c)
    scan(x.bfloat16(), dt, -dt, b, c)
    # Four steps of four channels: a head's matrix is no larger than its signal.
    scan(*(v[:, :4] for v in (x, dt, -dt, b, c)))
    assert seen == [25, 15, 8, "heads", "heads", "heads", "heads"]


def test_many_short_sequences() -> None:
    values = inputs(10, batch=384)
    torch.testing.assert_close(ssd_scan(*values), ssd_step_by_step(*values), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("decay", [REACH * 0.999, REACH * 1.001])
def test_at_the_edge_of_what_factors_hold_single_precision_is_as_good_as_beyond_it(decay: float) -> None:
    g = torch.Generator().manual_seed(0)
    x, _, _, b, c = single(2 * CHUNK)
    dt = torch.rand(2, 2 * CHUNK, 3, generator=g) + 0.1
    whole = dt.view(2, 2, CHUNK, 3).sum(2).max()
    a = torch.full((3,), -decay / _ssd.LOG2E / float(whole))
    ours = [v.detach().requires_grad_() for v in (x, dt, a, b, c)]
    theirs = [v.detach().double().requires_grad_() for v in ours]
    # As small as the gradients of a mean over many tokens.
    (ssd_scan(*ours).square().sum() * 1e-9).backward()
    (ssd_step_by_step(*theirs).square().sum() * 1e-9).backward()
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine.grad.double() - other.grad).abs().max() < 1e-4 * other.grad.abs().max()


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


def by_the_book(mixer: Mamba2, projected: torch.Tensor, valid: torch.Tensor | None = None) -> list[torch.Tensor]:
    """Gate, x, dt, B and C by torch's own convolution and autograd, shaped as the fused node gives them."""
    sequences, length = projected.shape[1:3]
    sizes = [mixer.d_inner, mixer.d_inner + 2 * mixer.d_state, mixer.n_heads]
    z, xbc, dt = projected[0, ..., : sum(sizes)].split(sizes, -1)
    convolved = mixer.conv1d(xbc.transpose(1, 2))[..., :length].transpose(1, 2)
    x, b, c = F.silu(convolved).split([mixer.d_inner, mixer.d_state, mixer.d_state], -1)
    steps = F.softplus(dt + mixer.dt_bias)
    if valid is not None:
        steps = steps * valid[0][..., None]
    return [F.silu(z), x.reshape(sequences, length, mixer.n_heads, mixer.headdim), steps, b, c]


def fused(mixer: Mamba2, projected: torch.Tensor, valid: torch.Tensor | None = None) -> list[torch.Tensor]:
    weight, bias = mixer.conv1d.weight[:, 0][None], mixer.conv1d.bias[None]
    return list(_ScanInputs.apply(projected, weight, bias, mixer.dt_bias[None], valid, mixer.d_state))


def projection(mixer: Mamba2, length: int, dtype: torch.dtype) -> torch.Tensor:
    # One number more than is meant, as after a product of whole vectors.
    return torch.randn(1, 3, length, mixer.in_proj.out_features + 1, dtype=dtype).requires_grad_()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 11])
def test_what_enters_the_scan_and_its_gradients_are_those_of_torchs_own_convolution(length: int, masked: bool) -> None:
    torch.manual_seed(0)
    mixer = Mamba2(16).double()
    projected = projection(mixer, length, torch.float64)
    valid = torch.rand(1, 3, length) > 0.4 if masked else None
    values = (projected, mixer.conv1d.weight, mixer.conv1d.bias, mixer.dt_bias)
    ours, wanted = fused(mixer, projected, valid), by_the_book(mixer, projected, valid)
    for mine, other in zip(ours, wanted, strict=True):
        torch.testing.assert_close(mine, other)
    gradients = [torch.autograd.grad(sum(v.sin().sum() for v in found), values) for found in (ours, wanted)]
    for mine, other in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, other)


def test_what_enters_the_scan_takes_half_precision_beside_single_precision_weights() -> None:
    mixer = Mamba2(16)
    projected = projection(mixer, 9, torch.bfloat16)
    gate, x, dt, b, c = fused(mixer, projected)
    assert {v.dtype for v in (gate, x, b, c)} == {torch.bfloat16}
    assert dt.dtype == torch.float32, "steps add up over a whole sequence"
    scan(x, dt, -dt, b, c).float().sum().backward()
    assert projected.grad is not None
    assert projected.grad.dtype == torch.bfloat16
    assert mixer.conv1d.weight.grad is not None


@pytest.mark.parametrize("piece", [1, 30, 2**20])
@pytest.mark.parametrize("chunk", [2, 3, 8])
def test_written_out_gradients_are_those_of_finite_differences(
    chunk: int, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_ssd, "PIECE", piece)
    x, dt, a, b, c = inputs(5, batch=1)
    skip = torch.rand(1, 3, dtype=torch.float64, requires_grad=True)
    values = tuple(v.detach().requires_grad_() for v in (x, dt, dt * a))
    assert torch.autograd.gradcheck(partial(scan_factors, chunk=chunk), (*values, b, c, skip))
    values = tuple(v.detach().transpose(1, 2).requires_grad_() for v in values)
    assert torch.autograd.gradcheck(partial(scan_heads, chunk=chunk), (*values, b, c, skip))


def test_written_out_gradients_of_the_gated_norm_are_those_of_finite_differences() -> None:
    y, gate = (torch.randn(6, 4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(_GatedNorm.apply, (y, gate, 1e-5))


def mixed_by_the_book(mixer: Mamba2, tokens: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    """What a mixer makes of (sequences, length, width), by torch's own operations and the definition of the scan."""
    gate, x, dt, b, c = by_the_book(mixer, mixer.in_proj(tokens)[None], None if valid is None else valid[None])
    y = ssd_step_by_step(x, dt, -torch.exp(mixer.A_log), b, c) + mixer.D[:, None] * x
    return mixer.out_proj(mixer.norm(y.flatten(-2) * gate))


@pytest.mark.parametrize("piece", [1, 2**12, 2**20])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("length", [9, 32, 33, 100, 257])
def test_mixers_by_pieces_and_their_gradients_are_those_of_torchs_own_operations(
    length: int, masked: bool, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_by_pieces, "PIECE", piece)
    torch.manual_seed(0)
    mixers = [Mamba2(16, d_state=6, headdim=8, expand=2).double() for _ in range(2)]
    for mixer in mixers:
        # Away from what they begin with, which hides a weight that is left out.
        for weight in mixer.parameters():
            torch.nn.init.normal_(weight, std=0.3)
    tokens = torch.randn(2, 3, length, 16, dtype=torch.float64, requires_grad=True)
    valid = torch.rand(2, 3, length) > 0.3 if masked else None
    seen = monitored(monkeypatch)
    ours = Mamba2.together(mixers, tokens, valid)
    assert len(seen) == 1, "this is what long sequences go through"
    masks = [None, None] if valid is None else list(valid)
    wanted = torch.stack([mixed_by_the_book(*one) for one in zip(mixers, tokens, masks, strict=True)])
    torch.testing.assert_close(ours, wanted)
    values = (tokens, *(p for m in mixers for p in m.parameters()))
    gradients = [torch.autograd.grad(found.sin().sum(), values) for found in (ours, wanted)]
    for mine, other in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-9)


def monitored(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen, by_pieces = [], _by_pieces.mix_by_pieces
    monkeypatch.setattr(_mamba2, "mix_by_pieces", lambda *a, **k: seen.append("by pieces") or by_pieces(*a, **k))
    return seen


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_mixers_by_pieces_return_the_same(mode: type) -> None:
    mixer, tokens = Mamba2(32), torch.randn(3, 100, 32)
    with mode():
        found = mixer(tokens)
    torch.testing.assert_close(found, mixer(tokens).detach(), rtol=0, atol=0)


def test_gradients_of_tokens_that_do_not_lie_one_after_the_other_are_the_same() -> None:
    mixer, wide = Mamba2(16).double(), torch.randn(2, 16, 100, dtype=torch.float64, requires_grad=True)
    gradient = torch.randn(100, 2, 16, dtype=torch.float64).transpose(0, 1)
    strided, plain = wide.transpose(1, 2), wide.transpose(1, 2).contiguous()
    found = [
        torch.autograd.grad(mixer(v), wide, g)[0] for v, g in ((strided, gradient), (plain, gradient.contiguous()))
    ]
    torch.testing.assert_close(*found)


def test_mixers_whose_decays_factors_do_not_hold_scan_by_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, mixer = monitored(monkeypatch), Mamba2(16).double()
    tokens = torch.randn(2, 100, 16, dtype=torch.float64)
    torch.testing.assert_close(mixer(tokens), mixed_by_the_book(mixer, tokens, None))
    with torch.no_grad():
        mixer.A_log.fill_(8.0)
    torch.testing.assert_close(mixer(tokens), mixed_by_the_book(mixer, tokens, None))
    assert seen == ["by pieces"]


def test_mamba_ssms_kernel_is_given_its_layout() -> None:
    n_mixers, n_sequences, n_heads = 2, 3, 3
    x, dt, _, b, c = inputs(9, batch=n_mixers * n_sequences)
    a, skip = (-torch.rand(2, n_mixers, n_heads, dtype=torch.float64) - 0.1).repeat_interleave(n_sequences, 1)

    def kernel(x, dt, a, b, c, *, chunk_size, D):
        # As documented: (batch, length, heads, headdim), B and C for groups of heads that follow each other.
        n_groups, found = b.shape[2], []
        for g, heads in enumerate(torch.arange(x.shape[2]).view(n_groups, -1)):
            part = (x[:, :, heads], dt[:, :, heads], a[heads], b[:, :, g], c[:, :, g])
            found.append(ssd_step_by_step(*part) + D[heads, None] * x[:, :, heads])
        return torch.cat(found, 2)

    torch.testing.assert_close(
        by_kernel(kernel, x, dt, a, b, c, skip, n_mixers), scan(x, dt, dt * a[:, None], b, c, skip)
    )


@pytest.mark.parametrize("length", [1, 24, 130])
@pytest.mark.parametrize("masked", [False, True])
def test_a_pass_is_its_two_mixers_each_on_its_own(length: int, masked: bool) -> None:
    torch.manual_seed(0)
    both = MambaPass(32).double()
    tokens = torch.randn(3, length, 32, dtype=torch.float64, requires_grad=True)
    valid = torch.rand(3, length) > 0.3 if masked else torch.ones(3, length, dtype=torch.bool)
    x = both.norm(tokens) * valid[..., None]
    apart = tokens + both.forward_mixer(x, valid) + both.backward_mixer(x.flip(1), valid.flip(1)).flip(1)
    apart = (apart + both.feedforward(both.feedforward_norm(apart))) * valid[..., None]
    together = both(tokens, valid if masked else None)
    torch.testing.assert_close(together, apart)
    values = (tokens, *both.parameters())
    for mine, other in zip(
        torch.autograd.grad(together.sin().sum(), values), torch.autograd.grad(apart.sin().sum(), values), strict=True
    ):
        torch.testing.assert_close(mine, other)


def test_the_same_tokens_give_the_same_bytes() -> None:
    both, tokens = MambaPass(32), torch.randn(8, 24, 32)
    first, second = (torch.autograd.grad(both(tokens, None).square().sum(), both.parameters()) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


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
    _, values, dt, a, b, c = scan_inputs([mixer], x[None], valid[None])
    y = scan(values, dt, dt * a[:, None], b, c)
    short = scan(*(v[:, valid[0]] for v in (values, dt, dt * a[:, None], b, c)))
    torch.testing.assert_close(y[:, valid[0]], short)

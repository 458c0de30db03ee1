"""What the relatives' mechanisms are for, each shown to do it. Contracts are in test_checks.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from neurobench.config import RunConfig, expand
from neurobench.errors import ConfigErrors
from neurobench.plugins import load_registry
from neurobench.pretraining import build
from neurobench.records import Batch
from neurobench.specimens import simulated_batch, simulated_spec, simulated_units
from neurobench_backbones.brainmae import BrainMAE, GraphPass
from neurobench_backbones.global_conv import TAPS, GlobalConv, GlobalConvPass

WIDTH = 32


def built(cls: type, n_units: int = 24, n_patches: int = 7, n_layers: int = 1, **parameters: Any) -> tuple[Any, Batch]:
    units = simulated_units(n_units)
    batch = simulated_batch(units, 2, n_patches, 6)
    spec = simulated_spec(units, n_patches, 6, WIDTH, n_layers)
    parameters = {n: p.default for n, p in cls.component_parameters().items()} | parameters
    return build(cls, spec, parameters, seed=0)[0].eval(), batch


# ---------------------------------------------------------------- a graph without self-edges


def graph_pass(adaptive: bool) -> tuple[GraphPass, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return GraphPass(WIDTH, adaptive=adaptive), torch.randn(3, 9, WIDTH), torch.randn(3, 9, WIDTH)


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_unit_is_told_nothing_of_itself_and_something_of_every_other_one(adaptive: bool) -> None:
    across, nodes, tokens = graph_pass(adaptive)
    other = tokens.clone()
    other[:, 4] += torch.randn(WIDTH)
    moved = (across.message(nodes, other, None) - across.message(nodes, tokens, None)).abs().amax((0, 2))
    assert moved[4] == 0
    assert (moved[torch.arange(9) != 4] > 1e-4).all()


def test_the_static_graph_is_of_embeddings_alone_and_the_adaptive_one_is_not() -> None:
    for adaptive in (False, True):
        across, nodes, tokens = graph_pass(adaptive)
        graphs = [across.graph(nodes, x, None) for x in (tokens, tokens.flip(0))]
        assert torch.equal(*graphs) == (not adaptive)
        assert not torch.allclose(graphs[0], across.graph(nodes.flip(1), tokens, None))
        torch.testing.assert_close(graphs[0].sum(-1), torch.ones(3, 2, 9))


def test_a_unit_that_is_alone_draws_on_none() -> None:
    across, nodes, tokens = graph_pass(True)
    valid = torch.zeros(3, 9, dtype=torch.bool)
    valid[:, 4] = True
    assert across.graph(nodes, tokens, valid)[:, :, 4].abs().max() == 0
    assert torch.isfinite(across(nodes, tokens, valid)).all()


def test_what_is_no_unit_is_no_node_of_the_graph_and_everybody_sees_it() -> None:
    net, batch = built(BrainMAE)
    prompted = replace(batch.table, unit=batch.table.unit.clone())
    prompted.unit[:, -1] = -1
    tokens = torch.randn(2, 24, 7, WIDTH)
    ((across, _),) = net.passes(prompted)
    assert across.nodes.view(2, 7, 24, WIDTH)[:, :, -1].abs().max() == 0
    drawn = across.weights(tokens.transpose(1, 2).flatten(0, 1), torch.ones(14, 24, dtype=torch.bool))
    assert (drawn[:, :-1, -1] > 0).all()


# ---------------------------------------------------------------- a convolution over everything, attention nearby


@pytest.mark.parametrize("n_patches", [1, 2, 5, 12, 13, 40])
def test_the_convolution_is_the_sum_that_it_stands_for(n_patches: int) -> None:
    torch.manual_seed(0)
    along = GlobalConvPass(WIDTH, n_patches)
    x = torch.randn(3, n_patches, WIDTH)
    onwards, back = along.kernels()
    assert onwards.shape == (WIDTH, n_patches)
    wanted = torch.zeros_like(x)
    for t in range(n_patches):
        for s in range(n_patches):
            wanted[:, t] += x[:, s] * (onwards[:, t - s] * (t >= s) + back[:, s - t] * (s >= t))
    torch.testing.assert_close(along.convolve(x), wanted, atol=1e-4, rtol=1e-4)


def test_one_convolution_reaches_all_patches_in_both_directions() -> None:
    torch.manual_seed(0)
    along = GlobalConvPass(WIDTH, 40)
    x = torch.randn(1, 40, WIDTH, requires_grad=True)
    for place in (0, 20, 39):
        (gradient,) = torch.autograd.grad(along(x, None)[0, place].square().sum(), x)
        assert (gradient[0].abs().sum(-1) > 0).all()


def test_a_kernel_grows_with_the_logarithm_of_the_window_and_fades() -> None:
    torch.manual_seed(0)
    short, long = GlobalConvPass(256, 12), GlobalConvPass(256, 400)
    sizes = [sum(p.numel() for p in along.scales) for along in (short, long)]
    assert sizes == [2 * 256 * TAPS * 2, 2 * 256 * TAPS * 7]
    near, far = (long.kernels()[..., part].abs().mean() for part in (slice(0, TAPS), slice(-100, None)))
    assert far < 0.1 * near


@pytest.mark.parametrize("window", [1, 3])
def test_attention_reaches_the_window_and_no_further(window: int) -> None:
    net, batch = built(GlobalConv, window=window)
    signal = batch.signal.clone().requires_grad_()
    tokens = net(signal, torch.zeros_like(batch.table.valid), batch.table)
    direction = torch.randn(WIDTH, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad((tokens[0, 12] @ direction).sum(), signal)
    reached = gradient[0].abs().sum((-1, -2)) > 0
    assert torch.equal(reached, (torch.arange(24) - 12).abs() <= window)


def test_what_is_no_unit_is_near_to_every_unit() -> None:
    net, batch = built(GlobalConv, window=1)
    table = replace(batch.table, unit=batch.table.unit.clone())
    table.unit[:, -1] = -1
    ((across, _),) = net.passes(table)
    assert across.band[:, :, -1].all()
    assert across.band[:, -1].all()
    assert not across.band[:, 0, 5].any()


# ---------------------------------------------------------------- what they say of themselves


@pytest.mark.parametrize("cls", [BrainMAE, GlobalConv])
def test_importance_is_shares_and_nothing_where_nothing_is_drawn(cls: type) -> None:
    net, batch = built(cls, n_layers=2)
    valid = batch.table.valid.clone()
    valid[0, 3] = False
    valid[1, :, -2:] = False
    drawn = net.importance(batch.signal, torch.zeros_like(valid), replace(batch.table, valid=valid))
    sums = torch.ones(2, 24)
    sums[0, 3] = 0
    torch.testing.assert_close(drawn.sum(-1), sums)
    assert (drawn >= 0).all()
    assert drawn[0, :, 3].abs().max() == 0


def test_importance_of_a_window_is_within_the_window() -> None:
    net, batch = built(GlobalConv, window=2)
    drawn = net.importance(batch.signal, torch.zeros_like(batch.table.valid), batch.table)
    place = torch.arange(24)
    far = (place[:, None] - place).abs() > 2
    assert drawn[:, far].abs().max() == 0
    assert (drawn[:, ~far] > 0).all()


@pytest.mark.parametrize(
    ("backbone", "said"), [("brainmae[graph=own]", "static"), ("global_conv[window=0]", "1 or more")]
)
def test_a_graph_or_window_that_is_none_is_refused_before_work_starts(backbone: str, said: str) -> None:
    with pytest.raises(ConfigErrors, match=said):
        expand(RunConfig.from_options(backbone=backbone, mask="roi"), load_registry())

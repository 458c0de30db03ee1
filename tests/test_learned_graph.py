"""The learned graph: directed, of the window, learned from networks, and what messages go along."""

from __future__ import annotations

from dataclasses import replace

import torch

from neurobench.pretraining import build
from neurobench.specimens import simulated_spec, simulated_units
from neurobench_backbones.learned_graph import LearnedGraph
from tests.planted_networks import FEATURES, NETWORK, PATCHES, N, planted, train

ITSELF = torch.eye(N, dtype=torch.bool)


def network() -> tuple[LearnedGraph, torch.nn.Module]:
    return build(LearnedGraph, simulated_spec(simulated_units(N, 3), PATCHES, FEATURES, 32, 1), {}, seed=0)


def graph(net: LearnedGraph, seed: int = 10_000, n_batch: int = 16) -> torch.Tensor:
    batch = planted(n_batch, seed)
    with torch.no_grad():
        return net.importance(batch.signal, torch.zeros_like(batch.table.valid), batch.table)


def test_the_graph_is_of_the_window_and_has_directions():
    net, _ = network()
    first, second = graph(net, 1, 2)
    assert not torch.allclose(first, second, atol=1e-3)
    assert not torch.allclose(first, first.T, atol=1e-3)
    assert (first.diagonal() == 0).all()
    torch.testing.assert_close(first.sum(1), torch.ones(N))


def test_after_training_units_hear_of_their_own_network():
    net, decoder = network()
    same = (NETWORK[:, None] == NETWORK) & ~ITSELF
    before = float(graph(net).mean(0)[same].sum()) / N
    losses = train(net, decoder, 60)
    after = float(graph(net).mean(0)[same].sum()) / N
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    # Five of eleven others are of the same network.
    assert abs(before - 5 / 11) < 0.1
    assert after > before + 0.2


def test_messages_go_along_the_graph():
    net, _ = network()
    part = net.layers[0][0]
    tokens = torch.randn(PATCHES, N, 32, requires_grad=True)
    edges = torch.zeros(1, N, N)
    edges[0, 3, 7] = 1.0
    (grad,) = torch.autograd.grad(part(tokens, None, edges)[1, 3, 0], tokens)
    assert grad.abs().sum(-1).nonzero().tolist() == [[1, 3], [1, 7]]


def test_a_unit_without_signal_is_not_heard_and_one_alone_hears_itself():
    net, _ = network()
    batch = planted(1, 0)
    valid = batch.table.valid.clone()
    valid[0, 4] = False
    table = replace(batch.table, valid=valid)
    with torch.no_grad():
        drawn = net.importance(batch.signal * valid[..., None], torch.zeros_like(valid), table)[0]
        assert (drawn[:, 4] == 0).all()
        assert (drawn[4] == 0).all()
        valid[0, 1:] = False
        alone = net.importance(batch.signal * valid[..., None], torch.zeros_like(valid), table)[0]
    assert alone[0, 0] == 1
    assert alone.sum() == 1

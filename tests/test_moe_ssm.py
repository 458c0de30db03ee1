"""What the mixture of experts is for: gates that follow the graph, experts that share the work, a load that is even."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from neurobench.config import RunConfig, expand
from neurobench.errors import ConfigErrors
from neurobench.plugins import load_registry
from neurobench.pretraining import build
from neurobench.specimens import simulated_batch, simulated_spec, simulated_units
from neurobench_backbones._experts import ExpertPass, Graph, graph_of, imbalance, top_gates, walk
from neurobench_backbones.moe_ssm import MoeSsm
from tests.planted_networks import FEATURES, NETWORK, PATCHES, PLANTED, N, planted, train

DEFAULTS = {"experts": 4, "top_k": 2, "walk_steps": 2, "balance": 0.1}


def network(seed: int = 0, **parameters: float) -> tuple[MoeSsm, torch.nn.Module]:
    spec = simulated_spec(simulated_units(N, 3), PATCHES, FEATURES, 32, 1)
    net, decoder = build(MoeSsm, spec, DEFAULTS | parameters, seed=seed)
    net.connectivity.copy_(PLANTED)
    return net, decoder


def agreement(net: MoeSsm) -> tuple[float, float]:
    """Return how alike a window's gates are, 1 less half of their distance, between units of one network and of two."""
    batch = planted(16, 10_000)
    with torch.no_grad():
        shares = net.routing(batch.signal, torch.zeros_like(batch.table.valid), batch.table)
    alike = (1 - torch.cdist(shares, shares, p=1) / 2).mean(0)
    same = NETWORK[:, None] == NETWORK
    return float(alike[same & ~torch.eye(N, dtype=torch.bool)].mean()), float(alike[~same].mean())


# ---------------------------------------------------------------- the walk


def chain(n: int) -> torch.Tensor:
    """Return (1, n, n) edges between neighbours in a row."""
    at = torch.arange(n)
    return ((at[:, None] - at).abs() == 1).float()[None]


@pytest.mark.parametrize(("steps", "reached"), [(0, [0]), (1, [0, 1]), (2, [0, 1, 2]), (3, [0, 1, 2, 3])])
def test_logits_move_with_those_of_units_that_many_steps_away(steps, reached):
    logits, valid = torch.zeros(1, 1, 6, 3), torch.ones(1, 1, 6, dtype=torch.bool)
    moved = logits.clone()
    moved[0, 0, 0, 1] = 1.0
    difference = walk(moved, chain(6), valid, steps) - walk(logits, chain(6), valid, steps)
    assert difference[0, 0, :, 1].nonzero()[:, 0].tolist() == reached
    assert (difference[..., [0, 2]] == 0).all()


def test_the_walk_stays_on_units_that_are_there():
    logits = torch.randn(1, 2, 5, 3, generator=torch.Generator().manual_seed(0))
    valid = torch.ones(1, 2, 5, dtype=torch.bool)
    valid[0, 1, 2] = False
    found = walk(logits, chain(5), valid, 3)
    without = walk(logits[:, 1:, :2], chain(2), valid[:, 1:, :2], 3)
    torch.testing.assert_close(found[:, 1:, :2], without)
    assert not torch.allclose(found[:, :1, :2], walk(logits[:, :1, :2], chain(2), valid[:, :1, :2], 3))
    # What all units agree on stays as it is.
    torch.testing.assert_close(walk(torch.ones_like(logits), chain(5), valid, 3), torch.ones_like(logits))


def test_prompts_and_negative_connectivity_are_no_edges():
    table = simulated_batch(simulated_units(3, 1), 1, 2, 4).table
    table = replace(table, unit=torch.tensor([[2, -1, 0]]))
    connectivity = torch.tensor([[0.0, 0.5, 0.3], [0.5, 0.0, -0.4], [0.3, -0.4, 0.0]])
    edges, everywhere, _ = graph_of(connectivity, table)
    assert everywhere.tolist() == [[False, True, False]]
    assert edges[0].tolist() == [[0, 0, pytest.approx(0.3)], [0, 0, 0], [pytest.approx(0.3), 0, 0]]
    logits = torch.randn(1, 2, 3, 4)
    valid = torch.ones(1, 2, 3, dtype=torch.bool)
    torch.testing.assert_close(walk(logits, edges, valid, 4)[:, :, 1], logits[:, :, 1])
    assert graph_of(connectivity, replace(table, unit=torch.tensor([[1, -1, 2]]))).edges.sum() == 0


def test_a_prompt_is_with_all_experts_and_every_unit_hears_of_it():
    torch.manual_seed(0)
    part = ExpertPass(32, experts=4, top_k=1, walk_steps=0, balance=0.0).eval()
    tokens = torch.randn(1, N, 32, requires_grad=True)
    graph = graph_of(PLANTED, replace(planted(1, 0).table, unit=torch.arange(N)[None] - 1))
    gates = part.route(tokens, torch.ones(1, N, dtype=torch.bool), graph)[1]
    assert gates[0, 0].tolist() == [0.25] * 4
    assert (gates[0, 1:].max(1).values == 1).all()
    for unit in range(1, N):
        (grad,) = torch.autograd.grad(part(tokens, None, graph)[0, unit, 0], tokens)
        assert grad[0, 0].abs().sum() > 0


def test_gates_are_alike_where_the_graph_says_so_before_any_training():
    alone, near = (agreement(network(walk_steps=steps)[0]) for steps in (0, 2))
    assert near[0] > alone[0] + 0.1
    # More than two networks are: what smooths is the graph, not an average over all.
    assert near[0] > near[1] + 0.05


# ---------------------------------------------------------------- experts


def test_after_training_networks_have_experts_of_their_own():
    net, decoder = network()
    before = agreement(net)
    losses = train(net, decoder, 60)
    within, across = agreement(net)
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert within > 0.9
    assert across < min(within - 0.2, before[1] - 0.1)


def test_experts_are_scans_of_their_own_units_only():
    torch.manual_seed(0)
    part = ExpertPass(32, experts=4, top_k=1, walk_steps=0, balance=0.0).eval()
    tokens = torch.randn(1, N, 32, requires_grad=True)
    valid = torch.ones(1, N, dtype=torch.bool)
    graph = Graph(torch.zeros(1, N, N), torch.zeros(1, N, dtype=torch.bool))
    chosen = part.route(tokens, valid, graph)[1][0].argmax(1)
    assert len(chosen.unique()) > 1
    for unit in range(N):
        (grad,) = torch.autograd.grad(part(tokens, None, graph)[0, unit, 0], tokens)
        seen = grad[0].abs().sum(1) > 0
        assert not (seen & (chosen != chosen[unit])).any()
    weights = part.weights(tokens, valid, graph)[0]
    torch.testing.assert_close(weights.sum(1), torch.ones(N))
    assert (weights[chosen[:, None] != chosen] == 0).all()


def test_gates_are_those_of_the_largest_logits():
    gates = top_gates(torch.tensor([[1.0, 3.0, 2.0, 0.0]]), 2)
    torch.testing.assert_close(gates, torch.tensor([[0.0, 1 / (1 + 2.718281828**-1), 1 / (1 + 2.718281828), 0.0]]))
    torch.testing.assert_close(top_gates(torch.randn(5, 3), 3).sum(1), torch.ones(5))


# ---------------------------------------------------------------- the load


def test_imbalance_is_one_for_an_even_load_and_more_otherwise():
    valid = torch.ones(4, dtype=torch.bool)
    even = 9.0 * torch.eye(4)
    assert imbalance(even, top_gates(even, 1), valid) == pytest.approx(1.0, abs=1e-3)
    one = 9.0 * torch.eye(4)[:1].expand(4, -1)
    assert imbalance(one, top_gates(one, 1), valid) == pytest.approx(4.0, abs=0.1)
    # Tokens that are not valid are no load.
    assert imbalance(torch.cat((even, one)), top_gates(torch.cat((even, one)), 1), torch.arange(8) < 4) < 1.01


def test_the_gradient_of_balance_spreads_the_load():
    def after(balance: float) -> tuple[float, float]:
        net, _ = network(balance=balance)
        part = net.layers[0][0]
        part.router.bias.data[0] = 3.0
        optimiser = torch.optim.SGD(part.parameters(), lr=1.0)
        valid = torch.ones(8, N, dtype=torch.bool)
        graph = Graph(PLANTED.expand(8, N, N), ~valid)
        tokens = torch.randn(8, N, 32, generator=torch.Generator().manual_seed(0))
        loads = []
        for _ in range(60):
            loads.append(float(part.route(tokens, valid, graph)[1].detach().mean((0, 1)).max()))
            optimiser.zero_grad()
            # The loss itself asks for nothing.
            (0.0 * part(tokens, None, graph)).sum().backward()
            optimiser.step()
        return loads[0], loads[-1]

    first, last = after(0.5)
    assert first > 0.6
    assert last < 0.45
    assert after(0.0) == (first, first)


def test_balance_changes_no_token_and_no_gradient_but_the_routers():
    found = []
    for balance in (0.0, 5.0):
        net, _ = network(balance=balance)
        net.train()
        batch = planted(3, 0)
        signal = batch.signal.clone().requires_grad_()
        hidden = torch.zeros_like(batch.table.valid)
        tokens = net(signal, hidden, batch.table)
        loss = (tokens[..., 0] ** 3).mean()
        loss.backward()
        found.append((loss.detach(), signal.grad, {n: p.grad for n, p in net.named_parameters()}))
    (loss, by_signal, plain), (with_it, by_signal_with, balanced) = found
    assert torch.equal(loss, with_it)
    assert torch.equal(by_signal, by_signal_with)
    assert {n for n in plain if not torch.equal(plain[n], balanced[n])} == {
        "layers.0.0.router.weight",
        "layers.0.0.router.bias",
    }


# ---------------------------------------------------------------- parameters


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ("experts=3", "3 experts at width 32: 2, 4, 8"),
        ("experts=16", "each with a share of 4 or more"),
        ("top_k=5", "top_k=5 of 4 experts"),
        ("walk_steps=-1", "0 or more"),
    ],
)
def test_what_does_not_fit_is_refused_before_work_starts(parameters, said):
    config = RunConfig.from_options(backbone=f"moe_ssm[{parameters}]", mask="local", dataset="camcan")
    with pytest.raises(ConfigErrors, match=said):
        expand(config, load_registry())


@pytest.mark.parametrize(("experts", "width", "n_layers"), [(2, 32, 1), (8, 32, 1), (8, 64, 2), (16, 256, 4)])
def test_any_number_of_experts_keeps_the_budget(experts, width, n_layers):
    spec = simulated_spec(simulated_units(N, 3), PATCHES, FEATURES, width, n_layers)
    counts = [
        sum(p.numel() for p in build(MoeSsm, spec, DEFAULTS | {"experts": n}, seed=0)[0].parameters())
        for n in (4, experts)
    ]
    assert abs(counts[1] / counts[0] - 1) < 0.05

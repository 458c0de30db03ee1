"""Built-in backbones: equal budgets, both directions, layouts. Contracts are in test_checks.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from neurobench.checks import check_component
from neurobench.config import RunConfig, expand
from neurobench.errors import ConfigErrors
from neurobench.plugins import load_registry
from neurobench.pretraining import build, count_parameters
from neurobench.records import BackboneSpec
from neurobench.specimens import simulated_batch, simulated_spec, simulated_units
from neurobench_backbones.brainmae import BrainMAE
from neurobench_backbones.global_conv import GlobalConv
from neurobench_backbones.hybrid import Hybrid
from neurobench_backbones.mamba import Mamba
from neurobench_backbones.transformer import Transformer

ORDERED = (Transformer, Mamba, Hybrid)
"""Backbones of which a user says whether the pass along units or along time comes first."""

ALL = (*ORDERED, BrainMAE, GlobalConv)


@pytest.mark.parametrize(("width", "n_layers"), [(32, 1), (64, 2), (256, 4)])
def test_parameters_are_within_ten_percent_of_each_other(width: int, n_layers: int) -> None:
    spec = BackboneSpec(116, 8, 10, 10, width, n_layers)
    counts = [count_parameters(cls(spec)) for cls in ALL]
    assert max(counts) / min(counts) < 1.1


def test_the_published_size_is_six_to_eight_million() -> None:
    counts = [count_parameters(cls(BackboneSpec(200, 8, 10, 10, 256, 4))) for cls in ALL]
    assert all(6e6 < n < 8e6 for n in counts)


@pytest.mark.parametrize(
    ("cls", "parameters"),
    [*((cls, {"first": first}) for cls in ORDERED for first in ("units", "time")), (BrainMAE, {}), (GlobalConv, {})],
)
def test_a_token_sees_before_and_after_it_in_both_axes(cls: type, parameters: dict[str, str]) -> None:
    units = simulated_units()
    batch = simulated_batch(units, 1, 7, 6)
    net, _ = build(cls, simulated_spec(units, 7, 6, 32, 1), parameters, seed=0)
    signal = batch.signal.clone().requires_grad_()
    hidden = torch.zeros_like(batch.table.valid)
    tokens = net(signal, hidden, batch.table)
    n_units, n_patches = signal.shape[1:3]
    # A random direction: a sum over a normalised token has no gradient.
    direction = torch.randn(32, generator=torch.Generator().manual_seed(0))
    (tokens[0, n_units // 2, n_patches // 2] @ direction).backward()
    assert signal.grad is not None
    reach = signal.grad[0].abs().sum(-1) > 0
    if cls in ORDERED:
        assert reach.all(), "every unit at every time, from a token in the middle"
    for unit in (0, n_units - 1):
        for patch in (0, n_patches - 1):
            assert reach[unit, patch], (unit, patch)


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize("gaps", [False, True])
def test_where_all_tokens_are_valid_a_device_gets_no_mask_and_is_not_asked(cls: type, gaps: bool) -> None:
    units = simulated_units()
    batch = simulated_batch(units, 2, 8, 6, gaps=gaps)
    # Nobody can be told a value by this device: whoever asks fails.
    net = cls(simulated_spec(units, 8, 6, 32, 1)).to("meta")
    table = batch.table.to("meta")
    seen: list[torch.Tensor | None] = []
    net.layers[0][1].register_forward_pre_hook(lambda module, given: seen.append(given[1]))
    with torch.no_grad():
        net(batch.signal.to("meta"), torch.zeros_like(table.valid), table)
    assert [valid is None for valid in seen] == [not gaps]
    # Sent on, it stays known; of another table nothing is.
    assert table.to("meta").where_valid is None or gaps
    assert replace(table, valid=table.valid.clone()).where_valid is not None


@pytest.mark.parametrize("cls", ORDERED)
@pytest.mark.parametrize("first", ["units", "time"])
def test_the_first_pass_runs_along_what_it_is_said_to(cls: type, first: str) -> None:
    units = simulated_units()
    batch = simulated_batch(units, 1, 7, 6)
    net, _ = build(cls, simulated_spec(units, 7, 6, 32, 1), {"first": first}, seed=0)
    tokens = net.embed(batch.signal, torch.zeros_like(batch.table.valid), batch.table).detach().requires_grad_()
    seen: list[torch.Tensor] = []
    net.layers[0][1].register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    net.mix(tokens, batch.table)
    # What the second pass is given: sequences along the other axis, in which one token has heard of its own line.
    at = seen[0].view(12, 7, 32)[6, 3] if first == "units" else seen[0].view(7, 12, 32)[3, 6]
    (gradient,) = torch.autograd.grad(at.sum(), tokens)
    heard = gradient[0].abs().sum(-1) > 0
    line = torch.zeros(12, 7, dtype=torch.bool)
    if first == "units":
        line[:, 3] = True
    else:
        line[6] = True
    assert torch.equal(heard, line)


@pytest.mark.parametrize("cls", ORDERED)
def test_the_rollout_of_a_time_first_scan_is_of_all_units(cls: type) -> None:
    units = simulated_units()
    batch = simulated_batch(units, 2, 7, 6, gaps=True)
    hidden = torch.zeros_like(batch.table.valid)
    shares = []
    for first in ("units", "time"):
        net, _ = build(cls, simulated_spec(units, 7, 6, 32, 2), {"first": first}, seed=0)
        with torch.no_grad():
            shares.append(net.importance(batch.signal, hidden, batch.table))
    some = batch.table.valid.any(-1)
    for share in shares:
        assert (share >= 0).all()
        torch.testing.assert_close(share.sum(-1), some.float())
        assert (share[some][:, some[0]] > 0).all()
    assert not torch.allclose(*shares)


@pytest.mark.slow
@pytest.mark.parametrize("cls", ORDERED)
def test_time_first_keeps_the_contract(cls: type) -> None:
    time_first = type("TimeFirst", (cls,), {"check_with": {"first": "time"}})
    failed = [r for r in check_component(time_first) if not r.ok]
    assert not failed
    assert "first may be units or time" in cls.impossible(
        BackboneSpec(12, 3, 5, 6, 32, 1), {"first": "space", "layout": "", "version": 2}
    )


@pytest.mark.parametrize(
    ("layout", "n_layers", "kinds"),
    [
        ("", 1, [["M", "A"]]),
        ("", 2, [["M", "M"], ["A", "A"]]),
        ("", 4, [["M", "M"]] * 3 + [["A", "A"]]),
        ("MAMA", 4, [["M", "M"], ["A", "A"]] * 2),
        ("AAMM", 4, [["A", "A"]] * 2 + [["M", "M"]] * 2),
        ("AM", 1, [["A", "M"]]),
        ("mamba", 4, [["M", "M"]] * 4),
        ("alternate", 4, [["M", "M"], ["A", "A"]] * 2),
        ("attention_first", 4, [["A", "A"]] * 2 + [["M", "M"]] * 2),
        ("mamba_first", 4, [["M", "M"]] * 2 + [["A", "A"]] * 2),
        ("attention_first", 2, [["A", "A"], ["M", "M"]]),
        ("mamba", 1, [["M", "M"]]),
        ("alternate", 1, [["M", "A"]]),
        ("attention_first", 1, [["A", "M"]]),
        ("mamba_first", 1, [["M", "A"]]),
    ],
)
def test_a_layout_says_the_mixer_of_every_layer(layout: str, n_layers: int, kinds: list[list[str]]) -> None:
    net = Hybrid(BackboneSpec(12, 3, 10, 6, 32, n_layers), layout=layout)
    found = [["M" if type(p).__name__ == "MambaPass" else "A" for p in layer] for layer in net.layers]
    assert found == kinds


def test_a_named_layout_says_what_it_is_at_its_depth() -> None:
    said = {n: Hybrid.remark(BackboneSpec(12, 3, 10, 6, 32, n), {"layout": "alternate"}) for n in (1, 4)}
    assert said[1] == (
        "hybrid[layout=alternate] is MA here, the two passes of its one layer, the same network as mamba_first"
    )
    assert said[4] == "hybrid[layout=alternate] is MAMA here"
    assert Hybrid.remark(BackboneSpec(12, 3, 10, 6, 32, 1), {"layout": "MA"}) == ""


@pytest.mark.parametrize(
    ("layout", "profile", "said"),
    [
        ("MXMA", "full", "may hold the letters M and A only"),
        ("MMM", "full", "has 3 letters for 4 layers"),
        ("MMMA", "smoke", "at one layer needs two letters"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused_before_work_starts(layout: str, profile: str, said: str) -> None:
    config = RunConfig.from_options(backbone=f"hybrid[layout={layout}]", mask="roi", dataset="parcels", profile=profile)
    with pytest.raises(ConfigErrors, match=said):
        expand(config, load_registry())

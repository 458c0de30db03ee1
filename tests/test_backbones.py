"""Built-in backbones: equal budgets, both directions, layouts. Contracts are in test_checks.py."""

from __future__ import annotations

import pytest
import torch

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

ALL = (Transformer, Mamba, Hybrid, BrainMAE, GlobalConv)


@pytest.mark.parametrize(("width", "n_layers"), [(32, 1), (64, 2), (256, 4)])
def test_parameters_are_within_ten_percent_of_each_other(width: int, n_layers: int) -> None:
    spec = BackboneSpec(116, 8, 10, 10, width, n_layers)
    counts = [count_parameters(cls(spec)) for cls in ALL]
    assert max(counts) / min(counts) < 1.1


def test_the_published_size_is_six_to_eight_million() -> None:
    counts = [count_parameters(cls(BackboneSpec(200, 8, 10, 10, 256, 4))) for cls in ALL]
    assert all(6e6 < n < 8e6 for n in counts)


@pytest.mark.parametrize("cls", ALL)
def test_a_token_sees_before_and_after_it_in_both_axes(cls: type) -> None:
    units = simulated_units()
    batch = simulated_batch(units, 1, 7, 6)
    net, _ = build(cls, simulated_spec(units, 7, 6, 32, 1), {}, seed=0)
    signal = batch.signal.clone().requires_grad_()
    hidden = torch.zeros_like(batch.table.valid)
    tokens = net(signal, hidden, batch.table)
    n_units, n_patches = signal.shape[1:3]
    # A random direction: a sum over a normalised token has no gradient.
    direction = torch.randn(32, generator=torch.Generator().manual_seed(0))
    (tokens[0, n_units // 2, n_patches // 2] @ direction).backward()
    assert signal.grad is not None
    reach = signal.grad[0].abs().sum(-1) > 0
    for unit in (0, n_units - 1):
        for patch in (0, n_patches - 1):
            assert reach[unit, patch], (unit, patch)


@pytest.mark.parametrize(
    ("layout", "n_layers", "kinds"),
    [
        ("", 1, [["M", "A"]]),
        ("", 2, [["M", "M"], ["A", "A"]]),
        ("", 4, [["M", "M"]] * 3 + [["A", "A"]]),
        ("MAMA", 4, [["M", "M"], ["A", "A"]] * 2),
        ("AAMM", 4, [["A", "A"]] * 2 + [["M", "M"]] * 2),
        ("AM", 1, [["A", "M"]]),
    ],
)
def test_a_layout_says_the_mixer_of_every_layer(layout: str, n_layers: int, kinds: list[list[str]]) -> None:
    net = Hybrid(BackboneSpec(12, 3, 10, 6, 32, n_layers), layout=layout)
    found = [["M" if type(p).__name__ == "MambaPass" else "A" for p in layer] for layer in net.layers]
    assert found == kinds


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

"""Finetuning: it learns, repeats itself, and starts from the mean."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from neurobench import adaptation, finetuning
from neurobench.adapters import Adapted
from neurobench.components import Setting
from neurobench.contracts import TokenBackbone
from neurobench.errors import DataError, PluginError
from neurobench.finetuning import FinetuneRecipe, _depths, _Head, _optimiser, finetune, inner_split
from neurobench.records import BackboneSpec, Cohort, Recording, SignalSpec, UnitTable
from neurobench.tokens import Scaler, Tokenizer, Window, evaluation_windows, statistics


class Mixing(TokenBackbone):
    """A small backbone: one feed-forward block."""

    name = "mixing"

    def __init__(self, spec):
        super().__init__(spec)
        self.block = torch.nn.Sequential(
            torch.nn.Linear(spec.width, 32), torch.nn.GELU(), torch.nn.Linear(32, spec.width)
        )

    def mix(self, tokens, table):
        return tokens + self.block(tokens)


def finetuned(kind, tmp_path, recipe, **options):
    """Finetune on signals whose unit 2 varies more within a patch for some subjects, and return the held-out third."""
    y, found = tuned(kind, tmp_path, recipe, **options)
    return y, found.prediction.values


def tuned(kind, tmp_path, recipe, n=48, seed=0, effect=3.0, other_test=False, net=Mixing, how=None):
    """Train; ``effect`` is what of the target is in the signal, ``other_test`` changes the test subjects' signals."""
    rng = np.random.default_rng(1)
    y = (np.arange(n) % 2).astype(float)
    recordings = []
    for i in range(n):
        data = rng.normal(size=(4, 80)).astype(np.float32)
        data[2] += effect * y[i] * np.sign(np.sin(np.arange(80) / 3))
        if other_test and i < 16:
            data = 2 - 5 * data[::-1]
        present = np.array([True, True, True, i % 5 > 0])
        np.save(tmp_path / f"{i}.npy", data)
        recordings.append(
            Recording(f"s{i:02d}", f"s{i:02d}", "rest", tmp_path / f"{i}.npy", 80, present, *statistics(data))
        )
    subjects = [r.subject for r in recordings]
    cohort = Cohort(
        "simulated",
        None,
        "parcels",
        "fmri",
        "simulated",
        pd.DataFrame(index=subjects),
        tuple(recordings),
        UnitTable.from_groups(tuple("abcd"), ("g",) * 4),
        SignalSpec(40.0, 10.0, 1.0),
        "",
    )
    tokenizer = Tokenizer(cohort, Scaler.fit(cohort, subjects[16:]))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = net(BackboneSpec(4, 1, 4, 10, 16, 1))
    target = {s: 20.0 * v + 30 if kind == "regression" else v for s, v in zip(subjects[16:], y[16:], strict=True)}
    chunks = (np.array([0, 2]), np.array([1, 3]))
    train, test = (evaluation_windows(cohort, s) for s in (subjects[16:], subjects[:16]))
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    found = finetune(
        backbone, tokenizer, train, target, test, chunks, kind, seed, recipe, how=how or Setting("finetune")
    )
    assert found.subjects == tuple(subjects[:16])
    if how is not None:
        after = {
            k.replace("parametrizations.", "").removesuffix(".original"): v for k, v in backbone.state_dict().items()
        }
        assert all(torch.equal(v, after[k]) for k, v in before.items())
    return y[:16], found


def test_finetuning_learns_what_can_be_learned(tmp_path):
    recipe = FinetuneRecipe(lr=1e-2, layer_decay=1.0, n_epochs=30)
    y, p = finetuned("classification", tmp_path, recipe)
    assert ((p > 0.5) == y).mean() >= 0.9
    y, p = finetuned("regression", tmp_path, recipe)
    assert np.abs(p - (30 + 20 * y)).mean() < 5


def test_finetuning_starts_from_the_mean_and_repeats_itself(tmp_path):
    _, p = finetuned("regression", tmp_path, FinetuneRecipe(n_epochs=0))
    np.testing.assert_allclose(p, 40.0)
    a, b = (finetuned("classification", tmp_path, FinetuneRecipe(n_epochs=2))[1] for _ in range(2))
    np.testing.assert_array_equal(a, b)


def test_finetuning_refuses_overlap():
    windows = [Window(0, 0, 1, "7", "a")]
    with pytest.raises(DataError, match=r"1 subjects are in training and in test, among them '7'"):
        finetune(None, None, windows, {"7": 1.0}, windows, (), "regression", 0, FinetuneRecipe())
    with pytest.raises(DataError, match=r"1 training subjects have windows but no target"):
        finetune(None, None, windows, {}, [], (), "regression", 0, FinetuneRecipe())


def test_rates_fall_from_the_last_layer_to_the_embedding():
    backbone = Mixing(BackboneSpec(4, 1, 4, 10, 16, 1))
    depth, deepest = _depths(backbone)
    assert (depth["value.weight"], depth["block.0.weight"], depth["block.2.bias"], depth["norm.weight"]) == (0, 1, 3, 4)
    optimiser, _ = _optimiser(Adapted(backbone), _Head(4, 16), FinetuneRecipe(lr=1.0, layer_decay=0.5), 10)
    rates = [g["initial_lr"] for g in optimiser.param_groups]
    assert deepest == 4
    assert (min(rates), max(rates)) == (0.5**4, 1.0)
    assert all(g["weight_decay"] == 0 for g in optimiser.param_groups[:-1] if g["params"][0].ndim == 1)


def test_chunks_side_by_side_are_chunks_one_after_the_other(tmp_path, monkeypatch):
    """Of unequal sizes too, and however many go through the backbone in one call."""
    chunks = [np.arange(7)[i::3] for i in range(3)]
    recipe = FinetuneRecipe(n_epochs=2)
    assert [[len(c) for c in stack] for stack in adaptation.side_by_side(chunks, 10, 1 << 15)] == [[3], [2, 2]]
    _, together = finetuned("regression", tmp_path, recipe)
    monkeypatch.setattr(finetuning, "AT_ONCE", 20)
    assert [[len(c) for c in stack] for stack in adaptation.side_by_side(chunks, 10, 20)] == [[3], [2], [2]]
    _, in_turn = finetuned("regression", tmp_path, recipe)
    np.testing.assert_allclose(together, in_turn, rtol=1e-4)


# ---------------------------------------------------------------- what stays frozen

PROMPT, LORA = Setting("prompt", {"tokens": 3}), Setting("lora", {"rank": 2})
LONG = FinetuneRecipe(lr=5e-2, layer_decay=1.0, n_epochs=15, patience=15)


class Attending(TokenBackbone):
    """A small backbone whose tokens draw on the mean of the others, so that prompts reach them."""

    name = "attending"

    def __init__(self, spec):
        super().__init__(spec)
        self.block = torch.nn.Sequential(
            torch.nn.Linear(spec.width, 32), torch.nn.GELU(), torch.nn.Linear(32, spec.width)
        )
        self.register_buffer("unsaved", torch.ones(2), persistent=False)

    def mix(self, tokens, table):
        weight = table.valid[..., None].float()
        return tokens + self.block(
            tokens + (tokens * weight).sum((1, 2), keepdim=True) / weight.sum((1, 2), keepdim=True)
        )


@pytest.mark.parametrize("how", [PROMPT, LORA], ids=["prompt", "lora"])
def test_a_frozen_backbone_keeps_its_bytes_and_predicts_otherwise(how, tmp_path):
    """``tuned`` compares every weight with what it was; the head alone would say something else."""
    _, adapted = tuned("classification", tmp_path, LONG, net=Attending, how=how)
    _, whole = tuned("classification", tmp_path, LONG, net=Attending)
    n_backbone, n_head = (
        sum(p.numel() for p in Attending(BackboneSpec(4, 1, 4, 10, 16, 1)).parameters()),
        4 * 32 + 64 + 1,
    )
    n_added = 3 * 16 if how is PROMPT else 2 * (10 + 16 + 3 + 16 + 2 * (16 + 32))
    assert (adapted.n_trained, adapted.n_parameters) == (n_added + n_head, n_added + n_head + n_backbone)
    assert whole.n_trained == whole.n_parameters == n_backbone + n_head
    assert adapted.n_epochs > 0
    frozen = type("Still", (Attending,), {"with_prompts": lambda self, n: [torch.nn.Parameter(torch.zeros(n, 16))]})
    _, still = tuned("classification", tmp_path, LONG, net=frozen, how=PROMPT)
    assert np.abs(adapted.prediction.values - still.prediction.values).max() > 0.01


def test_low_rank_updates_start_as_nothing(tmp_path):
    recipe = FinetuneRecipe(n_epochs=0)
    _, adapted = tuned("regression", tmp_path, recipe, how=LORA)
    np.testing.assert_allclose(adapted.prediction.values, 40.0)
    with pytest.raises(PluginError, match=r"no linear layer that an update of rank 99 is smaller than"):
        tuned("regression", tmp_path, recipe, how=Setting("lora", {"rank": 99}))


class Counts(Attending):
    """Changes a buffer whenever it is trained, as a batch norm does."""

    def forward(self, signal, hidden, table):
        if self.training:
            self.unsaved += 1
        return super().forward(signal, hidden, table)


class Thaws(Attending):
    """Has its weights trained after all."""

    def forward(self, signal, hidden, table):
        self.requires_grad_(True)
        return super().forward(signal, hidden, table)


class LearnsItself(Attending):
    """Takes its own steps, and hides them from whoever looks at gradients."""

    def forward(self, signal, hidden, table):
        if self.training:
            self.norm.weight.data += 1e-6
        return super().forward(signal, hidden, table)


class Swaps(Attending):
    """Puts another layer in the place of one."""

    def forward(self, signal, hidden, table):
        self.extra = torch.nn.Linear(2, 2)
        return super().forward(signal, hidden, table)


@pytest.mark.parametrize("how", [PROMPT, LORA], ids=["prompt", "lora"])
@pytest.mark.parametrize(
    ("net", "message"),
    [
        (Counts, "unsaved changed"),
        (Thaws, "was made trainable"),
        (LearnsItself, r"norm\.weight changed"),
        (Swaps, "extra.* changed"),
    ],
)
def test_a_backbone_that_does_not_stay_frozen_is_caught(net, message, how, tmp_path):
    with pytest.raises(PluginError, match=f"'attending' does not stay frozen while it is adapted: .*{message}"):
        tuned("classification", tmp_path, FinetuneRecipe(n_epochs=1), net=net, how=how)


# ---------------------------------------------------------------- when to stop


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_training_stops_early_on_noise_and_late_on_signal(kind, tmp_path):
    recipe = FinetuneRecipe(lr=1e-2, layer_decay=1.0, n_epochs=15, patience=4)
    noise = [tuned(kind, tmp_path, recipe, effect=0.0, seed=s)[1].n_epochs for s in range(3)]
    signal = [tuned(kind, tmp_path, recipe, effect=3.0, seed=s)[1].n_epochs for s in range(3)]
    assert np.mean(noise) < 5
    assert min(signal) > 8


def test_nothing_of_the_test_subjects_decides_when_to_stop(tmp_path):
    """Their labels are not given at all; other signals of theirs change what is predicted, and not the epochs."""
    recipe = FinetuneRecipe(lr=1e-2, layer_decay=1.0, n_epochs=12, patience=3)
    for how in (None, PROMPT):
        one, other = (
            tuned("regression", tmp_path, recipe, net=Attending, how=how, other_test=o)[1] for o in (False, True)
        )
        assert one.n_epochs == other.n_epochs
        assert not np.allclose(one.prediction.values, other.prediction.values)


def test_the_inner_split_is_a_fifth_of_the_families_spread_over_the_target():
    rng = np.random.default_rng(0)
    y = rng.normal(size=60)
    family = [f"family {i // 2}" for i in range(60)]
    held = inner_split(y, family, rng, "regression")
    assert held.sum() == 12
    assert (held.reshape(30, 2)[:, 0] == held.reshape(30, 2)[:, 1]).all()
    mean = np.sort(y.reshape(30, 2).mean(1))
    chosen = np.sort(y.reshape(30, 2).mean(1)[held[::2]])
    for i, value in enumerate(chosen):
        assert mean[5 * i] <= value <= mean[5 * i + 4]
    rare = (np.arange(40) < 3).astype(float)
    held = inner_split(rare, [str(i) for i in range(40)], rng, "classification")
    assert (held[:3].sum(), held[3:].sum()) == (1, 7)
    assert not inner_split(y[:9], [str(i) for i in range(9)], rng, "regression").any()

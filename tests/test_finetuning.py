"""Finetuning: it learns, repeats itself, and starts from the mean."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from neurobench import adaptation
from neurobench.contracts import TokenBackbone
from neurobench.errors import DataError
from neurobench.finetuning import FinetuneRecipe, _depths, _Head, _optimiser, finetune
from neurobench.records import BackboneSpec, Cohort, Recording, SignalSpec, UnitTable
from neurobench.tokens import Scaler, Tokenizer, Window, evaluation_windows, statistics


class Mixing(TokenBackbone):
    """A small backbone: one feed-forward block."""

    def __init__(self, spec):
        super().__init__(spec)
        self.block = torch.nn.Sequential(
            torch.nn.Linear(spec.width, 32), torch.nn.GELU(), torch.nn.Linear(32, spec.width)
        )

    def mix(self, tokens, table):
        return tokens + self.block(tokens)


def finetuned(kind, tmp_path, recipe, n=48, seed=0):
    """Finetune on signals whose unit 2 varies more within a patch for some subjects, and return the held-out third."""
    rng = np.random.default_rng(1)
    y = (np.arange(n) % 2).astype(float)
    recordings = []
    for i in range(n):
        data = rng.normal(size=(4, 80)).astype(np.float32)
        data[2] += 3 * y[i] * np.sign(np.sin(np.arange(80) / 3))
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
        backbone = Mixing(BackboneSpec(4, 1, 4, 10, 16, 1))
    target = {s: 20.0 * v + 30 if kind == "regression" else v for s, v in zip(subjects[16:], y[16:], strict=True)}
    chunks = (np.array([0, 2]), np.array([1, 3]))
    train, test = (evaluation_windows(cohort, s) for s in (subjects[16:], subjects[:16]))
    order, prediction = finetune(backbone, tokenizer, train, target, test, chunks, kind, seed, recipe)
    assert order == tuple(subjects[:16])
    return y[:16], prediction.values


def test_finetuning_learns_what_can_be_learned(tmp_path):
    recipe = FinetuneRecipe(lr=1e-2, layer_decay=1.0, n_epochs=40)
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
    optimiser, _ = _optimiser(backbone, _Head(4, 16), FinetuneRecipe(lr=1.0, layer_decay=0.5), 10)
    rates = [g["initial_lr"] for g in optimiser.param_groups]
    assert deepest == 4
    assert (min(rates), max(rates)) == (0.5**4, 1.0)
    assert all(g["weight_decay"] == 0 for g in optimiser.param_groups[:-1] if g["params"][0].ndim == 1)


def test_chunks_side_by_side_are_chunks_one_after_the_other(tmp_path, monkeypatch):
    """Of unequal sizes too, and however many go through the backbone in one call."""
    chunks = [np.arange(7)[i::3] for i in range(3)]
    recipe = FinetuneRecipe(n_epochs=2)
    assert [[len(c) for c in stack] for stack in adaptation.side_by_side(chunks, 10)] == [[3], [2, 2]]
    _, together = finetuned("regression", tmp_path, recipe)
    monkeypatch.setattr(adaptation, "AT_ONCE", 20)
    assert [[len(c) for c in stack] for stack in adaptation.side_by_side(chunks, 10)] == [[3], [2], [2]]
    _, in_turn = finetuned("regression", tmp_path, recipe)
    np.testing.assert_allclose(together, in_turn, rtol=1e-4)

"""Contract checks of backbones and masking strategies: what is wrong is told where it is wrong."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from neurobench.checks import check_component
from neurobench.checks.common import demand
from neurobench.contracts import (
    Baseline,
    MaskingStrategy,
    TokenBackbone,
    feedforward_width,
)
from neurobench.errors import CheckError
from neurobench_masks.random import Random


class Attention(nn.Module):
    """One pass of masked attention and a feed-forward block, within the budget."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        hidden = feedforward_width(width, 4 * width * width + 8 * width)
        self.feed = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        bias = torch.zeros(valid.shape).masked_fill(~valid, -1e9)[..., None, :]
        x = x + self.out(((q @ k.transpose(-1, -2) / x.shape[-1] ** 0.5 + bias).softmax(-1)) @ v)
        return x + self.feed(self.norm2(x))


class Good(TokenBackbone):
    """Attention along units, then along time."""

    name = "good"
    summary = "keeps the contract"

    def __init__(self, spec) -> None:
        super().__init__(spec)
        self.passes = nn.ModuleList(Attention(spec.width) for _ in range(2 * spec.n_layers))

    def mix(self, tokens, table):
        for i, one in enumerate(self.passes):
            turned, valid = tokens.transpose(1, 2), table.valid.transpose(1, 2)
            tokens = one(tokens, table.valid) if i % 2 else one(turned, valid).transpose(1, 2)
        return tokens


def test_a_good_backbone_passes_everything() -> None:
    results = check_component(Good)
    assert all(r.outcome == "passed" for r in results), [r for r in results if r.outcome != "passed"]
    remarks = {r.check: r.message for r in results}
    assert "32 × 1" in remarks["parameter-budget"]
    assert "0.0%" in remarks["order-of-units"]


class Broken(Good):
    """A good backbone with one thing changed by its subclasses."""

    name = "broken"


class OneWay(Broken):
    """Sees only what comes before."""

    def mix(self, tokens, table):
        flat = tokens.flatten(1, 2)
        flat = flat.cumsum(1) / torch.arange(1, flat.shape[1] + 1)[None, :, None]
        return flat.view_as(tokens)


class Wide(Broken):
    """Twice the parameters."""

    def __init__(self, spec) -> None:
        super().__init__(spec)
        self.more = nn.ModuleList(Attention(spec.width) for _ in range(2 * spec.n_layers))


class Unmasked(Broken):
    """Attends to units that are missing."""

    def mix(self, tokens, table):
        return super().mix(tokens, replace(table, valid=table.valid | True))


class BatchNormed(Broken):
    """Normalises over the batch."""

    def __init__(self, spec) -> None:
        super().__init__(spec)
        self.batch_norm = nn.BatchNorm1d(spec.width)

    def mix(self, tokens, table):
        return self.batch_norm(super().mix(tokens, table).flatten(0, 2)).view_as(tokens)


class Blind(Broken):
    """Embeds all that is known of a sensor but what it measures."""

    def embed(self, signal, hidden, table):
        nothing = torch.zeros_like(table.orientation), torch.full_like(table.type, -1)
        return super().embed(signal, hidden, replace(table, orientation=nothing[0], type=nothing[1]))


class Dropped(Broken):
    """Leaves dropout on."""

    def mix(self, tokens, table):
        return nn.functional.dropout(super().mix(tokens, table), 0.1)


class Numpy(Broken):
    """Draws its weights from numpy."""

    def __init__(self, spec) -> None:
        super().__init__(spec)
        self.passes[0].out.bias.data += torch.from_numpy(np.random.rand(spec.width)).float()  # noqa: NPY002


class Secret(Broken):
    """Holds a weight that is none."""

    def __init__(self, spec) -> None:
        super().__init__(spec)
        self.secret = torch.randn(spec.width)

    def mix(self, tokens, table):
        return super().mix(tokens, table) * self.secret


class Wrong(Broken):
    """Returns one token a unit, in double precision, with a NaN."""

    def mix(self, tokens, table):
        return super().mix(tokens, table).mean(2, keepdim=True)

    def forward(self, signal, hidden, table):
        return super().forward(signal, hidden, table).double() * float("nan")


class Taken(Broken):
    """Calls a layer of its own what the embedding's is called."""

    def __init__(self, spec) -> None:
        super().__init__(spec)
        self.value = nn.ModuleList([nn.Linear(spec.width, spec.width)])


class Writes(Broken):
    """Writes into its input."""

    def forward(self, signal, hidden, table):
        signal += 1.0
        return super().forward(signal, hidden, table)


@pytest.mark.parametrize(
    ("cls", "check", "message"),
    [
        (OneWay, "reach", "the output at unit 0, patch 0 sees no other token"),
        (OneWay, "gradients", r"no gradient reaches passes\.0\.norm"),
        (Wide, "parameter-budget", r"at width 64 and 2 layers, \+\d\d% of the budget"),
        (
            Unmasked,
            "invalid-tokens",
            "missing units change the other tokens by .*padded patches change the other tokens",
        ),
        (BatchNormed, "subjects-do-not-mix", "mixed in train mode"),
        (BatchNormed, "no-state", "after another batch in train mode"),
        (Blind, "sensors", "other orientations change nothing.*other types change nothing"),
        (Dropped, "same-seed-same-bytes", "chance is left on"),
        (Numpy, "same-seed-same-bytes", r"the same seed builds different weights: passes\.0\.out\.bias"),
        (Secret, "weights-move", "after the weights are moved"),
        (Wrong, "output", r"returns \(batch, units, 1, width\), not \(batch, units, patches, width\); .*float64.*NaN"),
        (Taken, "builds", r"sets self\.value, which TokenBackbone embeds with"),
        (Taken, "output", r"raised NotImplementedError"),
        (Writes, "inputs-are-left-alone", "writes into `signal`"),
    ],
)
def test_a_broken_backbone_fails_where_it_is_broken(cls, check: str, message: str) -> None:
    (result,) = check_component(cls, only=check)
    assert result.outcome == "failed"
    assert re.search(message, result.message), result.message


def test_what_cannot_be_built_is_to_be_mended_first() -> None:
    told = {r.check: r.message for r in check_component(Taken) if r.outcome == "failed"}
    assert "impossible" not in told["builds"]
    assert told["reach"].endswith("Mend `builds` first: this may come of it.")


class Ending(MaskingStrategy):
    """Yields the first half of every unit and stops; nothing where that is nothing."""

    name = "half"
    summary = "the first half"

    def elements(self, window, n_hidden, rng):
        n_units, n_patches = window.valid.shape
        for unit in range(n_units):
            yield [unit * n_patches + p for p in range(n_patches // 2)]


def test_a_mask_that_ends_too_early_is_told_so_once() -> None:
    (result,) = check_component(Ending, only="equal-budget")
    assert re.search(r"do not suffice \(12 parcels × 5 patches, ratio 0\.5: .*; and \d+ more\)\. Yield", result.message)
    assert len(result.message) < 500
    (result,) = check_component(Ending, only="elements-are-flat-indices")
    assert "yields an empty list, which has no type: leave it out (30 parcels × 1 patches" in result.message


class Guessing(Baseline):
    """Asks a recording for what it does not have."""

    name = "guessed"
    summary = "a guess"

    def fit(self, cohort):
        """Learn nothing."""

    def transform(self, cohort):
        return np.stack([r.signal.mean(1) for r in cohort.recordings])


def test_a_wrong_guess_is_answered_by_what_there_is() -> None:
    (result,) = check_component(Guessing, only="features")
    assert re.search(r"has no attribute 'signal'; it has .*n_times, open, path, piece", result.message), result.message


class Double(BatchNormed):
    """Wrong in four ways, the first of which torch alone would tell of."""

    def mix(self, tokens, table):
        torch.manual_seed(3)
        table.position.zero_()
        return super().mix(tokens, table).double().transpose(1, 2)


def test_a_wrong_type_and_exchanged_axes_hide_nothing_else() -> None:
    told = {check: check_component(Double, only=check)[0] for check in (*TOLD, "weights-move")}
    for check, message in TOLD.items():
        assert message in told[check].message
    assert told["weights-move"].outcome == "passed"


TOLD = {
    "output": "returns (batch, patches, units, width), not (batch, units, patches, width); `mix` returns torch.float64",
    "subjects-do-not-mix": "mixed in train mode",
    "same-seed-same-bytes": "a call sets the seed of torch",
    "inputs-are-left-alone": "a call writes into `table.position`.",
}


class Detached(Broken):
    """Lets no gradient through."""

    def forward(self, signal, hidden, table):
        return super().forward(signal, hidden, table).detach()


def test_tokens_without_a_gradient_are_told_in_words() -> None:
    (result,) = check_component(Detached, only="reach")
    assert result.message.startswith("no gradient gets from the output back to the signal.")
    (result,) = check_component(Detached, only="subjects-do-not-mix")
    assert result.outcome == "passed"


@pytest.mark.parametrize("problem", ["it calls f()", "it calls f() (meg)", "it writes into `table`"])
def test_a_single_problem_is_told_as_it_is(problem: str) -> None:
    with pytest.raises(CheckError, match=f"^{re.escape(problem)}[.]"):
        demand([problem])


class Seeded(Random):
    """Sets the seed before it draws from its generator."""

    def elements(self, window, n_hidden, rng):
        np.random.seed(0)  # noqa: NPY002
        return super().elements(window, n_hidden, rng)


class Forgetful(Random):
    """Forgets to return."""

    def elements(self, window, n_hidden, rng):
        super().elements(window, n_hidden, rng)


def test_a_mask_that_sets_a_seed_or_returns_nothing_is_told() -> None:
    (seeded,) = check_component(Seeded, only="table-and-generator-only")
    assert seeded.message.startswith("drawing a mask sets the seed of numpy for everybody.")
    (nothing,) = check_component(Forgetful, only="elements-are-flat-indices")
    assert nothing.message.startswith("`elements` returns None")


class Half(Broken):
    """Returns half of every token."""

    def mix(self, tokens, table):
        return super().mix(tokens, table)[..., ::2]


class Unasked(Broken):
    """Has a signature of its own."""

    def mix(self, tokens):
        return tokens


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (Half, "`mix` returns (batch, units, patches, 16), not (batch, units, patches, width)."),
        (Unasked, "`mix(self, tokens)` cannot be called as it is: too many positional arguments."),
    ],
)
def test_what_cannot_be_put_right_is_told_in_one_sentence(cls, message: str) -> None:
    told = [check_component(cls, only=check)[0] for check in ("output", "no-state", "reach", "inputs-are-left-alone")]
    assert [r.message for r in told] == [message, message, message, ""]

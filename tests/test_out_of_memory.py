"""A batch computed in parts is the batch; where memory is short that is what is done, and the record says so."""

from __future__ import annotations

import errno
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from neurobench import TokenBackbone, results
from neurobench.adaptation import embed_subjects
from neurobench.cohorts import CohortSource
from neurobench.errors import NeurobenchError
from neurobench.learners import Drawn, learner_of
from neurobench.objectives import RECONSTRUCTION, Latent, Objective, Reconstruction
from neurobench.out_of_memory import in_halves, is_out_of_memory
from neurobench.pretraining import Recipe, build, masks_of, optimise, parameter_groups, pretrain
from neurobench.reconstruction import BackbonePredictor
from neurobench.records import BackboneSpec, Cohort, SignalSpec
from neurobench.store import Store
from neurobench.tokens import Scaler, Tokenizer, TrainingWindows, evaluation_windows, unit_chunks
from neurobench_backbones.brainmae import BrainMAE
from neurobench_backbones.learned_graph import LearnedGraph
from neurobench_backbones.moe_ssm import MoeSsm
from neurobench_backbones.transformer import Transformer
from neurobench_masks.random import Random
from neurobench_masks.random_tube import RandomTube
from tests import greedy_plugin
from tests.fakes import FakeDataset, write_folder
from tests.tiny_run import execute

N_WINDOWS = 8


class Greedy(greedy_plugin.Greedy):
    """Leaves half of what it adds to chance, so that a step that is tried again has to draw the same."""

    limit = N_WINDOWS

    def mix(self, tokens: torch.Tensor, table: Any) -> torch.Tensor:
        return nn.functional.dropout(super().mix(tokens, table), 0.5, self.training)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    root = tmp_path_factory.mktemp("out-of-memory")
    write_folder(root / "data", n_subjects=12)
    spec = SignalSpec(window_s=40.0, patch_s=8.0)
    return CohortSource(FakeDataset(), "fake", {"name": "fake"}, spec, root / "data").load(Store(root / "out"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_folder(folder, n_subjects=24)
    return folder


def windows(cohort: Cohort) -> TrainingWindows:
    return TrainingWindows(Tokenizer(cohort, Scaler.fit(cohort, cohort.subjects)), cohort.subjects, 60, 0)


def built(cohort: Cohort, cls: type[TokenBackbone], **parameters: Any) -> tuple[Any, Any]:
    spec = BackboneSpec(len(cohort.units), 3, cohort.patches_per_window, cohort.n_features, 32, 1)
    net, decoder = build(cls, spec, parameters, seed=1)
    if net.uses_connectivity:
        net.connectivity.copy_(torch.eye(len(cohort.units)).roll(1, 0))
    return net.train(), decoder


def step(cohort: Cohort, objective: Objective = RECONSTRUCTION, n: int = N_WINDOWS) -> Drawn:
    batch = windows(cohort).draw(0, n)
    return Drawn.of(batch, *masks_of(batch, Random(), 0.5, seed=0, step=0, objective=objective))


def gradients(
    cohort: Cohort, cls: type[TokenBackbone], drawn: Drawn, objective: Objective, n_parts: int, **parameters: Any
) -> tuple[dict[str, torch.Tensor], float]:
    learner = learner_of(objective, *built(cohort, cls, **parameters), width=32, seed=0)
    size, told = len(drawn) // n_parts, 0.0
    for first in range(0, len(drawn), size):
        loss, error = learner.losses(drawn.part(first, first + size))
        loss.backward()
        told += float(error)
    named = (pair for i, m in enumerate(learner.modules) for pair in ((f"{i}.{n}", p) for n, p in m.named_parameters()))
    return {n: p.grad for n, p in named if p.grad is not None}, told


def different(whole: dict[str, torch.Tensor], parts: dict[str, torch.Tensor]) -> set[str]:
    """Return whose gradients differ by more than rounding; that of a key's bias is nothing but rounding."""
    assert whole.keys() == parts.keys()
    size = float(torch.stack([g.norm() for g in whole.values()]).norm())
    return {k for k, g in whole.items() if (g - parts[k]).norm() > 1e-5 * g.norm() + 1e-7 * size}


# ---------------------------------------------------------------- parts of a batch


@pytest.mark.parametrize("cls", [Transformer, BrainMAE, LearnedGraph])
@pytest.mark.parametrize(
    "objective", [RECONSTRUCTION, Reconstruction(visible=0.25), Reconstruction(ratio_to=0.8), Latent()]
)
def test_gradients_of_parts_add_up_to_those_of_the_batch(cohort: Cohort, cls: type, objective: Objective) -> None:
    # Drawn ratios make parts whose numbers of scored tokens differ: a mean of means would be another loss.
    drawn = step(cohort, objective)
    (whole, told), (parts, told_in_parts) = (gradients(cohort, cls, drawn, objective, n) for n in (1, 4))
    assert different(whole, parts) == set()
    assert told_in_parts == pytest.approx(told, rel=1e-6)


def test_a_part_is_what_the_batch_has_of_its_windows(cohort: Cohort) -> None:
    drawn = step(cohort)
    part = drawn.part(2, 5)
    alone = Drawn.of(*_only(cohort, 2, 5))
    assert torch.equal(part.signal, alone.signal)
    assert torch.equal(part.scored, alone.scored)
    assert torch.equal(part.visible, alone.visible)
    assert part.ends == alone.ends
    assert (part.n_windows, part.n_scored, part.n_visible) == (N_WINDOWS, drawn.n_scored, drawn.n_visible)
    again, inner = part.part(1, 3), drawn.part(3, 5)
    assert torch.equal(again.scored, inner.scored)
    assert drawn.part(0, N_WINDOWS) is drawn


def _only(cohort: Cohort, first: int, last: int) -> tuple[Any, torch.Tensor, torch.Tensor]:
    batch = windows(cohort).draw(0, N_WINDOWS)
    masks = masks_of(batch, Random(), 0.5, seed=0, step=0)
    table = batch.table.map(lambda t: t[first:last])
    return replace(batch, signal=batch.signal[first:last], table=table), *(m[first:last] for m in masks)


def test_what_a_backbone_adds_to_the_loss_counts_once_in_parts(cohort: Cohort) -> None:
    # Of equal windows the load is as uneven in a part as in the whole, and the gradients are the same.
    one = step(cohort, n=1)
    batch, hidden, scored = _only(cohort, 0, 1)
    four = replace(batch, signal=batch.signal.repeat(4, 1, 1, 1), table=batch.table.map(lambda t: torch.cat([t] * 4)))
    alike = Drawn.of(four, torch.cat([hidden] * 4), torch.cat([scored] * 4))
    assert len(one) == 1
    whole, parts = (gradients(cohort, MoeSsm, alike, RECONSTRUCTION, n)[0] for n in (1, 4))
    assert different(whole, parts) == set()
    # Of other windows only the router hears of the parts.
    drawn = step(cohort)
    whole, parts = (gradients(cohort, MoeSsm, drawn, RECONSTRUCTION, n)[0] for n in (1, 4))
    assert {k.split(".")[-2] for k in different(whole, parts)} == {"router"}


# ---------------------------------------------------------------- memory that does not suffice


def train(cohort: Cohort, limit: int, batch_size: int = N_WINDOWS) -> tuple[dict[str, torch.Tensor], Any]:
    cls = type("Limited", (Greedy,), {"limit": limit})
    net, decoder = built(cohort, cls)
    recipe = Recipe(batch_size=batch_size)
    history = pretrain(net, decoder, RandomTube(), windows(cohort), recipe=recipe, n_steps=4, ratio=0.5, seed=0)
    return net.state_dict(), history


def test_a_batch_that_does_not_fit_is_computed_in_parts_and_the_history_says_so(cohort: Cohort) -> None:
    whole, history = train(cohort, N_WINDOWS)
    assert history.micro_batch is None
    parts, halved = train(cohort, 2)
    assert halved.micro_batch == 2
    assert halved.to_dict()["micro_batch"] == 2
    # Chance falls otherwise on windows in parts, so only the masks' shares are the same.
    assert halved.scored_fraction == history.scored_fraction
    assert not all(torch.equal(whole[k], parts[k]) for k in whole)
    again, _ = train(cohort, 2)
    assert all(torch.equal(parts[k], again[k]) for k in parts)


OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory."),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you"),
]


@pytest.mark.parametrize(
    "error", [*OF_MEMORY, RuntimeError("std::bad_alloc"), OSError(errno.ENOMEM, "Cannot allocate memory")]
)
def test_what_the_host_says_of_its_memory_is_known(error: Exception) -> None:
    assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("no"))
    assert not is_out_of_memory(OSError(errno.ENOENT, "No such file"))


@pytest.mark.parametrize("error", OF_MEMORY)
def test_a_step_is_tried_again_as_if_it_had_not_been_tried(cohort: Cohort, error: Exception) -> None:
    failures = [error]

    class Once(Greedy):
        def mix(self, tokens: torch.Tensor, table: Any) -> torch.Tensor:
            mixed = super().mix(tokens, table)
            # In the second part, when the first has left its gradients.
            if failures and len(tokens) == 4 and self.seen:
                raise failures.pop()
            self.seen = True
            return mixed

        seen = False

    def after(cls: type, micro_batch: int) -> tuple[list[torch.Tensor], int]:
        torch.manual_seed(3)
        learner = learner_of(RECONSTRUCTION, *built(cohort, cls), width=32, seed=0)
        optimiser = torch.optim.AdamW(parameter_groups(learner.modules, 0.05), lr=0.01)
        _, kept = optimise(learner, step(cohort), optimiser, 1.0, micro_batch)
        return [p for m in learner.modules for p in m.parameters()], kept

    tried, kept = after(Once, 4)
    assert (failures, kept) == ([], 2)
    straight, _ = after(Greedy, 2)
    assert all(torch.equal(a, b) for a, b in zip(tried, straight, strict=True))


def test_other_errors_are_no_lack_of_memory(cohort: Cohort) -> None:
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("can't allocate memory"))


def test_a_window_that_does_not_fit_says_what_would(cohort: Cohort) -> None:
    net, decoder = built(cohort, greedy_plugin.Huge)
    with pytest.raises(
        NeurobenchError, match=r"one window of 60 tokens does not fit into memory\. Allowed: windows of"
    ):
        pretrain(net, decoder, RandomTube(), windows(cohort), recipe=Recipe(batch_size=4), n_steps=2, ratio=0.5, seed=0)
    with pytest.raises(NeurobenchError, match="30 tokens, which were tried and fit"):
        pretrain(net, decoder, RandomTube(), windows(cohort), recipe=Recipe(batch_size=4), n_steps=2, ratio=0.5, seed=0)


def test_features_and_reconstructions_go_through_in_halves(cohort: Cohort) -> None:
    tokenizer = Tokenizer(cohort, Scaler.fit(cohort, cohort.subjects))
    cut, chunks = evaluation_windows(cohort, cohort.subjects), unit_chunks(cohort.units, len(cohort.units))
    batch = windows(cohort).draw(0, 5)
    hidden, _ = masks_of(batch, RandomTube(), 0.5, seed=0, step=0)

    def both(limit: int) -> tuple[Any, torch.Tensor]:
        net, decoder = built(cohort, type("Limited", (Greedy,), {"limit": limit}))
        return embed_subjects(net, tokenizer, cut, chunks)[1], BackbonePredictor(net, decoder)(batch, hidden)

    (features, filled), (halved, filled_halved) = both(1000), both(2)
    torch.testing.assert_close(torch.from_numpy(halved), torch.from_numpy(features))
    torch.testing.assert_close(filled_halved, filled)
    with pytest.raises(NeurobenchError, match="one window does not fit into memory"):
        in_halves(lambda first, last: (_ for _ in ()).throw(MemoryError()), 3)


def test_records_say_that_a_batch_was_computed_in_parts_and_what_did_not_fit(data: Path, tmp_path: Path) -> None:
    plugin = Path(greedy_plugin.__file__)
    result = execute(
        data, tmp_path / "out", backbone="huge,greedy,tiny", task="reconstruction", plugin_files=plugin, jobs=1
    )
    found = (results.read_record(path) for path in (tmp_path / "out" / "records").iterdir())
    records = {record.row: record for record in found}
    assert [f for f in result.failed if "huge · roi" not in f] == []
    assert records["tiny · roi"].cost.micro_batch is None
    assert records["greedy · roi"].cost.micro_batch == 2
    assert any("in parts of 2" in note for note in records["greedy · roi"].notes)
    assert "one window of 60 tokens does not fit into memory" in records["huge · roi"].error
    assert "windows of about 30 tokens" in records["huge · roi"].error


LIMITED = """
import resource, sys
import torch
from pathlib import Path
from tests.test_out_of_memory import *

torch.set_num_threads(1)
root = Path(sys.argv[1])
write_folder(root / "data", n_subjects=12)
spec = SignalSpec(window_s=40.0, patch_s=8.0)
cohort = CohortSource(FakeDataset(), "fake", {"name": "fake"}, spec, root / "data").load(Store(root / "out"))


class Wide(Greedy):
    limit = 1000

    def mix(self, tokens, table):
        # 32 MiB a window, kept for the way back.
        wide = super().mix(tokens, table).repeat(1, 1, 1, 4400)
        return tokens + wide.square().unflatten(-1, (-1, tokens.shape[-1])).mean(-2)


def used():
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


net, decoder = built(cohort, Wide)
arguments = dict(recipe=Recipe(batch_size=16), n_steps=2, ratio=0.5, seed=0)
pretrain(net, decoder, RandomTube(), windows(cohort), **arguments | {"recipe": Recipe(batch_size=1)})
resource.setrlimit(resource.RLIMIT_AS, (used() + (600 << 20), resource.RLIM_INFINITY))
print("windows at once:", pretrain(net, decoder, RandomTube(), windows(cohort), **arguments).micro_batch)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's limit of a process's memory")
def test_an_allocator_of_the_host_that_fails_is_met(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.rpartition(":")[2]) < 16

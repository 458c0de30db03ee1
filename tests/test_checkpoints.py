"""A pretraining that is stopped goes on: with the same bytes at the end, from nothing that is damaged or foreign."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from neurobench import TokenBackbone, pretraining
from neurobench.cohorts import CohortSource
from neurobench.objectives import RECONSTRUCTION, Latent, Objective
from neurobench.pretraining import Recipe, build, pretrain
from neurobench.records import BackboneSpec, Cohort, SignalSpec
from neurobench.store import Checkpoint, Store
from neurobench.tokens import Scaler, Tokenizer, TrainingWindows
from neurobench_backbones.mamba import Mamba
from neurobench_backbones.transformer import Transformer
from neurobench_masks.random_tube import RandomTube
from tests.fakes import FakeDataset, write_folder

N_STEPS = 6


class WithDropout(TokenBackbone):
    """Leaves half of what it adds to chance in training."""

    name = "with_dropout"
    summary = "for tests"

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__(spec)
        self.lift = nn.Linear(spec.width, spec.width)

    def mix(self, tokens: torch.Tensor, table: Any) -> torch.Tensor:
        return tokens + nn.functional.dropout(self.lift(tokens.mean((1, 2), keepdim=True)), 0.5, self.training)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    root = tmp_path_factory.mktemp("checkpoints")
    write_folder(root / "data", n_subjects=8)
    spec = SignalSpec(window_s=40.0, patch_s=8.0)
    return CohortSource(FakeDataset(), "fake", {"name": "fake"}, spec, root / "data").load(Store(root / "out"))


@pytest.fixture(autouse=True)
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretraining, "CHECKPOINT_EVERY_S", 0.0)
    monkeypatch.setattr(pretraining, "CHECKPOINT_SHARE", float("inf"))


class Stopped(Exception):
    """Raised by a test between two steps."""


def train(
    cohort: Cohort,
    checkpoint: Checkpoint | None = None,
    *,
    cls: type = Transformer,
    objective: Objective = RECONSTRUCTION,
    stop_after: int = N_STEPS,
) -> tuple[dict[str, torch.Tensor], pretraining.History, list[int]]:
    """Return weights, history, and the numbers of the steps that were done now; stopped after one of them, nothing."""
    windows = TrainingWindows(Tokenizer(cohort, Scaler.fit(cohort, cohort.subjects)), cohort.subjects, 60, 0)
    spec = BackboneSpec(len(cohort.units), 3, cohort.patches_per_window, cohort.n_features, 32, 1)
    net, decoder = build(cls, spec, {}, seed=1)
    done: list[int] = []

    def on_step(step: int) -> None:
        done.append(step)
        if step + 1 == stop_after < N_STEPS:
            raise Stopped

    history = pretrain(
        net,
        decoder,
        RandomTube(),
        windows,
        recipe=Recipe(batch_size=4),
        n_steps=N_STEPS,
        ratio=0.5,
        seed=0,
        objective=objective,
        on_step=on_step,
        checkpoint=checkpoint,
    )
    return {**net.state_dict(), **{f"decoder.{k}": v for k, v in decoder.state_dict().items()}}, history, done


def stopped(cohort: Cohort, checkpoint: Checkpoint, after: int, **options: Any) -> None:
    with pytest.raises(Stopped):
        train(cohort, checkpoint, stop_after=after, **options)


def place(tmp_path: Path, key: str = "k" * 64) -> Checkpoint:
    return Checkpoint(tmp_path / key, "pretrain it")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize(
    ("cls", "objective"),
    [(Mamba, RECONSTRUCTION), (Transformer, Latent(0.9)), (WithDropout, RECONSTRUCTION), (WithDropout, Latent(0.9))],
    ids=["reconstruction", "latent", "dropout", "dropout-latent"],
)
def test_stopped_twice_it_ends_with_the_same_bytes(
    cohort: Cohort, tmp_path: Path, cls: type, objective: Objective
) -> None:
    options = {"cls": cls, "objective": objective}
    weights, history, done = train(cohort, **options)
    assert done == list(range(N_STEPS))
    stopped(cohort, place(tmp_path), 1, **options)
    torch.rand(7)
    stopped(cohort, place(tmp_path), 4, **options)
    again, resumed, done = train(cohort, place(tmp_path), **options)
    assert done == [4, 5], "it goes on from where it was"
    assert same(weights, again)
    assert resumed.losses == history.losses
    assert (resumed.hidden_fraction, resumed.scored_fraction) == (history.hidden_fraction, history.scored_fraction)


def test_what_it_took_adds_up(cohort: Cohort, tmp_path: Path) -> None:
    checkpoint = place(tmp_path)
    stopped(cohort, checkpoint, 3)
    told = json.loads((checkpoint.folder / "checkpoint.json").read_text())
    state = told["state"] | {"counts": told["state"]["counts"] | {"before_s": 1000.0, "waiting_s": 500.0}}
    state["counts"]["before_mb"] = 1e6
    read = checkpoint.read()
    assert read is not None
    checkpoint.write(state, read[1])
    _, history, _ = train(cohort, checkpoint)
    assert 1000 < history.seconds < 1100
    assert 500 < history.waiting_s < 600
    assert history.peak_memory_mb == 1e6
    assert history.to_dict()["loss_first"] is not None


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def arrays_of(checkpoint: Checkpoint) -> Path:
    (path,) = checkpoint.folder.glob("*.safetensors")
    return path


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda c: flip(arrays_of(c)), "its arrays are not what was written"),
        (lambda c: arrays_of(c).write_bytes(arrays_of(c).read_bytes()[:-1]), "its arrays are not what was written"),
        (lambda c: arrays_of(c).unlink(), "it cannot be read"),
        (lambda c: (c.folder / "checkpoint.json").write_text("[1]"), "it cannot be read"),
        (lambda c: (c.folder / "checkpoint.json").write_text("{"), "Expecting"),
        (
            lambda c: (c.folder / "checkpoint.json").write_text(
                (c.folder / "checkpoint.json").read_text().replace('"n_done": 3', '"n_done": 2')
            ),
            "checkpoint.json is not what was written",
        ),
    ],
    ids=["flipped", "short", "lost", "no-mapping", "no-json", "changed"],
)
def test_what_is_damaged_is_said_and_not_used(
    cohort: Cohort, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Any, said: str
) -> None:
    checkpoint = place(tmp_path)
    stopped(cohort, checkpoint, 3)
    damage(checkpoint)
    assert said in checkpoint.damage
    with caplog.at_level(logging.WARNING, logger="neurobench.store"):
        assert checkpoint.read() is None
    assert f"the checkpoint of pretrain it cannot be used: {said}" in caplog.text


def test_what_is_damaged_is_begun_anew(cohort: Cohort, tmp_path: Path) -> None:
    weights, _, _ = train(cohort)
    stopped(cohort, place(tmp_path), 3)
    flip(arrays_of(place(tmp_path)))
    again, _, done = train(cohort, place(tmp_path))
    assert done == list(range(N_STEPS))
    assert same(weights, again)


def test_what_is_foreign_is_not_used(cohort: Cohort, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mine, other = place(tmp_path), place(tmp_path, "0" * 64)
    stopped(cohort, mine, 3)
    mine.folder.rename(other.folder)
    with caplog.at_level(logging.WARNING, logger="neurobench.store"):
        assert other.read() is None
    assert "it is of another entry (kkkkkkkkkkkk)" in caplog.text


def test_one_of_another_torch_is_not_used(
    cohort: Cohort, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(cohort, place(tmp_path), 3)
    monkeypatch.setattr(torch, "__version__", "99.0")
    with caplog.at_level(logging.WARNING, logger="neurobench.pretraining"):
        assert train(cohort, place(tmp_path))[2] == list(range(N_STEPS))
    assert "is of torch" in caplog.text


def test_one_of_another_network_is_removed_and_said(cohort: Cohort, tmp_path: Path) -> None:
    stopped(cohort, place(tmp_path), 3)
    with pytest.raises(pretraining.NeurobenchError, match="cannot go on from its own checkpoint, which was removed"):
        train(cohort, place(tmp_path), cls=Mamba)
    assert not place(tmp_path).folder.exists()


def test_what_is_not_finite_is_not_kept(cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WithDropout, "mix", lambda self, tokens, table: self.lift(tokens) * float("nan"))
    with pytest.raises(pretraining.NeurobenchError, match="the loss became nan"):
        train(cohort, place(tmp_path), cls=WithDropout)
    assert not place(tmp_path).folder.exists()


def test_seconds_pass_without_one(cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretraining, "CHECKPOINT_EVERY_S", 60.0)
    train(cohort, place(tmp_path))
    assert not place(tmp_path).folder.exists()

"""A pretraining that is stopped goes on: with the same bytes at the end, from nothing that is damaged or foreign."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from neurobench import TokenBackbone, pretraining
from neurobench.cohorts import CohortSource
from neurobench.identity import digest
from neurobench.interrupts import Abandoned, HeldBack
from neurobench.objectives import RECONSTRUCTION, Latent, Objective
from neurobench.pretraining import Recipe, build, pretrain
from neurobench.records import BackboneSpec, Cohort, SignalSpec
from neurobench.store import Checkpoint, Store
from neurobench.tokens import Scaler, Tokenizer, TrainingWindows
from neurobench_backbones.mamba import Mamba
from neurobench_backbones.transformer import Transformer
from neurobench_masks.random_tube import RandomTube
from tests import killing, tiny_run
from tests.fakes import FakeDataset, write_folder
from tests.test_execution import bytes_of

ROOT = Path(__file__).resolve().parents[1]

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
    first = place(tmp_path)
    first._before = 1000.0
    stopped(cohort, first, 3)
    monkeypatch.setattr(torch, "__version__", "99.0")
    with caplog.at_level(logging.WARNING, logger="neurobench.pretraining"):
        # As the process asks that starts several to go on.
        assert pretraining.reached(asked := place(tmp_path)) is None
        assert train(cohort, place(tmp_path))[2] == list(range(N_STEPS))
    assert "is of torch" in caplog.text
    assert (asked.was_read, asked.seconds < 1000) == (False, True), "what led to it does not count"


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


# ---------------------------------------------------------------- asked to stop


def test_ctrl_c_is_held_back_until_the_step_is_through(
    cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretraining, "CHECKPOINT_EVERY_S", 60.0)
    weights, _, _ = train(cohort)
    through: list[int] = []
    optimise = pretraining.optimise

    def interrupted(*arguments: Any) -> torch.Tensor:
        if len(through) == 2:
            signal.raise_signal(signal.SIGINT)
        loss = optimise(*arguments)
        through.append(len(through))
        return loss

    monkeypatch.setattr(pretraining, "optimise", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(cohort, place(tmp_path))
    assert through == [0, 1, 2]
    monkeypatch.undo()
    again, _, done = train(cohort, place(tmp_path))
    assert done == [3, 4, 5]
    assert same(weights, again)


def test_what_nobody_waits_for_any_more_leaves_a_checkpoint(
    cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretraining, "CHECKPOINT_EVERY_S", 1000.0)

    class Over(Abandoned):
        def __init__(self) -> None:
            super().__init__("the run is over.")

    monkeypatch.setattr(sys.modules[__name__], "Stopped", Over)
    with pytest.raises(Abandoned):
        train(cohort, place(tmp_path), stop_after=3)
    assert place(tmp_path).about["state"]["counts"]["n_done"] == 3


def test_the_second_request_to_stop_does_not_wait() -> None:
    before = signal.getsignal(signal.SIGINT)

    def asked_twice() -> None:
        with HeldBack() as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop
            signal.raise_signal(signal.SIGINT)
            pytest.fail("it waited")

    with pytest.raises(KeyboardInterrupt):
        asked_twice()
    assert signal.getsignal(signal.SIGINT) is before


def test_what_comes_last_is_delivered_at_the_end() -> None:
    with pytest.raises(KeyboardInterrupt), HeldBack():
        signal.raise_signal(signal.SIGINT)


def test_what_is_ignored_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with HeldBack() as stop:
            signal.raise_signal(signal.SIGINT)
            assert not stop
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_holds_nothing_back() -> None:
    found: list[Any] = []

    def enter() -> None:
        with HeldBack():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGINT)]


# ---------------------------------------------------------------- in a store


def test_an_entry_counts_what_led_to_its_checkpoint_and_removes_it(tmp_path: Path) -> None:
    store, identity = Store(tmp_path / "out"), {"what": "it"}
    first = store.checkpoint("pretraining", digest(identity), "pretrain it")
    first._before = 1000.0  # as if it had computed for so long
    first.write({"n": 1}, b"arrays")
    assert store.stages() == []
    assert [c.about["label"] for c in store.unfinished()] == ["pretrain it"]
    second = store.checkpoint("pretraining", digest(identity), "pretrain it")
    assert second.read() == ({"n": 1}, b"arrays")
    with store.write("pretraining", identity, "pretrain it", checkpoint=second) as folder:
        (folder / "file").write_text("whole")
    entry = store.get("pretraining", digest(identity))
    assert entry is not None
    assert 1000 <= entry.seconds < 1010
    assert store.unfinished() == []


def test_a_checkpoint_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    checkpoint = place(tmp_path)
    checkpoint.write({"n": 1}, b"one")
    # What a process that was killed at writing leaves.
    (checkpoint.folder / ".half.123").write_bytes(b"on")
    checkpoint.write({"n": 2}, b"two")
    assert checkpoint.read() == ({"n": 2}, b"two")
    assert len(list(checkpoint.folder.iterdir())) == 2


# ---------------------------------------------------------------- killed


@pytest.mark.slow
def test_killed_twenty_times_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.killing", str(tmp_path), "20", "7"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *killed, last = json.loads(done.stdout)
    assert [one["exit"] for one in killed] == [-signal.SIGKILL] * 20
    assert last["exit"] == 0
    assert any(not one["steps"] for one in killed), "nobody was killed at the start"
    reached = -1
    for one in (*killed, last):
        if one["steps"]:
            # Whatever a step was told of is in a checkpoint; killed before the word got out, it may be one further.
            assert reached < one["steps"][0], "it began anew"
            assert one["steps"] == list(range(one["steps"][0], one["steps"][-1] + 1))
            reached = one["steps"][-1]
    assert reached == killing.N_STEPS - 1
    assert sum(len(one["steps"]) for one in killed) > 20
    killing.pretrain_into(undisturbed := Store(tmp_path / "undisturbed"), tmp_path / "data")
    entries = [store.get("pretraining", digest(killing.IDENTITY)) for store in (undisturbed, Store(tmp_path / "out"))]
    assert entries[0].manifest["files"] == entries[1].manifest["files"]
    assert Store(tmp_path / "out").unfinished() == []


def holds_back(pid: int) -> bool:
    """Return whether a process has a handler of its own for SIGTERM."""
    try:
        (caught,) = re.findall(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return False
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


RUN_STEPS = 300


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run without a checkpoint."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_folder(folder / "data", n_subjects=12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining, "CHECKPOINT_EVERY_S", float("inf"))
        tiny_run.execute(folder / "data", folder / "out", n_steps=RUN_STEPS, task="reconstruction")
    return folder


LOWERED = "import neurobench.pretraining as p; p.CHECKPOINT_EVERY_S = 0.0; from neurobench.cli import app; app()"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "code", "jobs"),
    [(signal.SIGINT, 130, 1), (signal.SIGTERM, 130, 2), (signal.SIGKILL, -signal.SIGKILL, 1)],
    ids=["ctrl-c", "batch-system-processes", "killed"],
)
def test_the_same_command_goes_on_in_the_middle_of_a_pretraining(
    undisturbed: Path, tmp_path: Path, end: signal.Signals, code: int, jobs: int
) -> None:
    data, out = undisturbed / "data", tmp_path / "out"
    # Processes of --jobs know nothing of what is lowered here.
    by_itself = ["-c", LOWERED] if jobs == 1 else ["-m", "neurobench"]
    command = [
        *(sys.executable, *by_itself, "run", "--plugin", str(tiny_run.PLUGIN), "--backbone", "tiny", "--mask", "roi"),
        *("--dataset", "fake", "--data-dir", str(data), "--out", str(out), "--steps", str(RUN_STEPS)),
        *("--task", "reconstruction", "--jobs", str(jobs)),
    ]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True)
    deadline = time.monotonic() + 120
    at_work: set[int] = set()
    since: dict[int, float] = {}
    while time.monotonic() < deadline and process.poll() is None:
        if jobs == 1:
            begun = [Checkpoint(path).about for path in (out / "store/unfinished").glob("*/*")]
            if any(about and about["state"]["counts"]["n_done"] >= 50 for about in begun):
                break
        else:
            # A network that is not pretrained does no step, and is through at once.
            at_work = {int(path.name.split("-")[0]) for path in (out / "store/tmp").glob("*-pretraining-*")}
            since = {pid: since.get(pid, time.monotonic()) for pid in at_work if holds_back(pid)}
            if any(time.monotonic() - began > 0.3 for began in since.values()):
                break
        time.sleep(0.02)
    process.send_signal(end)
    assert process.wait(60) == code
    while any(Path(f"/proc/{pid}").exists() for pid in at_work) and time.monotonic() < deadline:
        time.sleep(0.05)
    unfinished = Store(out, read_only=True).unfinished()
    reached = [c.about["state"]["counts"]["n_done"] for c in unfinished]
    assert reached, "nothing was under way: the test says nothing"
    assert all(0 < n < RUN_STEPS for n in reached)
    again = subprocess.run([*command, "--json"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "begun anew" not in again.stderr
    assert bytes_of(out) == bytes_of(undisturbed / "out")
    assert Store(out).unfinished() == []

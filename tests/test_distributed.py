"""Several processes for one pretraining: the loss curve of one, weights as any other, and no process left behind."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from neurobench import distributed, results
from neurobench.components import Setting
from neurobench.config import RunConfig, expand
from neurobench.distributed import Group, Joined, Member, launch
from neurobench.errors import ConfigError, ConfigErrors, NeurobenchError
from neurobench.execution import Executor
from neurobench.member import _told
from neurobench.opening import stored_cohorts
from neurobench.options import parse_distributed
from neurobench.plugins import load_registry
from neurobench.progress import Silent
from neurobench.stages import CohortRun
from neurobench.steps import Step
from neurobench.store import Checkpoint, Entry, Store
from tests.fakes import write_folder
from tests.tiny_run import PLUGIN, execute

TWO = Setting("ddp", {"processes": 2})


# ---------------------------------------------------------------- what is asked for


def test_how_processes_share_a_pretraining_is_written_as_components_are() -> None:
    assert parse_distributed("") is None
    assert parse_distributed("ddp") == TWO
    assert parse_distributed("fsdp[processes=4]") == Setting("fsdp", {"processes": 4})
    with pytest.raises(ConfigError, match=r"--distributed cannot be 'dpp'.*Did you mean 'ddp'"):
        parse_distributed("dpp")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distributed": "ddp[processes=1]"}, "1 processes cannot share a batch of 32 windows"),
        ({"distributed": "ddp[processes=33]"}, "processes=2 to processes=32"),
        ({"distributed": "ddp", "mask": "none"}, "nothing is pretrained"),
        ({"distributed": "fsdp", "n_gpus": 1}, "2 processes need a GPU each, and there is one"),
        ({"distributed": "ddp[processes=4]", "n_gpus": 3}, "there are 3.*processes=2 to processes=3"),
        ({"distributed": "ddp", "n_gpus": 2, "jobs": 2}, "--jobs 2 gives each job one"),
        ({"distributed": "ddp", "missing": "accelerate"}, r"neurobench-fm\[distributed\]"),
    ],
)
def test_what_cannot_be_is_said_before_anything_starts(
    options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, missing = importlib.util.find_spec, options.pop("missing", "")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_gpus)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == missing else found(name, *rest)
    )
    n_gpus = options.pop("n_gpus", 0)
    config = RunConfig.from_options(**{"backbone": "mamba", "mask": "roi", "dataset": "adhd200"} | options)
    with pytest.raises(ConfigErrors, match=message):
        expand(config, load_registry())


def test_every_window_is_in_one_share() -> None:
    for n_windows, size in ((32, 2), (33, 4), (5, 5)):
        shares = [range(*Group(rank, size).share(n_windows)) for rank in range(size)]
        assert [i for share in shares for i in share] == list(range(n_windows))
        assert all(shares)


def test_gradients_are_summed_and_one_that_nobody_has_stays_away() -> None:
    def parameters(values: list[float | None]) -> list[nn.Parameter]:
        made = [nn.Parameter(torch.zeros(2)) for _ in values]
        for parameter, value in zip(made, values, strict=True):
            parameter.grad = None if value is None else torch.full((2,), value)
        return made

    # The other process's gradients and flags, in the order in which they travel.
    other = torch.tensor([1.0, 1.0, 0.0, *[10.0] * 2, *[20.0] * 2, *[0.0] * 2])
    one = Joined.__new__(Joined)
    one.sharded, one.total = False, lambda values: values + other  # type: ignore[method-assign]
    own = parameters([1.0, None, None])
    one.add_gradients(own)
    assert torch.equal(own[0].grad, torch.full((2,), 11.0))
    assert torch.equal(own[1].grad, torch.full((2,), 20.0))
    assert own[2].grad is None


# ---------------------------------------------------------------- processes and their ends


def member(tmp_path: Path) -> Member:
    return Member(RunConfig(), TWO, "cpu", "fake", 0, "pretraining", "0" * 64, tmp_path, Checkpoint(tmp_path / "c"), ())


def started(monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    head = "import json, os, sys, time\nrank = int(os.environ['RANK'])\n"
    head += "def say(**told): print(json.dumps(told), flush=True)\n"
    monkeypatch.setattr(distributed, "COMMAND", (sys.executable, "-S", "-c", head + body))


def test_progress_comes_from_the_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started(monkeypatch, "if rank == 0:\n    for i in (1, 2, 3): say(done=i, total=3)")
    told: list[tuple[int, int]] = []
    launch(member(tmp_path), lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("time.sleep(60) if rank == 0 else say(error='lost the thread')", "process 2 of 2 .* failed: lost the thread"),
        ("time.sleep(60) if rank == 0 else os.abort()", "process 2 of 2 .* ended with code -6 without saying why"),
        ("if rank == 1: time.sleep(60)\nraise ValueError('no\\nhead')", "code 1 .*; the last line of their log: head"),
    ],
)
def test_one_that_fails_takes_the_others_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, message: str
) -> None:
    started(monkeypatch, body)
    begun: list[subprocess.Popen[bytes]] = []

    def noted(*command: Any, **options: Any) -> subprocess.Popen[bytes]:
        begun.append(popen(*command, **options))
        return begun[-1]

    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", noted)
    began = time.monotonic()
    with pytest.raises(NeurobenchError, match=message):
        launch(member(tmp_path), lambda done, total: None)
    assert time.monotonic() - began < 30
    assert len(begun) == 2
    assert all(process.returncode is not None for process in begun)


def test_one_whose_memory_does_not_suffice_says_what_to_do() -> None:
    told = _told(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."))
    assert str(told["error"]).startswith("memory does not suffice: DefaultCPUAllocator")
    assert "9 bytes. Use fewer --jobs, a smaller --profile" in str(told["error"])
    assert _told(ValueError("no")) == {"error": "ValueError: no", "store": False}


def test_ctrl_c_lets_the_first_end_its_step_and_ends_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A process reads what it is asked, and then the end of the pipe.
    started(
        monkeypatch,
        "if rank == 0:\n    say(done=1, total=9)\n    sys.stdin.buffer.read()\n"
        f"    open({str(tmp_path)!r} + '/saved', 'w').close()\nelse: time.sleep(60)",
    )

    def interrupted(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        launch(member(tmp_path), interrupted)
    assert (tmp_path / "saved").exists()


# ---------------------------------------------------------------- the whole way


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run in which each pretraining had one process."""
    root = tmp_path_factory.mktemp("distributed")
    write_folder(root / "data", n_subjects=24)
    execute(root / "data", root / "out", **options())
    return root / "out"


def options(**more: Any) -> dict[str, Any]:
    common = {"backbone": "transformer,mamba", "task": "reconstruction", "n_steps": 10, "jobs": 1, "device": "cpu"}
    return common | more


def opened(out: Path, distributed: str, **more: Any) -> tuple[CohortRun, Executor]:
    config = RunConfig.from_options(
        mask="roi",
        dataset="fake",
        data_dir=out.parent / "data",
        out=out,
        plugin_files=PLUGIN,
        distributed=distributed,
        **options(**more),
    )
    registry, store = load_registry(config.plugin_files), Store(out)
    executor = Executor(store, Silent())
    grid = expand(config, registry)
    found = stored_cohorts(grid.datasets[0], grid, registry, store)
    assert found is not None
    source, cohorts = found
    own = cohorts.pop("fake")
    return CohortRun(own, source, grid, registry, 0, torch.device("cpu"), executor.fetch, cohorts), executor


def pretraining(run: CohortRun, backbone: str) -> Step:
    row = next(r for r in run.rows if r.kind == "pretrained" and r.label.startswith(backbone))
    return run.pretraining_step(*row.pretraining, run.folds[0])


def compare(one: Entry, several: Entry) -> None:
    curves = [np.array(e.json("pretraining.json")["losses"]) for e in (one, several)]
    assert len(curves[0]) == 10
    assert np.abs(curves[0] - curves[1]).max() < 1e-4
    assert curves[0][0] - curves[0][-1] > 0.1
    a, b = (load_file(e.file("weights.safetensors")) for e in (one, several))
    assert a.keys() == b.keys()
    assert all(torch.allclose(a[k], b[k], atol=1e-3) for k in a)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "backbone", "objective"),
    [
        ("ddp", "mamba", "reconstruction"),
        ("fsdp", "transformer", "latent"),
        # What a backbone adds beside its loss is a share of the batch, and gradients come as a mean.
        ("fsdp", "moe_ssm", "reconstruction"),
    ],
)
def test_two_processes_have_the_loss_curve_of_one(out: Path, how: str, backbone: str, objective: str) -> None:
    (one, alone), (two, together) = (opened(out, d, objective=objective, backbone=backbone) for d in ("", how))
    found = together.fetch(pretraining(two, backbone))
    compare(alone.fetch(pretraining(one, backbone)), found)
    # Keys of today stay where the option is not used, and there is another one where it is.
    plain, spread = (json.loads(json.dumps(pretraining(run, backbone).identity)) for run in (one, two))
    assert spread.pop("distributed")["name"] == how
    assert plain == spread
    assert found.json("pretraining.json")["distributed"] == f"{how}[processes=2]"


@pytest.mark.slow
def test_a_row_that_two_processes_pretrained_is_scored_and_says_so(out: Path) -> None:
    shared = options(backbone="transformer", distributed="ddp")
    result = execute(out.parent / "data", out, **shared)
    assert not result.failed
    records = [results.read_record(p) for p in (out / "records").iterdir()]
    by_row = [(r.cost.distributed, r.metrics[r.headline].value) for r in records if r.row == "transformer · roi"]
    assert [how for how, _ in sorted(by_row)] == ["", "ddp[processes=2]"]
    assert by_row[0][1] == pytest.approx(by_row[1][1], abs=1e-3)


LOWERED = (
    "import sys; import neurobench.pretraining as p; from neurobench.member import main; "
    "p.CHECKPOINT_EVERY_S, p.CHECKPOINT_SHARE = 0.0, float('inf'); sys.exit(main())"
)


@pytest.mark.slow
@pytest.mark.parametrize(("how", "killed"), [("ddp", False), ("fsdp", False), ("fsdp", True)])
def test_two_processes_that_are_stopped_go_on_to_the_same_bytes(
    out: Path, tmp_path: Path, how: str, killed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, executor = opened(out, how, n_steps=40)
    step = pretraining(run, "transformer")
    processes: list[subprocess.Popen[bytes]] = []

    def popen(*of: Any, **more: Any) -> subprocess.Popen[bytes]:
        processes.append(subprocess.Popen(*of, **more))
        return processes[-1]

    def interrupted(done: int, total: int) -> None:
        if not killed:
            raise KeyboardInterrupt
        if done == 5:
            for process in processes:
                process.kill()

    checkpoint = executor.store.checkpoint(step.stage, step.key, step.label)
    with monkeypatch.context() as patch:
        patch.setattr(distributed, "subprocess", SimpleNamespace(**vars(subprocess) | {"Popen": popen}))
        if killed:
            patch.setattr(distributed, "COMMAND", (sys.executable, "-c", LOWERED))
        with pytest.raises(NeurobenchError if killed else KeyboardInterrupt):
            step.compute(tmp_path, interrupted, checkpoint)
    state, arrays = checkpoint.read() or ({}, b"")
    assert 0 < state["counts"]["n_done"] < 40
    first: list[int] = []
    step.compute(tmp_path, lambda done, total: first.append(done), checkpoint)
    assert first[0] == state["counts"]["n_done"] + 1
    (tmp_path / "straight").mkdir()
    step.compute(tmp_path / "straight", lambda done, total: None, Checkpoint(tmp_path / "none"))
    folders = (tmp_path, tmp_path / "straight")
    files = [folder / "weights.safetensors" for folder in folders]
    assert files[0].read_bytes() == files[1].read_bytes()
    losses = [json.loads((folder / "pretraining.json").read_text())["losses"] for folder in folders]
    assert losses[0] == losses[1]
    # What is in it does not depend on how many wrote it: one process goes on from it too.
    (tmp_path / "alone").mkdir()
    alone = Checkpoint(tmp_path / "other")
    alone.write(state, arrays)
    lone = pretraining(opened(out, "", n_steps=40)[0], "transformer")
    lone.compute(tmp_path / "alone", lambda done, total: first.append(done), alone)
    assert first.count(1) == 0
    last = json.loads((tmp_path / "alone" / "pretraining.json").read_text())["losses"]
    assert np.allclose(last, losses[0], atol=1e-4)

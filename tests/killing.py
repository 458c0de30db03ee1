"""Pretrain, be killed at random moments, and go on: ``python -m tests.killing FOLDER N SEED`` says what happened."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from neurobench import pretraining
from neurobench.cohorts import CohortSource
from neurobench.identity import digest
from neurobench.pretraining import Recipe, build, pretrain
from neurobench.records import BackboneSpec, SignalSpec
from neurobench.store import Store
from neurobench.tokens import Scaler, Tokenizer, TrainingWindows
from neurobench_masks.random_tube import RandomTube
from tests.fakes import FakeDataset, write_folder
from tests.tiny_plugin import Tiny

N_STEPS = 200
IDENTITY = {"what": "a network whose pretraining is killed"}


def pretrain_into(store: Store, data: Path, told: Connection | None = None) -> None:
    """Pretrain a tiny network with a checkpoint after every step, and store its weights."""
    torch.set_num_threads(1)
    pretraining.CHECKPOINT_EVERY_S, pretraining.CHECKPOINT_SHARE = 0.0, float("inf")
    signals = SignalSpec(window_s=40.0, patch_s=8.0)
    cohort = CohortSource(FakeDataset(), "fake", {"name": "fake"}, signals, data).load(store)
    windows = TrainingWindows(Tokenizer(cohort, Scaler.fit(cohort, cohort.subjects)), cohort.subjects, 60, 0)
    spec = BackboneSpec(len(cohort.units), 3, cohort.patches_per_window, cohort.n_features, 16, 1)
    net, decoder = build(Tiny, spec, {}, seed=1)
    checkpoint = store.checkpoint("pretraining", digest(IDENTITY), "killed")
    with store.write("pretraining", IDENTITY, "killed", checkpoint=checkpoint) as folder:
        pretrain(
            net,
            decoder,
            RandomTube(),
            windows,
            recipe=Recipe(batch_size=4),
            n_steps=N_STEPS,
            ratio=0.5,
            seed=0,
            checkpoint=checkpoint,
            on_step=None if told is None else told.send,
        )
        save_file({**net.state_dict(), **decoder.state_dict()}, folder / "weights.safetensors")


def in_a_process(root: Path, told: Connection) -> None:
    """Pretrain in a process of its own."""
    pretrain_into(Store(root / "out"), root / "data", told)


def attempt(root: Path, rng: random.Random | None) -> dict[str, Any]:
    """Pretrain in a new process, and kill it at some moment; without a generator, let it finish."""
    context = multiprocessing.get_context("forkserver")
    hears, tells = context.Pipe(duplex=False)
    process = context.Process(target=in_a_process, args=(root, tells))
    process.start()
    tells.close()
    steps: list[int] = []
    # Now and then it is killed before the first step: while it reads, or before there is anything to read.
    wait_for = N_STEPS if rng is None else rng.randrange(6)
    try:
        while len(steps) < wait_for:
            steps.append(hears.recv())
        if rng is not None:
            time.sleep(rng.uniform(0, 0.02 if steps else 0.1))
            os.kill(process.pid or 0, signal.SIGKILL)
        while True:
            steps.append(hears.recv())
    except EOFError:
        process.join()
    return {"steps": steps, "exit": process.exitcode}


def main() -> None:
    """Kill N times at moments drawn from a seed, let the last one finish, and print steps and exit codes of all."""
    root, n, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    multiprocessing.get_context("forkserver").set_forkserver_preload(["tests.killing"])
    write_folder(root / "data", n_subjects=8)
    rng = random.Random(seed)
    print(json.dumps([attempt(root, rng if number < n else None) for number in range(n + 1)]))


if __name__ == "__main__":
    main()

"""The program that one of several processes runs which compute a pretraining together; see :mod:`distributed`."""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys

import torch

from neurobench import distributed, logs
from neurobench.errors import NeurobenchError, StoreError
from neurobench.execution import Here, describe, few_threads
from neurobench.interrupts import end_after
from neurobench.out_of_memory import is_out_of_memory, too_large
from neurobench.store import disk_errors


def _alone() -> None:
    """Return when the process that started this one has closed its pipe or is gone."""
    while os.read(0, 1):
        pass


def _told(error: Exception) -> dict[str, str | bool]:
    """Return what the process that started this one is told of an error."""
    if is_out_of_memory(error):
        error = too_large(error)
    said = str(error) if isinstance(error, NeurobenchError) else describe(error)
    return {"error": said, "store": isinstance(error, StoreError)}


def main() -> int:
    """Compute the step that the standard input names, and say on the standard output how far it is."""
    # What plugins print would be taken for it.
    report = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    # Ctrl-C reaches all of a terminal's processes; the one that started this ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # So does what a batch system, or a terminal that is closed, sends to all: the first needs the others for its step.
    for name in ("SIGTERM", "SIGHUP") if os.environ.get("RANK") != "0" else ("SIGHUP",):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    # From the process that started this one, and from nobody else.
    member: distributed.Member = pickle.load(sys.stdin.buffer)  # noqa: S301
    # The first needs the others for the step that it is at.
    end_after(_alone, ask=os.environ["RANK"] == "0")
    sys.path[:] = member.path or sys.path

    def advance(done: int, total: int) -> None:
        if group.rank == 0:
            report.write(json.dumps({"done": done, "total": total}) + "\n")

    try:
        with distributed.join(member.setting, member.device) as group:
            here = Here(member.config)
            use, step = here.step(member.dataset, member.seed, member.stage, member.key)
            where = {"dataset": member.dataset, "seed": member.seed, "row": use.row.label}
            about = {"stage": step.stage, "label": step.label, "key": step.key}
            torch.set_num_threads(distributed.threads(group.size))
            writes = disk_errors(member.config.out, inside=True)
            with few_threads(here.grid.profile, here.device), logs.at(**where, **about), writes:
                step.compute(member.folder, advance, member.checkpoint)
    except Exception as error:
        report.write(json.dumps(_told(error)) + "\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

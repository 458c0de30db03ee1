"""Several processes for one pretraining, each with its share of every batch, through accelerate.

All processes draw the same batch of a step and take their windows of it. Losses are normalised by the counts of the
whole batch, so that the sum of the processes' gradients is that of the whole batch. ``ddp``: every process has all
weights, and gradients are summed before a step of the optimiser. ``fsdp``: weights, gradients and the optimiser's
moments are cut into shares, and gathered where a module is at work.

:func:`launch` starts the processes (:mod:`neurobench.member`), tells how far they are, and ends them all if one fails.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import queue
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import joblib
import torch
from torch import nn

from neurobench.components import Setting
from neurobench.errors import NeurobenchError, StoreError
from neurobench.interrupts import LAST_STEP_S, Abandoned
from neurobench.options import RunConfig
from neurobench.progress import Advance
from neurobench.store import Checkpoint

__all__ = ["ALONE", "COMMAND", "Group", "Member", "join", "joined", "launch", "n_processes", "threads"]

COMMAND = (sys.executable, "-m", "neurobench.member")
"""What each process runs."""


# ---------------------------------------------------------------- inside a process


class Group:
    """The processes that compute a pretraining together, as one of them sees it; this class: it is alone.

    Parameters
    ----------
    rank
        Number of this process, from 0.
    size
        How many there are.
    """

    sharded = False

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    def share(self, n_windows: int) -> tuple[int, int]:
        """Return the first of this process's windows of a batch, and the first that is not."""
        return self.rank * n_windows // self.size, (self.rank + 1) * n_windows // self.size

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over all processes."""
        return values

    def of_all(self, number: int, device: torch.device) -> list[int]:
        """Return the number that each process gives; ``device`` is theirs."""
        values = torch.zeros(self.size, device=device)
        values[self.rank] = number
        return [int(value) for value in self.total(values).tolist()]

    def shard(self, modules: Sequence[nn.Module]) -> None:
        """Cut the weights of modules into shares, where that is asked for."""

    def add_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace every gradient by the sum over all processes."""

    def agreed(self, wish: bool) -> bool:
        """Return whether to do now what all have to take part in: what the first wishes."""
        return wish

    def whole(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return whole tensors on the host to the first process, nothing to the others; all have to ask."""
        return {k: v.detach().cpu().contiguous() for k, v in tensors.items()} if self.rank == 0 else {}

    def share_as(self, tensors: Mapping[str, torch.Tensor], now: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Return of whole tensors what this process has of those of the same names ``now``."""
        return dict(tensors)


class Joined(Group):
    """One of several processes.

    Parameters
    ----------
    device
        ``cpu`` (gloo) or ``cuda`` (nccl, a GPU each).
    sharded
        Whether weights are cut into shares.
    """

    def __init__(self, device: str, sharded: bool) -> None:
        from accelerate import Accelerator

        self.accelerator = Accelerator(cpu=device == "cpu")
        self.sharded = sharded
        super().__init__(self.accelerator.process_index, self.accelerator.num_processes)
        # On the host, where a word costs no waiting for a GPU.
        self._words: Any = torch.distributed.new_group(backend="gloo") if sharded else None

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over all processes."""
        summed: torch.Tensor = self.accelerator.reduce(values, reduction="sum")
        return summed

    def shard(self, modules: Sequence[nn.Module]) -> None:
        """Cut the weights of each module into shares, in place; each is gathered while it is called."""
        if not self.sharded:
            return
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.accelerator.device.type, (self.size,))
        for module in modules:
            fully_shard(module, mesh=mesh, reshard_after_forward=True)

    def add_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace every gradient by the sum over all processes; where nobody has one there is none afterwards.

        All of them travel as one tensor, with a flag for each. The flags are looked at only where a gradient is
        missing, because a GPU has to be waited for.
        """
        if self.sharded:
            # Shares were summed on the way back.
            return
        there = [p.grad is not None for p in parameters]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flags = torch.tensor(there, dtype=torch.float32).to(gradients[0].device, non_blocking=True)
        summed = self.total(torch.cat([flags, *(g.float().flatten() for g in gradients)]))
        flags, *parts = torch.split(summed, [len(there), *(g.numel() for g in gradients)])
        wanted = there if all(there) else (flags > 0).tolist()
        for parameter, part, some in zip(parameters, parts, wanted, strict=True):
            parameter.grad = part.view_as(parameter).to(parameter.dtype) if some else None

    def agreed(self, wish: bool) -> bool:
        """Return whether to do now what all have to take part in: what the first wishes."""
        if not self.sharded:
            return wish
        word = torch.tensor([int(wish)])
        torch.distributed.broadcast(word, 0, group=self._words)
        return bool(word.item())

    def whole(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return whole tensors on the host to the first process, nothing to the others; all have to ask."""
        from torch.distributed.tensor import DTensor

        found: dict[str, torch.Tensor] = {}
        for name, tensor in tensors.items():
            # One after the other: a device never has room for more than one of them.
            one = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            found |= super().whole({name: one})
        return found

    def share_as(self, tensors: Mapping[str, torch.Tensor], now: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Return of whole tensors what this process has of those of the same names ``now``."""
        from torch.distributed.tensor import DTensor, distribute_tensor

        found = dict(tensors)
        for name, tensor in tensors.items():
            if isinstance(here := now.get(name), DTensor):
                # Every process has read the whole: nothing has to travel.
                found[name] = distribute_tensor(
                    tensor.to(here.device), here.device_mesh, here.placements, src_data_rank=None
                )
        return found


ALONE = Group()
"""What a process belongs to that nobody else computes with."""

_joined: Group = ALONE


def joined() -> Group:
    """Return the group that this process has joined."""
    return _joined


@contextlib.contextmanager
def join(setting: Setting, device: str) -> Iterator[Group]:
    """Join the group that the environment names (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT)."""
    global _joined
    _joined = Joined(device, setting.name == "fsdp")
    try:
        yield _joined
    finally:
        _joined = ALONE
    # Not after an error, which is to be said first: the others may be waiting for this one, and it for them.
    torch.distributed.destroy_process_group()


# ---------------------------------------------------------------- from outside


def n_processes(setting: Setting) -> int:
    """Return how many processes are asked for."""
    return int(setting.parameters["processes"])


def threads(n: int) -> int:
    """Return how many threads each of ``n`` processes has where networks are large."""
    return max(1, int(joblib.cpu_count()) // n)


@dataclass(frozen=True)
class Member:
    """What a process needs to know to take part.

    Parameters
    ----------
    config
        What is run.
    setting
        ``ddp`` or ``fsdp``.
    device
        ``cpu`` or ``cuda``.
    dataset, seed, stage, key
        The step that is computed.
    folder
        Where the first process writes its files.
    checkpoint
        What it goes on from, and the first process writes.
    path
        Where Python looks for modules.
    """

    config: RunConfig
    setting: Setting
    device: str
    dataset: str
    seed: int
    stage: str
    key: str
    folder: Path
    checkpoint: Checkpoint
    path: tuple[str, ...]


def launch(member: Member, advance: Advance) -> None:
    """Compute a step in as many processes as its setting says, and wait for them.

    They are programs of their own, not children of multiprocessing: those of a cluster's worker may have none.

    Raises
    ------
    NeurobenchError
        If one of them fails; the others are ended then, as they are by Ctrl-C, which the first may still write a
        checkpoint at.
    """
    n = n_processes(member.setting)
    if member.device == "cuda" and n > torch.cuda.device_count():
        # On a worker elsewhere, whose GPUs nobody could count before.
        raise NeurobenchError(
            f"{n} processes need a GPU each, and this machine has {torch.cuda.device_count()}.",
            next_step="Ask the cluster for more of them, or use fewer processes.",
        )
    task = pickle.dumps(member)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said: queue.SimpleQueue[tuple[int, str | None]] = queue.SimpleQueue()
    processes: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryFile() as errors:
        try:
            for rank in range(n):
                environment = os.environ | {
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(n),
                    "LOCAL_WORLD_SIZE": str(n),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                    "OMP_NUM_THREADS": str(threads(n)),
                }
                process = subprocess.Popen(
                    COMMAND,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    env=environment,
                )
                processes.append(process)
                threading.Thread(target=_listen, args=(rank, process.stdout, said), daemon=True).start()
                assert process.stdin is not None
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.write(task)
                    process.stdin.flush()
            _follow(processes, said, advance, errors)
        except (KeyboardInterrupt, Abandoned):
            _close(processes)
            with contextlib.suppress(subprocess.TimeoutExpired):
                processes[0].wait(LAST_STEP_S)
            raise
        finally:
            for process in processes:
                process.kill()
                process.wait()
            _close(processes)


def _close(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Close what processes read from, which they take for a sign to end."""
    for process in processes:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()  # type: ignore[union-attr]


def _listen(rank: int, pipe: IO[bytes], said: queue.SimpleQueue[tuple[int, str | None]]) -> None:
    with pipe:
        for line in pipe:
            said.put((rank, line.decode(errors="replace")))
    said.put((rank, None))


def _follow(
    processes: Sequence[subprocess.Popen[bytes]],
    said: queue.SimpleQueue[tuple[int, str | None]],
    advance: Advance,
    errors: IO[bytes],
) -> None:
    """Tell how far the processes are until all have ended."""
    n = len(processes)
    left = n
    while left:
        rank, line = said.get()
        if line is None:
            left -= 1
            if (code := processes[rank].wait()) != 0:
                errors.seek(0)
                last = errors.read().decode(errors="replace").strip().rpartition("\n")[2]
                raise NeurobenchError(
                    f"process {rank + 1} of {n} that pretrain together ended with code {code} without saying why"
                    + (f"; the last line of their log: {last}" if last else "."),
                    next_step="The system may have killed it for its memory: use a smaller --profile.",
                )
            continue
        found = json.loads(line)
        if "error" in found:
            kind = StoreError if found.get("store") else NeurobenchError
            raise kind(f"process {rank + 1} of {n} that pretrain together failed: {found['error']}")
        advance(found["done"], found["total"])

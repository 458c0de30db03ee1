"""A pretraining that is looked at while it runs: its losses in the log and, where asked for, in TensorBoard.

Looks come where the loop waits for the device anyway, so that watching costs a GPU nothing; nothing is read that
training would read from, so that no number changes.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from neurobench import logs
from neurobench.hardware import Meter
from neurobench.identity import digest
from neurobench.pretraining import Training

__all__ = ["Monitor", "folder_of", "monitored"]


class Monitor:
    """Tells how a pretraining is getting on, at every look.

    Parameters
    ----------
    meter
        Asks the driver how busy the GPU is.
    writer
        A ``SummaryWriter`` of TensorBoard; None: only the log is told.
    """

    def __init__(self, meter: Meter, writer: Any = None) -> None:
        self.meter, self.writer = meter, writer
        self._n_done = self._n_valid = 0
        self._seconds = self._waiting_s = 0.0

    def look(self, training: Training) -> None:
        """Tell what was reached since the last look; of one that went on from a checkpoint, at first all of it."""
        self.meter.look()
        losses = training.losses[self._n_done : training.n_done].tolist()
        seconds = max(training.seconds - self._seconds, 1e-9)
        rate = training.recipe.rate(training.n_done - 1, training.n_steps)
        tokens_per_s = (training.n_valid - self._n_valid) / seconds
        waiting_share = (training.waiting_s - self._waiting_s) / seconds
        logs.tell(
            "losses",
            step=training.n_done,
            n_steps=training.n_steps,
            loss=round(sum(losses) / len(losses), 6),
            learning_rate=rate,
            tokens_per_s=round(tokens_per_s, 1),
            waiting_share=round(waiting_share, 4),
        )
        if self.writer is not None:
            for step, loss in enumerate(losses, self._n_done + 1):
                self.writer.add_scalar("loss", loss, step)
            for name, value in (
                ("learning rate", rate),
                ("tokens a second", tokens_per_s),
                ("share of the time waiting for data", waiting_share),
            ):
                self.writer.add_scalar(name, value, training.n_done)
            self.writer.flush()
        self._n_done, self._n_valid = training.n_done, training.n_valid
        self._seconds, self._waiting_s = training.seconds, training.waiting_s


@contextlib.contextmanager
def monitored(meter: Meter, folder: Path | None) -> Iterator[Monitor]:
    """Give a monitor; with a folder it writes TensorBoard's events there."""
    if folder is None:
        yield Monitor(meter)
        return
    from torch.utils.tensorboard import SummaryWriter

    # What an earlier process wrote of the same pretraining before it was stopped is hidden: all of it is written again.
    writer = SummaryWriter(str(folder), purge_step=0)
    try:
        yield Monitor(meter, writer)
    finally:
        writer.close()


def folder_of(out: Path, label: str, identity: Mapping[str, Any]) -> Path:
    """Return where a pretraining's events go: one folder each, with a name that any disk takes.

    Parameters
    ----------
    out
        Output folder.
    label, identity
        Of the step: two that differ in what the label does not say, such as the number of steps, are drawn apart.
    """
    name = re.sub(r"[^\w\[\]=,.·← -]", "_", label.removeprefix("pretrain "))
    return out / "tensorboard" / f"{name} · {digest(identity)[:8]}"

"""One stored step of a run: what identifies it, and how it is computed.

A :class:`Step` knows its identity before anything is computed, because identities are built from identities, not from
results. That is what makes a plan, a resumed run and a wider grid the same thing. The steps of each kind are built in
the modules that end in ``_steps``; what is scored, and in which order, is the business of ``stages.py``.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from neurobench.components import ComponentSpec
from neurobench.cost import Work
from neurobench.identity import digest, file_digest
from neurobench.progress import Advance
from neurobench.store import Checkpoint, Entry

__all__ = ["FILLERS", "Failures", "Fetch", "Row", "Step", "Use", "code_digest"]


@dataclass(frozen=True)
class Step:
    """One artefact to find or to compute.

    Parameters
    ----------
    stage
        Folder of the store.
    label
        How people call it.
    identity
        Everything that determines it.
    work
        How much it is, for estimates of its time; no part of any identity.
    compute
        Writes the artefact's files into a folder; from a checkpoint on, if it is one that keeps any.
    """

    stage: str
    label: str
    identity: Mapping[str, Any]
    work: Work
    compute: Callable[[Path, Advance, Checkpoint], None]

    @functools.cached_property
    def key(self) -> str:
        """The key of its identity in a store."""
        return digest(self.identity)


Fetch = Callable[[Step], Entry]
"""Returns the entry of a step, computing it if it is not stored."""


@dataclass(frozen=True)
class Row:
    """One line of the results table, before it is scored on a task.

    Parameters
    ----------
    kind
        ``pretrained``, ``given`` (weights from outside, as they are), ``untrained``, ``baseline`` or ``filler``.
    label
        Such as ``mamba · roi``.
    backbone, mask, baseline
        What it is made of; None where it does not apply. Fillers have none of them.
    """

    kind: Literal["pretrained", "given", "untrained", "baseline", "filler"]
    label: str
    backbone: ComponentSpec | None = None
    mask: ComponentSpec | None = None
    baseline: ComponentSpec | None = None

    @property
    def pretraining(self) -> tuple[ComponentSpec, ComponentSpec]:
        """Backbone and masking strategy of a row that has them."""
        if self.backbone is None or self.mask is None:
            raise ValueError(f"row {self.label!r} is not pretrained")
        return self.backbone, self.mask

    @property
    def provides(self) -> frozenset[str]:
        """What tasks can ask of it: ``features``, ``reconstruction``."""
        if self.kind == "baseline":
            return frozenset({"features"})
        if self.kind == "filler":
            return frozenset({"reconstruction"})
        return frozenset({"features", "reconstruction"})


Failures = dict[tuple[Row, str], str]
"""By row and label of the task, kind and message of the error for which there is no score."""


@dataclass(frozen=True)
class Use:
    """What a row needs a step for.

    Parameters
    ----------
    row
        Whose scores it is for.
    tasks
        Labels of the tasks that it is for.
    needed
        Whether without it there is no score on them; False of what is only shown beside.
    """

    row: Row
    tasks: tuple[str, ...]
    needed: bool = True

    def is_idle(self, failures: Failures) -> bool:
        """Whether there will be no score on any of its tasks, whatever becomes of the step."""
        return bool(self.tasks) and all((self.row, task) in failures for task in self.tasks)

    def fail(self, failures: Failures, error: str) -> None:
        """Write down what follows from an error of the step; the first one of each score stays."""
        for task in self.tasks if self.needed else ():
            failures.setdefault((self.row, task), error)


FILLERS = Row("filler", "trivial fillers")
"""Stands for all trivial fillers: one stored entry holds them."""


COMMON = ("contracts", "identity", "records", "visible")
"""Modules of the core that every step computes with: what backbones are built on, batches, seeds."""


@functools.cache
def code_digest(*modules: Any) -> str:
    """Return a hash of the source of some core modules, and of :data:`COMMON`: other code is another identity.

    The module that builds a step is one of them, by its ``__name__``: whom it fits on, what it draws seeds from and
    what it writes decide numbers as much as what it calls. A change there costs the results of that kind and what is
    made from them, which is cheaper than a stale one.

    Read once, as plugins are: what runs is what was imported.
    """
    sources = [Path(str((sys.modules[m] if isinstance(m, str) else m).__file__)) for m in modules]
    common = [Path(__file__).with_name(f"{name}.py") for name in COMMON]
    return digest([file_digest(path) for path in (*sources, *common)])

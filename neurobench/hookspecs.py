"""The hooks of neurobench: the front page of its architecture.

A plugin is a module (or object) with one or more of these functions, each returning a list of classes::

    from neurobench import hookimpl

    @hookimpl
    def register_backbones():
        return [MyNet]

and one entry point in the group ``neurobench``. Nothing here is called inside a loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from neurobench.contracts import Backbone, Baseline, Dataset, Figure, MaskingStrategy, Task

PROJECT = "neurobench"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def register_backbones() -> list[type[Backbone]]:  # type: ignore[empty-body]
    """Return backbones: signal and token table to tokens."""


@hookspec
def register_masks() -> list[type[MaskingStrategy]]:  # type: ignore[empty-body]
    """Return masking strategies: token table to hidden tokens."""


@hookspec
def register_datasets() -> list[type[Dataset]]:  # type: ignore[empty-body]
    """Return datasets: a folder of the user to recordings and participants."""


@hookspec
def register_tasks() -> list[type[Task]]:  # type: ignore[empty-body]
    """Return tasks: what a pretrained backbone is scored on."""


@hookspec
def register_baselines() -> list[type[Baseline]]:  # type: ignore[empty-body]
    """Return baselines: recordings to one feature row a subject, no pretraining."""


@hookspec
def register_figures() -> list[type[Figure]]:  # type: ignore[empty-body]
    """Return figures: what a run left on disk to pictures of a report."""

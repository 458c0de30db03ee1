"""Where the cohorts of a grid come from, and how those that are prepared are opened, in any process of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from neurobench.cohorts import CohortSource
from neurobench.components import ComponentSpec
from neurobench.config import Grid
from neurobench.contracts import Dataset
from neurobench.errors import ConfigError
from neurobench.options import Variant
from neurobench.plugins import Registry
from neurobench.records import Cohort
from neurobench.store import Store

__all__ = ["cohort_source", "resolve_device", "source_of", "sources_of", "stored_cohorts"]


def cohort_source(spec: ComponentSpec, grid: Grid, registry: Registry) -> CohortSource:
    """Return where a dataset's cohort comes from: the user's folder if there is one, else the twin."""
    config = grid.config
    return source_of(
        spec,
        registry,
        root=grid.data_dirs.get(spec.label),
        n_subjects=config.n_subjects,
        variant=config.variant,
        window_s=config.window_s,
        patch_s=config.patch_s,
        sfreq=config.sfreq,
    )


def source_of(
    spec: ComponentSpec,
    registry: Registry,
    *,
    root: Path | None = None,
    n_subjects: int | None,
    variant: Variant,
    window_s: float | None,
    patch_s: float | None,
    sfreq: float | None,
) -> CohortSource:
    """Return where a dataset's cohort comes from, by what was asked for; None is as the dataset has it."""
    dataset: Dataset = registry.get("dataset", spec.name)(**spec.arguments)
    default = dataset.spec
    signal = replace(
        default,
        window_s=default.window_s if window_s is None else window_s,
        patch_s=default.patch_s if patch_s is None else patch_s,
        sfreq=default.sfreq if sfreq is None else sfreq,
    )
    provenance = registry.provenance("dataset", spec.name)
    return CohortSource(
        dataset=dataset,
        label=spec.label,
        code={
            **spec.identity(),
            "distribution": provenance.distribution,
            "version": provenance.version,
            "digest": provenance.digest,
            "score_version": type(dataset).score_version,
        },
        spec=signal,
        root=root,
        n_subjects=n_subjects,
        # One twin for every seed of a run: seeds repeat the analysis, not the people.
        seed=0,
        variant=variant,
    )


def sources_of(dataset: ComponentSpec, grid: Grid, registry: Registry, store: Store) -> dict[str, CohortSource]:
    """Return where a dataset and those that it is pretrained on come from, by label, the dataset first.

    Cohorts that share a network are resampled down to the slowest of them.
    """
    specs = dict.fromkeys([dataset, *grid.pretrain_on])
    sources = {s.label: cohort_source(s, grid, registry) for s in specs}
    if len(sources) == 1:
        return sources
    own = {label: source.slowest(store) for label, source in sources.items()}
    slowest = min(own.values())
    return {
        label: source if own[label] <= slowest else replace(source, spec=replace(source.spec, sfreq=slowest))
        for label, source in sources.items()
    }


def stored_cohorts(
    dataset: ComponentSpec, grid: Grid, registry: Registry, store: Store
) -> tuple[CohortSource, dict[str, Cohort]] | None:
    """Return a dataset's source and the cohorts that its rows need, by label; None if one of them is not prepared."""
    if not all(cohort_source(s, grid, registry).is_there(store) for s in (dataset, *grid.pretrain_on)):
        return None
    sources = sources_of(dataset, grid, registry, store)
    found = {label: source.stored(store) for label, source in sources.items()}
    whole = {label: cohort for label, cohort in found.items() if cohort is not None}
    return (sources[dataset.label], whole) if len(whole) == len(found) else None


def resolve_device(name: str, *, elsewhere: bool = False) -> torch.device:
    """Return the device of a run; ``auto`` takes CUDA where there is one. What is elsewhere cannot be looked at."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not elsewhere and not torch.cuda.is_available():
        raise ConfigError("--device cuda was asked for, but torch finds no CUDA device.", allowed="auto, cpu")
    return torch.device(name)

"""Run records again, with their recorded parameters and the code that is installed here.

The simulated twin is made anew; of real people whoever has the recordings can do it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neurobench import runner
from neurobench.attestation import tolerated
from neurobench.components import names_files
from neurobench.config import RunConfig, expand
from neurobench.errors import NeurobenchError
from neurobench.identity import digest
from neurobench.objectives import parse_objective
from neurobench.plugins import Registry
from neurobench.progress import Progress
from neurobench.recomputation import same
from neurobench.records import Finding
from neurobench.results import Record, read_record

__all__ = ["Again", "repeat"]


@dataclass(frozen=True)
class Again:
    """A headline that was found again.

    Parameters
    ----------
    value
        What running it again gave.
    allowed
        By how much it may differ from the record.
    """

    value: float
    allowed: float


def repeat(
    records: Sequence[tuple[Record, Mapping[str, Any]]],
    registry: Registry,
    folder: Path,
    progress: Progress | None = None,
    data_dir: Path | None = None,
) -> Iterator[tuple[str, Again | Finding]]:
    """Yield every record's id, and its headline where it was found again, or what is in the way.

    Parameters
    ----------
    records
        Records with their identities.
    registry
        The code that runs: what is installed here. Nothing of a submission is.
    folder
        Where the runs are stored; records of one run share their steps.
    progress
        Where progress is shown.
    data_dir
        Recordings of those that are of real people; they have to be the same cohort.
    """
    found: dict[str, tuple[dict[tuple[str, str], Record], str]] = {}
    for record, identity in records:
        if data_dir is None and (record.data is None or record.data.source == "real"):
            continue
        try:
            config = _config(record, identity, registry, folder, data_dir)
            key = digest([str(config)])
            if key not in found:
                found[key] = _run(config, registry, progress)
            again, problem = found[key]
        except (NeurobenchError, KeyError, TypeError, ValueError) as error:
            yield record.id, Finding("warning", "not-re-run", f"could not be run again: {error}")
            continue
        ours = again.get((record.row, record.task.label))
        if ours is None:
            text = problem or "the run gave no such row"
            yield record.id, Finding("warning", "not-re-run", f"could not be run again: {text}")
        else:
            yield record.id, _compare(record, ours)


def _config(
    record: Record, identity: Mapping[str, Any], registry: Registry, folder: Path, data_dir: Path | None
) -> RunConfig:
    p, asked = record.protocol, identity["asked"]
    assert record.data is not None
    real = record.data.source == "real"
    twin: Mapping[str, Any] = {"variant": "default", "n_subjects": None} if real else identity["twin"]
    if names_files(record.dataset.parameters):
        raise ValueError("a parameter of its dataset names a file of another machine")
    objective = parse_objective(p.objective)
    if "outside weights" in record.apart:
        raise ValueError("the weights of its backbone come from a file of another machine")
    no_pretraining = next(n for n, cls in sorted(registry.masks.items()) if not cls.pretrains)
    pretrained = record.kind == "pretrained" and record.mask is not None
    return RunConfig.from_options(
        backbone=record.backbone.label if record.backbone else next(iter(sorted(registry.backbones))),
        mask=record.mask.label if pretrained and record.mask else no_pretraining,
        dataset=record.dataset.label,
        task=record.task.label,
        seed=p.seed,
        profile=p.profile,
        adaptation=p.adaptation,
        split=p.split,
        folds=p.n_folds if p.split == "subjects" else None,
        ratio=None if objective.draws_ratios else p.ratio,
        objective=p.objective,
        n_steps=p.n_steps,
        source=record.data.source,
        data_dir=data_dir if real else None,
        variant=twin["variant"],
        n_subjects=twin["n_subjects"],
        window_s=asked["window_s"],
        patch_s=asked["patch_s"],
        sfreq=asked["sfreq"],
        transductive=p.transductive or None,
        harmonise=p.harmonise,
        probe=p.probe,
        out=folder,
    )


def _run(config: RunConfig, registry: Registry, progress: Progress | None) -> tuple[dict[tuple[str, str], Record], str]:
    result = runner.execute(expand(config, registry), registry, progress=progress)
    again = {}
    for row in result.table.to_dict("records"):
        if row["status"] == "ok":
            record = read_record(result.out / "records" / f"{row['id']}.json")
            again[record.row, record.task.label] = record
    failed = next((str(e) for e in result.table["error"] if e), "")
    return again, failed


def _compare(record: Record, ours: Record) -> Again | Finding:
    a, b = record.metrics[record.headline], ours.metrics.get(record.headline)
    if b is None or b.value is None or a.value is None:
        return Finding("error", "re-run", f"run again, it has no {record.headline}")
    if record.data is not None and ours.data is not None and record.data.fingerprint != ours.data.fingerprint:
        if record.data.source == "real":
            return Finding(
                "warning",
                "not-re-run",
                "could not be run again: the recordings here are another cohort than the record's",
            )
        return Finding(
            "error", "re-run", "run again, the simulated cohort is another one: its fingerprint is not the record's"
        )
    allowed = tolerated(ours, record.headline)
    if abs(a.value - b.value) <= allowed or same(a.value, b.value, 1e-6):
        return Again(b.value, allowed)
    return Finding(
        "error",
        "re-run",
        f"run again, its {record.headline} is {b.value:.4g}, not {a.value:.4g} ({allowed:.2g} either way is allowed)",
    )

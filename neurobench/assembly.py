"""From stored steps to records and a table: skill over the best baseline, what may be called best, what failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neurobench import evoked_scores, gather, paired, results
from neurobench.components import ComponentSpec
from neurobench.config import Grid
from neurobench.contracts import EvokedTask, ReconstructionTask, SubjectTask
from neurobench.evidence import read_table
from neurobench.identity import digest
from neurobench.plugins import Registry
from neurobench.results import ComponentRecord, CostRecord, DataRecord, MetricRecord, PretrainingRecord, Record
from neurobench.stages import CohortRun
from neurobench.steps import Failures, Row
from neurobench.store import Entry, Store, moment

__all__ = ["Scored", "cohort_failed", "collect", "finish"]

COVARIATES_ROW = "covariates"
"""The baseline that knows who was scanned, where and how long, and nothing of the brain."""


@dataclass(frozen=True, eq=False)
class Scored:
    """A record, and the held-out evidence that comparisons are made from.

    Parameters
    ----------
    record
        Without comparisons yet.
    predictions
        Held-out predictions of a task on subjects, or on windows.
    held_out
        What is kept of the held-out subjects beside the record.
    tables, arrays
        The rest of the evidence, by kind, see :mod:`neurobench.evidence`.
    identity
        What the record's id is the hash of, and everything that this names by its hash.
    """

    record: Record
    predictions: pd.DataFrame | None = None
    held_out: pd.DataFrame | None = None
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    arrays: Mapping[str, Mapping[str, NDArray[Any]]] = field(default_factory=dict)
    identity: Mapping[str, Any] | None = None

    @property
    def of_windows(self) -> bool:
        """Whether the predictions are of windows, not of subjects."""
        return self.predictions is not None and "window" in self.predictions

    @property
    def failed(self) -> bool:
        """Whether there is no score, only an error."""
        return self.record.status == "failed"


def component_record(spec: ComponentSpec, registry: Registry) -> ComponentRecord:
    """Return a component as records hold it."""
    provenance = registry.provenance(spec.kind, spec.name)
    return ComponentRecord(
        name=spec.name,
        label=spec.label,
        parameters=dict(spec.parameters),
        distribution=provenance.distribution,
        version=provenance.version,
        digest=provenance.digest,
        score_version=registry.get(spec.kind, spec.name).score_version,
    )


def _apart(backbone: ComponentSpec | None, mask: ComponentSpec | None, registry: Registry) -> list[results.Apart]:
    """Return why rows of a backbone under a mask are not ranked beside the others."""
    found: list[results.Apart] = []
    if backbone is not None and not registry.get("backbone", backbone.name).keeps_budget(backbone.parameters):
        found.append("parameter budget")
    if backbone is not None and backbone.from_outside:
        found.append("outside weights")
    if mask is not None:
        strategy = registry.get("mask", mask.name)(**mask.arguments)
        if strategy.pretrains and not strategy.budgeted:
            found.append("mask budget")
    return found


# ---------------------------------------------------------------- records of one cohort


def collect(run: CohortRun, failures: Failures, store: Store) -> list[Scored]:
    """Return the records of every (row, task) of a cohort; those that failed hold the error."""
    if not run.tasks:
        return []
    common = {
        "dataset": component_record(run.dataset, run.registry),
        "data": _data_record(run),
        "protocol": results.ProtocolRecord(**run.protocol()),
    }
    results.write_folds(store.out, run.fold_fingerprint, run.folds)
    scored = []
    for row in run.rows:
        use = run.needed_for(row)
        summary = None if row.kind != "pretrained" or use.is_idle(failures) else _pretraining_record(run, row, store)
        for task in run.tasks:
            if run.scores(row, task):
                found = _score(run, row, task, failures.get((row, task.label)), summary, common, store)
                scored.append(found if found.failed else replace(found, identity=_identity(run, row, task, store)))
    return scored


def _identity(run: CohortRun, row: Row, task: ComponentSpec, store: Store) -> dict[str, Any]:
    """Return what a record's id is the hash of, what stands behind it, and of simulated data how they were made."""
    evaluation = run.evaluation_step(row, task).identity
    where = run.source.identity()["where"] if run.cohort.source == "simulated" else {}
    twin = {k: where["twin"][k] for k in ("n_subjects", "seed", "variant")} if "twin" in where else None
    spec = run.source.spec
    return {
        "evaluation": evaluation,
        "steps": store.lineage(evaluation),
        "twin": twin,
        "asked": {"window_s": spec.window_s, "patch_s": spec.patch_s, "sfreq": spec.sfreq},
    }


def _score(
    run: CohortRun,
    row: Row,
    task: ComponentSpec,
    error: str | None,
    summary: PretrainingRecord | None,
    common: Mapping[str, Any],
    store: Store,
) -> Scored:
    step = run.evaluation_step(row, task)
    entry = None if error is not None else store.get(step.stage, step.key)
    fields: dict[str, Any] = {
        **common,
        "id": digest({"evaluation": step.identity}),
        "kind": row.kind,
        "row": row.label,
        **{k: s and component_record(s, run.registry) for k, s in _components(row).items()},
        "task": component_record(task, run.registry),
        "pretraining": summary,
        "apart": _apart(row.backbone, row.mask, run.registry),
        "environment": results.environment(),
        "written": moment(),
    }
    if entry is None:
        return Scored(
            Record(
                **fields,
                status="failed",
                error=error or "an earlier step is missing",
                headline=run.task(task).metrics[0].name,
                metrics={},
                per_fold={},
                n_subjects=0,
                cost=CostRecord(n_parameters=None, seconds=0.0, peak_memory_mb=None, device=str(run.device)),
            )
        )
    not_shown = run.not_shown(row, task, store)
    score = entry.json("score.json")
    cost = _cost(run, row, task, entry, store)
    leak = _leak(run, row, store)
    record = Record(
        **fields,
        status="ok",
        headline=score["headline"],
        metrics={name: MetricRecord(**m) for name, m in score["metrics"].items()},
        per_fold=score["per_fold"],
        n_subjects=score["n_subjects"],
        p_value=score["p_value"],
        p_value_refit=score.get("p_value_refit"),
        above_chance=score["above_chance"],
        training=results.TrainingRecord(**score["training"]) if "training" in score else None,
        cost=cost,
        confounds={name: MetricRecord(**m) for name, m in score.get("confounds", {}).items()} | leak,
        notes=[
            *score["notes"],
            *_notes_of(cost, run.grid.profile.batch_size),
            *_holes(not_shown),
            *_lacking(run, row, leak, store),
        ],
    )
    tables = {"curves": shown} if summary and (shown := gather.curves(run, row, store)) is not None else {}
    if (lost := gather.attributed(run, row, task, store)) is not None:
        tables["attribution"] = lost
        if isinstance(run.task(task), ReconstructionTask):
            if (where := gather.aligned(run, row, store)) is not None:
                tables["alignment"] = where
            if (drawn := gather.importances(run, row, store)) is not None:
                tables["importance"] = drawn
            if (routed := gather.routings(run, row, store)) is not None:
                tables["routing"] = routed
    if row.backbone is not None and isinstance(run.task(task), SubjectTask) and not run.adapts(row):
        tables["geometry"] = gather.embedding_geometry(run, row, task)
    path = entry.file("predictions.parquet")
    if path.is_file():
        predictions = read_table(path)
        return Scored(record, predictions=predictions, held_out=predictions, tables=tables)
    built = run.task(task)
    if isinstance(built, EvokedTask):
        evoked = run.evoked_scores(row, task)
        averages = gather.responses(run, row, task, store)
        return Scored(
            record,
            held_out=run.with_family(evoked_scores.response_table(evoked, row.label)),
            tables=tables,
            arrays={} if averages is None else {"responses": averages},
        )
    masks = run.headline_masks(built) if isinstance(built, ReconstructionTask) else ()
    scores = run.evaluated(row, task, not_shown)
    traces = None if row.kind == "filler" else gather.examples(run, row, task, store)
    return Scored(
        record,
        held_out=run.with_family(gather.subject_reconstructions(run, row, scores, masks)),
        tables=tables | {"units": gather.unit_scores(row, scores, masks)},
        arrays={} if traces is None else {"traces": traces},
    )


def _holes(masks: Sequence[ComponentSpec]) -> list[str]:
    """Return what is to be said of masks under which a row could not be evaluated."""
    labels = ", ".join(mask.label for mask in masks)
    return [f"not shown under {labels}: evaluating it there failed, and the log says why"] if masks else []


def _lacking(run: CohortRun, row: Row, leak: Mapping[str, MetricRecord], store: Store) -> list[str]:
    """Return what is to be said of what was asked for beside a row's scores, and failed."""
    lost = ["site leak"] if run.leak_step(row) is not None and not leak else []
    lost += ["attribution"] if run.attribution_steps(row) and not gather.attributions(run, row, store) else []
    return [f"without {what}: computing it failed, and the log says why" for what in lost]


def _leak(run: CohortRun, row: Row, store: Store) -> dict[str, MetricRecord]:
    """Return how well a row's features tell the site, if that was asked."""
    step = run.leak_step(row)
    entry = None if step is None else store.get(step.stage, step.key)
    return {} if entry is None else {"site_leak": MetricRecord(**entry.json("leak.json"))}


def _components(row: Row) -> dict[str, ComponentSpec | None]:
    return {"backbone": row.backbone, "mask": row.mask, "baseline": row.baseline}


def _data_record(run: CohortRun) -> DataRecord:
    cohort = run.cohort
    card = cohort.card
    return DataRecord(
        dataset=cohort.dataset,
        title=card.title,
        source=cohort.source,
        variant=run.grid.config.variant if cohort.source == "simulated" else "",
        revision=card.revision,
        licence=card.licence,
        access=card.access,
        citation=card.cite(),
        may_leave=card.may_leave,
        fingerprint=cohort.fingerprint,
        signal=cohort.signal,
        n_subjects=len(cohort.subjects),
        n_recordings=len(cohort.recordings),
        n_units=len(cohort.units),
        sfreq=cohort.sfreq,
        provenance=list(cohort.provenance),
        left_out=dict(Counter(f.code for f in cohort.findings if f.level == "error")),
    )


def _pretraining_record(run: CohortRun, row: Row, store: Store) -> PretrainingRecord:
    """Return what a pretraining reached on held-out subjects, beside the best trivial filler under its own mask."""
    _, mask = row.pretraining
    history = [e.json("pretraining.json") for e in gather.pretrainings(run, row, store).values()]
    scores = run.reconstructions(row, [mask], run.grid.ratio)
    best = scores.best_filler()[0]
    own, filler = float(scores.r2(row.label)[0]), float(scores.r2(best)[0])

    def mean(name: str) -> float | None:
        values = [h[name] for h in history if h[name] is not None]
        return float(np.mean(values)) if values else None

    return PretrainingRecord(
        loss_first=mean("loss_first"),
        loss_last=mean("loss_last"),
        loss_held_out=float(scores.sse[0, scores.predictors.index(row.label)].sum() / scores.n[0].sum()),
        hidden_fraction=mean("hidden_fraction"),
        scored_fraction=mean("scored_fraction"),
        r2_own_mask=own,
        r2_best_filler=filler,
        best_filler=best,
        learned=own >= filler,
        on=_pretrained_on(run),
    )


def _pretrained_on(run: CohortRun) -> list[results.OutsideRecord]:
    """Return the cohorts that networks were pretrained on, if that was not the training subjects alone."""
    seen = run.cohort.seen_as
    outside = {o.cohort.dataset: o for o in run.outside}
    found = []
    for spec in run.grid.pretrain_on:
        one = outside.get(spec.label)
        n_inside = round(float(np.mean([len(f.train) for f in run.folds])))
        found.append(
            results.OutsideRecord(
                dataset=spec.label,
                fingerprint=(one.cohort if one else run.cohort).fingerprint,
                n_subjects=len(one.people) if one else n_inside,
                n_left_out=one.n_left_out if one else 0,
                n_same_name=one.n_same_name if one else 0,
                units_by=seen.by if seen else "name",
                distance_mm=float(np.median(seen.distance_mm)) if seen else 0.0,
            )
        )
    return found


def _cost(run: CohortRun, row: Row, task: ComponentSpec, entry: Entry, store: Store) -> CostRecord:
    """Return measured cost: of all folds, pretraining and features included."""
    seconds, peak, n_parameters = entry.seconds, None, None
    histories: list[dict[str, Any]] = []
    parts: list[int] = []
    spread = ""
    if row.backbone is not None:
        # One pretraining may serve several folds; it was paid for once.
        for found in gather.pretrainings(run, row, store).values():
            histories.append(history := found.json("pretraining.json"))
            seconds += found.seconds
            n_parameters = history["n_parameters"]
            peak = max(peak or 0.0, history["peak_memory_mb"] or 0.0) or None
            # Those of earlier versions have neither.
            parts += [history["micro_batch"]] if history.get("micro_batch") else []
            spread = history.get("distributed", "") or spread
    if run.task(task).needs == "features" and not run.adapts(row):
        steps = [run.feature_step(row, task, fold) for fold in run.folds]
        seconds += sum(e.seconds for s in steps if (e := store.get(s.stage, s.key)) is not None)
    return CostRecord(
        n_parameters=n_parameters,
        seconds=round(seconds, 3),
        peak_memory_mb=peak,
        device=str(run.device),
        micro_batch=min(parts, default=None),
        distributed=spread,
        **_machine(histories),
    )


def _machine(histories: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the machine said of pretrainings, of all together; None for what is not known of each."""
    said = [h["hardware"] for h in histories if "hardware" in h]
    if not said or len(said) < len(histories):
        return {}

    def known(name: str) -> list[Any]:
        values = [s[name] for s in said]
        return [] if None in values else values

    seconds = [h["seconds"] for h in histories]
    # Weights that came from nowhere but their first draw took no time: nothing to divide by.
    trained = sum(seconds) if sum(h["n_tokens"] for h in histories) else 0.0
    busy = known("gpu_utilisation")
    return {
        "device_name": ", ".join(dict.fromkeys(s["device_name"] for s in said if s["device_name"])),
        "n_threads": max(known("n_threads"), default=None),
        "gpu_peak_memory_mb": max(known("gpu_peak_memory_mb"), default=None),
        "host_peak_memory_mb": max(known("host_peak_memory_mb"), default=None),
        "tokens_per_s": round(sum(h["n_tokens"] for h in histories) / trained, 1) if trained else None,
        "waiting_share": round(sum(h["waiting_s"] for h in histories) / trained, 4) if trained else None,
        "gpu_utilisation": round(float(np.average(busy, weights=seconds)), 4) if busy and trained else None,
        "cpu_energy_kwh": sum(cpu) if (cpu := known("cpu_energy_kwh")) else None,
        "gpu_energy_kwh": sum(gpu) if (gpu := known("gpu_energy_kwh")) else None,
        "energy_note": "; ".join(dict.fromkeys(s["energy_note"] for s in said if s["energy_note"])),
    }


def _notes_of(cost: CostRecord, batch_size: int) -> list[str]:
    """Return what of the way a pretraining was computed changes the rounding of its numbers."""
    if cost.micro_batch is None:
        return []
    return [
        f"memory did not suffice for a batch at once: its {batch_size} windows were pretrained on in parts of "
        f"{cost.micro_batch}, whose gradients were summed"
    ]


def cohort_failed(
    grid: Grid,
    registry: Registry,
    dataset: ComponentSpec,
    seed: int,
    error: str,
    protocol: Mapping[str, Any],
    tasks: Sequence[ComponentSpec],
) -> list[Scored]:
    """Return the records of combinations that fail with their whole cohort, one a (combination, task)."""
    scored = []
    for c in grid.combinations:
        if (c.dataset, c.seed) != (dataset, seed):
            continue
        for task in tasks:
            record = Record(
                id=digest({"failed": [c.backbone.label, c.mask.label + grid.arrow, dataset.label, seed, task.label]}),
                status="failed",
                error=error,
                kind="pretrained",
                row=f"{c.backbone.label} · {c.mask.label}{grid.arrow}",
                backbone=component_record(c.backbone, registry),
                mask=component_record(c.mask, registry),
                baseline=None,
                dataset=component_record(dataset, registry),
                task=component_record(task, registry),
                data=None,
                protocol=results.ProtocolRecord(**protocol),
                apart=_apart(c.backbone, c.mask, registry),
                headline=registry.get("task", task.name)(**task.arguments).metrics[0].name,
                metrics={},
                per_fold={},
                n_subjects=0,
                pretraining=None,
                cost=CostRecord(n_parameters=None, seconds=0.0, peak_memory_mb=None, device=""),
                environment=results.environment(),
                written=moment(),
            )
            scored.append(Scored(record))
    return scored


# ---------------------------------------------------------------- comparisons


def finish(scored: Sequence[Scored], out: Path) -> list[dict[str, Any]]:
    """Compare rows within each (dataset, task, seed), write the records, return the rows of the table.

    Returns
    -------
    list of dict
        As :func:`neurobench.load_results`, plus ``best``: the row is ahead of the next one, the interval of the
        paired difference on the same subjects excludes 0, and p < .05 from exchanging their predictions.
    """
    groups: dict[tuple[str, str, int], list[Scored]] = {}
    for s in scored:
        groups.setdefault((s.record.dataset.label, s.record.task.label, s.record.protocol.seed), []).append(s)
    rows = []
    for group in groups.values():
        best = _best(group)
        beyond = _beyond_covariates(group)
        for s in group:
            record = _with_skill(s.record, group)
            if s in beyond:
                record = record.model_copy(update={"confounds": record.confounds | {"over_covariates": beyond[s]}})
            results.write_record(out, record, s.held_out, s.tables, s.arrays, s.identity)
            rows.append(results.as_row(record) | {"best": s is best})
    return rows


def _headline(record: Record) -> float | None:
    return record.metrics[record.headline].value if record.status == "ok" else None


def _with_skill(record: Record, group: Sequence[Scored]) -> Record:
    """Return the record with its skill over the best of the other controls: 1 is perfect, 0 is as good as that one."""
    value = _headline(record)
    metric = record.metrics.get(record.headline)
    controls = {
        s.record.row: v
        for s in group
        if s.record.kind in results.CONTROLS and s.record.row != record.row and (v := _headline(s.record)) is not None
    }
    if value is None or metric is None or not controls:
        return record
    name = (max if metric.higher_is_better else min)(controls, key=lambda row: controls[row])
    perfect = 1.0 if metric.higher_is_better else 0.0
    span = perfect - controls[name]
    skill = (value - controls[name]) / span if abs(span) > 1e-12 else None
    return record.model_copy(update={"skill": skill, "best_baseline": name})


def _beyond_covariates(group: Sequence[Scored]) -> dict[Scored, MetricRecord]:
    """Return the difference of each row to the one that knows the covariates alone, on the same subjects."""
    tables = {s: s.predictions for s in group if s.predictions is not None and not s.of_windows}
    covariates = next((s for s in tables if s.record.row == COVARIATES_ROW), None)
    if covariates is None:
        return {}
    known = tables.pop(covariates)
    headline = covariates.record.headline
    metric = covariates.record.metrics[headline]
    return {
        row: MetricRecord(
            value=found["difference"],
            low=found["low"],
            high=found["high"],
            unit=metric.unit,
            higher_is_better=metric.higher_is_better,
            chance=0.0,
        )
        for row, found in zip(tables, paired.differences_to(headline, [*tables.values()], known), strict=True)
    }


def _best(group: Sequence[Scored]) -> Scored | None:
    """Return the leading row if it is above chance, and interval and p-value tell it from the next one.

    Where there is nothing to find, scores scatter below chance, and who scatters least is no winner. Within recordings
    nothing is ranked: the test signal is the training people's. Nor is reconstruction after a transductive
    pretraining, which has seen that signal, nor a row that stands apart.
    """
    ranked = [s for s in group if _headline(s.record) is not None and not s.record.apart]
    if len(ranked) < 2:
        return None
    protocol = ranked[0].record.protocol
    if protocol.split == "within-recording" or (protocol.transductive and ranked[0].predictions is None):
        return None
    higher = ranked[0].record.metrics[ranked[0].record.headline].higher_is_better
    ranked.sort(key=lambda s: _headline(s.record) or 0.0, reverse=higher)
    first, second = ranked[0], ranked[1]
    if first.record.above_chance is False or first.held_out is None or second.held_out is None:
        return None
    found = paired.difference_of(first.record.headline, first.held_out, second.held_out)
    # The interval alone is too narrow where people are few: exchanging the two rows' predictions has to agree.
    return first if (found["low"] > 0 if higher else found["high"] < 0) and found["p"] < 0.05 else None

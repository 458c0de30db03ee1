"""From stored steps to the evidence that lies beside a record: maps, curves, traces, responses, and the cohort."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neurobench import attribution, sensory
from neurobench.components import ComponentSpec
from neurobench.contracts import EvokedTask, ReconstructionTask, SubjectTask
from neurobench.evidence import read_table, write_table
from neurobench.grand_average import GrandAverage
from neurobench.paired import Paired, families_of, row_of
from neurobench.reconstruction import ReconstructionScores
from neurobench.records import Cohort
from neurobench.splits import family_of
from neurobench.stages import CohortRun
from neurobench.steps import Row
from neurobench.store import Entry, Store, atomic_write, disk_errors

__all__ = [
    "aligned",
    "attributed",
    "attributions",
    "curves",
    "embedding_geometry",
    "examples",
    "responses",
    "subject_reconstructions",
    "unit_scores",
    "write_cohort",
]

CURVE_POINTS = 200
"""Points of a learning curve that are kept: each the mean loss over as many steps as it takes."""


def subject_reconstructions(
    run: CohortRun, row: Row, scores: ReconstructionScores, headline: tuple[str, ...]
) -> pd.DataFrame:
    """Return one row a (subject, mask): fold, whether the mask counts in the headline, and sums of squares.

    R² pooled over subjects is 1 − Σ ``sse`` / Σ ``sst``; the skill puts ``sse_best_filler`` in the place of ``sst``.
    Every metric of the record can be found again from the columns.
    """
    fold = {s: f.index for f in run.folds for s in f.test}
    own = scores.sse[:, scores.predictors.index(row.label)].sum(-1)
    best = [scores.predictors.index(name) for name in scores.best_filler()]
    correlation = scores.pearson_r(row.label)
    tables = [
        pd.DataFrame(
            {
                "participant_id": scores.subjects,
                "fold": [fold[s] for s in scores.subjects],
                "mask": mask,
                "headline": mask in headline,
                "n": scores.n[m].sum(-1),
                "sse": own[m],
                "sst": scores.sst[m].sum(-1),
                "sse_best_filler": scores.sse[m, best[m]].sum(-1),
                "guard_sse": scores.guard_sse[m, scores.predictors.index(row.label)],
                "guard_sst": scores.guard_sst[m],
                "pearson_r": correlation[m],
                "fc_similarity": scores.fc_similarity[m, scores.predictors.index(row.label)],
            }
        )
        for m, mask in enumerate(scores.masks)
    ]
    return pd.concat(tables, ignore_index=True)


def unit_scores(row: Row, scores: ReconstructionScores, headline: tuple[str, ...]) -> pd.DataFrame:
    """Return one row a unit: ``r2`` over headline masks, that of each mask's best filler, and ``r2[MASK]``."""
    own = scores.unit_r2(row.label)
    best = np.stack([scores.unit_r2(name)[m] for m, name in enumerate(scores.best_filler())])
    # If every mask is trivial on this signal there is no better headline than all of them.
    counted = [m for m, mask in enumerate(scores.masks) if mask in headline] or list(range(len(scores.masks)))
    table = {"unit": scores.units, "r2": _mean(own[counted]), "r2_filler": _mean(best[counted])}
    return pd.DataFrame(table | {f"r2[{mask}]": own[m] for m, mask in enumerate(scores.masks)})


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over masks in which a unit was scored; NaN where it never was."""
    known = np.isfinite(values)
    n = known.sum(0)
    mean: NDArray[np.float64] = np.divide(
        np.where(known, values, 0.0).sum(0), n, out=np.full(values.shape[1], np.nan), where=n > 0
    )
    return mean


def pretrainings(run: CohortRun, row: Row, store: Store) -> dict[int, Entry]:
    """Return the stored pretrainings of a row by the first fold that uses them: one a fold, or one for all."""
    found: dict[str, tuple[int, Entry]] = {}
    for fold in run.folds:
        step = run.pretraining_step(*row.pretraining, fold)
        if (entry := store.get(step.stage, step.key)) is not None:
            found.setdefault(step.key, (fold.index, entry))
    return dict(found.values())


def curves(run: CohortRun, row: Row, store: Store) -> pd.DataFrame | None:
    """Return the loss of a pretraining: fold, step (the last one averaged over), loss; None without a step."""
    tables = []
    for fold, entry in pretrainings(run, row, store).items():
        losses = np.asarray(entry.json("pretraining.json")["losses"], float)
        if len(losses):
            ends = np.unique(np.linspace(0, len(losses), min(CURVE_POINTS, len(losses)) + 1).round().astype(int))
            means = np.add.reduceat(losses, ends[:-1]) / np.diff(ends)
            tables.append(pd.DataFrame({"fold": fold, "step": ends[1:], "loss": means}))
    return pd.concat(tables, ignore_index=True) if tables else None


def examples(run: CohortRun, row: Row, spec: ComponentSpec, store: Store) -> Mapping[str, NDArray[Any]] | None:
    """Return the examples of a row under every mask of a task, as :data:`neurobench.evidence.ARRAYS` says of traces."""
    task = run.task(spec)
    assert isinstance(task, ReconstructionTask)
    found: dict[str, Mapping[str, NDArray[Any]]] = {}
    for mask in run.evaluation_masks(task):
        step = run.reconstruction_step(row, run.folds[0], mask, task.ratio)
        entry = store.get(step.stage, step.key)
        if entry is not None and (path := entry.file("example.npz")).is_file():
            with np.load(path, allow_pickle=False) as stored:
                found[mask.label] = dict(stored)
    n = min((len(e["units"]) for e in found.values()), default=0)
    if n == 0:
        return None
    stacked = {k: np.stack([e[k][:n] for e in found.values()]) for k in ("units", "real", "predicted", "hidden", "r2")}
    return {"masks": np.array(list(found), dtype=str), "times_s": next(iter(found.values()))["times_s"], **stacked}


def responses(run: CohortRun, row: Row, spec: ComponentSpec, store: Store) -> Mapping[str, NDArray[Any]] | None:
    """Return the grand averages of a row's evoked responses over every fold's test subjects."""
    task = run.task(spec)
    assert isinstance(task, EvokedTask)
    steps = [run.evoked_step(row, fold, spec) for fold in run.folds]
    entries = [e for s in steps if (e := store.get(s.stage, s.key)) is not None]
    joined = GrandAverage.joined([e.file("grand_average.npz") for e in entries], row.label, run.cohort.units.names)
    if joined is None:
        return None
    keys = [key.partition("/") for key in joined["keys"].tolist()]
    return {**joined, "peak_window_s": np.array([task.peak_window_s(state, what) for state, _, what in keys])}


# ---------------------------------------------------------------- interpretation


def embedding_geometry(run: CohortRun, row: Row, spec: ComponentSpec) -> pd.DataFrame:
    """Return where every held-out subject lies on the first two components of its fold's training subjects.

    Columns are participant_id, pc1, pc2 (in s.d. of the training subjects), site and age where known, and fold.
    """
    # Tasks on subjects share their features, unless sites are taken out beside a target.
    key = row.label, spec.label if run.harmonises(row, spec) else ""
    if key not in run.geometries:
        components = []
        for fold in run.folds:
            subjects, x = run.features(row, spec, fold)
            components.append(attribution.geometry(x, subjects, fold.train, fold.test))
        shown = [s for fold in run.folds for s in fold.test]
        own = run.cohort.participants.loc[shown]
        run.geometries[key] = pd.DataFrame(
            {
                "participant_id": shown,
                **dict(zip(("pc1", "pc2"), np.concatenate(components).T, strict=True)),
                "site": own["site"].where(own["site"].notna(), "").astype(str).to_numpy() if "site" in own else "",
                "age": pd.to_numeric(own["age"], errors="coerce").to_numpy(float) if "age" in own else np.nan,
                "fold": np.repeat([fold.index for fold in run.folds], [len(fold.test) for fold in run.folds]),
            }
        )
    return run.geometries[key]


def attributed(run: CohortRun, row: Row, task: ComponentSpec, store: Store) -> pd.DataFrame | None:
    """Return what a row loses without each group, for its record on a task: columns of ``attribution``.

    Of a reconstruction the R² that the other units lose; of a task on subjects the change of the headline metric, with
    the control of permuted labels beside. The control of randomised weights is the untrained backbone's own table.
    """
    entries = attributions(run, row, store)
    if not entries:
        return None
    built = run.task(task)
    if isinstance(built, ReconstructionTask):
        return _occluded(entries, run)
    if isinstance(built, SubjectTask) and all(e.file("predictions.parquet").is_file() for e in entries):
        whole = pd.concat([read_table(e.file("predictions.parquet")) for e in entries], ignore_index=True)
        return _without_groups(whole[whole["task"] == task.label], built, run)
    return None


def importances(run: CohortRun, row: Row, store: Store) -> pd.DataFrame | None:
    """Return how much other units draw on each unit in every state, the mean over folds; None where that is not known.

    Columns of ``importance``; ``expected`` is false throughout where no response is expected anywhere.
    """
    values = _drawn_on(run, row, store)
    units = run.cohort.units
    nowhere = np.zeros(len(units), bool)
    tables = []
    for state, own in values.items():
        where = sensory.expected_units(units, state)
        table = {"state": state, "unit": units.names, "value": own, "expected": nowhere if where is None else where}
        tables.append(pd.DataFrame(table))
    return pd.concat(tables, ignore_index=True) if tables else None


def aligned(run: CohortRun, row: Row, store: Store) -> pd.DataFrame | None:
    """Return how well what a backbone draws on singles out the sensors where each state's response is expected.

    The mean over folds of each sensor's importance in the test subjects; None where that is not known.
    """
    values = _drawn_on(run, row, store)
    units = run.cohort.units
    expected = {s: e for s in values if (e := sensory.expected_units(units, s)) is not None}
    if not expected:
        return None
    turned = sensory.turns(units.position_mm, sensory.N_PERMUTATIONS, run.seed) if units.has_positions else None
    rows = [
        {"state": state, **sensory.alignment(values[state], where, turned, run.seed)}
        for state, where in expected.items()
    ]
    return pd.DataFrame(rows)


def routings(run: CohortRun, row: Row, store: Store) -> pd.DataFrame | None:
    """Return which experts work on which units in every fold, columns of ``routing``; None where there are none."""
    tables = []
    for fold, entry in zip(run.folds, attributions(run, row, store), strict=False):
        if (path := entry.file("routing.npy")).is_file():
            shares = np.load(path, allow_pickle=False)
            n_units, n_experts = shares.shape
            table = {"fold": fold.index, "unit": np.repeat(run.cohort.units.names, n_experts)}
            table |= {"expert": np.tile(np.arange(1, n_experts + 1), n_units), "share": shares.ravel()}
            tables.append(pd.DataFrame(table))
    return pd.concat(tables, ignore_index=True) if tables else None


def _drawn_on(run: CohortRun, row: Row, store: Store) -> dict[str, NDArray[np.float64]]:
    """Return (units,) of every state: what others draw on each unit, the mean over folds."""
    values: dict[str, list[NDArray[np.float64]]] = {}
    for entry in attributions(run, row, store):
        if (path := entry.file("importance.npz")).is_file():
            with np.load(path, allow_pickle=False) as stored:
                for state, own in zip(stored["states"].tolist(), stored["values"], strict=True):
                    values.setdefault(state, []).append(own)
    return {state: np.mean(own, axis=0) for state, own in values.items()}


def attributions(run: CohortRun, row: Row, store: Store) -> list[Entry]:
    """Return a row's attribution in every fold; nothing where it is not known in one of them, or was not asked for."""
    steps = run.attribution_steps(row)
    entries = [e for s in steps if (e := store.get(s.stage, s.key)) is not None]
    return entries if len(entries) == len(steps) else []


def _sizes(run: CohortRun) -> dict[str, int]:
    return {name: len(rows) for name, rows in attribution.unit_groups(run.cohort.units).items()}


def _occluded(entries: Sequence[Entry], run: CohortRun) -> pd.DataFrame:
    parts = []
    for entry in entries:
        with np.load(entry.file("occlusion.npz"), allow_pickle=False) as stored:
            sums = (stored[n][..., None] for n in ("base", "occluded", "total"))
            parts.append(
                attribution.Occlusion(tuple(stored["subjects"].tolist()), tuple(stored["groups"].tolist()), *sums)
            )
    family = family_of(run.cohort.participants)
    table = attribution.Occlusion.joined(parts).table(run.seed, family=family)
    between = attribution.agreement(np.stack([p.loss() for p in parts]))
    table = table.assign(control="", metric="loss of R² of the other units", unit="", fold_agreement=between)
    return table.assign(n_units=table["group"].map(_sizes(run)))


def _without_groups(predictions: pd.DataFrame, task: SubjectTask, run: CohortRun) -> pd.DataFrame:
    metric = task.metrics[0]
    rows = []
    sizes = _sizes(run)
    for control, own in predictions.groupby("control", sort=True):
        whole = own[own["group"] == ""]
        paired = Paired(len(whole), seed=run.seed, family=families_of(run.with_family(whole)))
        first = row_of(metric.name, whole)
        by_fold: list[list[float]] = []
        for group in sizes:
            occluded = own[own["group"] == group]
            second = row_of(metric.name, occluded)
            # Positive: worse without the group.
            pair = (first, second) if metric.higher_is_better else (second, first)
            found = paired.difference([pair])
            by_fold.append((paired.drawn(pair[0])[2] - paired.drawn(pair[1])[2]).tolist())
            moved = np.abs(occluded["prediction"].to_numpy() - whole["prediction"].to_numpy()).mean()
            rows.append(
                {
                    "group": group,
                    "value": found["difference"],
                    "low": found["low"],
                    "high": found["high"],
                    "control": control,
                    "metric": f"loss of {metric.name}",
                    "unit": metric.unit,
                    "mean_change": float(moved),
                    "n_units": sizes[group],
                }
            )
        between = attribution.agreement(np.array(by_fold, float).T)
        for r in rows:
            if r["control"] == control:
                r["fold_agreement"] = between
    return pd.DataFrame(rows)


# ---------------------------------------------------------------- the cohort


def write_cohort(run: CohortRun, out: Path) -> None:
    """Write who is in a cohort, who was left out and why, its units and its card, for reports."""
    cohort = run.cohort
    folder = out / "cohorts" / cohort.fingerprint
    path = folder / "cohort.json"
    with disk_errors(path):
        write_table(folder / "units.parquet", _units(cohort))
    atomic_write(path, json.dumps(_cohort(run), indent=1, ensure_ascii=False) + "\n")


def _units(cohort: Cohort) -> pd.DataFrame:
    units = cohort.units
    return pd.DataFrame(
        {
            "unit": units.names,
            "group": units.groups,
            "type": units.types,
            "site": units.sites,
            **{axis: units.position_mm[:, i].astype(float) for i, axis in enumerate("xyz")},
        }
    )


def _cohort(run: CohortRun) -> dict[str, Any]:
    """Return plain values; no participant is named where only aggregates may leave the machine."""
    cohort = run.cohort
    people = cohort.participants
    named = cohort.card.may_leave != "aggregates"
    left_out: dict[str, dict[str, Any]] = {}
    for f in cohort.findings:
        entry = left_out.setdefault(f.code, {"level": f.level, "n": 0, "subjects": set(), "fix": f.fix, "example": ""})
        entry["n"] += 1
        entry["subjects"] |= {f.subject} - {""}
        entry["example"] = entry["example"] or (f.message if named or not (f.subject or f.path) else "")
    flow = [
        {
            "code": code,
            "level": entry["level"],
            "n": entry["n"],
            "n_subjects": len(entry["subjects"]),
            "example": entry["example"],
            "fix": entry["fix"],
        }
        for code, entry in sorted(left_out.items(), key=lambda item: (-item[1]["n"], item[0]))
    ]
    states = Counter(r.state for r in cohort.recordings)
    families = people["family"].dropna().value_counts() if "family" in people else pd.Series(dtype=int)
    return {
        "fingerprint": cohort.fingerprint,
        "dataset": cohort.dataset,
        "card": asdict(cohort.card),
        "source": cohort.source,
        "variant": run.grid.config.variant if cohort.source == "simulated" else "",
        "modality": cohort.modality,
        "signal": cohort.signal,
        "n_subjects": len(people),
        "n_recordings": len(cohort.recordings),
        "n_units": len(cohort.units),
        "group_source": cohort.units.group_source,
        "sfreq": cohort.sfreq,
        "states": dict(sorted(states.items())),
        "provenance": list(cohort.provenance),
        "findings": flow,
        "columns": _columns(people),
        "sites": _by_site(people),
        "n_families": int((families > 1).sum()),
        "n_in_families": int(families[families > 1].sum()),
        "recording_s": _spread(pd.Series([r.n_times / cohort.sfreq for r in cohort.recordings], dtype=float)),
    }


def _spread(values: pd.Series[float]) -> dict[str, float]:
    return {
        "mean": float(values.mean()),
        "sd": float(values.std(ddof=0)),
        "low": float(values.min()),
        "high": float(values.max()),
    }


def _columns(people: pd.DataFrame) -> dict[str, Any]:
    """Return for every column how many know it, and its spread, or its classes where they are few."""
    found: dict[str, Any] = {}
    for name in people:
        known = people[name].dropna()
        numbers = pd.to_numeric(known, errors="coerce")
        entry: dict[str, Any] = {"n": len(known)}
        if len(known) and numbers.notna().all() and known.nunique() > 2:
            entry |= _spread(numbers.astype(float))
        elif 0 < known.nunique() <= 12:
            entry["classes"] = {str(k): int(n) for k, n in known.astype(str).value_counts().sort_index().items()}
        found[str(name)] = entry
    return found


def _by_site(people: pd.DataFrame) -> list[dict[str, Any]]:
    """Return per site how many people it has, of which diagnosis, of which age and motion."""
    if "site" not in people:
        return []
    rows = []
    for site, own in people.groupby(people["site"].fillna("unknown").astype(str)):
        row: dict[str, Any] = {"site": str(site), "n": len(own)}
        if "diagnosis" in own:
            row["diagnosis"] = {str(k): int(n) for k, n in own["diagnosis"].value_counts().sort_index().items()}
        for name in ("age", "mean_fd", "duration_s"):
            if name in own and len(values := pd.to_numeric(own[name], errors="coerce").dropna()):
                row[name] = _spread(values.astype(float))
        rows.append(row)
    return rows

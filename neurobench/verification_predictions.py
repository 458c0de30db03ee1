"""Whom a record was tested on and what it predicted of them: folds that can be used, and every number found again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from neurobench import recomputation
from neurobench.agreement import fold_problems, odd_predictions, other_means, people_problems, sides, undue_columns
from neurobench.bundle import covariates_needed, may_leave, task_of
from neurobench.bundle_reader import Contents, parse_folds, parse_table, printable
from neurobench.contracts import SubjectTask
from neurobench.errors import NeurobenchError
from neurobench.identity import digest
from neurobench.recomputation import same, tolerance_of
from neurobench.records import Fold
from neurobench.splits import check_disjoint, fold_fingerprint
from neurobench.verdicts import Item, Judge, by

__all__ = ["usable_folds", "usable_predictions"]


# ---------------------------------------------------------------- folds


def usable_folds(judge: Judge, items: Sequence[Item], contents: Contents) -> dict[str, tuple[Fold, ...]]:
    """Check the fold manifests; return those that can be used, by fingerprint."""
    stored = contents.named("folds")
    found: dict[str, tuple[Fold, ...]] = {}
    for fingerprint, own in by(items, lambda i: i.record.protocol.fold_fingerprint):
        with judge.guard(own[0].label):
            if (folds := _manifest(judge, fingerprint, own, stored.get(fingerprint))) is not None:
                found[fingerprint] = folds
    splits: dict[tuple[Any, ...], set[str]] = {}
    for item in items:
        p, data = item.record.protocol, item.record.data
        key = (data.fingerprint if data else "", p.split, p.n_folds, p.seed)
        splits.setdefault(key, set()).add(p.fold_fingerprint)
    for (_, split, n_folds, seed), prints in splits.items():
        if len(prints) > 1:
            judge.add(
                "error",
                "folds",
                f"records of one cohort with {n_folds} folds by {printable(split)}, seed {seed}, "
                f"were tested on {len(prints)} splits: {', '.join(sorted(printable(f)[:12] for f in prints))}",
            )
    return found


def _manifest(judge: Judge, fingerprint: str, own: Sequence[Item], content: bytes | None) -> tuple[Fold, ...] | None:
    """Check who is said to be trained on and tested when; return it if it can be used."""
    record = own[0].record
    p, data = record.protocol, record.data
    assert data is not None
    allowed = may_leave(record, judge.registry)
    where = f"folds {printable(fingerprint)[:12]}"
    if content is None:
        if allowed != "aggregates":
            judge.add("error", "folds", f"{where} are missing, and may be published")
        return None
    if allowed == "aggregates":
        judge.add("error", "forbidden", f"{where} list participants, which the card of the dataset forbids")
        return None
    try:
        folds, pseudonyms = parse_folds(content)
        check_disjoint(folds)
    except ValueError as error:
        judge.add("error", "folds", f"{where} cannot be read: {error}")
        return None
    except NeurobenchError as error:
        judge.add("error", "overlap", f"{where}: {error}")
        return None
    for message in fold_problems(folds, p.split, p.n_folds, data.n_subjects):
        judge.add("error", "folds", f"{where}: {message}")
    if pseudonyms and allowed == "simulated":
        judge.add("error", "folds", f"{where} are under pseudonyms, which simulated people do not need")
    if not pseudonyms:
        if allowed == "predictions":
            judge.add("error", "forbidden", f"{where} name participants, and the card asks for pseudonyms")
        if fold_fingerprint(folds) != fingerprint:
            judge.add("error", "folds", f"{where} have another fingerprint: they are not those of the records")
        pairs = {(digest(list(f.train)), digest(list(f.test))) for f in folds}
        for item in own:
            steps = [s["identity"] for s in item.identity["steps"].values()] if item.identity else []
            if steps and {(str(s.get("train")), str(s["test"])) for s in steps if "test" in s} != pairs:
                judge.add("error", "folds", "was trained or tested on other folds than it says", item.label)
    return folds


# ---------------------------------------------------------------- predictions


def usable_predictions(
    judge: Judge, items: Sequence[Item], contents: Contents, folds: Mapping[str, tuple[Fold, ...]]
) -> dict[str, pd.DataFrame]:
    """Score every table of predictions again; return those that can be used, by record."""
    stored = contents.named("predictions")
    tables: dict[str, pd.DataFrame] = {}
    for item in items:
        with judge.guard(item.label):
            table = _table(judge, item, stored.get(item.record.id), folds.get(item.record.protocol.fold_fingerprint))
            if table is not None and _recomputed(judge, item, table):
                tables[item.record.id] = table
    return tables


def _table(judge: Judge, item: Item, content: bytes | None, folds: Sequence[Fold] | None) -> pd.DataFrame | None:
    """Return the predictions beside a record if they may be there and are those of the right people."""
    record = item.record
    assert record.data is not None
    allowed = may_leave(record, judge.registry)
    if allowed not in ("simulated", record.data.may_leave):
        card = f"the card of {printable(record.dataset.label)} lets {allowed} leave, and records say"
        judge.once("error", "card", f"{card} {record.data.may_leave}")
    if content is None:
        if allowed != "aggregates":
            judge.add("warning", "declared", "has no predictions beside it, which its card would allow", item.label)
        return None
    who = "its predictions are there, and the card of its dataset"
    if allowed == "aggregates":
        judge.add("error", "forbidden", f"{who} lets scores leave only", item.label)
        return None
    try:
        table = parse_table(content)
    except ValueError as error:
        judge.add("error", "predictions", f"its predictions cannot be read: {error}", item.label)
        return None
    if allowed == "predictions":
        known = record.task.name in judge.registry.tasks
        undue = list(undue_columns(table, covariates_needed(record, judge.registry) if known else None))
        for message in undue:
            judge.add("error", "forbidden", f"{who} {message}", item.label)
        if undue:
            return None
    problems = list(people_problems(table, record, folds))
    for message in problems:
        judge.add("error", "predictions", message, item.label)
    if problems:
        return None
    p = record.protocol
    for message in [] if folds is None else [*sides(table, folds, p.split, p.n_folds), *other_means(table, folds)]:
        judge.add("error", "predictions", message, item.label)
    return table


def _recomputed(judge: Judge, item: Item, table: pd.DataFrame) -> bool:
    """Compare a record with what its predictions give; return whether they could be scored."""
    record = item.record
    try:
        task = task_of(record, judge.registry)
    except NeurobenchError as error:
        judge.once(
            "warning",
            "task-not-here",
            f"records of task {printable(record.task.label)} were not recomputed: {error.what}",
        )
        return False
    try:
        score = recomputation.recompute(task, record, table)
    except NeurobenchError as error:
        judge.add("error", "predictions", f"its predictions cannot be scored: {error}", item.label)
        return False
    for level, message in odd_predictions(record, task, table):
        judge.add(level, "predictions", message, item.label)
    tolerance = tolerance_of(record)
    wrong = list(recomputation.differences(record.metrics, score.metrics, tolerance))
    wrong += [
        f"{printable(m)} is given, and is no metric of the task" for m in record.metrics.keys() - score.metrics.keys()
    ]
    if record.headline != score.headline:
        wrong.append(f"its headline is {printable(record.headline)}, and the task's is {score.headline}")
    if record.n_subjects != score.n_subjects:
        wrong.append(f"counts {record.n_subjects} subjects, and its predictions are of {score.n_subjects}")
    if not same(record.p_value, score.p_value, tolerance.p_value):
        wrong.append("its p-value is not that of its headline")
    elif record.above_chance != score.above_chance:
        text = "whether it is above chance is not what its predictions give"
        if tolerance.interval == 0:
            wrong.append(text)
        else:
            judge.add("warning", "numpy", f"{text} here: another numpy draws other people", item.label)
    if isinstance(task, SubjectTask) and (hidden := sorted(set(score.notes) - set(record.notes))):
        wrong.append(f"a note on its predictions is missing: {hidden[0]}")
    for name, values in score.per_fold.items():
        says = record.per_fold.get(name, [])
        if len(says) != len(values) or not all(same(a, b, tolerance.value) for a, b in zip(says, values, strict=True)):
            wrong.append(f"{name} of single folds is not what the predictions give")
    for message in wrong:
        judge.add("error", "recomputed", message, item.label)
    if not wrong:
        judge.levels[record.id] = "recomputed"
    return True

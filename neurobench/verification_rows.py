"""Records beside each other, where they should agree: people, seeds, rows of one table, controls, pretrainings."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from neurobench import recomputation
from neurobench.agreement import contradict, of_people, same_predictions, unlike
from neurobench.bundle import PULL_REQUEST, Stripped, may_leave, pull_request, task_of
from neurobench.bundle_reader import Contents, parse_strict, printable
from neurobench.contracts import ReconstructionTask, SubjectTask, WindowTask
from neurobench.errors import NeurobenchError
from neurobench.identity import digest
from neurobench.options import frozen_suites, load_suite
from neurobench.pairwise import PairwiseRecord, name_of, problems, tables_of
from neurobench.plugins import OWN
from neurobench.recomputation import Tolerance, alike, same, tolerance_of
from neurobench.results import CONTROLS, Record
from neurobench.verdicts import SHOWN, Item, Judge, by, group_of

__all__ = [
    "check_comparisons",
    "check_people",
    "check_pretrainings",
    "check_seeds",
    "check_sources",
    "check_tables",
    "check_text",
]


def check_people(judge: Judge, items: Sequence[Item]) -> None:
    """Hold what tables say of people to each other: of one person there is one age, one site, one truth of a task.

    How many of a cohort are scored is up to the labels that there are; of real people nobody can see that it was not
    chosen.
    """
    for item in items:
        record, data = item.record, item.record.data
        assert data is not None
        if record.n_subjects < data.n_subjects and record.id not in judge.held:
            judge.once(
                "warning",
                "not-all",
                f"{printable(record.task.label)} on {printable(record.dataset.label)} is scored on "
                f"{record.n_subjects} of {data.n_subjects} people: who was left out, and that the others have no "
                "label, cannot be seen from here",
            )
        if record.id not in judge.tables:
            continue
        for what, values in of_people(judge.tables[record.id], record.task):
            first = judge.people.setdefault((data.fingerprint, what), values)
            if contradict(values, first):
                text = f"its predictions say another {printable(what)} of a person than other ones do"
                judge.add("error", "people", text, item.label)


def check_seeds(judge: Judge, items: Sequence[Item]) -> None:
    """Say where seeds are missing: who shows some of them may have chosen."""
    for group in tables_of([i.record for i in items]):
        seeds: dict[str, set[int]] = {}
        for r in group:
            seeds.setdefault(r.row, set()).add(r.protocol.seed)
        name, _, rest = group[0].protocol.suite.partition("@")
        wanted = set().union(*seeds.values())
        if name in frozen_suites() and "changed" not in rest:
            wanted |= set(load_suite(name).seeds)
        few = sorted(row for row, own in seeds.items() if own != wanted)
        if few:
            row = few[0]
            missing = ", ".join(map(str, sorted(wanted - seeds[row])))
            more = f", and {len(few) - 1} rows more lack some" if few[1:] else ""
            judge.once(
                "warning",
                "seeds",
                f"{printable(group[0].task.label)} on {printable(group[0].dataset.label)}: {printable(row)} lacks "
                f"seed {missing}{more}",
                "Submit all seeds of all rows: of chosen ones the mean is too good.",
            )


# ---------------------------------------------------------------- rows of one table


def check_tables(judge: Judge, items: Sequence[Item]) -> None:
    """Check the rows of every table: of one task on one cohort with one protocol and seed."""
    for _, group in by(items, lambda i: group_of(i.record)):
        with judge.guard(group[0].label):
            _group(judge, group)


def _group(judge: Judge, group: Sequence[Item]) -> None:
    """Check the rows of one task on one cohort with one protocol and seed."""
    records = [i.record for i in group]
    if len({r.n_subjects for r in records}) > 1:
        counts = sorted({r.n_subjects for r in records})
        judge.add(
            "error",
            "n-subjects",
            f"rows of {printable(records[0].task.label)} on {printable(records[0].dataset.label)} were scored on "
            f"{' and '.join(map(str, counts))} subjects: rows of one table are on the same ones",
        )
    for label in {r.row for r in records if sum(q.row == r.row for q in records) > 1}:
        judge.add("error", "twice", f"row {printable(label)} is there twice with the same settings")
    _baselines(judge, records)
    first = next((i for i in group if i.record.id in judge.tables), None)
    for item in group:
        if first is not None and item.record.id in judge.tables and item is not first:
            for message in unlike(judge.tables[item.record.id], judge.tables[first.record.id]):
                judge.add("error", "swapped", f"{message} as {printable(first.record.row)} has it", item.label)
        _controls(judge, item, records)
        for other in group[: group.index(item)]:
            ids = (item.record.id, other.record.id)
            names = {b.name for i in (item, other) if (b := i.record.backbone) is not None}
            if len(names) == 2 and {*ids} <= judge.tables.keys() and same_predictions(*(judge.tables[i] for i in ids)):
                text = f"its predictions are those of {printable(other.record.row)}: one run under two names"
                judge.add("error", "one-run", text, item.label)
        if item.record.id in judge.tables:
            _beside(judge, item, records)


def _baselines(judge: Judge, records: Sequence[Record]) -> None:
    """Name baselines of this package that a run always has and that are not here: skill is over the best of all."""
    first = records[0]
    task = judge.registry.tasks.get(first.task.name)
    if task is None or not issubclass(task, SubjectTask | WindowTask) or first.data is None:
        return
    modality = "meg" if first.data.signal == "sensors" else "fmri"
    own = {
        name
        for name, baseline in judge.registry.baselines.items()
        if modality in baseline.modalities and judge.registry.provenance("baseline", name).distribution == OWN
    }
    if missing := sorted(own - {r.baseline.name for r in records if r.baseline is not None}):
        judge.once(
            "warning",
            "baselines",
            f"{printable(first.task.label)} on {printable(first.dataset.label)} lacks {', '.join(missing)}, which "
            "every run has",
            "Submit all rows of a run: without the strongest baseline skill is too good.",
        )


def _controls(judge: Judge, item: Item, records: Sequence[Record]) -> None:
    record = item.record
    controls = {
        r.row: v
        for r in records
        if r.kind in CONTROLS and r.row != record.row and (v := r.metrics[r.headline].value) is not None
    }
    head = record.metrics[record.headline]
    if record.kind == "pretrained":
        if not any(r.kind in ("baseline", "filler") for r in records):
            judge.add("error", "no-baseline", "has no baseline beside it: no number stands alone", item.label)
        backbone = record.backbone.label if record.backbone else ""
        if not any(r.kind in ("untrained", "given") and r.backbone and r.backbone.label == backbone for r in records):
            judge.add("warning", "no-untrained", "has no untrained backbone beside it", item.label)
    if record.skill is None or head.value is None:
        return
    if record.best_baseline not in controls:
        judge.add(
            "error",
            "skill",
            f"its skill is over {printable(record.best_baseline)!r}, which is not in the bundle",
            item.label,
        )
        return
    best = controls[record.best_baseline]
    span = (1.0 if head.higher_is_better else 0.0) - best
    skill = (head.value - best) / span if abs(span) > 1e-12 else None
    if not same(record.skill, skill, 1e-6):
        given = f"{record.skill:.4g}"
        judge.add("error", "skill", f"its skill is given as {given}, and is {skill and f'{skill:.4g}'}", item.label)
    better = (max if head.higher_is_better else min)(controls, key=lambda row: controls[row])
    if better != record.best_baseline and controls[better] != best:
        judge.add(
            "warning",
            "skill",
            f"its skill is over {printable(record.best_baseline)}, and {printable(better)} in the same bundle is "
            "better",
            item.label,
            "Run all rows in one command, so that skill is over the best of all.",
        )


def _beside(judge: Judge, item: Item, records: Sequence[Record]) -> None:
    """Compare confounds with what predictions give."""
    if "prediction" not in judge.tables[item.record.id]:
        return
    try:
        found, whole = recomputation.recompute_beside(item.record, records, judge.tables)
    except (NeurobenchError, ValueError, KeyError, IndexError, np.linalg.LinAlgError) as error:
        judge.add("error", "confounds", f"its confounds cannot be computed again: {error}", item.label)
        return
    # Pseudo-inverses and correlations of near-constant columns differ in the last digits from machine to machine.
    tolerance = Tolerance(1e-5, tolerance_of(item.record).interval, 1.0)
    for message in recomputation.differences(item.record.confounds, found, tolerance):
        judge.add("error", "confounds", message, item.label)
    known = {*found, "site_leak", "over_covariates"}
    if whole and (more := item.record.confounds.keys() - known):
        judge.add("error", "confounds", f"{printable(sorted(more)[0])} is given, and cannot be computed", item.label)


def check_comparisons(judge: Judge, items: Sequence[Item], contents: Contents) -> None:
    """Hold comparisons that travel in the place of predictions to the records that they are of."""
    records = {i.record.id: i.record for i in items}
    named: set[str] = set()
    for name, content in contents.named("comparisons").items():
        where = f"comparisons/{name[:12]}….json"
        with judge.guard(where):
            try:
                file = PairwiseRecord.of(parse_strict(content))
            except ValueError as error:
                judge.add("error", "comparisons", f"{where} are no comparisons: {error}")
                continue
            found = [] if name_of(file) == name else ["its name is not the hash of what it says"]
            found += [printable(text, 300) for text in itertools.islice(problems(file, records), SHOWN)]
            own = [i for row in file.rows for i in row.records]
            named.update(own)
            if any(may_leave(records[i], judge.registry) != "aggregates" for i in own if i in records):
                found.append("predictions may leave, and ranks come from those")
            for message in found:
                judge.add("error", "comparisons", f"{where}: {message}", where)
    for group in tables_of(list(records.values())):
        unnamed = sorted({r.row for r in group if r.id not in named and "mask budget" not in r.apart})
        if unnamed and len({r.row for r in group}) > 1 and may_leave(group[0], judge.registry) == "aggregates":
            rows = printable(", ".join(unnamed), 200)
            judge.once(
                "warning",
                "not-ranked",
                f"of {printable(group[0].task.label)} on {printable(group[0].dataset.label)} no comparison travels "
                f"with these rows, and they will not be ranked: {rows}",
            )


# ---------------------------------------------------------------- what several tables share


def check_sources(judge: Judge, items: Sequence[Item]) -> None:
    """Find recordings that are called real in one record and simulated in another."""
    known: dict[str, str] = {}
    for item in items:
        data = item.record.data
        if data is not None and known.setdefault(data.fingerprint, data.source) != data.source:
            judge.add("error", "source", "calls real what another record calls simulated", item.label)


def check_pretrainings(judge: Judge, items: Sequence[Item]) -> None:
    """Hold to each other what records say of one pretraining: every task of a row is scored with the same one."""
    for _, own in by([i for i in items if i.record.backbone is not None], _pretraining_of):
        first = own[0].record
        said = _of_pretraining(first)
        for item in own[1:]:
            if other := sorted(k for k, v in _of_pretraining(item.record).items() if not alike(v, said[k])):
                text = f"says another {other[0]} of its pretraining than the record of {printable(first.task.label)}"
                judge.add("warning", "cost", text, item.label, "Of one pretraining there is one measurement.")
        _own_mask(judge, own)


def _own_mask(judge: Judge, own: Sequence[Item]) -> None:
    """Hold what a pretraining is said to have reached under its own mask to the score of its reconstruction."""
    for item in own:
        record = item.record
        name = f"r2[{record.mask.label}]" if record.mask else ""
        with contextlib.suppress(NeurobenchError):
            task = task_of(record, judge.registry)
            if not isinstance(task, ReconstructionTask) or not same(task.ratio, record.protocol.ratio, 1e-9):
                continue
            if (found := record.metrics.get(name)) is None:
                continue
            for other in own:
                p = other.record.pretraining
                if p is not None and not same(p.r2_own_mask, found.value, 1e-6):
                    text = f"{p.r2_own_mask:.4g}" if p.r2_own_mask is not None else "not known"
                    was = f"and {found.value:.4g} is scored" if found.value is not None else "and it has no value"
                    judge.add("error", "pretraining", f"R² under its own mask is {text}, {was}", other.label)


def _pretraining_of(item: Item) -> str:
    """Return what tells a pretraining from others: the earlier steps that its id names, else the record itself."""
    steps = item.identity["steps"] if item.identity is not None else {}
    keys = sorted(k for k, s in steps.items() if "backbone" in s["identity"])
    return digest(keys) if keys else item.record.id


def _of_pretraining(record: Record) -> dict[str, Any]:
    cost = record.cost.model_dump(mode="json", exclude={"seconds", "peak_memory_mb"})
    return {**cost, "result": record.pretraining.model_dump(mode="json") if record.pretraining else None}


# ---------------------------------------------------------------- the text beside records


def check_text(judge: Judge, items: Sequence[Item], contents: Contents) -> None:
    """Hold the text that reviewers read to what the records say, its boxes ticked or not."""
    content = contents.files.get(PULL_REQUEST)
    if content is None or len(items) < contents.manifest["n_records"]:
        return
    left = [Stripped(**x) for x in contents.manifest["left_behind"]]
    # A record without its headline is refused elsewhere, and no text can be made of it.
    told = [i.record for i in items if i.record.headline in i.record.metrics]
    wanted = pull_request(told, contents.files, left)
    found = content.decode("utf-8", "replace").replace("\r\n", "\n").replace("- [x]", "- [ ]")
    if found.strip() != wanted.strip():
        judge.add(
            "warning",
            "text",
            f"{PULL_REQUEST} is not what `neurobench submit` writes of these records: read the verdict instead",
            fix="Words of your own belong into the pull request, below that text.",
        )

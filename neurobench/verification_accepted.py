"""A bundle beside records that are accepted already: nothing of those is edited, contradicted or copied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neurobench.agreement import contradict, of_people, same_predictions
from neurobench.attestation import tolerated
from neurobench.bundle_reader import parse_strict, printable
from neurobench.errors import BundleError, DataError
from neurobench.evidence import read_table
from neurobench.identity import digest
from neurobench.recomputation import alike
from neurobench.records import Finding
from neurobench.results import OF_THE_RUN, DataRecord, Record, parse_record
from neurobench.verdicts import Item, Judge, group_of

__all__ = ["check_accepted"]

_OTHER_CONTROLS = (
    " Its skill is over the best control beside it, which with the rows of this bundle is another one. On a board "
    "of your own, delete the older records of this suite there, and add this bundle if it has all of their rows."
)


def _slot(record: Record) -> str:
    """Return what a record is about, whatever made it: of two in one slot the newer one supersedes the other."""
    settings = record.protocol.model_dump(mode="json", exclude={"fold_fingerprint", "recipe", "suite"})
    return digest([record.row, record.task.label, record.dataset.label, settings])


def check_accepted(judge: Judge, items: Sequence[Item], folder: Path) -> None:
    """Hold the append-only rule: what is accepted is superseded by a newer record, never edited."""
    if not folder.is_dir():
        raise BundleError(f"--against: there is no folder {folder}.", allowed="a folder of accepted records")
    there: dict[str, Mapping[str, Any]] = {}
    sources: dict[str, str] = {}
    slots: dict[str, list[Record]] = {}
    for path in sorted(folder.rglob("*.json")):
        try:
            plain = parse_strict(path.read_bytes())
            record = parse_record(plain)
        except (OSError, ValueError):
            continue
        there[record.id] = plain
        if record.data is not None:
            sources[record.data.fingerprint] = record.data.source
            beside = path.parent / "predictions" / f"{record.id}.parquet"
            _accepted_people(judge, record, record.data, beside)
            _accepted_predictions(judge, items, record, beside)
        slots.setdefault(_slot(record), []).append(record)
    for item in items:
        data = item.record.data
        if data is not None and sources.get(data.fingerprint, data.source) != data.source:
            judge.add("error", "source", "calls real what an accepted record calls simulated", item.label)
        old = there.get(item.record.id)
        if old is not None:
            parts = {*old, *item.plain} - {*OF_THE_RUN, "cost", "notes"}
            changed = sorted(k for k in parts if not alike(old.get(k), item.plain.get(k)))
        if old is not None and not changed:
            judge.findings.append(Finding("info", "accepted", "is accepted already", subject=item.label))
        elif old is not None:
            judge.add(
                "error",
                "append-only",
                f"is accepted already and says something else here ({', '.join(changed)[:100]})",
                item.label,
                "An accepted record is superseded by a new one with an id of its own, never edited."
                + (_OTHER_CONTROLS if {*changed} <= {"best_baseline", "skill"} else ""),
            )
        elif before := slots.get(_slot(item.record)):
            names = ", ".join(sorted(b.id[:12] for b in before))
            judge.findings.append(Finding("info", "supersedes", f"supersedes {names}", subject=item.label))
            if text := _other_score(item.record, max(before, key=lambda b: (b.written, b.id))):
                judge.add("warning", "supersedes", text, item.label, "Whose row it is, and why, is for people to say.")


def _accepted_people(judge: Judge, record: Record, data: DataRecord, path: Path) -> None:
    """Hold what a bundle says of simulated people, who keep their names, to what accepted predictions say."""
    truth = (data.fingerprint, f"truth of {record.task.label}")
    if data.source != "simulated" or truth not in judge.people or not path.is_file():
        return
    try:
        accepted = of_people(read_table(path), record.task)
    except (DataError, ValueError):
        # As of a record that is none: what lies there is not what is judged here.
        return
    for what, values in accepted:
        here = judge.people.get((data.fingerprint, what), values)
        if contradict(here, values):
            text = f"predictions say another {printable(what)} of a person than those of an accepted record do"
            judge.once("error", "people", text)
        if what == truth[1] and (n := len(values.index.difference(here.index))):
            text = f"{n} people are not scored on {printable(record.task.label)} who are in an accepted record"
            judge.once("error", "people", text)


def _accepted_predictions(judge: Judge, items: Sequence[Item], record: Record, path: Path) -> None:
    """Find an accepted row of another backbone whose predictions came in under a name of their own."""
    known = [
        i
        for i in items
        if i.record.id in judge.tables
        and i.record.backbone is not None
        and record.backbone is not None
        and i.record.backbone.name != record.backbone.name
        and group_of(i.record) == group_of(record)
    ]
    if not known or not path.is_file():
        return
    try:
        table = read_table(path)
    except DataError:
        return
    for item in known:
        if same_predictions(judge.tables[item.record.id], table):
            text = f"its predictions are those of {printable(record.row)}, an accepted record: one run under two names"
            judge.add("error", "one-run", text, item.label)


def _other_score(record: Record, before: Record) -> str:
    """Return in words by how much a score is another one than that of the accepted record, or nothing."""
    a, b = record.metrics.get(record.headline), before.metrics.get(record.headline)
    if a is None or b is None or a.value is None or b.value is None:
        return ""
    if abs(a.value - b.value) <= max(tolerated(before, record.headline), 1e-6 * max(1.0, abs(b.value))):
        return ""
    return (
        f"its {record.headline} is {a.value:.4g}, and that of the accepted record which it supersedes is {b.value:.4g}"
    )

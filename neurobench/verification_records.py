"""A record by itself, as a stranger sent it: its form, its components, its settings and its identity."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from typing import Any, cast

import numpy as np

from neurobench.agreement import not_as_identified, not_as_named, not_of_suite, not_of_task, unsaid
from neurobench.bundle import components, task_of
from neurobench.bundle_reader import Contents, parse_strict, printable
from neurobench.claims import beyond_reason, not_of_card, not_repeatable, wrong_cost
from neurobench.components import CONTENT, from_outside, parse_component
from neurobench.errors import NeurobenchError
from neurobench.identity import digest
from neurobench.options import PROFILES, frozen_suites
from neurobench.plausibility import impossible
from neurobench.plugins import FILE, OWN, Kind
from neurobench.pretraining import Recipe
from neurobench.recomputation import tolerance_of
from neurobench.results import ComponentRecord, Record, content_hash, parse_record
from neurobench.verdicts import SHOWN, Item, Judge

__all__ = ["check_records", "read_records"]


def read_records(judge: Judge, contents: Contents) -> list[Item]:
    """Return the records that can be read, each with its identity."""
    files, identities = contents.named("records"), contents.named("identities")
    predictions = contents.named("predictions")
    items = []
    for name, content in files.items():
        where = f"records/{name}.json"
        try:
            plain = parse_strict(content)
            record = parse_record(plain)
            if content_hash(plain) != record.content_hash:
                judge.add(
                    "error",
                    "content-hash",
                    f"{where} was changed after it was written: its content hash does not match",
                    fix="A record is made by a run, never by hand.",
                )
                continue
        except ValueError as error:
            judge.add("error", "schema", f"{where} is no record: {error}")
            continue
        if record.id != name:
            judge.add("error", "id", f"{where} holds the record {record.id[:64]!r}")
            continue
        declared = name not in predictions
        items.append(Item(record, plain, _read_identity(judge, name, identities.get(name)), declared))
    if not items:
        judge.add("error", "empty", "there is no record that can be read")
    # Of what the manifest lists: a record that was refused has been told already.
    listed = {n[8:72] for n in contents.manifest["files"] if n.startswith("records/")}
    if contents.manifest["n_records"] != len(listed):
        judge.add(
            "error",
            "missing",
            f"the manifest counts {contents.manifest['n_records']} records and lists {len(listed)}",
        )
    strays = [
        (folder, n) for folder in ("identities", "predictions") for n in contents.named(folder) if n not in listed
    ]
    if len(items) == len(listed):
        used = {i.record.protocol.fold_fingerprint for i in items}
        strays += [("folds", n) for n in contents.named("folds") if n not in used]
    for folder, name in strays:
        judge.add("error", "stray", f"{folder}/{name[:12]}… belongs to no record of the bundle")
    return sorted(items, key=lambda i: (i.record.dataset.label, i.record.task.label, i.record.kind, i.record.row))


def _read_identity(judge: Judge, name: str, content: bytes | None) -> Mapping[str, Any] | None:
    where = f"identities/{name[:12]}….json"
    if content is None:
        judge.add("error", "identity", f"{where} is missing: nobody can find the record's id again")
        return None
    try:
        plain = parse_strict(content)
        shape = {"evaluation": dict, "steps": dict, "asked": dict}
        if not (isinstance(plain, dict) and all(isinstance(plain.get(k), t) for k, t in shape.items())):
            raise ValueError("it lacks evaluation, steps or asked")
        if not all(isinstance(s, dict) and isinstance(s.get("identity"), dict) for s in plain["steps"].values()):
            raise ValueError("a step has no identity")
    except ValueError as error:
        judge.add("error", "identity", f"{where} cannot be read: {error}")
        return None
    return cast(Mapping[str, Any], plain)


def check_records(judge: Judge, items: Sequence[Item]) -> list[Item]:
    """Check every record by itself; return those of which there is anything to check further."""
    good = []
    for item in items:
        with judge.guard(item.label):
            if _alone(judge, item):
                good.append(item)
    return good


def _alone(judge: Judge, item: Item) -> bool:
    """Check a record by itself; return whether there is anything to check further."""
    record = item.record
    if record.status != "ok":
        judge.add("error", "failed", "holds an error and no number", item.label)
        return False
    if too_much := list(itertools.islice(beyond_reason(item.plain), SHOWN)):
        for message in too_much:
            judge.add("error", "text", message, item.label)
        return False
    for level, message in impossible(record, declared=item.declared):
        judge.add(level, "value", message, item.label)
    if record.data is None:
        judge.add("error", "schema", "says nothing of its data", item.label)
        return False
    for message in not_as_named(record):
        judge.add("error", "name", message, item.label)
    if item.declared:
        # Of what is computed again this is found with the rest.
        with contextlib.suppress(NeurobenchError):
            for message in not_of_task(record, task_of(record, judge.registry)):
                judge.add("error", "task", message, item.label)
    _components(judge, record)
    _settings(judge, item)
    _identity(judge, item)
    for message in not_repeatable(record):
        judge.add("error", "command", message, item.label)
    for message in not_of_card(record, judge.registry):
        judge.add("error", "card", message, item.label)
    for message in wrong_cost(record, item.identity, judge.registry):
        judge.add("error", "cost", message, item.label)
    return record.headline in record.metrics


# ---------------------------------------------------------------- code


def _components(judge: Judge, record: Record) -> None:
    """Compare plugins with the installed ones."""
    kinds = ("backbone", "mask", "baseline", "dataset", "task")
    for kind in kinds:
        component: ComponentRecord | None = getattr(record, kind)
        if component is not None:
            _component(judge, cast(Kind, kind), component)
    _terms(judge, record)


def _terms(judge: Judge, record: Record) -> None:
    """Hold a record to what its backbone and its mask are: outside a budget, or with weights from outside."""
    if record.backbone is None:
        return
    says = record.backbone
    wanted = {"outside weights"} if from_outside(says.parameters) else set()
    known = judge.registry.backbones.get(says.name)
    if known is not None and not known.keeps_budget(says.parameters):
        wanted.add("parameter budget")
    if record.mask is not None and not _keeps_mask_budget(judge, record.mask):
        wanted.add("mask budget")
    if hidden := sorted(wanted - set(record.apart)):
        name = printable(record.row)
        judge.once("error", "apart", f"row {name} is not on equal terms ({', '.join(hidden)}): it has to say so")


def _keeps_mask_budget(judge: Judge, says: ComponentRecord) -> bool:
    known = judge.registry.masks.get(says.name)
    if known is None:
        return True
    try:
        strategy = known(**says.parameters)
    except (NeurobenchError, TypeError, ValueError):
        # Parameters that it does not take are a finding of their own.
        return True
    return strategy.budgeted or not strategy.pretrains


def _component(judge: Judge, kind: Kind, says: ComponentRecord) -> None:
    name = f"{kind} {printable(says.name)}"
    try:
        cls, here = judge.registry.get(kind, says.name), judge.registry.provenance(kind, says.name)
    except NeurobenchError:
        if says.distribution.startswith(FILE):
            came = f"was given as the file {printable(says.distribution.removeprefix(FILE))}"
            do = "Verify again with its file as --plugin"
        else:
            came = f"of {printable(says.distribution)} {printable(says.version)} is not installed here"
            do = "Install it and verify again"
        judge.once(
            "warning",
            "plugin-not-here",
            f"{name} {came}: its code was compared with nothing",
            f"{do}, if you would run it anyway.",
        )
        return
    claimed, found = f"{says.distribution} {says.version}".strip(), f"{here.distribution} {here.version}".strip()
    if says.distribution != here.distribution:
        judge.once("error", "plugin", f"{name} is said to come from {printable(claimed)}; here it is part of {found}")
    elif says.version != here.version:
        judge.once(
            "warning",
            "plugin-version",
            f"{name} comes from {printable(claimed)}, and {found} is installed: its code was compared with nothing",
        )
    elif says.digest != here.digest:
        judge.once(
            "error",
            "plugin-digest",
            f"{name} says that it comes from {found}, and its code is another one: sha256 "
            f"{printable(says.digest)[:12]} instead of {here.digest[:12]}",
            "It was changed, or made before or after that version: run again with the released one.",
        )
    if says.score_version != cls.score_version:
        judge.once(
            "error",
            "score-version",
            f"{name} has score version {says.score_version}, and {cls.score_version} here: its numbers are others",
            "Run again with the current version."
            if says.score_version < cls.score_version
            else "Verify with the version that made it.",
        )
    try:
        parsed = dict(parse_component(kind, says.label, judge.registry).parameters)
    except NeurobenchError as error:
        judge.once("error", "label", f"{name}: its label {printable(says.label)!r} cannot be read: {error.what}")
        return
    if parsed != says.parameters or parse_component(kind, says.label, judge.registry).name != says.name:
        judge.once("error", "label", f"{name}: its label {printable(says.label)!r} is not what its parameters say")
    paths = (v for v in says.parameters.values() if isinstance(v, str) and not CONTENT.search(v))
    if any(re.search(r"[\\/]", v) for v in paths):
        judge.once("warning", "path", f"{name} has a parameter that names a folder of the machine it ran on")


# ---------------------------------------------------------------- suite and protocol


def _settings(judge: Judge, item: Item) -> None:
    p = item.record.protocol
    profile = PROFILES.get(p.profile)
    if profile is None:
        judge.add("error", "profile", f"there is no profile {printable(p.profile)!r}", item.label)
        return
    for name in ("width", "n_layers", "n_tokens", "batch_size"):
        if getattr(p, name) != getattr(profile, name):
            judge.add(
                "error",
                "profile",
                f"profile {p.profile} has {name} {getattr(profile, name)}, not {getattr(p, name)}",
                item.label,
            )
    made_by = item.record.environment.get(OWN, "")
    if others := sorted({c.version for c in components(item.record) if c.distribution == OWN} - {made_by}):
        text = f"says that neurobench {printable(made_by) or 'of no version'} made it, and a component of "
        judge.add("error", "version", f"{text}{OWN} that it is of {printable(others[0])}", item.label)
    if made_by != _version(OWN):
        judge.once(
            "warning", "version", f"made by neurobench {printable(made_by) or 'of no version'}, not the one here"
        )
    elif digest(p.recipe) != digest(_listed(asdict(Recipe.for_width(p.width, p.batch_size)))):
        judge.add("error", "recipe", "was trained by another recipe than all others", item.label)
    if tolerance_of(item.record).interval > 0:
        made_with = printable(item.record.environment.get("numpy", "")) or "no version"
        judge.once(
            "warning",
            "numpy",
            f"made with numpy {made_with}, which may draw other people than {np.__version__} here: ends of "
            "intervals and p-values were held to it loosely",
        )
    _suite(judge, item)


def _suite(judge: Judge, item: Item) -> None:
    r = item.record
    p = r.protocol
    name, at, rest = p.suite.partition("@")
    hashed, _, changed = rest.partition(", changed: ")
    frozen = frozen_suites()
    if not at:
        judge.once("warning", "suite", "some records are of no suite: they are never ranked with those of one")
    elif name not in frozen:
        judge.once("warning", "suite", f"suite {printable(name)!r} does not come with neurobench: it was not checked")
    elif frozen[name][:12] != hashed:
        judge.add(
            "error",
            "suite",
            f"is said to be of {name}, and its content {printable(hashed)} is not that",
            item.label,
        )
    elif changed:
        judge.once("warning", "suite", f"{name} was changed ({printable(changed)}): never ranked with the suite itself")
    else:
        for message in not_of_suite(r, name):
            judge.add("error", "suite", message, item.label)


# ---------------------------------------------------------------- identity


def _identity(judge: Judge, item: Item) -> None:
    if item.identity is None:
        return
    evaluation, steps = item.identity["evaluation"], item.identity["steps"]
    if digest({"evaluation": evaluation}) != item.record.id:
        judge.add("error", "id", "its id is not the hash of the identity beside it", item.label)
    for key, step in steps.items():
        if digest(step["identity"]) != key:
            judge.add(
                "error", "identity", f"step {printable(key)[:12]} is not the hash of what is beside it", item.label
            )
    named = evaluation.get("sources", [])
    named = named if isinstance(named, list) else []
    named = [*named, *(s["identity"].get("pretraining") for s in steps.values())]
    # What names no step may be anything, a list that no mapping can be asked for among it.
    if not named or any(n is not None and not (isinstance(n, str) and n in steps) for n in named):
        judge.add("error", "identity", "an earlier step that its identity names is not beside it", item.label)
    for message in not_as_identified(item.record, evaluation, steps):
        judge.add("error", "identity", message, item.label)
    if item.record.environment.get(OWN, "") == _version(OWN):
        with contextlib.suppress(NeurobenchError):
            for message in unsaid(item.record, task_of(item.record, judge.registry), evaluation, steps):
                judge.add("error", "identity", message, item.label)


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _listed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

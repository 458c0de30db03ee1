"""Say of a submission what can be believed, and of everything else why not; nothing that was submitted is run.

Levels, as words: *declared* (numbers without predictions; only their form and their fit to each other were checked),
*recomputed* (found again from held-out predictions), *re-run* (found again from the
recordings or the simulated twin themselves).
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pandas as pd

from neurobench import recomputation
from neurobench.agreement import (
    fold_problems,
    not_as_identified,
    not_as_named,
    not_of_suite,
    not_of_task,
    odd_predictions,
    of_people,
    other_means,
    people_problems,
    same_predictions,
    sides,
    undue_columns,
    unlike,
    unsaid,
)
from neurobench.attestation import tolerated
from neurobench.bundle import (
    LIMITS,
    PULL_REQUEST,
    Limits,
    Stripped,
    components,
    covariates_needed,
    may_leave,
    pull_request,
    task_of,
)
from neurobench.bundle_reader import Contents, parse_folds, parse_json, parse_table, printable, read_bundle
from neurobench.claims import beyond_reason, not_of_card, not_repeatable, wrong_cost
from neurobench.components import CONTENT, from_outside, parse_component
from neurobench.contracts import ReconstructionTask, SubjectTask, WindowTask
from neurobench.errors import BundleError, DataError, NeurobenchError
from neurobench.evidence import read_table
from neurobench.identity import digest
from neurobench.options import PROFILES, frozen_suites, load_suite
from neurobench.pairwise import PairwiseRecord, name_of, problems, tables_of
from neurobench.plausibility import impossible
from neurobench.plugins import Kind, Registry
from neurobench.pretraining import Recipe
from neurobench.recomputation import Tolerance, alike, same, tolerance_of
from neurobench.records import Finding, Fold
from neurobench.repetition import Again
from neurobench.results import OF_THE_RUN, ComponentRecord, DataRecord, Record, content_hash, parse_record
from neurobench.splits import check_disjoint, fold_fingerprint

__all__ = ["Level", "Repeat", "Verdict", "slot", "verify"]

Level = Literal["declared", "recomputed", "re-run"]

Repeat = Callable[[Sequence[tuple[Record, Mapping[str, Any]]]], Iterable[tuple[str, Again | Finding]]]
"""Runs records again that are fine so far, see :mod:`neurobench.repetition`."""

OWN = "neurobench-fm"
"""The distribution whose baselines belong to every run."""

CONTROLS = ("baseline", "filler", "untrained")

SHOWN = 20
"""Findings about one file of comparisons, of which there may be one a pair."""

_log = logging.getLogger("neurobench.verification")


@dataclass(frozen=True, eq=False)
class Verdict:
    """What came of it.

    Parameters
    ----------
    records
        Those that could be read.
    findings
        Everything that was noticed; an error refuses the bundle.
    levels
        Record id to how far it was checked; a record with an error has none.
    again
        Record id to what running it again gave, where it was found again.
    """

    records: tuple[Record, ...]
    findings: tuple[Finding, ...]
    levels: Mapping[str, Level]
    again: Mapping[str, Again] = field(default_factory=dict)

    @property
    def word(self) -> Literal["believed", "believed, with warnings", "refused"]:
        """The verdict."""
        levels = {f.level for f in self.findings}
        if "error" in levels:
            return "refused"
        return "believed, with warnings" if "warning" in levels else "believed"

    @property
    def exit_code(self) -> int:
        """0 believed, 1 refused, 2 warnings only."""
        return {"believed": 0, "refused": 1, "believed, with warnings": 2}[self.word]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "verdict": self.word,
            "records": [
                {
                    "id": r.id,
                    "dataset": r.dataset.label,
                    "source": r.data.source if r.data else "",
                    "task": r.task.label,
                    "row": r.row,
                    "metric": r.headline,
                    "score": r.metrics[r.headline].value if r.headline in r.metrics else None,
                    "level": self.levels.get(r.id, "refused"),
                }
                for r in self.records
            ],
            "findings": [asdict(f) for f in self.findings],
        }


_OTHER_CONTROLS = (
    " Its skill is over the best control beside it, which with the rows of this bundle is another one. On a board "
    "of your own, delete the older records of this suite there, and add this bundle if it has all of their rows."
)


@dataclass(frozen=True, eq=False)
class _Item:
    """A record of the bundle with what lies beside it."""

    record: Record
    plain: Mapping[str, Any]
    identity: Mapping[str, Any] | None
    declared: bool

    @property
    def label(self) -> str:
        r = self.record
        names = f"{r.row}, {r.task.label} on {r.dataset.label}"
        return f"{printable(names)}, seed {str(r.protocol.seed)[:12]} ({r.id[:12]})"


def slot(record: Record) -> str:
    """Return what a record is about, whatever made it: of two in one slot the newer one supersedes the other."""
    settings = record.protocol.model_dump(mode="json", exclude={"fold_fingerprint", "recipe", "suite"})
    return digest([record.row, record.task.label, record.dataset.label, settings])


def verify(
    bundle: Path | Contents,
    registry: Registry,
    *,
    against: Path | None = None,
    repeat: Repeat | None = None,
    limits: Limits = LIMITS,
) -> Verdict:
    """Check a bundle.

    Parameters
    ----------
    bundle
        A zip file or a folder, or what was read from it.
    registry
        What is installed here: the code that everything is checked with.
    against
        Folder of accepted records, searched with its subfolders; none of them may be changed.
    repeat
        Runs records again; None: nothing is run.
    limits
        Of size, while it is read.

    Raises
    ------
    BundleError
        If there is nothing that could be read.
    """
    contents = bundle if isinstance(bundle, Contents) else read_bundle(bundle, limits)
    check = _Check(registry, list(contents.findings))
    items = check.read_records(contents)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        # Numbers of a stranger may overflow or not vary: what comes of that is compared, not warned of.
        warnings.simplefilter("ignore")
        check.bundle(items, contents)
        if against is not None:
            check.accepted(items, against)
        if repeat is not None:
            check.repeated(items, repeat)
    refused = {f.subject for f in check.findings if f.level == "error"}
    levels = {i.record.id: check.levels.get(i.record.id, "declared") for i in items if i.label not in refused}
    again = {i: a for i, a in check.again.items() if i in levels}
    return Verdict(tuple(i.record for i in items), tuple(check.findings), levels, again)


@dataclass(eq=False)
class _Check:
    """Findings while they are made."""

    registry: Registry
    findings: list[Finding]
    levels: dict[str, Level] = field(default_factory=dict)
    again: dict[str, Again] = field(default_factory=dict)
    told: set[tuple[str, str]] = field(default_factory=set)
    people: dict[tuple[str, str], pd.Series[Any]] = field(default_factory=dict)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)

    def add(self, level: Literal["warning", "error"], code: str, message: str, who: str = "", fix: str = "") -> None:
        self.findings.append(Finding(level, code, message, fix, subject=who))

    def once(self, level: Literal["warning", "error"], code: str, message: str, fix: str = "") -> None:
        """Add what concerns many records, once."""
        if (code, message) not in self.told:
            self.told.add((code, message))
            self.add(level, code, message, "", fix)

    # ------------------------------------------------------------ reading

    def read_records(self, contents: Contents) -> list[_Item]:
        """Return the records that can be read, each with its identity."""
        files, identities = contents.named("records"), contents.named("identities")
        predictions = contents.named("predictions")
        items = []
        for name, content in files.items():
            where = f"records/{name}.json"
            try:
                plain = parse_json(content)
                record = parse_record(plain)
                if content_hash(plain) != record.content_hash:
                    self.add(
                        "error",
                        "content-hash",
                        f"{where} was changed after it was written: its content hash does not match",
                        fix="A record is made by a run, never by hand.",
                    )
                    continue
            except ValueError as error:
                self.add("error", "schema", f"{where} is no record: {error}")
                continue
            if record.id != name:
                self.add("error", "id", f"{where} holds the record {record.id[:64]!r}")
                continue
            declared = name not in predictions
            items.append(_Item(record, plain, self._read_identity(name, identities.get(name)), declared))
        if not items:
            self.add("error", "empty", "there is no record that can be read")
        # Of what the manifest lists: a record that was refused has been told already.
        listed = {n[8:72] for n in contents.manifest["files"] if n.startswith("records/")}
        if contents.manifest["n_records"] != len(listed):
            self.add(
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
            self.add("error", "stray", f"{folder}/{name[:12]}… belongs to no record of the bundle")
        return sorted(items, key=lambda i: (i.record.dataset.label, i.record.task.label, i.record.kind, i.record.row))

    def _read_identity(self, name: str, content: bytes | None) -> Mapping[str, Any] | None:
        where = f"identities/{name[:12]}….json"
        if content is None:
            self.add("error", "identity", f"{where} is missing: nobody can find the record's id again")
            return None
        try:
            plain = parse_json(content)
            shape = {"evaluation": dict, "steps": dict, "asked": dict}
            if not (isinstance(plain, dict) and all(isinstance(plain.get(k), t) for k, t in shape.items())):
                raise ValueError("it lacks evaluation, steps or asked")
            if not all(isinstance(s, dict) and isinstance(s.get("identity"), dict) for s in plain["steps"].values()):
                raise ValueError("a step has no identity")
        except ValueError as error:
            self.add("error", "identity", f"{where} cannot be read: {error}")
            return None
        return cast(Mapping[str, Any], plain)

    # ------------------------------------------------------------ everything of the bundle

    def bundle(self, items: Sequence[_Item], contents: Contents) -> None:
        """Check every record, then each group of records that should agree."""
        good = []
        for item in items:
            with self._guard(item.label):
                if self._alone(item):
                    good.append(item)
        folds = self._folds(good, contents)
        tables = self.tables = self._predictions(good, contents, folds)
        self._people(good, tables)
        self._seeds(good)
        for group in _grouped(good):
            with self._guard(group[0].label):
                self._group(group, tables)
        self._comparisons(good, contents)
        self._sources(good)
        self._pretrainings(good)
        self._text(items, contents)

    @contextlib.contextmanager
    def _guard(self, who: str) -> Iterator[None]:
        """Refuse what a check fails on: values may be anything, and one record must not hide the others."""
        try:
            yield
        except BundleError:
            raise
        except Exception as error:
            _log.debug("a check failed", exc_info=True)
            self.add("error", "uncheckable", f"cannot be checked: {type(error).__name__}: {printable(str(error))}", who)

    def _alone(self, item: _Item) -> bool:
        """Check a record by itself; return whether there is anything to check further."""
        record = item.record
        if record.status != "ok":
            self.add("error", "failed", "holds an error and no number", item.label)
            return False
        if too_much := list(itertools.islice(beyond_reason(item.plain), SHOWN)):
            for message in too_much:
                self.add("error", "text", message, item.label)
            return False
        for level, message in impossible(record, declared=item.declared):
            self.add(level, "value", message, item.label)
        if record.data is None:
            self.add("error", "schema", "says nothing of its data", item.label)
            return False
        for message in not_as_named(record):
            self.add("error", "name", message, item.label)
        if item.declared:
            # Of what is computed again this is found with the rest.
            with contextlib.suppress(NeurobenchError):
                for message in not_of_task(record, task_of(record, self.registry)):
                    self.add("error", "task", message, item.label)
        self._components(record)
        self._settings(item)
        self._identity(item)
        for message in not_repeatable(record):
            self.add("error", "command", message, item.label)
        for message in not_of_card(record, self.registry):
            self.add("error", "card", message, item.label)
        for message in wrong_cost(record, item.identity, self.registry):
            self.add("error", "cost", message, item.label)
        return record.headline in record.metrics

    def _sources(self, items: Sequence[_Item]) -> None:
        """Find recordings that are called real in one record and simulated in another."""
        known: dict[str, str] = {}
        for item in items:
            data = item.record.data
            if data is not None and known.setdefault(data.fingerprint, data.source) != data.source:
                self.add("error", "source", "calls real what another record calls simulated", item.label)

    def _pretrainings(self, items: Sequence[_Item]) -> None:
        """Hold to each other what records say of one pretraining: every task of a row is scored with the same one."""
        for _, own in _by([i for i in items if i.record.backbone is not None], _pretraining_of):
            first = own[0].record
            said = _of_pretraining(first)
            for item in own[1:]:
                if other := sorted(k for k, v in _of_pretraining(item.record).items() if not alike(v, said[k])):
                    text = (
                        f"says another {other[0]} of its pretraining than the record of {printable(first.task.label)}"
                    )
                    self.add("warning", "cost", text, item.label, "Of one pretraining there is one measurement.")
            self._own_mask(own)

    def _own_mask(self, own: Sequence[_Item]) -> None:
        """Hold what a pretraining is said to have reached under its own mask to the score of its reconstruction."""
        for item in own:
            record = item.record
            name = f"r2[{record.mask.label}]" if record.mask else ""
            with contextlib.suppress(NeurobenchError):
                task = task_of(record, self.registry)
                if not isinstance(task, ReconstructionTask) or not same(task.ratio, record.protocol.ratio, 1e-9):
                    continue
                if (found := record.metrics.get(name)) is None:
                    continue
                for other in own:
                    p = other.record.pretraining
                    if p is not None and not same(p.r2_own_mask, found.value, 1e-6):
                        text = f"{p.r2_own_mask:.4g}" if p.r2_own_mask is not None else "not known"
                        was = f"and {found.value:.4g} is scored" if found.value is not None else "and it has no value"
                        self.add("error", "pretraining", f"R² under its own mask is {text}, {was}", other.label)

    def _text(self, items: Sequence[_Item], contents: Contents) -> None:
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
            self.add(
                "warning",
                "text",
                f"{PULL_REQUEST} is not what `neurobench submit` writes of these records: read the verdict instead",
                fix="Words of your own belong into the pull request, below that text.",
            )

    # ------------------------------------------------------------ code

    def _components(self, record: Record) -> None:
        """Compare plugins with the installed ones."""
        kinds = ("backbone", "mask", "baseline", "dataset", "task")
        for kind in kinds:
            component: ComponentRecord | None = getattr(record, kind)
            if component is not None:
                self._component(cast(Kind, kind), component)
        self._terms(record)

    def _terms(self, record: Record) -> None:
        """Hold a record to what its backbone and its mask are: outside a budget, or with weights from outside."""
        if record.backbone is None:
            return
        says = record.backbone
        wanted = {"outside weights"} if from_outside(says.parameters) else set()
        known = self.registry.backbones.get(says.name)
        if known is not None and not known.keeps_budget(says.parameters):
            wanted.add("parameter budget")
        if record.mask is not None and not self._keeps_mask_budget(record.mask):
            wanted.add("mask budget")
        if hidden := sorted(wanted - set(record.apart)):
            name = printable(record.row)
            self.once("error", "apart", f"row {name} is not on equal terms ({', '.join(hidden)}): it has to say so")

    def _keeps_mask_budget(self, says: ComponentRecord) -> bool:
        known = self.registry.masks.get(says.name)
        if known is None:
            return True
        try:
            strategy = known(**says.parameters)
        except (NeurobenchError, TypeError, ValueError):
            # Parameters that it does not take are a finding of their own.
            return True
        return strategy.budgeted or not strategy.pretrains

    def _component(self, kind: Kind, says: ComponentRecord) -> None:
        name = f"{kind} {printable(says.name)}"
        try:
            cls, here = self.registry.get(kind, says.name), self.registry.provenance(kind, says.name)
        except NeurobenchError:
            self.once(
                "warning",
                "plugin-not-here",
                f"{name} of {printable(says.distribution)} {printable(says.version)} is not installed here: "
                "its code was compared with nothing",
                "Install it and verify again, if you would run it anyway.",
            )
            return
        claimed, found = f"{says.distribution} {says.version}".strip(), f"{here.distribution} {here.version}".strip()
        if says.distribution != here.distribution:
            self.once(
                "error", "plugin", f"{name} is said to come from {printable(claimed)}; here it is part of {found}"
            )
        elif says.version != here.version:
            self.once(
                "warning",
                "plugin-version",
                f"{name} comes from {printable(claimed)}, and {found} is installed: its code was compared with nothing",
            )
        elif says.digest != here.digest:
            self.once(
                "error",
                "plugin-digest",
                f"{name} says that it comes from {found}, and its code is another one: sha256 "
                f"{printable(says.digest)[:12]} instead of {here.digest[:12]}",
                "It was changed, or made before or after that version: run again with the released one.",
            )
        if says.score_version != cls.score_version:
            self.once(
                "error",
                "score-version",
                f"{name} has score version {says.score_version}, and {cls.score_version} here: its numbers are others",
                "Run again with the current version."
                if says.score_version < cls.score_version
                else "Verify with the version that made it.",
            )
        try:
            parsed = dict(parse_component(kind, says.label, self.registry).parameters)
        except NeurobenchError as error:
            self.once("error", "label", f"{name}: its label {printable(says.label)!r} cannot be read: {error.what}")
            return
        if parsed != says.parameters or parse_component(kind, says.label, self.registry).name != says.name:
            self.once("error", "label", f"{name}: its label {printable(says.label)!r} is not what its parameters say")
        paths = (v for v in says.parameters.values() if isinstance(v, str) and not CONTENT.search(v))
        if any(re.search(r"[\\/]", v) for v in paths):
            self.once("warning", "path", f"{name} has a parameter that names a folder of the machine it ran on")

    # ------------------------------------------------------------ suite and protocol

    def _settings(self, item: _Item) -> None:
        p = item.record.protocol
        profile = PROFILES.get(p.profile)
        if profile is None:
            self.add("error", "profile", f"there is no profile {printable(p.profile)!r}", item.label)
            return
        for name in ("width", "n_layers", "n_tokens", "batch_size"):
            if getattr(p, name) != getattr(profile, name):
                self.add(
                    "error",
                    "profile",
                    f"profile {p.profile} has {name} {getattr(profile, name)}, not {getattr(p, name)}",
                    item.label,
                )
        made_by = item.record.environment.get(OWN, "")
        if others := sorted({c.version for c in components(item.record) if c.distribution == OWN} - {made_by}):
            text = f"says that neurobench {printable(made_by) or 'of no version'} made it, and a component of "
            self.add("error", "version", f"{text}{OWN} that it is of {printable(others[0])}", item.label)
        if made_by != _version(OWN):
            self.once(
                "warning", "version", f"made by neurobench {printable(made_by) or 'of no version'}, not the one here"
            )
        elif digest(p.recipe) != digest(_listed(asdict(Recipe.for_width(p.width, p.batch_size)))):
            self.add("error", "recipe", "was trained by another recipe than all others", item.label)
        if tolerance_of(item.record).interval > 0:
            made_with = printable(item.record.environment.get("numpy", "")) or "no version"
            self.once(
                "warning",
                "numpy",
                f"made with numpy {made_with}, which may draw other people than {np.__version__} here: ends of "
                "intervals and p-values were held to it loosely",
            )
        self._suite(item)

    def _suite(self, item: _Item) -> None:
        r = item.record
        p = r.protocol
        name, at, rest = p.suite.partition("@")
        hashed, _, changed = rest.partition(", changed: ")
        frozen = frozen_suites()
        if not at:
            self.once("warning", "suite", "some records are of no suite: they are never ranked with those of one")
        elif name not in frozen:
            self.once(
                "warning", "suite", f"suite {printable(name)!r} does not come with neurobench: it was not checked"
            )
        elif frozen[name][:12] != hashed:
            self.add(
                "error",
                "suite",
                f"is said to be of {name}, and its content {printable(hashed)} is not that",
                item.label,
            )
        elif changed:
            self.once(
                "warning", "suite", f"{name} was changed ({printable(changed)}): never ranked with the suite itself"
            )
        else:
            for message in not_of_suite(r, name):
                self.add("error", "suite", message, item.label)

    # ------------------------------------------------------------ identity

    def _identity(self, item: _Item) -> None:
        if item.identity is None:
            return
        evaluation, steps = item.identity["evaluation"], item.identity["steps"]
        if digest({"evaluation": evaluation}) != item.record.id:
            self.add("error", "id", "its id is not the hash of the identity beside it", item.label)
        for key, step in steps.items():
            if digest(step["identity"]) != key:
                self.add(
                    "error", "identity", f"step {printable(key)[:12]} is not the hash of what is beside it", item.label
                )
        named = evaluation.get("sources", [])
        named = named if isinstance(named, list) else []
        named = [*named, *(s["identity"].get("pretraining") for s in steps.values())]
        # What names no step may be anything, a list that no mapping can be asked for among it.
        if not named or any(n is not None and not (isinstance(n, str) and n in steps) for n in named):
            self.add("error", "identity", "an earlier step that its identity names is not beside it", item.label)
        for message in not_as_identified(item.record, evaluation, steps):
            self.add("error", "identity", message, item.label)
        if item.record.environment.get(OWN, "") == _version(OWN):
            with contextlib.suppress(NeurobenchError):
                for message in unsaid(item.record, task_of(item.record, self.registry), evaluation, steps):
                    self.add("error", "identity", message, item.label)

    # ------------------------------------------------------------ folds

    def _folds(self, items: Sequence[_Item], contents: Contents) -> dict[str, tuple[Fold, ...]]:
        """Check the fold manifests; return those that can be used, by fingerprint."""
        stored = contents.named("folds")
        found: dict[str, tuple[Fold, ...]] = {}
        for fingerprint, own in _by(items, lambda i: i.record.protocol.fold_fingerprint):
            with self._guard(own[0].label):
                if (folds := self._manifest(fingerprint, own, stored.get(fingerprint))) is not None:
                    found[fingerprint] = folds
        splits: dict[tuple[Any, ...], set[str]] = {}
        for item in items:
            p, data = item.record.protocol, item.record.data
            key = (data.fingerprint if data else "", p.split, p.n_folds, p.seed)
            splits.setdefault(key, set()).add(p.fold_fingerprint)
        for (_, split, n_folds, seed), prints in splits.items():
            if len(prints) > 1:
                self.add(
                    "error",
                    "folds",
                    f"records of one cohort with {n_folds} folds by {printable(split)}, seed {seed}, "
                    f"were tested on {len(prints)} splits: {', '.join(sorted(printable(f)[:12] for f in prints))}",
                )
        return found

    def _manifest(self, fingerprint: str, own: Sequence[_Item], content: bytes | None) -> tuple[Fold, ...] | None:
        """Check who is said to be trained on and tested when; return it if it can be used."""
        record = own[0].record
        p, data = record.protocol, record.data
        assert data is not None
        allowed = may_leave(record, self.registry)
        where = f"folds {printable(fingerprint)[:12]}"
        if content is None:
            if allowed != "aggregates":
                self.add("error", "folds", f"{where} are missing, and may be published")
            return None
        if allowed == "aggregates":
            self.add("error", "forbidden", f"{where} list participants, which the card of the dataset forbids")
            return None
        try:
            folds, pseudonyms = parse_folds(content)
            check_disjoint(folds)
        except ValueError as error:
            self.add("error", "folds", f"{where} cannot be read: {error}")
            return None
        except NeurobenchError as error:
            self.add("error", "overlap", f"{where}: {error}")
            return None
        for message in fold_problems(folds, p.split, p.n_folds, data.n_subjects):
            self.add("error", "folds", f"{where}: {message}")
        if pseudonyms and allowed == "simulated":
            self.add("error", "folds", f"{where} are under pseudonyms, which simulated people do not need")
        if not pseudonyms:
            if allowed == "predictions":
                self.add("error", "forbidden", f"{where} name participants, and the card asks for pseudonyms")
            if fold_fingerprint(folds) != fingerprint:
                self.add("error", "folds", f"{where} have another fingerprint: they are not those of the records")
            pairs = {(digest(list(f.train)), digest(list(f.test))) for f in folds}
            for item in own:
                steps = [s["identity"] for s in item.identity["steps"].values()] if item.identity else []
                if steps and {(str(s.get("train")), str(s["test"])) for s in steps if "test" in s} != pairs:
                    self.add("error", "folds", "was trained or tested on other folds than it says", item.label)
        return folds

    # ------------------------------------------------------------ predictions

    def _predictions(
        self, items: Sequence[_Item], contents: Contents, folds: Mapping[str, tuple[Fold, ...]]
    ) -> dict[str, pd.DataFrame]:
        """Score every table of predictions again; return those that can be used, by record."""
        stored = contents.named("predictions")
        tables: dict[str, pd.DataFrame] = {}
        for item in items:
            with self._guard(item.label):
                table = self._table(item, stored.get(item.record.id), folds.get(item.record.protocol.fold_fingerprint))
                if table is not None and self._recomputed(item, table):
                    tables[item.record.id] = table
        return tables

    def _table(self, item: _Item, content: bytes | None, folds: Sequence[Fold] | None) -> pd.DataFrame | None:
        """Return the predictions beside a record if they may be there and are those of the right people."""
        record = item.record
        assert record.data is not None
        allowed = may_leave(record, self.registry)
        if allowed not in ("simulated", record.data.may_leave):
            card = f"the card of {printable(record.dataset.label)} lets {allowed} leave, and records say"
            self.once("error", "card", f"{card} {record.data.may_leave}")
        if content is None:
            if allowed != "aggregates":
                self.add("warning", "declared", "has no predictions beside it, which its card would allow", item.label)
            return None
        who = "its predictions are there, and the card of its dataset"
        if allowed == "aggregates":
            self.add("error", "forbidden", f"{who} lets scores leave only", item.label)
            return None
        try:
            table = parse_table(content)
        except ValueError as error:
            self.add("error", "predictions", f"its predictions cannot be read: {error}", item.label)
            return None
        if allowed == "predictions":
            known = record.task.name in self.registry.tasks
            undue = list(undue_columns(table, covariates_needed(record, self.registry) if known else None))
            for message in undue:
                self.add("error", "forbidden", f"{who} {message}", item.label)
            if undue:
                return None
        problems = list(people_problems(table, record, folds))
        for message in problems:
            self.add("error", "predictions", message, item.label)
        if problems:
            return None
        p = record.protocol
        for message in [] if folds is None else [*sides(table, folds, p.split, p.n_folds), *other_means(table, folds)]:
            self.add("error", "predictions", message, item.label)
        return table

    def _recomputed(self, item: _Item, table: pd.DataFrame) -> bool:
        """Compare a record with what its predictions give; return whether they could be scored."""
        record = item.record
        try:
            task = task_of(record, self.registry)
        except NeurobenchError as error:
            self.once(
                "warning",
                "task-not-here",
                f"records of task {printable(record.task.label)} were not recomputed: {error.what}",
            )
            return False
        try:
            score = recomputation.recompute(task, record, table)
        except NeurobenchError as error:
            self.add("error", "predictions", f"its predictions cannot be scored: {error}", item.label)
            return False
        for level, message in odd_predictions(record, task, table):
            self.add(level, "predictions", message, item.label)
        tolerance = tolerance_of(record)
        wrong = list(recomputation.differences(record.metrics, score.metrics, tolerance))
        wrong += [
            f"{printable(m)} is given, and is no metric of the task"
            for m in record.metrics.keys() - score.metrics.keys()
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
                self.add("warning", "numpy", f"{text} here: another numpy draws other people", item.label)
        if isinstance(task, SubjectTask) and (hidden := sorted(set(score.notes) - set(record.notes))):
            wrong.append(f"a note on its predictions is missing: {hidden[0]}")
        for name, values in score.per_fold.items():
            says = record.per_fold.get(name, [])
            if len(says) != len(values) or not all(
                same(a, b, tolerance.value) for a, b in zip(says, values, strict=True)
            ):
                wrong.append(f"{name} of single folds is not what the predictions give")
        for message in wrong:
            self.add("error", "recomputed", message, item.label)
        if not wrong:
            self.levels[record.id] = "recomputed"
        return True

    # ------------------------------------------------------------ records that should agree

    def _people(self, items: Sequence[_Item], tables: Mapping[str, pd.DataFrame]) -> None:
        """Hold what tables say of people to each other: of one person there is one age, one site, one truth of a task.

        How many of a cohort are scored is up to the labels that there are; that it was not chosen nobody can see.
        """
        for item in items:
            record, data = item.record, item.record.data
            assert data is not None
            if record.n_subjects < data.n_subjects:
                self.once(
                    "warning",
                    "not-all",
                    f"{printable(record.task.label)} on {printable(record.dataset.label)} is scored on "
                    f"{record.n_subjects} of {data.n_subjects} people: who was left out, and that the others have no "
                    "label, cannot be seen from here",
                )
            if record.id not in tables:
                continue
            for what, values in of_people(tables[record.id], record.task):
                first = self.people.setdefault((data.fingerprint, what), values)
                if _contradict(values, first):
                    text = f"its predictions say another {printable(what)} of a person than other ones do"
                    self.add("error", "people", text, item.label)

    def _seeds(self, items: Sequence[_Item]) -> None:
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
                self.once(
                    "warning",
                    "seeds",
                    f"{printable(group[0].task.label)} on {printable(group[0].dataset.label)}: {printable(row)} lacks "
                    f"seed {missing}{more}",
                    "Submit all seeds of all rows: of chosen ones the mean is too good.",
                )

    def _group(self, group: Sequence[_Item], tables: Mapping[str, pd.DataFrame]) -> None:
        """Check the rows of one task on one cohort with one protocol and seed."""
        records = [i.record for i in group]
        if len({r.n_subjects for r in records}) > 1:
            counts = sorted({r.n_subjects for r in records})
            self.add(
                "error",
                "n-subjects",
                f"rows of {printable(records[0].task.label)} on {printable(records[0].dataset.label)} were scored on "
                f"{' and '.join(map(str, counts))} subjects: rows of one table are on the same ones",
            )
        for label in {r.row for r in records if sum(q.row == r.row for q in records) > 1}:
            self.add("error", "twice", f"row {printable(label)} is there twice with the same settings")
        self._baselines(records)
        first = next((i for i in group if i.record.id in tables), None)
        for item in group:
            if first is not None and item.record.id in tables and item is not first:
                for message in unlike(tables[item.record.id], tables[first.record.id]):
                    self.add("error", "swapped", f"{message} as {printable(first.record.row)} has it", item.label)
            self._controls(item, records)
            for other in group[: group.index(item)]:
                ids = (item.record.id, other.record.id)
                names = {b.name for i in (item, other) if (b := i.record.backbone) is not None}
                if len(names) == 2 and {*ids} <= tables.keys() and same_predictions(*(tables[i] for i in ids)):
                    text = f"its predictions are those of {printable(other.record.row)}: one run under two names"
                    self.add("error", "one-run", text, item.label)
            if item.record.id in tables:
                self._beside(item, records, tables)

    def _comparisons(self, items: Sequence[_Item], contents: Contents) -> None:
        """Hold comparisons that travel in the place of predictions to the records that they are of."""
        records = {i.record.id: i.record for i in items}
        named: set[str] = set()
        for name, content in contents.named("comparisons").items():
            where = f"comparisons/{name[:12]}….json"
            with self._guard(where):
                try:
                    file = PairwiseRecord.of(parse_json(content))
                except ValueError as error:
                    self.add("error", "comparisons", f"{where} are no comparisons: {error}")
                    continue
                found = [] if name_of(file) == name else ["its name is not the hash of what it says"]
                found += [printable(text, 300) for text in itertools.islice(problems(file, records), SHOWN)]
                own = [i for row in file.rows for i in row.records]
                named.update(own)
                if any(may_leave(records[i], self.registry) != "aggregates" for i in own if i in records):
                    found.append("predictions may leave, and ranks come from those")
                for message in found:
                    self.add("error", "comparisons", f"{where}: {message}", where)
        for group in tables_of(list(records.values())):
            unnamed = sorted({r.row for r in group if r.id not in named and "mask budget" not in r.apart})
            if unnamed and len({r.row for r in group}) > 1 and may_leave(group[0], self.registry) == "aggregates":
                rows = printable(", ".join(unnamed), 200)
                self.once(
                    "warning",
                    "not-ranked",
                    f"of {printable(group[0].task.label)} on {printable(group[0].dataset.label)} no comparison travels "
                    f"with these rows, and they will not be ranked: {rows}",
                )

    def _baselines(self, records: Sequence[Record]) -> None:
        """Name baselines of this package that a run always has and that are not here: skill is over the best of all."""
        first = records[0]
        task = self.registry.tasks.get(first.task.name)
        if task is None or not issubclass(task, SubjectTask | WindowTask) or first.data is None:
            return
        modality = "meg" if first.data.signal == "sensors" else "fmri"
        own = {
            name
            for name, baseline in self.registry.baselines.items()
            if modality in baseline.modalities and self.registry.provenance("baseline", name).distribution == OWN
        }
        if missing := sorted(own - {r.baseline.name for r in records if r.baseline is not None}):
            self.once(
                "warning",
                "baselines",
                f"{printable(first.task.label)} on {printable(first.dataset.label)} lacks {', '.join(missing)}, which "
                "every run has",
                "Submit all rows of a run: without the strongest baseline skill is too good.",
            )

    def _controls(self, item: _Item, records: Sequence[Record]) -> None:
        record = item.record
        controls = {
            r.row: v
            for r in records
            if r.kind in CONTROLS and r.row != record.row and (v := r.metrics[r.headline].value) is not None
        }
        head = record.metrics[record.headline]
        if record.kind == "pretrained":
            if not any(r.kind in ("baseline", "filler") for r in records):
                self.add("error", "no-baseline", "has no baseline beside it: no number stands alone", item.label)
            backbone = record.backbone.label if record.backbone else ""
            if not any(
                r.kind in ("untrained", "given") and r.backbone and r.backbone.label == backbone for r in records
            ):
                self.add("warning", "no-untrained", "has no untrained backbone beside it", item.label)
        if record.skill is None or head.value is None:
            return
        if record.best_baseline not in controls:
            self.add(
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
            self.add("error", "skill", f"its skill is given as {given}, and is {skill and f'{skill:.4g}'}", item.label)
        better = (max if head.higher_is_better else min)(controls, key=lambda row: controls[row])
        if better != record.best_baseline and controls[better] != best:
            self.add(
                "warning",
                "skill",
                f"its skill is over {printable(record.best_baseline)}, and {printable(better)} in the same bundle is "
                "better",
                item.label,
                "Run all rows in one command, so that skill is over the best of all.",
            )

    def _beside(self, item: _Item, records: Sequence[Record], tables: Mapping[str, pd.DataFrame]) -> None:
        """Compare confounds with what predictions give."""
        if "prediction" not in tables[item.record.id]:
            return
        try:
            found, whole = recomputation.recompute_beside(item.record, records, tables)
        except (NeurobenchError, ValueError, KeyError, IndexError, np.linalg.LinAlgError) as error:
            self.add("error", "confounds", f"its confounds cannot be computed again: {error}", item.label)
            return
        # Pseudo-inverses and correlations of near-constant columns differ in the last digits from machine to machine.
        tolerance = Tolerance(1e-5, tolerance_of(item.record).interval, 1.0)
        for message in recomputation.differences(item.record.confounds, found, tolerance):
            self.add("error", "confounds", message, item.label)
        known = {*found, "site_leak", "over_covariates"}
        if whole and (more := item.record.confounds.keys() - known):
            self.add("error", "confounds", f"{printable(sorted(more)[0])} is given, and cannot be computed", item.label)

    # ------------------------------------------------------------ accepted records, and running again

    def accepted(self, items: Sequence[_Item], folder: Path) -> None:
        """Hold the append-only rule: what is accepted is superseded by a newer record, never edited."""
        if not folder.is_dir():
            raise BundleError(f"--against: there is no folder {folder}.", allowed="a folder of accepted records")
        there: dict[str, Mapping[str, Any]] = {}
        sources: dict[str, str] = {}
        slots: dict[str, list[Record]] = {}
        for path in sorted(folder.rglob("*.json")):
            try:
                plain = parse_json(path.read_bytes())
                record = parse_record(plain)
            except (OSError, ValueError):
                continue
            there[record.id] = plain
            if record.data is not None:
                sources[record.data.fingerprint] = record.data.source
                beside = path.parent / "predictions" / f"{record.id}.parquet"
                self._accepted_people(record, record.data, beside)
                self._accepted_predictions(items, record, beside)
            slots.setdefault(slot(record), []).append(record)
        for item in items:
            data = item.record.data
            if data is not None and sources.get(data.fingerprint, data.source) != data.source:
                self.add("error", "source", "calls real what an accepted record calls simulated", item.label)
            old = there.get(item.record.id)
            if old is not None:
                parts = {*old, *item.plain} - {*OF_THE_RUN, "cost", "notes"}
                changed = sorted(k for k in parts if not alike(old.get(k), item.plain.get(k)))
            if old is not None and not changed:
                self.findings.append(Finding("info", "accepted", "is accepted already", subject=item.label))
            elif old is not None:
                self.add(
                    "error",
                    "append-only",
                    f"is accepted already and says something else here ({', '.join(changed)[:100]})",
                    item.label,
                    "An accepted record is superseded by a new one with an id of its own, never edited."
                    + (_OTHER_CONTROLS if {*changed} <= {"best_baseline", "skill"} else ""),
                )
            elif before := slots.get(slot(item.record)):
                names = ", ".join(sorted(b.id[:12] for b in before))
                self.findings.append(Finding("info", "supersedes", f"supersedes {names}", subject=item.label))
                if text := _other_score(item.record, max(before, key=lambda b: (b.written, b.id))):
                    self.add(
                        "warning", "supersedes", text, item.label, "Whose row it is, and why, is for people to say."
                    )

    def _accepted_people(self, record: Record, data: DataRecord, path: Path) -> None:
        """Hold what a bundle says of simulated people, who keep their names, to what accepted predictions say."""
        truth = (data.fingerprint, f"truth of {record.task.label}")
        if data.source != "simulated" or truth not in self.people or not path.is_file():
            return
        try:
            accepted = of_people(read_table(path), record.task)
        except (DataError, ValueError):
            # As of a record that is none: what lies there is not what is judged here.
            return
        for what, values in accepted:
            here = self.people.get((data.fingerprint, what), values)
            if _contradict(here, values):
                text = f"predictions say another {printable(what)} of a person than those of an accepted record do"
                self.once("error", "people", text)
            if what == truth[1] and (n := len(values.index.difference(here.index))):
                text = f"{n} people are not scored on {printable(record.task.label)} who are in an accepted record"
                self.once("error", "people", text)

    def _accepted_predictions(self, items: Sequence[_Item], record: Record, path: Path) -> None:
        """Find an accepted row of another backbone whose predictions came in under a name of their own."""
        known = [
            i
            for i in items
            if i.record.id in self.tables
            and i.record.backbone is not None
            and record.backbone is not None
            and i.record.backbone.name != record.backbone.name
            and _group_of(i.record) == _group_of(record)
        ]
        if not known or not path.is_file():
            return
        try:
            table = read_table(path)
        except DataError:
            return
        for item in known:
            if same_predictions(self.tables[item.record.id], table):
                text = (
                    f"its predictions are those of {printable(record.row)}, an accepted record: one run under two names"
                )
                self.add("error", "one-run", text, item.label)

    def repeated(
        self,
        items: Sequence[_Item],
        repeat: Repeat,
    ) -> None:
        """Run what is fine so far again."""
        refused = {f.subject for f in self.findings if f.level == "error"}
        todo = [(i.record, i.identity) for i in items if i.label not in refused and i.identity is not None]
        labels = {i.record.id: i.label for i in items}
        for record_id, found in repeat(todo):
            if isinstance(found, Again):
                self.levels[record_id], self.again[record_id] = "re-run", found
            else:
                self.add(cast(Any, found.level), found.code, found.message, labels[record_id], found.fix)


# ---------------------------------------------------------------- small pieces


def _pretraining_of(item: _Item) -> str:
    """Return what tells a pretraining from others: the earlier steps that its id names, else the record itself."""
    steps = item.identity["steps"] if item.identity is not None else {}
    keys = sorted(k for k, s in steps.items() if "backbone" in s["identity"])
    return digest(keys) if keys else item.record.id


def _of_pretraining(record: Record) -> dict[str, Any]:
    cost = record.cost.model_dump(mode="json", exclude={"seconds", "peak_memory_mb"})
    return {**cost, "result": record.pretraining.model_dump(mode="json") if record.pretraining else None}


def _contradict(a: pd.Series[Any], b: pd.Series[Any]) -> bool:
    """Return whether two columns say different things of people whom both have."""
    both = a.index.intersection(b.index)
    a, b = a[both], b[both]
    return not bool(((a == b) | (a.isna() & b.isna())).all())


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _listed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def _by(items: Sequence[_Item], key: Callable[[_Item], str]) -> Iterator[tuple[str, list[_Item]]]:
    groups: dict[str, list[_Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    yield from groups.items()


def _group_of(r: Record) -> str:
    settings = r.protocol.model_dump(mode="json", exclude={"recipe", "suite"})
    return digest([r.dataset.label, r.data.fingerprint if r.data else "", r.task.label, settings])


def _grouped(items: Sequence[_Item]) -> Iterator[list[_Item]]:
    for _, own in _by(items, lambda i: _group_of(i.record)):
        yield own


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

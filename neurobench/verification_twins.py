"""Simulated people of a bundle beside those of the twin, which is made anew with the dataset that is installed here."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neurobench.alignment import some
from neurobench.bundle import task_of
from neurobench.bundle_reader import printable
from neurobench.cohorts import CohortSource, twin
from neurobench.components import names_files, parse_component
from neurobench.confounds import covariate_columns
from neurobench.contracts import SubjectTask
from neurobench.errors import DataError, NeurobenchError
from neurobench.identity import digest
from neurobench.listing import listed
from neurobench.opening import source_of
from neurobench.options import Variant
from neurobench.plugins import Kind, Registry
from neurobench.recomputation import tolerance_of
from neurobench.records import Fold
from neurobench.results import ComponentRecord
from neurobench.store import Store
from neurobench.verdicts import Item, Judge

__all__ = ["check_twins"]

MAX_PEOPLE = 1000
"""Simulated people that are made for one bundle: a stranger may ask for any number of them."""

_made: dict[str, pd.DataFrame] = {}
"""People of the twins that this process has made, by what determines them and how many are left of them."""


def check_twins(judge: Judge, items: Sequence[Item], folds: Mapping[str, tuple[Fold, ...]]) -> None:
    """Hold what is said of simulated people to the twin: who they are, and what is true of each.

    Where the dataset is not installed here with the same code, that is a finding on components. What is refused already
    asks for no twin.
    """
    refused = judge.refused
    simulated = [
        i
        for i in items
        if i.record.data is not None
        and i.record.data.source == "simulated"
        and i.identity is not None
        and i.label not in refused
        and _is_installed(judge.registry, "dataset", i.record.dataset)
    ]
    cohorts: dict[str, list[Item]] = {}
    for item in simulated:
        with judge.guard(item.label):
            cohorts.setdefault(_cohort_of(item), []).append(item)
    n_made = 0
    for own in cohorts.values():
        first = own[0]
        with judge.guard(first.label):
            source = _source(judge, own)
            if source is None:
                continue
            assert first.record.data is not None
            n = first.record.data.n_subjects
            key = digest([source.identity(), n])
            if key not in _made:
                assert source.n_subjects is not None
                n_made += source.n_subjects
                if n_made > MAX_PEOPLE:
                    _not_made(judge, first, f"more than {MAX_PEOPLE} people are not made for one bundle")
                    continue
                try:
                    _made[key] = _people(source, n)
                except (NeurobenchError, OSError) as error:
                    _not_made(judge, first, str(error).rstrip("."))
                    continue
            for item in own:
                with judge.guard(item.label):
                    _held(judge, item, _made[key], folds.get(item.record.protocol.fold_fingerprint))


def _is_installed(registry: Registry, kind: Kind, says: ComponentRecord) -> bool:
    """Return whether a component is here with the code that a record names."""
    try:
        cls, here = registry.get(kind, says.name), registry.provenance(kind, says.name)
    except NeurobenchError:
        return False
    found = (here.distribution, here.version, here.digest, cls.score_version)
    return (says.distribution, says.version, says.digest, says.score_version) == found


# ---------------------------------------------------------------- the twin


def _cohort_of(item: Item) -> str:
    """Return what determines who is in a record's cohort."""
    assert item.identity is not None
    assert item.record.data is not None
    how = [item.identity.get("twin"), item.identity["asked"]]
    return digest([item.record.dataset.label, how, item.record.data.n_subjects])


def _source(judge: Judge, own: Sequence[Item]) -> CohortSource | None:
    """Return how the cohort of some records is made, or None with what is in the way."""
    item = own[0]
    assert item.identity is not None
    label, registry = item.record.dataset.label, judge.registry
    try:
        spec = parse_component("dataset", label, registry)
    except NeurobenchError as error:
        _not_made(judge, item, error.what.rstrip("."))
        return None
    if names_files(spec.parameters):
        # Only what is installed is read, whatever a stranger names.
        _not_made(judge, item, "a parameter of its dataset names a file of another machine")
        return None
    says, asked = item.identity.get("twin"), item.identity["asked"]
    says = says if isinstance(says, dict) else {}
    n, variant = says.get("n_subjects"), cast(Variant, says.get("variant"))
    rates = {k: asked.get(k) for k in ("window_s", "patch_s", "sfreq")}
    known = type(n) is int and n > 0 and variant in get_args(Variant)
    wrong = ""
    if not known or not all(v is None or (isinstance(v, int | float) and v > 0) for v in rates.values()):
        wrong = "its identity does not say how its simulated cohort was made"
    else:
        source = source_of(spec, registry, n_subjects=n, variant=variant, **rates)
        if source.dataset.twin_subjects == 0:
            wrong = f"is said to be of simulated people, and dataset {printable(label)} has no simulated twin"
        elif (seed := says.get("seed")) != source.seed:
            text = f"its simulated cohort is said to be of seed {printable(str(seed))}"
            wrong = f"{text}, and a run makes that of seed {source.seed}"
    for item in own if wrong else ():
        judge.add("error", "twin", wrong, item.label)
    return None if wrong else source


def _not_made(judge: Judge, item: Item, why: str) -> None:
    text = f"the simulated cohort of {printable(item.record.dataset.label)} was not made anew, and its people were "
    judge.once("warning", "twin-not-made", f"{text}compared with nothing: {printable(why, 300)}")


def _people(source: CohortSource, n_subjects: int) -> pd.DataFrame:
    """Return the people of a twin: with a recording each, or if that is another number those whose recordings are used.

    Raises
    ------
    NeurobenchError, OSError
        If the twin cannot be made.
    """
    with tempfile.TemporaryDirectory(prefix="neurobench-twin-") as folder:
        store = Store(Path(folder) / "out")
        found = listed(source.dataset, twin(source, store))
        people = found.participants[found.participants.index.isin([r.subject for r in found.recordings])]
        if len(people) != n_subjects:
            # What is read of a recording decides whether it is used, and reading them all takes as long as making them.
            with contextlib.suppress(DataError):
                people = source.load(store, workers=1).participants
    return people.sort_index()


# ---------------------------------------------------------------- what is said of people


def _held(judge: Judge, item: Item, people: pd.DataFrame, folds: Sequence[Fold] | None) -> None:
    """Compare what a record's folds and predictions say of people with the twin."""
    record = item.record
    # Another numpy may draw other people.
    level: Literal["warning", "error"] = "error" if tolerance_of(record).interval == 0 else "warning"
    cohort = f"the simulated cohort of {printable(record.dataset.label)}, made anew"
    if folds is not None:
        said = {s for f in folds for s in (*f.train, *f.test)}
        if strangers := sorted(said - set(people.index)):
            text = f"{len(strangers)} people of its folds are not in {cohort}: {_some(strangers)}"
            judge.add(level, "twin", text, item.label)
        if absent := sorted(set(people.index) - said):
            text = f"{len(absent)} people of {cohort}, are in none of its folds: {_some(absent)}"
            judge.add(level, "twin", text, item.label)
        if strangers or absent:
            return
    table = judge.tables.get(record.id)
    if table is None:
        return
    names = table["participant_id"]
    if strangers := sorted(set(names) - set(people.index)):
        text = f"{len(strangers)} people of its predictions are not in {cohort}: {_some(strangers)}"
        judge.add(level, "twin", text, item.label)
        return
    task = task_of(record, judge.registry)
    true = pd.DataFrame(covariate_columns(people), index=people.index)
    if "family" in people:
        true["family"] = people["family"].where(people["family"].notna(), "").astype(str)
    if isinstance(task, SubjectTask) and _is_installed(judge.registry, "task", record.task):
        if gone := sorted(true.columns.difference(table.columns)):
            judge.add(level, "twin", f"its predictions do not say {gone[0]}, which is known of {cohort}", item.label)
        target = task.target(people).dropna()
        true["truth"] = target.reindex(people.index)
        tested = set(people.index) if folds is None else {s for f in folds for s in f.test}
        if left_out := sorted(tested & set(target.index) - set(names)):
            text = f"{len(left_out)} people are not scored who have a value in {cohort}: {_some(left_out)}"
            judge.add(level, "twin", text, item.label)
        judge.held.add(record.id)
    here = true.loc[names]
    for column in here.columns.intersection(table.columns):
        a, b = table[column].to_numpy(), here[column].to_numpy()
        if (wrong := _other(a, b)).any():
            k = int(np.flatnonzero(wrong)[0])
            what = printable(column if column != "truth" else f"truth of {record.task.label}")
            text = f"its predictions say another {what} of {names[wrong].nunique()} people than {cohort}"
            example = f"of {printable(str(names.iloc[k]))} {printable(str(b[k]))}, not {printable(str(a[k]))}"
            judge.add(level, "twin", f"{text}: {example}", item.label)


def _other(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.bool_]:
    """Return where two columns differ by more than rounding."""
    if a.dtype.kind == "f" and b.dtype.kind == "f":
        return np.asarray(~np.isclose(a, b, rtol=1e-6, atol=1e-6, equal_nan=True))
    return np.asarray(a.astype(str) != b.astype(str))


def _some(names: Sequence[str]) -> str:
    return printable(some(names), 200)

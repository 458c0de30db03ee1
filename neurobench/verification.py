"""Say of a submission what can be believed, and of everything else why not; nothing that was submitted is run.

Levels, as words: *declared* (numbers without predictions; only their form and their fit to each other were checked),
*recomputed* (found again from held-out predictions), *re-run* (found again from the
recordings or the simulated twin themselves).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from neurobench.bundle import LIMITS, Limits
from neurobench.bundle_reader import Contents, read_bundle
from neurobench.plugins import Registry
from neurobench.records import Finding
from neurobench.repetition import Again
from neurobench.results import Record
from neurobench.verdicts import Item, Judge, Verdict
from neurobench.verification_accepted import check_accepted
from neurobench.verification_predictions import usable_folds, usable_predictions
from neurobench.verification_records import check_records, read_records
from neurobench.verification_rows import (
    check_comparisons,
    check_people,
    check_pretrainings,
    check_seeds,
    check_sources,
    check_tables,
    check_text,
)
from neurobench.verification_twins import check_twins

__all__ = ["Repeat", "Verdict", "verify"]

Repeat = Callable[[Sequence[tuple[Record, Mapping[str, Any]]]], Iterable[tuple[str, Again | Finding]]]
"""Runs records again that are fine so far, see :mod:`neurobench.repetition`."""


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
        Runs records again; None: nothing is trained, and of simulated cohorts the twins alone are made.
    limits
        Of size, while it is read.

    Raises
    ------
    BundleError
        If there is nothing that could be read.
    """
    contents = bundle if isinstance(bundle, Contents) else read_bundle(bundle, limits)
    judge = Judge(registry, list(contents.findings))
    items = read_records(judge, contents)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        # Numbers of a stranger may overflow or not vary: what comes of that is compared, not warned of.
        warnings.simplefilter("ignore")
        good = check_records(judge, items)
        folds = usable_folds(judge, good, contents)
        judge.tables = usable_predictions(judge, good, contents, folds)
        check_twins(judge, good, folds)
        check_people(judge, good)
        check_seeds(judge, good)
        check_tables(judge, good)
        check_comparisons(judge, good, contents)
        check_sources(judge, good)
        check_pretrainings(judge, good)
        check_text(judge, items, contents)
        if against is not None:
            check_accepted(judge, items, against)
        if repeat is not None:
            _repeated(judge, items, repeat)
    return judge.verdict(items)


def _repeated(judge: Judge, items: Sequence[Item], repeat: Repeat) -> None:
    """Run what is fine so far again."""
    refused = judge.refused
    todo = [(i.record, i.identity) for i in items if i.label not in refused and i.identity is not None]
    labels = {i.record.id: i.label for i in items}
    for record_id, found in repeat(todo):
        if isinstance(found, Again):
            judge.levels[record_id], judge.again[record_id] = "re-run", found
        else:
            judge.add(cast(Any, found.level), found.code, found.message, labels[record_id], found.fix)

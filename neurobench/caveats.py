"""What a reader must know before believing a table, said in words and derived from what was measured, never from names.

Every caveat is a rule with a threshold that stands here. An ``error`` means that the numbers of the task say nothing
about its question, a ``warning`` that a careful reviewer would object, an ``info`` is context.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neurobench.confounds import MISSING_UNITS
from neurobench.evidence import Evidence
from neurobench.metrics import FUNCTIONS, auroc
from neurobench.paired import POWER, Paired, families_of, row_of
from neurobench.results import OFF_BUDGET, MetricRecord, Record
from neurobench.scoring import N_BOOTSTRAP, ONE_CLASS, bootstrap_weights, family_numbers, percentile_interval
from neurobench.tables import count, metric_name

__all__ = ["Caveat", "caveats", "detectable", "shown_by_records"]

Level = Literal["error", "warning", "info"]

LOST = 0.2
"""Share of recordings left out from which the selection itself is a question."""

MEMORISED = 1.5
"""Held-out loss over training loss, under one mask, from which a backbone knows its training people by heart."""

FEW, FEW_OF_A_CLASS = 20, 10
"""Held-out people, and people of the rarer class, below which percentile intervals are clearly too narrow."""

MAJORITY = 0.6
"""Prevalence of the larger class from which accuracy flatters whoever always says it."""

EXPLAINED = 1 / 3
"""Share of a correlation that has to go, with the rest not to be told from 0, for a covariate to be named."""

NAMES = {
    "age": "age",
    "sex": "sex",
    "site": "site",
    "mean_fd": "motion (mean framewise displacement)",
    "duration_s": "scan length",
    "all": "all covariates together",
}


@dataclass(frozen=True)
class Caveat:
    """One thing that a reader must know.

    Parameters
    ----------
    level, code
        How bad it is, and a short stable name such as ``label-is-site``.
    text
        Whole sentences with the numbers in them.
    task
        Label of the task that it concerns; empty for the cohort.
    """

    level: Level
    code: str
    text: str
    task: str = ""


def caveats(evidence: Evidence, records: Sequence[Record]) -> list[Caveat]:
    """Return everything that a reader must know of a cohort's results, the worst first.

    Parameters
    ----------
    evidence
        The cohort.
    records
        Its records.
    """
    ok = [r for r in records if r.status == "ok"]
    found = [*_of_cohort(evidence, records), *_of_pretraining(ok), *_of_backbones(ok)]
    for task in dict.fromkeys(r.task.label for r in ok):
        own = [r for r in ok if r.task.label == task]
        found += _of_task(task, own, evidence)
    order = {"error": 0, "warning": 1, "info": 2}
    return sorted(found, key=lambda c: order[c.level])


def shown_by_records(records: Sequence[Record]) -> list[Caveat]:
    """Return what the records of one task show of confounds, where the held-out predictions are not at hand."""
    ok = [r for r in records if r.status == "ok"]
    if not ok:
        return []
    task = ok[0].task.label
    first = ok[0]
    of_labels = [*_few(task, first), *_one_class_sites(task, first), *_label_and_covariates(task, first)]
    return [*of_labels, *_explained(task, ok), *_site_leak(ok)]


# ---------------------------------------------------------------- the cohort


def _of_cohort(evidence: Evidence, records: Sequence[Record]) -> Iterator[Caveat]:
    cohort = evidence.cohort
    if evidence.source == "simulated":
        variant = f", variant {cohort['variant']}" if cohort["variant"] not in ("", "default") else ""
        yield Caveat(
            "warning",
            "simulated",
            f"These recordings are simulated{variant}: every number here measures the software and none a brain.",
        )
    first = records[0].protocol
    if first.split == "within-recording":
        yield Caveat(
            "warning",
            "within-recording",
            "Training and test are parts of the same recordings. Nothing here says how well anything generalises to "
            "other "
            "people, and nothing is ranked.",
        )
    if first.transductive:
        yield Caveat(
            "warning",
            "transductive",
            "Backbones were pretrained on the recordings of the test subjects too, without their labels "
            "(transductive). "
            "Such numbers must not be compared with inductive ones, and reconstruction is not held out.",
        )
    lost = sum(f["n"] for f in cohort["findings"] if f["level"] == "error")
    total = lost + cohort["n_recordings"]
    if lost and lost / total >= LOST:
        reasons = ", ".join(f"{f['code']} × {f['n']}" for f in cohort["findings"] if f["level"] == "error")
        yield Caveat(
            "warning",
            "many-left-out",
            f"{lost} of {total} recordings were left out ({reasons}). Who is left may not stand for who was scanned.",
        )
    if cohort["n_families"]:
        yield Caveat(
            "info",
            "families",
            f"{cohort['n_in_families']} of {cohort['n_subjects']} subjects belong to {cohort['n_families']} families "
            f"or are "
            "scans of one person under several ids; each family is in one fold as a whole.",
        )
    failed = sorted({f"{r.row} on {r.task.label}: {r.error}" for r in records if r.status == "failed"})
    if failed:
        yield Caveat("warning", "failed", f"{len(failed)} rows failed and are not in the tables: " + "; ".join(failed))
    yield from _site_leak(records)


def _site_leak(records: Sequence[Record]) -> Iterator[Caveat]:
    leaks = {r.row: r.confounds["site_leak"] for r in records if "site_leak" in r.confounds}
    shown = [f"{row} {_number(m)}" for row, m in leaks.items() if _above(m)]
    if shown:
        chance = next(iter(leaks.values())).chance or 0.0
        yield Caveat(
            "info",
            "site-leak",
            f"The site can be told from these representations (balanced accuracy, chance {chance:.2f}): "
            f"{'; '.join(shown)}. "
            "Whatever differs between sites can therefore be read as if it were the target: see the within-site "
            "figures.",
        )


# ---------------------------------------------------------------- pretraining


def _of_pretraining(records: Sequence[Record]) -> Iterator[Caveat]:
    by_row = {r.row: r for r in records if r.pretraining is not None}
    unlearned = [row for row, r in by_row.items() if r.pretraining and r.pretraining.learned is False]
    if unlearned:
        yield Caveat(
            "warning",
            "not-learned",
            f"{_listed(unlearned)}: under its own mask the pretraining did not reach the best trivial filler on "
            f"held-out "
            "subjects. What such a row reaches downstream is no merit of its pretraining.",
        )
    yield from _of_transfer(by_row)
    for row, r in by_row.items():
        p = r.pretraining
        if p and p.loss_last and p.loss_held_out and p.loss_held_out > MEMORISED * p.loss_last:
            yield Caveat(
                "warning",
                "memorised",
                f"{row} has learned its training people by heart: its loss is {p.loss_last:.3g} on them and "
                f"{p.loss_held_out:.3g} on held-out ones under the same mask ({p.loss_held_out / p.loss_last:.1f} ×).",
            )
        off = p and p.scored_fraction is not None and abs(p.scored_fraction - r.protocol.ratio) > OFF_BUDGET
        if p and p.scored_fraction is not None and (off or "mask budget" in r.apart):
            yield Caveat(
                "warning",
                "off-budget",
                f"{row} was pretrained outside the common budget: its mask hid {p.hidden_fraction:.1%} of the valid "
                f"tokens and "
                f"{p.scored_fraction:.1%} were scored, instead of {r.protocol.ratio:.0%} (background and padding are "
                f"never "
                "scored). A difference to other masks may be one of budget"
                + ("." if "mask budget" not in r.apart else ": it is shown, and neither ranked nor compared."),
            )


def _of_transfer(by_row: Mapping[str, Record]) -> Iterator[Caveat]:
    """What rows owe to people of other cohorts, and how sure it is that these are other people."""
    told: dict[str, list[str]] = {}
    for row, r in by_row.items():
        for one in r.pretraining.on if r.pretraining else []:
            text = f"{one.n_subjects} people of {one.dataset}"
            if one.n_left_out:
                text += f" ({one.n_left_out} left out, who are in the scored cohort too)"
            if one.units_by == "position":
                text += f", units met by position, {one.distance_mm:.0f} mm apart in the median"
            told.setdefault(text, []).append(row)
            if one.n_same_name:
                yield Caveat(
                    "warning",
                    "declared-distinct",
                    f"{row} was pretrained on {one.n_same_name} people of {one.dataset} whose identifiers are those of "
                    "people it is scored on. Who ran it declared them to be different people; nothing here shows that.",
                )
    if told:
        said = "; ".join(f"{_listed(rows)}: {text}" for text, rows in told.items())
        yield Caveat(
            "info",
            "transfer",
            f"Pretrained on other data than the rest, so a difference to other rows may be one of data: {said}.",
        )


def _of_backbones(records: Sequence[Record]) -> Iterator[Caveat]:
    """What rows owe to weights that others trained, and to a size of their own."""
    outside = [r.row for r in records if "outside weights" in r.apart]
    if outside:
        yield Caveat(
            "warning",
            "outside-weights",
            f"{_listed(outside)}: the weights come from outside. Whom they were trained on is not known here, so it "
            "cannot be excluded that the test subjects are among them, nor can the steps and data that went into them "
            "be compared with anything here. Such rows are shown beside the others and not ranked with them.",
        )
    sized = [r.row for r in records if "parameter budget" in r.apart]
    if sized:
        sizes = {r.backbone.label: r.cost.n_parameters for r in records if r.row in sized and r.backbone}
        told = ", ".join(f"{name} {count(float(n))}" for name, n in sizes.items() if n)
        common = [r.cost.n_parameters for r in records if r.backbone and not r.apart and r.cost.n_parameters]
        beside = f"; the others have at most {count(float(max(common)))}" if common else ""
        yield Caveat(
            "warning",
            "parameter-budget",
            f"{_listed(sized)}: outside the common parameter budget ({told or 'sizes not known'}{beside}). A "
            "difference to other backbones may be one of size; such rows are not ranked with them.",
        )


# ---------------------------------------------------------------- a task


def _of_task(task: str, records: Sequence[Record], evidence: Evidence) -> Iterator[Caveat]:
    with_predictions = [(r, p) for r in records if (p := evidence.predictions(r.id)) is not None]
    subjects = [(r, p) for r, p in with_predictions if "prediction" in p]
    if subjects:
        yield from _of_labels(task, subjects[0][0], subjects[0][1])
        yield from _explained(task, records)
    families = families_of(with_predictions[0][1]) if with_predictions else None
    yield from _few(task, records[0], None if families is None else int(families.max()) + 1)
    yield from _of_ranks(task, records)
    if (size := detectable(records, evidence)) is not None:
        value, n, unit, metric = size
        yield Caveat(
            "info",
            "detectable",
            f"With {n} subjects a difference between two rows in {metric} has to be about {value:.2g}{unit} to be "
            f"found with a "
            "power of .8 (median over pairs of rows): smaller ones can neither be shown nor excluded here.",
            task,
        )


def _of_labels(task: str, record: Record, predictions: pd.DataFrame) -> Iterator[Caveat]:
    """What the labels of a task owe to site, motion and scan length, before any model."""
    truth = predictions["truth"].to_numpy(float)
    two = record.headline in FUNCTIONS["classification"]
    if two:
        share = float(truth.mean())
        if max(share, 1 - share) >= MAJORITY:
            yield Caveat(
                "info",
                "prevalence",
                f"{max(share, 1 - share):.0%} are of one class: whoever always says it is right that often, so "
                f"accuracy is no "
                "score here.",
                task,
            )
        # Of whom it is not known where they were scanned no site says anything.
        known = predictions[predictions["site"] != ""] if "site" in predictions else predictions[:0]
        if len(known) and known["site"].nunique() > 1:
            family = family_numbers(known["family"]) if "family" in known else None
            yield from _label_and_site(
                task, known["truth"].to_numpy(float), known["site"].astype(str).to_numpy(), family
            )
    yield from _label_and_covariates(task, record)


def _label_and_covariates(task: str, record: Record) -> Iterator[Caveat]:
    told = {
        name: m
        for name in ("mean_fd", "duration_s")
        if (m := record.confounds.get(f"truth_r[{name}]")) is not None and _apart(m)
    }
    for name, m in told.items():
        yield Caveat(
            "warning",
            f"label-and-{'motion' if name == 'mean_fd' else 'length'}",
            f"The target itself goes with {NAMES[name]}: r {_number(m)}. A model that reads {NAMES[name]} from the "
            f"signal "
            "looks as if it read the target.",
            task,
        )
    for note in record.notes:
        if note.startswith(MISSING_UNITS):
            yield Caveat("warning", "missing-units", f"{note[0].upper()}{note[1:]}.", task)


def _few(task: str, record: Record, n_families: int | None = None) -> Iterator[Caveat]:
    """Whether an interval is of so few people, or families as far as known, that it is narrower than it says."""
    n = record.n_subjects if n_families is None else n_families
    note = next((re.fullmatch(r"prevalence of .*: (\d+) of (\d+)", n) for n in record.notes if "prevalence" in n), None)
    rarer = min(int(note[1]), int(note[2]) - int(note[1])) if note else None
    if rarer is not None and rarer < FEW_OF_A_CLASS:
        of_whom, held = (
            f"{rarer} people of the rarer class",
            "a nominal 95 % came to 87 % with 5 of 20, and to 32 % with 1",
        )
    elif n < FEW:
        of_whom, held = (
            f"{n} {'people' if n_families is None else 'families'}",
            "a nominal 95 % came to 92 % with 20, 89 % with 10, 83 % with 5",
        )
    else:
        return
    yield Caveat(
        "warning",
        "few-people",
        f"Intervals are of {of_whom}, and a bootstrap of so few is too narrow ({held}); that of a perfect score has no "
        "width at all. Trust the p-value, and find more people before believing a difference.",
        task,
    )


def _one_class_sites(task: str, record: Record) -> Iterator[Caveat]:
    """What a record says itself of sites of one class, which a within-site score says nothing of."""
    note = next((n for n in record.notes if n.endswith(ONE_CLASS)), "")
    if not note:
        return
    n, total = (int(word) for word in note.removesuffix(ONE_CLASS).split(" of "))
    if n == total:
        yield _label_is_site(task, total)
        return
    within = "The within-site AUROC leaves such sites out; every other score has them in."
    yield Caveat(
        "warning",
        "one-class-sites",
        f"{n} of {total} sites hold one class only: a site of one class gives the class away. "
        + (within if "within_site_auroc" in record.metrics else "Every score of this task has them in."),
        task,
    )


def _label_is_site(task: str, n_sites: int) -> Caveat:
    return Caveat(
        "error",
        "label-is-site",
        f"The label equals the site: each of the {n_sites} sites holds one class only. No row of this task says "
        "anything about its question, whatever its score: scanner and class cannot be told apart.",
        task,
    )


def _label_and_site(
    task: str, truth: NDArray[np.float64], site: NDArray[Any], family: NDArray[np.int64] | None
) -> Iterator[Caveat]:
    classes = {s: set(truth[site == s].tolist()) for s in np.unique(site)}
    single = [s for s, c in classes.items() if len(c) == 1]
    if len(single) == len(classes):
        yield _label_is_site(task, len(classes))
        return
    # The share of the class among the others of one's own site, relatives left out: what the site alone says.
    group = np.arange(len(truth)) if family is None else family
    table = pd.DataFrame({"site": site, "group": group, "truth": truth})
    whole, own = (table.groupby(by)["truth"].transform("sum") for by in (["site"], ["site", "group"]))
    n_whole, n_own = (table.groupby(by)["truth"].transform("size") for by in (["site"], ["site", "group"]))
    n_others = (n_whole - n_own).to_numpy()
    alone = np.divide(whole - own, n_others, out=np.full(len(truth), truth.mean()), where=n_others > 0)
    # Leaving oneself out turns every site round by a little: of two sites alike the pooled area is below one half.
    weights = np.concatenate([np.ones((1, len(truth))), bootstrap_weights(len(truth), N_BOOTSTRAP, 0, family)])
    values = auroc(truth, alone, weights)
    low, high = percentile_interval(values[1:])
    if low is not None and high is not None and low > 0.5:
        yield Caveat(
            "warning",
            "label-and-site",
            f"The site alone tells the class with an AUROC of {values[0]:.2f} ({low:.2f} to {high:.2f}), from its "
            f"prevalence at "
            "each site. Only the within-site AUROC is free of that.",
            task,
        )
    if single:
        yield Caveat(
            "warning",
            "one-class-sites",
            f"Sites of one class only: {_listed(single)}. Leaving them out costs nothing that could be learned of the "
            f"target.",
            task,
        )


def _explained(task: str, records: Sequence[Record]) -> Iterator[Caveat]:
    """Rows above chance of which nothing is left given a covariate, or that are not ahead of the covariates alone."""
    for name, words in NAMES.items():
        lost = []
        for r in records:
            partial = r.confounds.get(f"partial_r[{name}]")
            if r.above_chance and r.row != "covariates" and partial is not None and _explains(r.confounds, partial):
                lost.append(f"{r.row} (partial r {_number(partial)})")
        if lost:
            yield Caveat(
                "warning",
                f"explained-by-{name}",
                f"Above chance, yet given {words} nothing is left that can be told from 0: {'; '.join(lost)}.",
                task,
            )
    level = [
        f"{r.row} ({_number(m)})"
        for r in records
        if r.kind == "pretrained"
        and r.above_chance
        and (m := r.confounds.get("over_covariates")) is not None
        and not _better(m)
    ]
    if level:
        yield Caveat(
            "warning",
            "not-beyond-covariates",
            "Not ahead of a model that knows age, sex, site, motion and scan length alone (difference in the headline "
            "metric): "
            f"{'; '.join(level)}.",
            task,
        )


def _of_ranks(task: str, records: Sequence[Record]) -> Iterator[Caveat]:
    """Whether anything that was pretrained is ahead of what was not."""
    pretrained = [r for r in records if r.kind == "pretrained"]
    if not pretrained or records[0].protocol.split == "within-recording":
        return
    silent = [r.row for r in pretrained if r.above_chance is False]
    if silent:
        yield Caveat("info", "no-signal", f"Not above chance, so they read “no signal”: {_listed(silent)}.", task)
    behind = [r for r in pretrained if r.skill is not None and r.skill <= 0]
    if len(behind) == len(pretrained):
        best = behind[0].best_baseline
        yield Caveat(
            "warning",
            "no-gain",
            f"No pretrained row is better than the best control, {best}: on these data nothing speaks for the "
            f"pretraining.",
            task,
        )


def detectable(records: Sequence[Record], evidence: Evidence) -> tuple[float, int, str, str] | None:
    """Return the median detectable difference over pairs of rows of one seed: value, subjects, unit, metric.

    2.8 standard errors of the paired difference: power .8 at 5 %. None where no two rows can be compared.
    """
    seed = min(r.protocol.seed for r in records)
    rows = [(r, p) for r in records if r.protocol.seed == seed and (p := evidence.predictions(r.id)) is not None]
    rows = [(r, p) for r, p in rows if "prediction" in p and p["prediction"].nunique() > len(p["fold"].unique())]
    if not rows:
        return None
    record, held_out = rows[0]
    built = [row_of(record.headline, p) for _, p in rows]
    same = [x for x in built if x.subjects == built[0].subjects]
    paired = Paired(len(same[0].subjects), family=families_of(held_out))
    spans = paired.spans([[pair] for pair in itertools.combinations(same, 2)])
    if not spans:
        return None
    size = POWER * float(np.median([se for *_, se in spans]))
    unit = record.metrics[record.headline].unit
    return size, record.n_subjects, f" {unit}" if unit else "", metric_name(record.headline)


# ---------------------------------------------------------------- words


def _explains(confounds: Mapping[str, MetricRecord], partial: MetricRecord) -> bool:
    """Whether a partial correlation cannot be told from 0 and has lost a good part of what it was.

    The interval alone would blame every covariate where there are few subjects.
    """
    whole = confounds.get("r[truth]")
    if whole is None or whole.value is None or partial.value is None or _apart(partial, above=True):
        return False
    return partial.value <= (1 - EXPLAINED) * whole.value


def _number(m: MetricRecord) -> str:
    if m.value is None:
        return "not defined"
    unit = f" {m.unit}" if m.unit else ""
    return f"{m.value:.2f}{unit}" + (
        f", {m.low:.2f} to {m.high:.2f}" if m.low is not None and m.high is not None else ""
    )


def _above(m: MetricRecord) -> bool:
    return m.low is not None and m.chance is not None and m.low > m.chance


def _apart(m: MetricRecord, *, above: bool = False) -> bool:
    """Whether an interval excludes 0, or lies above it."""
    return m.low is not None and m.high is not None and (m.low > 0 or (m.high < 0 and not above))


def _better(m: MetricRecord) -> bool:
    """Whether the interval of a difference is on the good side of 0."""
    return m.low is not None and m.high is not None and (m.low > 0 if m.higher_is_better else m.high < 0)


def _listed(names: Sequence[str], most: int = 6) -> str:
    names = list(dict.fromkeys(names))  # Seeds of a row have one name.
    shown = ", ".join(names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")

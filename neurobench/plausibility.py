"""Values of a record that cannot be, contradict each other, or would be news."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Literal

from neurobench.bundle_reader import printable
from neurobench.recomputation import same
from neurobench.results import OFF_BUDGET, MetricRecord, Record
from neurobench.scoring import N_PERMUTATIONS

__all__ = ["impossible", "value_range"]

Level = Literal["warning", "error"]

CLOCKS = timedelta(days=1)
"""By which the clock of another machine may be ahead."""

_UNIT_RANGE = re.compile(
    r"auroc|macro_auroc|within_site_auroc|pr_auc|balanced_accuracy|accuracy|sensitivity|specificity|brier|site_leak|recall\[.*|top1"
    r"|top1_within_site|mean_ap"
)
_CORRELATION = re.compile(
    r"pearson_r|mcc|partial_r.*|r\[.*|truth_r\[.*|fc_similarity|(waveform|gfp|topography|across_halves)_r.*"
)
_AT_MOST_ONE = re.compile(r"r2.*|skill.*")
_NOT_NEGATIVE = re.compile(r"mae|peak_latency_error.*|peak_amplitude_ratio.*")


def value_range(name: str) -> tuple[float, float]:
    """Return the lowest and the highest value that a metric can have; infinite where there is no limit."""
    if _UNIT_RANGE.fullmatch(name):
        return 0.0, 1.0
    if name.startswith("delta_r2"):
        # Negative where the prediction goes the wrong way, given the covariates.
        return -1.0, 1.0
    if _CORRELATION.fullmatch(name):
        return -1.0, 1.0
    if _AT_MOST_ONE.fullmatch(name):
        return -math.inf, 1.0
    return (0.0, math.inf) if _NOT_NEGATIVE.fullmatch(name) else (-math.inf, math.inf)


def impossible(record: Record, *, declared: bool = True) -> Iterator[tuple[Level, str]]:
    """Yield what cannot be, or hardly ever is, whatever the predictions were.

    Parameters
    ----------
    record
        Whose numbers.
    declared
        Whether there are no predictions to compute them from again.
    """
    if record.headline not in record.metrics:
        yield "error", f"its headline {printable(record.headline)!r} is none of its metrics"
        return
    for name, m in (*record.metrics.items(), *record.confounds.items()):
        yield from _impossible_metric(printable(name), m)
        # A bootstrap may be shifted away from a value that it is made around (ΔR², average precision): of anything but
        # the headline that is told only where it cannot be computed again.
        if (name == record.headline or declared) and _outside_its_interval(m):
            level: Level = "error" if name == record.headline else "warning"
            text = f"{m.value:.4g} is not in {m.low:.4g} to {m.high:.4g}"
            yield level, f"the interval of {printable(name)} does not hold its value: {text}"
    n = record.n_subjects
    if n < 1 or (record.data is not None and n > record.data.n_subjects):
        yield "error", f"counts {n} subjects of a cohort of {record.data.n_subjects if record.data else 'nobody'}"
    for name, values in record.per_fold.items():
        if len(values) != record.protocol.n_folds:
            yield "error", f"{printable(name)} has {len(values)} folds, and the protocol {record.protocol.n_folds}"
        low, high = value_range(name)
        if any(v is not None and not low - 1e-9 <= v <= high + 1e-9 for v in values):
            yield "error", f"{printable(name)} of a fold lies outside {_between(low, high)}"
    head = record.metrics[record.headline]
    if head.value is None:
        yield "error", "its headline has no value"
    if head.above_chance is not None and record.above_chance != head.above_chance:
        yield "error", "whether it is above chance is said of its headline otherwise than of itself"
    yield from _refitted(record)
    yield from _made(record)
    if record.p_value is not None and not 0 < record.p_value <= 1:
        yield "error", f"a p-value is {record.p_value:.4g}"
    if head.p_value is not None and record.p_value != head.p_value:
        yield "error", "its p-value is not that of its headline"
    if record.skill is not None and record.skill > 1 + 1e-9:
        yield "error", f"its skill is {record.skill:.4g}, and 1 is perfect"
    p = record.pretraining
    scored = None if p is None or "mask budget" in record.apart else p.scored_fraction
    if scored is not None and abs(scored - record.protocol.ratio) > OFF_BUDGET:
        # No error: of short windows no whole number of tokens may be that share.
        text = f"{scored:.1%} of the tokens were scored, not {record.protocol.ratio:.0%}"
        yield "warning", f"its mask is said to keep the common budget, and {text}"
    yield from _relations(record)
    yield from _outlying(record)
    if declared:
        yield from _narrow(record)


def _refitted(record: Record) -> Iterator[tuple[Level, str]]:
    p, n = record.p_value_refit, record.protocol.refit_permutations
    if (p is None) != (n == 0):
        yield "error", f"its probes were refitted {n} times, and it has {'no' if p is None else 'a'} p-value of that"
    elif p is not None:
        steps = p * (n + 1)
        if not 0 < p <= 1 or abs(steps - round(steps)) > 1e-6:
            yield "error", f"p with refitted probes is {p:.6g}, and {n} permutations cannot give that"
        if record.above_chance and p >= 0.05:
            yield "error", f"it is called above chance, and p with refitted probes is {p:.3g}"


def _made(record: Record) -> Iterator[tuple[Level, str]]:
    """Yield what of when it was made, what it took and what was learned cannot be."""
    try:
        written = datetime.strptime(record.written, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError:
        yield "error", f"it says that it was written {printable(record.written)!r}, which is no moment"
    else:
        # Of two records of one row the newer one counts: from the future it would count for ever.
        if written > datetime.now(UTC) + CLOCKS:
            yield "error", f"it was written in the future, {record.written}"
    cost = record.cost
    amounts = (cost.seconds, cost.peak_memory_mb, cost.gpu_peak_memory_mb, cost.host_peak_memory_mb, cost.tokens_per_s)
    if any(x is not None and x < 0 for x in amounts) or (cost.n_parameters is not None and cost.n_parameters < 1):
        yield "error", "what it took is less than nothing"
    p = record.pretraining
    shares = () if p is None else (p.hidden_fraction, p.scored_fraction)
    if any(x is not None and not 0 <= x <= 1 for x in shares):
        yield "error", "a share of hidden or scored tokens is not in 0 to 1"
    if p is not None and any(x is not None and x > 1 for x in (p.r2_own_mask, p.r2_best_filler)):
        yield "error", "an R² of its pretraining is above 1"
    data = record.data
    if data is not None and (data.n_recordings < data.n_subjects or data.n_units < 1 or not data.sfreq > 0):
        yield (
            "error",
            (
                f"speaks of {data.n_recordings} recordings of {data.n_subjects} people, {data.n_units} units at "
                f"{data.sfreq:.4g} Hz"
            ),
        )
    if p is not None and p.learned is not None:
        reached = None if p.r2_own_mask is None or p.r2_best_filler is None else p.r2_own_mask >= p.r2_best_filler
        if p.learned != reached:
            yield "error", "whether it reached the best filler is said otherwise than its R² and the filler's are"


def _between(low: float, high: float) -> str:
    return f"{low:g} to {high:g}"


def _impossible_metric(name: str, m: MetricRecord) -> Iterator[tuple[Level, str]]:
    low, high = value_range(name)
    if name == "over_covariates":
        low, high = -math.inf, math.inf
    for what, value in (("", m.value), ("lower end of ", m.low), ("upper end of ", m.high)):
        if value is not None and not low - 1e-9 <= value <= high + 1e-9:
            yield "error", f"{what}{name} is {value:.4g}: only {_between(low, high)} can be"
    if (m.low is None) != (m.high is None):
        yield "error", f"the interval of {name} has one end"
    elif m.low is not None and m.high is not None:
        if m.low > m.high:
            yield "error", f"the interval of {name} is upside down: {m.low:.4g} to {m.high:.4g}"
        elif m.value is None:
            yield "error", f"{name} has an interval and no value"
    if m.p_value is not None:
        steps = m.p_value * (N_PERMUTATIONS + 1)
        if not 0 < m.p_value <= 1 or abs(steps - round(steps)) > 1e-6:
            yield "error", f"p of {name} is {m.p_value:.6g}, and {N_PERMUTATIONS} permutations cannot give that"
        if m.above_chance and m.p_value >= 0.05:
            yield "error", f"{name} is called above chance at p = {m.p_value:.3g}"
    if m.above_chance and m.chance is not None and m.value is not None:
        ahead = m.value > m.chance if m.higher_is_better else m.value < m.chance
        if not ahead:
            yield "error", f"{name} is called above chance and is not: {m.value:.4g}, chance {m.chance:.4g}"


def _outside_its_interval(m: MetricRecord) -> bool:
    if m.value is None or m.low is None or m.high is None or m.low > m.high:
        return False
    return not m.low - 1e-9 <= m.value <= m.high + 1e-9


def _narrow(record: Record) -> Iterator[tuple[Level, str]]:
    """Yield intervals that so few people hardly give: shares, and areas under the ROC curve (Hanley & McNeil 1982)."""
    n = record.n_subjects
    for name in ("accuracy", "balanced_accuracy", "auroc"):
        m = record.metrics.get(name)
        if m is None or m.value is None or m.low is None or m.high is None or n < 20 or not 0.05 <= m.value <= 0.95:
            continue
        v = m.value
        variance = v * (1 - v) / n
        if name == "auroc":
            # Of two classes of equal size, where it is smallest.
            ahead = v / (2 - v) + 2 * v**2 / (1 + v) - 2 * v**2
            variance = (v * (1 - v) + (n / 2 - 1) * ahead) / (n / 2) ** 2
        if m.high - m.low < 0.5 * 2 * 1.96 * math.sqrt(variance):
            yield "warning", f"the interval of {name} is less than half as wide as one of {n} subjects"


def _relations(record: Record) -> Iterator[tuple[Level, str]]:
    """Yield metrics that contradict each other."""
    value = {name: m.value for name, m in record.metrics.items() if m.value is not None}
    mae = record.metrics.get("mae")
    if mae is not None and mae.value is not None and mae.chance and "skill" in value:
        implied = 1 - mae.value / mae.chance
        if not same(value["skill"], implied, 1e-6):
            yield "error", f"skill is {value['skill']:.4g}, and mae and its chance level give {implied:.4g}"
    if {"balanced_accuracy", "sensitivity", "specificity"} <= value.keys():
        implied = (value["sensitivity"] + value["specificity"]) / 2
        if not same(value["balanced_accuracy"], implied, 1e-6):
            yield "error", f"balanced accuracy is {value['balanced_accuracy']:.4g}, and its halves give {implied:.4g}"
    if "accuracy" in value:
        right = value["accuracy"] * record.n_subjects
        if abs(right - round(right)) > 1e-6 * max(1.0, right):
            yield "error", f"accuracy is {value['accuracy']:.6g}: no share of {record.n_subjects} subjects is"
    # Whatever the threshold, the ROC curve goes through its point and never falls.
    if {"auroc", "sensitivity", "specificity"} <= value.keys():
        a, b = value["sensitivity"], value["specificity"]
        low, high = a * b, 1 - (1 - a) * (1 - b)
        if not low - 1e-9 <= value["auroc"] <= high + 1e-9:
            text = f"its sensitivity and specificity leave {low:.4g} to {high:.4g}"
            yield "error", f"AUROC is {value['auroc']:.4g}, and {text}"
    for name in ("mae", "brier", "accuracy"):
        folds = [v for v in record.per_fold.get(name, ()) if v is not None]
        if name in value and folds and not min(folds) - 1e-9 <= value[name] <= max(folds) + 1e-9:
            text = f"{min(folds):.4g} to {max(folds):.4g}"
            yield "error", f"{name} is {value[name]:.4g}, a mean over people, and that of single folds is {text}"
    recalls = [v for name, v in value.items() if name.startswith("recall[")]
    if recalls and "balanced_accuracy" in value and "sensitivity" not in value:
        implied = sum(recalls) / len(recalls)
        if not same(value["balanced_accuracy"], implied, 1e-6):
            yield "error", f"balanced accuracy is {value['balanced_accuracy']:.4g}, and the recalls give {implied:.4g}"


def _outlying(record: Record) -> Iterator[tuple[Level, str]]:
    """Yield what would be news, and more often is a leak."""
    head = record.metrics[record.headline]
    if head.value is None or record.n_subjects < 10:
        return
    if record.headline == "auroc" and head.value > 0.99:
        yield "warning", f"AUROC is {head.value:.4g}: look for the target among the features"
    if record.headline == "mae" and head.chance and head.value < 0.1 * head.chance:
        yield "warning", f"MAE is {head.value:.3g}, a tenth of chance or less: look for the target among the features"
    r2 = record.metrics.get("r2")
    if r2 is not None and r2.value is not None and r2.value > 0.95:
        yield "warning", f"R² is {r2.value:.3g}: look for the target or the hidden signal among the inputs"
    if head.low is not None and head.high is not None and record.n_subjects < 500:
        width = head.high - head.low
        if record.kind != "filler" and width == 0 and head.chance != head.value:
            yield "warning", "its interval has no width"

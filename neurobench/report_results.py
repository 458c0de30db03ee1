"""The tables of a report: scores of a task, all tasks together, and what backbones draw on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pandas as pd

from neurobench.comparisons import Comparisons
from neurobench.evidence import Evidence
from neurobench.interpretation import expert_loads, stability
from neurobench.over_tasks import across_tasks, transfer
from neurobench.results import MetricRecord, Record
from neurobench.tables import (
    TextTable,
    comparison_cells,
    count,
    decimals,
    duration,
    metric_name,
    missing,
    p_value,
    rank_cells,
    share,
)

__all__ = [
    "BELIEF",
    "CONFOUNDS",
    "EXPERTS",
    "across",
    "alignment_table",
    "comparisons",
    "confounds_table",
    "details_table",
    "experts_table",
    "in_one_line",
    "scores_table",
    "separated",
    "stability_table",
]

KINDS = {
    "pretrained": "pretrained",
    "given": "as given, not pretrained here",
    "untrained": "untrained (control)",
    "baseline": "baselines",
    "filler": "trivial fillers",
}

CONFOUNDS = {
    "r[truth]": "r of prediction and target",
    "site_leak": "site told from the features (balanced accuracy)",
    "over_covariates": "difference to covariates alone",
    "partial_r[all]": "partial r given all covariates",
    "delta_r2[all]": "ΔR² over all covariates",
    "partial_r[age]": "partial r given age",
    "partial_r[sex]": "partial r given sex",
    "partial_r[site]": "partial r given site",
    "partial_r[mean_fd]": "partial r given motion",
    "partial_r[duration_s]": "partial r given scan length",
    "r[age]": "r of the prediction with age",
    "r[mean_fd]": "r of the prediction with motion",
    "r[duration_s]": "r of the prediction with scan length",
    "truth_r[age]": "r of the target with age",
    "truth_r[mean_fd]": "r of the target with motion",
    "truth_r[duration_s]": "r of the target with scan length",
}
"""What is known of confounds, in the order in which it is shown."""


EXPERTS = (
    "How evenly the experts of a mixture are used on held-out subjects, nothing hidden; means over folds. The load is "
    "the share of all units that each expert has; its entropy is highest where all have the same. Where a unit's gates "
    "have as much entropy as the load, all units use the experts alike."
)

BELIEF = (
    "Spearman's rank correlation over groups of units, of what is lost without each. An attribution is worth reading "
    "where it comes out alike over seeds and folds (near 1), and unlike with randomised weights and with randomised "
    "labels (well below that); where it goes with the groups' sizes it may say no more than that many units are missed "
    "more than few. A dash: one seed, too few groups, or no such control."
)

AGREEMENT = {
    "over_seeds": "ρ over seeds",
    "over_folds": "ρ over folds",
    "randomised_weights": "ρ with randomised weights",
    "randomised_labels": "ρ with randomised labels",
    "group_size": "ρ with the groups' sizes",
}


# ---------------------------------------------------------------- a task


def _ordered(rows: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Yield (kind, row, its seeds), the best of each kind first."""
    better = -1.0 if bool(rows["higher_is_better"].iloc[0]) else 1.0
    for kind in KINDS:
        own = rows[rows["kind"] == kind]
        means = own.groupby("row")["score"].mean().fillna(float("inf") * better)
        for row in (better * means).sort_values(kind="stable").index:
            yield kind, str(row), own[own["row"] == row]


def comparisons(found: Comparisons) -> Iterator[tuple[str, TextTable | None]]:
    """Yield every sentence with the table that it rests on."""
    for by, sentence in found.sentences.items():
        own = found.table[found.table["by"] == by]
        yield sentence, TextTable(*comparison_cells(own)) if len(own) else None


def scores_table(rows: pd.DataFrame, ranks: Mapping[str, tuple[int, int]]) -> TextTable:
    """Return every row of a task with its score, interval and rank, the best of each kind first."""
    places = decimals(
        [float(v) for v in rows["low"] if not missing(v)] or [0.0],
        [float(v) for v in rows["high"] if not missing(v)] or [0.0],
    )
    n_seeds = rows["seed"].nunique()
    columns = ["row", metric_name(str(rows["metric"].iloc[0])), "95 % interval"]
    columns += ["s.d. over seeds"] if n_seeds > 1 else []
    columns += ["rank", "skill", "p", "signal", "parameters", "time"]
    lines: list[list[str]] = []
    headings: dict[int, str] = {}
    last = ""
    for kind, name, own in _ordered(rows):
        if kind != last:
            headings[len(lines)] = last = kind
        mean = own["score"].mean()
        low, high = own["low"].min(), own["high"].max()
        above = [bool(v) for v in own["above_chance"] if not missing(v)]
        stuck = any(not missing(v) and not v for v in own["learned"])
        apart = str(own["apart"].iloc[0]) if "apart" in own else ""
        line = [
            name + (" †" if stuck else "") + (" ‡" if apart else ""),
            f"{mean:.{places}f}" if pd.notna(mean) else "–",
            f"{low:.{places}f} to {high:.{places}f}" if pd.notna(low) else "–",
        ]
        if n_seeds > 1:
            line.append(f"{own['score'].std():.{places + 1}f}" if len(own) > 1 else "–")
        skill, p = own["skill"].mean(), own["p_value"].max()
        first, last_rank = ranks.get(name, (0, 0))
        line += [
            "–" if not first else str(first) if first == last_rank else f"{first}–{last_rank}",
            f"{skill:+.2f}" if pd.notna(skill) else "–",
            p_value(p),
            "" if not above else "above chance" if all(above) else "no signal",
            _parameters(own) + (" ‡" if "parameter budget" in apart else ""),
            duration(float(own["seconds"].sum())),
        ]
        lines.append(line)
    return TextTable(columns, lines, {i: KINDS[k] for i, k in headings.items()})


def _parameters(rows: pd.DataFrame) -> str:
    """Return how many parameters a backbone has, and where it was trained on the task what share of them that took."""
    known = [float(v) for v in rows["trained_share"] if not missing(v)] if "trained_share" in rows else []
    trained = f" ({share(sum(known) / len(known))} trained)" if known else ""
    return count(rows["n_parameters"].mean()) + trained or "–"


def details_table(records: Sequence[Record]) -> TextTable:
    """Return every metric of every row of a task."""
    names = list(dict.fromkeys(name for r in records for name in r.metrics))
    seeds = len({r.protocol.seed for r in records}) > 1
    rows = [
        [r.row + (f" · seed {r.protocol.seed}" if seeds else ""), *(_interval(r.metrics.get(name)) for name in names)]
        for r in records
    ]
    titles = [metric_name(n) + _unit(next(r.metrics[n] for r in records if n in r.metrics)) for n in names]
    return TextTable(["row", *titles], rows)


def confounds_table(records: Sequence[Record]) -> TextTable | None:
    """Return what is known of confounds; None where nothing is."""
    names = [n for n in CONFOUNDS if any(n in r.confounds for r in records)]
    shown = [r for r in records if r.confounds]
    if not names:
        return None
    seeds = len({r.protocol.seed for r in shown}) > 1
    rows = [
        [r.row + (f" · seed {r.protocol.seed}" if seeds else ""), *(_interval(r.confounds.get(name)) for name in names)]
        for r in shown
    ]
    return TextTable(["row", *(CONFOUNDS[n] for n in names)], rows)


def _interval(m: MetricRecord | None) -> str:
    if m is None or m.value is None:
        return "–"
    places = decimals([m.low], [m.high]) if m.low is not None and m.high is not None else 2
    value = f"{m.value:.{places}f}"
    return value if m.low is None else f"{value} ({m.low:.{places}f} to {m.high:.{places}f})"


def _unit(m: MetricRecord) -> str:
    return f" ({m.unit})" if m.unit else ""


def in_one_line(task: str, rows: pd.DataFrame) -> str:
    """Return the task's best pretrained row beside its best control, in words."""
    metric, unit = metric_name(str(rows["metric"].iloc[0])), str(rows["unit"].iloc[0])
    higher = bool(rows["higher_is_better"].iloc[0])
    shown = []
    for words, kinds in (("best pretrained", ("pretrained",)), ("best control", ("baseline", "untrained", "filler"))):
        own = rows[rows["kind"].isin(kinds)].dropna(subset=["score"])
        own = own[own["apart"] == ""] if "apart" in own else own
        if len(own):
            means = own.groupby("row")["score"].mean()
            name = str(means.idxmax() if higher else means.idxmin())
            one = own[own["row"] == name]
            low, high = one["low"].min(), one["high"].max()
            interval = f" ({low:.3g} to {high:.3g})" if pd.notna(low) else ""
            above = [bool(v) for v in one["above_chance"] if not missing(v)]
            silent = "" if not above or all(above) else ", no signal"
            shown.append(f"{words} {name} {means[name]:.3g}{interval}{silent}")
    return f"{task}: {metric}{f' in {unit}' if unit else ''}: " + "; ".join(shown)


def separated(found: Comparisons) -> str:
    """Return in a few words what the paired comparisons of a task come to."""
    said = []
    for by, words in (("backbone", "backbones"), ("mask", "masks"), ("untrained", "pretrained from untrained")):
        own = found.table[found.table["by"] == by]
        if len(own):
            n = int((own["winner"] != "").sum())
            said.append(f"{words} {f'{n} of {len(own)} separated' if n else 'not separated'}")
    return ". Paired: " + ", ".join(said) if said else ""


# ---------------------------------------------------------------- all tasks, and what backbones draw on


def across(found: Sequence[Comparisons]) -> Iterator[tuple[str, TextTable | None]]:
    """Yield what several tasks say together: mean ranks, and how reconstruction goes with prediction."""
    for a in across_tasks(found):
        yield a.sentence, TextTable(*rank_cells(a.table))
    for _, sentence in transfer(found):
        yield sentence, None


def stability_table(evidence: Evidence) -> TextTable | None:
    """Return how well attributions agree with themselves and with their controls, one row a (task, row)."""
    rows = [
        [
            task,
            str(r["row"]),
            str(r["n_groups"]),
            str(r["n_seeds"]),
            *("–" if missing(r[c]) else f"{r[c]:+.2f}" for c in AGREEMENT),
        ]
        for task, _ in evidence.tasks()
        for r in stability(evidence, task).to_dict("records")
    ]
    return TextTable(["task", "row", "groups", "seeds", *AGREEMENT.values()], rows) if rows else None


def experts_table(evidence: Evidence) -> TextTable | None:
    """Return how evenly experts are used, one row a row that has some."""
    rows = [
        [
            str(r["row"]),
            str(r["n_experts"]),
            f"{r['load_bits']:.2f} of {r['most_bits']:.2f}",
            f"{r['unit_bits']:.2f}",
            f"{r['busiest']:.0%}",
        ]
        for task, _ in evidence.tasks()
        for r in expert_loads(evidence, task).to_dict("records")
    ]
    columns = ["row", "experts", "entropy of the load (bits)", "of a unit's gates (bits)", "busiest expert"]
    return TextTable(columns, rows) if rows else None


def alignment_table(evidence: Evidence, records: Sequence[Record]) -> TextTable | None:
    """Return what backbones draw on beside where a response is expected, the untrained ones as the control."""
    rows = []
    seeds = len({r.protocol.seed for r in records}) > 1
    for r in records:
        table = evidence.frame(r.id, "alignment") if r.status == "ok" else None
        for line in () if table is None else table.to_dict("records"):
            sensors = f"{line['n_expected']} of {line['n_units']}"
            name = r.row + (f" · seed {r.protocol.seed}" if seeds else "")
            rows.append(
                [name, str(line["state"]), f"{line['auroc']:.2f}", p_value(line["p"]), sensors, str(line["null"])]
            )
    columns = ["row", "state", "AUROC", "p", "sensors expected", "null"]
    return TextTable(columns, rows) if rows else None

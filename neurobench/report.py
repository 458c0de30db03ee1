"""From an output folder to a report that answers a reviewer's questions: HTML in one file, Markdown, CSV, pictures.

Everything is read from records and evidence; nothing is computed that a record does not hold, except differences
between rows. What is said in words comes from :mod:`neurobench.caveats`.
"""

from __future__ import annotations

import base64
import io
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

import neurobench
from neurobench.caveats import Caveat, caveats
from neurobench.comparisons import Comparisons, across_tasks, compare_all, transfer
from neurobench.contracts import Drawing
from neurobench.errors import ConfigError
from neurobench.evidence import Evidence
from neurobench.interpretation import expert_loads, stability
from neurobench.objectives import Latent, parse_objective
from neurobench.plugins import Kind, Registry
from neurobench.records import DatasetCard
from neurobench.results import MetricRecord, Record, load_evidence, read_record, records_table
from neurobench.runs import partial
from neurobench.store import atomic_write, disk_errors
from neurobench.tables import (
    comparison_cells,
    count,
    decimals,
    duration,
    metric_name,
    missing,
    p_value,
    rank_cells,
    share,
    spreadsheet_cell,
)

__all__ = ["Report", "Section", "TaskSection", "build_report", "write_report"]

KINDS = {
    "pretrained": "pretrained",
    "given": "as given, not pretrained here",
    "untrained": "untrained (control)",
    "baseline": "baselines",
    "filler": "trivial fillers",
}

METHODS = (
    "Intervals: percentile bootstrap over subjects, 2,000 draws (Efron & Tibshirani 1993, doi:10.1201/9780429246593).",
    "Permutation p-values (b + 1) / (m + 1) (Phipson & Smyth 2010, doi:10.2202/1544-6115.1585), labels permuted within "
    "sites against fixed held-out predictions; between rows, predictions of random subjects exchanged.",
    "Many comparisons of one task: Holm 1979 (Scandinavian Journal of Statistics 6:65–70).",
    "Dependence between folds, as a check: Nadeau & Bengio 2003, doi:10.1023/A:1024068626366.",
)

OCCLUSION = (
    "Occlusion of groups: Zeiler & Fergus 2014, doi:10.1007/978-3-319-10590-1_53; beside randomised weights and "
    "randomised labels: Adebayo et al. 2018, arXiv:1810.03292; agreement over seeds, folds and with the controls: "
    "Spearman's rank correlation."
)
IMPORTANCE = (
    "What a network draws on: attention rollout (Abnar & Zuidema 2020, doi:10.18653/v1/2020.acl-main.385), "
    "of scans Ali et al. 2024, arXiv:2403.01590; why it is no explanation: Jain & Wallace 2019, "
    "doi:10.18653/v1/N19-1357."
)
ALIGNMENT = (
    "Expected sensors against turned helmets: Alexander-Bloch et al. 2018, doi:10.1016/j.neuroimage.2018.05.070; one "
    "to one: Markello & Misic 2021, doi:10.1016/j.neuroimage.2021.118052."
)
HARMONISED = (
    "Sites taken out inside folds: the model of ComBat (Johnson et al. 2007, doi:10.1093/biostatistics/kxj037; Fortin "
    "et al. 2018, doi:10.1016/j.neuroimage.2017.11.024) without its empirical Bayes step."
)
MNI = "Slices and glass brains: ICBM 152 template (Fonov et al. 2011, doi:10.1016/j.neuroimage.2010.07.033)."
NOCEILING = "Noise ceiling: split halves with Spearman–Brown (Spearman 1910; Brown 1910)."

ATLASES = (
    (
        frozenset({"Precentral_L", "Calcarine_L", "Heschl_L", "Vermis_3"}),
        "Atlas: the names of the regions are those of AAL (Tzourio-Mazoyer et al. 2002, doi:10.1006/nimg.2001.0978); "
        "of its third version also Rolls et al. 2020, doi:10.1016/j.neuroimage.2019.116189.",
    ),
)
"""Names that tell an atlas, and what to cite for it."""

OTHER_ATLAS = "Atlas: not told by the names of the regions; cite the one that the series were taken with."

SOFTWARE = {
    "torch": "PyTorch: Paszke et al. 2019, arXiv:1912.01703",
    "scikit-learn": "scikit-learn: Pedregosa et al. 2011, Journal of Machine Learning Research 12:2825–2830",
    "nilearn": "Nilearn: Abraham et al. 2014, doi:10.3389/fninf.2014.00014",
    "mne": "MNE-Python: Gramfort et al. 2013, doi:10.3389/fnins.2013.00267",
    "matplotlib": "Matplotlib: Hunter 2007, doi:10.1109/MCSE.2007.55",
    "numpy": "NumPy: Harris et al. 2020, doi:10.1038/s41586-020-2649-2",
    "scipy": "SciPy: Virtanen et al. 2020, doi:10.1038/s41592-019-0686-2",
}
"""What to cite for the packages that a run or a picture used."""

DPI = 160


@dataclass(frozen=True, eq=False)
class Grid:
    """A table of text: columns, rows, and which rows start a new block under a heading."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    headings: Mapping[int, str] = field(default_factory=dict)
    bold: frozenset[int] = frozenset()


@dataclass(frozen=True, eq=False)
class Picture:
    """A drawing as PNG."""

    name: str
    title: str
    caption: str
    alt: str
    section: str
    png: bytes

    @property
    def data_uri(self) -> str:
        """The picture as it stands in HTML."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


@dataclass(frozen=True, eq=False)
class TaskSection:
    """One task of a cohort."""

    task: str
    heading: str
    results: Grid
    details: Grid
    confounds: Grid | None
    notes: Sequence[str]
    caveats: Sequence[Caveat]
    pictures: Sequence[Picture]
    comparisons: Sequence[tuple[str, Grid | None]] = ()

    @property
    def has_apart(self) -> bool:
        """Whether any row is shown without being ranked with the others."""
        return any(line[0].endswith("‡") for line in self.results.rows)


@dataclass(frozen=True, eq=False)
class Section:
    """One cohort under one protocol."""

    anchor: str
    title: str
    dataset: str
    simulated: bool
    summary: Sequence[str]
    caveats: Sequence[Caveat]
    cohort: Sequence[tuple[str, str]]
    flow: Grid
    sites: Grid | None
    columns: Grid
    protocol: Sequence[tuple[str, str]]
    tasks: Sequence[TaskSection]
    pictures: Sequence[Picture]
    alignment: Grid | None = None
    across: Sequence[tuple[str, Grid | None]] = ()
    stability: Grid | None = None
    experts: Grid | None = None


@dataclass(frozen=True, eq=False)
class Report:
    """All that a report shows."""

    out: str
    written: str
    version: str
    sections: Sequence[Section]
    commands: Sequence[str]
    software: Sequence[tuple[str, str]]
    components: Grid
    citations: Sequence[str]
    methods: Sequence[str]
    restricted: Sequence[str]
    failed: Sequence[str]
    partial: Sequence[str]


# ---------------------------------------------------------------- building


def build_report(out: Path, registry: Registry, *, figures: bool = True) -> Report:
    """Read an output folder and say what it holds.

    Parameters
    ----------
    out
        Output folder of one or more runs.
    registry
        Figures to draw, and what components cite.
    figures
        Whether to draw.

    Raises
    ------
    StoreError, DataError
        If the folder holds no records, or one that was changed.
    """
    sections, everything = [], []
    cohorts = load_evidence(out)
    every = compare_all(out)
    compared = {(c.dataset, c.protocol, c.task): c for c in every}
    for n, evidence in enumerate(cohorts):
        records = [read_record(Path(p)) for p in evidence.table["record"]]
        everything += records
        sections.append(_section(n, evidence, records, registry if figures else None, compared))
    if not sections:
        raise ConfigError(
            f"{out} holds failed rows only: there is nothing to report.",
            next_step="See the errors: `neurobench run` with the same options prints them again.",
        )
    environments = [r.environment for r in everything]
    return Report(
        out=out.resolve().name,
        written=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        version=neurobench.__version__,
        sections=sections,
        commands=list(dict.fromkeys(e["command"] for e in environments)),
        software=_software(environments),
        components=_components(everything),
        citations=list(_citations(everything, cohorts, registry)),
        methods=list(_methods(everything, cohorts)),
        failed=_failed(out),
        partial=partial(out),
        restricted=sorted({s.title for s, e in zip(sections, cohorts, strict=True) if _restricted(e)}),
    )


def _failed(out: Path) -> list[str]:
    """Return what failed with its whole cohort, so that it has no section of its own."""
    table = records_table(out)
    lost = table[(table["fingerprint"] == "") & (table["status"] == "failed")]
    return [f"{dataset}: {error}" for dataset, error in dict.fromkeys(zip(lost["dataset"], lost["error"], strict=True))]


def _restricted(evidence: Evidence) -> bool:
    return evidence.source == "real" and evidence.cohort["card"]["may_leave"] == "aggregates"


def _section(
    n: int,
    evidence: Evidence,
    records: Sequence[Record],
    registry: Registry | None,
    compared: Mapping[tuple[str, str, str], Comparisons],
) -> Section:
    said = caveats(evidence, records)
    pictures, broken = _pictures(evidence, registry) if registry is not None else ([], [])
    said += broken
    tasks = [_task(task, rows, records, said, pictures, evidence, compared) for task, rows in evidence.tasks()]
    cohort = evidence.cohort
    return Section(
        anchor=f"cohort-{n + 1}",
        title=evidence.title,
        dataset=evidence.dataset,
        simulated=evidence.source == "simulated",
        summary=[
            _one_line(task, rows) + _separated(compared[evidence.dataset, str(rows["protocol"].iloc[0]), task])
            for task, rows in evidence.tasks()
        ],
        caveats=[c for c in said if not c.task],
        cohort=list(_facts(evidence)),
        flow=_flow(cohort, records),
        sites=_sites(cohort),
        columns=_participants(cohort),
        protocol=list(_protocol(records[0])),
        tasks=tasks,
        pictures=[p for p in pictures if not p.section.startswith("task:")],
        alignment=_alignment(evidence, records),
        across=list(_across([compared[evidence.dataset, str(r["protocol"].iloc[0]), t] for t, r in evidence.tasks()])),
        stability=_stability(evidence),
        experts=_experts(evidence),
    )


def _across(found: Sequence[Comparisons]) -> Iterator[tuple[str, Grid | None]]:
    """Yield what several tasks say together: mean ranks, and how reconstruction goes with prediction."""
    for a in across_tasks(found):
        yield a.sentence, Grid(*rank_cells(a.table))
    for _, sentence in transfer(found):
        yield sentence, None


def _stability(evidence: Evidence) -> Grid | None:
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
    return Grid(["task", "row", "groups", "seeds", *AGREEMENT.values()], rows) if rows else None


def _experts(evidence: Evidence) -> Grid | None:
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
    return Grid(columns, rows) if rows else None


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


def _alignment(evidence: Evidence, records: Sequence[Record]) -> Grid | None:
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
    return Grid(columns, rows) if rows else None


def _pictures(evidence: Evidence, registry: Registry) -> tuple[list[Picture], list[Caveat]]:
    """Draw everything; a figure that fails is said, and the others go on."""
    found: list[Picture] = []
    broken: list[Caveat] = []
    for name, cls in registry.figures.items():
        try:
            found += [_picture(d) for d in cls().draw(evidence)]
        except Exception as error:  # whatever a plugin raises must not cost the report
            broken.append(Caveat("warning", "figure-failed", f"Figure {name} failed: {type(error).__name__}: {error}"))
    return found, broken


def _picture(drawing: Drawing) -> Picture:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(drawing.figure)
    buffer = io.BytesIO()
    drawing.figure.savefig(buffer, format="png", dpi=DPI, facecolor="white")
    return Picture(drawing.name, drawing.title, drawing.caption, drawing.alt, drawing.section, buffer.getvalue())


# ---------------------------------------------------------------- a task


def _task(
    task: str,
    rows: pd.DataFrame,
    records: Sequence[Record],
    said: Sequence[Caveat],
    pictures: Sequence[Picture],
    evidence: Evidence,
    compared: Mapping[tuple[str, str, str], Comparisons],
) -> TaskSection:
    own = [r for r in records if r.task.label == task and r.status == "ok"]
    head = rows.iloc[0]
    comparison = compared[evidence.dataset, str(head["protocol"]), task]
    facts = [metric_name(str(head["metric"])) + (f" in {head['unit']}" if head["unit"] else "")]
    facts.append("higher is better" if head["higher_is_better"] else "lower is better")
    if not missing(head["chance"]):
        facts.append(f"chance {head['chance']:.3g}")
    facts.append(f"n = {int(rows['n_subjects'].max())} held-out subjects")
    return TaskSection(
        task=task,
        heading=" · ".join(facts),
        results=_results(rows, comparison.ranks),
        details=_details(own),
        confounds=_confounds(own),
        notes=list(dict.fromkeys(note for r in own if r.kind != "filler" for note in r.notes)),
        caveats=[c for c in said if c.task == task],
        pictures=[p for p in pictures if p.section == f"task:{task}"],
        comparisons=list(_comparisons(comparison)),
    )


def _ordered(rows: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Yield (kind, row, its seeds), the best of each kind first."""
    better = -1.0 if bool(rows["higher_is_better"].iloc[0]) else 1.0
    for kind in KINDS:
        own = rows[rows["kind"] == kind]
        means = own.groupby("row")["score"].mean().fillna(float("inf") * better)
        for row in (better * means).sort_values(kind="stable").index:
            yield kind, str(row), own[own["row"] == row]


def _comparisons(found: Comparisons) -> Iterator[tuple[str, Grid | None]]:
    """Yield every sentence with the table that it rests on."""
    for by, sentence in found.sentences.items():
        own = found.table[found.table["by"] == by]
        yield sentence, Grid(*comparison_cells(own)) if len(own) else None


def _results(rows: pd.DataFrame, ranks: Mapping[str, tuple[int, int]]) -> Grid:
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
    return Grid(columns, lines, {i: KINDS[k] for i, k in headings.items()})


def _parameters(rows: pd.DataFrame) -> str:
    """Return how many parameters a backbone has, and where it was trained on the task what share of them that took."""
    known = [float(v) for v in rows["trained_share"] if not missing(v)] if "trained_share" in rows else []
    trained = f" ({share(sum(known) / len(known))} trained)" if known else ""
    return count(rows["n_parameters"].mean()) + trained or "–"


def _details(records: Sequence[Record]) -> Grid:
    names = list(dict.fromkeys(name for r in records for name in r.metrics))
    seeds = len({r.protocol.seed for r in records}) > 1
    rows = [
        [r.row + (f" · seed {r.protocol.seed}" if seeds else ""), *(_interval(r.metrics.get(name)) for name in names)]
        for r in records
    ]
    titles = [metric_name(n) + _unit(next(r.metrics[n] for r in records if n in r.metrics)) for n in names]
    return Grid(["row", *titles], rows)


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


def _confounds(records: Sequence[Record]) -> Grid | None:
    names = [n for n in CONFOUNDS if any(n in r.confounds for r in records)]
    shown = [r for r in records if r.confounds]
    if not names:
        return None
    seeds = len({r.protocol.seed for r in shown}) > 1
    rows = [
        [r.row + (f" · seed {r.protocol.seed}" if seeds else ""), *(_interval(r.confounds.get(name)) for name in names)]
        for r in shown
    ]
    return Grid(["row", *(CONFOUNDS[n] for n in names)], rows)


def _interval(m: MetricRecord | None) -> str:
    if m is None or m.value is None:
        return "–"
    places = decimals([m.low], [m.high]) if m.low is not None and m.high is not None else 2
    value = f"{m.value:.{places}f}"
    return value if m.low is None else f"{value} ({m.low:.{places}f} to {m.high:.{places}f})"


def _unit(m: MetricRecord) -> str:
    return f" ({m.unit})" if m.unit else ""


def _one_line(task: str, rows: pd.DataFrame) -> str:
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


def _separated(found: Comparisons) -> str:
    """Return in a few words what the paired comparisons of a task come to."""
    said = []
    for by, words in (("backbone", "backbones"), ("mask", "masks"), ("untrained", "pretrained from untrained")):
        own = found.table[found.table["by"] == by]
        if len(own):
            n = int((own["winner"] != "").sum())
            said.append(f"{words} {f'{n} of {len(own)} separated' if n else 'not separated'}")
    return ". Paired: " + ", ".join(said) if said else ""


# ---------------------------------------------------------------- the cohort and the protocol


def _facts(evidence: Evidence) -> Iterator[tuple[str, str]]:
    c, card = evidence.cohort, evidence.cohort["card"]
    yield "dataset", f"{card['title']} ({evidence.dataset})"
    yield (
        "source",
        "SIMULATED" + (f", variant {c['variant']}" if c["variant"] else "") if c["source"] == "simulated" else "real",
    )
    yield "subjects, recordings", f"{c['n_subjects']}, {c['n_recordings']}"
    yield "states", ", ".join(f"{k} × {n}" for k, n in c["states"].items())
    yield "recording length", _spread(c["recording_s"], " s")
    yield "units", f"{c['n_units']} ({c['signal']}); groups: {c['group_source']}"
    yield "sampling", f"{c['sfreq']:.4g} Hz"
    yield "signal", "; ".join(_alike(c["provenance"]))
    yield "revision", card["revision"]
    if card["inclusion"]:
        yield "inclusion", card["inclusion"]
    yield "licence", card["licence"]
    yield "access", card["access"]
    for trap in card["traps"]:
        yield "known trap", trap


def _spread(s: Mapping[str, float], unit: str = "") -> str:
    return f"{s['mean']:.4g} ± {s['sd']:.3g}{unit} ({s['low']:.4g} to {s['high']:.4g})"


_SHARE = re.compile(r"(\d+(?:\.\d+)?)\s?%")


def _alike(lines: Sequence[str]) -> list[str]:
    """Return lines that differ in one percentage only as one line with their range: one a recording is no reading."""
    ranges: dict[str, list[float]] = {}
    for line in lines:
        found = _SHARE.findall(line)
        key = _SHARE.sub("{} %", line) if len(found) == 1 else line
        ranges.setdefault(key, []).extend(float(f) for f in found if len(found) == 1)
    said = []
    for key, values in ranges.items():
        low, high = (min(values), max(values)) if values else (0.0, 0.0)
        said.append(key.replace("{}", f"{low:g}" if low == high else f"{low:g} to {high:g}") if values else key)
    return said


def _flow(cohort: Mapping[str, Any], records: Sequence[Record]) -> Grid:
    """Return who was found, left out with the reason, used, and scored on each task."""
    lost = [f for f in cohort["findings"] if f["level"] == "error"]
    kept = [f for f in cohort["findings"] if f["level"] != "error"]
    hidden = "single cases are not shown; `neurobench data check` lists them on the machine that holds the data"
    rows = [["left out", f["code"], str(f["n"]), f["example"] or hidden] for f in lost]
    if not lost:
        rows.append(["left out", "nobody", "0", "no recording was left out while reading"])
    rows.append(
        ["used", "recordings", str(cohort["n_recordings"]), f"of {cohort['n_subjects']} subjects, in every pretraining"]
    )
    words = {"warning": "used, with a warning", "info": "noted"}
    rows += [[words[f["level"]], f["code"], str(f["n"]), f["example"] or hidden] for f in kept]
    for task in dict.fromkeys(r.task.label for r in records):
        n = max(r.n_subjects for r in records if r.task.label == task)
        without = cohort["n_subjects"] - n
        why = f"{without} without what the task needs (its target, or enough events)" if without > 0 else "everybody"
        rows.append(["scored", task, f"{n} subjects", why])
    return Grid(["step", "what", "n", "why"], rows)


def _sites(cohort: Mapping[str, Any]) -> Grid | None:
    if not cohort["sites"]:
        return None
    names = [n for n in ("age", "mean_fd", "duration_s") if any(n in s for s in cohort["sites"])]
    titles = {"age": "age (years)", "mean_fd": "motion (mm)", "duration_s": "scan length (s)"}
    classes = any("diagnosis" in s for s in cohort["sites"])
    rows = [
        [
            s["site"],
            str(s["n"]),
            *([", ".join(f"{k} {n}" for k, n in s.get("diagnosis", {}).items())] if classes else []),
            *(_spread(s[n]) if n in s else "–" for n in names),
        ]
        for s in cohort["sites"]
    ]
    return Grid(["site", "n", *(["diagnosis"] if classes else []), *(titles[n] for n in names)], rows)


def _participants(cohort: Mapping[str, Any]) -> Grid:
    rows = []
    for name, entry in cohort["columns"].items():
        what = _spread(entry) if "mean" in entry else ", ".join(f"{k} {n}" for k, n in entry.get("classes", {}).items())
        rows.append([name, str(entry["n"]), what or "many values"])
    return Grid(["column", "known", "values"], rows)


def _protocol(record: Record) -> Iterator[tuple[str, str]]:
    p = record.protocol
    objective = parse_objective(p.objective)
    latent = isinstance(objective, Latent)
    yield "suite", p.suite or "none: options of the command line"
    held = {"subjects": "by subject", "site": "one site at a time", "within-recording": "later part of each recording"}
    yield "held out", f"{held[p.split]}, {p.n_folds} folds, split {p.fold_fingerprint[:12]}"
    yield (
        "pretraining",
        ("prediction of hidden tokens as a slow copy sees them, in " if latent else "masked reconstruction of ")
        + (
            "everybody's recordings, the test subjects' among them, without labels (TRANSDUCTIVE)"
            if p.transductive
            else "the training subjects' recordings of each fold"
        )
        + ("" if objective.is_default else f" ({objective.label})"),
    )
    yield (
        "budget",
        f"{p.n_steps} steps of {p.batch_size} windows of at most {p.n_tokens} tokens; "
        f"{p.ratio:.0%} of valid ones scored{', drawn for every window' if objective.draws_ratios else ''}",
    )
    yield "size", f"profile {p.profile}: width {p.width}, {p.n_layers} layers"
    yield "recipe", ", ".join(f"{k} {v}" for k, v in p.recipe.items())
    yield "windows", f"{p.window_s:g} s in patches of {p.patch_s:g} s"
    settings = "".join(f", {k} {v}" for k, v in p.adaptation_parameters.items())
    probes = {"linear": "", "kernel": ", kernel probe", "attentive": ", attentive probe (baselines: the linear one)"}
    yield "adaptation", p.adaptation.partition("[")[0] + settings + probes[p.probe]
    yield "harmonisation", "site, fitted on the training subjects of each fold" if p.harmonise == "site" else "none"
    yield "uncertainty", "95 % intervals of 2,000 bootstraps over subjects; 1,000 permutations within sites"


# ---------------------------------------------------------------- how to repeat it, and whom to cite


def _software(environments: Sequence[Mapping[str, str]]) -> list[tuple[str, str]]:
    names = dict.fromkeys(k for e in environments for k in e if k != "command")
    return [(n, ", ".join(dict.fromkeys(e[n] for e in environments if e.get(n)))) for n in names]


def _components(records: Sequence[Record]) -> Grid:
    found = {}
    for r in records:
        for kind in ("backbone", "mask", "baseline", "dataset", "task"):
            c = getattr(r, kind)
            if c is not None:
                found[kind, c.label, c.digest] = [
                    f"{kind} {c.label}",
                    ", ".join(f"{k}={v}" for k, v in c.parameters.items()) or "–",
                    f"{c.distribution} {c.version}".strip(),
                    c.digest[:12],
                ]
    return Grid(["component", "parameters", "from", "sha256 of its code"], [found[k] for k in sorted(found)])


def _methods(records: Sequence[Record], cohorts: Sequence[Evidence]) -> Iterator[str]:
    """Yield what was used, and whom to cite for it; what was not used is not cited."""
    yield from METHODS
    ids = [(e, r) for e in cohorts for r in e.table["id"]]
    for kind, words in (("attribution", OCCLUSION), ("importance", IMPORTANCE), ("alignment", ALIGNMENT)):
        if any(e.frame(r, kind) is not None for e, r in ids):
            yield words
    if any(r.protocol.harmonise == "site" for r in records):
        yield HARMONISED
    if any(e.arrays(r, "responses") is not None for e, r in ids):
        yield NOCEILING
    for evidence in cohorts:
        if evidence.modality == "fmri":
            names = {*evidence.units["unit"], *evidence.units["group"]}
            told = [text for some, text in ATLASES if len(some & names) > 1]
            yield from told or [OTHER_ATLAS]
    if any(e.modality == "fmri" for e in cohorts):
        yield MNI
    used = {k for r in records for k in r.environment} | {"matplotlib"}
    used |= {"nilearn"} if any(e.modality == "fmri" for e in cohorts) else set()
    used |= {"mne"} if any(e.modality == "meg" for e in cohorts) else set()
    yield "Software: " + "; ".join(text for name, text in SOFTWARE.items() if name in used) + "."


def _citations(records: Sequence[Record], cohorts: Sequence[Evidence], registry: Registry) -> Iterator[str]:
    seen = set()
    for evidence in cohorts:
        card = evidence.cohort["card"]
        text = f"{card['title']}: {DatasetCard(**card).cite()}"
        if text not in seen:
            seen.add(text)
            yield text
    kinds: tuple[Kind, ...] = ("backbone", "mask", "task", "baseline")
    for kind in kinds:
        for name in sorted({c.name for r in records if (c := getattr(r, kind)) is not None}):
            cls = registry.of(kind).get(name)
            if cls is not None and cls.reference:
                yield f"{kind} {name}: {_reference(cls.reference)}"


def _reference(text: str) -> str:
    """Return a reference that says what it is: a bare DOI gets its prefix."""
    return f"doi:{text}" if text.startswith("10.") else text


# ---------------------------------------------------------------- writing


def write_report(report: Report, table: pd.DataFrame, folder: Path) -> list[Path]:
    """Write ``report.html`` (one file that needs no other), ``report.md`` with ``figures/``, and ``report.csv``.

    Returns
    -------
    paths
        Of the three.
    """
    html, markdown, csv = (folder / f"report.{end}" for end in ("html", "md", "csv"))
    with disk_errors(html):
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        for old in (folder / "figures").glob("*.png"):
            old.unlink()
        for section in report.sections:
            for picture in (*section.pictures, *(p for t in section.tasks for p in t.pictures)):
                (folder / _file(section, picture)).write_bytes(picture.png)
    atomic_write(html, _html(report))
    atomic_write(markdown, "\n".join(map(_no_tags, _markdown(report))) + "\n")
    atomic_write(csv, table.drop(columns="record").map(spreadsheet_cell).to_csv(index=False))
    return [html, markdown, csv]


def report_table(out: Path) -> pd.DataFrame:
    """Return the rows of the report's CSV."""
    return records_table(out)


def _html(report: Report) -> str:
    import jinja2

    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return templates.get_template("report.html.j2").render(
        report=report, flush_right=_flush_right, belief=BELIEF, experts=EXPERTS
    )


_NUMBER = re.compile(r"[<+−-]?\s?\d*\.?\d+%?( ?[a-zA-Z]{1,3})?( \(.*\)| to .*| ± .*)?|–|")


def _flush_right(grid: Grid) -> list[bool]:
    """Return for every column whether all of its cells are numbers, intervals or empty."""
    return [all(_NUMBER.fullmatch(str(row[i])) for row in grid.rows) for i in range(len(grid.columns))]


def _file(section: Section, picture: Picture) -> str:
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", picture.name).strip("-")
    return f"figures/{section.anchor}-{name}.png"


def _markdown(report: Report) -> Iterator[str]:
    yield f"# neurobench report: {report.out}\n"
    yield f"Written {report.written} by neurobench {report.version}.\n"
    for title in report.restricted:
        yield f"**{title}: only aggregates may leave this machine; some pictures here show single subjects.**\n"
    yield from (f"**{line}**\n" for line in report.partial)
    yield from (f"**Not in this report, it failed: {line}**\n" for line in report.failed)
    for s in report.sections:
        yield f"## {s.title} ({s.dataset}){' — SIMULATED' if s.simulated else ''}\n"
        yield from (f"- {line}" for line in s.summary)
        yield "\n### What to know first\n"
        yield from (f"- **{c.level}** {c.text}" for c in s.caveats)
        yield "\n### Who is in it\n"
        yield from (f"- {k}: {v}" for k, v in s.cohort)
        for grid in (s.flow, s.sites, s.columns):
            if grid is not None:
                yield "\n" + _markdown_table(grid)
        yield "\n### Protocol\n"
        yield from (f"- {k}: {v}" for k, v in s.protocol)
        for t in s.tasks:
            yield f"\n### {t.task}\n\n{t.heading}\n"
            yield from (f"- **{c.level}** {c.text}" for c in t.caveats)
            yield "\n" + _markdown_table(t.results)
            for words, grid in t.comparisons:
                yield f"\n{words}\n" + ("\n" + _markdown_table(grid) if grid is not None else "")
            if t.confounds is not None:
                yield "\n#### Confounds\n\n" + _markdown_table(t.confounds)
            yield "\n#### All metrics\n\n" + _markdown_table(t.details)
            yield from (f"\n- {note}" for note in t.notes)
            yield from (f"\n![{p.alt}]({_file(s, p)})\n\n*{p.title}.* {p.caption}" for p in t.pictures)
        if s.across:
            yield "\n### All tasks together\n"
            for words, grid in s.across:
                yield f"\n{words}\n" + ("\n" + _markdown_table(grid) if grid is not None else "")
        if s.stability is not None:
            yield "\n### Whether the attributions can be believed\n"
            yield f"{BELIEF}\n"
            yield _markdown_table(s.stability)
        if s.experts is not None:
            yield "\n### How evenly experts are used\n"
            yield f"{EXPERTS}\n"
            yield _markdown_table(s.experts)
        if s.alignment is not None:
            yield "\n### Sensors that are drawn on, and sensors where a response is expected\n"
            yield _markdown_table(s.alignment)
        yield from (f"\n![{p.alt}]({_file(s, p)})\n\n*{p.title}.* {p.caption}" for p in s.pictures)
    yield "\n## To repeat it\n"
    yield from (f"    {c}" for c in report.commands)
    yield "\n" + _markdown_table(Grid(["software", "version"], report.software))
    yield "\n" + _markdown_table(report.components)
    yield "\n## Methods and sources\n"
    yield from (f"- {line}" for line in (*report.methods, *report.citations))


def _no_tags(text: str) -> str:
    """Return Markdown in which nothing is HTML; code, which is indented, stays as it is."""
    return text if text.startswith("    ") else re.sub(r"<(?=[A-Za-z/!?])", r"\\<", text)


def _markdown_table(grid: Grid) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(str(c).replace("|", "\\|").replace("\n", " ") for c in cells) + " |"

    rows = [line(grid.columns), "|" + "---|" * len(grid.columns)]
    for i, row in enumerate(grid.rows):
        if i in grid.headings:
            rows.append(line([f"*{grid.headings[i]}*", *[""] * (len(grid.columns) - 1)]))
        rows.append(line(row))
    return "\n".join(rows)

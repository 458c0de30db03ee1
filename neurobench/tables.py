"""How results are laid out: one table a (dataset, task), readable at any width; and numbers as a person writes them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "TextTable",
    "benchmark_cells",
    "comparison_cells",
    "duration",
    "markdown_text",
    "missing",
    "p_value",
    "plural",
    "rank_cells",
    "results_table",
    "seed_cells",
    "spreadsheet_cell",
]


@dataclass(frozen=True, eq=False)
class TextTable:
    """A table of text: columns, rows, and which rows start a new block under a heading."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    headings: Mapping[int, str] = field(default_factory=dict)


# ---------------------------------------------------------------- words and numbers


def duration(seconds: float | None) -> str:
    """Return seconds as a person says them: ``0.4 s``, ``12 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds is None or not math.isfinite(seconds):
        return ""
    if seconds < 0.05:
        return "< 0.1 s"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min" + (f" {whole % 60} s" if whole % 60 and whole < 600 else "")
    return f"{whole // 3600} h" + (f" {whole % 3600 // 60} min" if whole % 3600 // 60 else "")


_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#~$&])")


def markdown_text(text: str) -> str:
    """Return text that Markdown shows as it is; whatever a record says starts no markup and no row."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def spreadsheet_cell(value: Any) -> Any:
    """Return a value as a CSV file holds it: a list as words, and no text that a spreadsheet would compute."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return "'" + value
    return value


def plural(n: int, word: str) -> str:
    """Return ``1 step`` or ``2 steps``."""
    return f"{n} {word}" if n == 1 else f"{n} {word}s"


def count(n: float | None) -> str:
    """Return a number of parameters: ``850``, ``12 k``, ``7.6 M``."""
    if n is None or not math.isfinite(n):
        return ""
    for limit, unit in ((1e6, " M"), (1e3, " k")):
        if n >= limit:
            return f"{n / limit:.1f}{unit}" if n < 10 * limit else f"{n / limit:.0f}{unit}"
    return str(int(n))


def share(part: float | None) -> str:
    """Return a share of parameters in percent: ``100 %``, ``13 %``, ``0.4 %``."""
    if part is None or not math.isfinite(part):
        return ""
    return f"{100 * part:.0f} %" if part >= 0.095 else f"{100 * part:.1f} %"


_WRITTEN = {"r2": "R²", "top1": "top-1", "mean_ap": "mAP"}


def metric_name(name: str) -> str:
    """Return a metric's name as it is written in text: ``MAE``, ``R²``, ``balanced accuracy``."""
    if name in _WRITTEN:
        return _WRITTEN[name]
    return name.upper() if name.isalpha() and len(name) <= 5 else name.replace("_", " ")


def missing(value: Any) -> bool:
    """Whether a cell of a table holds nothing."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value)) or str(value) == "<NA>"


def decimals(low: Sequence[float], high: Sequence[float]) -> int:
    """Return how many decimals are worth printing: two digits of the typical interval's width."""
    widths = sorted(h - a for a, h in zip(low, high, strict=True) if math.isfinite(h - a) and h > a)
    if not widths:
        return 2
    return min(4, max(0, 1 - math.floor(math.log10(widths[len(widths) // 2]))))


# ---------------------------------------------------------------- results

PER_PART = {"metric_r2[": "by mask: R²", "metric_recall[": "by state: recall"}
"""Starts of columns such as ``metric_r2[roi]``, shown one by one under what is in brackets, and what they are."""

BESIDE = {
    "metric_balanced_accuracy": "balanced accuracy",
    "metric_within_site_auroc": "within sites",
    "metric_mean_ap": "mAP",
    "metric_top1_within_site": "top-1 within sites",
    "metric_waveform_r[null]": "null",
    "metric_waveform_r[away]": "background",
    "metric_across_halves_r": "across halves",
    "metric_gfp_r": "GFP r",
    "metric_topography_r": "topography r",
    "metric_peak_latency_error": "latency (ms)",
    "metric_peak_amplitude_ratio": "amplitude",
}
"""Columns that are shown beside the headline of two classes, of retrieval and of evoked responses, and their titles."""

CEILING = {
    "metric_waveform_r[ceiling]": "waveform r",
    "metric_gfp_r[ceiling]": "GFP r",
    "metric_topography_r[ceiling]": "topography r",
    "metric_across_halves_r[ceiling]": "across halves",
}
"""Noise ceilings, the same for every row."""

APART = {
    "parameter budget": "outside the common parameter budget",
    "mask budget": "its mask is outside the common budget of hidden tokens",
    "outside weights": "weights from outside: whether the test subjects are among whom they were trained on is not "
    "known",
}
"""Why a row is shown beside the others and not ranked with them, in words."""

_GROUPS = (
    ("pretrained", "pretrained"),
    ("given", "as given, not pretrained here"),
    ("untrained", "untrained (control)"),
    ("baseline", "baselines"),
    ("filler", "trivial fillers"),
)


@dataclass
class _Column:
    """A column of a results table; those with the highest ``rank`` go first where the terminal is narrow."""

    title: str
    cells: list[Text]
    rank: int = 0
    justify: Any = "right"

    @property
    def empty(self) -> bool:
        return not any(c.plain for c in self.cells)

    @property
    def width(self) -> int:
        return max([len(self.title), *(c.cell_len for c in self.cells)]) + 2


def results_table(block: pd.DataFrame, width: int) -> RenderableType:
    """Lay out the rows of one (dataset, task) in at most ``width`` columns."""
    lines = list(_lines(block))
    ok = [x for x in lines if not x.error]
    first = block.iloc[0]
    scored = block[block["status"] != "failed"]
    metric = str(scored["metric"].iloc[0]) if len(scored) else ""
    parts: list[RenderableType] = [_heading(first, scored, metric)]
    errors = dict.fromkeys(line.error for line in lines if line.error)
    footnotes = [f"{', '.join(x.label for x in lines if x.error == error)}: {error}" for error in errors]
    if any(x.stuck for x in ok):
        footnotes.append("† pretraining did not reach the best trivial filler on held-out subjects")
    ceilings = [f"{title} {scored[c].mean():.2f}" for c, title in CEILING.items() if c in scored and len(scored)]
    ceilings = [c for c in ceilings if not c.endswith("nan")]
    if ceilings:
        footnotes += [
            f"split-half noise ceiling: {', '.join(ceilings)} (root of the reliability, Spearman–Brown)",
            "null: predictions at shifted events against the response; background: against the signal there, which is "
            "what sensors share without any event",
            "across halves: odd predicted epochs against even real ones, so that no noise is shared; without it a "
            "waveform r may lie above the ceiling",
        ]
    if apart := [text for reason, text in APART.items() if any(reason in x.apart for x in ok)]:
        footnotes.append(f"‡ not ranked with the others: {'; '.join(apart)}")
    if any(math.isfinite(x.trained) for x in ok):
        how = ", ".join(dict.fromkeys(str(a) for a in scored["adaptation"]))
        footnotes.append(
            f"trained: share of all parameters that is trained on the task, the head's among them; adaptation {how}"
        )
    if "probe" in scored and (scored["probe"] == "attentive").any() and any(x.kind == "baseline" for x in ok):
        footnotes.append("attentive probe of backbones; baselines have no unit tokens and keep the linear one")
    if any(x.best for x in ok):
        footnotes.append("★ ahead of the next row: the interval of their difference excludes 0, and p < .05")
    n_seeds = block["seed"].nunique()
    if n_seeds > 1:
        footnotes.append(f"mean over {n_seeds} seeds, with the widest limits of their intervals")
    columns, dropped = _fit(_columns(lines, metric), width)
    grid = Table(box=None, pad_edge=False, show_header=True, padding=(0, 2, 0, 0))
    for c in columns:
        grid.add_column(c.title, justify=c.justify, header_style="dim", overflow="fold", no_wrap=c is not columns[0])
    for kind, heading in _GROUPS:
        chosen = [i for i, line in enumerate(lines) if line.kind == kind]
        if chosen:
            grid.add_row(Text(heading, style="dim italic"))
            for i in chosen:
                grid.add_row(*(c.cells[i] for c in columns))
    parts.append(Padding(grid, (0, 0, 0, 1), expand=False))
    if dropped:
        footnotes.append(f"not shown for lack of width: {', '.join(dropped)} (see --json)")
    parts += [Padding(Text(n, style="dim"), (0, 0, 0, 1), expand=False) for n in footnotes]
    return Group(*parts)


def _heading(first: Any, scored: pd.DataFrame, metric: str) -> Text:
    text = Text(str(first["task"]), style="bold").append(f" on {first['dataset']}", style="not bold")
    if first["source"] == "simulated":
        text.append(" (simulated)", style="yellow not bold")
    if len(scored):
        head = scored.iloc[0]
        facts = [metric_name(metric) + (f" in {head['unit']}" if head["unit"] else "")]
        if not missing(head["higher_is_better"]):
            facts.append(f"{'higher' if head['higher_is_better'] else 'lower'} is better")
        if not missing(head["chance"]):
            facts.append(f"chance {head['chance']:.3g}")
        people = sorted({int(n) for n in scored["n_subjects"] if not missing(n)})
        if people:
            facts.append("n = " + (str(people[0]) if len(people) == 1 else f"{people[0]} to {people[-1]}"))
        trained = scored[scored["kind"] == "pretrained"]
        baselines = sorted({str(b) for b in trained.get("best_baseline", ()) if not missing(b)})
        if len(baselines) == 1:
            facts.append(f"skill over {baselines[0]}")
        for start, what in PER_PART.items():
            if any(c.startswith(start) and scored[c].notna().any() for c in scored.columns):
                facts.append(what)
        text.append("\n" + " · ".join(facts), style="dim not bold")
    return text


@dataclass
class _Line:
    """One row, over its seeds."""

    label: str
    kind: str
    score: float
    low: float
    high: float
    higher_is_better: bool
    skill: float
    above_chance: bool | None
    best: bool
    stuck: bool
    apart: str
    n_parameters: float
    trained: float
    n_subjects: float
    seconds: float
    parts: Mapping[str, float]
    error: str


def _lines(block: pd.DataFrame) -> Iterator[_Line]:
    """Yield rows, the best of each kind first and failed ones last."""
    headlines = {f"metric_{m}" for m in block["metric"]}
    parts = {c: BESIDE[c] for c in BESIDE if c in block and c not in headlines}
    for start in PER_PART:
        parts |= {c: c.removeprefix(start).removesuffix("]") for c in block.columns if c.startswith(start)}
    parts = {c: title for c, title in parts.items() if block[c].notna().any()}
    found: list[_Line] = []
    for (kind, label), rows in block.groupby(["kind", "row"], sort=False):
        good = rows[rows["status"] != "failed"]

        def mean(name: str, good: pd.DataFrame = good) -> float:
            values = [float(v) for v in good.get(name, ()) if not missing(v)]
            return sum(values) / len(values) if values else math.nan

        errors = [str(e) for e in rows.loc[rows["status"] == "failed", "error"]]
        above = [bool(v) for v in good["above_chance"] if not missing(v)]
        lows, highs = ([float(v) for v in good[n] if not missing(v)] for n in ("low", "high"))
        found.append(
            _Line(
                label=str(label),
                kind=str(kind),
                score=mean("score"),
                low=min(lows, default=math.nan),
                high=max(highs, default=math.nan),
                higher_is_better=bool(good["higher_is_better"].iloc[0]) if len(good) else True,
                skill=mean("skill"),
                above_chance=all(above) if above else None,
                best=len(good) > 0 and all(v is True or str(v) == "True" for v in good["best"]),
                stuck=any(not missing(v) and not v for v in good["learned"]),
                apart=str(good["apart"].iloc[0]) if len(good) and "apart" in good else "",
                n_parameters=mean("n_parameters"),
                trained=mean("trained_share"),
                n_subjects=mean("n_subjects"),
                seconds=float(sum(float(v) for v in good["seconds"] if not missing(v))),
                parts={title: mean(c) for c, title in parts.items()},
                error=errors[0] if errors and not len(good) else "",
            )
        )
    return iter(sorted(found, key=_order))


def _order(line: _Line) -> tuple[bool, float, str]:
    score = -line.score if line.higher_is_better else line.score
    return (math.isnan(score), 0.0 if math.isnan(score) else score, line.label)


def _columns(lines: Sequence[_Line], metric: str) -> list[_Column]:
    places = decimals([x.low for x in lines], [x.high for x in lines])

    def number(x: float, n: int = places) -> str:
        return "" if math.isnan(x) else f"{x:.{n}f}"

    labels, scores, intervals, skills = [], [], [], []
    for x in lines:
        style = "bold" if x.best else ""
        labels.append(
            Text("  ").append(x.label, style=style).append(" †" * x.stuck + " ‡" * bool(x.apart), style="yellow")
        )
        if x.error:
            scores.append(Text("failed", style="red"))
        else:
            scores.append(Text(number(x.score), style=style).append(" ★" if x.best else "  ", style="green"))
        intervals.append(Text("" if math.isnan(x.low) else f"{number(x.low)} to {number(x.high)}", style="dim"))
        if x.above_chance is False:
            skills.append(Text("no signal", style="dim italic"))
        else:
            skills.append(Text("" if math.isnan(x.skill) else f"{x.skill:+.2f}"))
    columns = [
        _Column("", labels, justify="left"),
        _Column(metric_name(metric), scores),
        _Column("95 % interval", intervals, rank=1),
        _Column("skill", skills, rank=2),
    ]
    for part in lines[0].parts if lines else ():
        n = 0 if part.endswith("(ms)") else 2
        columns.append(_Column(part, [Text(number(x.parts[part], n)) for x in lines], rank=3))
    if len({x.n_subjects for x in lines if not math.isnan(x.n_subjects)}) > 1:
        columns.append(_Column("n", [Text(number(x.n_subjects, 0)) for x in lines], rank=5))
    sizes = [count(x.n_parameters) + " ‡" * ("parameter budget" in x.apart) for x in lines]
    columns.append(_Column("parameters", [Text(size, style="dim") for size in sizes], rank=6))
    columns.append(_Column("trained", [Text(share(x.trained), style="dim") for x in lines], rank=4))
    columns.append(_Column("time", [Text("" if x.error else duration(x.seconds), style="dim") for x in lines], rank=7))
    return [c for c in columns if c.rank == 0 or not c.empty]


def _fit(columns: list[_Column], width: int) -> tuple[list[_Column], list[str]]:
    """Leave out columns, the least important first, until the table fits; at least label and score stay."""
    kept, dropped = list(columns), []
    while sum(c.width for c in kept) + 1 > width and (last := max(kept, key=lambda c: c.rank)).rank > 0:
        same = [c for c in kept if c.rank == last.rank]
        # The last one of a rank, so that the parts that are shown are the first ones.
        kept.remove(same[-1])
        dropped.append(same[-1].title)
    return kept, dropped[::-1]


# ---------------------------------------------------------------- comparisons


def p_value(p: float | None) -> str:
    """Return a p-value as it is written: three decimals, ``< .001``, a dash where there is none."""
    if p is None or math.isnan(p):
        return "–"
    return "< .001" if p < 0.001 else f"{p:.3f}"


def comparison_cells(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows of a table of comparisons of one kind, see :func:`neurobench.compare_results`."""
    of_cells = bool((table["by"] == "interaction").all())
    places = decimals(table["low"].tolist(), table["high"].tolist())
    seeds = bool((table["n_seeds"] > 1).any())
    units = list(dict.fromkeys(str(u) for u in table["unit"] if str(u)))
    unit = f" ({units[0]})" if len(units) == 1 else ""
    titles = ["backbone", "mask", f"beyond both{unit}"] if of_cells else ["first", "second", f"first − second{unit}"]
    titles += [
        "95 % interval",
        "p" if of_cells else "p (Holm)",
        *([] if of_cells else ["p (Nadeau, Bengio)", "better"]),
    ]
    titles += ["detectable", "subjects needed", *(["s.d. over seeds", "SE subjects", "SE both"] if seeds else [])]
    rows = []
    for r in table.to_dict("records"):
        row = [
            r["first"],
            r["second"],
            f"{r['difference']:+.{places}f}",
            f"{r['low']:.{places}f} to {r['high']:.{places}f}",
        ]
        row += (
            [p_value(r["p"])] if of_cells else [p_value(r["p_holm"]), p_value(r["p_nadeau_bengio"]), r["winner"] or "–"]
        )
        n = r["n_needed"]
        row += [f"{r['detectable']:.{places}f}", f"{n:,.0f}" if math.isfinite(n) and n < 1e7 else "–"]
        if seeds:
            spreads = [r[c] for c in ("sd_seeds", "se_subjects", "se_combined")]
            row += ["–" if missing(v) else f"{v:.{places + 1}f}" for v in spreads]
        rows.append(row)
    return titles, rows


def rank_cells(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows of mean ranks, see :class:`neurobench.over_tasks.Across`."""
    of_tasks = [c for c in table.columns if c.startswith("rank[")]
    titles = ["row", "mean rank", "from", "to", *(c.removeprefix("rank[").removesuffix("]") for c in of_tasks)]
    numbers = ["mean_rank", "first", "last", *of_tasks]
    return titles, [[r["row"], *(f"{r[c]:.2f}" for c in numbers)] for r in table.to_dict("records")]


def seed_cells(scores: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows of scores over seeds, see :class:`neurobench.comparisons.Comparisons`."""
    places = decimals(scores["low"].tolist(), scores["high"].tolist())
    titles = [
        "row",
        "mean over seeds",
        "95 % interval over subjects",
        "seeds",
        "s.d. over seeds",
        "SE subjects",
        "SE both",
    ]

    def number(x: float, n: int) -> str:
        return "–" if math.isnan(x) else f"{x:.{n}f}"

    rows = [
        [
            r["row"],
            number(r["score"], places),
            f"{number(r['low'], places)} to {number(r['high'], places)}",
            str(r["n_seeds"]),
            *(number(r[c], places + 1) for c in ("sd_seeds", "se_subjects", "se_combined")),
        ]
        for r in scores.to_dict("records")
    ]
    return titles, rows


# ---------------------------------------------------------------- published figures


def benchmark_cells(table: pd.DataFrame) -> tuple[list[str], list[list[str]], list[str]]:
    """Return columns and rows of one suite's figures beside published ones, and notes on the latter.

    ``table`` is of one suite, see :func:`neurobench.benchmarks.benchmarks`.
    """
    columns = ["task", "metric", "our row", "ours", "95 % interval", "n", "best baseline", "published", "on"]
    known = table.drop_duplicates(["who", "reference", "differs"]).reset_index(drop=True)
    number = {(r["who"], r["reference"], r["differs"]): i for i, r in enumerate(known.to_dict("records"), 1)}
    notes = [
        f"[{i}] another protocol. {r['who']} ({r['reference']}): {r['differs']}"
        for i, r in enumerate(known.to_dict("records"), 1)
    ]
    cells = []
    for r in table.to_dict("records"):
        there = not missing(r["score"])
        simulated = " (simulated)" if there and r["source"] == "simulated" else ""
        unit = "" if missing(r["unit"]) else f" {r['unit']}"
        interval = f"{_figure(r['low'])} to {_figure(r['high'])}" if there and not missing(r["low"]) else ""
        baseline = "" if missing(r["baseline"]) else f"{r['baseline']} {_figure(r['baseline_score'])}"
        note = number[(r["who"], r["reference"], r["differs"])]
        cells.append(
            [
                f"{r['task']} · {r['dataset']}",
                metric_name(str(r["metric"])) + (" difference" if " − " in str(r["row"]) else ""),
                str(r["row"]),
                f"{_figure(r['score'])}{unit}{simulated}" if there else "not run",
                interval,
                str(int(r["n_subjects"])) if there else "",
                baseline,
                f"{r['published']} [{note}]",
                str(r["cohort"]) + ("" if missing(r["published_n"]) else f", n = {int(r['published_n'])}"),
            ]
        )
    return columns, cells, notes


def _figure(value: float) -> str:
    """Return a figure with three digits: ``.43`` reads as ``0.430``, an age as ``11.8``."""
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.3g}"

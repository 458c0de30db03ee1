"""The board as a static site: an index, a page a (suite, dataset, task), a page a combination.

No server, and nothing that is loaded from elsewhere.

The same records give the same bytes: no time of building, no path of a machine. Every table is whole without a script;
sorting, filters and search come on top.
"""

from __future__ import annotations

import csv
import functools
import io
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import neurobench
from neurobench.errors import StoreError
from neurobench.identity import digest
from neurobench.leaderboard import read_board
from neurobench.leaderboard_plots import (
    Axis,
    axis_of,
    board_file,
    heat_map,
    pareto_plot,
    row_file,
    ticks,
    transfer_plot,
)
from neurobench.leaderboard_tables import KINDS, LEVELS, Board, Line, Table
from neurobench.leaderboard_text import as_json, facts, flat, gain, markdown, rank_text, skill_text, words
from neurobench.objectives import parse_objective
from neurobench.plugins import Registry, load_registry
from neurobench.report_results import CONFOUNDS
from neurobench.results import MetricRecord, Record
from neurobench.store import atomic_write
from neurobench.tables import count, decimals, duration, metric_name, spreadsheet_cell

__all__ = ["Built", "build_leaderboard"]

HERE = Path(__file__).with_name("site")
ASSETS = {
    "board.css": "board.css",
    "board.js": "board.js",
    "theme.js": "theme.js",
    "dataTables.min.js": "vendor/dataTables.min.js",
    "dataTables.LICENSE.txt": "vendor/dataTables.LICENSE.txt",
}
"""What every page uses, by its name on the site: nothing else is ever loaded."""

TITLES = {
    "skill": "skill",
    "brier": "Brier score",
    "within_site_auroc": "AUROC within sites",
    "pr_auc": "PR-AUC",
    "pearson_r": "Pearson r",
    "partial_r_age": "partial r given age",
    "delta_r2_age": "ΔR² beyond age",
    "top1_within_site": "top-1 within sites",
    "fc_similarity": "similarity of connectivity",
    "r2_guarded": "R² without edges of hidden spans",
}
"""Metrics whose names are no words."""

CACHE = "neurobench-verified-{}.json"
"""What the next build need not compute again, by the folder of records."""

MANIFEST = "files.txt"
"""Every file that was generated, so that the next build takes out what it no longer makes, and nothing else."""


@dataclass(frozen=True)
class Built:
    """What was built.

    Parameters
    ----------
    markdown, index
        The Markdown file and the first page.
    n_records, n_tables, n_pages
        Of what, and into how much.
    """

    markdown: Path
    index: Path
    n_records: int
    n_tables: int
    n_pages: int


def build_leaderboard(
    results: str | Path, site: str | Path | None = None, *, registry: Registry | None = None
) -> Built:
    """Build ``LEADERBOARD.md`` beside a folder of records, and the site.

    Parameters
    ----------
    results
        Folder of published records, see :func:`neurobench.leaderboard.read_board`.
    site
        Folder of the site; ``site`` beside the records without.
    registry
        Where tasks come from; what is installed without.

    Raises
    ------
    BoardError
        If anything among the records may not be there.
    StoreError
        If the folder of the site holds files of somebody else.
    """
    folder = Path(results)
    to = Path(site) if site is not None else folder.parent / "site"
    board = read_board(folder, registry or load_registry(), cache=_cache(folder))
    files = dict(_files(board))
    files[MANIFEST] = "\n".join(sorted([*files, MANIFEST])) + "\n"
    _replace(to, files)
    page = folder.parent / "LEADERBOARD.md"
    atomic_write(page, markdown(board))
    n_pages = sum(name.endswith(".html") for name in files)
    return Built(page, to / "index.html", board.n_records, len(board.tables), n_pages)


def _cache(folder: Path) -> Path | None:
    """Return where a clone keeps what was verified; None outside of one, where nothing is kept.

    In git's own folder, where no commit can place a file: what a build believes must not come with a pull request.
    """
    home = next((p / ".git" for p in folder.resolve().parents if (p / ".git").is_dir()), None)
    return home and home / CACHE.format(digest([str(folder.resolve())])[:12])


def _replace(to: Path, files: Mapping[str, str]) -> None:
    """Write files, and take out those of the last build that are no longer made."""
    known = to / MANIFEST
    if to.is_dir() and any(to.iterdir()) and not known.is_file():
        raise StoreError(
            f"{to} holds files that no build has made.",
            next_step="Give another folder: `--site DIR`, new or of a build.",
        )
    before = known.read_text(encoding="utf-8").splitlines() if known.is_file() else []
    for name in sorted(set(before) - set(files)):
        path = to / name
        if not Path(name).is_absolute() and ".." not in Path(name).parts and path.is_file():
            path.unlink()
    for name, text in files.items():
        path = to / name
        if not (path.is_file() and path.read_bytes() == text.encode()):
            atomic_write(path, text)


# ---------------------------------------------------------------- files


def _files(board: Board) -> Iterator[tuple[str, str]]:
    """Yield every file of the site, by its name."""
    for name, source in ASSETS.items():
        yield f"assets/{name}", (HERE / source).read_text(encoding="utf-8")
    pages: dict[str, list[Table]] = {}
    for t in board.tables:
        pages.setdefault(board_file(t), []).append(t)
    rows: dict[str, list[tuple[Table, Line]]] = {}
    for t in board.tables:
        for line in (*t.lines, *t.failed):
            rows.setdefault(row_file(t, line), []).append((t, line))
    render = _renderer()
    everything = [(t, line) for t in board.tables for line in (*t.lines, *t.failed)]
    yield "data/leaderboard.csv", _csv([flat(t, line) for t, line in everything])
    yield "data/leaderboard.json", as_json([flat(t, line) for t, line in everything])
    yield "index.html", render("index.html.j2", root="", page="index", **_index(board, pages))
    for name, tables in pages.items():
        stem = Path(name).stem
        flats = [flat(t, line) for t in tables for line in (*t.lines, *t.failed)]
        yield f"data/{stem}.csv", _csv(flats)
        yield f"data/{stem}.json", as_json(flats)
        yield name, render("board.html.j2", root="../", page="board", stem=stem, **_board_page(tables, board))
    for name, found in rows.items():
        yield name, render("row.html.j2", root="../", page="row", **_row_page(found))


@functools.cache
def _renderer() -> Any:
    import jinja2

    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.globals |= {
        "version": neurobench.__version__,
        "kinds": KINDS,
        "levels": LEVELS,
        "rank_text": rank_text,
        "skill_text": skill_text,
        "words": words,
        "gain": gain,
        "facts": facts,
        "count": count,
        "duration": duration,
        "metric_name": metric_name,
        "board_file": board_file,
        "row_file": row_file,
        "sort_value": _sort_value,
        "rank_bar": _rank_bar,
        "fixed": lambda value, places: "–" if value is None or math.isnan(value) else f"{value:.{places}f}",
    }

    def render(template: str, **values: Any) -> str:
        # Indentation is a third of a page of tables, and nothing on these pages shows it.
        return re.sub(r"\n\s+", "\n", templates.get_template(template).render(**values)) + "\n"

    return render


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: spreadsheet_cell(v) for k, v in row.items()} for row in rows)
    return buffer.getvalue()


def _sort_value(value: float) -> str:
    """Return what a column is sorted by; what is not known goes to the end of an ascending one."""
    return "1e300" if value is None or math.isnan(value) else f"{value:.9g}"


def _rank_bar(line: Line, n: int) -> dict[str, float]:
    """Return where a range of ranks lies among ``n`` rows, in %."""
    first, last = line.rank or (1, n)
    return {"from": round(100 * (first - 1) / n, 2), "width": round(100 * (last - first + 1) / n, 2)}


# ---------------------------------------------------------------- the index


def _index(board: Board, pages: Mapping[str, Sequence[Table]]) -> dict[str, Any]:
    groups = []
    for source in ("real", "simulated"):
        shown = [(name, tables[0]) for name, tables in pages.items() if tables[0].source == source]
        if shown:
            lines = [_index_line(name, t, len(pages[name])) for name, t in shown]
            groups.append({"source": source, "lines": lines, "suites": sorted({t.suite for _, t in shown})})
    rows = {row_file(t, line) for t in board.tables for line in t.lines}
    return {
        "groups": groups,
        "board": board,
        "n_rows": len(rows),
        "lost": {s: sorted({f"{r.dataset.label}: {r.error}" for r in rs}) for s, rs in sorted(board.lost.items())},
    }


def _index_line(name: str, t: Table, n_tables: int) -> dict[str, Any]:
    axis = axis_of(t)
    best = {kind: next((x for x in t.on_equal_terms if x.kind == kind), None) for kind in KINDS}
    controls = sorted((t.lines.index(x) for k, x in best.items() if x is not None and k != "pretrained"))
    shown = [x for x in (best["pretrained"], t.lines[controls[0]] if controls else None) if x is not None]
    if t.withheld:
        shown = []
    return {
        "file": name,
        "table": t,
        "n_tables": n_tables,
        "marks": [{"line": x, "mark": axis.mark(x.low, x.score, x.high)} for x in shown],
        "axis": axis,
        "gain": gain(t) if t.ranked else ("not ranked", t.withheld or "No held-out predictions beside the records."),
    }


# ---------------------------------------------------------------- a page of one task


def _board_page(tables: Sequence[Table], board: Board) -> dict[str, Any]:
    blocks = []
    for n, t in enumerate(tables):
        axis = axis_of(t)
        blocks.append(
            {
                "table": t,
                "anchor": f"table-{n + 1}",
                "axis": axis,
                "ticks": ticks(axis, 3),
                "marks": {x.name: axis.mark(x.low, x.score, x.high) for x in t.lines},
                **_plots(t, board),
                "levels": sorted({x.level for x in t.lines}),
                "devices": sorted({r.cost.device for x in t.lines for r in x.records if r.cost.device}),
                "sentences": _sentences(t),
                "suite": t.first.protocol.suite,
            }
        )
    lines = [x for t in tables for x in t.lines]
    others = {board_file(t): t for t in board.tables if (t.suite, t.source) == (tables[0].suite, tables[0].source)}
    return {
        "blocks": blocks,
        "first": tables[0],
        "kinds_here": [k for k in KINDS if any(x.kind == k for x in lines)],
        "backbones": sorted({x.backbone for x in lines if x.backbone}),
        "masks": sorted({x.mask for x in lines if x.mask}),
        "others": others,
    }


def _plots(t: Table, board: Board) -> dict[str, Any]:
    """Return what is drawn of a table; of one that is withheld nothing, for every plot is an invitation to compare."""
    if t.withheld:
        return {"heat": None, "pareto": [], "transfer": None}
    pareto = [p for cost in ("seconds", "n_parameters") if (p := pareto_plot(t, cost)) is not None]
    return {"heat": heat_map(t), "pareto": pareto, "transfer": transfer_plot(t, board)}


def _sentences(t: Table) -> list[str]:
    return list(t.compared.sentences) if t.compared else []


# ---------------------------------------------------------------- a page of one combination


def _row_page(found: Sequence[tuple[Table, Line]]) -> dict[str, Any]:
    table, line = found[0]
    record = line.first
    data = record.data
    assert data is not None
    scored = [(t, x) for t, x in found if not x.failed]
    records = [r for _, x in found for r in x.records]
    return {
        "line": line,
        "table": table,
        "found": [
            {"table": t, "line": x, "axis": a, "mark": a.mark(x.low, x.score, x.high)}
            for t, x in scored
            for a in [axis_of(t)]
        ],
        "failed": [(t, x) for t, x in found if x.failed],
        "components": [
            (kind, c)
            for kind, c in (
                ("backbone", record.backbone),
                ("masking strategy", record.mask),
                ("baseline", record.baseline),
                ("dataset", record.dataset),
            )
            if c is not None
        ]
        + [("task", x.first.task) for _, x in found],
        "cohort": list(_cohort(record)),
        "protocol": list(_protocol(record)),
        "pretraining": list(_pretraining(records)),
        "cost": list(_costs(line)),
        "details": [_details(t, x) for t, x in scored],
        "notes": list(dict.fromkeys(n for r in records for n in r.notes)),
        "commands": list(
            dict.fromkeys(r.environment.get("command", "") for r in records if r.environment.get("command"))
        ),
        "versions": _versions(records),
        "records": [(t, r, x.level_of(r)) for t, x in found for r in x.records],
        "reruns": [(t, again.text) for t, x in found for r in x.records if (again := x.reruns.get(r.id))],
        "superseded": [(t, r) for t, x in found for r in x.superseded],
        "citation": _citation(line, table),
        "data": data,
    }


def _cohort(r: Record) -> Iterator[tuple[str, str]]:
    d = r.data
    assert d is not None
    yield "dataset", f"{d.title} ({r.dataset.label})"
    yield "source", d.source + (f", variant {d.variant}" if d.variant else "")
    yield "subjects · recordings", f"{d.n_subjects} · {d.n_recordings}"
    yield "signal", f"{d.signal}, {d.n_units} units at {d.sfreq:.4g} Hz"
    yield "revision", d.revision
    yield "licence", d.licence
    yield "access", d.access
    yield "what may leave", d.may_leave
    yield "left out", ", ".join(f"{k} × {n}" for k, n in sorted(d.left_out.items())) or "nothing"
    yield "provenance", " · ".join(d.provenance) or "–"
    yield "fingerprint", d.fingerprint


def _protocol(r: Record) -> Iterator[tuple[str, str]]:
    p = r.protocol
    yield "suite", p.suite or "none"
    yield "profile", p.profile
    yield "split", f"{p.split}, {p.n_folds} folds · folds {p.fold_fingerprint[:12]}"
    yield "adaptation", p.adaptation + (", transductive" if p.transductive else "")
    yield "windows · patches", f"{p.window_s:g} s · {p.patch_s:g} s, {p.n_tokens} tokens a window"
    yield "objective", p.objective
    drawn = ", on average over windows" if parse_objective(p.objective).draws_ratios else ""
    yield "hidden", f"{p.ratio:.0%} of the valid tokens{drawn}"
    yield "width × layers", f"{p.width} × {p.n_layers}"
    yield "steps · batch", f"{p.n_steps} · {p.batch_size}"
    yield "harmonised", p.harmonise
    yield "recipe", ", ".join(f"{k} {v}" for k, v in sorted(p.recipe.items()))


def _pretraining(records: Sequence[Record]) -> Iterator[tuple[str, str]]:
    p = next((r.pretraining for r in records if r.pretraining is not None), None)
    if p is None:
        return

    def number(value: float | None) -> str:
        return "–" if value is None else f"{value:.3g}"

    yield "loss, first → last", f"{number(p.loss_first)} → {number(p.loss_last)}"
    yield "loss on held-out subjects", number(p.loss_held_out)
    yield "R² under its own mask", number(p.r2_own_mask)
    yield f"R² of the best filler, {p.best_filler}", number(p.r2_best_filler)
    yield "reached the best filler", "–" if p.learned is None else "yes" if p.learned else "no (†)"
    shares = " · ".join("–" if v is None else f"{v:.1%}" for v in (p.hidden_fraction, p.scored_fraction))
    exempt = any("mask budget" in r.apart for r in records)
    yield "hidden · scored", shares + (" (‡ outside the common budget: not ranked)" if exempt else "")


def _costs(line: Line) -> Iterator[tuple[str, str]]:
    exempt = " (‡ outside the common budget)" if "parameter budget" in line.apart else ""
    yield "parameters", (count(line.n_parameters) or "–") + exempt
    yield "time", duration(line.seconds) or "–"
    yield "peak memory", "–" if math.isnan(line.peak_memory_mb) else f"{line.peak_memory_mb:,.0f} MB"
    costs = [r.cost for r in line.records]
    yield "device", ", ".join(sorted({c.device_name or c.device for c in costs} - {""})) or "–"
    for of, known in (
        ("processor", [c.cpu_energy_kwh for c in costs if c.cpu_energy_kwh is not None]),
        ("GPU", [c.gpu_energy_kwh for c in costs if c.gpu_energy_kwh is not None]),
    ):
        if known:
            yield f"energy of the {of}", f"{sum(known) / len(known):.3g} kWh to pretrain, by its counters"


def _details(t: Table, line: Line) -> dict[str, Any]:
    """Return every metric of a task with its interval and its folds on an axis of its own."""
    r = line.first
    shown = [_metric(_metric_title(n), m, r.per_fold.get(n, [])) for n, m in r.metrics.items()]
    confounds = [_metric(CONFOUNDS.get(n, n), m, []) for n, m in sorted(r.confounds.items(), key=_confound_order)]
    return {"table": t, "line": line, "metrics": shown, "confounds": confounds, "seed": r.protocol.seed}


def _metric_title(name: str) -> str:
    """Return a metric as it is written, what it is of in words: ``R² of random_tube``."""
    base, _, part = name.partition("[")
    title = TITLES.get(base) or metric_name(base)
    return f"{title} · {part.removesuffix(']')}" if part else title


def _confound_order(item: tuple[str, MetricRecord]) -> tuple[int, str]:
    known = list(CONFOUNDS)
    return (known.index(item[0]) if item[0] in known else len(known), item[0])


def _metric(name: str, m: MetricRecord, folds: Sequence[float | None]) -> dict[str, Any]:
    nan = math.nan
    value, low, high, chance = (nan if v is None else v for v in (m.value, m.low, m.high, m.chance))
    dots = [f for f in folds if f is not None]
    spans = [(low, value, high), *((f, f, f) for f in dots)]
    known = [v for span in spans for v in span if not math.isnan(v)] + ([] if math.isnan(chance) else [chance])
    axis = Axis(0.0, 1.0)
    if known:
        pad = (max(known) - min(known)) * 0.06 or max(abs(known[0]), 1.0) * 0.06
        axis = Axis(min(known) - pad, max(known) + pad, chance)
    places = decimals([low], [high]) if not math.isnan(low) else 3
    return {
        "name": name,
        "unit": m.unit,
        "higher": m.higher_is_better,
        "value": "–" if math.isnan(value) else f"{value:.{places}f}",
        "interval": "–" if math.isnan(low) or math.isnan(high) else f"{low:.{places}f} to {high:.{places}f}",
        "chance": "–" if math.isnan(chance) else f"{chance:.3g}",
        "p": m.p_value,
        "signal": "" if m.above_chance is None else "above chance" if m.above_chance else "no signal",
        "mark": axis.mark(low, value, high),
        "folds": [axis.at(f) for f in dots],
        "chance_at": axis.chance_at,
    }


def _versions(records: Sequence[Record]) -> list[tuple[str, str]]:
    """Return what it was computed with; where records differ, all of it."""
    names = list(dict.fromkeys(n for r in records for n in r.environment if n != "command"))
    found = []
    for name in names:
        said = list(dict.fromkeys(v for r in records if (v := r.environment.get(name, ""))))
        if said:
            found.append((name.replace("_", " "), ", ".join(said)))
    return found


def _citation(line: Line, t: Table) -> list[str]:
    r = line.first
    d = r.data
    assert d is not None
    version = r.environment.get("neurobench-fm", neurobench.__version__)
    twin = "simulated twin, " if d.source == "simulated" else ""
    mine = f"{line.name} on {d.title} ({twin}revision {d.revision}), suite "
    mine += f"{r.protocol.suite or t.suite}, record {r.id[:16]}, content sha256 {r.content_hash[:16]}."
    return [
        mine,
        f"neurobench: a benchmark suite for neuroimaging foundation models, version {version}. The neurobench authors.",
        f"{d.title}: {d.citation or f'`neurobench data card {shlex.quote(r.dataset.name)}` says what to cite'}",
    ]

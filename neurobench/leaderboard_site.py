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

from scipy import stats

import neurobench
from neurobench.errors import StoreError
from neurobench.identity import digest
from neurobench.leaderboard import read_board
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
        pages.setdefault(_board_file(t), []).append(t)
    rows: dict[str, list[tuple[Table, Line]]] = {}
    for t in board.tables:
        for line in (*t.lines, *t.failed):
            rows.setdefault(_row_file(t, line), []).append((t, line))
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
        "board_file": _board_file,
        "row_file": _row_file,
        "sort_value": _sort_value,
        "rank_bar": _rank_bar,
        "fixed": lambda value, places: "–" if value is None or math.isnan(value) else f"{value:.{places}f}",
    }

    def render(template: str, **values: Any) -> str:
        # Indentation is a third of a page of tables, and nothing on these pages shows it.
        return re.sub(r"\n\s+", "\n", templates.get_template(template).render(**values)) + "\n"

    return render


def _slug(*parts: str) -> str:
    """Return a file's name that says what it is, is safe everywhere, and is of these parts only."""
    plain = ["-".join(re.findall(r"[a-z0-9_.]+", p.lower())).strip(".")[:44] or "x" for p in parts]
    return "--".join(plain) + ("" if plain == list(parts) else "-" + digest(list(parts))[:8])


def _board_file(t: Table) -> str:
    source = () if t.source == "real" else (t.source,)
    return f"boards/{_slug(t.suite, *source, t.dataset, t.task)}.html"


def _row_file(t: Table, line: Line) -> str:
    words = "-".join(re.findall(r"[a-z0-9_]+", f"{t.suite} {t.dataset} {line.name}".lower()))[:80]
    return f"rows/{words}-{digest([t.suite, line.combination])[:10]}.html"


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: spreadsheet_cell(v) for k, v in row.items()} for row in rows)
    return buffer.getvalue()


# ---------------------------------------------------------------- drawn numbers


@dataclass(frozen=True)
class Axis:
    """A common axis of intervals, cut off where a few rows would squash all the others.

    Parameters
    ----------
    low, high
        Its ends, in the unit of the metric.
    chance
        Where chance lies; NaN without.
    """

    low: float
    high: float
    chance: float = math.nan

    @classmethod
    def of(cls, spans: Sequence[tuple[float, float, float]], chance: float, *, higher: bool) -> Axis:
        """Return the axis of (low, value, high), cut at twice the way from the best row to chance."""
        known = [v for span in spans for v in span if not math.isnan(v)]
        if not known:
            return cls(0.0, 1.0, chance)
        values = known + ([] if math.isnan(chance) else [chance])
        low, high = min(values), max(values)
        if not math.isnan(chance):
            if higher and max(known) > chance:
                low = max(low, chance - (max(known) - chance))
            elif not higher and min(known) < chance:
                high = min(high, chance + (chance - min(known)))
        pad = (high - low) * 0.04 or max(abs(high), 1.0) * 0.04
        return cls(low - pad, high + pad, chance)

    def at(self, value: float) -> float:
        """Return where a value lies, in % of the axis, at its ends what lies beyond."""
        return round(min(100.0, max(0.0, 100 * (value - self.low) / (self.high - self.low))), 2)

    @property
    def chance_at(self) -> float | None:
        """Where chance lies, in %; None without."""
        return None if math.isnan(self.chance) or not self.low <= self.chance <= self.high else self.at(self.chance)

    def mark(self, low: float, value: float, high: float) -> dict[str, Any] | None:
        """Return a value and its interval as a drawing needs them; None where there is nothing to draw."""
        if math.isnan(value):
            return None
        a, b = (value if math.isnan(v) else v for v in (low, high))
        outside = "left" if value < self.low else "right" if value > self.high else ""
        return {
            "from": self.at(a),
            "width": round(self.at(b) - self.at(a), 2),
            "at": self.at(value),
            "outside": outside,
        }


@functools.lru_cache(maxsize=1024)
def _axis(t: Table) -> Axis:
    return Axis.of([(x.low, x.score, x.high) for x in t.lines], t.chance, higher=t.higher)


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
    rows = {_row_file(t, line) for t in board.tables for line in t.lines}
    return {
        "groups": groups,
        "board": board,
        "n_rows": len(rows),
        "lost": {s: sorted({f"{r.dataset.label}: {r.error}" for r in rs}) for s, rs in sorted(board.lost.items())},
    }


def _index_line(name: str, t: Table, n_tables: int) -> dict[str, Any]:
    axis = _axis(t)
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
        axis = _axis(t)
        blocks.append(
            {
                "table": t,
                "anchor": f"table-{n + 1}",
                "axis": axis,
                "ticks": _ticks(axis, 3),
                "marks": {x.name: axis.mark(x.low, x.score, x.high) for x in t.lines},
                **_plots(t, board),
                "levels": sorted({x.level for x in t.lines}),
                "devices": sorted({r.cost.device for x in t.lines for r in x.records if r.cost.device}),
                "sentences": _sentences(t),
                "suite": t.first.protocol.suite,
            }
        )
    lines = [x for t in tables for x in t.lines]
    others = {_board_file(t): t for t in board.tables if (t.suite, t.source) == (tables[0].suite, tables[0].source)}
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
    pareto = [p for cost in ("seconds", "n_parameters") if (p := _pareto(t, cost)) is not None]
    return {"heat": _heat(t), "pareto": pareto, "transfer": _transfer(t, board)}


def _sentences(t: Table) -> list[str]:
    return list(t.compared.sentences) if t.compared else []


def _heat(t: Table) -> dict[str, Any] | None:
    """Return the scores of backbones × masks, the untrained backbone beside, shaded from chance to the best."""
    cells = {(x.backbone, x.mask): x for x in t.on_equal_terms if x.kind == "pretrained"}
    untrained = {x.backbone: x for x in t.lines if x.kind == "untrained"}
    backbones, masks = sorted({b for b, _ in cells}), sorted({m for _, m in cells})
    if not cells or (len(backbones) < 2 and len(masks) < 2):
        return None
    scores = [x.score for x in (*cells.values(), *untrained.values()) if not math.isnan(x.score)]
    if not scores:
        return None
    best = max(scores) if t.higher else min(scores)
    worst = t.chance if not math.isnan(t.chance) else (min(scores) if t.higher else max(scores))
    span = best - worst

    def cell(x: Line | None) -> dict[str, Any] | None:
        if x is None or math.isnan(x.score):
            return None
        share = (x.score - worst) / span if span and (span > 0) == t.higher else 0.0
        silent = x.above_chance is False
        return {"line": x, "share": 0 if silent else round(100 * min(1.0, max(0.0, share))), "silent": silent}

    return {
        "masks": masks,
        "rows": [(b, [cell(cells.get((b, m))) for m in masks], cell(untrained.get(b))) for b in backbones],
        "untrained": bool(untrained),
    }


WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 14, 44


def _x(share: float) -> float:
    return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)


def _y(share: float) -> float:
    return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)


def _ticks(axis: Axis, n: int) -> list[dict[str, Any]]:
    """Return round numbers inside an axis, about ``n`` of them."""
    span = axis.high - axis.low
    raw = span / n
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= raw)
    places = max(0, -math.floor(math.log10(step) + 1e-9)) + (1 if step / power == 2.5 else 0)
    first = math.ceil(axis.low / step)
    values = [k * step for k in range(first, math.floor(axis.high / step) + 1)]
    return [{"at": axis.at(v), "text": f"{v + 0.0:.{places}f}".replace("-", "−")} for v in values]


def _log_ticks(low: float, high: float, text: Any) -> list[dict[str, Any]]:
    """Return 1, 2, 5 × powers of ten inside decades; powers alone where there are many."""
    found = []
    for power in range(math.floor(low), math.ceil(high) + 1):
        for m in (1, 2, 5) if high - low < 1.6 else (1,):
            value = power + math.log10(m)
            if low <= value <= high:
                found.append({"at": 100 * (value - low) / (high - low), "text": text(10**value)})
    return found


def _pareto(t: Table, cost: str) -> dict[str, Any] | None:
    """Return score against cost: points, and the step line of those on equal terms that none beats on both."""
    points = [(getattr(x, cost), x) for x in t.lines if getattr(x, cost) > 0 and not math.isnan(x.score)]
    # Under equal budgets parameters hardly differ: then there is nothing to see.
    if len(points) < 2 or max(c for c, _ in points) < 1.25 * min(c for c, _ in points):
        return None
    axis = Axis.of([(x.low, x.score, x.high) for _, x in points], t.chance, higher=t.higher)
    logs = [math.log10(c) for c, _ in points]
    pad = max(0.08 * (max(logs) - min(logs)), 0.05)
    low, high = min(logs) - pad, max(logs) + pad

    def x_of(c: float) -> float:
        return (math.log10(c) - low) / (high - low)

    def better(a: float, b: float) -> bool:
        return a > b if t.higher else a < b

    front: list[tuple[float, Line]] = []
    for c, x in sorted(points, key=lambda p: (p[0], -p[1].score if t.higher else p[1].score)):
        if not x.apart and (not front or better(x.score, front[-1][1].score)):
            front.append((c, x))
    steps = []
    for n, (c, x) in enumerate(front):
        if n:
            steps.append(f"{_x(x_of(c))},{_y(axis.at(front[n - 1][1].score) / 100)}")
        steps.append(f"{_x(x_of(c))},{_y(axis.at(x.score) / 100)}")
    shown = [_point(x, x_of(c), axis, (c, x) in front, _cost(cost, c), t) for c, x in points]
    _place_labels(shown, axis)
    seconds = cost == "seconds"
    return {
        "name": "time" if seconds else "parameters",
        "title": "Score against time" if seconds else "Score against parameters",
        "x_label": "seconds of all folds, pretraining included (log)"
        if seconds
        else "parameters of the backbone (log)",
        "y_label": _y_label(t),
        "points": shown,
        "front": " ".join(steps),
        "front_names": [x.name for _, x in front],
        "x_ticks": [
            {"x": _x(k["at"] / 100), "text": k["text"]}
            for k in _log_ticks(low, high, (lambda v: f"{v:g}") if seconds else count)
        ],
        **_frame(axis),
    }


def _frame(axis: Axis) -> dict[str, Any]:
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "right": WIDTH - RIGHT,
        "top": TOP,
        "bottom": HEIGHT - BOTTOM,
        "y_ticks": [{"y": _y(k["at"] / 100), "text": k["text"]} for k in _ticks(axis, 4)],
        "chance": None if axis.chance_at is None else _y(axis.chance_at / 100),
    }


def _y_label(t: Table) -> str:
    unit = f" in {t.unit}" if t.unit else ""
    return f"{t.metric}{unit}, {'higher' if t.higher else 'lower'} is better"


def _cost(cost: str, value: float) -> str:
    return duration(value) if cost == "seconds" else f"{count(value)} parameters"


def _point(x: Line, share: float, axis: Axis, on_front: bool, where: str, t: Table) -> dict[str, Any]:
    a, b = (x.score if math.isnan(v) else v for v in (x.low, x.high))
    interval = "" if math.isnan(x.low) else f" ({x.low:.{t.places}f} to {x.high:.{t.places}f})"
    return {
        "line": x,
        "x": _x(share),
        "y": _y(axis.at(x.score) / 100),
        "y_low": _y(axis.at(a) / 100),
        "y_high": _y(axis.at(b) / 100),
        "front": on_front,
        "text": f"{x.name}{' ‡' if x.apart else ''}, {KINDS[x.kind]}: "
        f"{t.metric} {x.score:.{t.places}f}{interval}, {where}",
        "label": "",
        "label_x": 0.0,
        "label_y": 0.0,
        "anchor": "start",
        "file": "../" + _row_file(t, x),
    }


def _place_labels(points: Sequence[dict[str, Any]], axis: Axis, size: float = 11.0) -> None:
    """Write names beside points where there is room: those of the front first, none over another or over a point."""
    taken = [(p["x"] - 6, p["y"] - 6, p["x"] + 6, p["y"] + 6) for p in points]
    if axis.chance_at is not None:
        y = _y(axis.chance_at / 100)
        taken.append((WIDTH - RIGHT - 42, y - 16, WIDTH - RIGHT, y + 1))
    # Beyond some dozens of names there is no room anyway.
    for p in sorted(points, key=lambda p: (not p["front"], p["y"]))[:40]:
        name = p["line"].name
        w = 0.56 * size * len(name)
        for anchor, dx, dy in (("start", 9, 4), ("end", -9, 4), ("middle", 0, -11), ("middle", 0, 19)):
            x0 = p["x"] + dx - {"start": 0, "end": w, "middle": w / 2}[anchor]
            box = (x0, p["y"] + dy - size, x0 + w, p["y"] + dy + 2)
            inside = box[0] >= LEFT + 2 and box[2] <= WIDTH - 2 and box[1] >= 2 and box[3] <= HEIGHT - BOTTOM
            own = (p["x"] - 6, p["y"] - 6, p["x"] + 6, p["y"] + 6)
            if inside and not any(_overlap(box, other) for other in taken if other != own):
                p |= {
                    "label": name,
                    "anchor": anchor,
                    "label_x": round(p["x"] + dx, 1),
                    "label_y": round(p["y"] + dy, 1),
                }
                taken.append(box)
                break


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _transfer(t: Table, board: Board) -> dict[str, Any] | None:
    """Return reconstruction against this task over the rows that have both, on the same people under one protocol."""
    if t.reconstructs:
        return None
    ground = (t.suite, t.first.data and t.first.data.fingerprint, t.first.protocol.suite)
    for other in board.tables:
        if other.reconstructs and ground == (
            other.suite,
            other.first.data and other.first.data.fingerprint,
            other.first.protocol.suite,
        ):
            theirs = {x.combination: x for x in other.on_equal_terms}
            both = [(theirs[x.combination], x) for x in t.on_equal_terms if x.combination in theirs and x.backbone]
            both = [(r, x) for r, x in both if not (math.isnan(r.score) or math.isnan(x.score))]
            if len(both) >= 3:
                return _transfer_plot(t, other, both)
    return None


def _transfer_plot(t: Table, other: Table, both: Sequence[tuple[Line, Line]]) -> dict[str, Any]:
    axis = Axis.of([(x.low, x.score, x.high) for _, x in both], t.chance, higher=t.higher)
    across = Axis.of([(r.score, r.score, r.score) for r, _ in both], other.chance, higher=other.higher)
    shown = [
        _point(x, across.at(r.score) / 100, axis, False, f"reconstruction {other.metric} {r.score:.{other.places}f}", t)
        for r, x in both
    ]
    _place_labels(shown, axis)
    own = [x for x in both if x[1].kind == "pretrained"]
    rho = math.nan
    if len(own) >= 4 and len({r.score for r, _ in own}) > 1 and len({x.score for _, x in own}) > 1:
        sign = 1 if t.higher == other.higher else -1
        rho = sign * float(stats.spearmanr([r.score for r, _ in own], [x.score for _, x in own]).statistic)
    return {
        "name": "transfer",
        "title": "Reconstruction against this task",
        "x_label": f"{other.task}: {other.metric}",
        "y_label": _y_label(t),
        "points": shown,
        "front": "",
        "x_ticks": [{"x": _x(k["at"] / 100), "text": k["text"]} for k in _ticks(across, 4)],
        "rho": None if math.isnan(rho) else f"{rho:+.2f}",
        "n": len(own),
        "file": "../" + _board_file(other),
        **_frame(axis),
    }


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
            for a in [_axis(t)]
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
    title = {"skill": "skill", "brier": "Brier score"}.get(base, metric_name(base))
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

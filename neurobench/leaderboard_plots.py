"""What is drawn of a board: intervals on a common axis, backbones by masks, score against cost and reconstruction.

Points lead to the pages of their rows, so where a page lies is said here too.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import scipy

from neurobench.identity import digest
from neurobench.leaderboard_tables import KINDS, Board, Line, Table
from neurobench.tables import count, duration

__all__ = ["Axis", "axis_of", "board_file", "heat_map", "pareto_plot", "row_file", "ticks", "transfer_plot"]

# ---------------------------------------------------------------- where pages lie


def _slug(*parts: str) -> str:
    """Return a file's name that says what it is, is safe everywhere, and is of these parts only."""
    plain = ["-".join(re.findall(r"[a-z0-9_.]+", p.lower())).strip(".")[:44] or "x" for p in parts]
    return "--".join(plain) + ("" if plain == list(parts) else "-" + digest(list(parts))[:8])


def board_file(t: Table) -> str:
    source = () if t.source == "real" else (t.source,)
    return f"boards/{_slug(t.suite, *source, t.dataset, t.task)}.html"


def row_file(t: Table, line: Line) -> str:
    words = "-".join(re.findall(r"[a-z0-9_]+", f"{t.suite} {t.dataset} {line.name}".lower()))[:80]
    return f"rows/{words}-{digest([t.suite, line.combination])[:10]}.html"


# ---------------------------------------------------------------- axes


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
        """Return the axis of (low, value, high), cut at twice the way from the best row to chance.

        Of a few rows alone: no more than a quarter of the values, rounded up, lies beyond.
        """
        known = [v for span in spans for v in span if not math.isnan(v)]
        if not known:
            return cls(0.0, 1.0, chance)
        values = known + ([] if math.isnan(chance) else [chance])
        low, high = min(values), max(values)
        scores = sorted(value for _, value, _ in spans if not math.isnan(value))
        if not math.isnan(chance) and scores:
            few = min(len(scores) - 1, math.ceil(len(scores) / 4))
            if higher and max(known) > chance:
                low = max(low, min(chance - (max(known) - chance), scores[few]))
            elif not higher and min(known) < chance:
                high = min(high, max(chance + (chance - min(known)), scores[-1 - few]))
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
def axis_of(t: Table) -> Axis:
    return Axis.of([(x.low, x.score, x.high) for x in t.lines], t.chance, higher=t.higher)


# ---------------------------------------------------------------- plots


def heat_map(t: Table) -> dict[str, Any] | None:
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


def ticks(axis: Axis, n: int) -> list[dict[str, Any]]:
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


def pareto_plot(t: Table, cost: str) -> dict[str, Any] | None:
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
        **_frame(axis, shown),
    }


def _frame(axis: Axis, points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what lies around points, of which as many are named as there is room for."""
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "right": WIDTH - RIGHT,
        "top": TOP,
        "bottom": HEIGHT - BOTTOM,
        "y_ticks": [{"y": _y(k["at"] / 100), "text": k["text"]} for k in ticks(axis, 4)],
        "chance": None if axis.chance_at is None else _y(axis.chance_at / 100),
        "chance_name": _place_labels(points, axis),
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
        "file": "../" + row_file(t, x),
    }


def _place_labels(points: Sequence[dict[str, Any]], axis: Axis, size: float = 11.0) -> dict[str, Any] | None:
    """Write names beside points where there is room: those of the front first, none over another or over a point.

    Returns where the line of chance is named: at the end that has the most room.
    """
    taken = [(p["x"] - 6, p["y"] - 6, p["x"] + 6, p["y"] + 6) for p in points]
    chance = None
    if axis.chance_at is not None:
        y, wide = _y(axis.chance_at / 100), 42
        ends = (("end", WIDTH - RIGHT - wide, WIDTH - RIGHT), ("start", LEFT + 2, LEFT + 2 + wide))
        places = [(anchor, y + dy, (x0, y + dy - 12, x1, y + dy + 5)) for dy in (-4, 14) for anchor, x0, x1 in ends]
        anchor, at, box = min(places, key=lambda place: sum(_overlap(place[2], other) for other in taken))
        chance = {"anchor": anchor, "x": box[2] if anchor == "end" else box[0], "y": round(at, 1)}
        taken.append(box)
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
    return chance


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def transfer_plot(t: Table, board: Board) -> dict[str, Any] | None:
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
                return _drawn_transfer(t, other, both)
    return None


def _drawn_transfer(t: Table, other: Table, both: Sequence[tuple[Line, Line]]) -> dict[str, Any]:
    axis = Axis.of([(x.low, x.score, x.high) for _, x in both], t.chance, higher=t.higher)
    across = Axis.of([(r.score, r.score, r.score) for r, _ in both], other.chance, higher=other.higher)
    shown = [
        _point(x, across.at(r.score) / 100, axis, False, f"reconstruction {other.metric} {r.score:.{other.places}f}", t)
        for r, x in both
    ]
    own = [x for x in both if x[1].kind == "pretrained"]
    rho = math.nan
    if len(own) >= 4 and len({r.score for r, _ in own}) > 1 and len({x.score for _, x in own}) > 1:
        sign = 1 if t.higher == other.higher else -1
        rho = sign * float(scipy.stats.spearmanr([r.score for r, _ in own], [x.score for _, x in own]).statistic)
    return {
        "name": "transfer",
        "title": "Reconstruction against this task",
        "x_label": f"{other.task}: {other.metric}",
        "y_label": _y_label(t),
        "points": shown,
        "front": "",
        "x_ticks": [{"x": _x(k["at"] / 100), "text": k["text"]} for k in ticks(across, 4)],
        "rho": None if math.isnan(rho) else f"{rho:+.2f}",
        "n": len(own),
        "file": "../" + board_file(other),
        **_frame(axis, shown),
    }

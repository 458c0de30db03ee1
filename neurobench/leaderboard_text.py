"""A board in words, as plain rows for CSV and JSON, and as Markdown."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from neurobench.leaderboard_tables import KINDS, NO_GAIN, Board, Line, Table, mean_known
from neurobench.tables import APART, missing
from neurobench.tables import markdown_text as _plain

__all__ = ["DECLARED", "as_json", "facts", "flat", "gain", "markdown", "rank_text", "skill_text", "words"]

# ---------------------------------------------------------------- words


def words(table: Table) -> str:
    """Return what may be said of who is best, in one sentence."""
    if table.withheld:
        return "Not ranked."
    if not table.lines:
        return "Every row failed."
    if not table.ranked:
        return "Not ranked: there are no held-out predictions beside these records, so no two rows can be compared."
    return _words_of_ranks(table) + _words_of_evidence(table)


def _words_of_evidence(table: Table) -> str:
    """Return what a reader has to know of comparisons that were computed elsewhere."""
    if not (table.travelled and table.compared):
        return ""
    n = table.compared.never_met
    apart = (
        f" {n} {'pair of rows was' if n == 1 else 'pairs of rows were'} sent in apart and never compared." if n else ""
    )
    return f"{apart} {DECLARED}"


DECLARED = (
    "Ranks are from comparisons that the submitter computed: without the recordings nobody else can compute them."
)


def _words_of_ranks(table: Table) -> str:
    n, beside = len(table.on_equal_terms), len(table.lines) - len(table.on_equal_terms)
    if table.leader is not None:
        less = f" on equal terms; {_n_rows(beside)} (‡) not ranked" if beside else ""
        return f"{table.leader.name} is better than every other row{less}."
    if n == 1:
        return "There is one row only."
    heard = [line for line in table.front if line.above_chance is not False]
    if not heard:
        return f"No row is above chance, so none is ahead; {len(table.front)} of {n} share first place."
    if len(table.front) == 1:
        return (
            f"{table.front[0].name} is ahead of every row that can be compared; {_n_rows(len(table.unpaired))} cannot."
        )
    rest = f" {_n_rows(len(table.unpaired)).capitalize()} cannot be compared." if table.unpaired else ""
    separates = (
        "nothing that is known separates them"
        if table.compared and table.compared.never_met
        else "nothing separates them"
    )
    return f"{len(table.front)} of {n} rows share first place: {separates}.{rest}"


def _n_rows(n: int) -> str:
    return "1 row" if n == 1 else f"{n} rows"


def gain(table: Table) -> tuple[str, str]:
    """Return whether pretraining is shown to be better than the best control: a short word, and a sentence."""
    return table.compared.gain if table.compared else NO_GAIN


# ---------------------------------------------------------------- flat rows, for CSV and JSON


def flat(table: Table, line: Line) -> dict[str, Any]:
    """Return a row as plain values under fixed names; what is not known is None."""
    r = line.first
    return {
        "suite": table.suite,
        "dataset": table.dataset,
        "source": table.source,
        "task": table.task,
        "kind": line.kind,
        "row": line.name,
        "backbone": line.backbone,
        "mask": line.mask,
        "status": r.status,
        "ranked": line.rank is not None,
        "rank_first": line.rank[0] if line.rank else None,
        "rank_last": line.rank[1] if line.rank else None,
        # A record may have been run again, and its rank still be what the submitter compared.
        "rank_verification": None if line.rank is None else "declared" if table.travelled else "recomputed",
        "metric": r.headline,
        "unit": table.unit,
        "higher_is_better": table.higher,
        "score": _known(line.score),
        "low": _known(line.low),
        "high": _known(line.high),
        "chance": _known(mean_known(m.chance for m in line.heads)),
        "above_chance": line.above_chance,
        "skill": _known(line.skill),
        "best_control": r.best_baseline,
        "apart": ", ".join(line.apart) or None,
        "pretraining_learned": None if r.pretraining is None else not line.stuck,
        "n_subjects": r.n_subjects,
        "n_parameters": _known(line.n_parameters),
        "seconds": _known(line.seconds),
        "peak_memory_mb": _known(line.peak_memory_mb),
        "device": r.cost.device,
        "verification": line.level,
        "profile": r.protocol.profile,
        "split": r.protocol.split,
        "n_folds": r.protocol.n_folds,
        "adaptation": r.protocol.adaptation,
        "transductive": r.protocol.transductive,
        "objective": r.protocol.objective,
        "cohort": r.data.fingerprint if r.data else "",
        "seeds": line.seeds,
        "records": [x.id for x in line.records],
        "error": r.error,
    }


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


# ---------------------------------------------------------------- Markdown


def markdown(board: Board) -> str:
    """Return the board as Markdown: one table a (suite, cohort, protocol, task)."""
    return "\n".join(_markdown(board)) + "\n"


HEADINGS = {
    "real": "Real recordings",
    "simulated": "Simulated twins: these numbers measure the software, not a brain",
}


def _markdown(board: Board) -> Iterator[str]:
    yield "# Leaderboard\n"
    yield "Made by `neurobench leaderboard build` from the records in `results/`; do not edit. The same with pictures,"
    yield "sorting and filters is in `site/`.\n"
    yield "- *rank*: the ranks that paired evidence leaves open (Holm p < .05, the difference's interval excludes 0,"
    yield "  the better row above chance). Rows whose ranks overlap are tied. `–`: neither held-out predictions nor"
    yield "  comparisons beside the record, so not ranked."
    yield "- *no signal*: not above chance. †: pretraining did not reach the best trivial filler on held-out subjects."
    if any(line.apart for t in board.tables for line in t.lines):
        yield f"- ‡: not ranked with the others: {'; '.join(APART.values())}."
    yield "- *skill*: 1 is perfect, 0 is as good as the best other control, below 0 is worse."
    source = ""
    for t in board.tables:
        if t.source != source:
            source = t.source
            yield f"\n## {HEADINGS.get(source, source)}"
        simulated = " (simulated)" if source == "simulated" else ""
        yield f"\n### {_plain(t.task)} on {_plain(t.dataset)} · {_plain(t.suite)}{simulated}\n"
        yield _plain(facts(t)) + ".\n"
        yield f"**{_plain(words(t))}** {_plain(t.withheld or (gain(t)[1] if t.ranked else ''))}\n"
        yield from (f"{_plain(c.text)}\n" for c in t.caveats if c.level == "warning")
        yield f"| rank | row | kind | {_plain(t.metric)} | 95 % interval | skill | verification |"
        yield "|---:|---|---|---:|---:|---:|---|"
        for line in t.lines:
            p = t.places
            cells = [
                rank_text(line),
                _plain(line.name) + (" †" if line.stuck else "") + (" ‡" if line.apart else ""),
                KINDS[line.kind],
                "–" if math.isnan(line.score) else f"{line.score:.{p}f}",
                "–" if math.isnan(line.low) else f"{line.low:.{p}f} to {line.high:.{p}f}",
                skill_text(line),
                line.level,
            ]
            yield "| " + " | ".join(cells) + " |"
        for line in t.failed:
            yield f"\n{_plain(line.name)} failed: {_plain(line.first.error)}"
    for suite, records in sorted(board.lost.items()):
        yield f"\n## Failed with their whole cohort · {_plain(suite)}\n"
        for text in sorted({f"{r.dataset.label}: {r.error}" for r in records}):
            yield f"- {_plain(text)}"


def facts(table: Table) -> str:
    """Return metric, direction, chance, subjects and protocol of a table in one line."""
    said = [table.metric + (f" in {table.unit}" if table.unit else "")]
    said.append("higher is better" if table.higher else "lower is better")
    if not missing(table.chance):
        said.append(f"chance {table.chance:.3g}")
    said.append(f"{table.n_subjects} held-out subjects")
    p = table.first.protocol
    split = {"subjects": f"{p.n_folds} folds by subject", "site": "one site left out at a time"}.get(p.split, p.split)
    said += [f"profile {p.profile}", split, p.adaptation]
    if table.n_seeds > 1:
        said.append(f"mean over {table.n_seeds} seeds, widest limits of their intervals")
    return " · ".join(said)


def rank_text(line: Line) -> str:
    """Return ``1``, ``2–5``, or a dash where there is no rank."""
    if line.rank is None:
        return "–"
    return str(line.rank[0]) if line.rank[0] == line.rank[1] else f"{line.rank[0]}–{line.rank[1]}"


def skill_text(line: Line) -> str:
    """Return the skill, or that there is no signal."""
    if line.above_chance is False:
        return "no signal"
    return "–" if math.isnan(line.skill) else f"{line.skill:+.2f}"


def as_json(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as JSON, one a line, for files whose differences can be read."""
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows)
    return "[\n" + ",\n".join(lines) + "\n]\n"

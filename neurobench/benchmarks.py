"""Our figures beside published ones: what the seed papers and others report, each marked as another protocol.

Published figures are kept in ``anchors.json`` with their source. None is a goal, and none is reproduced here: cohorts,
splits, preprocessing and probes differ, and every line says how.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from neurobench.components import split_names
from neurobench.errors import ConfigError, StoreError, closest
from neurobench.paired import difference_of
from neurobench.results import as_row, load_predictions, load_results, read_record

__all__ = ["Anchor", "anchors", "benchmarks", "is_of", "suite_notes"]


@dataclass(frozen=True)
class Anchor:
    """A published figure, and the row of ours that stands beside it.

    Parameters
    ----------
    suite
        Suite whose records are looked up.
    dataset
        Name, and parameters that matter for it, such as ``camcan[signal=meg]``; others may be anything.
    task, metric
        Labels as in a record.
    row
        Of ours: ``backbone`` and ``mask``, either of them, or ``baseline``; labels as in a record.
    published
        The figure as it is published, in words.
    low, high
        The same as numbers in the metric's unit; equal where a single one is published.
    cohort, n_subjects
        What it was measured on; None: not said in what was read.
    who, source
        Authors and year; DOI, arXiv number or where else it can be read.
    differs
        In what its protocol is another one.
    minus
        The row that ``row`` is compared with, where a difference is published; empty: none.
    """

    suite: str
    dataset: str
    task: str
    metric: str
    row: Mapping[str, str]
    published: str
    low: float
    high: float
    cohort: str
    n_subjects: int | None
    who: str
    source: str
    differs: str
    minus: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Return how the row of ours is called: ``moe_ssm · local``, ``connectome``, ``roi − random``."""
        names = (" · ".join(r.values()) for r in (self.row, self.minus) if r)
        return " − ".join(names)


@functools.cache
def _content() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(__file__).with_name("anchors.json").read_text(encoding="utf-8"))
    return found


def anchors(suite: str = "") -> tuple[Anchor, ...]:
    """Return the published figures, of one suite or of all.

    Raises
    ------
    ConfigError
        If no figure is kept for a suite of that name.
    """
    every = tuple(Anchor(**a) for a in _content()["anchors"])
    known = list(dict.fromkeys(a.suite for a in every))
    if suite and suite not in known:
        raise ConfigError(
            f"no published figure is kept for a suite {suite!r}.",
            allowed=", ".join(known),
            likely=closest(suite, known),
            next_step="Leave --suite out to see all.",
        )
    return tuple(a for a in every if suite in ("", a.suite))


def suite_notes() -> dict[str, str]:
    """Return what else a reader of a suite should know, by its name."""
    return dict(_content()["notes"])


def benchmarks(outs: Sequence[str | Path] = (), *, suite: str = "") -> pd.DataFrame:
    """Return our figures beside the published ones.

    Parameters
    ----------
    outs
        Output folders of runs, or folders of record files such as ``leaderboard/results/NAME``. A difference needs the
        held-out predictions of both rows beside.
    suite
        One suite only; empty: all.

    Returns
    -------
    DataFrame
        One row for every published figure and every row of ours that stands beside it (several seeds, backbones or
        sources are several rows), and one with ``score`` missing where there is none. Columns: suite, dataset, task,
        metric, unit, row, source (``real`` or ``simulated``), seed, score, low, high, n_subjects, baseline and
        baseline_score (the best one on the same subjects), changed (what differs from the suite as it is); published,
        published_low, published_high, cohort, published_n, who, reference, protocol (always ``another``), differs.

    Raises
    ------
    ConfigError
        If no figure is kept for the suite.
    StoreError
        If a folder holds no record, or one that was changed.
    """
    wanted = anchors(suite)
    runs = [_Run.of(Path(out)) for out in outs]
    return pd.DataFrame([line for a in wanted for line in _lines(a, runs)])


# ---------------------------------------------------------------- our side


def is_of(label: str, wanted: str) -> bool:
    """Return whether a dataset is of that name and has those parameters, whatever others it has."""
    (name, own), (asked, needed) = (
        (text.partition("[")[0], set(split_names(text.partition("[")[2].rstrip("]")))) for text in (label, wanted)
    )
    return name == asked and needed <= own


_OURS = ("row", "source", "seed", "unit", "score", "low", "high", "n_subjects", "changed")


@dataclass(frozen=True, eq=False)
class _Run:
    """Records of a folder as one table."""

    folder: Path
    table: pd.DataFrame

    @classmethod
    def of(cls, folder: Path) -> _Run:
        if (folder / "records").is_dir():
            return cls(folder, load_results(folder))
        paths = sorted(folder.glob("*.json"))
        if not paths:
            raise StoreError(
                f"{folder} holds no records.",
                allowed="the --out folder of a run, or a folder of record files",
                next_step="Run a suite first, such as `neurobench run --suite benchmarks/camcan-aging.yaml`.",
            )
        return cls(folder, pd.DataFrame([as_row(read_record(p)) | {"record": str(p)} for p in paths]))

    def rows(self, anchor: Anchor, of: Mapping[str, str]) -> list[dict[str, Any]]:
        """Return the rows of a suite's records that fit: the kind that was asked for, scored, newest code only."""
        t = self.table
        at = (t["task"] == anchor.task) & (t["status"] == "ok")
        at &= t["dataset"].map(lambda label: is_of(label, anchor.dataset)).astype(bool)
        at &= t["suite"].str.partition("@")[0] == anchor.suite
        if "baseline" in of:
            at &= (t["kind"] == "baseline") & (t["row"] == of["baseline"])
        else:
            at &= t["kind"] == "pretrained"
            for part, label in of.items():
                at &= t[part] == label
        return [{str(k): v for k, v in row.items()} for row in t[at].to_dict("records")]


def _lines(anchor: Anchor, runs: Sequence[_Run]) -> Iterator[dict[str, Any]]:
    theirs = {
        "published": anchor.published,
        "published_low": anchor.low,
        "published_high": anchor.high,
        "cohort": anchor.cohort,
        "published_n": anchor.n_subjects,
        "who": anchor.who,
        "reference": anchor.source,
        "protocol": "another",
        "differs": anchor.differs,
    }
    asked = {"suite": anchor.suite, "dataset": anchor.dataset, "task": anchor.task, "metric": anchor.metric}
    ours = [line for run in runs for line in _ours(anchor, run)]
    for line in ours or [dict.fromkeys(_OURS) | {"row": anchor.name} | _best_baseline(None, anchor, None)]:
        yield asked | line | theirs


def _ours(anchor: Anchor, run: _Run) -> Iterator[dict[str, Any]]:
    for row in run.rows(anchor, anchor.row):
        if not anchor.minus:
            metric = read_record(Path(row["record"])).metrics.get(anchor.metric)
            if metric is None or metric.value is None:
                continue
            line = {"row": row["row"], "score": metric.value, "low": metric.low, "high": metric.high} | {
                "unit": metric.unit
            }
            yield _about(row) | line | _best_baseline(run, anchor, row)
            continue
        for other in run.rows(anchor, anchor.minus):
            same = ("backbone", "source", "seed", "fingerprint", "protocol")
            kept = all((run.folder / "predictions" / f"{r['id']}.parquet").is_file() for r in (row, other))
            if kept and all(row[k] == other[k] for k in same):
                yield _about(row) | _difference(anchor, run, row, other) | _best_baseline(None, anchor, None)


def _about(row: Mapping[str, Any]) -> dict[str, Any]:
    changed = str(row["suite"]).partition(", changed: ")[2]
    return {"source": row["source"], "seed": row["seed"], "n_subjects": row["n_subjects"], "changed": changed}


def _difference(anchor: Anchor, run: _Run, row: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    tables = [load_predictions(run.folder, str(r["id"])) for r in (row, other)]
    found = difference_of(anchor.metric, *tables, seed=int(row["seed"]))
    return {
        "row": f"{row['row']} − {other['row']}",
        "unit": "",
        "score": found["difference"],
        "low": found["low"],
        "high": found["high"],
    }


def _best_baseline(run: _Run | None, anchor: Anchor, row: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the best baseline on the same subjects, which a figure means little without."""
    best: tuple[str, float] | None = None
    if run is not None and row is not None:
        t = run.table
        at = (t["kind"] == "baseline") & (t["status"] == "ok")
        for key in ("dataset", "task", "source", "seed", "fingerprint", "suite"):
            at &= t[key] == row[key]
        for other in t[at].to_dict("records"):
            metric = read_record(Path(other["record"])).metrics.get(anchor.metric)
            if metric is None or metric.value is None:
                continue
            ahead = best is None or (metric.value > best[1] if metric.higher_is_better else metric.value < best[1])
            best = (str(other["row"]), metric.value) if ahead else best
    return {"baseline": best[0] if best else None, "baseline_score": best[1] if best else None}

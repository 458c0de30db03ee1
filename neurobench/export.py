"""Records in the formats of others: Every Eval Ever's JSON, and a model card with its metadata.

Fields are those of Every Eval Ever's ``eval.schema.json``, version 0.3.0 (package ``every-eval-ever`` 0.3.0, which
needs Python 3.12; where it is installed, what was written is validated against the schema that comes with it).
"""

from __future__ import annotations

import calendar
import importlib
import importlib.resources
import json
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from neurobench.errors import ConfigError, StoreError, closest
from neurobench.identity import digest
from neurobench.plausibility import value_range
from neurobench.results import MetricRecord, Record, load_results, read_record
from neurobench.scoring import INTERVAL, N_BOOTSTRAP
from neurobench.store import atomic_write
from neurobench.tables import markdown_text

__all__ = ["EVERY_EVAL_EVER", "every_eval_ever", "model_card", "validated", "write_every_eval_ever"]

EVERY_EVAL_EVER = "0.3.0"
"""Version of the schema that is written."""

_SIMULATED = "simulated: measures the software, not the model"

_GLOBAL = ("accuracy", "auroc", "balanced_accuracy", "brier", "mae", "mcc", "pearson_r", "pr_auc", "r2")
"""Metrics that mean the same everywhere; the others get a name of their own in what is shared."""


def _records(out: Path) -> list[Record]:
    """Return the newest record of every row that has a number."""
    records = [read_record(Path(p)) for p in load_results(out)["record"]]
    good = [r for r in records if r.status == "ok" and r.data is not None]
    if not good:
        raise StoreError(f"{out} holds no record with a number.", next_step="See `neurobench run` for why rows failed.")
    return good


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-").lower()


def _name(record: Record) -> str:
    """Return a name for files and ids; a baseline and a filler may be called alike."""
    return _slug(record.row if record.backbone is not None else f"{record.kind} {record.row}")


def _title(record: Record) -> str:
    data = record.data
    assert data is not None
    return f"{data.title} ({_SIMULATED})" if data.source == "simulated" else data.title


# ---------------------------------------------------------------- Every Eval Ever


def write_every_eval_ever(out: Path, to: Path, *, developer: str) -> list[Path]:
    """Write one file a row (backbone and mask, baseline, filler); return their paths.

    Raises
    ------
    StoreError
        If the folder holds no record with a number, or one that was changed.
    """
    by_name: dict[str, list[Record]] = {}
    for record in _records(out):
        by_name.setdefault(_name(record), []).append(record)
    paths = []
    for name, own in sorted(by_name.items()):
        path = to / f"{name}.json"
        log = every_eval_ever(own, developer=developer)
        atomic_write(path, json.dumps(log, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        paths.append(path)
    return paths


def every_eval_ever(records: Sequence[Record], *, developer: str) -> dict[str, Any]:
    """Return the records of one row as one evaluation log."""
    records = sorted(records, key=lambda r: (r.dataset.label, r.task.label, r.protocol.seed, r.id))
    first = records[0]
    model = f"{_slug(developer)}/{_name(first)}"
    newest = max(r.written for r in records)
    run = digest(sorted(r.id for r in records))
    return {
        "schema_version": EVERY_EVAL_EVER,
        "evaluation_id": f"neurobench/{model}/{run[:16]}",
        "evaluation_timestamp": newest,
        "retrieved_timestamp": str(_epoch(newest)),
        "source_metadata": {
            "source_name": "neurobench",
            "source_type": "evaluation_run",
            "source_organization_name": developer,
            "evaluator_relationship": "other",
        },
        "eval_library": {
            "name": "neurobench-fm",
            "version": first.environment.get("neurobench-fm", "unknown"),
            "additional_details": {"git_commit": first.environment.get("git_commit", "")},
        },
        "model_info": {
            "name": first.row,
            "id": model,
            "developer": developer,
            "additional_details": {
                "deployment_type": "self_deployed",
                "model_availability": "unknown",
                "kind": first.kind,
                **{
                    kind: json.dumps(c.model_dump(mode="json"), sort_keys=True)
                    for kind in ("backbone", "mask", "baseline")
                    if (c := getattr(first, kind)) is not None
                },
            },
        },
        "evaluation_results": [result for r in records for result in _results(r)],
    }


def _epoch(written: str) -> int:
    try:
        return calendar.timegm(time.strptime(written, "%Y-%m-%dT%H:%M:%SZ"))
    except ValueError:
        return 0


def _results(record: Record) -> Iterator[dict[str, Any]]:
    data, p = record.data, record.protocol
    assert data is not None
    protocol = p.model_dump(mode="json", exclude={"recipe"})
    for name, metric in record.metrics.items():
        if metric.value is None:
            continue
        yield {
            "evaluation_result_id": f"{record.id}.{name}",
            "evaluation_name": f"neurobench.{record.task.label}.{record.dataset.label}",
            "evaluation_timestamp": record.written,
            "source_data": {
                "dataset_name": _title(record),
                "source_type": "other",
                "additional_details": {
                    "source": data.source,
                    "licence": data.licence,
                    "access": data.access,
                    "revision": data.revision,
                    "fingerprint": data.fingerprint,
                    "n_subjects": str(data.n_subjects),
                },
            },
            "metric_config": _metric_config(name, metric, headline=name == record.headline),
            "score_details": {
                "score": metric.value,
                "uncertainty": _uncertainty(metric, record.n_subjects),
                "details": _details(record, metric),
            },
            "generation_config": {"additional_details": {k: json.dumps(v) for k, v in protocol.items()}},
        }


def _metric_config(name: str, metric: MetricRecord, *, headline: bool) -> dict[str, Any]:
    low, high = value_range(name)
    return {
        "metric_id": name if name in _GLOBAL else f"neurobench.{name}",
        "metric_name": name,
        "metric_unit": metric.unit or "1",
        "lower_is_better": not metric.higher_is_better,
        "score_type": "continuous",
        "min_score": _bound(low),
        "max_score": _bound(high),
        "additional_details": {"headline": json.dumps(headline)},
    }


def _bound(value: float) -> float | str:
    return value if math.isfinite(value) else "Infinity" if value > 0 else "-Infinity"


def _uncertainty(metric: MetricRecord, n_subjects: int) -> dict[str, Any]:
    found: dict[str, Any] = {"num_samples": n_subjects}
    if metric.low is not None and metric.high is not None:
        interval = {"lower": metric.low, "upper": metric.high, "confidence_level": 0.95, "method": INTERVAL}
        found |= {"confidence_interval": interval, "num_bootstrap_samples": N_BOOTSTRAP}
    return found


def _details(record: Record, metric: MetricRecord) -> dict[str, str]:
    values: Mapping[str, Any] = {
        "record": record.id,
        "content_hash": record.content_hash,
        "chance": metric.chance,
        "p_value": metric.p_value,
        "above_chance": metric.above_chance,
        "skill_over_best_control": record.skill,
        "best_control": record.best_baseline,
    }
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in values.items() if v is not None}


def validated(paths: Sequence[Path]) -> str:
    """Return in words whether files are valid by the schema of the installed ``every-eval-ever``.

    Raises
    ------
    StoreError
        If one is not, with the first thing that is wrong in it.
    """
    try:
        schemas = importlib.resources.files("every_eval_ever") / "schemas"
        schema = json.loads((schemas / "eval.schema.json").read_text(encoding="utf-8"))
        jsonschema = importlib.import_module("jsonschema")
    except (ImportError, OSError, ValueError):
        return "not validated here: pip install every-eval-ever (Python 3.12 or newer), and export again"
    validator = jsonschema.Draft7Validator(schema)
    for path in paths:
        log = json.loads(path.read_text(encoding="utf-8"))
        if (error := next(iter(validator.iter_errors(log)), None)) is not None:
            raise StoreError(f"{path} is not valid by schema {schema.get('version')}: {error.message[:300]}.")
    return f"valid by the installed schema, version {schema.get('version')}"


# ---------------------------------------------------------------- model card


def model_card(out: Path, row: str = "") -> str:
    """Return the evaluation of a model card: metadata (``model-index``) and a table with intervals and controls.

    Parameters
    ----------
    out
        Output folder.
    row
        Label of the row that the card is of; all pretrained rows without one (all rows where none is).

    Raises
    ------
    ConfigError
        If there is no such row.
    StoreError
        If the folder holds no record with a number, or one that was changed.
    """
    import yaml

    records = _records(out)
    rows = list(dict.fromkeys(r.row for r in records))
    if row and row not in rows:
        raise ConfigError(f"there is no row {row!r}.", allowed=", ".join(rows), likely=closest(row, rows))
    pretrained = [r.row for r in records if r.kind == "pretrained"]
    named = [row] if row else list(dict.fromkeys(pretrained or rows))
    index = {"model-index": [_index(name, [r for r in records if r.row == name]) for name in named]}
    head = yaml.safe_dump(index, sort_keys=False, allow_unicode=True, width=1000)
    lines = ["---", head.rstrip(), "---", "", "## Evaluation", ""]
    if any(r.data is not None and r.data.source == "simulated" for r in records):
        lines += ["**Rows on simulated data measure the software, not the model.**", ""]
    lines += [
        "| dataset | task | row | metric | score | 95 % interval | chance | skill | over | n |",
        "|---|---|---|---|---:|---|---:|---:|---|---:|",
    ]
    tasks = {(r.dataset.label, r.task.label, r.protocol.seed) for r in records if r.row in named}
    order = {"pretrained": 0, "given": 1, "untrained": 2, "baseline": 3, "filler": 4}
    for r in sorted(records, key=lambda r: (r.dataset.label, r.task.label, r.protocol.seed, order[r.kind], r.row)):
        if (r.dataset.label, r.task.label, r.protocol.seed) in tasks and (r.row in named or r.kind != "pretrained"):
            lines.append(_card_row(r, bold=r.row in named))
    lines += [
        "",
        f"Intervals: {INTERVAL}. Skill: 1 is perfect, 0 is as good as the best control. Made with neurobench "
        f"{records[0].environment.get('neurobench-fm', '')}.",
        "",
    ]
    return "\n".join(lines)


def _index(name: str, records: Sequence[Record]) -> dict[str, Any]:
    results = []
    for r in records:
        head = r.metrics[r.headline]
        if head.value is None:
            continue
        assert r.data is not None
        interval = "" if head.low is None else f", 95 % interval {_short(head.low)} to {_short(head.high)}"
        unit = f" in {head.unit}" if head.unit else ""
        results.append(
            {
                "task": {"type": r.task.name, "name": r.task.label},
                "dataset": {"type": r.dataset.name, "name": _title(r), "revision": r.data.revision},
                "metrics": [
                    {
                        "type": r.headline,
                        "value": head.value,
                        "name": f"{r.headline}{unit}{interval}, n = {r.n_subjects}, seed {r.protocol.seed}",
                    }
                ],
            }
        )
    return {"name": name, "results": results}


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _card_row(record: Record, *, bold: bool) -> str:
    head = record.metrics[record.headline]
    assert record.data is not None
    name = markdown_text(record.row)
    simulated = " (simulated)" if record.data.source == "simulated" else ""
    cells = [
        f"{markdown_text(record.dataset.label)}{simulated}",
        markdown_text(record.task.label),
        f"**{name}**" if bold else name,
        markdown_text(f"{record.headline}{f' ({head.unit})' if head.unit else ''}"),
        _short(head.value),
        "" if head.low is None else f"{_short(head.low)} to {_short(head.high)}",
        _short(head.chance),
        _short(record.skill) if record.above_chance is not False else "no signal",
        markdown_text(record.best_baseline),
        str(record.n_subjects),
    ]
    return f"| {' | '.join(cells)} |"

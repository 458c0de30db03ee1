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
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from neurobench.errors import ConfigError, StoreError, closest
from neurobench.identity import digest
from neurobench.plausibility import value_range
from neurobench.results import MetricRecord, Record, load_results, read_record
from neurobench.scoring import INTERVAL, N_BOOTSTRAP
from neurobench.store import atomic_write
from neurobench.tables import decimals, markdown_text, metric_name

__all__ = ["EVERY_EVAL_EVER", "every_eval_ever", "model_card", "superseded", "validated", "write_every_eval_ever"]

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
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.").lower()


def _simulated(record: Record) -> bool:
    return record.data is not None and record.data.source == "simulated"


def _names(records: Iterable[Record]) -> dict[tuple[str, str], str]:
    """Return a name for ids and folders of every (kind, row): a baseline and a filler may be called alike."""
    found = dict.fromkeys((r.kind, r.row, r.backbone is not None) for r in records)
    names = {(kind, row): _slug(row if of_backbone else f"{kind} {row}") for kind, row, of_backbone in found}
    counts = Counter(names.values())
    # Brackets and signs are left out of a name: two rows that differ in them alone stay two.
    return {key: f"{n}-{digest([*key])[:8]}" if counts[n] > 1 else n for key, n in names.items()}


def _title(record: Record) -> str:
    data = record.data
    assert data is not None
    return f"{data.title} ({_SIMULATED})" if _simulated(record) else data.title


# ---------------------------------------------------------------- Every Eval Ever


def write_every_eval_ever(out: Path, to: Path, *, developer: str) -> list[Path]:
    """Write one file a row (backbone and mask, baseline, filler) and source; return their paths.

    They lie as in the collection that they are for, ``data/COLLECTION/DEVELOPER/ROW/UUID.json``, simulated data in a
    collection of their own. The same records get the same path.

    Raises
    ------
    ConfigError
        If nothing is left of the developer's name in a path.
    StoreError
        If the folder holds no record with a number, or one that was changed.
    """
    if not _slug(developer):
        raise ConfigError(
            f"--developer {developer!r} gives no name of a folder.", allowed="at least one letter a to z or digit"
        )
    records = _records(out)
    names = _names(records)
    logs: dict[tuple[str, bool], list[Record]] = {}
    for record in records:
        logs.setdefault((names[record.kind, record.row], _simulated(record)), []).append(record)
    paths = []
    for (name, simulated), own in sorted(logs.items(), key=lambda item: item[0]):
        log = every_eval_ever(own, developer=developer, name=name)
        collection = "neurobench-simulated" if simulated else "neurobench"
        # A random UUID is asked for; one that is drawn from the records gives no second file at a second export.
        uuid = UUID(bytes=bytes.fromhex(digest(log["evaluation_id"])[:32]), version=4)
        path = to / "data" / collection / _slug(developer) / name / f"{uuid}.json"
        atomic_write(path, json.dumps(log, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        paths.append(path)
    return paths


def superseded(paths: Sequence[Path]) -> list[Path]:
    """Return files beside those that were written: of the same rows, and of other records."""
    return sorted(p for folder in {p.parent for p in paths} for p in folder.glob("*.json") if p not in paths)


def every_eval_ever(records: Sequence[Record], *, developer: str, name: str) -> dict[str, Any]:
    """Return the records of one row, all real or all simulated, as one evaluation log."""
    records = sorted(records, key=lambda r: (r.dataset.label, r.task.label, r.protocol.seed, r.id))
    first = records[0]
    model = f"{_slug(developer)}/{name}"
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
        # What is joined by name must not meet: a twin is another evaluation than its dataset.
        source = "simulated." if _simulated(record) else ""
        yield {
            "evaluation_result_id": f"{record.id}.{name}",
            "evaluation_name": f"neurobench.{source}{record.task.label}.{record.dataset.label}",
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
        Label of the row that the card is of; may be left out where only one was pretrained.

    Raises
    ------
    ConfigError
        If there is no such row, or several and none is named.
    StoreError
        If the folder holds no record with a number, or one that was changed.
    """
    import yaml

    records = _records(out)
    rows = list(dict.fromkeys(r.row for r in records))
    if row and row not in rows:
        raise ConfigError(f"there is no row {row!r}.", allowed=", ".join(rows), likely=closest(row, rows))
    pretrained = list(dict.fromkeys(r.row for r in records if r.kind == "pretrained")) or rows
    if not row and len(pretrained) > 1:
        # A reader of the metadata takes every result to be of the one model that the card lies beside.
        raise ConfigError(
            f"a card is of one row, and {out} holds {len(pretrained)}.",
            allowed=", ".join(pretrained),
            next_step=f"Name one: --row '{pretrained[0]}'. `neurobench report` has all of them.",
        )
    name = row or pretrained[0]
    own = [r for r in records if r.row == name]
    head = yaml.safe_dump({"model-index": [_index(name, own)]}, sort_keys=False, allow_unicode=True, width=1000)
    lines = ["---", head.rstrip(), "---", "", "## Evaluation", ""]
    tables = {_table(r) for r in own}
    shown = [r for r in records if _table(r) in tables and (r.row == name or r.kind != "pretrained")]
    if any(map(_simulated, shown)):
        lines += ["**Rows on simulated data measure the software, not the model.**", ""]
    lines += [
        "| dataset | task | protocol | row | metric | score | 95 % interval | chance | skill | over | n |",
        "|---|---|---|---|---|---:|---|---:|---:|---|---:|",
    ]
    order = {"pretrained": 0, "given": 1, "untrained": 2, "baseline": 3, "filler": 4}
    places = {table: _places([r for r in shown if _table(r) == table]) for table in tables}
    for r in sorted(shown, key=lambda r: (*_table(r), order[r.kind], r.row)):
        lines.append(_card_row(r, places[_table(r)], bold=r.row == name))
    lines += [
        "",
        f"Intervals: {INTERVAL}. Skill: 1 is perfect, 0 is as good as the best control. Made with neurobench "
        f"{records[0].environment.get('neurobench-fm', '')}.",
        "",
    ]
    return "\n".join(lines)


def _table(record: Record) -> tuple[str, bool, str, str]:
    """Return what rows have in common that may be compared: dataset, source, task, protocol."""
    return record.dataset.label, _simulated(record), record.task.label, _protocol(record)


def _protocol(record: Record) -> str:
    """Return in words what rows of one dataset and task may differ in beside their components."""
    p = record.protocol
    said = [p.profile, p.adaptation, f"{p.n_folds} folds", f"{p.n_steps} steps", f"seed {p.seed}"]
    usual = {"split": "subjects", "objective": "reconstruction", "harmonise": "none", "probe": "linear"}
    said += [f"{name} {value}" for name, default in usual.items() if (value := getattr(p, name)) != default]
    return ", ".join(said + ["transductive"] * p.transductive)


def _index(name: str, records: Sequence[Record]) -> dict[str, Any]:
    results = []
    for r in records:
        head = r.metrics[r.headline]
        if head.value is None:
            continue
        assert r.data is not None
        n = _places([r])
        interval = "" if head.low is None else f", 95 % interval {head.low:.{n}f} to {head.high:.{n}f}"
        unit = f" in {head.unit}" if head.unit else ""
        # Readers put results together whose types and configuration are equal, and allow them few signs.
        source = "-simulated" if _simulated(r) else ""
        dataset = {
            "type": f"{r.dataset.name}{source}",
            "name": _title(r),
            "config": r.dataset.label,
            "revision": r.data.revision,
        }
        apart = f", not ranked: {', '.join(r.apart)}" if r.apart else ""
        results.append(
            {
                "task": {"type": _slug(r.task.label), "name": r.task.label},
                "dataset": dataset,
                "metrics": [
                    {
                        "type": r.headline,
                        "value": head.value,
                        "name": f"{r.headline}{unit}{interval}, n = {r.n_subjects}, {_protocol(r)}{apart}",
                    }
                ],
            }
        )
    return {"name": name, "results": results}


def _places(records: Iterable[Record]) -> int:
    """Return how many decimals the figures of rows that may be compared have, as a run's own table has them."""
    ends = [(m.low, m.high) for r in records if (m := r.metrics[r.headline]).low is not None and m.high is not None]
    return decimals([low for low, _ in ends], [high for _, high in ends])


def _card_row(record: Record, places: int, *, bold: bool) -> str:
    def fixed(value: float | None) -> str:
        return "" if value is None else f"{value:.{places}f}"

    head = record.metrics[record.headline]
    name = markdown_text(record.row)
    simulated = " (simulated)" if _simulated(record) else ""
    apart = f" (not ranked: {', '.join(record.apart)})" if record.apart else ""
    cells = [
        f"{markdown_text(record.dataset.label)}{simulated}",
        markdown_text(record.task.label),
        markdown_text(_protocol(record)),
        (f"**{name}**" if bold else name) + markdown_text(apart),
        markdown_text(f"{metric_name(record.headline)}{f' ({head.unit})' if head.unit else ''}"),
        fixed(head.value),
        "" if head.low is None else f"{fixed(head.low)} to {fixed(head.high)}",
        fixed(head.chance),
        ("" if record.skill is None else f"{record.skill:+.2f}") if record.above_chance is not False else "no signal",
        markdown_text(record.best_baseline),
        str(record.n_subjects),
    ]
    return f"| {' | '.join(cells)} |"

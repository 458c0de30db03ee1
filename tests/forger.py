"""A forger's tools: bundles that fit themselves and say something else than what was run."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from neurobench.bundle import MANIFEST, PULL_REQUEST, Stripped, pull_request, task_of, zip_bytes
from neurobench.bundle_reader import parse_table
from neurobench.identity import digest
from neurobench.recomputation import recompute, recompute_beside
from neurobench.results import content_hash, parse_record
from neurobench.verification import Verdict, verify

Files = dict[str, bytes]


def of_task(files: Files, task: str, rows: tuple[str, ...] = ()) -> Files:
    """Return a bundle of the records of one task, or of some rows of it."""
    plain = {n: json.loads(c) for n, c in files.items() if n.startswith("records/")}
    ids = {p["id"] for p in plain.values() if p["task"]["name"] == task and (not rows or p["row"] in rows)}
    ids |= {n[12:76] for n, c in files.items() if n.startswith("comparisons/") and json.loads(c)["task"] == task}
    return sealed({n: c for n, c in files.items() if "/" not in n or "folds/" in n or n.partition("/")[2][:64] in ids})


def text_of(plain: dict) -> bytes:
    return json.dumps(plain).encode()


def named(files: Files, row: str, task: str) -> str:
    """Return the id of a record."""
    for name, content in files.items():
        if name.startswith("records/"):
            plain = json.loads(content)
            if (plain["row"], plain["task"]["name"]) == (row, task):
                return plain["id"]
    raise LookupError(row)


def sealed(files: Files) -> Files:
    """Return the files with a text and a manifest that fit them."""
    manifest = json.loads(files[MANIFEST])
    with contextlib.suppress(KeyError, ValueError):  # A record without its headline.
        records = [parse_record(json.loads(c)) for n, c in files.items() if n.startswith("records/")]
        text = pull_request(records, files, [Stripped(**x) for x in manifest["left_behind"]])
        files = files | {PULL_REQUEST: text.encode()}
    manifest["files"] = {
        n: {"sha256": hashlib.sha256(c).hexdigest(), "bytes": len(c)} for n, c in files.items() if n != MANIFEST
    }
    manifest["n_records"] = sum(n.startswith("records/") for n in files)
    return files | {MANIFEST: json.dumps(manifest).encode()}


def with_record(files: Files, record_id: str, change: Callable[[dict], None]) -> Files:
    """Return the files with one record changed, its content hash and the manifest made to fit."""
    plain = json.loads(files[f"records/{record_id}.json"])
    change(plain)
    plain["content_hash"] = content_hash(plain)
    return sealed(files | {f"records/{record_id}.json": json.dumps(plain).encode()})


def with_rows(files: Files, record_id: str, change: Callable[[list[dict]], None]) -> Files:
    """Return the files with the predictions of one record changed, and the manifest made to fit."""
    name = f"predictions/{record_id}.csv"
    rows = list(csv.DictReader(io.StringIO(files[name].decode())))
    change(rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return sealed(files | {name: text.getvalue().encode()})


def judged(files: Files, tmp_path: Path, registry, **options) -> Verdict:
    path = tmp_path / "bundle.zip"
    path.write_bytes(zip_bytes(files))
    return verify(path, registry, **options)


def refused(verdict: Verdict, code: str, says: str) -> None:
    """Assert that a verdict refuses, for this reason."""
    assert verdict.word == "refused"
    assert verdict.exit_code == 1
    errors = [f for f in verdict.findings if f.level == "error"]
    assert any(f.code == code and says in f"{f.path}: {f.message}" for f in errors), errors
    assert not any(f.code == "uncheckable" for f in errors), errors


def scored_again(files: Files, registry, ids: Sequence[str] = ()) -> Files:
    """Return the files with every number of records made to fit their predictions, confounds and skill included."""
    every = [n[8:72] for n in files if n.startswith("records/")]
    for i in ids or every:
        record = parse_record(json.loads(files[f"records/{i}.json"]))
        score = recompute(task_of(record, registry), record, parse_table(files[f"predictions/{i}.csv"]))

        def numbers(p, score=score):
            p["metrics"] = {n: asdict(m) for n, m in score.metrics.items()}
            p["per_fold"] = {n: list(v) for n, v in score.per_fold.items()}
            p |= {"p_value": score.p_value, "above_chance": score.above_chance, "n_subjects": score.n_subjects}
            p["notes"] = list(score.notes)

        files = with_record(files, i, numbers)
    records = {i: parse_record(json.loads(files[f"records/{i}.json"])) for i in every}
    tables = {i: parse_table(files[f"predictions/{i}.csv"]) for i in every}
    for i, record in records.items():
        found, _ = recompute_beside(record, list(records.values()), tables)
        head = record.metrics[record.headline]
        controls = {r.row: r.metrics[r.headline].value for r in records.values() if r.kind != "pretrained"}
        controls.pop(record.row, None)
        best = (max if head.higher_is_better else min)(controls, key=controls.__getitem__)

        skill = (head.value - controls[best]) / (float(head.higher_is_better) - controls[best])

        def beside(p, found=found, best=best, skill=skill):
            leak = {n: m for n, m in p["confounds"].items() if n == "site_leak"}
            p["confounds"] = leak | {n: asdict(m) for n, m in found.items()}
            p |= {"best_baseline": best, "skill": skill}

        files = with_record(files, i, beside)
    return files


def everywhere(files: Files, registry, change: Callable[[list[dict]], None]) -> Files:
    for i in [n[8:72] for n in files if n.startswith("records/")]:
        files = with_rows(files, i, change)
    return scored_again(files, registry)


def with_means(rows: list[dict]) -> None:
    """Give predictions the means of the training targets that go with their truth."""
    for row in rows:
        own = [float(r["truth"]) for r in rows if r["fold"] != row["fold"]]
        row["train_mean"] = repr(sum(own) / len(own))


def renamed(files: Files, record_id: str, change: Callable[[dict, dict], None]) -> tuple[Files, str]:
    """Return the files with a record and its identity changed alike, every hash made to fit, and its new id."""
    plain, identity = (json.loads(files[f"{folder}/{record_id}.json"]) for folder in ("records", "identities"))
    for step in identity["steps"].values():
        change(plain, step["identity"])
    change(plain, identity["evaluation"])
    text, before = json.dumps(identity), ""
    while text != before:
        before = text
        for key, step in json.loads(text)["steps"].items():
            text = text.replace(key, digest(step["identity"]))
    identity = json.loads(text)
    plain["id"] = digest({"evaluation": identity["evaluation"]})
    plain["content_hash"] = content_hash(plain)
    moved = {n: c for n, c in files.items() if record_id not in n}
    moved |= {f"records/{plain['id']}.json": text_of(plain), f"identities/{plain['id']}.json": text_of(identity)}
    moved[f"predictions/{plain['id']}.csv"] = files[f"predictions/{record_id}.csv"]
    return sealed(moved), plain["id"]


def warned(verdict: Verdict, code: str, says: str) -> None:
    """Assert that a verdict does not believe without a word, and says this."""
    assert verdict.exit_code != 0
    assert any(f.code == code and says in f.message for f in verdict.findings), verdict.findings

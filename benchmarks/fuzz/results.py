"""Readers of what neurobench wrote, or says it wrote: records and what lies beside them, bundles, stores, boards."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import re
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.fuzz.reader import Reader
from benchmarks.fuzz.samples import clinic
from benchmarks.performance.board import invented
from neurobench.attestation import Rerun
from neurobench.bundle import FORMAT, MANIFEST
from neurobench.bundle_reader import Contents, parse_folds, parse_table, read_bundle
from neurobench.errors import BundleError
from neurobench.evidence import Evidence, read_cohort
from neurobench.identity import digest
from neurobench.leaderboard import read_board
from neurobench.leaderboard_text import markdown
from neurobench.learners import Filling
from neurobench.pairwise import PairwiseRecord, name_of
from neurobench.parsing import parse_json
from neurobench.plugins import Registry, load_registry
from neurobench.pretraining import Recipe, Training
from neurobench.records import DatasetCard
from neurobench.report_cohort import facts, flow, participants, sites
from neurobench.results import Record, content_hash, load_results, read_record, record_text
from neurobench.store import Checkpoint, Store, stored_steps
from neurobench.upkeep import check, collect_garbage, merge
from neurobench.verification import verify

NEEDED = ("fold", "truth", "prediction", "train_mean", "n", "sse", "sst", "sse_best_filler", "guard_sse", "guard_sst")
"""Numbers that are in every row of held-out predictions."""


def readers() -> dict[str, Reader]:
    """Return the readers of results by name."""
    record = invented("net · roi", "pretrained")
    text = record_text(record).encode()
    people = [f"sub-{i:02d}" for i in range(4)]
    fold = {"index": 0, "train": people[:3], "test": people[3:], "train_span": [0, 1], "test_span": [0, 1]}
    folds = json.dumps({"pseudonyms": True, "folds": [fold]}).encode()
    table = ",".join(("participant_id", *NEEDED, "state")) + "\n"
    table += "".join(f"{s},0,{i}{',.5' * (len(NEEDED) - 2)},rest\n" for i, s in enumerate(people))
    arrays, frame = io.BytesIO(), io.BytesIO()
    np.savez(arrays, allow_pickle=False, r2=np.eye(3), masks=np.array(["a", "b"]))
    pd.DataFrame({"participant_id": people, "fold": 0, "truth": [1.0, 2, 3, 4]}).to_parquet(frame)
    step = {"stage": "pretraining", "identity": {"backbone": "net", "seed": 0}}
    identity = json.dumps({"evaluation": {"task": "age"}, "steps": {"0" * 64: step}, "asked": {"seed": 0}}).encode()
    head = record.metrics[record.headline].value
    rerun = Rerun(
        record=record.id, content_hash=record.content_hash, metric=record.headline, said=head, found=head, allowed=0.1,
        by="me", on="2026-01-01", environment={"python": "3.11"},
    ).as_text.encode()  # fmt: skip
    clinical, compared = clinic()
    return {
        "record": Reader("record.json", (text,), lambda f: read_record(f / "record.json"), sealed_record),
        "verify": Reader("record.json", (text,), _verify, sealed_record),
        "board": Reader("record.json", (text,), _board, sealed_record),
        "results": Reader("record.json", (text,), _results, sealed_record),
        "bundle": Reader("bundle.zip", (_bundle(text),), lambda f: read_bundle(f / "bundle.zip")),
        "folds": Reader("folds.json", (folds,), lambda f: _plainly(parse_folds, f / "folds.json")),
        "predictions": Reader("table.csv", (table.encode(),), lambda f: _plainly(parse_table, f / "table.csv")),
        "arrays": Reader("traces.npz", (arrays.getvalue(),), _arrays),
        "parquet": Reader("predictions.parquet", (frame.getvalue(),), _predictions),
        "identity": Reader("identity.json", (identity,), functools.partial(_identity, text)),
        "rerun": Reader("rerun.json", (rerun,), functools.partial(_rerun, record)),
        "comparisons": Reader("comparisons.json", (compared.encode(),), functools.partial(_compared, clinical)),
        "cohort": Reader("cohort.json", (cohort_page(),), _cohort),
        "marker": Reader(
            "neurobench.json", (b'{"format": 1, "made_by": "neurobench"}',), lambda f: Store(f, read_only=True)
        ),
        "manifest": Reader("manifest.json", (manifest_of(),), _store),
        "tar": Reader("out.tar", (_tar(),), lambda f: merge(f / "into", [f / "out.tar"])),
        "checkpoint": Reader("checkpoint.json", (kept()[0],), _go_on, sealed_checkpoint),
        "checkpoint-arrays": Reader("arrays.safetensors", (kept()[1],), _go_on_from_arrays),
    }


@functools.cache
def registry() -> Registry:
    """Return what is installed."""
    return load_registry()


def _named(content: bytes) -> str:
    """Return the name that a record gives itself: what it says is read, and not only what it is called."""
    said = re.search(rb'"id": "([0-9a-f]{64})"', content)
    return said[1].decode() if said else "0" * 64


def _emptied(folder: Path) -> Path:
    """Return a folder with nothing in it."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    return folder


def _plainly(parse: Callable[[bytes], Any], path: Path) -> Any:
    """Parse a part of a bundle, whose reader turns every ValueError into a finding."""
    try:
        return parse(path.read_bytes())
    except ValueError as error:
        raise BundleError(str(error)) from error


# ---------------------------------------------------------------- records


def sealed_record(plain: Any) -> Any:
    """Return a record with its hash, where it can have one."""
    with contextlib.suppress(ValueError, TypeError, AttributeError, RecursionError):
        plain["content_hash"] = content_hash(plain)
    return plain


def _judged(files: Mapping[str, bytes]) -> Any:
    n = sum(name.startswith("records/") for name in files)
    return verify(Contents(dict(files), {"n_records": n, "files": {name: {} for name in files}}, ()), registry())


def _verify(folder: Path) -> Any:
    content = (folder / "record.json").read_bytes()
    return _judged({f"records/{_named(content)}.json": content})


def _board(folder: Path) -> Any:
    content = (folder / "record.json").read_bytes()
    (_emptied(folder / "results" / "invented") / f"{_named(content)}.json").write_bytes(content)
    return markdown(read_board(folder / "results"))


def _bundle(record: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as bundle:
        name = f"records/{'0' * 64}.json"
        bundle.writestr(name, record)
        content_of = {"sha256": hashlib.sha256(record).hexdigest(), "bytes": len(record)}
        about = {"format": FORMAT, "made_by": "neurobench 0", "n_records": 1, "left_behind": []}
        bundle.writestr(MANIFEST, json.dumps(about | {"files": {name: content_of}}))
    return content.getvalue()


# ---------------------------------------------------------------- what lies beside a record


def _evidence(folder: Path) -> Evidence:
    return Evidence(folder, "x", "X", "simulated", "fmri", "parcels", pd.DataFrame(), {"fingerprint": "0"})


def _arrays(folder: Path) -> Any:
    place = folder / "evidence" / "0"
    place.mkdir(parents=True, exist_ok=True)
    (place / "traces.npz").write_bytes((folder / "traces.npz").read_bytes())
    return _evidence(folder).arrays("0", "traces")


def _predictions(folder: Path) -> Any:
    place = folder / "predictions"
    place.mkdir(exist_ok=True)
    (place / "0.parquet").write_bytes((folder / "predictions.parquet").read_bytes())
    return _evidence(folder).predictions("0")


def _identity(record: bytes, folder: Path) -> Any:
    content = (folder / "identity.json").read_bytes()
    name = _named(record)
    (folder / "identities").mkdir(exist_ok=True)
    (folder / "identities" / f"{name}.json").write_bytes(content)
    (folder / "neurobench.json").write_text('{"format": 1}')
    _judged({f"records/{name}.json": record, f"identities/{name}.json": content})
    return collect_garbage(folder, remove=False)


def _placed(folder: Path, records: Mapping[str, Record]) -> Path:
    """Return the folder of a suite among published ones with records in it."""
    place = folder / "results" / "invented"
    if not place.is_dir():
        place.mkdir(parents=True)
        for record in records.values():
            (place / f"{record.id}.json").write_text(record_text(record), encoding="utf-8")
    return place


def _rerun(record: Record, folder: Path) -> Any:
    place = _placed(folder, {record.id: record}) / "reruns"
    place.mkdir(exist_ok=True)
    (place / f"{record.id}.json").write_bytes((folder / "rerun.json").read_bytes())
    return read_board(folder / "results")


def _compared(records: Mapping[str, Record], folder: Path) -> Any:
    """Read comparisons as a board does, under the name that they should have where they can have one."""
    content = (folder / "comparisons.json").read_bytes()
    name = "0" * 64
    with contextlib.suppress(ValueError):
        name = name_of(PairwiseRecord.of(parse_json(content)))
    (_emptied(_placed(folder, records) / "comparisons") / f"{name}.json").write_bytes(content)
    files = {f"records/{i}.json": record_text(r).encode() for i, r in records.items()}
    _judged(files | {f"comparisons/{name}.json": content})
    return read_board(folder / "results")


def cohort_page() -> bytes:
    """Return what ``cohort.json`` says of a cohort of two people."""
    spread = {"mean": 1.0, "sd": 0.5, "low": 0.5, "high": 1.5}
    card = dict.fromkeys(
        ("title", "licence", "access", "apply_at", "citation", "doi", "revision", "inclusion", "size"), "x"
    )
    page = {"fingerprint": "0", "dataset": "x", "source": "simulated", "variant": "", "modality": "fmri"}
    page |= {"card": card | {"modality": "fmri", "may_leave": "all", "traps": ["one"]}, "signal": "parcels"}
    page |= {"n_subjects": 2, "n_recordings": 2, "n_units": 3, "group_source": "none", "sfreq": 0.5}
    page |= {"states": {"rest": 2}, "provenance": ["5 % of the volumes"], "recording_s": spread}
    page |= {"findings": [{"code": "no-id", "level": "error", "n": 1, "n_subjects": 0, "example": "", "fix": ""}]}
    page |= {"columns": {"age": {"n": 2, **spread}, "sex": {"n": 2, "classes": {"F": 1, "M": 1}}}}
    page |= {"sites": [{"site": "A", "n": 2, "diagnosis": {"ADHD": 1}, "age": spread}], "n_families": 0}
    return json.dumps(page).encode()


def _cohort(folder: Path) -> Any:
    """Read what is said of a cohort, and say it in a report."""
    place = folder / "cohorts" / "0"
    place.mkdir(parents=True, exist_ok=True)
    (place / "cohort.json").write_bytes((folder / "cohort.json").read_bytes())
    page = read_cohort(folder, "0")
    of = {k: page[k] for k in ("dataset", "source", "modality", "signal")}
    said = Evidence(folder, title=page["card"]["title"], table=pd.DataFrame(), cohort=page, **of)
    DatasetCard(**page["card"]).cite()
    return [*facts(said)], flow(page, []).rows, sites(page), participants(page)


def _results(folder: Path) -> Any:
    """Load the records of an output folder that holds one."""
    (folder / "neurobench.json").write_text('{"format": 1}')
    content = (folder / "record.json").read_bytes()
    (_emptied(folder / "records") / f"{_named(content)}.json").write_bytes(content)
    return load_results(folder)


# ---------------------------------------------------------------- the store

_THREE = b"abc"


def manifest_of() -> bytes:
    """Return the manifest of an entry of one file of three bytes."""
    files = {"weights.safetensors": [hashlib.sha256(_THREE).hexdigest(), 3]}
    told = {"stage": "pretraining", "key": digest({}), "label": "x", "identity": {}, "files": files}
    return json.dumps(told | {"seconds": 0.1, "work": None, "written": "2026-01-01T00:00:00Z"}).encode()


def _store(folder: Path) -> Any:
    """Look over a store of one entry, under the key that its manifest should have where it can have one."""
    (folder / "neurobench.json").write_text('{"format": 1}')
    content, key = (folder / "manifest.json").read_bytes(), "0" * 64
    with contextlib.suppress(ValueError, TypeError, KeyError):
        key = digest(json.loads(content)["identity"])
    shutil.rmtree(folder / "store", ignore_errors=True)
    place = folder / "store" / "pretraining" / key
    place.mkdir(parents=True)
    (place / "weights.safetensors").write_bytes(_THREE)
    (place / "manifest.json").write_bytes(content)
    store = Store(folder)
    store.get("pretraining", key), store.why_stale("pretraining", "x", {"a": 1}), stored_steps(folder)
    return check(folder), collect_garbage(folder, remove=False)


def _tar() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name, data in (("neurobench.json", b'{"format": 1}'), ("store/x/0/manifest.json", manifest_of())):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return content.getvalue()


# ---------------------------------------------------------------- checkpoints


def _training() -> Training:
    return Training(Filling(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)), Recipe(), 2, torch.device("cpu"), seed=0)


@functools.cache
def kept() -> tuple[bytes, bytes]:
    """Return what a checkpoint tells, and its arrays."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Checkpoint(Path(folder) / "checkpoint", "x")
        _training().save(checkpoint)
        (arrays,) = checkpoint.folder.glob("*.safetensors")
        return (checkpoint.folder / "checkpoint.json").read_bytes(), arrays.read_bytes()


def sealed_checkpoint(plain: Any) -> Any:
    """Return what a checkpoint tells with its digest, where it can have one."""
    with contextlib.suppress(ValueError, TypeError, AttributeError, RecursionError):
        plain["digest"] = digest({k: v for k, v in plain.items() if k != "digest"})
    return plain


def _gone_on_from(folder: Path, told: bytes, arrays: bytes) -> None:
    place = _emptied(folder / "checkpoint")
    (place / f"{hashlib.sha256(arrays).hexdigest()}.safetensors").write_bytes(arrays)
    (place / "checkpoint.json").write_bytes(told)
    checkpoint = Checkpoint(place)
    _ = checkpoint.damage, checkpoint.about
    with torch.random.fork_rng(devices=[]):
        _training().go_on_from(checkpoint)


def _go_on(folder: Path) -> None:
    _gone_on_from(folder, (folder / "checkpoint.json").read_bytes(), kept()[1])


def _go_on_from_arrays(folder: Path) -> None:
    """Go on from arrays as if they were those that were written."""
    arrays = (folder / "arrays.safetensors").read_bytes()
    told = json.loads(kept()[0]) | {"arrays": f"{hashlib.sha256(arrays).hexdigest()}.safetensors"}
    _gone_on_from(folder, json.dumps(sealed_checkpoint(told)).encode(), arrays)

"""Damaged and hostile files for every reader of what comes from outside: each is read, or is refused in plain words.

    python -m benchmarks.fuzz [--n 100000] [--seed 0] [--save] [READER …]

Files are valid samples, mutated: bits flipped, pieces cut, doubled, moved and replaced by what breaks parsers; of JSON
also its values, so that what comes after the parser is reached, and sums are made right again where there are any. The
only errors that may come out are neurobench's own; everything else is a bug, and so is a file that takes longer than
:data:`LIMIT_S`, or more than :data:`LIMIT_BYTES`. ``--save`` keeps what was run in ``benchmarks/results/fuzz.json``;
campaigns of several seeds add up there, so that a long one can be run in pieces. Exit code 1: something was found.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import datetime
import fcntl
import functools
import gc
import hashlib
import io
import json
import logging
import re
import resource
import signal
import struct
import sys
import tarfile
import tempfile
import time
import traceback
import types
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.io
import torch
from nibabel import Nifti1Image
from rich.progress import track
from safetensors.numpy import save

from benchmarks.fuzz_samples import CTF, bold, clinic, covariance, ctf, fieldtrip, fif, filled
from benchmarks.performance.board import invented
from neurobench.attestation import Rerun
from neurobench.bundle import FORMAT, MANIFEST
from neurobench.bundle_reader import _NEEDED, Contents, parse_folds, parse_table, read_bundle
from neurobench.clusters import settings_of
from neurobench.config import load_suite
from neurobench.errors import BundleError, NeurobenchError
from neurobench.evidence import Evidence, read_cohort
from neurobench.identity import digest
from neurobench.leaderboard import _comparisons, _reruns, read_board
from neurobench.leaderboard_site import _files
from neurobench.leaderboard_text import markdown
from neurobench.learners import Filling
from neurobench.pairwise import PairwiseRecord, name_of
from neurobench.parsing import parse_json
from neurobench.plugins import Registry, load_registry
from neurobench.pretraining import Recipe, Training
from neurobench.records import RecordingFile
from neurobench.report import Report
from neurobench.report_writing import _html
from neurobench.results import Record, content_hash, read_record, record_text
from neurobench.store import Checkpoint, Store
from neurobench.upkeep import _needed, check, merge
from neurobench.verification import verify
from neurobench_backbones._weights import read_weights
from neurobench_datasets._adhd200_phenotypes import read_phenotypes
from neurobench_datasets._atlases import Atlas, load_labels, read_names
from neurobench_datasets._bold_images import read_bold
from neurobench_datasets._bold_layouts import _sidecar_time
from neurobench_datasets._bold_layouts import repetition_time as bold_time
from neurobench_datasets._confounds import _motion
from neurobench_datasets._description import FILE, described
from neurobench_datasets._meg_events import _written
from neurobench_datasets._meg_files import read_meg_file
from neurobench_datasets._meg_noise import noise_covariance
from neurobench_datasets._meg_sidecars import bad_channels, noise_file
from neurobench_datasets._roi_series import read_regions, read_series
from neurobench_datasets._series_folder import repetition_time
from neurobench_datasets._tables import read_table
from neurobench_datasets.camcan import read_cattell, read_participants
from neurobench_datasets.parcels import Parcels
from neurobench_tasks._embeddings import read_embeddings

KEPT = Path(__file__).parent / "results" / "fuzz.json"
LIMIT_S = 5.0
"""Seconds that one small file may take."""

LIMIT_BYTES = 2 << 30
"""Memory that the process of a campaign may take besides what it has when it starts."""

GUIDED = ("neurobench", "yaml", "json", "csv", "zipfile")
"""Modules whose branches guide atheris."""

TOKENS = [
    *(b"", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\n", b"\t", b",", b";", b'"', b"'", b"[", b"{", b"}", b":"),
    *(b"NaN", b"inf", b"-Infinity", b"1e999", b"-999", b"9" * 400, b"0x10", b"1_000", b"True", b"null", b"~"),
    *(b"../../etc/passwd", b"/dev/zero", b"<script>", b"!!python/object/apply:os.system", b"&a [*a]", b"\\u0000"),
    *(b"[" * 20_000, b'{"a":' * 5000, b"- " * 3000, b"0x" + b"f" * 5000, b"2001-99-99", b"!!int ''", b"!!timestamp x"),
    *(b"a: &a [x,x,x,x]\nb: &b [*a,*a,*a,*a]\nc: [*b,*b,*b,*b]\n", b"<!DOCTYPE a [<!ENTITY b 'c'>]>", b"&b;"),
    *(b"C:\\Windows\\win.ini", b"\x1b[2J", b"[red]", b"=cmd|'/c calc'!A1", b"\\ud800", b"\x1f\x8b\x08", b"javascript:"),
    *(b"A" * 5000, "é٣😀".encode(), b"\x80\x81", b"CC110033", b"0010001", b"%s%n", b"#", b"---", b"- "),
]
"""What breaks parsers."""


VALUES: list[Any] = [
    *(
        None,
        True,
        0,
        -1,
        1e308,
        10**30,
        float("nan"),
        float("inf"),
        "",
        "\x00",
        "\ud800",
        "x" * 5000,
        [],
        {},
        [[]],
        [None],
    ),
    *({"": None}, "../../etc/passwd", "/dev/zero", "<script>", "\x1b[2J", "ok", "nan", [1, "a", {}], {"a": {"a": []}}),
]
"""What breaks who believes a value to be what it was."""

NUMBERS = (0, 1, 255, 1 << 16, (1 << 24) - 1, 1 << 30, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 0x7F800000, 0x7FC00000)
"""What breaks who believes a length, a place, a count or a real number of 32 bits."""


@dataclass(frozen=True)
class Reader:
    """Something that reads what comes from outside.

    Parameters
    ----------
    file
        Where a sample is written, relative to a folder.
    samples
        Valid files.
    read
        Takes the folder.
    sealed
        Makes sums right again after a JSON value was changed.
    in_place
        Whether half of the damage leaves everything where it is: of formats that say where their parts lie.
    beside
        Whole files that lie beside it.
    """

    file: str
    samples: tuple[bytes, ...]
    read: Callable[[Path], Any]
    sealed: Callable[[Any], Any] = lambda plain: plain
    in_place: bool = False
    beside: Mapping[str, bytes] = field(default_factory=dict)

    def place(self, folder: Path, content: bytes) -> None:
        """Write a sample into a folder, and what lies beside it where it is not there yet."""
        for name, data in ({n: b for n, b in self.beside.items() if n != self.file} | {self.file: content}).items():
            path = folder / name
            if name == self.file or not path.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)


def changed(rng: np.random.Generator, plain: Any) -> Any:
    """Return a JSON value with one of its parts replaced, taken out or doubled."""
    places = list(_places(plain))
    if not places:
        return _odd(rng)
    at, key = places[int(rng.integers(len(places)))]
    what = rng.integers(8)
    if what == 0:
        del at[key]
    elif what == 1 and isinstance(at, list):
        at.append(copy.deepcopy(at[key]))
    elif what == 1:
        at[str(_odd(rng))] = copy.deepcopy(at[key])
    elif what == 2:
        other, name = places[int(rng.integers(len(places)))]
        at[key] = copy.deepcopy(other[name])
    else:
        at[key] = _odd(rng)
    return plain


def _odd(rng: np.random.Generator) -> Any:
    return copy.deepcopy(VALUES[int(rng.integers(len(VALUES)))])


def _places(plain: Any) -> Iterator[tuple[Any, Any]]:
    for key in list(plain) if isinstance(plain, dict) else range(len(plain)) if isinstance(plain, list) else ():
        yield plain, key
        yield from _places(plain[key])


def damaged(rng: np.random.Generator, reader: Reader) -> bytes:
    """Return one of a reader's samples after one to six changes."""
    sample = reader.samples[int(rng.integers(len(reader.samples)))]
    if sample[:1] in (b"{", b"[") and rng.random() < 0.7:
        plain = json.loads(sample)
        for _ in range(int(rng.integers(1, 4))):
            plain = changed(rng, plain)
        return json.dumps(reader.sealed(plain)).encode()
    if reader.in_place and rng.random() < 0.5:
        return overwritten(rng, sample)
    return mutated(rng, sample, reader.samples)


def mutated(rng: np.random.Generator, sample: bytes, others: Sequence[bytes]) -> bytes:
    """Return the bytes of a sample after one to six changes."""
    data = bytearray(sample)
    for _ in range(int(rng.integers(1, 7))):
        n = len(data)
        low = int(rng.integers(n + 1))
        high = min(n, low + int(rng.geometric(0.1)))
        what = rng.integers(8)
        if what == 0 and n:
            data[low % n] ^= 1 << int(rng.integers(8))
        elif what == 1:
            del data[low:high]
        elif what == 2:
            data[low:low] = data[low:high] * int(rng.integers(1, 4))
        elif what == 3:
            data[low:high] = TOKENS[int(rng.integers(len(TOKENS)))]
        elif what == 4:
            data[low:low] = TOKENS[int(rng.integers(len(TOKENS)))]
        elif what == 5:
            data[low:high] = rng.bytes(high - low)
        elif what == 6 and rng.random() < 0.3:
            del data[low:]
        else:
            other = others[int(rng.integers(len(others)))]
            start = int(rng.integers(len(other) + 1))
            data[low:high] = other[start : start + int(rng.geometric(0.05))]
    return bytes(data[: 1 << 16])


def overwritten(rng: np.random.Generator, sample: bytes) -> bytes:
    """Return the bytes of a sample with one to four numbers in it replaced, of the same length."""
    data = bytearray(sample)
    for _ in range(int(rng.integers(1, 5))):
        at = 4 * int(rng.integers(len(data) // 4))
        what = rng.integers(4)
        if what == 0:
            data[at + int(rng.integers(4))] ^= 1 << int(rng.integers(8))
        else:
            odd = NUMBERS[int(rng.integers(len(NUMBERS)))] if what == 1 else int(rng.integers(1 << 10))
            data[at : at + 4] = struct.pack(">f", odd) if what == 2 else struct.pack(">I", odd)
    return bytes(data)


# ---------------------------------------------------------------- what is read


@functools.cache
def readers() -> dict[str, Reader]:
    """Return every reader by name."""
    rng = np.random.default_rng(0)
    series = rng.standard_normal((4, 6)).round(3)
    text = "\n".join(",".join(map(str, row)) for row in series).encode()
    npy, mat = io.BytesIO(), io.BytesIO()
    np.save(npy, series)
    scipy.io.savemat(mat, {"ROISignals": series})
    record = invented("net · roi", "pretrained")
    suite = b"backbones: [mamba, 'hybrid[layout=MA]']\nmasks: roi\ndatasets: [parcels]\ntasks: [age]\nseeds: [0, 1]\n"
    suite += b"ratio: .5\ndata_dirs: {parcels: here}\nprofile: smoke\nn_subjects: 24\n"
    people = b"participant_id\tage\tsex\tsite\tdiagnosis\nsub-01\t20.5\tF\tA\tcontrol\nsub-02\t-999\tmale\tB\tADHD\n"
    adhd = b"ScanDir ID,Site,Gender,Age,Handedness,DX,Secondary Dx ,Full4 IQ,QC_Rest_1\n"
    adhd += b"10001,5,1,9.2,-0.3,pending,,110,1\n0010002,5,0,11,1,3,x,-999,N/A\n"
    camcan = b"CCID,Age,Sex,Hand\nCC110033,24,MALE,76\nCC110037,18,FEMALE,100\n"
    cattell = b"text\n" * 8 + b"CCID\tNtrials\tTotalScore\tRA\nCC110033\t46\t37\tAB\nCC110037\t46\tNaN\tAB\n\ntext\n"
    names = b"label,name,group\n1,Precentral_L,Frontal\n2,Precentral_R,Frontal\n"
    xml = b"<atlas><data><label><index>1</index><name>Precentral_L</name></label></data></atlas>"
    lut = b"1 7Networks_LH_Vis_1 120 18 131 0\n2 7Networks_LH_Vis_2 120 18 132 0\n"
    regions = b"name,group,x,y,z\na,front,1,2,3\na,back,4,5,6\n"
    cluster = b"queue: short\ncores: 4\nmemory: 8GB\nwalltime: '01:00:00'\njobs: 3\n"
    return {
        "record": Reader("record.json", (record_text(record).encode(),), lambda f: read_record(f / "record.json")),
        "suite": Reader("suite.yaml", (suite, cluster), lambda f: load_suite(f / "suite.yaml")),
        "cluster": Reader("cluster.yaml", (cluster, suite), lambda f: settings_of(f / "cluster.yaml")),
        "participants": Reader(
            "participants.tsv", (people, adhd, camcan), lambda f: read_table(f / "participants.tsv")
        ),
        "adhd200": Reader("NYU_phenotypic.csv", (adhd,), lambda f: read_phenotypes(f, [])),
        "camcan": Reader(
            "dataman/useraccess/processed/me/standard_data.csv", (camcan, people), lambda f: read_participants(f, [])
        ),
        "cattell": Reader("Cattell_summary.txt", (cattell,), lambda f: read_cattell(f, [])),
        "labels": Reader("labels.csv", (names, regions), lambda f: read_names(f / "labels.csv")),
        "labels-text": Reader("labels.txt", (lut,), lambda f: read_names(f / "labels.txt")),
        "labels-xml": Reader("labels.xml", (xml,), lambda f: read_names(f / "labels.xml")),
        "regions": Reader("regions.csv", (regions, names), lambda f: read_regions(f / "regions.csv")),
        "series-text": Reader("series.csv", (text, names), lambda f: read_series(f / "series.csv")),
        "series-npy": Reader("series.npy", (npy.getvalue(),), lambda f: read_series(f / "series.npy")),
        "series-mat": Reader("series.mat", (mat.getvalue(),), lambda f: read_series(f / "series.mat")),
        "bundle": Reader("bundle.zip", (_bundle(record_text(record)),), lambda f: read_bundle(f / "bundle.zip")),
        "cohort": Reader("cohort.json", (b'{"dataset": "x", "fingerprint": "0"}',), _cohort),
        "manifest": Reader("manifest.json", (_manifest(),), _store),
        "checkpoint": Reader("checkpoint.json", (_told(),), _go_on, _digested),
        **_of_results(record),
        **_of_recordings(),
        **_of_tensors(),
    }


def _of_results(record: Record) -> dict[str, Reader]:
    plain = json.loads(record_text(record))
    people = [f"sub-{i:02d}" for i in range(4)]
    fold = {"index": 0, "train": people[:3], "test": people[3:], "train_span": [0, 1], "test_span": [0, 1]}
    folds = json.dumps({"pseudonyms": True, "folds": [fold]}).encode()
    columns = ("participant_id", *_NEEDED, "state")
    table = (
        ",".join(columns)
        + "\n"
        + "".join(f"{s},0,{i}{',.5' * (len(columns) - 4)},rest\n" for i, s in enumerate(people))
    )
    arrays, frame = io.BytesIO(), io.BytesIO()
    np.savez(arrays, allow_pickle=False, r2=np.eye(3), masks=np.array(["a", "b"]))
    pd.DataFrame({"participant_id": people, "fold": 0, "truth": [1.0, 2, 3, 4]}).to_parquet(frame)
    sealed = (json.dumps(_sealed(plain)).encode(),)
    step = {"stage": "pretraining", "identity": {"backbone": "net", "seed": 0}}
    identity = json.dumps({"evaluation": {"task": "age"}, "steps": {"0" * 64: step}, "asked": {"seed": 0}}).encode()
    head = record.metrics[record.headline].value
    rerun = Rerun(
        record=record.id, content_hash=record.content_hash, metric=record.headline, said=head, found=head, allowed=0.1,
        by="me", on="2026-01-01", environment={"python": "3.11"},
    ).as_text.encode()  # fmt: skip
    clinical, compared = clinic()
    return {
        "verify": Reader("record.json", sealed, _verify, _sealed),
        "board": Reader("record.json", sealed, _board, _sealed),
        "folds": Reader("folds.json", (folds,), lambda f: _plainly(parse_folds, f / "folds.json")),
        "predictions": Reader("table.csv", (table.encode(),), lambda f: _plainly(parse_table, f / "table.csv")),
        "marker": Reader(
            "neurobench.json", (b'{"format": 1, "made_by": "neurobench"}',), lambda f: Store(f, read_only=True)
        ),
        "arrays": Reader("traces.npz", (arrays.getvalue(),), lambda f: _beside(f, "traces.npz")),
        "parquet": Reader("predictions.parquet", (frame.getvalue(),), lambda f: _beside(f, "predictions.parquet")),
        "identity": Reader("identity.json", (identity,), lambda f: _identity(f, sealed[0])),
        "rerun": Reader("rerun.json", (rerun,), lambda f: _rerun(f, record)),
        "comparisons": Reader("comparisons.json", (compared.encode(),), lambda f: _compared(f, clinical)),
        "site": Reader("name.txt", HOSTILE, _site),
        "report": Reader("name.txt", HOSTILE, _report),
        "tar": Reader("out.tar", (_tar(b'{"format": 1}'),), _merge),
    }


def _of_recordings() -> dict[str, Reader]:
    person = pd.Series({"t_r": None}, dtype=object)
    sidecar = b'{"RepetitionTime": 2.0, "TaskName": "rest", "SliceTiming": [0, 0.5, 1.0]}'
    meg = b'{"PowerLineFrequency": 50, "AssociatedEmptyRoom": ["bids::sub-emptyroom/meg/x_meg.fif"]}'
    events = b"onset\tduration\ttrial_type\tvalue\n0.5\t0\taudio\t1\n1.5\tn/a\tvisual\t2.0\n"
    channels = b"name\ttype\tstatus\nMEG0111\tMEGMAG\tgood\nMEG0112\tMEGGRADPLANAR\tbad\n"
    motion = b"# roll pitch yaw dS dL dP\n" + b"0.1 0.2 -0.1 0.01 0.02 0.03\n" * 4
    description = b'{"Name": "A", "Authors": ["B", "C"], "DatasetDOI": "doi:10.123/x", "ReferencesAndLinks": ["D"]}'
    image = io.BytesIO()
    volume = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    Nifti1Image(volume, np.diag([3.0, 3, 3, 1])).to_stream(image)
    name = "sub-01_task-rest_meg"
    return {
        "sidecar-bold": Reader("x_bold.json", (sidecar,), lambda f: _sidecar_time(f / "x_bold.nii.gz", f)),
        "sidecar-series": Reader(
            "x.json", (sidecar,), lambda f: repetition_time(f / "x.csv", f, person, 0.0, 0.0, "parcels")
        ),
        "sidecar-meg": Reader(f"{name}.json", (meg, sidecar), lambda f: noise_file(f / f"{name}.fif")),
        "events": Reader("events.tsv", (events,), lambda f: _written(f / "events.tsv")),
        "channels": Reader(
            "sub-01_task-rest_channels.tsv",
            (channels, events),
            lambda f: bad_channels(f / f"{name}.fif", {"MEG0111", "MEG0112"}, [], "01"),
        ),
        "motion": Reader("rp.1D", (motion,), lambda f: _motion(f / "rp.1D", ("motion",))),
        "fif": Reader(
            f"{name}.fif",
            (fif(),),
            lambda f: read_meg_file(RecordingFile("01", f / f"{name}.fif", 200.0)),
            in_place=True,
        ),
        **{f"ctf-{end}": _ctf(end) for end in CTF},
        "fieldtrip": Reader("x.mat", (fieldtrip(),), lambda f: read_meg_file(RecordingFile("01", f / "x.mat", 200.0))),
        "noise": Reader(
            "x-cov.fif", (covariance(),), lambda f: noise_covariance.__wrapped__(f / "x-cov.fif", 0), in_place=True
        ),
        "description": Reader(FILE, (description,), lambda f: described(Parcels.card, f)),
        "bold": Reader("x_bold.nii", (bold(),), _bold, in_place=True, beside={"atlas.nii": image.getvalue()}),
        "bold-header": Reader("x_bold.nii", (bold(),), lambda f: bold_time(f / "x_bold.nii", f), in_place=True),
        "atlas": Reader(
            "atlas.nii", (image.getvalue(),), lambda f: load_labels.__wrapped__(Atlas(f / "atlas.nii", None, ""))
        ),
    }


def _ctf(end: str) -> Reader:
    """Return the reader of a CTF folder of which one file is damaged."""
    files = {f"x.ds/{CTF[e]}": content for e, content in ctf().items()}
    name = f"x.ds/{CTF[end]}"

    def read(folder: Path) -> Any:
        return read_meg_file(RecordingFile("01", folder / "x.ds", 200.0))

    return Reader(name, (files[name],), read, in_place=end in ("res4", "meg4"), beside=files)


def _bold(folder: Path) -> Any:
    file = RecordingFile("01", folder / "x_bold.nii", 0.5, beside={"atlas": folder / "atlas.nii"})
    return read_bold(file, signal="parcels", confounds=())


def _of_tensors() -> dict[str, Reader]:
    tensors = {"blocks.0.weight": np.eye(3, dtype=np.float32), "norm.bias": np.zeros(4, np.float32)}
    zipped, plain, spoilt, arrays = io.BytesIO(), io.BytesIO(), io.BytesIO(), io.BytesIO()
    state = {"state_dict": {k: torch.from_numpy(v) for k, v in tensors.items()}, "epoch": 3}
    torch.save(state, zipped)
    torch.save(state, plain, _use_new_zipfile_serialization=False)
    torch.save({"a": Path("x")}, spoilt)
    np.savez(arrays, allow_pickle=False, face=np.ones(3), house=np.zeros(3))
    header = save(tensors)[8:].partition(b"}}")[0] + b"}}"
    frame = io.BytesIO()
    pd.DataFrame({"stimulus": ["face", "house"], "d0": [1.0, 2.0], "d1": [0.0, 1.0]}).to_parquet(frame)
    return {
        "weights": Reader("w.safetensors", (save(tensors),), lambda f: read_weights(f / "w.safetensors")),
        "weights-header": Reader("header.json", (header,), _header),
        "weights-pickle": Reader(
            "data.pkl",
            (_member(zipped, "data.pkl"), _member(spoilt, "data.pkl")),
            lambda f: _torch(_repacked(zipped, "data.pkl", f, "w.pt")),
        ),
        "weights-torch": Reader(
            "w.pt", (zipped.getvalue(), plain.getvalue(), spoilt.getvalue()), lambda f: _torch(f / "w.pt")
        ),
        "embeddings-npz": Reader(
            "e.npz", (arrays.getvalue(),), lambda f: read_embeddings(str(f / "e.npz"), ["face", "house"])
        ),
        "embeddings-npy": Reader(
            "face.npy",
            (_member(arrays, "face.npy"),),
            lambda f: read_embeddings(str(_repacked(arrays, "face.npy", f, "e.npz")), ["face", "house"]),
        ),
        "embeddings-parquet": Reader(
            "e.parquet", (frame.getvalue(),), lambda f: read_embeddings(str(f / "e.parquet"), ["face", "house"])
        ),
    }


def _member(archive: io.BytesIO, name: str) -> bytes:
    with zipfile.ZipFile(archive) as found:
        return found.read(next(n for n in found.namelist() if n.endswith(name)))


def _repacked(archive: io.BytesIO, name: str, folder: Path, to: str) -> Path:
    """Return a zip file that is whole, with what lies in the folder instead of one of its members."""
    with zipfile.ZipFile(archive) as found, zipfile.ZipFile(folder / to, "w") as made:
        for member in found.namelist():
            made.writestr(member, (folder / name).read_bytes() if member.endswith(name) else found.read(member))
    return folder / to


def _torch(path: Path) -> Any:
    if path.stat().st_size > 10_000:
        return None  # torch searches its own error by an expression that takes the square of its length.
    return read_weights(path)


def _header(folder: Path) -> Any:
    header = (folder / "header.json").read_bytes()
    (folder / "w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(52))
    return read_weights(folder / "w.safetensors")


def _sealed(plain: Any) -> Any:
    """Return a record with its hash, where it can have one."""
    with contextlib.suppress(ValueError, TypeError, AttributeError, RecursionError):
        plain["content_hash"] = content_hash(plain)
    return plain


def _verify(folder: Path) -> Any:
    content = (folder / "record.json").read_bytes()
    name = f"records/{_named(content)}.json"
    return verify(Contents({name: content}, {"n_records": 1, "files": {name: {}}}, ()), _registry())


def _named(content: bytes) -> str:
    """Return the name that a record gives itself: what it says is read, and not only what it is called."""
    said = re.search(rb'"id": "([0-9a-f]{64})"', content)
    return said[1].decode() if said else "0" * 64


def _identity(folder: Path, record: bytes) -> Any:
    content = (folder / "identity.json").read_bytes()
    name = _named(record)
    files = {f"records/{name}.json": record, f"identities/{name}.json": content}
    (folder / "identities").mkdir(exist_ok=True)
    (folder / "identities" / f"{name}.json").write_bytes(content)
    found = verify(Contents(files, {"n_records": 1, "files": {n: {} for n in files}}, ()), _registry())
    return found, _needed(folder)


def _rerun(folder: Path, record: Record) -> Any:
    place = folder / "reruns"
    place.mkdir(exist_ok=True)
    (place / f"{record.id}.json").write_bytes((folder / "rerun.json").read_bytes())
    return _reruns(place, {record.id: record})


def _compared(folder: Path, records: Mapping[str, Record]) -> Any:
    """Read comparisons as a board does, under the name that they should have where they can have one."""
    content = (folder / "comparisons.json").read_bytes()
    name = "0" * 64
    with contextlib.suppress(ValueError):
        name = name_of(PairwiseRecord.of(parse_json(content)))
    place = folder / "comparisons"
    place.mkdir(exist_ok=True)
    for old in place.iterdir():
        old.unlink()
    (place / f"{name}.json").write_bytes(content)
    files = {f"records/{i}.json": record_text(r).encode() for i, r in records.items()}
    files[f"comparisons/{name}.json"] = content
    verify(Contents(files, {"n_records": len(records), "files": {n: {} for n in files}}, ()), _registry())
    return _comparisons(place, records)


# ---------------------------------------------------------------- names from outside in what is shown

HOSTILE = (
    b"<script>alert(1)</script>",
    b'"><img src=x onerror=alert(1)>',
    b"' onmouseover='alert(1)' x='",
    b"javascript:alert(1)",
    b"</style></title></textarea><svg onload=alert(1)>",
    b"a{{ 7 * 7 }}{% for x in y %}<!-- ]]> &lt;script&gt; &#60;b&#62;",
    b"see [x](javascript:alert(1)) | a |\n\n# b `<b>`",
    b"../../x/%2e%2e/\\x?<a href=data:text/html,x>",
)
"""Names that would be more than text where they are not taken for it."""


class _Tags(HTMLParser):
    """The tags of a page with the names of their attributes, and its addresses that run something."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: Counter[tuple[str, ...]] = Counter()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "wbr" and not attrs:
            # Where a page lets a long name be broken, which depends on the name and does nothing else.
            return
        self.found[(tag, *(k for k, _ in attrs))] += 1
        for key, value in attrs:
            address = re.sub(r"[\x00-\x20]", "", value or "").lower()
            if key in ("href", "src", "action") and re.match("(javascript|vbscript|data:text)", address):
                self.found["runs", address[:20]] += 1


def _name(folder: Path) -> str:
    """Return a name, as long as a record may have one, that no half character keeps from being written."""
    return (folder / "name.txt").read_bytes().decode("utf-8", "replace")[:200]


def only_text(pages: Sequence[str], usual: Sequence[str]) -> None:
    """Raise AssertionError unless pages have the tags that they have with an ordinary name."""
    for page, with_ordinary in zip(pages, usual, strict=True):
        if more := _Tags(page).found - _Tags(with_ordinary).found:
            raise AssertionError(f"a name became more than text: {next(iter(more))}")


def _pages(folder: Path, name: str) -> list[str]:
    """Return the pages of a board of two records that say a name wherever they may say one."""
    place = folder / "results" / "invented"
    place.mkdir(parents=True, exist_ok=True)
    for old in place.iterdir():
        old.unlink()
    said: dict[str, Any] = {f"data__{k}": name for k in ("title", "revision", "licence", "access", "variant", "signal")}
    said |= {"environment": {"python": name, "neurobench-fm": name, "command": name}, "best_baseline": name}
    said |= {"protocol__profile": name, "protocol__recipe": {name: name}, "notes": [name], "data__provenance": [name]}
    for kind, row in (("pretrained", f"{name} · {name}"), ("baseline", name)):
        record = invented(row, kind, task=name, dataset=name, **said)
        (place / f"{record.id}.json").write_text(record_text(record), encoding="utf-8")
    return [text for file, text in _files(read_board(folder / "results")) if file.endswith(".html")]


def _site(folder: Path) -> None:
    only_text(_pages(folder, _name(folder)), _usual_pages())


@functools.cache
def _usual_pages() -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        return _pages(Path(folder), "x")


def _report(folder: Path) -> None:
    name = _name(folder)
    only_text([_html(_report_of(name))], [_usual_report()])


def _report_of(name: str) -> Report:
    """Return a report whose every text is a name; anchors are neurobench's own, and numbers."""
    report: Report = filled(Report, name)
    return replace(report, sections=[replace(s, anchor="cohort-1") for s in report.sections])


@functools.cache
def _usual_report() -> str:
    return _html(_report_of("x"))


@functools.cache
def _registry() -> Registry:
    return load_registry()


def _board(folder: Path) -> Any:
    content = (folder / "record.json").read_bytes()
    place = folder / "results" / "invented"
    place.mkdir(parents=True, exist_ok=True)
    for old in place.iterdir():
        old.unlink()
    (place / f"{_named(content)}.json").write_bytes(content)
    board = read_board(folder / "results")
    return markdown(board), dict(_files(board))


def _plainly(parse: Callable[[bytes], Any], path: Path) -> Any:
    """Parse a part of a bundle, whose reader turns every ValueError into a finding."""
    try:
        return parse(path.read_bytes())
    except ValueError as error:
        raise BundleError(str(error)) from error


def _beside(folder: Path, name: str) -> Any:
    evidence = Evidence(folder, "x", "X", "simulated", "fmri", "parcels", pd.DataFrame(), {"fingerprint": "0"})
    place = folder / ("evidence/0" if name.endswith("npz") else "predictions")
    place.mkdir(parents=True, exist_ok=True)
    (place / (name if name.endswith("npz") else "0.parquet")).write_bytes((folder / name).read_bytes())
    return evidence.arrays("0", "traces") if name.endswith("npz") else evidence.predictions("0")


def _tar(marker: bytes) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name, data in (("neurobench.json", marker), ("store/x/0/manifest.json", _manifest())):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return content.getvalue()


def _merge(folder: Path) -> Any:
    return merge(folder / "into", [folder / "out.tar"])


def _bundle(record: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as bundle:
        name = f"records/{'0' * 64}.json"
        bundle.writestr(name, record)
        content_of = {"sha256": hashlib.sha256(record.encode()).hexdigest(), "bytes": len(record.encode())}
        about = {"format": FORMAT, "made_by": "neurobench 0", "n_records": 1, "left_behind": []}
        bundle.writestr(MANIFEST, json.dumps(about | {"files": {name: content_of}}))
    return content.getvalue()


def _cohort(folder: Path) -> Any:
    place = folder / "cohorts" / "0"
    place.mkdir(parents=True, exist_ok=True)
    (place / "cohort.json").write_bytes((folder / "cohort.json").read_bytes())
    return read_cohort(folder, "0")


def _manifest() -> bytes:
    files = {"weights.safetensors": ["0" * 64, 3]}
    return json.dumps({"stage": "pretraining", "key": "0" * 64, "label": "x", "identity": {}, "files": files}).encode()


def _store(folder: Path) -> Any:
    (folder / "neurobench.json").write_text('{"format": 1}')
    place = folder / "store" / "pretraining" / ("0" * 64)
    place.mkdir(parents=True, exist_ok=True)
    (place / "weights.safetensors").write_bytes(save({"a": np.zeros(1)})[:3])
    (place / "manifest.json").write_bytes((folder / "manifest.json").read_bytes())
    return check(folder)


def _training() -> Training:
    return Training(Filling(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)), Recipe(), 2, torch.device("cpu"), seed=0)


@functools.cache
def _kept() -> tuple[bytes, bytes]:
    """Return what a checkpoint tells, and its arrays."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Checkpoint(Path(folder) / "checkpoint", "x")
        _training().save(checkpoint)
        (arrays,) = checkpoint.folder.glob("*.safetensors")
        return (checkpoint.folder / "checkpoint.json").read_bytes(), arrays.read_bytes()


def _told() -> bytes:
    return _kept()[0]


def _digested(plain: Any) -> Any:
    """Return what a checkpoint tells with its digest, where it can have one."""
    with contextlib.suppress(ValueError, TypeError, AttributeError, RecursionError):
        plain["digest"] = digest({k: v for k, v in plain.items() if k != "digest"})
    return plain


def _go_on(folder: Path) -> Any:
    place = folder / "checkpoint"
    place.mkdir(exist_ok=True)
    arrays = _kept()[1]
    (place / f"{hashlib.sha256(arrays).hexdigest()}.safetensors").write_bytes(arrays)
    (place / "checkpoint.json").write_bytes((folder / "checkpoint.json").read_bytes())
    checkpoint = Checkpoint(place)
    _ = checkpoint.damage, checkpoint.about
    with torch.random.fork_rng(devices=[]):
        return _training().go_on_from(checkpoint)


# ---------------------------------------------------------------- the campaign


@dataclass
class Campaign:
    """What reading many files came to.

    Parameters
    ----------
    n, n_read
        Files; those that were read without an error.
    slowest_s, seconds
        Seconds of the slowest, and of all.
    errors
        How often each of neurobench's own errors came.
    found
        Traceback and content of every file that was neither read nor refused, one a place in the code.
    """

    n: int
    n_read: int = 0
    slowest_s: float = 0.0
    seconds: float = 0.0
    errors: Counter[str] = field(default_factory=Counter)
    found: dict[str, bytes] = field(default_factory=dict)


class Late(BaseException):
    """A file took too long: no ``except Exception`` on the way takes it for what is wrong with the file."""


def _late(*_: object) -> None:
    raise Late


def fuzz(name: str, n: int, seed: int = 0) -> Campaign:
    """Give a reader ``n`` mutated files."""
    reader = readers()[name]
    rng = np.random.default_rng([seed, *name.encode()])
    done = Campaign(n)
    known: set[str] = set()
    # A hundred thousand files are written and read again: in memory where the system has such a folder.
    memory = Path("/dev/shm")  # noqa: S108 – a folder of a name nobody knows is made in it
    within = tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)
    with within as temporary, warnings.catch_warnings():
        # What a parser warns of is no crash.
        warnings.simplefilter("ignore")
        folder = Path(temporary)
        # Of this process: a machine that others use as well is no reason to call a file slow.
        before = signal.signal(signal.SIGPROF, _late)
        for _ in range(n):
            content = damaged(rng, reader)
            reader.place(folder, content)
            started = time.process_time()
            try:
                signal.setitimer(signal.ITIMER_PROF, 2 * LIMIT_S)
                reader.read(folder)
                done.n_read += 1
            except NeurobenchError as error:
                done.errors[type(error).__name__] += 1
            except (Exception, Late) as error:
                last = traceback.extract_tb(error.__traceback__)
                ours = [f for f in last if "neurobench" in f.filename and "benchmarks" not in f.filename]
                place = f"{type(error).__name__} at {Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "?"
                if place not in known:
                    done.found[f"{place}: {str(error)[:200]}"] = content
                known.add(place)
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
            seconds = time.process_time() - started
            done.seconds += seconds
            done.slowest_s = max(done.slowest_s, seconds)
            if seconds > LIMIT_S:
                done.found.setdefault(f"took {seconds:.0f} s", content)
        signal.signal(signal.SIGPROF, before)
    return done


def guided(name: str, n: int, seed: int) -> None:
    """Let libFuzzer damage a reader's files by what they reach in our code and in YAML's; ends the process.

    What breaks the reader is kept beside the samples, and the traceback is printed.
    """
    import atheris

    reader = readers()[name]
    folder = Path(tempfile.mkdtemp(prefix=f"neurobench-fuzz-{name}-"))
    (folder / "samples").mkdir()
    (folder / "read").mkdir()
    for i, sample in enumerate(reader.samples):
        (folder / "samples" / str(i)).write_bytes(sample)
    (folder / "tokens").write_text("".join(f'"{_escaped(t)}"\n' for t in TOKENS if 0 < len(t) < 60), encoding="ascii")

    def read(content: bytes) -> None:
        reader.place(folder / "read", content)
        with contextlib.suppress(NeurobenchError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader.read(folder / "read")

    reached: set[types.CodeType] = set()
    rng = np.random.default_rng(seed)
    sys.setprofile(lambda frame, *_: reached.add(frame.f_code))
    for content in (*reader.samples, *(damaged(rng, reader) for _ in range(100))):
        read(content)
    sys.setprofile(None)
    # Of everything that is imported only what a file reaches: to prepare a function takes longer than to read a file.
    for function in [f for f in gc.get_objects() if type(f) is types.FunctionType and f.__code__ in reached]:
        if str(function.__module__).startswith(GUIDED):
            atheris.instrument_func(function)
    print(f"{name}: samples and what is found in {folder}", flush=True)
    limits = [f"-runs={n}", f"-seed={seed + 1}", "-max_len=65536", f"-timeout={2 * LIMIT_S:.0f}", "-verbosity=1"]
    files = [f"-dict={folder / 'tokens'}", f"-artifact_prefix={folder}/", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *limits, *files, str(folder / "samples")], read)
    atheris.Fuzz()


def keep(name: str, done: Campaign, seed: int, path: Path = KEPT) -> None:
    """Add what was run to what is kept: another seed is other files; a seed that was run before begins anew."""
    with open(path, "a+", encoding="utf-8") as file:
        # Campaigns of other readers may run beside this one.
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        kept = json.loads(file.read() or "{}")
        before = kept.get(name, {})
        if seed in before.get("seeds", []):
            before = {}
        kept[name] = {
            "date": datetime.date.today().isoformat(),
            "files": before.get("files", 0) + done.n,
            "seeds": [*before.get("seeds", []), seed],
            "read": before.get("read", 0) + done.n_read,
            "refused": dict(sorted((done.errors + Counter(before.get("refused", {}))).items())),
            "seconds": before.get("seconds", 0) + round(done.seconds),
            "slowest_s": max(before.get("slowest_s", 0.0), round(done.slowest_s, 2)),
        }
        file.truncate(0)
        file.write(json.dumps(kept, indent=1, sort_keys=True) + "\n")


def _escaped(token: bytes) -> str:
    return "".join(f"\\x{b:02x}" for b in token)


def main() -> None:
    """Run the campaigns and say what was found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("reader", nargs="*", choices=[*readers(), []], help="Without: all of them.")
    parser.add_argument("--n", type=int, default=100_000, help="Files for each.")
    parser.add_argument("--seed", type=int, default=0, help="Another seed is other files.")
    parser.add_argument(
        "--engine", choices=["random", "atheris"], default="random", help="atheris: coverage guides it; one reader."
    )
    parser.add_argument("--save", action="store_true", help=f"Keep what was run in {KEPT.name}.")
    options = parser.parse_args()
    logging.disable()
    has = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (has + LIMIT_BYTES, has + LIMIT_BYTES))
    if options.engine == "atheris":
        guided(options.reader[0], options.n, options.seed)
    broken = False
    for name in track(options.reader or list(readers()), description="reading", disable=not sys.stderr.isatty()):
        done = fuzz(name, options.n, options.seed)
        places = list(done.found)
        told = "".join(f", {n} {kind}" for kind, n in done.errors.most_common())
        print(
            f"{name}: {done.n} files, {done.n_read} read{told}, {done.seconds:.0f} s, slowest {done.slowest_s:.2f} s, "
            f"{len(places)} bugs",
            flush=True,
        )
        for place in places:
            print(f"  {place}\n  {done.found[place][:300]!r}", flush=True)
        broken |= bool(places)
        if options.save and not places:
            keep(name, done, options.seed)
    sys.exit(broken)


if __name__ == "__main__":
    main()

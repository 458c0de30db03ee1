"""Valid recordings of a few hundred bytes that no library writes, or not so small, for :mod:`.recordings`."""

from __future__ import annotations

import functools
import io
import struct
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import mne
import nibabel
import numpy as np
import scipy.io

from benchmarks.performance.board import invented, predictions, with_value
from neurobench.pairwise import pairwise_record
from neurobench.results import Record, write_record

KINDS = {"MEG0111": "mag", "MEG0112": "grad", "STI101": "stim"}


def _values() -> np.ndarray:
    values = np.random.default_rng(0).standard_normal((3, 100)) * 1e-13
    values[2] = np.repeat([0, 5, 0, 3, 0], 20)
    return values


@functools.cache
def fif() -> bytes:
    """Return a recording of two sensors and a trigger channel."""
    with tempfile.TemporaryDirectory() as folder, mne.use_log_level("ERROR"):
        raw = mne.io.RawArray(_values(), mne.create_info(list(KINDS), 200.0, list(KINDS.values())))
        raw.save(Path(folder) / "x_raw.fif")
        return (Path(folder) / "x_raw.fif").read_bytes()


@functools.cache
def covariance() -> bytes:
    """Return a noise covariance of two sensors."""
    with tempfile.TemporaryDirectory() as folder:
        cov = mne.Covariance(np.eye(2) * 1e-26, list(KINDS)[:2], [], [], 100, verbose="ERROR")
        cov.save(Path(folder) / "x-cov.fif", verbose="ERROR")
        return (Path(folder) / "x-cov.fif").read_bytes()


def fieldtrip() -> bytes:
    """Return a recording of two sensors as FieldTrip writes it."""
    labels = np.array(["MEG0111", "MEG0112"], object)
    grad = {"label": labels, "chantype": np.array(["megmag", "megplanar"], object), "chanpos": np.eye(2, 3)}
    grad |= {"chanori": np.eye(2, 3), "unit": "m"}
    values = {"label": labels, "time": np.arange(100) / 200, "trial": _values()[:2], "fsample": 200.0, "grad": grad}
    content = io.BytesIO()
    scipy.io.savemat(content, {"data": values})
    return content.getvalue()


def bold() -> bytes:
    """Return fifty volumes of 2 × 3 × 4 voxels of 3 mm, in the order of bytes that numbers are overwritten in."""
    values = np.random.default_rng(0).integers(1, 1000, (2, 3, 4, 50)).astype(">i2")
    header = nibabel.Nifti1Header(endianness=">")
    header.set_xyzt_units("mm", "sec")
    image = nibabel.Nifti1Image(values, np.diag([3.0, 3, 3, 1]), header)
    image.header.set_zooms((3, 3, 3, 2))
    content = io.BytesIO()
    image.to_stream(content)
    return content.getvalue()


# ---------------------------------------------------------------- CTF


CTF = {"res4": "x.res4", "meg4": "x.meg4", "hc": "x.hc", "mrk": "MarkerFile.mrk", "cls": "ClassFile.cls"}
"""Files of a CTF folder."""


@functools.cache
def ctf() -> dict[str, bytes]:
    """Return the content of each of :data:`CTF`: two gradiometers, a trigger, 100 samples at 200 Hz."""
    return {"res4": _res4(), "meg4": _meg4(), "hc": _hc(), "mrk": MARKERS, "cls": CLASSES}


def _res4() -> bytes:
    head = bytearray(1844)
    head[:8] = b"MEG41RS\x00"
    struct.pack_into(">h", head, 776, 0)
    head[778:783], head[1033:1043] = b"10:00", b"01/01/2020"
    # Samples, channels, sampling frequency, seconds, trials.
    struct.pack_into(">ih", head, 1288, 100, 4)
    struct.pack_into(">ddh", head, 1296, 200.0, 0.5, 1)
    names = [b"MLC11-1", b"MRC11-1", b"BG1-1", b"UPPT001"]
    coil = struct.Struct(">4d4dhihd")
    channels = b""
    for i, (kind, n_coils) in enumerate(((5, 2), (5, 2), (0, 1), (11, 0))):
        coils = [coil.pack(3.0 * i + 1, 2, 20 + 5 * k, 0, 0, 0, 1 - 2 * k, 0, 1, 0, 0, 1.0) for k in range(n_coils)]
        own = b"".join(coils).ljust(8 * coil.size, b"\x00")
        channels += struct.pack(">hhi4dhhi", kind, 0, 0, -1e9, 1e6, 1, 0, n_coils, 0, 0) + own + own
    # Of every gradiometer what is taken off it to compensate the first gradient.
    balance = b"".join(
        n.ljust(32, b"\x00") + struct.pack(">4sih", b"G1BR", 0, 1) + names[2].ljust(31 * 50, b"\x00")
        + struct.pack(">d", 0.1).ljust(8 * 50, b"\x00")
        for n in names[:2]
    )  # fmt: skip
    names_ = b"".join(n.ljust(32, b"\x00") for n in names)
    return bytes(head) + struct.pack(">h", 0) + names_ + channels + struct.pack(">h", 2) + balance


def _meg4() -> bytes:
    values = np.random.default_rng(0).integers(-1000, 1000, (4, 100))
    values[3] = np.repeat([0, 5, 0, 3, 0], 20)
    return b"MEG41CP\x00" + values.astype(">i4").tobytes()


def _hc() -> bytes:
    places = {"nasion": (10, 0, 0), "left ear": (0, 7, 0), "right ear": (0, -7, 0)}
    text = ""
    for frame in ("dewar", "head"):
        for name, place in places.items():
            text += f"measured {name} coil position relative to {frame} (cm):\n"
            text += "".join(f"\t{axis} = {value}\n" for axis, value in zip("xyz", place, strict=True))
    return text.encode()


MARKERS = b"""PATH OF DATASET:
x.ds


NUMBER OF MARKERS:
1


NAME:
tone
NUMBER OF SAMPLES:
2
LIST OF SAMPLES:
TRIAL NUMBER\t\tTIME FROM SYNC POINT (in seconds)
                  +0\t\t\t\t     +0.1
                  +0\t\t\t\t     +0.3
"""

CLASSES = b"""PATH OF DATASET:
x.ds


NUMBER OF CLASSES:
1


NAME:
BAD
NUMBER OF TRIALS:
1
LIST OF TRIALS:
TRIAL NUMBER
                  +0
"""


# ---------------------------------------------------------------- results


@functools.cache
def clinic() -> tuple[dict[str, Record], str]:
    """Return records of a cohort whose card lets only aggregates leave, by id, and their comparisons."""
    truth = 10 + 3 * np.random.default_rng(0).standard_normal(60)
    records = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed, (row, kind, error) in enumerate((("net · roi", "pretrained", 0.5), ("ridge", "baseline", 1.5))):
            held_out, value = predictions(truth, error, seed)
            of = {
                "data__may_leave": "aggregates",
                "data__source": "real",
                "dataset": "clinic",
                "n_subjects": len(truth),
            }
            record = with_value(invented(row, kind, n_metrics=0, above_chance=True, **of), value)
            half = 1.96 * float((held_out["truth"] - held_out["prediction"]).abs().std()) / len(truth) ** 0.5
            head = record.metrics["mae"].model_copy(update={"low": value - half, "high": value + half})
            record = record.model_copy(update={"metrics": {"mae": head}}).hashed()
            write_record(Path(folder), record, held_out)
            records[record.id] = record
        compared = pairwise_record(Path(folder), list(records.values()))
    assert compared is not None
    return records, compared.as_text


def filled(kind: Any, text: str) -> Any:
    """Return a value of a type in which every text, down to the last field, is this one."""
    if get_origin(kind) is Literal:
        return get_args(kind)[0]
    if get_origin(kind) in (UnionType, Union):
        return filled(get_args(kind)[0], text)
    if get_origin(kind) is tuple:
        return tuple(filled(k, text) for k in get_args(kind))
    if get_origin(kind) is Sequence:
        return [filled(get_args(kind)[0], text)]
    if get_origin(kind) is Mapping:
        return {0: text}
    if get_origin(kind) is frozenset:
        return frozenset({0})
    if is_dataclass(kind):
        hints = _hints(kind)
        return kind(**{f.name: filled(hints[f.name], text) for f in fields(kind) if f.init})
    return {str: text, bytes: b"", bool: True, int: 0}[kind]


_hints = functools.cache(get_type_hints)

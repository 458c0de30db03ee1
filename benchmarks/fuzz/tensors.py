"""Readers of weights, embeddings and arrays."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.numpy import save

from benchmarks.fuzz.reader import Reader
from neurobench_backbones._weights import read_weights
from neurobench_tasks._embeddings import read_embeddings


def readers() -> dict[str, Reader]:
    """Return the readers of tensors by name."""
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

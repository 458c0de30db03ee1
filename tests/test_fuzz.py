"""Damaged and hostile files: whatever reads what comes from outside reads it or refuses it in plain words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.io

from benchmarks.fuzz import fuzz, readers
from neurobench.errors import DataError
from neurobench_datasets._mat import damage
from neurobench_datasets._roi_series import read_series


@pytest.mark.parametrize("name", readers())
def test_valid_samples_are_read(name: str, tmp_path: Path) -> None:
    reader = readers()[name]
    (tmp_path / reader.file).write_bytes(reader.samples[0])
    reader.read(tmp_path)


@pytest.mark.parametrize("name", readers())
def test_a_few_damaged_files(name: str) -> None:
    assert fuzz(name, 8, seed=1).found == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", readers())
def test_hundreds_of_damaged_files(name: str) -> None:
    # `make fuzz` reads a hundred thousand of each.
    assert fuzz(name, 300, seed=2).found == {}


def test_a_crash_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import fuzz as module

    def read(folder: Path) -> None:
        if b"\x00" in (folder / "x").read_bytes():
            raise KeyError("oops")

    monkeypatch.setattr(module, "readers", lambda: {"x": module.Reader("x", (b"a\x00b",), read)})
    found = module.fuzz("x", 50).found
    assert found
    assert all("KeyError at" in place or "?" in place for place in found)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    "value", [np.eye(3), {"a": {"b": [1, 2]}}, "text", np.zeros((0, 3)), 1j * np.eye(2), np.eye(2) > 0]
)
def test_what_scipy_writes_is_whole(tmp_path: Path, value: object, compressed: bool) -> None:
    scipy.io.savemat(tmp_path / "x.mat", {"value": value, "other": np.arange(3)}, do_compression=compressed)
    assert damage(tmp_path / "x.mat") == ""


def test_an_unknown_type_in_a_matlab_file_is_said_and_does_not_end_the_process(tmp_path: Path) -> None:
    path = tmp_path / "x.mat"
    scipy.io.savemat(path, {"ROISignals": np.eye(4)})
    content = bytearray(path.read_bytes())
    at = content.index(np.array([9, 128], "<u4").tobytes())
    content[at : at + 4] = b"\x61\x7a\x00\x00"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"x\.mat is damaged \(an element of type 31329\)"):
        read_series(path)

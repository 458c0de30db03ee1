"""Damaged and hostile files: whatever reads what comes from outside reads it or refuses it in plain words."""

from __future__ import annotations

import json
import re
import struct
from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st
from mne.io.constants import FIFF

from benchmarks.fuzz import engines
from benchmarks.fuzz.damage import VALUES
from benchmarks.fuzz.engines import Campaign, fuzz, keep
from benchmarks.fuzz.pages import only_text
from benchmarks.fuzz.reader import Reader
from benchmarks.fuzz.readers import readers
from benchmarks.fuzz.structured import ODD, strategies
from benchmarks.fuzz.tables import SILENCE
from neurobench.errors import DataError
from neurobench_datasets import _meg_files
from neurobench_datasets._atlases import Atlas, load_labels
from neurobench_datasets._bold_images import BoldFile
from neurobench_datasets._mat import damage
from neurobench_datasets._meg_events import read_events
from neurobench_datasets._meg_noise import noise_covariance
from neurobench_datasets._meg_open import open_raw
from neurobench_datasets._roi_series import read_regions, read_series
from neurobench_datasets._tables import match_id, participants_from


@pytest.mark.parametrize("name", readers())
def test_valid_samples_are_read(name: str, tmp_path: Path) -> None:
    reader = readers()[name]
    reader.place(tmp_path, reader.samples[0])
    reader.read(tmp_path)


@pytest.mark.parametrize("name", readers())
def test_a_few_damaged_files(name: str) -> None:
    assert fuzz(name, 8, seed=1).found == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", readers())
def test_hundreds_of_damaged_files(name: str) -> None:
    # `make fuzz` reads a hundred thousand of each.
    assert fuzz(name, 300, seed=2).found == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", strategies())
def test_hundreds_of_made_up_files(name: str) -> None:
    done = fuzz(name, 200, seed=1, engine="hypothesis")
    assert done.found == {}
    assert done.n >= 200
    # As many as are refused at the door would tell nothing of what comes after it.
    assert done.n_read > 5
    # The same seed is the same files.
    if name == "labels-text":
        assert fuzz(name, 200, seed=1, engine="hypothesis").n_read == done.n_read


def _breaks(folder: Path) -> None:
    if b"\x00" in (folder / "x").read_bytes():
        raise KeyError("oops")


@pytest.mark.parametrize("engine", [*engines.ENGINES, engines.COVERAGE])
def test_a_crash_is_found(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if engine == engines.COVERAGE:
        pytest.importorskip(engine)
    monkeypatch.setattr(engines, "readers", lambda: {"x": Reader("x", (b"a\x00b",), _breaks)})
    monkeypatch.setattr(engines, "strategies", lambda: {"x": st.binary(max_size=50)})
    (found,) = fuzz("x", 500, engine=engine).found.items()
    assert found[0] == "KeyError at ?"
    if engine == "hypothesis":
        assert found[1] == ("'oops'", b"\x00"), "the shortest there is"


@pytest.mark.parametrize("share", [0.0, engines.SEARCHED])
def test_hypothesis_makes_up_files_in_two_ways_and_gives_none_twice(
    share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: Counter[bytes] = Counter()
    monkeypatch.setattr(
        engines, "readers", lambda: {"x": Reader("x", (b"",), lambda f: seen.update([(f / "x").read_bytes()]))}
    )
    monkeypatch.setattr(engines, "strategies", lambda: {"x": st.binary(max_size=20)})
    monkeypatch.setattr(engines, "SEARCHED", share)
    monkeypatch.setattr(engines, "SEARCHED_LEAST", 100)
    assert fuzz("x", 1000, engine="hypothesis").n == len(seen) == 1000
    assert set(seen.values()) == {1}


def test_hypothesis_gives_no_file_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: Counter[bytes] = Counter()
    monkeypatch.setattr(
        engines, "readers", lambda: {"x": Reader("x", (b"",), lambda f: seen.update([(f / "x").read_bytes()]))}
    )
    monkeypatch.setattr(engines, "strategies", lambda: {"x": st.binary(max_size=1)})
    # There are 257: it ends where nothing new comes.
    assert 100 < fuzz("x", 1000, engine="hypothesis").n == len(seen) <= 257
    assert set(seen.values()) == {1}


def test_a_file_that_takes_too_long_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def spins(folder: Path) -> None:
        while True:
            pass

    monkeypatch.setattr(engines, "readers", lambda: {"x": Reader("x", (b"a",), spins)})
    monkeypatch.setattr(engines, "LIMIT_S", 0.05)
    assert list(fuzz("x", 1).found) == ["_Late at ?"]


def test_pieces_of_a_campaign_add_up(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    errors = Counter({"DataError": 4})
    keep("x", Campaign(10, n_read=6, seconds=1.6, slowest_s=0.2, errors=errors), 0, "mutation", path)
    keep("x", Campaign(20, n_read=16, seconds=3.1, slowest_s=0.1, errors=errors), 1, "mutation", path)
    kept = json.loads(path.read_text(encoding="utf-8"))["mutation"]["x"]
    assert (kept["files"], kept["read"], kept["refused"], kept["seeds"]) == (30, 22, {"DataError": 8}, [0, 1])
    assert (kept["seconds"], kept["slowest_s"]) == (5, 0.2)
    # The same seed is the same files; another engine makes others.
    keep("x", Campaign(20, n_read=20), 1, "mutation", path)
    keep("x", Campaign(7), 1, "hypothesis", path)
    kept = json.loads(path.read_text(encoding="utf-8"))
    assert (kept["mutation"]["x"]["files"], kept["hypothesis"]["x"]["files"]) == (20, 7)


@pytest.mark.parametrize(
    ("page", "usual", "found"),
    [
        ("<p><img src=x onerror=alert(1)></p>", "<p>x</p>", "img"),
        ('<p onmouseover="x">', "<p>x</p>", "onmouseover"),
        ('<a href="http://elsewhere">x</a>', "x", "'a'"),
        ('<a href=" java\nscript:alert(1)">x</a>', '<a href="x">x</a>', "runs"),
    ],
)
def test_a_name_that_is_more_than_text_is_found(page: str, usual: str, found: str) -> None:
    only_text(["<p>&lt;img&gt;</p>"], ["<p>x</p>"])
    with pytest.raises(AssertionError, match=found):
        only_text([page], [usual])


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


def test_a_damaged_fieldtrip_recording_does_not_end_the_process(tmp_path: Path) -> None:
    path = tmp_path / "x.mat"
    values = {"label": np.array(["a", "b"], object), "time": np.arange(9.0), "trial": np.ones((2, 9)), "fsample": 200.0}
    scipy.io.savemat(path, {"data": values})
    open_raw(path)
    content = bytearray(path.read_bytes())
    at = content.index(np.array([9, 144], "<u4").tobytes())
    content[at : at + 4] = b"\x61\x7a\x00\x00"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"x\.mat is damaged \(an element of type 31329\)"):
        open_raw(path)


def test_a_text_without_its_characters_does_not_end_the_process(tmp_path: Path) -> None:
    path = tmp_path / "x.mat"
    scipy.io.savemat(path, {"data": {"label": np.array(["MEG0111", "MEG0112"], object)}})
    content = path.read_bytes()
    # The name of the matrix, which is empty, swallows them.
    name, text = struct.pack("<2I", 1, 0), struct.pack("<2I", 16, 7)
    path.write_bytes(content.replace(name + text, struct.pack("<2I", 1, 16) + text, 1))
    assert path.read_bytes() != content
    with pytest.raises(DataError, match=r"x\.mat is damaged \(a matrix of class 4 of 0 parts\)"):
        open_raw(path)


@pytest.mark.parametrize(
    "value",
    [
        {"a": {"b": "q", "c": np.array([], object)}},
        np.array([1, "x", {"a": []}], object),
        "",
        scipy.sparse.eye_array(3),
    ],
    ids=["structure", "cells", "empty text", "sparse"],
)
def test_what_matlab_nests_is_whole(tmp_path: Path, value: object) -> None:
    scipy.io.savemat(tmp_path / "x.mat", {"value": value})
    assert damage(tmp_path / "x.mat") == ""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "number of markers"),
        ("NUMBER OF MARKERS:\n2\nNAME:\na\nNUMBER OF SAMPLES:\n0\nLIST OF SAMPLES:\nTRIAL\n", "name"),
        ("NUMBER OF MARKERS:\n1\nNAME:\nNUMBER OF SAMPLES:\n9\nLIST OF SAMPLES:\n", "number of samples"),
        ("NUMBER OF MARKERS:\n1\nNAME:\na\nNUMBER OF SAMPLES:\n9\n", "list of samples"),
    ],
)
def test_markers_of_a_ctf_folder_that_are_cut_off_are_said(text: str, says: str, tmp_path: Path) -> None:
    # MNE looks for the next line without end.
    folder = tmp_path / "x.ds"
    folder.mkdir()
    (folder / "MarkerFile.mrk").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=rf"MarkerFile\.mrk ends before its {says}"):
        open_raw(folder)


def test_numbers_of_hundreds_of_digits_are_no_series(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text(f"a,b\n1,2\n{'9' * 400},3\n", encoding="utf-8")
    with pytest.raises(DataError, match="holds text where numbers are expected, such as '9999"):
        read_series(path)


def test_columns_that_name_rows_are_taken_off_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Thousands of them: to copy the rest of the table for each in turn took ten seconds.
    path = tmp_path / "x.csv"
    path.write_text("a " * 3000 + "b\n" + "- " * 3000 + "1\n", encoding="utf-8")
    astype, copied = pd.Series.astype, []

    def counted(column: pd.Series, *args: object, **kwargs: object) -> pd.Series:
        copied.append(column)
        return astype(column, *args, **kwargs)

    monkeypatch.setattr(pd.Series, "astype", counted)
    series = read_series(path)
    assert (series.values.tolist(), series.columns, series.rows) == ([[1.0]], ("b",), ("-",))
    assert len(copied) < 10


def test_a_recording_of_a_few_bytes_that_says_gigabytes_is_not_made_room_for(tmp_path: Path) -> None:
    path = tmp_path / "x_bold.nii"
    nibabel.Nifti1Image(np.zeros((2, 3, 4, 50), np.int16), np.diag([3.0, 3, 3, 1])).to_filename(path)
    content = bytearray(path.read_bytes())
    content[42:48] = struct.pack("<3h", 30000, 30000, 30000)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"x_bold\.nii cannot be read: .*its header says \d+ bytes of voxels"):
        BoldFile.open(path)


def test_an_image_of_a_few_bytes_that_says_gigabytes_is_not_made_room_for(tmp_path: Path) -> None:
    path = tmp_path / "atlas.nii"
    content = bytearray(readers()["atlas"].samples[0])
    content[44:48] = struct.pack("<2h", 29477, 28197)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"atlas\.nii cannot be read: .*its header says \d+ bytes of voxels"):
        load_labels(Atlas(path, None, ""))


def test_a_fif_file_that_leads_in_a_circle_is_said(tmp_path: Path) -> None:
    path = tmp_path / "x_raw.fif"
    content = bytearray(readers()["fif"].samples[0])
    second = 16 + struct.unpack(">i", content[8:12])[0]
    content[second + 12 : second + 16] = struct.pack(">i", second)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"x_raw\.fif is cut off or damaged .*lead in a circle"):
        open_raw(path)


def test_a_text_without_bytes_that_says_gigabytes_is_not_made_room_for(tmp_path: Path) -> None:
    path = tmp_path / "x.mat"
    scipy.io.savemat(path, {"a": "abc", "b": np.eye(3)})
    content = path.read_bytes().replace(struct.pack("<2I2i", 5, 8, 1, 3), struct.pack("<2I2i", 5, 8, 20_000, 20_000), 1)
    content = content.replace(struct.pack("<2H", 16, 3) + b"abc\0", struct.pack("<2I", 16, 0), 1)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a text of shape \(20000, 20000\) of 0 bytes"):
        read_series(path)


def test_regions_that_lie_nowhere_are_said(tmp_path: Path) -> None:
    # Their distances are infinite, which no clustering takes.
    path = tmp_path / "regions.csv"
    for far in ("1e200", "inf", "-1e7"):
        path.write_text(f"name,x,y,z\na,{far},1,1\nb,2,1,1\n", encoding="utf-8")
        with pytest.raises(DataError, match=rf"regions\.csv puts a at x = {far} mm"):
            read_regions(path)


def test_digits_that_are_no_number_are_nobody_and_no_code(tmp_path: Path) -> None:
    # `²` is a digit for Python, and int("²") is an error; so are thousands of digits.
    assert match_id("01", ["sub-²", "9" * 5000, "sub-1"]) == "sub-1"
    assert match_id("²", ["sub-²", "sub-2"]) == "sub-²"
    assert match_id("²", ["sub-2"]) == ""
    (tmp_path / "events.tsv").write_text("onset\tvalue\n0.5\t²\n0.7\t1\n", encoding="utf-8")
    of = {"events_file": "events.tsv", "conditions": (("1", "tone"),), "button": "press"}
    events, _, _ = read_events(SILENCE, None, of, tmp_path)
    assert [e.condition for e in events] == ["tone"]


@pytest.mark.parametrize("value", ["inf", "-Infinity", "1e999", "9" * 400])
def test_nothing_that_is_measured_is_infinite(tmp_path: Path, value: str) -> None:
    (tmp_path / "p.tsv").write_text(f"participant_id\tage\n01\t{value}\n02\t30\n", encoding="utf-8")
    people, findings = participants_from(tmp_path / "p.tsv", component="parcels")
    assert people["age"].isna().tolist() == [True, False]
    assert [f.code for f in findings] == ["not-a-number"]


@pytest.mark.parametrize("says", ["lead in a circle", "are of 30000 sensors"])
def test_a_noise_covariance_that_mne_would_read_without_end_is_said(tmp_path: Path, says: str) -> None:
    path = tmp_path / "x-cov.fif"
    content = bytearray(readers()["noise"].samples[0])
    if "circle" in says:
        second = 16 + struct.unpack(">i", content[8:12])[0]
        content[second + 12 : second + 16] = struct.pack(">i", second)
    else:
        at = content.index(struct.pack(">3i", FIFF.FIFF_MNE_COV_DIM, FIFF.FIFFT_INT, 4)) + 16
        content[at : at + 4] = struct.pack(">i", 30_000)
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"x-cov\.fif cannot be read as a noise covariance .*{says}"):
        noise_covariance(path, 1)


def test_a_fif_file_that_says_more_samples_than_it_can_hold_is_said(tmp_path: Path) -> None:
    path = tmp_path / "x_raw.fif"
    content = readers()["fif"].samples[0]
    start = content.index(struct.pack(">2i", FIFF.FIFF_DATA_BUFFER, FIFF.FIFFT_FLOAT))
    end = start + 16 + struct.unpack(">i", content[start + 8 : start + 12])[0]
    # The signal, ten million buffers that were not kept, and the signal again; no directory, so that they are found.
    skip = struct.pack(">5i", FIFF.FIFF_DATA_SKIP, FIFF.FIFFT_INT, 4, 0, 10_000_000)
    content = content[:end] + skip + content[start:end] + content[end:]
    path.write_bytes(content[:52] + struct.pack(">i", -1) + content[56:])
    with pytest.raises(DataError, match=r"x_raw\.fif is cut off or damaged .*say that they hold \d+ values"):
        open_raw(path)


@pytest.mark.parametrize(
    ("tag", "value", "says"),
    [
        (FIFF.FIFF_SFREQ, struct.pack(">f", float("nan")), "a sampling frequency of nan Hz"),
        (FIFF.FIFF_SFREQ, struct.pack(">f", 1e-42), "a sampling frequency of 1.00053e-42 Hz"),
        (FIFF.FIFF_CH_INFO, struct.pack(">3i", 1, 1, 33), "KeyError|Unknown channel type"),
    ],
)
def test_a_fif_header_that_cannot_be_is_said(tag: int, value: bytes, says: str, tmp_path: Path) -> None:
    content = bytearray(readers()["fif"].samples[0])
    # A tag is its kind, type, size and next, and then its value; the directory holds no such four in a row.
    start = next(m.end() for m in re.finditer(re.escape(struct.pack(">i", tag)) + b".{8}\x00{4}", content, re.DOTALL))
    content[start : start + len(value)] = value
    (tmp_path / "x_raw.fif").write_bytes(content)
    with pytest.raises(DataError, match=rf"x_raw\.fif is cut off or damaged .*({says})"):
        open_raw(tmp_path / "x_raw.fif")


@pytest.mark.parametrize(
    ("name", "n_trials", "says"),
    [("Average", "12", "class Average in ClassFile.cls"), ("Average", "0", ""), ("BAD" + "f" * 100_000, "3", "")],
)
def test_the_classes_of_a_ctf_folder_are_read_in_one_pass(tmp_path: Path, name: str, n_trials: str, says: str) -> None:
    folder = tmp_path / "x.ds"
    folder.mkdir()
    text = f"NUMBER OF CLASSES:\n1\n\n\nNAME:\n{name}\nCOMMENT:\n\n\nNUMBER OF TRIALS:\n{n_trials}\n\n\n"
    (folder / "ClassFile.cls").write_text(text)
    assert _meg_files._averaged_ctf(None, folder) == says
    # Begun, and never ended.
    (folder / "ClassFile.cls").write_text(text.split("NUMBER OF TRIALS")[0] * 1000)
    assert _meg_files._averaged_ctf(None, folder) == ""


@given(st.data())
def test_values_that_are_drawn_belong_to_nobody_else(data: st.DataObject) -> None:
    for _ in range(20):
        value = data.draw(ODD)
        if isinstance(value, dict):
            value["changed"] = value
        elif isinstance(value, list):
            value.append(value)
    json.dumps([v for v in VALUES if not isinstance(v, float)])

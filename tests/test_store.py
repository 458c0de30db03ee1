"""The store: whole entries or none, and plain words when the disk says no."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from neurobench.errors import StoreError
from neurobench.store import Store, atomic_write, disk_errors

IDENTITY = {"a": 1, "b": {"c": "x"}}


def put(store: Store, identity: dict, text: str = "hello") -> None:
    with store.write("stage", identity, "a label") as folder:
        (folder / "file.txt").write_text(text)


def test_an_entry_is_found_again(tmp_path: Path) -> None:
    store = Store(tmp_path / "out")
    assert store.get("stage", IDENTITY) is None
    put(store, IDENTITY)
    entry = Store(tmp_path / "out").get("stage", IDENTITY)
    assert entry is not None
    assert entry.file("file.txt").read_text() == "hello"
    assert store.verify(entry)
    assert store.get("stage", {"a": 2}) is None


def test_a_step_that_fails_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "out")

    def fail() -> None:
        with store.write("stage", IDENTITY, "label") as folder:
            (folder / "file.txt").write_text("half")
            raise RuntimeError("the step broke")

    with pytest.raises(RuntimeError, match="the step broke"):
        fail()
    assert store.get("stage", IDENTITY) is None
    assert list((tmp_path / "out/store/tmp").iterdir()) == []


def test_a_damaged_entry_counts_as_missing_and_is_made_again(tmp_path: Path) -> None:
    store = Store(tmp_path / "out")
    put(store, IDENTITY)
    entry = store.get("stage", IDENTITY)
    assert entry is not None
    entry.file("file.txt").write_text("hell")
    assert store.get("stage", IDENTITY) is None
    put(store, IDENTITY)
    assert store.get("stage", IDENTITY) is not None


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    store = Store(tmp_path / "out")
    left = tmp_path / "out/store/tmp/999999999-stage-x"
    left.mkdir()
    Store(tmp_path / "out")
    assert not left.exists()
    assert store.stages() == []


def test_a_folder_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "neurobench.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(StoreError, match=r"another version \(format 99; this is format 1\)"):
        Store(tmp_path)


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(StoreError, match="is not empty and was not made by neurobench"):
        Store(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_looking_changes_nothing(tmp_path: Path) -> None:
    Store(tmp_path / "new", read_only=True)
    assert not (tmp_path / "new").exists()


def test_a_full_disk_is_said_in_plain_words(tmp_path: Path) -> None:
    store = Store(tmp_path / "out")
    with pytest.raises(StoreError, match=r"is full\. Nothing finished is lost"), store.write("s", IDENTITY, "x"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(StoreError, match="cannot be written"), disk_errors(tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied")


def test_why_stale_names_what_differs(tmp_path: Path) -> None:
    store = Store(tmp_path / "out")
    put(store, IDENTITY)
    assert store.why_stale("stage", "a label", {"a": 1, "b": {"c": "y"}}) == "b.c"
    assert store.why_stale("stage", "another label", {"a": 1}) == ""


def test_atomic_write_replaces_whole(tmp_path: Path) -> None:
    atomic_write(tmp_path / "x.txt", "one")
    atomic_write(tmp_path / "x.txt", "two")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["two"]

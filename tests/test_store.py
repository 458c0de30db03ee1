"""The store: whole entries or none, and plain words when the disk says no."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from neurobench import pretraining_steps
from neurobench import store as store_module
from neurobench.cohorts import CohortSource
from neurobench.cost import Work
from neurobench.errors import StoreError
from neurobench.execution import Executor
from neurobench.identity import digest
from neurobench.progress import Silent
from neurobench.results import load_results
from neurobench.steps import Step
from neurobench.store import Checkpoint, Store, atomic_write, disk_errors, stored_steps
from neurobench.upkeep import check
from tests.fakes import FakeDataset, write_folder
from tests.tiny_run import PLUGIN, execute

ROOT = Path(__file__).resolve().parents[1]

IDENTITY = {"a": 1, "b": {"c": "x"}}


def put(store: Store, identity: dict, text: str = "hello") -> None:
    with store.write("stage", identity, "a label") as folder:
        (folder / "file.txt").write_text(text)


def test_an_entry_is_found_again(tmp_path: Path) -> None:
    store = Store(tmp_path / "out")
    assert store.get("stage", digest(IDENTITY)) is None
    put(store, IDENTITY)
    entry = Store(tmp_path / "out").get("stage", digest(IDENTITY))
    assert entry is not None
    assert entry.file("file.txt").read_text() == "hello"
    assert store.verify(entry)
    assert store.get("stage", digest({"a": 2})) is None


def test_who_may_read_a_manifest_may_read_what_it_names(tmp_path: Path) -> None:
    store = Store(tmp_path / "out")
    with store.write("stage", IDENTITY, "a label") as folder:
        save_file({"a": torch.zeros(2)}, folder / "weights.safetensors")
    entry = store.get("stage", digest(IDENTITY))
    assert entry is not None
    modes = {entry.file(name).stat().st_mode for name in ("weights.safetensors", "manifest.json")}
    assert len(modes) == 1


def test_a_step_that_fails_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "out")

    def fail() -> None:
        with store.write("stage", IDENTITY, "label") as folder:
            (folder / "file.txt").write_text("half")
            raise RuntimeError("the step broke")

    with pytest.raises(RuntimeError, match="the step broke"):
        fail()
    assert store.get("stage", digest(IDENTITY)) is None
    assert list((tmp_path / "out/store/tmp").iterdir()) == []


def test_a_damaged_entry_counts_as_missing_and_is_made_again(tmp_path: Path) -> None:
    store = Store(tmp_path / "out")
    put(store, IDENTITY)
    entry = store.get("stage", digest(IDENTITY))
    assert entry is not None
    entry.file("file.txt").write_text("hell")
    assert store.get("stage", digest(IDENTITY)) is None
    put(store, IDENTITY)
    assert store.get("stage", digest(IDENTITY)) is not None


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


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_said_in_plain_words(tmp_path: Path, number: int) -> None:
    store = Store(tmp_path / "out")
    with pytest.raises(StoreError, match=r"is full\. Nothing finished is lost"), store.write("s", IDENTITY, "x"):
        raise OSError(number, os.strerror(number))
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


# ---------------------------------------------------------------- several at once


def test_two_runs_on_one_grid_do_nothing_twice(tmp_path: Path) -> None:
    done: list[str] = []
    Store(tmp_path / "out")

    def compute(folder: Path, advance: Any, checkpoint: Any) -> None:
        time.sleep(0.02)
        done.append(folder.name)
        (folder / "file.txt").write_text("hello")

    todo = [Step("embedding", f"step {i}", {"i": i}, Work("embedding", 1.0), compute) for i in range(8)]
    # Each has its own store and its own locks, which the system holds apart as it does for two processes.
    runs = [Executor(Store(tmp_path / "out"), Silent()) for _ in range(2)]

    def run(executor: Executor, order: list[Step]) -> None:
        for step in order:
            executor.fetch(step)

    threads = [
        threading.Thread(target=run, args=(executor, order))
        for executor, order in zip(runs, (todo, todo[::-1]), strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(done) == len(set(done)) == 8
    assert [len(r.computed) + len(r.stored) for r in runs] == [8, 8]
    assert runs[0].computed.isdisjoint(runs[1].computed), "what another one computed was found, and is counted so"
    assert all(r.computed for r in runs), "they shared the work"


@pytest.mark.slow
def test_two_commands_on_one_folder_share_the_work(tmp_path: Path) -> None:
    write_folder(tmp_path / "data", n_subjects=24)
    command = [
        *(sys.executable, "-m", "neurobench", "run", "--plugin", str(PLUGIN), "--backbone", "tiny,connected"),
        *("--mask", "roi", "--dataset", "fake", "--data-dir", str(tmp_path / "data"), "--out", str(tmp_path / "out")),
        *("--steps", "20", "--jobs", "1", "--task", "reconstruction,age", "--json"),
    ]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    ended = [process.communicate(timeout=200) for process in both]
    assert [p.returncode for p in both] == [0, 0], ended
    options = {"backbone": "tiny,connected", "task": "reconstruction,age", "n_steps": 20}
    alone = execute(tmp_path / "data", tmp_path / "alone", **options)
    assert execute(tmp_path / "data", tmp_path / "out", **options).n_computed == 0
    kept = [sum(len(list(f.iterdir())) for f in (tmp_path / n / "store").iterdir()) for n in ("out", "alone")]
    assert kept[0] == kept[1]
    scores = [load_results(tmp_path / n)["score"] for n in ("out", "alone")]
    pd.testing.assert_series_equal(*scores)
    assert alone.failed == ()


HOLD = (
    "import filelock, sys; lock = filelock.FileLock(sys.argv[1]); lock.acquire();"
    "print('held', flush=True); sys.stdin.read()"
)


def test_the_lock_of_a_process_that_died_is_taken_over_and_its_half_is_swept(tmp_path: Path) -> None:
    store = Store(tmp_path / "out")
    lock = store.root / "locks" / store.beside("stage", digest(IDENTITY)).name.partition("-")[2]
    # As on another machine: its number is nobody's here.
    half = store.root / "tmp" / f"999999999-{lock.name}"
    half.mkdir()
    (half / "file.txt").write_text("hel")
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdin is not None
    assert holder.stdout.readline() == b"held\n"
    try:
        Store(tmp_path / "out")
        assert half.exists(), "somebody is at work there"
        with pytest.raises(filelock.Timeout), filelock.FileLock(lock, timeout=0):
            pass
    finally:
        holder.kill()
        holder.wait(30)
        holder.stdin.close()
        holder.stdout.close()
    started = time.monotonic()
    with store.lock("stage", digest(IDENTITY)):
        put(store, IDENTITY)
    assert time.monotonic() - started < 5
    assert store.get("stage", digest(IDENTITY)) is not None
    Store(tmp_path / "out")
    assert not half.exists()


# ---------------------------------------------------------------- a disk that says no

FULL = "/dev/full"


@pytest.mark.skipif(not Path(FULL).exists(), reason="no device that is always full")
@pytest.mark.parametrize(
    ("name", "fill"),
    [
        ("file.json", lambda path: path.write_text("x" * 100_000)),
        ("file.npy", lambda path: np.save(path, np.zeros(100_000))),
        ("file.npz", lambda path: np.savez(path, a=np.zeros(100_000))),
        ("file.parquet", lambda path: pd.DataFrame({"a": np.zeros(100_000)}).to_parquet(path)),
    ],
)
def test_a_full_disk_is_noticed_whoever_writes(tmp_path: Path, name: str, fill: Callable[[Path], object]) -> None:
    store = Store(tmp_path / "out")

    def write() -> None:
        with store.write("stage", IDENTITY, "label") as folder:
            (folder / name).symlink_to(FULL)
            fill(folder / name)

    with pytest.raises(StoreError, match=r"is full\. Nothing finished is lost"):
        write()
    assert store.get("stage", digest(IDENTITY)) is None
    assert list((store.root / "tmp").iterdir()) == []


@contextlib.contextmanager
def small_disk() -> Iterator[Path]:
    """Give a folder on a disk of 256 kB, where this user may have one."""
    folder = Path(tempfile.mkdtemp())
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    try:
        if not mounted or mounted.returncode:
            pytest.skip("this user cannot mount a small disk")
        yield folder
    finally:
        if mounted and not mounted.returncode:
            subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()


def test_weights_that_do_not_fit_end_the_run_and_leave_nothing_half() -> None:
    with small_disk() as disk:
        store = Store(disk / "out")
        put(store, {"a": 2})

        def write() -> None:
            with store.write("stage", IDENTITY, "label") as folder:
                save_file({"w": torch.zeros(1_000_000)}, folder / "weights.safetensors")

        with pytest.raises(StoreError, match="is full"):
            write()
        assert store.get("stage", digest(IDENTITY)) is None
        assert store.get("stage", digest({"a": 2})) is not None
        assert list((store.root / "tmp").iterdir()) == []
        with pytest.raises(StoreError, match="is full"):
            atomic_write(disk / "out" / "record.json", "x" * 1_000_000)
        assert sorted(p.name for p in (disk / "out").iterdir()) == ["neurobench.json", "store"]


@contextlib.contextmanager
def nobody_special() -> Iterator[None]:
    """Be a user whom permissions concern: root may write everywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions of another kind")
def test_a_folder_that_cannot_be_written_is_said() -> None:
    # Not pytest's own folder, which nobody else may enter.
    folder = Path(tempfile.mkdtemp())
    try:
        store = Store(folder / "out")
        put(store, IDENTITY)
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        with nobody_special():
            reading = Store(folder / "out")
            assert reading.get("stage", digest(IDENTITY)) is not None
            with pytest.raises(StoreError, match=r"cannot be written.*choose another folder: --out"):
                put(reading, {"a": 2})
            with pytest.raises(StoreError, match="cannot be written"), reading.lock("stage", digest({"a": 2})):
                pass
            with pytest.raises(StoreError, match="cannot be written"):
                Store(folder / "new")
    finally:
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o755)
        shutil.rmtree(folder)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions of another kind")
def test_a_users_file_that_may_not_be_read_is_no_error_of_the_store() -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        write_folder(folder / "data")
        theirs = sorted((folder / "data").glob("*.npy"))[0]
        theirs.chmod(0)
        (folder / "out").mkdir()
        (folder / "out").chmod(0o777)
        with nobody_special():
            store = Store(folder / "out")
            source = CohortSource(FakeDataset(), "fake", {"name": "fake"}, FakeDataset().spec, folder / "data")
            cohort = source.load(store)
            with (
                pytest.raises(PermissionError),
                store.lock("stage", digest(IDENTITY)),
                store.write("stage", IDENTITY, "x"),
            ):
                theirs.read_bytes()
        (finding,) = [f for f in cohort.findings if f.code == "unreadable"]
        assert "PermissionError" in finding.message
        assert len(cohort.subjects) == 7
    finally:
        shutil.rmtree(folder)


# ---------------------------------------------------------------- what is not as it was written


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


def other_identity(path: Path) -> None:
    manifest = json.loads((path.parent / "manifest.json").read_text())
    (path.parent / "manifest.json").write_text(json.dumps(manifest | {"identity": {"a": 2}}))


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (flip, True),
        (cut, True),
        (lambda path: path.unlink(), True),
        (lambda path: path.write_bytes(b""), True),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), True),
        (lambda path: cut(path.parent / "manifest.json"), True),
        (lambda path: (path.parent / "manifest.json").write_bytes(b""), True),
        (other_identity, True),
        (lambda path: (path.parent / "manifest.json").unlink(), False),
        (lambda path: shutil.rmtree(path.parent), False),
    ],
    ids=["flipped", "cut", "gone", "empty", "longer", "half-told", "untold", "another", "no-manifest", "vanished"],
)
def test_what_is_not_as_written_is_named_never_used_and_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], object], named: bool
) -> None:
    put(Store(tmp_path / "out"), IDENTITY)
    store = Store(tmp_path / "out")
    path = store.root / "stage" / digest(IDENTITY) / "file.txt"
    damage(path)
    with caplog.at_level(logging.WARNING, logger="neurobench.store"):
        assert store.get("stage", digest(IDENTITY)) is None
    assert (f"store/stage/{path.parent.name} is not what was written" in caplog.text) == named
    put(store, IDENTITY)
    assert path.read_text() == "hello"
    assert store.get("stage", digest(IDENTITY)) is not None


def test_the_entry_of_another_identity_is_not_used_in_its_place(tmp_path: Path) -> None:
    store = Store(tmp_path / "out")
    put(store, {"a": 2})
    (store.root / "stage" / digest({"a": 2})).rename(store.root / "stage" / digest(IDENTITY))
    assert Store(tmp_path / "out").get("stage", digest(IDENTITY)) is None


def test_a_file_that_vanishes_while_a_run_reads_it_fails_its_row_and_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "data", n_subjects=24)
    read, vanished = pretraining_steps.load_file, []

    def load_file(path: Path, device: str) -> Any:
        if not vanished:
            # A server that lost it: the entry was looked at, and now its file is gone.
            vanished.append(path)
            shutil.rmtree(path.parent)
        return read(path, device=device)

    monkeypatch.setattr(pretraining_steps, "load_file", load_file)
    first = execute(tmp_path / "data", tmp_path / "out", task="age")
    (failed,) = first.failed
    error = first.table.set_index("status").loc["failed", "error"]
    assert "No such file or directory" in error
    assert vanished[0].name in error
    again = execute(tmp_path / "data", tmp_path / "out", task="age")
    assert again.failed == ()
    assert vanished[0].is_file()
    assert failed


def test_what_is_kept_lies_under_its_own_key_even_if_its_identity_was_changed_in_place(tmp_path: Path):
    store = Store(tmp_path / "out")
    identity = {"seed": 0}
    assert store.get("evaluation", digest(identity)) is None
    identity["seed"] = 1
    with store.write("evaluation", identity, "it") as folder:
        (folder / "file").write_text("x")
    assert store.get("evaluation", digest({"seed": 0})) is None
    assert store.get("evaluation", digest({"seed": 1})) is not None


def test_who_only_looks_passes_over_what_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, looking = Store(tmp_path / "out"), Store(tmp_path / "out", read_only=True)

    def refuse(path: str, **how: object) -> os.stat_result:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as forbidden:
        forbidden.setattr(os, "stat", refuse)
        assert looking.get("stage", digest(IDENTITY)) is None
        with pytest.raises(PermissionError):
            store.get("stage", digest(IDENTITY))


def test_two_processes_of_one_number_do_not_write_into_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In containers on two machines both may be number 7.
    move = os.replace

    def other_first(beside: Path, path: Path) -> None:
        monkeypatch.setattr(os, "replace", move)
        atomic_write(tmp_path / "x.json", "the other one's")
        move(beside, path)

    monkeypatch.setattr(os, "getpid", lambda: 7)
    monkeypatch.setattr(os, "replace", other_first)
    atomic_write(tmp_path / "x.json", "this one's")
    assert (tmp_path / "x.json").read_text() == "this one's"


def test_a_folder_that_another_process_is_just_making_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".neurobench.json.123-0a1b2c3d").write_text("{")
    assert Store(tmp_path / "out").stages() == []
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / ".profile").write_text("")
    with pytest.raises(StoreError, match="was not made by neurobench"):
        Store(tmp_path / "other")


def test_a_checkpoint_that_does_not_fit_leaves_its_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> int:
        with open(path, "wb") as file:
            file.write(data[:3])
        raise OSError(errno.ENOSPC, "No space left on device")

    checkpoint = Checkpoint(tmp_path / ("0" * 64))
    checkpoint.write({"n": 1}, b"first")
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StoreError, match="is full"):
        checkpoint.write({"n": 2}, b"second")
    assert len(list(checkpoint.folder.iterdir())) == 2
    found = checkpoint.read()
    assert found is not None
    assert found[0] == {"n": 1}


def test_another_disk_that_is_full_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"the disk that holds /somewhere/else is full"), disk_errors(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device", "/somewhere/else")


def test_who_waits_for_a_lock_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store_module, "PATIENCE_S", 0.05)
    held = threading.Event()

    def hold() -> None:
        with Store(tmp_path / "out").lock("stage", "0" * 64):
            held.set()
            time.sleep(0.3)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(30)
    with Store(tmp_path / "out").lock("stage", "0" * 64):
        pass
    thread.join()
    assert "another process is at work on store/stage/0000" in caplog.text
    assert str(tmp_path / "out/store/locks/stage-0000") in caplog.text


def test_a_disk_without_locks_ends_the_run_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(self: Any, timeout: float) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    store = Store(tmp_path / "out")
    monkeypatch.setattr(filelock.BaseFileLock, "acquire", none)
    with pytest.raises(StoreError, match=r"has no locks \(No locks available\).*flock"), store.lock("stage", "0" * 64):
        pass


def test_what_is_damaged_and_cannot_be_removed_at_once_is_moved_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "out")
    put(store, IDENTITY)
    entry = store.get("stage", digest(IDENTITY))
    assert entry is not None
    entry.file("file.txt").write_text("hel")
    remove = shutil.rmtree

    def held_open(path: Path, **options: Any) -> None:
        # As a network disk does with files that somebody reads.
        if Path(path) != entry.path:
            remove(path, **options)

    monkeypatch.setattr(shutil, "rmtree", held_open)
    put(Store(tmp_path / "out"), IDENTITY)
    again = Store(tmp_path / "out").get("stage", digest(IDENTITY))
    assert again is not None
    assert again.file("file.txt").read_text() == "hello"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("written", None),
        ("label", 3),
        ("identity", []),
        ("seconds", "1"),
        ("files", []),
        ("files", {"x.json": ["0", 1.0]}),
    ],
)
def test_a_manifest_that_lacks_what_is_taken_from_it_is_none(tmp_path: Path, name: str, value: object) -> None:
    store = Store(tmp_path / "out")
    with store.write("embedding", {"a": 1}, "x") as folder:
        (folder / "x.json").write_text("1")
    path = next((tmp_path / "out" / "store").glob("embedding/*/manifest.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    assert Store(tmp_path / "out").entries("embedding") == []
    assert stored_steps(tmp_path / "out").empty
    (problem,) = check(tmp_path / "out").problems
    assert problem.what == "its manifest lacks what every manifest has"

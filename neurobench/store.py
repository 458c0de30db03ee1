"""Content-addressed artefacts of every step: atomic, resumable, shared by several processes.

An entry is a folder ``store/<stage>/<key>`` whose key is the hash of everything that determines it. It is written
beside its place and moved there whole, with a manifest that holds its identity and the sha256 of its files, so that
an entry either exists and is complete, or does not exist. Failures are never stored. Nothing is pickled.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import logging
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import filelock

from neurobench.errors import StoreError
from neurobench.identity import digest, file_digest
from neurobench.parsing import parse_json
from neurobench.places import is_half_written, place_beside

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "MARKER",
    "Checkpoint",
    "Entry",
    "Store",
    "atomic_write",
    "disk_errors",
    "is_manifest",
    "keys_in",
    "moment",
    "must_be_output",
    "stored_steps",
]

MARKER = "neurobench.json"
"""The file by which an output folder is known."""

FORMAT = 1
"""Version of the layout of an output folder."""

OF_RESULTS = ("pretraining", "embedding", "baseline", "reconstruction", "evoked")
"""Stages that results are made from. Identities of cohorts stay behind: they hold the state of the user's files."""


NO_STAGES = ("tmp", "locks", "unfinished")
"""Folders beside those of the stages."""

VERIFIED = 64 << 20
"""Bytes of a file up to which its checksum is read before it is used; recordings are larger, and `store check` reads
them."""

PATIENCE_S = 30.0
"""Seconds that a process waits for another one's lock before it says so."""

log = logging.getLogger(__name__)


@contextlib.contextmanager
def disk_errors(path: Path, *, inside: bool = False) -> Iterator[None]:
    """Turn the operating system's errors on writing into ones that say what to do.

    Parameters
    ----------
    path
        What is written.
    inside
        What is written is a folder, and other files are read meanwhile: one that may not be read is no error of it.
    """
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        if _is_full(error):
            # Of a temporary file it is another disk that is full.
            full = error.filename if isinstance(error, OSError) and _is_elsewhere(error, path) else path
            raise StoreError(
                f"the disk that holds {full} is full.",
                next_step="Nothing finished is lost: free some space, or raise your quota or `ulimit -f`, and run the "
                "same command again to go on.",
            ) from error
        if _is_refused(error) and not (inside and _is_elsewhere(error, path)):
            raise StoreError(
                f"{path} cannot be written: {error.strerror}.",
                next_step="Make it writable, or choose another folder: --out of a run, --to of a report.",
            ) from error
        raise


def _is_refused(error: Exception) -> TypeGuard[OSError]:
    return isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS, errno.EPERM)


def _is_elsewhere(error: OSError, folder: Path) -> bool:
    """Return whether an error names files, and none that is in a folder."""
    named = [Path(os.fsdecode(f)) for f in (error.filename, error.filename2) if isinstance(f, str | bytes)]
    return bool(named) and not any(f.absolute().is_relative_to(folder.absolute()) for f in named)


_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _is_full(error: Exception) -> bool:
    """Return whether a disk was full: safetensors says so in its text alone, and numpy by what it could not write."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    text = str(error)
    told = any(f"(os error {number})" in text for number in _FULL)
    return told or (isinstance(error, OSError) and re.fullmatch(r"\d+ requested and \d+ written", text) is not None)


def atomic_write(path: Path, text: str) -> None:
    """Write a text file beside its place and move it there."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = place_beside(path)
        try:
            beside.write_text(text, encoding="utf-8")
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)


@dataclass(frozen=True)
class Entry:
    """One stored artefact.

    Parameters
    ----------
    path
        Its folder.
    manifest
        Stage, key, label, identity, sha256 of the files, seconds it took, when it was written.
    """

    path: Path
    manifest: Mapping[str, Any]

    def file(self, name: str) -> Path:
        """Return the path of one of the entry's files."""
        return self.path / name

    def json(self, name: str) -> Any:
        """Return the content of one of the entry's JSON files."""
        return parse_json(self.file(name).read_bytes())

    @property
    def seconds(self) -> float:
        """Wall-clock seconds that computing it took."""
        return float(self.manifest["seconds"])


class Checkpoint:
    """What an entry that is not finished goes on from, in ``store/unfinished/<stage>/<key>``: whole, or not there.

    A state is two files: one with arrays, whose name is the sha256 of its bytes, and ``checkpoint.json``, which names
    it and is put in its place last. What is damaged, or was written for another entry, is never gone on from.

    Parameters
    ----------
    folder
        Where it lies; it is named by the entry's key.
    label
        How people call the entry.
    """

    def __init__(self, folder: Path, label: str = "") -> None:
        self.folder, self.label = folder, label
        self._started, self._before = time.perf_counter(), 0.0
        self.was_read = False
        """Whether a state was there, so that a process that was stopped computed a part of the entry."""

    @property
    def seconds(self) -> float:
        """Seconds that the entry has taken: here, and before to reach the state that was read."""
        return self._before + time.perf_counter() - self._started

    def write(self, state: Mapping[str, Any], arrays: bytes) -> None:
        """Put a state in the place of the one before.

        Raises
        ------
        StoreError
            If the disk is full, or cannot be written.
        """
        name = f"{hashlib.sha256(arrays).hexdigest()}.safetensors"
        told = {
            "key": self.folder.name,
            "label": self.label,
            "arrays": name,
            "seconds": round(self.seconds, 3),
            "written": moment(),
            "state": dict(state),
        }
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            beside = place_beside(self.folder / name)
            try:
                beside.write_bytes(arrays)
                os.replace(beside, self.folder / name)
            finally:
                # A full disk has that much room again.
                beside.unlink(missing_ok=True)
            atomic_write(self._told, json.dumps(told | {"digest": digest(told)}))
            for other in self.folder.iterdir():
                if other.name not in (name, self._told.name):
                    other.unlink(missing_ok=True)

    def read(self) -> tuple[dict[str, Any], bytes] | None:
        """Return the state and its arrays, or None where there is nothing to go on from; damage is said in the log."""
        if not self.is_there:
            return None
        try:
            told, arrays = self._opened()
        except ValueError as wrong:
            log.warning("the checkpoint of %s cannot be used: %s; it is begun anew", self.label, wrong)
            return None
        self._before, self.was_read = told["seconds"], True
        return told["state"], arrays

    @property
    def is_there(self) -> bool:
        """Whether a state was ever written; a folder alone is where one is being written, or was to be."""
        return self._told.is_file()

    @property
    def damage(self) -> str:
        """What is wrong with it; empty: nothing."""
        try:
            self._opened()
        except ValueError as wrong:
            return str(wrong)
        return ""

    @property
    def about(self) -> dict[str, Any]:
        """What can be read of it without its arrays, unchecked: label, seconds, when it was written, state."""
        try:
            return dict(parse_json(self._told.read_bytes()))
        except (OSError, ValueError, TypeError):
            return {}

    @property
    def written(self) -> str:
        """When it was last written, or when that was begun and never came to an end."""
        found = self.about.get("written")
        if isinstance(found, str):
            return found
        try:
            return moment(self.folder.stat().st_mtime)
        except FileNotFoundError:
            # Whoever was at work on the entry has just finished it.
            return moment()

    @property
    def n_bytes(self) -> int:
        """Size of its files; who is at work on the entry puts others in their place meanwhile."""
        size = 0
        with contextlib.suppress(OSError):
            for path in self.folder.iterdir():
                size += path.stat().st_size
        return size

    @property
    def _told(self) -> Path:
        return self.folder / "checkpoint.json"

    def _opened(self) -> tuple[dict[str, Any], bytes]:
        """Return what is told of a state, and its arrays; ValueError: not as written, or of another entry."""
        try:
            told = parse_json(self._told.read_bytes())
            if digest({k: v for k, v in told.items() if k != "digest"}) != told["digest"]:
                raise ValueError(f"{self._told.name} is not what was written")
            if told["key"] != self.folder.name:
                raise ValueError(f"it is of another entry ({str(told['key'])[:12]})")
            if not isinstance(told["state"], dict) or not isinstance(told["seconds"], int | float):
                raise ValueError(f"{self._told.name} is no checkpoint")
            # Only a file of its own folder is opened.
            if not re.fullmatch(r"[0-9a-f]{64}\.safetensors", told["arrays"]):
                raise ValueError("its arrays have a name that none have")
            arrays = (self.folder / told["arrays"]).read_bytes()
        except (OSError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"it cannot be read ({type(error).__name__})") from error
        if told["arrays"] != f"{hashlib.sha256(arrays).hexdigest()}.safetensors":
            raise ValueError("its arrays are not what was written")
        return told, arrays

    def remove(self) -> None:
        """Remove it: the entry is finished, or begun anew."""
        self._before, self.was_read = 0.0, False
        shutil.rmtree(self.folder, ignore_errors=True)


class Store:
    """The artefacts under one output folder.

    Parameters
    ----------
    out
        The output folder; made if it is not there.
    read_only
        Look, change nothing: for `status` and `--dry-run`.

    Raises
    ------
    StoreError
        If the folder belongs to another version or to something else, or cannot be written.
    """

    def __init__(self, out: Path, *, read_only: bool = False) -> None:
        self.out = out
        self.root = out / "store"
        self.read_only = read_only
        self._looked_at: dict[Path, bool] = {}
        self._label_index: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
        self._found: dict[str, dict[str, Any] | None] = {}
        self._said: set[tuple[str, str]] = set()
        marker = out / MARKER
        if marker.is_file():
            self._check_version(marker)
        elif out.exists() and not out.is_dir():
            raise StoreError(f"{out} is a file, not a folder.", next_step="Choose another folder with --out.")
        elif out.is_dir() and self._is_of_others(out) and not marker.is_file():
            raise StoreError(
                f"{out} is not empty and was not made by neurobench.",
                allowed="an empty or new folder, or one of an earlier run",
                next_step="Choose another folder with --out.",
            )
        elif not read_only:
            atomic_write(marker, _marker())
        if not read_only:
            with disk_errors(self.root):
                (self.root / "tmp").mkdir(parents=True, exist_ok=True)
                self._locks.mkdir(parents=True, exist_ok=True)
            self._sweep()

    @staticmethod
    def _is_of_others(out: Path) -> bool:
        """Return whether a folder without a marker holds more than markers that others are about to put there."""
        return any(not (f.name.startswith(f".{MARKER}.") and is_half_written(f)) for f in out.iterdir())

    @staticmethod
    def _check_version(marker: Path) -> None:
        try:
            found = parse_json(marker.read_bytes()).get("format")
        except (ValueError, AttributeError):
            found = None
        if found is None:
            raise StoreError(
                f"{marker} cannot be read, so nobody knows which version made the folder.",
                next_step=f"If a neurobench of this version did, put {_marker().strip()} into it and run the same "
                "command again.",
            )
        if found != FORMAT:
            raise StoreError(
                f"{marker.parent} is an output folder of another version (format {found}; this is format {FORMAT}).",
                next_step="Use the neurobench that made it, or another folder.",
            )

    def _sweep(self) -> None:
        """Remove what processes that are gone left half-written: nobody holds its lock, on this machine or another."""
        for folder in (self.root / "tmp").iterdir():
            name = folder.name.partition("-")[2] or folder.name
            lock = self._lock(name)
            with contextlib.suppress(filelock.Timeout), disk_errors(self.out), lock.acquire(timeout=0):
                shutil.rmtree(folder, ignore_errors=True)
        for folder in self._checkpoints():
            # A process was killed after it had put the entry in its place.
            if self._whole(folder.parent.name, folder.name) is not None:
                self.abandon(Checkpoint(folder))

    # ------------------------------------------------------------ reading

    def get(self, stage: str, key: str) -> Entry | None:
        """Return the entry of a key, or None.

        A damaged one (a file missing, of another length, or up to :data:`VERIFIED` bytes with another content; or one
        that is the entry of another identity) counts as missing, and is said in the log: it is computed again.
        """
        try:
            # No Path: a grid is looked up step by step before anything begins.
            is_there = stat.S_ISREG(os.stat(os.path.join(self.root, stage, key, "manifest.json")).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            is_there = False
        except OSError:
            # Who only looks says of what may not be read that it is not there.
            if not self.read_only:
                raise
            is_there = False
        if not is_there:
            return None
        entry = self._whole(stage, key)
        if entry is None and not self.read_only:
            self._say_damaged(stage, key)
        return entry

    def _say_damaged(self, stage: str, key: str) -> None:
        """Say of an entry, once, that it is damaged."""
        if (stage, key) not in self._said:
            self._said.add((stage, key))
            log.warning("store/%s/%s is not what was written, and is made again", stage, key)

    def _whole(self, stage: str, key: str) -> Entry | None:
        entry = self._open(self.root / stage / key)
        return entry if entry is not None and self._as_written(entry) else None

    def _as_written(self, entry: Entry) -> bool:
        """Return whether the small files of an entry are what was written; read once a process."""
        if self.read_only:
            return True
        if not self._looked_at.get(entry.path, False):
            files = entry.manifest["files"].items()
            small = ((entry.file(f), sha) for f, (sha, size) in files if size <= VERIFIED)
            try:
                in_its_place = digest(entry.manifest["identity"]) == entry.path.name
                self._looked_at[entry.path] = in_its_place and all(file_digest(path) == sha for path, sha in small)
            except (OSError, ValueError):
                return False
        return self._looked_at[entry.path]

    def _open(self, folder: Path) -> Entry | None:
        try:
            manifest = parse_json((folder / "manifest.json").read_bytes())
            if not is_manifest(manifest):
                return None
            whole = all((folder / f).stat().st_size == size for f, (_, size) in manifest["files"].items())
        except (OSError, ValueError):
            return None
        return Entry(folder, manifest) if whole else None

    def verify(self, entry: Entry) -> bool:
        """Return whether the bytes of an entry are those that were written."""
        return all(file_digest(entry.file(f)) == sha for f, (sha, _) in entry.manifest["files"].items())

    def entries(self, stage: str) -> list[Entry]:
        """Return every whole entry of a stage, oldest first."""
        folder = self.root / stage
        found = [e for f in folder.iterdir() if (e := self._open(f)) is not None] if folder.is_dir() else []
        return sorted(found, key=lambda e: (e.manifest["written"], e.path.name))

    def stages(self) -> list[str]:
        """Return the stages that have entries."""
        if not self.root.is_dir():
            return []
        return sorted(f.name for f in self.root.iterdir() if f.is_dir() and f.name not in NO_STAGES)

    def unfinished(self) -> list[Checkpoint]:
        """Return the places of all entries that were begun, kept a checkpoint and are not finished."""
        return [Checkpoint(f) for f in self._checkpoints() if self._whole(f.parent.name, f.name) is None]

    def _checkpoints(self) -> list[Path]:
        return sorted((self.root / "unfinished").glob("*/*"))

    def lineage(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        """Return stage and identity of every step that an identity is made from, however far back, by key.

        An identity names its sources by their keys; with what stands behind every key, all of it can be hashed again.
        """
        found: dict[str, Any] = {}
        todo = list(keys_in(identity))
        while todo:
            key = todo.pop()
            if key not in found and (step := self._step(key)) is not None:
                found[key] = step
                todo += keys_in(step["identity"])
        return dict(sorted(found.items()))

    def _step(self, key: str) -> dict[str, Any] | None:
        if key not in self._found:
            entries = ((stage, self._open(self.root / stage / key)) for stage in OF_RESULTS)
            self._found[key] = next(
                ({"stage": stage, "identity": e.manifest["identity"]} for stage, e in entries if e is not None), None
            )
        return self._found[key]

    def why_stale(self, stage: str, label: str, identity: Mapping[str, Any]) -> str:
        """Return what differs from a stored entry of the same label, or an empty string where there is none."""
        if stage not in self._label_index:
            index: dict[str, list[Mapping[str, Any]]] = {}
            for entry in self.entries(stage):
                index.setdefault(entry.manifest["label"], []).append(entry.manifest["identity"])
            self._label_index[stage] = index
        others = self._label_index[stage].get(label, [])
        return ", ".join(_differences(others[-1], json.loads(json.dumps(identity)))[:4]) if others else ""

    # ------------------------------------------------------------ writing

    def must_be_there(self) -> None:
        """Refuse to go on in a folder that is gone: what would be made anew in its place is no output folder.

        Raises
        ------
        StoreError
            If it is gone.
        """
        try:
            is_there = (self.out / MARKER).exists()
        except OSError:
            is_there = False
        if not is_there:
            raise StoreError(
                f"{self.out} was removed, or its disk taken away, while it was written into.",
                next_step="Nothing can be kept there. Once the disk is back, or nothing is left of the folder, run the "
                "same command again.",
            )

    def checkpoint(self, stage: str, key: str, label: str) -> Checkpoint:
        """Return the place of what an entry goes on from; whoever uses it holds the entry's lock."""
        return Checkpoint(self.root / "unfinished" / stage / key, label)

    @contextlib.contextmanager
    def write(
        self,
        stage: str,
        identity: Mapping[str, Any],
        label: str,
        work: Mapping[str, Any] | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> Iterator[Path]:
        """Give a folder to write an entry into; on leaving without an error it becomes the entry, whole or not at all.

        Parameters
        ----------
        stage, identity
            What it is.
        label
            How people call it.
        work
            How much it was, for later estimates of like steps; like the seconds, no part of what it is.
        checkpoint
            What it may go on from: its seconds count, and it is removed when the entry is there.

        Whoever writes holds the entry's :meth:`lock`: what nobody holds is swept as half-written.
        """
        # Hashed anew: whatever was done to it meanwhile, what is kept lies under the key of what it says it is.
        key = digest(identity)
        target = self.root / stage / key
        beside = self.beside(stage, key)
        started = time.perf_counter()
        with disk_errors(self.out, inside=True):
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
            try:
                yield beside
                files = [f for f in sorted(beside.rglob("*")) if f.is_file()]
                manifest = {
                    "stage": stage,
                    "key": key,
                    "label": label,
                    "identity": identity,
                    "files": {str(f.relative_to(beside)): [file_digest(f), f.stat().st_size] for f in files},
                    "seconds": round(checkpoint.seconds if checkpoint else time.perf_counter() - started, 3),
                    "work": None if work is None else dict(work),
                    "written": moment(),
                }
                told = beside / "manifest.json"
                told.write_text(json.dumps(manifest, indent=1, sort_keys=True), encoding="utf-8")
                for file in files:
                    # safetensors keeps what it writes to the user alone: a colleague could not read a shared folder.
                    with contextlib.suppress(OSError):
                        shutil.copymode(told, file)
                target.parent.mkdir(parents=True, exist_ok=True)
                present = self._open(target)
                if present is None or not self._as_written(present):
                    if target.exists():
                        self._say_damaged(stage, key)
                    self._put(beside, target)
                    self._looked_at[target] = True
                if checkpoint is not None:
                    checkpoint.remove()
            finally:
                shutil.rmtree(beside, ignore_errors=True)

    @staticmethod
    def _put(beside: Path, target: Path) -> None:
        """Put a whole entry in its place, where nothing is or what is damaged."""
        shutil.rmtree(target, ignore_errors=True)
        if target.exists():
            # Of a file that somebody has open a network disk keeps a name until it is closed.
            aside = beside.with_name(f"{beside.name}~")
            os.replace(target, aside)
            shutil.rmtree(aside, ignore_errors=True)
        os.replace(beside, target)

    def beside(self, stage: str, key: str) -> Path:
        """Return where this process writes an entry before it is moved into its place, while it holds its lock."""
        return self.root / "tmp" / f"{os.getpid()}-{_lock_name(stage, key)}"

    @contextlib.contextmanager
    def lock(self, stage: str, key: str) -> Iterator[None]:
        """Hold an entry's lock, so that two processes on one grid do not compute the same thing.

        The lock is the operating system's, so a process that dies lets it go.

        Raises
        ------
        StoreError
            If the disk has no locks, or the folder is gone.
        """
        self.must_be_there()
        lock = self._lock(_lock_name(stage, key))
        with disk_errors(self.out, inside=True):
            try:
                lock.acquire(timeout=PATIENCE_S)
            except filelock.Timeout:
                log.warning(
                    "another process is at work on store/%s/%s, and this one waits for it. If there is none any more, "
                    "on no machine, remove %s",
                    stage,
                    key,
                    lock.lock_file,
                )
                lock.acquire()
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                raise StoreError(
                    f"the disk that holds {self.out} has no locks ({error.strerror}): processes could not share it.",
                    next_step="Have file locks (flock) switched on for it, or choose a folder on another disk with "
                    "--out.",
                ) from error
            try:
                yield
            finally:
                lock.release()

    def remove_damaged(self, stage: str, name: str, is_damaged: Callable[[Path], bool]) -> bool:
        """Remove an entry unless somebody makes it anew, or has; return whether it was removed."""
        folder = self.root / stage / name
        try:
            with disk_errors(folder), self._lock(_lock_name(stage, name)).acquire(timeout=0):
                if not is_damaged(folder):
                    return False
                shutil.rmtree(folder) if folder.is_dir() and not folder.is_symlink() else folder.unlink()
                return True
        except filelock.Timeout:
            return False

    def _lock(self, name: str) -> filelock.BaseFileLock:
        # Whoever may write into the folder may take its locks; without a mode each new one is preceded by a trial file.
        return filelock.FileLock(self._locks / name, mode=self._mode)

    @property
    def _locks(self) -> Path:
        return self.root / "locks"

    @functools.cached_property
    def _mode(self) -> int:
        return self._locks.stat().st_mode & 0o666 | 0o600

    def abandon(self, checkpoint: Checkpoint) -> bool:
        """Remove a checkpoint, unless a process is at work on its entry; return whether it was removed."""
        lock = self._lock(_lock_name(checkpoint.folder.parent.name, checkpoint.folder.name))
        try:
            with disk_errors(self.out), lock.acquire(timeout=0):
                checkpoint.remove()
                return True
        except filelock.Timeout:
            return False


_KINDS: Mapping[str, Any] = {"label": str, "identity": dict, "files": dict, "seconds": (int, float), "written": str}
"""What is taken from a manifest."""


def is_manifest(told: Any) -> bool:
    """Return whether everything that is taken from a manifest is in it, and is what it is taken for."""
    if not isinstance(told, dict) or not all(isinstance(told.get(name), kind) for name, kind in _KINDS.items()):
        return False
    sums = told["files"].values()
    return all(isinstance(s, list) and list(map(type, s)) == [str, int] for s in sums)


def _marker() -> str:
    return json.dumps({"format": FORMAT, "made_by": "neurobench"}) + "\n"


def moment(seconds: float | None = None) -> str:
    """Return a moment, this one unless another is given in seconds since 1970, as manifests have it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _lock_name(stage: str, key: str) -> str:
    return f"{stage}-{key[:32]}"


def must_be_output(out: Path) -> None:
    """Refuse a folder that no run has written into.

    Raises
    ------
    StoreError
        If it is one.
    """
    if not (out / MARKER).is_file():
        why = "" if out.exists() else ": there is nothing of that name"
        raise StoreError(
            f"{out} is not an output folder of neurobench{why}.",
            allowed="the --out folder of a run",
            next_step="Name the folder that holds neurobench.json.",
        )


def stored_steps(out: Path) -> pd.DataFrame:
    """Return one row a stored step: stage, label, state, when, seconds."""
    must_be_output(out)
    # Here, because whoever only asks what is stored waits for nothing else.
    import pandas as pd

    store = Store(out, read_only=True)
    rows = [
        {
            "stage": stage,
            "label": entry.manifest["label"],
            "state": "stored",
            "when": entry.manifest["written"],
            "seconds": entry.seconds,
        }
        for stage in store.stages()
        for entry in store.entries(stage)
    ]
    return pd.DataFrame(rows, columns=["stage", "label", "state", "when", "seconds"])


_KEY = re.compile(r"[0-9a-f]{64}")


def keys_in(value: Any) -> Iterator[str]:
    """Yield every text in an identity that could be the key of another one."""
    if isinstance(value, str):
        if _KEY.fullmatch(value):
            yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from keys_in(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from keys_in(inner)


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Return the paths at which two identities differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        found: list[str] = []
        for k in sorted(set(old) | set(new)):
            found += _differences(old.get(k), new.get(k), f"{path}.{k}" if path else k)
        return found
    return [] if old == new else [path]

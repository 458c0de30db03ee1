"""Looking after an output folder: is every byte what was written, what can go, and folders of several machines in one.

Nothing here computes anything or trusts a file for its name: an entry is read against the checksums of its manifest,
its manifest against its key, and a record against its content hash.
"""

from __future__ import annotations

import contextlib
import lzma
import os
import shutil
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from neurobench import evidence, runs
from neurobench.errors import StoreError
from neurobench.identity import digest
from neurobench.parsing import parse_json
from neurobench.places import is_half_written, place_beside
from neurobench.results import OF_THE_RUN, Record, read_record
from neurobench.store import (
    NO_STAGES,
    Entry,
    Store,
    disk_errors,
    is_manifest,
    keys_in,
    moment,
    must_be_output,
)

__all__ = ["Check", "Garbage", "Merge", "Problem", "check", "check_sources", "collect_garbage", "export", "merge"]

RECORDINGS = ("twin", "prepared", "cohort")
"""Stages that hold recordings and participants: they are made anew from the user's files, and stay where those are."""

BESIDE = {"predictions": ".parquet", "identities": ".json"}
"""Folders with one file a record, and how its name ends."""

MEASURED = ("seconds", "waiting_s", "peak_memory_mb", "hardware")
"""What an artefact says of how it was computed: no two machines agree on it."""


# ---------------------------------------------------------------- check


@dataclass(frozen=True)
class Problem:
    """Something in an output folder that is not as it was written.

    Parameters
    ----------
    path
        Relative to the folder.
    what
        What is wrong with it.
    entry
        Whether it is a stored entry, which can be computed again.
    """

    path: str
    what: str
    entry: bool


@dataclass(frozen=True)
class Check:
    """What reading an output folder to its last byte found.

    Parameters
    ----------
    n_entries, n_records, n_bytes
        Looked at; bytes of entries.
    problems
        Everything that is wrong.
    unfinished
        Labels of what was stopped and goes on from a checkpoint when it is asked for again, and when it was stopped.
    """

    n_entries: int
    n_records: int
    n_bytes: int
    problems: tuple[Problem, ...]
    unfinished: tuple[str, ...] = ()


def check(out: Path, *, remove: bool = False, advance: Callable[[int, int], None] = lambda done, total: None) -> Check:
    """Read every entry and record of an output folder.

    Parameters
    ----------
    out
        The folder.
    remove
        Remove damaged entries, so that the next run computes them again. Records are never removed.
    advance
        Called after every entry with how many are done and how many there are.

    Raises
    ------
    StoreError
        If it is no output folder.
    """
    store = _opened(out, read_only=not remove)
    folders = [f for stage in store.stages() for f in sorted((store.root / stage).iterdir())]
    problems, n_bytes = [], 0
    for done, folder in enumerate(folders, 1):
        wrong, size = _damage(store, folder)
        n_bytes += size
        # Twice: a run may have put another one in its place meanwhile, or somebody have removed it.
        if wrong and os.path.lexists(folder) and (wrong := _damage(store, folder)[0]):
            problems.append(Problem(str(folder.relative_to(out)), wrong, entry=True))
            if remove:
                store.remove_damaged(folder.parent.name, folder.name, lambda f: bool(_damage(store, f)[0]))
        advance(done, len(folders))
    unfinished = []
    for checkpoint in store.unfinished():
        if not checkpoint.is_there:
            continue
        # Twice: who is at work on the entry may have put the next one in its place meanwhile, or have finished it.
        if not (wrong := checkpoint.damage and checkpoint.damage):
            about = checkpoint.about
            unfinished.append(f"{about.get('label', '')}, stopped {about.get('written', '')}")
        elif checkpoint.is_there:
            problems.append(Problem(str(checkpoint.folder.relative_to(out)), f"checkpoint: {wrong}", entry=True))
            if remove:
                store.abandon(checkpoint)
    records = sorted((out / "records").glob("*.json"))
    # Records share the pages of cohorts and folds.
    beside: dict[str, Record] = {}
    for path in records:
        try:
            record = read_record(path)
        except StoreError as error:
            what = error.what.removeprefix(f"{path} ")
            problems.append(Problem(str(path.relative_to(out)), what, entry=False))
            continue
        if record.id != path.stem:
            problems.append(Problem(str(path.relative_to(out)), f"is record {record.id[:12]}", entry=False))
            continue
        beside.update((name, record) for name in _beside(out, record))
    for name, record in sorted(beside.items(), key=lambda item: item[0]):
        if wrong := _wrong_beside(out, name, record):
            problems.append(Problem(name, wrong, entry=False))
    return Check(len(folders), len(records), n_bytes, tuple(problems), tuple(unfinished))


def _opened(out: Path, *, read_only: bool = True) -> Store:
    must_be_output(out)
    return Store(out, read_only=read_only)


def _damage(store: Store, folder: Path) -> tuple[str, int]:
    """Return what is wrong with an entry (empty: nothing), and how many bytes its files have."""
    if folder.is_symlink() or not folder.is_dir():
        return "is not an entry", 0
    try:
        manifest = parse_json((folder / "manifest.json").read_bytes())
        if not is_manifest(manifest):
            return "its manifest lacks what every manifest has", 0
        entry = Entry(folder, manifest)
        size = sum(s for _, s in manifest["files"].values())
        if manifest["stage"] != folder.parent.name or manifest["key"] != folder.name:
            return f"says that it is {manifest['stage']}/{str(manifest['key'])[:12]}", size
        if digest(manifest["identity"]) != folder.name:
            return "its identity is not the one that its name is the hash of", size
        for name, (_, length) in manifest["files"].items():
            if not (folder / name).resolve().is_relative_to(folder.resolve()):
                return f"{name[:100]!r} is no file inside it", size
            if not (folder / name).is_file():
                return f"{name} is missing", size
            if (folder / name).stat().st_size != length:
                return f"{name} has {(folder / name).stat().st_size} bytes, not {length}", size
        return ("" if store.verify(entry) else "a file's content is not what was written"), size
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        return f"its manifest cannot be read: {type(error).__name__}", 0


def _beside(folder: Path, record: Record) -> list[str]:
    """Return the files that belong beside a record, relative to the folder: those of every one, and more if there."""
    more = sorted((folder / "evidence" / record.id).glob("*"))
    found = [str(p.relative_to(folder)) for p in more if p.suffix in (".parquet", ".npz") and not is_half_written(p)]
    if record.status == "failed" or record.data is None:
        return found
    cohort = f"cohorts/{record.data.fingerprint}"
    found += [f"{part}/{record.id}{suffix}" for part, suffix in BESIDE.items()]
    return [
        *found,
        f"folds/{record.protocol.fold_fingerprint}.json",
        f"{cohort}/cohort.json",
        f"{cohort}/units.parquet",
    ]


def _wrong_beside(folder: Path, name: str, record: Record) -> str:
    """Return what is wrong with a file beside a record; empty: nothing that can be seen without computing anew."""
    path = folder / name
    if wrong := evidence.damage(path):
        return wrong
    try:
        if name.startswith("identities/"):
            fits = digest({"evaluation": parse_json(path.read_bytes())["evaluation"]}) == record.id
        elif name.startswith("folds/"):
            fits = digest(parse_json(path.read_bytes())) == record.protocol.fold_fingerprint
        else:
            return ""
    except (OSError, ValueError, KeyError, TypeError):
        return "cannot be read"
    return "" if fits else "its name is not the hash of what it holds"


# ---------------------------------------------------------------- garbage


@dataclass(frozen=True)
class Garbage:
    """Entries that nothing needs any more.

    Parameters
    ----------
    stage, label, path
        What it is, and where; ``unfinished`` are checkpoints that nothing went on from, ``half-written`` files of
        processes that were killed.
    n_bytes
        Its size.
    """

    stage: str
    label: str
    path: Path
    n_bytes: int


def collect_garbage(out: Path, *, keep_days: float = 7.0, remove: bool = True) -> list[Garbage]:
    """Remove entries that are superseded and that no record rests on, and what nobody finished.

    Superseded: a newer entry of the same stage and label exists, made with other code, data or options. Whatever a
    record of the folder was computed from stays, of every profile and version, and so do what runs under way plan to
    use, and what is younger than ``keep_days``: it may belong to a run that has not ended.

    Parameters
    ----------
    out
        The folder.
    keep_days
        Age below which nothing is removed.
    remove
        False: only say what would go.

    Raises
    ------
    StoreError
        If it is no output folder, or an entry cannot be removed.
    """
    store = _opened(out, read_only=not remove)
    needed = _needed(out)
    before = moment(time.time() - keep_days * 86400)
    everything = {stage: store.entries(stage) for stage in store.stages()}
    superseded: set[Path] = set()
    for entries in everything.values():
        newest = {str(e.manifest["label"]): e for e in entries}
        superseded |= {e.path for e in entries if newest[str(e.manifest["label"])] is not e}
    # A cohort that stays needs its recordings, though their labels may have newer entries.
    for entry in everything.get("cohort", []):
        if entry.path not in superseded:
            with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
                needed |= {Path(r["path"]).parts[1] for r in entry.json("cohort.json")["recordings"]}
    planned = runs.planned_keys(out)
    found = []
    for stage, entries in everything.items():
        for entry in entries:
            gone = entry.path in superseded and entry.path.name not in needed and entry.manifest["written"] < before
            if gone and entry.path.name[: runs.KEY] not in planned:
                size = sum(int(s) for _, s in entry.manifest["files"].values())
                found.append(Garbage(stage, str(entry.manifest["label"]), entry.path, size))
    for garbage in found if remove else ():
        with disk_errors(garbage.path):
            shutil.rmtree(garbage.path)
    return found + _abandoned(store, before, remove) + _half_written(out, before, remove)


def _half_written(out: Path, before: str, remove: bool) -> list[Garbage]:
    """Return files beside records that a process which was killed left half-written before some time; remove them."""
    found = []
    # In the store whoever opens it next sweeps them, by their locks.
    folders = (f for f in sorted(out.iterdir()) if f.is_dir() and f != out / "store")
    for path in (*out.glob(".*"), *(p for f in folders for p in sorted(f.rglob(".*")))):
        with contextlib.suppress(FileNotFoundError):
            told = path.lstat()
            if is_half_written(path) and moment(told.st_mtime) < before and not path.is_dir():
                found.append(Garbage("half-written", path.name, path, told.st_size))
    for garbage in found if remove else ():
        with disk_errors(garbage.path):
            garbage.path.unlink(missing_ok=True)
    return found


def _abandoned(store: Store, before: str, remove: bool) -> list[Garbage]:
    """Return checkpoints that were last written before some time, and remove them."""
    found = []
    for checkpoint in store.unfinished():
        if checkpoint.written < before:
            label, size = str(checkpoint.about.get("label", "")), checkpoint.n_bytes
            if not remove or store.abandon(checkpoint):
                found.append(Garbage("unfinished", label, checkpoint.folder, size))
    return found


def _needed(out: Path) -> set[str]:
    """Return the keys of everything that a record of the folder was computed from."""
    keys: set[str] = set()
    for path in sorted((out / "identities").glob("*.json")):
        try:
            known = parse_json(path.read_bytes())
            keys |= {digest(known["evaluation"]), *known["steps"], *keys_in(known["evaluation"])}
            keys |= {k for step in known["steps"].values() for k in keys_in(step["identity"])}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise StoreError(
                f"{path} cannot be read, so what its record rests on is not known, and nothing was removed.",
                next_step="Run the same `neurobench run` again: it writes the file anew.",
            ) from None
    return keys


# ---------------------------------------------------------------- export and merge


def export(out: Path, to: Path, *, recordings: bool = False) -> int:
    """Write an output folder into one tar file, to be merged elsewhere; return the number of files in it.

    Parameters
    ----------
    out
        The folder.
    to
        A file that does not exist; compressed where it ends in ``gz``.
    recordings
        Take prepared recordings along, which :data:`RECORDINGS` else leaves behind.

    Raises
    ------
    StoreError
        If it is no output folder, or the file exists or cannot be written.
    """
    store = _opened(out)
    if to.exists():
        raise StoreError(f"{to} exists already.", next_step="Choose another name, or remove it.")
    left = {store.root / name for name in (*NO_STAGES, *(() if recordings else RECORDINGS))}
    # What runs said of themselves is of the machines that they ran on, and no result rests on it.
    left |= {out / "logs", out / "runs", out / "tensorboard"}
    found = (p for p in sorted(out.rglob("*")) if not left & set(p.parents) and not is_half_written(p))
    files = [p for p in found if p.is_file() and not p.is_symlink()]
    with disk_errors(to), tempfile.NamedTemporaryFile(dir=to.parent, prefix=f".{to.name}.", delete=False) as beside:
        try:
            with tarfile.open(fileobj=beside, mode="w:gz" if to.name.endswith("gz") else "w") as tar:
                for path in files:
                    try:
                        tar.add(path, arcname=str(path.relative_to(out)), recursive=False)
                    except FileNotFoundError:
                        raise StoreError(
                            f"{path} was there and is gone: something changes {out}.",
                            next_step=f"Export once no run is under way; see `neurobench status {out}`.",
                        ) from None
            beside.close()
            os.replace(beside.name, to)
        finally:
            Path(beside.name).unlink(missing_ok=True)
    return len(files)


@dataclass(frozen=True)
class Merge:
    """What became of merging one folder.

    Parameters
    ----------
    source
        The folder or tar file.
    n_entries, n_records
        Taken over.
    n_known
        Entries and records that were there already, the same.
    conflicts
        What both have, and not the same; the target's own was kept.
    damaged
        What was not taken over because it is not what was written, and what taken records lack beside them.
    """

    source: Path
    n_entries: int
    n_records: int
    n_known: int
    conflicts: tuple[str, ...]
    damaged: tuple[str, ...]


def check_sources(sources: Sequence[Path]) -> None:
    """Refuse what cannot be merged before anything is taken of anyone, or made.

    Raises
    ------
    StoreError
        If one is neither an output folder nor a file.
    """
    for source in sources:
        if source.is_dir():
            # Of a version that is read here, too.
            _opened(source)
        elif not source.is_file():
            raise StoreError(f"{source} does not exist.", allowed="an output folder, or what export wrote")


def merge(out: Path, sources: Sequence[Path]) -> list[Merge]:
    """Take entries and records of other output folders, or of what :func:`export` wrote, into one.

    Everything is checked before it is taken, and nothing of the target is ever replaced: where both have an entry of
    one identity with other bytes, or a record of one id that says something else, that is a conflict.

    Parameters
    ----------
    out
        The target; made if it is not there.
    sources
        Folders, or tar files.

    Raises
    ------
    StoreError
        If a source is no output folder, or a tar file cannot be read.
    """
    check_sources(sources)
    target = Store(out)
    found = []
    for source in sources:
        if source.is_dir():
            found.append(_merged(target, source, source))
            continue
        key = digest({"source": str(source.absolute())})
        with target.lock("merge", key):
            folder = target.beside("merge", key)
            try:
                folder.mkdir()
                _unpack(source, folder)
                found.append(_merged(target, folder, source))
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    return found


def _unpack(source: Path, folder: Path) -> None:
    """Unpack a tar file's regular files; what would leave the folder, a link or a device is refused."""
    try:
        with tarfile.open(source) as tar, disk_errors(folder):
            for member in tar:
                parts = PurePosixPath(member.name).parts
                if not member.isreg() or ".." in parts or PurePosixPath(member.name).is_absolute():
                    raise StoreError(
                        f"{source} holds {member.name[:100]!r}, which is no file inside it.",
                        allowed="what `neurobench store export` writes",
                    )
                if member.size > (free := shutil.disk_usage(folder).free):
                    raise StoreError(
                        f"{source} unpacks to more than there is room for: {member.name[:100]!r} has "
                        f"{member.size / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free.",
                        next_step="Make room, or merge into a folder on a larger disk.",
                    )
                tar.extract(member, folder, filter="data")
    except (OSError, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        # Of a file of any other kind tarfile tells a line for each compression that it is not.
        said = (str(error) or type(error).__name__).splitlines()[0].rstrip(":")
        raise StoreError(
            f"{source} is no tar file that can be read: {said}.",
            allowed="an output folder, or what export wrote",
        ) from error


def _merged(target: Store, folder: Path, source: Path) -> Merge:
    try:
        other = _opened(folder)
    except StoreError as error:
        # What a tar file holds lies elsewhere for the moment.
        said = error.what.replace(str(folder), str(source))
        raise StoreError(said, allowed=error.allowed, next_step=error.next_step) from None
    taken = {"entry": 0, "record": 0, "known": 0}
    conflicts, damaged = [], []
    lacks: list[tuple[str, str]] = []
    # Recordings of cohorts that are there already may be there under other names; cohorts are looked at before them.
    spare: set[str] = set()
    needed: set[str] = set()
    for stage in other.stages():
        for entry_folder in sorted((other.root / stage).iterdir()):
            name = f"{stage}/{entry_folder.name[:12]}"
            wrong, _ = _damage(other, entry_folder)
            if wrong:
                damaged.append(f"{name}: {wrong}")
                continue
            if stage == "prepared" and entry_folder.name in spare - needed:
                taken["known"] += 1
                continue
            what = _take_entry(target, entry_folder)
            if stage == "cohort" and what == "known":
                spare |= _recordings_of(entry_folder) - _recordings_of(target.root / stage / entry_folder.name)
            elif stage == "cohort" and what == "entry":
                needed |= _recordings_of(entry_folder)
            if what == "conflict":
                conflicts.append(f"{name} ({_label(entry_folder)}): the same identity, other bytes")
            else:
                taken[what] += 1
    for path in sorted((folder / "records").glob("*.json")):
        try:
            record = read_record(path)
            if record.id != path.stem:
                raise StoreError(f"it is record {record.id[:12]}")
        except StoreError as error:
            damaged.append(f"records/{path.stem[:12]}: {error.what.removeprefix(f'{path} ')}")
            continue
        mine = target.out / "records" / path.name
        if not mine.is_file():
            lacks += _take_beside(target, folder, record)
            _copy(path, mine)
            taken["record"] += 1
        elif other_says := _differs(record, mine):
            conflicts.append(f"record {record.id[:12]} ({record.row} on {record.task.label}): {other_says}")
        else:
            lacks += _take_beside(target, folder, record)
            taken["known"] += 1
    damaged += _summed(lacks)
    return Merge(source, taken["entry"], taken["record"], taken["known"], tuple(conflicts), tuple(damaged))


def _recordings_of(folder: Path) -> set[str]:
    """Return the names of the prepared recordings of a cohort's entry."""
    told = Entry(folder, {}).json("cohort.json")
    recordings = told.get("recordings") if isinstance(told, dict) else None
    # A tar file comes from outside: it may say anything.
    known = [r for r in recordings if isinstance(r, dict)] if isinstance(recordings, list) else []
    return {PurePosixPath(str(r.get("path"))).parent.name for r in known}


def _label(folder: Path) -> str:
    return str(Entry(folder, {}).json("manifest.json")["label"])


def _take_entry(target: Store, folder: Path) -> Literal["entry", "known", "conflict"]:
    manifest = Entry(folder, {}).json("manifest.json")
    key = digest(manifest["identity"])
    with target.lock(folder.parent.name, key):
        mine = target.get(folder.parent.name, key)
        if mine is not None:
            return "known" if _the_same(mine, Entry(folder, manifest)) else "conflict"
        beside = target.beside(folder.parent.name, folder.name)
        place = target.root / folder.parent.name / folder.name
        with disk_errors(place):
            shutil.rmtree(beside, ignore_errors=True)
            for name in ("manifest.json", *manifest["files"]):
                (beside / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / name, beside / name)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(place, ignore_errors=True)
            os.replace(beside, place)
    return "entry"


def _the_same(a: Entry, b: Entry) -> bool:
    """Return whether two entries hold the same, but for what is measured."""
    files, others = a.manifest["files"], b.manifest["files"]
    if files.keys() != others.keys():
        return False
    different = [name for name in files if files[name] != others[name]]
    return all(name.endswith(".json") and _content(a.json(name)) == _content(b.json(name)) for name in different)


def _content(told: Any) -> Any:
    """Return what two machines say alike: not what is measured, nor where a recording lies in a store.

    That depends on when its file was last changed; what is in it has a hash beside.
    """
    if not isinstance(told, dict):
        return told
    content = {k: v for k, v in told.items() if k not in MEASURED}
    if isinstance(content.get("recordings"), list):
        content["recordings"] = [_placeless(recording) for recording in content["recordings"]]
    return content


def _placeless(recording: Any) -> Any:
    return {k: v for k, v in recording.items() if k != "path"} if isinstance(recording, dict) else recording


def _take_beside(target: Store, folder: Path, record: Record) -> list[tuple[str, str]]:
    """Copy what lies beside a record where the target lacks it; return what the folder lacks too, and why.

    Before the record itself: where that lies, all that there was is there.
    """
    lacks = []
    for name in _beside(folder, record):
        if not _wrong_beside(target.out, name, record):
            continue
        if wrong := _wrong_beside(folder, name, record):
            lacks.append((name, wrong))
        else:
            _copy(folder / name, target.out / name)
    return lacks


def _summed(lacks: Sequence[tuple[str, str]]) -> list[str]:
    """Return a line for every folder and every thing that is wrong in it: a folder half copied lacks thousands."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, wrong in dict.fromkeys(lacks):
        groups.setdefault((name.partition("/")[0], wrong), []).append(name)
    return [
        f"{names[0]}: {wrong}" + (f" (and {len(names) - 1} more of {part}/)" if len(names) > 1 else "")
        for (part, wrong), names in groups.items()
    ]


def _copy(path: Path, place: Path) -> None:
    with disk_errors(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        beside = place_beside(place)
        try:
            shutil.copyfile(path, beside)
            os.replace(beside, place)
        finally:
            beside.unlink(missing_ok=True)


def _differs(record: Record, mine: Path) -> str:
    """Return what a record says otherwise than the one that is there; empty: nothing."""

    def plain(one: Record) -> dict[str, Any]:
        # What a run takes is measured, and the same nowhere.
        return one.model_dump(mode="json", exclude={*OF_THE_RUN, "cost"})

    try:
        ours, theirs = plain(read_record(mine)), plain(record)
    except StoreError:
        return "the one that is there is damaged; move it away, and merge again"
    different = [name for name in theirs if theirs[name] != ours[name]]
    return f"it says something else ({', '.join(different)})" if different else ""

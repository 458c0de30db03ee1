"""Checks of datasets: what they say of themselves, and their simulated twin through their own reader."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neurobench.checks.common import Check, Skip, build, demand, seeds_set_by
from neurobench.contracts import COVARIATES, Dataset
from neurobench.errors import CheckError, DataError
from neurobench.identity import file_digest
from neurobench.plugins import Registry
from neurobench.records import DatasetCard, RawRecording, RecordingFile, SignalKind

Variant = Literal["default", "null", "confounded"]

SHORTEST_PATCH_S = {"fmri": 10.0, "meg": 0.25}
"""Shorter hidden spans are trivial to interpolate."""

Signals = Mapping[str, NDArray[Any]]
"""Data of recordings, by id."""

TABLES = (".csv", ".tsv", ".txt")
"""How the names of tables of people end."""

SFREQ_HZ = {"fmri": (0.1, 5.0), "meg": (50.0, 10_000.0)}


def _twin_of(cls: type[Dataset]) -> Dataset:
    dataset: Dataset = build(cls)
    if dataset.twin_subjects < 1:
        raise Skip("has no simulated twin")
    return dataset


@contextmanager
def _simulated(
    cls: type[Dataset], n_subjects: int = 3, *, seed: int = 1, variant: Variant = "default"
) -> Iterator[tuple[Dataset, Path]]:
    dataset = _twin_of(cls)
    with tempfile.TemporaryDirectory() as folder:
        dataset.simulate(Path(folder), n_subjects=n_subjects, seed=seed, variant=variant)
        yield dataset, Path(folder)


def _digests(root: Path) -> dict[str, str]:
    return {str(p.relative_to(root)): file_digest(p) for p in sorted(root.rglob("*")) if p.is_file()}


def card(cls: type[Dataset], registry: Registry | None, full: bool) -> str:
    """The card is complete, and its modality is the dataset's."""
    dataset = build(cls)
    problems = []
    own = getattr(dataset, "card", None)
    if not isinstance(own, DatasetCard):
        raise CheckError(f"`card` is {own!r}, not a DatasetCard.")
    for field in fields(own):
        value = getattr(own, field.name)
        if field.name not in ("doi", "apply_at", "traps") and not (isinstance(value, str) and value.strip()):
            problems.append(f"the card's `{field.name}` is empty")
    if own.modality != dataset.modality:
        problems.append(f"the card says {own.modality}, the dataset {dataset.modality}")
    if own.modality not in SHORTEST_PATCH_S:
        problems.append(f"`modality` is {own.modality!r}, not fmri or meg")
    if own.may_leave not in ("aggregates", "predictions", "all"):
        problems.append(f"`may_leave` is {own.may_leave!r}, not aggregates, predictions or all")
    if dataset.signal not in get_args(SignalKind):
        problems.append(f"`signal` is {dataset.signal!r}, not {', '.join(get_args(SignalKind))}")
    demand(problems)
    return ""


def signal_spec(cls: type[Dataset], registry: Registry | None, full: bool) -> str:
    """Windows are whole numbers of patches, and patches are not so short that filling them is trivial."""
    dataset = build(cls)
    spec = dataset.spec
    problems = []
    n = spec.window_s / spec.patch_s if spec.patch_s > 0 else 0.0
    if n < 2 or abs(n - round(n)) > 1e-6:
        problems.append(
            f"a window of {spec.window_s:g} s is {n:g} patches of {spec.patch_s:g} s, not two or more whole ones"
        )
    shortest = SHORTEST_PATCH_S.get(dataset.modality, 0.0)
    if spec.patch_s < shortest:
        problems.append(f"patches of {spec.patch_s:g} s are trivial to interpolate: {shortest:g} s or more")
    if spec.band_hz and not 0 <= spec.band_hz[0] < spec.band_hz[1]:
        problems.append(f"`band_hz` is {spec.band_hz}")
    if spec.sfreq and spec.band_hz and spec.band_hz[1] >= spec.sfreq / 2:
        problems.append(f"the band reaches {spec.band_hz[1]:g} Hz, above half of {spec.sfreq:g} Hz")
    demand(problems)
    return f"{spec.window_s:g} s windows of {n:g} patches"


def nothing_to_read(cls: type[Dataset], registry: Registry | None, full: bool) -> str:
    """An empty folder is refused with a message that names what was looked for."""
    dataset = build(cls)
    with tempfile.TemporaryDirectory() as folder:
        try:
            listing = dataset.list_recordings(Path(folder))
        except DataError as error:
            if not (error.allowed or error.next_step):
                raise CheckError(f"an empty folder is refused without saying what was looked for: {error}") from error
            return ""
        except OSError as error:
            raise CheckError(
                f"an empty folder raises {type(error).__name__}, not a DataError that says what was looked for.",
                next_step='Look whether the file is there, and raise DataError("…", allowed="…").',
            ) from error
    raise CheckError(f"an empty folder is not refused; {len(listing.recordings)} recordings were found in it.")


def twin_is_the_same_twice(cls: type[Dataset], registry: Registry | None, full: bool) -> str:
    """The same seed writes the same files, another seed others."""
    made: list[dict[str, str]] = []

    def simulate() -> None:
        with _simulated(cls) as (_, root):
            made.append(_digests(root))

    seeds = seeds_set_by(simulate)
    a, b = made
    with _simulated(cls, seed=2) as (_, other):
        c = _digests(other)
    if not a:
        raise CheckError("`simulate` writes no file.")
    different = sorted(k for k in {*a, *b} if a.get(k) != b.get(k))
    problems = [f"`simulate` sets the seed of {name} for everybody: draw from a generator" for name in seeds]
    if different:
        problems.append(f"the same seed writes other bytes: {', '.join(different[:4])}")
    if a == c:
        problems.append("another seed writes the same files")
    demand(problems)
    return f"{len(a)} files"


def twin_variants(cls: type[Dataset], registry: Registry | None, full: bool) -> str:
    """The variants without effect and with the confound can be had, and the true effects are written down."""
    problems = []
    for variant in get_args(Variant):
        with _simulated(cls, n_subjects=4, variant=variant) as (_, root):
            effects = sorted(root.rglob("true_effects.json"))
            if not effects:
                problems.append(f"variant {variant}: there is no true_effects.json")
            else:
                json.loads(effects[0].read_text(encoding="utf-8"))
    demand(problems)
    return ""


def lists_and_reads(cls: type[Dataset], registry: Registry | None, full: bool) -> str:
    """The twin goes through the reader: participants, unique ids, plausible signals of their own files, no error."""
    problems = []
    n = 6 if full else 3
    with _simulated(cls, n_subjects=n) as (dataset, root):
        listing = dataset.list_recordings(root)
        people, files = listing.participants, listing.recordings
        if len(people) != n:
            problems.append(f"{len(people)} participants are found in a twin of {n}")
        if not people.index.is_unique or not all(isinstance(p, str) for p in people.index):
            problems.append("participant ids are not unique texts")
        ids = [f.id for f in files]
        problems += [f"two recordings are called {i}" for i in dict.fromkeys(ids) if ids.count(i) > 1]
        strangers = sorted({f.subject for f in files} - set(people.index))
        problems += [f"{s} has a recording and is not in the participants table" for s in strangers]
        problems += [f"finding {f.code}: {f.message}" for f in listing.findings if f.level == "error"]
        if not files:
            problems.append("no recording is found in the twin")
        again = [f.id for f in dataset.list_recordings(root).recordings]
        if again != ids:
            problems.append("listing twice gives another order")
        before = {}
        for file in files:
            raw = dataset.read(file)
            problems += _reading_problems(dataset, file, raw)
            before[file.id] = raw.data
        problems += _of_the_table(cls, root, files, before)
        if files:
            problems += _told_by_tables(cls, root, files, people, before)
            problems += _not_alone(cls, root, files, before)
    demand(problems[:8])
    return f"{len(files)} recordings of {len(people)} participants"


def _of_the_table(cls: type[Dataset], root: Path, files: Sequence[RecordingFile], before: Signals) -> list[str]:
    """Say if a recording is another one once everybody has somebody else's row of the tables: a target may be in it."""
    bare = list(dict.fromkeys(f.subject.removeprefix("sub-").lstrip("0") for f in files))
    if len(bare) < 2 or not all(bare):
        return []
    others = dict(zip(bare, bare[1:] + bare[:1], strict=True))
    whole = re.compile(rf"(?<![A-Za-z0-9])((?:sub-)?0*)({'|'.join(map(re.escape, bare))})(?![A-Za-z0-9])")
    kept: dict[Path, bytes] = {}
    for path in root.rglob("*"):
        # Not what is of one person: a sidecar names whose it is.
        table = path.suffix in TABLES and path.is_file() and not whole.search(str(path.relative_to(root)))
        if table and whole.search(text := path.read_bytes().decode("utf-8", "replace")):
            kept[path] = path.read_bytes()
            path.write_text(whole.sub(lambda m: m[1] + others[m[2]], text), encoding="utf-8")
    try:
        turned: Dataset = build(cls)
        found = [f for f in turned.list_recordings(root).recordings if f.id in before] if kept else []
        changed = [f.id for f in found if not np.array_equal(turned.read(f).data, before[f.id], equal_nan=True)]
    except DataError:
        return []
    finally:
        for path, content in kept.items():
            path.write_bytes(content)
    if not changed:
        return []
    return [
        f"{changed[0]}: with somebody else's row of the participants table it has other data: what is a target to "
        "some task gets into the signal"
    ]


def _not_alone(cls: type[Dataset], root: Path, files: Sequence[RecordingFile], before: Signals) -> list[str]:
    """Say if a recording is another one once those of other people are gone: they may be test subjects."""
    first = files[0]
    own = {f.path for f in files if f.subject == first.subject}
    for path in {f.path for f in files} - own:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    alone: Dataset = build(cls)
    try:
        found = next((f for f in alone.list_recordings(root).recordings if f.id == first.id), None)
    except DataError:
        return []
    if found is None or np.array_equal(alone.read(found).data, before[first.id], equal_nan=True):
        return []
    return [f"{first.id}: without the recordings of others it has other data: something is fitted on everybody"]


TECHNICAL = {*COVARIATES, "t_r", "sfreq"} - {"age", "sex"}
"""Columns of a participants table that may well say how a recording is to be read."""


def _told_by_tables(
    cls: type[Dataset], root: Path, files: Sequence[RecordingFile], people: pd.DataFrame, before: Signals
) -> list[str]:
    """Say if a signal is another one once a table says something else of its subject: a target could be in it."""
    named = {p for f in files for p in (*f.path.parts, f.path.stem, str(f.path), str(f.path.relative_to(root)))}
    subjects = {name for f in files for name in (f.subject, f.subject.removeprefix("sub-"), f"sub-{f.subject}")}
    found: dict[str, str] = {}

    def changed(table: pd.DataFrame, columns: Sequence[str]) -> tuple[set[str], str]:
        """Return which columns of the participants table change with those of a file, and whose signal does."""
        other = table.assign(**{c: np.roll(table[c], 1) for c in columns})
        other.to_csv(path, sep=separator, index=False)
        again: Dataset = build(cls)
        listing = again.list_recordings(root)
        now = listing.participants.reindex(people.index)
        columns_now = {str(c) for c in people if c not in now or not now[c].equals(people[c])}
        for file in listing.recordings:
            if file.id in before and not np.array_equal(again.read(file).data, before[file.id], equal_nan=True):
                return columns_now, file.id
        return columns_now, ""

    for path in sorted({*root.rglob("*.tsv"), *root.rglob("*.csv")} - {f.path for f in files}):
        content, separator = path.read_bytes(), "\t" if path.suffix == ".tsv" else ","
        try:
            table = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False)
            told = [str(c) for c in table if not {*table[c]} & named and not {f"sub-{v}" for v in table[c]} & named]
            about = max((len({*table[c]} & subjects) for c in table), default=0)
            if about < 2 or changed(table, ())[0]:
                continue  # not about people, or of a form that does not survive being written again
            if changed(table, told)[1]:
                for column in told:
                    targets, whose = changed(table, [column])
                    if whose and targets - TECHNICAL:
                        found.setdefault(whose, ", ".join(sorted(targets - TECHNICAL)))
        except Exception:  # noqa: S112 - a reader may refuse a table that says something else as it likes
            continue
        finally:
            path.write_bytes(content)
    return [f"{i}: its signal changes with {what} of the participants table" for i, what in found.items()]


def _turned(raw: RawRecording) -> str:
    shape = raw.data.shape
    return ": rows are units, so return its transpose" if len(shape) == 2 and shape[1] == len(raw.units) else ""


def _reading_problems(dataset: Dataset, file: RecordingFile, raw: RawRecording) -> list[str]:
    problems = []
    shape = raw.data.shape
    wanted = 3 if dataset.signal == "volume" else 2
    if len(shape) != wanted or shape[0] != len(raw.units):
        problems.append(f"{file.id}: data of shape {shape} for {len(raw.units)} units{_turned(raw)}")
    if not np.issubdtype(raw.data.dtype, np.floating):
        problems.append(f"{file.id}: data are {raw.data.dtype}, not float")
    elif not np.isfinite(raw.data).any():
        problems.append(f"{file.id}: no value is finite")
    elif float(np.nanstd(raw.data)) == 0:
        problems.append(f"{file.id}: the signal is constant")
    low, high = SFREQ_HZ[dataset.modality]
    if not low <= raw.sfreq <= high:
        problems.append(
            f"{file.id}: {raw.sfreq:g} Hz is no sampling frequency of {dataset.modality} ({low:g} to {high:g})"
        )
    if abs(raw.sfreq - file.sfreq) > 0.01 * raw.sfreq:
        problems.append(f"{file.id}: listed with {file.sfreq:g} Hz, read with {raw.sfreq:g} Hz")
    if len(shape) > 1 and shape[1] / raw.sfreq < dataset.spec.window_s / 2:
        problems.append(
            f"{file.id}: {shape[1] / raw.sfreq:g} s is less than half a window of {dataset.spec.window_s:g} s"
        )
    if not raw.units.region_names and not raw.units.has_positions:
        problems.append(f"{file.id}: units have neither groups nor positions: region-wise masks cannot work")
    if not np.array_equal(raw.data, dataset.read(file).data, equal_nan=True):
        problems.append(f"{file.id}: reading twice gives other data")
    return problems


CHECKS: dict[str, Check] = {
    "card": card,
    "signal-spec": signal_spec,
    "nothing-to-read": nothing_to_read,
    "twin-is-the-same-twice": twin_is_the_same_twice,
    "twin-variants": twin_variants,
    "lists-and-reads": lists_and_reads,
}

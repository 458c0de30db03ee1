"""Opening MEG recordings of any vendor, and saying in plain words why one cannot be opened."""

from __future__ import annotations

import re
import struct
import warnings
from pathlib import Path
from typing import Any

import mne

from neurobench import DataError
from neurobench_datasets._meg_fieldtrip import open_fieldtrip
from neurobench_datasets._tables import DEFLATE, explain_unreadable

CONTENTS = {
    "evoked": "averages (evoked responses)",
    "epochs": "epochs",
    "ica": "an independent component analysis",
    "cov": "a covariance",
    "forward": "a forward solution",
    "inverse": "an inverse operator",
}
"""What :func:`mne.what` calls a file without a recording; a recording cut off after its header is none of these."""

MIN_HZ, MAX_HZ = 3.0, 1e6
"""Sampling frequencies that a recording may have: below there is no band left to filter."""

MOST_VALUES_A_BYTE = 16
"""Values of a signal that a FIF file may hold a byte: of two bytes each, and nearly all of them not kept."""


def is_4d(folder: Path) -> bool:
    """Whether a folder is a 4D/BTi recording: it holds a ``config`` and signals named after their filters."""
    return (folder / "config").is_file() and bool(_signals_4d(folder) or folder.name.endswith("_meg"))


def _signals_4d(folder: Path) -> list[Path]:
    found = sorted(p for p in folder.glob("[ce],*") if p.is_file())
    # Continuous before epoched, unfiltered before filtered.
    return sorted(found, key=lambda p: (not p.name.startswith("c,"), not p.name.endswith("DC"), p.name))


def signal_file(path: Path) -> Path:
    """Return the file that holds the signal: the largest one of a vendor's folder."""
    files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
    return max(files, key=lambda p: (p.stat().st_size, p.name))


def is_sss(info: Any) -> bool:
    """Whether a recording went through signal-space separation."""
    return any("sss" in str(p).lower() for p in info.get("proc_history") or ())


def open_raw(path: Path) -> Any:
    """Open a recording without reading its signal.

    Raises
    ------
    DataError
        In plain words, if it cannot be opened.
    """
    try:
        if why := explain_unreadable(path, whole=False) if not path.is_dir() else "":
            raise DataError(f"{path.name} {why}.")
    except PermissionError as error:
        raise no_permission(path) from error
    # Recordings with internal active shielding are opened too; what is done about it is the reader's to say.
    fif = path.name.endswith((".fif", ".fif.gz"))
    options = {"allow_maxshield": "yes"} if fif else {}
    try:
        with warnings.catch_warnings(), mne.use_log_level("ERROR"):
            warnings.simplefilter("ignore")
            if path.suffix == ".mat":
                return open_fieldtrip(path)
            if path.is_dir() and is_4d(path):
                signal = next(iter(_signals_4d(path)), path / "c,rfDC")
                shape = "hs_file" if (path / "hs_file").is_file() else None
                return mne.io.read_raw_bti(signal, config_fname=path / "config", head_shape_fname=shape)
            if path.suffix == ".fif":
                has_an_end(path)
            if path.suffix == ".ds":
                _has_its_markers(path)
            raw = mne.io.read_raw(path, preload=False, **options)
            return _plausible(raw) if fif else raw
    except DataError:
        raise
    except PermissionError as error:
        raise no_permission(path) from error
    except Exception as error:
        raise _cannot_open(path, error, fif) from error


def has_an_end(path: Path) -> None:
    """Raise ValueError if the parts of a FIF file, each of which says where the next one lies, lead in a circle."""
    came_to: set[int] = set()
    at = 0
    with open(path, "rb") as f:
        while len(head := f.read(16)) == 16:
            _, _, size, following = struct.unpack(">4i", head)
            if following < 0:
                return
            to = following or at + 16 + size
            if following or to <= at:
                if to < 0 or to in came_to:
                    raise ValueError("its parts lead in a circle")
                came_to.add(to)
            f.seek(at := to)


def _has_its_markers(folder: Path) -> None:
    """Raise ValueError if the markers of a CTF folder are cut off: MNE would look for the rest of them without end."""
    path = folder / "MarkerFile.mrk"
    if not path.is_file():
        return
    with open(path, encoding="utf-8", errors="replace") as lines:

        def after(title: str) -> str:
            for line in lines:
                if line.startswith(title):
                    return next(lines, "")
            raise ValueError(f"{path.name} ends before its {title.rstrip(':').lower()}")

        for _ in range(int(after("NUMBER OF MARKERS:"))):
            after("NAME:")
            n_samples = int(after("NUMBER OF SAMPLES:"))
            after("LIST OF SAMPLES:")
            for _ in zip(range(n_samples), lines, strict=False):
                pass


def _plausible(raw: Any) -> Any:
    """Return a FIF recording, unless its header says what cannot be.

    MNE looks at kinds of channels only when they are used. And a few bytes can say that thousands of millions of
    samples were not kept: they would be read as that many zeros.
    """
    raw.get_channel_types()
    if not MIN_HZ <= (sfreq := float(raw.info["sfreq"])) <= MAX_HZ:
        raise ValueError(f"it says a sampling frequency of {sfreq:g} Hz")
    sizes = [Path(name).stat().st_size * (DEFLATE if str(name).endswith(".gz") else 1) for name in raw.filenames]
    n_values = int(raw.n_times) * len(raw.ch_names)
    if n_values > MOST_VALUES_A_BYTE * sum(sizes):
        raise ValueError(f"its {sum(sizes)} bytes say that they hold {n_values} values")
    return raw


def no_permission(path: Path) -> DataError:
    return DataError(
        f"{path.name} may not be read by you: permission denied.",
        next_step="Ask its owner, or change its permissions (chmod u+r on Linux).",
    )


def _cannot_open(path: Path, error: Exception, fif: bool) -> DataError:
    text = " ".join(str(error).split())
    if missing := re.search(r"next file (\S+) does not exist", text):
        return DataError(
            f"{path.name} is the first part of a recording whose next part, {Path(missing[1]).name}, is not here.",
            next_step="Copy all parts into one folder under the names that they were written with.",
        )
    content = _content(path) if fif else ""
    if content:
        return DataError(
            f"{path.name} holds {content}, not a continuous recording.",
            next_step="Give the recording that it was made from.",
        )
    # What MNE says of a .fif file without an end differs with where it ends.
    reason = "is cut off or damaged" if fif else "cannot be opened"
    return DataError(
        f"{path.name} {reason} ({type(error).__name__}: {text[:160]}).",
        next_step="Download or copy it again; `mne.io.read_raw` has to open it.",
    )


def _content(path: Path) -> str:
    """Return in words what a .fif file without a recording holds; empty if nothing known."""
    try:
        with warnings.catch_warnings(), mne.use_log_level("CRITICAL"):
            warnings.simplefilter("ignore")
            if path.suffix == ".fif":
                has_an_end(path)
            return CONTENTS.get(str(mne.what(path)), "")
    except Exception:
        return ""

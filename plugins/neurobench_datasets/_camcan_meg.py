"""The MEG half of Cam-CAN: resting recordings in the trees of release004 and release005, and their twin."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from neurobench import DataError, Finding, RawRecording, RecordingFile, SignalSpec
from neurobench_datasets._meg_files import open_raw, read_meg_file
from neurobench_datasets._meg_twin import NO_EFFECTS, Effects, MegTwin, Person, write_recording

MEG_SPEC = SignalSpec(window_s=4.0, patch_s=0.25, sfreq=128.0, band_hz=(1.0, 40.0), scaling="training")

NAME = re.compile(r"(?:mf2pt2_)?sub-(CC\d{6})_ses-rest_task-rest(?:_proc-sss)?(?:_meg)?(?:transdef)?\.fif")

DERIVATIVES = (
    ("transdef", "MaxFilter with movement compensation, transformed to the default head position"),
    ("movecomp", "MaxFilter with movement compensation"),
    ("mf2pt2", "MaxFilter without movement compensation"),
    ("proc-sss", "MaxFilter (release004, meg_rest_mf)"),
    ("", "raw: not processed by MaxFilter"),
)
"""What a path contains and what that means, best first: one head position for all makes sensors comparable."""


def _rank(path: Path) -> int:
    text = str(path).replace("nomovecomp", "")
    if "meg_rest_mf" in text:
        text += "proc-sss"
    return next(i for i, (mark, _) in enumerate(DERIVATIVES) if mark in text)


def list_meg(root: Path) -> tuple[list[RecordingFile], list[Finding]]:
    """Find one resting recording a subject: of several derivatives the best for comparing sensors across people.

    Raises
    ------
    DataError
        If there is none, naming the trees that were looked for.
    """
    found: dict[str, Path] = {}
    for path in sorted(root.rglob("*.fif")):
        match = NAME.fullmatch(path.name)
        if match and (match[1] not in found or _rank(path) < _rank(found[match[1]])):
            found[match[1]] = path
    if not found:
        raise DataError(
            f"{root} has no resting MEG recording of Cam-CAN.",
            allowed="cc700/meg/pipeline/release005/BIDSsep/{rest,derivatives_rest/…}/sub-CC… or "
            "cc700/meg/pipeline/release004/BIDS_20190411/{meg_rest_raw,meg_rest_mf}/sub-CC…",
            next_step="Give the folder that holds cc700.",
        )
    findings: list[Finding] = []
    files = []
    for subject, path in found.items():
        try:
            sfreq = float(open_raw(path).info["sfreq"])
        except DataError as error:
            findings.append(Finding("error", "unreadable", str(error), subject=subject, path=str(path)))
            continue
        files.append(RecordingFile(subject, path, sfreq, options={"sensors": "mag", "derivative": _rank(path)}))
    ranks = {f.options["derivative"] for f in files}
    if len(ranks) > 1:
        text = "; ".join(DERIVATIVES[r][1] for r in sorted(ranks))
        findings.append(Finding("warning", "mixed-derivatives", f"recordings were processed in different ways: {text}"))
    return files, findings


def read_meg(file: RecordingFile) -> RawRecording:
    """Read one recording: one row a magnetometer; which derivative it was is part of its provenance."""
    raw = read_meg_file(file)
    return replace(raw, provenance=(*raw.provenance, DERIVATIVES[file.options["derivative"]][1]))


def simulate_meg(root: Path, participants: pd.DataFrame, *, seed: int, effects: bool) -> None:
    """Write a simulated resting recording of every participant, as release005 lays out the transformed derivative.

    Parameters
    ----------
    root
        Folder of the twin.
    participants
        Indexed by CCID, with ``age``.
    seed
        Base seed.
    effects
        Whether age changes anything.
    """
    twin = MegTwin(seed, Effects() if effects else NO_EFFECTS)
    age = participants["age"].to_numpy(float)
    age_z = (age - np.nanmean(age)) / np.nanstd(age)
    folder = (
        root / "cc700/meg/pipeline/release005/BIDSsep/derivatives_rest/aa/AA_movecomp_transdef/aamod_meg_maxfilt_00003"
    )
    for subject, z in zip(participants.index, age_z, strict=True):
        path = folder / f"sub-{subject}" / f"mf2pt2_sub-{subject}_ses-rest_task-rest_megtransdef.fif"
        write_recording(path, twin, Person(str(subject), float(np.nan_to_num(z))), "rest")

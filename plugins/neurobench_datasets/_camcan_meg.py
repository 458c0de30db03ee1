"""The MEG half of Cam-CAN: three states in the trees of release004 and release005, and their twin.

``rest`` has no stimuli; in ``passive`` tones and checkerboards come one after the other; in ``smt``, the sensorimotor
task, a tone and two gratings come together and a button is pressed.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from neurobench import DataError, Finding, RawRecording, RecordingFile
from neurobench_datasets._meg_files import list_one, read_meg_file, without_copies
from neurobench_datasets._meg_settings import MEG_SPEC, MegSettings
from neurobench_datasets._meg_twin import NO_EFFECTS, Effects, MegTwin, Person, write_effects, write_recording

__all__ = ["MEG_SPEC", "list_meg", "read_meg", "simulate_meg"]

NAME = re.compile(
    r"(?:mf2pt2_)?sub-(CC\d{6})_ses-(rest|passive|smt)_task-(rest|passive|smt)(?:_proc-sss)?(?:_meg)?(?:transdef)?"
    r"\.fif(?:\.gz)?"
)

CONDITIONS = {
    "passive": (("6", "tone300"), ("7", "tone600"), ("8", "tone1200"), ("9", "visual")),
    "smt": (("1", "audiovisual1"), ("2", "audiovisual2"), ("3", "audiovisual3")),
}
"""Codes of the trigger channel. The button's code differs between people: it is the most frequent other one."""

DERIVATIVES = (
    ("transdef", "MaxFilter with movement compensation, transformed to the default head position"),
    ("movecomp", "MaxFilter with movement compensation"),
    ("mf2pt2", "MaxFilter without movement compensation"),
    ("proc-sss", "MaxFilter (release004, meg_…_mf)"),
    ("", "raw: not processed by MaxFilter"),
)
"""What a path contains and what that means, best first: one head position for all makes sensors comparable."""


def _rank(path: Path, root: Path) -> int:
    text = path.relative_to(root).as_posix().replace("nomovecomp", "")
    if re.search(r"meg_(rest|passive|smt)_mf/", text):
        text += "proc-sss"
    return next(i for i, (mark, _) in enumerate(DERIVATIVES) if mark in text)


def list_meg(
    root: Path, states: tuple[str, ...] = ("rest",), how: MegSettings | None = None
) -> tuple[list[RecordingFile], list[Finding]]:
    """Find one recording a subject and state: of several derivatives the best for comparing sensors across people.

    Parameters
    ----------
    root
        Folder that holds ``cc700``.
    states
        Of ``rest``, ``passive``, ``smt``, those to use.
    how
        How recordings are read.

    Raises
    ------
    DataError
        If there is none, naming the trees that were looked for and the states that there are.
    """
    how = how or MegSettings()
    found: dict[tuple[str, str], Path] = {}
    other: dict[str, int] = {}
    mismatched: list[Path] = []
    for path in sorted([*root.rglob("*.fif"), *root.rglob("*.fif.gz")]):
        match = NAME.fullmatch(path.name)
        if match is None:
            continue
        subject, session, state = match[1], match[2], match[3]
        if session != state:
            mismatched.append(path)
        elif state not in states:
            other[state] = other.get(state, 0) + 1
        elif (subject, state) not in found or _rank(path, root) < _rank(found[subject, state], root):
            found[subject, state] = path
    if not found:
        wanted = " or ".join(states)
        have = ", ".join(sorted(other))
        folder = states[0]
        raise DataError(
            f"{root} has no MEG recording of Cam-CAN in state {wanted}" + (f"; it has {have}." if have else "."),
            allowed=f"cc700/meg/pipeline/release005/BIDSsep/{{{folder},derivatives_{folder}/…}}/sub-CC… or "
            f"cc700/meg/pipeline/release004/BIDS_20190411/{{meg_{folder}_raw,meg_{folder}_mf}}/sub-CC…",
            next_step=f"Say camcan[signal=meg,state={sorted(other)[0]}]."
            if have
            else "Give the folder that holds cc700.",
        )
    findings: list[Finding] = []
    if mismatched:
        text = f"{len(mismatched)} files name one state as session and another as task, and are left out"
        findings.append(Finding("warning", "unknown-name", text, path=str(mismatched[0])))
    files = []
    # Named emptyroom_CC….fif in meg_emptyroom; other places hold copies of the recordings.
    rooms = {m[0]: p for p in sorted(root.rglob("*emptyroom*CC*.fif")) if (m := re.search(r"CC\d{6}", p.name))}
    for (subject, state), path in sorted(found.items()):
        own = how if how.conditions or state == "rest" else replace(how, conditions=CONDITIONS[state])
        own = replace(own, button="button") if state == "smt" else own
        file = list_one(subject, path, findings, how=own, state=state, room=rooms.get(subject))
        if file is not None:
            files.append(replace(file, options={**file.options, "derivative": _rank(path, root)}))
    ranks = {f.options["derivative"] for f in files}
    if len(ranks) > 1:
        text = "; ".join(DERIVATIVES[r][1] for r in sorted(ranks))
        findings.append(Finding("warning", "mixed-derivatives", f"recordings were processed in different ways: {text}"))
    if len(states) > 1:
        people = {f.subject for f in files}
        lacking = {s: len(people - {f.subject for f in files if f.state == s}) for s in states}
        if any(lacking.values()):
            shown = ", ".join(f"{s} {n}" for s, n in lacking.items() if n)
            text = f"of {len(people)} people some have no recording of a state: {shown}; the others of theirs are used"
            findings.append(Finding("info", "missing-states", text))
    return without_copies(files, findings), findings


def read_meg(file: RecordingFile) -> RawRecording:
    """Read one recording: one row a magnetometer; which derivative it was is part of its provenance."""
    raw = read_meg_file(file)
    return replace(raw, provenance=(*raw.provenance, DERIVATIVES[file.options["derivative"]][1]))


def simulate_meg(
    root: Path, participants: pd.DataFrame, *, seed: int, effects: bool, states: tuple[str, ...] = ("rest",)
) -> None:
    """Write simulated recordings of every participant, as release005 lays out the transformed derivative.

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
    states
        Of ``rest``, ``passive``, ``smt``; states with stimuli have a trigger channel.
    """
    size = Effects() if effects else NO_EFFECTS
    twin = MegTwin(seed, size)
    age = participants["age"].to_numpy(float)
    age_z = (age - np.nanmean(age)) / np.nanstd(age)
    tree = root / "cc700/meg/pipeline/release005/BIDSsep"
    for subject, z in zip(participants.index, age_z, strict=True):
        person = Person(str(subject), float(np.nan_to_num(z)))
        for state in states:
            folder = tree / f"derivatives_{state}/aa/AA_movecomp_transdef/aamod_meg_maxfilt_00003/sub-{subject}"
            path = folder / f"mf2pt2_sub-{subject}_ses-{state}_task-{state}_megtransdef.fif"
            write_recording(path, twin, person, state)
    write_effects(root, size, seed=seed, **twin.field_table())

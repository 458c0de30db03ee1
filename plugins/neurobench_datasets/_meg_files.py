"""MEG files of any vendor that MNE reads: found in a BIDS-MEG tree or a plain folder, read as one row a sensor."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import mne
import numpy as np
from mne.io.constants import FIFF
from numpy.typing import NDArray

from neurobench import DataError, Finding, RawRecording, RecordingFile, UnitTable
from neurobench_datasets._meg_artefacts import without_artefacts
from neurobench_datasets._meg_events import read_events, stimulus_channels, stimulus_picks
from neurobench_datasets._meg_noise import with_noise
from neurobench_datasets._meg_open import is_4d, is_sss, no_permission, open_raw, signal_file
from neurobench_datasets._meg_settings import BAND_HZ, STATES, WITH_STIMULI, MegSettings
from neurobench_datasets._meg_sidecars import (
    BIDS_NAME,
    NOISE_TASKS,
    VECTORVIEW,
    bad_channels,
    beside,
    noise_file,
    normalised,
    settings,
    sidecar,
)
from neurobench_datasets._roi_series import position_groups

LOBES = tuple(
    f"{side}-{lobe}" for side in ("Left", "Right") for lobe in ("temporal", "parietal", "occipital", "frontal")
)
FILES = (".fif", ".fif.gz", ".con", ".sqd")
FOLDERS = (".ds",)
NOT_RAW = re.compile(r"[-_](ave|eve|cov|epo|fwd|inv|src|trans|ica|proj|evoked|crosstalk|calibration)(\.fif|\.fif\.gz)$")
REDUCED = {"ave": "averages", "evoked": "averages", "epo": "epochs"}
"""What the names of files that hold less than a recording say; these are mentioned, since people expect them used."""

CTF = re.compile(r"(M[LRZ][CFOPT])\d\d")
AXIAL = frozenset(
    int(FIFF[f"FIFFV_COIL_{name}_GRAD"])
    for name in ("CTF", "KIT", "MAGNES", "BABY", "ARTEMIS123", "KRISS", "COMPUMEDICS_ADULT", "COMPUMEDICS_PEDIATRIC")
) | {int(FIFF.FIFFV_COIL_AXIAL_GRAD_5CM)}
"""Types of coils that are axial gradiometers."""

AXIS_ERROR = 0.05
"""How far from 1 the length of a coil's axis in a header may be."""

HEAD_BYTES = 1 << 20
"""Recordings of one size whose first and last megabyte are the same are the same recording."""


# ---------------------------------------------------------------- finding


def candidates(root: Path, findings: list[Finding] | None = None, *, matlab: bool = False) -> Iterator[Path]:
    """Yield every file or vendor folder under ``root`` whose name says MEG, in a fixed order.

    Parameters
    ----------
    root
        Folder to search.
    findings
        Files of averages and epochs are counted here.
    matlab
        Whether ``.mat`` files are looked at, which may be FieldTrip's.
    """
    reduced: list[Path] = []
    inside_4d: list[Path] = []
    for path in sorted(root.rglob("*")):
        # Hidden folders hold a version control's copies, some under the names of recordings.
        inside = path.relative_to(root).parts
        if any(p.endswith(FOLDERS) for p in inside[:-1]) or any(p.startswith(".") for p in inside):
            continue
        if any(folder in path.parents for folder in inside_4d):
            continue
        name = path.name
        if path.is_dir():
            if is_4d(path):
                inside_4d.append(path)
                yield path
            elif name.endswith(FOLDERS):
                yield path
        elif name.endswith(FILES):
            kind = NOT_RAW.search(name)
            if kind is None:
                yield path
            elif kind[1] in REDUCED:
                reduced.append(path)
        elif matlab and name.endswith(".mat"):
            yield path
    if reduced and findings is not None:
        kinds = " and ".join(sorted({REDUCED[m[1]] for p in reduced if (m := NOT_RAW.search(p.name))}))
        shown = ", ".join(p.name for p in reduced[:3])
        text = f"{len(reduced)} files hold {kinds}, no continuous recordings, and are left out: {shown}"
        fix = "give the recordings that they were made from"
        findings.append(Finding("warning", "not-a-recording", text, fix=fix, path=str(reduced[0])))


def list_bids_meg(
    root: Path, states: Mapping[str, tuple[str, ...]] | None = None, how: MegSettings | None = None
) -> tuple[list[RecordingFile], list[Finding]]:
    """Find the recordings of a BIDS-MEG tree.

    Of several processings of one recording the cleaned one (``proc-``) is taken, of a split file the first part, which
    leads to the others. Recordings of one state that differ in task or acquisition are runs of it. Empty-room
    recordings are left out. One recording under the names of two people is nobody's.

    Parameters
    ----------
    root
        Folder with ``sub-…`` folders.
    states
        State to the task labels that mean it; :data:`STATES` by default. Another label is a state of its own.
    how
        How recordings are read.
    """
    findings: list[Finding] = []
    strange: list[Path] = []
    later: list[Path] = []
    chosen: dict[tuple[str, ...], tuple[Path, str]] = {}
    for path in candidates(root, findings):
        match = BIDS_NAME.fullmatch(path.name)
        if match is None:
            if path.name.startswith("sub-"):
                strange.append(path)
            continue
        if match["sub"].lower() == "emptyroom" or (match["task"] or "").lower() in NOISE_TASKS:
            continue
        if match["acq"] in ("crosstalk", "calibration"):
            continue
        if match["split"] not in (None, "01", "1"):
            later.append(path)
            continue
        key = tuple(match[part] or "" for part in ("sub", "ses", "task", "acq", "run"))
        if key not in chosen or (match["proc"] and not chosen[key][1]):
            chosen[key] = (path, match["proc"] or "")
    first = {re.sub(r"_split-[^_]+", "", path.name) for path, _ in chosen.values() if "_split-" in path.name}
    for path in later:
        if re.sub(r"_split-[^_]+", "", path.name) not in first:
            text = f"{path.name} is a later part of a recording whose first part, split-01, is not here"
            findings.append(Finding("error", "missing-part", text, fix="copy all parts", path=str(path)))
    if strange:
        shown = ", ".join(p.name for p in strange[:3])
        text = f"{len(strange)} files are not named as BIDS-MEG recordings and are left out: {shown}"
        fix = "name them sub-<label>[_ses-<label>]_task-<label>[_acq-<label>][_run-<label>][_proc-<label>]_meg.fif"
        findings.append(Finding("warning", "unknown-name", text, fix=fix, path=str(strange[0])))
    processings = sorted({proc or "none" for _, proc in chosen.values()})
    if len(processings) > 1:
        text = f"recordings were processed in different ways: {', '.join(processings)}"
        findings.append(Finding("warning", "mixed-derivatives", text, fix="give every recording the same processing"))
    states = STATES if states is None else states
    named = {key: (key[0], key[1], state_of(key[2], states), key[4]) for key in chosen}
    counts = Counter(named.values())
    files = []
    for key, (path, _) in chosen.items():
        sub, ses, state, run = named[key]
        if counts[named[key]] > 1:
            run = "-".join(part for part in key[2:] if part)
        subject = unicodedata.normalize("NFC", f"sub-{sub}")
        file = list_one(subject, path, findings, how=how or MegSettings(), session=ses, state=state, run=run)
        if file is not None:
            files.append(file)
    files = without_copies(files, findings)
    return sorted(files, key=lambda f: f.id), _reasons(findings, files)


def list_folder(root: Path, how: MegSettings | None = None) -> tuple[list[RecordingFile], list[Finding]]:
    """Find the recordings of a plain folder: each file is a subject of its own, which a finding says."""
    findings: list[Finding] = []
    files: list[RecordingFile] = []
    taken: Counter[str] = Counter()
    for path in candidates(root, findings, matlab=True):
        stem = re.sub(r"(\.fif|\.fif\.gz|\.ds|\.con|\.sqd|\.mat)$", "", path.name)
        subject = re.sub(r"[^\w-]+", "-", unicodedata.normalize("NFC", stem)).replace("_", "-")
        taken[subject] += 1
        # Two folders may hold files of one name.
        name = subject if taken[subject] == 1 else f"{subject}-{taken[subject]}"
        file = list_one(name, path, findings, how=how or MegSettings(), expected=False)
        if file is not None:
            files.append(file)
    later = {f.path.parent / part[0] for f in files for part in f.options["parts"]}
    files = [f for f in files if f.path not in later]
    files = without_copies(files, findings, keep_first=True)
    if files:
        text = (
            f"{root.name} has no participants.tsv: each of its {len(files)} recordings counts as a subject of its own"
        )
        fix = "write participants.tsv, or use --split within-recording"
        folders = Counter(f.path.parent.relative_to(root) for f in files)
        if 1 < len(folders) < len(files) and Path() not in folders:
            # Of one person in training and test nothing is learnt about persons.
            example = folders.most_common(1)[0][0]
            text += (
                f", though they lie in {len(folders)} folders ({example}, …): if each is a person, one person is in "
            )
            text += "training and test"
            fix = "name them sub-<label>/meg/sub-<label>_task-<label>_meg.fif, and write participants.tsv"
        findings.append(Finding("warning", "no-participants", text, fix=fix))
    return files, _reasons(findings, files)


def _reasons(findings: list[Finding], files: list[RecordingFile]) -> list[Finding]:
    """Return findings, where nothing is left to use with those on files left out as errors: they are the reason."""
    if files:
        return findings
    return [replace(f, level="error") if f.code in ("not-a-recording", "unknown-name") else f for f in findings]


def state_of(task: str, states: Mapping[str, tuple[str, ...]]) -> str:
    """Return the state that a task label means; the label itself where none does."""
    label = re.sub(r"[^a-z0-9]", "", task.lower())
    for state, labels in states.items():
        if label in labels or label == state:
            return state
    return label or "rest"


def list_one(
    subject: str,
    path: Path,
    findings: list[Finding],
    *,
    how: MegSettings,
    session: str = "",
    state: str = "rest",
    run: str = "",
    expected: bool = True,
    room: Path | None = None,
) -> RecordingFile | None:
    """Return a recording with what its header and sidecars say, or None and a finding.

    Whatever a result can depend on goes into its options, contents of sidecars as hashes, since they identify what is
    prepared.

    Parameters
    ----------
    subject, session, state, run
        Of the recording.
    path
        File or folder.
    findings
        What is noticed is added here.
    how
        How it is read.
    expected
        Whether a state with stimuli has to have events.
    room
        Empty-room recording or noise covariance; None: looked for.
    """
    try:
        raw = open_raw(path)
    except DataError as error:
        findings.append(Finding("error", "unreadable", str(error), subject=subject, path=str(path)))
        return None
    names = {normalised(n) for n in raw.ch_names}
    bads = bad_channels(path, names, findings, subject)
    events_file, events_hash = beside(path, sidecar(path, "events.tsv"))
    line = settings(path).get("PowerLineFrequency") or raw.info["line_freq"]
    noise, noise_state = _beside_noise(path, room or noise_file(path, _day(raw)))
    options = {
        **how.options(),
        "bads": bads,
        "events_file": events_file,
        "events": events_hash,
        "stimuli": expected and state in WITH_STIMULI,
        "state": state,
        "line_hz": float(line) if isinstance(line, int | float) and 0 < line < 1000 else 0.0,
        "parts": _later_parts(raw, path),
        "noise_file": noise,
        "noise": noise_state,
    }
    return RecordingFile(
        subject, path, float(raw.info["sfreq"]), session=session, state=state, run=run, options=options
    )


def _day(raw: Any) -> str:
    return raw.info["meas_date"].strftime("%Y%m%d") if raw.info["meas_date"] else ""


def _beside_noise(path: Path, noise: Path | None) -> tuple[str, list[Any]]:
    """Return where the noise recording lies from a recording, with its size and time of change: it may be large."""
    if noise is None:
        return "", []
    state = signal_file(noise).stat()
    return os.path.relpath(noise, path.parent), [state.st_size, state.st_mtime_ns]


def _later_parts(raw: Any, path: Path) -> list[list[Any]]:
    """Return name and size of the second and later parts of a split file: they are part of what is prepared."""
    names = [Path(n) for n in raw.filenames or () if n is not None]
    return [] if path.is_dir() else [[str(n.name), n.stat().st_size] for n in names[1:]]


def without_copies(
    files: list[RecordingFile], findings: list[Finding], *, keep_first: bool = False
) -> list[RecordingFile]:
    """Return the recordings that are nobody else's too.

    Parameters
    ----------
    files
        Recordings found.
    findings
        What is left out is said here.
    keep_first
        Keep the first of several copies, where no table says whose they are.
    """
    same_size: dict[int, list[RecordingFile]] = {}
    for f in files:
        same_size.setdefault(_size(f.path), []).append(f)
    same: dict[tuple[int, str], list[RecordingFile]] = {}
    for size, group in same_size.items():
        for f in group if len(group) > 1 else ():
            same.setdefault((size, _ends(f.path)), []).append(f)
    dropped: set[str] = set()
    for group in same.values():
        if len(group) < 2:
            continue
        shown = ", ".join(str(f.path.name) for f in group[:4])
        if len({f.subject for f in group}) == 1:
            text = f"{group[0].subject} has the same recording under {len(group)} names: {shown}"
            fix = "keep one of them; all are used"
            findings.append(Finding("warning", "duplicate-recording", text, fix, group[0].subject, str(group[0].path)))
            continue
        out = group[1:] if keep_first else group
        which = f"only {group[0].path.name} is used" if keep_first else "none is used, as whose it is cannot be known"
        for f in out:
            text = f"{f.path.name} has the same content as other files ({shown}): {which}"
            fix = "keep it under the name of the person whose it is"
            findings.append(Finding("error", "duplicate-recording", text, fix, f.subject, str(f.path)))
        dropped |= {f.id for f in out}
    return [f for f in files if f.id not in dropped]


def _size(path: Path) -> int:
    return signal_file(path).stat().st_size


def _ends(path: Path) -> str:
    file = signal_file(path)
    with open(file, "rb") as f:
        sha = hashlib.sha256(f.read(HEAD_BYTES))
        f.seek(max(0, file.stat().st_size - HEAD_BYTES))
        sha.update(f.read())
    return sha.hexdigest()


# ---------------------------------------------------------------- reading


def read_meg_file(file: RecordingFile) -> RawRecording:
    """Read a recording: one row a sensor, in tesla or tesla per metre; rows of bad channels are NaN.

    The option ``sensors`` is ``mag`` (one sensor a site: the magnetometer where there is one, else the system's own
    coil, one of each pair of planar gradiometers) or ``all``. Events, and what is wrong with them, come with it.

    Raises
    ------
    DataError
        If the file cannot be read or holds no MEG sensor.
    """
    with mne.use_log_level("ERROR"):
        return _read(open_raw(file.path), file)


def _read(raw: Any, file: RecordingFile) -> RawRecording:
    options = {**MegSettings().options(), **file.options}
    picks = mne.pick_types(raw.info, meg=True, ref_meg=False, exclude=())
    if len(picks) == 0:
        raise DataError(f"{file.path.name} holds no MEG sensor.", allowed="magnetometers, gradiometers")
    findings = _of_the_whole(raw, file, [normalised(raw.ch_names[i]) for i in picks])
    kinds = np.array([mne.channel_type(raw.info, i) for i in picks])
    sites = _sites(raw.info, picks)
    if options["sensors"] == "mag":
        keep = _one_a_site(kinds, sites)
        picks, kinds, sites = picks[keep], kinds[keep], sites[keep]
    triggers = stimulus_picks(raw, str(options["trigger"]))
    try:
        # One reading for all: a file holds its channels interleaved.
        whole = raw.get_data(picks=np.concatenate([picks, triggers]))
    except PermissionError as error:
        raise no_permission(file.path) from error
    except Exception as error:
        raise DataError(
            f"{file.path.name} opens, but its signal cannot be read ({type(error).__name__}: {error}).",
            next_step="It is probably cut off: download or copy it again.",
        ) from error
    data = whole[: len(picks)]
    stimulus = stimulus_channels(raw, triggers, whole[len(picks) :]) if len(triggers) else None
    events, said, more = read_events(raw, stimulus, options, file.path.parent)
    findings += more
    names = [normalised(raw.ch_names[i]) for i in picks]
    bad = {normalised(b) for b in raw.info["bads"]} | set(options.get("bads", ()))
    data[[n in bad for n in names]] = np.nan
    spans, cleaned, more = without_artefacts(data, raw, names, kinds, float(options["reject"]))
    findings += more
    data, heard, more = with_noise(data, mne.pick_info(raw.info, picks), names, kinds, file, options)
    findings += more
    position, frame = _positions(raw.info, picks)
    findings += _of_places(position, frame, names)
    groups, source = _groups(names, position)
    provenance = [f"sensor positions in {frame} coordinates", *said, *cleaned, *heard]
    if raw.info.get("maxshield"):
        provenance.append("recorded with internal active shielding and not processed by MaxFilter: read as it is")
    if is_sss(raw.info):
        provenance.append("processed by signal-space separation (MaxFilter)")
    if waiting := sum(not p["active"] for p in raw.info["projs"]):
        provenance.append(f"{waiting} projectors against interference, which the file has, are not applied")
    if file.path.suffix == ".mat":
        provenance.append(str(raw.info["description"]))
    table = UnitTable.from_groups(
        names=tuple(names),
        groups=tuple(groups),
        position_mm=position,
        types=_types(raw.info, picks, kinds),
        sites=sites,
        group_source=source,
        orientation=_orientations(raw.info, picks, kinds),
    )
    return RawRecording(
        data.astype(np.float32),
        float(raw.info["sfreq"]),
        table,
        tuple(provenance),
        events=tuple(events),
        bad_spans=tuple(spans),
        findings=tuple(findings),
    )


def _of_the_whole(raw: Any, file: RecordingFile, names: Sequence[str]) -> list[Finding]:
    """Return what is to be said of a recording as a whole, from its header alone."""
    findings: list[Finding] = []
    duration = len(raw.times) / float(raw.info["sfreq"])
    settling = 3 / BAND_HZ[0]
    if duration < settling:
        text = (
            f"{duration:.4g} s is shorter than the {settling:g} s in which a {BAND_HZ[0]:g} Hz high-pass settles: its "
            "slow parts are not to be trusted"
        )
        findings.append(Finding("warning", "short-for-filter", text, fix="use longer recordings"))
    if raw.info.get("maxshield"):
        text = "recorded with internal active shielding and not processed by MaxFilter: interference is in the signal"
        findings.append(Finding("warning", "active-shielding", text, fix="run MaxFilter (SSS) on it first"))
    line_hz = float(file.options.get("line_hz") or 0.0)
    if 0 < line_hz <= BAND_HZ[1]:
        text = f"the power line's {line_hz:g} Hz lie inside the band of {BAND_HZ[0]:g}–{BAND_HZ[1]:g} Hz"
        findings.append(Finding("warning", "line-in-band", text, fix="remove it before, with a notch filter"))
    if n_average := _averaged_ctf(raw, file.path):
        text = f"{file.path.name} is an average of CTF's software ({n_average}), not a continuous recording"
        findings.append(Finding("warning", "averaged", text, fix="give the recording that it was made from"))
    if all(VECTORVIEW.fullmatch(n) for n in names) and raw.info["nchan"] > 3:
        sites = Counter(n[:-1] for n in names)
        usual = Counter(sites.values()).most_common(1)[0][0]
        if few := sorted(s for s, n in sites.items() if n < usual):
            text = (
                f"{len(few)} of {len(sites)} sites have fewer than {usual} sensors: "
                + ", ".join(f"{s}x" for s in few[:4])
                + (" and more" if len(few) > 4 else "")
            )
            findings.append(
                Finding("warning", "missing-sensors", text, fix="mark bad channels instead of removing them")
            )
    return findings


def _of_places(position: NDArray[np.float32], frame: str, names: Sequence[str]) -> list[Finding]:
    """Return what is to be said of sensors without a place, and of a head whose place is not known."""
    unknown = [n for n, p in zip(names, position, strict=True) if not np.isfinite(p).all()]
    if unknown:
        text = f"{len(unknown)} of {len(names)} sensors have no position: {', '.join(unknown[:4])}"
        fix = "take the recording as the device wrote it; masks that need neighbours cannot use these sensors"
        return [Finding("warning", "no-positions", text, fix=fix)]
    if frame == "device":
        text = "where the head lay is not known: positions are those of the device (no device-to-head transform)"
        return [Finding("info", "no-head-position", text)]
    return []


def _averaged_ctf(raw: Any, path: Path) -> str:
    """Return the class of trials that says that a CTF folder holds an average; empty if it does not."""
    classes = path / "ClassFile.cls"
    if not (path.is_dir() and path.name.endswith(".ds") and classes.is_file()):
        return ""
    lines = (line.strip() for line in classes.read_text(encoding="latin-1").split("\n"))
    name = ""
    for key, value in itertools.pairwise(line for line in lines if line):
        if key == "NAME:":
            name = name or value.split()[0]
        elif key == "NUMBER OF TRIALS:" and (number := re.match(r"\d+", value)):
            if name == "Average" and number[0].strip("0"):
                return f"class {name} in ClassFile.cls"
            name = ""
    return ""


def _sites(info: Any, picks: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return (sensors,) number of the place of each sensor: coils within a millimetre share it."""
    places: dict[tuple[float, ...], int] = {}
    found = []
    for i in picks:
        place = tuple(np.round(info["chs"][i]["loc"][:3], 3).tolist())
        known = np.isfinite(place).all() and any(place)
        found.append(places.setdefault(place if known else (float(i), np.inf), len(places)))
    return np.array(found, np.int64)


def _one_a_site(kinds: NDArray[Any], sites: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the first magnetometer of every site, or, in a system without any, the first sensor."""
    rows = np.flatnonzero(kinds == "mag") if (kinds == "mag").any() else np.arange(len(kinds))
    _, first = np.unique(sites[rows], return_index=True)
    return rows[np.sort(first)]


def _positions(info: Any, picks: NDArray[np.int64]) -> tuple[NDArray[np.float32], str]:
    """Return (sensors, 3) in mm, in head coordinates where the recording says how the head lay; NaN where unknown."""
    place = np.array([info["chs"][i]["loc"][:3] for i in picks], np.float64)
    place[~np.isfinite(place).all(1) | ~place.any(1)] = np.nan
    frame = "device"
    if info["dev_head_t"] is not None:
        place, frame = mne.transforms.apply_trans(info["dev_head_t"], place), "head"
    return (place * 1000).astype(np.float32), frame


def _orientations(info: Any, picks: NDArray[np.int64], kinds: NDArray[Any]) -> NDArray[np.float32]:
    """Return (sensors, 3) unit vectors in the frame of the positions; NaN where unknown.

    A header gives a coil's own axes. Its normal is z. A planar gradiometer measures how the field along its normal
    grows along x (MNE's documentation, Implemented coil geometries), which is what tells the two of a site apart.
    """
    loc = np.array([info["chs"][i]["loc"] for i in picks], np.float64)
    along = np.where((kinds == "grad")[:, None], loc[:, 3:6], loc[:, 9:12])
    length = np.linalg.norm(along, axis=1)
    # No axis, as in headers that were made up from positions alone, or no place: none can be trusted.
    known = (np.abs(length - 1) < AXIS_ERROR) & np.isfinite(loc[:, :3]).all(1) & loc[:, :3].any(1)
    along = np.where(known[:, None], along / np.where(known, length, 1.0)[:, None], np.nan)
    if info["dev_head_t"] is not None:
        along = mne.transforms.apply_trans(info["dev_head_t"], along, move=False)
    return along.astype(np.float32)


def _types(info: Any, picks: NDArray[np.int64], kinds: NDArray[Any]) -> tuple[str, ...]:
    """Return the type of every sensor; MNE counts axial gradiometers as magnetometers, since both are in tesla."""
    # CTF's upper bits hold the order of the gradient compensation.
    axial = [int(info["chs"][i]["coil_type"]) & 0xFFFF in AXIAL for i in picks]
    return tuple("axial" if a and k == "mag" else str(k) for a, k in zip(axial, kinds, strict=True))


def _groups(
    names: Sequence[str], position: NDArray[np.float32]
) -> tuple[list[str], Literal["helmet", "position", "none"]]:
    """Return the helmet region of every sensor: VectorView's lobes, CTF's letters, else clusters of positions."""
    lobe_of = {n: lobe for lobe in LOBES for n in mne.read_vectorview_selection(lobe)}
    if all(n in lobe_of for n in names):
        return [lobe_of[n] for n in names], "helmet"
    letters = [CTF.match(n) for n in names]
    if all(letters):
        return [m[1] for m in letters if m], "helmet"
    if np.isfinite(position).all() and len(names) > 1:
        return position_groups(position.astype(np.float64)), "position"
    return [""] * len(names), "none"


def state_counts(files: Sequence[RecordingFile]) -> str:
    """Return how many recordings there are of each state, for messages."""
    return ", ".join(f"{s} {n}" for s, n in sorted(Counter(f.state for f in files).items()))

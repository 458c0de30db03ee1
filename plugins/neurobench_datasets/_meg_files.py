"""MEG files of any vendor that MNE reads: found in a BIDS-MEG tree or a plain folder, read as one row a sensor."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import mne
import numpy as np
from numpy.typing import NDArray

from neurobench import DataError, Finding, RawRecording, RecordingFile, UnitTable
from neurobench_datasets._roi_series import position_groups
from neurobench_datasets._tables import explain_unreadable, read_table

STATES: Mapping[str, tuple[str, ...]] = {
    "rest": ("rest", "resting", "restingstate", "eyesopen", "eyesclosed"),
    "auditory": ("auditory", "aef", "passive", "tones"),
    "somatosensory": ("somatosensory", "sef", "mns", "somato", "mediannerve"),
}
"""State of a recording: task labels that mean it."""

SENSORS = ("mag", "all")
LOBES = tuple(
    f"{side}-{lobe}" for side in ("Left", "Right") for lobe in ("temporal", "parietal", "occipital", "frontal")
)
FILES = (".fif", ".fif.gz", ".con", ".sqd")
FOLDERS = (".ds",)
NOT_RAW = re.compile(r"[-_](ave|eve|cov|epo|fwd|inv|src|trans|ica|proj|evoked|crosstalk|calibration)(\.fif|\.fif\.gz)$")
BIDS_NAME = re.compile(
    r"sub-(?P<sub>[^_]+)(_ses-(?P<ses>[^_]+))?(_task-(?P<task>[^_]+))?(_acq-(?P<acq>[^_]+))?(_run-(?P<run>[^_]+))?"
    r"(_proc-(?P<proc>[^_]+))?(_split-(?P<split>[^_]+))?_meg(\.fif|\.fif\.gz|\.ds|\.con|\.sqd)?"
)
VECTORVIEW = re.compile(r"MEG\s?(\d{4})")
CTF = re.compile(r"(M[LRZ][CFOPT])\d\d")


# ---------------------------------------------------------------- finding


def candidates(root: Path) -> Iterator[Path]:
    """Yield every file or vendor folder under ``root`` whose name says MEG, in a fixed order."""
    for path in sorted(root.rglob("*")):
        # Hidden folders hold a version control's copies, some under the names of recordings.
        inside = path.relative_to(root).parts
        if any(p.endswith(FOLDERS) for p in inside[:-1]) or any(p.startswith(".") for p in inside):
            continue
        name = path.name
        if path.is_dir():
            # 4D/BTi recordings are a folder that holds a `config`.
            if name.endswith(FOLDERS) or (name.endswith("_meg") and (path / "config").is_file()):
                yield path
        elif name.endswith(FILES) and not NOT_RAW.search(name):
            yield path


def list_bids_meg(
    root: Path, states: Mapping[str, tuple[str, ...]] | None = None, sensors: str = "mag"
) -> tuple[list[RecordingFile], list[Finding]]:
    """Find the recordings of a BIDS-MEG tree.

    Of several processings of one recording the cleaned one (``proc-``) is taken, of a split file the first part, which
    leads to the others. Recordings of one state that differ in task or acquisition are runs of it. Empty-room
    recordings are left out.

    Parameters
    ----------
    root
        Folder with ``sub-…`` folders.
    states
        State to the task labels that mean it; :data:`STATES` by default. Another label is a state of its own.
    sensors
        ``mag`` or ``all``, see :func:`read_meg_file`.
    """
    findings: list[Finding] = []
    strange: list[Path] = []
    chosen: dict[tuple[str, ...], tuple[Path, str]] = {}
    for path in candidates(root):
        match = BIDS_NAME.fullmatch(path.name)
        if match is None:
            if path.name.startswith("sub-"):
                strange.append(path)
            continue
        if match["sub"].lower() == "emptyroom" or match["split"] not in (None, "01", "1"):
            continue
        key = tuple(match[part] or "" for part in ("sub", "ses", "task", "acq", "run"))
        if key not in chosen or (match["proc"] and not chosen[key][1]):
            chosen[key] = (path, match["proc"] or "")
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
        file = _listed(f"sub-{sub}", path, findings, session=ses, state=state, run=run, sensors=sensors)
        if file is not None:
            files.append(file)
    return sorted(files, key=lambda f: f.id), findings


def list_folder(root: Path, sensors: str = "mag") -> tuple[list[RecordingFile], list[Finding]]:
    """Find the recordings of a plain folder: each file is a subject of its own, which a finding says."""
    findings: list[Finding] = []
    files = []
    for path in candidates(root):
        subject = re.sub(r"(\.fif|\.fif\.gz|\.ds|\.con|\.sqd)$", "", path.name)
        file = _listed(re.sub(r"[^A-Za-z0-9-]+", "-", subject), path, findings, sensors=sensors)
        if file is not None:
            files.append(file)
    if files:
        text = (
            f"{root.name} has no participants.tsv: each of its {len(files)} recordings counts as a subject of its own"
        )
        findings.append(
            Finding("warning", "no-participants", text, fix="write participants.tsv, or use --split within-recording")
        )
    return files, findings


def state_of(task: str, states: Mapping[str, tuple[str, ...]]) -> str:
    """Return the state that a task label means; the label itself where none does."""
    label = re.sub(r"[^a-z0-9]", "", task.lower())
    for state, labels in states.items():
        if label in labels or label == state:
            return state
    return label or "rest"


def _listed(
    subject: str,
    path: Path,
    findings: list[Finding],
    *,
    sensors: str,
    session: str = "",
    state: str = "rest",
    run: str = "",
) -> RecordingFile | None:
    """Return a recording with what its header and sidecar say, or None and a finding."""
    try:
        sfreq = float(open_raw(path).info["sfreq"])
        bads = bad_channels(path)
    except DataError as error:
        findings.append(Finding("error", "unreadable", str(error), subject=subject, path=str(path)))
        return None
    return RecordingFile(
        subject, path, sfreq, session=session, state=state, run=run, options={"sensors": sensors, "bads": bads}
    )


def bad_channels(path: Path) -> list[str]:
    """Return the channels that ``channels.tsv`` beside a recording (or a level up) marks as bad, names normalised."""
    match = BIDS_NAME.fullmatch(path.name)
    if match is None:
        return []
    stem = re.sub(r"(_split-[^_]+)?_meg(\.[a-z.]+)?$", "", path.name)
    without_run = re.sub(r"_(run|proc)-[^_]+", "", stem)
    for folder in (path.parent, path.parent.parent):
        for name in (f"{stem}_channels.tsv", f"{without_run}_channels.tsv"):
            if (folder / name).is_file():
                table = read_table(folder / name)
                if {"name", "status"} <= set(table.columns):
                    bad = table["status"].str.lower() == "bad"
                    return sorted(normalised(n) for n in table["name"][bad.fillna(False)])
    return []


# ---------------------------------------------------------------- reading


def open_raw(path: Path) -> Any:
    """Open a recording without reading its signal.

    Raises
    ------
    DataError
        In plain words, if it cannot be opened.
    """
    if why := explain_unreadable(path, whole=False) if not path.is_dir() else "":
        raise DataError(f"{path.name} {why}.")
    # Recordings with internal active shielding are opened too; what is done about it is the reader's to say.
    options = {"allow_maxshield": "yes"} if path.name.endswith((".fif", ".fif.gz")) else {}
    try:
        with warnings.catch_warnings(), mne.use_log_level("ERROR"):
            warnings.simplefilter("ignore")
            if path.is_dir() and path.name.endswith("_meg"):
                return mne.io.read_raw_bti(path / "c,rfDC", config_fname=path / "config", head_shape_fname=None)
            return mne.io.read_raw(path, preload=False, **options)
    except Exception as error:
        text = " ".join(str(error).split())
        # What MNE says of a .fif file without an end differs with where it ends.
        fif = path.name.endswith((".fif", ".fif.gz"))
        reason = "is cut off or damaged" if fif else "cannot be opened"
        raise DataError(
            f"{path.name} {reason} ({type(error).__name__}: {text[:160]}).",
            next_step="Download or copy it again; `mne.io.read_raw` has to open it.",
        ) from error


def normalised(name: str) -> str:
    """Return a sensor's name in one style: ``MEG 0113`` (not ``MEG0113``), ``MLC11`` (not ``MLC11-4304``)."""
    if match := VECTORVIEW.fullmatch(name):
        return f"MEG {match[1]}"
    return re.sub(r"-\d+$", "", name)


def read_meg_file(file: RecordingFile) -> RawRecording:
    """Read a recording: one row a sensor, in tesla or tesla per metre; rows of bad channels are NaN.

    The option ``sensors`` is ``mag`` (one sensor a site: the magnetometer where there is one, else the system's own
    coil, one of each pair of planar gradiometers) or ``all``.

    Raises
    ------
    DataError
        If the file cannot be read or holds no MEG sensor.
    """
    raw = open_raw(file.path)
    picks = mne.pick_types(raw.info, meg=True, ref_meg=False, exclude=())
    if len(picks) == 0:
        raise DataError(f"{file.path.name} holds no MEG sensor.", allowed="magnetometers, gradiometers")
    kinds = np.array([mne.channel_type(raw.info, i) for i in picks])
    sites = _sites(raw.info, picks)
    if file.options.get("sensors", "mag") == "mag":
        keep = _one_a_site(kinds, sites)
        picks, kinds, sites = picks[keep], kinds[keep], sites[keep]
    try:
        data = raw.get_data(picks=picks)
    except Exception as error:
        raise DataError(
            f"{file.path.name} opens, but its signal cannot be read ({type(error).__name__}: {error}).",
            next_step="It is probably cut off: download or copy it again.",
        ) from error
    names = [normalised(raw.ch_names[i]) for i in picks]
    bad = {normalised(b) for b in raw.info["bads"]} | set(file.options.get("bads", ()))
    data[[n in bad for n in names]] = np.nan
    position, frame = _positions(raw.info, picks)
    groups, source = _groups(names, position)
    provenance = [f"sensor positions in {frame} coordinates"]
    if raw.info.get("maxshield"):
        provenance.append("recorded with internal active shielding and not processed by MaxFilter: read as it is")
    if any("sss" in str(p).lower() for p in raw.info.get("proc_history") or ()):
        provenance.append("processed by signal-space separation (MaxFilter)")
    table = UnitTable.from_groups(
        names=tuple(names),
        groups=tuple(groups),
        position_mm=position,
        types=tuple(kinds.tolist()),
        sites=sites,
        group_source=source,
    )
    return RawRecording(data.astype(np.float32), float(raw.info["sfreq"]), table, tuple(provenance))


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

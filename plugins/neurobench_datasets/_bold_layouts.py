"""Where 4-D BOLD lies on people's disks: fMRIPrep's derivatives, Athena's, nilearn's download, SPM's, and raw images.

Every function lists one layout; none reads a signal. Raw images are in the scanner's space, where no atlas and no grid
fits them: they are counted and named, with what to run.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neurobench import DataError, Finding, RecordingFile
from neurobench_datasets._tables import explain_unreadable, number, read_json, read_table, unreadable

BOLD = "_desc-preproc_bold.nii.gz"
SPACES = ("MNI152NLin2009cAsym", "MNI152NLin6Asym", "MNI152Lin", "MNI152NLin6Sym")
"""Spaces that atlases in MNI coordinates fit, in order of preference."""

ATHENA = re.compile(r"(?P<kind>sf?nwmrda)(?P<id>\d+)_session_(?P<session>\d+)_rest_(?P<run>\d+)\.nii(\.gz)?")
NIAK = re.compile(r"fmri_.*_session_?\d+_run_?\d+.*\.nii(\.gz)?|tseries_.*\.mat")
NILEARN = re.compile(r"(?P<id>\d+)_rest_tshift_RPI_voreg_mni\.nii\.gz")
SPM = re.compile(r"(?P<smoothed>s\d*)?w(?P<steps>[aru]*)(?P<name>sub-(?P<sub>[A-Za-z0-9]+)(?P<what>.*))\.nii(\.gz)?")
RAW = re.compile(r"(sub-(?P<sub>[A-Za-z0-9]+)_.*_bold|sub-(?P<cc>CC\d{6})_epi_rest)\.nii(\.gz)?")

T_R_LIMITS = (0.3, 5.0)
"""Repetition times outside these (seconds) are none."""

SAME_BYTES = 1 << 20
"""Files of one size that agree in this many first bytes are copies."""


def openable(files: Iterable[RecordingFile], findings: list[Finding]) -> list[RecordingFile]:
    """Return the recordings whose files are what their names say; the others become findings."""
    kept = []
    for file in files:
        try:
            why = explain_unreadable(file.path, whole=False)
        except OSError as error:
            why = f"cannot be opened ({error.strerror})"
        if why:
            text = f"{file.path.name} {why}"
            findings.append(Finding("error", "unreadable", text, subject=file.subject, path=str(file.path)))
        else:
            kept.append(file)
    return kept


def without_copies(files: Iterable[RecordingFile], findings: list[Finding]) -> list[RecordingFile]:
    """Return the recordings less those that are copies of another subject's, which are named.

    Only files of one size are opened, and of those the first MiB is compared.
    """
    files = list(files)
    by_size: dict[int, list[RecordingFile]] = defaultdict(list)
    for file in files:
        by_size[file.path.stat().st_size].append(file)
    seen: dict[tuple[int, bytes], RecordingFile] = {}
    left_out = set()
    for size, same in by_size.items():
        for file in same if len(same) > 1 else ():
            with open(file.path, "rb") as stream:
                key = (size, hashlib.sha256(stream.read(SAME_BYTES)).digest())
            first = seen.setdefault(key, file)
            if first.subject != file.subject:
                text = f"{file.path.name} is a copy of {first.path.name} of {first.subject}, and is left out"
                fix = "find out whose recording it is: one person under two ids leaks from training to test"
                findings.append(
                    Finding("error", "duplicate-recording", text, fix=fix, subject=file.subject, path=str(file.path))
                )
                left_out.add(id(file))
    return [f for f in files if id(f) not in left_out]


# ---------------------------------------------------------------- fMRIPrep


def list_fmriprep(
    root: Path, *, bids_task: str, beside: Mapping[str, Path]
) -> tuple[list[RecordingFile], list[Finding]]:
    """List preprocessed BOLD in MNI space under a folder; subjects are labels without ``sub-``.

    Parameters
    ----------
    root
        Derivatives folder, or a folder that contains it.
    bids_task
        Task label to use; empty: all, the label becoming the state.
    beside
        Files that every recording is read with: the atlas.
    """
    findings: list[Finding] = []
    best: dict[tuple[str, str, str, str], tuple[int, Path]] = {}
    other_tasks: set[str] = set()
    wrong: dict[tuple[str, str, str, str], tuple[str, Path]] = {}
    for path in sorted(root.rglob(f"sub-*{BOLD}")):
        entities = dict(re.findall(r"(sub|ses|task|run|space|echo)-([A-Za-z0-9]+)", path.name))
        task = entities.get("task", "rest")
        if bids_task and task.lower() != bids_task.lower():
            other_tasks.add(task)
            continue
        key = (entities["sub"], entities.get("ses", ""), task.lower(), entities.get("run", ""))
        space = entities.get("space", "")
        if space not in SPACES:
            wrong[key] = (space, path)
            continue
        rank = SPACES.index(space)
        if key not in best or rank < best[key][0]:
            best[key] = (rank, path)
    for key, (space, path) in wrong.items():
        if key not in best:
            text = f"{path.name} is in space {space or 'of the scanner'}, which no atlas in MNI coordinates fits"
            fix = f"run fMRIPrep with --output-spaces {SPACES[0]}"
            findings.append(Finding("warning", "wrong-space", text, subject=key[0], path=str(path), fix=fix))
    found = []
    for (subject, session, task, run), (_, path) in sorted(best.items()):
        files = dict(beside)
        mask = path.with_name(path.name.replace("_desc-preproc_bold", "_desc-brain_mask"))
        if mask.is_file():
            files["mask"] = mask
        table = confounds_file(path)
        if table is not None:
            files["confounds"] = table
        found.append(RecordingFile(subject, path, 1.0, session, task, run, {"layout": "fmriprep"}, files))
    kept = _with_repetition_time(openable(found, findings), root, findings)
    if other_tasks:
        text = f"other tasks are there and not used: {', '.join(sorted(other_tasks))}"
        findings.append(Finding("info", "other-tasks", text, fix="say bids_task="))
    return without_copies(kept, findings), findings


def _with_repetition_time(files: list[RecordingFile], root: Path, findings: list[Finding]) -> list[RecordingFile]:
    timed = []
    for file in files:
        try:
            timed.append(replace(file, sfreq=1 / repetition_time(file.path, root)))
        except DataError as error:
            findings.append(
                Finding(
                    "error",
                    "no-repetition-time",
                    str(error),
                    subject=file.subject,
                    path=str(file.path),
                    fix=error.next_step,
                )
            )
    return timed


def repetition_time(path: Path, root: Path) -> float:
    """Return the repetition time in seconds: a sidecar's, here or in a folder above, else the header's if plausible.

    Raises
    ------
    DataError
        If neither says a plausible one, or they contradict each other.
    """
    import nibabel as nib

    said, where = _sidecar_time(path, root)
    low, high = T_R_LIMITS
    try:
        header: Any = nib.load(path).header
        zooms, unit = header.get_zooms(), header.get_xyzt_units()[1]
    except Exception as error:
        if said is not None:
            return said  # What is wrong with the image is said where it is read.
        raise unreadable(path, error) from error
    zoom = float(zooms[3]) if len(zooms) > 3 else 0.0
    if said is not None:
        seconds = zoom * (0.001 if unit == "msec" else 1.0)
        # Programs that do not know the time write 0 or 1, or no unit; anything else has been meant.
        if unit in ("sec", "msec") and low <= seconds <= high and zoom != 1.0 and abs(seconds - said) > 0.02 * said:
            raise DataError(
                f"{where} says a repetition time of {said:g} s, and the header of {path.name} {seconds:g} s.",
                next_step="Find out which is right, and correct the other one.",
            )
        return said
    if unit == "sec" and low <= zoom <= high:
        return zoom
    raise DataError(
        f"nothing says the repetition time of {path.name}: no sidecar with RepetitionTime, and its header says "
        f"{zoom:g} ({unit}).",
        next_step="Copy the JSON sidecars of the BOLD files too.",
    )


def _sidecar_time(path: Path, root: Path) -> tuple[float | None, str]:
    """Return RepetitionTime and the name of the sidecar that says it; those in folders above hold for all below."""
    task = re.search(r"task-[A-Za-z0-9]+", path.name)
    names = [re.sub(r"\.nii(\.gz)?$", ".json", path.name)]
    names += [f"{task.group()}_bold.json", f"{task.group()}_acq-1_bold.json"] if task else []
    for folder in [path.parent, *path.parent.parents]:
        for name in names:
            if (folder / name).is_file():
                content = read_json(folder / name)
                if "RepetitionTime" in content:
                    return _plausible(number(content, "RepetitionTime", name), name), name
        if folder == root:
            break
    return None, ""


def _plausible(seconds: float, where: str) -> float:
    low, high = T_R_LIMITS
    if low <= seconds <= high:
        return seconds
    ms = "; it may be in milliseconds" if low <= seconds / 1000 <= high else ""
    raise DataError(
        f"{where} says a RepetitionTime of {seconds:g} s, which is none{ms}.",
        allowed=f"{low:g} to {high:g} s",
        next_step="Correct the sidecar: RepetitionTime is in seconds.",
    )


def confounds_file(path: Path) -> Path | None:
    """Return fMRIPrep's table of confounds beside a BOLD file."""
    stem = re.sub(r"(_space-[A-Za-z0-9]+)?(_res-[A-Za-z0-9]+)?$", "", path.name.removesuffix(BOLD))
    candidates = [path.with_name(f"{stem}_desc-confounds_{kind}.tsv") for kind in ("timeseries", "regressors")]
    return next((c for c in candidates if c.is_file()), None)


def mean_displacement(file: RecordingFile) -> float:
    """Return the mean framewise displacement in mm from the confounds beside a recording; NaN if there are none.

    fMRIPrep's own, or Power's (doi:10.1016/j.neuroimage.2011.10.018) from six motion parameters: rotations on a sphere
    of 50 mm; AFNI's are three rotations in degrees and then three shifts, SPM's three shifts and then radians.
    """
    table = file.beside.get("confounds")
    if table is None:
        return float("nan")
    try:
        if table.suffix == ".tsv":
            column = read_table(table).get("framewise_displacement")
            return float("nan") if column is None else float(pd.to_numeric(column, errors="coerce").mean())
        if table.suffix == ".csv":
            return float("nan")
        values = np.loadtxt(table, ndmin=2)
    except (DataError, ValueError):
        return float("nan")
    if values.shape[1] != 6:
        return float("nan")
    change = np.abs(np.diff(values, axis=0))
    if file.options.get("layout") == "athena":
        return float((np.deg2rad(change[:, :3]).sum(1) * 50 + change[:, 3:].sum(1)).mean())
    return float((change[:, :3].sum(1) + change[:, 3:].sum(1) * 50).mean())


def mean_displacements(recordings: Iterable[RecordingFile]) -> pd.Series:
    """Return the mean framewise displacement of every subject in mm: the mean of those recordings that say one."""
    rows = [(r.subject, mean_displacement(r)) for r in recordings]
    table = pd.DataFrame(rows, columns=["subject", "mean_fd"]).astype({"mean_fd": float})
    means: pd.Series = table.groupby("subject")["mean_fd"].mean()
    return means


# ---------------------------------------------------------------- ADHD-200's own


def list_athena(
    root: Path, *, filtered: bool, beside: Mapping[str, Path], findings: list[Finding]
) -> list[RecordingFile]:
    """List Athena's preprocessed volumes, filtered or not; the repetition time is the site's and not set here.

    The first four volumes are removed already.
    """
    wanted = "sfnwmrda" if filtered else "snwmrda"
    files = []
    for path in sorted(root.rglob("s*nwmrda*.nii*")):
        match = ATHENA.fullmatch(path.name)
        if match is None or match["kind"] != wanted:
            continue
        own = dict(beside)
        motion = path.with_name(f"rp_{match['id']}_session_{match['session']}_rest_{match['run']}.1D")
        if motion.is_file():
            own["confounds"] = motion
        options = {"layout": "athena"}
        subject = match["id"].zfill(7)
        files.append(RecordingFile(subject, path, 1.0, match["session"], "rest", match["run"], options, own))
    return without_copies(openable(files, findings), findings)


def list_nilearn(root: Path, *, beside: Mapping[str, Path], findings: list[Finding]) -> list[RecordingFile]:
    """List what ``nilearn.datasets.fetch_adhd`` downloads; the repetition time is the site's and not set here."""
    files = []
    for path in sorted(root.rglob("*_rest_tshift_RPI_voreg_mni.nii.gz")):
        match = NILEARN.fullmatch(path.name)
        if match:
            own = dict(beside)
            table = path.with_name(f"{match['id']}_regressors.csv")
            if table.is_file():
                own["confounds"] = table
            files.append(RecordingFile(match["id"].zfill(7), path, 1.0, options={"layout": "nilearn"}, beside=own))
    return without_copies(openable(files, findings), findings)


# ---------------------------------------------------------------- SPM, raw


def spm_images(root: Path) -> list[tuple[Path, re.Match[str]]]:
    """Return images that SPM has normalised (``wrsub-…``, ``swuasub-…``, ``wsub-…``), and what their names say."""
    found = [(p, SPM.fullmatch(p.name)) for p in sorted(root.rglob("*w*sub-*.nii*"))]
    return [(p, m) for p, m in found if m is not None]


def list_spm(root: Path, *, beside: Mapping[str, Path], t_r: float, findings: list[Finding]) -> list[RecordingFile]:
    """List SPM's normalised images at rest, with the motion parameters beside them; not smoothed ones are preferred.

    Parameters
    ----------
    t_r
        Repetition time in seconds of images that no sidecar says one of.
    """
    best: dict[tuple[str, str, str], RecordingFile] = {}
    others: list[Path] = []
    # Not smoothed ones come first, and so win.
    for path, match in sorted(spm_images(root), key=lambda i: bool(i[1]["smoothed"])):
        # A T1 is normalised under the same prefix, and so are films and tasks, whose repetition time is another.
        if match["what"] and "rest" not in match["what"].lower():
            others.append(path)
            continue
        entities = dict(re.findall(r"_(ses|run)-([A-Za-z0-9]+)", match["what"]))
        key = (match["sub"], entities.get("ses", ""), entities.get("run", ""))
        if key in best:
            if not match["smoothed"]:
                text = f"{path.name} is a second image of one recording; {best[key].path.name} is used"
                findings.append(Finding("warning", "duplicate-recording", text, subject=match["sub"], path=str(path)))
            continue
        own = dict(beside)
        # Realignment names its parameters after what it was given: the image, or the one with corrected slice times.
        names = [f"rp_{match['name']}.txt", f"rp_a{match['name']}.txt"]
        motion = next((path.with_name(n) for n in names if path.with_name(n).is_file()), None)
        if motion is not None:
            own["confounds"] = motion
        try:
            # Sidecars keep the name that the image had before SPM.
            said, _ = _sidecar_time(path, root)
            said = said or _sidecar_time(path.with_name(f"{match['name']}.nii"), root)[0]
        except DataError as error:
            findings.append(Finding("error", "no-repetition-time", str(error), subject=match["sub"], path=str(path)))
            continue
        best[key] = RecordingFile(
            match["sub"], path, 1 / (said or t_r), key[1], "rest", key[2], {"layout": "spm"}, beside=own
        )
    if others:
        text = f"{len(others)} normalised images are not of rest and not used ({others[0].name}, …)"
        findings.append(Finding("info", "other-tasks", text, path=str(others[0])))
    return without_copies(openable(best.values(), findings), findings)


def raw_images(root: Path) -> list[Path]:
    """Return the raw BOLD images under a folder: in the scanner's space, as a converter to BIDS left them."""
    found = sorted(root.rglob("*_bold.nii*")) + sorted(root.rglob("*_epi_rest.nii*"))
    return [p for p in found if RAW.fullmatch(p.name) and "_desc-" not in p.name and "_space-" not in p.name]


def raw_finding(images: list[Path]) -> Finding:
    """Return what to say of raw images."""
    people = {m["sub"] or m["cc"] for p in images if (m := RAW.fullmatch(p.name))}
    return Finding(
        "warning",
        "raw-images",
        f"{len(images)} raw images of {len(people)} people ({images[0].name}, …) are in the scanner's space, where no "
        "atlas fits them; they are not used",
        fix=f"run fMRIPrep with --output-spaces {SPACES[0]} and give its derivatives",
        path=str(images[0]),
    )

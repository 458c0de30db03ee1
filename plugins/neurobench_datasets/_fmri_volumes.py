"""fMRIPrep derivatives to ROI time series, through nilearn: an atlas image, the brain mask, confounds removed."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neurobench import ConfigError, DataError, Finding, RawRecording, RecordingFile, closest
from neurobench_datasets._roi_series import MIN_TIMES, evenly, units_of
from neurobench_datasets._tables import explain_unreadable, find_column, read_table, unreadable

BOLD = "_desc-preproc_bold.nii.gz"
SPACES = ("MNI152NLin2009cAsym", "MNI152NLin6Asym", "MNI152Lin", "MNI152NLin6Sym")
"""Spaces that atlases in MNI coordinates fit, in order of preference."""
CONFOUNDS = ("motion", "wm_csf", "high_pass", "global_signal", "compcor")


def check_confounds(confounds: str, component: str) -> tuple[str, ...]:
    """Return the parts of ``motion+wm_csf``; empty for ``none``.

    Raises
    ------
    ConfigError
        If a part is none of nilearn's strategies that need nothing else.
    """
    parts = () if confounds == "none" else tuple(confounds.split("+"))
    for part in parts:
        if part not in CONFOUNDS:
            raise ConfigError(
                f"{component} has no confounds {part!r}.",
                allowed=f"none, or some of {', '.join(CONFOUNDS)} joined by +",
                likely=closest(part, CONFOUNDS),
            )
    # nilearn wants the cosines beside CompCor.
    return (*parts, "high_pass") if "compcor" in parts and "high_pass" not in parts else parts


# ---------------------------------------------------------------- listing


def atlas_digest(atlas: Path, component: str) -> str:
    """Return a hash of an atlas image and of the table beside it, so that a changed atlas is another one.

    Raises
    ------
    DataError
        If the image does not exist.
    """
    if not atlas.is_file():
        raise DataError(f"the atlas {atlas} does not exist.", next_step=f"Check the path in {component}[atlas=…].")
    files = [atlas, *filter(None, [_names_beside(atlas)])]
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()


def _names_beside(atlas: Path) -> Path | None:
    stem = re.sub(r"\.nii(\.gz)?$", "", atlas.name)
    return next((atlas.with_name(stem + s) for s in (".tsv", ".csv") if atlas.with_name(stem + s).is_file()), None)


def list_fmriprep(root: Path, *, bids_task: str, atlas: str) -> tuple[list[RecordingFile], list[Finding]]:
    """List preprocessed BOLD in MNI space under a folder; subjects are labels without ``sub-``.

    Parameters
    ----------
    root
        Derivatives folder, or a folder that contains it.
    bids_task
        Task label to use; empty: all, the label becoming the state.
    atlas
        Digest of the atlas, kept with every recording.
    """
    findings: list[Finding] = []
    best: dict[tuple[str, str, str, str], tuple[int, Path]] = {}
    other_tasks: set[str] = set()
    for path in sorted(root.rglob(f"sub-*{BOLD}")):
        entities = dict(re.findall(r"(sub|ses|task|run|space|echo)-([A-Za-z0-9]+)", path.name))
        task = entities.get("task", "rest")
        if bids_task and task.lower() != bids_task.lower():
            other_tasks.add(task)
            continue
        key = (entities["sub"], entities.get("ses", ""), task.lower(), entities.get("run", ""))
        space = entities.get("space", "")
        if space not in SPACES:
            if key not in best:
                text = f"{path.name} is in space {space or 'of the scanner'}, which no atlas in MNI coordinates fits"
                findings.append(
                    Finding("warning", "wrong-space", text, subject=key[0], path=str(path), fix=f"use {SPACES[0]}")
                )
            continue
        rank = SPACES.index(space)
        if key not in best or rank < best[key][0]:
            best[key] = (rank, path)
    recordings = []
    for (subject, session, task, run), (_, path) in sorted(best.items()):
        why = explain_unreadable(path, whole=False)
        if why:
            findings.append(Finding("error", "unreadable", f"{path.name} {why}", subject=subject, path=str(path)))
            continue
        try:
            seconds = repetition_time(path, root)
        except DataError as error:
            findings.append(
                Finding("error", "no-repetition-time", str(error), subject=subject, path=str(path), fix=error.next_step)
            )
            continue
        recordings.append(
            RecordingFile(subject, path, 1 / seconds, session=session, state=task, run=run, options={"atlas": atlas})
        )
    if other_tasks:
        text = f"other tasks are there and not used: {', '.join(sorted(other_tasks))}"
        findings.append(Finding("info", "other-tasks", text, fix="say bids_task="))
    return recordings, findings


def repetition_time(path: Path, root: Path) -> float:
    """Return the repetition time in seconds: a sidecar's, here or in a folder above, else the header's if plausible.

    Raises
    ------
    DataError
        If neither says a plausible one.
    """
    import nibabel as nib

    task = re.search(r"task-[A-Za-z0-9]+", path.name)
    names = [path.name.removesuffix(".nii.gz") + ".json"]
    names += [f"{task.group()}_bold.json"] if task else []
    for folder in [path.parent, *path.parent.parents]:
        for name in names:
            if (folder / name).is_file():
                try:
                    content = json.loads((folder / name).read_text(encoding="utf-8-sig"))
                except ValueError as error:
                    raise DataError(f"{name} is not JSON: {error}.") from error
                if "RepetitionTime" in content:
                    return float(content["RepetitionTime"])
        if folder == root:
            break
    try:
        header: Any = nib.load(path).header
        zoom, unit = float(header.get_zooms()[3]), header.get_xyzt_units()[1]
    except Exception as error:
        raise unreadable(path, error) from error
    if unit == "sec" and 0.3 <= zoom <= 5:
        return zoom
    raise DataError(
        f"nothing says the repetition time of {path.name}: no sidecar with RepetitionTime, and its header says "
        f"{zoom:g} ({unit}).",
        next_step="Copy the JSON sidecars of the BOLD files too.",
    )


def mean_displacement(path: Path) -> float:
    """Return the mean framewise displacement in mm from the confounds beside a BOLD file; NaN if there are none."""
    table = confounds_file(path)
    if table is None:
        return float("nan")
    column = read_table(table).get("framewise_displacement")
    return float("nan") if column is None else float(pd.to_numeric(column, errors="coerce").mean())


def confounds_file(path: Path) -> Path | None:
    """Return fMRIPrep's table of confounds beside a BOLD file."""
    stem = re.sub(r"(_space-[A-Za-z0-9]+)?(_res-[A-Za-z0-9]+)?$", "", path.name.removesuffix(BOLD))
    candidates = [path.with_name(f"{stem}_desc-confounds_{kind}.tsv") for kind in ("timeseries", "regressors")]
    return next((c for c in candidates if c.is_file()), None)


# ---------------------------------------------------------------- reading


def read_fmriprep(file: RecordingFile, *, atlas: Path, confounds: tuple[str, ...], n_units: int) -> RawRecording:
    """Read the mean signal of every region of an atlas.

    Raises
    ------
    DataError
        If the image, its mask or its confounds cannot be used.
    """
    import nibabel as nib
    from nilearn.maskers import NiftiLabelsMasker

    table = atlas_regions(atlas, str(file.options["atlas"]))
    why = explain_unreadable(file.path)
    if why:
        raise unreadable(file.path)
    try:
        image: Any = nib.load(file.path)
    except Exception as error:
        raise unreadable(file.path, error) from error
    if image.ndim != 4 or image.shape[3] < MIN_TIMES:
        raise DataError(f"{file.path.name} has shape {image.shape}; a 4-D image of {MIN_TIMES} volumes is the least.")
    if np.allclose(image.affine, np.eye(4)):
        raise DataError(f"{file.path.name} has no position in space (identity affine), so no atlas fits it.")
    mask = file.path.with_name(file.path.name.replace("_desc-preproc_bold", "_desc-brain_mask"))
    said = [f"mean signal of the regions of {atlas.name}"]
    said.append("inside the brain mask" if mask.is_file() else "no brain mask beside the image")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        regressors = None
        if confounds and confounds_file(file.path) is not None:
            regressors = load_regressors(file.path, confounds)
            said.append(f"confounds removed: {', '.join(confounds)}")
        else:
            said.append("no confounds removed" + (": there is no table of them" if confounds else ""))
        masker = NiftiLabelsMasker(
            labels_img=str(atlas),
            mask_img=str(mask) if mask.is_file() else None,
            standardize=None,
            detrend=True,
            resampling_target="data",
        )
        try:
            series = masker.fit_transform(image, confounds=regressors)
        except Exception as error:
            raise unreadable(file.path, error) from error
    kept = [
        int(v) for k, v in sorted(masker.region_ids_.items(), key=lambda i: str(i[0]).zfill(6)) if k != "background"
    ]
    said += sorted({f"nilearn: {str(w.message).splitlines()[0]}" for w in caught if w.category is UserWarning})
    # Regions that no voxel is left of stay as NaN, so that every recording has the same units.
    data = np.full((len(table), series.shape[0]), np.nan)
    data[table["label"].isin(kept).to_numpy()] = series.T
    index = evenly(len(table), n_units)
    return RawRecording(data[index], file.sfreq, units_of(table).take(index), tuple(said))


def load_regressors(path: Path, confounds: tuple[str, ...]) -> pd.DataFrame:
    """Return confounds by nilearn's reading of fMRIPrep's table, without its removal of volumes."""
    from nilearn.interfaces.fmriprep import load_confounds

    try:
        table, _ = load_confounds(str(path), strategy=confounds, motion="full", wm_csf="basic")
    except Exception as error:
        raise DataError(
            f"the confounds of {path.name} cannot be read: {error}",
            next_step="Say confounds=none, or name fewer of them, for example confounds=motion.",
        ) from error
    # The first derivative of motion has no first value.
    return table.fillna(0.0)


@lru_cache(maxsize=4)
def atlas_regions(atlas: Path, digest: str) -> pd.DataFrame:
    """Return the regions of a label image: label, name, group and centre (mm); a new ``digest`` reads it anew.

    Names and groups come from a table of the same name beside the image (``.csv`` or ``.tsv`` with columns label or
    index, name, group).

    Raises
    ------
    DataError
        If the image cannot be used as an atlas.
    """
    import nibabel as nib

    if explain_unreadable(atlas):
        raise unreadable(atlas)
    try:
        image: Any = nib.load(atlas)
        labels: NDArray[np.int64] = np.round(np.asarray(image.dataobj)).astype(np.int64)
    except Exception as error:
        raise unreadable(atlas, error) from error
    if labels.ndim != 3:
        raise DataError(f"{atlas.name} has shape {labels.shape}; an atlas is a 3-D image of labels.")
    ids = np.unique(labels)
    ids = ids[ids > 0]
    if len(ids) < 2:
        raise DataError(f"{atlas.name} has {len(ids)} regions; an atlas needs at least two.")
    where = np.nonzero(labels > 0)
    points = nib.affines.apply_affine(image.affine, np.column_stack(where))
    code = np.searchsorted(ids, labels[where])
    count = np.bincount(code)
    centre = np.column_stack([np.bincount(code, points[:, a]) / count for a in range(3)])
    table = pd.DataFrame({"label": ids, "name": [f"label-{i:04d}" for i in ids], "group": ""})
    table[["x", "y", "z"]] = centre
    named = _names_beside(atlas)
    if named is not None:
        frame = read_table(named)
        key = find_column(list(frame.columns), ("label", "index", "id", "code", "value"))
        name = find_column(list(frame.columns), ("name", "region", "region_name"))
        if key and name:
            lookup = frame.assign(_id=pd.to_numeric(frame[key], errors="coerce")).dropna(subset="_id").set_index("_id")
            table["name"] = [lookup[name].get(i, n) for i, n in zip(ids, table["name"], strict=True)]
            if "group" in frame:
                table["group"] = [lookup["group"].fillna("").get(i, "") for i in ids]
    return table

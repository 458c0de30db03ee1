"""Signals of no interest beside a BOLD image: fMRIPrep's table, nilearn's, or the motion parameters of AFNI and SPM."""

from __future__ import annotations

import io
import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neurobench import ConfigError, DataError, RecordingFile, closest
from neurobench_datasets._tables import read_table, read_text

CONFOUNDS = ("motion", "wm_csf", "high_pass", "global_signal", "compcor")

COLUMNS = {
    "motion": r"motion[-_].*",
    "wm_csf": r"(wm|csf)",
    "global_signal": r"global",
    "compcor": r"compcor\d+",
}
"""Columns of the tables that nilearn's ADHD-200 download has, by what they are."""


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


def regressors_of(
    file: RecordingFile, confounds: tuple[str, ...], n_times: int
) -> tuple[NDArray[np.float64] | None, list[str]]:
    """Return (times, regressors) to remove from a recording, or None, and a sentence that says which.

    Parameters
    ----------
    file
        With the table of ``confounds`` beside it, if there is one.
    confounds
        What to remove.
    n_times
        Volumes of the image.

    Raises
    ------
    DataError
        If the table cannot be read or belongs to another image.
    """
    path = file.beside.get("confounds")
    if not confounds:
        return None, ["no confounds removed"]
    if path is None:
        return None, ["no confounds removed: there is no table of them"]
    if path.name.endswith(".tsv"):
        table = _fmriprep(file.path, confounds)
        what = ", ".join(confounds)
    elif path.suffix == ".csv":
        table, what = _named_columns(path, confounds)
    else:
        table, what = _motion(path, confounds)
    if table.empty:
        return None, [f"no confounds removed: {path.name} has none of {', '.join(confounds)}"]
    if len(table) != n_times:
        raise DataError(
            f"{path.name} has {len(table)} rows, and {file.path.name} has {n_times} volumes.",
            next_step="Give the table that belongs to this image, or say confounds=none.",
        )
    return table.to_numpy(np.float64), [f"confounds removed: {what}"]


def _fmriprep(image: Path, confounds: tuple[str, ...]) -> pd.DataFrame:
    """Return confounds by nilearn's reading of fMRIPrep's table, without its removal of volumes."""
    from nilearn.interfaces.fmriprep import load_confounds

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table, _ = load_confounds(str(image), strategy=confounds, motion="full", wm_csf="basic")
    except Exception as error:
        raise DataError(
            f"the confounds of {image.name} cannot be read: {error}",
            next_step="Say confounds=none, or name fewer of them, for example confounds=motion.",
        ) from error
    # The first derivative of motion has no first value.
    return table.fillna(0.0)


def _named_columns(path: Path, confounds: tuple[str, ...]) -> tuple[pd.DataFrame, str]:
    frame = read_table(path).apply(pd.to_numeric, errors="coerce")
    wanted = [COLUMNS[c] for c in confounds if c in COLUMNS]
    chosen = [c for c in frame.columns if any(re.fullmatch(p, c.strip(), re.IGNORECASE) for p in wanted)]
    return frame[chosen].fillna(0.0), ", ".join(chosen)


def _motion(path: Path, confounds: tuple[str, ...]) -> tuple[pd.DataFrame, str]:
    """Return the six motion parameters, their derivatives and the squares of both; units and order do not matter."""
    if "motion" not in confounds:
        return pd.DataFrame(), ""
    lines = [x for x in read_text(path).splitlines() if x.strip() and not x.lstrip().startswith("#")]
    try:
        values = np.loadtxt(io.StringIO("\n".join(lines)), ndmin=2)
    except ValueError as error:
        raise DataError(f"{path.name} holds no table of motion parameters: {error}.") from error
    if values.shape[1] != 6:
        raise DataError(f"{path.name} has {values.shape[1]} columns; motion parameters are six.")
    change = np.diff(values, axis=0, prepend=values[:1])
    both = np.hstack([values, change])
    return pd.DataFrame(np.hstack([both, both**2])), "24 motion parameters"

"""Readers of recordings and images, whose files say themselves where their parts lie."""

from __future__ import annotations

import functools
import io
from pathlib import Path
from typing import Any

import numpy as np
from nibabel import Nifti1Image

from benchmarks.fuzz.reader import Reader
from benchmarks.fuzz.samples import CTF, bold, covariance, ctf, fieldtrip, fif
from neurobench import RecordingFile
from neurobench_datasets._atlases import Atlas, load_labels
from neurobench_datasets._bold_images import read_bold
from neurobench_datasets._bold_layouts import repetition_time
from neurobench_datasets._meg_files import read_meg_file
from neurobench_datasets._meg_noise import noise_covariance


def readers() -> dict[str, Reader]:
    """Return the readers of recordings by name."""
    image = io.BytesIO()
    Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.diag([3.0, 3, 3, 1])).to_stream(image)
    atlas = {"atlas.nii": image.getvalue()}
    return {
        "fif": Reader("x_meg.fif", (fif(),), functools.partial(_meg, "x_meg.fif"), in_place=True),
        **{f"ctf-{end}": _ctf(end) for end in CTF},
        "fieldtrip": Reader("x.mat", (fieldtrip(),), functools.partial(_meg, "x.mat")),
        "noise": Reader("x-cov.fif", (covariance(),), _noise, in_place=True),
        "bold": Reader("x_bold.nii", (bold(),), _bold, in_place=True, beside=atlas),
        "bold-header": Reader("x_bold.nii", (bold(),), lambda f: repetition_time(f / "x_bold.nii", f), in_place=True),
        "atlas": Reader("atlas.nii", (image.getvalue(),), _atlas),
    }


def _meg(name: str, folder: Path) -> Any:
    return read_meg_file(RecordingFile("01", folder / name, 200.0))


def _ctf(end: str) -> Reader:
    """Return the reader of a CTF folder of which one file is damaged."""
    files = {f"x.ds/{CTF[e]}": content for e, content in ctf().items()}
    name = f"x.ds/{CTF[end]}"
    reads = functools.partial(_meg, "x.ds")
    return Reader(name, (files[name],), reads, in_place=end in ("res4", "meg4"), beside=files)


def _noise(folder: Path) -> Any:
    # Another file of one name is told by its time, and two may be written in one tick of the clock.
    noise_covariance.cache_clear()
    return noise_covariance(folder / "x-cov.fif", 0)


def _atlas(folder: Path) -> Any:
    load_labels.cache_clear()
    return load_labels(Atlas(folder / "atlas.nii", None, ""))


def _bold(folder: Path) -> Any:
    file = RecordingFile("01", folder / "x_bold.nii", 0.5, beside={"atlas": folder / "atlas.nii"})
    return read_bold(file, signal="parcels", confounds=())

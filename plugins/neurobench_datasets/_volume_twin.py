"""Simulated 4-D BOLD: the regional signals of the ROI twin in a brain of MNI's shape, and the atlas that belongs to it.

A voxel is 1000 · tissue + 20 · (signal of its region + white noise), smoothed by 1.5 voxels (full width at half
maximum), zero outside the brain, int16, with the repetition time in the header. Voxels of 8 mm keep the files small.
The regions are Voronoi cells around made-up centres in nilearn's MNI152 brain mask; their names say so.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy
from numpy.typing import NDArray

from neurobench_datasets._tables import write_tsv

SPACING_MM = 8.0
ATLAS_MM = 4.0
FWHM_VOXELS = 1.5
BASE, SIGNAL, NOISE = 1000.0, 20.0, 1.0
"""Intensity of tissue, size of one s.d. of a region's signal, and s.d. of a voxel's noise beside it."""


@lru_cache(maxsize=2)
def brain_at(spacing_mm: float) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return the brain mask (x, y, z) at a spacing, and its affine (4, 4)."""
    from nilearn.datasets import load_mni152_brain_mask
    from nilearn.image import resample_img

    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    affine[:3, 3] = [-96.0, -136.0, -80.0]
    shape = tuple(round(edge / spacing_mm) for edge in (200, 232, 184))
    mask = resample_img(
        load_mni152_brain_mask(resolution=2),
        target_affine=affine,
        target_shape=shape,
        interpolation="nearest",
        force_resample=True,
        copy_header=True,
    )
    return np.asarray(mask.get_fdata() > 0), affine


def labels_at(spacing_mm: float, regions: pd.DataFrame) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    """Return (x, y, z) labels 1, 2, … of the regions whose centres are nearest, 0 outside the brain, and the affine."""
    from nibabel.affines import apply_affine

    brain, affine = brain_at(spacing_mm)
    tree = scipy.spatial.cKDTree(regions[["x", "y", "z"]].to_numpy(float))
    _, nearest = tree.query(apply_affine(affine, np.argwhere(brain)))
    labels = np.zeros(brain.shape, np.int16)
    labels[brain] = nearest + 1
    return labels, affine


def write_atlas(root: Path, regions: pd.DataFrame) -> None:
    """Write ``atlas.nii.gz`` and the table of its names and groups."""
    import nibabel as nib

    labels, affine = labels_at(ATLAS_MM, regions)
    nib.save(nib.Nifti1Image(labels, affine), root / "atlas.nii.gz")
    table = pd.DataFrame({"label": np.arange(1, len(regions) + 1), "name": regions["name"], "group": regions["group"]})
    write_tsv(root / "atlas.tsv", table)


def write_volume(
    path: Path, series: NDArray[np.floating[Any]], regions: pd.DataFrame, *, t_r: float, rng: np.random.Generator
) -> None:
    """Write one recording.

    Parameters
    ----------
    path
        The .nii.gz file.
    series
        (times, regions), about unit variance.
    regions
        Table of the regions, with x, y, z in mm.
    t_r
        Repetition time in seconds.
    rng
        Of the voxels' noise.
    """
    import nibabel as nib

    labels, affine = labels_at(SPACING_MM, regions)
    brain = labels > 0
    signal = series.T[labels[brain] - 1] + NOISE * rng.standard_normal((int(brain.sum()), len(series)))
    volume = np.zeros((*labels.shape, len(series)), np.float32)
    volume[brain] = BASE + SIGNAL * signal
    sigma = FWHM_VOXELS / np.sqrt(8 * np.log(2))
    volume = scipy.ndimage.gaussian_filter(volume, (sigma, sigma, sigma, 0))
    volume[~brain] = 0
    image = nib.Nifti1Image(np.round(volume).astype(np.int16), affine)
    image.header.set_xyzt_units("mm", "sec")
    image.header["pixdim"][4] = t_r
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)

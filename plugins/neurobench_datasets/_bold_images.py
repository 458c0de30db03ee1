"""4-D BOLD images in MNI space to parcels or to 3-D patches, in one pass over the compressed file.

Whatever is made of a volume, the mean signal of regions or the voxels of patches on a common grid, is a linear function
of its voxels: one sparse matrix a grid, applied to one volume after another while the file is decompressed. No copy of
the image at full resolution is ever held, and the file is read to its end, where its checksum is compared.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import scipy
from isal import igzip, isal_zlib
from numpy.typing import NDArray

from neurobench import ConfigError, DataError, Finding, RawRecording, RecordingFile, UnitTable
from neurobench_datasets._atlases import Atlas, find_atlas, load_labels, regions_of
from neurobench_datasets._nifti import open_image
from neurobench_datasets._roi_series import MIN_TIMES, evenly, units_of
from neurobench_datasets._tables import explain_unreadable, unreadable

FIELD_MM = 192.0
"""Edge of the cube that is cut into patches: 96 voxels of 2 mm hold every brain in MNI space."""

FIELD_CORNER_MM = (-96.0, -112.0, -90.0)
"""Where the cube begins, to the nearest edge of a voxel."""

APART_MM = 2.0
"""Distance at a corner of the image from which on sform and qform contradict each other."""

OVERLAP = 0.7
"""Dice overlap with the MNI brain below which a brain mask is hardly one in MNI space."""

COVERED = 0.5
"""A voxel of the grid that has less than this share inside the image and its brain mask has no signal."""


# ---------------------------------------------------------------- the file


@dataclass(frozen=True, eq=False)
class BoldFile:
    """A 4-D image, opened and not read.

    Parameters
    ----------
    path
        The file.
    image
        nibabel's image; only its header is used.
    """

    path: Path
    image: Any

    @classmethod
    def open(cls, path: Path) -> BoldFile:
        """Open an image and look at its header.

        Raises
        ------
        DataError
            If it is no 4-D image with a place in space.
        """
        if why := explain_unreadable(path, whole=False):
            raise DataError(f"{path.name} {why}.")
        try:
            image: Any = open_image(path)
        except Exception as error:
            raise unreadable(path, error) from error
        if image.ndim != 4 or image.shape[3] < MIN_TIMES:
            raise DataError(
                f"{path.name} has shape {tuple(image.shape)}; a 4-D image of {MIN_TIMES} volumes is the least.",
                next_step="Give the whole run, not its mean or a single volume.",
            )
        if np.allclose(image.affine, np.eye(4)):
            raise DataError(
                f"{path.name} has no position in space (identity affine), so no atlas fits it.",
                next_step="Write it again with the affine of the preprocessed image.",
            )
        if image.get_data_dtype().kind not in "iuf":
            raise DataError(f"{path.name} holds values of type {image.get_data_dtype()}, not numbers.")
        return cls(path, image)

    @property
    def n_times(self) -> int:
        """Number of volumes."""
        return int(self.image.shape[3])

    @property
    def grid(self) -> tuple[tuple[int, int, int], tuple[float, ...]]:
        """Shape, and affine as a flat tuple: what identifies a grid."""
        return tuple(self.image.shape[:3]), tuple(np.asarray(self.image.affine, float).round(6).ravel().tolist())

    def header_findings(self) -> list[Finding]:
        """Return what the header says of the image's place in space that a reader should look at."""
        header = self.image.header
        if not hasattr(header, "get_sform"):
            return []
        sform, qform = header.get_sform(coded=True), header.get_qform(coded=True)
        if not sform[1] and not qform[1]:
            text = "the header does not say in which space the image is (sform and qform codes are 0)"
            fix = "look whether it lies on the atlas; programs that lose the codes may have lost the place too"
            return [Finding("warning", "no-space-code", text, fix=fix)]
        if sform[1] and qform[1]:
            corners = np.array(np.meshgrid(*[(0, n - 1) for n in self.image.shape[:3]])).reshape(3, -1)
            apart = (sform[0] - qform[0]) @ np.vstack([corners, np.ones(corners.shape[1])])
            distance = float(np.linalg.norm(apart[:3], axis=0).max())
            if distance > APART_MM:
                text = f"the two places that the header gives (sform, qform) are {distance:.0f} mm apart; sform is used"
                fix = "find out which is right: a wrong one may turn left into right"
                return [Finding("warning", "affines-disagree", text, fix=fix)]
        return []

    def volumes(self) -> Iterator[NDArray[Any]]:
        """Yield one volume after another, flat in Fortran order (x fastest), in the file's own numbers.

        Slope and intercept of the header are left out: they are one for the whole recording, and signal is in
        arbitrary units.

        Raises
        ------
        DataError
            If the file ends too early, or its checksum does not fit.
        """
        proxy = self.image.dataobj
        n_bytes = int(np.prod(self.image.shape[:3])) * proxy.dtype.itemsize
        try:
            with _decompressed(self.path) as stream:
                stream.read(proxy.offset)
                for done in range(self.n_times):
                    content = stream.read(n_bytes)
                    if len(content) < n_bytes:
                        raise EOFError(f"volume {done + 1} of {self.n_times} is not whole")
                    volume = np.frombuffer(content, proxy.dtype)
                    yield volume if volume.dtype.isnative else volume.astype(volume.dtype.newbyteorder("="))
                # The checksum of a compressed file is compared at its very end.
                while stream.read(1 << 20):
                    pass
        except EOFError as error:
            raise DataError(
                f"{self.path.name} is cut off: the data end too early.", next_step="Download or copy it again."
            ) from error
        except (OSError, ValueError, isal_zlib.error) as error:
            raise DataError(
                f"{self.path.name} is damaged ({str(error)[:80]}).", next_step="Download or copy it again."
            ) from error


@contextlib.contextmanager
def _decompressed(path: Path) -> Iterator[IO[bytes]]:
    # isal's gzip is several times as fast as zlib's, and decompression is most of the time.
    with igzip.open(path, "rb") if path.name.endswith(".gz") else open(path, "rb") as stream:
        yield stream


# ---------------------------------------------------------------- maps from voxels


@lru_cache(maxsize=4)
def labels_on(shape: tuple[int, int, int], affine: tuple[float, ...], atlas: Atlas) -> NDArray[np.int32]:
    """Return (voxels,) the label of every voxel of a grid, by its nearest neighbour in the atlas; Fortran order."""
    from nibabel.affines import apply_affine

    labels, own = load_labels(atlas)
    index = np.indices(shape).reshape(3, -1).T
    there = np.round(apply_affine(np.linalg.inv(own) @ np.reshape(affine, (4, 4)), index)).astype(int)
    inside = ((there >= 0) & (there < labels.shape)).all(1)
    found = np.zeros(len(index), np.int32)
    found[inside] = labels[tuple(there[inside].T)]
    return found.reshape(shape).ravel(order="F")


def region_map(bold: BoldFile, atlas: Atlas, brain: NDArray[np.bool_] | None) -> scipy.sparse.csr_matrix:
    """Return (regions, voxels): the mean over the voxels of each region; a row is empty where it has none."""
    labels = labels_on(*bold.grid, atlas)
    if brain is not None:
        labels = np.where(brain, labels, 0)
    ids = regions_of(atlas)["label"].to_numpy()
    voxel = np.flatnonzero(labels > 0)
    row = np.searchsorted(ids, labels[voxel])
    count = np.bincount(row, minlength=len(ids))
    return scipy.sparse.csr_matrix((1.0 / count[row], (row, voxel)), shape=(len(ids), labels.size))


@dataclass(frozen=True)
class PatchGrid:
    """How the cube around the brain is cut into voxels and patches.

    Parameters
    ----------
    spacing_mm
        Edge of a voxel.
    patch_voxels
        Voxels along the edge of a patch.
    """

    spacing_mm: float
    patch_voxels: int

    @property
    def n_voxels(self) -> int:
        """Voxels along the edge of the cube."""
        return round(FIELD_MM / self.spacing_mm)

    @property
    def affine(self) -> NDArray[np.float64]:
        """(4, 4) from voxel numbers to mm; voxels are centred on multiples of the spacing, as MNI images' are."""
        s = self.spacing_mm
        first = np.floor(np.array(FIELD_CORNER_MM) / s) * s + s
        affine = np.diag([s, s, s, 1.0])
        affine[:3, 3] = first
        return affine


def check_grid(spacing_mm: float, patch_voxels: int, component: str) -> PatchGrid:
    """Return the grid of the parameters ``spacing_mm`` and ``patch_voxels``.

    Raises
    ------
    ConfigError
        If whole patches do not fill the cube.
    """
    edge = spacing_mm * patch_voxels
    if spacing_mm <= 0 or patch_voxels < 1 or abs(FIELD_MM / edge - round(FIELD_MM / edge)) > 1e-6:
        raise ConfigError(
            f"{component}: patches of {patch_voxels} voxels of {spacing_mm:g} mm do not fill a {FIELD_MM:g} mm cube.",
            allowed="patch edges of 12, 16, 24, 32 or 48 mm",
            next_step="For example spacing_mm=2,patch_voxels=6 (12 mm, for a GPU) or spacing_mm=4,patch_voxels=6.",
        )
    return PatchGrid(spacing_mm, patch_voxels)


@dataclass(frozen=True, eq=False)
class Patches:
    """The patches of a grid that touch the brain.

    Parameters
    ----------
    voxels
        (units, voxels, 3) numbers of the voxels of each patch on the grid.
    brain
        (units, voxels) whether a voxel is in the brain.
    cell
        (units, 3) number of the patch along each axis.
    """

    voxels: NDArray[np.int64]
    brain: NDArray[np.bool_]
    cell: NDArray[np.int64]


@lru_cache(maxsize=4)
def patches_of(grid: PatchGrid) -> Patches:
    """Return the patches with at least one voxel in nilearn's MNI152 brain mask; the others are no units."""
    from nibabel.affines import apply_affine
    from nilearn.datasets import load_mni152_brain_mask

    mask = load_mni152_brain_mask(resolution=2)
    n, k = grid.n_voxels, grid.patch_voxels
    # A voxel is brain if half of it is: points 2 mm apart, the mask's own spacing, between its voxels linear.
    n_points = max(1, round(grid.spacing_mm / 2))
    fine = (np.arange(n * n_points) + 0.5) / n_points - 0.5
    place = np.stack(np.meshgrid(fine, fine, fine, indexing="ij"), -1).reshape(-1, 3)
    there = apply_affine(np.linalg.inv(mask.affine) @ grid.affine, place).T
    share = scipy.ndimage.map_coordinates(mask.get_fdata(dtype=np.float32), there, order=1).reshape((n, n_points) * 3)
    is_brain = share.mean((1, 3, 5)) >= 0.5
    m = n // k
    blocks = is_brain.reshape(m, k, m, k, m, k).transpose(0, 2, 4, 1, 3, 5).reshape(m, m, m, -1)
    cell = np.argwhere(blocks.any(-1))
    offset = np.indices((k, k, k)).reshape(3, -1).T
    voxels = cell[:, None] * k + offset[None]
    return Patches(voxels, blocks[tuple(cell.T)], cell)


@lru_cache(maxsize=4)
def _interpolation(shape: tuple[int, int, int], affine: tuple[float, ...], grid: PatchGrid) -> scipy.sparse.csr_matrix:
    """Return (brain voxels of the patches, voxels of the image): trilinear, averaged over each voxel of the grid.

    A voxel of the grid that is larger than the image's is the average of points spread evenly over it, so that
    nothing between two points is passed over. Weights outside the image are left out.
    """
    from nibabel.affines import apply_affine, voxel_sizes

    patches = patches_of(grid)
    own = np.reshape(affine, (4, 4))
    n_points = max(1, round(grid.spacing_mm / float(voxel_sizes(own).min())))
    steps = (np.arange(n_points) + 0.5) / n_points - 0.5
    targets = patches.voxels[patches.brain].astype(float)
    to_image = np.linalg.inv(own) @ grid.affine
    total = scipy.sparse.csr_matrix((len(targets), int(np.prod(shape))))
    size = np.array(shape)
    stride = np.array([1, shape[0], shape[0] * shape[1]])
    for point in np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3):
        place = apply_affine(to_image, targets + point)
        # Grids that coincide do so up to rounding; a weight of 1e-9 would double the work.
        place = np.where(np.abs(place - place.round()) < 1e-4, place.round(), place)
        low = np.floor(place).astype(int)
        rows, columns, weights = [], [], []
        for corner in np.ndindex(2, 2, 2):
            weight = np.prod(np.where(corner, place - low, 1 - (place - low)), axis=1)
            there = low + corner
            usable = ((there >= 0) & (there < size)).all(1) & (weight > 0)
            rows.append(np.flatnonzero(usable))
            columns.append(there[usable] @ stride)
            weights.append(weight[usable])
        indices = np.concatenate(rows), np.concatenate(columns)
        total = total + scipy.sparse.csr_matrix((np.concatenate(weights), indices), shape=total.shape)
    return scipy.sparse.csr_matrix(total / n_points**3)


def patch_map(bold: BoldFile, grid: PatchGrid, brain: NDArray[np.bool_] | None) -> scipy.sparse.csr_matrix:
    """Return (brain voxels of the patches, voxels): zero rows where the image or its mask does not reach."""
    weights = _interpolation(*bold.grid, grid)
    if brain is not None:
        weights = weights @ scipy.sparse.diags(brain.astype(np.float64))
    covered = np.asarray(weights.sum(1)).ravel()
    scale = np.divide(1.0, covered, out=np.zeros_like(covered), where=covered >= COVERED)
    scaled = scipy.sparse.csr_matrix(scipy.sparse.diags(scale) @ weights, dtype=np.float32)
    scaled.eliminate_zeros()
    return scaled


def brain_of(bold: BoldFile, mask: Path) -> NDArray[np.bool_]:
    """Return (voxels,) the recording's own brain mask, flat in Fortran order.

    Raises
    ------
    DataError
        If it is not on the grid of the image.
    """
    if why := explain_unreadable(mask):
        raise DataError(f"{mask.name} {why}.")
    try:
        image = open_image(mask)
        values = np.asarray(image.dataobj)
    except Exception as error:
        raise unreadable(mask, error) from error
    same = values.shape == bold.image.shape[:3] and np.allclose(image.affine, bold.image.affine, atol=1e-3)
    if not same:
        raise DataError(
            f"the brain mask {mask.name} is not on the grid of {bold.path.name}: {values.shape} against "
            f"{tuple(bold.image.shape[:3])} voxels, or another affine.",
            next_step="Use the mask that was written with this image, or move this one away.",
        )
    if not (values > 0).any():
        raise DataError(f"the brain mask {mask.name} is empty.")
    return np.asarray(values > 0).ravel(order="F")


# ---------------------------------------------------------------- units


@lru_cache(maxsize=4)
def patch_units(grid: PatchGrid, atlas: Atlas) -> UnitTable:
    """Return the units of a grid: the patches that touch the brain, with their share in every region of the atlas.

    Shares are counted on the atlas' own voxels, so that no region is lost to a coarse grid. A patch belongs to the
    group of the region that has most of it; ``unlabelled`` where no region reaches.
    """
    from nibabel.affines import apply_affine

    patches, regions = patches_of(grid), regions_of(atlas)
    labels, affine = load_labels(atlas)
    n_cells = grid.n_voxels // grid.patch_voxels
    where = np.argwhere(labels > 0)
    place = apply_affine(np.linalg.inv(grid.affine) @ affine, where)
    cell = np.floor((place + 0.5) / grid.patch_voxels).astype(int)
    inside = ((cell >= 0) & (cell < n_cells)).all(1)
    unit_of = np.full((n_cells,) * 3, -1)
    unit_of[tuple(patches.cell.T)] = np.arange(len(patches.cell))
    unit = unit_of[tuple(cell[inside].T)]
    region = np.searchsorted(regions["label"].to_numpy(), labels[tuple(where[inside].T)])
    share = np.zeros((len(patches.cell), len(regions)), np.float64)
    np.add.at(share, (unit[unit >= 0], region[unit >= 0]), 1.0)
    per_patch = (grid.spacing_mm * grid.patch_voxels) ** 3 / abs(np.linalg.det(affine[:3, :3]))
    share = share / max(per_patch, share.sum(1).max())
    position = apply_affine(grid.affine, (patches.cell + 0.5) * grid.patch_voxels - 0.5)
    kept = share.any(0)
    names = [n for n, k in zip(regions["name"], kept, strict=True) if k]
    own_groups = units_of(regions).groups
    groups = [own_groups[i] if row.any() else "unlabelled" for row, i in zip(share, share.argmax(1), strict=True)]
    return UnitTable(
        names=tuple("patch-" + "-".join(f"{i:02d}" for i in c) for c in patches.cell),
        groups=tuple(groups),
        position_mm=position.astype(np.float32),
        types=("patch",) * len(patches.cell),
        sites=np.arange(len(patches.cell)),
        region_names=tuple(names),
        region_share=share[:, kept].astype(np.float32),
        group_source=units_of(regions).group_source,
    )


# ---------------------------------------------------------------- reading


def read_bold(
    file: RecordingFile,
    *,
    signal: str,
    confounds: tuple[str, ...],
    n_units: int = 0,
    spacing_mm: float = 4.0,
    patch_voxels: int = 6,
    component: str = "the dataset",
) -> RawRecording:
    """Read a 4-D image as the mean signal of regions, or as the voxels of patches.

    Parameters
    ----------
    file
        With an ``atlas`` beside it (a label image), where there are any a ``mask`` and ``confounds``, and an option
        ``drop``: volumes to leave out at the beginning.
    signal
        ``parcels`` or ``volume``.
    confounds
        Parts of nilearn's reading of fMRIPrep's confounds, or empty.
    n_units
        ``parcels``: only this many regions, evenly spaced; 0: all.
    spacing_mm, patch_voxels
        ``volume``: edge of a voxel, and voxels along the edge of a patch.
    component
        Name of the dataset, for messages.

    Returns
    -------
    RawRecording
        (regions, times) float64, or (patches, times, voxels) in the type of the file where the grids coincide and it
        holds integers, else float32.

    Raises
    ------
    DataError
        If the image, its mask or its confounds cannot be used.
    """
    from neurobench_datasets._confounds import regressors_of

    found = find_atlas(str(file.beside["atlas"]), component)
    bold = BoldFile.open(file.path)
    drop = int(file.options.get("drop", 0))
    mask = file.beside.get("mask")
    brain = brain_of(bold, mask) if mask else None
    regressors, said = regressors_of(file, confounds, bold.n_times)
    said.append("inside the brain mask beside the image" if mask else "no brain mask beside the image")
    if drop:
        said.append(f"the first {drop} volumes are left out")
    findings = bold.header_findings()
    if brain is not None:
        findings += _overlap(bold, brain)
    if signal == "parcels":
        data, units = _read_regions(bold, found, brain, drop, findings)
        index = evenly(len(units), n_units)
        data, units = data[index], units.take(index)
        said.insert(0, f"mean signal of the regions of {found.path.name}")
    else:
        grid = check_grid(spacing_mm, patch_voxels, component)
        data, units = _read_patches(bold, found, grid, brain, drop, findings)
        edge = spacing_mm * patch_voxels
        said.insert(
            0, f"patches of {edge:g} mm, {patch_voxels}³ voxels of {spacing_mm:g} mm; regions of {found.path.name}"
        )
    return RawRecording(
        data,
        file.sfreq,
        units,
        tuple(said),
        regressors=None if regressors is None else regressors[drop:],
        findings=tuple(findings),
    )


def _read_regions(
    bold: BoldFile, atlas: Atlas, brain: NDArray[np.bool_] | None, drop: int, findings: list[Finding]
) -> tuple[NDArray[np.float64], UnitTable]:
    weights = region_map(bold, atlas, brain)
    data = np.empty((bold.n_times, weights.shape[0]))
    bad = 0
    for t, volume in enumerate(bold.volumes()):
        clean, n = _finite(volume)
        bad = max(bad, n)
        data[t] = weights @ clean
    table = regions_of(atlas)
    empty = np.diff(weights.indptr) == 0
    if empty.all():
        raise DataError(
            f"no region of {atlas.path.name} lies inside {bold.path.name}: they are not in the same space.",
            next_step="Use the image in MNI space.",
        )
    if empty.any():
        # Regions that no voxel is left of stay as NaN, so that every recording has the same units.
        data[:, empty] = np.nan
        lost = table["name"][empty].tolist()
        text = f"{len(lost)} of {len(table)} regions have no voxel in this image: {', '.join(lost[:4])}"
        findings.append(Finding("info", "lost-regions", text, fix="a coarse grid loses small regions; patches do not"))
    _say_bad(bad, findings)
    return data[drop:].T, units_of(table)


def _read_patches(
    bold: BoldFile,
    atlas: Atlas,
    grid: PatchGrid,
    brain: NDArray[np.bool_] | None,
    drop: int,
    findings: list[Finding],
) -> tuple[NDArray[Any], UnitTable]:
    patches, units = patches_of(grid), patch_units(grid, atlas)
    weights = patch_map(bold, grid, brain)
    if weights.nnz == 0:
        raise DataError(
            f"{bold.path.name} does not reach the brain in MNI space.", next_step="Use the image in MNI space."
        )
    n_units, n_voxels = patches.brain.shape
    # Where the grids coincide a voxel is copied, and integers stay integers.
    copies = bool(np.diff(weights.indptr).max() == 1 and bold.image.dataobj.dtype.kind in "iu")
    dtype = bold.image.dataobj.dtype.newbyteorder("=") if copies else np.dtype(np.float32)
    data = np.zeros((bold.n_times, n_units * n_voxels), dtype)
    filled = np.flatnonzero(patches.brain.ravel())
    reached = np.diff(weights.indptr) > 0
    source, filled_by = weights.indices, filled[reached]
    bad = 0
    for t, volume in enumerate(bold.volumes()):
        clean, n = _finite(volume)
        bad = max(bad, n)
        if copies:
            data[t, filled_by] = clean[source]
        else:
            data[t, filled] = weights @ np.asarray(clean, np.float32)
    without = float(1 - reached.mean())
    if without > 0.1:
        text = f"{without:.0%} of the brain's voxels are outside this image or its mask"
        findings.append(Finding("warning", "field-of-view", text, fix="look at the image; see `neurobench data check`"))
    _say_bad(bad, findings)
    return data.reshape(bold.n_times, n_units, n_voxels)[drop:].transpose(1, 0, 2), units


@lru_cache(maxsize=4)
def _mni_brain(shape: tuple[int, int, int], affine: tuple[float, ...]) -> NDArray[np.bool_]:
    """Return (voxels,) the MNI152 brain on a grid, flat in Fortran order."""
    from nibabel.affines import apply_affine
    from nilearn.datasets import load_mni152_brain_mask

    mask = load_mni152_brain_mask(resolution=2)
    index = np.indices(shape).reshape(3, -1).T
    there = apply_affine(np.linalg.inv(mask.affine) @ np.reshape(affine, (4, 4)), index).T
    found = scipy.ndimage.map_coordinates(mask.get_fdata(dtype=np.float32), there, order=1) > 0.5
    return np.asarray(found.reshape(shape).ravel(order="F"))


def _overlap(bold: BoldFile, brain: NDArray[np.bool_]) -> list[Finding]:
    """Return a finding where a recording's brain mask is not where the MNI brain is."""
    standard = _mni_brain(*bold.grid)
    dice = 2 * float((brain & standard).sum()) / float(brain.sum() + standard.sum())
    if dice >= OVERLAP:
        return []
    text = f"the brain mask overlaps with the MNI brain by {dice:.2f} only (Dice; {OVERLAP:g} is the least to expect)"
    fix = "look whether the image is in MNI space; regions and patches are elsewhere if it is not"
    return [Finding("warning", "not-in-mni-space", text, fix=fix)]


def _finite(volume: NDArray[Any]) -> tuple[NDArray[Any], int]:
    """Return the volume with zeros for what is not finite, and how many voxels that were."""
    if volume.dtype.kind != "f" or np.isfinite(volume.sum(dtype=np.float64)):
        return volume, 0
    finite = np.isfinite(volume)
    return np.where(finite, volume, 0), int((~finite).sum())


def _say_bad(bad: int, findings: list[Finding]) -> None:
    if bad:
        text = f"up to {bad} voxels of a volume are not finite (NaN or infinite) and count as zero"
        findings.append(Finding("warning", "not-finite-voxels", text, fix="look at the preprocessing of this image"))

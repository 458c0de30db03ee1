"""4-D images to parcels and patches: equal to nilearn's, on any grid, read to the checksum."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nilearn.datasets import load_mni152_brain_mask
from nilearn.image import resample_img
from nilearn.maskers import NiftiLabelsMasker

from neurobench import ConfigError, DataError, RawRecording, RecordingFile
from neurobench_datasets import _atlases, _bold_images
from neurobench_datasets._atlases import find_atlas, load_labels, read_names, regions_of
from neurobench_datasets._bold_images import PatchGrid, check_grid, patch_units, patches_of, read_bold

N_TIMES = 60
SHARED = Path(os.environ.get("NEUROBENCH_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the folder of real recordings is not here")


def grid_of(spacing: float) -> tuple[np.ndarray, tuple[int, int, int]]:
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = [-96, -132, -78]
    return affine, tuple(round(x / spacing) for x in (192, 228, 192))


def write_image(path: Path, affine: np.ndarray, data: np.ndarray) -> Path:
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm", "sec")
    image.header["pixdim"][4] = 2.0
    nib.save(image, path)
    return path


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a label image of eight blocks of the brain at 4 mm, ids with gaps, names and groups beside it."""
    folder = tmp_path_factory.mktemp("atlas")
    affine, shape = grid_of(4.0)
    mask = resample_img(
        load_mni152_brain_mask(resolution=2),
        target_affine=affine,
        target_shape=shape,
        interpolation="nearest",
        force_resample=True,
        copy_header=True,
    ).get_fdata()
    x, y, z = np.indices(shape)
    labels = 10 + 3 * ((x > 23) * 1 + (y > 28) * 2 + (z > 20) * 4)
    nib.save(nib.Nifti1Image((labels * (mask > 0)).astype(np.int16), affine), folder / "blocks.nii.gz")
    ids = sorted(set(np.unique(labels)))
    names = pd.DataFrame({"label": ids, "name": [f"b{i}" for i in ids], "group": ["low"] * 4 + ["high"] * 4})
    names.to_csv(folder / "blocks.csv", index=False)
    return folder / "blocks.nii.gz"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    affine, shape = grid_of(4.0)
    rng = np.random.default_rng(0)
    data = rng.normal(1000, 50, (*shape, N_TIMES)).astype(np.int16)
    return write_image(tmp_path_factory.mktemp("bold") / "bold.nii.gz", affine, data)


def read(image: Path, atlas: Path, **options: object) -> RawRecording:
    beside = {"atlas": atlas} | {k: Path(str(options.pop(k))) for k in ("mask", "confounds_file") if k in options}
    beside = {"confounds" if k == "confounds_file" else k: v for k, v in beside.items()}
    file = RecordingFile("s", image, 0.5, options={"drop": options.pop("drop", 0)}, beside=beside)
    return read_bold(file, **({"signal": "parcels", "confounds": ()} | options))  # type: ignore[arg-type]


# ---------------------------------------------------------------- regions


def test_regions_are_nilearns(image: Path, atlas: Path) -> None:
    masker = NiftiLabelsMasker(str(atlas), standardize=None, resampling_target="data")
    expected = masker.fit_transform(str(image))
    raw = read(image, atlas)
    np.testing.assert_allclose(raw.data.T, expected, rtol=1e-6)
    assert raw.units.names == tuple(f"b{i}" for i in range(10, 34, 3))
    assert set(raw.units.groups) == {"low", "high"}


def test_regions_inside_a_brain_mask_and_on_another_grid(tmp_path: Path, atlas: Path) -> None:
    affine, shape = grid_of(6.0)
    affine[:3, 3] += 0.7  # No voxel lies half-way between two labels, where the nearest is anybody's choice.
    rng = np.random.default_rng(1)
    path = write_image(tmp_path / "coarse.nii.gz", affine, rng.normal(size=(*shape, N_TIMES)).astype(np.float32))
    mask = np.zeros(shape, np.uint8)
    mask[8:24, 10:30, 6:26] = 1
    nib.save(nib.Nifti1Image(mask, affine), tmp_path / "mask.nii.gz")
    masker = NiftiLabelsMasker(
        str(atlas), mask_img=str(tmp_path / "mask.nii.gz"), standardize=None, resampling_target="data"
    )
    expected = masker.fit_transform(str(path))
    raw = read(path, atlas, mask=str(tmp_path / "mask.nii.gz"))
    np.testing.assert_allclose(raw.data.T, expected, atol=1e-5)


def test_volumes_at_the_beginning_are_dropped(image: Path, atlas: Path) -> None:
    whole, shorter = read(image, atlas), read(image, atlas, drop=4)
    np.testing.assert_array_equal(whole.data[:, 4:], shorter.data)
    assert any("first 4 volumes" in p for p in shorter.provenance)


def test_a_region_without_voxels_is_named(tmp_path: Path, atlas: Path) -> None:
    labels = nib.load(atlas)
    data = np.asarray(labels.dataobj).copy()
    data[0, 0, 0] = 99  # A region of one voxel, outside every brain mask.
    nib.save(nib.Nifti1Image(data, labels.affine), tmp_path / "more.nii.gz")
    affine, shape = grid_of(8.0)
    path = write_image(tmp_path / "b.nii.gz", affine, np.ones((*shape, N_TIMES), np.int16))
    mask = np.ones(shape, np.uint8)
    mask[0] = 0
    nib.save(nib.Nifti1Image(mask, affine), tmp_path / "mask.nii.gz")
    raw = read(path, tmp_path / "more.nii.gz", mask=str(tmp_path / "mask.nii.gz"))
    assert np.isnan(raw.data[-1]).all()
    assert "label-0099" in next(f.message for f in raw.findings if f.code == "lost-regions")


# ---------------------------------------------------------------- patches


def test_the_patches_of_a_brain() -> None:
    patches = patches_of(PatchGrid(2.0, 6))
    # NeuroSTORM's grid has 4,096 patches of 12 mm, of which 1,470 touch the brain.
    assert 1400 < len(patches.cell) < 1550
    assert patches.voxels.shape == (len(patches.cell), 216, 3)
    assert patches.brain.any(1).all()
    fine, coarse = patches.brain.sum() * 8, patches_of(PatchGrid(4.0, 6)).brain.sum() * 64
    assert abs(fine / coarse - 1) < 0.02


def test_grids_that_coincide_are_copied(tmp_path: Path, atlas: Path) -> None:
    grid = PatchGrid(8.0, 3)
    n = grid.n_voxels
    data = np.random.default_rng(2).integers(1, 3000, (n, n, n, N_TIMES)).astype(np.int16)
    path = write_image(tmp_path / "same.nii.gz", grid.affine, data)
    raw = read(path, atlas, signal="volume", spacing_mm=8.0, patch_voxels=3)
    patches = patches_of(grid)
    assert raw.data.dtype == np.int16
    assert raw.data.shape == (len(patches.cell), N_TIMES, 27)
    x, y, z = np.moveaxis(patches.voxels, -1, 0)
    expected = np.where(patches.brain[..., None], data[x, y, z], 0).transpose(0, 2, 1)
    np.testing.assert_array_equal(raw.data, expected)


def test_another_grid_is_averaged_where_it_is_coarser(tmp_path: Path, atlas: Path) -> None:
    affine, shape = grid_of(4.0)
    x, y, z = np.indices(shape)
    place = np.stack([4.0 * i + o for i, o in zip((x, y, z), affine[:3, 3], strict=True)])
    # A linear function of the place is the same on every grid, and noise is averaged.
    plane = (place[0] + 2 * place[1] - place[2])[..., None]
    rng = np.random.default_rng(3)
    data = (plane + rng.normal(0, 8, (*shape, N_TIMES))).astype(np.float32)
    path = write_image(tmp_path / "plane.nii.gz", affine, data)
    raw = read(path, atlas, signal="volume", spacing_mm=8.0, patch_voxels=3)
    grid = PatchGrid(8.0, 3)
    patches = patches_of(grid)
    centre = nib.affines.apply_affine(grid.affine, patches.voxels)
    expected = centre @ [1.0, 2.0, -1.0]
    error = np.asarray(raw.data, float).transpose(0, 2, 1)[patches.brain] - expected[patches.brain][:, None]
    assert abs(error.mean()) < 0.1
    # Eight voxels of 4 mm make one of 8 mm.
    assert error.std() < 8 / np.sqrt(8) * 1.5


def test_an_oblique_image(tmp_path: Path, atlas: Path) -> None:
    affine, shape = grid_of(4.0)
    turn = np.deg2rad(8)
    rotation = np.eye(4)
    rotation[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    turned = rotation @ affine
    place = nib.affines.apply_affine(turned, np.indices(shape).reshape(3, -1).T)
    plane = (place @ [1.0, -1.0, 3.0]).reshape(shape)[..., None]
    path = write_image(tmp_path / "turned.nii", turned, np.repeat(plane, N_TIMES, -1).astype(np.float32))
    raw = read(path, atlas, signal="volume", spacing_mm=8.0, patch_voxels=3)
    grid, patches = PatchGrid(8.0, 3), patches_of(PatchGrid(8.0, 3))
    expected = nib.affines.apply_affine(grid.affine, patches.voxels) @ [1.0, -1.0, 3.0]
    found = np.asarray(raw.data)[:, 0]
    np.testing.assert_allclose(found[patches.brain], expected[patches.brain], atol=0.05)


def test_outside_the_brain_mask_there_is_no_signal(tmp_path: Path, image: Path, atlas: Path) -> None:
    affine, shape = grid_of(4.0)
    mask = np.zeros(shape, np.uint8)
    mask[: shape[0] // 2] = 1
    nib.save(nib.Nifti1Image(mask, affine), tmp_path / "half.nii.gz")
    raw = read(image, atlas, signal="volume", mask=str(tmp_path / "half.nii.gz"))
    right = raw.units.position_mm[:, 0] > 20
    assert not np.asarray(raw.data)[right].any()
    assert np.asarray(raw.data)[raw.units.position_mm[:, 0] < -20].any(axis=(1, 2)).all()
    assert any(f.code == "field-of-view" for f in raw.findings)


def test_shares_of_regions(atlas: Path) -> None:
    found = find_atlas(str(atlas), "test")
    units = patch_units(PatchGrid(4.0, 6), found)
    labels, _ = load_labels(found)
    assert set(units.region_names) == set(regions_of(found)["name"])
    assert units.region_share.max() <= 1.0
    assert units.region_share.sum(1).max() <= 1.0 + 1e-6
    # Shares are voxels of the atlas: all of them are somewhere, up to those whose patch has no brain voxel.
    counted = units.region_share.sum() * 6**3
    assert 0.97 * (labels > 0).sum() < counted <= (labels > 0).sum()
    left = [i for i, n in enumerate(units.region_names) if n == "b10"]
    inside = units.region_share[:, left[0]] > 0.9
    assert (units.position_mm[inside, 0] < 0).all()


def test_not_finite_voxels_are_counted(tmp_path: Path, atlas: Path) -> None:
    affine, shape = grid_of(8.0)
    data = np.ones((*shape, N_TIMES), np.float32)
    data[10, 10, 10, 3] = np.nan
    data[11, 10, 10] = np.inf
    raw = read(write_image(tmp_path / "nan.nii.gz", affine, data), atlas, signal="volume")
    assert "up to 2 voxels" in next(f.message for f in raw.findings if f.code == "not-finite-voxels")
    assert np.isfinite(raw.data).all()


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("truncated", "is cut off"),
        ("flipped", "is damaged"),
        ("identity", "no position in space"),
        ("single", "is the least"),
        ("page", "is a web page"),
    ],
)
def test_images_that_are_none(tmp_path: Path, image: Path, atlas: Path, what: str, message: str) -> None:
    path = tmp_path / "bold.nii.gz"
    content = bytearray(image.read_bytes())
    if what == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif what == "flipped":
        # One bit of the checksum: the data are read without a word, and only their end tells.
        content[-6] ^= 1
        path.write_bytes(content)
    elif what == "page":
        path.write_text("<!DOCTYPE html><html>log in</html>")
    else:
        one = nib.load(image)
        data = np.asarray(one.dataobj)
        affine = np.eye(4) if what == "identity" else one.affine
        nib.save(nib.Nifti1Image(data if what == "identity" else data[..., 0], affine), path)
    with pytest.raises(DataError, match=message):
        read(path, atlas)


def test_a_flipped_bit_is_found_at_the_end_only(tmp_path: Path, image: Path) -> None:
    content = bytearray(image.read_bytes())
    content[-6] ^= 1
    (tmp_path / "b.nii.gz").write_bytes(content)
    assert nib.load(tmp_path / "b.nii.gz").shape[3] == N_TIMES
    with pytest.raises(gzip.BadGzipFile), gzip.open(tmp_path / "b.nii.gz") as f:
        f.read()


def test_a_mask_of_another_image(tmp_path: Path, image: Path, atlas: Path) -> None:
    affine, shape = grid_of(8.0)
    nib.save(nib.Nifti1Image(np.ones(shape, np.uint8), affine), tmp_path / "m.nii.gz")
    with pytest.raises(DataError, match="not on the grid"):
        read(image, atlas, mask=str(tmp_path / "m.nii.gz"))


def test_grids_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match="do not fill"):
        check_grid(5.0, 3, "adhd200")
    assert check_grid(2.0, 6, "adhd200").n_voxels == 96


def test_places_that_contradict_each_other(tmp_path: Path, image: Path, atlas: Path) -> None:
    one = nib.load(image)
    flipped = one.affine.copy()
    flipped[0] *= -1
    header = one.header.copy()
    header.set_qform(one.affine, 1)
    header.set_sform(flipped, 4)
    nib.save(nib.Nifti1Image(np.asarray(one.dataobj), None, header), tmp_path / "two.nii.gz")
    assert "sform is used" in next(
        f.message for f in read(tmp_path / "two.nii.gz", atlas).findings if f.code == "affines-disagree"
    )
    header.set_qform(one.affine, 0)
    header.set_sform(one.affine, 0)
    nib.save(nib.Nifti1Image(np.asarray(one.dataobj), None, header), tmp_path / "none.nii.gz")
    with_codes = {f.code for f in read(image, atlas).findings}
    assert "no-space-code" not in with_codes
    assert "affines-disagree" not in with_codes
    # Without codes the image lies around its own centre.
    assert "no-space-code" in {f.code for f in read(tmp_path / "none.nii.gz", atlas).findings}


def test_a_brain_that_is_not_where_mnis_is(tmp_path: Path, image: Path, atlas: Path) -> None:
    affine, shape = grid_of(4.0)
    standard = np.zeros(shape, np.uint8)
    x, y, z = (4.0 * i + o for i, o in zip(np.indices(shape), affine[:3, 3], strict=True))
    standard[(x / 70) ** 2 + ((y + 17) / 88) ** 2 + ((z - 8) / 72) ** 2 < 1] = 1
    for shift, expected in ((0, False), (15, True)):
        moved = np.roll(standard, shift, axis=2)
        nib.save(nib.Nifti1Image(moved, affine), tmp_path / "mask.nii.gz")
        found = {f.code for f in read(image, atlas, mask=str(tmp_path / "mask.nii.gz")).findings}
        assert ("not-in-mni-space" in found) is expected


# ---------------------------------------------------------------- confounds


def test_motion_parameters_are_regressors(tmp_path: Path, image: Path, atlas: Path) -> None:
    table = np.random.default_rng(4).normal(size=(N_TIMES, 6))
    np.savetxt(tmp_path / "rp_s.txt", table)
    raw = read(image, atlas, confounds=("motion",), confounds_file=str(tmp_path / "rp_s.txt"))
    assert raw.regressors is not None
    assert raw.regressors.shape == (N_TIMES, 24)
    np.testing.assert_allclose(raw.regressors[:, :6], table)
    np.savetxt(tmp_path / "rp_s.txt", table[:-1])
    with pytest.raises(DataError, match="59 rows"):
        read(image, atlas, confounds=("motion",), confounds_file=str(tmp_path / "rp_s.txt"))


def test_named_columns(tmp_path: Path, image: Path, atlas: Path) -> None:
    names = ["csf", "constant", "wm", "global", "motion-pitch", "motion-x", "compcor1", "compcor2"]
    frame = pd.DataFrame(np.random.default_rng(5).normal(size=(N_TIMES, 8)), columns=names)
    frame.to_csv(tmp_path / "1_regressors.csv", index=False)
    raw = read(image, atlas, confounds=("motion", "wm_csf"), confounds_file=str(tmp_path / "1_regressors.csv"))
    assert raw.regressors is not None
    np.testing.assert_allclose(raw.regressors, frame[["csf", "wm", "motion-pitch", "motion-x"]])


# ---------------------------------------------------------------- atlases


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.nii.txt", "1 Precentral_L 2001\n3 Precentral_R 2002\n"),
        ("a.txt", "1\tPrecentral_L\t120\t18\t131\t0\n3\tPrecentral_R\t1\t2\t3\t0\n"),
        ("a.xml", "<atlas><data><label><index>1</index><name>Precentral_L</name></label>"
         "<label><index>3</index><name>Precentral_R</name></label></data></atlas>"),
        ("a.csv", "index,name\n0,Background\n1,Precentral_L\n3,Precentral_R\n"),
        ("a.tsv", "label\tname\tgroup\n1\tPrecentral_L\tfrontal\n3\tPrecentral_R\tfrontal\n"),
    ],
)  # fmt: skip
def test_tables_of_names(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    labels = np.zeros((4, 4, 4), np.int16)
    labels[:2], labels[2:] = 1, 3
    nib.save(nib.Nifti1Image(labels, np.diag([2.0, 2, 2, 1])), tmp_path / "a.nii")
    assert read_names(tmp_path / name)["name"].loc[[1, 3]].tolist() == ["Precentral_L", "Precentral_R"]
    table = regions_of(find_atlas(str(tmp_path / "a.nii"), "test"))
    assert table["name"].tolist() == ["Precentral_L", "Precentral_R"]
    assert table["group"].tolist() == ["frontal", "frontal"]


def test_a_table_of_another_atlas(tmp_path: Path) -> None:
    labels = np.arange(1, 65).reshape(4, 4, 4).astype(np.int16)
    nib.save(nib.Nifti1Image(labels, np.diag([2.0, 2, 2, 1])), tmp_path / "a.nii")
    (tmp_path / "a.csv").write_text("index,name\n2001,x\n2002,y\n")
    with pytest.raises(DataError, match="none of the 2 labels"):
        regions_of(find_atlas(str(tmp_path / "a.nii"), "test"))


def test_an_atlas_that_is_not_there() -> None:
    with pytest.raises(DataError, match="does not exist") as error:
        find_atlas("aal33", "adhd200")
    assert "aal3" in str(error.value)


@needs_shared
@pytest.mark.parametrize(
    ("folder", "n", "groups"),
    [("aal3_166", 166, 11), ("aal_116", 116, 0), ("cc200", 0, 0), ("dk_112", 0, 0)],
)
def test_real_atlases(folder: str, n: int, groups: int) -> None:
    table = regions_of(find_atlas(str(SHARED / "atlas" / "neurostorm" / folder / "atlas.nii.gz"), "test"))
    assert table["name"].is_unique
    assert len(table) == (n or len(table)) >= 100
    if groups:
        assert table["group"].nunique() == groups


@needs_shared
def test_a_real_table_whose_label_is_a_name() -> None:
    table = regions_of(find_atlas(str(SHARED / "rpn_mist122" / "MIST_122.nii.gz"), "test"))
    assert len(table) == 122
    assert table["name"].iloc[0] == "SUPERIOR_PARIETAL_LOBULE"


@needs_shared
def test_every_real_atlas_is_read_or_refused_with_the_reason() -> None:
    images = sorted((SHARED / "atlas").rglob("*.nii.gz"))
    assert len(images) > 15
    refused = []
    for path in images:
        try:
            assert len(regions_of(find_atlas(str(path), "test"))) >= 7
        except DataError as error:
            refused.append((path.parent.name, "calls label 1 the background" in str(error)))
    # The tables of these two are off by one.
    assert refused == [("schaefer_100_7net", True), ("schaefer_200_7net", True)]


@needs_shared
def test_a_table_that_is_off_by_one() -> None:
    with pytest.raises(DataError, match="calls label 1 the background"):
        regions_of(find_atlas(str(SHARED / "atlas" / "neurostorm" / "schaefer_100_7net" / "atlas.nii.gz"), "test"))


@needs_shared
def test_aal3_by_resolution() -> None:
    # Reference figures of the atlas: labels left by nearest neighbour on grids of 2, 4 and 8 mm.
    atlas = find_atlas(str(SHARED / "atlas" / "neurostorm" / "aal3_166" / "atlas.nii.gz"), "test")
    regions = regions_of(atlas)
    assert len(regions) == 166
    assert regions["label"].max() == 170
    assert regions["group"].value_counts()["limbic"] == 16
    affine, shape = grid_of(8.0)
    kept = np.unique(_bold_images.labels_on(shape, tuple(affine.ravel().tolist()), atlas))
    assert len(kept) - 1 < 155
    # Patches count the atlas' own voxels: none is lost.
    assert len(patch_units(PatchGrid(8.0, 3), atlas).region_names) == 166


@needs_shared
def test_groups_by_name_are_those_by_number() -> None:
    table = pd.read_csv(SHARED / "atlas" / "neurostorm" / "aal3_166" / "aal3_labels_checked_here.csv")
    ids, names = table["index"].to_numpy(), table["name"].tolist()
    by_number = _atlases._known_groups(ids, names)
    # An edition with numbers of its own, and one that lost most of its regions.
    assert _atlases._known_groups(np.arange(1, 167) * 7, names) == by_number
    assert _atlases._known_groups(ids[::5], names[::5]) == by_number[::5]


def test_groups_by_name_are_for_names_of_aal_alone() -> None:
    names = ["Precentral_L", "ACC_pre_R", "Cerebellum_Crus1_L", "Cerebelum_6_R", "Thal_VA_L", "N_Acc_R", "Raphe_D"]
    groups = ["frontal", "limbic", "cerebellum", "cerebellum", "thalamus", "basal ganglia", "brainstem"]
    assert _atlases._known_groups(np.arange(1, 8), names) == groups
    assert _atlases._known_groups(np.arange(1, 9), [*names, "V1"]) == [""] * 8

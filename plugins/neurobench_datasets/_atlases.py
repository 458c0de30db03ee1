"""Label images of brain regions: a file of the user's, or one that nilearn fetches; names, groups and centres.

Ids are never assumed to be consecutive: AAL3 has 166 regions with ids up to 170. Names and groups come from a table
beside the image, in any of the forms that atlases are given out with; the groups of AAL3 and AAL from the tables here.
"""

from __future__ import annotations

import hashlib
import os
import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neurobench import DataError, closest, user_path
from neurobench_datasets._nifti import open_image
from neurobench_datasets._tables import explain_unreadable, find_column, read_table, unreadable, whole

FETCHED = ("aal3", "aal", "schaefer100", "schaefer200", "schaefer400")
"""Names that nilearn fetches; every other atlas is the path of a label image."""

AAL3_EMPTY = (35, 36, 81, 82)
"""Ids up to 170 that AAL3 does not use."""

AAL3_GROUPS = (
    ("frontal", 1, 32),
    ("insula", 33, 34),
    ("limbic", 37, 46),
    ("occipital", 47, 60),
    ("parietal", 61, 74),
    ("basal ganglia", 75, 80),
    ("temporal", 83, 94),
    ("cerebellum", 95, 112),
    ("vermis", 113, 120),
    ("thalamus", 121, 150),
    ("limbic", 151, 156),
    ("basal ganglia", 157, 158),
    ("brainstem", 159, 170),
)
"""Version 1 of the groups of AAL3: group, first and last id. Limbic is the middle and posterior cingulate, hippocampus,
parahippocampal gyrus and amygdala (37–46) and the anterior cingulate (151–156)."""


AAL_NAMES = {
    "frontal": ("Precentral", "Frontal_", "Rolandic_Oper", "Supp_Motor_Area", "Olfactory", "Rectus", "OFC"),
    "insula": ("Insula",),
    "limbic": ("Cingul", "ACC_", "Hippocampus", "ParaHippocampal", "Amygdala"),
    "occipital": ("Calcarine", "Cuneus", "Lingual", "Occipital_", "Fusiform"),
    "parietal": ("Postcentral", "Parietal_", "SupraMarginal", "Angular", "Precuneus", "Paracentral_Lobule"),
    "basal ganglia": ("Caudate", "Putamen", "Pallidum", "N_Acc"),
    "temporal": ("Heschl", "Temporal_"),
    "cerebellum": ("Cerebel",),
    "vermis": ("Vermis",),
    "thalamus": ("Thal",),
    "brainstem": ("VTA", "SN_p", "Red_N", "LC_", "Raphe_"),
}
"""The same groups by how names of AAL3's and AAL's regions start, for editions that are renumbered or lack regions."""


@dataclass(frozen=True)
class Atlas:
    """A label image.

    Parameters
    ----------
    path
        The image.
    names
        The table of names beside it, or None.
    digest
        Hash of both, so that a changed atlas is another one.
    """

    path: Path
    names: Path | None
    digest: str


def find_atlas(text: str, component: str) -> Atlas:
    """Return the atlas that a parameter ``atlas=…`` means: the path of a label image, or a name nilearn fetches.

    Raises
    ------
    DataError
        If the file does not exist, or the name is unknown, or it cannot be fetched.
    """
    path = user_path(text)
    names: Path | None = None
    if text in FETCHED:
        path, names = _fetch(text, component)
    if not os.path.isfile(path):  # Of a name that is too long for a file Path.is_file raises.
        known = "" if path.suffix else f", or one of {', '.join(FETCHED)}"
        raise DataError(
            f"the atlas {text} does not exist.",
            allowed=f"the path of a label image in MNI space{known}",
            likely=closest(text, FETCHED),
            next_step=f"Check the path in {component}[atlas=…].",
        )
    names = names or names_beside(path)
    content = path.read_bytes() + (names.read_bytes() if names else b"")
    return Atlas(path, names, hashlib.sha256(content).hexdigest())


def _fetch(name: str, component: str) -> tuple[Path, Path | None]:
    """Return image and table of an atlas in nilearn's data folder; nilearn downloads it if it is not there."""
    from nilearn import datasets

    try:
        if name.startswith("schaefer"):
            found = datasets.fetch_atlas_schaefer_2018(n_rois=int(name[8:]), yeo_networks=7, resolution_mm=2, verbose=0)
            path = Path(found.maps)
            return path, next(iter(sorted(path.parent.glob(path.name.split("_FSLMNI")[0] + "*.txt"))), None)
        version = "3v2" if name == "aal3" else "SPM12"
        path = Path(datasets.fetch_atlas_aal(version=version, verbose=0).maps)
        return path, names_beside(path)
    except Exception as error:
        raise DataError(
            f"nilearn could not fetch the atlas {name} ({type(error).__name__}: {str(error).splitlines()[0][:120]}).",
            allowed="a machine with a network, or the path of the image",
            next_step=f"Fetch it elsewhere and say {component}[atlas=/path/to/image.nii.gz].",
        ) from error


def names_beside(image: Path) -> Path | None:
    """Return the table of names beside a label image, or None.

    It has the image's name and ends in ``.tsv``, ``.csv``, ``.txt`` or ``.xml`` (AAL's ``AAL3v1.nii.txt`` too), or is
    the only ``labels.tsv`` or ``labels.csv`` of the folder.
    """
    stem = re.sub(r"\.nii(\.gz)?$", "", image.name)
    endings = (".tsv", ".csv", ".txt", ".nii.txt", ".xml")
    # The 1 mm edition of an atlas has the names of the 2 mm one.
    stems = dict.fromkeys([stem, re.sub(r"_\d+mm$", "", stem)])
    candidates = [image.with_name(s + e) for s in stems for e in endings]
    candidates += [image.with_name(n) for n in ("labels.tsv", "labels.csv")]
    return next((c for c in candidates if c.is_file()), None)


# ---------------------------------------------------------------- regions


@lru_cache(maxsize=4)
def load_labels(atlas: Atlas) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Return the (x, y, z) labels of an atlas and its affine (4, 4) in mm.

    Raises
    ------
    DataError
        If the image cannot be used as an atlas.
    """
    if explain_unreadable(atlas.path):
        raise unreadable(atlas.path)
    try:
        image = open_image(atlas.path)
        labels = np.round(np.asarray(image.dataobj)).astype(np.int32)
    except Exception as error:
        raise unreadable(atlas.path, error) from error
    labels = labels[..., 0] if labels.ndim == 4 and labels.shape[3] == 1 else labels
    if labels.ndim != 3:
        raise DataError(f"{atlas.path.name} has shape {labels.shape}; an atlas is a 3-D image of labels.")
    if np.allclose(image.affine, np.eye(4)):
        raise DataError(f"{atlas.path.name} has no position in space (identity affine), so it fits no recording.")
    if len(np.unique(labels[labels > 0])) < 2:
        n = len(np.unique(labels[labels > 0]))
        raise DataError(f"{atlas.path.name} has {n} regions; an atlas needs at least two.")
    return labels, np.asarray(image.affine, np.float64)


@lru_cache(maxsize=4)
def regions_of(atlas: Atlas) -> pd.DataFrame:
    """Return the regions of an atlas: label, name, group, and centre x, y, z (mm), in the order of the labels.

    Raises
    ------
    DataError
        If the image or its table cannot be used.
    """
    from nibabel.affines import apply_affine

    labels, affine = load_labels(atlas)
    ids = np.unique(labels)
    ids = ids[ids > 0]
    where = np.nonzero(labels > 0)
    points = apply_affine(affine, np.column_stack(where))
    code = np.searchsorted(ids, labels[where])
    count = np.bincount(code)
    table = pd.DataFrame({"label": ids, "name": [f"label-{i:04d}" for i in ids], "group": ""})
    table[["x", "y", "z"]] = np.column_stack([np.bincount(code, points[:, a]) / count for a in range(3)])
    named = read_names(atlas.names) if atlas.names else None
    if named is not None:
        background = named.index[named["name"].str.lower() == "background"].intersection(ids)
        if len(background):
            raise DataError(
                f"{atlas.names and atlas.names.name} calls label {background[0]} the background, and "
                f"{atlas.path.name} has voxels of it: the numbers of the table are not those of the image.",
                next_step="Correct the column of labels (it may be off by one), or move the table away.",
            )
        known = named.index.intersection(ids)
        if not len(known):
            raise DataError(
                f"none of the {len(named)} labels in {atlas.names and atlas.names.name} is one of the {len(ids)} in "
                f"{atlas.path.name} ({', '.join(map(str, ids[:3]))}, …).",
                next_step="Put the table that belongs to the image beside it, or none.",
            )
        table["name"] = [named["name"].get(i, n) for i, n in zip(ids, table["name"], strict=True)]
        table["group"] = [named["group"].get(i, "") for i in ids]
    aal = aal_regions().set_index("code")
    if named is None and set(ids.tolist()) <= set(aal.index):
        table["name"] = aal["name"].loc[ids.tolist()].tolist()
    if not any(table["group"]):
        table["group"] = _known_groups(ids, table["name"].tolist())
    nth = table.groupby("name").cumcount() + 1
    table["name"] = [n if k == 1 else f"{n}#{k}" for n, k in zip(table["name"], nth, strict=True)]
    return table


def read_names(path: Path) -> pd.DataFrame:
    """Return names and groups by label from a table in one of the forms that atlases come with.

    Columns label (or index, id, code, value), name and group; MRIcron's ``1 Precentral_L 2001``; FreeSurfer's and
    Schaefer's ``1 7Networks_LH_Vis_1 120 18 131 0``; AAL's XML.
    """
    rows: list[tuple[int, str, str]] = []
    try:
        if path.suffix == ".xml":
            content = path.read_bytes()
            # Entities stand for text of any length; no atlas declares one.
            if b"<!ENTITY" in content.replace(b"\0", b""):
                raise ValueError("it declares entities")
            try:
                tree = ET.fromstring(content)  # noqa: S314 – without entities
            except LookupError as error:  # It names an encoding that nobody knows.
                raise ValueError(str(error)) from error
            for label in tree.iter("label"):
                index, name = label.findtext("index"), label.findtext("name")
                if index and name:
                    rows.append((int(index), name, ""))
        elif path.suffix == ".txt":
            for line in path.read_text(encoding="utf-8-sig", errors="replace").splitlines():
                parts = line.split()
                if len(parts) >= 2 and (number := whole(parts[0])) is not None:
                    rows.append((number, parts[1], ""))
        else:
            frame = read_table(path)
            # MIST's column `label` is a short name, and `roi` the number.
            keys = [find_column(list(frame.columns), (k,)) for k in ("label", "index", "id", "code", "value", "roi")]
            columns = [pd.to_numeric(frame[k], errors="coerce") for k in keys if k]
            numbers = next((c for c in columns if c.notna().mean() > 0.5), None)
            name_column = find_column(list(frame.columns), ("name", "region", "region_name"))
            if numbers is None or not name_column:
                raise DataError(
                    f"{path.name} has no column label of numbers, or no column name; it has "
                    f"{', '.join(map(str, frame.columns))}."
                )
            group = frame["group"].fillna("") if "group" in frame else pd.Series("", frame.index)
            for i in frame.index[np.isfinite(numbers) & frame[name_column].notna()]:
                rows.append((int(numbers[i]), str(frame[name_column][i]), str(group[i])))
    except (ET.ParseError, ValueError) as error:
        raise unreadable(path, error) from error
    return pd.DataFrame(rows, columns=["label", "name", "group"]).drop_duplicates("label").set_index("label")


def _known_groups(ids: NDArray[np.integer[Any]], names: list[str]) -> list[str]:
    """Return groups of AAL3 and AAL by their ids, of Schaefer's parcellations by their names, else none."""
    plain = [int(i) for i in ids]
    found = set(plain)
    if len(found) > 120 and max(found) == 170 and found.isdisjoint(AAL3_EMPTY):
        return [next(g for g, low, high in AAL3_GROUPS if low <= i <= high) for i in plain]
    networks = [re.match(r"\d+Networks_[LR]H_([A-Za-z]+)", n) for n in names]
    if all(networks):
        return [m[1] for m in networks if m]
    aal = aal_regions()
    if found <= set(aal["code"]):
        return aal.set_index("code")["group"].loc[plain].tolist()
    by_name = aal.set_index("name")["group"]
    if set(names) <= set(by_name.index):
        return by_name.loc[names].tolist()
    by_start = [next((g for g, starts in AAL_NAMES.items() if n.startswith(starts)), "") for n in names]
    return by_start if all(by_start) else [""] * len(ids)


@lru_cache(maxsize=1)
def aal_regions() -> pd.DataFrame:
    """Return the 116 regions of AAL: code, name, group, and centre (mm, MNI) as measured on the label image."""
    return pd.read_csv(Path(__file__).with_name("_aal116.csv"))

"""ROI time series as laboratories keep them: one file a recording, regions × volumes or volumes × regions."""

from __future__ import annotations

import io
import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy
from numpy.typing import NDArray

from neurobench import DataError, Finding, UnitTable
from neurobench_datasets._mat import damage
from neurobench_datasets._tables import THOUSANDS, explain_unreadable, find_column, read_table, read_text, unreadable

SUFFIXES = (".npy", ".npz", ".csv", ".tsv", ".1D", ".mat", ".txt")
"""Endings of names that are read, in capitals too."""

CIFTI = ".ptseries.nii"
"""What parcels of the Connectome Workbench end in; voxels and vertices (``.dtseries.nii``) are no regions."""

Orientation = Literal["times_first", "units_first"]

MIN_TIMES = 50
"""Recordings with fewer volumes are left out, as loaders of ADHD-200 do."""

COMMAS_IN = 100_000
"""Characters of a text in which decimal commas are looked for."""

POSITION_GROUPS = 8
"""Groups that are clustered from positions where a parcellation names none."""


# ---------------------------------------------------------------- one file


@dataclass(frozen=True, eq=False)
class Series:
    """A 2-D array of a file, either way round, with the names of its columns or rows where the file has them."""

    values: NDArray[Any]
    columns: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()


def rank(path: Path) -> int | None:
    """Return which of the endings that are read a name has; None if it has none."""
    if path.name.lower().endswith(CIFTI):
        return len(SUFFIXES)
    endings = [s.lower() for s in SUFFIXES]
    return endings.index(path.suffix.lower()) if path.suffix.lower() in endings else None


def read_series(path: Path, variable: str = "") -> Series:
    """Read the 2-D array of a ``.npy``, ``.npz``, ``.mat``, ``.csv``, ``.tsv``, ``.txt``, ``.1D`` or CIFTI file.

    Raises
    ------
    DataError
        If the file cannot be read, has no 2-D array of numbers, or a ``.mat`` or ``.npz`` has several and none is
        named.
    """
    suffix = path.suffix.lower()
    try:
        if suffix == ".npy":
            return Series(_two_d(np.load(path, allow_pickle=False), path))
        if suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return Series(_two_d(_one_array({name: archive[name] for name in archive.files}, path, variable), path))
        if suffix == ".mat":
            return Series(_two_d(_read_mat(path, variable), path))
        if suffix == ".nii":
            return _read_parcels(path)
    except DataError:
        raise
    except Exception as error:
        raise unreadable(path, error) from error
    return _read_text_series(path)


def _two_d(values: NDArray[Any], path: Path) -> NDArray[Any]:
    if values.ndim != 2 or not np.issubdtype(values.dtype, np.number) or np.iscomplexobj(values):
        raise DataError(
            f"{path.name} holds an array of shape {values.shape} and type {values.dtype}.",
            allowed="a 2-D array of real numbers, regions × volumes or volumes × regions",
        )
    return values


def _read_mat(path: Path, variable: str) -> NDArray[Any]:
    with open(path, "rb") as f:
        head = f.read(128)
    if head.startswith(b"\x89HDF\r\n\x1a\n") or b"MATLAB 7.3" in head:
        raise DataError(
            f"{path.name} is a MATLAB 7.3 (HDF5) file.",
            next_step="Save it again in MATLAB with save(..., '-v7'), or as .npy: h5py reads it, with rows and columns "
            "exchanged.",
        )
    # A zero among the first four bytes is how MATLAB 4 is told, whose reader takes nothing on trust.
    if explain_unreadable(path):
        raise unreadable(path)
    if 0 not in head[:4] and (why := damage(path)):
        raise DataError(f"{path.name} {why}.", next_step="Copy or save it again.")
    return _one_array({k: v for k, v in scipy.io.loadmat(path).items() if not k.startswith("__")}, path, variable)


def _one_array(found: Mapping[str, Any], path: Path, variable: str) -> NDArray[Any]:
    """Return the array of that name, or the only 2-D one."""
    arrays = {k: v for k, v in found.items() if isinstance(v, np.ndarray) and v.ndim == 2 and v.dtype.kind in "fiu"}
    arrays = {k: v for k, v in arrays.items() if min(v.shape) > 1}
    if variable:
        if variable not in found:
            raise DataError(f"{path.name} has no variable {variable!r}.", allowed=", ".join(found) or "nothing at all")
        return np.asarray(found[variable])
    if len(arrays) != 1:
        shown = ", ".join(f"{k} {v.shape[0]}×{v.shape[1]}" for k, v in arrays.items())
        raise DataError(
            f"{path.name} has {len(arrays)} two-dimensional arrays" + (f": {shown}." if shown else "."),
            allowed="exactly one, or the name of the one to use",
            next_step=f"Name it: [variable={next(iter(arrays), 'NAME')}].",
        )
    return np.asarray(next(iter(arrays.values())))


def _read_parcels(path: Path) -> Series:
    """Read a CIFTI file of parcels along time."""
    image, _, parcels = _cifti(path)
    return Series(_two_d(np.asarray(image.dataobj), path), tuple(map(str, parcels.name)))


def cifti_time(path: Path) -> float:
    """Return the repetition time in seconds that a CIFTI file of parcels says; 0 if its step is none of time.

    Raises
    ------
    DataError
        If it cannot be read.
    """
    try:
        _, time, _ = _cifti(path)
    except DataError:
        raise
    except Exception as error:
        raise unreadable(path, error) from error
    return float(time.step) if time.unit == "SECOND" else 0.0


def _cifti(path: Path) -> tuple[Any, Any, Any]:
    import nibabel as nib

    image: Any = nib.load(path)
    axes = [image.header.get_axis(i) for i in range(image.ndim)] if isinstance(image, nib.Cifti2Image) else []
    kinds = [type(a).__name__ for a in axes]
    if kinds != ["SeriesAxis", "ParcelsAxis"]:
        told = " × ".join(kinds) or "no CIFTI-2 image"
        raise DataError(
            f"{path.name} holds {told}.", allowed="parcels along time, as wb_command -cifti-parcellate gives"
        )
    return image, *axes


def _read_text_series(path: Path) -> Series:
    """Read a text file with or without a header and columns that name or count its rows."""
    text = read_text(path)
    line = next((x for x in text.splitlines() if x.strip() and not x.startswith("#")), "")
    separator = next((s for s in ("\t", ";", ",") if s in line), r"\s+")
    options: dict[str, Any] = {
        "sep": separator,
        "header": None,
        "comment": "#",
        "na_values": ["n/a"],
        "skipinitialspace": True,
        "decimal": "," if separator != "," and _decimal_commas(text) else ".",
    }
    try:
        first = pd.read_csv(io.StringIO(text), nrows=1, dtype=str, **options).iloc[0].fillna("").str.strip().tolist()
        plain = [c.replace(",", ".") for c in first] if options["decimal"] == "," else first
        header = first if _is_header(plain) else []
        body = io.StringIO(text[text.index(line) + len(line) :] if header else text)
        frame = pd.read_csv(body, low_memory=False, **options)
    except pd.errors.EmptyDataError as error:
        raise DataError(f"{path.name} holds no numbers.") from error
    except pd.errors.ParserError as error:
        raise unreadable(path, error) from error
    header = header or _commented(text, separator, frame.shape[1])
    header += [""] * (frame.shape[1] - len(header)) if header else []
    # Trailing separators leave empty columns without a name; a named region without data stays.
    kept = [i for i, c in enumerate(frame.columns) if (header and header[i]) or frame[c].notna().any()]
    frame, header = frame.iloc[:, kept], [header[i] for i in kept] if header else []
    index: list[str] = []
    # AFNI writes two columns before the numbers: file and sub-brick.
    n = 0
    while n < frame.shape[1] - 1 and _is_index(header[n] if header else None, frame.iloc[:, n]):
        n += 1
    if n:
        index, frame, header = frame.iloc[:, n - 1].astype(str).tolist(), frame.iloc[:, n:], header[n:]
    for column in frame.columns:
        if not pd.api.types.is_numeric_dtype(frame[column]):
            # Whole numbers of hundreds of digits are no text, and no numbers of any type either.
            cells = (str(c) for c in frame[column])
            cell = next((c for c in cells if pd.isna(pd.to_numeric(c, errors="coerce")) or len(c) > 40), "")
            raise DataError(f"{path.name} holds text where numbers are expected, such as {cell[:40]!r}.")
    return Series(_two_d(frame.to_numpy(np.float64), path), tuple(header), tuple(index))


def _commented(text: str, separator: str, n_columns: int) -> list[str]:
    """Return the names that a comment above the numbers gives every column, as C-PAC's and ABIDE's; or nothing."""
    above = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    names = [c.strip(" #") for c in re.split(separator, [*above, ""][-2 if text.startswith("#") else -1].lstrip("# "))]
    return names if len(names) == n_columns == len(set(names)) and all(names) else []


def _decimal_commas(text: str) -> bool:
    """Whether the commas of numbers are decimal signs: there are no points, and some comma divides no thousands."""
    numbers = re.findall(r"(?<![^\s;])[-+]?\d+[.,]\d+(?:[eE][-+]?\d+)?(?![^\s;])", text[:COMMAS_IN])
    return bool(numbers) and not any("." in n for n in numbers) and not all(map(THOUSANDS.fullmatch, numbers))


def _is_header(cells: list[str]) -> bool:
    """Whether a first row names columns: it has text, or counts them."""
    known = [c for c in cells if c not in ("", "n/a", "nan", "NaN", "NA")]
    text = bool(pd.to_numeric(pd.Series(known, dtype=object), errors="coerce").isna().any())
    return text or _counting(cells) or _counting(cells[1:])


def _counting(cells: list[str]) -> bool:
    """Whether cells are 0, 1, 2, … or 1, 2, 3, …: numbers of volumes or regions, not a signal."""
    return len(cells) > 2 and any(list(map(str, range(a, a + len(cells)))) == cells for a in (0, 1))


def _is_index(title: str | None, column: pd.Series) -> bool:
    """Whether a first column names or counts rows: by its text, by its title, or because it counts."""
    if not pd.api.types.is_numeric_dtype(column):
        try:
            return bool(pd.to_numeric(column, errors="coerce").isna().all())
        except OverflowError:
            return False  # Whole numbers of hundreds of digits, which the columns are refused for.
    words = ("", "index", "node", "region", "roi", "label", "volume", "time", "tr", "unnamed")
    if title is not None and re.split(r"[/:_ ]", title.lower())[0] in words:
        return True
    return len(column) > 2 and bool(
        (column - column.iloc[0] == np.arange(len(column))).all() and column.iloc[0] in (0, 1)
    )


def shape_of(path: Path, variable: str = "") -> tuple[tuple[int, int], frozenset[str], int | None]:
    """Return the shape of a file's array, the names of its regions if it has any, and the axis that they lie along if
    the names tell; reading as little as possible."""
    if path.suffix.lower() == ".npy":
        try:
            values = np.load(path, mmap_mode="r", allow_pickle=False)
        except Exception as error:
            raise unreadable(path, error) from error
        series = Series(_two_d(values, path))
    else:
        series = read_series(path, variable)
    rows, columns = map(int, series.values.shape)
    titles = ((series.columns, columns), (series.rows, rows))
    named = (t for t, n in titles if len(set(t)) == n and not all(c.isdigit() for c in t))
    telling = [axis for axis, t in enumerate((series.rows, series.columns)) if _names_regions(t)]
    axis = 1 if path.suffix.lower() == ".nii" else telling[0] if len(telling) == 1 else None
    return (rows, columns), frozenset(next(named, ())), axis


def _names_regions(titles: Sequence[str]) -> bool:
    """Whether titles are more than something counted, as V1, V2, … of R and vol_1, vol_2, … are."""
    return len({re.sub(r"\d+", "", t) for t in titles}) > 2


# ---------------------------------------------------------------- orientation


def decide_orientation(
    shapes: Sequence[tuple[int, int]], n_regions: int, wanted: str, component: str, axes: Sequence[int | None] = ()
) -> tuple[Orientation | None, int]:
    """Return which way round the files of a folder are (None: each file for itself), and the number of regions.

    Parameters
    ----------
    shapes
        Of all files.
    n_regions
        As a table of regions says; 0: there is none.
    wanted, component
        What the user says, and of which dataset.
    axes
        Along which axis the names in each file say that regions lie; None: they do not.

    Raises
    ------
    DataError
        If nothing settles it.
    """
    if wanted == "times_first":
        return "times_first", n_regions or Counter(s[1] for s in shapes).most_common(1)[0][0]
    if wanted == "units_first":
        return "units_first", n_regions or Counter(s[0] for s in shapes).most_common(1)[0][0]
    if n_regions:
        # Each file says by itself; a square one cannot.
        return None, n_regions
    told = set(axes)
    if told in ({0}, {1}):
        (axis,) = told
        return ("units_first", "times_first")[axis or 0], Counter(s[axis or 0] for s in shapes).most_common(1)[0][0]  # type: ignore[return-value]
    # Regions are what all files share; failing that, what nearly all do, for the sake of one odd file.
    first, n_first = Counter(s[0] for s in shapes).most_common(1)[0]
    second, n_second = Counter(s[1] for s in shapes).most_common(1)[0]
    most = 0.9 * len(shapes)
    if n_second >= most > n_first:
        return "times_first", second
    if n_first >= most > n_second:
        return "units_first", first
    example = f"{shapes[0][0]} × {shapes[0][1]}"
    why = (
        f"all {len(shapes)} files are {example}"
        if n_first == n_second == len(shapes)
        else f"nearly all of the {len(shapes)} files are {first} × {second}, and the others may be of another length "
        "or have lost regions"
        if min(n_first, n_second) >= most
        else "both dimensions differ from file to file"
    )
    raise DataError(
        f"it cannot be told which dimension is regions and which is volumes: {why}.",
        allowed="orientation=times_first (volumes × regions) or orientation=units_first (regions × volumes)",
        next_step=f"Say {component}[orientation=times_first], or list the regions in regions.tsv.",
    )


def units_first(values: NDArray[Any], n_regions: int, orientation: str, name: str) -> NDArray[Any]:
    """Return (units, times).

    Raises
    ------
    DataError
        If the array does not have the number of regions, or could be either way round.
    """
    rows, columns = values.shape
    if orientation:
        turned = values if orientation == "units_first" else values.T
    elif rows == n_regions and columns == n_regions:
        raise DataError(
            f"{name} is {rows} × {columns}, as many volumes as regions, so its orientation cannot be told.",
            next_step="Say orientation=times_first or orientation=units_first.",
        )
    else:
        turned = values if rows == n_regions else values.T
    if len(turned) != n_regions:
        raise DataError(f"{name} is {rows} × {columns}, and the parcellation has {n_regions} regions.")
    return turned


# ---------------------------------------------------------------- regions


FARTHEST_MM = 1e6
"""Coordinates beyond this are none of a brain's, in whatever unit they are."""


def read_regions(path: Path) -> pd.DataFrame:
    """Read a table of regions: column name, and if there are any group, x, y, z (mm)."""
    frame = read_table(path)
    name = find_column(list(frame.columns), ("name", "region", "label", "roi"))
    if not name:
        raise DataError(f"{path.name} has no column name; it has {', '.join(frame.columns)}.")
    table = pd.DataFrame({"name": frame[name].fillna("")})
    table["group"] = frame["group"].fillna("") if "group" in frame else ""
    for axis in "xyz":
        table[axis] = pd.to_numeric(frame[axis], errors="coerce") if axis in frame else np.nan
        if (far := table[axis].abs() > FARTHEST_MM).any():
            raise DataError(
                f"{path.name} puts {table['name'][far].iloc[0]} at {axis} = {frame[axis][far].iloc[0][:40]} mm.",
                next_step="Correct it, or leave the cell empty: positions are in mm.",
            )
    if (table["name"] == "").any():
        raise DataError(
            f"{path.name} has {int((table['name'] == '').sum())} regions without a name.",
            next_step="Give every region a name.",
        )
    # Real tables do repeat names (MIST-122 has four pairs); the second of a kind gets a number.
    nth = table.groupby("name").cumcount() + 1
    table["name"] = [n if k == 1 else f"{n}#{k}" for n, k in zip(table["name"], nth, strict=True)]
    return table


def unnamed_regions(n: int) -> pd.DataFrame:
    """Return a table of ``n`` regions of which nothing is known."""
    width = len(str(n))
    names = [f"region-{i:0{width}d}" for i in range(1, n + 1)]
    return pd.DataFrame({"name": names, "group": "", "x": np.nan, "y": np.nan, "z": np.nan})


def units_of(table: pd.DataFrame) -> UnitTable:
    """Return the unit table of a table of regions; without groups they are clustered from positions.

    Clustering is Ward's, on x, y, z in mm: the same positions give the same groups.
    """
    position = table[["x", "y", "z"]].to_numpy(np.float64)
    groups = table["group"].tolist()
    source: Literal["anatomical", "position", "none"] = "anatomical" if any(groups) else "none"
    if source == "none" and np.isfinite(position).all() and len(table) > 1:
        groups, source = position_groups(position), "position"
    return UnitTable.from_groups(
        names=tuple(table["name"]), groups=tuple(groups), position_mm=position.astype(np.float32), group_source=source
    )


def position_groups(position_mm: NDArray[np.float64]) -> list[str]:
    """Return a group for every position: Ward clusters, numbered from back to front."""
    n = min(POSITION_GROUPS, len(position_mm))
    tree = scipy.cluster.hierarchy.linkage(position_mm, "ward")
    label = scipy.cluster.hierarchy.fcluster(tree, n, criterion="maxclust")
    centre = {g: position_mm[label == g].mean(0) for g in np.unique(label)}
    ranked = sorted(centre, key=lambda g: (round(centre[g][1], 3), round(centre[g][0], 3)))
    number = {g: i for i, g in enumerate(ranked, 1)}
    return [f"position-{number[g]:02d}" for g in label]


def units_findings(units: UnitTable) -> list[Finding]:
    """Return what a reader should know of the names and of where groups come from."""
    findings = []
    numbered = [n for n in units.names if re.search(r"#\d+$", n)]
    if numbered:
        text = f"{len(numbered)} names of regions are not unique and got a number: {', '.join(numbered[:4])}"
        findings.append(Finding("info", "region-names", text))
    if units.group_source == "position":
        text = f"the regions have no groups; {len(units.region_names)} were clustered from positions, not anatomical"
        findings.append(Finding("info", "groups-from-position", text, fix="add a column group to regions.tsv"))
    if units.group_source == "none":
        text = "the regions have neither groups nor positions, so masks that need regions are refused"
        findings.append(Finding("info", "no-groups", text, fix="add columns name, group, x, y, z in a regions.tsv"))
    return findings


def evenly(n: int, wanted: int) -> NDArray[np.int64]:
    """Return ``wanted`` of ``n`` indices, evenly spaced; all if ``wanted`` is 0 or not less than ``n``."""
    if wanted <= 0 or wanted >= n:
        return np.arange(n)
    return np.linspace(0, n - 1, wanted).round().astype(np.int64)


@lru_cache(maxsize=8)
def cached_units(path: Path, digest: str, n_units: int) -> UnitTable:
    """Return the unit table of a regions file; ``digest`` makes a changed file another one."""
    table = read_regions(path)
    return units_of(table).take(evenly(len(table), n_units))

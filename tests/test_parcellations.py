"""Files of several parcellations in one folder are refused where anything tells of them, and never read as one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from neurobench.errors import DataError
from neurobench.listing import listed
from neurobench_datasets.parcels import Parcels

N = 8
RNG = np.random.default_rng(0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "timeseries").mkdir()
    ids = [f"sub-{i:02d}" for i in range(1, N + 1)]
    pd.DataFrame({"participant_id": ids, "t_r": 2.0}).to_csv(tmp_path / "participants.tsv", sep="\t", index=False)
    return tmp_path


def add(root: Path, name: str, shape: tuple[int, int], who: range = range(1, N + 1)) -> None:
    for i in who:
        np.save(root / "timeseries" / f"sub-{i:02d}{name}.npy", RNG.standard_normal(shape))


def add_named(root: Path, name: str, regions: list[str], who: range = range(1, N + 1), n_times: int = 100) -> None:
    for i in who:
        table = pd.DataFrame(RNG.standard_normal((n_times + i, len(regions))), columns=regions)
        table.to_csv(root / "timeseries" / f"sub-{i:02d}{name}.tsv", sep="\t", index=False)


@pytest.mark.parametrize("turned", [False, True])
def test_two_kinds_of_files_that_differ_in_one_dimension(folder: Path, turned: bool) -> None:
    for name, shape in (("_A", (100, 60)), ("_B", (100, 80))):
        add(folder, name, shape[::-1] if turned else shape)
    with pytest.raises(
        DataError, match=r"several parcellations or several lengths: sub-01_A\.npy and 7 more"
    ) as caught:
        listed(Parcels(), folder)
    assert "orientation=times_first" in caught.value.next_step
    # Who says which way round they are says that they are lengths; files of other regions are then refused one by one.
    way = "times_first" if turned else "units_first"
    assert len(listed(Parcels(orientation=way), folder).recordings) == 2 * N
    (folder / "regions.tsv").write_text("name\n" + "\n".join(f"r{i}" for i in range(60)) + "\n")
    assert {r.run for r in listed(Parcels(), folder).recordings} == {"", "B"}


@pytest.mark.parametrize(
    ("first", "second"),
    [("_run-1", "_run-2"), ("_task-rest", "_task-film"), ("_rest1", "_rest2"), ("_ses-1", "_ses-2")],
)
def test_runs_tasks_and_sessions_may_be_of_several_lengths(folder: Path, first: str, second: str) -> None:
    add(folder, first, (100, 12))
    add(folder, second, (80, 12))
    assert len(listed(Parcels(), folder).recordings) == 2 * N


def test_lengths_that_differ_among_people_are_lengths(folder: Path) -> None:
    add(folder, "_rest", (100, 12))
    add(folder, "_film", (80, 12))
    add(folder, "_film", (90, 12), range(1, 2))
    assert len(listed(Parcels(), folder).recordings) == 2 * N


def test_regions_of_other_names_are_another_parcellation(folder: Path) -> None:
    add_named(folder, "_A", [f"aal-{i}" for i in range(12)])
    add_named(folder, "_B", [f"cc-{i}" for i in range(12)])
    with pytest.raises(DataError, match=r"8 of 16 files in .* have other regions than the rest: aal-0, … in sub-01_A"):
        listed(Parcels(), folder)
    with pytest.raises(DataError, match="other regions"):
        listed(Parcels(orientation="times_first"), folder)


def test_half_of_the_people_in_another_parcellation(folder: Path) -> None:
    add_named(folder, "", [f"aal-{i}" for i in range(12)], range(1, 5))
    add_named(folder, "", [f"cc-{i}" for i in range(12)], range(5, N + 1))
    with pytest.raises(DataError, match="4 of 8 files"):
        listed(Parcels(), folder)


def test_a_region_less_is_no_other_parcellation(folder: Path) -> None:
    names = [f"aal-{i}" for i in range(12)]
    add_named(folder, "", names, range(1, 8))
    add_named(folder, "", names[:-1], range(8, N + 1))
    assert len(listed(Parcels(orientation="times_first"), folder).recordings) == N


def test_ids_of_names_are_met_without_their_zeros(folder: Path) -> None:
    for i in range(1, N + 1):
        np.save(folder / "timeseries" / f"{i:07d}_rest.npy", RNG.standard_normal((100 + i, 12)))
    listing = listed(Parcels(), folder)
    assert [r.subject for r in listing.recordings] == [f"sub-{i:02d}" for i in range(1, N + 1)]
    (said,) = (f.message for f in listing.findings if f.code == "zeros-lost")
    assert said == "8 names of files have other zeros than the ids of the table: 0000001_rest.npy is sub-01"
    np.save(folder / "timeseries" / "0000099.npy", RNG.standard_normal((100, 12)))
    assert [f.path[-11:] for f in listed(Parcels(), folder).findings if f.code == "unknown-id"] == ["0000099.npy"]

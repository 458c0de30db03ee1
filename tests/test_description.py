"""What a folder says of itself is what records call it; it never widens what may leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neurobench import DataError
from neurobench.cohorts import CohortSource
from neurobench.data_check import check_data
from neurobench.store import Store
from neurobench_datasets._description import FILE, MAX_CHARACTERS, described
from neurobench_datasets.bids import BIDS
from neurobench_datasets.parcels import Parcels
from tests.test_dataset_bids import atlas_in, write_run

GIVEN: dict[str, Any] = {
    "Name": "Sleepers of Somewhere, release 2",
    "BIDSVersion": "1.8.0",
    "License": "CC0",
    "Authors": ["Doe, J.", "", "Roe, R."],
    "ReferencesAndLinks": ["Doe and Roe 2020"],
    "DatasetDOI": "https://doi.org/10.18112/openneuro.ds000001.v1.0.0",
}


def write(folder: Path, content: Any) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / FILE).write_text(text, encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "mine"
    (root / "timeseries").mkdir(parents=True)
    people = "".join(f"sub-{i}\t{20 + i}\t2\n" for i in range(4))
    (root / "participants.tsv").write_text("participant_id\tage\tt_r\n" + people, encoding="utf-8")
    rng = np.random.default_rng(0)
    for i in range(4):
        np.save(root / "timeseries" / f"sub-{i}.npy", rng.standard_normal((150, 6)))
    return root


def test_a_cohort_carries_it_before_and_after_it_is_stored(folder: Path, tmp_path: Path) -> None:
    data, store = Parcels(orientation="times_first"), Store(tmp_path / "out")

    def load() -> Any:
        return CohortSource(data, "parcels", {"name": "parcels"}, data.spec, folder).load(store, workers=1)

    plain = load()
    assert plain.card == data.card
    write(folder, GIVEN)
    first, again = load(), load()
    assert first.card == again.card
    assert first.card.title == "Sleepers of Somewhere, release 2"
    assert first.card.licence == "CC0"
    assert first.card.cite() == (
        "Doe, J., Roe, R.: Sleepers of Somewhere, release 2; Doe and Roe 2020 doi:10.18112/openneuro.ds000001.v1.0.0"
    )
    # What the numbers are of is what it was: a name is no part of an identity. And a licence is nobody's consent.
    assert first.fingerprint == plain.fingerprint
    assert first.card.may_leave == "aggregates"
    assert first.card.traps == data.card.traps
    report = check_data(data, folder)
    assert (report.title, report.licence) == (first.card.title, "CC0")


def test_bids_reads_it_where_the_table_of_people_is(tmp_path: Path) -> None:
    write_run(tmp_path, "01")
    derivatives, atlas = tmp_path / "derivatives" / "fmriprep", atlas_in(tmp_path)
    (tmp_path / "participants.tsv").write_text("participant_id\tage\nsub-01\t30\n", encoding="utf-8")
    write(derivatives, GIVEN | {"Name": "fMRIPrep - fMRI PREProcessing workflow"})
    write(tmp_path, GIVEN)
    card = BIDS(atlas=str(atlas)).list_recordings(derivatives).card
    assert card is not None
    assert card.title == GIVEN["Name"]


def test_what_is_not_said_stays_that_of_the_dataset(tmp_path: Path) -> None:
    card = Parcels().card
    assert described(card, tmp_path) is card
    write(tmp_path, {"Name": " A\ncohort ", "License": "n/a", "Authors": [""], "DatasetDOI": "", "Funding": 3})
    found = described(card, tmp_path)
    assert (found.title, found.licence, found.citation, found.doi) == ("A cohort", card.licence, card.citation, "")
    write(tmp_path, {"Name": "A", "HowToAcknowledge": "x" * 2_000, "Authors": "Doe, J.", "License": "a\x1b[31mb"})
    found = described(card, tmp_path)
    assert len(found.citation) == MAX_CHARACTERS
    assert found.licence == "a[31mb"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is empty"),
        ("{", "is not JSON"),
        ("[]", "holds no names"),
        ("version https://git-lfs.github.com/spec/v1", "git-LFS pointer"),
        ({"BIDSVersion": "1.8.0"}, "has no Name"),
        ({"Name": "n/a"}, "has no Name"),
        ({"Name": 3}, "Name is int"),
        ({"Name": "A", "License": ["CC0"]}, "License is list"),
        ({"Name": "A", "Authors": [{"name": "Doe"}]}, "Authors holds dict"),
        ({"Name": "A", "DatasetDOI": "soon"}, "'soon' is no DOI"),
    ],
)
def test_a_broken_one_is_an_error(tmp_path: Path, content: Any, says: str) -> None:
    write(tmp_path, content)
    with pytest.raises(DataError, match=says):
        described(Parcels().card, tmp_path)

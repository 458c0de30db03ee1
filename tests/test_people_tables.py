"""Tables of people as people keep them: what can be read with certainty is read, the rest is missing and said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from neurobench.data_check import check_data
from neurobench.errors import DataError
from neurobench.listing import listed
from neurobench.records import Listing
from neurobench_datasets._tables import numbers, read_table
from neurobench_datasets.adhd200 import ADHD200
from neurobench_datasets.camcan import CamCAN
from neurobench_datasets.meg_headache import MegHeadache
from neurobench_datasets.parcels import Parcels

IDS = [f"sub-{i:05d}" for i in range(1, 25)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "timeseries").mkdir()
    rng = np.random.default_rng(0)
    for i, name in enumerate(IDS):
        np.save(tmp_path / "timeseries" / f"{name}.npy", rng.standard_normal((100 + i % 2, 12)))
    return tmp_path


def people(**columns: object) -> pd.DataFrame:
    table = {"participant_id": IDS, "age": np.arange(24) + 20.5, "t_r": 2.0, "sex": ["F", "M"] * 12}
    return pd.DataFrame(table | columns)


def of(root: Path, table: pd.DataFrame | bytes, **parameters: str) -> tuple[pd.DataFrame, dict[str, str]]:
    if isinstance(table, bytes):
        (root / "participants.tsv").write_bytes(table)
    else:
        table.to_csv(root / "participants.tsv", sep="\t", index=False)
    listing = listed(Parcels(**parameters), root)  # type: ignore[arg-type]
    return listing.participants, {f.code: f.message for f in listing.findings if f.level != "info"}


def test_a_table_as_a_german_spreadsheet_saves_it(folder: Path) -> None:
    expected, told = of(folder, people())
    assert told == {}
    text = people().to_csv(sep=";", decimal=",", index=False, lineterminator="\r\n")
    text = text.replace(";age;", "; age ;").replace("sub-00003;", "sub-00003 ;") + ";;;\r\n" * 30
    for encoding in ("utf-8-sig", "latin-1"):
        table, told = of(folder, text.encode(encoding))
        pd.testing.assert_frame_equal(table, expected)
        assert told == {}
    report = check_data(Parcels(), folder)
    assert [f.message for f in report.findings if f.code == "table-form"] == [
        "participants.tsv has commas as decimal sign in age, t_r"
    ]


def test_commas_that_may_divide_thousands_are_not_guessed(folder: Path) -> None:
    ages = [f"{a},125" for a in range(20, 44)]
    table, told = of(folder, people(age=ages, t_r=2))
    assert table["age"].isna().all()
    assert "24 values of age in participants.tsv are no numbers and count as missing: 20,125" in told["not-a-number"]
    table, told = of(folder, people(age=ages, iq="98,5", t_r=2))
    assert table["age"].tolist() == [a + 0.125 for a in range(20, 44)]
    assert table["iq"].eq(98.5).all()
    assert told == {}


def test_ages_with_units_and_ages_that_are_none(folder: Path) -> None:
    ages = ["20 years", "21y", "022Y", "89+", "11. Mai", "-999,0", "#N/A", *(f"{a},5" for a in range(27, 44))]
    table, told = of(folder, people(age=ages))
    assert table["age"].tolist()[:3] == [20, 21, 22]
    assert table["age"].isna().tolist() == [False] * 3 + [True] * 4 + [False] * 17
    assert told["not-a-number"].startswith("2 values of age in participants.tsv are no numbers and count as missing")
    assert "89+, 11. Mai" in told["not-a-number"]


@pytest.mark.parametrize(
    ("dictionary", "codes", "sexes"),
    [
        ({}, ["1", "2"], None),
        ({}, ["w", "Männlich"], ["F", "M"]),
        ({}, ["F", "1"], None),
        ({"sex": {"Levels": {"1": "male", "2": "female"}}}, ["1", "2"], ["M", "F"]),
        (
            {"Sex": {"Levels": {"1": {"Description": "Female participant"}, "2": {"Description": "Male"}}}},
            ["1.0", "2.0"],
            ["F", "M"],
        ),
        ({"sex": {"Levels": {"1": "male"}}}, ["1", "2"], None),
        ({"sex": {"Levels": {"1": "male or female", "2": "unknown"}}}, ["1", "2"], None),
    ],
)
def test_codes_of_sex_are_what_the_dictionary_says_or_none(
    folder: Path, dictionary: object, codes: list[str], sexes: list[str] | None
) -> None:
    (folder / "participants.json").write_text(json.dumps(dictionary), encoding="utf-8-sig")
    table, told = of(folder, people(sex=codes * 12))
    assert ("sex" in table) == (sexes is not None)
    assert ("sex-coding" in told) == (sexes is None)
    if sexes is not None:
        assert table["sex"].tolist() == sexes * 12


def test_the_user_is_believed_before_the_dictionary_and_a_third_sex_is_missing(folder: Path) -> None:
    (folder / "participants.json").write_text(json.dumps({"sex": {"Levels": {"1": "male", "2": "female"}}}))
    table, _ = of(folder, people(sex=["1", "2"] * 12), female_code="1")
    assert table["sex"].tolist() == ["F", "M"] * 12
    table, told = of(folder, people(sex=["F", "M", "O"] * 8))
    assert table["sex"].tolist() == ["F", "M", None] * 8
    assert told == {}
    assert "8 values of sex in participants.tsv are neither" in listed(Parcels(), folder).findings[0].message


def test_the_dictionary_says_units_of_age_and_codes_of_diagnosis(folder: Path) -> None:
    said = {"age": {"Units": "months"}, "diagnosis": {"Levels": {"1": "Patient", "2": "Control", "x": "a sentence"}}}
    (folder / "participants.json").write_text(json.dumps(said))
    table, told = of(folder, people(age=120, diagnosis=["1", "2"] * 12))
    assert told == {}
    assert table["age"].eq(10).all()
    assert table["diagnosis"].tolist() == ["patient", "control"] * 12
    (folder / "participants.json").write_text(json.dumps({"age": {"Units": "fortnights"}}))
    assert "says that ages are in 'fortnights'" in of(folder, people())[1]["unit-of-age"]
    (folder / "participants.json").write_text("{")
    with pytest.raises(DataError, match=r"participants\.json is not JSON"):
        of(folder, people())


def test_ids_that_a_spreadsheet_has_spoiled(folder: Path) -> None:
    bare = [i.removeprefix("sub-0000").removeprefix("sub-000") for i in IDS]
    table, told = of(folder, people(participant_id=[f"{b}.0" for b in bare]))
    assert table.index.tolist() == sorted(bare)
    assert told == {}
    assert len(listed(Parcels(), folder).recordings) == 24
    table, told = of(folder, people(participant_id=["1,0E+05", "1.0E+05", *IDS[2:]]))
    assert len(table) == 22
    assert "2 ids of participants.tsv were shortened by a spreadsheet, such as 1,0E+05" in told["shortened-id"]


def test_one_person_under_two_spellings_of_an_id(folder: Path) -> None:
    table, told = of(folder, people(participant_id=["00002", *IDS[1:]]))
    assert len(table) == 22
    assert told["duplicate-id"].startswith("00002 has 2 different rows")


def test_two_columns_of_one_name_are_refused(folder: Path) -> None:
    text = people().to_csv(sep="\t", index=False).replace("\tt_r\t", "\tage\t")
    with pytest.raises(DataError, match="several columns of one name: age"):
        of(folder, text.encode())


def test_columns_without_a_name_may_be_several(tmp_path: Path) -> None:
    table = tmp_path / "participants.csv"
    table.write_text("participant_id, ,  ,,age\nsub-1,,x,,9\n")
    assert read_table(table)["age"].tolist() == ["9"]
    # The second blank is ` .1` for pandas, and would be a second `.1`.
    table.write_text("participant_id, , ,.1\nsub-1,,,9\n")
    with pytest.raises(DataError, match=r"several columns of one name: \.1"):
        read_table(table)


def test_numbers_say_whose_they_are() -> None:
    findings: list = []
    assert numbers(pd.Series(["1", None, "x"], name="iq"), Path("t.csv"), findings).tolist()[:1] == [1.0]
    assert [f.message for f in findings] == ["1 values of iq in t.csv are no numbers and count as missing: x"]


def test_a_table_of_numbers_keeps_its_empty_rows(tmp_path: Path) -> None:
    path = tmp_path / "confounds.tsv"
    path.write_text("framewise_displacement\nn/a\n0.1\n")
    assert len(read_table(path)) == 2


# ---------------------------------------------------------------- the releases


def adhd(root: Path, edit: object, encoding: str = "utf-8") -> Listing:
    ADHD200().simulate(root, n_subjects=8, seed=0, variant="default")
    tables = []
    for path in sorted(root.rglob("*_phenotypic.csv")):
        tables.append(pd.read_csv(path, dtype=str, keep_default_na=False, encoding="latin-1"))
        path.unlink()
    whole = pd.concat([t.rename(columns={"ScanDirID": "ScanDir ID"}) for t in tables], ignore_index=True)
    text = edit(whole)  # type: ignore[operator]
    (root / "all_phenotypic.csv").write_bytes(text.encode(encoding))
    return listed(ADHD200(), root)


def test_adhd200_reads_ages_with_decimal_commas(tmp_path: Path) -> None:
    whole = adhd(tmp_path / "a", lambda t: t.to_csv(index=False))
    german = adhd(
        tmp_path / "b",
        lambda t: t.assign(Age=t["Age"].str.replace(".", ",")).to_csv(sep=";", index=False, lineterminator="\r\n"),
        "utf-8-sig",
    )
    pd.testing.assert_frame_equal(german.participants, whole.participants)
    assert whole.participants["age"].notna().all()
    spoiled = adhd(tmp_path / "c", lambda t: t.assign(Age="11. Mai").to_csv(sep=";", index=False))
    assert spoiled.participants["age"].isna().all()
    assert [f.level for f in spoiled.findings if f.code == "not-a-number"] == ["warning"]


@pytest.mark.parametrize(
    ("codes", "sexes"),
    [
        (["0", "1"], {"F", "M"}),
        (["0.0", "1.0"], {"F", "M"}),
        (["male", "Female"], {"F", "M"}),
        (["M", "-999"], {"M", None}),
        (["1", "2"], {None}),
        (["1", "F"], {"F", "M"}),
    ],
)
def test_adhd200_takes_the_release_s_key_of_sex_or_none(
    tmp_path: Path, codes: list[str], sexes: set[str | None]
) -> None:
    listing = adhd(tmp_path, lambda t: t.assign(Gender=np.resize(codes, len(t))).to_csv(index=False))
    assert set(listing.participants["sex"]) == sexes
    told = [f for f in listing.findings if f.code == "sex-coding"]
    assert bool(told) == (sexes == {None})
    if told:
        assert "Gender" in told[0].message
        assert "0 is female and 1 is male" in told[0].fix


def test_adhd200_believes_no_code_where_another_table_has_other_ones(tmp_path: Path) -> None:
    ADHD200().simulate(tmp_path, n_subjects=8, seed=0, variant="default")
    for path in tmp_path.rglob("*_phenotypic.csv"):
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="latin-1")
        table.assign(Gender=table["Gender"].replace("0", "2")).to_csv(path, index=False)
    listing = listed(ADHD200(), tmp_path)
    assert listing.participants["sex"].isna().all()
    assert any("of other tables have codes of sex" in f.message for f in listing.findings)


def test_adhd200_says_ids_that_are_none_and_rows_that_contradict_each_other(tmp_path: Path) -> None:
    def edit(table: pd.DataFrame) -> str:
        first = table.iloc[[0]]
        ids = table.columns[0]
        more = [first.assign(**{ids: "1,0E+05"}), first.assign(**{ids: "Mean"}), first.assign(Age="30.5", Gender="2")]
        return pd.concat([table, *more]).replace({"Gender": {"2": "1"}}).to_csv(sep=";", index=False)

    listing = adhd(tmp_path, edit)
    told = [f.message for f in listing.findings]
    assert any("shortened by a spreadsheet" in t for t in told)
    assert any("1 ids of" in t and "Mean" in t for t in told)
    assert any("2 rows with different values of age; none of them is used" in t for t in told)
    assert listing.participants["age"].isna().sum() == 1


def test_camcan_says_rows_without_a_ccid(tmp_path: Path) -> None:
    CamCAN().simulate(tmp_path, n_subjects=8, seed=0, variant="default")
    (path,) = tmp_path.rglob("standard_data.csv")
    table = pd.read_csv(path, dtype=str)
    whole = listed(CamCAN(), tmp_path).participants
    table["CCID"] = [f"sub-{table['CCID'][0]}x", *(c.removeprefix("CC") for c in table["CCID"][1:])]
    table.to_csv(path, index=False, sep=";")
    listing = listed(CamCAN(), tmp_path)
    (told,) = (f.message for f in listing.findings if f.code == "no-id")
    assert told.endswith(f"their rows are left out: {table['CCID'][0].removeprefix('sub-').upper()}")
    pd.testing.assert_frame_equal(listing.participants.iloc[1:], whole.iloc[1:])


def test_meg_finds_people_whose_ids_lost_their_zeros(tmp_path: Path) -> None:
    MegHeadache().simulate(tmp_path, n_subjects=2, seed=0, variant="default")
    table = pd.read_csv(tmp_path / "participants.tsv", sep="\t").assign(participant_id=[1, 2])
    table.to_csv(tmp_path / "participants.tsv", sep="\t", index=False)
    listing = listed(MegHeadache(), tmp_path)
    assert listing.participants.index.tolist() == ["sub-1", "sub-2"]
    assert {r.subject for r in listing.recordings} == {"sub-1", "sub-2"}
    assert not [f for f in listing.findings if f.level == "error"]


def test_sex_in_other_languages(folder: Path) -> None:
    known, _ = of(folder, people(sex=["Femme", "homme"] * 12))
    assert known["sex"].tolist() == ["F", "M"] * 12
    known, _ = of(folder, people(sex=["F", "H"] * 12))
    assert known["sex"].tolist() == ["F", "M"] * 12
    # A Spanish M is a woman, so a man among men is none.
    known, told = of(folder, people(sex=["M", "H"] * 12))
    assert "sex" not in known
    assert "M may be mujer" in told["sex-coding"]
    known, _ = of(folder, people(sex=["M", "H"] * 12), female_code="M")
    assert known["sex"].tolist() == ["F", "M"] * 12


def test_headers_in_other_languages_are_recognised(folder: Path) -> None:
    table = people().rename(columns={"age": "Âge", "sex": "Geschlecht"}).assign(Gruppe=["Migräne", "gesund"] * 12)
    table.to_csv(folder / "participants.csv", sep=";", index=False, encoding="latin-1")
    told = [f.message for f in check_data(Parcels(), folder).findings if f.code == "column-name"]
    for said in ("no column age; Âge", "no column sex; Geschlecht", "no column diagnosis; Gruppe"):
        assert any(said in message for message in told), told

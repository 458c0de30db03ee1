"""Who took part in ADHD-200: the phenotype tables of all sites, in all the forms in which they are given out.

========================================== ===========================================================
``<SITE>_phenotypic.csv``                  eight sites; ``_TestRelease_`` without labels
``allSubs_testSet_phenotypic_dx.csv``      the labels of the test release, published later
``adhd200_preprocessed_phenotypics.tsv``   all sites, with the visual control of Athena and NIAK
``ADHD200_40subs_…_phenotypics.csv``       of nilearn's download
``participants.tsv``                       of the BIDS release; diagnosis in words, some in latin-1
========================================== ===========================================================

Codes: −999 and empty are missing; DX 0 typically developing, 1 combined, 2 hyperactive-impulsive, 3 inattentive,
``pending`` and ``withheld`` none; Gender 0 female, 1 male; QC_Rest 1 passed, 0 questionable, empty: no such run.
"""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from neurobench import DataError, Finding
from neurobench_datasets._tables import (
    find_column,
    numbers,
    read_dictionary,
    read_table,
    sex_codes,
    sex_of,
    typed,
    usable_ids,
)

SITES = ("Peking", "Brown", "KKI", "NeuroIMAGE", "NYU", "OHSU", "Pittsburgh", "WashU")

SITE_OF_CODE = {str(i): site for i, site in enumerate(SITES, 1)}

SUBTYPE = {"0": "control", "1": "combined", "2": "hyperactive-impulsive", "3": "inattentive"}

WORDS = (
    ("typically developing", "control"),
    ("hyperactive", "hyperactive-impulsive"),
    ("inattentive", "inattentive"),
    ("combined", "combined"),
)
"""What a diagnosis in words contains, and what it means."""

ALIASES = {
    "age": "age",
    "handedness": "handedness",
    "full4 iq": "full_iq",
    "full_4_iq": "full_iq",
    "full2 iq": "full2_iq",
    "full_2_iq": "full2_iq",
    "verbal iq": "verbal_iq",
    "viq": "verbal_iq",
    "performance iq": "performance_iq",
    "piq": "performance_iq",
    "adhd index": "adhd_index",
    "adhd_index": "adhd_index",
    "inattentive": "inattentive",
    "hyper/impulsive": "hyper_impulsive",
    "hyper_impulsive": "hyper_impulsive",
    "meanfd": "mean_fd",
}
"""Columns of the tables, in lower case, and what they are called here; the first that a table has counts."""

NUMBERS = ("age", "full_iq", "full2_iq", "verbal_iq", "performance_iq", "mean_fd")

SEX = {"0": "F", "1": "M"}
"""The release's key."""

PATTERNS = (
    "*_phenotypic*.csv",
    "adhd200_preprocessed_phenotypics.tsv",
    "ADHD200_40subs_motion_parameters_and_phenotypics.csv",
    "participants.tsv",
)

IDS = ("scandir id", "scandirid", "participant_id", "id", "subject")


def read_phenotypes(root: Path, findings: list[Finding]) -> pd.DataFrame:
    """Return the participants of all phenotype tables under a folder, indexed by seven-digit id.

    Raises
    ------
    DataError
        If there is none, or none has identifiers.
    """
    found = dict.fromkeys(p for pattern in PATTERNS for p in sorted(root.rglob(pattern)))
    tables = [p for p in found if not {"templates", "derivatives"} & set(p.relative_to(root).parts)]
    if not tables:
        raise DataError(
            f"{root} has no phenotype table.",
            allowed="<SITE>/<SITE>_phenotypic.csv, <SITE>_TestRelease_phenotypic.csv, participants.tsv of the BIDS "
            "release, or nilearn's ADHD200_40subs_motion_parameters_and_phenotypics.csv",
            next_step="They come with the archives; put them into the same folder.",
        )
    parts = []
    for path in tables:
        try:
            parts.append(_one_table(path, findings))
        except DataError as error:
            findings.append(Finding("error", "unreadable", str(error), path=str(path)))
    if not parts:
        raise DataError(f"no phenotype table under {root} can be used: {findings[-1].message}")
    whole = pd.concat(parts)
    coded = whole.pop("sex_coded").astype(bool)
    # Who wrote other codes into one table did so in those, too, where by chance only 1 occurs.
    if any(f.code == "sex-coding" for f in findings) and coded.any():
        text = f"{int(coded.sum())} rows of other tables have codes of sex, which are not believed either"
        findings.append(Finding("warning", "sex-coding", text, fix="write F and M into all tables"))
        whole["sex"] = whole["sex"].mask(coded, None)
    for subject in dict.fromkeys(whole.index[whole.index.duplicated()]):
        rows = whole.loc[[subject]]
        if rows["diagnosis"].nunique() > 1 or rows["site"].nunique() > 1:
            text = f"{subject} has {len(rows)} rows that contradict each other; none is used"
            findings.append(Finding("error", "duplicate-id", text, subject=str(subject), fix="keep the right row"))
            whole = whole.drop(index=subject)
        for name, apart in (("age", 1.5), ("sex", 0)):
            known = rows[name].dropna() if name in rows else rows.iloc[:0, 0]
            if known.nunique() > 1 and (name == "sex" or known.max() - known.min() > apart):
                text = f"{subject} has {len(rows)} rows with different values of {name}; none of them is used"
                findings.append(
                    Finding("warning", "duplicate-id", text, subject=str(subject), fix="keep the right one")
                )
                whole[name] = whole[name].mask(whole.index == subject)
    # A subject of the test release may have a second row, with the label that was withheld at first.
    whole = whole.groupby(level=0, sort=True).first().dropna(axis=1, how="all")
    for name in ("age", "sex", "site", "diagnosis", "dx_subtype"):
        if name not in whole:
            whole[name] = None
    if whole.empty:
        raise DataError(f"no phenotype table under {root} has a usable identifier.")
    return whole


def _one_table(path: Path, findings: list[Finding]) -> pd.DataFrame:
    frame, dictionary = read_table(path).dropna(how="all"), read_dictionary(path)
    id_column = find_column(list(frame.columns), IDS)
    if not id_column:
        raise DataError(
            f"{path.name} has no column of identifiers; it has {', '.join(frame.columns[:6])}.",
            allowed="ScanDir ID, ScanDirID, participant_id, ID or Subject",
        )
    ids = usable_ids(frame[id_column], path, findings).str.removeprefix("sub-")
    strange = ids[~ids.map(lambda i: re.fullmatch(r"\d+", i) is not None).astype(bool)]
    if len(strange):
        text = f"{len(strange)} ids of {path.name} are no numbers, and their rows are left out"
        findings.append(Finding("warning", "no-id", f"{text}: {', '.join(dict.fromkeys(strange[:3]))}", path=str(path)))
    ids = ids.drop(strange.index)
    frame = frame.loc[ids.index]
    lower: dict[str, str] = {}
    for column in frame.columns:
        lower.setdefault(column.lower(), column)
    table = pd.DataFrame(index=pd.Index(ids.str.zfill(7), name="participant_id", dtype=object))
    for column, name in ALIASES.items():
        if column not in lower or name in table:
            continue
        if name in NUMBERS:
            known = numbers(frame[lower[column]], path, findings, age=name == "age")
            table[name] = known.where(known > 0).to_numpy()
        else:
            table[name] = typed(frame[lower[column]]).to_numpy()
    sex = None
    table["sex_coded"] = False
    if column := next((lower[c] for c in ("gender", "sex") if c in lower), ""):
        fix = "write F and M, or give the release's own table, where 0 is female and 1 is male"
        codes = sex_codes(dictionary, column) or SEX
        table["sex_coded"] = (
            codes is SEX and frame[column].str.startswith(("0", "1")).fillna(False).astype(bool).to_numpy()
        )
        sex = sex_of(frame[column], codes, path=path, fix=fix, findings=findings)
    table["sex"] = pd.Series([None] * len(table) if sex is None else sex.tolist(), table.index, object)
    subtype, diagnosis = _diagnoses(frame, lower)
    table["dx_subtype"] = pd.Series(subtype, table.index, object)
    table["diagnosis"] = pd.Series(diagnosis, table.index, object)
    table["site"] = pd.Series(_sites(frame, lower, path), table.index, object)
    # NYU's is a score from −1 to 1, the others' a code; L and R occur.
    if "handedness" in table:
        hand = table.pop("handedness")
        table["handedness"] = pd.Series(
            [_hand(h, s) for h, s in zip(hand, table["site"], strict=True)], table.index, object
        )
    for name in ("qc_athena", "qc_niak", "qc_rest_1", "qc_rest_2", "qc_rest_3", "qc_rest_4"):
        if name in lower:
            table[name] = pd.to_numeric(frame[lower[name]], errors="coerce").to_numpy(float)
    return table


def _diagnoses(frame: pd.DataFrame, lower: dict[str, str]) -> tuple[list[str | None], list[str | None]]:
    """Return subtype and diagnosis of every row, None where it is not known."""
    if "dx" not in lower and "adhd" in lower:
        # nilearn's table says only whether.
        known = {"0": "control", "1": "adhd"}
        said = frame[lower["adhd"]].str.replace(r"\.0$", "", regex=True)
        diagnosis = [known.get(v) if isinstance(v, str) else None for v in said]
        return [None] * len(diagnosis), diagnosis
    if "dx" not in lower:
        return [None] * len(frame), [None] * len(frame)
    said = frame[lower["dx"]].str.replace(r"\.0$", "", regex=True)
    subtype = [_subtype(v) if isinstance(v, str) else None for v in said]
    # Words may say ADHD of no kind that the release numbers.
    adhd = said.str.lower().str.startswith("adhd").fillna(False)
    return subtype, [
        "control" if s == "control" else "adhd" if s is not None or a else None
        for s, a in zip(subtype, adhd, strict=True)
    ]


def _subtype(text: str) -> str | None:
    if text in SUBTYPE:
        return SUBTYPE[text]
    return next((meaning for words, meaning in WORDS if words in text.lower()), None)


def _sites(frame: pd.DataFrame, lower: dict[str, str], path: Path) -> list[str | None]:
    """Return the site of every row: its code or name, else that of the table's name or folder; None if none says."""
    names = {s.lower(): s for s in SITES}
    folder = re.sub(r"(_TestRelease)?_phenotypic.*$", "", path.name) if "phenotypic" in path.name else path.parent.name
    fallback = names.get(re.sub(r"_\d$", "", folder).lower())
    if "site" not in lower:
        return [fallback] * len(frame)
    said = frame[lower["site"]].fillna("").str.replace(r"\.0$", "", regex=True).str.strip()
    return [SITE_OF_CODE.get(v) or names.get(re.sub(r"_\d$", "", v).lower()) or fallback for v in said]


def _hand(value: object, site: str) -> str | None:
    """Return ``R``, ``L`` or ``both`` from a code (0 left, 1 right, 2 or 3 both), a letter or NYU's score."""
    if isinstance(value, str) and value.strip().upper() in ("L", "R"):
        return value.strip().upper()
    number = pd.to_numeric(pd.Series([value]), errors="coerce").iloc[0]
    if pd.isna(number):
        return None
    if site == "NYU":
        return "R" if number > 0.4 else "L" if number < -0.4 else "both"
    return {0: "L", 1: "R", 2: "both", 3: "both"}.get(int(number))

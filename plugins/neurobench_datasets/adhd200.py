"""ADHD-200 as the Athena pipeline's ROI time courses, the form in which most people have it.

::

    <SITE>/<SITE>_phenotypic.csv                     or <SITE>_TestRelease_phenotypic.csv
    <SITE>/<ID>/sfnwmrda<ID>_session_1_rest_1_aal_TCs.1D
    templates/                                       ignored

``sfnwmrda`` files are band-passed (.009–.08 Hz) and ``snwmrda`` files are not; folders hold both, and the two are never
mixed. The first four volumes are removed already. A subject's sessions and runs stay together.

Source: Bellec et al. 2017, doi:10.1016/j.neuroimage.2016.06.034. Repetition times come from a table by site: the
headers of unfiltered Athena scans do not hold them.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from neurobench import (
    ConfigError,
    DataError,
    Dataset,
    DatasetCard,
    Finding,
    Listing,
    RawRecording,
    RecordingFile,
    SignalSpec,
    UnitTable,
    closest,
    hookimpl,
)
from neurobench_datasets._roi_series import MIN_TIMES, evenly, read_series, units_of
from neurobench_datasets._tables import find_column, missing_targets, read_table, typed

T_R = {
    "Peking": 2.0,
    "Brown": 2.0,
    "KKI": 2.5,
    "NeuroIMAGE": 1.96,
    "NYU": 2.0,
    "OHSU": 2.5,
    "Pittsburgh": 1.5,
    "WashU": 2.5,
}
"""Repetition time of every site in seconds."""

SITE_OF_CODE = {
    "1": "Peking",
    "2": "Brown",
    "3": "KKI",
    "4": "NeuroIMAGE",
    "5": "NYU",
    "6": "OHSU",
    "7": "Pittsburgh",
    "8": "WashU",
}

N_REGIONS = {"aal": 116, "cc200": 190, "cc400": 351, "ez": 116, "ho": 111, "tt": 97}
"""Regions of each parcellation in the release's files."""

SUBTYPE = {"0": "control", "1": "combined", "2": "hyperactive-impulsive", "3": "inattentive"}

ALIASES = {
    "gender": "sex_code",
    "age": "age",
    "handedness": "handedness",
    "dx": "dx",
    "full4 iq": "full_iq",
    "full2 iq": "full2_iq",
    "verbal iq": "verbal_iq",
    "performance iq": "performance_iq",
    "adhd index": "adhd_index",
    "inattentive": "inattentive",
    "hyper/impulsive": "hyper_impulsive",
}

_FILE = re.compile(
    r"(?P<filtered>sf?nwmrda)(?P<id>\d+)_session_(?P<session>\d+)_rest_(?P<run>\d+)_(?P<atlas>[a-z0-9]+)_TCs\.1D"
)


class ADHD200(Dataset):
    """ADHD-200: children and adolescents with and without ADHD, eight sites.

    Parameters
    ----------
    signal
        ``parcels``: ROI time courses.
    atlas
        Which time courses: ``aal``, ``cc200``, ``cc400``, ``ez``, ``ho`` or ``tt``.
    filtered
        Use the files that Athena has band-passed (``sfnwmrda``) rather than those it has not (``snwmrda``).
    n_units
        Use only this many regions, evenly spaced in the order of the files; 0: all.
    """

    name = "adhd200"
    summary = "ADHD-200, Athena time courses: diagnosis, age, sex, full_iq; eight sites"
    reference = "10.1016/j.neuroimage.2016.06.034"
    modality = "fmri"
    twin_subjects = 64
    default_grid = True
    card = DatasetCard(
        title="ADHD-200 (Athena ROI time courses)",
        modality="fmri",
        licence="non-commercial research, attribution",
        access="register with NITRC (1000 Functional Connectomes Project); free",
        apply_at="https://www.nitrc.org/projects/neurobureau",
        citation="ADHD-200 Consortium 2012; Athena pipeline: Bellec et al. 2017",
        doi="10.1016/j.neuroimage.2016.06.034",
        revision="Athena filtfix time courses; reader 1",
        may_leave="predictions",
        traps=(
            "Run length and repetition time identify the site: compare within sites, and look at the site-only row.",
            "Site, age, sex, handedness and IQ alone won the competition (62.5 % of three classes).",
            "Brown's labels were never released; its recordings serve pretraining only.",
            "full_iq is a full-scale IQ, not a test of fluid intelligence; it is a target of its own.",
        ),
    )

    def __init__(self, *, signal: str = "parcels", atlas: str = "aal", filtered: bool = True, n_units: int = 0) -> None:
        if signal == "volume":
            raise ConfigError(
                "adhd200 cannot read 4-D volumes yet.",
                allowed="signal=parcels",
                next_step="Use the time-course archives (ADHD200_AAL_TCs_filtfix.tar.gz), or bids with an atlas.",
            )
        if signal != "parcels":
            raise ConfigError(f"adhd200 has no signal {signal!r}.", allowed="parcels")
        if atlas not in N_REGIONS:
            raise ConfigError(
                f"adhd200 has no time courses of atlas {atlas!r}.",
                allowed=", ".join(N_REGIONS),
                likely=closest(atlas.lower(), N_REGIONS),
            )
        if n_units < 0:
            raise ConfigError("n_units of adhd200 cannot be negative.")
        self.signal: Literal["parcels"] = "parcels"
        self.atlas, self.filtered, self.n_units = atlas, filtered, n_units

    @property
    def spec(self) -> SignalSpec:
        """150 s windows of 15 s patches, .01–.1 Hz."""
        return SignalSpec(window_s=150.0, patch_s=15.0, band_hz=(0.01, 0.1))

    # ------------------------------------------------------------ listing

    def list_recordings(self, root: Path) -> Listing:
        """Find phenotype tables and time courses of one parcellation and one filtering."""
        findings: list[Finding] = []
        participants = read_phenotypes(root, findings)
        recordings = self._time_courses(root, participants, findings)
        unlabelled = participants["diagnosis"].isna()
        if unlabelled.any():
            where = ", ".join(f"{s} {n}" for s, n in participants["site"][unlabelled].value_counts().items())
            text = f"{int(unlabelled.sum())} participants have no released diagnosis ({where}); they serve pretraining"
            findings.append(Finding("info", "missing-target", text))
        findings += missing_targets(participants, ("age", "sex", "full_iq"))
        without = sorted(set(participants.index) - {r.subject for r in recordings})
        if without:
            text = f"{len(without)} of {len(participants)} participants have no usable time courses"
            findings.append(Finding("warning", "no-timeseries", f"{text}: {', '.join(without[:4])}"))
        return Listing(participants, tuple(sorted(recordings, key=lambda r: r.id)), tuple(findings))

    def _time_courses(self, root: Path, participants: pd.DataFrame, findings: list[Finding]) -> list[RecordingFile]:
        prefix = "sfnwmrda" if self.filtered else "snwmrda"
        found = [(p, _FILE.fullmatch(p.name)) for p in sorted(root.rglob("*_TCs.1D")) if "templates" not in p.parts]
        named = [(p, m) for p, m in found if m is not None]
        atlases = Counter(m["atlas"] for _, m in named)
        same = [(p, m) for p, m in named if m["atlas"] == self.atlas]
        files = [(p, m) for p, m in same if m["filtered"] == prefix]
        if not files:
            kind = "band-passed (sfnwmrda)" if self.filtered else "unfiltered (snwmrda)"
            there = ", ".join(f"{a} ({n} files)" for a, n in sorted(atlases.items()))
            raise DataError(
                f"{root} has no {kind} time courses of atlas {self.atlas}.",
                allowed=f"<SITE>/<ID>/{prefix}<ID>_session_1_rest_1_{self.atlas}_TCs.1D",
                next_step=f"There are time courses of {there}: say adhd200[atlas=…] or adhd200[filtered=…]."
                if there
                else "Unpack ADHD200_AAL_TCs_filtfix.tar.gz there.",
            )
        if len(files) < len(same):
            text = f"{len(same) - len(files)} files of the other filtering lie beside the ones used and are ignored"
            findings.append(Finding("info", "other-filtering", text))
        recordings: list[RecordingFile] = []
        seen: set[tuple[str, str, str]] = set()
        questionable = 0
        for path, match in files:
            subject = match["id"].zfill(7)
            key = (subject, match["session"], match["run"])
            if subject not in participants.index:
                text = f"{subject} has time courses and no row in a phenotype table"
                findings.append(Finding("error", "unknown-id", text, subject=subject, path=str(path)))
                continue
            if key in seen:
                text = f"{path.name} is there twice; the first is used"
                findings.append(Finding("warning", "duplicate-recording", text, subject=subject, path=str(path)))
                continue
            seen.add(key)
            site = participants["site"][subject]
            if site not in T_R:
                text = f"site {site!r} of {subject} is none of ADHD-200's, so its repetition time is not known"
                findings.append(Finding("error", "unknown-site", text, subject=subject, path=str(path)))
                continue
            questionable += participants.get(f"qc_rest_{match['run']}", pd.Series(dtype=float)).get(subject) == 0
            recordings.append(
                RecordingFile(
                    subject, path, 1 / T_R[site], session=match["session"], run=match["run"], options={"site": site}
                )
            )
        if questionable:
            text = (
                f"{questionable} recordings are questionable by the release's visual control (QC_Rest = 0) and are used"
            )
            findings.append(Finding("info", "questionable", text))
        return recordings

    # ------------------------------------------------------------ reading

    def read(self, file: RecordingFile) -> RawRecording:
        """Read one .1D file: header ``File Sub-brick Mean_2001 …``, one row a volume."""
        series = read_series(file.path)
        expected = N_REGIONS[self.atlas]
        names = [re.sub(r"^Mean_", "", c) for c in series.columns]
        if len(names) != series.values.shape[1] or not all(n.isdigit() for n in names):
            raise DataError(f"{file.path.name} has no header of region codes (Mean_2001, Mean_2002, …).")
        if len(names) != expected:
            detail = ""
            if self.atlas == "aal":
                lost = sorted(set(aal_regions()["code"].astype(str)) - set(names))
                detail = f" (missing: {', '.join(lost[:6])})" if lost else ""
            raise DataError(f"{file.path.name} has {len(names)} regions, and {self.atlas} has {expected}{detail}.")
        if len(series.values) < MIN_TIMES:
            raise DataError(f"{file.path.name} has {len(series.values)} volumes, fewer than {MIN_TIMES}.")
        index = evenly(len(names), self.n_units)
        units = atlas_units(self.atlas, tuple(names)).take(index)
        said = "Athena: first four volumes removed, nuisance regressed, " + (
            "band-passed .009–.08 Hz" if self.filtered else "not filtered"
        )
        return RawRecording(series.values.T[index], file.sfreq, units, (said,))

    def simulate(
        self, root: Path, *, n_subjects: int, seed: int, variant: Literal["default", "null", "confounded"]
    ) -> None:
        """Write simulated time courses and phenotype tables in Athena's layout, quirks included."""
        from neurobench_datasets._adhd200_twin import simulate

        simulate(root, n_subjects=n_subjects, seed=seed, variant=variant)


# ---------------------------------------------------------------- phenotypes


def read_phenotypes(root: Path, findings: list[Finding]) -> pd.DataFrame:
    """Return the participants of all ``*_phenotypic.csv`` under a folder, indexed by seven-digit id.

    Raises
    ------
    DataError
        If there is none, or none has identifiers.
    """
    tables = [p for p in sorted(root.rglob("*_phenotypic*.csv")) if "templates" not in p.parts]
    if not tables:
        raise DataError(
            f"{root} has no phenotype table.",
            allowed="<SITE>/<SITE>_phenotypic.csv or <SITE>_TestRelease_phenotypic.csv",
            next_step="They come with the time-course archives.",
        )
    parts = []
    for path in tables:
        try:
            parts.append(_one_table(path))
        except DataError as error:
            findings.append(Finding("error", "unreadable", str(error), path=str(path)))
    if not parts:
        raise DataError(f"no phenotype table under {root} can be used: {findings[-1].message}")
    whole = pd.concat(parts)
    for subject in dict.fromkeys(whole.index[whole.index.duplicated()]):
        rows = whole.loc[[subject]]
        if rows["diagnosis"].nunique() > 1 or rows["site"].nunique() > 1:
            text = f"{subject} has {len(rows)} rows that contradict each other; none is used"
            findings.append(Finding("error", "duplicate-id", text, subject=str(subject), fix="keep the right row"))
            whole = whole.drop(index=subject)
    # A subject of the test release may have a second row, with the label that was withheld at first.
    whole = whole.groupby(level=0, sort=True).first().dropna(axis=1, how="all")
    for name in ("age", "sex", "diagnosis", "dx_subtype"):
        if name not in whole:
            whole[name] = None
    if whole.empty:
        raise DataError(f"no phenotype table under {root} has a usable identifier.")
    return whole


def _one_table(path: Path) -> pd.DataFrame:
    frame = read_table(path)
    id_column = find_column(list(frame.columns), ("scandir id", "scandirid", "id", "subject"))
    if not id_column:
        raise DataError(
            f"{path.name} has no column of identifiers; it has {', '.join(frame.columns[:6])}.",
            allowed="ScanDir ID, ScanDirID or ID",
        )
    ids = frame[id_column].str.replace(r"\.0$", "", regex=True)
    frame = frame[ids.str.fullmatch(r"\d+").fillna(False).astype(bool)]
    ids = ids[frame.index]
    lower = {c.lower(): c for c in frame.columns}
    table = pd.DataFrame(index=pd.Index(ids.str.zfill(7), name="participant_id", dtype=object))
    for column, name in ALIASES.items():
        if column in lower:
            table[name] = typed(frame[lower[column]]).to_numpy()
    for name in ("age", "full_iq", "full2_iq", "verbal_iq", "performance_iq"):
        if name in table:
            table[name] = pd.to_numeric(table[name], errors="coerce").astype(float)
    codes = table.pop("sex_code") if "sex_code" in table else pd.Series(np.nan, table.index)
    # The release's key: 0 is female, 1 is male.
    table["sex"] = pd.Series(
        [{0: "F", 1: "M"}.get(c) for c in pd.to_numeric(codes, errors="coerce")], table.index, object
    )
    dx = frame[lower["dx"]].str.replace(r"\.0$", "", regex=True).to_numpy() if "dx" in lower else [None] * len(table)
    subtype = [SUBTYPE.get(d) if isinstance(d, str) else None for d in dx]
    table["dx_subtype"] = pd.Series(subtype, table.index, object)
    diagnosis = [None if s is None else "control" if s == "control" else "adhd" for s in subtype]
    table["diagnosis"] = pd.Series(diagnosis, table.index, object)
    table = table.drop(columns="dx", errors="ignore")
    site_codes = frame[lower["site"]].str.replace(r"\.0$", "", regex=True) if "site" in lower else None
    folder = re.sub(r"(_TestRelease)?_phenotypic.*$", "", path.name)
    fallback = re.sub(r"_\d$", "", folder)
    sites = [fallback] * len(table) if site_codes is None else [SITE_OF_CODE.get(c, fallback) for c in site_codes]
    table["site"] = pd.Series(sites, table.index, object)
    # NYU's is a score from −1 to 1, the others' a code; L and R occur.
    if "handedness" in table:
        hand = table.pop("handedness")
        table["handedness"] = pd.Series([_hand(h, s) for h, s in zip(hand, sites, strict=True)], table.index, object)
    for name in ("qc_athena", "qc_rest_1", "qc_rest_2", "qc_rest_3", "qc_rest_4"):
        if name in lower:
            table[name] = pd.to_numeric(frame[lower[name]], errors="coerce").to_numpy(float)
    return table


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


# ---------------------------------------------------------------- parcellations


@lru_cache(maxsize=1)
def aal_regions() -> pd.DataFrame:
    """Return the 116 regions of AAL: code, name, group, and centre (mm, MNI) as measured on the label image."""
    return pd.read_csv(Path(__file__).with_name("_aal116.csv"))


@lru_cache(maxsize=8)
def atlas_units(atlas: str, codes: tuple[str, ...]) -> UnitTable:
    """Return the units of a parcellation; only AAL's have names, groups and positions here."""
    if atlas == "aal":
        table = aal_regions().assign(code=lambda t: t["code"].astype(str)).set_index("code")
        unknown = [c for c in codes if c not in table.index]
        if unknown:
            raise DataError(f"codes {', '.join(unknown[:4])} are none of AAL's 116 regions.")
        return units_of(table.loc[list(codes)].reset_index())
    names = [f"{atlas}-{int(c):03d}" for c in codes]
    return units_of(pd.DataFrame({"name": names, "group": "", "x": np.nan, "y": np.nan, "z": np.nan}))


@hookimpl
def register_datasets() -> list[type[Dataset]]:
    """Register the dataset."""
    return [ADHD200]

"""Cam-CAN, the Cambridge Centre for Ageing and Neuroscience: fMRI and MEG of one group of people, ages 18 to 88.

::

    dataman/useraccess/processed/<name>/standard_data.csv or approved_data.tsv
    cc700/mri/pipeline/release004/BIDS_20190411/epi_rest/participants.tsv
    cc700-scored/Cattell/release001/summary/Cattell_summary.txt
    timeseries/sub-CC110033*.tsv, regions.tsv                 ROI time series of your own, signal=fmri
    derivatives/fmriprep/sub-CC110033/func/*desc-preproc_bold.nii.gz    or these, with atlas=IMAGE
    cc700/meg/…                                               signal=meg

The release has raw images and no ROI time series: laboratories extract them. The simulated twin writes the release's
tables in the release's tree, and ROI time series of a made-up parcellation beside it, not images.

Source: Shafto et al. 2014, doi:10.1186/s12883-014-0204-1; Taylor et al. 2017, doi:10.1016/j.neuroimage.2015.09.018.
"""

from __future__ import annotations

import csv
import io
import json
import re
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
    closest,
    hookimpl,
    seed_for,
)
from neurobench_datasets._bold_layouts import (
    BOLD,
    list_fmriprep,
    list_spm,
    mean_displacements,
    raw_finding,
    raw_images,
    spm_images,
)
from neurobench_datasets._bold_settings import BOLD_SPEC, PATCH_VOXELS, SPACING_MM, BoldSettings
from neurobench_datasets._bold_twin import (
    BoldTwin,
    Effects,
    Traits,
    even_uniform,
    fluid_z,
    synthetic_regions,
    write_effects,
)
from neurobench_datasets._meg_settings import MEG_SPEC, camcan_settings
from neurobench_datasets._series_folder import list_series, read_listed_series
from neurobench_datasets._tables import (
    missing_targets,
    number_text,
    participants_from,
    read_table,
    read_text,
    write_tsv,
)
from neurobench_datasets._volume_twin import write_atlas, write_volume

SIGNALS = ("fmri", "parcels", "volume", "meg")
T_R = 1.97
"""Repetition time of Cam-CAN's resting-state BOLD in seconds."""
BIDS_MRI = "cc700/mri/pipeline/release004/BIDS_20190411"
CATTELL = "cc700-scored/Cattell/release001"

TABLES = (
    "**/standard_data.csv",
    "**/approved_data.tsv",
    "**/participant_data.csv",
    "participants.tsv",
    "**/epi_rest/participants.tsv",
    "**/anat/participants.tsv",
    "**/participants.tsv",
)
"""Tables of participants, in the order in which their values are believed."""

COLUMNS = {
    "sex": "sex",
    "gender": "sex",
    "gender_text": "sex",
    "gender_code": "sex_code",
    "hand": "handedness",
}


class CamCAN(Dataset):
    """Cam-CAN: resting-state fMRI or MEG; age, sex, fluid intelligence (Cattell).

    Parameters
    ----------
    signal
        ``fmri`` or ``parcels``: regions; ``volume``: 3-D patches of the images; ``meg``: sensors. All have the same
        subject ids (CCID).
    atlas
        For images: path of a label image in MNI space, or a name that nilearn fetches (aal3, schaefer100, …); empty:
        the ROI time series in ``timeseries/``, else the ``atlas.nii.gz`` of the folder.
    confounds
        What is regressed out of fMRIPrep derivatives: ``none``, or some of motion, wm_csf, high_pass, global_signal,
        compcor joined by ``+``.
    n_units
        fMRI: use only this many regions, evenly spaced in the order of the table; 0: all.
    spacing_mm, patch_voxels
        ``signal=volume``: edge of a voxel in mm, and voxels along the edge of a patch.
    state
        MEG: ``rest``, ``passive`` (tones and checkerboards), ``smt`` (sensorimotor task) or ``all``.
    events
        MEG: codes and their conditions, such as ``6:tone300+7:tone600``; empty: those of the release.
    reject
        MEG: artefacts, ``on``, ``off``, or a factor on the peak-to-peak limits.
    whiten
        MEG: ``on`` whitens sensors with a noise covariance beside the recordings.
    """

    name = "camcan"
    summary = "Cam-CAN, ages 18–88: fMRI or MEG at rest; age, sex, fluid intelligence"
    reference = "10.1016/j.neuroimage.2015.09.018"
    twin_subjects = 64
    default_grid = True

    def __init__(
        self,
        *,
        signal: str = "fmri",
        atlas: str = "",
        confounds: str = "motion+wm_csf+high_pass",
        n_units: int = 0,
        spacing_mm: float = SPACING_MM,
        patch_voxels: int = PATCH_VOXELS,
        state: str = "rest",
        events: str = "",
        reject: str = "on",
        whiten: str = "off",
    ) -> None:
        if signal not in SIGNALS:
            raise ConfigError(
                f"camcan has no signal {signal!r}.", allowed=", ".join(SIGNALS), likely=closest(signal, SIGNALS)
            )
        if signal == "meg" and (atlas or n_units):
            raise ConfigError("atlas and n_units of camcan are for fMRI.", next_step="Leave them out.")
        if signal != "meg" and (state, events, reject, whiten) != ("rest", "", "on", "off"):
            raise ConfigError(
                "state, events, reject and whiten of camcan are for signal=meg.", next_step="Say camcan[signal=meg,…]."
            )
        self.states, self.how = camcan_settings(state, events=events, reject=reject, whiten=whiten)
        self.bold = BoldSettings.of(
            "camcan",
            signal=signal,
            atlas=atlas,
            confounds=confounds,
            n_units=n_units,
            spacing_mm=spacing_mm,
            patch_voxels=patch_voxels,
        )
        self.modality: Literal["fmri", "meg"] = "meg" if signal == "meg" else "fmri"
        self.signal: Literal["parcels", "volume", "sensors"] = "sensors" if signal == "meg" else self.bold.signal
        self.card = DatasetCard(
            title="Cam-CAN, stage 2 (cc700)",
            modality=self.modality,
            licence="Cam-CAN data use agreement: non-commercial research or teaching as applied for",
            access="by application; no copies outside the institution, no attempt to identify people",
            apply_at="https://camcan-archive.mrc-cbu.cam.ac.uk/dataaccess/",
            citation="Shafto et al. 2014; Taylor et al. 2017",
            doi="10.1016/j.neuroimage.2015.09.018",
            revision="cc700 release004/005; reader 1",
            may_leave="predictions",
            size="about 650 people with images and 660 with Cattell scores (stage 2)",
            inclusion=(
                "Everybody with a CCID in a table of the release and a recording of the signal asked for; of several "
                "derivatives of a MEG recording the best for comparing people. Damaged files, copies under two ids "
                "and recordings shorter than half a window are left out, each with its reason."
            ),
            traps=(
                "Fluid intelligence falls so steeply with age that an age-only predictor does well: read the row of "
                "covariates and the correlation given age.",
                "Motion rises with age.",
                "Tables of the release code sex differently; only text is believed.",
            ),
        )

    @property
    def spec(self) -> SignalSpec:
        """FMRI: 150 s windows of 15 s patches, .01–.1 Hz. MEG: see the MEG half."""
        if self.modality == "meg":
            return MEG_SPEC
        return BOLD_SPEC

    def list_recordings(self, root: Path) -> Listing:
        """Find the tables of participants and scores, and the recordings of one signal."""
        findings: list[Finding] = []
        participants = read_participants(root, findings)
        scores = read_cattell(root, findings)
        if scores is not None and "fluid_intelligence" not in participants:
            participants = participants.join(scores)
        if self.modality == "meg":
            from neurobench_datasets._camcan_meg import list_meg

            recordings, more = list_meg(root, self.states, self.how)
        else:
            recordings, more = self._list_fmri(root, participants)
        findings += more
        strangers = sorted({r.subject for r in recordings} - set(participants.index))
        for subject in strangers:
            text = f"{subject} has recordings and no row in a table of participants"
            findings.append(Finding("error", "unknown-id", text, subject=subject))
        kept = tuple(sorted((r for r in recordings if r.subject not in strangers), key=lambda r: r.id))
        findings += missing_targets(participants, ("age", "sex", "fluid_intelligence"))
        return Listing(participants, kept, tuple(findings))

    def _list_fmri(self, root: Path, participants: pd.DataFrame) -> tuple[list[RecordingFile], list[Finding]]:
        if self.signal == "parcels" and not self.bold.atlas and (root / "timeseries").is_dir():
            found, findings = list_series(root, participants, component="camcan", t_r=0.0, default_t_r=T_R)
            return list(found), findings
        raw = raw_images(root)
        findings = [raw_finding(raw)] if raw else []
        images = any(root.rglob(f"sub-*{BOLD}")) or bool(spm_images(root))
        if not images:
            raise DataError(
                f"{root} has no BOLD that can be used" + (": its images (epi_rest) are raw." if raw else "."),
                allowed="timeseries/sub-CC…* with ROI time series, fMRIPrep derivatives (…" + BOLD + ") or SPM's "
                "normalised images (wrsub-CC….nii)",
                next_step="Run fMRIPrep and say camcan[atlas=IMAGE], or put your ROI time series in timeseries/.",
            )
        beside = self.bold.atlas_beside(root)
        recordings, more = list_fmriprep(root, bids_task="rest", beside=beside)
        if not recordings and not any(f.level == "error" for f in more):
            recordings = list_spm(root, beside=beside, t_r=T_R, findings=more)
        participants["mean_fd"] = mean_displacements(recordings).reindex(participants.index)
        return recordings, findings + more

    def read(self, file: RecordingFile) -> RawRecording:
        """Read one recording of either signal."""
        if self.modality == "meg":
            from neurobench_datasets._camcan_meg import read_meg

            return read_meg(file)
        if "atlas" in file.beside:
            return self.bold.read(file)
        return read_listed_series(file, variable="", n_units=self.bold.n_units)

    def simulate(
        self, root: Path, *, n_subjects: int, seed: int, variant: Literal["default", "null", "confounded"]
    ) -> None:
        """Write the release's tables, and recordings of this signal; in ``confounded`` motion rises with age."""
        rng = np.random.default_rng(seed_for(seed, "twin", "camcan"))
        people = simulated_people(rng, n_subjects)
        write_tables(root, people, rng)
        if self.modality == "meg":
            from neurobench_datasets._camcan_meg import simulate_meg

            simulate_meg(
                root,
                people[["age", "sex", "fluid_intelligence"]],
                seed=seed,
                effects=variant != "null",
                states=self.states,
            )
            return
        regions = synthetic_regions(64)
        twin = BoldTwin(regions[["x", "y", "z"]].to_numpy(float), seed=seed, effects=Effects.of(variant))
        fd = rng.gamma(4.0, 0.04, n_subjects)
        if variant == "confounded":
            fd = np.sort(fd)[people["age"].argsort().argsort()]
        if self.signal == "volume":
            write_atlas(root, regions)
        else:
            write_tsv(root / "regions.tsv", regions)
            (root / "timeseries").mkdir()
        header = "\t".join(regions["name"])
        for i, (ccid, person) in enumerate(people.iterrows()):
            traits = Traits(float(person["age_z"]), float(person["fluid_z"]), mean_fd=float(fd[i]))
            series = twin.recording(str(ccid), traits, n_times=122, t_r=T_R)
            if self.signal == "volume":
                _write_derivative(root, str(ccid), series, regions, float(fd[i]), seed)
                continue
            lines = [header, *number_text(series)]
            path = root / "timeseries" / f"sub-{ccid}_task-rest_desc-synth64_timeseries.tsv"
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        write_effects(root, twin, variant=variant, seed=seed)


def _write_derivative(
    root: Path, ccid: str, series: np.ndarray, regions: pd.DataFrame, mean_fd: float, seed: int
) -> None:
    """Write one simulated image as fMRIPrep would name it, with its sidecar and a table of its motion."""
    func = root / "derivatives" / "fmriprep" / f"sub-{ccid}" / "func"
    stem = f"sub-{ccid}_task-rest"
    path = func / f"{stem}_space-MNI152NLin2009cAsym_res-2{BOLD}"
    write_volume(path, series, regions, t_r=T_R, rng=np.random.default_rng(seed_for(seed, "twin", "voxels", ccid)))
    path.with_name(path.name.replace(".nii.gz", ".json")).write_text(json.dumps({"RepetitionTime": T_R}))
    motion = np.random.default_rng(seed_for(seed, "twin", "motion", ccid)).normal(0, mean_fd, (len(series), 6))
    names = [f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz"]
    table = pd.DataFrame(motion * [1, 1, 1, 0.02, 0.02, 0.02], columns=names)
    for name in names:
        table[f"{name}_derivative1"] = table[name].diff()
        table[f"{name}_power2"], table[f"{name}_derivative1_power2"] = table[name] ** 2, table[name].diff() ** 2
    for name in ("csf", "white_matter", "cosine00"):
        table[name] = np.zeros(len(table))
    table["framewise_displacement"] = [np.nan, *[round(mean_fd, 6)] * (len(table) - 1)]
    write_tsv(func / f"{stem}_desc-confounds_timeseries.tsv", table)
    (func / f"{stem}_desc-confounds_timeseries.json").write_text("{}\n")


# ---------------------------------------------------------------- tables of the release


def read_participants(root: Path, findings: list[Finding]) -> pd.DataFrame:
    """Return all participants of all tables, indexed by CCID; a value comes from the first table that has it.

    Raises
    ------
    DataError
        If there is no table with CCIDs.
    """
    paths = dict.fromkeys(p for pattern in TABLES for p in sorted(root.glob(pattern)))
    merged: pd.DataFrame | None = None
    for path in paths:
        try:
            table, more = participants_from(path, component="camcan", aliases=COLUMNS)
        except DataError as error:
            findings.append(Finding("error", "unreadable", str(error), path=str(path)))
            continue
        table.index = pd.Index([_ccid(i) for i in table.index], name="participant_id", dtype=object)
        none = [i for i in table.index if not re.fullmatch(r"CC\d{6}", i) and not i.startswith("EMPTYROOM")]
        if none and len(none) < len(table):
            text = f"{len(none)} ids of {path.name} are no CCIDs, and their rows are left out: {', '.join(none[:3])}"
            findings.append(Finding("warning", "no-id", text, fix="write CC and six digits", path=str(path)))
        table = table[[bool(re.fullmatch(r"CC\d{6}", i)) for i in table.index]]
        table = table[~table.index.duplicated()]
        # Codes for sex differ in meaning from table to table; only text is believed.
        table = table.drop(columns=[c for c in ("sex_code",) if c in table])
        findings += [f for f in more if f.code != "sex-coding"]
        if table.empty:
            continue
        if merged is not None and "age" in merged and "age" in table:
            both = merged.index.intersection(table.index)
            apart = [i for i in both if abs(merged.at[i, "age"] - table.at[i, "age"]) > 1.5]
            if apart:
                text = f"{len(apart)} ages in {path.name} differ by more than 1.5 years from another table's"
                findings.append(Finding("warning", "ages-differ", f"{text}: {', '.join(apart[:4])}", path=str(path)))
        merged = table if merged is None else merged.combine_first(table)
    if merged is None:
        raise DataError(
            f"{root} has no table of participants with CCIDs (CC and six digits).",
            allowed="standard_data.csv, approved_data.tsv or participants.tsv, at the places the release puts them",
            next_step="Give the folder that contains cc700, cc700-scored and dataman.",
        )
    if "sex" not in merged or merged["sex"].isna().all():
        text = "no table says sex in words, and codes differ from table to table, so there is none"
        findings.append(Finding("warning", "sex-coding", text, fix="add standard_data.csv, which says it in words"))
        merged["sex"] = None
    merged["sex"] = merged["sex"].astype(object).where(merged["sex"].notna(), None)
    return merged.sort_index()


def _ccid(text: str) -> str:
    """Return a CCID without ``sub-``, and with the letters that a table of numbers has lost."""
    return re.sub(r"^(\d{6})$", r"CC\1", re.sub(r"^sub-", "", str(text)).upper())


def read_cattell(root: Path, findings: list[Finding]) -> pd.DataFrame | None:
    """Return ``fluid_intelligence``: the total score of the Cattell Culture Fair test, indexed by CCID.

    The summary has lines of text before its header and after its rows; without it, the files of single subjects are
    read.
    """
    summary = next(iter(sorted(root.rglob("Cattell_summary.txt"))), None)
    scores: dict[str, float] = {}
    try:
        if summary is not None:
            frame = _cattell_rows(read_text(summary), summary.name)
            scores = dict(zip(frame["CCID"].map(_ccid), frame["TotalScore"], strict=True))
        else:
            for path in sorted(root.rglob("Cattell_CC*_scored.txt")):
                row = read_table(path)
                found = re.search(r"CC\d{6}", path.name)
                if found and "TotalScore" in row:
                    scores[found.group()] = float(pd.to_numeric(row["TotalScore"], errors="coerce").iloc[0])
    except DataError as error:
        findings.append(Finding("error", "unreadable", str(error), path=str(summary or root)))
    if not scores:
        text = "there are no Cattell scores, so fluid intelligence is not known"
        findings.append(Finding("warning", "missing-target", text, fix=f"add {CATTELL}/summary/Cattell_summary.txt"))
        return None
    return pd.DataFrame({"fluid_intelligence": pd.Series(scores, dtype=float)}).rename_axis("participant_id")


def _cattell_rows(text: str, name: str) -> pd.DataFrame:
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if re.match(r"\s*CCID\b", line)), None)
    if start is None:
        raise DataError(f"{name} has no line that begins with CCID.")
    rows = [line for line in lines[start + 1 :] if re.match(r"\s*CC\d{6}\b", line)]
    try:
        text = "\n".join([lines[start].strip(), *rows])
        frame = pd.read_csv(io.StringIO(text), sep=r"\t", engine="python", dtype=str, index_col=False)
    except (pd.errors.ParserError, csv.Error, ValueError) as error:
        raise DataError(f"{name} is not a table from its line CCID on: {error}.") from error
    frame.columns = pd.Index([str(c).strip() for c in frame.columns])
    for column in ("CCID", "TotalScore"):
        if list(frame.columns).count(column) != 1:
            raise DataError(f"{name} has no one column {column}; it has {', '.join(frame.columns)}.")
    score = pd.to_numeric(frame["TotalScore"], errors="coerce")
    return frame.assign(TotalScore=score.where(score >= 0))


# ---------------------------------------------------------------- the twin's people


def simulated_people(rng: np.random.Generator, n: int) -> pd.DataFrame:
    """Return simulated people indexed by CCID: ages 18 to 88, whose first digit of the CCID is the decade."""
    age = np.sort(even_uniform(rng, n, 18.0, 88.0))
    age_z = (age - 53.0) / (70.0 / np.sqrt(12))
    fluid = fluid_z(rng, age_z)
    score = np.clip(np.round(31 + 7 * fluid), 0, 46)
    score[rng.random(n) < 0.08] = np.nan
    decade = np.clip(((age - 18) // 10).astype(int) + 1, 1, 7)
    ids = [f"CC{d}{10001 + 13 * i:05d}" for i, d in enumerate(decade)]
    sex = rng.permutation(np.resize(["F", "M"], n))
    people = {"age": age.round(0), "sex": sex, "fluid_intelligence": score, "age_z": age_z, "fluid_z": fluid}
    return pd.DataFrame(people, index=pd.Index(ids, name="participant_id"))


def write_tables(root: Path, people: pd.DataFrame, rng: np.random.Generator) -> None:
    """Write the release's tables: sex in words in one and in codes in the other, scores with text around them."""
    folder = root / "dataman/useraccess/processed/Simulated_0000"
    folder.mkdir(parents=True)
    n = len(people)
    hand = rng.choice([100, 90, -80], n, p=[0.8, 0.1, 0.1])
    standard = pd.DataFrame(
        {
            "CCID": people.index,
            "Age": people["age"].astype(int).to_numpy(),
            "Hand": hand,
            "Sex": people["sex"].map({"F": "FEMALE", "M": "MALE"}).to_numpy(),
            "Coil": 32,
            "MT_TR": 30,
        }
    )
    (folder / "standard_data.csv").write_text(standard.to_csv(index=False, lineterminator="\n"), encoding="utf-8")
    bids = pd.DataFrame(
        {
            "participant_id": [f"sub-{i}" for i in people.index],
            "age": people["age"].to_numpy(),
            "hand": hand,
            "gender_code": people["sex"].map({"F": 2, "M": 1}).to_numpy(),
        }
    )
    write_tsv(root / BIDS_MRI / "epi_rest" / "participants.tsv", bids)
    (root / CATTELL / "summary").mkdir(parents=True)
    preamble = [f"# Simulated scores, line {i} of 8 before the table" for i in range(1, 9)]
    names = ["CCID", "Ntrials", "Nexpected", "SubScore1", "SubScore2", "SubScore3", "SubScore4", "TotalScore", "RA"]
    lines = [*preamble, "\t".join(names)]
    for ccid, score in people["fluid_intelligence"].dropna().items():
        parts = [int(score // 4 + (i < score % 4)) for i in range(4)]
        lines.append("\t".join(map(str, [ccid, 46, 46, *parts, int(score), "SIM"])))
    lines += ["", "Simulated; nobody was tested."]
    (root / CATTELL / "summary" / "Cattell_summary.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


@hookimpl
def register_datasets() -> list[type[Dataset]]:
    """Register the dataset."""
    return [CamCAN]

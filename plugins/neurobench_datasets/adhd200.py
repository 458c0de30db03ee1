"""ADHD-200 in the forms in which people have it: Athena's time courses and volumes, fMRIPrep's, nilearn's download.

::

    <SITE>/<SITE>_phenotypic.csv                     and the other tables of ``_adhd200_phenotypes.py``
    <SITE>/<ID>/sfnwmrda<ID>_session_1_rest_1_aal_TCs.1D                   layout=time_courses
    <SITE>/<ID>/sfnwmrda<ID>_session_1_rest_1.nii.gz                       layout=athena
    derivatives/…/sub-<ID>_…_space-MNI152…_desc-preproc_bold.nii.gz        layout=fmriprep
    data/<ID>/<ID>_rest_tshift_RPI_voreg_mni.nii.gz                        layout=nilearn (fetch_adhd)
    templates/                                                             ignored

``sfnwmrda`` files are band-passed (.009–.08 Hz) and ``snwmrda`` files are not; folders hold both, and the two are never
mixed. Athena has removed the first four volumes already. A subject's sessions and runs stay together. The raw images of
the BIDS release are in the scanner's space: they are counted, and not used.

Source: Bellec et al. 2017, doi:10.1016/j.neuroimage.2016.06.034. Repetition times come from a table by site: the
headers of unfiltered Athena scans do not hold them, and nilearn's download says 2 s of all.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
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
from neurobench_datasets._adhd200_phenotypes import read_phenotypes
from neurobench_datasets._atlases import FETCHED, aal_regions
from neurobench_datasets._bold_layouts import (
    BOLD,
    NIAK,
    list_athena,
    list_fmriprep,
    list_nilearn,
    mean_displacements,
    openable,
    raw_finding,
    raw_images,
    without_copies,
)
from neurobench_datasets._bold_settings import BOLD_SPEC, PATCH_VOXELS, SPACING_MM, BoldSettings
from neurobench_datasets._roi_series import MIN_TIMES, evenly, read_series, units_of
from neurobench_datasets._tables import missing_targets, whole

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

N_REGIONS = {"aal": 116, "cc200": 190, "cc400": 351, "ez": 116, "ho": 111, "tt": 97}
"""Regions of each parcellation in the release's files."""

_FILE = re.compile(
    r"(?P<filtered>sf?nwmrda)(?P<id>\d+)_session_(?P<session>\d+)_rest_(?P<run>\d+)_(?P<atlas>[a-z0-9]+)_TCs\.1D"
)


IMAGES = {
    "athena": "s*nwmrda*_rest_*.nii*",
    "fmriprep": f"sub-*{BOLD}",
    "nilearn": "*_rest_tshift_RPI_voreg_mni.nii.gz",
}
"""What the images of each layout are called."""

LAYOUTS = ("time_courses", "athena", "fmriprep", "nilearn")
"""In the order in which ``auto`` looks for them; without time courses for volumes."""

INCLUSION = (
    "Everybody with a row in a phenotype table of the release and a recording of one layout, one parcellation and one "
    "filtering. qc=all: recordings that the release's visual control calls questionable (QC_Rest 0) are used and "
    "counted; qc=passed: they are left out, and so are those that Athena's control failed (QC_Athena 0); "
    "recordings without a value stay. Runs shorter than 50 volumes, with another number of regions, or whose site and "
    "with it the repetition time is not known are left out. Participants without a released diagnosis serve "
    "pretraining only."
)


class ADHD200(Dataset):
    """ADHD-200: children and adolescents with and without ADHD, eight sites.

    Parameters
    ----------
    signal
        ``parcels``: ROI time series. ``volume``: 3-D patches of the images.
    atlas
        Which time courses: ``aal``, ``cc200``, ``cc400``, ``ez``, ``ho`` or ``tt``. For images: the path of a label
        image or a name that nilearn fetches (aal3, aal, schaefer100, …); empty: ``aal`` for time courses, the
        ``atlas.nii.gz`` of the folder for images.
    layout
        ``auto``: the first of time_courses, athena, fmriprep, nilearn that is there; or one of them.
    filtered
        Athena: use the files that are band-passed (``sfnwmrda``) rather than those that are not (``snwmrda``).
    qc
        ``all``, or ``passed``: only recordings that passed the release's visual control.
    confounds
        Images of fMRIPrep or nilearn: ``none``, or some of motion, wm_csf, high_pass, global_signal, compcor joined by
        ``+``. Athena's are regressed already.
    n_units
        Use only this many regions, evenly spaced in the order of the files; 0: all.
    spacing_mm, patch_voxels
        ``signal=volume``: edge of a voxel in mm, and voxels along the edge of a patch.
    """

    name = "adhd200"
    summary = "ADHD-200: time courses or 4-D volumes; diagnosis, age, sex, full_iq; eight sites"
    reference = "10.1016/j.neuroimage.2016.06.034"
    modality = "fmri"
    twin_subjects = 64
    default_grid = True
    card = DatasetCard(
        title="ADHD-200",
        modality="fmri",
        licence="non-commercial research, attribution",
        access="register with NITRC (1000 Functional Connectomes Project); free",
        apply_at="https://www.nitrc.org/projects/neurobureau",
        citation="ADHD-200 Consortium 2012; Athena pipeline: Bellec et al. 2017; the funding of the sites",
        doi="10.1016/j.neuroimage.2016.06.034",
        revision="Athena filtfix time courses, Athena volumes, fMRIPrep derivatives or nilearn's 40; reader 2",
        may_leave="predictions",
        traps=(
            "Run length and repetition time identify the site: compare within sites, and look at the site-only row.",
            "Site, age, sex, handedness and IQ alone won the competition (62.5 % of three classes).",
            "Brown's labels were never released; its recordings serve pretraining only.",
            "full_iq is a full-scale IQ, not a test of fluid intelligence; it is a target of its own.",
        ),
        size="973 people: 776 of the training release (491 controls, 285 with ADHD), 197 of the test release; 40 in "
        "nilearn's download",
        inclusion=INCLUSION,
    )

    def __init__(
        self,
        *,
        signal: str = "parcels",
        atlas: str = "",
        layout: str = "auto",
        filtered: bool = True,
        qc: str = "all",
        confounds: str = "motion+wm_csf",
        n_units: int = 0,
        spacing_mm: float = SPACING_MM,
        patch_voxels: int = PATCH_VOXELS,
    ) -> None:
        allowed = {
            "signal": (signal, ("parcels", "volume")),
            "layout": (layout, ("auto", *LAYOUTS)),
            "qc": (qc, ("all", "passed")),
        }
        for what, (value, values) in allowed.items():
            if value not in values:
                raise ConfigError(
                    f"adhd200 has no {what} {value!r}.", allowed=", ".join(values), likely=closest(value, values)
                )
        if signal == "volume" and layout == "time_courses":
            raise ConfigError(
                "time courses of regions hold no volumes.", next_step="Say layout=athena or signal=parcels."
            )
        looks_like_a_name = bool(atlas) and "/" not in atlas and "." not in atlas
        if looks_like_a_name and atlas not in (*N_REGIONS, *FETCHED):
            raise ConfigError(
                f"adhd200 has no atlas {atlas!r}.",
                allowed=f"{', '.join(N_REGIONS)} (time courses); {', '.join(FETCHED)} or the path of a label image",
                likely=closest(atlas.lower(), (*N_REGIONS, *FETCHED)),
            )
        self.bold = BoldSettings.of(
            "adhd200",
            signal=signal,
            atlas=atlas,
            confounds=confounds,
            n_units=n_units,
            spacing_mm=spacing_mm,
            patch_voxels=patch_voxels,
        )
        self.signal: Literal["parcels", "volume"] = self.bold.signal
        # Only some of the parcellations are given out as time courses.
        self.time_courses = atlas or "aal" if signal == "parcels" and atlas in ("", *N_REGIONS) else ""
        self.layout, self.filtered, self.qc, self.n_units = layout, filtered, qc, n_units

    @property
    def spec(self) -> SignalSpec:
        """150 s windows of 15 s patches, .01–.1 Hz."""
        return BOLD_SPEC

    # ------------------------------------------------------------ listing

    def list_recordings(self, root: Path) -> Listing:
        """Find phenotype tables and the recordings of one layout, one parcellation and one filtering."""
        findings: list[Finding] = []
        participants = read_phenotypes(root, findings)
        layout, found = self._found(root, findings)
        recordings = self._usable(found, layout, participants, root, findings)
        if "mean_fd" not in participants and any(r.beside.get("confounds") for r in recordings):
            participants["mean_fd"] = mean_displacements(recordings).reindex(participants.index)
        unlabelled = participants["diagnosis"].isna()
        if unlabelled.any():
            where = ", ".join(f"{s} {n}" for s, n in participants["site"][unlabelled].value_counts().items())
            text = f"{int(unlabelled.sum())} participants have no released diagnosis ({where}); they serve pretraining"
            findings.append(Finding("info", "missing-target", text))
        findings += missing_targets(participants, ("age", "sex", "full_iq"))
        without = sorted(set(participants.index) - {r.subject for r in recordings})
        if without:
            text = f"{len(without)} of {len(participants)} participants have no usable recording"
            findings.append(Finding("warning", "no-recording", f"{text}: {', '.join(without[:4])}"))
        return Listing(participants, tuple(sorted(recordings, key=lambda r: r.id)), tuple(findings))

    def _found(self, root: Path, findings: list[Finding]) -> tuple[str, list[RecordingFile]]:
        """Return the layout that is used, and its recordings; what else is there is said.

        Raises
        ------
        DataError
            If there is nothing of the layouts that can be used.
        """
        there: dict[str, list[RecordingFile]] = {}
        reasons: list[str] = []
        for layout in LAYOUTS if self.layout == "auto" else (self.layout,):
            noticed: list[Finding] = []
            # Only the layout that is used needs an atlas; what lies beside it is counted.
            if layout == "time_courses":
                if not self.time_courses:
                    continue
                files, why = self._time_courses(root, noticed)
                reasons += [why] if why else []
            elif not any(root.rglob(IMAGES[layout])):
                continue
            elif layout == "athena":
                beside = {} if there else self.bold.atlas_beside(root)
                files = list_athena(root, filtered=self.filtered, beside=beside, findings=noticed)
                kind = "not filtered (snwmrda)" if self.filtered else "band-passed (sfnwmrda)"
                reasons += [] if files or noticed else [f"its Athena volumes are all {kind}: say adhd200[filtered=…]"]
            elif layout == "nilearn":
                beside = {} if there else self.bold.atlas_beside(root)
                files = list_nilearn(root, beside=beside, findings=noticed)
            else:
                beside = {} if there else self.bold.atlas_beside(root)
                files, noticed = list_fmriprep(root, bids_task="", beside=beside)
            if not there:
                findings += noticed
            if files:
                there[layout] = files
        raw = raw_images(root)
        if raw:
            findings.append(raw_finding(raw))
        niak = [p for p in (*root.rglob("fmri_*.nii*"), *root.rglob("tseries_*.mat")) if NIAK.fullmatch(p.name)]
        if niak:
            text = f"{len(niak)} files are of the NIAK release ({niak[0].name}, …), which adhd200 does not read"
            fix = "take Athena's files, or give its time series (.mat, variable tseries) to the dataset parcels"
            findings.append(Finding("warning", "niak-files", text, fix=fix, path=str(niak[0])))
        if not there:
            reasons += [f"{findings[-1].message} ({findings[-1].fix})"] if niak else []
            more = "; ".join(reasons) or ("its images are raw" if raw else "")
            raise DataError(
                f"{root} has no recording that adhd200 can use" + (f": {more}." if more else "."),
                allowed="time courses (…_aal_TCs.1D), Athena's volumes (sfnwmrda….nii.gz), fMRIPrep derivatives in MNI "
                "space, or nilearn's fetch_adhd folder"
                if self.layout == "auto"
                else f"layout={self.layout}",
                next_step="Run fMRIPrep on the raw images and give its derivatives."
                if raw
                else "Unpack ADHD200_AAL_TCs_filtfix.tar.gz there.",
            )
        first = next(iter(there))
        others = [f"{layout} ({len(files)} recordings)" for layout, files in there.items() if layout != first]
        if others:
            text = f"layout {first} is used ({len(there[first])} recordings); there is also {', '.join(others)}"
            findings.append(Finding("info", "other-layout", text, fix="say adhd200[layout=…] to use another"))
        return first, there[first]

    def _time_courses(self, root: Path, findings: list[Finding]) -> tuple[list[RecordingFile], str]:
        """Return the time courses of one parcellation and filtering, and where there are none, what there is."""
        prefix = "sfnwmrda" if self.filtered else "snwmrda"
        found = [(p, _FILE.fullmatch(p.name)) for p in sorted(root.rglob("*_TCs*.1D")) if "templates" not in p.parts]
        named = [(p, m) for p, m in found if m is not None]
        if others := [p for p, m in found if m is None]:
            text = f"named like time courses, but not as in the release, and ignored: {len(others)}"
            findings.append(
                Finding(
                    "warning",
                    "file-name",
                    f"{text}, for example {others[0].name}",
                    fix="delete copies; name others <sfnwmrda><ID>_session_1_rest_1_<atlas>_TCs.1D",
                    path=str(others[0]),
                )
            )
        same = [(p, m) for p, m in named if m["atlas"] == self.time_courses]
        files = [(p, m) for p, m in same if m["filtered"] == prefix]
        if not files:
            there = Counter(
                (m["atlas"], "filtered" if m["filtered"] == "sfnwmrda" else "not filtered") for _, m in named
            )
            shown = ", ".join(f"{a}, {f} ({n} files)" for (a, f), n in sorted(there.items()))
            kind = "band-passed (sfnwmrda)" if self.filtered else "unfiltered (snwmrda)"
            why = f"it has no {kind} time courses of atlas {self.time_courses}, but those of {shown}"
            return [], f"{why}: say adhd200[atlas=…] or adhd200[filtered=…]" if shown else ""
        if len(files) < len(same):
            text = f"{len(same) - len(files)} files of the other filtering lie beside the ones used and are ignored"
            findings.append(Finding("info", "other-filtering", text))
        recordings = [
            RecordingFile(m["id"].zfill(7), p, 1.0, m["session"], "rest", m["run"], {"layout": "time_courses"})
            for p, m in files
        ]
        return without_copies(openable(recordings, findings), findings), ""

    def _usable(
        self,
        found: list[RecordingFile],
        layout: str,
        participants: pd.DataFrame,
        root: Path,
        findings: list[Finding],
    ) -> list[RecordingFile]:
        """Return the recordings of known people at known sites that pass the rule of inclusion, with their rate."""
        recordings: list[RecordingFile] = []
        seen: set[tuple[str, str, str, str]] = set()
        questionable = 0
        for file in found:
            subject, path = file.subject.zfill(7), file.path
            # WashU's resting runs are called reststudy3 and the like, and may have numbers of their own.
            state = "rest" if file.state.startswith("rest") else file.state
            study = file.state.removeprefix("rest").strip("_-") if state == "rest" else ""
            run = "-".join(part for part in (study, file.run) if part)
            key = (subject, file.session, state, run)
            if subject not in participants.index:
                text = f"{subject} has a recording and no row in a phenotype table"
                findings.append(Finding("error", "unknown-id", text, subject=subject, path=str(path)))
                continue
            if key in seen:
                text = f"{path.name} is there twice; the first is used"
                findings.append(Finding("warning", "duplicate-recording", text, subject=subject, path=str(path)))
                continue
            seen.add(key)
            site = participants["site"][subject]
            if layout != "fmriprep" and site not in T_R:
                text = f"the site of {subject} is not known ({site}), so its repetition time is not either"
                findings.append(Finding("error", "unknown-site", text, subject=subject, path=str(path)))
                continue
            rest = participants.get(f"qc_rest_{run.lstrip('0') or 1}", pd.Series(dtype=float)).get(subject)
            athena = participants.get("qc_athena", pd.Series(dtype=float)).get(subject)
            failed = rest == 0 or (layout in ("athena", "time_courses") and athena == 0)
            if failed and self.qc == "passed":
                which = "QC_Rest" if rest == 0 else "QC_Athena"
                text = f"{path.name} did not pass the release's visual control ({which} = 0)"
                findings.append(Finding("error", "quality-control", text, subject=subject, path=str(path)))
                continue
            questionable += bool(failed)
            sfreq = file.sfreq if layout == "fmriprep" else 1 / T_R[site]
            recordings.append(replace(file, subject=subject, sfreq=sfreq, state=state, run=run))
        if questionable:
            text = f"{questionable} recordings are questionable by the release's visual control and are used"
            findings.append(Finding("info", "questionable", text, fix="say adhd200[qc=passed] to leave them out"))
        return recordings

    # ------------------------------------------------------------ reading

    def read(self, file: RecordingFile) -> RawRecording:
        """Read one image, or one .1D file: header ``File Sub-brick Mean_2001 …``, one row a volume."""
        if file.options["layout"] != "time_courses":
            # Athena's images are regressed already.
            settings = replace(self.bold, confounds=()) if file.options["layout"] == "athena" else self.bold
            raw = settings.read(file)
            done = "Athena: first four volumes removed, nuisance regressed, warped to its paediatric template"
            return replace(raw, provenance=(*raw.provenance, done)) if file.options["layout"] == "athena" else raw
        series = read_series(file.path)
        expected = N_REGIONS[self.time_courses]
        names = [re.sub(r"^Mean_", "", c) for c in series.columns]
        if len(names) != series.values.shape[1] or any(whole(n) is None for n in names):
            raise DataError(f"{file.path.name} has no header of region codes (Mean_2001, Mean_2002, …).")
        if len(names) != expected:
            detail = ""
            if self.time_courses == "aal":
                lost = sorted(set(aal_regions()["code"].astype(str)) - set(names))
                detail = f" (missing: {', '.join(lost[:6])})" if lost else ""
            raise DataError(
                f"{file.path.name} has {len(names)} regions, and {self.time_courses} has {expected}{detail}."
            )
        if len(series.values) < MIN_TIMES:
            raise DataError(f"{file.path.name} has {len(series.values)} volumes, fewer than {MIN_TIMES}.")
        index = evenly(len(names), self.n_units)
        units = atlas_units(self.time_courses, tuple(names)).take(index)
        said = "Athena: first four volumes removed, nuisance regressed, " + (
            "band-passed .009–.08 Hz" if self.filtered else "not filtered"
        )
        return RawRecording(series.values.T[index], file.sfreq, units, (said,))

    def simulate(
        self, root: Path, *, n_subjects: int, seed: int, variant: Literal["default", "null", "confounded"]
    ) -> None:
        """Write simulated time courses and phenotype tables in Athena's layout, quirks included."""
        from neurobench_datasets._adhd200_twin import simulate

        simulate(root, n_subjects=n_subjects, seed=seed, variant=variant, volumes=self.signal == "volume")


# ---------------------------------------------------------------- parcellations


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

"""Any BIDS data set: fMRIPrep derivatives as regions of an atlas or as patches of the volume, or BIDS-MEG.

::

    participants.tsv, dataset_description.json     beside it: what records and reports call the recordings
    derivatives/fmriprep/sub-01/func/sub-01_task-rest_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz
    sub-01/meg/sub-01_task-rest_meg.fif                              signal=meg

fMRI needs an atlas: the path of a label image in MNI space, with a table of the same name beside it for names and
groups (columns label, name, group). Source of the layout: Gorgolewski et al. 2016, doi:10.1038/sdata.2016.44.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

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
)
from neurobench_datasets._bold_layouts import BOLD, list_fmriprep, mean_displacements, raw_finding, raw_images
from neurobench_datasets._bold_settings import BOLD_SPEC, PATCH_VOXELS, SPACING_MM, BoldSettings
from neurobench_datasets._description import described
from neurobench_datasets._meg_settings import MEG_SPEC, MegSettings, task_labels
from neurobench_datasets._tables import STANDARD, match_id, missing_targets, participants_from

SIGNALS = ("fmri", "parcels", "volume", "meg")


class BIDS(Dataset):
    """A BIDS folder: fMRI preprocessed with fMRIPrep, or MEG.

    Parameters
    ----------
    signal
        ``fmri`` or ``parcels``: regions of an atlas. ``volume``: 3-D patches of the images. ``meg``: sensors.
    atlas
        fMRI: path of a label image in MNI space, or a name that nilearn fetches (aal3, schaefer100, …); empty: the
        ``atlas.nii.gz`` of the folder.
    confounds
        fMRI: ``none``, or some of motion, wm_csf, high_pass, global_signal, compcor joined by ``+``.
    bids_task
        fMRI: label of the task to use; empty: all.
    female_code
        Which code of a coded column ``sex`` means female; codes are never guessed.
    n_units
        fMRI: use only this many regions, evenly spaced in the order of the atlas; 0: all.
    spacing_mm, patch_voxels
        ``signal=volume``: edge of a voxel in mm, and voxels along the edge of a patch.
    sensors, rest, auditory, somatosensory, events, trigger, reject, whiten
        MEG: as of ``meg_headache``: which sensors, task labels of each state, conditions, artefacts, noise.
    """

    name = "bids"
    summary = "any BIDS folder: fMRIPrep derivatives through an atlas, or MEG"
    reference = "10.1038/sdata.2016.44"

    def __init__(
        self,
        *,
        signal: str = "fmri",
        atlas: str = "",
        confounds: str = "motion+wm_csf+high_pass",
        bids_task: str = "rest",
        female_code: str = "",
        n_units: int = 0,
        spacing_mm: float = SPACING_MM,
        patch_voxels: int = PATCH_VOXELS,
        sensors: str = "mag",
        rest: str = "rest+resting",
        auditory: str = "auditory+aef+passive",
        somatosensory: str = "somatosensory+sef+mns+somato",
        events: str = "",
        trigger: str = "",
        reject: str = "on",
        whiten: str = "off",
    ) -> None:
        if signal not in SIGNALS:
            raise ConfigError(
                f"bids has no signal {signal!r}.", allowed=", ".join(SIGNALS), likely=closest(signal, SIGNALS)
            )
        if signal == "meg" and (atlas or n_units):
            raise ConfigError("atlas and n_units of bids are for fMRI.", next_step="Leave them out.")
        self.how = MegSettings.of("bids", sensors=sensors, events=events, trigger=trigger, reject=reject, whiten=whiten)
        self.states = task_labels(rest, auditory, somatosensory)
        if signal != "meg" and self.how != MegSettings():
            raise ConfigError(
                "sensors, events, trigger, reject and whiten of bids are for signal=meg.", next_step="Leave them out."
            )
        self.bold = BoldSettings.of(
            "bids",
            signal=signal,
            atlas=atlas,
            confounds=confounds,
            n_units=n_units,
            spacing_mm=spacing_mm,
            patch_voxels=patch_voxels,
        )
        self.modality: Literal["fmri", "meg"] = "meg" if signal == "meg" else "fmri"
        self.signal: Literal["parcels", "volume", "sensors"] = "sensors" if signal == "meg" else self.bold.signal
        self.bids_task, self.female_code = bids_task, female_code
        self.card = DatasetCard(
            title="A BIDS folder of your own",
            modality=self.modality,
            licence="that of your data",
            access="your own files",
            apply_at="",
            citation="the source of your data, and of the atlas",
            doi="",
            revision="reader 1",
            may_leave="aggregates",
            size="yours: `neurobench data check` says how many",
            inclusion=(
                "Everybody with a row in participants.tsv and a preprocessed image in MNI space, or a MEG recording. "
                "Damaged files, images without a repetition time, copies under two ids and recordings shorter than "
                "half a window are left out, each with its reason."
            ),
            traps=("Scanners, repetition times and run lengths can give the site away, and with it the diagnosis.",),
        )

    @property
    def spec(self) -> SignalSpec:
        """FMRI: 150 s windows, 15 s patches, .01–.1 Hz. MEG: 4 s windows, 250 ms patches, 1–40 Hz, 128 Hz."""
        if self.modality == "meg":
            return MEG_SPEC
        return BOLD_SPEC

    def list_recordings(self, root: Path) -> Listing:
        """Find recordings and match them to participants.tsv."""
        findings: list[Finding] = []
        if self.modality == "meg":
            from neurobench_datasets._meg_files import list_bids_meg

            recordings, findings = list_bids_meg(root, self.states, self.how)
        else:
            recordings, findings = list_fmriprep(root, bids_task=self.bids_task, beside=self.bold.atlas_beside(root))
            raw = raw_images(root)
            if not recordings and not any(f.level == "error" for f in findings):
                task = f" of task {self.bids_task}" if self.bids_task else ""
                other = next((f.message for f in findings), "")
                other = other or (raw_finding(raw).message if raw else "")
                raise DataError(
                    f"{root} has no preprocessed BOLD in MNI space{task}."
                    + (f" {other[0].upper()}{other[1:]}." if other else ""),
                    allowed=f"sub-*{BOLD} with space-MNI152…",
                    next_step="Run fMRIPrep, or say bids[bids_task=…].",
                )
            with_derivatives = {r.subject for r in recordings}
            only_raw = [p for p in raw if p.name.split("_")[0].removeprefix("sub-") not in with_derivatives]
            findings += [raw_finding(only_raw)] if only_raw else []
        # Derivatives lie inside the data set whose table names the people.
        places = (root, *root.resolve().parents[:2])
        home = next((p for p in places if (p / "participants.tsv").is_file()), root)
        participants = self._participants(home, recordings, findings)
        matched = []
        for r in recordings:
            subject = match_id(r.subject, participants.index)
            if not subject:
                text = f"{r.subject} has recordings and no row in participants.tsv"
                findings.append(Finding("error", "unknown-id", text, subject=r.subject, path=str(r.path)))
                continue
            matched.append(replace(r, subject=subject))
        if self.modality == "fmri" and "mean_fd" not in participants:
            participants["mean_fd"] = mean_displacements(matched).reindex(participants.index)
        findings += missing_targets(participants, STANDARD)
        ordered = tuple(sorted(matched, key=lambda r: r.id))
        return Listing(participants, ordered, tuple(findings), described(self.card, home))

    def _participants(self, home: Path, recordings: list[RecordingFile], findings: list[Finding]) -> pd.DataFrame:
        table = home / "participants.tsv"
        if not table.is_file():
            text = (
                "there is no participants.tsv, so nothing is known of the people and only reconstruction can be scored"
            )
            findings.append(Finding("warning", "no-participants-table", text))
            ids = sorted({r.subject for r in recordings})
            return pd.DataFrame(index=pd.Index(ids, name="participant_id", dtype=object))
        participants, more = participants_from(table, component="bids", female_code=self.female_code)
        findings += more
        return participants

    def read(self, file: RecordingFile) -> RawRecording:
        """Read one recording of either signal."""
        if self.modality == "meg":
            from neurobench_datasets._meg_files import read_meg_file

            return read_meg_file(file)
        return self.bold.read(file)


@hookimpl
def register_datasets() -> list[type[Dataset]]:
    """Register the dataset."""
    return [BIDS]

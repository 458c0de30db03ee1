"""MEG of people with headache and controls, in a BIDS-MEG folder of your own: rest, auditory, somatosensory.

::

    participants.tsv        participant_id, age, sex, group (or diagnosis) [, site, attack_phase, …]
    sub-01/[ses-01/]meg/sub-01_task-rest_meg.fif            any system MNE reads; also split files, _meg.ds, .con
    sub-01/meg/sub-01_task-rest_channels.tsv                status good / bad
    sub-01/meg/sub-01_task-auditory_events.tsv              onset, trial_type; else the trigger channel is read

The study behind the name (doi:10.1088/1741-2552/ae2805: 362 people with headache, 54 controls) released no data. A
plain folder of MEG files works too, for reconstruction: each file is then a subject of its own.

The simulated twin: see ``_meg_twin.py``.
"""

from __future__ import annotations

import json
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from neurobench import (
    DataError,
    Dataset,
    DatasetCard,
    Finding,
    Listing,
    RawRecording,
    RecordingFile,
    SignalSpec,
    hookimpl,
    seed_for,
)
from neurobench_datasets._bold_twin import balanced_diagnosis, even_uniform
from neurobench_datasets._meg_files import list_bids_meg, list_folder, read_meg_file
from neurobench_datasets._meg_settings import MEG_SPEC, MegSettings, task_labels
from neurobench_datasets._meg_twin import (
    NO_EFFECTS,
    Effects,
    MegTwin,
    Person,
    write_effects,
    write_recording,
    write_sidecars,
)
from neurobench_datasets._tables import match_id, missing_targets, participants_from, write_tsv

CONTROL = frozenset({"control", "controls", "healthy", "healthy control", "hc", "con", "no headache", "0"})
STATES = ("rest", "auditory", "somatosensory")


class MegHeadache(Dataset):
    """BIDS-MEG with up to three states a subject; headache against controls.

    Parameters
    ----------
    sensors
        ``mag``: one sensor a site (the magnetometer where there is one). ``all``: every sensor.
    rest, auditory, somatosensory
        Task labels that mean each state, joined by ``+``. Recordings of other tasks are states of their own.
    events
        Codes or texts of events and the conditions they mean, such as ``6:tone300+7:tone600``; other events are then
        left out. Empty: events keep the names that the recording gives them.
    trigger
        Name of the trigger channel; empty: found. Used where there is no ``events.tsv``.
    reject
        Artefacts, found by their peak-to-peak size in half-second segments: ``on``, ``off``, or a factor on the limits.
    whiten
        ``on``: sensors are whitened with the noise covariance of an empty-room recording or ``…-cov.fif``.
    """

    name = "meg_headache"
    summary = "BIDS-MEG of your own: rest, auditory, somatosensory; headache or any diagnosis, age, sex"
    reference = "10.1088/1741-2552/ae2805"
    signal = "sensors"
    modality = "meg"
    twin_subjects = 48
    default_grid = True
    card = DatasetCard(
        title="MEG headache (a BIDS-MEG folder of your own)",
        modality="meg",
        licence="yours: clinical recordings, as your ethics approval says",
        access="no public release exists; point neurobench at your own folder",
        apply_at="the owners of the recordings",
        citation="10.1088/1741-2552/ae2805 for the study design; your own for the recordings",
        doi="10.1088/1741-2552/ae2805",
        revision="BIDS-MEG; reader 1",
        may_leave="aggregates",
        size="the study had 362 patients and 54 controls; of your folder `neurobench data check` says how many",
        inclusion=(
            "Everybody with a row in participants.tsv and a MEG recording, whatever the states; a recording of two "
            "people is used for neither. Damaged files, averages and recordings shorter than half a window are left "
            "out, each with its reason."
        ),
        traps=(
            "With 362 patients and 54 controls 'always patient' is 87 % accurate: read AUROC and balanced accuracy.",
            "States of one subject are one subject: they never straddle folds.",
            "After signal-space separation a sensor is nearly a sum of the others: masks hide whole sites or spans.",
        ),
    )

    def __init__(
        self,
        *,
        sensors: str = "mag",
        rest: str = "rest+resting",
        auditory: str = "auditory+aef+passive",
        somatosensory: str = "somatosensory+sef+mns+somato",
        events: str = "",
        trigger: str = "",
        reject: str = "on",
        whiten: str = "off",
    ) -> None:
        self.how = MegSettings.of(
            self.name, sensors=sensors, events=events, trigger=trigger, reject=reject, whiten=whiten
        )
        self.states = task_labels(rest, auditory, somatosensory)

    @property
    def spec(self) -> SignalSpec:
        """4 s windows of 250 ms patches, 1–40 Hz at 128 Hz, one robust scale a sensor type."""
        return MEG_SPEC

    def list_recordings(self, root: Path) -> Listing:
        """Find participants and recordings; a folder without ``participants.tsv`` is a plain folder of files."""
        table = next((root / n for n in ("participants.tsv", "participants.csv") if (root / n).is_file()), None)
        if table is None:
            files, findings = list_folder(root, self.how)
            if not files and not findings:
                raise DataError(
                    f"{root} holds no MEG recording.",
                    allowed="sub-…_task-…_meg.fif (.ds, .con, .sqd, 4D folders) with participants.tsv, or a plain "
                    "folder of such files",
                )
            people = pd.DataFrame(index=pd.Index(sorted({f.subject for f in files}), name="participant_id"))
            return Listing(people, tuple(files), tuple(findings))
        # A table with both columns says in `diagnosis` what `group` may say of something else.
        participants, findings = participants_from(table, component=self.name, aliases={"group": "diagnosis"})
        if "diagnosis" in participants:
            participants["diagnosis"] = _diagnosis(participants["diagnosis"], findings)
        # The label in a file name has `sub-`; a table may leave it out.
        # Letters with marks are one sign or two, depending on the system that wrote them.
        ids = [unicodedata.normalize("NFC", i) for i in participants.index]
        participants.index = [i if i.startswith("sub-") else f"sub-{i}" for i in ids]
        participants.index.name = "participant_id"
        found, more = list_bids_meg(root, self.states, self.how)
        findings += more
        known = set(participants.index)
        # Of ids in a table a spreadsheet takes away the zeros.
        found = [
            f if f.subject in known else replace(f, subject=match_id(f.subject, known) or f.subject) for f in found
        ]
        for subject in sorted({f.subject for f in found} - known):
            text = f"{subject} has recordings and no row in {table.name}"
            findings.append(Finding("error", "unknown-id", text, subject=subject))
        for subject in sorted(known - {f.subject for f in found}):
            findings.append(Finding("warning", "no-recording", f"{subject} has no MEG recording", subject=subject))
        findings += missing_targets(participants, ("age", "sex", "diagnosis"))
        return Listing(participants, tuple(f for f in found if f.subject in known), tuple(findings))

    def read(self, file: RecordingFile) -> RawRecording:
        """Read one recording: a row a sensor."""
        return read_meg_file(file)

    def simulate(
        self, root: Path, *, n_subjects: int, seed: int, variant: Literal["default", "null", "confounded"]
    ) -> None:
        """Write the twin: three states a subject, two sites, a third of the subjects controls.

        The same arguments write the same bytes on one machine; on another the files may differ in the machine's number
        that MNE writes into them, and not in what is read.
        """
        rng = np.random.default_rng(seed_for(seed, "twin", self.name, n_subjects))
        effects = NO_EFFECTS if variant == "null" else Effects()
        twin = MegTwin(seed, effects)
        site = np.array(["A", "B"])[rng.permutation(np.arange(n_subjects) % 2)]
        age = even_uniform(rng, n_subjects, 18, 65).round(1)
        patient = balanced_diagnosis(rng, site, prevalence=0.6, confounded=variant == "confounded")
        names = [f"sub-{i + 1:03d}" for i in range(n_subjects)]
        people = pd.DataFrame(
            {
                "participant_id": names,
                "age": age,
                "sex": rng.permutation(np.arange(n_subjects) % 2),
                "group": np.where(patient == 1, "headache", "control"),
                "site": site,
                "attack_phase": np.where(patient == 1, rng.choice(["interictal", "ictal"], n_subjects), None),
            }
        )
        people["sex"] = people["sex"].map({0: "F", 1: "M"})
        root.mkdir(parents=True, exist_ok=True)
        write_tsv(root / "participants.tsv", people)
        description = {
            "Name": "Simulated MEG headache",
            "BIDSVersion": "1.9.0",
            "DatasetType": "raw",
            "Simulated": True,
        }
        (root / "dataset_description.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
        age_z = (age - age.mean()) / age.std()
        for i, name in enumerate(names):
            bads = tuple(rng.choice(twin.names, rng.integers(0, 3), replace=False).tolist())
            for state in STATES:
                path = root / name / "meg" / f"{name}_task-{state}_meg.fif"
                person = Person(name, float(age_z[i]), int(patient[i]))
                onsets = write_recording(path, twin, person, state, bads=bads)
                write_sidecars(path, twin, state, onsets, bads, bom=i == 0)
        write_effects(
            root,
            effects,
            variant=variant,
            n_subjects=n_subjects,
            diagnosis_by_site=variant == "confounded",
            **twin.field_table(),
        )


def _diagnosis(column: pd.Series, findings: list[Finding]) -> pd.Series:
    """Return ``control`` for the words that mean it, every other text as it is; more than two classes are said."""
    text = column.map(lambda v: None if v is None or pd.isna(v) else str(v).strip().lower())
    named = text.map(lambda v: "control" if v in CONTROL else v)
    classes = sorted(set(named.dropna()))
    if len(classes) > 2 or (len(classes) == 2 and "control" not in classes):
        findings.append(
            Finding(
                "warning",
                "diagnosis-classes",
                f"the diagnoses are {', '.join(classes)}: the task needs controls and one class of patients",
                fix=f"write one of {', '.join(sorted(CONTROL)[:4])} for controls and one word for patients",
            )
        )
    return named.astype(object)


@hookimpl
def register_datasets() -> list[type[Dataset]]:
    """Return the dataset."""
    return [MegHeadache]

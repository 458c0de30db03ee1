"""Your own ROI time series: a participants table and one file a recording.

::

    participants.tsv          participant_id, and any of age, sex, diagnosis, site, mean_fd, t_r, …
    timeseries/sub-01.npy     regions × volumes or volumes × regions; .npy .npz .mat .csv .tsv .txt .1D .ptseries.nii
    sub-01/func/sub-01_….tsv  or anywhere else, as XCP-D and C-PAC write them, where there is no folder timeseries
    regions.tsv               optional: name, group, x, y, z (mm, MNI)
    dataset_description.json  optional, as of BIDS: Name, License, Authors, …: what records and reports call them

The simulated twin has these files too, with a made-up parcellation of 64 regions.
"""

from __future__ import annotations

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
from neurobench_datasets._bold_twin import (
    BoldTwin,
    Effects,
    Traits,
    balanced_diagnosis,
    even_uniform,
    fluid_z,
    synthetic_regions,
    write_effects,
)
from neurobench_datasets._description import described
from neurobench_datasets._series_folder import list_series, read_listed_series
from neurobench_datasets._tables import (
    STANDARD,
    missing_targets,
    participants_from,
    write_tsv,
)

ORIENTATIONS = ("", "times_first", "units_first")


class Parcels(Dataset):
    """ROI time series in a folder of the user's.

    Parameters
    ----------
    t_r
        Repetition time in seconds, where neither a column ``t_r`` nor a JSON sidecar says it; 0: they do.
    orientation
        ``times_first`` (volumes × regions) or ``units_first``, where the files cannot tell.
    variable
        Name of the array in ``.mat`` and ``.npz`` files that have several.
    files
        Which files are meant, as a pattern of their names such as ``*_seg-Gordon_stat-mean_timeseries.tsv``, wherever
        they lie in the folder; empty: those in ``timeseries/``, or where there is no such folder the only kind of
        time series that people have.
    female_code
        Which code of a coded column ``sex`` means female; codes are never guessed.
    n_units
        Use only this many regions, evenly spaced in the order of the table; 0: all.
    """

    name = "parcels"
    summary = "your own ROI time series: participants.tsv and one file a recording"
    signal = "parcels"
    modality = "fmri"
    twin_subjects = 64
    card = DatasetCard(
        title="ROI time series of your own",
        modality="fmri",
        licence="that of your data",
        access="your own files",
        apply_at="",
        citation="the source of your data and of the parcellation",
        doi="",
        revision="reader 1",
        may_leave="aggregates",
        size="yours: `neurobench data check` says how many",
        inclusion=(
            "Everybody with a row in participants.tsv and a file of time series. Files that cannot be read, have "
            "another number of regions or are shorter than half a window are left out, each with its reason."
        ),
        traps=(
            "Run length and repetition time can give the site away, and with it the diagnosis.",
            "Regions of a cohort must come from one parcellation in one order.",
        ),
    )

    def __init__(
        self,
        *,
        t_r: float = 0.0,
        orientation: str = "",
        variable: str = "",
        files: str = "",
        female_code: str = "",
        n_units: int = 0,
    ) -> None:
        if orientation not in ORIENTATIONS:
            raise ConfigError(
                f"parcels has no orientation {orientation!r}.",
                allowed="times_first (volumes × regions) or units_first (regions × volumes)",
                likely=closest(orientation, ORIENTATIONS),
            )
        if t_r < 0 or n_units < 0:
            raise ConfigError("t_r (seconds) and n_units of parcels cannot be negative.")
        self.t_r, self.orientation, self.variable = t_r, orientation, variable
        if "/" in files or "\\" in files:
            raise ConfigError(
                f"files of parcels is {files!r}, which names a folder.",
                allowed="a pattern of names, wherever they lie, such as *_seg-Gordon_stat-mean_timeseries.tsv",
                likely=files.replace("\\", "/").rsplit("/", 1)[-1],
            )
        self.files, self.female_code, self.n_units = files, female_code, n_units

    @property
    def spec(self) -> SignalSpec:
        """150 s windows of 15 s patches, .01–.1 Hz."""
        return SignalSpec(window_s=150.0, patch_s=15.0, band_hz=(0.01, 0.1))

    def list_recordings(self, root: Path) -> Listing:
        """Match files in ``timeseries/`` to rows of the participants table."""
        # Derivatives lie inside the data set whose table names the people.
        places = (root, *root.resolve().parents[:2])
        tables = (place / name for place in places for name in ("participants.tsv", "participants.csv"))
        table = next((t for t in tables if t.exists() or t.is_symlink()), None)
        if table is None:
            raise DataError(
                f"{root} has no participants.tsv or participants.csv.",
                allowed="participants.tsv, timeseries/<participant_id>*.npy (or .npz .mat .csv .tsv .txt .1D "
                ".ptseries.nii)",
                next_step="Write participants.tsv or .csv, with a column participant_id and one row a person, or copy "
                "that of the BIDS folder there.",
            )
        participants, findings = participants_from(table, component="parcels", female_code=self.female_code)
        if table.parent != root:
            findings.append(Finding("info", "table-above", f"the people are those of {table}", path=str(table)))
        recordings, more = list_series(
            root,
            participants,
            component="parcels",
            t_r=self.t_r,
            orientation=self.orientation,
            variable=self.variable,
            pattern=self.files,
        )
        findings += more
        findings += missing_targets(participants, STANDARD)
        return Listing(participants, recordings, tuple(findings), described(self.card, root))

    def read(self, file: RecordingFile) -> RawRecording:
        """Read one file as (regions, volumes)."""
        return read_listed_series(file, variable=self.variable, n_units=self.n_units)

    def simulate(
        self, root: Path, *, n_subjects: int, seed: int, variant: Literal["default", "null", "confounded"]
    ) -> None:
        """Write a simulated cohort: four sites, ages 18 to 80, patients and controls, .npy files."""
        rng = np.random.default_rng(seed_for(seed, "twin", "parcels"))
        regions = synthetic_regions(64)
        effects = Effects.of(variant)
        twin = BoldTwin(regions[["x", "y", "z"]].to_numpy(float), seed=seed, effects=effects)
        site = np.resize(np.array(["ALPHA", "BETA", "GAMMA", "DELTA"]), n_subjects)
        age = even_uniform(rng, n_subjects, 18.0, 80.0)
        age_z = (age - 49.0) / (62.0 / np.sqrt(12))
        fluid = fluid_z(rng, age_z)
        diagnosis = balanced_diagnosis(rng, site, prevalence=0.5, confounded=variant == "confounded")
        mean_fd = rng.gamma(4.0, 0.04, n_subjects)
        t_r = pd.Series(site).map({"ALPHA": 2.0, "BETA": 1.5, "GAMMA": 2.0, "DELTA": 2.5}).to_numpy()
        people = pd.DataFrame(
            {
                "participant_id": [f"sub-{i:04d}" for i in range(1, n_subjects + 1)],
                "diagnosis": np.where(diagnosis == 1, "patient", "control"),
                "age": age.round(2),
                "sex": rng.choice(["F", "M"], n_subjects),
                "fluid_intelligence": (28 + 6 * fluid).round(1),
                "site": site,
                "mean_fd": mean_fd.round(4),
                "t_r": t_r,
            }
        )
        write_tsv(root / "participants.tsv", people)
        write_tsv(root / "regions.tsv", regions)
        (root / "timeseries").mkdir(exist_ok=True)
        for i, subject in enumerate(people["participant_id"]):
            traits = Traits(float(age_z[i]), float(fluid[i]), float(diagnosis[i]), float(mean_fd[i]))
            n_times = round(240 / t_r[i])
            series = twin.recording(subject, traits, n_times=n_times, t_r=float(t_r[i]), site=site[i])
            np.save(root / "timeseries" / f"{subject}.npy", series, allow_pickle=False)
        write_effects(root, twin, variant=variant, seed=seed)


@hookimpl
def register_datasets() -> list[type[Dataset]]:
    """Register the dataset."""
    return [Parcels]

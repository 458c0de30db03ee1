"""A small dataset for tests of the core: .npy files whose faults are planted by the test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from neurobench import Dataset, DatasetCard, Finding, Listing, RawRecording, RecordingFile, SignalSpec, UnitTable
from neurobench.errors import DataError

CARD = DatasetCard(
    title="Fake",
    modality="fmri",
    licence="CC0",
    access="open",
    apply_at="",
    citation="none",
    doi="",
    revision="1",
    may_leave="all",
)


def units(n: int = 12, n_groups: int = 3) -> UnitTable:
    """Return a unit table with positions on a line and groups of equal size."""
    position = np.stack([np.zeros(n), np.arange(n) * 10.0, np.zeros(n)], 1).astype(np.float32)
    return UnitTable.from_groups(
        names=tuple(f"unit-{i:02d}" for i in range(n)),
        groups=tuple(f"group-{i * n_groups // n}" for i in range(n)),
        position_mm=position,
    )


class FakeDataset(Dataset):
    """Reads ``<subject>.npy`` of shape (units, times); ``sfreq.txt`` holds a table of frequencies."""

    name = "fake"
    summary = "files written by a test"
    signal = "parcels"
    modality = "fmri"
    card = CARD
    twin_subjects = 8

    @property
    def spec(self) -> SignalSpec:
        return SignalSpec(window_s=40.0, patch_s=8.0, band_hz=None)

    def list_recordings(self, root: Path) -> Listing:
        table = pd.read_csv(root / "participants.csv", dtype={"participant_id": str}).set_index("participant_id")
        files = tuple(
            RecordingFile(subject=s, path=root / f"{s}.npy", sfreq=float(table.loc[s, "sfreq"]))
            for s in table.index
            if (root / f"{s}.npy").is_file()
        )
        findings = tuple(
            Finding("error", "no-recording", "has no file", subject=s)
            for s in table.index
            if not (root / f"{s}.npy").is_file()
        )
        return Listing(table.drop(columns="sfreq"), files, findings)

    def read(self, file: RecordingFile) -> RawRecording:
        try:
            data = np.load(file.path, allow_pickle=False)
        except ValueError as error:
            raise DataError(f"{file.path.name} is not a .npy file.") from error
        return RawRecording(data, file.sfreq, units(len(data)))

    def simulate(self, root: Path, *, n_subjects: int, seed: int, variant: str) -> None:
        write_folder(root, n_subjects, seed=seed)


def write_folder(root: Path, n_subjects: int = 8, n_times: int = 60, seed: int = 0, n_units: int = 12) -> None:
    """Write recordings of 0.5 Hz whose units share a latent signal, and a participants table with an age effect."""
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n_subjects):
        subject = f"s{i:03d}"
        age = float(rng.uniform(20, 60))
        latent = rng.standard_normal((3, n_times)).cumsum(1)
        loading = rng.standard_normal((n_units, 3)) * 0.2 + np.repeat(np.eye(3), n_units // 3, 0) * (1 + age / 40)
        np.save(root / f"{subject}.npy", loading @ latent + rng.standard_normal((n_units, n_times)))
        rows.append(
            {
                "participant_id": subject,
                "sfreq": 0.5,
                "age": age,
                "sex": "FM"[i % 2],
                "site": "AB"[i // 2 % 2],
                "diagnosis": ["control", "patient"][i % 2],
            }
        )
    pd.DataFrame(rows).to_csv(root / "participants.csv", index=False)

"""A plugin file for tests of transfer: three releases with people of the same names, one of them under other names."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from neurobench import RawRecording, RecordingFile, UnitTable, hookimpl
from tests.fakes import FakeDataset, units, write_folder
from tests.tiny_plugin import Connected, Tiny


class North(FakeDataset):
    """Twelve units in a row."""

    name = "north"


class South(FakeDataset):
    """Other people under the same identifiers, another atlas, and slower."""

    name = "south"

    def read(self, file: RecordingFile) -> RawRecording:
        raw = super().read(file)
        own = units(len(raw.data))
        moved = (own.position_mm + np.array([0, 4, 0])).astype(np.float32)
        table = UnitTable.from_groups(tuple(f"area {i}" for i in range(len(own))), own.groups, moved)
        return replace(raw, units=table)

    def simulate(self, root: Path, *, n_subjects: int, seed: int, variant: str) -> None:
        write_folder(root, n_subjects, seed=seed + 1)
        table = pd.read_csv(root / "participants.csv")
        table.assign(sfreq=0.4).to_csv(root / "participants.csv", index=False)


class Echo(FakeDataset):
    """The people of ``north``, renamed."""

    name = "echo"

    def simulate(self, root: Path, *, n_subjects: int, seed: int, variant: str) -> None:
        write_folder(root, n_subjects, seed=seed)
        table = pd.read_csv(root / "participants.csv")
        for name in table["participant_id"]:
            shutil.move(root / f"{name}.npy", root / f"other-{name}.npy")
        table["participant_id"] = "other-" + table["participant_id"]
        table.to_csv(root / "participants.csv", index=False)


class East(South):
    """Other people under other identifiers, with the atlas of ``south``."""

    name = "east"

    def simulate(self, root: Path, *, n_subjects: int, seed: int, variant: str) -> None:
        Echo().simulate(root, n_subjects=n_subjects, seed=seed + 2, variant=variant)
        table = pd.read_csv(root / "participants.csv")
        table.assign(sfreq=0.4).to_csv(root / "participants.csv", index=False)


@hookimpl
def register_backbones() -> list[type]:
    """Return the backbones."""
    return [Tiny, Connected]


@hookimpl
def register_datasets() -> list[type]:
    """Return the datasets."""
    return [North, South, Echo, East]

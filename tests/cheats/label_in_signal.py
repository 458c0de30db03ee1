"""A dataset that looks the age up while it reads a signal."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from neurobench_datasets.parcels import Parcels


class LabelInSignal(Parcels):
    """Makes every signal as strong as its subject is old."""

    name = "label_in_signal"
    summary = "cheats: the age is in the signal"

    def list_recordings(self, root):
        self.root = root
        return super().list_recordings(root)

    def read(self, file):
        raw = super().read(file)
        people = pd.read_csv(self.root / "participants.tsv", sep="\t", dtype={"participant_id": str})
        age = people.set_index("participant_id")["age"].astype(float)
        return replace(raw, data=raw.data * age[file.subject])

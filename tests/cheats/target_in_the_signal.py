"""A dataset whose reader adds the age to the signal."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from neurobench_datasets.parcels import Parcels


class TargetInTheSignal(Parcels):
    """Raises the first unit by how old somebody is."""

    name = "target_in_the_signal"
    summary = "cheats: the participants table gets into the signal"

    def list_recordings(self, root):
        listing = super().list_recordings(root)
        age = pd.to_numeric(listing.participants["age"])
        told = tuple(replace(f, options={**f.options, "gain": 1 + age[f.subject] / 100}) for f in listing.recordings)
        return replace(listing, recordings=told)

    def read(self, file):
        plain = {k: v for k, v in file.options.items() if k != "gain"}
        raw = super().read(replace(file, options=plain))
        data = raw.data.copy()
        data[0] *= file.options["gain"]
        return replace(raw, data=data)

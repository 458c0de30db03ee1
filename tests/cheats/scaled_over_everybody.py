"""A dataset whose recordings are scaled by those of everybody, test subjects among them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from neurobench_datasets.parcels import Parcels


class ScaledOverEverybody(Parcels):
    """Brings the mean amplitude of the cohort to 1 while it lists its files."""

    name = "scaled_over_everybody"
    summary = "cheats: recordings are scaled by the cohort's"

    def list_recordings(self, root):
        listing = super().list_recordings(root)
        self.scale = np.mean([super(ScaledOverEverybody, self).read(f).data.std() for f in listing.recordings])
        return listing

    def read(self, file):
        raw = super().read(file)
        return replace(raw, data=raw.data / self.scale)

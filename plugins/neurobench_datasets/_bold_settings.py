"""Parameters that every dataset with 4-D BOLD has, checked once, and the reading that follows from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from neurobench import ConfigError, DataError, RawRecording, RecordingFile, SignalSpec
from neurobench_datasets._atlases import FETCHED, find_atlas
from neurobench_datasets._bold_images import check_grid, read_bold
from neurobench_datasets._confounds import check_confounds

BOLD_SPEC = SignalSpec(window_s=150.0, patch_s=15.0, band_hz=(0.01, 0.1))
"""150 s windows of 15 s patches, .01–.1 Hz."""

SPACING_MM, PATCH_VOXELS = 4.0, 6
"""Patches of 24 mm for a CPU. On a GPU: spacing_mm=2,patch_voxels=6 (12 mm, 96³ voxels, about 1,500 patches)."""

FOLDER_ATLAS = "atlas.nii.gz"
"""A label image of this name in a data folder is its atlas, where no other is given."""


@dataclass(frozen=True)
class BoldSettings:
    """How 4-D BOLD is read.

    Parameters
    ----------
    component
        Name of the dataset, for messages.
    signal
        ``parcels`` or ``volume``.
    atlas
        Path or name of a label image; empty: the one in the data folder.
    confounds
        Parts of what is removed.
    n_units
        ``parcels``: only this many regions, evenly spaced; 0: all.
    spacing_mm, patch_voxels
        ``volume``: edge of a voxel, and voxels along the edge of a patch.
    """

    component: str
    signal: Literal["parcels", "volume"]
    atlas: str
    confounds: tuple[str, ...]
    n_units: int
    spacing_mm: float
    patch_voxels: int

    @classmethod
    def of(
        cls,
        component: str,
        *,
        signal: str,
        atlas: str,
        confounds: str,
        n_units: int,
        spacing_mm: float,
        patch_voxels: int,
    ) -> BoldSettings:
        """Check the parameters.

        Raises
        ------
        ConfigError
            If one of them is impossible, or has no meaning with this signal.
        """
        if n_units < 0:
            raise ConfigError(f"n_units of {component} cannot be negative.")
        if signal == "volume":
            check_grid(spacing_mm, patch_voxels, component)
            if n_units:
                raise ConfigError(
                    f"n_units of {component} is for signal=parcels.",
                    next_step="Larger patches make fewer units: patch_voxels.",
                )
        elif (spacing_mm, patch_voxels) != (SPACING_MM, PATCH_VOXELS):
            raise ConfigError(
                f"spacing_mm and patch_voxels of {component} are for signal=volume.", next_step="Leave them out."
            )
        kind: Literal["parcels", "volume"] = "volume" if signal == "volume" else "parcels"
        checked = check_confounds(confounds, component)
        return cls(component, kind, atlas, checked, n_units, spacing_mm, patch_voxels)

    def atlas_beside(self, root: Path) -> dict[str, Path]:
        """Return the atlas, and the table of its names, as files beside a recording.

        Raises
        ------
        DataError
            If none is given and the folder has none, or the one given cannot be found.
        """
        text = self.atlas or (str(root / FOLDER_ATLAS) if (root / FOLDER_ATLAS).is_file() else "")
        if not text:
            raise DataError(
                f"{self.component} needs an atlas to make regions of images.",
                allowed=f"the path of a label image in MNI space, {FOLDER_ATLAS} in the data folder, or one of "
                f"{', '.join(FETCHED)} (which nilearn fetches)",
                next_step=f"Say {self.component}[atlas=/path/to/labels.nii.gz].",
            )
        found = find_atlas(text, self.component)
        return {"atlas": found.path} | ({"atlas_names": found.names} if found.names else {})

    def read(self, file: RecordingFile) -> RawRecording:
        """Read one image."""
        return read_bold(
            file,
            signal=self.signal,
            confounds=self.confounds,
            n_units=self.n_units,
            spacing_mm=self.spacing_mm,
            patch_voxels=self.patch_voxels,
            component=self.component,
        )

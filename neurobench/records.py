"""The frozen dataclasses that travel between the steps, in the order of the data flow.

Shapes are written as (units, times); *unit*, *patch*, *token* and the other words are those of ``docs/vocabulary.md``.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd
    import torch

__all__ = [
    "BackboneSpec",
    "Batch",
    "Cohort",
    "Correspondence",
    "DatasetCard",
    "Event",
    "Finding",
    "Fold",
    "Listing",
    "RawRecording",
    "Recording",
    "RecordingFile",
    "RetrievalWindow",
    "SignalKind",
    "SignalSpec",
    "TokenTable",
    "UnitTable",
    "WindowTable",
]

SignalKind = Literal["parcels", "sensors", "volume"]
"""The three kinds of signal: ROI time series, MEG sensors, patches of a 4-D volume."""


# ---------------------------------------------------------------- what a dataset says of itself


@dataclass(frozen=True)
class DatasetCard:
    """What a reader must know of a dataset before believing a number from it.

    Parameters
    ----------
    title, modality
        Full name; ``fmri`` or ``meg``.
    licence, access, apply_at
        Terms, who may have the data, and where to ask for it.
    citation, doi
        What to cite.
    revision
        Release of the data and version of this reader's rules; part of the identity of every record.
    may_leave
        What may leave the machine: ``aggregates`` (scores only), ``predictions`` (pseudonymised rows) or ``all``.
    traps
        Known ways in which a number from these data misleads.
    inclusion
        The rule by which participants and recordings are taken or left out.
    size
        How many people the release has.
    """

    title: str
    modality: Literal["fmri", "meg"]
    licence: str
    access: str
    apply_at: str
    citation: str
    doi: str
    revision: str
    may_leave: Literal["aggregates", "predictions", "all"]
    traps: tuple[str, ...] = ()
    inclusion: str = ""
    size: str = ""

    def cite(self) -> str:
        """Return what to cite, with its DOI."""
        return self.citation if not self.doi or self.doi in self.citation else f"{self.citation} doi:{self.doi}"


# ---------------------------------------------------------------- units


@dataclass(frozen=True, eq=False)
class UnitTable:
    """Everything known of the units (rows) of a signal; no array of the signal itself.

    Parameters
    ----------
    names
        One name a unit, unique.
    groups
        Anatomical group (lobe, network, helmet region) of every unit; ``""`` where there is none.
    position_mm
        (units, 3), MNI for fMRI and head frame for MEG; NaN where unknown.
    types
        ``parcel`` or ``patch``; of sensors ``mag`` (magnetometer), ``axial`` or ``grad`` (axial or planar gradiometer).
    sites
        (units,) number of the physical place: the three sensors of one MEGIN site share it, a parcel has its own.
    region_names, region_share
        Regions that region-wise masking strategies hide, and (units, regions) the share of each unit that lies in
        each. For parcels and sensors these are the groups, with shares 0 and 1; for patches of a volume the rows
        may sum to less than 1 (unlabelled voxels).
    group_source
        Where the groups come from: ``anatomical``, ``helmet``, ``position`` (clustered from positions, which is
        said wherever the groups are used) or ``none``.
    orientation
        (units, 3) unit vectors in the frame of ``position_mm``, NaN where there is none, as for parcels and patches; an
        empty array: nowhere. Of a planar gradiometer the direction along which its signal is the gradient, of any other
        coil its normal. One vector is enough to tell sensors apart: the two gradiometers of a MEGIN site share
        position and normal with each other and with the magnetometer there, and differ in nothing but that direction.
    """

    names: tuple[str, ...]
    groups: tuple[str, ...]
    position_mm: NDArray[np.float32]
    types: tuple[str, ...]
    sites: NDArray[np.int64]
    region_names: tuple[str, ...]
    region_share: NDArray[np.float32]
    group_source: Literal["anatomical", "helmet", "position", "none"] = "anatomical"
    orientation: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 3), np.float32))

    def __post_init__(self) -> None:
        n = len(self.names)
        if len(self.orientation) == 0:
            object.__setattr__(self, "orientation", np.full((n, 3), np.nan, np.float32))
        lengths = {
            len(self.groups),
            len(self.position_mm),
            len(self.types),
            len(self.sites),
            len(self.region_share),
            len(self.orientation),
            n,
        }
        if lengths != {n}:
            raise ValueError(f"the columns of a unit table differ in length: {sorted(lengths)}")
        if len(set(self.names)) != n:
            twice = sorted({x for x in self.names if self.names.count(x) > 1})
            raise ValueError(f"unit names are not unique: {', '.join(twice[:5])}")
        if self.region_share.shape != (n, len(self.region_names)):
            raise ValueError(f"region_share has shape {self.region_share.shape}, not {(n, len(self.region_names))}")
        length = np.linalg.norm(self.orientation, axis=1)
        if (wrong := np.flatnonzero(np.abs(length - 1) > 1e-3)).size:
            unit = self.names[wrong[0]]
            raise ValueError(f"orientations are no unit vectors: that of {unit} has length {length[wrong[0]]:.3g}")

    @classmethod
    def from_groups(
        cls,
        names: tuple[str, ...],
        groups: tuple[str, ...],
        position_mm: NDArray[np.float32] | None = None,
        types: tuple[str, ...] | None = None,
        sites: NDArray[np.int64] | None = None,
        group_source: Literal["anatomical", "helmet", "position", "none"] = "anatomical",
        orientation: NDArray[np.float32] | None = None,
    ) -> UnitTable:
        """Build a table whose regions are its groups (parcels and sensors)."""
        n = len(names)
        regions = tuple(sorted({g for g in groups if g}))
        share = np.zeros((n, len(regions)), np.float32)
        for i, g in enumerate(groups):
            if g:
                share[i, regions.index(g)] = 1.0
        if position_mm is None:
            position_mm = np.full((n, 3), np.nan, np.float32)
        return cls(
            names=names,
            groups=groups,
            position_mm=np.asarray(position_mm, np.float32),
            types=types or ("parcel",) * n,
            sites=np.arange(n) if sites is None else np.asarray(sites, np.int64),
            region_names=regions,
            region_share=share,
            group_source=group_source if regions else "none",
            orientation=np.asarray([] if orientation is None else orientation, np.float32).reshape(-1, 3),
        )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def has_positions(self) -> bool:
        """Whether every unit has a position."""
        return bool(np.isfinite(self.position_mm).all())

    @property
    def has_orientations(self) -> bool:
        """Whether any unit has an orientation."""
        return bool(np.isfinite(self.orientation).any())

    @property
    def type_names(self) -> tuple[str, ...]:
        """Distinct types, sorted."""
        return tuple(sorted(set(self.types)))

    @property
    def group_names(self) -> tuple[str, ...]:
        """Distinct groups, sorted; ``""`` first where some unit has none."""
        return tuple(sorted(set(self.groups)))

    @property
    def group_index(self) -> NDArray[np.int64]:
        """(units,) index into :attr:`group_names`."""
        order = {g: i for i, g in enumerate(self.group_names)}
        return np.array([order[g] for g in self.groups], np.int64)

    def take(self, index: NDArray[np.int64]) -> UnitTable:
        """Return the table of some units, in the order given; regions without a unit go."""
        index = np.asarray(index, np.int64)
        share = self.region_share[index]
        kept = share.sum(0) > 0
        return UnitTable(
            names=tuple(self.names[i] for i in index),
            groups=tuple(self.groups[i] for i in index),
            position_mm=self.position_mm[index],
            types=tuple(self.types[i] for i in index),
            sites=self.sites[index],
            region_names=tuple(r for r, k in zip(self.region_names, kept, strict=True) if k),
            region_share=share[:, kept],
            group_source=self.group_source,
            orientation=self.orientation[index],
        )

    def describe(self) -> dict[str, Any]:
        """Return plain values that determine the table, for identities; orientations only where there is one."""
        described: dict[str, Any] = {
            "names": list(self.names),
            "groups": list(self.groups),
            "types": list(self.types),
            "sites": self.sites.tolist(),
            "position_mm": _plain(self.position_mm, 3),
            "regions": list(self.region_names),
            "region_share": [
                [[int(j), round(float(row[j]), 4)] for j in np.flatnonzero(row)] for row in self.region_share
            ],
            "group_source": self.group_source,
        }
        return described | ({"orientation": _plain(self.orientation, 4)} if self.has_orientations else {})


def _plain(vectors: NDArray[np.float32], digits: int) -> list[list[float | None]]:
    return [[None if not np.isfinite(x) else round(float(x), digits) for x in v] for v in vectors]


# ---------------------------------------------------------------- reading (step 4)


@dataclass(frozen=True)
class Finding:
    """One thing that `data check` or `prepare` noticed.

    Parameters
    ----------
    level
        ``info``, ``warning`` (used all the same) or ``error`` (not used).
    code
        Short stable name such as ``missing-target``.
    message, fix
        What was found, and what to do about it.
    subject, path
        Whom and which file it concerns; empty for the whole dataset.
    """

    level: Literal["info", "warning", "error"]
    code: str
    message: str
    fix: str = ""
    subject: str = ""
    path: str = ""


@dataclass(frozen=True)
class RecordingFile:
    """A recording found on disk, not yet read.

    Parameters
    ----------
    subject, session, state, run
        Whose it is, when, in which state (``rest``, ``auditory``, ``somatosensory``), which repetition.
    path
        File or folder to read.
    sfreq
        Sampling frequency in Hz (fMRI: 1 / repetition time), as the sidecars and tables say.
    options
        What the dataset's own ``read`` needs besides; plain values only, and no paths.
    beside
        Other files that are read with it, by what they are, such as ``mask`` and ``confounds``. A change of one is a
        change of the recording; where they lie is not.
    """

    subject: str
    path: Path
    sfreq: float
    session: str = ""
    state: str = "rest"
    run: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    beside: Mapping[str, Path] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Name of the recording, unique in its dataset: subject, session, state and run."""
        parts = [
            self.subject,
            self.session and f"ses-{self.session}",
            self.state,
            self.run and f"run-{self.run}",
        ]
        return "_".join(p for p in parts if p)


@dataclass(frozen=True, eq=False)
class Listing:
    """What a dataset found under a folder: the participants, the recordings and everything wrong with either.

    Parameters
    ----------
    participants
        Indexed by ``participant_id`` (str, unique). Standard columns where known: ``age`` (years), ``sex``
        (``F``/``M``), ``site``, ``diagnosis`` (two classes, text), ``fluid_intelligence``, ``mean_fd`` (mm). Other
        columns keep their names and can be targets too. Missing values are NaN or None, never a code.
    recordings
        Files to read, in a fixed order.
    findings
        Everything noticed, exclusions with their reasons among it.
    card
        Of these very recordings, where the folder describes itself; None: the dataset's.
    """

    participants: pd.DataFrame
    recordings: tuple[RecordingFile, ...]
    findings: tuple[Finding, ...] = ()
    card: DatasetCard | None = None


@dataclass(frozen=True)
class Event:
    """Something that happened during a recording.

    Parameters
    ----------
    onset_s
        Seconds from the first sample of the recording.
    condition
        What it was, such as ``tone``; the same word in every recording.
    """

    onset_s: float
    condition: str


@dataclass(frozen=True, eq=False)
class RawRecording:
    """One recording as read: everything downstream of it is the core's.

    Parameters
    ----------
    data
        (units, times), or (units, times, voxels) for a volume; any integer or float type, as it is converted some
        units at a time; NaN where a unit has no data. Native unit of the modality (MEG: tesla, tesla / m).
    sfreq
        Sampling frequency in Hz.
    units
        Table of the rows of ``data``.
    provenance
        What was done while reading, one plain sentence each.
    regressors
        (times, regressors) signals of no interest, such as head motion: band-passed like the data and then removed
        from every row by least squares, together with a linear trend; None: nothing is removed.
    events
        Stimuli, in any order.
    bad_spans
        (start, end) in seconds from the first sample: artefacts. Patches that touch one are not valid.
    findings
        What was noticed while reading, where the recording is used all the same; subject and path are filled in.
    """

    data: NDArray[Any]
    sfreq: float
    units: UnitTable
    provenance: tuple[str, ...] = ()
    regressors: NDArray[Any] | None = None
    events: tuple[Event, ...] = ()
    bad_spans: tuple[tuple[float, float], ...] = ()
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, eq=False)
class SignalSpec:
    """How a cohort's signal is filtered, cut and scaled; all of it in physical units.

    Parameters
    ----------
    window_s, patch_s
        Length of a window and of a patch in seconds.
    sfreq
        Sampling frequency in Hz after preparation, or None: the slowest recording's.
    band_hz
        Band-pass, or None for the signal as it is.
    scaling
        ``recording``: z-score of each unit over its recording. ``training``: each unit centred over its recording,
        one robust scale a unit type fitted on training subjects, clipped at ±20.
    """

    window_s: float
    patch_s: float
    sfreq: float | None = None
    band_hz: tuple[float, float] | None = None
    scaling: Literal["recording", "training"] = "recording"


@dataclass(frozen=True, eq=False)
class Recording:
    """A prepared recording: a .npy file (float32; volumes float16), opened lazily.

    Parameters
    ----------
    path
        The file, shape (units, times) or (units, times, voxels).
    n_times
        Number of samples.
    present
        (units,) False where this recording has no usable signal of that unit.
    centre, scale, robust_scale
        (units,) mean, s.d. and interquartile range / 1.349 over the recording (volumes: over voxels as well).
    rows
        (units,) row of each unit in the file, −1 where it is missing; None where the file has the cohort's order.
    events, bad_spans
        As in :class:`RawRecording`.
    start
        First sample in the file, where the recording is a piece of what the file holds.
    content
        sha256 of the file: the same signal under two names is one recording.
    session, run
        As in :class:`RecordingFile`; empty where there is one.
    """

    id: str
    subject: str
    state: str
    path: Path
    n_times: int
    present: NDArray[np.bool_]
    centre: NDArray[np.float32]
    scale: NDArray[np.float32]
    robust_scale: NDArray[np.float32]
    rows: NDArray[np.int64] | None = None
    events: tuple[Event, ...] = ()
    bad_spans: tuple[tuple[float, float], ...] = ()
    start: int = 0
    content: str = ""
    session: str = ""
    run: str = ""

    def open(self) -> NDArray[np.floating[Any]]:
        """Return the signal in the cohort's order of units: a read-only memory map where the file has that order.

        Rows of units that are not in the file are NaN.
        """
        stored = self._stored()
        return stored if self.rows is None else self._taken(stored, np.arange(len(self.rows)))

    def piece(self, start: int, stop: int, units: NDArray[np.int64]) -> NDArray[np.floating[Any]]:
        """Return (units, times[, voxels]) of some units and samples; nothing else is read."""
        stored = self._stored()[:, start:stop]
        return stored[units] if self.rows is None else self._taken(stored, units)

    def expect(self, start: int, stop: int, units: NDArray[np.int64]) -> None:
        """Have the system read some units and samples meanwhile: all of them at once, and nothing between them."""
        if not hasattr(os, "posix_fadvise"):
            return
        whole = self._whole()
        a_unit, a_sample = whole.strides[:2]
        rows = units if self.rows is None else self.rows[units]
        first = whole.offset + (self.start + start) * a_sample
        with self.path.open("rb") as stream:
            for row in rows[rows >= 0].tolist():
                where, size = first + row * a_unit, (stop - start) * a_sample
                os.posix_fadvise(stream.fileno(), where, size, os.POSIX_FADV_WILLNEED)

    def _whole(self) -> np.memmap[Any, np.dtype[np.floating[Any]]]:
        whole: np.memmap[Any, np.dtype[np.floating[Any]]] = np.load(self.path, mmap_mode="r", allow_pickle=False)
        return whole

    def _stored(self) -> NDArray[np.floating[Any]]:
        return self._whole()[:, self.start : self.start + self.n_times]

    def _taken(self, stored: NDArray[np.floating[Any]], units: NDArray[np.int64]) -> NDArray[np.floating[Any]]:
        assert self.rows is not None
        rows = self.rows[units]
        taken: NDArray[np.floating[Any]] = stored[np.maximum(rows, 0)]
        taken[rows < 0] = np.nan
        return taken


@dataclass(frozen=True, eq=False)
class Correspondence:
    """Which unit of another cohort stands for each unit of this one, in a network that was built for the other.

    Parameters
    ----------
    units
        The other cohort's unit table.
    unit, group
        (units,) row in it, and the index of that row's group in its ``group_names``.
    distance_mm
        (units,) distance between the two; 0 where the same name was found.
    by
        ``name`` where both tables have the same names, else ``position``.
    """

    units: UnitTable
    unit: NDArray[np.int64]
    group: NDArray[np.int64]
    distance_mm: NDArray[np.float64]
    by: Literal["name", "position"]


@dataclass(frozen=True, eq=False)
class Cohort:
    """A dataset after loading: participants, prepared recordings, units.

    Parameters
    ----------
    dataset
        The component as asked for, with its resolved parameters, such as ``camcan[signal=meg]``.
    signal, modality
        Kind of signal; ``fmri`` or ``meg``.
    source
        ``real`` or ``simulated``; never mixed, never hidden.
    participants
        As in :class:`Listing`, only subjects with at least one recording, sorted by id.
    spec
        With ``sfreq`` resolved.
    fingerprint
        Hash of everything in the cohort that a result can depend on.
    n_voxels
        Features of a unit at one sample: 1, or the voxels of a patch.
    findings, provenance
        What was left out and why; what was done to the signal.
    seen_as
        For networks that were built for another cohort's units; None: for its own.
    """

    dataset: str
    card: DatasetCard
    signal: SignalKind
    modality: Literal["fmri", "meg"]
    source: Literal["real", "simulated"]
    participants: pd.DataFrame
    recordings: tuple[Recording, ...]
    units: UnitTable
    spec: SignalSpec
    fingerprint: str
    n_voxels: int = 1
    findings: tuple[Finding, ...] = ()
    provenance: tuple[str, ...] = ()
    seen_as: Correspondence | None = None

    @property
    def sfreq(self) -> float:
        """Sampling frequency of every prepared recording in Hz."""
        assert self.spec.sfreq is not None
        return self.spec.sfreq

    @functools.cached_property
    def subjects(self) -> tuple[str, ...]:
        """Participant ids, sorted."""
        return tuple(self.participants.index)

    @property
    def samples_per_patch(self) -> int:
        """Samples of one patch, at least 1."""
        return max(1, round(self.spec.patch_s * self.sfreq))

    @property
    def patches_per_window(self) -> int:
        """Patches of one window, at least 1."""
        return max(1, round(self.spec.window_s / self.spec.patch_s))

    @property
    def samples_per_window(self) -> int:
        """Samples of one window: a whole number of patches."""
        return self.samples_per_patch * self.patches_per_window

    @property
    def n_features(self) -> int:
        """Features of one token: samples of a patch times voxels."""
        return self.samples_per_patch * self.n_voxels

    @property
    def known_units(self) -> UnitTable:
        """The unit table of the networks that are used on it: its own, or the one that it is seen as."""
        return self.units if self.seen_as is None else self.seen_as.units

    def recordings_of(self, subject: str) -> tuple[Recording, ...]:
        """Return the recordings of one subject, in order."""
        return tuple(r for r in self.recordings if r.subject == subject)

    def part(self, subjects: Collection[str], columns: Sequence[str] | None = None) -> Cohort:
        """Return the cohort of some subjects, in its own order.

        Parameters
        ----------
        subjects
            Who is in it.
        columns
            Of the participants table, those that are kept where they are there; None: all.
        """
        chosen = set(subjects)
        people = self.participants.loc[[s for s in self.subjects if s in chosen]]
        return replace(
            self,
            participants=people if columns is None else people[[c for c in columns if c in people]],
            recordings=tuple(r for r in self.recordings if r.subject in chosen),
        )

    def whole_windows(self, recording: Recording, first: int = 0, last: int | None = None) -> tuple[int, ...]:
        """Return the first samples of windows that do not overlap and touch no bad span, one after the other.

        Parameters
        ----------
        recording
            Of this cohort.
        first, last
            Samples between which they lie; None: to the end.
        """
        length, bad = self.samples_per_window, recording.bad_spans
        last = recording.n_times if last is None else min(last, recording.n_times)
        return tuple(
            start
            for start in range(max(0, first), last - length + 1, length)
            if not any(a < (start + length) / self.sfreq and b > start / self.sfreq for a, b in bad)
        )


@dataclass(frozen=True)
class RetrievalWindow:
    """A window that is looked for in a gallery, or is part of it.

    Parameters
    ----------
    recording
        Number of the recording in :attr:`Cohort.recordings`.
    start
        First sample, from the recording's first; it is as long as a window of the cohort.
    label
        What it belongs to: a person, a stimulus.
    role
        ``gallery``, ``query``, or ``both``: the first in training, the second in held-out subjects.
    """

    recording: int
    start: int
    label: str
    role: Literal["gallery", "query", "both"]


# ---------------------------------------------------------------- splitting (step 5)


@dataclass(frozen=True)
class Fold:
    """One partition of the subjects of a cohort.

    Parameters
    ----------
    index
        Number of the fold.
    train, test
        Subject ids; disjoint, except under ``within-recording``, where the spans are disjoint instead.
    train_span, test_span
        Part of every recording that may be used, as fractions of its length.
    """

    index: int
    train: tuple[str, ...]
    test: tuple[str, ...]
    train_span: tuple[float, float] = (0.0, 1.0)
    test_span: tuple[float, float] = (0.0, 1.0)

    def __hash__(self) -> int:
        # Its number tells it from the others of its split; a thousand names would be gone through at every look.
        return hash((self.index, len(self.train), len(self.test)))


# ---------------------------------------------------------------- tokens (step 6)


@dataclass(frozen=True, eq=False)
class WindowTable:
    """The token table of one window: all that a masking strategy sees.

    Parameters
    ----------
    units
        Table of the cohort.
    unit
        (units,) rows of ``units`` that are in this window.
    valid
        (units, patches) True where the token holds recorded signal.
    """

    units: UnitTable
    unit: NDArray[np.int64]
    valid: NDArray[np.bool_]

    @property
    def n_valid(self) -> int:
        """Number of valid tokens."""
        return int(self.valid.sum())

    @property
    def groups(self) -> NDArray[np.int64]:
        """(units,) index of the group in ``units.group_names``."""
        return self.units.group_index[self.unit]

    @property
    def sites(self) -> NDArray[np.int64]:
        """(units,) number of the physical site."""
        return self.units.sites[self.unit]

    @property
    def position_mm(self) -> NDArray[np.float32]:
        """(units, 3) positions; NaN where unknown."""
        return self.units.position_mm[self.unit]

    @property
    def region_share(self) -> NDArray[np.float32]:
        """(units, regions) share of every unit in every region of ``units.region_names``."""
        return self.units.region_share[self.unit]


@dataclass(frozen=True, eq=False)
class TokenTable:
    """The token table of a batch, as a backbone sees it.

    Parameters
    ----------
    unit
        (batch, units) int64, row of each unit in the unit table that the backbone was built for.
    valid
        (batch, units, patches) bool.
    position
        (batch, units, 3) float32, position in decimetres (mm / 100); zeros where unknown.
    group
        (batch, units) int64, index of the group there.
    orientation
        (batch, units, 3) float32, unit vector in the frame of the positions; zeros where unknown.
    type
        (batch, units) int64, index of the type in that table's ``type_names``; −1 for a type that is not there.
    units
        The unit table that the backbone was built for: the cohort's own, unless it was pretrained on other cohorts.
    whole
        ``valid`` itself, if it is known that it is True throughout: a table with another ``valid`` knows nothing.
    """

    unit: torch.Tensor
    valid: torch.Tensor
    position: torch.Tensor
    group: torch.Tensor
    orientation: torch.Tensor
    type: torch.Tensor
    units: UnitTable
    whole: torch.Tensor | None = None

    @property
    def where_valid(self) -> torch.Tensor | None:
        """(batch, units, patches) bool, or None: all are. A GPU is not waited for: there it is None if that is known.

        Mixing without a mask is faster: some kernels of attention take none.
        """
        is_whole = bool(self.valid.all()) if self.valid.device.type == "cpu" else self.whole is self.valid
        return None if is_whole else self.valid

    def to(self, device: torch.device | str) -> TokenTable:
        """Return the table with its tensors on ``device``."""
        return self.map(lambda tensor: tensor.to(device))

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> TokenTable:
        """Return the table with every tensor changed, as by a move, a repetition of the batch or a choice of units."""
        valid = change(self.valid)
        return TokenTable(
            unit=change(self.unit),
            valid=valid,
            position=change(self.position),
            group=change(self.group),
            orientation=change(self.orientation),
            type=change(self.type),
            units=self.units,
            # Looked at on the CPU that a table comes from, known where it is sent to.
            whole=valid if self.where_valid is None else None,
        )


@dataclass(frozen=True, eq=False)
class Batch:
    """Windows, cut into tokens and scaled.

    Parameters
    ----------
    signal
        (batch, units, patches, features) float32; zeros where not valid.
    table
        The token table, as backbones see it.
    rows, units
        (batch, units) int64, row of each unit in the cohort's own unit table, and that table: what masks see.
    subjects, windows
        Whose window each row is, and a stable name of the window (recording id and first sample).
    """

    signal: torch.Tensor
    table: TokenTable
    rows: torch.Tensor
    units: UnitTable
    subjects: tuple[str, ...]
    windows: tuple[str, ...]


@dataclass(frozen=True)
class BackboneSpec:
    """All that a backbone may know when it is built: shapes and sizes, no data.

    Parameters
    ----------
    n_units, n_groups
        Size of the cohort's unit table and number of its groups.
    n_patches, n_features
        Patches of a window and features of a token.
    width
        Width of a token inside the backbone and at its output.
    n_layers
        Number of layers; a layer is one pass along units and one along time.
    n_types, oriented
        Number of types of units there, and whether any of them has an orientation.
    """

    n_units: int
    n_groups: int
    n_patches: int
    n_features: int
    width: int
    n_layers: int
    n_types: int = 1
    oriented: bool = False

    @classmethod
    def of(cls, units: UnitTable, *, n_patches: int, n_features: int, width: int, n_layers: int) -> BackboneSpec:
        """Return the sizes of a backbone for these units."""
        return cls(
            n_units=len(units),
            n_groups=len(units.group_names),
            n_patches=n_patches,
            n_features=n_features,
            width=width,
            n_layers=n_layers,
            n_types=len(units.type_names),
            oriented=units.has_orientations,
        )

    def describe(self) -> dict[str, Any]:
        """Return plain values for identities; of types and orientations only what tells units apart."""
        plain = {"n_types": 1, "oriented": False}
        return {k: v for k, v in asdict(self).items() if k not in plain or v != plain[k]}

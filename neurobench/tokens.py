"""Signal to tokens: windows, patches, the token table, and scaling fitted on training subjects only."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from neurobench.errors import DataError
from neurobench.identity import seed_for
from neurobench.records import Batch, Cohort, Recording, TokenTable, UnitTable, WindowTable

__all__ = [
    "Scaler",
    "Tokenizer",
    "TrainingWindows",
    "Window",
    "WindowSource",
    "evaluation_windows",
    "types_known",
    "unit_chunks",
    "usable_span",
]

CLIP = 20.0
"""Scaled values beyond ±20 robust standard deviations are artefacts (MEG)."""

CACHE_BYTES = 2 << 30
"""Cohorts up to this size are scaled once and kept in memory; larger ones are mapped and scaled window by window."""


# ---------------------------------------------------------------- scaling


@dataclass(frozen=True, eq=False)
class Scaler:
    """Centre and scale of every unit of every recording.

    Parameters
    ----------
    mode
        ``recording`` or ``training``, see :class:`~neurobench.records.SignalSpec`.
    type_scale
        Scale a unit type, fitted on training subjects (mode ``training`` only).
    span
        Part of each recording that centre and scale were taken from.
    """

    mode: str
    type_scale: Mapping[str, float]
    span: tuple[float, float] = (0.0, 1.0)

    @classmethod
    def fit(cls, cohort: Cohort, subjects: Sequence[str], span: tuple[float, float] = (0.0, 1.0)) -> Scaler:
        """Fit on the recordings of ``subjects``, and of those on ``span`` only."""
        if cohort.spec.scaling == "recording":
            return cls("recording", {}, span)
        chosen = set(subjects)
        collected: dict[str, list[float]] = {t: [] for t in sorted(set(cohort.units.types))}
        types = np.array(cohort.units.types)
        for recording in cohort.recordings:
            if recording.subject in chosen:
                _, _, robust = _statistics(recording, span)
                for kind, values in collected.items():
                    values.extend(robust[(types == kind) & recording.present].tolist())
        empty = [kind for kind, values in collected.items() if not values]
        if empty:
            raise DataError(
                f"no training recording has a usable unit of type {', '.join(empty)}.",
                next_step="Leave that sensor type out, or see `neurobench data check` for why its units were dropped.",
            )
        return cls("training", {kind: float(np.median(v)) for kind, v in collected.items()}, span)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a JSON file."""
        return {"mode": self.mode, "type_scale": dict(self.type_scale), "span": list(self.span)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Scaler:
        """Rebuild from :meth:`to_dict`."""
        low, high = values["span"]
        return cls(str(values["mode"]), dict(values["type_scale"]), (float(low), float(high)))

    def parameters(self, recording: Recording, units: UnitTable) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return centre and factor of every unit of a recording: scaled = (signal − centre) · factor."""
        centre, scale, _ = _statistics(recording, self.span)
        if self.mode == "training":
            scale = np.array([self.type_scale[t] for t in units.types], np.float32)
        usable = recording.present & (scale > 0)
        return centre, np.divide(1.0, scale, out=np.zeros_like(scale), where=usable)


def _statistics(recording: Recording, span: tuple[float, float]) -> tuple[NDArray[np.float32], ...]:
    """Return centre, s.d. and robust scale a unit; of the whole recording as stored, of a part of it as computed."""
    if span == (0.0, 1.0):
        return recording.centre, recording.scale, recording.robust_scale
    low, high = usable_span(recording.n_times, span)
    return statistics(np.asarray(recording.open()[:, low:high]))


def statistics(data: NDArray[np.floating[Any]]) -> tuple[NDArray[np.float32], ...]:
    """Return mean, s.d. and interquartile range / 1.349 of every unit of a (units, times[, voxels]) array.

    For volumes, which are scaled by the s.d., the third is the s.d. too: quartiles of millions of voxels take longer
    than all the rest.
    """
    if data.ndim == 3:
        mean, sd = data.mean((1, 2), dtype=np.float64), data.std((1, 2), dtype=np.float64)
        return mean.astype(np.float32), sd.astype(np.float32), sd.astype(np.float32)
    flat = np.asarray(data, np.float64)
    low, high = np.percentile(flat, [25, 75], axis=1)
    # 1.349: interquartile range of a standard normal distribution.
    results = flat.mean(1), flat.std(1), (high - low) / 1.349
    return tuple(r.astype(np.float32) for r in results)


# ---------------------------------------------------------------- windows


@dataclass(frozen=True)
class Window:
    """A fixed-length piece of one recording.

    Parameters
    ----------
    recording
        Index in ``cohort.recordings``.
    start, stop
        First sample, and the end of the usable signal: samples from ``stop`` on are padding.
    subject, name
        Whose it is; a stable name (recording id and first sample).
    """

    recording: int
    start: int
    stop: int
    subject: str
    name: str


def usable_span(n_times: int, span: tuple[float, float]) -> tuple[int, int]:
    """Return first and end sample of a part of a recording."""
    return math.ceil(span[0] * n_times), math.floor(span[1] * n_times)


def _window(cohort: Cohort, index: int, start: int, high: int) -> Window:
    recording = cohort.recordings[index]
    stop = min(start + cohort.samples_per_window, high)
    return Window(index, start, stop, recording.subject, f"{recording.id}@{start}")


def evaluation_windows(
    cohort: Cohort, subjects: Sequence[str], span: tuple[float, float] = (0.0, 1.0), max_per_subject: int = 8
) -> tuple[Window, ...]:
    """Return at most ``max_per_subject`` evenly spaced windows of every subject, in the order of ``subjects``.

    A piece shorter than a window is padded from half a window up and left out below.
    """
    length = cohort.samples_per_window
    by_subject: dict[str, list[Window]] = {s: [] for s in subjects}
    for index, recording in enumerate(cohort.recordings):
        if recording.subject not in by_subject:
            continue
        low, high = usable_span(recording.n_times, span)
        if 2 * (high - low) < length:
            continue
        n = max(1, math.ceil((high - low) / length))
        starts = np.linspace(low, max(low, high - length), n).round().astype(int)
        by_subject[recording.subject].extend(_window(cohort, index, int(s), high) for s in starts)
    chosen: list[Window] = []
    for windows in by_subject.values():
        if len(windows) > max_per_subject:
            keep = np.linspace(0, len(windows) - 1, max_per_subject).round().astype(int)
            windows = [windows[i] for i in keep]
        chosen.extend(windows)
    return tuple(chosen)


def unit_chunks(units: UnitTable, n_units: int) -> tuple[NDArray[np.int64], ...]:
    """Return fixed chunks of at most ``n_units`` units that cover every unit once, each spread over the groups.

    Units are in spatial order, group after group, so every k-th unit is a spread-out choice.
    """
    n_chunks = math.ceil(len(units) / max(1, n_units))
    return tuple(np.arange(len(units))[i::n_chunks] for i in range(n_chunks))


# ---------------------------------------------------------------- tokenizer


def types_known(units: UnitTable, known: UnitTable) -> NDArray[np.int64]:
    """Return (units,) the index of the type of each unit in ``known.type_names``, −1 where it is not there."""
    place = {name: i for i, name in enumerate(known.type_names)}
    return np.array([place.get(t, -1) for t in units.types], np.int64)


class Tokenizer:
    """Cuts windows of a cohort into scaled tokens.

    Parameters
    ----------
    cohort
        Prepared recordings.
    scaler
        Fitted on the training subjects of the fold.
    """

    def __init__(self, cohort: Cohort, scaler: Scaler) -> None:
        self.cohort = cohort
        self.scaler = scaler
        seen = cohort.seen_as
        self._known = cohort.units if seen is None else seen.units
        self._unit = torch.arange(len(cohort.units)) if seen is None else torch.from_numpy(seen.unit)
        self._groups = torch.from_numpy(cohort.units.group_index if seen is None else seen.group)
        self._positions = torch.from_numpy(np.nan_to_num(cohort.units.position_mm / 100.0).astype(np.float32))
        self._orientations = torch.from_numpy(np.nan_to_num(cohort.units.orientation).astype(np.float32))
        self._types = torch.from_numpy(types_known(cohort.units, self._known))
        n_values = sum(r.n_times for r in cohort.recordings) * len(cohort.units) * cohort.n_voxels
        self._keep = n_values * 4 <= CACHE_BYTES
        self._scaled: dict[int, NDArray[np.float32]] = {}
        self._parameters: dict[int, tuple[NDArray[np.float32], NDArray[np.float32]]] = {}

    def _fill(self, out: NDArray[np.float32], index: int, start: int, stop: int, units: NDArray[np.int64]) -> None:
        """Put the scaled signal of a piece of one recording into (units, times, voxels)."""
        recording = self.cohort.recordings[index]
        if self._keep:
            if index not in self._scaled:
                whole = np.array(recording.open(), np.float32)
                self._scale(whole, index, None)
                self._scaled[index] = whole
            out[...] = self._scaled[index][:, start:stop][units].reshape(out.shape)
        else:
            piece = torch.from_numpy(recording.piece(start, stop, units)).reshape(out.shape)
            # By torch, for numpy widens half precision one value at a time; unit by unit, which is too little for torch
            # to start threads for: those of the training would wait for them.
            for to, of in zip(torch.from_numpy(out), piece, strict=True):
                to.copy_(of)
            self._scale(out, index, units)

    def _scale(self, data: NDArray[np.float32], index: int, units: NDArray[np.int64] | None) -> None:
        """Scale some units of a recording in place; None: all."""
        if index not in self._parameters:
            self._parameters[index] = self.scaler.parameters(self.cohort.recordings[index], self.cohort.units)
        centre, factor = self._parameters[index]
        if units is not None:
            centre, factor = centre[units], factor[units]
        shape = (-1,) + (1,) * (data.ndim - 1)
        data -= centre.reshape(shape)
        data *= factor.reshape(shape)
        # Units without signal in this recording may be NaN.
        data[factor == 0] = 0.0
        if self.scaler.mode == "training":
            np.clip(data, -CLIP, CLIP, out=data)

    def scaled(self, index: int, start: int, stop: int) -> NDArray[np.float32]:
        """Return the scaled (units, times[, voxels]) of a piece of one recording; zeros for units that are missing."""
        cohort = self.cohort
        n_units, n_times = len(cohort.units), max(0, min(stop, cohort.recordings[index].n_times) - start)
        found = np.empty((n_units, n_times, cohort.n_voxels), np.float32)
        self._fill(found, index, start, stop, np.arange(n_units))
        return found if cohort.n_voxels > 1 else found[..., 0]

    def batch(self, windows: Sequence[Window], units: NDArray[np.int64]) -> Batch:
        """Return the tokens of some windows.

        Parameters
        ----------
        windows
            The windows, one a row of the batch.
        units
            (units,) or (batch, units): rows of the unit table, in spatial order.
        """
        cohort = self.cohort
        units = np.array(np.broadcast_to(units, (len(windows), np.shape(units)[-1])))
        n_patches, per_patch, n_voxels = cohort.patches_per_window, cohort.samples_per_patch, cohort.n_voxels
        k = units.shape[1]
        signal = np.zeros((len(windows), k, cohort.samples_per_window, n_voxels), np.float32)
        valid = np.zeros((len(windows), k, n_patches), bool)
        ends = np.arange(1, n_patches + 1) * per_patch
        if not self._keep:
            for row, window in enumerate(windows):
                cohort.recordings[window.recording].expect(window.start, window.stop, units[row])
        for row, window in enumerate(windows):
            length = window.stop - window.start
            self._fill(signal[row, :, :length], window.recording, window.start, window.stop, units[row])
            present = cohort.recordings[window.recording].present[units[row]]
            # A patch that runs into the padding is no token: half a patch would be scored against zeros.
            valid[row] = present[:, None] & (ends <= length)
            if cohort.recordings[window.recording].bad_spans:
                valid[row] &= ~self._artefact(window)
        tokens = signal.reshape(len(windows), k, n_patches, per_patch * n_voxels)
        if not valid.all():
            tokens *= valid[..., None]
        index = torch.from_numpy(units)
        table = TokenTable(
            unit=self._unit[index],
            valid=torch.from_numpy(valid),
            position=self._positions[index],
            group=self._groups[index],
            orientation=self._orientations[index],
            type=self._types[index],
            units=self._known,
        )
        names = tuple(w.subject for w in windows), tuple(w.name for w in windows)
        return Batch(torch.from_numpy(tokens), table, index, cohort.units, *names)

    def _artefact(self, window: Window) -> NDArray[np.bool_]:
        """Return (patches,) whether a patch of a window touches a bad span of its recording."""
        cohort = self.cohort
        first = (window.start + np.arange(cohort.patches_per_window) * cohort.samples_per_patch) / cohort.sfreq
        last = first + cohort.samples_per_patch / cohort.sfreq
        touched = np.zeros(len(first), bool)
        for low, high in cohort.recordings[window.recording].bad_spans:
            touched |= (first < high) & (last > low)
        return touched

    @staticmethod
    def window_tables(batch: Batch) -> list[WindowTable]:
        """Return the token table of each window of a batch, as masking strategies see it."""
        pairs = zip(batch.rows.numpy(), batch.table.valid.numpy(), strict=True)
        return [WindowTable(batch.units, rows, valid) for rows, valid in pairs]


# ---------------------------------------------------------------- training windows


class WindowSource(Protocol):
    """What a pretraining draws from: step n is the same whatever the backbone, and in any order of calls."""

    def draw(self, step: int, batch_size: int) -> Batch:
        """Return the batch of one step."""
        ...


class TrainingWindows:
    """Endless seeded stream of training windows; step n is the same whatever the backbone, and in any order of calls.

    Every subject is drawn equally often: subjects are walked in shuffled epochs, and of each a recording, a start and
    (above the token cap) a subset of units are drawn at random.

    Parameters
    ----------
    tokenizer
        Cuts and scales.
    subjects
        Training subjects.
    n_tokens
        Token cap a window.
    seed
        Base seed of the run.
    span
        Part of every recording that may be used.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        subjects: Sequence[str],
        n_tokens: int,
        seed: int,
        span: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        cohort = tokenizer.cohort
        self.tokenizer, self.seed = tokenizer, seed
        self.n_units = min(len(cohort.units), max(1, n_tokens // cohort.patches_per_window))
        self._spans: dict[str, list[tuple[int, int, int]]] = {}
        for index, recording in enumerate(cohort.recordings):
            low, high = usable_span(recording.n_times, span)
            if recording.subject in set(subjects) and 2 * (high - low) >= cohort.samples_per_window:
                self._spans.setdefault(recording.subject, []).append((index, low, high))
        self.subjects = tuple(s for s in subjects if s in self._spans)
        if not self.subjects:
            raise DataError(
                f"no training recording holds half a window of {cohort.spec.window_s:g} s.",
                allowed="recordings of at least half a window",
                next_step="Use a shorter window: --window-s.",
            )
        # Contiguous bins of the spatial order: one unit of each bin is a subset spread over the groups.
        bins = np.array_split(np.arange(len(cohort.units)), self.n_units)
        self._first, self._bin_sizes = np.array([b[0] for b in bins]), np.array([len(b) for b in bins])
        self._order = functools.lru_cache(maxsize=4)(self._shuffled)

    @property
    def pieces(self) -> Mapping[str, Sequence[tuple[int, int, int]]]:
        """By subject, what windows are cut from: index of the recording, first sample, end."""
        return self._spans

    def _shuffled(self, epoch: int) -> NDArray[np.int64]:
        rng = np.random.default_rng(seed_for(self.seed, "data-order", "epoch", epoch))
        return rng.permutation(len(self.subjects))

    def _subject(self, position: int) -> str:
        epoch, place = divmod(position, len(self.subjects))
        return self.subjects[int(self._order(epoch)[place])]

    def draw(self, step: int, batch_size: int) -> Batch:
        """Return the batch of one step."""
        rng = np.random.default_rng(seed_for(self.seed, "data-order", "step", step))
        cohort = self.tokenizer.cohort
        windows, units = [], []
        for position in range(step * batch_size, (step + 1) * batch_size):
            spans = self._spans[self._subject(position)]
            index, low, high = spans[int(rng.integers(len(spans)))]
            last = max(low, high - cohort.samples_per_window)
            windows.append(_window(cohort, index, int(rng.integers(low, last + 1)), high))
            units.append(self._first + rng.integers(self._bin_sizes))
        return self.tokenizer.batch(windows, np.stack(units))

"""Simulated MEG: dipoles in a sphere under a helmet of magnetometers, written as .fif files.

The helmet has VectorView's names and the places of its layout wrapped on a sphere around the head's centre, so that its
lobes are the real ones. Coils are points that measure the radial field, to which currents in the sphere's volume add
nothing, so a dipole's field is that of the primary current alone (Sarvas 1987, doi:10.1088/0031-9155/32/1/004).

Each subject has source amplitudes of its own (a fingerprint shared by its recordings), 1/f cortical sources that change
between states of co-activation, posterior alpha, an external field of low rank, line and sensor noise, and a head
that lies a few degrees off. Age moves the power and the frequency of alpha. Patients answer more strongly late after a
stimulus, in the states with stimuli only: at rest there is nothing to find. Cam-CAN's passive and smt states have its
codes in a trigger channel. The strongest sources of some people exceed the usual limits of artefacts: 1 % of all time.

Measured on 48 subjects over seeds 0 to 11 with scikit-learn on band power a sensor and state, two folds, mean (s.d.):
age r .69 (.09), its error below the mean predictor's with an interval that excludes it in 12 of 12; diagnosis AUROC
.76, between .57 and .90 (the size of the effect was chosen on these seeds); with no effects −.09 (.09) and .51 (.10).
The P60 of somatosensory responses came later and moved such an AUROC by .01.
Ridge fills half of the sensors from the others with an R² of .80, three of six with .42.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mne
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neurobench import seed_for
from neurobench_datasets._tables import write_tsv

Array = NDArray[np.float64]

SFREQ, SECONDS = 150.0, 16.0
RADIUS_M, CENTRE_M = 0.115, np.array([0.0, 0.0, 0.04])
N_SOURCES, N_MODES = 40, 3
FEMTO = 1e-15
EXTERNAL = 220 * FEMTO
"""Standard deviation of the interference at a sensor on top."""

LINE_HZ = 50.0

STIMULI: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "auditory": {"auditory": (1,)},
    "somatosensory": {"somatosensory": (1,)},
    "passive": {"auditory": (6, 7, 8), "visual": (9,)},
    "smt": {"auditory": (1, 2, 3), "visual": (1, 2, 3), "motor": (1, 2, 3)},
}
"""State to the sources that answer, and the codes of the stimuli that they answer to."""

WAVES = {
    "auditory": ((0.05, 0.012, 15e-9), (0.1, 0.02, -35e-9)),
    "somatosensory": ((0.02, 0.006, 15e-9), (0.035, 0.01, -25e-9), (0.06, 0.015, 20e-9)),
    "visual": ((0.075, 0.012, -12e-9), (0.1, 0.015, 30e-9), (0.145, 0.02, -20e-9)),
    "motor": ((0.0, 0.04, 20e-9),),
}
"""Latency and width in seconds and moment in ampere-metres of the early waves of a source."""

BUTTON, BUTTON_S = 8192, 0.3
"""Code of the button, and seconds from the stimulus to its being pressed."""


@dataclass(frozen=True)
class Effects:
    """True effects, in units of one standard deviation of age, or of being a patient.

    Parameters
    ----------
    age_alpha
        Change of log alpha amplitude.
    age_alpha_hz
        Change of the alpha frequency in Hz.
    late_response
        Change of the log amplitude of late evoked fields in patients.
    """

    age_alpha: float = -0.6
    age_alpha_hz: float = -0.5
    late_response: float = 0.58


NO_EFFECTS = Effects(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Person:
    """What a simulated subject is: age as a z-score, and 0 or 1 for a control or a patient."""

    name: str
    age_z: float
    patient: int = 0


# ---------------------------------------------------------------- helmet and fields


def helmet(every: int = 3) -> tuple[tuple[str, ...], Array]:
    """Return names and (sites, 3) places in metres around the head's centre of every ``every``-th VectorView site."""
    layout = mne.channels.read_layout("Vectorview-mag")
    flat = layout.pos[:, :2] + layout.pos[:, 2:] / 2
    flat = flat - (flat.max(0) + flat.min(0)) / 2
    # Distance from the middle of the flat layout becomes an angle from the top, down to below the equator.
    angle = np.linalg.norm(flat, axis=1) / np.abs(flat).max() * np.deg2rad(105)
    turn = np.arctan2(flat[:, 1], flat[:, 0])
    place = RADIUS_M * np.stack([np.sin(angle) * np.cos(turn), np.sin(angle) * np.sin(turn), np.cos(angle)], 1)
    names = np.array([n.replace("MEG", "MEG ").replace("  ", " ") for n in layout.names])
    order = np.argsort(names)[::every]
    return tuple(names[order].tolist()), place[order]


def radial_field(sensors: Array, sources: Array, moments: Array) -> Array:
    """Return (sensors, sources) tesla per ampere-metre of dipoles at ``sources`` along ``moments``, radial part."""
    outward = sensors / np.linalg.norm(sensors, axis=1, keepdims=True)
    away = sensors[:, None] - sources[None]
    cross = np.cross(moments[None], away)
    field: Array = 1e-7 * np.einsum("sij,sj->si", cross, outward) / np.linalg.norm(away, axis=2) ** 3
    return field


def _tangential(rng: np.random.Generator, places: Array) -> Array:
    moments = rng.standard_normal(places.shape)
    outward = places / np.linalg.norm(places, axis=1, keepdims=True)
    moments -= (moments * outward).sum(1, keepdims=True) * outward
    unit: Array = moments / np.linalg.norm(moments, axis=1, keepdims=True)
    return unit


def _rotation(rng: np.random.Generator, degrees: float) -> Array:
    axis = rng.standard_normal(3)
    axis *= np.deg2rad(degrees) * rng.standard_normal() / np.linalg.norm(axis)
    # Rodrigues; a head lies a little differently in every recording session.
    theta = float(np.linalg.norm(axis)) or 1e-12
    k = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]]) / theta
    rotation: Array = np.eye(3) + np.sin(theta) * k + (1 - np.cos(theta)) * (k @ k)
    return rotation


def _power_law(rng: np.random.Generator, shape: tuple[int, int], exponent: float) -> Array:
    """Return (rows, times) noise with power ~ 1 / f^exponent above 1 Hz, of unit variance."""
    freqs = np.fft.rfftfreq(shape[1], 1 / SFREQ)
    weight = np.maximum(freqs, 1.0) ** (-exponent / 2)
    weight[0] = 0.0
    spectrum = np.fft.rfft(rng.standard_normal(shape)) * weight
    noise = np.fft.irfft(spectrum, shape[1])
    scaled: Array = noise / noise.std(1, keepdims=True)
    return scaled


# ---------------------------------------------------------------- the population


class MegTwin:
    """The population: helmet, sources, states of co-activation.

    Parameters
    ----------
    seed
        Base seed.
    effects
        What age and diagnosis change.
    every
        Use every n-th site of the helmet.
    """

    def __init__(self, seed: int, effects: Effects, every: int = 3) -> None:
        rng = np.random.default_rng(seed_for(seed, "twin", "meg-population"))
        self.seed, self.effects = seed, effects
        self.names, self.sensors = helmet(every)
        direction = rng.standard_normal((N_SOURCES, 3))
        direction[:, 2] = np.abs(direction[:, 2]) - 0.2
        self.sources = 0.07 * direction / np.linalg.norm(direction, axis=1, keepdims=True)
        self.moments = _tangential(rng, self.sources)
        # Sources share a few processes; which share which, and with what sign, changes with the state.
        self.modes = rng.standard_normal((N_MODES, N_SOURCES, 6)) * (rng.random((N_MODES, N_SOURCES, 6)) < 0.4)
        self.alpha_places = 0.065 * np.array([[-0.35, -0.85, 0.4], [0.35, -0.85, 0.4], [0.0, -0.9, 0.45]])
        self.alpha_moments = _tangential(rng, self.alpha_places)
        self.evoked_places = {
            "auditory": 0.065 * np.array([[-0.95, 0.05, 0.3], [0.95, 0.05, 0.3]]),
            "somatosensory": 0.07 * np.array([[-0.6, 0.1, 0.79]]),
        }
        self.evoked_moments = {k: _tangential(rng, v) for k, v in self.evoked_places.items()}
        visual = 0.065 * np.array([[-0.2, -0.93, 0.3], [0.2, -0.93, 0.3]])
        motor = 0.07 * np.array([[-0.5, 0.2, 0.84]])
        # Later additions draw from a stream of their own, so that what was there before stays as it was.
        added = np.random.default_rng(seed_for(seed, "twin", "meg-population", "added"))
        self.evoked_places |= {"visual": visual, "motor": motor}
        self.evoked_moments |= {"visual": _tangential(added, visual), "motor": _tangential(added, motor)}
        self.external = (
            rng.standard_normal((len(self.names), 3)) * 0.15 + self.sensors @ rng.standard_normal((3, 3)) * 8
        )

    def record(self, person: Person, state: str) -> tuple[Array, Array, Array]:
        """Return (sensors, times) in tesla, (events,) onsets in seconds, and the head's rotation."""
        own = np.random.default_rng(seed_for(self.seed, "twin", "meg-person", person.name))
        amplitude = 6e-9 * np.exp(0.4 * own.standard_normal(N_SOURCES))
        alpha = 1.6e-8 * np.exp(self.effects.age_alpha * person.age_z + 0.25 * own.standard_normal())
        alpha_hz = 10.0 + self.effects.age_alpha_hz * person.age_z + 0.35 * own.standard_normal()
        late = np.exp(self.effects.late_response * person.patient + 0.3 * own.standard_normal())
        early = np.exp(0.3 * own.standard_normal())
        rotation = _rotation(own, 3.0)

        rng = np.random.default_rng(seed_for(self.seed, "twin", "meg-recording", person.name, state))
        n = round(SECONDS * SFREQ)
        t = np.arange(n) / SFREQ
        shared, local = _power_law(rng, (6, n), 1.0), _power_law(rng, (N_SOURCES, n), 1.0)
        mode = np.repeat(rng.integers(N_MODES, size=n), 1)[np.minimum.accumulate(np.arange(n))]
        starts = np.flatnonzero(rng.random(n) < 1 / (0.8 * SFREQ))
        for begin, end in zip([0, *starts], [*starts, n], strict=True):
            mode[begin:end] = mode[begin]
        mixed = np.einsum("mik,kt->mit", self.modes, shared)[mode, :, np.arange(n)].T
        activity = amplitude[:, None] * (mixed + 0.5 * local)
        envelope = 0.6 + 0.4 * np.abs(_power_law(rng, (1, n), 2.0)[0])
        phase = 2 * np.pi * (alpha_hz * t + 0.15 * _power_law(rng, (1, n), 2.0)[0]) + rng.uniform(0, 2 * np.pi)
        rhythm = alpha * envelope * np.stack([np.sin(phase), np.sin(phase + 0.3), np.sin(phase + 0.6)])

        def at(places: Array, moments: Array) -> Array:
            return radial_field(self.sensors, places @ rotation.T, moments @ rotation.T)

        data = at(self.sources, self.moments) @ activity + at(self.alpha_places, self.alpha_moments) @ rhythm
        onsets = np.array([])
        if state in STIMULI:
            onsets = np.arange(0.5, SECONDS - 0.6, 0.8) + rng.uniform(
                -0.1, 0.1, len(np.arange(0.5, SECONDS - 0.6, 0.8))
            )
            codes = self.codes(person, state, len(onsets))
            for source, answering in STIMULI[state].items():
                delay = BUTTON_S if source == "motor" else 0.0
                course = self._response(t, onsets[np.isin(codes, answering)] + delay, source, early, late, rng)
                data += at(self.evoked_places[source], self.evoked_moments[source]) @ course
        data += EXTERNAL * self.external @ _power_law(rng, (3, n), 1.0)
        data += 40 * FEMTO * rng.standard_normal((len(data), 1)) * np.sin(2 * np.pi * LINE_HZ * t)
        # 3 fT/√Hz of white sensor noise up to the Nyquist frequency.
        data += 3 * FEMTO * np.sqrt(SFREQ / 2) * rng.standard_normal(data.shape)
        return data, onsets, rotation

    def codes(self, person: Person, state: str, n: int) -> NDArray[np.int64]:
        """Return (events,) the code of each stimulus of a recording, every code as often as any other."""
        kinds = sorted({c for codes in STIMULI[state].values() for c in codes})
        rng = np.random.default_rng(seed_for(self.seed, "twin", "meg-codes", person.name, state))
        return rng.permutation(np.resize(kinds, n))

    @staticmethod
    def _response(t: Array, onsets: Array, source: str, early: float, late: float, rng: np.random.Generator) -> Array:
        """Return (sources, times) evoked dipole moments: early and late waves, habituating over trials."""
        waves = WAVES[source]
        slow = (0.2, 0.05, 45e-9)
        course = np.zeros_like(t)
        for trial, onset in enumerate(onsets):
            gain = (1 + 0.2 * rng.standard_normal()) * (0.7 + 0.3 * np.exp(-trial / 5))
            for (latency, width, moment), scale in (*((w, early) for w in waves), (slow, late)):
                course += gain * scale * moment * np.exp(-(((t - onset - latency) / width) ** 2) / 2)
        n_sources = 2 if source in ("auditory", "visual") else 1
        both: Array = course[None].repeat(n_sources, 0)
        return both

    def field_table(self) -> dict[str, Any]:
        """Return what the sources with effects look like at the sensors: strength there, and who is near the maximum.

        ``field``: source to sensor to the root of the summed squares of the fields of its dipoles, the strongest sensor
        having 1; ``sensors``: those with at least half of that. The head lies straight.
        """
        places = self.evoked_places | {"alpha": self.alpha_places}
        moments = self.evoked_moments | {"alpha": self.alpha_moments}
        field, sensors = {}, {}
        for source, place in places.items():
            strength = np.linalg.norm(radial_field(self.sensors, place, moments[source]), axis=1)
            strength /= strength.max()
            field[source] = dict(zip(self.names, strength.round(4).tolist(), strict=True))
            sensors[source] = [n for n, s in field[source].items() if s >= 0.5]
        return {"field": field, "sensors": sensors}


# ---------------------------------------------------------------- files


def write_recording(path: Path, twin: MegTwin, person: Person, state: str, *, bads: tuple[str, ...] = ()) -> Array:
    """Write one simulated recording as .fif; return the onsets of its events in seconds."""
    data, onsets, rotation = twin.record(person, state)
    for name in bads:
        data[twin.names.index(name)] *= 30.0
    stimulus = _trigger_channel(twin, person, state, onsets, data.shape[1])
    info = mne.create_info(
        [*twin.names, *(["STI101"] if stimulus is not None else [])],
        SFREQ,
        ["mag"] * len(twin.names) + ["stim"] * (stimulus is not None),
        verbose="ERROR",
    )
    if stimulus is not None:
        data = np.vstack([data, stimulus])
    for channel, place in zip(info["chs"][: len(twin.names)], twin.sensors, strict=True):
        outward = place / np.linalg.norm(place)
        side = np.cross(outward, [0.0, 1.0, 0.1])
        side /= np.linalg.norm(side)
        channel["loc"] = np.concatenate([place, side, np.cross(outward, side), outward])
        channel["coil_type"] = mne.io.constants.FIFF.FIFFV_COIL_VV_MAG_T3
    # Head frame: the head's centre lies 4 cm above its origin; the head is turned, the helmet is not.
    move = np.eye(4)
    move[:3, :3], move[:3, 3] = rotation.T, CENTRE_M
    with info._unlock():
        info["dev_head_t"] = mne.transforms.Transform("meg", "head", move)
        info["line_freq"] = LINE_HZ
    raw = mne.io.RawArray(data, info, verbose="ERROR")
    raw.set_meas_date(datetime(2000, 1, 1, tzinfo=UTC))
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        # Cam-CAN's file names are not MNE's convention.
        warnings.simplefilter("ignore", RuntimeWarning)
        raw.save(path, fmt="single", overwrite=True, verbose="ERROR")
    return onsets


def _trigger_channel(twin: MegTwin, person: Person, state: str, onsets: Array, n_times: int) -> Array | None:
    """Return (times,) what Cam-CAN's trigger channel holds; None for states whose events a table has."""
    if state not in ("passive", "smt"):
        return None
    channel = np.zeros(n_times)
    starts = np.round(onsets * SFREQ).astype(int)
    for start, code in zip(starts, twin.codes(person, state, len(onsets)), strict=True):
        channel[start : start + 10] += code
        if state == "smt":
            pressed = start + round(BUTTON_S * SFREQ)
            channel[pressed : pressed + 10] += BUTTON
    return channel


def write_sidecars(path: Path, twin: MegTwin, state: str, onsets: Array, bads: tuple[str, ...], *, bom: bool) -> None:
    """Write ``channels.tsv`` (with a byte-order mark if asked), ``events.tsv`` and the JSON beside a recording."""
    stem = path.name.removesuffix("_meg.fif")
    channels = pd.DataFrame({"name": twin.names, "type": "MEGMAG", "units": "T"})
    channels["status"] = ["bad" if n in bads else "good" for n in twin.names]
    write_tsv(path.with_name(f"{stem}_channels.tsv"), channels)
    if bom:
        text = path.with_name(f"{stem}_channels.tsv").read_text(encoding="utf-8")
        path.with_name(f"{stem}_channels.tsv").write_text(text, encoding="utf-8-sig")
    if len(onsets):
        events = pd.DataFrame({"onset": onsets.round(4), "duration": 0.0, "trial_type": state})
        write_tsv(path.with_name(f"{stem}_events.tsv"), events)
    settings = {"TaskName": state, "SamplingFrequency": SFREQ, "PowerLineFrequency": LINE_HZ, "Simulated": True}
    path.with_name(f"{stem}_meg.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def write_effects(root: Path, effects: Effects, **more: Any) -> None:
    """Write ``true_effects.json``."""
    whole: Mapping[str, Any] = {**vars(effects), **more, "simulated": True}
    (root / "true_effects.json").write_text(json.dumps(whole, indent=1, sort_keys=True) + "\n", encoding="utf-8")

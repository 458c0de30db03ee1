"""Small simulated inputs of every shape that plugins have to live with; contract checks and tests run on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.signal import lfilter

from neurobench.identity import seed_for
from neurobench.records import (
    BackboneSpec,
    Batch,
    Cohort,
    DatasetCard,
    Event,
    Recording,
    SignalKind,
    SignalSpec,
    TokenTable,
    UnitTable,
    WindowTable,
)
from neurobench.tokens import statistics, types_known

__all__ = [
    "simulated_batch",
    "simulated_cohort",
    "simulated_connectivity",
    "simulated_responses",
    "simulated_spec",
    "simulated_states",
    "simulated_units",
    "simulated_window",
]

CARD = DatasetCard(
    title="simulated specimen",
    modality="fmri",
    licence="CC0-1.0",
    access="simulated on the spot",
    apply_at="nowhere: simulated",
    citation="none: simulated",
    doi="",
    revision="1",
    may_leave="all",
)


def simulated_units(
    n_units: int = 12, n_groups: int = 3, *, kind: SignalKind = "parcels", positions: bool = True, seed: int = 0
) -> UnitTable:
    """Return a unit table: uneven groups in spatial order; sensors come as three a site, patches lie in two regions."""
    rng = np.random.default_rng(seed_for(seed, "units", kind, n_units, n_groups))
    names = tuple(f"u{i:03d}" for i in range(n_units))
    # Group sizes grow: every later group is larger than the one before.
    edges = np.linspace(0, 1, n_groups + 1) ** 1.5 * n_units if n_groups else np.zeros(1)
    group = np.clip(np.searchsorted(edges, np.arange(n_units), side="right") - 1, 0, max(0, n_groups - 1))
    groups = tuple(f"g{g}" for g in group) if n_groups else ("",) * n_units
    position = rng.normal(0, 10, (n_units, 3)) + group[:, None] * 30.0
    if kind == "sensors":
        sites = np.arange(n_units) // 3
        position = position[sites * 3]
        types = tuple(("mag", "grad", "grad")[i % 3] for i in range(n_units))
        table = UnitTable.from_groups(names, groups, position if positions else None, types, sites, "helmet")
        return replace(table, orientation=_orientations(position)) if positions else table
    table = UnitTable.from_groups(names, groups, position if positions else None)
    if kind == "parcels" or not n_groups:
        return table
    # Patches of a volume lie on a grid, a patch of 12 mm a step.
    step = np.arange(n_units)
    cell = np.stack([step % 4, step // 4 % 4, step // 16], 1) * 12.0
    share = table.region_share * rng.uniform(0.4, 0.9, (n_units, 1))
    share = share + np.roll(table.region_share, 1, 1) * rng.uniform(0, 0.1, (n_units, 1))
    return UnitTable(
        names=names,
        groups=groups,
        position_mm=cell.astype(np.float32) if positions else table.position_mm,
        types=("patch",) * n_units,
        sites=table.sites,
        region_names=table.region_names,
        region_share=share.astype(np.float32),
    )


def _orientations(position: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return (units, 3): outward at the magnetometer of every site, along two tangents at its gradiometers."""
    outward = position / np.linalg.norm(position, axis=1, keepdims=True)
    side = np.cross(outward, [0.3, 0.5, 0.8])
    side /= np.linalg.norm(side, axis=1, keepdims=True)
    axes = np.stack([outward, side, np.cross(outward, side)], 1)
    n = np.arange(len(position))
    return axes[n, n % 3].astype(np.float32)


def simulated_window(units: UnitTable, n_patches: int, *, gaps: bool = False, seed: int = 0) -> WindowTable:
    """Return the token table of one window; with ``gaps`` some units are left out, one is missing, the end padded."""
    rng = np.random.default_rng(seed_for(seed, "units", "window", n_patches))
    n = len(units)
    if not gaps:
        return WindowTable(units, np.arange(n), np.ones((n, n_patches), bool))
    chosen = np.sort(rng.choice(n, max(1, n - n // 4), replace=False))
    valid = np.ones((len(chosen), n_patches), bool)
    valid[:, max(1, n_patches - n_patches // 4) :] = False
    if len(chosen) > 1:
        valid[int(rng.integers(len(chosen)))] = False
    return WindowTable(units, chosen, valid)


def simulated_spec(units: UnitTable, n_patches: int, n_features: int, width: int, n_layers: int) -> BackboneSpec:
    """Return the sizes of a backbone for these units."""
    return BackboneSpec.of(units, n_patches=n_patches, n_features=n_features, width=width, n_layers=n_layers)


def simulated_batch(
    units: UnitTable, n_batch: int, n_patches: int, n_features: int, *, gaps: bool = False, seed: int = 0
) -> Batch:
    """Return white-noise tokens of some windows, zeros where not valid."""
    generator = torch.Generator().manual_seed(seed_for(seed, "twin", "batch") % 2**63)
    window = simulated_window(units, n_patches, gaps=gaps, seed=seed)
    unit = torch.from_numpy(window.unit).expand(n_batch, -1).contiguous()
    valid = torch.from_numpy(window.valid).expand(n_batch, -1, -1).contiguous()
    signal = torch.randn(n_batch, unit.shape[1], n_patches, n_features, generator=generator) * valid[..., None]
    table = TokenTable(
        unit=unit,
        valid=valid,
        position=torch.from_numpy(np.nan_to_num(units.position_mm / 100.0).astype(np.float32))[unit],
        group=torch.from_numpy(units.group_index)[unit],
        orientation=torch.from_numpy(np.nan_to_num(units.orientation))[unit],
        type=torch.from_numpy(types_known(units, units))[unit],
        units=units,
    )
    names = tuple(f"s{i:02d}" for i in range(n_batch))
    return Batch(signal, table, unit, units, names, tuple(f"{n}@0" for n in names))


def simulated_connectivity(n_units: int, seed: int = 0) -> torch.Tensor:
    """Return (n_units, n_units) Fisher's z as a backbone is given it: some networks, either sign, 0 on the diagonal."""
    rng = np.random.default_rng(seed_for(seed, "units", "connectivity", n_units))
    loading = rng.normal(0, 1, (n_units, 3)) + 2.0 * np.eye(3)[np.arange(n_units) % 3]
    covariance = loading @ loading.T + np.eye(n_units)
    scale = np.sqrt(covariance.diagonal())
    z = np.arctanh(np.clip(covariance / np.outer(scale, scale), -0.99, 0.99))
    np.fill_diagonal(z, 0.0)
    return torch.from_numpy(z.astype(np.float32))


def simulated_cohort(
    folder: Path,
    *,
    n_subjects: int = 12,
    n_units: int = 12,
    n_groups: int = 3,
    n_times: int = 240,
    signal: SignalKind = "parcels",
    modality: Literal["fmri", "meg"] = "fmri",
    n_voxels: int = 1,
    effect: float = 1.0,
    seed: int = 0,
) -> Cohort:
    """Write a simulated cohort: correlated, autocorrelated units whose variances carry age, sex and diagnosis.

    Parameters
    ----------
    folder
        Where the recordings go, one .npy file a subject.
    n_times
        Samples. fMRI: at 1 Hz, windows of 60 s, patches of 6 s; MEG: at 128 Hz, 1 s and 250 ms. The second subject's
        recording is half as long, and one of its units is missing.
    effect
        Strength of the targets' effects; 0 for none.
    """
    rng = np.random.default_rng(seed_for(seed, "twin", "cohort", n_subjects, n_units))
    units = simulated_units(n_units, n_groups, kind=signal, seed=seed)
    subjects = tuple(f"sub-{i:03d}" for i in range(n_subjects))
    age = rng.uniform(18, 80, n_subjects)
    diagnosis = rng.permutation(np.arange(n_subjects) % 2)
    sex = rng.permutation(np.arange(n_subjects) % 2)
    people = pd.DataFrame(
        {
            "age": age,
            "sex": np.where(sex == 0, "F", "M"),
            "site": [f"site{i % 2}" for i in range(n_subjects)],
            "diagnosis": np.where(diagnosis == 0, "control", "patient"),
            "fluid_intelligence": 40 - 0.3 * age + rng.normal(0, 3, n_subjects),
            "mean_fd": rng.uniform(0.05, 0.4, n_subjects),
        },
        index=pd.Index(subjects, name="participant_id"),
    )
    mixing = rng.normal(0, 1, (n_units, max(1, n_units // 3)))
    loading = rng.normal(0, 1, (3, n_units))
    profile = rng.uniform(0.5, 1.5, (n_units, 1, n_voxels))
    recordings = []
    folder.mkdir(parents=True, exist_ok=True)
    for i, subject in enumerate(subjects):
        length = n_times // 2 if i == 1 else n_times
        sources = lfilter([1.0], [1.0, -0.9], rng.normal(0, 1, (mixing.shape[1], length + 50)))[:, 50:]
        data = mixing @ sources + rng.normal(0, 1, (n_units, length))
        state = np.array([(age[i] - 50) / 18, 2.0 * sex[i] - 1, 2.0 * diagnosis[i] - 1])
        data *= np.exp(0.3 * effect * state @ loading)[:, None]
        present = np.ones(n_units, bool)
        if i == 1 and n_units > 1:
            present[0] = False
        values: NDArray[np.float64] = data[..., None] * profile if n_voxels > 1 else data
        if n_voxels > 1:
            values = values + rng.normal(0, 0.5, values.shape)
        values[~present] = np.nan
        path = folder / f"{subject}.npy"
        np.save(path, values.astype(np.float32))
        centre, scale, robust = statistics(np.nan_to_num(values))
        recordings.append(Recording(f"{subject}_rest", subject, "rest", path, length, present, centre, scale, robust))
    fmri = SignalSpec(window_s=60.0, patch_s=6.0, sfreq=1.0)
    meg = SignalSpec(window_s=1.0, patch_s=0.25, sfreq=128.0, band_hz=(1.0, 40.0), scaling="training")
    spec = fmri if modality == "fmri" else meg
    people["duration_s"] = [r.n_times / (spec.sfreq or 1.0) for r in recordings]
    return Cohort(
        dataset="simulated_specimen",
        card=replace(CARD, modality=modality),
        signal=signal,
        modality=modality,
        source="simulated",
        participants=people,
        recordings=tuple(recordings),
        units=units,
        spec=spec,
        fingerprint=f"specimen-{seed}-{n_subjects}-{n_units}",
        n_voxels=n_voxels,
    )


def simulated_responses(
    n_units: int,
    n_events: int,
    sfreq: float,
    condition: str,
    rng: np.random.Generator,
    *,
    effect: float = 1.0,
    peak_s: float = 0.1,
) -> tuple[NDArray[np.float64], tuple[Event, ...]]:
    """Return (units, times) white noise of s.d. 1 with a response planted at every event, and the events.

    The response is a wave of ``effect`` s.d. with its peak at ``peak_s``, its topography a smooth one over the order of
    units; both are the same in everybody. Events are 2.2 to 2.6 s apart.
    """
    onsets = 2.5 + np.cumsum(rng.uniform(2.2, 2.6, n_events))
    data = rng.normal(0, 1, (n_units, int((onsets[-1] + 4) * sfreq)))
    time = np.arange(round(0.5 * sfreq)) / sfreq
    wave = np.exp(-(((time - peak_s) / 0.03) ** 2)) - 0.5 * np.exp(-(((time - peak_s - 0.1) / 0.05) ** 2))
    topography = np.cos(np.linspace(0, 2 * np.pi, n_units, endpoint=False) + 0.3)
    for onset in onsets:
        at = round(onset * sfreq)
        data[:, at : at + len(wave)] += effect * topography[:, None] * wave
    return data, tuple(Event(float(onset), condition) for onset in onsets)


def simulated_states(
    folder: Path,
    *,
    n_subjects: int = 8,
    n_units: int = 12,
    n_events: int = 20,
    states: Sequence[str] = ("rest", "auditory", "somatosensory"),
    effect: float = 1.0,
    seed: int = 0,
) -> Cohort:
    """Write a simulated MEG cohort: one recording a subject and state, with responses in all states but the first.

    Parameters
    ----------
    folder
        Where the recordings go.
    n_events
        Of each recording, see :func:`simulated_responses`. Prepared at 128 Hz, windows of 2 s, patches of 250 ms.
    states
        Names of the states, and of the conditions in them; each raises the power of units of its own. The peak lies at
        100 ms in the second state, and at 50 ms in later ones.
    effect
        Strength of responses and of the difference between states; 0 for none.
    """
    rng = np.random.default_rng(seed_for(seed, "twin", "states", n_subjects, n_units))
    spec = SignalSpec(window_s=2.0, patch_s=0.25, sfreq=128.0, band_hz=(1.0, 40.0), scaling="training")
    subjects = tuple(f"sub-{i:03d}" for i in range(n_subjects))
    folder.mkdir(parents=True, exist_ok=True)
    recordings = []
    for subject in subjects:
        loudness = rng.uniform(0.8, 1.25)
        for i, state in enumerate(states):
            own = np.arange(n_units) % len(states) == i
            data, events = simulated_responses(
                n_units, n_events, 128.0, state, rng, effect=3 * effect * (i > 0), peak_s=0.1 if i < 2 else 0.05
            )
            data *= loudness * np.where(own, np.exp(0.4 * effect), 1.0)[:, None]
            path = folder / f"{subject}_{state}.npy"
            np.save(path, data.astype(np.float32))
            centre, scale, robust = statistics(data)
            recordings.append(
                Recording(
                    f"{subject}_{state}",
                    subject,
                    state,
                    path,
                    data.shape[1],
                    np.ones(n_units, bool),
                    centre,
                    scale,
                    robust,
                    events=events if i > 0 else (),
                )
            )
    people = pd.DataFrame(
        {"site": [f"site{i % 2}" for i in range(n_subjects)]}, index=pd.Index(subjects, name="participant_id")
    )
    return Cohort(
        dataset="simulated_specimen",
        card=replace(CARD, modality="meg"),
        signal="sensors",
        modality="meg",
        source="simulated",
        participants=people,
        recordings=tuple(recordings),
        units=UnitTable.from_groups(
            tuple(f"u{i:03d}" for i in range(n_units)),
            tuple(f"g{i * 3 // n_units}" for i in range(n_units)),
            types=("mag",) * n_units,
            group_source="helmet",
        ),
        spec=spec,
        fingerprint=f"states-{seed}-{n_subjects}-{n_units}-{effect:g}",
    )

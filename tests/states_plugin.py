"""A plugin file for tests of evoked responses and states: MEG-like files with planted responses, a tiny backbone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from neurobench import Dataset, Event, Listing, RawRecording, RecordingFile, SignalSpec, UnitTable, hookimpl
from neurobench.specimens import simulated_responses
from tests.fakes import CARD
from tests.tiny_plugin import Tiny

SFREQ = 128.0
STATES = {"rest": 0.0, "auditory": 0.1, "somatosensory": 0.05}
"""State to the latency of its response in seconds; none at rest."""


class FakeStates(Dataset):
    """Reads ``<subject>_<state>.npy`` of shape (units, times), and events from a JSON file of the same name."""

    name = "fake_states"
    summary = "files written by a test"
    signal = "sensors"
    modality = "meg"
    card = replace(CARD, modality="meg")
    twin_subjects = 8

    @property
    def spec(self) -> SignalSpec:
        return SignalSpec(window_s=2.0, patch_s=0.25, sfreq=SFREQ, band_hz=None, scaling="training")

    def list_recordings(self, root: Path) -> Listing:
        files = tuple(
            RecordingFile(
                subject=path.stem.partition("_")[0], path=path, sfreq=SFREQ, state=path.stem.partition("_")[2]
            )
            for path in sorted(root.glob("*.npy"))
        )
        people = pd.DataFrame(index=pd.Index(sorted({f.subject for f in files}), name="participant_id", dtype="object"))
        return Listing(people, files)

    def read(self, file: RecordingFile) -> RawRecording:
        data = np.load(file.path, allow_pickle=False)
        n = len(data)
        units = UnitTable.from_groups(
            tuple(f"MEG{i:02d}" for i in range(n)),
            tuple(f"group-{i * 3 // n}" for i in range(n)),
            types=("mag",) * n,
            group_source="helmet",
        )
        events = json.loads(file.path.with_suffix(".json").read_text(encoding="utf-8"))
        return RawRecording(data, SFREQ, units, events=tuple(Event(*e) for e in events))

    def simulate(self, root: Path, *, n_subjects: int, seed: int, variant: str) -> None:
        write_states(root, n_subjects, seed=seed, effect=0.0 if variant == "null" else 1.0)


def write_states(
    root: Path, n_subjects: int = 8, *, effect: float = 1.0, n_events: int = 14, n_units: int = 12, seed: int = 0
) -> None:
    """Write recordings of three states, in tesla; each state raises the power of a third of the sensors."""
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(n_subjects):
        for k, (state, latency) in enumerate(STATES.items()):
            strength = 3 * effect if latency else 0.0
            data, events = simulated_responses(n_units, n_events, SFREQ, "tone", rng, effect=strength, peak_s=latency)
            data *= np.where(np.arange(n_units) % 3 == k, np.exp(0.4 * effect), 1.0)[:, None]
            np.save(root / f"s{i:03d}_{state}.npy", data * 1e-13)
            kept = [[e.onset_s, e.condition] for e in events] if latency else []
            (root / f"s{i:03d}_{state}.json").write_text(json.dumps(kept), encoding="utf-8")


@hookimpl
def register_backbones() -> list[type]:
    """Return the backbone."""
    return [Tiny]


@hookimpl
def register_datasets() -> list[type]:
    """Return the dataset."""
    return [FakeStates]

"""Does training wait for data? A prepared cohort larger than the cache, read lazily from a disk cache that was emptied.

    python -m benchmarks.performance reading

Simulated noise, laid out as `prepare` lays out volumes: 238 patches of 216 voxels, float16, one file a recording.
The files are dropped from the system's cache first (where the system allows it), so that they are read from the disk.
Measured is the share of the training loop that was spent waiting for a batch, at the `cpu` profile, with batches drawn
ahead in a thread as neurobench does, and with the same batches drawn in the loop; and the memory that drawing a batch
takes.
"""

from __future__ import annotations

import os
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import torch

from benchmarks.performance.table import Ratio
from neurobench import pretraining
from neurobench.config import PROFILES, Profile
from neurobench.plugins import load_registry
from neurobench.records import BackboneSpec, Cohort, Recording, SignalSpec
from neurobench.specimens import CARD, simulated_units
from neurobench.tokens import Scaler, Tokenizer, TrainingWindows

N_UNITS, N_VOXELS, N_TIMES, SFREQ = 238, 216, 176, 0.5


def write_cohort(folder: Path, gib: float) -> Cohort:
    """Write noise of this size and return it as a cohort."""
    import pandas as pd

    rng = np.random.default_rng(0)
    noise = rng.standard_normal((N_UNITS, N_TIMES, N_VOXELS)).astype(np.float16)
    n = int(np.ceil(gib * 2**30 / noise.nbytes))
    units = simulated_units(N_UNITS, 8, kind="volume")
    ones = np.ones(N_UNITS, np.float32)
    recordings = []
    for i in range(n):
        path = folder / f"{i:04d}.npy"
        np.save(path, np.roll(noise, i, axis=1))
        present = np.ones(N_UNITS, bool)
        recordings.append(Recording(f"s{i}", f"s{i}", "rest", path, N_TIMES, present, 0 * ones, ones, ones))
    return Cohort(
        dataset="noise",
        card=CARD,
        signal="volume",
        modality="fmri",
        source="simulated",
        participants=pd.DataFrame(index=[r.subject for r in recordings]),
        recordings=tuple(recordings),
        units=units,
        spec=SignalSpec(window_s=150.0, patch_s=15.0, sfreq=SFREQ),
        fingerprint="",
        n_voxels=N_VOXELS,
    )


def empty_cache(cohort: Cohort) -> None:
    """Write the files out, and drop them from the system's cache where it allows that."""
    for recording in cohort.recordings:
        with open(recording.path, "rb") as stream:
            os.fsync(stream.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def waiting(cohort: Cohort, profile: Profile, n_steps: int, ahead: int) -> pretraining.History:
    """Return the history of a training whose files come from the disk."""
    registry = load_registry()
    spec = BackboneSpec(N_UNITS, 8, cohort.patches_per_window, cohort.n_features, profile.width, profile.n_layers)
    kept, pretraining.AHEAD = pretraining.AHEAD, ahead
    try:
        empty_cache(cohort)
        tokenizer = Tokenizer(cohort, Scaler.fit(cohort, cohort.subjects))
        windows = TrainingWindows(tokenizer, cohort.subjects, profile.n_tokens, seed=ahead)
        net, decoder = pretraining.build(registry.get("backbone", "transformer"), spec, {}, seed=0)
        return pretraining.pretrain(
            net,
            decoder,
            registry.get("mask", "random_tube")(),
            windows,
            recipe=pretraining.Recipe.for_width(profile.width, profile.batch_size),
            n_steps=n_steps,
            ratio=0.5,
            seed=0,
            device=torch.device("cpu"),
        )
    finally:
        pretraining.AHEAD = kept


def memory_of_a_batch(cohort: Cohort, profile: Profile) -> float:
    """Return the peak of what drawing one batch allocates, in sizes of the batch itself."""
    tokenizer = Tokenizer(cohort, Scaler.fit(cohort, cohort.subjects))
    windows = TrainingWindows(tokenizer, cohort.subjects, profile.n_tokens, seed=0)
    windows.draw(0, 2)
    tracemalloc.start()
    try:
        batch = windows.draw(1, profile.batch_size)
        return tracemalloc.get_traced_memory()[1] / batch.signal.nbytes
    finally:
        tracemalloc.stop()


def measure(quick: bool) -> list[Ratio]:
    """Return how long training waits for data, and what a batch costs beside itself."""
    profile, rows = PROFILES["cpu"], []
    n_steps = 20 if quick else 100
    with tempfile.TemporaryDirectory() as name:
        # Larger than half the cache: mapped, and scaled window by window.
        cohort = write_cohort(Path(name), 1.2 if quick else 4.0)
        for what, ahead, bar in (("drawn ahead", pretraining.AHEAD, 0.05), ("drawn in the loop", 1, None)):
            history = waiting(cohort, profile, n_steps, ahead)
            share, step = history.waiting_s / history.seconds, history.seconds / n_steps
            what_is = f"batches {what}: share of the training loop spent waiting for data"
            rows.append(Ratio("reading", what_is, share, bar, False, {"step_s": step}))
        peak = memory_of_a_batch(cohort, profile)
        rows.append(Ratio("reading", "peak memory of drawing a batch, in batches", peak, 1.1, False))
    return rows

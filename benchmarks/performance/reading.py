"""Does training wait for data? A prepared cohort larger than the cache, read lazily from a disk cache that was emptied.

    python -m benchmarks.performance.reading [--gib 4] [--steps 60] [--profile cpu] [--json FILE]

Simulated noise, laid out as `prepare` lays out volumes: 238 patches of 216 voxels, float16, one file a recording. The
files are dropped from the system's cache first (where the system allows it), so that they are read from the disk. What
is printed is the share of the training loop that was spent waiting for a batch, with batches drawn ahead in a thread as
neurobench does, and with the same batches drawn in the loop.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from neurobench import pretraining
from neurobench.config import PROFILES
from neurobench.plugins import load_registry
from neurobench.records import BackboneSpec, Cohort, Recording, SignalSpec
from neurobench.specimens import CARD, simulated_units
from neurobench.tokens import CACHE_BYTES, Scaler, Tokenizer, TrainingWindows

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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=4.0)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--profile", default="cpu")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    screen, profile, registry = Console(), PROFILES[options.profile], load_registry()
    found = {}
    with tempfile.TemporaryDirectory() as name:
        cohort = write_cohort(Path(name), options.gib)
        size = sum(r.path.stat().st_size for r in cohort.recordings)
        if size <= CACHE_BYTES / 2:
            raise SystemExit("a cohort of this size is kept in memory; give a larger --gib")
        spec = BackboneSpec(N_UNITS, 8, cohort.patches_per_window, cohort.n_features, profile.width, profile.n_layers)
        for mode in ("drawn ahead", "drawn in the loop"):
            # With one batch ahead it is asked for when it is needed, and the loop waits for all of it.
            pretraining.AHEAD = 2 if mode == "drawn ahead" else 1
            empty_cache(cohort)
            tokenizer = Tokenizer(cohort, Scaler.fit(cohort, cohort.subjects))
            windows = TrainingWindows(tokenizer, cohort.subjects, profile.n_tokens, seed=len(found))
            net, decoder = pretraining.build(registry.get("backbone", "transformer"), spec, {}, seed=0)
            history = pretraining.pretrain(
                net,
                decoder,
                registry.get("mask", "random_tube")(),
                windows,
                recipe=pretraining.Recipe.for_width(profile.width, profile.batch_size),
                n_steps=options.steps,
                ratio=0.5,
                seed=0,
                device=torch.device("cpu"),
            )
            found[mode] = history.waiting_s / history.seconds
            screen.print(
                f"{mode}: {found[mode]:.1%} of {history.seconds:.1f} s waiting for data "
                f"({history.seconds / options.steps:.3f} s a step, {size / 2**30:.1f} GiB, profile {profile.name})"
            )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Small MEG files for tests: noise on a few sensors of a helmet, and a trigger channel."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import mne
import numpy as np

from neurobench_datasets._meg_twin import helmet

SFREQ = 1000.0


def make_raw(
    *,
    seconds: float = 6.0,
    sfreq: float = SFREQ,
    triggers: Sequence[tuple[float, int]] = (),
    trigger_samples: int = 5,
    channel: str = "STI101",
    first_samp: int = 0,
    seed: int = 0,
    n: int = 17,
) -> mne.io.RawArray:
    """Return noise of 100 fT at ``n`` sensors, and a channel with codes at onsets in seconds."""
    names, places = helmet(102 // n)
    rng = np.random.default_rng(seed)
    n_times = round(seconds * sfreq)
    data = 1e-13 * rng.standard_normal((len(names) + 1, n_times))
    data[-1] = 0
    for onset, code in triggers:
        start = round(onset * sfreq)
        data[-1, start : start + trigger_samples] += code
    info = mne.create_info([*names, channel], sfreq, ["mag"] * len(names) + ["stim"], verbose="ERROR")
    for c, place in zip(info["chs"][:-1], places, strict=True):
        outward = place / np.linalg.norm(place)
        c["loc"] = np.concatenate([place, np.eye(3)[0], np.eye(3)[1], outward])
    with info._unlock():
        info["line_freq"] = 50.0
        info["dev_head_t"] = mne.transforms.Transform("meg", "head", np.eye(4))
    return mne.io.RawArray(data, info, first_samp=first_samp, verbose="ERROR")


def save(raw: mne.io.BaseRaw, path: Path) -> Path:
    """Write a recording and return where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        # Cam-CAN's file names are not MNE's convention.
        warnings.simplefilter("ignore", RuntimeWarning)
        raw.save(path, overwrite=True, verbose="ERROR")
    return path

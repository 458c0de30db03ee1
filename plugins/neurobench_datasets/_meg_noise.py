"""The noise of MEG sensors, from an empty-room recording or a noise covariance, and whitening with it."""

from __future__ import annotations

import functools
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mne
import numpy as np
from mne.io.constants import FIFF
from numpy.typing import NDArray

from neurobench import DataError, Finding, RecordingFile
from neurobench_datasets._meg_artefacts import BLOCK, band_passed
from neurobench_datasets._meg_open import has_an_end, is_sss, open_raw
from neurobench_datasets._meg_sidecars import normalised

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Noise:
    """A noise covariance: MNE's object with normalised names, where it is from, and whether after MaxFilter."""

    cov: Any
    source: str
    sss: bool | None


@functools.lru_cache(maxsize=4)
def noise_covariance(path: Path, changed_ns: int) -> Noise:
    """Read a noise covariance, or compute it from an empty-room recording, 1–40 Hz.

    Parameters
    ----------
    path
        ``…-cov.fif`` or a recording.
    changed_ns
        Time of its last change, so that another content is another one.

    Raises
    ------
    DataError
        If it cannot be read.
    """
    if path.name.endswith(("-cov.fif", "_cov.fif")):
        try:
            has_an_end(path)
            _has_room(path)
            cov = mne.read_cov(path, verbose="ERROR")
        except Exception as error:
            raise DataError(f"{path.name} cannot be read as a noise covariance ({error}).") from error
        return Noise(_renamed(cov, [normalised(n) for n in cov.ch_names]), path.name, None)
    raw = open_raw(path)
    picks = mne.pick_types(raw.info, meg=True, ref_meg=False, exclude=())
    try:
        data = raw.get_data(picks=picks)
    except Exception as error:
        raise DataError(
            f"{path.name} opens, but its signal cannot be read: it is probably cut off ({error})."
        ) from error
    for start in range(0, len(data), BLOCK):
        data[start : start + BLOCK] = band_passed(data[start : start + BLOCK], float(raw.info["sfreq"]))
    info = mne.pick_info(raw.info, picks)
    with info._unlock():
        info["projs"], info["comps"], info["bads"] = [], [], []
    whole = mne.io.RawArray(data, info, copy=None, verbose="ERROR")
    cov = mne.compute_raw_covariance(whole, method="empirical", verbose="ERROR")
    return Noise(_renamed(cov, [normalised(n) for n in cov.ch_names]), path.name, is_sss(raw.info))


_SAYS_N = re.escape(struct.pack(">3i", FIFF.FIFF_MNE_COV_DIM, FIFF.FIFFT_INT, 4)) + b".{4}(.{4})"
"""Where a FIF file says how many sensors a covariance is of: kind, type and size, the next part's place, the number."""


def _has_room(path: Path) -> None:
    """Raise ValueError if a covariance says more sensors than it can hold: MNE makes room for their square."""
    content = path.read_bytes()
    for said in re.finditer(_SAYS_N, content, re.DOTALL):
        n = struct.unpack(">i", said[1])[0]
        # A full one holds half of its square, in 4 bytes each or more; a diagonal of hundreds has names beside it.
        if n * n > 64 * len(content):
            raise ValueError(f"its {len(content)} bytes say that they are of {n} sensors")


def _renamed(cov: Any, names: list[str]) -> Any:
    """Return a covariance with other names, as a full matrix, without projectors."""
    matrix = np.diag(cov.data) if cov["diag"] else cov.data
    return mne.Covariance(matrix, names, [], [], cov["nfree"])


def noise_report(noise: Noise, names: Sequence[str], kinds: NDArray[Any]) -> tuple[list[str], list[Finding]]:
    """Return sentences on the noise of the sensors and a finding on those far noisier than their kind."""
    power = dict(zip(noise.cov.ch_names, np.diag(noise.cov.data), strict=True))
    sentences: list[str] = []
    loud: list[str] = []
    for kind, unit, scale in (("mag", "fT", 1e15), ("grad", "fT/cm", 1e13)):
        own = [n for n, k in zip(names, kinds, strict=True) if k == kind and n in power]
        if own:
            sd = np.sqrt(np.array([power[n] for n in own]))
            middle = float(np.median(sd))
            sentences.append(
                f"noise of the sensors in {noise.source}: {_two_digits(middle * scale)} {unit} (median {kind})"
            )
            loud += [n for n, s in zip(own, sd, strict=True) if s > 5 * middle > 0]
    if not loud:
        return sentences, []
    text = f"{len(loud)} sensors have more than five times the usual noise in {noise.source}: {', '.join(loud[:4])}"
    return sentences, [Finding("info", "noisy-sensors", text, fix="mark them as bad in channels.tsv")]


def _two_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def whitened(data: Array, names: Sequence[str], info: Any, noise: Noise) -> Array:
    """Return (sensors, times) whitened: multiplied so that the noise has unit variance and no correlation.

    Rows of NaN stay so and take no part.

    Raises
    ------
    DataError
        If the covariance lacks sensors of the recording.
    """
    rows = np.flatnonzero(np.isfinite(data).all(1))
    own = [names[i] for i in rows]
    missing = sorted(set(own) - set(noise.cov.ch_names))
    if missing:
        raise DataError(
            f"{noise.source} lacks {len(missing)} sensors of this recording: {', '.join(missing[:4])}.",
            next_step="Give an empty-room recording with the same sensors, or whiten=off.",
        )
    used = mne.pick_info(info, rows)
    mne.rename_channels(used, dict(zip(used.ch_names, own, strict=True)), verbose="ERROR")
    with used._unlock():
        used["projs"], used["comps"], used["bads"] = [], [], []
    cov = mne.pick_channels_cov(noise.cov, own, ordered=True)
    operator, _ = mne.cov.compute_whitener(cov, used, picks=np.arange(len(own)), rank=None, verbose="ERROR")
    result = np.full_like(data, np.nan)
    result[rows] = operator @ data[rows]
    return result


def with_noise(
    data: NDArray[np.float64],
    info: Any,
    names: Sequence[str],
    kinds: NDArray[Any],
    file: RecordingFile,
    options: Mapping[str, Any],
) -> tuple[NDArray[np.float64], list[str], list[Finding]]:
    """Return the signal, whitened where that was asked for, with what is known of the sensors' noise."""
    name = str(options.get("noise_file", ""))
    if not name:
        if options["whiten"]:
            raise DataError(
                f"{file.path.name} has no noise covariance to whiten it with.",
                allowed="…-cov.fif beside it, sub-emptyroom/ses-…/meg/…_task-noise_meg.fif",
                next_step="Add one, or say whiten=off.",
            )
        return data, [], []
    path = (file.path.parent / name).resolve()
    try:
        noise = noise_covariance(path, path.stat().st_mtime_ns)
    except (DataError, OSError) as error:
        if options["whiten"]:
            raise DataError(str(error), next_step="Replace it, or say whiten=off.") from error
        return data, [], [Finding("warning", "noise-unreadable", f"noise of the sensors: {error}", path=str(path))]
    if noise.sss is not None and noise.sss != is_sss(info):
        done = "was" if noise.sss else "was not"
        text = f"{noise.source} {done} processed by MaxFilter, other than the recording: it does not say its noise"
        if options["whiten"]:
            raise DataError(f"{text}.", next_step="Process both alike, or say whiten=off.")
        return data, [], [Finding("info", "noise-differs", text, fix="process both alike")]
    said, findings = noise_report(noise, names, kinds)
    if not options["whiten"]:
        return data, said, findings
    text = "whitened with the noise covariance: values have no unit, and every row is a sum over all sensors"
    return whitened(data, names, info, noise), [*said, text], findings

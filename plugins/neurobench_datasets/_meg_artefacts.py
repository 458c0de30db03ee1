"""What is no brain signal in an MEG recording: flat and saturated channels, artefacts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mne
import numpy as np
import scipy
from numpy.typing import NDArray

from neurobench import Finding
from neurobench_datasets._meg_settings import BAND_HZ

Array = NDArray[np.float64]

LIMITS = {"mag": 4e-12, "grad": 4000e-13}
"""Peak-to-peak limits in T and T/m that MNE's and FieldTrip's examples use."""

SEGMENT_S = 0.5
"""Half a period of the slowest wave kept, so that its whole swing is seen."""

FLAT_S, FLAT_PERCENT = 0.05, 5.0
"""A channel that holds one value this long counts as flat there, and is bad with this share of the recording."""

NOISY_SHARE = 0.5
"""A channel over the limit in more segments than this is bad itself; one that few others accompany."""

LOUD_SHARE = 0.2
"""Where more channels than this share are noisy, it is the recording and not the channels."""

BLOCK = 32
"""Channels worked on at a time, for memory's sake."""

LOST_SHARE = 0.5


# ---------------------------------------------------------------- channels


def bad_by_value(
    data: Array, sfreq: float, skipped: Sequence[tuple[float, float]] = ()
) -> tuple[list[int], list[int], list[tuple[float, float]]]:
    """Return rows that are flat, rows that are saturated, and the spans in which other rows are one or the other.

    Parameters
    ----------
    data
        (sensors, times); rows of NaN are passed over.
    sfreq
        Sampling frequency in Hz.
    skipped
        Spans in seconds in which nothing was recorded.
    """
    flat: list[int] = []
    saturated: list[int] = []
    spans: list[tuple[float, float]] = []
    usable = np.flatnonzero(np.isfinite(data).all(1))
    if data.shape[1] < 3 or data.shape[1] / sfreq <= FLAT_S:
        return flat, saturated, spans
    for start in range(0, len(usable), BLOCK):
        rows = usable[start : start + BLOCK]
        part = mne.create_info([str(r) for r in rows], sfreq, "mag", verbose="ERROR")
        raw = mne.io.RawArray(data[rows], part, copy=None, verbose="ERROR")
        raw.set_annotations(
            mne.Annotations([a for a, _ in skipped], [b - a for a, b in skipped], ["BAD_ACQ_SKIP"] * len(skipped))
        )
        found, bads = mne.preprocessing.annotate_amplitude(
            raw, flat=0.0, bad_percent=FLAT_PERCENT, min_duration=FLAT_S, picks="all", verbose="ERROR"
        )
        for row in map(int, bads):
            (saturated if _at_its_ends(data[row]) else flat).append(row)
        spans += [(float(a), float(a + d)) for a, d in zip(found.onset, found.duration, strict=True)]
    return flat, saturated, spans


def _at_its_ends(values: Array) -> bool:
    """Whether a channel that often holds a value holds its largest or smallest: it met the end of its range."""
    held = values[1:][np.diff(values) == 0]
    return bool(np.ptp(values) > 0 and np.isin(held, (values.min(), values.max())).mean() > 0.5)


# ---------------------------------------------------------------- spans


@dataclass(frozen=True)
class Artefacts:
    """What the peak-to-peak limits found.

    Parameters
    ----------
    spans
        (start, end) in seconds.
    noisy
        Rows that are over their limit most of the time, few of them.
    loud
        Kinds of sensors of which many are so, with their share: the limit then says nothing of that kind.
    """

    spans: tuple[tuple[float, float], ...] = ()
    noisy: tuple[int, ...] = ()
    loud: tuple[tuple[str, float], ...] = ()


def band_passed(data: Array, sfreq: float) -> Array:
    """Return (sensors, times) in the band in which artefacts are judged, without phase shift."""
    low, high = BAND_HZ
    edges: Any = [low, high] if high < 0.45 * sfreq else low
    kind = "bandpass" if high < 0.45 * sfreq else "highpass"
    sos = scipy.signal.butter(2, edges, btype=kind, fs=sfreq, output="sos")
    pad = min(data.shape[1] - 1, round(3 * sfreq / low))
    return np.asarray(scipy.signal.sosfiltfilt(sos, data - data.mean(1, keepdims=True), axis=1, padlen=pad))


def find_artefacts(data: Array, kinds: NDArray[Any], sfreq: float, factor: float) -> Artefacts:
    """Find segments in which a sensor's swing in the band is over its limit.

    Parameters
    ----------
    data
        (sensors, times) in T or T/m; rows of NaN are passed over.
    kinds
        (sensors,) ``mag`` or ``grad``.
    sfreq
        Sampling frequency in Hz.
    factor
        On the limits.
    """
    rows = np.flatnonzero(np.isfinite(data).all(1))
    length = max(2, round(SEGMENT_S * sfreq))
    n_segments = data.shape[1] // length
    if not len(rows) or n_segments == 0:
        return Artefacts()
    starts = np.arange(n_segments) * length
    over = np.zeros((len(rows), n_segments), bool)
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        filtered = band_passed(data[block], sfreq)
        # The last segment takes what is left over, so that no sample goes unjudged.
        swing = np.maximum.reduceat(filtered, starts, axis=1) - np.minimum.reduceat(filtered, starts, axis=1)
        limit = factor * np.array([LIMITS.get(str(k), np.inf) for k in kinds[block]])
        over[start : start + BLOCK] = swing > limit[:, None]
    noisy = over.mean(1) > NOISY_SHARE
    # Interference that nobody removed, or another unit, hides artefacts, and is no reason to use nothing.
    loud = []
    for kind in sorted(set(kinds[rows].tolist())):
        own = kinds[rows] == kind
        if (share := float(noisy[own].mean())) > LOUD_SHARE:
            loud.append((str(kind), share))
            noisy[own], over[own] = False, False
    hit = over[~noisy].any(0)
    ends = np.append(starts[1:], data.shape[1])
    spans = merged([(float(s / sfreq), float(e / sfreq)) for s, e, h in zip(starts, ends, hit, strict=True) if h])
    return Artefacts(tuple(spans), tuple(int(r) for r in rows[noisy]), tuple(loud))


def annotated_spans(raw: Any, begin: str = "bad") -> list[tuple[float, float]]:
    """Return the spans of annotations whose text begins so, in seconds from the first sample."""
    return [
        (float(onset) - raw.first_time, float(onset + duration) - raw.first_time)
        for onset, duration, text in zip(
            raw.annotations.onset, raw.annotations.duration, raw.annotations.description, strict=True
        )
        if str(text).lower().startswith(begin)
    ]


def merged(spans: Sequence[tuple[float, float]], duration: float = np.inf) -> list[tuple[float, float]]:
    """Return spans in order, those that touch joined, cut to the recording."""
    result: list[tuple[float, float]] = []
    for start, end in sorted((max(0.0, a), min(b, duration)) for a, b in spans):
        if end < start or start >= duration:
            continue
        if result and start <= result[-1][1] + 1e-9:
            result[-1] = (result[-1][0], max(result[-1][1], end))
        else:
            result.append((float(start), float(end)))
    return result


def lost(spans: Sequence[tuple[float, float]], duration: float) -> tuple[float, list[Finding]]:
    """Return the share of a recording inside bad spans, and what is to be said where it is large."""
    share = sum(b - a for a, b in spans) / duration
    if share <= LOST_SHARE:
        return share, []
    text = f"{share:.0%} of the recording are artefacts and are not used"
    fix = "look at it; raise the limits with reject=FACTOR, or turn them off with reject=off"
    return share, [Finding("warning", "mostly-artefacts", text, fix=fix)]


# ---------------------------------------------------------------- a recording


def without_artefacts(
    data: NDArray[np.float64], raw: Any, names: Sequence[str], kinds: NDArray[Any], factor: float
) -> tuple[list[tuple[float, float]], list[str], list[Finding]]:
    """Make bad rows NaN; return bad spans in seconds, sentences of provenance and findings."""
    sfreq = float(raw.info["sfreq"])
    duration = data.shape[1] / sfreq
    flat, saturated, spans = bad_by_value(data, sfreq, annotated_spans(raw, "bad_acq_skip"))
    data[[*flat, *saturated]] = np.nan
    spans += annotated_spans(raw)
    found = find_artefacts(data, kinds, sfreq, factor) if factor else Artefacts()
    data[list(found.noisy)] = np.nan
    findings = []
    for rows, code, what in (
        (flat, "flat-channels", "hold one value for a while"),
        (saturated, "saturated-channels", "are at the end of their range for a while"),
        (found.noisy, "noisy-channels", "are over the limit of artefacts most of the time"),
    ):
        if rows:
            shown = ", ".join(names[i] for i in rows[:6]) + (" and more" if len(rows) > 6 else "")
            text = f"{len(rows)} of {len(names)} sensors {what} and are left out: {shown}"
            findings.append(Finding("warning", code, text, fix="mark them as bad in channels.tsv"))
    for kind, share in found.loud:
        text = (
            f"{share:.0%} of the sensors of kind {kind} are over the limit of artefacts most of the time, so "
            "interference hides them and none are looked for in these sensors"
        )
        fix = "remove interference first (MaxFilter, gradient compensation, projectors), or say reject=FACTOR"
        findings.append(Finding("warning", "loud-recording", text, fix=fix))
    spans = merged([*spans, *found.spans], duration)
    share, more = lost(spans, duration)
    how = (
        f"over {4 * factor:.3g} pT or pT/cm from peak to peak in {SEGMENT_S:g} s, {BAND_HZ[0]:g}–{BAND_HZ[1]:g} Hz"
        if factor and len(found.loud) < len(set(kinds.tolist()))
        else "those marked in the file; limits not applied"
    )
    said = [f"artefacts ({how}): {share:.0%} of a recording left out"]
    return spans, said, findings + more

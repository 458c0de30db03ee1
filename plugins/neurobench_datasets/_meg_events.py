"""What happened during an MEG recording: ``events.tsv``, the trigger channel, or annotations, and what disagrees.

Onsets count from the first sample of the recording, as in BIDS. Devices count from when they were switched on
(``first_samp``), and files of events made from that counter are off by it: where the trigger channel shows this, it is
put right and said.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mne
import numpy as np
from numpy.typing import NDArray

from neurobench import DataError, Event, Finding
from neurobench_datasets._tables import find_column, read_table, read_text, whole

TRIGGERS = ("STI101", "STI 014", "STI014", "STI201", "UPPT001", "UPPT002", "STIM", "TRIGGER")
"""Channels that carry whole codes, in the order in which they are tried; then every other stimulus channel."""

SHORT_S = 0.002
"""Codes that last less are steps on the way to another, where most last longer."""

DELAY_S = 0.2
"""A constant difference below this is a delay of the stimulus that somebody corrected, not a mistake."""

MATCHED = 0.9
"""Share of events with a trigger from which on the two agree."""


@dataclass(frozen=True)
class Raised:
    """One entry of ``events.tsv`` or of a trigger channel: onset in seconds, what it is called, its code."""

    onset_s: float
    text: str = ""
    code: str = ""


def stimulus_picks(raw: Any, wanted: str) -> NDArray[np.int64]:
    """Return the channels that may hold triggers: those of kind stimulus, and the named one whatever its kind."""
    picks = mne.pick_types(raw.info, meg=False, stim=True).tolist()
    if wanted in raw.ch_names and raw.ch_names.index(wanted) not in picks:
        picks.append(raw.ch_names.index(wanted))
    return np.array(picks, np.int64)


def stimulus_channels(raw: Any, picks: NDArray[np.int64], values: NDArray[np.float64]) -> Any:
    """Return the trigger channels alone, in memory: searching them in a file would read all of it for each.

    Parameters
    ----------
    raw
        The whole recording.
    picks, values
        The channels, and (channels, times) what they hold.
    """
    info = mne.create_info([raw.ch_names[i] for i in picks], raw.info["sfreq"], "stim", verbose="ERROR")
    return mne.io.RawArray(values, info, first_samp=raw.first_samp, verbose="ERROR")


def read_events(
    raw: Any, stimulus: Any | None, options: Mapping[str, Any], folder: Path
) -> tuple[list[Event], list[str], list[Finding]]:
    """Return the events of an open recording, sentences of provenance, and what was noticed.

    Parameters
    ----------
    raw
        As MNE opens it.
    stimulus
        As :func:`stimulus_channels` returns them; None: there are none.
    options
        Of the recording: ``events_file`` relative to ``folder``, ``conditions``, ``button``, ``trigger``,
        ``stimuli`` (whether there should be any).
    folder
        Of the recording.
    """
    findings: list[Finding] = []
    written: list[Raised] = []
    name = str(options.get("events_file", ""))
    if name:
        try:
            if options.get("stimuli") or not _only_header(folder / name):
                written = _written(folder / name)
        except (DataError, OSError) as error:
            fix = "give it columns onset and trial_type (or value), onset in seconds from the first sample"
            findings.append(Finding("warning", "events-unreadable", str(error), fix=fix, path=str(folder / name)))
    channel, triggers = _triggers(stimulus, str(options.get("trigger", "")), bool(options.get("button")), findings)
    if written:
        source = Path(name).name
        written = _against_triggers(written, triggers, raw, channel, source, findings)
    elif triggers:
        source, written = f"trigger channel {channel}", triggers
    else:
        source, written = "annotations", _annotated(raw)
    duration = len(raw.times) / float(raw.info["sfreq"])
    written = _inside(written, duration, source, findings)
    events, used = _named(written, options, source, findings)
    if not events and options.get("stimuli"):
        findings.append(_nothing(stimulus, source if written else "", options))
    provenance = [f"events from {'events.tsv' if name and source == Path(name).name else source}"] if events else []
    if events and used:
        provenance.append("events that no condition names are left out")
    return sorted(events, key=lambda e: (e.onset_s, e.condition)), provenance, findings


# ---------------------------------------------------------------- where events come from


def _written(path: Path) -> list[Raised]:
    """Return the rows of ``events.tsv`` that have an onset and a name or a code."""
    table = read_table(path)
    columns = {c: find_column(list(table.columns), (c,)) for c in ("onset", "trial_type", "value")}
    if not columns["onset"]:
        raise DataError(f"{path.name} has no column onset; it has {', '.join(table.columns[:6])}.")
    if not (columns["trial_type"] or columns["value"]):
        raise DataError(f"{path.name} has neither trial_type nor value; it has {', '.join(table.columns[:6])}.")
    rows = []
    empty = [None] * len(table)
    texts = table[columns["trial_type"]] if columns["trial_type"] else empty
    codes = table[columns["value"]] if columns["value"] else empty
    for onset, text, code in zip(table[columns["onset"]], texts, codes, strict=True):
        try:
            seconds = float(onset)
        except (TypeError, ValueError):
            seconds = np.nan
        if np.isfinite(seconds) and (isinstance(text, str) or isinstance(code, str)):
            rows.append(Raised(seconds, text if isinstance(text, str) else "", _code(code)))
    if not rows:
        raise DataError(f"no row of {path.name} has both an onset and a trial_type or value.")
    return rows


def _only_header(path: Path) -> bool:
    """Whether a table has names of columns and no rows, as exporters write it for rest."""
    return "\n" not in read_text(path).strip()


def _code(value: Any) -> str:
    text = value if isinstance(value, str) else ""
    return text[:-2] if text.endswith(".0") else text


def _triggers(raw: Any | None, wanted: str, button: bool, findings: list[Finding]) -> tuple[str, list[Raised]]:
    """Return the first trigger channel with an event, or the named one, and its events."""
    stimulus = list(raw.ch_names) if raw is not None else []
    if wanted and wanted not in stimulus:
        shown = ", ".join(stimulus) or "none"
        text = f"there is no trigger channel {wanted}; the recording's stimulus channels: {shown}"
        findings.append(Finding("warning", "trigger-channel", text, fix="name one of them: trigger=…"))
        return "", []
    order = [wanted] if wanted else [n for n in TRIGGERS if n in stimulus] + [n for n in stimulus if n not in TRIGGERS]
    for name in order if raw is not None else ():
        found = _codes(raw, name, button)
        if len(found):
            sfreq = float(raw.info["sfreq"])
            return name, [Raised((sample - raw.first_samp) / sfreq, "", str(code)) for sample, code in found]
    return (order[0] if order else ""), []


def _codes(raw: Any, name: str, button: bool) -> list[tuple[int, int]]:
    """Return (sample, code) of every event of one channel."""
    with warnings.catch_warnings(), mne.use_log_level("ERROR"):
        warnings.simplefilter("ignore")
        # Elekta's acquisition wraps the highest bit into a negative number.
        negative = bool((raw.get_data(picks=[name]) < 0).any()) and name.startswith("STI")
        parts = ((0x00FF, "and"), (0xFF00, "and")) if button else ((None, "and"),)
        found: list[tuple[int, int]] = []
        for mask, kind in parts:
            more = {"stim_channel": name, "uint_cast": negative, "mask": mask, "mask_type": kind}
            every = mne.find_events(raw, shortest_event=1, **more)
            # A cable's lines do not rise at once: the codes on the way last a sample. Where all last a sample, as in
            # recordings of low rate, they are real.
            lasting = mne.find_events(raw, shortest_event=1, min_duration=SHORT_S, **more)
            chosen = lasting if len(lasting) >= len(every) / 2 else every
            found += [(int(s), int(c)) for s, _, c in chosen if c > 0]
    return sorted(found)


def _annotated(raw: Any) -> list[Raised]:
    """Return annotations that are no artefacts, as events."""
    skip = ("bad", "edge")
    return [
        Raised(float(onset) - raw.first_time, str(text))
        for onset, text in zip(raw.annotations.onset, raw.annotations.description, strict=True)
        if not str(text).lower().startswith(skip)
    ]


# ---------------------------------------------------------------- what disagrees


def _share(onsets: NDArray[np.float64], triggers: NDArray[np.float64], tolerance: float) -> float:
    """Return the share of onsets with a trigger within ``tolerance``; both sorted or not."""
    ordered = np.sort(triggers)
    place = np.clip(np.searchsorted(ordered, onsets), 1, max(len(ordered) - 1, 1))
    near = np.abs(onsets - ordered[np.minimum(place, len(ordered) - 1)])
    return float((np.minimum(near, np.abs(onsets - ordered[place - 1])) <= tolerance).mean())


def constant_shift(
    onsets: NDArray[np.float64], triggers: NDArray[np.float64], first_s: float, tolerance: float
) -> tuple[float, float]:
    """Return the seconds by which onsets are late against triggers, and the share that then agrees.

    None at all is preferred, then the device's counter, then whatever difference is the most common.
    """
    likely = [0.0, first_s]
    differences = np.sort((onsets[:40, None] - triggers[None, :2000]).ravel())
    ends = np.searchsorted(differences, differences + tolerance, side="right")
    start = int(np.argmax(ends - np.arange(len(ends))))
    likely.append(float(np.median(differences[start : ends[start]])))
    shares = [_share(onsets - shift, triggers, tolerance) for shift in likely]
    best = next((i for i, share in enumerate(shares) if share >= MATCHED), int(np.argmax(shares)))
    return likely[best], shares[best]


def _against_triggers(
    written: list[Raised], triggers: list[Raised], raw: Any, channel: str, source: str, findings: list[Finding]
) -> list[Raised]:
    """Return the written events, put right where the trigger channel shows a constant shift; what differs is said."""
    sfreq, first_s = float(raw.info["sfreq"]), float(raw.first_time)
    duration = len(raw.times) / sfreq
    onsets = np.array([r.onset_s for r in written])
    if not triggers:
        late = first_s > DELAY_S and (onsets >= first_s).all() and (onsets - first_s < duration).all()
        if late and (onsets >= duration).any():
            text = (
                f"the onsets of {source} lie outside the recording ({duration:.4g} s) and fit if the device's counter "
                f"at its start ({first_s:.4g} s) is subtracted, which is done"
            )
            findings.append(_shifted(text))
            return [Raised(r.onset_s - first_s, r.text, r.code) for r in written]
        return written
    # Tables round to milliseconds, triggers to samples.
    tolerance = max(1.5 / sfreq, 0.002)
    shift, share = constant_shift(onsets, np.array([r.onset_s for r in triggers]), first_s, tolerance)
    if share < MATCHED:
        text = (
            f"{(1 - share) * len(written):.0f} of {len(written)} events of {source} have no trigger in {channel} "
            f"({len(triggers)} triggers), with no constant shift between them; {source} is used"
        )
        fix = "check that it belongs to this recording, or remove it, so that the trigger channel is used"
        findings.append(Finding("warning", "events-differ", text, fix=fix))
        return written
    counts = Counter(r.code for r in written if r.code)
    have = Counter(r.code for r in triggers)
    apart = [f"{c}: {n} and {have[c]}" for c, n in sorted(counts.items()) if n != have[c]]
    if apart:
        text = f"{source} and {channel} differ in how often a code occurs ({', '.join(apart[:4])}); {source} is used"
        findings.append(Finding("warning", "events-differ", text, fix="say in the table which events are left out"))
    if abs(shift) <= tolerance:
        return written
    if abs(shift) <= DELAY_S:
        text = f"the onsets of {source} are {shift * 1000:.0f} ms after the triggers of {channel}: taken as its delay"
        findings.append(Finding("info", "events-delayed", text))
        return written
    counter = ", the device's counter at its start (first_samp)" if abs(shift - first_s) <= tolerance else ""
    text = f"the onsets of {source} are {shift:.4g} s later than the triggers of {channel}{counter}: it is subtracted"
    findings.append(_shifted(text))
    return [Raised(r.onset_s - shift, r.text, r.code) for r in written]


def _shifted(text: str) -> Finding:
    return Finding("warning", "events-shifted", text, fix="let onset count from the first sample of the recording")


def _inside(written: list[Raised], duration: float, source: str, findings: list[Finding]) -> list[Raised]:
    inside = [r for r in written if 0 <= r.onset_s < duration]
    if len(inside) < len(written):
        outside = [r.onset_s for r in written if not 0 <= r.onset_s < duration]
        text = (
            f"{len(outside)} of {len(written)} events of {source} lie outside the recording of {duration:.4g} s "
            f"(the first at {outside[0]:.4g} s) and are left out"
        )
        fix = "let onset count in seconds from the first sample of this recording"
        findings.append(Finding("warning", "events-outside", text, fix=fix))
    return inside


def _named(
    written: Sequence[Raised], options: Mapping[str, Any], source: str, findings: list[Finding]
) -> tuple[list[Event], bool]:
    """Return the events with their conditions, and whether a table of conditions left others out."""
    table = {str(code): str(condition) for code, condition in options.get("conditions", ())}
    if not table:
        return [Event(r.onset_s, r.text or f"trigger-{r.code}") for r in written], False
    events, known, others = [], set(), Counter[str]()
    high = Counter(r.code for r in written if (whole(r.code) or 0) > 255 and r.code not in table)
    button = high.most_common(1)[0][0] if options.get("button") and high else ""
    for r in written:
        key = next((k for k in (r.text.lower(), r.code) if k and k in table), "")
        if key:
            known.add(key)
            events.append(Event(r.onset_s, table[key]))
        elif button and r.code == button:
            events.append(Event(r.onset_s, str(options["button"])))
        else:
            others[r.text or r.code] += 1
    absent = [f"{code} ({condition})" for code, condition in table.items() if code not in known]
    if written and absent:
        shown = ", ".join(f"{code} ×{n}" for code, n in others.most_common(6)) or "none"
        text = f"events {', '.join(absent)} do not occur in {source}; events that no condition names: {shown}"
        fix = "name the codes of this recording: events=code:condition+…; another channel: trigger=…"
        findings.append(Finding("warning", "event-codes", text, fix=fix))
    return events, bool(others)


def _nothing(raw: Any | None, source: str, options: Mapping[str, Any]) -> Finding:
    stimulus = list(raw.ch_names) if raw is not None else []
    state = options.get("state", "its")
    said = f"none of the events of {source} has a condition" if source else "there is no events.tsv and no trigger"
    channels = f"its stimulus channels: {', '.join(stimulus[:6])}" if stimulus else "it has no stimulus channel"
    return Finding(
        "warning",
        "no-events",
        f"a recording of state {state} has no events: {said}; {channels}",
        fix="write …_events.tsv with onset (seconds from the first sample) and trial_type beside it, or name the "
        "channel and its codes: trigger=…, events=code:condition+…",
    )

"""How MEG is read: the parameters that every dataset with MEG shares, checked once, and what they mean."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from neurobench import ConfigError, SignalSpec, closest

MEG_SPEC = SignalSpec(window_s=4.0, patch_s=0.25, sfreq=128.0, band_hz=(1.0, 40.0), scaling="training")
"""4 s windows of 250 ms patches, 1–40 Hz at 128 Hz, one robust scale a sensor type."""

BAND_HZ = (1.0, 40.0)
"""Band in which artefacts and noise are judged: that of the windows."""

SENSORS = ("mag", "all")

STATES: Mapping[str, tuple[str, ...]] = {
    "rest": ("rest", "resting", "restingstate", "eyesopen", "eyesclosed"),
    "auditory": ("auditory", "aef", "passive", "tones"),
    "somatosensory": ("somatosensory", "sef", "mns", "somato", "mediannerve"),
}
"""State of a recording: task labels that mean it."""

CAMCAN_STATES = ("rest", "passive", "smt")
"""States of Cam-CAN's MEG, as its files name them."""

WITH_STIMULI = frozenset({"auditory", "somatosensory", "passive", "smt"})
"""States in which something has to happen; a recording of one of these without events is said."""


@dataclass(frozen=True)
class MegSettings:
    """How recordings are read.

    Parameters
    ----------
    sensors
        ``mag``: one sensor a site (the magnetometer where there is one). ``all``: every sensor.
    conditions
        (code or text, condition) pairs; with any, only these are events.
    button
        Condition of the most frequent code above 255; empty: there is none.
    trigger
        Name of the trigger channel; empty: found.
    reject
        Factor on the peak-to-peak limits of artefacts; 0: none are looked for.
    whiten
        Whether sensors are whitened with the noise covariance.
    """

    sensors: str = "mag"
    conditions: tuple[tuple[str, str], ...] = ()
    button: str = ""
    trigger: str = ""
    reject: float = 1.0
    whiten: bool = False

    @classmethod
    def of(
        cls,
        component: str,
        *,
        sensors: str = "mag",
        events: str = "",
        trigger: str = "",
        reject: str = "on",
        whiten: str = "off",
    ) -> MegSettings:
        """Check the parameters as a user writes them.

        Parameters
        ----------
        component
            Name of the dataset, for messages.
        sensors, trigger
            As in the class.
        events
            ``6:tone300+7:tone600``; empty: every event keeps the name that the recording gives it.
        reject
            ``on``, ``off`` or a factor on the usual limits.
        whiten
            ``on`` or ``off``.
        """
        if sensors not in SENSORS:
            raise ConfigError(
                f"{component} has no sensors {sensors!r}.",
                allowed=", ".join(SENSORS),
                likely=closest(sensors, SENSORS),
            )
        if whiten not in ("on", "off"):
            raise ConfigError(f"{component} cannot use whiten={whiten}.", allowed="on, off")
        return cls(sensors, conditions(component, events), "", trigger, _factor(component, reject), whiten == "on")

    def options(self) -> dict[str, Any]:
        """Return plain values that go with every recording."""
        return {
            "sensors": self.sensors,
            "conditions": [list(pair) for pair in self.conditions],
            "button": self.button,
            "trigger": self.trigger,
            "reject": self.reject,
            "whiten": self.whiten,
        }


def task_labels(rest: str, auditory: str, somatosensory: str) -> dict[str, tuple[str, ...]]:
    """Return state to the task labels that mean it, from labels joined by ``+``."""
    labels = {"rest": rest, "auditory": auditory, "somatosensory": somatosensory}
    return {
        state: tuple(re.sub(r"[^a-z0-9]", "", label.lower()) for label in text.split("+"))
        for state, text in labels.items()
    }


def conditions(component: str, text: str) -> tuple[tuple[str, str], ...]:
    """Return the (code or text, condition) pairs of ``6:tone300+7:tone600``."""
    pairs: list[tuple[str, str]] = []
    for part in text.split("+") if text else []:
        code, colon, condition = (p.strip() for p in part.partition(":"))
        if not (code and colon and condition):
            raise ConfigError(
                f"{component} cannot read {part!r} in events={text}.",
                allowed="code:condition, joined by +",
                next_step=f"For example {component}[events=6:tone300+7:tone600].",
            )
        if code.lower() in (known for known, _ in pairs):
            raise ConfigError(f"events={text} of {component} names {code!r} twice.", next_step="Leave one out.")
        pairs.append((code.lower(), condition))
    return tuple(pairs)


def camcan_settings(state: str, *, events: str, reject: str, whiten: str) -> tuple[tuple[str, ...], MegSettings]:
    """Return the states of Cam-CAN to read, and how, from the parameters as a user writes them."""
    allowed = (*CAMCAN_STATES, "all")
    if state not in allowed:
        raise ConfigError(
            f"camcan has no MEG state {state!r}.", allowed=", ".join(allowed), likely=closest(state, allowed)
        )
    how = MegSettings.of("camcan", events=events, reject=reject, whiten=whiten)
    return (CAMCAN_STATES if state == "all" else (state,)), how


def _factor(component: str, text: str) -> float:
    named = {"on": 1.0, "off": 0.0}
    if text in named:
        return named[text]
    try:
        factor = float(text)
    except ValueError:
        factor = 0.0
    if not 0 < factor < 1000:
        raise ConfigError(
            f"{component} cannot use reject={text}.",
            allowed="on, off, or a factor on the usual limits such as 1.5",
            likely=closest(text, named),
        )
    return factor

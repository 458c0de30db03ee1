"""What a pretraining learns from: one objective a run, under the same optimiser, steps and masks for every backbone.

An objective is written as components are, ``reconstruction[visible=0.25]``; its parameters are the fields of its class.
What it does to weights is in :mod:`neurobench.learners`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from neurobench.components import label_of, read_component
from neurobench.errors import ConfigError, unknown_name
from neurobench.identity import seed_for

__all__ = ["OBJECTIVES", "RECONSTRUCTION", "Latent", "Objective", "Reconstruction", "parse_objective"]


@dataclass(frozen=True)
class Objective:
    """What backbones are pretrained to do.

    Attributes
    ----------
    name
        Name on the command line.
    work
        How long a step takes, in steps of the reconstruction: for estimates alone.
    """

    name: ClassVar[str]
    work: ClassVar[float] = 1.0

    @property
    def label(self) -> str:
        """The name, and the parameters that are not at their defaults."""
        return label_of(self.name, asdict(self), asdict(type(self)()))

    @property
    def is_default(self) -> bool:
        """Whether it is what is done where nothing is said."""
        return self == RECONSTRUCTION

    @property
    def draws_ratios(self) -> bool:
        """Whether every window has a ratio of its own."""
        return False

    def identity(self) -> dict[str, Any]:
        """Return the name and all parameters, defaults among them."""
        return {"name": self.name, "parameters": asdict(self)}

    def mean_ratio(self, ratio: float) -> float:
        """Return which fraction of the valid tokens is scored on average, where ``ratio`` was asked for."""
        return ratio

    def ratio(self, ratio: float, seed: int, step: int | str, subject: str, window: str) -> float:
        """Return which fraction of one window is scored, where ``ratio`` was asked for.

        Its axes are those of the window's mask, so every backbone and every mask meets the same ratios.
        """
        return ratio


@dataclass(frozen=True)
class Reconstruction(Objective):
    """Fill hidden tokens with the signal that was there.

    Parameters
    ----------
    visible
        Weight of the error of visible tokens; that of scored ones has the rest.
    ratio_from, ratio_to
        Every window draws its ratio uniformly between them; 0 and 0: all have the run's.

    References
    ----------
    Weights of .75 and .25, and ratios from 0 to .8: arXiv:2406.17086.
    """

    name = "reconstruction"

    visible: float = 0.0
    ratio_from: float = 0.0
    ratio_to: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.visible < 1:
            raise ConfigError(
                f"objective {self.label!r}: visible cannot be {self.visible:g}.",
                allowed="a number from 0 to below 1: what is left is the weight of hidden tokens",
            )
        if self.draws_ratios and not 0 <= self.ratio_from < self.ratio_to < 1:
            raise ConfigError(
                f"objective {self.label!r}: no ratio lies between {self.ratio_from:g} and {self.ratio_to:g}.",
                allowed="0 ≤ ratio_from < ratio_to < 1, such as ratio_to=0.8",
            )

    @property
    def draws_ratios(self) -> bool:
        """Whether every window has a ratio of its own."""
        return self.ratio_from != 0 or self.ratio_to != 0

    def mean_ratio(self, ratio: float) -> float:
        """Return which fraction of the valid tokens is scored on average, where ``ratio`` was asked for."""
        return round((self.ratio_from + self.ratio_to) / 2, 6) if self.draws_ratios else ratio

    def ratio(self, ratio: float, seed: int, step: int | str, subject: str, window: str) -> float:
        """Return which fraction of one window is scored."""
        if not self.draws_ratios:
            return ratio
        # Not at the top: completion and help read options, and wait for nothing heavy.
        import numpy as np

        rng = np.random.default_rng(seed_for(seed, "mask-ratio", step, subject, window))
        return float(rng.uniform(self.ratio_from, self.ratio_to))


RECONSTRUCTION = Reconstruction()
"""What is done where nothing is said."""


@dataclass(frozen=True)
class Latent(Objective):
    """Predict, at hidden places, the tokens that a slow copy of the backbone gives to the whole signal.

    The decoder learns to read the backbone's tokens beside, so that they can be scored as reconstructions, and has no
    part in what the backbone learns.

    Parameters
    ----------
    momentum
        How much of the copy stays in the first step; it rises to 1 along the pretraining.

    References
    ----------
    arXiv:2301.08243; on fMRI: arXiv:2409.19407.
    """

    name = "latent"
    # A forward and a backward pass are about three forward ones, and the copy's is one more.
    work = 4 / 3

    momentum: float = 0.996

    def __post_init__(self) -> None:
        if not 0 <= self.momentum <= 1:
            raise ConfigError(
                f"objective {self.label!r}: momentum cannot be {self.momentum:g}.", allowed="a number from 0 to 1"
            )


OBJECTIVES: Mapping[str, type[Objective]] = {cls.name: cls for cls in (Reconstruction, Latent)}
"""All of them, by name."""


@functools.lru_cache(maxsize=64)
def parse_objective(text: str) -> Objective:
    """Resolve ``name[parameter=value,…]``.

    Raises
    ------
    ConfigError
        If the text cannot be read, or a parameter is unknown or has a value that it cannot have.
    UnknownNameError
        If there is no such objective.
    """

    def accepted(name: str) -> Mapping[str, inspect.Parameter]:
        if name not in OBJECTIVES:
            raise unknown_name("objective", name, OBJECTIVES, "Objectives are in docs/relatives.md.")
        return inspect.signature(OBJECTIVES[name], eval_str=True).parameters

    name, _, parameters = read_component("objective", text, accepted, "See docs/relatives.md, or `neurobench run -h`.")
    return OBJECTIVES[name](**parameters)

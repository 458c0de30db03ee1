"""One simulator of ROI BOLD for every simulated fMRI twin: adhd200, camcan, parcels.

The signal of a region is a sum of five parts: a global component, two of fourteen networks (each bilateral and in two
distant places, so that networks cross lobes), a *gated* part, a state pattern and local activity; then a
haemodynamic response with a delay of the subject's own, sampling at the site's repetition time, and noise.

*Connectivity states.* A two-state process flips the sign of the gated part's coupling, and shows itself in the state
pattern of other regions. The average coupling of the gated part is zero, so a linear filler gains nothing from it,
while a model that combines state and network can.

*Effects* are in connectivity alone: the covariance of the networks is ``corr(expm(S + age · A + fluid · G +
diagnosis · D + subject · E))``. Means, variances, run length, noise and site carry none. Fluid intelligence falls with
age (r −.66) in every variant, since that is a fact of the participants and not of the signal.

*Calibration*, measured with scikit-learn at 64 subjects: Fisher-z connectome of the band-passed signal, standardised,
ridge or logistic regression; mean (s.d.) over 16 seeds of the whole twin. Effects are sized for two folds of 32, where
the 95 % interval of the age error excluded the mean predictor's in 48 of 48 twins.

============================ ============= ============= =============
figure                       adhd200       camcan        parcels
============================ ============= ============= =============
age r, 2 folds               .77 (.06)     .66 (.10)     .69 (.07)
age r, 5 folds               .84 (.04)     .78 (.06)     .76 (.05)
diagnosis AUROC, 2 folds     .70 (.11)     –             .71 (.07)
diagnosis AUROC, 5 folds     .81 (.07)     –             .76 (.07)
fluid intelligence r, 5      –             .37 (.16)     .43 (.14)
diagnosis AUROC by site, 5   .23 (.05)     –             .28 (.05)
null: age r, 5 folds         −.15 (.12)    −.09 (.22)    −.17 (.16)
null: AUROC, 5 folds         .45 (.10)     –             .46 (.06)
============================ ============= ============= =============

(Pooled held-out figures fall below chance where there is nothing to find, by site most of all, since sites are balanced
exactly.) Fluid intelligence has an r of .66 with age alone, so its connectome row is behind the covariates'. Mean |r|
between regions is .37; ridge from the other half of 64 regions fills R² .52, from five of ten regions .29. With the
state known, filling rises from .53 to .60 (64 regions), .41 to .49 (24), .35 to .40 (10), noise left as it is.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy
from numpy.typing import NDArray

from neurobench import seed_for

N_NETWORKS = 10
N_STATES = 4
STEP_S = 0.5
TAU_S = 4.0
"""Time constant of networks and local activity in seconds."""
DWELL_S = 25.0
"""Mean time in one connectivity state in seconds."""
AGE_OF_FLUID = -0.66

SHARE = {"global": 0.26, "network": 0.29, "gated": 0.20, "state": 0.08, "local": 0.17}
"""Variance of each part before the haemodynamic response."""
NOISE_SD = 0.35
SITE_NOISE = 0.25


@dataclass(frozen=True)
class Effects:
    """Size of each effect on the log-covariance of the networks, per s.d. of the trait; ``subject`` is idiosyncratic.

    ``diagnosis`` is per unit of (0 or 1 less one half).
    """

    age: float = 0.9
    fluid_intelligence: float = 0.3
    diagnosis: float = 1.15
    subject: float = 0.12

    @classmethod
    def of(cls, variant: str) -> Effects:
        """Return the effects of a variant: ``null`` has none, subjects differ all the same."""
        return cls(age=0.0, fluid_intelligence=0.0, diagnosis=0.0) if variant == "null" else cls()


@dataclass(frozen=True)
class Traits:
    """Of one simulated subject: z-scores of age and fluid intelligence, diagnosis (0 or 1), motion in mm."""

    age_z: float
    fluid_z: float = 0.0
    diagnosis: float = 0.5
    mean_fd: float = 0.15


def _pairs(rng: np.random.Generator, share: float) -> NDArray[np.float64]:
    """Return a symmetric matrix of signs on a share of the network pairs, scaled to a Frobenius norm of 1."""
    row, column = np.triu_indices(N_NETWORKS, 1)
    chosen = rng.permutation(len(row))[: round(share * len(row))]
    matrix = np.zeros((N_NETWORKS, N_NETWORKS))
    matrix[row[chosen], column[chosen]] = rng.permutation(np.resize([-1.0, 1.0], len(chosen)))
    matrix += matrix.T
    return matrix / np.linalg.norm(matrix)


def _product(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ``a @ b`` without BLAS, whose threads cost more than they save here and whose sums vary with them."""
    return np.asarray(np.einsum("ij,jt->it", a, b))


class BoldTwin:
    """The population: how regions load on networks, and which network pairs the effects touch.

    Parameters
    ----------
    position_mm
        (units, 3) positions of the regions.
    seed
        Of the population; subjects have their own streams.
    effects
        Sizes of the effects.
    """

    def __init__(self, position_mm: NDArray[np.float64], *, seed: int, effects: Effects) -> None:
        self.seed, self.effects = seed, effects
        rng = np.random.default_rng(seed_for(seed, "twin", "population"))
        k, n = N_NETWORKS, len(position_mm)
        self.n_units = n
        # |x| makes networks bilateral; two centres each, far apart, make them cross lobes.
        folded = np.column_stack([np.abs(position_mm[:, 0]), position_mm[:, 1:]])
        order = rng.permutation(n)
        centres = folded[np.resize(order, 2 * k)].reshape(2, k, 3)
        distance = np.linalg.norm(folded[:, None, None] - centres, axis=-1).min(1)
        ranked = distance.argsort(1)
        loading = np.zeros((n, k))
        loading[np.arange(n), ranked[:, 0]] = rng.uniform(0.75, 1.0, n)
        loading[np.arange(n), ranked[:, 1]] = rng.uniform(0.25, 0.6, n)
        self.loading = loading / np.linalg.norm(loading, axis=1, keepdims=True)
        # The gated part follows a network further away, with a sign that depends on the state by the region's own code.
        self.gate = np.zeros((n, k))
        self.gate[np.arange(n), ranked[np.arange(n), rng.integers(2, k, n)]] = rng.choice([-1.0, 1.0], n)
        codes = scipy.linalg.hadamard(N_STATES)[1:]
        self.code = codes[rng.integers(0, len(codes), n)]
        pattern = rng.normal(size=(n, N_STATES))
        pattern -= pattern.mean(1, keepdims=True)
        self.state_pattern = pattern / pattern.std()
        base = np.abs(rng.normal(0, 0.12, (k, k)))
        self.base = (base + base.T) / 2
        self.age, self.fluid, self.diagnosis = _pairs(rng, 0.2), _pairs(rng, 0.15), _pairs(rng, 0.15)

    def covariance(self, traits: Traits, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return the (networks, networks) correlation of one subject."""
        own = rng.normal(size=(N_NETWORKS, N_NETWORKS)) / np.sqrt(2)
        own = (own + own.T) / np.sqrt(2)
        e = self.effects
        log = (
            self.base
            + e.age * traits.age_z * self.age
            + e.fluid_intelligence * traits.fluid_z * self.fluid
            + e.diagnosis * (traits.diagnosis - 0.5) * self.diagnosis
            + e.subject * own
        )
        full = scipy.linalg.expm(log)
        scale = np.sqrt(np.diag(full))
        return np.asarray(full / np.outer(scale, scale))

    def recording(
        self, subject: str, traits: Traits, *, n_times: int, t_r: float, site: str = "", run: int = 1
    ) -> NDArray[np.float32]:
        """Return one simulated recording, (n_times, units); subjects of one id share their connectivity."""
        own = np.random.default_rng(seed_for(self.seed, "twin", "subject", subject))
        covariance = self.covariance(traits, own)
        delay_s = float(own.normal(6.0, 0.5))
        rng = np.random.default_rng(seed_for(self.seed, "twin", "recording", subject, run))
        bold, _ = self._bold(rng, covariance, delay_s, n_times, t_r)
        return np.asarray((bold + self._noise(rng, traits, site, n_times)).T, np.float32)

    def _bold(
        self, rng: np.random.Generator, covariance: NDArray[np.float64], delay_s: float, n_times: int, t_r: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return (units, n_times) signal without noise, and (states, n_times) when each state ruled, as BOLD."""
        n, k = self.n_units, N_NETWORKS
        warm = round(40.0 / STEP_S)
        steps = warm + int(np.ceil(n_times * t_r / STEP_S)) + 2
        smooth = np.exp(-STEP_S / TAU_S)
        white = rng.standard_normal((1 + k + n, steps)) * np.sqrt(1 - smooth**2)
        slow = scipy.signal.lfilter([1.0], [1.0, -smooth], white, axis=1)
        network = _product(np.linalg.cholesky(covariance), slow[1 : 1 + k])
        moves = np.where(rng.random(steps) < STEP_S / DWELL_S, rng.integers(1, N_STATES, steps), 0)
        state = (rng.integers(N_STATES) + np.cumsum(moves)) % N_STATES
        part = {name: np.sqrt(share) for name, share in SHARE.items()}
        neural = (
            part["global"] * slow[:1]
            + part["network"] * _product(self.loading, network)
            + part["gated"] * _product(self.gate, network) * self.code[:, state]
            + part["state"] * self.state_pattern[:, state]
            + part["local"] * slow[1 + k :]
        )
        lag = np.arange(0, 28, STEP_S)
        response = scipy.stats.gamma.pdf(lag, delay_s) - scipy.stats.gamma.pdf(lag, delay_s + 10) / 6
        both = np.vstack([neural, np.eye(N_STATES)[:, state]])
        both = scipy.signal.oaconvolve(both, response[None] / response.sum(), axes=1)[:, warm:steps]
        at = np.arange(n_times) * t_r / STEP_S
        left = at.astype(int)
        both = both[:, left] * (1 - at + left) + both[:, left + 1] * (at - left)
        return both[:n] / both[:n].std(1, keepdims=True), both[n:]

    def _noise(self, rng: np.random.Generator, traits: Traits, site: str, n_times: int) -> NDArray[np.float64]:
        """Return (units, n_times) white noise that grows with motion and differs by site and region, and a drift."""
        pattern = np.random.default_rng(seed_for(self.seed, "twin", "site", site)).uniform(
            1 - SITE_NOISE, 1 + SITE_NOISE, self.n_units
        )
        sd = NOISE_SD * (0.7 + 2 * traits.mean_fd) * pattern
        drift = rng.normal(0, 0.15, (self.n_units, 1)) * np.linspace(-1, 1, n_times)
        jumps = scipy.signal.lfilter([1.0], [1.0, -0.5], rng.standard_normal(n_times)) * traits.mean_fd
        return rng.standard_normal((self.n_units, n_times)) * sd[:, None] + drift + jumps

    def effect_table(self) -> dict[str, Any]:
        """Return what is true of the simulated signal: sizes, and the network pairs and regions each effect touches."""
        touched = {}
        for name in ("age", "fluid", "diagnosis"):
            matrix = getattr(self, name)
            touched[name] = [[int(i), int(j)] for i, j in np.argwhere(np.triu(matrix) != 0)]
        main = self.loading.argmax(1)
        return {
            "simulated": True,
            "effects": asdict(self.effects),
            "network_pairs": touched,
            "network_of_region": main.tolist(),
            "loading_of_region": self.loading.round(3).tolist(),
            "fluid_intelligence_given_age": {"slope": AGE_OF_FLUID, "of": "z-scores", "in_every_variant": True},
        }


# ---------------------------------------------------------------- participants


def even_uniform(rng: np.random.Generator, n: int, low: float, high: float) -> NDArray[np.float64]:
    """Return ``n`` values spread evenly over (low, high) in random order, so that small samples keep their range."""
    return low + (high - low) * (rng.permutation(n) + rng.random(n)) / n


def fluid_z(rng: np.random.Generator, age_z: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return fluid intelligence as z-scores, falling with age."""
    return np.asarray(AGE_OF_FLUID * age_z + np.sqrt(1 - AGE_OF_FLUID**2) * rng.standard_normal(len(age_z)))


def balanced_diagnosis(
    rng: np.random.Generator, sites: NDArray[Any], *, prevalence: float, confounded: bool
) -> NDArray[np.int64]:
    """Return 0 or 1 for every subject: the same share at every site, or by turns rare and common if confounded."""
    diagnosis = np.zeros(len(sites), np.int64)
    spare = rng.random()
    for turn, site in enumerate(sorted(set(sites))):
        at = np.flatnonzero(sites == site)
        share = (0.85 if turn % 2 else 0.15) if confounded else prevalence
        # The fraction left over is carried on, so that rounding favours no class.
        wanted = len(at) * share + spare
        count = int(wanted)
        spare = wanted - count
        diagnosis[rng.permutation(at)[:count]] = 1
    return diagnosis


def synthetic_regions(n_units: int) -> pd.DataFrame:
    """Return a made-up parcellation: left-right pairs spread over an ellipsoid, with columns name, group, x, y, z (mm).

    Groups follow position, so that they are as contiguous as lobes; names say that they are not an atlas's.
    """
    pairs = n_units // 2
    i = np.arange(pairs) + 0.5
    z = 1 - 2 * i / pairs
    turn = np.pi * ((i * 0.618034) % 1.0) - np.pi / 2
    radius = np.sqrt(1 - z**2)
    half = np.column_stack([8 + 55 * radius * np.cos(turn), -18 + 80 * radius * np.sin(turn), 12 + 50 * z])
    names = np.select(
        [half[:, 2] < -24, half[:, 1] > 12, half[:, 1] < -62, half[:, 2] > 36, half[:, 0] > 38],
        ["inferior", "frontal", "occipital", "parietal", "temporal"],
        "central",
    )
    rows = []
    for p, (xyz, group) in enumerate(zip(half, names, strict=True), 1):
        for side, sign in (("L", -1), ("R", 1)):
            rows.append((f"synth-{side}-{group}-{p:02d}", str(group), sign * xyz[0], xyz[1], xyz[2]))
    if n_units % 2:
        rows.append((f"synth-M-central-{pairs + 1:02d}", "central", 0.0, -18.0, 12.0))
    table = pd.DataFrame(rows, columns=["name", "group", "x", "y", "z"])
    return table.round({"x": 1, "y": 1, "z": 1})


def write_effects(root: Path, twin: BoldTwin, **more: Any) -> None:
    """Write ``true_effects.json``."""
    text = json.dumps({**twin.effect_table(), **more}, indent=1, sort_keys=True)
    (root / "true_effects.json").write_text(text + "\n", encoding="utf-8")

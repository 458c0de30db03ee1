"""Which sensors a backbone uses in each sensory state, beside those where the response is expected.

Two ways to ask. *Occlusion of responses*: half of the sites are hidden during every epoch; then a group is hidden too,
and the share of the real average that the averaged reconstruction of the hidden sites loses is the group's. *The
backbone's own weights* (:meth:`neurobench.contracts.Backbone.importance`): how much units draw on each unit in a state,
which says where a network looks, not whether that does any good (Jain and Wallace 2019, doi:10.18653/v1/N19-1357).

Either is compared with the helmet regions where the response is expected, by AUROC, and with what sensors turned at
random around the helmet would give, because neighbours resemble each other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy
import torch
from numpy.typing import NDArray

from neurobench.contracts import Backbone, EvokedTask
from neurobench.errors import DataError
from neurobench.evoked import Response, epoch_times, patches_of_epoch, tiles, without_baseline
from neurobench.identity import seed_for
from neurobench.reconstruction import Predictor
from neurobench.records import Cohort, TokenTable, UnitTable
from neurobench.scoring import N_BOOTSTRAP, bootstrap_weights, family_numbers
from neurobench.tokens import Tokenizer, Window

__all__ = [
    "EXPECTED",
    "N_PERMUTATIONS",
    "ResponseOcclusion",
    "UnitImportance",
    "alignment",
    "by_unit",
    "expected_units",
    "occlude_responses",
    "turns",
    "unit_importance",
    "unit_routing",
    "unit_sites",
]

Array = NDArray[np.float64]

EXPECTED: Mapping[str, str] = {
    "auditory": r"(Left|Right)-temporal|M[LR]T",
    "somatosensory": r"(Left|Right)-parietal|M[LR][CP]",
    "passive": r"(Left|Right)-(temporal|occipital)|M[LR][TO]",
    "smt": r"(Left|Right)-(temporal|occipital|parietal)|M[LR][CPTO]",
}
"""State to the helmet regions (VectorView's lobes, CTF's letters) over the cortex that answers. Both sides: which hand
was stimulated is not known; VectorView's parietal lobe holds the sensors over central cortex."""

N_PERMUTATIONS = 1_000


def unit_sites(units: UnitTable) -> dict[str, NDArray[np.int64]]:
    """Return the rows of every site under the name of its first unit, in the order of the units."""
    rows = [np.flatnonzero(units.sites == site) for site in dict.fromkeys(units.sites.tolist())]
    return {units.names[int(r[0])]: r for r in rows}


def by_unit(values: Array, groups: Mapping[str, NDArray[np.int64]], n_units: int) -> Array:
    """Return (units,) the value of each unit's group; NaN for a unit of none."""
    spread = np.full(n_units, np.nan)
    for value, rows in zip(values, groups.values(), strict=True):
        spread[rows] = value
    return spread


def expected_units(units: UnitTable, state: str) -> NDArray[np.bool_] | None:
    """Return (units,) where a response to the state's stimuli is expected.

    None where that is not known: no stimulus, no helmet regions (clusters of positions have no names), or all units.
    """
    if units.group_source != "helmet" or state not in EXPECTED:
        return None
    expected = np.array([re.fullmatch(EXPECTED[state], g) is not None for g in units.groups])
    return expected if expected.any() and not expected.all() else None


# ---------------------------------------------------------------- occlusion of responses


@dataclass(frozen=True, eq=False)
class ResponseOcclusion:
    """How much of the real average is in averaged reconstructions, with and without a group; r responses, g groups.

    Parameters
    ----------
    subjects, states
        (r,) each.
    groups
        Names.
    moments
        (r, g, 3): sums of real², real · base and real · occluded over hidden units, masks and times, where ``base``
        and ``occluded`` are the averaged reconstructions with the group visible and hidden.
    """

    subjects: tuple[str, ...]
    states: tuple[str, ...]
    groups: tuple[str, ...]
    moments: Array

    def of(self, state: str) -> tuple[tuple[str, ...], Array]:
        """Return the subjects of a state, and (subjects, g, 3) their moments, conditions summed up."""
        rows = [i for i, s in enumerate(self.states) if s == state]
        people = tuple(dict.fromkeys(self.subjects[i] for i in rows))
        summed = np.zeros((len(people), *self.moments.shape[1:]))
        np.add.at(summed, [people.index(self.subjects[i]) for i in rows], self.moments[rows])
        return people, summed

    def loss(self, state: str, weights: Array | None = None) -> Array:
        """Return (g,) the share of the response that the others lose; with (…, subjects) weights, (…, g).

        The slope of predicted on real, with the group less without it, pooled over subjects, units and times. Linear in
        what is predicted: whatever an untrained network predicts that has nothing to do with the response counts as 0,
        where it would dominate a change of R².
        """
        people, moments = self.of(state)
        w = np.ones(len(people)) if weights is None else weights
        real, base, occluded = np.moveaxis(np.tensordot(w, moments, 1), -1, 0)
        share: Array = np.divide(base - occluded, real, out=np.full(real.shape, np.nan), where=real > 0)
        return share

    def table(self, seed: int, n_bootstrap: int = N_BOOTSTRAP, family: Mapping[str, str] | None = None) -> pd.DataFrame:
        """Return one row a (state, group): value, and its 95 % interval of a bootstrap over families, or subjects."""
        tables = []
        for state in dict.fromkeys(self.states):
            people = self.of(state)[0]
            together = family_numbers([(family or {}).get(s) for s in people])
            draws = self.loss(state, bootstrap_weights(len(people), n_bootstrap, seed, together))
            low, high = np.nanpercentile(draws, [2.5, 97.5], axis=0)
            columns = {"state": state, "group": self.groups, "value": self.loss(state), "low": low, "high": high}
            tables.append(pd.DataFrame(columns))
        return pd.concat(tables, ignore_index=True)

    @staticmethod
    def joined(parts: Sequence[ResponseOcclusion]) -> ResponseOcclusion:
        """Return as one the occlusions of the test subjects of several folds."""
        return ResponseOcclusion(
            tuple(s for p in parts for s in p.subjects),
            tuple(s for p in parts for s in p.states),
            parts[0].groups,
            np.concatenate([p.moments for p in parts]),
        )


def occlude_responses(
    predictor: Predictor,
    tokenizer: Tokenizer,
    responses: Sequence[Response],
    chunks: Sequence[NDArray[np.int64]],
    groups: Mapping[str, NDArray[np.int64]],
    task: EvokedTask,
    *,
    seed: int,
    n_splits: int = 2,
    batch_size: int = 64,
) -> ResponseOcclusion:
    """Hide one group after the other on top of half of the sites, and measure what the averaged reconstruction loses.

    Parameters
    ----------
    predictor
        Of a backbone.
    tokenizer, responses
        Of held-out subjects, see :func:`neurobench.evoked.find_responses`.
    chunks
        Units that are seen together; a group acts on the units of its own chunk only.
    groups
        Name to rows of the unit table; for a value a sensor, see :func:`unit_sites`.
    task
        Says what an epoch is.
    seed
        Of the halves. All epochs of a response are seen with the same halves, so that averages are of like with like.
    n_splits
        Times that the sites are split; both halves are hidden in turn.
    batch_size
        Windows at a time; does not change the result.
    """
    units = tokenizer.cohort.units
    moments = np.zeros((len(responses), len(groups), 3))
    for r, response in enumerate(responses):
        for c, chunk in enumerate(chunks):
            inside = [np.isin(chunk, rows) for rows in groups.values()]
            averages = _Averages(predictor, tokenizer, response, chunk, units.sites[chunk], task, batch_size)
            real = averages.real()
            for split in range(n_splits):
                for hidden in averages.halves(seed_for(seed, "mask", f"{c}/{split}", response.subject, response.state)):
                    base = averages.predicted(hidden)
                    for g, own in enumerate(inside):
                        scored = hidden & ~own
                        # A group that is hidden already can lose nothing; one that is all there is leaves no others.
                        if (own & ~hidden).any() and scored.any():
                            occluded = averages.predicted(hidden | own)
                            moments[r, g] += [np.vdot(real[scored], x[scored]) for x in (real, base, occluded)]
    return ResponseOcclusion(
        tuple(r.subject for r in responses), tuple(r.state for r in responses), tuple(groups), moments
    )


class _Averages:
    """Averages over the epochs of one response, in scaled units: (units, times), real and filled in."""

    def __init__(
        self,
        predictor: Predictor,
        tokenizer: Tokenizer,
        response: Response,
        chunk: NDArray[np.int64],
        sites: NDArray[np.int64],
        task: EvokedTask,
        batch_size: int,
    ) -> None:
        self.predictor, self.sites = predictor, sites
        self.times = epoch_times(tokenizer.cohort.sfreq, task.span_s)
        first, n = patches_of_epoch(tokenizer.cohort, task.span_s)
        self.patches = slice(first, first + n)
        windows = response.windows
        starts = range(0, len(windows), batch_size)
        self.batches = [tokenizer.batch(windows[low : low + batch_size], chunk) for low in starts]
        self.usable = [b.table.valid[:, :, self.patches].all(2).numpy() for b in self.batches]

    def halves(self, seed: int) -> list[NDArray[np.bool_]]:
        """Return (units,) masks of the two halves of the sites."""
        every = np.ones((1, len(self.sites), 1), bool)
        masks = tiles("units", every, self.sites, slice(0, 1), [np.random.default_rng(seed)])
        return [m[0, :, 0] for m in masks]

    def real(self) -> Array:
        """Return the average of the signal."""
        return self._average([b.signal for b in self.batches])

    def predicted(self, hidden: NDArray[np.bool_]) -> Array:
        """Return the average of what is predicted while some units are hidden for the whole epoch."""
        filled = []
        for batch in self.batches:
            mask = torch.zeros_like(batch.table.valid)
            mask[:, :, self.patches] = torch.from_numpy(hidden)[None, :, None]
            filled.append(self.predictor(batch, mask & batch.table.valid))
        return self._average(filled)

    def _average(self, signals: Sequence[torch.Tensor]) -> Array:
        total = np.zeros((len(self.sites), len(self.times)))
        for signal, usable in zip(signals, self.usable, strict=True):
            epochs = signal[:, :, self.patches].flatten(2)[:, :, : len(self.times)].double().numpy()
            total += np.einsum("eu,eut->ut", usable.astype(float), epochs)
        n = np.maximum(np.sum([u.sum(0) for u in self.usable], axis=0), 1)
        return without_baseline(total / n[:, None], self.times)


# ---------------------------------------------------------------- the backbone's own weights


@dataclass(frozen=True, eq=False)
class UnitImportance:
    """How much other units draw on each unit; s subjects.

    Parameters
    ----------
    subjects, states
        Names; states sorted.
    values
        (s, states, units), 1 where a unit is drawn on as much as any other; NaN where there is none.
    """

    subjects: tuple[str, ...]
    states: tuple[str, ...]
    values: Array

    def of(self, state: str, less: str = "") -> Array:
        """Return (units,) the mean over subjects in a state, or of its difference to another state in the same subject.

        NaN where nobody has both.
        """
        values = self.values[:, self.states.index(state)]
        if less:
            values = values - self.values[:, self.states.index(less)]
        known = np.isfinite(values)
        total, n = np.where(known, values, 0.0).sum(0), known.sum(0)
        mean: Array = np.divide(total, n, out=np.full(len(n), np.nan), where=n > 0)
        return mean


_Given = tuple[torch.Tensor, torch.Tensor, TokenTable]
"""What a backbone is given: signal, hidden, table."""


def _unhidden(
    tokenizer: Tokenizer,
    windows: Sequence[Window],
    chunks: Sequence[NDArray[np.int64]],
    device: torch.device | str,
    batch_size: int,
) -> Iterator[tuple[Sequence[Window], NDArray[np.int64], NDArray[np.bool_], _Given]]:
    """Yield some windows, some units, (windows, units) which have a valid patch, and what a backbone is given of them.

    The latter is signal, hidden (nothing) and table, on the device.
    """
    for chunk in chunks:
        for low in range(0, len(windows), batch_size):
            some = windows[low : low + batch_size]
            batch = tokenizer.batch(some, chunk)
            table = batch.table.to(device)
            given = batch.signal.to(device), torch.zeros_like(table.valid), table
            yield some, chunk, batch.table.valid.any(2).numpy(), given


def unit_importance(
    backbone: Backbone,
    tokenizer: Tokenizer,
    windows: Sequence[Window],
    chunks: Sequence[NDArray[np.int64]],
    device: torch.device | str = "cpu",
    batch_size: int = 8,
) -> UnitImportance | None:
    """Return how much other units draw on each unit in every state, nothing hidden; None where a backbone cannot say.

    What a unit draws on itself is left out, and the rest of its row sums to 1 again.

    Parameters
    ----------
    backbone
        Put into evaluation mode.
    tokenizer, windows
        Of held-out subjects.
    chunks
        Units that are seen together.
    device
        Where to run.
    batch_size
        Windows at a time; does not change the result.
    """
    cohort = tokenizer.cohort
    subjects = tuple(dict.fromkeys(w.subject for w in windows))
    states = tuple(sorted({_state(cohort, w) for w in windows}))
    total = np.zeros((len(subjects), len(states), len(cohort.units)))
    count = np.zeros_like(total)
    backbone.to(device).eval()
    for some, chunk, seen, given in _unhidden(tokenizer, windows, chunks, device, batch_size):
        with torch.inference_mode():
            drawn = backbone.importance(*given)
        if drawn is None:
            return None
        received, counted = _received(drawn.double().cpu().numpy(), seen)
        who = np.array([subjects.index(w.subject) for w in some])[:, None]
        at = (who, np.array([states.index(_state(cohort, w)) for w in some])[:, None], chunk[None])
        np.add.at(total, at, received)
        np.add.at(count, at, counted)
    return UnitImportance(subjects, states, np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0))


def unit_routing(
    backbone: Backbone,
    tokenizer: Tokenizer,
    windows: Sequence[Window],
    chunks: Sequence[NDArray[np.int64]],
    device: torch.device | str = "cpu",
    batch_size: int = 32,
) -> Array | None:
    """Return (units, experts) gate shares, nothing hidden: the mean over a subject's windows, then over subjects.

    NaN for a unit that nobody has; None where a backbone has no experts. Parameters as for :func:`unit_importance`.
    """
    subjects = tuple(dict.fromkeys(w.subject for w in windows))
    place = {s: i for i, s in enumerate(subjects)}
    total: Array | None = None
    count = np.zeros((len(subjects), len(tokenizer.cohort.units), 1))
    backbone.to(device).eval()
    for some, chunk, seen, given in _unhidden(tokenizer, windows, chunks, device, batch_size):
        with torch.inference_mode():
            found = backbone.routing(*given)
        if found is None:
            return None
        if total is None:
            total = np.zeros((*count.shape[:2], found.shape[2]))
        at = (np.array([place[w.subject] for w in some])[:, None], chunk[None])
        np.add.at(total, at, found.double().cpu().numpy())
        np.add.at(count, at, seen[..., None])
    if total is None:
        return None
    own = np.divide(total, count, out=np.zeros_like(total), where=count > 0)
    n = (count > 0).sum(0)
    shares: Array = np.divide(own.sum(0), n, out=np.full(own.shape[1:], np.nan), where=n > 0)
    return shares


def _state(cohort: Cohort, window: Window) -> str:
    return cohort.recordings[window.recording].state


def _received(drawn: Array, seen: NDArray[np.bool_]) -> tuple[Array, NDArray[np.bool_]]:
    """Return (batch, units) what the other units draw on each, and where that is known: at least two units are seen."""
    n = drawn.shape[1]
    known = seen & (seen.sum(1, keepdims=True) > 1)
    others = drawn * ~np.eye(n, dtype=bool) * known[:, :, None] * known[:, None, :]
    below = others.sum(2, keepdims=True)
    share = np.divide(others, below, out=np.zeros_like(others), where=below > 0)
    return share.sum(1) * known, known


# ---------------------------------------------------------------- agreement with what is expected


def turns(position_mm: NDArray[np.floating[Any]], n: int, seed: int) -> NDArray[np.int64]:
    """Return (n, units) rearrangements of units that keep neighbours together, as far as a helmet allows.

    The units are turned at random around the centre of the sphere that fits them best, and each is given the values of
    another one, so that the turned and the given places lie as close as they can (Alexander-Bloch et al. 2018,
    doi:10.1016/j.neuroimage.2018.05.070; one to one: Markello and Misic 2021, doi:10.1016/j.neuroimage.2021.118052). A
    helmet is no whole sphere: units that are turned out of it are put where there is room, which keeps less than all
    of the smoothness.

    Raises
    ------
    DataError
        If a position is missing.
    """
    place = np.asarray(position_mm, np.float64)
    if len(place) < 4 or not np.isfinite(place).all():
        raise DataError("units without positions cannot be turned.", next_step="Permute them at random instead.")
    # |x|² = 2 x·centre + constant is linear in the centre.
    design = np.column_stack([2 * place, np.ones(len(place))])
    centre = np.linalg.lstsq(design, (place**2).sum(1), rcond=None)[0][:3]
    outward = place - centre
    outward /= np.linalg.norm(outward, axis=1, keepdims=True)
    rng = np.random.default_rng(seed_for(seed, "permutation", "turns", len(place)))
    # Uniform turns from normal quaternions: the generator's name in scipy changed between versions.
    turned = scipy.spatial.transform.Rotation.from_quat(rng.normal(size=(n, 4))).as_matrix() @ outward.T
    return np.stack([scipy.optimize.linear_sum_assignment(-(outward @ t))[1] for t in turned])


def alignment(
    values: Array, expected: NDArray[np.bool_], rearranged: NDArray[np.int64] | None, seed: int = 0
) -> dict[str, Any]:
    """Return how well values single out the expected units.

    Parameters
    ----------
    values, expected
        (units,) each; a unit whose value is NaN is left out of the AUROC.
    rearranged
        (n, units) from :func:`turns`; None: plain permutations, which take neighbours apart and find too much where
        values are smooth, as the column ``null`` then says.
    seed
        Of plain permutations.

    Returns
    -------
    dict
        ``auroc``; ``p``, the share of rearrangements of the values that do as well, (b + 1) / (m + 1); ``null``,
        ``turns`` or ``shuffles``; ``n_expected``, ``n_units``.
    """
    null = "turns" if rearranged is not None else "shuffles"
    if rearranged is None:
        rng = np.random.default_rng(seed_for(seed, "permutation", "alignment", len(values)))
        rearranged = rng.permuted(np.tile(np.arange(len(values)), (N_PERMUTATIONS, 1)), axis=1)
    observed = float(_aurocs(values, expected, np.arange(len(values))[None])[0])
    drawn = _aurocs(values, expected, rearranged)
    p = (1 + int((drawn >= observed - 1e-12).sum())) / (1 + len(drawn)) if np.isfinite(observed) else float("nan")
    known = np.isfinite(values)
    return {
        "auroc": observed,
        "p": p,
        "null": null,
        "n_expected": int(expected[known].sum()),
        "n_units": int(known.sum()),
    }


def _aurocs(values: Array, expected: NDArray[np.bool_], orders: NDArray[np.int64]) -> Array:
    """Return (draws,) areas of (units,) values in (draws, units) orders; NaN where only one kind of unit is known."""
    known = np.isfinite(values)
    # Values change their places, not their ranks.
    ranks = np.zeros(len(values))
    ranks[known] = scipy.stats.rankdata(values[known])
    there = known[orders]
    n, m = (there & expected).sum(1), (there & ~expected).sum(1)
    above = (ranks[orders] * expected).sum(1) - n * (n + 1) / 2
    areas: Array = np.divide(above, n * m, out=np.full(len(orders), np.nan), where=n * m > 0)
    return areas

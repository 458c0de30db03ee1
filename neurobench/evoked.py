"""Evoked responses: epochs are hidden piece by piece, filled in by every predictor, averaged, and compared.

What is compared are averages over the epochs of one subject, state and condition, as
``mne.Epochs(…, baseline=(None, 0)).average()`` makes them: the mean over epochs, less each unit's mean up to the event
(no correction where an epoch starts after the event). The network works in the tokenizer's scaled units; averages are
brought back to native units, and where there are sensors of several types each type is divided by the s.d. of its real
average, so that all types count alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from neurobench.contracts import EvokedTask
from neurobench.errors import DataError
from neurobench.grand_average import GrandAverage
from neurobench.identity import seed_for
from neurobench.masking import mask_generator
from neurobench.progress import Advance
from neurobench.reconstruction import Predictor
from neurobench.records import Batch, Cohort, Recording
from neurobench.tokens import Tokenizer, Window, usable_span

__all__ = [
    "MEASURES",
    "QUANTITIES",
    "EvokedScores",
    "Response",
    "average",
    "epoch_times",
    "evaluate",
    "find_responses",
    "gfp",
    "measure",
    "patches_of_epoch",
    "peak",
    "tiles",
    "topography_r",
    "waveform_r",
    "without_baseline",
]

Array = NDArray[np.float64]

TILES_AT_ONCE = 4
"""Tiles of one batch of epochs that are filled in together: of small networks a call costs more than its work."""

MEASURES = ("waveform_r", "gfp_r", "peak_latency_error", "peak_amplitude_ratio", "topography_r")
"""What :func:`measure` gives; the latency error in ms, the others pure numbers."""

QUANTITIES = (
    *MEASURES,
    "across_halves_r",
    *(f"{m}[null]" for m in MEASURES),
    "across_halves_r[null]",
    "waveform_r[away]",
    *(f"{m}[ceiling]" for m in MEASURES),
    "across_halves_r[ceiling]",
)
"""Everything that is known of a response.

The measures; ``across_halves_r``, the waveform r of odd predicted epochs with even real ones and the other way round,
in which no noise is shared; ``[null]``, the same with predictions at shifted events; ``[away]``, predicted against real
at those shifted events: what background activity that spreads over sensors gives away; ``[ceiling]``, one half of the
real epochs against the other: for an r what a prediction without noise can reach, the root of the reliability of the
average (Spearman–Brown), for ``across_halves_r`` of a half.
"""


# ---------------------------------------------------------------- averages and what is measured of them


def epoch_times(sfreq: float, span_s: tuple[float, float]) -> Array:
    """Return the times of an epoch's samples in seconds from the event; both ends are included, as in MNE."""
    times: Array = np.arange(round(span_s[0] * sfreq), round(span_s[1] * sfreq) + 1) / sfreq
    return times


def average(epochs: Array, times: Array) -> Array:
    """Return the evoked response: the mean over epochs, corrected for its baseline.

    Parameters
    ----------
    epochs
        (epochs, units, times).
    times
        Seconds from the event.

    Returns
    -------
    evoked
        (units, times).
    """
    return without_baseline(np.asarray(epochs, np.float64).mean(0), times)


def without_baseline(evoked: Array, times: Array) -> Array:
    """Return (…, times) less its mean up to the event; as it is where no sample is that early."""
    before = times <= 0
    corrected: Array = evoked - evoked[..., before].mean(-1, keepdims=True) if before.any() else evoked
    return corrected


def gfp(evoked: Array) -> Array:
    """Return (times,) global field power: the s.d. over units of a (units, times) response."""
    power: Array = np.asarray(evoked, np.float64).std(0)
    return power


def peak(curve: Array, times: Array, window_s: tuple[float, float]) -> int | None:
    """Return the sample at which a curve is largest between two times (s, included); None where it is flat there."""
    # Half a sample of tolerance would take in neighbours: only the error of binary fractions is allowed for.
    inside = np.flatnonzero((times >= window_s[0] - 1e-9) & (times <= window_s[1] + 1e-9))
    if len(inside) == 0:
        raise DataError(
            f"no sample lies between {window_s[0] * 1e3:g} and {window_s[1] * 1e3:g} ms.",
            allowed=f"{times[0] * 1e3:g} to {times[-1] * 1e3:g} ms",
            next_step="Change the task's peak windows, or its epochs.",
        )
    values = curve[inside]
    if np.ptp(values) <= 1e-12 * np.abs(curve).max(initial=0.0):
        return None
    return int(inside[np.argmax(values)])


def waveform_r(real: Array, predicted: Array) -> float:
    """Return Pearson's r over all units and times; 0 where it is not defined."""
    return _pearson(np.ravel(real), np.ravel(predicted))


def topography_r(real: Array, predicted: Array, at: int) -> float:
    """Return Pearson's r over units at one sample of two (units, times) responses; 0 where it is not defined."""
    return _pearson(real[:, at], predicted[:, at])


def _pearson(a: Array, b: Array) -> float:
    if len(a) < 2:
        return 0.0
    da, db = a - a.mean(), b - b.mean()
    below = math.sqrt(float(da @ da) * float(db @ db))
    # What is left of a constant after its mean is taken off is rounding, and correlates with anything.
    if min(float(np.abs(d).max()) - 1e-12 * float(np.abs(x).max()) for d, x in ((da, a), (db, b))) <= 0 or below == 0:
        return 0.0
    return float(np.clip(float(da @ db) / below, -1.0, 1.0))


def measure(real: Array, predicted: Array, times: Array, window_s: tuple[float, float]) -> dict[str, float]:
    """Return the :data:`MEASURES` of a predicted response.

    Parameters
    ----------
    real, predicted
        (units, times), in the same units.
    times
        Seconds from the event.
    window_s
        Where peaks of the global field power are looked for, in both.

    Returns
    -------
    measures
        Undefined correlations are 0. A prediction without a peak is as late as the window allows, and its amplitude is
        the one at the real peak. Where the real response has no peak everything about it is at its worst.
    """
    curves = gfp(real), gfp(predicted)
    at, guessed = (peak(c, times, window_s) for c in curves)
    inside = times[(times >= window_s[0] - 1e-9) & (times <= window_s[1] + 1e-9)]
    if at is None:
        error, ratio, topography = float(inside[-1] - inside[0]), 0.0, 0.0
    else:
        farthest = max(float(times[at] - inside[0]), float(inside[-1] - times[at]))
        error = farthest if guessed is None else abs(float(times[guessed] - times[at]))
        ratio = float(curves[1][at if guessed is None else guessed] / curves[0][at])
        topography = topography_r(real, predicted, at)
    values = (waveform_r(real, predicted), _pearson(*curves), 1e3 * error, ratio, topography)
    return dict(zip(MEASURES, values, strict=True))


def _ceiling(odd: Array, even: Array, times: Array, window_s: tuple[float, float]) -> dict[str, float]:
    """Return what one half of the real epochs reaches against the other; of r, what a noise-free prediction can reach.

    The correlation of two halves is the reliability of one, and Spearman–Brown's formula gives that of the whole; a
    prediction without noise correlates with either as the root of its reliability.
    """
    halves = measure(odd, even, times, window_s)
    whole = {n: math.sqrt(2 * max(r, 0.0) / (1 + max(r, 0.0))) for n, r in halves.items() if n.endswith("_r")}
    return halves | whole | {"across_halves_r": math.sqrt(max(halves["waveform_r"], 0.0))}


# ---------------------------------------------------------------- epochs


@dataclass(frozen=True)
class Response:
    """The epochs of one subject, state and condition, each as the window that a backbone sees it in.

    Parameters
    ----------
    subject, state, condition
        Whose, and to what.
    windows
        Windows around the events; the epoch starts at the first sample of the same patch in all of them.
    away
        As many windows around times of the same recordings that are shifted from the events.
    n_left_out
        Epochs that were left out because their window leaves the recording (or the part of it that may be used) or
        touches a bad span.
    clear
        Whether no shifted epoch overlaps a response. Where events follow each other too closely for that, shifted
        times are drawn from everywhere: they are not locked to the events, but not free of responses either.
    """

    subject: str
    state: str
    condition: str
    windows: tuple[Window, ...]
    away: tuple[Window, ...]
    n_left_out: int
    clear: bool


def patches_of_epoch(cohort: Cohort, span_s: tuple[float, float]) -> tuple[int, int]:
    """Return the first patch of an epoch in its window, and the number of patches that it needs."""
    n = math.ceil(len(epoch_times(cohort.sfreq, span_s)) / cohort.samples_per_patch)
    return (cohort.patches_per_window - n) // 2, n


def find_responses(
    cohort: Cohort, subjects: Sequence[str], task: EvokedTask, *, seed: int, span: tuple[float, float] = (0.0, 1.0)
) -> tuple[tuple[Response, ...], int]:
    """Return the responses of some subjects, none maybe, and how many of too few epochs were left out.

    Parameters
    ----------
    cohort
        With events. An event is at sample ``round(onset_s · sfreq)`` of the prepared recording.
    subjects
        Those to look at.
    task
        Says what an epoch is.
    seed
        Of the shifts.
    span
        Part of every recording that may be used; a window lies in it as a whole.
    """
    found: dict[tuple[str, str, str], list[tuple[Window, int]]] = {}
    left_out: dict[tuple[str, str, str], int] = {}
    chosen = set(subjects)
    for index, recording in enumerate(cohort.recordings):
        if recording.subject in chosen:
            starts = _possible(cohort, recording, span)
            for event in sorted(recording.events, key=lambda e: (e.onset_s, e.condition)):
                key = recording.subject, recording.state, event.condition
                start = _start(cohort, task, round(event.onset_s * cohort.sfreq))
                found.setdefault(key, [])
                left_out.setdefault(key, 0)
                if 0 <= start < len(starts) and starts[start]:
                    found[key].append((_at(cohort, index, start), index))
                else:
                    left_out[key] += 1
    responses, n_small = [], 0
    for key, epochs in sorted(found.items()):
        if len(epochs) < task.MIN_EPOCHS:
            n_small += 1
            continue
        if len(epochs) > task.max_epochs:
            epochs = [epochs[i] for i in np.linspace(0, len(epochs) - 1, task.max_epochs).round().astype(int)]
        rng = np.random.default_rng(seed_for(seed, "permutation", "evoked", *key))
        away, clear = _away(cohort, task, [i for _, i in epochs], span, rng)
        responses.append(Response(*key, tuple(w for w, _ in epochs), away, left_out[key], clear))
    return tuple(responses), n_small


def _start(cohort: Cohort, task: EvokedTask, event: int) -> int:
    """Return the first sample of the window in which the epoch of an event starts a patch, near the middle."""
    first, _ = patches_of_epoch(cohort, task.span_s)
    return event + round(task.span_s[0] * cohort.sfreq) - first * cohort.samples_per_patch


def _at(cohort: Cohort, index: int, start: int) -> Window:
    recording = cohort.recordings[index]
    return Window(index, start, start + cohort.samples_per_window, recording.subject, f"{recording.id}@{start}")


def _possible(cohort: Cohort, recording: Recording, span: tuple[float, float]) -> NDArray[np.bool_]:
    """Return (starts,) whether a window that starts there lies in the span and touches no bad one."""
    low, high = usable_span(recording.n_times, span)
    length = cohort.samples_per_window
    start = np.arange(max(0, recording.n_times - length + 1))
    possible: NDArray[np.bool_] = (start >= low) & (start + length <= high)
    for first, last in recording.bad_spans:
        possible &= (start >= last * cohort.sfreq) | (start + length <= first * cohort.sfreq)
    return possible


def _away(
    cohort: Cohort, task: EvokedTask, recordings: Sequence[int], span: tuple[float, float], rng: np.random.Generator
) -> tuple[tuple[Window, ...], bool]:
    """Return one window at a shifted time for every epoch's recording, and whether all are clear of every response."""
    windows: list[Window] = []
    all_clear = True
    tmin, tmax = (round(t * cohort.sfreq) for t in task.span_s)
    for index in dict.fromkeys(recordings):
        n = sum(i == index for i in recordings)
        recording = cohort.recordings[index]
        possible = _possible(cohort, recording, span)
        clear = possible.copy()
        for event in recording.events:
            # A shifted epoch is clear if it does not meet [event, event + tmax], the response to any event.
            at = round(event.onset_s * cohort.sfreq)
            low, high = (_start(cohort, task, at + s) for s in (-tmax, tmax - tmin))
            clear[max(0, low) : max(0, high + 1)] = False
        if clear.sum() < n:
            clear, all_clear = possible, False
        # There are at least as many possible starts as epochs: every one of those is one.
        drawn = rng.choice(np.flatnonzero(clear), n, replace=clear.sum() < n)
        windows += [_at(cohort, index, int(s)) for s in np.sort(drawn)]
    return tuple(windows), all_clear


def tiles(
    how: str, valid: NDArray[np.bool_], sites: NDArray[np.int64], patches: slice, rngs: Sequence[np.random.Generator]
) -> list[NDArray[np.bool_]]:
    """Return masks that together hide every valid token of an epoch exactly once.

    Parameters
    ----------
    how
        ``units``: the sites are split into two halves at random, hidden one after the other for the whole epoch (all
        sensors of a site together); ``time``: one patch after the other, in all units.
    valid
        (windows, units, patches).
    sites
        (units,) site of each unit.
    patches
        Those of the epoch.
    rngs
        One generator a window.

    Returns
    -------
    hidden
        Each (windows, units, patches).
    """
    n_patches = len(range(*patches.indices(valid.shape[2])))
    if how == "time":
        masks = [np.zeros_like(valid) for _ in range(n_patches)]
        for j, hidden in enumerate(masks):
            hidden[:, :, patches.start + j] = True
    else:
        distinct, place = np.unique(sites, return_inverse=True)
        first = np.stack([rng.permutation(len(distinct)) < len(distinct) / 2 for rng in rngs])[:, place]
        masks = [np.zeros_like(valid) for _ in range(2)]
        for hidden, half in zip(masks, (first, ~first), strict=True):
            hidden[:, :, patches] = half[:, :, None]
    return [m & valid for m in masks]


# ---------------------------------------------------------------- evaluation


@dataclass(frozen=True, eq=False)
class EvokedScores:
    """What several predictors reach on the responses of held-out subjects; p predictors, r responses.

    Parameters
    ----------
    predictors
        Their names.
    subjects, states, conditions
        (r,) each.
    n_epochs, n_left_out
        (r,) epochs averaged, and left out because of their window.
    clear
        (r,) whether shifted epochs are clear of responses.
    values
        (p, r, quantities) in the order of :data:`QUANTITIES`.
    n_small
        Responses left out for want of epochs.
    """

    predictors: tuple[str, ...]
    subjects: tuple[str, ...]
    states: tuple[str, ...]
    conditions: tuple[str, ...]
    n_epochs: NDArray[np.int64]
    n_left_out: NDArray[np.int64]
    clear: NDArray[np.bool_]
    values: Array
    n_small: int

    @property
    def people(self) -> tuple[str, ...]:
        """The subjects, each once."""
        return tuple(dict.fromkeys(self.subjects))

    def of(self, predictor: str, quantity: str) -> Array:
        """Return (r,) a quantity of a predictor."""
        values: Array = self.values[self.predictors.index(predictor), :, QUANTITIES.index(quantity)]
        return values

    def by_subject(self, predictor: str, quantity: str, response: tuple[str, str] | None = None) -> Array:
        """Return (subjects,) the mean over a subject's responses, or over those of one (state, condition).

        NaN for a subject without any.
        """
        kept = np.array([response in (None, r) for r in zip(self.states, self.conditions, strict=True)])
        place = np.array([self.people.index(s) for s in self.subjects])
        n = np.bincount(place[kept], minlength=len(self.people))
        total = np.bincount(place[kept], self.of(predictor, quantity)[kept], minlength=len(self.people))
        mean: Array = np.divide(total, n, out=np.full(len(n), np.nan), where=n > 0)
        return mean


def evaluate(
    predictors: Mapping[str, Predictor],
    tokenizer: Tokenizer,
    responses: Sequence[Response],
    chunks: Sequence[NDArray[np.int64]],
    task: EvokedTask,
    *,
    seed: int,
    n_small: int = 0,
    batch_size: int = 64,
    advance: Advance | None = None,
    grand: GrandAverage | None = None,
) -> EvokedScores:
    """Fill in the hidden epochs of every response, average, and measure.

    Parameters
    ----------
    predictors
        Name to predictor.
    tokenizer
        With the scaler of the training subjects.
    responses
        Of the test subjects, see :func:`find_responses`.
    chunks
        Units that are seen together and cover all units once, see :func:`neurobench.tokens.unit_chunks`.
    task
        Says what an epoch is, how it is hidden and where its peak lies.
    seed
        Of the masks, which depend on it, the chunk, the subject and the window only.
    n_small
        Kept in the result.
    batch_size
        Windows at a time; does not change the result.
    advance
        Told how many responses are done.
    grand
        Given the averages of every response in native units.
    """
    cohort = tokenizer.cohort
    times = epoch_times(cohort.sfreq, task.span_s)
    types = np.array(cohort.units.types)
    values = np.zeros((len(predictors), len(responses), len(QUANTITIES)))
    for r, response in enumerate(responses):
        window_s = task.peak_window_s(response.state, response.condition)
        sums = _sums(predictors, tokenizer, (response.windows, response.away), chunks, task, seed, batch_size)
        known = np.logical_and.reduce([(count > 0).all(0) for _, count in sums])
        # Axes: real and then predictors, units, times; of the halves one more before.
        scale = _type_scale(sums[0][0][:, 0, known].sum(0) / sums[0][1][:, known].sum(0)[:, None], types[known])
        near, away = (
            without_baseline(total[:, :, known] / count[:, None, known, None] / scale[:, None], times)
            for total, count in sums
        )
        whole, shifted = (
            without_baseline(total[:, :, known].sum(0) / count[:, known].sum(0)[:, None] / scale[:, None], times)
            for total, count in sums
        )
        if grand is not None:
            native = np.full((1 + len(predictors), len(known), len(times)), np.nan)
            native[:, known] = whole * scale[:, None]
            grand.add(response.state, response.condition, native)
        ceiling = _ceiling(near[0, 0], near[1, 0], times, window_s)
        for p in range(len(predictors)):
            each = measure(whole[0], whole[p + 1], times, window_s)
            null = measure(whole[0], shifted[p + 1], times, window_s)
            for halves, into in ((near, each), (away, null)):
                into["across_halves_r"] = (
                    waveform_r(near[0, 0], halves[1, p + 1]) + waveform_r(near[1, 0], halves[0, p + 1])
                ) / 2
            found = each | {f"{n}[null]": v for n, v in null.items()}
            found |= {f"{n}[ceiling]": v for n, v in ceiling.items()}
            found["waveform_r[away]"] = waveform_r(shifted[0], shifted[p + 1])
            values[p, r] = [found[q] for q in QUANTITIES]
        if advance is not None:
            advance(r + 1, len(responses))
    return EvokedScores(
        predictors=tuple(predictors),
        subjects=tuple(r.subject for r in responses),
        states=tuple(r.state for r in responses),
        conditions=tuple(r.condition for r in responses),
        n_epochs=np.array([len(r.windows) for r in responses], np.int64),
        n_left_out=np.array([r.n_left_out for r in responses], np.int64),
        clear=np.array([r.clear for r in responses], bool),
        values=values,
        n_small=n_small,
    )


def _type_scale(real: Array, types: NDArray[np.str_]) -> Array:
    """Return (units,) the s.d. of the real average of each unit's type; ones for a single type: native units."""
    scale = np.ones(len(types))
    kinds = set(types.tolist())
    for kind in kinds if len(kinds) > 1 else ():
        scale[types == kind] = real[types == kind].std() or 1.0
    return scale


def _sums(
    predictors: Mapping[str, Predictor],
    tokenizer: Tokenizer,
    kinds: Sequence[Sequence[Window]],
    chunks: Sequence[NDArray[np.int64]],
    task: EvokedTask,
    seed: int,
    batch_size: int,
) -> list[tuple[Array, Array]]:
    """Return for each kind of windows two arrays, all kinds being filled in together, as few large batches.

    (halves, 1 + predictors, units, times) sums over odd and even epochs in native units, real ones first; and (halves,
    units) how many epochs those are, as a unit may be missing in some recordings.
    """
    windows = [w for own in kinds for w in own]
    # Odd and even are counted within a kind.
    part = np.concatenate([2 * k + np.arange(len(own)) % 2 for k, own in enumerate(kinds)])
    cohort = tokenizer.cohort
    first, n = patches_of_epoch(cohort, task.span_s)
    n_times, patches = len(epoch_times(cohort.sfreq, task.span_s)), slice(first, first + n)
    total = np.zeros((2 * len(kinds), 1 + len(predictors), len(cohort.units), n_times))
    count = np.zeros((2 * len(kinds), len(cohort.units)))
    factors = {
        i: tokenizer.scaler.parameters(cohort.recordings[i], cohort.units)[1] for i in {w.recording for w in windows}
    }
    for c, chunk in enumerate(chunks):
        for low in range(0, len(windows), batch_size):
            some = windows[low : low + batch_size]
            batch = tokenizer.batch(some, chunk)
            valid = batch.table.valid.numpy()
            names = zip(batch.subjects, batch.windows, strict=True)
            rngs = [mask_generator(seed, f"evoked/{c}", who, which) for who, which in names]
            factor = np.stack([factors[w.recording][chunk] for w in some]).astype(np.float64)
            usable = valid[:, :, patches].all(2) & (factor > 0)
            to_native = np.divide(1.0, factor, out=np.zeros_like(factor), where=usable)
            filled = [batch.signal.numpy(), *(np.zeros(batch.signal.shape, np.float32) for _ in predictors)]
            masks = [m for m in tiles(task.tile, valid, cohort.units.sites[chunk], patches, rngs) if m.any()]
            for together in (masks[i : i + TILES_AT_ONCE] for i in range(0, len(masks), TILES_AT_ONCE)):
                repeated, hidden = _repeated(batch, len(together)), np.concatenate(together)
                for into, predictor in zip(filled[1:], predictors.values(), strict=True):
                    guess = predictor(repeated, torch.from_numpy(hidden)).numpy()
                    for mask, own in zip(together, np.split(guess, len(together)), strict=True):
                        into[mask] = own[mask]
            of_part = part[low : low + len(some)]
            for j, signal in enumerate(filled):
                epochs = signal[:, :, patches].reshape(*signal.shape[:2], -1)[:, :, :n_times] * to_native[..., None]
                for h in range(len(total)):
                    total[h, j, chunk] += epochs[of_part == h].sum(0)
            for h in range(len(total)):
                count[h, chunk] += usable[of_part == h].sum(0)
    return [(total[2 * k : 2 * k + 2], count[2 * k : 2 * k + 2]) for k in range(len(kinds))]


def _repeated(batch: Batch, n: int) -> Batch:
    """Return a batch whose windows come ``n`` times, one after the other."""
    if n == 1:
        return batch
    table = batch.table.map(lambda tensor: torch.cat([tensor] * n))
    signal, rows = batch.signal.repeat(n, 1, 1, 1), batch.rows.repeat(n, 1)
    return Batch(signal, table, rows, batch.units, batch.subjects * n, batch.windows * n)

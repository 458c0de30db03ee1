"""Evoked responses: averages against MNE, masks that tile, predictors that know everything or nothing, whole runs."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import mne
import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console

import neurobench
from neurobench import Metric, evoked, results
from neurobench.checks import check_component
from neurobench.console import print_results
from neurobench.errors import ConfigError, DataError
from neurobench.evoked_scores import (
    join_evoked,
    load_evoked,
    response_table,
    save_evoked,
    score_evoked,
)
from neurobench.paired import difference_of
from neurobench.reconstruction import fit_fillers
from neurobench.records import Cohort
from neurobench.specimens import simulated_cohort, simulated_states
from neurobench.tokens import Scaler, Tokenizer, unit_chunks
from neurobench_tasks.evoked import Evoked
from tests.states_plugin import write_states

PLUGIN = Path(__file__).with_name("states_plugin.py")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return simulated_states(tmp_path_factory.mktemp("states"), n_subjects=8)


@pytest.fixture(scope="module")
def null_cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return simulated_states(tmp_path_factory.mktemp("null"), n_subjects=8, effect=0.0)


def evaluated(cohort: Cohort, predictors, task: Evoked | None = None, chunk: int = 12, **options):
    task = task or Evoked()
    half = cohort.subjects[len(cohort.subjects) // 2 :] if "subjects" not in options else options.pop("subjects")
    cutter = Tokenizer(cohort, Scaler.fit(cohort, cohort.subjects[:4]))
    responses, n_small = evoked.find_responses(cohort, half, task, seed=0)
    chunks = unit_chunks(cohort.units, chunk)
    return evoked.evaluate(predictors, cutter, responses, chunks, task, seed=0, n_small=n_small, **options)


def perfect(batch, hidden):
    return batch.signal


def nothing(batch, hidden):
    return torch.zeros_like(batch.signal)


# ---------------------------------------------------------------- averages


def test_the_average_is_mnes(cohort: Cohort) -> None:
    recording = next(r for r in cohort.recordings if r.events)
    info = mne.create_info(list(cohort.units.names), cohort.sfreq, "mag")
    raw = mne.io.RawArray(np.array(recording.open(), np.float64), info, verbose=False)
    events = np.array([[round(e.onset_s * cohort.sfreq), 0, 1] for e in recording.events])
    wanted = mne.Epochs(raw, events, tmin=-0.2, tmax=0.8, baseline=(None, 0), preload=True, verbose=False).average()
    times = evoked.epoch_times(cohort.sfreq, (-0.2, 0.8))
    np.testing.assert_allclose(times, wanted.times)
    data = recording.open()
    offsets = np.round(times * cohort.sfreq).astype(int)
    epochs = np.stack([data[:, at + offsets] for at in events[:, 0]])
    np.testing.assert_allclose(evoked.average(epochs, times), wanted.data, atol=1e-7)


@pytest.mark.parametrize("how", ["units", "time"])
def test_the_average_that_is_scored_is_mnes_too(cohort: Cohort, how: str) -> None:
    """What a perfect predictor gives, after windows, masks, chunks and scaling, is the average of the epochs."""
    task = Evoked(tile=how)
    cutter = Tokenizer(cohort, Scaler.fit(cohort, cohort.subjects[:4]))
    (response, *_), _ = evoked.find_responses(cohort, cohort.subjects, task, seed=0)
    chunks = unit_chunks(cohort.units, 5)
    ((total, count),) = evoked._sums({"perfect": perfect}, cutter, [response.windows], chunks, task, 0, 7)
    assert len(response.windows) >= 18
    assert (count.sum(0) == len(response.windows)).all()
    recording = cohort.recordings[response.windows[0].recording]
    first, _ = evoked.patches_of_epoch(cohort, task.span_s)
    starts = np.array([w.start for w in response.windows]) + first * cohort.samples_per_patch
    onsets = {round(e.onset_s * cohort.sfreq) for e in recording.events}
    assert {int(s) + round(0.2 * cohort.sfreq) for s in starts} <= onsets
    times = evoked.epoch_times(cohort.sfreq, task.span_s)
    cut = np.stack([recording.open()[:, s : s + len(times)] for s in starts])
    for j in (0, 1):
        mean = total[:, j].sum(0) / count.sum(0)[:, None]
        np.testing.assert_allclose(evoked.without_baseline(mean, times), evoked.average(cut, times), atol=1e-4)


def test_gfp_and_peak_are_mnes_on_a_real_average(shared_data: Path) -> None:
    for real in mne.read_evokeds(shared_data / "meg" / "mne-python_test-ave.fif.gz", verbose=False):
        for kind in ("mag", "grad"):
            one = real.copy().pick(kind)
            curve = evoked.gfp(one.data)
            np.testing.assert_allclose(curve, one.data.std(axis=0))
            low, high = 0.05, 0.15
            info = mne.create_info(["gfp"], one.info["sfreq"], "mag")
            alone = mne.EvokedArray(curve[None], info, tmin=one.times[0], verbose=False)
            _, latency = alone.get_peak(tmin=low, tmax=high)
            at = evoked.peak(curve, one.times, (low, high))
            assert at is not None
            assert one.times[at] == pytest.approx(latency)
            itself = evoked.measure(one.data, one.data, one.times, (low, high))
            assert list(itself.values()) == pytest.approx([1, 1, 0, 1, 1])
            scaled = evoked.measure(one.data, 0.5 * one.data, one.times, (low, high))
            assert list(scaled.values()) == pytest.approx([1, 1, 0, 0.5, 1])


# ---------------------------------------------------------------- what is measured


def planted(latency: float, strength: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    times = evoked.epoch_times(256.0, (-0.2, 0.8))
    topography = np.linspace(-1, 1, 7)
    return strength * topography[:, None] * np.exp(-(((times - latency) / 0.02) ** 2)), times


def test_measures_of_a_late_and_small_response() -> None:
    real, times = planted(0.1)
    late, _ = planted(0.125, 0.6)
    found = evoked.measure(real, late, times, (0.05, 0.2))
    assert found["peak_latency_error"] == pytest.approx(25, abs=4)
    assert found["peak_amplitude_ratio"] == pytest.approx(0.6, abs=0.02)
    assert found["topography_r"] == pytest.approx(1)
    assert 0 < found["waveform_r"] < 0.9
    assert evoked.measure(real, -real, times, (0.05, 0.2))["topography_r"] == pytest.approx(-1)


@pytest.mark.parametrize("constant", [0.0, 1e-13, 3.0])
def test_a_prediction_that_says_nothing_scores_nothing(constant: float) -> None:
    real, times = planted(0.1)
    found = evoked.measure(real, np.full_like(real, constant), times, (0.08, 0.13))
    assert found["waveform_r"] == found["gfp_r"] == found["topography_r"] == 0
    assert found["peak_amplitude_ratio"] == pytest.approx(0, abs=1e-12)
    # As late as the window allows: no latency is gained by having no peak.
    assert found["peak_latency_error"] == pytest.approx(30, abs=4)


def test_a_peak_outside_the_epoch_is_refused() -> None:
    real, times = planted(0.1)
    with pytest.raises(DataError, match=r"no sample lies between 900 and 950 ms.*-199\.219 to 800\.781 ms"):
        evoked.measure(real, real, times, (0.9, 0.95))


# ---------------------------------------------------------------- masks and epochs


@pytest.mark.parametrize("how", ["units", "time"])
def test_masks_tile_the_epoch(how: str) -> None:
    rng = np.random.default_rng(0)
    valid = rng.random((3, 9, 8)) < 0.9
    sites = np.repeat([4, 2, 7], 3)
    masks = evoked.tiles(how, valid, sites, slice(2, 7), [np.random.default_rng(i) for i in range(3)])
    wanted = valid.copy()
    wanted[:, :, :2] = wanted[:, :, 7:] = False
    np.testing.assert_array_equal(np.sum(masks, 0), wanted)
    assert len(masks) == (2 if how == "units" else 5)
    whole = evoked.tiles(how, np.ones_like(valid), sites, slice(2, 7), [np.random.default_rng(i) for i in range(3)])
    for hidden in whole:
        # The sensors of a site share most of their signal: they are hidden together.
        assert (hidden.reshape(3, 3, 3, 8).all(2) == hidden.reshape(3, 3, 3, 8).any(2)).all()
    if how == "units":
        assert {int(m[0].any(1).sum()) for m in whole} == {3, 6}
        assert any(not np.array_equal(whole[0][0], whole[0][i]) for i in (1, 2)), "each window has its own halves"


def test_only_what_is_said_of_hidden_places_counts(cohort: Cohort) -> None:
    """A predictor that copies what it can see, and says nothing of the rest, has said nothing."""

    def copies(batch, hidden):
        return batch.signal.masked_fill(hidden[..., None], 0.0)

    scores = evaluated(cohort, {"copies": copies})
    assert (scores.of("copies", "waveform_r") == 0).all()


def test_epochs_that_leave_the_recording_or_touch_a_bad_span_are_left_out_and_counted(cohort: Cohort) -> None:
    whole, _ = evoked.find_responses(cohort, cohort.subjects[:1], Evoked(), seed=0)
    second = whole[0].windows[5]
    spoilt = replace(
        cohort,
        recordings=tuple(
            replace(r, bad_spans=((second.start / 128 + 0.1, second.start / 128 + 0.2),)) for r in cohort.recordings
        ),
    )
    less, _ = evoked.find_responses(spoilt, cohort.subjects[:1], Evoked(), seed=0)
    assert second.name in {w.name for w in whole[0].windows}
    assert second.name not in {w.name for w in less[0].windows}
    assert less[0].n_left_out == whole[0].n_left_out + len(whole[0].windows) - len(less[0].windows)
    for response in less:
        for window in (*response.windows, *response.away):
            recording = spoilt.recordings[window.recording]
            assert 0 <= window.start < window.stop == window.start + spoilt.samples_per_window <= recording.n_times
            (low, high), *_ = recording.bad_spans
            assert window.stop / 128 <= low or window.start / 128 >= high


def test_shifted_epochs_are_away_from_every_response(cohort: Cohort) -> None:
    task = Evoked()
    first, _ = evoked.patches_of_epoch(cohort, task.span_s)
    responses, _ = evoked.find_responses(cohort, cohort.subjects, task, seed=0)
    assert all(r.clear for r in responses)
    for response in responses:
        assert len(response.away) == len(response.windows)
        for window in response.away:
            begin = (window.start + first * cohort.samples_per_patch) / cohort.sfreq
            for event in cohort.recordings[window.recording].events:
                assert begin > event.onset_s + 0.8 - 0.01 or begin + 1.0 < event.onset_s + 0.01
    other, _ = evoked.find_responses(cohort, cohort.subjects, task, seed=1)
    assert other[0].away != responses[0].away
    crowded = replace(
        cohort,
        recordings=tuple(
            replace(r, events=tuple(replace(e, onset_s=2 + i) for i, e in enumerate(r.events)))
            for r in cohort.recordings
        ),
    )
    # An event every second, but only in the first 22 s of a minute: there is room after them.
    assert all(r.clear for r in evoked.find_responses(crowded, cohort.subjects, task, seed=0)[0])
    early, _ = evoked.find_responses(crowded, cohort.subjects, task, seed=0, span=(0.1, 0.4))
    assert not any(r.clear for r in early)


def test_only_the_span_is_used_and_the_number_of_epochs_is_capped(cohort: Cohort) -> None:
    late, _ = evoked.find_responses(cohort, cohort.subjects, Evoked(), seed=0, span=(0.4, 1.0))
    for response in late:
        for window in (*response.windows, *response.away):
            assert window.start >= 0.4 * cohort.recordings[window.recording].n_times
    few, _ = evoked.find_responses(cohort, cohort.subjects, Evoked(max_epochs=10), seed=0)
    assert {len(r.windows) for r in few} == {10}
    starts = [w.start for w in few[0].windows]
    assert starts == sorted(starts)
    nobody, n_small = evoked.find_responses(cohort, cohort.subjects, Evoked(), seed=0, span=(0.75, 1.0))
    assert (nobody, n_small) == ((), 16)


# ---------------------------------------------------------------- predictors


@pytest.mark.parametrize("how", ["units", "time"])
def test_a_perfect_and_an_empty_prediction(cohort: Cohort, how: str) -> None:
    task = Evoked(tile=how)
    scores = evaluated(cohort, {"perfect": perfect, "nothing": nothing}, task, subjects=cohort.subjects)
    best, worst = (score_evoked(task, scores, p, seed=0, n_bootstrap=200) for p in scores.predictors)
    assert [best.metrics[m].value for m in evoked.MEASURES] == pytest.approx([1, 1, 0, 1, 1])
    assert best.above_chance is True
    values = {m: worst.metrics[m].value for m in evoked.MEASURES}
    assert values.pop("peak_latency_error") > 15
    assert set(values.values()) == {0.0}
    assert worst.above_chance is False
    assert abs(best.metrics["waveform_r[null]"].value) < 0.25, "real averages away from events are only noise"
    assert best.metrics["waveform_r[away]"].value == pytest.approx(1)
    assert 0.8 < best.metrics["waveform_r[ceiling]"].value < 1
    # The real half is one noisy prediction of the other; one without noise would reach the root of that.
    np.testing.assert_allclose(
        scores.of("perfect", "across_halves_r") ** 0.5, scores.of("perfect", "across_halves_r[ceiling]")
    )


def test_fillers_find_the_planted_response_and_nothing_where_there_is_none(cohort: Cohort, null_cohort: Cohort) -> None:
    for data, planted_here in ((cohort, True), (null_cohort, False)):
        cutter = Tokenizer(data, Scaler.fit(data, data.subjects[:4]))
        fillers = fit_fillers(cutter, data.subjects[:4], ratio=0.5, seed=0)
        scores = evaluated(data, fillers, subjects=data.subjects)
        ridge = score_evoked(Evoked(), scores, "ridge", seed=0, n_bootstrap=200)
        mean = score_evoked(Evoked(), scores, "mean", seed=0, n_bootstrap=200)
        assert mean.metrics["waveform_r"].value == 0
        assert abs(ridge.metrics["across_halves_r[null]"].value) < 0.15
        if planted_here:
            assert ridge.metrics["waveform_r"].value > 0.8
            assert ridge.metrics["topography_r"].value > 0.9
            assert ridge.metrics["peak_latency_error"].value < 10
            assert abs(ridge.metrics["waveform_r[null]"].value) < 0.15
            assert ridge.above_chance is True
        else:
            assert abs(ridge.metrics["across_halves_r"].value) < 0.15
            assert ridge.above_chance is False


def test_chunks_batches_and_company_change_nothing(cohort: Cohort) -> None:
    alone = evaluated(cohort, {"ramp": lambda batch, hidden: batch.signal * 0.5 + 1})
    beside = evaluated(cohort, {"nothing": nothing, "ramp": lambda batch, hidden: batch.signal * 0.5 + 1}, batch_size=3)
    np.testing.assert_allclose(alone.values[0], beside.values[1], atol=1e-8)
    chunked = evaluated(cohort, {"perfect": perfect}, chunk=5)
    np.testing.assert_allclose(chunked.of("perfect", "waveform_r"), 1)


def test_sensor_types_count_alike(cohort: Cohort) -> None:
    """A type in units a thousand times as large does not drown the others."""
    types = tuple(("mag", "grad")[i % 2] for i in range(12))
    mixed = replace(cohort, units=replace(cohort.units, types=types))
    blown = []
    for r in mixed.recordings:
        path = r.path.with_name(f"mixed_{r.path.name}")
        factor = np.where(np.array(types) == "grad", 1e3, 1.0).astype(np.float32)
        np.save(path, r.open() * factor[:, None])
        blown.append(replace(r, path=path, centre=r.centre * factor, robust_scale=r.robust_scale * factor))
    mixed = replace(mixed, recordings=tuple(blown))

    def only(kind: str):
        kept = torch.tensor([t == kind for t in types])
        return lambda batch, hidden: batch.signal * kept[batch.table.unit][..., None, None]

    scores = evaluated(mixed, {"mag": only("mag"), "grad": only("grad"), "perfect": perfect})
    np.testing.assert_allclose(scores.of("perfect", "waveform_r"), 1)
    np.testing.assert_allclose(scores.of("mag", "waveform_r"), 0.5**0.5, atol=0.1)
    np.testing.assert_allclose(scores.of("grad", "waveform_r"), 0.5**0.5, atol=0.1)


def test_a_unit_that_is_missing_is_left_out(cohort: Cohort) -> None:
    def without(r):
        present = r.present.copy()
        present[3] = False
        return replace(r, present=present)

    holed = replace(cohort, recordings=tuple(map(without, cohort.recordings)))
    scores = evaluated(holed, {"perfect": perfect, "nothing": nothing})
    np.testing.assert_allclose(scores.of("perfect", "waveform_r"), 1)
    np.testing.assert_allclose(scores.of("perfect", "peak_amplitude_ratio"), 1)


# ---------------------------------------------------------------- scores


def test_scores_are_means_over_subjects_of_means_over_conditions(cohort: Cohort, tmp_path: Path) -> None:
    cutter = Tokenizer(cohort, Scaler.fit(cohort, cohort.subjects[:4]))
    fillers = fit_fillers(cutter, cohort.subjects[:4], ratio=0.5, seed=0)
    scores = evaluated(cohort, fillers, subjects=cohort.subjects)
    table = response_table(scores, "ridge")
    assert set(table["state"]) == {"auditory", "somatosensory"}
    score = score_evoked(Evoked(), scores, "ridge", seed=0, n_bootstrap=200)
    by_subject = table.groupby("participant_id")["gfp_r"].mean()
    assert score.metrics["gfp_r"].value == pytest.approx(by_subject.mean())
    auditory = table[table["state"] == "auditory"]["waveform_r"].mean()
    assert score.metrics["waveform_r[auditory/auditory]"].value == pytest.approx(auditory)
    for metric in score.metrics.values():
        assert metric.low <= metric.value <= metric.high
    assert score.metrics["peak_latency_error"].unit == "ms"
    assert not score.metrics["peak_latency_error[null]"].higher_is_better
    assert any("noise ceiling (odd against even epochs; r: root of the reliability" in n for n in score.notes)
    assert any(n.startswith("null (predictions at shifted events)") for n in score.notes)
    save_evoked(scores, tmp_path / "scores.npz")
    loaded = load_evoked(tmp_path / "scores.npz")
    pd.testing.assert_frame_equal(response_table(loaded, "ridge"), table)
    assert loaded.predictors == ("mean", "interpolation", "ridge")
    first, second = (evaluated(cohort, fillers, subjects=s) for s in (cohort.subjects[:4], cohort.subjects[4:]))
    joined = join_evoked([first, second], "subjects")
    np.testing.assert_allclose(joined.values, scores.values)
    ridge, mean = (response_table(scores, p) for p in ("ridge", "mean"))
    assert difference_of("waveform_r", ridge, mean)["low"] > 0
    assert difference_of("waveform_r", ridge, ridge)["p"] == 1
    with pytest.raises(DataError, match="subjects are in one of them only"):
        difference_of("waveform_r", ridge, response_table(first, "ridge"))
    with pytest.raises(ValueError, match="different subjects"):
        join_evoked([first, second], "predictors")


def test_the_ceiling_is_what_the_planted_response_itself_reaches(cohort: Cohort) -> None:
    """The response without its noise, known here, correlates with the real average as the ceiling says."""
    responses, _ = evoked.find_responses(cohort, cohort.subjects, Evoked(), seed=0)
    first, _ = evoked.patches_of_epoch(cohort, (-0.2, 0.8))
    times = evoked.epoch_times(cohort.sfreq, (-0.2, 0.8))
    cuts = []
    for response in (r for r in responses if r.state == "auditory"):
        starts = [w.start + first * cohort.samples_per_patch for w in response.windows]
        data = cohort.recordings[response.windows[0].recording].open()
        cuts.append(evoked.average(np.stack([data[:, s : s + len(times)] for s in starts]), times))
    clean = np.mean(cuts, 0)  # Over subjects, who share the response and not the noise.
    reached = np.mean([evoked.waveform_r(c, clean) for c in cuts])
    scores = evaluated(cohort, {"perfect": perfect}, subjects=cohort.subjects)
    auditory = np.array(scores.states) == "auditory"
    assert scores.of("perfect", "waveform_r[ceiling]")[auditory].mean() == pytest.approx(reached, abs=0.03)


def test_a_fold_without_responses_is_no_reason_to_fail_and_no_response_at_all_is(
    cohort: Cohort, tmp_path: Path
) -> None:
    cutter = Tokenizer(cohort, Scaler.fit(cohort, cohort.subjects))
    none = evoked.evaluate({"perfect": perfect}, cutter, (), unit_chunks(cohort.units, 12), Evoked(), seed=0, n_small=3)
    save_evoked(none, tmp_path / "none.npz")
    none = load_evoked(tmp_path / "none.npz")
    some = evaluated(cohort, {"perfect": perfect})
    both = join_evoked([none, some], "subjects")
    assert both.n_small == 3
    np.testing.assert_array_equal(both.values, some.values)
    score = score_evoked(Evoked(), both, "perfect", seed=0, n_bootstrap=50)
    assert "3 responses of fewer than 10 usable epochs are left out" in score.notes
    with pytest.raises(DataError, match=r"each of the 3 of held-out subjects has fewer than 10 usable epochs"):
        score_evoked(Evoked(), none, "perfect", seed=0)


# ---------------------------------------------------------------- the task


def test_cohorts_without_events_are_refused_by_name(cohort: Cohort, tmp_path: Path) -> None:
    assert Evoked().refuses(cohort) == ""
    rest = replace(cohort, recordings=tuple(r for r in cohort.recordings if r.state == "rest"))
    assert Evoked().refuses(rest) == "simulated_specimen has no events: none in any recording of the states rest"
    few = replace(cohort, recordings=tuple(replace(r, events=r.events[:4]) for r in cohort.recordings))
    reason = Evoked().refuses(few)
    assert "the most are 4, of auditory/auditory, somatosensory/somatosensory; states without any: rest" in reason
    assert "needs 21 patches, and a window has 8" in Evoked(tmax_s=4.9).refuses(cohort)
    volume = simulated_cohort(tmp_path, n_subjects=2, signal="volume", n_voxels=4)
    assert "a patch of a volume" in Evoked().refuses(volume)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"tile": "sensors"}, "cannot hide epochs by 'sensors'.*tile=units, tile=time"),
        ({"tmin_s": 0.5, "tmax_s": 0.2}, "from 0.5 to 0.2 s"),
        ({"max_epochs": 3}, "cannot average 3 epochs.*10 or more"),
        ({"peaks": "auditory"}, "a peak in 'auditory'.*auditory:0.08-0.13"),
        ({"peaks": "auditory:0.2-0.1"}, "a peak in 'auditory:0.2-0.1'"),
    ],
)
def test_parameters_that_make_no_sense(parameters: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Evoked(**parameters)


def test_where_peaks_are_looked_for() -> None:
    task = Evoked(peaks="auditory:0.08-0.13+deviant:0.1-0.25")
    assert task.peak_window_s("auditory", "tone") == (0.08, 0.13)
    assert task.peak_window_s("auditory", "deviant") == (0.1, 0.25)
    assert task.peak_window_s("visual", "face") == (0.0, 0.8)
    assert Evoked().peak_window_s("somatosensory", "left") == (0.02, 0.07)


def test_the_contract_checks_pass() -> None:
    results = {r.check: r for r in check_component(Evoked)}
    assert all(r.ok for r in results.values()), [r for r in results.values() if not r.ok]
    assert results["perfect-and-shuffled"].outcome == "passed"
    assert results["perfect-and-shuffled"].message.startswith("waveform_r: perfect 1; above chance after shuffling: ")
    assert results["epochs"].message == "units, -0.2 to 0.8 s"


class Careless(Evoked):
    """Takes anything, looks for peaks where there is no epoch, and calls half a response perfect."""

    metrics = (Metric("waveform_r", "", True, 0.0, 0.5),)

    def refuses(self, cohort: Cohort) -> str:
        return ""

    def peak_window_s(self, state: str, condition: str) -> tuple[float, float]:
        return (0.1, 0.9) if state == "no such state" else super().peak_window_s(state, condition)


@pytest.mark.parametrize(
    ("check", "message"),
    [
        ("perfect-and-shuffled", "a perfect prediction has waveform_r 1.*the best is said to be 0.5"),
        ("refusal", "does not refuse a cohort without events"),
        ("epochs", r"of no such state/no such condition is \(0.1, 0.9\), not within the epoch"),
    ],
)
def test_a_careless_task_is_caught(check: str, message: str) -> None:
    (result,) = check_component(Careless, only=check)
    assert result.outcome == "failed"
    assert re.search(message, result.message), result.message


# ---------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evoked-data")
    write_states(folder, n_subjects=8)
    return folder


def run(data: Path, out: Path, **options: object) -> pd.DataFrame:
    settings = {"backbone": "tiny", "mask": "time_block", "dataset": "fake_states", "data_dir": data, "out": out}
    return neurobench.run(**settings | {"n_steps": 3, "task": "evoked", "plugin_files": PLUGIN} | options)


def test_a_whole_run(data: Path, tmp_path: Path) -> None:
    table = run(data, tmp_path / "out")
    assert set(table["status"]) == {"ok"}, table["error"].tolist()
    rows = table.set_index("row")
    assert set(rows.index) == {"mean", "interpolation", "ridge", "tiny · untrained", "tiny · time_block"}
    assert rows.loc["ridge", "score"] > 0.8
    assert abs(rows.loc["ridge", "metric_waveform_r[null]"]) < 0.2
    assert rows.loc["ridge", "metric_peak_latency_error"] < 10
    assert rows.loc["ridge", "above_chance"]
    assert rows.loc["ridge", "best"], "ahead of the next row"
    assert rows.loc["mean", "score"] == 0
    assert not rows.loc["mean", "above_chance"]
    assert (rows["n_subjects"] == 8).all()
    assert rows["metric_waveform_r[ceiling]"].nunique() == 1
    assert "metric_waveform_r[somatosensory/tone]" in table
    loaded = neurobench.load_results(tmp_path / "out").set_index("row")
    record = results.read_record(Path(loaded.loc["ridge", "record"]))
    assert any("noise ceiling" in n for n in record.notes)
    responses = results.load_predictions(tmp_path / "out", record.id)
    assert len(responses) == 16
    assert responses.groupby("participant_id")["waveform_r"].mean().mean() == pytest.approx(
        record.metrics["waveform_r"].value
    )
    shown = io.StringIO()
    print_results(table, Console(file=shown, width=200))
    assert "split-half noise ceiling: waveform r 0." in shown.getvalue()
    for title in ("null", "background", "across halves", "GFP r", "topography r", "latency (ms)", "amplitude"):
        assert title in shown.getvalue().splitlines()[3], title
    again = run(data, tmp_path / "out")
    pd.testing.assert_frame_equal(again, table)


def test_within_recordings(data: Path, tmp_path: Path) -> None:
    long = tmp_path / "long"
    write_states(long, n_subjects=2, n_events=60)
    table = run(long, tmp_path / "out", split="within-recording").set_index("row")
    assert set(table["status"]) == {"ok"}, table["error"].tolist()
    assert table.loc["ridge", "score"] > 0.8
    assert not table["best"].any(), "within recordings nothing is ranked"
    assert table["above_chance"].isna().all(), "two subjects cannot say"


def test_a_dataset_without_events_says_so(tmp_path: Path) -> None:
    write_states(tmp_path / "data", n_subjects=4)
    for path in (tmp_path / "data").glob("*.json"):
        path.write_text("[]")
    table = run(tmp_path / "data", tmp_path / "out")
    assert set(table["status"]) == {"failed"}
    assert "has no events: none in any recording of the states auditory, rest, somatosensory" in table.loc[0, "error"]

"""Bad channels, artefacts and the noise of sensors in MEG recordings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mne
import numpy as np
import pytest

from neurobench import DataError, RawRecording, RecordingFile
from neurobench.cohorts import CohortSource
from neurobench.store import Store
from neurobench_datasets._meg_artefacts import bad_by_value, find_artefacts, merged
from neurobench_datasets._meg_files import read_meg_file
from neurobench_datasets._meg_settings import MegSettings
from neurobench_datasets.meg_headache import MegHeadache
from tests.meg_files import make_raw, save

NAME = "sub-01/meg/sub-01_task-rest_meg.fif"


def read(root: Path, raw: mne.io.BaseRaw, **parameters: Any) -> RawRecording:
    save(raw, root / NAME)
    (root / "participants.tsv").write_text("participant_id\tage\nsub-01\t30\n", encoding="utf-8")
    dataset = MegHeadache(**parameters)
    return dataset.read(dataset.list_recordings(root).recordings[0])


def said(raw: RawRecording) -> dict[str, str]:
    return {f.code: f.message for f in raw.findings}


def missing(raw: RawRecording) -> set[str]:
    return {n for n, row in zip(raw.units.names, raw.data, strict=True) if np.isnan(row).all()}


# ---------------------------------------------------------------- channels


def test_flat_and_saturated_channels_are_missing_and_named(tmp_path: Path) -> None:
    source = make_raw()
    flat, dropout, clipped, marked = (source.ch_names[i] for i in (2, 5, 8, 11))
    source._data[2] = 3e-12
    source._data[5, 1000:2000] = 1e-13
    # An amplifier at the end of its range holds it, for far longer than noise would.
    slow = 2e-11 * np.sin(2 * np.pi * 0.7 * source.times)
    source._data[8] = np.clip(source._data[8] + slow, -1e-11, 1e-11)
    source.info["bads"] = [marked]
    raw = read(tmp_path, source)
    assert missing(raw) == {flat, dropout, clipped, marked}
    assert (
        said(raw)["flat-channels"] == f"2 of 17 sensors hold one value for a while and are left out: {flat}, {dropout}"
    )
    assert said(raw)["saturated-channels"].endswith(clipped)
    assert raw.bad_spans == (), "the others are whole"


def test_a_short_dropout_is_a_bad_span(tmp_path: Path) -> None:
    source = make_raw()
    source._data[5, 3000:3200] = 0.0
    raw = read(tmp_path, source)
    assert missing(raw) == set()
    assert len(raw.bad_spans) == 1
    start, end = raw.bad_spans[0]
    assert start == pytest.approx(3.0, abs=0.01)
    assert end == pytest.approx(3.2, abs=0.01)


def test_a_value_that_is_missing_costs_its_channel_only(tmp_path: Path) -> None:
    source = make_raw()
    source._data[4, 100:110] = np.nan
    dataset = MegHeadache()
    read(tmp_path, source)
    cohort = CohortSource(dataset, "m", {"name": "m"}, dataset.spec, tmp_path).load(Store(tmp_path / "out"))
    # One recording: what it lacks, the cohort lacks.
    assert len(cohort.units) == 16
    assert source.ch_names[4] not in cohort.units.names
    assert any(source.ch_names[4] in f.message for f in cohort.findings)


def test_a_channel_that_is_always_loud_is_bad_and_the_rest_is_not_rejected(tmp_path: Path) -> None:
    source = make_raw()
    source._data[3] *= 200
    raw = read(tmp_path, source)
    assert missing(raw) == {source.ch_names[3]}
    assert source.ch_names[3] in said(raw)["noisy-channels"]
    assert raw.bad_spans == ()


def test_channels_that_hold_a_value_by_chance_are_whole() -> None:
    # Integers of few steps, as old amplifiers write them: equal neighbours are common.
    data = np.round(np.random.default_rng(0).standard_normal((4, 4000))) * 1e-13
    assert bad_by_value(data, 1000.0) == ([], [], [])


# ---------------------------------------------------------------- spans


def with_jump(seconds: float = 10.0, at: float = 4.2, size: float = 2e-11) -> mne.io.RawArray:
    source = make_raw(seconds=seconds)
    wave = np.exp(-(((source.times - at) / 0.03) ** 2))
    source._data[:-1] += size * wave
    return source


def test_jumps_are_bad_spans_and_the_share_is_said(tmp_path: Path) -> None:
    raw = read(tmp_path, with_jump())
    assert raw.bad_spans == ((4.0, 4.5),)
    assert missing(raw) == set()
    text = next(p for p in raw.provenance if p.startswith("artefacts"))
    assert text == "artefacts (over 4 pT or pT/cm from peak to peak in 0.5 s, 1–40 Hz): 5% of a recording left out"
    assert read(tmp_path, with_jump(), reject="off").bad_spans == ()
    assert read(tmp_path, with_jump(), reject="10").bad_spans == ()
    assert read(tmp_path, with_jump(size=3e-12)).bad_spans == ()
    assert read(tmp_path, with_jump(size=3e-12), reject="0.4").bad_spans == ((4.0, 4.5),)


def test_slow_drifts_are_filtered_and_no_artefact(tmp_path: Path) -> None:
    source = make_raw(seconds=20)
    source._data[:-1] += 5e-11 * np.sin(2 * np.pi * 0.05 * source.times)
    assert read(tmp_path, source).bad_spans == ()


def test_annotated_spans_are_bad_whatever_the_limits(tmp_path: Path) -> None:
    source = make_raw(seconds=10, first_samp=7000)
    source.set_annotations(mne.Annotations([1.0, 1.4, 9.5], [0.5, 0.5, 0.5], ["BAD_blink", "bad", "BAD muscle"]))
    raw = read(tmp_path, source, reject="off")
    np.testing.assert_allclose(raw.bad_spans, [(1.0, 1.9), (9.5, 10.0)], atol=1e-6)
    assert "limits not applied): 14% of a recording left out" in " ".join(raw.provenance)


def test_a_recording_that_loses_more_than_half_says_so(tmp_path: Path) -> None:
    source = make_raw(seconds=10)
    source.set_annotations(mne.Annotations([0.0], [6.0], ["BAD_movement"]))
    assert said(read(tmp_path, source))["mostly-artefacts"].startswith("60% of the recording are artefacts")


def test_interference_everywhere_is_said_and_rejects_nothing(tmp_path: Path) -> None:
    source = make_raw()
    source._data[:-1] *= 200
    raw = read(tmp_path, source)
    assert missing(raw) == set()
    assert raw.bad_spans == ()
    assert said(raw)["loud-recording"].startswith("100% of the sensors of kind mag are over the limit")


def test_bad_spans_reach_the_cohort(tmp_path: Path) -> None:
    read(tmp_path, with_jump())
    dataset = MegHeadache()
    for _ in range(2):
        cohort = CohortSource(dataset, "m", {"name": "m"}, dataset.spec, tmp_path).load(Store(tmp_path / "out"))
        assert cohort.recordings[0].bad_spans == ((4.0, 4.5),)


def test_limits_are_those_of_the_kind_of_sensor() -> None:
    data = np.random.default_rng(0).standard_normal((8, 4000)) * 1e-13
    data[:, 1200] += 2e-10
    kinds = np.array(["mag", "grad"] * 4)
    assert find_artefacts(data, kinds, 1000.0, 1.0).spans == ((1.0, 1.5),)
    assert find_artefacts(data[1::2], kinds[1::2], 1000.0, 1.0).spans == ()


def test_loud_sensors_of_one_kind_leave_the_other_to_judge() -> None:
    data = np.random.default_rng(0).standard_normal((8, 4000)) * 1e-13
    kinds = np.array(["mag", "grad"] * 4)
    data[kinds == "mag"] *= 1000
    data[1, 1200] += 1e-7
    found = find_artefacts(data, kinds, 1000.0, 1.0)
    assert found.loud == (("mag", 1.0),)
    assert found.noisy == ()
    assert found.spans == ((1.0, 1.5),)


def test_spans_are_joined_and_cut() -> None:
    assert merged([(3.0, 4.0), (-1.0, 0.5), (0.5, 1.0), (3.5, 9.0), (20.0, 30.0)], 8.0) == [(0.0, 1.0), (3.0, 8.0)]


# ---------------------------------------------------------------- the recording as a whole


def test_internal_active_shielding_is_said(tmp_path: Path) -> None:
    source = make_raw()
    with source.info._unlock():
        source.info["maxshield"] = True
    raw = read(tmp_path, source)
    assert "internal active shielding" in said(raw)["active-shielding"]
    assert any("not processed by MaxFilter" in p for p in raw.provenance)


def test_projectors_that_wait_are_said_and_not_applied(tmp_path: Path) -> None:
    source = make_raw()
    weights = np.ones((1, 17)) / np.sqrt(17)
    names = source.ch_names[:-1]
    content = {"nrow": 1, "ncol": 17, "row_names": None, "col_names": names, "data": weights}
    source.add_proj(mne.Projection(active=False, kind=1, desc="room", explained_var=None, data=content))
    raw = read(tmp_path, source)
    assert "1 projectors against interference, which the file has, are not applied" in raw.provenance
    np.testing.assert_allclose(raw.data, source.get_data(picks="mag"), rtol=1e-5)


def test_short_recordings_and_the_high_pass(tmp_path: Path) -> None:
    assert "1 s is shorter than the 3 s" in said(read(tmp_path, make_raw(seconds=1)))["short-for-filter"]
    assert "short-for-filter" not in said(read(tmp_path, make_raw(seconds=4)))


def test_a_power_line_inside_the_band_is_said(tmp_path: Path) -> None:
    assert "line-in-band" not in said(read(tmp_path, make_raw()))
    (tmp_path / NAME).with_suffix(".json").write_text('{"PowerLineFrequency": 16.7}')
    assert "16.7 Hz lie inside the band of 1–40 Hz" in said(read(tmp_path, make_raw()))["line-in-band"]


# ---------------------------------------------------------------- noise


def room(root: Path, *, scale: float = 0.3, day: str = "20200101") -> Path:
    source = make_raw(seconds=20, seed=7)
    source._data *= scale
    source._data[6] *= 20
    return save(source, root / f"sub-emptyroom/ses-{day}/meg/sub-emptyroom_ses-{day}_task-noise_meg.fif")


def test_an_empty_room_says_the_noise_of_the_sensors(tmp_path: Path) -> None:
    room(tmp_path)
    raw = read(tmp_path, make_raw())
    text = next(p for p in raw.provenance if p.startswith("noise of the sensors"))
    # 30 fT of white noise up to 500 Hz, of which 1–40 Hz are kept.
    assert text == "noise of the sensors in sub-emptyroom_ses-20200101_task-noise_meg.fif: 8 fT (median mag)"
    assert make_raw().ch_names[6] in said(raw)["noisy-sensors"]
    assert np.nanstd(raw.data) == pytest.approx(1e-13, rel=0.02), "reported, and not used"


def test_the_empty_room_of_the_day_is_taken_and_of_several_none_is_guessed(tmp_path: Path) -> None:
    room(tmp_path)
    room(tmp_path, day="20200202")
    assert not any(p.startswith("noise") for p in read(tmp_path, make_raw()).provenance)
    source = make_raw()
    source.set_meas_date(1580601600)  # 2 February 2020
    assert any("ses-20200202" in p for p in read(tmp_path, source).provenance)


def test_whitening_makes_the_noise_white(tmp_path: Path) -> None:
    mixing = np.eye(17) + 0.5 * np.random.default_rng(1).standard_normal((17, 17))
    noise, source = make_raw(seconds=60, seed=3), make_raw(seconds=60, seed=4)
    for r in (noise, source):
        r._data[:-1] = mixing @ r._data[:-1]
    cov = mne.compute_raw_covariance(noise, picks="meg", verbose="ERROR")
    (tmp_path / "sub-01/meg").mkdir(parents=True)
    cov.save(tmp_path / "sub-01/meg/sub-01_task-rest-cov.fif", verbose="ERROR")
    source.info["bads"] = [source.ch_names[9]]
    raw = read(tmp_path, source, whiten="on")
    assert missing(raw) == {source.ch_names[9]}
    rows = np.delete(raw.data.astype(float), raw.units.names.index(source.ch_names[9]), axis=0)
    np.testing.assert_allclose(np.cov(rows), np.eye(16), atol=0.05)
    assert any("values have no unit" in p for p in raw.provenance)
    plain = read(tmp_path, source)
    assert np.nanmax(np.abs(plain.data)) < 1e-10
    assert not any("no unit" in p for p in plain.provenance)


def test_whitening_without_noise_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no noise covariance to whiten it with.*say whiten=off"):
        read(tmp_path, make_raw(), whiten="on")


def test_noise_that_does_not_fit(tmp_path: Path) -> None:
    path = room(tmp_path)
    path.write_bytes(path.read_bytes()[:3000])
    raw = read(tmp_path, make_raw())
    assert "cut off" in said(raw)["noise-unreadable"]
    with pytest.raises(DataError, match="whiten=off"):
        read(tmp_path, make_raw(), whiten="on")
    save(make_raw(seconds=20).drop_channels(make_raw().ch_names[:3]), path)
    with pytest.raises(DataError, match="lacks 3 sensors"):
        read(tmp_path, make_raw(), whiten="on")


def test_noise_of_another_processing_is_not_the_recordings(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "meg" / "sample_audvis_trunc_raw_sss.fif"
    options = {**MegSettings().options(), "noise_file": str(save(make_raw(), tmp_path / "room_meg.fif"))}
    found = said(read_meg_file(RecordingFile("s", path, 300.0, options=options)))
    assert "was not processed by MaxFilter, other than the recording" in found["noise-differs"]


# ---------------------------------------------------------------- real files


@pytest.mark.parametrize(
    ("name", "codes", "n_missing"),
    [
        ("141027_cropped_90Hz_raw.fif", {"loud-recording", "no-head-position"}, 0),
        ("neuromag122_test_file-raw.fif", {"short-for-filter", "flat-channels", "no-head-position"}, 2),
        ("sample_audvis_trunc_raw_sss.fif", {"short-for-filter"}, 0),
        ("triux_bmlhus_erm_raw_sss.fif", {"short-for-filter", "no-head-position"}, 0),
        ("testdata_ctf_short_discontinuous.ds_raw.fif", {"short-for-filter"}, 0),
        ("somMDYO-18av.ds", {"short-for-filter", "averaged", "loud-recording"}, 7),
        ("sample_audvis_5s_neuromag306_fieldtrip_raw_v7.mat", {"missing-sensors"}, 0),
        ("test_elekta_3ch_raw.fif", {"no-head-position"}, 0),
    ],
)
def test_what_real_files_say(shared_data: Path, name: str, codes: set[str], n_missing: int) -> None:
    raw = read_meg_file(RecordingFile("s", shared_data / "meg" / name, 1.0))
    assert {f.code for f in raw.findings} == codes
    assert len(missing(raw)) == n_missing
    assert sum(b - a for a, b in raw.bad_spans) < 0.2 * raw.data.shape[1] / raw.sfreq

"""Events of MEG recordings: tables, trigger channels, annotations, and everything that can be wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mne
import numpy as np
import pytest

from neurobench import ConfigError, Event, RawRecording, RecordingFile
from neurobench.cohorts import CohortSource
from neurobench.store import Store
from neurobench_datasets._meg_events import constant_shift
from neurobench_datasets._meg_files import list_bids_meg, read_meg_file
from neurobench_datasets._meg_settings import MegSettings
from neurobench_datasets.meg_headache import MegHeadache
from tests.meg_files import make_raw, save

TONES = ((1.0, 6), (2.0, 7), (3.0, 6), (4.0, 7), (5.0, 6))
NAME = "sub-01_task-auditory_meg.fif"


def folder_with(tmp_path: Path, raw: mne.io.BaseRaw, table: str | None = None, *, name: str = NAME) -> Path:
    save(raw, tmp_path / "sub-01/meg" / name)
    if table is not None:
        (tmp_path / "sub-01/meg" / name.replace("_meg.fif", "_events.tsv")).write_text(table, encoding="utf-8")
    (tmp_path / "participants.tsv").write_text("participant_id\tage\nsub-01\t30\n", encoding="utf-8")
    return tmp_path


def read(root: Path, **parameters: Any) -> RawRecording:
    dataset = MegHeadache(**parameters)
    files = dataset.list_recordings(root).recordings
    assert len(files) == 1
    return dataset.read(files[0])


def rows(events: tuple[Event, ...]) -> list[tuple[float, str]]:
    return [(round(e.onset_s, 3), e.condition) for e in events]


def said(raw: RawRecording) -> dict[str, str]:
    return {f.code: f.message for f in raw.findings}


# ---------------------------------------------------------------- where events come from


def test_triggers_count_from_the_first_sample(tmp_path: Path) -> None:
    raw = read(folder_with(tmp_path, make_raw(triggers=TONES, first_samp=25_000)))
    assert rows(raw.events) == [(t, f"trigger-{c}") for t, c in TONES]
    assert "events from trigger channel STI101" in raw.provenance
    assert raw.findings == ()


def test_a_table_of_conditions_names_and_selects(tmp_path: Path) -> None:
    raw = read(folder_with(tmp_path, make_raw(triggers=TONES)), events="6:tone300")
    assert rows(raw.events) == [(t, "tone300") for t, c in TONES if c == 6]
    assert "events that no condition names are left out" in raw.provenance


@pytest.mark.parametrize("channel", ["STI 014", "UPPT001", "STI 005"])
def test_other_trigger_channels(tmp_path: Path, channel: str) -> None:
    raw = read(folder_with(tmp_path, make_raw(triggers=TONES, channel=channel)))
    assert len(raw.events) == 5
    assert f"events from trigger channel {channel}" in raw.provenance


def test_codes_of_one_sample(tmp_path: Path) -> None:
    raw = read(folder_with(tmp_path, make_raw(triggers=TONES, trigger_samples=1)))
    assert len(raw.events) == 5, "where all codes last a sample they are real"
    steps = [(t - 0.001, c + 8) for t, c in TONES]
    mixed = make_raw(triggers=TONES)
    for onset, code in steps:
        mixed._data[-1, round(onset * 1000)] = code
    again = read(folder_with(tmp_path / "steps", mixed))
    assert {e.condition for e in again.events} == {"trigger-6", "trigger-7"}, "a step on the way is no event"


def test_negative_codes_of_the_highest_bit(tmp_path: Path) -> None:
    raw = make_raw(triggers=[(1.0, 5)])
    raw._data[-1, 2000:2010] = -32768 + 5
    assert [e.condition for e in read(folder_with(tmp_path, raw)).events] == ["trigger-5", f"trigger-{32768 + 5}"]


def test_the_table_beside_it_wins_and_its_byte_order_mark_is_no_letter(tmp_path: Path) -> None:
    table = "\ufeffonset\tduration\ttrial_type\tvalue\n" + "".join(
        f"{t}\t0\t{'low' if c == 6 else 'high'}\t{c}\n" for t, c in TONES
    )
    root = folder_with(tmp_path, make_raw(triggers=TONES, first_samp=25_000), table)
    raw = read(root)
    assert rows(raw.events) == [(t, "low" if c == 6 else "high") for t, c in TONES]
    assert raw.findings == ()
    assert "events from events.tsv" in raw.provenance
    by_value = read(root, events="7:beep")
    assert rows(by_value.events) == [(2.0, "beep"), (4.0, "beep")]
    by_text = read(root, events="LOW:deep")
    assert {e.condition for e in by_text.events} == {"deep"}


def test_a_table_is_inherited_from_the_folder_above(tmp_path: Path) -> None:
    root = folder_with(tmp_path, make_raw(), name="sub-01_task-auditory_run-01_meg.fif")
    (root / "sub-01/sub-01_task-rest_events.tsv").write_text("onset\ttrial_type\n1\twrong\n")
    assert "no-events" in said(read(root))
    (root / "sub-01/sub-01_task-auditory_events.tsv").write_text("onset\ttrial_type\n1.5\ttone\nn/a\ttone\n")
    assert rows(read(root).events) == [(1.5, "tone")]


def test_a_changed_table_is_another_recording(tmp_path: Path) -> None:
    root = folder_with(tmp_path, make_raw(), "onset\ttrial_type\n1\ttone\n")
    first = list_bids_meg(root)[0][0]
    (root / "sub-01/meg/sub-01_task-auditory_events.tsv").write_text("onset\ttrial_type\n2\ttone\n")
    assert list_bids_meg(root)[0][0].options != first.options


def test_annotations_are_events_and_bad_spans_are_none(tmp_path: Path) -> None:
    raw = make_raw(first_samp=5000)
    raw.set_annotations(mne.Annotations([1.0, 3.0, 4.0], [0.0, 0.5, 0.0], ["tone", "BAD_jump", "EDGE boundary"]))
    found = read(folder_with(tmp_path, raw))
    assert rows(found.events) == [(1.0, "tone")]
    assert "events from annotations" in found.provenance


# ---------------------------------------------------------------- what is wrong with them


def test_a_state_with_stimuli_needs_events(tmp_path: Path) -> None:
    raw = read(folder_with(tmp_path, make_raw()))
    assert raw.events == ()
    finding = next(f for f in raw.findings if f.code == "no-events")
    assert "a recording of state auditory has no events" in finding.message
    assert "its stimulus channels: STI101" in finding.message
    assert "_events.tsv" in finding.fix
    assert "trigger=" in finding.fix
    rest = read(folder_with(tmp_path / "rest", make_raw(), name="sub-01_task-rest_meg.fif"))
    assert rest.findings == ()


def test_a_wrong_trigger_channel_names_the_right_ones(tmp_path: Path) -> None:
    raw = read(folder_with(tmp_path, make_raw(triggers=TONES, channel="STI 014")), trigger="STI101")
    assert (
        "there is no trigger channel STI101; the recording's stimulus channels: STI 014" in said(raw)["trigger-channel"]
    )
    assert "no-events" in said(raw)


def test_codes_that_do_not_occur_are_said_with_those_that_do(tmp_path: Path) -> None:
    root = folder_with(tmp_path, make_raw(triggers=TONES))
    raw = read(root, events="6:low+8:high")
    assert "events 8 (high) do not occur in trigger channel STI101" in said(raw)["event-codes"]
    assert "7 ×2" in said(raw)["event-codes"]
    none = read(root, events="1:low")
    assert none.events == ()
    assert "none of the events of trigger channel STI101 has a condition" in said(none)["no-events"]


@pytest.mark.parametrize(("first_samp", "with_triggers"), [(25_000, True), (25_000, False), (2_000, True)])
def test_onsets_that_count_the_devices_samples_are_put_right(
    tmp_path: Path, first_samp: int, with_triggers: bool
) -> None:
    late = first_samp / 1000
    table = "onset\ttrial_type\n" + "".join(f"{t + late}\ttone\n" for t, _ in TONES)
    root = folder_with(tmp_path, make_raw(triggers=TONES if with_triggers else (), first_samp=first_samp), table)
    raw = read(root)
    assert rows(raw.events) == [(t, "tone") for t, _ in TONES]
    text = said(raw)["events-shifted"]
    assert f"{late:.4g} s" in text
    assert "subtracted" in text
    assert set(said(raw)) == {"events-shifted"}


def test_a_delay_of_the_stimulus_is_kept_and_another_shift_is_not(tmp_path: Path) -> None:
    uneven = [(t + 0.07 * i, c) for i, (t, c) in enumerate(TONES)]
    for shift, kept in ((0.035, True), (0.6, False)):
        table = "onset\ttrial_type\n" + "".join(f"{t + shift:.3f}\ttone\n" for t, _ in uneven)
        raw = read(folder_with(tmp_path / str(shift), make_raw(seconds=8, triggers=uneven), table))
        expected = [(round(t + shift * kept, 3), "tone") for t, _ in uneven]
        assert rows(raw.events) == expected
        assert set(said(raw)) == {"events-delayed" if kept else "events-shifted"}


def test_a_table_of_another_recording_is_said(tmp_path: Path) -> None:
    times = [0.513, 0.926, 1.931, 2.207, 3.444]
    table = "onset\ttrial_type\n" + "".join(f"{t}\ttone\n" for t in times)
    raw = read(folder_with(tmp_path, make_raw(triggers=TONES), table))
    assert "have no trigger in STI101" in said(raw)["events-differ"]
    assert len(raw.events) == 5


def test_counts_that_differ_are_said(tmp_path: Path) -> None:
    table = "onset\ttrial_type\tvalue\n" + "".join(f"{t}\ttone\t{c}\n" for t, c in TONES[:-1])
    raw = read(folder_with(tmp_path, make_raw(triggers=TONES), table))
    assert "differ in how often a code occurs (6: 2 and 3)" in said(raw)["events-differ"]


def test_events_outside_the_data_are_left_out_and_said(tmp_path: Path) -> None:
    table = "onset\ttrial_type\n-1\ttone\n2\ttone\n600\ttone\n"
    raw = read(folder_with(tmp_path, make_raw(), table))
    assert rows(raw.events) == [(2.0, "tone")]
    assert "2 of 3 events" in said(raw)["events-outside"]
    assert "outside the recording of 6 s" in said(raw)["events-outside"]


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ("onset\ttrial_type\n", "no rows"),
        ("time\ttrial_type\n1\ttone\n", "no column onset"),
        ("onset\tduration\n1\t0\n", "neither trial_type nor value"),
        ("onset\ttrial_type\nsoon\ttone\n", "no row"),
        ("<!DOCTYPE html><html>", "web page"),
    ],
)
def test_tables_that_cannot_be_used_leave_the_triggers(tmp_path: Path, table: str, text: str) -> None:
    raw = read(folder_with(tmp_path, make_raw(triggers=TONES), table))
    assert text in said(raw)["events-unreadable"]
    assert len(raw.events) == 5


@pytest.mark.parametrize("events", ["6", "6:", ":tone", "6:a+6:b"])
def test_conditions_that_cannot_be_read(events: str) -> None:
    with pytest.raises(ConfigError, match="events="):
        MegHeadache(events=events)


def test_a_table_without_rows_is_right_at_rest(tmp_path: Path) -> None:
    raw = read(folder_with(tmp_path, make_raw(), "onset\ttrial_type\n", name="sub-01_task-rest_meg.fif"))
    assert raw.findings == ()


def test_a_table_of_the_whole_data_set_holds_and_one_above_it_does_not(tmp_path: Path) -> None:
    root = folder_with(tmp_path / "data", make_raw())
    (tmp_path / "task-auditory_events.tsv").write_text("onset\ttrial_type\n1\twrong\n")
    assert read(root).events == ()
    (root / "task-auditory_events.tsv").write_text("onset\ttrial_type\n2\tright\n")
    assert rows(read(root).events) == [(2.0, "right")]


def test_the_shift_that_is_found_is_the_true_one() -> None:
    rng = np.random.default_rng(0)
    triggers = np.cumsum(rng.uniform(0.5, 1.5, 80))
    for shift in (0.0, 0.05, -0.3, 44.5):
        found, share = constant_shift(triggers[3:60] + shift, triggers, 44.5, 0.002)
        assert found == pytest.approx(shift, abs=1e-9)
        assert share == 1.0
    # Regular stimuli fit shifted by one, too: none is preferred.
    regular = np.arange(50) * 0.8
    assert constant_shift(regular, regular, 44.5, 0.002)[0] == 0.0


# ---------------------------------------------------------------- real files and the twin


def test_real_triggers(shared_data: Path) -> None:
    path = shared_data / "meg" / "test_elekta_3ch_raw.fif"
    raw = read_meg_file(RecordingFile("s", path, 1000.0, options=MegSettings().options()))
    counts = {c: sum(e.condition == f"trigger-{c}" for e in raw.events) for c in (1, 2, 16, 32, 128)}
    assert counts == {1: 26, 2: 25, 16: 19, 32: 22, 128: 19}
    # MNE's own answer, from the first sample on: the device's counter stood at 3000.
    assert raw.events[0].onset_s == pytest.approx(0.483)
    fieldtrip = shared_data / "meg" / "sample_audvis_5s_neuromag306_fieldtrip_raw_v7.mat"
    raw = read_meg_file(RecordingFile("s", fieldtrip, 300.0, options=MegSettings().options()))
    assert rows(raw.events) == [(3.623, "trigger-2"), (4.236, "trigger-3"), (4.945, "trigger-1")]


def test_the_twins_events_reach_the_cohort(tmp_path: Path) -> None:
    dataset = MegHeadache()
    code = {"name": dataset.name}
    source = CohortSource(dataset, dataset.name, code, dataset.spec, None, n_subjects=2)
    for _ in range(2):  # read, and read back from the store
        cohort = source.load(Store(tmp_path / "out"))
        counts = {(r.state, len(r.events) > 10) for r in cohort.recordings}
        assert counts == {("rest", False), ("auditory", True), ("somatosensory", True)}
        conditions = {e.condition for r in cohort.recordings for e in r.events if r.state == "auditory"}
        assert conditions == {"auditory"}
        assert not [f for f in cohort.findings if f.code.startswith("event")]


def test_a_button_held_down_hides_no_stimulus(tmp_path: Path) -> None:
    source = make_raw(triggers=[(0.5, 1), (2.0, 2), (3.5, 3)])
    source._data[-1, 1000:2500] += 4096  # pressed before the second stimulus, released after it
    source._data[-1, 4000:4010] += 4096
    source._data[-1, 5000:5010] += 16384  # another line, once
    path = save(source, tmp_path / "smt_raw.fif")
    how = MegSettings(conditions=(("1", "a"), ("2", "b"), ("3", "c")), button="button")
    raw = read_meg_file(RecordingFile("s", path, 1000.0, options=how.options()))
    assert rows(raw.events) == [(0.5, "a"), (1.0, "button"), (2.0, "b"), (3.5, "c"), (4.0, "button")]

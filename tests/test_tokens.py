"""Windows, patches, the token table and training-only scaling."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from neurobench.cohorts import CohortSource
from neurobench.errors import DataError
from neurobench.records import Cohort, SignalSpec
from neurobench.store import Store
from neurobench.tokens import Scaler, Tokenizer, TrainingWindows, evaluation_windows, unit_chunks
from tests.fakes import FakeDataset, write_folder


def cohort(tmp_path: Path, n_times: int = 60, scaling: str = "recording", n_subjects: int = 6) -> Cohort:
    write_folder(tmp_path / "data", n_subjects, n_times)
    spec = SignalSpec(window_s=40.0, patch_s=8.0, scaling=scaling)
    source = CohortSource(FakeDataset(), "fake", {"name": "fake"}, spec, tmp_path / "data")
    return source.load(Store(tmp_path / "out"))


def tokenizer(c: Cohort) -> Tokenizer:
    return Tokenizer(c, Scaler.fit(c, c.subjects))


def test_shapes_follow_from_seconds(tmp_path: Path) -> None:
    c = cohort(tmp_path)
    assert (c.sfreq, c.samples_per_patch, c.patches_per_window, c.n_features) == (0.5, 4, 5, 4)
    windows = evaluation_windows(c, c.subjects)
    batch = tokenizer(c).batch(windows[:3], np.arange(12))
    assert batch.signal.shape == (3, 12, 5, 4)
    assert batch.table.valid.all()
    assert batch.table.position.shape == (3, 12, 3)
    assert batch.windows == ("s000_rest@0", "s000_rest@20", "s000_rest@40")


def test_tokens_are_the_scaled_signal(tmp_path: Path) -> None:
    c = cohort(tmp_path)
    window = evaluation_windows(c, c.subjects[:1])[1]
    tokens = tokenizer(c).batch([window], np.array([2, 7])).signal.numpy()[0].reshape(2, -1)
    raw = np.asarray(c.recordings[0].open(), np.float64)
    z = (raw - raw.mean(1, keepdims=True)) / raw.std(1, keepdims=True)
    np.testing.assert_allclose(tokens, z[[2, 7], window.start : window.start + 20], atol=1e-5)


def test_a_short_recording_is_padded_and_its_padding_is_no_token(tmp_path: Path) -> None:
    c = cohort(tmp_path, n_times=14)
    (window,) = evaluation_windows(c, c.subjects[:1])
    batch = tokenizer(c).batch([window], np.arange(12))
    # 14 samples are three whole patches of four; the fourth runs into the padding.
    assert batch.table.valid[0, 0].tolist() == [True, True, True, False, False]
    assert (batch.signal[0, :, 3:] == 0).all()


def test_below_half_a_window_is_left_out_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"too-short × 6 .*less than half a window of 40 s"):
        cohort(tmp_path, n_times=9)


@pytest.mark.parametrize("stored", [np.float32, np.float16])
def test_large_cohorts_are_read_window_by_window_with_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: type
) -> None:
    c = cohort(tmp_path)
    for recording in c.recordings:
        np.save(recording.path, np.array(recording.open(), stored))
    windows = evaluation_windows(c, c.subjects)
    kept = tokenizer(c).batch(windows, np.arange(12)).signal
    monkeypatch.setattr("neurobench.tokens.CACHE_BYTES", 0)
    mapped = tokenizer(c).batch(windows, np.arange(12)).signal
    np.testing.assert_array_equal(kept.numpy(), mapped.numpy())


def test_training_scale_comes_from_training_subjects_only(tmp_path: Path) -> None:
    c = cohort(tmp_path, scaling="training")
    few = Scaler.fit(c, c.subjects[:3])
    np.save(c.recordings[5].path, np.asarray(c.recordings[5].open()) * 1000)
    assert Scaler.fit(c, c.subjects[:3]).to_dict() == few.to_dict()
    assert Scaler.from_dict(few.to_dict()).to_dict() == few.to_dict()
    assert Scaler.fit(c, c.subjects).to_dict() != few.to_dict()


def test_within_recording_scaling_does_not_see_the_later_part(tmp_path: Path) -> None:
    c = cohort(tmp_path)
    before = Scaler.fit(c, c.subjects, (0.0, 0.5)).parameters(c.recordings[0], c.units)
    changed = np.array(c.recordings[0].open())
    changed[:, 31:] += 50
    np.save(c.recordings[0].path, changed)
    after = Scaler.fit(c, c.subjects, (0.0, 0.5)).parameters(c.recordings[0], c.units)
    np.testing.assert_array_equal(before, after)


def test_chunks_cover_every_unit_once_and_are_spread_over_groups(tmp_path: Path) -> None:
    c = cohort(tmp_path)
    chunks = unit_chunks(c.units, 5)
    assert sorted(np.concatenate(chunks).tolist()) == list(range(12))
    for chunk in chunks:
        assert len({c.units.groups[i] for i in chunk}) == 3


def test_training_windows_depend_on_seed_and_step_only(tmp_path: Path) -> None:
    c = cohort(tmp_path)
    train = c.subjects[:4]
    first = TrainingWindows(tokenizer(c), train, n_tokens=25, seed=3)
    second = TrainingWindows(tokenizer(c), train, n_tokens=25, seed=3)
    second.draw(5, 8)
    a, b = first.draw(2, 8), second.draw(2, 8)
    assert a.windows == b.windows
    assert a.signal.shape == (8, 5, 5, 4)
    np.testing.assert_array_equal(a.table.unit.numpy(), b.table.unit.numpy())
    assert set(a.subjects) <= set(train)
    other = TrainingWindows(tokenizer(c), train, n_tokens=25, seed=4).draw(2, 8)
    assert other.windows != a.windows


def test_every_training_subject_is_drawn_equally_often(tmp_path: Path) -> None:
    c = cohort(tmp_path)
    windows = TrainingWindows(tokenizer(c), c.subjects, n_tokens=60, seed=0)
    drawn = [s for step in range(6) for s in windows.draw(step, 4).subjects]
    assert {drawn.count(s) for s in c.subjects} == {4}

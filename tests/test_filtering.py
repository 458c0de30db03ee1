"""The chain along time: one matrix, equal to filtering step by step, and to what nilearn does with confounds."""

from __future__ import annotations

import numpy as np
import pytest
from nilearn.signal import clean

from neurobench import filtering
from neurobench.errors import DataError
from neurobench.filtering import Temporal, band_pass, resample

BAND = (0.01, 0.1)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_the_matrix_is_the_filter(rng: np.random.Generator) -> None:
    data = rng.normal(size=(5, 180)) + 100
    step_by_step = resample(band_pass(data, 0.6, BAND), 0.6, 0.4)
    np.testing.assert_allclose(Temporal(180, 0.6, 0.4, BAND)(data), step_by_step, atol=1e-9)


def test_long_recordings_are_filtered_the_same(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    data, nuisance = rng.normal(size=(3, 400)), rng.normal(size=(400, 2))
    short = Temporal(400, 0.5, 0.4, BAND, nuisance)(data)
    monkeypatch.setattr(filtering, "LONGEST", 10)
    np.testing.assert_allclose(Temporal(400, 0.5, 0.4, BAND, nuisance)(data), short, atol=1e-9)


def test_volumes_voxel_by_voxel(rng: np.random.Generator) -> None:
    data = rng.integers(900, 1100, (4, 120, 7)).astype(np.int16)
    found = Temporal(120, 0.5, 0.5, BAND)(data)
    assert found.dtype == np.float32
    for voxel in range(7):
        expected = band_pass(data[:, :, voxel].astype(float), 0.5, BAND)
        np.testing.assert_allclose(found[:, :, voxel], expected, atol=1e-2)


def test_nothing_of_the_regressors_is_left(rng: np.random.Generator) -> None:
    nuisance = rng.normal(size=(200, 3)) * [1.0, 1e-3, 1e4]
    data = nuisance.T * 5 + np.linspace(0, 50, 200)
    left = Temporal(200, 0.5, 0.5, BAND, nuisance)(data)
    assert np.abs(left).max() < 1e-6 * np.abs(data).max()


def test_without_a_band_it_is_what_nilearn_does(rng: np.random.Generator) -> None:
    data, nuisance = rng.normal(size=(150, 4)), rng.normal(size=(150, 3))
    expected = clean(data, confounds=nuisance, detrend=True, standardize=None)
    found = Temporal(150, 0.5, 0.5, None, nuisance)(data.T)
    np.testing.assert_allclose(found.T, expected, atol=1e-8)


def test_a_repeated_or_constant_regressor_is_no_other(rng: np.random.Generator) -> None:
    data, one = rng.normal(size=(2, 150)), rng.normal(size=(150, 1))
    twice = np.hstack([one, 3 * one, np.ones((150, 1)), np.zeros((150, 1))])
    np.testing.assert_allclose(
        Temporal(150, 0.5, 0.5, BAND, twice)(data), Temporal(150, 0.5, 0.5, BAND, one)(data), atol=1e-9
    )


def test_regressors_of_another_recording_are_refused(rng: np.random.Generator) -> None:
    with pytest.raises(DataError, match="149 volumes for a recording of 150"):
        Temporal(150, 0.5, 0.5, BAND, rng.normal(size=(149, 2)))
    with pytest.raises(DataError, match="not finite"):
        Temporal(150, 0.5, 0.5, BAND, np.full((150, 1), np.nan))

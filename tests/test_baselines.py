"""Baselines: what they compute, and that they learn from training subjects only."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
from scipy import signal as sps
from scipy.io import loadmat

from neurobench.adaptation import fit_predict
from neurobench.components import ComponentSpec
from neurobench.errors import DataError
from neurobench.feature_steps import FeatureSteps
from neurobench.records import Cohort, DatasetCard, Fold, Recording, SignalSpec, UnitTable
from neurobench.tokens import statistics
from neurobench_baselines.connectome import Connectome, fisher_z
from neurobench_baselines.covariates import Covariates
from neurobench_baselines.mean import Mean
from neurobench_baselines.raw_signal import RawSignal, features, without_trend
from neurobench_baselines.tangent import Tangent
from neurobench_tasks.age import Age

CARD = DatasetCard("Simulated noise", "fmri", "none", "none", "", "", "", "1", "all")
ALL = [Mean, Covariates, RawSignal, Connectome, Tangent]


def make_cohort(tmp_path, recordings, *, sfreq=0.5, modality="fmri", signal="parcels", groups=None, **columns):
    """Build a cohort of (subject, state, array) recordings; rows that are NaN are missing units."""
    made = []
    for i, (subject, state, data) in enumerate(recordings):
        present = np.isfinite(data).reshape(len(data), -1).all(1)
        data = np.where(present.reshape(-1, *[1] * (data.ndim - 1)), data, 0.0).astype(np.float32)
        path = tmp_path / f"{i}.npy"
        np.save(path, data)
        made.append(
            Recording(f"{subject}_{state}_{i}", subject, state, path, data.shape[1], present, *statistics(data))
        )
    subjects = sorted({r.subject for r in made})
    n = len(data)
    return Cohort(
        dataset="simulated",
        card=CARD,
        signal=signal,
        modality=modality,
        source="simulated",
        participants=pd.DataFrame(columns, index=pd.Index(subjects, name="participant_id")),
        recordings=tuple(made),
        units=UnitTable.from_groups(tuple(f"u{i}" for i in range(n)), groups or ("",) * n),
        spec=SignalSpec(150.0, 15.0, sfreq),
        fingerprint="",
    )


def some(cohort, subjects):
    """Return the cohort of some subjects."""
    return replace(
        cohort,
        participants=cohort.participants.loc[list(subjects)],
        recordings=tuple(r for r in cohort.recordings if r.subject in set(subjects)),
    )


@pytest.fixture
def noise(tmp_path):
    rng = np.random.default_rng(0)
    data = [(f"s{i:02d}", "rest", rng.normal(size=(6, 200)).cumsum(1)) for i in range(12)]
    data[3][2][2] = np.nan
    return make_cohort(
        tmp_path,
        data,
        age=rng.uniform(20, 80, 12),
        sex=["F", "M"] * 6,
        site=["a", "b", "c"] * 4,
        mean_fd=rng.random(12),
    )


@pytest.mark.parametrize("cls", ALL)
def test_test_subjects_change_nothing_in_the_others(cls, noise):
    train = noise.subjects[:8]
    a, b = cls(), cls()
    for baseline in (a, b):
        baseline.fit(some(noise, train))
    everybody, alone = a.transform(noise), b.transform(some(noise, noise.subjects[9:10]))
    assert everybody.shape[0] == 12
    assert everybody.dtype == np.float64
    np.testing.assert_allclose(everybody[9:10], alone)
    assert not np.isinf(everybody).any()


def test_mean_has_no_column(noise):
    baseline = Mean()
    baseline.fit(noise)
    assert baseline.transform(noise).shape == (12, 0)
    assert fit_predict(np.empty((3, 0)), np.array([1.0, 2, 6]), np.empty((1, 0)), "regression", 0).values == [3.0]


def test_covariates_are_encoded(noise):
    baseline = Covariates()
    baseline.fit(some(noise, [s for s in noise.subjects if noise.participants.site[s] != "c"]))
    rows = baseline.transform(noise)
    assert baseline.columns == ("age", "sex", "site", "mean_fd")
    people = noise.participants
    np.testing.assert_array_equal(rows[:, 0], people.age)
    np.testing.assert_array_equal(rows[:, 1], people.sex == "M")
    np.testing.assert_array_equal(rows[:, 2:4], np.c_[people.site == "a", people.site == "b"])
    assert not rows[people.site == "c", 2:4].any()


def test_covariates_refuse_to_stand_in_for_the_mean(noise):
    with pytest.raises(DataError, match=r"no covariate besides the target.*age, sex, site"):
        Covariates().fit(replace(noise, participants=noise.participants[[]]))


def test_raw_signal_finds_the_band_and_the_variance():
    time = np.arange(400) * 2.0
    rng = np.random.default_rng(0)
    data = np.stack([a * np.sin(2 * np.pi * f * time) for f, a in ((0.025, 1), (0.055, 10), (0.085, 1))])
    found = features(data + 1e-3 * rng.normal(size=data.shape), 0.5, "fmri")
    assert found.shape == (3, 4)
    assert found[:, 1:].argmax(1).tolist() == [0, 1, 2]
    assert found[1, 0] - found[0, 0] == pytest.approx(np.log(100), abs=0.05)
    np.testing.assert_allclose(np.exp(found[:, 1:]).sum(1), 1, rtol=1e-6)
    short = features(data[:, :40], 0.5, "fmri")
    assert np.isfinite(short).all()


def test_lines_are_taken_off_as_scipy_does():
    segments = np.random.default_rng(0).normal(size=(3, 5, 200)).cumsum(-1)
    np.testing.assert_allclose(without_trend(segments), sps.detrend(segments), atol=1e-10)


def test_raw_signal_leaves_out_bands_above_nyquist():
    data = np.random.default_rng(0).normal(size=(2, 500))
    assert features(data, 20.0, "meg").shape == (2, 4)
    assert features(data, 100.0, "meg").shape == (2, 5)


def test_missing_units_are_missing_features(noise):
    for cls, n_missing in ((RawSignal, 4), (Connectome, 5)):
        baseline = cls()
        baseline.fit(noise)
        missing = np.isnan(baseline.transform(noise))
        assert missing[3].sum() == n_missing
        assert not np.delete(missing, 3, 0).any()
    tangent = Tangent()
    tangent.fit(noise)
    assert np.isfinite(tangent.transform(noise)).all()


def test_states_that_everybody_has(tmp_path):
    rng = np.random.default_rng(0)
    data = [
        (s, state, rng.normal(size=(3, 400)) * scale) for s in ("a", "b") for state, scale in (("rest", 1), ("tone", 9))
    ]
    data.append(("a", "touch", rng.normal(size=(3, 400))))
    cohort = make_cohort(tmp_path, data, sfreq=100.0, modality="meg", signal="sensors")
    baseline = RawSignal()
    baseline.fit(cohort)
    rows = baseline.transform(cohort)
    assert baseline.states == ("rest", "tone")
    assert rows.shape == (2, 2 * 3 * 5)
    assert (rows.reshape(2, 2, 3, 5)[:, 1, :, 0] > rows.reshape(2, 2, 3, 5)[:, 0, :, 0] + 3).all()
    lonely = some(cohort, ["b"])
    without = baseline.transform(replace(lonely, recordings=lonely.recordings[:1]))
    assert np.isnan(without.reshape(2, 15)[1]).all()
    apart = replace(cohort, recordings=(cohort.recordings[0], cohort.recordings[3]))
    with pytest.raises(DataError, match=r"share no state: between them they have rest, tone"):
        RawSignal().fit(apart)


def test_connectome_is_numpys():
    data = np.random.default_rng(0).normal(size=(5, 80))
    np.testing.assert_allclose(fisher_z(data), np.arctanh(np.corrcoef(data)[np.triu_indices(5, 1)]))
    assert np.isfinite(fisher_z(np.stack([data[0], data[0], -data[0]]))).all()


def test_recordings_of_a_subject_are_averaged(tmp_path):
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 3, 60))
    cohort = make_cohort(tmp_path, [("a", "rest", first), ("a", "rest", second)])
    np.testing.assert_allclose(Connectome().transform(cohort)[0], (fisher_z(first) + fisher_z(second)) / 2, atol=1e-5)


def test_patches_of_a_volume_are_paired_by_region(tmp_path):
    data = np.random.default_rng(0).normal(size=(6, 50, 4))
    data[5] = np.nan
    cohort = make_cohort(tmp_path, [("a", "rest", data)], signal="volume", groups=("x", "x", "y", "y", "z", "z"))
    means = data.mean(2)
    regions = np.stack([means[:2].mean(0), means[2:4].mean(0), means[4]])
    np.testing.assert_allclose(Connectome().transform(cohort)[0], fisher_z(regions), atol=1e-5)


def test_tangent_finds_a_covariance_that_differs(tmp_path):
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(8, 8))
    y = np.tile([0.0, 1.0], 30)
    data = []
    for i, label in enumerate(y):
        source = rng.normal(size=(8, 300))
        source[1] += 0.6 * label * source[0]
        data.append((f"s{i:02d}", "rest", mixing @ source))
    cohort = make_cohort(tmp_path, data)
    train, test = cohort.subjects[:40], cohort.subjects[40:]
    baseline = Tangent()
    baseline.fit(some(cohort, train))
    rows = baseline.transform(cohort)
    assert rows.shape == (60, 36)
    # Training subjects are steps from their own mean, so the steps cancel.
    np.testing.assert_allclose(rows[:40].mean(0), 0, atol=1e-3)
    predicted = fit_predict(rows[:40], y[:40], rows[40:], "classification", 0).values
    assert ((predicted > 0.5) == y[40:]).mean() > 0.8
    with pytest.raises(DataError, match=r"needs two training subjects"):
        Tangent().fit(some(cohort, test[:1]))


def test_tangent_reduces_many_sensors(tmp_path):
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(90, 20)) * np.repeat([1e-13, 1e-11], 45)[:, None]
    data = [(f"s{i}", "rest", mixing @ rng.normal(size=(20, 500))) for i in range(6)]
    cohort = make_cohort(tmp_path, data, sfreq=100.0, modality="meg", signal="sensors")
    baseline = Tangent()
    baseline.fit(cohort)
    rows = baseline.transform(cohort)
    assert rows.shape == (6, 20 * 21 // 2), "as many components as the signal has dimensions"
    assert np.isfinite(rows).all()


@pytest.mark.slow
def test_connectome_knows_age_on_real_recordings(shared_data, tmp_path):
    folder = shared_data / "abide_aal116"
    people = pd.read_csv(folder / "participants.tsv", sep="\t", index_col=0).sort_index()
    data = []
    for subject in people.index:
        series = loadmat(folder / "timeseries" / f"{subject}.mat")["ROISignals"].T.astype(float)
        series[series.std(1) == 0] = np.nan
        data.append((subject, "rest", series))
    rows = Connectome().transform(make_cohort(tmp_path, data))
    y = people.age.to_numpy(float)
    fold = np.random.default_rng(0).permutation(len(y)) % 5
    predicted = np.empty(len(y))
    for f in range(5):
        predicted[fold == f] = fit_predict(rows[fold != f], y[fold != f], rows[fold == f], "regression", 0).values
    assert np.corrcoef(predicted, y)[0, 1] > 0.4
    assert np.abs(predicted - y).mean() < 4.2


class Peeks(RawSignal):
    """Keeps what it was told of people."""

    name = "peeks"
    told: ClassVar[list[tuple[str, ...]]] = []

    def fit(self, cohort):
        self.told.append(tuple(cohort.participants))

    def transform(self, cohort):
        self.told.append(tuple(cohort.participants))
        return np.zeros((len(cohort.subjects), 1))


class Declares(Peeks):
    """Says that it differs from task to task."""

    depends_on_task = True


@pytest.mark.parametrize(("cls", "told"), [(Peeks, ()), (Declares, ("sex", "site", "mean_fd"))])
def test_a_run_tells_no_baseline_the_target(cls, told, noise, tmp_path):
    """One that serves every task is told no column: any of them is the target of one."""
    n = len(noise.subjects)
    people = noise.participants.assign(
        age=40.0, sex="F", site="a", mean_fd=0.1, full_iq=100.0, diagnosis=np.resize(["x", "y"], n)
    )
    run = SimpleNamespace(
        remembered={},
        registry=SimpleNamespace(get=lambda kind, name: cls),
        cohort=replace(noise, participants=people),
        component=lambda spec: {},
        task=lambda spec: Age(),
        of_windows=lambda spec: False,
        _fold_identity=lambda fold: {},
        _title=lambda what, fold: what,
        _n_values=1.0,
    )
    Peeks.told.clear()
    step = FeatureSteps.baseline_step(
        run,
        ComponentSpec("baseline", "peeks"),
        Fold(0, noise.subjects[:4], noise.subjects[4:]),
        ComponentSpec("task", "age"),
    )
    step.compute(tmp_path, lambda done, total: None, None)
    assert Peeks.told == [told, told]

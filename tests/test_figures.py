"""What figures show is what the tables say; the contract checks of figures are in test_checks.py."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from neurobench.specimen_evidence import simulated_evidence
from neurobench_figures import heatmap, intervals, roc, topomap
from neurobench_figures._helmet import HEAD, flat
from neurobench_figures.butterfly import butterfly


def drawn(cls, tmp_path: Path, kind="fmri", name=""):
    drawings = list(cls().draw(simulated_evidence(tmp_path, kind)))
    return next(d for d in drawings if name in d.name)


def test_points_are_the_scores_and_lines_the_intervals(tmp_path: Path):
    evidence = simulated_evidence(tmp_path, "fmri", n_seeds=1)
    d = next(x for x in intervals.Intervals().draw(evidence) if x.name == "age-intervals")
    axes = d.figure.axes[0]
    rows = evidence.rows("age").sort_values("score", kind="stable")
    points = sorted(float(x) for line in axes.lines if line.get_marker() in "oDs^" for x in line.get_xdata())
    np.testing.assert_allclose(points, rows["score"])
    ends = np.concatenate([np.asarray(c.get_segments())[:, :, 0] for c in axes.collections])
    np.testing.assert_allclose(np.sort(ends[:, 0]), np.sort(rows["low"]))
    assert [t.get_text() for t in axes.get_yticklabels()] == rows["row"].tolist()
    assert "MAE (years)" in axes.get_xlabel()
    assert "better" in axes.get_xlabel()


def test_cells_of_the_heat_map(tmp_path: Path):
    evidence = simulated_evidence(tmp_path, "fmri", n_seeds=1)
    d = next(x for x in heatmap.Heatmap().draw(evidence) if x.name == "age-heatmap")
    axes = d.figure.axes[0]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["roi", "random_tube", "time_block", "untrained"]
    rows = evidence.rows("age", row="mamba · roi")
    first = next(t.get_text() for t in axes.texts if t.get_position() == (0, 0))
    assert first.startswith(f"{rows['score'].iloc[0]:.3g}\n")


def test_differences_below_the_intervals_look_small(tmp_path: Path):
    image = drawn(heatmap.Heatmap, tmp_path, name="age").figure.axes[0].images[0]
    low, high = image.get_clim()
    widths = simulated_evidence(tmp_path, "fmri").rows("age", kind="pretrained")
    assert high - low >= (widths["high"] - widths["low"]).min() - 1e-9


def test_roc_points_against_scikit_learn():
    from sklearn.metrics import roc_curve

    rng = np.random.default_rng(0)
    truth, score = np.resize([0.0, 1.0], 50), rng.integers(0, 8, 50).astype(float)
    false, true = roc.roc_curve(truth, score, np.ones(50))
    expected = roc_curve(truth, score, drop_intermediate=False)
    np.testing.assert_allclose(false, expected[0])
    np.testing.assert_allclose(true, expected[1])


def test_the_top_of_the_helmet_is_the_middle():
    """A sensor on top comes to lie in the middle, ears on the circle, the nose in front."""
    angle = np.linspace(0, np.pi / 2, 7)
    ring = [(np.sin(a) * np.cos(t), np.sin(a) * np.sin(t), np.cos(a)) for a in angle for t in np.arange(8) * np.pi / 4]
    places = 110 * np.array(ring) + (0, 5, 40)
    found = flat(places)
    np.testing.assert_allclose(found[:8], 0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found[-8:], axis=1), HEAD, rtol=1e-6)
    assert found[-8:][0] == pytest.approx((HEAD, 0), abs=1e-6)
    assert found[-8:][2] == pytest.approx((0, HEAD), abs=1e-6)


def test_maps_of_sensors_only_where_there_are_sensors(tmp_path: Path):
    assert not list(topomap.Topomap().draw(simulated_evidence(tmp_path / "a", "fmri")))
    assert list(topomap.Topomap().draw(simulated_evidence(tmp_path / "b", "meg")))


@pytest.fixture
def auditory(shared_data: Path):
    """Return the real average of left auditory stimuli (three epochs), its magnetometers and their places in mm."""
    mne = pytest.importorskip("mne")
    path = shared_data / "meg" / "mne-python_test-ave.fif.gz"
    if not path.is_file():
        pytest.skip(f"{path.name} is not there")
    evoked = mne.read_evokeds(path, "Left Auditory", baseline=(None, 0), verbose="error").pick("mag", exclude="bads")
    turn = evoked.info["dev_head_t"]["trans"]
    places = np.array([c["loc"][:3] for c in evoked.info["chs"]]) @ turn[:3, :3].T + turn[:3, 3]
    table = pd.DataFrame(1000 * places, columns=["x", "y", "z"])
    return evoked, table.assign(unit=evoked.ch_names, type="mag", site=np.arange(len(table)))


def test_the_real_auditory_response(auditory):
    """M100: a peak at about 90 ms, a dipolar field over each temporal lobe, outgoing and ingoing side by side."""
    evoked, table = auditory
    real = SimpleNamespace(source="real")
    figure, alt = butterfly(real, table, evoked.data, 0.8 * evoked.data, evoked.times, (0.08, 0.13), "mag", "auditory")
    at = int(np.argmax(np.where((evoked.times >= 0.08) & (evoked.times <= 0.13), evoked.data.std(0), 0)))
    assert 80 <= 1e3 * evoked.times[at] <= 130
    assert f"real response peaks at {1e3 * evoked.times[at]:.0f} ms, the reconstructed one at" in alt
    assert "all times 1.00" in alt
    assert "SIMULATED" not in [t.get_text() for t in figure.texts]
    field = evoked.data[:, at]
    right, left = table["x"] > 40, table["x"] < -40
    for half in (right, left):
        assert field[half].max() > 1e-13
        assert field[half].min() < -1e-13
    # What is drawn is the data in fT.
    top = figure.subfigs[0].axes[0]
    assert top.get_ylabel() == "fT"
    np.testing.assert_allclose([line.get_ydata()[at] for line in top.lines[: len(field)]], 1e15 * field)

"""What figures show is what the tables say; the contract checks of figures are in test_checks.py."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from scipy import stats

from neurobench.specimen_evidence import simulated_evidence
from neurobench_figures import (
    _brain,
    attribution,
    attribution_map,
    geometry,
    heatmap,
    importance,
    intervals,
    roc,
    topomap,
    transfer,
)
from neurobench_figures._helmet import HEAD, by_place, flat
from neurobench_figures._style import number
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


def test_gradiometers_of_a_site_do_not_cancel():
    table = pd.DataFrame({"x": [0.0, 0.0, 50.0], "y": [0.0, 0.0, 9.0], "z": 90.0, "site": [0, 0, 1]})
    values = np.array([3.0, -3.0, 4.0])
    assert by_place(table, values)[1].tolist() == [0, 4]
    assert by_place(table, values, power=True)[1].tolist() == [3, 4]


def test_wilson_against_statistics_of_shares():
    low, high = roc.wilson(0.3, 20)
    reference = stats.binomtest(6, 20).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((reference.low, reference.high), abs=1e-4)
    assert roc.wilson(0.0, 10)[0] == pytest.approx(0, abs=1e-12)


def test_rank_correlation_of_four_rows_is_no_finding():
    x = np.arange(4.0)
    assert transfer.exact(x, x, 1.0) == pytest.approx(2 / 24)
    many = np.arange(12.0)
    assert transfer.exact(many, many, 1.0) < 0.001


def test_an_untrained_backbone_far_away_is_named_and_not_drawn():
    both = pd.DataFrame(
        {"score_x": [0.16, 0.18, 0.2, -0.97], "kind_x": ["pretrained"] * 3 + ["untrained"]}, index=["a", "b", "c", "u"]
    )
    shown, said = transfer.in_view(both)
    assert shown.index.tolist() == ["a", "b", "c"]
    assert said == "Outside the picture: u at R² −0.97. "
    assert transfer.in_view(both.assign(score_x=[0.1, 0.2, 0.3, 0.0]))[1] == ""


def test_geometry_is_held_against_chance():
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(200):
        table = pd.DataFrame(rng.normal(size=(40, 2)), columns=["pc1", "pc2"]).assign(site=np.resize(list("abcde"), 40))
        shares.append(geometry.explained(table, "site"))
    assert np.mean(shares) == pytest.approx(geometry.by_chance(40, 5), abs=0.01)
    r = [abs(np.corrcoef(rng.normal(size=(2, 30)))[0, 1]) for _ in range(2000)]
    assert np.quantile(r, 0.95) == pytest.approx(geometry.critical(30), abs=0.02)


def test_slices_hold_the_value_of_the_nearest_region(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plotting = pytest.importorskip("nilearn.plotting")
    painted = {}
    monkeypatch.setattr(plotting, "plot_stat_map", lambda image, **more: painted.update(image=image, **more))
    figure = Figure(figsize=(6, 3))
    table = pd.DataFrame({"x": [-40.0, 40.0], "y": [-20.0, -20.0], "z": [30.0, 30.0], "type": "parcel"})
    _brain.slices(figure, (0, 0, 1, 1), np.array([-0.5, 1.0]), table, True, "R²")
    image = painted["image"]
    data = np.asarray(image.dataobj)

    def at(place: tuple[float, float, float]) -> float:
        return float(data[tuple(np.round(np.linalg.inv(image.affine) @ [*place, 1])[:3].astype(int))])

    assert at((-40, -20, 30)) == pytest.approx(-0.5)
    assert at((40, -20, 30)) == pytest.approx(1)
    assert at((0, -20, 30)) == 0, "too far from both"
    assert painted["vmin"] == -painted["vmax"]


def test_names_of_aal_have_its_places():
    table = pd.DataFrame({"unit": ["Precentral_L", "Calcarine_R"], "x": np.nan, "y": np.nan, "z": np.nan})
    found = _brain.placed(table)
    assert found is not None
    units, said = found
    assert units["x"].iloc[0] < -20 < 0 < units["x"].iloc[1], "left is negative"
    assert units["y"].iloc[1] < -50, "the calcarine lies at the back"
    assert "AAL" in said
    assert _brain.placed(table.assign(unit=["Precentral_L", "r2"])) is None


def test_attribution_says_what_it_is_worth(tmp_path: Path):
    d = drawn(attribution.Attribution, tmp_path, name="age-attribution")
    assert "growth of MAE" in d.figure.axes[0].get_xlabel(), "an error grows; it is not lost"
    assert "between folds +0.50" in d.caption


def test_maps_of_attribution_have_one_scale_for_row_and_control(tmp_path: Path):
    d = drawn(attribution_map.AttributionMap, tmp_path, "meg", "age-attribution-map")
    heads = [a for a in d.figure.axes if a.images]
    assert len(heads) == 2
    assert heads[0].images[0].get_clim() == heads[1].images[0].get_clim()
    assert "randomised weights" in heads[1].get_title()


def test_importance_rings_what_is_expected(tmp_path: Path):
    d = drawn(importance.Importance, tmp_path, "meg", "importance-mamba")
    rings = d.figure.axes[0].collections[-1]
    assert len(rings.get_offsets()) == 6, "every fifth of 30 sensors"


def test_numbers_have_a_minus_and_zero_has_none():
    assert number(-0.123) == "−0.12"
    assert number(-0.001) == "0.00"
    assert number(0.5, "+.2f") == "+0.50"


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

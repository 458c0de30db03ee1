"""Windows as rows: the derived cohort, the probe of several classes, scores over subjects, whole runs."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score, recall_score, roc_auc_score

import neurobench
from neurobench import adaptation, results
from neurobench.checks import check_component
from neurobench.errors import ConfigError, DataError
from neurobench.paired import difference_of, row_of
from neurobench.records import Cohort, Fold
from neurobench.specimens import simulated_states
from neurobench.tokens import Scaler, Tokenizer, evaluation_windows
from neurobench.window_scoring import WindowRow, score_window_task, window_predictions
from neurobench.windows import window_rows
from neurobench_tasks.state import State
from tests.states_plugin import write_states

PLUGIN = Path(__file__).with_name("states_plugin.py")
NAMES = ("auditory", "rest", "somatosensory")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return simulated_states(tmp_path_factory.mktemp("states"), n_subjects=6)


# ---------------------------------------------------------------- the derived cohort


def test_every_window_is_a_row_with_the_signal_of_its_place(cohort: Cohort) -> None:
    rows = window_rows(cohort, State(windows=3))
    assert rows.names == NAMES
    assert len(rows.subjects) == 6 * 3 * 3 == len(rows.cohort.recordings)
    assert rows.cohort.subjects == tuple(rows.subjects.index)
    whole = {(r.subject, r.state): r.open() for r in cohort.recordings}
    starts: dict[tuple[str, str], list[int]] = {}
    for recording in rows.cohort.recordings:
        key = rows.subjects[recording.id], rows.names[rows.classes[recording.id]]
        starts.setdefault(key, []).append(recording.start)
        stop = recording.start + cohort.samples_per_window
        np.testing.assert_array_equal(recording.open(), whole[key][:, recording.start : stop])
    assert all(np.diff(sorted(s)).min() >= cohort.samples_per_window for s in starts.values())


def test_a_row_says_nothing_of_its_class_but_through_its_signal(cohort: Cohort) -> None:
    rows = window_rows(cohort, State())
    assert {r.state for r in rows.cohort.recordings} == {"window"}
    assert all(not r.events for r in rows.cohort.recordings)
    assert not any(name in row for row in rows.subjects.index for name in NAMES)
    number = rows.subjects.index.str[-3:]
    firsts = rows.classes[number == "000"]
    assert firsts.nunique() > 1, "the number of a row does not follow the class"
    assert set(rows.cohort.participants) <= {"site", "age", "sex", "mean_fd", "duration_s"}


def test_a_window_is_scaled_as_in_pretraining(cohort: Cohort) -> None:
    scaler = Scaler.fit(cohort, cohort.subjects[:3])
    rows = window_rows(cohort, State(windows=2)).cohort
    (window, *_) = evaluation_windows(rows, rows.subjects[:1])
    piece = rows.recordings[window.recording]
    source = next(i for i, r in enumerate(cohort.recordings) if r.path == piece.path)
    units = np.arange(12)
    got = Tokenizer(rows, scaler).batch([window], units).signal
    wanted = Tokenizer(cohort, scaler).batch(
        [replace(window, recording=source, start=piece.start, stop=piece.start + 256)], units
    )
    np.testing.assert_allclose(got, wanted.signal, rtol=1e-6)


def test_rows_of_a_subject_stay_on_one_side(cohort: Cohort) -> None:
    rows = window_rows(cohort, State())
    fold = rows.fold(Fold(0, cohort.subjects[:4], cohort.subjects[4:]))
    assert {rows.subjects[r] for r in fold.train} == set(cohort.subjects[:4])
    assert {rows.subjects[r] for r in fold.test} == set(cohort.subjects[4:])
    assert len(fold.train) + len(fold.test) == len(rows.subjects)


def test_windows_that_touch_a_bad_span_are_left_out(cohort: Cohort) -> None:
    spoilt = replace(cohort, recordings=tuple(replace(r, bad_spans=((2.5, 3.0),)) for r in cohort.recordings))
    all_of, kept = (window_rows(c, State(windows=1000)) for c in (cohort, spoilt))
    assert 256 in {r.start for r in all_of.cohort.recordings}
    assert 256 not in {r.start for r in kept.cohort.recordings}
    assert len(all_of.subjects) - len(kept.subjects) == len(cohort.recordings)
    only = replace(
        cohort,
        recordings=tuple(r if r.state == "rest" else replace(r, bad_spans=((0.0, 1e6),)) for r in cohort.recordings),
    )
    with pytest.raises(DataError, match=r"1 class has a whole window \(rest\)"):
        window_rows(only, State())


def test_reordered_units_are_cut_too(cohort: Cohort) -> None:
    turned = replace(cohort.recordings[0], rows=np.array([3, -1, 5]), start=100, n_times=50)
    data = turned.open()
    whole = cohort.recordings[0].open()
    np.testing.assert_array_equal(data[[0, 2]], whole[[3, 5], 100:150])
    assert np.isnan(data[1]).all()


# ---------------------------------------------------------------- probe


def clusters(n: int, n_classes: int, distance: float, seed: int = 0):
    rng = np.random.default_rng(seed)
    classes = np.arange(n) % n_classes
    centres = rng.normal(0, distance, (n_classes, 20))
    groups = [f"s{i // 6}" for i in range(n)]
    offset = np.repeat(rng.normal(0, 1, (n // 6 + 1, 20)), 6, 0)[:n]
    return centres[classes] + rng.normal(0, 1, (n, 20)) + offset, classes, groups


@pytest.mark.parametrize("n_classes", [2, 3, 5])
def test_several_classes_are_told_apart(n_classes: int) -> None:
    x, classes, groups = clusters(240, n_classes, 2.0)
    p, converged = adaptation.fit_predict_classes(x[:180], classes[:180], x[180:], n_classes, groups[:180], seed=0)
    assert converged
    assert p.shape == (60, n_classes)
    np.testing.assert_allclose(p.sum(1), 1)
    assert (p.argmax(1) == classes[180:]).mean() > 0.9
    far, *_ = clusters(240, n_classes, 0.0)
    p, _ = adaptation.fit_predict_classes(far[:180], classes[:180], far[180:], n_classes, groups[:180], seed=0)
    assert abs((p.argmax(1) == classes[180:]).mean() - 1 / n_classes) < 0.25


def test_two_classes_are_the_common_probe_but_for_the_inner_folds() -> None:
    x, classes, groups = clusters(120, 2, 0.5)
    p, _ = adaptation.fit_predict_classes(x[:90], classes[:90], x[90:], 2, groups[:90], seed=0)
    plain = adaptation.fit_predict(x[:90], classes[:90].astype(float), x[90:], "classification", seed=0)
    assert np.corrcoef(p[:, 1], plain.values)[0, 1] > 0.9


def test_inner_folds_keep_a_subject_together_and_both_classes_in_training() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat([f"s{i}" for i in range(12)], 4)
    y = np.tile([0.0, 1.0, 0.0, 0.0], 12)
    y[:16] = 0.0  # Four subjects of one class only.
    fold = adaptation._grouped_folds(y, groups, rng)
    assert all(len(set(fold[groups == g])) == 1 for g in groups)
    assert set(fold) == set(range(5))
    for f in range(5):
        assert set(y[fold != f]) == {0.0, 1.0}
    one = np.where(groups == "s5", y, 0.0)
    assert set(adaptation._grouped_folds(one, groups, rng)) == {-1}


def test_without_features_every_class_is_as_likely() -> None:
    _, classes, groups = clusters(60, 3, 1.0)
    p, _ = adaptation.fit_predict_classes(np.empty((60, 0)), classes, np.empty((5, 0)), 3, groups, seed=0)
    np.testing.assert_allclose(p, 1 / 3)
    missing, _ = adaptation.fit_predict_classes(
        np.random.default_rng(0).normal(size=(60, 4)), classes % 2, np.zeros((5, 4)), 3, groups, seed=0
    )
    np.testing.assert_allclose(missing[:, 2], 0)
    with pytest.raises(DataError, match="59 rows of features, 60 classes, 60 groups"):
        adaptation.fit_predict_classes(np.empty((59, 0)), classes, np.empty((5, 0)), 3, groups, seed=0)


# ---------------------------------------------------------------- scores


def table(signal: float, seed: int = 0, n_subjects: int = 12, each: int = 9) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    n = n_subjects * each
    classes = np.tile(np.arange(each) % 3, n_subjects)
    raw = rng.random((n, 3)) + signal * np.eye(3)[classes]
    subjects = np.repeat([f"s{i:02d}" for i in range(n_subjects)], each)
    return pd.concat(
        window_predictions(
            [f"{s}~{i}" for i in range(each)],
            [s] * each,
            j % 3,
            [NAMES[k] for k in classes[subjects == s]],
            raw[subjects == s] / raw[subjects == s].sum(1, keepdims=True),
            NAMES,
        )
        for j, s in enumerate(np.unique(subjects))
    )


def test_metrics_are_scikit_learns() -> None:
    predictions = table(0.4)
    score = score_window_task(State(), predictions, seed=0, n_bootstrap=100, n_permutations=50)
    p = predictions[[f"p[{n}]" for n in NAMES]].to_numpy()
    said = np.array(NAMES)[p.argmax(1)]
    got = {name: m.value for name, m in score.metrics.items()}
    assert got["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(predictions["truth"], said))
    assert got["macro_auroc"] == pytest.approx(roc_auc_score(predictions["truth"], p, multi_class="ovr", labels=NAMES))
    recalls = recall_score(predictions["truth"], said, labels=NAMES, average=None)
    assert [got[f"recall[{n}]"] for n in NAMES] == pytest.approx(recalls)
    assert score.n_subjects == 12
    assert len(score.per_fold["balanced_accuracy"]) == 3
    assert score.metrics["balanced_accuracy"].chance == pytest.approx(1 / 3)
    for metric in score.metrics.values():
        assert metric.low <= metric.value <= metric.high


def test_intervals_are_over_subjects_not_windows() -> None:
    """Ten copies of every window say nothing new."""
    once = table(0.4)
    tenfold = pd.concat([once.assign(window=once["window"] + f"-{i}") for i in range(10)])
    a, b = (score_window_task(State(), t, seed=0, n_permutations=20).metrics for t in (once, tenfold))
    assert (a["balanced_accuracy"].low, a["balanced_accuracy"].high) == pytest.approx(
        (b["balanced_accuracy"].low, b["balanced_accuracy"].high)
    )


def test_nothing_is_not_called_above_chance_and_something_is() -> None:
    nulls = [
        score_window_task(State(), table(0.0, seed=i), seed=0, n_bootstrap=200, n_permutations=99) for i in range(40)
    ]
    assert sum(s.above_chance for s in nulls) <= 6, "5 % of 40 is 2; more than 6 has probability .003"
    found = score_window_task(State(), table(0.5), seed=0, n_bootstrap=200, n_permutations=99)
    assert found.above_chance is True
    assert found.p_value == pytest.approx(0.01)
    assert any("exchanged within subjects" in n for n in found.notes)


def test_permutation_stays_within_subjects() -> None:
    """Subjects of one state each: knowing the subject is no evidence of telling states apart."""
    predictions = table(5.0, n_subjects=9)
    state = predictions["participant_id"].map({f"s{i:02d}": NAMES[i % 3] for i in range(9)})
    known = predictions.assign(truth=state, **{f"p[{n}]": (state == n).astype(float) for n in NAMES})
    score = score_window_task(State(), known, seed=0, n_bootstrap=200, n_permutations=99)
    assert score.metrics["balanced_accuracy"].value == 1
    assert score.p_value == 1
    assert score.above_chance is False


def test_rows_are_compared_on_the_same_windows() -> None:
    good, bad = table(1.0), table(0.1)
    fast, slow = (difference_of(m, good, bad) for m in ("balanced_accuracy", "macro_auroc"))
    assert fast["low"] > 0
    assert slow["low"] > 0
    assert difference_of("balanced_accuracy", good, good)["p"] == 1
    ones = np.ones((1, good["participant_id"].nunique()))
    assert row_of("balanced_accuracy", good).values(ones) == pytest.approx(
        WindowRow.of(good, "balanced_accuracy").values(ones)
    )
    with pytest.raises(ConfigError, match=r"no metric 'accuracy' of windows.*balanced_accuracy"):
        difference_of("accuracy", good, bad)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: pd.concat([t, t.iloc[:1]]), "window 's00~0' is predicted twice"),
        (lambda t: t.assign(fold=range(len(t))), "windows of subject 's00' are predicted in 9 folds"),
        (lambda t: t.assign(truth="asleep"), "belongs to 'asleep', which is none of the classes"),
        (lambda t: t.iloc[:0], "0 windows"),
    ],
)
def test_wrong_predictions_are_refused(change, message: str) -> None:
    with pytest.raises(DataError, match=message):
        score_window_task(State(), change(table(0.2)), seed=0)


# ---------------------------------------------------------------- the task


def test_cohorts_of_one_state_are_refused(cohort: Cohort) -> None:
    assert State().refuses(cohort) == ""
    rest = replace(cohort, recordings=tuple(r for r in cohort.recordings if r.state == "rest"))
    assert State().refuses(rest) == "all recordings of simulated_specimen are of the state rest; two are needed"
    short = replace(
        cohort, recordings=tuple(r if r.state == "rest" else replace(r, n_times=100) for r in cohort.recordings)
    )
    assert "states auditory, somatosensory are shorter than a window" in State().refuses(short)
    alone = replace(
        cohort, recordings=tuple(r for r in cohort.recordings if r.state == "rest" or r.subject == "sub-000")
    )
    assert "state auditory of simulated_specimen was recorded in one subject" in State().refuses(alone)
    with pytest.raises(ConfigError, match="0 windows"):
        State(windows=0)


def test_the_contract_checks_pass() -> None:
    found = {r.check: r for r in check_component(State)}
    assert all(r.ok for r in found.values()), [r for r in found.values() if not r.ok]
    assert found["perfect-and-shuffled"].outcome == "passed"
    assert found["windows"].message == "3 classes of simulated states, 96 windows"


class Careless(State):
    """Takes anything, and knows its classes by number."""

    def refuses(self, cohort: Cohort) -> str:
        return ""

    def label(self, recording) -> int:
        return len(recording.state)


@pytest.mark.parametrize(
    ("check", "message"),
    [("refusal", "does not refuse a cohort in which everything is"), ("windows", "`label` returns 4, not a text")],
)
def test_a_careless_task_is_caught(check: str, message: str) -> None:
    (result,) = check_component(Careless, only=check)
    assert result.outcome == "failed"
    assert re.search(message, result.message), result.message


# ---------------------------------------------------------------- whole runs


def run(data: Path, out: Path, **options: object) -> pd.DataFrame:
    settings = {"backbone": "tiny", "mask": "time_block", "dataset": "fake_states", "data_dir": data, "out": out}
    return neurobench.run(**settings | {"n_steps": 3, "task": "state", "plugin_files": PLUGIN} | options)


def test_a_whole_run(tmp_path: Path) -> None:
    write_states(tmp_path / "data", n_subjects=8)
    result = run(tmp_path / "data", tmp_path / "out")
    assert set(result["status"]) == {"ok"}, result["error"].tolist()
    rows = result.set_index("row")
    assert set(rows.index) >= {"mean", "covariates", "raw_signal", "tangent", "tiny · untrained", "tiny · time_block"}
    assert rows.loc["raw_signal", "score"] > 0.9
    assert rows.loc["raw_signal", "above_chance"]
    for nothing in ("mean", "covariates"):
        assert rows.loc[nothing, "score"] == pytest.approx(1 / 3)
        assert not rows.loc[nothing, "above_chance"]
    np.testing.assert_allclose(rows["chance"], 1 / 3)
    assert (rows["n_subjects"] == 8).all()
    loaded = neurobench.load_results(tmp_path / "out").set_index("row")
    record = results.read_record(Path(loaded.loc["raw_signal", "record"]))
    assert {f"recall[{n}]" for n in NAMES} <= set(record.metrics)
    predictions = results.load_predictions(tmp_path / "out", record.id)
    assert len(predictions) == 8 * 3 * 4
    pd.testing.assert_frame_equal(run(tmp_path / "data", tmp_path / "out"), result)
    finetuned = run(tmp_path / "data", tmp_path / "out", adaptation="finetune").set_index("row")
    assert set(finetuned["status"]) == {"ok"}, finetuned["error"].tolist()
    assert finetuned.loc["tiny · scratch", "score"] > 0.5


def test_two_states_and_none_to_tell_apart(tmp_path: Path) -> None:
    write_states(tmp_path / "data", n_subjects=6, effect=0.0)
    for path in (tmp_path / "data").glob("*_somatosensory.*"):
        path.unlink()
    rows = run(tmp_path / "data", tmp_path / "out").set_index("row")
    assert set(rows["status"]) == {"ok"}, rows["error"].tolist()
    assert (rows["chance"] == 0.5).all()
    assert not rows.loc["raw_signal", "above_chance"]
    for path in (tmp_path / "data").glob("*_auditory.*"):
        path.unlink()
    failed = run(tmp_path / "data", tmp_path / "out2")
    assert "all recordings of fake_states are of the state rest" in failed.loc[0, "error"]


def test_windows_of_one_recording_are_no_independent_observations() -> None:
    """Every recording is predicted as one class by chance: p must not take its windows for so many observations."""

    def nothing(seed: int) -> pd.DataFrame:
        rng = np.random.default_rng(seed)
        table = pd.DataFrame({"participant_id": np.repeat([f"s{i:02d}" for i in range(20)], 12)})
        table["truth"] = np.tile(np.repeat(["a", "b"], 6), 20)
        table["window"], table["fold"] = [f"w{i:03d}" for i in range(240)], np.repeat(np.arange(20) % 2, 12)
        said = np.repeat(rng.random(40), 6) + 0.02 * rng.normal(size=240)
        return table.assign(**{"p[a]": 1 - said, "p[b]": said})

    scores = [score_window_task(State(), nothing(i), seed=0, n_bootstrap=50, n_permutations=99) for i in range(60)]
    for name in ("balanced_accuracy", "macro_auroc"):
        found = [s.metrics[name].p_value < 0.05 for s in scores]
        # 5 % of 60 is 3; more than 9 has probability .001. Windows permuted one by one gave 16 of balanced accuracy.
        assert sum(found) <= 9, name

"""Looking for windows in galleries: which windows, similarity, scores, null, whole runs, and that they verify."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.signal import lfilter
from sklearn.metrics import label_ranking_average_precision_score

import neurobench
from neurobench import RetrievalWindow, results
from neurobench.bundle import _Pseudonyms, make_bundle, table_bytes, write_bundle
from neurobench.bundle_reader import parse_table
from neurobench.config import RunConfig, expand
from neurobench.errors import ConfigError, DataError, PluginError
from neurobench.paired import difference_of, row_of
from neurobench.plugins import load_registry
from neurobench.records import Cohort, Event, Fold
from neurobench.retrieval import retrieval_rows, retrieve, similarity
from neurobench.retrieval_scoring import retrieval_predictions, score_retrieval_task
from neurobench.specimens import simulated_states
from neurobench.verification import verify
from neurobench_tasks.reidentification import Reidentification
from neurobench_tasks.stimulus import Stimulus
from tests.states_plugin import write_states

PLUGIN = Path(__file__).with_name("tiny_plugin.py")
REID, STIMULUS = Reidentification(), Stimulus()


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return simulated_states(tmp_path_factory.mktemp("states"), n_subjects=12, n_units=6)


def reshaped(cohort: Cohort, **changes: object) -> Cohort:
    return replace(cohort, recordings=tuple(replace(r, **changes) for r in cohort.recordings))


# ---------------------------------------------------------------- which windows


def test_gallery_and_query_of_one_recording_lie_apart(cohort: Cohort) -> None:
    one = replace(cohort, recordings=tuple(r for r in cohort.recordings if r.state == "rest"))
    windows = REID.windows(one)
    assert {w.label for w in windows} == set(cohort.subjects)
    for number in range(len(one.recordings)):
        gallery, query = (
            [w.start for w in windows if (w.recording, w.role) == (number, role)] for role in ("gallery", "query")
        )
        assert len(gallery) == len(query) == 2
        # Four patches of 250 ms.
        assert min(query) - (max(gallery) + one.samples_per_window) >= one.sfreq
    assert "later part of the same recording (state rest), 1 s or more apart" in REID.remark(one)
    longer = Reidentification(gap_s=20.0).windows(one)
    starts = {role: [w.start for w in longer if w.role == role] for role in ("gallery", "query")}
    assert min(starts["query"]) - max(starts["gallery"]) >= 20 * one.sfreq


def test_another_session_is_preferred_and_another_run_comes_next(cohort: Cohort) -> None:
    def with_states_as(key: str) -> Cohort:
        return replace(cohort, recordings=tuple(replace(r, state="rest", **{key: r.state}) for r in cohort.recordings))

    for key, said in (("session", "another session"), ("run", "another recording")):
        changed = with_states_as(key)
        windows = REID.windows(changed)
        where = {
            role: {getattr(changed.recordings[w.recording], key) for w in windows if w.role == role}
            for role in ("gallery", "query")
        }
        assert where["gallery"] == {"auditory"}, "the first by name"
        assert where["query"] <= {"rest", "somatosensory"}
        assert said in REID.remark(changed)
    assert "the same recording" in Reidentification(across="time").remark(with_states_as("session"))


def test_bad_spans_hold_no_window(cohort: Cohort) -> None:
    spoilt = reshaped(cohort, bad_spans=((0.0, 4.0),))
    assert min(w.start for w in REID.windows(spoilt)) >= 4 * cohort.sfreq


def test_rows_say_nothing_but_through_their_signal(cohort: Cohort) -> None:
    rows = retrieval_rows(cohort, REID)
    assert rows.cohort.participants.shape == (len(rows.subjects), 0)
    assert not any(s in row for row in rows.subjects.index for s in cohort.subjects)
    assert {(r.state, r.session, r.run, r.content) for r in rows.cohort.recordings} == {("window", "", "", "")}
    assert rows.subjects.iloc[:12].nunique() > 6, "neighbours in the table are no neighbours otherwise"
    for recording in rows.scaled.recordings[:5]:
        np.testing.assert_allclose(recording.centre, recording.open().mean(1), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(recording.scale, recording.open().std(1), rtol=1e-4)


def planted(cohort: Cohort, task: object, windows: list[RetrievalWindow]) -> object:
    return type("Planted", (type(task),), {"windows": lambda self, _: windows})()


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        (
            [(0, 0, "a", "gallery"), (0, 256, "a", "query")],
            r"is looked for 0 s from one in the gallery.*at least 2 patch",
        ),
        ([(0, 0, "a", "gallery"), (3, 0, "a", "query")], r"label 'a' belongs to two people"),
        ([(0, 0, "a", "both")], r"among windows that it is one of"),
        ([(0, 10**7, "a", "query")], r"does not lie in sub-000_rest"),
        ([(99, 0, "a", "query")], r"there is no recording 99"),
        ([(0, 0, "a", "query"), (0, 0, "a", "gallery")], r"is there twice"),
    ],
)
def test_a_task_that_gives_windows_away_is_refused(cohort: Cohort, windows: list, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        retrieval_rows(cohort, planted(cohort, REID, [RetrievalWindow(*w) for w in windows]))


def test_what_cannot_be_scored_is_refused_with_what_it_lacks(cohort: Cohort) -> None:
    short = reshaped(cohort, n_times=cohort.samples_per_window)
    assert "a recording of 5 s (two windows of 2 s, a gap of 1 s), or a second recording or session" in REID.refuses(
        short
    )
    assert "a second session" in Reidentification(across="session").refuses(cohort)
    assert "gap_s=0.1 is too short" in Reidentification(gap_s=0.1).refuses(cohort)
    assert "in the state sleep" in Reidentification(state="sleep").refuses(cohort)
    one = replace(cohort, recordings=tuple(r for r in cohort.recordings if r.state == "rest"))
    assert "by condition there are none (states rest; conditions none)" in STIMULUS.refuses(one)
    assert not REID.refuses(cohort)
    assert not STIMULUS.refuses(cohort)


def test_conditions_of_events_are_stimuli_too(cohort: Cohort) -> None:
    events = (*(Event(1.0 + 2 * i, "face" if i % 2 else "house") for i in range(10)), Event(1.5, "face"))
    one = reshaped(replace(cohort, recordings=tuple(r for r in cohort.recordings if r.state == "rest")), events=events)
    windows = Stimulus(max_windows=100).windows(one)
    assert {w.label for w in windows} == {"face", "house"}
    # Windows of 2 s: the first has a face and a house in it.
    assert {w.start for w in windows} == {256 * i for i in range(1, 10)}


@pytest.mark.parametrize(
    "parameters", [{"across": "days"}, {"gap_s": -1.0}, {"max_windows": 0}, {"max_gallery": 151}, {"max_gallery": 1}]
)
def test_wrong_parameters(parameters: dict) -> None:
    with pytest.raises(ConfigError, match="Allowed"):
        Reidentification(**parameters)


# ---------------------------------------------------------------- similarity


def test_held_out_rows_change_nothing_but_themselves(cohort: Cohort) -> None:
    """A standardisation that saw a held-out person would move the similarities of all others."""
    rows, rng = retrieval_rows(cohort, REID), np.random.default_rng(0)
    fold = Fold(0, cohort.subjects[:6], cohort.subjects[6:])
    names, x = list(rows.subjects.index), rng.normal(size=(len(rows.subjects), 20))
    other = x.copy()
    changed = cohort.subjects[8]
    other[(rows.subjects == changed).to_numpy()] *= 1000
    before, after = (retrieve(REID, rows, fold, names, v, seed=0).set_index("window") for v in (x, other))
    entry = before.loc[before["participant_id"] == changed, "truth"].iloc[0]
    kept = [c for c in before if c.startswith("s[") and c != f"s[{entry}]"]
    others = before["participant_id"] != changed
    pd.testing.assert_frame_equal(before.loc[others, kept], after.loc[others, kept])
    assert set(before["participant_id"]) == set(fold.test)
    assert (before["n_gallery"] == 6).all()


def test_similarity_is_the_cosine_of_standardised_features() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(5, [1.0, 100.0, 0.01], (12, 3))
    x = np.column_stack([x, np.full(12, 7.0)])
    x[9, 1] = np.nan
    z = (x - np.mean(x[:6], 0)) / np.where(np.std(x[:6], 0) > 0, np.std(x[:6], 0), 1)
    z[9, 1] = 0.0
    entries = np.zeros((2, 12))
    entries[0, [6, 7]], entries[1, 8] = 0.5, 1.0
    want = [
        [np.dot(z[q], e) / np.linalg.norm(z[q]) / np.linalg.norm(e) for e in (z[[6, 7]].mean(0), z[8])] for q in (9, 10)
    ]
    np.testing.assert_allclose(similarity(x, np.arange(6), entries, np.array([9, 10])), want)
    nothing = similarity(np.empty((12, 0)), np.arange(6), entries, np.array([9, 10]))
    np.testing.assert_array_equal(nothing, np.zeros((2, 2)))


def test_prototypes_are_of_training_subjects_and_named_by_their_stimulus(cohort: Cohort) -> None:
    rows = retrieval_rows(cohort, STIMULUS)
    fold = Fold(0, cohort.subjects[:6], cohort.subjects[6:])
    x = np.random.default_rng(0).normal(size=(len(rows.subjects), 5))
    found = retrieve(STIMULUS, rows, fold, list(rows.subjects.index), x, seed=0)
    assert [c for c in found if c.startswith("s[")] == ["s[auditory]", "s[rest]", "s[somatosensory]"]
    assert (found["part"] == found["truth"]).all()
    assert set(found["participant_id"]) == set(fold.test)
    places = rows.subjects.isin(fold.train) & (rows.labels == "rest")
    moved = x + np.array([0, 3.0, 0, 0, 0]) * places.to_numpy()[:, None]
    again = retrieve(STIMULUS, rows, fold, list(rows.subjects.index), moved, seed=0)
    higher = again["s[rest]"] > found["s[rest]"]
    assert higher[moved[[rows.subjects.index.get_loc(w) for w in found["window"]], 1] > 2].all()


def test_windows_are_mapped_to_what_a_file_says_of_stimuli(cohort: Cohort, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vectors = {name: rng.normal(size=50) for name in ("auditory", "rest", "somatosensory")}
    np.savez(tmp_path / "known.npz", **vectors)
    table = pd.DataFrame(vectors.values(), columns=[f"d{i}" for i in range(50)])
    table.assign(stimulus=list(vectors)).to_parquet(tmp_path / "known.parquet")
    rows = retrieval_rows(cohort, STIMULUS)
    fold = Fold(0, cohort.subjects[:6], cohort.subjects[6:])
    mixing = rng.normal(size=(3, 8))
    labels = np.unique(rows.labels, return_inverse=True)[1]
    x = mixing[labels] + 0.3 * rng.normal(size=(len(labels), 8))
    found = []
    for name in ("known.npz", "known.parquet"):
        task = Stimulus(embeddings=str(tmp_path / name))
        assert not task.refuses(cohort)
        found.append(retrieve(task, rows, fold, list(rows.subjects.index), x, seed=0))
        score = score_retrieval_task(task, found[-1], seed=0, n_bootstrap=50, n_permutations=99)
        assert score.metrics["top1"].value > 0.9
        assert score.above_chance
    pd.testing.assert_frame_equal(*found)
    # Held-out labels are not used: exchanged, they change what is right and no similarity.
    test = rows.subjects.isin(fold.test)
    turned = replace(
        rows,
        labels=rows.labels.where(~test, rows.labels.map({"rest": "auditory", "auditory": "rest"}).fillna(rows.labels)),
    )
    again = retrieve(task, turned, fold, list(rows.subjects.index), x, seed=0)
    columns = [c for c in again if c.startswith("s[")]
    pd.testing.assert_frame_equal(again[columns], found[0][columns])
    assert not again["truth"].equals(found[0]["truth"])
    np.savez(tmp_path / "less.npz", rest=np.zeros(3), auditori=np.zeros(3))
    assert "less.npz has no embedding of auditory, somatosensory. Did you mean 'auditori'?" in Stimulus(
        embeddings=str(tmp_path / "less.npz")
    ).refuses(cohort)
    assert "cannot be read" in Stimulus(embeddings=str(tmp_path / "none.npz")).refuses(cohort)
    assert ".npz, .parquet" in Stimulus(embeddings="a.txt").refuses(cohort)


def test_a_large_gallery_is_drawn_the_same_for_every_row(cohort: Cohort) -> None:
    task = Reidentification(max_gallery=4)
    rows, rng = retrieval_rows(cohort, task), np.random.default_rng(0)
    fold = Fold(0, cohort.subjects[:6], cohort.subjects[6:])
    names = list(rows.subjects.index)
    a, b = (retrieve(task, rows, fold, names, rng.normal(size=(len(names), 5)), seed=0) for _ in range(2))
    assert (a["n_gallery"] == 4).all()
    assert a["window"].tolist() == b["window"].tolist()
    with pytest.raises(DataError, match="fold 1 has 1 entries in its gallery"):
        retrieve(
            task, rows, Fold(0, cohort.subjects[:11], cohort.subjects[11:]), names, np.zeros((len(names), 1)), seed=0
        )


# ---------------------------------------------------------------- scores


def found_in(signal: float, *, n: int = 24, each: int = 2, site: float = 0.0, seed: int = 0) -> pd.DataFrame:
    """Return two folds of n / 2 people; ``site`` makes the people of a site alike."""
    rng = np.random.default_rng(seed)
    tables = []
    for fold in range(2):
        size = n // 2
        truth = np.repeat(np.arange(size), each)
        sites = np.arange(size) % 2
        cosines = rng.uniform(-0.2, 0.2, (len(truth), size)) + signal * np.eye(size)[truth]
        cosines += site * (sites[truth][:, None] == sites)
        subjects = [f"f{fold}s{k:02d}" for k in truth]
        table = retrieval_predictions(
            [f"{fold}-{i}" for i in range(len(truth))],
            subjects,
            fold,
            [f"{k:03d}" for k in truth],
            cosines,
            [f"{k:03d}" for k in range(size)],
            shared=False,
        )
        tables.append(table.assign(site=[f"site{sites[k]}" for k in truth]))
    return pd.concat(tables, ignore_index=True)


def test_metrics_are_scikit_learns() -> None:
    table = found_in(0.15)
    score = score_retrieval_task(REID, table, seed=0, n_bootstrap=100, n_permutations=50)
    cosines = table[[c for c in table if c.startswith("s[")]].to_numpy()
    right = np.eye(12)[table["truth"].astype(int)]
    assert score.metrics["mean_ap"].value == pytest.approx(label_ranking_average_precision_score(right, cosines))
    assert score.metrics["top1"].value == pytest.approx((cosines.argmax(1) == right.argmax(1)).mean())
    assert score.metrics["top1"].chance == pytest.approx(1 / 12)
    assert score.metrics["mean_ap"].chance == pytest.approx(np.sum(1 / np.arange(1, 13)) / 12)
    assert score.metrics["top1_within_site"].chance == pytest.approx(1 / 6)
    within = np.where(np.arange(12) % 2 == table["truth"].astype(int).to_numpy()[:, None] % 2, cosines, -9)
    assert score.metrics["top1_within_site"].value == pytest.approx((within.argmax(1) == right.argmax(1)).mean())
    assert score.n_subjects == 24
    by_fold = [(cosines.argmax(1) == right.argmax(1))[table["fold"] == f].mean() for f in (0, 1)]
    assert score.per_fold["top1"] == pytest.approx(by_fold)
    assert "gallery of 12 entries" in score.notes[0]
    for metric in score.metrics.values():
        assert metric.low <= metric.value <= metric.high


def test_ties_are_split() -> None:
    table = found_in(0.0)
    columns = [c for c in table if c.startswith("s[")]
    score = score_retrieval_task(REID, table.assign(**dict.fromkeys(columns, 0.3)), seed=0, n_permutations=99)
    for name in ("top1", "mean_ap", "top1_within_site"):
        metric = score.metrics[name]
        assert metric.value == pytest.approx(metric.chance)
        assert metric.p_value == 1
        assert metric.above_chance is False


def test_a_person_with_many_windows_counts_once() -> None:
    table = found_in(0.15)
    one = table[table["participant_id"] == "f0s00"]
    more = pd.concat([table, *(one.assign(window=one["window"] + f"-{i}") for i in range(20))])
    a, b = (score_retrieval_task(REID, t, seed=0, n_permutations=9).metrics["top1"] for t in (table, more))
    assert (a.value, a.low, a.high) == pytest.approx((b.value, b.low, b.high))


def test_nothing_is_not_called_above_chance_and_something_is() -> None:
    nulls = [
        score_retrieval_task(REID, found_in(0.0, seed=i), seed=0, n_bootstrap=200, n_permutations=99) for i in range(60)
    ]
    for name in ("top1", "mean_ap", "top1_within_site"):
        # 5 % of 60 is 3; more than 9 has probability .001.
        assert sum(s.metrics[name].p_value < 0.05 for s in nulls) <= 9, name
        assert np.median([s.metrics[name].p_value for s in nulls]) > 0.25, name
    found = score_retrieval_task(REID, found_in(0.5), seed=0, n_bootstrap=200, n_permutations=99)
    assert found.above_chance is True
    assert found.p_value == pytest.approx(0.01)


def test_telling_sites_apart_is_no_telling_people_apart() -> None:
    scores = [
        score_retrieval_task(REID, found_in(0.0, site=5.0, n=40, seed=i), seed=0, n_bootstrap=500, n_permutations=99)
        for i in range(40)
    ]
    assert np.mean([s.metrics["top1"].value for s in scores]) > 1.7 / 20, "sites alone double the chance of 1 in 20"
    assert sum(bool(s.above_chance) for s in scores) <= 6, "5 % of 40 is 2; more than 6 has probability .003"
    for score in scores:
        assert score.metrics["top1"].value == pytest.approx(score.metrics["top1_within_site"].value)


def shared(signal: float, *, each: tuple[int, ...] = (6, 2, 1), n: int = 20, seed: int = 0) -> pd.DataFrame:
    """Return windows of three stimuli, unequally many; what a subject's windows are taken for is the subject's."""
    rng = np.random.default_rng(seed)
    names = ["face", "house", "tool"]
    tables = []
    for s in range(n):
        truth = np.repeat(np.arange(3), each)
        cosines = np.repeat(rng.normal(0, 1, (3, 3)), each, 0) + 0.1 * rng.normal(size=(len(truth), 3))
        cosines += signal * np.eye(3)[truth]
        rows = [f"w{s:02d}-{i}" for i in range(len(truth))]
        labels = [names[k] for k in truth]
        tables.append(
            retrieval_predictions(rows, [f"s{s:02d}"] * len(rows), s % 2, labels, cosines, names, shared=True)
        )
    return pd.concat(tables, ignore_index=True)


def test_shared_labels_are_averaged_over_labels_and_exchanged_within_subjects() -> None:
    table = shared(1.5)
    score = score_retrieval_task(STIMULUS, table, seed=0, n_bootstrap=200, n_permutations=99)
    hit = table[["s[face]", "s[house]", "s[tool]"]].to_numpy().argmax(1) == table["truth"].map(
        {"face": 0, "house": 1, "tool": 2}
    )
    recalls = [
        hit[table["truth"] == t].groupby(table["participant_id"]).mean().mean() for t in ("face", "house", "tool")
    ]
    assert score.metrics["top1"].value == pytest.approx(np.mean(recalls))
    assert [score.metrics[f"recall[{t}]"].value for t in ("face", "house", "tool")] == pytest.approx(recalls)
    assert score.above_chance is True
    always = table.assign(**{"s[face]": 9.0})
    said = score_retrieval_task(STIMULUS, always, seed=0, n_bootstrap=200, n_permutations=99)
    assert said.metrics["top1"].value == pytest.approx(1 / 3), "two thirds of the windows are faces"
    assert said.p_value == 1
    nulls = [
        score_retrieval_task(STIMULUS, shared(0.0, seed=i), seed=0, n_bootstrap=50, n_permutations=99)
        for i in range(60)
    ]
    assert sum(s.p_value < 0.05 for s in nulls) <= 9
    assert np.median([s.p_value for s in nulls]) > 0.25


def test_families_are_exchanged_as_wholes() -> None:
    """Twins who are taken for each other: only pairs are exchanged with pairs."""
    table = found_in(0.0, n=24)
    pairs = table["truth"].astype(int) // 2
    table = table.assign(site="a", family=[f"{f}-{p}" for f, p in zip(table["fold"], pairs, strict=True)])
    alike = np.where(np.arange(12) // 2 == pairs.to_numpy()[:, None], 5.0, 0.0)
    columns = [f"s[{k:03d}]" for k in range(12)]
    table[columns] = table[columns] + alike
    score = score_retrieval_task(REID, table, seed=0, n_bootstrap=200, n_permutations=99)
    assert score.metrics["top1"].value > 0.2, "a pair is told from five others: chance is 1 in 12"


def test_rows_are_compared_on_the_same_subjects() -> None:
    good, bad = found_in(0.4), found_in(0.05)
    for metric in ("top1", "mean_ap"):
        assert difference_of(metric, good, bad)["low"] > 0
        assert difference_of(metric, good, good)["p"] == 1
        value = score_retrieval_task(REID, good, seed=0, n_permutations=9).metrics[metric].value
        assert row_of(metric, good).values(np.ones((1, 24))) == pytest.approx(value)
    with pytest.raises(ConfigError, match="there is no metric 'auroc' of retrieval"):
        row_of("auroc", good)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: pd.concat([t, t]), "is looked for twice"),
        (lambda t: t.assign(truth="zebra"), "belongs to 'zebra', which is none of the entries"),
        (lambda t: t.assign(n_gallery=3), "its size is not what it says"),
        (lambda t: t.assign(**{"s[001]": np.nan}), "similarities to entries of a gallery are missing"),
        (lambda t: t.assign(participant_id="me"), "looked for in 2 folds"),
        (lambda t: t.iloc[:0], "there is nothing to score"),
    ],
)
def test_tables_that_cannot_be_scored(change, message: str) -> None:
    with pytest.raises(DataError, match=message):
        score_retrieval_task(REID, change(found_in(0.1)), seed=0, n_bootstrap=10, n_permutations=9)


def test_pseudonyms_and_csv_keep_every_number() -> None:
    table = found_in(0.15).assign(age=30.0)
    other, gone = _Pseudonyms.of([table], []).applied(table, frozenset({"site"}))
    assert gone == ["age"]
    assert not set(other["participant_id"]) & set(table["participant_id"])
    scores = [
        score_retrieval_task(REID, t, seed=0, n_bootstrap=100, n_permutations=99).metrics
        for t in (table, other, parse_table(table_bytes(other)))
    ]
    assert scores[0] == scores[1] == scores[2]


# ---------------------------------------------------------------- whole runs


def write_people(root: Path, n: int, identity: float) -> Path:
    """Write simulated recordings of 12 units at 0.5 Hz whose mixing is a person's own, as far as ``identity`` says."""
    root.mkdir(parents=True)
    rng = np.random.default_rng(0)
    common = rng.normal(size=(12, 6))
    for i in range(n):
        mixing = (1 - identity) * common + identity * rng.normal(size=(12, 6))
        slow = lfilter([1.0], [1.0, -0.5], rng.standard_normal((6, 200)), axis=1)
        np.save(root / f"s{i:03d}.npy", mixing @ slow + 0.5 * rng.standard_normal((12, 200)))
    people = pd.DataFrame({"participant_id": [f"s{i:03d}" for i in range(n)], "sfreq": 0.5})
    people.assign(site=np.resize(["A", "B"], n), age=rng.uniform(20, 60, n)).to_csv(
        root / "participants.csv", index=False
    )
    return root


def run(data: Path, out: Path, **options: object) -> pd.DataFrame:
    settings = {"backbone": "tiny", "mask": "roi", "dataset": "fake", "data_dir": data, "out": out, "n_steps": 2}
    return neurobench.run(**settings | {"task": "reidentification", "plugin_files": PLUGIN} | options)


def test_a_planted_identity_is_found_and_the_records_verify(tmp_path: Path) -> None:
    table = run(write_people(tmp_path / "data", 20, 1.0), tmp_path / "out")
    assert set(table["status"]) == {"ok"}, table["error"].tolist()
    rows = table.set_index("row")
    assert set(rows.index) == {*("mean", "raw_signal", "connectome", "tangent", "tiny · untrained", "tiny · roi")}, (
        "no covariates, which name the person, and no kernel, which is a probe's"
    )
    assert rows.loc["connectome", "score"] > 0.7
    assert rows.loc["raw_signal", "score"] > 0.4
    for row in ("connectome", "raw_signal"):
        assert rows.loc[row, "above_chance"]
    assert rows.loc["mean", "score"] == pytest.approx(0.1)
    np.testing.assert_allclose(rows["chance"], 0.1)
    assert (rows["n_subjects"] == 20).all()
    record = results.read_record(
        Path(neurobench.load_results(tmp_path / "out").set_index("row").loc["connectome", "record"])
    )
    assert {"top1", "mean_ap", "top1_within_site"} == set(record.metrics)
    assert any("a later part of the same recording (state rest), 32 s or more apart" in n for n in record.notes)
    assert any("gallery of 10 entries" in n for n in record.notes)
    registry = load_registry((PLUGIN,))
    bundle = write_bundle(make_bundle(tmp_path / "out", registry), tmp_path / "bundle.zip")
    verdict = verify(bundle, registry)
    assert not [f for f in verdict.findings if f.level == "error"], verdict.findings
    assert set(verdict.levels.values()) == {"recomputed"}
    compared = neurobench.compare_results(tmp_path / "out")
    assert len(compared)


def test_without_identity_nothing_is_found(tmp_path: Path) -> None:
    rows = run(write_people(tmp_path / "data", 20, 0.0), tmp_path / "out").set_index("row")
    assert not rows["above_chance"].any()
    assert (rows["score"] <= 0.3).all()


def test_it_is_asked_for_and_has_no_meaning_when_trained_further() -> None:
    registry = load_registry()
    asked = {"backbone": "transformer", "mask": "none", "dataset": "parcels"}
    tasks = {t.name for t in expand(RunConfig.from_options(**asked), registry).tasks}
    assert "age" in tasks
    assert not tasks & {"reidentification", "stimulus"}
    for adaptation in ("finetune", "scratch"):
        config = RunConfig.from_options(**asked | {"task": "reidentification", "adaptation": adaptation})
        with pytest.raises(ConfigError, match="has no meaning for task 'reidentification'"):
            expand(config, registry)


def test_stimuli_are_found_in_a_whole_run(tmp_path: Path) -> None:
    write_states(tmp_path / "data", n_subjects=8)
    plugin = Path(__file__).with_name("states_plugin.py")
    rows = run(
        tmp_path / "data",
        tmp_path / "out",
        task="stimulus",
        dataset="fake_states",
        mask="time_block",
        plugin_files=plugin,
    ).set_index("row")
    assert set(rows["status"]) == {"ok"}, rows["error"].tolist()
    assert rows.loc["raw_signal", "score"] > 0.8
    assert rows.loc["mean", "score"] == pytest.approx(1 / 3)
    registry = load_registry((plugin,))
    verdict = verify(write_bundle(make_bundle(tmp_path / "out", registry), tmp_path / "b.zip"), registry)
    assert not [f for f in verdict.findings if f.level == "error"], verdict.findings

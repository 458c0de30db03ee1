"""Checks of tasks."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from neurobench.checks.common import Check, Skip, build, demand, watched_files
from neurobench.contracts import (
    COVARIATES,
    EvokedTask,
    Metric,
    ReconstructionTask,
    RetrievalTask,
    SubjectTask,
    Task,
    WindowTask,
)
from neurobench.errors import CheckError, NeurobenchError
from neurobench.evoked import evaluate, find_responses
from neurobench.evoked_scores import score_evoked
from neurobench.identity import seed_for
from neurobench.plugins import Registry
from neurobench.reconstruction import Predictor
from neurobench.records import Batch, Cohort, Fold
from neurobench.retrieval import RetrievalRows, retrieval_rows, retrieve
from neurobench.retrieval_scoring import score_retrieval_task
from neurobench.scoring import Score, score_subject_task
from neurobench.specimens import simulated_cohort, simulated_states
from neurobench.tokens import Scaler, Tokenizer, unit_chunks
from neurobench.window_scoring import score_window_task, window_predictions
from neurobench.windows import window_rows


def _subject_task(cls: type[Task]) -> SubjectTask:
    task = build(cls)
    if not isinstance(task, SubjectTask):
        raise Skip("is not scored a subject at a time")
    if missing := [n for n in ("kind", "column", "metrics") if not hasattr(task, n)]:
        raise CheckError(f"does not say its `{'` and `'.join(missing)}`.")
    return task


def _target(task: SubjectTask, people: pd.DataFrame) -> pd.Series[float]:
    """Return the target of people, whose table stays as it is whatever a task does."""
    values = task.target(people.copy())
    if not isinstance(values, pd.Series) or not values.index.equals(people.index):
        raise CheckError(
            "`target` does not return a Series with the index of the participants.",
            next_step="Everybody stays in it: NaN where a value is missing.",
        )
    if not pd.api.types.is_numeric_dtype(values):
        raise CheckError(
            f"`target` returns {values.dtype}, such as {values.iloc[0]!r}, not float.",
            next_step='Say which number stands for which value, as in people["handedness"].map({"R": 0.0, "L": 1.0}).',
        )
    return values


def _participants(task: SubjectTask, n: int = 60) -> pd.DataFrame:
    """Return simulated participants with the standard columns, and numbers in the task's if it is another one."""
    rng = np.random.default_rng(seed_for(0, "twin", "participants"))
    age = rng.uniform(18, 80, n)
    people = pd.DataFrame(
        {
            "age": age,
            "sex": rng.permutation(np.resize(["F", "M"], n)),
            "site": np.resize(["a", "b", "c"], n),
            "diagnosis": rng.permutation(np.resize(["control", "patient"], n)),
            "fluid_intelligence": 40 - 0.3 * age + rng.normal(0, 3, n),
        },
        index=pd.Index([f"sub-{i:03d}" for i in range(n)], name="participant_id"),
    )
    if len(task.examples):
        people[task.column] = rng.permutation(np.resize(np.asarray(task.examples, object), n))
    elif task.column not in people:
        people[task.column] = (
            rng.normal(0, 1, n) if task.kind == "regression" else rng.permutation(np.resize(["x", "y"], n))
        )
    return people


def _cohort(folder: Path, people: pd.DataFrame | None = None) -> Cohort:
    cohort = simulated_cohort(folder, n_subjects=4, n_units=4)
    return cohort if people is None else replace(cohort, participants=people)


def metrics(cls: type[Task], registry: Registry | None, full: bool) -> str:
    """There is a headline metric, names are unique, and best and chance agree with the direction."""
    task = build(cls)
    problems = []
    if not getattr(task, "metrics", ()):
        raise CheckError("`metrics` is missing or empty: the first one is the headline.")
    if wrong := [m for m in task.metrics if not isinstance(m, Metric)]:
        raise CheckError(
            f"`metrics` holds {wrong[0]!r}, not a Metric.",
            allowed='such as regression_metrics("points") or CLASSIFICATION_METRICS, which neurobench has',
        )
    names = [m.name for m in task.metrics]
    problems += [f"metric {n!r} is there twice" for n in dict.fromkeys(names) if names.count(n) > 1]
    for m in task.metrics:
        if np.isfinite(m.chance) and m.chance != m.best and (m.best > m.chance) != m.higher_is_better:
            problems.append(f"{m.name}: best {m.best:g} and chance {m.chance:g} contradict its direction")
    demand(problems)
    return ", ".join(names)


def _known_target(task: SubjectTask) -> NDArray[np.float64]:
    """Return the targets of simulated participants; that nobody has one says nothing but that the values are wrong."""
    people = _participants(task)
    known: NDArray[np.float64] = np.asarray(_target(task, people).dropna(), np.float64)
    if len(known):
        return known
    values = ", ".join(repr(v) for v in dict.fromkeys(people[task.column][:3]))
    raise CheckError(
        f"of simulated participants nobody has a target: their {task.column!r} is {values}, …",
        allowed="`examples`, values of the column as your participants tables hold them",
        next_step="Add them to the class, such as examples = ('R', 'L') or (80.0, 95.0, 110.0, 125.0).",
    )


def target(cls: type[Task], registry: Registry | None, full: bool) -> str:
    """The target is one float a participant, 0 and 1 for two classes, NaN where missing."""
    task = _subject_task(cls)
    people = _participants(task)
    _known_target(task)
    missing = people.copy()
    missing[task.column] = missing[task.column].astype(object)
    missing.loc[missing.index[:3], task.column] = None
    values = _target(task, people)
    problems = []
    if task.kind not in ("regression", "classification"):
        problems.append(f"`kind` is {task.kind!r}, not regression or classification")
    if not np.issubdtype(values.to_numpy().dtype, np.floating):
        problems.append(f"`target` returns {values.dtype}, not float: end it with .astype(float)")
    elif task.kind == "classification" and not set(values.dropna().unique()) <= {0.0, 1.0}:
        found = ", ".join(f"{v:g}" for v in sorted(values.dropna().unique())[:4])
        problems.append(f"classes are {found}, not 0 and 1 (NaN where somebody is in neither)")
    elif values.nunique() < 2:
        problems.append("all simulated participants have the same target")
    if _target(task, missing).iloc[:3].notna().any():
        problems.append("a missing value gets a target: it has to stay NaN")
    classes = task.classes
    if task.kind == "classification" and (len(set(classes)) != 2 or not all(classes)):
        problems.append(f"`classes` is {classes!r}, not two names")
    demand(problems)
    return ""


def target_row_by_row(cls: type[Task], registry: Registry | None, full: bool) -> str:
    """The target of a participant does not depend on who else is in the table."""
    task = _subject_task(cls)
    people = _participants(task)
    everyone = _target(task, people)
    if not everyone.equals(_target(task, people)):
        raise CheckError("the target of the same participants changes from call to call.")
    problems = []
    for what, index in (("half of the participants", people.index[::2]), ("five participants", people.index[:5])):
        part = _target(build(cls), people.loc[index])
        if not np.array_equal(part.to_numpy(float), everyone.loc[index].to_numpy(float), equal_nan=True):
            problems.append(
                f"the target of a participant changes when only {what} are in the table: it is fitted on all rows, "
                "test rows among them"
            )
    single = [_target(task, people.loc[[p]]).iloc[0] for p in people.index[:8]]
    if task.kind == "classification" and not np.array_equal(single, everyone.iloc[:8].to_numpy(float), equal_nan=True):
        problems.append("a participant alone gets another class: classes are numbered by what is in the table")
    demand(
        problems[:1] if len(problems) > 1 else problems, "Fix cut-offs, scales and the order of classes in the plugin."
    )
    return ""


def target_of_its_column(cls: type[Task], registry: Registry | None, full: bool) -> str:
    """The target follows from `column` alone among the covariates: baselines are given the others."""
    task = _subject_task(cls)
    people = _participants(task).assign(mean_fd=0.1, duration_s=300.0)
    before = _target(task, people).to_numpy(float)
    given = []
    for name in COVARIATES:
        if name == task.column:
            continue
        # Everybody gets the value of somebody else, which is another one, or a number of their own.
        other = people[name].shift(1, fill_value=people[name].iloc[-1])
        if people[name].nunique() == 1:
            other = pd.Series(np.linspace(0.05, 900.0, len(people)), people.index)
        after = _target(build(cls), people.assign(**{name: other})).to_numpy(float)
        # Who has a target may well hang on a covariate: adults only, one site, those who lay still.
        known = np.isfinite(before) & np.isfinite(after)
        if not np.array_equal(before[known], after[known]):
            given.append(name)
    demand(
        [f"the target is made of {' and '.join(given)}, and `column` says {task.column!r}"] if given else [],
        "Baselines are given every covariate but `column`: they would know the answer. Name the column that it is made "
        "of, and predict what it holds.",
    )
    return ""


def _scored(task: SubjectTask, truth: np.ndarray[Any, Any], prediction: np.ndarray[Any, Any]) -> Score:
    table = pd.DataFrame(
        {
            "participant_id": [f"sub-{i:03d}" for i in range(len(truth))],
            "fold": np.arange(len(truth)) % 3,
            "truth": truth,
            "prediction": prediction,
            "train_mean": truth.mean(),
            "site": np.resize(["a", "b"], len(truth)),
            "age": np.linspace(20, 80, len(truth)),
        }
    )
    return score_subject_task(task, table, seed=0, n_bootstrap=100, n_permutations=99)


def perfect_and_shuffled(cls: type[Task], registry: Registry | None, full: bool) -> str:
    """A perfect prediction reaches the best value of the headline and is above chance, a shuffled one is neither."""
    task = build(cls)
    if isinstance(task, EvokedTask):
        return _evoked_perfect_and_shuffled(task)
    if isinstance(task, WindowTask):
        return _windows_perfect_and_shuffled(task)
    if isinstance(task, RetrievalTask):
        return _retrieval_perfect_and_shuffled(task)
    _subject_task(cls)
    assert isinstance(task, SubjectTask)
    truth = _known_target(task)
    headline = task.metrics[0]
    rng = np.random.default_rng(seed_for(0, "permutation", "task-check"))
    problems = []
    perfect = _scored(task, truth, truth)
    value = perfect.metrics[headline.name].value
    if value is None or not np.isclose(value, headline.best, atol=1e-6):
        problems.append(
            f"a perfect prediction has {headline.name} {value}, and the best value is said to be {headline.best:g}"
        )
    if perfect.above_chance is False:
        problems.append("a perfect prediction is not found to be above chance")
    shuffled = []
    for _ in range(20):
        guess = rng.permutation(truth) + rng.normal(0, 1e-3 * truth.std(), len(truth))
        score = _scored(task, truth, guess)
        shuffled.append(bool(score.above_chance))
        got = score.metrics[headline.name].value
        if got is not None and value is not None and (got >= value) == headline.higher_is_better and got != value:
            problems.append(f"a shuffled prediction scores {headline.name} {got:.3g}, better than a perfect one")
    # Two false alarms or more in 20 have probability .26 at 5 % each, five have .003.
    if sum(shuffled) >= 5:
        problems.append(f"{sum(shuffled)} of 20 shuffled predictions are found to be above chance")
    demand(problems[:4])
    return f"{headline.name}: perfect {value:.3g}; above chance after shuffling: {sum(shuffled)} of 20"


def _evoked_perfect_and_shuffled(task: EvokedTask) -> str:
    """Predict the signal itself, nothing, and the signal of another time of the same window, which is not locked."""

    def shuffled(seed: int) -> Predictor:
        rng = np.random.default_rng(seed_for(seed, "permutation", "task-check"))

        def predict(batch: Batch, hidden: torch.Tensor) -> torch.Tensor:
            flat = batch.signal.flatten(2)
            n = flat.shape[2]
            moved = [torch.roll(x, int(rng.integers(n // 8, n - n // 8)), 1) for x in flat]
            return torch.stack(moved).view_as(batch.signal)

        return predict

    predictors: dict[str, Predictor] = {
        "perfect": lambda batch, hidden: batch.signal,
        "nothing": lambda batch, hidden: torch.zeros_like(batch.signal),
    }
    n_shuffled = 20
    predictors |= {f"shuffled {i}": shuffled(i) for i in range(n_shuffled)}
    with tempfile.TemporaryDirectory() as folder:
        cohort = simulated_states(Path(folder))
        tokenizer = Tokenizer(cohort, Scaler.fit(cohort, cohort.subjects))
        responses, _ = find_responses(cohort, cohort.subjects, task, seed=0)
        scores = evaluate(predictors, tokenizer, responses, unit_chunks(cohort.units, len(cohort.units)), task, seed=0)
    found = {name: score_evoked(task, scores, name, seed=0, n_bootstrap=200) for name in predictors}
    problems = []
    for metric in task.metrics:
        value = found["perfect"].metrics[metric.name].value
        if value is None or not np.isclose(value, metric.best, atol=1e-6):
            problems.append(
                f"a perfect prediction has {metric.name} {value}, and the best is said to be {metric.best:g}"
            )
        empty = found["nothing"].metrics[metric.name].value
        if np.isfinite(metric.chance) and (empty is None or not np.isclose(empty, metric.chance, atol=1e-6)):
            problems.append(
                f"a prediction of zeros has {metric.name} {empty}, and chance is said to be {metric.chance:g}"
            )
    if not found["perfect"].above_chance:
        problems.append("a perfect prediction is not found to be above chance")
    above = sum(bool(found[f"shuffled {i}"].above_chance) for i in range(n_shuffled))
    if above >= 5:
        problems.append(f"{above} of {n_shuffled} shuffled predictions are found to be above chance")
    demand(problems[:4])
    headline = task.metrics[0].name
    perfect = found["perfect"].metrics[headline].value
    return f"{headline}: perfect {perfect:.3g}; above chance after shuffling: {above} of {n_shuffled}"


def _windows_perfect_and_shuffled(task: WindowTask) -> str:
    """Predict the class of every window, and classes shuffled within subjects."""
    with tempfile.TemporaryDirectory() as folder:
        rows = window_rows(simulated_states(Path(folder)), task)
    n_classes = len(rows.names)
    classes, subjects = rows.classes.to_numpy(int), rows.subjects.to_numpy(str)
    rng = np.random.default_rng(seed_for(0, "permutation", "task-check"))

    def score(said: np.ndarray[Any, Any]) -> Score:
        noise = rng.uniform(0, 1e-3, (len(said), n_classes))
        probability = (np.eye(n_classes)[said] + noise) / (1 + noise.sum(1, keepdims=True))
        tables = [
            window_predictions(
                rows.subjects.index[subjects == s],
                [s] * int((subjects == s).sum()),
                i % 3,
                [rows.names[k] for k in classes[subjects == s]],
                probability[subjects == s],
                rows.names,
            )
            for i, s in enumerate(np.unique(subjects))
        ]
        return score_window_task(task, pd.concat(tables), seed=0, n_bootstrap=200, n_permutations=99)

    problems = []
    perfect = score(classes)
    for metric in task.metrics:
        value = perfect.metrics[metric.name].value
        if value is None or not np.isclose(value, metric.best, atol=1e-6):
            problems.append(
                f"a perfect prediction has {metric.name} {value}, and the best is said to be {metric.best:g}"
            )
    if not perfect.above_chance:
        problems.append("a perfect prediction is not found to be above chance")
    n_shuffled = 20
    above = 0
    for _ in range(n_shuffled):
        said = classes.copy()
        for s in np.unique(subjects):
            said[subjects == s] = rng.permutation(said[subjects == s])
        above += bool(score(said).above_chance)
    if above >= 5:
        problems.append(f"{above} of {n_shuffled} shuffled predictions are found to be above chance")
    demand(problems[:4])
    headline = task.metrics[0].name
    best = perfect.metrics[headline].value
    return f"{headline}: perfect {best:.3g}; above chance after shuffling: {above} of {n_shuffled}"


def _retrieval_rows(task: RetrievalTask, folder: Path) -> tuple[Cohort, RetrievalRows, list[Fold]]:
    """Return simulated recordings of several states, the task's windows of them, and two folds."""
    cohort = simulated_states(folder, n_subjects=16, n_units=4)
    try:
        rows = retrieval_rows(cohort, task)
    except NeurobenchError as error:
        raise CheckError(f"`windows` cannot be used: {error.what}", next_step=error.next_step) from None
    halves = cohort.subjects[::2], cohort.subjects[1::2]
    return cohort, rows, [Fold(i, halves[1 - i], halves[i]) for i in range(2)]


def _retrieval_perfect_and_shuffled(task: RetrievalTask) -> str:
    """Look for windows by features that are their label, and by features of nothing."""
    with tempfile.TemporaryDirectory() as folder:
        _, rows, folds = _retrieval_rows(task, Path(folder))
    labels = np.unique(rows.labels, return_inverse=True)[1]
    rng = np.random.default_rng(seed_for(0, "permutation", "task-check"))
    names = list(rows.subjects.index)

    def score(x: np.ndarray[Any, Any]) -> Score:
        found = pd.concat([retrieve(task, rows, f, names, x, seed=0) for f in folds], ignore_index=True)
        return score_retrieval_task(task, found, seed=0, n_bootstrap=200, n_permutations=99)

    centres = rng.normal(size=(labels.max() + 1, 64))
    perfect = score(centres[labels] + rng.normal(0, 1e-3, (len(labels), 64)))
    problems = []
    for metric in task.metrics:
        value = perfect.metrics[metric.name].value
        if value is None or not np.isclose(value, metric.best, atol=1e-6):
            problems.append(f"features that are the label have {metric.name} {value}; the best is {metric.best:g}")
    if not perfect.above_chance:
        problems.append("features that are the label are not found to be above chance")
    n_shuffled = 20
    above = sum(bool(score(rng.normal(size=(len(labels), 64))).above_chance) for _ in range(n_shuffled))
    if above >= 5:
        problems.append(f"{above} of {n_shuffled} features of nothing are found to be above chance")
    demand(problems[:4])
    headline = task.metrics[0].name
    best = perfect.metrics[headline].value
    return f"{headline}: perfect {best:.3g}; above chance without anything: {above} of {n_shuffled}"


def refusal(cls: type[Task], registry: Registry | None, full: bool) -> str:
    """A cohort without the target is refused with a reason, one with it is not."""
    task = build(cls)
    problems = []
    with tempfile.TemporaryDirectory() as folder:
        cohort = _cohort(Path(folder))
        if isinstance(task, SubjectTask):
            _subject_task(cls)
            good = _cohort(Path(folder), _participants(task))
            _known_target(task)
            if not isinstance(said := task.refuses(good), str):
                raise CheckError(f"`refuses` returns {said!r}, not a text: the reason, or an empty one.")
            if reason := task.refuses(good):
                problems.append(f"refuses a cohort that has {task.column!r}: {reason}")
            bare = replace(good, participants=good.participants.drop(columns=task.column))
            reason = task.refuses(bare)
            if not reason:
                problems.append(f"does not refuse a cohort without {task.column!r}")
            elif task.column not in reason:
                problems.append(f"refuses a cohort without {task.column!r} and does not name it: {reason!r}")
            empty = good.participants.assign(**{task.column: np.nan})
            if not task.refuses(replace(good, participants=empty)):
                problems.append(f"does not refuse a cohort in which {task.column!r} is missing for everybody")
        elif isinstance(task, EvokedTask):
            problems += _evoked_refusal(task, simulated_states(Path(folder) / "states", n_subjects=2))
        elif isinstance(task, WindowTask):
            problems += _windows_refusal(task, simulated_states(Path(folder) / "states", n_subjects=4))
        elif isinstance(task, RetrievalTask):
            problems += _retrieval_refusal(task, simulated_states(Path(folder) / "states", n_subjects=16, n_units=4))
        elif reason := task.refuses(cohort):
            problems.append(f"refuses a simulated cohort: {reason}")
    demand(problems)
    return ""


def _evoked_refusal(task: EvokedTask, good: Cohort) -> list[str]:
    problems = []
    if reason := task.refuses(good):
        problems.append(f"refuses a simulated cohort with events: {reason}")
    reason = task.refuses(replace(good, recordings=tuple(replace(r, events=()) for r in good.recordings)))
    unnamed = [s for s in sorted({r.state for r in good.recordings}) if s not in reason]
    if not reason:
        problems.append("does not refuse a cohort without events")
    elif unnamed:
        problems.append(
            f"refuses a cohort without events and does not name the states {', '.join(unnamed)}: {reason!r}"
        )
    return problems


def _windows_refusal(task: WindowTask, good: Cohort) -> list[str]:
    problems = []
    if reason := task.refuses(good):
        problems.append(f"refuses a simulated cohort of several states: {reason}")
    for label in sorted({task.label(r) for r in good.recordings} - {""}):
        only = replace(good, recordings=tuple(r for r in good.recordings if task.label(r) == label))
        if not (reason := task.refuses(only)):
            problems.append(f"does not refuse a cohort in which everything is {label!r}")
        elif label not in reason:
            problems.append(f"refuses a cohort in which everything is {label!r} and does not name it: {reason!r}")
    return problems


def _retrieval_refusal(task: RetrievalTask, good: Cohort) -> list[str]:
    problems = []
    if reason := task.refuses(good):
        problems.append(f"refuses a simulated cohort of several states: {reason}")
    first = {r.subject: r for r in good.recordings[::-1]}.values()
    one = tuple(replace(r, n_times=good.samples_per_window, events=()) for r in first)
    if not task.refuses(replace(good, recordings=one)):
        problems.append("does not refuse a cohort of one window a person, in one state and without events")
    return problems


def retrieval(cls: type[Task], registry: Registry | None, full: bool) -> str:
    """Galleries hold two entries or more, nothing is next to what it is looked for with, and no signal is read."""
    task = build(cls)
    if not isinstance(task, RetrievalTask):
        raise Skip("is not about retrieval")
    problems = []
    if task.gallery_from not in ("test", "train"):
        raise CheckError(f"`gallery_from` is {task.gallery_from!r}, not test or train.")
    if task.max_gallery < 2:
        problems.append(f"`max_gallery` is {task.max_gallery}, below 2")
    with tempfile.TemporaryDirectory() as folder:
        cohort, rows, folds = _retrieval_rows(task, Path(folder))
        with watched_files() as seen:
            again = task.windows(cohort)
        problems += [f"`windows` {what}" for what in dict.fromkeys(seen)]
        if list(again) != list(task.windows(cohort)):
            problems.append("`windows` changes from call to call")
        if not isinstance(task.remark(cohort), str):
            problems.append("`remark` does not return a text")
    x = np.zeros((len(rows.subjects), 1))
    sizes = [int(retrieve(task, rows, f, list(rows.subjects.index), x, seed=0)["n_gallery"].iloc[0]) for f in folds]
    demand(problems)
    return f"galleries of {' and '.join(map(str, sizes))} simulated entries, {int(rows.is_query.sum())} queries"


def windows(cls: type[Task], registry: Registry | None, full: bool) -> str:
    """Classes of windows are texts, and rows of the derived cohort say nothing of them but through the signal."""
    task = build(cls)
    if not isinstance(task, WindowTask):
        raise Skip("is not about windows")
    if task.max_windows < 1:
        raise CheckError(f"`max_windows` is {task.max_windows}, below 1.")
    problems = []
    with tempfile.TemporaryDirectory() as folder:
        cohort = simulated_states(Path(folder))
        wrong = [label for r in cohort.recordings if not isinstance(label := task.label(r), str)]
        if wrong:
            raise CheckError(f"`label` returns {wrong[0]!r}, not a text.")
        rows = window_rows(cohort, task)
        counts = rows.classes.groupby([rows.subjects, rows.classes]).size()
        if counts.max() > task.max_windows:
            problems.append(f"a subject has {counts.max()} windows of one class; `max_windows` is {task.max_windows}")
        if again := [r.id for r in cohort.recordings if task.label(r) != task.label(r)]:
            problems.append(f"`label` of {again[0]} changes from call to call")
    demand(problems)
    return f"{len(rows.names)} classes of simulated states, {len(rows.subjects)} windows"


def epochs(cls: type[Task], registry: Registry | None, full: bool) -> str:
    """Epochs, what is hidden of them together, and where peaks are looked for, make sense."""
    task = build(cls)
    if not isinstance(task, EvokedTask):
        raise Skip("is not about evoked responses")
    problems = []
    low, high = task.span_s
    if not low < high:
        problems.append(f"`span_s` is {task.span_s}, whose first sample is not before its last")
    if task.tile not in ("units", "time"):
        problems.append(f"`tile` is {task.tile!r}, not units or time")
    if task.max_epochs < task.MIN_EPOCHS:
        problems.append(f"`max_epochs` is {task.max_epochs}, below {task.MIN_EPOCHS}")
    for state, condition in (("auditory", "tone"), ("somatosensory", "left"), ("no such state", "no such condition")):
        window = task.peak_window_s(state, condition)
        if not low <= window[0] < window[1] <= high:
            problems.append(f"`peak_window_s` of {state}/{condition} is {window}, not within the epoch {task.span_s}")
    demand(problems)
    return f"{task.tile}, {low:g} to {high:g} s"


def participants_are_left_alone(cls: type[Task], registry: Registry | None, full: bool) -> str:
    """The participants table is read and never written: every other task is scored from the same one."""
    task = _subject_task(cls)
    problems = []
    with tempfile.TemporaryDirectory() as folder:
        cohort = _cohort(Path(folder), _participants(task))
        before = cohort.participants.copy()
        task.target(cohort.participants)
        if not before.equals(cohort.participants):
            problems.append("`target` changes the participants table")
            cohort = replace(cohort, participants=before.copy())
        task.refuses(cohort)
        if not before.equals(cohort.participants):
            problems.append("`refuses` changes the participants table")
    demand(problems, "Work on a copy: `participants[self.column].copy()`.")
    return ""


def evaluation_masks(cls: type[Task], registry: Registry | None, full: bool) -> str:
    """Evaluation masks exist, and something can be scored."""
    task = build(cls)
    if not isinstance(task, ReconstructionTask):
        raise Skip("is no reconstruction")
    problems = []
    if not task.evaluation_masks:
        problems.append("`evaluation_masks` is empty")
    if not 0 < task.ratio < 1:
        problems.append(f"`ratio` is {task.ratio}, not between 0 and 1")
    if registry is not None:
        unknown = [m for m in task.evaluation_masks if m.partition("[")[0] not in registry.masks]
        problems += [f"evaluation mask {m!r} is not registered" for m in unknown]
    demand(problems)
    return ", ".join(task.evaluation_masks)


def reads_nothing(cls: type[Task], registry: Registry | None, full: bool) -> str:
    """Targets come from the participants table: no file is opened."""
    task = _subject_task(cls)
    with watched_files() as seen:
        task.target(_participants(task))
    demand([f"`target` {what}" for what in dict.fromkeys(seen)])
    return ""


CHECKS: dict[str, Check] = {
    "metrics": metrics,
    "target": target,
    "target-row-by-row": target_row_by_row,
    "target-of-its-column": target_of_its_column,
    "participants-are-left-alone": participants_are_left_alone,
    "perfect-and-shuffled": perfect_and_shuffled,
    "refusal": refusal,
    "evaluation-masks": evaluation_masks,
    "epochs": epochs,
    "windows": windows,
    "retrieval": retrieval,
    "reads-nothing": reads_nothing,
}

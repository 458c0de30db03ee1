"""What a grid costs beyond its distinct pretrainings, what another task costs, and how long probes and scores take.

Grid (profile smoke with 60 steps, simulated ``parcels`` and ``adhd200`` twins of 48 people, two backbones × two masks,
four tasks; quick: one of each, two tasks and one more):

- *overhead*: seconds of the whole run, from a resolved grid to its table, over the sum of what its distinct stored
  steps took, each computed once. Pretraining, embedding, reconstruction and scoring are work that any single row needs;
  whatever a runner adds (looking up, hashing, waiting, writing records, doing something twice) is not. Bar: 1.10.
  (Against the pretrainings alone a bar has no meaning at this profile, whose pretrainings take seconds: that share is
  told besides.)
- *computed*: steps that the run computed over distinct steps there are. Bar: 1.
- *one more task*: seconds of the same grid with one more task over those of the first run; what is computed then is
  counted: evaluations, and the covariates less the new target. Embeddings computed then: none.
- *embeddings*: stored ones over (rows with a network) × folds, after all tasks. Bar: 1.

Probes: a ridge, penalty chosen over nine by five inner folds, on 800 people, as :mod:`neurobench.adaptation` does it
(one decomposition) and as scikit-learn's ``RidgeCV`` with the same folds does it, predictions compared. Four targets
share the decomposition.

Scores: 2,000 bootstraps and 1,000 permutations of every metric of a task on 1,000 people of 20 sites, confounds beside;
bar: two seconds. Beside it scikit-learn's metrics in a Python loop, from a tenth of the draws.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn import metrics as sk
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import PredefinedSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.performance.table import Ratio, interleaved
from neurobench import adaptation, confounds, scoring
from neurobench.config import RunConfig, expand
from neurobench.metrics import CLASSIFICATION_METRICS, regression_metrics
from neurobench.plugins import Registry, load_registry
from neurobench.runner import RunResult, execute
from neurobench.store import Store

__all__ = ["measure"]

TOPIC = "grid"
N_PEOPLE, N_SITES, BAR_S = 1000, 20, 2.0
ALLOWED_OVERHEAD = 1.10


# ---------------------------------------------------------------- the grid


def _run(registry: Registry, out: Path, quick: bool, tasks: list[str]) -> RunResult:
    sizes: dict[str, Any] = (
        {"backbone": "transformer", "mask": "random_tube", "dataset": "parcels", "n_steps": 40, "n_subjects": 32}
        if quick
        else {
            "backbone": ["transformer", "mamba"],
            "mask": ["roi", "random_tube"],
            "dataset": ["parcels", "adhd200"],
            "n_steps": 60,
            "n_subjects": 48,
        }
    )
    return execute(expand(RunConfig.from_options(task=tasks, out=str(out), **sizes), registry), registry)


def _steps(out: Path) -> pd.DataFrame:
    """Return stage, identity and seconds of every stored step."""
    store = Store(out, read_only=True)
    found = [(stage, str(e.path), e.seconds) for stage in store.stages() for e in store.entries(stage)]
    return pd.DataFrame(found, columns=["stage", "path", "seconds"])


def the_grid(quick: bool) -> list[Ratio]:
    """Return what a grid costs, and what another task adds to it."""
    registry = load_registry()
    with tempfile.TemporaryDirectory() as name:
        # What the first pretraining of a process pays for (imports, compilation) is no part of a grid.
        _run(registry, Path(name) / "warm", True, ["age"])
        out = Path(name) / "grid"
        before = ["age", "reconstruction"] if quick else ["age", "fluid_intelligence", "reconstruction"]
        first = _run(registry, out, quick, before)
        once = _steps(out)
        more = _run(registry, out, quick, [*before, "diagnosis"])
        twice = _steps(out)
    added = twice[~twice["path"].isin(once["path"])].groupby("stage").size()
    stage = once.groupby("stage")["seconds"].sum()
    # Files are prepared before steps are counted.
    counted = once[~once["stage"].isin(["prepared", "cohort"])]
    n_networks = int((once["stage"] == "pretraining").sum())
    n_folds = 2
    labels = first.table[first.table["kind"].isin(["pretrained", "untrained"])]
    n_rows = len(labels[["dataset", "row"]].drop_duplicates())
    own = float(stage.drop("cohort", errors="ignore").sum())
    return [
        Ratio(TOPIC, "a grid's seconds over those of its distinct steps, each once", first.seconds / own,
              ALLOWED_OVERHEAD, at_least=False,
              measured={"grid_s": first.seconds, **{f"{k}_s": float(v) for k, v in stage.items()}}),
        Ratio(TOPIC, "a grid's seconds over those of its distinct pretrainings", first.seconds / stage["pretraining"],
              measured={"pretrainings": float(n_networks)}),
        Ratio(TOPIC, "steps computed over distinct steps", first.n_computed / len(counted), 1.0, at_least=False),
        Ratio(TOPIC, "one more task: its seconds over the grid's", more.seconds / first.seconds, 0.25, at_least=False,
              measured={"more_s": more.seconds, **{f"{k}_computed": float(v) for k, v in added.items()}}),
        Ratio(TOPIC, "one more task: embeddings and pretrainings computed", float(added.get("embedding", 0)
              + added.get("pretraining", 0)), 0.0, at_least=False),
        Ratio(TOPIC, "embeddings over networks × folds, after all tasks",
              float((twice["stage"] == "embedding").sum()) / (n_rows * n_folds), 1.0, at_least=False),
    ]  # fmt: skip


# ---------------------------------------------------------------- probes


def probes(quick: bool) -> list[Ratio]:
    """Return what a probe's decomposition saves."""
    found = []
    for n, d in ((400, 600),) if quick else ((800, 300), (800, 4096)):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(n, 40)) @ rng.normal(size=(40, d)) + 3 * rng.normal(size=(n, d))
        y = x[:, :5].sum(1) + rng.normal(size=n)
        new, other = rng.normal(size=(n // 4, d)), [rng.permutation(y) for _ in range(3)]
        inner = adaptation._inner_folds(y, "regression", np.random.default_rng(scoring.seed_for(0, "probe", "inner")))

        def ours(target: np.ndarray = y, x: np.ndarray = x, new: np.ndarray = new) -> np.ndarray:
            return adaptation.fit_predict(x, target, new, "regression", 0).values

        def fresh(ours: Any = ours) -> np.ndarray:
            adaptation._known_spaces.clear()
            return ours()

        def four(fresh: Any = fresh, ours: Any = ours, other: list[np.ndarray] = other) -> None:
            fresh()
            for target in other:
                ours(target)

        def theirs(x: np.ndarray = x, y: np.ndarray = y, new: np.ndarray = new, inner: Any = inner) -> np.ndarray:
            model = RidgeCV(adaptation.ALPHAS, cv=PredefinedSplit(inner), scoring="neg_mean_squared_error")
            return make_pipeline(StandardScaler(), model).fit(x, y).predict(new)

        apart = float(np.abs(fresh() - theirs()).max() / np.abs(y).max())
        took = interleaved({"one": fresh, "four": four, "peer": theirs}, 1 if quick else 2)
        measured = {f"{k}_s": v for k, v in took.items()} | {"largest_relative_difference": apart}
        where = f"ridge on {n} people × {d} features"
        found += [
            Ratio(TOPIC, f"{where}: scikit-learn's RidgeCV over ours", took["peer"] / took["one"], 1.0,
                  measured=measured),
            Ratio(TOPIC, f"{where}: four targets over one", took["four"] / took["one"]),
        ]  # fmt: skip
    return found


# ---------------------------------------------------------------- scores


def invented(n: int, kind: str, seed: int = 0) -> pd.DataFrame:
    """Return held-out predictions of people who do not exist, with covariates."""
    rng = np.random.default_rng(seed)
    site, age = rng.integers(N_SITES, size=n), rng.uniform(18, 80, n)
    signal = rng.normal(size=n)
    if kind == "regression":
        truth = 50 + 8 * signal + 0.1 * age
        prediction = 50 + 4 * signal + 4 * rng.normal(size=n)
    else:
        truth = (signal + rng.normal(size=n) > 0.3).astype(float)
        prediction = 1 / (1 + np.exp(-signal))
    fold = rng.permutation(np.arange(n) % 5)
    return pd.DataFrame(
        {
            "participant_id": [f"sub-{i:05d}" for i in range(n)],
            "fold": fold,
            "truth": truth,
            "prediction": prediction,
            "train_mean": [truth[fold != f].mean() for f in fold],
            "site": [f"site{s}" for s in site],
            "age": age,
            "sex": rng.choice(["F", "M"], n),
            "mean_fd": rng.gamma(4, 0.04, n),
        }
    )


TASKS = {
    "a regression, age known": SimpleNamespace(
        kind="regression", metrics=regression_metrics("years", given_age=True), classes=("", "")
    ),
    "two classes, within sites too": SimpleNamespace(
        kind="classification", metrics=CLASSIFICATION_METRICS, classes=("control", "patient")
    ),
}


def looped(data: pd.DataFrame, kind: str, n_bootstrap: int, n_permutations: int) -> None:
    """Compute what scikit-learn has of a task's metrics, one draw after the other."""
    y, p, site = (data[c].to_numpy() for c in ("truth", "prediction", "site"))
    rng = np.random.default_rng(0)

    def values(y: np.ndarray, p: np.ndarray) -> list[float]:
        if kind == "regression":
            return [sk.mean_absolute_error(y, p), sk.r2_score(y, p), np.corrcoef(y, p)[0, 1]]
        said = p > 0.5
        return [sk.roc_auc_score(y, p), sk.average_precision_score(y, p), sk.balanced_accuracy_score(y, said),
                sk.matthews_corrcoef(y, said), sk.brier_score_loss(y, p)]  # fmt: skip

    for _ in range(n_bootstrap):
        rows = rng.integers(len(y), size=len(y))
        values(y[rows], p[rows])
    places = [np.flatnonzero(site == s) for s in np.unique(site)]
    for _ in range(n_permutations):
        permuted = y.copy()
        for here in places:
            permuted[here] = rng.permutation(y[here])
        values(permuted, p)


def scores(quick: bool) -> list[Ratio]:
    """Return how long every set of metrics takes with its draws."""
    found, part = [], 100 if quick else 10
    for name, task in TASKS.items():
        data = invented(N_PEOPLE, task.kind)

        def ours(task: Any = task, data: pd.DataFrame = data) -> None:
            scoring.score_subject_task(task, data, seed=0)

        def beside(data: pd.DataFrame = data) -> None:
            confounds.confound_scores(data, seed=0)

        def theirs(data: pd.DataFrame = data, kind: str = task.kind) -> None:
            looped(data, kind, scoring.N_BOOTSTRAP // part, scoring.N_PERMUTATIONS // part)

        took = interleaved({"ours": ours, "confounds": beside, "peer": theirs}, 1 if quick else 3)
        loop = took["peer"] * part
        what = f"{name}: {len(task.metrics)} metrics of {N_PEOPLE:,} people"
        found += [
            Ratio(TOPIC, f"{what}, seconds over the two allowed", took["ours"] / BAR_S, 1.0, at_least=False,
                  measured={"ours_s": took["ours"]}),
            Ratio(TOPIC, f"{name}: confounds, seconds over the two allowed", took["confounds"] / BAR_S, 1.0,
                  at_least=False, measured={"confounds_s": took["confounds"]}),
            Ratio(TOPIC, f"{what}, a loop over scikit-learn's (fewer) metrics over ours", loop / took["ours"],
                  measured={"loop_s": loop}),
        ]  # fmt: skip
    return found


def measure(quick: bool) -> list[Ratio]:
    """Return the ratios."""
    torch.set_num_threads(2)
    return [*the_grid(quick), *probes(quick), *scores(quick)]

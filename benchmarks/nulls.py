"""Do the statistics lie? ``python -m benchmarks.nulls``: many repeats in which there is nothing to find.

Four campaigns, everything simulated:

* *chance*: features that know the site, labels that differ between sites and are otherwise drawn at random; folds,
  probe, intervals and within-site permutations are the real ones. The share of repeats that is declared above chance,
  for every metric, must be at most 5 % plus Monte-Carlo error.
* *windows*: whole recordings are predicted as one class by chance; the same bar.
* *difference*: two rows of predictions that are equally good. How often the interval of the paired difference excludes
  0, and how often p < .05, must be between 3 and 7 %. A metric that takes few values cannot reach 5 %: beside it stand
  the largest level below 5 % that the exchanges can attain, and how often p < .05 if ties counted half (mid-p).
* *coverage*: predictions whose true score is known. How often the 95 % interval holds it. Of a partial correlation: of
  predictions that know age alone, given age.

The result goes to ``benchmarks/results/nulls.json`` with its date and sizes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from scipy import stats

from neurobench.adaptation import fit_predict
from neurobench.confounds import confound_scores
from neurobench.contracts import Metric, SubjectTask, WindowTask
from neurobench.identity import seed_for
from neurobench.metrics import CLASSIFICATION_METRICS, WINDOW_METRICS, regression_metrics
from neurobench.paired import Paired, row_of
from neurobench.records import Cohort, Recording
from neurobench.results import environment
from neurobench.scoring import N_PERMUTATIONS, score_subject_task
from neurobench.splits import make_folds
from neurobench.window_scoring import score_window_task, window_predictions

N_SITES, N_FEATURES = 4, 30
PREVALENCE = (0.25, 0.4, 0.6, 0.75)
"""Of class 1 at each site: the site alone tells the class with an AUROC of about .7."""


class _Column(SubjectTask):
    """A task on one column of simulated people."""

    summary = "simulated"

    def __init__(self, kind: str) -> None:
        self.name = self.column = kind
        self.kind = kind  # type: ignore[assignment]
        self.metrics: tuple[Metric, ...] = (
            CLASSIFICATION_METRICS if kind == "classification" else regression_metrics("points", given_age=True)
        )

    @property
    def classes(self) -> tuple[str, str]:
        return ("a", "b") if self.kind == "classification" else ("", "")

    def target(self, participants: pd.DataFrame) -> pd.Series:
        return participants[self.column]

    def refuses(self, cohort: Cohort) -> str:
        return ""


# ---------------------------------------------------------------- chance


def null_repeat(kind: str, repeat: int, n: int, n_folds: int, n_bootstrap: int, n_permutations: int) -> dict[str, Any]:
    """Return for every metric whether it is declared above chance, by the whole rule and by the interval alone."""
    rng = np.random.default_rng(seed_for(repeat, "twin", kind, n))
    site = np.resize(np.arange(N_SITES), n)
    age = rng.uniform(20, 80, n)
    x = rng.normal(size=(n, N_FEATURES)) + rng.normal(size=(N_SITES, N_FEATURES))[site] + age[:, None] / 60
    y = (
        (rng.random(n) < np.array(PREVALENCE)[site]).astype(float)
        if kind == "classification"
        else rng.normal(size=n) + 0.7 * (site - 1.5)
    )
    names = [f"sub-{i:04d}" for i in range(n)]
    people = pd.DataFrame({"site": site.astype(str), "age": age}, index=pd.Index(names, name="participant_id"))
    tables = []
    for fold in make_folds(people, n_folds, repeat, "subjects"):
        train, test = ([names.index(s) for s in who] for who in (fold.train, fold.test))
        predicted = fit_predict(x[train], y[train], x[test], kind, repeat).values  # type: ignore[arg-type]
        tables.append(
            pd.DataFrame(
                {
                    "participant_id": fold.test,
                    "fold": fold.index,
                    "truth": y[test],
                    "prediction": predicted,
                    "train_mean": y[train].mean(),
                    "site": site[test].astype(str),
                    "age": age[test],
                }
            )
        )
    score = score_subject_task(
        _Column(kind), pd.concat(tables), seed=repeat, n_bootstrap=n_bootstrap, n_permutations=n_permutations
    )
    return {
        name: (m.above_chance, m.low is not None and m.chance is not None and _beyond(m))
        for name, m in score.metrics.items()
        if m.above_chance is not None
    }


def _beyond(m: Any) -> bool:
    return bool(m.low > m.chance if m.higher_is_better else m.high < m.chance)


# ---------------------------------------------------------------- windows


class _Windows(WindowTask):
    """A task on windows of simulated recordings."""

    name, summary, metrics, max_windows = "windows", "simulated", WINDOW_METRICS, 6

    def label(self, recording: Recording) -> str:
        return ""

    def refuses(self, cohort: Cohort) -> str:
        return ""


def window_repeat(
    kind: str, repeat: int, n: int, n_bootstrap: int, n_permutations: int
) -> dict[str, tuple[bool | None, bool]]:
    """Return for every metric whether it is declared above chance, by the whole rule and by p alone.

    ``n`` recordings of each of two classes, six windows each, all windows of one predicted alike.
    """
    rng = np.random.default_rng(seed_for(repeat, "twin", kind, n))
    said = np.repeat(rng.random(2 * n), 6) + 0.02 * rng.normal(size=12 * n)
    table = window_predictions(
        [f"w{i:05d}" for i in range(12 * n)],
        np.repeat([f"sub-{i:04d}" for i in range(n)], 12).tolist(),
        0,
        np.tile(np.repeat(["a", "b"], 6), n).tolist(),
        np.stack([1 - said, said], 1),
        ("a", "b"),
    )
    score = score_window_task(_Windows(), table, seed=repeat, n_bootstrap=n_bootstrap, n_permutations=n_permutations)
    return {m.name: (score.metrics[m.name].above_chance, _p(score.metrics[m.name]) < 0.05) for m in WINDOW_METRICS}


def _p(m: Any) -> float:
    return 1.0 if m.p_value is None else float(m.p_value)


# ---------------------------------------------------------------- difference


def difference_repeat(metric: str, repeat: int, n: int) -> dict[str, float]:
    """Return whether two equally good rows are told apart: by the interval, by p, by both; and what could be attained.

    ``attainable`` is the largest share of exchanges below 5 % that reach a difference: what p < .05 comes to at most.
    """
    rng = np.random.default_rng(seed_for(repeat, "twin", "difference", metric, n))
    a, b = (row_of(metric, table) for table in _two_rows(metric, rng, n))
    paired = Paired(n, seed=repeat)
    found = paired.difference([(a, b)])
    interval, p = found["low"] > 0 or found["high"] < 0, found["p"] < 0.05
    swap = np.concatenate(list(paired.swaps(N_PERMUTATIONS, "swap", n)))
    null = np.abs(a.exchanged(b, swap)).round(12)  # type: ignore[arg-type]
    observed = abs(a.exchanged(b, np.zeros((1, n), bool))[0]).round(12)  # type: ignore[arg-type]
    mid = ((null > observed).sum() + (null == observed).sum() / 2 + 0.5) / (len(null) + 1)
    reached = np.cumsum(np.unique(null, return_counts=True)[1][::-1]) / len(null)
    attainable = reached[reached <= 0.05].max(initial=0.0)
    return {"interval": interval, "p": p, "both": interval and p, "mid-p": mid < 0.05, "attainable": attainable}


def _two_rows(metric: str, rng: np.random.Generator, n: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return held-out evidence of two rows that share half of what they know, and are equally good."""
    names = [f"sub-{i:04d}" for i in range(n)]
    if metric == "sse":
        difficulty = rng.gamma(4, 0.25, n)
        sst = rng.gamma(10, 10, n)
        return tuple(  # type: ignore[return-value]
            pd.DataFrame(
                {
                    "participant_id": names,
                    "fold": np.arange(n) % 5,
                    "mask": "roi",
                    "headline": True,
                    "sst": sst,
                    "sse": sst * 0.5 * difficulty * rng.gamma(20, 0.05, n),
                }
            )
            for _ in range(2)
        )
    shared = rng.normal(size=n)
    truth = rng.normal(size=n) + shared if metric == "mae" else (rng.random(n) < 0.4).astype(float)
    signal = shared if metric == "mae" else truth
    table = {"participant_id": names, "fold": np.arange(n) % 5, "truth": truth, "train_mean": truth.mean()}
    common = rng.normal(size=n)
    predictions = [signal + 0.7 * common + 0.7 * rng.normal(size=n) for _ in range(2)]
    if metric == "auroc":
        predictions = [stats.norm.cdf(p - 0.5) for p in predictions]
    if metric == "balanced_accuracy":
        predictions = [stats.norm.cdf(2 * (p - 0.5)) for p in predictions]
    return tuple(pd.DataFrame(table | {"prediction": p}) for p in predictions)  # type: ignore[return-value]


# ---------------------------------------------------------------- coverage


def coverage_repeat(metric: str, repeat: int, n: int, n_bootstrap: int) -> bool:
    """Return whether the interval of a metric with a known population value holds it."""
    rng = np.random.default_rng(seed_for(repeat, "twin", "coverage", metric, n))
    if metric == "partial_r[age]":
        age = rng.uniform(20, 80, n)
        truth, prediction = (age / 15 + rng.normal(size=n) for _ in range(2))
        table = pd.DataFrame({"participant_id": range(n), "truth": truth, "prediction": prediction, "age": age})
        given = confound_scores(table, seed=repeat, n_bootstrap=n_bootstrap)[metric]
        return given.low is not None and given.high is not None and given.low <= 0 <= given.high
    if metric == "auroc":
        truth = (rng.random(n) < 0.5).astype(float)
        prediction = stats.norm.cdf(truth + rng.normal(size=n))
        known = float(stats.norm.cdf(1 / np.sqrt(2)))
        task = _Column("classification")
    else:
        truth = rng.normal(size=n)
        prediction = truth + rng.normal(size=n)
        known = float(np.sqrt(2 / np.pi)) if metric == "mae" else float(1 / np.sqrt(2))
        task = _Column("regression")
    table = pd.DataFrame(
        {
            "participant_id": [f"sub-{i:04d}" for i in range(n)],
            "fold": 0,
            "truth": truth,
            "prediction": prediction,
            "train_mean": 0.5 if metric == "auroc" else 0.0,
        }
    )
    m = score_subject_task(task, table, seed=repeat, n_bootstrap=n_bootstrap, n_permutations=1).metrics[metric]
    assert m.low is not None
    assert m.high is not None
    return m.low <= known <= m.high


# ---------------------------------------------------------------- campaigns


def _many(function: Callable[..., Any], repeats: int, workers: int, *arguments: Any) -> list[Any]:
    first, rest = arguments[:1], arguments[1:]
    return list(Parallel(n_jobs=workers)(delayed(function)(*first, r, *rest) for r in range(repeats)))


def _share(values: Sequence[bool]) -> dict[str, float]:
    """Return a share with the largest that chance allows for 5 % (99 % of repeats of the whole campaign)."""
    n = len(values)
    return {"share": float(np.mean(values)), "n": n, "bound": float(stats.binom.ppf(0.99, n, 0.05) / n)}


PARTS = ("classification", "regression", "windows", "difference", "coverage")

REPEATED = {"balanced_accuracy": 3, "sse": 3}
"""Cheap metrics near the edge of their bar: so many times as many repeats."""


def campaign(
    part: str, repeats: int, workers: int, n: int = 80, n_bootstrap: int = 1000, n_permutations: int = 500
) -> dict[str, Any]:
    """Run one part of the campaign and return what it found, a line a metric."""
    if part in ("classification", "regression"):
        found: list[Mapping[str, Any]] = _many(null_repeat, repeats, workers, part, n, 5, n_bootstrap, n_permutations)
        lines = {}
        for name in found[0]:
            both = [f[name] for f in found if name in f]
            lines[name] = _share([b[0] for b in both]) | {"interval alone": float(np.mean([b[1] for b in both]))}
        return lines
    if part == "windows":
        told_apart = _many(window_repeat, repeats, workers, part, n // 2, n_bootstrap, n_permutations)
        return {
            m.name: _share([bool(f[m.name][0]) for f in told_apart])
            | {"p alone": float(np.mean([f[m.name][1] for f in told_apart]))}
            for m in WINDOW_METRICS
        }
    if part == "difference":
        lines = {}
        for metric in ("mae", "auroc", "balanced_accuracy", "sse"):
            size = repeats * REPEATED.get(metric, 1)
            told = pd.DataFrame(_many(difference_repeat, size, workers, metric, n)).astype(float)
            name = "R² of reconstruction" if metric == "sse" else metric
            lines[name] = told.mean().round(4).to_dict() | {"n": size}
        return lines
    return {
        metric: {
            "share": float(np.mean(_many(coverage_repeat, repeats, workers, metric, n, n_bootstrap))),
            "n": repeats,
        }
        for metric in ("mae", "pearson_r", "auroc", "partial_r[age]")
    }


def main() -> None:
    """Run the parts, print them, and write each down once it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--subjects", type=int, default=80)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS, help="the other parts stay as they are")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "nulls.json")
    options = parser.parse_args()
    versions = {
        k: v for k, v in environment().items() if k in ("python", "neurobench-fm", "numpy", "scipy", "scikit-learn")
    }
    for part in options.only:
        started = time.perf_counter()
        found = campaign(part, options.repeats, options.workers, options.subjects)
        print(part, pd.DataFrame(found).T.to_string(float_format="{:.3f}".format), sep="\n", end="\n\n", flush=True)
        kept = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() else {}
        kept[part] = {
            "found": found,
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "command": f"python -m benchmarks.nulls --only {part} --repeats {options.repeats} "
            f"--subjects {options.subjects}",
            "seconds": round(time.perf_counter() - started),
            "versions": versions,
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

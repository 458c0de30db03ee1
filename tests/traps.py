"""Simulated cohorts that are built to deceive, as folders of the `parcels` dataset. What each hides is in its name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from scipy.signal import lfilter

N_UNITS, N_TIMES, T_R = 16, 120, 2.0


def _series(rng: np.random.Generator, coupling: float, noise: float = 1.0) -> np.ndarray:
    """Return (units, times): two networks whose coupling is the only thing that tells people apart, and noise."""
    slow = lfilter([1.0], [1.0, -0.8], rng.standard_normal((2, N_TIMES)), axis=1)
    second = coupling * slow[0] + np.sqrt(1 - coupling**2) * slow[1]
    source = np.repeat(np.stack([slow[0], second]), N_UNITS // 2, 0)
    return source / source.std() + noise * rng.standard_normal((N_UNITS, N_TIMES))


def _write(root: Path, people: pd.DataFrame, series: list[np.ndarray]) -> Path:
    (root / "timeseries").mkdir(parents=True)
    for name, values in zip(people["participant_id"], series, strict=True):
        np.save(root / "timeseries" / f"{name}.npy", values.astype(np.float32))
    people.assign(t_r=T_R).to_csv(root / "participants.tsv", sep="\t", index=False)
    i = np.arange(N_UNITS)
    regions = pd.DataFrame(
        {"name": [f"region{k:02d}" for k in i], "group": np.where(i < N_UNITS // 2, "front", "back")}
    )
    regions = regions.assign(x=10.0 * (i % 4) - 20, y=10.0 * (i // 4) - 20, z=5.0 * (i % 3))
    regions.to_csv(root / "regions.tsv", sep="\t", index=False)
    return root


def _people(rng: np.random.Generator, n: int) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "participant_id": [f"sub-{i:03d}" for i in range(n)],
            "age": rng.uniform(18, 80, n).round(1),
            "sex": rng.permutation(np.resize(["F", "M"], n)),
            "site": rng.permutation(np.resize(["a", "b"], n)),
            "mean_fd": rng.gamma(4, 0.04, n).round(3),
        }
    )


def label_is_site(root: Path, n: int = 60) -> Path:
    """Write patients from one scanner and controls from the other; scanners differ in noise, brains do not."""
    rng = np.random.default_rng(0)
    people = _people(rng, n)
    people["diagnosis"] = np.where(people["site"] == "a", "patient", "control")
    return _write(root, people, [_series(rng, 0.5, 0.6 if s == "a" else 1.4) for s in people["site"]])


def diagnosis_through_motion(root: Path, n: int = 80) -> Path:
    """Write patients who move more; motion raises coupling, the diagnosis itself does nothing."""
    rng = np.random.default_rng(1)
    people = _people(rng, n)
    ill = rng.permutation(np.resize([0, 1], n))
    people["diagnosis"] = np.where(ill == 1, "patient", "control")
    people["mean_fd"] = (0.1 + 0.12 * ill + rng.gamma(4, 0.012, n)).round(3)
    z = (people["mean_fd"] - people["mean_fd"].mean()) / people["mean_fd"].std()
    return _write(root, people, [_series(rng, float(np.clip(0.5 + 0.3 * v, -0.95, 0.95))) for v in z])


def fluid_through_age(root: Path, n: int = 80) -> Path:
    """Write fluid intelligence that falls with age and that nothing else in the signal tells."""
    rng = np.random.default_rng(2)
    people = _people(rng, n)
    z = (people["age"] - people["age"].mean()) / people["age"].std()
    people["fluid_intelligence"] = (35 - 5 * z + 3.5 * rng.standard_normal(n)).round(1)
    return _write(root, people, [_series(rng, float(np.clip(0.3 - 0.3 * v, -0.95, 0.95)), 0.7) for v in z])


def one_person_two_ids(root: Path, n: int = 60, *, told: bool) -> Path:
    """Write every person twice under two ids; a label by chance; the brain is the person's own.

    ``told``: a column ``family`` says who is who.
    """
    rng = np.random.default_rng(3)
    people = _people(rng, n)
    person = np.arange(n) // 2
    ill = rng.permutation(np.resize([0, 1], n // 2))[person]
    people["diagnosis"] = np.where(ill == 1, "patient", "control")
    people["site"] = "a"
    for column in ("age", "sex", "mean_fd"):
        people[column] = people[column].to_numpy()[2 * person]
    if told:
        people["family"] = [f"person-{p:02d}" for p in person]
    mixing = np.random.default_rng(4).normal(size=(n // 2, N_UNITS, 6))
    series = []
    for p in person:
        slow = lfilter([1.0], [1.0, -0.8], rng.standard_normal((6, N_TIMES)), axis=1)
        series.append(mixing[p] @ slow + 0.5 * rng.standard_normal((N_UNITS, N_TIMES)))
    return _write(root, people, series)


def few_people(root: Path, n: int = 24) -> Path:
    """Write people without anything to learn but themselves."""
    rng = np.random.default_rng(5)
    people = _people(rng, n)
    return _write(root, people, [rng.standard_normal((N_UNITS, N_TIMES)) for _ in range(n)])


def units_missing_for_patients(root: Path, n: int = 40) -> Path:
    """Write noise without any effect, and no signal of one region for patients."""
    rng = np.random.default_rng(6)
    people = _people(rng, n)
    people["diagnosis"] = rng.permutation(np.resize(["control", "patient"], n))
    series = [rng.standard_normal((N_UNITS, N_TIMES)) for _ in range(n)]
    for one, label in zip(series, people["diagnosis"], strict=True):
        one[3] = np.nan if label == "patient" else one[3]
    return _write(root, people, series)

"""Evidence of small simulated runs, of every kind that a figure may meet; contract checks and tests run on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from neurobench.evidence import Evidence, write_arrays, write_table
from neurobench.identity import digest, seed_for

__all__ = ["KINDS", "SpecimenKind", "empty_evidence", "simulated_evidence"]

SpecimenKind = Literal["fmri", "meg"]

KINDS: tuple[SpecimenKind, ...] = ("fmri", "meg")

N, N_UNITS, MASKS = 40, 30, ("random_tube", "roi", "time_block")

COLUMNS: dict[str, Any] = {
    "dataset": "specimen",
    "source": "simulated",
    "fingerprint": "specimen",
    "protocol": "p",
    "backbone": "",
    "mask": "",
    "objective": "reconstruction",
    "seed": 0,
    "unit": "",
    "chance": np.nan,
    "skill": np.nan,
    "best_baseline": "",
    "p_value": np.nan,
    "learned": None,
    "above_chance": None,
    "n_parameters": np.nan,
    "trained_share": np.nan,
    "epochs": np.nan,
    "seconds": 1.0,
    "profile": "smoke",
    "adaptation": "frozen",
    "probe": "linear",
    "split": "subjects",
    "transductive": False,
    "suite": "",
    "status": "ok",
    "error": "",
    "n_subjects": N,
    "record": "",
}
"""Columns of :func:`neurobench.load_results`, with what they hold where nothing else is said."""

ROWS = [
    *(("pretrained", f"{b} · {m}", b, m) for b in ("mamba", "transformer") for m in MASKS),
    *(("untrained", f"{b} · untrained", b, "none") for b in ("mamba", "transformer")),
]


def empty_evidence(folder: Path) -> Evidence:
    """Return the evidence of a run in which every row failed."""
    write_table(folder / "cohorts" / "specimen" / "units.parquet", _units("fmri"))
    table = pd.DataFrame([COLUMNS | {"task": "age", "kind": "pretrained", "row": "x", "id": "x", "status": "failed"}])
    return _evidence(folder, "fmri", table.assign(metric="mae", score=np.nan, low=np.nan, high=np.nan))


def simulated_evidence(folder: Path, kind: SpecimenKind, *, n_seeds: int = 2) -> Evidence:
    """Write and return the evidence of a simulated run.

    Parameters
    ----------
    folder
        Where to.
    kind
        ``fmri``: parcels with MNI positions, tasks reconstruction, age, diagnosis; ``meg``: sensors with positions in
        the head frame, also evoked and state.
    n_seeds
        Seeds of every row.
    """
    rng = np.random.default_rng(seed_for(0, "twin", "evidence", kind))
    rows: list[dict[str, Any]] = []
    for seed in range(n_seeds):
        rows += _reconstruction(folder, kind, seed, rng)
        rows += _subjects(folder, seed, rng, two_classes=False)
        rows += _subjects(folder, seed, rng, two_classes=True)
        if kind == "meg":
            rows += _windows(folder, seed, rng) + _evoked(folder, seed, rng)
    evidence = _evidence(folder, kind, pd.DataFrame([COLUMNS | r for r in rows]))
    write_table(folder / "cohorts" / "specimen" / "units.parquet", _units(kind))
    return evidence


def _evidence(folder: Path, kind: SpecimenKind, table: pd.DataFrame) -> Evidence:
    return Evidence(
        folder=folder,
        dataset="specimen",
        title="simulated specimen",
        source="simulated",
        modality=kind,
        signal="parcels" if kind == "fmri" else "sensors",
        table=table,
        cohort={"fingerprint": "specimen"},
    )


def _units(kind: SpecimenKind) -> pd.DataFrame:
    """Return regions in an ellipsoid of MNI space, or magnetometers on a helmet, in mm."""
    i = np.arange(N_UNITS) + 0.5
    turn, z = np.pi * (1 + 5**0.5) * i, 1 - (2 if kind == "fmri" else 1.1) * i / N_UNITS
    ring = np.sqrt(1 - z**2)
    places = np.column_stack([ring * np.cos(turn), ring * np.sin(turn), z])
    places = places * (55, 75, 55) + (0, -18, 10) if kind == "fmri" else 115 * places + (0, 0, 40)
    table = pd.DataFrame(places, columns=["x", "y", "z"])
    return table.assign(
        unit=[f"unit {n:02d}" for n in range(N_UNITS)],
        group=np.resize(["left", "right"], N_UNITS),
        type="parcel" if kind == "fmri" else "mag",
        site=np.arange(N_UNITS),
    )


def _row(
    task: str, kind: str, row: str, seed: int, metric: str, score: float, half: float, **more: Any
) -> dict[str, Any]:
    found = {
        "task": task,
        "kind": kind,
        "row": row,
        "seed": seed,
        "metric": metric,
        "higher_is_better": metric != "mae",
    }
    found |= {"score": score, "low": score - half, "high": score + half, f"metric_{metric}": score}
    return found | {"id": digest([task, kind, row, seed])} | more


def _reconstruction(folder: Path, kind: SpecimenKind, seed: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    rows = []
    names = [f"unit {n:02d}" for n in range(N_UNITS)]
    for what, row, backbone, mask in [*ROWS, ("filler", "ridge", "", ""), ("filler", "mean", "", "")]:
        sst = rng.gamma(9, 10, (len(MASKS), N))
        sse = sst * np.clip(rng.normal(0.7, 0.05, sst.shape), 0, None)
        r2 = 1 - sse.sum(1) / sst.sum(1)
        by_mask = {f"metric_r2[{m}]": v for m, v in zip(MASKS, r2, strict=True)}
        skill = float(1 - 0.9 / 0.8)
        line = _row("reconstruction", what, row, seed, "r2", float(r2.mean()), 0.02, backbone=backbone, mask=mask)
        line |= by_mask | {"metric_skill": skill}
        rows.append(line)
        write_table(
            folder / "predictions" / f"{line['id']}.parquet",
            pd.DataFrame(
                {
                    "participant_id": [f"sub-{s:03d}" for _ in MASKS for s in range(N)],
                    "fold": [s % 2 for _ in MASKS for s in range(N)],
                    "mask": np.repeat(MASKS, N),
                    "headline": np.repeat([True, True, False], N),
                    "sse": sse.ravel(),
                    "sst": sst.ravel(),
                    "sse_best_filler": 0.8 * sst.ravel(),
                }
            ),
        )
        place = folder / "evidence" / line["id"]
        units = pd.DataFrame({"unit": names, "r2": rng.uniform(-0.1, 0.6, N_UNITS), "r2_filler": 0.3})
        write_table(place / "units.parquet", units)
        if what == "pretrained":
            steps = np.arange(1, 51)
            curve = [pd.DataFrame({"fold": f, "step": steps, "loss": 1 / np.sqrt(steps) + 0.1 * f}) for f in range(2)]
            write_table(place / "curves.parquet", pd.concat(curve))
        if what != "filler":
            real = rng.normal(size=(len(MASKS), 4, 60))
            hidden = np.zeros(real.shape, bool)
            hidden[..., 20:40] = True
            traces = {"masks": np.array(MASKS), "units": np.tile(np.array(names[:4]), (len(MASKS), 1)), "real": real}
            traces |= {
                "predicted": 0.5 * real,
                "hidden": hidden,
                "times_s": np.arange(60) / 4,
                "r2": np.full((3, 4), 0.75),
            }
            write_arrays(place / "traces.npz", traces)
            drawn = pd.DataFrame({"state": "rest" if kind == "fmri" else "auditory", "unit": names})
            drawn = drawn.assign(value=rng.gamma(9, 1 / 9, N_UNITS), expected=np.arange(N_UNITS) % 5 == 0)
            write_table(place / "importance.parquet", drawn.assign(expected=drawn["expected"] & (kind == "meg")))
            if backbone == "mamba":
                write_table(place / "routing.parquet", _routing(names, what == "untrained"))
    return rows


def _routing(names: list[str], even: bool) -> pd.DataFrame:
    """Return gates of two folds on four experts: alike for all units, or after the unit's group."""
    shares = np.full((N_UNITS, 4), 0.25)
    if not even:
        shares[:, 0] = np.where(np.arange(N_UNITS) % 2, 0.7, 0.1)
        shares[:, 1:] = (1 - shares[:, :1]) / 3
    # A unit that nobody has.
    shares[7] = np.nan
    table = {"unit": np.repeat(names, 4), "expert": np.tile(np.arange(1, 5), N_UNITS), "share": shares.ravel()}
    return pd.concat([pd.DataFrame({"fold": fold} | table) for fold in range(2)], ignore_index=True)


def _subjects(folder: Path, seed: int, rng: np.random.Generator, *, two_classes: bool) -> list[dict[str, Any]]:
    rows = []
    task, metric = ("diagnosis", "auroc") if two_classes else ("age", "mae")
    age = rng.uniform(20, 80, N)
    truth = np.resize([0.0, 1.0], N) if two_classes else age
    for what, row, backbone, mask in [*ROWS, ("baseline", "connectome", "", ""), ("baseline", "mean", "", "")]:
        noise = rng.normal(size=N)
        prediction = 1 / (1 + np.exp(-(truth - 0.5 + noise))) if two_classes else 50 + 0.5 * (truth - 50) + 8 * noise
        value = 0.7 + 0.02 * float(noise[0]) if two_classes else float(np.abs(prediction - truth).mean())
        line = _row(task, what, row, seed, metric, value, 0.1 * value, backbone=backbone, mask=mask)
        line |= {"unit": "" if two_classes else "years", "chance": 0.5 if two_classes else 15.0, "above_chance": True}
        rows.append(line)
        if backbone:
            place = folder / "evidence" / line["id"]
            pc = rng.normal(size=(N, 2))
            people = {"participant_id": [f"sub-{s:03d}" for s in range(N)], "pc1": pc[:, 0], "pc2": pc[:, 1]}
            people |= {"fold": np.arange(N) % 2, "site": np.resize(["a", "b"], N), "age": age}
            write_table(place / "geometry.parquet", pd.DataFrame(people))
            lost = pd.DataFrame({"group": ["left", "right"] * 2, "control": ["", "", "labels", "labels"]})
            lost = lost.assign(n_units=N_UNITS // 2, value=rng.normal(0.1, 0.1, 4), metric=f"loss of {metric}", unit="")
            lost = lost.assign(low=lost["value"] - 0.1, high=lost["value"] + 0.1, fold_agreement=0.5)
            write_table(place / "attribution.parquet", lost)
        table = {"participant_id": [f"sub-{s:03d}" for s in range(N)], "fold": np.arange(N) % 2, "truth": truth}
        table |= {"prediction": prediction, "train_mean": truth.mean(), "age": age, "site": np.resize(["a", "b"], N)}
        write_table(folder / "predictions" / f"{line['id']}.parquet", pd.DataFrame(table))
    return rows


def _windows(folder: Path, seed: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    rows, classes = [], ("auditory", "rest", "somatosensory")
    for what, row, backbone, mask in [*ROWS[:2], ("baseline", "tangent", "", "")]:
        truth = np.resize(classes, 3 * N)
        p = rng.dirichlet(np.ones(3), 3 * N)
        line = _row(
            "state", what, row, seed, "balanced_accuracy", 0.4, 0.05, backbone=backbone, mask=mask, chance=1 / 3
        )
        rows.append(line)
        people = [f"sub-{s:03d}" for s in range(N)]
        table = {"window": [f"w{i:04d}" for i in range(3 * N)], "participant_id": np.repeat(people, 3), "truth": truth}
        table |= {"fold": np.repeat(np.arange(N) % 2, 3)} | {f"p[{c}]": p[:, k] for k, c in enumerate(classes)}
        write_table(folder / "predictions" / f"{line['id']}.parquet", pd.DataFrame(table))
    return rows


def _evoked(folder: Path, seed: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    rows = []
    times = np.arange(-20, 81) / 100
    pattern = rng.normal(size=N_UNITS)
    real = 1e-13 * pattern[:, None] * np.exp(-(((times - 0.1) / 0.03) ** 2))
    for what, row, backbone, mask in [*ROWS[:2], ("filler", "ridge", "", "")]:
        line = _row("evoked", what, row, seed, "waveform_r", 0.5, 0.05, backbone=backbone, mask=mask)
        rows.append(line)
        responses = {"keys": np.array(["auditory/tone"]), "n_subjects": np.array([N]), "times_s": times}
        responses |= {"units": np.array([f"unit {n:02d}" for n in range(N_UNITS)]), "real": real[None]}
        responses |= {"predicted": 0.6 * real[None], "peak_window_s": np.array([[0.08, 0.13]])}
        write_arrays(folder / "evidence" / line["id"] / "responses.npz", responses)
        measured = pd.DataFrame({"participant_id": [f"sub-{s:03d}" for s in range(N)], "state": "auditory"})
        measured = measured.assign(condition="tone", waveform_r=rng.normal(0.5, 0.1, N))
        write_table(folder / "predictions" / f"{line['id']}.parquet", measured)
    return rows

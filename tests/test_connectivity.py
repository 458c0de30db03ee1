"""Functional connectivity for backbones that ask for it: of whom they are pretrained on, and of nobody else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from neurobench.connectivity import mean_connectivity
from neurobench.records import Cohort, Correspondence
from neurobench.specimens import simulated_cohort
from neurobench.store import Store
from neurobench.tokens import Scaler, Tokenizer, TrainingWindows
from tests import tiny_run
from tests.fakes import write_folder


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return simulated_cohort(tmp_path_factory.mktemp("connectivity"), n_subjects=4)


def windows(cohort: Cohort, subjects: tuple[str, ...] | None = None) -> TrainingWindows:
    people = cohort.subjects if subjects is None else subjects
    return TrainingWindows(Tokenizer(cohort, Scaler.fit(cohort, people)), people, 10_000, 0)


def z_of(data: np.ndarray) -> np.ndarray:
    r = np.corrcoef(data)
    np.fill_diagonal(r, 0)
    return np.arctanh(r)


def test_the_mean_is_over_the_people_who_have_a_pair(cohort):
    found = mean_connectivity([windows(cohort)], 12).numpy()
    z = [z_of(np.nan_to_num(np.load(r.path))[int(not r.present.all()) :]) for r in cohort.recordings]
    # The second subject has no first unit: its pairs are the mean over the three others.
    everybody = np.mean([z[0][1:, 1:], z[1], z[2][1:, 1:], z[3][1:, 1:]], 0)
    np.testing.assert_allclose(found[1:, 1:], everybody, atol=1e-5)
    np.testing.assert_allclose(found[0], np.mean([z[i][0] for i in (0, 2, 3)], 0), atol=1e-5)
    assert (np.diag(found) == 0).all()


def test_a_pair_that_nobody_has_is_zero_and_nothing_is_nan(cohort):
    found = mean_connectivity([windows(cohort, cohort.subjects[1:2])], 12)
    assert (found[0] == 0).all()
    assert torch.isfinite(found).all()
    assert (found[1:, 1:] != 0).sum() == 11 * 10


def test_people_count_alike_however_many_recordings_they_have(cohort):
    first, third = cohort.recordings[0], cohort.recordings[2]
    twice = replace(cohort, recordings=(first, replace(first, id="again"), third))
    both = replace(cohort, recordings=(first, third))
    found = [mean_connectivity([windows(c, (first.subject, third.subject))], 12) for c in (twice, both)]
    torch.testing.assert_close(*found)


def test_artefacts_are_left_out(cohort, tmp_path):
    clean = cohort.recordings[0]
    data = np.load(clean.path)
    data[:, 60:90] += 1000.0
    np.save(tmp_path / "artefact.npy", data)
    bad = replace(clean, path=tmp_path / "artefact.npy", bad_spans=((60.0, 90.0),))
    one = replace(cohort, recordings=(bad,))
    found = mean_connectivity([windows(one, (clean.subject,))], 12).numpy()
    np.testing.assert_allclose(found, z_of(np.delete(data, np.arange(60, 90), 1)), atol=1e-3)


def test_another_cohorts_units_count_where_they_stand_in_the_network(cohort):
    own = mean_connectivity([windows(cohort)], 12)
    # Units 0 and 1 of the cohort stand for one unit of a network of 14, the others for those from 4 on.
    unit = np.r_[2, 2, np.arange(4, 14)]
    names = tuple(f"n{i}" for i in range(14))
    known = replace(
        cohort.units.take(np.zeros(1, int)),
        names=names,
        groups=("",) * 14,
        position_mm=np.zeros((14, 3), np.float32),
        types=("parcel",) * 14,
        sites=np.arange(14),
        region_names=(),
        region_share=np.zeros((14, 0), np.float32),
        orientation=np.full((14, 3), np.nan, np.float32),
    )
    seen = Correspondence(known, unit, np.zeros(12, int), np.zeros(12), "position")
    found = mean_connectivity([windows(replace(cohort, seen_as=seen))], 14)
    torch.testing.assert_close(found[4:, 4:], own[2:, 2:])
    assert (found[[0, 1, 3]] == 0).all()
    assert found[2, 2] == 0
    # Three people have both units, one has only the second.
    z = [z_of(np.nan_to_num(np.load(r.path))[int(not r.present.all()) :]) for r in cohort.recordings]
    pairs = [(x[0, 2] + x[1, 2]) / 2 if len(x) == 12 else x[0, 1] for x in z]
    assert found[2, 4] == pytest.approx(np.mean(pairs), abs=1e-5)


def test_volumes_are_taken_patch_by_patch(tmp_path):
    cohort = simulated_cohort(tmp_path, n_subjects=2, signal="volume", n_voxels=3)
    found = mean_connectivity([windows(cohort, cohort.subjects[:1])], 12).numpy()
    np.testing.assert_allclose(found, z_of(np.load(cohort.recordings[0].path).mean(2)), atol=1e-4)


# ---------------------------------------------------------------- folds


def weights(out: Path, mask: str) -> dict[str, dict[str, torch.Tensor]]:
    """Return the stored weights of a row by fold."""
    return {
        e.manifest["label"].rpartition(" · ")[2]: load_file(e.file("weights.safetensors"))
        for e in Store(out, read_only=True).entries("pretraining")
        if f"connected · {mask}" in e.manifest["label"]
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Run before and after the recording of one subject was changed."""
    folder = tmp_path_factory.mktemp("folds")
    write_folder(folder / "data", n_subjects=20)
    options = {"backbone": "connected", "task": "age", "jobs": 1}
    tiny_run.execute(folder / "data", folder / "before", **options)
    data = np.load(folder / "data" / "s003.npy")
    np.save(folder / "data" / "s003.npy", np.random.default_rng(1).standard_normal(data.shape).cumsum(1))
    tiny_run.execute(folder / "data", folder / "after", **options)
    scored = next(iter(Store(folder / "before", read_only=True).entries("evaluation")))
    held_out = pd.read_parquet(scored.file("predictions.parquet")).set_index("participant_id")["fold"]
    return SimpleNamespace(before=folder / "before", after=folder / "after", of_whom=f"fold {held_out['s003'] + 1}/2")


@pytest.mark.parametrize("mask", ["none", "roi"])
def test_the_connectivity_of_a_fold_is_that_of_its_training_subjects(runs, mask):
    before, after = weights(runs.before, mask), weights(runs.after, mask)
    assert len(before) == len(after) == 2
    changed = {
        f for f in before if not torch.equal(before[f]["backbone.connectivity"], after[f]["backbone.connectivity"])
    }
    assert len(changed) == 1
    assert set(before) - changed == {runs.of_whom}
    for name, tensor in before[runs.of_whom].items():
        assert torch.equal(tensor, after[runs.of_whom][name]), name
    assert all(w["backbone.connectivity"].abs().sum() > 0 for w in (*before.values(), *after.values()))


def test_an_untrained_backbone_differs_from_fold_to_fold_by_its_connectivity_alone(runs):
    first, second = weights(runs.before, "none").values()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert different == ["backbone.connectivity"]


def test_who_does_not_ask_is_given_none(tmp_path):
    write_folder(tmp_path / "data", n_subjects=20)
    tiny_run.execute(tmp_path / "data", tmp_path / "out", task="age", jobs=1)
    entries = [
        e for e in Store(tmp_path / "out", read_only=True).entries("pretraining") if "none" in e.manifest["label"]
    ]
    # The untrained network is the same in every fold, and stored once.
    assert len(entries) == 1
    assert "backbone.connectivity" not in load_file(entries[0].file("weights.safetensors"))

"""Pretraining on other cohorts: nobody is on both sides, units meet where they are, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import neurobench
from neurobench import runner, store
from neurobench.caveats import caveats
from neurobench.config import RunConfig, expand
from neurobench.errors import ConfigErrors, DataError
from neurobench.plugins import load_registry
from neurobench.pretraining import masks_of
from neurobench.records import Cohort, UnitTable
from neurobench.results import load_evidence, read_record
from neurobench.specimens import simulated_cohort
from neurobench.tokens import Scaler, Tokenizer, TrainingWindows, types_known
from neurobench.transfer import MixedWindows, correspond, outsiders, shared_people
from neurobench_masks.random_tube import RandomTube

PLUGIN = Path(__file__).with_name("pair_plugin.py")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return simulated_cohort(tmp_path_factory.mktemp("transfer"), n_subjects=6)


def renamed(cohort: Cohort, dataset: str, names: list[str], **columns: object) -> Cohort:
    of = dict(zip(cohort.subjects, names, strict=True))
    people = cohort.participants.rename(index=of).assign(**columns)
    return replace(
        cohort,
        dataset=dataset,
        participants=people,
        recordings=tuple(replace(r, subject=of[r.subject]) for r in cohort.recordings),
    )


# ---------------------------------------------------------------- who is in both


def test_one_release_shares_its_people_whatever_its_parameters_and_spelling(cohort):
    own = renamed(cohort, "camcan", [f"CC11{i:04d}" for i in range(6)])
    other = renamed(cohort, "camcan[signal=meg]", [f"sub-cc11{i + 4:04d}" for i in range(6)])
    found = shared_people(other, own)
    assert found.certain == ("sub-cc110004", "sub-cc110005")
    assert found.by_name == ()


def test_leading_zeros_are_no_difference(cohort):
    own = renamed(cohort, "adhd200", [f"00{i + 10:05d}" for i in range(6)])
    other = renamed(cohort, "adhd200[signal=volume]", [str(i + 14) for i in range(6)])
    assert shared_people(other, own).certain == ("14", "15")


def test_equal_names_of_two_releases_may_be_chance(cohort):
    other = renamed(cohort, "bids", list(cohort.subjects))
    found = shared_people(other, cohort)
    assert found.certain == ()
    assert found.by_name == cohort.subjects


def test_a_recording_under_another_name_is_the_same_person(cohort):
    own = replace(cohort, recordings=tuple(replace(r, content=f"hash of {r.id}") for r in cohort.recordings))
    other = renamed(own, "parcels", [f"p{i}" for i in range(6)])
    assert shared_people(other, own).certain == other.subjects
    assert len(shared_people(renamed(cohort, "parcels", [f"p{i}" for i in range(6)]), cohort)) == 0


def test_families_of_one_release_stay_on_one_side(cohort):
    own = renamed(cohort, "bids", [f"a{i}" for i in range(6)], family=["f1", "f2", None, None, None, None])
    other = renamed(cohort, "bids[x=1]", [f"b{i}" for i in range(6)], family=["f3", None, "f2", None, None, None])
    assert shared_people(other, own).certain == ("b2",)
    assert shared_people(replace(other, dataset="parcels"), own).by_name == ("b2",)


def test_what_to_do_with_them_is_said(cohort):
    other = renamed(cohort, "bids", [*cohort.subjects[:2], "x", "y", "z", "w"])
    with pytest.raises(DataError, match=r"2 people of bids.*may be the same people"):
        outsiders(other, cohort, "refuse")
    left, shared = outsiders(other, cohort, "leave-out")
    assert left == ("x", "y", "z", "w")
    assert len(shared) == 2
    left, shared = outsiders(other, cohort, "distinct")
    assert left == other.subjects
    assert shared.by_name == cohort.subjects[:2]


def test_a_declaration_does_not_make_other_people_of_the_same_ones(cohort):
    other = replace(cohort, dataset=f"{cohort.dataset}[x=1]")
    for mode in ("refuse", "distinct"):
        with pytest.raises(DataError, match="must not have been pretrained on") as error:
            outsiders(other, cohort, mode)
        assert "leave-out" in error.value.next_step
    with pytest.raises(DataError, match=r"nobody of .* is left"):
        outsiders(other, cohort, "leave-out")


# ---------------------------------------------------------------- how units meet


def table(n: int, shift: float = 0.0, prefix: str = "u", types: tuple[str, ...] | None = None) -> UnitTable:
    position = np.stack([np.arange(n) * 30.0 + shift, np.zeros(n), np.zeros(n)], 1).astype(np.float32)
    return UnitTable.from_groups(
        tuple(f"{prefix}{i}" for i in range(n)), tuple("ab"[i % 2] for i in range(n)), position, types=types
    )


def test_units_of_one_atlas_meet_by_name():
    known = table(6)
    found = correspond(known.take(np.array([4, 1])), known)
    assert found.by == "name"
    np.testing.assert_array_equal(found.unit, [4, 1])
    np.testing.assert_array_equal(found.group, known.group_index[[4, 1]])


def test_units_of_two_atlases_meet_at_the_nearest_place():
    found = correspond(table(4, shift=-8.0, prefix="v"), table(6))
    assert found.by == "position"
    np.testing.assert_array_equal(found.unit, range(4))
    np.testing.assert_allclose(found.distance_mm, 8.0)


def test_a_number_is_no_name():
    # The same names at other places: two atlases that both count from 0.
    found = correspond(table(4, shift=60.0), table(6))
    assert found.by == "position"
    np.testing.assert_array_equal(found.unit, [2, 3, 4, 5])


def test_sensors_meet_sensors_of_their_type():
    known = table(4, types=("mag", "grad", "mag", "grad"))
    found = correspond(table(2, shift=28.0, prefix="v", types=("mag", "mag")), known)
    np.testing.assert_array_equal(found.unit, [0, 2])
    with pytest.raises(DataError, match="type eeg meet none"):
        correspond(table(2, prefix="v", types=("eeg", "eeg")), known)


def test_axial_gradiometers_meet_magnetometers_where_there_are_none():
    known = table(4, types=("mag", "grad", "mag", "grad"))
    found = correspond(table(2, shift=28.0, prefix="v", types=("axial", "axial")), known)
    np.testing.assert_array_equal(found.unit, [0, 2])
    both = correspond(table(2, shift=28.0, prefix="v", types=("axial", "mag")), table(3, types=("mag", "axial", "mag")))
    np.testing.assert_array_equal(both.unit, [1, 2])


def test_sensors_of_one_place_meet_along_their_directions():
    two = np.array([[0, 0, 90], [0, 0, 90]], np.float32)

    def pair(prefix: str, along: list[list[float]]) -> UnitTable:
        names = (f"{prefix}0", f"{prefix}1")
        return UnitTable.from_groups(names, ("a", "a"), two, ("grad", "grad"), orientation=np.array(along, np.float32))

    found = correspond(pair("v", [[0.8, 0.6, 0], [-0.6, 0.8, 0]]), pair("k", [[0, -1, 0], [1, 0, 0]]))
    np.testing.assert_array_equal(found.unit, [1, 0])


def test_types_are_counted_as_the_network_knows_them():
    known = table(4, types=("grad", "mag", "grad", "mag"))
    assert types_known(table(3, types=("mag", "axial", "grad")), known).tolist() == [1, -1, 0]


def test_without_names_and_places_units_do_not_meet():
    bare = UnitTable.from_groups(("x", "y"), ("", ""))
    with pytest.raises(DataError, match="positions are missing"):
        correspond(bare, table(3))


def test_backbones_see_the_networks_units_and_masks_the_cohorts_own(cohort):
    reversed_ = np.arange(len(cohort.units))[::-1].copy()
    known = replace(cohort.units.take(reversed_), names=tuple(f"k{i}" for i in reversed_))
    abroad = replace(cohort, seen_as=correspond(cohort.units, known))
    scaler = Scaler.fit(cohort, cohort.subjects)
    batches = [TrainingWindows(Tokenizer(c, scaler), c.subjects, 40, 0).draw(3, 4) for c in (cohort, abroad)]
    home, away = batches
    np.testing.assert_array_equal(home.signal, away.signal)
    np.testing.assert_array_equal(away.table.unit, len(known) - 1 - home.table.unit)
    np.testing.assert_array_equal(
        np.array(known.group_names)[away.table.group], np.array(cohort.units.group_names)[home.table.group]
    )
    np.testing.assert_array_equal(away.rows, home.table.unit)
    for one, other in zip(*(masks_of(b, RandomTube(), 0.5, seed=0, step=3) for b in batches), strict=True):
        np.testing.assert_array_equal(one, other)


# ---------------------------------------------------------------- in which order


def test_cohorts_take_turns_by_their_people_in_any_order_of_calls(cohort):
    cutter = Tokenizer(cohort, Scaler.fit(cohort, cohort.subjects))
    parts = [TrainingWindows(cutter, cohort.subjects[:n], 40, seed) for seed, n in enumerate((1, 2, 6))]
    mixed, again = MixedWindows(parts), MixedWindows(parts)
    for n in (9, 90):
        turns = [mixed.turn(step)[0] for step in range(n)]
        np.testing.assert_allclose(np.bincount(turns, minlength=3), np.array([1, 2, 6]) * n / 9, atol=1)
    assert again.turn(50) == mixed.turn(50)
    late, early = again.draw(7, 3), mixed.draw(7, 3)
    np.testing.assert_array_equal(late.signal, early.signal)
    # Of each cohort no step is left out and none comes twice.
    for part in range(3):
        own = [k for p, k in map(mixed.turn, range(90)) if p == part]
        assert own == list(range(len(own)))


# ---------------------------------------------------------------- whole runs


def run(out: Path, task: str = "reconstruction", backbone: str = "tiny", **options: object):
    config = RunConfig.from_options(
        backbone=backbone,
        mask="random_tube",
        dataset="north",
        task=task,
        n_steps=4,
        n_subjects=24,
        out=out,
        plugin_files=PLUGIN,
        **options,
    )
    registry = load_registry(config.plugin_files)
    return runner.execute(expand(config, registry), registry)


def test_the_scored_cohort_alone_is_what_a_plain_run_pretrains_on(tmp_path):
    tasks = "age,reconstruction"
    plain = run(tmp_path / "plain", tasks).table.set_index(["task", "kind", "row"])
    itself = run(tmp_path / "itself", tasks, pretrain_on="north").table
    assert set(itself["row"]) >= {"tiny · random_tube ← north", "tiny · untrained"}
    itself["row"] = itself["row"].str.removesuffix(" ← north")
    itself = itself.set_index(["task", "kind", "row"])
    columns = ["score", "low", "high", "n_subjects"]
    np.testing.assert_array_equal(itself.loc[plain.index, columns], plain[columns])


def test_people_who_may_be_on_both_sides_stop_the_run(tmp_path):
    for other, match in (("south", "may be the same people"), ("echo", "must not have been pretrained on")):
        failed = run(tmp_path / other, pretrain_on=other).table
        assert set(failed["status"]) == {"failed"}
        assert failed["error"].str.contains(match).all()
    # Declared distinct: possible where names are all there is, and said; not where recordings are the same.
    assert set(run(tmp_path / "echo", pretrain_on="echo", shared_people="distinct").table["status"]) == {"failed"}
    result = run(tmp_path / "south", pretrain_on="south", shared_people="distinct")
    assert set(result.table["status"]) == {"ok"}
    assert any("24 identifiers are in both and were declared" in n for n in result.notes)
    (evidence,) = load_evidence(tmp_path / "south")
    said = {c.code: c.text for c in caveats(evidence, [read_record(Path(p)) for p in evidence.table["record"]])}
    assert "24 people of south whose identifiers are those of people it is scored on" in said["declared-distinct"]
    assert "tiny · random_tube ← south: 24 people of south" in said["transfer"]


def test_another_cohort_with_another_atlas_and_a_slower_scanner(tmp_path):
    away = run(tmp_path, "age,reconstruction", pretrain_on="east")
    table = away.table
    assert set(table["status"]) == {"ok"}
    assert set(table["row"]) >= {"tiny · random_tube ← east", "tiny · untrained (units of east)"}
    assert any("units meet the 12 of east by position, 4 mm apart" in n for n in away.notes)
    assert set(table.loc[table["kind"] == "pretrained", "pretrain_on"]) == {"east"}
    # One network serves both folds, and is trained once.
    steps = store.stored_steps(tmp_path)
    assert (steps["label"] == "pretrain tiny · random_tube ← east · seed 0").sum() == 1
    again = run(tmp_path, "age,reconstruction", pretrain_on="east")
    assert again.n_computed == 0
    # Resampled down to the slowest, so another cohort than at its own rate; beside it, rows of its own pretraining.
    home = run(tmp_path, sfreq=0.4).table
    assert set(home["fingerprint"]) == set(table["fingerprint"])
    whole = neurobench.load_results(tmp_path)
    rows = set(whole.loc[whole["task"] == "reconstruction", "row"])
    assert rows >= {"tiny · random_tube", "tiny · random_tube ← east", "tiny · untrained"}


def test_the_connectivity_is_that_of_the_other_cohort_too(tmp_path):
    result = run(tmp_path, "age", "connected", pretrain_on="east")
    assert set(result.table["status"]) == {"ok"}
    assert any("such an untrained network is not a blank one" in n for n in result.notes)
    entries = {e.manifest["label"]: e for e in store.Store(tmp_path, read_only=True).entries("pretraining")}
    # A network that never met the cohort it is scored on is the same in every fold, and so is what it knows.
    assert set(entries) == {"pretrain connected · random_tube ← east · seed 0", "pretrain connected · none · seed 0"}
    first, second = (load_file(e.file("weights.safetensors"))["backbone.connectivity"] for e in entries.values())
    assert torch.equal(first, second)
    assert first.abs().sum() > 0
    labels = store.stored_steps(tmp_path)["label"]
    assert labels.str.startswith("embed connected · none · north · seed 0 · fold").sum() == 2


def test_several_cohorts_and_the_own_training_subjects(tmp_path):
    result = run(tmp_path, pretrain_on="north,east")
    assert set(result.table["status"]) == {"ok"}
    labels = store.stored_steps(tmp_path)["label"]
    assert labels.str.startswith("pretrain tiny · random_tube ← north,east · north").sum() == 2
    record = read_record(
        next(p for p in (tmp_path / "records").glob("*.json") if '"pretrained"' in p.read_text(encoding="utf-8"))
    )
    assert [(o.dataset, o.n_subjects) for o in record.pretraining.on] == [("north", 12), ("east", 24)]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"pretrain_on": "norht"}, "did you mean: north"),
        ({"pretrain_on": "meg_headache"}, "cannot be scored on north"),
        ({"pretrain_on": "south", "split": "within-recording"}, "no meaning with --split within-recording"),
        ({"pretrain_on": "south", "transductive": True}, "no meaning with --transductive"),
        ({"shared_people": "ignore"}, "--shared-people cannot be 'ignore'"),
    ],
)
def test_what_has_no_meaning_is_refused_before_any_work(tmp_path, options, match):
    with pytest.raises(ConfigErrors) as error:
        run(tmp_path / "out", **options)
    assert match in str(error.value) + " ".join(f"did you mean: {p.likely}" for p in error.value.problems)
    assert not (tmp_path / "out").exists()

"""What a run will cost: the model, the probes, and that no estimate changes what is computed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from neurobench import opening, planning, probing, runner
from neurobench.config import Grid, RunConfig, expand
from neurobench.cost import Model, Observation, Table, Work, machine, total
from neurobench.identity import digest
from neurobench.plugins import Registry, load_registry
from neurobench.probing import Limit
from neurobench.stages import CohortRun
from neurobench.store import Store
from tests.fakes import write_folder

PLUGIN = Path(__file__).parent / "tiny_plugin.py"

HERE = {"matmul_s": 1.0, "python_s": 1.0}


def table(**kinds: tuple[float, float]) -> Table:
    return Table(kinds, HERE)


def model(monkeypatch: pytest.MonkeyPatch, slower: float = 1.0, **parts: Any) -> Model:
    found = Model(**parts)
    monkeypatch.setitem(found.__dict__, "slower", slower)
    return found


# ---------------------------------------------------------------- the model


def test_a_line_through_what_was_observed_keeps_the_total() -> None:
    observed = [Observation(Work("a", n, 2.0), 0.5 + 0.1 * 2 * n) for n in (1, 5, 20, 40)]
    fixed, rate = Table.fit(observed, HERE, {}).kinds["a"]
    assert fixed == pytest.approx(0.5, abs=0.03)
    assert rate == pytest.approx(0.1, rel=0.02)
    rough = [Observation(Work("a", n), s) for n, s in ((1, 3.0), (2, 0.1), (9, 4.0), (10, 0.2))]
    fixed, rate = Table.fit(rough, HERE, {}).kinds["a"]
    assert fixed >= 0
    assert rate >= 0
    assert sum(fixed + rate * o.work.amount for o in rough) == pytest.approx(sum(o.seconds for o in rough))


def test_one_size_says_nothing_of_what_is_fixed() -> None:
    assert Table.fit([Observation(Work("a", 4.0), 2.0)], HERE, {}).kinds["a"] == (0.0, 0.5)
    assert Table.fit([Observation(Work("a", 0.0), 2.0)], HERE, {}).kinds["a"] == (2.0, 0.0)


def test_the_table_that_comes_with_the_package_knows_every_kind(tmp_path: Path) -> None:
    own = Table.load()
    own.save(tmp_path / "again.json")
    again = Table.load(tmp_path / "again.json")
    assert again.kinds == own.kinds
    assert all(f >= 0 and r >= 0 and f + r > 0 for f, r in own.kinds.values())
    assert set(own.machine) == set(machine())
    core = Path(runner.__file__).parent
    source = "".join(p.read_text() for p in (*core.glob("*_steps.py"), core / "planning.py"))
    for kind in own.kinds:
        assert f'"{kind}"' in source, f"{kind} is in the table and nothing says that it does it"


def test_what_was_measured_goes_over_a_probe_and_a_probe_over_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work("pretraining", 100, 2.0, "net on people")
    own = model(monkeypatch, slower=3.0, table=table(pretraining=(1.0, 0.01)))
    assert own.estimate(work).source == "table"
    assert own.estimate(work).seconds == pytest.approx(3 * (1 + 2))
    own.probed.append(Observation(Work("pretraining", 5, 1.0, "net on people"), 8.0))
    found = own.estimate(work)
    # 3 of the 8 seconds are fixed; the other 5 are for 5 of size 1.
    assert (found.source, found.seconds) == ("probe", pytest.approx(3 + 5 / 5 * 200))
    measured = [Observation(Work("pretraining", 50, 2.0, "net on people"), 13.0)]
    own = model(monkeypatch, slower=3.0, table=own.table, probed=own.probed, measured=measured)
    found = own.estimate(work)
    assert (found.source, found.seconds) == ("measured here", pytest.approx(3 + 10 * 2))
    # Another size is another network.
    assert own.estimate(Work("pretraining", 100, 4.0, "net on people")).source == "probe"


def test_a_backbone_that_is_slow_at_one_thing_is_slow_at_others(monkeypatch: pytest.MonkeyPatch) -> None:
    own = model(monkeypatch, table=table(pretraining=(0.0, 1.0), embedding=(0.0, 0.5)))
    own.probed.append(Observation(Work("pretraining", 2, 1.0, "net on people"), 8.0))
    assert own.estimate(Work("embedding", 10, 1.0, "net on people")).seconds == pytest.approx(4 * 5)
    assert own.estimate(Work("embedding", 10, 1.0, "other on people")).seconds == pytest.approx(5)
    elsewhere = own.estimate(Work("pretraining", 10, 2.0, "net on others"))
    assert (elsewhere.source, elsewhere.seconds) == ("probe", pytest.approx(4 * 20))
    another = own.estimate(Work("pretraining", 10, 2.0, "other on people"))
    assert (another.source, another.seconds) == ("table", pytest.approx(4 * 20))


def test_nothing_is_said_of_what_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    own = model(monkeypatch, table=table(pretraining=(0.0, 1.0)), broken={"net on people"})
    assert own.estimate(Work("pretraining", 2, 1.0, "net on people")).seconds is None
    assert own.estimate(Work("knitting", 2)).source == "unknown"
    both = total([own.estimate(Work("pretraining", 2)), own.estimate(Work("knitting", 2))])
    assert (both.seconds, both.source) == (2.0, "unknown")


@pytest.mark.parametrize(
    "note", [None, 3, "work", {}, {"kind": "a"}, {"kind": "a", "amount": "x", "size": 1, "by": ""}, [1]]
)
def test_notes_of_other_versions_are_left_out(note: object) -> None:
    assert Work.from_dict(note) is None
    infinite = Work("a", math.inf).to_dict()
    assert Work.from_dict(infinite) is None


def test_work_is_what_was_written() -> None:
    work = Work("pretraining", 3, 4.0, "net on people")
    assert Work.from_dict(work.to_dict()) == work


# ---------------------------------------------------------------- plans


def grid_of(out: Path, **options: object) -> tuple[Grid, Registry]:
    settings: dict[str, Any] = {
        "backbone": "tiny",
        "mask": "roi",
        "dataset": "camcan",
        "n_subjects": 24,
        "n_steps": 3,
        "plugin_files": PLUGIN,
        "out": out,
    }
    config = RunConfig.from_options(**settings | options)
    registry = load_registry(config.plugin_files)
    return expand(config, registry), registry


def steps_of(grid: Grid, registry: Registry, folder: Path) -> list[str]:
    """Return the kind of every step of a grid's only dataset, prepared for real."""
    source = opening.cohort_source(grid.datasets[0], grid, registry)
    cohort = source.load(Store(folder))
    run = CohortRun(cohort, source, grid, registry, 0, torch.device("cpu"), probing.nothing)
    return sorted(s.work.kind for _, s in run.steps())


class Forgetful(dict[Any, Any]):
    """Remembers nothing for a second question."""

    def __contains__(self, key: object) -> bool:
        return False


def test_what_steps_remember_changes_no_key(tmp_path: Path) -> None:
    grid, registry = grid_of(tmp_path / "out", backbone=["tiny", "transformer"], mask=["roi", "random"])
    source = opening.cohort_source(grid.datasets[0], grid, registry)
    cohort = source.load(Store(tmp_path / "store"))
    keys = []
    for remembered in (dict[Any, Any](), Forgetful()):
        run = CohortRun(cohort, source, grid, registry, 0, torch.device("cpu"), probing.nothing)
        run.remembered = remembered
        steps = [step for _, step in run.steps()]
        keys.append([step.key for step in steps])
        assert keys[-1] == [digest(step.identity) for step in steps]
    assert len(set(keys[0])) > 50
    assert keys[0] == keys[1]


def test_a_third_partys_backbone_is_timed_and_nothing_is_written(tmp_path: Path) -> None:
    grid, registry = grid_of(tmp_path / "out")
    found = planning.plan(grid, registry, limit=Limit(30.0))
    assert not (tmp_path / "out").exists()
    rows = {r.row: r for r in found.rows}
    assert {"tiny · roi", "tiny · untrained", "baselines and fillers", "preparation"} <= set(rows)
    assert rows["tiny · roi"].source == "probe"
    assert rows["tiny · roi"].pretraining is not None
    assert rows["tiny · roi"].pretraining > 0
    assert rows["baselines and fillers"].source == "table"
    assert found.unknown == 0
    assert found.seconds == pytest.approx(sum(r.seconds or 0.0 for r in found.rows))
    assert {i.state for i in found.items} == {"to do"}


def test_copies_of_a_few_people_need_the_steps_of_the_whole_cohort(tmp_path: Path) -> None:
    grid, registry = grid_of(tmp_path / "out", n_subjects=40)
    source = opening.cohort_source(grid.datasets[0], grid, registry)
    few = probing.sample({source.label: source}, {}, tmp_path)
    assert len(few.few[source.label].subjects) == probing.SUBJECTS
    assert len(few.whole[source.label].subjects) == 40
    run = few.run(grid, registry, 0, torch.device("cpu"))
    assert sorted(s.work.kind for _, s in run.steps()) == steps_of(grid, registry, tmp_path / "real")


def test_a_backbone_that_raises_has_no_estimate_and_stops_no_plan(tmp_path: Path) -> None:
    grid, registry = grid_of(tmp_path / "out", backbone=["breaks_in_training", "tiny"])
    found = planning.plan(grid, registry, limit=Limit(30.0))
    rows = {r.row: r for r in found.rows}
    assert rows["breaks_in_training · roi"].seconds is None
    assert rows["breaks_in_training · roi"].source == "unknown"
    assert rows["tiny · roi"].seconds is not None
    assert found.unknown == 2


def test_probes_end_when_their_time_is_used_up(tmp_path: Path) -> None:
    grid, registry = grid_of(tmp_path / "out", backbone=["tiny", "transformer", "mamba"])
    found = planning.plan(grid, registry, limit=Limit(0.0))
    assert found.probe_s == 0
    assert any("probes stopped after 0 s" in note for note in found.notes)
    assert {r.source for r in found.rows if r.row.endswith("roi")} == {"table"}


def test_of_very_many_seeds_one_stands_for_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    write_folder(data, n_subjects=24)
    settings: dict[str, Any] = {"dataset": "fake", "data_dir": data, "n_subjects": None, "task": "age"}
    grid, registry = grid_of(tmp_path / "out", **settings, seed="0")
    runner.execute(grid, registry)
    grid, registry = grid_of(tmp_path / "out", **settings, seed="0,1,2,3")
    one_by_one = planning.plan(grid, registry)
    monkeypatch.setattr(planning, "MANY", 3)
    found = planning.plan(grid, registry)
    assert found.probe_s == 0
    whole = [i for i in found.items if i.why == "as seed 1"]
    assert [i.label for i in whole] == ["1 combinations on fake · seed 2", "1 combinations on fake · seed 3"]
    done = [sorted(i.label for i in p.items if i.state == "stored") for p in (one_by_one, found)]
    assert done[0] == done[1], "what is stored is known one by one"
    assert found.seconds == pytest.approx(one_by_one.seconds, rel=0.05)
    of_steps = sum((r.pretraining or 0) + (r.scoring or 0) for r in found.rows if r.dataset)
    assert of_steps == pytest.approx(sum(i.seconds or 0 for i in found.items), rel=0.01)


def test_a_folder_that_was_not_read_yet_has_a_guess_for_pretraining_alone(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_folder(data, n_subjects=24)
    grid, registry = grid_of(tmp_path / "out", dataset="fake", data_dir=data, n_subjects=None)
    found = planning.plan(grid, registry)
    assert found.unknown
    assert any("neurobench data prepare" in note for note in found.notes)
    (row,) = (r for r in found.rows if r.row == "tiny · roi")
    assert row.pretraining is not None
    assert row.scoring is None


def test_an_estimate_changes_nothing_that_is_computed(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_folder(data, n_subjects=24)
    keys, records = [], []
    for name in ("planned", "plain"):
        out = tmp_path / name
        grid, registry = grid_of(out, dataset="fake", data_dir=data, n_subjects=None, task="age")
        if name == "planned":
            planning.plan(grid, registry)
        result = runner.execute(grid, registry)
        assert result.failed == ()
        keys.append({p.parent.name for p in (out / "store").glob("*/*/manifest.json")})
        records.append(sorted(p.name for p in (out / "results").rglob("*.json")))
    assert keys[0] == keys[1]
    assert records[0] == records[1]
    # What was measured is what the next plan goes by.
    grid, registry = grid_of(tmp_path / "plain", dataset="fake", data_dir=data, n_subjects=None, task="age", seed="7")
    found = planning.plan(grid, registry)
    assert {i.source for i in found.items if i.stage == "pretraining"} == {"measured here"}
    assert found.probe_s == 0

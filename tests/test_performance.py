"""The performance table: what every benchmark gives, when a bar is missed, what is kept and drawn."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from benchmarks.performance import __main__ as command
from benchmarks.performance import gpu, memory
from benchmarks.performance.plot import draw
from benchmarks.performance.table import Ratio, interleaved
from benchmarks.performance.training import half_hidden, training_step
from neurobench.plugins import load_registry

ROOT = Path(__file__).resolve().parents[1]


def test_a_bar_is_a_lower_or_an_upper_one() -> None:
    assert Ratio("t", "speed-up", 4.0, 4.0).met
    assert Ratio("t", "speed-up", 3.9, 4.0).met is False
    assert Ratio("t", "cost", 1.5, 1.5, at_least=False).met
    assert Ratio("t", "cost", 1.6, 1.5, at_least=False).met is False
    assert Ratio("t", "told", 1.6).met is None


def test_repeats_take_turns_and_the_first_round_is_not_counted() -> None:
    calls: list[str] = []
    found = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert calls == ["a", "b"] * 3
    assert set(found) == {"a", "b"}


def test_every_benchmark_is_found_and_says_what_it_is() -> None:
    found = command.topics()
    assert {"scan", "prepare", "reading"} <= set(found)
    for name, module in found.items():
        if isinstance(module, ModuleType):
            assert module.__doc__
        else:
            # The peers are no part of what the tests need.
            assert module.endswith('is not installed: pip install -e ".[bench]"'), f"{name}: {module}"


def test_kept_rows_of_other_topics_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    monkeypatch.setattr(command, "KEPT", tmp_path / "performance.json")
    command._save([], [Ratio("scan", "a", 2.0, 1.0), Ratio("grid", "b", 1.0)], {}, quick=False)
    before = json.loads(command.KEPT.read_text())["rows"]
    command._save(before, [Ratio("scan", "c", 3.0, 4.0)], {"gpu": "no CUDA device"}, quick=True)
    kept = json.loads(command.KEPT.read_text())
    assert [(r["topic"], r["name"], r["met"], r["measured_on"]["quick"]) for r in kept["rows"]] == [
        ("grid", "b", None, False),
        ("scan", "c", False, True),
    ]
    assert kept["not_run"] == {"gpu": "no CUDA device"}
    assert command.change(Ratio("scan", "c", 1.5), {("scan", "c"): kept["rows"][1]}) == "× 0.50"
    assert (tmp_path / "performance.png").read_bytes()[:4] == b"\x89PNG"


def test_nothing_to_draw_without_a_bar(tmp_path: Path) -> None:
    draw([{"topic": "t", "name": "n", "value": 1.0, "bar": None, "at_least": True}], tmp_path / "p.png")
    assert not (tmp_path / "p.png").exists()


def test_the_kept_table_is_of_benchmarks_that_there_are() -> None:
    kept = json.loads(command.KEPT.read_text(encoding="utf-8"))
    known = set(command.topics())
    assert {r["topic"] for r in kept["rows"]} | set(kept["not_run"]) == known
    for row in kept["rows"]:
        ratio = Ratio(*(row[k] for k in ("topic", "name", "value", "bar", "at_least")))
        assert ratio.met == row["met"]
        assert {"date", "device", "torch", "cores"} <= set(row["measured_on"])


def test_an_unknown_topic_is_refused_with_those_there_are() -> None:
    run = [sys.executable, "-m", "benchmarks.performance", "scna"]
    done = subprocess.run(run, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert "no topic scna; there are" in done.stderr


@pytest.mark.parametrize("mixer", ["mamba", "attention"])
def test_a_step_of_the_published_shifted_windows_trains(mixer: str) -> None:
    step = gpu.published_step(mixer, "cpu", edge=2, n_patches=3)
    losses = [float(step()) for _ in range(3)]
    assert all(map(math.isfinite, losses))
    assert len(set(losses)) == 3


def test_memory_is_counted_once_and_while_it_is_there() -> None:
    with memory.Alive() as alive:
        x = torch.zeros(1000)
        view = x[10:]
        assert alive.now == alive.peak == 4000
        y = x + 1
        assert alive.now == 8000
        del x, y
        assert alive.now == 4000, "a view keeps all of it"
        assert alive.peak == 8000
        del view
        assert alive.now == 0


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["transformer", "mamba"])
def test_memory_from_shapes_is_that_of_the_tensors_of_a_real_step(backbone: str) -> None:
    batch, hidden = half_hidden(4, 12, 8, gpu.N_FEATURES)
    cls = load_registry().get("backbone", backbone)
    build = partial(training_step, cls, batch, hidden, hidden, width=32, n_layers=1)
    counted = memory.of_a_step(build, values=True)
    assert memory.of_a_step(build) == pytest.approx(counted, rel=0.005)
    larger = partial(training_step, cls, *(_twice(x) for x in (batch, hidden, hidden)), width=32, n_layers=1)
    assert memory.of_a_step(larger) > 1.3 * counted


def _twice(what: Any) -> Any:
    if isinstance(what, torch.Tensor):
        return torch.cat([what, what])
    return replace(what, signal=_twice(what.signal), table=what.table.map(_twice))


@pytest.mark.slow
@pytest.mark.parametrize("mixer", [pytest.param("mamba", marks=pytest.mark.campaign), "attention"])
def test_memory_of_shifted_windows_from_shapes_is_that_of_a_real_step(mixer: str) -> None:
    build = partial(gpu.published_step, mixer, "cpu", edge=4, n_patches=2)
    assert memory.of_a_step(build) == pytest.approx(memory.of_a_step(build, values=True), rel=0.005)


@pytest.mark.parametrize("backbone", ["transformer", "mamba", "hybrid"])
def test_the_step_that_a_gpu_is_timed_with_trains_on_any_device(backbone: str) -> None:
    batch, hidden = half_hidden(4, 6, 4, gpu.N_FEATURES)
    cls = load_registry().get("backbone", backbone)
    step = training_step(cls, batch, hidden, hidden, width=32, n_layers=1, device=torch.device("cpu"))
    losses = [float(step()) for _ in range(12)]
    assert losses[-1] < losses[0]
    assert bool(gpu.unavailable()) is not torch.cuda.is_available()

"""Energy is what counters say, or nothing: no model of codecarbon's ever becomes a figure of ours."""

from __future__ import annotations

import importlib.util
import os
import re
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from neurobench import energy, hardware, results
from neurobench.config import RunConfig, expand
from neurobench.energy import counted
from neurobench.errors import ConfigErrors
from neurobench.hardware import Meter
from neurobench.plugins import load_registry
from neurobench.store import Checkpoint
from tests import tiny_run
from tests.fakes import write_folder

CPU = torch.device("cpu")

UJ_A_KWH = 3.6e12


def energy_of(tracker: Any, device: torch.device = CPU, *, is_part: bool = False) -> Meter:
    """Return a meter after some work that a tracker watched."""
    meter = Meter(device)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(energy, "_started", lambda device: tracker)
        with counted(meter):
            meter.is_part = is_part
    return meter


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let codecarbon be there, whether it is or not."""
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: object() if name == "codecarbon" else real(name, *a)
    )


def domain(folder: Path, name: str = "package-0", uj: int = 1_000_000, **changed: Any) -> SimpleNamespace:
    folder.mkdir(parents=True)
    (folder / "name").write_text(name)
    (folder / "energy_uj").write_text(str(uj))
    (folder / "max_energy_range_uj").write_text("262143328850")
    file = {"path": str(folder / "energy_uj"), "last_energy": 1.0, "sample_skipped": False}
    return SimpleNamespace(**file | changed)


def stand_in(*files: SimpleNamespace, mode: str = "intel_rapl", gpu: Any = None, kwh: float = 0.5) -> SimpleNamespace:
    """Return what codecarbon's tracker holds after it was stopped."""
    hardware = [SimpleNamespace(_mode=mode, _intel_interface=SimpleNamespace(_rapl_files=list(files)))]
    if gpu is not None:
        devices = SimpleNamespace(devices=[gpu])
        hardware.append(SimpleNamespace(gpu_ids=[0], devices=devices, _get_gpu_ids=lambda: [0]))
    total = SimpleNamespace(kWh=kwh)
    return SimpleNamespace(_hardware=hardware, _total_cpu_energy=total, _total_gpu_energy=total, stop=lambda: None)


def test_counters_that_were_read_are_taken(tmp_path: Path) -> None:
    gpu = SimpleNamespace(gpu_index=0, _has_counter=True, _use_power_fallback=False)
    meter = energy_of(stand_in(domain(tmp_path / "0"), gpu=gpu), torch.device("cuda"))
    assert (meter.cpu_energy_kwh, meter.gpu_energy_kwh, meter.energy_note) == (0.5, 0.5, "")


@pytest.mark.parametrize(
    ("mode", "names", "changed", "kwh"),
    [
        ("cpu_load", ["package-0"], {}, 0.5),
        ("constant", ["package-0"], {}, 0.5),
        ("intel_rapl", [], {}, 0.5),
        ("intel_rapl", ["psys"], {}, 0.5),
        ("intel_rapl", ["package-0", "core"], {}, 0.5),
        ("intel_rapl", ["package-0"], {"sample_skipped": True}, 0.5),
        ("intel_rapl", ["package-0"], {"last_energy": None}, 0.5),
        ("intel_rapl", ["package-0"], {}, 0.0),
    ],
)
def test_what_is_modelled_is_not_taken(
    tmp_path: Path, mode: str, names: list[str], changed: dict[str, Any], kwh: float
) -> None:
    files = [domain(tmp_path / str(i), name, **changed) for i, name in enumerate(names)]
    meter = energy_of(stand_in(*files, mode=mode, kwh=kwh))
    assert meter.cpu_energy_kwh is None
    assert "energy of the processor is not known: its RAPL counters" in meter.energy_note


@pytest.mark.parametrize("changed", [{"_has_counter": False}, {"_use_power_fallback": True}])
def test_a_gpu_whose_power_is_averaged_is_not_taken(tmp_path: Path, changed: dict[str, bool]) -> None:
    gpu = SimpleNamespace(**{"gpu_index": 0, "_has_counter": True, "_use_power_fallback": False} | changed)
    meter = energy_of(stand_in(domain(tmp_path / "0"), gpu=gpu), torch.device("cuda"))
    assert (meter.cpu_energy_kwh, meter.gpu_energy_kwh) == (0.5, None)
    assert meter.energy_note == "energy of the GPU is not known: its driver has no counter of it"


def test_of_a_part_nothing_is_said_of_the_whole(tmp_path: Path) -> None:
    meter = energy_of(stand_in(domain(tmp_path / "0")), is_part=True)
    assert meter.cpu_energy_kwh is None
    assert "a process that was stopped" in meter.energy_note


def test_a_checkpoint_that_was_read_makes_it_a_part(tmp_path: Path) -> None:
    first, second = Checkpoint(tmp_path / "c"), Checkpoint(tmp_path / "c")
    assert first.read() is None
    first.write({}, b"")
    assert second.read() is not None
    assert (first.was_read, second.was_read) == (False, True)


def test_a_measurement_that_fails_costs_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(device: torch.device) -> None:
        raise RuntimeError("no driver")

    monkeypatch.setattr(energy, "_started", broken)
    meter = Meter(CPU)
    with counted(meter):
        pass
    assert meter.energy_note == "energy was not measured: RuntimeError: no driver"
    monkeypatch.setattr(energy, "_started", lambda device: stand_in())
    with pytest.raises(ValueError, match="of the work"), counted(meter):
        raise ValueError("of the work")


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """codecarbon itself, in an empty folder, and an error for whoever asks the network."""
    pytest.importorskip("codecarbon")

    def nobody(*arguments: Any, **options: Any) -> None:
        raise AssertionError("it phones home")

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    monkeypatch.setattr(socket.socket, "connect", nobody)
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_codecarbon_reads_rapl_and_says_and_writes_nothing(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from codecarbon.core import cpu, hardware_cache
    from codecarbon.external import hardware as theirs

    base = tmp_path / "powercap" / "intel-rapl"
    for number in (0, 1):
        domain(base / f"intel-rapl:{number}", f"package-{number}", uj=1_000_000 * (number + 5))
    read = theirs.IntelRAPL
    monkeypatch.setattr(theirs, "IntelRAPL", lambda **options: read(**options | {"rapl_dir": str(base)}))
    monkeypatch.setattr(cpu, "is_rapl_available", lambda: True)
    monkeypatch.setattr(hardware_cache, "_plans", {})
    meter = Meter(CPU)
    with counted(meter):
        for number, joules in ((0, 7200), (1, 3600)):
            before = 1_000_000 * (number + 5)
            (base / f"intel-rapl:{number}" / "energy_uj").write_text(str(before + joules * 1_000_000))
        # It does not read twice within a twentieth of a second.
        time.sleep(0.06)
    assert meter.energy_note == ""
    assert meter.cpu_energy_kwh == pytest.approx(10_800 * 1e6 / UJ_A_KWH)
    assert capfd.readouterr() == ("", "")
    assert os.listdir(alone) == []


@pytest.mark.skipif(Path("/sys/class/powercap/intel-rapl").exists(), reason="this machine has counters")
def test_without_counters_nothing_is_known(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from codecarbon.core import hardware_cache

    monkeypatch.setattr(hardware_cache, "_plans", {})
    meter = Meter(CPU)
    with counted(meter):
        pass
    assert meter.cpu_energy_kwh is None
    assert meter.energy_note == "energy of the processor is not known: its RAPL counters cannot be read"


@pytest.mark.usefixtures("installed")
def test_the_record_has_the_energy_of_all_folds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_folder(tmp_path / "data", n_subjects=24)
    file = domain(tmp_path / "0")
    monkeypatch.setattr(energy, "_started", lambda device: stand_in(file, kwh=0.25))
    tiny_run.execute(tmp_path / "data", tmp_path / "out", task="age", folds=2, energy=True)
    records = [results.read_record(p) for p in (tmp_path / "out" / "records").iterdir()]
    costs = {r.row: r.cost for r in records}
    assert costs["tiny · roi"].cpu_energy_kwh == 0.5
    assert (costs["tiny · roi"].gpu_energy_kwh, costs["tiny · roi"].energy_note) == (None, "")
    assert costs["connectome"].cpu_energy_kwh is None
    monkeypatch.setattr(energy, "_started", lambda device: stand_in())
    result = tiny_run.execute(tmp_path / "data", tmp_path / "other", task="age", folds=2, energy=True)
    assert "energy of the processor is not known: its RAPL counters cannot be read" in result.notes


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("options", [{"jobs": 2}, {"scheduler": "tcp://10.0.0.1:8786"}, {"cluster": "slurm"}])
def test_counters_of_a_machine_are_not_shared_out(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigErrors, match="--energy reads counters of the whole machine"):
        expand(RunConfig(backbones=("mamba",), masks=("roi",), energy=True, **options), load_registry())


def test_without_codecarbon_nothing_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None)
    with pytest.raises(ConfigErrors, match=re.escape('pip install "neurobench-fm[energy]"')):
        expand(RunConfig(backbones=("mamba",), masks=("roi",), energy=True), load_registry())


def test_a_meter_says_all_that_it_knows() -> None:
    said = Meter(CPU, "a CPU", 2).to_dict()
    assert {"cpu_energy_kwh", "gpu_energy_kwh", "energy_note", "is_part"} <= said.keys()
    assert said["device_name"] == "a CPU"
    assert hardware.device_name(CPU) == hardware.device_name(CPU)

"""What steps need beyond a core: read, checked, found for every step; and each local process has a GPU of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import psutil
import pytest
import torch

from neurobench import config as configuration
from neurobench import execution, resources
from neurobench.checks import check_component
from neurobench.config import RunConfig, expand
from neurobench.errors import ConfigError, ConfigErrors
from neurobench.execution import Processes, most_jobs, suitable_jobs
from neurobench.identity import digest
from neurobench.opening import sources_of
from neurobench.plugins import load_registry
from neurobench.stages import CohortRun
from neurobench.steps import Row
from neurobench.store import Store
from tests.fakes import write_folder
from tests.tiny_plugin import Tiny
from tests.tiny_run import PLUGIN


@pytest.mark.parametrize(
    ("variable", "names"),
    [
        ("0,1", ("0", "1")),
        (" 3 , GPU-8a1,MIG-GPU-8a1/1/0", ("3", "GPU-8a1", "MIG-GPU-8a1/1/0")),
        ("1,-1,0", ("1",)),
        ("", ()),
        ("-1", ()),
    ],
)
def test_the_users_list_of_gpus_is_read_as_cuda_reads_it(variable: str, names: tuple[str, ...]) -> None:
    assert resources.named_gpus(variable) == names


def test_gpus_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert resources.visible_gpus() == ("0", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-c3,7,8")
    assert resources.visible_gpus() == ("5", "GPU-c3"), "of four names two are there"
    assert resources.dealt(("5", "GPU-c3"), 3) == ["5", "GPU-c3", "5"]
    assert resources.dealt((), 2) == ["", ""]


def test_a_gpu_has_one_process_where_nobody_says_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = expand(RunConfig.from_options(backbone="mamba", mask="roi", profile="full"), load_registry())
    monkeypatch.setattr(execution, "resolve_device", lambda name, *, elsewhere: torch.device("cuda"))
    monkeypatch.setattr(execution, "visible_gpus", lambda: ("0", "1", "2", "3"))
    assert suitable_jobs(grid, 300.0) == 4
    assert suitable_jobs(grid, 5.0) == 1


def tell(folder: Path, n: int) -> tuple[int, str, bool]:
    """Wait until ``n`` processes are here, and say which one this is, what it sees, and whether CUDA was asked."""
    (folder / str(os.getpid())).touch()
    deadline = time.monotonic() + 60
    while len(list(folder.iterdir())) < n and time.monotonic() < deadline:
        time.sleep(0.02)
    return os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES", ""), torch.cuda.is_initialized()


@pytest.mark.slow
def test_each_process_has_its_gpu_and_one_that_replaces_it_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,GPU-8a1")
    config = RunConfig.from_options(backbone="mamba", mask="roi", dataset="camcan", out=tmp_path / "out", device="cpu")
    Store(config.out)
    workers = Processes(config, 3)
    try:
        for attempt in ("first", "second"):
            (folder := tmp_path / attempt).mkdir()
            told = [workers._pool.submit(tell, folder, 3) for _ in range(3)]
            seen = {pid: gpu for pid, gpu, _ in (t.result(120) for t in told)}
            assert sorted(seen.values()) == ["7", "7", "GPU-8a1"]
            assert not any(t.result()[2] for t in told)
            if attempt == "first":
                os.kill(next(pid for pid, gpu in seen.items() if gpu == "GPU-8a1"), signal.SIGKILL)
                (tmp_path / "broken").mkdir()
                # Those that are left wait for the third one: none ends before its death is noticed.
                with pytest.raises(BrokenProcessPool) as broken:
                    workers._pool.submit(tell, tmp_path / "broken", 3).result(60)
                workers.renew(broken.value)
    finally:
        workers.close(at_once=True)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "7,GPU-8a1"


@pytest.mark.slow
def test_what_the_server_of_processes_imports_asks_nothing_of_cuda() -> None:
    # What CUDA sees first in a process is what it keeps, and a copy of that process as well.
    code = (
        "import torch\n"
        "def asked(*_): raise SystemExit('CUDA was asked')\n"
        "torch.cuda.device_count = torch.cuda.is_available = torch.cuda._lazy_init = asked\n"
        "torch._C._cuda_getDeviceCount = torch._C._cuda_init = asked\n"
        "import neurobench.execution\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------- what components need


class Hungry(Tiny):
    """Needs a GPU and memory."""

    name = "hungry"
    resources: ClassVar = {"GPU": 1, "MEMORY": 2e9}


@pytest.mark.parametrize(
    ("needs", "said"),
    [
        ({"gpu": 1}, "'gpu' is no name of capitals"),
        ({"GPU": 0}, "GPU is 0, not a number above 0"),
        ({"GPU": True}, "GPU is True"),
        ({"MEMORY": "16GB"}, "MEMORY is '16GB'"),
        (["GPU"], "not a mapping of names to numbers"),
        ({"GPU": 1, "MEMORY": 16e9}, ""),
    ],
)
def test_the_contract_check_reads_what_a_component_needs(needs: Any, said: str) -> None:
    cls = type("Needy", (Tiny,), {"resources": needs, "name": "needy", "__doc__": "Needs something."})
    (result,) = check_component(cls, only="metadata")
    assert result.outcome == ("failed" if said else "passed")
    assert said in result.message


def test_users_say_what_a_component_needs() -> None:
    parsed = RunConfig.from_options(resources=["mamba:GPU=1,MEMORY=16e9", "roi:"]).resources
    assert parsed == {"mamba": {"GPU": 1.0, "MEMORY": 16e9}, "roi": {}}
    assert RunConfig.from_options(resources={"mamba": {"GPU": 1}}).resources == {"mamba": {"GPU": 1}}
    with pytest.raises(ConfigError, match=r"--resources cannot be 'mamba:GPU'.*NAME:RESOURCE=NUMBER"):
        RunConfig.from_options(resources="mamba:GPU")
    assert resources.described({"MEMORY": 16e9, "GPU": 1}) == "GPU=1 MEMORY=1.6e+10"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("mamba:gpu=1", "'gpu' is no name of capitals"),
        ("mamab:GPU=1", "no backbone, mask or baseline of this run is called that.*'mamba'"),
        ("mamba:GPU=1", "mamba needs GPU=1, and this machine has 0.*--scheduler"),
        ("mamba:MEMORY=1e18", r"mamba needs MEMORY=1e\+18, and this machine has"),
    ],
)
def test_needs_that_cannot_be_met_are_refused_before_work_starts(
    monkeypatch: pytest.MonkeyPatch, given: str, said: str
) -> None:
    monkeypatch.setattr(configuration, "of_this_machine", lambda: {"GPU": 0, "MEMORY": 8e9})
    with pytest.raises(ConfigErrors, match=said):
        expand(RunConfig.from_options(backbone="mamba", mask="roi", resources=given), load_registry())


def test_a_cluster_may_have_what_this_machine_has_not() -> None:
    options = {"backbone": "mamba", "mask": "roi", "scheduler": "tcp://10.0.0.1:8786"}
    grid = expand(RunConfig.from_options(**options, resources="mamba:GPU=8", device="cuda"), load_registry())
    assert grid.config.resources == {"mamba": {"GPU": 8}}
    assert suitable_jobs(grid, 300.0) == 1, "how many processes this machine could start is asked too"


def test_no_more_processes_than_have_what_steps_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "of_this_machine", lambda: {"GPU": 2, "MEMORY": 16e9})
    monkeypatch.setattr(configuration, "of_this_machine", lambda: {"GPU": 2, "MEMORY": 16e9})

    def most(needs: str) -> float:
        config = RunConfig.from_options(backbone="mamba", mask="roi", resources=f"mamba:{needs}")
        return most_jobs(expand(config, load_registry()), load_registry())

    assert most("") == float("inf")
    assert most("MEMORY=5e9") == 3
    assert most("GPU=1") == 2
    assert most("GPU=2") == 1, "a process has one GPU, and this one has all"


def test_steps_that_run_a_component_need_what_it_needs() -> None:
    registry = load_registry()
    config = RunConfig.from_options(backbone="mamba", mask="roi", resources="mean:MEMORY=1")
    grid = expand(config, registry)
    (backbone,), (mask,) = grid.backbones, grid.masks
    mean = next(b for b in grid.baselines if b.name == "mean")
    known = SimpleNamespace(get=lambda kind, name: Hungry if name == "mamba" else registry.get(kind, name))
    run = SimpleNamespace(grid=grid, registry=known, adapts=lambda row: None)
    row = Row("pretrained", "mamba · roi", backbone, mask)
    needs = CohortRun.needs
    assert needs(run, row, "pretraining") == needs(run, row, "embedding") == Hungry.resources  # type: ignore[arg-type]
    assert needs(run, row, "evaluation") == {}, "a probe on stored features runs no network"  # type: ignore[arg-type]
    run.adapts = lambda row: "finetune"
    assert needs(run, row, "evaluation") == Hungry.resources  # type: ignore[arg-type]
    assert needs(run, Row("baseline", "mean", baseline=mean), "baseline") == {"MEMORY": 1}  # type: ignore[arg-type]


def test_needs_are_part_of_no_identity(tmp_path: Path) -> None:
    write_folder(tmp_path / "data", n_subjects=16)
    registry = load_registry((PLUGIN,))

    def keys(needs: str | None) -> list[Any]:
        config = RunConfig.from_options(
            backbone="tiny", mask="roi", dataset="fake", task="age", data_dir=tmp_path / "data", plugin_files=PLUGIN,
            out=tmp_path / "out", n_steps=2, resources=needs,
        )  # fmt: skip
        grid = expand(config, registry)
        store = Store(config.out)
        source = sources_of(grid.datasets[0], grid, registry, store)["fake"]
        run = CohortRun(source.load(store), source, grid, registry, 0, torch.device("cpu"), lambda step: None)
        return [digest(step.identity) for _, step in run.steps()]

    assert keys(None) == keys("tiny:MEMORY=1e6")


def test_memory_is_what_a_container_or_a_job_may_have(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    read = Path.read_text
    monkeypatch.setattr(
        Path, "read_text", lambda self, **o: "0::/job/step\n" if str(self) == "/proc/self/cgroup" else read(self, **o)
    )
    monkeypatch.setattr(resources, "CGROUPS", tmp_path)
    (tmp_path / "job" / "step").mkdir(parents=True)
    assert resources.memory_limit() == float("inf")
    (tmp_path / "job" / "step" / "memory.max").write_text("max\n")
    assert resources.memory_limit() == float("inf")
    (tmp_path / "job" / "memory.max").write_text(f"{1 << 20}\n")
    assert resources.memory_limit() == resources.free_memory() == resources.of_this_machine()["MEMORY"] == 1 << 20


def test_what_files_are_cached_in_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "memory_limit", lambda: float("inf"))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=7.0, free=1.0, total=9.0))
    assert resources.free_memory() == 7.0

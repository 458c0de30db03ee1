"""A grid on a real Slurm: one node on loopback, started by the test, with Debian's packages slurm-wlm and munge."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from neurobench import batch_systems
from neurobench.errors import NeurobenchError
from neurobench.results import load_results
from tests import tiny_run
from tests.fakes import write_folder
from tests.test_execution import bytes_of

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "scancel")
SBIN = os.pathsep.join(["/usr/sbin", "/usr/local/sbin"])

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(
        not all(shutil.which(n, path=f"{os.environ['PATH']}{os.pathsep}{SBIN}") for n in NEEDED) or os.geteuid() != 0,
        reason="needs root and Debian's packages slurm-wlm and munge",
    ),
]

ROOT = Path(__file__).resolve().parents[1]

CONF = """
ClusterName=neurobench
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
SlurmctldPort={port}
SlurmdPort={other}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=8000 State=UNKNOWN
PartitionName=short Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Start munge, the controller and one node; give the environment in which their commands work."""
    folder = tmp_path_factory.mktemp("slurm")
    # Munge wants nobody else to be able to write on the way to its socket.
    for name, mode in (("state", 0o755), ("spool", 0o755), ("munge", 0o700)):
        (folder / name).mkdir(mode=mode)
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    conf = folder / "slurm.conf"
    host = socket.gethostname().partition(".")[0]
    conf.write_text(CONF.format(host=host, folder=folder, port=free_port(), other=free_port()))
    env = os.environ | {"SLURM_CONF": str(conf), "PATH": f"{os.environ['PATH']}{os.pathsep}{SBIN}"}
    files = {n: f"--{n}-file={folder}/munge/{n}" for n in ("key", "pid", "seed", "log")}
    subprocess.run(["munged", "--force", f"--socket={folder}/munge/socket", *files.values()], env=env, check=True)
    try:
        subprocess.run(["slurmctld", "-c", "-f", str(conf)], env=env, check=True)
        subprocess.run(["slurmd", "-f", str(conf)], env=env, check=True)
        deadline = time.monotonic() + 60
        while "idle" not in (shown := _said(["sinfo", "-h", "-o", "%t"], env)):
            assert time.monotonic() < deadline, f"the node did not come up: {shown}"
            time.sleep(0.5)
        yield env
    finally:
        _said(["scancel", "--user=root"], env)
        for name in ("slurmd.pid", "slurmctld.pid", "munge/pid"):
            if (folder / name).is_file():
                subprocess.run(["kill", (folder / name).read_text().strip()], check=False)


def _said(command: list[str], env: dict[str, str]) -> str:
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False).stdout


SLOW = '''
"""A backbone that takes its time in a job, and notes in which one every step of its training was."""

import os
import time
from pathlib import Path

from neurobench import hookimpl, pretraining
from tests.tiny_plugin import Tiny

pretraining.CHECKPOINT_EVERY_S, pretraining.CHECKPOINT_SHARE = 0.0, float("inf")
JOB = os.environ.get("SLURM_JOB_ID", "local")


class Slow(Tiny):
    """Waits."""

    name = "slow"

    def mix(self, tokens, table):
        if self.training:
            with Path(__file__).with_name("steps.txt").open("a") as file:
                file.write(JOB + "\\n")
            time.sleep(0.0 if JOB == "local" else 0.15)
        return super().mix(tokens, table)


@hookimpl
def register_backbones():
    return [Slow]
'''


def test_a_grid_in_slurm_jobs_of_which_one_is_killed_has_the_records_of_a_local_run(
    slurm: dict[str, str], tmp_path: Path
) -> None:
    write_folder(tmp_path / "data", n_subjects=24)
    (tmp_path / "slow.py").write_text(SLOW)
    plugins = [tiny_run.PLUGIN, tmp_path / "slow.py"]
    options = {"backbone": "slow", "task": "reconstruction,age", "n_steps": 60, "plugin_files": plugins, "jobs": 1}
    tiny_run.execute(tmp_path / "data", tmp_path / "one", **options)
    steps = tmp_path / "steps.txt"
    n_alone = len(steps.read_text().split())
    steps.write_text("")
    config = tmp_path / "cluster.yaml"
    config.write_text(
        "queue: short\ncores: 1\nmemory: 2GB\nwalltime: '00:20:00'\njobs: 2\ninterface: lo\n"
        f"python: {sys.executable}\nlog_directory: {tmp_path}/logs\n"
        f"job_script_prologue: ['export PYTHONPATH={ROOT}', 'export OMP_NUM_THREADS=1']\n"
    )
    command = [
        *(sys.executable, "-m", "neurobench", "run", "--backbone", "slow", "--mask", "roi", "--dataset", "fake"),
        *("--data-dir", str(tmp_path / "data"), "--out", str(tmp_path / "many"), "--steps", "60"),
        *("--task", "reconstruction,age"),
        *(option for plugin in plugins for option in ("--plugin", str(plugin))),
        *("--cluster", "slurm", "--cluster-config", str(config)),
    ]
    run = subprocess.Popen(command, cwd=ROOT, env=slurm, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 200
    # All jobs that the file allows are asked for while there is enough to do.
    # Two jobs may be at work by turns: the one that is killed has to have done a good part.
    while not (done := steps.read_text().split()) or (
        done.count(killed := done[-1]) < 16 or len(_said(["squeue", "-h"], slurm).splitlines()) < 2
    ):
        assert time.monotonic() < deadline
        assert run.poll() is None, run.communicate()[0]
        time.sleep(0.05)
    # As at the end of its walltime, and without the half minute in which a job may tidy up.
    subprocess.run(["scancel", "--signal=KILL", "--full", killed], env=slurm, check=True)
    said = run.communicate(timeout=200)[0]
    assert run.returncode == 0, said
    jobs = steps.read_text().split()
    by_killed, by_others = jobs.count(killed), len(jobs) - jobs.count(killed)
    assert by_killed >= 15
    assert by_others > 0, "no other job took part"
    assert n_alone <= len(jobs) <= n_alone + 5, f"{by_killed} steps were lost of a pretraining that began anew"
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "many")
    tables = [load_results(tmp_path / n).drop(columns=["seconds", "record"]) for n in ("one", "many")]
    pd.testing.assert_frame_equal(*tables)
    deadline = time.monotonic() + 60
    while _said(["squeue", "-h"], slurm).strip():
        assert time.monotonic() < deadline, "jobs outlived the run"
        time.sleep(0.5)
    assert not any(p.is_file() for p in (tmp_path / "many" / "store" / "unfinished").rglob("*"))


def test_jobs_that_end_before_their_worker_comes_end_the_run_with_what_they_said(
    slurm: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, slurm[name])
    monkeypatch.setattr(batch_systems, "ASK_S", 3.0)
    write_folder(tmp_path / "data", n_subjects=24)
    config = tmp_path / "cluster.yaml"
    config.write_text(
        "queue: short\ncores: 1\nmemory: 2GB\nwalltime: '00:20:00'\njobs: 2\ninterface: lo\n"
        f"python: /no/such/python\nlog_directory: {tmp_path}/logs\n"
    )
    options = {"task": "age", "n_steps": 2, "cluster": "slurm", "cluster_config": config}
    with pytest.raises(NeurobenchError, match=r"ended before a worker of it came: job \d+ \(.*/no/such/python") as said:
        tiny_run.execute(tmp_path / "data", tmp_path / "out", **options)
    assert str(said.value).count("/no/such/python") >= batch_systems.MOST_DEAD

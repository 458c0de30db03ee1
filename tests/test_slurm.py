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


def test_a_grid_runs_in_slurm_jobs_and_gives_the_records_of_a_local_run(slurm: dict[str, str], tmp_path: Path) -> None:
    write_folder(tmp_path / "data", n_subjects=24)
    tiny_run.execute(tmp_path / "data", tmp_path / "one", task="reconstruction,age", jobs=1)
    config = tmp_path / "cluster.yaml"
    config.write_text(
        "queue: short\ncores: 1\nmemory: 2GB\nwalltime: '00:20:00'\njobs: 2\ninterface: lo\n"
        f"python: {sys.executable}\nlog_directory: {tmp_path}/logs\n"
        f"job_script_prologue: ['export PYTHONPATH={ROOT}', 'export OMP_NUM_THREADS=1']\n"
    )
    command = [
        *(sys.executable, "-m", "neurobench", "run", "--backbone", "tiny", "--mask", "roi", "--dataset", "fake"),
        *("--data-dir", str(tmp_path / "data"), "--out", str(tmp_path / "many"), "--steps", "3"),
        *("--task", "reconstruction,age", "--plugin", str(tiny_run.PLUGIN)),
        *("--cluster", "slurm", "--cluster-config", str(config)),
    ]
    done = subprocess.run(command, cwd=ROOT, env=slurm, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    accounted = list((tmp_path / "logs").glob("*"))
    assert accounted, "no job of Slurm wrote its log: nothing ran there"
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "many")
    tables = [load_results(tmp_path / n).drop(columns=["seconds", "record"]) for n in ("one", "many")]
    pd.testing.assert_frame_equal(*tables)
    deadline = time.monotonic() + 60
    while _said(["squeue", "-h"], slurm).strip():
        assert time.monotonic() < deadline, "jobs outlived the run"
        time.sleep(0.5)

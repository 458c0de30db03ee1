"""What a piece of work was computed on, and what that machine says of it; None where it cannot be known.

No number here is an estimate: each is read from the operating system, the driver or a counter, or is left out.
"""

from __future__ import annotations

import contextlib
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

__all__ = ["Meter", "device_name", "metered", "peak_memory_mb"]


@dataclass
class Meter:
    """What is known of the machine while something is computed in this process.

    Parameters
    ----------
    device
        Where it is computed.
    device_name
        Of the GPU, or of the CPU; empty: the system does not tell.
    n_threads
        Threads that torch computes with on the CPU.
    gpu_peak_memory_mb
        Most memory of the GPU that was in use at once (2²⁰ bytes); None on a CPU.
    host_peak_memory_mb
        Largest resident memory of this process, with its libraries: meanwhile where the system counts anew (Linux, but
        for containers that may not ask for it), else since the process began.
    gpu_utilisation
        Share of the time in which the GPU computed anything, the mean of what the driver said at every
        :meth:`look`; None without a look, on a CPU, or where the driver is not asked for want of a package.
    cpu_energy_kwh, gpu_energy_kwh, energy_note
        See :mod:`neurobench.energy`.
    is_part
        Whether an earlier process computed a part of it, up to a checkpoint.
    """

    device: torch.device
    device_name: str = ""
    n_threads: int = 0
    gpu_peak_memory_mb: float | None = None
    host_peak_memory_mb: float | None = None
    gpu_utilisation: float | None = None
    cpu_energy_kwh: float | None = None
    gpu_energy_kwh: float | None = None
    energy_note: str = ""
    is_part: bool = False
    _looks: list[float] = field(default_factory=list)

    def look(self) -> None:
        """Ask the driver how busy the GPU is."""
        if self.device.type == "cuda":
            # A package that is missing, a driver that does not say, a slice of a GPU: then nobody knows.
            with contextlib.suppress(Exception):
                self._looks.append(torch.cuda.utilization(self.device) / 100)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {k: v for k, v in asdict(self).items() if k not in ("device", "_looks")}


@contextlib.contextmanager
def metered(device: torch.device) -> Iterator[Meter]:
    """Measure what is computed meanwhile; the meter holds it afterwards."""
    _count_peaks_anew(device)
    meter = Meter(device, device_name(device), torch.get_num_threads())
    yield meter
    meter.host_peak_memory_mb = _host_peak_memory_mb()
    if device.type == "cuda":
        meter.gpu_peak_memory_mb = torch.cuda.max_memory_allocated(device) / 2**20
    if meter._looks:
        meter.gpu_utilisation = sum(meter._looks) / len(meter._looks)


def peak_memory_mb(device: torch.device) -> float:
    """Return the most memory that was in use at once: of the GPU; on a CPU, of this process."""
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else _host_peak_memory_mb()


def _count_peaks_anew(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    # Else the peak is that of whatever this process did before; only Linux can forget it.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _host_peak_memory_mb() -> float:
    if sys.platform == "win32":
        import psutil

        return float(psutil.Process().memory_info().peak_wset) / 2**20
    # Not there on Windows.
    import resource

    with contextlib.suppress(OSError, StopIteration):
        # What getrusage says counts the parent's memory at the start of this process, too.
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 2**10
    peak = float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    # Linux counts in kibibytes, macOS in bytes.
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def device_name(device: torch.device) -> str:
    """Return what the maker calls it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()


@cache
def _cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        if sys.platform == "darwin":
            asked = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(asked, capture_output=True, text=True, timeout=5).stdout.strip()
        if sys.platform != "win32":
            lines = (line.partition(":") for line in cpuinfo.read_text(encoding="utf-8").splitlines())
            return next((v.strip() for k, _, v in lines if k.strip() == "model name"), "")
    # An architecture such as x86_64 is no name.
    found = platform.processor()
    return found if found != platform.machine() else ""

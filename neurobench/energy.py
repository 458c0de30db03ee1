"""Energy that a piece of work took, as the machine's own counters have it, read by codecarbon; never an estimate.

Where it finds no counter, codecarbon goes on with a model: a processor's nominal power times its load, so many watts a
memory module. Nothing of that is taken. What counts is a processor whose RAPL counters were read, and a GPU whose
driver has an energy counter; of anything else nothing is known, and a note says why. A counter is the whole
processor's, or the whole GPU's, whatever else runs there; memory, disks and cooling have none. There is no CO₂: that
would be a guess at where the power came from. Nothing is sent or written anywhere.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from neurobench.hardware import Meter

__all__ = ["counted"]

READ_EVERY_S = 15.0
"""Seconds after which counters are read: they start again from 0, after 20 minutes at full power or so."""


@contextlib.contextmanager
def counted(meter: Meter) -> Iterator[None]:
    """Have a meter know the energy of what is computed meanwhile, in kWh, or why it does not."""
    try:
        tracker = _started(meter.device)
    except Exception as error:
        # Whatever codecarbon stumbles over on some machine, the work is worth more than its measurement.
        meter.energy_note = f"energy was not measured: {type(error).__name__}: {error}"
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(Exception):
            tracker.stop()
    notes = []
    if meter.is_part:
        notes.append("energy is not known: a part was computed by a process that was stopped")
    else:
        meter.cpu_energy_kwh, why = _of_the_processor(tracker)
        notes.append(why)
        if meter.device.type == "cuda":
            meter.gpu_energy_kwh, why = _of_the_gpu(tracker)
            notes.append(why)
    meter.energy_note = "; ".join(n for n in notes if n)


def _started(device: torch.device) -> Any:
    from codecarbon import OfflineEmissionsTracker

    # Before it, for what it says while it is made. Settings that are not given it takes from files and the environment.
    logging.getLogger("codecarbon").setLevel(logging.CRITICAL)
    tracker = OfflineEmissionsTracker(
        log_level="critical",
        output_methods=[],
        output_handlers=[],
        emissions_endpoint=None,
        electricitymaps_api_token=None,
        tracking_mode="machine",
        measure_power_secs=READ_EVERY_S,
        allow_multiple_runs=True,
        gpu_ids=[_number(device)] if device.type == "cuda" else [],
        pue=1.0,
        wue=0.0,
        force_cpu_power=None,
        force_ram_power=None,
        force_mode_cpu_load=False,
        rapl_include_dram=False,
        rapl_prefer_psys=False,
    )
    tracker.start()
    return tracker


def _number(device: torch.device) -> int:
    """Return the driver's number of a GPU, which torch may number otherwise."""
    import pynvml

    pynvml.nvmlInit()
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    handle = pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
    return int(pynvml.nvmlDeviceGetIndex(handle))


def _of_the_processor(tracker: Any) -> tuple[float | None, str]:
    """Return kWh of the processor's packages, or why they are not known."""
    by_counter = [h for h in tracker._hardware if getattr(h, "_mode", "") == "intel_rapl"]
    files = [f for h in by_counter for f in h._intel_interface._rapl_files]
    # Without packages it takes what it finds: one of their parts, or the whole board.
    if not files or not all("package" in Path(f.path).with_name("name").read_text() for f in files):
        return None, "energy of the processor is not known: its RAPL counters cannot be read"
    kwh = float(tracker._total_cpu_energy.kWh)
    if any(f.last_energy is None or f.sample_skipped for f in files) or kwh <= 0:
        return None, "energy of the processor is not known: its RAPL counters stopped"
    return kwh, ""


def _of_the_gpu(tracker: Any) -> tuple[float | None, str]:
    """Return kWh of the GPU that was computed on, or why they are not known."""
    devices = [
        d
        for h in tracker._hardware
        if hasattr(h, "gpu_ids")
        for d in h.devices.devices
        if d.gpu_index in h._get_gpu_ids()
    ]
    if not devices or not all(d._has_counter and not d._use_power_fallback for d in devices):
        return None, "energy of the GPU is not known: its driver has no counter of it"
    kwh = float(tracker._total_gpu_energy.kWh)
    return (kwh, "") if kwh > 0 else (None, "energy of the GPU is not known: its counter stopped")

"""A run of the tiny backbone on fake recordings, for tests of the runner and of how steps are computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from neurobench import runner
from neurobench.config import RunConfig, expand
from neurobench.plugins import load_registry

PLUGIN = Path(__file__).with_name("tiny_plugin.py")


def execute(data: Path, out: Path, **options: Any) -> runner.RunResult:
    """Run three steps on a folder of fake recordings; ``options`` as of a run."""
    config = config_of(data, out, **options)
    registry = load_registry(config.plugin_files)
    return runner.execute(expand(config, registry), registry)


def config_of(data: Path, out: Path, **options: Any) -> RunConfig:
    """Return what such a run is asked for."""
    settings: dict[str, Any] = {
        "backbone": "tiny",
        "mask": "roi",
        "dataset": "fake",
        "data_dir": data,
        "out": out,
        "n_steps": 3,
        "plugin_files": PLUGIN,
    }
    return RunConfig.from_options(**settings | options)

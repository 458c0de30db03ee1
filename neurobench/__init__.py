"""neurobench: a plugin-based benchmark suite for neuroimaging foundation models.

Public names are imported on first use, so that the command line answers before torch is loaded.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "hookimpl": "neurobench.hookspecs",
    "Backbone": "neurobench.contracts",
    "TokenBackbone": "neurobench.contracts",
    "MaskingStrategy": "neurobench.contracts",
    "Dataset": "neurobench.contracts",
    "Task": "neurobench.contracts",
    "SubjectTask": "neurobench.contracts",
    "ReconstructionTask": "neurobench.contracts",
    "EvokedTask": "neurobench.contracts",
    "WindowTask": "neurobench.contracts",
    "RetrievalTask": "neurobench.contracts",
    "Baseline": "neurobench.contracts",
    "Metric": "neurobench.contracts",
    "Figure": "neurobench.contracts",
    "Drawing": "neurobench.contracts",
    "Evidence": "neurobench.evidence",
    "CLASSIFICATION_METRICS": "neurobench.metrics",
    "RETRIEVAL_METRICS": "neurobench.metrics",
    "WINDOW_METRICS": "neurobench.metrics",
    "regression_metrics": "neurobench.metrics",
    "PARAMETERS_PER_PASS": "neurobench.contracts",
    "SensorEmbedding": "neurobench.contracts",
    "feedforward_width": "neurobench.contracts",
    "COVARIATES": "neurobench.contracts",
    "BackboneSpec": "neurobench.records",
    "Cohort": "neurobench.records",
    "DatasetCard": "neurobench.records",
    "Event": "neurobench.records",
    "Finding": "neurobench.records",
    "Listing": "neurobench.records",
    "RawRecording": "neurobench.records",
    "Recording": "neurobench.records",
    "RecordingFile": "neurobench.records",
    "RetrievalWindow": "neurobench.records",
    "SignalSpec": "neurobench.records",
    "TokenTable": "neurobench.records",
    "UnitTable": "neurobench.records",
    "WindowTable": "neurobench.records",
    "NeurobenchError": "neurobench.errors",
    "ConfigError": "neurobench.errors",
    "DataError": "neurobench.errors",
    "PluginError": "neurobench.errors",
    "StoreError": "neurobench.errors",
    "closest": "neurobench.errors",
    "seed_for": "neurobench.identity",
    "parse_json": "neurobench.parsing",
    "user_path": "neurobench.parsing",
    "run": "neurobench.runner",
    "compare_results": "neurobench.comparisons",
    "load_results": "neurobench.results",
}

__all__ = sorted([*_PUBLIC, "__version__"])


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        value = getattr(importlib.import_module(_PUBLIC[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'neurobench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])

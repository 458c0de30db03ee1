"""Kernel ridge regression on functional connectivity: the classical method that deep ones are measured against.

He et al. 2020 (10.1016/j.neuroimage.2019.116276) found it no worse than neural networks at predicting behaviour.
"""

from __future__ import annotations

from neurobench import Baseline, hookimpl
from neurobench_baselines.connectome import Connectome


class ConnectomeKernel(Connectome):
    """The features of ``connectome`` under a Gaussian kernel; width and penalty by the same inner folds."""

    name = "connectome_kernel"
    summary = "the same as connectome, by kernel ridge or kernel logistic regression"
    reference = "10.1016/j.neuroimage.2019.116276"
    probe = "kernel"


@hookimpl
def register_baselines() -> list[type[Baseline]]:
    """Register the baseline."""
    return [ConnectomeKernel]

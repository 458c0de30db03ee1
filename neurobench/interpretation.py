"""Whether an attribution can be believed: how well it agrees with itself, and that it does not agree with its controls.

An attribution says something of what was learned if it comes out alike from another seed and from other folds, and
unlike from a backbone with randomised weights and from a probe of randomised labels (Adebayo et al. 2018,
arXiv:1810.03292). All four are Spearman correlations over groups of units, and are read from an output folder alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neurobench.evidence import Evidence

__all__ = ["COLUMNS", "LOAD_COLUMNS", "MIN_GROUPS", "entropy_bits", "expert_loads", "spearman", "stability"]

MIN_GROUPS = 3
"""Groups below which a rank correlation says nothing."""

COLUMNS = (
    "kind",
    "row",
    "n_groups",
    "n_seeds",
    "over_seeds",
    "over_folds",
    "randomised_weights",
    "randomised_labels",
    "group_size",
)


def spearman(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Return Spearman's correlation of (groups,) values; NaN for too few groups, or where one side is constant."""
    from scipy import stats

    known = np.isfinite(first) & np.isfinite(second)
    a, b = first[known], second[known]
    if len(a) < MIN_GROUPS or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    return float(stats.spearmanr(a, b).statistic)


def stability(evidence: Evidence, task: str) -> pd.DataFrame:
    """Return how stable the attribution of every row of a task is, and how it goes with its controls.

    Parameters
    ----------
    evidence
        The cohort.
    task
        Label of the task.

    Returns
    -------
    DataFrame
        One row a (kind, row) with an attribution, columns :data:`COLUMNS`: number of groups and of seeds; the mean
        Spearman correlation over pairs of seeds, over pairs of folds (mean over seeds), and with the same of the
        untrained backbone, of a probe fitted to permuted labels, and with the number of units of each group (means over
        seeds): many units are missed more than few, whatever they say. NaN where there is no such pair.
    """
    scored = evidence.rows(task, kind=("pretrained", "untrained"))
    tables = {
        r["id"]: t for r in scored.to_dict("records") if (t := evidence.frame(r["id"], "attribution")) is not None
    }
    untrained = {
        (r["backbone"], r["seed"]): _values(tables[r["id"]])
        for r in scored[scored["kind"] == "untrained"].to_dict("records")
        if r["id"] in tables
    }
    rows = []
    for (kind, name), own in scored.groupby(["kind", "row"], sort=False):
        lines = [r for r in own.sort_values("seed").to_dict("records") if r["id"] in tables]
        if not lines:
            continue
        values = [_values(tables[r["id"]]) for r in lines]
        weights = [
            _agree(v, untrained[r["backbone"], r["seed"]])
            for v, r in zip(values, lines, strict=True)
            if kind == "pretrained" and (r["backbone"], r["seed"]) in untrained
        ]
        labels = [_agree(v, _values(tables[r["id"]], "labels")) for v, r in zip(values, lines, strict=True)]
        sizes = [_agree(v, _sizes(tables[r["id"]])) for v, r in zip(values, lines, strict=True)]
        folds = [float(tables[r["id"]]["fold_agreement"].iloc[0]) for r in lines]
        rows.append(
            {
                "kind": kind,
                "row": name,
                "n_groups": len(values[0]),
                "n_seeds": len(lines),
                "over_seeds": _mean([_agree(a, b) for a, b in itertools.combinations(values, 2)]),
                "over_folds": _mean(folds),
                "randomised_weights": _mean(weights),
                "randomised_labels": _mean(labels),
                "group_size": _mean(sizes),
            }
        )
    return pd.DataFrame(rows, columns=list(COLUMNS))


LOAD_COLUMNS = ("kind", "row", "n_experts", "n_folds", "load_bits", "unit_bits", "most_bits", "busiest")


def entropy_bits(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the entropy in bits of shares along the last axis; NaN where they are NaN."""
    logarithm = np.log2(np.where(shares > 0, shares, 1.0))
    bits: NDArray[np.float64] = -(shares * logarithm).sum(-1)
    return np.abs(bits)


def expert_loads(evidence: Evidence, task: str) -> pd.DataFrame:
    """Return how evenly the experts of every row of a task that has some are used.

    Parameters
    ----------
    evidence
        The cohort.
    task
        Label of the task.

    Returns
    -------
    DataFrame
        One row a (kind, row), columns :data:`LOAD_COLUMNS`: number of experts (all layers) and of folds (all seeds);
        means over these of the entropy in bits of the load, the share of all units that each expert has, of the
        entropy of a single unit's gates, and of the largest load; ``most_bits`` is what an even load would have. A
        unit's entropy as high as the load's means that experts are used alike by all units and tell none apart.
    """
    rows = []
    for (kind, name), own in evidence.rows(task, kind=("pretrained", "untrained")).groupby(["kind", "row"], sort=False):
        tables = [t for r in own["id"] if (t := evidence.frame(r, "routing")) is not None]
        shares = [_shares(part) for t in tables for _, part in t.groupby("fold")]
        if not shares:
            continue
        loads = [np.nanmean(s, axis=0) for s in shares]
        rows.append(
            {
                "kind": kind,
                "row": name,
                "n_experts": shares[0].shape[1],
                "n_folds": len(shares),
                "load_bits": _mean([float(entropy_bits(load)) for load in loads]),
                "unit_bits": _mean([float(np.nanmean(entropy_bits(s))) for s in shares]),
                "most_bits": math.log2(shares[0].shape[1]),
                "busiest": _mean([float(load.max()) for load in loads]),
            }
        )
    return pd.DataFrame(rows, columns=list(LOAD_COLUMNS))


def _shares(table: pd.DataFrame) -> NDArray[np.float64]:
    """Return (units, experts) of one fold."""
    return table.pivot(index="unit", columns="expert", values="share").to_numpy(np.float64)


def _values(table: pd.DataFrame, control: str = "") -> pd.Series[float]:
    own = table[table["control"] == control]
    return pd.Series(own["value"].to_numpy(float), index=own["group"].tolist())


def _sizes(table: pd.DataFrame) -> pd.Series[float]:
    own = table[table["control"] == ""]
    return pd.Series(own["n_units"].to_numpy(float), index=own["group"].tolist())


def _agree(first: pd.Series[float], second: pd.Series[float]) -> float:
    a, b = (np.asarray(v, np.float64) for v in (first, second.reindex(first.index)))
    return spearman(a, b)


def _mean(values: Sequence[float]) -> float:
    known = [v for v in values if math.isfinite(v)]
    return float(np.mean(known)) if known else math.nan

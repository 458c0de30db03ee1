"""Take the sites' location and scale out of features: fitted on the training subjects of a fold, applied to all.

The model is that of ComBat (Johnson 2007, doi:10.1093/biostatistics/kxj037; for imaging Fortin 2018,
doi:10.1016/j.neuroimage.2017.11.024) without its empirical Bayes step: feature = mean + age + sex + site + site scale ×
noise. Age and sex are kept, since they are not the scanner's doing, except where they are the target: a probe must not
meet features that were shaped by what it has to predict.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

__all__ = ["MIN_SITE", "by_site"]

Array = NDArray[np.float64]

MIN_SITE = 5
"""Training subjects below which a site's location and scale are not estimated, and its features stay as they are."""


def by_site(features: Array, participants: pd.DataFrame, train: NDArray[np.bool_], target: str = "") -> Array:
    """Return features without the location and scale of their sites.

    Parameters
    ----------
    features
        (subjects, features); NaN where missing, and then left so.
    participants
        In the same order; ``site`` and, where known, ``age`` and ``sex``.
    train
        (subjects,) True for training subjects: everything is estimated on them.
    target
        Column that is predicted; it is no part of the model.

    Returns
    -------
    features
        (subjects, features). A site that training does not know, or hardly, stays as it is.
    """
    features = np.array(features, float)
    site = participants["site"].where(participants["site"].notna(), "").astype(str).to_numpy()
    kept = _covariates(participants, train, target)
    missing = np.isnan(features)
    # A feature that no training subject has stays missing in training, and no probe is given it.
    n = np.maximum((~missing[train]).sum(0), 1)
    filled = np.where(missing, np.where(missing, 0.0, features)[train].sum(0) / n, features)
    known = [s for s in np.unique(site[train]) if s and (site[train] == s).sum() >= MIN_SITE]
    if len(known) < 2:
        return features
    inside = np.isin(site, known)
    fitted = train & inside
    dummies = (site[:, None] == np.array(known)).astype(float)
    # Age and sex are fitted together with the sites, or a site of children would lose the children's share too.
    weights, *_ = np.linalg.lstsq(np.column_stack([dummies, kept])[fitted], filled[fitted], rcond=None)
    of_site, of_kept = weights[: len(known)], weights[len(known) :]
    grand = dummies[fitted].mean(0) @ of_site
    residual = filled - dummies @ of_site - kept @ of_kept
    pooled = residual[fitted].std(0)
    scale = np.ones_like(features)
    for s in known:
        own = residual[fitted & (site == s)].std(0)
        scale[site == s] = np.divide(pooled, own, out=np.ones_like(own), where=own > 1e-12)
    harmonised = grand + kept @ of_kept + residual * scale
    return np.where(missing | ~inside[:, None], features, harmonised)


def _covariates(participants: pd.DataFrame, train: NDArray[np.bool_], target: str) -> Array:
    """Return (subjects, columns) age and sex, centred on training subjects; the training mean where one is missing."""
    columns: list[NDArray[Any]] = []
    if "age" in participants and target != "age":
        columns.append(pd.to_numeric(participants["age"], errors="coerce").to_numpy(float))
    if "sex" in participants and target != "sex":
        sex = participants["sex"]
        columns.append(np.where(sex.notna(), (sex.astype(str) == str(sex.dropna().min())).astype(float), np.nan))
    kept = np.column_stack(columns) if columns else np.zeros((len(participants), 0))
    known = np.isfinite(kept)
    n = known[train].sum(0)
    mean = np.divide(np.where(known, kept, 0.0)[train].sum(0), n, out=np.zeros(kept.shape[1]), where=n > 0)
    return np.where(known, kept - mean, 0.0)

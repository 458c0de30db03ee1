"""Grand averages: evoked responses, real and predicted, averaged over held-out subjects, for pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["GrandAverage"]


class GrandAverage:
    """Sums of evoked responses in native units, one a (state, condition); c of them, p predictors, u units, t times.

    Parameters
    ----------
    predictors
        Their names, as :func:`neurobench.evoked.evaluate` was given them.
    times_s
        (t,) seconds from the event.
    """

    def __init__(self, predictors: Sequence[str], times_s: NDArray[np.float64]) -> None:
        self.predictors, self.times_s = tuple(predictors), np.asarray(times_s, np.float64)
        self._total: dict[str, NDArray[np.float64]] = {}
        self._count: dict[str, NDArray[np.float64]] = {}
        self._people: dict[str, int] = {}

    def add(self, state: str, condition: str, averages: NDArray[np.float64]) -> None:
        """Add one subject's (1 + p, u, t) averages, the real one first; NaN where a unit is not known."""
        key = f"{state}/{condition}"
        known = np.isfinite(averages)
        total = self._total.setdefault(key, np.zeros(averages.shape))
        total += np.where(known, averages, 0.0)
        count = self._count.setdefault(key, np.zeros(averages.shape[1]))
        count += known.all((0, 2))
        self._people[key] = self._people.get(key, 0) + 1

    def save(self, path: Path) -> None:
        """Write the sums as .npz; empty where there was no response."""
        keys = sorted(self._total)
        arrays: dict[str, NDArray[Any]] = {
            "keys": np.array(keys, dtype=str),
            "predictors": np.array(self.predictors, dtype=str),
            "times_s": self.times_s,
            "n_subjects": np.array([self._people[k] for k in keys], np.int64),
        }
        if keys:
            arrays["total"] = np.stack([self._total[k] for k in keys])
            arrays["count"] = np.stack([self._count[k] for k in keys])
        np.savez(path, allow_pickle=False, **arrays)

    @staticmethod
    def joined(paths: Sequence[Path], predictor: str, units: Sequence[str]) -> Mapping[str, NDArray[Any]] | None:
        """Return the grand averages of one predictor over the files of several folds; None without a response.

        Returns
        -------
        arrays
            ``keys`` (c,), ``n_subjects`` (c,), ``times_s`` (t,), ``units`` (u,), ``real`` and ``predicted`` (c, u, t)
            in native units, NaN where a unit is known in nobody.
        """
        total: dict[str, NDArray[np.float64]] = {}
        count: dict[str, NDArray[np.float64]] = {}
        people: dict[str, int] = {}
        times = np.zeros(0)
        for path in paths:
            with np.load(path, allow_pickle=False) as stored:
                times = stored["times_s"]
                at = 1 + stored["predictors"].tolist().index(predictor)
                for i, key in enumerate(stored["keys"].tolist()):
                    total[key] = total.get(key, 0) + stored["total"][i][[0, at]]
                    count[key] = count.get(key, 0) + stored["count"][i]
                    people[key] = people.get(key, 0) + int(stored["n_subjects"][i])
        if not total:
            return None
        keys = sorted(total)
        n = np.stack([count[k] for k in keys])[:, None, :, None]
        mean = np.divide(s := np.stack([total[k] for k in keys]), n, out=np.full(s.shape, np.nan), where=n > 0)
        return {
            "keys": np.array(keys, dtype=str),
            "n_subjects": np.array([people[k] for k in keys], np.int64),
            "times_s": times,
            "units": np.array(units, dtype=str),
            "real": mean[:, 0],
            "predicted": mean[:, 1],
        }

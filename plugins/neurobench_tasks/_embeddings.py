"""Embeddings of stimuli in a file of the user's: what a language or vision model says of each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neurobench import ConfigError, closest, user_path


def read_embeddings(path: str, labels: Sequence[str]) -> NDArray[np.float64]:
    """Return (labels, dimensions) from an .npz with an array a stimulus, or a .parquet with a column ``stimulus``.

    Raises
    ------
    ConfigError
        If the file cannot be read, lacks a stimulus, or its arrays are no vectors of one length.
    """
    file = user_path(path)
    known: dict[str, NDArray[np.float64]] = {}
    try:
        if file.suffix == ".npz":
            with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as arrays:
                known = {name: np.asarray(arrays[name], np.float64).ravel() for name in arrays.files}
        elif file.suffix == ".parquet":
            table = pd.read_parquet(file).set_index("stimulus")
            known = {str(name): row.to_numpy(np.float64) for name, row in table.iterrows()}
        else:
            raise ConfigError(f"embeddings cannot be read from {file.name}.", allowed=".npz, .parquet")
    except ConfigError:
        raise
    except Exception as error:  # Of the zip file, of what is packed in it, of the table: a family each.
        raise ConfigError(
            f"embeddings cannot be read from {path}: {' '.join(str(error).split())}.",
            allowed="an .npz with an array a stimulus, or a .parquet with a column stimulus and one a dimension",
        ) from None
    if missing := [name for name in labels if name not in known]:
        raise ConfigError(
            f"{file.name} has no embedding of {', '.join(missing)}.",
            allowed=", ".join(sorted(known)[:20]),
            likely=closest(missing[0], known),
            next_step="Name embeddings as stimuli are named.",
        )
    chosen = [known[name] for name in labels]
    if len({len(v) for v in chosen}) != 1 or not all(len(v) and np.isfinite(v).all() for v in chosen):
        raise ConfigError(f"embeddings in {file.name} are not finite vectors of one length.")
    return np.stack(chosen)

"""Weights that a user has as a file: read without running anything that is in it, and put where they belong."""

from __future__ import annotations

import os
import pickle
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from neurobench import DataError, user_path

MOST_NAMES = 6
"""Names that an error lists of each kind."""


def existing(path: str | Path) -> Path:
    """Return a file of the user.

    Raises
    ------
    DataError
        If it is not there.
    """
    found = user_path(path)
    if not os.path.isfile(found):  # Of a name that is too long for a file Path.is_file raises.
        raise DataError(
            f"the weights file {found} {'is a folder' if os.path.isdir(found) else 'does not exist'}.",
            allowed="a .safetensors file, or a torch file that holds tensors and nothing else",
            next_step="Give its path: weights=PATH.",
        )
    return found


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors or torch file by name, on the CPU; nothing in the file is run.

    A torch file may hold them below a key such as ``state_dict`` or ``model``, as training scripts write them.

    Raises
    ------
    DataError
        If there is no such file, it cannot be read, or it holds objects instead of tensors.
    """
    path = existing(path)
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            tensors: dict[str, torch.Tensor] = load_file(path)
        except (SafetensorError, OSError, ValueError, LookupError, RuntimeError) as error:
            raise _unreadable(path, error) from error
        return tensors
    try:
        with warnings.catch_warnings():
            # Of a pickle that torch did not write: what it cannot read is refused all the same.
            warnings.simplefilter("ignore")
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # What damage makes of torch's reader is of no family.
        if not (isinstance(error, pickle.UnpicklingError) and _is_zip(path)):
            raise _unreadable(path, error) from error
        raise DataError(
            f"{path} holds more than tensors: reading it could run code that is in it, so it was not read.",
            allowed="a .safetensors file, or a torch file that holds tensors and nothing else",
            next_step="Where you trust it, save its state_dict() alone with safetensors.torch.save_file or torch.save.",
        ) from error
    return _tensors(path, found)


def _is_zip(path: Path) -> bool:
    """Whether a file is what torch writes today; of what it is not, an unreadable pickle says nothing."""
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _tensors(path: Path, found: object) -> dict[str, torch.Tensor]:
    while isinstance(found, Mapping):
        tensors = {str(k): v for k, v in found.items() if isinstance(v, torch.Tensor)}
        inner = next((found[k] for k in ("state_dict", "model_state_dict", "model") if k in found), None)
        if not isinstance(inner, Mapping):
            if tensors:
                return tensors
            break
        found = inner
    raise DataError(
        f"{path} holds no tensors by name.", next_step="Save the state_dict() of the model, and give that file."
    )


def _unreadable(path: Path, error: Exception) -> DataError:
    first = str(error).partition("\n")[0].rstrip(".")
    return DataError(
        f"{path} cannot be read as weights: {type(error).__name__}: {first}.",
        allowed="a .safetensors file, or a torch file that holds tensors and nothing else",
        next_step="Copy or download it again: it may have been cut short.",
    )


def load_weights(
    module: nn.Module,
    path: str | Path,
    *,
    prefixes: Sequence[str] = ("module.", "model.", "backbone."),
    left_out: Sequence[str] = (),
) -> None:
    """Put the weights of a file into a module, all of them or none.

    Parameters
    ----------
    module
        Whose names are those of the file.
    path
        As for :func:`read_weights`.
    prefixes
        What may stand before every name, as wrappers write it; the first that most names have is taken off.
    left_out
        Regular expressions of names in the file that have no place here: heads, embeddings of another kind of token.

    Raises
    ------
    DataError
        If anything is missing, of another shape, or not used.
    """
    own = module.state_dict()
    given = _without_prefix(read_weights(path), own, prefixes)
    problems = {
        "missing": sorted(own.keys() - given.keys()),
        "of another shape": [
            f"{name} {tuple(given[name].shape)} instead of {tuple(own[name].shape)}"
            for name in sorted(own.keys() & given.keys())
            if own[name].shape != given[name].shape
        ],
        "not used": sorted(n for n in given.keys() - own.keys() if not any(re.match(r, n) for r in left_out)),
    }
    said = [
        f"{len(names)} {what}: {', '.join(names[:MOST_NAMES])}{' …' if len(names) > MOST_NAMES else ''}"
        for what, names in problems.items()
        if names
    ]
    if said:
        raise DataError(
            f"the weights of {Path(path).name} do not fit: {'; '.join(said)}.",
            next_step="Give the file of this very model, or the model (and its depth) that the file is of.",
        )
    module.load_state_dict({name: given[name] for name in own})


def _without_prefix(
    given: dict[str, torch.Tensor], own: Mapping[str, torch.Tensor], prefixes: Sequence[str]
) -> dict[str, torch.Tensor]:
    """Return the weights by the names that fit best: as they are, or with one of the prefixes taken off."""
    forms = [given] + [{n.removeprefix(p): v for n, v in given.items()} for p in prefixes]
    return max(forms, key=lambda form: len(form.keys() & own.keys()))

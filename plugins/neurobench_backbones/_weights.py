"""Weights that a user has as a file: safetensors, or a torch file of which nothing but tensors is unpickled."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from neurobench import DataError

HOLDERS = ("state_dict", "model_state_dict", "model")
"""Where files that hold more than weights keep them; Lightning's is the first."""


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a weight file by name, on the CPU.

    Parameters
    ----------
    path
        A safetensors file, or a torch file that ``torch.load`` opens with ``weights_only=True``: a state dict, or a
        checkpoint that holds one beside other plain values, as Lightning's do.

    Raises
    ------
    DataError
        If there is no such file, if it is damaged, if it would have to run code to be read, or if it holds no tensor.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(
            f"the weight file {path} does not exist.",
            allowed="a safetensors file, or a torch file that holds a state dict",
            next_step="Give the path of the file that you downloaded.",
        )
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise _damaged(path, error) from error
    try:
        with warnings.catch_warnings():
            # Of a pickle that torch did not write: what it cannot read is refused all the same.
            warnings.simplefilter("ignore")
            held: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if zipfile.is_zipfile(path) or b"torch" in path.read_bytes()[:4096]:
            raise DataError(
                f"{path.name} holds more than tensors and plain values, and to read those means to run code from it: "
                f"{' '.join(str(error).split())[:160]}",
                next_step="Save its state dict alone, on a machine that you would trust it on: "
                "safetensors.torch.save_file(state_dict, 'weights.safetensors').",
            ) from error
        raise _damaged(path, error) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise _damaged(path, error) from error
    while isinstance(held, dict) and not any(isinstance(v, torch.Tensor) for v in held.values()):
        inner = next((held[k] for k in HOLDERS if isinstance(held.get(k), dict)), None)
        if inner is None:
            break
        held = inner
    tensors = {str(k): v for k, v in held.items() if isinstance(v, torch.Tensor)} if isinstance(held, dict) else {}
    if not tensors:
        raise DataError(
            f"{path.name} holds no weights.",
            allowed=f"tensors by name, or under {', '.join(HOLDERS)}",
            next_step="Save the state dict of the network.",
        )
    return tensors


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path.name} cannot be read as weights: {' '.join(str(error).split())[:160] or type(error).__name__}",
        allowed="a safetensors file, or a torch file that holds a state dict",
        next_step="Download or copy it again.",
    )

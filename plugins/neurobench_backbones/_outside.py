"""What backbones share that are somebody else's model: is its package here, and how tokens get in and out of it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from pathlib import Path

import torch
from torch import nn

from neurobench import user_path
from neurobench_backbones._weights import existing

EXTRA = "pretrained"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def without(package: str) -> str:
    """Return what is missing and how to get it, or an empty string; the package itself is not imported."""
    if importlib.util.find_spec(package) is not None:
        return ""
    return f"needs the package {package!r}. Get it with: pip install 'neurobench-fm[{EXTRA}]'"


def in_cache(name: str, *files: str) -> Path | None:
    """Return the first of some files that the local cache of the Hugging Face hub holds under a name, if any.

    Nothing is downloaded.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    with contextlib.suppress(HFValidationError):
        found = (try_to_load_from_cache(name, file) for file in files)
        return next((Path(path) for path in found if isinstance(path, str)), None)
    return None


def weights_of(text: str) -> Path:
    """Return the file of weights that a user names: a path, or a name in the local cache of the Hugging Face hub."""
    path = user_path(text)
    return (None if os.path.exists(path) else in_cache(text, *WEIGHTS)) or existing(path)


def way_in_and_out(width: int, inside: int, outside: int | None = None) -> tuple[nn.Linear, nn.Linear]:
    """Return linear maps from tokens of ``width`` to a model's own width and back.

    They start as a rotation and its inverse, so that a model whose blocks add to their input hands tokens on.

    Parameters
    ----------
    width
        Of a token here.
    inside
        Of a token that the model takes.
    outside
        Of a token that it gives, where that differs.
    """
    into, back = nn.Linear(width, inside), nn.Linear(outside or inside, width)
    nn.init.orthogonal_(into.weight)
    if back.weight.shape == into.weight.T.shape:
        back.weight.data.copy_(into.weight.data.T)
    nn.init.zeros_(into.bias)
    nn.init.zeros_(back.bias)
    return into, back


def seen_by_all(valid: torch.Tensor) -> torch.Tensor:
    """Return (sequences, length) which tokens attention may look at: where none is valid all, as softmax needs one."""
    return valid | ~valid.any(1, keepdim=True)

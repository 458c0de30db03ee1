"""Names of the parameters of NeuroSTORM's released code, and what they are called here.

The names are those that its public repository gives to the modules of ``NeuroSTORMMAE`` (models/neurostorm.py at commit
33df6fe, its feed-forward block being MONAI's, its mixer mamba-ssm's Mamba): read there, not from a released file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from neurobench import ConfigError

EMBED_DIM, DEPTHS = 36, (2, 2, 6, 2)
"""Width of the first stage, doubled by every merging, and blocks of the four stages on the way down; on the way up the
first three are passed again."""

PREFIXES = ("model.", "module.")
"""What Lightning and data parallelism put in front of a name."""

NOT_USED = re.compile(
    r"pos_embeds\..*|window_mask_token|atlas_mask_token|atlas_map|decoder_pred\..*|output_head\..*|.*\.prompt"
)
"""Has its own counterpart here: positions and times (on a grid of another origin), the masks' and prompts' tokens, the
decoder and the heads, which are the same for all backbones."""


def released_name(name: str) -> str:
    """Return what a parameter of the published size is called in the released code."""
    kind, _, rest = name.partition(".")
    if name == "hidden_token":
        return "mask_token"
    if kind == "value":
        return f"patch_embed.fc.{rest}"
    number, _, rest = rest.partition(".")
    n = len(DEPTHS)
    if kind == "layers":
        blocks = [("layers", i, j) for i in range(n) for j in range(DEPTHS[i])]
        blocks += [("layers_up", i, j) for i in range(n - 1) for j in range(DEPTHS[n - 2 - i])]
        way, stage, block = blocks[int(number)]
        return f"{way}.{stage}.blocks.{block}.{rest}"
    if kind == "merges":
        return f"layers.{number}.downsample.{rest}"
    if kind == "expands":
        stage = n - 3 - int(number)
        return f"first_patch_expanding.{rest}" if stage < 0 else f"layers_up.{stage}.upsample.{rest}"
    return name


def fitted(
    released: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Size], where: str
) -> dict[str, torch.Tensor]:
    """Return released weights by the names that they have here.

    Parameters
    ----------
    released
        As they are called in the file.
    wanted
        Every name that has to be found, as here, with its shape.
    where
        Name of the file, for messages.

    Raises
    ------
    ConfigError
        Unless everything is there in the right shape and nothing is left over; the message lists all three.
    """
    plain = {_without_prefix(k): v for k, v in released.items()}
    theirs = {released_name(k): (k, shape) for k, shape in wanted.items()}
    missing = [name for name in theirs if name not in plain]
    shapes = [
        f"{name} is {tuple(plain[name].shape)} and should be {tuple(shape)}"
        for name, (_, shape) in theirs.items()
        if name in plain and plain[name].shape != shape
    ]
    unused = [name for name in plain if name not in theirs and not NOT_USED.fullmatch(name)]
    if missing or shapes or unused:
        problems = [("missing", missing), ("of another shape", shapes), ("not used", unused)]
        told = "; ".join(f"{len(names)} {what}: {_some(names)}" for what, names in problems if names)
        raise ConfigError(
            f"{where} does not fit the published size: {told}.",
            allowed="the weights of NeuroSTORM's masked autoencoder, 36 wide, 2-2-6-2 blocks, Mamba",
            next_step="patch_embed.fc holds one frame of 6³ voxels: spacing_mm=2,patch_voxels=6 of the dataset, and "
            "--patch-s the repetition time."
            if any(s.startswith("patch_embed") for s in shapes)
            else "Give a checkpoint of its pretraining, not of another network.",
        )
    return {here: plain[name].float() for name, (here, _) in theirs.items()}


def _without_prefix(name: str) -> str:
    while name.startswith(PREFIXES):
        name = name.partition(".")[2]
    return name


def _some(names: list[str], n: int = 6) -> str:
    return ", ".join(names[:n]) + (f" and {len(names) - n} more" if len(names) > n else "")

"""A vision transformer of timm: its blocks mix tokens of units and patches instead of tokens of an image."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from neurobench import BackboneSpec, DataError, TokenBackbone, TokenTable, hookimpl
from neurobench_backbones._grid import mix_grid
from neurobench_backbones._outside import WEIGHTS, in_cache, seen_by_all, way_in_and_out, weights_of
from neurobench_backbones._weights import load_weights

GRIDS = ("flat", "factorised")
CACHE = "cache"

OF_IMAGES = ("patch_embed", "pos_embed", "cls_token", "dist_token", "reg_token", "mask_token", "rope", "norm_pre")
HEADS = ("head", "fc_norm", "attn_pool")


@functools.cache
def refused(model: str) -> str:
    """Return why a model of timm cannot be used here, or an empty string."""
    import timm

    if not timm.is_model(model):
        from difflib import get_close_matches

        likely = get_close_matches(model, timm.list_models("*vit*") + timm.list_models("*deit*"), 1)
        return f"timm has no model {model!r}" + (f"; did you mean {likely[0]!r}?" if likely else "")
    with torch.device("meta"):
        blocks = getattr(timm.create_model(model, num_classes=0), "blocks", None)
    if not isinstance(blocks, nn.Module) or "attn_mask" not in inspect.signature(blocks[0].forward).parameters:
        return (
            f"timm's {model!r} has no blocks that take any number of tokens and a mask of which are there; "
            "vision transformers do (vit_*, deit_*, eva02_*)"
        )
    return ""


def cached(model: str) -> Path:
    """Return the file of a model's weights in the local cache that timm downloads to.

    Raises
    ------
    DataError
        If it is not there; nothing is downloaded.
    """
    import timm

    known = timm.models.get_pretrained_cfg(model) if timm.is_model(model) else None
    if known is not None and known.hf_hub_id and (path := in_cache(known.hf_hub_id, *WEIGHTS)) is not None:
        return path
    raise DataError(
        f"the local cache of timm holds no weights of {model!r}, and nothing is downloaded here.",
        allowed=f"weights=PATH, or weights={CACHE} where timm has downloaded them",
        next_step=f"Where there is a network, timm.create_model({model!r}, pretrained=True) downloads them once.",
    )


class Timm(TokenBackbone):
    """Blocks of a transformer that timm knows by name, with linear maps from the width of a token to theirs and back.

    Parameters
    ----------
    model
        Name in timm, such as ``vit_tiny_patch16_224``, ``vit_small_patch14_dinov2``, ``eva02_tiny_patch14_224``.
    weights
        A .safetensors or torch file with its weights; ``cache``: those that timm has downloaded before. Empty: random.
        Embeddings of image patches and heads in it are left out, as nothing here is an image.
    grid
        ``flat``: every block attends over all units and patches of a window. ``factorised``: the first block along
        units, the second along time, and so on.
    depth
        The first so many blocks; 0 for all of them.
    """

    name = "timm"
    summary = "blocks of a named vision transformer of timm (model=…, weights=PATH)"
    reference = "doi:10.5281/zenodo.4414861; arXiv:2010.11929"
    budgeted = False
    check_with = {"depth": 1}  # noqa: RUF012

    def __init__(
        self,
        spec: BackboneSpec,
        *,
        model: str = "vit_tiny_patch16_224",
        weights: str = "",
        grid: str = "flat",
        depth: int = 0,
    ) -> None:
        super().__init__(spec)
        # Importing timm takes seconds, and every start imports this module.
        import timm

        net = timm.create_model(model, num_classes=0, **({"depth": depth} if depth else {}))
        self.into, self.back = way_in_and_out(spec.width, net.num_features)
        self.factorised = grid == "factorised"
        self.blocks = nn.ModuleList(net.blocks)
        self.norm_of_model = net.norm
        if weights:
            cut = [rf"blocks\.{i}\." for i in range(depth, 100)] if depth else []
            load_weights(
                nn.ModuleDict({"blocks": self.blocks, "norm": self.norm_of_model}),
                cached(model) if weights == CACHE else weights_of(weights),
                left_out=(*OF_IMAGES, *HEADS, *cut),
            )

    @classmethod
    def impossible(cls, spec: BackboneSpec, parameters: Mapping[str, Any]) -> str:
        """Return why there is no such model, grid or depth."""
        if parameters["grid"] not in GRIDS:
            return f"grid {parameters['grid']!r} is none of {', '.join(GRIDS)}"
        if parameters["depth"] < 0:
            return f"depth {parameters['depth']} is below 0"
        return refused(str(parameters["model"]))

    @classmethod
    def named_files(cls, parameters: Mapping[str, Any]) -> Mapping[str, Sequence[Path]]:
        """Return the file of the weights."""
        weights = str(parameters["weights"])
        if not weights:
            return {}
        return {"weights": [cached(str(parameters["model"])) if weights == CACHE else weights_of(weights)]}

    def mix(self, tokens: torch.Tensor, table: TokenTable) -> torch.Tensor:
        """Mix by the model's blocks."""
        x = self.into(tokens)
        if self.factorised:
            passes = [functools.partial(_attend, block) for block in self.blocks]
            pairs = [tuple(passes[i : i + 2]) for i in range(0, len(passes), 2)]
            if len(pairs[-1]) == 1:
                pairs[-1] = (*pairs[-1], _leave)
            x = mix_grid(x, table.where_valid, pairs)
        else:
            flat = x.flatten(1, 2)
            valid = None if table.where_valid is None else table.valid.flatten(1)
            for block in self.blocks:
                flat = _attend(block, flat, valid)
            x = flat.view(x.shape)
        mixed: torch.Tensor = self.back(self.norm_of_model(x)) * table.valid[..., None]
        return mixed


def _attend(block: nn.Module, tokens: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    """Apply a block to (sequences, length, width); tokens that are not valid are attended to by none."""
    mask = None if valid is None else seen_by_all(valid)[:, None, None, :]
    mixed: torch.Tensor = block(tokens, attn_mask=mask)
    return mixed


def _leave(tokens: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    return tokens


@hookimpl
def register_backbones() -> list[type[TokenBackbone]]:
    """Return the wrapper of timm."""
    return [Timm]

"""What is trained of a backbone on a task: all of it, or a few parameters beside one that is proved to stay as it is.

Prompts: Lester, Al-Rfou and Constant 2021, The power of scale for parameter-efficient prompt tuning (arXiv:2104.08691).
Low-rank updates: Hu et al. 2021, LoRA: low-rank adaptation of large language models (arXiv:2106.09685).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils import parametrize

from neurobench.components import Setting
from neurobench.contracts import Backbone
from neurobench.errors import PluginError

__all__ = ["Adapted", "LowRank", "adapt"]


@dataclass(frozen=True, eq=False)
class Adapted:
    """A backbone that is ready to be trained on a task.

    Parameters
    ----------
    backbone
        With what was added to it.
    added
        Parameters that were added; empty: everything is trained.
    before
        Digest of every parameter and buffer that may not change, by name.
    """

    backbone: Backbone
    added: tuple[nn.Parameter, ...] = ()
    before: dict[str, str] | None = None

    def verify(self) -> None:
        """Prove that what is frozen is, to the byte, what it was.

        Raises
        ------
        PluginError
            If a weight or a buffer changed, came or went, or was made trainable.
        """
        if self.before is None:
            return
        now = _digests(self.backbone, self.added)
        thawed = [n for n, t in _tensors(self.backbone, self.added) if t.requires_grad]
        changed = [n for n in {**self.before, **now} if self.before.get(n) != now.get(n)]
        for what, names in (("changed", changed), ("was made trainable", thawed)):
            if names:
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                raise PluginError(
                    f"backbone {self.backbone.name!r} does not stay frozen while it is adapted: "
                    f"{names[0]}{more} {what}.",
                    allowed="the parameters that were added, and no weight and no buffer besides",
                    next_step="`forward` may write into nothing of the backbone, in train mode neither: see "
                    f"`neurobench check {self.backbone.name}`.",
                )


def adapt(backbone: Backbone, how: Setting) -> Adapted:
    """Make a backbone ready to be trained on a task, in place; draws from torch's global generator.

    Parameters
    ----------
    backbone
        Pretrained, or fresh.
    how
        ``finetune``: everything is trained. ``prompt``: learned tokens. ``lora``: low-rank updates of linear
        layers. With the last two the backbone is frozen.

    Raises
    ------
    PluginError
        If there is nothing of the backbone that can be trained so.
    """
    if how.name == "finetune":
        return Adapted(backbone)
    backbone.requires_grad_(False)
    before = _digests(backbone, ())
    if how.name == "prompt":
        added = tuple(backbone.with_prompts(int(how.parameters["tokens"])))
    else:
        added = tuple(_low_rank_updates(backbone, int(how.parameters["rank"])))
    if not added:
        raise PluginError(
            f"backbone {backbone.name!r} has no linear layer that an update of rank {how.parameters['rank']} is "
            "smaller than.",
            next_step="Take a lower rank, or another adaptation.",
        )
    return Adapted(backbone, added, before)


# ---------------------------------------------------------------- low-rank updates


class LowRank(nn.Module):
    """A weight plus a product of two thin matrices; the product starts at zero.

    Parameters
    ----------
    weight
        (out, in), frozen.
    rank
        Rows of the one and columns of the other.
    """

    def __init__(self, weight: torch.Tensor, rank: int) -> None:
        super().__init__()
        n_out, n_in = weight.shape
        self.down = nn.Parameter((torch.randn(rank, n_in) * n_in**-0.5).to(weight.device))
        self.up = nn.Parameter(weight.new_zeros(n_out, rank))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the weight as layers see it."""
        return torch.addmm(weight, self.up, self.down)


def _low_rank_updates(backbone: Backbone, rank: int) -> Iterator[nn.Parameter]:
    """Give every linear layer whose weight is larger than its update one, and yield what is to be trained of it.

    A parametrization, not a wrapped layer: whoever reads ``layer.weight`` gets the updated one, as a fused scan does
    that multiplies by it itself.
    """
    for module in list(backbone.modules()):
        name = "in_proj_weight" if isinstance(module, nn.MultiheadAttention) else "weight"
        weight = getattr(module, name, None)
        if not isinstance(module, nn.Linear | nn.MultiheadAttention) or weight is None:
            continue
        if rank * sum(weight.shape) < weight.numel():
            update = LowRank(weight, rank)
            parametrize.register_parametrization(module, name, update)
            yield from update.parameters()


# ---------------------------------------------------------------- what is frozen


def _tensors(backbone: Backbone, added: Sequence[nn.Parameter]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the backbone's own parameters and buffers by the names that they have without parametrizations."""
    new = {id(p) for p in added}
    for tensors in (backbone.named_parameters(), backbone.named_buffers()):
        for name, tensor in tensors:
            if id(tensor) not in new:
                yield name.replace("parametrizations.", "").removesuffix(".original"), tensor


def _digests(backbone: Backbone, added: Sequence[nn.Parameter]) -> dict[str, str]:
    """Return a hash of the type, the shape and the bytes of every tensor, those of buffers that are not saved too."""
    found = {}
    for name, tensor in _tensors(backbone, added):
        plain = tensor.detach().cpu().contiguous()
        content = plain.reshape(-1).view(torch.uint8).numpy().tobytes()
        found[name] = hashlib.sha256(f"{plain.dtype}{tuple(plain.shape)}".encode() + content).hexdigest()
    return found

"""One pass of self-attention: timm's transformer block, invalid tokens left out."""

from __future__ import annotations

import torch
from torch import nn


class AttentionPass(nn.Module):
    """Self-attention and a feed-forward block over (sequences, length, width).

    Parameters
    ----------
    width
        Width of a token; heads have a width of at most 32.
    hidden
        Of the feed-forward block; None: four times the width, the budget of a pass.
    """

    def __init__(self, width: int, hidden: int | None = None) -> None:
        super().__init__()
        # Importing timm takes seconds, and every start imports this module.
        from timm.models.vision_transformer import Block

        self.block = Block(width, num_heads=max(2, width // 32), mlp_ratio=4.0, qkv_bias=True)
        if hidden is not None:
            from timm.layers import Mlp

            self.block.mlp = Mlp(width, hidden)

    def forward(self, tokens: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        """Mix tokens; those that are not valid are attended to by none. None: all are."""
        if valid is None:
            mixed: torch.Tensor = self.block(tokens)
            return mixed
        # A sequence without any valid token attends to itself: softmax over nothing is NaN.
        seen = valid | ~valid.any(1, keepdim=True)
        mixed = self.block(tokens, attn_mask=seen[:, None, None, :])
        return mixed * valid[..., None]

    def weights(self, tokens: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Return (sequences, length, length) attention, the mean over heads: rows sum to 1."""
        seen = valid | ~valid.any(1, keepdim=True)
        return self.shares(tokens, seen[:, None, None, :])

    def shares(self, tokens: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """Return the same; ``seen``, bool, broadcasts to (sequences, heads, length, length): who may be attended to."""
        attn = self.block.attn
        q, k, _ = attn.qkv(self.block.norm1(tokens)).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        logits = attn.q_norm(q) * attn.scale @ attn.k_norm(k).transpose(-1, -2)
        return logits.masked_fill(~seen, -torch.inf).softmax(-1).mean(1)

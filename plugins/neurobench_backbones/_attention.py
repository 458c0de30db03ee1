"""One pass of self-attention, invalid tokens left out; names and first weights are those of timm's transformer block.

The block itself is not timm's: importing that costs seconds and 190 MB in every process, nearly all of it for images.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

EPS = 1e-6


class Attention(nn.Module):
    """Self-attention of several heads over (sequences, length, width).

    Parameters
    ----------
    width
        Width of a token.
    num_heads
        How many heads share it.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, (width // num_heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def split(self, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return queries, keys and values, each (sequences, heads, length, width of a head)."""
        return self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def forward(self, tokens: torch.Tensor, seen: torch.Tensor | None = None) -> torch.Tensor:
        """Return what each token draws from the others; ``seen``, bool, broadcasts to (sequences, heads, to, from)."""
        drawn = F.scaled_dot_product_attention(*self.split(tokens), attn_mask=seen, scale=self.scale)
        mixed: torch.Tensor = self.proj(drawn.transpose(1, 2).flatten(2))
        return mixed


class FeedForward(nn.Module):
    """Two linear maps with a GELU between them.

    Parameters
    ----------
    width, hidden
        Outer and inner width.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the tokens, each changed by itself."""
        changed: torch.Tensor = self.fc2(F.gelu(self.fc1(tokens)))
        return changed


class Block(nn.Module):
    """Attention and a feed-forward block, each on normed tokens and added to them.

    Parameters
    ----------
    width
        Width of a token; heads have a width of at most 32.
    hidden
        Of the feed-forward block.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width, EPS), Attention(width, max(2, width // 32))
        self.norm2, self.mlp = nn.LayerNorm(width, EPS), FeedForward(width, hidden)

    def forward(self, tokens: torch.Tensor, seen: torch.Tensor | None = None) -> torch.Tensor:
        """Mix (sequences, length, width) tokens; ``seen`` as :class:`Attention` takes it."""
        tokens = tokens + self.attn(self.norm1(tokens), seen)
        mixed: torch.Tensor = tokens + self.mlp(self.norm2(tokens))
        return mixed


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
        self.block = Block(width, 4 * width if hidden is None else hidden)

    def forward(self, tokens: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        """Mix tokens; those that are not valid are attended to by none. None: all are."""
        if valid is None:
            mixed: torch.Tensor = self.block(tokens)
            return mixed
        # A sequence without any valid token attends to itself: softmax over nothing is NaN.
        seen = valid | ~valid.any(1, keepdim=True)
        mixed = self.block(tokens, seen[:, None, None, :])
        return mixed * valid[..., None]

    def weights(self, tokens: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Return (sequences, length, length) attention, the mean over heads: rows sum to 1."""
        seen = valid | ~valid.any(1, keepdim=True)
        return self.shares(tokens, seen[:, None, None, :])

    def shares(self, tokens: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """Return the same; ``seen``, bool, broadcasts to (sequences, heads, length, length): who may be attended to."""
        attn = self.block.attn
        q, k, _ = attn.split(self.block.norm1(tokens))
        logits = q * attn.scale @ k.transpose(-1, -2)
        return logits.masked_fill(~seen, -torch.inf).softmax(-1).mean(1)

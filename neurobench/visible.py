"""Encoding visible tokens alone, after masked autoencoders (doi:10.1109/CVPR52688.2022.01553).

A backbone that leaves hidden tokens out mixes the visible ones only. Units and patches without any visible token are
taken out of the grid first, window by window, so that where three quarters of the units or of the patches are hidden a
quarter of the work is left; what is hidden in the rest of the grid is not valid there. Afterwards hidden places get
their tokens from the visible ones by one light attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn

from neurobench.records import TokenTable

__all__ = ["FromVisible", "VisibleGrid"]


@dataclass(frozen=True, eq=False)
class VisibleGrid:
    """The smallest grid that holds the visible tokens of every window of a batch.

    A window keeps the units and the patches that have a visible token, in their order; what the largest window of the
    batch has more is filled up at the end with places that are not valid.

    Parameters
    ----------
    units, patches
        (batch, n) those that are kept, none twice; None: every window keeps all of them.
    table
        Token table of this grid, ``valid`` where a token is visible.
    n_hidden
        Hidden tokens of the batch.
    across, along
        Whether any hidden token has a visible one in its patch, and in its unit.
    """

    units: torch.Tensor | None
    patches: torch.Tensor | None
    table: TokenTable
    n_hidden: int
    across: bool
    along: bool

    @classmethod
    def of(cls, hidden: torch.Tensor, table: TokenTable) -> VisibleGrid:
        """Return the grid that (batch, units, patches) ``hidden`` leaves; waits for the device once."""
        visible = table.valid & ~hidden
        with_units, with_patches = visible.any(2), visible.any(1)
        told = (
            hidden.sum(),
            (hidden & with_patches[:, None]).any(),
            (hidden & with_units[:, :, None]).any(),
            with_units.all() & with_patches.all(),
            with_units.sum(1).max(),
            with_patches.sum(1).max(),
            visible.sum(),
        )
        n_hidden, across, along, whole, n_units, n_patches, n_visible = torch.stack(told).tolist()
        if whole:
            full = visible if n_visible == visible.numel() else None
            return cls(None, None, replace(table, valid=visible, whole=full), n_hidden, bool(across), bool(along))
        # Those with a visible token first, in their order; without any in the whole batch one place stays, not valid.
        units = (~with_units).long().argsort(dim=1, stable=True)[:, : max(1, n_units)]
        patches = (~with_patches).long().argsort(dim=1, stable=True)[:, : max(1, n_patches)]
        row = torch.arange(len(hidden), device=hidden.device)[:, None]
        valid = visible[row[:, :, None], units[:, :, None], patches[:, None]]
        full = valid if n_visible == valid.numel() else None
        small = replace(table.map(lambda x: x[row, units]), valid=valid, whole=full)
        return cls(units, patches, small, n_hidden, bool(across), bool(along))

    def gather(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the tokens of this grid out of (batch, units, patches, width), zeros where they are not valid."""
        if self.units is not None:
            index = self._flat(tokens.shape[1], tokens.shape[2])
            tokens = tokens.flatten(0, 2).index_select(0, index).view(*self.table.valid.shape, -1)
        return tokens * self.table.valid[..., None]

    def spread(self, tokens: torch.Tensor, n_units: int = 0, n_patches: int = 0) -> torch.Tensor:
        """Return tokens of this grid at their places in one of so many units and patches, zeros elsewhere.

        Parameters
        ----------
        tokens
            (batch, units, patches, width) of this grid.
        n_units, n_patches
            Sizes of the whole grid; 0: that axis stays as it is.
        """
        if self.units is None:
            return tokens
        n_batch, k, m, width = tokens.shape
        shape = (n_batch, n_units or k, n_patches or m, width)
        index = self._flat(n_units, n_patches)
        return tokens.new_zeros(shape).flatten(0, 2).index_copy(0, index, tokens.flatten(0, 2)).view(shape)

    def _flat(self, n_units: int, n_patches: int) -> torch.Tensor:
        """Return where the places of this grid lie in a flattened one of these sizes; 0: that axis stays as it is."""
        assert self.units is not None
        assert self.patches is not None
        units, patches = (
            index if n else torch.arange(index.shape[1], device=index.device).expand_as(index)
            for n, index in ((n_units, self.units), (n_patches, self.patches))
        )
        first = torch.arange(len(units), device=units.device)[:, None] * (n_units or units.shape[1])
        return ((first + units)[:, :, None] * (n_patches or patches.shape[1]) + patches[:, None]).flatten()


class FromVisible(nn.Module):
    """Gives hidden places their tokens: one attention to visible tokens.

    A hidden place asks with its embedding: the token that stands for a hidden value, its unit, group, position and
    time. It is answered by the visible tokens of its patch, those of its unit, and the mean of all visible ones.
    Queries and keys are narrow and values are the tokens themselves; a projection of what comes out, which lets tokens
    count negatively, has most of the parameters. Together they add at most 6 % to those of the passes.

    Parameters
    ----------
    width
        Width of a token.
    n_layers
        Layers of the backbone: with one, queries and keys have an eighth of the width, with more a quarter.
    """

    def __init__(self, width: int, n_layers: int) -> None:
        super().__init__()
        self.n_heads = max(2, width // 32)
        narrow = width * min(n_layers, 2) // 8
        self.norm_visible = nn.LayerNorm(width)
        self.norm_hidden = nn.LayerNorm(width)
        self.query = nn.Linear(width, narrow, bias=False)
        self.key = nn.Linear(width, narrow, bias=False)
        self.out = nn.Linear(width, width)

    def forward(
        self, embedded: torch.Tensor, mixed: torch.Tensor, hidden: torch.Tensor, grid: VisibleGrid
    ) -> torch.Tensor:
        """Return (batch, units, patches, width): the mixed tokens where visible, answers where hidden, else zeros.

        Parameters
        ----------
        embedded
            (batch, units, patches, width) embeddings of all places.
        mixed
            (batch, n units, n patches, width) what the backbone made of the tokens of ``grid``.
        hidden
            (batch, units, patches) bool.
        grid
            Where the mixed tokens lie.
        """
        mixed = mixed * grid.table.valid[..., None]
        tokens = grid.spread(mixed, *hidden.shape[1:])
        if not grid.n_hidden:
            return tokens
        places = hidden.flatten().nonzero()[:, 0]
        asked, answered = (
            x.flatten(0, 2).index_select(0, places) for x in (embedded, self._answers(embedded, mixed, grid))
        )
        filled = asked + self.out(answered)
        return tokens.flatten(0, 2).index_copy(0, places, filled.to(tokens.dtype)).view(tokens.shape)

    def _answers(self, embedded: torch.Tensor, mixed: torch.Tensor, grid: VisibleGrid) -> torch.Tensor:
        """Return (batch, units, patches, width) what every place draws from the visible tokens."""
        valid = grid.table.valid[..., None]
        values = self.norm_visible(mixed) * valid
        mean = values.sum((1, 2)) / valid.sum((1, 2)).clamp(min=1)
        query = self._heads(self.query(self.norm_hidden(embedded)))
        query = query * query.shape[-1] ** -0.5
        # The mean comes first: where no other token can answer it does, and softmax is never over nothing.
        logits = [torch.einsum("buphd,bhd->buph", query, self._heads(self.key(mean)))[..., None]]
        answers = [self._heads(mean)[:, None, None, None]]
        equations = ["buphk,bupkhd->buphd"]
        for pattern, some, seen in self._axes(values, embedded, grid):
            asked = torch.einsum(f"buphd,{pattern}hd->buphk", query, self._heads(self.key(some)))
            logits.append(asked.masked_fill(~seen, -torch.inf))
            answers.append(self._heads(some))
            equations.append(f"buphk,{pattern}hd->buphd")
        weights = torch.split(torch.cat(logits, -1).softmax(-1), [x.shape[-1] for x in logits], -1)
        answer = sum(torch.einsum(*each) for each in zip(equations, weights, answers, strict=True))
        assert isinstance(answer, torch.Tensor)
        return answer.flatten(-2)

    @staticmethod
    def _axes(
        values: torch.Tensor, embedded: torch.Tensor, grid: VisibleGrid
    ) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
        """Yield, for both axes in which a hidden place has visible tokens, how those are indexed, they, and which are.

        The latter has the shape of (batch, units, patches, heads, tokens), or broadcasts to it.
        """
        n_units, n_patches = embedded.shape[1:3]
        valid = grid.table.valid[..., None]
        if grid.across:
            seen = grid.spread(valid, 0, n_patches)[..., 0].transpose(1, 2)[:, None, :, None]
            yield "bkp", grid.spread(values, 0, n_patches), seen
        if grid.along:
            seen = grid.spread(valid, n_units, 0)[:, :, None, None, :, 0]
            yield "buk", grid.spread(values, n_units, 0), seen

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(*x.shape[:-1], self.n_heads, -1)

"""Tokens of a volume on their 4-D grid, sorted into windows and merged with their neighbours.

Background patches are no units, a batch may hold any of the units in any order, and any token may be missing: so all of
this works on the list of the tokens that are there. Where a token stands among them follows from its place alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F

from neurobench import DataError, TokenTable, UnitTable


@lru_cache(maxsize=8)
def cells_of(units: UnitTable) -> torch.Tensor:
    """Return (units, 3) the place of every unit on the grid of patches, from 0; its edge is the smallest step.

    Raises
    ------
    DataError
        If the units are no patches of one grid.
    """
    position = units.position_mm.astype(np.float64)
    if not units.has_positions:
        raise DataError("units without a position have no place on a grid.", next_step="Use a dataset's signal=volume.")
    steps = np.concatenate([np.diff(np.unique(axis.round(2))) for axis in position.T])
    cell = (position - position.min(0)) / (steps.min() if len(steps) else 1.0)
    if np.abs(cell - cell.round()).max() > 0.1:
        raise DataError(
            f"{len(units)} units lie on no common grid, so there are no windows of neighbours.",
            allowed="patches of a volume",
            next_step="Use a dataset's signal=volume.",
        )
    return torch.from_numpy(cell.round().astype(np.int64))


def _number(digits: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """Return (n,) one number for every row of (n, digits) whole numbers below ``sizes``: equal rows, equal numbers."""
    number = digits[:, 0]
    for digit, size in zip(digits.T[1:], sizes[1:], strict=True):
        number = number * size + digit
    return number


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows of one pass with about as many tokens each, and where the tokens stand in them.

    Parameters
    ----------
    tokens, place
        (tokens,) which tokens of the level these are, and window · length + place in it of each.
    n, length
        Number of windows, and room for tokens in each.
    batch, time
        (windows,) whose window it is, and its first patch, which may lie before the first one there is.
    edge
        Patches along a side, in time as in space.
    """

    tokens: torch.Tensor
    place: torch.Tensor
    n: int
    length: int
    batch: torch.Tensor
    time: torch.Tensor
    edge: int

    def gather(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (windows, length, width) tokens in scan order, zeros at the end, and which of them are tokens."""
        flat = tokens.new_zeros(self.n * self.length, tokens.shape[-1])
        flat = flat.index_copy(0, self.place, tokens.index_select(0, self.tokens))
        there = torch.zeros(len(flat), dtype=torch.bool, device=tokens.device).index_fill(0, self.place, True)
        return flat.view(self.n, self.length, -1), there.view(self.n, self.length)

    def spread(self, windows: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Return the level's (tokens, width), those of these windows out of (windows, length, width)."""
        return tokens.index_copy(0, self.tokens, windows.flatten(0, 1).index_select(0, self.place).to(tokens.dtype))

    def gather_prompts(
        self, prompts: torch.Tensor, valid: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the prompts of every window: those of its person and its patches.

        Parameters
        ----------
        prompts
            (batch, prompts, patches, width).
        valid
            (batch, prompts, patches) bool: not in padding.

        Returns
        -------
        tokens, there, index
            (windows, prompts · edge, width), whether a patch is one, and its place in the flattened prompts.
        """
        n_batch, k, n_patches, width = prompts.shape
        patch = self.time[:, None] + torch.arange(self.edge, device=prompts.device)
        there = ((patch >= 0) & (patch < n_patches))[:, None].expand(-1, k, -1).flatten(1)
        which = self.batch[:, None] * k + torch.arange(k, device=prompts.device)
        index = (which[:, :, None] * n_patches + patch.clamp(0, n_patches - 1)[:, None]).flatten(1)
        there = there & valid.reshape(-1)[index]
        tokens = prompts.reshape(n_batch * k * n_patches, width)[index] * there[..., None]
        return tokens, there, index


@dataclass(frozen=True, eq=False)
class Level:
    """The tokens that are there, at one level of merging, each with its place.

    Parameters
    ----------
    at
        (tokens, 5): whose it is, its cell along three axes, its patch.
    extent
        (5,) how many of each there can be, whoever is in the batch.
    """

    at: torch.Tensor
    extent: torch.Tensor

    @classmethod
    def of(cls, table: TokenTable, there: torch.Tensor, n_patches: int) -> Level:
        """Return the tokens that are ``there``, (batch, units, patches) bool, in the order of the table."""
        cells = cells_of(table.units).to(there.device)
        batch, unit, patch = there.nonzero(as_tuple=True)
        at = torch.cat([batch[:, None], cells[table.unit[batch, unit]], patch[:, None]], 1)
        sizes = [len(there), *(cells.amax(0) + 1).tolist(), n_patches]
        return cls(at, torch.tensor(sizes, device=there.device))

    def take(self, index: torch.Tensor) -> Level:
        """Return some of the tokens."""
        return replace(self, at=self.at[index])

    def windows(self, edge: int, shifted: bool) -> tuple[Windows, ...]:
        """Sort tokens into windows of ``edge`` patches along all four axes, full ones apart from emptier ones.

        Shifted, borders lie half a window further down. The windows at the ends are then smaller; nothing is rolled
        from one end to the other. An axis that fits into one window is not shifted. In a window, time runs fastest.
        """
        shift = (self.extent[1:] > edge) * (edge // 2) * shifted
        moved = self.at[:, 1:] + shift
        window = torch.cat([self.at[:, :1], moved // edge], 1)
        n_windows = torch.cat([self.extent[:1], (self.extent[1:] + shift - 1) // edge + 1])
        key = _number(window, n_windows) * edge**4 + _number(moved % edge, torch.full_like(shift, edge))
        order = key.argsort(stable=True)
        _, row, count = torch.unique_consecutive(key[order] // edge**4, return_inverse=True, return_counts=True)
        first = count.cumsum(0) - count
        slot = torch.arange(len(order), device=order.device) - first[row]
        longest = int(count.max())
        # Most windows at the brain's edge hold few tokens, and padding them to the fullest would be most of the work.
        worth = len(count) * longest > 2 * len(order)
        lengths = sorted({max(1, longest // 4), max(1, longest // 2), longest}) if worth else [longest]
        size = torch.bucketize(count, torch.tensor(lengths, device=count.device))
        found = []
        for i, length in enumerate(lengths):
            rows, mine = (size == i).nonzero()[:, 0], (size[row] == i).nonzero()[:, 0]
            if len(rows):
                number = torch.empty_like(count).index_copy(0, rows, torch.arange(len(rows), device=rows.device))
                heads = window[order[first[rows]]]
                place = number[row[mine]] * length + slot[mine]
                batch, time = heads[:, 0], heads[:, 4] * edge - shift[3]
                found.append(Windows(order[mine], place, len(rows), length, batch, time, edge))
        return tuple(found)

    def merged(self) -> tuple[Level, torch.Tensor, torch.Tensor]:
        """Return the level whose cells are cubes of 2³, which of its tokens each token is in, and at which corner."""
        up = self.at.clone()
        up[:, 1:4] //= 2
        extent = self.extent.clone()
        extent[1:4] = (extent[1:4] + 1) // 2
        keys, parent = torch.unique(_number(up, extent), return_inverse=True)
        at = torch.empty(len(keys), 5, dtype=torch.int64, device=keys.device).index_copy(0, parent, up)
        corner = _number(self.at[:, 1:4] % 2, torch.full_like(extent[1:4], 2))
        return Level(at, extent), parent, corner

    def redundancy(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return (tokens,) how like its most similar neighbour a token is, 0 to 1.

        Neighbours are the token before and after of the same cell, and the six cells around in the same patch;
        likeness is the cosine of the normalised tokens. Without a neighbour it is 0.
        """
        like = F.normalize(F.layer_norm(tokens.detach().float(), tokens.shape[-1:]), dim=-1)
        # A margin, so that the neighbour of the last place of an axis is not the first of the next.
        sizes = self.extent + 1
        key, order = _number(self.at, sizes).sort()
        most = like.new_zeros(len(like))
        for axis in range(1, 5):
            step = sizes[axis + 1 :].prod()
            found = torch.searchsorted(key, key + step).clamp(max=len(key) - 1)
            one, other = order, order[found]
            cosine = (like[one] * like[other]).sum(-1).clamp(0, 1) * (key[found] == key + step)
            most = most.scatter_reduce(0, one, cosine, "amax").scatter_reduce(0, other, cosine, "amax")
        return most

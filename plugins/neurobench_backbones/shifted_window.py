"""Shifted windows: Mamba, or attention, inside 4-D windows of a volume, cubes merged and expanded again.

After NeuroSTORM (arXiv:2506.11167): windows of 4 × 4 × 4 patches and 4 time patches, every second pass shifted by half
a window, eight cells merged into one between stages. Three things are done otherwise: nothing wraps around from one
side of the brain to the other, background is no token, and outside the published size each scan runs both ways.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from neurobench import PARAMETERS_PER_PASS, BackboneSpec, NeurobenchError, TokenBackbone, TokenTable, hookimpl
from neurobench_backbones._attention import AttentionPass
from neurobench_backbones._mamba1 import Mamba1
from neurobench_backbones._mamba2 import MambaPass
from neurobench_backbones._neurostorm import DEPTHS, EMBED_DIM, fitted
from neurobench_backbones._weights import existing, read_weights
from neurobench_backbones._windows import Level, Windows

SIZES, MIXERS = ("profile", "published"), ("mamba", "attention")
EMBEDDING = ("value.weight", "value.bias", "hidden_token")
FRAME = 6**3
"""Values of a token of the published network: one frame of 6³ voxels."""


class ReleasedPass(nn.Module):
    """The published block: one causal Mamba-1 scan and a feed-forward block, names as in the released code.

    Parameters
    ----------
    width
        Width of a token.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.mamba = Mamba1(width, expand=2)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"linear1": nn.Linear(width, 4 * width), "linear2": nn.Linear(4 * width, width)})

    def forward(self, tokens: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Mix (windows, length, width); tokens that are not valid influence none."""
        tokens = tokens + self.mamba(self.norm1(tokens) * valid[..., None], valid)
        wide = nn.functional.gelu(self.mlp["linear1"](self.norm2(tokens)))
        return (tokens + self.mlp["linear2"](wide)) * valid[..., None]


class Merge(nn.Module):
    """Eight cells to one of twice the width.

    Parameters
    ----------
    width
        Width before.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8 * width)
        self.reduction = nn.Linear(8 * width, 2 * width, bias=False)

    def forward(self, corners: torch.Tensor) -> torch.Tensor:
        """Return (…, 2 width) of (…, 8, width)."""
        merged: torch.Tensor = self.reduction(self.norm(corners.flatten(-2)))
        return merged


class Expand(nn.Module):
    """One cell to eight of half the width.

    Parameters
    ----------
    width
        Width before.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, 4 * width, bias=False)
        self.norm = nn.LayerNorm(width // 2)

    def forward(self, merged: torch.Tensor) -> torch.Tensor:
        """Return (…, 8, width / 2) of (…, width)."""
        corners: torch.Tensor = self.norm(self.expand(merged).unflatten(-1, (8, -1)))
        return corners


def stages_of(spec: BackboneSpec) -> tuple[tuple[int, ...], int]:
    """Return the passes of every stage, and the width of the first: a doubling per stage fills the common budget.

    Two stages at least, four at most, one a layer; further layers go to the third, as in the published network.
    """
    n = min(4, max(2, spec.n_layers))
    depths = [1, 1] if spec.n_layers == 1 else [2] * n
    if spec.n_layers > n:
        depths[2] += 2 * (spec.n_layers - n)
    passes = PARAMETERS_PER_PASS * sum(d * 4**i for i, d in enumerate(depths))
    merging = 32 * sum(4**i for i in range(n - 1))
    budget = 2 * spec.n_layers * PARAMETERS_PER_PASS * spec.width**2
    first = (budget / (passes + merging)) ** 0.5
    step = 16 if first < 64 else 32
    return tuple(depths), max(16, int(first // step) * step)


class ShiftedWindow(TokenBackbone):
    """Passes inside 4-D windows, every second one shifted by half a window; cubes of eight cells merge between stages.

    Stages follow the profile within the common budget, widths doubling from one to the next; on the way back merged
    cells are expanded and added to what they were made of. ``size=published`` is the published network instead: four
    stages of 2, 2, 6 and 2 passes, 36 to 288 wide, one-way Mamba-1, expanded through 6, 2 and 2 more passes, nothing
    added: about 7.5 million parameters besides the embedding, whatever the profile. A token cap below the volume's
    tokens gives each window a spread-out part of the patches, and so few neighbours: see ``patch_voxels`` of the
    dataset.

    Parameters
    ----------
    mixer
        ``mamba`` or ``attention``.
    window
        Patches along a side of a window, in time too.
    drop
        In training, tokens are left out of a pass with this probability × their likeness to the most similar neighbour
        in space or time (0 to 1): they are not seen and not changed by it, and keep their token.
    size
        ``profile``: common budget. ``published``: not; needs a width of 36 at least.
    checkpoint
        File with released weights to start from, for ``size=published``: safetensors, or a torch file. Units,
        positions and times have their own embeddings here, which then start at zero. ``docs/neurostorm.md`` says what
        of this was verified.
    """

    name = "shifted_window"
    summary = "Mamba (or attention) in shifted 4-D windows of a volume, merging cubes between stages"
    reference = "arXiv:2506.11167; windows: arXiv:2103.14030, arXiv:2307.05916"
    signals = ("volume",)

    def __init__(
        self,
        spec: BackboneSpec,
        *,
        mixer: str = "mamba",
        window: int = 4,
        drop: float = 0.0,
        size: str = "profile",
        checkpoint: str = "",
    ) -> None:
        super().__init__(spec)
        self.window, self.drop, self.published = window, drop, size == "published"
        depths, first = (DEPTHS, EMBED_DIM) if self.published else stages_of(spec)
        back = depths[-2::-1] if self.published else (0,) * (len(depths) - 1)
        widths = [first * 2**i for i in range(len(depths))]
        # Which passes each stage has, on the way down and, from the last stage but one, on the way back up.
        ends = [0, *itertools.accumulate([*depths, *back])]
        self.spans = [range(low, high) for low, high in itertools.pairwise(ends)]
        of_passes = [w for w, span in zip([*widths, *widths[-2::-1]], self.spans, strict=True) for _ in span]
        self.reduce, self.restore = nn.Linear(spec.width, first), nn.Linear(first, spec.width)
        self.merges = nn.ModuleList(Merge(w) for w in widths[:-1])
        self.expands = nn.ModuleList(Expand(w) for w in widths[1:])
        if self.published:
            released = AttentionPass if mixer == "attention" else ReleasedPass
            self.layers = nn.ModuleList(released(w) for w in of_passes)
            self.norm_up = nn.LayerNorm(first)
            # Orthogonal, so that a checkpoint's narrower patch embedding can be turned into the one before it.
            nn.init.orthogonal_(self.reduce.weight)
            nn.init.zeros_(self.reduce.bias)
        else:
            ratio = _feedforward_ratio(spec, mixer)
            self.layers = nn.ModuleList(_pass(mixer, w, _hidden(w, ratio)) for w in of_passes)
        if checkpoint:
            self._start_from(checkpoint)

    @classmethod
    def impossible(cls, spec: BackboneSpec, parameters: Mapping[str, Any]) -> str:
        """Return why these parameters do not fit each other or the profile, or an empty string."""
        for name, allowed in (("size", SIZES), ("mixer", MIXERS)):
            if parameters[name] not in allowed:
                return f"{name}={parameters[name]}: it may be {' or '.join(allowed)}"
        if parameters["window"] < 2:
            return f"window={parameters['window']}: a window is 2 patches at least along a side"
        if not 0 <= parameters["drop"] < 1:
            return f"drop={parameters['drop']}: a probability, 0 or more and below 1"
        if parameters["size"] == "published":
            if spec.width < EMBED_DIM:
                return f"size=published needs a width of {EMBED_DIM}, and has {spec.width}: use --profile cpu or full"
            return _unfit(str(parameters["checkpoint"]), spec, parameters["mixer"]) if parameters["checkpoint"] else ""
        if parameters["checkpoint"]:
            return "checkpoint needs size=published: released weights fit no other size"
        if _feedforward_ratio(spec, parameters["mixer"]) < 0.25:
            return f"width {spec.width} leaves no room for windows of {len(stages_of(spec)[0])} stages in the budget"
        return ""

    @classmethod
    def keeps_budget(cls, parameters: Mapping[str, Any]) -> bool:
        """Return whether it has the size of the profile, not the published one."""
        return bool(parameters["size"] != "published")

    @classmethod
    def named_files(cls, parameters: Mapping[str, Any]) -> Mapping[str, Sequence[Path]]:
        """Return the file of the checkpoint."""
        return {"checkpoint": [existing(parameters["checkpoint"])]} if parameters["checkpoint"] else {}

    def mix(self, tokens: torch.Tensor, table: TokenTable) -> torch.Tensor:
        """Pass through windows, down to the last stage and back up; a unit of -1 is a prompt."""
        prompt = (table.unit[0] < 0).nonzero()[:, 0]
        there = table.valid & (table.unit >= 0)[..., None]
        level = Level.of(table, there, self.spec.n_patches)
        if not len(level.at):
            return tokens
        index = there.flatten().nonzero()[:, 0]
        asked = table.valid[:, prompt]
        reduced = self.reduce(tokens).to(tokens.dtype)
        x, prompts = reduced.flatten(0, 2)[index], reduced[:, prompt]
        before = []
        for stage, merge in enumerate(self.merges):
            x, prompts = self._through(self.spans[stage], level, x, prompts, asked)
            above, parent, corner = level.merged()
            place = parent * 8 + corner
            before.append((level, x, prompts, place))
            x, prompts = self._merged(merge, x, prompts, place, len(above.at))
            level = above
        n_stages = len(before) + 1
        x, prompts = self._through(self.spans[n_stages - 1], level, x, prompts, asked)
        for expand, (level, skipped, skipped_prompts, place), span in zip(
            self.expands[::-1], before[::-1], self.spans[n_stages:], strict=True
        ):
            x, prompts = expand(x).flatten(0, 1)[place].to(x.dtype), expand(prompts).mean(-2).to(x.dtype)
            if not self.published:
                x, prompts = x + skipped, prompts + skipped_prompts
            x, prompts = self._through(span, level, x, prompts, asked)
        mixed = reduced.new_zeros(reduced.shape).flatten(0, 2).index_copy(0, index, x).view(reduced.shape)
        mixed = mixed.index_copy(1, prompt, prompts)
        mixed = self.restore(self.norm_up(mixed)) if self.published else tokens + self.restore(mixed)
        return mixed * table.valid[..., None]

    def _through(
        self, span: range, level: Level, x: torch.Tensor, prompts: torch.Tensor, asked: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens and prompts after some passes, every second one of all being shifted.

        ``asked``: (batch, prompts, patches) where prompts are no padding.
        """
        sorted_once: dict[bool, Sequence[Windows]] = {}
        for i in span:
            shifted = i % 2 == 1
            if self.training and self.drop > 0:
                chance = torch.rand(len(x), device=x.device)
                kept = (chance >= self.drop * level.redundancy(x)).nonzero()[:, 0]
                if len(kept):
                    windows = level.take(kept).windows(self.window, shifted)
                    some, prompts = _in_windows(self.layers[i], windows, x[kept], prompts, asked)
                    x = x.index_copy(0, kept, some)
                continue
            if shifted not in sorted_once:
                sorted_once[shifted] = level.windows(self.window, shifted)
            x, prompts = _in_windows(self.layers[i], sorted_once[shifted], x, prompts, asked)
        return x, prompts

    @staticmethod
    def _merged(
        merge: nn.Module, x: torch.Tensor, prompts: torch.Tensor, place: torch.Tensor, n: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the tokens of the next level, corners that are not there being zeros; a prompt is at all corners."""
        corners = x.new_zeros(8 * n, x.shape[1]).index_add(0, place, x)
        # Two units of another cohort may meet one place: they share it.
        corners = corners / torch.bincount(place, minlength=8 * n).clamp(min=1)[:, None]
        merged = merge(corners.view(n, 8, -1)).to(x.dtype)
        return merged, merge(prompts[..., None, :].expand(*prompts.shape[:-1], 8, -1)).to(x.dtype)

    def _start_from(self, checkpoint: str) -> None:
        """Load released weights; the embedding is wider than theirs, and turned so that reduced it is theirs."""
        found = fitted(read_weights(checkpoint), self._released_shapes(self.spec.n_features), Path(checkpoint).name)
        for name in EMBEDDING:
            found[name] = self.reduce.weight.detach().T @ found[name]
        # Random identities would be noise to passes that were trained without them.
        for start in (self.unit_embedding.weight, self.group_embedding.weight, self.time_embedding):
            nn.init.zeros_(start)
        for parameter in self.position.parameters():
            nn.init.zeros_(parameter)
        self.load_state_dict(self.state_dict() | found)

    def _released_shapes(self, n_features: int) -> dict[str, torch.Size]:
        """Return the shape of everything that a checkpoint has to hold, by the names here."""
        theirs = ("layers.", "merges.", "expands.", "norm_up.")
        shapes = {k: v.shape for k, v in self.state_dict().items() if k.startswith(theirs)}
        embedding = (EMBED_DIM, n_features), (EMBED_DIM,), (EMBED_DIM,)
        return shapes | {name: torch.Size(shape) for name, shape in zip(EMBEDDING, embedding, strict=True)}


def _unfit(checkpoint: str, spec: BackboneSpec, mixer: str) -> str:
    """Return why a checkpoint cannot be started from, whatever the data are, or an empty string."""
    if mixer != "mamba":
        return "a released checkpoint is of mixer=mamba"
    with torch.device("meta"):
        shapes = ShiftedWindow(spec, size="published")._released_shapes(FRAME)
    try:
        fitted(read_weights(checkpoint), shapes, Path(checkpoint).name)
    except NeurobenchError as error:
        return str(error)
    return ""


def _in_windows(
    layer: nn.Module, windows: Sequence[Windows], x: torch.Tensor, prompts: torch.Tensor, asked: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tokens and prompts after a pass inside windows.

    A prompt is in every window of its person and time, and changes by the mean of what they make of it.
    """
    flat = prompts.flatten(0, 2)
    change, count = torch.zeros_like(flat), flat.new_zeros(len(flat), 1)
    for some in windows:
        packed, valid = some.gather(x)
        if not prompts.shape[1]:
            x = some.spread(layer(packed, valid), x)
            continue
        asking, there, index = some.gather_prompts(prompts, asked)
        mixed = layer(torch.cat([asking, packed], 1), torch.cat([there, valid], 1)).to(x.dtype)
        n, index, there = asking.shape[1], index.flatten(), there.flatten()[:, None].to(x.dtype)
        change = change.index_add(0, index, (mixed[:, :n] - asking).flatten(0, 1) * there)
        count = count.index_add(0, index, there)
        x = some.spread(mixed[:, n:], x)
    return x, (flat + change / count.clamp(min=1)).view(prompts.shape)


def _pass(mixer: str, width: int, hidden: int) -> nn.Module:
    return AttentionPass(width, hidden) if mixer == "attention" else MambaPass(width, hidden=hidden)


def _hidden(width: int, ratio: float) -> int:
    return max(4, round(ratio * width / 4) * 4)


def _feedforward_ratio(spec: BackboneSpec, mixer: str) -> float:
    """Return hidden over outer width of the feed-forward blocks with which all passes together meet the budget."""
    depths, first = stages_of(spec)
    widths = [first * 2**i for i in range(len(depths))]
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        parts = [Merge(w) for w in widths[:-1]] + [Expand(w) for w in widths[1:]]
        spent = sum(_count(m) for m in parts) + 2 * spec.width * first + spec.width + first
        # A feed-forward block of 8: 2 · 8 · width weights and its biases.
        spent += sum(d * (_count(_pass(mixer, w, 8)) - 16 * w - 8) for w, d in zip(widths, depths, strict=True))
    left = 2 * spec.n_layers * PARAMETERS_PER_PASS * spec.width**2 - spent
    return left / sum(2 * d * w**2 for w, d in zip(widths, depths, strict=True))


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@hookimpl
def register_backbones() -> list[type[TokenBackbone]]:
    """Return shifted windows."""
    return [ShiftedWindow]

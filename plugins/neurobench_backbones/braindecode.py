"""Pretrained models of EEG from braindecode: their patch embedding and their layers, on the (units × patches) grid.

LaBraM: arXiv:2405.18765; BIOT: arXiv:2305.10351; EEGPT: NeurIPS 2024; CBraMod: arXiv:2412.07236.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from neurobench import Backbone, BackboneSpec, SensorEmbedding, TokenTable, hookimpl
from neurobench_backbones._outside import weights_of, without
from neurobench_backbones._weights import load_weights

PACKAGE = "braindecode"
HEADS = ("final_layer", "head", "fc_norm", "mask_token", "lm_head", "chan_proj", "chans_id")


class Tokens(nn.Module):
    """A model as two maps: from signal to tokens of every unit and patch, and from tokens to tokens.

    Embeddings of electrodes by name and of places in time by number are left out: units here are any sensors or
    regions, and get an identity of their own.

    Attributes
    ----------
    patch, width
        Samples of one of its patches; width of its tokens.
    layers
        Before the number of a layer in the names of its weights.
    electrodes
        What of its weights belongs to electrodes.
    """

    patch: int
    width: int
    layers: str
    electrodes: Sequence[str] = ()

    @abstractmethod
    def embed(self, patches: torch.Tensor) -> torch.Tensor:
        """Map (batch, units, patches, samples) to (batch, units, patches, width)."""

    @abstractmethod
    def mix(self, tokens: torch.Tensor) -> torch.Tensor:
        """Mix (batch, units, patches, width); same shape out."""


def _models() -> Any:
    with warnings.catch_warnings():
        # Its import asks MNE for a montage by a name that is about to change.
        warnings.simplefilter("ignore")
        import braindecode.models
    return braindecode.models


class CBraMod(Tokens):
    """Patches convolved and Fourier transformed; every layer attends half across units and half along time."""

    patch, width, layers = 200, 200, "encoder.layers."

    def __init__(self, depth: int) -> None:
        super().__init__()
        net = _models().CBraMod(n_outputs=1, n_layer=depth or 12, return_encoder_output=True)
        self.patch_embedding, self.encoder, self.proj_out = net.patch_embedding, net.encoder, net.proj_out

    def embed(self, patches: torch.Tensor) -> torch.Tensor:
        embedded: torch.Tensor = self.patch_embedding(patches)
        return embedded

    def mix(self, tokens: torch.Tensor) -> torch.Tensor:
        mixed: torch.Tensor = self.proj_out(self.encoder(tokens))
        return mixed


class LaBraM(Tokens):
    """Patches convolved; every layer attends over all units and patches of a window."""

    patch, width, layers = 200, 200, "blocks."
    electrodes = ("position_embedding", "temporal_embedding")

    def __init__(self, depth: int) -> None:
        super().__init__()
        net = _models().Labram(n_outputs=1, n_chans=1, n_times=self.patch, num_layers=depth or 12)
        self.patch_embed, self.cls_token, self.blocks, self.norm = net.patch_embed, net.cls_token, net.blocks, net.norm

    def embed(self, patches: torch.Tensor) -> torch.Tensor:
        embedded: torch.Tensor = self.patch_embed.temporal_conv(patches)
        return embedded.view(*patches.shape[:3], self.width)

    def mix(self, tokens: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens.flatten(1, 2)], 1)
        for block in self.blocks:
            x = block(x)
        mixed: torch.Tensor = self.norm(x)[:, 1:]
        return mixed.view(tokens.shape)


class EEGPT(Tokens):
    """Patches projected; every layer attends across units at one time, and never along time."""

    patch, width, layers = 64, 512, "blocks."
    electrodes = ("chan_embed",)

    def __init__(self, depth: int) -> None:
        super().__init__()
        net = _models().EEGPT(
            n_outputs=1,
            n_chans=1,
            n_times=self.patch,
            patch_stride=self.patch,
            depth=depth or 8,
            chan_proj_type="none",
            return_encoder_output=True,
        )
        whole = net.target_encoder
        self.patch_embed, self.summary_token = whole.patch_embed, whole.summary_token
        self.blocks, self.norm = whole.blocks, whole.norm

    def embed(self, patches: torch.Tensor) -> torch.Tensor:
        embedded: torch.Tensor = self.patch_embed.proj(patches.flatten(2)[:, None])
        return embedded.permute(0, 2, 3, 1)

    def mix(self, tokens: torch.Tensor) -> torch.Tensor:
        batch, units, n_patches, width = tokens.shape
        x = tokens.transpose(1, 2).reshape(batch * n_patches, units, width)
        x = torch.cat([x, self.summary_token.expand(len(x), -1, -1)], 1)
        for block in self.blocks:
            x = block(x)
        mixed: torch.Tensor = self.norm(x)[:, :units]
        return mixed.view(batch, n_patches, units, width).transpose(1, 2)


class BIOT(Tokens):
    """Spectra of patches projected; linear attention over all units and patches of a window."""

    patch, width, layers = 200, 256, "transformer.layers.layers."
    electrodes = ("channel_tokens",)

    def __init__(self, depth: int) -> None:
        super().__init__()
        net = _models().BIOT(n_outputs=1, n_chans=1, n_times=self.patch, sfreq=self.patch, num_layers=depth or 4)
        whole = net.encoder
        self.patch_embedding, self.transformer = whole.patch_embedding, whole.transformer
        self.positional_encoding = whole.positional_encoding

    def embed(self, patches: torch.Tensor) -> torch.Tensor:
        embedded = self.patch_embedding.projection(torch.fft.rfft(patches).abs())
        placed: torch.Tensor = self.positional_encoding(embedded.flatten(0, 1)).view(embedded.shape)
        return placed

    def mix(self, tokens: torch.Tensor) -> torch.Tensor:
        mixed: torch.Tensor = self.transformer(tokens.flatten(1, 2))
        return mixed.view(tokens.shape)


MODELS: Mapping[str, type[Tokens]] = {"CBraMod": CBraMod, "LaBraM": LaBraM, "EEGPT": EEGPT, "BIOT": BIOT}


class Braindecode(Backbone):
    """A model of EEG, every patch of a unit as one of its own patches.

    Patches are drawn out or pressed together to as many samples as the model's have, whatever the sampling rate: what
    was a second of EEG to it may be 250 ms of MEG or 15 s of BOLD. Units that a window lacks are left out of it; none
    of these models can be told that a single patch is missing, so that one is zeros.

    Parameters
    ----------
    model
        ``CBraMod``, ``LaBraM``, ``EEGPT`` or ``BIOT``.
    weights
        A .safetensors or torch file with braindecode's names of weights, or a name in the local cache of the Hugging
        Face hub; empty: random. Heads and embeddings of electrodes in it are left out.
    depth
        The first so many layers; 0 for all that were published.
    """

    name = "braindecode"
    summary = "EEG models CBraMod, LaBraM, EEGPT, BIOT of braindecode (model=…, weights=PATH)"
    reference = "doi:10.1002/hbm.23730"
    budgeted = False
    check_with = {"depth": 1}  # noqa: RUF012

    def __init__(self, spec: BackboneSpec, *, model: str = "CBraMod", weights: str = "", depth: int = 0) -> None:
        super().__init__(spec)
        self.net = MODELS[model](depth)
        width = self.net.width
        self.hidden_token = nn.Parameter(torch.randn(width) * 0.02)
        self.unit_embedding = nn.Embedding(spec.n_units, width)
        self.group_embedding = nn.Embedding(spec.n_groups, width)
        self.position = nn.Linear(3, width)
        self.time_embedding = nn.Parameter(torch.randn(spec.n_patches, width) * 0.02)
        nn.init.normal_(self.unit_embedding.weight, std=0.2)
        nn.init.normal_(self.group_embedding.weight, std=0.02)
        self.sensor = SensorEmbedding.of(spec, width)
        self.back = nn.Linear(width, spec.width)
        self.norm = nn.LayerNorm(spec.width)
        if weights:
            deeper = (rf"{self.net.layers}{i}\." for i in range(depth, 100)) if depth else ()
            load_weights(
                self.net,
                weights_of(weights),
                prefixes=("module.", "model.", "target_encoder.", "encoder."),
                left_out=(*HEADS, *self.net.electrodes, *deeper),
            )

    @classmethod
    def unavailable(cls) -> str:
        """Return that braindecode is missing, if it is."""
        return without(PACKAGE)

    @classmethod
    def impossible(cls, spec: BackboneSpec, parameters: Mapping[str, Any]) -> str:
        """Return why there is no such model or depth."""
        if parameters["model"] not in MODELS:
            return f"model {parameters['model']!r} is none of {', '.join(MODELS)}"
        return f"depth {parameters['depth']} is below 0" if parameters["depth"] < 0 else ""

    @classmethod
    def named_files(cls, parameters: Mapping[str, Any]) -> Mapping[str, Sequence[Path]]:
        """Return the file of the weights."""
        return {"weights": [weights_of(parameters["weights"])]} if parameters["weights"] else {}

    def forward(self, signal: torch.Tensor, hidden: torch.Tensor, table: TokenTable) -> torch.Tensor:
        """Pass the units that are there through the model, windows that lack the same ones together."""
        there = table.valid.any(2)
        if bool(there.all()):
            mixed = self._mix(signal, hidden, table)
        else:
            mixed = signal.new_zeros(*signal.shape[:3], self.net.width)
            for pattern in torch.unique(there, dim=0):
                rows, units = (there == pattern).all(1).nonzero(), pattern.nonzero()[:, 0]
                if len(units):
                    part = table.map(lambda x, rows=rows, units=units: x[rows, units])
                    mixed[rows, units] = self._mix(signal[rows, units], hidden[rows, units], part).to(mixed.dtype)
        tokens: torch.Tensor = self.norm(self.back(mixed)) * table.valid[..., None]
        return tokens

    def _mix(self, signal: torch.Tensor, hidden: torch.Tensor, table: TokenTable) -> torch.Tensor:
        """Return (batch, units, patches, the model's width) of units that are all there."""
        signal = signal * table.valid[..., None]
        # As many samples as a patch of the model has, whatever the sampling rate.
        drawn = nn.functional.interpolate(signal.flatten(0, 2)[:, None], self.net.patch, mode="linear")
        tokens = self.net.embed(drawn.view(*signal.shape[:3], self.net.patch))
        unit = self.unit_embedding(table.unit) + self.group_embedding(table.group) + self.position(table.position)
        if self.sensor is not None:
            unit = unit + self.sensor(table)
        tokens = tokens + hidden[..., None] * self.hidden_token + unit[:, :, None]
        mixed: torch.Tensor = self.net.mix(tokens + self.time_embedding[: signal.shape[2]])
        return mixed


@hookimpl
def register_backbones() -> list[type[Backbone]]:
    """Return the wrapper of braindecode."""
    return [Braindecode]

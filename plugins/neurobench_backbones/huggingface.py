"""A model of Hugging Face transformers: its tokens are those of units and patches instead of those of words."""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from neurobench import BackboneSpec, DataError, TokenBackbone, TokenTable, hookimpl, user_path
from neurobench_backbones._outside import in_cache, seen_by_all, way_in_and_out, without

PACKAGE = "transformers"


def folder_of(model: str) -> Path | None:
    """Return the folder of a model: the user's, or one in the local cache; None for the name of an architecture.

    Raises
    ------
    DataError
        If it is none of these; nothing is downloaded.
    """
    from transformers import CONFIG_MAPPING

    path = user_path(model)
    if os.path.isfile(path / "config.json"):
        return path
    if not os.path.isdir(path):
        if model in CONFIG_MAPPING:
            return None
        if (config := in_cache(model, "config.json")) is not None:
            return config.parent
    raise DataError(
        f"model {model!r} is no folder with a config.json, not in the local cache and no architecture of transformers.",
        allowed="a folder that save_pretrained wrote, a name that is in the cache, or an architecture such as bert",
        next_step=f"Where there is a network, `hf download {model}` fills the cache.",
    )


def files_of(folder: Path) -> list[Path]:
    """Return the files that make a model what it is: its configuration and its weights.

    Raises
    ------
    DataError
        If there are no weights.
    """
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not weights:
        raise DataError(
            f"{folder} holds a configuration and no weights (model.safetensors or pytorch_model.bin).",
            next_step="Save the model there with save_pretrained, or name its architecture for random ones.",
        )
    return [folder / "config.json", *weights]


class HuggingFace(TokenBackbone):
    """A transformers model that is given embeddings, with linear maps from the width of a token to its own and back.

    The tokens of a window are one sequence, unit after unit; what unit and time a token is of is in its embedding, and
    the model is told the number of its patch as its position. Embeddings of words are left out.

    Parameters
    ----------
    model
        A folder with a configuration and weights; a name that is in the local cache; or an architecture of transformers
        (``bert``, ``modernbert``, ``electra``), which is built with random weights at the size of the profile.
    """

    name = "huggingface"
    summary = "a transformers model from a folder or the local cache (model=PATH)"
    reference = "arXiv:1910.03771"
    budgeted = False

    def __init__(self, spec: BackboneSpec, *, model: str = "bert") -> None:
        super().__init__(spec)
        folder = folder_of(model)
        net = _fresh(model, spec) if folder is None else _loaded(folder)
        words: Any = net.get_input_embeddings()
        self.into, self.back = way_in_and_out(spec.width, words.embedding_dim, net.config.hidden_size)
        net.set_input_embeddings(nn.Identity())
        if getattr(net, "pooler", None) is not None:
            net.pooler = None
        self.net = net
        with torch.inference_mode(False), torch.enable_grad():
            self._try_out(words.embedding_dim)

    @classmethod
    def unavailable(cls) -> str:
        """Return that transformers is missing, if it is."""
        return without(PACKAGE)

    @classmethod
    def impossible(cls, spec: BackboneSpec, parameters: Mapping[str, Any]) -> str:
        """Return why the model cannot be given tokens of units and patches."""
        from transformers import MODEL_MAPPING, AutoConfig

        folder = folder_of(str(parameters["model"]))
        with _quietly():
            config = AutoConfig.for_model(parameters["model"]) if folder is None else AutoConfig.from_pretrained(folder)
        net = MODEL_MAPPING.get(type(config), None)
        if net is None:
            return f"transformers has no model for the configuration of {parameters['model']!r}"
        net = net[0] if isinstance(net, tuple) else net
        if lacking := {"inputs_embeds", "position_ids"} - inspect.signature(net.forward).parameters.keys():
            return (
                f"transformers' {net.__name__} takes no {' and no '.join(sorted(lacking))}: it cannot be told what its "
                "tokens are, or where (bert, roberta, modernbert, electra, deberta-v2 can)"
            )
        return ""

    @classmethod
    def named_files(cls, parameters: Mapping[str, Any]) -> Mapping[str, Sequence[Path]]:
        """Return the files of the model."""
        folder = folder_of(str(parameters["model"]))
        return {} if folder is None else {"model": files_of(folder)}

    def _run(self, x: torch.Tensor, valid: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """Pass (sequences, length, width) tokens through the model."""
        passed: torch.Tensor = self.net(
            inputs_embeds=x, attention_mask=seen_by_all(valid).long(), position_ids=position.expand(x.shape[:2])
        ).last_hidden_state
        return passed

    def _try_out(self, width: int) -> None:
        """Refuse a model that looks one way, and leave what it does not use here out of training."""
        x = torch.arange(3.0 * width).view(1, 3, width).sin().requires_grad_()
        was_training = self.net.training
        out = self.net.eval() and self._run(x, torch.ones(1, 3, dtype=torch.bool), torch.arange(3))
        direction = torch.arange(float(out.shape[-1])).cos()
        (first,) = torch.autograd.grad((out[0, 0] * direction).sum(), x, retain_graph=True)
        if not first[0, 2].abs().max() > 0:
            raise DataError(
                f"transformers' {type(self.net).__name__} looks one way: the first tokens would see no other.",
                allowed="models that look both ways, such as bert, modernbert, electra",
                next_step="Use another model.",
            )
        parameters = list(self.net.parameters())
        gradients = torch.autograd.grad((out * direction).sum(), parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.requires_grad_(gradient is not None)
        self.net.train(was_training)

    def mix(self, tokens: torch.Tensor, table: TokenTable) -> torch.Tensor:
        """Mix by the model, all tokens of a window as one sequence."""
        n_units, n_patches = tokens.shape[1:3]
        position = torch.arange(n_patches, device=tokens.device).repeat(n_units)
        x = self._run(self.into(tokens).flatten(1, 2), table.valid.flatten(1), position)
        mixed: torch.Tensor = self.back(x).view(tokens.shape) * table.valid[..., None]
        return mixed


def _fresh(model: str, spec: BackboneSpec) -> Any:
    """Return an architecture with random weights, two of its layers for each of the profile's."""
    from transformers import AutoConfig, AutoModel

    with _quietly():
        config = AutoConfig.for_model(
            model,
            hidden_size=spec.width,
            num_hidden_layers=2 * spec.n_layers,
            num_attention_heads=max(2, spec.width // 32),
            intermediate_size=4 * spec.width,
        )
        return AutoModel.from_config(config)


def _loaded(folder: Path) -> Any:
    """Return the model of a folder with its weights, all of them."""
    from transformers import AutoModel

    try:
        with _quietly():
            net, said = AutoModel.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, dtype=torch.float32, output_loading_info=True
            )
    except Exception as error:  # whatever it is, it is about the user's folder
        first = str(error).strip().partition("\n")[0].rstrip(".")
        raise DataError(
            f"the model in {folder} cannot be read: {type(error).__name__}: {first}.",
            allowed="a folder that save_pretrained wrote",
            next_step="See that its configuration and weights belong together and were copied whole.",
        ) from error
    # Neither words nor what sums up a sentence are used here.
    unused = ("pooler", "word_embeddings", "embed_tokens", "tok_embeddings", "shared.")
    missing = sorted(k for k in said["missing_keys"] if not any(word in k for word in unused))
    if missing:
        names = ", ".join(missing[:6]) + (" …" if len(missing) > 6 else "")
        raise DataError(
            f"the weights in {folder} do not fill the model of its configuration: {len(missing)} missing: {names}.",
            next_step="See that its configuration and weights belong together and were copied whole.",
        )
    return net


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep transformers from writing to the terminal inside; what goes wrong is told here."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@hookimpl
def register_backbones() -> list[type[TokenBackbone]]:
    """Return the wrapper of transformers."""
    return [HuggingFace]

"""Pretrained models by name: four that packages carry, and any that Transformers can load."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from dynattn.kernels import cpu
from dynattn.kernels.cpu import isas

Kind = Literal["encoder", "decoder", "vision", "speech"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""What models can be loaded and run in."""

PACKAGED = ("minilm", "smollm2", "dinov2", "whisper")
"""Names whose weights packages carry; each is a module of this package with a ``load()``."""

_LIMITS = ("max_position_embeddings", "n_positions", "max_seq_len")  # what configs call the most tokens
_NO_LIMIT = 2**24  # tokenizers that know no limit say a number far above it


@dataclass(frozen=True)
class Pretrained:
    """A pretrained model, ready to evaluate.

    Attributes:
        name: what it was asked for by.
        model: a Transformers model in eval mode, with ``attn_implementation="sdpa"``.
        processor: its tokenizer, image processor, or feature extractor and tokenizer in one.
        kind: what it takes and gives.
        description: one line: what it is, its parameters, where the weights come from.
    """

    name: str
    model: Any
    processor: Any
    kind: Kind
    description: str


@dataclass(frozen=True)
class Facts:
    """What a model is, as far as its config tells.

    Attributes:
        kind: what it takes and gives.
        layers: how many layers of attention there are; None where the config does not tell.
        heads: how many heads each has; None where the config does not tell.
    """

    kind: Kind
    layers: int | None
    heads: int | None


def facts(name: str) -> Facts:
    """What a model is, before its weights are loaded: most options can be checked against this.

    Args:
        name: as :func:`load` takes it.

    Raises:
        ValueError: there is no such model, its config is damaged, or it is of a kind that is not evaluated.
    """
    if name in PACKAGED:
        return import_module(f"dynattn.lab.models.{name}").FACTS
    return import_module("dynattn.lab.models.hub").facts(name)


def load(name: str, dtype: str = "float32") -> Pretrained:
    """A pretrained model by name.

    Args:
        name: one of :data:`PACKAGED`, else a local folder or a hub id for Transformers' ``from_pretrained``.
        dtype: the dtype of the weights, one of :data:`DTYPES`.

    Returns:
        The model and what it needs to be used.

    Raises:
        dynattn.lab.data.packages.PackageUnavailableError: the package that carries the weights cannot be had.
        ImportError: a package that reads them is missing; the text names the extra to install.
        ValueError: the model is of a kind that this project does not evaluate, or there is no such dtype.
    """
    if dtype not in DTYPES:
        raise ValueError(f"load: dtype must be one of {', '.join(DTYPES)}: got {dtype!r}")
    if name in PACKAGED:
        return import_module(f"dynattn.lab.models.{name}").load(DTYPES[dtype])
    return import_module("dynattn.lab.models.hub").load(name, DTYPES[dtype])


def fastest_dtype() -> str:
    """The dtype in which models run fastest here: bfloat16 where the processor multiplies it (AMX, or AVX512-BF16 of
    AMD), else float32."""
    return "bfloat16" if cpu.is_available() and isas.tile_engine() is not None else "float32"


def context(pretrained: Pretrained) -> int | None:
    """The most tokens that a model of text takes: by its config and, of an encoder, by its tokenizer too.

    Args:
        pretrained: an encoder or a decoder.

    Returns:
        The number; None where nothing says one.
    """
    config = pretrained.model.config.get_text_config()
    limits = [getattr(config, name, None) for name in _LIMITS]
    if pretrained.kind == "encoder":
        limits += [pretrained.processor.model_max_length, *_positions(pretrained.model)]
    return min((limit for limit in limits if isinstance(limit, int) and 0 < limit < _NO_LIMIT), default=None)


def _positions(model: nn.Module) -> list[int]:
    """The tokens that learned positions are for, where they begin behind a place for padding, as RoBERTa's do."""
    return [
        part.num_embeddings - part.padding_idx - 1
        for name, part in model.named_modules()
        if name.endswith("position_embeddings") and isinstance(part, nn.Embedding) and part.padding_idx is not None
    ]


def parameters(model: nn.Module) -> str:
    """How many parameters, as in ``22.7M parameters``; shared ones count once."""
    return f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters"


def complete(auto: Any, path: Path) -> None:
    """Raise unless the folder holds every weight of the model and no other: for what a conversion wrote.

    Args:
        auto: the Transformers class to load it by.
        path: the folder.
    """
    _, found = auto.from_pretrained(path, output_loading_info=True)
    wrong = {rule: found[rule] for rule in ("missing_keys", "unexpected_keys", "mismatched_keys") if found[rule]}
    if wrong:
        raise ValueError(f"load: converted weights must fill {auto.__name__} exactly: got {wrong}")

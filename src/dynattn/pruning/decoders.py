"""Finds the layers of a decoder whose tokens can skip some of them.

A layer is called with its tokens' rotary positions and their mask, which are gathered with the tokens. Models whose
layers look at where a token stands in another way would compute something else without any error. So only types of
models that have been tested are known here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from dynattn.pruning.calls import is_compiled

SUPPORTED = ("llama", "mistral", "qwen2", "qwen3")
"""The ``config.model_type`` of every decoder whose layers can be skipped."""


class Decoder(NamedTuple):
    """A decoder's layers, and what they share.

    Attributes:
        layers: the layers, in order; each has its attention in ``self_attn``.
        runner: the module whose forward calls them one after the other.
        config: the model's configuration.
    """

    layers: tuple[nn.Module, ...]
    runner: nn.Module
    config: Any


def find(model: nn.Module) -> Decoder:
    """The layers of a decoder.

    Args:
        model: a Transformers model, with or without a head on top.

    Raises:
        TypeError: it is not a module.
        ValueError: it is of another kind, or compiled.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"skipping: model must be a Transformers model: got {type(model).__name__}; load one first")
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind not in SUPPORTED:
        raise ValueError(
            f"skipping: the model must be a decoder of type {', '.join(SUPPORTED)}: {type(model).__name__} is a "
            f"{kind}; encoders lose tokens by SpAtten and its like"
        )
    if is_compiled(model):
        raise ValueError(
            "skipping: the model must not be compiled: layers whose lengths are decided as they run leave compiled "
            "code at every one of them; pass the model as it was before torch.compile"
        )
    runner = next(module for module in model.modules() if isinstance(getattr(module, "layers", None), nn.ModuleList))
    return Decoder(tuple(runner.layers), runner, model.config)  # type: ignore[arg-type]

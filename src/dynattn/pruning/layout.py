"""Finds the layers, attention modules and projections of a model.

A token may only be taken out of the sequence where nothing else in the layer depends on where it stood. Rotary or
relative positions, windows and convolutions would be computed for the wrong places without any error. So only types of
models that have been tested are known here, and their modules are checked as well.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

from torch import nn

from dynattn.pruning.calls import is_compiled

_TEXT = (
    "bert", "camembert", "data2vec-text", "electra", "ernie", "roberta", "roberta-prelayernorm",
    "xlm-roberta", "xlm-roberta-xl",
)  # fmt: skip
_VISION = ("deit", "dinov2", "dinov2_with_registers", "ijepa", "vit", "vit_msn")

SUPPORTED = (*_TEXT, *_VISION)
"""The ``config.model_type`` of every model that can be pruned."""


class LayerParts(NamedTuple):
    """One layer.

    Attributes:
        layer: the module.
        attention: the module that calls the attention function.
        query: its projections, to be cut where heads are pruned.
        key: likewise.
        value: likewise.
        output: the projection of the heads' outputs.
    """

    layer: nn.Module
    attention: nn.Module
    query: nn.Module
    key: nn.Module
    value: nn.Module
    output: nn.Module


class Layout(NamedTuple):
    """The layers of a model, and what all of them share.

    Attributes:
        layers: the layers, in order.
        runner: the module whose forward calls them one after the other.
        config: the model's configuration; its ``_attn_implementation`` says how attention is computed.
        heads: how many heads a layer has.
        leading: how many tokens at the start of each sample are not content, but class token or registers.
    """

    layers: tuple[LayerParts, ...]
    runner: nn.Module
    config: Any
    heads: int
    leading: int


def find(model: nn.Module) -> Layout:
    """The layers of a model.

    Args:
        model: a Transformers model, with or without a head on top.

    Raises:
        TypeError: it is not a module.
        ValueError: it has no layers that tokens can be taken out of, or more than one stack of them.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"pruning: model must be a Transformers model: got {type(model).__name__}; load one first")
    if is_compiled(model):
        raise ValueError(
            "pruning: the model must not be compiled: layers whose lengths are decided as they run leave compiled code "
            "at every one of them; pass the model as it was before torch.compile"
        )
    stacks = {
        id(child): (parent, child)  # of several parents the innermost counts, since it runs the layers
        for parent in model.modules()
        for child in parent.children()
        if isinstance(child, nn.ModuleList) and _is_stack(child)
    }
    if len(stacks) != 1:
        raise ValueError(
            f"pruning: the model must have one stack of encoder layers: {type(model).__name__} has {len(stacks)}; "
            f"models that can be pruned are of type {', '.join(SUPPORTED)}"
        )
    ((runner, modules),) = stacks.values()
    layers = tuple(_parts(layer) for layer in modules)
    config: Any = layers[0].attention.config
    _check(model, layers, config)
    leading = 1 + (getattr(config, "num_register_tokens", None) or 0)
    if config.model_type == "deit":  # DeiT also has a distillation token
        leading = 2
    return Layout(layers, runner, config, config.num_attention_heads, leading)


def signature(module: nn.Module) -> inspect.Signature:
    """The signature of a module's own forward, even where another function has been put in its place."""
    return inspect.signature(type(module).forward.__get__(module))


def _is_stack(modules: nn.ModuleList) -> bool:
    """Whether these are layers with self-attention in one of the two forms that :func:`_parts` takes apart."""
    return len(modules) > 0 and all(_inner(layer) is not None for layer in modules)


def _inner(layer: nn.Module) -> nn.Module | None:
    """The module of a layer that calls the attention function."""
    attention = getattr(layer, "attention", None)
    inner = getattr(attention, "self", attention)
    return inner if isinstance(inner, nn.Module) and hasattr(inner, "config") else None


def _parts(layer: nn.Module) -> LayerParts:
    inner: Any = _inner(layer)
    if hasattr(inner, "q_proj"):
        projections = inner.q_proj, inner.k_proj, inner.v_proj, getattr(inner, "o_proj", None)
    else:
        output = getattr(layer.get_submodule("attention"), "output", None)
        projections = (
            *(getattr(inner, name, None) for name in ("query", "key", "value")),
            getattr(output, "dense", None),
        )
    found = [projection for projection in projections if isinstance(projection, nn.Module)]
    if len(found) < 4:
        raise ValueError(
            f"pruning: a layer's attention must have projections of query, key, value and output: "
            f"{type(inner).__name__} has not; models that can be pruned are of type {', '.join(SUPPORTED)}"
        )
    return LayerParts(layer, inner, *found)


def _check(model: nn.Module, layers: tuple[LayerParts, ...], config: Any) -> None:
    kind = getattr(config, "model_type", None)
    if kind not in SUPPORTED:
        raise ValueError(
            f"pruning: the model must be of a type whose layers do not look at where a token stands: "
            f"{type(model).__name__} is a {kind}; models that can be pruned are {', '.join(SUPPORTED)}"
        )
    if getattr(config, "is_decoder", False):
        raise ValueError(
            "pruning: the model must be an encoder: this one is set up as a decoder; load it with is_decoder=False"
        )
    for parts in layers:
        names = list(signature(parts.layer).parameters)[:2]
        if names != ["hidden_states", "attention_mask"]:
            raise ValueError(
                "pruning: a layer must take hidden_states and attention_mask first: "
                f"{type(parts.layer).__name__} takes {', '.join(names)}; use the transformers version that "
                "constraints.txt names"
            )

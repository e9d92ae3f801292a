"""Says in a model's config what was cut, where the config has words for it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from dynattn.pruning.structure.elements import Left
from dynattn.pruning.structure.find import find

_NEURONS = ("intermediate_size", "ffn_dim", "n_inner", "hidden_dim")


def said(model: Any, parts: Sequence[Left]) -> bool:
    """Change a cut model's config so that a new model of it has the same shapes.

    A model is built from the changed config without weights, and compared: shapes, and what each layer and attention
    notes of itself (the scale of GPT-2's layers may depend on their number). If it differs, the config stays as it is.

    Args:
        model: a Transformers model whose elements were cut.
        parts: what is left of each layer.

    Returns:
        Whether the config says it now.
    """
    changes = _changes(model.config, parts)
    if changes is None:
        return False
    config = copy.deepcopy(model.config)
    try:
        for name, value in changes.items():
            setattr(config, name, value)
        with torch.device("meta"):
            made = type(model)(config)
        alike = _shapes(made) == _shapes(model) and _notes(made) == _notes(model)
    except (ValueError, TypeError, AttributeError, ZeroDivisionError, RuntimeError):  # a config may check itself
        return False
    if not alike:
        return False
    for name, value in changes.items():
        setattr(model.config, name, value)
    return True


def _changes(config: Any, parts: Sequence[Left]) -> dict[str, Any] | None:
    """The fields of a config that differ; None where layers differ among themselves, or lack a block."""
    counts = {
        (int(part.heads.sum()), int(part.kv_heads.sum()), None if part.neurons is None else int(part.neurons.sum()))
        for part in parts
    }
    whole = all(part.attention and part.mlp for part in parts)
    if len(counts) != 1 or not whole:
        return None
    ((heads, kv_heads, neurons),) = counts
    if heads == 0 or neurons == 0:
        return None
    changes: dict[str, Any] = {}
    if heads != config.num_attention_heads:
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        changes |= {"num_attention_heads": heads, "head_dim": head_dim}
        if getattr(config, "num_key_value_heads", None) is not None:
            changes["num_key_value_heads"] = kv_heads
    name = next((name for name in _NEURONS if getattr(config, name, None) is not None), None)
    if neurons is not None and name is not None and neurons != getattr(config, name):
        changes[name] = neurons
    return changes


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in model.named_parameters()}


def _notes(model: nn.Module) -> list[dict[str, Any]]:
    """Numbers and words that layers and attentions hold besides their weights."""
    return [
        {
            name: value
            for name, value in vars(module).items()
            if isinstance(value, (bool, int, float, str)) and name != "training" and not name.startswith("_")
        }
        for layer in find(model).layers
        for module in (layer.module, layer.attention.module)
    ]

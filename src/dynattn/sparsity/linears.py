"""The linear layers that take part: those inside of a model's layers, and no heads, poolers or embeddings."""

from __future__ import annotations

from typing import Any

from torch import nn

from dynattn.pruning.structure.find import is_dense

_BESIDE = ("pooler", "embeddings", "embed")
"""Parts of names that say what is no part of a layer: a pooler serves one token, embeddings are tables."""


def linears(model: nn.Module) -> dict[str, Any]:
    """The linear layers of a model, in its order.

    Args:
        model: a Transformers model, whose head is left out, or any other module.

    Returns:
        By their names in the model.

    Raises:
        TypeError: it is not a module.
        ValueError: it has none.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"sparsity: model must be a torch.nn.Module: got {type(model).__name__}; load one first")
    base = getattr(model, "base_model", model)
    inside = {id(module) for module in (base if isinstance(base, nn.Module) else model).modules()}
    found = {
        name: module
        for name, module in model.named_modules()
        if id(module) in inside and is_dense(module) and not any(part.startswith(_BESIDE) for part in name.split("."))
    }
    if not found:
        raise ValueError(
            f"sparsity: the model must have plain linear layers: {type(model).__name__} has none; merge adapters, or "
            "load it unquantised"
        )
    return found

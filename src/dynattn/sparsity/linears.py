"""The linear layers that take part: those inside of a model's layers, and no heads, poolers or embeddings."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from dynattn.pruning.structure.find import is_dense, is_transposed

_BESIDE = ("pooler", "embeddings", "embed")
"""Parts of names that say what is no part of a layer: a pooler serves one token, embeddings are tables."""

_HEADS = ("classifier", "head", "lm_head")
"""Names of what stands on top of a model; in those of Transformers it is told by its place."""


def linears(model: nn.Module) -> dict[str, Any]:
    """The linear layers of a model, in its order.

    Args:
        model: a Transformers model, whose head is left out, a module around some, of which the same is true, or any
            other module.

    Returns:
        By their names in the model.

    Raises:
        TypeError: it is not a module.
        ValueError: it has none.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"sparsity: model must be a torch.nn.Module: got {type(model).__name__}; load one first")
    own = getattr(model, "base_model", None)
    around = (getattr(module, "base_model", None) for module in model.modules())
    bases = [own] if isinstance(own, nn.Module) else [base for base in around if isinstance(base, nn.Module)]
    inside = {id(module) for base in bases or [model] for module in base.modules()}
    found = {
        name: module
        for name, module in model.named_modules()
        if id(module) in inside
        and is_dense(module)
        and not any(part.startswith(_BESIDE) for part in name.split("."))
        and name.partition(".")[0] not in (() if bases else _HEADS)
    }
    if not found:
        raise ValueError(
            f"sparsity: the model must have plain linear layers: {type(model).__name__} has none; merge adapters, or "
            "load it unquantised"
        )
    return found


def turned(layer: Any, x: Tensor) -> Tensor:
    """(out, in) of what a ``Conv1D`` keeps as (in, out), and back again; ``x`` itself for other linear layers."""
    return x.T if is_transposed(layer) else x

"""Models of plain PyTorch attend by dynattn for as long as a context: ``nn.TransformerEncoder`` and the like.

    from dynattn.integrations import torch as dynattn_torch

    with dynattn_torch.apply(model, "nm-2-4"):
        model(inputs)

Modules take part that are ``torch.nn.MultiheadAttention``, or whose code calls ``scaled_dot_product_attention``.
Outputs with ``dense`` are those of before, up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from dynattn.integrations.sdpa import applied, calling, own_parts
from dynattn.integrations.transformers.coverage import Coverage
from dynattn.methods import Method


@contextmanager
def apply(model: nn.Module, method: Method | str) -> Iterator[Coverage]:
    """While active, a model of PyTorch's modules attends by dynattn; afterwards it is as it was.

    The fused paths of ``torch.nn.TransformerEncoder`` and its layers are off meanwhile, since they compute dense
    attention. To keep it for good, build the model with :class:`dynattn.nn.MultiheadAttention`.

    Args:
        model: a module.
        method: what attention keeps, or its short name, as ``nm-2-4``.

    Yields:
        Which attention modules take part, and which keep attention of their own; print it to read it.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: no module takes part: all keep attention of their own, or there is none; or the model attends by
            dynattn in a context of another thread.
        RuntimeError: in a call of the model, a module that takes part attends by a softmax of its own.

    Warns:
        Some modules keep attention of their own; or, in a call of the model, one that takes part makes no call.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"apply: model must be a module: got {type(model).__name__}; pass the module that attends")
    parts = calling(model)
    with applied(model, method, parts, own_parts(model, parts)) as found:
        yield found

"""timm: a model attends by dynattn for as long as a context.

    from dynattn.integrations import timm as dynattn_timm

    with dynattn_timm.apply(model, "nm-2-4"):
        model(images)

Modules take part that call ``scaled_dot_product_attention``, timm's "fused" attention. Outputs with ``dense`` are those
of before, up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from dynattn.integrations.sdpa import applied, calling, own_parts
from dynattn.integrations.transformers.coverage import Coverage
from dynattn.methods import Method


@contextmanager
def apply(model: nn.Module, method: Method | str) -> Iterator[Coverage]:
    """While active, a timm model attends by dynattn; afterwards it is as it was.

    Meanwhile the model can be neither copied nor pickled. Modules whose fused path timm leaves off take it.

    Args:
        model: a model of ``timm.create_model``, or any module whose parts call ``scaled_dot_product_attention``.
        method: what attention keeps, or its short name, as ``nm-2-4``.

    Yields:
        Which attention modules take part, and which keep attention of their own; print it to read it.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: no module takes part: all keep attention of their own, as those of Swin V2, or there is none; or the
            model attends by dynattn in a context of another thread.
        RuntimeError: in a call of the model, a module that takes part attends by a softmax of its own.

    Warns:
        Some modules keep attention of their own; or, in a call of the model, one that takes part makes no call.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"apply: model must be a module: got {type(model).__name__}; pass what create_model returns")
    parts = calling(model)
    settings: list[tuple[Any, str, Any]] = [
        (module, "fused_attn", True) for module in parts.values() if hasattr(module, "fused_attn")
    ]
    with applied(model, method, parts, own_parts(model, parts), settings) as found:
        yield found

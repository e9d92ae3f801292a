"""diffusers: a transformer, UNet or autoencoder attends by dynattn for as long as a context.

    from dynattn.integrations import diffusers as dynattn_diffusers

    with dynattn_diffusers.apply(pipe.transformer, "nm-2-4"):
        pipe("a street in the rain")

Modules take part whose processor calls ``scaled_dot_product_attention``, or diffusers' dispatcher of attention, which
does. Outputs with ``dense`` are those of before, up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from dynattn.integrations.sdpa import applied, own_parts
from dynattn.integrations.transformers import classes
from dynattn.integrations.transformers.coverage import Coverage
from dynattn.methods import Method

_DISPATCHER = "dispatch_attention_fn"


@contextmanager
def apply(model: nn.Module, method: Method | str) -> Iterator[Coverage]:
    """While active, a model of diffusers attends by dynattn; afterwards it is as it was.

    Meanwhile the model can be neither copied nor pickled, and what ``set_attention_backend`` said has no effect.

    Args:
        model: a model of diffusers, as ``pipe.transformer``, ``pipe.unet`` or ``pipe.vae``.
        method: what attention keeps, or its short name, as ``nm-2-4``.

    Yields:
        Which attention modules take part, and which keep attention of their own; print it to read it.

    Raises:
        TypeError: ``model`` is no module; a pipeline is none.
        ValueError: no module takes part, the model runs in context parallel, or another attention backend than
            ``native`` is set for all models, or the model attends by dynattn in a context of another thread.
        RuntimeError: in a call of the model, a module that takes part attends by a softmax of its own.

    Warns:
        Some modules keep attention of their own: linear attention, processors with a softmax of their own; or,
        in a call of the model, one that takes part makes no call.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"apply: model must be a module: got {type(model).__name__}; of a pipeline pass the part that attends, as "
            "pipe.transformer"
        )
    parts = {name: module for name, module in model.named_modules() if _calls(module)}
    processors = [one for one in map(_processor, parts.values()) if one is not None]
    if any(getattr(one, "_parallel_config", None) is not None for one in processors):
        raise ValueError(
            f"apply: the model must not run in context parallel: {type(model).__name__} does; apply the method before "
            "enable_parallelism, or without it"
        )
    with applied(model, method, parts, own_parts(model, parts), _backends(processors)) as found:
        yield found


def _backends(processors: list[Any]) -> list[tuple[Any, str, Any]]:
    """Have processors that ask the dispatcher ask for PyTorch's function."""
    try:
        from diffusers.models import attention_dispatch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            "dynattn.integrations.diffusers: needs diffusers 0.35 or newer: pip install 'diffusers>=0.35'"
        ) from error
    native = attention_dispatch.AttentionBackendName.NATIVE
    active, _ = attention_dispatch._AttentionBackendRegistry.get_active_backend()
    told = [one for one in processors if hasattr(one, "_attention_backend")]
    asking = sorted({type(one).__name__ for one in processors if one not in told and _dispatches(one)})
    if active != native and asking:
        raise ValueError(
            f"apply: diffusers' attention backend must be native for {', '.join(asking)}: got {active.value}; leave "
            "its attention_backend() context, call reset_attention_backend(), or unset DIFFUSERS_ATTN_BACKEND"
        )
    return [(one, "_attention_backend", native) for one in told]


def _dispatches(processor: Any) -> bool:
    return _DISPATCHER in classes.names(type(processor)).plain


def _processor(module: nn.Module) -> Any:
    return getattr(module, "processor", None)


def _calls(module: nn.Module) -> bool:
    """Whether the module's processor calls the function; one without a processor, its own code."""
    processor = _processor(module)
    kind = type(module if processor is None else processor)
    return bool({_DISPATCHER, "scaled_dot_product_attention"} & classes.names(kind).plain)

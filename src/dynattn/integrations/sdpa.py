"""Modules that call ``torch.nn.functional.scaled_dot_product_attention`` attend by dynattn, for as long as a context.

What is replaced is the ``forward`` of single modules of one model. While it runs, the calls of that function which this
thread makes go to :func:`dynattn.attention`, whatever code they come from: a module, or a processor of diffusers.
``torch.nn.MultiheadAttention`` becomes :class:`dynattn.nn.MultiheadAttention` meanwhile, with the same weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from dynattn.functional import attention
from dynattn.integrations.transformers import classes
from dynattn.integrations.transformers.calls import observers, replacements
from dynattn.integrations.transformers.coverage import PREFIX, Coverage, Part, kinds_of
from dynattn.integrations.transformers.masks import narrow
from dynattn.methods import Method, PerLayer, parse
from dynattn.nn import MultiheadAttention
from dynattn.pruning.replaced import replace

Settings = Iterable[tuple[Any, str, Any]]
"""Objects, names of their attributes, and values."""


class _Mode(TorchFunctionMode):
    """Sends calls of ``scaled_dot_product_attention`` to dynattn."""

    def __init__(self, module: nn.Module, method: Method) -> None:
        super().__init__()
        self.module, self.method = module, method

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return attend(self.module, self.method, *args, **(kwargs or {}))
        if func is Tensor.unflatten:  # torch.compile cannot trace this method under a mode
            func = torch.unflatten
        return func(*args, **(kwargs or {}))


class _Forward:
    """Stands in the place of a module's ``forward``."""

    def __init__(self, module: nn.Module, method: Method) -> None:
        self.module, self.inner, self.method = module, module.forward, method
        self.__wrapped__ = self.inner  # so that the signature is the module's own

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with _Mode(self.module, self.method):
            return self.inner(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise RuntimeError(
            "apply: a model must not be copied or pickled while it attends by dynattn, since the copy would run this "
            "model's layers: leave the context first, and apply the method to the copy"
        )


def attend(
    module: nn.Module,
    method: Method,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """:func:`dynattn.attention` with the arguments, and the broadcasting, of ``scaled_dot_product_attention``.

    Args:
        module: the module that calls.
        method: what to keep.
        query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa: as PyTorch's function takes them, with
            any number of leading dimensions. A method that tells heads apart takes the last of these for them.

    Returns:
        (…, q_len, value_dim); 0 in rows with nothing allowed.

    Raises:
        ValueError: both a mask and ``is_causal`` are given, or shapes do not fit.
    """
    if is_causal and attn_mask is not None:
        raise ValueError(
            "scaled_dot_product_attention: attn_mask must be None with is_causal=True: got both; put what is causal "
            "into the mask"
        )
    grouped = enable_gqa and query.shape[-3] != key.shape[-3]
    if not grouped:
        lead = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2], value.shape[:-2])
        query, key, value = (x.expand(*lead, -1, -1) for x in (query, key, value))
    lead, pair = query.shape[:-2], (query.shape[-2], key.shape[-2])
    if is_causal and pair[0] != pair[1]:  # aligned top-left
        attn_mask, is_causal = torch.ones(pair, dtype=torch.bool, device=query.device).tril(), False
    mask = attn_mask
    if mask is not None and len(lead) != 2:
        mask = _four(narrow(mask) if mask.shape[-2] == 1 else mask, lead)
    elif mask is not None:
        mask = narrow(mask)
    query, key, value = (_four(x, x.shape[:-2]) for x in (query, key, value))
    for change in replacements:
        method = change(module, method)
    for observe in observers:
        observe(module, query, key, value, method, mask, is_causal, scale)
    out = attention(query, key, value, method, attn_mask=mask, causal=is_causal, scale=scale, dropout_p=dropout_p)
    return out.reshape(*lead, *out.shape[-2:])


@contextmanager
def applied(
    model: nn.Module, method: Method | str, parts: dict[str, nn.Module], own: Iterable[Part], settings: Settings = ()
) -> Iterator[Coverage]:
    """While active, some modules of a model attend by dynattn.

    Args:
        model: the model.
        method: what to keep, or its short name.
        parts: the modules that call ``scaled_dot_product_attention``, by their names.
        own: the modules that keep attention of their own.
        settings: objects, names of their attributes, and what these are meanwhile.

    Yields:
        Which modules take part, and which keep attention of their own.

    Raises:
        ValueError: no module takes part, or the method is one by layers.

    Warns:
        Some modules keep attention of their own.
    """
    method = parse(method) if isinstance(method, str) else method
    if isinstance(method, PerLayer):
        raise ValueError(
            f"apply: method must be one layer's: got {method.name}; apply each layer's method to that layer's module"
        )
    own, name = tuple(own), type(model).__name__
    kinds = {name: type(module).__name__ for name, module in parts.items()}
    if not parts:
        whose = f"keep attention of their own ({kinds_of(own)})" if own else "do not attend"
        raise ValueError(
            f"apply: modules of the model must call scaled_dot_product_attention: those of {name} {whose}; leave it "
            "as it is"
        )
    if own:
        warnings.warn(
            f"apply: {name} attends by {method.name} in part: {len(own)} of its attention modules keep attention of "
            f"their own ({kinds_of(own)}), since they do not call scaled_dot_product_attention",
            stacklevel=5,
        )
    with ExitStack() as undo:
        for one, attribute, setting in settings:
            replace(one, attribute, setting, undo)
        for encoder in (module for module in model.modules() if isinstance(module, nn.TransformerEncoder)):
            replace(encoder, "use_nested_tensor", False, undo)  # nested texts are for its own fused path
        for module in parts.values():
            if isinstance(module, nn.MultiheadAttention):
                _become_ours(module, method, undo)
            else:
                replace(module, "forward", _Forward(module, method), undo)
        part = tuple(Part(name, kinds[name], PREFIX + method.name) for name in parts)
        yield Coverage(part, (), own, ())


def calling(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that call ``scaled_dot_product_attention`` by their own code, and PyTorch's own module, by name."""
    return {name: module for name, module in model.named_modules() if _calls(type(module))}


def own_parts(model: nn.Module, parts: dict[str, nn.Module]) -> Iterator[Part]:
    """The modules that keep attention of their own, without those that merely hold such modules.

    Args:
        model: the model.
        parts: the modules that take part.
    """
    found = {name: module for name, module in model.named_modules() if name not in parts and _computes(type(module))}
    for name, module in found.items():
        prefix = f"{name}." if name else ""
        holds = any(other.startswith(prefix) for other in (*found, *parts) if other != name)
        if not holds or classes.calls_attention(type(module)):
            yield Part(name, type(module).__name__, None)


def _calls(cls: type) -> bool:
    if issubclass(cls, nn.MultiheadAttention):
        return cls in (nn.MultiheadAttention, MultiheadAttention)
    return "scaled_dot_product_attention" in classes.names(cls).plain


def _computes(cls: type) -> bool:
    if issubclass(cls, nn.MultiheadAttention):
        return True
    return classes.calls_attention(cls) or classes.looks_like_attention(cls)


def _become_ours(module: nn.MultiheadAttention, method: Method, undo: ExitStack) -> None:
    undo.callback(setattr, module, "__class__", type(module))
    module.__class__ = MultiheadAttention
    replace(module, "method", method, undo)
    replace(module, "_qkv_same_embed_dim", False, undo)  # what PyTorch's layers ask before they attend themselves


def _four(x: Tensor, lead: Iterable[int]) -> Tensor:
    """(batch, heads, …, …): the leading dimensions but the last are one."""
    lead = tuple(lead)
    x = x.expand(*lead, *x.shape[-2:])
    while len(lead) < 2:
        lead, x = (1, *lead), x.unsqueeze(0)
    return x if len(lead) == 2 else x.flatten(0, len(lead) - 2)

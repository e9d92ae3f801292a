"""Hugging Face Transformers: ``attn_implementation="dynattn:nm-2-4"``.

    dynattn.integrations.transformers.register()
    model.set_attn_implementation("dynattn:nm-2-4")            # or from_pretrained(..., attn_implementation=...)

The semantics are those of transformers' own ``sdpa`` implementation: with ``dynattn:dense`` a model's outputs equal
the ``sdpa`` ones up to rounding. What this attention cannot compute raises; nothing that a model passes is dropped.

Keys are grouped by their index in the key-value cache, so decoding with a cache keeps what one pass over the whole
text keeps.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dynattn import heads
from dynattn.functional import attention
from dynattn.methods import Method, PerHead, PerLayer, parse

COMMON = (
    "dense", "nm-1-2", "nm-2-4", "nm-1-4", "nm-4-8", "nm-1-2-w64-s4", "nm-2-4-w64-s4", "nm-1-2-x16", "nm-2-4-x16",
)  # fmt: skip
"""Methods that :func:`register` always registers."""

_PREFIX = "dynattn:"

# Arguments by which models change what attention computes, and what this one would have to be able to do.
_UNSUPPORTED = {
    "softcap": "cap the scores with tanh",
    "s_aux": "add a learned sink to the softmax",
    "sinks": "add a learned sink to the softmax",
    "head_mask": "scale heads",
    "indices": "attend to keys that the model selects",
    "block_indices": "attend to blocks that the model selects",
    "block_mask": "take a flex_attention block mask",
    "cache": "read a paged cache",
    "output_attentions": "return the attention weights",
}


class Call(NamedTuple):
    """One call of dynattn from a Transformers model, as :func:`observing` reports it.

    Attributes:
        layer: the module's ``layer_idx``; where it has none, how many other modules were seen before it.
        module: the attention module.
        query: (batch, heads, q_len, head_dim).
        key: (batch, kv_heads, kv_len, head_dim), the cache's included, not repeated for the heads.
        value: (batch, kv_heads, kv_len, value_dim).
        method: what is kept, in this layer.
        attn_mask: as :func:`dynattn.attention` takes it, or None.
        causal: as :func:`dynattn.attention` takes it.
        scale: factor of the scores, or None.
    """

    layer: int
    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    method: Method
    attn_mask: Tensor | None
    causal: bool
    scale: float | None

    def by_method(self) -> list[Call]:
        """The calls of one method each that it is made of: itself, or where heads differ one for each of theirs."""
        if not isinstance(self.method, PerHead):
            return [self]
        parts = heads.parts(self.query, self.key, self.value, self.method, self.attn_mask, None)
        return [
            self._replace(
                method=part.method, query=part.query, key=part.key, value=part.value, attn_mask=part.attn_mask
            )
            for part in parts
        ]


_observers: list[Callable[..., None]] = []


@contextmanager
def observing(callback: Callable[[Call], None]) -> Iterator[None]:
    """While active, every dynattn call that a Transformers model makes is first shown to ``callback``.

    Args:
        callback: gets a :class:`Call`. It may call :func:`dynattn.attention` on the tensors, with ``return_aux=True``
            to see the kept mass. An exception in it ends the model's forward.
    """
    order: dict[nn.Module, int] = {}

    def observe(module: nn.Module, *rest: Any) -> None:
        layer = getattr(module, "layer_idx", None)
        callback(Call(order.setdefault(module, len(order)) if layer is None else layer, module, *rest))

    _observers.append(observe)
    try:
        yield
    finally:
        _observers.remove(observe)


def follow(key: Tensor, layer: Any) -> None:
    """Tell the layer of a cache about the attention over the keys that it returned.

    Args:
        key: what the layer's ``update`` returns for keys; models pass it on to attention as it is.
        layer: with ``fit(mask)``, which cuts a mask to these keys, and ``attended(call)``, told afterwards.
    """
    key._dynattn_layer = weakref.ref(layer)  # type: ignore[attr-defined]  # weak, so that keys are freed when replaced


def register(*methods: Method | str) -> tuple[str, ...]:
    """Make ``attn_implementation="dynattn:<method>"`` known to Transformers. May be called again at any time.

    Args:
        methods: methods or their short names, registered besides :data:`COMMON`.

    Returns:
        The names now known, those of ``methods`` first.

    Raises:
        ImportError: transformers is not installed.
        ValueError: a name is not a method's.
    """
    try:
        from transformers import AttentionInterface, AttentionMaskInterface
    except ImportError as error:
        raise ImportError(
            "dynattn.integrations.transformers: needs transformers 5 or newer: pip install 'dynattn[transformers]'"
        ) from error
    known: dict[str, Method] = {}
    for method in (*methods, *COMMON):
        name, method = (method, parse(method)) if isinstance(method, str) else (method.name, method)
        known[_PREFIX + name] = method
    for name, method in known.items():
        AttentionInterface.register(name, partial(_forward, method=method))
        # Without this one Transformers drops every mask, and says nothing.
        AttentionMaskInterface.register(name, partial(_mask, method=method))
    return tuple(known)


def _mask(
    *, q_length: int, kv_length: int, q_offset: Any, kv_offset: int, method: Method, **kwargs: Any
) -> Tensor | None:
    """The mask for a forward pass: transformers' ``sdpa_mask``, but for two cases.

    A padding mask that is the same for every query stays (batch, 1, 1, kv_len): memory linear in length, and the
    kernels read it once per key. And a causal mask is left out only where q_len == kv_len or q_len == 1: elsewhere
    ``sdpa_mask`` may leave it out too, counting on SDPA's top-left alignment, which :func:`_forward` cannot tell
    from the bottom-right one. ``q_offset`` is an int, or a tensor from static caches.
    """
    from transformers.masking_utils import bidirectional_mask_function, sdpa_mask

    may_skip = kwargs.get("allow_is_bidirectional_skip")  # None where the mask is causal
    if may_skip is None and method.looks_at_positions:
        _refuse_free_slots(q_offset, q_length, kv_offset + kv_length, method)
    if q_length not in (1, kv_length):
        kwargs["allow_is_causal_skip"] = False
    mask = sdpa_mask(q_length=q_length, kv_length=kv_length, q_offset=q_offset, kv_offset=kv_offset, **kwargs)
    per_key = may_skip and kwargs.get("mask_function") is bidirectional_mask_function
    return mask[:, :, :1] if mask is not None and per_key else mask


def _refuse_free_slots(q_offset: Any, q_length: int, end: int, method: Method) -> None:
    """A static cache ends in free slots, and a window that is counted from its end would lie on those."""
    if (torch.compiler.is_compiling() and isinstance(q_offset, Tensor)) or int(q_offset) + q_length != end:
        raise ValueError(
            f"dynattn: {method.name} keeps the keys nearest to the end of the cache, so the cache must end with the "
            "last query: this one is a static cache with room to spare; use a dynamic cache, or a method without window"
        )


def _forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    *,
    method: Method,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The function that Transformers calls in each attention layer; returns (batch, q_len, heads, value_dim)."""
    _refuse_unsupported(module, kwargs)
    method = _of_layer(module, method) if isinstance(method, PerLayer) else method
    causal = _is_causal(module, query, key, attention_mask, is_causal)
    layer = getattr(key, "_dynattn_layer", lambda: None)()
    if layer is not None:
        attention_mask = layer.fit(attention_mask)
    attn_mask = _merge(attention_mask, position_bias)
    if query.shape[0] == 1 < key.shape[0]:  # learned queries that all samples share
        query = query.expand(key.shape[0], -1, -1, -1)
    for observe in _observers:
        observe(module, query, key, value, method, attn_mask, causal, scaling)
    out = attention(
        query, key, value, method, attn_mask=attn_mask, causal=causal, scale=scaling, dropout_p=dropout
    )  # fmt: skip
    if layer is not None:
        layer.attended(Call(module.layer_idx, module, query, key, value, method, attn_mask, causal, scaling))  # type: ignore[arg-type]
    return out.transpose(1, 2).contiguous(), None


def _of_layer(module: nn.Module, method: PerLayer) -> Method:
    """What this layer keeps; decoders count their layers apart from the encoder's."""
    layer = getattr(module, "layer_idx", None)
    if layer is None:
        raise ValueError(
            f"dynattn: {type(module).__name__} has no layer_idx, by which {method.name} tells layers apart; set "
            "module.layer_idx on the attention modules of this model, counting from 0"
        )
    return method.at(layer)


def _is_causal(
    module: nn.Module, query: Tensor, key: Tensor, attention_mask: Tensor | None, is_causal: bool | None
) -> bool:
    """Whether the mask was left out because the layer is causal; the rule is transformers'."""
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    q_len, kv_len = query.shape[2], key.shape[2]
    if attention_mask is not None or not is_causal or q_len == 1:
        return False
    if q_len != kv_len:
        raise ValueError(
            f"dynattn: {type(module).__name__} asks for causal attention without a mask, which does not say where the "
            f"queries stand among the keys: got q_len {q_len}, kv_len {kv_len}; pass a "
            "4-dimensional attention_mask, or use attn_implementation='sdpa' for this model"
        )
    return True


def _merge(attention_mask: Tensor | None, position_bias: Tensor | None) -> Tensor | None:
    """One mask from a mask (bool or additive) and an additive bias."""
    if position_bias is None or attention_mask is None:
        return attention_mask if position_bias is None else position_bias
    if attention_mask.dtype == torch.bool:
        return position_bias.masked_fill(~attention_mask, -torch.inf)
    return position_bias + attention_mask


def _refuse_unsupported(module: nn.Module, kwargs: dict[str, Any]) -> None:
    for name, would in _UNSUPPORTED.items():
        if kwargs.get(name) is not None and kwargs[name] is not False:
            raise ValueError(
                f"dynattn: attention cannot {would}: {type(module).__name__} passes {name}; use "
                "attn_implementation='eager' for this model or this call"
            )

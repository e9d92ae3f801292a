"""The attention function that Transformers calls in each layer."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from dynattn.functional import attention
from dynattn.integrations.transformers import contracts, paged, places
from dynattn.integrations.transformers.caches import following
from dynattn.integrations.transformers.calls import Call, observers, replacements
from dynattn.integrations.transformers.masks import forbidding, narrow
from dynattn.integrations.transformers.packed import Span, note_several, refuse_lengths, texts
from dynattn.methods import Method, PerLayer

# Arguments by which models change what attention computes; what this one would have to be able to do, and the remedy.
_EAGER = "call model.set_attn_implementation('eager'), or load the model with attn_implementation='eager'"
_UNSUPPORTED = {
    "softcap": ("cap the scores with tanh", _EAGER),
    "s_aux": ("add a learned sink to the softmax", _EAGER),
    "sinks": ("add a learned sink to the softmax", _EAGER),
    "head_mask": (
        "scale heads",
        "leave it out, since the models of Transformers 5 ignore it with every implementation; to silence a head, set "
        "the rows of the output projection that read it to 0",
    ),
    "indices": ("attend to keys that the model selects", _EAGER),
    "block_indices": ("attend to blocks that the model selects", _EAGER),
    "block_mask": ("take a flex_attention block mask", "pass a 4-dimensional attention_mask"),
    "output_attentions": (
        "return the attention weights",
        "call model.set_attn_implementation('eager') before you ask for them; an argument of the call does not change "
        "the implementation",
    ),
}


def forward(
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
    decoding: Method | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The function that Transformers calls in each attention layer; returns (batch, q_len, heads, value_dim).

    In continuous batching, whose calls hold requests of both phases, ``decoding`` is the method of those that decode.
    """
    _refuse_unsupported(module, attention_mask, kwargs)
    if kwargs.get("cache") is not None:
        methods = method, method if decoding is None else decoding
        return _paged(module, query, key, value, position_bias, methods, scaling, kwargs), None
    layer = following(key)
    spans = None if layer is not None else texts(kwargs, attention_mask, query.shape[0], query.shape[2], key.shape[2])
    if spans is None:
        refuse_lengths(kwargs, attention_mask, query.shape[2], key.shape[2])
    else:
        note_several(key)
    method = _chosen(module, method)
    if layer is not None:
        method = layer.method(method, query.shape[2])
    causal = causal_without_mask(module, query, key, attention_mask, is_causal)
    if query.shape[0] == 1 < key.shape[0]:  # learned queries that all samples share
        query = query.expand(key.shape[0], -1, -1, -1)
    if layer is not None:
        call = Call(module.layer_idx, module, query, key, value, method, attention_mask, causal, scaling)  # type: ignore[arg-type]
        found = None if dropout or position_bias is not None else layer.attend(call)
        if found is not None:
            if observers:
                _observe(module, query, key, value, layer.fit(attention_mask), causal, method, scaling)
            layer.attended(call)
            return found.transpose(1, 2).contiguous(), None
        attention_mask = layer.fit(attention_mask)
    attn_mask = merge(attention_mask, position_bias)
    if attn_mask is not None and not method.keeps_everything:
        attn_mask = forbidding(attn_mask)
    if spans is not None:
        parts = [_part(query, key, value, attn_mask, span) for span in spans]
        out = torch.cat([_attend(module, *part, causal, method, scaling, dropout) for part in parts], dim=2)
        return out.transpose(1, 2).contiguous(), None
    if _has_free_slots(module, query, key, attn_mask, is_causal, method):
        if torch.compiler.is_compiling():
            scale = query.shape[-1] ** -0.5 if scaling is None else scaling
            out = places.attention_up_to(query, key, value, attn_mask, method.known_as, scale)
            return out.transpose(1, 2).contiguous(), None
        end = int(places.end_of(attn_mask))  # type: ignore[arg-type]
        key, value, attn_mask = key[:, :, :end], value[:, :, :end], attn_mask[..., :end]  # type: ignore[index]
    out = _attend(module, query, key, value, attn_mask, causal, method, scaling, dropout, layer)
    return out.transpose(1, 2).contiguous(), None


def _paged(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, position_bias: Tensor | None,
    methods: tuple[Method, Method], scaling: float | None, kwargs: dict[str, Any],
) -> Tensor:  # fmt: skip
    """Attention in continuous batching, whose masks are not needed."""
    if position_bias is not None:
        raise ValueError(
            f"dynattn: continuous batching cannot add a position bias: {type(module).__name__} passes position_bias; "
            "use generate()"
        )
    prefill, decode = (_chosen(module, method) for method in methods)
    return paged.attend(module, query, key, value, kwargs["cache"], (prefill, decode), scaling, kwargs)


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, causal: bool,
    method: Method, scaling: float | None, dropout: float, layer: Any = None,
) -> Tensor:  # fmt: skip
    _observe(module, query, key, value, attn_mask, causal, method, scaling)
    options: dict[str, Any] = {"attn_mask": attn_mask, "causal": causal, "scale": scaling, "dropout_p": dropout}
    out = attention(query, key, value, method, **options)
    if layer is not None:
        layer.attended(Call(module.layer_idx, module, query, key, value, method, attn_mask, causal, scaling))  # type: ignore[arg-type]
    return out


def _observe(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, causal: bool,
    method: Method, scaling: float | None,
) -> None:  # fmt: skip
    """Show a call to the observers, who may try any method on it."""
    if observers:
        seen = None if attn_mask is None else forbidding(attn_mask)
        for observe in observers:
            observe(module, query, key, value, method, seen, causal, scaling)


def _part(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, span: Span
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """One text of a packed sample, and its part of the mask."""
    if mask is not None:
        mask = mask[..., span.queries, :] if mask.shape[-2] > 1 else mask
        mask = mask[..., span.keys] if mask.shape[-1] > 1 else mask
    return query[:, :, span.queries], key[:, :, span.keys], value[:, :, span.keys], mask


def causal_without_mask(
    module: nn.Module, query: Tensor, key: Tensor, attention_mask: Tensor | None, is_causal: bool | None
) -> bool:
    """Whether the mask was left out because the layer is causal.

    The rule is that of transformers' ``sdpa``; models that don't support that follow the rule of ``eager``, to which
    no mask is no mask.
    """
    q_len, kv_len = query.shape[2], key.shape[2]
    config = getattr(module, "config", None)
    if attention_mask is not None or q_len == 1 or contracts.eager_alone(config):
        return False
    if not getattr(config, "is_causal", True):  # Transformers makes masks for both directions then
        return False
    if not _says_causal(module, is_causal):
        return False
    if q_len != kv_len:
        raise ValueError(
            f"dynattn: {type(module).__name__} asks for causal attention without a mask, which does not say where the "
            f"queries stand among the keys: got q_len {q_len}, kv_len {kv_len}; pass a "
            "4-dimensional attention_mask, or use attn_implementation='sdpa' for this model"
        )
    return True


def merge(attention_mask: Tensor | None, position_bias: Tensor | None) -> Tensor | None:
    """One mask from a mask (bool or additive) and an additive bias."""
    if attention_mask is None:
        return position_bias
    if position_bias is None:
        return narrow(attention_mask)
    if attention_mask.dtype == torch.bool:
        return position_bias.masked_fill(~attention_mask, -torch.inf)
    return position_bias + attention_mask


def _says_causal(module: nn.Module, is_causal: bool | None) -> bool:
    return bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)


def _has_free_slots(
    module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool | None, method: Method
) -> bool:
    """Whether the keys may end behind the last query, in a way that the method would notice."""
    if mask is None or not method.looks_at_positions or not _says_causal(module, is_causal):
        return False
    return query.shape[2] < key.shape[2] == mask.shape[-1]


def _chosen(module: nn.Module, method: Method) -> Method:
    """What this module keeps."""
    method = _of_layer(module, method) if isinstance(method, PerLayer) else method
    for replace in replacements:
        method = replace(module, method)
    return method


def _of_layer(module: nn.Module, method: PerLayer) -> Method:
    """What this layer keeps; decoders count their layers apart from the encoder's."""
    layer = getattr(module, "layer_idx", None)
    if layer is None:
        raise ValueError(
            f"dynattn: {type(module).__name__} has no layer_idx, by which {method.name} tells layers apart; set "
            "module.layer_idx on the attention modules of this model, counting from 0"
        )
    return method.at(layer)


def _refuse_unsupported(module: nn.Module, mask: Tensor | None, kwargs: dict[str, Any]) -> None:
    if mask is not None and not (isinstance(mask, Tensor) and (mask.dtype == torch.bool or mask.is_floating_point())):
        given = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(
            f"dynattn: attention_mask must be a bool or floating-point tensor: {type(module).__name__} passes {given}; "
            "for a mask of 0 and 1 in 4 dimensions pass attention_mask.bool(), where True may be attended to"
        )
    for name in _UNSUPPORTED:
        if kwargs.get(name) is not None and kwargs[name] is not False:
            _refuse(module, name, "passes")
    if _records_weights():
        _refuse(module, "output_attentions", "runs in a model that is called with")


def _refuse(module: nn.Module, name: str, how: str) -> NoReturn:
    would, remedy = _UNSUPPORTED[name]
    raise ValueError(f"dynattn: attention cannot {would}: {type(module).__name__} {how} {name}; {remedy}")


def _records_weights() -> bool:
    """Whether the model around this call records attention weights: GPT-2 and others tell their attention nothing."""
    if torch.compiler.is_compiling():  # a graph sees no context variables
        return False
    recording = sys.modules.get("transformers.utils.output_capturing")
    found = None if recording is None else recording._active_collector.get()
    return found is not None and any("attentions" in name for name in found)

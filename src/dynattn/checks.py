"""The checks of :func:`dynattn.attention`'s arguments. Sizes and numbers may be symbols of ``torch.compile``."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import torch
from torch import Tensor

from dynattn.methods.base import Method, MixingMethod, PairMethod
from dynattn.methods.nm import NM
from dynattn.methods.perhead import PerHead
from dynattn.methods.perlayer import PerLayer
from dynattn.methods.registry import parse
from dynattn.ops import sharding, transforms

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_NUMBERS = (int, float, torch.SymInt, torch.SymFloat)
# The bounds of a scale in float32. A smaller scale loses bits; a larger one overflows where kernels turn e^s into a
# power of 2.
_LEAST_SCALE, _LARGEST_SCALE = 2.0**-126, 2.0**127


def check(
    query: Tensor, key: Tensor, value: Tensor, method: Method, attn_mask: Tensor | None, causal: bool,
    scale: float | None, dropout_p: float, seed: int | Tensor | None, aux: bool,
) -> None:  # fmt: skip
    """Refuse what :func:`dynattn.attention` cannot take.

    Args:
        query, key, value, method, attn_mask, causal, scale, dropout_p, seed: as :func:`dynattn.attention` takes them,
            after autocast.
        aux: ``return_aux``.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`dynattn.attention` says.
    """
    if not (isinstance(query, Tensor) and isinstance(key, Tensor) and isinstance(value, Tensor)):
        raise TypeError(
            "attention: query, key and value must be tensors: got "
            f"{type(query).__name__}, {type(key).__name__}, {type(value).__name__}; convert with torch.as_tensor()"
        )
    _check_layout("query", query)
    _check_layout("key", key)
    _check_layout("value", value)
    if not isinstance(method, NM):  # an NM has checked itself, and every call can take it
        _check_method(method, aux, dropout_p)
    if not _shapes_fit(query.shape, key.shape, value.shape):
        _refuse_shapes(query.shape, key.shape, value.shape)
    dtype, device = query.dtype, query.device
    if dtype not in _DTYPES or key.dtype != dtype or value.dtype != dtype:
        raise TypeError(
            "attention: query, key and value must share one dtype, float32, bfloat16, float16 or float64: got "
            f"{dtype}, {key.dtype}, {value.dtype}; convert with .to()"
        )
    if key.device != device or value.device != device:
        raise ValueError(
            "attention: query, key and value must be on one device: got "
            f"{device}, {key.device}, {value.device}; move them with .to()"
        )
    if attn_mask is not None:
        _check_mask(attn_mask, query, key)
    if not isinstance(causal, bool):
        raise TypeError(f"attention: causal must be a bool: got {causal!r}; pass True or False")
    if scale is not None:
        _check_scale(scale, dtype)
    if dropout_p != 0 or seed is not None:
        check_dropout(dropout_p, seed, device)
    if not (type(query) is type(key) is type(value) is Tensor and (attn_mask is None or type(attn_mask) is Tensor)):
        _check_shards(query, key, value, attn_mask, dropout_p)


def _check_layout(name: str, x: Tensor) -> None:
    if x.is_nested:
        raise TypeError(
            f"attention: {name} must be a tensor of one shape: got a nested tensor; pad it with "
            "torch.nested.to_padded_tensor(x, 0.0) and forbid the padding by an attn_mask of shape (batch, 1, 1, "
            "kv_len), or call attention for each sequence of .unbind()"
        )
    if x.layout is not torch.strided:
        raise TypeError(f"attention: {name} must be a dense tensor: got layout {x.layout}; convert with .to_dense()")


def _check_shards(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, dropout_p: float) -> None:
    """Refuse a mixture of ``DTensor`` and other tensors, and dropout of a ``DTensor``."""
    tensors = (query, key, value, *(() if attn_mask is None else (attn_mask,)))
    sharded = [sharding.is_sharded(x) for x in tensors]
    if not any(sharded):
        return
    if not all(sharded):
        raise TypeError(
            "attention: query, key, value and attn_mask must all be DTensor, or none of them: got "
            f"{', '.join(type(x).__name__ for x in tensors)}; convert with torch.distributed.tensor.distribute_tensor()"
        )
    if dropout_p != 0:
        raise NotImplementedError(
            f"attention: dropout_p must be 0 for DTensor: got {dropout_p}; call attention on .to_local(), with a seed "
            "of its own on each rank"
        )


def _check_scale(scale: float, dtype: torch.dtype) -> None:
    if not isinstance(scale, _NUMBERS):
        raise TypeError(f"attention: scale must be a number or None: got {scale!r}; pass a Python float")
    size = abs(scale)
    if not 0 < size <= sys.float_info.max:
        raise ValueError(f"attention: scale must be finite and not 0: got {scale}; use None for head_dim ** -0.5")
    if dtype != torch.float64 and not _LEAST_SCALE <= size <= _LARGEST_SCALE:
        raise ValueError(
            f"attention: scale must be between 2**-126 and 2**127 in size, as scores are computed in float32: got "
            f"{scale}; scale the query, or convert to float64"
        )


def _check_method(method: Method, aux: bool, dropout_p: float) -> None:
    if isinstance(method, PerLayer):
        raise ValueError(
            f"attention: method must be one layer's: got {method.name}; pass method.at(layer), or register the name "
            "with dynattn.integrations.transformers, which does"
        )
    if not isinstance(method, (PairMethod, MixingMethod, PerHead)):
        raise TypeError(f"attention: method must be a method such as NM(2, 4): got {method!r}; see dynattn.methods")
    if not torch.compiler.is_compiling() and parse(method.name) != method:
        raise ValueError(
            f"attention: parse(method.name) must be the method: got {parse(method.name)!r} for {method.name!r}, not "
            f"{method!r}; make name and from_name() of {type(method).__name__} hold all of its fields"
        )
    if transforms.active() and not isinstance(method, PerHead):  # the parts of PerHead are asked in turn
        raise NotImplementedError(
            f"attention: torch.func takes N:M attention alone: got {method.name}; call backward() in its place"
        )
    if isinstance(method, MixingMethod) and (aux or dropout_p != 0):
        what = "return_aux=True" if aux else f"dropout_p={dropout_p}"
        raise ValueError(
            f"attention: {what} needs a method that keeps pairs: {method.name} keeps none; leave it out, and see "
            "dynattn.metrics.relative_error for what such a method loses"
        )


def _shapes_fit(q: torch.Size, k: torch.Size, v: torch.Size) -> bool:
    """Check all shapes at once: a small call feels every microsecond, and only a wrong one needs to know what is
    wrong."""
    if not len(q) == len(k) == len(v) == 4:
        return False
    batch, heads, _, head_dim = q
    _, kv_heads, kv_len, _ = k
    return (
        k[0] == batch and k[3] == head_dim and v[0] == batch and v[1] == kv_heads and v[2] == kv_len
        and head_dim >= 1 and v[3] >= 1
        and kv_heads > 0 and heads > 0 and heads % kv_heads == 0
    )  # fmt: skip


def _refuse_shapes(q: torch.Size, k: torch.Size, v: torch.Size) -> NoReturn:
    for name, shape in (("query", q), ("key", k), ("value", v)):
        if len(shape) != 4:
            raise ValueError(
                f"attention: {name} must have 4 dimensions (batch, heads, length, head_dim): got {tuple(shape)}; "
                "unsqueeze the missing ones"
            )
        if shape[3] < 1:
            raise ValueError(
                f"attention: head_dim must be at least 1: {name} has {shape[3]}; check how its last dimension was cut"
            )
        if shape[0] != q[0]:
            raise ValueError(
                f"attention: batch must match: query has {q[0]}, {name} has {shape[0]}; "
                "expand the smaller with .expand(), which copies nothing"
            )
    if k[3] != q[3]:
        raise ValueError(f"attention: head_dim must match: query has {q[3]}, key has {k[3]}; project both to one size")
    if k[1:3] != v[1:3]:
        raise ValueError(
            "attention: key and value must have the same heads and length: key has "
            f"{tuple(k[1:3])}, value has {tuple(v[1:3])}; cut both to the same keys"
        )
    raise ValueError(
        "attention: heads of query must be a multiple of heads of key and value: query has "
        f"{q[1]}, key has {k[1]}; repeat key and value heads until they divide"
    )


def _check_mask(attn_mask: Tensor, query: Tensor, key: Tensor) -> None:
    if not isinstance(attn_mask, Tensor):
        raise TypeError(
            f"attention: attn_mask must be a tensor or None: got {type(attn_mask).__name__}; use torch.tensor()"
        )
    _check_layout("attn_mask", attn_mask)
    if is_causal_bias(attn_mask):
        raise TypeError(
            "attention: attn_mask must hold a mask: got a CausalBias, whose memory holds none; pass causal=True for "
            "causal_lower_right(), or torch.ones(q_len, kv_len, dtype=torch.bool).tril() for causal_upper_left()"
        )
    if attn_mask.dtype != torch.bool and attn_mask.dtype not in _DTYPES:
        raise TypeError(
            f"attention: attn_mask must be bool or floating point: got {attn_mask.dtype}; for a mask of 0 and 1 "
            "pass attn_mask.bool(), where True may be attended"
        )
    if attn_mask.dtype == torch.float64 and query.dtype != torch.float64:
        raise TypeError("attention: attn_mask must not be float64 where query is not; convert with .to(query.dtype)")
    if attn_mask.device != query.device:
        raise ValueError(
            f"attention: attn_mask must be on the device of query, {query.device}: got {attn_mask.device}; "
            "move it with .to(query.device)"
        )
    target = (*query.shape[:3], key.shape[2])
    fits = attn_mask.dim() <= 4 and all(
        have in (1, want) for have, want in zip(reversed(attn_mask.shape), reversed(target), strict=False)
    )
    if not fits:
        raise ValueError(
            f"attention: attn_mask must broadcast to (batch, heads, q_len, kv_len) = {target}: got "
            f"{tuple(attn_mask.shape)}; a key-padding mask is of shape (batch, 1, 1, kv_len)"
        )


def is_causal_bias(attn_mask: Any) -> bool:
    """Whether a mask is PyTorch's ``CausalBias``: a tensor that stands for a mask, and whose memory nobody has filled.

    Args:
        attn_mask: a tensor, or None.
    """
    if attn_mask is None or type(attn_mask) is Tensor:
        return False
    module = sys.modules.get("torch.nn.attention.bias")
    return module is not None and isinstance(attn_mask, module.CausalBias)


def check_dropout(dropout_p: float, seed: int | Tensor | None, device: torch.device) -> None:
    """Refuse a probability or a seed that :func:`dynattn.attention` cannot take.

    Args:
        dropout_p, seed: as :func:`dynattn.attention` takes them.
        device: the device of query, key and value.

    Raises:
        ValueError: as :func:`dynattn.attention` says.
    """
    if not isinstance(dropout_p, _NUMBERS) or not 0 <= dropout_p < 1:
        raise ValueError(
            f"attention: dropout_p must be a number, at least 0 and below 1: got {dropout_p!r}; pass 0 for no dropout"
        )
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.numel() != 1 or seed.device != device:
            raise ValueError(
                f"attention: seed must be an int64 tensor of one element on {device}: got {tuple(seed.shape)}, "
                f"{seed.dtype}, on {seed.device}; use torch.tensor(seed, device=query.device)"
            )
    elif seed is not None and (not isinstance(seed, (int, torch.SymInt)) or not -(2**63) <= seed < 2**63):
        raise ValueError(f"attention: seed must be an int of 64 bits or a tensor: got {seed!r}; leave it out for None")

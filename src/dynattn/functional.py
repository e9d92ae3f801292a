"""``attention()``: check the inputs, choose a backend, call its operator. ``explain()``: the same, without the call."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Literal, NamedTuple, NoReturn, cast, overload

import torch
from torch import Tensor

from dynattn.methods import NM, Method, MixingMethod, PairMethod, PerHead, PerLayer, Window, parse
from dynattn.ops import banded, heads, transforms
from dynattn.ops.blocks import block_attention
from dynattn.ops.choose import Plan, Problem, chooses_by_row, explain_choice, route
from dynattn.ops.nm import nm_attention
from dynattn.ops.pairs import pair_attention
from dynattn.ops.rows import row_attention

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_MAX_HEAD_DIM = 256


class Aux(NamedTuple):
    """What attention kept and what it lost.

    Attributes:
        logsumexp: natural log of the sum of ``exp(s)`` over kept entries, (batch, heads, q_len), float32 (float64
            for float64 inputs); -inf for a row with nothing allowed. Differentiable. With it, results over parts of
            the keys merge exactly.
        kept_mass: the dense softmax weight that the kept entries hold, between 0 and 1, (batch, heads, q_len). The
            output's error is at most ``(1 - kept_mass) · diameter of V``; never below N/M. 1 for a row with nothing
            allowed. Carries no gradient.
        density: kept pairs over allowed pairs, measured, (batch, heads), float32; 1 where nothing is allowed.
    """

    logsumexp: Tensor
    kept_mass: Tensor
    density: Tensor


@overload
def attention(
    query: Tensor, key: Tensor, value: Tensor, method: Method = ..., *, attn_mask: Tensor | None = ...,
    causal: bool = ..., scale: float | None = ..., dropout_p: float = ..., seed: int | Tensor | None = ...,
    backend: str = ..., return_aux: Literal[False] = ...,
) -> Tensor: ...  # fmt: skip


@overload
def attention(
    query: Tensor, key: Tensor, value: Tensor, method: Method = ..., *, attn_mask: Tensor | None = ...,
    causal: bool = ..., scale: float | None = ..., dropout_p: float = ..., seed: int | Tensor | None = ...,
    backend: str = ..., return_aux: Literal[True],
) -> tuple[Tensor, Aux]: ...  # fmt: skip


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    method: Method = NM(2, 4),
    *,
    attn_mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int | Tensor | None = None,
    backend: str = "auto",
    return_aux: bool = False,
) -> Tensor | tuple[Tensor, Aux]:
    """Attention that keeps only the weights that matter, chosen anew for every input.

        out = softmax(scale · QKᵀ + bias, over the pairs that ``method`` keeps) V

    Takes the place of ``torch.nn.functional.scaled_dot_product_attention``. Memory is linear in length, in the
    backward too, which holds the choice fixed. Under ``torch.autocast`` float32 inputs are computed in its dtype.

    Args:
        query: (batch, heads, q_len, head_dim), float32, bfloat16, float16 or float64. Half-precision inputs are
            computed in float32. Any strides; a last dimension that is not contiguous is copied.
        key: (batch, kv_heads, kv_len, head_dim); ``heads`` is a multiple of ``kv_heads`` (grouped queries).
        value: (batch, kv_heads, kv_len, value_dim). head_dim and value_dim between 1 and 256.
        method: what to keep, for example ``NM(2, 4)``; ``NM(n, n)`` is dense attention.
        attn_mask: broadcasts to (batch, heads, q_len, kv_len). bool: True may be attended; floating point: added to
            the scores, -inf forbids. A key-padding mask of shape (batch, 1, 1, kv_len) is never expanded in memory.
        causal: forbid keys after the query. Aligned bottom-right where q_len != kv_len, as in FlashAttention: query i
            sees keys ``j <= i + kv_len - q_len``. (PyTorch's ``is_causal`` aligns top-left.)
        scale: factor of the scores, not 0, of either sign; None for ``head_dim ** -0.5``.
        dropout_p: probability, at least 0 and below 1, with which a kept weight is dropped; the others are divided by
            ``1 - dropout_p``. As in PyTorch, pass 0 outside of training.
        seed: of dropout, an int of 64 bits or an int64 tensor of one: the same seed drops the same pairs, on every
            device. None draws one from PyTorch's generator of this device (``torch.manual_seed``).
        backend: ``auto`` takes the fastest that computes the definition; by name, that one runs or raises.
            :func:`explain` shows the choice.
        return_aux: also return what was kept and lost.

    Returns:
        (batch, heads, q_len, value_dim) in the dtype of ``query``; 0 in rows with nothing allowed. With
        ``return_aux``, a pair of it and :class:`Aux`.

    Raises:
        TypeError: an argument is of a wrong type or dtype.
        ValueError: shapes, devices or values do not fit; the text says which, and what to do.
        RuntimeError: the backend asked for cannot run this.

    Source: the method's; see its docstring. N:M: arXiv:2203.00091.
    """
    query, key, value = _autocast(query, key, value)
    problem = _check(query, key, value, method, attn_mask, causal, scale, dropout_p, seed, return_aux)
    if isinstance(method, PerHead):
        options = {"causal": causal, "scale": scale, "dropout_p": dropout_p, "backend": backend}
        return _by_head(list(heads.parts(query, key, value, method, attn_mask, seed)), options, return_aux)
    chosen = route(problem, backend)
    factor = query.shape[-1] ** -0.5 if scale is None else float(scale)
    if chosen == "sdpa":
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=causal, scale=factor, enable_gqa=query.shape[1] != key.shape[1]
        )
    if chosen == "blockwise":
        return banded.attend(
            partial(attention, method=NM(1, 1)),
            query, key, value, cast(Window, method), attn_mask=attn_mask, causal=causal, scale=factor,
        )  # fmt: skip
    if isinstance(method, MixingMethod):
        with torch.autocast(query.device.type, enabled=False):  # float32 means float32
            return method.attend(query, key, value, attn_mask=attn_mask, causal=causal, scale=factor)
    tensors = (query, key, value, attn_mask, _seed(dropout_p, seed, query.device))
    if isinstance(method, NM):
        transformed = transforms.active() and not torch.compiler.is_compiling()  # which maps the operator itself
        call = transforms.NMAttention.apply if transformed else nm_attention
        out, logsumexp, kept_mass, kept, allowed = call(
            *tensors, method.n, method.m, method.window, method.sinks, method.stride, causal, factor, float(dropout_p),
            return_aux, problem.needs_grad, chosen,
        )  # fmt: skip
    elif chosen == "reference":
        out, logsumexp, kept_mass, kept, allowed = pair_attention(
            *tensors, method.known_as, causal, factor, float(dropout_p), return_aux
        )
    elif chooses_by_row(method):
        out, logsumexp, kept_mass, kept, allowed, _, _ = row_attention(
            *tensors, method.known_as, causal, factor, float(dropout_p), return_aux, chosen
        )
    else:
        out, logsumexp, kept_mass, kept, allowed, _ = block_attention(
            *tensors, method.known_as, causal, factor, float(dropout_p), return_aux, problem.needs_grad, chosen
        )
    if not return_aux:
        return out
    pairs = allowed.sum(-1)
    density = (kept.sum(-1) / pairs.clamp(min=1)).masked_fill(pairs == 0, 1.0)
    return out, Aux(logsumexp, kept_mass, density)


def explain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    method: Method = NM(2, 4),
    *,
    attn_mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int | Tensor | None = None,
    backend: str = "auto",
    return_aux: bool = False,
) -> Plan:
    """Which backend :func:`attention` would run for the same arguments, and why not a faster one.

    Args:
        As :func:`attention`.

    Returns:
        The plan; print it to read it.

    Raises:
        What :func:`attention` raises for the same arguments.
    """
    query, key, value = _autocast(query, key, value)
    problem = _check(query, key, value, method, attn_mask, causal, scale, dropout_p, seed, return_aux)
    if isinstance(method, PerHead):
        options = {"causal": causal, "scale": scale, "dropout_p": dropout_p, "return_aux": return_aux}
        plans = {
            f"{part.method.name}, {len(part.heads)} of {query.shape[1]} heads": explain(
                *part[2:5], part.method, attn_mask=part.attn_mask, seed=part.seed, backend=backend, **options
            )
            for part in heads.parts(query, key, value, method, attn_mask, seed)
        }
        return Plan("perhead", "; ".join(f"{which}: {plan}" for which, plan in plans.items()))
    return explain_choice(problem, backend)


def _by_head(of: list[heads.Part], options: dict[str, Any], return_aux: bool) -> Tensor | tuple[Tensor, Aux]:
    """Each method on its heads; the results in the order of the heads."""
    calls = [
        (part[2:5], {"method": part.method, "attn_mask": part.attn_mask, "seed": part.seed, **options}) for part in of
    ]
    if not return_aux:
        return heads.in_order([attention(*tensors, **its) for tensors, its in calls], of)
    found = [attention(*tensors, **its, return_aux=True) for tensors, its in calls]
    fields = zip(*(aux for _, aux in found), strict=True)
    return heads.in_order([out for out, _ in found], of), Aux(*(heads.in_order(list(field), of) for field in fields))


def _autocast(*inputs: Tensor) -> tuple[Tensor, ...]:
    """The inputs as autocast has them where it is on, by the rule that PyTorch's own attention follows."""
    device = inputs[0].device.type if isinstance(inputs[0], Tensor) else "meta"
    if device == "meta" or not torch.is_autocast_enabled(device):  # the meta device has no autocast
        return inputs
    dtype = torch.get_autocast_dtype(device)
    halves = (torch.float32, torch.bfloat16, torch.float16)
    return tuple(x.to(dtype) if isinstance(x, Tensor) and x.dtype in halves else x for x in inputs)


def _seed(dropout_p: float, seed: int | Tensor | None, device: torch.device) -> Tensor | None:
    if dropout_p == 0:
        return None
    if seed is None:
        return torch.randint(2**63 - 1, (), device=device)
    return seed if isinstance(seed, Tensor) else torch.tensor(seed, device=device)


def _check(
    query: Tensor, key: Tensor, value: Tensor, method: Method, attn_mask: Tensor | None, causal: bool,
    scale: float | None, dropout_p: float, seed: int | Tensor | None, aux: bool,
) -> Problem:  # fmt: skip
    if not (isinstance(query, Tensor) and isinstance(key, Tensor) and isinstance(value, Tensor)):
        raise TypeError(
            "attention: query, key and value must be tensors: got "
            f"{type(query).__name__}, {type(key).__name__}, {type(value).__name__}; convert with torch.as_tensor()"
        )
    if not isinstance(method, NM):  # which needs no further look
        _check_method(method, aux, dropout_p)
    q, k, v = query.shape, key.shape, value.shape
    if not _shapes_fit(q, k, v):
        _refuse_shapes(q, k, v)
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
    if scale is not None and not isinstance(scale, (int, float)):
        raise TypeError(f"attention: scale must be a number or None: got {scale!r}; pass a Python float")
    if scale is not None and (not math.isfinite(scale) or scale == 0):
        raise ValueError(f"attention: scale must be finite and not 0: got {scale}; use None for head_dim ** -0.5")
    if dropout_p != 0 or seed is not None:
        _check_dropout(dropout_p, seed, device)
    inputs = (query, key, value, attn_mask)
    needs_grad = torch.is_grad_enabled() and (
        any(x is not None and x.requires_grad for x in inputs) or transforms.active()  # vmap hides requires_grad
    )
    return Problem(
        device, dtype, method, attn_mask is not None, not causal or q[2] == k[2], aux, q[3], v[3], dropout_p > 0,
        needs_grad, attn_mask is not None and _by_query(attn_mask),
        needs_grad and attn_mask is not None and attn_mask.requires_grad,
    )  # fmt: skip


def _by_query(mask: Tensor) -> bool:
    return mask.dtype != torch.bool or (mask.dim() > 1 and mask.shape[-2] != 1)


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
    if transforms.active() and not isinstance(method, PerHead):  # whose parts are asked in turn
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
    """One pass for the call that is right, since small calls feel every microsecond."""
    if not len(q) == len(k) == len(v) == 4:
        return False
    batch, heads, _, head_dim = q
    _, kv_heads, kv_len, _ = k
    return (
        k[0] == batch and k[3] == head_dim and v[0] == batch and v[1] == kv_heads and v[2] == kv_len
        and 1 <= head_dim <= _MAX_HEAD_DIM and 1 <= v[3] <= _MAX_HEAD_DIM
        and kv_heads > 0 and heads > 0 and heads % kv_heads == 0
    )  # fmt: skip


def _refuse_shapes(q: torch.Size, k: torch.Size, v: torch.Size) -> NoReturn:
    for name, shape in (("query", q), ("key", k), ("value", v)):
        if len(shape) != 4:
            raise ValueError(
                f"attention: {name} must have 4 dimensions (batch, heads, length, head_dim): got {tuple(shape)}; "
                "unsqueeze the missing ones"
            )
        if not 1 <= shape[3] <= _MAX_HEAD_DIM:
            raise ValueError(
                f"attention: head_dim must be between 1 and {_MAX_HEAD_DIM}: {name} has {shape[3]}; "
                "split into more heads"
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


def _check_dropout(dropout_p: float, seed: int | Tensor | None, device: torch.device) -> None:
    if not isinstance(dropout_p, (int, float)) or not 0 <= dropout_p < 1:
        raise ValueError(
            f"attention: dropout_p must be a number, at least 0 and below 1: got {dropout_p!r}; pass 0 for no dropout"
        )
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.numel() != 1 or seed.device != device:
            raise ValueError(
                f"attention: seed must be an int64 tensor of one element on {device}: got {tuple(seed.shape)}, "
                f"{seed.dtype}, on {seed.device}; use torch.tensor(seed, device=query.device)"
            )
    elif seed is not None and (not isinstance(seed, int) or not -(2**63) <= seed < 2**63):
        raise ValueError(f"attention: seed must be an int of 64 bits or a tensor: got {seed!r}; leave it out for None")


def _check_mask(attn_mask: Tensor, query: Tensor, key: Tensor) -> None:
    if not isinstance(attn_mask, Tensor):
        raise TypeError(
            f"attention: attn_mask must be a tensor or None: got {type(attn_mask).__name__}; use torch.tensor()"
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

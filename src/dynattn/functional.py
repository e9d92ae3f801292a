"""``attention()``: check the arguments, split by head if asked, route, run. ``explain()``: the route alone."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, cast, overload

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from dynattn import backends, heads
from dynattn.backends import Call, Plan, Result, again
from dynattn.checks import check
from dynattn.methods import NM, Method, PerHead
from dynattn.ops import transforms


class Aux(NamedTuple):
    """What attention kept and what it lost.

    Attributes:
        logsumexp: natural log of the sum of ``exp(s)`` over kept entries, (batch, heads, q_len), float32 (float64
            for float64 inputs); -inf for a row with nothing allowed. Differentiable. With it, results over parts of
            the keys merge exactly.
        kept_mass: the dense softmax weight that the kept entries hold, between 0 and 1, (batch, heads, q_len). The
            output's error is at most ``(1 - kept_mass) · diameter of V``. With N:M attention it is never below N/M. It
            is 1 for a row with nothing allowed, and carries no gradient.
        density: kept pairs over allowed pairs, measured, (batch, heads), float32; 1 where nothing is allowed.
    """

    logsumexp: Tensor
    kept_mass: Tensor
    density: Tensor

    @classmethod
    def of(cls, result: Result) -> Aux:
        """The certificate of what a backend computed."""
        logsumexp, kept_mass, kept, allowed = cast("tuple[Tensor, ...]", result[1:])
        pairs = allowed.sum(-1)
        return cls(logsumexp, kept_mass, (kept.sum(-1).float() / pairs.clamp(min=1)).masked_fill(pairs == 0, 1.0))


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
        value: (batch, kv_heads, kv_len, value_dim). head_dim and value_dim are at least 1.
        method: what to keep, for example ``NM(2, 4)``; ``NM(n, n)`` is dense attention.
        attn_mask: broadcasts to (batch, heads, q_len, kv_len). bool: True may be attended; floating point: added to
            the scores, -inf forbids. A key-padding mask of shape (batch, 1, 1, kv_len) is never expanded in memory.
        causal: forbid keys after the query. Aligned bottom-right where q_len != kv_len, as in FlashAttention: query i
            sees keys ``j <= i + kv_len - q_len``. (PyTorch's ``is_causal`` aligns top-left.)
        scale: factor of the scores, not 0, of either sign; None for ``head_dim ** -0.5``.
        dropout_p: probability, at least 0 and below 1, with which a kept weight is dropped; the others are divided by
            ``1 - dropout_p``. As in PyTorch, pass 0 outside of training.
        seed: the seed of dropout, a 64-bit int or an int64 tensor with one element. The same seed drops the same pairs
            on every device. None draws one from PyTorch's generator of this device (``torch.manual_seed``).
        backend: ``auto`` takes the fastest backend that computes the definition. A backend asked for by name runs, or
            the call raises. :func:`explain` shows the choice.
        return_aux: also return what was kept and lost.

    Returns:
        (batch, heads, q_len, value_dim) in the dtype of ``query``; 0 in rows with nothing allowed. With
        ``return_aux``, a pair of it and :class:`Aux`.

    Raises:
        TypeError: an argument is of a wrong type or dtype.
        ValueError: shapes, devices or values do not fit; the text says which, and what to do.
        RuntimeError: the backend asked for cannot run this.
        NotImplementedError: ``torch.func`` is asked for a method other than N:M, or a ``DTensor`` for dropout.

    Source: the method's; see its docstring. N:M: arXiv:2203.00091.
    """
    special = return_aux or seed is not None or dropout_p != 0
    known = again.key_of(query, key, value, attn_mask, method, causal, scale, backend, special)
    if known is not None and (plan := again.find(known)) is not None:
        return plan.run(query, key, value, attn_mask)
    plain = isinstance(query, Tensor) and isinstance(key, Tensor) and isinstance(value, Tensor)
    if not plain and has_torch_function((query, key, value)):
        options = {"attn_mask": attn_mask, "causal": causal, "scale": scale, "dropout_p": dropout_p, "seed": seed}
        options |= {"backend": backend, "return_aux": return_aux}
        return handle_torch_function(attention, (query, key, value), query, key, value, method, **options)
    query, key, value = autocast(query, key, value)
    check(query, key, value, method, attn_mask, causal, scale, dropout_p, seed, return_aux)
    if isinstance(method, PerHead):
        options = {"causal": causal, "scale": scale, "dropout_p": dropout_p, "backend": backend}
        return _by_head(list(heads.parts(query, key, value, method, attn_mask, seed)), options, return_aux)
    method = _plainest(method, query, key, backend)
    call = call_of(query, key, value, method, attn_mask, causal, scale, dropout_p, seed, return_aux)
    chosen = backends.route(call.problem, backend)
    if known is not None:
        again.remember(known, chosen, call)
    result = chosen.run(call)
    return (result.out, Aux.of(result)) if return_aux else result.out


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
    query, key, value = autocast(query, key, value)
    check(query, key, value, method, attn_mask, causal, scale, dropout_p, seed, return_aux)
    if isinstance(method, PerHead):
        options = {"causal": causal, "scale": scale, "dropout_p": dropout_p, "return_aux": return_aux}
        plans = {
            f"{part.method.name}, {len(part.heads)} of {query.shape[1]} heads": explain(
                *part[2:5], part.method, attn_mask=part.attn_mask, seed=part.seed, backend=backend, **options
            )
            for part in heads.parts(query, key, value, method, attn_mask, seed)
        }
        return Plan(None, "each head by its own method", parts=plans)
    method = _plainest(method, query, key, backend)
    call = call_of(query, key, value, method, attn_mask, causal, scale, dropout_p, seed, return_aux)
    return backends.explain(call.problem, backend)


def _by_head(of: list[heads.HeadPart], options: dict[str, Any], return_aux: bool) -> Tensor | tuple[Tensor, Aux]:
    """Run each method on its heads, and put the results in the order of the heads."""
    calls = [
        (part[2:5], {"method": part.method, "attn_mask": part.attn_mask, "seed": part.seed, **options}) for part in of
    ]
    if not return_aux:
        return heads.in_order([attention(*tensors, **its) for tensors, its in calls], of)
    found = [attention(*tensors, **its, return_aux=True) for tensors, its in calls]
    fields = zip(*(aux for _, aux in found), strict=True)
    return heads.in_order([out for out, _ in found], of), Aux(*(heads.in_order(list(field), of) for field in fields))


def _plainest(method: Method, query: Tensor, key: Tensor, backend: str) -> Method:
    """Dense attention in place of a method that is dense attention at these lengths, where ``auto`` may choose.

    A compiler is not asked for lengths, since it would compile for those at hand alone.
    """
    if backend != "auto" or isinstance(method, NM):
        return method
    dense = method.keeps_everything
    if not torch.compiler.is_compiling():
        dense = method.keeps_all(query.shape[2], key.shape[2])
    return NM(1, 1) if dense else method


def autocast(*inputs: Tensor) -> tuple[Tensor, ...]:
    """Where autocast is on, convert the inputs by the rule that PyTorch's own attention follows.

    Args:
        inputs: query, key and value; what is no tensor passes.
    """
    device = inputs[0].device.type if isinstance(inputs[0], Tensor) else "meta"
    if device == "meta" or not torch.is_autocast_enabled(device):  # the meta device has no autocast
        return inputs
    dtype = torch.get_autocast_dtype(device)
    halves = (torch.float32, torch.bfloat16, torch.float16)
    return tuple(x.to(dtype) if isinstance(x, Tensor) and x.dtype in halves else x for x in inputs)


def call_of(
    query: Tensor, key: Tensor, value: Tensor, method: Method, attn_mask: Tensor | None, causal: bool,
    scale: float | None, dropout_p: float, seed: int | Tensor | None, aux: bool,
) -> Call:  # fmt: skip
    """What backends are given for arguments of :func:`attention` that are checked.

    Args:
        query, key, value, method, attn_mask, causal, scale, dropout_p, seed: as :func:`attention` takes them.
        aux: ``return_aux``.
    """
    needs_grad = torch.is_grad_enabled() and (
        query.requires_grad
        or key.requires_grad
        or value.requires_grad
        or (attn_mask is not None and attn_mask.requires_grad)
        or transforms.active()  # vmap hides requires_grad
    )
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    if isinstance(factor, Tensor):  # as sizes are while torch.jit.trace records
        factor = float(factor)
    return Call(
        query, key, value, attn_mask, _seed(dropout_p, seed, query.device), method, causal, factor, dropout_p, aux,
        needs_grad,
    )  # fmt: skip


def _seed(dropout_p: float, seed: int | Tensor | None, device: torch.device) -> Tensor | None:
    if dropout_p == 0:
        return None
    if seed is None:
        return torch.randint(2**63 - 1, (), device=device)
    return seed if isinstance(seed, Tensor) else torch.full((), seed, dtype=torch.int64, device=device)

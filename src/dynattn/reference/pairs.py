"""Attention over chosen pairs in plain PyTorch: the specification that every kernel is held to.

    s        = scale · QKᵀ + bias                       (-inf where a mask or causality forbids the pair)
    kept     = method.choose(s, …), where s > -inf
    P        = softmax(s | kept)
    out      = P V,    logsumexp = log Σ_kept e^s,    kept mass = Σ_kept softmax(s)

    dV = Pᵀ dO,    dP = dO Vᵀ,    dS = P ∘ (dP - rowsum(P ∘ dP) + dlogsumexp),
    dQ = scale · dS K,    dK = scale · dSᵀ Q

With dropout, P is multiplied by the factors Z of :mod:`dynattn.maths.dropout` where it meets V, and dP by them as
well.

The functions take one block of queries and are quadratic in memory; :mod:`dynattn.reference.in_blocks` calls them block
by block.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dynattn.maths.scores import per_head, scores
from dynattn.methods.base import PairMethod, Rows


class AttendResult(NamedTuple):
    """Result of :func:`attend`."""

    out: Tensor  # (batch, heads, q_len, value_dim)
    logsumexp: Tensor  # (batch, heads, q_len)
    scores: Tensor  # (batch, heads, q_len, kv_len)
    kept: Tensor  # (batch, heads, q_len, kv_len), bool


class ForwardResult(NamedTuple):
    """Result of :func:`forward`, all but ``out`` of shape (batch, heads, q_len)."""

    out: Tensor  # (batch, heads, q_len, value_dim)
    logsumexp: Tensor
    kept_mass: Tensor
    kept: Tensor  # pairs kept, int32
    allowed: Tensor  # pairs that no mask forbids, int32


class Gradients(NamedTuple):
    """Result of :func:`backward`, shaped like the inputs; the mask's is of shape (batch, heads, q_len, kv_len)."""

    query: Tensor
    key: Tensor
    value: Tensor
    scores: Tensor


def select(s: Tensor, method: PairMethod, query: Tensor, key: Tensor, offset: int, scale: float) -> Tensor:
    """The pairs that a method keeps, of those that are allowed.

    Args:
        s: scores (batch, heads, q_len, kv_len), -inf where the pair is not allowed.
        method: what to keep.
        query, key, offset, scale: what the scores were made of, as in :func:`scores`.

    Returns:
        bool (batch, heads, q_len, kv_len).
    """
    heads = query.shape[1]
    rows = Rows(query, per_head(key, heads), offset, scale, heads // key.shape[1])
    return method.choose(s, rows) & (s != -math.inf)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    method: PairMethod,
    attn_mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    offset: int | None = None,
    kept: Tensor | None = None,
    drops: Tensor | None = None,
) -> AttendResult:
    """Attention of one block of queries to the keys that a method keeps.

    Args:
        query: (batch, heads, q_len, head_dim).
        key: (batch, kv_heads, kv_len, head_dim).
        value: (batch, kv_heads, kv_len, value_dim).
        method: what to keep.
        attn_mask: broadcasts to (batch, heads, q_len, kv_len): bool (True: allowed) or float (added).
        causal: forbid keys after the query's position, aligned bottom-right.
        scale: factor of the products; None for ``head_dim ** -0.5``.
        offset: position of the first query on the key axis; None for ``kv_len - q_len``.
        kept: use this choice (bool, as :func:`select` returns) instead of making one: for testing arithmetic alone.
        drops: (batch, heads, q_len, kv_len), factors of dropout; None for none.

    Returns:
        The output in the dtype of ``query``, the rest in the dtype of the arithmetic.
    """
    s, kept, weights, _ = _weights(query, key, method, attn_mask, causal, scale, offset, kept)
    v = per_head(value.to(s.dtype), query.shape[1])
    out = _weighted_sum(_dropped(weights, drops), kept, v).to(query.dtype)
    return AttendResult(out, s.masked_fill(~kept, -math.inf).logsumexp(-1), s, kept)


def forward(query: Tensor, key: Tensor, value: Tensor, method: PairMethod, *rest: Any, **options: Any) -> ForwardResult:
    """Attention of one block of queries, and how much of dense attention it kept.

    Args:
        query, key, value, method, rest, options: as :func:`attend`.

    Returns:
        The output in the dtype of ``query``, the rest in the dtype of the arithmetic.
    """
    out, logsumexp, s, kept = attend(query, key, value, method, *rest, **options)
    allowed = s != -math.inf
    kept_mass = _softmax(s, allowed).where(kept, 0.0).sum(-1).where(allowed.any(-1), 1.0)
    return ForwardResult(
        out, logsumexp, kept_mass, kept.sum(-1, dtype=torch.int32), allowed.sum(-1, dtype=torch.int32)
    )  # fmt: skip


def backward(
    grad_out: Tensor,
    grad_logsumexp: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    method: PairMethod,
    attn_mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    offset: int | None = None,
    drops: Tensor | None = None,
) -> Gradients:
    """Gradients of :func:`forward` with the choice held fixed, which is the derivative wherever it exists.

    Args:
        grad_out: (batch, heads, q_len, value_dim).
        grad_logsumexp: (batch, heads, q_len).
        query, key, value, method, attn_mask, causal, scale, offset, drops: as in :func:`attend`.

    Returns:
        Gradients in the dtype of the arithmetic; keys' and values' summed over the queries of this block.
    """
    s, kept, weights, factor = _weights(query, key, method, attn_mask, causal, scale, offset)
    heads, kv_heads = query.shape[1], key.shape[1]
    q, k, v = query.to(s.dtype), per_head(key.to(s.dtype), heads), per_head(value.to(s.dtype), heads)
    d_out = grad_out.to(s.dtype)
    d_weights = _dropped(d_out @ v.mT, drops).where(kept, 0.0)
    row = (weights * d_weights).sum(-1, keepdim=True)
    d_scores = weights * (d_weights - row + grad_logsumexp.to(s.dtype).unsqueeze(-1))
    return Gradients(
        factor * _weighted_sum(d_scores, kept, k),
        _sum_over_group(factor * _weighted_sum(d_scores.mT, kept.mT, q), kv_heads),
        _sum_over_group(_weighted_sum(_dropped(weights, drops).mT, kept.mT, d_out), kv_heads),
        d_scores,
    )


def _weights(
    query: Tensor, key: Tensor, method: PairMethod, attn_mask: Tensor | None, causal: bool, scale: float | None,
    offset: int | None, kept: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, float]:  # fmt: skip
    """Scores, the kept pairs, their weights, and the scale; arguments as in :func:`attend`."""
    first = key.shape[2] - query.shape[2] if offset is None else offset
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    s = scores(query, key, attn_mask, causal, factor, first)
    kept = select(s, method, query, key, first, factor) if kept is None else kept
    return s, kept, _softmax(s, kept), factor


def _sum_over_group(x: Tensor, kv_heads: int) -> Tensor:
    """The transpose of :func:`dynattn.maths.scores.per_head`."""
    return x.unflatten(1, (kv_heads, x.shape[1] // kv_heads)).sum(2)


def _softmax(s: Tensor, kept: Tensor) -> Tensor:
    """Softmax over the kept scores; a row that keeps nothing gets zeros, not NaN."""
    s = s.masked_fill(~kept, -math.inf).masked_fill(~kept.any(-1, keepdim=True), 0.0)
    return s.softmax(-1).where(kept, 0.0)


def _dropped(x: Tensor, drops: Tensor | None) -> Tensor:
    return x if drops is None else x * drops


def _weighted_sum(weights: Tensor, kept: Tensor, value: Tensor) -> Tensor:
    """``P V``, where a NaN or infinity in a value reaches only the rows that keep its key."""
    finite = value.isfinite()
    if bool(finite.all()):
        return weights @ value
    terms = weights.unsqueeze(-1) * value.unsqueeze(-3)  # [batch, heads, q_len, kv_len, value_dim]
    return terms.where(kept.unsqueeze(-1), 0.0).sum(-2)

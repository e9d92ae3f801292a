"""Scores of pairs, before anything is chosen among them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dynattn.maths.positions import distance


def arithmetic_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that half-precision inputs are computed in: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def scores(query: Tensor, key: Tensor, attn_mask: Tensor | None, causal: bool, scale: float, offset: int = 0) -> Tensor:
    """``scale · QKᵀ + bias``, -inf where the pair is not allowed.

    Args:
        query: (batch, heads, q_len, head_dim).
        key: (batch, kv_heads, kv_len, head_dim).
        attn_mask: broadcasts to (batch, heads, q_len, kv_len): bool (True: allowed) or float (added).
        causal: forbid keys after ``offset + i``.
        scale: factor of the products.
        offset: position of the first query on the key axis, ``kv_len - q_len`` of the whole sequence for its first.

    Returns:
        (batch, heads, q_len, kv_len), float32, or float64 for float64 inputs.
    """
    dtype = arithmetic_dtype(query.dtype)
    s = scale * (query.to(dtype) @ per_head(key.to(dtype), query.shape[1]).mT)
    if attn_mask is not None:
        s = s.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else s + attn_mask.to(dtype)
        forbidden = ~attn_mask if attn_mask.dtype == torch.bool else attn_mask == -math.inf
        s = s.masked_fill(forbidden, -math.inf)  # also where the score itself is NaN
    if causal:
        s = s.masked_fill(distance(s, offset) < 0, -math.inf)
    return s


def per_head(x: Tensor, heads: int) -> Tensor:
    """Repeat each key or value head for the query heads that share it: (batch, heads, kv_len, ...). A dtype is best
    changed before, while there are fewer of them."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)

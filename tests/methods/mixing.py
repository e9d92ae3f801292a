"""Mixing methods one pair at a time, in Python loops and float64: what their tests hold them to."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Weights = Callable[[Tensor, Tensor, Tensor, list[int]], Tensor]
"""Weights of one query over the keys that it sees: (query, all keys, bias, indices of the keys) -> one for each."""


def looped(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, causal: bool, weights: Weights) -> Tensor:
    """``out_i = Σ_j w_ij v_j`` for each batch, head and query in turn.

    Args:
        query: (batch, heads, q_len, head_dim).
        key: (batch, kv_heads, kv_len, head_dim).
        value: (batch, kv_heads, kv_len, value_dim).
        bias: (batch, heads, kv_len), -inf where forbidden; None for none.
        causal: see keys ``j <= i + kv_len - q_len`` only.
        weights: of the keys that a query sees; they sum to 1.
    """
    (batch, heads, q_len, _), kv_len = query.shape, key.shape[2]
    out = torch.zeros(batch, heads, q_len, value.shape[-1], dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            shared = h * key.shape[1] // heads
            row = torch.zeros(kv_len) if bias is None else bias[b, h]
            for i in range(q_len):
                seen = [j for j in range(kv_len) if row[j] != -math.inf and (not causal or j <= i + kv_len - q_len)]
                if seen:
                    found = weights(query[b, h, i].double(), key[b, shared].double(), row.double(), seen)
                    out[b, h, i] = sum(w * value[b, shared, j].double() for w, j in zip(found, seen, strict=True))
    return out

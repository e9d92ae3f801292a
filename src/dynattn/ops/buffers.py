"""Tensors that the operator's backends fill: what they are shaped like, and how they lie in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from dynattn.reference import pairs as reference


def outputs(query: Tensor, value: Tensor, aux: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Outputs to be filled; ``out`` lies in memory as ``query`` does, so that a transpose back costs no copy."""
    batch, heads, q_len, head_dim = query.shape
    value_dim = value.shape[-1]
    dtype = reference.arithmetic_dtype(query.dtype)
    if query.is_contiguous() and head_dim == value_dim:
        out = torch.empty_like(query)  # the quickest way, for calls that last microseconds
    elif query.stride(1) < query.stride(2):  # (batch, length, heads, head_dim) in memory
        out = query.new_empty((batch, q_len, heads, value_dim)).transpose(1, 2)
    else:
        out = query.new_empty((batch, heads, q_len, value_dim))
    logsumexp = query.new_empty((batch, heads, q_len), dtype=dtype)
    if not aux:
        return out, logsumexp, query.new_empty(0), query.new_empty(0), query.new_empty(0)
    kept = query.new_empty((batch, heads, q_len), dtype=torch.int32)
    return out, logsumexp, torch.empty_like(logsumexp), kept, torch.empty_like(kept)


def gradients(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, mask_needs_grad: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients to be filled, each lying as its input does where rows are contiguous there."""
    d_query, d_key, d_value = (
        torch.empty_like(x) if x.stride(-1) == 1 else x.new_empty(x.shape) for x in (query, key, value)
    )
    if attn_mask is None or not mask_needs_grad:
        return d_query, d_key, d_value, query.new_empty(0)
    return d_query, d_key, d_value, attn_mask.new_empty(attn_mask.shape)

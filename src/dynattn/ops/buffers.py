"""Allocates the tensors that the backends of an operator fill. Their rows are contiguous, and no two elements share
memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dynattn.maths.scores import arithmetic_dtype


def output(query: Tensor, value: Tensor) -> Tensor:
    """The output alone, to fill. It lies in memory as ``query`` does, so that a transpose back costs no copy."""
    return _beside(query, value.shape[-1])


def packed_output(query: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """The output of packed texts to fill, (tokens, heads, value_dim), and the same memory as operators have it."""
    _, heads, tokens, _ = query.shape
    out = query.new_empty((tokens, heads, value.shape[-1]))
    return out, out.transpose(0, 1).unsqueeze(0)


def outputs(query: Tensor, value: Tensor, aux: bool) -> tuple[Tensor, ...]:
    """The outputs to fill: out and logsumexp and, where ``aux``, kept mass, pairs kept and pairs allowed."""
    batch, heads, q_len, _ = query.shape
    dtype = arithmetic_dtype(query.dtype)
    out = output(query, value)
    logsumexp = query.new_empty((batch, heads, q_len), dtype=dtype)
    if not aux:
        return out, logsumexp
    kept = query.new_empty((batch, heads, q_len), dtype=torch.int32)
    return out, logsumexp, torch.empty_like(logsumexp), kept, torch.empty_like(kept)


def complete(outputs: tuple[Tensor, ...], query: Tensor) -> tuple[Tensor, ...]:
    """All outputs that an operator must return. Those that were not asked for have no element."""
    return outputs if len(outputs) == 5 else (*outputs, query.new_empty(0), query.new_empty(0), query.new_empty(0))


def packed(query: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """The output and the logsumexp to fill, contiguous."""
    rows = query.shape[:3]
    return query.new_empty((*rows, value.shape[-1])), query.new_empty(rows, dtype=arithmetic_dtype(query.dtype))


def gradient(x: Tensor) -> Tensor:
    """The gradient of an input to fill, as :func:`gradients` has it."""
    return _beside(x, x.shape[-1])


def gradients(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, mask_needs_grad: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients to fill. Their dimensions have the order in memory that their inputs' have. Elements of an input
    may share memory (``expand``, ``unfold``) or have gaps between them; those of a gradient do not."""
    d_query, d_key, d_value = gradient(query), gradient(key), gradient(value)
    if attn_mask is None or not mask_needs_grad:
        return d_query, d_key, d_value, query.new_empty(0)
    return d_query, d_key, d_value, attn_mask.new_empty(attn_mask.shape)


def packed_like(x: Tensor) -> Tensor:
    """A tensor of a contiguous one's shape whose strides are in order, those of dimensions of size 1 too."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def maker(*tensors: Tensor) -> Callable[[Tensor], Tensor]:
    """The quickest function that gives for each of some contiguous tensors what :func:`packed_like` gives."""
    in_order = all(x.stride() == packed_like(x).stride() for x in tensors)
    return torch.empty_like if in_order else packed_like


def _beside(x: Tensor, width: int) -> Tensor:
    """(batch, heads, length, width), packed, with heads and length in the order in which ``x`` has them in memory.

    ``empty_like`` would not do: it keeps the order of all strides, and where elements share memory there is no such
        order.
    """
    batch, heads, length, head_dim = x.shape
    if head_dim == width and x.is_contiguous():  # the quickest way, which calls of a few microseconds need
        return packed_like(x)
    if x.stride(1) < x.stride(2):  # (batch, length, heads, width) in memory; a view might not be changed in place
        strides = (length * heads * width, width, heads * width, 1)
        return x.new_empty_strided((batch, heads, length, width), strides)
    return x.new_empty((batch, heads, length, width))

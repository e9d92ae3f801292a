"""Blocks whose vectors are alike, so that their mean speaks for them: the others are not judged by it.

    similarity(X) = mean of cos(x, y) over all pairs x, y of the block's vectors = ‖mean of x / ‖x‖‖²
    sure(I, J)    ⇔ similarity(queries of I) < 0.6  or  similarity(keys of J) < 0.6

Such blocks are kept in any case, and the others ranked by their mean score (:mod:`dynattn.maths.pooled`).

Source: SpargeAttention, arXiv:2502.18137, which divides the products of a block's vectors by the largest of them, where
here each is divided by its own two norms.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dynattn.maths.estimate import blocks
from dynattn.maths.scores import arithmetic_dtype

ALIKE = 0.6
"""A block is judged by its mean where its similarity is at least so large: SpargeAttention's own."""

_SHORTEST = 1e-12  # what a shorter vector is divided by, as torch.nn.functional.normalize has it


def sure(query: Tensor, key: Tensor, size: int) -> Tensor:
    """The blocks that are kept in any case.

    Args:
        query: (batch, heads, q_len, head_dim).
        key: (batch, kv_heads or heads, kv_len, head_dim). Those that a mask forbids count too.
        size: queries and keys in a block.

    Returns:
        bool (batch, heads, blocks of queries, blocks of keys).
    """
    unlike = ~(_similarity(key, size) >= ALIKE)  # NaN is like nothing
    unlike = unlike.repeat_interleave(query.shape[1] // key.shape[1], 1)
    return ~(_similarity(query, size) >= ALIKE).unsqueeze(-1) | unlike.unsqueeze(2)


def _similarity(x: Tensor, size: int) -> Tensor:
    """Of every block, (batch, heads, blocks)."""
    x = x.detach().to(arithmetic_dtype(x.dtype))
    count = blocks(torch.ones(x.shape[2], dtype=x.dtype, device=x.device), size, 0).sum(-1, keepdim=True)
    inverse = torch.linalg.vector_norm(x, dim=-1).clamp_(min=_SHORTEST).reciprocal_()
    return (_weighted_sums(blocks(x, size, 2), blocks(inverse, size, 2)) / count).square().sum(-1)


def _weighted_sums(x: Tensor, weights: Tensor) -> Tensor:
    """``Σ_i w_i x_i`` of every block, (batch, heads, blocks, head_dim), without a copy of all vectors.

    A product of all heads at once would copy them where their memory is that of a model, token by token.
    """
    parts = zip(weights.unsqueeze(-2).split(1, 1), x.split(1, 1), strict=True)
    return torch.cat([weight @ vectors for weight, vectors in parts], 1).squeeze(-2)

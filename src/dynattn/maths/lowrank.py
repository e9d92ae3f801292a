"""Scores of all pairs in an eighth of the dimensions: those in which the queries of a block are largest.

    D(I)        = the ⌈head_dim / 8⌉ dimensions d with the largest Σ_{i ∈ I} |q_id|, the lower of several that tie
    t(i, J)     = max over the keys j ∈ J that i may attend of  scale · Σ_{d ∈ D(I)} q_id k_jd
    value(I, J) = log Σ_{i ∈ I} softmax(t_i)_J

No pair goes unseen, where other estimates look at some queries or at means; what they see exactly, this sees roughly.
The scores serve only to tell which pairs are allowed.

Source: the probe is DSA's, scores in few dimensions, arXiv:2110.11299, whose dimensions are drawn at random or trained;
those of the largest queries are SparQ's, arXiv:2312.04985, for the query of a decoding step. Taking them for a block of
queries is this library's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

from dynattn.maths.estimate import (
    Estimated,
    Input,
    blocks,
    in_blocks,
    log_shares_of_blocks,
    some_allowed,
    some_scored,
)
from dynattn.maths.scores import arithmetic_dtype

PART = 8
"""One dimension of so many is looked at."""


def rank(head_dim: int) -> int:
    """How many dimensions are looked at."""
    return -(-head_dim // PART)


def of_scores(scores: Tensor, size: int, query: Tensor, key: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The definition.

    Args:
        scores: (batch, heads, rows, kv_len), -inf where the pair is not allowed.
        size: queries and keys in a block.
        query: (batch, heads, rows, head_dim).
        key: (batch, heads, kv_len, head_dim).
        scale: factor of the scores.

    Returns:
        The values, and whether a pair of the block is allowed: (batch, heads, ⌈rows / size⌉, ⌈kv_len / size⌉).
    """
    key = _marked(key.to(scores.dtype))
    probed = [
        q @ key.gather(3, dims.unsqueeze(2).expand(-1, -1, key.shape[2], -1)).mT
        for q, dims in (_largest(part.to(scores.dtype) * scale) for part in query.split(size, 2))
    ]
    seen = torch.cat(probed, 2).masked_fill(scores == -math.inf, -math.inf)
    return log_shares_of_blocks(in_blocks(seen, size).amax(-1)), some_scored(scores, size)


def of_input(call: Input, size: int) -> Iterator[Estimated]:
    """The same of all blocks, some rows of blocks at a time.

    Args:
        call: queries and keys.
        size: queries and keys in a block.

    Yields:
        :class:`~dynattn.maths.estimate.Estimated`, from the first row of blocks to the last.
    """
    dtype, some = arithmetic_dtype(call.query.dtype), some_allowed(call, size)
    columns = -(-call.key.shape[2] // size)
    # [batch · kv_heads · head_dim, kv_len]: dimensions are then rows, which are copied whole
    key = blocks(_marked(call.key.to(dtype)), size, 2).flatten(2, 3).mT.flatten(0, 2).contiguous()
    for at in call.steps(size, call.key.shape[2] * size):
        query = blocks(call.query[:, :, at.start * size : at.stop * size].to(dtype) * call.scale, size, 2)
        seen = call.columns_seen(at, size)
        t = _probed(query, key[:, : seen * size], call, at.start * size)
        value = log_shares_of_blocks(t.unflatten(4, (seen, size)).amax(-1))
        yield Estimated(at, pad(value, (0, columns - seen), value=-math.inf), some[:, :, at])


def _marked(key: Tensor) -> Tensor:
    """Keys of which no dimension hides what is not finite: such a key is NaN as a whole, and reaches the output."""
    return key.masked_fill(~key.isfinite().all(-1, keepdim=True), math.nan)


def _largest(query: Tensor) -> tuple[Tensor, Tensor]:
    """Queries (..., queries, head_dim) in the dimensions where they are largest together, and which these are."""
    width = query.shape[-1]
    dims = query.abs().sum(-2).sort(dim=-1, descending=True, stable=True).indices[..., : rank(width)]
    return query.gather(-1, dims.unsqueeze(-2).expand(*query.shape[:-1], -1)), dims


def _probed(query: Tensor, key: Tensor, call: Input, start: int) -> Tensor:
    """Scores in few dimensions, (batch, heads, I, i, keys), -inf where the pair is not allowed.

    Args:
        query: (batch, heads, I, i, head_dim), scaled.
        key: (batch · kv_heads · head_dim, keys).
        call: tells what is allowed.
        start: the number of the first query.
    """
    batch, heads, rows, size, width = query.shape
    query, dims = _largest(query)
    kv_heads, kv_len, q_len = call.key.shape[1], call.key.shape[2], call.query.shape[2]
    of_head = torch.arange(batch * kv_heads, device=key.device).repeat_interleave(heads // kv_heads) * width
    chosen = key.index_select(0, (dims + of_head.view(batch, heads, 1, 1)).flatten())
    s = query @ chosen.view(batch, heads, rows, dims.shape[3], key.shape[1])
    if call.attn_mask is not None:
        allowed = pad(call.allowed_keys(), (0, -kv_len % size))[:, :, None, None, : key.shape[1]]
        s.masked_fill_(~allowed, -math.inf)
    s[..., kv_len:] = -math.inf
    call.forbid_later(s, torch.arange(start, start + rows * size, device=key.device).view(rows, size, 1), start)
    s.flatten(2, 3)[:, :, max(0, q_len - start) :] = -math.inf  # filled up
    return s

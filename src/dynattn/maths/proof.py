"""Upper bounds of the share of attention that a block holds: what it takes to drop a block with a proof, unseen.

    u(i, J) = scale · Σ_d max(q_id · M_d, q_id · m_d) + largest bias >= s_ij for every j ∈ J
    Z(i)    = Σ_{j in the forced blocks} exp(s_ij)
    value(I, J) = max_{i ∈ I} log(n(i, J) · exp(u(i, J)) / Z(i)) >= log of J's weight over that of the forced blocks

M and m are the largest and the least element of J's keys in every dimension; n(i, J) counts the keys of J that query i
may attend. The bounds cost 2/B of all scores, for blocks of B; the scores of the forced blocks come on top.

Source: the bound is Quest's, arXiv:2406.10774; the share is this library's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from dynattn.maths.estimate import Estimated, Input, blocks, by_kv_head, in_blocks, some_allowed
from dynattn.maths.scores import arithmetic_dtype

Forced = Callable[[range], Tensor]
"""Which blocks of keys are kept by force, bool (rows, blocks of keys), for some rows of blocks."""


def of_scores(
    scores: Tensor, forced: Tensor, size: int, query: Tensor, key: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """The definition.

    Args:
        scores: (batch, heads, rows, kv_len), -inf where the pair is not allowed.
        forced: bool (blocks of queries, blocks of keys).
        size: queries and keys in a block.
        query: (batch, heads, rows, head_dim).
        key: (batch, heads, kv_len, head_dim).
        scale: factor of the scores.

    Returns:
        The values, +inf or NaN where nothing is proved, and whether a pair of the block is allowed:
        (batch, heads, ⌈rows / size⌉, ⌈kv_len / size⌉).
    """
    query, key = query.to(scores.dtype) * scale, key.to(scores.dtype)
    cut = in_blocks(scores, size)  # [batch, heads, I, i, J, j]
    allowed = cut != -math.inf
    bias = in_blocks(scores - query @ key.mT, size).masked_fill(~allowed, -math.inf).amax(-1)
    q, k, seen = blocks(query, size, 2), blocks(key, size, 2), allowed.any(3)
    bounds = [_bound(q[:, :, i], *_box(k, seen[:, :, i])) for i in range(q.shape[2])]
    u = torch.stack(bounds, 2) if bounds else bias
    near = cut.masked_fill(~forced[:, None, :, None], -math.inf)
    value = _share(u + bias, allowed.sum(-1), near.flatten(-2).logsumexp(-1))
    return value.amax(3), allowed.any(-1).any(3)


def of_input(call: Input, forced: Forced, size: int) -> Iterator[Estimated]:
    """The same of all blocks, some rows of blocks at a time.

    Args:
        call: queries and keys.
        forced: its blocks are those that the diagonal cuts, and others.
        size: queries and keys in a block.

    Yields:
        :class:`~dynattn.maths.estimate.Estimated`, from the first row of blocks to the last.
    """
    dtype = arithmetic_dtype(call.query.dtype)
    allowed, some, kv_len = call.allowed_keys(), some_allowed(call, size), call.key.shape[2]
    key = call.key.to(dtype)
    if allowed.shape[1] > key.shape[1]:
        key = key.repeat_interleave(allowed.shape[1] // key.shape[1], 1)
    seen = blocks(allowed, size, 2, False)
    box = _box(blocks(key, size, 2), seen)
    for at in call.steps(size, kv_len + size):
        rows = range(at.start, at.stop)
        near = forced(rows)
        count = seen.sum(-1).unsqueeze(2)
        parts = [_near(call, key, allowed, slice(row, row + 1), near[row - at.start], size) for row in rows]
        query = call.query[:, :, call.of_rows(at, size)].to(dtype) * call.scale
        value = _share(_bound(query, *box), count, torch.cat(parts, -1))
        yield Estimated(at, blocks(value, size, 2, -math.inf).amax(3), some[:, :, at])


def _near(call: Input, key: Tensor, allowed: Tensor, row: slice, forced: Tensor, size: int) -> Tensor:
    """``log Z`` of the queries of one row of blocks, (batch, heads, queries)."""
    queries = call.of_rows(row, size)
    columns = forced.repeat_interleave(size)[: key.shape[2]].nonzero().flatten().to(key.device)
    s = by_kv_head(call.query[:, :, queries].to(key.dtype) * call.scale, key[:, :, columns])
    there = allowed[:, :, None, columns]
    if call.causal:
        there = there & (columns <= queries.unsqueeze(-1) + call.offset)
    return s.masked_fill(~there, -math.inf).logsumexp(-1)


def _box(key: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Largest and least element over the keys of each block that are seen, (batch, heads, J, head_dim)."""
    hidden = ~seen.unsqueeze(-1)
    return key.masked_fill(hidden, -math.inf).amax(-2), key.masked_fill(hidden, math.inf).amin(-2)


def _bound(query: Tensor, most: Tensor, least: Tensor) -> Tensor:
    return by_kv_head(query.clamp(min=0), most) + by_kv_head(query.clamp(max=0), least)


def _share(bound: Tensor, count: Tensor, near: Tensor) -> Tensor:
    """``log(n · exp(u) / Z)``: -inf without keys, +inf where Z is 0 or infinite."""
    share = bound + count.to(bound.dtype).log() - near.unsqueeze(-1)
    return share.masked_fill(near.unsqueeze(-1) == math.inf, math.inf).masked_fill(count == 0, -math.inf)

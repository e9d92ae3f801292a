"""Mean scores of blocks of pairs, from sums of their queries and keys: 1/B² of the work of the scores.

    Σ_{i ∈ I, j ∈ J} s_ij = scale · (Σ_{i ∈ I} q_i) · (Σ_{j ∈ J} k_j),                   all pairs allowed
    Σ_{i ∈ I, j ∈ J} s_ij = scale · Σ_{i ∈ I} q_i · (Σ_{j ∈ J, j <= i + offset} k_j),    cut by the diagonal

A key that a mask forbids to all queries counts in no sum. I and J are blocks of B queries and of B keys. The diagonal
cuts one or two blocks of each row of blocks, always the same number of columns from I.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from dynattn.maths.estimate import Estimated, Input, blocks, by_definition, in_blocks
from dynattn.maths.scores import arithmetic_dtype

_CUT_AT_ONCE = 1 << 18  # elements of queries in the sums along the diagonal: temporaries that stay in the cache


class _Cut(NamedTuple):
    """Blocks that the diagonal cuts: (I, I + shift) for every I from ``first`` on."""

    shift: int
    first: int
    sums: Tensor  # (batch, heads, blocks)
    counts: Tensor  # (batch or 1, heads or 1, blocks): allowed pairs


class _InBlocks(NamedTuple):
    """A call in blocks of ``size``, the last ones filled up with zeros."""

    query: Tensor  # (batch, heads, I, B, head_dim)
    key: Tensor  # (batch, kv_heads or heads, J, B, head_dim), zeros where a mask forbids the key
    queries: Tensor  # (I, B): 1 where there is a query, 0 where filled up
    keys: Tensor  # (batch or 1, heads or 1, J, B): 1 where the key may be attended
    offset: int
    size: int

    def by_kv_head(self, x: Tensor) -> Tensor:
        """(batch, heads, …) as (batch, key heads, group, …)."""
        return x.unflatten(1, (self.key.shape[1], -1))


def of_scores(scores: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The definition: mean score of each block's allowed pairs, and whether there are any.

    Args:
        scores: (batch, heads, rows, kv_len), -inf where the pair is not allowed.
        size: queries and keys in a block.

    Returns:
        Two tensors (batch, heads, ⌈rows / size⌉, ⌈kv_len / size⌉); a mean of nothing is 0.
    """
    cut = in_blocks(scores, size)  # [batch, heads, I, i, J, j]
    allowed = cut != -math.inf
    count = allowed.sum((-3, -1))
    return cut.masked_fill(~allowed, 0.0).sum((-3, -1)) / count.clamp(min=1), count > 0


def of_input(call: Input, size: int) -> Iterator[Estimated]:
    """Mean scores of all blocks, some rows of blocks at a time.

    Inputs with NaN or infinity go by the definition, scores and all: sums would tell too little.

    Args:
        call: queries and keys.
        size: queries and keys in a block.

    Yields:
        :class:`Estimated`, from the first row of blocks to the last.
    """
    cut = _call(call, size)
    q, k = cut.query.sum(-2), cut.key.sum(-2)  # [batch, heads, blocks, head_dim]
    if not bool(q.isfinite().all() & k.isfinite().all()):
        yield from by_definition(call, size, of_scores)
        return
    shifts = _shifts(cut.offset, size) if call.causal else range(0)
    cuts = [_cut(cut, shift) for shift in shifts]
    for at in call.steps(size, k.shape[2]):
        sums = (cut.by_kv_head(q[:, :, at]) @ k.unsqueeze(2).mT).flatten(1, 2)
        counts = cut.queries[at].sum(-1).unsqueeze(-1) * cut.keys.sum(-1).unsqueeze(-2)
        if call.causal:
            for one in cuts:
                _diagonal(sums, at.start, one).copy_(_part(one.sums, at.start, one, sums))
                _diagonal(counts, at.start, one).copy_(_part(one.counts, at.start, one, counts))
            counts = counts.tril(shifts.stop - 1 + at.start)  # what lies further right is forbidden
        yield Estimated(at, sums.mul_(call.scale).div_(counts.clamp(min=1)), counts > 0)


def _call(call: Input, size: int) -> _InBlocks:
    dtype, key = arithmetic_dtype(call.query.dtype), call.key
    q_len = call.query.shape[2]
    allowed = call.allowed_keys()
    if call.attn_mask is not None:
        if allowed.shape[1] > 1:
            key = key.repeat_interleave(call.query.shape[1] // key.shape[1], 1)
        key = key.masked_fill(~allowed.unsqueeze(-1), 0.0)
    queries = torch.ones(q_len, dtype=dtype, device=key.device)
    return _InBlocks(
        blocks(call.query.to(dtype), size, 2), blocks(key.to(dtype), size, 2), blocks(queries, size, 0),
        blocks(allowed.to(dtype), size, 2), call.offset, size,
    )  # fmt: skip


def _shifts(offset: int, size: int) -> range:
    """The shifts for which the diagonal cuts the blocks (I, I + shift)."""
    return range((offset + 1) // size, (offset + size - 1) // size + 1)


def _cut(call: _InBlocks, shift: int) -> _Cut:
    """Sums over the allowed pairs of the blocks (I, I + shift)."""
    rows, columns = call.query.shape[2], call.key.shape[2]
    first, last = max(0, -shift), max(0, -shift, min(rows, columns - shift))
    ahead = call.offset - shift * call.size  # query i of the block may attend keys up to i + ahead
    query = call.by_kv_head(call.query[:, :, first:last])
    key = call.key[:, :, first + shift : last + shift]
    step = max(1, _CUT_AT_ONCE // max(1, query[:, :, :, :1].numel()))  # blocks
    parts = zip(query.split(step, 3), key.split(step, 2), strict=True)
    sums = torch.cat([_cut_sums(q, k, ahead) for q, k in parts], 3)
    position = torch.arange(call.size, device=call.key.device)
    allowed = (position <= position.unsqueeze(-1) + ahead).to(call.key.dtype)  # [i, j]
    counts = ((call.keys[:, :, first + shift : last + shift] @ allowed.mT) * call.queries[first:last]).sum(-1)
    return _Cut(shift, first, sums.flatten(1, 2), counts)


def _cut_sums(query: Tensor, key: Tensor, ahead: int) -> Tensor:
    """Σ_i q_i · (Σ_{j <= i + ahead} k_j) of every block: (batch, key heads, group, blocks)."""
    size = key.shape[-2]
    upto = key.cumsum(-2).unsqueeze(2)  # a cumulative sum; a product with a triangular matrix takes three times as long
    low, high = max(0, -ahead), min(size, size - ahead)
    # one dimension after another: both at once take three times as long
    sums = (query[..., low:high, :] * upto[..., low + ahead : high + ahead, :]).sum(-2).sum(-1)
    return sums + (query[..., high:, :].sum(-2) * upto[..., -1, :]).sum(-1)  # these queries may attend all keys


def _diagonal(x: Tensor, start: int, cut: _Cut) -> Tensor:
    """The blocks that the diagonal cuts, among the rows of blocks from ``start`` on."""
    return x.diagonal(cut.shift + start, -2, -1)


def _part(values: Tensor, start: int, cut: _Cut, x: Tensor) -> Tensor:
    """Those of a cut's values that belong to these rows."""
    count = _diagonal(x, start, cut).shape[-1]
    return values.narrow(-1, max(start - cut.first, 0) if count else 0, count)

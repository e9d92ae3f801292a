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
from torch.nn.functional import pad

from dynattn.maths.scores import arithmetic_dtype
from dynattn.maths.scores import scores as exact_scores

_AT_ONCE = 1 << 22  # scores, or mean scores, held at a time: 16 MB of float32 a temporary
_CUT_AT_ONCE = 1 << 18  # elements of queries in the sums along the diagonal: temporaries that stay in the cache


class Means(NamedTuple):
    """Some rows of blocks.

    Attributes:
        rows: which.
        mean: (batch, heads, rows, blocks of keys), mean score of each block's allowed pairs; 0 where there are none.
        some: of a shape that broadcasts to it, whether there are any.
    """

    rows: slice
    mean: Tensor
    some: Tensor


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
    queries, keys = (-(-length // size) for length in scores.shape[-2:])
    padding = (0, -scores.shape[-1] % size, 0, -scores.shape[-2] % size)
    blocks = pad(scores, padding, value=-math.inf)
    blocks = blocks.unflatten(-1, (keys, size)).unflatten(-3, (queries, size))  # [batch, heads, I, i, J, j]
    allowed = blocks != -math.inf
    count = allowed.sum((-3, -1))
    return blocks.masked_fill(~allowed, 0.0).sum((-3, -1)) / count.clamp(min=1), count > 0


def means(
    query: Tensor, key: Tensor, attn_mask: Tensor | None, causal: bool, scale: float, size: int
) -> Iterator[Means]:
    """Mean scores of all blocks, some rows of blocks at a time.

    Inputs with NaN or infinity go by the definition, scores and all: sums would tell too little.

    Args:
        query: (batch, heads, q_len, head_dim).
        key: (batch, kv_heads, kv_len, head_dim).
        attn_mask: bool, the same for all queries: broadcasts to (batch, heads, 1, kv_len); or None.
        causal: forbid keys after the query, aligned bottom-right.
        scale: factor of the scores.
        size: queries and keys in a block.

    Yields:
        :class:`Means`, from the first row of blocks to the last.
    """
    call = _call(query, key, attn_mask, size)
    q, k = call.query.sum(-2), call.key.sum(-2)  # [batch, heads, blocks, head_dim]
    if not bool(q.isfinite().all() & k.isfinite().all()):
        yield from _by_scores(query, key, attn_mask, causal, scale, size)
        return
    shifts = _shifts(call.offset, size) if causal else range(0)
    cuts = [_cut(call, shift) for shift in shifts]
    rows, columns = q.shape[2], k.shape[2]
    step = max(1, _AT_ONCE // max(1, query.shape[0] * query.shape[1] * columns))
    for start in range(0, rows, step):
        at = slice(start, min(start + step, rows))
        sums = (call.by_kv_head(q[:, :, at]) @ k.unsqueeze(2).mT).flatten(1, 2)
        counts = call.queries[at].sum(-1).unsqueeze(-1) * call.keys.sum(-1).unsqueeze(-2)
        if causal:
            for cut in cuts:
                _diagonal(sums, start, cut).copy_(_part(cut.sums, start, cut, sums))
                _diagonal(counts, start, cut).copy_(_part(cut.counts, start, cut, counts))
            counts = counts.tril(shifts.stop - 1 + start)  # what lies further right is forbidden
        yield Means(at, sums.mul_(scale).div_(counts.clamp(min=1)), counts > 0)


def _call(query: Tensor, key: Tensor, attn_mask: Tensor | None, size: int) -> _InBlocks:
    dtype = arithmetic_dtype(query.dtype)
    heads, q_len = query.shape[1:3]
    kv_heads, kv_len = key.shape[1:3]
    keys = torch.ones(1, 1, kv_len, dtype=dtype, device=key.device)
    if attn_mask is not None:
        mask = attn_mask.view((1,) * (4 - attn_mask.dim()) + tuple(attn_mask.shape))[:, :, 0].expand(-1, -1, kv_len)
        if mask.shape[1] > 1:
            key = key.repeat_interleave(heads // kv_heads, 1)
        key, keys = key.masked_fill(~mask.unsqueeze(-1), 0.0), mask.to(dtype)
    queries = torch.ones(q_len, dtype=dtype, device=key.device)
    return _InBlocks(
        _blocks(query.to(dtype), size, 2), _blocks(key.to(dtype), size, 2), _blocks(queries, size, 0),
        _blocks(keys, size, 2), kv_len - q_len, size,
    )  # fmt: skip


def _blocks(x: Tensor, size: int, dim: int) -> Tensor:
    """A dimension cut into blocks, the last one filled up with zeros."""
    missing = -x.shape[dim] % size
    whole = pad(x, (0, 0) * (x.dim() - 1 - dim) + (0, missing)) if missing else x
    return whole.unflatten(dim, (whole.shape[dim] // size, size))


def _shifts(offset: int, size: int) -> range:
    """How many columns from I the blocks lie that the diagonal cuts."""
    return range((offset + 1) // size, (offset + size - 1) // size + 1)


def _cut(call: _InBlocks, shift: int) -> _Cut:
    """Sums over the allowed pairs of the blocks (I, I + shift)."""
    rows, columns = call.query.shape[2], call.key.shape[2]
    first, last = max(0, -shift), max(0, -shift, min(rows, columns - shift))
    ahead = call.offset - shift * call.size  # query i of the block may attend keys up to i + ahead
    query = call.by_kv_head(call.query[:, :, first:last])
    key = call.key[:, :, first + shift : last + shift]
    step = max(1, _CUT_AT_ONCE // max(1, query[:, :1].numel()))  # key heads
    parts = zip(query.split(step, 1), key.split(step, 1), strict=True)
    sums = torch.cat([_cut_sums(q, k, ahead) for q, k in parts], 1)
    position = torch.arange(call.size, device=call.key.device)
    allowed = (position <= position.unsqueeze(-1) + ahead).to(call.key.dtype)  # [i, j]
    counts = ((call.keys[:, :, first + shift : last + shift] @ allowed.mT) * call.queries[first:last]).sum(-1)
    return _Cut(shift, first, sums.flatten(1, 2), counts)


def _cut_sums(query: Tensor, key: Tensor, ahead: int) -> Tensor:
    """Σ_i q_i · (Σ_{j <= i + ahead} k_j) of every block: (batch, key heads, group, blocks)."""
    size = key.shape[-2]
    upto = key.cumsum(-2).unsqueeze(2)  # one pass, where products with a triangle take three times as long
    low, high = max(0, -ahead), min(size, size - ahead)
    sums = (query[..., low:high, :] * upto[..., low + ahead : high + ahead, :]).sum((-2, -1))
    return sums + (query[..., high:, :].sum(-2) * upto[..., -1, :]).sum(-1)  # those that may attend all of them


def _diagonal(x: Tensor, start: int, cut: _Cut) -> Tensor:
    """A cut's blocks among the rows of blocks from ``start`` on."""
    return x.diagonal(cut.shift + start, -2, -1)


def _part(values: Tensor, start: int, cut: _Cut, x: Tensor) -> Tensor:
    """A cut's values for these rows."""
    count = _diagonal(x, start, cut).shape[-1]
    return values.narrow(-1, max(start - cut.first, 0) if count else 0, count)


def _by_scores(
    query: Tensor, key: Tensor, attn_mask: Tensor | None, causal: bool, scale: float, size: int
) -> Iterator[Means]:
    batch, heads, q_len, _ = query.shape
    kv_len = key.shape[2]
    step = max(1, _AT_ONCE // max(1, batch * heads * kv_len * size))
    for start in range(0, -(-q_len // size), step):
        rows = slice(start * size, (start + step) * size)
        s = exact_scores(query[:, :, rows], key, attn_mask, causal, scale, kv_len - q_len + rows.start)
        mean, some = of_scores(s, size)
        yield Means(slice(start, start + mean.shape[2]), mean, some)

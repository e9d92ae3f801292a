"""Mean scores along the antidiagonals of 16 x 16 tiles: 1/16 of all scores, of pairs spread over the tile.

    t(a, c) = mean of s_ij over the allowed pairs (i, j) = (16 a + 15 - n, 16 c + n), n = 0 … 15
    value(I, J) = log Σ_{a ∈ I} Σ_{c ∈ J} softmax(t_a)_c

Every vertical and every slanted line of large scores crosses an antidiagonal. A block is a multiple of 16.

Source: XAttention, arXiv:2503.16428.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from dynattn.maths.estimate import (
    Estimated,
    Input,
    blocks,
    by_kv_head,
    in_blocks,
    log_shares,
    some_allowed,
    some_scored,
)
from dynattn.maths.scores import arithmetic_dtype

STEP = 16


class _Tiles(NamedTuple):
    """A call in tiles, queries of a tile in reverse; what is missing or forbidden is zero."""

    query: Tensor  # (batch, heads, a, 16, head_dim)
    key: Tensor  # (batch, kv_heads or heads, c, 16, head_dim)
    queries: Tensor  # (a, 16): 1 where there is a query
    keys: Tensor  # (batch or 1, heads or 1, c, 16): 1 where the key may be attended


def of_scores(scores: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The definition.

    Args:
        scores: (batch, heads, rows, kv_len), -inf where the pair is not allowed.
        size: queries and keys in a block, a multiple of 16.

    Returns:
        The values, and whether a pair of the block is allowed: (batch, heads, ⌈rows / size⌉, ⌈kv_len / size⌉).
    """
    lines = in_blocks(scores, STEP).flip(3).diagonal(0, 3, 5)  # [batch, heads, a, c, n]
    allowed = lines != -math.inf
    count = allowed.sum(-1)
    means = lines.masked_fill(~allowed, 0.0).sum(-1) / count.clamp(min=1)
    return _value(means.masked_fill(count == 0, -math.inf), size), some_scored(scores, size)


def of_input(call: Input, size: int) -> Iterator[Estimated]:
    """The same of all blocks, some rows of blocks at a time.

    Inputs with NaN or infinity go by the definition, scores and all: sums would tell too little.

    Args:
        call: queries and keys.
        size: queries and keys in a block, a multiple of 16.

    Yields:
        :class:`~dynattn.maths.estimate.Estimated`, from the first row of blocks to the last.
    """
    tiles, some = _tiles(call), some_allowed(call, size)
    if not bool(tiles.query.sum().isfinite() & tiles.key.sum().isfinite()):
        yield from _by_scores(call, size)
        return
    for at in call.steps(size, -(-call.key.shape[2] // STEP) * (size // STEP)):
        a = slice(at.start * size // STEP, min(at.stop * size // STEP, tiles.query.shape[2]))
        yield Estimated(at, _value(_means(tiles, a, call), size), some[:, :, at])


def _tiles(call: Input) -> _Tiles:
    dtype, allowed = arithmetic_dtype(call.query.dtype), call.allowed_keys()
    key = call.key.to(dtype)
    if allowed.shape[1] > 1:
        key = key.repeat_interleave(call.query.shape[1] // key.shape[1], 1)
    key = key.masked_fill(~allowed.unsqueeze(-1), 0.0)
    ones = torch.ones(call.query.shape[2], dtype=dtype, device=key.device)
    return _Tiles(
        blocks(call.query.to(dtype), STEP, 2).flip(3), blocks(key, STEP, 2), blocks(ones, STEP, 0).flip(1),
        blocks(allowed.to(dtype), STEP, 2),
    )  # fmt: skip


def _means(tiles: _Tiles, at: slice, call: Input) -> Tensor:
    """t of some rows of tiles: (batch, heads, a, c), -inf where no pair of the antidiagonal is allowed."""
    sums = by_kv_head(tiles.query[:, :, at].flatten(3), tiles.key.flatten(3))
    counts = tiles.queries[at] @ tiles.keys.mT
    if call.causal:
        for shift in _shifts(call.offset):
            _cut(sums, counts, tiles, at, shift, (STEP - 1 + call.offset - STEP * shift) // 2 + 1)
        counts = counts.tril(_shifts(call.offset).stop - 1 + at.start)
    return sums.mul_(call.scale).div_(counts.clamp(min=1)).masked_fill_(counts == 0, -math.inf)


def _shifts(offset: int) -> range:
    """How many columns from a the tiles lie of whose antidiagonals the causal mask forbids a part."""
    return range(-(-(offset - STEP + 2) // STEP), (offset + STEP - 1) // STEP + 1)


def _cut(sums: Tensor, counts: Tensor, tiles: _Tiles, at: slice, shift: int, pairs: int) -> None:
    """Tiles (a, a + shift): the first ``pairs`` pairs of their antidiagonal are allowed."""
    first, last = max(at.start, -shift), min(at.stop, tiles.key.shape[2] - shift)
    if first >= last:
        return
    query, key = tiles.query[:, :, first:last, :pairs], tiles.key[:, :, first + shift : last + shift, :pairs]
    exact = query.unflatten(1, (key.shape[1], -1)) * key.unsqueeze(2)
    _diagonal(sums, at, first, last, shift).copy_(exact.sum((-1, -2)).flatten(1, 2))
    seen = tiles.keys[:, :, first + shift : last + shift, :pairs] * tiles.queries[first:last, :pairs]
    _diagonal(counts, at, first, last, shift).copy_(seen.sum(-1))


def _diagonal(x: Tensor, at: slice, first: int, last: int, shift: int) -> Tensor:
    """Entries (a, a + shift) of the rows ``first`` to ``last``, where x begins with row ``at.start``."""
    return x[:, :, first - at.start : last - at.start].diagonal(first + shift, -2, -1)[..., : last - first]


def _value(means: Tensor, size: int) -> Tensor:
    """The value of every block, from t, (batch, heads, a, c), with rows that begin where a block begins."""
    of_block = blocks(blocks(means, size // STEP, 3, -math.inf), size // STEP, 2, -math.inf)
    return log_shares(of_block)


def _by_scores(call: Input, size: int) -> Iterator[Estimated]:
    for rows in call.steps(size, call.key.shape[2] * size):
        yield Estimated(rows, *of_scores(call.scores(call.of_rows(rows, size)), size))

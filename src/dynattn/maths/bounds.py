"""Upper bounds of a block's scores, from the least and the largest element of its keys in every dimension.

    u(i, J) = scale · Σ_d max(q_id · M_d, q_id · m_d) >= s_ij for every j ∈ J,    M, m = max, min of the keys of J
    value(I, J) = mean of u(i, J) over i ∈ I = scale · (mean of q⁺ · M + mean of q⁻ · m)

with q⁺ and q⁻ the positive and the negative part of ``scale · q``: the mean costs two products for a block of B² pairs.
M and m are of the keys that some query of I may attend.

Source: Quest, arXiv:2406.10774, for the query of a decoding step and pages of 16 keys; the mean over a block of queries
is this library's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from dynattn.maths.estimate import Estimated, Input, blocks, in_blocks, some_allowed, some_scored
from dynattn.maths.scores import arithmetic_dtype


def of_scores(scores: Tensor, size: int, query: Tensor, key: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The definition. The scores serve only to tell which pairs are allowed.

    Args:
        scores: (batch, heads, rows, kv_len), -inf where the pair is not allowed.
        size: queries and keys in a block.
        query: (batch, heads, rows, head_dim).
        key: (batch, heads, kv_len, head_dim).
        scale: factor of the scores.

    Returns:
        The values, and whether a pair of the block is allowed: (batch, heads, ⌈rows / size⌉, ⌈kv_len / size⌉).
    """
    seen = (in_blocks(scores, size) != -math.inf).any(3)  # [batch, heads, I, J, j]
    cut = blocks(key.to(scores.dtype), size, 2)
    positive, negative = _parts(query.to(scores.dtype) * scale, size)
    values = [
        _bound(positive[:, :, i, None], negative[:, :, i, None], *_box(cut, seen[:, :, i])).squeeze(2)
        for i in range(seen.shape[2])
    ]
    return torch.stack(values, 2) if values else scores.new_zeros(seen.shape[:4]), some_scored(scores, size)


def of_input(call: Input, size: int) -> Iterator[Estimated]:
    """The same of all blocks, some rows of blocks at a time.

    Args:
        call: queries and keys.
        size: queries and keys in a block.

    Yields:
        :class:`~dynattn.maths.estimate.Estimated`, from the first row of blocks to the last.
    """
    dtype = arithmetic_dtype(call.query.dtype)
    heads, kv_len = call.query.shape[1], call.key.shape[2]
    allowed, some = call.allowed_keys(), some_allowed(call, size)
    kv_heads = max(call.key.shape[1], allowed.shape[1])
    key = call.key if kv_heads == call.key.shape[1] else call.key.repeat_interleave(heads // call.key.shape[1], 1)
    key = blocks(key.to(dtype), size, 2)  # [batch, kv_heads or heads, J, j, head_dim]
    seen = blocks(allowed, size, 2, False).expand(key.shape[0], -1, -1, -1)
    box = [x.unsqueeze(2) for x in _box(key, seen)]
    for at in call.steps(size, kv_len // size + 1):
        queries = call.query[:, :, at.start * size : at.stop * size].to(dtype) * call.scale
        parts = [x.unflatten(1, (kv_heads, -1)) for x in _parts(queries, size)]
        value = _bound(*parts, *box)
        if call.causal and call.offset % size:
            _cut(value, at, parts, key, seen, call.offset)
        yield Estimated(at, value.flatten(1, 2), some[:, :, at])


def _parts(query: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Means of the positive and of the negative part over each block of queries, (batch, heads, I, head_dim)."""
    count = blocks(torch.ones(query.shape[2], dtype=query.dtype, device=query.device), size, 0).sum(-1, keepdim=True)
    return tuple(blocks(x, size, 2).sum(-2) / count for x in (query.clamp(min=0), query.clamp(max=0)))  # pyright: ignore[reportReturnType]


def _box(key: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Largest and least element over the keys of each block that are seen, (batch, heads, J, head_dim)."""
    hidden = ~seen.unsqueeze(-1)
    return key.masked_fill(hidden, -math.inf).amax(-2), key.masked_fill(hidden, math.inf).amin(-2)


def _bound(positive: Tensor, negative: Tensor, most: Tensor, least: Tensor) -> Tensor:
    return positive @ most.mT + negative @ least.mT


def _cut(value: Tensor, at: slice, parts: list[Tensor], key: Tensor, seen: Tensor, offset: int) -> None:
    """Correct the blocks that the diagonal cuts: keys after the last query of I are not seen."""
    size, columns = key.shape[3], key.shape[2]
    last = torch.arange(at.start + 1, at.stop + 1, device=key.device) * size - 1 + offset  # position of I's last query
    inside = ((last >= 0) & (last // size < columns)).nonzero().flatten()
    column = last[inside] // size
    until = torch.arange(size, device=key.device) <= (last[inside] % size).unsqueeze(-1)  # [I, j]
    most, least = _box(key[:, :, column], seen[:, :, column] & until)
    positive, negative = (x[:, :, :, inside] for x in parts)
    value[:, :, :, inside, column] = (positive * most.unsqueeze(2)).sum(-1) + (negative * least.unsqueeze(2)).sum(-1)

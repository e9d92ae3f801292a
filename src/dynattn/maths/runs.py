"""The attention of the mean query of every run of 16: what a run of neighbours looks at together.

    t(r, j)     = mean of s_ij over the queries i of run r that may attend key j
    value(I, J) = log Σ_{r ∈ I} Σ_{j ∈ J} softmax(t_r)_j

A block of queries is cut into runs of 16. Where all of a run may attend key j, t is ``scale · mean(q_r) · k_j``: 1/16
of all scores. No key is averaged away, as means of keys do with single large scores, and no query is left out.

Source: pooled queries are MInference's, arXiv:2407.02490, which pools keys as well; to leave keys as they are is this
library's.
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
    by_definition,
    by_kv_head,
    log_shares,
    log_shares_of_blocks,
    log_sums,
    some_allowed,
    some_scored,
)
from dynattn.maths.scores import arithmetic_dtype

STEP = 16
_PARTS = 8


def of_scores(scores: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The definition.

    Args:
        scores: (batch, heads, rows, kv_len), -inf where the pair is not allowed.
        size: queries and keys in a block.

    Returns:
        The values, and whether a pair of the block is allowed: (batch, heads, ⌈rows / size⌉, ⌈kv_len / size⌉).
    """
    runs = blocks(blocks(scores, size, 2, -math.inf), STEP, 3, -math.inf)  # [batch, heads, I, r, i, kv_len]
    allowed = runs != -math.inf
    count = allowed.sum(4)
    means = runs.masked_fill(~allowed, 0.0).sum(4) / count.clamp(min=1)
    value = log_shares(blocks(means.masked_fill(count == 0, -math.inf), size, 4, -math.inf))
    return value, some_scored(scores, size)


def of_input(call: Input, size: int) -> Iterator[Estimated]:
    """The same of all blocks, some rows of blocks at a time, from the sums of the queries of each run.

    Inputs with NaN or infinity go by the definition, scores and all: sums would tell too little.

    Args:
        call: queries and keys.
        size: queries and keys in a block.

    Yields:
        :class:`~dynattn.maths.estimate.Estimated`, from the first row of blocks to the last.
    """
    kv_len, runs = call.key.shape[2], -(-size // STEP)
    if not bool(call.query.isfinite().all() & call.key.isfinite().all()):
        yield from by_definition(call, size, of_scores)
        return
    some = some_allowed(call, size)
    parts = _PARTS if call.causal else 1  # a step looks at no keys behind its last query
    columns, dtype = -(-kv_len // size), arithmetic_dtype(call.key.dtype)
    key = pad(call.key.to(dtype), (0, 0, 0, columns * size - kv_len + 1))
    for rows in call.steps(size, kv_len * runs, parts):
        seen = call.columns_seen(rows, size)
        t = _means(call, key[:, :, : seen * size + 1], rows, size)[..., :-1]
        sums = log_sums(t.unflatten(3, (seen, size)))
        value = log_shares_of_blocks(sums.unflatten(2, (rows.stop - rows.start, runs)))
        yield Estimated(rows, pad(value, (0, columns - seen), value=-math.inf), some[:, :, rows])


def _means(call: Input, key: Tensor, rows: slice, size: int) -> Tensor:
    """t of some rows of blocks, (batch, heads, runs, keys), -inf where no query of the run may attend the key.

    The last key is none, and its column of no meaning.
    """
    q_len, kv_len = call.query.shape[2], call.key.shape[2]
    query = call.query[:, :, rows.start * size : rows.stop * size].to(key.dtype) * call.scale
    query = blocks(blocks(query, size, 2), STEP, 3).flatten(2, 3)  # [batch, heads, run, i, head_dim], 0 where filled up
    start = torch.arange(0, size, STEP, device=key.device)
    first = (torch.arange(rows.start, rows.stop, device=key.device).unsqueeze(-1) * size + start).flatten()
    count = (size - start).clamp(max=STEP).repeat(rows.stop - rows.start).minimum(q_len - first).clamp(min=0)
    t = by_kv_head(query.sum(3) / count.clamp(min=1).unsqueeze(-1), key)
    call.forbid_later(t, first.unsqueeze(-1), rows.start * size)
    if call.causal:
        _cut(t, query, key, first + call.offset, count)
    if call.attn_mask is not None:
        t[..., :kv_len].masked_fill_(~call.allowed_keys()[:, :, None, : key.shape[2]], -math.inf)
    t[..., kv_len:] = -math.inf
    t[:, :, count == 0] = -math.inf
    return t


def _cut(t: Tensor, query: Tensor, key: Tensor, first: Tensor, count: Tensor) -> None:
    """Fill in what some queries of a run may attend and others not: the keys at the places of its second to last."""
    none, later = key.shape[2] - 1, torch.arange(1, STEP, device=key.device)
    at = first.unsqueeze(-1) + later  # [run, m]: queries from number m of the run on may attend this key
    left = (count.unsqueeze(-1) - later).clamp(min=0)
    at = at.where((left > 0) & (at >= 0) & (at < none), none)
    sums = query.flip(3).cumsum(3).flip(3)[:, :, :, 1:].unflatten(1, (key.shape[1], -1))
    means = (sums * key[:, :, at].unsqueeze(2)).sum(-1).flatten(1, 2) / left.clamp(min=1)
    t.scatter_(3, at.expand_as(means), means)

"""The exact attention of every 16th query: a few queries of a block tell what the block attends to.

    value(I, J) = log Σ_{i ∈ I sampled} Σ_{j ∈ J} softmax(s_i)_j

The last query of every run of 16 in a block is sampled. That costs 1/16 of all scores, and shows single large scores,
which the means of queries and keys hide.

Source: sampled rows of scores choose the keys of all queries at once in SampleAttention, arXiv:2406.15486; here they
choose for their own block.
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
    length = scores.shape[2]
    numbers, there = _sampled(range(-(-length // size)), length, size)
    s = scores[:, :, numbers.flatten().to(scores.device)].unflatten(2, there.shape)
    s = s.masked_fill(~there.to(scores.device).unsqueeze(-1), -math.inf)
    return log_shares(blocks(s, size, 4, -math.inf)), some_scored(scores, size)


def of_input(call: Input, size: int) -> Iterator[Estimated]:
    """The same of all blocks, some rows of blocks at a time, from the scores of the sampled queries alone.

    Args:
        call: queries and keys.
        size: queries and keys in a block.

    Yields:
        :class:`~dynattn.maths.estimate.Estimated`, from the first row of blocks to the last.
    """
    (q_len, kv_len), some = (x.shape[2] for x in (call.query, call.key)), some_allowed(call, size)
    parts = _PARTS if call.causal else 1  # a step scores no keys that lie behind its last query
    call, columns = call._replace(key=call.key.to(arithmetic_dtype(call.key.dtype))), -(-kv_len // size)
    for rows in call.steps(size, kv_len * -(-size // STEP), parts):
        numbers, there = (x.to(call.query.device) for x in _sampled(range(rows.start, rows.stop), q_len, size))
        seen = call.columns_seen(rows, size)
        s = call.first_scores(numbers.flatten(), min(kv_len, seen * size)).unflatten(2, there.shape)
        if not there.all():
            s.masked_fill_(~there.unsqueeze(-1), -math.inf)
        value = log_shares_of_blocks(log_sums(blocks(s, size, 4, -math.inf)))
        yield Estimated(rows, pad(value, (0, columns - seen), value=-math.inf), some[:, :, rows])


def _sampled(rows: range, length: int, size: int) -> tuple[Tensor, Tensor]:
    """Numbers of the sampled queries, (rows, runs), and whether there is one."""
    first = torch.tensor(list(rows), dtype=torch.int64, device="cpu").unsqueeze(-1) * size
    first = first + torch.arange(0, size, STEP, device="cpu")
    end = first + torch.tensor([min(STEP, size - start) for start in range(0, size, STEP)], device="cpu")
    return end.clamp(max=length) - 1, first < length

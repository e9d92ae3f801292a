"""Attention of every 16th query, exactly: what a block of queries attends to, told by a few of them.

    value(I, J) = log Σ_{i ∈ I sampled} Σ_{j ∈ J} softmax(s_i)_j

Sampled is the last query of every run of 16 of a block. That costs 1/16 of all scores, and sees single large ones,
which means of queries and keys do not.

Source: sampled rows of scores choose the keys of all queries at once in SampleAttention, arXiv:2406.15486; here they
choose for their own block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from dynattn.maths.estimate import Estimated, Input, blocks, log_shares, some_allowed, some_scored

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
    return _value(scores[:, :, numbers.flatten().to(scores.device)], there, size), some_scored(scores, size)


def of_input(call: Input, size: int) -> Iterator[Estimated]:
    """The same of all blocks, some rows of blocks at a time, from the scores of the sampled queries alone.

    Args:
        call: queries and keys.
        size: queries and keys in a block.

    Yields:
        :class:`~dynattn.maths.estimate.Estimated`, from the first row of blocks to the last.
    """
    some = some_allowed(call, size)
    parts = _PARTS if call.causal else 1  # a step scores no keys that lie behind its last query
    for rows in call.steps(size, call.key.shape[2] * -(-size // STEP), parts):
        numbers, there = _sampled(range(rows.start, rows.stop), call.query.shape[2], size)
        s = call.scores(numbers.flatten().to(call.query.device))
        yield Estimated(rows, _value(s, there, size), some[:, :, rows])


def _sampled(rows: range, length: int, size: int) -> tuple[Tensor, Tensor]:
    """Numbers of the sampled queries, (rows, runs), and whether there is one."""
    first = torch.tensor(list(rows), dtype=torch.int64, device="cpu").unsqueeze(-1) * size
    first = first + torch.arange(0, size, STEP, device="cpu")
    end = first + torch.tensor([min(STEP, size - start) for start in range(0, size, STEP)], device="cpu")
    return end.clamp(max=length) - 1, first < length


def _value(scores: Tensor, there: Tensor, size: int) -> Tensor:
    """The value of every block, from the scores of the sampled queries, (batch, heads, rows · runs, kv_len)."""
    s = scores.unflatten(2, there.shape).masked_fill(~there.to(scores.device).unsqueeze(-1), -math.inf)
    return log_shares(blocks(s, size, 4, -math.inf))

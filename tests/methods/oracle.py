"""Attention by loops over queries and keys: what a method's own slow rule is turned into an output by."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

import dynattn
from dynattn.methods import Method
from dynattn.reference import in_blocks

Scores = list[list[float]]
Rule = Callable[[Scores, int], list[set[int]]]
"""Scores of one head, -inf where a pair is not allowed, and the position of query 0: the keys that each query keeps."""


class Expected(NamedTuple):
    """By loops: the output, and how many pairs of each head are kept and allowed."""

    out: Tensor
    kept: Tensor
    allowed: Tensor


def inputs(q_len: int = 13, kv_len: int = 13, heads: int = 4, kv_heads: int = 2) -> tuple[Tensor, ...]:
    """Query, key and value of small whole numbers, so that scores tie and sums are exact."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, heads, q_len, 4), (2, kv_heads, kv_len, 4), (2, kv_heads, kv_len, 3))
    return tuple(torch.randint(-2, 3, shape, generator=generator).double() for shape in shapes)


def padding(kv_len: int, *lengths: int) -> Tensor:
    """Key-padding mask: sample b may attend the first ``lengths[b]`` keys."""
    return (torch.arange(kv_len) < torch.tensor(lengths).unsqueeze(-1))[:, None, None]


def expected(
    rule: Rule, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scale: float = 0.5
) -> Expected:
    """Attention by loops; ``rule`` chooses for one head at a time, in the order of the heads."""
    batch, heads, q_len, _ = query.shape
    kv_len, group, offset = key.shape[2], heads // key.shape[1], key.shape[2] - q_len
    out = torch.zeros(batch, heads, q_len, value.shape[3], dtype=query.dtype)
    kept, allowed = torch.zeros(2, batch, heads)
    for b in range(batch):
        open_keys = [True] * kv_len if mask is None else mask[b, 0, 0].tolist()
        for h in range(heads):
            s = (scale * (query[b, h] @ key[b, h // group].T)).tolist()
            v = value[b, h // group].tolist()
            for i in range(q_len):
                for j in range(kv_len):
                    if (causal and j > i + offset) or not open_keys[j]:
                        s[i][j] = -math.inf
                    allowed[b, h] += s[i][j] != -math.inf
            for i, chosen in enumerate(rule(s, offset)):
                weights = {j: math.exp(s[i][j]) for j in chosen if s[i][j] != -math.inf}
                kept[b, h] += len(weights)
                total = sum(weights.values())
                for d in range(len(v[0]) if weights else 0):
                    out[b, h, i, d] = sum(weight / total * v[j][d] for j, weight in weights.items())
    return Expected(out, kept, allowed)


def agrees(
    method: Method, rule: Rule, shapes: Sequence[tuple[int, int]] = ((13, 13), (5, 13), (1, 1), (13, 5))
) -> None:
    """The method gives what its rule gives: masked, causal or not, more or fewer queries, few at a time."""
    before, in_blocks._BLOCK_SCORES = in_blocks._BLOCK_SCORES, 200
    try:
        for q_len, kv_len in shapes:
            query, key, value = inputs(q_len, kv_len, heads=2, kv_heads=1)
            for mask, causal in ((None, False), (None, True), (padding(kv_len, kv_len, kv_len // 2), True)):
                out, aux = dynattn.attention(
                    query, key, value, method, attn_mask=mask, causal=causal, scale=0.5, return_aux=True
                )
                want = expected(rule, query, key, value, mask, causal)
                torch.testing.assert_close(out, want.out)
                density = torch.where(want.allowed > 0, want.kept / want.allowed, 1.0)
                torch.testing.assert_close(aux.density, density)
    finally:
        in_blocks._BLOCK_SCORES = before

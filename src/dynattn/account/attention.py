"""Counts what one call of attention costs, from the pairs that its method really keeps.

The machine is a model and is not measured. A fused kernel takes ``QUERIES`` queries at a time. For these it takes the
heads that share keys one after another, reads the rows of K and V that they need in order, through a cache of a given
number of bytes, and writes the output. Nothing of size q_len × kv_len touches memory, unless attention is *unfused*:
then scores and weights are written and read again.

    rows of K that a block of queries reads = those of scored pairs: all allowed ones or, where the choice is made from
                                              something else than the scores (``PairMethod.glance``), the kept ones, or
                                              those among which scores choose (``PairMethod.scored``)
    rows of V                               = those of kept pairs
"""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dynattn.account.lru import misses
from dynattn.account.work import Work
from dynattn.methods.base import Glance, MixingMethod, PairMethod
from dynattn.reference import pairs as reference

QUERIES = 64
"""How many queries of a head the kernel works on at once."""

MEGABYTE = 1 << 20


class _Layout(NamedTuple):
    """The sizes of a call."""

    kv_len: int
    head_dim: int
    value_dim: int
    itemsize: int
    group: int


@torch.no_grad()
def of_mixing(
    query: Tensor, key: Tensor, value: Tensor, method: MixingMethod, *, attn_mask: Tensor | None = None,
    causal: bool = False, scale: float | None = None,
) -> Work:  # fmt: skip
    """The costs of one call with a method that keeps no pairs: the products that it really computes.

    The inputs are counted as read once and the output as written once, which is the least that any implementation
    moves.

    Args:
        As :func:`of_call`.

    Returns:
        The costs, with all products counted as ``values``.
    """
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    with FlopCounterMode(display=False) as counter:
        out = method.attend(query, key, value, attn_mask=attn_mask, causal=causal, scale=factor)
    read = sum(x.numel() * x.element_size() for x in (query, key, value))
    return Work(values=counter.get_total_flops() / 2, read=read, written=out.numel() * out.element_size())


def of_pairs(
    glance: Glance | None, allowed: float, kept: float, head_dim: int, value_dim: int, scored: float | None = None
) -> Work:
    """The arithmetic of attention over chosen pairs.

        scores = scored · head_dim
        values = kept · value_dim

    Args:
        glance: what the choice costs; None where it is made from the exact scores.
        allowed: the number of pairs that may be attended.
        kept: the number of pairs that are kept.
        head_dim: the head_dim of queries and keys.
        value_dim: the last dimension of values.
        scored: the number of pairs that are scored; None for all allowed ones or, where the choice is made from
            something else, the kept ones.

    Returns:
        The costs, without bytes.
    """
    if scored is None:
        scored = allowed if glance is None else kept
    return Work(
        scores=scored * head_dim,
        choosing=0 if glance is None else allowed * glance.multiply_adds,
        values=kept * value_dim,
        exponentials=kept,
    )


@torch.inference_mode()
def of_call(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    method: PairMethod,
    *,
    attn_mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    cache_bytes: int = MEGABYTE,
    fused: bool = True,
) -> Work:
    """The costs of one call of :func:`dynattn.attention` with these inputs.

    Args:
        query, key, value, method, attn_mask, causal, scale: as :func:`dynattn.attention` takes them.
        cache_bytes: the size of the cache, which must be the same for all methods that are compared.
        fused: False where scores and weights go through memory, as in attention written in three steps.

    Returns:
        The costs of all heads and the whole batch.
    """
    batch, heads, q_len, head_dim = query.shape
    kv_heads, kv_len = key.shape[1:3]
    factor = head_dim**-0.5 if scale is None else scale
    layout = _Layout(kv_len, head_dim, value.shape[3], query.element_size(), heads // kv_heads)
    glance = method.glance(head_dim, layout.itemsize)
    together = int(method.rows_together)
    rows = math.ceil(QUERIES / together) * together  # rows whose choice is made together stay together
    total = Work()
    for b in range(batch):
        for h in range(kv_heads):
            q, k = query[b : b + 1, h * layout.group : (h + 1) * layout.group], key[b : b + 1, h : h + 1]
            mask = None if attn_mask is None else attn_mask.expand(batch, heads, q_len, kv_len)[b : b + 1]
            if mask is not None:
                mask = mask[:, h * layout.group : (h + 1) * layout.group]
            total += _of_head(q, k, method, mask, causal, factor, glance, layout, cache_bytes, rows)
    streamed = batch * heads * q_len * layout.itemsize
    total += Work(read=streamed * head_dim, written=streamed * layout.value_dim)
    return total if fused else total + _unfused(batch * heads * q_len * kv_len * layout.itemsize)


def _unfused(scores: int) -> Work:
    """The bytes that unfused attention moves besides: the first product writes the scores, the softmax reads them and
    writes the weights, and the second product reads those."""
    return Work(read=2 * scores, written=2 * scores)


def _of_head(
    query: Tensor, key: Tensor, method: PairMethod, mask: Tensor | None, causal: bool, scale: float,
    glance: Glance | None, layout: _Layout, cache_bytes: int, rows: int,
) -> Work:  # fmt: skip
    """The costs of the query heads that share a key head. All tensors have batch 1."""
    q_len, offset = query.shape[2], layout.kv_len - query.shape[2]
    allowed_pairs = kept_pairs = scored_pairs = 0
    among = cast("PairMethod | None", method.scored)
    reads: list[np.ndarray] = []
    for start in range(0, q_len, rows):
        block = query[:, :, start : start + rows]
        part = None if mask is None else mask[:, :, start : start + rows]
        s = reference.scores(block, key, part, causal, scale, offset + start)
        kept = reference.select(s, method, block, key, offset + start, scale)
        allowed = s != -math.inf
        allowed_pairs += int(allowed.sum())
        kept_pairs += int(kept.sum())
        scored = allowed if glance is None else kept
        if among is not None:
            scored = reference.select(s, among, block, key, offset + start, scale)
        scored_pairs += int(scored.sum())
        needed = scored.any(2)[0]  # [group, kv_len]
        reads += [_rows(needed, kept.any(2)[0], head, layout.kv_len) for head in range(layout.group)]
    # A row of K and a row of V count as equally large, as they are in all models measured here.
    row = (layout.head_dim + layout.value_dim) / 2 * layout.itemsize
    read = misses(reads, int(cache_bytes // row)) * row
    seen = 0 if glance is None else glance.key_bytes * layout.kv_len
    work = of_pairs(glance, allowed_pairs, kept_pairs, layout.head_dim, layout.value_dim, scored_pairs)
    return work + Work(read=read + seen)


def _rows(keys: Tensor, values: Tensor, head: int, kv_len: int) -> np.ndarray:
    """The numbers of the rows that one block of one head reads: keys first, values after them."""
    return torch.cat([keys[head].nonzero().flatten(), values[head].nonzero().flatten() + kv_len]).numpy()

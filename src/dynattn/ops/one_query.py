"""Dense attention of one query to the keys of its text, for many texts of different lengths at once.

A key head with the query heads that share it is a text to the kernel of :func:`dynattn.varlen_attention`, which is told
where the keys of each text lie: in slots of a buffer one after another, or in pages.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dynattn.kernels import cpu
from dynattn.kernels.pattern import Pattern
from dynattn.methods.nm import NM
from dynattn.ops.arguments import rows_contiguous
from dynattn.ops.library import unobserved

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_DENSE = NM(1, 1)


def kernel_runs(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether there is a kernel for such tensors, which have one dtype."""
    return (
        query.device.type == "cpu"
        and query.dtype in _DTYPES
        and max(key.shape[-1], value.shape[-1]) <= cpu.MAX_HEAD_DIM
        and cpu.is_available()
        and unobserved(query, key, value)
    )


def by_kernel(
    query: Tensor, key: Tensor, value: Tensor, scale: float, *, used: Tensor, first: Tensor | None = None,
    table: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Attention of each text's query to its keys, where :func:`kernel_runs`. It has no derivative and checks nothing.

    Args:
        query: (texts, group, head_dim).
        key: (pages, 1, page, head_dim) with a table; else (1, 1, slots, head_dim).
        value: likewise, with a last dimension of its own.
        scale: factor of the scores.
        used: int64 (texts,), how many keys each text has.
        first: int64 (texts,), the slot of its first one; None with a table.
        table: int32 (texts, most pages), the pages of each text; None where keys lie in slots.

    Returns:
        (texts, group, value_dim).
    """
    texts, group, _ = query.shape
    out = query.new_empty(texts, group, value.shape[-1])
    rows, into = (x.transpose(0, 1).unsqueeze(0) for x in (rows_contiguous(query), out))
    starts = torch.arange(texts + 1, device="cpu")  # a query each
    found = cpu.nm_texts(
        rows, key, value, into, None, None, None, None, Pattern.of(_DENSE, False, scale), cpu.best_isa(),
        query_start=starts, key_start=starts if first is None else first, key_count=used, block_table=table,
    )  # fmt: skip
    if not found:
        raise RuntimeError("by_kernel: a page was refused, though the layer holds it; this is a bug in dynattn")
    return out


def ragged_attention(query: Tensor, key: Tensor, value: Tensor, first: Tensor, held: int, scale: float) -> Tensor:
    """Attention where key heads hold different numbers of keys, the latest of which end at one slot. No other slot is
    read. It has no derivative and checks nothing; there must be a kernel.

    Args:
        query: (batch, heads, 1, head_dim).
        key: (batch, kv_heads, room, head_dim), contiguous.
        value: (batch, kv_heads, room, value_dim), likewise.
        first: int64 (batch, kv_heads), the first slot of each head that holds a key.
        held: the slot behind the last one.
        scale: factor of the scores.

    Returns:
        (batch, heads, 1, value_dim).
    """
    (batch, kv_heads, room, head_dim), heads = key.shape, query.shape[1]
    rows = query.reshape(batch * kv_heads, heads // kv_heads, head_dim)
    keys, values = (x.view(1, 1, -1, x.shape[-1]) for x in (key, value))
    before = first.flatten()
    start = torch.arange(batch * kv_heads, device=first.device) * room + before
    return by_kernel(rows, keys, values, scale, used=held - before, first=start).view(batch, heads, 1, value.shape[-1])

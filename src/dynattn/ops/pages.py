"""Dense attention of one query to some pages of its keys, which are read where they lie.

The pages are those of all key heads, and a table says which of them each one reads. A key head with the query heads
that share it is a text to the kernel of :func:`dynattn.varlen_attention`, as in :mod:`~dynattn.ops.one_query`.
Where there is no kernel, the pages are copied together for PyTorch's own attention.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from dynattn.kernels import cpu
from dynattn.kernels.pattern import Pattern
from dynattn.maths.pages import Kept
from dynattn.ops.arguments import rows_contiguous
from dynattn.ops.one_query import DENSE, kernel_runs


def page_attention(query: Tensor, key: Tensor, value: Tensor, kept: Kept, page: int, scale: float) -> Tensor:
    """Attention over the keys of some pages. It has no derivative and checks nothing.

    Args:
        query: (batch, heads, 1, head_dim).
        key: (batch, kv_heads, room, head_dim), contiguous; the room is a multiple of ``page``, and what lies behind the
            last key is not read.
        value: (batch, kv_heads, room, value_dim), likewise.
        kept: the pages that each key head reads.
        page: keys of a page.
        scale: factor of the scores.

    Returns:
        (batch, heads, 1, value_dim).
    """
    (batch, kv_heads, room, head_dim), heads = key.shape, query.shape[1]
    run = _by_kernel if _fits(query, key, value, page) else _gathered
    rows = query.reshape(batch * kv_heads, heads // kv_heads, head_dim)
    keys, values = (x.view(-1, page, x.shape[3]) for x in (key, value))
    first = torch.arange(batch * kv_heads, device=key.device) * (room // page)
    table = kept.table.flatten(0, 1) + first.unsqueeze(-1)  # [batch · kv_heads, most]
    out = run(rows, keys, values, table, kept.used.flatten(), scale)
    return out.view(batch, heads, 1, value.shape[3])


def _fits(query: Tensor, key: Tensor, value: Tensor, page: int) -> bool:
    """Whether the kernels read such pages in place."""
    return page % cpu.PAGE_KEYS == 0 and kernel_runs(query, key, value)


def _by_kernel(query: Tensor, key: Tensor, value: Tensor, table: Tensor, used: Tensor, scale: float) -> Tensor:
    """Attention of (texts, group, head_dim) over pools of pages (pages, page, dim)."""
    texts, group, _ = query.shape
    out = query.new_empty(texts, group, value.shape[-1])
    rows, into = (x.transpose(0, 1).unsqueeze(0) for x in (rows_contiguous(query), out))
    starts = torch.arange(texts + 1, device="cpu")  # a query each
    found = cpu.nm_texts(
        rows, key.unsqueeze(1), value.unsqueeze(1), into, None, None, None, None, Pattern.of(DENSE, False, scale),
        cpu.best_isa(), query_start=starts, key_start=starts, key_count=used, block_table=table.to(torch.int32),
    )  # fmt: skip
    if not found:
        raise RuntimeError("page_attention: a page was refused, though the layer holds it; this is a bug in dynattn")
    return out


def _gathered(query: Tensor, key: Tensor, value: Tensor, table: Tensor, used: Tensor, scale: float) -> Tensor:
    """The same by PyTorch: the query heads of a key head are rows of one product."""
    keys = torch.arange(table.shape[1] * key.shape[1], device=used.device)
    counted = (keys < used.unsqueeze(-1)).unsqueeze(1)  # [texts, 1, keys]
    # The room behind the last key may hold NaN, which no mask silences.
    k, v = (pool[table].flatten(1, 2).where(counted.mT, 0).unsqueeze(1) for pool in (key, value))
    out = scaled_dot_product_attention(query.unsqueeze(1), k, v, counted.unsqueeze(1), scale=scale)
    return out.squeeze(1)

"""Dense attention of one query to key heads that hold different numbers of keys.

A key head with the query heads that share it is a text to the kernel of :func:`dynattn.varlen_attention`, which is told
where the keys of each text lie: here in slots of a buffer one after another, in :mod:`~dynattn.ops.pages` in pages.
"""

from __future__ import annotations

from array import array
from collections.abc import Hashable
from typing import NamedTuple

import torch
from torch import Tensor

from dynattn.kernels import cpu
from dynattn.kernels.pattern import Pattern
from dynattn.methods.nm import NM
from dynattn.ops.library import unobserved

DENSE = NM(1, 1)
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_MOST = 512  # prepared calls: one for each layer of a model and each size of its buffers


class _Prepared(NamedTuple):
    """What a call needs besides its tensors.

    Attributes:
        arguments: the kernel's, except for addresses.
        query_start: a query for each text, and their number.
        key_start: the first slot of each text among those of all heads.
    """

    arguments: cpu.PreparedTexts
    query_start: array[int]
    key_start: array[int]


_prepared: dict[Hashable, _Prepared] = {}


def kernel_runs(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether there is a kernel for such tensors, which have one dtype."""
    return (
        query.device.type == "cpu"
        and query.dtype in _DTYPES
        and max(key.shape[-1], value.shape[-1]) <= cpu.MAX_HEAD_DIM
        and cpu.is_available()
        and unobserved(query, key, value)
    )


def ragged_attention(
    query: Tensor, key: Tensor, value: Tensor, first: tuple[int, ...], held: int, scale: float
) -> Tensor:
    """Attention where key heads hold different numbers of keys, the latest of which end at one slot. No other slot is
    read. It has no derivative and checks nothing; there must be a kernel.

    Args:
        query: (batch, heads, 1, head_dim).
        key: (batch, kv_heads, room, head_dim), contiguous.
        value: (batch, kv_heads, room, value_dim), likewise.
        first: the first slot that holds a key, of each key head of each sample.
        held: the slot behind the last one.
        scale: factor of the scores.

    Returns:
        (batch, heads, 1, value_dim).
    """
    query = query.contiguous()
    out = query.new_empty((*query.shape[:3], value.shape[3]))
    known = (query.shape, query.dtype, key.shape, value.shape[3], first, scale, torch.get_num_threads())
    prepared = _prepared.get(known)
    if prepared is None:
        if len(_prepared) >= _MOST:
            _prepared.clear()
        prepared = _prepared[known] = _prepare(query, key, value, out, first, scale)
    arguments, query_start, key_start = prepared
    key_count = array("q", [held - slot for slot in first])
    cpu.nm_texts_again(
        query, key, value, out, arguments, query_start=query_start, key_start=key_start, key_count=key_count
    )
    return out


def _prepare(query: Tensor, key: Tensor, value: Tensor, out: Tensor, first: tuple[int, ...], scale: float) -> _Prepared:
    (batch, kv_heads, room, _), heads = key.shape, query.shape[1]
    texts, group = batch * kv_heads, heads // kv_heads
    rows, into = (x.view(1, texts, group, x.shape[3]).transpose(1, 2) for x in (query, out))
    keys, values = (x.view(1, 1, -1, x.shape[3]) for x in (key, value))
    pattern = Pattern.of(DENSE, False, scale)
    arguments = cpu.prepare_nm_texts(rows, keys, values, into, pattern, cpu.best_isa(), texts)
    starts = array("q", [text * room + slot for text, slot in enumerate(first)])
    return _Prepared(arguments, array("q", range(texts + 1)), starts)

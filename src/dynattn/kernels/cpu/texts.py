"""Calls the kernel of N:M attention for texts of different lengths at once, with keys in pages or one after another."""

from __future__ import annotations

from array import array
from typing import NamedTuple

from torch import Tensor

from dynattn.kernels.cpu import loader
from dynattn.kernels.cpu.again import prepare_nm_forward
from dynattn.kernels.cpu.arguments import NM_TEXTS
from dynattn.kernels.cpu.packing import address, addresses, forward_args
from dynattn.kernels.cpu.runner import BAD_PAGE, refuse
from dynattn.kernels.pattern import Pattern

PAGE_KEYS = 16
"""Pages that are read in place hold a multiple of so many keys."""

_TEXT_ADDRESSES = NM_TEXTS.part("query_start", "block_table")  # with which the texts' own arguments begin


class PreparedTexts(NamedTuple):
    """What :func:`nm_texts` gives the library besides addresses: of the tensors, and of where texts lie in them."""

    call: bytes
    texts: bytes


def nm_texts(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor | None,
    kept_mass: Tensor | None,
    kept: Tensor | None,
    allowed: Tensor | None,
    pattern: Pattern,
    isa: str,
    *,
    query_start: Tensor,
    key_start: Tensor,
    key_count: Tensor,
    block_table: Tensor | None,
) -> bool:
    """N:M attention of texts of different lengths, forward, into tensors that the caller gives. Checks no argument.

    Each text is computed as :func:`~dynattn.kernels.cpu.nm_forward` computes it alone, to the bit. All share the
    threads.

    Args:
        query: (1, heads, tokens, head_dim), the texts one after another; dtype and strides as there.
        key: (1, kv_heads, key tokens, head_dim); with ``block_table`` (pages, kv_heads, page_size, head_dim).
        value: like ``key``, with a last dimension of its own.
        out: (1, heads, tokens, value_dim).
        logsumexp: contiguous, float32: text t has (heads, its tokens) from ``heads · query_start[t]`` on; or None.
        kept_mass, kept, allowed: likewise, float32, int32 and int32; or all None.
        pattern: what to keep and how to score, without dropout.
        isa: ``avx512``, ``avx2``, ``neon`` or ``portable``.
        query_start: (texts + 1,), int64, on the CPU and contiguous, as all that follow.
        key_start, key_count: (texts,), int64: the first key of a text, and how many it has.
        block_table: (texts, most pages), int32; key j of text t is row ``j % page_size`` of page
            ``block_table[t, j // page_size]``. page_size is a multiple of :data:`PAGE_KEYS`.

    Returns:
        False where ``block_table`` names a page that there is not, for a key; nothing is then written.

    Raises:
        As there.

    Source: arXiv:2203.00091; pages, arXiv:2309.06180.
    """
    args = forward_args(
        query, key, value, None, out, pattern, isa, logsumexp=logsumexp, counts=(kept_mass, kept, allowed)
    )
    args += NM_TEXTS.pack(
        query_start=query_start.data_ptr(),
        key_start=key_start.data_ptr(),
        key_count=key_count.data_ptr(),
        block_table=address(block_table),
        texts=len(key_count),
        table_width=0 if block_table is None else block_table.shape[1],
        pages=key.shape[0],
        page_size=key.shape[2],
    )
    status = loader.library().dynattn_nm_texts(args)
    if status not in (0, BAD_PAGE):
        refuse("nm_texts", status)
    return status == 0


def prepare_nm_texts(
    query: Tensor, key: Tensor, value: Tensor, out: Tensor, pattern: Pattern, isa: str, texts: int,
    table_width: int = 0,
) -> PreparedTexts:  # fmt: skip
    """What :func:`nm_texts` gives the library for such tensors: for calls made again.

    Args:
        query, key, value, out, pattern, isa: as in :func:`nm_texts`, for the output alone.
        texts: how many there are.
        table_width: pages of a text in the table; 0 without pages.
    """
    own = NM_TEXTS.pack(
        query_start=0, key_start=0, key_count=0, block_table=0, texts=texts, table_width=table_width,
        pages=key.shape[0], page_size=key.shape[2],
    )  # fmt: skip
    return PreparedTexts(prepare_nm_forward(query, key, value, None, out, pattern, isa), own[_TEXT_ADDRESSES.size :])


def nm_texts_again(
    query: Tensor, key: Tensor, value: Tensor, out: Tensor, prepared: PreparedTexts, *, query_start: array[int],
    key_start: array[int], key_count: array[int], block_table: Tensor | None = None,
) -> bool:  # fmt: skip
    """:func:`nm_texts` for tensors that lie in memory as those of :func:`prepare_nm_texts` do, and where texts lie in
    arrays of 64-bit numbers, which are made faster than tensors."""
    starts = (numbers.buffer_info()[0] for numbers in (query_start, key_start, key_count))
    places = _TEXT_ADDRESSES.pack(*starts, address(block_table))
    status = loader.library().dynattn_nm_texts(
        addresses(query, key, value, None, out, None) + prepared.call + places + prepared.texts
    )
    if status not in (0, BAD_PAGE):
        refuse("nm_texts", status)
    return status == 0

"""Attention of one step of a server: requests one after another, their keys in pages.

    a request decodes ⇔ it has one query and more keys

Prefill and decoding may have methods of their own. In a step both kinds of requests stand side by side.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dynattn.methods import Method
from dynattn.varlen import varlen_attention


def decoding(lengths: Tensor, used: Tensor) -> Tensor:
    """Which requests decode. The last part of a prompt does too where it is a single token, since it looks the same.

    Args:
        lengths: (requests,): how many queries each has.
        used: (requests,): how many keys each has, the new ones included.

    Returns:
        bool (requests,).
    """
    return (lengths == 1) & (used > 1)


def over_pages(
    query: Tensor, keys: Tensor, values: Tensor, prefill: Method, decode: Method, *, cu_seq_q: Tensor,
    seqused_k: Tensor, block_table: Tensor, **options: Any,
) -> Tensor:  # fmt: skip
    """:func:`dynattn.varlen_attention` over pages, with a method for each phase.

    Args:
        query: (tokens, heads, head_dim).
        keys, values: the pools of pages.
        prefill, decode: the methods of requests that do not decode, and of those that do.
        cu_seq_q, seqused_k, block_table, options: as :func:`dynattn.varlen_attention` takes them.

    Returns:
        (tokens, heads, value_dim).
    """
    if prefill == decode:
        where = {"cu_seq_q": cu_seq_q, "seqused_k": seqused_k, "block_table": block_table}
        return varlen_attention(query, keys, values, prefill, **where, **options)
    lengths = cu_seq_q.diff()
    which = decoding(lengths, seqused_k)
    out = query.new_empty(*query.shape[:2], values.shape[-1])
    for method, chosen in ((prefill, ~which), (decode, which)):
        own = chosen.nonzero().flatten()
        if not len(own):
            continue
        rows = torch.repeat_interleave(chosen, lengths.long())
        out[rows] = varlen_attention(
            query[rows], keys, values, method, cu_seq_q=torch.nn.functional.pad(lengths[own].cumsum(0), (1, 0)),
            seqused_k=seqused_k[own], block_table=block_table[own], **options,
        )  # fmt: skip
    return out

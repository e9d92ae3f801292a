"""Pages of consecutive keys: upper bounds of their scores, and which of them are chosen.

    M_p, m_p = largest and least element of the keys of page p, in every dimension
    u(i, p)  = Σ_d max(q_id · M_pd, q_id · m_pd) = q_i⁺ · M_p + q_i⁻ · m_p >= s_ij for every key j of p
    value(p) = Σ_i u(i, p) over the query heads i that share the keys

with q⁺ and q⁻ the positive and the negative part of ``scale · q``. The sum over the heads is taken before the product:
a page costs one product of 2 · head_dim for a key head, however many query heads share it.

Source: Quest, arXiv:2406.10774; the sum over the query heads of a key head as in The Sparse Frontier, arXiv:2504.17768.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from dynattn.maths.estimate import AT_ONCE, blocks
from dynattn.maths.scores import arithmetic_dtype
from dynattn.maths.selection import largest


class Kept(NamedTuple):
    """The pages that each key head reads for one query.

    Attributes:
        table: (batch, kv_heads, most), int64: the numbers of the pages, ascending; the page that is being filled is the
            last one that counts.
        used: (batch, kv_heads), int64: how many keys these pages hold; entries of the table beyond them do not count.
    """

    table: Tensor
    used: Tensor


def boxes(key: Tensor, page: int) -> Tensor:
    """The largest and the least elements of each page.

    Args:
        key: (batch, kv_heads, kv_len, head_dim).
        page: keys of a page, counted from key 0; the last page may have fewer.

    Returns:
        (batch, kv_heads, ⌈kv_len / page⌉, 2 · head_dim): the largest elements, then the least, in the dtype of the
        arithmetic.
    """
    whole = key.shape[2] // page * page
    parts = [key[:, :, :whole].unflatten(2, (whole // page, page)), key[:, :, None, whole:]]
    found = [torch.cat([part.amax(3), part.amin(3)], -1) for part in parts if part.shape[3] * part.shape[2]]
    shape = (*key.shape[:2], 0, 2 * key.shape[3])
    return torch.cat([key.new_empty(shape), *found], 2).to(arithmetic_dtype(key.dtype))


def parts(query: Tensor, scale: float) -> Tensor:
    """What :func:`boxes` are multiplied by: the positive and the negative part of ``scale · q``.

    Args:
        query: (..., head_dim).
        scale: factor of the scores.

    Returns:
        (..., 2 · head_dim), in the dtype of the arithmetic.
    """
    scaled = scale * query.to(arithmetic_dtype(query.dtype))
    return torch.cat([scaled.clamp(min=0), scaled.clamp(max=0)], -1)


def values(query: Tensor, key: Tensor, allowed: Tensor, page: int, scale: float) -> tuple[Tensor, Tensor]:
    """The value of each page for each query, of the keys that it may attend; a head that may attend none adds nothing.

    Args:
        query: (batch, kv_heads, group, rows, head_dim).
        key: (batch, kv_heads, kv_len, head_dim).
        allowed: bool (batch, kv_heads, group, rows, kv_len).
        page: keys of a page.
        scale: factor of the scores.

    Returns:
        The values, and whether some head may attend a key of the page: (batch, kv_heads, rows, pages).
    """
    each = parts(query, scale)
    bound = each @ boxes(key, page).mT.unsqueeze(2)  # [batch, kv_heads, group, rows, pages]
    seen = blocks(allowed, page, 4, False)
    some, whole = seen.any(-1), blocks(allowed, page, 4, True).all(-1)
    cut = blocks(key, page, 2)
    # Of a page that is seen in part, at the diagonal or at the edge of a mask, only what is seen bounds the scores.
    for at in (some & ~whole).nonzero().split(max(1, AT_ONCE // (page * key.shape[3]))):
        b, h, g, i, p = at.unbind(-1)
        hidden = ~seen[b, h, g, i, p].unsqueeze(-1)  # [n, page, 1]
        keys = cut[b, h, p].to(each.dtype)
        box = torch.cat([keys.masked_fill(hidden, -math.inf).amax(1), keys.masked_fill(hidden, math.inf).amin(1)], -1)
        bound[b, h, g, i, p] = (each[b, h, g, i] * box).sum(-1)
    return bound.where(some, 0.0).sum(2), some.any(2)


def kept(value: Tensor, some: Tensor, last: Tensor, count: int) -> Tensor:
    """The ``count`` best pages that may be attended, and the last page.

    Args:
        value, some: as :func:`values` gives them.
        last: (batch, kv_heads, rows), int64: the page of the last key that may be attended; -1 for none.
        count: how many pages.

    Returns:
        bool (batch, kv_heads, rows, pages).
    """
    lowest = torch.finfo(value.dtype).min  # a page of the least value still ranks before what may not be attended
    best = largest(value.clamp(min=lowest).masked_fill(~some, -math.inf), count) & some
    return best | (torch.arange(value.shape[-1], device=value.device) == last.unsqueeze(-1))


def table(query: Tensor, box: Tensor, kv_len: int, page: int, count: int, scale: float) -> Kept:
    """The choice of :func:`kept` for one query that may attend all keys, from boxes that are there already.

    Args:
        query: (batch, heads, 1, head_dim).
        box: (batch, kv_heads, pages, 2 · head_dim): what :func:`boxes` gives.
        kv_len: how many keys there are.
        page: keys of a page.
        count: how many pages are chosen, fewer than there are.
        scale: factor of the scores.
    """
    batch, kv_heads, pages, _ = box.shape
    together = parts(query, scale).view(batch, kv_heads, query.shape[1] // kv_heads, box.shape[3]).sum(2)
    # A row times the boxes' columns: the boxes times a column take MKL eight times as long.
    value = (together.unsqueeze(2) @ box.mT).squeeze(2)  # [batch, kv_heads, pages]
    best = _best(value, count)
    # The last page has the highest number: behind the others it is in its place, and where it is among them already,
    # it does not count a second time.
    twice = best[..., -1] == pages - 1
    last = best.new_full((batch, kv_heads, 1), pages - 1)
    used = torch.where(twice, count - 1, count) * page + (kv_len - (pages - 1) * page)
    return Kept(torch.cat([best, last], -1), used)


def _best(value: Tensor, count: int) -> Tensor:
    """The numbers of the largest values of each row, ascending, by the rule of :func:`largest`; there are more."""
    ranked = value.topk(count + 1, -1)
    if bool((ranked.values[..., -2] > ranked.values[..., -1]).all()):
        return ranked.indices[..., :count].sort(-1).values
    return largest(value, count).nonzero()[:, -1].view(*value.shape[:-1], count)  # ties at the border, or NaN

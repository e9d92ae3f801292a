"""Splits a call whose heads have different methods: one call for each method, and the results put back in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from dynattn.methods import Method, PerHead


class HeadPart(NamedTuple):
    """One method's share of a call. The tensors are views where its heads lie side by side, and copies elsewhere.

    Attributes:
        method: the method of these heads.
        heads: the numbers of the query heads, ascending.
        query, key, value, attn_mask: the tensors of these heads, as :func:`dynattn.attention` takes them.
        seed: the seed of their dropout.
    """

    method: Method
    heads: list[int]
    query: Tensor
    key: Tensor
    value: Tensor
    attn_mask: Tensor | None
    seed: int | Tensor | None


def parts(
    query: Tensor, key: Tensor, value: Tensor, method: PerHead, attn_mask: Tensor | None, seed: int | Tensor | None,
    wanted: Callable[[Method], bool] = lambda _: True,
) -> Iterator[HeadPart]:  # fmt: skip
    """The calls that a ``PerHead`` is made of.

    Args:
        query, key, value, attn_mask, seed: as :func:`dynattn.attention` takes them.
        method: one method for each head of ``query``.
        wanted: the methods whose calls are asked for; the tensors of others are not cut out.

    Raises:
        ValueError: it has more or fewer methods than there are heads.
    """
    if len(method.parts) != query.shape[1]:
        raise ValueError(
            f"attention: PerHead must have one method for each head of query: got {len(method.parts)} for "
            f"{query.shape[1]} heads; repeat methods as in 'perhead(6*nm-1-2_6*dense)'"
        )
    group = query.shape[1] // key.shape[1]
    by_head = attn_mask is not None and attn_mask.dim() > 2 and attn_mask.shape[-3] > 1
    for number, part in enumerate(dict.fromkeys(method.parts)):
        if not wanted(part):
            continue
        heads = [head for head, its in enumerate(method.parts) if its == part]
        kv_heads = _shared(heads, group)
        mask = _select(attn_mask, heads, -3) if attn_mask is not None and by_head else attn_mask
        drawn = None if seed is None else seed ^ number  # heads are counted anew in each part
        yield HeadPart(
            part, heads, _select(query, heads, 1), _select(key, kv_heads, 1), _select(value, kv_heads, 1), mask, drawn
        )


def in_order(results: list[Tensor], of: list[HeadPart]) -> Tensor:
    """One tensor (batch, heads, …) of the parts' results."""
    order = [head for part in of for head in part.heads]
    joined = torch.cat(results, dim=1)
    if order == sorted(order):
        return joined
    return joined.index_select(1, torch.tensor(order, device=joined.device).argsort())


def _shared(heads: list[int], group: int) -> list[int]:
    """The key heads that these query heads read: each once where that divides the query heads evenly and in order, else
    one for each query head."""
    wanted = [head // group for head in heads]
    few = list(dict.fromkeys(wanted))
    even = len(heads) // len(few)
    return few if wanted == [head for head in few for _ in range(even)] else wanted


def _select(x: Tensor, indices: list[int], dim: int) -> Tensor:
    if indices == list(range(indices[0], indices[-1] + 1)):
        return x.narrow(dim, indices[0], len(indices))
    return x.index_select(dim, torch.tensor(indices, device=x.device))

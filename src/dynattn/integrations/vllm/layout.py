"""Where keys and values lie in vLLM's cache for CPUs.

vLLM's own kernels pack keys by instruction set. This layout is plain: of each page and key head first all keys, then
all values, in as many numbers as vLLM gives the page.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Pools(NamedTuple):
    """Views of the keys and the values of a layer, each (pages, page_size, kv_heads, head_dim)."""

    keys: Tensor
    values: Tensor


def pools(kv_cache: Tensor) -> Pools:
    """Views of a layer's cache.

    Args:
        kv_cache: a layer's cache as vLLM gives it: (pages, kv_heads, page_size, 2 · head_dim).
    """
    pages, heads, size, _ = kv_cache.shape
    key, value = kv_cache.view(pages, heads, 2 * size, -1).chunk(2, dim=2)
    return Pools(key.transpose(1, 2), value.transpose(1, 2))


def write(into: Pools, key: Tensor, value: Tensor, slots: Tensor) -> None:
    """Write new keys and values into their slots.

    Args:
        into: what :func:`pools` gave.
        key, value: (tokens, kv_heads, head_dim); tokens behind the last slot are padding.
        slots: (tokens,), each page · page_size + place; negative for a token that is not kept.
    """
    key, value = key[: len(slots)], value[: len(slots)]
    if len(slots) and int(slots.min()) < 0:
        kept = (slots >= 0).nonzero().flatten()
        slots, key, value = slots[kept], key[kept], value[kept]
    size = into.keys.shape[1]
    place = slots // size, slots % size
    for pool, new in zip(into, (key, value), strict=True):
        pool.index_put_(place, new.to(pool.dtype))

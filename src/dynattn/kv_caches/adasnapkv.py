"""Ada-SnapKV: as SnapKV, but the key heads of a layer share their capacity.

    received_j = max over the last ``window`` queries and the query heads of a key head
    score      = mean of received over ``pool`` neighbouring tokens
    safe       = the best max(⌊0.2 · capacity⌋, recent + sinks) tokens of each key head
    held       = safe ∪ { best other (head, token) of the layer }: kv_heads · capacity in all

Heads that look at few tokens leave room to those that look at many.

Source: Ada-KV, arXiv:2407.11550. The maximum, the share that is safe and the defaults are those of The Sparse Frontier,
arXiv:2504.17768.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dynattn.integrations.transformers import Call
from dynattn.kv_caches.snapkv_options import SnapCache, SnapLayer

_SAFE = 0.2  # the share of its capacity that no head loses to others; The Sparse Frontier's choice


class _AdaSnapKVLayer(SnapLayer):
    def cut(self, call: Call) -> None:
        options = self.options
        if self.seen > options.capacity:
            safe = max(int(_SAFE * options.capacity), options.recent + options.sinks)
            self.evict_ragged(shared(options.rank(call, self.seen, "max", "AdaSnapKVCache"), options.capacity, safe))


class AdaSnapKVCache(SnapCache):
    """Holds, of a prompt, the tokens that its last queries attend to, and shares room among the key heads of a layer.
    It needs one of this project's attention implementations, at every step.

        model.set_attn_implementation("dynattn:dense")
        cache = AdaSnapKVCache(capacity=1024)
        model.generate(**prompt, past_key_values=cache)

    Each layer has as many slots for every head as its longest head needs; empty ones are masked. So memory shrinks to
    that head's tokens, which are ``capacity`` or more. Otherwise as :class:`~dynattn.kv_caches.SnapKVCache`.

    Args:
        capacity: how many tokens of the prompt a key head holds on average.
        window: so many of the last queries choose.
        pool: the scores of so many neighbouring tokens are averaged; odd.
        recent: how many of the latest tokens of the prompt are always held.
        sinks: how many of the first tokens are always held.

    Attributes:
        options: the arguments.
        name: its name, as :func:`dynattn.kv_caches.make` takes it.

    Raises:
        TypeError: an argument is no int.
        ValueError: an argument is out of range; while generating, the attention implementation is not one of this
            project's, or a batch is padded on the right.
    """

    prefix = "adasnapkv"
    layer = _AdaSnapKVLayer


def shared(rank: Tensor, capacity: int, safe: int) -> Tensor:
    """Which tokens are held, where the heads of a layer share their room.

    Args:
        rank: (batch, kv_heads, tokens), what tokens are chosen by; -inf for padding, which is never held.
        capacity: tokens a head, on average.
        safe: how many of its best tokens no head loses.

    Returns:
        (batch, kv_heads, tokens) bool; ``kv_heads · capacity`` are held of each sample, or all where there are fewer.
    """
    order = rank.argsort(dim=-1, descending=True, stable=True)
    first = torch.zeros_like(rank, dtype=torch.bool).scatter(-1, order[..., :safe], True)
    flat = rank.masked_fill(first, math.inf).flatten(1)
    chosen = flat.argsort(dim=1, descending=True, stable=True)[:, : rank.shape[1] * capacity]
    kept = torch.zeros_like(flat, dtype=torch.bool).scatter(1, chosen, True).view_as(rank)
    return kept & (rank > -math.inf)

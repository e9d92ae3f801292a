"""Finds where the queries stand in a static cache, for methods that look at positions.

A static cache is longer than the text, and ends in free slots. A window is counted from the last query, so the slots
behind that query are cut off. The last query may attend to itself (:func:`~.masks.make` sees to that) and to nothing
behind itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dynattn.functional import attention
from dynattn.integrations.transformers.masks import visible
from dynattn.methods import parse


def end_of(mask: Tensor) -> Tensor:
    """One more than the last key that the last query may attend to, in any sample: an int64 tensor of one element."""
    seen = visible(mask[..., -1, :]).reshape(-1, mask.shape[-1]).any(0)
    return (seen * torch.arange(1, mask.shape[-1] + 1, device=mask.device)).amax()


@torch.library.custom_op("dynattn::attention_up_to", mutates_args=())
def attention_up_to(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, method: str, scale: float) -> Tensor:
    """Attention over the keys up to the last query's; one operator, so that compiled graphs need not know how many.

    Args:
        query: (batch, heads, q_len, head_dim).
        key: (batch, kv_heads, kv_len, head_dim), with free slots at its end.
        value: (batch, kv_heads, kv_len, value_dim).
        mask: as :func:`dynattn.attention` takes it.
        method: its name.
        scale: factor of the scores.

    Returns:
        (batch, heads, q_len, value_dim).
    """
    end = int(end_of(mask))
    key, value, mask = key[:, :, :end], value[:, :, :end], mask[..., :end]
    return attention(query, key, value, parse(method), attn_mask=mask, scale=scale).contiguous()


@attention_up_to.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, method: str, scale: float) -> Tensor:
    return query.new_empty(*query.shape[:3], value.shape[3])

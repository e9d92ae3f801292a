"""The masks that Transformers' mask functions make for ``dynattn:…``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dynattn.integrations.transformers import contracts
from dynattn.integrations.transformers.contracts import Contract


def make(
    *, q_length: int, kv_length: int, q_offset: Any, kv_offset: int, positions: bool, config: Any = None, **kwargs: Any
) -> Tensor | None:
    """The mask for a forward pass: transformers' ``sdpa_mask``, or its ``eager_mask`` where the model needs that.

    - What is left out, and whether the mask is bool, follows the model's :class:`~.contracts.Contract`. Where no mask
      means that everything may be attended to, a mask that says nothing else is left out, as for ``eager``: Autoformer
      fails with any. Where no module says that it is causal, ``sdpa`` loses causality with a mask that it leaves out
      (PaliGemma, AIMv2), and this doesn't.
    - A padding mask that is the same for every query is expanded from (batch, 1, 1, kv_len): memory linear in length,
      and :func:`narrow` finds it again.
    - A causal mask is left out only where q_len == kv_len or q_len == 1: elsewhere ``sdpa_mask`` may leave it out too,
      counting on SDPA's top-left alignment, which attention cannot tell from the bottom-right one.
    - Where a method looks at ``positions``, every query may attend to itself, padding too: by that attention finds
      where the queries of a static cache stand.

    ``q_offset`` is an int, or a tensor from static caches.
    """
    from transformers.masking_utils import bidirectional_mask_function, eager_mask, sdpa_mask

    contract = contracts.of(config)
    may_skip = kwargs.get("allow_is_bidirectional_skip")  # None where the mask is causal
    places = may_skip is None and positions and q_length != kv_length
    if contract >= Contract.WHOLE and not contracts.eager_alone(config):
        kwargs["allow_is_bidirectional_skip"] = False
    static = places and not isinstance(q_offset, int)
    if contract is not Contract.SDPA or static or q_length not in (1, kv_length):
        kwargs["allow_is_causal_skip"] = False
    make = eager_mask if contract is Contract.ADDED else sdpa_mask
    mask = make(q_length=q_length, kv_length=kv_length, q_offset=q_offset, kv_offset=kv_offset, **kwargs)
    if mask is not None and may_skip is not None and kwargs.get("mask_function") is bidirectional_mask_function:
        mask = mask[:, :, :1].expand_as(mask)
    if mask is not None and places:
        queries = torch.arange(q_length, device=mask.device) + q_offset
        itself = torch.arange(kv_length, device=mask.device) + kv_offset == queries[:, None]
        mask = mask | itself if mask.dtype == torch.bool else mask.masked_fill(itself, 0.0)
    return mask


def narrow(mask: Tensor) -> Tensor:
    """The mask as (batch, heads, 1, kv_len) where it was expanded from that."""
    return mask[:, :, :1] if mask.dim() == 4 and mask.shape[2] > 1 and mask.stride(2) == 0 else mask


def visible(mask: Tensor) -> Tensor:
    """The pairs that a mask allows, as bool: an additive one forbids by -inf or by its dtype's lowest number."""
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min


def forbidding(mask: Tensor) -> Tensor:
    """An additive mask that forbids by -inf alone, which methods that choose among the allowed keys can tell; a boolean
    one as it is."""
    if mask.dtype == torch.bool:
        return mask
    return mask.masked_fill(mask <= torch.finfo(mask.dtype).min, -torch.inf)  # NaN stays, and reaches the output

"""Packed batches, in which a sample holds several texts one after another that must not see each other.

Where neither a mask nor a cache is given, Transformers makes a block mask from position ids that start anew. All other
signs that a batch is packed are meant for implementations that cut it up themselves. This one would let the texts see
each other, and refuses.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dynattn.integrations.transformers.masks import visible

_REMEDY = (
    "pass position_ids that start anew with use_cache=False and without attention_mask, from which Transformers makes "
    "a mask, or pad the texts in place of packing them"
)


def refuse_restarts(position_ids: Any, attention_mask: Any, past_key_values: Any) -> None:
    """Refuse position ids that start anew where Transformers makes no block mask from them.

    A compiled graph asserts it while it runs, since positions are not known before: it raises RuntimeError, and does
    not say where; on a GPU the error comes as one of the device.

    Args:
        position_ids: (batch, q_len), as a model gives them to Transformers' mask functions; all else passes.
        attention_mask: (batch, length) or None; masks of other shapes are the caller's own, and pass.
        past_key_values: the cache, or None.

    Raises:
        ValueError: a position is lower than the one before it, and neither is padding.
    """
    if not isinstance(position_ids, Tensor) or position_ids.dim() != 2 or position_ids.shape[1] < 2:
        return
    if attention_mask is None and past_key_values is None:
        return
    restarts = position_ids[:, 1:] < position_ids[:, :-1]
    if isinstance(attention_mask, Tensor):
        if attention_mask.dim() != 2 or attention_mask.shape[1] < position_ids.shape[1]:
            return
        text = attention_mask[:, -position_ids.shape[1] :].bool()
        restarts = restarts & text[:, 1:] & text[:, :-1]
    said = (
        f"dynattn: packed batches are not supported with {'a cache' if attention_mask is None else 'an attention_mask'}"
    )
    if torch.compiler.is_compiling():
        torch._assert_async(~restarts.any(), f"{said}: position_ids start anew; {_REMEDY}")  # type: ignore[attr-defined]
    elif bool(restarts.any()):
        sample, place = (int(i) for i in restarts.nonzero()[0])
        raise ValueError(
            f"{said}: position_ids start anew at [{sample}, {place + 1}], and the texts before and after would see "
            f"each other; {_REMEDY}"
        )


def refuse_lengths(kwargs: dict[str, Any], mask: Tensor | None, q_len: int, kv_len: int) -> None:
    """Refuse lengths of packed texts that the mask does not keep apart.

    Args:
        kwargs: what else a model passes to attention: ``cu_seq_lens_q``, ``max_length_q`` and their like for keys.
        mask: as attention gets it.
        q_len: queries of a sample.
        kv_len: keys of a sample.

    Raises:
        ValueError: they say that a sample holds several texts, and the mask lets them see each other.
    """
    for side, length in (("q", q_len), ("k", kv_len)):
        bounds, longest = kwargs.get(f"cu_seq_lens_{side}"), kwargs.get(f"max_length_{side}")
        if isinstance(bounds, Tensor) and not _apart(bounds, mask, q_len, kv_len, length):
            _refuse(f"cu_seq_lens_{side}")
        if bounds is None and longest is not None and not _short(longest, mask, q_len, kv_len):
            _refuse(f"max_length_{side}")


def _apart(bounds: Tensor, mask: Tensor | None, q_len: int, kv_len: int, length: int) -> bool:
    """Whether no query at the start of a text sees the key before it."""
    if torch.compiler.is_compiling():
        return mask is not None
    inner = bounds.flatten()[1:-1].tolist()
    inner = [bound for bound in inner if bound % length]  # different samples do not see each other anyway
    if not inner:
        return True
    if mask is None or q_len != kv_len:
        return False
    pairs = visible(mask).expand(*mask.shape[:2], q_len, kv_len)
    return not any(
        bool(pairs[(bound // length) % len(pairs), :, bound % length, bound % length - 1].any()) for bound in inner
    )


def _short(longest: Any, mask: Tensor | None, q_len: int, kv_len: int) -> bool:
    """Whether the mask cuts samples into runs of queries that see the key before them, each at most this long."""
    if int(longest) >= max(q_len, kv_len):
        return True
    if mask is None or q_len != kv_len:
        return False
    if torch.compiler.is_compiling():
        return True
    pairs = visible(mask).expand(*mask.shape[:2], q_len, kv_len).any(1)
    for linked in pairs.diagonal(-1, 1, 2).tolist():
        run = 1
        for link in linked:
            run = run + 1 if link else 1
            if run > int(longest):
                return False
    return True


def _refuse(name: str) -> None:
    raise ValueError(f"dynattn: packed batches are not supported: {name} says that texts share a sample; {_REMEDY}")

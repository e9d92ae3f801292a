"""How a model goes on: the likeliest token after another."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from dynattn.kv_caches.counts import check_counts
from dynattn.kv_caches.full import FullCache


def forward(model: Any, input_ids: Tensor, attention_mask: Tensor | None, cache: Any) -> Tensor:
    """One forward, with positions counted as ``generate`` counts them.

    Args:
        model: a Transformers decoder.
        input_ids: (batch, new), tokens that the cache does not know yet.
        attention_mask: (batch, tokens so far) 0 where a token is padding; None where none is.
        cache: what was read before; it is updated.

    Returns:
        (batch, vocabulary) logits of the token that follows.
    """
    return logits(model, input_ids, attention_mask, cache, 1)[:, -1]


def logits(model: Any, input_ids: Tensor, attention_mask: Tensor | None, cache: Any, count: int) -> Tensor:
    """The same, behind each of the last tokens.

    Args:
        model, input_ids, attention_mask, cache: see :func:`forward`.
        count: behind how many of the new tokens.

    Returns:
        (batch, count, vocabulary).
    """
    given: dict[str, Any] = {}
    if attention_mask is not None:
        given["attention_mask"] = attention_mask
        if "position_ids" in inspect.signature(model.forward).parameters:
            positions = (attention_mask.long().cumsum(-1) - 1).masked_fill(attention_mask == 0, 0)
            given["position_ids"] = positions[:, -input_ids.shape[1] :]
    found = model(input_ids=input_ids, past_key_values=cache, use_cache=True, logits_to_keep=count, **given)
    return found.logits[:, -count:]


@torch.no_grad()
def continuation(model: Any, input_ids: Tensor, tokens: int, attention_mask: Tensor | None = None) -> Tensor:
    """The tokens by which a model goes on greedily: the lookahead of a draft, or, of the target itself, a perfect one.

    Args:
        model: a Transformers decoder.
        input_ids: (batch, length).
        tokens: how many; fewer come where every sample has ended its text before. A sample that has ended goes on with
            whatever is likeliest.
        attention_mask: (batch, length) 0 where a token is padding, on the left; None where none is.

    Returns:
        (batch, at most ``tokens``) int64.

    Raises:
        ValueError: ``tokens`` is negative.
    """
    check_counts("continuation", least=0, tokens=tokens)
    cache, mask, step = FullCache(), attention_mask, input_ids
    found = [input_ids[:, :0]]
    ends = end_tokens(model).to(input_ids.device)
    ended = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
    for _ in range(tokens):
        step = forward(model, step, mask, cache).argmax(-1, keepdim=True)
        mask = extended(mask, 1)
        found.append(step)
        ended |= torch.isin(step[:, 0], ends)
        if ended.all():
            break
    return torch.cat(found, 1)


def extended(attention_mask: Tensor | None, tokens: int) -> Tensor | None:
    """The mask with so many more tokens that are text."""
    if attention_mask is None:
        return None
    return torch.cat([attention_mask, attention_mask.new_ones(len(attention_mask), tokens)], 1)


def end_tokens(model: Any) -> Tensor:
    """The tokens that end a text, (any number,) int64; none where the model knows none."""
    end = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return torch.tensor([] if end is None else end, dtype=torch.int64, device="cpu").reshape(-1)

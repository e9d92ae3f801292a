"""What the last queries of a prompt attend to, and the choice of tokens by it.

observed_j = Σ over the last queries of the mean over the query heads of a key head      ("sum")
observed_j = max over the last queries and the query heads of a key head                 ("max")
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from dynattn.integrations.transformers import Call
from dynattn.integrations.transformers.masks import forbidding, visible
from dynattn.maths.scores import arithmetic_dtype, scores

_ROWS = 64  # so many queries are computed at once, so that memory stays small beside a prompt's


@torch.no_grad()
def observed(call: Call, last: int, reduce: Literal["sum", "max"], weights: Tensor | None = None) -> Tensor:
    """The dense attention weights that each key receives from the last queries.

    Args:
        call: the attention call; its queries may be the last ones alone.
        last: how many of the last queries count.
        reduce: how the weights of queries, and of the heads that share a key head, become one number.
        weights: (queries that count,) a factor for each query, or None for 1.

    Returns:
        (batch, kv_heads, kv_len), float32, or float64 for float64 inputs.
    """
    query, key = call.query[:, :, -last:], call.key
    mask = None if call.attn_mask is None else forbidding(call.attn_mask)
    q_len, kv_len, kv_heads = query.shape[2], key.shape[2], key.shape[1]
    if mask is not None and mask.shape[2] > 1:
        mask = mask[:, :, -q_len:]
    scale = query.shape[-1] ** -0.5 if call.scale is None else call.scale
    total = torch.zeros(len(query), kv_heads, kv_len, dtype=arithmetic_dtype(query.dtype), device=query.device)
    for start in range(0, q_len, _ROWS):
        rows = slice(start, min(start + _ROWS, q_len))
        part = mask[:, :, rows] if mask is not None and mask.shape[2] > 1 else mask
        s = scores(query[:, :, rows], key, part, call.causal, scale, kv_len - q_len + start)
        p = s.softmax(-1).nan_to_num(0.0)  # a row with nothing allowed gives nothing
        if weights is not None:
            p = p * weights[rows, None]
        p = p.unflatten(1, (kv_heads, -1))  # [batch, kv_heads, group, rows, kv_len]
        found = p.mean(2).sum(2) if reduce == "sum" else p.amax((2, 3))
        total = total + found if reduce == "sum" else torch.maximum(total, found)
    return total


def text_of(call: Call, tokens: int, owner: str) -> Tensor:
    """The tokens of a prompt that are no padding: those that its last query may attend to.

    Args:
        call: the attention call.
        tokens: how many tokens the prompt has; keys behind them do not count.
        owner: who asks, for the error.

    Returns:
        (batch, tokens) bool.

    Raises:
        ValueError: the last token of a prompt is padding.
    """
    batch = len(call.key)
    if call.attn_mask is None:
        return torch.ones(batch, tokens, dtype=torch.bool, device=call.key.device)
    text = visible(call.attn_mask)[:, :, -1].any(1).expand(batch, -1)[:, :tokens]
    refuse_right_padding(text, owner)
    return text


def refuse_right_padding(text: Tensor, owner: str) -> None:
    """Raise where the last token of a prompt is padding.

    Args:
        text: (batch, tokens), 0 or False at padding.
        owner: who asks, for the error.

    Raises:
        ValueError: it is.
    """
    if not text[:, -1].all():
        raise ValueError(
            f"{owner}: samples must be padded on the left: a mask hides the last token of a prompt; tokenize with "
            "padding_side='left'"
        )


def ranked(received: Tensor, text: Tensor, recent: int, sinks: int) -> Tensor:
    """What tokens are chosen by: the first and the latest of the text before all others, and padding last.

    Args:
        received: (batch, kv_heads, tokens).
        text: (batch, tokens) bool, the tokens that are no padding.
        recent: how many of the latest tokens come first.
        sinks: how many of the first tokens come first.

    Returns:
        (batch, kv_heads, tokens).
    """
    count = text.cumsum(-1)  # 1 for the first token of the text
    forced = (count <= sinks) | (count > count[:, -1:] - recent)
    return received.masked_fill(forced[:, None], math.inf).masked_fill(~text[:, None], -math.inf)


def best(rank: Tensor, count: int) -> Tensor:
    """The places of the largest numbers of each row, ascending; of equal ones, the earlier.

    Args:
        rank: (batch, kv_heads, tokens).
        count: how many.

    Returns:
        (batch, kv_heads, count) int64.
    """
    return rank.argsort(dim=-1, descending=True, stable=True)[..., :count].sort(-1).values

"""How much attention each token receives: the column sums of the probabilities, without holding all of them at once.

    P_h = softmax(scale · Q_h K_hᵀ),    received_hj = Σ_i P_hij        over the tokens that are left

Some heads and queries are computed at a time, few enough for a core's cache, so memory is linear in length. The sums
need the probabilities in full, which no fused attention kernel gives. Where the model's attention is plain softmax
attention, one pass gives the sums and the attention's output; elsewhere scores and exponentials are computed for the
sums alone. docs/methods/spatten.md says what that costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_BLOCK = 128  # so many queries are computed at a time
_ELEMENTS = 2**19  # and so many probabilities: 2 MB in float32. Whole heads at a time take up to three times as long.


class Received(NamedTuple):
    """The result of one pass over the probabilities.

    Attributes:
        sums: (batch, heads, kv_len), what each key receives from all queries that are alive, in float32 or float64.
        out: (batch, q_len, heads, head_dim), ``P V``; None where no values were given.
    """

    sums: Tensor
    out: Tensor | None


def probabilities(query: Tensor, key: Tensor, scale: float, alive: Tensor | None) -> Tensor:
    """All of P at once: the definition, differentiable.

    Args:
        query: (batch, heads, q_len, head_dim).
        key: (batch, heads, kv_len, head_dim).
        scale: factor of the scores.
        alive: (batch, kv_len) bool, False where there is no token; None for all True.

    Returns:
        (batch, heads, q_len, kv_len).
    """
    scores = scale * query @ key.transpose(-1, -2)
    if alive is not None:
        # With -inf in its place, the softmax of a sample that is all padding would be NaN.
        scores = scores.masked_fill(~alive[:, None, None], torch.finfo(scores.dtype).min)
    return scores.softmax(-1)


def received(
    query: Tensor, key: Tensor, scale: float, alive: Tensor | None = None, value: Tensor | None = None
) -> Received:
    """The column sums of P and, on request, the output, a block at a time. Gradients flow through it.

    Args:
        query: (batch, heads, length, head_dim).
        key: likewise.
        scale: factor of the scores.
        alive: (batch, length) bool: the tokens that count, as keys and as queries; None for all True. A sample without
            any gets 0.
        value: (batch, heads, length, head_dim) to compute the output too.

    Returns:
        The sums, and the output or None.
    """
    inputs = (query, key) if value is None else (query, key, value)
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        return _plain(query, key, scale, alive, value)
    batch, heads, length, head_dim = query.shape
    sums = query.new_zeros(batch, heads, length, dtype=_wide(query))
    out = None if value is None else query.new_zeros(batch, length, heads, head_dim)
    for sample in range(batch):
        if alive is None or bool(alive[sample].all()):
            _sample([x[sample] for x in inputs], scale, sums[sample], None if out is None else out[sample])
            continue
        places = alive[sample].nonzero().squeeze(1)  # padding is left out, so it needs no mask and no work
        if len(places) == 0:  # a sample of padding alone, such as those that fill up a last batch
            continue
        part = sums.new_zeros(heads, len(places))
        part_out = None if out is None else out.new_empty(len(places), heads, head_dim)
        _sample([x[sample, :, places] for x in inputs], scale, part, part_out)
        sums[sample, :, places] = part
        if out is not None and part_out is not None:
            out[sample, places] = part_out
    return Received(sums, out)


def _wide(x: Tensor) -> torch.dtype:
    """The dtype of the sums, since thousands of small numbers cannot be added up in half precision."""
    return torch.promote_types(x.dtype, torch.float32)


def _sample(inputs: Sequence[Tensor], scale: float, sums: Tensor, out: Tensor | None) -> None:
    """Take one sample: add to ``sums``, (heads, length), and fill ``out``, (length, heads, head_dim)."""
    query, key = inputs[:2]
    heads, length, _ = query.shape
    group = max(1, min(heads, _ELEMENTS // (_BLOCK * length)))
    for first in range(0, heads, group):
        of = slice(first, first + group)
        q, transposed = query[of] * scale, key[of].transpose(1, 2)
        for start in range(0, length, _BLOCK):
            rows = slice(start, start + _BLOCK)
            p = torch.bmm(q[:, rows], transposed).softmax(-1)  # [group, block, length]
            sums[of] += p.sum(1, dtype=sums.dtype)
            if out is not None:
                out[rows, of] = torch.bmm(p, inputs[2][of]).transpose(0, 1)


def _plain(query: Tensor, key: Tensor, scale: float, alive: Tensor | None, value: Tensor | None) -> Received:
    p = probabilities(query, key, scale, alive)
    counted = p if alive is None else p * alive[:, None, :, None]
    return Received(counted.sum(2, dtype=_wide(query)), None if value is None else (p @ value).transpose(1, 2))

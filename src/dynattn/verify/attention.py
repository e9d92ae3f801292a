"""Bounds through attention, dense and sparse: the choice, the weights, and what they mix.

    s = scale · Q Kᵀ + bias by corners,    p in its box and Σ p = 1,    out in [min Σ p v, max Σ p v]

The largest ``Σ p_j v_j`` starts from all least weights and spends the rest, ``1 - Σ p``, on the keys with the largest
``v``, each up to its largest weight: exact for weights in a box that sum to 1.

Source: arXiv:2002.06622 for dense attention; bounds of an N:M choice are this library's.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dynattn.functional import attention as exact_attention
from dynattn.maths.scores import per_head
from dynattn.maths.scores import scores as exact_scores
from dynattn.methods import NM, Method
from dynattn.verify.affine import Affine
from dynattn.verify.box import Box, rule
from dynattn.verify.choices import groups_of, kept
from dynattn.verify.relaxations import mixed, weights


class Bounds(NamedTuple):
    """What attention may give for every query, key and value of their boxes.

    Attributes:
        out: box (batch, heads, q_len, value_dim).
        surely: bool (batch, heads, q_len, kv_len), the pairs that are kept whatever happens.
        possibly: bool, those that may be kept.
        kept_mass: (batch, heads, q_len), a lower bound of the kept mass.
        settled: (batch, heads, q_len), the share of groups whose choice is the same over all of the box.
    """

    out: Box
    surely: Tensor
    possibly: Tensor
    kept_mass: Tensor
    settled: Tensor


def attention(
    query: Tensor | Box,
    key: Tensor | Box,
    value: Tensor | Box,
    method: Method = NM(2, 4),
    *,
    attn_mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Bounds:
    """Bounds of :func:`dynattn.attention`.

    Sound up to rounding: run it in float64 where an answer hangs on the last digits. Time and memory go with the pairs
    times head_dim, and for ``TopK`` with the square of kv_len for each query: this is for small models.

    Args:
        query: (batch, heads, q_len, head_dim), a box or a tensor.
        key: (batch, kv_heads, kv_len, head_dim), likewise.
        value: (batch, kv_heads, kv_len, value_dim), likewise.
        method: ``NM`` (dense as ``NM(n, n)``, windows and sinks included), ``TopK`` or ``Window``.
        attn_mask: bool or floating point, as in :func:`dynattn.attention`; no box.
        causal: as there.
        scale: as there.

    Raises:
        NotImplementedError: a method for whose choice there are no bounds.
        ValueError: heads or lengths do not fit.
    """
    boxes = Box.of(query), Box.of(key), Box.of(value)
    # The shapes are those that attention itself takes, and the errors its own.
    exact_attention(boxes[0].lower[:, :, :0], boxes[1].lower, boxes[2].lower, method, scale=scale)
    heads, factor = query.shape[1], query.shape[-1] ** -0.5 if scale is None else scale
    q, k, v = (x.moved(lambda end: per_head(end, heads)) for x in boxes)
    s = q @ k.mT * factor
    offset = k.shape[2] - q.shape[2]
    nothing = torch.zeros_like(q.lower[..., :1]), torch.zeros_like(k.lower[..., :1])
    bias = exact_scores(*nothing, attn_mask, causal, 1.0, offset)
    allowed = bias != -torch.inf
    s = s + bias.masked_fill(~allowed, 0.0)
    found = kept(s, allowed, groups_of(method, allowed, offset))
    out = _mixed(found.weight, v, allowed.any(-1))
    like = next((box for box in (s, v) if isinstance(box, Affine)), None)
    if like is not None:
        settled = (found.surely == found.possibly).all(-1, keepdim=True)
        weight = weights(Affine.constant(s, like), found.surely, found.weight, settled)
        out = mixed(weight, v, allowed.any(-1)).meet(out)
    return Bounds(out, *found[1:])


def _mixed(weight: Box, value: Box, some: Tensor) -> Box:
    """The box of ``Σ p_j v_j`` over all p in their box that sum to 1; 0 in rows that may attend nothing."""
    rest = (1 - weight.lower.sum(-1)).clamp(min=0.0) * some
    room = weight.upper - weight.lower
    ends = []
    for v, sign in ((value.lower, -1), (value.upper, 1)):
        columns = []
        for column in v.unbind(-1):  # [batch, heads, kv_len]
            order = (column * sign).argsort(-1, descending=True).unsqueeze(-2).expand_as(room)
            ordered = room.gather(-1, order)
            before = ordered.cumsum(-1) - ordered
            spent = (rest.unsqueeze(-1) - before).clamp(min=0.0).minimum(ordered)
            its = column.unsqueeze(-2)
            columns.append((weight.lower * its).sum(-1) + (spent * its.expand_as(room).gather(-1, order)).sum(-1))
        ends.append(torch.stack(columns, -1))
    return Box.spanning(*ends)


@rule("attention", of_all=True)
def _attention(query: Box, key: Box, value: Box, method: Method = NM(2, 4), **options: object) -> object:
    """:func:`dynattn.attention` of boxes."""
    refused = {"return_aux": False, "dropout_p": 0.0, "seed": None, "backend": "auto"}
    for name, plain in refused.items():
        if options.pop(name, plain) != plain:
            raise NotImplementedError(
                f"verify: attention of boxes takes no {name}; dynattn.verify.attention gives bounds of the kept mass"
            )
    return attention(query, key, value, method, **options).out  # pyright: ignore[reportArgumentType]


@rule("scaled_dot_product_attention", of_all=True)
def _dense(
    query: Box, key: Box, value: Box, attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, enable_gqa: bool = False,
) -> Box:  # fmt: skip
    """PyTorch's attention of boxes; its causal mask begins top-left."""
    if dropout_p:
        raise ValueError("verify: dropout must be off: got a model in training; call model.eval() first")
    if is_causal:
        attn_mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
    return attention(query, key, value, NM(1, 1), attn_mask=attn_mask, scale=scale).out

"""The definition for a whole call, a block of queries at a time, so that memory is linear in length."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, cast

import torch
from torch import Tensor

from dynattn.maths import dropout
from dynattn.maths.scores import arithmetic_dtype
from dynattn.methods.base import PairMethod
from dynattn.reference import pairs as reference

_BLOCK_SCORES = 1 << 22  # so many scores are held at a time: 16 MB of float32 for each temporary


class Options(NamedTuple):
    """What a call computes besides its tensors.

    Attributes:
        method: what to keep.
        causal: forbid keys after the query, aligned bottom-right.
        scale: factor of the scores.
        dropout_p: probability of dropping a kept weight.
    """

    method: PairMethod
    causal: bool
    scale: float
    dropout_p: float


def _rows_at_a_time(query: Tensor, key: Tensor, method: PairMethod) -> Iterator[range]:
    """Blocks of queries whose scores fit in ``_BLOCK_SCORES``, cut where the method allows it."""
    batch, heads, q_len, _ = query.shape
    together = cast(int, method.rows_together)
    step = max(1, _BLOCK_SCORES // max(1, batch * heads * key.shape[2] * together)) * together
    return (range(start, min(start + step, q_len)) for start in range(0, q_len, step))


def _mask_rows(attn_mask: Tensor | None, rows: slice) -> Tensor | None:
    if attn_mask is None or attn_mask.dim() < 2 or attn_mask.shape[-2] == 1:
        return attn_mask
    return attn_mask[..., rows, :]


def _drops(query: Tensor, key: Tensor, seed: Tensor | None, rows: range, dropout_p: float) -> Tensor | None:
    if seed is None:
        return None
    batch, heads = query.shape[:2]
    return dropout.factors(int(seed), dropout_p, batch, heads, rows, key.shape[2], query.device)


def forward(
    outputs: tuple[Tensor, ...], query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None,
    seed: Tensor | None, options: Options, aux: bool,
) -> None:  # fmt: skip
    """Attention by the definition, into tensors that the caller gives.

    Args:
        outputs: the tensors to fill: out, logsumexp, kept mass, pairs kept, pairs allowed; the last three only where
            ``aux`` is True.
        query, key, value, attn_mask: as :func:`dynattn.attention` takes them.
        seed: the seed of dropout, a tensor of one element; None without dropout.
        options: what to compute.
        aux: whether the certificate is asked for.
    """
    compute = reference.forward if aux else reference.attend
    with torch.autocast(query.device.type, enabled=False):  # float32 means float32
        for block in _rows_at_a_time(query, key, options.method):
            rows = slice(block.start, block.stop)
            result = compute(
                query[:, :, rows], key, value, options.method, _mask_rows(attn_mask, rows), options.causal,
                options.scale, offset=key.shape[2] - query.shape[2] + block.start,
                drops=_drops(query, key, seed, block, options.dropout_p),
            )  # fmt: skip
            for output, part in zip(outputs if aux else outputs[:2], result, strict=False):
                output[:, :, rows] = part


def backward(
    gradients: tuple[Tensor, ...], grad_out: Tensor, grad_logsumexp: Tensor, query: Tensor, key: Tensor, value: Tensor,
    attn_mask: Tensor | None, seed: Tensor | None, options: Options,
) -> None:  # fmt: skip
    """Gradients by the definition, into tensors that the caller gives.

    Args:
        gradients: the tensors to fill, for query, key, value and attn_mask; the last has no element where it is not
            wanted.
        grad_out, grad_logsumexp: the gradients of what :func:`forward` gave.
        query, key, value, attn_mask, seed, options: as there.
    """
    dtype = arithmetic_dtype(query.dtype)
    d_query, *rest = gradients
    d_key, d_value, d_mask = (torch.zeros_like(x, dtype=dtype) for x in rest)  # the sums are in the arithmetic's dtype
    with torch.autocast(query.device.type, enabled=False):
        for block in _rows_at_a_time(query, key, options.method):
            rows = slice(block.start, block.stop)
            grad = reference.backward(
                grad_out[:, :, rows], grad_logsumexp[:, :, rows], query[:, :, rows], key, value, options.method,
                _mask_rows(attn_mask, rows), options.causal, options.scale,
                offset=key.shape[2] - query.shape[2] + block.start,
                drops=_drops(query, key, seed, block, options.dropout_p),
            )  # fmt: skip
            d_query[:, :, rows] = grad.query
            d_key += grad.key
            d_value += grad.value
            d_mask_rows = _mask_rows(d_mask, rows) if d_mask.numel() else None
            if d_mask_rows is not None:
                d_mask_rows += grad.scores.sum_to_size(d_mask_rows.shape)
    for gradient, total in zip(rest, (d_key, d_value, d_mask), strict=True):
        gradient.copy_(total)

"""``torch.ops.dynattn.nm_attention``: schema, fake, device implementations and gradient.

Inputs are taken as checked: :func:`dynattn.attention` checks them. Every backend of the operator computes
:mod:`dynattn.reference.nm`; memory stays linear in length in all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from dynattn.kernels import cpu, cuda
from dynattn.kernels.pattern import Pattern
from dynattn.reference import nm as reference

_BLOCK_SCORES = 1 << 22  # scores that the plain PyTorch path holds at a time: 16 MB of float32 a temporary

_ARGUMENTS = (
    "Tensor query, Tensor key, Tensor value, Tensor? attn_mask, "
    "int n, int m, int window, int sinks, int stride, bool causal, float scale"
)

library = torch.library.Library("dynattn", "DEF")
library.define(
    f"nm_attention({_ARGUMENTS}, bool aux, str backend) "
    "-> (Tensor out, Tensor logsumexp, Tensor kept_mass, Tensor kept, Tensor allowed)"
)
library.define(
    f"nm_attention_backward(Tensor grad_out, Tensor grad_logsumexp, {_ARGUMENTS}, bool mask_needs_grad) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)


def _empty_outputs(query: Tensor, value: Tensor, aux: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Outputs to be filled; ``out`` lies in memory as ``query`` does, so that a transpose back costs no copy."""
    batch, heads, q_len, head_dim = query.shape
    value_dim = value.shape[-1]
    dtype = reference.arithmetic_dtype(query.dtype)
    if query.is_contiguous() and head_dim == value_dim:
        out = torch.empty_like(query)  # the quickest way, for calls that last microseconds
    elif query.stride(1) < query.stride(2):  # (batch, length, heads, head_dim) in memory
        out = query.new_empty((batch, q_len, heads, value_dim)).transpose(1, 2)
    else:
        out = query.new_empty((batch, heads, q_len, value_dim))
    logsumexp = query.new_empty((batch, heads, q_len), dtype=dtype)
    if not aux:
        return out, logsumexp, query.new_empty(0), query.new_empty(0), query.new_empty(0)
    kept = query.new_empty((batch, heads, q_len), dtype=torch.int32)
    return out, logsumexp, torch.empty_like(logsumexp), kept, torch.empty_like(kept)


def _rows_at_a_time(query: Tensor, key: Tensor) -> Iterator[slice]:
    """Blocks of queries whose scores fit in ``_BLOCK_SCORES``."""
    batch, heads, q_len, _ = query.shape
    step = max(1, _BLOCK_SCORES // max(1, batch * heads * key.shape[2]))
    return (slice(start, min(start + step, q_len)) for start in range(0, q_len, step))


def _mask_rows(attn_mask: Tensor | None, rows: slice) -> Tensor | None:
    if attn_mask is None or attn_mask.dim() < 2 or attn_mask.shape[-2] == 1:
        return attn_mask
    return attn_mask[..., rows, :]


def _forward_reference(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, pattern: Pattern, aux: bool
) -> tuple[Tensor, ...]:
    outputs = _empty_outputs(query, value, aux)
    for rows in _rows_at_a_time(query, key):
        result = reference.forward(
            query[:, :, rows], key, value, pattern.method, _mask_rows(attn_mask, rows), pattern.causal, pattern.scale,
            offset=key.shape[2] - query.shape[2] + rows.start,
        )  # fmt: skip
        for output, block in zip(outputs if aux else outputs[:2], result, strict=False):
            output[:, :, rows] = block
    return outputs


def _forward_cpu(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    *pattern, aux, backend = rest
    if backend == "reference":
        return _forward_reference(query, key, value, attn_mask, Pattern(*pattern), aux)
    outputs = _empty_outputs(query, value, aux)
    out, logsumexp, kept_mass, kept, allowed = outputs
    if attn_mask is not None:
        attn_mask = attn_mask.expand(*query.shape[:3], key.shape[2])
    cpu.nm_forward(
        _rows_contiguous(query), _rows_contiguous(key), _rows_contiguous(value), attn_mask, out, logsumexp,
        kept_mass if aux else None, kept if aux else None, allowed if aux else None,
        Pattern(*pattern),
        isa=backend.removeprefix("cpu-") if backend != "cpu" else cpu.best_isa(),
    )  # fmt: skip
    return outputs


def _rows_contiguous(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _forward_cuda(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    *pattern, aux, backend = rest
    # compiled code cannot ask whether TF32 is allowed, so it leaves that to this moment
    if backend != "cuda" or (query.dtype == torch.float32 and not cuda.tf32_allowed()):
        return _forward_reference(query, key, value, attn_mask, Pattern(*pattern), aux)
    outputs = _empty_outputs(query, value, aux)
    out, logsumexp, kept_mass, kept, allowed = outputs
    cuda.nm_forward(
        query, key, value, attn_mask, out, logsumexp,
        kept_mass if aux else None, kept if aux else None, allowed if aux else None,
        Pattern(*pattern),
    )  # fmt: skip
    return outputs


def _forward_fake(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, *rest: Any) -> tuple:
    *_, aux, _backend = rest
    return _empty_outputs(query, value, aux)


def _backward(
    grad_out: Tensor, grad_logsumexp: Tensor, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    *arguments, mask_needs_grad = rest
    pattern = Pattern(*arguments)
    dtype = reference.arithmetic_dtype(query.dtype)
    d_query = torch.empty_like(query)
    d_key, d_value = torch.zeros_like(key, dtype=dtype), torch.zeros_like(value, dtype=dtype)
    d_mask = torch.zeros_like(attn_mask, dtype=dtype) if attn_mask is not None and mask_needs_grad else None
    for rows in _rows_at_a_time(query, key):
        grad = reference.backward(
            grad_out[:, :, rows], grad_logsumexp[:, :, rows], query[:, :, rows], key, value, pattern.method,
            _mask_rows(attn_mask, rows), pattern.causal, pattern.scale,
            offset=key.shape[2] - query.shape[2] + rows.start,
        )  # fmt: skip
        d_query[:, :, rows] = grad.query
        d_key += grad.key
        d_value += grad.value
        d_mask_rows = _mask_rows(d_mask, rows)
        if d_mask_rows is not None:
            d_mask_rows += grad.scores.sum_to_size(d_mask_rows.shape)
    d_mask = query.new_empty(0) if d_mask is None or attn_mask is None else d_mask.to(attn_mask.dtype)
    return d_query, d_key.to(key.dtype), d_value.to(value.dtype), d_mask


def _backward_fake(
    grad_out: Tensor, grad_logsumexp: Tensor, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    d_mask = torch.empty_like(attn_mask) if attn_mask is not None and rest[-1] else query.new_empty(0)
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), d_mask


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    query, key, value, attn_mask, *pattern, _aux, _backend = inputs
    ctx.save_for_backward(query, key, value, attn_mask)
    ctx.pattern = pattern
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(True)


def _autograd_backward(ctx: Any, grad_out: Tensor, grad_logsumexp: Tensor, *_: Tensor) -> tuple:
    mask_needs_grad = ctx.needs_input_grad[3]
    d_query, d_key, d_value, d_mask = torch.ops.dynattn.nm_attention_backward(
        grad_out, grad_logsumexp, *ctx.saved_tensors, *ctx.pattern, mask_needs_grad
    )
    return d_query, d_key, d_value, d_mask if mask_needs_grad else None, *[None] * 9


library.impl("nm_attention", _forward_cpu, "CPU")
library.impl("nm_attention", _forward_cuda, "CUDA")
library.impl("nm_attention_backward", _backward, "CPU")
library.impl("nm_attention_backward", _backward, "CUDA")
torch.library.register_fake("dynattn::nm_attention", _forward_fake, lib=library)
torch.library.register_fake("dynattn::nm_attention_backward", _backward_fake, lib=library)
torch.library.register_autograd("dynattn::nm_attention", _autograd_backward, setup_context=_setup_context, lib=library)

nm_attention = torch.ops.dynattn.nm_attention.default

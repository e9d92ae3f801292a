"""``torch.ops.dynattn.nm_attention``: schema, fake, device implementations and gradient.

Inputs are taken as checked: :func:`dynattn.attention` checks them. Every backend of the operator computes
:mod:`dynattn.reference.nm`; memory stays linear in length in all of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dynattn.kernels import cpu, cuda
from dynattn.kernels.pattern import Pattern
from dynattn.ops import batching, buffers, plain

_SCORES_AT_ONCE = 1 << 24  # gradients of scores that a mask's gradient is summed from: 64 MB

_INPUTS = "Tensor query, Tensor key, Tensor value, Tensor? attn_mask, Tensor? seed"
_PATTERN = "int n, int m, int window, int sinks, int stride, bool causal, float scale, float dropout_p"

library = torch.library.Library("dynattn", "DEF")
library.define(
    f"nm_attention({_INPUTS}, {_PATTERN}, bool aux, bool needs_grad, str backend) "
    "-> (Tensor out, Tensor logsumexp, Tensor kept_mass, Tensor kept, Tensor allowed)"
)
library.define(
    f"nm_attention_backward(Tensor grad_out, Tensor grad_logsumexp, Tensor out, Tensor logsumexp, {_INPUTS}, "
    f"{_PATTERN}, bool mask_needs_grad, str backend) -> (Tensor, Tensor, Tensor, Tensor)"
)


def _forward_cpu(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, seed: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    *pattern, aux, needs_grad, backend = rest
    if backend == "reference":
        return plain.forward(query, key, value, attn_mask, seed, Pattern(*pattern), aux)
    outputs = buffers.outputs(query, value, aux)
    out, logsumexp, kept_mass, kept, allowed = outputs
    cpu.nm_forward(
        _rows_contiguous(query), _rows_contiguous(key), _rows_contiguous(value), _expanded(attn_mask, query, key),
        out, logsumexp, kept_mass if aux else None, kept if aux else None, allowed if aux else None,
        Pattern(*pattern), _isa(backend), seed=_integer(seed), needs_grad=needs_grad,
    )  # fmt: skip
    return outputs


def _isa(backend: str) -> str:
    return cpu.best_isa() if backend == "cpu" else backend.removeprefix("cpu-")


def _integer(seed: Tensor | None) -> int:
    return 0 if seed is None else int(seed)


def _rows_contiguous(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _expanded(attn_mask: Tensor | None, query: Tensor, key: Tensor) -> Tensor | None:
    return None if attn_mask is None else attn_mask.expand(*query.shape[:3], key.shape[2])


def _forward_cuda(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, seed: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    *pattern, aux, _needs_grad, backend = rest
    # compiled code cannot ask whether TF32 is allowed, so it leaves that to this moment
    if backend != "cuda" or (query.dtype == torch.float32 and not cuda.tf32_allowed()):
        return plain.forward(query, key, value, attn_mask, seed, Pattern(*pattern), aux)
    outputs = buffers.outputs(query, value, aux)
    out, logsumexp, kept_mass, kept, allowed = outputs
    cuda.nm_forward(
        query, key, value, attn_mask, out, logsumexp,
        kept_mass if aux else None, kept if aux else None, allowed if aux else None,
        Pattern(*pattern),
    )  # fmt: skip
    return outputs


def _forward_fake(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, seed: Tensor | None, *rest: Any
) -> tuple:
    *_, aux, _needs_grad, _backend = rest
    return buffers.outputs(query, value, aux)


def _backward_cpu(
    grad_out: Tensor, grad_logsumexp: Tensor, out: Tensor, logsumexp: Tensor, query: Tensor, key: Tensor, value: Tensor,
    attn_mask: Tensor | None, seed: Tensor | None, *rest: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    *arguments, mask_needs_grad, backend = rest
    pattern = Pattern(*arguments)
    if backend == "reference" or (mask_needs_grad and _sums_over_queries(attn_mask, query, seed)):
        return plain.backward(
            grad_out, grad_logsumexp, query, key, value, attn_mask, seed, pattern, mask_needs_grad
        )  # fmt: skip
    gradients = buffers.gradients(query, key, value, attn_mask, mask_needs_grad)
    d_query, d_key, d_value, d_mask = gradients
    per_query = [
        _rows_contiguous(grad_out),
        grad_logsumexp.contiguous(),
        _rows_contiguous(query),
        out,
        logsumexp,
        d_query,
    ]
    per_key = [_rows_contiguous(key), _rows_contiguous(value), d_key, d_value]
    mask = _expanded(attn_mask, query, key)
    if mask is not None and mask_needs_grad:
        d_mask.copy_(_mask_gradient(per_query, per_key, mask, d_mask.shape, pattern, _isa(backend)))
    else:
        _run_backward(per_query, per_key, mask, None, pattern, _isa(backend), _integer(seed))
    return gradients


def _run_backward(
    per_query: list[Tensor], per_key: list[Tensor], mask: Tensor | None, d_scores: Tensor | None, pattern: Pattern,
    isa: str, seed: int = 0,
) -> None:  # fmt: skip
    grad_out, grad_logsumexp, query, out, logsumexp, d_query = per_query
    key, value, d_key, d_value = per_key
    cpu.nm_backward(
        grad_out, grad_logsumexp, query, key, value, mask, out, logsumexp, d_query, d_key, d_value, d_scores, pattern,
        isa, seed=seed,
    )  # fmt: skip


def _sums_over_queries(attn_mask: Tensor | None, query: Tensor, seed: Tensor | None) -> bool:
    """Whether the kernel's d_scores, as wide as keys and as long as queries, are too much for this mask's gradient.

    So it is where all queries share a bias. (And dropout is drawn by head, of which the kernel would see a few.)
    """
    if attn_mask is None:
        return False
    return attn_mask.dim() < 2 or attn_mask.shape[-2] == 1 < query.shape[2] or seed is not None


def _mask_gradient(
    per_query: list[Tensor], per_key: list[Tensor], mask: Tensor, shape: torch.Size, pattern: Pattern, isa: str
) -> Tensor:
    """All gradients by the kernel, a few heads at a time, whose d_scores are summed up to the mask's shape."""
    batch, heads, q_len = per_query[1].shape
    kv_heads, kv_len = per_key[0].shape[1:3]
    group = heads // kv_heads
    total = mask.new_zeros((1,) * (4 - len(shape)) + tuple(shape), dtype=torch.float32)
    step = max(1, min(kv_heads, _SCORES_AT_ONCE // max(1, group * q_len * kv_len)))
    for b in range(batch):
        for first in range(0, kv_heads, step):
            of_keys = (slice(b, b + 1), slice(first, first + step))
            of_queries = (slice(b, b + 1), slice(first * group, (first + step) * group))
            d_scores = mask.new_zeros((1, min(step, kv_heads - first) * group, q_len, kv_len), dtype=torch.float32)
            queries, keys = [x[of_queries] for x in per_query], [x[of_keys] for x in per_key]
            _run_backward(queries, keys, mask[of_queries], d_scores, pattern, isa)
            where = (part if size > 1 else slice(None) for part, size in zip(of_queries, total.shape, strict=False))
            sums = total[tuple(where)]
            sums += d_scores.sum_to_size(sums.shape)
    return total.view(shape)


def _backward_any(grad_out: Tensor, grad_logsumexp: Tensor, _out: Tensor, _logsumexp: Tensor, *rest: Any) -> tuple:
    query, key, value, attn_mask, seed, *pattern, mask_needs_grad, _backend = rest
    return plain.backward(
        grad_out, grad_logsumexp, query, key, value, attn_mask, seed, Pattern(*pattern), mask_needs_grad
    )  # fmt: skip


def _backward_fake(
    grad_out: Tensor, grad_logsumexp: Tensor, out: Tensor, logsumexp: Tensor, query: Tensor, key: Tensor, value: Tensor,
    attn_mask: Tensor | None, seed: Tensor | None, *rest: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    *_, mask_needs_grad, _backend = rest
    return buffers.gradients(query, key, value, attn_mask, mask_needs_grad)


def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    """What the gradient needs of a forward call."""
    query, key, value, attn_mask, seed, *pattern, _aux, _needs_grad, backend = inputs
    out, logsumexp, *counts = output
    ctx.save_for_backward(out, logsumexp, query, key, value, attn_mask, seed)
    ctx.pattern, ctx.backend = pattern, backend
    ctx.mark_non_differentiable(*counts)
    ctx.set_materialize_grads(True)


def autograd_backward(ctx: Any, grad_out: Tensor, grad_logsumexp: Tensor, *_: Tensor, call: Any = None) -> tuple:
    """Gradients of all arguments of a forward call; ``call`` may stand for the operator."""
    mask_needs_grad = ctx.needs_input_grad[3]
    d_query, d_key, d_value, d_mask = (call or torch.ops.dynattn.nm_attention_backward)(
        grad_out, grad_logsumexp, *ctx.saved_tensors, *ctx.pattern, mask_needs_grad, ctx.backend
    )
    return d_query, d_key, d_value, d_mask if mask_needs_grad else None, *[None] * 12


def refuse_second_derivatives(ctx: Any, *_: Any) -> None:
    """In place of a gradient of the gradient: an error that says so."""
    raise NotImplementedError(
        "attention: second derivatives are not offered; call backward() without create_graph, "
        "or use torch.nn.functional.scaled_dot_product_attention for this part of the model"
    )


library.impl("nm_attention", _forward_cpu, "CPU")
library.impl("nm_attention", _forward_cuda, "CUDA")
library.impl("nm_attention_backward", _backward_cpu, "CPU")
library.impl("nm_attention_backward", _backward_any, "CUDA")
torch.library.register_fake("dynattn::nm_attention", _forward_fake, lib=library)
torch.library.register_fake("dynattn::nm_attention_backward", _backward_fake, lib=library)
torch.library.register_autograd("dynattn::nm_attention", autograd_backward, setup_context=setup_context, lib=library)
torch.library.register_autograd("dynattn::nm_attention_backward", refuse_second_derivatives, lib=library)
torch.library.register_vmap("dynattn::nm_attention", batching.forward, lib=library)
torch.library.register_vmap("dynattn::nm_attention_backward", batching.backward, lib=library)

nm_attention = torch.ops.dynattn.nm_attention.default

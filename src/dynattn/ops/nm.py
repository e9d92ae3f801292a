"""``torch.ops.dynattn.nm_attention``: schema, fake, device implementations and gradient.

:func:`dynattn.attention` has checked the inputs. Every backend of the operator computes what
:mod:`dynattn.reference.pairs` computes for the choice of :mod:`dynattn.methods.nm`, in memory linear in length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dynattn.kernels import cpu, cuda
from dynattn.kernels.pattern import Pattern
from dynattn.ops import batching, buffers
from dynattn.ops.arguments import expanded, integer, nm_isa, rows_contiguous
from dynattn.ops.library import GRADIENTS, INPUTS, RESULTS, Derivative, complete, define, library
from dynattn.reference import in_blocks

_SCORES_AT_ONCE = 1 << 24  # so many gradients of scores are held at a time for a mask's gradient: 64 MB

_PATTERN = "int n, int m, int window, int sinks, int stride, bool causal, Scalar scale, Scalar dropout_p"

FORWARD = define("nm_attention", f"{INPUTS}, {_PATTERN}, bool aux, bool needs_grad, str backend", RESULTS)
BACKWARD = define(
    "nm_attention_backward",
    f"{GRADIENTS}, Tensor out, Tensor logsumexp, {INPUTS}, {_PATTERN}, bool mask_needs_grad, str backend",
    "Tensor query, Tensor key, Tensor value, Tensor attn_mask",
)
DERIVATIVE = Derivative(FORWARD, BACKWARD)


def forward_cpu(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, seed: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    """The operator on a CPU. It takes what the operator takes, and returns only the results that were asked for."""
    *pattern, aux, needs_grad, backend = rest
    outputs = buffers.outputs(query, value, aux)
    if backend == "reference":
        in_blocks.forward(outputs, query, key, value, attn_mask, seed, _options(Pattern(*pattern)), aux)
        return outputs
    out, logsumexp, kept_mass, kept, allowed = outputs if aux else (*outputs, None, None, None)
    cpu.nm_forward(
        rows_contiguous(query), rows_contiguous(key), rows_contiguous(value), expanded(attn_mask, query, key),
        out, logsumexp, kept_mass, kept, allowed, Pattern(*pattern), nm_isa(backend, query),
        seed=integer(seed), needs_grad=needs_grad,
    )  # fmt: skip
    return outputs


def _forward_cpu(query: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return buffers.complete(forward_cpu(query, *rest), query)


def _options(pattern: Pattern) -> in_blocks.Options:
    return in_blocks.Options(pattern.method, pattern.causal, pattern.scale, pattern.dropout_p)


def _forward_cuda(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, seed: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    *pattern, aux, needs_grad, backend = rest
    outputs = buffers.outputs(query, value, aux)
    # compiled code cannot ask whether TF32 is allowed, so it is asked here, when the operator runs
    if backend != "cuda" or (query.dtype == torch.float32 and not cuda.tf32_allowed()):
        in_blocks.forward(outputs, query, key, value, attn_mask, seed, _options(Pattern(*pattern)), aux)
        return buffers.complete(outputs, query)
    out, logsumexp, kept_mass, kept, allowed = outputs if aux else (*outputs, None, None, None)
    cuda.nm_forward(
        query, key, value, attn_mask, out, logsumexp, kept_mass, kept, allowed, Pattern(*pattern), needs_grad, seed
    )
    return buffers.complete(outputs, query)


def _forward_fake(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, seed: Tensor | None, *rest: Any
) -> tuple:
    *_, aux, _needs_grad, _backend = rest
    return buffers.complete(buffers.outputs(query, value, aux), query)


def _backward(
    kernel: Callable[[Pattern, str, Tensor, Tensor | None], Callable[..., None]],
    grad_out: Tensor, grad_logsumexp: Tensor, out: Tensor, logsumexp: Tensor, query: Tensor, key: Tensor, value: Tensor,
    attn_mask: Tensor | None, seed: Tensor | None, *rest: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    *arguments, mask_needs_grad, backend = rest
    pattern = Pattern(*arguments)
    if backend == "reference" or (mask_needs_grad and _sums_over_queries(attn_mask, query)):
        gradients = buffers.gradients(query, key, value, attn_mask, mask_needs_grad)
        in_blocks.backward(
            gradients, grad_out, grad_logsumexp, query, key, value, attn_mask, seed, _options(pattern)
        )  # fmt: skip
        return gradients
    return _run_backward(
        kernel(pattern, backend, query, seed),
        rows_contiguous(grad_out), grad_logsumexp, rows_contiguous(out), logsumexp,
        rows_contiguous(query), rows_contiguous(key), rows_contiguous(value), attn_mask, mask_needs_grad,
    )  # fmt: skip


def _cpu_backward(pattern: Pattern, backend: str, query: Tensor, seed: Tensor | None) -> Callable[..., None]:
    return partial(cpu.nm_backward, pattern=pattern, isa=nm_isa(backend, query), seed=integer(seed))


def _cuda_backward(pattern: Pattern, _backend: str, _query: Tensor, seed: Tensor | None) -> Callable[..., None]:
    return partial(cuda.nm_backward, pattern=pattern, seed=seed)  # a tensor: to read its value would wait for the GPU


def _sums_over_queries(attn_mask: Tensor | None, query: Tensor) -> bool:
    """Whether all queries share a bias. Its gradient is a sum over queries, and must not hold the gradients of all
    scores."""
    return attn_mask is not None and (attn_mask.dim() < 2 or attn_mask.shape[-2] == 1 < query.shape[2])


def _run_backward(
    run: Callable[..., None], grad_out: Tensor, grad_logsumexp: Tensor, out: Tensor, logsumexp: Tensor, query: Tensor,
    key: Tensor, value: Tensor, attn_mask: Tensor | None, mask_needs_grad: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The gradients by a kernel. A mask's gradient is summed from those of the scores, a few heads at a time."""
    gradients = buffers.gradients(query, key, value, attn_mask, mask_needs_grad)
    d_query, d_key, d_value, d_mask = gradients
    mask = expanded(attn_mask, query, key)
    grad_logsumexp, logsumexp = grad_logsumexp.contiguous(), logsumexp.contiguous()  # vmap gives views of stride 0
    if mask is None or not mask_needs_grad:
        run(grad_out, grad_logsumexp, query, key, value, mask, out, logsumexp, d_query, d_key, d_value, None)
        return gradients
    total = mask.new_zeros((1,) * (4 - d_mask.dim()) + tuple(d_mask.shape), dtype=torch.float32)
    for q, k in _few_heads(query, key):
        d_scores = mask[q].new_zeros(mask[q].shape, dtype=torch.float32)
        run(
            grad_out[q], grad_logsumexp[q], query[q], key[k], value[k], mask[q], out[q], logsumexp[q], d_query[q],
            d_key[k], d_value[k], d_scores, first=(q[0].start, q[1].start),
        )  # fmt: skip
        sums = total[tuple(part if size > 1 else slice(None) for part, size in zip(q, total.shape, strict=False))]
        sums += d_scores.sum_to_size(sums.shape)
    d_mask.copy_(total.view(d_mask.shape))
    return gradients


def _few_heads(query: Tensor, key: Tensor) -> Iterator[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """Slices of the batch and the heads, of queries and of keys, each with at most ``_SCORES_AT_ONCE`` scores."""
    batch, heads, q_len, _ = query.shape
    kv_heads, kv_len = key.shape[1:3]
    group = heads // kv_heads
    step = max(1, min(kv_heads, _SCORES_AT_ONCE // max(1, group * q_len * kv_len)))
    for b in range(batch):
        for first in range(0, kv_heads, step):
            last = min(first + step, kv_heads)
            yield (slice(b, b + 1), slice(first * group, last * group)), (slice(b, b + 1), slice(first, last))


def _backward_fake(
    grad_out: Tensor, grad_logsumexp: Tensor, out: Tensor, logsumexp: Tensor, query: Tensor, key: Tensor, value: Tensor,
    attn_mask: Tensor | None, seed: Tensor | None, *rest: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    *_, mask_needs_grad, _backend = rest
    return buffers.gradients(query, key, value, attn_mask, mask_needs_grad)


library.impl("nm_attention", _forward_cpu, "CPU")
library.impl("nm_attention", _forward_cuda, "CUDA")
library.impl("nm_attention_backward", partial(_backward, _cpu_backward), "CPU")
library.impl("nm_attention_backward", partial(_backward, _cuda_backward), "CUDA")
complete(FORWARD, BACKWARD, _forward_fake, _backward_fake)
for _schema in (FORWARD, BACKWARD):
    torch.library.register_vmap(_schema.operator.name(), partial(batching.rule, _schema), lib=library)

nm_attention = FORWARD.operator

"""``torch.ops.dynattn.pair_attention``: attention over the pairs that any method keeps, on any device.

The method is passed by its name, so that the operator is one node for the compiler; its choice is made in plain
PyTorch, a block of queries at a time: memory is linear in length, in the backward too, which makes the choice again and
holds it fixed. Inputs are taken as checked: :func:`dynattn.attention` checks them.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from dynattn.methods.base import PairMethod
from dynattn.methods.registry import parse
from dynattn.ops import buffers, plain
from dynattn.ops.library import CALL, INPUTS, complete, library

library.define(
    f"pair_attention({INPUTS}, {CALL}, bool aux) "
    "-> (Tensor out, Tensor logsumexp, Tensor kept_mass, Tensor kept, Tensor allowed)"
)
library.define(
    f"pair_attention_backward(Tensor grad_out, Tensor grad_logsumexp, {INPUTS}, {CALL}, bool mask_needs_grad) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)


def _forward(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, seed: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    *call, aux = rest
    return plain.forward(query, key, value, attn_mask, seed, _call(*call), aux)


def _backward(
    grad_out: Tensor, grad_logsumexp: Tensor, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None,
    seed: Tensor | None, *rest: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    *call, mask_needs_grad = rest
    return plain.backward(
        grad_out, grad_logsumexp, query, key, value, attn_mask, seed, _call(*call), mask_needs_grad
    )  # fmt: skip


def _call(name: str, causal: bool, scale: float, dropout_p: float) -> plain.Call:
    return plain.Call(cast(PairMethod, parse(name)), causal, scale, dropout_p)


def _forward_fake(query: Tensor, _key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return buffers.outputs(query, value, aux=rest[-1])


def _backward_fake(
    _grad_out: Tensor, _grad_logsumexp: Tensor, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    return buffers.gradients(query, key, value, attn_mask, rest[-1])


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    *tensors, name, causal, scale, dropout_p, _aux = inputs
    ctx.save_for_backward(*tensors)
    ctx.call = (name, causal, scale, dropout_p)
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(True)


def _gradients(ctx: Any, grad_out: Tensor, grad_logsumexp: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    mask_needs_grad = ctx.needs_input_grad[3]
    d_query, d_key, d_value, d_mask = torch.ops.dynattn.pair_attention_backward(
        grad_out, grad_logsumexp, *ctx.saved_tensors, *ctx.call, mask_needs_grad
    )
    return d_query, d_key, d_value, d_mask if mask_needs_grad else None, *[None] * 6


library.impl("pair_attention", _forward, "CompositeExplicitAutograd")
library.impl("pair_attention_backward", _backward, "CompositeExplicitAutograd")
complete("pair_attention", _forward_fake, _backward_fake, _gradients, _setup_context)

pair_attention = torch.ops.dynattn.pair_attention.default

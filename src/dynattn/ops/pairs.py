"""``torch.ops.dynattn.pair_attention``: attention over the pairs that any method keeps, on any device.

The method is passed by its name, so that the operator is one node for the compiler; its choice is made in plain
PyTorch, a block of queries at a time: memory is linear in length, in the backward too, which makes the choice again and
holds it fixed. Inputs are taken as checked: :func:`dynattn.attention` checks them.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor

from dynattn.methods.base import PairMethod
from dynattn.methods.registry import parse
from dynattn.ops import buffers, plain
from dynattn.ops.library import CALL, GRADIENTS, INPUTS, RESULTS, complete, define, library

FORWARD = define("pair_attention", f"{INPUTS}, {CALL}, bool aux", RESULTS)
BACKWARD = define(
    "pair_attention_backward",
    f"{GRADIENTS}, {INPUTS}, {CALL}, bool mask_needs_grad",
    "Tensor query, Tensor key, Tensor value, Tensor attn_mask",
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


library.impl("pair_attention", _forward, "CompositeExplicitAutograd")
library.impl("pair_attention_backward", _backward, "CompositeExplicitAutograd")
complete(FORWARD, BACKWARD, _forward_fake, _backward_fake, split=False)

pair_attention = FORWARD.operator

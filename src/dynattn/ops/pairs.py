"""``torch.ops.dynattn.pair_attention``: attention over the pairs that any method keeps, on any device.

The method is passed by its name, so that the operator is one node for the compiler. Its choice is made in plain
PyTorch, a block of queries at a time, so that memory is linear in length. The backward makes the same choice again and
holds it fixed, in linear memory too. :func:`dynattn.attention` has checked the inputs.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor

from dynattn.methods.base import PairMethod
from dynattn.methods.registry import parse
from dynattn.ops import buffers
from dynattn.ops.library import CALL, GRADIENTS, INPUTS, RESULTS, complete, define, library
from dynattn.reference import in_blocks

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
    outputs = buffers.outputs(query, value, aux)
    in_blocks.forward(outputs, query, key, value, attn_mask, seed, _options(*call), aux)
    return buffers.complete(outputs, query)


def _backward(*arguments: Any) -> tuple[Tensor, ...]:
    call = BACKWARD.Arguments(*arguments)
    gradients = _backward_fake(*arguments)
    in_blocks.backward(
        gradients, call.grad_out, call.grad_logsumexp, call.query, call.key, call.value, call.attn_mask, call.seed,
        _options(call.method, call.causal, call.scale, call.dropout_p),
    )  # fmt: skip
    return gradients


def _options(name: str, causal: bool, scale: float, dropout_p: float) -> in_blocks.Options:
    return in_blocks.Options(cast(PairMethod, parse(name)), causal, scale, dropout_p)


def _forward_fake(query: Tensor, _key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return buffers.complete(buffers.outputs(query, value, aux=rest[-1]), query)


def _backward_fake(*arguments: Any) -> tuple[Tensor, ...]:
    call = BACKWARD.Arguments(*arguments)
    return buffers.gradients(call.query, call.key, call.value, call.attn_mask, call.mask_needs_grad)


library.impl("pair_attention", _forward, "CompositeExplicitAutograd")
library.impl("pair_attention_backward", _backward, "CompositeExplicitAutograd")
complete(FORWARD, BACKWARD, _forward_fake, _backward_fake, split=False)

pair_attention = FORWARD.operator

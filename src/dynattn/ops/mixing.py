"""``torch.ops.dynattn.mixing_attention``: methods that keep no pairs, as one node for the compiler.

Outside of compiled code these methods are plain PyTorch, which autograd follows, and this operator is not used. A
compiler would unroll their loops over the length, and would break the graph where their work depends on the data. The
backward computes the forward once more.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from dynattn.methods.base import MixingMethod
from dynattn.methods.registry import parse
from dynattn.ops import buffers
from dynattn.ops.library import complete, define, library, no_autocast, recording

_INPUTS = "Tensor query, Tensor key, Tensor value, Tensor? attn_mask, str method, bool causal, Scalar scale"

FORWARD = define("mixing_attention", _INPUTS, "Tensor out")
BACKWARD = define(
    "mixing_attention_backward",
    f"Tensor grad_out, {_INPUTS}, bool mask_needs_grad",
    "Tensor query, Tensor key, Tensor value, Tensor attn_mask",
)


def _forward(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, method: str, causal: bool, scale: float
) -> Tensor:
    with no_autocast(query.device):
        mixing = cast(MixingMethod, parse(method))
        return mixing.attend(query, key, value, attn_mask=attn_mask, causal=causal, scale=scale).contiguous()


def _backward(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, method: str, causal: bool,
    scale: float, mask_needs_grad: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    inputs = [query, key, value, *([attn_mask] if mask_needs_grad and attn_mask is not None else [])]
    with recording(query.device):
        leaves = [x.detach().requires_grad_() for x in inputs]
        mask = leaves[3] if len(leaves) == 4 else attn_mask
        out = cast(MixingMethod, parse(method)).attend(*leaves[:3], attn_mask=mask, causal=causal, scale=scale)
    found = torch.autograd.grad(out, leaves, grad_out, materialize_grads=True)
    gradients = buffers.gradients(query, key, value, attn_mask, mask_needs_grad)
    for gradient, one in zip(gradients, found, strict=False):
        gradient.copy_(one)
    return gradients


def _forward_fake(query: Tensor, _key: Tensor, value: Tensor, *_: Any) -> Tensor:
    return buffers.packed(query, value)[0]


def _backward_fake(*arguments: Any) -> tuple[Tensor, ...]:
    call = BACKWARD.Arguments(*arguments)
    return buffers.gradients(call.query, call.key, call.value, call.attn_mask, call.mask_needs_grad)


library.impl("mixing_attention", _forward, "CompositeExplicitAutograd")
library.impl("mixing_attention_backward", _backward, "CompositeExplicitAutograd")
complete(FORWARD, BACKWARD, _forward_fake, _backward_fake, split=False)

mixing_attention = FORWARD.operator

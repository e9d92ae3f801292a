"""What operators share that leave their choice to the gradient: dense attention of the CPU kernels over that choice.

Their schema begins with ``INPUTS`` and ``CALL`` of :mod:`dynattn.ops.library` and ends with the backend. Results behind
the certificate say what was chosen; the backward gets them between ``logsumexp`` and the inputs.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from dynattn.kernels import cpu
from dynattn.kernels.pattern import Pattern
from dynattn.methods.base import PairMethod
from dynattn.methods.nm import NM
from dynattn.methods.registry import parse
from dynattn.ops import buffers
from dynattn.ops.nm import expanded, integer, isa_of, rows_contiguous

_TENSORS = 5  # inputs of an operator: query, key, value, attn_mask, seed
_CERTIFIED = 5  # results before those of the choice: out, logsumexp, kept_mass, kept, allowed


class Call(NamedTuple):
    """An operator's arguments after its tensors, in order."""

    method: str
    causal: bool
    scale: float
    dropout_p: float

    @property
    def pairs(self) -> PairMethod:
        """The method by its name."""
        return cast(PairMethod, parse(self.method))

    @property
    def pattern(self) -> Pattern:
        """Dense: what the kernels compute of the pairs that are left."""
        return Pattern.of(NM(1, 1), self.causal, self.scale)._replace(dropout_p=self.dropout_p)


def gradients(
    grad_out: Tensor, grad_logsumexp: Tensor, out: Tensor, logsumexp: Tensor, query: Tensor, key: Tensor, value: Tensor,
    attn_mask: Tensor | None, seed: Tensor | None, call: Call, backend: str, **choice: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Of query, key and value; ``choice`` as :func:`dynattn.kernels.cpu.nm_backward` takes it."""
    d_query, d_key, d_value, _ = buffers.gradients(query, key, value, None, False)
    cpu.nm_backward(
        rows_contiguous(grad_out), grad_logsumexp.contiguous(), rows_contiguous(query), rows_contiguous(key),
        rows_contiguous(value), expanded(attn_mask, query, key), rows_contiguous(out), logsumexp.contiguous(), d_query,
        d_key, d_value, None, call.pattern, isa_of(backend), seed=integer(seed), **choice,
    )  # fmt: skip
    return d_query, d_key, d_value


def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    """What the gradient needs of a forward call."""
    tensors, call, backend = inputs[:_TENSORS], inputs[_TENSORS : _TENSORS + len(Call._fields)], inputs[-1]
    out, logsumexp, *rest = output
    ctx.save_for_backward(out, logsumexp, *output[_CERTIFIED:], *tensors)
    ctx.call, ctx.arguments = (*call, backend), len(inputs)
    ctx.mark_non_differentiable(*rest)
    ctx.set_materialize_grads(True)


def autograd(name: str) -> Any:
    """The gradients of all arguments of the operator ``name``, by its backward."""

    def backward(ctx: Any, grad_out: Tensor, grad_logsumexp: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        call = getattr(torch.ops.dynattn, f"{name}_backward")
        found = call(grad_out, grad_logsumexp, *ctx.saved_tensors, *ctx.call)
        return *found, *[None] * (ctx.arguments - len(found))

    return backward

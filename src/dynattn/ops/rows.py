"""``torch.ops.dynattn.row_attention``: rows that choose by their own scores, top-k and thresholds, by the CPU kernels.

The kernel draws a line through each row's scores and keeps what lies above it. The lines are results of the operator:
the gradient makes its scores from the same products in the same order, to the bit, and chooses by the same lines.
Inputs are taken as checked: :func:`dynattn.attention` checks them.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from dynattn.kernels import cpu
from dynattn.kernels.pattern import Pattern, RowRule
from dynattn.methods.nm import NM
from dynattn.methods.registry import parse
from dynattn.methods.threshold import Threshold
from dynattn.methods.topk import TopK
from dynattn.ops import buffers
from dynattn.ops.library import complete, library
from dynattn.ops.nm import expanded, integer, isa_of, rows_contiguous

_INPUTS = "Tensor query, Tensor key, Tensor value, Tensor? attn_mask, Tensor? seed"
_CALL = "str method, bool causal, float scale, float dropout_p"

library.define(
    f"row_attention({_INPUTS}, {_CALL}, bool aux, str backend) "
    "-> (Tensor out, Tensor logsumexp, Tensor kept_mass, Tensor kept, Tensor allowed, Tensor least, Tensor last)"
)
library.define(
    "row_attention_backward(Tensor grad_out, Tensor grad_logsumexp, Tensor out, Tensor logsumexp, Tensor least, "
    f"Tensor last, {_INPUTS}, {_CALL}, str backend) -> (Tensor, Tensor, Tensor)"
)


class _Call(NamedTuple):
    """The operator's arguments after its tensors, in order."""

    method: str
    causal: bool
    scale: float
    dropout_p: float

    @property
    def rule(self) -> RowRule:
        return RowRule.of(cast("TopK | Threshold", parse(self.method)))

    @property
    def pattern(self) -> Pattern:
        return Pattern.of(NM(1, 1), self.causal, self.scale)._replace(dropout_p=self.dropout_p)


def _cut(query: Tensor) -> tuple[Tensor, Tensor]:
    rows = query.shape[:3]
    return query.new_empty(rows, dtype=torch.float32), query.new_empty(rows, dtype=torch.int32)


def _forward(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, seed: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    *arguments, aux, backend = rest
    call = _Call(*arguments)
    outputs, cut = buffers.outputs(query, value, aux), _cut(query)
    out, logsumexp, *counts = outputs
    kept_mass, kept, allowed = counts if aux else (None, None, None)
    cpu.row_forward(
        rows_contiguous(query), rows_contiguous(key), rows_contiguous(value), expanded(attn_mask, query, key), out,
        logsumexp, kept_mass, kept, allowed, cut, call.rule, call.pattern, isa_of(backend), seed=integer(seed),
    )  # fmt: skip
    return *outputs, *cut


def _backward(
    grad_out: Tensor, grad_logsumexp: Tensor, out: Tensor, logsumexp: Tensor, least: Tensor, last: Tensor,
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, seed: Tensor | None, *rest: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    *arguments, backend = rest
    d_query, d_key, d_value, _ = buffers.gradients(query, key, value, None, False)
    cpu.nm_backward(
        rows_contiguous(grad_out), grad_logsumexp.contiguous(), rows_contiguous(query), rows_contiguous(key),
        rows_contiguous(value), expanded(attn_mask, query, key), rows_contiguous(out), logsumexp.contiguous(), d_query,
        d_key, d_value, None, _Call(*arguments).pattern, isa_of(backend), seed=integer(seed),
        cut=(least.contiguous(), last.contiguous()),
    )  # fmt: skip
    return d_query, d_key, d_value


def _forward_fake(query: Tensor, _key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *_, aux, _backend = rest
    return *buffers.outputs(query, value, aux), *_cut(query)


def _backward_fake(
    _grad_out: Tensor, _grad_logsumexp: Tensor, _out: Tensor, _logsumexp: Tensor, _least: Tensor, _last: Tensor,
    query: Tensor, key: Tensor, value: Tensor, *_: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    return buffers.gradients(query, key, value, None, False)[:3]


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    query, key, value, attn_mask, seed, *call, _aux, backend = inputs
    out, logsumexp, *counts, least, last = output
    ctx.save_for_backward(out, logsumexp, least, last, query, key, value, attn_mask, seed)
    ctx.call = (*call, backend)
    ctx.mark_non_differentiable(*counts, least, last)
    ctx.set_materialize_grads(True)


def _gradients(ctx: Any, grad_out: Tensor, grad_logsumexp: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    gradients = torch.ops.dynattn.row_attention_backward(grad_out, grad_logsumexp, *ctx.saved_tensors, *ctx.call)
    return *gradients, *[None] * 8


library.impl("row_attention", _forward, "CPU")
library.impl("row_attention_backward", _backward, "CPU")
complete("row_attention", _forward_fake, _backward_fake, _gradients, _setup_context)

row_attention = torch.ops.dynattn.row_attention.default
